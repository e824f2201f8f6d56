"""Many pairs: how they are listed, and that one which fails stops no other."""

import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import dsfer
from dsfer.cli import app
from dsfer.errors import ConfigError, DataError
from dsfer.mapping import pairs
from dsfer.mapping.pair import Reading
from dsfer.mapping.pairs import ListedPair, list_pairs, map_pair, map_pairs
from dsfer.mapping.predict import MapOptions
from dsfer.weights import Metadata, save_weights
from tests.test_mapping import detector, read, scenes, write


def test_a_folder_a_table_and_a_list_of_items_name_the_same_pairs(tmp_path):
    for name in ("A", "B"):
        (tmp_path / name).mkdir()
        for stem in ("north", "south 2"):
            (tmp_path / name / f"{stem}.tif").touch()
    folder = list_pairs(tmp_path)
    names = {"north": "north", "south 2": "south_2"}
    assert folder == [
        ListedPair(key, *(str(tmp_path / side / f"{stem}.tif") for side in ("A", "B")))
        for stem, key in names.items()
    ]
    lines = ["id,t1,t2", *(f"{stem},A/{stem}.tif,B/{stem}.tif" for stem in names)]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    assert list_pairs(tmp_path / "list.csv") == folder
    items = [
        {"id": stem, "assets": {"t1": {"href": f"A/{stem}.tif"}, "t2": {"href": f"B/{stem}.tif"}}}
        for stem in names
    ]
    (tmp_path / "items.json").write_text(json.dumps({"features": items}))
    assert list_pairs(tmp_path / "items.json") == folder
    (tmp_path / "list.csv").rename(tmp_path / "pairs.csv")
    assert list_pairs(tmp_path) == folder


