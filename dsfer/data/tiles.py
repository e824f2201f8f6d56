"""What the crop stage writes: tars of tiles, the manifest and the table of scenes."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from dsfer.data.manifest import COLUMNS, IGNORE, write_manifest, write_table
from dsfer.data.rasters import Bands, SceneFacts, inspect_scene
from dsfer.data.scenes import Scene
from dsfer.data.tars import Pixels, check_folder, npy_bytes, write_tar
from dsfer.data.workers import Spread, check_written
from dsfer.errors import DataError
from dsfer.files import atomic_folder, atomic_path, remove_temporary

_PRELOAD = ("scipy.fftpack", "webdataset.writer")
"""What imagehash and `write_tar` import at their first use."""

_LEVELS = np.arange(256)


@dataclass(frozen=True)
class Tile:
    """A tile with its place.

    Attributes:
        place: the columns of its manifest row that say where it comes from.
        t1: date 1, (size, size, 3) RGB uint8.
        t2: date 2, (size, size, 3) RGB uint8.
        label: (size, size) uint8, 0 unchanged, 1 changed, 255 ignore.
        label_values: values of the valid pixels in the label file, ascending.
    """

    place: dict[str, Any]
    t1: Pixels
    t2: Pixels
    label: Pixels
    label_values: list[int]


class Unit(Protocol):
    """A piece of work for one process; becomes one tar."""

    @property
    def count(self) -> int:
        """Number of tiles."""

    def tiles(self) -> Iterator[Tile]:
        """Cut them."""


def unit_size(total: int) -> int:
    """Tiles in a unit of work: 512, or fewer where a small data set would leave cores idle.

    It depends on the data alone, so that the tars are the same for any number of processes.
    """
    return min(512, max(32, -(-total // 16)))


def tile_place(
    facts: SceneFacts, row: int, col: int, size: int, *, split: str | None, transform: Any
) -> dict[str, Any]:
    """Columns of a manifest row that say where a tile lies.

    Args:
        facts: its scene.
        row: first row in the scene.
        col: first column in the scene.
        size: side in pixels.
        split: published split, or None.
        transform: affine transform of the tile, or None.
    """
    return {
        "id": f"{facts.scene.id}_{row:05d}_{col:05d}",
        "scene": facts.scene.id,
        "published_split": split,
        "row": row,
        "col": col,
        "size": size,
        "pad_rows": 0,
        "pad_cols": 0,
        "scene_rows": facts.rows,
        "scene_cols": facts.cols,
        "crs": facts.crs,
        "transform": None if transform is None else list(transform)[:6],
    }


def inspect_scenes(
    scenes: Sequence[Scene], bands: Bands | None, *, spread: Spread
) -> list[SceneFacts]:
    """Check the headers of all scenes before any pixel is read.

    Raises:
        DataError: there is no scene, two share an id, or the files of one do not fit together.
    """
    if not scenes:
        raise DataError("no scene to cut", mend="run the download stage")
    seen: dict[str, Scene] = {}
    for scene in scenes:
        if scene.id in seen:
            raise DataError(
                f"has the same scene id '{scene.id}' as {seen[scene.id].t1}",
                where=scene.t1,
                mend="rename the files of one of the two scenes",
            )
        seen[scene.id] = scene
    work = [(scene, bands) for scene in scenes]
    return list(spread(_inspect, work, chunk=256, preload=_PRELOAD))


def _inspect(work: tuple[Scene, Bands | None]) -> SceneFacts:
    return inspect_scene(*work)


def write_tiles(
    out: Path, units: Sequence[Unit], facts: Sequence[SceneFacts], *, spread: Spread
) -> None:
    """Cut all units and write their tars, `manifest.parquet` and `scenes.parquet`.

    Args:
        out: folder to write; it is replaced as a whole, or left as it was on an error.
        units: the work; tar i holds the tiles of unit i, wherever it is cut.
        facts: the scenes.
        spread: where units are cut; all of it must see `out` and the scenes.

    Raises:
        DataError: a file is damaged, or a label breaks its rule, or a worker does not share `out`.
    """
    rows: list[dict[str, Any]] = []
    with (
        atomic_folder(out) as folder,
        tqdm(total=sum(unit.count for unit in units), desc="crop", unit=" tiles") as bar,
    ):
        work = [(unit, folder / f"tiles-{i:06d}.tar") for i, unit in enumerate(units)]
        for part in spread(_write_unit, work, preload=_PRELOAD):
            rows += part
            bar.update(len(part))
        for _, path in work:
            check_written(path)
        remove_temporary(folder)
        table = pd.DataFrame(rows)
        order = [*COLUMNS, *table.columns.difference(list(COLUMNS))]
        write_manifest(folder / "manifest.parquet", table[order])
        places = pd.DataFrame([scene.row for scene in facts])
        write_table(folder / "scenes.parquet", places)


def _write_unit(work: tuple[Unit, Path]) -> list[dict[str, Any]]:
    """Write the tar of one unit; return its manifest rows."""
    unit, path = work
    rows: list[dict[str, Any]] = []

    def members() -> Iterator[tuple[str, dict[str, bytes | memoryview]]]:
        for tile in unit.tiles():
            content = {name: npy_bytes(getattr(tile, name)) for name in ("t1", "t2", "label")}
            hashes = {f"{k}_sha256": hashlib.sha256(v).hexdigest() for k, v in content.items()}
            rows.append(tile.place | {"shard": path.name} | hashes | _facts(tile))
            yield tile.place["id"], dict(content)

    check_folder(path)
    with atomic_path(path, flush=False) as temporary:
        write_tar(temporary, members())
    return rows


def _facts(tile: Tile) -> dict[str, Any]:
    """Columns of a manifest row that are computed from the pixels."""
    valid = tile.label != IGNORE
    count = int(np.count_nonzero(valid))
    changed = int(np.count_nonzero(tile.label == 1))
    return {
        "valid_pixels": count,
        "changed_pixels": changed,
        "changed_fraction": changed / count if count else 0.0,
        "label_values": tile.label_values,
        **_image_facts("t1", tile.t1, valid, count),
        **_image_facts("t2", tile.t2, valid, count),
    }


def _image_facts(name: str, pixels: Pixels, valid: Any, count: int) -> dict[str, Any]:
    image = Image.fromarray(pixels)
    mask = None if count == valid.size else Image.fromarray(valid)
    # A histogram per band holds all that the sums need, exactly, in one fast pass.
    histogram = np.array(image.histogram(mask)).reshape(3, 256)
    sums, squares = histogram @ _LEVELS, histogram @ _LEVELS**2
    n = 3 * count
    variance = (n * int(squares.sum()) - int(sums.sum()) ** 2) / n**2 if n else 0.0
    return {
        f"{name}_sum": sums.tolist(),
        f"{name}_sum_of_squares": squares.tolist(),
        f"{name}_std": variance**0.5,
        f"{name}_phash": str(imagehash.phash(image)),
    }
