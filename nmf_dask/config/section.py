"""What every section of the job file is, and how one refuses keys that contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any, NoReturn, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


def refuse(keys: tuple[str, ...], message: str) -> NoReturn:
    """Report a contradiction between `keys`, which whoever explains the error traces to their sources."""
    raise PydanticCustomError("conflict", "{message}", {"message": message, "keys": keys})


class Section(BaseModel):
    """A section of the job file: no key but the declared ones, and no change after it was validated."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _from_toml(cls, value: Any, info: ValidationInfo) -> Any:
        """TOML has neither null nor tuples: "none" is None where None is allowed, and a list is a tuple."""
        if isinstance(value, list):
            return tuple(value)
        if value == "none" and info.field_name is not None:
            annotation = cls.model_fields[info.field_name].annotation
            return None if NoneType in get_args(annotation) else value
        return value

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Settings from Python: a ValueError names those that are wrong, each with what was expected of it."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            faults = error.errors(include_url=False)
        told: dict[str, list[str]] = {}
        for fault in faults:
            context = fault.get("ctx", {})
            names = context.get("keys") or fault["loc"][:1]
            wrong = " and ".join(f"{name}={given.get(str(name))!r}" for name in names)
            told.setdefault(wrong, []).append(str(context.get("error", fault["msg"])))
        # A union has a fault for each of its members.
        raise ValueError("; ".join(f"{wrong}: {', or '.join(said)}" for wrong, said in told.items()))
