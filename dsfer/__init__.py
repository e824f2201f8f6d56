"""Dsfer-Net and what surrounds it: data, training, evaluation and maps of bitemporal change."""

from importlib.metadata import version

from dsfer.models import create_model, list_models

__all__ = ["create_model", "list_models"]

__version__ = version("dsfer")
