"""`params.yaml`: every key, every kind of mistake in it, and what null stands for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from dsfer.errors import ConfigError
from dsfer.models import MODELS, Method
from pipeline import model as networks
from pipeline import params as module
from pipeline.frozen import read_yaml
from pipeline.params import load_params, main, resolve

ROOT = Path(__file__).parents[1]
SHIPPED: dict[str, Any] = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
CATALOG = "pipeline/catalog.yaml"
BASE = SHIPPED | {
    **dict.fromkeys((key for key, value in SHIPPED.items() if value is None)),
    "dataset": "demo",
    "source": CATALOG,
    "recipe": "modern",
    "model": "dsfer-net",
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "params.yaml"
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(BASE | changes, file)
    return path


def settings(folder: Path, **changes: Any) -> module.Settings:
    return resolve(load_params(write(folder, **changes)))


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        settings(folder, **changes)
    assert "To mend it: " in str(caught.value)
    return str(caught.value)


def test_the_shipped_file_resolves():
    resolved = resolve(load_params(ROOT / "params.yaml"))
    assert list(resolved.resolved()) == list(SHIPPED)
    assert set(resolved.sources) <= set(SHIPPED)
    assert resolved.recipe_name == "modern"
    for key in ("lambda", "lr", "hopfield_dim"):
        assert key in SHIPPED
    assert SHIPPED["hopfield_dim"] == 512


# Every key with values of a wrong type, out of bounds or unknown. The message must show the value,
# or what stands beside it here.
WRONG = {
    "dataset": [3, None, (["demo"], "['demo']"), "demos", ""],
    "source": [3, None],
    "label_rule": [255, "binary", ""],
    "bands": [
        "rgb", 3, ([1, 2], "[1, 2]"), ([1, 2, 3, 4], "[1, 2, 3, 4]"), ([0, 1, 2], "found 0"),
        ([1, 2, 3.5], "3.5"), ([True, 2, 3], "True"),
    ],
    "tile_size": ["256", 256.0, True, 0, -256, 8, 100, ""],
    "padding": ["mirror", True, ""],
    "split": [3, "scene"],
    "split_ratio": [
        7, "7:1:2", ([7, 1], "[7, 1]"), ([7, -1, 2], "found -1"), ([0, 0, 0], "found 0"),
        ([7, "1", 2], "found '1'"), ([float("nan"), 1, 1], "nan"), ([7, 1, True], "True"),
    ],
    "split_seed": [-1, 0.5, None, "0", 2**63],
    "model": ["dsfer_net", 1, None],
    "variant": ["base", 1, "Base+CF", "pam"],
    "encoder": [16, "", "resnet19", ("alexnet", "alexnet")],
    "hopfield_dim": [0, -512, "512", 512.0, True],
    "hopfield_beta": [0, -1, "1", float("nan"), float("inf"), False],
    "norm": ["layer", None, ""],
    "recipe": ["papers", 3, "bit"],
    "lambda": [-0.1, "0.1", "", float("nan"), float("inf"), True, ([1], "[1]")],
    "optimiser": ["adamax", 1, ""],
    "momentum": [1, -0.1, "0.9", True, float("nan")],
    "lr": [0, -1e-3, "1e-3", "", float("nan"), float("inf"), True, 11],
    "weight_decay": [-1e-5, "x", float("nan"), True],
    "schedule": ["step", 1, ""],
    "schedule_iterations": [0, 1.5, "100", True],
    "hold": [-0.1, 1, True],
    "warmup": [-0.1, 1, True],
    "iterations": [0, -1, 400.0, "400", True],
    "batch_size": [0, -8, 8.5, True, ""],
    "change_loss": ["focal", 1],
    "deep_loss": ["soft", 1],
    "class_weights": ["median", ([1, 20], "[1, 20]")],
    "sampling": ["random", 1],
    "augmentation": ["flips", True, 1, (["mixup"], "'mixup'"), (["zoom", 3], "found 3")],
    "normalisation": ["mean", 1, ""],
    "ema": [1, 1.5, -0.1, float("nan"), "0.9", True],
    "precision": ["fp16", 32],
    "validate_every": [0, -5, 1.5, True],
    "width": [0, -1, 5, float("nan"), "1", True],
    "pretrained": [True, 1, "", "no-such-file.pth", "redrawn"],
    "seed": [-1, 0.5, None, True, 2**64],
    "device": ["gpu", 0, None],
    "compile": ["no", 1],
    "in_memory": ["no", 0],
    "workers": [0, 1.5, None, True],
    "cluster": [0, -1, 1.5, True, "2", "", "tcp://host", "http://host:8786", "host:8786"],
    "shards": [3, "", "bucket/folder", "/mnt/shards", "https://host/x",
               ("s3://key:secret@bucket/x", "s3://...")],
    "processes": [0, -1, 1.5, None, True, "two"],
    "overlap": [1, -0.1, float("nan"), float("inf"), None, True, "0.5"],
    "figures": [[], "tile", (["tile@3"], "tile@3"), (["tile@-1,2"], "tile@-1,2"), ([7], "7")],
}  # fmt: skip


def test_the_list_of_mistakes_covers_every_key():
    assert set(WRONG) == set(SHIPPED)


@pytest.mark.parametrize("key", SHIPPED)
def test_wrong_values_are_refused_with_key_value_and_mend(tmp_path, key):
    for entry in WRONG[key]:
        value, shown = entry if isinstance(entry, tuple) else (entry, repr(entry))
        message = refusal(tmp_path, **{key: value}).removeprefix(str(tmp_path))
        assert "params.yaml" in message
        assert key in message
        assert shown in message


RIGHT = {
    "label_rule": ["binary255", "binary01", "threshold128", "only255"],
    "bands": [[1, 2, 3], [4, 3, 2], [1, 1, 1]],
    "tile_size": [16, 96, 256, 1024],
    "padding": ["pad", "drop"],
    "split": ["scenes", "random", "spatial"],
    "split_ratio": [[7, 1, 2], [0.6, 0.1, 0.3]],
    "variant": ["base+concat", "base+cf", "base+concat+dsfr", "base+cf+dsfr"],
    "encoder": ["vgg16", "resnet18", "transformer"],
    "hopfield_dim": [1, 256, None],
    "hopfield_beta": [1, 0.0442],
    "norm": ["volume", "channel"],
    "recipe": ["paper", "released", "modern", "common"],
    "lambda": [0, 1, 100, 0.001],
    "lr": [1, 1e-5],
    "shards": [None, "s3://bucket", "s3://bucket/a/folder/"],
    "schedule": ["constant", "linear", "poly", "cosine", "exponential"],
    "augmentation": [[], ["symmetries"], ["flips", "zoom", "blur"]],
    "normalisation": ["dataset", "signed", "per-image", "imagenet"],
    "optimiser": ["adam", "adamw", "sgd"],
    "change_loss": ["cross-entropy", "weighted-mean", "contrastive"],
    "deep_loss": ["dice", "released-dice", "sigmoid-dice", "cross-entropy"],
    "hold": [0, 0.5],
    "cluster": [None, 1, 16, "tcp://10.0.0.1:8786", "tls://scheduler:8786"],
    "ema": [0, 0.999],
    "precision": ["float32", "bf16"],
    "class_weights": ["none", "inverse-frequency", "false-alarm"],
    "device": ["auto", "cpu", "cuda"],
    "compile": [True, False],
    "overlap": [0, 0.25],
    "figures": [None, ["a"], ["a@0,1", "b"]],
    "workers": [1, 8],
    "processes": [1, 8],
}


@pytest.mark.parametrize("key", RIGHT)
def test_right_values_are_taken_as_given(tmp_path, key):
    for value in RIGHT[key]:
        resolved = settings(tmp_path, **{key: value})
        assert resolved.resolved()[key] == value
        assert resolved.sources.get(key, "params.yaml") == "params.yaml"


def test_what_is_done_to_parameters_that_were_read_is_not_read_again(tmp_path):
    """One text is parsed once."""
    path = write(tmp_path, split_ratio=[7, 1, 2])
    before = load_params(path)
    load_params(path, {"lr": 0.5, "seed": 3})
    read_yaml(path)["split_ratio"].clear()
    assert load_params(path) == before


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "0.001", "1E-3", "+.001"])
def test_a_number_may_be_written_in_any_way_that_yaml_1_2_knows(tmp_path, written):
    path = write(tmp_path, lr="here")
    path.write_text(path.read_text().replace("here", written))
    assert resolve(load_params(path)).recipe.lr == 0.001


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("lamda", "lambda"), ("learning_rate", None), ("hopfield-dim", "hopfield_dim"),
     ("tilesize", "tile_size"), ("lambda_", "lambda"), ("LR", "lr"), ("batchsize", "batch_size")],
)  # fmt: skip
def test_an_unknown_key_names_the_nearest(tmp_path, key, nearest):
    message = refusal(tmp_path, **{key: 1})
    assert f"unknown key '{key}'" in message
    assert f"perhaps you mean '{nearest}'" in message if nearest else "one of: " in message


def test_several_mistakes_are_told_at_once(tmp_path):
    message = refusal(tmp_path, tile_size="big", seed=-1, workers=-2)
    assert all(part in message for part in ("tile_size", "'big'", "seed", "-1", "workers", "-2"))


@pytest.mark.parametrize("key", SHIPPED)
def test_no_key_may_be_left_out(tmp_path, key):
    path = write(tmp_path)
    values = {k: v for k, v in BASE.items() if k != key}
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(values, file)
    with pytest.raises(ConfigError, match=f"params.yaml: {key}: Field required"):
        load_params(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: demo\nlr: [1\n", r"no YAML \(line \d: expected"),
        ("lr: 1\nlr: 2\n", r'no YAML \(line 2: found duplicate key "lr"'),
        ("\t- a", "no YAML .line 1"),
        ("", "top level: .*found None"),
        ("- 1", "top level"),
        ("demo", "top level.*found 'demo'"),
        ("1: 2", "top level: unknown key '1'"),
    ],
)
def test_files_that_hold_no_parameters(tmp_path, text, message):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"params\.yaml: {message}") as caught:
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


def test_a_missing_or_unreadable_file_says_where_to_run(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: .*run from the project's top folder"):
        load_params(tmp_path / "none.yaml")
    (tmp_path / "params.yaml").write_bytes(b"dataset: \xff\xfe")
    with pytest.raises(ConfigError, match="not a readable file"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [
        ("dataset", "levir_cd", "levir-cd"),
        ("dataset", "whu", "whu-cd"),
        ("dataset", "folders/mine", "folder"),
        ("model", "dsfernet", "dsfer-net"),
        ("variant", "base+cf+dsf", "base+cf+dsfr"),
        ("recipe", "modren", "modern"),
        ("split", "spacial", "spatial"),
        ("label_rule", "binary-01", "binary01"),
    ],
)
def test_a_typo_names_the_nearest_and_all_there_are(tmp_path, key, value, nearest):
    message = refusal(tmp_path, **{key: value})
    assert message.startswith("params.yaml, ") and f", {key}: " in message
    assert f"'{value}'" in message
    assert f"perhaps you mean '{nearest}'" in message
    assert "choose one of" in message


def test_null_is_what_recipe_and_catalog_say(tmp_path):
    given = {key: None for key, value in SHIPPED.items() if value is None} | {"recipe": "paper"}
    resolved = settings(tmp_path, **given, dataset="levir-cd")
    sources = resolved.sources
    assert {sources[key] for key in ("label_rule", "tile_size", "padding", "split")} == {"catalog"}
    assert sources["lr"] == sources["lambda"] == "recipe paper for levir-cd"
    assert sources["iterations"] == sources["width"] == "recipe paper"
    assert "seed" not in sources  # it has no other source than params.yaml
    own = settings(tmp_path, dataset="levir-cd", recipe="paper", lr=3e-4, tile_size=128)
    assert own.recipe.lr == 3e-4
    assert own.sources["lr"] == own.sources["tile_size"] == "params.yaml"
    assert own.recipe.lambda_ == 0.1


def test_own_data_share_an_entry_and_have_folders_of_their_own(tmp_path):
    resolved = settings(tmp_path, dataset="folder/harbour", source="/data/harbour")
    assert resolved.folder == Path("data/folder/harbour")
    assert resolved.data.entry.name == "folder"
    assert resolved.data.source == "/data/harbour"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "levir-cd", "split_ratio": [7, 1, 2]}, "'published' .*takes no ratio.*null"),
        ({"dataset": "cdd", "split": "fragments", "split_ratio": [7, 1, 2]}, "takes no ratio"),
        ({"dataset": "cdd", "split": "random"}, "'cdd' has no split policy 'random'"),
        ({"dataset": "folder"}, "source: .*is your own.*your folder of scenes"),
        ({"dataset": "folder/x"}, "source: .*is your own"),
        ({"dataset": "rasters"}, "source: .*your folder of rasters and their list"),
        ({"source": "/my/imagery"}, "'/my/imagery' is not used by data set 'demo'.*folder/NAME"),
        ({"dataset": "cdd", "source": "/my/imagery"}, "not used by data set 'cdd'"),
        ({"width": 0.25, "pretrained": "imagenet"}, "fits width 1 only, and width is 0.25"),
        ({"width": 1, "pretrained": "vgg.pth"}, "'vgg.pth' is no file"),
    ],
)
def test_values_that_exclude_each_other(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=f"^params.yaml, .*{message}"):
        settings(tmp_path, **changes)


@pytest.mark.parametrize("norm", ["volume", "channel"])
@pytest.mark.parametrize(("size", "mend"), [(100, "96 or 112"), (250, "240 or 256"), (17, "16 or")])
def test_a_tile_size_that_no_network_takes_is_refused_before_any_work(tmp_path, norm, size, mend):
    message = refusal(tmp_path, norm=norm, tile_size=size)
    assert message.startswith("params.yaml, tile_size: ")
    assert f"{size} is not divisible by 16, which dsfer-net needs" in message
    assert f"set tile_size to {mend}" in message


@pytest.mark.parametrize(
    ("recipe", "given", "n"),
    [
        ("paper", {"iterations": 2000}, 2000),
        ("released", {"iterations": 2000}, 4000),
        ("released", {"iterations": 2000, "schedule_iterations": 3000}, 3000),
        ("modern", {"iterations": 2000}, 2000),
        ("paper", {}, 30_000),
    ],
)
def test_the_schedule_follows_the_iterations(tmp_path, recipe, given, n):
    resolved = settings(tmp_path, dataset="levir-cd", recipe=recipe, **given)
    assert resolved.recipe.schedule_iterations == n
    source = resolved.sources["schedule_iterations"]
    expected = {4000: "iterations", 3000: "params.yaml", 30_000: "recipe paper"}
    assert source == expected.get(n, "iterations")


def test_weights_of_the_encoder_may_be_a_local_file(tmp_path):
    weights = tmp_path / "vgg.pth"
    weights.touch()
    resolved = settings(tmp_path, width=1, pretrained=str(weights))
    assert resolved.recipe.pretrained == str(weights)


# Section 0, decision 2, and section 3 of the reference: the paper's and the released code's values.
COMMON = {
    "weight_decay": 1e-5, "batch_size": 32, "validate_every": 500, "schedule_iterations": 30000,
    "warmup": 0, "augmentation": (), "ema": 0, "precision": "float32", "width": 1,
    "pretrained": "imagenet", "class_weights": "inverse-frequency", "optimiser": "adam",
    "momentum": 0.9, "hold": 0, "normalisation": "dataset",
}  # fmt: skip
PAPER = COMMON | {
    "change_loss": "cross-entropy", "deep_loss": "dice", "schedule": "linear", "iterations": 30000,
    "sampling": "epochs",
}  # fmt: skip
RELEASED = COMMON | {
    "change_loss": "weighted-mean", "deep_loss": "released-dice", "schedule": "poly",
    "iterations": 15000, "sampling": "repeated",
}  # fmt: skip
RECIPES = [
    ("paper", PAPER, "levir-cd", {"lr": 1e-5, "lambda": 0.1}),
    ("paper", PAPER, "whu-cd", {"lr": 1e-5, "lambda": 0.01}),
    ("paper", PAPER, "cdd", {"lr": 1e-4, "lambda": 1}),
    ("released", RELEASED, "levir-cd", {"lr": 5e-5, "lambda": 0.01}),
    ("released", RELEASED, "whu-cd", {"lr": 5e-5, "lambda": 1}),
    ("released", RELEASED, "cdd", {"lr": 1e-4, "lambda": 0.1}),
]
WEIGHTS = {
    "levir-cd": (1.04809706, 21.79129276),
    "whu-cd": (1.04715042, 22.20871691),
    "cdd": (1.13250422, 8.54692918),
}


@pytest.mark.parametrize(("recipe", "common", "dataset", "own"), RECIPES)
def test_recipes_are_those_of_paper_and_released_code(tmp_path, recipe, common, dataset, own):
    resolved = settings(tmp_path, recipe=recipe, dataset=dataset)
    assert resolved.recipe.model_dump(by_alias=True) == common | own
    assert all(resolved.sources[key].startswith(f"recipe {recipe}") for key in common | own)
    assert resolved.data.entry.class_weights == WEIGHTS[dataset]
    assert resolved.data.tile_size == 256
    options = resolved.model_options
    assert options == {
        "image_size": 256, "encoder": "vgg16", "hopfield_dim": 512, "hopfield_beta": None,
        "norm": "volume", "variant": "base+cf+dsfr",
    }  # fmt: skip


# Section 2 of the reference, what tells the methods' own training apart.
OWN = {
    "bit": {"optimiser": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 8,
            "iterations": 178000, "schedule": "linear", "change_loss": "cross-entropy",
            "class_weights": "none", "normalisation": "signed", "pretrained": "imagenet",
            "augmentation": ("flips", "zoom", "blur")},
    "vct": {"optimiser": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 8,
            "iterations": 178000, "schedule": "linear", "change_loss": "cross-entropy"},
    "changeformer": {"optimiser": "adamw", "lr": 1e-4, "weight_decay": 0.01, "batch_size": 16,
                     "iterations": 89000, "deep_loss": "cross-entropy", "lambda": 1,
                     "normalisation": "signed",
                     "augmentation": ("flips", "zoom", "blur", "colour")},
    "stanet": {"optimiser": "adam", "momentum": 0.5, "lr": 1e-3, "weight_decay": 0, "hold": 0.5,
               "schedule": "linear", "iterations": 178000, "change_loss": "contrastive",
               "normalisation": "signed", "augmentation": ("rotation",)},
    "dsamnet": {"optimiser": "adam", "momentum": 0.9, "lr": 5e-4, "weight_decay": 0,
                "batch_size": 8, "schedule": "constant", "iterations": 89000,
                "change_loss": "contrastive",
                "deep_loss": "sigmoid-dice", "lambda": 0.1, "augmentation": ()},
    "fc-siam-conc": {"lr": 1e-3, "weight_decay": 1e-4, "schedule": "exponential", "batch_size": 32,
                     "change_loss": "weighted-mean", "class_weights": "false-alarm",
                     "normalisation": "per-image", "augmentation": ("symmetries",)},
    "frnet": {"lr": 5e-5, "schedule": "poly", "change_loss": "weighted-mean", "lambda": 0,
              "class_weights": "inverse-frequency"},
}  # fmt: skip
OWN["fc-ef-res"] = OWN["fc-siam-conc"]
OTHERS = sorted(OWN)


@pytest.mark.parametrize("model", OTHERS)
def test_each_compared_method_has_its_own_recipe_by_default(tmp_path, model):
    resolved = settings(tmp_path, model=model, recipe=None, dataset="levir-cd")
    assert resolved.recipe_name == resolved.resolved()["recipe"] == model
    found = resolved.recipe.model_dump(by_alias=True)
    assert {key: found[key] for key in OWN[model]} == OWN[model]
    assert resolved.sources["recipe"] == f"default of {model}"
    assert resolved.resolved()["hopfield_dim"] is None
    for dataset in ("whu-cd", "cdd", "demo", "folder/mine"):
        source = "/imagery" if dataset == "folder/mine" else CATALOG
        settings(tmp_path, model=model, recipe=None, dataset=dataset, source=source)


@pytest.mark.parametrize("model", ["dsfer-net", *OTHERS])
def test_under_the_common_recipe_all_methods_train_alike_but_for_their_terms(tmp_path, model):
    resolved = settings(tmp_path, model=model, recipe="common", dataset="levir-cd")
    modern = settings(tmp_path, recipe="modern", dataset="levir-cd").recipe
    own = {"change_loss", "deep_loss", "lambda_", "pretrained"}
    assert resolved.recipe.model_dump(exclude=own) == modern.model_dump(exclude=own)
    terms = (resolved.recipe.change_loss, resolved.recipe.deep_loss, resolved.recipe.lambda_)
    assert terms == {
        "stanet": ("contrastive", "dice", 0.1),  # it has no deep maps
        "dsamnet": ("contrastive", "sigmoid-dice", 0.1),
        "changeformer": ("cross-entropy", "cross-entropy", 1.0),
    }.get(model, ("cross-entropy", "dice", 0.1))
    if model == "dsfer-net":
        assert resolved.recipe == modern


def test_a_network_without_a_recipe_gets_the_common_one(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "my-net", Method("mine.MyNet"))
    resolved = settings(tmp_path, model="my-net", recipe=None, dataset="levir-cd")
    assert resolved.recipe_name == "common"
    assert resolved.variant is None
    assert resolved.model_options == {}


@pytest.mark.parametrize("model", ["bit", "changeformer", "vct"])
def test_the_released_start_is_asked_for_by_name(tmp_path, model):
    resolved = settings(tmp_path, model=model, recipe=f"{model}-released", dataset="levir-cd")
    assert resolved.model_options["released_init"] is True
    own = settings(tmp_path, model=model, recipe=model, dataset="levir-cd")
    assert "released_init" not in own.model_options
    same = {"pretrained"}
    assert resolved.recipe.model_dump(exclude=same) == own.recipe.model_dump(exclude=same)


def test_a_recipe_of_another_method_is_refused_with_those_that_fit(tmp_path):
    message = refusal(tmp_path, model="bit", recipe="paper")
    assert "recipe 'paper' is for dsfer-net, not for bit" in message
    assert "choose one of common, bit, bit-released, or null for bit" in message
    assert "'stanet' is for stanet" in refusal(tmp_path, recipe="stanet")


@pytest.mark.parametrize(
    ("model", "variant", "options"),
    [
        ("stanet", None, {"attention": "pam"}),
        ("stanet", "bam", {"attention": "bam"}),
        ("changeformer", None, {"version": "v6"}),
        ("changeformer", "v5", {"version": "v5"}),
        ("bit", "dd8", {"decoder_head_width": 64}),
        ("frnet", None, {}),
    ],
)
def test_variants_are_those_of_the_model(tmp_path, model, variant, options):
    resolved = settings(tmp_path, model=model, variant=variant, recipe=None, dataset="cdd")
    assert resolved.model_options == options
    assert resolved.resolved()["variant"] == (variant or resolved.variant)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "frnet", "variant": "pam"}, "'pam', and frnet has none.*set it to null"),
        ({"model": "stanet", "variant": "v6"}, "unknown variant 'v6'.*pam, bam, or null"),
        ({"model": "bit", "encoder": "vgg16"}, "'vgg16' is for dsfer-net, and bit has its own"),
        ({"model": "stanet", "tile_size": 144}, "not divisible by 32, which stanet.*128 or 160"),
        ({"model": "changeformer", "tile_size": 16}, "tile_size: 16 .*changeformer.*to 32"),
        ({"model": "vct", "tile_size": 96}, "96 is too small for vct.*128 or more"),
        ({"model": "bit", "tile_size": 100}, "not divisible by 8, which bit needs.*96 or 104"),
        ({"encoder": "resnet18", "tile_size": 144}, "not divisible by 32"),
        ({"encoder": "resnet50", "tile_size": 144, "width": 1}, "not divisible by 32"),
        ({"encoder": "resnet50", "dataset": "demo"}, "resnet50 has one width, not 0.25 times it"),
        ({"model": "stanet", "pretrained": "redrawn"}, "released start of bit, .*not of stanet"),
        ({"encoder": "transformer", "dataset": "cdd"}, "no ImageNet weights of transformer.*none"),
        ({"model": "fc-ef-res", "pretrained": "imagenet"}, "no ImageNet weights of fc-ef-res"),
    ],
)
def test_what_a_method_cannot_take_is_refused_before_any_work(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=f"^params.yaml, .*{message}"):
        settings(tmp_path, **{"recipe": None} | changes)


def test_a_tile_size_that_one_method_refuses_another_takes(tmp_path):
    for model in ("dsamnet", "fc-siam-conc", "frnet"):
        assert settings(tmp_path, model=model, recipe=None, tile_size=144).data.tile_size == 144
    assert settings(tmp_path, encoder="vgg19", width=1, tile_size=144).data.tile_size == 144


def test_any_value_of_a_recipe_yields_to_params(tmp_path):
    resolved = settings(tmp_path, recipe="released", dataset="cdd", **{"lambda": 10}, batch_size=4)
    assert (resolved.recipe.lambda_, resolved.recipe.batch_size) == (10, 4)
    assert resolved.recipe.lr == 1e-4


def test_the_command_prints_every_value_and_its_source(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, dataset="folder/port", source="/data/[old] port", recipe="paper", lr=2e-4)
    main()
    cells = [
        tuple(cell.strip() for cell in line.strip("│").split("│"))
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("│")
    ]
    rows = {name: (value, source) for name, value, source in cells}
    assert list(rows) == list(SHIPPED)
    assert rows["lr"] == ("0.0002", "params.yaml")
    assert rows["lambda"] == ("0.1", "recipe paper")
    assert rows["tile_size"] == ("256", "catalog")
    assert rows["source"] == ("/data/[old] port", "params.yaml")
    assert rows["bands"] == ("null", "catalog")
    assert rows["compile"] == ("null", "params.yaml")


@pytest.mark.parametrize(
    ("given", "device", "processes", "compiled"),
    [
        (None, "cuda", 1, True), (None, "cuda", 2, False), (None, "cpu", 1, False),
        (True, "cuda", 2, True), (True, "cpu", 1, True), (False, "cuda", 1, False),
    ],
)  # fmt: skip
def test_one_gpu_compiles_unless_told_otherwise(
    tmp_path, monkeypatch, caplog, given, device, processes, compiled
):
    caplog.set_level("INFO")
    monkeypatch.setattr(networks, "world_size", lambda: processes)
    assert networks.is_compiled(settings(tmp_path, compile=given), torch.device(device)) == compiled
    told = "compile: false, since 2 processes train together" in caplog.text
    assert told == (given is None and processes == 2)
