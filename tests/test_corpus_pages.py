"""Reading from the middle of a row group on: what is left out is what comes before, and no more is read."""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nmf_dask.corpus import Partition, Piece, read_texts
from nmf_dask.corpus.pages import pages_before
from tests.parquet_files import opened, write

TEXTS = [None if number % 11 == 0 else f"text {number} " * (number % 13) for number in range(20_000)]


def with_pyarrow(path: Path, **options: Any) -> None:
    write(path, TEXTS, data_page_size=8192, row_group_size=len(TEXTS), **options)


def with_pandas(path: Path) -> None:
    pytest.importorskip("pandas").DataFrame({"text": TEXTS}).to_parquet(path)


def with_polars(path: Path) -> None:
    frame = pytest.importorskip("polars").DataFrame({"text": TEXTS})
    frame.write_parquet(path, row_group_size=len(TEXTS), data_page_size=8192)


def with_duckdb(path: Path) -> None:
    connection = pytest.importorskip("duckdb").connect()
    connection.register("frame", pa.table({"text": TEXTS}))
    connection.execute(f"COPY (SELECT text FROM frame) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE 40000)")
    connection.close()


WRITERS = {
    "dictionary": lambda path: with_pyarrow(path),
    "plain": lambda path: with_pyarrow(path, use_dictionary=False),
    "second version": lambda path: with_pyarrow(path, data_page_version="2.0", compression="zstd"),
    "no statistics": lambda path: with_pyarrow(path, write_statistics=False, compression="none"),
    "delta": lambda path: with_pyarrow(path, use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY"),
    "checksums": lambda path: with_pyarrow(path, write_page_checksum=True, compression="gzip"),
    "pandas": with_pandas,
    "polars": with_polars,
    "duckdb": with_duckdb,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_ranges_of_a_row_group_by_any_writer(tmp_path, writer):
    WRITERS[writer](tmp_path / "a.parquet")
    corpus = opened(tmp_path)
    assert len({(piece.file, piece.row_group) for part in corpus.partitions for piece in part.pieces}) == 1
    file = corpus.files[0]
    for start, stop in [(1, 2), (777, 5000), (9_999, 10_000), (19_000, 20_000), (19_999, 20_000)]:
        part = Partition(0, (Piece(file, 0, start, stop),), stop - start, start, 100 * (stop - start))
        assert read_texts(part, "text").to_pylist() == TEXTS[start:stop]


@pytest.mark.parametrize("block", [64, 4096, 10**6])
@pytest.mark.parametrize("dictionary", [True, False])
def test_the_gap_ends_at_the_page_of_the_row(tmp_path, block, dictionary):
    path = write(
        tmp_path / "a.parquet", TEXTS, use_dictionary=dictionary, data_page_size=1, write_batch_size=100
    )  # fmt: skip
    chunk = pq.read_metadata(path).row_group(0).column(0)
    with pa.OSFile(str(path)) as source:
        gaps = {row: pages_before(source, chunk, row, block) for row in (0, 99, 100, 5_050, 19_999, 20_000)}
    assert {row: gap.n_rows for row, gap in gaps.items()} == {
        0: 0,
        99: 0,
        100: 100,
        5_050: 5_000,
        19_999: 19_900,
        20_000: 20_000,
    }
    assert gaps[0].start == gaps[0].stop == chunk.data_page_offset
    assert gaps[20_000].stop == gaps[0].end


def test_long_values_in_the_statistics_of_a_header(tmp_path):
    texts = [letter * 3000 for letter in "abcdefgh"]
    path = write(
        tmp_path / "a.parquet", texts, use_dictionary=False, data_page_size=1, write_batch_size=1
    )  # fmt: skip
    chunk = pq.read_metadata(path).row_group(0).column(0)
    with pa.OSFile(str(path)) as source:
        assert pages_before(source, chunk, 5, 64).n_rows == 5


def test_a_header_of_nonsense_is_left_to_arrow(tmp_path):
    """Bytes that all have their first bit set, as Chinese text has, are one number without an end."""
    path = write(tmp_path / "a.parquet", ["汉字" * 600_000, "b"], use_dictionary=False, compression="none")
    chunk = pq.read_metadata(path).row_group(0).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset : chunk.data_page_offset + 60] = (
        b"\x16" + b"\xe6\xb1\x89" * 19 + b"\xe6\xb1"
    )
    path.write_bytes(content)
    started = time.monotonic()
    with pa.OSFile(str(path)) as source:
        assert pages_before(source, chunk, 1, 4096).n_rows == 0
    assert time.monotonic() - started < 5


def test_pages_before_are_not_read(tmp_path):
    path = write(
        tmp_path / "a.parquet", TEXTS, use_dictionary=False, data_page_size=8192, compression="none"
    )  # fmt: skip
    corpus = opened(path)
    content = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(0)
    with pa.OSFile(str(path)) as source:
        first = pages_before(source, chunk, 3000, 4096)
    # The body of a page before: were it decoded, lengths of texts would make no sense.
    content[first.stop - 500 : first.stop] = b"\xff" * 500
    path.write_bytes(content)
    part = Partition(0, (Piece(corpus.files[0], 0, 15_000, 20_000),), 5000, 15_000, 500_000)
    assert read_texts(part, "text").to_pylist() == TEXTS[15_000:]


def test_rows_after_a_piece_are_not_decoded(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", TEXTS, use_dictionary=False, data_page_size=8192)
    decoded = []
    batches = pq.ParquetFile.iter_batches

    def counted(*arguments, **options):
        for batch in batches(*arguments, **options):
            decoded.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    file = opened(path).files[0]
    for start, stop in ((0, 100), (10_000, 10_100), (0, 20_000)):
        part = Partition(0, (Piece(file, 0, start, stop),), stop - start, start, 100 * (stop - start))
        decoded.clear()
        assert read_texts(part, "text").to_pylist() == TEXTS[start:stop]
        # A page before the first row is decoded from its beginning.
        assert stop - start <= sum(decoded) < stop - start + (1500 if start else len(decoded))
