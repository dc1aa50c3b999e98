"""One night of a lake that grows: W of what came, how well the model still does on it, an update when it is due.

Nothing but the end of a night is written down. Where a night stands shows in what its steps have committed, so that one
that was killed goes on with the same command, wherever that was.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from nmf_dask.comparison import Moved, compare
from nmf_dask.config import OutputSettings, Settings, TransformSettings, redact
from nmf_dask.corpus import Seen, find_corpus, look_at
from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.model import TopicModel
from nmf_dask.observer import Observer
from nmf_dask.pipeline.fit import fit
from nmf_dask.pipeline.parts import relative_loss
from nmf_dask.pipeline.planning import Planned, check_apart, check_outside, plan
from nmf_dask.pipeline.transform import transform
from nmf_dask.pipeline.transform_plan import Elsewhere, plan_transform
from nmf_dask.pipeline.update import update
from nmf_dask.store import Contents, Folder, Manifest, ModelFolder, ModelLock, Part, RunFolder, open_run
from nmf_dask.store.nights import NightlyFolder, NightState

# Of 21,000 abstracts of arXiv and 20 topics, thousands more of the same years were above by 0.07 and 1.5 %, those of
# later years by 0.17 to 0.3 and by 3.4 to 8 %.
LOSS_RISE = {"frobenius": 0.002, "kullback-leibler": 0.02}


@dataclass(frozen=True)
class NightResult:
    """A finished night: the folder of the weights, what was found and done, and topics that an update moved."""

    uri: str
    told: dict[str, Any] = field(repr=False)
    moved: list[Moved] = field(default_factory=list, repr=False)


def nightly(settings: Settings, observer: Observer | None = None, since: float | None = None) -> NightResult:
    """Take in what came since the last night: transform it, measure it, and update the model when that is due.

    Without a model in `output.output`, one is fitted of all that is there. Files without W get theirs under the model's
    last run, in the folder of that run below `nightly.weights`. The relative loss √(2D) / ‖X‖ of the new documents,
    which no model has seen, is compared with the reference: the same number of the documents that the run was made of,
    as transformed under it (where none of them is in the input, that of the first new ones). An update is due when it
    is above by more than `nightly.loss_rise` of the reference, or at the `nightly.every`-th night with new files since
    the run was made. The documents that an update took in then get their W under the new run as well; those before
    keep what they have.

    Where no file is new, nothing is written. A night that was interrupted goes on. Raises ConfigurationError,
    InputDataError and RetryableError, each with a message for the user. Deadlines are as those of `fit`.
    """
    observer = observer or Observer()
    started = time.perf_counter() if since is None else since
    observer.stage("plan")
    folder, model = _checked(settings)
    if _is_there(model) and (standing := _Standing.of(settings, folder, model)).is_done():
        observer.named(standing.run.run_id, 0)
        observer.inform("nothing new; nothing to do")
        told = _told(settings, standing, started, status="nothing new", did=[], files_new=0)
        return NightResult(folder.folder.uri, told)
    with folder.lock() as lock:
        return _Night(settings, folder, model, observer, lock, started).done()


def plan_nightly(settings: Settings) -> Planned:
    """What a night would do first: fit, or transform what is new; writes nothing.

    Raises what `nightly` raises for bad input, and ConfigurationError where the job cannot fit the memory.
    """
    folder, model = _checked(settings)
    if not _is_there(model):
        return plan(settings)
    standing = _Standing.of(settings, folder, model)
    return plan_transform(standing.transform_settings(settings), standing.elsewhere)


def _checked(settings: Settings) -> tuple[NightlyFolder, ModelFolder]:
    weights, output = settings.nightly.weights, settings.output.output
    if weights is None or output is None:
        raise ConfigurationError("a nightly job needs output.output and nightly.weights")
    check_outside(weights, output)
    check_apart(settings)
    check_apart(_with_output(settings, weights), "output")
    folder, model = NightlyFolder(Folder(weights)), ModelFolder(output)
    folder.check_usable()
    model.check_usable()
    return folder, model


def _is_there(model: ModelFolder) -> bool:
    return any(run.is_committed() for run in model.runs())


def _with_output(settings: Settings, output: str) -> Settings:
    changed: OutputSettings = settings.output.model_copy(update={"output": output})
    return settings.model_copy(update={"output": changed})


@dataclass(frozen=True, eq=False)
class _Standing:
    """How things are under the model's last run."""

    run: RunFolder
    base_id: str | None
    """The run that an update made it from."""
    beta_loss: str
    own: frozenset[str]
    """Files that it was made of, without credentials."""
    folder: NightlyFolder
    state: NightState | None
    elsewhere: Elsewhere
    """Files whose W is made under other runs, and is not to be made under this one."""
    pending: list[Seen]

    @classmethod
    def of(cls, settings: Settings, folder: NightlyFolder, model: ModelFolder) -> _Standing:
        """Read listings and manifests."""
        run = open_run(model.uri)
        told = Manifest.load(run.folder).read_json("run.json")
        own = frozenset(one["uri"] for one in told["input"]["files"])
        beta_loss = told["config"]["model"]["beta_loss"]
        base_id = told.get("updated_from", {}).get("run_id")
        elsewhere = frozenset(
            (one.uri, one.version)
            for contents in folder.others(run.run_id)
            for one in contents.taken.values()
            if redact(one.uri) not in own
        )
        contents = folder.output(run.run_id).contents()
        here = {(one.uri, one.version) for one in contents.taken.values()} if contents else set()
        pending = [
            one
            for one in look_at(find_corpus(settings.corpus.input, settings.corpus.format))
            if (one.uri, one.version) not in here and (one.uri, one.version) not in elsewhere
        ]
        return cls(run, base_id, beta_loss, own, folder, folder.state(), elsewhere, pending)

    def is_done(self) -> bool:
        """Whether the last night ended, and no file came since."""
        state = self.state
        if self.pending or state is None or state.run_id != self.run.run_id:
            return False
        output = self.folder.output(self.run.run_id)
        contents = output.contents()
        return contents is None or (output.is_finished() and contents.next_row() <= state.rows)

    def limit(self, settings: Settings) -> float | None:
        """By which share the loss may rise; None: by any."""
        chosen = settings.nightly.loss_rise
        return LOSS_RISE[self.beta_loss] if chosen == "auto" else chosen

    def transform_settings(self, settings: Settings) -> Settings:
        """Of the transform under this run."""
        chosen = TransformSettings(model=self.run.folder.uri, new_only=True, loss=True)
        placed = _with_output(settings, self.folder.output(self.run.run_id).folder.uri)
        return placed.model_copy(update={"transform": chosen})


