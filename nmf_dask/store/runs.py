"""The model folder: runs that are committed whole or not at all, and the pointer to the last one.

The parts of a run and its run.json are written in place, `_SUCCESS` after them, LATEST after that: nothing is
renamed, because object stores cannot. Readers take a run only where `_SUCCESS` stands, and a run that has it
is never written to again.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from nmf_dask.config import CorpusSettings, Settings
from nmf_dask.errors import InputDataError, NmfDaskError, RetryableError
from nmf_dask.store.folder import Digest, Folder, MissingFileError, hash_of, sync
from nmf_dask.store.lock import ModelLock, check_not_taken
from nmf_dask.store.manifest import Manifest

FORMAT_VERSION = 1

_RUN_ID = re.compile(r"[0-9a-f]{12,64}")
_PART = re.compile(r"part-(\d{5,})\.parquet")


def run_id(settings: Settings, fingerprint: str, updated_from: str | None = None) -> str:
    """Name of the run that these settings make of an input with this fingerprint: 16 hexadecimal digits.

    What does not touch the result (cluster, run, the output path) does not touch the name. The size of a
    partition does: it decides the files of W and the order of sums. `updated_from` is the run that an update starts
    from.
    """
    chosen = {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "corpus": {**chosen_documents(settings.corpus), "partition_bytes": settings.corpus.partition_bytes},
        "vectorizer": settings.vectorizer.model_dump(mode="json"),
        "stop_words": _stop_words(settings.vectorizer.stop_words),
        "model": settings.model.model_dump(mode="json"),
        "n_top_terms": settings.output.n_top_terms,
        **settings.output.model_dump(mode="json", include={"w_format"}, exclude_defaults=True),
    }
    if updated_from is not None:
        chosen["update"] = [updated_from, settings.update.history]
    return hash_of(chosen)


def chosen_documents(corpus: CorpusSettings) -> dict[str, Any]:
    """What decides the documents; later keys count where they are given, so that older runs keep their ids."""
    always, later = (
        {"text_column", "id_column"},
        {"keep", "where", "format", "feature_column", "value_column", "feature_names"},
    )
    return {
        **corpus.model_dump(mode="json", include=always),
        **corpus.model_dump(mode="json", include=later, exclude_defaults=True),
    }


def _stop_words(chosen: str | tuple[str, ...] | None) -> str | None:
    """Digest of a file of stop words: with other words in it, the same path makes another result."""
    if not isinstance(chosen, str) or chosen == "english":
        return None
    return hashlib.sha256(Folder(chosen).read_bytes()).hexdigest()


@dataclass(frozen=True)
class RunFolder:
    """One run: MODEL/runs/<run_id>. Picklable; workers write their parts through it."""

    folder: Folder

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def model(self) -> ModelFolder:
        """The model folder that this run is in."""
        return ModelFolder(self.folder.parent.parent.uri)

    def w_part(self, index: int) -> Folder:
        """File of the W of one corpus partition."""
        return self.folder / "W" / f"part-{index:05d}.parquet"

    def w_csv_part(self, index: int) -> Folder:
        """File of the same as CSV, where that was asked for."""
        return self.folder / "W_csv" / f"part-{index:05d}.csv"

    def h_part(self, index: int) -> Folder:
        """File of a range of features of H."""
        return self.folder / "H" / f"part-{index:05d}.parquet"

    @property
    def topics(self) -> Folder:
        """File of the top terms."""
        return self.folder / "topics.parquet"

    @property
    def convergence(self) -> Folder:
        """File of the passes."""
        return self.folder / "convergence.parquet"

    @property
    def work(self) -> Folder:
        """Staged blocks and checkpoints; removed after the commit."""
        return self.folder / "_work"

    def w_parts(self) -> list[Folder]:
        """The files of W in the order of the corpus; InputDataError where one is missing."""
        return self._parts("W")

    def h_parts(self) -> list[Folder]:
        """The files of H in the order of the features; InputDataError where one is missing."""
        return self._parts("H")

    def _parts(self, name: str) -> list[Folder]:
        folder = self.folder / name
        numbers = sorted(int(match[1]) for one in folder.list() if (match := _PART.fullmatch(one)))
        count = numbers[-1] + 1 if numbers else 1
        missing = sorted(set(range(count)) - set(numbers))
        if missing:
            names = ", ".join(f"part-{one:05d}.parquet" for one in missing[:5])
            raise InputDataError(
                f"{len(missing)} of at least {count} parts are missing in {folder}: {names}"
                f"{', …' if len(missing) > 5 else ''}. Restore them, or delete {self.folder} and fit again"
            )
        return [folder / f"part-{one:05d}.parquet" for one in numbers]

    def name_of(self, file: Folder) -> str:
        """The path of a file of this run within its folder."""
        return file.path.removeprefix(f"{self.folder.path}/")

    def is_committed(self) -> bool:
        """True where the run is whole and final."""
        return (self.folder / "_SUCCESS").exists()

    def begin(self) -> None:
        """Remove the results of an earlier attempt that did not commit; its work area stays."""
        self._refuse_committed()
        for name in self.folder.list():
            if name != "_work":
                (self.folder / name).delete()

    def write_run(self, run: Mapping[str, Any]) -> Digest:
        """Write run.json, with format version, run id and time; for a failed run too."""
        self._refuse_committed()
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        stamped = {"format_version": FORMAT_VERSION, "run_id": self.run_id, **run, "written": now}
        return (self.folder / "run.json").write_json(stamped)

    def read_run(self) -> dict[str, Any]:
        """Content of run.json; InputDataError where it is missing or damaged."""
        return (self.folder / "run.json").read_json()

    @property
    def _removing(self) -> Folder:
        return self.folder / "_REMOVING"

    def is_half_removed(self) -> bool:
        """True where a removal was cut off."""
        return self._removing.exists() and not self.is_committed()

    def remove(self) -> None:
        """Delete a committed run: its `_SUCCESS` first, so that nobody takes what is left of it for a run."""
        self._removing.write_bytes(b"")
        (self.folder / "_SUCCESS").delete()
        self.folder.delete()

    def _refuse_committed(self) -> None:
        if self.is_committed():
            raise InputDataError(f"{self.folder} is committed and is not written to again")

    def commit(self, n_w_parts: int | None = None, digests: Mapping[str, Digest] | None = None) -> None:
        """Make the run visible: the manifest, `_SUCCESS`, then LATEST, then the work area goes.

        `digests` are those of files that were written, by path within the run; what they leave out is read for its
        own. Called again on a committed run it finishes what a driver killed in the middle of its commit left to
        do, if anything. Raises InputDataError where a part or run.json is missing (`n_w_parts`: of W, where
        known), RetryableError where another process has taken over the lock of the model folder.
        """
        unfinished = self.work / "COMMIT"
        again = self.is_committed()
        if again and not self.work.exists():
            return
        if not again:
            parts = self._whole(n_w_parts)
            check_not_taken(self.model.lock_file)
            unfinished.write_bytes(b"")
            self._seal(parts, digests or {})
            (self.folder / "_SUCCESS").write_bytes(b"")
        # Another run may have committed since the commit that was cut off. Without its mark, LATEST was written, and
        # what is left to do is that the work area goes.
        if not again or (unfinished.exists() and self.run_id == self.model.newest().run_id):
            (self.model.folder / "LATEST").write_bytes(f"{self.run_id}\n".encode())
        # The run stands; files that cannot go yet, such as those still mapped over NFS, do not unmake it.
        with suppress(InputDataError, RetryableError):
            self.work.delete()

    def _whole(self, n_w_parts: int | None) -> list[Folder]:
        """The parts of H and W, each folder listed once; InputDataError where one is missing, or run.json."""
        self.read_run()
        H, W = self.h_parts(), self.w_parts()
        if n_w_parts is not None and len(W) != n_w_parts:
            raise InputDataError(f"{self.folder / 'W'} holds {len(W)} parts where {n_w_parts} are due")
        return [*H, *W]

    def _seal(self, parts: list[Folder], digests: Mapping[str, Digest]) -> None:
        """Write the manifest, and have the disk itself hold the results before `_SUCCESS` says so."""
        single = [file for file in (self.folder / "run.json", self.topics, self.convergence) if file.exists()]
        kept = [self.folder / "history" / name for name in (self.folder / "history").list()]
        results = [*single, *kept, *parts]
        results += [self.folder / "W_csv" / name for name in (self.folder / "W_csv").list()]
        files = {self.name_of(file): file for file in results}
        known = {name: digests.get(name) or Digest.of(file.read_bytes()) for name, file in files.items()}
        Manifest(self.folder, known).write()
        sync([*results, self.folder / "manifest.json"])


@dataclass(frozen=True)
class ModelFolder:
    """The --output of a fit: LATEST, and runs/<run_id>. Picklable.

    Raises ConfigurationError for a path or URI that cannot be one.
    """

    uri: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "uri", Folder(self.uri).uri)

    @property
    def folder(self) -> Folder:
        """Where it is."""
        return Folder(self.uri)

    @property
    def lock_file(self) -> Folder:
        """The file that says who is writing."""
        return self.folder / "LOCK"

    def lock(self) -> ModelLock:
        """Keep other writers out for the length of a `with`; RetryableError that names the holder."""
        return ModelLock(self.lock_file)

    def run(self, run_id: str) -> RunFolder:
        """The run of that name, there or not."""
        return RunFolder(self.folder / "runs" / run_id)

    def selection(self, name: str) -> RunFolder:
        """The folder of a choice of k: beside the runs, so that what lies in it is no run."""
        return RunFolder(self.folder / "selections" / name)

    def runs(self) -> list[RunFolder]:
        """All runs that left a trace, committed or not."""
        return [self.run(name) for name in (self.folder / "runs").list() if _RUN_ID.fullmatch(name)]

    def check_usable(self) -> None:
        """Raise InputDataError where no model can be written: a file, another kind of folder, no permission.

        Writes nothing. Whether an object store takes what is written shows when the lock is taken.
        """
        kind = self.folder.info().type
        if kind == pafs.FileType.File:
            raise InputDataError(f"{self.folder} is a file; give a new or empty folder, or a model folder")
        names = [name for name in self.folder.list() if not name.startswith(".") and name != "lost+found"]
        if names and not self._is_model(names):
            shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            raise InputDataError(
                f"{self.folder} is neither empty nor a model folder: it holds {shown}. Give a new folder"
            )
        if self.folder.is_local:
            check_writable(self.uri)

    def is_model(self) -> bool:
        """True where a run has been here: its pointer, its lock or its folder."""
        return self._is_model(self.folder.list())

    def _is_model(self, names: Sequence[str]) -> bool:
        if {"LATEST", "selections"} & set(names) or any(name.partition(".")[0] == "LOCK" for name in names):
            return True
        return "runs" in names and (bool(self.runs()) or not (self.folder / "runs").list())

    def latest(self) -> RunFolder:
        """The run that LATEST names; the newest committed one where LATEST is missing or cannot be followed.

        Raises InputDataError that says what is there instead, such as runs that failed and why.
        """
        try:
            named = (self.folder / "LATEST").read_bytes().decode(errors="replace").strip()
        except MissingFileError:
            named = ""
        if _RUN_ID.fullmatch(named) and self.run(named).is_committed():
            return self.run(named)
        return self.newest()

    def newest(self) -> RunFolder:
        """The committed run whose run.json was written last; InputDataError where there is none."""
        written: list[tuple[str, str]] = []
        others: list[str] = []
        for run in self.runs():
            told = _told(run)
            if run.is_committed() and "written" in told:
                written.append((str(told["written"]), run.run_id))
            else:
                others.append(f"run {run.run_id}: {_fate(told)}")
        if not written:
            raise InputDataError(self._nothing(others))
        return self.run(max(written)[1])

    def remove_old(self, keep: int, failed: Callable[[RunFolder, NmfDaskError], None]) -> list[str]:
        """Remove committed runs but the `keep` last ones and LATEST's; under the lock. Ids of those that are gone.

        Runs that are not committed stay, but for those whose removal was cut off. `failed` hears of what cannot go.
        """
        latest = self.latest().run_id
        dated = [(self._written(run), run) for run in self.runs() if run.is_committed()]
        committed = sorted(dated, key=lambda one: (one[0], one[1].run_id))
        old = [run for _, run in committed[:-keep] if run.run_id != latest]
        gone = []
        for run in [*(run for run in self.runs() if run.is_half_removed()), *old]:
            try:
                run.remove()
            except NmfDaskError as error:
                failed(run, error)
            else:
                gone.append(run.run_id)
        return gone

    def _written(self, run: RunFolder) -> str:
        """When a run was written, just before its commit; the oldest of all where that cannot be known."""
        return str(_told(run).get("written", ""))

    def _nothing(self, others: list[str]) -> str:
        if others:
            return f"{self.folder} holds no finished run ({'; '.join(others[-5:])}). Run the fit again"
        if not self.folder.exists():
            self.folder.check_bucket()
            return f"there is no model at {self.folder}: it does not exist"
        names = ", ".join(self.folder.list()[:5]) or "nothing"
        return f"{self.folder} is not a model folder: it holds {names}. Give what fit wrote"


def _fate(told: Mapping[str, Any]) -> str:
    error = told.get("error")
    return f"{told.get('status', 'unknown')}{f', {error}' if error else ''}"


def check_writable(path: str) -> None:
    """Raise InputDataError where a local path is no folder that can be written to, nor can become one."""
    above = path
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        raise InputDataError(f"{path} cannot be a folder: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputDataError(f"{path} cannot be written: no permission in {above}. Check who owns it")


def open_run(uri: str) -> RunFolder:
    """The committed run that a path or URI means: a model folder's latest, or one run's own folder.

    Raises InputDataError where it is neither, where the run is not committed, or of another format version.
    """
    run = RunFolder(Folder(uri))
    if not _is_run(run):
        run = ModelFolder(uri).latest()
    elif not run.is_committed():
        raise InputDataError(f"the run {run.folder} did not finish ({_fate(_told(run))}). Run the fit again")
    _check_format(run, run.read_run())
    return run


def run_beside(model: str, name: str) -> str:
    """The path or URI of a run, which `name` may be already; or the id of a run in the same folder as `model` means.

    Raises InputDataError where there is no run of that id.
    """
    if "/" in name or (_RUN_ID.fullmatch(name) is None and Folder(name).exists()):
        return name
    folder = open_run(model).model
    run = folder.run(name)
    if not run.folder.exists():
        there = ", ".join(one.run_id for one in folder.runs()) or "none"
        raise InputDataError(f"{folder.folder} holds no run {name}; its runs are {there}")
    return run.folder.uri


def _is_run(run: RunFolder) -> bool:
    names = run.folder.list()
    if "transform.json" in names:
        raise InputDataError(f"{run.folder} is the output of a transform, not a model: give what fit wrote")
    if "run.json" in names or "_SUCCESS" in names:
        return True
    by_name = run.folder.parent.name == "runs" and _RUN_ID.fullmatch(run.run_id) is not None
    return by_name and run.folder.exists() and not ModelFolder(run.folder.uri).is_model()


def _told(run: RunFolder) -> dict[str, Any]:
    try:
        return run.read_run()
    except InputDataError as error:
        return {"status": "unknown", "error": str(error)}


def _check_format(run: RunFolder, told: Mapping[str, Any]) -> None:
    version = told.get("format_version")
    if version == FORMAT_VERSION:
        return
    if not isinstance(version, int):
        raise InputDataError(f"{run.folder / 'run.json'} has no format_version: not a run of nmf-dask")
    remedy = "install a newer nmf-dask" if version > FORMAT_VERSION else "fit the corpus again"
    raise InputDataError(
        f"{run.folder} has format version {version}, and this nmf-dask reads version {FORMAT_VERSION}: "
        f"{remedy}"
    )
