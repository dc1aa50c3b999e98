"""Where a fit goes on from an earlier one: its H in the columns of now, and what its documents said of H.

The earlier W is gone. What stands for it are sums that bound the loss of those documents under another H
(`Objective.kept`); each pass adds them, with their weight, to the sums of the rows that it visits. This is online
dictionary learning with batches of many documents (Mairal, Bach, Ponce and Sapiro, JMLR 11, 2010), and for
Kullback-Leibler the online NMF of Lefèvre, Bach and Févotte (WASPAA 2011).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmf_dask.blocks import Blocks
from nmf_dask.factorization import Fit, FitState, FoldIn, Outcome, Visit
from nmf_dask.initialization import pad_H
from nmf_dask.kernels.objective import Frobenius, Objective, Sums
from nmf_dask.schedule import START_SWEEPS
from nmf_dask.vocabulary import Vocabulary

Floats = NDArray[np.float32]

# Of what the documents ask for. Multiplicative updates scale a weight by a few powers of ten in some passes, but
# bring none back from nothing.
LEAST_SHARE = 1e-3
SOLVING_SWEEPS = 20  # of H alone, by the sums of one visit: they cost no data


@dataclass(frozen=True)
class Earlier:
    """An earlier H in the columns of now, before any document was looked at. Picklable.

    `HT` (m, kp); `past` the kept sums in the same columns, weighted, or None; `new` (m,) bool: the columns that the
    earlier H has not; `ratio` (m,): how often the earlier documents held the term, a document, over how often those of
    now do (columns that are not new: 0).
    """

    HT: Floats
    past: Sums | None
    new: NDArray[np.bool_]
    ratio: Floats

    def __sizeof__(self) -> int:
        """With what it holds: a worker goes by it when it decides what to keep in memory."""
        return 2 * self.HT.nbytes

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """As plain arrays, for a file."""
        arrays: dict[str, NDArray[Any]] = {
            "HT": self.HT,
            "new": self.new.astype(np.uint8),
            "ratio": self.ratio,
        }
        return arrays if self.past is None else arrays | arrays_of(self.past)

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Earlier:
        """Read what `to_arrays` gave."""
        past = sums_of(arrays) if "XtW" in arrays else None
        return cls(arrays["HT"], past, arrays["new"].astype(np.bool_), arrays["ratio"])


def arrays_of(sums: Sums) -> dict[str, NDArray[Any]]:
    """Sums as plain arrays, for a file."""
    return {"XtW": sums.XtW, "WtW": sums.WtW, "numbers": np.array([sums.loss, sums.n_rows])}


def sums_of(arrays: dict[str, NDArray[Any]]) -> Sums:
    """Read what `arrays_of` gave."""
    return Sums(arrays["XtW"], arrays["WtW"], *arrays["numbers"].tolist())


class Frequencies(NamedTuple):
    """Documents that hold each column's terms: among the earlier ones, and among those of now."""

    before: NDArray[np.int64]
    n_before: int
    now: NDArray[np.int64]
    n_now: int

    def ratio(self) -> Floats:
        """Of the shares of documents; 1 where no document of now holds a term that is a column."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = (self.before / max(self.n_before, 1)) / (self.now / max(self.n_now, 1))
        return np.where(self.now > 0, ratio, 1).astype(np.float32)


def carried_over(
    H: Floats,
    columns: Vocabulary,
    past: Sums | None,
    vocabulary: Vocabulary,
    frequencies: Frequencies,
    square: bool,
) -> Earlier:
    """`H` (k, m'), whose columns are `columns`, in the columns of `vocabulary`; its topics keep their numbers.

    `past` holds the kept sums (m' by k), weighted already; `square` says whether their WtW is (Frobenius). A column
    whose idf changed is scaled: X is, by the ratio of idf, and so are H and XᵀW. That is not all: a document of norm 1
    has it under the idf of now as well, so its other weights change a little too, of which sums know nothing. A column
    that is new is the mean of its topic's weights until documents are looked at.
    """
    place, known = places(columns, vocabulary)
    old = pad_H(H)
    scale = (vocabulary.idf[known] / columns.idf[place[known]]).astype(np.float32)[:, np.newaxis]
    HT = np.tile(old.mean(axis=0), (len(vocabulary), 1))
    HT[known] = old[place[known]] * scale
    if past is not None:
        XtW = np.zeros_like(HT)
        XtW[known, : past.XtW.shape[1]] = past.XtW[place[known]] * scale
        past = replace(past, XtW=XtW, WtW=_padded(past.WtW, HT.shape[1], square))
    return Earlier(HT, past, ~known, np.where(known, 0, frequencies.ratio()).astype(np.float32))


def places(columns: Vocabulary, vocabulary: Vocabulary) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each column of `vocabulary` its place among `columns` (where it is none: any), and whether it is there."""
    found = columns.columns_of(vocabulary.bucket)
    return np.maximum(found, 0), found >= 0


def _padded(WtW: NDArray[np.float64], kp: int, square: bool) -> NDArray[np.float64]:
    return np.pad(WtW, [(0, kp - len(WtW) if square else 0), (0, kp - WtW.shape[1])])


def going_on(fit: Fit) -> Fit:
    """The fit that goes on from an earlier one: whole passes alone. Many rounds are for a start that is far off."""
    return replace(fit, first=())


def go_on(blocks: Blocks, fit: Fit, earlier: Any) -> FitState:
    """Start W, and return the state before the first pass of `going_on`; `earlier` is a handle of an `Earlier`.

    W is folded in under the earlier H. Least squares of the documents then give weights to columns that are new, and
    a little to those from which multiplicative updates would not come back.
    """
    model = fit.model
    fold = FoldIn(fit.objective, model.n_components, START_SWEEPS[model.method])
    blocks.fetch(blocks.visit(fold, blocks.apply(Met(fit.objective), earlier)))
    sums = blocks.visit(Visit(Frobenius(), 0), blocks.apply(Met(Frobenius()), earlier))
    begun = blocks.apply(Begin(fit.objective, model.method == "mu"), earlier, sums)
    state = fit.begin(np.empty((0, 0), np.float32))
    return replace(state, outcome=blocks.apply(_outcome, begun), past=blocks.apply(_past, begun))


@dataclass(frozen=True)
class Met:
    """What rows are met with, under an objective."""

    objective: Objective

    def __call__(self, earlier: Earlier) -> Any:
        return self.objective.factor(earlier.HT)


@dataclass(frozen=True)
class Begin:
    """The earlier H with weights in its new columns, and the past with what it would have said of them."""

    objective: Objective
    revives: bool  # whether all columns get a little of what the documents ask for

    def __call__(self, earlier: Earlier, sums: Sums) -> tuple[Outcome, Sums | None]:
        strength = np.diag(sums.WtW)
        held_by_none = strength <= 1e-12 * strength.max()  # topics of no document, and the padding
        S, B = sums.WtW.copy(), sums.XtW.copy()
        S[held_by_none], S[:, held_by_none], B[:, held_by_none] = 0, 0, 0
        near = (B / np.maximum(S.sum(axis=1), np.finfo(np.float32).tiny)).astype(np.float32)
        asked = (
            Frobenius(solver="cd")
            .update(Frobenius().factor(near), replace(sums, XtW=B, WtW=S), SOLVING_SWEEPS)
            .HT
        )
        least = LEAST_SHARE * np.maximum(asked, LEAST_SHARE * asked.mean(axis=1, keepdims=True))
        least[:, held_by_none] = 0
        HT = np.maximum(earlier.HT, least) if self.revives else earlier.HT.copy()
        held = earlier.new & asked.any(axis=1)
        HT[held] = np.maximum(asked[held], least[held])
        past = earlier.past
        if past is not None:
            XtW = past.XtW.copy()
            as_often = HT[earlier.new] * earlier.ratio[earlier.new, np.newaxis]
            XtW[earlier.new] = self.objective.resting(as_often, past.WtW)
            past = replace(past, XtW=XtW)
        return Outcome(HT, self.objective.factor(HT), np.inf, ()), past


def _outcome(begun: tuple[Outcome, Sums | None]) -> Outcome:
    return begun[0]


def _past(begun: tuple[Outcome, Sums | None]) -> Sums | None:
    return begun[1]
