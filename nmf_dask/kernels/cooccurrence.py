"""In how many sliding windows terms occur, and the terms of one topic together.

The windows of a document are all runs of `window` words in a row, or the whole of one that is shorter: what gensim's
`WordOccurrenceAccumulator` counts over, and as it counts. A term that leaves a window at its front counts as gone until
it comes again at the end, whether or not it stands once more in between; an empty document is one window.
Nothing is done window by window: a term is there from one window to another, and what two such stretches have in common
is added when the first of them ends.
"""

from typing import Any

import numpy as np

from nmf_dask.kernels.compiled import compiled


@compiled
def end_of(
    term: Any, end: Any, begins: Any, topics: Any, starts: Any, places: Any, single: Any, pairs: Any
) -> None:
    """The stretch of a term ends before window number `end`: count it, and the pairs with stretches that go on."""
    n_terms = topics.shape[1]
    begin = begins[term]
    single[term] += end - begin
    for place in range(starts[term], starts[term + 1]):
        topic, rank = places[place] // n_terms, places[place] % n_terms
        for other in range(n_terms):
            beside = topics[topic, other]
            if beside >= 0 and beside != term and begins[beside] >= 0:
                pairs[topic, rank, other] += end - max(begin, begins[beside])
    begins[term] = -1


@compiled(allocates=True)  # type: ignore[untyped-decorator]
def count_windows(
    indptr: Any, terms: Any, positions: Any, lengths: Any, window: Any, topics: Any, starts: Any, places: Any,
    single: Any, pairs: Any,
) -> Any:  # fmt: skip
    """Count documents whose occurrences are `terms` at ascending `positions`; returns the number of windows.

    `topics` (k, n) holds numbers of terms, -1 for none; term t stands in it at `places[starts[t]:starts[t + 1]]`, row
    times n plus column. Adds to `single` (terms,) the windows with a term, to `pairs` (k, n, n) those with two terms of
    one topic, each pair at one of its two places.
    """
    begins = np.full(len(single), -1, np.int64)
    total = np.int64(0)
    for d in range(len(lengths)):
        n_windows = max(np.int64(1), lengths[d] - window + 1)
        total += n_windows
        leaving = indptr[d]
        for i in range(indptr[d], indptr[d + 1]):
            entered = max(np.int64(0), positions[i] - window + 1)
            while positions[leaving] + 1 <= entered:
                if begins[terms[leaving]] >= 0:
                    end = np.int64(positions[leaving] + 1)
                    end_of(terms[leaving], end, begins, topics, starts, places, single, pairs)
                leaving += 1
            if begins[terms[i]] < 0:
                begins[terms[i]] = entered
        for i in range(leaving, indptr[d + 1]):
            if begins[terms[i]] >= 0:
                end = min(np.int64(positions[i] + 1), n_windows)
                end_of(terms[i], end, begins, topics, starts, places, single, pairs)
    return total
