"""Whole jobs in an object store: workers of their own, a driver that is killed, the demo, and no key left anywhere."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pytest

from nmf_dask import demo, fit
from nmf_dask.cli import main
from nmf_dask.corpus.locations import connect
from nmf_dask.store import ModelFolder, lock, open_run
from nmf_dask.store.folder import _file_system
from tests.faulty_command import FAST_PASSES, Driver, slow_parts, slow_pass
from tests.small_corpora import (
    ROOT,
    environment,
    generated_texts,
    settings_of,
    wh_bytes,
    write_corpus,
)

BUCKET = "jobs"
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIDNOTREALLYAKEY",
    "AWS_SECRET_ACCESS_KEY": "fake/secret+of-the-tests",
    "AWS_SESSION_TOKEN": "fake-session-token-of-the-tests",
}
# The command, with all that this process, which is client and scheduler, sends to others written to a file.
TAPPED = """
import sys
from distributed import protocol

dumps = protocol.dumps

def noted(*arguments, **options):
    frames = dumps(*arguments, **options)
    tape.write(b"".join(map(bytes, frames)))
    tape.flush()
    return frames

if __name__ == "__main__":  # not in worker processes, which have it as another module
    tape = open(sys.argv.pop(1), "ab")
    protocol.dumps = noted
    from nmf_dask.cli import run
    run()
"""


@pytest.fixture
def store(
    empty_bucket: Callable[[str], pafs.FileSystem], monkeypatch: pytest.MonkeyPatch
) -> Iterator[pafs.FileSystem]:
    """A bucket, empty; the environment holds keys of which every byte can be looked for."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    connect.cache_clear()
    _file_system.cache_clear()
    yield empty_bucket(BUCKET)
    connect.cache_clear()
    _file_system.cache_clear()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), generated_texts(200), 3)


def objects(store: pafs.FileSystem) -> dict[str, bytes]:
    infos = store.get_file_info(pafs.FileSelector(BUCKET, recursive=True))
    return {
        one.path: store.open_input_stream(one.path).read() for one in infos if one.type == pafs.FileType.File
    }


def assert_no_secret(texts: dict[str, bytes]) -> None:
    for name, text in texts.items():
        for secret in SECRETS.values():
            assert secret.encode() not in text, name


