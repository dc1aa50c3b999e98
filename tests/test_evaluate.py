"""`nmf-dask evaluate` end to end: gensim and SciPy say the same of what was written, wherever it runs."""

import csv
import io
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.optimize import nnls
from sklearn.metrics import normalized_mutual_info_score

from nmf_dask import Settings, TopicModel, evaluate, fit
from nmf_dask.corpus import open_corpus
from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.evaluation import WINDOWS
from nmf_dask.observer import Observer
from nmf_dask.pipeline import plan_evaluate
from nmf_dask.pipeline.evaluate import EvidenceTasks, gathered
from nmf_dask.tasks import SerialTasks
from tests.small_corpora import files_of, generated_texts, run_command, settings_of, write_corpus
from tests.test_evaluation import gensims
from tests.text_oracle import analyzer_options

TEXTS = [*generated_texts(240, length=40), None, "", "nothing that is known"]
LABELS = [None if i % 50 == 49 else i % 7 for i in range(len(TEXTS))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A corpus with labels, and two models of it: of another seed and k, the second."""
    made = tmp_path_factory.mktemp("evaluate")
    write_corpus(made / "corpus", TEXTS, 3)
    for part, low in zip(sorted((made / "corpus").iterdir()), (0, 81, 162), strict=True):
        table = pq.read_table(part)
        labels = pa.array(LABELS[low : low + len(table)], pa.int16()).dictionary_encode()
        lists = pa.array([[1]] * len(table))
        pq.write_table(
            table.append_column("label", labels).append_column("lists", lists), part, row_group_size=30
        )
    fit(settings_of(made / "corpus", made / "model"))
    fit(settings_of(made / "corpus", made / "kl", model={"beta_loss": "kullback-leibler", "n_components": 4}))
    return made


def job(folder: Path, **sections) -> Settings:
    asked = {"judged_model": str(folder / "model"), **sections.pop("evaluate", {})}
    return settings_of(folder / "corpus", folder / "unused", evaluate=asked, **sections)


def test_coherence_is_gensims_of_the_models_own_tokens(folder):
    result = evaluate(job(folder, evaluate={"n_judged_terms": 6, "held_out": False}))
    model = TopicModel.load(str(folder / "model"))
    topics = [[term for term, _ in topic.terms] for topic in model.topics(6)]
    assert result.topics["terms"].to_pylist() == topics
    for name in WINDOWS:
        expected = gensims(
            [text or "" for text in TEXTS], topics, name, analyzer_options(model.vectorizer_settings)
        )
        np.testing.assert_allclose(result.topics[name].to_numpy(), expected, rtol=0, atol=1e-9)
        assert result.told["overall"][name] == pytest.approx(np.mean(expected), abs=1e-9)
    assert result.told["n_documents"] == len(TEXTS)
    assert result.told["n_null_texts"] == 1
    assert "held_out" not in result.told


def halves(words):
    """Occurrences numbered by the first appearance of their terms, in turn to the one half and the other."""
    in_order = [word for word in dict.fromkeys(words) for _ in range(words.count(word))]
    return in_order[::2], in_order[1::2]


@pytest.mark.parametrize("name", ["model", "kl"])
def test_held_out_loss_written_out(folder, name):
    told = evaluate(job(folder, evaluate={"judged_model": str(folder / name)})).told["held_out"]
    model = TopicModel.load(str(folder / name))
    column = {term: j for j, term in enumerate(model.vocabulary.term.to_pylist())}
    H = model.H.astype(np.float64)

    def row(words):
        x = np.zeros(len(column))
        for word, n in Counter(words).items():
            if word in column:
                x[column[word]] = n * model.vocabulary.idf[column[word]]
        return x / (np.linalg.norm(x) or 1)

    pairs = [[row(half) for half in halves((text or "").split())] for text in TEXTS]
    first, second = np.array([pair for pair in pairs if pair[0].any() and pair[1].any()]).transpose(1, 0, 2)
    if name == "model":
        X = np.array([nnls(H.T, x)[0] for x in first]) @ H
        divergence, size = ((second - X) ** 2).sum() / 2, (second**2).sum() / 2
    else:
        W = np.full((len(first), len(H)), 0.1)
        for _ in range(2000):
            W *= (first / np.maximum(W @ H, 1e-30)) @ H.T / H.sum(axis=1)
        X, seen = np.maximum(W @ H, 1e-8), second > 0
        divergence = (second[seen] * np.log(second[seen] / X[seen])).sum() - second.sum() + (W @ H).sum()
        size = second.sum()
    assert told["n_documents"] == len(first) == 240
    assert told["loss"] == pytest.approx(divergence / size, rel=1e-4)
    assert told["reconstruction_err"] == pytest.approx(np.sqrt(2 * divergence), rel=1e-4)


def test_labels_and_another_run(folder):
    asked = {"label_column": "label", "compare": str(folder / "kl")}
    result = evaluate(job(folder, evaluate=asked))
    model = TopicModel.load(str(folder / "model"))
    W = model.transform(TEXTS)
    used = [i for i, label in enumerate(LABELS) if label is not None and W[i].any()]
    labels, topics = [LABELS[i] for i in used], W.argmax(axis=1)[used]
    told = result.told["labels"]
    assert told["names"] == [str(i) for i in range(7)]
    assert np.sum(told["documents_by_topic"]) == len(used) == len(TEXTS) - told["n_without"]
    assert told["documents_by_topic"][2][3] == np.sum((topics == 2) & (np.array(labels) == 3))
    expected = normalized_mutual_info_score(labels, topics)
    assert result.told["overall"]["nmi"] == pytest.approx(expected, abs=1e-12)
    assert sorted(x for x in result.topics["matched_topic"].to_pylist() if x is not None) == [0, 1, 2, 3]
    assert result.topics["stability"].null_count == 1
    itself = evaluate(job(folder, evaluate={"compare": str(folder / "model"), "held_out": False}))
    assert itself.told["overall"]["stability"] == pytest.approx(1)
    assert itself.topics["matched_topic"].to_pylist() == list(range(5))


def test_partitions_slices_and_workers_change_nothing(folder, monkeypatch):
    asked = {"label_column": "label"}
    whole = evaluate(job(folder, evaluate=asked))
    many = {"partition_bytes": 2000}
    workers = {"workers": 2, "threads_per_worker": 1}
    spread = evaluate(job(folder, evaluate=asked, corpus=many, cluster=workers))
    module = sys.modules[EvidenceTasks.__module__]  # the package has a function of that name
    monkeypatch.setattr(module, "SLICE_ROWS", 7)
    monkeypatch.setattr(module, "WAVE", 2)
    monkeypatch.setattr("nmf_dask.corpus.reading.MAX_BATCH_ROWS", 5)
    sliced = evaluate(job(folder, evaluate=asked, corpus=many))
    for other in (spread, sliced):
        assert other.topics.equals(whole.topics)
        assert other.told["labels"] == whole.told["labels"]
        assert other.told["held_out"]["loss"] == pytest.approx(whole.told["held_out"]["loss"], rel=1e-12)
    assert spread.told["held_out"]["n_documents"] == 240
    settings = job(folder, corpus=many)
    model, corpus = TopicModel.load(str(folder / "model")), open_corpus(settings.corpus)
    assert len(corpus.partitions) > 5
    make = EvidenceTasks(model.uri, ("text",), "label", 10, tuple(WINDOWS.values()), True)
    serial = gathered(SerialTasks(), Observer(), corpus.partitions, make, model.vectorizer_settings)
    assert serial.labels.keys() == {str(i) for i in range(7)}
    assert serial.loss()[1:] == pytest.approx(
        (serial.loss().size * whole.told["held_out"]["loss"], serial.loss().size), rel=1e-12
    )


def written_as(kind: str, source: Path, folder: Path) -> Path:
    """The corpus in files of another format, without what stands for a null text there."""
    table = pq.ParquetDataset(source).read(["doc_id", "text", "label"]).to_pandas()
    folder.mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(table)), 3)):
        rows = table.iloc[part]
        if kind == "jsonl.gz":
            rows.to_json(folder / f"{number}.jsonl.gz", orient="records", lines=True)
        elif kind == "lines":
            (folder / f"{number}.txt").write_text("".join(f"{one or ''}\n" for one in rows["text"]))
        else:
            rows.to_csv(folder / f"{number}.{kind}", index=False, sep="\t" if kind == "tsv" else ",")
    return folder


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl.gz", "lines"])
def test_other_formats_say_what_parquet_says(folder, tmp_path, kind):
    """A reader that lost, doubled or shifted a row, or labels beside the wrong texts, would be seen here."""
    before = files_of(folder)
    corpus = written_as(kind, folder / "corpus", tmp_path / "other")
    asked = {} if kind == "lines" else {"label_column": "label"}
    more = {"input": str(corpus), "id_column": None, "format": "lines" if kind == "lines" else "auto"}
    settings = job(folder, corpus=more, evaluate=asked)
    assert plan_evaluate(settings).estimated
    other, whole = evaluate(settings), evaluate(job(folder, evaluate=asked))
    assert other.topics.equals(whole.topics)
    assert other.told["n_documents"] == len(TEXTS)
    assert other.told["overall"] == pytest.approx(whole.told["overall"], rel=1e-12)
    assert other.told["n_empty_documents"] == whole.told["n_empty_documents"]
    if asked:
        names = [str(int(float(name))) for name in other.told["labels"]["names"]]
        assert names == whole.told["labels"]["names"]
        for key in ("documents_by_topic", "n_without"):
            assert other.told["labels"][key] == whole.told["labels"][key]
    assert files_of(folder) == before


def test_a_filter_leaves_documents(folder, tmp_path):
    """The same as of a corpus that holds no others."""
    table = pq.ParquetDataset(folder / "corpus").read(["doc_id", "text", "label"])
    kept = [label in (2, 3) for label in LABELS]
    (tmp_path / "some").mkdir()
    pq.write_table(table.filter(pa.array(kept)), tmp_path / "some" / "part.parquet")
    alone = evaluate(
        job(folder, corpus={"input": str(tmp_path / "some")}, evaluate={"label_column": "label"})
    )
    done = run_command(
        "evaluate", folder / "model", "--input", folder / "corpus", "--where", "label in (2, 3)",
        "--label-column", "label", "--format", "json", "--workers", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["n_documents"] == sum(kept)
    assert told["labels"] == alone.told["labels"]
    assert told["overall"] == pytest.approx(alone.told["overall"], rel=1e-12)
    with pytest.raises(InputDataError, match="no document of 3 files"):
        evaluate(job(folder, corpus={"where": "label == 3 and doc_id == 'd00000'"}))


def test_the_format_of_files_by_the_command(folder, tmp_path):
    """--format is that of the result; that of the corpus has another way in."""
    (tmp_path / "a.txt").write_text("w001 w002\nw003\n")
    arguments = ("evaluate", folder / "model", "--input", tmp_path / "a.txt", "--format", "json")
    for format_, n in (("text", 1), ("lines", 2)):
        done = run_command(*arguments, "--set", f"corpus.format={format_}")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["n_documents"] == n


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_an_empty_field_is_no_label(folder, tmp_path, kind):
    """As a null in Parquet."""
    comma = "," if kind == "csv" else "\t"
    rows = [f"{TEXTS[row]}{comma}{'ab '[row % 3].strip()}" for row in range(9)]
    (tmp_path / f"a.{kind}").write_text("\n".join([f"text{comma}group", *rows, ""]))
    corpus = {"input": str(tmp_path / f"a.{kind}"), "id_column": None}
    labels = evaluate(job(folder, corpus=corpus, evaluate={"label_column": "group"})).told["labels"]
    assert labels["names"] == ["a", "b"]
    assert labels["n_without"] == 3


def test_labels_that_a_csv_lacks(folder, tmp_path):
    (tmp_path / "a.csv").write_text("text,group\nw001 w002,a\n")
    settings = job(
        folder,
        corpus={"input": str(tmp_path / "a.csv"), "id_column": None},
        evaluate={"label_column": "gruop"},
    )
    for call in (evaluate, plan_evaluate):
        with pytest.raises(
            InputDataError, match=r"no column 'gruop'.*--label-column \(evaluate.label_column"
        ):
            call(settings)


def test_the_command(folder, tmp_path):
    before = files_of(folder)
    shown = run_command("evaluate", folder / "model", "--input", folder / "corpus", "--label-column", "label")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("NPMI")
    assert "left out of NMI" in shown.stderr
    table = tmp_path / "e.parquet"
    arguments = (
        "evaluate",
        folder / "model",
        "--input",
        folder / "corpus",
        "-n",
        5,
        "--compare",
        folder / "kl",
    )
    done = run_command(*arguments, "--output", table, "--log-format", "json", "--workers", 2)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for line in done.stderr.splitlines():
        json.loads(line)
    written = pq.read_table(table)
    assert written.to_pylist() == told["topics"]
    rest = json.loads(written.schema.metadata[b"nmf_dask.evaluation"])
    assert rest["overall"] == told["overall"]
    listed = run_command(*arguments, "--format", "csv", "--output", tmp_path / "e.json")
    rows = list(csv.DictReader(io.StringIO(listed.stdout)))
    assert [row["topic"] for row in rows] == ["all", "0", "1", "2", "3", "4"]
    assert float(rows[0]["c_v"]) == told["overall"]["c_v"]
    assert rows[1]["terms"].split() == told["topics"][0]["terms"]
    assert json.loads((tmp_path / "e.json").read_text())["topics"] == told["topics"]
    assert files_of(folder) == before


def test_a_job_file_another_corpus_and_the_plan(folder, tmp_path):
    other = write_corpus(tmp_path / "other", ["w001 w002 w003", "something else"])
    file = tmp_path / "job.toml"
    file.write_text(
        f"[corpus]\ninput = '{other}'\n[evaluate]\nheld_out = false\nwindow = 2\n[vectorizer]\nmin_df = 7\n"
    )
    planned = run_command("evaluate", folder / "model", file, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "1 files, 2 documents" in planned.stdout
    done = run_command("evaluate", folder / "model", file, "--format", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "top terms are not in this corpus" in done.stderr
    assert told["windows"]["c_v"] == {"words": 2, "n": 3}
    assert told["overall"]["c_npmi"] is None or -1 <= told["overall"]["c_npmi"] <= 1
    assert plan_evaluate(job(folder)).n_rows == len(TEXTS)
    # No more terms than there are.
    few, many = (plan_evaluate(job(folder, evaluate={"n_judged_terms": n})) for n in (10**3, 10**6))
    assert few.expected_worker == many.expected_worker


@pytest.mark.parametrize(
    ("sections", "error", "words"),
    [
        ({"evaluate": {"label_column": "labl"}}, InputDataError, "(evaluate.label_column)"),
        ({"evaluate": {"label_column": "lists"}}, InputDataError, "--label-column"),
        ({"evaluate": {"result_file": "here.csv"}}, ConfigurationError, "neither .json nor .parquet"),
        ({"evaluate": {"judged_model": "/nowhere/model"}}, InputDataError, "no model"),
        ({"evaluate": {"compare": "/nowhere/model"}}, InputDataError, "no model"),
        ({"corpus": {"text_column": "txt"}}, InputDataError, "(corpus.text_column)"),
        ({"cluster": {"memory_limit": "100MB", "workers": 1}}, ConfigurationError, "raise --memory-limit"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_starts(folder, sections, error, words):
    settings = job(folder, **sections)
    for call in (evaluate, plan_evaluate):
        with pytest.raises(error) as caught:
            call(settings)
        assert words in str(caught.value)


def test_an_output_among_the_documents_is_refused(folder):
    with pytest.raises(ConfigurationError, match="is in the input"):
        evaluate(job(folder, evaluate={"result_file": str(folder / "corpus" / "e.parquet")}))


def test_wrong_usage(folder):
    for arguments, words in [
        ((folder / "model", folder / "kl", "--input", "x"), "one model is asked for"),
        (("--input", "x"), "give MODEL"),
        ((folder / "model", "--input", "x", "--set", "model.tol=1"), "taken from the model"),
        ((folder / "model", "--input", "x", "-n", 1), "at least 2"),
    ]:
        refused = run_command("evaluate", *arguments)
        assert refused.returncode == 2
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr
