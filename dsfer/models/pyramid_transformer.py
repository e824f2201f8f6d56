"""A pyramid of transformer stages as an encoder: ChangeFormer's, and the Transformer of Table IV.

Shapes: b batch, h w sides of a stage's map, n = h*w tokens, c channels of the stage, r its spatial
reduction, m = n / r^2 reduced tokens.
"""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

Sides = tuple[int, ...]
"""Height and width of a map."""


class Stage(NamedTuple):
    """One stage of the pyramid.

    Attributes:
        channels: of its map.
        depth: number of blocks.
        heads: attention heads of every block.
        reduction: keys and values come from a map that is this many times smaller.
        patch: side of the convolution that makes the tokens.
        stride: of that convolution.
        padding: of that convolution.
    """

    channels: int
    depth: int
    heads: int
    reduction: int
    patch: int
    stride: int
    padding: int

    def scaled(self, width: float) -> "Stage":
        """The same stage with `width` times the channels, which stay a multiple of the heads."""
        channels = max(1, round(self.channels * width / self.heads)) * self.heads
        return self._replace(channels=channels)


class PyramidTransformer(nn.Module):
    """Stages of overlapping patches and attention with spatially reduced keys and values.

    Args:
        stages: shallow to deep.
        mlp_ratio: hidden width of each block's MLP, as a multiple of its channels.
        qkv_bias: whether query, key and value projections have biases.
        norm_eps: of the layer norms before attention, before the MLP and after each stage.
        dropout: rate on attention weights, on the output of attention and inside the MLP.
        drop_path: rate at which the last block is skipped per sample; it grows linearly from 0.

    Attributes:
        channels: channels of the maps, shallow to deep.
        strides: how much smaller than the input each of them is.
    """

    def __init__(
        self,
        stages: tuple[Stage, ...],
        *,
        mlp_ratio: int,
        qkv_bias: bool = True,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.channels = tuple(stage.channels for stage in stages)
        strides = [1]
        for stage in stages:
            strides.append(strides[-1] * stage.stride)
        self.strides = tuple(strides[1:])
        blocks = sum(stage.depth for stage in stages)
        rates = iter([drop_path * block / max(blocks - 1, 1) for block in range(blocks)])
        self.stages = nn.ModuleList()
        for inputs, stage in zip((3, *self.channels), stages, strict=False):
            row = [
                Block(
                    stage,
                    hidden=mlp_ratio * stage.channels,
                    qkv_bias=qkv_bias,
                    norm_eps=norm_eps,
                    dropout=dropout,
                    drop_path=next(rates),
                )
                for _ in range(stage.depth)
            ]
            self.stages.append(PyramidStage(inputs, stage, row, norm_eps))
        self.apply(_initialise)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of (b, 3, h, w) images: (b, c_i, h / stride_i, w / stride_i)."""
        maps, features = [], image
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return tuple(maps)


class PyramidStage(nn.Module):
    """Overlapping patches to tokens, by a strided convolution and a layer norm; then blocks."""

    def __init__(self, inputs: int, stage: Stage, blocks: list["Block"], norm_eps: float):
        super().__init__()
        self.patches = nn.Conv2d(
            inputs, stage.channels, stage.patch, stride=stage.stride, padding=stage.padding
        )
        self.patch_norm = nn.LayerNorm(stage.channels)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(stage.channels, eps=norm_eps)

    def forward(self, features: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, c, h / stride, w / stride)."""
        patches = self.patches(features)
        sides = patches.shape[2:]
        tokens = self.patch_norm(to_tokens(patches))  # b n c
        for block in self.blocks:
            tokens = block(tokens, sides)
        return to_map(self.norm(tokens), sides)


class Block(nn.Module):
    """x + attention(norm x), then x + MLP(norm x); either branch is dropped by sample."""

    def __init__(
        self,
        stage: Stage,
        *,
        hidden: int,
        qkv_bias: bool,
        norm_eps: float,
        dropout: float,
        drop_path: float,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(stage.channels, eps=norm_eps)
        self.attention = ReducedAttention(
            stage.channels, stage.heads, stage.reduction, bias=qkv_bias, dropout=dropout
        )
        self.norm2 = nn.LayerNorm(stage.channels, eps=norm_eps)
        self.mlp = ConvolutionalMlp(stage.channels, hidden, dropout)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, tokens: Tensor, sides: Sides) -> Tensor:
        """Transform (b, n, c) tokens of a map with the given sides."""
        tokens = tokens + self.drop_path(self.attention(self.norm1(tokens), sides))
        moved: Tensor = tokens + self.drop_path(self.mlp(self.norm2(tokens), sides))
        return moved


class ReducedAttention(nn.Module):
    """Multi-head attention of all tokens to a spatially reduced map of themselves.

    softmax(Q Kᵀ / sqrt(c / heads)) V, where keys and values come from norm(convolution(x)) with
    kernel and stride r.

    Args:
        channels: c.
        heads: number of heads; divides c.
        reduction: r; 1 leaves keys and values at full size.
        bias: whether query, key and value projections have biases.
        dropout: rate on the attention weights and on the output.
    """

    def __init__(self, channels: int, heads: int, reduction: int, *, bias: bool, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(channels, channels, bias=bias)
        self.key_value = nn.Linear(channels, 2 * channels, bias=bias)  # keys first
        self.out = nn.Linear(channels, channels)
        self.out_dropout = nn.Dropout(dropout)
        self.reduce: nn.Conv2d | None = None
        self.norm: nn.LayerNorm | None = None
        if reduction > 1:
            self.reduce = nn.Conv2d(channels, channels, reduction, stride=reduction)
            self.norm = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, sides: Sides) -> Tensor:
        """Attend from (b, n, c) tokens of a map with the given sides."""
        stored = tokens
        if self.reduce is not None and self.norm is not None:
            stored = self.norm(to_tokens(self.reduce(to_map(tokens, sides))))  # b m c
        key, value = self.key_value(stored).chunk(2, dim=-1)
        attended = F.scaled_dot_product_attention(
            self._split(self.query(tokens)),
            self._split(key),
            self._split(value),
            dropout_p=self.dropout if self.training else 0.0,
        )
        attended = attended.transpose(1, 2).flatten(2)  # b n c
        out: Tensor = self.out_dropout(self.out(attended))
        return out

    def _split(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        return x.reshape(b, n, self.heads, -1).transpose(1, 2)  # b heads n c/heads


class ConvolutionalMlp(nn.Module):
    """Linear, depth-wise 3x3 convolution, GELU, linear."""

    def __init__(self, channels: int, hidden: int, dropout: float):
        super().__init__()
        self.expand = nn.Linear(channels, hidden)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.shrink = nn.Linear(hidden, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, sides: Sides) -> Tensor:
        """Transform (b, n, c) tokens of a map with the given sides."""
        hidden = to_tokens(self.mix(to_map(self.expand(tokens), sides)))
        out: Tensor = self.dropout(self.shrink(self.dropout(F.gelu(hidden))))
        return out


def to_tokens(x: Tensor) -> Tensor:
    """(b, c, h, w) as (b, n, c), row by row."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, sides: Sides) -> Tensor:
    """(b, n, c) as (b, c, h, w)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *sides)


def _initialise(module: nn.Module) -> None:
    """Linear layers from a normal of sd 0.02, convolutions by what goes out of each group."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
