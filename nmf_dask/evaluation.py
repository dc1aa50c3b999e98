"""How good topics are: coherence from counts, diversity, exclusivity, agreement of runs and with labels, held-out loss.

Coherence is that of Röder, Both and Hinneburg, "Exploring the Space of Topic Coherence Measures" (WSDM 2015), as
gensim's CoherenceModel computes it: the same segments, windows and logarithms. What is counted over the corpus are sums
(`Evidence`) that parts of it add up to; everything else is arithmetic on them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nmf_dask.config import VectorizerSettings
from nmf_dask.errors import InputDataError
from nmf_dask.folding import Folding
from nmf_dask.kernels.matrices import read_only
from nmf_dask.text import Counts, Occurrences, count_texts, occurrences
from nmf_dask.text.counts import narrowed
from nmf_dask.vocabulary import weigh

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

DOCUMENT = 2**31 - 1
"""A window that holds any document."""
WINDOWS = {"c_npmi": 10, "c_uci": 10, "c_v": 110, "u_mass": DOCUMENT}
"""Measures of coherence, with the windows, in words, that gensim gives them."""
EPSILON = 1e-12
MOST_LABELS = 2000


@dataclass(frozen=True, eq=False)
class TopTerms:
    """The top terms of some topics, those of the largest weight first."""

    names: tuple[str, ...]
    """Of all topics, sorted, each once."""
    table: NDArray[np.int32]
    """(k, n): numbers of names; -1 after the last of a topic that has fewer."""

    @classmethod
    def of(cls, topics: Sequence[Sequence[str]]) -> TopTerms:
        """From the terms of each topic."""
        names = tuple(sorted({term for topic in topics for term in topic}))
        number = {name: i for i, name in enumerate(names)}
        table = np.full((len(topics), max(map(len, topics), default=0)), -1, np.int32)
        for row, topic in zip(table, topics, strict=True):
            row[: len(topic)] = [number[term] for term in topic]
        return cls(names, table)

    @property
    def places(self) -> tuple[Integers, Integers]:
        """(starts, places): term t stands at `places[starts[t]:starts[t + 1]]` of the flat table."""
        flat = self.table.reshape(-1)
        order = np.argsort(flat, kind="stable")
        order = order[np.searchsorted(flat[order], 0) :]
        starts = np.searchsorted(flat[order], np.arange(len(self.names) + 1))
        return starts.astype(np.int64), order.astype(np.int64)


@dataclass
class Cooccurrence:
    """Of windows of one size: how many there are, those with a term (terms,), those with two of a topic (k, n, n)."""

    n_windows: int
    single: Integers
    pairs: Integers

    @classmethod
    def of(cls, found: Occurrences, top: TopTerms, window: int) -> Cooccurrence:
        """Count documents; `window` in words."""
        from nmf_dask.kernels.cooccurrence import count_windows

        k, n = top.table.shape
        single, pairs = np.zeros(len(top.names), np.int64), np.zeros((k, n, n), np.int64)
        n_windows = count_windows(
            read_only(found.indptr, np.int64), read_only(found.terms, np.int32),
            read_only(found.positions, np.int32), read_only(found.lengths, np.int64), window,
            read_only(top.table, np.int32), *(read_only(one, np.int64) for one in top.places), single, pairs,
        )  # fmt: skip
        return cls(int(n_windows), single, pairs + pairs.transpose(0, 2, 1))

    def add(self, other: Cooccurrence) -> None:
        """Add the windows of other documents."""
        self.n_windows += other.n_windows
        self.single += other.single
        self.pairs += other.pairs


class Loss(NamedTuple):
    """Of documents: their number, the divergence, and the size that it is a share of (‖X‖²/2, or the sum of X)."""

    n_documents: int
    divergence: float
    size: float


@dataclass
class Evidence:
    """What a part of a corpus says of topics; the evidence of two parts adds up."""

    windows: dict[int, Cooccurrence]
    n_documents: int = 0
    n_null: int = 0
    n_empty: int = 0
    """Documents that hold no known term; 0 where nothing was weighed."""
    held_out: dict[tuple[int, int], Loss] = field(default_factory=dict)
    """By the numbers of partition and slice: floats are summed in that order, whoever comes first."""
    labels: dict[str, Integers] = field(default_factory=dict)
    """Documents by label and by the topic of their largest weight (k,)."""
    n_unlabelled: int = 0

    def add(self, other: Evidence) -> None:
        """Add the evidence of another part; InputDataError where there are more than `MOST_LABELS` labels."""
        for window, one in other.windows.items():
            if window in self.windows:
                self.windows[window].add(one)
            else:
                self.windows[window] = one
        for name in ("n_documents", "n_null", "n_empty", "n_unlabelled"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.held_out |= other.held_out
        add_labels(self.labels, other.labels)

    def loss(self) -> Loss:
        """The held-out loss of all parts."""
        parts = [self.held_out[number] for number in sorted(self.held_out)]
        return Loss(
            sum(one.n_documents for one in parts),
            math.fsum(one.divergence for one in parts),
            math.fsum(one.size for one in parts),
        )


def add_labels(total: dict[str, Integers], more: Mapping[str, Integers]) -> None:
    """Add counts by label to others, in place; InputDataError where there are too many labels."""
    for label, row in more.items():
        total[label] = total[label] + row if label in total else row
    _check_number(total)


def _check_number(names: Collection[str]) -> None:
    """Raise InputDataError where there are too many labels."""
    if len(names) > MOST_LABELS:
        shown = ", ".join(sorted(names)[:3])
        raise InputDataError(
            f"the label column has more than {MOST_LABELS:,} different values ({shown}, …): labels are few. Choose "
            "another column by --label-column"
        )


# What is looked at in a slice of the corpus.


def coherence_windows(window: int | None) -> dict[str, int]:
    """The window of each measure of coherence; `window`: of those that slide, in place of gensim's."""
    return {name: size if size == DOCUMENT else window or size for name, size in WINDOWS.items()}


