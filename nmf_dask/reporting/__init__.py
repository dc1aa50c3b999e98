"""One page to look at a model: what its topics are, where they lie, in which documents, and what to be wary of."""

from nmf_dask.reporting.report import report

__all__ = ["report"]
