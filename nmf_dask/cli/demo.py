"""``nmf-dask demo``: the whole job on a small real corpus."""

from __future__ import annotations

import os

import click

from nmf_dask.cli.errors import Console
from nmf_dask.cli.options import SettingsCommand, verbosity_options


@click.command(
    "demo",
    cls=SettingsCommand,
    keys=("run.log_format",),
    short_help="Build a small real corpus and run the whole job on it.",
)
@click.option("--newsgroups", is_flag=True, help="take 20 newsgroups, which scikit-learn downloads")
@click.option(
    "--output",
    metavar="URI",
    default="nmf-dask-demo",
    show_default=True,
    help="folder for the corpus and the model, a path or URI",
)
@verbosity_options
@click.pass_obj
def command(
    console: Console,
    /,
    newsgroups: bool,
    output: str,
    quiet: int,
    verbose: int,
    run__log_format: str | None,
) -> None:
    """Build a small real corpus from the documentation of what is installed, and run the whole job on it.

    Nothing is downloaded (but with --newsgroups). The corpus and the model stay in the folder, to look at.

    \b
    Example:
      nmf-dask demo
      nmf-dask topics nmf-dask-demo/model -n 5
    """
    from nmf_dask.cli.display import display
    from nmf_dask.cli.options import given_on_command_line
    from nmf_dask.cli.results import print_fit
    from nmf_dask.demo import run_demo
    from nmf_dask.jobfile import read_environment, resolve

    console.verbosity = verbose - quiet
    given = [item for item in read_environment(os.environ) if item.key == "run.log_format"]
    given += given_on_command_line({"run__log_format": run__log_format}, ())
    console.log_format = resolve(given).settings.run.log_format
    with display(console.log_format, console.verbosity) as observer:
        result = run_demo(output, newsgroups, observer)
        observer.inform(f"the model is in {result.uri}")
    print_fit(result, console.log_format, console.seconds())
