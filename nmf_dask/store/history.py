"""What a run keeps for the next one, so that the text need not be read again.

    history/terms.parquet      one row a bucket that some document holds, selected or not: what merges with new counts
    history/features.parquet   XᵀW, one row a feature (Kullback-Leibler: H ∘ the numerators of its update)
    history/topics.parquet     WᵀW, one row a topic (Kullback-Leibler: the sum of each topic's weights)
    history/inputs.parquet     one row an input file that was taken in, by this run or by one before it
    history/numbers.json       documents, and what the bound on their loss needs

All are of the documents of this run and, with the weight that the update gave them, of the runs that it came from.
The table of terms has at most `n_features` rows, each with one name: the most frequent term of its bucket.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nmf_dask.config import redact
from nmf_dask.errors import InputDataError
from nmf_dask.kernels.objective import Sums
from nmf_dask.store.arrays import MADE_AGAIN, StageDamaged
from nmf_dask.store.folder import Digest, Folder, MissingFileError
from nmf_dask.store.manifest import Manifest
from nmf_dask.store.tables import weights_column, weights_of
from nmf_dask.vocabulary import TermTable

HISTORY = "history"
TERMS, FEATURES, TOPICS, INPUTS, NUMBERS = (
    f"{HISTORY}/{name}"
    for name in ("terms.parquet", "features.parquet", "topics.parquet", "inputs.parquet", "numbers.json")
)
SLICE_ROWS = 2**16
_INPUTS = pa.schema(
    [
        ("uri", pa.string()),
        ("version", pa.string()),
        ("name", pa.string()),
        ("size", pa.int64()),
        ("digest", pa.string()),
    ]
)


@dataclass(frozen=True)
class InputFile:
    """An input file that a run took in.

    `uri` is without credentials; `version` (JSON) is what a listing says that another version of the file does not
    have; `name` is the path below its input, `digest` that of its footer.
    """

    uri: str
    version: str
    name: str
    size: int
    digest: str

    @classmethod
    def of(cls, uri: str, version: Iterable[Any], name: str, size: int, digest: str) -> InputFile:
        """From what a listing and a footer say."""
        return cls(redact(uri), json.dumps(list(version)), name, size, digest)

    @property
    def content(self) -> tuple[int, str]:
        """What a copy has as well."""
        return self.size, self.digest


@dataclass(frozen=True)
class Numbers:
    """Numbers of the documents that the sums are of."""

    beta_loss: str
    n_documents: int
    """Counted, however long ago: what document frequencies are out of."""
    n_rows: float
    """What the sums are worth: old documents count with their weight."""
    loss: float
    """`Sums.loss` of kept sums."""


def rescaled(sums: Sums, scale: NDArray[np.float32], beta_loss: str) -> Sums:
    """Kept sums (`Objective.kept`) without their padding, of W times `scale` (k,) and H divided by it."""
    k, factor = len(scale), scale.astype(np.float64)
    XtW = sums.XtW[:, :k]
    if beta_loss == "frobenius":
        WtW = sums.WtW[:k, :k] * factor * factor[:, np.newaxis]
        return replace(sums, XtW=XtW * scale, WtW=WtW)
    # The numerators hold H, which lost what W gained; the constant of the bound holds their products with log H.
    loss = sums.loss - float(XtW.sum(axis=0, dtype=np.float64) @ np.log(factor))
    return replace(sums, XtW=XtW, WtW=sums.WtW[:, :k] * factor, loss=loss)


def write_sums(run: Folder, sums: Sums, beta_loss: str) -> dict[str, Digest]:
    """A task: what `rescaled` gave into a run's folder."""
    features = pa.table(
        {"feature": np.arange(len(sums.XtW), dtype=np.int32), "weights": weights_column(sums.XtW)}
    )
    rows = sums.WtW if beta_loss == "frobenius" else sums.WtW.T
    flat = pa.array(np.ascontiguousarray(rows).reshape(-1))
    weights = pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
    topics = pa.table({"topic": np.arange(len(rows), dtype=np.int32), "weights": weights})
    return {
        FEATURES: (run / FEATURES).write_parquet(features),
        TOPICS: (run / TOPICS).write_parquet(topics),
    }


