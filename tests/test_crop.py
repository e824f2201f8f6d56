import io
import tarfile
import warnings

import imagehash
import numpy as np
import pandas as pd
import pytest
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

from dsfer.data import crop, tiles
from dsfer.data.crop import crop_scenes
from dsfer.data.manifest import COLUMNS, read_manifest
from dsfer.data.scenes import Scene
from dsfer.data.tars import tar_members
from dsfer.data.workers import Processes
from dsfer.errors import ConfigError, DataError, GridMismatchError, LabelError

GRID = Affine(0.5, 0, 1000, 0, -0.5, 2000)


def write(path, pixels, **profile):
    """Write (h, w) or (h, w, bands) pixels in the format of the suffix."""
    pixels = np.atleast_3d(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = dict(zip(("height", "width", "count"), pixels.shape, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", dtype=pixels.dtype, **shape, **profile) as dataset:
            dataset.write(pixels.transpose(2, 0, 1))
    return path


def made_up(rows, cols, seed=0):
    rng = np.random.default_rng(seed)
    t1, t2 = rng.integers(1, 256, (2, rows, cols, 3), dtype=np.uint8)
    return t1, t2, rng.integers(0, 2, (rows, cols), dtype=np.uint8) * np.uint8(255)


def scene(folder, rows, cols, *, name="s", seed=0, suffix=".png", split=None, **profile):
    t1, t2, label = made_up(rows, cols, seed)
    return Scene(
        id=name,
        t1=write(folder / "A" / (name + suffix), t1, **profile),
        t2=write(folder / "B" / (name + suffix), t2, **profile),
        label=write(folder / "label" / (name + suffix), label, **profile),
        split=split,
    )


def cut(scenes, out, *, size=16, padding="pad", rule="binary255", bands=None, workers=1):
    crop_scenes(
        scenes,
        out,
        tile_size=size,
        padding=padding,
        label_rule=rule,
        bands=bands,
        spread=Processes(workers),
    )
    return read_manifest(out / "manifest.parquet")


def pixels_of(out, row):
    """t1, t2 and label of a manifest row."""
    path = out / row["shard"]
    with tarfile.open(path) as tar:
        return [
            np.load(io.BytesIO(tar.extractfile(f"{row['id']}.{name}.npy").read()))
            for name in ("t1", "t2", "label")
        ]


def content(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_tiles_put_together_are_the_scene(tmp_path):
    table = cut([scene(tmp_path, 40, 50, split="val")], tmp_path / "out")
    t1, t2, label = made_up(40, 50)
    seen = [np.zeros((48, 64, 3), np.uint8), np.zeros((48, 64, 3), np.uint8)]
    seen.append(np.full((48, 64), 7, np.uint8))
    for row in table.to_dict("records"):
        place = slice(row["row"], row["row"] + 16), slice(row["col"], row["col"] + 16)
        for image, tile in zip(seen, pixels_of(tmp_path / "out", row), strict=True):
            image[place] = tile
    np.testing.assert_array_equal(seen[0][:40, :50], t1)
    np.testing.assert_array_equal(seen[1][:40, :50], t2)
    np.testing.assert_array_equal(seen[2][:40, :50], label // 255)
    assert not seen[0][40:].any()
    assert not seen[1][:, 50:].any()
    assert (seen[2][40:] == 255).all()
    assert (seen[2][:, 50:] == 255).all()
    assert list(table["id"]) == [f"s_{r:05d}_{c:05d}" for r in (0, 16, 32) for c in (0, 16, 32, 48)]
    assert set(table["published_split"]) == {"val"}
    assert list(table["pad_rows"])[-4:] == [8] * 4
    assert list(table["pad_cols"])[:4] == [0, 0, 0, 14]


def test_windows_that_do_not_fit_are_left_out(tmp_path):
    table = cut([scene(tmp_path, 40, 50)], tmp_path / "out", padding="drop")
    assert len(table) == 6
    assert not table[["pad_rows", "pad_cols"]].to_numpy().any()


def test_facts_of_the_manifest(tmp_path):
    table = cut([scene(tmp_path, 24, 24)], tmp_path / "out")
    assert list(table.columns) == list(COLUMNS)
    for row in table.to_dict("records"):
        t1, t2, label = pixels_of(tmp_path / "out", row)
        valid = label != 255
        assert row["valid_pixels"] == valid.sum()
        assert row["changed_pixels"] == (label == 1).sum()
        assert row["changed_fraction"] == (label == 1).sum() / valid.sum()
        assert set(row["label_values"]) == {0, 255}
        for name, image in (("t1", t1), ("t2", t2)):
            samples = image[valid].astype(np.int64)
            assert list(row[f"{name}_sum"]) == samples.sum(0).tolist()
            assert list(row[f"{name}_sum_of_squares"]) == (samples**2).sum(0).tolist()
            assert row[f"{name}_std"] == pytest.approx(samples.std())
            assert row[f"{name}_phash"] == str(imagehash.phash(Image.fromarray(image)))


def test_georeferencing_is_kept(tmp_path):
    first = scene(tmp_path, 32, 40, suffix=".tif", crs="EPSG:32633", transform=GRID)
    t1, _, label = made_up(32, 40)
    shifted = write(
        tmp_path / "C" / "s.tif", t1, crs="EPSG:32634",
        transform=GRID @ Affine.translation(0.25, -0.5),
    )  # fmt: skip
    plain = write(tmp_path / "label.png", label)
    table = cut([first, Scene("shifted", first.t1, shifted, plain)], tmp_path / "out")
    row = table[table["id"] == "s_00016_00032"].iloc[0]
    assert list(row["transform"]) == [0.5, 0, 1016, 0, -0.5, 1992]
    assert rasterio.CRS.from_wkt(row["crs"]) == rasterio.CRS.from_epsg(32633)
    scenes = pd.read_parquet(tmp_path / "out" / "scenes.parquet")
    assert list(scenes["id"]) == ["s", "shifted"]
    assert list(scenes["grid_offset"]) == [0, 0.5]
    assert list(scenes["crs_equal"]) == [True, False]
    assert list(scenes["t1_transform"][0]) == list(GRID)[:6]
    assert pd.isna(scenes["label_crs"][1])
    assert scenes["label_transform"][1] is None
    assert scenes["t2_path"][1] == str(shifted)
    assert list(scenes["rows"]) == [32, 32]
    assert set(scenes["t1_dtype"]) == {"uint8"}
    assert set(scenes["t1_bands"]) == {3}


def test_the_place_of_a_label_is_noted_where_it_and_its_images_have_one(tmp_path):
    placed = scene(tmp_path, 16, 16, suffix=".tif", crs="EPSG:32633", transform=GRID)
    plain = scene(tmp_path, 16, 16, name="plain")
    label = made_up(16, 16)[2]
    labels = {
        "here": placed.label,
        "none": plain.label,
        "moved": write(
            tmp_path / "moved.tif", label, crs="EPSG:32633",
            transform=GRID @ Affine.translation(0, 3),
        ),
        "other": write(tmp_path / "other.tif", label, crs="EPSG:32634", transform=GRID),
    }  # fmt: skip
    scenes = [Scene(name, placed.t1, placed.t2, path) for name, path in labels.items()]
    scenes.append(Scene("plain", plain.t1, plain.t2, placed.label))
    cut(scenes, tmp_path / "out")
    table = pd.read_parquet(tmp_path / "out" / "scenes.parquet").set_index("id")
    assert table["label_offset"].to_dict() == {
        "here": 0, "none": 0, "moved": 3, "other": 0, "plain": 0,
    }  # fmt: skip
    assert table["label_crs_equal"].to_dict() == {
        "here": True, "none": True, "moved": True, "other": False, "plain": True,
    }  # fmt: skip


def test_without_georeferencing_there_is_none(tmp_path):
    georeferenced = scene(tmp_path, 16, 16, suffix=".tif", crs="EPSG:32633", transform=GRID)
    plain = scene(tmp_path, 16, 16, name="plain")
    mixed = Scene("mixed", georeferenced.t1, plain.t2, plain.label)
    table = cut([plain, mixed], tmp_path / "out")
    assert table["crs"].isna().tolist() == [True, False]
    assert table["transform"][0] is None
    scenes = pd.read_parquet(tmp_path / "out" / "scenes.parquet")
    assert list(scenes["grid_offset"]) == [0, float("inf")]


def test_same_bytes_for_any_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "unit_size", lambda total: 6)
    monkeypatch.setattr(crop, "unit_size", lambda total: 6)
    scenes = [
        scene(tmp_path, 40, 50, name="large", suffix=".tif", compress="lzw"),
        *(scene(tmp_path, 20, 20, name=f"small{i}", seed=i) for i in range(3)),
    ]
    cut(scenes, tmp_path / "one")
    cut(scenes, tmp_path / "two", workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    tars = [name for name in content(tmp_path / "one") if name.endswith(".tar")]
    counts = [len(tar_members(tmp_path / "one" / name)) // 3 for name in tars]
    assert counts == [4, 4, 4, 4, 4, 4]


def test_small_scenes_share_a_tar_and_a_png_is_not_divided(tmp_path):
    facts = tiles.inspect_scenes(
        [scene(tmp_path, 160, 160), *(scene(tmp_path, 16, 16, name=f"t{i}") for i in range(40))],
        None,
        spread=Processes(1),
    )
    shapes = [(10, 10), *[(1, 1)] * 40]
    counts = [[piece.count for piece in unit] for unit in crop._plan(facts, shapes)]
    assert counts == [[100], [1] * 32, [1] * 8]


def test_nodata_and_masks_of_either_date_are_ignored(tmp_path):
    t1, t2, label = made_up(16, 16)
    t1[:4] = 0
    t1[10, 10, 0] = 0  # one dark band is no hole
    alpha = np.full((16, 16, 1), 255, np.uint8)
    alpha[:, 12:] = 0
    pair = Scene(
        "s",
        write(tmp_path / "t1.tif", t1, nodata=0),
        write(tmp_path / "t2.png", np.concatenate([t2, alpha], 2)),
        write(tmp_path / "label.png", label),
    )
    table = cut([pair], tmp_path / "out")
    seen = pixels_of(tmp_path / "out", table.iloc[0])
    expected = label // 255
    expected[:4] = 255
    expected[:, 12:] = 255
    np.testing.assert_array_equal(seen[2], expected)
    np.testing.assert_array_equal(seen[1], t2)
    assert table["valid_pixels"][0] == 12 * 12


def test_nodata_of_bands_that_are_not_taken_is_none(tmp_path):
    t1, t2, label = made_up(16, 16)
    infrared = np.full((16, 16, 1), 9, np.uint8)
    t1[:4], infrared[8:12] = 0, 0  # no data in colour; black water in infrared
    pair = Scene(
        "s",
        write(tmp_path / "t1.tif", np.concatenate([t1, infrared], 2), nodata=0, photometric="rgb"),
        write(tmp_path / "t2.tif", t2),
        write(tmp_path / "label.tif", label),
    )
    table = cut([pair], tmp_path / "out", bands=(3, 2, 1))
    expected = label // 255
    expected[:4] = 255
    np.testing.assert_array_equal(pixels_of(tmp_path / "out", table.iloc[0])[2], expected)


def test_nodata_of_the_label(tmp_path):
    base = scene(tmp_path, 16, 16)
    label = np.zeros((16, 16), np.uint8)
    label[:8], label[8:12] = 1, 9
    unknown = Scene("a", base.t1, base.t2, write(tmp_path / "a.tif", label, nodata=9))
    label[8:12] = 0
    zero = Scene("b", base.t1, base.t2, write(tmp_path / "b.tif", label, nodata=0))
    table = cut([unknown, zero], tmp_path / "out", rule="binary01")
    assert list(table["valid_pixels"]) == [192, 256]
    assert list(table["changed_pixels"]) == [128, 128]
    assert [list(values) for values in table["label_values"]] == [[0, 1], [0, 1]]


def test_label_values_are_those_of_valid_pixels_only(tmp_path):
    base = scene(tmp_path, 16, 48)
    t1, label = np.full((16, 48, 3), 7, np.uint8), np.zeros((16, 48), np.uint8)
    label[:, 16:32], label[:, 40:] = 255, 1
    t1[:, 40:] = 0  # date 1 has nothing where the label says changed
    pair = Scene(
        "s",
        write(tmp_path / "t1.tif", t1, nodata=0),
        base.t2,
        write(tmp_path / "label.tif", label, nodata=255),
    )
    table = cut([pair], tmp_path / "out", rule="binary01")
    assert list(table["valid_pixels"]) == [256, 0, 128]
    assert [list(values) for values in table["label_values"]] == [[0], [], [0]]


def test_one_bit_labels_and_chosen_bands(tmp_path):
    t1, t2, label = made_up(16, 16)
    infrared = np.concatenate([t1[..., :1], t1], 2)
    pair = Scene(
        "s",
        write(tmp_path / "t1.tif", infrared),
        write(tmp_path / "t2.tif", t2),
        write(tmp_path / "label.tif", label // 255, nbits=1),
    )
    table = cut([pair], tmp_path / "out", rule="binary01", bands=(3, 2, 1))
    seen = pixels_of(tmp_path / "out", table.iloc[0])
    np.testing.assert_array_equal(seen[0], infrared[..., [2, 1, 0]])
    np.testing.assert_array_equal(seen[1], t2[..., ::-1])
    np.testing.assert_array_equal(seen[2], label // 255)


def bad(tmp_path, **replaced):
    """A good scene with some of its files replaced by other pixels or suffixes."""
    good = scene(tmp_path, 16, 16)
    files = {name: getattr(good, name) for name in ("t1", "t2", "label")}
    for name, (pixels, profile) in replaced.items():
        files[name] = write(tmp_path / f"bad-{name}.tif", pixels, **profile)
    return Scene("s", **files)


ones = np.ones


@pytest.mark.parametrize(
    ("name", "pixels", "kind", "message"),
    [
        ("t2", ones((16, 17, 3), "u1"), GridMismatchError, "is 17 x 16 .*s.png is 16 x 16.*rio"),
        ("label", ones((8, 16), "u1"), GridMismatchError, "is 16 x 8 pixels"),
        ("t1", ones((16, 16, 3), "u2"), DataError, "samples are uint16, not 8-bit.*-scale"),
        ("t2", ones((16, 16, 3), "f4"), DataError, "samples are float32"),
        ("t2", ones((16, 16, 3), "c8"), DataError, "samples are complex64"),
        ("t1", ones((16, 16, 1), "u1"), DataError, r"has 1 band, .*bands: \[1, 1, 1\]"),
        ("t1", ones((16, 16, 2), "u1"), DataError, "has 2 bands"),
        ("t1", ones((16, 16, 5), "u1"), DataError, r"has 5 bands.*bands: \[3, 2, 1\]"),
        ("label", ones((16, 16, 3), "u1"), LabelError, "label has 3 bands, not one"),
        ("label", ones((16, 16), "i2"), LabelError, "label samples are int16"),
        ("label", ones((16, 16), "u1"), LabelError, "label holds the values 1.*binary01"),
    ],
)
def test_files_that_do_not_fit(tmp_path, name, pixels, kind, message):
    pair = bad(tmp_path, **{name: (pixels, {})})
    with pytest.raises(kind, match=rf"bad-{name}\.tif: {message}"):
        cut([pair], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".tmp*"))


def test_four_bands_need_a_choice_unless_one_is_alpha(tmp_path):
    four = ones((16, 16, 4), "u1")
    pair = bad(tmp_path, t1=(four, {"photometric": "minisblack"}))
    with pytest.raises(DataError, match="has 4 bands, not the three of an RGB image"):
        cut([pair], tmp_path / "out")
    with pytest.raises(DataError, match=r"has 3 bands, so no band 4.*from 1 to 3"):
        cut([pair], tmp_path / "out", bands=(4, 3, 2))
    pair = bad(tmp_path, t1=(four, {"photometric": "rgb", "alpha": "yes"}))
    assert len(cut([pair], tmp_path / "out")) == 1


# A JPEG has no checksum: a flipped byte is another image.
@pytest.mark.parametrize(
    ("suffix", "damage"),
    [(".png", "cut"), (".tif", "cut"), (".jpg", "cut"), (".png", "flip"), (".tif", "flip")],
)
def test_damaged_files(tmp_path, suffix, damage):
    profile = {"compress": "deflate"} if suffix == ".tif" else {}
    pair = scene(tmp_path, 200, 200, suffix=suffix, **profile)
    data = bytearray(pair.t2.read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 255
    pair.t2.write_bytes(data)
    with pytest.raises(DataError, match=rf"B/s\{suffix}: .*(damaged|cannot be opened).*replace"):
        cut([pair], tmp_path / "out", rule="threshold128")
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_images(tmp_path):
    pair = scene(tmp_path, 16, 16)
    pair.t1.write_text("<html>quota exceeded</html>")
    with pytest.raises(DataError, match=r"A/s\.png: cannot be opened as an image"):
        cut([pair], tmp_path / "out")
    pair.t1.unlink()
    with pytest.raises(DataError, match=r"A/s\.png: no such file"):
        cut([pair], tmp_path / "out")


def test_no_scenes_same_ids_unknown_rule(tmp_path):
    with pytest.raises(DataError, match="no scene to cut"):
        cut([], tmp_path / "out")
    pair, other = scene(tmp_path / "x", 16, 16), scene(tmp_path / "y", 16, 16)
    with pytest.raises(DataError, match=r"y/A/s\.png: has the same scene id 's' as .*x/A/s\.png"):
        cut([pair, other], tmp_path / "out")
    with pytest.raises(ConfigError, match="unknown label rule 'binary'"):
        cut([pair], tmp_path / "out", rule="binary")


def test_scenes_smaller_than_a_tile(tmp_path, caplog):
    small, large = scene(tmp_path, 12, 40, name="small"), scene(tmp_path, 16, 16, name="large")
    with pytest.raises(DataError, match="every scene is smaller than a tile of 16 x 16"):
        cut([small], tmp_path / "out", padding="drop")
    assert list(cut([small, large], tmp_path / "out", padding="drop")["scene"]) == ["large"]
    assert "1 of 2 scenes are smaller than a tile" in caplog.text
    assert len(cut([small], tmp_path / "out")) == 3


def test_an_error_in_a_worker_process_arrives_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(crop, "unit_size", lambda total: 1)
    pairs = [scene(tmp_path, 16, 16, name=f"s{i}") for i in range(3)]
    write(pairs[1].label, np.full((16, 16), 3, np.uint8))
    with pytest.raises(LabelError, match=r"label/s1\.png: label holds the values 3"):
        cut(pairs, tmp_path / "out", workers=2)
    assert not (tmp_path / "out").exists()


def test_a_failed_crop_leaves_the_former_result(tmp_path):
    pair = scene(tmp_path, 16, 16)
    cut([pair], tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(LabelError):
        cut([pair], tmp_path / "out", rule="binary01")
    assert content(tmp_path / "out") == before


def elsewhere(folder):
    """A `Spread` over machines that write into a folder of their own instead of the shared one."""

    def spread(function, items, **_how):
        for *given, path in items:
            yield function((*given, folder / path.name))

    return spread


def test_tars_that_a_worker_wrote_to_its_own_disk_are_missed(tmp_path):
    pair = scene(tmp_path, 16, 16)
    cut([pair], tmp_path / "out")
    before = content(tmp_path / "out")
    facts = tiles.inspect_scenes([pair], None, spread=Processes(1))
    (piece,) = crop._plan(facts, [(1, 1)])
    units = [crop.CropUnit(tuple(piece), 16, "pad", "binary255", None)]
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"out/tiles-000000\.tar: a worker wrote it where .* share"):
        tiles.write_tiles(tmp_path / "out", units, facts, spread=elsewhere(tmp_path / "other"))
    assert [tar.name for tar in (tmp_path / "other").iterdir()] == ["tiles-000000.tar"]
    with pytest.raises(
        DataError, match=r"none/tiles-000000\.tar: .* does not see the folder .* share"
    ):
        tiles.write_tiles(tmp_path / "out", units, facts, spread=elsewhere(tmp_path / "none"))
    # It may have been removed because the work was given up.
    assert not (tmp_path / "none").exists()
    assert content(tmp_path / "out") == before
