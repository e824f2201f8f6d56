"""A folder of maps as `dsfer predict` leaves it, and what a page has to know of it."""

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rasterio
from rasterio.crs import CRS

from dsfer.data.rasters import GDAL_OPTIONS, Bands, grid_offset, open_raster
from dsfer.errors import DataError, without_secrets
from dsfer.files import read_json
from dsfer.mapping.grids import Grid, grid_of
from dsfer.mapping.scaling import Scaling
from dsfer.paths import gdal_store_options, location

TILE = 256
"""Rows and columns of a tile."""

NEAR = 1e-3
"""Pixels by which a raster may lie elsewhere than it did: by rounding alone."""

SUMMARY, PROBABILITY, OUTLINES, ERRORS = (
    "summary.json",
    "probability.tif",
    "changes.gpkg",
    "errors.tif",
)


@dataclass(frozen=True)
class Date:
    """The raster of one of the two dates.

    Attributes:
        path: where it lies: a file, or an address that GDAL reads.
        bands: three 1-based bands that are R, G, B, or None for the only three there are.
        scaling: the stretch that the network saw it with, None where its bytes are taken as they
            are.
        resampled: whether it lies on another grid than the maps.
        size: columns and rows of the raster that was mapped.
        crs: its coordinate reference system.
        offset: pixels by which it lay apart from the maps, of no meaning where it was resampled.
    """

    path: str
    bands: Bands | None
    scaling: Scaling | None
    resampled: bool
    size: tuple[int, int]
    crs: CRS
    offset: float


class ChangeFolder:
    """A finished folder of maps.

    Attributes:
        path: the folder.
        summary: what its `summary.json` holds.
        grid: pixel grid of the maps, which is that of the first date.
        dates: `before` and `after`.
        scored: whether it holds an error raster.

    Args:
        path: folder that `dsfer predict` wrote.
        t1: where the raster of the first date lies now, if it was moved.
        t2: the same of the second.

    Raises:
        DataError: it is no such folder, or one of its files is damaged.
    """

    def __init__(self, path: Path, t1: str | None = None, t2: str | None = None):
        _check_finished(path)
        self.path = path
        self.summary: dict[str, Any] = read_json(path / SUMMARY)
        with open_raster(path / PROBABILITY) as raster:
            self.grid: Grid = grid_of(raster)
        self.scored = (path / ERRORS).is_file()
        try:
            self.dates = {
                name: _date(self.summary, index, moved)
                for index, (name, moved) in enumerate((("before", t1), ("after", t2)))
            }
            self.threshold = float(self.summary["options"]["threshold"])
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"says nothing of {error}",
                where=path / SUMMARY,
                mend="map the pair again with this version of dsfer",
            ) from error

    @property
    def levels(self) -> int:
        """How many times the whole is halved until one tile holds it."""
        side = max(self.grid.rows, self.grid.cols)
        return max(0, math.ceil(math.log2(side / TILE)))

    def problem(self, name: str) -> str | None:
        """Why the raster of a date cannot be shown, or None.

        Args:
            name: `before` or `after`.
        """
        date = self.dates[name]
        option = "--t1" if name == "before" else "--t2"
        shown = without_secrets(date.path)
        try:
            with (
                rasterio.Env(**GDAL_OPTIONS, **gdal_store_options()),
                open_raster(location(date.path)) as raster,
                open_raster(self.path / PROBABILITY) as maps,
            ):
                same = (raster.width, raster.height) == date.size and raster.crs == date.crs
                if same and not date.resampled:
                    same = abs(grid_offset(maps, raster) - date.offset) < NEAR
        except DataError as error:
            return f"{shown}: {error.problem}. If it was moved, say where with {option}."
        if not same:
            return (
                f"{shown}: not the raster that was mapped: its grid is another. Say with "
                f"{option} where that one lies."
            )
        return None

    def description(self) -> dict[str, Any]:
        """What the page has to know, ready for JSON."""
        grid, summary = self.grid, self.summary
        width, height = grid.pixel_metres
        return {
            "name": self.path.resolve().name,
            "rows": grid.rows,
            "cols": grid.cols,
            "tile": TILE,
            "levels": self.levels,
            "metres": [width, height],
            "transform": list(grid.transform)[:6],
            "crs": grid.crs_name,
            "degrees": bool(grid.crs.is_geographic),
            "dates": {
                name: {"name": Path(without_secrets(date.path)).name, "problem": self.problem(name)}
                for name, date in self.dates.items()
            },
            "threshold": self.threshold,
            "scored": self.scored,
            "scores": (summary.get("scores") or {}).get("map"),
            "changes": summary.get("changes"),
            "changed_area_m2": summary.get("changed_area_m2"),
            "model": (summary.get("weights") or {}).get("model"),
        }


def _check_finished(path: Path) -> None:
    """Refuse what is no finished folder of maps, and say what it is instead."""

    def refused(problem: str, mend: str) -> DataError:
        return DataError(problem, where=path, mend=mend)

    if not path.is_dir():
        work = path.with_name(f".{path.name}.partial")
        if work.is_dir():
            raise refused(
                "these maps are not finished", "wait for `dsfer predict`, or run it with --resume"
            )
        raise refused("no such folder", "give the folder that `dsfer predict --out` wrote")
    lacking = [name for name in (SUMMARY, PROBABILITY, OUTLINES) if not (path / name).is_file()]
    if not lacking:
        return
    inner: list[str] = []
    with suppress(PermissionError):
        inner = sorted(found.parent.name for found in path.glob(f"*/{SUMMARY}"))
    raise refused(
        f"is no finished folder of maps, it lacks {', '.join(lacking)}",
        f"give one of the folders in it, as {path / inner[0]}"
        if inner
        else "give the folder that `dsfer predict --out` wrote",
    )


def _date(summary: dict[str, Any], index: int, moved: str | None) -> Date:
    scaling = summary["scaling"][index]
    bands = summary["bands"]
    mapped = summary["inputs"][index]
    wkt = mapped.get("wkt")  # in summaries from 2026-11-28 on
    return Date(
        path=moved or summary[("t1", "t2")[index]],
        bands=tuple(bands) if bands else None,
        scaling=scaling and Scaling(tuple(scaling["low"]), tuple(scaling["high"])),
        resampled=index == 1 and summary["aligned"],
        size=(mapped["cols"], mapped["rows"]),
        crs=CRS.from_wkt(wkt) if wkt else CRS.from_string(mapped["crs"]),
        offset=summary["grid_offset_pixels"] if index else 0.0,
    )
