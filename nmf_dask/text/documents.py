"""Arrow's strings as the bytes that the kernels read: valid UTF-8 that folds letter by letter."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nmf_dask.errors import InputDataError
from nmf_dask.text.fold import CAPITAL_SIGMA


class Documents(NamedTuple):
    """Document d is data[begins[d]:ends[d]], valid UTF-8; a null has no bytes."""

    data: NDArray[np.uint8]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]

    @property
    def ascii_only(self) -> bool:
        """Whether the kernels meet no code point beyond ASCII."""
        if not len(self.begins):
            return True
        return int(self.data[self.begins[0] : self.ends[-1]].max(initial=0)) < 0x80

    @property
    def longest(self) -> int:
        """Bytes of the longest document."""
        return int((self.ends - self.begins).max(initial=0))


def string_chunks(texts: Any) -> tuple[list[Any], int]:
    """The chunks of an array of strings, as `string` or `large_string`, and how many documents were invalid.

    Invalid bytes become U+FFFD, as `bytes.decode(errors="replace")` does. InputDataError for other types.
    """
    chunks, n_invalid = [], 0
    for chunk in texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]:
        strings = _as_strings(chunk)
        try:
            if not documents_of(strings).ascii_only:
                strings.validate(full=True)
        except pa.ArrowInvalid:
            replacements = _repairs(strings)
            strings = _with(strings, replacements)
            n_invalid += len(replacements)
        chunks.append(strings)
    return chunks, n_invalid


def documents_of(strings: Any) -> Documents:
    """The buffers of one chunk, without a copy of its text."""
    if len(strings) == 0:
        return Documents(_read_only(np.zeros(0, np.uint8)), np.zeros(0, np.int64), np.zeros(0, np.int64))
    width = np.dtype(np.int64 if pa.types.is_large_string(strings.type) else np.int32)
    _, places, content = strings.buffers()
    offsets = np.frombuffer(places, width, len(strings) + 1, strings.offset * width.itemsize).astype(np.int64)
    data = np.zeros(0, np.uint8) if content is None else np.frombuffer(content, np.uint8)
    begins: NDArray[np.int64] = offsets[:-1]
    ends: NDArray[np.int64] = offsets[1:]
    if strings.null_count:  # the bytes under a null may be anything
        ends = np.where(strings.is_valid().to_numpy(zero_copy_only=False), ends, begins)
    return Documents(_read_only(data), begins, ends)


def lowered_by_python(strings: Any) -> Any:
    """Lower each document that holds a capital sigma as a whole: neighbours decide which small one it is."""
    documents = documents_of(strings)
    if documents.ascii_only:
        return strings
    data, _, ends = documents
    lead, trail = CAPITAL_SIGMA.encode()
    hits = np.flatnonzero(data[:-1] == lead)
    hits = hits[data[hits + 1] == trail]
    if not len(hits):
        return strings
    rows = np.unique(np.searchsorted(ends, hits, side="right"))
    rows = rows[rows < len(ends)]
    texts = strings.take(pa.array(rows)).to_pylist()
    return _with(strings, {row: text.lower() for row, text in zip(rows.tolist(), texts, strict=True) if text})


def _read_only(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Arrow's buffers are read-only or not, as it happens; the kernels are compiled for the one kind."""
    view = data.view()
    view.flags.writeable = False
    return view


def _as_strings(chunk: Any) -> Any:
    if pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type):
        return chunk
    if pa.types.is_null(chunk.type):
        return pa.nulls(len(chunk), pa.string())
    kind = chunk.type.value_type if pa.types.is_dictionary(chunk.type) else chunk.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()):
        raise InputDataError(f"the text column is of type {chunk.type}; it must hold strings")
    return chunk.cast(pa.large_string())


def _repairs(strings: Any) -> dict[int, str]:
    """The rows of invalid UTF-8, with the text that is read instead."""
    data, begins, ends = documents_of(strings)
    repairs = {}
    for row, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
        content = data[begin:end].tobytes()
        try:
            content.decode()
        except UnicodeDecodeError:
            repairs[row] = content.decode(errors="replace")
    return repairs


def _with(strings: Any, replacements: dict[int, str]) -> Any:
    """The same documents, some of them with another text."""
    if not replacements:
        return strings
    rows = sorted(replacements)
    mask = np.zeros(len(strings), bool)
    mask[rows] = True
    return pc.replace_with_mask(
        strings, pa.array(mask), pa.array([replacements[r] for r in rows], strings.type)
    )
