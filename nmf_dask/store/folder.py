"""A path or URI and the few operations that everything here needs, on any file system that pyarrow knows."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from nmf_dask.config import redact
from nmf_dask.errors import ConfigurationError, InputDataError, NmfDaskError, RetryableError
from nmf_dask.object_stores import (
    built,
    is_cut_off,
    patiently,
    refuse_credentials,
    understood,
    without_bucket,
)

ROW_GROUP_BYTES = 32 * 2**20
HASHED_BYTES = 8 * 2**20
WHOLE_BYTES = 2**20
SYNCED_TOGETHER = 8

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://([^/?]*)/*([^?]*)(\?.*)?")
_REFUSED = re.compile("forbidden|unauthori|permission|credential|unable to load", re.IGNORECASE)


class MissingFileError(InputDataError):
    """What was to be read is not there."""


@contextmanager
def reported(action: str, where: str) -> Iterator[None]:
    """Turn what a file system raises into one message that names `where`, with the exit code to act on.

    A full disk and an object store that does not answer are worth retrying (RetryableError); a missing file,
    a refused permission and damaged content are not (MissingFileError, InputDataError).
    """
    try:
        yield
    except NmfDaskError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError(f"cannot {action} {where}: it does not exist") from error
    except (OSError, pa.ArrowException) as error:
        what = f"cannot {action} {where}"
        known = understood(error, what, where) if "://" in where else None
        raise known or _translated(error, what) from error


def _translated(error: OSError | pa.ArrowException, what: str) -> NmfDaskError:
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return RetryableError(f"{what}: the disk is full. Free some space and run the same command again")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputDataError(f"{what}: permission denied. Check who owns it, or choose another place")
    if number in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return InputDataError(f"{what}: a file stands where a folder is needed, or the reverse")
    detail = redact(" ".join(str(error).split()))
    foreign = "is a directory" in detail or "thrift" in detail.lower() or "parquet" in detail.lower()
    if foreign or not isinstance(error, OSError):
        return InputDataError(f"{what}: it is damaged or not the format it should be ({detail})")
    if _REFUSED.search(detail):
        return InputDataError(f"{what}: refused. Check address and credentials ({detail})")
    return RetryableError(f"{what}: {detail}. Run the same command again when the storage answers")


class Digest(NamedTuple):
    """Size and SHA-256 (hexadecimal) of a file."""

    n_bytes: int
    sha256: str

    @classmethod
    def of(cls, data: bytes | pa.Buffer) -> Digest:
        """The digest of content in memory."""
        view = memoryview(data)
        return cls(view.nbytes, hashlib.sha256(view).hexdigest())


class _Hashed:
    """A file to write to that hashes what goes by."""

    closed = False

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self._n_bytes = 0

    def write(self, data: bytes) -> None:
        self._stream.write(data)
        self._hash.update(data)
        self._n_bytes += len(data)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        """The stream is closed by whoever opened it."""

    @property
    def digest(self) -> Digest:
        return Digest(self._n_bytes, self._hash.hexdigest())


class CsvFile:
    """A CSV file that is being written: names of columns first, nulls as nothing."""

    def __init__(self, hashed: _Hashed) -> None:
        self._hashed = hashed
        self._writer: pacsv.CSVWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append rows; all tables have the same columns."""
        if self._writer is None:
            self._writer = pacsv.CSVWriter(self._hashed, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        """No more tables come."""
        if self._writer is not None:
            self._writer.close()

    @property
    def digest(self) -> Digest:
        """Of what was written, once it is closed."""
        return self._hashed.digest


@dataclass(frozen=True)
class Folder:
    """A folder or file by its path or URI; picklable, because the file system is built in each process.

    `uri` is a path (made absolute at once, so that it means the same in another process) or a URI of a scheme
    that pyarrow knows: file, s3, gs, abfs, hdfs. Credentials come from the environment, options such as
    `?endpoint_override=` from the URI.

    Raises ConfigurationError for an empty path and for a scheme that cannot be used, and from every
    operation InputDataError (missing, refused, damaged) or RetryableError (disk full, store unreachable).
    """

    uri: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "uri", _named(_absolute(os.fspath(self.uri))))

    def __truediv__(self, name: str) -> Folder:
        path, query = _split_query(self.uri)
        return Folder(f"{path.rstrip('/')}/{name}{query}")

    def __str__(self) -> str:
        """The path or URI for messages: without credentials, should the URI carry some."""
        return redact(self.uri)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return _split_query(self.uri)[0].rsplit("/", 1)[-1]

    @property
    def parent(self) -> Folder:
        """The folder that this one is in."""
        path, query = _split_query(self.uri)
        above = path.rsplit("/", 1)[0]
        return self if above.endswith(":/") else Folder((above or "/") + query)

    @property
    def is_local(self) -> bool:
        """True where the operating system itself can open the path."""
        return "://" not in self.uri

    @property
    def fs(self) -> pafs.FileSystem:
        """The file system, built once a process."""
        return self._located()[0]

    @property
    def path(self) -> str:
        """The path as `fs` wants it."""
        return self._located()[1]

    def _located(self) -> tuple[pafs.FileSystem, str]:
        if self.is_local:
            return pafs.LocalFileSystem(), self.uri
        match = _URI.fullmatch(self.uri)
        assert match is not None, self.uri
        scheme, authority, rest, query = match.groups()
        fs, root = _file_system(f"{scheme}://{authority}/{query or ''}", self.uri, os.getpid())
        path = f"{root.rstrip('/')}/{unquote(rest)}"
        return fs, path if root.startswith("/") else path.strip("/")

    def info(self) -> pafs.FileInfo:
        """Type, size and time of last change."""
        with reported("look at", str(self)):
            return self.fs.get_file_info(self.path)

    def exists(self) -> bool:
        """True for a file, a folder, or (object stores) a prefix of some object."""
        return bool(self.info().type != pafs.FileType.NotFound)

    def check_bucket(self) -> None:
        """Raise InputDataError where an object store does not even have the bucket."""
        bucket = "" if self.is_local else self.path.partition("/")[0]
        with reported("look at", str(self)):
            if bucket and self.fs.get_file_info(bucket).type == pafs.FileType.NotFound:
                raise without_bucket(f"cannot look at {self}", self.uri)

    def list(self) -> tuple[str, ...]:
        """Names in this folder, sorted; none where it does not exist."""
        with reported("list", str(self)):
            found = self.fs.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        return tuple(sorted(info.base_name for info in found))

    def size(self) -> int:
        """Bytes of this file, or of all files below this folder."""
        info = self.info()
        if info.type != pafs.FileType.Directory:
            return int(info.size or 0)
        with reported("list", str(self)):
            found = self.fs.get_file_info(pafs.FileSelector(self.path, allow_not_found=True, recursive=True))
        return sum(int(one.size or 0) for one in found)

    def delete(self) -> None:
        """Remove this file, or this folder and all that is in it; what is not there is no error."""
        kind = self.info().type
        if kind == pafs.FileType.NotFound:
            return
        try:
            with reported("delete", str(self)):
                (self.fs.delete_dir if kind == pafs.FileType.Directory else self.fs.delete_file)(self.path)
        except MissingFileError:
            return  # somebody else was faster

    def make(self) -> None:
        """Create the folder where the file system has folders; object stores have none."""
        if self.is_local:
            with reported("create", str(self)):
                os.makedirs(self.uri, exist_ok=True)

    @contextmanager
    def writing(self) -> Iterator[pa.NativeFile]:
        """Write a new file in this place, in the folders that it needs; nothing stays of one that failed.

        What stood there is replaced by another file, never cut short: a process that has it mapped would die.
        """
        if not self.is_local:
            with reported("write", str(self)):
                try:
                    with self.fs.open_output_stream(self.path) as stream:
                        yield stream
                except BaseException as error:
                    # The stream was closed on the way here, and that published what it had.
                    with suppress(NmfDaskError):
                        self.delete()
                    if is_cut_off(error):
                        self.check_bucket()
                    raise
            return
        self.parent.make()
        with reported("write", str(self)):
            descriptor = self._new_file()
            try:
                # By its descriptor: the name may meanwhile belong to another writer.
                with pa.OSFile(f"/dev/fd/{descriptor}", "wb") as stream:
                    yield stream
            except BaseException:
                with suppress(OSError):
                    if os.path.samestat(os.fstat(descriptor), os.stat(self.uri)):
                        os.unlink(self.uri)
                raise
            finally:
                os.close(descriptor)

    def _new_file(self) -> int:
        while True:
            try:
                return os.open(self.uri, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                try:
                    os.unlink(self.uri)
                except FileNotFoundError:
                    continue

    def write_bytes(self, data: bytes) -> Digest:
        """Write a file; its digest."""
        with self.writing() as stream:
            stream.write(data)
        return Digest.of(data)

    def read_bytes(self) -> bytes:
        """Content of this file; MissingFileError where there is none."""
        with reported("read", str(self)):
            return patiently(self._content)

    def _content(self) -> bytes:
        with self.fs.open_input_stream(self.path, compression=None) as stream:
            return bytes(stream.read())

    def write_json(self, value: Mapping[str, Any]) -> Digest:
        """Write an object as JSON; NumPy numbers become numbers, NaN and infinities null."""
        text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
        return self.write_bytes((text + "\n").encode())

    def read_json(self) -> dict[str, Any]:
        """Content of a JSON file that holds an object; InputDataError where it holds anything else."""
        return json_object(self.read_bytes(), str(self))

    def write_parquet(self, table: pa.Table) -> Digest:
        """Write one Parquet file: zstd, row groups of about 32 MiB; its digest."""
        return self.write_parquet_slices([table])

    def write_parquet_slices(self, tables: Iterable[pa.Table], plain: Sequence[str] = ()) -> Digest:
        """Write one Parquet file of tables as they come (one at least), a row group or more each; its digest.

        The columns of `plain` get no dictionary.
        """
        tables = iter(tables)
        first = next(tables)
        with self.writing() as stream:
            hashed = _Hashed(stream)
            flat = _flat(first.schema)
            encoded = [name for name in flat if name not in plain]
            more: dict[str, Any] = {"use_dictionary": encoded, "write_statistics": flat}
            with pq.ParquetWriter(hashed, first.schema, compression="zstd", **more) as writer:
                for table in chain([first], tables):
                    writer.write_table(table, _rows_a_group(table))
        return hashed.digest

    @contextmanager
    def writing_csv(self) -> Iterator[CsvFile]:
        """Write one CSV file of tables as they come, one at least."""
        with self.writing() as stream:
            file = CsvFile(_Hashed(stream))
            yield file
            file.close()

    def digest(self) -> Digest:
        """Of this file as it is now; MissingFileError where there is none."""
        total, n_bytes = hashlib.sha256(), 0
        with reported("read", str(self)), self.fs.open_input_stream(self.path, compression=None) as stream:
            while chunk := stream.read(HASHED_BYTES):
                total.update(chunk)
                n_bytes += len(chunk)
        return Digest(n_bytes, total.hexdigest())

    def read_parquet(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The table of one Parquet file, whole or only some columns; InputDataError where it is damaged."""
        with reported("read", str(self)), self.fs.open_input_file(self.path) as source:
            # Of a store, a small file is one request, whatever its columns are.
            whole = not self.is_local and source.size() <= WHOLE_BYTES
            return table_of(pa.BufferReader(self.read_bytes()) if whole else source, str(self), columns)


def _flat(schema: pa.Schema) -> list[str]:
    """Columns that get a dictionary and statistics. Of weights, which hardly repeat, a dictionary makes the file larger
    and slower to read, and nobody looks for the least of them."""
    return [field.name for field in schema if not pa.types.is_nested(field.type)]


def _rows_a_group(table: pa.Table) -> int:
    return max(1024, ROW_GROUP_BYTES // max(1, int(table.nbytes) // max(1, int(table.num_rows))))


def sync(files: Iterable[Folder]) -> None:
    """Have the disk itself hold local files that were written; stores do that on their own."""
    # Together: a journal takes what several wait for in one go. A thousand files took a tenth of the time.
    with ThreadPoolExecutor(SYNCED_TOGETHER) as pool:
        for _ in pool.map(_sync, [file.path for file in files if file.is_local]):
            pass


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_of(value: Any) -> str:
    """16 hexadecimal digits that stand for a value of JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def json_object(data: bytes, where: str) -> dict[str, Any]:
    """The object that JSON holds; InputDataError that names `where` for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:  # lists in lists without end: nobody of ours wrote that
        raise InputDataError(f"{where} is not JSON ({error}): damaged, or half written") from error
    if not isinstance(value, dict):
        raise InputDataError(f"{where} holds {type(value).__name__}, not an object")
    return value


def table_of(source: pa.NativeFile, where: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of an open Parquet file; InputDataError that names `where` if it is damaged or lacks a column."""
    with reported("read", where):
        file = pq.ParquetFile(source)
        absent = [name for name in columns or () if name not in file.schema_arrow.names]
        if absent:
            raise InputDataError(
                f"{where} has no column {', '.join(absent)}; its columns are {', '.join(file.schema_arrow.names)}"
            )
        return file.read(columns=None if columns is None else [*columns])


def _absolute(uri: str) -> str:
    if not uri:
        raise ConfigurationError(
            "a path or URI is empty; give a folder, such as ./model or s3://bucket/model"
        )
    match = _URI.fullmatch(uri)
    if match is None:
        if "://" in uri:
            raise ConfigurationError(
                f"{redact(uri)} is not a URI; write scheme://place/path, such as s3://bucket/model"
            )
        return os.path.abspath(os.path.expanduser(uri))
    refuse_credentials(uri)
    scheme, authority, rest, query = match.groups()
    if scheme.lower() == "file":
        if authority not in ("", "localhost"):
            raise ConfigurationError(f"{redact(uri)} names the host {authority}; a file URI is file:///path")
        return os.path.abspath("/" + unquote(rest))
    return f"{scheme}://{authority}/{rest}".rstrip("/") + (query or "")


def _named(uri: str) -> str:
    """`uri`, where files can have that name: Arrow takes UTF-8 alone, and a folder above may have any bytes."""
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"{redact(uri)} is not valid UTF-8: rename it, or choose another place"
        ) from error
    if "\0" in uri:
        raise ConfigurationError(f"{redact(uri)!r} holds the character NUL, which no name of a file does")
    return uri


def _split_query(uri: str) -> tuple[str, str]:
    if "://" not in uri:
        return uri, ""  # a question mark is a letter like any other in a local name
    path, mark, query = uri.partition("?")
    return path, mark + query


@lru_cache(maxsize=32)
def _file_system(root: str, uri: str, process: int) -> tuple[pafs.FileSystem, str]:
    """The process is part of the key, because a forked child must not use its parent's connections."""
    try:
        with reported("reach", redact(uri)):
            fs, path = built(root)
    except InputDataError as error:
        raise ConfigurationError(
            f"{redact(uri)} cannot be used; give a local path or a URI of s3, gs, abfs or hdfs "
            f"({redact(str(error.__cause__))})"
        ) from error
    return fs, path


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
