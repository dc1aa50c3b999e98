"""Counts in place of texts: what columns of Parquet hold them, and how rows become maps of names to numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nmf_dask.config import CorpusSettings
from nmf_dask.corpus.footers import Column, Footer, find_column, is_list, plain_type
from nmf_dask.corpus.locations import Location, explain
from nmf_dask.corpus.locations import parse as location_of
from nmf_dask.errors import InputDataError
from nmf_dask.kernels.matrices import LARGEST

MAPS = pa.map_(pa.string(), pa.float64())
"""Of rows as they are counted: the names that a row holds, each with how much of it."""
ENTRY_BYTES = 24
"""Of a name and a number in memory, about: what plans take for the text of an entry."""
_STRINGS = (pa.string(), pa.large_string(), pa.string_view())


@dataclass(frozen=True)
class Features:
    """The columns of counts. Picklable. `names` is the file of names for numbers, `digest` that of its content."""

    column: str
    value: str | None = None
    names: Location | None = None
    digest: str | None = None

    @classmethod
    def of(cls, settings: CorpusSettings) -> Features | None:
        """Those that settings name, None where they name texts; raises what reading the file of names raises."""
        if settings.feature_column is None:
            return None
        if settings.feature_names is None:
            return cls(settings.feature_column, settings.value_column)
        location = location_of(settings.feature_names)
        digest = hashlib.sha256(_content(location)).hexdigest()
        found = cls(settings.feature_column, settings.value_column, location, digest)
        found.known()
        return found

    @property
    def columns(self) -> tuple[str, ...]:
        """What is read."""
        return (self.column,) if self.value is None else (self.column, self.value)

    def known(self) -> pa.Array | None:
        """The names for numbers, where there are some; InputDataError for a file that is not what it was."""
        return None if self.names is None else _names(self.names, self.digest)

    def maps(self, arrays: list[pa.Array]) -> pa.MapArray:
        """Rows as MAPS, of the columns' values; raises BadRow."""
        return as_maps(*_apart(*arrays), self.known(), self)

    def maps_of_runs(self, arrays: list[pa.Array], starts: NDArray[np.int64]) -> pa.MapArray:
        """A row of each run of (name, value) pairs, which begins at one of the `starts`; raises BadRow."""
        offsets = np.append(starts, len(arrays[0]))
        values = arrays[1] if len(arrays) > 1 else None
        return as_maps(offsets, arrays[0], values, None, self.known(), self)


