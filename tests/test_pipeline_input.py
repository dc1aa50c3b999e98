"""Bad and dirty input through the real command: one message that names file, column and remedy, nothing touched."""

import os
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nmf_dask import fit
from tests.small_corpora import (
    ROOT,
    command,
    environment,
    files_of,
    generated_texts,
    run_command,
    settings_of,
    write_corpus,
)

TEXTS = generated_texts(120)


def table(texts=TEXTS, **columns) -> pa.Table:
    return pa.table({"doc_id": [f"d{i}" for i in range(len(texts))], "text": texts, **columns})


def wrong_column(folder: Path):
    pq.write_table(table().rename_columns(["doc_id", "texts"]), folder / "a.parquet")


def wrong_id_column(folder: Path):
    pq.write_table(table().rename_columns(["docid", "text"]), folder / "a.parquet")


def numbers(folder: Path):
    pq.write_table(table(pa.array(range(120))), folder / "a.parquet")


def lists(folder: Path):
    pq.write_table(table(pa.array([text.split() for text in TEXTS])), folder / "a.parquet")


def second_file_differs(folder: Path):
    pq.write_table(table(), folder / "a.parquet")
    pq.write_table(table(pa.array(range(120))), folder / "b.parquet")


def null_id(folder: Path):
    ids = pa.array([None if i == 7 else f"d{i}" for i in range(120)])
    pq.write_table(pa.table({"doc_id": ids, "text": TEXTS}), folder / "a.parquet")


def null_id_that_no_footer_tells(folder: Path):
    ids = pa.array([None if i == 7 else f"d{i}" for i in range(120)])
    pq.write_table(pa.table({"doc_id": ids, "text": TEXTS}), folder / "a.parquet", write_statistics=False)


def not_parquet(folder: Path):
    (folder / "a.parquet").write_text("doc_id,text\n1,hello\n" * 10)


