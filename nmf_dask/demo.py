"""A real corpus that needs no download: the prose in the sources of Python and of what this package needs.

Docstrings and comments are cut out of the files as text. Nothing is imported, so that a package that is slow
to import, or that lacks something it wants, does not matter.
"""

from __future__ import annotations

import os
import re
import string
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from nmf_dask.config import CorpusSettings, ModelSettings, OutputSettings, Settings, VectorizerSettings
from nmf_dask.errors import ConfigurationError, RetryableError
from nmf_dask.observer import Observer
from nmf_dask.store import Folder

if TYPE_CHECKING:
    from nmf_dask.pipeline import FitResult

# What `pip install nmf-dask` brings along, so that everybody's demo has about the same corpus, whatever else
# is installed. pygments is left out: its hundreds of lexers all say the same sentence.
PACKAGES = (
    "click", "cloudpickle", "dask", "distributed", "fsspec", "importlib_metadata", "jinja2", "joblib",
    "llvmlite", "markdown_it", "msgpack", "narwhals", "numba", "numpy", "packaging", "partd", "psutil",
    "pyarrow", "pydantic", "pydantic_core", "rich", "scipy", "sklearn", "sortedcontainers", "tblib",
    "threadpoolctl", "toolz", "tornado", "typing_extensions", "typing_inspection", "yaml", "zict",
)  # fmt: skip
HEADER_SUFFIXES = (".h", ".hpp")
SUFFIXES = (".py", ".pyi", ".pyx", ".pxi", ".pxd", *HEADER_SUFFIXES)
# Tests repeat what they test, in words about testing.
SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "cuda", "idle_test", "site-packages", "test", "testing", "tests", "vendored", "_vendor"}
)
SHORTEST_TEXT = 150
# Words that every docstring has, whatever it is about: what English stop words are to letters.
DOCUMENTATION_WORDS = (
    "arg args argument arguments attribute attributes bool call called calls case class classes code "
    "contain contains default defaults does doesn don example examples false float function functions "
    "given import input instance instances instead int just keyword kwargs like make method methods "
    "module name names need new none note number object objects optional output param parameter "
    "parameters python result results return returned returns self set specified str string support "
    "supported true type types use used user uses using value values want"
)
N_FILES = 4
PARTITION_BYTES = 2 * 2**20

TRIPLE_QUOTES = ('"""', "'''")
STRING_PREFIXES = frozenset({"", "r", "R", "u", "U"})
BLOCK_COMMENT = re.compile(r"^[ \t]*/\*(?P<body>.*?)\*/", re.DOTALL | re.MULTILINE)
COMMENT_MARGIN = re.compile(r"^[ \t]*\*+ ?", re.MULTILINE)
PARAGRAPH_BREAK = re.compile(r"\n(?:[ ]*\n)+")
DOCTEST = (">>>", "In [")
WORDS = (string.ascii_letters + " ").encode()
DROPPED_SECTIONS = frozenset({"references", "see also"})
UNDERLINES = ("---", "===", "~~~", "^^^", "***", "###", "+++", "...")
TYPE_LINE = re.compile(r"\s*[*\w, `'\"\[\].]{1,60} ?:( .{1,200})?")
# Blocks that hold code, formulas or the history of the interface.
DROPPED_DIRECTIVE = re.compile(
    r"\.\. +(math|code|plot|testcode|ipython|version|deprec|seealso|index|auto|current|toc|table|image|\[)"
)
LEGAL_WORDS = ("opyright", "icense", "Permission is hereby", "Redistribution", "SPDX")
FORMULA = re.compile(r":math:`[^`]*`|\$[^$\n]{1,200}\$")
ROLE = re.compile(r":(?:[a-z]+:)?[a-z]+:`[!~.]*(?:[\w.]*\.)?([^`<]+?)(?: ?<[^`>]*>)?`")
NOISE = re.compile(r"https?://\S+|\[\w+\]_|%\(\w+\)s|\.\. \w+::|[\\@][a-z]+\b|`|\*\*")


@dataclass(frozen=True)
class DemoCorpus:
    """A corpus that was written: `text_bytes` are the UTF-8 bytes of its texts."""

    n_documents: int
    text_bytes: int
    files: tuple[Folder, ...]


class Document(NamedTuple):
    """One text; `doc_id` is the place it came from, such as numpy/linalg/_linalg.py:312."""

    doc_id: str
    package: str
    text: str


