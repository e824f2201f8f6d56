"""ResNet-18 as an encoder, with the strides and dilations that change detection gives it.

Modules are named as torchvision's, whose ImageNet weights they take. Shapes: b batch, h w image
sides, c_i channels of map i.
"""

import logging
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dsfer.errors import CheckpointError
from dsfer.models.batch_norm import BatchNorm2d
from dsfer.models.imagenet import imagenet_states, source_name
from dsfer.models.shapes import scaled

log = logging.getLogger(__name__)

WEIGHTS = "ResNet18_Weights.IMAGENET1K_V1"
STEM_CHANNELS = 64


class Layer(NamedTuple):
    """One layer of a ResNet: a row of basic blocks.

    Attributes:
        channels: of every block.
        stride: of the first block.
        dilations: of the first 3x3 convolution of each block, one per block.
    """

    channels: int
    stride: int
    dilations: tuple[int, ...] = (1, 1)


RESNET_18 = (Layer(64, 1), Layer(128, 2), Layer(256, 2), Layer(512, 2))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is projected where its shape changes.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the first convolution and of the shortcut.
        dilation: of the first convolution; the second is never dilated.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(
            inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn1 = BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), BatchNorm2d(outputs))
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, outputs, h / stride, w / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + shortcut)


class ResNet18Encoder(nn.Module):
    """ResNet-18 without its classifier: the map of its stem and that of each of its layers.

    Args:
        layers: the layers after the stem, shallow to deep; fewer than four cut the network short.
        stem_stride: stride of the 7x7 convolution; a max-pool of stride 2 follows it.
        width: factor on every channel count; 1 is ResNet-18 itself. Channels stay multiples of 8.

    Attributes:
        channels: channels of the maps, shallow to deep.
        strides: how much smaller than the input each of them is; 2, 4, 8, 16, 32 in ResNet-18.
    """

    def __init__(
        self, layers: tuple[Layer, ...] = RESNET_18, *, stem_stride: int = 2, width: float = 1.0
    ):
        super().__init__()
        stem = scaled(STEM_CHANNELS, width)
        self.conv1 = nn.Conv2d(3, stem, 7, stem_stride, padding=3, bias=False)
        self.bn1 = BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels, strides = [stem], [stem_stride]
        self._layers = tuple(f"layer{number}" for number in range(1, len(layers) + 1))
        for name, layer in zip(self._layers, layers, strict=True):
            outputs = scaled(layer.channels, width)
            self.add_module(
                name, _row_of_blocks(channels[-1], outputs, layer.stride, layer.dilations)
            )
            pool = 2 if name == "layer1" else 1
            channels.append(outputs)
            strides.append(strides[-1] * pool * layer.stride)
        self.channels, self.strides = tuple(channels), tuple(strides)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of (b, 3, h, w) images: (b, c_i, h / stride_i, w / stride_i), rounded up."""
        x = torch.relu(self.bn1(self.conv1(image)))
        maps = [x]
        x = self.maxpool(x)
        for name in self._layers:
            x = self.get_submodule(name)(x)
            maps.append(x)
        return tuple(maps)

    def load_imagenet(self, path: Path | None = None) -> None:
        """Load ImageNet weights of the stem and of the two blocks that ResNet-18 has in each layer.

        A third block stays as it was initialised, as in the released code of the methods that have
        one; strides and dilations change no shape.

        Args:
            path: a local state dict with torchvision's keys, in any float precision; None asks
                torchvision, which downloads once and keeps the file.

        Raises:
            CheckpointError: the download failed, or the file does not fit ResNet-18.
        """
        states, source = imagenet_states(WEIGHTS, path), source_name(WEIGHTS, path)
        own = self.state_dict()
        published = [key for key in own if _is_published(key)]
        wrong = [
            key for key in published if key not in states or states[key].shape != own[key].shape
        ]
        if wrong:
            raise CheckpointError(
                f"does not fit ResNet-18: {', '.join(wrong[:3])} missing or of another shape "
                f"({len(wrong)} in all)",
                where=source,
                mend="give torchvision's weights of ResNet-18, which exist for width 1 only, or "
                "pretrained: none",
            )
        self.load_state_dict(own | {key: states[key].float() for key in published})
        log.info("encoder: ImageNet weights from %s", source)


def _row_of_blocks(
    inputs: int, outputs: int, stride: int, dilations: tuple[int, ...]
) -> nn.Sequential:
    blocks = [BasicBlock(inputs, outputs, stride=stride, dilation=dilations[0])]
    blocks += [BasicBlock(outputs, outputs, dilation=dilation) for dilation in dilations[1:]]
    return nn.Sequential(*blocks)


def _is_published(key: str) -> bool:
    """Whether torchvision's file has the entry: no third block, and no count of batches."""
    layer, _, rest = key.partition(".")
    third_block = layer.startswith("layer") and rest.partition(".")[0] not in ("0", "1")
    return not third_block and not key.endswith("num_batches_tracked")
