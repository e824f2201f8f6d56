"""Dsfer-Net: parameter counts, the retrieval against Eq. 1 in float64, sizes, save and load."""

from dataclasses import replace

import pytest
import torch

import dsfer
from dsfer.errors import CheckpointError, ConfigError, TileSizeError
from dsfer.files import sha256_file
from dsfer.models.dsfer_net import DsferNet
from dsfer.models.fusion import FusionBlock
from dsfer.models.hopfield import FeatureRetrieval
from dsfer.models.variants import VARIANTS
from dsfer.weights import Metadata, load_weights, read_metadata, save_weights

SMALL = {"width": 0.125, "image_size": 32, "hopfield_dim": 16}


def small(**options):
    torch.manual_seed(0)
    return dsfer.create_model("dsfer-net", **SMALL | options)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameters_are_those_of_table_2():
    model = dsfer.create_model("dsfer-net")
    assert count(model) == 34_085_990
    assert count(model.encoder) == 14_714_688
    retrieval = model.retrieval.values()
    projections = sum(count(m) for r in retrieval for m in (r.query, r.key, r.value))
    assert projections == 2 * 786_432
    assert sorted(count(r.norm) for r in retrieval) == [262_144, 1_048_576]
    assert count(model.fusion) == 16_485_600
    assert [count(r.head) for r in retrieval] + [count(model.classifier)] == [1026, 1026, 66]


