"""``nmf-dask fit``: corpus to topics."""

from __future__ import annotations

from typing import Any

import click

from nmf_dask.cli.errors import Console
from nmf_dask.cli.options import (
    SettingsCommand,
    print_plan,
    print_settings,
    resolved_of,
    set_option,
    verbosity_options,
)

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
@click.argument("job_files", metavar="[JOB.toml]", nargs=-1, type=click.Path())
@set_option
@click.option("--dry-run", is_flag=True, help="print the plan, with the memory it needs, and stop")
@click.option("--print-config", is_flag=True, help="print the effective job file and stop")
@verbosity_options
@click.pass_obj
def command(
    console: Console,
    /,
    job_files: tuple[str, ...],
    assignments: tuple[str, ...],
    dry_run: bool,
    print_config: bool,
    quiet: int,
    verbose: int,
    **flags: Any,
) -> None:
    """Corpus to topics: a new run under the model folder.

    A run that has finished is not run again; one that was interrupted goes on from its last checkpoint.

    \b
    Example:
      nmf-dask fit --input 'corpus/*.parquet' --output model -k 20 --stop-words english
      nmf-dask fit job.toml --input s3://bucket/corpus --output s3://bucket/model --scheduler tcp://head:8786
    """
    console.verbosity = verbose - quiet
    resolved = resolved_of(job_files, flags, assignments, {} if print_config else REQUIRED)
    settings = resolved.settings
    console.log_format = settings.run.log_format
    if print_config:
        print_settings(resolved)
    elif dry_run:
        from nmf_dask.pipeline import plan

        print_plan(plan(settings), settings.run.log_format)
    else:
        run(settings, console)


def run(settings: Any, console: Console) -> None:
    """Fit, with a display on stderr, then print the topics on stdout."""
    from nmf_dask.cli.display import display
    from nmf_dask.cli.results import print_fit
    from nmf_dask.pipeline import fit

    with display(settings.run.log_format, console.verbosity) as observer:
        result = fit(settings, observer)
        observer.inform(f"the model is in {result.uri}")
    print_fit(result, settings.run.log_format)
