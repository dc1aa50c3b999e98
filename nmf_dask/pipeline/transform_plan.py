"""What a transform will read and need, and what of it is done: before anything is written or started."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from nmf_dask.config import Settings, redact
from nmf_dask.corpus import Corpus, Seen, find_corpus, look_at, no_document, open_corpus
from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.kernels.matrices import padded_width
from nmf_dask.model import TopicModel
from nmf_dask.pipeline.parts import SLICE_BYTES, SLICE_ROWS
from nmf_dask.pipeline.planning import (
    DRIVER_BYTES,
    FIRST_WORKER_BYTES,
    MIB,
    Memory,
    Planned,
    amounts,
    check_apart,
    check_kind,
    check_memory,
    check_outside,
    check_w,
    ingest_bytes,
    largest_partition,
)
from nmf_dask.store import (
    Contents,
    Folder,
    Manifest,
    Taken,
    TransformFolder,
    check_id_name,
    chosen_documents,
)

H_COPIES = 6  # read, in the layout of the kernels, and on its way from one worker to another
FEATURE_BYTES = 400  # the vocabulary, and where the terms of a slice are looked up in it
READING_BYTES = 32 * MIB  # pages that are decoded, and the row group that is written
W_COPIES = 4
ID_BYTES = 64
_SHOWN = 5
Elsewhere = Set[tuple[str, tuple[int, int]]]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A transform that was checked: what its output has, what is new, and the new files' corpus."""

    output: TransformFolder
    model: TopicModel
    basis: dict[str, Any]
    contents: Contents | None
    done: dict[str, Taken]  # of the input, by URI
    new: list[Seen]
    corpus: Corpus | None  # of what is new; None: nothing is

    def renamed(self) -> str | None:
        """New files that look like others under another name, of which W is made; None: there are none.

        Size and time of change stay, to the nanosecond, where a local file is renamed.
        """
        taken = self.contents.taken if self.contents is not None else {}
        here = {*self.done, *(one.uri for one in self.new)}
        gone = {one.version: uri for uri, one in taken.items() if uri not in here}
        pairs = [(one.uri, gone[one.version]) for one in self.new if one.version in gone]
        if not pairs:
            return None
        (name, before), more = map(redact, pairs[0]), len(pairs) - 1
        others = f", and {more:,} more like it" if more else ""
        return (
            f"{name} has size and time of {before}, which is not in the input any more{others}: where files were "
            "renamed, W holds their documents twice. For W without the old names choose another output"
        )


def prepared(settings: Settings, elsewhere: Elsewhere = frozenset()) -> Prepared:
    """Find out what is to do; reads listings, the model, and the footers of new files.

    Versions of files whose W is `elsewhere` are not looked at.

    Raises ConfigurationError and InputDataError for what cannot be done: an output that is something else, or that
    holds the W of another model; an input that is not what it was, unless `transform.new_only` asks for the new files.
    """
    target, source = settings.output.output, settings.transform.model
    if target is None or source is None:
        raise ConfigurationError("a transform needs output.output and transform.model")
    check_id_name(settings.corpus.id_column or "doc_id")
    check_apart(settings, "output")
    check_outside(target, source)
    output = TransformFolder(Folder(target))
    output.check_usable()
    model = TopicModel.load(source)
    settings = _columns_of(settings, model)
    seen = look_at(find_corpus(settings.corpus.input, settings.corpus.format))
    seen = [one for one in seen if (one.uri, one.version) not in elsewhere]
    contents, basis = output.contents(), _basis(settings, model)
    if contents is not None:
        _check_same_basis(contents, basis, output)
    taken: Mapping[str, Taken] = contents.taken if contents is not None else {}
    done = {
        one.uri: taken[one.uri] for one in seen if one.uri in taken and taken[one.uri].version == one.version
    }
    new = [one for one in seen if one.uri not in done]
    if contents is not None and not settings.transform.new_only:
        _check_same_input(taken, seen, output)
    corpus = open_corpus(settings.corpus, [one.found for one in new], by_file=True) if new else None
    if corpus is not None:
        check_w(corpus, settings, model.n_components)
        if corpus.n_rows == 0 and not taken:
            raise no_document(settings.corpus, corpus.files)
        basis |= _types(corpus, contents)
    elif contents is not None:
        basis |= {key: contents.basis[key] for key in ("id_type", "kept") if key in contents.basis}
    return Prepared(output, model, basis, contents, done, new, corpus)


