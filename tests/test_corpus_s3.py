"""A corpus in an object store: a real S3 protocol, spoken by moto on this machine."""

import pickle
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from nmf_dask.corpus import read_ids, read_texts
from nmf_dask.corpus.locations import connect
from nmf_dask.errors import InputDataError, RetryableError
from tests.parquet_files import names_of, opened, texts_of


@pytest.fixture
def bucket(empty_bucket: Callable[[str], fs.FileSystem]) -> Iterator[str]:
    """A bucket of three files and some that are not the corpus's."""
    connect.cache_clear()
    store = empty_bucket("corpus")
    for key in ("in/a 100%[1].parquet", "in/sub/b.parquet", "in/sub/c.parquet", "in/_old/d.parquet"):
        table = pa.table({"doc_id": [f"{key}/{row}" for row in range(3)], "text": [key] * 3})
        pq.write_table(table, f"corpus/{key}", filesystem=store, row_group_size=2)
    yield "s3://corpus"
    connect.cache_clear()


ROWS = [name for name in ("in/a 100%[1].parquet", "in/sub/b.parquet", "in/sub/c.parquet") for _ in range(3)]


@pytest.mark.parametrize("spelling", ["{}/in", "{}/in/", "{}/in/**/*.parquet", "{}", "{}/*"])
def test_folders_and_globs(bucket, spelling):
    corpus = opened(spelling.format(bucket), id_column="doc_id")
    assert texts_of(corpus) == ROWS
    assert [str(file) for file in corpus.files] == [
        "s3://corpus/in/a 100%25[1].parquet",
        "s3://corpus/in/sub/b.parquet",
        "s3://corpus/in/sub/c.parquet",
    ]
    ids = [read_ids(partition, "doc_id").to_pylist() for partition in corpus.partitions]
    assert [value for part in ids for value in part] == [f"{key}/{row % 3}" for row, key in enumerate(ROWS)]


def test_what_run_json_says_can_be_given_again(bucket):
    uris = [file["uri"] for file in opened(f"{bucket}/in").describe()["files"]]
    assert texts_of(opened(*uris)) == ROWS
    assert names_of(opened(f"{bucket}/in/sub/?.parquet")) == ["b.parquet", "c.parquet"]


def test_a_partition_carries_no_keys_to_workers(bucket):
    corpus = opened(bucket)
    sent = pickle.dumps(corpus)
    assert b"testing" not in sent
    assert read_texts(pickle.loads(sent).partitions[0], "text").to_pylist() == ROWS


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("corpus/nothing.parquet", "does not exist"),
        ("corpus/in/*.pq", "no file matches"),
        ("no-bucket", "there is no bucket no-bucket"),
        ("no-bucket/x/*.parquet", "there is no bucket no-bucket"),
    ],
)
def test_what_is_not_there(bucket, name, said):
    with pytest.raises(InputDataError, match=said) as caught:
        opened(f"s3://{name}")
    assert caught.value.exit_code == 65


def test_a_local_copy_is_the_same_corpus(bucket, tmp_path):
    fs.copy_files(f"{bucket}/in", str(tmp_path / "copy"))
    assert opened(tmp_path / "copy").fingerprint == opened(f"{bucket}/in").fingerprint


def test_an_object_replaced_after_planning(bucket):
    corpus = opened(bucket)
    store, _ = fs.FileSystem.from_uri(bucket)
    pq.write_table(pa.table({"text": ["other"]}), "corpus/in/sub/c.parquet", filesystem=store)
    with pytest.raises(InputDataError, match=r"s3://corpus/in/sub/c\.parquet changed since the job began"):
        texts_of(corpus)


def test_ranges_of_a_row_group(bucket):
    texts = [f"text {number} {number * number}" for number in range(20_000)]
    store, _ = fs.FileSystem.from_uri(bucket)
    path = "corpus/big/a.parquet"
    pq.write_table(
        pa.table({"text": texts}), path, filesystem=store, data_page_size=8192, use_dictionary=False
    )
    corpus = opened(f"{bucket}/big", partition_bytes=50_000)
    assert len(corpus.partitions) > 8
    assert texts_of(corpus) == texts


def test_a_store_that_does_not_answer_is_worth_a_retry(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    connect.cache_clear()
    with pytest.raises(RetryableError, match=r"cannot look at s3://corpus/x: .*Could not connect") as caught:
        opened("s3://corpus/x?region=us-east-1")
    connect.cache_clear()
    assert caught.value.exit_code == 75
    assert "testing" not in str(caught.value)
    assert "\n" not in str(caught.value)
