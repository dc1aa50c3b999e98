"""What workers do for a transform: one input partition to one part of W. Plain functions of picklable values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nmf_dask.corpus import (
    Columns,
    Partition,
    joined,
    read_ids,
    read_kept,
    read_texts,
    read_texts_by_slices,
    small_together,
)
from nmf_dask.errors import InputDataError
from nmf_dask.folding import Folding
from nmf_dask.model import TopicModel
from nmf_dask.pipeline.account import topics_told
from nmf_dask.store import Digest, Part, TransformFolder, flat_table, w_table

# What is counted and weighed at a time: enough for the few milliseconds that a slice costs by itself to be nothing,
# and all that a task holds, however large its partition is.
SLICE_BYTES = 16 * 2**20
SLICE_ROWS = 2**16
# Small files are read together, and their parts are made by one task: a request to a store takes long, not much.
GROUP_BYTES = 4 * 2**20
MOST_PARTS = 64


class Due(NamedTuple):
    """A part that is to be made: of which partition, under which name, numbered from which row on."""

    partition: Partition
    name: str
    first_row: int


class Made(NamedTuple):
    """A part that is there; whether an earlier attempt had made it."""

    part: Part
    earlier: bool


class Rows(NamedTuple):
    """Rows of a part: ids, what W carries beside them, and texts in slices."""

    ids: pa.ChunkedArray
    kept: pa.Table
    texts: Iterable[pa.ChunkedArray]


def folding_of(model: str) -> Folding:
    """A task: what the others need of the model, read from its run's folder."""
    return TopicModel.load(model).folding()


@dataclass
class Tally:
    """What is counted while a part is written."""

    weights: NDArray[np.float64]
    documents: NDArray[np.int64]
    numbers: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("n_empty", "n_null", "n_invalid"), 0)
    )
    loss: float = 0.0
    squares: float = 0.0

    def add(
        self, table: pa.Table, W: NDArray[np.float32], losses: tuple[float, float], **numbers: int
    ) -> None:
        """Count a slice."""
        self.weights += W.sum(axis=0, dtype=np.float64)
        topics = table["topic"].drop_null().to_numpy()
        self.documents += np.bincount(topics, minlength=len(self.documents))
        for name, number in numbers.items():
            self.numbers[name] += number
        self.loss += losses[0]
        self.squares += losses[1]


@dataclass(frozen=True)
class PartTasks:
    """Makes the parts of one output."""

    output: TransformFolder
    columns: Columns
    as_csv: bool = False
    measured: bool = False
    """Whether the loss is asked for."""

    def make(self, group: Sequence[Due], folding: Folding) -> list[Made]:
        """Write parts, each with a record of it; a whole part of an earlier attempt is taken.

        What several parts need is read together: they are those of small files. Raises InputDataError for what is wrong
        with a partition's files, naming file and row group.
        """
        earlier = {due.name: self._earlier(due) for due in group}
        left = [due for due in group if earlier[due.name] is None]
        try:
            made = {due.name: self._made(due, folding, rows) for due, rows in self._read(left)}
        except MemoryError as error:
            raise InputDataError(
                f"{together(group)} does not fit the memory of a worker: lower corpus.partition_bytes, or give "
                "workers more"
            ) from error
        return [
            Made(made[name], False) if part is None else Made(part, True) for name, part in earlier.items()
        ]

    def _read(self, group: Sequence[Due]) -> Iterator[tuple[Due, Rows]]:
        """What is read for each part."""
        if len(group) == 1:
            [due] = group
            texts = read_texts_by_slices(due.partition, self.columns.documents, SLICE_BYTES, SLICE_ROWS)
            yield due, Rows(self._ids(due), read_kept(due.partition, self.columns), texts)
        elif group:
            whole = together(group)
            all_texts = read_texts(whole, self.columns.documents)
            ids = None if self.columns.id is None else read_ids(whole, self.columns.id)
            kept = read_kept(whole, self.columns)
            low = 0
            for due in group:
                place = (low, due.partition.n_rows)
                own = self._ids(due) if ids is None else ids.slice(*place)
                yield due, Rows(own, kept.slice(*place), [all_texts.slice(*place)])
                low += due.partition.n_rows

    def _made(self, due: Due, folding: Folding, rows: Rows) -> Part:
        k = folding.n_components
        tally = Tally(np.zeros(k), np.zeros(k, np.int64))
        digest, csv = self._written(due.name, self._slices(folding, tally, rows))
        part = Part(
            name=due.name,
            first_row=due.first_row,
            n_documents=due.partition.n_rows,
            **tally.numbers,
            loss=tally.loss if self.measured else None,
            squares=tally.squares if self.measured else None,
            weights=tuple(tally.weights.tolist()),
            documents=tuple(tally.documents.tolist()),
            bytes=digest.n_bytes,
            sha256=digest.sha256,
            csv_bytes=csv.n_bytes if csv is not None else None,
            csv_sha256=csv.sha256 if csv is not None else None,
        )
        self.output.record(due.name).write_json(part.told())
        return part

    def _earlier(self, due: Due) -> Part | None:
        """What an earlier attempt recorded of this part, where the part's file is what was recorded."""
        with suppress(InputDataError, KeyError, TypeError, ValueError):
            part = Part.of(self.output.record(due.name).read_json())
            measured = part.loss is not None or not self.measured
            if measured and (part.name, part.first_row) == (due.name, due.first_row):
                found = {name: self.output.file(name).digest() for name in part.digests}
                return part if found == part.digests else None
        return None

    def _written(self, name: str, slices: Iterator[pa.Table]) -> tuple[Digest, Digest | None]:
        """Digests of a part, and of that in CSV, where that is asked for: both are written side by side."""
        if not self.as_csv:
            return self.output.part(name).write_parquet_slices(slices), None
        with self.output.csv_part(name).writing_csv() as csv:

            def passed() -> Iterator[pa.Table]:
                for table in slices:
                    csv.write(flat_table(table))
                    yield table

            digest = self.output.part(name).write_parquet_slices(passed())
        return digest, csv.digest

    def _slices(self, folding: Folding, tally: Tally, rows: Rows) -> Iterator[pa.Table]:
        low = 0
        for texts in rows.texts:
            folded = folding(texts)
            # In one chunk: how they were read is not to show in the file.
            table = w_table(
                rows.ids.slice(low, len(texts)).combine_chunks(),
                self.columns.id_name,
                folded.W,
                folded.has_terms,
                rows.kept.slice(low, len(texts)).combine_chunks(),
            )
            empty = int(np.count_nonzero(~folded.has_terms))
            losses = folding.fixed.losses(folded.X, folded.W) if self.measured else (0.0, 0.0)
            tally.add(
                table, folded.W, losses, n_empty=empty, n_null=texts.null_count, n_invalid=folded.n_invalid
            )
            low += len(texts)
            yield table

    def _ids(self, due: Due) -> pa.ChunkedArray:
        if self.columns.id is not None:
            return read_ids(due.partition, self.columns.id)
        rows = np.arange(due.first_row, due.first_row + due.partition.n_rows, dtype=np.int64)
        return pa.chunked_array([rows])


def groups_of(due: Sequence[Due], most_bytes: int) -> list[list[Due]]:
    """Parts, in their order, that one task makes: small ones together, of so many bytes of text at most."""
    partitions = [one.partition for one in due]
    return [list(due[cut]) for cut in small_together(partitions, most_bytes, SLICE_ROWS, MOST_PARTS)]


def together(group: Sequence[Due]) -> Partition:
    """The partitions of parts as one."""
    return joined([one.partition for one in group])


def told_of(parts: list[Part], H_sums: NDArray[np.float64]) -> dict[str, Any]:
    """Numbers of all parts together, with the share of each topic; `H_sums` (k,) are those of H's rows."""
    return {
        "n_documents": sum(part.n_documents for part in parts),
        "n_empty_documents": sum(part.n_empty for part in parts),
        "n_null_texts": sum(part.n_null for part in parts),
        "n_invalid_utf8": sum(part.n_invalid for part in parts),
        "relative_loss": relative_loss(parts),
        "topics": topics_told(H_sums, parts),
    }


def relative_loss(parts: Iterable[Part]) -> float | None:
    """√(2D) / ‖X‖ of the documents of parts: D is the beta-divergence of X and WH, the norm is Frobenius's.

    It does not depend on how many documents there are. Those without a known term do not count. None where no
    document has one, or where it was not measured for a part.
    """
    found = [(part.loss, part.squares) for part in parts if part.n_documents]
    losses = [loss for loss, _ in found if loss is not None]
    squares = math.fsum(one for _, one in found if one is not None)
    return math.sqrt(math.fsum(losses) / squares) if squares and len(losses) == len(found) else None
