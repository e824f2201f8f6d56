"""One picture of a result: before, and after with the changes on it."""

from pathlib import Path

import numpy as np
import rasterio
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from dsfer.files import atomic_path
from dsfer.mapping.pair import RasterPair

SIDE = 900
"""Pixels, at most, of a panel."""

COLOUR = (213, 94, 0)
"""Vermilion of Okabe and Ito's palette: stands out on green, grey and brown alike."""


def write_preview(path: Path, pair: RasterPair, classes: Path, *, title: str) -> None:
    """Draw both dates side by side, with the changed pixels over the second, as PNG."""
    grid = pair.grid
    factor = max(grid.rows, grid.cols) / SIDE
    shape = (max(1, round(grid.rows / max(factor, 1))), max(1, round(grid.cols / max(factor, 1))))
    (before, after), valid = pair.overview(shape)
    with rasterio.open(classes) as raster:
        changed = raster.read(1, out_shape=shape, resampling=rasterio.enums.Resampling.mode) == 1
    after = after.copy()
    after[changed] = (0.35 * after[changed] + 0.65 * np.array(COLOUR)).astype(np.uint8)
    for image in (before, after):
        image[~valid] = 235
    metres_wide, metres_high = grid.pixel_metres
    height = min(max(3.0, 6.2 * shape[0] / shape[1]), 12)
    figure = Figure(figsize=(12.6, height + 0.8), layout="constrained")
    figure.suptitle(title, fontsize=12)
    for axes, image, name in zip(
        figure.subplots(1, 2), (before, after), ("before", "after, with changes"), strict=True
    ):
        axes.imshow(image, interpolation="nearest", aspect=metres_high / metres_wide)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
        _scale_bar(axes, metres_wide * grid.cols, shape)
    figure.legend(
        handles=[
            Patch(color="#{:02x}{:02x}{:02x}".format(*COLOUR), label="changed"),
            Patch(color=(0.92, 0.92, 0.92), label="no data"),
        ],
        loc="outside lower right", ncols=2, frameon=False, fontsize=9,
    )  # fmt: skip
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _scale_bar(axes: Axes, metres: float, shape: tuple[int, int]) -> None:
    power = 10 ** np.floor(np.log10(metres / 4))
    length = max(step * power for step in (1, 2, 5) if step * power <= metres / 4)
    rows, cols = shape
    wide = cols * length / metres
    left, top = 0.03 * cols, 0.965 * rows
    thick = 0.008 * rows
    axes.add_patch(
        Rectangle(
            (left, top - thick), wide, thick, facecolor="white", edgecolor="black", linewidth=0.6
        )
    )
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    axes.text(
        left, top - 2 * thick, text, color="white", fontsize=9, va="bottom",
        bbox={"facecolor": "black", "alpha": 0.5, "pad": 1.5, "edgecolor": "none"},
    )  # fmt: skip
