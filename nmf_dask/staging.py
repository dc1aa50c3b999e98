"""Intermediate files of a run: counts and blocks that later stages read, and the checkpoints of a fit.

They lie in the run's work area, or in the scratch folder that the settings name. Each file is whole or does not
open, so that what stands there can be used, and what does not is made again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nmf_dask.kernels.matrices import Csr, frozen
from nmf_dask.store import Folder, read_arrays, write_arrays
from nmf_dask.text import Counts
from nmf_dask.vocabulary import TermTable


@dataclass(frozen=True)
class Stage:
    """The folder of a run's intermediate files. Picklable."""

    folder: Folder

    @property
    def vocabulary(self) -> Folder:
        """The selected features."""
        return self.folder / "vocabulary.parquet"

    @property
    def terms(self) -> Folder:
        """The table of all terms that the features were selected from, for the run to keep."""
        return self.folder / "terms.parquet"

    @property
    def earlier(self) -> Folder:
        """An earlier H that the fit goes on from, and what the documents of then said of H."""
        return self.folder / "earlier.arrow"

    @property
    def past(self) -> Folder:
        """What documents of then say of H, in all columns: what passes reckon with."""
        return self.folder / "past.arrow"

    @property
    def counted(self) -> Folder:
        """Numbers of the counted corpus, written after the vocabulary: counting is over."""
        return self.folder / "counted.json"

    @property
    def documents(self) -> Folder:
        """The folder of documents that were read out of other formats, or filtered."""
        return self.folder / "documents"

    def has_counts(self) -> bool:
        """Whether some partition is counted."""
        return any(name.startswith("terms-") for name in (self.folder / "counts").list())

    def counts(self, group: str) -> Folder:
        """The counts of a group of partitions, by its name."""
        return self.folder / "counts" / f"part-{group}.arrow"

    def table(self, group: str) -> Folder:
        """What a group says of its terms, written after its counts: it is counted."""
        return self.folder / "counts" / f"terms-{group}.arrow"

    def block(self, group: str) -> Folder:
        """The weighed block of a group."""
        return self.folder / "blocks" / f"part-{group}.arrow"

    @property
    def passes(self) -> Folder:
        """The folder of what passes left since the last checkpoint."""
        return self.folder / "passes"

    @property
    def checkpoints(self) -> Folder:
        """The folder of all checkpoints."""
        return self.folder / "checkpoints"

    def checkpoint(self, iteration: int) -> Folder:
        """The folder of a checkpoint."""
        return self.checkpoints / f"pass-{iteration:05d}"


_TERMS = pa.schema([("bucket", pa.int32()), ("term", pa.string())])


def write_counts(file: Folder, counts: Counts) -> None:
    """Stage counts; their terms are in the tables already and are left out."""
    write_arrays(
        file,
        {
            "indptr": counts.indptr,
            "indices": counts.indices,
            "counts": counts.counts,
            "buckets": counts.buckets,
            "n_invalid": np.array([counts.n_invalid]),
        },
    )


def read_counts(file: Folder) -> Counts:
    """Staged counts, without terms; raises StageDamaged."""
    arrays = read_arrays(file)
    n_invalid = int(arrays.pop("n_invalid")[0])
    return Counts(**arrays, terms=_TERMS.empty_table(), n_invalid=n_invalid)


def write_table(file: Folder, table: TermTable, numbers: Sequence[int]) -> None:
    """Stage the table of a partition's terms, with some numbers of the partition."""
    write_arrays(file, table.to_arrays() | {"numbers": np.array(numbers, np.int64)})


def read_table(file: Folder) -> tuple[TermTable, list[int]]:
    """A staged table and the numbers beside it; raises StageDamaged."""
    arrays = read_arrays(file)
    return TermTable.from_arrays(arrays), arrays["numbers"].tolist()


def write_block(file: Folder, X: Csr) -> None:
    """Stage a weighed block."""
    n_columns = np.array([X.n_columns])
    write_arrays(file, {"indptr": X.indptr, "indices": X.indices, "data": X.data, "n_columns": n_columns})


def read_block(file: Folder) -> Csr:
    """A staged block, mapped into memory where the file is local; raises StageDamaged."""
    arrays = read_arrays(file)
    return frozen(Csr(arrays["indptr"], arrays["indices"], arrays["data"], int(arrays["n_columns"][0])))


MAPPED_BYTES = 64 * 2**20
REMAPPED_BYTES = 4 * 2**20


class BlockCache:
    """Blocks read lately, up to a number of bytes; safe to share between threads.

    A mapped file counts with all its bytes: the pages that were touched belong to the process's memory until
    the map is dropped, and a nanny counts them. Of larger ones (`REMAPPED_BYTES`) fewer are kept, `MAPPED_BYTES`: the
    kernel has them at hand anyway while there is memory, and to map one again, a millisecond, is little beside a visit.
    """

    def __init__(self, n_bytes: float) -> None:
        self._limit = n_bytes
        self._blocks: OrderedDict[str, Csr] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, file: Folder) -> Csr:
        """The block of a staged file."""
        with self._lock:
            if file.uri in self._blocks:
                self._blocks.move_to_end(file.uri)
                return self._blocks[file.uri]
        block = read_block(file)
        mapped = file.is_local and block.nbytes >= REMAPPED_BYTES
        limit = min(self._limit, MAPPED_BYTES) if mapped else self._limit
        with self._lock:
            self._blocks[file.uri] = block
            while len(self._blocks) > 1 and sum(one.nbytes for one in self._blocks.values()) > limit:
                self._blocks.popitem(last=False)
        return block


@dataclass(frozen=True)
class StagedBlocks:
    """The blocks of a run by number, as a picklable value: each process reads what it needs through its cache."""

    files: tuple[Folder, ...]
    cache_bytes: int

    def __call__(self, block: int) -> Csr:
        return _cache(self.cache_bytes).get(self.files[block])


@lru_cache(maxsize=1)
def _cache(n_bytes: int) -> BlockCache:
    return BlockCache(n_bytes)


def shuffled(seed: int, block: int, n_rows: int) -> NDArray[np.int64]:
    """The order in which the rows of a group of partitions stand in its block: any share is a random sample."""
    return np.random.default_rng([seed, 4, block]).permutation(n_rows)
