"""What an update starts from, and what is new: before anything is written or started."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nmf_dask.config import CorpusSettings, OutputSettings, Section, Settings, redact
from nmf_dask.corpus import Corpus, NoDocumentError, Seen, find_corpus, look_at, open_corpus
from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.kernels.matrices import padded_width
from nmf_dask.model import TopicModel
from nmf_dask.pipeline.planning import (
    Plan,
    check_apart,
    check_documents,
    check_kind,
    check_memory,
    check_w,
    named_bytes,
    planned_of,
    with_stop_words,
)
from nmf_dask.store import Folder, Manifest, ModelFolder, RunFolder, check_id_name, open_run, run_id
from nmf_dask.store.history import InputFile, Numbers, read_inputs, read_numbers

FIXED = ("n_components", "beta_loss")  # of [model]: what the kept sums and the numbers of topics depend on
H_COPIES = 8  # the earlier H and its sums, as read, in the columns of now, and as they are met
_SHOWN = 5
S = TypeVar("S", bound=Section)


@dataclass(frozen=True, eq=False)
class Ready:
    """An update that was checked."""

    settings: Settings
    """As the new run is made by: the model's own, but for what was given."""
    base: TopicModel
    numbers: Numbers | None
    """Of what the base keeps; None: it is not asked for."""
    model_folder: ModelFolder
    known: list[InputFile]
    """Files that the base, or a run before it, took in; those of the input that are so are skipped."""
    n_skipped: int
    corpus: Corpus | None
    """Of what is new; None: nothing is."""

    @property
    def base_id(self) -> str:
        """The run that the new one starts from."""
        return str(self.base.run["run_id"])

    @property
    def run(self) -> RunFolder:
        """The new run."""
        assert self.corpus is not None
        return self.model_folder.run(run_id(self.settings, self.corpus.fingerprint, self.base_id))

    @property
    def n_before(self) -> int:
        """Documents that were counted before, and are not counted again."""
        return 0 if self.numbers is None else self.numbers.n_documents


def prepared(settings: Settings) -> Ready:
    """Find out what an update starts from and what is new; reads listings, the model, and the footers of new files.

    Raises ConfigurationError and InputDataError for what cannot be done: settings that are not the model's, a model
    that keeps nothing to go on from, files that changed since they were taken in.
    """
    base_run = open_run(_source(settings))
    base = TopicModel.load(base_run.folder.uri)
    model_folder = _model_folder(base_run)
    settings = _settings_of(settings, base, model_folder)
    check_id_name(settings.corpus.id_column or "doc_id")
    check_apart(settings)
    manifest = Manifest.load(base_run.folder)
    numbers, rereads = read_numbers(manifest), settings.update.rereads
    if numbers is None and not rereads:
        raise InputDataError(
            f"{base_run.folder} keeps nothing that an update could go on from: an earlier version wrote it. Give "
            "--history reread with all of the corpus as --input"
        )
    known = read_inputs(manifest) if numbers is not None else []
    seen = look_at(find_corpus(settings.corpus.input, settings.corpus.format))
    corpus = (_all_of if rereads else _new_of)(settings, known, seen)
    if corpus is not None:
        check_w(corpus, settings, settings.model.n_components)
        if corpus.raw is None and not settings.update.weight:
            check_documents(corpus, settings)
    n_new = len(corpus.files) if corpus is not None else 0
    skipped = 0 if rereads and n_new else len(seen) - n_new
    return Ready(settings, base, None if rereads else numbers, model_folder, known, skipped, corpus)


def _source(settings: Settings) -> str:
    model, output = settings.update.base, settings.output.output
    if model is None and output is None:
        raise ConfigurationError("no model: give --model URI, or base under [update] in the job file")
    if model is not None and output is not None:
        place, due = Folder(output).uri, Folder(model)
        if place not in (due.uri, due.parent.parent.uri):
            raise ConfigurationError(
                f"output.output is {redact(place)}, but the run of an update goes beside the one that it starts from, "
                f"under {due}: leave output out"
            )
    return model or output or ""


def _model_folder(base: RunFolder) -> ModelFolder:
    if base.folder.parent.name != "runs":
        raise ConfigurationError(
            f"{base.folder} is a run outside of a model folder, and an update goes beside the run that it starts from: "
            "give the model folder"
        )
    return base.model


def _settings_of(settings: Settings, base: TopicModel, model_folder: ModelFolder) -> Settings:
    """The base's own, but for what was given; ConfigurationError where that cannot be another."""
    check_kind(settings.corpus, base.of_counts)
    settings = with_stop_words(settings)
    _check_same(
        "vectorizer", settings.vectorizer, base.vectorizer_settings, settings.vectorizer.model_fields_set
    )
    _check_same("model", settings.model, base.model_settings, FIXED)
    model = _with_given(base.model_settings, settings.model)
    if model.solver == "cd" and model.beta_loss != "frobenius":
        raise ConfigurationError(
            f'model.solver is "cd", but the model was fitted with beta_loss "{model.beta_loss}": use solver "mu"'
        )
    corpus, output = _told_of(base)
    return settings.model_copy(
        update={
            "vectorizer": base.vectorizer_settings,
            "model": model,
            "corpus": _with_given(corpus, settings.corpus),
            "output": _with_given(output, settings.output).model_copy(update={"output": model_folder.uri}),
        }
    )


