"""Batches of tiles on the device: ours, from memory and streamed, against a folder of PNG.

    python -m benchmarks.reading [--tiles 256] [--size 256]

Shards and PNG are in the system's page cache.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import webdataset as wds
from torch.utils.data import DataLoader

from benchmarks import plain
from benchmarks.demo import demo_tiles
from benchmarks.side_by_side import Report, compare
from dsfer.data.batches import BatchSource, sample_order
from dsfer.data.shards import TileShards

BATCH = 32


def main(
    tiles: int = 256,
    size: int = 256,
    passes: int = 4,
    workers: int = 2,
    rounds: int = 5,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    json: Annotated[Path | None, typer.Option(help="also write the numbers to this file")] = None,
) -> None:
    """Render tiles, then time the ways to read them in shuffled batches."""
    where = torch.device(device)
    report = Report(where, json)
    with demo_tiles(tiles, size) as data:
        train = data.split("train")
        order = sample_order(len(train), passes * len(train), seed=0, sampling="epochs")
        png = plain.PngTiles(data.png, train.mean, train.std)
        streamed, in_memory = (
            BatchSource(train, where, in_memory=choice, workers=workers) for choice in (False, True)
        )
        ways: dict[str, Callable[[], object]] = {
            f"folder of PNG, {workers} loader processes": lambda: drain(
                [part.to(where) for part in batch] for batch in png_batches(png, order, workers)
            ),
            "the same, 1 process": lambda: drain(png_batches(png, order, 0)),
            "plain WebDataset stream, in order": lambda: drain(stream(train, passes)),
            f"shards through {workers} loader processes": lambda: drain(
                [part.to(where) for part in batch] for batch in shard_batches(train, order, workers)
            ),
            f"ours, streamed by {workers} workers": lambda: drain(streamed.batches(order, BATCH)),
            "ours, in memory": lambda: drain(in_memory.batches(order, BATCH)),
            "limit: copy the bytes": lambda: copy_bytes(len(order), size),
        }
        timings = compare(ways, items=len(order), rounds=rounds)
        limit = ("copying the bytes", timings.pop().rate)
        report.add(
            f"{len(train)} tiles of {size} px in batches of {BATCH}", timings, "tiles", limit
        )
        read = {
            "opening the shards, hashes verified": lambda: data.split("train"),
            "opening them, and all tiles into memory": lambda: BatchSource(
                data.split("train"), where, in_memory=True
            ),
        }
        report.add(
            "before the first batch", compare(read, items=len(train), rounds=rounds), "tiles"
        )


def drain(batches: Iterable[object]) -> None:
    """Take every batch."""
    for _ in batches:
        pass


def png_batches(png: plain.PngTiles, order: np.ndarray, workers: int) -> DataLoader[object]:
    """The loader that one writes first."""
    return DataLoader(png, batch_size=BATCH, sampler=order.tolist(), num_workers=workers)


def shard_batches(tiles: TileShards, order: np.ndarray, workers: int) -> DataLoader[object]:
    """Torch's loader over the shards that ours reads."""
    batches = [order[i : i + BATCH].tolist() for i in range(0, len(order), BATCH)]
    return DataLoader(tiles, batch_sampler=batches, num_workers=workers)  # type: ignore[arg-type]


def stream(tiles: TileShards, passes: int) -> Iterable[object]:
    """Tiles one by one, as WebDataset reads the shards by itself."""
    urls = passes * sorted(str(path) for path in tiles.folder.glob("*.tar"))
    pipeline: Iterable[object] = wds.WebDataset(
        urls, shardshuffle=False, empty_check=False
    ).decode()
    return pipeline


def copy_bytes(count: int, size: int) -> None:
    """Copy as many bytes as `count` tiles have, a batch at a time."""
    source, target = (np.ones((BATCH, size, size, 7), np.uint8) for _ in range(2))
    for _ in range(count // BATCH):
        np.copyto(target, source)


if __name__ == "__main__":
    typer.run(main)
