import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from dsfer.data.layouts import (
    LAYOUTS,
    cdd_original,
    cdd_subset,
    flat,
    folder,
    rasters,
    split_folders,
    whu_regions,
    whu_single,
)
from dsfer.errors import DataError


def touch(root: Path, *names: str) -> Path:
    """Make files that an adapter can list; it opens none of them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def triple(root: Path, *stems: str, label: str = "label", suffix: str = ".png") -> Path:
    return touch(root, *(f"{part}/{stem}{suffix}" for part in ("A", "B", label) for stem in stems))


def ids(scenes) -> list[str]:
    return [scene.id for scene in scenes]


def test_flat(tmp_path):
    scenes = flat(triple(tmp_path, "b", "a"))
    assert ids(scenes) == ["a", "b"]
    assert scenes[0].t1 == tmp_path / "A" / "a.png"
    assert scenes[0].t2 == tmp_path / "B" / "a.png"
    assert scenes[0].label == tmp_path / "label" / "a.png"
    assert scenes[0].split is None


def test_pairs_are_made_by_stem_whatever_the_suffix(tmp_path):
    touch(tmp_path, "A/1.tif", "A/10.tif", "B/10.png", "B/1.jpg", "label/1.png", "label/10.bmp")
    one, ten = flat(tmp_path)
    assert (one.t1.name, one.t2.name, one.label.name) == ("1.tif", "1.jpg", "1.png")
    assert (ten.t1.name, ten.t2.name, ten.label.name) == ("10.tif", "10.png", "10.bmp")


def test_a_capital_A_in_the_path_above_is_harmless(tmp_path):
    scene = flat(triple(tmp_path / "A" / "DATA", "x"))[0]
    assert scene.t2 == tmp_path / "A" / "DATA" / "B" / "x.png"


def test_side_files_are_no_images(tmp_path):
    triple(tmp_path, "a")
    touch(tmp_path, "A/a.tfw", "A/a.png.aux.xml", "A/.DS_Store", "A/Thumbs.db", "B/readme.txt")
    touch(tmp_path, "A/a.png.msk", "B/a.rrd")
    assert ids(flat(tmp_path)) == ["a"]


def test_lists_give_the_split_and_choose(tmp_path):
    triple(tmp_path, "a", "b", "c.d", "unused")
    (tmp_path / "list").mkdir()
    (tmp_path / "list/train.txt").write_text("\ufeffb.png\n\na\n", encoding="utf-8")
    (tmp_path / "list/test.txt").write_text("c.d\r\n")
    assert {scene.id: scene.split for scene in flat(tmp_path)} == {
        "a": "train",
        "b": "train",
        "c_d": "test",
    }


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (b"a\nzz.png", b"b", "line 2 names 'zz.png'"),
        (b"a", b"b\na.png", "already listed for train"),
        (b"", b"", "name no image"),
        (b"\xff\xfe\xfa", b"a", "UTF-8"),
    ],
)
def test_wrong_lists(tmp_path, train, test, message):
    triple(tmp_path, "a", "b")
    touch(tmp_path, "list/x")
    (tmp_path / "list/train.txt").write_bytes(train)
    (tmp_path / "list/test.txt").write_bytes(test)
    with pytest.raises(DataError, match=message):
        flat(tmp_path)


@pytest.mark.parametrize("label", ["label", "OUT"])
def test_split_folders(tmp_path, label):
    for split, stem in (("train", "t_1"), ("val", "v_1"), ("test", "e_1")):
        triple(tmp_path / split, stem, label=label)
    assert [(s.id, s.split) for s in split_folders(tmp_path)] == [
        ("t_1", "train"),
        ("v_1", "val"),
        ("e_1", "test"),
    ]


def test_levir_archives_with_and_without_a_folder_around(tmp_path):
    triple(tmp_path / "train", "train_1", "train_2")
    triple(tmp_path / "val" / "val", "val_1")
    touch(tmp_path / "val" / "__MACOSX", "junk")
    triple(tmp_path / "test", "test_1")
    assert ids(LAYOUTS["split_folders"](tmp_path)) == ["train_1", "train_2", "val_1", "test_1"]


def test_stems_that_recur_in_splits_get_the_split_in_front(tmp_path):
    base = tmp_path / "ChangeDetectionDataset" / "Real" / "subset"
    for split in ("train", "val", "test"):
        triple(base / split, "00000", label="OUT", suffix=".jpg")
    assert ids(cdd_subset(tmp_path)) == ["train-00000", "val-00000", "test-00000"]


def test_cdd_original(tmp_path):
    triple(tmp_path / "ChangeDetectionDataset/Real/original/pairs", "1", "2", label="OUT")
    assert ids(cdd_original(tmp_path)) == ["1", "2"]


def test_whu_single(tmp_path):
    base = tmp_path / "Building change detection dataset" / "1. The two-period image data"
    touch(base, "before/before.tif", "after/after.tif", "change label/change_label.tif")
    (scene,) = whu_single(tmp_path)
    assert scene.label == base / "change label" / "change_label.tif"
    (base / "after/after.tif").unlink()
    with pytest.raises(DataError, match=r"after\.tif: no such file"):
        whu_single(tmp_path)


def test_whu_regions(tmp_path):
    base = tmp_path / "dataset_add" / "1. The two-period image data"
    for split in ("train", "test"):
        for year in (2012, 2016):
            touch(base, f"{year}/whole_image/{split}/image/{year}_{split}.tif")
            touch(base, f"{year}/splited_images/{split}/label/building.tif")
        touch(base, f"change_label/{split}/change_label.tif")
    train, test = whu_regions(tmp_path)
    assert (train.id, train.split, test.id, test.split) == (
        "whu-train",
        "train",
        "whu-test",
        "test",
    )
    assert train.t1.name == "2012_train.tif"
    assert test.t2.name == "2016_test.tif"
    assert test.label == base / "change_label" / "test" / "change_label.tif"


def test_folder_takes_either_form(tmp_path):
    assert ids(folder(triple(tmp_path / "one", "a"))) == ["a"]
    triple(tmp_path / "two" / "train", "b", label="OUT")
    assert ids(folder(tmp_path / "two")) == ["b"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "neither folders train, val, test nor folders A, B, label"),
        (["A/a.png"], "neither of the label folders"),
        (["A/a.png", "B/a.png", "label/a.png", "OUT/a.png"], "both the label folders"),
        (["A/a.png", "label/a.png"], "B: no such folder"),
        (["A/.hidden", "B/a.png", "label/a.png"], "A: holds no image"),
        (["A/a.png", "A/b.png", "B/a.png", "label/a.png", "label/b.png"], "B: lacks 'b'"),
        (["A/a.png", "A/b.png", "B/a.png", "B/b.png", "label/a.png"], "label: lacks 'b'"),
        (["A/a.png", "B/a.png", "B/b.png", "label/a.png", "label/b.png"], "A: lacks 'b'"),
        (["A/a.png", "A/a.tif", "B/a.png", "label/a.png"], "'a.png' and 'a.tif' have the same"),
        (["train/A/a.png", "train/B/a.png"], "neither of the label folders"),
    ],
)
def test_what_does_not_pair_names_folder_and_stem(tmp_path, files, message):
    touch(tmp_path, *files)
    with pytest.raises(DataError) as caught:
        folder(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "To mend it" in str(caught.value)


def test_many_missing_partners_are_counted(tmp_path):
    triple(tmp_path, *"abcdefgh")
    for stem in "bcdefgh":
        (tmp_path / "B" / f"{stem}.png").unlink()
    with pytest.raises(DataError, match="lacks 'b', 'c', 'd', 'e', 'f' and 2 more"):
        flat(tmp_path)


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        folder(tmp_path / "none")


def test_ids_keep_only_safe_characters(tmp_path):
    assert ids(flat(triple(tmp_path, "Köln 2024 (neu).v2"))) == ["K_ln_2024_neu_v2"]


@pytest.mark.parametrize("stems", [("a b", "a_b"), ("scene", "SCENE")])
def test_ids_that_collide_are_refused(tmp_path, stems):
    triple(tmp_path, *stems)
    with pytest.raises(DataError, match="both become the scene"):
        flat(tmp_path)


@pytest.mark.parametrize(("stem", "message"), [("x" * 200, "200 characters"), ("§", "no letter")])
def test_names_that_make_no_id(tmp_path, stem, message):
    triple(tmp_path, stem)
    with pytest.raises(DataError, match=message):
        flat(tmp_path)


def test_names_that_are_no_utf8(tmp_path):
    triple(tmp_path, "good")
    name = os.fsencode(tmp_path / "A") + b"/bad\xff.png"
    try:
        Path(os.fsdecode(name)).touch()
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(DataError, match="not valid UTF-8") as caught:
        flat(tmp_path)
    str(caught.value).encode("utf-8")


def raster(path: Path, size: int = 8) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", width=size, height=size, count=1, dtype="uint8"
        ) as out:
            out.write(np.zeros((1, size, size), np.uint8))
    return path


def listed(root: Path, text: str, encoding: str = "utf-8") -> Path:
    for name in ("t1.tif", "t2.tif", "label.tif"):
        touch(root, name)
    (root / "pairs.csv").write_text(text, encoding=encoding)
    return root


def test_rasters(tmp_path):
    text = "id,t1,t2,label,split\nport,t1.tif,t2.tif,label.tif,train\n"
    (scene,) = rasters(listed(tmp_path, text, "utf-8-sig"))
    assert (scene.id, scene.t1, scene.split) == ("port", tmp_path / "t1.tif", "train")
    absolute = f"id, t1, t2, label\n007, {tmp_path}/t1.tif, t2.tif, label.tif\n"
    (scene,) = rasters(listed(tmp_path, absolute))
    assert (scene.id, scene.t1, scene.split) == ("007", tmp_path / "t1.tif", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,t1,t2,label\na,t1.tif,none.tif,label.tif", "line 2: t2 'none.tif' does not exist"),
        ("id,t1,t2,label\na,t1.tif,t2.tif,", "line 2: label '' does not exist"),
        ("id,t1,t2\na,t1.tif,t2.tif", "has the columns id, t1, t2"),
        ("id;t1;t2;label\na;t1.tif;t2.tif;label.tif", "separated by commas"),
        ("id,t1,t2,label,spilt\na,t1.tif,t2.tif,label.tif,train", "spilt"),
        ("id,t1,t2,label\n", "lists no pair"),
        ("", "not a readable CSV list"),
        ("id,t1,t2,label,split\na,t1.tif,t2.tif,label.tif,dev", "unknown split 'dev'"),
        (
            "id,t1,t2,label,split\na,t1.tif,t2.tif,label.tif,train\nb,t1.tif,t2.tif,label.tif,",
            "some rows have a split",
        ),
        (
            "id,t1,t2,label\na,t1.tif,t2.tif,label.tif\na,t1.tif,t2.tif,label.tif",
            "both become the scene 'a'",
        ),
    ],
)
def test_wrong_lists_of_rasters(tmp_path, text, message):
    with pytest.raises(DataError) as caught:
        rasters(listed(tmp_path, text))
    assert message in str(caught.value)
    assert "pairs.csv" in str(caught.value)


def test_list_of_rasters_in_another_encoding_or_missing(tmp_path):
    with pytest.raises(DataError, match="not a readable CSV"):
        rasters(listed(tmp_path, "id,t1,t2,label\nKöln,t1.tif,t2.tif,label.tif", "latin-1"))
    with pytest.raises(DataError, match="not a readable CSV"):
        rasters(tmp_path / "none")
