"""DSAMNet: a deeply supervised attention metric network.

Shi, Liu, Li, Liu, Wang, Zhang: "A deeply supervised attention metric-based network and an open
aerial image dataset for remote sensing change detection", TGRS 2022. Shapes: b batch, h w image
sides, c channels of the features, which lie at 1/2 of the image.
"""

import torch
from torch import Tensor, nn

from dsfer.models.batch_norm import BatchNorm2d
from dsfer.models.metric import FeatureHead, channel_distance, distance_output
from dsfer.models.output import ChangeOutput
from dsfer.models.resnet import RESNET_18, Layer, ResNet18Encoder
from dsfer.models.shapes import check_divisible, scaled
from dsfer.models.siamese import encode_pair

LAYERS = (*RESNET_18[:3], Layer(512, 1, (2, 4, 8)))
"""ResNet-18 with a third block, dilations and no stride in its last layer."""

DEEP_CHANNELS = 32


class DSAMNet(nn.Module):
    """Siamese features, an attention gate per date, their distance (16,950,728 parameters).

    As released, each date has a gate with weights of its own, so that the dates are not
    exchangeable.

    As released, each date goes through encoder and head by itself in training, where batch
    normalisation takes its statistics.

    Args:
        width: factor on every channel count; 1 is the published network.
    """

    def __init__(self, *, width: float = 1.0):
        super().__init__()
        self.encoder = ResNet18Encoder(LAYERS, stem_stride=1, width=width)
        channels = self.encoder.channels
        self.head = FeatureHead(channels[1:], width=width)
        self.gate1 = AttentionGate(self.head.channels)
        self.gate2 = AttentionGate(self.head.channels)
        hidden = scaled(DEEP_CHANNELS, width)
        self.deep = nn.ModuleList(_deep_head(channels[i], hidden, stride=2**i) for i in (1, 2))

    def forward(self, t1: Tensor, t2: Tensor) -> ChangeOutput:
        """Detect changes between two dates.

        Args:
            t1: (b, 3, h, w) float, RGB of the first date in [-1, 1].
            t2: the same of the second date.

        Returns:
            logits (b, 2, h, w), 1 and the distance, see `distance_output`; and two deep maps
            (b, 2, h, w), of which the loss takes the sigmoid of each channel.

        Raises:
            TileSizeError: h or w is not divisible by 4.
        """
        check_divisible("dsamnet", *t1.shape[-2:], divisor=4)
        *maps, features = encode_pair(self.maps_of, t1, t2, apart=self.training)
        first, second = features.chunk(2)  # b c h/2 w/2
        distance = channel_distance(self.gate1(first), self.gate2(second))
        deep = (head(torch.sub(*x.chunk(2)).abs()) for head, x in zip(self.deep, maps, strict=True))
        return distance_output(distance, t1.shape[-2:], tuple(deep))

    def maps_of(self, images: Tensor) -> tuple[Tensor, ...]:
        """Of (b, 3, h, w) images the maps of the first two layers at 1/2 and 1/4, and features."""
        maps = self.encoder(images)
        return (*maps[1:3], self.head(maps[1:]))


class AttentionGate(nn.Module):
    """CBAM: features are weighed by channel, then by position.

    Woo, Park, Lee, Kweon: "CBAM: convolutional block attention module", ECCV 2018.

    Args:
        channels: c, of the features.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channel = nn.Sequential(
            nn.Conv2d(channels, channels // 8, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels // 8, channels, 1, bias=False),
        )
        self.position = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh (b, c, h, w)."""
        mean, largest = x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
        x = x * torch.sigmoid(self.channel(mean) + self.channel(largest))  # by channel
        over_channels = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), dim=1)
        return x * torch.sigmoid(self.position(over_channels))  # by position


def _deep_head(inputs: int, hidden: int, *, stride: int) -> nn.Sequential:
    """From a difference of features at 1/stride of the image to a change map at full size."""
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, hidden, 3, stride=stride, padding=1, output_padding=stride - 1),
        BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.2),
        nn.ConvTranspose2d(hidden, 2, 3, padding=1),
    )
