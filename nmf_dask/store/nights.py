"""The weights that a nightly job makes: an output of a transform for each run of the model, and where the job stands.

    WEIGHTS/
      LATEST          one line: the run whose weights are added to now
      <run id>/       the output of a transform under that run (store/transforms.py)
      nightly.json    where the last night ended; written last of all, after its twin, so that one is always whole
      nightly.next.json
      _LOCK           while a night is under way

Weights of two runs do not go together, so each run has its own folder. What a night has done shows in these folders
and in the model folder; nightly.json says up to where that was counted.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from nmf_dask.errors import InputDataError
from nmf_dask.store.folder import Folder, MissingFileError, sync
from nmf_dask.store.lock import ModelLock
from nmf_dask.store.runs import check_writable
from nmf_dask.store.transforms import Contents, TransformFolder

NIGHTLY_VERSION = 1
_STATES = ("nightly.json", "nightly.next.json")
_RUN_ID = re.compile(r"[0-9a-f]{12,64}")


@dataclass(frozen=True)
class NightState:
    """Where the last night ended."""

    run_id: str
    """The run whose weights it added to."""
    rows: int
    """Rows of these weights that were counted: a part that begins later came since."""
    nights: int
    """Nights with new files since the run was made."""
    reference: float | None
    """The relative loss that later ones are compared with; None where it is not known yet."""


@dataclass(frozen=True)
class NightlyFolder:
    """The folder of weights of a nightly job."""

    folder: Folder

    def lock(self) -> ModelLock:
        """Keep other nights out for the length of a `with`; RetryableError that names the holder."""
        return ModelLock(self.folder / "_LOCK")

    def output(self, run_id: str) -> TransformFolder:
        """That of the transform under a run."""
        return TransformFolder(self.folder / run_id)

    def others(self, run_id: str) -> list[Contents]:
        """What the outputs under other runs hold."""
        names = [name for name in self.folder.list() if _RUN_ID.fullmatch(name) and name != run_id]
        return [found for name in names if (found := self.output(name).contents()) is not None]

    def check_usable(self) -> None:
        """Raise InputDataError where weights cannot be kept: a folder of something else, no permission."""
        names = [name for name in self.folder.list() if not name.startswith(".") and name != "lost+found"]
        own = {"LATEST", *_STATES}
        foreign = [
            name
            for name in names
            if name not in own and name.partition(".")[0] != "_LOCK" and not _RUN_ID.fullmatch(name)
        ]
        if foreign:
            raise InputDataError(
                f"{self.folder} is neither empty nor the weights of a nightly job: it holds "
                f"{', '.join(foreign[:5])}. Give a new folder"
            )
        if self.folder.is_local:
            check_writable(self.folder.uri)

    def state(self) -> NightState | None:
        """Where the last night ended; None before the first. InputDataError where both files are damaged."""
        damaged: list[str] = []
        for name in _STATES:
            try:
                return _state_of((self.folder / name).read_json())
            except MissingFileError:
                continue
            except (InputDataError, KeyError, TypeError, ValueError) as error:
                damaged.append(str(error) if isinstance(error, InputDataError) else repr(error))
        if damaged:
            raise InputDataError(
                f"{self.folder / _STATES[0]} and its twin are not what a night writes ({damaged[0]}): restore one, or "
                "delete both to count nights anew"
            )
        return None

    def write_state(self, state: NightState, lock: ModelLock) -> None:
        """End a night; RetryableError where another process has taken over the lock."""
        lock.check()
        (self.folder / "LATEST").write_bytes(f"{state.run_id}\n".encode())
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        told = {"format_version": NIGHTLY_VERSION, **asdict(state), "written": now}
        for name in reversed(_STATES):
            (self.folder / name).write_json(told)
            sync([self.folder / name])


def _state_of(told: Mapping[str, object]) -> NightState:
    if told["format_version"] != NIGHTLY_VERSION:
        raise ValueError(f"format version {told['format_version']}")
    run_id, rows, nights, reference = (told[name] for name in ("run_id", "rows", "nights", "reference"))
    if not (isinstance(run_id, str) and isinstance(rows, int) and isinstance(nights, int)):
        raise TypeError("run_id, rows, nights")
    if not (reference is None or isinstance(reference, int | float)):
        raise TypeError("reference")
    return NightState(run_id, rows, nights, reference)
