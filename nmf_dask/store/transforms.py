"""The output of a transform: the W of input files under one model, which grows as files come.

    OUTPUT/
      W/part-00000-<key>.parquet …   a file an input partition; its name stays when others come
      W_csv/part-00000-<key>.csv …   the same as CSV, where that was asked for
      manifest.json                  which files are in, which parts hold them; size and SHA-256 of each part
      transform.json                 numbers of the last run; written on failure too
      _SUCCESS                       last of all; gone while parts are being added

Parts are written in place under names that no other content gets: `key` is a hash of all that decides what is in it.
`manifest.json` speaks of what was committed until the next commit, whatever lies beside it; so whoever reads the parts
that it names is right at any time, and whoever reads all of W/ is right while `_SUCCESS` stands.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from nmf_dask.errors import InputDataError, NmfDaskError
from nmf_dask.store.folder import Digest, Folder, MissingFileError, hash_of, sync
from nmf_dask.store.lock import ModelLock
from nmf_dask.store.manifest import Manifest, told_digests
from nmf_dask.store.runs import check_writable

TRANSFORM_VERSION = 1
_PART = re.compile(r"part-(\d{5,})-([0-9a-f]{16})\.parquet")
_OWN = {"W", "W_csv", "manifest.json", "transform.json", "_SUCCESS", "_LOCK", "_work"}


def part_key(basis: Mapping[str, Any], *more: Any) -> str:
    """Hash of what decides the content of a part: 16 hexadecimal digits."""
    return hash_of([basis, *more])


def csv_name(name: str) -> str:
    """Of a part's CSV file."""
    return name.removesuffix(".parquet") + ".csv"