def _columns_of(settings: Settings, model: TopicModel) -> Settings:
    """The settings with the columns of counts that the model was fitted to, unless others are given."""
    check_kind(settings.corpus, model.of_counts)
    if not model.of_counts or settings.corpus.feature_column is not None:
        return settings
    told = model.run["config"]["corpus"]
    columns = {key: told.get(key) for key in ("feature_column", "value_column", "feature_names")}
    return settings.model_copy(update={"corpus": settings.corpus.model_copy(update=columns)})


def _basis(settings: Settings, model: TopicModel) -> dict[str, Any]:
    """What all parts of an output have in common."""
    manifest = Manifest.load(Folder(model.uri))
    H = [manifest.digests[name].sha256 for name in manifest.parts("H")]
    return {
        "run_id": model.run["run_id"],
        "H": hashlib.sha256("".join(H).encode()).hexdigest(),
        **chosen_documents(settings.corpus),
        **({"w_format": "csv"} if settings.output.w_format == "csv" else {}),
    }


def _check_same_basis(contents: Contents, basis: Mapping[str, Any], output: TransformFolder) -> None:
    names = {"run_id": "the model's run", "H": "H", "w_format": "output.w_format"}
    keys = [key for key in {**contents.basis, **basis} if key not in ("id_type", "kept")]
    other = [
        f"{names.get(key, f'corpus.{key}')} was {contents.basis.get(key)}, and is {basis.get(key)}"
        for key in keys
        if contents.basis.get(key) != basis.get(key)
    ]
    if other:
        raise InputDataError(
            f"{output.folder} holds W of something else ({'; '.join(other[:2])}), and weights of two models do not go "
            "together: choose another output, or delete that one"
        )


def _check_same_input(taken: Mapping[str, Taken], seen: list[Seen], output: TransformFolder) -> None:
    now = {one.uri: one for one in seen}
    changed = [uri for uri, one in now.items() if uri in taken and taken[uri].version != one.version]
    parts = [
        _listed("came", [uri for uri in now if uri not in taken]),
        _listed("changed", changed),
        _listed("are not in the input any more", [uri for uri in taken if uri not in now]),
    ]
    if any(parts):
        raise InputDataError(
            f"{output.folder} holds the W of an input that was another ({'; '.join(filter(None, parts))}): give "
            "--new-only to keep what is there and make the rest, or choose another output"
        )


def _listed(what: str, uris: list[str]) -> str:
    if not uris:
        return ""
    more = f" and {len(uris) - _SHOWN} more" if len(uris) > _SHOWN else ""
    return f"files that {what}: {', '.join(map(redact, uris[:_SHOWN]))}{more}"


def _types(corpus: Corpus, contents: Contents | None) -> dict[str, Any]:
    """Of the ids, and of what W carries beside them (where it does), which all parts must agree in."""
    kept = {one.name: str(one.type) for one in corpus.kept}
    found: dict[str, Any] = {"id_type": str(corpus.id_type), **({"kept": kept} if kept else {})}
    if contents is None or "id_type" not in contents.basis:
        return found
    due = {key: contents.basis[key] for key in ("id_type", "kept") if key in contents.basis}
    if corpus.n_rows == 0 or found == due:
        return due
    if found["id_type"] != due["id_type"]:
        raise InputDataError(
            f"column {corpus.settings.id_column!r} has type {found['id_type']} in {corpus.files[0]}, but "
            f"{due['id_type']} in the files whose W is made. Ids need one type: write the new files again, or choose "
            "another output"
        )
    raise InputDataError(
        f"W carries {_named(due.get('kept'))} of the files whose W is made, but would carry {_named(kept or None)} of "
        f"the new ones (the first: {corpus.files[0]}): write the new files again, or choose another output"
    )


