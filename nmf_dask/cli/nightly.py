"""``nmf-dask nightly``: one night of a lake that grows."""

from __future__ import annotations

from typing import Any

import click

from nmf_dask.cli.errors import Console
from nmf_dask.cli.options import FLAGS, NIGHTLY_FLAGS, SettingsCommand, carry_out, job_options

REQUIRED = {
    "corpus.input": "give --input URI, or input under [corpus] in the job file",
    "output.output": "give --output URI, or output under [output] in the job file",
    "nightly.weights": "give --weights URI, or weights under [nightly] in the job file",
}


@click.command(
    "nightly",
    cls=SettingsCommand,
    keys=(*NIGHTLY_FLAGS, "update.history", *FLAGS),
    short_help="One night of a lake that grows: transform what came, update the model when it is due.",
    epilog="Each flag is also a key of the job file (in parentheses) and an environment variable, such as "
    "NMF_DASK_NIGHTLY__EVERY. A flag wins over the environment, the environment over the file. Settings of "
    "[vectorizer] and [model] make the first model; later ones go on from it.",
)
@job_options
@click.pass_obj
def command(console: Console, /, **given: Any) -> None:
    """One night of a lake that grows: W of new files, how well the model does on them, an update when it is due.

    Without a model, one is fitted. Weights are below --weights, in a folder for each run of the model. Nothing new:
    nothing is written, exit 0. A night that was interrupted goes on.

    \b
    Example:
      nmf-dask nightly job.toml --input s3://lake/posts --output s3://bucket/model --weights s3://bucket/weights
      nmf-dask nightly job.toml --every 7 --loss-rise 0.01
    """
    carry_out(console, REQUIRED, _plan, run, **given)


def _plan(settings: Any) -> Any:
    from nmf_dask.pipeline import plan_nightly

    return plan_nightly(settings)


def run(settings: Any, console: Console) -> None:
    """Do what a night does, with a display on stderr, then print a summary on stdout."""
    from nmf_dask.cli.results import print_night
    from nmf_dask.cli.watching import watched
    from nmf_dask.pipeline import nightly

    with watched(settings.run, console) as observer:
        result = nightly(settings, observer, console.started)
    print_night(result, settings.run.log_format)
