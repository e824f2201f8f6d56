"""FC-EF-Res: a residual U-Net on both dates stacked as one image of six bands.

Daudt, Le Saux, Boulch, Gousseau: "Multitask learning for large-scale semantic change detection",
CVIU 2019, where it is called FresUNet. Shapes: b batch, h w image sides, c channels of a level;
level i (1 shallow ... 4 deep) lies at 1/2^(i-1) of the image.
"""

import torch
from torch import Tensor, nn

from dsfer.models.batch_norm import BatchNorm2d
from dsfer.models.output import ChangeOutput
from dsfer.models.shapes import check_divisible, scaled

CHANNELS = (8, 16, 32, 64, 128)
"""Of the four levels, and of the bottleneck."""


class FCEFRes(nn.Module):
    """Early fusion, residual blocks on the way down and up (1,103,874 parameters).

    It returns logits. The released network ends with their log-softmax, whose negative
    log-likelihood is the cross entropy of the logits. Sides that do not divide by 16 are refused;
    the released code repeats edge pixels in the decoder.

    Args:
        width: factor on every channel count; 1 is the published network, of base width 8.
    """

    def __init__(self, *, width: float = 1.0):
        super().__init__()
        channels = [scaled(c, width) for c in CHANNELS]
        self.encoder, self.down = nn.ModuleDict(), nn.ModuleDict()
        self.decoder, self.up = nn.ModuleDict(), nn.ModuleDict()
        for level in (1, 2, 3, 4):
            c, deeper = channels[level - 1], channels[level]
            self.encoder[str(level)] = ResidualBlock(6 if level == 1 else c, c)
            self.down[str(level)] = ResidualBlock(c, deeper, pool=True)
        for level in (4, 3, 2, 1):
            c, deeper = channels[level - 1], channels[level]
            # Below the deepest level there is no skip to join.
            self.decoder[str(level)] = ResidualBlock(deeper if level == 4 else 2 * deeper, deeper)
            self.up[str(level)] = UpBlock(deeper, c)
        self.classifier = nn.Conv2d(2 * channels[0], 2, kernel_size=1)

    def forward(self, t1: Tensor, t2: Tensor) -> ChangeOutput:
        """Detect changes between two dates.

        Args:
            t1: (b, 3, h, w) float, RGB of the first date, normalised.
            t2: the same of the second date.

        Returns:
            logits (b, 2, h, w).

        Raises:
            TileSizeError: h or w is not divisible by 16.
        """
        check_divisible("fc-ef-res", *t1.shape[-2:], divisor=16)
        x = torch.cat((t1, t2), dim=1)  # b 6 h w
        skips = {}
        for level, block in self.encoder.items():
            skips[level] = block(x)  # b c h_i w_i
            x = self.down[level](skips[level])
        for level, block in self.decoder.items():
            x = self.up[level](block(x))  # b c h_i w_i
            x = torch.cat((x, skips[level]), dim=1)  # b 2c h_i w_i
        return ChangeOutput(self.classifier(x))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which a 1x1 convolution projects to more channels.

    Args:
        inputs: channels that come in.
        outputs: channels that go out; where they are the inputs, the shortcut is the identity.
        pool: halve the sides, after the first convolution and after the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, *, pool: bool = False):
        super().__init__()
        halve = [nn.MaxPool2d(2)] if pool else []
        self.main = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            *halve,
            nn.Conv2d(outputs, outputs, 3, padding=1),
            BatchNorm2d(outputs),
        )
        project = [nn.Conv2d(inputs, outputs, 1), BatchNorm2d(outputs)]
        self.shortcut = nn.Sequential(*(project if inputs != outputs else []), *halve)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, outputs, h, w), or to half the sides."""
        return torch.relu(self.main(x) + self.shortcut(x))


class UpBlock(nn.Module):
    """A residual block that doubles the sides: main path and shortcut start transposed, stride 2.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1),
            BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(
            nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1),
            BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, outputs, 2h, 2w)."""
        return torch.relu(self.main(x) + self.shortcut(x))
