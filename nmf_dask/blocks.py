"""What the algorithms ask of a collection of row blocks, and the collection that lives in this process.

The rows of a corpus are cut into strips: runs of rows of one or more staged blocks. Where the cuts are, and the
tree in which sums are added, follow from sizes alone, so that one thread, many threads and many workers give
the same bytes. A step goes over a share of every strip; its sums come back as one value.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.matrices import Csr, aligned, frozen, padded_width, zeros

FAN_IN = 4  # of sums; strips that are neighbours live on one worker, so that most of the tree moves nothing
NARROWED_ROWS = 512  # that are copied at a time: they stay in the nearest caches
T = TypeVar("T")


class Step(Protocol):
    """What is done to each strip: a picklable value."""

    def empty(self, n_features: int, kp: int) -> Any:
        """The sums of no rows."""

    def __call__(self, X: Csr, start: int, stop: int, W: NDArray[np.float32], shared: Any, sums: Any) -> None:
        """Visit rows `start` to `stop` of X: W holds those rows and may change, `sums` takes what they add up to."""


class Sizes(NamedTuple):
    """Everything that schedules depend on."""

    n_rows: int
    n_features: int
    nnz: int
    n_components: int

    @property
    def kp(self) -> int:
        """Width of W and of H transposed."""
        return padded_width(self.n_components)


class Run(NamedTuple):
    """Rows `start` to `stop` of block number `block`."""

    block: int
    start: int
    stop: int


class Share(NamedTuple):
    """Part number `part` of `of` equal parts of each run; blocks are shuffled, so any part is a random sample."""

    part: int = 0
    of: int = 1

    def rows(self, run: Run) -> tuple[int, int]:
        """Start and stop of the part, in rows of the run's block."""
        length = run.stop - run.start
        return run.start + length * self.part // self.of, run.start + length * (self.part + 1) // self.of


ALL = Share()


