"""What a Dask worker loads to write down what it runs, to take its time, and to meet with a fate in the middle.

It is a preload of Dask's (`distributed.worker.preload`). The environment variable FAULTS names a folder:

    workers              a line for each worker: its process and its address
    log                  a line for each call: label, process, and what it was about
    slow                 seconds that each call takes longer
    die-LABEL-NUMBER     a fate: the worker that runs LABEL next takes it, and dies
    stop-LABEL-NUMBER    the same; its process group stops, as a machine that hangs
    cut-LABEL-NUMBER     the same; a worker in a network namespace of its own loses the network

A fate whose NUMBER is `always` is not used up.
"""

import functools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nmf_dask.distributed
import nmf_dask.pipeline.fitting.files
import nmf_dask.pipeline.fitting.many_tasks
import nmf_dask.pipeline.fitting.problem
import nmf_dask.pipeline.stages
import nmf_dask.vocabulary
from nmf_dask.factorization import Close, FoldIn

FOLDER = Path(os.environ["FAULTS"])
DEVICE = os.environ.get("FAULTS_DEVICE")  # of the network namespace that this worker has for itself
_outer = threading.local()


def write_down(label: str, about: object = "") -> None:
    with (FOLDER / "log").open("a") as log:  # one short write: lines of several workers do not mix
        log.write(f"{label} {os.getpid()} {about}\n")


def meet_fate(label: str) -> None:
    for fate in sorted(FOLDER.glob(f"*-{label}-*")):
        action, _, number = fate.name.split("-")
        if action == "cut" and DEVICE is None:
            continue
        if number != "always":
            try:
                fate.unlink()
            except FileNotFoundError:
                continue  # another worker's
        write_down(action, label)
        if action == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "stop":
            os.killpg(0, signal.SIGSTOP)
        else:
            subprocess.run(["ip", "link", "set", "dev", str(DEVICE), "down"], check=True)


def watched(
    label: str | Callable[..., str], about: Callable[..., object], function: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        if getattr(_outer, "runs", False):  # a part of another call
            return function(*arguments)
        _outer.runs = True
        try:
            name = label if isinstance(label, str) else label(*arguments)
            write_down(name, about(*arguments))
            time.sleep(float((FOLDER / "slow").read_text()))
            meet_fate(name)
            return function(*arguments)
        finally:
            _outer.runs = False

    return call


def nothing(*_: Any) -> str:
    return ""


def kind_of_visit(step: Any, *_: Any) -> str:
    return "start" if isinstance(step, FoldIn) else "visit"


def strip_of_visit(step: Any, blocks: Any, strip: Any, *_: Any) -> str:
    """The first of the strip's rows, which tells it from the others."""
    return f"{strip[0].block}:{strip[0].start}"


def watch(
    place: Any, name: str, label: str | Callable[..., str], about: Callable[..., object] = nothing
) -> None:
    setattr(place, name, watched(label, about, getattr(place, name)))


watch(nmf_dask.pipeline.stages.CorpusTasks, "_counted", "count", lambda _, partition: partition.index)
watch(nmf_dask.pipeline.stages, "weigh", "weigh")
watch(nmf_dask.pipeline.stages.WriteTasks, "write", "write", lambda _, partition, *more: partition.index)
watch(nmf_dask.vocabulary, "select", "select")
watch(nmf_dask.pipeline.fitting.many_tasks, "fit_sample", "sample")
watch(nmf_dask.pipeline.fitting.files, "save_weights", "save", lambda file, *_: file.name)
watch(nmf_dask.pipeline.fitting.files, "load_weights", "load", lambda file: file.name)
watch(nmf_dask.pipeline.fitting.files, "save_outcome", "keep")
watch(nmf_dask.pipeline.fitting.files, "load_outcome", "kept")
watch(nmf_dask.distributed, "visit_a_strip", kind_of_visit, strip_of_visit)
watch(Close, "__call__", "update")
# As `small_strips` of the tests has it in the process of the job.
nmf_dask.pipeline.fitting.problem.strip_count = lambda sizes, beta_loss: 8


def dask_setup(worker: Any) -> None:
    with (FOLDER / "workers").open("a") as workers:
        workers.write(f"{os.getpid()} {worker.address}\n")
