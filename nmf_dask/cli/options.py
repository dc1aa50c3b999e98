"""The flags that set a key of the job file, generated from one table."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from nmf_dask.cli.errors import Console
    from nmf_dask.jobfile import Given, Resolved

# Flag to key. Everything else of a job is set with --set, or in a file.
FLAGS: dict[str, tuple[str, ...]] = {
    "corpus.input": ("--input",),
    "output.output": ("--output",),
    "output.keep_runs": ("--keep-runs",),
    "corpus.text_column": ("--text-column",),
    "corpus.feature_column": ("--feature-column",),
    "corpus.value_column": ("--value-column",),
    "corpus.feature_names": ("--feature-names",),
    "corpus.id_column": ("--id-column",),
    "corpus.keep": ("--keep",),
    "corpus.where": ("--where",),
    "corpus.format": ("--format",),
    "output.w_format": ("--w-format",),
    "model.n_components": ("-k", "--n-components"),
    "model.beta_loss": ("--beta-loss",),
    "model.solver": ("--solver",),
    "model.init": ("--init",),
    "model.max_iter": ("--max-iter",),
    "model.tol": ("--tol",),
    "model.random_state": ("--random-state",),
    "vectorizer.max_features": ("--max-features",),
    "vectorizer.min_df": ("--min-df",),
    "vectorizer.max_df": ("--max-df",),
    "vectorizer.stop_words": ("--stop-words",),
    "vectorizer.ngram_range": ("--ngram-range",),
    "cluster.scheduler": ("--scheduler",),
    "cluster.workers": ("--workers",),
    "cluster.threads_per_worker": ("--threads-per-worker",),
    "cluster.memory_limit": ("--memory-limit",),
    "cluster.workers_timeout": ("--workers-timeout",),
    "cluster.tls_ca": ("--tls-ca",),
    "cluster.tls_cert": ("--tls-cert",),
    "cluster.tls_key": ("--tls-key",),
    "run.resume": ("--resume",),
    "run.log_format": ("--log-format",),
    "run.deadline": ("--deadline",),
    "run.deadline_action": ("--deadline-action",),
    "run.metrics_port": ("--metrics-port",),
    "run.performance_report": ("--performance-report",),
}
# Of other commands than fit.
TRANSFORM_FLAGS: dict[str, tuple[str, ...]] = {
    "transform.model": ("--model",),
    "transform.new_only": ("--new-only",),
}
EVALUATE_FLAGS: dict[str, tuple[str, ...]] = {
    "evaluate.judged_model": ("--model",),
    "evaluate.result_file": ("--output",),
    "evaluate.n_judged_terms": ("-n", "--n-top-terms"),
    "evaluate.window": ("--window",),
    "evaluate.label_column": ("--label-column",),
    "evaluate.compare": ("--compare",),
}
SELECT_FLAGS: dict[str, tuple[str, ...]] = {
    "select.candidates": ("-k", "--n-components"),
    "select.fits": ("--fits",),
    "select.share": ("--share",),
    "select.stability": ("--stability",),
    "select.commit": ("--commit",),
}
UPDATE_FLAGS: dict[str, tuple[str, ...]] = {
    "update.base": ("--model",),
    "update.history": ("--history",),
}
NIGHTLY_FLAGS: dict[str, tuple[str, ...]] = {
    "nightly.weights": ("--weights",),
    "nightly.every": ("--every",),
    "nightly.loss_rise": ("--loss-rise",),
}
ALL_FLAGS = FLAGS | TRANSFORM_FLAGS | UPDATE_FLAGS | NIGHTLY_FLAGS | EVALUATE_FLAGS | SELECT_FLAGS
# What a flag takes, where its type does not say it.
_METAVARS = {
    "corpus.input": "URI",
    "corpus.text_column": "NAME[,NAME…]",
    "corpus.feature_column": "NAME",
    "corpus.value_column": "NAME",
    "corpus.feature_names": "FILE",
    "corpus.keep": "NAME[,NAME…]",
    "corpus.where": "CONDITION",
    "output.output": "URI",
    "transform.model": "URI",
    "evaluate.judged_model": "URI",
    "evaluate.result_file": "FILE",
    "evaluate.window": "WORDS",
    "evaluate.compare": "MODEL",
    "select.candidates": "K,K,…|FROM:TO:STEP",
    "update.base": "URI",
    "update.history": "keep|discount=SHARE|forget|reread",
    "nightly.weights": "URI",
    "nightly.every": "NIGHTS",
    "nightly.loss_rise": "SHARE|auto|none",
    "vectorizer.min_df": "COUNT|SHARE",
    "vectorizer.max_df": "COUNT|SHARE",
    "vectorizer.stop_words": "english|a,b,c|FILE",
    "vectorizer.ngram_range": "MIN,MAX",
    "cluster.scheduler": "ADDRESS|FILE",
    "cluster.memory_limit": "SIZE",
    "cluster.workers_timeout": "SECONDS",
    "run.deadline": "TIME",
    "run.performance_report": "FILE",
    "cluster.tls_ca": "FILE",
    "cluster.tls_cert": "FILE",
    "cluster.tls_key": "FILE",
}


class SettingsCommand(click.Command):
    """A command whose flags for settings are made when they are first needed: their help needs pydantic."""

    def __init__(self, *args: Any, keys: Sequence[str] = tuple(FLAGS), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._keys = tuple(keys)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The declared parameters and, before the others, those of the settings."""
        if self._keys:
            arguments = [param for param in self.params if isinstance(param, click.Argument)]
            others = [param for param in self.params if not isinstance(param, click.Argument)]
            self.params = [*arguments, *(_option(key) for key in self._keys), *others]
            self._keys = ()
        return super().get_params(ctx)


