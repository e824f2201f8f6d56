"""The leakage audit against brute force, and against cases made by hand."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from dsfer.data import leakage
from dsfer.data.manifest import SPLITS
from dsfer.errors import DataError

NZTM, UTM = CRS.from_epsg(2193).to_wkt(), CRS.from_epsg(32615).to_wkt()


def tile(name: str, split: str, **columns: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": name, "scene": "s", "split": split,
        "row": 0, "col": 0, "size": 8, "pad_rows": 0, "pad_cols": 0, "valid_pixels": 64,
        "t1_sha256": f"{name}-1", "t2_sha256": f"{name}-2", "t1_std": 30.0, "t2_std": 30.0,
        "t1_phash": "0" * 16, "t2_phash": "0" * 16, "crs": None, "transform": None,
    }  # fmt: skip
    return row | columns


def georeferenced(
    east: float, north: float, crs: str = NZTM, metres: float = 0.5
) -> dict[str, Any]:
    return {"crs": crs, "transform": [metres, 0.0, east, 0.0, -metres, north]}


def as_rows(result: pd.DataFrame) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in result.itertuples(index=False)]


splits = st.sampled_from(SPLITS)


# Brute force: for every two splits and every tile of the later one, the best partner by a loop.


def brute_force(table: pd.DataFrame, score: Any) -> dict[tuple[str, str], tuple[str, Any]]:
    """The partner with the least score for each tile and earlier split; score None is no pair."""
    found = {}
    rows = table.to_dict("records")
    for a_split, b_split in combinations(SPLITS, 2):
        for b in (row for row in rows if row["split"] == b_split):
            scored = [(score(a, b), a["id"]) for a in rows if a["split"] == a_split]
            known = [
                (value, at, name) for at, (value, name) in enumerate(scored) if value is not None
            ]
            if known:
                value, _, name = min(known)
                found[a_split, b["id"]] = (name, value)
    return found


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            splits, *[st.integers(0, 2**64 - 1)] * 2, *[st.sampled_from([0.0, 0.9, 25.0])] * 2
        ),
        max_size=12,
    ),
    st.integers(0, 128),
)
def test_near_duplicates_equal_brute_force(rows: list[Any], limit: int) -> None:
    table = pd.DataFrame(
        [
            tile(
                f"n{at}", split, t1_phash=f"{h1:016x}", t2_phash=f"{h2:016x}", t1_std=s1, t2_std=s2
            )
            for at, (split, h1, h2, s1, s2) in enumerate(rows)
        ]
        or [tile("only", "train")]
    )

    def distance(a: Any, b: Any) -> int | None:
        if min(a["t1_std"], a["t2_std"], b["t1_std"], b["t2_std"]) <= leakage.FLAT_STD:
            return None
        bits = sum(
            bin(int(a[name], 16) ^ int(b[name], 16)).count("1") for name in ("t1_phash", "t2_phash")
        )
        return bits if bits <= limit else None

    found = as_rows(leakage.near_duplicates(table, limit))
    assert {(row[1], row[2]): (row[0], row[4]) for row in found} == brute_force(table, distance)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(splits, st.integers(0, 20), st.integers(0, 20)), max_size=14))
def test_adjacent_equals_brute_force(rows: list[Any]) -> None:
    table = pd.DataFrame(
        [tile(f"n{at}", split, row=row, col=col) for at, (split, row, col) in enumerate(rows)]
        or [tile("only", "train")]
    )

    def uncovered(a: Any, b: Any) -> float | None:
        rows, cols = (8 - abs(a[side] - b[side]) for side in ("row", "col"))
        return -round(rows * cols / 64, 4) + 0.0 if rows >= 0 and cols >= 0 else None

    found = as_rows(leakage.adjacent(table))
    assert {(row[1], row[2]): (row[0], -row[4]) for row in found} == brute_force(table, uncovered)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(splits, st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_exact_duplicates_equal_brute_force(rows: list[Any]) -> None:
    """Image 0 is blank, so it never counts."""
    table = pd.DataFrame(
        [
            tile(
                f"n{at}", split,
                t1_sha256=str(t1), t2_sha256=str(t2), t1_std=float(t1 > 0), t2_std=float(t2 > 0),
            )
            for at, (split, t1, t2) in enumerate(rows)
        ]
        or [tile("only", "train")]
    )  # fmt: skip

    def kind(a: Any, b: Any) -> int | None:
        images = [{row["t1_sha256"], row["t2_sha256"]} - {"0"} for row in (a, b)]
        if (a["t1_sha256"], a["t2_sha256"]) == (b["t1_sha256"], b["t2_sha256"]) and "0" not in (
            a["t1_sha256"],
            a["t2_sha256"],
        ):
            return 0
        return 1 if images[0] & images[1] else None

    found = as_rows(leakage.exact_duplicates(table))
    kinds = {"both dates": 0, "one date": 1}
    assert {(row[1], row[2]): (row[0], kinds[row[4]]) for row in found} == brute_force(table, kind)


def test_a_copy_under_another_label_is_found() -> None:
    copy = {"t1_sha256": "x", "t2_sha256": "y"}
    table = pd.DataFrame(
        [
            tile("a", "train", label_sha256="empty", **copy),
            tile("b", "train", label_sha256="other", **copy),
            tile("c", "test", label_sha256="full", **copy),
        ]
    )
    assert as_rows(leakage.exact_duplicates(table)) == [("a", "train", "c", "test", "both dates")]


@pytest.mark.parametrize(("valid", "expected"), [(31, []), (32, ["c"]), (64, ["c"])])
def test_tiles_that_are_mostly_padding_are_not_called_alike(
    valid: int, expected: list[str]
) -> None:
    table = pd.DataFrame(
        [
            tile("a", "train", valid_pixels=31),
            tile("b", "train", valid_pixels=64),
            tile("c", "test", valid_pixels=valid),
        ]
    )
    found = leakage.near_duplicates(table)
    assert list(found["id_b"]) == expected
    assert "a" not in list(found["id_a"])


def test_an_image_that_returns_at_the_other_date_is_found() -> None:
    table = pd.DataFrame([tile("a", "train", t2_sha256="x"), tile("b", "val", t1_sha256="x")])
    assert as_rows(leakage.exact_duplicates(table)) == [("a", "train", "b", "val", "one date")]


def test_copies_inside_one_split_are_no_leak() -> None:
    table = pd.DataFrame([tile(name, "test", t1_sha256="x", t2_sha256="y") for name in "ab"])
    for audit in (leakage.exact_duplicates, leakage.near_duplicates, leakage.adjacent):
        result = audit(table)
        assert result.empty
        assert list(result.columns[:4]) == leakage.PAIR


def test_tiles_of_other_scenes_without_georeference_are_never_adjacent() -> None:
    table = pd.DataFrame([tile("a", "train"), tile("b", "test", scene="other")])
    assert leakage.adjacent(table).empty


def test_padding_is_no_ground() -> None:
    near = [tile("a", "train", pad_cols=2), tile("b", "test", col=8)]
    assert leakage.adjacent(pd.DataFrame(near)).empty


@pytest.mark.parametrize(
    ("east", "crs", "expected"),
    [
        (4.0, NZTM, 0.0),  # edge to edge
        (4.2, NZTM, 0.0),  # grids apart by less than half a pixel of 0.5 m
        (4.3, NZTM, None),
        (3.0, NZTM, 0.25),
        (0.0, UTM, None),  # same numbers, other system
    ],
)
def test_scenes_on_the_same_ground(east: float, crs: str, expected: float | None) -> None:
    table = pd.DataFrame(
        [
            tile("a", "train", scene="west", **georeferenced(1_700_000.1, 5_400_000.7)),
            tile("b", "test", scene="east", **georeferenced(1_700_000.1 + east, 5_400_000.7, crs)),
        ]
    )
    found = as_rows(leakage.adjacent(table))
    assert found == ([] if expected is None else [("a", "train", "b", "test", expected)])


def test_one_system_written_in_two_ways_is_one_plane() -> None:
    other = CRS.from_epsg(2193).to_wkt(version="WKT2_2019")
    assert other != NZTM
    table = pd.DataFrame(
        [
            tile("a", "train", **georeferenced(0.0, 0.0)),
            tile("b", "test", scene="t", **georeferenced(2.0, 0.0, other)),
        ]
    )
    assert as_rows(leakage.adjacent(table)) == [("a", "train", "b", "test", 0.5)]


def test_a_turned_grid_keeps_its_footprint() -> None:
    """A diamond whose corner reaches the square: their bounding boxes overlap far more."""
    half = 8 / np.sqrt(2)
    turned = [np.sqrt(0.5), -np.sqrt(0.5), 8.0 + half, np.sqrt(0.5), np.sqrt(0.5), 4.0 - half]
    table = pd.DataFrame(
        [
            tile("square", "train", crs=NZTM, transform=[1.0, 0, 0, 0, 1.0, 0]),
            tile("diamond", "test", scene="t", crs=NZTM, transform=turned),
        ]
    )
    assert as_rows(leakage.adjacent(table)) == [("square", "train", "diamond", "test", 0.0)]


def test_a_turned_fragment_keeps_its_footprint() -> None:
    """Turned by an eighth about its centre, a tile 1 pixel away reaches over, not by a quarter."""
    for angle, reaches in ((0.0, False), (np.pi / 4, True), (np.pi / 2, False)):
        table = pd.DataFrame([tile("a", "train", angle=0.0), tile("b", "test", col=9, angle=angle)])
        assert bool(len(leakage.adjacent(table))) == reaches


def test_results_grow_with_tiles_not_with_pairs() -> None:
    alike = [
        tile(f"{split}{at}", split, t1_sha256="x", t2_sha256="y")
        for split in ("train", "test")
        for at in range(100)
    ]
    for audit in (leakage.exact_duplicates, leakage.near_duplicates, leakage.adjacent):
        result = audit(pd.DataFrame(alike))
        assert len(result) == 100
        assert set(result["id_a"]) == {"train0"}


def test_a_hash_that_is_none_is_refused() -> None:
    table = pd.DataFrame([tile("a", "train", t2_phash="zz"), tile("b", "test")])
    with pytest.raises(DataError, match=r"t2_phash.*zz"):
        leakage.near_duplicates(table)
