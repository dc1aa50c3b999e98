"""The factorization of staged blocks: in one task where that is enough, over all workers where it is not."""

from __future__ import annotations

from nmf_dask.pipeline.fitting.many_tasks import ManyTasks
from nmf_dask.pipeline.fitting.one_task import OneTask
from nmf_dask.pipeline.fitting.problem import EarlierFit, Problem
from nmf_dask.pipeline.fitting.progress import Fitting
from nmf_dask.schedule import fits_one_task
from nmf_dask.store import Folder
from nmf_dask.tasks import Tasks

__all__ = ["EarlierFit", "Fitting", "Problem", "fitting_of"]


def fitting_of(tasks: Tasks, problem: Problem, passes: Folder) -> Fitting:
    """The way to fit that the sizes ask for; files that it needs until the next checkpoint are in `passes`."""
    return OneTask(tasks, problem) if fits_one_task(problem.sizes) else ManyTasks(tasks, problem, passes)
