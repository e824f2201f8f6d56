"""Counts and costs of all networks; what BiT, VcT, ChangeFormer, FrNet do otherwise than released.

That these compute what the released networks compute is shown in test_released_attention.py.
"""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

import dsfer
from benchmarks.arithmetic import flops_of_pair
from dsfer.errors import ConfigError, TileSizeError
from dsfer.models import count_parameters
from dsfer.models.frnet import DifferenceRetrieval
from dsfer.models.kmeans import kmeans_members, means
from dsfer.models.pyramid_transformer import ReducedAttention, to_map, to_tokens
from dsfer.models.vct import graph_scores
from tests.test_released_attention import dense_scores, released_kmeans

COSTS = [
    # model, options, live, as counted in Table II or IV, GMACs of a 256x256 pair
    ("fc-siam-conc", {}, 1_545_986, 1_545_986, 4.83),
    ("fc-ef-res", {}, 1_103_874, 1_103_874, 1.53),
    ("stanet", {}, 16_929_152, 16_929_152, 19.54),
    # By hand: 19.54 less the four scales of PAM and their fusion, 6.72, and with BAM's one, 4.87.
    ("stanet", {"attention": "bam"}, 16_897_040, 16_897_041, 17.69),
    ("dsamnet", {}, 16_950_728, 16_950_728, 72.01),
    ("bit", {}, 3_037_026, 11_943_754, 8.70),
    # By hand: in each of 8 layers four projections are 32 x 448 larger.
    ("bit", {"decoder_head_width": 64}, 3_495_778, 12_402_506, 10.82),
    ("changeformer", {}, 41_026_674, 41_026_674, 138.73),
    ("changeformer", {"version": "v5"}, 43_992_882, 43_992_882, 24.40),
    ("vct", {}, 3_500_386, 12_407_115, 11.24),
    ("frnet", {}, 14_998_578, 14_998_578, 40.88),
    ("dsfer-net", {}, 34_085_990, 34_085_990, 75.19),
    ("dsfer-net", {"encoder": "resnet18"}, 22_902_630, 22_902_630, 9.1),
    ("dsfer-net", {"encoder": "transformer"}, 59_244_646, 59_244_646, 42.00),
]


@pytest.mark.parametrize(
    ("model", "options", "live", "counted", "gmacs"),
    COSTS,
    ids=["-".join((model, *map(str, options.values()))) for model, options, *_ in COSTS],
)
def test_parameters_are_the_published_ones_and_so_is_the_cost(model, options, live, counted, gmacs):
    with torch.device("meta"):
        network = dsfer.create_model(model, **options).eval()
    assert count_parameters(network) == (live, counted)
    # Counters differ in whether norms and activations count; this one counts products of sums.
    found = flops_of_pair(network, 256, training=False) / 2e9
    assert found == pytest.approx(gmacs, rel=0.005)


@pytest.mark.parametrize("training", [False, True])
def test_arithmetic_is_counted_alike_on_every_device_and_leaves_the_network_alone(training):
    """STANet pads its queries on CPUs; zeros are no arithmetic of the network."""
    torch.manual_seed(0)
    network = dsfer.create_model("stanet", width=0.25).train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    here = flops_of_pair(network, 64, training=training)
    assert all(torch.equal(before[name], x) for name, x in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert here == flops_of_pair(network.to("meta"), 64, training=training) > 0


# Initialisation: a trap of the released BiT, VcT and ChangeFormer.


@pytest.mark.parametrize("model", ["bit", "vct", "changeformer"])
def test_released_initialisation_redraws_every_weight_and_ours_does_not(model):
    torch.manual_seed(0)
    network = dsfer.create_model(model, width=0.25, released_init=True)
    for module in network.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            many = module.weight.numel()
            assert module.weight.std().item() == pytest.approx(0.02, rel=5 / many**0.5)
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, torch.nn.BatchNorm2d):
            assert 0 < (module.weight - 1).abs().max() < 0.1
    ours = dsfer.create_model(model, width=0.25)
    gains = [m.weight for m in ours.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all((gain == 1).all() for gain in gains)


# ChangeFormer.


def test_changeformer_has_the_dropout_of_its_version():
    with torch.device("meta"):
        v6, v5 = (dsfer.create_model("changeformer", version=version) for version in ("v6", "v5"))
    for network, rate, blocks in ((v6, 0.1, 13), (v5, 0.0, 28)):
        modules = list(network.modules())
        rates = {m.p for m in modules if isinstance(m, torch.nn.Dropout)}
        rates |= {m.dropout for m in modules if isinstance(m, ReducedAttention)}
        assert rates == {rate}
        skipped = [m.p for m in modules if isinstance(m, StochasticDepth)]
        assert skipped == pytest.approx([0.1 * i / (blocks - 1) for i in range(blocks)])
    with pytest.raises(ConfigError, match="v6, v5"):
        dsfer.create_model("changeformer", version="v4")


def test_changeformer_gives_four_auxiliary_maps_from_shallow_to_deep_in_both_versions():
    for version in ("v6", "v5"):
        network = dsfer.create_model("changeformer", version=version, width=0.125)
        output = network(*torch.randn(2, 2, 3, 64, 96))
        assert output.logits.shape == (2, 2, 64, 96)
        assert [tuple(d.shape[2:]) for d in output.deep] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    with pytest.raises(TileSizeError, match="pad them to 64x96"):
        network(torch.randn(1, 3, 48, 80), torch.randn(1, 3, 48, 80))


def test_spatial_reduction_averages_nothing_away_when_it_is_one():
    torch.manual_seed(0)
    attention = ReducedAttention(8, 2, 1, bias=False, dropout=0.0).double()
    x = torch.randn(3, 12, 8).double()
    q, k, v = attention.query(x), *attention.key_value(x).chunk(2, dim=-1)
    heads = [
        ((a @ b.transpose(1, 2)) / 2).softmax(-1) @ c  # a head is 4 wide: 1/sqrt(4)
        for a, b, c in zip(q.chunk(2, -1), k.chunk(2, -1), v.chunk(2, -1), strict=True)
    ]
    torch.testing.assert_close(attention(x, (3, 4)), attention.out(torch.cat(heads, -1)))
    assert attention.query.bias is None and attention.key_value.bias is None
    assert torch.equal(to_tokens(to_map(x, (3, 4))), x)


# VcT: the graph, k-means, tokens.


def test_shifted_products_are_the_dense_graph():
    torch.manual_seed(0)
    difference, weight = torch.rand(3, 5, 6, 7).double(), torch.randn(5, 1).double()
    scores = graph_scores(difference, weight)
    for image, found in zip(difference, scores, strict=True):
        torch.testing.assert_close(found.flatten(), dense_scores(image, weight))


def test_pixels_without_any_difference_score_zero():
    difference = torch.zeros(1, 4, 5, 5)
    difference[..., 0, 0] = 1
    scores = graph_scores(difference, torch.ones(4, 1))
    assert scores.isfinite().all()
    assert scores[0, 0, 0] > 0 and scores[0, 3:, 3:].eq(0).all()


def blobs(seed, spread, n=60, clusters=5):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, 3, generator=generator).double()
    noise = torch.randn(n, 3, generator=generator).double()
    return centres[torch.randint(clusters, (n,), generator=generator)] + spread * noise


