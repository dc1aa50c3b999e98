"""Rows of partitions: all of them, in order, in bounded memory, and named where they cannot be read."""

import datetime
import decimal
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nmf_dask.corpus import Corpus, Partition, Piece, read_ids, read_labels, read_texts
from nmf_dask.corpus.footers import read_footer
from nmf_dask.corpus.partitions import MIB, RowGroup, plan_partitions
from nmf_dask.errors import InputDataError
from tests.corpora import corpus_folder
from tests.parquet_files import opened, texts_of, write


def ids_of(corpus: Corpus) -> pa.ChunkedArray:
    read = [read_ids(partition, corpus.settings.id_column) for partition in corpus.partitions]
    return pa.chunked_array([chunk for ids in read for chunk in ids.chunks])


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", "PLAIN"])
def test_dictionaries_in_an_encoding_that_arrow_makes_none_of(tmp_path, encoding):
    """A categorical column of pandas says that it is a dictionary, however it is stored."""
    texts, ids = ["one", None, "zwölf", "one"], ["a", "b", "c", "a"]
    columns = {
        name: pa.array(values).dictionary_encode() for name, values in (("text", texts), ("doc_id", ids))
    }
    encodings = {"text": encoding, "doc_id": encoding}
    pq.write_table(
        pa.table({**columns, "since": pa.array(range(4), pa.duration("s"))}), tmp_path / "a.parquet",
        use_dictionary=False, column_encoding=encodings,
    )  # fmt: skip
    corpus = opened(tmp_path, id_column="doc_id")
    assert texts_of(corpus) == texts
    assert ids_of(corpus).to_pylist() == ids
    assert ids_of(corpus).type == corpus.id_type == pa.string()
    assert ids_of(opened(tmp_path, id_column="since")).type == pa.duration("s")


def test_labels_that_are_times_of_a_zone_that_this_machine_does_not_know(tmp_path):
    at = pa.array([0, None, 3_600], pa.timestamp("s", "Nowhere/Here"))
    pq.write_table(pa.table({"text": ["a", "b", "c"], "at": at}), tmp_path / "a.parquet")
    (partition,) = opened(tmp_path).partitions
    labels = read_labels(partition, "at").to_pylist()
    assert labels == ["1970-01-01 00:00:00.000Z", None, "1970-01-01 01:00:00.000Z"]


def test_a_label_of_nan_is_none(tmp_path):
    number = pa.array([1.0, float("nan"), None, 2.5])
    assert number.null_count == 1
    pq.write_table(pa.table({"text": ["a", "b", "c", "d"], "number": number}), tmp_path / "a.parquet")
    (partition,) = opened(tmp_path).partitions
    assert read_labels(partition, "number").to_pylist() == ["1", None, None, "2.5"]


def test_a_real_corpus_is_read_whole():
    folder = corpus_folder("20newsgroups")
    corpus = opened(folder, id_column="doc_id", partition_bytes=MIB)
    assert len(corpus.partitions) > 8
    expected = pq.read_table(folder, columns=["doc_id", "text"])
    assert texts_of(corpus) == expected["text"].to_pylist()
    assert ids_of(corpus).to_pylist() == expected["doc_id"].to_pylist()
    assert corpus.n_rows == 11_314
    # Text bytes by the corpus's README; pages add a length a text, dictionaries save some.
    assert corpus.text_bytes == pytest.approx(13_782_021, rel=0.05)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.one_of(st.none(), st.text(max_size=20)), max_size=30), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from(["1.0", "2.0"]),
)
def test_any_cut_gives_the_rows_back(tmp_path, files, row_group_size, max_rows, dictionary, version):
    row_groups = []
    for number, texts in enumerate(files):
        path = tmp_path / f"{number}.parquet"
        # Pages of three values; dictionaries that are given up after a few.
        options: dict[str, Any] = {
            "use_dictionary": dictionary,
            "dictionary_pagesize_limit": 40,
            "data_page_version": version,
            "data_page_size": 1,
            "write_batch_size": 3,
        }
        write(path, pa.array(texts, pa.string()), row_group_size=row_group_size, **options)
        if texts:
            corpus = opened(path)
            row_groups += [
                RowGroup(piece.file, piece.row_group, piece.stop, 100)
                for partition in corpus.partitions
                for piece in partition.pieces
            ]
    partitions = plan_partitions(row_groups, MIB, max_rows)
    read = [read_texts(partition, "text") for partition in partitions]
    assert [len(texts) for texts in read] == [partition.n_rows for partition in partitions]
    assert [text for texts in read for text in texts.to_pylist()] == [
        text for texts in files for text in texts
    ]


