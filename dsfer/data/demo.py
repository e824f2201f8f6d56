"""The embedded demo data set: rendered pairs of a suburb, seeded and georeferenced.

`python -m dsfer.data.demo picture.png` renders one scene as t1 | t2 | label.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import Affine

from dsfer.data.demo_canvas import MARGIN, SCALE, Canvas, fractal, grain, linear
from dsfer.data.demo_layout import lay_out
from dsfer.data.demo_light import Light, expose, shine
from dsfer.data.demo_plan import Style, View, plan
from dsfer.data.new_raster import new_raster
from dsfer.data.scenes import Scene
from dsfer.errors import ConfigError
from dsfer.files import atomic_path

CRS = "EPSG:32614"  # UTM 14 N: Austin, Texas, where LEVIR-CD was taken
PIXEL = 0.5  # metres
SMALLEST = 64

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]


def render_scenes(
    folder: Path, *, seed: int, count: int, size: int, workers: int = 2
) -> list[Scene]:
    """Render bitemporal scenes into t1/, t2/ and label/ of a folder, as GeoTIFF.

    A scene depends on the seed and its own number only, so the files are the same bytes for any
    `count` that includes it and any number of workers.

    Args:
        folder: where to write.
        seed: non-negative; another seed, another town.
        count: number of scenes, `demo_000` onwards.
        size: side of the square scenes in pixels of 0.5 m, at least 64.
        workers: threads.

    Returns:
        The scenes in order, labels by the rule {0, 255}.

    Raises:
        ConfigError: a number is out of range.
    """
    for name, value, least in (("seed", seed, 0), ("count", count, 1), ("size", size, SMALLEST)):
        if value < least:
            raise ConfigError(f"{name} is {value}", where="demo", mend=f"use {least} or more")
    with ThreadPoolExecutor(max_workers=workers) as pool:
        return list(pool.map(partial(_write_scene, folder, seed, size), range(count)))


def render_pair(seed: int, index: int, size: int) -> Pair:
    """Render one scene.

    Args:
        seed: of the data set.
        index: number of the scene.
        size: side in pixels.

    Returns:
        t1 and t2, (size, size, 3), and the label, (size, size) of 0 and 255, on t1's grid.
    """
    rng = np.random.default_rng([seed, index])
    layout = lay_out(rng, size)
    styles = _style(rng), _style(rng)
    views = plan(rng, layout, styles)
    canvases = _ground(rng, size, styles)
    for canvas, view in zip(canvases, views, strict=True):
        _draw(canvas, view)
    warps = np.eye(2, 3), _misregistration(rng, size)
    t1, t2 = (
        expose(shine(canvas, light), light, warp, rng)
        for canvas, light, warp in zip(canvases, (_light(rng), _light(rng)), warps, strict=True)
    )
    return t1, t2, _label(canvases)


def _write_scene(folder: Path, seed: int, size: int, index: int) -> Scene:
    name = f"demo_{index:03d}"
    # Scenes lie side by side with a gap, so that no two share ground.
    corner = 620_000 + index * (size + 200) * PIXEL, 3_380_000
    grid = Affine(PIXEL, 0, corner[0], 0, -PIXEL, corner[1])
    files = [folder / part / f"{name}.tif" for part in ("t1", "t2", "label")]
    for file, pixels in zip(files, render_pair(seed, index, size), strict=True):
        _write_tiff(file, pixels, grid)
    t1, t2, label = files
    return Scene(name, t1, t2, label)


def _write_tiff(path: Path, pixels: NDArray[np.uint8], grid: Affine) -> None:
    bands = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    profile = {
        "driver": "GTiff", "dtype": "uint8", "crs": CRS, "transform": grid,
        "count": bands.shape[0], "height": bands.shape[1], "width": bands.shape[2],
        "tiled": True, "blockxsize": 256, "blockysize": 256,
        "compress": "deflate", "predictor": 2, "interleave": "pixel",
    }  # fmt: skip
    with new_raster(path, **profile) as raster:
        raster.write(bands)


def _style(rng: Generator) -> Style:
    """Season: from green to dry grass, from dark to olive leaves."""
    dry = rng.uniform(0, 1)
    lawn = np.array([88, 98, 68]) * (1 - dry) + np.array([146, 130, 98]) * dry
    leaf = np.array([50, 66, 42]) + rng.uniform(0, 1) * np.array([32, 20, 16])
    return Style(lawn, leaf, rng.uniform(112, 140))


def _light(rng: Generator) -> Light:
    """Sun, exposure and haze of one date."""
    gain = rng.uniform(0.65, 1.35) * rng.uniform([0.93, 0.97, 0.9], [1.07, 1.03, 1.06])
    return Light(
        azimuth=rng.uniform(-0.75 * np.pi, -0.25 * np.pi),
        elevation=np.radians(rng.uniform(38, 62)),
        sky=rng.uniform(0.14, 0.28),
        gain=gain.astype(np.float32),
        haze=(rng.uniform(0, 0.02) * np.array([0.9, 1, 1.1])).astype(np.float32),
        contrast=rng.uniform(0.92, 1.15),
        blur=rng.uniform(0.35, 0.55),
        sharpening=rng.uniform(0, 0.8),
        noise=rng.uniform(1.5, 3.5),
    )


def _ground(rng: Generator, size: int, styles: tuple[Style, Style]) -> tuple[Canvas, Canvas]:
    """Rough grass with bare spots: the same ground at both dates, in each date's season."""
    side = Canvas.side_of(size)
    patches = fractal(rng, side, (220, 90, 36, 14), 0.75)
    fine = grain(rng, side)
    mottle = fractal(rng, side, (36, 12), 0.9)
    soil = linear((160, 138, 110))
    canvases = []
    for style in styles:
        own = fractal(rng, side, (160, 40), 0.8)
        rough = linear(style.lawn * rng.uniform(0.85, 1.0))
        bare = 1 / (1 + np.exp(-3 * (patches + 0.5 * own - rng.uniform(0.8, 2.0))))
        tone = 1 + 0.16 * fine + 0.09 * patches + 0.1 * own
        ground = rough + (soil - rough) * bare[..., None]
        canvases.append(Canvas((ground * tone[..., None]).astype(np.float32), fine, mottle))
    return canvases[0], canvases[1]


