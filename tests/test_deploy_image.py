"""deploy/Dockerfile, really built, and run as Kubernetes would: uid 10001, no capability, a root that is read-only."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.small_corpora import ROOT

NAME = "localhost/nmf-dask-test"
# What a runtime does with the settings of a pod: mounts of its own, then the user without anything else.
RUN = """
mount --bind "$ROOT" "$ROOT"
mount -o remount,bind,ro "$ROOT"
test -z "$TMP" || mount --bind "$TMP" "$ROOT/tmp"
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
cd "$ROOT"
exec chroot "$ROOT" setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set=-all \
    --inh-caps=-all env -i "$@"
"""


def buildah(*arguments: str) -> str:
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Image:
    """A built image, and its root file system."""

    def __init__(self, root: Path, config: dict[str, Any], seconds: float) -> None:
        self.root, self.config, self.seconds = root, config, seconds

    def run(self, tmp: Path | None, *command: str) -> "subprocess.CompletedProcess[str]":
        """What the entry point makes of a command, /tmp being a folder (None: read-only as everything else)."""
        if tmp is not None:
            os.chown(tmp, 10001, 10001)
        return subprocess.run(
            [
                "unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-euc", RUN,
                "sh", *self.config["Env"], *self.config["Entrypoint"], *command,
            ],
            capture_output=True, text=True, timeout=300,
            env={"PATH": os.environ["PATH"], "ROOT": str(self.root), "TMP": str(tmp or "")},
        )  # fmt: skip


def why_not() -> str:
    """What is missing for a build; nothing is, in CI."""
    if os.geteuid() != 0 or sys.platform != "linux":
        return "an image is built as root, on Linux"
    missing = [tool for tool in ("buildah", "debootstrap", "unshare") if shutil.which(tool) is None]
    return f"{', '.join(missing)} not installed" if missing else ""


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    if reason := why_not():
        pytest.skip(reason)
    begun = time.monotonic()
    built = subprocess.run([str(ROOT / ".ci" / "image"), NAME], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    seconds = time.monotonic() - begun
    with pytest.MonkeyPatch.context() as patch:
        for line in built.stdout.splitlines():  # how it was built, for whoever uses it
            patch.setenv(*line.split("=", 1))
        config = json.loads(buildah("inspect", "--type", "image", NAME))["Docker"]["config"]
        container = buildah("from", "--pull-never", NAME)
        try:
            yield Image(Path(buildah("mount", container)), config, seconds)
        finally:
            buildah("rm", container)


def cpu_seconds() -> float:
    """Of the processes that this one started and that ended: how busy the machine is makes little difference."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def kernels(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*.nbc")}


@pytest.mark.slow
def test_the_demo_runs_in_the_image(image, tmp_path):
    """And compiles nothing, nor does a job of the other loss; without the kernels it takes longer."""
    warm, cold = tmp_path / "warm", tmp_path / "cold"
    warm.mkdir()
    (cold / "nmf-dask-kernels").mkdir(parents=True)
    os.chown(cold / "nmf-dask-kernels", 10001, 10001)
    took = {}
    for tmp in (warm, cold):
        begun = cpu_seconds()
        done = image.run(tmp, "nmf-dask", "demo", "-q", "--output", "/tmp/demo")
        took[tmp.name] = cpu_seconds() - begun
        assert done.returncode == 0, done.stderr
        assert (tmp / "demo" / "model" / "LATEST").stat().st_uid == 10001
    print(
        f"built in {image.seconds:.0f} s; the demo's CPU: {took['warm']:.1f} s, without kernels {took['cold']:.1f} s"
    )
    assert took["warm"] < 0.7 * took["cold"]
    held = kernels(image.root / "opt" / "nmf-dask" / "kernels")
    assert len(held) > 40
    job = ("--input", "/tmp/demo/corpus/demo-00000.parquet", "-k", "4", "--max-iter", "5")
    for command in (
        ("fit", *job, "--beta-loss", "kullback-leibler", "--output", "/tmp/kl"),
        ("fit", *job, "--solver", "mu", "--workers", "2", "--id-column", "doc_id", "--output", "/tmp/mu"),
        ("transform", *job[:2], "--model", "/tmp/kl", "--output", "/tmp/w"),
    ):
        done = image.run(warm, "nmf-dask", *command, "-q")
        assert done.returncode == 0, done.stderr
    assert kernels(warm / "nmf-dask-kernels") == held
    assert kernels(cold / "nmf-dask-kernels") <= held  # for the same CPU, by the same names


@pytest.mark.slow
def test_what_a_container_may_do(image, tmp_path):
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    script = "id -u; id -g; touch /opt/nmf-dask/x || echo read-only; grep -h CapEff /proc/self/status"
    done = image.run(tmp, "/bin/sh", "-c", script)
    lines = done.stdout.split()
    assert lines == ["10001", "10001", "read-only", "CapEff:", "0000000000000000"], done
    assert image.config["User"] == "10001:10001"
    # Without a place to write, too, the command starts; it is only slower.
    health = image.config["Healthcheck"]["Test"]
    assert health[0] == "CMD"
    done = image.run(None, *health[1:])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nmf-dask, version")
    # A wrong command has the exit code that the deployments go by.
    assert image.run(tmp, "nmf-dask", "fit", "--nonsense").returncode == 2


@pytest.mark.slow
def test_the_image_holds_the_pins_and_no_setting_of_pip(image, tmp_path):
    python = image.root / "opt" / "nmf-dask" / "lib"
    [packages] = python.glob("python3*/site-packages")
    installed = {
        "==".join(info.name.removesuffix(".dist-info").rsplit("-", 1)).lower().replace("-", "_")
        for info in packages.glob("*.dist-info")
    }
    pins = (ROOT / "deploy" / "constraints.txt").read_text("utf-8").lower().replace("-", "_").splitlines()
    assert {pin for pin in pins if pin and not pin.startswith("#")} <= installed
    assert not (image.root / "etc" / "pip.conf").exists() or not (image.root / "etc" / "pip.conf").read_text()
    assert not [name for name in image.config["Env"] if name.startswith(("PIP_", "AWS_"))]
    for place in ("wheels", "build", "tmp/demo"):
        folder = image.root / place
        assert not folder.exists() or not any(folder.iterdir()), place