def _option(key: str) -> click.Option:
    from nmf_dask.allowed import choices
    from nmf_dask.jobfile import KEYS

    field = KEYS[key]
    if field.annotation is bool:  # given, or not: a job file says "false"
        help_ = f"{field.description} ({key})"
        return click.Option([*ALL_FLAGS[key], _parameter(key)], is_flag=True, default=None, help=help_)
    metavar = _METAVARS.get(key) or "|".join(choices(field)) or _type_name(field.annotation)
    default = "" if field.default in (None, ()) else f"  [default: {_shown(field.default)}]"
    more = "; may be repeated" if key == "corpus.input" else ""
    return click.Option(
        [*ALL_FLAGS[key], _parameter(key)],
        metavar=metavar,
        multiple=key == "corpus.input",
        shell_complete=lambda ctx, param, typed: [name for name in choices(field) if name.startswith(typed)],
        help=f"{field.description}{more} ({key}){default}",
    )


def _shown(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _type_name(annotation: Any) -> str:
    words = str(annotation)
    return "N" if "int" in words else "NUMBER" if "float" in words else "TEXT"


def _parameter(key: str) -> str:
    return key.replace(".", "__").lower()


def given_on_command_line(flags: Mapping[str, Any], assignments: tuple[str, ...]) -> list[Given]:
    """The settings among parsed flags, and those of ``--set``, each with the flag as its source."""
    from nmf_dask.jobfile import Given, parse_value

    given = []
    for key, names in ALL_FLAGS.items():
        text = flags.get(_parameter(key))
        if text is None or text == ():
            continue
        if key == "corpus.input":
            listed = [parse_value(key, one) for one in text]
            value: Any = [uri for one in listed for uri in (one if isinstance(one, list) else [one])]
        else:
            value = text if isinstance(text, bool) else parse_value(key, text)
        given.append(Given(key, value, names[-1]))
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not key:
            raise click.UsageError(f"--set {assignment}: write --set section.key=value")
        flag = next((item.source for item in given if item.key == key and item.source != "--set"), None)
        if flag is not None:
            raise click.UsageError(f"{key} is given twice: by {flag} and by --set")
        given.append(Given(key, parse_value(key, text.strip()), "--set"))
    return given


def resolved_of(
    job_files: Sequence[str],
    flags: Mapping[str, Any],
    assignments: tuple[str, ...],
    required: Mapping[str, str],
) -> Resolved:
    """The settings of a command line: flags before the environment, that before the file, that before defaults.

    `required` says of keys what to do where they are not given. Raises click.UsageError, ConfigurationError.
    """
    from nmf_dask.jobfile import read_environment, read_job_file, resolve

    if len(job_files) > 1:
        raise click.UsageError(
            f"one job file at most, but {len(job_files)} arguments stand alone ({', '.join(job_files[:3])}); "
            "put a pattern in quotes, so that the shell leaves it whole: --input 'corpus/*.parquet'"
        )
    given: list[Given] = [item for job_file in job_files for item in read_job_file(job_file)]
    given += read_environment(os.environ)
    given += given_on_command_line(flags, assignments)
    return resolve(given, required)


def job_options(command: Callable[..., Any], positional: str = "[JOB.toml]") -> Callable[..., Any]:
    """Add what commands that run a job have beside the flags of settings: what `carry_out` takes."""
    for add in (
        verbosity_options,
        click.option("--print-config", is_flag=True, help="print the effective job file and stop"),
        click.option("--dry-run", is_flag=True, help="print the plan, with the memory it needs, and stop"),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="SECTION.KEY=VALUE",
            help="any setting of the job file; may be repeated",
        ),
        click.argument("job_files", metavar=positional, nargs=-1, type=click.Path()),
    ):
        command = add(command)
    return command


