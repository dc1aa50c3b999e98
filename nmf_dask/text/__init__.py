"""Strings to hashed counts: tokens, terms and their buckets, exactly as scikit-learn finds them."""

from nmf_dask.text.counting import count_texts
from nmf_dask.text.counts import Counts
from nmf_dask.text.occurrences import Occurrences, occurrences

__all__ = ["Counts", "Occurrences", "count_texts", "occurrences"]