def _with_given(base: S, given: S) -> S:
    return base.model_copy(update={name: getattr(given, name) for name in given.model_fields_set})


def _check_same(section: str, given: Section, fitted: Section, names: Sequence[str] | set[str]) -> None:
    for name in sorted(set(names) & given.model_fields_set):
        one, other = getattr(given, name), getattr(fitted, name)
        if one != other:
            raise ConfigurationError(
                f"{section}.{name} is {_shown(one)}, but the model was fitted with {_shown(other)}, which an update "
                "cannot change: leave it out, or fit a new model"
            )


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _told_of(base: TopicModel) -> tuple[CorpusSettings, OutputSettings]:
    """How the base's corpus was read, and its results written."""
    try:
        config = base.run["config"]
        corpus = CorpusSettings.model_validate_json(json.dumps({**config["corpus"], "input": []}))
        return corpus, OutputSettings.model_validate_json(json.dumps(config["output"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputDataError(
            f"{Folder(base.uri) / 'run.json'} does not tell how its corpus was read ({error}): restore it, or fit again"
        ) from error


def _all_of(settings: Settings, known: Sequence[InputFile], seen: Sequence[Seen]) -> Corpus | None:
    """The whole input; None where it is what the base took in."""
    now = {(redact(one.uri), json.dumps(list(one.version))) for one in seen}
    if known and now == {(one.uri, one.version) for one in known}:
        return None
    return open_corpus(settings.corpus, [one.found for one in seen])


def _new_of(settings: Settings, known: Sequence[InputFile], seen: Sequence[Seen]) -> Corpus | None:
    """The files that are not known; by their footers, those that were touched or copied are."""
    versions = {(one.uri, one.version) for one in known}
    others = [one for one in seen if (redact(one.uri), json.dumps(list(one.version))) not in versions]
    if not others:
        return None
    looked = open_corpus(settings.corpus, [one.found for one in others], by_file=True)
    by_uri = {one.uri: one.content for one in known}
    contents = {(one.name, *one.content) for one in known}
    new: list[Seen] = []
    changed: list[Seen] = []
    for one, file in zip(others, looked.files, strict=True):
        place, content = redact(one.uri), (file.size, file.digest)
        if by_uri.get(place) == content or (file.name, *content) in contents:
            continue
        (changed if place in by_uri else new).append(one)
    if changed:
        shown = ", ".join(redact(one.uri) for one in changed[:_SHOWN])
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise InputDataError(
            f"files changed since they were taken in, and what they said then cannot be taken back: {shown}{more}. "
            "Restore them, or give --history reread with all of the corpus as --input"
        )
    if not new:
        return None
    try:
        return open_corpus(settings.corpus, [one.found for one in new])
    except NoDocumentError:
        return None


@dataclass(frozen=True, kw_only=True)
class UpdatePlan(Plan):
    """What an update would do."""

    base: str = ""
    n_files_skipped: int = 0

    def lines(self) -> list[str]:
        """The plan for a person to read."""
        if self.n_files == 0:
            return [
                f"nothing new  all {self.n_files_skipped:,} files are in run {self.base}: running it does nothing"
            ]
        return [f"from         {self.base} ({self.n_files_skipped:,} files are in it)", *super().lines()]


def plan_update(settings: Settings) -> UpdatePlan:
    """What `update` would do with these settings; writes nothing.

    Raises what `update` raises for bad input, and ConfigurationError where the job cannot fit the memory.
    """
    planned = update_planned_of(prepared(settings))
    if settings.cluster.is_own:
        check_memory(planned)
    return planned


def update_planned_of(ready: Ready) -> UpdatePlan:
    """The plan of an update that was prepared: that of a fit of what is new, and the earlier H and its sums beside."""
    if ready.corpus is None:
        return _nothing(ready)
    planned = planned_of(ready.settings, ready.corpus)
    vectorizer = ready.settings.vectorizer
    m = len(ready.base.vocabulary) + planned.n_features
    m = min(m, vectorizer.max_features or m, vectorizer.n_features)
    H = m * padded_width(ready.settings.model.n_components) * 4
    terms = named_bytes(4 * ready.n_before + 1000, vectorizer)
    more = {
        "run_id": ready.run.run_id,
        "staging": planned.staging.replace(planned.run_id, ready.run.run_id),
        "spill": planned.spill.replace(planned.run_id, ready.run.run_id),
        "finished_before": ready.run.is_committed(),
        "n_features": m,
        "expected_driver": planned.expected_driver + H_COPIES * H,
        "expected_worker": planned.expected_worker + H_COPIES * H + terms,
        "expected_staging": planned.expected_staging + 6 * H,
    }
    return UpdatePlan(**{**vars(planned), **more}, base=ready.base_id, n_files_skipped=ready.n_skipped)


def _nothing(ready: Ready) -> UpdatePlan:
    workers, threads = ready.settings.cluster.shape()
    return UpdatePlan(
        run_id=ready.base_id, output=redact(ready.model_folder.uri), finished_before=True, n_files=0, n_partitions=0,
        n_rows=0, text_bytes=0, largest_partition=0, n_features=len(ready.base.vocabulary), workers=workers,
        threads_per_worker=threads, memory_limit=ready.settings.cluster.worker_bytes(), expected_driver=0,
        expected_worker=0, staging="", expected_staging=0, base=ready.base_id, n_files_skipped=ready.n_skipped,
    )  # fmt: skip
