"""``nmf-dask update``: new documents into a model, whose topics go on."""

from __future__ import annotations

from typing import Any

import click

from nmf_dask.cli.errors import Console
from nmf_dask.cli.fit import run_fit
from nmf_dask.cli.options import SettingsCommand, carry_out, job_options

REQUIRED = {"corpus.input": "give --input URI, or input under [corpus] in the job file"}
KEYS = (
    "update.base", "corpus.input", "update.history", "corpus.text_column", "corpus.feature_column",
    "corpus.value_column", "corpus.feature_names", "corpus.id_column", "corpus.keep",
    "corpus.where", "corpus.format", "model.max_iter", "model.tol", "output.keep_runs",
    "cluster.scheduler", "cluster.workers", "cluster.threads_per_worker", "cluster.memory_limit",
    "cluster.workers_timeout", "cluster.tls_ca", "cluster.tls_cert", "cluster.tls_key", "run.resume", "run.log_format",
    "run.deadline", "run.deadline_action", "run.metrics_port", "run.performance_report",
)  # fmt: skip


@click.command(
    "update",
    cls=SettingsCommand,
    keys=KEYS,
    short_help="New documents into a model: a new run, whose topics go on.",
    epilog="Each flag is also a key of the job file (in parentheses) and an environment variable, such as "
    "NMF_DASK_UPDATE__HISTORY. A flag wins over the environment, the environment over the file. Settings of "
    "[vectorizer] are the model's, and so are those of [model] and [corpus] that are not given.",
)
@job_options
@click.pass_obj
def command(console: Console, /, **given: Any) -> None:
    """Take new documents into a model: a new run that starts from the last H.

    The files of the input that no run before took in are counted and fitted; the others are skipped, and count by what
    the last run kept of them (--history). Topics keep their numbers. No new file: nothing to do, exit 0. An update
    that was interrupted goes on from its last checkpoint.

    \b
    Example:
      nmf-dask update --model model --input 'corpus/*.parquet'
      nmf-dask update job.toml --model s3://bucket/model --input s3://bucket/corpus --history discount=0.9
      nmf-dask topics model --compare 0123456789abcdef
    """
    carry_out(console, REQUIRED, _plan, run, **given)


def _plan(settings: Any) -> Any:
    from nmf_dask.pipeline import plan_update

    return plan_update(settings)


def run(settings: Any, console: Console) -> None:
    """Update, with a display on stderr, then print the topics on stdout."""
    from nmf_dask.pipeline import update

    run_fit(update, settings, console)
