"""scikit-learn's own tests with our classes in the place of theirs."""

from __future__ import annotations

import importlib.util
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest


def with_ours(
    module: str, replaced: dict[str, type], dropped: Iterable[type]
) -> dict[str, Callable[..., None]]:
    """The tests of a module of scikit-learn's, by name, that were imported with `replaced` classes.

    Cases that are parametrized with one of the `dropped` classes are left out: they would test scikit-learn.
    """
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text("utf-8")
    theirs = types.ModuleType(f"ours_in_{module.rpartition('.')[2]}")
    theirs.__file__ = spec.origin
    # What a class is parametrized with is decided while the module runs: ours have to be there by then.
    for name in replaced:
        assert f"{name}" in source
    header = [f"{name} = __replaced__[{name!r}]" for name in replaced]
    lines = source.split("\n")
    end = next(i for i, line in enumerate(lines) if line.startswith(("def ", "@pytest")))
    theirs.__dict__["__replaced__"] = replaced
    code = "\n".join([*lines[:end], *header, *lines[end:]])
    exec(compile(code, spec.origin, "exec"), theirs.__dict__)
    tests = {name: test for name, test in theirs.__dict__.items() if name.startswith("test_")}
    for test in tests.values():
        test.__dict__["pytestmark"] = [
            _without(mark, set(dropped)) for mark in getattr(test, "pytestmark", [])
        ]
    return tests


def _without(mark: Any, dropped: set[type]) -> Any:
    if mark.name != "parametrize":
        return mark
    names, values, *rest = mark.args
    kept = [value for value in values if not _holds(value, dropped)]
    return pytest.mark.parametrize(names, kept, *rest, **mark.kwargs).mark


def _holds(value: Any, classes: set[type]) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(part, type) and part in classes for part in parts)
