"""Any of torchvision's classification networks as a five-scale encoder, cut open by name."""

import difflib
import logging
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from dsfer.errors import CheckpointError, ConfigError, first_line
from dsfer.models.batch_norm import BatchNorm2d
from dsfer.models.imagenet import imagenet_states, source_name

log = logging.getLogger(__name__)

SCALES = 5
PROBE = 64  # pixels; 2 are left at 1/32, so that what is pooled to a single one is told apart


class TorchvisionEncoder(nn.Module):
    """A network of torchvision up to its last feature map, of which five scales come out.

    At every scale the map is the last one that all later layers depend on, such as the output of
    a whole ResNet layer, before the network halves its size.

    Args:
        name: torchvision's, one of `torchvision.models.list_models(torchvision.models)`.

    Attributes:
        channels: channels of the five maps, shallow to deep.
        strides: how much smaller than the input each of them is: 2, 4, 8, 16, 32, or 1 to 16.

    Raises:
        ConfigError: an unknown name, or a network that does not give five scales, each half as
            large as the one before, from 1/1 or 1/2 on; the message says which it gives.
    """

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        network = _build(name)
        maps = _maps_by_stride(network, name)
        first = 1 if 1 in maps else 2
        wanted = [first * 2**level for level in range(SCALES)]
        if not set(wanted) <= set(maps):
            scales = ", ".join(f"1/{stride}" for stride in sorted(maps)) or "no even fraction"
            raise ConfigError(
                f"torchvision's {name} gives maps at {scales} of the image; five are needed, each "
                "half the one before, from 1/1 or 1/2 on",
                where="encoder",
                mend="use an encoder that has them, such as resnet50, densenet121 or vgg19",
            )
        self.strides = tuple(wanted)
        self.channels = tuple(maps[stride][1] for stride in wanted)
        self.network = create_feature_extractor(
            network, {maps[stride][0]: str(stride) for stride in wanted}
        )
        self.network.train()
        _over_ranks(self.network)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Five feature maps of (b, 3, h, w) images: (b, c_i, h / stride_i, w / stride_i)."""
        maps = self.network(image)
        return tuple(maps[str(stride)] for stride in self.strides)

    def load_imagenet(self, path: Path | None = None) -> None:
        """Load ImageNet weights of every layer that is left of the network.

        Args:
            path: a local state dict with torchvision's keys, in any float precision; None asks
                torchvision for the weights it recommends, downloads them once and keeps the file.

        Raises:
            CheckpointError: the download failed, or the file does not fit the network.
        """
        weights = str(models.get_model_weights(self.name).DEFAULT)
        states, source = imagenet_states(weights, path), source_name(weights, path)
        own = self.network.state_dict()
        # Files from before torch 0.4.1 have no counts of batches, of which nothing depends.
        needed = [key for key in own if not key.endswith("num_batches_tracked")]
        wrong = [key for key in needed if key not in states or states[key].shape != own[key].shape]
        if wrong:
            raise CheckpointError(
                f"does not fit {self.name}: {', '.join(wrong[:3])} missing or of another shape "
                f"({len(wrong)} in all)",
                where=source,
                mend=f"give torchvision's weights of {self.name}, or pretrained: none",
            )
        self.network.load_state_dict(own | {key: states[key].float() for key in needed})
        log.info("encoder: ImageNet weights from %s", source)


def _build(name: str) -> nn.Module:
    known: list[str] = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        raise ConfigError(
            f"unknown encoder {name!r}",
            where="encoder",
            mend=f"use {', '.join(close)}, if you meant one of them"
            if close
            else "use vgg16, resnet18, transformer or the name of a torchvision network",
        )
    network: nn.Module = models.get_model(name, weights=None)
    return network


def _maps_by_stride(network: nn.Module, name: str) -> dict[int, tuple[str, int]]:
    """Node and channels of the last map at every stride that all later layers depend on."""
    try:
        in_training, names = get_graph_node_names(network)
        names = [node for node in names[1:] if node in in_training]  # the first is the input
        everything: fx.GraphModule = create_feature_extractor(network, names).eval()
        with torch.no_grad():
            found = fx.Interpreter(everything).run(torch.zeros(1, 3, PROBE, PROBE))
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(
            f"torchvision's {name} does not take images of any size ({first_line(error)})",
            where="encoder",
            mend="use an encoder without a fixed input size, such as resnet50",
        ) from error
    output = next(node for node in everything.graph.nodes if node.op == "output")
    maps: dict[int, tuple[str, int]] = {}
    bottlenecks = _bottlenecks(everything.graph)
    for node, value in found.items():
        if output.args[0][node] in bottlenecks and isinstance(value, Tensor) and value.ndim == 4:
            _, channels, h, w = value.shape
            if 1 < h == w and PROBE % h == 0:
                maps[PROBE // h] = (node, channels)
    return maps


def _bottlenecks(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that no path from the input to the last layers goes round."""
    place = {node: number for number, node in enumerate(graph.nodes)}
    found, reach = set(), 0
    for node, number in place.items():
        if reach <= number:
            found.add(node)
        reach = max([reach, *(place[user] for user in node.users if user.op != "output")])
    return found


def _over_ranks(network: nn.Module) -> None:
    """Replace torch's batch norms by ours, which see the batch of all processes."""
    for path, module in list(network.named_modules()):
        if type(module) is nn.BatchNorm2d:
            ours = BatchNorm2d(module.num_features, module.eps, module.momentum, module.affine)
            ours.load_state_dict(module.state_dict())
            network.set_submodule(path, ours)
