"""Strings to hashed counts: tokens, terms and their buckets, exactly as scikit-learn finds them."""

from nmf_dask.text.counting import count_texts
from nmf_dask.text.counts import Counts

__all__ = ["Counts", "count_texts"]