def cut_strips(block_rows: Sequence[int], n_strips: int) -> list[tuple[Run, ...]]:
    """Cut the rows of all blocks, in order, into `n_strips` strips of equal length (as many as there are rows)."""
    n_rows = sum(block_rows)
    n_strips = max(1, min(n_strips, n_rows))
    cuts = [n_rows * s // n_strips for s in range(n_strips + 1)]
    starts = np.concatenate(([0], np.cumsum(block_rows))).tolist()
    strips: list[tuple[Run, ...]] = []
    for low, high in itertools.pairwise(cuts):
        runs = (
            Run(block, max(low, first) - first, min(high, last) - first)
            for block, (first, last) in enumerate(itertools.pairwise(starts))
            if max(low, first) < min(high, last)
        )
        strips.append(tuple(runs))
    return strips


def visit_strip(
    step: Step, blocks: Callable[[int], Csr], strip: Sequence[Run], share: Share, W: NDArray[np.float32],
    shared: Any, sums: Any,
) -> None:  # fmt: skip
    """Do `step` on a share of a strip whose rows of W are `W`, in place; its sums go into `sums`."""
    offset = 0
    for run in strip:
        start, stop = share.rows(run)
        if stop > start:
            w = W[offset + start - run.start : offset + stop - run.start]
            step(blocks(run.block), start, stop, w, shared, sums)
        offset += run.stop - run.start


def add_all(sums: Sequence[Any]) -> Any:
    """Add sums in order, into the first."""
    for other in sums[1:]:
        sums[0].add(other)
    return sums[0]


def add_tree(sums: Sequence[T], add: Callable[[Sequence[T]], T]) -> T:
    """Add many sums, FAN_IN at a time: the same tree for every number of threads or workers."""
    level = list(sums)
    while len(level) > 1:
        level = [add(level[i : i + FAN_IN]) for i in range(0, len(level), FAN_IN)]
    return level[0]


def strip_rows(strip: Sequence[Run]) -> int:
    """Rows of a strip."""
    return sum(run.stop - run.start for run in strip)


class Blocks(ABC):
    """Strips of X with their rows of W. What `visit` and `apply` return is a handle until it is fetched."""

    sizes: Sizes
    strips: list[tuple[Run, ...]]

    @abstractmethod
    def visit(self, step: Step, shared: Any, share: Share = ALL) -> Any:
        """Do `step` on a share of every strip; the sums over all of them."""

    @abstractmethod
    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function` of fetched or unfetched values."""

    def outcome(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """As `apply`, for what a pass ends with: all that comes later goes on from it."""
        return self.apply(function, *arguments)

    @abstractmethod
    def fetch(self, handle: Any) -> Any:
        """The value behind a handle."""

    @abstractmethod
    def keep(self) -> None:
        """Remember W as it is, for `restore`."""

    @abstractmethod
    def restore(self) -> None:
        """Take W back to where it was at the last `keep`, and forget that."""

    @abstractmethod
    def forget(self) -> None:
        """Let go of what `keep` remembered: there is as much of it as of W."""

    @property
    def parallel(self) -> Callable[..., Any]:
        """A map for parts of what `apply` computes, with the threads there are for that."""
        return map


@dataclass
class LocalBlocks(Blocks):
    """Blocks in this process; handles are values.

    `blocks` gives one by its number, `W` holds one array a strip, (rows, kp); steps change it. `threads` is how many
    strips are visited at once.
    """

    blocks: Callable[[int], Csr]
    sizes: Sizes
    strips: list[tuple[Run, ...]]
    W: list[NDArray[np.float32]]
    threads: int = 1

    @classmethod
    def of(
        cls,
        blocks: Sequence[Csr] | Callable[[int], Csr],
        sizes: Sizes,
        strips: list[tuple[Run, ...]],
        threads: int = 1,
    ) -> LocalBlocks:
        """Blocks whose W is not started yet (zero)."""
        W = [zeros(strip_rows(strip), sizes.kp) for strip in strips]
        given = blocks if callable(blocks) else [frozen(X) for X in blocks].__getitem__
        return cls(given, sizes, strips, W, threads)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None
        self._kept: list[NDArray[np.float32]] = []

    def __enter__(self) -> LocalBlocks:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads, as the end of a `with` does."""
        if self._pool is not None:
            self._pool.shutdown()

    def visit(self, step: Step, shared: Any, share: Share = ALL) -> Any:
        def one(i: int) -> Any:
            sums = step.empty(self.sizes.n_features, self.sizes.kp)
            visit_strip(step, self.blocks, self.strips[i], share, self.W[i], shared, sums)
            return sums

        return add_tree(list(self._each(one, range(len(self.strips)))), add_all)

    def keep_topics(self, topics: Sequence[int]) -> None:
        """Keep these columns of W alone, in their order; they stay in its memory."""
        self.sizes = self.sizes._replace(n_components=len(topics))
        narrowed = partial(_narrowed, topics=topics, width=self.sizes.kp)
        self.W = list(self._each(narrowed, self.W))

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def fetch(self, handle: Any) -> Any:
        return handle

    def keep(self) -> None:
        self._kept = list(self._each(aligned, self.W))

    def restore(self) -> None:
        self.W = self._kept
        self.forget()

    def forget(self) -> None:
        self._kept = []

    @property
    def parallel(self) -> Callable[..., Any]:
        return self._shared_out if self._pool is not None else map

    def _shared_out(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """`map` over many small items, as many to each thread: to hand one over takes as long as some do."""
        items = list(items)
        share = -(-len(items) // self.threads)
        shares = [items[low : low + share] for low in range(0, len(items), share or 1)]
        return itertools.chain.from_iterable(self._each(lambda own: [function(item) for item in own], shares))

    @property
    def _each(self) -> Callable[..., Any]:
        """A map over large items, which threads take as they come to them."""
        return self._pool.map if self._pool is not None else map


def _narrowed(W: NDArray[np.float32], topics: Sequence[int], width: int) -> NDArray[np.float32]:
    """Some columns of W, and zeros up to `width`, in W's memory: to ask for more takes longer than to copy."""
    narrow = W.reshape(-1)[: len(W) * width].reshape(len(W), width)
    for low in range(0, len(W), NARROWED_ROWS):  # what is written lies at or before what was read
        kept = np.take(W[low : low + NARROWED_ROWS], topics, axis=1)
        narrow[low : low + NARROWED_ROWS, : len(topics)] = kept
        narrow[low : low + NARROWED_ROWS, len(topics) :] = 0
    return narrow
