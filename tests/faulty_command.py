"""The command line in a process of its own, as a small job of one task or of many; and how tests speak to it.

    python -m tests.faulty_command one|many ARGUMENTS…

The pass after the fifth can be made to take long (`slow_pass`): each of its visits of a strip takes as long as a file,
which it makes, exists.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from nmf_dask import schedule
from nmf_dask.pipeline.fitting import Fitting, one_task, problem
from nmf_dask.pipeline.fitting.many_tasks import ManyTasks
from nmf_dask.pipeline.fitting.one_task import OneTask
from tests.small_corpora import ROOT, environment

# Preloaded by workers: once three parts of a transform are made, the others take ten minutes.
SLOW_PARTS = """
import time
from pathlib import Path
from nmf_dask.pipeline.parts import PartTasks

earlier = PartTasks._earlier

def slow(self, due, earlier=earlier):
    if len((self.output.folder / "_work").list()) >= 3:
        Path({flag!r}).touch()
        time.sleep(600)
    return earlier(self, due)

if earlier.__name__ != "slow":  # a process of many parts preloads it more than once
    PartTasks._earlier = slow
"""
STRIPS = 6
FAST_PASSES = 5
_PRELOAD = "DASK_DISTRIBUTED__WORKER__PRELOAD"
_FLAG = "TEST_SLOW_FLAG"  # names the file that makes visits slow where it exists
# Preloaded by workers, in this process or their own.
SLOW = """
import os, time
from nmf_dask.factorization import Visit
from nmf_dask.pipeline.fitting import one_task

one_task.TURN_SECONDS = 0.0
visit, flag = Visit.__call__, {flag!r}

def slow(*arguments, visit=visit):
    if os.path.exists(flag):
        open(flag + ".entered", "w").close()
        until = time.monotonic() + {seconds}
        while os.path.exists(flag) and time.monotonic() < until:
            time.sleep(0.05)
    return visit(*arguments)

if visit.__name__ != "slow":  # a process of many parts preloads it more than once
    Visit.__call__ = slow
"""


def make_small(kind: str) -> None:
    """Have jobs of this process be of one task or of many, however little there is to do."""
    one_task.TURN_SECONDS = 0.0  # each pass is heard of at once
    if kind == "many":
        schedule.ONE_TASK_BYTES = 0
        problem.SAMPLE_NONZEROS = 2000
        few = schedule.strip_count
        # A sample is cut where it is fitted, by workers that know nothing of this.
        problem.strip_count = lambda sizes, beta_loss: STRIPS if sizes.n_rows > 500 else few(sizes, beta_loss)


def make_slow(flag: Path, kind: type[Fitting]) -> None:
    """Have the pass after the fifth of such a fitting be slow; once, for who takes the file away."""
    advance = kind.advance

    def advance_slowly(self: Fitting) -> None:
        if len(self.state.rows) == FAST_PASSES:
            flag.touch()
        advance(self)

    kind.advance = advance_slowly


def prepare(kind: str) -> None:
    """Make this process's job small, and slow where its environment says so."""
    make_small(kind)
    if _PRELOAD in os.environ:  # a small job runs here, and Dask, which reads this, has no part in it
        runpy.run_path(os.environ[_PRELOAD])
    if _FLAG in os.environ:
        make_slow(Path(os.environ[_FLAG]), OneTask)
        make_slow(Path(os.environ[_FLAG]), ManyTasks)


def main() -> NoReturn:
    from nmf_dask.cli import run

    prepare(sys.argv.pop(1))
    run()


class Driver:
    """One run of the command, in a process group of its own; `within` stands before it."""

    def __init__(
        self,
        kind: str,
        *arguments: Any,
        stderr: int = subprocess.PIPE,
        within: Sequence[str] = (),
        **variables: str,
    ) -> None:
        self.process = subprocess.Popen(
            [*within, sys.executable, "-m", "tests.faulty_command", kind, *map(str, arguments)],
            cwd=ROOT, env=environment(**variables), stdout=subprocess.PIPE, stderr=stderr, text=True,
            start_new_session=True,
        )  # fmt: skip

    def until(self, happened: Callable[[], Any], seconds: float = 60) -> Any:
        """Wait for something, as long as the command runs; False where it ended first."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            if found := happened():
                return found
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.005)
        return False

    def kill(self) -> None:
        """As the kernel does where memory runs out: the driver alone, without a word."""
        self.process.kill()
        self.process.communicate(timeout=60)

    def stop(self, number: int, whole_group: bool = False) -> tuple[int, str, float]:
        """Send a signal; the exit code, the log and how many seconds it took."""
        begun = time.monotonic()
        (os.killpg if whole_group else os.kill)(self.process.pid, number)
        _, log = self.process.communicate(timeout=60)
        return self.process.returncode, log, time.monotonic() - begun

    def done(self, seconds: float = 100) -> str:
        """Wait for the end, which is to be a good one; the log."""
        _, log = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, log
        return log

    def left_nobody(self, seconds: float = 15) -> bool:
        """Whether all processes of the group end within some seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.05)
        os.killpg(self.process.pid, signal.SIGKILL)
        return False


def slow_pass(folder: Path, seconds: float = 600) -> tuple[Callable[[], bool], dict[str, str]]:
    """Whether the slow pass has begun, and the environment that makes it slow, of the driver and of workers.

    Each visit of a strip takes `seconds`, in the pass after the fifth and in all later ones.
    """
    flag, preload = folder / "slow", folder / "slow_visits.py"
    preload.write_text(SLOW.format(flag=str(flag), seconds=seconds))
    return Path(f"{flag}.entered").exists, {
        _FLAG: str(flag), _PRELOAD: str(preload),
    }  # fmt: skip


def slow_parts(folder: Path) -> tuple[Callable[[], bool], dict[str, str]]:
    """Whether a transform's slow part has begun, and the environment that makes all parts after the third slow."""
    flag, preload = folder / "slow", folder / "slow_parts.py"
    preload.write_text(SLOW_PARTS.format(flag=str(flag)))
    return flag.exists, {_PRELOAD: str(preload)}


def checkpoints(model: Path) -> list[str]:
    """Names of the checkpoints of a model's runs that are whole, in order."""
    return sorted(
        file.parent.name for file in model.glob("runs/*/_work/checkpoints/*/state.json") if _is_whole(file)
    )


def _is_whole(file: Path) -> bool:
    """Whether its writer was not killed, or is not, between its first byte and its last."""
    try:
        json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return True


if __name__ == "__main__":
    main()
