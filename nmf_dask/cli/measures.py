"""What was measured of topics, on stdout."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nmf_dask.cli.logs import json_text
from nmf_dask.cli.results import in_lines, write
from nmf_dask.config import redact

if TYPE_CHECKING:
    from nmf_dask.pipeline import SelectResult

_NAMES = {"c_npmi": "NPMI", "c_v": "C_v", "c_uci": "C_uci", "u_mass": "U_mass", "nmi": "NMI"}
# Of a topic's columns, those that are numbers of it; and the width that a line of text gives them.
_NUMBERS = ("share", "c_npmi", "c_v", "c_uci", "u_mass", "diversity", "exclusivity", "stability")


def print_evaluation(told: Mapping[str, Any], shape: str) -> None:
    """As text, as one JSON object, or as CSV: a row a topic, and first one of all topics."""
    if shape == "json":
        write(json_text(dict(told)) + "\n")
    elif shape == "csv":
        write(_csv(told))
    else:
        write(in_lines(lines_of(told)))


def print_selection(result: SelectResult, log_format: str) -> None:
    """The candidates and the recommendation, or for log format "json" one line of both."""
    candidates = result.told["candidates"]
    if log_format == "json":
        kept = {"uri": redact(result.uri), "recommended": result.n_components, "reason": result.reason}
        rest = {"finished_before": result.finished_before, "candidates": candidates}
        write(json_text(kept | rest) + "\n")
        return
    shown = (
        "stability_least", "stability_mean", "loss", "held_out_loss", "c_npmi", "c_v", "n_iter", "seconds"
    )  # fmt: skip
    names = [{"n_iter": "passes", "stability_least": "least stable"}.get(one, name_of(one)) for one in shown]
    lines = ["  ".join([f"{'k':>5}", *(f"{name:>14}" for name in names)])]
    for one in candidates:
        mark = "*" if one["recommended"] else " "
        lines.append(
            "  ".join([f"{mark}{one['n_components']:>4}", *(f"{_number(one[name]):>14}" for name in shown)])
        )
    lines += ["", f"{result.n_components} topics: {result.reason}"]
    write(in_lines(lines))


def lines_of(told: Mapping[str, Any]) -> list[str]:
    """The numbers of all topics, a line each; then a line a topic."""
    lines = [f"{name_of(key):<14} {_number(value)}" for key, value in told["overall"].items()]
    lines += [f"{'documents':<14} {told['n_documents']:,}", ""]
    shown = [name for name in _NUMBERS if told["topics"] and name in told["topics"][0]]
    lines.append("  ".join(["topic", *(f"{name_of(name):>11}" for name in shown), "terms"]))
    for topic in told["topics"]:
        cells = [f"{topic['topic']:>5}", *(f"{_number(topic[name]):>11}" for name in shown)]
        lines.append("  ".join([*cells, " ".join(topic["terms"])]).rstrip())
    return lines + (_confusion(told["labels"]) if "labels" in told else [])


def _confusion(labels: Mapping[str, Any]) -> list[str]:
    """Of each topic the labels that most of its documents have."""
    lines = ["", "topic  documents  labels"]
    for topic, row in enumerate(labels["documents_by_topic"]):
        total = sum(row)
        largest = sorted(zip(row, labels["names"], strict=True), key=lambda one: (-one[0], one[1]))[:5]
        words = [f"{name} {100 * n / total:.0f} %" for n, name in largest if n]
        lines.append(f"{topic:>5}  {total:>9,}  {', '.join(words)}".rstrip())
    return lines


def name_of(key: str) -> str:
    """How people write the name of a measure."""
    return _NAMES.get(key, key.replace("_", " "))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _csv(told: Mapping[str, Any]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    overall: Mapping[str, Any] = told["overall"]
    columns = [name for name in (told["topics"] or [{}])[0] if name not in ("topic", "terms")]
    more = [name for name in overall if name not in columns]
    table.writerow(["topic", *columns, *more, "terms"])
    table.writerow(["all", *_cells(overall, [*columns, *more]), ""])
    for topic in told["topics"]:
        table.writerow([topic["topic"], *_cells(topic, [*columns, *more]), " ".join(topic["terms"])])
    return text.getvalue()


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    return ["" if row.get(name) is None else row[name] for name in names]
