"""Jobs from end to end: settings in, a committed run or output out."""

from nmf_dask.pipeline.fit import FitResult, fit
from nmf_dask.pipeline.planning import Plan, plan
from nmf_dask.pipeline.transform import TransformResult, transform
from nmf_dask.pipeline.transform_plan import TransformPlan, plan_transform

__all__ = [
    "FitResult",
    "Plan",
    "TransformPlan",
    "TransformResult",
    "fit",
    "plan",
    "plan_transform",
    "transform",
]
