"""The tables of a run (W, H, topics, convergence): their columns and types stand here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nmf_dask.corpus import in_known_zone
from nmf_dask.errors import ConfigurationError
from nmf_dask.observer import Pass

if TYPE_CHECKING:
    from nmf_dask.vocabulary import Vocabulary

TOPICS = pa.schema(
    [("topic", pa.int32()), ("rank", pa.int32()), ("term", pa.string()), ("weight", pa.float32())]
)
CONVERGENCE = pa.schema(
    [
        ("iteration", pa.int32()),
        ("reconstruction_err", pa.float64()),
        ("seconds", pa.float64()),
        ("rounds", pa.int32()),
    ]
)
H_FEATURES = pa.schema(
    [
        ("feature", pa.int32()),
        ("bucket", pa.int64()),
        ("term", pa.string()),
        ("document_frequency", pa.int64()),
        ("idf", pa.float64()),
        ("term_share", pa.float32()),
    ]
)
"""The columns of H before its weights."""
W_COLUMNS = ("topic", "weights")
_BYTES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_fixed_size_binary,
    pa.types.is_binary_view,
)


def check_id_name(id_name: str) -> None:
    """Raise ConfigurationError for an id column that W could not hold beside its own columns."""
    if id_name in W_COLUMNS:
        raise ConfigurationError(
            f"the id column is named {id_name}, which is a column of W itself; rename it in the corpus, or "
            "leave corpus.id_column out to get row numbers as doc_id"
        )


def check_kept_names(id_name: str, kept: Iterable[str]) -> None:
    """Raise ConfigurationError for columns to keep that W could not hold beside its id and its own columns."""
    for name in kept:
        if name in W_COLUMNS or name == id_name:
            whose = "a column of W itself" if name in W_COLUMNS else "the name of the id in W"
            raise ConfigurationError(
                f"the column {name} that W is to carry (corpus.keep, or a key of a folder) has {whose} for a name; "
                "rename it in the corpus, or leave it out"
            )


def w_table(
    ids: pa.Array | pa.ChunkedArray,
    id_name: str,
    W: NDArray[np.float32],
    has_terms: NDArray[np.bool_],
    kept: pa.Table | None = None,
) -> pa.Table:
    """One partition of W: its ids, the columns of `kept`, the topic of the largest weight, and the weights.

    `W` is float32 (n, k), `has_terms` (n,) is False for a document with no known term. `topic` is null for
    such a document, and for one whose weights are all zero. Raises ConfigurationError where `id_name` or a name in
    `kept` is the name of another column, ValueError where the lengths differ.
    """
    check_id_name(id_name)
    more = {} if kept is None else dict(zip(kept.column_names, kept.columns, strict=True))
    check_kept_names(id_name, more)
    n, k = W.shape
    if {len(ids), *map(len, more.values())} != {n} or has_terms.shape != (n,):
        raise ValueError(f"W has {n} rows, {len(ids)} ids and {len(has_terms)} flags")
    topic = W.argmax(axis=1).astype(np.int32) if k else np.zeros(n, np.int32)
    largest = W[np.arange(n), topic] if k else np.zeros(n, np.float32)
    unknown = ~has_terms | ~(largest > 0)
    own = {"topic": pa.array(topic, mask=unknown), "weights": weights_column(W)}
    return pa.table({id_name: ids, **more, **own})


def check_csv_columns(schema: pa.Schema, k: int) -> None:
    """Raise ConfigurationError for columns that a W as CSV cannot hold beside `k` weights: bytes, and w0, w1, …"""
    for column in schema:
        type_ = column.type.storage_type if isinstance(column.type, pa.BaseExtensionType) else column.type
        is_bytes = any(check(type_) for check in _BYTES)
        if is_bytes or column.name in _weight_names(k):
            why = f"has type {column.type}, which is no text" if is_bytes else "is named as a weight"
            raise ConfigurationError(
                f"column {column.name!r} {why}, so W cannot be written as CSV with it: leave --w-format "
                "(output.w_format) out, or the column"
            )


def flat_table(table: pa.Table) -> pa.Table:
    """A table of W as CSV has it: the columns before the weights, and w0, w1, … float32."""
    weights = table["weights"].combine_chunks()
    k = weights.type.list_size
    flat = weights.flatten().to_numpy(zero_copy_only=False).reshape(-1, k)
    before = table.drop_columns("weights")
    columns = [
        column.cast(pa.string()) if pa.types.is_string_view(column.type) else in_known_zone(column)
        for column in before.columns
    ]
    names = [*before.column_names, *_weight_names(k)]
    return pa.Table.from_arrays([*columns, *(pa.array(flat[:, topic]) for topic in range(k))], names=names)


def _weight_names(k: int) -> list[str]:
    return [f"w{topic}" for topic in range(k)]


def h_table(vocabulary: Vocabulary, H: NDArray[np.float32]) -> pa.Table:
    """H as one row a feature: the vocabulary's columns and `weights`, from `H` float32 (k, m)."""
    table = vocabulary.to_table().cast(H_FEATURES)
    if H.shape[1] != table.num_rows:
        raise ValueError(f"H has {H.shape[1]} columns and the vocabulary {table.num_rows} features")
    return table.append_column("weights", weights_column(H.T))


def topics_table(vocabulary: Vocabulary, H: NDArray[np.float32], n: int) -> pa.Table:
    """The `n` terms of the largest weight in each topic, rank 1 first; a weight of zero is no term."""
    top = top_features(H, n)
    k, shown = top.shape
    weight = np.take_along_axis(H, top, axis=1).reshape(-1).astype(np.float32)
    table = pa.table(
        {
            "topic": np.repeat(np.arange(k, dtype=np.int32), shown),
            "rank": np.tile(np.arange(1, shown + 1, dtype=np.int32), k),
            "term": vocabulary.term.take(pa.array(top.reshape(-1))),
            "weight": weight,
        }
    ).cast(TOPICS)
    return table.filter(pa.array(weight > 0))


def convergence_table(rows: Iterable[Pass]) -> pa.Table:
    """One row a pass over the data."""
    return pa.Table.from_pylist([row._asdict() for row in rows], schema=CONVERGENCE)


def top_features(H: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Features by falling weight, (k, min(n, m)) from `H` (k, m); equal weights by feature number."""
    return np.stack([np.argsort(-row, kind="stable")[:n] for row in H]).astype(np.int64)


def weights_column(rows: NDArray[np.float32]) -> pa.FixedSizeListArray:
    """A float32 (n, k) matrix as fixed_size_list<float32>[k]; no copy of a C-contiguous one."""
    flat = np.ascontiguousarray(rows, dtype=np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(flat), type=pa.list_(pa.field("item", pa.float32()), rows.shape[1])
    )


def weights_of(table: pa.Table, k: int) -> NDArray[np.float32]:
    """The matrix (rows, k) of a table of W or H; ValueError that says what else the column holds."""
    if "weights" not in table.column_names:
        raise ValueError(f"no column weights among {', '.join(table.column_names)}")
    column = table["weights"]
    expected = pa.list_(pa.field("item", pa.float32()), k)
    if not pa.types.is_fixed_size_list(column.type) or column.type.list_size != k:
        raise ValueError(f"weights are {column.type} where {expected} is expected")
    flat = pa.concat_arrays([pa.array([], pa.float32()), *(chunk.flatten() for chunk in column.chunks)])
    if len(flat) != k * table.num_rows or flat.null_count:
        raise ValueError("weights have nulls")
    weights: NDArray[np.float32] = flat.to_numpy().reshape(-1, k)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("weights are negative or not finite")
    return weights
