"""Jobs from end to end: settings in, a committed run or output out."""

from nmf_dask.pipeline.fit import FitResult, fit
from nmf_dask.pipeline.planning import Plan, plan
from nmf_dask.pipeline.transform import TransformResult, transform
from nmf_dask.pipeline.transform_plan import TransformPlan, plan_transform
from nmf_dask.pipeline.update import update
from nmf_dask.pipeline.update_plan import UpdatePlan, plan_update

__all__ = [
    "FitResult",
    "Plan",
    "TransformPlan",
    "TransformResult",
    "UpdatePlan",
    "fit",
    "plan",
    "plan_transform",
    "plan_update",
    "transform",
    "update",
]