class BadRow(Exception):  # noqa: N818  # never leaves this package
    """What is wrong with a row, by its number in what was read."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(what)
        self.row, self.what = row, what


def feature_columns(
    footer: Footer, location: Location, settings: CorpusSettings
) -> tuple[list[Column], bool]:
    """The columns of counts in a file, and whether a row of it is one (row, column, value) and not a list of them.

    Raises InputDataError where they are missing, or not of such types.
    """
    assert settings.feature_column is not None
    column = find_column(footer, location, settings.feature_column, "--feature-column")
    beside = None
    if settings.value_column is not None:
        beside = find_column(footer, location, settings.value_column, "--value-column")
    found = _kind(column.type, None if beside is None else beside.type)
    if found is None and footer.metadata.num_rows == 0:  # pandas writes null for the types of nothing
        found = pa.int64(), False
    if found is None:
        second = "" if beside is None else f", and column {beside.name!r} {beside.type}"
        raise InputDataError(
            f"{location}: column {column.name!r} has type {column.type}{second}. Counts are lists of names (or whole "
            "numbers) beside lists of numbers, maps of names to numbers, lists of structs of both, or rows of one name "
            "and one number each: choose the columns by --feature-column and --value-column (corpus.feature_column, "
            "corpus.value_column)."
        )
    names, is_triple = found
    if settings.feature_names is not None and names in _STRINGS:
        raise InputDataError(
            f"{location}: column {column.name!r} has names already, and --feature-names (corpus.feature_names) is for "
            "whole numbers. Leave it out."
        )
    if is_triple and settings.id_column is None:
        raise InputDataError(
            f"{location}: column {column.name!r} has one value a row ({column.type}), so that several make up a row: "
            "name the column that tells which by --id-column (corpus.id_column)."
        )
    return [column] if beside is None else [column, beside], is_triple


def _kind(type_: pa.DataType, beside: pa.DataType | None) -> tuple[pa.DataType, bool] | None:
    """The type of the names, and whether they stand alone; None for types that hold no counts."""
    values: Any = pa.float64()
    if pa.types.is_map(type_):
        names, values, alone = type_.key_type, type_.item_type, False
    elif is_list(type_) and pa.types.is_struct(type_.value_type) and type_.value_type.num_fields == 2:
        names, values, alone = type_.value_type.field(0).type, type_.value_type.field(1).type, False
    elif is_list(type_):
        names, alone = type_.value_type, False
        if beside is not None:
            values, beside = (beside.value_type if is_list(beside) else pa.string()), None
    else:
        names, alone = type_, True
        values, beside = beside or values, None
    names = plain_type(names)
    is_name = names in _STRINGS or pa.types.is_integer(names) or (not alone and pa.types.is_null(names))
    is_number = (
        pa.types.is_null(values)
        or pa.types.is_integer(values)
        or pa.types.is_floating(values)
        or pa.types.is_decimal(values)
    )
    return (names, alone) if is_name and is_number and beside is None else None


def _apart(rows: pa.Array, beside: pa.Array | None = None) -> tuple[Any, pa.Array, pa.Array | None, Any]:
    """Lists or maps as offsets (n + 1,), all their names, all their numbers (None: none), and which rows are null."""
    if pa.types.is_map(rows.type):
        rows = rows.cast(pa.list_(pa.struct([("key", rows.type.key_type), ("value", rows.type.item_type)])))
    lengths, names = pc.fill_null(pc.list_value_length(rows), 0).to_numpy(), pc.list_flatten(rows)
    values = None
    if pa.types.is_struct(names.type):
        names, values = names.flatten()
    if beside is not None:
        others = pc.fill_null(pc.list_value_length(beside), 0).to_numpy()
        if len(wrong := np.flatnonzero(lengths != others)):
            row = int(wrong[0])
            raise BadRow(row, f"has {lengths[row]:,} names, but {others[row]:,} values")
        values = pc.list_flatten(beside)
    nulls = rows.is_null().to_numpy(zero_copy_only=False)
    return np.append(0, np.cumsum(lengths, dtype=np.int64)), names, values, nulls


def as_maps(
    offsets: NDArray[np.int64],
    names: pa.Array,
    values: pa.Array | None,
    nulls: NDArray[np.bool_] | None,
    known: pa.Array | None,
    features: Features,
) -> pa.MapArray:
    """Rows as MAPS: row r holds the entries `offsets[r]` to `offsets[r + 1]`. Raises BadRow for an entry that is none.

    A number is a name itself, or that of one of `known`; without values, each entry counts once.
    """

    def check(bad: Any, what: Callable[[int], str]) -> None:
        if len(places := np.flatnonzero(bad)):
            place = int(places[0])
            raise BadRow(int(np.searchsorted(offsets, place, side="right")) - 1, what(place))

    if names.null_count:
        nameless = names.is_null().to_numpy(zero_copy_only=False)
        check(nameless, lambda _: f"has an entry without a name ({features.column})")
    if known is not None:
        index = names.cast(pa.int64()).to_numpy()
        check(
            (index < 0) | (index >= len(known)),
            lambda at: f"has number {index[at]:,}, and {features.names} names {len(known):,}, from 0 on",
        )
        names = known.take(pa.array(index))
    if values is None:
        numbers = np.ones(len(names))
    else:
        numbers = pc.fill_null(values.cast(pa.float64(), safe=False), np.nan).to_numpy()
        check(
            ~((numbers >= 0) & (numbers <= LARGEST)),
            lambda at: (
                f"has the value {values[at]} of {str(names[at])!r}, and values are numbers from 0 to {LARGEST:g}"
            ),
        )
    names = names.cast(pa.string())
    try:
        names.validate(full=True)
    except pa.ArrowInvalid:
        check([_is_no_text(name) for name in names], lambda _: "has a name that is not valid UTF-8")
    mask = np.append(nulls, False) if nulls is not None and nulls.any() else None
    return pa.MapArray.from_arrays(pa.array(offsets.astype(np.int32), mask=mask), names, pa.array(numbers))


def _is_no_text(name: Any) -> bool:
    try:
        name.as_py()
    except UnicodeDecodeError:
        return True
    return False


def _content(location: Location) -> bytes:
    try:
        with location.handler.open_input_stream(location.path, compression=None) as stream:
            content: bytes = stream.read()
            return content
    except OSError as error:
        raise explain(error, location, "read") from None


@lru_cache(maxsize=4)
def _names(location: Location, digest: str | None) -> pa.Array:
    """The names in a file; InputDataError where they cannot be read, or are not what they were."""
    content = _content(location)
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputDataError(
            f"{location} changed since the job began. Run the job again once nothing writes to it."
        )
    names = _parsed(location, content)
    if names.null_count or pc.any(pc.equal(names, "")).as_py():
        row = pc.index(pc.fill_null(names, ""), "").as_py()
        raise InputDataError(
            f"{location}: name {row:,} (counted from 0) is missing. Write one for each column."
        )
    counted = pc.value_counts(names)
    if len(counted) < len(names):
        twice = counted.filter(pc.greater(counted.field(1), 1)).field(0)[0].as_py()
        raise InputDataError(
            f"{location} has the name {twice!r} more than once, and columns are known by their names. Make them differ."
        )
    return names


def _parsed(location: Location, content: bytes) -> pa.Array:
    if not content.startswith(b"PAR1"):
        try:
            return pa.array(content.decode("utf-8-sig").splitlines(), pa.string())
        except UnicodeDecodeError:
            raise InputDataError(f"{location} is neither UTF-8 text, one name a line, nor Parquet.") from None
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise InputDataError(
            f"{location} cannot be read as Parquet ({str(error).splitlines()[0]})."
        ) from None
    strings = [name for name in table.schema.names if plain_type(table.schema.field(name).type) in _STRINGS]
    if len(strings) != 1:
        raise InputDataError(
            f"{location} has {len(strings)} columns of strings. Write a file of one: the names, in the order of the "
            "numbers."
        )
    return pa.concat_arrays([pa.array([], pa.string()), *table[strings[0]].cast(pa.string()).chunks])
