"""Counts in place of texts: lists, maps and triples of Parquet, from files to topics."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits
from sklearn.decomposition import NMF
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.metrics import normalized_mutual_info_score
from sklearn.utils import murmurhash3_32

from nmf_dask import Settings, TopicModel, fit
from nmf_dask.cli import main
from nmf_dask.config import CorpusSettings, VectorizerSettings
from nmf_dask.corpus import Corpus, open_corpus, read_ids, read_texts
from nmf_dask.corpus.features import MAPS
from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.kernels.matrices import to_scipy
from nmf_dask.pipeline import evaluate, nightly, plan, transform, update
from nmf_dask.pipeline import select as select_k
from nmf_dask.pipeline.ingest import IngestTasks
from nmf_dask.store import Folder
from nmf_dask.text import count_texts
from nmf_dask.vocabulary import TermTable, merge, select, weigh

PIXELS = [f"r{i // 8}c{i % 8}" for i in range(64)]
X = sp.csr_array(load_digits().data)
COUNTS = {"feature_column": "pixel", "value_column": "ink"}


def lists_of(X: sp.csr_array, names: Any = PIXELS, kind: Any = None) -> pa.Table:
    """Rows as lists of names beside lists of numbers."""
    columns = pa.array([names[j] for j in X.indices.tolist()], kind)
    offsets = pa.array(X.indptr, pa.int32())
    return pa.table(
        {
            "pixel": pa.ListArray.from_arrays(offsets, columns),
            "ink": pa.ListArray.from_arrays(offsets, pa.array(X.data)),
        }
    )


def dicts_of(X: sp.csr_array) -> list[dict[str, float]]:
    return [
        {PIXELS[j]: x for j, x in zip(X.indices[low:high], X.data[low:high], strict=True)}
        for low, high in pairwise(X.indptr.tolist())
    ]


def triples_of(X: sp.csr_array, rows: Callable[[int], Any] = int) -> pa.Table:
    coo = X.tocoo()
    scans = [rows(i) for i in coo.coords[0].tolist()]
    return pa.table({"scan": scans, "pixel": [PIXELS[j] for j in coo.coords[1].tolist()], "ink": coo.data})


def settings_of(source: Path, output: Path, corpus: dict[str, Any], **sections: Any) -> Settings:
    sections = {"model": {"n_components": 10, "tol": 1e-6}, **sections}
    corpus = {"input": str(source), **corpus}
    return Settings.model_validate({"corpus": corpus, "output": {"output": str(output)}, **sections})


def rows_of(corpus: Corpus) -> list[Any]:
    return [row for one in corpus.partitions for row in read_texts(one, corpus.columns.documents).to_pylist()]


def staged_rows(corpus: Corpus, folder: Path) -> list[tuple[Any, Any]]:
    """Id and counts of the rows of a corpus that is read out of its files, a partition after the other."""
    assert corpus.raw is not None
    tasks = IngestTasks(Folder(str(folder)), corpus.raw)
    found = []
    for one in corpus.partitions:
        tasks.ingest(one, f"{one.index}")
        table = pq.read_table(tasks.file(f"{one.index}").uri)
        found += list(zip(table["scan"].to_pylist(), table["features"].to_pylist(), strict=True))
    return found


def opened(path: Path, **settings: Any) -> Corpus:
    return open_corpus(CorpusSettings(input=(str(path),), **{**COUNTS, **settings}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scans of digits as lists in two files, and as triples in one whose row groups cut through rows."""
    folder = tmp_path_factory.mktemp("counts")
    (folder / "lists").mkdir()
    pq.write_table(lists_of(X[:1000]), folder / "lists" / "0.parquet", row_group_size=300)
    pq.write_table(lists_of(X[1000:]), folder / "lists" / "1.parquet", row_group_size=300)
    pq.write_table(triples_of(X), folder / "triples.parquet", row_group_size=997)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> TopicModel:
    result = fit(settings_of(folder / "lists", folder / "model", COUNTS))
    return TopicModel.load(result.uri)


# What is read


