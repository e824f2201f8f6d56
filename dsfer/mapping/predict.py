"""A pair of rasters becomes a folder of maps."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import geopandas as gpd
import numpy as np
from tqdm import tqdm

from dsfer.detector import Detector, as_detector, shared_pixels
from dsfer.errors import ConfigError, DataError, without_secrets, without_user
from dsfer.files import write_json
from dsfer.mapping.grids import Grid
from dsfer.mapping.pair import RasterPair, Reading, RollingRows
from dsfer.mapping.polygons import (
    draw_polygons,
    mean_probability,
    simplified,
    trace_polygons,
    write_polygons,
)
from dsfer.mapping.preview import COLOUR, write_preview
from dsfer.mapping.raw import RawRaster
from dsfer.mapping.scoring import ERROR_PALETTE, Label, check_fits, score
from dsfer.mapping.work import (
    MAPS,
    PROGRESS,
    Progress,
    local_folder,
    progress_of,
    save_progress,
    work_folder,
)
from dsfer.prediction import ahead, change_probability

P = ParamSpec("P")
R = TypeVar("R")

UNCHANGED, CHANGED, NODATA = 0, 1, 255

BLOCK = 512
"""Rows that are finished at a time."""

SECONDS_BETWEEN_SAVES = 30.0

PACKAGES = ("dsfer", "torch", "rasterio", "geopandas")
"""Whose versions a summary states."""


@dataclass(frozen=True)
class MapOptions:
    """What is made of the probabilities.

    Attributes:
        overlap: share of a window that neighbouring windows have in common, 0 to below 1.
        threshold: probability above which a pixel is changed; `auto` takes the one that training
            chose on the validation split.
        min_area: square metres below which a change is left out.
        fill_holes: square metres below which a hole in a change is closed.
        simplify: pixels by which an outline may move to have fewer corners, counted in their
            shorter side; 0 leaves it as it is.
        geojson: write the polygons as GeoJSON, too.
    """

    overlap: float = 0.5
    threshold: float | Literal["auto"] = 0.5
    min_area: float = 0.0
    fill_holes: float = 0.0
    simplify: float = 0.0
    geojson: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: a threshold or an area that is none.
        """
        if self.threshold != "auto" and not 0 <= self.threshold < 1:
            raise ConfigError(
                f"{self.threshold:g} is no probability", where="threshold", mend="give 0 to below 1"
            )
        for name in ("min_area", "fill_holes", "simplify"):
            if not (value := getattr(self, name)) >= 0:
                raise ConfigError(f"{value:g} is below 0", where=name, mend="give 0 or more")


DEFAULTS = MapOptions()
AS_IT_IS = Reading()


