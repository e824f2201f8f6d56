"""Dsfer-Net and what surrounds it: data, training, evaluation and maps of bitemporal change."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from dsfer.models import create_model, list_models

if TYPE_CHECKING:
    from dsfer.detector import load, predict_array
    from dsfer.mapping.predict import predict_raster

__all__ = ["create_model", "list_models", "load", "predict_array", "predict_raster"]

__version__ = version("dsfer")

_LATER = {
    "load": "dsfer.detector",
    "predict_array": "dsfer.detector",
    "predict_raster": "dsfer.mapping.predict",
}
"""What is imported when it is first asked for: it needs torch, which takes seconds to load."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
