"""deploy/constraints.txt and constraints-lowest.txt: what CI tests, against what pyproject.toml allows."""

import os
import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
NEEDED = [Requirement(text) for text in PROJECT["project"]["dependencies"]]


def pins(name: str) -> dict[str, str]:
    """The version of each package; any other line than name==version or a comment is refused."""
    found = {}
    for line in (DEPLOY / name).read_text("utf-8").splitlines():
        if line.startswith("#") or not line:
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)", line)
        assert match is not None, f"{name}: {line!r} is no pin"
        found[canonicalize_name(match[1])] = match[2]
    return found


def lowest(requirement: Requirement) -> str:
    [bound] = [one.version for one in requirement.specifier if one.operator == ">="]
    return bound


def closure(names: list[str]) -> set[str]:
    """The packages that are installed for these, with those that they need in turn."""
    found: set[str] = set()
    while names:
        name = canonicalize_name(names.pop())
        if name not in found:
            found.add(name)
            for text in requires(name) or []:
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                    names.append(needed.name)
    return found


def test_every_package_that_the_job_needs_is_pinned():
    pinned = pins("constraints.txt")
    assert closure([needed.name for needed in NEEDED]) <= set(pinned)
    [build] = [Requirement(text) for text in PROJECT["build-system"]["requires"]]
    for needed in (*NEEDED, build):
        assert needed.specifier.contains(pinned[canonicalize_name(needed.name)]), needed


def test_ci_tests_the_pins():
    """By PIP_CONSTRAINT in .ci/run; elsewhere the environment may be another."""
    if "CI" not in os.environ or os.environ.get("PIP_CONSTRAINT") is None:
        pytest.skip("not in .ci/run, which installs deploy/constraints.txt")
    installed = {}
    for name in pins("constraints.txt"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:  # of the build alone
            continue
    assert {name: pin for name, pin in pins("constraints.txt").items() if name in installed} == installed


def test_the_lowest_versions_are_those_of_pyproject():
    """.ci/lowest installs these. Catches a bound that was changed in one place."""
    stated = {canonicalize_name(needed.name): lowest(needed) for needed in NEEDED}
    found = pins("constraints-lowest.txt")
    assert found.keys() == stated.keys()
    for name, bound in stated.items():
        padded = bound + ".0" * (2 - bound.count("."))
        assert found[name] in (bound, padded), f"{name}: {found[name]} is not {bound}"
