"""The model folder in an object store: a real S3 protocol, spoken by moto on this machine."""

import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest
from pyarrow import fs

from nmf_dask import TopicModel
from nmf_dask.errors import InputDataError, RetryableError
from nmf_dask.store import Folder, ModelFolder, StageDamaged, lock, open_run, read_arrays, write_arrays
from nmf_dask.store.folder import _file_system
from tests.small_models import FIRST, SECOND, first_and_second, started, write_run


@pytest.fixture
def uri(empty_bucket: Callable[[str], fs.FileSystem], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a model folder, not there yet, in a bucket that is."""
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.05)
    _file_system.cache_clear()
    empty_bucket("models")
    yield "s3://models/deep/model"
    _file_system.cache_clear()


def test_runs_are_written_committed_and_found(uri: str) -> None:
    ModelFolder(uri).check_usable()
    model = first_and_second(uri)
    model.check_usable()
    assert open_run(uri).run_id == SECOND
    assert open_run(f"{uri}/runs/{FIRST}/").run_id == FIRST
    assert model.run(FIRST).folder.list() == (
        ("H", "W", "_SUCCESS", "convergence.parquet", "manifest.json", "run.json", "topics.parquet")
    )
    assert [part.read_parquet().num_rows for part in model.run(FIRST).w_parts()] == [3, 1]
    assert [table.num_rows for table in TopicModel.load(uri).W_parts()] == [3, 1]
    (model.folder / "LATEST").delete()
    assert open_run(uri).run_id == SECOND
    model.run(SECOND).folder.delete()
    assert open_run(uri).run_id == FIRST


def test_what_is_there_is_said(uri: str) -> None:
    with pytest.raises(InputDataError, match="no model at s3://models/deep/model: it does not exist"):
        open_run(uri)
    write_run(ModelFolder(uri).run(FIRST), commit=False, other={"status": "failed", "error": "too large"})
    with pytest.raises(InputDataError, match=f"run {FIRST}: failed, too large"):
        open_run(uri)
    (Folder(uri).parent / "corpus" / "part-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputDataError, match=r"holds part-0\.parquet"):
        ModelFolder("s3://models/deep/corpus").check_usable()
    with pytest.raises(InputDataError, match="is a file"):
        ModelFolder("s3://models/deep/corpus/part-0.parquet").check_usable()


def test_sizes_names_and_deletion(uri: str) -> None:
    folder = Folder(uri) / "a b+c"
    (folder / "x" / "y").write_bytes(b"12")
    (folder / "z").write_bytes(b"345")
    assert (folder.size(), folder.list()) == (5, ("x", "z"))
    folder.delete()
    folder.delete()
    assert not folder.exists()
    assert folder.list() == ()


def test_arrays_come_back_and_a_cut_object_is_damaged(uri: str) -> None:
    file = Folder(uri) / "block.arrow"
    with pytest.raises(StageDamaged, match="is missing"):
        read_arrays(file)
    write_arrays(file, {"a": np.arange(10**6), "b": np.zeros((0, 3), np.float32)})
    read = read_arrays(file)
    np.testing.assert_array_equal(read["a"], np.arange(10**6))
    assert read["b"].shape == (0, 3)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StageDamaged, match="is incomplete"):
        read_arrays(file)


def test_write_that_fails_leaves_no_object(uri: str) -> None:
    file = Folder(uri) / "x"
    with suppress(KeyboardInterrupt), file.writing() as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert not file.exists()


KILLED = """
import sys, time
from nmf_dask.store import Folder
with Folder(sys.argv[1]).writing() as stream:
    stream.write(bytes(12 * 2**20))
    print("written", flush=True)
    time.sleep(60)
"""


def test_writer_killed_in_the_middle_leaves_no_object(uri: str) -> None:
    with started(KILLED, f"{uri}/part") as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.kill()
    assert not (Folder(uri) / "part").exists()


def test_what_is_sent_to_workers_holds_no_keys(uri: str) -> None:
    run = ModelFolder(uri).run(FIRST)
    assert run.w_part(0).exists() is False
    sent = pickle.dumps((run, run.w_part(0)))
    assert b"testing-secret" not in sent
    pickle.loads(sent)[1].write_bytes(b"1")
    assert run.w_part(0).read_bytes() == b"1"


def test_lock_names_its_holder_and_lapses(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelFolder(uri)
    with model.lock():
        with (
            pytest.raises(RetryableError, match=f"process {os.getpid()} on .*{socket.gethostname()}"),
            model.lock(),
        ):
            pass
        assert model.lock_file.exists()
    assert not model.lock_file.exists()
    model.lock_file.write_bytes(lock._card().replace(lock._machine().encode(), b"another"))
    with pytest.raises(RetryableError, match="last sign of life"), model.lock():
        pass
    monkeypatch.setattr(lock, "STALE_SECONDS", -5.0)
    with model.lock():
        pass


def ticket_of(model: ModelFolder, *, dead: bool = False) -> Folder:
    """Another writer's ticket, put now: of another machine, or of a process of this one that is dead."""
    card = lock._card()
    told = (
        card.replace(lock._machine().encode(), b"another")
        if not dead
        else card.replace(b'"pid": ', b'"pid": 9')
    )
    ticket = model.folder / f"LOCK.{'0' * 32}"
    ticket.write_bytes(told)
    return ticket


def test_of_two_that_want_the_lock_at_once_the_older_ticket_has_it(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelFolder(uri)
    other = ticket_of(model)
    model.check_usable()
    time.sleep(1.1)  # the store tells times to the second
    with pytest.raises(RetryableError, match="is locked by process"), model.lock():
        pass
    assert model.folder.list() == (other.name,)
    other.delete()
    # One that is slow puts its ticket when the lock is taken: it is refused, and the lock stays.
    with model.lock() as held:
        late = ticket_of(model)
        with pytest.raises(RetryableError, match=f"process {os.getpid()} "):
            lock._refuse_earlier(late, model.lock_file)
        held.check()


def test_ticket_of_a_dead_process_is_in_nobody_s_way(uri: str) -> None:
    model = ModelFolder(uri)
    ticket_of(model, dead=True)
    with model.lock():
        assert len([name for name in model.folder.list() if name.startswith("LOCK.")]) == 1
    assert model.folder.list() == ()


def test_heartbeat_writes_the_lock_again_but_not_another_s(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    model = ModelFolder(uri)
    with model.lock() as held:
        before = model.lock_file.info().mtime_ns
        deadline = time.monotonic() + 20
        while model.lock_file.info().mtime_ns == before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert model.lock_file.info().mtime_ns > before
        held.check()
        monkeypatch.setattr(lock, "_card", lambda: b"{}")
        time.sleep(0.5)
        with pytest.raises(RetryableError, match="taken over"):
            held.check()


def test_bucket_that_is_not_there_is_bad_input(uri: str) -> None:
    with pytest.raises(
        InputDataError, match=r"s3://no-such-bucket/model/x: there is no bucket no-such-bucket"
    ):
        (Folder("s3://no-such-bucket/model") / "x").write_bytes(b"1")


def test_store_that_does_not_answer_is_worth_a_retry(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    _file_system.cache_clear()
    with pytest.raises(RetryableError, match=r"cannot read s3://models/deep/model/x: .*Run the same command"):
        (Folder(uri) / "x").read_bytes()
    with pytest.raises(RetryableError, match="s3://models/deep/model"):
        open_run(uri)