def counted(
    texts: Any, top: TopTerms, settings: VectorizerSettings, sizes: Iterable[int]
) -> dict[int, Cooccurrence]:
    """Co-occurrence of the top terms in an Arrow array of documents, by size of window."""
    found = occurrences(texts, top.names, settings)
    return {size: Cooccurrence.of(found, top, size) for size in sorted(set(sizes))}


def halves(counts: Counts) -> tuple[Counts, Counts]:
    """Two halves of each document's occurrences: in the order of the terms' first appearance, every second one.

    The occurrences of a term follow each other: one that occurs twice is in both halves. So the split depends on
    nothing but the document, and the halves differ by one occurrence at most.
    """
    ends = np.cumsum(counts.counts, dtype=np.int64)
    lengths = np.diff(counts.indptr)
    first = np.concatenate(([0], ends))[counts.indptr[:-1]]
    begins = ends - counts.counts - np.repeat(first, lengths)
    second = ((begins + counts.counts) // 2 - begins // 2).astype(np.int32)
    return _kept(counts, counts.counts - second), _kept(counts, second)


def _kept(counts: Counts, numbers: NDArray[np.int32]) -> Counts:
    """The same documents with other counts, which may be zero."""
    some = numbers > 0
    indptr = np.concatenate(([0], np.cumsum(some)))[counts.indptr]
    return Counts(
        indptr.astype(np.int64),
        counts.indices[some],
        narrowed(numbers[some]),
        counts.buckets,
        counts.terms,
        counts.n_invalid,
    )


def completed(counts: Counts, folding: Folding) -> Loss:
    """Document completion: W of the one half of each document, the loss of the other half under that W and H.

    Of documents with a known term in both halves; others say nothing.
    """
    first, second = (weigh(half, folding.vocabulary, folding.vectorizer) for half in halves(counts))
    both = (np.diff(first.indptr) > 0) & (np.diff(second.indptr) > 0)
    W = folding.fixed.weights(first)
    return Loss(int(both.sum()), *folding.fixed.loss(second, W, both))


def by_label(
    labels: Any, W: NDArray[np.float32], has_terms: NDArray[np.bool_]
) -> tuple[dict[str, Integers], int]:
    """Documents by label and topic; the number of those that lack one or the other.

    `labels` is a chunked array of strings with one dictionary.
    """
    k = W.shape[1]
    has_topic = has_terms & (W > 0).any(axis=1)
    encoded = labels.combine_chunks()
    codes = encoded.indices.fill_null(-1).to_numpy()
    used = has_topic & (codes >= 0)
    # The dictionary may be that of a partition with a label a document: what is counted goes by those of the slice.
    there, number = np.unique(codes[used], return_inverse=True)
    names = encoded.dictionary.take(pa.array(there)).to_pylist()
    _check_number(names)
    flat = np.bincount(number * k + W[used].argmax(axis=1), minlength=len(names) * k)
    rows = flat.reshape(len(names), k).astype(np.int64)
    found = dict(zip(names, rows, strict=True))
    return found, int(np.count_nonzero(~used))


def evidence_of(
    texts: Any, labels: Any | None, top: TopTerms, sizes: Iterable[int], vectorizer: VectorizerSettings,
    folding: Folding | None, held_out: bool, part: tuple[int, int],
) -> Evidence:  # fmt: skip
    """What a slice of documents says: co-occurrence, and where there is a `folding` held-out loss and labels."""
    told = Evidence(counted(texts, top, vectorizer, sizes), len(texts), texts.null_count)
    if folding is None:
        return told
    counts = count_texts(texts, vectorizer)
    if held_out:
        told.held_out[part] = completed(counts, folding)
    X = weigh(counts, folding.vocabulary, vectorizer)
    has_terms = np.diff(X.indptr) > 0
    told.n_empty = int(np.count_nonzero(~has_terms))
    if labels is not None:
        W = folding.fixed.weights(X)[:, : folding.n_components]
        told.labels, told.n_unlabelled = by_label(labels, W, has_terms)
    return told


# Arithmetic on what was counted.


def coherence(
    top: TopTerms, windows: Mapping[int, Cooccurrence], of: Mapping[str, int]
) -> dict[str, Doubles]:
    """Each measure of `of` (name to size of window) for each topic, (k,).

    A term that the corpus does not hold is left out, as by gensim, whose dictionary lacks it; a topic with fewer than
    two others is NaN.
    """
    measured = {name: np.full(len(top.table), np.nan) for name in of}
    for name, size in of.items():
        one = windows[size]
        for topic, row in enumerate(top.table):
            ranks = np.flatnonzero((row >= 0) & (one.single[row] > 0))
            if len(ranks) < 2:
                continue
            joint = one.pairs[topic][np.ix_(ranks, ranks)] / one.n_windows
            alone = one.single[row[ranks]] / one.n_windows
            np.fill_diagonal(joint, alone)
            with np.errstate(divide="ignore", invalid="ignore"):
                measured[name][topic] = _MEASURES[name](joint, alone)
    return measured


def _pmi(joint: Doubles, alone: Doubles) -> Doubles:
    pmi: Doubles = np.log((joint + EPSILON) / (alone[:, np.newaxis] * alone))
    return pmi


def _npmi(joint: Doubles, alone: Doubles) -> Doubles:
    npmi: Doubles = _pmi(joint, alone) / -np.log(joint + EPSILON)
    return npmi


def _mean_of_pairs(matrix: Doubles) -> float:
    return float(matrix[~np.eye(len(matrix), dtype=bool)].mean())


def c_uci(joint: Doubles, alone: Doubles) -> float:
    """The mean pointwise mutual information of two terms. `joint` (n, n) and `alone` (n,) are shares of windows."""
    return _mean_of_pairs(_pmi(joint, alone))


def c_npmi(joint: Doubles, alone: Doubles) -> float:
    """The mean of what `c_uci` takes the mean of, normalized to -1 to 1."""
    return _mean_of_pairs(_npmi(joint, alone))


def c_v(joint: Doubles, alone: Doubles) -> float:
    """The mean cosine of each term's vector of NPMI with all terms, itself too, and the sum of these vectors."""
    vectors = _npmi(joint, alone)
    total = vectors.sum(axis=0)
    return float((vectors @ total / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(total))).mean())


