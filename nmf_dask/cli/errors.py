"""Every way to fail as one message and one exit code."""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click

from nmf_dask.errors import InputDataError, NmfDaskError, RetryableError

INTERRUPTED = "interrupted; run the same command again to go on"
_LOG_FORMAT = "NMF_DASK_RUN__LOG_FORMAT"


@dataclass
class Console:
    """How this command line talks to its user: set by its flags, read where an error is reported."""

    log_format: str = "text"
    verbosity: int = 0

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
    if code == 1 and console.verbosity > 0:
        _print_traceback(error)
    if isinstance(error, click.UsageError) and error.ctx is not None and console.log_format == "text":
        click.echo(f"{error.ctx.get_usage()}\n", err=True)
        message += f"\n{error.ctx.command_path} --help says more"
    _write(message, code, type(error).__name__, console)
    return code


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


def _write(message: str, code: int, kind: str, console: Console) -> None:
    from nmf_dask.cli.logs import json_line

    if console.log_format == "json":
        line = json_line("error", "error", message, exit_code=code, kind=kind)
    else:
        line = f"nmf-dask: error: {message}"
    click.echo(_without_credentials(line), err=True)


def _without_credentials(line: str) -> str:
    if "://" not in line:
        return line
    from nmf_dask.config import redact  # pydantic comes with it, which a typing error need not wait for

    return redact(line)


def _print_traceback(error: BaseException) -> None:
    import traceback

    traceback.print_exception(error, file=sys.stderr)
