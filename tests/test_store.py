"""The model folder: only whole runs are read, whatever was deleted, cut short, or killed in the middle."""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from nmf_dask.config import Settings
from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.store import Folder, ModelFolder, open_run, run_id
from nmf_dask.store.folder import sync
from tests.small_models import FIRST, SECOND, first_and_second, started, write_run

WRITER = """
import sys
from nmf_dask.store import Folder, ModelFolder
from tests.small_models import SECOND, write_run
writing = Folder.writing
def step_by_step(folder):
    print(folder.name, flush=True)
    sys.stdin.readline()
    return writing(folder)
Folder.writing = step_by_step
write_run(ModelFolder(sys.argv[1]).run(SECOND))
print("end", flush=True)
"""


@pytest.mark.parametrize(
    "before",
    [
        "part-00000.parquet",
        "part-00001.parquet",
        "topics.parquet",
        "run.json",
        "COMMIT",
        "_SUCCESS",
        "LATEST",
    ],
)
def test_writer_killed_at_any_step_leaves_the_earlier_run_and_can_be_repeated(
    tmp_path: Path, before: str
) -> None:
    model = ModelFolder(str(tmp_path))
    write_run(model.run(FIRST))
    with started(WRITER, str(tmp_path), cwd=Path(__file__).parents[1]) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        while (name := writer.stdout.readline().strip()) != before:
            assert name != "end"
            writer.stdin.write("go\n")
            writer.stdin.flush()
        writer.kill()
    assert open_run(str(tmp_path)).run_id == FIRST
    second = model.run(SECOND)
    assert second.is_committed() == (before == "LATEST")
    if second.is_committed():
        second.commit()
    else:
        second.begin()
        write_run(second)
    assert open_run(str(tmp_path)).run_id == SECOND
    assert not second.work.exists()


def test_commit_that_was_cut_off_does_not_hide_a_later_one(tmp_path: Path) -> None:
    model = first_and_second(tmp_path)
    (model.run(FIRST).work / "COMMIT").write_bytes(b"")
    model.run(FIRST).commit()
    assert model.latest().run_id == SECOND


def test_a_work_area_that_was_half_gone_goes(tmp_path: Path) -> None:
    model = first_and_second(tmp_path)
    (tmp_path / "LATEST").write_text(FIRST)  # by hand, after the commit: that stands
    (model.run(SECOND).work / "counts" / "part-00000.arrow").write_bytes(b"")
    model.run(SECOND).commit()
    assert not model.run(SECOND).work.exists()
    assert model.latest().run_id == FIRST


def test_commit_becomes_latest_even_when_the_clock_went_back(tmp_path: Path) -> None:
    model = ModelFolder(str(tmp_path))
    first = write_run(model.run(FIRST), commit=False)
    told = (first.folder / "run.json").read_bytes().replace(b'"written": "20', b'"written": "29')
    (first.folder / "run.json").write_bytes(told)
    first.commit()
    write_run(model.run(SECOND))
    assert model.latest().run_id == SECOND


def test_latest_set_by_hand_is_followed_and_stays(tmp_path: Path) -> None:
    model = first_and_second(tmp_path)
    (tmp_path / "LATEST").write_text(FIRST)
    model.run(SECOND).commit()
    assert open_run(str(tmp_path)).run_id == FIRST


@pytest.mark.parametrize(
    "content", [None, b"", b"bbbbb", b"bbbbbbbbbbbbb", b"\xff\x00", b"cccccccccccccccc\n"]
)
def test_latest_that_cannot_be_followed_falls_back_to_the_newest_run(
    tmp_path: Path, content: bytes | None
) -> None:
    model = first_and_second(tmp_path)
    write_run(model.run("c" * 16), commit=False)
    (tmp_path / "LATEST").unlink()
    if content is not None:
        (tmp_path / "LATEST").write_bytes(content)
    # The newest by what it says, not by the time of its files: copying a model changes those.
    os.utime(tmp_path / "runs" / FIRST / "run.json")
    os.utime(tmp_path / "runs" / FIRST / "_SUCCESS")
    assert model.latest().run_id == SECOND


