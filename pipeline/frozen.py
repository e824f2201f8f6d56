"""Configuration as frozen typed objects that refuse unknown keys and name the nearest valid one."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from dsfer.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


class Frozen(BaseModel):
    """Base of every configuration object: immutable, and no key beyond the declared ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, value: Any) -> Any:
        if isinstance(value, dict):
            valid = {field.alias or name for name, field in cls.model_fields.items()}
            for key in value:
                if key not in valid:
                    raise ValueError(f"unknown key '{key}'{did_you_mean(str(key), valid)}")
        return value


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return `; perhaps you mean 'X'` for the valid name nearest to `name`, else list them all."""
    names = sorted(valid)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return f"; perhaps you mean '{near[0]}'" if near else f" (one of: {', '.join(names)})"


def parse(model: type[Model], value: Any, where: str | Path) -> Model:
    """Turn plain data into a configuration object.

    Args:
        model: the type wanted.
        value: what a YAML file held.
        where: that file, for the message.

    Raises:
        ConfigError: a key is unknown or missing, or a value is of the wrong type or impossible;
            the message names every such key by its path.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in issue['loc']) or 'top level'}: "
            f"{issue['msg'].removeprefix('Value error, ')}{_found(issue)}"
            for issue in error.errors(include_url=False)
        ]
        raise ConfigError(
            "; ".join(problems), where=where, mend="correct the keys named above"
        ) from error


def _found(issue: Any) -> str:
    """Show the offending value, where it is short enough to help."""
    shown = repr(issue["input"])
    absent = issue["type"] == "missing" and isinstance(issue["input"], dict)
    return f" (found {shown})" if len(shown) <= 60 and not absent else ""
