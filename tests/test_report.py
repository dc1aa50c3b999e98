"""The numbers behind a report, each beside another way to get it, and how the command fails."""

import datetime
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.spatial.distance import pdist, squareform
from sklearn.feature_extraction.text import CountVectorizer

import nmf_dask
from nmf_dask.cli import main
from nmf_dask.config import Settings, VectorizerSettings
from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.model import TopicModel
from nmf_dask.reporting import documents, geometry
from nmf_dask.reporting.documents import ByDate, overview
from nmf_dask.reporting.excerpts import EXCERPT, Marker, _places
from nmf_dask.reporting.page import embedded
from nmf_dask.reporting.report import _doubtful_topics, _over_time
from nmf_dask.store import Folder, ModelFolder
from tests.small_corpora import run_command
from tests.small_models import FIRST, first_and_second, write_run

RANDOM = np.random.default_rng(0)
SUBJECTS = (
    ["orbit", "launch", "moon", "rocket", "shuttle"],
    ["goalie", "hockey", "puck", "season", "coach"],
    ["bible", "church", "faith", "prayer", "gospel"],
)


def data_of(page: str | bytes) -> dict:
    """What the script of a page draws."""
    text = page.decode() if isinstance(page, bytes) else page
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """240 documents of a subject each, with a label, a date and a time, in two files; a third of the days are null."""
    folder = tmp_path_factory.mktemp("corpus")
    for part in range(2):
        rows = range(120)
        day = [None if row % 3 == 2 else datetime.date(2024, 1 + row % 12, 1 + part) for row in rows]
        table = {
            "key": [f"{part}/{row}" for row in rows],
            "text": [" ".join(RANDOM.choice(SUBJECTS[row % 3], 12)) for row in rows],
            "label": [f"subject {row % 3}" for row in rows],
            "day": pa.array(day, pa.date32()),
            "at": pa.array(
                [datetime.datetime(2020 + row % 5, 7, 1) for row in rows], pa.timestamp("us", "UTC")
            ),
        }
        pq.write_table(pa.table(table), folder / f"{part}.parquet", row_group_size=50)
    return folder


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, corpus) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    done = run_command(
        "fit", "--input", corpus, "--output", folder, "--id-column", "key", "--keep", "label,day,at", "-k", 3, "-q",
        "--workers", 1, "--stop-words", "coach,the",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


class TestGeometry:
    H = (RANDOM.random((6, 40)) ** 4 * (RANDOM.random((6, 40)) < 0.7)).astype(np.float32)

    def test_terms_are_the_most_relevant_ones_at_every_stop_of_the_slider(self):
        """The formula written out in LDAvis's own terms: λ log φ + (1 − λ) log lift."""
        shares = np.array([0.3, 0.1, 0.2, 0.2, 0.1, 0.1])
        phi = self.H / self.H.sum(axis=1, keepdims=True)
        p = geometry.term_probabilities(self.H, shares)
        np.testing.assert_allclose(p, shares @ phi, rtol=1e-5)
        for topic, row in enumerate(self.H):
            due = set()
            with np.errstate(divide="ignore", invalid="ignore"):
                for lambda_ in geometry.LAMBDAS:
                    value = lambda_ * np.log(phi[topic]) + (1 - lambda_) * np.log(phi[topic] / (shares @ phi))
                    due |= {int(j) for j in np.argsort(-value)[:5] if row[j] > 0}
            assert geometry.relevant_terms(row, p, 5).tolist() == sorted(due)

    def test_distances_are_hellinger_and_a_dead_topic_has_none(self):
        H = np.vstack([self.H, np.zeros((1, 40), np.float32)])
        root = np.sqrt(self.H / self.H.sum(axis=1, keepdims=True, dtype=np.float64))
        found = geometry.distances(H)
        np.testing.assert_allclose(found[:6, :6], squareform(pdist(root)) / np.sqrt(2), atol=1e-6)
        assert np.isnan(found[6]).all()
        assert np.isnan(geometry.placed(found)[6]).all()

    @pytest.mark.parametrize("n", [1, 2, 3, 20])
    def test_points_of_a_plane_are_put_back_in_their_distances(self, n):
        due = squareform(pdist(RANDOM.random((n, 2)))) if n > 1 else np.zeros((1, 1))
        found = geometry.placed(due)
        assert found.shape == (n, 2)
        np.testing.assert_allclose(squareform(pdist(found)) if n > 1 else due, due, atol=1e-9)

    def test_topics_that_are_equally_far_apart_do_not_lie_on_one_another(self):
        """As far as possible from what classical scaling makes of them: all but three of them on one spot."""
        due = np.ones((12, 12)) - np.eye(12)
        found = pdist(geometry.placed(due))
        assert found.min() > 0.2
        first = pdist(geometry._classical(due))
        assert np.square(found - 1).sum() < 0.7 * np.square(first - 1).sum()

    def test_near_duplicates_are_found_and_no_others(self):
        H = np.eye(4, 30, dtype=np.float32)
        H = np.vstack([H, 3 * H[2] + 0.5 * H[1], np.zeros((1, 30), np.float32)])
        assert [(t, u) for t, u, _ in geometry.near_duplicates(H)] == [(2, 4)]
        assert geometry.near_duplicates(H)[0][2] == pytest.approx(3 / np.sqrt(9.25))


class TestOnePassOverW:
    def test_equals_the_library_and_pandas(self, fitted, monkeypatch):
        """In slices of 7 rows: the typical documents of `top_documents`, and groups that pandas sums in memory."""
        monkeypatch.setattr(documents, "SLICE_ROWS", 7)
        model = TopicModel.load(str(fitted))
        sums = model.H.sum(axis=1, dtype=np.float64)
        told = overview(model.W_parts(), sums, 4)
        assert (told.n_documents, told.n_without_topic, told.id_name) == (240, 0, "key")
        for topic in range(3):
            due = model.top_documents(topic, 4)
            assert [one.id for one in told.typical[topic]] == due["key"].to_pylist()
            np.testing.assert_allclose([one.weight for one in told.typical[topic]], due["weight"].to_numpy())
        W = model.to_pandas("W")
        explained = np.stack(W["weights"].to_list()) * sums
        assert [one.name for one in told.labels] == ["label"]
        assert [(one.name, one.n_without) for one in told.dates] == [("day", 80), ("at", 0)]
        for label, found in told.labels[0].sums.items():
            np.testing.assert_allclose(
                found, explained[(W["label"] == label).to_numpy()].sum(axis=0), rtol=1e-6
            )
        days, years = (one.shown() for one in told.dates)
        assert days.step == "M"  # from January to December: 336 days are too many
        for when, found in days.sums.items():
            there = (W["day"].astype(str).str[:7] == days.label(when)).to_numpy()
            np.testing.assert_allclose(found, explained[there].sum(axis=0), rtol=1e-6)
        # One day a year: the years tell them apart.
        assert [years.label(when) for when in years.sums] == [str(year) for year in range(2020, 2025)]

    def test_days_become_months_and_years_as_they_grow_many(self, monkeypatch):
        monkeypatch.setattr(documents, "MOST_DAYS", 50)
        dates = ByDate("day")
        days = np.arange("1969-01-01", "2030-01-01", dtype="M8[D]")
        for some in np.array_split(days, 10):
            dates.add(pa.array(some), np.ones((len(some), 2)))
        assert dates.step == "Y"
        assert {dates.label(when): float(total[0]) for when, total in dates.sums.items()} == {
            str(year): 366.0 if year % 4 == 0 else 365.0 for year in range(1969, 2030)
        }

    def test_time_without_a_document_takes_its_place(self):
        """Months that lack one, between others; but not the years up to one that is far off."""
        dates = ByDate("day")
        dates.add(
            pa.array(np.array(["2020-01-31", "2020-12-01"], "M8[D]")), np.array([[1.0, 3.0], [0.0, 2.0]])
        )
        shown = _over_time(dates)
        assert shown["names"] == [f"2020-{month:02d}" for month in range(1, 13)]
        assert shown["share"][0] == [0.25, *[None] * 10, 0.0]
        assert shown["share"][1] == [0.75, *[None] * 10, 1.0]
        dates.add(pa.array(np.array(["9999-12-31"], "M8[D]")), np.ones((1, 2)))
        assert _over_time(dates)["names"] == ["2020", "9999"]
        one = ByDate("day")
        one.add(pa.array(np.array(["2020-02-29"], "M8[D]")), np.ones((1, 2)))
        assert _over_time(one)["names"] == ["2020-02-29"]

    def test_a_column_of_too_many_values_is_no_label(self):
        column = documents.ByLabel("title")
        column.add(pa.array([f"title {row}" for row in range(1500)]), np.ones((1500, 2)))
        assert column.sums is None
        column.add(pa.array(["more"]), np.ones((1, 2)))
        assert column.sums is None


class TestMarks:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"ngram_range": (1, 2), "stop_words": ("of",)},
            {"lowercase": False},
            {"strip_accents": "unicode"},
            {"token_pattern": r"#(\w+)"},
        ],
    )
    def test_what_is_marked_is_what_scikit_learn_counts(self, options):
        """Each marked piece, analyzed alone, is its term; and no term that scikit-learn finds has no mark."""
        text = "The Café of #Stars, stars & STARS: a café #moon of moon-light's orbit <b>Stars</b>"
        analyze = CountVectorizer(
            **{**options, "stop_words": list(options.get("stop_words", ())) or None}
        ).build_analyzer()
        marker = Marker(VectorizerSettings(**options))
        for term in set(analyze(text)):
            marks = marker.marks(text, {term})
            assert marks, term
            for one in marks:
                piece = (
                    text[max(0, one.start - 1) : one.stop]
                    if "#" in str(options)
                    else text[one.start : one.stop]
                )
                assert term in analyze(piece)
                assert one.term == term

    def test_an_excerpt_is_where_the_terms_are(self):
        text = "nothing here " * 300 + "a rocket to the moon " + "nothing more " * 300
        excerpt, marks = Marker(VectorizerSettings()).excerpt(text, {"rocket": 1.0, "moon": 2.0})
        assert [excerpt[one.start : one.stop] for one in marks] == ["rocket", "moon"]
        assert excerpt[0] == excerpt[-1] == "…"
        assert {*excerpt.strip("…").split()} <= {*text.split()}  # whole words
        assert len(excerpt) <= EXCERPT + 2


