"""``nmf-dask transform``: W of new documents under a fitted H."""

from __future__ import annotations

from typing import Any

import click

from nmf_dask.cli.errors import Console
from nmf_dask.cli.options import SettingsCommand, carry_out, job_options, refuse_settings_of_the_fit

REQUIRED = {
    "transform.model": "give --model URI, or model under [transform] in the job file",
    "corpus.input": "give --input URI, or input under [corpus] in the job file",
    "output.output": "give --output URI, or output under [output] in the job file",
}
KEYS = (
    "transform.model", "corpus.input", "output.output", "transform.new_only", "corpus.text_column",
    "corpus.feature_column", "corpus.value_column", "corpus.feature_names", "corpus.id_column", "corpus.keep",
    "corpus.where", "corpus.format", "output.w_format",
    "cluster.scheduler", "cluster.workers", "cluster.threads_per_worker", "cluster.memory_limit",
    "cluster.workers_timeout", "cluster.tls_ca", "cluster.tls_cert", "cluster.tls_key", "run.resume", "run.log_format",
    "run.deadline", "run.metrics_port", "run.performance_report",
)  # fmt: skip


@click.command(
    "transform",
    cls=SettingsCommand,
    keys=KEYS,
    short_help="New documents to W, under the topics of a model.",
    epilog="Each flag is also a key of the job file (in parentheses) and an environment variable, such as "
    "NMF_DASK_TRANSFORM__NEW_ONLY. A flag wins over the environment, the environment over the file. Settings of "
    "[vectorizer] and [model] are the model's own, whatever a job file says there.",
)
@job_options
@click.pass_obj
def command(console: Console, /, **given: Any) -> None:
    """W for new documents under a fitted H, in one pass: a part of W for each partition of the input.

    The weights of a document depend on the document and the model alone. What is done is not done again: a finished
    output is left as it is, an interrupted one goes on, and --new-only adds files that came or changed.

    \b
    Example:
      nmf-dask transform --model model --input 'new/*.parquet' --output weights
      nmf-dask transform --model s3://bucket/model --input s3://bucket/corpus --output s3://bucket/weights --new-only
    """
    refuse_settings_of_the_fit(given["assignments"])
    carry_out(console, REQUIRED, _plan, run, **given)


def _plan(settings: Any) -> Any:
    from nmf_dask.pipeline import plan_transform

    return plan_transform(settings)


def run(settings: Any, console: Console) -> None:
    """Transform, with a display on stderr, then print a summary on stdout."""
    from nmf_dask.cli.results import print_transform
    from nmf_dask.cli.watching import watched
    from nmf_dask.pipeline import transform

    with watched(settings.run, console) as observer:
        result = transform(settings, observer, console.started)
        observer.inform(f"W is in {result.uri}")
    print_transform(result, settings.run.log_format)