def test_a_row_is_the_same_in_whatever_way_it_is_written(tmp_path: Path) -> None:
    """Numbers of columns, of other width, with names of their own, in maps, in structs, with nothing and with null."""
    rows = [[("a", 2.0), ("b", 1.0)], None, [], [("b", 0.5)]]
    flat = [one for row in rows for one in row or ()]
    offsets = pa.array([0, None, 2, 2, 3], pa.int32())
    names, values = pa.array([n for n, _ in flat]), pa.array([v for _, v in flat], pa.float32())
    numbers = pa.array([{"a": 0, "b": 1}[n] for n, _ in flat], pa.uint8())
    structs = pa.StructArray.from_arrays([names, values], ["name", "n"])
    (tmp_path / "names.txt").write_text("a\nb\n")
    pq.write_table(pa.table({"x": [1, 2], "gene": ["a", "b"]}), tmp_path / "names.parquet")
    beside = pa.ListArray.from_arrays(offsets, values)
    written: list[tuple[Any, Any, Any]] = [
        (pa.ListArray.from_arrays(offsets, names), beside, None),
        (pa.LargeListArray.from_arrays(offsets.cast(pa.int64()), names.dictionary_encode()), beside, None),
        (pa.ListArray.from_arrays(offsets, numbers), beside, "names.txt"),
        (pa.ListArray.from_arrays(offsets, numbers), beside, "names.parquet"),
        (pa.MapArray.from_arrays(offsets, names, values), None, None),
        (pa.ListArray.from_arrays(offsets, structs), None, None),
    ]
    for number, (pixel, ink, known) in enumerate(written):
        table = pa.table({"pixel": pixel} if ink is None else {"pixel": pixel, "ink": ink})
        pq.write_table(table, tmp_path / f"{number}.parquet")
        corpus = opened(
            tmp_path / f"{number}.parquet",
            value_column=None if ink is None else "ink",
            feature_names=None if known is None else str(tmp_path / known),
        )
        assert rows_of(corpus) == rows, table.schema
    assert rows_of(opened(tmp_path / "2.parquet")) == [[("0", 2.0), ("1", 1.0)], None, [], [("1", 0.5)]]
    assert rows_of(opened(tmp_path / "0.parquet", value_column=None))[0] == [("a", 1.0), ("b", 1.0)]


def test_lists_are_cut_within_a_row_group(tmp_path: Path) -> None:
    pq.write_table(lists_of(X), tmp_path / "a.parquet")
    corpus = opened(tmp_path / "a.parquet", partition_bytes=200_000)
    assert len(corpus.partitions) > 5
    assert [len(row) for row in rows_of(corpus)] == np.diff(X.indptr).tolist()


@hypothesis_settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_triples_are_whole_rows_wherever_they_are_cut(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However long the rows are, and wherever row groups and partitions end, each row comes once, whole, in order."""
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    group, target = data.draw(st.integers(1, 12)), data.draw(st.integers(24, 300))
    by_name = data.draw(st.booleans())
    scans = [f"s{-i}" if by_name else i for i, n in enumerate(lengths) for _ in range(n)]
    folder = tmp_path_factory.mktemp("cut")
    values = list(range(1, len(scans) + 1))
    table = pa.table({"scan": scans, "pixel": [f"p{v}" for v in values], "ink": values})
    pq.write_table(table, folder / "a.parquet", row_group_size=group)
    # The smallest target is for work, not for what is right.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nmf_dask.corpus.partitions.SMALLEST_TARGET", 1)
        corpus = opened(folder / "a.parquet", id_column="scan", partition_bytes=target)
    due: dict[Any, list[Any]] = {}
    for scan, value in zip(scans, values, strict=True):
        due.setdefault(scan, []).append((f"p{value}", float(value)))
    assert staged_rows(corpus, folder / "staged") == list(due.items())


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([bytes([i]) * 16 for i in (2, 2, 2, 7, 9, 9)], pa.binary(16)).cast(pa.uuid()),
        pa.array(list("bbbcdd")).cast(pa.string_view()),
        pa.array([b"b"] * 3 + [b"c"] * 3).cast(pa.binary_view()),
        pa.array(np.array([1, 1, 2, 2, 2, 9], np.float16)),
    ],
    ids=lambda ids: str(ids.type),
)
def test_triples_of_ids_that_arrow_does_not_compare(
    tmp_path: Path, ids: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB writes UUIDs, for one. Names are views here, too."""
    monkeypatch.setattr("nmf_dask.corpus.partitions.SMALLEST_TARGET", 1)
    names = pa.array(list("abcdef")).cast(pa.string_view())
    due: dict[Any, list[Any]] = {}
    for scan, name in zip(ids.to_pylist(), "abcdef", strict=True):
        due.setdefault(scan, []).append((name, 1.0))
    table = pa.table({"scan": ids, "pixel": names, "ink": [1] * 6})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    corpus = opened(tmp_path / "a.parquet", id_column="scan", partition_bytes=48)
    assert corpus.id_type == ids.type
    assert staged_rows(corpus, tmp_path / "staged") == list(due.items())
    pq.write_table(pa.concat_tables([table, table]), tmp_path / "b.parquet")
    said = re.escape(f"triples with scan = {ids[0].as_py()!r} stand in several places")
    with pytest.raises(InputDataError, match=said):
        staged_rows(opened(tmp_path / "b.parquet", id_column="scan"), tmp_path / "twice")


def test_a_filter_is_of_triples_and_a_row_without_any_is_none(tmp_path: Path) -> None:
    table = pa.table(
        {"scan": [1, 1, 2, 3], "pixel": ["a", "b", "a", "c"], "ink": [1, -2, -1, 4], "site": list("xxyz")}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    corpus = opened(tmp_path / "a.parquet", id_column="scan", where="ink > 0", keep=("site",))
    assert staged_rows(corpus, tmp_path / "staged") == [(1, [("a", 1.0)]), (3, [("c", 4.0)])]
    assert pq.read_table(tmp_path / "staged" / "0.parquet")["site"].to_pylist() == ["x", "z"]


def test_a_filter_does_not_lose_what_row_groups_of_others_began(tmp_path: Path) -> None:
    """Statistics tell that no triple of a row group is wanted, but a row that begins there goes on."""
    ink = [1, 2, 3, 50, 60, 4]
    table = pa.table({"scan": [1, 2, 2, 2, 3, 3], "pixel": list("abcdef"), "ink": ink})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    corpus = opened(tmp_path / "a.parquet", id_column="scan", where="ink > 10")
    due = [(2, [("d", 50.0)]), (3, [("e", 60.0)])]
    assert staged_rows(corpus, tmp_path / "staged") == due


def test_files_of_nothing_are_none(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"scan": pa.nulls(0), "pixel": pa.nulls(0), "ink": pa.nulls(0)}), tmp_path / "a.parquet"
    )
    pq.write_table(triples_of(X[:20]), tmp_path / "b.parquet")
    corpus = open_corpus(CorpusSettings(input=(f"{tmp_path}/*.parquet",), **COUNTS, id_column="scan"))
    assert len(staged_rows(corpus, tmp_path / "staged")) == 20
    empty = pa.table({"pixel": [[], []], "ink": [[], []]})
    pq.write_table(empty, tmp_path / "c.parquet")
    assert rows_of(opened(tmp_path / "c.parquet")) == [[], []]