def _named(kept: Mapping[str, str] | None) -> str:
    return ", ".join(f"{name} ({type_})" for name, type_ in kept.items()) if kept else "no more columns"


@dataclass(frozen=True, kw_only=True)
class TransformPlan(Planned):
    """What a transform would do."""

    output: str
    model: str
    n_files_done: int
    n_partitions_done: int
    n_components: int

    def lines(self) -> list[str]:
        """The plan for a person to read."""
        nothing = " (nothing new: running it does nothing)" if self.n_files == 0 else ""
        return [
            f"output       {self.output}{nothing}",
            f"model        {self.model} ({self.n_components} topics, {self.n_features:,} features)",
            f"done         {self.n_files_done:,} files in {self.n_partitions_done:,} partitions",
            *self.input_lines(),
            *self.worker_lines(),
        ]


def plan_transform(settings: Settings, elsewhere: Elsewhere = frozenset()) -> TransformPlan:
    """What `transform` would do with these settings; writes nothing.

    Raises what `transform` raises for bad input, and ConfigurationError where the job cannot fit the memory.
    """
    planned = planned_of(settings, prepared(settings, elsewhere))
    if settings.cluster.is_own:
        check_memory(planned)
    return planned


def planned_of(settings: Settings, ready: Prepared) -> TransformPlan:
    """The plan of a transform that was prepared."""
    partitions = ready.corpus.partitions if ready.corpus is not None else ()
    largest = largest_partition(ready.corpus) if ready.corpus is not None else 0
    workers, threads = settings.cluster.shape()
    expected = expected_memory(
        ready.model,
        partition_bytes=largest,
        partition_rows=max((one.n_rows for one in partitions), default=0),
        threads=threads,
        in_process=settings.cluster.in_process,
        measured=settings.transform.loss,
    )
    return TransformPlan(
        output=redact(ready.output.folder.uri),
        model=redact(ready.model.uri),
        n_files=len(ready.new),
        n_files_done=len(ready.done),
        n_partitions=len(partitions),
        n_partitions_done=sum(len(one.parts) for one in ready.done.values()),
        n_rows=ready.corpus.n_rows if ready.corpus is not None else 0,
        text_bytes=ready.corpus.text_bytes if ready.corpus is not None else 0,
        largest_partition=largest,
        n_components=ready.model.n_components,
        n_features=len(ready.model.vocabulary),
        workers=workers,
        threads_per_worker=threads,
        memory_limit=settings.cluster.worker_bytes(),
        expected_driver=expected.driver,
        expected_worker=max(expected.worker, ingest_bytes(ready.corpus, threads) if ready.corpus else 0),
        estimated=ready.corpus is not None and ready.corpus.raw is not None,
        of_counts=ready.model.of_counts,
    )


def expected_memory(
    model: TopicModel,
    *,
    partition_bytes: int,
    partition_rows: int,
    threads: int,
    in_process: bool,
    measured: bool = False,
) -> Memory:
    """A bound on the memory of a transform: the model, and one slice of documents a thread. No size of the corpus.

    A document that is larger than a slice is a slice of its own, which no footer tells of.
    """
    kp = padded_width(model.n_components)
    # Kullback-Leibler copies what a document's terms have of H: all of it, at most.
    copies = H_COPIES + threads * (model.model_settings.beta_loss == "kullback-leibler")
    H = len(model.vocabulary) * (kp * 4 * copies + FEATURE_BYTES)
    text = min(partition_bytes, SLICE_BYTES)
    rows = min(partition_rows, SLICE_ROWS)
    counting = text * (amounts(text, model.vectorizer_settings).counting + 2)
    slice_ = READING_BYTES + counting + rows * kp * 4 * (W_COPIES + measured) + partition_rows * ID_BYTES
    worker = FIRST_WORKER_BYTES + threads * slice_ + H
    return Memory((worker if in_process else DRIVER_BYTES) + H, worker + in_process * H)
