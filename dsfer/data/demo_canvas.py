"""The canvas of the demo renderer: surface model and reflectance of ground seen from above.

Everything is drawn twice as fine as the finished image, on a canvas with a margin, so that edges
are anti-aliased and a tree outside the image still casts its shadow into it.
"""

from dataclasses import dataclass
from functools import cache
from threading import Lock

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from rasterio.features import rasterize
from rasterio.transform import Affine
from scipy import ndimage
from shapely.geometry.base import BaseGeometry

SCALE = 2  # canvas pixels per image pixel
MARGIN = 24  # image pixels around the image
GAMMA = 2.2

# rasterio silences a warning inside `rasterize` through Python's filters, which threads share.
_RASTERIZE = Lock()

Array = NDArray[np.float32]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Patch:
    """A flat piece of ground: colour as seen on a screen (0-255), strength of its texture."""

    shape: BaseGeometry
    colour: Colour
    grain: float = 0.06
    mottle: float = 0.03


@dataclass(frozen=True)
class Roof:
    """One rectangular roof; a house is the union of several.

    Attributes:
        centre: x and y, image pixels.
        angle: direction of the long axis, radians.
        half: half length and half width, image pixels.
        eave: height of the eave, image pixels.
        pitch: rise over run; 0 is flat.
        gable: two faces instead of four.
        colour: as seen on a screen, 0-255.
        building: which building it belongs to, from 1; 0 for what is none (a parked car).
    """

    centre: tuple[float, float]
    angle: float
    half: tuple[float, float]
    eave: float
    pitch: float
    gable: bool
    colour: Colour
    building: int


@dataclass(frozen=True)
class Tree:
    """A crown: centre, radius and height in image pixels, colour on a screen (0-255)."""

    x: float
    y: float
    radius: float
    height: float
    colour: Colour


def linear(colour: ArrayLike) -> Array:
    """Reflectance of a colour given as on a screen (0-255)."""
    return ((np.asarray(colour, np.float32) / 255) ** GAMMA).astype(np.float32)


def noise_field(rng: Generator, side: int, cell: float) -> Array:
    """Smooth noise of shape (side, side), about zero mean and unit variance.

    Args:
        rng: source of the values.
        side: pixels.
        cell: pixels from one random value to the next.
    """
    knots = rng.standard_normal((int(side / cell) + 3,) * 2, dtype=np.float32)
    at = np.arange(side, dtype=np.float32) / np.float32(cell)
    low = at.astype(np.intp)
    share = at - low
    share = share * share * (3 - 2 * share)
    cols = knots[:, low] + (knots[:, low + 1] - knots[:, low]) * share
    field: Array = cols[low] + (cols[low + 1] - cols[low]) * share[:, None]
    field *= np.float32(1.6)
    return field


def grain(rng: Generator, side: int) -> Array:
    """The fine texture of grass and soil: filtered white noise, unit variance, (side, side)."""
    white = rng.standard_normal((side, side), dtype=np.float32)
    fine = ndimage.gaussian_filter(white, 0.9, truncate=2.5)
    clumps = ndimage.gaussian_filter(white[::-1], 3.2, truncate=2.5)
    texture: Array = 0.75 * fine / fine.std() + 0.66 * clumps / clumps.std()
    return texture


def fractal(rng: Generator, side: int, cells: tuple[float, ...], fall: float = 0.6) -> Array:
    """Sum of noise fields, each finer one weaker by `fall`; unit variance."""
    weights = np.array([fall**k for k in range(len(cells))])
    weights /= np.sqrt((weights**2).sum())
    total = np.zeros((side, side), np.float32)
    for cell, weight in zip(cells, weights, strict=True):
        total += np.float32(weight) * noise_field(rng, side, cell)
    return total