def test_names_are_text(tmp_path: Path) -> None:
    names = pa.StringArray.from_buffers(2, pa.py_buffer(np.int32([0, 1, 2])), pa.py_buffer(b"a\xff"))
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), names)
    pq.write_table(pa.table({"pixel": lists}), tmp_path / "a.parquet")
    with pytest.raises(InputDataError, match=r"row 1 of row group 0 .* not valid UTF-8"):
        rows_of(opened(tmp_path / "a.parquet", value_column=None))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0, -0.5], "row 4 of row group 0 .* has the value -0.5 of 'b'"),
        ([1.0, float("nan")], "row 4 of row group 0 .* has the value nan of 'b'"),
        ([1.0, None], "row 4 of row group 0 .* has the value None of 'b'"),
        (
            [1.0, 1e39],
            r"row 4 of row group 0 .* has the value 1e\+39 of 'b', and values are numbers from 0 to 1e\+15",
        ),
        ([1.0, 1e18], r"row 4 of row group 0 .* has the value 1e\+18 of 'b'"),  # its square is too large
        ([1.0], "row 4 of row group 0 .* has 2 names, but 1 values"),
    ],
)
def test_what_is_no_count_is_named_with_its_place(tmp_path: Path, values: list[Any], said: str) -> None:
    good = {"pixel": ["a"], "ink": [1.0]}
    bad = {"pixel": ["a", "b"], "ink": values}
    table = pa.Table.from_pylist([good, good, good, good, bad, good])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputDataError, match=rf"a\.parquet: {said}"):
        rows_of(opened(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("table", "more", "said"),
    [
        ({"pixel": [["a", None]], "ink": [[1, 2]]}, {}, "has an entry without a name"),
        ({"pixel": [[1.5]], "ink": [[1]]}, {}, "type list<element: double>, and column 'ink' list"),
        ({"pixel": [["a"]], "ink": [["1"]]}, {}, "column 'ink' list<element: string>. Counts are lists"),
        ({"pixel": ["a"], "ink": [1]}, {}, "several make up a row: name the column .* --id-column"),
        ({"pixel": [["a"]]}, {}, "no column 'ink'.*--value-column"),
        ({"ink": [1]}, {}, "no column 'pixel'.*--feature-column"),
        ({"pixel": [["a"]], "ink": [[1]]}, {"feature_names": "names.txt"}, "has names already"),
        ({"pixel": [[0, 2]], "ink": [[1, 1]]}, {"feature_names": "names.txt"}, "has number 2, and .* names 2"),
        ({"pixel": [[0]], "ink": [[1]]}, {"feature_names": "twice.txt"}, "the name 'a' more than once"),
        ({"pixel": [[0]], "ink": [[1]]}, {"feature_names": "gap.txt"}, r"name 1 \(counted from 0\) is missing"),
        ({"pixel": [[0]], "ink": [[1]]}, {"feature_names": "none.txt"}, "none.txt: it does not exist"),
        ({"scan": [1, 2, 1], "pixel": ["a"] * 3, "ink": [1] * 3}, {"id_column": "scan"}, "scan = 1 stand in several"),
        ({"scan": [1, None], "pixel": ["a"] * 2, "ink": [1] * 2}, {"id_column": "scan"}, "no id in row 1"),
        ({"scan": ["s"], "pixel": ["a"], "ink": [-1]}, {"id_column": "scan"}, "row with scan = 's' has the value -1"),
    ],
)  # fmt: skip
def test_input_that_is_none_says_what_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Any, more: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, lines in (("names", "a\nb"), ("twice", "a\nb\na"), ("gap", "a\n\nb")):
        Path(f"{name}.txt").write_text(lines)
    pq.write_table(pa.table(table), "a.parquet")
    with pytest.raises(InputDataError, match=said):
        _read(tmp_path, more)


def _read(folder: Path, more: dict[str, Any]) -> None:
    corpus = opened(folder / "a.parquet", **more)
    if corpus.raw is None:
        rows_of(corpus)
    else:
        staged_rows(corpus, folder / "staged")


@pytest.mark.parametrize("scans", [[1, 1, 2, 2, 3, 1], [2, 2, 2, 1, 1, 2], ["b", "b", "b", "b", "a", "b"]])
def test_a_row_in_two_places_is_found_from_partition_to_partition(
    tmp_path: Path, scans: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nmf_dask.corpus.partitions.SMALLEST_TARGET", 1)
    table = pa.table({"scan": scans, "pixel": list("abcdef"), "ink": [1] * 6})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    said = rf"a\.parquet: triples with scan = {scans[-1]!r} stand in several places"
    with pytest.raises(InputDataError, match=said):
        staged_rows(opened(tmp_path / "a.parquet", id_column="scan", partition_bytes=48), tmp_path / "staged")


def test_texts_are_not_taken_for_counts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("pixel,ink\na,1\n")
    with pytest.raises(InputDataError, match=r"of format csv, and counts .* are read from Parquet"):
        opened(tmp_path / "a.csv")
    pq.write_table(lists_of(X[:3]).append_column("scan", pa.array([1, 2, 3])), tmp_path / "lists.parquet")
    pq.write_table(triples_of(X[:3]), tmp_path / "triples.parquet")
    with pytest.raises(InputDataError, match="write all files alike"):
        open_corpus(CorpusSettings(input=(f"{tmp_path}/*.parquet",), **COUNTS, id_column="scan"))


# The matrix


def matrix_of(parts: list[Any], settings: VectorizerSettings) -> tuple[sp.csr_array, list[str]]:
    counts = [count_texts(part, settings) for part in parts]
    vocabulary = select(merge([TermTable.of(one) for one in counts]), settings)
    whole = sp.vstack([to_scipy(weigh(one, vocabulary, settings)) for one in counts], format="csr")
    return whole, vocabulary.term.to_pylist()


def plain(**settings: Any) -> VectorizerSettings:
    """Settings of counts, by their defaults but for those that are given."""
    sections = {"corpus": {"feature_column": "x"}, "vectorizer": settings, "model": {"n_components": 1}}
    return Settings.model_validate(sections).vectorizer


@hypothesis_settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.none(),
            st.lists(
                st.tuples(
                    st.sampled_from(["a", "b", "é", "", "a gene", "x" * 40]),
                    st.sampled_from([0.0, 0.25, 1.0, 3.0, 2.0**24, 1e-30]),
                )
            ),
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 8),
    st.sampled_from([2**31 - 1, 3]),
)
def test_without_weights_the_matrix_is_that_which_was_given(
    rows: list[Any], cut: int, n_features: int
) -> None:
    """Sums of what a row has twice, no zeros, by names or by buckets that they share; from one array or from two."""
    dense: dict[int, dict[int, float]] = {}
    for number, row in enumerate(rows):
        for name, value in row or ():
            bucket = abs(murmurhash3_32(name)) % n_features
            if value:
                dense.setdefault(number, {}).setdefault(bucket, 0.0)
                dense[number][bucket] += value
    parts = [pa.array(part, MAPS) for part in (rows[:cut], rows[cut:])]
    if not dense:
        with pytest.raises(InputDataError, match="holds a term"):
            matrix_of(parts, plain(n_features=n_features))
        return
    found, names = matrix_of(parts, plain(n_features=n_features))
    assert found.shape[0] == len(rows)
    columns = [abs(murmurhash3_32(name)) % n_features for name in names]
    due = [[np.float32(dense.get(i, {}).get(b, 0.0)) for b in columns] for i in range(len(rows))]
    assert found.nnz == sum(map(len, dense.values()))
    np.testing.assert_allclose(found.toarray(), due, rtol=1.2e-7)