@dataclass(frozen=True)
class Part:
    """One part of W: its file's name, its first row among all rows, what was counted in it, what its file is."""

    name: str
    first_row: int
    n_documents: int
    n_empty: int
    n_null: int
    n_invalid: int
    weights: tuple[float, ...]
    """Sums of W over its documents (k)."""
    documents: tuple[int, ...]
    """Documents by their largest weight (k)."""
    bytes: int
    sha256: str
    csv_bytes: int | None = None
    csv_sha256: str | None = None
    """Of the same as CSV, where there is one."""
    loss: float | None = None
    """Twice the beta-divergence of its documents' X and WH, where that was measured."""
    squares: float | None = None
    """The sum of squares of that X."""

    @property
    def digests(self) -> dict[str, Digest]:
        """Of its files, by their paths within the output."""
        found = {f"W/{self.name}": Digest(self.bytes, self.sha256)}
        if self.csv_bytes is not None and self.csv_sha256 is not None:
            found[f"W_csv/{csv_name(self.name)}"] = Digest(self.csv_bytes, self.csv_sha256)
        return found

    def told(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Part:
        """From JSON; KeyError, TypeError or ValueError where it is something else."""
        names = set(cls.__dataclass_fields__)
        odd = (names ^ set(told)) - {"csv_bytes", "csv_sha256", "loss", "squares"}
        if odd:
            raise KeyError(", ".join(sorted(odd)))
        lists = {name: tuple(told[name]) for name in ("weights", "documents")}
        return cls(**{**told, **lists})


@dataclass(frozen=True)
class Taken:
    """An input file whose W is made: its path or URI, the version of it (size, time of change), its parts in order."""

    uri: str
    size: int
    modified: int
    parts: tuple[Part, ...]

    @property
    def version(self) -> tuple[int, int]:
        """What another version of the file does not have."""
        return self.size, self.modified


@dataclass(frozen=True)
class Contents:
    """What an output holds: the W of some files under one basis (model, columns, type of the ids)."""

    basis: Mapping[str, Any]
    taken: Mapping[str, Taken] = field(default_factory=dict)

    @property
    def parts(self) -> list[Part]:
        """All parts, in the order of their rows."""
        return sorted(
            (part for one in self.taken.values() for part in one.parts), key=lambda part: part.first_row
        )

    def next_number(self) -> int:
        """A number that no part has."""
        numbers = [int(match[1]) for part in self.parts if (match := _PART.fullmatch(part.name))]
        return max(numbers, default=-1) + 1

    def next_row(self) -> int:
        """The row that comes after all."""
        return max((part.first_row + part.n_documents for part in self.parts), default=0)


@dataclass(frozen=True)
class TransformFolder:
    """The --output of a transform. Picklable; workers write their parts through it."""

    folder: Folder

    def part(self, name: str) -> Folder:
        """The file of a part."""
        return self.folder / "W" / name

    def csv_part(self, name: str) -> Folder:
        """The file of the same as CSV."""
        return self.folder / "W_csv" / csv_name(name)

    def file(self, name: str) -> Folder:
        """The file of a path within the output."""
        return self.folder / name

    def record(self, name: str) -> Folder:
        """What its writer says of a part once that is whole."""
        return self.folder / "_work" / f"{name}.json"

    @property
    def documents(self) -> Folder:
        """Those of new files that are not plain Parquet, staged until the commit."""
        return self.folder / "_work" / "documents"

    @property
    def success(self) -> Folder:
        """Says that W/ holds what the manifest names, and nothing else."""
        return self.folder / "_SUCCESS"

    def lock(self) -> ModelLock:
        """Keep other writers out for the length of a `with`; RetryableError that names the holder."""
        return ModelLock(self.folder / "_LOCK")

    def is_finished(self) -> bool:
        """True where nothing is being added, and nothing was left halfway."""
        return self.success.exists()

    def check_usable(self) -> None:
        """Raise InputDataError where W cannot be written: a file, a folder of something else, no permission."""
        if self.folder.info().type == pafs.FileType.File:
            raise InputDataError(f"{self.folder} is a file; give a new or empty folder, or an earlier output")
        names = [name for name in self.folder.list() if not name.startswith(".") and name != "lost+found"]
        foreign = sorted({name for name in names if name.partition(".")[0] != "_LOCK"} - _OWN)
        # Nothing but parts is there where the first attempt was killed before it could say of one that it is whole.
        unmarked = not {"manifest.json", "transform.json", "_work"} & set(names) and not all(
            map(_PART.fullmatch, (self.folder / "W").list())
        )
        if foreign or unmarked:
            shown = ", ".join((foreign or names)[:5])
            raise InputDataError(
                f"{self.folder} is neither empty nor the output of a transform: it holds {shown}. Give a new folder"
            )
        if self.folder.is_local:
            check_writable(self.folder.uri)

    def contents(self) -> Contents | None:
        """What was committed; None where nothing was. InputDataError where the manifest is damaged."""
        file = self.folder / "manifest.json"
        try:
            told = file.read_json()
        except MissingFileError:
            return None
        try:
            if told["format_version"] != TRANSFORM_VERSION:
                raise InputDataError(
                    f"{file} has format version {told['format_version']}, and this nmf-dask reads version "
                    f"{TRANSFORM_VERSION}: install the one that wrote it, or choose another output"
                )
            taken = {
                one["uri"]: Taken(
                    one["uri"], one["size"], one["modified"], tuple(Part.of(part) for part in one["parts"])
                )
                for one in told["inputs"]
            }
            return Contents(dict(told["basis"]), taken)
        except (KeyError, TypeError, ValueError) as error:
            raise InputDataError(
                f"{file} is damaged ({error!r}). Restore it, or delete {self.folder} and run the command again"
            ) from error

    def leftovers(self, contents: Contents, finished: bool) -> dict[str, str]:
        """Names of the parts in W/, committed or not, by key: a part that is made again keeps its name.

        W/ may be huge. It is listed only where what came before was not `finished`: otherwise it holds `contents`.
        """
        names = [part.name for part in contents.parts] if finished else (self.folder / "W").list()
        found = (_PART.fullmatch(name) for name in names)
        return {match[2]: match[0] for match in found if match}

    def begin(self, fresh: bool) -> None:
        """From now on this is not finished. With `fresh`, what an earlier attempt left is not used."""
        self.success.delete()
        if fresh:
            (self.folder / "_work").delete()

    def write_told(self, told: Mapping[str, Any]) -> None:
        """Write transform.json, with format version and time."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        stamped = {"format_version": TRANSFORM_VERSION, **told, "written": now}
        (self.folder / "transform.json").write_json(stamped)

    def commit(self, contents: Contents, new: Sequence[str], lock: ModelLock) -> None:
        """Make contents visible: the disk holds the `new` parts, then the manifest, then what is no part of it goes.

        Raises RetryableError where another process has taken over the lock.
        """
        lock.check()
        made = set(new)
        sync(self.file(name) for part in contents.parts if part.name in made for name in part.digests)
        (self.folder / "manifest.json").write_json(_told(contents))
        sync([self.folder / "manifest.json"])
        self.finish(contents)

    def finish(self, contents: Contents) -> None:
        """What comes after the manifest: files of earlier versions and attempts go, and `_SUCCESS` comes."""
        names = {name for part in contents.parts for name in part.digests}
        for folder in ("W", "W_csv"):
            for name in (self.folder / folder).list():
                if f"{folder}/{name}" not in names:
                    self.file(f"{folder}/{name}").delete()
        with suppress(NmfDaskError):  # it is in nobody's way
            (self.folder / "_work").delete()
        # Last of all: what is finished is not looked at again.
        self.success.write_bytes(b"")

    def tables(self) -> Iterator[pa.Table]:
        """The committed parts in the order of their rows; InputDataError, naming the file, where one is damaged."""
        manifest = Manifest.load(self.folder)
        for name in manifest.parts("W"):
            yield manifest.read_parquet(name)


def _told(contents: Contents) -> dict[str, Any]:
    """As manifest.json holds it."""
    return {
        "format_version": TRANSFORM_VERSION,
        "basis": contents.basis,
        "inputs": [
            {**vars(one), "parts": [part.told() for part in one.parts]} for one in contents.taken.values()
        ],
        **told_digests({name: digest for part in contents.parts for name, digest in part.digests.items()}),
    }
