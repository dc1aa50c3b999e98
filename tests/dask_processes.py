"""A Dask cluster of real processes on the loopback."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.small_corpora import environment


@contextmanager
def dask_cluster(
    folder: Path, *worker_options: str, n_workers: int = 2, **more: str
) -> Iterator[tuple[Path, list["subprocess.Popen[bytes]"]]]:
    """A scheduler and workers of one thread; gives the scheduler file, and the processes, the scheduler first."""
    file = folder / "scheduler.json"
    options = ["--host", "127.0.0.1", "--no-dashboard"]
    commands = [["scheduler", "--port", "0", "--scheduler-file", str(file), *options]]
    for _ in range(n_workers):
        local = ["--local-directory", str(folder), "--nthreads", "1"]
        commands.append(["worker", "--scheduler-file", str(file), *options, *local, *worker_options])
    with (folder / "cluster.log").open("w") as log:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "dask", *command], stdout=log, stderr=log, cwd=folder,
                env=environment(**more), start_new_session=True,
            )
            for command in commands
        ]  # fmt: skip
        try:
            yield file, processes
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
