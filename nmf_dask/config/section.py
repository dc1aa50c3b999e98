"""What every section of the job file is, and how one refuses keys that contradict each other."""

from __future__ import annotations

from types import NoneType
from typing import Any, NoReturn, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
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
