"""Where files are: paths and URIs, the file systems behind them, folders, globs, and their errors."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import takewhile
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from nmf_dask.corpus.formats import in_folder
from nmf_dask.errors import ConfigurationError, InputDataError, NmfDaskError, RetryableError
from nmf_dask.object_stores import built, refuse_credentials, understood, without_bucket

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?]*)(.*)", re.DOTALL)
# A question mark begins options only where an option follows; elsewhere it is a wildcard, or part of a name.
_OPTIONS = re.compile(r"\?(?=\w+=)")
_WILDCARD = re.compile(r"[*?[]")
_ABSENT = re.compile(r"NO_SUCH_KEY|RESOURCE_NOT_FOUND|BlobNotFound")
# A path that leads nowhere leads nowhere the next time too.
_IMPOSSIBLE = {errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENXIO}
_NOT_INSTALLED = re.compile(r"libjvm|libhdfs")
# What a table format keeps beside its data files says which of them still count; the folder alone does not.
_TABLE_LOGS = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}


class Location(NamedTuple):
    """A file or folder. It is picklable where a file system is not (that pickles its keys).

    `file_system` is the URI a file system is built from, empty for local files; `path` is a path on it.
    """

    file_system: str
    path: str

    def __str__(self) -> str:
        """The path, or the URI without its options, as it may be given for input again."""
        if not self.file_system:
            return self.path
        authority, _, _ = self.file_system.partition("?")
        inside = self.path.removeprefix(connect(self.file_system)[1]).lstrip("/")
        return f"{authority.rstrip('/')}/{inside.replace('%', '%25')}"

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine."""
        return not self.file_system

    @property
    def handler(self) -> fs.FileSystem:
        """The file system, built once a process."""
        return connect(self.file_system)[0]


class Version(NamedTuple):
    """Bytes and last change, in nanoseconds (object stores: when it was put there), of a version of a file."""

    size: int
    modified: int


class Found(NamedTuple):
    """A file that an input names, its path below the input's folder, and what a store's listing said of it."""

    location: Location
    name: str
    version: Version | None = None


def version_of(info: fs.FileInfo) -> Version:
    """What a file system says of a file's version."""
    return Version(int(info.size or 0), int(info.mtime_ns or 0))


@lru_cache(maxsize=64)
def connect(file_system: str) -> tuple[fs.FileSystem, str]:
    """File system of a URI, with keys from the environment, and the path that the URI stands for on it."""
    if not file_system:
        return fs.LocalFileSystem(), ""
    try:
        handler, root = built(file_system)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError) as error:
        raise ConfigurationError(
            f"input {file_system}: {_cause(error)}. Give a path, or a URI that begins with file://, "
            "s3://, gs://, abfs:// or hdfs://."
        ) from None
    except OSError as error:
        if _NOT_INSTALLED.search(str(error)):
            raise ConfigurationError(
                f"input {file_system}: {_cause(error)}. hdfs:// needs Java and Hadoop's native client: set "
                "JAVA_HOME and HADOOP_HOME, and CLASSPATH to the output of `hadoop classpath --glob`."
            ) from None
        raise RetryableError(f"cannot reach {file_system}: {_cause(error)}") from None
    return handler, root


def parse(text: str) -> Location:
    """Location of a path or URI. Percent escapes count in URIs only; a local path is taken as it is."""
    match = _URI.match(text)
    if match is None:
        return Location("", os.path.abspath(os.path.expanduser(text)))
    scheme, authority, rest = match[1].lower(), match[2], match[3]
    path, *options = _OPTIONS.split(rest, maxsplit=1)
    path = unquote(path)
    if scheme == "file":
        return Location("", os.path.abspath(path))
    refuse_credentials(text)
    file_system = (
        f"{scheme}://{authority}{'/' if scheme == 'hdfs' else ''}{''.join('?' + o for o in options)}"
    )
    root = connect(file_system)[1].rstrip("/")
    path = f"{root}/{path.lstrip('/')}".rstrip("/") or "/"
    # Where the URI names a service, as Azure's may, the container comes with the path.
    return Location(file_system, path if root or scheme == "hdfs" else path.lstrip("/"))


def explain(error: Exception, location: Location, doing: str) -> NmfDaskError:
    """The error to raise for one that a file system raised: bad input, or worth another try."""
    what = f"cannot {doing} {location}"
    known = None if location.is_local else understood(error, what, str(location))
    if known is not None:
        return known
    if isinstance(error, FileNotFoundError) or _ABSENT.search(str(error)):
        return InputDataError(f"{what}: it does not exist")
    if isinstance(error, PermissionError):
        return InputDataError(
            f"{what}: this user may not ({_cause(error)}). Grant read access, or leave it out."
        )
    number = getattr(error, "errno", None)
    if number in _IMPOSSIBLE:
        return InputDataError(f"{what}: {os.strerror(number)}. Mend the path, or leave it out.")
    if isinstance(error, UnicodeError):
        return InputDataError(f"{what}: its name is not valid UTF-8. Rename it.")
    return RetryableError(f"{what}: {_cause(error)}")


