"""What workers do with one group of partitions at a time: count, weigh, write. Plain functions of picklable values."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nmf_dask.blocks import Run
from nmf_dask.config import VectorizerSettings
from nmf_dask.corpus import Columns, Group, read_ids, read_kept, read_texts
from nmf_dask.errors import InputDataError
from nmf_dask.pipeline.merging import merged_table
from nmf_dask.staging import (
    Stage,
    read_block,
    read_counts,
    read_table,
    shuffled,
    write_block,
    write_counts,
    write_table,
)
from nmf_dask.store import Digest, RunFolder, StageDamaged, flat_table, w_table
from nmf_dask.tasks import Batch, Tasks
from nmf_dask.text import Counts, count_texts
from nmf_dask.vocabulary import TermTable, Vocabulary, weigh

Weights = NDArray[np.float32]


class Counted(NamedTuple):
    """Numbers of one counted group."""

    n_nulls: int
    n_invalid: int


class BlockInfo(NamedTuple):
    """Numbers of one weighed block."""

    n_rows: int
    nnz: int
    total: float
    n_empty: int


class Written(NamedTuple):
    """What the rows of one written partition say of the topics: sums of W, and documents by largest weight."""

    weights: NDArray[np.float64]
    documents: NDArray[np.int64]
    digest: Digest  # of the file
    csv: Digest | None  # of that in CSV, where there is one


@dataclass(frozen=True)
class CorpusTasks:
    """Counts and weighs the partitions of one corpus, a group at a time."""

    columns: Columns
    vectorizer: VectorizerSettings
    stage: Stage
    seed: int

    def count(self, group: Group) -> tuple[Counted, TermTable]:
        """Stage the counts of a group; its part of the table of terms. Raises InputDataError for a null id.

        What an earlier attempt staged is taken: neither a lost worker's partitions nor a lost driver's are
        tokenized twice.
        """
        with suppress(StageDamaged):
            read_counts(self.stage.counts(group.name))
            table, numbers = read_table(self.stage.table(group.name))
            if table.n_documents == group.n_rows:
                return Counted(*numbers), table
        # A null or damage that no footer tells of would else show after the fit.
        if self.columns.id is not None:
            read_ids(group, self.columns.id)
        read_kept(group, self.columns)
        counts, counted = self._counted(group)
        table = TermTable.of(counts)
        write_counts(self.stage.counts(group.name), counts)
        write_table(self.stage.table(group.name), table, counted)
        return counted, table

    def weigh(self, group: Group, vocabulary: Vocabulary) -> BlockInfo:
        """Stage the block of a group, unless it stands there already."""
        file = self.stage.block(group.name)
        with suppress(StageDamaged):
            X = read_block(file)
            if (X.n_rows, X.n_columns) == (group.n_rows, len(vocabulary)):
                return _info(X.indptr, X.data)
        counts_file = self.stage.counts(group.name)
        try:
            counts = read_counts(counts_file)
        except StageDamaged:
            counts, _ = self._counted(group)
        order = shuffled(self.seed, group.index, group.n_rows)
        X = weigh(counts, vocabulary, self.vectorizer, order)
        write_block(file, X)
        counts_file.delete()
        self.stage.table(group.name).delete()
        return _info(X.indptr, X.data)

    def counting(self, tasks: Tasks, groups: Sequence[Group]) -> list[Any]:
        """Handles of the numbers of groups that are being counted, and last that of their merged table of terms."""
        batch = Batch()
        numbers, tables = [], []
        for group in groups:
            result = batch.call("count", self.count, group)
            numbers.append(batch.call("counted", _counted_of, result))
            tables.append(batch.call("table", _table_of, result))
        sizes = [group.text_bytes for group in groups]
        return tasks.submit(batch, [*numbers, merged_table(batch, tables, sizes, self.vectorizer)])

    def _counted(self, group: Group) -> tuple[Counts, Counted]:
        texts = read_texts(group, self.columns.documents)
        try:
            counts = count_texts(texts, self.vectorizer)
        except MemoryError as error:
            raise InputDataError(
                f"{group} does not fit the memory of a worker ({group.text_bytes:,} bytes of text in "
                f"{group.n_rows:,} rows): lower corpus.partition_bytes, or give workers more memory"
            ) from error
        return counts, Counted(texts.null_count, counts.n_invalid)


def _info(indptr: NDArray[np.int64], data: NDArray[np.float32]) -> BlockInfo:
    empty = int(np.count_nonzero(np.diff(indptr) == 0))
    return BlockInfo(len(indptr) - 1, len(data), float(data.sum(dtype=np.float64)), empty)


def _counted_of(result: tuple[Counted, TermTable]) -> Counted:
    """The numbers of a counted group, without its table."""
    return result[0]


def _table_of(result: tuple[Counted, TermTable]) -> TermTable:
    """The table of a counted group."""
    return result[1]


@dataclass(frozen=True)
class WriteTasks:
    """Writes the W of partitions, a group at a time."""

    run: RunFolder
    stage: Stage
    columns: Columns
    seed: int
    n_components: int
    as_csv: bool = False

    def write(
        self, group: Group, runs: Sequence[tuple[int, Run]], strips: list[Weights], scale: Weights
    ) -> list[Written]:
        """Write the W of each partition of a group, in the order of the corpus.

        `runs` says where its rows are: the first row within the strip, and the run of the group's block;
        `strips` holds the W (rows, kp) of each run's strip. `scale` (k,) multiplies each topic's weights.
        """
        W = np.empty((group.n_rows, self.n_components), np.float32)
        order = shuffled(self.seed, group.index, group.n_rows)
        for (offset, run), strip in zip(runs, strips, strict=True):
            rows = strip[offset : offset + run.stop - run.start, : self.n_components]
            W[order[run.start : run.stop]] = rows * scale
        has_terms = np.zeros(group.n_rows, np.bool_)
        has_terms[order] = np.diff(read_block(self.stage.block(group.name)).indptr) > 0
        ids, kept = read_ids(group, self.columns.id), read_kept(group, self.columns)
        table = w_table(ids, self.columns.id_name, W, has_terms, kept)
        written, low = [], 0
        for one in group.partitions:
            high = low + one.n_rows
            written.append(self._written(one.index, table.slice(low, one.n_rows), W[low:high]))
            low = high
        return written

    def _written(self, partition: int, table: pa.Table, W: Weights) -> Written:
        digest = self.run.w_part(partition).write_parquet(table)
        csv = None
        if self.as_csv:
            with self.run.w_csv_part(partition).writing_csv() as file:
                file.write(flat_table(table))
            csv = file.digest
        topics = table["topic"].drop_null().to_numpy()
        return Written(
            W.sum(axis=0, dtype=np.float64), np.bincount(topics, minlength=self.n_components), digest, csv
        )


def runs_of_blocks(strips: Sequence[Sequence[Run]], n_blocks: int) -> list[list[tuple[int, int, Run]]]:
    """For each block the (strip, first row within the strip, run) of its rows."""
    found: list[list[tuple[int, int, Run]]] = [[] for _ in range(n_blocks)]
    for number, strip in enumerate(strips):
        offset = 0
        for run in strip:
            found[run.block].append((number, offset, run))
            offset += run.stop - run.start
    return found
