"""The stage before all others for corpora that are not plain columns of Parquet: their documents, staged as such.

One task reads one partition of the files as they are, and writes the documents that the filter leaves, with their ids
and what W carries, as one Parquet file. From there on the job is like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from nmf_dask.corpus import Corpus, Partition, Raw, staged
from nmf_dask.errors import InputDataError
from nmf_dask.pipeline.deaths import awaited
from nmf_dask.store import Folder
from nmf_dask.tasks import Batch, Tasks

# Of a row group: few enough for several to make a partition, which is cut between them.
GROUP_BYTES = 8 * 2**20


@dataclass(frozen=True)
class IngestTasks:
    """Stages the documents of one corpus in a folder."""

    folder: Folder
    raw: Raw

    def file(self, name: str) -> Folder:
        """Of a partition's documents."""
        return self.folder / f"{name}.parquet"

    def ingest(self, partition: Partition, name: str) -> int:
        """Stage a partition's documents, unless they are there already; how many they are.

        Raises InputDataError for what is wrong with its files.
        """
        record = self.folder / f"{name}.json"
        with suppress(InputDataError, KeyError, TypeError, ValueError):
            told = record.read_json()
            if tuple(self.file(name).digest()) == (told["bytes"], told["sha256"]):
                return int(told["n_documents"])
        written = _Written(self.raw, partition)
        try:
            digest = self.file(name).write_parquet_slices(written, plain=[self.raw.text_name])
        except MemoryError as error:
            raise InputDataError(
                f"a document of {partition} does not fit the memory of a worker: give workers more"
            ) from error
        told = {"n_documents": written.n_rows, "bytes": digest.n_bytes, "sha256": digest.sha256}
        record.write_json(told)
        return written.n_rows


class _Written:
    """The documents of a partition in slices for row groups, one at least; counts them as they go."""

    def __init__(self, raw: Raw, partition: Partition) -> None:
        self._raw, self._partition = raw, partition
        self.n_rows = 0

    def __iter__(self) -> Iterator[pa.Table]:
        held: list[pa.Table] = [self._raw.schema.empty_table()]
        n_bytes = 0
        for table in self._raw.documents(self._partition):
            held.append(table)
            self.n_rows += len(table)
            n_bytes += table.nbytes
            if n_bytes >= GROUP_BYTES:
                yield pa.concat_tables(held).combine_chunks()
                held, n_bytes = [], 0
        if held:
            yield pa.concat_tables(held).combine_chunks()


def ingested(
    corpus: Corpus,
    folder: Folder,
    names: Sequence[str],
    tasks: Tasks,
    advance: Callable[[int, int], None],
    *,
    by_file: bool = False,
) -> Corpus:
    """The corpus of the documents that a raw one holds, staged in a folder under one name a partition.

    `advance` hears of partitions that are done, and the bytes of the last. With `by_file`, nothing is an answer too.
    Raises InputDataError for what is wrong with the files, and where no document is left.
    """
    assert corpus.raw is not None
    ingest = IngestTasks(folder, corpus.raw)
    by_index = dict(zip((one.index for one in corpus.partitions), names, strict=True))

    def handed(partitions: Sequence[Partition]) -> list[Any]:
        batch = Batch()
        refs = [batch.call("ingest", ingest.ingest, one, by_index[one.index]) for one in partitions]
        return tasks.submit(batch, refs)

    n_rows = 0
    again = partial(_alone, handed)
    arriving = awaited(tasks, "ingest", corpus.partitions, handed(corpus.partitions), again)
    for done, (position, found) in enumerate(arriving, 1):
        n_rows += found
        advance(done, corpus.partitions[position].text_bytes)
    return staged(corpus, [ingest.file(name).uri for name in names], n_rows, by_file=by_file)


def _alone(handed: Callable[[Sequence[Partition]], list[Any]], partition: Partition) -> Any:
    return handed([partition])[0]