def u_mass(joint: Doubles, alone: Doubles) -> float:
    """The mean log conditional probability of a term given one of a higher rank."""
    conditional = np.log((joint + EPSILON) / alone)
    return float(conditional[np.tril_indices(len(alone), -1)].mean())


_MEASURES = {"c_npmi": c_npmi, "c_uci": c_uci, "c_v": c_v, "u_mass": u_mass}


def diversity(top: TopTerms) -> tuple[float, Doubles]:
    """Share of different terms among the top terms of all topics (Dieng, Ruiz and Blei, TACL 2020); NaN of none.

    And of each topic (k,) the share of its terms that no other topic has among its own.
    """
    given = top.table >= 0
    uses = np.bincount(top.table[given], minlength=len(top.names))
    own = np.where(given, uses[top.table] == 1, False).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return len(top.names) / given.sum() if given.any() else math.nan, own / given.sum(axis=1)


def exclusivity(H: NDArray[np.float32], n: int) -> Doubles:
    """Of each topic (k,): the mean, over its top terms, of its share of the term's probability in all topics.

    The probability of a term in a topic is its weight over the sum of the topic's (MALLET's measure of this name, which
    is Bischof and Airoldi's, ICML 2012, without a trade with frequency). NaN for a topic without weights.
    """
    from nmf_dask.store import top_features

    sums = H.sum(axis=1, dtype=np.float64)
    scale = 1 / np.where(sums > 0, sums, 1)
    top = top_features(H, n)
    result = np.full(len(H), np.nan)
    for topic, columns in enumerate(top):
        columns = columns[H[topic, columns] > 0]
        if len(columns):
            shares = H[:, columns] * scale[:, np.newaxis]
            result[topic] = float((shares[topic] / shares.sum(axis=0)).mean())
    return result


