"""Results on stdout, and nothing else there."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nmf_dask.cli.logs import json_text
from nmf_dask.config import redact

if TYPE_CHECKING:
    from nmf_dask.comparison import Moved
    from nmf_dask.model import Topic, TopicModel
    from nmf_dask.pipeline import FitResult, NightResult, TransformResult


# What moves a cursor or ends a line, for terminals and for Python.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def in_lines(lines: Iterable[str]) -> str:
    """Lines as one text. Terms and labels are whatever a corpus holds: a line break in one is written ``\\n``."""
    return "".join(
        _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), line) + "\n" for line in lines
    )


def write(text: str) -> None:
    """Write to stdout; whoever reads it may have had enough (``| head``), which is no error."""
    if sys.stdout is None:  # closed by whoever started the job (>&-)
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at exit, and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_topics(model: TopicModel, n_terms: int, shape: str) -> None:
    """The topics of a model as text, JSON (one object) or CSV (topic, share, rank, term, weight)."""
    topics = model.topics(n_terms)
    if shape == "json":
        write(json_text({"run_id": model.run.get("run_id"), "topics": _as_dicts(topics)}) + "\n")
    elif shape == "csv":
        write(_csv(topics))
    else:
        write(lines_of(topics, _width()))


def print_moved(model: TopicModel, before: TopicModel, n_terms: int, shape: str) -> None:
    """What moved between two models as text, JSON (one object) or CSV (one row a topic)."""
    from nmf_dask.comparison import compare

    moved = compare(model, before, n_terms)
    if shape == "json":
        ids = {"run_id": model.run.get("run_id"), "compared_with": before.run.get("run_id")}
        write(json_text({**ids, "topics": [_moved_as_dict(one) for one in moved]}) + "\n")
    elif shape == "csv":
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["topic", "share", "share_before", "similarity", "state", "terms_in", "terms_out"])
        for one in moved:
            told = _moved_as_dict(one)
            for terms in ("terms_in", "terms_out"):
                told[terms] = " ".join(told[terms])
            table.writerow("" if value is None else value for value in told.values())
        write(text.getvalue())
    else:
        write(lines_of_moved(moved, _width()))


def _moved_as_dict(one: Moved) -> dict[str, Any]:
    now, before = (None if math.isnan(topic.share) else float(topic.share) for topic in (one.now, one.before))
    return {
        "topic": one.now.topic,
        "share": now,
        "share_before": before,
        "similarity": round(one.similarity, 6),
        "state": one.state,
        "terms_in": one.terms_in,
        "terms_out": one.terms_out,
    }


def lines_of_moved(moved: Sequence[Moved], width: int | None) -> str:
    """One topic a line, that which moved most first: share before and after, similarity, terms in (+) and out (-)."""
    digits = len(str(len(moved)))
    lines: list[str] = []
    for one in sorted(moved, key=lambda one: one.similarity):
        shares = " → ".join(_share(topic.share) for topic in (one.before, one.now))
        head = f"{'#' + str(one.now.topic):<{digits + 1}} {shares}  {one.similarity:.3f}  {one.state:<4}  "
        words = [*(f"+{term}" for term in one.terms_in), *(f"-{term}" for term in one.terms_out)]
        lines += _wrapped(head, words or ["(the same terms)"], width)
    return in_lines(lines)


def _share(share: float) -> str:
    return "   ?  " if math.isnan(share) else f"{100 * share:5.1f} %"


def print_fit(result: FitResult, log_format: str, seconds: float) -> None:
    """What a fit found: its topics, or for log format "json" one line of the run's numbers and the topics.

    `seconds` is how long the command took.
    """
    from nmf_dask.model import TopicModel

    topics = TopicModel.load(result.uri).topics(10)
    if log_format != "json":
        write(lines_of(topics, _width()))
        return
    told = ("n_documents", "n_features", "n_iter", "stop_reason", "reconstruction_err", "workers_lost", "peak_memory",
            "resumed_from")  # fmt: skip
    document = {
        "run_id": result.run_id,
        "status": "nothing new" if result.finished_before else "done",
        "uri": redact(result.uri),
        "resumed": result.resumed,
        "finished_before": result.finished_before,
        "converged": result.run.get("stop_reason") == "tol",
        **{key: result.run.get(key) for key in told},
        **({"updated_from": result.run["updated_from"]} if "updated_from" in result.run else {}),
        "seconds": round(seconds, 3),
        "topics": _as_dicts(topics),
    }
    write(json_text(document) + "\n")


def print_transform(result: TransformResult, log_format: str) -> None:
    """What a transform did: some lines of numbers, or for log format "json" one line with the topics' shares."""
    told = result.told
    if log_format == "json":
        kept = (
            "run_id", "status", "model", "n_documents", "n_empty_documents", "n_null_texts", "n_invalid_utf8",
            "relative_loss", "workers_lost", "peak_memory", "partitions_done", "partitions_resumed",
            "partitions_skipped", "files_new", "files_skipped", "seconds", "topics",
        )  # fmt: skip
        write(json_text({"uri": redact(result.uri), **{key: told.get(key) for key in kept}}) + "\n")
        return
    made = told["partitions_done"] + told["partitions_resumed"]
    again = f" ({told['partitions_resumed']:,} by an earlier attempt)" if told["partitions_resumed"] else ""
    lines = [
        f"documents    {told['n_documents']:,}, of them {told['n_empty_documents']:,} without a known term",
        f"partitions   {made:,} done{again}, {told['partitions_skipped']:,} skipped",
        f"seconds      {told['seconds']:.1f}",
    ]
    write(in_lines(lines))


