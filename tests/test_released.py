"""Released checkpoints: every entry arrives, the network computes what the released one computes,
and what does not fit is refused.

The released networks are written here a second time, as plain functions of their state dict, one
date after the other, as their authors' papers and state dicts describe them.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dsfer.errors import CheckpointError, ConfigError
from dsfer.models import count_parameters
from dsfer.released import RELEASES, import_released
from tests.released_states import Layers, released_states

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
EVERY = [(model, release) for model, releases in RELEASES.items() for release in releases]


every_release = pytest.mark.parametrize(
    ("model", "release"), EVERY, ids=[release.table for _, release in EVERY]
)


@every_release
def test_every_value_arrives(model, release, tmp_path):
    states, path = released_states(release), tmp_path / "model.pth"
    torch.save(states, path)
    network, metadata = import_released(model, [path], "levir-cd")
    own = network.state_dict()
    assert {e.ours: e.shape for e in release.entries if e.ours} == {
        name: value.shape for name, value in own.items()
    }
    for entry in release.entries:
        if entry.ours and entry.ours != release.reversed_bands:
            assert torch.equal(own[entry.ours], states[entry.name]), entry.name
    unused = [e for e in release.entries if not e.ours and not e.name.endswith(BUFFERS)]
    live, counted = count_parameters(network)
    assert counted - live == sum(e.shape.numel() for e in unused)
    assert metadata.model == model
    assert metadata.about["imported_from"] == "model.pth"
    assert metadata.options == release.options
    per_image = model.startswith("fc-")
    assert metadata.per_image == per_image
    if model != "dsfer-net":
        assert metadata.mean + metadata.std == ((0,) * 3 + (1,) * 3 if per_image else (127.5,) * 6)


@every_release
@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_what_does_not_fit_is_refused(model, release, change, tmp_path):
    """By the names and shapes: a file of one number, repeated, has those of 100 million."""
    states = {entry.name: torch.zeros(()).expand(entry.shape) for entry in release.entries}
    path = tmp_path / "model.pth"
    name = release.entries[len(states) // 2].name
    if change == "missing":
        del states[name]
    elif change == "extra":
        name = "extra.weight"
        states[name] = torch.zeros(1)
    else:
        states[name] = torch.zeros(3, 1, 4)
    torch.save(states, path)
    with pytest.raises(CheckpointError, match=name):
        import_released(model, [path], "levir-cd")


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    torch.save(released_states(RELEASES["fc-ef-res"][0]), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="143 missing"):
        import_released("fc-siam-conc", [tmp_path / "model.pth"])


def test_models_and_data_sets_without_a_release_are_named(tmp_path):
    with pytest.raises(ConfigError, match="stanet"):
        import_released("resnet", [tmp_path / "model.pth"])
    torch.save(released_states(RELEASES["dsfer-net"][0]), tmp_path / "model.pth")
    with pytest.raises(ConfigError, match="levir-cd, whu-cd, cdd"):
        import_released("dsfer-net", [tmp_path / "model.pth"], "levir")


def test_stanet_comes_in_two_files(tmp_path):
    states = released_states(RELEASES["stanet"][0])
    paths = []
    for part in ("netF.", "netA."):
        mine = {name.removeprefix(part): v for name, v in states.items() if name.startswith(part)}
        paths.append(tmp_path / f"pam_{part}pth")
        torch.save(mine, paths[-1])
    network, metadata = import_released("stanet", paths)
    fuse = states["netA.Self_Att.conv_bn.0.weight"]
    assert torch.equal(network.state_dict()["attention.fuse.weight"], fuse)
    assert metadata.about["imported_from"] == "pam_netF.pth, pam_netA.pth"
    with pytest.raises(CheckpointError, match="once"):
        import_released("stanet", [paths[0], paths[0]])
    with pytest.raises(CheckpointError, match=r"missing: netA\.Self_Att"):
        import_released("stanet", [paths[0]])


def test_a_state_dict_among_other_things_is_found(tmp_path):
    states = released_states(RELEASES["fc-ef-res"][0])
    kept = {"epoch": 3, "net": states, "optimiser": {"state": {}, "param_groups": []}}
    torch.save(kept, tmp_path / "checkpoint.pt")
    network, _ = import_released("fc-ef-res", [tmp_path / "checkpoint.pt"])
    assert torch.equal(network.state_dict()["classifier.bias"], states["coupling.bias"])


@pytest.mark.parametrize("model", ["bit", "changeformer", "vct"])
def test_a_checkpoint_of_bits_trainer_is_imported(model, tmp_path):
    """As `models/trainer.py` of BiT, which the others share, saves it: the score is numpy's."""
    states = released_states(RELEASES[model][0])
    kept = {
        "epoch_id": 3,
        "best_val_acc": np.nanmean([0.9, 0.8]),
        "best_epoch_id": 3,
        "model_G_state_dict": states,
        "optimizer_G_state_dict": {"state": {0: {"momentum_buffer": torch.zeros(1)}},
                                   "param_groups": [{"lr": 0.01, "params": [0]}]},
        "exp_lr_scheduler_G_state_dict": {"base_lrs": [0.01], "lr_lambdas": [None]},
    }  # fmt: skip
    torch.save(kept, tmp_path / "best_ckpt.pt")
    network, _ = import_released(model, [tmp_path / "best_ckpt.pt"])
    own = network.state_dict()
    for entry in RELEASES[model][0].entries:
        if entry.ours:
            assert torch.equal(own[entry.ours], states[entry.name]), entry.name


