"""Counts do not depend on what memory held before: kernels work in arrays that nobody cleared."""

import numpy as np
import pyarrow as pa

from nmf_dask.config import VectorizerSettings
from nmf_dask.text import Counts, count_texts, counting
from nmf_dask.text.terms import empty_tally
from tests.small_corpora import generated_texts


def told(counts: Counts) -> tuple[list[int], list[int], list[tuple[int, ...]]]:
    terms = counts.terms.sort_by([("bucket", "ascending"), ("term", "ascending")])
    columns = [terms["bucket"].to_pylist(), terms["document_frequency"].to_pylist()]
    return counts.indptr.tolist(), counts.counts.tolist(), list(zip(*columns, strict=True))


def test_partitions_that_take_turns_are_counted_the_same():
    """An empty slot was once compared with the term that an earlier call had left in memory."""
    texts = generated_texts(300)
    parts = [pa.array(texts[i : i + 20]) for i in range(0, 300, 20)]
    settings = VectorizerSettings()
    first = [told(count_texts(part, settings)) for part in parts]
    junk = np.random.default_rng(0)
    for turn in range(600):
        held = [junk.integers(0, 255, int(junk.integers(100, 200_000)), dtype=np.uint8) for _ in range(3)]
        part = int(junk.integers(len(parts)))
        assert told(count_texts(parts[part], settings)) == first[part], (
            f"turn {turn}, {len(held)} arrays held"
        )


def test_an_empty_slot_is_no_match_for_what_memory_holds(monkeypatch):
    """The records of an earlier call, left where this one's will be: its first term must not be found in them."""
    settings = VectorizerSettings()
    used = []

    def kept(*arguments):
        tally = empty_tally(*arguments)
        if used:
            tally.records[: len(used[0].records)] = used[0].records[: len(tally.records)]
        used.append(tally)
        return tally

    monkeypatch.setattr(counting, "empty_tally", kept)
    count_texts(pa.array(["alpha beta"]), settings)
    counts = count_texts(pa.array(["gamma alpha alpha"]), settings)
    assert sorted(counts.terms["term"].to_pylist()) == ["alpha", "gamma"]
    assert counts.counts.tolist() == [1, 2]
