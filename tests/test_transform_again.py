"""Transforms that are run again: files that came or changed, drivers and workers that died, bad input."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nmf_dask import TopicModel, fit, transform, update
from nmf_dask.cli import main
from nmf_dask.errors import ConfigurationError, InputDataError, RetryableError
from nmf_dask.observer import Observer
from nmf_dask.store import Folder, TransformFolder
from tests.small_corpora import (
    ROOT,
    environment,
    files_of,
    generated_texts,
    run_command,
    settings_of,
    write_corpus,
)
from tests.transforms import job, parts_of, table_of

TEXTS = generated_texts(240)
SMALL = {"partition_bytes": 2000}
NEW_ONLY = {"new_only": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    fit(settings_of(write_corpus(folder / "corpus", TEXTS), folder / "m"))
    return folder / "m"


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "c", TEXTS, 3)


def add(corpus: Path, name: str, texts, first: int = 1000) -> None:
    ids = [f"d{i:05d}" for i in range(first, first + len(texts))]
    pq.write_table(pa.table({"doc_id": ids, "text": pa.array(texts, pa.string())}), corpus / name)


def rows_of(output: Path) -> dict[str, list[float]]:
    return {row["doc_id"]: row["weights"] for row in table_of(output).to_pylist()}


class Warned(Observer):
    """Keeps what was warned of."""

    def __init__(self):
        self.messages = []

    def warn(self, message, **fields):
        self.messages.append(message)


class TestNewOnly:
    def test_nothing_new_does_nothing(self, tmp_path, model, corpus):
        transform(job(model, corpus, tmp_path / "w", transform=NEW_ONLY))
        before = files_of(tmp_path / "w")
        for new_only in (True, False):
            result = transform(job(model, corpus, tmp_path / "w", transform={"new_only": new_only}))
            assert result.told["status"] == "nothing new"
            assert result.told["partitions_skipped"] == 3
            assert files_of(tmp_path / "w") == before

    def test_a_file_that_came_is_added_and_parts_keep_their_names(self, tmp_path, model, corpus):
        transform(job(model, corpus, tmp_path / "w", transform=NEW_ONLY))
        before = parts_of(tmp_path / "w")
        add(corpus, "a-first-by-name.parquet", TEXTS[:10])
        result = transform(job(model, corpus, tmp_path / "w", transform=NEW_ONLY))
        told = result.told
        assert (told["partitions_done"], told["partitions_skipped"], told["n_documents"]) == (1, 3, 10)
        after = parts_of(tmp_path / "w")
        assert before.items() < after.items()
        [new] = after.keys() - before.keys()
        assert new.startswith("W/part-00003-")
        transform(job(model, corpus, tmp_path / "whole"))
        assert rows_of(tmp_path / "w") == rows_of(tmp_path / "whole")

    def test_only_the_new_files_may_be_named(self, tmp_path, model, corpus):
        transform(job(model, corpus, tmp_path / "w", transform=NEW_ONLY))
        add(tmp_path / "c", "night.parquet", TEXTS[:10])
        transform(job(model, corpus / "night.parquet", tmp_path / "w", transform=NEW_ONLY))
        assert len(rows_of(tmp_path / "w")) == len(TEXTS) + 10

    def test_a_file_that_changed_is_made_again_and_its_parts_go(self, tmp_path, model, corpus):
        transform(job(model, corpus, tmp_path / "w", transform=NEW_ONLY))
        before = parts_of(tmp_path / "w")
        add(corpus, "part-00001.parquet", TEXTS[:5])
        result = transform(job(model, corpus, tmp_path / "w", transform=NEW_ONLY))
        assert (result.told["partitions_done"], result.told["partitions_skipped"]) == (1, 2)
        after = parts_of(tmp_path / "w")
        assert len(after) == len(before) == 3
        assert len(before.keys() & after.keys()) == 2
        assert len(rows_of(tmp_path / "w")) == 160 + 5

    def test_the_time_of_change_alone_is_a_change(self, tmp_path, model, corpus):
        transform(job(model, corpus, tmp_path / "w", transform=NEW_ONLY))
        os.utime(corpus / "part-00001.parquet", ns=(1, 1))
        result = transform(job(model, corpus, tmp_path / "w", transform=NEW_ONLY))
        assert result.told["partitions_done"] == 1

    def test_a_file_under_another_name_is_told(self, tmp_path, model, corpus):
        transform(job(model, corpus, tmp_path / "w", transform=NEW_ONLY))
        for old, new in (("part-00001.parquet", "b.parquet"), ("part-00002.parquet", "a.parquet")):
            (corpus / old).rename(corpus / new)
        add(corpus, "came.parquet", TEXTS[:10])
        observer = Warned()
        transform(job(model, corpus, tmp_path / "w", transform=NEW_ONLY), observer)
        [message] = observer.messages
        assert f"{corpus / 'a.parquet'} has size and time of {corpus / 'part-00002.parquet'}" in message
        assert "and 1 more like it" in message

    def test_files_that_came_or_went_are_no_other_names(self, tmp_path, model, corpus):
        transform(job(model, corpus, tmp_path / "w", transform=NEW_ONLY))
        (corpus / "part-00001.parquet").unlink()
        shutil.copy2(corpus / "part-00002.parquet", corpus / "copy.parquet")  # of one that is still there
        observer = Warned()
        transform(job(model, corpus, tmp_path / "w", transform=NEW_ONLY), observer)
        assert observer.messages == []

    def test_row_numbers_go_on(self, tmp_path, model, corpus):
        settings = job(model, corpus, tmp_path / "w", transform=NEW_ONLY, corpus={"id_column": None})
        transform(settings)
        add(corpus, "a.parquet", TEXTS[:10])
        transform(settings)
        assert table_of(tmp_path / "w")["doc_id"].to_pylist() == list(range(len(TEXTS) + 10))

    def test_without_it_another_input_is_refused_with_the_difference(self, tmp_path, model, corpus):
        transform(job(model, corpus, tmp_path / "w"))
        add(corpus, "new.parquet", TEXTS[:10])
        (corpus / "part-00002.parquet").unlink()
        with pytest.raises(
            InputDataError, match=r"files that came: .*new\.parquet.*not in the input any more.*--new-only"
        ):
            transform(job(model, corpus, tmp_path / "w"))
        assert (tmp_path / "w" / "_SUCCESS").exists()

    def test_another_model_is_refused(self, tmp_path, model, corpus):
        transform(job(model, corpus, tmp_path / "w"))
        fit(settings_of(corpus, tmp_path / "other", model={"n_components": 3}))
        for new_only in (True, False):
            with pytest.raises(InputDataError, match=r"holds W of something else .*the model's run was"):
                transform(job(tmp_path / "other", corpus, tmp_path / "w", transform={"new_only": new_only}))

    def test_a_new_file_with_ids_of_another_type_is_refused(self, tmp_path, model, corpus):
        transform(job(model, corpus, tmp_path / "w"))
        pq.write_table(pa.table({"doc_id": [1, 2], "text": TEXTS[:2]}), corpus / "z.parquet")
        with pytest.raises(InputDataError, match=r"type int64 in .*z\.parquet, but string"):
            transform(job(model, corpus / "z.parquet", tmp_path / "w", transform=NEW_ONLY))
        assert (tmp_path / "w" / "_SUCCESS").exists()

    def test_files_without_rows_are_done_once(self, tmp_path, model, corpus):
        transform(job(model, corpus, tmp_path / "w"))
        add(corpus, "empty.parquet", [])
        settings = job(model, corpus, tmp_path / "w", transform=NEW_ONLY)
        assert transform(settings).told["partitions_done"] == 0
        assert transform(settings).told["status"] == "nothing new"
        with pytest.raises(InputDataError, match="no document"):
            transform(job(model, corpus / "empty.parquet", tmp_path / "w2"))

    def test_as_a_key_and_in_the_environment(self, tmp_path, model, corpus, monkeypatch, capsys):
        file = tmp_path / "job.toml"
        file.write_text(f"[corpus]\ninput = '{corpus}'\n[transform]\nmodel = '{model}'\nnew_only = true\n")
        assert main(["transform", str(file), "--output", str(tmp_path / "w"), "--print-config"]) == 0
        assert "new_only = true" in capsys.readouterr().out
        monkeypatch.setenv("NMF_DASK_TRANSFORM__NEW_ONLY", "false")
        assert main(["transform", str(file), "--print-config"]) == 0
        assert "new_only = false  # NMF_DASK_TRANSFORM__NEW_ONLY" in capsys.readouterr().out
        assert main(["transform", str(file), "--new-only", "--print-config"]) == 0
        assert "new_only = true  # --new-only" in capsys.readouterr().out


KILLED = """
import sys
from pathlib import Path
from nmf_dask.config import Settings
from nmf_dask.pipeline import transform
from tests.faulty_job import Fate
transform(Settings.model_validate_json(Path(sys.argv[1]).read_text()), Fate(sys.argv[2], "kill"))
"""


def killed(folder: Path, settings, moment: str) -> None:
    (folder / "settings.json").write_text(settings.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder / "settings.json"), moment],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr


def half(file: Path) -> None:
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[: len(content) // 2])


class TestInterrupted:
    def test_a_killed_driver_goes_on_and_whole_parts_are_not_made_again(self, tmp_path, model, corpus):
        settings = job(model, corpus, tmp_path / "w", corpus=SMALL)
        transform(job(model, corpus, tmp_path / "undisturbed", corpus=SMALL))
        killed(tmp_path, settings, "transform:4")
        assert not (tmp_path / "w" / "_SUCCESS").exists()
        assert not (tmp_path / "w" / "manifest.json").exists()
        half(sorted((tmp_path / "w" / "W").iterdir())[0])
        again = transform(settings)
        assert again.told["partitions_resumed"] >= 2
        assert again.told["partitions_done"] >= 1
        assert parts_of(tmp_path / "w") == parts_of(tmp_path / "undisturbed")
        assert sorted(path.name for path in (tmp_path / "w").iterdir()) == [
            "W", "_SUCCESS", "manifest.json", "transform.json"
        ]  # fmt: skip
        other = json.loads((tmp_path / "undisturbed" / "transform.json").read_text())
        for key in ("n_documents", "n_empty_documents", "topics"):
            assert again.told[key] == other[key]

    def test_one_killed_in_its_first_part_goes_on(self, tmp_path, model, corpus):
        """There is half a part then, and nothing that says what it is of."""
        transform(job(model, corpus, tmp_path / "undisturbed"))
        due = parts_of(tmp_path / "undisturbed")
        (tmp_path / "w" / "W").mkdir(parents=True)
        (tmp_path / "w" / min(due)).write_bytes(b"PAR1")
        transform(job(model, corpus, tmp_path / "w"))
        assert parts_of(tmp_path / "w") == due
        (tmp_path / "other" / "W").mkdir(parents=True)
        (tmp_path / "other" / "W" / "part-00000.parquet").write_bytes(b"PAR1")
        with pytest.raises(InputDataError, match="neither empty nor the output of a transform: it holds W"):
            transform(job(model, corpus, tmp_path / "other"))

    def test_what_was_committed_can_be_read_all_the_while(self, tmp_path, model, corpus):
        settings = job(model, corpus, tmp_path / "w", corpus=SMALL, transform=NEW_ONLY)
        transform(settings)
        before = rows_of(tmp_path / "w")
        add(corpus, "a.parquet", TEXTS * 2)
        os.utime(corpus / "part-00001.parquet", ns=(1, 1))
        killed(tmp_path, settings, "transform:2")
        assert not (tmp_path / "w" / "_SUCCESS").exists()
        assert rows_of(tmp_path / "w") == before
        transform(settings)
        assert len(rows_of(tmp_path / "w")) == 3 * len(TEXTS)
        assert (tmp_path / "w" / "_SUCCESS").exists()

    def test_resume_never_makes_all_again(self, tmp_path, model, corpus):
        settings = job(model, corpus, tmp_path / "w", corpus=SMALL)
        killed(tmp_path, settings, "transform:4")
        again = transform(job(model, corpus, tmp_path / "w", corpus=SMALL, run={"resume": "never"}))
        assert again.told["partitions_resumed"] == 0
        assert len(rows_of(tmp_path / "w")) == len(TEXTS)

    def test_a_commit_that_was_cut_off_is_finished(self, tmp_path, model, corpus):
        transform(job(model, corpus, tmp_path / "w"))
        before = files_of(tmp_path / "w")
        (tmp_path / "w" / "_SUCCESS").unlink()
        (tmp_path / "w" / "W" / "part-00009-0123456789abcdef.parquet").write_bytes(b"of an earlier version")
        assert transform(job(model, corpus, tmp_path / "w")).told["partitions_done"] == 0
        after = files_of(tmp_path / "w")
        del before["transform.json"], after["transform.json"]
        assert after == before

    def test_two_at_once_are_one(self, tmp_path, model, corpus):
        output = TransformFolder(Folder(str(tmp_path / "w")))
        holder = subprocess.Popen(
            [sys.executable, "-c", "import sys, time\nfrom nmf_dask.store import Folder, TransformFolder\n"
             "with TransformFolder(Folder(sys.argv[1])).lock():\n    time.sleep(60)", str(tmp_path / "w")],
            cwd=ROOT, env=environment(),
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 30
            while not (tmp_path / "w" / "_LOCK").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            with pytest.raises(RetryableError, match=f"locked by process {holder.pid}"):
                transform(job(model, corpus, tmp_path / "w"))
        finally:
            holder.kill()
            holder.wait()
        transform(job(model, corpus, tmp_path / "w"))  # the lock of a dead process does not hold
        assert output.is_finished()

    @pytest.mark.slow
    def test_a_worker_that_dies_is_made_up_for(self, tmp_path, model, corpus):
        class Killer(Observer):
            def advance(self, done, n_bytes=0):
                if done == 2:
                    from distributed import default_client

                    pids = default_client().run(os.getpid)
                    os.kill(sorted(pids.values())[0], 9)

        cluster = {"workers": 2, "threads_per_worker": 1}
        result = transform(job(model, corpus, tmp_path / "w", corpus=SMALL, cluster=cluster), Killer())
        assert result.told["workers_lost"] == 1
        transform(job(model, corpus, tmp_path / "undisturbed", corpus=SMALL))
        assert parts_of(tmp_path / "w") == parts_of(tmp_path / "undisturbed")

    def test_damage_to_a_part_is_noticed_by_file(self, tmp_path, model, corpus):
        transform(job(model, corpus, tmp_path / "w"))
        half(next((tmp_path / "w" / "W").glob("part-00001-*")))
        with pytest.raises(InputDataError, match=r"part-00001-.*it was cut or replaced"):
            table_of(tmp_path / "w")

    def test_damaged_manifest_is_refused(self, tmp_path, model, corpus):
        transform(job(model, corpus, tmp_path / "w"))
        (tmp_path / "w" / "manifest.json").write_text('{"format_version": 1, "inputs": [{}]}')
        with pytest.raises(InputDataError, match=r"manifest\.json is damaged.*delete"):
            transform(job(model, corpus, tmp_path / "w"))


def spoil(file: Path, row_group: int) -> None:
    """Zeros in place of the pages of texts: the footer says nothing of it."""
    chunk = pq.read_metadata(file).row_group(row_group).column(1)
    content = bytearray(file.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    file.write_bytes(content)


class TestBadInput:
    def code(self, *arguments) -> int:
        return main(["transform", *map(str, arguments), "-q"])

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (["--text-column", "txt"], "no column 'txt'. Its columns: doc_id, text. Did you mean 'text'?"),
            (["--id-column", "key"], "no column 'key'"),
            (["--input", "/nowhere"], "does not exist"),
            (["--model", "/nowhere"], "there is no model at /nowhere"),
        ],
    )
    def test_is_told_and_nothing_is_written(self, tmp_path, model, corpus, capsys, change, said):
        arguments = {"--model": model, "--input": corpus, "--output": tmp_path / "w"}
        arguments[change[0]] = change[1]
        assert self.code(*(word for pair in arguments.items() for word in pair)) == 65
        out, err = capsys.readouterr()
        assert said in err
        assert out == ""
        assert not (tmp_path / "w").exists()

    @pytest.mark.parametrize("cluster", [{}, {"workers": 2, "threads_per_worker": 1}])
    def test_a_bad_new_file_takes_nothing_from_anybody(self, tmp_path, model, corpus, cluster):
        """W/ is as it was before, `_SUCCESS` too, whatever other parts were made or under way."""
        sections = {"corpus": SMALL, "transform": NEW_ONLY, "output": {"w_format": "csv"}}
        transform(job(model, corpus, tmp_path / "w", **sections))
        before = files_of(tmp_path / "w")
        add(corpus, "a.parquet", TEXTS)
        add(corpus, "b.parquet", TEXTS, 2000)
        spoil(corpus / "b.parquet", 0)
        os.utime(corpus / "part-00001.parquet", ns=(1, 1))
        with pytest.raises(InputDataError, match=r"b\.parquet.*row group 0 of column 'text'"):
            transform(job(model, corpus, tmp_path / "w", **sections, cluster=cluster))
        after = files_of(tmp_path / "w")
        assert json.loads(after["transform.json"])["status"] == "failed"
        del before["transform.json"], after["transform.json"]
        assert after == before
        (corpus / "b.parquet").unlink()
        assert transform(job(model, corpus, tmp_path / "w", **sections)).told["files_new"] == 2
        assert len(rows_of(tmp_path / "w")) == 2 * len(TEXTS)

    def test_damaged_pages_name_file_row_group_and_column(self, tmp_path, model, corpus, capsys):
        spoil(corpus / "part-00001.parquet", 1)
        assert self.code("--model", model, "--input", corpus, "--output", tmp_path / "w") == 65
        err = capsys.readouterr().err
        assert "part-00001.parquet" in err
        assert "row group 1 of column 'text'" in err
        assert "Traceback" not in err
        told = json.loads((tmp_path / "w" / "transform.json").read_text())
        assert told["status"] == "failed"
        assert "row group 1" in told["error"]
        assert not (tmp_path / "w" / "_SUCCESS").exists()
        write_corpus(corpus, TEXTS, 3)
        assert self.code("--model", model, "--input", corpus, "--output", tmp_path / "w") == 0

    def test_missing_settings_and_places_in_one_another_are_usage(self, tmp_path, model, corpus, capsys):
        assert self.code("--input", corpus) == 2
        err = capsys.readouterr().err
        assert "transform.model is missing: give --model" in err
        assert "output.output is missing" in err
        for output in (model, model / "runs" / "W", model.parent, corpus / "w", corpus):
            assert self.code("--model", model, "--input", corpus, "--output", output) == 2
        with pytest.raises(ConfigurationError, match="one in the other"):
            transform(job(model, corpus, model / "w"))

    def test_an_output_that_is_something_else_is_refused(self, tmp_path, model, corpus):
        (tmp_path / "w").mkdir()
        (tmp_path / "w" / "thesis.tex").write_text("years of work")
        with pytest.raises(InputDataError, match=r"it holds thesis\.tex"):
            transform(job(model, corpus, tmp_path / "w"))
        shutil.copytree(model, tmp_path / "copy")
        with pytest.raises(InputDataError, match="neither empty nor the output of a transform"):
            transform(job(model, corpus, tmp_path / "copy"))
        transform(job(model, corpus, tmp_path / "good"))
        with pytest.raises(InputDataError, match="neither empty nor a model folder"):
            fit(settings_of(corpus, tmp_path / "good"))

    def test_a_model_that_is_damaged_is_refused(self, tmp_path, model, corpus):
        shutil.copytree(model, tmp_path / "m")
        half(next((tmp_path / "m").glob("runs/*/H/part-00000.parquet")))
        with pytest.raises(InputDataError, match=r"H/part-00000\.parquet"):
            transform(job(tmp_path / "m", corpus, tmp_path / "w"))

    def test_too_little_memory_is_refused_by_the_plan(self, tmp_path, model, corpus):
        done = run_command(
            "transform", "--model", model, "--input", corpus, "--output", tmp_path / "w", "--workers", 1,
            "--memory-limit", "100MiB", "--dry-run",
        )  # fmt: skip
        assert done.returncode == 2
        assert "raise --memory-limit" in done.stderr


def test_an_output_is_no_model(tmp_path, model, corpus):
    transform(job(model, corpus, tmp_path / "w"))
    with pytest.raises(InputDataError, match="is the output of a transform, not a model"):
        TopicModel.load(str(tmp_path / "w"))


def test_json_lines_of_nothing_are_nothing_new(tmp_path):
    """Catches a night that stops at a file without a line, for the columns that it does not have."""
    (tmp_path / "c").mkdir()
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(generated_texts(60))]
    (tmp_path / "c" / "a.jsonl").write_text("\n".join(lines))
    corpus = {"id_column": "id"}
    run = fit(settings_of(tmp_path / "c", tmp_path / "m", corpus=corpus))
    given = job(tmp_path / "m", tmp_path / "c", tmp_path / "w", corpus=corpus, transform={"new_only": True})
    transform(given)
    (tmp_path / "c" / "b.jsonl").touch()
    assert transform(given).told["n_documents"] == 0
    assert table_of(tmp_path / "w")["id"].to_pylist() == list(range(60))
    later = settings_of(tmp_path / "c", tmp_path / "m")
    assert update(later).run_id == run.run_id
    with pytest.raises(InputDataError, match="none of the 1 files has a row"):
        transform(job(tmp_path / "m", tmp_path / "c" / "b.jsonl", tmp_path / "n", corpus=corpus))
