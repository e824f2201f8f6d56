"""The three rasters of a scene: what they are, whether they fit together, and their pixels.

Legend: h rows, w columns. Images are RGB uint8, (h, w, 3).
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import Affine
from rasterio.windows import Window

from dsfer.data.labels import decode_label, label_rule
from dsfer.data.manifest import IGNORE
from dsfer.data.scenes import Scene
from dsfer.data.tars import Pixels
from dsfer.errors import DataError, GridMismatchError, LabelError
from dsfer.paths import AnyPath, gdal_store_options, reaching

Bands = tuple[int, int, int]

GDAL_OPTIONS: dict[str, Any] = {
    "GDAL_CACHEMAX": 256_000_000,  # bytes of decoded blocks; the default grows with the machine
    "GDAL_ERROR_ON_LIBJPEG_WARNING": True,  # a truncated JPEG is an error, not a grey area
    # GDAL 3.10 decodes a whole PNG three times as fast as its rows, but then fills what a truncated
    # file lacks with noise, without a word.
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": False,
}

_MEMBERS = ("t1", "t2", "label")
_SEQUENTIAL = frozenset({"PNG", "JPEG", "GIF", "WEBP"})
"""Formats that can only be decoded from the top."""


@dataclass(frozen=True)
class SceneFacts:
    """A scene whose files were found to fit together.

    Attributes:
        scene: the scene.
        rows: height in pixels.
        cols: width in pixels.
        crs: coordinate reference system of date 1 as WKT, or None.
        transform: affine transform of date 1, six numbers, or None.
        sequential: a file can only be decoded from its top.
        row: the scene's row in `scenes.parquet`.
    """

    scene: Scene
    rows: int
    cols: int
    crs: str | None
    transform: tuple[float, ...] | None
    sequential: bool
    row: dict[str, Any]


@dataclass(frozen=True)
class Strip:
    """Full-width rows of a scene.

    Attributes:
        start: first row in the scene.
        t1: date 1, (h, w, 3) RGB uint8.
        t2: date 2, (h, w, 3) RGB uint8.
        label: (h, w) uint8, 0 unchanged, 1 changed, 255 ignore.
        raw: the label as stored, (h, w) uint8.
    """

    start: int
    t1: Pixels
    t2: Pixels
    label: Pixels
    raw: Pixels

    @property
    def stop(self) -> int:
        """The row after the last one."""
        return self.start + len(self.label)

    def from_row(self, row: int) -> "Strip":
        """The part that begins at a row of the scene."""
        return Strip(row, *(part[row - self.start :] for part in self._parts()))

    def extended(self, below: "Strip") -> "Strip":
        """This strip and the one that follows it, as one."""
        pairs = zip(self._parts(), below._parts(), strict=True)
        return Strip(self.start, *(np.concatenate(pair) for pair in pairs))

    def _parts(self) -> tuple[Pixels, Pixels, Pixels, Pixels]:
        return self.t1, self.t2, self.label, self.raw


@contextmanager
def open_raster(path: AnyPath) -> Iterator[DatasetReader]:
    """Open a raster for reading.

    Raises:
        DataError: the file is missing or is none that GDAL reads.
    """
    with warnings.catch_warnings():
        # Imagery without georeferencing is as welcome as any other.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            dataset = rasterio.open(str(path))
        except RasterioError as error:
            with reaching(path):
                exists = path.is_file()
            raise DataError(
                f"cannot be opened as an image ({error})" if exists else "no such file",
                where=path,
                mend="replace the damaged file" if exists else "put the file in place",
            ) from error
    with dataset:
        yield dataset


def inspect_scene(scene: Scene, bands: Bands | None) -> SceneFacts:
    """Check that the files of a scene can be cut into tiles, from their headers alone.

    Args:
        scene: the scene.
        bands: three 1-based bands to take as R, G, B, or None for the only three there are.

    Raises:
        DataError: a file cannot be opened, an image is not 8 bit, or its bands are not three.
        LabelError: the label is not one 8-bit band.
        GridMismatchError: sizes differ.
    """
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(**GDAL_OPTIONS, **gdal_store_options()))
        t1, t2, label = (
            stack.enter_context(open_raster(getattr(scene, name))) for name in _MEMBERS
        )
        for image in (t1, t2):
            _check_bytes(image)
            choose_bands(image, bands)
        check_label(label)
        for other in (t2, label):
            check_size(t1, other)
        row: dict[str, Any] = {"id": scene.id, "rows": t1.height, "cols": t1.width}
        for name, dataset in zip(_MEMBERS, (t1, t2, label), strict=True):
            row |= _facts(name, dataset)
        row |= {"grid_offset": grid_offset(t1, t2), "crs_equal": t1.crs == t2.crs}
        # A label drawn on an image, as a PNG, lies where the image does; so does any on images that
        # have no place themselves.
        placed = has_place(t1) and has_place(label)
        row |= {
            "label_offset": grid_offset(t1, label) if placed else 0.0,
            "label_crs_equal": t1.crs == label.crs if placed else True,
        }
        return SceneFacts(
            scene=scene,
            rows=t1.height,
            cols=t1.width,
            crs=row["t1_crs"],
            transform=row["t1_transform"],
            sequential=any(dataset.driver in _SEQUENTIAL for dataset in (t1, t2, label)),
            row=row,
        )


def _check_bytes(image: DatasetReader) -> None:
    kinds = set(image.dtypes)
    if kinds != {"uint8"}:
        raise DataError(
            f"samples are {', '.join(sorted(kinds))}, not 8-bit unsigned",
            where=image.name,
            mend="scale the image to 0..255, for instance with `gdal_translate -ot Byte -scale`",
        )


def choose_bands(image: DatasetReader, bands: Bands | None) -> Bands:
    """The 1-based bands of an image that are R, G and B.

    Raises:
        DataError: a wanted band is not there, or it is not clear which three of the bands are
            meant.
    """
    if bands is not None:
        if missing := [band for band in bands if not 1 <= band <= image.count]:
            raise DataError(
                f"has {image.count} bands, so no band {missing[0]}",
                where=image.name,
                mend=f"set bands to three numbers from 1 to {image.count}",
            )
        return bands
    alpha = image.count == 4 and image.colorinterp[3] is ColorInterp.alpha
    if image.count != 3 and not alpha:
        example = "1, 1, 1" if image.count < 3 else "3, 2, 1"
        raise DataError(
            f"has {image.count} band{'s' * (image.count != 1)}, not the three of an RGB image",
            where=image.name,
            mend=f"say which bands are R, G and B, for instance bands: [{example}], or to dsfer "
            f"predict --bands {example.replace(' ', '')}",
        )
    return 1, 2, 3


def check_label(label: DatasetReader) -> None:
    """Check that a raster can be a label.

    Raises:
        LabelError: it is not one 8-bit band.
    """
    if label.count != 1:
        raise LabelError(
            f"label has {label.count} bands, not one",
            where=label.name,
            mend="store the label as one 8-bit band",
        )
    if label.dtypes[0] != "uint8":
        raise LabelError(
            f"label samples are {label.dtypes[0]}, not 8-bit unsigned",
            where=label.name,
            mend="store the label as one 8-bit band",
        )


def check_size(first: DatasetReader, other: DatasetReader) -> None:
    """Check that two rasters have as many rows and columns.

    Raises:
        GridMismatchError: they do not.
    """
    if first.shape != other.shape:
        raise GridMismatchError(
            "is {1} x {0} pixels (width x height), but ".format(*other.shape)
            + "{2} is {1} x {0}".format(*first.shape, Path(first.name).name),
            where=other.name,
            mend="resample one onto the grid of the other, for instance with `rio warp --like`",
        )


def _facts(name: str, dataset: DatasetReader) -> dict[str, Any]:
    transform = _transform(dataset)
    return {
        f"{name}_path": dataset.name,
        f"{name}_dtype": dataset.dtypes[0],
        f"{name}_bands": dataset.count,
        f"{name}_crs": dataset.crs.to_wkt() if dataset.crs else None,
        f"{name}_transform": tuple(transform)[:6] if transform else None,
    }


def has_place(dataset: DatasetReader) -> bool:
    """Whether a raster says where on the earth it lies."""
    return dataset.crs is not None and _transform(dataset) is not None


def _transform(dataset: DatasetReader) -> Affine | None:
    """The transform of a raster, or None: rasterio gives the identity where there is none."""
    return None if dataset.transform == Affine.identity() else dataset.transform


def grid_offset(t1: DatasetReader, t2: DatasetReader) -> float:
    """How far the pixel grids of two rasters of one size lie apart, in pixels of the first.

    Returns:
        The largest absolute difference of row or column over the four corners of the raster; 0
        where neither has a transform, infinite where only one has or the first is singular.
    """
    first, second = _transform(t1), _transform(t2)
    if first is None and second is None:
        return 0.0
    if first is None or second is None or first.is_degenerate:
        return float("inf")
    corners = [(col, row) for col in (0, t1.width) for row in (0, t1.height)]
    moved = [~first @ (second @ corner) for corner in corners]
    return float(np.abs(np.subtract(moved, corners)).max())


class SceneReader:
    """The open rasters of a scene; a context manager.

    Args:
        scene: a scene that `inspect_scene` has passed.
        bands: three 1-based bands to take as R, G, B, or None.
        rule: label rule, see `dsfer.data.labels`.
    """

    def __init__(self, scene: Scene, bands: Bands | None, rule: str):
        self._scene, self._rule = scene, rule
        with ExitStack() as stack:
            stack.enter_context(rasterio.Env(**GDAL_OPTIONS, **gdal_store_options()))
            self._t1, self._t2, self._label = (
                stack.enter_context(open_raster(getattr(scene, name))) for name in _MEMBERS
            )
            self._bands = [choose_bands(image, bands) for image in (self._t1, self._t2)]
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def read(self, start: int, stop: int) -> Strip:
        """Read full-width rows; cheapest in ascending order.

        Pixels that `missing_data` names in one of the dates become 255 in the label, and so do
        those that `read_label` names.

        Args:
            start: first row.
            stop: the row after the last one.

        Raises:
            DataError: a file is damaged.
            LabelError: the label holds a value that its rule does not allow.
        """
        window = Window(0, start, self._t1.width, stop - start)
        t1 = read_bands(self._t1, self._bands[0], window)
        t2 = read_bands(self._t2, self._bands[1], window)
        label, raw = read_label(self._label, self._rule, window)
        for image, bands in zip((self._t1, self._t2), self._bands, strict=True):
            if (masked := missing_data(image, bands, window)) is not None:
                label[masked] = IGNORE
        return Strip(start, t1, t2, label, raw)


def read_label(dataset: DatasetReader, rule: str, window: Window) -> tuple[Pixels, Pixels]:
    """A window of a label that `check_label` has passed.

    Args:
        dataset: the open label.
        rule: label rule, see `dsfer.data.labels`.
        window: what to read.

    Returns:
        (h, w) uint8: 0 unchanged, 1 changed, 255 where the label has a nodata value which its rule
        does not use; and the values as stored.

    Raises:
        DataError: the file is damaged there.
        LabelError: it holds a value that the rule does not allow.
        ConfigError: there is no such rule.
    """
    raw: Pixels = read_bands(dataset, (1,), window)[:, :, 0]
    if dataset.nodata is None or dataset.nodata in label_rule(rule).allowed:
        return decode_label(raw, rule, dataset.name), raw
    unknown = raw == dataset.nodata
    label = decode_label(np.where(unknown, np.uint8(0), raw), rule, dataset.name)
    label[unknown] = IGNORE
    return label, raw


def read_bands(
    dataset: DatasetReader,
    bands: Sequence[int],
    window: Window,
    *,
    dtype: npt.DTypeLike = np.uint8,
    shape: tuple[int, int] | None = None,
) -> npt.NDArray[Any]:
    """Bands of a window, (h, w, bands).

    Args:
        dataset: an open raster.
        bands: 1-based numbers.
        window: what to read.
        dtype: of the result; samples are converted, and clipped to what it holds.
        shape: h and w of the result where it is to be smaller than the window.

    Raises:
        DataError: the file is damaged there.
    """
    pixels = np.empty((*(shape or (window.height, window.width)), len(bands)), dtype)
    try:
        # GDAL writes through the transposed view, pixel by pixel: nothing is copied again.
        dataset.read(list(bands), window=window, out=pixels.transpose(2, 0, 1))
    except RasterioError as error:
        raise _damaged(dataset, window, error) from error
    return pixels


def missing_data(
    dataset: DatasetReader,
    bands: Sequence[int],
    window: Window,
    *,
    shape: tuple[int, int] | None = None,
) -> npt.NDArray[np.bool_] | None:
    """Where an image has no data in some of its bands, (h, w), or None where it has everywhere.

    A mask or an alpha band is one for all bands. A nodata value is looked for in `bands` alone: a
    pixel is missing where any of them holds it, as with NaN; in samples of 8 bit, where every value
    is a colour too, only where all of them do. Beside a nodata value alpha does not count, as GDAL
    has it: four bands of 8 bit often name the fourth so that is none.

    Args:
        dataset: an open raster.
        bands: 1-based numbers.
        window: what to read.
        shape: h and w of the result where it is to be smaller than the window.

    Raises:
        DataError: the file is damaged there.
    """
    flags = dataset.mask_flag_enums
    unmasked = all(MaskFlags.all_valid in flags[band - 1] for band in bands)
    try:
        if any(MaskFlags.per_dataset in each for each in flags):
            missing = dataset.dataset_mask(window=window, out_shape=shape) == 0
        elif not unmasked:
            planes = shape and (len(bands), *shape)
            missing = dataset.read_masks(list(bands), window=window, out_shape=planes) == 0
            bytes_ = all(dataset.dtypes[band - 1] == "uint8" for band in bands)
            missing = missing.all(axis=0) if bytes_ else missing.any(axis=0)
        elif ColorInterp.alpha in dataset.colorinterp:
            # GDAL takes alpha for a mask in samples of uint8 and uint16 alone.
            alpha = dataset.colorinterp.index(ColorInterp.alpha) + 1
            missing = dataset.read(alpha, window=window, out_shape=shape) == 0
        else:
            return None
    except RasterioError as error:
        raise _damaged(dataset, window, error) from error
    mask: npt.NDArray[np.bool_] = missing
    return mask


def _damaged(dataset: DatasetReader, window: Window, error: RasterioError) -> DataError:
    first, last = window.row_off, window.row_off + window.height - 1
    return DataError(
        f"damaged between rows {first} and {last} ({error.__cause__ or error})",
        where=dataset.name,
        mend="replace the file",
    )
