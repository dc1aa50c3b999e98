"""``nmf-dask report``: one page to look at a model."""

import click

from nmf_dask.cli.errors import Console
from nmf_dask.cli.options import verbosity_options


@click.command("report", short_help="One self-contained page to look at a model.")
@click.argument("model", metavar="MODEL")
@click.option(
    "--output",
    metavar="URI",
    default="report.html",
    show_default=True,
    help="the HTML file to write, a path or URI; one that is there is replaced",
)
@click.option(
    "--input",
    "inputs",
    metavar="URI",
    multiple=True,
    help="the corpus of the fit: show texts of typical documents, not their ids alone; may be repeated",
)
@verbosity_options
@click.pass_obj
def command(
    console: Console, model: str, output: str, inputs: tuple[str, ...], quiet: int, verbose: int
) -> None:
    """One HTML file that holds all it needs: topics, their terms and documents, and what to be wary of.

    MODEL is a model folder (its last finished run is read) or one run in it. Topics are shown over time and by label
    where W carries a column of dates or of labels (--keep of fit). With --input the page holds texts of the corpus:
    give it only to those who may read them. The path of the page is printed.

    \b
    Example:
      nmf-dask report model
      nmf-dask report model --input 'corpus/*.parquet' --output report.html
      nmf-dask report s3://bucket/model --output s3://bucket/report.html
    """
    from nmf_dask.cli.results import write
    from nmf_dask.reporting import report

    console.verbosity = verbose - quiet
    write(f"{report(model, output, inputs)}\n")