def test_run_whose_run_json_is_damaged_is_not_the_newest(tmp_path: Path) -> None:
    model = first_and_second(tmp_path)
    (tmp_path / "LATEST").unlink()
    os.truncate(tmp_path / "runs" / SECOND / "run.json", 40)
    assert model.latest().run_id == FIRST


def test_no_finished_run_says_what_is_there_and_why(tmp_path: Path) -> None:
    model = ModelFolder(str(tmp_path / "model"))
    with pytest.raises(InputDataError, match=r"no model at .*model: it does not exist"):
        model.latest()
    write_run(model.run(FIRST), commit=False, other={"status": "failed", "error": "the disk is full"})
    model.run(SECOND).w_part(0).write_bytes(b"PAR1")
    with pytest.raises(InputDataError, match="no finished run") as caught:
        open_run(model.uri)
    assert f"run {FIRST}: failed, the disk is full" in str(caught.value)
    assert f"run {SECOND}: unknown" in str(caught.value)
    with pytest.raises(InputDataError, match=r"did not finish \(failed, the disk is full"):
        open_run(str(tmp_path / "model" / "runs" / FIRST))


def test_committed_run_is_not_touched_again(tmp_path: Path) -> None:
    run = write_run(ModelFolder(str(tmp_path)).run(FIRST))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for touch in (run.begin, lambda: run.write_run({"status": "failed"})):
        with pytest.raises(InputDataError, match="is committed"):
            touch()
    run.commit()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_begin_clears_an_earlier_attempt_but_not_its_work(tmp_path: Path) -> None:
    run = write_run(ModelFolder(str(tmp_path)).run(FIRST), commit=False)
    run.w_part(2).write_bytes(b"of a corpus that had more partitions")
    run.begin()
    assert run.folder.list() == ("_work",)
    assert (run.work / "blocks" / "00000.arrow").read_bytes() == b"staged"


def test_commit_refuses_a_run_with_missing_parts(tmp_path: Path) -> None:
    run = write_run(ModelFolder(str(tmp_path)).run(FIRST), commit=False)
    with pytest.raises(InputDataError, match="holds 2 parts where 3 are due"):
        run.commit(n_w_parts=3)
    run.w_part(0).delete()
    with pytest.raises(InputDataError, match=r"1 of at least 2 parts are missing in .*W: part-00000.parquet"):
        run.commit()
    shutil.rmtree(tmp_path / "runs" / FIRST / "H")
    with pytest.raises(InputDataError, match=r"missing in .*H: part-00000.parquet"):
        run.commit()
    run.h_part(0).write_bytes(b"")
    (run.folder / "run.json").delete()
    with pytest.raises(InputDataError, match=r"run\.json"):
        run.commit()
    assert not run.is_committed()
    assert not (tmp_path / "LATEST").exists()


@pytest.mark.parametrize(("version", "remedy"), [(2, "newer nmf-dask"), (0, "fit the corpus again")])
def test_other_format_version_is_refused_with_both_numbers(tmp_path: Path, version: int, remedy: str) -> None:
    write_run(ModelFolder(str(tmp_path)).run(FIRST), other={"format_version": version})
    with pytest.raises(InputDataError, match=f"format version {version}.*reads version 1.*{remedy}"):
        open_run(str(tmp_path))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputDataError, match=r"not a model folder: it holds notes\.txt"):
        open_run(str(tmp_path))
    with pytest.raises(InputDataError, match=r"notes\.txt"):
        open_run(str(tmp_path / "notes.txt"))
    (tmp_path / "run.json").write_text('{"loss": 1}')
    (tmp_path / "_SUCCESS").touch()
    with pytest.raises(InputDataError, match="no format_version"):
        open_run(str(tmp_path))


def test_model_folder_may_itself_be_in_a_folder_named_runs(tmp_path: Path) -> None:
    model = first_and_second(tmp_path / "runs" / "aaaabbbbcccc")
    assert open_run(model.uri).run_id == SECOND
    assert open_run(f"{model.uri}/runs/{FIRST}/").run_id == FIRST


