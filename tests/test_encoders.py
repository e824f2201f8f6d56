"""Encoders under Dsfer-Net: those of Table IV, torchvision's by name, and what is refused."""

import copy

import pytest
import torch
import torchvision

import dsfer
from dsfer.errors import CheckpointError, ConfigError, TileSizeError
from dsfer.models.batch_norm import BatchNorm2d
from dsfer.models.encoders import ENCODERS, build_encoder
from dsfer.models.resnet import ResNet18Encoder
from dsfer.models.siamese import encode_pair, has_batch_norm
from dsfer.models.torchvision_encoder import TorchvisionEncoder
from pipeline.params import FROM_SCRATCH


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return TorchvisionEncoder("resnet18").eval()


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "parameters", "decoder"),
    [
        ("vgg16", 14_714_688, 19_371_302),
        ("resnet18", 11_176_512, 11_726_118),
        ("transformer", 40_856_384, 18_388_262),
    ],
)
def test_table_4_divides_into_encoder_and_decoder(name, parameters, decoder):
    with torch.device("meta"):
        model = dsfer.create_model("dsfer-net", encoder=name)
    assert count(model.encoder) == parameters
    assert count(model) == parameters + decoder
    sides = [r.norm.normalized_shape[1] for r in model.retrieval.values()]
    assert sorted(sides) == ([16, 32] if name == "vgg16" else [8, 16])
    keys = {r.key.out_features for r in model.retrieval.values()}
    assert keys == {256 if name == "resnet18" else 512}
    fused = [model.fusion[level].fuse[0].out_channels for level in "54321"]
    assert fused == [512, 256, 64 if name == "resnet18" else 128, 64, 32]


@pytest.mark.parametrize("name", ENCODERS)
def test_dsfer_net_learns_with_each_encoder_of_table_4(name):
    torch.manual_seed(0)
    model = dsfer.create_model("dsfer-net", encoder=name, width=0.125, norm="channel")
    output = model(*torch.randn(2, 2, 3, 64, 96))
    assert output.logits.shape == (2, 2, 64, 96)
    deep = [(8, 12), (4, 6)] if name == "vgg16" else [(4, 6), (2, 3)]
    assert [tuple(d.shape[2:]) for d in output.deep] == deep
    (output.logits.square().mean() + sum(d.square().mean() for d in output.deep)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_logits_are_enlarged_where_the_encoder_halves_the_image_first():
    """Enlarging what the classifier sees is the same as enlarging what it says."""
    torch.manual_seed(0)
    model = dsfer.create_model("dsfer-net", encoder="resnet18", width=0.125, norm="channel").eval()
    seen = []
    model.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        logits = model(*torch.randn(2, 1, 3, 64, 64)).logits
        larger = torch.nn.functional.interpolate(
            seen[0], scale_factor=2, mode="bilinear", align_corners=True
        )
        torch.testing.assert_close(logits, model.classifier(larger))


def test_torchvisions_network_is_cut_where_its_layers_end(resnet18):
    ours = ResNet18Encoder().eval()
    ours.load_state_dict(resnet18.network.state_dict())
    image = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        for x, y in zip(resnet18(image), ours(image), strict=True):
            torch.testing.assert_close(x, y)
    assert (resnet18.channels, resnet18.strides) == (ours.channels, ours.strides)


def test_bottlenecks_are_cut_after_the_sum_not_inside_the_next_block():
    encoder = TorchvisionEncoder("resnet50")
    assert encoder.channels == (64, 256, 512, 1024, 2048)


def test_a_torchvision_network_works_under_dsfer_net():
    torch.manual_seed(0)
    model = dsfer.create_model("dsfer-net", encoder="mobilenet_v3_small", image_size=64)
    assert model.encoder.strides == (2, 4, 8, 16, 32)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(isinstance(m, BatchNorm2d) for m in norms)  # over all processes
    assert {m.eps for m in model.encoder.modules() if isinstance(m, BatchNorm2d)} == {0.001}
    output = model(*torch.randn(2, 2, 3, 64, 64))
    assert output.logits.shape == (2, 2, 64, 64)
    output.logits.square().mean().backward()
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_a_torchvision_network_compiles_as_one_graph_and_knows_evaluation_from_training(resnet18):
    image = torch.randn(2, 3, 64, 64)
    forward = torch.compile(resnet18, backend="eager", fullgraph=True)
    with torch.inference_mode():
        for x, y in zip(forward(image), resnet18(image), strict=True):
            torch.testing.assert_close(x, y)
        trained = copy.deepcopy(resnet18).train()(image)
        assert not torch.allclose(trained[4], resnet18(image)[4])


def test_imagenet_weights_of_a_torchvision_network_come_from_a_local_file(resnet18, tmp_path):
    torch.manual_seed(1)
    published = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(published, tmp_path / "resnet18.pth")
    resnet18.load_imagenet(tmp_path / "resnet18.pth")
    for name, value in resnet18.network.state_dict().items():
        assert torch.equal(value, published[name]), name
    del published["layer3.0.conv1.weight"]
    torch.save(published, tmp_path / "resnet18.pth")
    with pytest.raises(CheckpointError, match=r"layer3\.0\.conv1"):
        resnet18.load_imagenet(tmp_path / "resnet18.pth")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnext_tiny", "gives maps at 1/4, 1/8, 1/16, 1/32 of the image; five are needed"),
        ("squeezenet1_1", "no even fraction"),
        ("vit_b_16", "does not take images of any size"),
        ("resnet19", "resnet18"),
        ("unet", "use vgg16, resnet18, transformer or the name"),
    ],
)
def test_an_encoder_without_five_scales_is_refused_and_says_which_it_has(name, message):
    with pytest.raises(ConfigError, match=message):
        dsfer.create_model("dsfer-net", encoder=name)


