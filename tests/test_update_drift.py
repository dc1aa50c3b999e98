"""Updates of corpora that drift: as good on what is newest as a fit from scratch, and what became of topics is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmf_dask import TopicModel, fit, update
from nmf_dask.comparison import compare
from tests.corpora import corpus_folder
from tests.drifting import Drift, arxiv_drift, generated_drift, held_out_loss, write_period
from tests.small_corpora import settings_of


def followed(
    tmp_path: Path, drift: Drift, history: str, model: dict[str, Any]
) -> tuple[TopicModel, TopicModel, TopicModel, dict[str, Any], dict[str, Any]]:
    """The model of the first period, that model updated with each of the others, one of all; two run.json."""
    corpus = tmp_path / "corpus"
    write_period(corpus, 0, drift.periods[0])
    settings = settings_of(corpus, tmp_path / "m", model=model, update={"history": history})
    first = fit(settings)
    for number, texts in enumerate(drift.periods[1:], 1):
        write_period(corpus, number, texts)
        last = update(settings)
        assert last.run["n_documents"] == len(texts)
    whole = fit(settings_of(corpus, tmp_path / "whole", model=model))
    models = [TopicModel.load(one.uri) for one in (first, last, whole)]
    assert models[1].vocabulary.bucket.tolist() == models[2].vocabulary.bucket.tolist()
    assert np.array_equal(models[1].vocabulary.idf, models[2].vocabulary.idf)
    return models[0], models[1], models[2], last.run, whole.run


@pytest.mark.parametrize("history", ["keep", "discount=0.5"])
@pytest.mark.parametrize("beta_loss", ["frobenius", "kullback-leibler"])
def test_the_newest_documents_of_a_generated_drift(tmp_path, beta_loss, history):
    drift = generated_drift()
    first, last, whole, _, _ = followed(tmp_path, drift, history, {"n_components": 5, "beta_loss": beta_loss})
    stale, updated, scratch = (held_out_loss(one, drift.held_out, whole) for one in (first, last, whole))
    assert updated <= 1.01 * scratch
    assert stale > 1.02 * scratch, "the corpus does not drift: an update that does nothing would pass"


@pytest.mark.parametrize("beta_loss", ["frobenius", "kullback-leibler"])
def test_arxiv_by_year(tmp_path, beta_loss):
    """The demo corpus; `tests/benchmarks/update.py` has the large one, and the times.

    What takes the time is counted here, since a busy machine does not change it: entries that are made of text, and
    entries that passes visit.
    """
    drift = arxiv_drift(corpus_folder("arxiv-abstracts-demo"), 2018, 2)
    model = {"n_components": 14, "beta_loss": beta_loss}
    _, last, whole, last_run, whole_run = followed(tmp_path, drift, "keep", model)
    updated, scratch = (held_out_loss(one, drift.held_out, whole) for one in (last, whole))
    assert updated <= 1.01 * scratch
    assert 5 * last_run["nnz"] <= whole_run["nnz"]
    assert 5 * last_run["nnz"] * last_run["n_iter"] <= whole_run["nnz"] * whole_run["n_iter"]


def test_topics_that_are_new_or_gone_are_told(tmp_path):
    """A subject ends and another begins: with what was before forgotten, one topic's number passes to the other."""
    random = np.random.default_rng(0)
    subjects = {name: [f"{name}{i}" for i in range(20)] for name in ("old", "stays", "holds", "young")}

    def texts(*names: str, n: int = 200) -> list[str]:
        return [" ".join(random.choice(subjects[names[i % len(names)]], 15)) for i in range(n)]

    corpus = tmp_path / "corpus"
    write_period(corpus, 0, texts("old", "stays", "holds"))
    settings = settings_of(corpus, tmp_path / "m", model={"n_components": 3})
    base = fit(settings)
    before = TopicModel.load(base.uri)
    named = {topic.terms[0][0].rstrip("0123456789"): topic.topic for topic in before.topics(1)}
    assert set(named) == {"old", "stays", "holds"}

    write_period(corpus, 1, texts("stays", "holds"))
    kept = update(settings)
    assert kept.run["updated_from"]["topics_gone"] == [named["old"]]
    assert kept.run["updated_from"]["topics_new"] == []
    model = TopicModel.load(kept.uri)
    assert model.topics(1)[named["old"]].terms[0][0].startswith("old")  # its terms are remembered
    moved = compare(model, before)
    assert [one.state for one in moved].count("gone") == 1
    assert moved[named["old"]].state == "gone"
    assert moved[named["stays"]].similarity > 0.9

    write_period(corpus, 2, texts("young", "stays", "holds", n=300))
    forgot = update(
        settings_of(corpus, tmp_path / "m", model={"n_components": 3}, update={"history": "forget"})
    )
    assert forgot.run["updated_from"]["topics_new"] == [named["old"]]
    assert forgot.run["updated_from"]["topics_gone"] == []
    model = TopicModel.load(forgot.uri)
    assert model.topics(1)[named["old"]].terms[0][0].startswith("young")
    [one] = [one for one in compare(model, before) if one.state == "new"]
    assert one.now.topic == named["old"]
    assert all(term.startswith("young") for term in one.terms_in)
    assert all(term.startswith("old") for term in one.terms_out)
    assert len(one.terms_in) == len(one.terms_out) == 10
