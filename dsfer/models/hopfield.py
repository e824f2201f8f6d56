"""Deeply supervised feature retrieval by a dual modern-Hopfield layer (paper, section III-B).

Shapes: b batch, c channels of the level, h w its sides, n = h*w tokens, d Hopfield dimension.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from dsfer.errors import TileSizeError

Norm = Literal["volume", "channel"]


def retrieve(state: Tensor, stored: Tensor, values: Tensor, beta: float) -> Tensor:
    """Sum over both dates j of softmax(beta S K_jᵀ) V_j: Eq. 1, of one state with either date.

    As matrix products: patterns are wider than what fused attention is made for, whose gradient
    took a sixth of a training step on a GPU (docs/performance.md). For that the n² scores of either
    date are in memory, twice: 4.3 GB a pair in float32 for tiles of 1,024 px at 1/8.

    Args:
        state: S, (b, n, d) float.
        stored: K, (b, 2, n, d).
        values: V, (b, 2, n, c).
        beta: inverse temperature.

    Returns:
        (b, n, c).
    """
    scores = (beta * state).unsqueeze(1) @ stored.transpose(2, 3)  # b 2 n n
    return (scores.softmax(dim=-1) @ values).sum(dim=1)


class FeatureRetrieval(nn.Module):
    """The DSFR module of one level: what of the difference is found again in either date.

    The difference |N1 - N2| of the normalised features is the state pattern, the features of each
    date are the stored patterns (Eq. 1, with a value projection of its own as in the released
    code); the two retrieved maps are added and squashed into a mask (Eq. 2), of which a 1x1
    convolution makes the intermediate change map.

    Args:
        channels: c, channels of the level.
        side: h = w of the level, which the `volume` norm is tied to.
        hopfield_dim: d, width of the space in which state and stored patterns are compared.
        beta: inverse temperature, the factor on the scores; None takes d ** -0.5.
        norm: `volume` is a LayerNorm over (c, h, w) with one gain and shift per element, as
            released, and fixes the image size; `channel` has the same statistics with one gain
            and shift per channel, and takes any size.
    """

    def __init__(
        self,
        channels: int,
        side: int,
        *,
        hopfield_dim: int = 512,
        beta: float | None = None,
        norm: Norm = "volume",
    ):
        super().__init__()
        self.beta = hopfield_dim**-0.5 if beta is None else beta
        self.norm: nn.LayerNorm | nn.GroupNorm = (
            nn.LayerNorm((channels, side, side)) if norm == "volume" else nn.GroupNorm(1, channels)
        )
        self.query = nn.Linear(channels, hopfield_dim, bias=False)
        self.key = nn.Linear(channels, hopfield_dim, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.head = nn.Conv2d(channels, 2, kernel_size=1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Retrieve the difference from both dates.

        Args:
            features: (2b, c, h, w) float, first all of date 1, then all of date 2.

        Returns:
            The mask (b, c, h, w) in (0, 1) and the intermediate logits (b, 2, h, w).

        Raises:
            TileSizeError: the `volume` norm was built for another size.
        """
        self._check_size(features)
        b, (h, w) = features.shape[0] // 2, features.shape[2:]
        patterns = self.norm(features.contiguous()).flatten(2).transpose(1, 2)  # 2b n c
        first, second = patterns[:b], patterns[b:]  # b n c
        stored = torch.stack((first, second), dim=1)  # b 2 n c
        state = self.query((first - second).abs())  # b n d
        retrieved = retrieve(state, self.key(stored), self.value(stored), self.beta)  # b n c
        mask = retrieved.sigmoid()
        mask = mask.transpose(1, 2).reshape(b, -1, h, w)  # b c h w
        return mask, self.head(mask)

    def _check_size(self, features: Tensor) -> None:
        if not isinstance(self.norm, nn.LayerNorm):
            return
        expected, found = tuple(self.norm.normalized_shape), tuple(features.shape[1:])
        if expected != found:
            raise TileSizeError(
                f"the layer norm was built for features {expected} and got {found}",
                where="dsfer-net",
                mend="use the image_size it was built for, or build it with norm='channel', which "
                "takes any size divisible by 16",
            )
