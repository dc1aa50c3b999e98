"""What changed between two states of an input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

_NAMES_SHOWN = 5


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What changed between two `Corpus.describe()`, in words; empty where nothing did."""
    before, after = _by_name(old["files"]), _by_name(new["files"])
    changed = [name for name in before if name in after and _content(before[name]) != _content(after[name])]
    parts = [
        _counted("added", [name for name in after if name not in before]),
        _counted("removed", [name for name in before if name not in after]),
        _counted("changed", [f"{name}: {_change(before[name], after[name])}" for name in changed]),
    ]
    if not any(parts) and list(before) != list(after):
        parts.append("the same files in another order")
    return "; ".join(filter(None, parts))


def _by_name(files: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Files by name; a name that several inputs share gets a number, in order."""
    seen: Counter[str] = Counter()
    named = {}
    for file in files:
        seen[file["name"]] += 1
        count = seen[file["name"]]
        named[file["name"] if count == 1 else f"{file['name']} ({count})"] = file
    return named


def _content(file: Mapping[str, Any]) -> tuple[Any, Any]:
    return file["size"], file["digest"]


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    if before["size"] != after["size"]:
        return f"{before['size']:,} bytes were, {after['size']:,} bytes are"
    return f"other content in as many bytes ({after['size']:,})"


def _counted(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    files = "file" if len(names) == 1 else "files"
    return f"{len(names)} {files} {what} ({', '.join(names[:_NAMES_SHOWN])}{more})"