@pytest.mark.parametrize(
    "weights",
    [
        {"use_idf": True, "norm": "l2"},
        {"use_idf": True, "smooth_idf": False, "sublinear_tf": True, "norm": "l1"},
        {"use_idf": False, "norm": None},
    ],
)
def test_weights_are_scikit_learns(weights: dict[str, Any]) -> None:
    rows = pa.array([list(row.items()) for row in dicts_of(X[:60])], MAPS)
    found, names = matrix_of([rows[:20], rows[20:]], plain(**weights))
    columns = [PIXELS.index(name) for name in names]
    expected = TfidfTransformer(**weights).fit_transform(X[:60][:, columns])
    np.testing.assert_allclose(found.toarray(), expected.toarray(), rtol=2e-7)


def test_the_largest_features_are_those_of_the_largest_sums_of_shares() -> None:
    """Values under one, whose sums a count of words would take for nothing."""
    rows = pa.array([[("a", 0.25), ("b", 0.5), ("c", 0.125)], [("a", 0.5), ("d", 0.7)]], MAPS)
    _, names = matrix_of([rows[:1], rows[1:]], plain(max_features=2))
    assert set(names) == {"a", "d"}


def test_a_logarithm_is_of_whole_counts() -> None:
    with pytest.raises(InputDataError, match=r"a value of 0.5, and sublinear_tf"):
        matrix_of([pa.array([[("a", 0.5)]], MAPS)], plain(sublinear_tf=True))


