"""The demo's corpus: as large as it says, made of prose, and the same each time."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pyarrow.parquet as pq
import pytest

from nmf_dask import demo
from nmf_dask.errors import ConfigurationError, RetryableError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoCorpus:
    return demo.build_corpus(tmp_path_factory.mktemp("demo"))


def test_corpus_is_as_large_as_promised(corpus: demo.DemoCorpus) -> None:
    table = pq.read_table([str(file) for file in corpus.files])
    texts = table["text"].to_pylist()
    assert len(corpus.files) == demo.N_FILES
    assert corpus.n_documents == len(texts) > 10_000
    assert corpus.text_bytes == sum(len(text.encode()) for text in texts) > 10_000_000
    assert len(set(texts)) == len(texts)
    assert len(set(table["doc_id"].to_pylist())) == len(texts)


def test_the_places_named_hold_the_texts(corpus: demo.DemoCorpus) -> None:
    """Line numbers that are off, or folders that are cut wrongly, send the reader of W to another text."""
    import sklearn

    root = Path(sklearn.__file__).parents[1]
    table = pq.read_table([str(file) for file in corpus.files])
    wanted = {"sklearn/cluster/_kmeans.py": 0, "numpy/_core/fromnumeric.py": 0}
    for doc_id, text in zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True):
        name, line = doc_id.rsplit(":", 1)
        if name in wanted:
            following = " ".join((root / name).read_text().split("\n")[int(line) - 1 :][:12])
            first = text.split()[0].strip(".,:")
            assert first in following
            wanted[name] += 1
    assert min(wanted.values()) > 10


def test_the_same_installation_gives_the_same_files(corpus: demo.DemoCorpus, tmp_path: Path) -> None:
    """Else the second `nmf-dask demo` in a folder would not find its run done."""
    stale = tmp_path / "demo-99999.parquet"
    stale.touch()
    (tmp_path / "mine.parquet").touch()
    code = f"import nmf_dask.demo, pathlib; nmf_dask.demo.build_corpus(pathlib.Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    again = sorted(tmp_path.glob("demo-*.parquet"))
    assert [file.name for file in again] == [file.name for file in corpus.files]
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in corpus.files]
    assert (tmp_path / "mine.parquet").exists()


def test_docstrings_are_those_the_parser_finds() -> None:
    """The oracle is Python's own parser, on modules with quotes of both kinds in many places."""
    import argparse
    import doctest
    import textwrap

    for module in (argparse, doctest, textwrap, inspect):
        source = inspect.getsource(module)
        found = {body for _, body in demo.docstrings(source)}
        n_compared = 0
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(node):
                literal = ast.get_source_segment(source, node.body[0]) or ""
                # The scanner does not undo escapes.
                if "\\" not in literal and literal.startswith('"""'):
                    assert ast.get_docstring(node, clean=False) in found
                    n_compared += 1
        assert n_compared > 5


def test_prose_of_a_numpydoc_docstring() -> None:
    raw = """Solve the :class:`~pkg.linalg.Matrix` equation for :math:`x_i`.

    See https://example.org for more [1]_.

    .. versionadded:: 1.2
       The `mode` keyword.

    Parameters
    ----------
    a : (M, N) array_like
        Coefficients of the system.
    mode : {'full', 'r'}, optional
        How much is computed.

    See Also
    --------
    lstsq : another one

    Notes
    -----
    It is slow::

        for i in range(3):
            work(i)

    But it is right.

    References
    ----------
    .. [1] A. Author, "Title", Journal.

    Examples
    --------
    Solve a system:

    >>> solve(a)
    array([1.])
    """
    assert demo.prose(raw) == (
        "Solve the Matrix equation for . See for more . Coefficients of the system. How much is computed. "
        "It is slow: But it is right. Solve a system:"
    )


def test_legal_text_tables_and_code_are_left_out() -> None:
    assert (
        demo.prose("Copyright (c) 2001 Somebody.\n\nReads a file.\n\nPermission is hereby granted")
        == "Reads a file."
    )
    assert demo.is_readable("words " * 40)
    assert not demo.is_readable("too short")
    assert not demo.is_readable("x_1 = f(y[2], {'a': 3}); " * 40)


def test_comments() -> None:
    source = "import a\n# One line\nx = 1\n    # Two lines\n    #   of it\ny = 2  # not this\n# end\n# here"
    assert list(demo.line_comments(source, "#")) == [(4, " Two lines\n   of it"), (7, " end\n here")]
    header = "#define A\n/* first\n * second */\nint x; /* not this */\n/// third\n/// fourth\n"
    assert list(demo.block_comments(header)) == [(2, " first\nsecond ")]
    assert list(demo.line_comments(header, "//")) == [(5, " third\n fourth")]


def test_an_installation_without_sources_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "source_files", lambda: iter(()))
    with pytest.raises(ConfigurationError, match="--newsgroups"):
        demo.build_corpus(tmp_path)


def test_newsgroups_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sklearn.datasets

    def unreachable(**arguments: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups", unreachable)
    with pytest.raises(RetryableError, match=r"no route to host.*without --newsgroups"):
        demo.newsgroups_corpus(tmp_path)


def test_newsgroups_that_are_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sklearn.datasets

    bunch = SimpleNamespace(
        data=["about space", "", "about hockey é"],
        target=[1, 1, 0],
        target_names=["rec.sport.hockey", "sci.space"],
        filenames=["/somewhere/sci.space/1", "/somewhere/sci.space/2", "/somewhere/rec.sport.hockey/3"],
    )
    monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups", lambda **arguments: bunch)
    corpus = demo.newsgroups_corpus(tmp_path / "new")
    rows = pq.read_table(tmp_path / "new").to_pylist()
    assert rows[2] == {
        "doc_id": "rec.sport.hockey/3",
        "package": "rec.sport.hockey",
        "text": "about hockey é",
    }
    assert (corpus.n_documents, corpus.text_bytes) == (3, 26)


def test_settings_are_valid_and_point_at_the_folders() -> None:
    settings = demo.demo_settings("c", "m")
    assert settings.corpus.input == ("c",)
    assert settings.output.output == "m"
    assert {"the", "parameters"} <= set(settings.vectorizer.stop_words or ())
    assert "parameters" not in set(demo.demo_settings("c", "m", newsgroups=True).vectorizer.stop_words or ())
