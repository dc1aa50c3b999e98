"""Values of settings: how a size, a time, a range or a list is written, and what is refused of it."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt

_LONGEST = 10**9  # seconds, 31 years; the system's own clocks go nine times as far
_SHORTEST_DEADLINE = 15  # seconds; the end of a job is given ten of them (pipeline/deadline.py)
_BYTES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?\s*", re.IGNORECASE)
_RANGE = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*(?::\s*(\d+)\s*)?")
_MOST_NUMBERS = 10_000  # of a range, which one mistyped digit makes larger than memory
_SECONDS = re.compile(r"\s*(\d+)\s*(s|sec|seconds?|m|min|minutes?|h|hours?)?\s*", re.IGNORECASE)
# S3 secrets hold slashes, which people paste as they are; no other scheme has a colon that far from a port.
_S3_SECRET = re.compile(r"\b(s3[an]?://)[^\s@:\"']*:[^\s@\"']*@", re.IGNORECASE)
_PASSWORD = re.compile(r"\b([a-z][a-z0-9+.-]*://[^/\s@:\"']*):[^/\s@\"']*@", re.IGNORECASE)
_SECRET_PARAMETER = re.compile(
    r"([?&;][^=&;#\s]*(?:key|secret|token|password|passwd|credential|sig|signature)[^=&;#\s]*=)[^&;#\s\"']+",
    re.IGNORECASE,
)


def parse_bytes(text: str) -> int:
    """Bytes of a size such as "4GiB" (of 1024³), "500MB" (of 1000²) or "1048576"; ValueError otherwise."""
    match = _BYTES.fullmatch(text)
    if match is None or (match[2] is None and "." in match[1]):
        raise ValueError(f'{text!r} is no size; write it like "4GiB" or "500MB"')
    number, prefix, binary = match.groups()
    power = " kmgt".index(prefix.lower()) if prefix else 0
    return int(float(number) * (1024 if binary else 1000) ** power) if power else int(number)


def machine_bytes() -> int:
    """Memory of this machine, or of the container that this process is in."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError), open(file) as limit:
            return min(machine, int(limit.read()))
    return machine


def parse_seconds(text: str) -> int:
    """Seconds of a time such as "90s", "5min", "2h" or "300"; ValueError otherwise."""
    match = _SECONDS.fullmatch(text)
    if match is None:
        raise ValueError(f'{text!r} is no time; write seconds, or it like "90s", "5min" or "2h"')
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600}[(match[2] or "s")[0].lower()]


def redact(text: str) -> str:
    """`text` without the credentials that the URIs in it carry (user:password@, ?secret_key=…)."""
    without_user_info = _PASSWORD.sub(r"\1:***@", _S3_SECRET.sub(r"\1***@", text))
    return _SECRET_PARAMETER.sub(r"\1***", without_user_info)


def _bytes_of_size(value: Any) -> Any:
    return parse_bytes(value) if isinstance(value, str) else value


def _seconds_of_time(value: Any) -> Any:
    return parse_seconds(value) if isinstance(value, str) else value


def _countable(value: int) -> int:
    if value > _LONGEST:
        raise ValueError(f"give at most {_LONGEST:,} s, which are 31 years")
    return value


def _size(value: str) -> str:
    if parse_bytes(value) == 0:
        raise ValueError("a worker needs some memory")
    return value


def _text_of_size(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _pattern(value: str) -> str:
    try:
        groups = re.compile(value).groups
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"no regular expression: {error}") from None
    if groups > 1:
        raise ValueError("more than one capturing group; write (?:…) for the groups that are not the token")
    return value


def _document_frequency(value: int | float) -> int | float:
    if isinstance(value, int) and value < 1:
        raise ValueError("a count is at least 1; write a share with a decimal point, such as 0.0")
    if isinstance(value, float) and not 0.0 <= value <= 1.0:
        raise ValueError("a share is from 0.0 to 1.0; write a count without a decimal point")
    return value


def _deadline(value: int) -> int:
    if value < _SHORTEST_DEADLINE:
        raise ValueError(f"give at least {_SHORTEST_DEADLINE} s: ten are kept for the end of the job")
    return value


def _ordered(value: tuple[int, int]) -> tuple[int, int]:
    if value[0] > value[1]:
        raise ValueError("the shortest n-gram comes first")
    return value


def _numbers(value: Any) -> Any:
    """A number, a range "from:to:step" (or "from:to") and a list of both as one tuple, ascending, each once."""
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    numbers: list[Any] = []
    for one in listed:
        match = _RANGE.fullmatch(one) if isinstance(one, str) else None
        if match is None:
            numbers.append(one)
            continue
        first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
        if step == 0 or last < first:
            raise ValueError('a range is "from:to:step", such as "5:50:5"')
        if (last - first) // step >= _MOST_NUMBERS:
            raise ValueError(
                f'a range has {_MOST_NUMBERS:,} numbers at most: give it a step, such as "5:50:5"'
            )
        numbers += range(first, last + 1, step)
    if all(type(one) is int for one in numbers):
        return tuple(sorted(set(numbers)))
    return tuple(numbers)


def _distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({name for name in value if value.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} twice; name each column once")
    return value


def _history(value: str) -> str:
    kind, equals, share = value.partition("=")
    with suppress(ValueError):
        if not equals and kind in ("keep", "forget", "reread"):
            return value
        if kind == "discount" and 0 < float(share) < 1:
            return value
    raise ValueError('write "keep", "forget", "reread", or "discount=0.9" with a share between 0 and 1')


Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], AfterValidator(_distinct)]
SomeNames = Annotated[Names, Field(min_length=1)]
Numbers = Annotated[tuple[Annotated[int, Field(ge=2)], ...], BeforeValidator(_numbers)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Penalty = Annotated[float, Field(ge=0.0)]
# An int is a count and a float is a share, as in scikit-learn: 1 and 1.0 are opposites.
DocumentFrequency = Annotated[int | float, AfterValidator(_document_frequency)]
MemorySize = Annotated[Name, BeforeValidator(_text_of_size), AfterValidator(_size)]
ByteCount = Annotated[PositiveInt, BeforeValidator(_bytes_of_size)]
Seconds = Annotated[PositiveInt, BeforeValidator(_seconds_of_time), AfterValidator(_countable)]
Deadline = Annotated[Seconds, AfterValidator(_deadline)]
_NgramLength = Annotated[PositiveInt, Field(le=10_000)]  # plans add up what each length takes
NgramRange = Annotated[tuple[_NgramLength, _NgramLength], AfterValidator(_ordered)]
History = Annotated[Name, AfterValidator(_history)]
TokenPattern = Annotated[Name, AfterValidator(_pattern)]
