"""A thousand seeded inputs through the real command: none ends in a traceback, a crash, or half a model.

What is generated, and what must come of it, stands in tests/fuzz. A case that fails names its seed;
`python -m tests.fuzz.runner FOLDER SEED` runs it again and leaves its files in the folder.
"""

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import damage, layouts, schemas, strings
from tests.fuzz.cases import KINDS, TURNS, kind_of
from tests.small_corpora import ROOT, environment

CASES = 1000
PROCESSES = 2


def run_seeds(folder: Path, seeds: list[int]) -> list[dict[str, Any]]:
    """What the runner tells of each seed; for one that killed it, how it died, and the rest in a new process."""
    folder.mkdir()
    told: list[dict[str, Any]] = []
    while seeds:
        command = [sys.executable, "-m", "tests.fuzz.runner", str(folder), *map(str, seeds)]
        (folder / "log").write_text("")
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900
        )
        lines = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
        told += [line for line in lines if "seed" in line]
        if done.returncode == 0:
            return told
        assert lines, done.stderr
        killer = lines[-1].get("begun", lines[-1].get("seed"))
        died = f"the process ended with {done.returncode}: {done.stderr[-3000:]}"
        told.append({"seed": killer, "kind": kind_of(killer), "code": None, "problems": [died], "stderr": ""})
        seeds = seeds[seeds.index(killer) + 1 :]
    return told


@pytest.mark.slow
def test_a_thousand_inputs(tmp_path):
    shares = [list(range(first, CASES, PROCESSES)) for first in range(PROCESSES)]
    with ThreadPoolExecutor(PROCESSES) as pool:
        told = [
            line
            for lines in pool.map(run_seeds, [tmp_path / f"{i}" for i in range(PROCESSES)], shares)
            for line in lines
        ]
    print("exit codes:", dict(Counter(str(line["code"]) for line in told)))
    wrong = [line for line in told if line["problems"]]
    assert not wrong, "\n".join(
        f"seed {line['seed']} ({line['kind']}): {'; '.join(line['problems'])}\n{line['stderr']}"
        for line in wrong
    )
    assert sorted(line["seed"] for line in told) == list(range(CASES))


def test_every_kind_has_its_turn():
    modules = {module.__name__.rpartition(".")[2] for module in (damage, layouts, schemas, strings)}
    turns = Counter(map(kind_of, range(CASES)))
    assert turns.keys() == KINDS.keys()
    assert len(TURNS) == CASES
    assert {name.partition(".")[0] for name in turns} == modules
