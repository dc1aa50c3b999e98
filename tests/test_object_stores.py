"""Whole commands whose input, output and staging are in an object store: what they ask of it, and what it can refuse.

The store is moto on the loopback; a proxy before it writes the requests down, and fails or refuses some.
"""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from nmf_dask import TopicModel, fit, object_stores, transform
from nmf_dask.config import Settings
from nmf_dask.corpus.locations import connect
from nmf_dask.errors import ConfigurationError, InputDataError, RetryableError
from nmf_dask.store import lock
from nmf_dask.store.folder import _file_system
from tests import object_store_proxy as answers
from tests.object_store_proxy import Answer, Request, StoreProxy, every_third, listings, store_proxy
from tests.small_corpora import (
    generated_texts,
    matrix_of,
    run_command,
    settings_of,
    wh_bytes,
)

BUCKET = "stores"
N_SMALL = 60
BIG = f"{BUCKET}/corpus/big.parquet"
KEY, SECRET, TOKEN = "AKIDNOTREALLYAKEY", "fake/secret+of-the-tests", "fake-session-token-of-the-tests"


@pytest.fixture(scope="module")
def proxy(s3_endpoint: str) -> Iterator[StoreProxy]:
    with store_proxy(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def through_the_proxy(empty_bucket, proxy: StoreProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process and those it starts speak to the store through the proxy, and with keys of their own."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.05)
    forget()
    proxy.taken()
    yield
    forget()


def forget() -> None:
    """What was built by another environment."""
    connect.cache_clear()
    _file_system.cache_clear()


@pytest.fixture(scope="module")
def direct(s3_endpoint: str) -> pafs.FileSystem:
    """The store itself: what it is asked is not written down."""
    return pafs.S3FileSystem(
        access_key="x", secret_key="x", region="us-east-1", scheme="http",
        endpoint_override=s3_endpoint.removeprefix("http://"), allow_bucket_creation=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def corpus(direct: pafs.FileSystem) -> str:
    """Sixty small files, and one whose other columns are large."""
    direct.create_dir(BUCKET)
    texts = generated_texts(10 * N_SMALL)
    for number in range(N_SMALL):
        low = 10 * number
        table = pa.table(
            {"doc_id": [f"d{low + row:05d}" for row in range(10)], "text": texts[low : low + 10]}
        )
        pq.write_table(table, f"{BUCKET}/corpus/part-{number:05d}.parquet", filesystem=direct)
    rows = 200
    noise = np.random.default_rng(0).bytes(rows * 20_000)
    table = pa.table(
        {
            "html": [noise[row * 20_000 : (row + 1) * 20_000] for row in range(rows)],
            "doc_id": [f"e{row:05d}" for row in range(rows)],
            "text": generated_texts(rows, seed=1),
            "pdf": [noise[row * 20_000 : (row + 1) * 20_000] for row in range(rows)],
        }
    )
    pq.write_table(table, BIG, filesystem=direct)
    return f"s3://{BUCKET}/corpus"


def job(corpus: str, output: str, **sections: Any) -> Settings:
    sections.setdefault("model", {"n_components": 4, "max_iter": 5})
    return settings_of(corpus, output, **sections)  # type: ignore[arg-type]


def folded(model: str, corpus: str, output: str, **keys: Any) -> Settings:
    return job(corpus, output, transform={"model": model, **keys})


def of_corpus(requests: list[Request], name: str = "") -> list[Request]:
    return [
        one for one in requests if one.path.startswith(f"/{BUCKET}/corpus/{name}") and one.method == "GET"
    ]


def assert_modest(requests: list[Request]) -> None:
    """No rename, no large folder listed twice, and for a small file one request to write it."""
    assert [one for one in requests if "x-amz-copy-source" in one.headers] == []
    assert [one for one in requests if "uploads" in one.query] == []
    assert {one.method for one in requests} <= {"GET", "HEAD", "PUT", "POST", "DELETE"}
    often = {prefix for prefix, times in listings(requests).items() if times > 1}
    # Their own top folder holds a few names, and is looked into again for the tickets of the lock.
    assert {
        prefix for prefix in often if prefix.endswith(("/W/", "/H/", "/corpus/", "/counts/", "/blocks/"))
    } == set()


@pytest.fixture(scope="module")
def few(direct: pafs.FileSystem, corpus: str) -> str:
    """Four of the small files: for what takes many requests."""
    for number in range(4):
        name = f"part-{number:05d}.parquet"
        direct.copy_file(f"{BUCKET}/corpus/{name}", f"{BUCKET}/few/{name}")
    return f"s3://{BUCKET}/few"


class Undisturbed(NamedTuple):
    """The jobs that tests disturb, as they come out on this machine's disk."""

    fit: bytes
    transform: bytes
    topics: str
    model: str


@pytest.fixture(scope="module")
def undisturbed(few: str, direct: pafs.FileSystem, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Made from a copy on disk; the model is put into the store."""
    folder = tmp_path_factory.mktemp("undisturbed")
    copied(direct, few, folder / "few")
    local = {name: str(folder / name) for name in ("few", "m", "w")}
    run = fit(job(local["few"], local["m"]))
    transform(folded(local["m"], local["few"], local["w"]))
    pafs.copy_files(local["m"], f"{BUCKET}/model", destination_filesystem=direct)
    return Undisturbed(
        wh_bytes(run.uri),
        weights_below(folder / "w"),
        str(TopicModel.load(local["m"]).topics()),
        f"s3://{BUCKET}/model",
    )


def weights_below(folder: Path) -> bytes:
    return b"".join(matrix_of(part).tobytes() for part in sorted((folder / "W").iterdir()))


def copied(direct: pafs.FileSystem, uri: str, folder: Path) -> Path:
    folder.mkdir()
    pafs.copy_files(uri.removeprefix("s3://"), str(folder), source_filesystem=direct)
    return folder


def test_a_fit_asks_for_what_it_needs_and_once(corpus: str, proxy: StoreProxy) -> None:
    result = fit(job(corpus, f"s3://{BUCKET}/modest"))
    requests = proxy.taken()
    assert_modest(requests)
    assert listings(requests)[f"{BUCKET}/corpus/"] == 1
    # Small files are read together, by few tasks; each is one request a stage, footer and rows at once.
    assert result.run["input"]["n_partitions"] <= 2
    assert len(result.run["input"]["files"]) == N_SMALL + 1
    small = Counter(one.path for one in of_corpus(requests, "part-"))
    assert len(small) == N_SMALL
    assert max(small.values()) <= 4  # plan; texts; ids, which are checked before the fit and written after it
    # Arrow looks at a file as often as it opens it. Nobody else does: the listing has told its size and time.
    looks = Counter(one.path for one in requests if one.method == "HEAD" and one.path in small)
    assert looks == small
    # Of a large one, the columns that count.
    size = int(pafs.FileSystem.from_uri(f"s3://{BIG}")[0].get_file_info(BIG).size)
    big = of_corpus(requests, "big")
    assert all(one.range is not None for one in big)
    assert sum(one.n_bytes for one in big) < size / 10
    assert max(one.n_bytes for one in big) < size / 20


def test_a_fit_that_has_finished_reads_footers_alone(corpus: str, proxy: StoreProxy) -> None:
    fit(job(corpus, f"s3://{BUCKET}/modest"))
    proxy.taken()
    assert fit(job(corpus, f"s3://{BUCKET}/modest")).finished_before
    requests = proxy.taken()
    assert_modest(requests)
    assert len(of_corpus(requests)) <= N_SMALL + 2
    assert [one for one in requests if one.method == "PUT"] == []


def test_a_transform_lists_once_and_takes_what_was_put_anew(
    corpus: str, undisturbed: Undisturbed, proxy: StoreProxy, direct: pafs.FileSystem
) -> None:
    """The time of an object is that of its last put: one that was rewritten, even by the same bytes, is noticed."""
    settings = folded(undisturbed.model, corpus, f"s3://{BUCKET}/daily", new_only=True)
    assert transform(settings).told["files_new"] == N_SMALL + 1
    first = proxy.taken()
    assert_modest(first)
    assert listings(first)[f"{BUCKET}/corpus/"] == 1
    # Plan, texts, ids; and the files are read by few tasks, which ask for some ahead.
    assert max(Counter(one.path for one in of_corpus(first, "part-")).values()) <= 3

    assert transform(settings).told["files_new"] == 0
    again = proxy.taken()
    assert_modest(again)
    assert [one for one in again if f"/{BUCKET}/corpus/part-" in one.path] == []  # the listing says it all

    name = f"{BUCKET}/corpus/part-00007.parquet"
    before = direct.get_file_info(name)
    content = direct.open_input_stream(name).read()
    time.sleep(1.1)  # moto tells times to the second
    with direct.open_output_stream(name) as stream:
        stream.write(content)
    assert direct.get_file_info(name).size == before.size
    told = transform(settings).told
    assert (told["files_new"], told["files_skipped"], told["partitions_skipped"]) == (1, N_SMALL, N_SMALL)
    third = proxy.taken()
    assert_modest(third)
    assert {one.path for one in of_corpus(third)} == {f"/{name}"}
    assert listings(third)[f"{BUCKET}/daily/W/"] == 1


@pytest.mark.parametrize(
    "answer",
    [answers.SLOW_DOWN, answers.INTERNAL, answers.TOO_MANY, answers.RESET],
    ids=["busy", "internal", "429", "reset"],
)
def test_every_third_request_fails_and_nothing_is_different(
    few: str,
    undisturbed: Undisturbed,
    proxy: StoreProxy,
    direct: pafs.FileSystem,
    tmp_path: Path,
    answer: Answer,
) -> None:
    place = f"s3://{BUCKET}/third-{answer.status}"
    with proxy.answering(every_third(answer)):
        run = fit(job(few, f"{place}/m", run={"scratch": f"{place}/scratch"}))
        transform(folded(f"{place}/m", few, f"{place}/w"))
        topics = TopicModel.load(f"{place}/m").topics()
    requests = proxy.taken()
    failed = sum(one.status == answer.status for one in requests)
    assert failed == len(requests) // 3 > 30
    assert wh_bytes(copied(direct, run.uri, tmp_path / "m")) == undisturbed.fit
    assert weights_below(copied(direct, f"{place}/w", tmp_path / "w")) == undisturbed.transform
    assert str(topics) == undisturbed.topics


def test_a_store_that_stays_busy_is_worth_another_run(
    few: str, proxy: StoreProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    with (
        proxy.answering(lambda *_: answers.SLOW_DOWN),
        pytest.raises(RetryableError, match=rf"{few}: the store is busy.* Run the same command again"),
    ):
        fit(job(few, f"s3://{BUCKET}/busy"))
    assert len(proxy.taken()) == 3
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "often")
    forget()
    with pytest.raises(ConfigurationError, match="AWS_MAX_ATTEMPTS is 'often'"):
        fit(job(few, f"s3://{BUCKET}/busy"))


def on(place: str, methods: str, answer: Answer, *, lists: bool = False) -> answers.Rule:
    """That answer to requests of these methods for keys below a place, or to those that list it."""

    def rule(method: str, path: str, query: dict[str, list[str]]) -> Answer | None:
        if lists:
            hit = "list-type" in query and query.get("prefix", [""])[0].startswith(place)
        else:
            hit = path.startswith(f"/{BUCKET}/{place}/") and method in methods.split()
        return answer if hit else None

    return rule


MOVED = Answer(301, "PermanentRedirect", "Use the endpoint.", (("x-amz-bucket-region", "eu-west-1"),))
ELSEWHERE = Answer(
    400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'eu-west-1'"
)
EXPIRED = Answer(400, "ExpiredToken", "The provided token has expired.")
UNKNOWN_KEY = Answer(403, "InvalidAccessKeyId", "The key you provided does not exist in our records.")
GRANT = "the credentials in the environment have no permission for that. Allow them {} in bucket stores"
REGION = r"bucket stores is in region eu-west-1. Write \?region=eu-west-1 behind the URI"


# What is refused, and what is said of it.
REFUSALS = {
    "input, list": (on("few", "", answers.DENIED, lists=True), f"at s3://stores/few: {GRANT.format('s3:ListBucket')}"),
    "input, head": (on("few", "HEAD", answers.DENIED), f"s3://stores/few.*: {GRANT.format('s3:GetObject')}"),
    "input, get": (on("few", "GET", answers.DENIED), f"s3://stores/few/part-.*: {GRANT.format('s3:GetObject')}"),
    "output, list": (on("out", "", answers.DENIED, lists=True), f"s3://stores/out/m: {GRANT.format('s3:ListBucket')}"),
    "output, put": (on("out", "PUT", answers.DENIED), f"s3://stores/out/m/LOCK.*: {GRANT.format('s3:PutObject')}"),
    "scratch, put": (on("scratch", "PUT", answers.DENIED), f"write s3://stores/scr.*: {GRANT.format('s3:PutObject')}"),
    "input moved": (on("few", "", MOVED, lists=True), "s3://stores/few: bucket stores is in another region"),
    "input elsewhere": (on("few", "", ELSEWHERE, lists=True), f"s3://stores/few: {REGION}"),
    "output elsewhere": (on("out", "PUT", ELSEWHERE), f"s3://stores/out/m/LOCK.*: {REGION}"),
    "input expired": (on("few", "", EXPIRED, lists=True), "s3://stores/few: the session token in .* has expired"),
    "input unexplained": (on("few", "HEAD", EXPIRED), "stores/few.*HTTP status 400.*token has expired or the region"),
    "output expired": (on("out", "PUT", EXPIRED), "s3://stores/out/m/LOCK.*: the session token in .* has expired"),
    "input unknown": (on("few", "", UNKNOWN_KEY, lists=True), "does not accept the credentials .*AWS_ACCESS_KEY_ID"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSALS)
def test_what_the_store_refuses_is_said_in_full(few: str, proxy: StoreProxy, what: str) -> None:
    rule, said = REFUSALS[what]
    settings = job(few, f"s3://{BUCKET}/out/m", run={"scratch": f"s3://{BUCKET}/scratch"})
    with proxy.answering(rule), pytest.raises(InputDataError, match=said) as caught:
        fit(settings)
    assert SECRET not in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_model_that_may_not_be_read(few: str, undisturbed: Undisturbed, proxy: StoreProxy) -> None:
    said = "read s3://stores/model/.*: " + GRANT.format("s3:GetObject")
    with proxy.answering(on("model", "HEAD", answers.DENIED)):
        for work in (
            lambda: TopicModel.load(undisturbed.model),
            lambda: transform(folded(undisturbed.model, few, f"s3://{BUCKET}/out/w")),
        ):
            with pytest.raises(InputDataError, match=said):
                work()


def test_small_files_that_are_found_but_not_handed_out(
    undisturbed: Undisturbed, proxy: StoreProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal is longer than the file, and Arrow has no room for it: nobody knows what it said."""
    monkeypatch.setattr(object_stores, "FIRST_WAIT", 0.0)
    with (
        proxy.answering(on("model", "GET", answers.DENIED)),
        pytest.raises(RetryableError, match="model/LATEST: the store found it, but did not hand it out"),
    ):
        TopicModel.load(undisturbed.model)


@pytest.mark.parametrize("what", ["input", "output", "scratch", "model"])
def test_a_bucket_that_is_not_there(few: str, undisturbed: Undisturbed, what: str) -> None:
    place = "s3://no-bucket/x"
    given = {
        "input": few,
        "output": f"s3://{BUCKET}/no-bucket-{what}",
        "scratch": f"s3://{BUCKET}/s",
        what: place,
    }
    settings = (
        folded(place, few, given["output"])
        if what == "model"
        else job(given["input"], given["output"], run={"scratch": given["scratch"]})
    )
    with pytest.raises(InputDataError, match=f"{place}.*: there is no bucket no-bucket. Create it"):
        (transform if what == "model" else fit)(settings)


def test_commands_end_with_one_message_and_the_code_to_act_on(few: str, tmp_path: Path) -> None:
    for code, said, arguments, variables in (
        (65, "there is no bucket no-bucket", ("--input", few, "--output", "s3://no-bucket/m"), {}),
        (
            75,
            "Could not connect",
            ("--input", few, "--output", tmp_path / "m"),
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
        ),
        (2, "Put it into the environment", ("--input", few, "--output", f"s3://me:{SECRET}@{BUCKET}/m"), {}),
    ):
        done = run_command("fit", *arguments, AWS_MAX_ATTEMPTS="2", **variables)
        assert done.returncode == code, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert SECRET not in done.stderr
