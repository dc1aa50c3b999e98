"""Who runs a job: threads of this process where it is small, a Dask cluster otherwise."""

from __future__ import annotations

from contextlib import AbstractContextManager

from nmf_dask.blocks import Sizes
from nmf_dask.config import Settings
from nmf_dask.corpus import Corpus
from nmf_dask.pipeline.planning import amounts
from nmf_dask.schedule import fits_one_task
from nmf_dask.tasks import Cluster

PACKED = 8  # times what is estimated of files that are read first: some are compressed


def connected(settings: Settings, small: bool, spill: str | None = None) -> AbstractContextManager[Cluster]:
    """The cluster that settings name, for the length of a `with`; `small`: all that tasks return fits the memory.

    Dask takes a second to load and to start, and can do little for such a job but move results to disk. It runs the job
    where it is asked for: by `--scheduler`, `--workers` or `--performance-report`. `spill` is a local folder
    for results that do not stay in the memory of own workers.
    """
    report = settings.run.performance_report
    if small and settings.cluster.in_process and report is None:
        from nmf_dask.threads import own_threads

        return own_threads(settings.cluster)
    from nmf_dask.cluster import connected  # bad input is told without the second that Dask takes

    return connected(settings.cluster, report, spill)


def is_small(settings: Settings, corpus: Corpus) -> bool:
    """Whether one task can hold the whole fit, as far as the corpus tells before it is counted."""
    n_bytes = corpus.text_bytes * (1 if corpus.raw is None else PACKED)
    found = amounts(n_bytes, settings.vectorizer)
    return fits_one_task(Sizes(corpus.n_rows, found.features, found.nonzeros, settings.model.n_components))
