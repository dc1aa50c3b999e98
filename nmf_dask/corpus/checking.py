"""Parquet files of a corpus, checked one by one by their footers, and what all of them must agree in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from nmf_dask.config import CorpusSettings
from nmf_dask.corpus.columns import TypeMismatch, common_types, key_fields, keys_of
from nmf_dask.corpus.features import ENTRY_BYTES, feature_columns
from nmf_dask.corpus.footers import (
    Column,
    Footer,
    check_alone,
    check_column,
    id_column,
    null_counts,
    read_footer,
    single_column,
    text_column,
)
from nmf_dask.corpus.locations import Found, Location
from nmf_dask.corpus.partitions import Piece, RowGroup, SourceFile
from nmf_dask.corpus.raw import may_match
from nmf_dask.corpus.where import Condition, columns_of
from nmf_dask.errors import InputDataError


class CheckedFile(NamedTuple):
    """One file that passed: its row groups with rows, and what must agree among files."""

    file: SourceFile
    row_groups: tuple[RowGroup, ...]
    id_type: pa.DataType | None
    null_id: Piece | None
    kept: Mapping[str, tuple[SourceFile, pa.DataType]]
    is_triples: bool


def check_file(
    found: Found, settings: CorpusSettings, condition: Condition | None, all_keys: pa.Schema
) -> CheckedFile:
    """What is asked of a file, and told of it; `all_keys` are those of all files' folders.

    Raises InputDataError, naming the file, where it is damaged or lacks a column.
    """
    footer = read_footer(found.location)
    metadata = footer.metadata
    texts, is_triples = _contents(footer, found.location, settings)
    for column in texts:
        check_column(footer, found.location, column)
    check_alone(footer, found.location)
    keys = keys_of(found.location.path)
    file = SourceFile(found.location, found.name, footer.size, metadata.num_rows, footer.digest, keys)
    matching = _matching(file, footer, condition, all_keys)
    row_groups = []
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        # Triples that a filter leaves may be of a row that begins in a row group where it leaves none.
        if group.num_rows and (matching[index] or is_triples):
            size = sum(group.column(column.leaf).total_uncompressed_size for column in texts)
            if settings.feature_column is not None:
                size = group.column(texts[0].leaf).num_values * ENTRY_BYTES
            row_groups.append(RowGroup(file, index, group.num_rows, size))
    kept = _kept_types(file, footer, settings)
    if settings.id_column is None:
        return CheckedFile(file, tuple(row_groups), None, None, kept, is_triples)
    ids = id_column(footer, found.location, settings.id_column)
    check_column(footer, found.location, ids)
    counts = null_counts(footer, found.location, ids)
    null_id = _null_id(counts, row_groups) if condition is None else None
    return CheckedFile(file, tuple(row_groups), ids.type, null_id, kept, is_triples)


def _contents(footer: Footer, location: Location, settings: CorpusSettings) -> tuple[list[Column], bool]:
    """The columns that make up documents in a file, and whether they are those of triples."""
    if settings.feature_column is not None:
        return feature_columns(footer, location, settings)
    return [text_column(footer, location, name) for name in settings.text_columns], False


def are_triples(checked: Sequence[CheckedFile]) -> bool:
    """Whether rows are triples; InputDataError where those of some files are."""
    first, *others = [one for one in checked if one.file.n_rows] or checked
    for one in others:
        if one.is_triples != first.is_triples:
            rows, lists = (one, first) if one.is_triples else (first, one)
            raise InputDataError(
                f"a row of {rows.file} is one name, and of {lists.file} a list of them: write all files alike"
            )
    return first.is_triples


def _matching(file: SourceFile, footer: Footer, condition: Condition | None, keys: pa.Schema) -> list[bool]:
    """For each row group, whether it may hold a document that the filter leaves."""
    if condition is None:
        return [True] * footer.metadata.num_row_groups
    columns = []
    for name in columns_of(condition):
        if name not in keys.names:
            columns.append(single_column(footer, file.location, name, "--where"))
            check_column(footer, file.location, columns[-1])
    return may_match(condition, columns, footer, file, keys)


def _kept_types(
    file: SourceFile, footer: Footer, settings: CorpusSettings
) -> dict[str, tuple[SourceFile, pa.DataType]]:
    """The types of the columns to keep in one file; those that its folders tell are not looked for in it."""
    types = {}
    for name in settings.keep:
        if name not in dict(file.keys):
            column = single_column(footer, file.location, name, "--keep")
            check_column(footer, file.location, column)
            types[name] = (file, column.type)
    return types


def common_kept(checked: Sequence[CheckedFile], settings: CorpusSettings) -> pa.Schema:
    """Columns that W carries beside the id: those to keep, then the keys of folders.

    Raises InputDataError, naming two files, where their types differ.
    """
    keys = {one.name: one for one in key_fields(one.file.keys for one in checked)}
    keys.pop(settings.id_column or "", None)
    names = [name for name in settings.keep if name not in keys]
    # A file without rows often has no types worth the name: pandas writes null.
    told = [one.kept for one in checked if one.file.n_rows] or [one.kept for one in checked]
    try:
        columns = common_types(told, names)
    except KeyError as error:
        raise InputDataError(
            f"column {error} is in the files of some folders, and a key of others: lay all out alike"
        ) from None
    except TypeMismatch as error:
        name, (file, type_), (other, other_type) = error.args
        raise InputDataError(
            f"column {name!r} has type {type_} in {file}, but {other_type} in {other}. What W carries needs one "
            "type: write the files of one of the two again, or leave the column out of --keep (corpus.keep)."
        ) from None
    return pa.schema(
        [keys[name] if name in keys else columns.field(name) for name in settings.keep]
        + [one for name, one in keys.items() if name not in settings.keep]
    )


def _null_id(counts: Sequence[int | None], row_groups: Iterable[RowGroup]) -> Piece | None:
    """The first row group whose statistics tell of nulls; where there are none, reading the ids will tell."""
    for group in row_groups:
        if counts[group.number]:
            return Piece(group.file, group.number, 0, group.n_rows)
    return None


def common_id_type(checked: list[CheckedFile], column: str | None) -> pa.DataType:
    """The type of all files' ids; InputDataError, naming two files, where there are several."""
    if column is None:
        return pa.int64()
    # A file without rows often has no types worth the name: pandas writes null.
    first, *others = [one for one in checked if one.file.n_rows] or checked
    for other in others:
        if other.id_type != first.id_type:
            raise InputDataError(
                f"column {column!r} has type {first.id_type} in {first.file}, but {other.id_type} in "
                f"{other.file}. Ids need one type: write the files of one of the two again."
            )
    return first.id_type