@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_scalars_of_either_numpy_beside_the_weights_are_passed_over(module, tmp_path):
    states, path = released_states(RELEASES["fc-ef-res"][0]), tmp_path / "best.pt"
    scores = {"f1": np.float64(0.9), "loss": np.float32(0.1), "epoch": np.int64(3)}
    torch.save({**scores, "net": states}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"numpy._core.multiarray" in content
    path.write_bytes(content.replace(b"numpy._core.multiarray", module))
    network, _ = import_released("fc-ef-res", [path])
    assert torch.equal(network.state_dict()["classifier.bias"], states["coupling.bias"])


class Payload:
    def __reduce__(self):
        return (print, ("code ran",))


class InAScalar:
    """Hands the payload to what builds scalars of numpy."""

    def __reduce__(self):
        return (np.float64(0).__reduce__()[0], (np.dtype("O"), Payload()))


class Layer:
    """As `torch.save` writes a whole layer."""

    def __reduce__(self):
        return (torch.nn.Linear, (1, 1))


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        (Payload(), "'print'"),
        (InAScalar(), "'print'"),
        (Layer(), r"'torch\.nn\.modules\.linear\.Linear'"),
        (np.zeros(2), r"'numpy\._core\.multiarray\._reconstruct'"),
    ],
    ids=["call", "in a scalar", "layer", "array"],
)
def test_nothing_but_scalars_is_passed_over(payload, named, tmp_path, capsys):
    kept = {"best_val_acc": np.float64(0.5), "net": {"a": torch.zeros(1)}, "payload": payload}
    torch.save(kept, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=rf"\(it holds {named}, which is no plain value\)"):
        import_released("fc-ef-res", [tmp_path / "model.pth"])
    assert "code ran" not in capsys.readouterr().out


def test_a_network_saved_inside_data_parallel_is_imported(tmp_path):
    states = released_states(RELEASES["fc-ef-res"][0])
    parallel = {f"module.{name}": value for name, value in states.items()}
    torch.save(parallel, tmp_path / "model.pth")
    network, _ = import_released("fc-ef-res", [tmp_path / "model.pth"])
    assert torch.equal(network.state_dict()["classifier.bias"], states["coupling.bias"])
    parallel["coupling.bias"] = parallel.pop("module.coupling.bias")
    torch.save(parallel, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"unknown: module\."):
        import_released("fc-ef-res", [tmp_path / "model.pth"])


# The released networks, as functions of their state dict.