def read_sums(manifest: Manifest, numbers: Numbers, k: int, m: int) -> Sums:
    """The kept sums of a run: XtW (m, k), WtW (k, k) or, for Kullback-Leibler, (1, k).

    Raises InputDataError, naming the file, where one is missing or not what was written.
    """
    width = k if numbers.beta_loss == "frobenius" else 1
    try:
        XtW = weights_of(manifest.read_parquet(FEATURES), k)
        table = manifest.read_parquet(TOPICS)
        WtW = np.asarray(pa.concat_arrays([chunk.flatten() for chunk in table["weights"].chunks]), np.float64)
        WtW = WtW.reshape(k, width)
        if len(XtW) != m or not np.isfinite(WtW).all():
            raise ValueError(f"{len(XtW)} features where the model has {m}, or sums that are not finite")
    except (ValueError, KeyError, AttributeError) as error:
        raise _not_history(manifest, error) from error
    return Sums(XtW, WtW if width == k else WtW.T, numbers.loss, numbers.n_rows)


def write_terms(file: Folder, table: TermTable) -> Digest:
    """A task: the table of all terms, one a bucket (`TermTable.named`), into a file."""
    columns = {name: table.buckets[name] for name in ("bucket", "document_frequency", "total_count")}
    columns["term"] = table.terms["term"]
    columns["term_document_frequency"] = table.terms["document_frequency"]
    whole = pa.table(columns)
    # A slice at a time: what is encoded of it takes several times its size.
    lows = range(0, max(1, whole.num_rows), SLICE_ROWS)
    return file.write_parquet_slices(whole.slice(low, SLICE_ROWS) for low in lows)


def copy_file(source: Folder, target: Folder) -> Digest:
    """A task: a file that was staged, into a run's folder; StageDamaged where it is gone."""
    try:
        content = source.read_bytes()
    except MissingFileError as error:
        raise StageDamaged(f"{source} is missing; {MADE_AGAIN}") from error
    return target.write_bytes(content)


def read_terms(manifest: Manifest, n_documents: int) -> TermTable:
    """The table of all terms of a run; InputDataError, naming the file, where it is not what was written."""
    table = manifest.read_parquet(TERMS)
    try:
        buckets = table.select(["bucket", "document_frequency", "total_count"])
        terms = table.select(["bucket", "term", "term_document_frequency"])
    except KeyError as error:
        raise _not_history(manifest, error) from error
    terms = terms.rename_columns(["bucket", "term", "document_frequency"])
    return TermTable(buckets.combine_chunks(), terms.combine_chunks(), n_documents)


def write_facts(run: Folder, numbers: Numbers, inputs: Iterable[InputFile]) -> dict[str, Digest]:
    """Numbers of the kept sums, and which files they are of, into a run's folder."""
    table = pa.Table.from_pylist([asdict(one) for one in inputs], schema=_INPUTS)
    return {
        INPUTS: (run / INPUTS).write_parquet(table),
        NUMBERS: (run / NUMBERS).write_json(asdict(numbers)),
    }


def read_numbers(manifest: Manifest) -> Numbers | None:
    """Numbers of the kept sums; None for a run that keeps none."""
    if NUMBERS not in manifest.digests:
        return None
    told: Mapping[str, Any] = manifest.read_json(NUMBERS)
    try:
        return Numbers(
            str(told["beta_loss"]), int(told["n_documents"]), float(told["n_rows"]), float(told["loss"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _not_history(manifest, error) from error


def read_inputs(manifest: Manifest) -> list[InputFile]:
    """The input files that were taken in, by the run or by those before it."""
    table = manifest.read_parquet(INPUTS)
    try:
        return [InputFile(**one) for one in table.select(_INPUTS.names).cast(_INPUTS).to_pylist()]
    except (KeyError, ValueError) as error:
        raise _not_history(manifest, error) from error


def _not_history(manifest: Manifest, error: Exception) -> InputDataError:
    return InputDataError(
        f"{manifest.run / HISTORY} is not what a run keeps ({error}): restore it, or give --history reread with all "
        "of the corpus as --input"
    )