@dataclass(frozen=True)
class _Measured:
    """Documents that came since a run was made, or since the last night under it, and those to compare with."""

    files: int
    parts: list[Part]
    reference: float | None
    rows: int

    @classmethod
    def of(
        cls, contents: Contents | None, state: NightState | None, run_id: str, own: frozenset[str]
    ) -> _Measured:
        """From what an output holds under a run."""
        if contents is None:
            return cls(0, [], None, 0)
        taken, same = contents.taken.values(), state is not None and state.run_id == run_id
        if state is not None and same:
            came = [one for one in taken if any(_is_after(part, state.rows) for part in one.parts)]
            reference = state.reference
        else:
            came = [one for one in taken if redact(one.uri) not in own]
            reference = relative_loss([part for one in taken if redact(one.uri) in own for part in one.parts])
        parts = [part for one in came for part in one.parts]
        return cls(len(came), parts, reference or relative_loss(parts), contents.next_row())

    def nights(self, state: NightState | None, run_id: str) -> int:
        """Nights with new files under the run, this one with them."""
        before = state.nights if state is not None and state.run_id == run_id else 0
        return before + (self.files > 0)

    def rise(self) -> float | None:
        """By which share of the reference the loss is above it."""
        loss = relative_loss(self.parts)
        return None if loss is None or not self.reference else loss / self.reference - 1

    def told(self) -> dict[str, Any]:
        """For the summary."""
        return {
            "files_new": self.files,
            "n_documents": sum(part.n_documents for part in self.parts),
            "n_empty_documents": sum(part.n_empty for part in self.parts),
            "relative_loss": relative_loss(self.parts),
            "reference_loss": self.reference,
            "rise": self.rise(),
        }


def _is_after(part: Part, rows: int) -> bool:
    return part.first_row >= rows and part.n_documents > 0


