"""A report as its reader has it: in Chromium, with mouse and keyboard, and nothing that leaves the page."""

import datetime
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nmf_dask
from nmf_dask.config import Settings
from nmf_dask.observer import Pass
from nmf_dask.store import ModelFolder, convergence_table, h_table, w_table
from nmf_dask.vocabulary import Vocabulary
from tests.browser import Browser, chromium
from tests.small_corpora import run_command
from tests.small_models import FIRST, run_json

# What a corpus may hold that a page must not run: in text, ids, labels and, as its pattern finds them, terms.
EVIL = "</script><script>window.ran=1</script><img src=http://127.0.0.1:9/x onerror=window.ran=2>"
SUBJECTS = (
    ["orbit", "launch", "moon", "rocket", "<script>window.ran=3</script>"],
    ["goalie", "hockey", "puck", "season", "'\"><img/src=x/onerror=window.ran=4>"],
    ["bible", "church", "faith", "prayer", "gospel"],
)
TERMS = "[...document.querySelectorAll('#terms tbody button')].map(one => one.textContent)"
SAID = "document.getElementById('said').textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium() is None:
        pytest.skip("chromium is not installed")
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """Of a real fit, with texts, dates, and a label, all of them hostile."""
    folder, random = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    rows = range(150)
    table = {
        "key": [f"{row}{EVIL}" for row in rows],
        "text": [
            " ".join(random.choice(SUBJECTS[row % 3], 10, p=[0.4, 0.3, 0.1, 0.1, 0.1])) + EVIL for row in rows
        ],
        "label": [f"{row % 3}{EVIL}" for row in rows],
        "day": [datetime.date(2020 + row % 3, 1 + row % 12, 1) for row in rows],
    }
    (folder / "c").mkdir()
    pq.write_table(pa.table(table), folder / "c" / "0.parquet")
    done = run_command(
        "fit", "--input", folder / "c", "--output", folder / "m", "--id-column", "key", "--keep", "label,day", "-k", 3,
        "--workers", 1, "-q", "--set", r"vectorizer.token_pattern=\S+",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = run_command("report", folder / "m", "--input", folder / "c", "--output", folder / "report.html")
    assert done.returncode == 0, done.stderr
    return folder / "report.html"


@pytest.fixture
def opened(browser, page):
    """The page, open; afterwards, nothing went wrong in it and nothing left it."""
    browser.open(page)
    yield browser
    assert browser.errors == []
    assert browser.requests == [page.as_uri()]


def test_a_click_on_a_topic_changes_the_bars(opened):
    seen = []
    for topic in range(3):
        opened.click(f"#circle-{topic}")
        assert f"Topic #{topic} " in opened.run(SAID)
        assert opened.run("[...document.querySelectorAll('[aria-selected=true]')].map(c => c.id)") == [
            f"circle-{topic}"
        ]
        seen.append(opened.run(TERMS)[0])
    assert {word for words in SUBJECTS for word in words} > set(seen)
    assert len(set(seen)) == 3


def test_the_slider_orders_terms_by_relevance(opened):
    """As the formula has it, of the data that the page holds; by the keys of the keyboard."""
    data = opened.run("JSON.parse(document.getElementById('data').textContent)")
    opened.click("#circle-0")
    opened.run("document.getElementById('lambda').focus()")
    orders = []
    for key, lambda_ in (("Home", 0.0), ("ArrowRight", 0.1), ("End", 1.0)):
        opened.press(key)
        topic = data["topics"][0]
        value = [
            np.log(p) - (1 - lambda_) * np.log(data["p"][j])
            for p, j in zip(topic["p"], topic["terms"], strict=True)
        ]
        due = [data["terms"][topic["terms"][i]] for i in np.argsort(-np.array(value), kind="stable")[:30]]
        assert opened.run(TERMS) == due
        assert opened.run("document.getElementById('lambda-value').textContent") == f"{lambda_:.1f}"
        orders.append(due)
    assert orders[0] != orders[2]


def test_keys_alone_reach_topics_terms_and_their_contexts(opened):
    opened.run("document.getElementById('map').focus()")
    opened.press("Home")
    first = opened.run(SAID)
    opened.press("ArrowRight")
    assert opened.run(SAID) != first
    assert opened.run("document.getElementById('map').getAttribute('aria-activedescendant')") == opened.run(
        "document.querySelector('circle[aria-selected=true]').id"
    )
    opened.run("document.getElementById('topic').focus()")
    opened.press("Home")
    assert opened.run(SAID) == first
    word = opened.run(TERMS)[1]
    opened.run("document.querySelectorAll('#terms tbody button')[1].focus()")
    opened.press("Enter")
    assert opened.run("document.activeElement.textContent") == word
    rows = opened.run(
        "[...document.querySelectorAll('#context tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    texts = opened.run("[...document.querySelectorAll('#documents .text')].map(one => one.textContent)")
    assert rows
    for number, before, marked, after in rows:
        assert marked.lower() == word
        assert (
            f"{before.removeprefix('…')}{marked}{after.removesuffix('…')}"
            in texts[int(number.rstrip(".")) - 1]
        )


def test_topics_are_found_by_a_term(opened):
    """As it is typed: the list holds those that have such a term, the map shows the others pale."""
    options = "[...document.querySelectorAll('#topic option')].map(o => o.value)"
    everyone = opened.run(options)
    opened.run("document.getElementById('find').focus()")
    opened.type("RAYE")
    assert opened.run("document.getElementById('found').textContent") == "1 of 3 topics"
    (found,) = opened.run(options)
    pale = opened.run("[...document.querySelectorAll('#map circle.off')].map(c => c.id)")
    assert sorted(pale) == sorted(f"circle-{one}" for one in everyone if one != found)
    opened.run("document.getElementById('topic').focus()")
    opened.press("Home")
    assert f"Topic #{found} " in opened.run(SAID)
    assert "prayer" in opened.run(TERMS)
    opened.run("document.getElementById('find').select()")
    opened.type("no such")
    assert opened.run(options) == []
    opened.run(
        "(f => { f.value = ''; f.dispatchEvent(new Event('input')); })(document.getElementById('find'))"
    )
    assert opened.run(options) == everyone
    assert opened.run("document.querySelectorAll('#map circle.off').length") == 0


def test_a_screen_reader_finds_names_for_all_that_can_be_reached(opened):
    """By the tree that the browser gives to one: no control without a name, and topics as options of a list."""
    nodes = opened.call("Accessibility.getFullAXTree")["nodes"]
    roles = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and "role" in node
    ]
    controls = [
        one
        for one in roles
        if one[0] in ("button", "slider", "listbox", "option", "image", "DisclosureTriangle")
    ]
    assert controls
    assert [one for one in controls if not one[1].strip()] == []
    assert ("listbox", "Map of the topics") in roles
    assert sum(role == "option" for role, _ in roles) == 6  # three on the map, three in the list
    assert any(role == "slider" and name.startswith("Relevance") for role, name in roles)


def test_what_a_corpus_holds_is_text(opened):
    """Ids, labels, terms and texts that are HTML stand there as they are, and nothing of them runs."""
    terms = []
    for topic in range(3):
        opened.click(f"#circle-{topic}")
        terms += opened.run(TERMS)
    assert {SUBJECTS[0][-1], SUBJECTS[1][-1]} < set(terms)
    assert opened.run("window.ran === undefined")
    assert opened.run("document.images.length") == 0
    assert opened.run("document.scripts.length") == 2
    assert EVIL in opened.run("document.getElementById('documents').textContent")
    assert EVIL in opened.run("document.getElementById('groups').textContent")


def test_over_time_and_by_label_are_those_of_the_topic(opened):
    """The words decide the subject, and every document of a label is of one."""
    for topic in range(3):
        opened.click(f"#circle-{topic}")
        rows = opened.run("[...document.querySelectorAll('#groups section')].map(s => s.textContent)")
        assert len(rows) == 2
        assert f"topic #{topic} over time (day)" in rows[0]
        assert "2020-01" in rows[0]
        assert f"topic #{topic} by label" in rows[1]


ROWS = """[...document.querySelectorAll('#all-groups table')].map(table => [...table.tBodies[0].rows].map(row => ({
    name: row.cells[0].textContent, most: row.cells[2].textContent,
    shades: (c => [...c.getContext('2d').getImageData(0, 0, c.width, 1).data].filter((_, i) => i % 4 === 3))(
        row.querySelector('canvas'))})))"""
MARKED = """[...document.querySelectorAll('#all-groups table')].map(table =>
    [...table.querySelectorAll('tr.selected')].map(row => row.textContent.split(' ')[0]))"""


def test_all_topics_over_time_and_by_label_at_once(opened):
    """Each row shades its own shares, and says where they are largest; the selected one is marked in both tables."""
    groups = opened.run("JSON.parse(document.getElementById('data').textContent)")["groups"]
    order = [
        int(one) for one in opened.run("[...document.querySelectorAll('#topic option')].map(o => o.value)")
    ]
    tables = opened.run(ROWS)
    assert len(tables) == len(groups) == 2
    for group, rows in zip(groups, tables, strict=True):
        shares = [[one or 0.0 for one in row] for row in group["share"]]  # null: a month without documents
        most = max(max(one) for one in shares)
        for topic, row in zip(order, rows, strict=True):
            share = shares[topic]
            assert row["name"].startswith(f"#{topic} ")
            np.testing.assert_allclose(row["shades"], 255 * np.sqrt(np.array(share) / most), atol=2)
            assert row["most"].endswith(f" in {group['names'][int(np.argmax(share))]}")
    assert EVIL in tables[1][0]["most"]
    opened.click("#all-groups [data-topic='1']")
    assert "Topic #1 " in opened.run(SAID)
    for key, topic in (("Home", order[0]), ("ArrowDown", order[1]), ("End", order[2]), ("ArrowUp", order[1])):
        opened.press(key)
        assert f"Topic #{topic} " in opened.run(SAID)
        assert opened.run(MARKED) == [[f"#{topic}"]] * 2
        assert opened.run("document.activeElement.dataset.topic") == str(topic)
        # One stop a table for the key of tabs, whatever k is.
        assert opened.run("document.querySelectorAll('#all-groups [tabindex=\"0\"]').length") == 2


LABELS = """[...document.querySelectorAll('#map g text')].map(t => (b => [t.textContent, b.x, b.y, b.width, b.height])(
    t.getBBox()))"""


def overlapping(labels: list[list]) -> list[tuple[str, str]]:
    """Pairs of labels of which one stands on the other, by more than a pixel."""
    return [
        (one[0], other[0])
        for n, one in enumerate(labels)
        for other in labels[:n]
        if all(one[i] + 1 < other[i] + other[i + 2] and other[i] + 1 < one[i] + one[i + 2] for i in (1, 2))
    ]


def test_topics_on_the_map_are_named_and_no_name_stands_on_another(opened):
    labels = opened.run(LABELS)
    assert {"0", "1", "2"} < {one[0] for one in labels}
    assert {one[0] for one in labels} & {word for words in SUBJECTS for word in words}
    assert overlapping(labels) == []


def test_a_picture_is_kept(opened, page):
    """Beside the page, in the folder that pytest keeps of its last runs."""
    opened.screenshot(page.with_suffix(".png"))
    assert page.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert page.with_suffix(".png").stat().st_size > 20_000


def large_model(folder: Path, k: int, m: int) -> ModelFolder:
    """A run of k topics with weights in 4,000 of m terms each, and 2,000 documents over ten years, without a fit."""
    random = np.random.default_rng(0)
    H, W = np.zeros((k, m), np.float32), np.zeros((2000, k), np.float32)
    for row in H:
        row[random.integers(0, m, 4000)] = random.pareto(1.5, 4000)
    for row in W:
        row[random.integers(0, k, 8)] = random.random(8)
    frequency = np.sort(random.integers(2, 10**6, m))[::-1].copy()
    words = Vocabulary(
        np.arange(m),
        pa.array([f"term{j:06d}" for j in range(m)]),
        frequency,
        np.ones(m),
        np.ones(m, np.float32),
        10**7,
    )
    run = ModelFolder(str(folder)).run(FIRST)
    ids = pa.array([f"document {row:08d}" for row in range(len(W))])
    kept = pa.table(
        {
            "day": pa.array(np.datetime64("2015-01-01") + np.arange(len(W)) * 2),
            "label": [f"label {row % 60}" for row in range(len(W))],
        }
    )
    run.w_part(0).write_parquet(w_table(ids, "doc_id", W, np.ones(len(W), bool), kept))
    table = h_table(words, H)
    for part, start in enumerate(range(0, m, 25_000)):
        run.h_part(part).write_parquet(table.slice(start, 25_000))
    run.convergence.write_parquet(
        convergence_table([Pass(one, 2.0 - one / 100, 0.1, 1) for one in range(1, 51)])
    )
    told = {"n_documents": len(W), "n_features": m}
    told["topics"] = [
        {"topic": t, "share": float(one), "n_documents": 1} for t, one in enumerate(W.sum(0) / W.sum())
    ]
    run.write_run(run_json(Settings.model_validate({"model": {"n_components": k}}), **told))
    run.commit(n_w_parts=1)
    return ModelFolder(str(folder))


def test_five_hundred_topics_of_a_hundred_thousand_terms_open_at_once(browser, tmp_path, monkeypatch):
    """With an excerpt of full length for each document, as --input would put it there."""
    monkeypatch.setattr(
        "nmf_dask.reporting.excerpts.texts_of",
        lambda model, inputs, wanted, n: {one.row: "some words and term000001 " * 100 for one in wanted},
    )
    file = tmp_path / "report.html"
    nmf_dask.report(large_model(tmp_path / "m", 500, 100_000).uri, str(file), "corpus")
    assert file.stat().st_size < 15e6
    seconds = browser.open(file)
    assert browser.run("document.querySelectorAll('#topic option').length") == 500
    metrics = {one["name"]: one["value"] for one in browser.call("Performance.getMetrics")["metrics"]}
    # What the browser itself spends on the page: the clock on the wall counts what other processes do, too.
    print(json.dumps({"bytes": file.stat().st_size, "seconds": seconds, "busy": metrics["TaskDuration"]}))
    assert metrics["ScriptDuration"] + metrics["LayoutDuration"] + metrics["RecalcStyleDuration"] < 3.0
    before = browser.run(TERMS)
    browser.run("document.getElementById('map').focus()")
    browser.press("ArrowRight")
    assert browser.run(TERMS) != before
    assert browser.errors == []
    assert browser.requests == [file.as_uri()]
