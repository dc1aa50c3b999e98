"""Filters such as `year >= 2020 and lang in ('en', 'de')`: read, turned into Arrow's, and held against statistics.

    condition    any ("or" any)* of all ("and" all)* of ["not"] one
    one          ( condition ) | COLUMN | COLUMN is [not] null | COLUMN [not] in ( VALUE, … ) | COLUMN op VALUE
    op           == = != <> < <= > >=
    COLUMN       a name; dots lead into structs; one with other letters in `backquotes`
    VALUE        a number, true, false, or a text in quotes; for columns of dates and times, as 2026-11-01T08:00:00

As in SQL, what is compared with a null is neither true nor false, and a document stays where the condition is true.
Nothing is ever evaluated as Python.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from nmf_dask.corpus.columns import python_value
from nmf_dask.errors import ConfigurationError

Value = bool | int | float | str
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?!\w))
    |(?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    |(?P<quoted>`[^`]+`)
    |(?P<name>[^\W\d]\w*(?:\.\w+)*)
    |(?P<mark>==|!=|<>|<=|>=|=|<|>|\(|\)|\[|\]|,))""",
    re.VERBOSE,
)
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_OTHER_NAMES = {"=": "==", "<>": "!="}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_WORDS = {"and", "or", "not", "in", "is", "null", "true", "false"}
_DEEPEST = 100


class Facts(NamedTuple):
    """What is known of a column in some rows: its smallest and largest value (None: not known), and its nulls.

    `nulls` is None where it is not known whether there are any; with `only_nulls` there is nothing else.
    """

    low: Any = None
    high: Any = None
    nulls: bool | None = None
    only_nulls: bool = False


class Unfit(Exception):  # noqa: N818  # an answer to whoever knows the file
    """A filter that a column's type does not go with; says why."""


Types = Callable[[str], pa.DataType]
Known = Callable[[str], Facts]
# Which of true, false and null (None) a condition may be.
Outcomes = frozenset[bool | None]
ANY: Outcomes = frozenset({True, False, None})


@dataclass(frozen=True)
class Compared:
    """A column and a value."""

    column: str
    symbol: str
    value: Value

    def expression(self, types: Types) -> pc.Expression:
        """As Arrow has it."""
        type_ = types(self.column)
        column = pc.field(self.column)
        if pa.types.is_null(type_):
            return pc.scalar(pa.scalar(None, pa.bool_()))
        value: Any = _literal(self, type_)
        symbol = self.symbol
        if pa.types.is_integer(type_):
            symbol, value = _whole(symbol, value, type_)
            if value is None:  # decided for all that is not null
                return column == column if symbol == "true" else column != column
            value = pa.scalar(value, type_)
        result: pc.Expression = _OPERATORS[symbol](column, pc.scalar(value))
        return result

    def outcomes(self, types: Types, known: Known) -> Outcomes:
        """What it may be in rows of which so much is known."""
        facts, type_ = known(self.column), types(self.column)
        if facts.only_nulls or pa.types.is_null(type_):
            return frozenset({None})
        found: set[bool | None] = set() if facts.nulls is False else {None}
        low, high, value = facts.low, facts.high, _literal(self, type_)
        value = python_value(value) if isinstance(value, pa.Scalar) else value
        try:
            found |= _outcomes_within(self.symbol, low, high, value)
        except TypeError:
            found |= {True, False}
        if pa.types.is_floating(type_):  # no statistics tell of a NaN, which is unequal to all
            found.add(self.symbol == "!=")
        return frozenset(found)


def _outcomes_within(symbol: str, low: Any, high: Any, value: Any) -> set[bool | None]:
    if low is None or high is None or not low <= high:
        return {True, False}
    if symbol in ("==", "!="):
        may_equal, may_differ = low <= value <= high, not low == value == high
        equal = [True] * may_equal + [False] * may_differ
        return {one is (symbol == "==") for one in equal}
    compare = _OPERATORS[symbol]
    return {compare(low, value), compare(high, value)}


@dataclass(frozen=True)
class Missing:
    """A column that is null."""

    column: str

    def expression(self, types: Types) -> pc.Expression:
        """As Arrow has it."""
        types(self.column)
        return pc.field(self.column).is_null()

    def outcomes(self, types: Types, known: Known) -> Outcomes:
        """What it may be in rows of which so much is known."""
        facts = known(self.column)
        if facts.only_nulls or pa.types.is_null(types(self.column)):
            return frozenset({True})
        return frozenset({False}) if facts.nulls is False else frozenset({True, False})