class _Night:
    """One night under its lock."""

    def __init__(
        self,
        settings: Settings,
        folder: NightlyFolder,
        model: ModelFolder,
        observer: Observer,
        lock: ModelLock,
        started: float,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.model = model
        self.observer = observer
        self.lock = lock
        self.started = started
        self.did: list[str] = []

    def done(self) -> NightResult:
        """Do each step that is not done, and end the night."""
        if not _is_there(self.model):
            result = fit(self.settings, self.observer, self.started)
            self._did("fit", f"fitted run {result.run_id}")
        standing = self._standing()
        night = self._before_update(standing)
        run_id = standing.run.run_id
        if night is None:
            night = self._transformed(standing)
        else:  # cut off after its update
            assert standing.state is not None
            run_id = standing.state.run_id
        nights = night.nights(standing.state, run_id)
        reason = self._due(standing, night, nights)
        last, moved = standing, list[Moved]()
        if run_id != standing.run.run_id:
            moved = self._update_made(standing, run_id)
        elif reason is not None:
            last, moved = self._updated(standing, reason)
        self._end(last, self._transformed(last) if "update" in self.did else night)
        more = {**night.told(), "nights": nights, "reason": reason, "did": self.did, "status": "done"}
        if "fit" in self.did:
            more["n_documents"] = last.run.read_run()["n_documents"]
        told = _told(self.settings, last, self.started, **more)
        return NightResult(self.folder.folder.uri, told, moved)

    def _standing(self) -> _Standing:
        return _Standing.of(self.settings, self.folder, self.model)

    def _did(self, step: str, message: str) -> None:
        if step not in self.did:
            self.did.append(step)
        self.observer.inform(message)

    def _before_update(self, standing: _Standing) -> _Measured | None:
        """What this night found under the run before, where it was cut off after its update."""
        state = standing.state
        if state is None or state.run_id == standing.run.run_id or state.run_id != standing.base_id:
            return None
        contents = self.folder.output(state.run_id).contents()
        night = _Measured.of(contents, state, state.run_id, frozenset())
        return night if night.files else None

    def _transformed(self, standing: _Standing) -> _Measured:
        """W of all that is pending, and what it says."""
        run_id = standing.run.run_id
        output = self.folder.output(run_id)
        contents = output.contents()
        if standing.pending or (contents is not None and not output.is_finished()):
            settings = standing.transform_settings(self.settings)
            transform(settings, self.observer, self.started, standing.elsewhere)
            self._did("transform", f"W of {len(standing.pending):,} files is made under run {run_id}")
            contents = output.contents()
        return _Measured.of(contents, standing.state, run_id, standing.own)

    def _due(self, standing: _Standing, night: _Measured, nights: int) -> str | None:
        """Why the model is to be updated; None: it is not."""
        every, limit, rise = self.settings.nightly.every, standing.limit(self.settings), night.rise()
        if not night.files:
            return None
        loss = relative_loss(night.parts)
        if rise is not None and loss is not None:
            self.observer.inform(
                f"relative loss of what is new: {loss:.4f}, {100 * rise:+.2f} % against {night.reference:.4f}"
            )
        if rise is not None and limit is not None and rise > limit:
            return "loss"
        return "nights" if every is not None and nights >= every else None

    def _updated(self, standing: _Standing, reason: str) -> tuple[_Standing, list[Moved]]:
        """How things are after an update, and what it moved."""
        why = "the loss rose" if reason == "loss" else "its nights are over"
        self.observer.inform(f"run {standing.run.run_id} is updated: {why}")
        before = TopicModel.load(standing.run.folder.uri)  # which may be gone after it
        chosen = self.settings.update.model_copy(update={"base": standing.run.folder.uri})
        result = update(self.settings.model_copy(update={"update": chosen}), self.observer, self.started)
        if result.run_id == standing.run.run_id:  # copies of what it has
            return standing, []
        self._did("update", f"updated: run {result.run_id}")
        return self._standing(), compare(TopicModel.load(result.uri), before)

    def _update_made(self, standing: _Standing, base_id: str) -> list[Moved]:
        """What an earlier attempt's update moved, as far as the run before it is still there."""
        self._did("update", f"the update of run {base_id} is made: run {standing.run.run_id}")
        with suppress(InputDataError):
            before = TopicModel.load(self.model.run(base_id).folder.uri)
            return compare(TopicModel.load(standing.run.folder.uri), before)
        return []

    def _end(self, last: _Standing, measured: _Measured) -> None:
        run_id = last.run.run_id
        nights = measured.nights(last.state, run_id)
        self.folder.write_state(NightState(run_id, measured.rows, nights, measured.reference), self.lock)


def _told(settings: Settings, standing: _Standing, started: float, **more: Any) -> dict[str, Any]:
    run = standing.run
    return {
        "run_id": run.run_id,
        "model": redact(run.folder.uri),
        "weights": redact(standing.folder.output(run.run_id).folder.uri),
        **more,
        "every": settings.nightly.every,
        "loss_rise": standing.limit(settings),
        "seconds": round(time.perf_counter() - started, 3),
    }
