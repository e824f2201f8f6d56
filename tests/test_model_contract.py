"""What every network of the package keeps, whichever it is: one contract for all of them.

A network that is listed joins by itself, with its default options at 64x64; CASES makes the large
ones small, and says of whom the dates may be exchanged.
"""

import inspect
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import dsfer
from dsfer.errors import TileSizeError
from dsfer.models.pyramid_transformer import Block
from dsfer.models.resnet import BasicBlock
from dsfer.models.token_transformer import DecoderLayer
from dsfer.weights import Metadata, save_weights

SIDE = 64
NOISE = 1e-4
"""Of float32 arithmetic in another order, see `apart`."""


@dataclass(frozen=True)
class Case:
    """A network under test: its options, and whether exchanging the dates leaves its output."""

    model: str
    options: dict = field(default_factory=dict)
    symmetric: bool = False

    def build(self, **options):
        torch.manual_seed(0)
        model = dsfer.create_model(self.model, **self.options | options)
        with torch.no_grad():  # as initialised, some maps are all but constant
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5)
        return model

    @property
    def tied_to_size(self) -> bool:
        return "image_size" in self.options


SMALL = {"width": 0.125, "image_size": SIDE, "hopfield_dim": 16}
CASES = [
    Case("dsfer-net", SMALL),
    Case("dsfer-net", {"width": 0.125, "hopfield_dim": 16, "norm": "channel"}),
    Case("fc-siam-conc"),
    Case("fc-ef-res"),
    Case("stanet", {"width": 0.125}, symmetric=True),
    Case("stanet", {"width": 0.125, "attention": "bam"}, symmetric=True),
    Case("dsamnet", {"width": 0.125}),
    Case("dsfer-net", {"encoder": "resnet18", "width": 0.125, "image_size": SIDE}),
    Case("bit", {"width": 0.125}),
    Case("changeformer", {"width": 0.125}),
    Case("frnet", {"width": 0.125}),
    Case("vct", {"width": 0.125, "selected": 60, "clusters": 4, "iterations": 5}),
    Case("changeformer", {"width": 0.125, "version": "v5"}),
    Case("dsfer-net", SMALL | {"encoder": "transformer"}),
    Case("dsfer-net", SMALL | {"variant": "base+concat"}),
    Case("dsfer-net", SMALL | {"variant": "base+cf"}),
    Case("dsfer-net", SMALL | {"variant": "base+concat+dsfr"}),
    Case("bit", {"width": 0.125, "decoder_head_width": 64}),
]
OTHERS = [Case(name) for name in dsfer.list_models() if name not in {c.model for c in CASES}]
ALL = CASES + OTHERS


def name_of(case):
    return "-".join((case.model, *map(str, case.options.values())))


OF_EACH_NETWORK = [next(case for case in ALL if case.model == m) for m in dsfer.list_models()]


def compiled(case):
    """Dsfer-Net and a network of one's own compile with every test run, others when all is run."""
    slow = case in CASES and case.model != "dsfer-net"
    return pytest.param(case, id=name_of(case), marks=[pytest.mark.slow] * slow)


@pytest.fixture(params=ALL, ids=name_of)
def case(request):
    return request.param


def images(batch=2, side=SIDE, **kwargs):
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(batch, 3, side, side, generator=generator) * 2 - 1 for _ in range(2)]


def everything(output):
    return (output.logits, *output.deep)


def margin(output):
    """What decides: by how much changed is ahead of unchanged, (b, h, w)."""
    return (output.logits[:, 1] - output.logits[:, 0]).float()


def apart(x, y):
    """How far two maps are apart, as a share of how much the first varies."""
    return float((x - y).float().abs().mean() / x.float().std())


@pytest.mark.parametrize("batch", [1, 3])
def test_forward_and_backward_at_odd_batch_sizes(case, batch):
    model = case.build()
    output = model(*images(batch))
    assert output.logits.shape == (batch, 2, SIDE, SIDE)
    for deep in output.deep:
        assert deep.shape[:2] == (batch, 2)
        assert deep.shape[2] == deep.shape[3] and SIDE % deep.shape[2] == 0
    sum((x.float() ** 2).mean() for x in everything(output)).backward()
    learning = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    without = [name for name, gradient in learning.items() if gradient is None]
    assert not without, f"these take part in nothing: {without}"
    assert all(gradient.isfinite().all() for gradient in learning.values())
    moved = sum(bool(gradient.any()) for gradient in learning.values())
    assert moved > 0.8 * len(learning)  # biases before batch normalisation have none


@pytest.mark.parametrize("size", [(64, 96), (96, 32), (50, 50)])
def test_another_size_is_taken_or_refused_with_the_mend(case, size):
    model = case.build().eval()
    image = torch.rand(1, 3, *size)
    try:
        with torch.inference_mode():
            assert model(image, image).logits.shape == (1, 2, *size)
    except TileSizeError as error:
        assert error.mend
        assert case.tied_to_size or size == (50, 50)