def find_files(text: str, wanted: str = "auto") -> list[Found]:
    """Files of one input in the order of their names; a path that exists is never taken for a glob.

    A folder means every file below it whose name ends as those of the format that is `wanted` do ("auto": of the one
    format that is there, Parquet, CSV, TSV, JSON lines or text); what begins with `.` or `_` is
    never looked at. A glob takes the files it matches whatever their suffix (`**` is any depth) and all of
    a folder it matches.
    """
    location = parse(text)
    try:
        info = location.handler.get_file_info(location.path)
        if info.type == fs.FileType.Directory:
            return _in_folder(text, location, wanted)
        if info.type != fs.FileType.NotFound:
            version = None if location.is_local else version_of(info)
            return [Found(location, os.path.basename(location.path), version)]
        if _WILDCARD.search(location.path):
            return _in_glob(text, location, wanted)
        _refuse_missing_bucket(location)
    except (OSError, UnicodeError, pa.ArrowException) as error:
        raise explain(error, location, "look at") from None
    if os.path.islink(location.path) and location.is_local:
        raise InputDataError(f"input {text}: it links to {os.readlink(location.path)}, which does not exist")
    raise InputDataError(f"input {text}: {location} does not exist")


def _refuse_missing_bucket(location: Location) -> None:
    """Say so where even the bucket is not there: a store answers the same for a key in it."""
    bucket = "" if location.is_local else location.path.partition("/")[0]
    if bucket and location.handler.get_file_info(bucket).type == fs.FileType.NotFound:
        raise without_bucket(f"cannot look at {location}", str(location))


def _in_folder(text: str, folder: Location, wanted: str) -> list[Found]:
    _refuse_table(text, folder)
    files = list(_walk(folder))
    found = in_folder(text, files, wanted)
    if found:
        return found
    raise InputDataError(
        f"input {text}: no Parquet file in the folder {folder}: "
        + (
            f"{len(files)} files, the first of them {files[0].name}, none with an end such as .parquet, .csv, .jsonl "
            f"or .txt{'' if wanted == 'auto' else f' for the format {wanted}'}. If they are Parquet all the same, name "
            f"them by a glob, such as {text.rstrip('/')}/*"
            if files
            else "it holds no file (names that begin with . or _ are not looked at)"
        )
    )


def _in_glob(text: str, location: Location, wanted: str) -> list[Found]:
    parts = location.path.split("/")
    fixed = list(takewhile(lambda part: not _WILDCARD.search(part), parts))
    folder = Location(location.file_system, "/".join(fixed) or "/")
    pattern = parts[len(fixed) :]
    if location.handler.get_file_info(folder.path).type != fs.FileType.Directory:
        _refuse_missing_bucket(folder)
        raise InputDataError(f"input {text}: no file matches, {folder} is not a folder")
    files = list(_walk(folder, pattern))
    named = {file.location for file in files if _is_named(file.name, pattern)}
    inside = [file for file in files if file.location not in named and _is_inside(file.name, pattern)]
    taken = named.union(file.location for file in in_folder(text, inside, wanted))
    found = [file for file in files if file.location in taken]
    if not found:
        raise InputDataError(
            f"input {text}: no file matches below {folder} (names that begin with . or _ are not looked at)"
        )
    return found


def _is_named(name: str, pattern: list[str]) -> bool:
    return pattern[-1] != "**" and _matches(name.split("/"), pattern)


def _is_inside(name: str, pattern: list[str]) -> bool:
    """Whether it is in a folder that the pattern matches."""
    parts = name.split("/")
    return any(_matches(parts[:depth], pattern) for depth in range(len(parts)))


def _matches(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[depth:], pattern[1:]) for depth in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _walk(folder: Location, pattern: list[str] | None = None) -> Iterator[Found]:
    """Visible files below a folder by name; folders that cannot lead to a match are not entered."""
    versions = (
        dict.fromkeys(_walk_local(folder.path, pattern or [])) if folder.is_local else _walk_remote(folder)
    )
    for name in sorted(versions):
        yield Found(Location(folder.file_system, f"{folder.path.rstrip('/')}/{name}"), name, versions[name])


def _walk_local(root: str, pattern: list[str]) -> Iterator[str]:
    # Not Arrow's walk: it follows a link that leads up to itself forty times.
    entered: set[str] = set()
    wanted = list(takewhile(lambda part: part != "**", pattern))

    def fail(error: OSError) -> None:
        raise explain(error, Location("", str(error.filename)), "list")

    for path, folders, names in os.walk(root, followlinks=True, onerror=fail):
        inner = os.path.relpath(path, root)
        parts = [] if inner == "." else inner.split("/")
        real = os.path.realpath(path)
        if real in entered or not all(map(fnmatchcase, parts, wanted)):
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(filter(_visible, folders))
        yield from ("/".join([*parts, name]) for name in names if _visible(name))


def _walk_remote(folder: Location) -> dict[str, Version]:
    found = {}
    for info in folder.handler.get_file_info(fs.FileSelector(folder.path, recursive=True)):
        name = info.path.removeprefix(folder.path).lstrip("/")
        if info.type == fs.FileType.File and all(map(_visible, name.split("/"))):
            found[name] = version_of(info)
    return found


def _visible(name: str) -> bool:
    return not name.startswith((".", "_"))


def _refuse_table(text: str, folder: Location) -> None:
    logs = [f"{folder.path}/{log}" for log in _TABLE_LOGS]
    for log, info in zip(_TABLE_LOGS.values(), folder.handler.get_file_info(logs), strict=True):
        if info.type == fs.FileType.Directory:
            raise InputDataError(
                f"input {text}: this folder is a {log} table, which may hold files that are no longer part "
                "of it. List the files of its present version (deltalake: DeltaTable(path).file_uris()), or "
                "export it."
            )


def _cause(error: BaseException) -> str:
    """The first sentence of an error of Arrow or of an object store: the rest repeats it, or is addresses."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    text = re.split(r"; Details:|\. Detail:| \(Request ID", text, maxsplit=1)[0]
    return re.sub(r"^\[Errno \d+\] ", "", text).strip().rstrip(".")[:300]