def build_corpus(folder: Path | str) -> DemoCorpus:
    """Write the prose of what is installed to Parquet files in `folder`, a path or URI (doc_id, package, text).

    The same installation gives the same files, in the order of the packages and their paths.
    Raises ConfigurationError where Python was installed without the sources of its packages.
    """
    documents = list(installed_documents())
    if not documents:
        raise ConfigurationError(
            "the demo found no source files of the installed packages to read (an installation of compiled "
            "files only?); use `nmf-dask demo --newsgroups`, or `nmf-dask fit` with a corpus of your own"
        )
    return write_corpus(documents, folder)


def newsgroups_corpus(folder: Path | str) -> DemoCorpus:
    """Write the training half of 20 newsgroups to `folder`; scikit-learn downloads it once and keeps it.

    Raises RetryableError where it cannot be downloaded.
    """
    from sklearn.datasets import fetch_20newsgroups

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one warning a retry; the error below says it once
            bunch = fetch_20newsgroups(subset="train", remove=("headers", "footers", "quotes"))
    except OSError as error:
        raise RetryableError(
            f"scikit-learn could not download 20 newsgroups ({error}); try again where the network is, or "
            "run `nmf-dask demo` without --newsgroups: that corpus is made from what is installed"
        ) from error
    names = (Path(name) for name in bunch.filenames)
    return write_corpus(
        [
            Document(f"{name.parent.name}/{name.name}", bunch.target_names[target], text)
            for name, target, text in zip(names, bunch.target, bunch.data, strict=True)
        ],
        folder,
    )


def demo_settings(corpus: str, output: str, newsgroups: bool = False) -> Settings:
    """Return the job that `run_demo` runs: `corpus` is the folder of texts, `output` the model folder."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    stop_words = ENGLISH_STOP_WORDS if newsgroups else ENGLISH_STOP_WORDS.union(DOCUMENTATION_WORDS.split())
    return Settings(
        corpus=CorpusSettings(input=(corpus,), id_column="doc_id", partition_bytes=PARTITION_BYTES),
        vectorizer=VectorizerSettings(
            stop_words=tuple(sorted(stop_words)), min_df=10, max_df=0.1, max_features=5_000
        ),
        model=ModelSettings(n_components=14),
        output=OutputSettings(output=output),
    )


def run_demo(
    output: Path | str | None = None, newsgroups: bool = False, observer: Observer | None = None
) -> FitResult:
    """Make a corpus in `output`/corpus and fit it into `output`/model (a path or URI; default: ./nmf-dask-demo)."""
    from nmf_dask.pipeline import fit

    observer = observer or Observer()
    given = str(output or "nmf-dask-demo").rstrip("/") or "/"
    place, model = (f"{given}/{name}" for name in ("corpus", "model"))
    corpus = (newsgroups_corpus if newsgroups else build_corpus)(place)
    observer.inform(
        f"corpus: {corpus.n_documents:,} texts, {corpus.text_bytes / 1e6:.1f} MB, in {place}",
        n_documents=corpus.n_documents,
        text_bytes=corpus.text_bytes,
    )
    return fit(demo_settings(place, model, newsgroups), observer)


def write_corpus(documents: list[Document], folder: Path | str) -> DemoCorpus:
    """Write `documents`, in their order, to a few Parquet files; replaces those of an earlier demo."""
    place = Folder(str(folder))
    for name in place.list():
        if name.startswith("demo-") and name.endswith(".parquet"):
            (place / name).delete()
    per_file = -(-len(documents) // N_FILES)
    files = []
    for number, first in enumerate(range(0, len(documents), per_file)):
        table = pa.table(
            dict(zip(Document._fields, zip(*documents[first : first + per_file], strict=True), strict=True))
        )
        files.append(place / f"demo-{number:05d}.parquet")
        with files[-1].writing() as stream:
            pq.write_table(table, stream, row_group_size=1_000, compression="zstd")
    text_bytes = sum(len(document.text.encode()) for document in documents)
    return DemoCorpus(len(documents), text_bytes, tuple(files))


def installed_documents() -> Iterator[Document]:
    """Yield every distinct piece of prose, sorted by package, path and line."""
    seen = set()
    for package, root, path in source_files():
        source = path.read_text(encoding="utf-8", errors="replace")
        name = path.relative_to(root).as_posix()
        for line, raw in passages(source, path.suffix):
            text = prose(raw)
            # The first words are enough: several packages carry an older version of the same interface.
            key = text[:SHORTEST_TEXT]
            if key not in seen and is_readable(text):
                seen.add(key)
                yield Document(f"{name}:{line}", package, text)


def source_files() -> Iterator[tuple[str, Path, Path]]:
    """Yield (package, folder that `path` is named from, path) of the sources that are there."""
    for package in PACKAGES:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        origin = Path(spec.origin)
        if spec.submodule_search_locations is None:
            yield package, origin.parent, origin
        else:
            root = origin.parent
            yield from ((package, root.parent, path) for path in sorted(walk(root)))
    library = Path(sysconfig.get_path("stdlib"))
    yield from (("python", library, path) for path in sorted(walk(library)))


def walk(folder: Path) -> Iterator[Path]:
    """Yield the source files under `folder`, but none of its tests."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        yield from (Path(parent, name) for name in names if name.endswith(SUFFIXES))


