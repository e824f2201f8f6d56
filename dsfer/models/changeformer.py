"""ChangeFormer: a Siamese pyramid transformer with a convolutional difference decoder.

W. G. C. Bandara, V. M. Patel, "A Transformer-Based Siamese Network for Change Detection", IGARSS
2022. Shapes: b batch, h w image sides, e embedding width; maps of level i (1 shallow ... 4 deep)
are at 1/2^(i+1) of the image.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsfer.errors import ConfigError
from dsfer.models.batch_norm import BatchNorm2d
from dsfer.models.initialisation import redraw
from dsfer.models.output import ChangeOutput
from dsfer.models.pyramid_transformer import PyramidTransformer, Stage
from dsfer.models.shapes import check_divisible

Version = Literal["v6", "v5"]


class Layout(NamedTuple):
    """What tells one version from another.

    Attributes:
        stages: of the encoder.
        embedding: e, width of the decoder.
        dropout: rate in the encoder.
    """

    stages: tuple[Stage, ...]
    embedding: int
    dropout: float


LAYOUTS: dict[Version, Layout] = {
    "v6": Layout(
        (
            Stage(64, 3, heads=1, reduction=8, patch=7, stride=4, padding=3),
            Stage(128, 3, heads=2, reduction=4, patch=7, stride=2, padding=3),
            Stage(320, 4, heads=4, reduction=2, patch=7, stride=2, padding=3),
            Stage(512, 3, heads=8, reduction=1, patch=7, stride=2, padding=3),
        ),
        embedding=256,
        dropout=0.1,
    ),
    # The released V5 pads its 4x4 patches by 2, which makes maps of 33, 17 and 9 pixels that its
    # decoder cannot add: it does not run. Padded by 1, with the same 43,992,882 parameters that
    # Table II counts, it does.
    "v5": Layout(
        (
            Stage(64, 3, heads=1, reduction=8, patch=7, stride=4, padding=3),
            Stage(128, 6, heads=2, reduction=4, patch=4, stride=2, padding=1),
            Stage(320, 16, heads=5, reduction=2, patch=4, stride=2, padding=1),
            Stage(512, 3, heads=8, reduction=1, patch=4, stride=2, padding=1),
        ),
        embedding=64,
        dropout=0.0,
    ),
}
MLP_RATIO = 4
DROP_PATH = 0.1
RESIDUAL_SCALE = 0.1


class ChangeFormer(nn.Module):
    """Four stages of attention per date, differences learned by convolution at four scales.

    Its four auxiliary predictions are the deep maps of the output, at 1/4, 1/8, 1/16 and 1/32.

    Args:
        version: `v6` is its authors' final network (41,026,674 parameters); `v5` the one that
            Table II counts (43,992,882), made runnable.
        width: factor on every channel count.
        released_init: draw all weights as the released training code does, see
            `dsfer.models.initialisation`.

    Raises:
        ConfigError: an unknown version.
    """

    def __init__(self, *, version: Version = "v6", width: float = 1.0, released_init: bool = False):
        super().__init__()
        if version not in LAYOUTS:
            raise ConfigError(
                f"unknown version {version!r}",
                where="changeformer",
                mend=f"use one of {', '.join(LAYOUTS)}",
            )
        layout = LAYOUTS[version]
        embedding = max(1, round(layout.embedding * width))
        self.encoder = PyramidTransformer(
            tuple(stage.scaled(width) for stage in layout.stages),
            mlp_ratio=MLP_RATIO,
            norm_eps=1e-6,
            dropout=layout.dropout,
            drop_path=DROP_PATH,
        )
        channels = self.encoder.channels
        # Lists go from shallow to deep.
        self.embed = nn.ModuleList(nn.Linear(c, embedding) for c in channels)
        self.difference = nn.ModuleList(difference_module(embedding) for _ in channels)
        self.auxiliary = nn.ModuleList(auxiliary_head(embedding) for _ in channels)
        self.fuse = nn.Sequential(
            nn.Conv2d(len(channels) * embedding, embedding, kernel_size=1), BatchNorm2d(embedding)
        )
        self.upsample = nn.Sequential(UpsampleBlock(embedding), UpsampleBlock(embedding))
        self.classifier = nn.Conv2d(embedding, 2, kernel_size=3, padding=1)
        if released_init:
            redraw(self)

    def forward(self, t1: Tensor, t2: Tensor) -> ChangeOutput:
        """Detect changes between two dates.

        Args:
            t1: (b, 3, h, w) float, RGB of the first date, normalised per band.
            t2: the same of the second date.

        Returns:
            logits (b, 2, h, w) and four deep maps (b, 2, h/4, w/4) to (b, 2, h/32, w/32).

        Raises:
            TileSizeError: h or w is not divisible by 32.
        """
        sides = t1.shape[-2:]
        check_divisible("changeformer", *sides, divisor=self.encoder.strides[-1])
        maps = self.encoder(torch.cat((t1, t2)))  # both dates in one pass: 2b c_i h_i w_i
        differences: list[Tensor] = []  # deep to shallow
        for level in reversed(range(len(maps))):
            embedded = self.embed[level](maps[level].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            difference = self.difference[level](torch.cat(embedded.chunk(2), dim=1))  # b e h_i w_i
            if differences:
                difference = difference + F.interpolate(
                    differences[-1], scale_factor=2, mode="bilinear", align_corners=False
                )
            differences.append(difference)
        deep = [head(d) for head, d in zip(self.auxiliary, reversed(differences), strict=True)]
        finest = differences[-1].shape[-2:]
        resized = [
            F.interpolate(difference, size=finest, mode="bilinear", align_corners=False)
            for difference in differences[:-1]
        ]
        fused = self.fuse(torch.cat((*resized, differences[-1]), dim=1))  # b e h/4 w/4
        return ChangeOutput(self.classifier(self.upsample(fused)), tuple(deep))


class UpsampleBlock(nn.Module):
    """Transposed 4x4 convolution of stride 2, then x + 0.1 conv(relu(conv(x)))."""

    def __init__(self, channels: int):
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(channels, channels, kernel_size=4, stride=2, padding=1)
        self.refine = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, e, h, w) to (b, e, 2h, 2w)."""
        x = self.enlarge(x)
        refined: Tensor = x + RESIDUAL_SCALE * self.refine(x)
        return refined


def difference_module(channels: int) -> nn.Sequential:
    """Both dates' maps to their difference; the norm follows the ReLU, as released."""
    return nn.Sequential(
        nn.Conv2d(2 * channels, channels, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        BatchNorm2d(channels),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
    )


def auxiliary_head(channels: int) -> nn.Sequential:
    """A difference map to the logits of its scale."""
    return nn.Sequential(
        nn.Conv2d(channels, 2, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        BatchNorm2d(2),
        nn.Conv2d(2, 2, kernel_size=3, padding=1),
    )
