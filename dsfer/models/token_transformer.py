"""Transformer layers between a few tokens and many pixels, as BiT has them and VcT took them over.

All are pre-norm: x + attention(norm x), then x + MLP(norm x). Their score scale is 1/sqrt(c) with c
the model width, *not* the usual width of one head; released weights were trained with it. Shapes:
b batch, n queries, m stored vectors, c model width, d width of one head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 8


def attend(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    """Attention of 8 heads, softmax(scale Q Kᵀ) V in each.

    Args:
        query: (b, n, 8 d).
        key: (b, m, 8 d).
        value: (b, m, 8 d).
        scale: factor on the scores.

    Returns:
        (b, n, 8 d), the heads side by side.
    """
    q, k, v = (x.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


class Mlp(nn.Sequential):
    """Linear to twice the width, GELU, linear."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class EncoderLayer(nn.Module):
    """Tokens attend to one another.

    Args:
        width: c.
        head_width: d.
    """

    def __init__(self, width: int, head_width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * HEADS * head_width, bias=False)
        self.out = nn.Linear(HEADS * head_width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform (b, n, c) tokens."""
        query, key, value = self.query_key_value(self.norm1(tokens)).chunk(3, dim=-1)
        scale = tokens.shape[-1] ** -0.5
        tokens = tokens + self.out(attend(query, key, value, scale=scale))
        transformed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return transformed


class DecoderLayer(nn.Module):
    """Pixels attend to tokens, which stay as they are; one norm serves both.

    Args:
        width: c.
        head_width: d.
    """

    def __init__(self, width: int, head_width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.query, self.key, self.value = (
            nn.Linear(width, HEADS * head_width, bias=False) for _ in range(3)
        )
        self.out = nn.Linear(HEADS * head_width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Transform (b, n, c) pixels by (b, m, c) tokens."""
        query, stored = self.query(self.norm1(pixels)), self.norm1(tokens)
        scale = pixels.shape[-1] ** -0.5
        attended = attend(query, self.key(stored), self.value(stored), scale=scale)
        pixels = pixels + self.out(attended)
        transformed: Tensor = pixels + self.mlp(self.norm2(pixels))
        return transformed


class PixelDecoder(nn.Module):
    """Every pixel of a map asks the tokens of its date, several layers long.

    Args:
        width: c.
        head_width: d.
        depth: number of layers.
    """

    def __init__(self, width: int, head_width: int, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, head_width) for _ in range(depth))

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Transform (b, c, h, w) features by (b, m, c) tokens."""
        pixels = features.flatten(2).transpose(1, 2)  # b hw c
        for layer in self.layers:
            pixels = layer(pixels, tokens)
        return pixels.transpose(1, 2).reshape(features.shape)


def dates_side_by_side(tokens: Tensor) -> Tensor:
    """(2b, m, c) tokens of both dates as (b, 2m, c), those of date 1 first."""
    return torch.cat(tokens.chunk(2), dim=1)


def dates_apart(tokens: Tensor) -> Tensor:
    """Undo `dates_side_by_side`: (b, 2m, c) as (2b, m, c)."""
    return torch.cat(tokens.chunk(2, dim=1))