class Matched(NamedTuple):
    """Topics of one run beside those of another: the other's number (-1: none is left), cosine, shared top terms."""

    other: Integers  # (k,)
    cosine: Doubles  # (k,)
    jaccard: Doubles  # (k,)


def cosines(A: NDArray[Any], B: NDArray[Any]) -> Doubles:
    """Cosines (a, b) of the rows of A (a, m) and B (b, m); a row of zeros has none but zeros."""
    with np.errstate(invalid="ignore", divide="ignore"):
        a = A / np.linalg.norm(A.astype(np.float64), axis=1, keepdims=True)
        b = B / np.linalg.norm(B.astype(np.float64), axis=1, keepdims=True)
    product: Doubles = np.nan_to_num(a) @ np.nan_to_num(b).T
    return product


def matched(
    ours: tuple[NDArray[np.float32], Sequence[str]], theirs: tuple[NDArray[np.float32], Sequence[str]], n: int
) -> Matched:
    """Match topics one to one so that the sum of their cosines is largest; each side is H and its columns' terms.

    Terms of one side alone have no weight on the other. `n` top terms are compared by Jaccard's index.
    """
    from scipy.optimize import linear_sum_assignment

    (H, terms), (other, other_terms) = ours, theirs
    number = {term: i for i, term in enumerate(terms)}
    columns = [(number[term], j) for j, term in enumerate(other_terms) if term in number]
    aligned = np.zeros((len(other), H.shape[1] + 1), np.float64)
    ours_at, theirs_at = np.array(columns, np.int64).reshape(-1, 2).T
    aligned[:, ours_at] = other[:, theirs_at]
    rest = (other.astype(np.float64) ** 2).sum(axis=1) - (aligned**2).sum(axis=1)
    aligned[:, -1] = np.sqrt(np.maximum(rest, 0))  # for its norm: H has nothing there
    similar = cosines(np.pad(H.astype(np.float64), ((0, 0), (0, 1))), aligned)
    rows, chosen = linear_sum_assignment(-similar)
    found = Matched(np.full(len(H), -1), np.full(len(H), np.nan), np.full(len(H), np.nan))
    tops, other_tops = _top_names(H, terms, n), _top_names(other, other_terms, n)
    for row, column in zip(rows.tolist(), chosen.tolist(), strict=True):
        found.other[row], found.cosine[row] = column, similar[row, column]
        union = tops[row] | other_tops[column]
        found.jaccard[row] = len(tops[row] & other_tops[column]) / len(union) if union else math.nan
    return found


def _top_names(H: NDArray[np.float32], terms: Sequence[str], n: int) -> list[set[str]]:
    from nmf_dask.store import top_features

    return [{terms[j] for j in row.tolist() if H[t, j] > 0} for t, row in enumerate(top_features(H, n))]


def confusion(labels: Mapping[str, Integers], k: int) -> tuple[list[str], Integers]:
    """Labels in order, and documents by topic and label (k, labels)."""
    names = sorted(labels)
    table = np.zeros((k, len(names)), np.int64)
    for column, name in enumerate(names):
        table[:, column] = labels[name]
    return names, table


def purity(table: Integers) -> float:
    """Share of documents with the most frequent label of their topic, from counts (k, labels); NaN of none."""
    total = int(table.sum())
    return float(table.max(axis=1).sum() / total) if total else math.nan


def normalized_mutual_information(table: Integers) -> float:
    """Of topics and labels, over the mean of their entropies: scikit-learn's `normalized_mutual_info_score`.

    From counts (k, labels). 1 where both have one class; NaN of no document.
    """
    total = table.sum()
    if not total:
        return math.nan
    joint = table / total
    topics, labels = joint.sum(axis=1), joint.sum(axis=0)
    entropies = _entropy(topics) + _entropy(labels)
    if entropies == 0:
        return 1.0
    information = entropies - _entropy(joint.reshape(-1))
    return max(0.0, float(2 * information / entropies))


def _entropy(shares: Doubles) -> float:
    some = shares[shares > 0]
    return float(-(some * np.log(some)).sum())


def mean(values: Doubles) -> float:
    """The mean of those that are numbers; NaN of none."""
    some = values[~np.isnan(values)]
    return float(some.mean()) if len(some) else math.nan
