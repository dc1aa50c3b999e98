"""What a setting may be, in words, read off its type: for errors, for help texts and for the example job."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo


def describe(field: FieldInfo) -> str:
    """Such as: a whole number of at least 1, or "none"."""
    return _words(field.annotation, tuple(field.metadata))


def choices(field: FieldInfo) -> list[str]:
    """The strings that a setting may be, where they can be listed."""
    return [choice for choice in _literals(field.annotation) if isinstance(choice, str)]


def _literals(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in _literals(part)]


def _words(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [item for marked in parts[1:] for item in getattr(marked, "metadata", [marked])]
        return _words(parts[0], (*metadata, *inner))
    if origin in (Union, UnionType):
        return " or ".join(_words(part, metadata) for part in parts)
    if origin is Literal:
        return " or ".join(f'"{choice}"' for choice in parts)
    if origin is tuple and parts[-1] is Ellipsis:
        return "a list of texts" if parts[0] is str else f"a list, each {_words(parts[0])}"
    if origin is tuple:
        return f"a list of {len(parts)}, each {_words(parts[0])}"
    names = {
        NoneType: '"none"',
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
    }
    return names[annotation] + (_bounds(metadata) if annotation in (int, float) else "")


def _bounds(metadata: tuple[Any, ...]) -> str:
    low = next((item.ge for item in metadata if hasattr(item, "ge")), None)
    low = next((item.gt + 1 for item in metadata if hasattr(item, "gt")), low)
    high = next((item.le for item in metadata if hasattr(item, "le")), None)
    if low is None:
        return ""
    return f" of at least {low:g}" if high is None else f" from {low} to {high}"
