"""One table of terms from those of the partitions: a tree of merges, each fit for the memory of a small worker."""

from __future__ import annotations

from typing import NamedTuple

from nmf_dask.blocks import FAN_IN
from nmf_dask.config import VectorizerSettings
from nmf_dask.pipeline.planning import MERGE_BYTES, amounts, table_bytes
from nmf_dask.tasks import Batch, Ref
from nmf_dask.vocabulary import TermTable, merge_within, side_by_side


class Node(NamedTuple):
    """Tables of one set of documents: one a range of buckets (a power of two of them), and the bytes of its text."""

    ranges: list[Ref]
    text_bytes: int

    def covering(self, part: int, of: int) -> Ref:
        """The table that holds the range `part` of `of`, which are at least as many as here."""
        return self.ranges[part * len(self.ranges) // of]


def merged_table(
    batch: Batch, tables: list[Ref], text_bytes: list[int], vectorizer: VectorizerSettings
) -> Ref:
    """The merged table, with one term a bucket: FAN_IN at a time, in the same tree every time.

    What many partitions hold is merged by ranges of buckets, as many as it takes for one merge to need no more than
    counting the largest partition did, or MERGE_BYTES: from the sizes alone, so that the numbers are the same whatever
    memory there is.
    """
    most_bytes = max(MERGE_BYTES, max(text_bytes, default=0) * amounts(0, vectorizer).counting)
    level = [Node([table], size) for table, size in zip(tables, text_bytes, strict=True)]
    while len(level) > 1:
        groups = [level[i : i + FAN_IN] for i in range(0, len(level), FAN_IN)]
        level = [
            _merged(batch, group, vectorizer, most_bytes) if len(group) > 1 else group[0] for group in groups
        ]
    named = [batch.call("named", TermTable.named, table) for table in level[0].ranges]
    return batch.call("table", side_by_side, named) if len(named) > 1 else named[0]


def _merged(batch: Batch, nodes: list[Node], vectorizer: VectorizerSettings, most_bytes: int) -> Node:
    text_bytes, n = sum(node.text_bytes for node in nodes), vectorizer.n_features
    parts = max(len(node.ranges) for node in nodes)
    while parts * most_bytes < table_bytes(amounts(text_bytes, vectorizer).terms) and parts < n:
        parts *= 2
    ranges = [
        batch.call(
            "merge", merge_within, [node.covering(part, parts) for node in nodes],
            n * part // parts, n * (part + 1) // parts, parts,
        )
        for part in range(parts)
    ]  # fmt: skip
    return Node(ranges, text_bytes)
