"""Every way to fail as one message and one exit code."""

from __future__ import annotations

import errno
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import click

from nmf_dask.errors import InputDataError, NmfDaskError, RetryableError
from nmf_dask.residence import rss

INTERRUPTED = "interrupted; run the same command again to go on"
_LOG_FORMAT = "NMF_DASK_RUN__LOG_FORMAT"


@dataclass
class Console:
    """How this command line talks to its user: set by its flags and its job, read where an error is reported."""

    log_format: str = "text"
    verbosity: int = 0
    started: float = field(default_factory=time.perf_counter)
    is_the_process: bool = False
    run_id: str | None = None
    stage: str | None = None
    workers: int | None = None

    def seconds(self) -> float:
        """Since the command began."""
        return time.perf_counter() - self.started

    def told(self) -> dict[str, Any]:
        """The fields that every line of a JSON log has, as a line that no display writes has them."""
        where = {"run_id": self.run_id, "stage": self.stage, "seconds": round(self.seconds(), 3)}
        return {**where, "workers": self.workers, "memory": rss()}

    @classmethod
    def guess(cls, arguments: Sequence[str], environ: Mapping[str, str]) -> Console:
        """From unparsed arguments: an error in them must already be in the format they ask for."""
        chosen = environ.get(_LOG_FORMAT, "text")
        for argument, value in zip(arguments, [*arguments, ""][1:], strict=True):
            if argument == "--log-format":
                chosen = value
            elif argument.startswith("--log-format="):
                chosen = argument.partition("=")[2]
        return cls(log_format="json" if chosen == "json" else "text")


def report(error: BaseException, console: Console) -> int:
    """Say on stderr what went wrong, with a traceback only for a bug and with -v; return the exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    code, message = _explain(error)
    trace = "".join(traceback.format_exception(error)) if code == 1 and console.verbosity > 0 else ""
    with suppress(OSError):  # nobody reads it, or its disk is full: the exit code says what it would
        _tell(error, message, code, console, trace)
    return code


def _tell(error: BaseException, message: str, code: int, console: Console, trace: str) -> None:
    if isinstance(error, Interrupted) and console.log_format == "text" and sys.stderr.isatty():
        click.echo(err=True)  # what the terminal shows of Ctrl-C has the line
    if isinstance(error, click.UsageError) and error.ctx is not None and console.log_format == "text":
        click.echo(f"{error.ctx.get_usage()}\n", err=True)
        message += f"\n{error.ctx.command_path} --help says more"
    _write(message, code, type(error).__name__, console, trace)


@contextmanager
def interruption_as_error() -> Iterator[None]:
    """Raise what interrupts the block as an error of ours: click would put its own in place, and write a line."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(str(error) or INTERRUPTED) from error


class Interrupted(RetryableError):  # noqa: N818 - what became of the command
    """The command was told to stop, by a signal or by its deadline."""


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, NmfDaskError):
        return error.exit_code, str(error)
    if isinstance(error, click.ClickException):
        return error.exit_code, error.format_message()
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        # click puts its own in place of Python's.
        return RetryableError.exit_code, str(error) or str(error.__cause__ or "") or INTERRUPTED
    if isinstance(error, MemoryError):
        return RetryableError.exit_code, "out of memory; give the job more, or lower corpus.partition_bytes"
    if isinstance(error, OSError):
        return _explain_os_error(error)
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return (
        1,
        f"{said}\nthis is a bug: run the command again with -v for the traceback, and report it with that",
    )


def _explain_os_error(error: OSError) -> tuple[int, str]:
    """Wrong paths and permissions stay wrong until somebody acts; a full disk or a lost network may pass."""
    where = f" ({error.filename})" if error.filename else ""
    said = f"{error.strerror or error}{where}"
    if isinstance(error, (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)):
        return InputDataError.exit_code, said
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RetryableError.exit_code, f"{said}: make room, then run the same command again"
    return RetryableError.exit_code, said


def _write(message: str, code: int, kind: str, console: Console, trace: str) -> None:
    from nmf_dask.cli.logs import json_line

    if console.log_format == "json":
        more = {"traceback": trace} if trace else {}
        line = json_line("error", "error", message, **console.told(), exit_code=code, kind=kind, **more)
    else:
        line = f"{trace}nmf-dask: error: {message}"
    click.echo(_without_credentials(line), err=True)


def _without_credentials(line: str) -> str:
    if "://" not in line:
        return line
    from nmf_dask.config import redact  # pydantic comes with it, which a typing error need not wait for

    return redact(line)
