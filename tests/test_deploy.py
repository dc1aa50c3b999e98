"""deploy/local, deploy/cron and deploy/systemd: what they hold is run, with the lines changed that a user changes."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nmf_dask.config import ModelSettings, RunSettings, VectorizerSettings
from nmf_dask.corpus.partitions import MIB
from nmf_dask.pipeline.planning import Memory, expected_memory, expected_staging
from tests.deployed import DEPLOY, copied
from tests.faulty_command import Driver, slow_pass
from tests.small_corpora import environment, files_of, generated_texts, run_command, wh_bytes, write_corpus

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), generated_texts(800), 3)


@pytest.fixture
def job_file(tmp_path: Path, corpus: Path) -> Path:
    """A job whose model folder lies beside it."""
    file = tmp_path / "job.toml"
    file.write_text(
        f"[corpus]\ninput = '{corpus}'\nid_column = 'doc_id'\npartition_bytes = 20000\n"
        "[model]\nn_components = 6\nbeta_loss = 'kullback-leibler'\nmax_iter = 12\ntol = 0\n"
        f"[output]\noutput = '{tmp_path / 'model'}'\n"
    )
    return file


def run_of(model: Path) -> Path:
    return model / "runs" / (model / "LATEST").read_text().strip()


@contextmanager
def running(script: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    with (script.parent / "cluster.log").open("a") as log:
        process = subprocess.Popen(
            [script, *arguments], stdout=log, stderr=log, env=environment(), start_new_session=True
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_local_a_tls_cluster_of_three_workers(tmp_path, job_file):
    """The scripts as they stand: the same bytes as in one process, and a client without certificates is refused."""
    subprocess.run([DEPLOY / "local/certificates.sh", tmp_path / "tls"], check=True, capture_output=True)
    assert {oct(file.stat().st_mode & 0o77) for file in (tmp_path / "tls").iterdir()} == {"0o0"}
    common = {"shared": f"shared={tmp_path}", "source": f"export PATH={PATH}"}
    for name, last in (("scheduler", {"port": "port=0"}), ("workers", {"memory": "memory=1GiB"})):
        script = tmp_path / f"{name}.sh"
        script.write_text(copied(f"local/{name}.sh", common | last))
        script.chmod(0o755)
    fit = (
        "fit",
        job_file,
        "--workers",
        3,
        "--workers-timeout",
        60,
        "--scheduler",
        tmp_path / "scheduler.json",
    )
    with running(tmp_path / "scheduler.sh"), running(tmp_path / "workers.sh", "3"):
        done = run_command(*fit, DASK_CONFIG=str(tmp_path / "tls" / "dask.yaml"))
        assert done.returncode == 0, done.stderr + (tmp_path / "cluster.log").read_text()
        assert "3 workers, 3 threads" in done.stderr
        address = json.loads((tmp_path / "scheduler.json").read_text())["address"]
        assert address.startswith("tls://")
        for plain in (address, address.replace("tls://", "tcp://")):
            refused = run_command("fit", job_file, "--output", tmp_path / "m", "--scheduler", plain)
            assert refused.returncode in (2, 75), refused.stderr
            assert "TLS" in refused.stderr
    alone = run_command("fit", job_file, "--output", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    assert wh_bytes(run_of(tmp_path / "model")) == wh_bytes(run_of(tmp_path / "alone"))


def test_local_nobody_starts_without_certificates(tmp_path):
    """Dask would take the file that is missing for none, and let in whoever comes."""
    common = {"shared": f"shared={tmp_path}", "source": f"export PATH={PATH}"}
    for name, last in (("scheduler", {"port": "port=0"}), ("workers", {"memory": "memory=1GiB"})):
        script = tmp_path / f"{name}.sh"
        script.write_text(copied(f"local/{name}.sh", common | last))
        done = subprocess.run(["bash", script, "1"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert f"{tmp_path}/tls/dask.yaml is not there: certificates.sh" in done.stderr
    assert not (tmp_path / "scheduler.json").exists()


def nightly_commands(kind: str, folder: Path, job_file: Path) -> tuple[list[str], dict[str, str]]:
    """The command of a crontab's line or of a unit, and its environment, with the three lines a user changes."""
    found = shutil.which("nmf-dask", path=PATH)
    assert found is not None
    if kind == "cron":
        lines = (DEPLOY / "cron/crontab").read_text().splitlines()
        lines = [line for line in lines if not line.startswith("#")]
        variables = dict(line.split("=", 1) for line in lines if re.match(r"[A-Z_]+=", line))
        assert list(variables) == ["NMF_DASK", "JOB", "LOG"]
        [line] = [line for line in lines if not re.match(r"[A-Z_]+=", line)]
        *times, command = line.split(None, 5)
        assert times == ["17", "2-6", "*", "*", "*"]
        assert "%" not in command  # cron makes a line end of it
        given = {"NMF_DASK": found, "JOB": str(job_file), "LOG": str(folder / "log")}
        return ["/bin/sh", "-c", command], given
    [line] = re.findall(r"^ExecStart=(.*)$", unit_of(folder, job_file), re.MULTILINE)
    return shlex.split(line), {}


