"""One writer a model folder: who it is, whether it lives, and when its lock lapses."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow.fs as pafs

from nmf_dask.errors import InputDataError, RetryableError
from nmf_dask.store.folder import Folder, MissingFileError, reported

HEARTBEAT_SECONDS = 20.0
STALE_SECONDS = 300.0
SETTLE_SECONDS = 2.0


class ModelLock:
    """Keeps other writers of a model folder out, for the length of a `with`.

    The lock is a file with the host, the process and the time, rewritten by a thread as a sign of life. It is
    taken over where its holder is a process of this machine that is dead (a later process of the same number
    is told apart by its start), and where no sign of life came for STALE_SECONDS.

    On a local file system the file is created exclusively, and taken over under an advisory lock, so that one
    of many wins. Object stores offer no such thing through pyarrow: there each puts a ticket of its own beside
    the lock, waits SETTLE_SECONDS, and looks for the ticket that the store says is the oldest. Whoever has that
    one writes the lock, and keeps the ticket as long as it holds it. Of two, the one whose ticket came later
    looks later than both came: it sees the other's, however slow either is. This takes a store that lists what
    was put, and whose clock does not go back by SETTLE_SECONDS.

    A holder that was silent for too long, and wakes up, has lost the lock; `check`, which a commit calls, says so.

    Entering raises RetryableError, naming the holder, where the lock is held.
    """

    def __init__(self, file: Folder) -> None:
        self._file = file
        self._ticket: Folder | None = None  # in an object store
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ModelLock:
        if self._file.is_local:
            self._take_local()
        else:
            self._take_remote()
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, name="nmf-dask-lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        # What happened inside matters more than a lock that stays behind: that one lapses by itself.
        with contextlib.suppress(InputDataError, RetryableError), _exclusive(self._file):
            if _is_ours(_holder(self._file)):
                self._file.delete()
        if self._ticket is not None:  # after the lock: a newcomer meets one of them
            _withdraw(self._ticket)

    def check(self) -> None:
        """Raise RetryableError where another process has taken the lock over."""
        check_not_taken(self._file)

    def _take_local(self) -> None:
        self._file.parent.make()
        while True:
            with reported("write", str(self._file)):
                try:
                    descriptor = os.open(self._file.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
                except FileExistsError:
                    if self._take_over():
                        return
                    continue
                try:
                    with os.fdopen(descriptor, "wb") as stream:
                        stream.write(_card())
                except OSError:
                    os.unlink(self._file.path)  # a lock without a name would keep everybody out for a while
                    raise
                return

    def _take_over(self) -> bool:
        """Overwrite a dead holder's lock; False where the file went away meanwhile."""
        with _exclusive(self._file) as there:
            if not there:
                return False
            _refuse_living(self._file)
            with open(self._file.path, "r+b") as stream:
                stream.write(_card())
                stream.truncate()
            return True

    def _take_remote(self) -> None:
        _refuse_living(self._file)
        ticket = self._file.parent / f"{self._file.name}.{uuid.uuid4().hex}"
        try:
            ticket.write_bytes(_card())
            time.sleep(SETTLE_SECONDS)
            dead = _refuse_earlier(ticket, self._file)
            self._file.write_bytes(_card())
        except BaseException:
            _withdraw(ticket)
            raise
        self._ticket = ticket
        for other in dead:
            _withdraw(other)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            # A store that does not answer now may answer at the next beat.
            with contextlib.suppress(InputDataError, RetryableError), _exclusive(self._file):
                if not _is_ours(_holder(self._file)):
                    return
                if self._file.is_local:
                    os.utime(self._file.path)
                else:
                    self._file.write_bytes(_card())


def check_not_taken(file: Folder) -> None:
    """Raise RetryableError where the lock `file` is there and names another process than this one."""
    try:
        holder = _holder(file)
    except MissingFileError:
        return
    if not _is_ours(holder):
        raise RetryableError(
            f"{file.parent} was taken over by {_named(holder)}, because this process gave no sign of life "
            "for a while; nothing was committed. Run the same command again"
        )


@contextlib.contextmanager
def _exclusive(file: Folder) -> Iterator[bool]:
    """Keep other processes from changing a local lock file meanwhile; False where it is gone."""
    if not file.is_local:
        yield True
        return
    try:
        descriptor = os.open(file.path, os.O_RDWR)
    except FileNotFoundError:
        yield False
        return
    try:
        # Some network file systems know no advisory locks; then the moment stays unguarded.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield _same_file(descriptor, file.path)
    finally:
        os.close(descriptor)


def _same_file(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _refuse_living(file: Folder) -> None:
    """Raise RetryableError unless the holder of the lock is known or believed to be dead."""
    try:
        holder = _holder(file)
        info = file.info()
    except MissingFileError:
        return
    if info.type == pafs.FileType.NotFound or _is_dead(holder):
        return
    silent = max(0.0, time.time() - info.mtime_ns / 1e9)
    if not _is_here(holder) and silent > STALE_SECONDS:
        return
    lapses = (
        "when that process ends" if _is_here(holder) else f"after {STALE_SECONDS / 60:.0f} silent minutes"
    )
    raise RetryableError(
        f"{file.parent} is locked by {_named(holder)}, last sign of life {silent:.0f} s ago. Run the same "
        f"command again when it is done; the lock lapses {lapses}"
    )


def _refuse_earlier(ticket: Folder, file: Folder) -> list[Folder]:
    """Raise RetryableError where a living process has an older ticket; the tickets of dead ones, otherwise.

    Equal times, which stores give to the second, are told apart by the names of the tickets.
    """
    others = [file.parent / name for name in file.parent.list() if name.startswith(f"{file.name}.")]
    times = {other.name: other.info().mtime_ns or 0 for other in others}
    mine = (times.get(ticket.name, math.inf), ticket.name)
    earlier = [other for other in others if (times[other.name], other.name) < mine]
    for one in (file, *earlier):
        _refuse_living(one)
    return earlier


def _withdraw(ticket: Folder) -> None:
    with contextlib.suppress(InputDataError, RetryableError):  # it lapses by itself
        ticket.delete()


def _holder(file: Folder) -> dict[str, Any]:
    """What the lock says; nothing where its writer is not done, or died before it was."""
    for _ in range(10):
        with contextlib.suppress(ValueError):
            told = json.loads(file.read_bytes())
            if isinstance(told, dict):
                return told
        time.sleep(0.05)
    return {}


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return "a process that left no name"
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('started')}"


def _card() -> bytes:
    told = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "process_start": _process_start(os.getpid()),
    }
    return (json.dumps(told) + "\n").encode()


def _machine() -> str:
    """What tells whether a process number can be looked up here: containers of one host have their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _process_start(pid: int) -> str | None:
    """Clock ticks from boot to a process's start; None where that cannot be known, "dead" for a zombie."""
    try:
        # The name of the program, in parentheses, may itself hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "dead" if fields[0] in "ZX" else fields[19]


def _is_here(holder: dict[str, Any]) -> bool:
    return holder.get("machine") == _machine()


def _is_ours(holder: dict[str, Any]) -> bool:
    return (
        _is_here(holder)
        and holder.get("pid") == os.getpid()
        and holder.get("process_start") == _process_start(os.getpid())
    )


def _is_dead(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    if not _is_here(holder) or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return holder.get("process_start") != _process_start(pid)