def test_json_in_a_page_ends_no_script():
    text = "</script><script>alert(1)</script><!-- \u2028 &amp;"
    found = embedded({"text": text})
    assert not set("<>&\u2028") & set(found)
    assert json.loads(found) == {"text": text}


class TestTheCommand:
    def test_prints_where_the_page_is_and_tells_what_to_be_wary_of(self, tmp_path):
        """A model with a dead topic, an empty document and a bucket of two terms, written by hand."""
        model = ModelFolder(str(tmp_path / "m"))
        told = {"n_empty_documents": 1, "collision_rate": 0.1, "dead_topics": [2], "stop_reason": "max_iter"}
        write_run(model.run(FIRST), other=told)
        done = run_command("report", tmp_path / "m", "--output", tmp_path / "new" / "page.html")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{tmp_path / 'new' / 'page.html'}\n"
        page = (tmp_path / "new" / "page.html").read_text()
        for due in (
            "Empty documents, which hold none of the selected terms: 1.",
            "10.00%",
            "quark (50%)",
            "documents: #2. Lower -k",
            "max_iter before",
        ):
            assert due in page
        assert "#0 and #1" not in page
        data = data_of(page)
        assert data["with_texts"] is False
        assert [[one["id"] for one in topic["documents"]] for topic in data["topics"]] == [
            ["d1", "d3"],
            ["d0", "d1"],
            ["d3"],
        ]
        assert data["topics"][2]["x"] is None

    def test_topics_that_are_nearly_the_same_are_named(self):
        H = np.eye(3, 6, dtype=np.float32) + np.array([[0], [0], [1]], np.float32) * np.eye(
            1, 6, 1, np.float32
        )
        model = SimpleNamespace(H=H[[0, 1, 2, 2]], run={}, topics=lambda n: [SimpleNamespace(share=0.25)] * 4)
        assert [one for one in _doubtful_topics(model) if "#2 and #3 (1.00)" in one]

    def test_what_is_no_model_and_what_was_changed_is_refused(self, tmp_path):
        assert main(["report", str(tmp_path), "--output", str(tmp_path / "r.html")]) == 65
        model = first_and_second(tmp_path / "m")
        part = Path(model.latest().w_part(1).uri)
        part.write_bytes(part.read_bytes()[:-1] + b"x")
        with pytest.raises(InputDataError, match=r"part-00001\.parquet is not what was written"):
            nmf_dask.report(model.uri, str(tmp_path / "r.html"))
        assert not (tmp_path / "r.html").exists()

    def test_a_page_that_stands_is_replaced_and_the_same_model_gives_the_same_page(self, fitted, tmp_path):
        pages = []
        for _ in range(2):
            nmf_dask.report(str(fitted), str(tmp_path / "r.html"))
            pages.append((tmp_path / "r.html").read_bytes())
        assert pages[0] == pages[1]

    def test_to_an_object_store(self, empty_bucket, tmp_path):
        empty_bucket("pages")
        first_and_second(tmp_path / "m")
        assert nmf_dask.report(str(tmp_path / "m"), "s3://pages/a/r.html") == "s3://pages/a/r.html"
        assert len(data_of(Folder("s3://pages/a/r.html").read_bytes())["topics"]) == 3


