"""Choosing the number of topics: which topics come back when the corpus is perturbed, and what follows from that.

The idea is NMFk's (Alexandrov et al., Nature 500, 2013; Vangara et al., IEEE Access 9, 2021): the topics of many fits
of one k are clustered, one of each fit to a cluster, and cosine silhouettes tell how well the clusters hold together.
With as many topics as there are, each comes back in every fit; with more, the surplus ones are another thing each
time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST_TURNS = 20


class Clusters(NamedTuple):
    """Topics of R fits of k topics in k clusters, one of each fit in each."""

    cluster: Integers
    """(R, k): of topic t of fit r."""
    silhouette: Doubles
    """(k,): the mean of each cluster's topics, from -1 to 1."""

    @property
    def least(self) -> float:
        """Of the cluster that holds together worst."""
        return float(self.silhouette.min())

    @property
    def mean(self) -> float:
        """Of all clusters."""
        return float(self.silhouette.mean())


def clustered(similar: NDArray[np.floating]) -> Clusters:
    """Cluster topics by their cosines, `similar` (R, k, R, k) of all topics of R >= 2 fits with k >= 2 topics each.

    Topics are matched with those of the first fit, then, until nothing changes, with the means of the clusters that the
    other fits make (one to one, so that the sum of the cosines is largest).
    """
    from scipy.optimize import linear_sum_assignment

    n_fits, k = similar.shape[:2]
    cluster = np.zeros((n_fits, k), np.int64)
    cluster[0] = np.arange(k)
    for fit in range(1, n_fits):
        cluster[fit] = linear_sum_assignment(-similar[fit, :, 0, :])[1]
    for _ in range(MOST_TURNS):
        before = cluster.copy()
        for fit in range(n_fits):
            others = np.zeros((k, k))
            for other in range(n_fits):
                if other != fit:
                    others[:, cluster[other]] += similar[fit, :, other, :]
            cluster[fit] = linear_sum_assignment(-others)[1]
        if np.array_equal(cluster, before):
            break
    return Clusters(cluster, _silhouettes(similar, cluster))


def _silhouettes(similar: NDArray[np.floating], cluster: Integers) -> Doubles:
    """Rousseeuw's, of cosine distances, the mean of each cluster (k,)."""
    n_fits, k = cluster.shape
    total = np.zeros(k)
    for fit in range(n_fits):
        distance = np.zeros((k, k))  # of each topic of the fit, to the topics of each cluster
        for other in range(n_fits):
            distance[:, cluster[other]] += 1.0 - similar[fit, :, other, :]
        rows, own = np.arange(k), cluster[fit]
        inside = (distance[rows, own] - (1.0 - similar[fit, rows, fit, rows])) / (n_fits - 1)
        outside = distance / n_fits
        outside[rows, own] = np.inf
        nearest = outside.min(axis=1)
        largest = np.maximum(np.maximum(inside, nearest), 1e-12)
        total[own] += (nearest - inside) / largest
    return np.asarray(total / n_fits)


def unit_rows(H: NDArray[np.floating]) -> Floats:
    """H with rows of length 1; a topic without weights stays zero, and is like none."""
    norms = np.linalg.norm(H.astype(np.float64), axis=1, keepdims=True)
    return (H / np.where(norms > 0, norms, 1)).astype(np.float32)


@dataclass(frozen=True)
class Candidate:
    """What is known of one k."""

    n_components: int
    n_fits: int
    stability_least: float
    """The silhouette of the topic that comes back worst."""
    stability_mean: float
    loss: float
    """The mean of ‖X - WH‖ / ‖X‖, or of the Kullback-Leibler divergence over the sum of X, of the fitted rows."""
    held_out_loss: float
    """The mean, of rows that a fit did not see: half of a row's terms folded in, that measure of all others."""
    held_out_error: float
    """Of that mean: its standard error."""
    c_npmi: float
    c_v: float
    n_iter: float
    """Passes of a fit, in the mean."""
    seconds: float
    """Of all fits, added up."""


class Recommendation(NamedTuple):
    """A k, and why it."""

    n_components: int
    reason: str


def recommended(candidates: Sequence[Candidate], threshold: float) -> Recommendation:
    """A k of which every topic comes back: whose least silhouette reaches `threshold`.

    Of these, the largest of which the held-out loss is within one standard error of their lowest. Where no k is so
    stable: the smallest of which it is within one of the lowest of all (Breiman's rule).
    """
    stable = [one for one in candidates if one.stability_least >= threshold]
    of = stable or candidates
    known = [one for one in of if not math.isnan(one.held_out_loss)]
    if known:
        lowest = min(known, key=lambda one: one.held_out_loss)
        near = [one for one in known if one.held_out_loss <= lowest.held_out_loss + lowest.held_out_error]
    else:
        near = list(of) if stable else [max(of, key=lambda one: one.stability_mean)]
    chosen = (max if stable else min)(near, key=lambda one: one.n_components)
    return Recommendation(chosen.n_components, _reason(chosen, candidates, stable, threshold))


