"""Predictions over a split, and their counts in both protocols: `tiles` and `stitched`."""

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dsfer.data.batches import BatchSource
from dsfer.data.shards import TileShards
from dsfer.data.transforms import normalise
from dsfer.metrics import confusion_counts, predicted_change
from dsfer.models.output import ChangeOutput
from dsfer.prediction import change_probability

log = logging.getLogger(__name__)

Precision = Literal["float32", "bf16"]

BF16_CPUS = ("avx512_bf16", "amx_bf16")
"""Capabilities of CPUs that multiply in bf16; others do so in software, slower than in float32."""


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16 by itself, so that `bf16` is faster than `float32`."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in BF16_CPUS)


@dataclass(frozen=True)
class Inference:
    """How a network is run: where, how precisely, and what its input is normalised with.

    Attributes:
        mean: (3,) float tensor on the device that the network lives on, mean of each RGB band,
            0 to 255.
        std: standard deviation likewise.
        precision: `bf16` runs the network under autocast.
        batch_size: pairs per forward pass.
        per_image: whether each image is then standardised by its own mean and deviation.
    """

    mean: Tensor
    std: Tensor
    precision: Precision = "float32"
    batch_size: int = 32
    per_image: bool = False

    def inputs(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised t1 and t2, (b, 3, h, w) float, of (b, 2, h, w, 3) uint8 on the device."""
        return normalise(pairs, self.mean, self.std, per_image=self.per_image)

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.mean.device

    def autocast(self) -> AbstractContextManager[object]:
        """The context that the forward pass runs in."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def predict_split(
    model: nn.Module, source: BatchSource, inference: Inference, tiles: np.ndarray
) -> Iterator[tuple[ChangeOutput, Tensor]]:
    """Run a network in evaluation mode over tiles of a split, given by their numbers.

    Yields:
        The output of a batch and its labels (b, h, w) uint8, both on the device.
    """
    model.eval()
    for pairs, labels in source.batches(tiles, inference.batch_size):
        with torch.inference_mode(), inference.autocast():
            output = model(*inference.inputs(pairs))
        yield output, labels


def count_tiles(
    model: nn.Module,
    source: BatchSource,
    inference: Inference,
    tiles: np.ndarray | None = None,
) -> tuple[Tensor, float]:
    """Confusion counts of every tile of a split (protocol `tiles`), and the rate.

    Args:
        model: the network.
        source: the split.
        inference: how the network is run.
        tiles: numbers of the tiles to count, in this order; None counts all.

    Returns:
        (n, 4) int64 on the device, tp fp fn tn, and pairs per second from batch to counts, which
        leaves out the decoding where the source holds its tiles in memory.
    """
    tiles = np.arange(len(source.tiles)) if tiles is None else tiles
    none = torch.empty((0, 4), dtype=torch.int64, device=inference.device)
    started = time.perf_counter()
    batches = (
        confusion_counts(predicted_change(output.logits), labels)
        for output, labels in predict_split(model, source, inference, tiles)
    )
    counts = torch.cat([none, *batches])
    if inference.device.type == "cuda":
        torch.cuda.synchronize(inference.device)
    return counts, len(counts) / (time.perf_counter() - started)


def whole_scenes(manifest: pd.DataFrame) -> list[str]:
    """Scenes of which this split holds every tile of the grid: those that can be stitched.

    Turned fragments (a manifest with the column `angle`) lie on no grid and never make a scene,
    however many there are.
    """
    size = manifest["size"]
    on_grid = (manifest["row"] % size == 0) & (manifest["col"] % size == 0)
    if "angle" in manifest:
        on_grid &= manifest["angle"].isna()
    tiles = manifest[on_grid].drop_duplicates(["scene", "row", "col"])
    grid = -(-tiles["scene_rows"] // tiles["size"]) * -(-tiles["scene_cols"] // tiles["size"])
    found = grid.groupby(tiles["scene"]).agg(["first", "size"])
    return found.index[found["first"] == found["size"]].tolist()


def assemble_scene(tiles: TileShards, scene: str) -> tuple[np.ndarray, np.ndarray]:
    """Put a scene together from its tiles.

    Returns:
        pair (2, rows, cols, 3) uint8 and label (rows, cols) uint8.
    """
    rows = tiles.manifest[tiles.manifest["scene"] == scene]
    height, width = int(rows["scene_rows"].iloc[0]), int(rows["scene_cols"].iloc[0])
    pair = np.zeros((2, height, width, 3), dtype=np.uint8)
    label = np.zeros((height, width), dtype=np.uint8)
    for index, row, col in zip(rows.index, rows["row"], rows["col"], strict=True):
        tile_pair, tile_label = tiles[int(index)]
        inside = label[row : row + tiles.tile_size, col : col + tiles.tile_size]
        h, w = inside.shape
        pair[:, row : row + h, col : col + w] = tile_pair[:, :h, :w]
        inside[:] = tile_label[:h, :w]
    return pair, label


class StitchedScene(NamedTuple):
    """A whole scene of a split and what the network says of it.

    Attributes:
        scene: its id.
        pair: (2, rows, cols, 3) uint8.
        label: (rows, cols) uint8.
        probability: (rows, cols) float32 of change.
    """

    scene: str
    pair: np.ndarray
    label: np.ndarray
    probability: np.ndarray


def stitched_scenes(
    model: nn.Module, tiles: TileShards, inference: Inference, *, overlap: int
) -> Iterator[StitchedScene]:
    """Predict every whole scene of a split with overlapping windows (protocol `stitched`).

    Args:
        model: the network.
        tiles: the split; its tiles are put together again.
        inference: how the network is run.
        overlap: pixels that neighbouring windows share at least.

    Yields:
        One scene after the other; none where the split holds no scene as a whole.
    """
    for scene in whole_scenes(tiles.manifest):
        pair, label = assemble_scene(tiles, scene)
        probability = stitch(model, pair, inference, tile_size=tiles.tile_size, overlap=overlap)
        yield StitchedScene(scene, pair, label, probability)


def stitch(
    model: nn.Module,
    pair: np.ndarray,
    inference: Inference,
    *,
    tile_size: int,
    overlap: int,
    valid: np.ndarray | None = None,
) -> np.ndarray:
    """Change probability (rows, cols) float32 of one (2, rows, cols, 3) uint8 scene in memory.

    NaN where it is not `valid`, (rows, cols) bool.
    """

    def read(top: int, left: int, size: int) -> np.ndarray | None:
        window = slice(top, top + size), slice(left, left + size)
        if valid is not None and not valid[window].any():
            return None
        return pair[:, *window]

    model.eval()
    strips = change_probability(
        pair.shape[1:3],
        read,
        lambda windows: change_batch(model, inference, windows),
        tile_size=tile_size,
        overlap=overlap,
        batch_size=inference.batch_size,
    )
    probability = np.concatenate([strip for _, strip in strips])
    if valid is not None:
        probability[~valid] = np.nan
    return probability


def change_batch(model: nn.Module, inference: Inference, windows: np.ndarray) -> np.ndarray:
    """Change probability (b, h, w) float32 of (b, 2, h, w, 3) uint8, by a network in eval mode."""
    batch = torch.from_numpy(windows).to(inference.device)
    with torch.inference_mode(), inference.autocast():
        output: ChangeOutput = model(*inference.inputs(batch))
    return output.logits.float().softmax(dim=1)[:, 1].cpu().numpy()