def test_folder_of_something_else_is_not_written_to(tmp_path: Path) -> None:
    def usable(name: str) -> None:
        ModelFolder(str(tmp_path / name)).check_usable()

    usable("new/below/new")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".gitkeep").touch()
    usable("empty")
    write_run(ModelFolder(str(tmp_path / "crashed")).run(FIRST), commit=False)
    usable("crashed")
    (tmp_path / "tensorboard" / "runs" / "Nov24_host").mkdir(parents=True)
    with pytest.raises(InputDataError, match="holds runs"):
        usable("tensorboard")
    (tmp_path / "corpus").mkdir()
    for part in range(9):
        (tmp_path / "corpus" / f"part-{part}.parquet").touch()
    with pytest.raises(InputDataError, match=r"holds part-0\.parquet, part-1\.parquet.*…"):
        usable("corpus")
    with pytest.raises(InputDataError, match="is a file"):
        usable("corpus/part-0.parquet")
    with pytest.raises(InputDataError, match=r"part-0\.parquet is a file"):
        usable("corpus/part-0.parquet/model")
    assert not (tmp_path / "new").exists()


WITHOUT_PERMISSION = """
import os, sys
from nmf_dask.errors import InputDataError
from nmf_dask.store import ModelFolder
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for act in (ModelFolder.check_usable, lambda model: model.lock().__enter__()):
    try:
        act(ModelFolder(sys.argv[1]))
    except InputDataError as error:
        print(error.exit_code, error)
"""


@pytest.mark.parametrize("name", ["", "model"])
def test_permission_denied_is_said_before_and_while_writing(name: str) -> None:
    # Not in tmp_path: nobody but its owner may even pass through that.
    with tempfile.TemporaryDirectory() as above:
        Path(above).chmod(0o755)
        shut = Path(above) / "shut"
        shut.mkdir(mode=0o555)
        with started(WITHOUT_PERMISSION, str(shut / name)) as process:
            printed, _ = process.communicate()
    lines = printed.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("65 ") and str(shut) in line for line in lines)
    assert "no permission" in lines[0]
    assert "permission denied" in lines[1]


CHANGES = {
    "corpus": {"text_column": "body", "id_column": "key", "partition_bytes": 10},
    "vectorizer": {"min_df": 3, "max_df": 0.25, "ngram_range": (1, 2), "stop_words": "english", "norm": "l1"},
    "model": {"n_components": 11, "random_state": 1, "tol": 1e-3, "beta_loss": "kullback-leibler"},
    "output": {"n_top_terms": 7},
}


def test_run_id_follows_what_the_result_depends_on_and_nothing_else() -> None:
    def of(section: str, values: dict[str, object]) -> str:
        return run_id(Settings.model_validate({section: values}), "input")

    ids = [of("model", {}), run_id(Settings(), "other input")]
    ids += [of(section, {key: value}) for section, keys in CHANGES.items() for key, value in keys.items()]
    assert len(set(ids)) == len(ids)
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in ids)
    same = [("cluster", {"workers": 3}), ("run", {"resume": "never"}), ("output", {"output": "x"})]
    same += [("corpus", {"input": ("elsewhere",)})]
    assert {of(*one) for one in same} == {ids[0]}


def test_run_id_follows_the_words_in_a_file_of_stop_words(tmp_path: Path) -> None:
    words = tmp_path / "stop.txt"
    settings = Settings.model_validate({"vectorizer": {"stop_words": str(words)}})
    words.write_text("the\n")
    before = run_id(settings, "input")
    words.write_text("the\nof\n")
    assert run_id(settings, "input") != before


def test_folder_means_the_same_in_another_process_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = pickle.loads(pickle.dumps(Folder("here") / "x"))
    monkeypatch.chdir("/")
    folder.write_bytes(b"1")
    assert (tmp_path / "here" / "x").read_bytes() == b"1"


