"""Jobs from end to end: settings in, a committed run out."""

from nmf_dask.pipeline.fit import FitResult, fit
from nmf_dask.pipeline.planning import Plan, plan

__all__ = ["FitResult", "Plan", "fit", "plan"]
