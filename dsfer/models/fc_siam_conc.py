"""FC-Siam-conc: a Siamese U-Net whose decoder joins the skips of both dates.

Daudt, Le Saux, Boulch: "Fully convolutional Siamese networks for change detection", ICIP 2018.
Shapes: b batch, h w image sides, c channels of a level; level i (1 shallow ... 4 deep) lies at
1/2^(i-1) of the image.
"""

import torch
from torch import Tensor, nn

from dsfer.models.batch_norm import BatchNorm2d
from dsfer.models.output import ChangeOutput
from dsfer.models.shapes import check_divisible, scaled
from dsfer.models.siamese import encode_pair

CHANNELS = (16, 32, 64, 128)
UNITS = (2, 2, 3, 3)
"""Convolutions of each level, in the encoder and in the decoder."""

DROPOUT = 0.2


class FCSiamConc(nn.Module):
    """Siamese encoder, decoder on the deepest map of the second date (1,545,986 parameters).

    As released:

    * The deepest map is that of the **second date only**; of the first there are the skips. So
      the dates are not exchangeable.
    * The decoder's stride-1 convolutions are transposed ones, which are convolutions with a
      flipped kernel and exchanged axes. They stay transposed here: their initialisation and the
      released weights are made for that.
    * Each date goes through the encoder by itself in training, where batch normalisation takes its
      statistics.

    Otherwise than released:

    * Sides that do not divide by 16 are refused; the released code repeats edge pixels in the
      decoder.
    * It returns logits. The released network ends with their log-softmax, whose negative
      log-likelihood is the cross entropy of the logits.

    Args:
        width: factor on every channel count; 1 is the published network.
    """

    def __init__(self, *, width: float = 1.0):
        super().__init__()
        channels = [scaled(c, width) for c in CHANNELS]
        self.encoder, self.up, self.decoder = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for level in (1, 2, 3, 4):
            c = channels[level - 1]
            before = channels[level - 2] if level > 1 else 3
            self.encoder[str(level)] = _units(nn.Conv2d, before, [c] * UNITS[level - 1])
        for level in (4, 3, 2, 1):
            c = channels[level - 1]
            self.up[str(level)] = nn.ConvTranspose2d(c, c, 3, stride=2, padding=1, output_padding=1)
            # The last unit narrows to the level above; the last of all is the classifier.
            above = [channels[level - 2]] if level > 1 else []
            outputs = [c] * (UNITS[level - 1] - 1) + above
            self.decoder[str(level)] = _units(nn.ConvTranspose2d, 3 * c, outputs)
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.ConvTranspose2d(channels[0], 2, 3, padding=1)

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
        check_divisible("fc-siam-conc", *t1.shape[-2:], divisor=16)
        *skips, deepest = encode_pair(self.maps_of, t1, t2, apart=self.training)
        x = deepest.chunk(2)[1]  # b c h/16 w/16, of the second date
        for skip, (level, units) in zip(reversed(skips), self.decoder.items(), strict=True):
            joined = (self.up[level](x), *skip.chunk(2))
            x = units(torch.cat(joined, dim=1))  # b 3c h_i w_i, then the channels above
        return ChangeOutput(self.classifier(x))

    def maps_of(self, images: Tensor) -> tuple[Tensor, ...]:
        """Skips (b, c, h_i, w_i) of (b, 3, h, w) images, and the pooled deepest at 1/16."""
        maps, x = [], images
        for units in self.encoder.values():
            maps.append(units(x))
            x = self.pool(maps[-1])
        return (*maps, x)


def _units(
    convolution: type[nn.Conv2d | nn.ConvTranspose2d], inputs: int, outputs: list[int]
) -> nn.Sequential:
    """Units of a 3x3 convolution, batch normalisation, ReLU and dropout of whole channels."""
    units = nn.Sequential()
    for before, after in zip([inputs, *outputs], outputs, strict=False):
        units.append(
            nn.Sequential(
                convolution(before, after, 3, padding=1),
                BatchNorm2d(after),
                nn.ReLU(inplace=True),
                nn.Dropout2d(DROPOUT),
            )
        )
    return units
