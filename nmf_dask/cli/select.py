"""``nmf-dask select``: how many topics."""

from __future__ import annotations

from typing import Any

import click

from nmf_dask.cli.errors import Console
from nmf_dask.cli.options import FLAGS, SELECT_FLAGS, SettingsCommand, carry_out, job_options

REQUIRED = {
    "corpus.input": "give --input URI, or input under [corpus] in the job file",
    "output.output": "give --output URI, or output under [output] in the job file",
    "select.candidates": "give --n-components 5,10,20 or 5:50:5, or candidates under [select] in the job file",
}
KEYS = (*SELECT_FLAGS, *(key for key in FLAGS if key != "model.n_components"))


@click.command(
    "select",
    cls=SettingsCommand,
    keys=KEYS,
    short_help="How many topics: stability over perturbed fits, loss, coherence.",
    epilog="Each flag is also a key of the job file (in parentheses) and an environment variable, such as "
    "NMF_DASK_SELECT__FITS. A flag wins over the environment, the environment over the file.",
)
@job_options
@click.pass_obj
def command(console: Console, /, **given: Any) -> None:
    """Choosing the number of topics (k): fits of perturbed data for each, and which of them find the same topics again.

    A table, a picture and the recommendation are written below selections/ of the output; with --commit the recommended
    number is fitted to the whole corpus, as a run of the model. What is finished is not done again.

    \b
    Example:
      nmf-dask select --input 'corpus/*.parquet' --output model --n-components 5,10,20,40 --stop-words english
      nmf-dask select job.toml -k 5:50:5 --fits 20 --commit --scheduler tcp://head:8786
    """
    carry_out(console, REQUIRED, _plan, run, **given)


def _plan(settings: Any) -> Any:
    from nmf_dask.pipeline import plan_select

    return plan_select(settings)


def run(settings: Any, console: Console) -> None:
    """Select, with a display on stderr, then print the table and the recommendation on stdout."""
    from nmf_dask.cli.measures import print_selection
    from nmf_dask.cli.watching import watched
    from nmf_dask.pipeline import select

    with watched(settings.run, console) as observer:
        result = select(settings, observer, console.started)
        observer.inform(f"table and picture are in {result.uri}")
    print_selection(result, settings.run.log_format)
