"""BiT, the bitemporal image transformer: a few tokens per date carry what each pixel is told.

H. Chen, Z. Qi, Z. Shi, "Remote Sensing Image Change Detection With Transformers", TGRS 2022, in its
released configuration base_transformer_pos_s4_dd8_dedim8. Shapes: b batch, h w image sides, c = 32
the model width.

Three traps of the released code, and what is done about them here:

* It redraws every weight after loading those of ImageNet, and so trains from scratch. Here
  pretrained weights stay; `released_init` draws as released (`dsfer.models.initialisation`).
* Its scores are divided by the square root of the model width, not of a head's: as released
  (`dsfer.models.token_transformer`).
* It builds ResNet-18 whole and uses three of its four layers. Here the rest is not built; Table II
  counts it, see `BiT.unused_parameters`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsfer.models.batch_norm import BatchNorm2d
from dsfer.models.initialisation import redraw
from dsfer.models.output import ChangeOutput
from dsfer.models.resnet import Layer, ResNet18Encoder
from dsfer.models.shapes import check_divisible
from dsfer.models.siamese import encode_pair
from dsfer.models.token_transformer import (
    EncoderLayer,
    PixelDecoder,
    dates_apart,
    dates_side_by_side,
)

BACKBONE = (Layer(64, 1), Layer(128, 2), Layer(256, 1))
"""ResNet-18 to its third layer, whose stride is removed: 256 channels at 1/8 of the image."""

WIDTH = 32
HEAD_WIDTH = 64  # of the layer between tokens
TOKENS = 4  # per date
DECODER_DEPTH = 8


class BiT(nn.Module):
    """ResNet-18 per date, four semantic tokens per date, a transformer between and back to pixels.

    Args:
        decoder_head_width: width of each of the decoder's eight heads: 8 (the released
            `dd8_dedim8`, which Table II counts) or 64 (the released `dd8`).
        width: factor on the channels of the encoder.
        released_init: draw all weights as the released training code does, see
            `dsfer.models.initialisation`.
    """

    unused_parameters = 8_906_728
    """Layer 4 (8,393,728) and classifier (513,000) of ResNet-18, which the released network holds
    and never uses: Table II counts them."""

    def __init__(
        self, *, decoder_head_width: int = 8, width: float = 1.0, released_init: bool = False
    ):
        super().__init__()
        self.encoder = ResNet18Encoder(BACKBONE, width=width)
        self.reduce = nn.Conv2d(self.encoder.channels[-1], WIDTH, kernel_size=3, padding=1)
        self.tokenizer = nn.Conv2d(WIDTH, TOKENS, kernel_size=1, bias=False)
        self.positions = nn.Parameter(torch.randn(1, 2 * TOKENS, WIDTH))
        self.token_encoder = EncoderLayer(WIDTH, HEAD_WIDTH)
        self.pixel_decoder = PixelDecoder(WIDTH, decoder_head_width, DECODER_DEPTH)
        self.head = change_head()
        if released_init:
            redraw(self)

    def forward(self, t1: Tensor, t2: Tensor) -> ChangeOutput:
        """Detect changes between two dates.

        Args:
            t1: (b, 3, h, w) float, RGB of the first date, normalised per band.
            t2: the same of the second date.

        Returns:
            logits (b, 2, h, w); no deep maps.

        Raises:
            TileSizeError: h or w is not divisible by 8.
        """
        check_divisible("bit", *t1.shape[-2:], divisor=self.encoder.strides[-1])
        deepest = encode_pair(self.encoder, t1, t2, apart=self.training)[-1]  # 2b 256 h/8 w/8
        features = self.reduce(F.interpolate(deepest, scale_factor=2.0))  # 2b c h/4 w/4
        tokens = dates_side_by_side(self.tokens_of(features)) + self.positions  # b 8 c
        tokens = dates_apart(self.token_encoder(tokens))  # 2b 4 c
        first, second = self.pixel_decoder(features, tokens).chunk(2)
        difference = F.interpolate((first - second).abs(), scale_factor=4.0, mode="bilinear")
        return ChangeOutput(self.head(difference))

    def tokens_of(self, features: Tensor) -> Tensor:
        """Semantic tokens (b, 4, c) of (b, c, h, w) features.

        Each is the sum of all pixels, weighted by a softmax over all positions.
        """
        weights = self.tokenizer(features).flatten(2).softmax(dim=-1)  # b 4 hw
        tokens: Tensor = weights @ features.flatten(2).transpose(1, 2)
        return tokens


def change_head() -> nn.Sequential:
    """The difference of both dates at full size to logits."""
    return nn.Sequential(
        nn.Conv2d(WIDTH, WIDTH, kernel_size=3, padding=1, bias=False),
        BatchNorm2d(WIDTH),
        nn.ReLU(inplace=True),
        nn.Conv2d(WIDTH, 2, kernel_size=3, padding=1),
    )