def test_kmeans_is_the_released_loop_for_each_image_by_itself():
    sets = [blobs(seed, spread) for seed in range(8) for spread in (0.01, 0.5, 2.0)]
    points = torch.stack(sets)
    members = kmeans_members(points, 5, tolerance=1e-4, iterations=50)
    expected, rounds = zip(*(released_kmeans(p, 5) for p in sets), strict=True)
    assert len(set(rounds)) > 3  # they are not done at the same time
    torch.testing.assert_close(means(members, points), torch.stack(expected))
    assert members.sum(dim=1).eq(1).all()


def test_kmeans_ends_where_it_may_not_go_on():
    points = blobs(1, 2.0).unsqueeze(0)
    first = points[:, [0, 14, 29, 44, 59]]
    nearest = torch.cdist(points, first).argmin(-1)
    members = kmeans_members(points, 5, tolerance=1e-4, iterations=1)
    assert torch.equal(members, F.one_hot(nearest, 5).transpose(1, 2).double())


def test_an_empty_cluster_is_zero():
    points = torch.ones(1, 30, 2).double()  # all nearest to the first of equal centres
    members = kmeans_members(points, 3, tolerance=1e-4, iterations=5)
    expected = torch.tensor([[1.0, 1.0], [0, 0], [0, 0]]).double()
    torch.testing.assert_close(means(members, points)[0], expected)


def test_gradients_pass_through_the_means_of_the_selected_pixels_only():
    torch.manual_seed(0)
    network = dsfer.create_model("vct", width=0.125, selected=40, clusters=4)
    features = torch.randn(4, 32, 8, 8, requires_grad=True)
    tokens = network.tokens_of(features)
    assert tokens.shape == (4, 4, 32)
    (gradient,) = torch.autograd.grad(tokens.sum(), features)
    taken = gradient[:, 0] > 0  # 2b h w
    assert taken.flatten(1).sum(1).tolist() == [40] * 4
    assert torch.equal(taken[:2], taken[2:])  # the same of both dates
    torch.testing.assert_close(gradient.sum(dim=(2, 3)), torch.full((4, 32), 4.0))
    assert not network.graph_weight.requires_grad


def test_vct_takes_an_image_alone_as_in_any_batch_and_names_the_tiles_it_can_take():
    torch.manual_seed(0)
    network = dsfer.create_model("vct", width=0.125, selected=200).eval().double()
    t1, t2 = torch.randn(2, 5, 3, 64, 64).double()
    with torch.inference_mode():
        together = network(t1, t2).logits
        alone = torch.cat([network(t1[i : i + 1], t2[i : i + 1]).logits for i in range(5)])
    torch.testing.assert_close(together, alone)
    small = torch.randn(1, 3, 32, 64)
    with pytest.raises(TileSizeError, match="selected=32") as caught:
        network(small, small)
    assert "128 features, of which 200" in str(caught.value)
    with pytest.raises(ConfigError, match="4 pixels do not make 5 clusters"):
        dsfer.create_model("vct", selected=4, clusters=5)


# FrNet.


def test_frnet_retrieves_the_difference_from_the_features_themselves():
    torch.manual_seed(0)
    retrieval = DifferenceRetrieval(6, 4).double()
    features = torch.randn(4, 6, 3, 5).double() * 2
    found = retrieval(features)
    wq, wk = retrieval.query.weight.T, retrieval.key.weight.T
    for i in range(2):
        first, second = (features[j].flatten(1).T for j in (i, i + 2))
        state = (first - second).abs() @ wq
        total = 0
        for stored in (first, second):
            scores = (state @ (stored @ wk).T / 4**0.5).exp()
            total = total + scores / scores.sum(1, keepdim=True) @ stored
        torch.testing.assert_close(found[i].flatten(1).T, total)
