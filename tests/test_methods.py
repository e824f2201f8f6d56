"""Every network through the same stages by its own recipe: trained, scored, reported, loaded."""

import json
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

import dsfer
from dsfer.detector import load
from dsfer.errors import CheckpointError
from dsfer.models import count_parameters
from dsfer.training import Interrupted
from pipeline.params import current_settings
from pipeline.params import main as print_params
from pipeline.stages import crop, download, evaluate, figures, report, shard, split, train, validate
from tests.test_training import identical, trainer
from tests.tiles import tiny_pairs

ROOT = Path(__file__).parents[1]
SIDE = 64
SIDE_OF_VCT = 128  # the least that it takes
TINY = {
    "dataset": "folder/mine", "source": "imagery", "tile_size": SIDE, "split": "scenes",
    "split_ratio": [2, 1, 1], "width": 0.125, "pretrained": "none", "hopfield_dim": 16,
    "iterations": 4, "batch_size": 2, "validate_every": 4, "device": "cpu", "compile": False,
    "in_memory": True, "workers": 1,
}  # fmt: skip

ADAPTED = {
    # Not thinner: on CPUs torch 2.15 crashes in the backward pass of a 1x1 convolution of stride 2
    # from 8 to 16 channels, channels last, on maps of 64x64, which is in DSAMNet's second layer.
    "dsamnet": {"width": 0.25},
    "fc-siam-conc": {"lr": 0.003},  # below, four steps bring less than dropout hides
    "frnet": {"lr": 0.002},  # 5e-5 is too little to be seen in four steps
    "vct": {"tile_size": SIDE_OF_VCT},
}


def configure(folder: Path, **changes: Any) -> None:
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load((ROOT / "params.yaml").read_text()) | TINY | changes
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(values, file)


def prepare(side: int) -> None:
    """Shard and validate four tiles of made-up imagery in the current folder."""
    pairs, labels = tiny_pairs(4, side, 0)
    for number in range(4):
        images = {"A": pairs[number, 0], "B": pairs[number, 1], "label": labels[number] * 255}
        for name, pixels in images.items():
            folder = Path("imagery", name)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"scene{number}.png")
    for stage in (download, crop, split, validate, shard):
        stage.main()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A project whose four tiles are sharded and validated."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        configure(folder)
        prepare(SIDE)
    return folder


@pytest.fixture
def project(prepared, tmp_path, monkeypatch) -> Path:
    """A copy of it, and the current folder in the copy."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


@pytest.mark.parametrize("model", dsfer.list_models())
def test_a_network_trains_and_is_evaluated_under_its_own_recipe(
    project, model, capsys, monkeypatch
):
    after_midnight = datetime(2026, 11, 24, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    monkeypatch.setattr(evaluate, "datetime", SimpleNamespace(now=after_midnight.astimezone))
    configure(project, model=model, **ADAPTED.get(model, {}))
    if model == "vct":
        prepare(SIDE_OF_VCT)
    print_params()
    assert f"default of {model}" in capsys.readouterr().out
    for stage in (train, evaluate, figures, report):
        stage.main()
    settings = current_settings()
    out = settings.model_folder
    history = pd.read_csv(out / "training/history.csv")
    assert history["step"].tolist() == [1, 2, 3, 4]
    assert history["train/loss"].iloc[-1] < history["train/loss"].iloc[0]
    written = json.loads((out / "training/settings.json").read_text())
    assert written["values"]["recipe"] == settings.recipe_name
    metrics = json.loads((out / "evaluation/metrics.json").read_text())
    assert metrics["model"] == model and metrics["recipe"] == settings.recipe_name
    assert metrics["date"] == "2026-11-23"  # in UTC
    assert (metrics["variant"], metrics["encoder"]) == (settings.variant, settings.encoder)
    assert metrics["tiles"]["n"] == metrics["stitched"]["n"] == 1
    assert f"<dd>{model}" in (out / "report.html").read_text()
    detector = load(out / "training/weights.safetensors")
    counted = count_parameters(detector.network)
    assert (metrics["parameters"], metrics["parameters_counted"]) == counted
    assert (counted.live < counted.counted) == (model in ("bit", "vct"))
    assert detector.tile_size == settings.data.tile_size
    assert detector.inference.per_image == model.startswith("fc-")
    assert (detector.inference.mean[0] == 127.5) == (settings.recipe.normalisation == "signed")


# BiT and VcT, the slowest, have the loss of FC-EF-Res there.
@pytest.mark.parametrize("model", sorted({*dsfer.list_models()} - {"bit", "vct"}))
def test_under_the_common_recipe_every_network_learns_from_all_its_maps(project, model):
    variant = "bam" if model == "stanet" else None
    rate = {"lr": 0.001}  # 1e-4 is too little to be seen in four steps
    changes = rate | ADAPTED.get(model, {})
    configure(project, model=model, recipe="common", variant=variant, **changes)
    train.main()
    settings = current_settings()
    history = pd.read_csv(settings.model_folder / "training/history.csv")
    total, change, deep = (history[f"train/{term}"] for term in ("loss", "change", "deep"))
    assert total.iloc[-1] < total.iloc[0]
    assert total.tolist() == pytest.approx((change + settings.recipe.lambda_ * deep).tolist())
    assert (deep > 0).all() == (model in ("changeformer", "dsamnet", "dsfer-net"))


def test_weights_of_another_method_are_refused(project):
    configure(project, model="fc-ef-res")
    train.main()
    own = current_settings().model_folder
    configure(project, model="frnet")
    other = current_settings().model_folder / "training"
    shutil.copytree(own / "training", other)
    with pytest.raises(CheckpointError, match="holds weights of 'fc-ef-res', not of 'frnet'"):
        evaluate.main()


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("bit", {"optimiser": "sgd", "lr": 0.01, "augmentation": ("flips", "zoom", "blur")}),
        ("dsamnet", {"optimiser": "adam", "augmentation": ("rotation",)}),
        ("changeformer", {"optimiser": "adamw", "augmentation": ("zoom", "colour")}),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path, model, changes):
    def start(folder):
        torch.manual_seed(0)
        network = dsfer.create_model(model, width=0.125)
        return trainer(folder, network, iterations=4, schedule_iterations=4, **changes)

    asked = []
    with pytest.raises(Interrupted, match="step 2"):
        start(tmp_path).fit(stop=lambda: asked.append(1) or len(asked) == 2)
    continued, undisturbed = start(tmp_path).fit(), start(tmp_path / "undisturbed").fit()
    assert identical(continued.states, undisturbed.states)
    assert json.dumps(continued.history) == json.dumps(undisturbed.history)


@pytest.mark.parametrize("model", ["bit", "dsamnet", "fc-siam-conc", "stanet", "vct"])
def test_in_training_each_date_meets_batch_norm_by_itself_as_released(model):
    network = dsfer.create_model(model, width=0.125)
    first = next(m for m in network.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d))
    network(*torch.randn(2, 2, 3, SIDE_OF_VCT, SIDE_OF_VCT))
    assert first.num_batches_tracked == 2
