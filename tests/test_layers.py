"""Imports go downward only: the table of layers, and what each layer may bring along from outside."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import nmf_dask

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nmf_dask"

# From the top down; with each module or package, those beside it that it may import.
LAYERS: tuple[dict[str, set[str]], ...] = (
    {"__main__": {"cli"}, "cli": set()},
    {"pipeline": set(), "reporting": set(), "demo": {"pipeline"}, "estimators": set()},
    {"cluster": {"distributed"}, "distributed": set(), "threads": set()},
    {
        "model": {"store", "exports"},
        "exports": {"model", "store"},
        "comparison": {"model"},
        "evaluation": {"model", "store"},
        "selection": set(),
        "staging": {"store"},
        "store": set(),
    },
    {
        "in_memory": {"beginning", "factorization", "fixed", "schedule"},
        "beginning": {"factorization", "schedule"},
        "continuation": {"factorization", "schedule", "vocabulary"},
        "folding": {"fixed", "vocabulary"},
        "factorization": {"fixed", "schedule"},
        "fixed": {"schedule"},
        "schedule": set(),
        "vocabulary": set(),
    },
    {"initialization": {"blocks"}, "blocks": set(), "tasks": set()},
    {"corpus": set(), "text": set()},
    {"kernels": set()},
    {
        "jobfile": {"allowed", "config", "errors"},
        "allowed": {"config", "errors"},
        "config": {"errors"},
        "object_stores": {"errors"},
        "observer": set(),
        "residence": set(),
        "errors": set(),
    },
)
HEIGHT = {name: -depth for depth, layer in enumerate(LAYERS) for name in layer}

# Who may import a library that costs something: time at the start, a place to run, a choice shared by all.
HOMES = {
    "dask": {"cluster", "distributed"},
    "distributed": {"cluster", "distributed"},
    "numba": {"kernels", "text"},
    "pydantic": {"config", "allowed", "jobfile"},
    "pydantic_core": {"config", "allowed", "jobfile"},
    "click": {"cli"},
    "rich": {"cli"},
    "prometheus_client": {"cli"},
}
LAZY = {"scipy", "sklearn"}


class Import(NamedTuple):
    """One name that a file imports, with the place for the message."""

    name: str
    place: str
    at_import: bool  # runs when the file is imported: neither in a function nor for the type checker


def imports_of(source: str, name: str) -> Iterator[Import]:
    pending: list[tuple[ast.AST, bool]] = [(ast.parse(source), True)]
    while pending:
        node, at_import = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_import = False
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += [(child, False) for child in node.body]
            pending += [(child, at_import) for child in node.orelse]
            continue
        place = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, place, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place}: a relative import"
            yield from (Import(f"{node.module}.{alias.name}", place, at_import) for alias in node.names)
        pending += [(child, at_import) for child in ast.iter_child_nodes(node)]


def component_of(imported: str) -> str | None:
    """Return the module or package of nmf_dask that `imported` leads to; None: the version, or not ours."""
    first, _, rest = imported.partition(".")
    if first != "nmf_dask" or rest in {"", "__version__"}:
        return None
    name = rest.split(".")[0]
    # `from nmf_dask import fit` goes to the pipeline, however low the caller stands.
    return nmf_dask._HOMES[name].split(".")[1] if name in nmf_dask._HOMES else name


def violations(component: str, source: str, name: str) -> list[str]:
    found = []
    for imported in imports_of(source, name):
        top = imported.name.split(".")[0]
        target = component_of(imported.name)
        if target is not None and target != component:
            beside = next(layer[component] for layer in LAYERS if component in layer)
            if HEIGHT[target] >= HEIGHT[component] and target not in beside:
                found.append(f"{imported.place}: {component} imports {target}, which is not below it")
        if top in HOMES and component not in HOMES[top]:
            found.append(f"{imported.place}: only {sorted(HOMES[top])} import {top}")
        if top in LAZY and imported.at_import and component != "estimators":  # they are scikit-learn's kind
            found.append(
                f"{imported.place}: {top} is slow to import, do it inside the function that needs it"
            )
    return found


def files_of_the_package() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def component_at(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_every_module_has_its_layer() -> None:
    assert {component_at(path) for path in files_of_the_package()} - set(HEIGHT) == set()


@pytest.mark.parametrize("path", files_of_the_package(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    assert violations(component_at(path), path.read_text("utf-8"), str(path.relative_to(ROOT))) == []


@pytest.mark.parametrize(
    ("component", "source"),
    [
        ("kernels", "from nmf_dask.text import count_texts"),
        ("kernels", "def f():\n    import nmf_dask.pipeline"),
        (
            "store",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nmf_dask.model import TopicModel",
        ),
        ("store", "from nmf_dask import model"),
        ("text", "from nmf_dask import TopicModel"),
        ("corpus", "import nmf_dask.text"),
        ("factorization", "def f():\n    from dask import delayed"),
        ("pipeline", "import distributed.client"),
        ("text", "from sklearn.utils import murmurhash3_32"),
        ("text", "try:\n    import scipy.sparse\nexcept ImportError:\n    pass"),
        ("pipeline", "import numba"),
    ],
)
def test_the_check_itself_sees(component: str, source: str) -> None:
    """A check that lets one of these pass proves nothing about the package."""
    assert len(violations(component, source, "example.py")) == 1


@pytest.mark.parametrize(
    ("component", "source"),
    [
        ("store", "from nmf_dask import __version__\nfrom nmf_dask.vocabulary import Vocabulary"),
        ("text", "def f():\n    from sklearn.utils import murmurhash3_32"),
        ("kernels", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import scipy.sparse"),
        ("demo", "def f():\n    from nmf_dask.pipeline import fit"),
        ("distributed", "import dask"),
    ],
)
def test_the_check_allows(component: str, source: str) -> None:
    assert violations(component, source, "example.py") == []


def test_the_package_itself_imports_nothing() -> None:
    source = (PACKAGE / "__init__.py").read_text("utf-8")
    at_import = {found.name.split(".")[0] for found in imports_of(source, "__init__.py") if found.at_import}
    assert at_import <= set(sys.stdlib_module_names)


def test_jobs_know_only_the_command_line() -> None:
    """A job script holds no arithmetic and reads no Parquet: it hands arguments to `nmf_dask.cli`."""
    for path in sorted((ROOT / "jobs").rglob("*.py")):
        for imported in imports_of(path.read_text("utf-8"), str(path.relative_to(ROOT))):
            standard = imported.name.split(".")[0] in sys.stdlib_module_names
            assert standard or imported.name.startswith("nmf_dask.cli"), imported.place


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("nmf_dask", "numpy pydantic numba dask distributed pyarrow sklearn scipy click rich"),
        ("nmf_dask.cli", "numpy pydantic numba dask distributed pyarrow sklearn scipy rich"),
        ("nmf_dask.config", "numpy numba dask distributed pyarrow sklearn scipy"),
        ("nmf_dask.kernels.frobenius", "dask distributed pyarrow sklearn pydantic"),
        ("nmf_dask.factorization", "dask distributed sklearn click rich"),
        ("nmf_dask.in_memory", "dask distributed sklearn click rich"),
        ("nmf_dask.demo", "numba dask distributed sklearn"),
    ],
)
def test_what_an_import_leaves_unloaded(module: str, absent: str) -> None:
    """Runs the imports, and so sees what a library brings along by itself."""
    code = f"import sys, {module}; print(*sorted(set({absent.split()!r}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
