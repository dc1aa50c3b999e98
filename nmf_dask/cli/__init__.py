"""The command line: arguments to settings to one call. Nothing heavy is imported before a command runs."""

import atexit
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

import click

from nmf_dask import __version__
from nmf_dask.cli.errors import Console, interruption_as_error
from nmf_dask.cli.errors import report as report_error  # "report" is the name of a command's module
from nmf_dask.cli.termination import termination_as_error
from nmf_dask.residence import age, return_large

COMMANDS = ("fit", "transform", "update", "nightly", "evaluate", "select", "topics", "report", "demo")


class Commands(click.Group):
    """The commands, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of use rather than of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"nmf_dask.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Like click's, with a hint at the nearest command where there is none of that name."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            close = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(COMMANDS)}"
            raise click.UsageError(f"there is no command {args[0]}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Like click's, but for what an interruption becomes."""
        with interruption_as_error():
            return super().invoke(ctx)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nmf-dask")
def commands() -> None:
    """Topic models of corpora that do not fit one machine: Parquet in, Parquet out.

    \b
    Example:
      nmf-dask demo
      nmf-dask fit --input 'corpus/*.parquet' --output model -k 20
      nmf-dask topics model
      nmf-dask report model
      nmf-dask transform --model model --input 'new/*.parquet' --output weights
      nmf-dask update --model model --input 'corpus/*.parquet'
      nmf-dask nightly job.toml --input lake --output model --weights weights
    """


def main(args: Sequence[str] | None = None, alone: bool | None = None) -> int:
    """Run one command line (``sys.argv`` unless given) and return its exit code.

    0: done; 2: wrong usage or configuration; 65: wrong input data; 75: worth another try; 1: a bug. `alone` says that
    the process is there for this command only, and so that a deadline counts from its start and holds until its end;
    so it is, unless told otherwise, where no arguments are given.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    arguments = arguments or ["--help"]
    console = Console.guess(arguments, os.environ)
    if args is None if alone is None else alone:
        console.started -= age()
        console.is_the_process = True
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a term the terminal cannot write must not end the job
            stream.reconfigure(errors="backslashreplace")
    with termination_as_error(console):
        try:
            outcome: Any = commands.main(arguments, prog_name="nmf-dask", standalone_mode=False, obj=console)
        except BaseException as error:  # each way to fail has its exit code, and none a traceback
            return report_error(error, console)
    return outcome if isinstance(outcome, int) else 0


def run() -> NoReturn:
    """The console script: `main`, then `leave`."""
    sys.meta_path.insert(0, WithoutPandas())
    return_large()
    leave(main())


class WithoutPandas:
    """A finder of modules that knows of pandas only that it is not to be had.

    Arrow looks for it when it makes its first array of NumPy's, and no command has a use for it: a quarter of a second.
    """

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        """Refuse pandas; leave the rest to others, and pandas as well once bokeh asks for it: for Dask's report."""
        if fullname == "pandas" and "bokeh" not in sys.modules:
            raise ModuleNotFoundError("nmf-dask's own process does without pandas", name=fullname)


def leave(code: int) -> NoReturn:
    """End the process at once, what was registered for its end done and what was printed out.

    Python would first take apart, for half a second, what the system frees anyway.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # closed by whoever started the job (>&-)
                stream.flush()
        except (OSError, ValueError):  # the disk is full, or nobody reads it
            code = code or 1
    os._exit(code)