READ_LAST = """
import pickle, sys
import pyarrow as pa
from nmf_dask.corpus import read_texts
partition = pickle.loads(sys.stdin.buffer.read())
texts = read_texts(partition, "text")
print(pa.default_memory_pool().max_memory(), len(texts), texts[0], texts[-1])
"""


def test_a_giant_row_group_is_cut_and_read_in_bounded_memory(tmp_path):
    texts = [f"{number} " * 220 for number in range(50_000)]
    write(tmp_path / "a.parquet", texts, use_dictionary=False, compression="zstd", row_group_size=50_000)
    corpus = opened(tmp_path)
    assert corpus.text_bytes > 60 * 10**6
    assert len(corpus.partitions) == 15
    last = corpus.partitions[-1]
    # A process of its own, since Arrow's peak is that of all its life.
    printed = subprocess.run(
        [sys.executable, "-c", READ_LAST], input=pickle.dumps(last), capture_output=True, check=True
    ).stdout.decode()
    peak, n_rows, *rest = printed.split()
    assert int(n_rows) == last.n_rows == 3_334
    assert rest == (texts[last.first_row] + texts[-1]).split()
    assert int(peak) < last.text_bytes + 24 * MIB < corpus.text_bytes


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(["a", "b", "ü"]),
        pa.array(["a", "b", "ü"], pa.large_string()),
        pa.array([1, 2, 3], pa.int8()),
        pa.array([1, 2, 2**64 - 1], pa.uint64()),
        pa.array([b"1", b"2", b"3"]),
        pa.array([b"12", b"34", b"56"], pa.binary(2)),
        pa.array([1, 2, 3], pa.timestamp("us", "UTC")),
        pa.array([datetime.date(2024, 1, day) for day in (1, 2, 3)]),
        pa.array([decimal.Decimal("1.50"), decimal.Decimal("2.25"), decimal.Decimal("3.00")]),
        pa.array([0.5, 1.5, 2.5]),
        pa.array([True, False, True]),
    ],
    ids=lambda ids: str(ids.type),
)
@pytest.mark.parametrize("statistics", [True, False])
def test_ids_keep_their_type(tmp_path, ids, statistics):
    write(tmp_path / "a.parquet", ["x"] * 3, ids=ids, write_statistics=statistics)
    corpus = opened(tmp_path, id_column="doc_id")
    assert corpus.id_type == ids.type
    read = ids_of(corpus)
    assert read.type == ids.type
    assert read.to_pylist() == ids.to_pylist()


def test_categorical_ids_are_their_values(tmp_path):
    write(tmp_path / "a.parquet", ["x"] * 3, ids=pa.array(["b", "a", "b"]).dictionary_encode())
    write(tmp_path / "b.parquet", ["x"] * 2, ids=pa.array(["c", "d"]))
    corpus = opened(tmp_path, id_column="doc_id")
    assert corpus.id_type == pa.string()
    assert ids_of(corpus).type == pa.string()
    assert ids_of(corpus).to_pylist() == ["b", "a", "b", "c", "d"]


