"""BiT, VcT and ChangeFormer compute what their released networks compute.

Those are written here a second time, as plain functions of their state dict in float64: one date
after the other, one image and one head at a time, with dense matrices and open loops.
"""

import pytest
import torch
from torch.nn import functional as F

from dsfer.released import RELEASES, import_released
from tests.released_states import Layers, released_states

HEADS = 8


def linear(net, name, x):
    out = x @ net.get(f"{name}.weight").T
    bias = net.get(f"{name}.bias")
    return out if bias is None else out + bias


def layer_norm(net, name, x, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * net.get(f"{name}.weight") + net.get(f"{name}.bias")


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def attention(query, key, value, heads, scale):
    """(n, c), (m, c), (m, c): heads are slices of the channels, side by side."""
    found = []
    for q, k, v in zip(*(x.chunk(heads, dim=1) for x in (query, key, value)), strict=True):
        scores = (scale * q @ k.T).exp()
        found.append(scores / scores.sum(1, keepdim=True) @ v)
    return torch.cat(found, 1)


# BiT and VcT.


def quarter_features(net, image):
    """ResNet-18 to its third layer, whose stride is removed, and a convolution at 1/4."""
    resnet = net.under("resnet.")
    x = resnet.norm("bn1", resnet.conv("conv1", image, stride=2)).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for layer, stride in ((1, 1), (2, 2), (3, 1)):
        for number in (0, 1):
            block = resnet.under(f"layer{layer}.{number}.")
            step = stride if number == 0 else 1
            shortcut = x
            if block.get("downsample.0.weight") is not None:
                shortcut = block.norm("downsample.1", block.conv("downsample.0", x, stride=step))
            y = block.norm("bn1", block.conv("conv1", x, stride=step)).relu()
            x = (block.norm("bn2", block.conv("conv2", y)) + shortcut).relu()
    doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return net.conv("conv_pred", doubled)[0]  # 32 h/4 w/4


def mlp(layer, x):
    hidden = gelu(linear(layer, "1.fn.fn.net.0", layer_norm(layer, "1.fn.norm", x)))
    return x + linear(layer, "1.fn.fn.net.3", hidden)


def token_encoder(net, tokens):
    layer = net.under("transformer.layers.0.")
    qkv = linear(layer, "0.fn.fn.to_qkv", layer_norm(layer, "0.fn.norm", tokens)).chunk(3, dim=1)
    attended = attention(*qkv, HEADS, 32**-0.5)
    return mlp(layer, tokens + linear(layer, "0.fn.fn.to_out.0", attended))


def pixel_decoder(net, features, tokens):
    pixels = features.flatten(1).T
    for number in range(8):
        layer = net.under(f"transformer_decoder.layers.{number}.")
        asking, asked = (layer_norm(layer, "0.fn.norm", x) for x in (pixels, tokens))
        query = linear(layer, "0.fn.fn.to_q", asking)
        key, value = (linear(layer, f"0.fn.fn.to_{name}", asked) for name in "kv")
        attended = attention(query, key, value, HEADS, 32**-0.5)
        pixels = mlp(layer, pixels + linear(layer, "0.fn.fn.to_out.0", attended))
    return pixels.T.reshape(features.shape)


def change_head(net, first, second):
    difference = (first - second).abs().unsqueeze(0)
    x = F.interpolate(difference, scale_factor=4, mode="bilinear", align_corners=False)
    x = net.norm("classifier.1", net.conv("classifier.0", x)).relu()
    return net.conv("classifier.3", x)


def bit(net, t1, t2):
    features = [quarter_features(net, image) for image in (t1, t2)]

    def tokens(x):
        scores = net.conv("conv_a", x.unsqueeze(0))[0]  # 4 h w
        return torch.stack([(s.flatten().softmax(0) * x.flatten(1)).sum(1) for s in scores])

    both = torch.cat([tokens(x) for x in features]) + net.get("pos_embedding")[0]
    both = token_encoder(net, both)
    decoded = [pixel_decoder(net, x, t) for x, t in zip(features, both.chunk(2), strict=True)]
    return (change_head(net, *decoded),)


def released_kmeans(points, clusters):
    """The released loop for one image: until the squared sum of shifts is at most 1e-4."""
    ranks = [int(i * (len(points) - 1) / (clusters - 1)) for i in range(clusters)]
    centres, rounds = points[ranks], 0
    while True:
        nearest = (points[:, None] - centres[None]).square().sum(2).argmin(1)
        moved = torch.stack(
            [
                points[nearest == k].mean(0)
                if (nearest == k).any()
                else torch.zeros_like(points[0])
                for k in range(clusters)
            ]
        )
        shift = (moved - centres).square().sum(1).sqrt().sum()
        centres, rounds = moved, rounds + 1
        if shift**2 <= 1e-4:
            return centres, rounds


def dense_scores(difference, weight):
    """D^-1/2 A D^-1/2 X w with the whole matrix A, for one image (c, h, w)."""
    _, h, w = difference.shape
    x = difference.flatten(1).T
    adjacency = torch.zeros(h * w, h * w, dtype=x.dtype)
    for row in range(h):
        for col in range(w):
            for y in range(max(row - 1, 0), min(row + 2, h)):
                for z in range(max(col - 1, 0), min(col + 2, w)):
                    adjacency[row * w + col, y * w + z] = x[row * w + col] @ x[y * w + z]
    root = torch.diag(adjacency.sum(1) ** -0.5)
    return (root @ adjacency @ root @ x @ weight)[:, 0]


def vct(net, t1, t2):
    features = [quarter_features(net, image) for image in (t1, t2)]
    scores = dense_scores((features[0] - features[1]).abs(), net.get("gc1.weight"))
    lowest = scores.argsort()[:1000]
    clustered = [released_kmeans(x.flatten(1).T[lowest], 10) for x in features]
    assert all(3 < rounds <= 50 for _, rounds in clustered)
    both = torch.cat([tokens for tokens, _ in clustered]) + net.get("pos_embedding")[0]
    first, second = token_encoder(net, both).chunk(2)
    layer = net.under("transformerCross.layers.0.")

    def exchange(own, other):
        own_norm, other_norm = (layer_norm(layer, "0.fn.norm", x) for x in (own, other))
        return mlp(layer, own + attention(own_norm, other_norm, other_norm, HEADS, 32**-0.5))

    tokens = exchange(first, second), exchange(second, first)
    decoded = [pixel_decoder(net, x, t) for x, t in zip(features, tokens, strict=True)]
    return (change_head(net, *decoded),)


# ChangeFormer.


def pyramid(net, image):
    maps, x = [], image
    rows = zip((3, 3, 4, 3), (1, 2, 4, 8), (8, 4, 2, 1), (4, 2, 2, 2), strict=True)
    for stage, (depth, heads, reduction, stride) in enumerate(rows, 1):
        x = net.conv(f"patch_embed{stage}.proj", x, stride=stride)
        h, w = x.shape[2:]
        tokens = layer_norm(net, f"patch_embed{stage}.norm", x[0].flatten(1).T)
        for number in range(depth):
            block = net.under(f"block{stage}.{number}.")
            tokens = tokens + reduced_attention(block, tokens, (h, w), heads, reduction)
            hidden = linear(block, "mlp.fc1", layer_norm(block, "norm2", tokens, 1e-6))
            mixed = block.conv(
                "mlp.dwconv.dwconv", hidden.T.reshape(1, -1, h, w), groups=hidden.shape[1]
            )
            tokens = tokens + linear(block, "mlp.fc2", gelu(mixed[0].flatten(1).T))
        x = layer_norm(net, f"norm{stage}", tokens, 1e-6).T.reshape(1, -1, h, w)
        maps.append(x)
    return maps


def reduced_attention(block, tokens, sides, heads, reduction):
    x = layer_norm(block, "norm1", tokens, 1e-6)
    stored = x
    if reduction > 1:
        shape = (1, -1, *sides)
        stored = block.conv("attn.sr", x.T.reshape(shape), stride=reduction, padding=0)
        stored = layer_norm(block, "attn.norm", stored[0].flatten(1).T)
    key, value = linear(block, "attn.kv", stored).chunk(2, dim=1)
    scale = (x.shape[1] / heads) ** -0.5
    attended = attention(linear(block, "attn.q", x), key, value, heads, scale)
    return linear(block, "attn.proj", attended)


def changeformer(net, t1, t2):
    first, second = (pyramid(net.under("Tenc_x2."), image) for image in (t1, t2))
    decoder = net.under("TDec_x2.")

    def embed(scale, x):
        out = linear(decoder, f"linear_c{scale}.proj", x[0].flatten(1).T)
        return out.T.reshape(1, -1, *x.shape[2:])

    def enlarge(x, factor):
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    differences, auxiliary = {}, {}
    for scale in (4, 3, 2, 1):
        pair = torch.cat([embed(scale, x[scale - 1]) for x in (first, second)], 1)
        part = decoder.under(f"diff_c{scale}.")
        x = part.conv("3", part.norm("2", part.conv("0", pair).relu())).relu()
        if scale < 4:
            x = x + enlarge(differences[scale + 1], 2)
        differences[scale] = x
        part = decoder.under(f"make_pred_c{scale}.")
        auxiliary[scale] = part.conv("3", part.norm("2", part.conv("0", x).relu()))
    joined = [enlarge(differences[scale], 2 ** (scale - 1)) for scale in (4, 3, 2, 1)]
    x = decoder.norm("linear_fuse.1", decoder.conv("linear_fuse.0", torch.cat(joined, 1)))
    for up, dense in (("convd2x", "dense_2x"), ("convd1x", "dense_1x")):
        weight, bias = (decoder.get(f"{up}.conv2d.{leaf}") for leaf in ("weight", "bias"))
        x = F.conv_transpose2d(x, weight, bias, stride=2, padding=1)
        inner = decoder.conv(f"{dense}.0.conv1.conv2d", x).relu()
        x = x + 0.1 * decoder.conv(f"{dense}.0.conv2.conv2d", inner)
    logits = decoder.conv("change_probability.conv2d", x)
    return (logits, *(auxiliary[scale] for scale in (1, 2, 3, 4)))


CASES = [
    ("bit", 0, bit, 64),
    ("bit", 1, bit, 64),
    ("vct", 0, vct, 128),  # a thousand pixels at 1/4 are selected
    ("changeformer", 0, changeformer, 64),
]


@pytest.mark.parametrize(
    ("model", "number", "written", "side"),
    CASES,
    ids=[RELEASES[model][number].table for model, number, *_ in CASES],
)
def test_the_imported_network_computes_what_the_released_one_computes(
    model, number, written, side, tmp_path
):
    states = released_states(RELEASES[model][number])
    torch.save(states, tmp_path / "model.pth")
    network, metadata = import_released(model, [tmp_path / "model.pth"])
    assert metadata.options == RELEASES[model][number].options
    generator = torch.Generator().manual_seed(2)
    batch = 1 if model == "changeformer" else 2
    t1, t2 = (
        torch.rand(batch, 3, side, side, generator=generator).double() * 2 - 1 for _ in range(2)
    )
    layers = Layers({name: value.double() for name, value in states.items()})
    with torch.inference_mode():
        output = network.eval().double()(t1, t2)
        expected = [written(layers, *pair) for pair in zip(t1.split(1), t2.split(1), strict=True)]
    found = (output.logits, *output.deep)
    for x, y in zip(found, map(torch.cat, zip(*expected, strict=True)), strict=True):
        assert y.std() > 0.01  # the random network is not dead
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-9 * y.abs().max().item())
