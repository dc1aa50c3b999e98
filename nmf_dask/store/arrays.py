"""Staged arrays: blocks and checkpoints as files that are complete or not readable at all.

One uncompressed Arrow IPC file holds several arrays: a record batch each, of one uint8 column with the
array's own bytes, and the names, dtypes and shapes in the schema's metadata. The footer comes last, so what a
killed writer leaves does not open. Local files are mapped into memory and nothing is copied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nmf_dask.errors import InputDataError, RetryableError
from nmf_dask.store.folder import Folder, MissingFileError, reported

DTYPES = ("uint8", "int32", "int64", "float32", "float64")
MADE_AGAIN = "run the same command again, which makes this intermediate file again"
_KEY = b"nmf_dask.arrays"


class StageDamaged(RetryableError):  # noqa: N818 - a state of the file first, an error second
    """A staged file is missing, cut short or something else: build it again from what it came from.

    Where that ends a job, which had written it, the same command makes it again: it is no fault of the input.
    """


def write_arrays(file: Folder, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays of bytes, int32, int64, float32 or float64, of any shape, into one file.

    A C-contiguous array is written without a copy. An earlier file of that name is replaced; whoever has it
    mapped keeps the old content. Raises ValueError for another dtype, RetryableError for a full disk.
    """
    told = []
    for name, array in arrays.items():
        if array.dtype.name not in DTYPES:
            raise ValueError(f"array {name} is {array.dtype}; staged arrays are {', '.join(DTYPES)}")
        told.append({"name": name, "dtype": array.dtype.name, "shape": array.shape})
    schema = pa.schema([pa.field("bytes", pa.uint8())], metadata={_KEY: json.dumps(told).encode()})
    with file.writing() as stream, pa.ipc.new_file(stream, schema) as writer:
        for array in arrays.values():
            # By the dtype's name, so that a foreign byte order becomes this machine's.
            own = np.ascontiguousarray(array, dtype=array.dtype.name)
            content = pa.py_buffer(own.reshape(-1).view(np.uint8))
            column = pa.Array.from_buffers(pa.uint8(), content.size, [None, content])
            writer.write_batch(pa.RecordBatch.from_arrays([column], schema=schema))


def read_arrays(file: Folder) -> dict[str, NDArray[Any]]:
    """The arrays of one staged file, read-only; mapped where the file is local, else read at once.

    Raises StageDamaged where the file is missing, incomplete or not a staged file.
    """
    try:
        with reported("read", str(file)):
            return _arrays_of(_source(file), str(file))
    except StageDamaged:
        raise
    except MissingFileError as error:
        raise StageDamaged(f"{file} is missing; {MADE_AGAIN}") from error
    except (InputDataError, ValueError, LookupError, TypeError, MemoryError, RecursionError) as error:
        raise StageDamaged(
            f"{file} is incomplete or not a staged file ({error.__cause__ or error}); {MADE_AGAIN}"
        ) from error


def _source(file: Folder) -> pa.NativeFile:
    if not file.is_local:
        with file.fs.open_input_stream(file.path, compression=None) as stream:
            return pa.BufferReader(stream.read_buffer())
    return pa.memory_map(file.path, "r")


def _arrays_of(source: pa.NativeFile, where: str) -> dict[str, NDArray[Any]]:
    reader = pa.ipc.open_file(source)
    metadata = reader.schema.metadata or {}
    if _KEY not in metadata:
        raise StageDamaged(f"{where} is an Arrow file of something else")
    told = json.loads(metadata[_KEY])
    if reader.num_record_batches != len(told):
        raise StageDamaged(f"{where} holds {reader.num_record_batches} arrays where it says {len(told)}")
    return {
        one["name"]: _array(reader.get_batch(index), one["dtype"], tuple(one["shape"]))
        for index, one in enumerate(told)
    }


def _array(batch: pa.RecordBatch, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if dtype not in DTYPES:
        raise ValueError(f"an array of {dtype}")
    content = batch.column(0).buffers()[1]
    if batch.num_rows == 0:
        empty = np.empty(shape, dtype)
        empty.flags.writeable = False
        return empty
    array = np.frombuffer(content, dtype, count=batch.num_rows // np.dtype(dtype).itemsize).reshape(shape)
    array.flags.writeable = False
    return array
