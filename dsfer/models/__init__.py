"""The networks, and the front door to them."""

from __future__ import annotations

import difflib
import inspect
import logging
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dsfer.errors import ConfigError
from dsfer.models.registry import MODELS, Method

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

__all__ = [
    "MODELS",
    "Method",
    "ParameterCount",
    "count_parameters",
    "create_model",
    "list_models",
]

log = logging.getLogger(__name__)


def list_models() -> list[str]:
    """Names that `create_model` takes."""
    return sorted(MODELS)


def create_model(
    name: str,
    *,
    pretrained: bool | str | Path = False,
    weights: str | Path | None = None,
    **options: Any,
) -> nn.Module:
    """Build a change detection network by name.

    Args:
        name: one of `list_models()`.
        pretrained: True starts the encoder from torchvision's ImageNet weights, a path from a
            local file of them, False from scratch.
        weights: a .safetensors file of this whole network, as training writes it; its options
            (width, image_size, ...) are taken from the file unless given here.
        **options: the network's own, see its class.

    Returns:
        A module in training mode whose forward(t1, t2) takes two (b, 3, h, w) normalised float
        tensors and returns a ChangeOutput.

    Raises:
        ConfigError: an unknown name or option, or no encoder that could be pretrained.
        CheckpointError: weights of another model, or damaged ones.
    """
    from dsfer.weights import load_weights, read_metadata  # needs torch, see MODELS

    if name not in MODELS:
        raise ConfigError(
            f"unknown model {name!r}", where="model", mend=_nearest(name, list_models())
        )
    module, _, attribute = MODELS[name].path.rpartition(".")
    build: Callable[..., nn.Module] = getattr(import_module(module), attribute)
    if weights is not None:
        options = read_metadata(Path(weights), model=name).options | options
    known = list(inspect.signature(build).parameters)
    for option in options:
        if option not in known:
            raise ConfigError(
                f"{name} has no option {option!r}", where="model", mend=_nearest(option, known)
            )
    model = build(**options)
    if weights is not None:
        load_weights(model, Path(weights), model_name=name)
        return model
    load_imagenet = getattr(getattr(model, "encoder", None), "load_imagenet", None)
    if load_imagenet is None:
        _check_from_scratch(name, pretrained)
    elif pretrained:
        load_imagenet(None if pretrained is True else Path(pretrained))
    else:
        log.info("%s: encoder from scratch, no ImageNet weights", name)
    return model


class ParameterCount(NamedTuple):
    """How many parameters a network has.

    Attributes:
        live: those that its forward uses.
        counted: those and the ones that the published network has but never uses, with which this
            one is not built; Table II counts them.
    """

    live: int
    counted: int


def count_parameters(model: nn.Module) -> ParameterCount:
    """Parameters of a network, as it is and as Table II counts them."""
    live = sum(parameter.numel() for parameter in model.parameters())
    return ParameterCount(live, live + getattr(model, "unused_parameters", 0))


def _check_from_scratch(name: str, pretrained: bool | str | Path) -> None:
    if pretrained:
        raise ConfigError(
            f"{name} has no encoder with ImageNet weights",
            where="pretrained",
            mend="set pretrained: none",
        )


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"use {close[0]!r}, if you meant that" if close else f"use one of {', '.join(known)}"
