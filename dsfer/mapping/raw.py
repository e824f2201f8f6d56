"""Rasters while they are being made: plain rows in a file, which GDAL reads through a description.

Rows are written where they belong and survive a kill; a compressed GeoTIFF would not.
"""

import errno
import mmap
import os
import shutil
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import rasterio.shutil

from dsfer.data.new_raster import check_whole, gdal_writes
from dsfer.files import atomic_path, naming, write_bytes
from dsfer.mapping.grids import Grid

_TYPES = {"float32": "Float32", "uint8": "Byte"}

COG_OPTIONS = {
    "driver": "COG",
    "COMPRESS": "DEFLATE",
    "PREDICTOR": "YES",
    "BLOCKSIZE": 512,
    "BIGTIFF": "IF_SAFER",
    "NUM_THREADS": "ALL_CPUS",
}


class RawRaster:
    """One band on a grid, as raw rows beside a description that GDAL opens.

    Attributes:
        path: the description (.vrt), for GDAL.
        rows: the values, (rows, cols), mapped to the file: what is written there is on disk after
            `flush`.

    Args:
        path: description to write, or of a raster that is there already.
        grid: where its pixels lie.
        dtype: `float32` or `uint8`.
        nodata: value of pixels without data.
        colours: meaning and RGB of each value, for a map that shows classes.
        keep: go on with the values that are there.
    """

    def __init__(
        self,
        path: Path,
        grid: Grid,
        dtype: str,
        *,
        nodata: float,
        colours: dict[int, tuple[int, int, int]] | None = None,
        keep: bool = False,
    ):
        self.path, self._data = path, path.with_suffix(".raw")
        if not keep:
            _reserve(self._data, grid.rows * grid.cols * np.dtype(dtype).itemsize)
        with self._data.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.rows = np.ndarray((grid.rows, grid.cols), dtype, buffer=self._map)
        write_bytes(path, _description(grid, self._data.name, dtype, nodata, colours).encode())

    def flush(self) -> None:
        """Bring what was written to the disk."""
        self._map.flush()
        self.release()

    def release(self) -> None:
        """Give back the memory of rows that were touched; they stay in the file."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def write_cog(self, path: Path, *, average: bool) -> None:
        """Write a cloud-optimised GeoTIFF with overviews, atomically.

        Args:
            path: file to write.
            average: overviews show means; else the value that is most frequent.

        Raises:
            OSError: the disk is full or fails.
        """
        self.flush()
        resampling = "AVERAGE" if average else "MODE"
        with atomic_path(path) as temporary, gdal_writes(path):
            rasterio.shutil.copy(
                self.path, temporary, **COG_OPTIONS, OVERVIEW_RESAMPLING=resampling
            )
            check_whole(temporary)


def _reserve(path: Path, size: int) -> None:
    """A file of zeros with its room on the disk: a full disk shows here, not when it is used.

    And before it is full, so that other programs keep what room there is.
    """
    zeros = memoryview(bytes(2**20))
    with naming(path), path.open("wb") as file:  # which gives back the room of a former one
        if size > shutil.disk_usage(path.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for written in range(0, size, len(zeros)):
            file.write(zeros[: size - written])


def _description(
    grid: Grid,
    data: str,
    dtype: str,
    nodata: float,
    colours: dict[int, tuple[int, int, int]] | None,
) -> str:
    size = np.dtype(dtype).itemsize
    transform = ", ".join(repr(float(value)) for value in grid.transform.to_gdal())
    table = ""
    if colours:
        last = max(colours)
        entries = "".join(
            '<Entry c1="{}" c2="{}" c3="{}" c4="{}"/>'.format(
                *colours.get(i, (0, 0, 0)), 255 * (i in colours)
            )
            for i in range(last + 1)
        )
        table = f"<ColorInterp>Palette</ColorInterp><ColorTable>{entries}</ColorTable>"
    return (
        f'<VRTDataset rasterXSize="{grid.cols}" rasterYSize="{grid.rows}">'
        f"<SRS>{escape(grid.crs.to_wkt())}</SRS><GeoTransform>{transform}</GeoTransform>"
        f'<VRTRasterBand dataType="{_TYPES[dtype]}" band="1" subClass="VRTRawRasterBand">'
        f"<NoDataValue>{nodata}</NoDataValue>{table}"
        f'<SourceFilename relativetoVRT="1">{escape(data)}</SourceFilename>'
        f"<ImageOffset>0</ImageOffset><PixelOffset>{size}</PixelOffset>"
        f"<LineOffset>{size * grid.cols}</LineOffset><ByteOrder>LSB</ByteOrder>"
        "</VRTRasterBand></VRTDataset>"
    )
