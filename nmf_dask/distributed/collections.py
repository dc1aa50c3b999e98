"""Collections of Dask by their partitions: what estimators do with each, on the current client or on none.

It hands work to Dask, as the package does, and does not know what the work is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed
from distributed import Client
from numpy.typing import NDArray

from nmf_dask.blocks import ALL, Share, Step, add_tree, strip_rows, visit_strip
from nmf_dask.distributed import DaskTasks, TaskBlocks, add_copies
from nmf_dask.kernels.matrices import aligned, zeros
from nmf_dask.tasks import Batch, Ref


def current_tasks() -> DaskTasks | None:
    """Tasks on the client that is current; None where there is none."""
    try:
        client = Client.current()
    except ValueError:
        return None
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return DaskTasks(client, min((int(worker["nthreads"]) for worker in workers), default=1))


def scratch_folder() -> str | None:
    """Where Dask's configuration puts temporary files; None: where the system does."""
    folder: str | None = dask.config.get("temporary-directory", None)
    return folder


def is_frame(X: Any) -> bool:
    """Whether X is a Dask DataFrame; a Delayed has whatever attribute is asked for."""
    return not isinstance(X, Delayed) and hasattr(X, "columns") and X.ndim == 2


def row_chunks(X: Any) -> Any:
    """A collection as a Dask array (n, m) of whole rows: a Dask DataFrame too. ValueError for what is no matrix."""
    if is_frame(X):
        X = X.to_dask_array()
    if not isinstance(X, da.Array) or X.ndim != 2:
        told = f" of {X.ndim} dimensions" if isinstance(X, da.Array) else ""
        raise ValueError(
            f"X is a Dask {type(X).__name__}{told}; give a Dask array of 2 dimensions, or a Dask DataFrame"
        )
    if np.isnan(X.shape[1]):
        raise ValueError("the number of columns of X is not known; call compute_chunk_sizes() first")
    return X.rechunk({1: -1}) if X.numblocks[1] > 1 else X


def delayed_chunks(X: Any) -> list[Any]:
    """The chunks of a Dask array of whole rows, each a Delayed."""
    return [chunk[0] for chunk in X.to_delayed()]


def column_parts(X: Any) -> list[Any]:
    """The partitions of a column of texts, each a Delayed; ValueError for what is no column."""
    if isinstance(X, Delayed) or is_frame(X) or getattr(X, "ndim", 1) != 1:
        raise ValueError(
            f"the documents are a Dask {type(X).__name__}; give a Dask bag, a column of a Dask DataFrame, or a Dask "
            "array of one dimension"
        )
    return delayed_parts(X)


def delayed_parts(X: Any) -> list[Any]:
    """The partitions of a bag, a series or an array of one dimension, each a Delayed."""
    return list(np.ravel(X.to_delayed()))


def each_part(function: Callable[..., Any], parts: Sequence[Any], *shared: Any) -> list[Any]:
    """`function(part, number, *shared)` of each, as Delayed."""
    lazily = dask.delayed(function, pure=False)
    shared = tuple(dask.delayed(one, traverse=False) for one in shared)  # once for all
    return [lazily(part, number, *shared) for number, part in enumerate(parts)]


def merged(parts: Sequence[Any], merge: Callable[[list[Any]], Any]) -> Any:
    """Delayed values in one, in a tree of the same shape every time; computed."""
    lazily = dask.delayed(merge)
    return add_tree(list(parts), lambda level: lazily(list(level))).compute()


def computed(parts: Sequence[Any]) -> list[Any]:
    """The values of Delayed ones, by Dask's scheduler."""
    return list(dask.compute(*parts))


def one_by_one(parts: Sequence[Any]) -> Iterator[Any]:
    """The values of Delayed ones in turn, one in memory at a time."""
    for part in parts:
        yield part.compute()


def persisted(tasks: DaskTasks, parts: Sequence[Any]) -> list[Any]:
    """Delayed values as futures on the workers, which spill what they cannot hold."""
    return list(tasks.client.compute(list(parts)))


def mapped_rows(X: Any, function: Callable[..., Any], shared: Any, width: int, dtype: Any) -> Any:
    """A Dask array (n, width) whose chunks are `function(chunk, shared)`; `shared` is one task for all."""
    given = dask.delayed(shared, traverse=False)
    meta = np.empty((0, width), dtype)
    return da.map_blocks(function, X, given, chunks=(X.chunks[0], (width,)), dtype=dtype, meta=meta)


def from_parts(parts: Sequence[Any], width: int, meta: Any) -> Any:
    """A Dask array of parts (Delayed matrices of unknown rows), one below the other."""
    arrays = [da.from_delayed(part, (np.nan, width), dtype=meta.dtype, meta=meta) for part in parts]
    return da.concatenate(arrays, allow_unknown_chunksizes=True)


class FutureBlocks(TaskBlocks):
    """Blocks that are results of tasks themselves: each strip's task takes the futures of its blocks."""

    def __init__(self, futures: Sequence[Any], *arguments: Any) -> None:
        super().__init__(arguments[0], _nowhere, *arguments[1:])
        self.futures = list(futures)

    def visit(self, step: Step, shared: Any, share: Share = ALL) -> Any:
        batch = Batch()
        sums: list[Ref] = []
        W: list[Ref] = []
        for strip, w in zip(self.strips, self.W, strict=True):
            numbers = sorted({run.block for run in strip})
            held = [self.futures[number] for number in numbers]
            visited = batch.call("visit", _visit, step, numbers, held, strip, share, self.sizes, w, shared)
            W.append(batch.call("weights", _first, visited))
            sums.append(batch.call("sums", _second, visited))
        total = add_tree(sums, lambda level: batch.call("add", add_copies, list(level)))
        *self.W, handle = self.tasks.submit(batch, [*W, total])
        return handle


def _nowhere(block: int) -> Any:
    raise LookupError(f"block {block} is a result of a task")


def _visit(
    step: Step, numbers: list[int], held: list[Any], strip: Any, share: Share, sizes: Any,
    W: NDArray[np.float32] | None, shared: Any,
) -> tuple[NDArray[np.float32], Any]:  # fmt: skip
    W = zeros(strip_rows(strip), sizes.kp) if W is None else aligned(W)
    sums = step.empty(sizes.n_features, sizes.kp)
    visit_strip(step, dict(zip(numbers, held, strict=True)).__getitem__, strip, share, W, shared, sums)
    return W, sums


def _first(visited: tuple[Any, Any]) -> Any:
    return visited[0]


def _second(visited: tuple[Any, Any]) -> Any:
    return visited[1]
