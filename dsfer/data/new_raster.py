"""Write rasters that are whole or not there."""

import errno
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rasterio
from rasterio._err import CPLE_BaseError  # what `rasterio.shutil.copy` lets through as it is
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetWriter

from dsfer.files import atomic_path, naming

HARDLY_ANY_ROOM = 2**20
"""Bytes free on a disk below which a failed write, for which GDAL gives no reason, lacked room."""


@contextmanager
def new_raster(path: Path, **profile: Any) -> Iterator[DatasetWriter]:
    """Open a raster for writing; it takes its place at `path` once it has been read back whole.

    GDAL writes some blocks only when it closes the file, and says nothing if the disk has no room
    for them.

    Args:
        path: file to write, atomically.
        **profile: driver, size, samples and grid, as of `rasterio.open`.

    Raises:
        OSError: the disk is full or fails.
    """
    with atomic_path(path) as temporary, gdal_writes(path):
        with rasterio.open(temporary, "w", **profile) as dataset:
            yield dataset
        _read_back(temporary)


@contextmanager
def gdal_writes(path: Path) -> Iterator[None]:
    """Let what GDAL raises in the block where a disk refuses a write be the system's own error.

    Raises:
        OSError: the disk of `path` is full or fails; it names the file.
    """
    with naming(path):
        try:
            yield
        except (RasterioError, CPLE_BaseError, RuntimeError) as error:  # the last is pyogrio's
            full = has_hardly_any_room(path.parent)
            if not full and isinstance(error, RuntimeError):
                raise
            reason = errno.ENOSPC if full else errno.EIO
            raise OSError(reason, os.strerror(reason)) from error


def has_hardly_any_room(folder: Path) -> bool:
    """Whether a write that failed, or may have, lacked room."""
    return shutil.disk_usage(folder).free < HARDLY_ANY_ROOM


def check_whole(path: Path) -> None:
    """Read a raster back where its disk is all but full: GDAL may have cut it off without a word.

    Raises:
        RasterioError: a block is missing or cut off.
    """
    if has_hardly_any_room(path.parent):
        _read_back(path)


def _read_back(path: Path) -> None:
    """Decode every block, which fails where one is missing or cut off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a raster need not be
        with rasterio.open(path) as written:
            for band in written.indexes:
                written.checksum(band)
