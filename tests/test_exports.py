"""Ways out of a model: scikit-learn, pyLDAvis, tables, and the verbs of other topic models."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nmf_dask import Settings, TopicModel, fit
from tests.small_models import first_and_second

SKY, LAW = ["star", "galaxy", "dust", "orbit", "comet"], ["vote", "law", "court", "judge", "treaty"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TopicModel:
    """Of a real fit: forty documents of two subjects, and one that says nothing."""
    folder = tmp_path_factory.mktemp("exports")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(SKY if i % 4 else LAW, 6)) for i in range(40)] + ["!"]
    pq.write_table(pa.table({"text": texts, "id": [f"d{i}" for i in range(41)]}), folder / "texts.parquet")
    fit(
        Settings.model_validate(
            {
                "corpus": {"input": str(folder / "texts.parquet"), "id_column": "id"},
                "vectorizer": {"max_df": 1.0, "stop_words": ("comet",)},
                "model": {"n_components": 2},
                "output": {"output": str(folder / "model")},
            }
        )
    )
    return TopicModel.load(str(folder / "model"))


def subjects(model: TopicModel) -> tuple[int, int]:
    """Which topic is the sky's, and which the law's."""
    sky = int(model.topics(1)[1].terms[0][0] in SKY)
    return sky, 1 - sky


def test_topic_info_has_a_row_a_topic(model: TopicModel) -> None:
    info = model.topic_info(3)
    sky, law = subjects(model)
    assert info["n_documents"].to_pylist()[sky] == 30
    assert info["n_documents"].to_pylist()[law] == 10
    assert info["share"].to_numpy().sum() == pytest.approx(1)
    for row in info.to_pylist():
        assert len(row["terms"]) == 3
        assert row["name"].startswith(f"{row['topic']}_{row['terms'][0]}_")


def test_top_documents_are_those_of_a_sort(model: TopicModel, tmp_path: Path) -> None:
    W = model.to_arrow("W")
    weights = np.array(W["weights"].to_pylist())
    for topic in range(2):
        top = model.top_documents(topic, 5)
        order = np.argsort(-weights[:, topic], kind="stable")[:5]
        assert top["id"].to_pylist() == [f"d{i}" for i in order]
        np.testing.assert_allclose(top["weight"].to_numpy(), weights[order, topic])
    assert len(model.top_documents(0, 1000)) == np.count_nonzero(weights[:, 0])
    with pytest.raises(ValueError, match="there is no topic 2; they are 0 to 1"):
        model.top_documents(2)
    with pytest.raises(ValueError, match=r"there is no topic 0\.5"):
        model.top_documents(0.5)  # type: ignore[arg-type]
    # Of two partitions: W is [0 1 0; 2 1 0; 0 0 0] and [1 0 3].
    small = TopicModel.load(first_and_second(tmp_path).uri)
    assert small.top_documents(0).to_pydict() == {"doc_id": ["d1", "d3"], "weight": [2.0, 1.0]}
    assert small.top_documents(1, 1).to_pydict() == {"doc_id": ["d0"], "weight": [1.0]}


def test_find_topics_knows_what_words_are_about(model: TopicModel) -> None:
    sky, law = subjects(model)
    assert model.find_topics("a galaxy of dust")[0] == (sky, pytest.approx(1, abs=0.05))
    both = model.find_topics("the court and the star")
    assert {topic for topic, _ in both} == {sky, law}
    assert sum(share for _, share in both) == pytest.approx(1)
    assert [share for _, share in both] == sorted((share for _, share in both), reverse=True)
    assert len(model.find_topics("court star", 1)) == 1
    assert model.find_topics("nothing of the kind") == []


def test_tables_are_the_same_in_every_library(model: TopicModel) -> None:
    for what in ("topics", "info", "H", "W"):
        table = model.to_arrow(what)
        frame, polars = model.to_pandas(what), model.to_polars(what)
        assert isinstance(frame, pd.DataFrame)
        assert isinstance(polars, pl.DataFrame)
        assert list(frame.columns) == polars.columns == table.column_names
        assert len(frame) == len(polars) == len(table)
    topics = model.to_pandas("topics")
    assert topics["term"].iloc[0] == model.topics(1)[0].terms[0][0]
    with pytest.raises(ValueError, match="no table 'X'; it is one of topics, info, H, W"):
        model.to_arrow("X")


TEXTS = ["star dust star", "a vote of the court, and a comet", "", "nothing known", "galaxy treaty law"]


def test_scikit_learn_transforms_alike(model: TopicModel) -> None:
    vectorizer, nmf = model.to_sklearn()
    W = model.transform(TEXTS)
    np.testing.assert_allclose(nmf.transform(vectorizer.transform(TEXTS)), W, atol=1e-5)
    # What a machine without this package makes of the pickles.
    code = (
        "import sys, pickle; sys.modules['nmf_dask'] = None; v, n = pickle.load(sys.stdin.buffer); "
        f"print(n.transform(v.transform({TEXTS!r})).tolist())"
    )
    given: Any = pickle.dumps((vectorizer, nmf))
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, check=True)
    np.testing.assert_allclose(np.array(eval(done.stdout)), W, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of pyLDAvis and what it imports
def test_pyldavis_accepts_it(model: TopicModel) -> None:
    import pyLDAvis

    given = model.to_pyldavis()
    np.testing.assert_allclose(given["doc_topic_dists"].sum(axis=1), 1)
    assert len(given["doc_lengths"]) == 40  # the document that says nothing is left out
    prepared = pyLDAvis.prepare(**given, n_jobs=1, mds="pcoa")
    coordinates = prepared.topic_coordinates
    assert len(coordinates) == 2
    shares = model.topic_info()["share"].to_numpy()
    np.testing.assert_allclose(sorted(coordinates["Freq"]), sorted(100 * shares), rtol=0.02)
    assert "star" in pyLDAvis.prepared_data_to_html(prepared)
