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


def those_of(tests: dict[str, Callable[..., None]], name: str, ours: type) -> set[str]:
    """The names of the tests that name a class in their code, or that get ours as a parameter."""
    return {
        test_name
        for test_name, test in tests.items()
        if name in _names_in(test.__code__)
        or any(_holds(mark.args[1], {ours}) for mark in test.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    }


def _names_in(code: types.CodeType) -> set[str]:
    inner = [_names_in(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*inner)


def _without(mark: Any, dropped: set[type]) -> Any:
    if mark.name != "parametrize":
        return mark
    names, values, *rest = mark.args
    kept = [value for value in values if not _holds(value, dropped)]
    return pytest.mark.parametrize(names, kept, *rest, **mark.kwargs).mark


def _holds(value: Any, classes: set[type]) -> bool:
    """Whether a parameter is one of the classes, one of their objects, or holds such."""
    if isinstance(value, list | tuple):
        return any(_holds(part, classes) for part in value)
    return (value if isinstance(value, type) else type(value)) in classes
