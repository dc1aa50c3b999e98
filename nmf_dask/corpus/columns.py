"""What is read of each document: its text, its id, and what W carries beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from nmf_dask.corpus.features import Features

NO_COLUMNS = pa.schema([])
_KEY = re.compile(r"([^=/]+)=([^/]*)")
_NULL = "__HIVE_DEFAULT_PARTITION__"
_WHOLE = re.compile(r"[+-]?\d+")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")  # Python takes weeks (2026-W01-1) for dates, too

Keys = tuple[tuple[str, str | None], ...]
"""Names and values, as they are written, of the partition that a file's folders say it is in."""


@dataclass(frozen=True)
class Columns:
    """The columns of a corpus. Picklable.

    `text` are those that make up a document (as `features` say, where they are counts); `id` is None
    where row numbers are the ids. `kept` are the names and types that W carries beside: columns of
    the files, and those of `keys`, whose values are in the files' paths.
    """

    text: tuple[str, ...]
    id: str | None
    kept: pa.Schema = field(default_factory=lambda: NO_COLUMNS)
    keys: frozenset[str] = frozenset()
    features: Features | None = None

    @property
    def documents(self) -> tuple[str, ...] | Features:
        """What documents are read from: columns of texts, or of counts."""
        return self.text if self.features is None else self.features

    @property
    def id_name(self) -> str:
        """Of the id in W."""
        return self.id or "doc_id"


def keys_of(path: str) -> Keys:
    """Keys and values of a file's folders of the form `key=value`, those right above the file, outermost first.

    However much of the path an input names, they are the same; a folder `job=7` far above the corpus is none of them.
    """
    keys: list[tuple[str, str | None]] = []
    for folder in reversed(path.split("/")[:-1]):
        match = _KEY.fullmatch(folder)
        if match is None:
            break
        name, value = map(unquote, match.groups())
        keys.append((name, None if value == _NULL else value))
    return tuple(reversed(keys))


def key_fields(files: Iterable[Keys]) -> list[pa.Field]:
    """The keys of all files, in the order in which they come, each with the type that fits all of its values.

    Whole numbers are int32 (int64 where they do not fit), days such as 2026-11-01 date32, all else strings.
    """
    values: dict[str, set[str]] = {}
    for keys in files:
        for name, value in keys:
            values.setdefault(name, set()).update([] if value is None else [value])
    return [pa.field(name, _type_of(some)) for name, some in values.items()]


def _type_of(values: set[str]) -> pa.DataType:
    for type_ in (pa.int32(), pa.int64(), pa.date32()):
        with suppress(ValueError, OverflowError, pa.ArrowInvalid):
            for value in values:
                pa.scalar(key_value(value, type_), type_)
            return type_ if values else pa.string()
    return pa.string()


def key_value(value: str | None, type_: pa.DataType) -> Any:
    """The value of a key as its column's type has it; ValueError where it is none."""
    if value is None or pa.types.is_string(type_):
        return value
    if pa.types.is_date(type_):
        if not _DAY.fullmatch(value):
            raise ValueError(value)
        return date.fromisoformat(value)
    if not _WHOLE.fullmatch(value):
        raise ValueError(value)
    return int(value)


def without_views(type_: pa.DataType) -> pa.DataType:
    """The type without views, within lists and maps too: Arrow can neither filter nor take rows that hold some."""

    def plain(one: pa.Field) -> pa.Field:
        return one.with_type(without_views(one.type))

    if pa.types.is_string_view(type_):
        return pa.string()
    if pa.types.is_binary_view(type_):
        return pa.binary()
    if pa.types.is_map(type_):
        return pa.map_(plain(type_.key_field), plain(type_.item_field), type_.keys_sorted)
    if pa.types.is_struct(type_):
        return pa.struct([plain(one) for one in type_])
    if pa.types.is_list(type_):
        return pa.list_(plain(type_.value_field))
    if pa.types.is_large_list(type_):
        return pa.large_list(plain(type_.value_field))
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(plain(type_.value_field), type_.list_size)
    return type_


def find_field(schema: Iterable[pa.Field], name: str, leaves: Callable[[pa.DataType], int]) -> Any:
    """The (type, first leaf, path) that a name means, None where it means nothing.

    A column of that very name comes first; otherwise dots lead into structs. `leaves` tells how many stored columns a
    type has.
    """
    fields = list(schema)
    starts = list(accumulate((leaves(one.type) for one in fields), initial=0))
    for one, start in zip(fields, starts, strict=False):
        if one.name == name:
            return one.type, start, (name,)
    for one, start in zip(fields, starts, strict=False):
        if pa.types.is_struct(one.type) and name.startswith(f"{one.name}."):
            found = find_field(one.type, name[len(one.name) + 1 :], leaves)
            if found is not None:
                return found[0], start + found[1], (one.name, *found[2])
    return None


def nested_names(schema: Iterable[pa.Field], above: str = "") -> list[str]:
    """All columns by name, those in structs by their paths."""
    names = []
    for one in schema:
        names.append(above + one.name)
        if pa.types.is_struct(one.type):
            names += nested_names(one.type, f"{above}{one.name}.")
    return names


def common_types(found: Sequence[Mapping[str, tuple[Any, pa.DataType]]], names: Sequence[str]) -> pa.Schema:
    """Columns that files have, each of one type: raises TypeMismatch. Null is the type of a column without values."""
    fields = []
    for name in names:
        first: tuple[Any, pa.DataType] | None = None
        for one in found:
            file, type_ = one[name]
            if first is None or pa.types.is_null(first[1]):
                first = (file, type_)
            elif type_ != first[1] and not pa.types.is_null(type_):
                raise TypeMismatch(name, first, (file, type_))
        fields.append(pa.field(name, first[1] if first is not None else pa.null()))
    return pa.schema(fields)


def in_known_zone(column: Any) -> Any:
    """An array or scalar: times of a zone that this machine does not know in UTC, in which they are stored.

    Any other as it is.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not pa.types.is_timestamp(kind) or kind.tz is None:
        return column
    try:
        pa.scalar(0, kind).cast(pa.date32())
    except pa.ArrowInvalid:
        return column.cast(pa.timestamp(kind.unit, "UTC"))
    return column


def as_labels(column: Any) -> Any:
    """An array of labels, chunked or not, as strings: those of NaN, which stands for a missing number, are null."""
    column = in_known_zone(column)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    return column.cast(pa.string())


def python_value(scalar: pa.Scalar) -> Any:
    """As Python has it; the scalar where it has none: nanoseconds without pandas, a zone that it does not know."""
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, KeyError):  # a zone that is not found is a KeyError
        return scalar


class TypeMismatch(Exception):  # noqa: N818  # never leaves this package
    """A column is not of one type: its name, and twice a file with the type there."""