def predict_raster(
    t1: str | Path,
    t2: str | Path,
    detector: Detector | str | Path,
    out: str | Path,
    *,
    reading: Reading = AS_IT_IS,
    options: MapOptions = DEFAULTS,
    label: Label | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Map the changes between two rasters of any size.

    Rows stream from the files through the network to the disk; but for the outlines of the
    changes, memory does not grow with the height of the rasters.

    Args:
        t1: first date: a file, or an address that GDAL reads (`s3://`, `https://`, `/vsi…`).
        t2: second date.
        detector: the network, from `dsfer.load`, or the path of weights.
        out: folder to make on this machine, of `probability.tif` (float32, 0 to 1, NaN where there
            is no data), `change.tif` (uint8, 0 unchanged, 1 changed, 255 no data), `changes.gpkg`,
            `preview.png` and `summary.json`; `changes.geojson` and `errors.tif` where asked for.
            Until all of it is there, the work lies in `.<name>.partial` beside it.
        reading: how the rasters are read; bands that it does not name are those of training.
        options: what is made of the probabilities.
        label: what really changed, to score the map by.
        resume: go on with a run of the same inputs that was cut off; a raster that was replaced
            since is mapped from the start.

    Returns:
        What `summary.json` holds.

    Raises:
        ConfigError: an impossible option, or `out` is no folder of this machine.
        CheckpointError: as `dsfer.load`, or the network says NaN where there is data.
        DataError: the rasters cannot be read or mapped; `out` is there already or is being made.
        OSError: the disk is full or may not be written to.
        GridMismatchError: the grids of the two differ, or that of the label.
        LabelError: the label is not one 8-bit band, or breaks its rule.
    """
    out, detector = local_folder(out), as_detector(detector)
    threshold_from = _threshold_from(options, detector)
    options = replace(options, threshold=detector.threshold(options.threshold))
    with ExitStack() as stack:
        pair = stack.enter_context(RasterPair(str(t1), str(t2), reading, detector.metadata.bands))
        if label is not None:
            check_fits(label, pair)
        work = stack.enter_context(work_folder(out))
        identity = identity_of(t1, t2, detector, reading, options)
        maps = _Maps(pair, detector, work, progress_of(work, identity, resume=resume))
        maps.predict(identity["overlap"])
        maps.finish(options, label)
        summary = maps.summary(options, identity) | {
            "label": label_identity(label),
            "threshold_from": threshold_from,
        }
        write_json(work / MAPS / "summary.json", summary)
    return summary


def second_raster(summary: dict[str, Any]) -> str:
    """How the second raster lies on the first, of maps with this summary, in words."""
    if summary["aligned"]:
        return "resampled onto the first"
    return (
        f"{summary['grid_offset_pixels']:.3g} pixels apart, "
        f"below {summary['grid_tolerance_pixels']:g} is tolerated"
    )


def identity_of(
    t1: str | Path, t2: str | Path, detector: Detector, reading: Reading, options: MapOptions
) -> dict[str, Any]:
    """What the probabilities of a map depend on, as JSON has it; no raster is opened for it.

    Args:
        t1: first date.
        t2: second date.
        detector: the network.
        reading: how the rasters are read.
        options: of which the overlap counts.
    """
    identity = {
        "t1": _identity(t1),
        "t2": _identity(t2),
        # With the record: normalisation and some options of a network are not in its tensors.
        "weights": detector.metadata.record_sha256,
        "overlap": shared_pixels(detector.tile_size, options.overlap),
        "bands": reading.bands or detector.metadata.bands,
        "scale": reading.scale,
        "align": reading.align,
        "tolerance": reading.tolerance,
    }
    stored: dict[str, Any] = json.loads(json.dumps(identity))
    return stored


def computing(detector: Detector) -> dict[str, Any]:
    """What probabilities may differ by a little for: where, how precisely, by which versions."""
    return {
        "device": str(detector.inference.device),
        "precision": detector.inference.precision,
        "versions": {name: version(name) for name in PACKAGES},
    }


def label_identity(label: Label | None) -> list[Any] | None:
    """What the scores of a map depend on beside its probabilities and options."""
    return None if label is None else [*_identity(label.path), label.rule]


def _threshold_from(options: MapOptions, detector: Detector) -> str:
    """Where the threshold comes from, in words."""
    if options.threshold != "auto":
        return "given"
    about = detector.metadata.about
    return (
        f"highest F1 on the validation split of {about.get('dataset')}, "
        f"split {about.get('split_hash')}"
    )


def _identity(path: str | Path) -> list[Any]:
    """What tells an input from another: its place, and of a file its size and time.

    An address with a query, which may be a signature, is kept without it, and with a hash of both.
    """
    file = Path(path)
    if not file.is_file():
        address, shown = without_user(str(path)), without_secrets(str(path))
        if shown == address:
            return [shown]
        return [shown, hashlib.sha256(address.encode()).hexdigest()]
    facts = file.stat()
    return [str(file.resolve()), facts.st_size, facts.st_mtime_ns]


def _facts(grid: Grid, identity: list[Any]) -> dict[str, Any]:
    """What a summary says of an input: its grid, and of a file its bytes and time as well."""
    facts: dict[str, Any] = {
        "cols": grid.cols,
        "rows": grid.rows,
        "crs": grid.crs_name,
        "wkt": grid.crs.to_wkt(),
    }
    if len(identity) == 3:
        _, size, modified = identity
        when = datetime.fromtimestamp(modified // 10**9, UTC)
        facts |= {"bytes": size, "modified": when.isoformat()}
    return facts


class _Maps:
    """The maps of one pair while they are made."""

    def __init__(self, pair: RasterPair, detector: Detector, work: Path, former: Progress):
        self.started, self.former = datetime.now(UTC), former
        self.pair, self.detector, self.work = pair, detector, work
        self.maps = work / MAPS
        self.probability = RawRaster(
            work / "probability.vrt",
            pair.grid,
            "float32",
            nodata=float("nan"),
            keep=former.rows > 0,
        )
        # Its nodata is noted as rows are read, the rest when all probabilities are there.
        self.change = RawRaster(
            work / "change.vrt",
            pair.grid,
            "uint8",
            nodata=NODATA,
            colours={UNCHANGED: (0, 0, 0), CHANGED: COLOUR},
            keep=former.rows > 0,
        )
        self.polygons = gpd.GeoDataFrame()
        self.scores: dict[str, Any] | None = None
        parts = ("reading", "network", "writing", "maps")
        self.seconds = dict.fromkeys(parts, 0.0) | former.seconds
        self.runs = former.runs
        if former.rows < pair.grid.rows:
            self.runs = [*former.runs, {"from_row": former.rows} | computing(detector)]

    def predict(self, overlap: int) -> None:
        """Fill in the probabilities that are missing."""
        done = self.former.rows
        rows = RollingRows(self.pair, self._note_nodata)
        read = self._timed("reading", rows.window)
        network = self._timed("network", self.detector.probabilities)
        strips = change_probability(
            (self.pair.grid.rows, self.pair.grid.cols),
            read,
            network,
            tile_size=self.detector.tile_size,
            overlap=overlap,
            batch_size=self.detector.inference.batch_size,
            from_row=done,
        )
        write = self._timed("writing", self._write)
        saved = time.monotonic()
        bar = tqdm(total=self.pair.grid.rows, initial=done, desc="predict", unit="row")
        with bar, closing(ahead(strips)) as finished:
            for start, strip in finished:
                write(start, strip)
                bar.update(len(strip))
                if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    self._save(start + len(strip))
                    saved = time.monotonic()
        if all((self.change.rows[rows] == NODATA).all() for rows in self._blocks()):
            (self.work / PROGRESS).unlink(missing_ok=True)  # nothing to go on from
            raise DataError(
                "there is no pixel that both rasters have data for",
                where=self.pair.names,
                mend="see the nodata values and masks of both",
            )
        self._save(self.pair.grid.rows)

    def _note_nodata(self, start: int, valid: np.ndarray) -> None:
        self.change.rows[start : start + len(valid)] = np.where(valid, UNCHANGED, NODATA)

    def _write(self, start: int, strip: np.ndarray) -> None:
        stop = start + len(strip)
        missing = self.change.rows[start:stop] == NODATA
        self.detector.check_numbers(
            strip, ~missing, f"{self.pair.names}, rows {start} to {stop - 1}"
        )
        self.probability.rows[start:stop] = np.where(missing, np.float32(np.nan), strip)
        self.probability.release()
        self.change.release()

    def _save(self, rows: int) -> None:
        self.probability.flush()
        self.change.flush()
        started, seconds_in_all = self._first_started(), self._seconds_in_all()
        save_progress(self.work, Progress(rows, started, self.seconds, seconds_in_all, self.runs))

    def _first_started(self) -> str:
        return self.former.started or self.started.isoformat(timespec="seconds")

    def _seconds_in_all(self) -> float:
        return self.former.seconds_in_all + (datetime.now(UTC) - self.started).total_seconds()

    def _timed(self, part: str, function: Callable[P, R]) -> Callable[P, R]:
        """The function, with the seconds that it takes added up."""

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            started = time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.monotonic() - started

        return call

    def finish(self, options: MapOptions, label: Label | None) -> None:
        """Make everything that is made of the probabilities."""
        started, threshold = time.monotonic(), self.detector.threshold(options.threshold)
        for rows in self._blocks():
            probability = self.probability.rows[rows]
            change = (probability > threshold).astype(np.uint8)
            self.change.rows[rows] = np.where(np.isnan(probability), NODATA, change)
        self.change.flush()
        self.polygons = trace_polygons(
            self.change.path,
            self.pair.grid,
            min_area=options.min_area,
            fill_holes=options.fill_holes,
        )
        if options.min_area or options.fill_holes:
            self._redraw()
        if options.fill_holes:
            # A change inside a hole that was closed is now one with what surrounds it.
            self.polygons = trace_polygons(
                self.change.path, self.pair.grid, min_area=0, fill_holes=0
            )
        self._write_rasters(label, options)
        self._write_polygons(options)
        changed = self.polygons["area_m2"].sum()
        area = f"{changed:,.0f} m²" if changed < 1e5 else f"{changed / 1e6:,.4g} km²"
        write_preview(
            self.maps / "preview.png",
            self.pair,
            self.maps / "change.tif",
            title=f"{len(self.polygons):,} changes, {area}",
        )
        self.seconds["maps"] = time.monotonic() - started

    def _blocks(self) -> Iterator[slice]:
        for start in range(0, self.pair.grid.rows, BLOCK):
            yield slice(start, min(start + BLOCK, self.pair.grid.rows))
            self.probability.release()
            self.change.release()

    def _redraw(self) -> None:
        """Let the class raster show what the polygons do."""
        for rows in self._blocks():
            drawn = draw_polygons(self.polygons, self.pair.grid, rows.start, rows.stop)
            missing = self.change.rows[rows] == NODATA
            self.change.rows[rows] = np.where(missing, NODATA, drawn)
        self.change.flush()

    def _write_rasters(self, label: Label | None, options: MapOptions) -> None:
        self.probability.write_cog(self.maps / "probability.tif", average=True)
        self.change.write_cog(self.maps / "change.tif", average=False)
        if label is not None:
            errors = RawRaster(
                self.work / "errors.vrt",
                self.pair.grid,
                "uint8",
                nodata=NODATA,
                colours=ERROR_PALETTE,
            )
            self.scores = score(
                label, self.pair, self.detector, self.probability, self.change, errors,
                threshold=self.detector.threshold(options.threshold),
            )  # fmt: skip
            errors.write_cog(self.maps / "errors.tif", average=False)

    def _write_polygons(self, options: MapOptions) -> None:
        self.polygons["mean_probability"] = mean_probability(
            self.polygons,
            self.pair.grid,
            ((rows.start, self.probability.rows[rows]) for rows in self._blocks()),
        )
        if options.simplify:
            transform = self.pair.grid.transform
            tolerance = options.simplify * min(transform.a, -transform.e)
            self.polygons = simplified(self.polygons, tolerance)
        write_polygons(self.polygons, self.maps / "changes.gpkg")
        if options.geojson:
            write_polygons(self.polygons, self.maps / "changes.geojson")

    def summary(self, options: MapOptions, identity: dict[str, Any]) -> dict[str, Any]:
        """What was done, on what, and what came out."""
        counts = np.zeros(256, np.int64)
        for rows in self._blocks():
            counts += np.bincount(self.change.rows[rows].ravel(), minlength=256)
        pair, metadata = self.pair, self.detector.metadata
        return {
            "identity": identity,
            "t1": str(identity["t1"][0]),
            "t2": str(identity["t2"][0]),
            "inputs": [
                _facts(grid, identity[date])
                for date, grid in zip(("t1", "t2"), pair.grids, strict=True)
            ],
            "grid": str(pair.grid),
            "grid_offset_pixels": pair.offset,
            "grid_tolerance_pixels": identity["tolerance"],
            "aligned": pair.aligned,
            "bands": identity["bands"],
            "scaling": [s and {"low": list(s.low), "high": list(s.high)} for s in pair.scalings],
            "changes": len(self.polygons),
            "changed_area_m2": round(float(self.polygons["area_m2"].sum()), 2),
            "pixels": {
                "unchanged": int(counts[UNCHANGED]),
                "changed": int(counts[CHANGED]),
                "nodata": int(counts[NODATA]),
            },
            "scores": self.scores,
            "options": asdict(options),
            "tile_size": self.detector.tile_size,
            **computing(self.detector),
            "runs": self.runs,
            "weights": {
                "sha256": metadata.sha256,
                "record_sha256": metadata.record_sha256,
                "licence": metadata.licence,
                "model": metadata.model,
                "options": metadata.options,
                **metadata.about,
            },
            "started": self._first_started(),
            "seconds": {part: round(value, 2) for part, value in self.seconds.items()},
            "seconds_in_all": round(self._seconds_in_all(), 2),
        }