# The job


def test_topics_are_scikit_learns_of_the_same_matrix(model: TopicModel) -> None:
    oracle = NMF(10, init="nndsvda", max_iter=3000, tol=1e-6).fit(X)
    assert model.reconstruction_err <= oracle.reconstruction_err_ * 1.001
    assert (model.run["nnz"], model.run["n_documents"], model.run["collision_rate"]) == (
        X.nnz,
        X.shape[0],
        0.0,
    )
    columns = [PIXELS.index(name) for name in model.vocabulary.term.to_pylist()]
    assert sorted(columns) == np.flatnonzero(X.sum(axis=0)).tolist()
    H = np.zeros((10, 64))
    H[:, columns] = model.H
    W = np.concatenate([np.stack(part["weights"].to_numpy(zero_copy_only=False)) for part in model.W_parts()])
    assert np.linalg.norm(X - W @ H) == pytest.approx(model.reconstruction_err, rel=1e-4)
    own = NMF(10, init="custom", max_iter=3000, tol=1e-6).fit(X, W=W.astype(float), H=H)
    assert model.reconstruction_err == pytest.approx(own.reconstruction_err_, rel=1e-4)
    unit = [M / np.linalg.norm(M, axis=1, keepdims=True) for M in (H, own.components_)]
    assert (unit[0] * unit[1]).sum(axis=1).min() > 0.99


def planted(*sizes: int) -> np.ndarray:
    """Counts of rows of several kinds, so many each, with ten columns a kind and a few in all others."""
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.3, (sum(sizes), 10 * len(sizes))).astype(float)
    rows = np.cumsum([0, *sizes])
    for kind, (low, high) in enumerate(pairwise(rows.tolist())):
        dense[low:high, 10 * kind : 10 * kind + 10] += rng.poisson(np.arange(2, 12), (high - low, 10))
    return dense


def test_topics_that_are_there_are_those_of_scikit_learn(tmp_path: Path) -> None:
    """Digits are many things at once, and fits end in one of several; here there is one place to end. W and H agree."""
    dense = planted(200, 100, 50)
    pq.write_table(lists_of(sp.csr_array(dense)), tmp_path / "a.parquet")
    sections = {"model": {"n_components": 3, "tol": 1e-7}}
    found = TopicModel.load(
        fit(settings_of(tmp_path / "a.parquet", tmp_path / "model", COUNTS, **sections)).uri
    )
    oracle = NMF(3, init="nndsvda", max_iter=3000, tol=1e-7)
    expected = oracle.fit_transform(dense)
    columns = [PIXELS.index(name) for name in found.vocabulary.term.to_pylist()]
    W = np.stack(found.to_arrow("W")["weights"].to_numpy(zero_copy_only=False))
    sides = [(found.H, oracle.components_[:, columns]), (W.T, expected.T)]
    assert found.reconstruction_err == pytest.approx(oracle.reconstruction_err_, rel=1e-4)
    for ours, theirs in sides:
        unit = [M / np.linalg.norm(M, axis=1, keepdims=True) for M in (ours, theirs)]
        cosine = unit[0] @ unit[1].T
        assert cosine[linear_sum_assignment(-cosine)].min() > 0.999


