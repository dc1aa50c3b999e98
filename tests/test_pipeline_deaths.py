"""When a job gives up, whose workers die under its tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nmf_dask.errors import RetryableError
from nmf_dask.pipeline.deaths import MOST_DEATHS, Patience, tried_alone
from nmf_dask.tasks import ClusterLost, SerialTasks, TaskKilledWorkers


def given_up(deaths: int, task: str = "visit-abc-7") -> TaskKilledWorkers:
    return TaskKilledWorkers(task, deaths, "tcp://10.0.0.1:4000")


class Fetching(SerialTasks):
    """Tasks that end as a list says: with an error, or a value."""

    def __init__(self, *ends: Any) -> None:
        super().__init__()
        self.ends = list(ends)

    def fetch(self, handle: Any) -> Any:
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end


def alone(tasks: SerialTasks, error: TaskKilledWorkers) -> Any:
    return tried_alone(tasks, lambda: None, error, "partition 3 (part-0)", "count")


def test_a_task_that_ends_alone_is_innocent() -> None:
    assert alone(Fetching("value"), given_up(4)) == "value"
    assert alone(Fetching(given_up(1), given_up(1), "value"), given_up(1)) == "value"


@pytest.mark.parametrize(("allowed", "times"), [(1, 5), (2, 2), (4, 1), (MOST_DEATHS, 0), (50, 0)])
def test_a_task_that_kills_is_named_after_as_many_deaths_whatever_the_scheduler_allows(
    allowed: int, times: int
) -> None:
    tasks = Fetching(*[given_up(allowed)] * times)
    with pytest.raises(
        RetryableError,
        match=rf"^partition 3 \(part-0\): {allowed * (times + 1)} workers died under task visit-abc-7",
    ) as told:
        alone(tasks, given_up(allowed))
    assert tasks.ends == []
    assert "or lower corpus.partition_bytes" in str(told.value)


def test_a_task_is_named_where_nobody_is_left_to_try_it_on() -> None:
    with pytest.raises(
        RetryableError, match=r"^partition 3 .*: 4 workers died .*; no other came within 300 s: they"
    ):
        alone(Fetching(ClusterLost("no other came within 300 s")), given_up(4))


def test_patience_ends_where_nothing_new_is_done_between_deaths() -> None:
    patience = Patience()
    patience.reached("fit", 3)
    patience.check(given_up(4))
    patience.reached("fit", 2)  # from a checkpoint on, up to where it was
    patience.reached("fit", 3)
    with pytest.raises(
        RetryableError, match=r"4 workers died .*, 8 since the job last got further: .* lower --max-"
    ):
        patience.check(given_up(4))


@pytest.mark.parametrize(
    "further",
    [lambda p: p.reached("fit", 4), lambda p: p.reached("write"), lambda p: p.reached("write", 1)],
)
def test_patience_begins_anew_where_the_job_got_further(further: Callable[[Patience], None]) -> None:
    patience = Patience()
    patience.reached("fit", 3)
    patience.check(given_up(4))
    further(patience)
    patience.check(given_up(4))
    with pytest.raises(RetryableError):
        patience.check(given_up(4))


def test_a_scheduler_that_allows_many_deaths_is_not_asked_twice() -> None:
    with pytest.raises(
        RetryableError, match=r"^10 workers died under task visit-abc-7, the last tcp:[^,]*: they may"
    ):
        Patience().check(given_up(10))


def test_what_a_task_was_about_is_said_of_its_own_kind_alone() -> None:
    error = given_up(1, "write-abc-5")
    assert str(error.under("write", "partition 5")).startswith(
        "1 worker died under task write-abc-5 (partition 5), "
    )
    assert "partition" not in str(error.under("visit", "partition 5"))
