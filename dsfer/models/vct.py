"""VcT, the visual change transformer: tokens from the pixels that look unchanged.

B. Jiang et al., "VcT: Visual change Transformer for Remote Sensing Image Change Detection", TGRS
2023. Backbone, decoder and head are BiT's. Shapes: b batch, h w sides of the map at 1/4 of the
image, c = 32 the model width, s selected pixels, k tokens per date.

Traps of the released code, and what is done about them here:

* The scores that select pixels go through a top-k, so that their weight w gets no gradient and
  keeps its random start: as released, w is a fixed parameter (`requires_grad` is off). Its bias is
  never used and not built, like layer 4 and classifier of ResNet-18; Table II counts them, see
  `VcT.unused_parameters`.
* It fills and multiplies dense (h w)^2 matrices, 137.4 of its 148.7 GMACs, for a graph that joins
  a pixel to nine at most. Here the graph is nine shifted products (`graph_scores`), which is equal.
* It works for batches of exactly eight. Here any batch does.
* K-means stops when the whole batch has converged, asking the device each time. Here each image
  stops by itself, within a fixed number of iterations (`dsfer.models.kmeans`): 50, where the
  features of 24 real LEVIR-CD tiles needed 20 in the median and 47 at most, with random weights.
* A pixel whose difference is zero, as its neighbours', has degree 0, and its score is infinite
  times zero. Here it is 0: nothing is less changed.
* Weights are redrawn after ImageNet's were loaded: see `dsfer.models.bit`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsfer.errors import ConfigError, TileSizeError
from dsfer.models.bit import BACKBONE, DECODER_DEPTH, HEAD_WIDTH, WIDTH, change_head
from dsfer.models.initialisation import redraw
from dsfer.models.kmeans import kmeans_members, means
from dsfer.models.output import ChangeOutput
from dsfer.models.resnet import ResNet18Encoder
from dsfer.models.shapes import check_divisible
from dsfer.models.siamese import encode_pair
from dsfer.models.token_transformer import (
    EncoderLayer,
    Mlp,
    PixelDecoder,
    attend,
    dates_apart,
    dates_side_by_side,
)

TOLERANCE = 1e-4


class VcT(nn.Module):
    """BiT with tokens that are the cluster means of the pixels least changed.

    Args:
        selected: s, number of pixels with the lowest scores, the same of both dates.
        clusters: k, tokens per date.
        iterations: of k-means, at most.
        width: factor on the channels of the encoder.
        released_init: draw all weights as the released training code does, see
            `dsfer.models.initialisation`.

    Raises:
        ConfigError: no cluster, or more of them than selected pixels.
    """

    unused_parameters = 8_906_729
    """Layer 4 (8,393,728) and classifier (513,000) of ResNet-18 and the bias of the graph
    convolution, which the released network holds and never uses: Table II counts them."""

    def __init__(
        self,
        *,
        selected: int = 1000,
        clusters: int = 10,
        iterations: int = 50,
        width: float = 1.0,
        released_init: bool = False,
    ):
        super().__init__()
        if not 1 <= clusters <= selected:
            raise ConfigError(
                f"{selected} pixels do not make {clusters} clusters",
                where="vct",
                mend="set clusters to 1 or more, and selected to no less than clusters",
            )
        self.selected, self.clusters, self.iterations = selected, clusters, iterations
        self.encoder = ResNet18Encoder(BACKBONE, width=width)
        self.reduce = nn.Conv2d(self.encoder.channels[-1], WIDTH, kernel_size=3, padding=1)
        # Its direction is all that counts: scores are compared with one another only.
        self.graph_weight = nn.Parameter(0.02 * torch.randn(WIDTH, 1), requires_grad=False)
        self.positions = nn.Parameter(torch.randn(1, 2 * clusters, WIDTH))
        self.token_encoder = EncoderLayer(WIDTH, HEAD_WIDTH)
        self.token_exchange = TokenExchange(WIDTH)
        self.pixel_decoder = PixelDecoder(WIDTH, HEAD_WIDTH, DECODER_DEPTH)
        self.head = change_head()
        if released_init:
            redraw(self)

    def forward(self, t1: Tensor, t2: Tensor) -> ChangeOutput:
        """Detect changes between two dates.

        Args:
            t1: (b, 3, 4h, 4w) float, RGB of the first date, normalised per band.
            t2: the same of the second date.

        Returns:
            logits (b, 2, 4h, 4w); no deep maps.

        Raises:
            TileSizeError: a side is not divisible by 8, or h w is less than `selected`.
        """
        self._check_size(*t1.shape[-2:])
        deepest = encode_pair(self.encoder, t1, t2, apart=self.training)[-1]  # 2b 256 h/2 w/2
        features = self.reduce(F.interpolate(deepest, scale_factor=2.0))  # 2b c h w
        tokens = dates_side_by_side(self.tokens_of(features)) + self.positions  # b 2k c
        tokens = self.token_exchange(dates_apart(self.token_encoder(tokens)))  # 2b k c
        first, second = self.pixel_decoder(features, tokens).chunk(2)
        difference = F.interpolate((first - second).abs(), scale_factor=4.0, mode="bilinear")
        return ChangeOutput(self.head(difference))

    def tokens_of(self, features: Tensor) -> Tensor:
        """Tokens (2b, k, c) of (2b, c, h, w) features; gradients pass through their means only."""
        # In full precision: ranks and clusters are decisions, which rounding would change.
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        first, second = features.chunk(2)
        scores = graph_scores((first - second).abs(), self.graph_weight)  # b h w
        lowest = scores.flatten(1).topk(self.selected, largest=False).indices  # b s, in order
        index = lowest.repeat(2, 1).unsqueeze(-1).expand(-1, -1, features.shape[1])
        pixels = features.flatten(2).transpose(1, 2).gather(1, index)  # 2b s c
        members = kmeans_members(
            pixels, self.clusters, tolerance=TOLERANCE, iterations=self.iterations
        )
        return means(members, pixels)

    def _check_size(self, h: int, w: int) -> None:
        check_divisible("vct", h, w, divisor=self.encoder.strides[-1])
        if h * w // 16 < self.selected:
            raise TileSizeError(
                f"images of {h}x{w} pixels have {h * w // 16} features, of which {self.selected} "
                "are to be selected",
                where="vct",
                mend=f"use larger tiles or selected={h * w // 64}",
            )


class TokenExchange(nn.Module):
    """Each date's tokens attend to the other's, without any projection; then an MLP.

    t_1 + attention(norm t_1, norm t_2, norm t_2) and the same the other way round, with one norm
    and the same weights.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform (2b, k, c) tokens, date 1 first."""
        own = self.norm1(tokens)
        other = torch.cat(own.chunk(2)[::-1])
        tokens = tokens + attend(own, other, other, scale=tokens.shape[-1] ** -0.5)
        exchanged: Tensor = tokens + self.mlp(self.norm2(tokens))
        return exchanged


@torch.no_grad()
def graph_scores(difference: Tensor, weight: Tensor) -> Tensor:
    """One graph convolution over the 3x3 neighbourhood, S^(-1/2) A S^(-1/2) D w.

    A_st = <D_s, D_t> for t in the neighbourhood of s, itself included, else 0; S holds the row
    sums of A.

    Args:
        difference: D, (b, c, h, w) float, not negative.
        weight: w, (c, 1).

    Returns:
        Scores (b, h, w): low where nothing changed, if w's direction says so.
    """
    affinities = [(difference * near).sum(dim=1) for near in neighbours(difference)]  # 9 of b h w
    degree = torch.stack(affinities).sum(dim=0)
    scale = torch.where(degree > 0, degree.rsqrt(), 0.0)
    projected = scale * (difference * weight[:, :, None]).sum(dim=1)
    gathered = [a * near for a, near in zip(affinities, neighbours(projected), strict=True)]
    return scale * torch.stack(gathered).sum(dim=0)


def neighbours(x: Tensor) -> list[Tensor]:
    """The map (..., h, w) shifted to each of its nine neighbours in turn, zero past the border."""
    h, w = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1))
    return [padded[..., dy : dy + h, dx : dx + w] for dy in range(3) for dx in range(3)]
