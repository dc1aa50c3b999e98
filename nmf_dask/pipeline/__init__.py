"""Jobs from end to end: settings in, a committed run or output out."""

from nmf_dask.pipeline.evaluate import EvaluatePlan, EvaluateResult, evaluate, plan_evaluate
from nmf_dask.pipeline.fit import FitResult, fit
from nmf_dask.pipeline.nightly import NightResult, nightly, plan_nightly
from nmf_dask.pipeline.planning import Plan, plan
from nmf_dask.pipeline.select import SelectPlan, SelectResult, plan_select, select
from nmf_dask.pipeline.transform import TransformResult, transform
from nmf_dask.pipeline.transform_plan import TransformPlan, plan_transform
from nmf_dask.pipeline.update import update
from nmf_dask.pipeline.update_plan import UpdatePlan, plan_update

__all__ = [
    "EvaluatePlan",
    "EvaluateResult",
    "FitResult",
    "NightResult",
    "Plan",
    "SelectPlan",
    "SelectResult",
    "TransformPlan",
    "TransformResult",
    "UpdatePlan",
    "evaluate",
    "fit",
    "nightly",
    "plan",
    "plan_evaluate",
    "plan_nightly",
    "plan_select",
    "plan_transform",
    "plan_update",
    "select",
    "transform",
    "update",
]
