"""Results that own workers do not keep in memory, W above all: how much disk they take, and in which folder."""

from __future__ import annotations

import os
from tempfile import gettempdir

from nmf_dask.config import Settings
from nmf_dask.kernels.matrices import padded_width
from nmf_dask.store import Folder
from nmf_dask.tasks import held_bytes

# Copies: of before a pass, of after it, and as it was kept; 2.3 measured, of 8,000,000 documents.
W_ON_DISK = 3


def expected_spill(settings: Settings, n_rows: int) -> int:
    """A bound on the bytes that own workers put on disk; 0 where W stays in memory, and for workers of others."""
    cluster = settings.cluster
    W = W_ON_DISK * n_rows * padded_width(settings.model.n_components) * 4
    held = (cluster.workers or 1) * held_bytes(cluster.worker_bytes())
    return W if cluster.is_own and held < W else 0


def spill_place(settings: Settings, run_id: str) -> str:
    """The folder that they are told to use, as a plan says it."""
    folder = _own(settings, run_id)
    return folder.path if folder else os.environ.get("DASK_TEMPORARY_DIRECTORY") or gettempdir()


def spill_folder(settings: Settings, run_id: str) -> str | None:
    """The same for a job: below a local scratch folder, made empty of what killed workers left; None for Dask's own.

    Raises InputDataError and RetryableError where it cannot be made.
    """
    folder = _own(settings, run_id)
    if folder is None or not settings.cluster.is_own:
        return None
    folder.delete()
    folder.make()
    return folder.path


def _own(settings: Settings, run_id: str) -> Folder | None:
    scratch = settings.run.scratch
    folder = Folder(scratch) / run_id / "spill" if scratch else None
    return folder if folder is not None and folder.is_local else None
