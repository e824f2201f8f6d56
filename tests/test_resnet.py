"""ResNet-18 against torchvision's, its ImageNet weights, and what strides and dilations do."""

import pytest
import torch
import torchvision

from dsfer.errors import CheckpointError
from dsfer.models.resnet import RESNET_18, Layer, ResNet18Encoder


@pytest.fixture(scope="module")
def published():
    """torchvision's network with random weights and statistics."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None).eval()
    for name, buffer in network.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.uniform_(0.5, 1.5)
    return network


@pytest.fixture
def file(published, tmp_path):
    path = tmp_path / "resnet18.pth"
    states = published.state_dict()
    torch.save({k: v for k, v in states.items() if "num_batches" not in k}, path)
    return path


def test_it_is_torchvisions_network(published, file):
    encoder = ResNet18Encoder().eval()
    encoder.load_imagenet(file)
    own = {k: v.shape for k, v in encoder.state_dict().items()}
    theirs = {k: v.shape for k, v in published.state_dict().items() if not k.startswith("fc.")}
    assert own == theirs
    assert sum(p.numel() for p in encoder.parameters()) == 11_176_512
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        maps = encoder(image)
        x = expected = published.relu(published.bn1(published.conv1(image)))
        torch.testing.assert_close(maps[0], expected)
        x = published.maxpool(x)
        for number in range(1, 5):
            x = getattr(published, f"layer{number}")(x)
            torch.testing.assert_close(maps[number], x)
    assert encoder.channels == tuple(m.shape[1] for m in maps) == (64, 64, 128, 256, 512)
    assert encoder.strides == tuple(64 // m.shape[2] for m in maps) == (2, 4, 8, 16, 32)


@pytest.mark.parametrize(
    ("layers", "stem_stride", "strides"),
    [
        ((*RESNET_18[:3], Layer(512, 2, (1, 2, 4))), 2, (2, 4, 8, 16, 32)),
        ((*RESNET_18[:3], Layer(512, 1, (2, 4, 8))), 1, (1, 2, 4, 8, 8)),
        ((*RESNET_18[:2], Layer(256, 1)), 2, (2, 4, 8, 8)),
    ],
)
def test_strides_dilations_and_a_third_block(file, layers, stem_stride, strides):
    torch.manual_seed(1)
    encoder = ResNet18Encoder(layers, stem_stride=stem_stride).eval()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    encoder.load_imagenet(file)
    maps = encoder(torch.randn(2, 3, 32, 32))
    assert encoder.strides == tuple(32 // m.shape[2] for m in maps) == strides
    kept = [k for k, v in encoder.state_dict().items() if torch.equal(v, before[k])]
    third = [k for k in before if k.startswith("layer4.2.")]
    assert len(third) == (12 if len(layers[-1].dilations) == 3 else 0)
    assert set(third) <= set(kept)
    assert not [k for k in kept if k.endswith("conv1.weight") and k not in third]
    dilations = {
        name: module.dilation[0]
        for name, module in encoder.named_modules()
        if isinstance(module, torch.nn.Conv2d) and module.dilation[0] > 1
    }
    expected = {f"layer4.{i}.conv1": d for i, d in enumerate(layers[-1].dilations) if d > 1}
    assert dilations == expected


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "resnet50.pth"
    states = {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64)}
    torch.save(states, path)
    with pytest.raises(CheckpointError, match=r"ResNet-18: bn1\.weight"):
        ResNet18Encoder().load_imagenet(path)