def unit_of(folder: Path, job_file: Path) -> str:
    """The service with its three lines changed."""
    text = (DEPLOY / "systemd/nmf-dask-fit.service").read_text()
    numbered = r"^# (\d)\. .*\n(.*)$"
    assert [number for number, _ in re.findall(numbered, text, re.MULTILINE)] == ["1", "2", "3"]
    found = str(shutil.which("nmf-dask", path=PATH))
    text = text.replace("User=nmf-dask", "User=root").replace(
        "/etc/nmf-dask/environment", f"{folder}/variables"
    )
    return text.replace("/opt/nmf-dask/bin/nmf-dask", found).replace("/etc/nmf-dask/job.toml", str(job_file))


def run_nightly(kind: str, folder: Path, job_file: Path) -> "subprocess.CompletedProcess[str]":
    command, variables = nightly_commands(kind, folder, job_file)
    return subprocess.run(
        command, env=environment(**variables), cwd=folder, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cron", "systemd"])
def test_nightly_commands_do_not_overlap_and_do_nothing_twice(tmp_path, job_file, kind):
    begun, slow = slow_pass(tmp_path)
    first = Driver("many", "fit", job_file, **slow)
    assert first.until(begun)
    second = run_nightly(kind, tmp_path, job_file)
    log = (tmp_path / "log").read_text() if kind == "cron" else second.stderr
    assert second.returncode == 75, log
    assert "is locked by process" in log
    (tmp_path / "slow").unlink()
    first.done()
    before = files_of(tmp_path / "model")
    third = run_nightly(kind, tmp_path, job_file)
    assert third.returncode == 0, third.stderr
    assert files_of(tmp_path / "model") == before
    out = (tmp_path / "log").read_text() if kind == "cron" else third.stdout
    assert json.loads(out.splitlines()[-1])["finished_before"] is True


def test_systemd_finds_the_units_right(tmp_path, job_file):
    if shutil.which("systemd-analyze") is None:
        told = "systemd-analyze is not installed (Debian: apt-get install systemd)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(told)
    service, timer = tmp_path / "nmf-dask-fit.service", tmp_path / "nmf-dask-fit.timer"
    service.write_text(unit_of(tmp_path, job_file))
    timer.write_bytes((DEPLOY / "systemd" / timer.name).read_bytes())
    done = verified(service, timer)
    assert (done.returncode, done.stderr) == (0, "")
    service.write_text(service.read_text().replace("RestartSec", "RestartSecs"))
    assert "RestartSecs" in verified(service, timer).stderr


def verified(*units: Path) -> "subprocess.CompletedProcess[str]":
    command: list[Any] = ["systemd-analyze", "verify", *units]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_systemd_tries_again_after_75_alone():
    from nmf_dask import errors

    text = (DEPLOY / "systemd/nmf-dask-fit.service").read_text()
    told = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    assert told["RestartForceExitStatus"] == str(errors.RetryableError.exit_code)
    assert told["Restart"] == "on-abnormal"  # deaths by a signal, and no exit code
    assert int(told["TimeoutStopSec"]) > 10  # that long may a checkpoint take


def test_sizes_are_those_of_the_plan():
    """deploy/README.md: the dry run that it shows, by what it says of its input, and what is said after it."""
    text = " ".join((DEPLOY / "README.md").read_text("utf-8").split())

    def told(pattern: str) -> list[float]:
        [found] = re.findall(pattern, text)
        return [float(one.replace(",", "")) for one in ([found] if isinstance(found, str) else found)]

    rows, text_mib = told(r"([\d,]+) documents, ([\d.]+) MiB of text")
    [largest] = told(r"the largest with ([\d.]+) MiB")

    def planned(ngrams: tuple[int, int]) -> tuple[Memory, int]:
        vectorizer, model = VectorizerSettings(ngram_range=ngrams), ModelSettings(n_components=50)
        memory = expected_memory(
            text_bytes=int(text_mib * MIB), partition_bytes=int(largest * MIB), n_rows=int(rows), threads=1,
            vectorizer=vectorizer, model=model, in_process=False,
        )  # fmt: skip
        every = RunSettings().checkpoint_every
        return memory, expected_staging(int(text_mib * MIB), int(rows), vectorizer, model, every)

    (memory, staging), (memory_of_two, staging_of_two) = planned((1, 1)), planned((1, 2))
    assert told(r"driver ([\d.]+) MiB, each") == pytest.approx([memory.driver / MIB], rel=0.01)
    assert told(r"each worker ([\d,.]+) MiB") == pytest.approx([memory.worker / MIB], rel=0.01)
    assert told(r"staging ([\d.]+) GiB") == pytest.approx([staging / 2**30], rel=0.03)
    single, pairs = (size / (text_mib * MIB) for size in (staging, staging_of_two))
    assert told(r"\*\*Disk\*\*: ([\d.]+) GB a GB .* it is ([\d.]+) GB\.") == pytest.approx(
        [single, pairs], rel=0.03
    )
    enough, enough_of_two = told(r"([\d.]+) GiB is enough here, ([\d.]+) GiB for `--ngram-range 1,2`")
    assert 0.8 * enough < memory.worker / 2**30 <= enough
    assert 0.8 * enough_of_two < memory_of_two.worker / 2**30 <= enough_of_two
