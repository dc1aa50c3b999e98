"""``nmf-dask fit``: corpus to topics."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from nmf_dask.cli.errors import Console
from nmf_dask.cli.options import SettingsCommand, carry_out, job_options

if TYPE_CHECKING:
    from nmf_dask.pipeline import FitResult

REQUIRED = {
    "corpus.input": "give --input URI, or input under [corpus] in the job file",
    "output.output": "give --output URI, or output under [output] in the job file",
}


@click.command(
    "fit",
    cls=SettingsCommand,
    short_help="Corpus to topics: a new run under the model folder.",
    epilog="Each flag is also a key of the job file (in parentheses) and an environment variable, such as "
    "NMF_DASK_MODEL__N_COMPONENTS. A flag wins over the environment, the environment over the file.",
)
@job_options
@click.pass_obj
def command(console: Console, /, **given: Any) -> None:
    """Corpus to topics: a new run under the model folder.

    A run that has finished is not run again; one that was interrupted goes on from its last checkpoint.

    \b
    Example:
      nmf-dask fit --input 'corpus/*.parquet' --output model -k 20 --stop-words english
      nmf-dask fit job.toml --input s3://bucket/corpus --output s3://bucket/model --scheduler tcp://head:8786
    """
    carry_out(console, REQUIRED, _plan, run, **given)


def _plan(settings: Any) -> Any:
    from nmf_dask.pipeline import plan

    return plan(settings)


def run(settings: Any, console: Console) -> None:
    """Fit, with a display on stderr, then print the topics on stdout."""
    from nmf_dask.pipeline import fit

    run_fit(fit, settings, console)


def run_fit(fit: Callable[..., FitResult], settings: Any, console: Console) -> None:
    """What `fit` and `update` have in common: a display on stderr, then the topics on stdout."""
    from nmf_dask.cli.results import print_fit
    from nmf_dask.cli.watching import watched

    with watched(settings.run, console) as observer:
        result = fit(settings, observer, console.started)
        unfinished = ", as the deadline left it" if result.run.get("stop_reason") == "deadline" else ""
        observer.inform(f"the model is in {result.uri}{unfinished}")
    print_fit(result, settings.run.log_format, console.seconds())