@pytest.mark.parametrize("beta_loss", ["frobenius", "kullback-leibler"])
def test_topics_do_not_depend_on_the_unit_of_counts(folder: Path, tmp_path: Path, beta_loss: str) -> None:
    """Of counts in thousands, such as sums of a million a cell, and of such in thousandths."""
    found = []
    for number, unit in enumerate((1e-3, 1.0, 1e3)):
        pq.write_table(lists_of(X[:300] * unit), tmp_path / f"{number}.parquet")
        sections = {"model": {"n_components": 5, "beta_loss": beta_loss, "tol": 1e-5}}
        settings = settings_of(tmp_path / f"{number}.parquet", tmp_path / "model", COUNTS, **sections)
        scale = unit if beta_loss == "frobenius" else unit**0.5
        found.append(fit(settings).run["reconstruction_err"] / scale)
    assert found == pytest.approx([found[1]] * 3, rel=0.01)


def test_triples_give_what_lists_give_with_their_ids(folder: Path, model: TopicModel) -> None:
    settings = settings_of(folder / "triples.parquet", folder / "of-triples", {**COUNTS, "id_column": "scan"})
    assert plan(settings).estimated
    found = TopicModel.load(fit(settings).uri)
    assert found.run["n_documents"] == X.shape[0]
    W = found.to_arrow("W")
    assert W["scan"].to_pylist() == list(range(X.shape[0]))
    assert found.reconstruction_err == pytest.approx(model.reconstruction_err, rel=1e-3)


@pytest.mark.filterwarnings("ignore:Maximum number of iterations")  # of scikit-learn's
def test_kullback_leibler_too(folder: Path) -> None:
    sections = {"model": {"n_components": 5, "beta_loss": "kullback-leibler", "tol": 1e-5}}
    found = TopicModel.load(fit(settings_of(folder / "lists", folder / "kl", COUNTS, **sections)).uri)
    loss = {"solver": "mu", "beta_loss": "kullback-leibler"}
    oracle = NMF(5, init="nndsvda", max_iter=150, tol=1e-5, **loss).fit(X)
    assert found.reconstruction_err <= oracle.reconstruction_err_ * 1.001


def test_new_rows_get_the_weights_of_the_least_loss(folder: Path, model: TopicModel) -> None:
    """By the command, with the columns of the fit; in a library, by dicts and maps; as scikit-learn by the same H."""
    made = transform(
        Settings.model_validate(
            {
                "transform": {"model": str(folder / "model"), "loss": True},
                "corpus": {"input": str(folder / "lists" / "1.parquet")},
                "output": {"output": str(folder / "weights")},
            }
        )
    )
    W = np.concatenate(
        [
            np.stack(pq.read_table(part)["weights"].to_numpy(zero_copy_only=False))
            for part in sorted((folder / "weights" / "W").glob("*.parquet"))
        ]
    )
    rows = [
        {PIXELS[j]: x for j, x in zip(r.indices, r.data, strict=True)}
        for r in (X[[i]] for i in range(1000, 1050))
    ]
    np.testing.assert_array_equal(model.transform(rows), W[:50])
    np.testing.assert_array_equal(model.transform(pa.array([list(r.items()) for r in rows], MAPS)), W[:50])
    oracle = NMF(10, tol=1e-7, max_iter=10_000)
    oracle.components_, oracle.n_components_ = model.H.astype(np.float64), 10
    columns = [PIXELS.index(name) for name in model.vocabulary.term.to_pylist()]
    expected = oracle.transform(X[1000:1050][:, columns])
    np.testing.assert_allclose(W[:50], expected, atol=2e-3 * expected.max())
    assert 0 < made.told["relative_loss"] < 0.6
    [topic, *_] = model.find_topics(model.topics(1)[3].terms[0][0])
    assert topic[1] > 0
    assert model.find_topics("no such pixel") == []
    for wrong in (["text"], {"r0c1": 1.0}, pa.array(["text"])):
        with pytest.raises(TypeError, match="the model is of counts"):
            model.transform(wrong)
    with pytest.raises(ValueError, match="numbers from 0 to"):
        model.transform([{"r0c1": -1.0}])
    with pytest.raises(ValueError, match="no vectorizer"):
        model.to_sklearn()


