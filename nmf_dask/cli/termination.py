"""SIGTERM and SIGINT as errors that end the job in order, wherever they arrive."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, NoReturn

from nmf_dask.errors import RetryableError

AGAIN_SECONDS = 0.05
LAST_SECONDS = 9.0  # from a signal to the end: whoever sent it waits ten, and kills then


@contextmanager
def termination_as_error() -> Iterator[None]:
    """While the block runs, the first SIGTERM or SIGINT raises KeyboardInterrupt, with a message where it was SIGTERM.

    Nothing less: a clean-up that bears with errors of a store would otherwise bear with being stopped as well.
    Later SIGTERMs leave the clean-up alone: schedulers repeat them. A second SIGINT ends the process at once:
    somebody sits there and means it. So does a clean-up that is not over after LAST_SECONDS, such as one that waits
    for a store that does not answer.

    A signal may arrive in a finalizer or a callback of the garbage collector (Dask has one), where Python drops
    what is raised. It tells the unraisable hook, which has the error raised again a moment later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raised: list[BaseException] = []
    # Unlike an event, a simple queue takes what the handler of a signal says, whatever that interrupts.
    stopped: SimpleQueue[bool] = SimpleQueue()
    threading.Thread(target=_end_in_time, args=(stopped,), name="nmf-dask-last", daemon=True).start()

    def stop(signum: int, frame: FrameType | None) -> None:
        if not raised:
            raised.append(
                KeyboardInterrupt()
                if signum == signal.SIGINT
                else KeyboardInterrupt("stopped by SIGTERM; run the same command again to go on")
            )
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, leave_at_once)
        stopped.put(True)
        raise raised[0]

    before = sys.unraisablehook

    def dropped(told: Any) -> None:
        if any(told.exc_value is error for error in raised):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        elif not raised:  # what an interrupted callback trips over later is no news
            before(told)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    handlers = [signal.signal(number, stop) for number in numbers]
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        stopped.put(False)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = before
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def _end_in_time(stopped: SimpleQueue[bool]) -> None:
    """A thread: wait for a signal or the end of the command, and end the process where the one lacks the other."""
    if not stopped.get():
        return
    deadline = time.monotonic() + LAST_SECONDS
    with suppress(Empty):
        while stopped.get(timeout=max(0.0, deadline - time.monotonic())):
            pass  # the same signal, raised again
        return
    leave_at_once()


def leave_at_once(signum: int = 0, frame: FrameType | None = None) -> NoReturn:
    """End the process as a kill would; nothing written is half readable, and own workers end with their parent."""
    with suppress(OSError, ValueError):
        shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # a live display hides the cursor
        message = "stopped at once; run the same command again to go on from the last checkpoint"
        os.write(2, f"{shown}nmf-dask: {message}\n".encode())
    os._exit(RetryableError.exit_code)