def test_labels_full_paths_and_addresses(tmp_path):
    (tmp_path / "a.csv").write_text(
        "id,t1,t2,label\nx,https://host/1.tif,/vsizip/a.zip/2.tif,truth.tif\ny,/data/1.tif,2.tif,"
    )
    assert list_pairs(tmp_path / "a.csv") == [
        ListedPair("x", "https://host/1.tif", "/vsizip/a.zip/2.tif", str(tmp_path / "truth.tif")),
        ListedPair("y", "/data/1.tif", str(tmp_path / "2.tif"), None),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,t1,t2\nx,1.tif,\n", "a.csv, line 2: has no t2"),
        ("a.csv", "id,t1\nx,1.tif\n", "has the columns id, t1.*name them id, t1, t2 and"),
        ("a.csv", "id,t1,t2\nx,1,2\nX,1,2\n", "several pairs have the id 'x'"),
        ("a.csv", "id,t1,t2\n", "lists no pair"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "[]", "not a list of pairs"),
        ("a.json", '{"features": []}', "lists no pair"),
        ("a.json", '{"features": [{"id": 1, "assets": {"t1": {"href": "1"}}}]}', "1: has no t2"),
        ("a.txt", "", "is no folder, .csv or .json"),
        ("A/1.tif", "", "no such folder"),
    ],
)
def test_lists_that_are_none(tmp_path, name, content, message):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        list_pairs(tmp_path if "/" in name else tmp_path / name)
    with pytest.raises(DataError, match="no such file or folder"):
        list_pairs(tmp_path / "none.tif")


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Three pairs with a label, of which the second is cut off, and weights of a tiny network."""
    options = {"width": 0.125, "image_size": 32, "hopfield_dim": 16}
    torch.manual_seed(0)
    record = Metadata("dsfer-net", options, (90,) * 3, (50,) * 3, tile_size=32, threshold=0.5)
    save_weights(
        dsfer.create_model("dsfer-net", **options), tmp_path / "weights.safetensors", record
    )
    for name in ("a", "b", "c"):
        images = scenes(50, 60)
        truth = (np.abs(images[1, ..., :1].astype(int) - images[0, ..., :1]) > 100) * 255
        for folder, image in (("A", images[0]), ("B", images[1]), ("label", truth)):
            (tmp_path / folder).mkdir(exist_ok=True)
            write(tmp_path / folder / f"{name}.tif", image.astype(np.uint8))
    damaged = tmp_path / "B/b.tif"
    damaged.write_bytes(damaged.read_bytes()[:4000])
    return tmp_path


def test_the_command_maps_all_that_can_be_and_later_what_is_missing(listed):
    out = listed / "maps"
    weights = str(listed / "weights.safetensors")
    arguments = ["predict", str(listed), "--weights", weights, "--out", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, DataError)
    assert "1 of 3 pairs failed: b. The first: " in str(done.exception)
    assert "B/b.tif: damaged between rows" in str(done.exception)
    rows = json.loads((out / "maps.json").read_text())
    assert [(row["id"], row["status"]) for row in rows] == [
        ("a", "done"), ("b", "failed"), ("c", "done"),
    ]  # fmt: skip
    apart = "0 pixels apart, below 1 is tolerated"
    assert [row["second_raster"] for row in rows] == [apart, None, apart]
    assert len(re.findall(r"0 pixels\s+apart", done.output)) == 2
    for name in ("a", "c"):
        summary = json.loads((out / name / "summary.json").read_text())
        assert set(summary["scores"]) == {"tiles", "stitched", "map"}
        assert (out / name / "errors.tif").is_file()
    before = (out / "a/summary.json").stat().st_mtime_ns
    write(listed / "B/b.tif", scenes(50, 60)[1])
    done = CliRunner().invoke(app, arguments)
    assert "2 of 3 pairs failed: a, c. The first: " in str(done.exception)
    assert "maps/a: is mapped already. To mend it: add --resume" in str(done.exception)
    shutil.rmtree(out / "b")
    done = CliRunner().invoke(app, [*arguments, "--resume"])
    assert done.exit_code == 0, done.output
    assert (out / "a/summary.json").stat().st_mtime_ns == before
    assert (out / "b/summary.json").is_file()
    done = CliRunner().invoke(app, [*arguments, "--resume", "--min-area", "3"])
    assert "these maps were made with" in str(done.exception)
    done = CliRunner().invoke(app, [*arguments, "--label", "truth.tif"])
    assert isinstance(done.exception, ConfigError) and "--label" in str(done.exception)


def test_maps_of_other_rasters_or_read_in_another_way_are_not_taken_for_done(listed):
    out, network = listed / "maps", dsfer.load(listed / "weights.safetensors")
    pair = list_pairs(listed)[0]
    summary = map_pair(pair, network, out)
    again = partial(map_pair, detector=network, out=out, resume=True)
    rest = out / f".{pair.id}.partial"  # of a kill between the last step and the tidying
    rest.mkdir()
    (rest / "probability.raw").touch()
    assert again(pair) == summary
    assert not rest.exists()
    other = replace(pair, t2=pair.t1)
    imported = replace(network.metadata, std=(40,) * 3)  # once more, as of another data set
    save_weights(network.network, listed / "again/weights.safetensors", imported)
    renormalised = dsfer.load(listed / "again")
    assert renormalised.metadata.sha256 == network.metadata.sha256
    for changed, what in (
        (partial(again, other), "t2"),
        (partial(again, pair, detector=renormalised), "weights"),
        (partial(again, replace(pair, label=None)), "label"),
        (partial(again, pair, label_rule="binary01"), "label"),
        (partial(again, pair, reading=Reading(bands=(3, 2, 1))), "bands"),
        (partial(again, pair, reading=Reading(scale=(0.0, 99.0))), "scale"),
        (partial(again, pair, reading=Reading(align=True)), "align"),
        (partial(again, pair, reading=Reading(tolerance=0.5)), "tolerance"),
        (partial(again, pair, options=MapOptions(overlap=0.25)), "options"),
    ):
        with pytest.raises(ConfigError, match="these maps were made with") as refused:
            changed()
        assert refused.value.where == f"{out / pair.id}, {what}"
        assert f"or remove {out / pair.id} to map it again" in str(refused.value)
    write(Path(pair.t1), scenes(50, 60, seed=1)[0])  # replaced under the same name
    os.utime(pair.t1, (1_700_000_000, 1_700_000_000))
    rows = map_pairs([pair], network, out, resume=True)
    assert rows[0]["status"] == "failed" and "a, t1: these maps were made with" in rows[0]["error"]
    shutil.rmtree(out / pair.id)
    assert again(pair)["identity"] != summary["identity"]
    unknowing = json.loads((out / pair.id / "summary.json").read_text())
    del unknowing["identity"]
    (out / pair.id / "summary.json").write_text(json.dumps(unknowing))
    with pytest.raises(ConfigError, match="made with something that was not noted"):
        again(pair)


def test_an_error_that_nobody_foresaw_stops_no_other_pair(listed, monkeypatch, caplog):
    mapped = pairs.predict_raster

    def failing(t1: str, *others: Any, **how: Any) -> dict[str, Any]:
        if Path(t1).stem == "a":
            raise ZeroDivisionError
        return mapped(t1, *others, **how)

    monkeypatch.setattr(pairs, "predict_raster", failing)
    network, out = dsfer.load(listed / "weights.safetensors"), listed / "maps"
    rows = map_pairs(list_pairs(listed), network, out)
    assert [row["status"] for row in rows] == ["failed", "failed", "done"]
    assert rows[0]["error"] == "ZeroDivisionError()"
    assert json.loads((out / "maps.json").read_text()) == rows
    told = {record.message.partition(":")[0]: record.exc_info for record in caplog.records}
    assert told["a"][0] is ZeroDivisionError and not told["b"]

    monkeypatch.undo()
    again = map_pairs(list_pairs(listed)[:1], network, out, resume=True)
    assert [row["status"] for row in again] == ["done"]
    assert json.loads((out / "maps.json").read_text()) == [*again, *rows[1:]]
    for other in ('{"a": 1}', "[1]", "["):
        (out / "maps.json").write_text(other)
        with pytest.raises(DataError, match=r"maps\.json: is no list of maps"):
            map_pairs(list_pairs(listed)[:1], network, out, resume=True)
        assert (out / "maps.json").read_text() == other

    monkeypatch.setattr(pairs, "predict_raster", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        map_pairs(list_pairs(listed), network, listed / "other")


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[ListedPair], Path]:
    """Four pairs, and the folder of their maps, made one after the other."""
    folder = tmp_path_factory.mktemp("maps")
    listed = []
    for name in range(4):
        images = np.random.default_rng(name).integers(0, 256, (2, 30 + name, 40, 3), np.uint8)
        t1, t2 = (write(folder / f"{name}_{i}.tif", image) for i, image in enumerate(images))
        listed.append(ListedPair(str(name), str(t1), str(t2)))
    map_pairs(listed, detector(), folder / "one")
    return listed, folder / "one"


@settings(max_examples=4, deadline=None)
@given(workers=st.integers(2, 4), order=st.permutations(range(4)))
def test_maps_depend_on_no_number_of_workers_and_no_order(mapped, tmp_path_factory, workers, order):
    listed, former = mapped
    folder = tmp_path_factory.mktemp("many")
    with ThreadPoolExecutor(workers) as pool:
        tasks = [pool.submit(map_pair, listed[i], detector(), folder) for i in order]
        assert all(task.result() for task in tasks)
    for file in ("change.tif", "probability.tif", "changes.gpkg"):
        for name in range(4):
            one, many = (each / str(name) / file for each in (former, folder))
            if file.endswith(".tif"):
                np.testing.assert_array_equal(read(one), read(many))
            else:
                pd.testing.assert_frame_equal(gpd.read_file(one), gpd.read_file(many))
