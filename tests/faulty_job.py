"""A job in a process of its own that something happens to at a chosen moment.

    python -m tests.faulty_job SETTINGS.json MOMENT ACTION

MOMENT is a stage's name, a stage's name and number such as count:2 (so many of its tasks are done), or
pass:3 (so many passes are). ACTION is kill or term.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from nmf_dask import schedule
from nmf_dask.cli import main
from nmf_dask.config import Settings
from nmf_dask.observer import Observer, Pass
from nmf_dask.pipeline import fit
from nmf_dask.pipeline.fitting import one_task


class Fate(Observer):
    """Does something, once, when the moment comes."""

    def __init__(self, moment: str, action: str) -> None:
        self.moment = moment
        self.action = action
        self.name = ""

    def stage(self, name: str, total: int | None = None) -> None:
        self.name = name
        self.comes(name)

    def advance(self, done: int, n_bytes: int = 0) -> None:
        self.comes(f"{self.name}:{done}")

    def passed(self, row: Pass) -> None:
        self.comes(f"pass:{row.iteration}")

    def comes(self, moment: str) -> None:
        if moment != self.moment:
            return
        self.moment = ""
        os.kill(os.getpid(), signal.SIGKILL if self.action == "kill" else signal.SIGTERM)


def run(settings_file: str, moment: str, action: str) -> int:
    import nmf_dask.cli.fit as command

    settings = Settings.model_validate_json(Path(settings_file).read_text())
    one_task.TURN_SECONDS = 0.0  # each pass is heard of at once
    if settings.corpus.partition_bytes % 2:
        schedule.ONE_TASK_BYTES = 0
    if action == "term":
        # By way of the command line, which knows what a signal means.
        def job(*_: Any) -> None:
            fit(settings, Fate(moment, action))

        command.run = job
        return main(
            ["fit", "--input", settings.corpus.input[0], "--output", settings.output.output or "", "-k", "5"]
        )
    fit(settings, Fate(moment, action))
    return 0


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
