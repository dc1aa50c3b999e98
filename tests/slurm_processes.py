"""SLURM on this machine: munged, slurmctld and two slurmd as processes, with a configuration of their own."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.small_corpora import environment

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "unshare")
NODES = ("n1", "n2")
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
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
        _until(socket_.exists, "munged made its socket")
        self._start("slurmctld", "-D", "-i")
        for node in NODES:
            self.start_node(node)
        _until(lambda: self.said("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * 2, "nodes are idle")

    def start_node(self, node: str) -> None:
        apart = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
        self._nodes[node] = self._start(*apart, "slurmd", "-D", "-N", node)

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
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout

    def submit(self, script: Path, *options: str, **variables: str) -> str:
        """The number of the job."""
        done = subprocess.run(
            ["sbatch", "--parsable", *options, str(script)], env={**self.environment, **variables},
            cwd=script.parent, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def control(self, *arguments: str) -> None:
        subprocess.run(["scontrol", *arguments], env=self.environment, check=True, timeout=60)

    def cancel(self, *arguments: str) -> None:
        subprocess.run(["scancel", *arguments], env=self.environment, check=True, timeout=60)

    def job(self, number: str) -> dict[str, str]:
        """What the controller says of a job: JobState, Restarts, ExitCode, StartTime, …"""
        told = self.said("scontrol", "show", "job", "--oneliner", number)
        return dict(re.findall(r"(\S+?)=(\S*)", told))

    def until(
        self, number: str, wanted: Callable[[dict[str, str]], Any], seconds: float = 90
    ) -> dict[str, str]:
        """Wait until a job is as wanted."""
        _until(lambda: wanted(self.job(number)), f"job {number}", seconds, lambda: str(self.job(number)))
        return self.job(number)

    def ended(self, number: str, seconds: float = 90) -> dict[str, str]:
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
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _until(
    happened: Callable[[], Any], what: str, seconds: float = 60, tell: Callable[[], str] = lambda: ""
) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what} {tell()}"
        time.sleep(0.2)
