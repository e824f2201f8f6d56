"""A scene: one co-registered pair with its label, at full size."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dsfer.data.manifest import SPLITS
from dsfer.errors import DataError
from dsfer.files import read_json, write_bytes
from dsfer.paths import AnyPath, location


@dataclass(frozen=True)
class Scene:
    """One pair of images of the same ground at two dates, and the label of what changed.

    Attributes:
        id: unique in its data set; letters, digits, `_` and `-` only (it becomes part of file and
            tile names).
        t1: image before, any raster that GDAL reads.
        t2: image after, on the same grid.
        label: change label, one band, on the same grid; its values follow the data set's rule.
        split: the published split (`train`, `val`, `test`), or None where none is published.
    """

    id: str
    t1: AnyPath
    t2: AnyPath
    label: AnyPath
    split: str | None = None


def write_scenes(path: Path, scenes: Sequence[Scene]) -> None:
    """Write the list of scenes as JSON; paths below the file's folder are stored relative to it."""
    folder = path.parent.resolve()

    def stored(file: AnyPath) -> str:
        if not isinstance(file, Path):
            return str(file)
        absolute = file.resolve()
        inside = absolute.is_relative_to(folder)
        return str(absolute.relative_to(folder) if inside else absolute)

    rows = [
        asdict(scene) | {name: stored(getattr(scene, name)) for name in ("t1", "t2", "label")}
        for scene in scenes
    ]
    write_bytes(path, (json.dumps(rows, indent=1) + "\n").encode())


def read_scenes(path: Path) -> list[Scene]:
    """Read what `write_scenes` wrote, with paths made usable from the current folder.

    Raises:
        DataError: the list is missing, damaged or empty.
    """
    rows = read_json(path)

    def place(stored: str) -> AnyPath:
        return location(stored) if "://" in stored else path.parent / stored

    try:
        scenes = [
            Scene(
                id=row["id"],
                t1=place(row["t1"]),
                t2=place(row["t2"]),
                label=place(row["label"]),
                split=row["split"],
            )
            for row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"not a list of scenes ({error!r})", where=path, mend="run the download stage again"
        ) from error
    if not scenes:
        raise DataError("lists no scene", where=path, mend="run the download stage again")
    for scene in scenes:
        if not re.fullmatch("[A-Za-z0-9_-]+", str(scene.id)) or scene.split not in (*SPLITS, None):
            raise DataError(
                f"no scene has the id {scene.id!r} and the split {scene.split!r}",
                where=path,
                mend="run the download stage again",
            )
    return scenes
