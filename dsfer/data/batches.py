"""Batches of tiles on the device: in which order, and from memory or streamed from shards."""

import logging
from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader

log = logging.getLogger(__name__)

Sampling = Literal["epochs", "repeated"]
Batch = tuple[Tensor, Tensor]

MEMORY_SHARE = 0.5
"""Share of the free memory that decoded tiles may take before they are streamed instead."""


class Tiles(Protocol):
    """Random access to the tiles of a split; `dsfer.data.shards.TileShards` is one."""

    tile_size: int

    def __len__(self) -> int:
        """Number of tiles."""
        ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One pair (2, h, w, 3) uint8 and its label (h, w) uint8."""
        ...


def sample_order(count: int, samples: int, *, seed: int, sampling: Sampling) -> np.ndarray:
    """The tile of every sample of a whole run, fixed before it starts.

    A batch is a slice of this order, so that a run continues at any step, and splits over any
    number of processes, without a sampler's state.

    Args:
        count: number of tiles.
        samples: iterations times batch size.
        seed: of the shuffle.
        sampling: `epochs` shuffles each pass anew; `repeated` shuffles the list repeated to at
            least `samples` entries once, as the released code does.

    Returns:
        (samples,) int64 indices below `count`.
    """
    generator = np.random.default_rng(seed)
    passes = -(-samples // count)
    if sampling == "repeated":
        return generator.permutation(np.tile(np.arange(count), passes))[:samples]
    return np.concatenate([generator.permutation(count) for _ in range(passes)])[:samples]


class BatchSource:
    """Serves batches of a split, from memory if the split fits, else streamed by workers.

    Args:
        tiles: the split.
        device: where batches are wanted.
        in_memory: force one or the other; None decides by the free memory.
        workers: processes that read ahead when streaming.
    """

    def __init__(
        self, tiles: Tiles, device: torch.device, *, in_memory: bool | None = None, workers: int = 2
    ):
        self.tiles, self.device, self.workers = tiles, device, workers
        needed = len(tiles) * tiles.tile_size**2 * 7  # two RGB images and a label
        home = _home(needed, device)
        if in_memory is not None:
            home = (home or torch.device("cpu")) if in_memory else None
        self._memory = _decode(tiles, home) if home is not None else None
        log.info(
            "%d tiles (%.2f GB) %s",
            len(tiles),
            needed / 1e9,
            f"in memory on {home}" if home is not None else f"streamed by {workers} workers",
        )

    def batches(self, order: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """Yield batches of the tiles in `order`, the last one smaller where it does not divide.

        Yields:
            pairs (b, 2, h, w, 3) uint8 and labels (b, h, w) uint8 on the device.
        """
        if not len(order):  # a run that is continued at its end
            return
        if self._memory is None:
            yield from self._stream(order, batch_size)
            return
        pairs, labels = self._memory
        indices = torch.from_numpy(order).to(pairs.device)
        for chosen in torch.split(indices, batch_size):
            yield (
                pairs[chosen].to(self.device, non_blocking=True),
                labels[chosen].to(self.device, non_blocking=True),
            )

    def _stream(self, order: np.ndarray, batch_size: int) -> Iterator[Batch]:
        cuts = range(0, len(order), batch_size)
        loader: DataLoader[Batch] = DataLoader(
            self.tiles,  # type: ignore[arg-type]
            batch_sampler=[order[cut : cut + batch_size].tolist() for cut in cuts],
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the one that dropout continues with
        )
        for pairs, labels in loader:
            yield (
                pairs.to(self.device, non_blocking=True),
                labels.to(self.device, non_blocking=True),
            )


def _home(needed: int, device: torch.device) -> torch.device | None:
    """The device if the tiles fit there, else main memory if they fit there, else None."""
    if device.type == "cuda" and needed < MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]:
        return device
    return (
        torch.device("cpu") if needed < MEMORY_SHARE * psutil.virtual_memory().available else None
    )


def _decode(tiles: Tiles, device: torch.device) -> Batch:
    size = tiles.tile_size
    pairs = torch.empty((len(tiles), 2, size, size, 3), dtype=torch.uint8)
    labels = torch.empty((len(tiles), size, size), dtype=torch.uint8)
    for i in range(len(tiles)):
        pair, label = tiles[i]
        pairs[i], labels[i] = torch.from_numpy(pair), torch.from_numpy(label)
    return pairs.to(device), labels.to(device)