@pytest.mark.parametrize("name", ["a b", "ä?b=c", "100%25", "#1", "[x]*"])
def test_any_name_of_a_local_file_is_that_file(tmp_path: Path, name: str) -> None:
    (Folder(str(tmp_path)) / name / "inside").write_bytes(b"1")
    assert os.listdir(tmp_path) == [name]
    assert (Folder(str(tmp_path)) / name).list() == ("inside",)
    assert Folder((tmp_path / name).as_uri()) == Folder(str(tmp_path / name))


def test_folder_of_a_uri_keeps_its_options_at_the_end() -> None:
    folder = Folder("s3://bucket/models/a/?region=eu-west-1")
    assert (folder / "LATEST").uri == "s3://bucket/models/a/LATEST?region=eu-west-1"
    assert folder.parent.uri == "s3://bucket/models?region=eu-west-1"
    assert (folder.name, folder.parent.parent.parent.uri) == ("a", "s3://bucket?region=eu-west-1")


@pytest.mark.parametrize(
    "uri", ["", "ftp://host/x", "://x", "file://host/x", "nosuch://bucket/model", "m\udcff", "m\0"]
)
def test_address_that_cannot_be_used_is_a_configuration_error(uri: str) -> None:
    with pytest.raises(ConfigurationError):
        Folder(uri).exists()


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:hunter2@bucket/model",
        "s3://key:12/hunter2@bucket/model",
        "s3://bucket/model?secret_key=hunter2",
        "abfs://account:hunter2@box/model",
        "abfs://box@account.dfs.core.windows.net/model?sv=2024&sig=hunter2",
        "hdfs://user:hunter2@host:8020/model",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="Put it into the environment") as caught:
        Folder(uri)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["hdfs://host:8020/m", "abfs://account@127.0.0.1:10000/box/a:b@c", "s3://b/a:b@c"]
)
def test_ports_and_colons_are_no_credentials(uri: str) -> None:
    assert Folder(uri).uri == uri


def test_size_and_delete_are_of_the_whole_tree(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "tree"))
    (folder / "a" / "b").write_bytes(b"12")
    (folder / "c").write_bytes(b"345")
    assert (folder.size(), (folder / "c").size(), (folder / "none").size()) == (5, 3, 0)
    folder.delete()
    folder.delete()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("earlier", [None, b"earlier"])
def test_write_that_fails_leaves_nothing(tmp_path: Path, earlier: bytes | None) -> None:
    file = Folder(str(tmp_path / "x"))
    if earlier:
        file.write_bytes(earlier)
    with suppress(KeyboardInterrupt), file.writing() as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


FULL_DISK = """
import sys
from nmf_dask.errors import RetryableError
from nmf_dask.store import ModelFolder, open_run
from tests.small_models import FIRST, SECOND, write_run
model = ModelFolder(sys.argv[1])
write_run(model.run(FIRST))
try:
    model.run(SECOND).w_part(0).write_bytes(bytes(2**20))
except RetryableError as error:
    print(error.exit_code, error)
print(open_run(model.uri).run_id, model.run(SECOND).w_part(0).exists())
"""


def test_full_disk_is_worth_retrying_and_hurts_no_committed_run(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or os.getuid() != 0:
        pytest.skip("a full disk needs a file system of its own, which only root can mount")
    mounted = f'mount -t tmpfs -o size=512k tmpfs {tmp_path} && exec "$0" "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mounted, sys.executable, "-c", FULL_DISK, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"no file system could be mounted: {done.stderr.strip()}")
    first, second = done.stdout.splitlines()
    assert first.startswith("75 ")
    assert "part-00000.parquet: the disk is full" in first
    assert second == f"{FIRST} False"


def test_the_disk_is_asked_for_each_file_and_an_error_of_one_is_told(tmp_path, monkeypatch):
    files = [Folder(tmp_path / f"{number}") for number in range(50)]
    for file in files:
        file.write_bytes(b"1")
    asked = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: asked.append(os.fstat(descriptor).st_ino))
    sync([*files, Folder("s3://bucket/file")])
    assert sorted(asked) == sorted(os.stat(file.path).st_ino for file in files)

    def full(descriptor):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        sync(files)
