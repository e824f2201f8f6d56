"""The manifest: one row per tile, the table that everything downstream reads."""

import hashlib
import io
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from dsfer.errors import DataError, first_line
from dsfer.files import atomic_path
from dsfer.paths import AnyPath, reaching

IGNORE = 255
"""Label value of pixels without evidence (padding, nodata): no loss and no metric counts them."""

SPLITS = ("train", "val", "test")

_AGAIN = "run the stage that writes it again"

COLUMNS = {
    "id": "unique name of the tile: scene id, then row and column of its window in pixels",
    "scene": "id of the scene it was cut from",
    "published_split": "split that the data set's authors put it in, or null",
    "row": "first row of the window in its scene, in pixels",
    "col": "first column of the window in its scene, in pixels",
    "size": "side of the tile in pixels, padding included",
    "pad_rows": "rows at the bottom that lie outside the scene",
    "pad_cols": "columns at the right that lie outside the scene",
    "scene_rows": "height of the scene in pixels",
    "scene_cols": "width of the scene in pixels",
    "shard": "tar of the crop stage that holds the pixels",
    "t1_sha256": "SHA-256 of the .npy member of date 1",
    "t2_sha256": "SHA-256 of the .npy member of date 2",
    "label_sha256": "SHA-256 of the .npy member of the label",
    "valid_pixels": "pixels inside the scene and not nodata",
    "changed_pixels": "valid pixels that changed",
    "changed_fraction": "changed_pixels / valid_pixels, 0 where nothing is valid",
    "label_values": "values of the valid pixels in the label file, before its rule was applied",
    "t1_sum": "sum over valid pixels of each RGB band of date 1",
    "t2_sum": "the same of date 2",
    "t1_sum_of_squares": "sum of squares over valid pixels of each RGB band of date 1",
    "t2_sum_of_squares": "the same of date 2",
    "t1_std": "standard deviation of all valid samples of date 1 (0: a blank tile)",
    "t2_std": "the same of date 2",
    "t1_phash": "64-bit perceptual hash of date 1, 16 hex digits",
    "t2_phash": "the same of date 2",
    "crs": "coordinate reference system of date 1 as WKT, or null",
    "transform": "affine transform of the tile, six numbers as in rasterio, or null",
}
"""Columns written by the crop stage; the split stage adds `split`."""


def write_manifest(path: Path, table: pd.DataFrame) -> None:
    """Write the manifest as Parquet, atomically."""
    write_table(path, table)


def read_manifest(path: AnyPath, sha256: str | None = None) -> pd.DataFrame:
    """Read a manifest.

    Args:
        path: the file.
        sha256: what it must hash to, or None if nobody has said so.

    Raises:
        DataError: the file is missing, damaged, another than the hash says or no Parquet, or lacks
            a column.
        StoreError: it lies in an object store that does not answer, or refuses.
    """
    table = read_table(path, sha256)
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise DataError(f"lacks the columns {', '.join(missing)}", where=path, mend=_AGAIN)
    return table


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet with a checksum in every page, atomically."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False, write_page_checksum=True)


def read_table(path: AnyPath, sha256: str | None = None) -> pd.DataFrame:
    """Read a table that `write_table` wrote, comparing the checksums.

    Args:
        path: the file.
        sha256: what it must hash to, or None if nobody has said so.

    Raises:
        DataError: the file is missing, damaged, another than the hash says or no Parquet.
        StoreError: it lies in an object store that does not answer, or refuses.
    """
    with reaching(path):
        if not path.is_file():
            raise DataError("no such file", where=path, mend=_AGAIN)
        content = path.read_bytes()
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise DataError(f"has SHA-256 {found}, and should have {sha256}", where=path, mend=_AGAIN)
    try:
        # Without threads: those of Arrow's pool live on, and now and then abort a process that
        # ends soon after ("terminate called without an active exception").
        with pq.ParquetFile(
            io.BytesIO(content), pre_buffer=False, page_checksum_verification=True
        ) as file:
            table: pd.DataFrame = file.read(use_threads=False).to_pandas(use_threads=False)
        return table
    except Exception as error:  # pyarrow and pandas raise whatever the damage leads them to
        raise DataError(
            f"not a readable table ({first_line(error)})", where=path, mend=_AGAIN
        ) from error
