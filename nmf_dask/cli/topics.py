"""``nmf-dask topics``: the top terms of each topic of a model."""

import click

from nmf_dask.cli.errors import Console
from nmf_dask.cli.options import verbosity_options


@click.command("topics", short_help="The top terms of each topic, with weights and shares.")
@click.argument("model", metavar="MODEL")
@click.option(
    "-n", "n_terms", type=click.IntRange(min=1), default=10, show_default=True, help="terms a topic"
)
@click.option(
    "--format",
    "shape",
    type=click.Choice(["text", "json", "csv"]),
    default="text",
    show_default=True,
    help="text: one line a topic, largest first; json: one object; csv: one row a term",
)
@verbosity_options
@click.pass_obj
def command(console: Console, model: str, n_terms: int, shape: str, quiet: int, verbose: int) -> None:
    """The top terms of each topic with their weights, and the topic's share of the corpus.

    MODEL is a model folder (its last finished run is read) or one run in it.

    \b
    Example:
      nmf-dask topics model -n 15
      nmf-dask topics s3://bucket/model --format csv > topics.csv
    """
    from nmf_dask.cli.results import print_topics
    from nmf_dask.model import TopicModel

    console.verbosity = verbose - quiet
    print_topics(TopicModel.load(model), n_terms, shape)
