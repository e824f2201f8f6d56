"""Side by side on this machine: reading tiles from shards and from a folder of PNG, as ratios.

python benchmarks/reading.py SHARDS      for example data/demo/shards/train
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import typer
import webdataset as wds
from PIL import Image
from rich.console import Console
from rich.table import Table

from dsfer.data.shards import TileShards

ROUNDS = 3


def main(shards: Path) -> None:
    """Read every tile in each way, best of a few rounds, and print pairs per second."""
    tiles = TileShards(shards)
    order = np.random.default_rng(0).permutation(len(tiles)).tolist()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_png(tiles, folder)
        ways: dict[str, Callable[[], object]] = {
            "folder of PNG, any order": lambda: [read_png(folder, i) for i in order],
            "webdataset, in order": lambda: list(stream(shards)),
            "shards through a memory map, any order": lambda: [tiles[i] for i in order],
        }
        rates = dict.fromkeys(ways, 0.0)
        for _ in range(ROUNDS):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                rates[name] = max(rates[name], len(tiles) / (time.perf_counter() - started))
    first = next(iter(rates.values()))
    table = Table(f"{len(tiles)} pairs of {tiles.tile_size} px", "pairs/s", "times as fast")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:,.0f}", f"{rate / first:.1f}")
    Console().print(table)


def write_png(tiles: TileShards, folder: Path) -> None:
    """Write what a folder of tiles would hold."""
    for i in range(len(tiles)):
        pair, label = tiles[i]
        for part, image in (("a", pair[0]), ("b", pair[1]), ("label", label)):
            Image.fromarray(image).save(folder / f"{i}_{part}.png")


def read_png(folder: Path, i: int) -> list[np.ndarray]:
    """Decode one tile."""
    return [np.asarray(Image.open(folder / f"{i}_{part}.png")) for part in ("a", "b", "label")]


def stream(shards: Path) -> wds.WebDataset:
    """The same tiles as a plain WebDataset stream."""
    urls = sorted(str(path) for path in shards.glob("*.tar"))
    return wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode()


if __name__ == "__main__":
    typer.run(main)
