"""What a job does where workers died under a task: it may kill them all, or merely have been there.

Dask counts the workers that die while they have a task, be it running or waiting for its turn, and gives the task up
at a number that belongs to the scheduler, which may be somebody else's (`distributed.scheduler.allowed-failures`).
Where workers are killed all the time, an innocent task gets there too. So what was given up is handed out again, by
way of the files that are staged; a task that really kills every worker it meets ends the job after `MOST_DEATHS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from nmf_dask.corpus import Partition
from nmf_dask.errors import RetryableError
from nmf_dask.tasks import ClusterLost, TaskKilledWorkers, Tasks, let_go

# Under one task, or without anything new in between. Dask gives a task up after 4, unless it is told otherwise: so
# there are two times of these.
MOST_DEATHS = 6

_LOWER = "lower corpus.partition_bytes"
_LOWER_ALL = "lower --max-features, -k or corpus.partition_bytes"
# What makes the tasks of a stage smaller; the stages in their order.
REMEDIES = {
    "ingest": _LOWER,
    "count": _LOWER,
    "select": "raise min_df, or narrow ngram_range",
    "weigh": _LOWER,
    "init": _LOWER_ALL,
    "fit": _LOWER_ALL,
    "write": _LOWER,
    "transform": _LOWER,
    "evaluate": _LOWER,
    "perturb": _LOWER_ALL,
}
_STAGES = tuple(REMEDIES)
P = TypeVar("P", bound=Partition)


@dataclass
class Patience:
    """How long to go on: the workers that died under tasks since the job last got further."""

    deaths: int = 0
    furthest: tuple[int, int] = (0, 0)
    _judged_at: tuple[int, int] = (-1, 0)

    @property
    def stage(self) -> str:
        """The stage that the job got to."""
        return _STAGES[self.furthest[0]]

    def reached(self, stage: str, done: int = 0) -> None:
        """So much of a stage is done; what was done before is nothing new."""
        self.furthest = max(self.furthest, (_STAGES.index(stage), done))

    def check(self, error: TaskKilledWorkers) -> None:
        """A task was given up: raise RetryableError for the user where it is time to give up the job as well."""
        if self.furthest > self._judged_at:
            self.deaths = 0
        self._judged_at = self.furthest
        self.deaths += error.deaths
        if self.deaths >= MOST_DEATHS:
            since = f", {self.deaths} since the job last got further" if self.deaths > error.deaths else ""
            raise told(f"{error}{since}", self.stage) from error


def tried_alone(
    tasks: Tasks, again: Callable[[], Any], error: TaskKilledWorkers, where: str, stage: str
) -> Any:
    """The value of a call that was given up, as `again` hands it out anew: without those that it was with.

    Raises RetryableError, which says where, if it is the call that kills, or nobody is left to try it on.
    """
    deaths, ending = error.deaths, ""
    while deaths < MOST_DEATHS:
        try:
            return tasks.fetch(again())
        except TaskKilledWorkers as another:
            deaths += another.deaths
            error = another
        except ClusterLost as lost:
            ending = f"; {lost}"
            break
    all_told = TaskKilledWorkers(error.task, deaths, error.last_worker)
    raise told(f"{where}: {all_told}{ending}", stage) from error


def awaited(
    tasks: Tasks,
    stage: str,
    partitions: Sequence[P],
    handles: Sequence[Any],
    again: Callable[[P], Any] | None = None,
) -> Iterator[tuple[int, Any]]:
    """Position and value of one handle a partition, as they come; an error names the partition.

    A task that was given up is handed out anew by `again`, where that is given: without those that it was with.
    """
    for position in tasks.completed(handles):
        try:
            value = tasks.fetch(handles[position])
        except TaskKilledWorkers as error:
            partition = partitions[position]
            if again is None:
                raise error.under(stage, partition) from error
            let_go(error)
            value = tried_alone(tasks, partial(again, partition), error, str(partition), stage)
        yield position, value


def told(what: str, stage: str) -> RetryableError:
    """The end of the job for its user: what workers died of, as far as is known, and what to change."""
    return RetryableError(
        f"{what}: they may have run out of memory. Give workers more (--memory-limit, or where those of a running "
        f"cluster are started), or {REMEDIES[stage]}"
    )
