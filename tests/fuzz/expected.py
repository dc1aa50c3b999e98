"""What must come of a case, and whether it did."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

DONE, WRONG_USAGE, WRONG_DATA = 0, 2, 65
# A line of the log; anything else on stderr is a warning or a traceback of some library.
_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")
_ERROR = "nmf-dask: error: "


class Expected(NamedTuple):
    """What must come of a case.

    `codes` are the exit codes that are right, `says` patterns that the message of a failure must hold, `n_rows`
    the rows of W, and `ids` its first column where the job went well. `arguments` go to the command beside the ones
    that all have; `inputs`, where given, are its inputs in place of the folder.
    """

    codes: tuple[int, ...]
    n_rows: int = 0
    ids: pa.Array | None = None
    says: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """What the command did."""

    code: int
    stdout: str
    stderr: str
    as_json: bool


def problems(expected: Expected, outcome: Outcome, model: Path) -> Iterator[str]:
    """All that is not as it must be."""
    if outcome.code not in expected.codes:
        yield f"exit code {outcome.code} where {expected.codes} are right"
    if "Traceback" in outcome.stderr:
        yield "a traceback on stderr"
    yield from _strange_lines(outcome)
    if list(model.glob("LOCK")):
        yield "the lock stayed"
    if outcome.code == DONE:
        yield from _result_problems(expected, outcome, model)
    else:
        yield from _failure_problems(expected, outcome, model)


def _strange_lines(outcome: Outcome) -> Iterator[str]:
    for line in outcome.stderr.splitlines():
        if outcome.as_json:
            try:
                json.loads(line)
            except ValueError:
                yield f"no JSON on stderr: {line[:200]!r}"
        elif not (
            _LOG_LINE.match(line) or line.startswith((_ERROR, "Usage: ", "nmf-dask fit --help")) or not line
        ):
            yield f"a strange line on stderr: {line[:200]!r}"


def _result_problems(expected: Expected, outcome: Outcome, model: Path) -> Iterator[str]:
    if not outcome.stdout.strip():
        yield "nothing on stdout"
    if not (model / "LATEST").exists():
        yield "no LATEST"
        return
    run = model / "runs" / (model / "LATEST").read_text().strip()
    if not (run / "_SUCCESS").exists():
        yield "no _SUCCESS where LATEST points to"
        return
    W = pa.concat_tables(pq.read_table(part) for part in sorted((run / "W").iterdir()))
    if W.num_rows != expected.n_rows:
        yield f"W has {W.num_rows} rows for {expected.n_rows} documents"
    if expected.ids is not None and not _same(W.column(0).combine_chunks(), expected.ids):
        yield "the ids in W are not those of the corpus, in its order"


def _same(found: pa.Array, ids: pa.Array) -> bool:
    """Whether two arrays hold the same values; NaN is NaN, and no string is read as one."""
    if isinstance(ids.type, pa.BaseExtensionType):
        return bool(found.equals(ids))
    if pa.types.is_floating(ids.type):
        return [str(value) for value in found.to_pylist()] == [str(value) for value in ids.to_pylist()]
    return bool(found.equals(ids))


def _failure_problems(expected: Expected, outcome: Outcome, model: Path) -> Iterator[str]:
    if outcome.stdout:
        yield f"{outcome.stdout[:100]!r} on stdout of a failure"
    for name in ("LATEST", "runs/*/_SUCCESS", "runs/*/W/*", "runs/*/H/*"):
        yield from (f"{path.name} stayed after a failure" for path in model.glob(name))
    message = _message(outcome)
    if message is None:
        yield "no message"
        return
    yield from (
        f"the message does not hold {says!r}" for says in expected.says if not re.search(says, message)
    )


def _message(outcome: Outcome) -> str | None:
    lines = outcome.stderr.splitlines()
    if outcome.as_json:
        told = [json.loads(line) for line in lines if line.startswith("{")]
        return next((one["message"] for one in told if one["level"] == "error"), None)
    return next((line for line in lines if line.startswith(_ERROR)), None)
