"""Batch statistics of all ranks and their gradients, against one layer over the whole batch."""

import copy

import pytest
import torch
from torch import nn

import dsfer
from dsfer.distributed import rank, replicated, world_size
from dsfer.models.batch_norm import BatchNorm2d
from tests.ranks import together

pytestmark = pytest.mark.xdist_group("distributed")

RANKS, SHARE, CHANNELS = 3, 2, 5


def layer(kind: type[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    """A layer with weights and running statistics of its own."""
    torch.manual_seed(1)
    made = kind(CHANNELS).double()
    for values in (made.weight, made.bias, made.running_mean):
        nn.init.normal_(values)
    return made


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose statistics differ between ranks and channels, and a factor for each output."""
    torch.manual_seed(2)
    shape = (RANKS * SHARE, CHANNELS, 4, 3)
    scale, shift = torch.rand(shape[:2]).double() * 5, torch.randn(shape[:2]).double() * 20
    images = torch.randn(shape).double() * scale[..., None, None] + shift[..., None, None]
    return images, torch.randn(shape).double()


def step(norm: nn.Module, images: torch.Tensor, factors: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two batches through a layer, the gradient of the second, and what the layer is after it."""
    norm(images * 2 + 1)
    images = images.clone().requires_grad_()
    output = norm(images)
    (output.sin() * factors).mean().backward()
    gradients = {f"{key} gradient": value.grad for key, value in norm.named_parameters()}
    return {"output": output.detach(), "images": images.grad, **gradients, **norm.state_dict()}


def part(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[rank() * SHARE :][:SHARE]


def normalise_in_parts() -> list[dict[str, torch.Tensor]]:
    """The layer in double precision, and the same in bfloat16 input."""
    images, factors = (part(whole) for whole in batch())
    model = layer(BatchNorm2d)
    exact = step(replicated(model), images, factors)
    exact = {key.removeprefix("module."): value for key, value in exact.items()}
    exact["images"] = exact["images"] / world_size()  # of the mean over all ranks
    coarse = layer(BatchNorm2d).float()(images.bfloat16())
    return [exact, {"output": coarse.detach()}]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return together(tmp_path_factory.mktemp("parts"), normalise_in_parts, ranks=RANKS)


def test_statistics_and_gradients_are_those_of_the_whole_batch(parts):
    whole = step(layer(nn.BatchNorm2d), *batch())
    for key in ("output", "images"):
        found = torch.cat([exact[key] for exact, _ in parts])
        torch.testing.assert_close(found, whole.pop(key), rtol=1e-10, atol=1e-12)
    assert set(whole) == {
        "weight", "bias", "weight gradient", "bias gradient",
        "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip
    for exact, _ in parts:
        for key, expected in whole.items():
            torch.testing.assert_close(exact[key], expected, rtol=1e-10, atol=1e-12)


def test_half_precision_loses_no_statistics(parts):
    images, _ = batch()
    found = torch.cat([coarse["output"] for _, coarse in parts])
    assert found.dtype == torch.bfloat16
    expected = layer(nn.BatchNorm2d).float()(images.bfloat16().float()).detach()
    # What is left is the rounding of the output to eight bits.
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=1e-6)


def test_one_process_computes_as_torch_does():
    ours, torchs = layer(BatchNorm2d), layer(nn.BatchNorm2d)
    found, expected = (step(norm, *batch()) for norm in (ours, torchs))
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    copy.deepcopy(ours).load_state_dict(torchs.state_dict())


@pytest.mark.parametrize("name", dsfer.list_models())
def test_no_network_has_a_layer_that_sees_one_rank_only(name):
    kinds = {type(module) for module in dsfer.create_model(name).modules()}
    assert not [kind for kind in kinds if issubclass(kind, nn.modules.batchnorm._BatchNorm)
                and kind is not BatchNorm2d]  # fmt: skip