def test_an_update_takes_in_new_rows(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    fit(settings_of(folder / "lists" / "0.parquet", target, COUNTS))
    sections = {"update": {"base": str(target)}, "corpus": {"input": str(folder / "lists")}}
    result = update(Settings.model_validate(sections))
    assert (result.run["n_documents"], result.run["updated_from"]["n_documents"]) == (797, 1000)
    whole = np.linalg.norm(X[1000:].toarray())
    assert result.run["reconstruction_err"] < 0.6 * whole
    assert min(result.run["updated_from"]["similarity"]) > 0.7


def test_a_file_of_names_with_other_names_is_another_run(tmp_path: Path) -> None:
    pq.write_table(lists_of(X[:50], list(range(64)), pa.int16()), tmp_path / "a.parquet")
    names = tmp_path / "names.txt"
    settings = settings_of(
        tmp_path / "a.parquet", tmp_path / "model", {**COUNTS, "feature_names": str(names)},
        model={"n_components": 3},
    )  # fmt: skip
    names.write_text("\n".join(PIXELS))
    first = fit(settings)
    assert set(TopicModel.load(first.uri).vocabulary.term.to_pylist()) <= set(PIXELS)
    names.write_text("\n".join(f"other {name}" for name in PIXELS))
    second = fit(settings)
    assert second.run_id != first.run_id
    assert TopicModel.load(second.uri).vocabulary.term[0].as_py().startswith("other ")


# The command line


def test_a_plan_tells_counts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "fit",
        "--input",
        f"{folder}/lists",
        "--feature-column",
        "pixel",
        "--value-column",
        "ink",
        "--dry-run",
    ]
    assert main([*options, "--output", f"{tmp_path}/m"]) == 0
    assert f"1,797 documents, {X.nnz * 24 / 2**20:.1f} MiB of counts" in capsys.readouterr().out
    assert main([*options, "--output", f"{tmp_path}/m", "--log-format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["of_counts"] is True


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--stop-words", "english"), "stop_words is about the words of texts"),
        (("--ngram-range", "1,2"), "ngram_range is about the words of texts"),
        (("--set", "vectorizer.analyzer=char"), "analyzer is about the words of texts"),
        (("--set", "vectorizer.token_pattern=\\w+"), "token_pattern is about the words of texts"),
        (("--text-column", "body"), "of texts or of counts"),
        (("--format", "csv"), "counts are read from Parquet"),
    ],
)
def test_what_makes_no_sense_of_counts_is_refused(
    folder: Path, option: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--input", str(folder), "--output", str(folder / "none"), "--feature-column", "pixel"]
    assert main(["fit", *source, *option]) == 2
    assert said in capsys.readouterr().err


def test_what_is_done_to_texts_alone_says_so(folder: Path, model: TopicModel, tmp_path: Path) -> None:
    from nmf_dask.reporting import report

    source = {"input": str(folder / "lists")}
    asked = {"evaluate": {"judged_model": model.uri}, "corpus": source}
    with pytest.raises(ConfigurationError, match="is of counts, and evaluate judges"):
        evaluate(Settings.model_validate(asked))
    with pytest.raises(ConfigurationError, match="no texts to show"):
        report(model.uri, str(tmp_path / "report.html"), source["input"])
    assert report(model.uri, str(tmp_path / "report.html")) == str(tmp_path / "report.html")
    asked = {"transform": {"model": model.uri}, "output": {"output": str(tmp_path / "w")}}
    with pytest.raises(ConfigurationError, match=r"is of counts, and corpus\.text_column is body"):
        transform(Settings.model_validate({**asked, "corpus": {**source, "text_column": "body"}}))


def test_a_model_of_texts_takes_no_counts(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["star moon", "law court", "star law"]}), tmp_path / "in" / "a.parquet")
    sections = {"model": {"n_components": 2}, "vectorizer": {"min_df": 1, "max_df": 1.0}}
    fit(settings_of(tmp_path / "in", tmp_path / "model", {}, **sections))
    counts = {"input": str(folder / "lists"), **COUNTS}
    asked = {"transform": {"model": str(tmp_path / "model")}, "output": {"output": str(tmp_path / "w")}}
    with pytest.raises(ConfigurationError, match=r"is of texts, and corpus\.feature_column is pixel"):
        transform(Settings.model_validate({**asked, "corpus": counts}))
    with pytest.raises(ConfigurationError, match=r"is of texts, and corpus\.feature_column is pixel"):
        update(Settings.model_validate({"update": {"base": str(tmp_path / "model")}, "corpus": counts}))
    with pytest.raises(TypeError, match="the model is of texts"):
        TopicModel.load(str(tmp_path / "model")).transform(pa.array([[("star", 1.0)]], MAPS))


JOB = Path(__file__).resolve().parents[1] / "jobs" / "digits.toml"


