"""Dask's own report of a job: whether it can be made, and how it is."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

from distributed import Client
from distributed import performance_report as dask_report

from nmf_dask.config import redact
from nmf_dask.errors import ConfigurationError

REPORT_SECONDS = 20
REPORT_SECONDS_OF_STOPPED = 5  # a job that is told to stop has little more time


def check(file: str) -> None:
    """Raise ConfigurationError where the report would be lost at the end of the job."""
    if not has_dashboard():
        raise ConfigurationError(
            "--performance-report needs bokeh, which is not installed: pip install 'nmf-dask[dashboard]'"
        )
    folder = os.path.dirname(os.path.abspath(file))
    if "://" in file or os.path.isdir(file) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ConfigurationError(
            f"--performance-report {redact(file)} cannot be written: give the path of a file in a local folder that is "
            "there"
        )


@contextmanager
def written(client: Client, file: str) -> Iterator[None]:
    """Dask's own report of what happens in the block; what keeps it from being written does not end the job."""
    if not client.run_on_scheduler(has_dashboard):
        raise ConfigurationError(
            "--performance-report needs bokeh where the scheduler runs, too: pip install 'nmf-dask[dashboard]' there"
        )
    report = dask_report(filename=file)
    report.__enter__()
    seconds = REPORT_SECONDS
    try:
        yield
    except KeyboardInterrupt:
        seconds = REPORT_SECONDS_OF_STOPPED
        raise
    finally:
        try:
            told = {"code": "nmf-dask", "callback_timeout": seconds}
            client.sync(report.__aexit__, None, None, None, **told)
        except (OSError, TimeoutError, CancelledError, RuntimeError) as error:
            logging.getLogger(__name__).warning("%s was not written: %r", file, error)


def has_dashboard() -> bool:
    """Whether Dask can make its dashboard and its reports in this process."""
    from importlib.util import find_spec

    return find_spec("bokeh") is not None
