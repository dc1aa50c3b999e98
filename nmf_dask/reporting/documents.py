"""What a pass over W tells: the documents of the largest weight in each topic, and topics by date and by label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nmf_dask.corpus import in_known_zone, python_value
from nmf_dask.store import weights_of

SLICE_ROWS = 1 << 13
MOST_LABELS = 1000
"""Values beyond which a column is no label: a title, an author, a key."""
MOST_DAYS = 4000
"""Dates that are held; when there are more, they become months, and then years."""
MOST_BINS = 120
"""Points of time that are shown."""
_STEPS = ("D", "M", "Y")
_OWN = ("topic", "weights")


class Document(NamedTuple):
    """A document: its place in W, its id, its weight in the topic, and the topic's share of it."""

    row: int
    id: Any
    weight: float
    share: float


@dataclass
class Typical:
    """Keeps the `n` documents of the largest weight in each topic; of equal weights the first ones."""

    n: int
    best: list[list[Document]]

    def add(self, W: NDArray[np.float32], explained: NDArray[np.float64], ids: Any, row: int) -> None:
        """Take in documents: weights (n, k), what topics put into them (n, k), their ids, the row of the first."""
        keep = min(self.n, len(W))
        if not keep:
            return
        least = np.partition(W, -keep, axis=0)[-keep]
        full = [one[-1].weight if len(one) == self.n else 0.0 for one in self.best]
        floor = np.array(full, np.float32)
        found = np.argwhere(np.greater_equal(W, least) & np.greater(W, floor))
        totals = explained.sum(axis=1)
        order = np.lexsort((found[:, 0], -W[found[:, 0], found[:, 1]]))
        taken = np.zeros(len(self.best), np.int64)
        for at, topic in found[order].tolist():
            if taken[topic] < self.n:
                taken[topic] += 1
                share = explained[at, topic] / totals[at]
                self.best[topic].append(
                    Document(row + at, python_value(ids[at]), float(W[at, topic]), float(share))
                )
        for one in self.best:
            one.sort(key=lambda document: (-document.weight, document.row))
            del one[self.n :]


@dataclass
class ByLabel:
    """Sums of what topics put into the documents of each value of a column; None of them where there are too many."""

    name: str
    sums: dict[str, NDArray[np.float64]] | None = field(default_factory=dict)

    def add(self, column: pa.Array, explained: NDArray[np.float64]) -> None:
        """Take in documents (n,) and what topics put into them (n, k)."""
        if self.sums is None:
            return
        encoded = column.cast(pa.string()).dictionary_encode(null_encoding="mask")
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        names = encoded.dictionary.to_pylist()
        if len(names) + len(self.sums) > 2 * MOST_LABELS:
            self.sums = None
            return
        for code, total in _summed(codes, explained):
            name = names[code] if code >= 0 else "(none)"
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        if len(self.sums) > MOST_LABELS:
            self.sums = None


