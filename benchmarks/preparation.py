"""Cut scenes into tiles and store them for training: ours against a plain loop with PIL.

    python -m benchmarks.preparation [--scenes 8] [--size 1024]

Ours also hashes every tile, notes its statistics and perceptual hashes in a manifest, checks
labels against their rule, and writes shards next to the tars of the crop stage.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image

from benchmarks import plain
from benchmarks.demo import cut, png_scenes
from benchmarks.side_by_side import Report, compare
from dsfer.data.scenes import Scene
from dsfer.data.workers import usable_cpus

TILE = 256


def main(
    scenes: int = 8,
    size: int = 1024,
    rounds: int = 3,
    json: Annotated[Path | None, typer.Option(help="also write the numbers to this file")] = None,
) -> None:
    """Render scenes, then time the ways to cut them."""
    report = Report(torch.device("cpu"), json)
    with tempfile.TemporaryDirectory(prefix="dsfer-benchmark-") as name:
        folder = Path(name)
        rendered = png_scenes(folder / "scenes", count=scenes, size=size)
        cpus = usable_cpus()

        def ours(workers: int) -> None:
            cut(rendered, folder / "ours", size=TILE, workers=workers, splits=("train",))

        ways: dict[str, Callable[[], object]] = {
            "plain loop: open, crop, save PNG": lambda: plain.crop(rendered, folder / "png", TILE),
            "ours, 1 process": lambda: ours(1),
            f"ours, {cpus} processes": lambda: ours(cpus),
            "limit: decode the scenes, nothing else": lambda: decode(rendered),
        }
        tiles = scenes * (size // TILE) ** 2
        timings = compare(ways, items=tiles, rounds=rounds)
    limit = ("decoding on every core", timings.pop().rate * cpus)
    report.add(f"{scenes} scenes of {size} px into tiles of {TILE} px", timings, "tiles", limit)


def decode(scenes: list[Scene]) -> None:
    """Decode every file of the scenes."""
    for scene in scenes:
        for part in plain.PARTS:
            Image.open(getattr(scene, part)).load()


if __name__ == "__main__":
    typer.run(main)
