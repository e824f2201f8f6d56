"""Dsfer-Net: deep supervision and feature retrieval for bitemporal change detection.

The network whose 34,085,990 parameters Table II counts. Shapes: b batch, h w image sides, c_i
channels of level i (1 shallow ... 5 deep), at 1/2^(i-1) of the image.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsfer.errors import ConfigError
from dsfer.models.fusion import FusionBlock
from dsfer.models.hopfield import FeatureRetrieval, Norm
from dsfer.models.output import ChangeOutput
from dsfer.models.shapes import check_divisible
from dsfer.models.variants import VARIANTS, Variant
from dsfer.models.vgg import VGG16Encoder

RETRIEVAL_LEVELS = (4, 5)


class DsferNet(nn.Module):
    """Siamese VGG-16, retrieval at levels 4 and 5, comprehensive fusion decoder (Figs. 3 to 5).

    Args:
        image_size: side of the square images that the `volume` norm is built for; divisible by 16.
        width: factor on every channel count (1 is the paper's network).
        hopfield_dim: dimension in which state and stored patterns are compared.
        hopfield_beta: inverse temperature of the retrieval; None takes hopfield_dim ** -0.5.
        norm: `volume` as released (ties the network to image_size) or `channel` (any size
            divisible by 16).
        variant: row of Table III.

    Raises:
        ConfigError: an unknown variant or norm.
        TileSizeError: image_size is not divisible by 16.
    """

    def __init__(
        self,
        *,
        image_size: int = 256,
        width: float = 1.0,
        hopfield_dim: int = 512,
        hopfield_beta: float | None = None,
        norm: Norm = "volume",
        variant: Variant = "base+cf+dsfr",
    ):
        super().__init__()
        _check_choice("variant", variant, VARIANTS)
        _check_choice("norm", norm, ("volume", "channel"))
        check_divisible("dsfer-net", image_size, image_size, divisor=16)
        self.encoder = VGG16Encoder(width)
        channels = self.encoder.channels
        self.retrieval = nn.ModuleDict()
        if variant.endswith("dsfr"):
            for level in RETRIEVAL_LEVELS:
                self.retrieval[str(level)] = FeatureRetrieval(
                    channels[level - 1],
                    image_size // self.encoder.strides[level - 1],
                    hopfield_dim=hopfield_dim,
                    beta=hopfield_beta,
                    norm=norm,
                )
        # The fused map of a level has the channels of the level above; the finest half of its own.
        outputs = (channels[0] // 2, *channels[:3], channels[4])
        self.fusion = nn.ModuleDict()
        for level in (5, 4, 3, 2, 1):
            self.fusion[str(level)] = FusionBlock(
                channels[level - 1],
                outputs[level] if level < 5 else 0,
                outputs[level - 1],
                comprehensive="cf" in variant,
                masked=str(level) in self.retrieval,
            )
        self.classifier = nn.Conv2d(outputs[0], 2, kernel_size=1)

    def forward(self, t1: Tensor, t2: Tensor) -> ChangeOutput:
        """Detect changes between two dates.

        Args:
            t1: (b, 3, h, w) float, RGB of the first date, normalised per band.
            t2: the same of the second date.

        Returns:
            logits (b, 2, h, w) and, with retrieval, the deep maps (b, 2, h/8, w/8) and
            (b, 2, h/16, w/16).

        Raises:
            TileSizeError: h or w is not divisible by 16, or not what the norm was built for.
        """
        check_divisible("dsfer-net", *t1.shape[-2:], divisor=16)
        features = self.encoder(torch.cat((t1, t2)))  # both dates in one pass: 2b c_i h_i w_i
        deep: list[Tensor] = []
        fused: Tensor | None = None
        for level in (5, 4, 3, 2, 1):
            mask = None
            if str(level) in self.retrieval:
                mask, intermediate = self.retrieval[str(level)](features[level - 1])
                deep.insert(0, intermediate)
            if fused is not None:
                fused = F.interpolate(fused, scale_factor=2, mode="bilinear", align_corners=True)
            fused = self.fusion[str(level)](features[level - 1], mask, fused)
        return ChangeOutput(self.classifier(fused), tuple(deep))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(
            f"unknown value {value!r}", where=name, mend=f"use one of {', '.join(choices)}"
        )
