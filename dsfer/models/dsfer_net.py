"""Dsfer-Net: deep supervision and feature retrieval for bitemporal change detection.

The network whose 34,085,990 parameters Table II counts, and with other encoders those of Table IV.
Shapes: b batch, h w image sides, c_i channels of level i (1 shallow ... 5 deep), s_i its stride:
1, 2, 4, 8, 16 for VGG-16; 2, 4, 8, 16, 32 for encoders that begin by halving the image.
"""

from torch import Tensor, nn

from dsfer.errors import ConfigError
from dsfer.models.encoders import build_encoder
from dsfer.models.fusion import FusionBlock
from dsfer.models.hopfield import FeatureRetrieval, Norm
from dsfer.models.output import ChangeOutput
from dsfer.models.resize import enlarge
from dsfer.models.shapes import check_divisible
from dsfer.models.siamese import encode_pair, has_batch_norm
from dsfer.models.variants import VARIANTS, Variant

RETRIEVAL_LEVELS = (4, 5)


class DsferNet(nn.Module):
    """Siamese encoder, retrieval at levels 4 and 5, comprehensive fusion decoder (Figs. 3 to 5).

    Args:
        image_size: side of the square images that the `volume` norm is built for; divisible by the
            encoder's last stride.
        encoder: row of Table IV, `vgg16`, `resnet18` or `transformer`; or the name of a torchvision
            network that gives five scales.
        width: factor on every channel count (1 is the paper's network); the encoders of Table IV
            only.
        hopfield_dim: dimension in which state and stored patterns are compared; None takes the
            channels of level 4, 512 at most. For VGG-16 and the Transformer that is 512, for
            ResNet-18 256, as Table IV counts.
        hopfield_beta: inverse temperature of the retrieval; None takes hopfield_dim ** -0.5.
        norm: `volume` as released (ties the network to image_size) or `channel` (any size
            divisible by the encoder's last stride).
        variant: row of Table III.

    Raises:
        ConfigError: an unknown encoder, variant or norm, or an encoder without five scales.
        TileSizeError: image_size is not divisible by the encoder's last stride.
    """

    def __init__(
        self,
        *,
        image_size: int = 256,
        encoder: str = "vgg16",
        width: float = 1.0,
        hopfield_dim: int | None = None,
        hopfield_beta: float | None = None,
        norm: Norm = "volume",
        variant: Variant = "base+cf+dsfr",
    ):
        super().__init__()
        _check_choice("variant", variant, VARIANTS)
        _check_choice("norm", norm, ("volume", "channel"))
        self.encoder = build_encoder(encoder, width=width)
        channels, strides = self.encoder.channels, self.encoder.strides
        check_divisible("dsfer-net", image_size, image_size, divisor=strides[-1])
        if hopfield_dim is None:
            hopfield_dim = min(512, channels[3])
        self.retrieval = nn.ModuleDict()
        if variant.endswith("dsfr"):
            for level in RETRIEVAL_LEVELS:
                self.retrieval[str(level)] = FeatureRetrieval(
                    channels[level - 1],
                    image_size // strides[level - 1],
                    hopfield_dim=hopfield_dim,
                    beta=hopfield_beta,
                    norm=norm,
                )
        # Channels of the fused maps, shallow to deep, as Table IV counts for all three encoders.
        outputs = (channels[0] // 2, channels[0], channels[1], channels[4] // 2, channels[4])
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
        self._dates_apart = has_batch_norm(self.encoder)

    def forward(self, t1: Tensor, t2: Tensor) -> ChangeOutput:
        """Detect changes between two dates.

        Args:
            t1: (b, 3, h, w) float, RGB of the first date, normalised per band.
            t2: the same of the second date.

        Returns:
            logits (b, 2, h, w) and, with retrieval, the deep maps (b, 2, h/s_4, w/s_4) and
            (b, 2, h/s_5, w/s_5).

        Raises:
            TileSizeError: h or w is not divisible by s_5, or not what the norm was built for.
        """
        finest, *_, coarsest = self.encoder.strides
        check_divisible("dsfer-net", *t1.shape[-2:], divisor=coarsest)
        apart = self.training and self._dates_apart
        features = encode_pair(self.encoder, t1, t2, apart=apart)  # 2b c_i h/s_i w/s_i
        deep: list[Tensor] = []
        fused: Tensor | None = None
        for level in (5, 4, 3, 2, 1):
            mask = None
            if str(level) in self.retrieval:
                mask, intermediate = self.retrieval[str(level)](features[level - 1])
                deep.insert(0, intermediate)
            if fused is not None:
                fused = enlarge(fused, 2)
            fused = self.fusion[str(level)](features[level - 1], mask, fused)
        logits = self.classifier(fused)  # b 2 h/s_1 w/s_1
        if finest > 1:  # a 1x1 convolution and bilinear weights exchange: 2 channels to enlarge
            logits = enlarge(logits, finest)
        return ChangeOutput(logits, tuple(deep))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(
            f"unknown value {value!r}", where=name, mend=f"use one of {', '.join(choices)}"
        )