class Canvas:
    """What one date looks like before the light falls on it.

    Attributes:
        side: pixels of the canvas.
        albedo: reflectance, (side, side, 3).
        height: of the surface above ground, canvas pixels, (side, side).
        slope: dz/dx and dz/dy, (2, side, side).
        building: which building covers the pixel, 0 for none, (side, side); trees do not hide it.
        grain: fine noise of the ground, (side, side).
        mottle: noise of a few metres, (side, side).
    """

    def __init__(self, ground: Array, grain: Array, mottle: Array):
        self.side = ground.shape[0]
        self.albedo = ground
        self.grain = grain
        self.mottle = mottle
        self.height = np.zeros(ground.shape[:2], np.float32)
        self.slope = np.zeros((2, *ground.shape[:2]), np.float32)
        self.building = np.zeros(ground.shape[:2], np.int16)

    @staticmethod
    def side_of(size: int) -> int:
        """Side of the canvas for an image of `size` pixels."""
        return SCALE * (size + 2 * MARGIN)

    def mask(self, shapes: list[tuple[BaseGeometry, int]]) -> NDArray[np.int16]:
        """Burn numbers into a raster of the canvas; later shapes win."""
        shapes = [(shape, value) for shape, value in shapes if not shape.is_empty]
        if not shapes:
            return np.zeros((self.side, self.side), np.int16)
        grid = Affine(1 / SCALE, 0, -MARGIN, 0, 1 / SCALE, -MARGIN)
        with _RASTERIZE:
            burnt: NDArray[np.int16] = rasterize(
                shapes, out_shape=(self.side, self.side), transform=grid, dtype=np.int16
            )
        return burnt

    def paint(self, patches: list[Patch]) -> None:
        """Colour the ground."""
        number = self.mask([(patch.shape, k) for k, patch in enumerate(patches, 1)])
        where = np.flatnonzero(number)
        which = number.ravel()[where] - 1
        if not which.size:
            return
        colours = linear(np.array([patch.colour for patch in patches], np.float32))
        grains = np.array([patch.grain for patch in patches], np.float32)
        mottles = np.array([patch.mottle for patch in patches], np.float32)
        grain, mottle = self.grain.ravel()[where], self.mottle.ravel()[where]
        texture = 1 + grains[which] * grain + mottles[which] * mottle
        self.albedo.reshape(-1, 3)[where] = colours[which] * texture[:, None]

    def raise_walls(self, shapes: list[BaseGeometry], height: float) -> None:
        """Lift thin things (fences) so that they cast a shadow; height in image pixels."""
        where = self.mask([(shape, 1) for shape in shapes]) > 0
        self.height[where] = height * SCALE

    def add_roof(self, roof: Roof) -> None:
        """Put a roof where it is higher than what is there."""
        cx, cy = (np.array(roof.centre) + MARGIN) * SCALE
        length, width = np.array(roof.half) * SCALE
        reach = float(np.hypot(length, width)) + 1
        window = self._window(cx, cy, reach)
        if window is None:
            return
        rows, cols, y, x = window
        cos, sin = np.cos(roof.angle), np.sin(roof.angle)
        along, across = x * cos + y * sin, y * cos - x * sin
        to_end, to_side = length - np.abs(along), width - np.abs(across)
        inside = (to_end > 0) & (to_side > 0)
        hip = (to_end < to_side) & (not roof.gable)
        rise = roof.pitch * np.where(hip, to_end, to_side)
        z = np.float32(roof.eave * SCALE) + rise
        if roof.building:
            ground = self.building[rows, cols]
            ground[inside & (ground == 0)] = roof.building
        top = inside & (z > self.height[rows, cols])
        down_along = -np.sign(along) * hip * roof.pitch
        down_across = -np.sign(across) * ~hip * roof.pitch
        self.height[rows, cols][top] = z[top]
        self.slope[0, rows, cols][top] = (down_along * cos - down_across * sin)[top]
        self.slope[1, rows, cols][top] = (down_along * sin + down_across * cos)[top]
        texture = 1 + 0.07 * self.grain[rows, cols] + 0.05 * self.mottle[rows, cols]
        if roof.pitch:  # rows of shingles, and the lighter cap on ridge and hips
            courses = np.where(hip, to_end, to_side)
            ridge = np.minimum(np.abs(to_end - to_side) + 9 * roof.gable, np.abs(across))
            texture += 0.03 * np.sin(courses * 1.9) + 0.12 * (ridge < 0.8)
        self.albedo[rows, cols][top] = (linear(roof.colour) * texture[..., None])[top]

    def add_tree(self, tree: Tree) -> None:
        """Put a crown where it is higher than what is there."""
        cx, cy = (tree.x + MARGIN) * SCALE, (tree.y + MARGIN) * SCALE
        bank = _crowns(max(3, round(tree.radius * SCALE)))
        crown = bank[int(cx * 7 + cy * 3) % len(bank)]
        half = crown.shape[1] // 2
        row, col = int(cy) - half, int(cx) - half
        side = crown.shape[1]
        if row < 0 or col < 0 or row + side > self.side or col + side > self.side:
            return
        rows, cols = slice(row, row + side), slice(col, col + side)
        dome, tone = crown[0], crown[1]
        z = np.float32(tree.height * SCALE) * (0.45 + 0.55 * dome)
        top = (dome > 0) & (z > self.height[rows, cols])
        np.copyto(self.height[rows, cols], z, where=top)
        np.copyto(self.slope[:, rows, cols], crown[2:], where=top)
        colour = linear(tree.colour) * tone[..., None]
        np.copyto(self.albedo[rows, cols], colour, where=top[..., None])

    def _window(
        self, cx: float, cy: float, reach: float
    ) -> tuple[slice, slice, Array, Array] | None:
        """The part of the canvas within `reach` of a point, and the offsets from it."""
        row0, row1 = max(0, int(cy - reach)), min(self.side, int(cy + reach) + 2)
        col0, col1 = max(0, int(cx - reach)), min(self.side, int(cx + reach) + 2)
        if row0 >= row1 or col0 >= col1:
            return None
        y = np.arange(row0, row1, dtype=np.float32)[:, None] + np.float32(0.5 - cy)
        x = np.arange(col0, col1, dtype=np.float32)[None, :] + np.float32(0.5 - cx)
        return slice(row0, row1), slice(col0, col1), y, x


@cache
def _crowns(radius: int) -> tuple[Array, ...]:
    """Four crowns of a radius in canvas pixels: dome, tone, dz/dx, dz/dy, each (4, side, side)."""
    crowns = []
    for variant in range(4):
        rng = np.random.default_rng([radius, variant])
        side = 2 * (radius + 2) + 1
        y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32) * (
            side / 2 / radius
        )
        angle = np.arctan2(y, x)
        lobes = sum(
            rng.uniform(0.04, 0.13) * np.sin(k * angle + rng.uniform(0, 6)) for k in (2, 3, 5, 7)
        )
        clumps = fractal(rng, side, (max(2.0, radius / 2.2), max(1.5, radius / 5)), 0.8)
        away = np.hypot(x, y) / (0.88 + lobes) + 0.06 * clumps
        dome = np.where(away < 1, np.sqrt(np.clip(1 - away**2, 0.02, 1)), 0) * (1 + 0.14 * clumps)
        slope_y, slope_x = np.gradient(dome * radius * 0.8)
        slopes = np.clip(np.stack([slope_x, slope_y]), -1.2, 1.2)
        tone = 1 + 0.3 * clumps
        crowns.append(np.stack([dome, tone, *slopes]).astype(np.float32))
    return tuple(crowns)
