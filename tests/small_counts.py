"""Counts of documents given as lists of terms, made in plain Python: an oracle needs no tokenizer or hash."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from nmf_dask.text import Counts

Documents = Sequence[Sequence[str]]


def counts_of(documents: Documents, bucket_of: Callable[[str], int]) -> Counts:
    indptr, indices, data = [0], [], []
    buckets = sorted({bucket_of(term) for document in documents for term in document})
    position = {bucket: place for place, bucket in enumerate(buckets)}
    holders: Counter[str] = Counter()
    for document in documents:
        row = Counter(position[bucket_of(term)] for term in document)
        indices.extend(row.keys())
        data.extend(row.values())
        indptr.append(len(indices))
        holders.update(dict.fromkeys(document, 1))
    # Neither sorted by bucket nor by term, as a real partition's terms are not.
    terms = sorted(holders, key=lambda term: term[::-1])
    table = {
        "bucket": pa.array([bucket_of(term) for term in terms], pa.int32()),
        "term": pa.array(terms, pa.string()),
        "document_frequency": pa.array([holders[term] for term in terms], pa.int64()),
    }
    return Counts(
        np.array(indptr, np.int64),
        np.array(indices, np.int32),
        np.array(data, np.int32),
        np.array(buckets, np.int32),
        pa.table(table),
        n_invalid=0,
    )


def zipf_documents(n: int, n_terms: int, length: int, seed: int) -> list[list[str]]:
    """Documents of words whose frequencies fall as in real text; a tenth of them are empty."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, n_terms + 1)
    lengths = rng.poisson(length, n) * (rng.random(n) > 0.1)
    return [[f"w{i}" for i in rng.choice(n_terms, size, p=weights / weights.sum())] for size in lengths]
