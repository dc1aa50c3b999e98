"""``nmf-dask evaluate``: how good the topics of a model are."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from nmf_dask.cli.errors import Console
from nmf_dask.cli.options import (
    SettingsCommand,
    carry_out,
    job_options,
    refuse_settings_of_the_fit,
    with_model,
)

REQUIRED = {
    "evaluate.judged_model": "give MODEL, or judged_model under [evaluate] in the job file",
    "corpus.input": "give --input URI, or input under [corpus] in the job file",
}
KEYS = (
    "evaluate.judged_model", "corpus.input", "evaluate.result_file", "evaluate.n_judged_terms", "evaluate.window",
    "evaluate.label_column", "evaluate.compare", "corpus.text_column", "corpus.where",
    "cluster.scheduler", "cluster.workers", "cluster.threads_per_worker", "cluster.memory_limit",
    "cluster.workers_timeout", "cluster.tls_ca", "cluster.tls_cert", "cluster.tls_key", "run.log_format",
)  # fmt: skip


@click.command(
    "evaluate",
    cls=SettingsCommand,
    keys=KEYS,
    short_help="How good the topics are: coherence, diversity, stability, labels.",
    epilog="Each flag is also a key of the job file (in parentheses) and an environment variable, such as "
    "NMF_DASK_EVALUATE__WINDOW. A flag wins over the environment, the environment over the file. Settings of "
    "[vectorizer] and [model] are the model's own, whatever a job file says there.",
)
@click.option(
    "--format",
    "shape",
    type=click.Choice(["text", "json", "csv"]),
    help="text: the numbers overall and a line a topic; json: all there is; csv: one row a topic "
    "[default: text, or json with --log-format json]",
)
@partial(job_options, positional="MODEL [JOB.toml]")
@click.pass_obj
def command(console: Console, /, shape: str | None, **given: Any) -> None:
    """How good the topics of a model are, on its own corpus or on another.

    Coherence (NPMI, C_v, C_uci, U_mass, as gensim computes them), diversity and exclusivity of the top terms, the loss
    of held-out halves of documents; with --label-column agreement with labels, with --compare stability between runs.
    The input is what fit takes; where names of files do not tell their format, give --set corpus.format=lines.

    \b
    Example:
      nmf-dask evaluate model --input 'corpus/*.parquet' --label-column label
      nmf-dask evaluate s3://bucket/model --input s3://bucket/reference --format csv > topics.csv
    """
    refuse_settings_of_the_fit(given["assignments"])
    carry_out(console, REQUIRED, _plan, partial(run, shape), **with_model(given, "evaluate.judged_model"))


def _plan(settings: Any) -> Any:
    from nmf_dask.pipeline import plan_evaluate

    return plan_evaluate(settings)


def run(shape: str | None, settings: Any, console: Console) -> None:
    """Evaluate, with a display on stderr, then print the numbers on stdout."""
    from nmf_dask.cli.display import display
    from nmf_dask.cli.measures import print_evaluation
    from nmf_dask.pipeline import evaluate

    log_format = settings.run.log_format
    with display(log_format, console.verbosity) as observer:
        result = evaluate(settings, observer)
    print_evaluation(result.told, shape or log_format)
