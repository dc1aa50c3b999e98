"""SIGTERM and SIGINT as errors that end the job in order, wherever they arrive."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, NoReturn

from nmf_dask.cli.errors import Console
from nmf_dask.cli.logs import json_line
from nmf_dask.errors import RetryableError

AGAIN_SECONDS = 0.05
LAST_SECONDS = 9.0  # from a signal to the end: whoever sent it waits ten, and kills then
EARLY_SECONDS = 0.3  # before a deadline, for the system to take the process apart


@contextmanager
def termination_as_error(console: Console | None = None) -> Iterator[None]:
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
    leave = partial(leave_at_once, console or Console())
    threading.Thread(target=_end_in_time, args=(stopped, leave), name="nmf-dask-last", daemon=True).start()

    def stop(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGALRM and not raised:
            return  # meant for somebody else
        if not raised:
            raised.append(
                KeyboardInterrupt()
                if signum == signal.SIGINT
                else KeyboardInterrupt("stopped by SIGTERM; run the same command again to go on")
            )
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, lambda signum, frame: leave())
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


def _end_in_time(stopped: SimpleQueue[bool], leave: Callable[[], NoReturn]) -> None:
    """A thread: wait for a signal or the end of the command, and end the process where the one lacks the other."""
    if not stopped.get():
        return
    deadline = time.monotonic() + LAST_SECONDS
    with suppress(Empty):
        while stopped.get(timeout=max(0.0, deadline - time.monotonic())):
            pass  # the same signal, raised again
        return
    leave()


@contextmanager
def ended_by(seconds: float | None, console: Console) -> Iterator[None]:
    """While the block runs, the process ends at once so many seconds after the command began (None: it does not).

    The last resort of a deadline: a job stops in order before it, if what it waits for lets it. Where the process is
    there for the command alone, what comes after the block has to end by then as well.
    """
    if seconds is None:
        yield
        return
    left = seconds - console.seconds() - EARLY_SECONDS
    timer = threading.Timer(max(0.0, left), leave_at_once, (console, "the deadline is here; "))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        if not console.is_the_process:
            timer.cancel()


def leave_at_once(console: Console, why: str = "") -> NoReturn:
    """End the process as a kill would; nothing written is half readable, and own workers end with their parent."""
    with suppress(OSError, ValueError):
        code = RetryableError.exit_code
        message = f"{why}stopped at once; run the same command again to go on from the last checkpoint"
        if console.log_format == "json":
            line = json_line("error", "error", message, **console.told(), exit_code=code, kind="Interrupted")
        else:
            # A live display hides the cursor.
            line = ("\x1b[?25h" if sys.stderr.isatty() else "") + f"nmf-dask: {message}"
        os.write(2, f"{line}\n".encode())
    os._exit(RetryableError.exit_code)