def test_the_job_of_digits_finds_digits(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real small data set from end to end by the commands: what topics say of digits that no topic was told."""
    triples = pq.read_table(folder / "triples.parquet")
    target = load_digits().target
    digit = pa.array(target[triples["scan"].to_numpy()])
    pq.write_table(triples.append_column("digit", digit), tmp_path / "digits.parquet")
    model, weights = str(tmp_path / "model"), str(tmp_path / "weights")
    source = ["--input", f"{tmp_path}/digits.parquet", "--log-format", "json"]
    assert main(["fit", str(JOB), *source, "--output", model]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["n_documents"], told["n_features"]) == (X.shape[0], 61)
    W = TopicModel.load(model).to_arrow("W")
    assert W.schema.names == ["scan", "digit", "topic", "weights"]
    np.testing.assert_array_equal(W["digit"].to_numpy(), target)
    theirs = NMF(10, solver="mu", beta_loss="kullback-leibler", init="nndsvda", tol=1e-3).fit_transform(X)
    agreement = normalized_mutual_info_score(W["topic"].to_numpy(), target)
    assert agreement > 0.9 * normalized_mutual_info_score(theirs.argmax(axis=1), target)
    assert main(["transform", str(JOB), *source, "--model", model, "--output", weights]) == 0
    assert json.loads(capsys.readouterr().out)["n_documents"] == X.shape[0]
    assert main(["topics", model, "-n", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10
    assert main(["evaluate", model, *source[:2]]) == 2
    assert "the model is of counts" in capsys.readouterr().err


def test_the_same_bytes_on_other_workers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triples are staged, counted and fitted by processes as by threads: cut into as many partitions."""
    corpus = {**COUNTS, "id_column": "scan", "partition_bytes": 200_000}
    monkeypatch.setattr("nmf_dask.corpus.partitions.SMALLEST_TARGET", 100_000)
    clusters: list[dict[str, Any]] = [{}, {"workers": 2, "threads_per_worker": 1}]
    found = []
    for number, cluster in enumerate(clusters):
        sections = {"model": {"n_components": 4, "max_iter": 5}, "cluster": cluster}
        result = fit(settings_of(folder / "triples.parquet", tmp_path / str(number), corpus, **sections))
        files = sorted([*Path(result.uri).glob("H/*"), *Path(result.uri).glob("W/*")])
        found.append([(file.name, file.read_bytes()) for file in files])
    assert len(found[0]) > 5
    assert found[0] == found[1]


def test_numbers_of_topics_are_compared_without_words(tmp_path: Path) -> None:
    """By what comes back in fits of samples: two kinds of rows that share no column are two topics, each time."""
    rng = np.random.default_rng(0)
    dense = np.zeros((300, 20))
    dense[:200, :10] = rng.poisson(np.arange(2, 12), (200, 10))
    dense[200:, 10:] = rng.poisson(np.arange(2, 12), (100, 10))
    pq.write_table(lists_of(sp.csr_array(dense)), tmp_path / "a.parquet")
    asked = {"candidates": [2, 4], "fits": 4}
    result = select_k(settings_of(tmp_path / "a.parquet", tmp_path / "model", COUNTS, select=asked, model={}))
    two, four = result.told["candidates"]
    assert result.n_components == 2
    assert two["stability_least"] > 0.95 > four["stability_least"]
    assert (two["c_npmi"], two["c_v"]) == (None, None)


def test_a_large_corpus_is_not_refused_for_names_that_it_has_not(folder: Path, tmp_path: Path) -> None:
    """A bound on the names by the entries alone would be a fraction of them."""
    from nmf_dask.pipeline.planning import expected_memory

    settings = settings_of(folder / "lists", tmp_path / "model", COUNTS)
    memory = expected_memory(
        text_bytes=2**40, partition_bytes=64 * 2**20, n_rows=10**8, threads=1, vectorizer=settings.vectorizer,
        model=settings.model, in_process=False,
    )  # fmt: skip
    assert memory.worker < 2 * 2**30


def test_nights_of_triples(folder: Path, tmp_path: Path) -> None:
    """New files get their W under the model of the first night, which an update goes on from."""
    lake = tmp_path / "lake"
    lake.mkdir()
    pq.write_table(triples_of(X[:900]), lake / "1.parquet")
    settings = settings_of(
        lake, tmp_path / "model", {**COUNTS, "id_column": "scan"},
        nightly={"weights": str(tmp_path / "weights"), "every": 1}, model={"n_components": 5},
    )  # fmt: skip
    assert nightly(settings).told["did"] == ["fit", "transform"]
    pq.write_table(triples_of(X[900:], lambda i: i + 900), lake / "2.parquet")
    night = nightly(settings)
    assert night.told["did"] == ["transform", "update"]
    assert TopicModel.load(str(tmp_path / "model")).run["n_documents"] == X.shape[0] - 900


def test_ids_of_lists_are_carried(folder: Path, tmp_path: Path) -> None:
    table = lists_of(X[:100]).append_column("cell", pa.array([f"c{i}" for i in range(100)]))
    pq.write_table(table, tmp_path / "a.parquet")
    corpus = opened(tmp_path / "a.parquet", id_column="cell")
    assert read_ids(corpus.partitions[0], "cell")[99].as_py() == "c99"