def truncated(folder: Path):
    pq.write_table(table(), folder / "a.parquet")
    whole = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(whole[: len(whole) // 2])


def damaged_page(folder: Path):
    pq.write_table(table(), folder / "a.parquet", compression="zstd", use_dictionary=False)
    column = pq.read_metadata(folder / "a.parquet").row_group(0).column(1)
    content = bytearray((folder / "a.parquet").read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    content[middle : middle + 64] = bytes(64)
    (folder / "a.parquet").write_bytes(content)


def no_files(folder: Path):
    (folder / "notes.md").write_text("nothing here")


def no_documents(folder: Path):
    pq.write_table(table()[:0], folder / "a.parquet")


def only_empty(folder: Path):
    pq.write_table(table([""] * 30), folder / "a.parquet")


def only_null(folder: Path):
    pq.write_table(table(pa.array([None] * 30, pa.string())), folder / "a.parquet")


def few_documents(folder: Path):
    pq.write_table(table(TEXTS[:3]), folder / "a.parquet")


def few_features(folder: Path):
    pq.write_table(table(["aa bb", "aa cc", "bb cc", *["dd"] * 5, *["ee"] * 5]), folder / "a.parquet")


# What is written before it fails: nothing where footers tell, run.json where the rows did.
NOTHING, RUN = 0, 1


@pytest.mark.parametrize(
    ("make", "patterns", "left"),
    [
        (wrong_column, [r"a\.parquet", "'text'", "texts"], NOTHING),
        (wrong_id_column, [r"a\.parquet", "'doc_id'", "docid"], NOTHING),
        (numbers, [r"a\.parquet", "'text'", "int64", "string"], NOTHING),
        (lists, [r"a\.parquet", "'text'", "list"], NOTHING),
        (second_file_differs, [r"b\.parquet", "'text'", "int64"], NOTHING),
        (null_id, [r"a\.parquet", "'doc_id'", "row 7", "--id-column"], NOTHING),
        (null_id_that_no_footer_tells, [r"a\.parquet", "'doc_id'", "row 7", "--id-column"], RUN),
        (not_parquet, [r"a\.parquet", "Parquet"], NOTHING),
        (truncated, [r"a\.parquet", "cut|truncat|Parquet"], NOTHING),
        (damaged_page, [r"a\.parquet", "'text'", "row group 0", "damaged"], RUN),
        (no_files, ["no Parquet file", "notes.md"], NOTHING),
        (no_documents, ["no document", r"a\.parquet"], NOTHING),
        (only_empty, ["none of the 30 documents holds a term", "text_column"], RUN),
        (only_null, ["none of the 30 documents holds a term", "text_column"], RUN),
        (few_documents, ["3 documents", "5 topics", "-k"], NOTHING),
        (few_features, ["4 features|5 features|features", "6 topics|5 topics", "-k", "min_df"], RUN),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_input_is_one_message_and_exit_65(tmp_path, make, patterns, left):
    corpus, model = tmp_path / "corpus", tmp_path / "model"
    corpus.mkdir()
    make(corpus)
    k = 6 if make is few_features else 5
    done = run_command("fit", "--input", corpus, "--output", model, "-k", k, "--id-column", "doc_id")
    assert done.returncode == 65, done.stderr
    message = next(line for line in done.stderr.splitlines() if line.startswith("nmf-dask: error: "))
    for pattern in patterns:
        assert re.search(pattern, message), (pattern, message)
    assert "Traceback" not in done.stderr
    assert "distributed" not in done.stderr
    assert done.stdout == ""
    if left == NOTHING:
        assert not model.exists()
    else:
        assert [Path(name).name for name in files_of(model)] == ["run.json"]
        told = (model / next(iter(files_of(model)))).read_text()
        assert '"status": "failed"' in told
        assert '"error": ' in told


def test_what_is_committed_stays_as_it_is(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", TEXTS)
    fit(settings_of(corpus, tmp_path / "model"))
    before = files_of(tmp_path / "model")
    for make in (damaged_page, truncated):
        bad = tmp_path / make.__name__
        bad.mkdir()
        make(bad)
        done = run_command("fit", "--input", bad, "--output", tmp_path / "model", "-k", 5)
        assert done.returncode == 65
    after = files_of(tmp_path / "model")
    assert {name: after[name] for name in before} == before
    assert len(set(after) - set(before)) == 1  # the run.json of the damaged page


def string_array(values: list[bytes]) -> pa.Array:
    """A string column that holds bytes as they are, which no pa.array would take."""
    offsets = np.concatenate([[0], np.cumsum([len(value) for value in values])]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


def test_dirty_input_is_counted_told_and_survived(tmp_path):
    texts = [text.encode() for text in TEXTS]
    texts[3] = b"w001 \xff\xfe w002"
    texts[4] = b"w003 \xc3"
    (tmp_path / "c").mkdir()
    pq.write_table(table(string_array(texts)), tmp_path / "c" / "a.parquet")
    pq.write_table(table(pa.array([None, "", "!", "w001 w002"])), tmp_path / "c" / "b.parquet")
    done = run_command("fit", "--input", tmp_path / "c", "--output", tmp_path / "m", "-k", 3)
    assert done.returncode == 0, done.stderr
    for message in (
        "1 documents have no text",
        "2 documents are no valid UTF-8",
        "3 documents hold no selected term",
    ):
        assert f"warning: {message}" in done.stderr
    [told] = (tmp_path / "m").glob("runs/*/run.json")
    assert '"n_invalid_utf8": 2' in told.read_text()


@pytest.mark.slow
def test_a_document_of_100_megabytes(tmp_path):
    giant = " ".join(f"w{i % 300:03d}" for i in range(20_000_000))
    write_corpus(tmp_path / "c", [*TEXTS, giant])
    started = time.monotonic()
    result = fit(settings_of(tmp_path / "c", tmp_path / "m", vectorizer={"max_df": 1.0}))
    assert result.run["n_empty_documents"] == 0
    assert result.run["n_documents"] == 121
    assert result.run["input"]["text_bytes"] > 0
    assert time.monotonic() - started < 60


def outputs(tmp_path: Path) -> dict[str, tuple[str, int, list[str]]]:
    (tmp_path / "a-file").write_text("precious")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    corpus = tmp_path / "corpus"
    return {
        "file": (str(tmp_path / "a-file"), 65, ["a-file is a file"]),
        "below-a-file": (str(tmp_path / "a-file" / "m"), 65, ["a-file is a file"]),
        "other-folder": (str(tmp_path / "other"), 65, ["neither empty nor a model folder", "thesis.tex"]),
        "the-input": (str(corpus), 2, ["is in the input", "Choose another output"]),
        "in-the-input": (str(corpus / "model"), 2, ["is in the input", r"corpus/\*\.parquet"]),
        "above-the-input": (str(tmp_path), 2, ["is in the output"]),
        "scheme": ("ftp://host/m", 2, ["ftp"]),
    }


@pytest.mark.parametrize(
    "which",
    ["file", "below-a-file", "other-folder", "the-input", "in-the-input", "above-the-input", "scheme"],
)
def test_an_output_that_cannot_be_one(tmp_path, which):
    write_corpus(tmp_path / "corpus", TEXTS)
    output, code, patterns = outputs(tmp_path)[which]
    before = files_of(tmp_path)
    done = run_command("fit", "--input", tmp_path / "corpus", "--output", output, "-k", 5)
    assert done.returncode == code, done.stderr
    for pattern in patterns:
        assert re.search(pattern, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert files_of(tmp_path) == before


def test_a_folder_beside_the_input_with_a_name_that_begins_alike(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", TEXTS)
    assert fit(settings_of(corpus, tmp_path / "corpus-model")).run["status"] == "done"


def test_an_output_that_may_not_be_written(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", TEXTS)
    (tmp_path / "locked").mkdir(mode=0o500)
    arguments = command("fit", "--input", corpus, "--output", tmp_path / "locked" / "m", "-k", 5)
    if os.geteuid() == 0:  # root may write everywhere, but for the capability that lets it
        arguments = [
            "setpriv",
            "--bounding-set=-dac_override,-dac_read_search",
            "--inh-caps=-all",
            *arguments,
        ]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment())
    assert done.returncode == 65, done.stderr
    assert "permission" in done.stderr
    assert not (tmp_path / "locked" / "m").exists()


def test_a_store_that_cannot_be_reached(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", TEXTS)
    options = {
        "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": "http://no-such-host.invalid:1",
        "AWS_DEFAULT_REGION": "eu-west-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "3",
    }  # fmt: skip
    for arguments in (
        ("--input", "s3://bucket/c", "--output", tmp_path / "m"),
        ("--input", corpus, "--output", "s3://bucket/m"),
    ):
        started = time.monotonic()
        done = run_command("fit", *arguments, "-k", 5, **options)
        assert done.returncode == 75, done.stderr
        assert "s3://bucket" in done.stderr
        assert "Traceback" not in done.stderr
        assert time.monotonic() - started < 60
    assert not (tmp_path / "m").exists()


def test_stop_words_from_a_file_that_is_not_there(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", TEXTS)
    done = run_command(
        "fit", "--input", corpus, "--output", tmp_path / "m", "--stop-words", tmp_path / "none.txt"
    )
    assert done.returncode == 2
    assert "none.txt" in done.stderr
    assert not (tmp_path / "m").exists()