def write(file: Path, texts: list[str], **columns) -> None:
    pq.write_table(pa.table({**columns, "text": texts}), file)


def fit_of(folder: Path, **corpus) -> None:
    """A model of the file in the folder, beside it."""
    nmf_dask.fit(
        Settings(
            corpus={"input": str(folder / "c.parquet"), **corpus},
            vectorizer={"max_df": 1.0},
            model={"n_components": 3},
            output={"output": str(folder / "m")},
        )
    )


def test_topics_that_an_update_brought_nothing_of_keep_their_terms(tmp_path):
    write(tmp_path / "c.parquet", [" ".join(SUBJECTS[row % 3]) for row in range(30)])
    fit_of(tmp_path)
    write(tmp_path / "new.parquet", [" ".join(SUBJECTS[0])])
    model = str(tmp_path / "m")
    nmf_dask.update(
        Settings(
            corpus={"input": str(tmp_path / "new.parquet")},
            output={"output": model},
            update={"base": model},
        )
    )
    nmf_dask.report(model, str(tmp_path / "r.html"))
    page = (tmp_path / "r.html").read_text()
    data = data_of(page)
    terms = [{data["terms"][number] for number in topic["terms"]} for topic in data["topics"]]
    assert sorted(map(sorted, terms)) == sorted(map(sorted, SUBJECTS))
    quiet = [t for t, topic in enumerate(data["topics"]) if topic["share"] == 0]
    named = ", ".join(f"#{t}" for t in quiet)
    assert len(quiet) == 2
    assert f"Topics that none of the update&#x27;s documents has anything of: {named}." in page
    assert "Dead topics" not in page


