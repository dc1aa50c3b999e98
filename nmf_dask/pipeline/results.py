"""The files of a run's results: W, by workers; H, its topics and the passes; what an update goes on from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nmf_dask.config import Settings
from nmf_dask.corpus import Corpus, Group
from nmf_dask.pipeline.fitting import Fitting
from nmf_dask.pipeline.stages import WriteTasks, Written, runs_of_blocks
from nmf_dask.staging import Stage
from nmf_dask.store import Digest, Folder, RunFolder, convergence_table, h_table, topics_table
from nmf_dask.store.history import (
    TERMS,
    InputFile,
    Numbers,
    copy_file,
    rescaled,
    write_facts,
    write_sums,
)
from nmf_dask.tasks import Batch, Tasks
from nmf_dask.vocabulary import Vocabulary

H_PART_BYTES = 256 * 2**20


@dataclass
class Results:
    """The writer of a fit that has ended."""

    run: RunFolder
    stage: Stage
    corpus: Corpus
    groups: Sequence[Group]
    settings: Settings
    taken: Sequence[InputFile]  # files that an update need not read again
    awaited: Callable[[list[Any]], list[Any]]  # the values of one handle a group
    digests: dict[str, Digest] = field(default_factory=dict)  # of each file, by its name in the run

    def written(
        self, tasks: Tasks, vocabulary: Vocabulary, fitting: Fitting
    ) -> tuple[NDArray[np.float32], list[Written]]:
        """Write everything; H (k, m), and what was written of each partition."""
        outcome = tasks.fetch(tasks.call("H", _H_of, fitting.outcome()))
        H = np.ascontiguousarray(outcome[:, : self.settings.model.n_components].T)
        scale = np.ones(len(H), np.float32)
        if self.settings.model.scaled:
            sums = H.sum(axis=1, dtype=np.float64)
            scale = np.where(sums > 0, sums, 1).astype(np.float32)
            H = (H / scale[:, np.newaxis]).astype(np.float32)
        # W comes last: a worker that hangs, and has written its parts, is asked for nothing more.
        self._write_history(tasks, vocabulary, fitting.kept(), scale)
        written = self._write_W(tasks, fitting, scale)
        self._write_H(vocabulary, H)
        self._write(self.run.convergence, convergence_table(fitting.state.rows))
        return H, written

    def _write_W(self, tasks: Tasks, fitting: Fitting, scale: NDArray[np.float32]) -> list[Written]:
        settings = self.settings
        writer = WriteTasks(
            self.run,
            self.stage,
            self.corpus.columns,
            settings.model.random_state,
            len(scale),
            settings.output.w_format == "csv",
        )
        weights = fitting.weights()
        batch = Batch()
        refs = []
        runs = runs_of_blocks(fitting.problem.strips, len(self.groups))
        for group, places in zip(self.groups, runs, strict=True):
            strips = [weights[strip] for strip, _, _ in places]
            rows = tuple((offset, run) for _, offset, run in places)
            refs.append(batch.call("write", writer.write, group, rows, strips, scale))
        written: list[Written] = [one for some in self.awaited(tasks.submit(batch, refs)) for one in some]
        for partition, one in zip(self.corpus.partitions, written, strict=True):
            self.digests[self.run.name_of(self.run.w_part(partition.index))] = one.digest
            if one.csv is not None:
                self.digests[self.run.name_of(self.run.w_csv_part(partition.index))] = one.csv
        return written

    def _write_H(self, vocabulary: Vocabulary, H: NDArray[np.float32]) -> None:
        table: pa.Table = h_table(vocabulary, H)
        rows = max(1, H_PART_BYTES // (4 * len(H)))
        for index, low in enumerate(range(0, table.num_rows, rows)):
            self._write(self.run.h_part(index), table.slice(low, rows))
        self._write(self.run.topics, topics_table(vocabulary, H, self.settings.output.n_top_terms))

    def _write_history(
        self, tasks: Tasks, vocabulary: Vocabulary, kept: Any, scale: NDArray[np.float32]
    ) -> None:
        """What an update goes on from; the large tables are written by workers."""
        folder, beta_loss = self.run.folder, self.settings.model.beta_loss
        kept = tasks.call("kept", rescaled, kept, scale, beta_loss)
        loss, n_rows = tasks.fetch(tasks.call("kept", _numbers_of, kept))
        digests = tasks.call("history", write_sums, folder, kept, beta_loss)
        terms = tasks.call("history", copy_file, self.stage.terms, folder / TERMS)
        numbers = Numbers(beta_loss, vocabulary.n_documents, n_rows, loss)
        self.digests |= write_facts(folder, numbers, self.taken)
        self.digests |= {**tasks.fetch(digests), TERMS: tasks.fetch(terms)}

    def _write(self, file: Folder, table: pa.Table) -> None:
        self.digests[self.run.name_of(file)] = file.write_parquet(table)


def _numbers_of(kept: Any) -> tuple[float, float]:
    return kept.loss, kept.n_rows


def _H_of(outcome: Any) -> NDArray[np.float32]:
    H: NDArray[np.float32] = outcome.HT
    return H
