"""A whole job of the pipeline in a child, on a cluster of some shape or on a pool of threads without Dask."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from nmf_dask.observer import Observer

STAGES = ("count", "select", "weigh", "init", "fit", "write")


def run_job(
    corpus: str,
    text_column: str,
    terms: Mapping[str, Any],
    model: Mapping[str, Any],
    cluster: Mapping[str, int],
    partition_bytes: int = 64 * 2**20,
    many_tasks: bool = False,
) -> dict[str, Any]:
    """A child: `nmf_dask.fit`, with the seconds of its stages and the bytes that workers sent.

    `cluster` is `{"pool": threads}`, or settings of nmf_dask's cluster. With `many_tasks` a fit is spread over workers
    however small it is.
    """
    from nmf_dask import Settings, fit

    settings = Settings(
        corpus={"input": corpus, "text_column": text_column, "partition_bytes": partition_bytes},
        vectorizer=dict(terms),
        model=dict(model),
        cluster={"threads_per_worker": cluster["pool"]} if "pool" in cluster else dict(cluster),
    )
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patches:
        settings = settings.model_copy(
            update={"output": settings.output.model_copy(update={"output": f"{folder}/model"})}
        )
        if many_tasks:
            patches.enter_context(mock.patch("nmf_dask.schedule.ONE_TASK_BYTES", 0))
        traffic = Traffic()
        patches.enter_context(mock.patch("nmf_dask.pipeline.fit.connected", _connecting(cluster, traffic)))
        patches.enter_context(traffic.counted_visits())
        run = fit(settings, traffic).run
        H = next(Path(folder).glob("model/runs/*/H/part-00000.parquet")).read_bytes()
    stages = {name: run["stages"][name]["seconds"] for name in STAGES}
    return {
        **stages,
        "all": sum(stages.values()),
        "passes": run["n_iter"],
        "loss": run["reconstruction_err"],
        "n_documents": run["n_documents"],
        "n_features": run["n_features"],
        "nnz": run["nnz"],
        "H": hashlib.sha256(H).hexdigest()[:12],
        "largest_worker": run["peak_memory"]["largest_worker"],
        **traffic.told(),
    }


def _connecting(cluster: Mapping[str, int], traffic: Traffic) -> Callable[..., Any]:
    """What takes the place of the pipeline's `connected`: Dask, listened to, or threads without it."""
    from nmf_dask.cluster import connected
    from nmf_dask.threads import own_threads

    @contextmanager
    def listened(settings: Any, small: bool, spill: str | None = None) -> Iterator[Any]:
        if "pool" in cluster:
            with own_threads(settings.cluster) as made:
                warm_up()
                yield made
            return
        with connected(settings.cluster, settings.run.performance_report, spill) as made:
            made.client.run(warm_up)
            if "workers" in cluster:
                traffic.listen(made.client)
            yield made

    return listened


def warm_up() -> None:
    """Import what tasks need and meet the kernels once: a worker's first seconds belong to its start."""
    import numpy as np
    import pyarrow as pa

    from nmf_dask.config import ModelSettings, VectorizerSettings
    from nmf_dask.in_memory import factorize
    from nmf_dask.pipeline import stages
    from nmf_dask.text import count_texts
    from nmf_dask.vocabulary import TermTable, merge, select, weigh

    assert stages
    settings = VectorizerSettings(min_df=1, max_df=1.0)
    counts = count_texts(pa.array(["words of a text", "a text of more words"]), settings)
    tables = [TermTable.of(counts)] * 2
    weigh(counts, select(merge(tables), settings), settings)
    X = np.random.default_rng(0).random((40, 20), np.float32)
    for beta_loss in ("frobenius", "kullback-leibler"):
        factorize(X, ModelSettings(n_components=4, max_iter=12, beta_loss=beta_loss))


class Traffic(Observer):
    """Bytes that worker processes send during the fit, to each other and to the scheduler, and visits of all strips.

    They are counted where they are written to the wire. Dask's own logs of transfers go by what it believes a result's
    size to be, which for an object of arrays is that of the object alone.
    """

    def __init__(self) -> None:
        self.client: Any = None
        self.visits = 0
        self._marks: dict[str, tuple[int, int]] = {}

    def listen(self, client: Any) -> None:
        """Count from now on, in each worker of a client's cluster."""
        self.client = client
        client.run(count_written)

    def stage(self, name: str, total: int | None = None) -> None:
        if self.client is not None and name in ("fit", "write"):
            self._marks[name] = (sum(self.client.run(bytes_written).values()), self.visits)

    @contextmanager
    def counted_visits(self) -> Iterator[None]:
        from nmf_dask.distributed import TaskBlocks

        visit = TaskBlocks.visit

        def counted(blocks: TaskBlocks, *arguments: Any, **named: Any) -> Any:
            self.visits += 1
            return visit(blocks, *arguments, **named)

        with mock.patch.object(TaskBlocks, "visit", counted):
            yield

    def told(self) -> dict[str, Any]:
        if len(self._marks) < 2:
            return {"bytes_sent": None, "rounds": None}
        sent, rounds = (
            after - before for before, after in zip(self._marks["fit"], self._marks["write"], strict=True)
        )
        return {"bytes_sent": sent, "rounds": rounds}


_WRITTEN = {"bytes": 0}  # by this process, once `count_written` was called in it


def count_written() -> None:
    """Count what this process writes to TCP through Dask."""
    from distributed.comm.tcp import TCP

    write = TCP.write

    async def counted(comm: Any, *arguments: Any, **named: Any) -> int:
        n_bytes: int = await write(comm, *arguments, **named)
        _WRITTEN["bytes"] += n_bytes
        return n_bytes

    TCP.write = counted


def bytes_written() -> int:
    """Bytes that this process has written since `count_written`."""
    return _WRITTEN["bytes"]
