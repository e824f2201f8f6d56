"""How samples of any type become the 8-bit values that networks are trained on."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from rasterio.io import DatasetReader
from rasterio.windows import Window

from dsfer.data.rasters import Bands, missing_data, read_bands
from dsfer.data.tars import Pixels
from dsfer.errors import ConfigError, DataError

Scale = tuple[float, float] | Literal["percentiles"] | None
"""What a user declares: values that become 0 and 255, the percentiles below, or nothing (8 bit)."""

PERCENTILES = (2, 98)
"""Percentiles of each band of a raster that become 0 and 255 under `percentiles`."""

SAMPLE_SIDE = 1024
"""Rows and columns, at most, of the reduced image that percentiles are taken from."""


@dataclass(frozen=True)
class Scaling:
    """A linear stretch of each band: `low` becomes 0, `high` 255, what is beyond is clipped.

    Attributes:
        low: value of each of R, G, B in the raster's own unit.
        high: the same, above `low`.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def apply(self, samples: npt.NDArray[np.generic]) -> Pixels:
        """Stretch (h, w, 3) samples of any real type to uint8; NaN becomes 0."""
        low, high = np.array(self.low, np.float32), np.array(self.high, np.float32)
        stretched = (samples.astype(np.float32) - low) * (255 / (high - low))
        bytes_: Pixels = np.rint(np.nan_to_num(stretched).clip(0, 255)).astype(np.uint8)
        return bytes_


def resolve_scaling(raster: DatasetReader, bands: Bands, scale: Scale) -> Scaling | None:
    """The stretch of one raster, or None where its bytes are taken as they are.

    Raises:
        ConfigError: `scale` is no interval.
        DataError: samples that are no bytes come without a declared scale, or are complex; or
            there is nothing to take percentiles of.
    """
    kinds = sorted({raster.dtypes[band - 1] for band in bands})
    if any(kind.startswith("complex") for kind in kinds):  # numpy has no `complex_int16`
        raise _refused(
            raster, f"samples are complex ({', '.join(kinds)})", "convert them to amplitudes"
        )
    if scale is None:
        if kinds == ["uint8"]:
            return None
        raise _refused(
            raster,
            f"samples are {', '.join(kinds)}, not 8 bit, and no scale is declared",
            "add --scale LOW,HIGH with the values that shall become 0 and 255, or "
            "--scale percentiles",
        )
    if scale == "percentiles":
        return _percentiles(raster, bands)
    low, high = scale
    if not (np.isfinite([low, high]).all() and low < high):
        raise ConfigError(
            f"{low:g} to {high:g} is no interval",
            where="--scale",
            mend="give LOW,HIGH with LOW below HIGH",
        )
    return Scaling((low,) * 3, (high,) * 3)


def _percentiles(raster: DatasetReader, bands: Bands) -> Scaling:
    rows, cols = (min(SAMPLE_SIDE, side) for side in raster.shape)
    whole = Window(0, 0, raster.width, raster.height)
    samples = read_bands(raster, bands, whole, dtype=np.float32, shape=(rows, cols))
    missing = missing_data(raster, bands, whole, shape=(rows, cols))
    valid = np.isfinite(samples).all(axis=2)
    if missing is not None:
        valid &= ~missing
    if not valid.any():
        raise _refused(raster, "holds nothing but nodata", "give a raster that shows something")
    low, high = np.percentile(samples[valid], PERCENTILES, axis=0)
    high = np.where(high > low, high, low + 1)  # a flat band becomes 0
    return Scaling(tuple(low.tolist()), tuple(high.tolist()))


def _refused(raster: DatasetReader, problem: str, mend: str) -> DataError:
    return DataError(problem, where=raster.name, mend=mend)
