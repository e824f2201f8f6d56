"""The networks, and the front door to them."""

from __future__ import annotations

import difflib
import inspect
import logging
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dsfer.errors import ConfigError
from dsfer.models.variants import VARIANTS

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


@dataclass(frozen=True)
class Method:
    """What is known of a network before it is built: torch takes seconds to load.

    Attributes:
        path: module and name of its class, which is imported when it is built.
        divisor: what the sides of its tiles must be divisible by.
        smallest: least side of its tiles in pixels.
        variants: options of its class by the name of the variant; the first is the default.
    """

    path: str
    divisor: int = 16
    smallest: int = 16
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)


MODELS = {
    "bit": Method(
        "dsfer.models.bit.BiT",
        divisor=8,
        variants={"dd8-dedim8": {"decoder_head_width": 8}, "dd8": {"decoder_head_width": 64}},
    ),
    "changeformer": Method(
        "dsfer.models.changeformer.ChangeFormer",
        divisor=32,
        variants={"v6": {"version": "v6"}, "v5": {"version": "v5"}},
    ),
    "dsamnet": Method("dsfer.models.dsamnet.DSAMNet", divisor=4),
    # 16 for VGG-16; other encoders say themselves.
    "dsfer-net": Method(
        "dsfer.models.dsfer_net.DsferNet",
        variants={name: {"variant": name} for name in reversed(VARIANTS)},
    ),
    "fc-ef-res": Method("dsfer.models.fc_ef_res.FCEFRes"),
    "fc-siam-conc": Method("dsfer.models.fc_siam_conc.FCSiamConc"),
    "frnet": Method("dsfer.models.frnet.FrNet"),
    # 32 for the pyramid's smallest parts; basic attention alone would do with 4.
    "stanet": Method(
        "dsfer.models.stanet.STANet",
        divisor=32,
        variants={"pam": {"attention": "pam"}, "bam": {"attention": "bam"}},
    ),
    # It selects 1,000 of the features at 1/4 of the image: 120 pixels have 900, 128 have 1,024.
    "vct": Method("dsfer.models.vct.VcT", divisor=8, smallest=128),
}
"""The networks by name. A new one is a file and a line here, see docs/own-model.md."""


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
