import json

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfer.data.manifest import SPLITS
from dsfer.data.splits import (
    largest_remainder,
    split_counts,
    split_hash,
    split_tiles,
    write_split,
)
from dsfer.errors import ConfigError, DataError


def make(scenes, published=None):
    """A manifest of scenes given as (rows, columns) of their grids of tiles."""
    rows = [
        {
            "id": f"s{s:03d}_{row * 8:05d}_{col * 8:05d}",
            "scene": f"s{s:03d}",
            "published_split": published[s] if published else None,
            "row": row * 8,
            "col": col * 8,
            "t1_sha256": f"a{s}-{row}-{col}",
            "t2_sha256": f"b{s}-{row}-{col}",
            "label_sha256": f"c{s}-{row}-{col}",
        }
        for s, (height, width) in enumerate(scenes)
        for row in range(height)
        for col in range(width)
    ]
    return pd.DataFrame(rows)


@given(st.integers(0, 5000), st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_largest_remainder_is_exact_and_near(total, weights):
    if sum(weights) == 0:
        weights[0] = 1
    parts = largest_remainder(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - total * weight / sum(weights)) < 1


def test_whu_random_counts():
    table = split_tiles(make([(60, 127)]), "random", ratio=(6, 1, 3), seed=0)
    assert split_counts(table) == {"train": 4572, "val": 762, "test": 2286}


def test_of_equal_remainders_the_smallest_part_gets_the_tile():
    assert largest_remainder(4, (6, 1, 3)) == [2, 1, 1]


methods = st.sampled_from(["random", "scenes", "spatial"])
grids = st.lists(st.tuples(st.integers(1, 5), st.integers(3, 6)), min_size=3, max_size=7)


@settings(max_examples=40, deadline=None)
@given(grids, methods, st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_split_is_a_reproducible_partition(scenes, method, seed, random):
    manifest = make(scenes)
    try:
        table = split_tiles(manifest, method, ratio=(2, 1, 1), seed=seed)
    except DataError as error:
        assert "without a tile" in str(error)  # a few wide columns may leave a block empty
        return
    assert set(table["split"]) == set(SPLITS)
    assert list(table["id"]) == list(manifest["id"])
    order = random.sample(range(len(manifest)), len(manifest))
    again = split_tiles(manifest.iloc[order], method, ratio=(2, 1, 1), seed=seed)
    assert split_hash(again) == split_hash(table)
    pd.testing.assert_frame_equal(again.sort_index(), table)
    if method == "scenes":
        assert (table.groupby("scene")["split"].nunique() == 1).all()


def test_another_seed_is_another_split():
    manifest = make([(4, 4)] * 6)
    for method in ("random", "scenes"):
        hashes = {
            split_hash(split_tiles(manifest, method, ratio=(6, 1, 3), seed=seed))
            for seed in range(5)
        }
        assert len(hashes) > 1


def test_scenes_are_split_as_near_to_the_ratio_as_they_allow():
    manifest = make([(4, 4)] * 6)
    table = split_tiles(manifest, "scenes", ratio=(7, 1, 2), seed=1)
    assert split_counts(table) == {"train": 64, "val": 16, "test": 16}
    manifest = make([(10, 10), (5, 10), (5, 5), (5, 5)])
    table = split_tiles(manifest, "scenes", ratio=(2, 1, 1), seed=1)
    assert split_counts(table) == {"train": 100, "val": 50, "test": 50}


def test_too_few_scenes():
    with pytest.raises(DataError, match=r"2 scenes cannot fill 3 splits.*add scenes"):
        split_tiles(make([(4, 4)] * 2), "scenes", ratio=(6, 1, 3), seed=0)


def test_spatial_blocks_are_contiguous_columns():
    table = split_tiles(make([(4, 20)]), "spatial", ratio=(6, 1, 3), seed=0)
    assert split_counts(table) == {"train": 48, "val": 8, "test": 24}
    assert (table.groupby("col")["split"].nunique() == 1).all()
    by_column = table.drop_duplicates("col").sort_values("col")["split"]
    assert (by_column != by_column.shift()).sum() == 3


def test_spatial_cuts_validation_out_of_the_published_training_region():
    manifest = make([(4, 14), (4, 6)], published=["train", "test"])
    table = split_tiles(manifest, "spatial", ratio=(6, 1, 3), seed=0)
    assert split_counts(table) == {"train": 48, "val": 8, "test": 24}
    assert (table.loc[table["scene"] == "s001", "split"] == "test").all()
    assert set(table.loc[table["split"] == "val", "col"]) == {12 * 8, 13 * 8}


def test_published():
    manifest = make([(2, 2)] * 3, published=["train", "val", "test"])
    table = split_tiles(manifest, "published", ratio=None, seed=0)
    assert (table["split"] == table["published_split"]).all()


@pytest.mark.parametrize(
    ("published", "message"),
    [
        (["train", None, "test"], "4 of 12 tiles have no published split, first s001_00000_00000"),
        (["train", "extra", "test"], "4 of 12 tiles have no published split"),
        (["train", "train", "test"], "leaves val without a tile"),
    ],
)
def test_published_splits_that_are_not_whole(published, message):
    with pytest.raises(DataError, match=message):
        split_tiles(make([(2, 2)] * 3, published), "published", ratio=None, seed=0)


def test_a_ratio_that_leaves_a_split_empty():
    with pytest.raises(
        DataError, match=r"'random' with the ratio 9:0:1 leaves val and test without"
    ):
        split_tiles(make([(2, 2)]), "random", ratio=(9, 0, 1), seed=0)


@pytest.mark.parametrize("ratio", [None, (1, -1, 1), (0, 0, 0), (float("nan"), 1, 1)])
def test_ratios_that_are_none(ratio):
    with pytest.raises(ConfigError, match="is no ratio of train : val : test"):
        split_tiles(make([(4, 4)]), "random", ratio=ratio, seed=0)


def test_unknown_method():
    with pytest.raises(ConfigError, match="unknown way to split 'temporal'"):
        split_tiles(make([(2, 2)]), "temporal", ratio=(1, 1, 1), seed=0)


def test_tiles_listed_twice():
    manifest = make([(2, 2)])
    with pytest.raises(DataError, match="tile s000_00000_00000 is listed twice"):
        split_tiles(pd.concat([manifest, manifest[:1]]), "random", ratio=(1, 1, 1), seed=0)


def test_the_hash_depends_on_pixels_and_on_assignment():
    table = split_tiles(make([(4, 4)]), "random", ratio=(2, 1, 1), seed=0)
    assert len(split_hash(table)) == 12
    other = table.copy()
    other.loc[3, "t2_sha256"] = "changed"
    assert split_hash(other) != split_hash(table)
    other = table.copy()
    other["split"] = other["split"].map({"train": "val", "val": "train", "test": "test"})
    assert split_hash(other) != split_hash(table)


def test_what_is_written(tmp_path):
    manifest = make([(4, 4)] * 3)
    summary = write_split(
        tmp_path, manifest, "random", policy="mine", ratio=(2.0, 1.0, 1.0), seed=7
    )
    table = pd.read_parquet(tmp_path / "manifest.parquet")
    assert json.loads((tmp_path / "split.json").read_text()) == summary
    assert summary == {
        "hash": split_hash(table),
        "policy": "mine",
        "seed": 7,
        "ratio": [2, 1, 1],
        "counts": {"train": 24, "val": 12, "test": 12},
        "scenes": {"train": 3, "val": 3, "test": 3},
    }