def test_without_ids_rows_are_numbered_over_the_corpus(tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.parquet", [name] * 4, row_group_size=3)
    corpus = opened(tmp_path, partition_bytes=1)
    assert len(corpus.partitions) == 12
    assert corpus.id_type == pa.int64()
    assert ids_of(corpus).type == pa.int64()
    assert ids_of(corpus).to_pylist() == list(range(12))


def test_null_ids_without_statistics_are_found_in_reading(tmp_path):
    write(tmp_path / "a.parquet", ["x"] * 4, ids=[1, 2, 3, 4], write_statistics=False)
    write(tmp_path / "b.parquet", ["x"] * 5, ids=[5, 6, 7, 8, None], row_group_size=3, write_statistics=False)
    corpus = opened(tmp_path, id_column="doc_id")
    with pytest.raises(InputDataError) as caught:
        ids_of(corpus)
    assert (
        f"{tmp_path}/b.parquet: column 'doc_id' has no id in row 1 of row group 1 (both counted from 0)"
        in str(caught.value)
    )


def damage(path: Path, row_group: int, column: int, length: int = 400) -> None:
    """Overwrite the middle of one column chunk."""
    chunk = pq.read_metadata(path).row_group(row_group).column(column)
    start = chunk.data_page_offset + chunk.total_compressed_size // 2
    content = bytearray(path.read_bytes())
    content[start : start + length] = b"\xa5" * length
    path.write_bytes(content)


# The second one is structs in structs in structs, as far as it goes; the third a page of -1 bytes.
@pytest.mark.parametrize(
    "damage", [b"\xff" * 16, b"\x1c" * 2000, b"\x15\x00\x15\x00\x15\x01\x2c\x15\x00\x00\x00"]
)
def test_a_damaged_page_header_before_a_piece_is_named(tmp_path, damage):
    path = write(tmp_path / "a.parquet", [f"document {n}" for n in range(5_000)], use_dictionary=False)
    last = opened(path, partition_bytes=20_000).partitions[-1]
    assert last.pieces[0].start > 0
    chunk = pq.read_metadata(path).row_group(0).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset : chunk.data_page_offset + len(damage)] = damage
    path.write_bytes(content)
    with pytest.raises(InputDataError, match="row group 0 of column 'text' cannot be decoded"):
        read_texts(last, "text")


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip"])
def test_a_damaged_page_is_named(tmp_path, compression):
    texts = [f"document {number} {number * 7919 % 10_007}" for number in range(20_000)]
    path = write(
        tmp_path / "a.parquet", texts, ids=texts, row_group_size=10_000, compression=compression,
        use_dictionary=False, write_page_checksum=True,
    )  # fmt: skip
    damage(path, row_group=1, column=1)
    corpus = opened(tmp_path, id_column="doc_id")
    ids_of(corpus)
    with pytest.raises(InputDataError) as caught:
        texts_of(corpus)
    said = str(caught.value)
    assert said.startswith(
        f"{path} ({path.stat().st_size:,} bytes) is damaged: row group 1 of column 'text' cannot"
    )
    assert "Write or copy it again" in said
    assert "\n" not in said


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_any_damage_to_data_is_an_error_of_the_input_or_goes_unseen(tmp_path, compression):
    texts = [f"text {number} " * (number % 5) for number in range(300)]
    path = write(
        tmp_path / "a.parquet", texts, row_group_size=200, data_page_size=1, write_batch_size=50,
        compression=compression,
    )  # fmt: skip
    corpus = opened(path, partition_bytes=700)
    assert any(piece.start for partition in corpus.partitions for piece in partition.pieces)
    content = path.read_bytes()
    end = read_footer(corpus.files[0].location).start
    chance = random.Random(0)
    refused = 0
    for _ in range(200):
        bad = bytearray(content)
        for place in chance.choices(range(end), k=chance.choice((1, 3))):
            bad[place] = chance.randrange(256)
        path.write_bytes(bad)
        try:
            for partition in corpus.partitions:
                assert len(read_texts(partition, "text")) == partition.n_rows
        except InputDataError as error:
            assert "is damaged: row group" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 20


def test_a_damaged_page_header_is_named(tmp_path):
    texts = [f"document {number}" for number in range(5_000)]
    path = write(tmp_path / "a.parquet", texts, ids=texts)
    chunk = pq.read_metadata(path).row_group(0).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.dictionary_page_offset : chunk.dictionary_page_offset + 16] = b"\xff" * 16
    path.write_bytes(content)
    corpus = opened(tmp_path, id_column="doc_id")
    with pytest.raises(InputDataError, match="row group 0 of column 'doc_id' cannot be decoded"):
        ids_of(corpus)


def test_a_file_that_vanished(tmp_path):
    path = write(tmp_path / "a.parquet")
    corpus = opened(tmp_path)
    path.unlink()
    with pytest.raises(InputDataError, match=r"a\.parquet: it does not exist"):
        texts_of(corpus)


@pytest.mark.parametrize("texts", [["a", "b", "c"], ["a", "x"]], ids=["another size", "the same size"])
def test_a_file_that_changed(tmp_path, texts):
    path = write(tmp_path / "a.parquet", ["a", "b"])
    before = path.stat().st_size
    corpus = opened(tmp_path)
    write(path, texts)
    with pytest.raises(InputDataError, match="changed since the job began") as caught:
        texts_of(corpus)
    assert f"it had {before:,} bytes and 2 rows" in str(caught.value)
    assert f"has {path.stat().st_size:,} bytes and {len(texts)} rows" in str(caught.value)


def test_rows_that_the_footer_promises_but_the_pages_lack(tmp_path):
    write(tmp_path / "a.parquet", ["a", "b"])
    corpus = opened(tmp_path)
    (piece,) = corpus.partitions[0].pieces
    beyond = Partition(0, (Piece(piece.file, 0, 0, 3),), 3, 0, 10)
    with pytest.raises(InputDataError, match=r"it ends after 2 of 3 rows"):
        read_texts(beyond, "text")
