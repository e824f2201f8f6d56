"""The leakage audit: tiles of different splits that show the same content or the same ground.

Each audit answers, for every tile of a later split and for each earlier split, "which tile of the
earlier one gives it away most?". That is one row per tile and pair of splits at most, however
often content repeats, so a table of results never outgrows the manifest.

Known limits: a copy that was turned, mirrored or moved by many pixels has another perceptual hash;
ground seen by scenes in two different coordinate reference systems is not compared.
"""

from collections.abc import Iterable, Iterator
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from numpy.typing import ArrayLike
from rasterio.crs import CRS

from dsfer.data.manifest import SPLITS
from dsfer.errors import DataError

HASH_BITS = 128
"""Bits compared by `near_duplicates`: two 64-bit hashes, one per date."""

NEAR_DISTANCE = 12
"""Default of `near_duplicates`. On 96 real LEVIR-CD tiles a copy that went through JPEG, noise or
brighter light differs in at most 4 bits a date, one moved by 2 pixels in at most 6; the nearest
two different tiles differ in 38 of 128 bits, the median two in 64."""

FLAT_STD = 1.0
"""Standard deviation, in grey levels, up to which an image is flat and its hash only noise."""

TOUCH_PIXELS = 0.5
"""Gap, in pixels, up to which two tiles count as touching (grids may be off by a fraction)."""

OVERLAP_SHARE = 0.01
"""Share of a tile's ground above which it overlaps another; below, grids are off by a fraction."""

PAIR = ["id_a", "split_a", "id_b", "split_b"]
_CHUNK = 512


def exact_duplicates(table: pd.DataFrame) -> pd.DataFrame:
    """Tiles whose pixels occur in an earlier split as well, whatever their labels say.

    Args:
        table: the manifest with its column `split`.

    Returns:
        Columns id_a, split_a (the earlier split), id_b, split_b and `kind`: `both dates` where the
        whole pair occurs again, `one date` where only one of its images does, at either date.
        Images without any contrast (blank) are left out.
    """
    return _joined([_repeated(*groups) for groups in _split_pairs(table)], "kind")


def near_duplicates(table: pd.DataFrame, max_distance: int = NEAR_DISTANCE) -> pd.DataFrame:
    """Tiles that look almost the same as one of an earlier split, on both dates.

    Args:
        table: the manifest with its column `split`.
        max_distance: bits of the 128 (two perceptual hashes) in which the two may differ.

    Returns:
        Columns id_a, split_a (the earlier split), id_b, split_b and `distance` in bits, to the
        nearest tile (the first of equals). Tiles that are flat on either date are left out, and
        those of which less than half is valid.

    Raises:
        DataError: a hash is not 16 hex digits.
    """
    contrast = (table["t1_std"] > FLAT_STD) & (table["t2_std"] > FLAT_STD)
    # Hashes see the padding, too: narrow tiles at the borders of scenes are all alike to them.
    filled = 2 * table["valid_pixels"] >= table["size"] ** 2
    pairs = [_nearest(*groups, max_distance) for groups in _split_pairs(table[contrast & filled])]
    return _joined(pairs, "distance")


def adjacent(table: pd.DataFrame) -> pd.DataFrame:
    """Tiles that touch or overlap a tile of an earlier split on the ground.

    Tiles of one scene are compared, and tiles of all scenes with the same coordinate reference
    system. Padding does not count as ground.

    Args:
        table: the manifest with its column `split`, and `angle` where tiles are turned fragments.

    Returns:
        Columns id_a, split_a (the earlier split), id_b, split_b and `shared`: the share of tile
        b's ground that tile a covers, in [0, 1]; 0 means that they only touch. Of several tiles of
        the earlier split the one that covers most is named.
    """
    planes, grids = _grids(table)
    sides = table[["size"]].to_numpy() - table[["pad_cols", "pad_rows"]].to_numpy()
    placed = table[["id", "split"]].assign(
        footprint=_footprints(grids, sides),
        pixel=np.sqrt(np.abs(grids[:, 0] * grids[:, 4] - grids[:, 1] * grids[:, 3])),
    )
    shared_planes = placed.groupby(planes, sort=False)["split"].transform("nunique") > 1
    pairs = [
        _touching(*groups)
        for _, plane in placed[shared_planes].groupby(planes[shared_planes], sort=False)
        for groups in _split_pairs(plane)
    ]
    return _joined(pairs, "shared")