@pytest.mark.slow
def test_workers_have_their_keys_from_the_environment_and_nothing_holds_one(
    store: pafs.FileSystem, corpus: Path, tmp_path: Path
) -> None:
    pafs.copy_files(str(corpus), f"{BUCKET}/c", destination_filesystem=store)
    (tmp_path / "tapped.py").write_text(TAPPED)
    place = f"s3://{BUCKET}"
    common = ("--workers", 2, "--threads-per-worker", 1, "--log-format", "json", "-v")
    texts = {}
    for name, arguments in {
        "fit": ("--output", f"{place}/m", "-k", 4, "--max-iter", 5, "--set", f"run.scratch={place}/scratch"),
        "transform": ("--output", f"{place}/w", "--model", f"{place}/m"),
    }.items():
        tape = tmp_path / f"{name}.tape"
        given = map(str, (tape, name, "--input", f"{place}/c", *arguments, *common))
        done = subprocess.run(
            [sys.executable, tmp_path / "tapped.py", *given],
            capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment(),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        texts |= {name: (done.stdout + done.stderr).encode(), str(tape): tape.read_bytes()}
        assert b"jobs/c/part-00000.parquet" in texts[str(tape)]  # else this proves nothing
        assert b"WriteTasks" in texts[str(tape)] or b"PartTasks" in texts[str(tape)]
    written = objects(store)
    assert len([name for name in written if name.endswith(".parquet")]) > 8
    assert_no_secret(texts | written)


@pytest.mark.slow
def test_a_driver_that_was_killed_goes_on_from_its_checkpoint_in_the_store(
    store: pafs.FileSystem, corpus: Path, tmp_path: Path
) -> None:
    pafs.copy_files(str(corpus), f"{BUCKET}/c", destination_filesystem=store)
    begun, variables = slow_pass(tmp_path)
    arguments = (
        "fit", "--input", f"s3://{BUCKET}/c", "--output", f"s3://{BUCKET}/m", "--id-column", "doc_id", "-k", 4,
        "--max-iter", 8, "--tol", 0, "--set", "run.checkpoint_every=1", "--set", f"run.scratch=s3://{BUCKET}/scratch",
    )  # fmt: skip
    driver = Driver("one", *arguments, **variables)
    assert driver.until(begun)
    driver.kill()
    left = objects(store)
    assert f"{BUCKET}/m/LOCK" in left
    assert any("/checkpoints/" in name for name in left if name.startswith(f"{BUCKET}/scratch/"))
    assert_no_secret(left)
    assert not ModelFolder(f"s3://{BUCKET}/m").runs()[0].is_committed()

    Driver("one", *arguments).done()
    [run] = ModelFolder(f"s3://{BUCKET}/m").runs()
    assert run.read_run()["resumed_from"] == f"pass-{FAST_PASSES:05d}"
    names = objects(store)
    assert not [name for name in names if "/scratch/" in name or name.endswith("LOCK")]
    (tmp_path / "made").mkdir()
    pafs.copy_files(run.folder.path, str(tmp_path / "made"), source_filesystem=store)
    model = {"n_components": 4, "max_iter": 8, "tol": 0.0}
    assert wh_bytes(tmp_path / "made") == wh_bytes(fit(settings_of(corpus, tmp_path / "m", model=model)).uri)


@pytest.mark.slow
def test_a_transform_that_is_told_to_stop_goes_on_from_its_parts_in_the_store(
    store: pafs.FileSystem, corpus: Path, tmp_path: Path
) -> None:
    pafs.copy_files(str(corpus), f"{BUCKET}/c", destination_filesystem=store)
    model = f"s3://{BUCKET}/m"
    fit(settings_of(corpus, model, model={"n_components": 4, "max_iter": 8}))
    begun, variables = slow_parts(tmp_path)
    common = ("transform", "--model", model, "--id-column", "doc_id", "--set", "corpus.partition_bytes=2000")
    arguments = (*common, "--input", f"s3://{BUCKET}/c", "--output", f"s3://{BUCKET}/w")
    driver = Driver("one", *arguments, **variables)
    assert driver.until(begun)
    code, log, seconds = driver.stop(signal.SIGTERM)
    assert code == 75, log
    assert "Traceback" not in log
    assert seconds < 10, log
    left = objects(store)
    assert json.loads(left[f"{BUCKET}/w/transform.json"])["status"] == "failed"
    assert not {f"{BUCKET}/w/_SUCCESS", f"{BUCKET}/w/_LOCK", f"{BUCKET}/w/manifest.json"} & set(left)

    Driver("one", *arguments).done()
    made = objects(store)
    assert json.loads(made[f"{BUCKET}/w/transform.json"])["partitions_resumed"] >= 3
    assert not [name for name in made if "/_work/" in name or name.endswith("_LOCK")]
    assert_no_secret(made)
    Driver("one", *common, "--input", corpus, "--output", tmp_path / "w").done()
    parts = [made[name] for name in sorted(made) if name.startswith(f"{BUCKET}/w/W/")]
    assert len(parts) > 4
    assert parts == [file.read_bytes() for file in sorted((tmp_path / "w" / "W").iterdir())]


def test_the_demo_and_its_topics(
    store: pafs.FileSystem, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.05)
    documents = demo.installed_documents
    monkeypatch.setattr(demo, "installed_documents", lambda: islice(documents(), 800))
    for _ in range(2):  # the corpus is replaced by the same one, the model is there
        assert main(["demo", "--output", f"s3://{BUCKET}/d", "--log-format", "json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["uri"].startswith(f"s3://{BUCKET}/d/model/runs/")
    assert main(["topics", f"s3://{BUCKET}/d/model", "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["topics"]) == 14
    names = objects(store)
    assert sorted(
        name.rpartition("/")[2] for name in names if name.startswith(f"{BUCKET}/d/corpus/demo-")
    ) == [f"demo-{number:05d}.parquet" for number in range(demo.N_FILES)]


def test_update_evaluate_and_select_in_the_store(
    store: pafs.FileSystem,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same as on disk, and nothing of a key: catches a command that reads or writes beside the store's layer."""
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.05)
    told: dict[str, list[str]] = {}
    last = {}
    for place in (f"s3://{BUCKET}", str(tmp_path)):
        (tmp_path / "c").mkdir(exist_ok=True)

        def takes_in(parts: list[str], place: str = place) -> None:
            for part in parts:
                if place == str(tmp_path):
                    (tmp_path / "c" / part).write_bytes((corpus / part).read_bytes())
                else:
                    pafs.copy_files(str(corpus / part), f"{BUCKET}/c/{part}", destination_filesystem=store)

        def done(*arguments: object) -> str:
            assert main([*map(str, arguments), "--log-format", "json"]) == 0
            return capsys.readouterr().out

        common = ("--input", f"{place}/c", "--id-column", "doc_id")
        first, *rest = sorted(part.name for part in corpus.iterdir())
        takes_in([first])
        made = json.loads(done("fit", *common, "--output", f"{place}/m", "-k", 4, "--max-iter", 5))
        takes_in(rest)
        done("update", *common, "--model", f"{place}/m")
        assert main(["topics", f"{place}/m", "--compare", made["run_id"], "--format", "json"]) == 0
        compared = capsys.readouterr().out
        judged = done("evaluate", f"{place}/m", "--input", f"{place}/c", "--output", f"{place}/judged.json")
        chosen = done("select", "--input", f"{place}/c", "--output", f"{place}/s", "-k", "3,4", "--fits", 3)
        told[place] = [compared.replace(place, ""), json.dumps(json.loads(judged)["overall"])]
        assert json.loads(chosen)["recommended"] in (3, 4)
        last[place] = open_run(f"{place}/m")
    in_store, on_disk = told.values()
    assert in_store == on_disk
    (tmp_path / "made").mkdir()
    run, twin = last.values()
    pafs.copy_files(run.folder.path, str(tmp_path / "made"), source_filesystem=store)
    assert wh_bytes(tmp_path / "made") == wh_bytes(twin.folder.uri)
    assert_no_secret(objects(store))


def test_nights_in_the_store(
    store: pafs.FileSystem,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One that fits, one that transforms and updates, one with nothing new: as on disk, dates of the folders too."""
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.05)
    nights: dict[str, list[tuple[object, ...]]] = {}
    days: dict[str, list[str]] = {}
    for place in (f"s3://{BUCKET}", str(tmp_path)):
        there = (store, BUCKET) if place.startswith("s3") else (pafs.LocalFileSystem(), place)
        command = (
            "nightly", "--input", f"{place}/lake", "--output", f"{place}/m", "--weights", f"{place}/w",
            "--id-column", "doc_id", "-k", "4", "--max-iter", "5", "--every", "1", "--log-format", "json",
        )  # fmt: skip
        nights[place] = []
        for day, part in enumerate((*sorted(corpus.iterdir())[:2], None), 1):
            if part is not None:
                folder = f"{there[1]}/lake/day=2026-11-0{day}"
                there[0].create_dir(folder, recursive=True)
                pafs.copy_files(str(part), f"{folder}/part.parquet", destination_filesystem=there[0])
            assert main([*command]) == 0
            told = json.loads(capsys.readouterr().out)
            nights[place].append(
                tuple(told.get(key) for key in ("status", "did", "files_new", "relative_loss", "rise"))
            )
        run = told["run_id"]
        W = ds.dataset(f"{there[1]}/w/{run}/W", filesystem=there[0]).to_table()
        days[place] = [*map(str, W["day"].to_pylist()), *W["doc_id"].to_pylist()]
    in_store, on_disk = nights.values()
    assert in_store == on_disk
    assert [night[:2] for night in on_disk] == [
        ("done", ["fit", "transform"]), ("done", ["transform", "update"]), ("nothing new", []),
    ]  # fmt: skip
    weights, twins = days.values()
    assert weights == twins
    assert weights[0] == "2026-11-02"  # what the update took in; the first day has its W under the run before
    assert_no_secret(objects(store))
