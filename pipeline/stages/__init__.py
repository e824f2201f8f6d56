"""One module per DVC stage, each a thin `main` over plain functions."""

from dsfer.console import run

__all__ = ["run"]
