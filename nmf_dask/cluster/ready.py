"""What a worker process needs before its first task."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyarrow as pa
from distributed import Client, WorkerPlugin
from threadpoolctl import threadpool_limits

import nmf_dask
from nmf_dask.errors import ConfigurationError
from nmf_dask.residence import return_large

READY_SECONDS = 30  # for workers to be ready: they import what the job needs, and one may hang


class Ready(WorkerPlugin):  # type: ignore[misc]
    """Makes a worker ready, also one that comes later or that a nanny starts again."""

    name = "nmf-dask"

    def __init__(self, own: bool) -> None:
        self.own = own

    def setup(self, worker: Any) -> None:
        threadpool_limits(1, user_api="blas")
        # What comes over the network begins anywhere in a buffer: Arrow would print a line each time it sees that.
        os.environ.setdefault("ACERO_ALIGNMENT_HANDLING", "ignore")
        # Arrow's own pool keeps what it once had: 60 MB more after some partitions, of a limit that may be 400.
        pa.set_memory_pool(pa.system_memory_pool())
        if self.own and threading.current_thread() is threading.main_thread():
            # Ctrl-C reaches the whole process group, and a service manager's SIGTERM every process of the job; the
            # job ends its workers itself, once they have saved what they hold.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.own:
            return_large()
            logging.captureWarnings(True)  # the driver shows them: stderr is the log's, line by line


def make_ready(client: Client, own: bool) -> None:
    """Have each worker, of those that come later too, set up `Ready`.

    Raises ConfigurationError where a worker has no nmf-dask, or lacks a library.
    """

    def told(method: Callable[..., Any], *arguments: Any) -> None:
        # The scheduler keeps it for workers that come. One that hangs, or is given up meanwhile, is no end of the job.
        with suppress(OSError, TimeoutError):
            client.sync(method, *arguments, callback_timeout=READY_SECONDS)

    try:
        told(client.register_plugin, Ready(own))
        if own:
            told(client.forward_logging, "py.warnings", logging.WARNING)
    except ImportError as error:
        raise ConfigurationError(
            f"a worker cannot import what the job needs ({error}): install nmf-dask {nmf_dask.__version__} in the "
            "environment of the workers"
        ) from error
