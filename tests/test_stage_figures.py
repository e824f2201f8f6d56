"""Which tiles the figures stage draws, of which networks, and at which pixel."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import dsfer
from dsfer import detector
from dsfer.errors import CheckpointError, ConfigError, DataError, DeviceMemoryError
from dsfer.files import read_json, write_json
from dsfer.models import MODELS
from dsfer.plates import comparison_plate
from dsfer.weights import Metadata, save_weights
from pipeline import comparison
from pipeline.params import load_params
from pipeline.results import read_figures
from pipeline.stages import figures as stage
from pipeline.stages.figures import (
    Choice,
    asked,
    inside,
    picked,
    predict,
    read_tile,
    telling_pixel,
    trained_methods,
)
from pipeline.tables import entries_of
from tests.tiles import MemoryTiles

COUNTS = pd.DataFrame(
    [("a1", "a", 90, 5, 5), ("a2", "a", 80, 0, 0), ("b1", "b", 50, 0, 0), ("b2", "b", 50, 0, 0),
     ("c1", "c", 5, 40, 41), ("c2", "c", 0, 40, 41)],
    columns=["id", "scene", "tp", "fp", "fn"],
)  # fmt: skip


@pytest.fixture(scope="module")
def tiles():
    return MemoryTiles(4, 32, "test")


def save(folder, name, tiles, split_hash=None, **options):
    torch.manual_seed(1)
    network = dsfer.create_model(name, **options)
    about = {"split_hash": split_hash or tiles.split_hash}
    metadata = Metadata(name, options, tiles.mean, tiles.std, about, tile_size=32)
    path = folder / "models" / name / "training" / "weights.safetensors"
    path.parent.mkdir(parents=True)
    save_weights(network, path, metadata)
    return path


def test_tiles_are_picked_by_what_was_found_and_what_was_wrong():
    assert [(each.tile, each.why) for each in picked(COUNTS)] == [
        ("a1", "change found"), ("b1", "change found"), ("c1", "change found"),
        ("c2", "most errors"),
    ]  # fmt: skip


def test_picking_does_not_depend_on_chance_and_fills_up_from_one_scene():
    assert picked(COUNTS) == picked(COUNTS.copy())
    one = COUNTS[COUNTS["scene"] == "a"]
    assert [each.tile for each in picked(one)] == ["a1", "a2"]


def test_asked_tiles_and_pixels(tiles):
    first, second = tiles.ids[:2]
    assert asked([second, f"{first}@3,31"], tiles) == [
        Choice(second, None, "chosen"), Choice(first, (3, 31), "chosen"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("s9_00000_00000", r"'s9_00000_00000' is no tile of the test split.*s0_00000_00000"),
        ("s0_00000_00000@0,32", r"names a pixel outside a tile of 32 x 32"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(tiles, entry, message):
    with pytest.raises(ConfigError, match=message):
        asked([entry], tiles)


@pytest.mark.parametrize("entry", ["tile@3", "tile@-1,2", "@1,2", 7, "tile@a,b"])
def test_entries_that_are_no_tile_stop_before_any_work(entry):
    with pytest.raises(ConfigError, match="figures"):
        load_params(changes={"figures": [entry]})


def test_the_pixel_is_the_deepest_of_what_was_called():
    called, label = np.zeros((2, 16, 16), bool)
    label = label.astype(np.uint8)
    assert telling_pixel(called, label) == (8, 8)
    label[1:4, 1:4] = 1
    assert telling_pixel(called, label) == (2, 2)
    called[9:16, 8:16] = True  # touches the edge, which bounds it
    row, col = telling_pixel(called, label)
    assert row == 12 and col in (11, 12)


def test_networks_of_this_split_are_compared_in_the_paper_s_order(tiles, tmp_path):
    save(tmp_path, "dsfer-net", tiles, image_size=32, width=0.125)
    save(tmp_path, "fc-ef-res", tiles)
    save(tmp_path, "fc-siam-conc", tiles)
    save(tmp_path, "frnet", tiles, split_hash="of another", width=0.125)
    methods, left_out = trained_methods(settings_of(tmp_path, "fc-siam-conc"), tiles)
    assert list(methods) == ["fc-ef-res", "dsfer-net", "fc-siam-conc"] and left_out == {}


def settings_of(folder, model):
    return SimpleNamespace(
        folder=folder,
        model_folder=folder / "models" / model,
        params=SimpleNamespace(model=model, device="cpu"),
    )


def of_schema(path, schema):
    """Make a bundle look as if an earlier version had written it."""
    write_json(path.with_suffix(".json"), read_json(path.with_suffix(".json")) | {"schema": schema})


def test_others_that_cannot_be_loaded_are_left_out_and_named(tiles, tmp_path, monkeypatch, caplog):
    """One of an earlier version, and one of a network that is no longer there."""
    own = save(tmp_path, "fc-siam-conc", tiles)
    of_schema(save(tmp_path, "fc-ef-res", tiles), 2)
    monkeypatch.setitem(MODELS, "small-net", MODELS["fc-ef-res"])
    save(tmp_path, "small-net", tiles)
    monkeypatch.delitem(MODELS, "small-net")
    settings = settings_of(tmp_path, "fc-siam-conc")
    methods, left_out = trained_methods(settings, tiles)
    assert list(methods) == ["fc-siam-conc"]
    assert left_out == {
        "fc-ef-res": "has schema 2, this version reads schema 3",
        "small-net": "unknown model 'small-net'",
    }
    for name in left_out:
        assert f"{name} is left out of the figures" in caplog.text
    of_schema(own, 2)
    with pytest.raises(CheckpointError, match="has schema 2"):
        trained_methods(settings, tiles)


def test_rows_of_a_table_that_cannot_be_drawn_are_named(tiles, tmp_path, monkeypatch):
    """Dsfer-Net among them: tiles are picked by, and insides drawn of, the last row there is."""

    def fetch_weights(cell, folder):
        if cell.settings.params.model == "bit":
            raise DataError("is not in DVC's cache")
        return weights[cell.settings.params.model]

    weights = {name: save(tmp_path, name, tiles) for name in ("fc-ef-res", "fc-siam-conc")}
    weights["changeformer"] = save(tmp_path, "changeformer", tiles, version="v5", width=0.125)
    weights["frnet"] = save(tmp_path, "frnet", tiles, split_hash="of another", width=0.125)
    weights["dsfer-net"] = save(tmp_path, "dsfer-net", tiles, image_size=32, width=0.125)
    of_schema(weights["dsfer-net"], 2)
    named = {*weights, "bit", "vct"}
    rows = [row for row in entries_of("I", ["demo"], [0], {}) if row.key in named]
    outcomes = {row.cells[0].name: "not run" if row.key == "vct" else None for row in rows}
    asked_for = [Choice(tiles.ids[0], None, "chosen")]
    counted_of, titles = [], []

    def plate(drawn, called):
        titles.extend(called)
        return comparison_plate(drawn, called)

    monkeypatch.setattr("pipeline.stages.figures.comparison_plate", plate)
    monkeypatch.setattr(comparison, "_fetch_weights", fetch_weights)
    monkeypatch.setattr(comparison, "_fetch_test_split", lambda cell, folder: tiles)
    monkeypatch.setattr(comparison, "fetch", lambda cell, *_: counted_of.append(cell))
    monkeypatch.setattr(comparison, "choose", lambda *_: asked_for)
    comparison.draw_plates(rows, outcomes, tmp_path / "plates")
    drawn = read_json(tmp_path / "plates/figures.json")
    assert list(drawn["methods"]) == ["fc-siam-conc", "fc-ef-res", "changeformer"]
    assert titles == ["FC-Siam-conc", "FC-EF-Res", "ChangeFormer (V5)"]  # as in the table
    assert [cell.settings.params.model for cell in counted_of] == ["changeformer"]
    assert drawn["left_out"] == {
        "bit": "is not in DVC's cache",
        "vct": "not run",
        "frnet": "was trained on another split",
        "dsfer-net": "has schema 2, this version reads schema 3",
    }
    caption = drawn["figures"][0]["caption"]
    assert "false alarm cyan, change missed red" in caption
    assert "of Table I with seed 0, trained on split 0123456789ab. Left out: BiT: is not" in caption
    for names, problem in (([], "no row has a result"), (["frnet"], "no row has weights")):
        done = {row.cells[0].name for row in rows if row.key in names}
        with pytest.raises(DataError, match=problem):
            comparison.draw_plates(
                rows,
                {name: None if name in done else "not run" for name in outcomes},
                tmp_path / "none",
            )


def test_every_plate_is_drawn_and_read_back(tiles, tmp_path):
    weights = save(tmp_path, "dsfer-net", tiles, image_size=32, width=0.125, hopfield_dim=16)
    method = detector.load(weights, device="cpu")
    drawn = [read_tile(tiles, name) for name in tiles.ids[:2]]
    chosen = [Choice(tiles.ids[0], (3, 4), "chosen"), Choice(tiles.ids[1], None, "chosen")]
    figures = list(inside(method, drawn, chosen, predict(method, drawn), tmp_path))
    names = ["difference", "retrieval", "evidence-1", "evidence-2"]
    assert [figure["name"] for figure in figures] == names
    assert figures[2]["title"].endswith(f"{tiles.ids[0]}, row 3, column 4")
    write_json(tmp_path / "figures.json", {"tiles": [], "methods": {}, "figures": figures})
    record, pictures = read_figures(tmp_path)
    assert [figure.name for figure in record.figures] == names
    assert all(path.stat().st_size > 1000 for path in pictures)
    assert read_json(tmp_path / "figures.json")["figures"] == figures


def test_a_network_without_retrieval_is_drawn_as_far_as_it_goes(tiles, tmp_path):
    drawn, chosen = [read_tile(tiles, tiles.ids[0])], [Choice(tiles.ids[0], None, "chosen")]
    asked_for = [Choice(tiles.ids[0], (1, 1), "chosen")]
    weights = save(tmp_path, "dsfer-net", tiles, image_size=32, width=0.125, variant="base+cf")
    method = detector.load(weights, device="cpu")
    probabilities = predict(method, drawn)
    figures = list(inside(method, drawn, chosen, probabilities, tmp_path))
    assert [figure["name"] for figure in figures] == ["difference"]
    with pytest.raises(ConfigError, match="no retrieval layers"):
        list(inside(method, drawn, asked_for, probabilities, tmp_path))
    other = detector.load(save(tmp_path, "fc-siam-conc", tiles), device="cpu")
    assert not list(inside(other, drawn, chosen, probabilities, tmp_path))
    with pytest.raises(ConfigError, match="no encoder of five scales"):
        list(inside(other, drawn, asked_for, probabilities, tmp_path))


@pytest.mark.parametrize("part", ["detector", "encode", "retrieved_levels", "attention_maps"])
def test_running_out_of_gpu_memory_is_said_whatever_is_drawn(tiles, tmp_path, monkeypatch, part):
    def too_much(*_given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    weights = save(tmp_path, "dsfer-net", tiles, image_size=32, width=0.125, hopfield_dim=16)
    method = detector.load(weights, device="cpu")
    if part == "detector":
        method.network.forward = too_much
    else:
        monkeypatch.setattr(stage, part, too_much)
    monkeypatch.setattr(stage, "save_figure", lambda *_: None)
    chosen, own = [Choice(tiles.ids[0], None, "chosen")], "dsfer-net"
    with pytest.raises(DeviceMemoryError, match="device: cpu, or a GPU with more memory"):
        stage.draw(tiles, chosen, {own: method}, {}, own, {}, "", tmp_path)
    assert not (tmp_path / "figures.json").exists()
