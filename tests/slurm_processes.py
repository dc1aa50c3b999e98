"""SLURM on this machine: munged, slurmctld and two slurmd as processes, with a configuration of their own."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.small_corpora import environment

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "unshare")
NODES = ("n1", "n2")
PATIENCE = 300.0  # seconds, for what takes a few on a machine that is quiet
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
# A machine that is busy with other tests is slow to answer and to start things, which is no fault: hence the patience.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
ReturnToService=2
KillWait=15
MessageTimeout=60
BatchStartTimeout=120
MinJobAge=3600
SlurmdParameters=config_overrides
JobRequeue=1
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=8000
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
"""


class Slurm:
    """A controller and two nodes; a node is a PID namespace, so that to kill it leaves nobody."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        host = socket.gethostname().partition(".")[0]
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir()
        configuration = folder / "slurm.conf"
        configuration.write_text(CONFIGURATION.format(folder=folder, host=host, ports=_free_ports(3)))
        self.environment = environment(PATH=PATH, SLURM_CONF=str(configuration), PYTHONDONTWRITEBYTECODE="1")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        # The folder of a test lies below /tmp, where munged finds its files safe only when it is told to.
        files = [f"--{option}-file={self.folder}/munge.{option}" for option in ("key", "pid", "log", "seed")]
        socket_ = self.folder / "munge.socket"
        self._start("munged", "--foreground", "--force", f"--socket={socket_}", *files)
        until(socket_.exists, "munged made its socket")
        self._start("slurmctld", "-D", "-i")
        for node in NODES:
            self.start_node(node)
        self.until_idle()

    def start_node(self, node: str) -> None:
        apart = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
        self._nodes[node] = self._start(*apart, "slurmd", "-D", "-N", node)

    def until_idle(self) -> None:
        """Wait until both nodes are there, and nothing runs or ends on them."""
        until(lambda: self.said("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * 2, "nodes are idle")

    def lose_node(self, node: str) -> None:
        """Kill slurmd and everything that it started, as a power cut does; the controller need not find out itself."""
        os.killpg(self._nodes[node].pid, signal.SIGKILL)
        self._nodes[node].wait()
        self.control("update", f"NodeName={node}", "State=DOWN", "Reason=lost")

    def _start(self, *command: str) -> "subprocess.Popen[bytes]":
        with (self.folder / "daemons.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        self._processes.append(process)
        return process

    def said(self, *command: str) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        return done.stdout

    def submit(self, script: Path, *options: str, **variables: str) -> str:
        """The number of the job."""
        done = subprocess.run(
            ["sbatch", "--parsable", *options, str(script)], env={**self.environment, **variables},
            cwd=script.parent, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def control(self, *arguments: str) -> None:
        subprocess.run(["scontrol", *arguments], env=self.environment, check=True, timeout=120)

    def cancel(self, *arguments: str) -> None:
        subprocess.run(["scancel", *arguments], env=self.environment, check=True, timeout=120)

    def job(self, number: str) -> dict[str, str]:
        """What the controller says of a job: JobState, Restarts, ExitCode, StartTime, …"""
        told = self.said("scontrol", "show", "job", "--oneliner", number)
        return dict(re.findall(r"(\S+?)=(\S*)", told))

    def until(
        self, number: str, wanted: Callable[[dict[str, str]], Any], seconds: float = PATIENCE
    ) -> dict[str, str]:
        """Wait until a job is as wanted."""
        seen: dict[str, str] = {}  # nothing where the controller does not answer in time

        def as_wanted() -> Any:
            seen.update(self.job(number))
            return seen and wanted(seen)

        until(as_wanted, f"job {number}", seconds, lambda: str(seen))
        return seen

    def ended(self, number: str, seconds: float = PATIENCE) -> dict[str, str]:
        """Wait for the end of a job: its last state, with the exit code of its script as `code`."""
        found = self.until(number, lambda job: job.get("JobState") in OVER, seconds)
        return {**found, "code": found["ExitCode"].partition(":")[0]}

    def close(self) -> None:
        for process in reversed(self._processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def slurm_processes(folder: Path) -> Iterator[Slurm]:
    """SLURM for the length of a `with`; a test without it is skipped by name, and fails where CI is set."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if os.geteuid() != 0:
        missing.append("the rights of root")
    if missing:
        told = f"{', '.join(missing)} not there (Debian: apt-get install slurm-wlm munge)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(told)
    slurm = Slurm(folder)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.close()


def _free_ports(n: int) -> Sequence[int]:
    """Below those that the system gives to connections: a node that is started again finds its own still free."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            found.append(port)
    return found[:n]


def until(
    happened: Callable[[], Any], what: str, seconds: float = PATIENCE, tell: Callable[[], str] = lambda: ""
) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what} {tell()}"
        time.sleep(0.2)
