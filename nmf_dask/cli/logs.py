"""The lines of the log, as text and as JSON."""

import json
import math
from datetime import UTC, datetime
from typing import Any


def json_line(level: str, event: str, message: str | None = None, **fields: Any) -> str:
    """One log record as one line of JSON; `time` is in UTC."""
    record: dict[str, Any] = {"time": _now(), "level": level, "event": event}
    if message is not None:
        record["message"] = message
    return json_text({**record, **fields})


def json_text(value: Any) -> str:
    """`value` as one line of JSON, which knows no NaN: null stands for it."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value


def text_line(level: str, message: str) -> str:
    """One log record as a line with its time (UTC) and, where it matters, its level."""
    marker = "" if level == "info" else f"{level}: "
    return f"{_now()} {marker}{message}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