def fc_siam_conc(net, t1, t2):
    units = {1: 2, 2: 2, 3: 3, 4: 3}

    def encode(x):
        skips = {}
        for level, count in units.items():
            for unit in range(1, count + 1):
                x = net.conv(f"conv{level}{unit}", x).clone()
                x = net.norm(f"bn{level}{unit}", x).relu()
            skips[level] = x
            x = F.max_pool2d(x, 2)
        return skips, x

    skips1, _ = encode(t1)
    skips2, x = encode(t2)
    for level in (4, 3, 2, 1):
        x = net.transposed(f"upconv{level}", x, stride=2)
        x = torch.cat((x, skips1[level], skips2[level]), 1)
        for unit in range(units[level], 0, -1):
            x = net.flipped(f"conv{level}{unit}d", x)
            if (level, unit) != (1, 1):
                x = net.norm(f"bn{level}{unit}d", x).relu()
    return (x,)


def fc_ef_res(net, t1, t2):
    def plain(name, x, pool=False):
        block = net.under(f"{name}.")
        shortcut = x
        if block.get("couple.weight") is not None:
            shortcut = block.norm("bnc", block.conv("couple", x))
        x = block.norm("bn1", block.conv("conv1", x)).relu()
        if pool:
            x, shortcut = F.max_pool2d(x, 2), F.max_pool2d(shortcut, 2)
        return (block.norm("bn2", block.conv("conv2", x)) + shortcut).relu()

    def up(name, x):
        block = net.under(f"{name}.")
        shortcut = block.norm("bnc", block.transposed("couple", x, stride=2))
        x = block.norm("bn1", block.transposed("conv1", x, stride=2)).relu()
        return (block.norm("bn2", block.conv("conv2", x)) + shortcut).relu()

    x, skips = torch.cat((t1, t2), 1), {}
    for level in (1, 2, 3, 4):
        skips[level] = plain(f"encres{level}_1", x)
        x = plain(f"encres{level}_2", skips[level], pool=True)
    for level in (4, 3, 2, 1):
        x = up(f"decres{level}_2", plain(f"decres{level}_1", x))
        x = torch.cat((x, skips[level]), 1)
    return (net.conv("coupling", x),)


def metric_features(backbone, decoder, image, stem_stride, last_layer):
    """The backbone and head of STANet and DSAMNet: features, and the maps of layers 1 and 2."""
    x = backbone.norm("bn1", backbone.conv("conv1", image, stride=stem_stride)).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    maps = []
    for layer, stride in ((1, 1), (2, 2), (3, 2), (4, last_layer[0])):
        for number, dilation in enumerate(last_layer[1] if layer == 4 else (1, 1)):
            block = backbone.under(f"layer{layer}.{number}.")
            step = stride if number == 0 else 1
            shortcut = x
            if block.get("downsample.0.weight") is not None:
                shortcut = block.norm("downsample.1", block.conv("downsample.0", x, stride=step))
            y = block.conv("conv1", x, stride=step, padding=dilation, dilation=dilation)
            y = block.norm("bn2", block.conv("conv2", block.norm("bn1", y).relu()))
            x = (y + shortcut).relu()
        maps.append(x)
    reduced = [
        decoder.norm(f"dr{i}.bn1", decoder.conv(f"dr{i}.conv1", x)).relu()
        for i, x in enumerate(maps, 2)
    ]
    size = reduced[0].shape[2:]
    first, second, third, fourth = (
        F.interpolate(x, size, mode="bilinear", align_corners=True) for x in reduced
    )
    x = torch.cat((fourth, first, second, third), 1)
    x = decoder.norm("last_conv.1", decoder.conv("last_conv.0", x)).relu()
    return decoder.norm("last_conv.5", decoder.conv("last_conv.4", x)).relu(), maps


def metric_distance(x1, x2, size):
    distance = (x1 - x2 + 1e-6).square().sum(1, keepdim=True).sqrt()
    distance = F.interpolate(distance, size, mode="bilinear", align_corners=True)
    return torch.cat((torch.ones_like(distance), distance), 1)


