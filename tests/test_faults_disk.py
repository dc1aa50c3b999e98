"""A disk that is full, and files of a committed run that are not what was written."""

import os
import pickle
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nmf_dask import TopicModel
from nmf_dask.errors import InputDataError, RetryableError
from nmf_dask.store import ModelFolder
from tests.small_corpora import generated_texts, run_command, write_corpus
from tests.small_models import FIRST, reseal, write_run

PICKLE_PROTOCOLS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), generated_texts(2000), 2)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    if os.getuid() != 0:
        pytest.skip("a full disk needs a file system of its own, which only root can mount")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["staging", "writing"])
def test_a_full_disk_is_said_and_the_same_command_goes_on(tmp_path, corpus, which):
    with small_disk(tmp_path / "disk", "96k"):
        disk = tmp_path / "disk"
        places = {"staging": (tmp_path / "m", disk / "s"), "writing": (disk / "m", tmp_path / "s")}
        model, scratch = places[which]
        arguments = (
            "fit", "--input", corpus, "--output", model, "-k", 12, "--max-iter", 5, "--set", f"run.scratch={scratch}",
        )  # fmt: skip
        full = run_command(*arguments)
        assert full.returncode == 75, full.stderr
        assert "the disk is full" in full.stderr
        assert f"cannot write {disk}" in full.stderr
        assert "Traceback" not in full.stderr
        with pytest.raises(InputDataError):
            TopicModel.load(str(model))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        again = run_command(*arguments)
        assert again.returncode == 0, again.stderr
        assert TopicModel.load(str(model)).n_components == 12


def test_a_disk_that_fills_up_before_the_commit_leaves_no_run(tmp_path):
    with small_disk(tmp_path / "disk", "200k"):
        run = write_run(ModelFolder(str(tmp_path / "disk" / "m")).run(FIRST), commit=False)
        filler = tmp_path / "disk" / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(1024))
        with pytest.raises(RetryableError, match="the disk is full"):
            run.commit(2)
        assert not run.is_committed()
        filler.unlink()
        run.commit(2)
        assert TopicModel.load(str(tmp_path / "disk" / "m")).n_components == 3


def test_a_disk_that_takes_no_files_is_refused(tmp_path, corpus):
    with small_disk(tmp_path / "disk", "1m"):
        disk = tmp_path / "disk"
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for more in (
            ("--output", disk / "m"),
            ("--output", tmp_path / "m", "--set", f"run.scratch={disk / 's'}"),
        ):
            refused = run_command("fit", "--input", corpus, "-k", 4, *more)
            assert refused.returncode == 65, refused.stderr
            assert "permission" in refused.stderr
            assert str(disk) in refused.stderr
            assert "Traceback" not in refused.stderr


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_model_from_a_stranger_runs_nothing(tmp_path):
    """Parquet may carry pickles, of extension types and of pandas: they are bytes like any other."""
    run = write_run(ModelFolder(str(tmp_path / "m")).run(FIRST))
    harm, part = tmp_path / "harm", tmp_path / "m" / "runs" / FIRST / "H" / "part-00000.parquet"
    pickled = pickle.dumps(Evil(harm))
    table = pq.read_table(part)
    names = ("arrow.py_extension_type", "arrow.opaque", "nobody.knows")
    for name, column in zip(names, ("term", "idf", "bucket"), strict=True):
        metadata = {"ARROW:extension:name": name, "ARROW:extension:metadata": pickled}
        position = table.schema.get_field_index(column)
        field = table.schema.field(column).with_metadata(metadata)
        table = table.set_column(position, field, table[column])
    pq.write_table(table.replace_schema_metadata({"pandas": pickled}), part)
    reseal(run)
    with suppress(InputDataError):
        TopicModel.load(str(tmp_path / "m")).topics()
    assert not harm.exists()
    pickle.loads(pickled)
    assert harm.exists()


@pytest.mark.parametrize("damage", ["deleted", "truncated", "flipped"])
def test_damage_to_a_committed_run_is_named(tmp_path, corpus, damage):
    model = tmp_path / "m"
    assert run_command("fit", "--input", corpus, "--output", model, "-k", 4, "--max-iter", 5).returncode == 0
    [run] = (model / "runs").iterdir()
    for name in ("W/part-00000.parquet", "H/part-00000.parquet", "run.json", "manifest.json"):
        file = run / name
        whole = file.read_bytes()
        if damage == "deleted":
            file.unlink()
        elif damage == "truncated":
            file.write_bytes(whole[: len(whole) // 2])
        else:
            middle = len(whole) // 2
            file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        with pytest.raises(InputDataError) as told:
            list(TopicModel.load(str(run)).W_parts())
        assert name in str(told.value)
        if not name.startswith("W/"):  # which the topics are not read from
            topics = run_command("topics", run)
            assert topics.returncode == 65, topics.stderr
            assert name in topics.stderr
            assert "Traceback" not in topics.stderr
            assert topics.stdout == ""
        file.write_bytes(whole)
    assert sum(part.num_rows for part in TopicModel.load(str(model)).W_parts()) == 2000


def test_no_file_of_a_model_is_a_pickle(tmp_path, corpus):
    assert run_command("fit", "--input", corpus, "--output", tmp_path / "m", "-k", 4).returncode == 0
    for file in (tmp_path / "m").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not content.startswith(PICKLE_PROTOCOLS), file
            assert content[:4] == b"PAR1" or content[:6] == b"ARROW1" or content.decode() is not None
