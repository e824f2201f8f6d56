"""The light that falls on a rendered scene, and the camera that records it."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from dsfer.data.demo_canvas import GAMMA, MARGIN, SCALE, Array, Canvas


@dataclass(frozen=True)
class Light:
    """Sun, sky and camera of one date.

    Attributes:
        azimuth: direction the shadows fall to, radians in image coordinates.
        elevation: of the sun, radians.
        sky: share of the light that reaches the shadow.
        gain: factor on each channel, shape (3,).
        haze: added to each channel, shape (3,), 0-1.
        contrast: exponent of the tone curve.
        blur: standard deviation of the point spread, image pixels.
        sharpening: how much of the detail the provider adds again.
        noise: standard deviation of the sensor noise, grey values.
    """

    azimuth: float
    elevation: float
    sky: float
    gain: Array
    haze: Array
    contrast: float
    blur: float
    sharpening: float
    noise: float


def shine(canvas: Canvas, light: Light) -> Array:
    """Radiance of the sunlit scene, (side, side, 3), linear; flat white ground gives 1."""
    x, y = -float(np.cos(light.azimuth)), -float(np.sin(light.azimuth))  # towards the sun
    right, down = canvas.slope
    lit = 1 - (right * x + down * y) / float(np.tan(light.elevation))
    lit /= np.sqrt(1 + right**2 + down**2)
    sun = np.clip(lit, 0, 1.6) * (1 - cast_shadow(canvas.height, light))
    blue = np.array([0.92, 1.0, 1.15], np.float32) * np.float32(light.sky)
    radiance: Array = canvas.albedo * (sun[..., None] * (1 - np.float32(light.sky)) + blue)
    return radiance


def cast_shadow(height: Array, light: Light) -> Array:
    """Share of the sun that each pixel of a height map misses, 0-1, same shape.

    A pixel lies in shadow when some pixel towards the sun is higher than the ray that reaches it.
    The horizon is found by doubling the distance looked at, log2(longest shadow) passes.
    """
    step = np.array([np.sin(light.azimuth), np.cos(light.azimuth)])
    fall = np.tan(light.elevation)
    longest = max(2.0, float(height.max()) / fall)
    horizon = _moved(height, step) - np.float32(fall)
    reach = 1
    while reach < longest:
        further = _moved(horizon, step * reach) - np.float32(fall * reach)
        horizon = np.maximum(horizon, further)
        reach *= 2
    shadow: Array = np.clip((horizon - height) / np.float32(1.5), 0, 1)
    return shadow


def _moved(image: Array, by: NDArray[np.float64]) -> Array:
    """The image shifted by whole pixels (rows, columns), zero where nothing comes in."""
    rows, cols = (round(float(value)) for value in by)
    moved = np.zeros_like(image)
    high, wide = image.shape
    moved[max(rows, 0) : high + min(rows, 0), max(cols, 0) : wide + min(cols, 0)] = image[
        max(-rows, 0) : high + min(-rows, 0), max(-cols, 0) : wide + min(-cols, 0)
    ]
    return moved


def expose(
    radiance: Array, light: Light, warp: NDArray[np.float64], rng: Generator
) -> NDArray[np.uint8]:
    """What the camera records.

    Args:
        radiance: canvas, (side, side, 3), linear.
        light: tone, blur and noise.
        warp: (2, 3), takes a (row, column) of the image to that of the ground seen there.
        rng: source of the noise.

    Returns:
        Image of shape (size, size, 3).
    """
    size = radiance.shape[0] // SCALE - 2 * MARGIN
    matrix = warp[:, :2] * SCALE
    # The centre of image pixel i is at i + 1/2; canvas pixels count from their centres.
    offset = (warp[:, :2] @ [0.5, 0.5] + warp[:, 2] + MARGIN) * SCALE - 0.5
    seen = np.empty((size, size, 3), np.float32)
    for band in range(3):
        soft = ndimage.gaussian_filter(radiance[..., band], light.blur * SCALE, truncate=2.5)
        ndimage.affine_transform(
            soft, matrix, offset, seen[..., band].shape, seen[..., band], order=1
        )
    smooth = ndimage.gaussian_filter(seen, (1.0, 1.0, 0), truncate=2.5)
    seen += np.float32(light.sharpening) * (seen - smooth)
    tone = (light.haze + light.gain * np.clip(seen, 0, None)) ** np.float32(light.contrast / GAMMA)
    grey = 255 * tone + rng.standard_normal(tone.shape, dtype=np.float32) * np.float32(light.noise)
    image: NDArray[np.uint8] = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return image