def _draw(canvas: Canvas, view: View) -> None:
    for layer in view.ground:
        canvas.paint(layer)
    canvas.raise_walls(view.fences, 3.4)
    for roof in view.roofs:
        canvas.add_roof(roof)
    for tree in view.trees:
        canvas.add_tree(tree)


def _misregistration(rng: Generator, size: int) -> NDArray[np.float64]:
    """Affine (2, 3) on (row, column): 0.2-0.7 px of shift, a trace of scale and rotation."""
    angle, scale = rng.normal(0, 0.3, 2) / size
    matrix = np.array([[1 + scale, -angle], [angle, 1 + scale]])
    direction = rng.uniform(0, 2 * np.pi)
    shift = rng.uniform(0.2, 0.7) * np.array([np.cos(direction), np.sin(direction)])
    centre = np.full(2, size / 2)
    return np.column_stack([matrix, centre - matrix @ centre + shift])


def _label(canvases: tuple[Canvas, Canvas]) -> NDArray[np.uint8]:
    """255 where at least half of a pixel is covered by another building than before."""
    changed = canvases[0].building != canvases[1].building
    inner = changed[MARGIN * SCALE : -MARGIN * SCALE, MARGIN * SCALE : -MARGIN * SCALE]
    size = inner.shape[0] // SCALE
    share = inner.reshape(size, SCALE, size, SCALE).mean((1, 3))
    return np.where(share >= 0.5, 255, 0).astype(np.uint8)


def save_picture(path: Path, *, seed: int = 0, index: int = 0, size: int = 512) -> None:
    """Write one scene as a picture: t1, t2 and the label side by side."""
    t1, t2, label = render_pair(seed, index, size)
    strip = Image.fromarray(np.hstack([t1, t2, np.dstack([label] * 3)]))
    with atomic_path(path) as temporary:
        # A palette halves the bytes; k-means keeps the rare colours, pools and cars.
        strip.quantize(256, kmeans=3).save(temporary, optimize=True)


if __name__ == "__main__":
    save_picture(Path(sys.argv[1]))
