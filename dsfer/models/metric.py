"""What the two metric methods share, STANet and DSAMNet: the feature head, and the distance.

Both compare the features of the two dates pixel by pixel, and call changed what is farther apart
than 1. Shapes: b batch, h w sides, c channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsfer.models.batch_norm import BatchNorm2d
from dsfer.models.output import ChangeOutput
from dsfer.models.shapes import scaled

REDUCED, MIDDLE, FEATURES = 96, 256, 64
"""Channels of each map before the maps are joined, of the head's hidden map, of its features."""

THRESHOLD = 1.0
"""Distance above which a pixel is changed."""

EPSILON = 1e-6
"""Added to each difference of two features, as in torch's pairwise distance."""


class FeatureHead(nn.Module):
    """Join the maps of a ResNet's four layers into one feature map at the size of the first.

    Args:
        channels: channels of the four maps, shallow to deep.
        width: factor on the channels of the head.

    Attributes:
        channels: channels of the features.
    """

    def __init__(self, channels: tuple[int, ...], *, width: float = 1.0):
        super().__init__()
        reduced, middle = scaled(REDUCED, width), scaled(MIDDLE, width)
        self.channels = scaled(FEATURES, width)
        self.reduce = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, reduced, 1, bias=False), BatchNorm2d(reduced), nn.ReLU())
            for c in channels
        )
        self.fuse = nn.Sequential(
            nn.Conv2d(len(channels) * reduced, middle, 3, padding=1, bias=False),
            BatchNorm2d(middle),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(middle, self.channels, 1, bias=False),
            BatchNorm2d(self.channels),
            nn.ReLU(),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Features (b, c, h, w), h and w those of the first of the maps."""
        size = maps[0].shape[-2:]
        first, *deeper = (reduce(x) for reduce, x in zip(self.reduce, maps, strict=True))
        deeper = [F.interpolate(x, size, mode="bilinear", align_corners=True) for x in deeper]
        # The deepest map comes first: the order that the weights of the 3x3 convolution expect.
        joined = torch.cat((deeper[-1], first, *deeper[:-1]), dim=1)
        features: Tensor = self.fuse(joined)
        return features


def channel_distance(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distance of two (b, c, h, w) maps over their channels, (b, 1, h, w) float32.

    The released code calls torch's pairwise distance, which nowadays reduces the last axis: the
    columns of the image. It is the channels that are meant. In half precision the distances of
    near features would all be alike.
    """
    difference = first.float() - second.float() + EPSILON
    distance: Tensor = torch.linalg.vector_norm(difference, dim=1, keepdim=True)
    return distance


def distance_output(
    distance: Tensor, size: torch.Size, deep: tuple[Tensor, ...] = ()
) -> ChangeOutput:
    """What a metric method returns: its distance map at full size, as logits.

    Args:
        distance: (b, 1, h', w') float32.
        size: h and w of the images.
        deep: maps for deep supervision.

    Returns:
        logits (b, 2, h, w): the constant 1, which is the threshold, and the distance itself. So
        their argmax is changed where the distance exceeds 1, the loss finds the distance in
        channel 1 to the last bit, and the probability of change is sigmoid(distance - 1).
    """
    distance = F.interpolate(distance, size, mode="bilinear", align_corners=True)
    threshold = torch.full_like(distance, THRESHOLD)
    return ChangeOutput(torch.cat((threshold, distance), dim=1), deep)
