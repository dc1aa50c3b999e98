"""Tasks that write and read the files of a fit in progress: W of a strip, H with what goes along, the past."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmf_dask.continuation import Earlier, arrays_of, sums_of
from nmf_dask.factorization import Outcome
from nmf_dask.kernels.matrices import aligned, read_only
from nmf_dask.kernels.objective import Factor, Sums
from nmf_dask.pipeline.fitting.problem import Weights
from nmf_dask.store import Folder, StageDamaged, read_arrays, write_arrays


def strip_file(folder: Folder, strip: int) -> Folder:
    """W of one strip, in the folder of a checkpoint."""
    return folder / f"W-{strip:05d}.arrow"


def outcome_file(folder: Folder) -> Folder:
    """H, in the folder of a checkpoint."""
    return folder / "H.arrow"


def save_weights(file: Folder, W: Weights) -> None:
    """A task: one strip's W into a file."""
    write_arrays(file, {"W": W})


def load_weights(file: Folder) -> Weights:
    """A task: one strip's W from a file, in memory of its own."""
    W: Weights = read_arrays(file)["W"]
    return W.copy()


def save_outcome(file: Folder, outcome: Outcome) -> None:
    """A task: H into a file, with what the next pass meets rows with."""
    factor = outcome.factor
    arrays: dict[str, NDArray[Any]] = {"HT": outcome.HT, "carried": factor.HT, "gram": factor.gram}
    if factor.reset is not None:
        arrays["reset"] = factor.reset
    write_arrays(file, arrays)


def load_outcome(file: Folder) -> Outcome:
    """A task: the outcome that `save_outcome` saved; its divergence is in the state's rows."""
    arrays = read_arrays(file)
    if "gram" not in arrays:
        raise StageDamaged(f"{file} was written by an earlier version")
    carried = read_only(aligned(arrays.pop("carried")), np.float32)
    arrays = {name: array.copy() for name, array in arrays.items()}
    return Outcome(arrays["HT"], Factor(carried, arrays["gram"], arrays.get("reset")), math.inf, ())


def load_earlier(file: Folder) -> Earlier:
    """A task: what an update goes on from."""
    return Earlier.from_arrays(read_arrays(file))


def save_past(file: Folder, past: Sums | None) -> None:
    """A task: what earlier documents say of H into a file; an empty one where they say nothing."""
    write_arrays(file, {} if past is None else arrays_of(past))


def load_past(file: Folder) -> Sums | None:
    """A task: what `save_past` saved."""
    arrays = read_arrays(file)
    return sums_of(arrays) if arrays else None


def check_past(file: Folder) -> None:
    """A task: InputDataError where the past of a checkpoint is missing or damaged."""
    load_past(file)
