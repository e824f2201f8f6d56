"""Rendered data for benchmarks: scenes, and their tiles as shards and as a folder of PNG."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import rasterio
from PIL import Image

from benchmarks import plain
from dsfer.data.crop import crop_scenes
from dsfer.data.demo import render_scenes
from dsfer.data.manifest import read_manifest
from dsfer.data.scenes import Scene
from dsfer.data.shards import TileShards, data_statistics, write_shards
from dsfer.data.workers import Processes, usable_cpus


@dataclass(frozen=True)
class DemoTiles:
    """The same tiles twice: as shards `train` and `val`, and as PNG."""

    shards: Path
    png: Path

    def split(self, name: str) -> TileShards:
        """Open the shards of a split."""
        return TileShards(self.shards / name)


def png_scenes(folder: Path, *, count: int, size: int) -> list[Scene]:
    """Render scenes and store them as PNG, as the public data sets are."""
    rendered = render_scenes(folder / "tif", seed=0, count=count, size=size, workers=usable_cpus())
    scenes = []
    for scene in rendered:
        files: dict[str, Path] = {}
        for part in plain.PARTS:
            with rasterio.open(getattr(scene, part)) as raster:
                pixels = raster.read().transpose(1, 2, 0)
            files[part] = folder / part / f"{scene.id}.png"
            files[part].parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.squeeze()).save(files[part])
        scenes.append(Scene(scene.id, files["t1"], files["t2"], files["label"]))
    return scenes


def cut(
    scenes: list[Scene],
    out: Path,
    *,
    size: int,
    workers: int,
    splits: Sequence[str] = ("train", "val"),
) -> None:
    """Crop scenes and write every tile into the shards of each split, as the stages do."""
    crop_scenes(
        scenes,
        out / "tiles",
        tile_size=size,
        padding="drop",
        label_rule="binary255",
        bands=None,
        spread=Processes(workers),
    )
    rows = read_manifest(out / "tiles" / "manifest.parquet")
    for split in splits:
        write_shards(
            out / "tiles",
            rows.assign(split=split),
            out / "shards" / split,
            split=split,
            split_hash="0123456789ab",
            statistics=data_statistics(rows),
            spread=Processes(workers),
        )


@contextmanager
def demo_tiles(count: int, size: int) -> Iterator[DemoTiles]:
    """At least `count` tiles of `size` pixels, for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="dsfer-benchmark-") as name:
        folder = Path(name)
        per_scene = 16
        scenes = png_scenes(folder, count=-(-count // per_scene), size=4 * size)
        cut(scenes, folder, size=size, workers=usable_cpus())
        plain.crop(scenes, folder / "png", size)
        yield DemoTiles(folder / "shards", folder / "png")
