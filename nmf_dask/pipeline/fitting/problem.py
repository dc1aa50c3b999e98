"""What is fitted: staged blocks, with what a fit of them depends on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nmf_dask.beginning import fit_of
from nmf_dask.blocks import LocalBlocks, Run, Sizes, cut_strips
from nmf_dask.config import ModelSettings
from nmf_dask.continuation import going_on
from nmf_dask.factorization import Fit
from nmf_dask.kernels.matrices import Csr
from nmf_dask.schedule import SAMPLE_NONZEROS, strip_count
from nmf_dask.store import Folder

Weights = NDArray[np.float32]


@dataclass(frozen=True)
class EarlierFit:
    """What a fit goes on from: the file of an `Earlier`, and one for the past, which is made in the beginning."""

    start: Folder
    past: Folder


@dataclass(frozen=True)
class Problem:
    """Staged blocks with what a fit of them depends on. Picklable."""

    blocks: Callable[[int], Csr]
    block_rows: tuple[int, ...]
    sizes: Sizes
    total: float  # the sum of X
    model: ModelSettings
    n_strips: int = 0  # as the sizes ask for, counted by the driver
    earlier: EarlierFit | None = None

    def __post_init__(self) -> None:
        if not self.n_strips:
            object.__setattr__(self, "n_strips", strip_count(self.sizes, self.model.beta_loss))

    @property
    def strips(self) -> list[tuple[Run, ...]]:
        """The rows of all blocks in strips."""
        return cut_strips(self.block_rows, self.n_strips)

    @property
    def mean(self) -> float:
        """The mean of X, zeros too."""
        return self.total / (self.sizes.n_rows * self.sizes.n_features)

    @property
    def fit(self) -> Fit:
        """The fit that the settings ask for."""
        scale = self.total / max(self.sizes.nnz, 1)
        if self.earlier is not None:
            return going_on(Fit.of(self.sizes, self.model, scale))
        return fit_of(self.sizes, self.model, scale)

    def local(self, threads: int, W: list[Weights] | None = None) -> LocalBlocks:
        """The blocks in the process that asks, read as they are visited; W is copied."""
        blocks = LocalBlocks.of(self.blocks, self.sizes, self.strips, threads)
        for own, given in zip(blocks.W, W or [], strict=False):
            own[:] = given
        return blocks

    def sample(self) -> Problem:
        """The first rows of every block, a random sample, as a problem of its own."""
        of = max(1, math.ceil(self.sizes.nnz / SAMPLE_NONZEROS))
        rows = tuple(max(1, n // of) if n else 0 for n in self.block_rows)
        share = sum(rows) / self.sizes.n_rows
        sizes = self.sizes._replace(n_rows=sum(rows), nnz=max(1, round(self.sizes.nnz * share)))
        return replace(self, block_rows=rows, sizes=sizes, total=self.total * share, n_strips=0)
