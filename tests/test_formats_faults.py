"""Deaths while documents are staged, and a corpus in an object store."""

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import fs

from nmf_dask import fit
from nmf_dask.corpus.locations import connect
from nmf_dask.model import TopicModel
from nmf_dask.store import Folder, lock
from nmf_dask.store.folder import _file_system
from tests.faulty_command import Driver
from tests.small_corpora import files_of, generated_texts, run_command, settings_of

# What workers preload: writes down which partitions are read, dies or waits at the second where it is told to.
PRELOAD = """
import os, signal, time
from pathlib import Path
from nmf_dask.corpus.raw import Raw

folder, documents = Path({folder!r}), Raw.documents

def faulty(self, partition, documents=documents):
    with (folder / "log").open("a") as log:
        log.write(f"{{partition.index}}\\n")
    if partition.index == 1:
        if (folder / "die").exists():
            (folder / "die").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        while (folder / "wait").exists():
            time.sleep(0.02)
    return documents(self, partition)

if documents.__name__ != "faulty":  # a process of many parts preloads it more than once
    Raw.documents = faulty
"""
TEXTS = generated_texts(120)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[list, dict[str, bytes]]:
    """Arguments of a fit, and the W and H that it comes to."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "c").mkdir()
    for part in range(3):
        rows = [{"id": i, "year": i % 9, "text": TEXTS[i]} for i in range(part * 40, part * 40 + 40)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "c" / f"{part}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    given = ["--input", folder / "c", "--id-column", "id", "-k", "3", "--where", "year < 7", "--keep", "year"]
    given += ["--set", "corpus.partition_bytes=4000"]
    done = run_command("fit", *given, "--output", folder / "m")
    assert done.returncode == 0, done.stderr
    return given, factors(folder / "m")


def factors(model: Path) -> dict[str, bytes]:
    files = files_of(Path(TopicModel.load(str(model)).uri))
    return {name: content for name, content in files.items() if name.startswith(("W/", "H/"))}


def faulty(folder: Path, given: list, *more: str) -> Driver:
    preload = folder / "preload.py"
    preload.write_text(PRELOAD.format(folder=str(folder)))
    return Driver(
        "one", "fit", *given, "--output", folder / "m", *more, DASK_DISTRIBUTED__WORKER__PRELOAD=str(preload)
    )


def read(folder: Path) -> list[str]:
    return (folder / "log").read_text().split() if (folder / "log").exists() else []


def test_a_worker_that_dies_has_its_files_read_elsewhere(undisturbed, tmp_path):
    given, expected = undisturbed
    (tmp_path / "die").touch()
    driver = faulty(tmp_path, given, "--workers", "2")
    try:
        driver.done()
    finally:
        driver.kill()
    assert not (tmp_path / "die").exists()
    assert factors(tmp_path / "m") == expected
    assert TopicModel.load(str(tmp_path / "m")).run["workers_lost"] == 1
    assert read(tmp_path).count("1") == 2


def test_a_driver_that_dies_has_staged_documents_taken(undisturbed, tmp_path):
    """The same command goes on; what stood whole is not read again."""
    given, expected = undisturbed
    (tmp_path / "wait").touch()
    driver = faulty(tmp_path, given, "--workers", "1", "--set", "cluster.threads_per_worker=3")

    def staged() -> bool:
        found = list((tmp_path / "m").glob("runs/*/_work/documents/*.json"))
        return "1" in read(tmp_path) and {one.stem for one in found} == {"part-00000", "part-00002"}

    try:
        assert driver.until(staged)
    finally:
        driver.kill()
    assert not list((tmp_path / "m").glob("runs/*/_SUCCESS"))
    (tmp_path / "wait").unlink()
    time.sleep(0.1)
    before = read(tmp_path)
    faulty(tmp_path, given).done()
    assert factors(tmp_path / "m") == expected
    assert set(read(tmp_path)[len(before) :]) <= {"1"}
    [run] = (tmp_path / "m" / "runs").iterdir()
    assert not (run / "_work").exists()


def test_a_corpus_in_an_object_store(
    undisturbed, tmp_path, empty_bucket: Callable[[str], fs.FileSystem], monkeypatch
):
    """Read from there, staged there, written there."""
    given, expected = undisturbed
    for cache in (connect, _file_system):
        cache.cache_clear()
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.05)
    store = empty_bucket("formats")
    for file in Path(given[1]).iterdir():
        with store.open_output_stream(f"formats/in/{file.name}", compression=None) as stream:
            stream.write(file.read_bytes())
    corpus = {"id_column": "id", "where": "year < 7", "keep": ("year",), "partition_bytes": 4000}
    settings = settings_of(Path("x"), Path("y"), corpus=corpus, model={"n_components": 3})
    settings = settings.model_copy(
        update={
            "corpus": settings.corpus.model_copy(update={"input": ("s3://formats/in",)}),
            "output": settings.output.model_copy(update={"output": "s3://formats/model"}),
        }
    )
    result = fit(settings)
    run = Folder(result.uri)
    found = {
        f"{part}/{name}": (run / part / name).read_bytes()
        for part in ("W", "H")
        for name in (run / part).list()
    }
    assert found == expected
    assert "_work" not in run.list()
    for cache in (connect, _file_system):
        cache.cache_clear()
