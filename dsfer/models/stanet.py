"""STANet: a Siamese ResNet-18 whose features attend to one another across space and time.

Chen, Shi: "A spatial-temporal attention-based method and a new dataset for remote sensing image
change detection", Remote Sensing 2020. Shapes: b batch, h w image sides, c channels of the
features, which lie at 1/4 of the image; k channels of queries and keys, n tokens that attend to
one another.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsfer.errors import ConfigError
from dsfer.models.batch_norm import BatchNorm2d
from dsfer.models.metric import FeatureHead, channel_distance, distance_output
from dsfer.models.output import ChangeOutput
from dsfer.models.resnet import RESNET_18, Layer, ResNet18Encoder
from dsfer.models.shapes import check_divisible
from dsfer.models.siamese import encode_pair

Attention = Literal["pam", "bam"]

LAYERS = (*RESNET_18[:3], Layer(512, 2, (1, 2, 4)))
"""ResNet-18 with a third block in its last layer, and dilations there."""

FEATURE_STRIDE = 4
PARTITIONS = (1, 2, 4, 8)
"""Into how many parts each side is cut at the scales of the pyramid attention module."""


class STANet(nn.Module):
    """Siamese features, attention over both dates, distance of the features.

    With pyramid attention (PAM) 16,929,152 parameters, as Table II counts; with basic attention
    (BAM) 16,897,040, while the released network has one more: a gain that its forward never uses.

    A distance has no sign: exchanging the dates changes it by no more than comes of the 1e-6 that
    is added to each difference.

    As released, each date goes through encoder and head by itself in training, where batch
    normalisation takes its statistics; that of the attention sees both dates.

    Args:
        attention: `pam` or `bam`.
        width: factor on every channel count; 1 is the published network.

    Attributes:
        unused_parameters: how many parameters the released network has beyond those it uses.

    Raises:
        ConfigError: an unknown attention.
    """

    def __init__(self, *, attention: Attention = "pam", width: float = 1.0):
        super().__init__()
        if attention not in get_args(Attention):
            raise ConfigError(
                f"unknown value {attention!r}", where="attention", mend="use one of pam, bam"
            )
        self.encoder = ResNet18Encoder(LAYERS, width=width)
        self.head = FeatureHead(self.encoder.channels[1:], width=width)
        pyramid = attention == "pam"
        self.attention: PyramidAttention | BasicAttention = (
            PyramidAttention(self.head.channels) if pyramid else BasicAttention(self.head.channels)
        )
        self.unused_parameters = 0 if pyramid else 1
        self.attention.apply(_initialise)

    def forward(self, t1: Tensor, t2: Tensor) -> ChangeOutput:
        """Detect changes between two dates.

        Args:
            t1: (b, 3, h, w) float, RGB of the first date in [-1, 1].
            t2: the same of the second date.

        Returns:
            logits (b, 2, h, w): 1 and the distance, see `distance_output`.

        Raises:
            TileSizeError: h or w is not divisible by what the attention needs: 32 or 4.
        """
        divisor = FEATURE_STRIDE * self.attention.divisor
        check_divisible("stanet", *t1.shape[-2:], divisor=divisor)
        (features,) = encode_pair(self.features_of, t1, t2, apart=self.training)
        features = self.attention(features)  # 2b c h/4 w/4
        return distance_output(channel_distance(*features.chunk(2)), t1.shape[-2:])

    def features_of(self, images: Tensor) -> tuple[Tensor]:
        """Features (b, c, h/4, w/4) of (b, 3, h, w) images, before any attention."""
        return (self.head(self.encoder(images)[1:]),)


class BasicAttention(nn.Module):
    """BAM: every pixel of both dates attends to every other, and the result is added to it.

    The released module also has a gain `gamma`, which it never uses: the sum is not scaled.

    Args:
        channels: c, of the features.

    Attributes:
        divisor: what the sides of the features must be divisible by.
    """

    divisor = 1

    def __init__(self, channels: int):
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Features (2b, c, h, w), first all of date 1, then all of date 2, to the same shape."""
        return features + attend(
            self.query(features), self.key(features), self.value(features), parts=1
        )


class PyramidAttention(nn.Module):
    """PAM: attention within parts of the image at four scales, of which a 1x1 convolution is made.

    There is no residual: what is not attended to is gone, as released.

    Args:
        channels: c, of the features.

    Attributes:
        divisor: what the sides of the features must be divisible by.
    """

    divisor = max(PARTITIONS)

    def __init__(self, channels: int):
        super().__init__()
        self.stages = nn.ModuleList(PartAttention(channels, parts) for parts in PARTITIONS)
        self.fuse = nn.Conv2d(len(PARTITIONS) * channels, channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Features (2b, c, h, w), first all of date 1, then all of date 2, to the same shape."""
        attended: Tensor = self.fuse(torch.cat([stage(features) for stage in self.stages], dim=1))
        return attended


class PartAttention(nn.Module):
    """One scale of PAM: pixels of both dates attend to those in the same part of the image.

    Args:
        channels: c, of the features.
        parts: into how many parts each side is cut.
    """

    def __init__(self, channels: int, parts: int):
        super().__init__()
        self.parts = parts
        k = channels // 8
        self.query = nn.Sequential(nn.Conv2d(channels, k, 1), BatchNorm2d(k))
        self.key = nn.Sequential(nn.Conv2d(channels, k, 1), BatchNorm2d(k))
        self.value = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """What each pixel of (2b, c, h, w) finds in its part of both dates, in the same shape."""
        query, key, value = self.query(features), self.key(features), self.value(features)
        return attend(query, key, value, parts=self.parts)


def attend(query: Tensor, key: Tensor, value: Tensor, *, parts: int) -> Tensor:
    """softmax(q kᵀ / sqrt(k)) v over the pixels of both dates in each of `parts` x `parts` parts.

    Args:
        query: (2b, k, h, w), first all of date 1, then all of date 2; `parts` divides h and w.
        key: likewise.
        value: (2b, c, h, w).
        parts: into how many parts each side is cut.

    Returns:
        (2b, c, h, w).
    """
    shape, scale = value.shape, query.shape[1] ** -0.5
    query, key, value = (_tokens(x, parts) for x in (query, key, value))
    if value.device.type == "cpu":
        # torch's attention of linear memory takes, on CPUs, only queries as wide as values. Zeros
        # add nothing to the scores.
        missing = value.shape[-1] - query.shape[-1]
        query, key = F.pad(query, (0, missing)), F.pad(key, (0, missing))
    attended = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return _maps(attended, parts, shape)


def _tokens(x: Tensor, parts: int) -> Tensor:
    """(2b, c, h, w) to (b, parts², n, c), n = 2 h w / parts² tokens of both dates in a part."""
    c, h, w = x.shape[1:]
    x = x.reshape(2, -1, c, parts, h // parts, parts, w // parts)
    x = x.permute(1, 3, 5, 0, 4, 6, 2)  # b, part rows, part columns, 2, rows, columns, c
    return x.reshape(x.shape[0], parts * parts, -1, c)


def _maps(tokens: Tensor, parts: int, shape: torch.Size) -> Tensor:
    """Undo `_tokens`: back to (2b, c, h, w)."""
    c, h, w = shape[1:]
    x = tokens.reshape(-1, parts, parts, 2, h // parts, w // parts, c)
    return x.permute(3, 0, 6, 1, 4, 2, 5).reshape(shape)


def _initialise(module: nn.Module) -> None:
    """Initialise the attention as released; the biases of convolutions keep torch's values."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, BatchNorm2d):
        nn.init.normal_(module.weight, mean=1, std=0.02)
