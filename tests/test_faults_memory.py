"""A job runs in the memory that it was given, however large the corpus is: peaks as the kernel counts them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.small_corpora import run_command

MIB = 2**20
LIMIT = 400_000_000


def vocabulary(n: int = 3000) -> pa.Array:
    """Words of three to nine letters, the frequent ones shorter."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.poisson(3, n) + np.arange(n) * 3 // n + 3, 3, 9)
    return pa.array(
        ["".join(random.choice(list("abcdefghijklmnopqrstuvwxyz"), length)) for length in lengths]
    )


def write_long(folder: Path, n_documents: int, n_words: int, files: int) -> Path:
    """Documents of many words, by a law like Zipf's; about `n_words` * 6.5 bytes each."""
    folder.mkdir()
    words, random = vocabulary(), np.random.default_rng(1)
    share = 1 / (np.arange(len(words)) + 30)
    for file in range(files):
        rows = n_documents // files
        chosen = random.choice(len(words), rows * n_words, p=share / share.sum())
        offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * n_words)
        texts = pc.binary_join(pa.ListArray.from_arrays(offsets, words.take(pa.array(chosen))), " ")
        table = pa.table({"text": texts})
        pq.write_table(table, folder / f"part-{file:03d}.parquet", row_group_size=MIB // (n_words * 7) + 1)
    return folder


def write_short(folder: Path, n_documents: int) -> Path:
    """Documents of three words."""
    folder.mkdir()
    words, random = vocabulary(300), np.random.default_rng(2)
    for file, low in enumerate(range(0, n_documents, 1_000_000)):
        rows = min(1_000_000, n_documents - low)
        columns = [words.take(pa.array(random.integers(0, len(words), rows))) for _ in range(3)]
        table = pa.table({"text": pc.binary_join_element_wise(*columns, " ")})
        pq.write_table(table, folder / f"part-{file:03d}.parquet", row_group_size=100_000)
    return folder


def fitted(corpus: Path, model: Path, *more: Any, **variables: str) -> dict[str, Any]:
    """run.json of a job that ended well, and lost no worker on the way."""
    arguments = ("fit", "--input", corpus, "--output", model, "--workers", 1, *more)
    done = run_command(*arguments, timeout=1200, **variables)
    assert done.returncode == 0, done.stderr
    [run] = (model / "runs").iterdir()
    told: dict[str, Any] = json.loads((run / "run.json").read_text())
    assert told["workers_lost"] == 0
    return told


def seconds_a_nonzero(told: dict[str, Any]) -> float:
    return float(told["stages"]["fit"]["seconds"] / told["n_iter"] / told["nnz"])


@pytest.mark.slow
def test_a_matrix_of_ten_times_the_memory(tmp_path: Path) -> None:
    """The limit holds, and a pass costs no more than twice what it costs where everything fits."""
    settings = (
        "-k", 10, "--max-features", 5000, "--ngram-range", "2,3", "--max-iter", 3, "--tol", 0, "--max-df", "1.0",
        "--threads-per-worker", 1, "--set", "vectorizer.analyzer=char", "--set", "corpus.partition_bytes=1MiB",
    )  # fmt: skip
    # The small one comes first, and compiles: a worker that is ended at its limit while it compiles is no news here.
    small = write_long(tmp_path / "small", 28_000, 400, 2)
    there = fitted(small, tmp_path / "b", *settings, "--memory-limit", "4GiB")
    large = write_long(tmp_path / "large", 225_000, 400, 15)
    told = fitted(large, tmp_path / "a", *settings, "--memory-limit", LIMIT)
    assert told["nnz"] * 8 >= 10 * LIMIT
    assert told["peak_memory"]["largest_worker"] <= LIMIT
    assert told["peak_memory"]["driver"] <= LIMIT
    assert seconds_a_nonzero(told) <= 2 * seconds_a_nonzero(there)


@pytest.mark.slow
def test_a_first_job_which_compiles_stays_below_its_plan(tmp_path: Path) -> None:
    corpus = write_short(tmp_path / "c", 10_000)
    settings = ("-k", 3, "--threads-per-worker", 1, "--memory-limit", "4GiB")
    asked = ("--workers", 1, *settings, "--dry-run", "--log-format", "json")
    planned = json.loads(run_command("fit", "--input", corpus, "--output", tmp_path / "m", *asked).stdout)
    told = fitted(corpus, tmp_path / "m", *settings, NUMBA_CACHE_DIR=str(tmp_path / "none yet"))
    print(f"{told['peak_memory']['largest_worker'] / MIB:.0f} of {planned['expected_worker'] / MIB:.0f} MiB")
    assert told["peak_memory"]["largest_worker"] <= planned["expected_worker"]
    assert any((tmp_path / "none yet").rglob("*.nbi"))


@pytest.mark.slow
def test_the_driver_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    settings = ("-k", 3, "--max-iter", 2, "--tol", 0, "--min-df", 1)
    drivers = []
    for n in (10_000, 10_000_000):
        told = fitted(write_short(tmp_path / f"c{n}", n), tmp_path / f"m{n}", *settings)
        assert told["n_documents"] == n
        drivers.append(told["peak_memory"]["driver"])
    assert drivers[1] - drivers[0] <= 50 * MIB


@pytest.mark.slow
def test_a_transform_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """Texts, counts and W of two million documents are some 150 MB."""
    fitted(write_short(tmp_path / "c", 10_000), tmp_path / "m", "-k", 3, "--max-iter", 2, "--min-df", 1)
    peaks = []
    for n in (200_000, 2_000_000):
        output = tmp_path / f"w{n}"
        done = run_command(
            "transform", "--model", tmp_path / "m", "--input", write_short(tmp_path / f"c{n}", n), "--output", output,
            "--set", "corpus.partition_bytes=1MiB", "--threads-per-worker", 1, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told = json.loads((output / "transform.json").read_text())
        assert told["n_documents"] == n
        peaks.append(told["peak_memory"]["driver"])
    assert peaks[1] - peaks[0] <= 50 * MIB
