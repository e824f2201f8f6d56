"""Prefect's settings, checked before anything else of Prefect is imported."""

import io
import os
from contextlib import redirect_stderr

from pydantic import ValidationError

from dsfer.errors import ConfigError


def check_prefect_settings() -> None:
    """Import Prefect, which reads its settings meanwhile: environment, profile, `pyproject.toml`.

    Raises:
        ConfigError: one of them cannot be.
    """
    try:
        with redirect_stderr(io.StringIO()):  # it says so itself, in lines about its plugins
            import prefect.context  # noqa: F401
    except ValidationError as error:
        first = error.errors()[0]
        value, key = first["input"], str(first["loc"][-1])
        named = [
            name
            for name, given in os.environ.items()
            if name.startswith("PREFECT_") and name.lower().endswith(key) and given == value
        ]
        raise ConfigError(
            f"{value!r} is refused: {first['msg'].rstrip('.')}",
            where=named[0] if named else f"Prefect's {error.title}, {key}",
            mend="correct it, or unset it",
        ) from error
