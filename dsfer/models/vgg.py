"""VGG-16 as a five-scale encoder, and its ImageNet weights."""

import logging
from pathlib import Path

from torch import Tensor, nn

from dsfer.errors import CheckpointError
from dsfer.models.imagenet import imagenet_states, source_name
from dsfer.models.shapes import scaled

log = logging.getLogger(__name__)

GROUPS: tuple[tuple[int, int], ...] = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and number of 3x3 convolutions of each VGG-16 group (configuration D)."""

WEIGHTS = "VGG16_Weights.IMAGENET1K_V1"


class VGG16Encoder(nn.Module):
    """VGG-16 without its last pool and classifier (paper, section III-A).

    Args:
        width: factor on every channel count; 1 is VGG-16 itself. Channels stay multiples of 8.

    Attributes:
        channels: channels of the five feature maps, shallow to deep.
        strides: how much smaller than the input each of them is: 1, 2, 4, 8, 16.
    """

    strides: tuple[int, ...] = (1, 2, 4, 8, 16)

    def __init__(self, width: float = 1.0):
        super().__init__()
        self.channels = tuple(scaled(c, width) for c, _ in GROUPS)
        layers: list[nn.Module] = []
        inputs = 3
        for channels, (_, convolutions) in zip(self.channels, GROUPS, strict=True):
            for _ in range(convolutions):
                layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = channels
            layers.append(nn.MaxPool2d(2))
        # Layers are numbered as torchvision's, whose weights they take.
        self.features = nn.Sequential(*layers[:-1])
        # A map is taken right before each pool, the deepest at the end.
        pools = [i for i, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d)]
        self._ends = (*pools, len(self.features))
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Five feature maps of (b, 3, h, w) images: (b, c_i, h / stride_i, w / stride_i)."""
        maps, start = [], 0
        for end in self._ends:
            for layer in self.features[start:end]:
                image = layer(image)
            maps.append(image)
            start = end
        return tuple(maps)

    def load_imagenet(self, path: Path | None = None) -> None:
        """Load ImageNet weights of the thirteen convolutions.

        Args:
            path: a local state dict with keys `features.N.weight|bias` in any float precision;
                None asks torchvision, which downloads once and keeps the file.

        Raises:
            CheckpointError: the download failed, or the file does not fit VGG-16 at this width.
        """
        source = source_name(WEIGHTS, path)
        states = imagenet_states(WEIGHTS, path)
        own = self.state_dict()
        mine = {key: states[key].float() for key in own if key in states}
        wrong = [key for key in own if key not in mine or mine[key].shape != own[key].shape]
        if wrong:
            raise CheckpointError(
                f"does not fit VGG-16 with channels {self.channels}: {', '.join(wrong[:3])} "
                f"missing or of another shape ({len(wrong)} in all)",
                where=source,
                mend="ImageNet weights exist for width 1 only; use width: 1 or pretrained: none",
            )
        self.load_state_dict(mine)
        log.info("encoder: ImageNet weights from %s", source)