@dataclass(frozen=True)
class Negated:
    """What is not."""

    part: Condition

    def expression(self, types: Types) -> pc.Expression:
        """As Arrow has it."""
        return ~self.part.expression(types)

    def outcomes(self, types: Types, known: Known) -> Outcomes:
        """What it may be in rows of which so much is known."""
        return frozenset(None if one is None else not one for one in self.part.outcomes(types, known))


@dataclass(frozen=True)
class Together:
    """All of some conditions, or any of them."""

    parts: tuple[Condition, ...]
    any_of: bool

    def expression(self, types: Types) -> pc.Expression:
        """As Arrow has it: by halves, so that a long list is not a deep tree."""
        join = operator.or_ if self.any_of else operator.and_
        level = [part.expression(types) for part in self.parts]
        while len(level) > 1:
            level = [reduce(join, level[low : low + 2]) for low in range(0, len(level), 2)]
        return level[0]

    def outcomes(self, types: Types, known: Known) -> Outcomes:
        """What it may be in rows of which so much is known: as if the parts had nothing to do with each other."""
        decisive = self.any_of
        found: Outcomes = frozenset({not decisive})
        for part in self.parts:
            others = part.outcomes(types, known)
            found = frozenset(_joined(one, other, decisive) for one in found for other in others)
        return found


def _joined(one: bool | None, other: bool | None, decisive: bool) -> bool | None:
    if decisive in (one, other):
        return decisive
    return None if None in (one, other) else not decisive


Condition = Compared | Missing | Negated | Together


def columns_of(condition: Condition) -> list[str]:
    """The columns that a condition names, each once."""
    if isinstance(condition, Negated):
        return columns_of(condition.part)
    if isinstance(condition, Together):
        return list(dict.fromkeys(name for part in condition.parts for name in columns_of(part)))
    return [condition.column]


def may_be_true(condition: Condition, types: Types, known: Known) -> bool:
    """False where, by what is known of some rows, the condition is true for none."""
    return True in condition.outcomes(types, known)


def _literal(compared: Compared, type_: pa.DataType) -> Any:
    """The value that a column of this type is compared with: a number for one of integers, else a scalar."""
    value = compared.value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if pa.types.is_boolean(type_) and isinstance(value, bool):
        return pa.scalar(value)
    if pa.types.is_integer(type_) and is_number:
        return value
    if (pa.types.is_float32(type_) or pa.types.is_float64(type_)) and is_number:
        with suppress(OverflowError):
            return pa.scalar(float(value), pa.float64())
    if pa.types.is_decimal(type_) and is_number:
        with suppress(pa.ArrowInvalid):
            return pa.scalar(Decimal(str(value)))
    if (pa.types.is_string(type_) or pa.types.is_large_string(type_)) and isinstance(value, str):
        return pa.scalar(value, type_)
    if (pa.types.is_date(type_) or pa.types.is_timestamp(type_)) and isinstance(value, str):
        with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return _moment(value, type_)
    raise Unfit(
        f"column {compared.column!r} has type {type_}, which {_shown(value)} cannot be compared with"
        + (" (a text in quotes is expected)" if is_number and not pa.types.is_nested(type_) else "")
    )


def _moment(text: str, type_: pa.DataType) -> pa.Scalar:
    """A date or time; one without a zone is of UTC, as Arrow stores it."""
    if pa.types.is_timestamp(type_) and type_.tz is not None:
        with suppress(pa.ArrowInvalid):
            return pa.scalar(text).cast(type_)
        return pa.scalar(text).cast(pa.timestamp(type_.unit)).cast(type_)
    return pa.scalar(text).cast(type_)