class TestTexts:
    def test_typical_documents_have_their_own_texts(self, fitted, corpus, tmp_path):
        nmf_dask.report(str(fitted), str(tmp_path / "r.html"), str(corpus))
        data = data_of((tmp_path / "r.html").read_text())
        table = pq.read_table(corpus).to_pydict()
        due = dict(zip(table["key"], table["text"], strict=True))
        (labels,) = (one for one in data["groups"] if one["kind"] == "label")
        assert sorted(labels["names"]) == ["subject 0", "subject 1", "subject 2"]
        np.testing.assert_allclose(np.sum(labels["share"], axis=0), 1.0, atol=0.01)
        assert sorted(np.argmax(labels["share"], axis=1)) == [0, 1, 2]  # no word is of two subjects
        assert np.max(labels["share"], axis=1) == pytest.approx(1.0, abs=0.02)
        for topic in data["topics"]:
            for one in topic["documents"]:
                plain = "".join(part if isinstance(part, str) else part[0] for part in one["text"])
                assert plain == due[one["id"]]
                assert any(isinstance(part, list) for part in one["text"])
                for part, number in (part for part in one["text"] if isinstance(part, list)):
                    assert part == data["terms"][topic["terms"][number]] != "coach"

    def test_of_files_without_ids_and_with_a_filter_they_go_by_their_order(self, tmp_path):
        rows = [
            {"text": f"{SUBJECTS[row % 3][0]} number{row} {SUBJECTS[row % 3][1]}", "n": row}
            for row in range(60)
        ]
        (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        arguments = (
            "--input",
            tmp_path / "c.jsonl",
            "--output",
            tmp_path / "m",
            "--where",
            "n >= 20",
            "-k",
            3,
        )
        assert run_command("fit", *arguments, "--workers", 1, "--max-df", "1.0", "-q").returncode == 0
        nmf_dask.report(str(tmp_path / "m"), str(tmp_path / "r.html"), [str(tmp_path / "c.jsonl")])
        found = [
            one
            for topic in data_of((tmp_path / "r.html").read_text())["topics"]
            for one in topic["documents"]
        ]
        assert found
        for one in found:
            plain = "".join(part if isinstance(part, str) else part[0] for part in one["text"])
            assert f" number{int(one['id']) + 20} " in plain

    @pytest.mark.parametrize("type_", [pa.int64(), pa.string(), pa.string_view(), pa.binary()], ids=str)
    def test_ids_of_any_type_are_found(self, type_):
        values = (
            [1, 2, 3]
            if type_ == pa.int64()
            else [b"1", b"2", b"3"]
            if type_ == pa.binary()
            else ["1", "2", "3"]
        )
        ids = pa.chunked_array([pa.array(values[:2], type_), pa.array(values[2:], type_)])
        assert _places(ids, [values[2], values[0]]) == [0, 2]

    def test_of_documents_with_one_id_each_has_its_own_text(self, tmp_path):
        texts = [" ".join(RANDOM.choice(SUBJECTS[row % 3], 4 + row)) for row in range(30)]
        pq.write_table(
            pa.table({"key": [row // 10 for row in range(30)], "text": texts}), tmp_path / "c.parquet"
        )
        fit_of(tmp_path, id_column="key")
        nmf_dask.report(str(tmp_path / "m"), str(tmp_path / "r.html"), str(tmp_path / "c.parquet"))
        told = overview(TopicModel.load(str(tmp_path / "m")).W_parts(), np.ones(3), 5)
        for topic, due in zip(
            data_of((tmp_path / "r.html").read_text())["topics"], told.typical, strict=True
        ):
            assert len(due) == 5
            for one, document in zip(topic["documents"], due, strict=True):
                plain = "".join(part if isinstance(part, str) else part[0] for part in one["text"])
                assert (one["id"], plain) == (str(document.row // 10), texts[document.row])

    def test_times_that_python_has_not_are_ids_and_dates(self, tmp_path):
        """Those of a zone that this machine does not know, and of years beyond 9999."""
        texts = [f"number{row} " + " ".join(SUBJECTS[row % 3]) for row in range(30)]
        days = [86_400_000_000 * row + 5 for row in range(30)]
        far = pa.array([4 * 10**17 + day for day in days], pa.timestamp("us"))
        nowhere = pa.array(days, pa.timestamp("us", "Nowhere/Here"))
        for name, at in (("far", far), ("nowhere", nowhere)):
            place = tmp_path / name
            place.mkdir()
            write(place / "c.parquet", texts, at=at, day=nowhere)
            fit_of(place, id_column="at", keep=("day",))
            nmf_dask.report(str(place / "m"), str(place / "r.html"), str(place / "c.parquet"))
            data = data_of((place / "r.html").read_text())
            ids = at.cast(pa.timestamp("us", at.type.tz and "UTC")).cast(pa.string()).to_pylist()
            (group,) = data["groups"]
            assert (group["names"][0], group["names"][-1], len(group["names"])) == (
                "1970-01-01",
                "1970-01-30",
                30,
            )
            for one in (one for topic in data["topics"] for one in topic["documents"]):
                plain = "".join(part if isinstance(part, str) else part[0] for part in one["text"])
                assert one["id"] == ids[int(plain.split()[0].removeprefix("number"))]
            model = TopicModel.load(str(place / "m"))
            assert model.top_documents(0, 3)["at"].type == at.type

    def test_an_input_that_can_be_none_is_wrong_usage(self, fitted, tmp_path):
        with pytest.raises(ConfigurationError, match=r"input=\('',\): .* at least 1 character"):
            nmf_dask.report(str(fitted), str(tmp_path / "r.html"), "")

    def test_another_corpus_is_refused(self, fitted, tmp_path):
        pq.write_table(
            pa.table(
                {
                    "key": ["x"],
                    "text": ["orbit"],
                    "label": ["a"],
                    "day": [None],
                    "at": pa.array([None], pa.int64()),
                }
            ),
            tmp_path / "x.parquet",
        )
        with pytest.raises(InputDataError, match="is not the corpus of this run: it has no document '"):
            nmf_dask.report(str(fitted), str(tmp_path / "r.html"), str(tmp_path / "x.parquet"))
        assert not (tmp_path / "r.html").exists()