def stanet(net, t1, t2):
    inside = net.under("netF.module.")
    backbone, decoder = inside.under("backbone."), inside.under("decoder.")
    features = [
        metric_features(backbone, decoder, image, 2, (2, (1, 2, 4)))[0] for image in (t1, t2)
    ]
    side = features[0].shape[-1]
    joined = torch.cat(features, 3)  # along the width
    module = net.under("netA.Self_Att.")
    attended = (bam if module.get("gamma") is not None else pam)(module, joined)
    return (metric_distance(attended[..., :side], attended[..., side:], t1.shape[2:]),)


def attention(query, key, value):
    """(b, channels, ...) maps, whose positions all attend to one another."""
    weights = torch.einsum("bkn,bkm->bnm", query.flatten(2), key.flatten(2)) / 8**0.5
    return torch.einsum("bnm,bcm->bcn", weights.softmax(-1), value.flatten(2)).reshape(value.shape)


def bam(module, x):
    query, key, value = (module.conv(f"{name}_conv", x) for name in ("query", "key", "value"))
    return attention(query, key, value) + x


def pam(module, x):
    side = x.shape[2]
    found = []
    for i, parts in enumerate((1, 2, 4, 8)):
        stage = module.under(f"stages.{i}.")
        query = stage.norm("f_query.1", stage.conv("f_query.0", x))
        key = stage.norm("f_key.1", stage.conv("f_key.0", x))
        value = stage.conv("f_value", x)
        out, step = torch.empty_like(value), side // parts
        for row in range(0, side, step):
            for col in range(0, side, step):
                dates = [
                    (slice(None), slice(None), slice(row, row + step), slice(left, left + step))
                    for left in (col, side + col)
                ]
                both = [torch.cat([m[d] for d in dates], 3) for m in (query, key, value)]
                for d, part in zip(dates, attention(*both).chunk(2, 3), strict=True):
                    out[d] = part
        found.append(out)
    return module.conv("conv_bn.0", torch.cat(found, 1))


def dsamnet(net, t1, t2):
    features, maps = zip(
        *(
            metric_features(net.under("backbone."), net.under("decoder."), image, 1, (1, (2, 4, 8)))
            for image in (t1, t2)
        ),
        strict=True,
    )

    def gate(cbam, x):
        mean, largest = x.mean((2, 3), keepdim=True), F.adaptive_max_pool2d(x, 1)
        shared = [cbam.conv("ca.fc2", cbam.conv("ca.fc1", v).relu()) for v in (mean, largest)]
        x = x * (shared[0] + shared[1]).sigmoid()
        over = torch.cat((x.mean(1, keepdim=True), x.max(1, keepdim=True).values), 1)
        return x * cbam.conv("sa.conv1", over).sigmoid()

    def deep(layer, difference, stride):
        x = layer.norm("bn", layer.transposed("dsconv", difference, stride)).relu()
        return layer.flipped("outconv", x)

    gated = [gate(net.under(f"cbam{i}."), x) for i, x in enumerate(features)]
    return (
        metric_distance(*gated, t1.shape[2:]),
        deep(net.under("ds_lyr2."), (maps[0][0] - maps[1][0]).abs(), 2),
        deep(net.under("ds_lyr3."), (maps[0][1] - maps[1][1]).abs(), 4),
    )


NETWORKS = {
    "dsamnet": dsamnet,
    "fc_ef_res": fc_ef_res,
    "fc_siam_conc": fc_siam_conc,
    "stanet_bam": stanet,
    "stanet_pam": stanet,
}


WRITTEN = [(model, release) for model, release in EVERY if release.table in NETWORKS]


@pytest.mark.parametrize(("model", "release"), WRITTEN, ids=[r.table for _, r in WRITTEN])
def test_the_imported_network_computes_what_the_released_one_computes(model, release, tmp_path):
    states = released_states(release)
    torch.save(states, tmp_path / "model.pth")
    network, _ = import_released(model, [tmp_path / "model.pth"])
    generator = torch.Generator().manual_seed(2)
    t1, t2 = (torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1 for _ in range(2))
    with torch.inference_mode():
        output = network.eval()(t1, t2)
        expected = NETWORKS[release.table](Layers(states), t1, t2)
    found = (output.logits, *output.deep)
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert y.std() > 0.01  # the random network is not dead
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3 * y.abs().max().item())