@dataclass
class ByDate:
    """Sums of what topics put into the documents of each day; of each month or year where days are many.

    A day is that of the column's time zone; of UTC where this machine does not know the zone.
    """

    name: str
    step: str = "D"
    sums: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    n_without: int = 0

    def add(self, column: pa.Array, explained: NDArray[np.float64]) -> None:
        """Take in documents (n,) and what topics put into them (n, k)."""
        days = in_known_zone(column).cast(pa.date32(), safe=False).cast(pa.int32())
        known = days.is_valid().to_numpy(zero_copy_only=False)
        self.n_without += int(len(days) - known.sum())
        at = days.drop_null().to_numpy().astype("M8[D]").astype(f"M8[{self.step}]").astype(np.int64)
        for when, total in _summed(at, explained[known]):
            self.sums[when] = self.sums[when] + total if when in self.sums else total
        while len(self.sums) > MOST_DAYS and self.step != "Y":
            coarser = self._coarser()
            self.step, self.sums = coarser.step, coarser.sums

    def shown(self) -> ByDate:
        """The same in steps that can be shown: MOST_BINS at most (of years, the last ones).

        In months or years, too, where these tell the dates apart as well. Steps between them of which there is no
        document are there as well, with zeros: time is not cut short.
        """
        shown: ByDate = replace(self, sums=dict(self.sums))
        while len(shown.sums) > 1 and shown.step != "Y":
            coarser = shown._coarser()
            if len(coarser.sums) < len(shown.sums) and max(shown.sums) - min(shown.sums) < MOST_BINS:
                break
            shown = coarser
        shown.sums = dict(sorted(shown.sums.items())[-MOST_BINS:])
        if shown.sums and max(shown.sums) - min(shown.sums) < MOST_BINS:
            nothing = np.zeros_like(shown.sums[min(shown.sums)])
            steps = range(min(shown.sums), max(shown.sums) + 1)
            shown.sums = {when: shown.sums.get(when, nothing) for when in steps}
        return shown

    def label(self, when: int) -> str:
        """A step as ISO 8601 has it: 2026, 2026-11 or 2026-11-24."""
        return str(np.array(when, f"M8[{self.step}]"))

    def _coarser(self) -> ByDate:
        step = _STEPS[_STEPS.index(self.step) + 1]
        sums: dict[int, NDArray[np.float64]] = {}
        for when, total in self.sums.items():
            at = int(np.array(when, f"M8[{self.step}]").astype(f"M8[{step}]").astype(np.int64))
            sums[at] = sums[at] + total if at in sums else total
        return replace(self, step=step, sums=sums)


def _summed(codes: NDArray[Any], explained: NDArray[np.float64]) -> Iterable[tuple[int, NDArray[np.float64]]]:
    """The sum of the rows of each code."""
    if not len(codes):
        return []
    order = np.argsort(codes, kind="stable")
    there, starts = np.unique(codes[order], return_index=True)
    return zip(there.tolist(), np.add.reduceat(explained[order], starts, axis=0), strict=True)


@dataclass
class Overview:
    """What the pass gathered. Memory: k times documents shown, days, and labels, however many documents there are."""

    n_documents: int
    n_without_topic: int
    id_name: str
    id_type: pa.DataType
    typical: list[list[Document]]
    dates: list[ByDate]
    labels: list[ByLabel]


def overview(parts: Iterable[pa.Table], sums: NDArray[np.float64], n: int) -> Overview:
    """Go once over W, a part at a time: `n` documents a topic, and each topic's share of every date and label.

    `sums` (k,) are those of the rows of H: what a topic puts into a document is its weight times that. Columns of dates
    and timestamps are dates; of strings, whole numbers and booleans, labels.
    """
    k = len(sums)
    found = Overview(0, 0, "doc_id", pa.int64(), [], [], [])
    typical = Typical(n, [[] for _ in range(k)])
    for number, part in enumerate(parts):
        if number == 0:
            found.id_name, found.id_type = part.schema.names[0], part.schema.types[0]
            for one in part.schema:
                if one.name not in (found.id_name, *_OWN):
                    _add_column(found, one)
        for start in range(0, len(part), SLICE_ROWS):
            rows = part.slice(start, SLICE_ROWS)
            W = weights_of(rows, k)
            explained = W * sums
            typical.add(W, explained, rows[found.id_name], found.n_documents)
            groups: list[ByDate | ByLabel] = [*found.dates, *found.labels]
            for one in groups:
                one.add(_array(rows[one.name]), explained)
            found.n_documents += len(rows)
            found.n_without_topic += int(pc.sum(rows["topic"].is_null()).as_py() or 0)
    found.typical = typical.best
    found.dates = [one for one in found.dates if one.sums]
    found.labels = [one for one in found.labels if one.sums or one.sums is None]
    return found


def _add_column(found: Overview, one: pa.Field) -> None:
    kind = one.type.value_type if pa.types.is_dictionary(one.type) else one.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        found.dates.append(ByDate(one.name))
    elif any(check(kind) for check in _LABELS):
        found.labels.append(ByLabel(one.name))


_LABELS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_integer,
    pa.types.is_boolean,
)


def _array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)


def as_text(value: Any) -> str:
    """An id or a date as the page shows it."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, pa.Scalar):
        return str(in_known_zone(value).cast(pa.string()).as_py())
    return value.isoformat() if isinstance(value, date) else str(value)