def _reason(
    chosen: Candidate, candidates: Sequence[Candidate], stable: Sequence[Candidate], threshold: float
) -> str:
    unknown = math.isnan(chosen.held_out_loss)
    loss = "" if unknown else f", at a held-out loss of {chosen.held_out_loss:.4f}"
    if not stable:
        why = "it is the smallest whose held-out loss is within one standard error of the lowest"
        if unknown:
            why = "no held-out loss is known, and its topics come back best in the mean"
        return (
            f"no k has topics that all come back (a silhouette of {threshold:g}; of this one the least has "
            f"{chosen.stability_least:.2f}); {why}{loss}"
        )
    reason = (
        f"its topics all come back (the least stable has a silhouette of {chosen.stability_least:.2f}, and "
        f"{threshold:g} is asked for), and "
    )
    reason += (
        "it is the largest of which that is so, no held-out loss being known"
        if unknown
        else f"no larger one of which that is so has as low a held-out loss{loss}"
    )
    beyond = [one for one in candidates if one.n_components > chosen.n_components]
    if not beyond:
        return f"{reason}; no larger one was tried, and it may not be the last: try some"
    following = min(beyond, key=lambda one: one.n_components)
    more = "" if math.isnan(following.held_out_loss) else f" and {following.held_out_loss:.4f}"
    return f"{reason}; {following.n_components} topics have {following.stability_least:.2f}{more}"


_WIDTH, _HEIGHT, _LEFT, _GAP = 640, 220, 70, 60
_ERRORS = {"held_out_loss": "held_out_error"}
_COLOURS = ("#1f6fb4", "#e08214")
Point = tuple[int, float, float]  # k, a value, its standard error


def drawn(candidates: Sequence[Candidate], chosen: int) -> str:
    """The candidates as an SVG picture: stability, held-out loss and coherence against k, the chosen one marked.

    Bars of the held-out loss are one standard error to either side.
    """
    panels = [
        ("stability (silhouette)", {"mean": "stability_mean", "least stable topic": "stability_least"}),
        ("held-out loss", {"held-out loss": "held_out_loss"}),
        ("coherence (NPMI)", {"NPMI": "c_npmi"}),
    ]
    height = len(panels) * (_HEIGHT + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="numbers of topics compared; {chosen} chosen">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
    ]
    for position, (title, lines) in enumerate(panels):
        series = {
            name: [
                (one.n_components, getattr(one, column), getattr(one, _ERRORS.get(column, ""), 0.0))
                for one in candidates
            ]
            for name, column in lines.items()
        }
        parts += _panel(title, series, chosen, position * (_HEIGHT + _GAP) + 30)
    return "\n".join([*parts, "</svg>", ""])


def _panel(title: str, series: dict[str, list[Point]], chosen: int, top: int) -> list[str]:
    known = {name: [p for p in points if not math.isnan(p[1])] for name, points in series.items()}
    ends = [y + side * error for points in known.values() for _, y, error in points for side in (-1, 1)]
    parts = [f'<text x="{_LEFT}" y="{top - 10}" font-weight="bold">{title}</text>']
    if not ends:
        return parts
    ks = [x for points in series.values() for x, _, _ in points]
    low, high = min(ends), max(ends)
    spread = high - low or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - min(ks)) / (max(ks) - min(ks) or 1)
        return _LEFT + across * (_WIDTH - _LEFT - 30), top + (high - y) / spread * _HEIGHT

    at, _ = place(chosen, low)
    parts.append(_line((at, top), (at, top + _HEIGHT), "#c00", ' stroke-dasharray="4"'))
    for y in sorted({low, high}):
        height = place(min(ks), y)[1]
        parts.append(f'<text x="{_LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{y:.4f}</text>')
    parts += [
        f'<text x="{place(x, low)[0]:.1f}" y="{top + _HEIGHT + 18}" text-anchor="middle">{x}</text>'
        for x in _apart(sorted(set(ks)), chosen, lambda x: place(x, low)[0])
    ]
    for number, (name, points) in enumerate(known.items()):
        colour = _COLOURS[number]
        if len(known) > 1:
            where = f'x="{_WIDTH - 30 - 150 * (len(known) - 1 - number)}" y="{top - 10}" text-anchor="end"'
            parts.append(f'<text {where} fill="{colour}" font-weight="bold">{name}</text>')
        parts += _curve(name, points, colour, place)
    return parts


def _apart(ks: Sequence[int], chosen: int, across: Callable[[int], float]) -> list[int]:
    """Numbers whose labels do not lie on one another, the chosen one among them."""
    told: list[int] = []
    for x in sorted(ks, key=lambda x: x != chosen):
        if all(abs(across(x) - across(one)) > 4 * (len(str(x)) + len(str(one))) + 4 for one in told):
            told.append(x)
    return told


def _curve(
    name: str, points: list[Point], colour: str, place: Callable[..., tuple[float, float]]
) -> list[str]:
    path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y, _ in points)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for x, y, error in points:
        parts += [_line(place(x, y - error), place(x, y + error), colour)] if error else []
        a, b = place(x, y)
        said = f"<title>{name}, {x} topics: {y:.4f}</title>"
        parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}">{said}</circle>')
    return parts


def _line(start: tuple[float, float], end: tuple[float, float], colour: str, more: str = "") -> str:
    (a, b), (c, d) = start, end
    return f'<line x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}" stroke="{colour}"{more}/>'