def equation_1(retrieval: FeatureRetrieval, first: torch.Tensor, second: torch.Tensor):
    """Mask of one image pair by the printed formula, in float64: softmax(β D Wd Wsᵀ Fᵀ) F W."""
    norm = retrieval.norm
    gain, shift = norm.weight.double(), norm.bias.double()
    if gain.ndim == 1:
        gain, shift = gain[:, None, None], shift[:, None, None]

    def tokens(features):
        x = features.double()
        x = (x - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt() * gain + shift
        return x.flatten(1).T  # n c

    wd, ws, wv = (m.weight.double().T for m in (retrieval.query, retrieval.key, retrieval.value))
    n1, n2 = tokens(first), tokens(second)
    state = (n1 - n2).abs() @ wd
    total = 0
    for stored in (n1, n2):
        scores = retrieval.beta * state @ (stored @ ws).T
        weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
        total = total + weights @ (stored @ wv)
    return torch.sigmoid(total).T.reshape(first.shape)


@pytest.mark.parametrize("norm", ["volume", "channel"])
@pytest.mark.parametrize("beta", [None, 0.7])
def test_retrieval_is_equations_1_and_2(norm, beta):
    torch.manual_seed(1)
    retrieval = FeatureRetrieval(12, 6, hopfield_dim=8, beta=beta, norm=norm).double()
    for parameter in retrieval.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    features = torch.randn(6, 12, 6, 6).double() * 3 + 1  # three pairs
    mask, deep = retrieval(features)
    for i in range(3):
        expected = equation_1(retrieval, features[i], features[3 + i])
        torch.testing.assert_close(mask[i], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(deep, retrieval.head(mask))
    assert retrieval.beta == (8**-0.5 if beta is None else beta)


def test_fusion_is_equation_3():
    torch.manual_seed(0)
    block = FusionBlock(4, 6, 5, comprehensive=True, masked=True).double().eval()
    features, mask = torch.randn(2, 4, 8, 8).double(), torch.rand(1, 4, 8, 8).double()
    deeper = torch.randn(1, 6, 8, 8).double()

    def unit(stack, x):
        convolution, norm, _ = stack
        y = torch.nn.functional.conv2d(x, convolution.weight, convolution.bias, padding=1)
        return torch.relu(y / (1 + norm.eps) ** 0.5)

    pair = unit(block.reduce, torch.cat((features[:1], features[1:]), dim=1)) * mask
    expected = unit(block.fuse, torch.cat((pair, deeper), dim=1))
    torch.testing.assert_close(block(features, mask, deeper), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_variant_maps_pairs_to_logits_and_learns(variant, batch):
    model = small(variant=variant)
    output = model(torch.randn(batch, 3, 32, 32), torch.randn(batch, 3, 32, 32))
    assert output.logits.shape == (batch, 2, 32, 32)
    deep = [tuple(d.shape) for d in output.deep]
    assert deep == ([(batch, 2, 4, 4), (batch, 2, 2, 2)] if "dsfr" in variant else [])
    (output.logits.square().mean() + sum(d.square().mean() for d in output.deep)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_encoder_sees_both_dates_alike_and_the_dates_are_not_mixed_up():
    model = small().eval()
    t1, t2 = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        both = model(t1, t2).logits
        torch.testing.assert_close(model(t1[:1], t2[:1]).logits, both[:1], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model(t2, t1).logits, both)


def test_another_size_is_refused_with_the_mend_and_channel_norm_takes_it():
    image = torch.randn(1, 3, 48, 64)
    with pytest.raises(TileSizeError, match="norm='channel'"):
        small().eval()(image, image)
    assert small(norm="channel").eval()(image, image).logits.shape == (1, 2, 48, 64)
    with pytest.raises(TileSizeError, match="pad them to 48x64"):
        small(norm="channel")(torch.randn(1, 3, 40, 64), torch.randn(1, 3, 40, 64))
    with pytest.raises(TileSizeError, match="100x100"):
        small(image_size=100)


def test_volume_and_channel_norm_have_the_same_statistics():
    torch.manual_seed(0)
    t1, t2 = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
    volume, channel = small().eval(), small(norm="channel").eval()
    states = {k: v for k, v in volume.state_dict().items() if ".norm." not in k}
    channel.load_state_dict(states, strict=False)  # gains are 1 and shifts 0 in both
    torch.testing.assert_close(volume(t1, t2).logits, channel(t1, t2).logits)


def test_weights_come_back_bit_by_bit(tmp_path):
    model = small(norm="channel")
    path = tmp_path / "weights.safetensors"
    metadata = Metadata("dsfer-net", SMALL | {"norm": "channel"}, (1, 2, 3), (4, 5, 6), {"n": 1})
    save_weights(model, path, metadata)
    again = dsfer.create_model("dsfer-net", weights=path)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    stored = read_metadata(path)
    written = {"file": path.name, "sha256": sha256_file(path)}
    assert stored == replace(metadata, **written, record_sha256=stored.record_sha256)
    assert len(stored.record_sha256) == 64
    assert sorted(p.name for p in tmp_path.iterdir()) == ["weights.json", "weights.safetensors"]


def test_wrong_weights_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(small(), path, Metadata("dsfer-net", SMALL, (0, 0, 0), (1, 1, 1)))
    with pytest.raises(CheckpointError, match="misshapen"):
        load_weights(small(width=0.25), path, model_name="dsfer-net")
    with pytest.raises(CheckpointError, match="unknown"):
        load_weights(small(variant="base+cf"), path, model_name="dsfer-net")
    with pytest.raises(CheckpointError, match="not of 'bit'"):
        read_metadata(path, model="bit")
    save_weights(small(), path, Metadata("dsfer-net", SMALL, (0, 0, 0), (1, 1, 1), schema=99))
    with pytest.raises(CheckpointError, match="schema 99"):
        read_metadata(path)
    save_weights(small(), path, Metadata("dsfer-net", SMALL, (0, 0, 0), (1, 1, 1)))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: has SHA-256 .*, its record"):
        load_weights(small(), path, model_name="dsfer-net")
    with pytest.raises(CheckpointError, match="no such file"):
        read_metadata(tmp_path / "none.safetensors")


def test_names_and_options_are_checked():
    with pytest.raises(ConfigError, match="use 'dsfer-net'"):
        dsfer.create_model("dsfernet")
    with pytest.raises(ConfigError, match="use 'hopfield_dim'"):
        small(hopfield_dims=3)
    with pytest.raises(ConfigError, match="base\\+concat"):
        small(variant="base")
    with pytest.raises(ConfigError, match="pretrained: none"):
        dsfer.create_model("fc-ef-res", pretrained=True)


def imagenet_like(width=1.0):
    encoder = DsferNet(width=width, image_size=32).encoder
    return {k: torch.randn_like(v).half() for k, v in encoder.state_dict().items()}


def test_imagenet_weights_come_from_a_local_file(tmp_path):
    states = imagenet_like()
    torch.save(states, tmp_path / "vgg.pth")
    model = dsfer.create_model("dsfer-net", pretrained=tmp_path / "vgg.pth")
    for key, value in states.items():
        assert torch.equal(model.encoder.state_dict()[key], value.float())
    with pytest.raises(CheckpointError, match="width 1 only"):
        small(pretrained=tmp_path / "vgg.pth")


def test_without_network_the_mend_is_named(monkeypatch):
    from torchvision.models import VGG16_Weights

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(VGG16_Weights, "get_state_dict", offline)
    with pytest.raises(CheckpointError, match="pretrained: none"):
        dsfer.create_model("dsfer-net", pretrained=True)
