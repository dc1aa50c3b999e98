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
@click.option(
    "--compare",
    metavar="RUN",
    help="what moved since another run, by its id, path or URI: terms in and out of the first, share, similarity",
)
@verbosity_options
@click.pass_obj
def command(
    console: Console, model: str, n_terms: int, shape: str, compare: str | None, quiet: int, verbose: int
) -> None:
    """The top terms of each topic with their weights, and the topic's share of the corpus.

    MODEL is a model folder (its last finished run is read) or one run in it. With --compare, a topic is "new" where it
    is not the one that had its number before (similarity under 0.5), and "gone" where it has next to no document.

    \b
    Example:
      nmf-dask topics model -n 15
      nmf-dask topics s3://bucket/model --format csv > topics.csv
      nmf-dask topics model --compare 0123456789abcdef
    """
    from nmf_dask.cli.results import print_moved, print_topics
    from nmf_dask.model import TopicModel
    from nmf_dask.store import run_beside

    console.verbosity = verbose - quiet
    if compare is None:
        print_topics(TopicModel.load(model), n_terms, shape)
    else:
        print_moved(TopicModel.load(model), TopicModel.load(run_beside(model, compare)), n_terms, shape)