def _split_pairs(table: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """The rows of an earlier and of a later split, for every two splits that have rows."""
    groups = dict(iter(table.groupby("split")))
    present = [groups[split] for split in SPLITS if split in groups]
    return combinations(present, 2)


def _pairs(a: pd.DataFrame, b: pd.DataFrame, last: str, values: ArrayLike) -> pd.DataFrame:
    columns = (a["id"], a["split"], b["id"], b["split"])
    named = {name: column.to_numpy() for name, column in zip(PAIR, columns, strict=True)}
    return pd.DataFrame(named | {last: values})


def _joined(pairs: list[pd.DataFrame], last: str) -> pd.DataFrame:
    filled = [part for part in pairs if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=[*PAIR, last])


def _repeated(earlier: pd.DataFrame, later: pd.DataFrame) -> pd.DataFrame:
    """The tiles of `later` of which both images, or one, occur in `earlier`."""
    images: dict[str, int] = {}
    whole: dict[tuple[str, ...], int] = {}
    for position, members in enumerate(_members(earlier)):
        whole.setdefault(members, position)
        for member in members:
            images.setdefault(member, position)
    a, b, kinds = [], [], []
    for position, members in enumerate(_members(later)):
        owners = [images[member] for member in members if member in images]
        if owners:
            both = len(members) == 2 and members in whole
            a.append(whole[members] if both else min(owners))
            b.append(position)
            kinds.append("both dates" if both else "one date")
    return _pairs(earlier.iloc[a], later.iloc[b], "kind", kinds)


def _members(table: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """Content hashes of the images of each tile, blank ones left out."""
    dates = [(table[f"{date}_sha256"], table[f"{date}_std"]) for date in ("t1", "t2")]
    for row in zip(*(column for pair in dates for column in pair), strict=True):
        yield tuple(digest for digest, std in (row[:2], row[2:]) if std > 0)


def _nearest(earlier: pd.DataFrame, later: pd.DataFrame, max_distance: int) -> pd.DataFrame:
    """The tiles of `later` whose nearest hash in `earlier` is near enough."""
    ours, theirs = _hashes(later), _hashes(earlier)
    best, distance = [], []
    for start in range(0, len(ours), _CHUNK):
        # Bits that differ, b a: one row per tile of `later`; 8 MB per date and 2,048 tiles.
        chunk = ours[start : start + _CHUNK, None, :]
        bits = sum(np.bitwise_count(chunk[..., date] ^ theirs[:, date]) for date in range(2))
        best.append(np.argmin(bits, axis=1))
        distance.append(np.min(bits, axis=1))
    nearest, apart = np.concatenate(best), np.concatenate(distance).astype(int)
    near = np.flatnonzero(apart <= max_distance)
    return _pairs(earlier.iloc[nearest[near]], later.iloc[near], "distance", apart[near])


def _hashes(table: pd.DataFrame) -> npt.NDArray[np.uint64]:
    """Perceptual hashes of both dates, n 2, as 64-bit integers."""
    columns = []
    for name in ("t1_phash", "t2_phash"):
        try:
            columns.append([int(digits, 16) for digits in table[name]])
        except (TypeError, ValueError) as error:
            raise DataError(
                f"column {name} holds something else than 16 hex digits ({error})",
                where="manifest",
                mend="run the crop stage again",
            ) from error
    return np.array(columns, dtype=np.uint64).T


def _grids(table: pd.DataFrame) -> tuple[pd.Series, npt.NDArray[np.float64]]:
    """The plane that each tile lies in, and its affine transform into that plane, n 6.

    Georeferenced tiles lie in the plane of their coordinate reference system, all others in the
    pixel grid of their scene.
    """
    systems = _systems(table["crs"].dropna().unique())
    planes, grids = [], []
    columns = (table[name] for name in ("scene", "crs", "transform"))
    for scene, crs, transform, pixels in zip(*columns, _pixel_grids(table), strict=True):
        placed = isinstance(crs, str) and transform is not None
        planes.append(systems[crs] if placed else f"scene {scene}")
        grids.append(tuple(transform)[:6] if placed else pixels)
    return pd.Series(planes, index=table.index), np.array(grids, dtype=float).reshape(-1, 6)


def _pixel_grids(table: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Affine transforms of tiles into the pixels of their scenes, n 6.

    Where there is a column `angle` (radians), the tile is turned by it about its centre.
    """
    angle = table["angle"].to_numpy() if "angle" in table else np.zeros(len(table))
    cos, sin, half = np.cos(angle), np.sin(angle), table["size"].to_numpy() / 2
    x, y = table["col"].to_numpy() + half, table["row"].to_numpy() + half
    columns = [cos, -sin, x - (cos - sin) * half, sin, cos, y - (cos + sin) * half]
    return np.column_stack(columns)


def _systems(texts: Iterable[str]) -> dict[str, str]:
    """Map each WKT to the first one that means the same coordinate reference system."""
    same: dict[str, str] = {}
    for text in texts:
        system = CRS.from_wkt(text)
        same[text] = next((first for first in same.values() if CRS.from_wkt(first) == system), text)
    return same


def _footprints(
    grids: npt.NDArray[np.float64], sides: npt.NDArray[np.int64]
) -> npt.NDArray[np.object_]:
    """Polygons of the ground that tiles show: corners of w h pixels through their transforms."""
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * sides[:, None, :]  # n 4 2
    a, b, c, d, e, f = (column[:, None] for column in grids.T)
    x, y = corners[..., 0], corners[..., 1]
    polygons: npt.NDArray[np.object_] = shapely.polygons(
        np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)
    )
    return polygons


def _touching(earlier: pd.DataFrame, later: pd.DataFrame) -> pd.DataFrame:
    """The tiles of `later` that lie at or over tiles of `earlier`, with the most covering one."""
    tree = shapely.STRtree(earlier["footprint"].to_numpy())
    theirs, ours = earlier["footprint"].to_numpy(), later["footprint"].to_numpy()
    gap = TOUCH_PIXELS * later["pixel"].to_numpy()
    found = []
    for start in range(0, len(ours), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        b, a = tree.query(ours[chunk], predicate="dwithin", distance=gap[chunk])
        b = b + start
        common = shapely.area(shapely.intersection(theirs[a], ours[b]))
        shared = np.round(common / shapely.area(ours[b]), 4)
        order = np.lexsort((a, -shared, b))
        _, first = np.unique(b[order], return_index=True)
        found.append(np.stack([a, b, shared])[:, order[first]])
    a, b, shared = np.concatenate(found, axis=1)
    return _pairs(earlier.iloc[a.astype(int)], later.iloc[b.astype(int)], "shared", shared)
