"""Bundles of weights and their record: loaded in one line, refused with a reason."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import dsfer
from dsfer.errors import CheckpointError, ConfigError, DataError, DeviceMemoryError
from dsfer.files import sha256_file
from dsfer.weights import Metadata, read_metadata, record_hash, save_weights

OPTIONS = {"width": 0.125, "image_size": 32, "hopfield_dim": 16}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = dsfer.create_model("dsfer-net", **OPTIONS)
    metadata = Metadata(
        "dsfer-net", OPTIONS, (100, 101, 102), (50, 51, 52), {"split_hash": "abc"},
        tile_size=32, threshold=0.25, licence="free",
    )  # fmt: skip
    save_weights(network, tmp_path / "weights.safetensors", metadata)
    return tmp_path / "weights.safetensors"


def images(rows: int, cols: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, rows, cols, 3), dtype=np.uint8)


def change(bundle: Path, **values: Any) -> None:
    """Write another record, with the hash that belongs to it; `gone` removes a key."""
    path = bundle.with_suffix(".json")
    record = json.loads(path.read_text()) | values
    record = {k: v for k, v in record.items() if v != "gone"}
    path.write_text(json.dumps(record | {"record_sha256": record_hash(record)}))


def test_one_line_gives_a_network_that_is_ready(bundle):
    detector = dsfer.load(bundle, device="cpu")
    t1, t2 = images(32, 32)
    network = dsfer.create_model("dsfer-net", weights=bundle).eval()
    mean, std = torch.tensor([100.0, 101, 102]), torch.tensor([50.0, 51, 52])
    inputs = [((torch.from_numpy(t).float() - mean) / std).permute(2, 0, 1)[None] for t in (t1, t2)]
    with torch.inference_mode():
        expected = network(*inputs).logits.softmax(dim=1)[0, 1].numpy()
    found = dsfer.predict_array(t1, t2, detector)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for place in (bundle, bundle.with_suffix(".json"), bundle.parent):
        np.testing.assert_array_equal(dsfer.predict_array(t1, t2, place), found)
    assert detector.tile_size == 32
    assert (detector.threshold(0.5), detector.threshold("auto")) == (0.5, 0.25)


def test_arrays_of_any_size_and_their_nodata(bundle):
    t1, t2 = images(50, 70)
    valid = np.ones((50, 70), bool)
    valid[:20, :30] = False
    whole, masked = (dsfer.predict_array(t1, t2, bundle, valid=each) for each in (None, valid))
    assert whole.shape == (50, 70) and whole.dtype == np.float32
    assert 0 <= whole.min() <= whole.max() <= 1
    np.testing.assert_array_equal(np.isnan(masked), ~valid)
    np.testing.assert_allclose(masked[40:], whole[40:], atol=1e-6)  # no window left out nearby


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda b: b.unlink(), ("weights.safetensors: no such file",)),
        (lambda b: b.with_suffix(".json").unlink(), ("record weights.json is not", "copy both")),
        (lambda b: b.with_suffix(".json").write_text("{"), ("weights.json: not valid JSON",)),
        (lambda b: b.with_suffix(".json").write_text("[]"), ("weights.json: has schema None",)),
        (lambda b: change(b, schema=1), ("weights.json: has schema 1", "write it again")),
        (lambda b: change(b, schema=2), ("weights.json: has schema 2", "write it again")),
        (lambda b: change(b, mean="gone", licence="gone"), ("lacks mean, licence",)),
        (lambda b: change(b, mean=[1, 2]), ("mean.2: field required",)),
        (lambda b: change(b, tile_size="x"), ("tile_size: input should be", "found 'x'")),
        (lambda b: change(b, colour=1), ("colour: unexpected",)),
        (lambda b: change(b, band_order=["blue", "green", "red"]), ("band_order.0: input should",)),
        (lambda b: change(b, model="bit"), ("has no option",)),
        (lambda b: change(b, model="new"), ("unknown model 'new'",)),
        (lambda b: change(b, sha256="00"), ("has SHA-256", "its record weights.json says 00")),
        (lambda b: change(b, options=OPTIONS | {"width": 0.25}), ("misshapen",)),
        (lambda b: change(b, onnx={}), ("is an exported network", ".safetensors")),
    ],
)  # fmt: skip
def test_bundles_that_are_not_whole(bundle, damage, parts):
    damage(bundle)
    with pytest.raises((CheckpointError, ConfigError)) as refused:
        dsfer.load(bundle)
    for part in parts:
        assert part in str(refused.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_no_value_of_a_record_changes_unseen(bundle, data):
    """Whatever a person may write instead, be it right by itself."""
    path = bundle.with_suffix(".json")
    whole = path.read_bytes()
    record = json.loads(whole)
    key = data.draw(st.sampled_from([key for key in record if key != "schema"]))
    values = st.none() | st.booleans() | st.integers() | st.floats(0, 1) | st.text()
    record[key] = data.draw((values | st.lists(values)).filter(lambda value: value != record[key]))
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"weights\.json: was changed since it was written"):
        read_metadata(bundle)
    path.write_text(json.dumps(json.loads(whole), sort_keys=True))  # the layout does not count
    read_metadata(bundle)
    path.write_bytes(whole)


def test_a_file_of_the_former_schema_says_so(bundle):
    bundle.with_suffix(".json").unlink()
    former = {"model": "dsfer-net", "schema": 1, "mean": [0, 0, 0]}
    save_file({"a": torch.zeros(1)}, bundle, {"dsfer": json.dumps(former)})
    with pytest.raises(CheckpointError, match="has schema 1, this version reads schema 3"):
        dsfer.load(bundle)


def test_files_of_others_are_refused_and_nothing_is_unpickled(bundle, monkeypatch):
    bundle.with_suffix(".json").unlink()
    save_file({"a": torch.zeros(1)}, bundle)
    with pytest.raises(CheckpointError, match="not a dsfer weights file"):
        dsfer.load(bundle)
    bundle.write_bytes(pickle.dumps({"a": 1}))
    monkeypatch.setattr(pickle, "Unpickler", None)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(CheckpointError, match="not a dsfer weights file"):
        dsfer.load(bundle)


def test_a_torch_file_with_a_record_of_its_own_is_not_unpickled(bundle, monkeypatch):
    disguised = bundle.with_name("disguised.pt")
    torch.save({"a": torch.zeros(1)}, disguised)
    shutil.copy(bundle.with_suffix(".json"), disguised.with_suffix(".json"))
    change(disguised, sha256=sha256_file(disguised))
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(CheckpointError, match=r"no \.safetensors file.*dsfer import-weights"):
        dsfer.load(disguised)


def test_arrays_that_are_no_pair(bundle):
    t1, t2 = images(40, 40)
    for first, second, what in (
        (t1.astype(float), t2, "float64"),
        (t1[..., 0], t2, r"\(40, 40\)"),
        (t1, t2[1:], r"t2 \(39, 40\)"),
        (t1[:0], t2[:0], r"\(0, 40, 3\)"),
    ):
        with pytest.raises(DataError, match=what):
            dsfer.predict_array(first, second, bundle)
    with pytest.raises(DataError, match="valid is float64"):
        dsfer.predict_array(t1, t2, bundle, valid=np.ones((40, 40)))
    with pytest.raises(ConfigError, match="overlap"):
        dsfer.predict_array(t1, t2, bundle, overlap=1)


def test_weights_without_a_chosen_threshold_say_so(bundle):
    change(bundle, threshold=None)
    with pytest.raises(ConfigError, match="know no threshold"):
        dsfer.load(bundle).threshold("auto")


def test_a_cpu_takes_windows_one_by_one_unless_told_otherwise(bundle):
    assert dsfer.load(bundle, device="cpu").inference.batch_size == 1
    assert dsfer.load(bundle, device="cpu", batch_size=5).inference.batch_size == 5
    with pytest.raises(ConfigError, match="0 is below 1"):
        dsfer.load(bundle, batch_size=0)


def test_running_out_of_gpu_memory_names_a_smaller_batch(bundle):
    def too_much(*_dates):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    detector = dsfer.load(bundle, batch_size=4)
    detector.network.forward = too_much
    with pytest.raises(DeviceMemoryError, match=r"with batch_size 4\..*try batch_size: 2\."):
        dsfer.predict_array(*images(64, 64), detector)
    with pytest.raises(DeviceMemoryError, match=r"with batch_size 1\..*a GPU with more memory\."):
        detector.probabilities(np.zeros((1, 2, 32, 32, 3), np.uint8))


def test_the_front_door_does_not_import_torch():
    code = "import sys, dsfer; dsfer.list_models(); print('torch' in sys.modules); dsfer.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n"
    assert "AttributeError: module 'dsfer' has no attribute 'nothing'" in done.stderr
