"""Topics as distributions of terms: which terms to show of each, how far apart they are, which are nearly the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

LAMBDAS = tuple(step / 10 for step in range(11))
"""Where the page's slider stops. The terms of each stop are chosen here, so the page holds all that it shows."""
NEAR_DUPLICATE_FROM = 0.8
"""Cosine of two topics' weights from which one reads them as the same topic."""
_COLUMNS = 1 << 13  # of H at a time


def term_probabilities(H: NDArray[np.float32], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """p(w), (m,): how much of the corpus, as the model rebuilds it, is of each term: Σ_t share_t · p(w|t).

    `shares` (k,) are the topics' shares of the corpus; p(w|t) is the row of H over its sum.
    """
    sums = H.sum(axis=1, dtype=np.float64)
    per_weight = np.divide(shares, sums, out=np.zeros_like(sums), where=sums > 0)
    return np.asarray(per_weight @ H)


def relevance(p_in_topic: NDArray[np.float64], p: NDArray[np.float64], lambda_: float) -> NDArray[np.float64]:
    """λ log p(w|t) + (1 − λ) log (p(w|t) / p(w)): Sievert and Shirley, "LDAvis" (2014), equation 1.

    Of probabilities above zero, of the same shape.
    """
    return np.asarray(np.log(p_in_topic) - (1.0 - lambda_) * np.log(p))


def relevant_terms(weights: NDArray[np.float32], p: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Features that are among the `n` most relevant ones of a topic at any of LAMBDAS, ascending.

    `weights` (m,) is the topic's row of H, `p` (m,) is `term_probabilities`. Of equal ones those of lower number.
    """
    there = np.flatnonzero((weights > 0) & (p > 0))
    if not len(there):
        return there
    inside = weights[there].astype(np.float64)
    inside /= inside.sum()
    chosen: set[int] = set()
    for lambda_ in LAMBDAS:
        value = relevance(inside, p[there], lambda_)
        least = np.partition(value, -n)[-n] if n < len(value) else -np.inf
        enough = np.flatnonzero(value >= least)
        chosen.update(there[enough[np.argsort(-value[enough], kind="stable")[:n]]].tolist())
    return np.array(sorted(chosen), np.int64)


def distances(H: NDArray[np.float32]) -> NDArray[np.float64]:
    """Hellinger distances of the topics' distributions of terms, (k, k), from 0 to 1.

    √(1 − Σ_w √(p(w|t) p(w|u))). It behaves as LDAvis's Jensen-Shannon distance does (each bounds the other), and is one
    product of matrices, where that takes k²m logarithms. NaN for a topic without weights.
    """
    sums = H.sum(axis=1, dtype=np.float64)
    overlap = np.zeros((len(H), len(H)))
    for columns in _slices(H):
        root = np.sqrt(columns)
        overlap += root @ root.T
    with np.errstate(invalid="ignore", divide="ignore"):
        overlap /= np.sqrt(np.outer(sums, sums))
    found = np.sqrt(np.maximum(0.0, 1.0 - overlap))
    living = sums > 0
    found[np.diag_indices_from(found)] = np.where(living, 0.0, np.nan)
    return np.asarray(found)


def placed(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (k, 2) with distances as near those of `distance` (k, k) as least squares bring them. NaN where it is.

    SMACOF (de Leeuw, 1977), from where classical scaling begins. Topics are about equally far from each other, and
    classical scaling, which LDAvis draws, puts those on one spot that differ in neither of its two directions. Of 200
    topics of 48,000 abstracts, 16 % of each one's three nearest were its nearest in the plane, where that had 9 %.
    """
    from sklearn.manifold import smacof

    living = np.flatnonzero(~np.isnan(np.diag(distance)))
    points = np.full((len(distance), 2), np.nan)
    if len(living):
        among = distance[np.ix_(living, living)]
        first = _classical(among)
        points[living] = smacof(among, init=first, n_init=1)[0] if len(living) > 2 else first
    return points


def _classical(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Classical scaling (Torgerson, 1952); of an axis's mirror images, the one whose farthest point is positive."""
    squares = distance**2
    centred = squares - squares.mean(axis=0) - squares.mean(axis=1)[:, np.newaxis] + squares.mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    axes = vectors[:, ::-1][:, :2] * np.sqrt(np.maximum(values[::-1][:2], 0.0))
    far = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[np.newaxis], axis=0)
    points = np.zeros((len(distance), 2))
    points[:, : axes.shape[1]] = axes * np.where(far < 0, -1.0, 1.0)
    return points


def near_duplicates(H: NDArray[np.float32]) -> list[tuple[int, int, float]]:
    """Pairs of topics whose weights have a cosine of NEAR_DUPLICATE_FROM or more, the most alike first."""
    products = np.zeros((len(H), len(H)))
    for columns in _slices(H):
        products += columns @ columns.T
    sizes = np.sqrt(np.diag(products))
    cosine = np.divide(
        products, np.outer(sizes, sizes), out=np.zeros_like(products), where=np.outer(sizes, sizes) > 0
    )
    pairs = np.argwhere(np.triu(cosine >= NEAR_DUPLICATE_FROM, 1))
    return sorted(
        ((int(t), int(u), float(min(cosine[t, u], 1.0))) for t, u in pairs), key=lambda pair: -pair[2]
    )


def _slices(H: NDArray[np.float32]) -> Iterator[NDArray[np.float64]]:
    for start in range(0, H.shape[1], _COLUMNS):
        yield H[:, start : start + _COLUMNS].astype(np.float64)