def test_widths_sizes_and_pretraining_that_an_encoder_lacks_are_refused():
    with pytest.raises(ConfigError, match="set width to 1"):
        build_encoder("resnet50", width=0.5)
    with pytest.raises(TileSizeError, match="pad them to 256x256"):
        dsfer.create_model("dsfer-net", encoder="resnet18", image_size=240)
    with pytest.raises(ConfigError, match="pretrained: none"):
        dsfer.create_model("dsfer-net", encoder="transformer", width=0.125, pretrained=True)
    image = torch.zeros(1, 3, 64, 48)
    model = dsfer.create_model("dsfer-net", encoder="resnet18", width=0.125, norm="channel")
    with pytest.raises(TileSizeError, match="pad them to 64x64"):
        model(image, image)


def test_the_networks_and_encoders_without_imagenet_weights_are_known_before_they_are_built():
    with torch.device("meta"):
        networks = {name: dsfer.create_model(name, width=0.125) for name in dsfer.list_models()}
        encoders = {name: build_encoder(name, width=0.125) for name in ENCODERS}
    built = {name: getattr(network, "encoder", None) for name, network in networks.items()}
    lacking = [n for n, e in (built | encoders).items() if not hasattr(e, "load_imagenet")]
    assert sorted(lacking) == sorted(FROM_SCRATCH)


def test_batch_norm_sees_each_date_by_itself_in_training():
    torch.manual_seed(0)
    encoder = ResNet18Encoder(width=0.125)
    assert has_batch_norm(encoder) and not has_batch_norm(build_encoder("vgg16", width=0.125))
    t1, t2 = torch.randn(2, 3, 3, 32, 32)
    apart = encode_pair(encoder, t1, t2 + 1, apart=True)
    for i, image in enumerate((t1, t2 + 1)):
        for x, y in zip(apart, encoder(image), strict=True):
            torch.testing.assert_close(x.chunk(2)[i], y)
    encoder.eval()
    pairs = [encode_pair(encoder, t1, t2, apart=apart) for apart in (True, False)]
    for x, y in zip(*pairs, strict=True):
        torch.testing.assert_close(x, y)