def refuse_settings_of_the_fit(assignments: tuple[str, ...]) -> None:
    """To take them and not to use them would be a false promise; a job file may hold those of its fit."""
    for assignment in assignments:
        if assignment.strip().startswith(("vectorizer.", "model.")):
            raise click.UsageError(
                f"--set {assignment}: these settings are taken from the model; fit another one to change them"
            )


def with_model(given: dict[str, Any], key: str) -> dict[str, Any]:
    """Parsed arguments, with the one that stands alone and is no job file as the model, under the flag of `key`."""
    alone = [one for one in given["job_files"] if not one.endswith(".toml")]
    name = _parameter(key)
    if len(alone) > 1 or (alone and given[name] is not None):
        several = ", ".join([*alone, *filter(None, [given[name]])][:3])
        raise click.UsageError(f"one model is asked for, and several are given: {several}")
    files = tuple(one for one in given["job_files"] if one.endswith(".toml"))
    return {**given, "job_files": files, name: alone[0] if alone else given[name]}


def carry_out(
    console: Console,
    required: Mapping[str, str],
    plan: Callable[[Any], Any],
    run: Callable[[Any, Console], None],
    /,
    *,
    job_files: tuple[str, ...],
    assignments: tuple[str, ...],
    dry_run: bool,
    print_config: bool,
    quiet: int,
    verbose: int,
    **flags: Any,
) -> None:
    """Run a job, or print its settings or its plan, as the command line says; `required` as in `resolved_of`."""
    console.verbosity = verbose - quiet
    resolved = resolved_of(job_files, flags, assignments, {} if print_config else required)
    settings = resolved.settings
    console.log_format = settings.run.log_format
    if print_config:
        _print_settings(resolved)
    elif dry_run:
        _print_plan(plan(settings), settings.run.log_format)
    else:
        run(settings, console)


def _print_settings(resolved: Resolved) -> None:
    """The effective job file, on stdout."""
    from nmf_dask.cli.results import write
    from nmf_dask.jobfile import render

    write(render(resolved))


def _print_plan(planned: Any, log_format: str) -> None:
    """What a job would do, on stdout."""
    from nmf_dask.cli.logs import json_text
    from nmf_dask.cli.results import write

    write(json_text(planned.as_dict()) + "\n" if log_format == "json" else "\n".join(planned.lines()) + "\n")


def verbosity_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``-q`` and ``-v``, which the command receives as `quiet` and `verbose`."""
    command = click.option("-v", "--verbose", count=True, help="say more, and show the traceback of a bug")(
        command
    )
    return click.option("-q", "--quiet", count=True, help="say only warnings and errors")(command)
