"""SIGTERM as an error that ends the job in order, wherever it arrives."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from nmf_dask.errors import RetryableError

AGAIN_SECONDS = 0.05


@contextmanager
def termination_as_error() -> Iterator[None]:
    """While the block runs, the first SIGTERM raises RetryableError; later ones leave the clean-up alone.

    A signal may arrive in a finalizer or a callback of the garbage collector (Dask has one), where Python drops
    what is raised. It tells the unraisable hook, which has the error raised again a moment later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raised: list[BaseException] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raised.append(RetryableError("stopped by SIGTERM; run the same command again to go on"))
        raise raised[-1]

    before = sys.unraisablehook

    def dropped(told: Any) -> None:
        if any(told.exc_value is error for error in raised):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        elif not raised:  # what an interrupted callback trips over later is no news
            before(told)

    terminate, alarm = signal.signal(signal.SIGTERM, stop), signal.signal(signal.SIGALRM, stop)
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = before
        signal.signal(signal.SIGTERM, terminate)
        signal.signal(signal.SIGALRM, alarm)
