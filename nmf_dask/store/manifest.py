"""What the files of a committed run were when they were written, so that a reader notices what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from nmf_dask.errors import InputDataError
from nmf_dask.store.folder import Digest, Folder, hash_of, json_object, reported, table_of


@dataclass(frozen=True)
class Manifest:
    """The digest of each file of a run, by its path within the run's folder.

    Written with a run before its `_SUCCESS`. What is read through it is compared with it first: InputDataError
    names a file that is missing, cut short or changed.
    """

    run: Folder
    digests: Mapping[str, Digest]

    @classmethod
    def load(cls, run: Folder) -> Manifest:
        """The manifest of a committed run; InputDataError where it is missing or damaged."""
        file = run / "manifest.json"
        told = file.read_json()
        try:
            digests = {
                name: Digest(int(one["bytes"]), str(one["sha256"])) for name, one in told["files"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputDataError(f"{file} is damaged ({error!r}). {_remedy(run)}") from error
        if told.get("hash", hash_of(told["files"])) != hash_of(told["files"]):  # older ones have none
            raise InputDataError(f"{file} is not what was written: its content changed. {_remedy(run)}")
        return cls(run, digests)

    def write(self) -> None:
        """Write it into the run's folder."""
        told = told_digests(self.digests)
        (self.run / "manifest.json").write_json({**told, "hash": hash_of(told["files"])})

    def parts(self, folder: str) -> list[str]:
        """Names of the files in a folder of the run, W or H, in order."""
        return sorted(name for name in self.digests if name.startswith(f"{folder}/"))

    def read_json(self, name: str) -> dict[str, Any]:
        """Content of a JSON file of the run."""
        return json_object(bytes(self._read(name)), str(self.run / name))

    def read_parquet(self, name: str) -> pa.Table:
        """The table of a Parquet file of the run."""
        return table_of(pa.BufferReader(self._read(name)), str(self.run / name))

    def _read(self, name: str) -> pa.Buffer:
        file, due = self.run / name, self.digests.get(name)
        with reported("read", str(file)), file.fs.open_input_file(file.path) as source:
            data: pa.Buffer = source.read_buffer()
        found = Digest.of(data)
        if due is None:
            raise InputDataError(f"{file} is not in the manifest of its run. {_remedy(self.run)}")
        if found.n_bytes != due.n_bytes:
            raise InputDataError(
                f"{file} has {found.n_bytes:,} bytes where {due.n_bytes:,} were written: it was cut or replaced. "
                f"{_remedy(self.run)}"
            )
        if found != due:
            raise InputDataError(
                f"{file} is not what was written (SHA-256 {found.sha256[:12]}… in place of {due.sha256[:12]}…): "
                f"its content changed. {_remedy(self.run)}"
            )
        return data


def told_digests(digests: Mapping[str, Digest]) -> dict[str, Any]:
    """Of files by their paths, as a manifest holds them and `Manifest.load` reads them."""
    return {
        "files": {name: {"bytes": one.n_bytes, "sha256": one.sha256} for name, one in sorted(digests.items())}
    }


def _remedy(run: Folder) -> str:
    return f"Restore it, or delete {run} and fit again"
