"""The tree of merged tables: the same table by ranges as at once, in few calls, each of bounded size."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from nmf_dask import vocabulary
from nmf_dask.config import VectorizerSettings
from nmf_dask.pipeline import merging
from nmf_dask.pipeline.planning import MIB, amounts, table_bytes
from nmf_dask.tasks import Batch, Ref, SerialTasks
from nmf_dask.text import count_texts
from nmf_dask.vocabulary import TermTable, merge
from tests.small_corpora import generated_texts

SETTINGS = VectorizerSettings(n_features=2**7)  # of 300 words: most buckets hold several


def labels(batch: Batch) -> Counter[str]:
    return Counter(ref.rpartition("-")[0] for ref in batch.calls)


def tables_of(texts: list[str], n: int, settings: VectorizerSettings) -> list[TermTable]:
    return [TermTable.of(count_texts(pa.array(texts[i::n]), settings)) for i in range(n)]


def given(batch: Batch, tables: list[TermTable]) -> list[Ref]:
    return [batch.call("table", lambda table=table: table) for table in tables]


@pytest.mark.parametrize("most_bytes", [50, 5_000, 500_000])
@pytest.mark.parametrize("n_tables", [1, 2, 9, 17])
def test_ranges_give_the_table_of_the_whole(monkeypatch, most_bytes, n_tables):
    """Catches a bucket that two ranges hold, or none, where levels of the tree are cut into different numbers."""
    monkeypatch.setattr(merging, "MERGE_BYTES", most_bytes)
    tables, batch = tables_of(generated_texts(340), n_tables, SETTINGS), Batch()
    merged = merging.merged_table(batch, given(batch, tables), [2_000] * n_tables, SETTINGS)
    [found] = SerialTasks().submit(batch, [merged])
    expected = merge(tables).named()
    assert found.buckets.equals(expected.buckets)
    assert found.terms.equals(expected.terms)
    assert found.n_documents == expected.n_documents == 340
    if most_bytes == 50 and n_tables == 17:
        assert labels(batch)["named"] > 1  # else no range was tried


def test_ranges_keep_no_more_terms_than_one_table_would(monkeypatch):
    """Catches merges that grow with the corpus: each of many ranges with as many terms as are meant for all."""
    monkeypatch.setattr(merging, "MERGE_BYTES", 50)
    monkeypatch.setattr(vocabulary, "MAX_TERMS", 200)
    settings = VectorizerSettings(n_features=2**6)
    tables, batch = tables_of(generated_texts(400), 9, settings), Batch()
    merging.merged_table(batch, given(batch, tables), [2_000] * 9, settings)
    last = [call[1] for ref, call in batch.calls.items() if ref.startswith("named-")]
    found = SerialTasks().submit(batch, last)
    assert len(found) > 4
    assert 100 < sum(table.terms.num_rows for table in found) <= 200
    exact = merge(tables).buckets
    assert pa.concat_tables(table.buckets for table in found).combine_chunks().equals(exact)


@pytest.mark.parametrize(("partition", "n"), [(64 * MIB, 16), (16 * MIB, 64), (MIB, 500), (512 * MIB, 5)])
def test_a_merge_needs_no_more_than_counting_does(partition, n):
    """Catches a score of ranges, each a task, where partitions are large, and merges too large for a worker."""
    vectorizer = VectorizerSettings()
    batch = Batch()
    tables = [batch.call("table", object) for _ in range(n)]
    merging.merged_table(batch, tables, [partition] * n, vectorizer)
    most = max(merging.MERGE_BYTES, partition * amounts(0, vectorizer).counting)
    terms = amounts(n * partition, vectorizer).terms
    ranges = labels(batch)["named"]
    assert table_bytes(terms) / ranges <= most
    assert ranges == 1 or table_bytes(terms) / (ranges / 2) > most
    assert labels(batch)["merge"] <= np.ceil(n / 3) * ranges
