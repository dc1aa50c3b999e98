"""The lines of the log, as text and as JSON."""

import json
from datetime import UTC, datetime
from typing import Any


def json_line(level: str, event: str, message: str | None = None, **fields: Any) -> str:
    """One log record as one line of JSON; `time` is in UTC."""
    record: dict[str, Any] = {"time": _now(), "level": level, "event": event}
    if message is not None:
        record["message"] = message
    return json.dumps({**record, **fields}, ensure_ascii=False, default=str)


def text_line(level: str, message: str) -> str:
    """One log record as a line with its time (UTC) and, where it matters, its level."""
    marker = "" if level == "info" else f"{level}: "
    return f"{_now()} {marker}{message}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
