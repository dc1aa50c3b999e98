"""Every recipe of docs/recipes.md runs, and says what it should."""

from __future__ import annotations

import difflib
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nmf_dask.cli import main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
FOUND = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
BLOCKS = [
    (title, number, block)
    for title, text in FOUND
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
]
SUBJECTS = [
    "star galaxy dust orbit planet moon telescope comet nebula light",
    "court judge law treaty vote senate appeal statute crime jury",
    "cell gene protein enzyme tissue virus plant root leaf seed",
]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(SUBJECTS[i % 3].split(), 12)) for i in range(300)]
    (tmp_path / "corpus").mkdir()
    for part in range(3):
        pq.write_table(
            pa.table({"text": texts[part::3][:50] + texts[part::2][:50]}), f"{tmp_path}/corpus/{part}.parquet"
        )
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("corpus")
@pytest.mark.filterwarnings("ignore")  # of the libraries that recipes lead to
@pytest.mark.parametrize("block", [b for _, _, b in BLOCKS], ids=[f"{t[:24]} {n}" for t, n, _ in BLOCKS])
def test_recipe_runs(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, str(PAGE), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.mark.usefixtures("corpus")
def test_commands_of_recipes_run(capsys: pytest.CaptureFixture[str]) -> None:
    """After the Python of the same recipe, which writes what they read; new rows are some of those."""
    ran = 0
    for title, text in FOUND:
        for commands in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for block in (block for of, _, block in BLOCKS if of == title):
                exec(compile(block, str(PAGE), "exec"), {"__name__": "__main__"})
            pq.write_table(pq.read_table("digits.parquet").slice(0, 500), "new.parquet")
            for command in commands.replace("\\\n", "").strip().split("\n"):
                name, *arguments = shlex.split(command)
                assert name == "nmf-dask"
                assert main([*arguments, "--quiet"]) == 0, capsys.readouterr().err
                ran += 1
    assert ran == 2
    assert pq.read_table("weights/W").schema.names == ["scan", "digit", "topic", "weights"]


def test_every_title_has_its_recipe() -> None:
    assert {title for title, _, _ in BLOCKS} == {title for title, _ in FOUND}


def test_three_lines_are_changed() -> None:
    before, after = (block.split("\n") for title, _, block in BLOCKS if "three changed lines" in title)
    changed = [line for line in difflib.ndiff(before, after) if line.startswith("+ ")]
    assert len(before) == len(after)
    assert len(changed) == 3


@pytest.mark.usefixtures("corpus")
@pytest.mark.filterwarnings("ignore")
def test_both_scripts_find_the_same_subjects(capsys: pytest.CaptureFixture[str]) -> None:
    for title, _, block in BLOCKS:
        if "three changed lines" in title:
            exec(compile(block.replace("n_components=10", "n_components=3"), str(PAGE), "exec"), {})
            topics = [frozenset(line.split()) for line in capsys.readouterr().out.strip().split("\n")]
            assert set(topics) == {frozenset(subject.split()) for subject in SUBJECTS}