def print_night(result: NightResult, log_format: str) -> None:
    """What a night found and did: some lines, or for log format "json" one line; topics that an update moved."""
    told = result.told
    if log_format == "json":
        moved = [_moved_as_dict(one) for one in result.moved]
        write(json_text({"uri": redact(result.uri), **told, "topics_moved": moved}) + "\n")
        return
    if told["status"] == "nothing new":
        write("nothing new\n")
        return
    loss, rise = told["relative_loss"], told["rise"]
    compared = "" if rise is None else f", {100 * rise:+.2f} % against {told['reference_loss']:.4f}"
    reason = f" ({told['reason']})" if told["reason"] else ""
    lines = [
        f"documents    {told['n_documents']:,}, of them {told['n_empty_documents']:,} without a known term",
        f"loss         {'not known' if loss is None else f'{loss:.4f}'}{compared}",
        f"done         {', '.join(told['did'])}{reason}",
        f"model        {told['model']}",
        f"weights      {told['weights']}",
        f"seconds      {told['seconds']:.1f}",
    ]
    write(in_lines(lines) + lines_of_moved(result.moved, _width()))


def _width() -> int | None:
    """Columns of the terminal; None where stdout is something else, which a program may read line by line."""
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def _as_dicts(topics: Sequence[Topic]) -> list[dict[str, Any]]:
    return [
        {
            "topic": topic.topic,
            "share": float(topic.share),
            "terms": [{"term": term, "weight": float(weight)} for term, weight in topic.terms],
        }
        for topic in topics
    ]


def _csv(topics: Sequence[Topic]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["topic", "share", "rank", "term", "weight"])
    for topic in topics:
        for rank, (term, weight) in enumerate(topic.terms, 1):
            share = "" if math.isnan(topic.share) else float(topic.share)
            table.writerow([topic.topic, share, rank, term, float(weight)])
    return text.getvalue()


def lines_of(topics: Sequence[Topic], width: int | None) -> str:
    """One topic a line, the largest share first; lines longer than `width` go on below their first term."""
    digits = len(str(max((topic.topic for topic in topics), default=0)))
    lines: list[str] = []
    for topic in sorted(topics, key=lambda one: math.inf if math.isnan(one.share) else -one.share):
        head = f"{'#' + str(topic.topic):<{digits + 1}} {_share(topic.share)}  "
        words = [f"{term} {weight:.3g}" for term, weight in topic.terms] or ["(no terms)"]
        lines += _wrapped(head, words, width)
    return in_lines(lines)


def _wrapped(head: str, words: Sequence[str], width: int | None) -> list[str]:
    lines, line = [], head
    for word in words:
        if width is not None and line.strip() and len(line) + len(word) > width and line != head:
            lines.append(line.rstrip())
            line = " " * len(head)
        line += f"{word}  "
    return [*lines, line.rstrip()]
