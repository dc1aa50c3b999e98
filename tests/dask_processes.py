"""A Dask cluster of real processes on the loopback."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.small_corpora import environment

Process = subprocess.Popen


class DaskProcesses:
    """A scheduler, and workers of one thread that come and go."""

    def __init__(
        self,
        folder: Path,
        *worker_options: str,
        host: str = "127.0.0.1",
        scheduler_options: Sequence[str] = (),
        **more: str,
    ) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.worker_options = worker_options
        self.host = host
        self.environment = environment(**more)
        self.workers: list[Process[bytes]] = []
        where = ["--host", host, "--port", "0", "--scheduler-file", str(self.file)]
        self.scheduler = self._start("scheduler", *where, "--no-dashboard", *scheduler_options)

    def _start(self, *command: str, within: Sequence[str] = (), **more: str) -> "Process[bytes]":
        with (self.folder / "cluster.log").open("a") as log:
            return Process(
                [*within, sys.executable, "-m", "dask", *command], stdout=log, stderr=log, cwd=self.folder,
                env={**self.environment, **more}, start_new_session=True,
            )  # fmt: skip

    def add(
        self, *options: str, host: str | None = None, within: Sequence[str] = (), **more: str
    ) -> "Process[bytes]":
        """Start another worker; `within` stands before its command."""
        process = self._start(
            "worker", "--scheduler-file", str(self.file), "--host", host or self.host, "--no-dashboard",
            "--local-directory", str(self.folder), "--nthreads", "1", *self.worker_options, *options,
            within=within, **more,
        )  # fmt: skip
        self.workers.append(process)
        return process

    def fill(self, n_workers: int) -> None:
        """Start workers until there are so many that have not ended."""
        for _ in range(n_workers - sum(worker.poll() is None for worker in self.workers)):
            self.add()

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def dask_processes(
    folder: Path, *worker_options: str, n_workers: int = 2, **more: Any
) -> Iterator[DaskProcesses]:
    """A cluster for the length of a `with`; `more` goes to `DaskProcesses`."""
    processes = DaskProcesses(folder, *worker_options, **more)
    try:
        processes.fill(n_workers)
        yield processes
    finally:
        processes.close()


@contextmanager
def dask_cluster(
    folder: Path, *worker_options: str, n_workers: int = 2, **more: Any
) -> Iterator[tuple[Path, list["Process[bytes]"]]]:
    """The same; gives the scheduler file, and the processes, the scheduler first."""
    with dask_processes(folder, *worker_options, n_workers=n_workers, **more) as processes:
        yield processes.file, [processes.scheduler, *processes.workers]
