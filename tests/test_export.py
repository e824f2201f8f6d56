"""ONNX: the exported network and its record give what torch does, for whoever has only them."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

import dsfer
from dsfer import export
from dsfer.cli import app
from dsfer.errors import CheckpointError, ConfigError
from dsfer.export import export_onnx
from dsfer.weights import Metadata, save_weights
from tests.test_model_contract import ALL, SIDE, name_of

TIED = {"width": 0.125, "image_size": 32, "hopfield_dim": 16}
FREE = {"width": 0.125, "norm": "channel", "hopfield_dim": 16}


def weights(folder: Path, model: str, per_image: bool = False, **options) -> Path:
    torch.manual_seed(0)
    path = folder / "weights.safetensors"
    record = Metadata(
        model, options, (100, 110, 120), (50, 51, 52), per_image=per_image, tile_size=32,
        threshold=0.375, licence="free",
    )  # fmt: skip
    save_weights(dsfer.create_model(model, **options), path, record)
    return path


def by_the_record(path: Path, images: np.ndarray) -> np.ndarray:
    """Change probability of (2, h, w, 3) uint8, from the two files alone and with numpy."""
    record = json.loads(path.with_suffix(".json").read_text())
    session = onnxruntime.InferenceSession(path)
    inputs = {}
    for name, image in zip(record["onnx"]["inputs"], images, strict=True):
        scaled = (image.astype(np.float32) - record["mean"]) / record["std"]
        if record["per_image"]:
            scaled = (scaled - scaled.mean()) / scaled.std()
        inputs[name] = scaled.transpose(2, 0, 1)[None].astype(np.float32)
    (logits,) = session.run(list(record["onnx"]["outputs"]), inputs)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True))[0, 1]


@pytest.mark.parametrize(
    ("model", "options", "sides", "shape"),
    [
        ("dsfer-net", TIED, "32 each", (32, 32)),
        ("dsfer-net", FREE, "multiples of 16", (32, 32)),
        ("fc-ef-res", {"per_image": True}, "multiples of 16", (32, 32)),
    ],
    ids=["tied", "free", "per image"],
)
def test_the_export_and_its_record_are_all_that_is_needed(tmp_path, model, options, sides, shape):
    path = weights(tmp_path, model, **options)
    out = tmp_path / "model.onnx"
    done = CliRunner().invoke(app, ["export", str(path), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "model.json", "model.onnx", "weights.json", "weights.safetensors",
    ]  # fmt: skip
    record = json.loads((tmp_path / "model.json").read_text())
    assert (record["threshold"], record["licence"]) == (0.375, "free")
    assert record["onnx"]["sides"] == sides
    images = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    expected = dsfer.predict_array(images[0], images[1], path)
    np.testing.assert_allclose(by_the_record(out, images), expected, atol=1e-4)
    if sides != "32 each":  # any size: against torch, without windows
        images = np.random.default_rng(1).integers(0, 256, (2, 48, 80, 3), dtype=np.uint8)
        detector = dsfer.load(path)
        expected = detector.probabilities(images[None])[0]
        np.testing.assert_allclose(by_the_record(out, images), expected, atol=1e-4)
    with pytest.raises(CheckpointError, match="is an exported network"):
        dsfer.load(out)


OF_EACH = {(case.model, case.options.get("encoder")): case for case in reversed(ALL)}
"""The first case of every network and encoder."""


@pytest.mark.parametrize("case", OF_EACH.values(), ids=name_of)
def test_every_network_and_encoder_computes_the_same_as_onnx(tmp_path, case):
    path = tmp_path / "weights.safetensors"
    record = Metadata(case.model, case.options, (127,) * 3, (60,) * 3, tile_size=SIDE)
    save_weights(case.build(), path, record)
    export_onnx(path, tmp_path / "model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    expected = dsfer.load(path).probabilities(images[None])[0]
    assert expected.std() > 0.01
    found = by_the_record(tmp_path / "model.onnx", images)
    np.testing.assert_allclose(found, expected, atol=export.TOLERANCE)


def test_an_export_that_computes_something_else_is_not_left_behind(tmp_path, monkeypatch):
    path = weights(tmp_path, "dsfer-net", **TIED)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(CheckpointError, match="change probabilities differ from torch's by"):
        export_onnx(path, tmp_path / "model.onnx")
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "weights.json", "weights.safetensors",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"model\.pt is no \.onnx file"):
        export_onnx(path, tmp_path / "model.pt")


def test_an_export_does_not_replace_the_record_of_weights(tmp_path):
    path = weights(tmp_path, "dsfer-net", **TIED)
    with pytest.raises(ConfigError, match=r"take the place of that of .*weights\.safetensors"):
        export_onnx(path, tmp_path / "weights.onnx")
    assert dsfer.load(path).threshold("auto") == 0.375