def _whole(symbol: str, value: int | float, type_: pa.DataType) -> tuple[str, int | None]:
    """The comparison of integers that is the same: with a whole number of the type; or "true" or "false" and None.

    Arrow would compare as floats, which do not hold all integers.
    """
    bits = type_.bit_width
    low, high = (
        (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if pa.types.is_signed_integer(type_) else (0, 2**bits - 1)
    )
    if not low <= value <= high:
        above = value > high
        return (
            "true" if symbol == "!=" or symbol in (("<", "<=") if above else (">", ">=")) else "false"
        ), None
    whole = math.floor(value)
    if whole == value:
        return symbol, whole
    if symbol in ("==", "!="):
        return ("true" if symbol == "!=" else "false"), None
    return ("<=" if symbol in ("<", "<=") else ">"), whole


def parse(text: str) -> Condition:
    """The condition that a text is; ConfigurationError, with the place, where it is none."""
    return _Parser(text).parsed()


class _Token(NamedTuple):
    kind: str
    text: str
    place: int


class _Parser:
    """By recursive descent, one method a rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._cut())
        self._next = 0
        self._depth = 0

    def parsed(self) -> Condition:
        condition = self._any()
        if self._peek().kind != "end":
            raise self._unexpected("and, or, or the end")
        return condition

    def _cut(self) -> Sequence[_Token]:
        tokens, place, end = [], 0, len(self._text.rstrip())
        while place < end:
            match = _TOKEN.match(self._text, place)
            if match is None:
                rest = self._text[place:].lstrip()
                raise self._error(end - len(rest.rstrip()), f"{rest[:20].strip()!r} is no part of a filter")
            kind = str(match.lastgroup)
            tokens.append(_Token(kind, match[kind], match.start(kind)))
            place = match.end()
        return [*tokens, _Token("end", "", end)]

    def _error(self, place: int, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"corpus.where: {what}, at character {place + 1} of {self._text!r}. Write it like "
            "\"year >= 2020 and lang in ('en', 'de')\" (and, or, not, in, is null, parentheses)"
        )

    def _unexpected(self, expected: str) -> ConfigurationError:
        token = self._peek()
        found = f"{token.text!r} stands" if token.kind != "end" else "it ends"
        return self._error(token.place, f"{found} where {expected} is expected")

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *texts: str) -> str | None:
        """The next token, where it is one of these words or marks."""
        token = self._peek()
        if token.kind in ("name", "mark") and token.text.lower() in texts:
            self._next += 1
            return token.text.lower()
        return None

    def _any(self) -> Condition:
        return self._series(self._all, "or")

    def _all(self) -> Condition:
        return self._series(self._one, "and")

    def _series(self, rule: Callable[[], Condition], word: str) -> Condition:
        parts = [rule()]
        while self._take(word):
            parts.append(rule())
        return parts[0] if len(parts) == 1 else Together(tuple(parts), word == "or")

    def _one(self) -> Condition:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._error(self._peek().place, "parentheses or nots are too deep in each other")
        try:
            if self._take("not"):
                return Negated(self._one())
            if self._take("("):
                condition = self._any()
                if not self._take(")"):
                    raise self._unexpected("and, or, or )")
                return condition
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Condition:
        value = self._value()
        if value is not None:
            symbol, column = self._symbol(), self._column()
            return Compared(column, _MIRRORED.get(symbol, symbol), value)
        column = self._column()
        if self._take("is"):
            negated = self._take("not")
            if not self._take("null"):
                raise self._unexpected("null")
            return Negated(Missing(column)) if negated else Missing(column)
        negated = self._take("not")
        if self._take("in"):
            one_of = self._one_of(column)
            return Negated(one_of) if negated else one_of
        if negated:
            raise self._unexpected("in")
        if self._peek().kind == "mark" and self._peek().text not in "()[],":
            symbol = self._symbol()
            value = self._value()
            if value is None:
                raise self._unexpected("a number, true, false, or a text in quotes")
            return Compared(column, symbol, value)
        return Compared(column, "==", True)

    def _one_of(self, column: str) -> Condition:
        close = {"(": ")", "[": "]"}.get(self._take("(", "[") or "")
        if close is None:
            raise self._unexpected("(")
        values = []
        while True:
            value = self._value()
            if value is None:
                raise self._unexpected("a number, true, false, or a text in quotes")
            values.append(value)
            if self._take(close):
                return Together(tuple(Compared(column, "==", value) for value in values), any_of=True)
            if not self._take(","):
                raise self._unexpected(f"a comma or {close}")

    def _symbol(self) -> str:
        symbol = self._take(*_OPERATORS, *_OTHER_NAMES)
        if symbol is None:
            raise self._unexpected("a comparison such as ==")
        return _OTHER_NAMES.get(symbol, symbol)

    def _column(self) -> str:
        token = self._peek()
        if token.kind not in ("name", "quoted") or (token.kind == "name" and token.text.lower() in _WORDS):
            raise self._unexpected("the name of a column")
        self._next += 1
        return token.text.strip("`")

    def _value(self) -> Value | None:
        token = self._peek()
        word = self._take("true", "false")
        if word:
            return word == "true"
        if token.kind not in ("number", "text"):
            return None
        self._next += 1
        if token.kind == "text":
            quote = token.text[0]
            return token.text[1:-1].replace(quote * 2, quote)
        whole = re.fullmatch(r"[+-]?\d+", token.text)
        number = int(token.text) if whole and len(token.text) < 40 else float(token.text)
        if isinstance(number, float) and math.isinf(number):
            raise self._error(token.place, f"{token.text} is too large")
        return number


def _shown(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
