"""From a job file, the environment and the command line to validated settings, and back to a job file.

Every value keeps the name of the place it came from, so that an error can say where to go and change it.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from nmf_dask.allowed import choices, describe
from nmf_dask.config import Section, Settings, redact
from nmf_dask.errors import ConfigurationError

ENVIRONMENT_PREFIX = "NMF_DASK_"

SECTIONS: dict[str, type[Section]] = {
    name: field.annotation  # type: ignore[misc]  # every field of Settings is a Section
    for name, field in Settings.model_fields.items()
}
KEYS: dict[str, FieldInfo] = {
    f"{name}.{key}": field
    for name, section in SECTIONS.items()
    for key, field in section.model_fields.items()
}
_VARIABLES = {ENVIRONMENT_PREFIX + key.replace(".", "__").upper(): key for key in KEYS}


class Given(NamedTuple):
    """A value that somebody gave for a key, known or not, and where."""

    key: str
    value: Any
    source: str


class Resolved(NamedTuple):
    """Settings, and for each key that was given the place that won."""

    settings: Settings
    sources: Mapping[str, str]


def load_settings(
    job_file: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings of one job: overrides, then the environment, then the job file, then defaults.

    `environ` is ``os.environ`` unless given. `overrides` has dotted keys (``{"model.n_components": 5}``) or
    sections (``{"model": {"n_components": 5}}``). Raises ConfigurationError, which lists every mistake.
    """
    given = [] if job_file is None else read_job_file(job_file)
    given += read_environment(os.environ if environ is None else environ)
    given += _flatten(overrides or {}, "overrides")
    return resolve(given).settings


def read_job_file(path: str | os.PathLike[str]) -> list[Given]:
    """The keys of a TOML job file; ConfigurationError, with the line, where it cannot be read."""
    name = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigurationError(f"job file {name} does not exist (looked in {Path.cwd()})") from None
    except OSError as error:
        raise ConfigurationError(f"job file {name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"job file {name} is no TOML text; a corpus is given with --input") from None
    try:
        return list(_flatten(tomllib.loads(text), name))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(_syntax_error(name, text, str(error))) from None


def _syntax_error(name: str, text: str, message: str) -> str:
    found = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message, re.DOTALL)
    if found is None:  # at the end of the document
        return f"{name}: not valid TOML: {message}"
    reason, line, column = found.groups()
    lines = text.split("\n")
    shown = lines[int(line) - 1].strip() if int(line) <= len(lines) else ""
    return (
        f"{name}, line {line}, column {column}: not valid TOML: {reason}\n  {redact(shown)}\n"
        'a key is written as  name = value,  and text stands in quotes:  solver = "mu"'
    )


def read_environment(environ: Mapping[str, str]) -> list[Given]:
    """The settings among environment variables: NMF_DASK_SECTION__KEY."""
    given = []
    for name, text in environ.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or "__" not in name:
            continue
        key = _VARIABLES.get(name.upper())
        if key is None:  # an unknown key, which `resolve` reports together with all others
            section, _, rest = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
            given.append(Given(f"{section}.{rest}", text, name))
        else:
            given.append(Given(key, parse_value(key, text), name))
    return given


def parse_value(key: str, text: str) -> Any:
    """The value that `text` stands for under `key`: TOML, plain text or a list with commas, as the key takes.

    A text that suits the key in none of these ways comes back as TOML reads it, for validation to refuse.
    """
    field = KEYS.get(key)
    if field is None:
        return text
    section, _, name = key.partition(".")
    toml = _toml_value(text)
    candidates = [toml, text]
    if "," in text and key != "corpus.input":  # there, a comma is part of a path
        words = [part.strip() for part in text.split(",") if part.strip()]
        listed = [[_toml_value(word) for word in words], words, text]
        candidates = listed if isinstance(toml, str) else [toml, *listed]
    for candidate in candidates:
        if not _refused(SECTIONS[section], name, candidate):
            return candidate
    return candidates[0]


def _toml_value(text: str) -> Any:
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return document["value"] if len(document) == 1 else text


def _refused(section: type[Section], name: str, value: Any) -> bool:
    try:
        section.model_validate({name: value})
    except ValidationError as error:
        return any(fault["loc"][:1] == (name,) for fault in error.errors(include_url=False))
    return False


def _flatten(document: Mapping[str, Any], source: str) -> Iterator[Given]:
    for name, value in document.items():
        if isinstance(value, Mapping) and "." not in name:
            yield from (Given(f"{name}.{key}", inner, source) for key, inner in value.items())
        else:
            yield Given(name, value, source)


def resolve(given: Iterable[Given], required: Mapping[str, str] | None = None) -> Resolved:
    """Settings of `given`, a later value of a key before an earlier one.

    `required` maps the keys that must be there to what to do where one is not. Raises ConfigurationError,
    which lists every mistake with the place it was made.
    """
    faults: list[str] = []
    effective: dict[str, Given] = {}
    for item in given:
        if item.key in KEYS:
            effective[item.key] = item
        else:
            faults.append(f"{item.source}: {_unknown(item)}")
    settings, invalid = _validate(effective)
    faults += invalid
    for key, remedy in (required or {}).items():
        if key not in effective or effective[key].value in ((), [], "none"):
            faults.append(f"{key} is missing: {remedy}")
    if settings is None or faults:
        raise ConfigurationError("\n".join(faults) if len(faults) == 1 else _listed(faults))
    return Resolved(settings, {key: item.source for key, item in effective.items()})


