"""Runs cases through the real command line, in this process: `python -m tests.fuzz.runner FOLDER SEED …`.

A process of its own, because what is fed to Arrow here could kill it: the log says which seed was begun last.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fuzz import damage, layouts, schemas, strings  # noqa: F401 - they register their kinds
from tests.fuzz.cases import Case, make
from tests.fuzz.expected import Outcome, problems

# A case that takes longer hangs; the stack of where is printed, and the process ends. The first may have to compile.
SECONDS_A_CASE = 240.0
COMMON = ("--threads-per-worker", "1", "-k", "2", "--min-df", "1", "--max-df", "1.0", "--max-iter", "3")


def arguments_of(case: Case, folder: Path) -> list[str]:
    """The command line of a case; flags that a case gives itself come last, and win."""
    inputs = case.expected.inputs or (str(folder / "corpus"),)
    named = [part for one in inputs for part in ("--input", one)]
    own = case.expected.arguments
    common = [
        part
        for flag, value in zip(COMMON[::2], COMMON[1::2], strict=True)
        if flag not in own
        for part in (flag, value)
    ]
    as_json = ["--log-format", "json"] if case.seed % 4 == 3 else []
    return ["fit", *named, "--output", str(folder / "model"), *common, *as_json, *own]


def run_case(seed: int, folder: Path, *more: str) -> tuple[Case, Outcome, list[str]]:
    """Make a case, run it, and say what went wrong."""
    from nmf_dask.cli import main

    (folder / "corpus").mkdir(parents=True)
    case = make(seed, folder / "corpus")
    arguments = [*arguments_of(case, folder), *more]
    with captured(folder):
        code = main(arguments)
    outcome = Outcome(
        code, (folder / "stdout").read_text(), (folder / "stderr").read_text(), "--log-format" in arguments
    )
    return case, outcome, list(problems(case.expected, outcome, folder / "model"))


@contextmanager
def captured(folder: Path) -> Iterator[None]:
    """Whatever this process prints, native libraries too, in files of the folder."""
    kept = {}
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        kept[descriptor] = os.dup(descriptor)
        file = os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)


def is_news(record: logging.LogRecord) -> bool:
    """Whether a line of asyncio's is of the case that runs; what an earlier case's cluster left is collected later."""
    return not str(record.msg).startswith("Future exception was never retrieved")


def main(folder: Path, seeds: list[int]) -> None:
    """Run the seeds in order, one line of JSON each before and after, in `folder`/log."""
    stacks = os.fdopen(os.dup(2), "w")
    faulthandler.enable(stacks)
    logging.getLogger("asyncio").addFilter(is_news)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("a") as log:
        for seed in seeds:
            print(json.dumps({"begun": seed}), file=log, flush=True)
            faulthandler.dump_traceback_later(SECONDS_A_CASE, exit=True, file=stacks)
            started = time.perf_counter()
            place = folder / str(seed)
            case, outcome, wrong = run_case(seed, place)
            faulthandler.cancel_dump_traceback_later()
            told = {
                "seed": seed,
                "kind": case.kind,
                "code": outcome.code,
                "problems": wrong,
                "stderr": outcome.stderr[-2000:] if wrong else "",
                "seconds": time.perf_counter() - started,
            }
            print(json.dumps(told), file=log, flush=True)
            if not wrong:
                shutil.rmtree(place)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]])
