"""Old runs of a model folder, which go once a new one stands."""

from __future__ import annotations

from nmf_dask.errors import NmfDaskError
from nmf_dask.observer import Observer
from nmf_dask.store import ModelLock, RunFolder


def remove_old_runs(run: RunFolder, keep: int | None, lock: ModelLock, observer: Observer) -> None:
    """Keep the `keep` last committed runs (None: all) beside `run`, under the lock; the observer hears of failures."""
    if keep is None:
        return

    def failed(old: RunFolder, error: NmfDaskError) -> None:
        observer.warn(f"the old run {old.run_id} could not be removed: {error}")

    try:
        lock.check()
        gone = run.model.remove_old(keep, failed)
    except NmfDaskError as error:  # the new run stands
        observer.warn(f"old runs were not removed: {error}")
    else:
        if gone:
            observer.inform(f"removed old runs: {', '.join(gone)}")
