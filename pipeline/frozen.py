"""Configuration as frozen typed objects that refuse unknown keys and name the nearest valid one."""

import difflib
from collections.abc import Iterable
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, WithJsonSchema, model_validator
from ruamel.yaml import YAML

from dsfer.errors import ConfigError, first_line

Model = TypeVar("Model", bound=BaseModel)

SECRETS = r"(\w*)://([^/]*(:.*)?@|.*\?)"
"""What a URL has that holds credentials: a name before the host, a password even with slashes in
it, or a query. Paths of files may have the same characters, but no `://`."""

NO_SECRETS: dict[str, Any] = {
    "not": {
        "description": "credentials in a URL: they come from the environment alone",
        "type": "string",
        "pattern": SECRETS,
    }
}
"""JSON schema by which Prefect's server refuses such a URL before it keeps anything.

To pydantic it is no constraint: its messages would repeat the value.
"""

Place = Annotated[str, WithJsonSchema({"type": "string", "minLength": 1} | NO_SECRETS)]
"""A path, or an address without credentials."""


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


def read_yaml(path: Path) -> Any:
    """Read a YAML 1.2 file, where 1e-3 is a number, with the parser that DVC uses.

    Raises:
        ConfigError: the file is missing or no YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"not a readable file ({error})",
            where=path,
            mend="run from the project's top folder, where params.yaml is, and keep it in UTF-8",
        ) from error
    try:
        return deepcopy(_parsed(text))
    except Exception as error:  # the parser raises its own errors, and those of what it meets
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise ConfigError(
            f"no YAML ({line}{problem})", where=path, mend="correct that line"
        ) from error


@lru_cache(maxsize=8)  # slow, and every cell of a table begins with the same params.yaml
def _parsed(text: str) -> Any:
    """What YAML text says, for `read_yaml` to copy."""
    return YAML(typ="safe", pure=True).load(text)


def read_sections(path: Path) -> dict[str, dict[str, Any]]:
    """Read a YAML file of named sections, each of them a mapping.

    Raises:
        ConfigError: the file is missing, no YAML, or of another form.
    """
    sections = read_yaml(path)
    if not isinstance(sections, dict) or not all(
        isinstance(name, str) and isinstance(section, dict) for name, section in sections.items()
    ):
        raise ConfigError(
            "not a mapping from names to sections of keys and values",
            where=path,
            mend="give it the form that docs/data-sets.md and docs/recipes.md show",
        )
    return sections


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
