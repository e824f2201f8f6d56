"""Batches of tiles on the device: in which order, and from memory or streamed from shards."""

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from dsfer.memory import memory_for

log = logging.getLogger(__name__)

Sampling = Literal["epochs", "repeated"]
Batch = tuple[Tensor, Tensor]

MEMORY_SHARE = 0.5
"""Share of a GPU's free memory that tiles may take before they are streamed instead."""

DECODED_AT_ONCE = 64
"""Tiles that a thread reads at a time when all of a split go into memory."""


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
    """Serves batches of a split, from the device's memory if the split fits there, else streamed.

    Args:
        tiles: the split.
        device: where batches are wanted.
        in_memory: force one or the other; None decides by the free memory of a GPU. For a CPU it
            streams: shards are mapped into memory, and another copy of them gains nothing.
        workers: threads that read ahead, at least 1.

    Raises:
        DeviceMemoryError: the GPU has too little memory for the split.
    """

    def __init__(
        self, tiles: Tiles, device: torch.device, *, in_memory: bool | None = None, workers: int = 2
    ):
        self.tiles, self.device, self.workers = tiles, device, workers
        needed = len(tiles) * tiles.tile_size**2 * 7  # two RGB images and a label
        if in_memory is None:
            in_memory = (
                device.type == "cuda" and needed < MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]
            )
        with memory_for("all tiles in it", where="in_memory", mend="set in_memory: false"):
            self._memory = self._decode() if in_memory else None
        log.info(
            "%d tiles (%.2f GB) %s",
            len(tiles),
            needed / 1e9,
            f"in memory on {device}" if in_memory else f"streamed by {workers} workers",
        )

    def batches(self, order: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """Yield batches of the tiles in `order`, the last one smaller where it does not divide.

        Yields:
            pairs (b, 2, h, w, 3) uint8 and labels (b, h, w) uint8 on the device.
        """
        if self._memory is None:
            yield from self._stream(order, batch_size)
            return
        pairs, labels = self._memory
        # A run's order goes to the device once: nothing there waits for the host in a step.
        indices = torch.from_numpy(order).to(self.device)
        for chosen in torch.split(indices, batch_size) if len(order) else ():
            yield pairs[chosen], labels[chosen]

    def all(self, batch_size: int) -> Iterator[Batch]:
        """Yield batches of all tiles in their order."""
        return self.batches(np.arange(len(self.tiles)), batch_size)

    def _stream(self, order: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """Batches that threads read ahead: waiting for a disk and copying both leave Python alone.

        Processes would copy every batch once more, between them and this one.
        """
        with ThreadPoolExecutor(self.workers) as pool:
            ahead: deque[Future[Batch]] = deque()
            for start in range(0, len(order), batch_size):
                ahead.append(pool.submit(self._read, order[start : start + batch_size]))
                if len(ahead) > self.workers:
                    yield self._to_device(ahead.popleft().result())
            while ahead:
                yield self._to_device(ahead.popleft().result())

    def _read(self, chosen: np.ndarray) -> Batch:
        """Tiles in main memory, from where a GPU fetches them by itself."""
        pinned, size = self.device.type == "cuda", self.tiles.tile_size
        shapes = (len(chosen), 2, size, size, 3), (len(chosen), size, size)
        batch = tuple(torch.empty(s, dtype=torch.uint8, pin_memory=pinned) for s in shapes)
        pairs, labels = (part.numpy() for part in batch)
        for i, tile in enumerate(chosen.tolist()):
            pairs[i], labels[i] = self.tiles[tile]
        return batch[0], batch[1]

    def _to_device(self, batch: Batch) -> Batch:
        pairs, labels = (part.to(self.device, non_blocking=True) for part in batch)
        return pairs, labels

    def _decode(self) -> Batch:
        """All tiles on the device."""
        count, size = len(self.tiles), self.tiles.tile_size
        pairs = torch.empty((count, 2, size, size, 3), dtype=torch.uint8, device=self.device)
        labels = torch.empty((count, size, size), dtype=torch.uint8, device=self.device)
        start = 0
        for some_pairs, some_labels in self._stream(np.arange(count), DECODED_AT_ONCE):
            stop = start + len(some_labels)
            pairs[start:stop], labels[start:stop] = some_pairs, some_labels
            start = stop
        return pairs, labels
