"""Run commands and functions in processes of their own, in turn, and say what they took.

The process that measures imports nothing heavy: a child's peak of memory begins with that of the process it was
started from.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WATCH_SECONDS = 0.05
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class MeasuredError(RuntimeError):
    """A measured process ended with an error; the message holds the end of what it printed."""


@dataclass(frozen=True)
class Run:
    """One measured process: wall and CPU seconds, peaks of resident memory in bytes, what it told of itself."""

    seconds: float
    cpu_seconds: float
    peak_memory: int
    """Of the largest process: the one started, or one that it started."""
    peak_memory_of_all: int
    """The peaks of all processes, added up: no less than what they ever held together."""
    told: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.told[name] if name in self.told else getattr(self, name)


def environment(threads: int, **more: str) -> dict[str, str]:
    """The variables of a measured process: BLAS and numba pinned to `threads`, this checkout on its path."""
    pinned = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **pinned, "PYTHONPATH": path, **more}


def run_command(arguments: Sequence[str], variables: Mapping[str, str]) -> Run:
    """Run a command to its end, with its output put aside; raises MeasuredError where it does not exit with 0."""
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        child = subprocess.Popen(arguments, env=dict(variables), stdout=output, stderr=subprocess.STDOUT)
        watch = _Watch(child.pid)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        peaks = watch.peaks()
        if child.returncode:
            output.seek(0)
            end = output.read().decode(errors="replace")[-4000:]
            raise MeasuredError(f"{' '.join(arguments)[:300]} exited with {child.returncode}:\n{end}")
    # The kernel's figure misses nothing, but holds only children that were waited for, and the largest alone.
    largest = max(usage.ru_maxrss * 1024, *peaks.values())
    return Run(seconds, usage.ru_utime + usage.ru_stime, largest, max(largest, sum(peaks.values())))


def run_function(
    function: Callable[..., dict[str, Any]], arguments: Mapping[str, Any], threads: int = 1, **variables: str
) -> Run:
    """Run a module's function in a fresh process; the dict that it returns is what the run told."""
    # By the module's specification: a program's own name is __main__.
    name = f"{function.__globals__['__spec__'].name}:{function.__qualname__}"
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "tests.benchmarks.measuring"]
        command += [name, json.dumps(arguments), str(answer)]
        run = run_command(command, environment(threads, **variables))
        run.told.update(json.loads(answer.read_text()))
    return run


class _Watch:
    """Peaks of resident memory of a process and of all below it, looked at until it ends."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen: dict[int, int] = {pid: 0}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def peaks(self) -> dict[int, int]:
        self._over.set()
        self._thread.join()
        return self._seen

    def _look(self) -> None:
        while not self._over.wait(WATCH_SECONDS):
            for pid in (self._pid, *_below(self._pid)):
                self._seen[pid] = max(self._seen.get(pid, 0), _high_water(pid))


def _below(pid: int) -> Iterable[int]:
    """The processes that a process started, those that they started, and so on (Linux)."""
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return
    for child in children:
        yield child
        yield from _below(child)


def _high_water(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def in_turn(cases: Mapping[str, Callable[[], Run]], repeat: int) -> dict[str, list[Run]]:
    """Run all cases one after the other, `repeat` times over: A B A B, so that noise meets them alike."""
    runs: dict[str, list[Run]] = {name: [] for name in cases}
    for turn in range(repeat):
        for name, case in cases.items():
            print(f"[{turn + 1}/{repeat}] {name}", file=sys.stderr, flush=True)
            runs[name].append(case())
    return runs


def median(runs: Sequence[Run], name: str) -> float:
    """The median of what runs took or told."""
    return statistics.median(run[name] for run in runs)


def installed(*packages: str) -> bool:
    """Whether all packages are there, told without importing one."""
    try:
        return all(metadata.version(package) for package in packages)
    except metadata.PackageNotFoundError:
        return False


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Report:
    """What a program prints and writes as JSON: a table a question, and the runs behind them."""

    program: str
    settings: dict[str, Any]
    threads: int
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.machine = {
            "cores": cores(),
            "threads": self.threads,
            "load_before": os.getloadavg()[0],
            "versions": {name: metadata.version(name) for name in _VERSIONS if installed(name)},
        }

    def lacks(self, peer: str, packages: Sequence[str]) -> bool:
        """Whether packages of a peer are missing; the report says so by the peer's name."""
        if installed(*packages):
            return False
        self.missing.append(
            f"{peer} is not measured: pip install 'nmf-dask[bench]' brings {', '.join(packages)}"
        )
        return True

    def finish(self, json_file: str | None) -> None:
        """Print the tables; write them, with every run, where a file is named."""
        self.machine["load_after"] = os.getloadavg()[0]
        machine, versions = self.machine, self.machine["versions"]
        load = f"load {machine['load_before']:.1f} before, {machine['load_after']:.1f} after"
        print(f"{self.program}: {machine['cores']} cores, {self.threads} threads a process, {load}")
        print(", ".join(f"{name} {version}" for name, version in versions.items()))
        print(", ".join(f"{name} {value}" for name, value in self.settings.items() if value is not None))
        for title, rows in self.tables.items():
            print(f"\n{title}\n{table(rows)}")
        for line in [*self.notes, *self.missing]:
            print(f"\n{line}")
        if json_file is not None:
            Path(json_file).write_text(json.dumps(asdict(self), indent=1))


_VERSIONS = ("nmf-dask", "numpy", "scikit-learn", "numba", "dask", "gensim", "pyspark")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as text, a column a key; numbers to the right."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names] + [[_shown(row.get(name)) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [any(isinstance(row.get(name), int | float) for row in rows) for name in names]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    )


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.4g}" if abs(value) < 10 else f"{value:.7g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def mebibytes(n_bytes: float) -> int:
    """Bytes as whole MiB, for a table."""
    return round(n_bytes / 2**20)


def main(name: str, arguments: str, answer: str) -> None:
    """The child's side of `run_function`."""
    module, _, function = name.partition(":")
    told = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    Path(answer).write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
