"""Every recipe of docs/recipes.md runs, and says what it should."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
