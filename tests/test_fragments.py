import math

import numpy as np
import pytest
from rasterio.transform import Affine

from dsfer.data import fragments
from dsfer.data.fragments import box_side, cut_fragments
from dsfer.data.manifest import read_manifest
from dsfer.data.scenes import Scene
from dsfer.data.workers import Processes
from dsfer.errors import DataError
from tests.test_crop import GRID, content, pixels_of, write

COUNTS = {"train": 20, "val": 6, "test": 7}
SIZE = 16


def plane(folder, rows, cols, *, name="s", transform=None):
    """A scene whose pixels say where they are: rows in red, columns in green."""
    row, col = np.mgrid[:rows, :cols].astype(np.uint8)
    t1 = np.stack([row, col, row * 0], -1)
    label = ((np.add(*np.mgrid[:rows, :cols]) // 5) % 2 * 255).astype(np.uint8)
    profile = {} if transform is None else {"crs": "EPSG:32633", "transform": transform}
    return Scene(
        name,
        write(folder / f"{name}-1.tif", t1, **profile),
        write(folder / f"{name}-2.tif", 255 - t1, **profile),
        write(folder / f"{name}-l.tif", label, **profile),
    )


def cut(scenes, out, *, counts=COUNTS, seed=1, workers=1, size=SIZE):
    cut_fragments(
        scenes, out, size=size, counts=counts, seed=seed, label_rule="binary255", bands=None,
        spread=Processes(workers),
    )  # fmt: skip
    return read_manifest(out / "manifest.parquet")


def test_counts_are_exact_and_splits_share_no_ground(tmp_path):
    scenes = [plane(tmp_path, 60, 200), plane(tmp_path, 180, 70, name="tall")]
    table = cut(scenes, tmp_path / "out")
    assert table["published_split"].value_counts().to_dict() == COUNTS
    assert table["id"].is_unique
    assert set(table["scene"]) == {"s", "tall"}
    box, margin = box_side(SIZE), (box_side(SIZE) - SIZE) // 2
    for name, axis, length in (("s", "col", 200), ("tall", "row", 180)):
        seen = np.full((3, length), False)
        part = table[table["scene"] == name]
        for place, split in zip(part[axis] - margin, part["published_split"], strict=True):
            assert 0 <= place <= length - box
            seen[list(COUNTS).index(split), place : place + box] = True
        assert seen.sum(0).max() == 1


def test_both_dates_and_the_label_share_one_geometry(tmp_path):
    table = cut([plane(tmp_path, 90, 200, transform=GRID)], tmp_path / "out")
    for row in table.to_dict("records"):
        t1, t2, label = pixels_of(tmp_path / "out", row)
        # Where the transform in the manifest says the pixels come from.
        col, line = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5)
        x, y = ~GRID @ Affine(*row["transform"]) @ (col, line)
        np.testing.assert_allclose(t1[..., 0], y - 0.5, atol=1)
        np.testing.assert_allclose(t1[..., 1], x - 0.5, atol=1)
        np.testing.assert_allclose(t2.astype(int), 255 - t1.astype(int), atol=1)
        nearest = (np.floor(y) + np.floor(x)) // 5 % 2
        assert (label != nearest).mean() < 0.01  # a pixel centre on an edge may fall either way
        assert set(np.unique(label)) <= {0, 1}
        centre = Affine(*row["transform"]) @ (SIZE / 2, SIZE / 2)
        assert centre == pytest.approx(GRID @ (row["col"] + SIZE / 2, row["row"] + SIZE / 2))
        assert (~GRID @ Affine(*row["transform"])).rotation_angle == pytest.approx(
            (math.degrees(row["angle"]) + 180) % 360 - 180
        )
    assert table["angle"].between(0, 2 * math.pi).all()
    assert table["angle"].nunique() == len(table)


def test_deterministic_for_any_number_of_workers_and_unit_order(tmp_path, monkeypatch):
    monkeypatch.setattr(fragments, "unit_size", lambda total: 9)
    scenes = [plane(tmp_path, 90, 200), plane(tmp_path, 80, 120, name="b")]
    cut(scenes, tmp_path / "one")
    cut(scenes, tmp_path / "two", workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    other = cut(scenes, tmp_path / "other", seed=2)
    assert set(other["id"]) != set(read_manifest(tmp_path / "one" / "manifest.parquet")["id"])


def test_reading_in_strips_changes_no_pixel(tmp_path, monkeypatch):
    scenes = [plane(tmp_path, 200, 90)]
    cut(scenes, tmp_path / "whole")
    monkeypatch.setattr(fragments, "_ROWS_AT_ONCE", 1)
    cut(scenes, tmp_path / "strips")
    assert content(tmp_path / "whole") == content(tmp_path / "strips")


def test_nodata_is_ignored_with_the_pixels_it_was_mixed_into(tmp_path):
    pair = plane(tmp_path, 90, 200)
    image = np.full((90, 200, 3), 200, np.uint8)
    image[::9] = 0
    pair = Scene("s", write(tmp_path / "hole.tif", image, nodata=0), pair.t2, pair.label)
    for row in cut([pair], tmp_path / "out").to_dict("records"):
        t1, _, label = pixels_of(tmp_path / "out", row)
        assert (label[(t1 < 199).any(-1)] == 255).all()
        assert 0 < row["valid_pixels"] < SIZE * SIZE


def test_nodata_of_the_label_is_no_value_of_it(tmp_path):
    pair = plane(tmp_path, 90, 200)
    label = np.zeros((90, 200), np.uint8)
    label[::3], label[1::9] = 255, 77
    pair = Scene("s", pair.t1, pair.t2, write(tmp_path / "unknown.tif", label, nodata=77))
    for row in cut([pair], tmp_path / "out").to_dict("records"):
        assert set(row["label_values"]) <= {0, 255}
        assert row["valid_pixels"] < SIZE * SIZE


def test_the_extreme_sample_stays_inside_the_box():
    for size in (16, 64, 256):
        reach = (size - 1) / 2 * math.sqrt(2) + 1
        assert reach <= box_side(size) / 2
    assert box_side(256) == 364


def test_scenes_too_small_for_what_is_asked(tmp_path):
    box = box_side(SIZE)
    with pytest.raises(DataError, match=r"s-1\.tif: is 60 x 60 pixels, too small for 3 separate"):
        cut([plane(tmp_path, 60, 60)], tmp_path / "out")
    with pytest.raises(DataError, match=r"has 1 places for 20 fragments of the split 'train'"):
        cut([plane(tmp_path, box, 3 * box)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_split_that_is_not_asked_for_takes_no_ground(tmp_path):
    table = cut([plane(tmp_path, 60, 60)], tmp_path / "out", counts={"train": 5, "test": 5})
    assert table["published_split"].value_counts().to_dict() == {"train": 5, "test": 5}
