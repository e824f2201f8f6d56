"""Features inside Dsfer-Net: how the dates differ, what is retrieved of it, and from where.

The network keeps nothing of its attention; this module computes it again in float32 for the few
tiles that are drawn. Retrieval of a state pattern ξ from stored patterns X = (x_1, ..., x_n) is one
step ξ' = X softmax(β Xᵀξ) (Ramsauer et al., "Hopfield Networks
is All You Need", 2021, Eqs. 2 and 3), which lowers the energy

    E(ξ) = -lse(β, Xᵀξ) + ½ ξᵀξ + (1/β) log n + ½ M²,    M = max_i ‖x_i‖,
    lse(β, z) = (1/β) log Σ_i exp(β z_i).

Here ξ is a projected difference feature and x_i are the projected features of one date: the queries
and keys of `FeatureRetrieval`. The energy is low where a state resembles what is stored.

Shapes: c_i channels of level i, h w its sides, s_i its stride, n = h*w positions, d Hopfield
dimension. A first axis of length 2 is the date.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dsfer.errors import ConfigError, DataError
from dsfer.models.dsfer_net import DsferNet
from dsfer.models.frnet import FrNet
from dsfer.models.hopfield import FeatureRetrieval

Map = np.ndarray

AT_ONCE = 1024
"""State patterns whose attention is in memory at a time: n of them would be n² numbers."""


@dataclass(frozen=True)
class Patterns:
    """State and stored patterns of one pair at one level, as one `FeatureRetrieval` projects them.

    Attributes:
        state: (n, d) float32, projected difference features, the queries ξ.
        stored: (2, n, d), projected features of each date, the keys x_i.
        values: (2, n, c), what is retrieved in their place.
        beta: inverse temperature.
    """

    state: Tensor
    stored: Tensor
    values: Tensor
    beta: float

    def scores(self, states: slice) -> Tensor:
        """β Xᵀξ of some states with every stored pattern of each date, (2, k, n)."""
        return self.beta * self.state[states] @ self.stored.transpose(1, 2)

    def attention(self, states: slice) -> Tensor:
        """Weights with which some states retrieve each stored position, (2, k, n).

        They sum to one over the positions of each date.
        """
        return self.scores(states).softmax(dim=-1)

    def energy(self, states: slice) -> Tensor:
        """Energy E(ξ) of some states in the memory of each date, (2, k); see the module."""
        lse = self.scores(states).logsumexp(dim=-1) / self.beta  # 2 k
        longest = self.stored.square().sum(dim=-1).amax(dim=1, keepdim=True)  # 2 1
        constant = math.log(len(self.state)) / self.beta + longest / 2
        return self.state[states].square().sum(dim=-1) / 2 - lse + constant


@dataclass(frozen=True)
class RetrievedLevel:
    """What one level retrieved of the difference of one pair, everywhere.

    Attributes:
        level: 4 or 5.
        stride: pixels of the image along one side of a position.
        features: (h, w) float32 in (0, 1), the mask F_R of Eq. 2, mean over its channels.
        change: (h, w) float32, change probability of the intermediate map made of the mask.
        energy: (2, h, w) float32, of each state pattern in the memory of each date.
        entropy: (2, h, w) float32 in nats, of the weights over the positions of each date: 0 where
            one position was retrieved, log n where all were alike.
    """

    level: int
    stride: int
    features: Map
    change: Map
    energy: Map
    entropy: Map


def encode(network: nn.Module, t1: Tensor, t2: Tensor) -> tuple[Tensor, ...]:
    """Feature maps of one pair, shallow to deep, (2, c_i, h/s_i, w/s_i) float32, date 1 first.

    Args:
        network: Dsfer-Net or FrNet in evaluation mode.
        t1: (1, 3, h, w) float32, date 1, normalised as the network was trained.
        t2: the same of date 2.

    Raises:
        ConfigError: a network without one encoder of five scales for both dates.
    """
    if not isinstance(network, DsferNet | FrNet):
        raise ConfigError(
            f"{type(network).__name__} has no encoder of five scales that both dates share",
            where="model",
            mend="draw difference features of dsfer-net or frnet",
        )
    with torch.inference_mode():
        maps: tuple[Tensor, ...] = network.encoder(torch.cat((t1, t2)))
    return maps


def difference_features(maps: tuple[Tensor, ...]) -> list[Map]:
    """Mean over channels of |F1 - F2| at every level, (h/s_i, w/s_i) float32, as in Fig. 2."""
    return [_array((first - second).abs().mean(dim=0)) for first, second in maps]


def retrieval_patterns(layer: FeatureRetrieval, features: Tensor) -> Patterns:
    """State and stored patterns that a layer makes of the features (2, c, h, w) of one pair."""
    with torch.inference_mode():
        normed = layer.norm(features.float().contiguous()).flatten(2).transpose(1, 2)  # 2 n c
        state = layer.query((normed[0] - normed[1]).abs())  # n d
        return Patterns(state, layer.key(normed), layer.value(normed), layer.beta)


def has_encoder(network: nn.Module) -> bool:
    """Whether `encode` takes a network."""
    return isinstance(network, DsferNet | FrNet)


def has_retrieval(network: nn.Module) -> bool:
    """Whether a network has the retrieval layers that this module looks into."""
    return isinstance(network, DsferNet) and bool(network.retrieval)


def retrieved_levels(network: nn.Module, maps: tuple[Tensor, ...]) -> list[RetrievedLevel]:
    """What every retrieval layer says of one pair, shallow to deep.

    Args:
        network: Dsfer-Net with retrieval, in evaluation mode.
        maps: of `encode`.

    Raises:
        ConfigError: a network without retrieval layers.
    """
    return [
        _retrieved(layer, maps[level - 1], level, stride)
        for level, stride, layer in _layers(network)
    ]


def attention_maps(
    network: nn.Module, maps: tuple[Tensor, ...], pixel: tuple[int, int]
) -> list[Map]:
    """Which positions of each date the state pattern at one pixel retrieved, at every level.

    Args:
        network: Dsfer-Net with retrieval, in evaluation mode.
        maps: of `encode`.
        pixel: row and column in the image, from 0.

    Returns:
        (2, h, w) float32 a level, shallow to deep; each date's map sums to one.

    Raises:
        ConfigError: a network without retrieval layers.
        DataError: the pixel is not in the image.
    """
    found = []
    for level, stride, layer in _layers(network):
        features = maps[level - 1]
        h, w = features.shape[2:]
        row, col = pixel
        if not (0 <= row < h * stride and 0 <= col < w * stride):
            raise DataError(
                f"pixel ({row}, {col}) is not in an image of {h * stride} x {w * stride}",
                mend="give row and column from 0",
            )
        position = row // stride * w + col // stride
        with torch.inference_mode():
            patterns = retrieval_patterns(layer, features)
            weights = patterns.attention(slice(position, position + 1))  # 2 1 n
        found.append(_array(weights.reshape(2, h, w)))
    return found


def _layers(network: nn.Module) -> list[tuple[int, int, FeatureRetrieval]]:
    """Level, stride and layer of each retrieval, shallow to deep."""
    if not isinstance(network, DsferNet) or not network.retrieval:
        raise ConfigError(
            f"this {type(network).__name__} has no retrieval layers",
            where="model",
            mend="take dsfer-net in a variant that ends in dsfr",
        )
    layers = []
    for name, layer in sorted(network.retrieval.items()):
        if isinstance(layer, FeatureRetrieval):
            layers.append((int(name), network.encoder.strides[int(name) - 1], layer))
    return layers


def _retrieved(
    layer: FeatureRetrieval, features: Tensor, level: int, stride: int
) -> RetrievedLevel:
    h, w = features.shape[2:]
    patterns = retrieval_patterns(layer, features)
    retrieved, energy, entropy = [], [], []
    with torch.inference_mode():
        for start in range(0, h * w, AT_ONCE):
            states = slice(start, start + AT_ONCE)
            weights = patterns.attention(states)  # 2 k n
            retrieved.append((weights @ patterns.values).sum(dim=0))  # k c
            energy.append(patterns.energy(states))
            entropy.append(torch.special.entr(weights).sum(dim=-1))
        mask = torch.cat(retrieved).sigmoid().T.reshape(1, -1, h, w)  # 1 c h w
        change = layer.head(mask).softmax(dim=1)[0, 1]
        return RetrievedLevel(
            level,
            stride,
            _array(mask[0].mean(dim=0)),
            _array(change),
            _array(torch.cat(energy, dim=1).reshape(2, h, w)),
            _array(torch.cat(entropy, dim=1).reshape(2, h, w)),
        )


def _array(values: Tensor) -> Map:
    array: Map = values.float().cpu().numpy()
    return array