def _listed(faults: list[str]) -> str:
    return "\n".join([f"{len(faults)} settings are wrong", *(f"  {fault}" for fault in faults)])


def _unknown(item: Given) -> str:
    section, dot, _ = item.key.partition(".")
    if not dot:
        if section in SECTIONS:
            return f"{section} is a section; write [{section}] and its keys below it"
        homes = [key for key in KEYS if key.partition(".")[2] == section]
        place = f"; it belongs to section [{homes[0].partition('.')[0]}]" if homes else _nearest(section)
        return f"{section} stands outside of any section{place}"
    return f"there is no setting {item.key}{_nearest(item.key)}"


def _nearest(key: str) -> str:
    """A hint at the known key that `key` is most likely meant to be: in its section first, then elsewhere."""
    section, _, name = key.rpartition(".")
    keys = {known.lower(): known for known in KEYS}
    if key.lower() in keys:
        return f"; did you mean {keys[key.lower()]}?"
    same_name = [known for known in KEYS if known.partition(".")[2].lower() == name.lower()]
    siblings = {known.partition(".")[2]: known for known in KEYS if known.startswith(f"{section}.")}
    everywhere = {known.partition(".")[2]: known for known in reversed(KEYS)}
    close = same_name or [
        names[match]
        for names in (siblings, everywhere)
        for match in get_close_matches(name, names, n=1, cutoff=0.6)
    ]
    if close:
        return f"; did you mean {close[0]}?"
    if siblings:
        return f"; [{section}] has {', '.join(siblings)}"
    return f"; the sections are {', '.join(SECTIONS)}"


def _validate(effective: Mapping[str, Given]) -> tuple[Settings | None, list[str]]:
    document: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for item in effective.values():
        section, _, name = item.key.partition(".")
        document[section][name] = item.value
    try:
        return Settings.model_validate(document), []
    except ValidationError as error:
        faults = error.errors(include_url=False)
    # A union reports one fault for each of its members; the key is wrong only once.
    once = {
        fault["loc"][:2] + tuple(fault.get("ctx", {}).get("keys", ())): fault for fault in reversed(faults)
    }
    return None, [_explain(fault, effective) for fault in reversed(once.values())]


def _explain(fault: Any, effective: Mapping[str, Given]) -> str:
    if fault["type"] == "conflict":
        section = ".".join(fault["loc"])
        keys = [key if "." in key else f"{section}.{key}" for key in fault["ctx"]["keys"]]
        said = [
            f"{key} = {_shown(effective[key].value)} ({effective[key].source})"
            for key in keys
            if key in effective
        ]
        said += [f"{key} = {_shown(KEYS[key].default)} (default)" for key in keys if key not in effective]
        return f"{' and '.join(said)}: {fault['ctx']['message']}"
    key = ".".join(fault["loc"][:2])
    item, field = effective[key], KEYS[key]
    message = f"{item.source}: {key} = {_shown(item.value)}: "
    if fault["type"] == "value_error":
        return f"{message}{fault['ctx']['error']}"
    message += f"{describe(field)} is expected"
    if isinstance(item.value, str):
        close = get_close_matches(item.value.lower(), choices(field), n=1)
        message += f"; did you mean {_shown(close[0])}?" if close else ""
    return message


def _shown(value: Any) -> str:
    text = redact(toml_value(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def toml_value(value: Any) -> str:
    """`value` as TOML writes it; None, which TOML has not, as "none"."""
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _toml_string(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    if isinstance(value, float):
        text = repr(value)
        return text if "." in text or "e" in text or "n" in text else f"{text}.0"
    return str(value)


def _toml_string(text: str) -> str:
    if "\\" in text and not re.search(r"['\x00-\x08\x0a-\x1f\x7f]", text):
        return f"'{text}'"  # a literal string keeps a regular expression readable
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\u{ord(match[0]):04x}", escaped) + '"'


def render(resolved: Resolved) -> str:
    """The effective job file: every key, its value, and where that came from. Credentials are left out."""
    lines = ["# Effective settings, as a job file."]
    for name in SECTIONS:
        lines += ["", f"[{name}]"]
        for key in SECTIONS[name].model_fields:
            value = getattr(getattr(resolved.settings, name), key)
            source = resolved.sources.get(f"{name}.{key}", "default")
            unset = value == KEYS[f"{name}.{key}"].default and value in (None, ())
            written = toml_value(value)
            lines.append(f"{'# ' if unset else ''}{key} = {redact(written)}  # {source}")
    return "\n".join(lines) + "\n"


def render_example() -> str:
    """The text of jobs/example.toml: every key with its default; a key without one is commented out."""
    lines = [
        "# Every setting of a job, with its default. A job file needs only the keys that differ.",
        "# A key that is commented out has no value unless it is given one.",
    ]
    for name, section in SECTIONS.items():
        lines += ["", f"# {section.__doc__}", f"[{name}]"]
        for key, field in section.model_fields.items():
            lines += ["", f"# {field.description}"]
            if choices(field):
                lines[-1] += f" ({describe(field)})"
            default = field.default
            unset = default in (None, ())
            shown = (field.examples or [default])[0] if unset else default
            lines.append(f"{'# ' if unset else ''}{key} = {toml_value(shown)}")
    return "\n".join(lines) + "\n"
