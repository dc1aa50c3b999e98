"""Staged arrays: complete or refused, and never copied."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nmf_dask.store import Folder, StageDamaged, read_arrays, write_arrays
from nmf_dask.store.arrays import DTYPES
from tests.small_models import started

ARRAYS = hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=9))


@settings(max_examples=60, deadline=None)
@given(arrays=st.dictionaries(st.text(max_size=5), ARRAYS, max_size=4))
def test_what_is_read_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, Any]
) -> None:
    file = Folder(str(tmp_path_factory.mktemp("stage") / "block.arrow"))
    write_arrays(file, arrays)
    read = read_arrays(file)
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()
        assert not read[name].flags.writeable


@pytest.mark.parametrize(
    "array", [np.arange(12.0).reshape(3, 4).T, np.arange(20)[::2], np.arange(5, dtype=">f4")]
)
def test_other_layouts_are_stored_by_value(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    write_arrays(Folder(str(tmp_path / "x")), {"a": array})
    np.testing.assert_array_equal(read_arrays(Folder(str(tmp_path / "x")))["a"], array)


def test_dtype_that_is_not_staged_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a is bool"):
        write_arrays(Folder(str(tmp_path / "x")), {"a": np.ones(3, bool)})
    assert os.listdir(tmp_path) == []


def test_neither_writing_nor_reading_a_local_file_copies_it(tmp_path: Path) -> None:
    file, array = Folder(str(tmp_path / "x")), np.ones(8 * 2**20, np.float32)
    pool = pa.default_memory_pool()
    before, peak = pool.bytes_allocated(), pool.max_memory()
    write_arrays(file, {"a": array})
    read = read_arrays(file)["a"]
    assert pool.bytes_allocated() - before < 2**20
    assert pool.max_memory() - peak < 2**20
    # A mapping shows what is written into its file afterwards; a copy would not.
    with open(file.path, "r+b") as stream:
        stream.write(b"\x00" * 2**20)
    assert read[0] == 0


def test_file_cut_at_any_place_is_damaged(tmp_path: Path) -> None:
    file = Folder(str(tmp_path / "block"))
    write_arrays(file, {"a": np.arange(3, dtype=np.int32), "b": np.ones((2, 2))})
    whole = file.read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(StageDamaged, match="cut is incomplete"):
            read_arrays(Folder(str(tmp_path / "cut")))


def test_file_with_too_few_arrays_or_of_something_else_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(StageDamaged, match="none is missing"):
        read_arrays(Folder(str(tmp_path / "none")))
    (tmp_path / "text").write_text("hello, this is no Arrow file" * 9)
    with pytest.raises(StageDamaged, match="text is incomplete or not"):
        read_arrays(Folder(str(tmp_path / "text")))
    with pa.ipc.new_file(str(tmp_path / "other"), pa.schema([("x", pa.int8())])):
        pass
    with pytest.raises(StageDamaged, match="something else"):
        read_arrays(Folder(str(tmp_path / "other")))
    told = b'[{"name": "a", "dtype": "float32", "shape": [3]}]'
    schema = pa.schema([("bytes", pa.uint8())], metadata={b"nmf_dask.arrays": told})
    with pa.ipc.new_file(str(tmp_path / "few"), schema) as writer:
        pass
    with pytest.raises(StageDamaged, match="holds 0 arrays where it says 1"):
        read_arrays(Folder(str(tmp_path / "few")))
    with pa.ipc.new_file(str(tmp_path / "short"), schema) as writer:
        writer.write_batch(pa.record_batch([pa.array([0] * 8, pa.uint8())], schema=schema))
    with pytest.raises(StageDamaged, match="short is incomplete"):
        read_arrays(Folder(str(tmp_path / "short")))


KILLED = """
import sys, time
import numpy as np
from nmf_dask.store import Folder, write_arrays
class Slow(dict):
    def values(self):
        for array in super().values():
            yield array
            print("written", flush=True)
            time.sleep(60)
write_arrays(Folder(sys.argv[1]), Slow(a=np.ones(1000), b=np.ones(1000)))
"""


def test_writer_killed_in_the_middle_leaves_what_is_refused(tmp_path: Path) -> None:
    with started(KILLED, str(tmp_path / "block")) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.kill()
    assert (tmp_path / "block").stat().st_size >= 8000
    with pytest.raises(StageDamaged):
        read_arrays(Folder(str(tmp_path / "block")))


REWRITTEN = """
import sys
import numpy as np
from nmf_dask.store import Folder, read_arrays, write_arrays
file = Folder(sys.argv[1])
write_arrays(file, {"a": np.full(10**6, 7)})
mapped = read_arrays(file)["a"]
write_arrays(file, {"a": np.ones(1)})
print(mapped.sum(), read_arrays(file)["a"].sum())
file.delete()
print(mapped.sum())
"""


def test_block_written_again_or_deleted_does_not_kill_who_has_it_mapped(tmp_path: Path) -> None:
    # In a process of its own: cutting a mapped file short kills with SIGBUS.
    with started(REWRITTEN, str(tmp_path / "block")) as process:
        printed, _ = process.communicate()
    assert process.returncode == 0
    assert printed.split() == ["7000000", "1.0", "7000000"]


WRITES = """
import sys
import numpy as np
from nmf_dask.store import Folder, write_arrays
print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    write_arrays(Folder(sys.argv[1]), {"a": np.arange(10**5)})
"""


def test_two_writers_of_one_block_leave_a_whole_one(tmp_path: Path) -> None:
    writers = [started(WRITES, str(tmp_path / "block")) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdin is not None
        writer.stdout.readline()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    seen = 0
    deadline = time.monotonic() + 60
    while any(writer.poll() is None for writer in writers) and time.monotonic() < deadline:
        try:
            array = read_arrays(Folder(str(tmp_path / "block")))["a"]
        except StageDamaged:
            continue
        assert array[-1] == 10**5 - 1
        seen += 1
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert seen
    assert len(read_arrays(Folder(str(tmp_path / "block")))["a"]) == 10**5