def test_the_size_that_a_network_is_tied_to_is_an_option(case):
    takes = "image_size" in inspect.signature(type(case.build())).parameters
    assert takes or not case.tied_to_size
    if takes:
        half = SIDE // 2
        output = case.build(image_size=half)(*images(side=half))
        assert output.logits.shape[-1] == half


def test_training_differs_from_evaluation_which_is_deterministic(case):
    model, pair = case.build(), images()
    trained = model(*pair).logits
    model.eval()
    with torch.inference_mode():
        first, again = model(*pair), model(*pair)
    assert not torch.allclose(trained, first.logits)
    assert all(torch.equal(x, y) for x, y in zip(everything(first), everything(again), strict=True))


def test_weights_come_back_bit_by_bit(case, tmp_path):
    model, pair = case.build(), images()
    model(*pair)  # moves the statistics of batch normalisation
    path = tmp_path / "weights.safetensors"
    save_weights(model, path, Metadata(case.model, case.options, (0, 0, 0), (1, 1, 1)))
    again = dsfer.create_model(case.model, weights=path)
    with torch.inference_mode():
        outputs = [everything(network.eval()(*pair)) for network in (model, again)]
    assert all(torch.equal(x, y) for x, y in zip(*outputs, strict=True))


def test_bf16_is_near_float32_and_learns(case):
    model, pair = case.build().eval(), images()
    with torch.inference_mode():
        exact = margin(model(*pair))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            near = margin(model(*pair))
    assert apart(exact, near) < 0.2  # VcT chooses pixels by rank, and rounding chooses others
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model.train()(*pair)
    sum((x.float() ** 2).mean() for x in everything(output)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def shallow(model):
    """A network without the blocks that repeat the one before: they trace alike, and take long."""
    for blocks in model.modules():
        if isinstance(blocks, nn.ModuleList | nn.Sequential):
            for number in reversed(range(1, len(blocks))):
                if isinstance(blocks[number], BasicBlock | Block | DecoderLayer):
                    del blocks[number]
    return model


def learnt(model, forward, pair):
    """The maps that a network returns for a pair, and all its gradients in one row."""
    torch.manual_seed(0)  # dropout
    maps = everything(forward(*pair))
    sum((x.float() ** 2).mean() for x in maps).backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return [x.detach() for x in maps], torch.cat(gradients)


@pytest.mark.parametrize("case", [compiled(case) for case in OF_EACH_NETWORK], indirect=True)
def test_it_compiles_as_one_graph_and_learns_alike(case):
    """As training compiles it, but for the kernels: those of tests/test_gpu.py."""
    torch.compiler.reset()
    plain, model = shallow(case.build()), shallow(case.build())
    forward = torch.compile(model, backend="aot_eager", fullgraph=True)
    pair = images()
    maps, gradients = learnt(plain, plain, pair)
    found, found_gradients = learnt(model, forward, pair)
    for x, y in zip(found, maps, strict=True):
        torch.testing.assert_close(x, y, rtol=NOISE, atol=NOISE)
    assert apart(gradients, found_gradients) < 10 * NOISE  # they add up in another order


@pytest.mark.slow
def test_every_variant_is_traced_as_one_graph(case):
    """The eager backend runs what was traced: tracing is under test."""
    torch.compiler.reset()
    pair, outputs = images(), []
    for backend in (None, "eager"):
        model = case.build()
        forward = torch.compile(model, backend=backend, fullgraph=True) if backend else model
        torch.manual_seed(0)  # dropout
        outputs.append(everything(forward(*pair)))
    for x, y in zip(*outputs, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("training", [True, False])
def test_forward_never_reads_a_value_back_from_the_device(case, training):
    """Meta tensors have no values: whatever asks for one raises."""
    model = case.build().train(training).to("meta")
    output = model(*(x.to("meta") for x in images()))
    assert all(x.is_meta for x in everything(output))


def test_pairs_of_a_batch_do_not_see_each_other_in_evaluation(case):
    model, (t1, t2) = case.build().eval(), images(3)
    with torch.inference_mode():
        together = everything(model(t1, t2))
        alone = everything(model(t1[1:2], t2[1:2]))
    for x, y in zip(together, alone, strict=True):
        assert apart(x[1:2], y) < NOISE


def test_the_order_of_pixels_in_memory_does_not_matter(case):
    model, pair = case.build().eval(), images()
    with torch.inference_mode():
        plain = everything(model(*pair))
        model = model.to(memory_format=torch.channels_last)
        found = everything(model(*(x.to(memory_format=torch.channels_last) for x in pair)))
    for x, y in zip(found, plain, strict=True):
        assert apart(x, y) < NOISE


def test_both_dates_count_and_are_exchangeable_only_where_the_method_says_so(case):
    model, (t1, t2) = case.build().eval(), images()
    with torch.inference_mode():
        forth, back = margin(model(t1, t2)), margin(model(t2, t1))
        first, second = margin(model(t1, t1)), margin(model(t2, t2))
    assert min(apart(forth, first), apart(forth, second)) > 10 * NOISE
    assert (apart(forth, back) < NOISE) == case.symmetric
