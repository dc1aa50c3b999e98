"""Matrices that look like weighed text, and one fit of them on every kind of collection there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from nmf_dask.blocks import Blocks, LocalBlocks, Sizes, cut_strips
from nmf_dask.distributed import DaskTasks, TaskBlocks
from nmf_dask.kernels.matrices import Csr, aligned, from_scipy
from nmf_dask.tasks import SerialTasks

COLLECTIONS = ("local", "local, two threads", "serial tasks", "dask tasks")


def text_like(n: int, m: int, topics: int, seed: int, length: int = 40) -> sp.csr_array:
    """Rows of unit length: terms fall as in Zipf's law, and a document draws them from two planted topics."""
    rng = np.random.default_rng(seed)
    zipf = 1.0 / np.arange(1, m + 1)
    of_topic = zipf * rng.gamma(0.2, size=(topics, m))
    of_topic /= of_topic.sum(axis=1, keepdims=True)
    pairs = rng.integers(topics, size=(n, 2))
    shares = rng.random(n)[:, np.newaxis]
    terms = shares * of_topic[pairs[:, 0]] + (1 - shares) * of_topic[pairs[:, 1]]
    counts = sp.csr_array(np.array([rng.multinomial(length, p) for p in terms], dtype=np.float64))
    document_frequency = np.bincount(counts.indices, minlength=m)
    counts.data *= np.log((1 + n) / (1 + document_frequency))[counts.indices] + 1
    norms = np.sqrt(np.asarray(counts.power(2).sum(axis=1)))
    counts.data /= np.repeat(norms, np.diff(counts.indptr))
    return counts


@dataclass(frozen=True)
class BlockList:
    """Blocks by number, as a value that travels with tasks."""

    blocks: tuple[Csr, ...]

    def __call__(self, block: int) -> Csr:
        return self.blocks[block]


def split(X: sp.csr_array, block_rows: Sequence[int]) -> list[Csr]:
    """The rows of X, `block_rows[i]` of them in block i."""
    ends = np.cumsum(block_rows)
    assert ends[-1] == X.shape[0]
    return [from_scipy(X[end - rows : end]) for end, rows in zip(ends, block_rows, strict=True)]


def collection_of(
    kind: str, X: sp.csr_array, block_rows: Sequence[int], n_strips: int, W: np.ndarray, client: Any = None
) -> Blocks:
    """X in blocks and strips, with W (n, k) as its start, on one of COLLECTIONS."""
    n, k = W.shape
    sizes = Sizes(n, X.shape[1], X.nnz, k)
    strips = cut_strips(block_rows, n_strips)
    padded = np.pad(W, ((0, 0), (0, sizes.kp - k))).astype(np.float32)
    ends = np.cumsum([sum(run.stop - run.start for run in strip) for strip in strips])
    parts = [aligned(part) for part in np.split(padded, ends[:-1])]
    blocks = split(X, block_rows)
    if kind.startswith("local"):
        local = LocalBlocks.of(blocks, sizes, strips, threads=2 if "two" in kind else 1)
        local.W = parts
        return local
    tasks = DaskTasks(client, threads=1) if kind == "dask tasks" else SerialTasks()
    return TaskBlocks(tasks, BlockList(tuple(blocks)), sizes, strips, parts)


def weights_of(blocks: Blocks) -> np.ndarray:
    """W (n, k) of a collection."""
    parts = [blocks.fetch(handle) for handle in blocks.W]  # type: ignore[attr-defined]
    return np.concatenate(parts)[:, : blocks.sizes.n_components]
