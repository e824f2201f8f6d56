import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dsfer
from dsfer.errors import ConfigError, DataError
from dsfer.features import (
    Patterns,
    attention_maps,
    difference_features,
    encode,
    has_encoder,
    has_retrieval,
    retrieval_patterns,
    retrieved_levels,
)

SIDE = 64


@pytest.fixture(scope="module")
def network():
    """A small Dsfer-Net, with features far enough apart that its retrieval is not even."""
    torch.manual_seed(1)
    model = dsfer.create_model("dsfer-net", image_size=SIDE, width=0.125, hopfield_dim=24)
    for layer in model.retrieval.values():
        layer.query.weight.data *= 6
    return model.eval()


@pytest.fixture(scope="module")
def dates():
    generator = torch.Generator().manual_seed(2)
    return torch.randn((2, 1, 3, SIDE, SIDE), generator=generator)


@pytest.fixture(scope="module")
def maps(network, dates):
    return encode(network, *dates)


def test_maps_are_the_five_scales_of_both_dates(network, maps):
    assert [tuple(each.shape) for each in maps] == [
        (2, c, SIDE // s, SIDE // s)
        for c, s in zip(network.encoder.channels, network.encoder.strides, strict=True)
    ]


def test_difference_features_equal_brute_force(maps):
    for stage, drawn in zip(maps, difference_features(maps), strict=True):
        both = stage.numpy().astype(np.float64)
        expected = sum(abs(both[0, c] - both[1, c]) for c in range(both.shape[1])) / both.shape[1]
        np.testing.assert_allclose(drawn, expected, rtol=1e-5)
        assert drawn.dtype == np.float32


@pytest.mark.parametrize("norm", ["volume", "channel"])
def test_what_is_computed_again_is_what_the_layer_computes(norm, dates, monkeypatch):
    torch.manual_seed(3)
    network = dsfer.create_model("dsfer-net", image_size=SIDE, width=0.125, norm=norm).eval()
    monkeypatch.setattr("dsfer.features.AT_ONCE", 7)  # parts that do not divide the positions
    maps = encode(network, *dates)
    with torch.no_grad():
        deep = network(*dates).deep
        masks = [network.retrieval[level](maps[int(level) - 1])[0] for level in ("4", "5")]
    for level, mask, logits in zip(retrieved_levels(network, maps), masks, deep, strict=True):
        np.testing.assert_allclose(level.features, mask[0].mean(dim=0), rtol=1e-5)
        np.testing.assert_allclose(level.change, logits.softmax(dim=1)[0, 1], rtol=1e-4)
        assert level.stride == SIDE // level.features.shape[0]


def test_weights_times_values_are_the_mask_of_the_layer(network, maps):
    layer, features = network.retrieval["5"], maps[4]
    patterns = retrieval_patterns(layer, features)
    h, w = features.shape[2:]
    with torch.no_grad():
        mask, _ = layer(features)
        for position in range(h * w):
            weights = attention_maps(network, maps, (position // w * 16, position % w * 16))[1]
            retrieved = torch.from_numpy(weights).reshape(2, 1, -1) @ patterns.values  # 2 1 c
            found = retrieved.sum(dim=0).sigmoid()[0]
            torch.testing.assert_close(found, mask[0, :, position // w, position % w])


def test_weights_sum_to_one_over_either_date_and_are_not_even(network, maps):
    for weights, side in zip(attention_maps(network, maps, (63, 0)), (8, 4), strict=True):
        assert weights.shape == (2, side, side) and weights.dtype == np.float32
        np.testing.assert_allclose(weights.sum(axis=(1, 2)), 1, rtol=1e-5)
        assert weights.max() > 1.05 / side**2


def test_energy_and_entropy_equal_brute_force_in_float64(network, maps):
    for level in retrieved_levels(network, maps):
        patterns = retrieval_patterns(network.retrieval[str(level.level)], maps[level.level - 1])
        state, beta = patterns.state.double().numpy(), patterns.beta
        for date in range(2):
            stored = patterns.stored[date].double().numpy()
            longest = max(np.linalg.norm(x) for x in stored)
            for position, xi in enumerate(state):
                terms = np.exp([beta * x @ xi for x in stored])
                p = terms / terms.sum()
                energy = -np.log(terms.sum()) / beta + xi @ xi / 2
                energy += np.log(len(stored)) / beta + longest**2 / 2
                place = (date, *np.unravel_index(position, level.change.shape))
                assert level.energy[place] == pytest.approx(energy, rel=1e-4)
                assert level.entropy[place] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 9), d=st.integers(1, 5), beta=st.floats(0.05, 8), seed=st.integers(0, 2**32)
)
def test_retrieving_lowers_the_energy_within_its_bounds(n, d, beta, seed):
    """Theorem 1 of Ramsauer et al.: one step of retrieval never raises the energy."""
    generator = torch.Generator().manual_seed(seed)
    stored = torch.randn((2, n, d), generator=generator, dtype=torch.float64)
    state = torch.randn((n, d), generator=generator, dtype=torch.float64)
    patterns = Patterns(state, stored, stored, beta)
    for date in range(2):
        retrieved = patterns.attention(slice(None))[date] @ stored[date]
        before = patterns.energy(slice(None))[date]
        after = Patterns(retrieved, stored, stored, beta).energy(slice(None))[date]
        longest = stored[date].norm(dim=1).max()
        assert (after <= before + 1e-9).all()
        assert (before >= -1e-9).all() and (after <= 2 * longest**2 + 1e-9).all()


def test_the_released_layout_of_other_encoders_is_looked_into(dates):
    torch.manual_seed(4)
    network = dsfer.create_model("dsfer-net", encoder="resnet18", width=0.125, image_size=SIDE)
    network.eval()
    maps = encode(network, *dates)
    assert [level.stride for level in retrieved_levels(network, maps)] == [16, 32]
    assert [each.shape for each in attention_maps(network, maps, (0, 40))] == [(2, 4, 4), (2, 2, 2)]


def test_networks_without_these_parts_are_refused(dates):
    bit = dsfer.create_model("bit").eval()
    assert not has_encoder(bit) and not has_retrieval(bit)
    with pytest.raises(ConfigError, match=r"BiT has no encoder of five scales.*dsfer-net or frnet"):
        encode(bit, *dates)
    plain = dsfer.create_model("dsfer-net", image_size=SIDE, width=0.125, variant="base+cf").eval()
    maps = encode(plain, *dates)
    assert has_encoder(plain) and not has_retrieval(plain) and len(difference_features(maps)) == 5
    with pytest.raises(ConfigError, match=r"no retrieval layers.*variant that ends in dsfr"):
        retrieved_levels(plain, maps)
    with pytest.raises(ConfigError, match="no retrieval layers"):
        attention_maps(plain, maps, (0, 0))


def test_forerunner_has_difference_features(dates):
    frnet = dsfer.create_model("frnet", width=0.125).eval()
    assert len(difference_features(encode(frnet, *dates))) == 5
    assert not has_retrieval(frnet)


@pytest.mark.parametrize("pixel", [(-1, 0), (0, SIDE), (SIDE, 0)])
def test_a_pixel_outside_the_image_is_refused(network, maps, pixel):
    with pytest.raises(DataError, match=r"is not in an image of 64 x 64"):
        attention_maps(network, maps, pixel)
