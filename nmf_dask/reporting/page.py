"""The page itself: HTML, style and script in one file that asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

# Characters that could end the script element, or that HTML would read as its own.
_IN_SCRIPT = {ord(one): f"\\u{ord(one):04x}" for one in "<>&\u2028\u2029"}


def page_of(
    title: str,
    facts: Iterable[tuple[str, str]],
    warnings: Sequence[str],
    passes: Sequence[Mapping[str, Any]],
    stages: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Mapping[str, Any]],
    data: Mapping[str, Any],
) -> str:
    """The page as HTML. All that is given is text: it is escaped here, whatever is in it.

    `data` is what page.js draws. The page forbids itself every connection and every script but page.js (its
    Content-Security-Policy), so that nothing a corpus holds can run, or reach out.
    """
    script, style = (files(__package__).joinpath(name).read_text("utf-8") for name in ("page.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:"
    listed = "".join(f"<li>{_text(one)}</li>" for one in warnings)
    warned = f'<div class="warnings"><ul>{listed}</ul></div>' if warnings else "<p>Nothing to be wary of.</p>"
    return "".join(
        (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">',
            f"<title>{_text(title)}</title><style>{style}</style></head><body>",
            f"<h1>{_text(title)}</h1>",
            '<div class="side"><section><h2>The model</h2>', _table(facts, "facts"), "</section>",
            "<section><h2>What to be wary of</h2>", warned, "</section></div>",
            _TOPICS,
            '<div class="side"><section><h2>Loss over passes</h2>', _loss(passes), "</section>",
            "<section><h2>Time by stage</h2>", _stages(stages), "</section></div>",
            "<details><summary>All settings</summary>", _settings(settings), "</details>",
            '<script type="application/json" id="data">', embedded(data), "</script>",
            f"<script>{script}</script></body></html>\n",
        )
    )  # fmt: skip


def embedded(data: Mapping[str, Any]) -> str:
    """JSON that no reader of HTML takes for anything else."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_IN_SCRIPT)


def _text(value: object) -> str:
    return escape(str(value), quote=True)


def _table(rows: Iterable[tuple[str, str]], kind: str = "settings") -> str:
    cells = (f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>' for name, value in rows)
    return f'<table class="{kind}"><tbody>{"".join(cells)}</tbody></table>'


def _loss(passes: Sequence[Mapping[str, Any]]) -> str:
    told = [(int(one["iteration"]), float(one["reconstruction_err"])) for one in passes]
    if not told:
        return "<p>The run does not tell.</p>"
    rows = "".join(
        f'<tr><td class="number">{number}</td><td class="number">{loss:.8g}</td></tr>'
        for number, loss in told
    )
    low, high = min(loss for _, loss in told), max(loss for _, loss in told)
    first, last = told[0][0], told[-1][0]
    points = " ".join(
        f"{70 + 420 * (number - first) / max(1, last - first):.1f},"
        f"{10 + 110 * (high - loss) / ((high - low) or 1.0):.1f}"
        for number, loss in told
    )
    return (
        '<svg class="loss" viewBox="0 0 500 150" role="img" aria-label="Reconstruction error after each pass; the '
        f'numbers are in the table that follows"><path d="M66 6V124H494"/><polyline points="{points}"/>'
        f'<text x="62" y="14" text-anchor="end">{high:.6g}</text>'
        f'<text x="62" y="124" text-anchor="end">{low:.6g}</text><text x="70" y="142">pass {first}</text>'
        f'<text x="494" y="142" text-anchor="end">pass {last}</text></svg><details><summary>The numbers</summary>'
        '<div class="scroll"><table><thead><tr><th scope="col">pass</th><th scope="col">reconstruction error</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div></details>"
    )


def _stages(stages: Mapping[str, Mapping[str, Any]]) -> str:
    seconds = {name: float(one.get("seconds") or 0.0) for name, one in stages.items()}
    most = max(seconds.values(), default=0.0) or 1.0
    rows = "".join(
        f'<tr><th scope="row">{_text(name)}</th><td class="bar" aria-hidden="true">'
        f'<div style="width:{100 * spent / most:.1f}%"></div></td><td class="number">{spent:,.2f} s</td></tr>'
        for name, spent in seconds.items()
    )
    return f'<table class="stages"><tbody>{rows}</tbody></table>' if rows else "<p>The run does not tell.</p>"


def _settings(settings: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (f"{section}.{key}", _short(json.dumps(value, ensure_ascii=False)))
        for section, keys in settings.items()
        for key, value in keys.items()
    ]
    return _table(rows)


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:297]}..."


_TOPICS = """
<noscript><p>The topics below are drawn by a script in this file, which this browser does not run.</p></noscript>
<p id="said" role="status" aria-live="polite"></p>
<div class="side"><section><h2 id="map-title">Map of the topics</h2>
<p class="dim">Near means similar terms (Hellinger distance, in two dimensions as well as that goes); the area is the
topic's share of the corpus. Click a topic, or move with the arrow keys.</p>
<svg id="map" viewBox="0 0 600 600" role="listbox" tabindex="0" aria-labelledby="map-title"></svg>
<h3><label for="topic">All topics, the largest first</label></h3>
<p><label for="find">with the term</label> <input id="find" type="search" autocomplete="off" spellcheck="false">
<output id="found" for="find" class="dim"></output></p><select id="topic" size="10"></select></section>
<section><h2>Terms of the topic</h2>
<p><label for="lambda">Relevance &lambda;</label> <input id="lambda" type="range" min="0" max="1" step="0.1" value="0.6"
aria-describedby="lambda-help"> <output id="lambda-value" for="lambda"></output></p>
<p class="dim" id="lambda-help">1: terms by their weight in the topic; 0: terms that the topic has for itself. A click
on a term shows it in context. <span class="key in"></span> the topic's part of a term,
<span class="key all"></span> all of it in the corpus.</p>
<table id="terms"><thead><tr><th scope="col">term</th><th class="bar" aria-hidden="true"></th>
<th scope="col" class="number">of the topic</th><th scope="col" class="number">of the term</th></tr></thead>
<tbody></tbody></table></section></div>
<div class="side"><section><h2>Most typical documents</h2><ol id="documents"></ol></section>
<section><h2>Words in context</h2>
<p id="context-of" class="dim">Texts are shown where the report was made with --input.</p>
<table id="context" aria-labelledby="context-of"><tbody></tbody></table><div id="groups"></div></section></div>
<div id="all-groups"></div>
"""