def passages(source: str, suffix: str) -> list[tuple[int, str]]:
    """Return (line, raw text) of every docstring and every comment of some lines, in their order."""
    if suffix in HEADER_SUFFIXES:
        found = [*block_comments(source), *line_comments(source, "//")]
    else:
        found = [*docstrings(source), *line_comments(source, "#")]
    return sorted((line, raw) for line, raw in found if len(raw) >= SHORTEST_TEXT)


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, body) of every string in triple quotes that begins a line.

    That is what a docstring looks like in Python and Cython, and in the files that hold those of compiled
    functions. Parsing the files properly takes thirty times as long and cannot read Cython.
    """
    quotes = [quote for quote in TRIPLE_QUOTES if quote in source]
    start = 0
    while openings := [at for quote in quotes if (at := source.find(quote, start)) >= 0]:
        opening = min(openings)
        first = opening + 3
        last = source.find(source[opening:first], first)
        if last < 0:
            return
        before = source[source.rfind("\n", 0, first) + 1 : opening]
        if before.strip() in STRING_PREFIXES:
            yield source.count("\n", 0, first) + 1, source[first:last]
        start = last + 3


def line_comments(source: str, mark: str) -> Iterator[tuple[int, str]]:
    """Yield (line, body) of every run of two or more lines that hold nothing but a comment."""
    run: list[str] = []
    for number, line in enumerate([*source.split("\n"), ""], 1):
        if (comment := line.lstrip()).startswith(mark):
            run.append(comment.lstrip(mark))
        elif run:
            if len(run) > 1:
                yield number - len(run), "\n".join(run)
            run = []


def block_comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, body) of every comment between /* and */ that begins a line."""
    for match in BLOCK_COMMENT.finditer(source):
        yield source.count("\n", 0, match.start()) + 1, COMMENT_MARGIN.sub("", match["body"])


def prose(raw: str) -> str:
    """Return the sentences of a docstring or comment, in one line.

    Code, doctests, formulas, headings, references and the lines that name a parameter and its type are gone:
    they are the same few words in every docstring, and no topic.
    """
    text = FORMULA.sub(" ", " ".join(kept_lines(raw)))
    return " ".join(NOISE.sub(" ", ROLE.sub(r"\1", text)).split())


def kept_lines(raw: str) -> Iterator[str]:
    """Yield the lines of `raw` that are prose, paragraph by paragraph."""
    section, block = "", sys.maxsize
    for paragraph in PARAGRAPH_BREAK.split(raw.expandtabs()):
        lines = paragraph.split("\n")
        if indent_of(lines[0]) > block:
            continue  # still inside a block of code
        block = sys.maxsize
        if len(lines) > 1 and lines[1].lstrip().startswith(UNDERLINES):
            section, lines = lines[0].strip().lower(), lines[2:]
        if section in DROPPED_SECTIONS or not lines:
            continue
        first, last = lines[0].strip(), lines[-1].rstrip()
        if first.startswith("```") or any(word in paragraph for word in LEGAL_WORDS):
            continue
        if DROPPED_DIRECTIVE.match(first):
            block = indent_of(lines[0])
            continue
        if last.endswith("::"):
            block, lines[-1] = indent_of(lines[-1]), last.removesuffix(":")
        yield from prose_lines(lines)


def prose_lines(lines: list[str]) -> Iterator[str]:
    """Yield the lines of one paragraph up to a doctest, without those that only announce the next."""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.lstrip().startswith(DOCTEST):
            return
        announces = indent_of(following) > indent_of(line) and TYPE_LINE.fullmatch(line)
        if not announces and not line.lstrip().startswith(UNDERLINES):
            yield line


def indent_of(line: str) -> int:
    """Return the number of blanks that `line` begins with."""
    return len(line) - len(line.lstrip())


def is_readable(text: str) -> bool:
    """Tell whether `text` is long enough, and is words rather than tables, signatures or code."""
    beginning = text[:2_000].encode("ascii", "replace")
    return len(text) >= SHORTEST_TEXT and len(beginning.translate(None, WORDS)) < 0.14 * len(beginning)
