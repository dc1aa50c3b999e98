"""From a model's folder to its page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nmf_dask.errors import ConfigurationError
from nmf_dask.model import TopicModel
from nmf_dask.reporting.documents import MOST_LABELS, ByDate, ByLabel, Overview, as_text, overview
from nmf_dask.reporting.geometry import (
    distances,
    near_duplicates,
    placed,
    relevant_terms,
    term_probabilities,
)
from nmf_dask.reporting.page import page_of
from nmf_dask.store import Folder, Manifest

if TYPE_CHECKING:
    from nmf_dask.reporting.documents import Document
    from nmf_dask.reporting.excerpts import Marker

N_TERMS = 30
N_DOCUMENTS = 5
N_LABELS = 40
_LISTED = 20  # of a warning's topics
# Of a topic that the run's documents have nothing of (those of an update may not): its terms are still shown.
_LEAST_SHARE = 1e-9


def report(model: str, output: str = "report.html", input: str | Sequence[str] = ()) -> str:
    """Write one HTML file to look at a model; returns its path or URI.

    `model` is a model folder (its last finished run) or one run, `output` the file, which is replaced if it is there;
    each a path or URI. `input` is the corpus of the fit: with it, the page shows texts of typical documents, which is
    to say that whoever gets the page reads them; without it, their ids alone. W is read once, a part at a time.

    Raises InputDataError for what is no finished run or is damaged, for an input that is not the run's corpus, and
    what reading a corpus raises; ConfigurationError for a path or URI that cannot be one; RetryableError for a store
    that does not answer. Nothing is written then.
    """
    place = Folder(output)
    loaded = TopicModel.load(model)
    if loaded.of_counts and input:
        raise ConfigurationError("the model is of counts: there are no texts to show, leave --input out")
    sums = loaded.H.sum(axis=1, dtype=np.float64)
    told = overview(loaded.W_parts(), sums, N_DOCUMENTS)
    inputs = (input,) if isinstance(input, str) else tuple(input)
    page = page_of(
        title=f"{loaded.n_components:,} topics of {_count(told.n_documents, 'document')}",
        facts=_facts(loaded, told),
        warnings=_warnings(loaded, told),
        passes=_passes(loaded),
        stages=loaded.run.get("stages") or {},
        settings=loaded.run["config"],
        data=_data(loaded, told, _texts(loaded, told, inputs)),
    )
    place.write_bytes(page.encode("utf-8", "replace"))
    return str(place)


def _passes(model: TopicModel) -> list[dict[str, Any]]:
    manifest = Manifest.load(Folder(model.uri))
    if "convergence.parquet" not in manifest.digests:
        return []
    rows: list[dict[str, Any]] = manifest.read_parquet("convergence.parquet").to_pylist()
    return [row for row in rows if math.isfinite(row["reconstruction_err"])]


def _texts(model: TopicModel, told: Overview, inputs: tuple[str, ...]) -> dict[int, str] | None:
    """Of the typical documents, by row; None where no corpus was given."""
    if not inputs:
        return None
    from nmf_dask.reporting.excerpts import texts_of

    wanted = {one.row: one for one in chain.from_iterable(told.typical)}
    return texts_of(model, inputs, list(wanted.values()), told.n_documents)


def _facts(model: TopicModel, told: Overview) -> list[tuple[str, str]]:
    run, settings = model.run, model.model_settings
    source = run.get("input") or {}
    rows = [
        ("corpus", _corpus(run)),
        ("documents", f"{told.n_documents:,}{_size(source, model.of_counts)}"),
        ("terms", f"{len(model.vocabulary):,} of {model.vectorizer_settings.n_features:,} buckets"),
        ("topics", f"{model.n_components:,}"),
        (
            "method",
            f"{settings.beta_loss}, {settings.method}, from {settings.init}, seed {settings.random_state}",
        ),
    ]
    if run.get("n_iter"):
        rows.append(("passes", f"{run['n_iter']:,} (stopped by {run.get('stop_reason')})"))
    rows.append(("reconstruction error", f"{model.reconstruction_err:.8g}"))
    peak = [
        f"{name.replace('_', ' ')} {value / 2**20:,.0f} MiB"
        for name, value in (run.get("peak_memory") or {}).items()
        if value
    ]
    if peak:
        rows.append(("peak memory", ", ".join(peak)))
    rows.append(("run", f"{run['run_id']}{_written(run)}"))
    return rows


def _corpus(run: Mapping[str, Any]) -> str:
    """What the fit was given to read, and in how many files it found the corpus."""
    given = run["config"]["corpus"].get("input") or ["unknown"]
    files = (run.get("input") or {}).get("files") or []
    more = f" and {len(given) - 1:,} more" if len(given) > 1 else ""
    found = f" ({_count(len(files), 'file')})" if files else ""
    return f"{given[0]}{more}{found}"


def _size(source: Mapping[str, Any], of_counts: bool) -> str:
    n_bytes = source.get("text_bytes")
    return f", {n_bytes / 1e6:,.1f} MB of {'counts' if of_counts else 'text'}" if n_bytes else ""


def _written(run: Mapping[str, Any]) -> str:
    """When, to the minute, and by which version; nothing where the run does not tell."""
    when, version = run.get("written"), (run.get("versions") or {}).get("nmf-dask")
    at = f", written {datetime.fromisoformat(when):%Y-%m-%d %H:%M} UTC" if when else ""
    return f"{at} by nmf-dask {version}" if at and version else at


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _warnings(model: TopicModel, told: Overview) -> list[str]:
    run = model.run
    messages = [
        message.format(run[key])
        for key, message in (
            ("n_empty_documents", "Empty documents, which hold none of the selected terms: {:,}."),
            ("n_null_texts", "Documents without a text (null): {:,}."),
            ("n_invalid_utf8", "Documents that are no valid UTF-8, in which U+FFFD stands for what is not: {:,}."),
            ("workers_lost", "Workers that were lost, and whose work was done again: {:,}."),
        )
        if run.get(key)
    ]  # fmt: skip
    without = told.n_without_topic - int(run.get("n_empty_documents") or 0)
    if without > 0:
        messages.append(f"Documents that hold terms, but in which no topic has a weight: {without:,}.")
    messages += [*_collisions(model), *_doubtful_topics(model)]
    if run.get("stop_reason") == "max_iter":
        messages.append(
            "The fit stopped at model.max_iter before it converged: more passes may make better topics."
        )
    messages += [
        f"Documents without a {one.name}, which are at no point of time: {one.n_without:,}."
        for one in told.dates
        if one.n_without
    ]
    messages += [
        f"Column {one.name} has more than {MOST_LABELS:,} values: it is not shown as a label."
        for one in told.labels
        if one.sums is None
    ]
    return messages


def _collisions(model: TopicModel) -> list[str]:
    rate = float(model.run.get("collision_rate") or 0.0)
    if not rate:
        return []
    words = model.vocabulary
    worst = np.flatnonzero(words.term_share < 0.9)[:5]
    named = ", ".join(f"{words.term[int(j)].as_py()} ({words.term_share[j]:.0%})" for j in worst)
    more = f" Frequent terms that share theirs (and their own part of it): {named}." if named else ""
    return [
        f"Collisions: {rate:.2%} of what terms count is of other terms in their bucket "
        f"(vectorizer.n_features makes them fewer).{more}"
    ]


def _doubtful_topics(model: TopicModel) -> list[str]:
    found = []
    shares = _shares(model)
    dead = sorted({*np.flatnonzero(~model.H.any(axis=1)).tolist(), *(model.run.get("dead_topics") or ())})
    if "updated_from" in model.run:  # its documents are those that were new, and may be few
        quiet = [t for t in dead if model.H[t].any()]
        dead = [t for t in dead if t not in quiet]
        if quiet:
            named = _listed([f"#{t}" for t in quiet])
            found.append(f"Topics that none of the update's documents has anything of: {named}.")
    if dead:
        found.append(
            f"Dead topics, without terms or documents: {_listed([f'#{t}' for t in dead])}. Lower -k."
        )
    pairs = near_duplicates(model.H)
    if pairs:
        shown = _listed([f"#{t} and #{u} ({cosine:.2f})" for t, u, cosine in pairs])
        found.append(f"Near-duplicate topics (cosine of their terms): {shown}. Fewer topics may do.")
    if len(shares) > 1 and shares.max() > 0.5:
        found.append(f"Topic #{int(shares.argmax())} alone is {shares.max():.0%} of the corpus.")
    return found


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _shares(model: TopicModel) -> NDArray[np.float64]:
    """Of the corpus; even ones where the run does not tell."""
    shares = np.array([topic.share for topic in model.topics(0)])
    return np.where(np.isfinite(shares), shares, 1.0 / len(shares))


def _data(model: TopicModel, told: Overview, texts: Mapping[int, str] | None) -> dict[str, Any]:
    """What page.js draws."""
    shares = _shares(model)
    p = term_probabilities(model.H, np.maximum(shares, _LEAST_SHARE))
    points = placed(distances(model.H))
    chosen = [relevant_terms(row, p, N_TERMS) for row in model.H]
    shown = np.unique(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)
    marker = _marker(model) if texts is not None else None
    topics = []
    for topic, terms in enumerate(chosen):
        weights = model.H[topic, terms].astype(np.float64)
        names = [model.vocabulary.term[int(j)].as_py() for j in terms]
        total = float(model.H[topic].sum(dtype=np.float64)) or 1.0
        topics.append(
            {
                "share": _number(shares[topic]),
                "x": _number(points[topic, 0]),
                "y": _number(points[topic, 1]),
                "terms": np.searchsorted(shown, terms).tolist(),
                "p": [_number(one) for one in weights / total],
                "documents": [
                    _document(one, texts, marker, dict(zip(names, weights.tolist(), strict=True)))
                    for one in told.typical[topic]
                ],
            }
        )
    return {
        "n_terms": N_TERMS,
        "with_texts": texts is not None,
        "terms": [model.vocabulary.term[int(j)].as_py() for j in shown],
        "p": [_number(one) for one in p[shown]],
        "topics": topics,
        "groups": [*map(_over_time, told.dates), *(_by_label(one) for one in told.labels if one.sums)],
    }


def _marker(model: TopicModel) -> Marker:
    from nmf_dask.reporting.excerpts import Marker

    return Marker(model.vectorizer_settings)


def _document(
    one: Document, texts: Mapping[int, str] | None, marker: Marker | None, weights: Mapping[str, float]
) -> dict[str, Any]:
    told = {"id": as_text(one.id), "weight": _number(one.weight, 3), "share": _number(one.share, 3)}
    if texts is None or marker is None:
        return told
    excerpt, marks = marker.excerpt(texts[one.row], weights)
    numbers = {name: number for number, name in enumerate(weights)}
    pieces: list[Any] = []
    end = 0
    for mark in marks:
        pieces += [excerpt[end : mark.start], [excerpt[mark.start : mark.stop], numbers[mark.term]]]
        end = mark.stop
    return {**told, "text": [piece for piece in (*pieces, excerpt[end:]) if piece]}


def _over_time(dates: ByDate) -> dict[str, Any]:
    shown = dates.shown()
    names = [shown.label(when) for when in shown.sums]
    return {"kind": "date", "name": shown.name, "names": names, "share": _within(list(shown.sums.values()))}


def _by_label(labels: ByLabel) -> dict[str, Any]:
    sums = labels.sums or {}
    names = sorted(sums, key=lambda name: (-sums[name].sum(), name))
    totals = [sums[name] for name in names[:N_LABELS]]
    if len(names) > N_LABELS:
        totals.append(np.sum([sums[name] for name in names[N_LABELS:]], axis=0))
        names = [*names[:N_LABELS], f"({len(names) - N_LABELS:,} others)"]
    return {"kind": "label", "name": labels.name, "names": names, "share": _within(totals)}


def _within(totals: Sequence[NDArray[np.float64]]) -> list[list[float | None]]:
    """The share of each topic (rows) within each group (columns); None in a group where no topic has any."""
    sums = np.array(totals).T
    every = sums.sum(axis=0)
    shares = np.divide(sums, every, out=np.full_like(sums, np.nan), where=every > 0)
    return [[_number(one, 3) for one in row] for row in shares]


def _number(value: float, digits: int = 6) -> float | None:
    """With so many digits, to keep the page small; None where it is no number."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
