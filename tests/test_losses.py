"""Each loss term against a brute-force float64 computation, pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfer.losses import CROSS_ENTROPIES, DICES, ChangeLoss, reduce_labels
from dsfer.models.output import ChangeOutput

WEIGHTS = (1.04809706, 21.79129276)


def random_case(seed: int, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(seed)
    logits = torch.from_numpy(generator.normal(size=(3, 2, side, side)) * 3)
    labels = generator.choice([0, 1, 255], p=[0.6, 0.3, 0.1], size=(3, side, side))
    return logits, torch.from_numpy(labels.astype(np.uint8))


def probability(logits: torch.Tensor, n: int, c: int, r: int, k: int) -> float:
    scores = [float(s) for s in logits[n, :, r, k]]
    return math.exp(scores[c]) / sum(math.exp(s) for s in scores)


def pixels(labels: torch.Tensor):
    for n, r, k in np.ndindex(*labels.shape):
        if labels[n, r, k] != 255:
            yield n, r, k, int(labels[n, r, k])


@pytest.mark.parametrize("seed", range(3))
def test_printed_cross_entropy_is_equation_4(seed):
    logits, labels = random_case(seed)
    terms = [
        -WEIGHTS[y] * math.log(probability(logits, n, y, r, k)) for n, r, k, y in pixels(labels)
    ]
    found = CROSS_ENTROPIES["printed"](logits, labels, WEIGHTS)
    assert float(found) == pytest.approx(sum(terms) / len(terms), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_weighted_mean_divides_by_the_sum_of_weights(seed):
    logits, labels = random_case(seed)
    terms = [
        -WEIGHTS[y] * math.log(probability(logits, n, y, r, k)) for n, r, k, y in pixels(labels)
    ]
    total = sum(WEIGHTS[y] for *_, y in pixels(labels))
    found = CROSS_ENTROPIES["weighted-mean"](logits, labels, WEIGHTS)
    assert float(found) == pytest.approx(sum(terms) / total, rel=1e-6)
    masked = torch.where(labels == 255, -100, labels.long())
    torch_own = torch.nn.functional.cross_entropy(logits, masked, torch.tensor(WEIGHTS).double())
    assert float(found) == pytest.approx(float(torch_own), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_printed_dice_is_equation_5(seed):
    logits, labels = random_case(seed)
    overlap, total = [0.0] * 3, [0.0] * 3
    for n, r, k, y in pixels(labels):
        p = probability(logits, n, 1, r, k)
        overlap[n] += y * p
        total[n] += y + p
    expected = sum(1 - 2 * o / t for o, t in zip(overlap, total, strict=True)) / 3
    assert float(DICES["printed"](logits, labels)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_released_dice_has_no_factor_two(seed):
    logits, labels = random_case(seed)
    sums = np.zeros((3, 2, 2))  # image, class, (overlap, squares)
    for n, r, k, y in pixels(labels):
        for c in (0, 1):
            p, t = probability(logits, n, c, r, k), float(y == c)
            sums[n, c] += (p * t, p * p + t * t)
    expected = (1 - (sums[..., 0] + 1) / (sums[..., 1] + 1)).mean()
    assert float(DICES["released"](logits, labels)) == pytest.approx(expected, rel=1e-9)


def test_a_perfect_prediction_scores_zero_printed_and_one_half_released():
    labels = torch.zeros(2, 16, 16, dtype=torch.uint8)
    labels[:, :8] = 1
    perfect = torch.stack((labels == 0, labels == 1), dim=1).double() * 60 - 30
    assert float(DICES["printed"](perfect, labels)) == pytest.approx(0, abs=1e-9)
    assert float(DICES["released"](perfect, labels)) == pytest.approx(0.5, abs=2e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 4, 8]))
def test_labels_reduce_to_any_changed_pixel(seed, factor):
    _, labels = random_case(seed, side=16)
    reduced = reduce_labels(labels, 16 // factor)
    for n, r, k in np.ndindex(*reduced.shape):
        rows, cols = slice(r * factor, (r + 1) * factor), slice(k * factor, (k + 1) * factor)
        block = set(labels[n, rows, cols].flatten().tolist())
        expected = 1 if 1 in block else 0 if 0 in block else 255
        assert int(reduced[n, r, k]) == expected


@pytest.mark.parametrize("cross_entropy", CROSS_ENTROPIES)
@pytest.mark.parametrize("dice", DICES)
def test_total_is_equation_7(cross_entropy, dice):
    logits, labels = random_case(0, side=32)
    deep = (torch.randn(3, 2, 4, 4).double(), torch.randn(3, 2, 2, 2).double())
    loss = ChangeLoss(0.3, WEIGHTS, cross_entropy, dice)
    terms = loss(ChangeOutput(logits, deep), labels)
    dices = [DICES[dice](d.float(), reduce_labels(labels, d.shape[-1])) for d in deep]
    assert float(terms.dice) == pytest.approx(float(sum(dices)) / 2, rel=1e-6)
    expected = float(terms.cross_entropy) + 0.3 * float(terms.dice)
    assert float(terms.total) == pytest.approx(expected, rel=1e-6)


def test_without_deep_maps_the_loss_is_the_cross_entropy():
    logits, labels = random_case(0)
    terms = ChangeLoss(1.0, WEIGHTS)(ChangeOutput(logits), labels)
    assert float(terms.total) == float(terms.cross_entropy)
    assert float(terms.dice) == 0


@pytest.mark.parametrize("cross_entropy", CROSS_ENTROPIES)
@pytest.mark.parametrize("dice", DICES)
def test_a_batch_without_evidence_costs_nothing_and_has_finite_gradients(cross_entropy, dice):
    logits = torch.randn(2, 2, 16, 16, requires_grad=True)
    deep = torch.randn(2, 2, 2, 2, requires_grad=True)
    labels = torch.full((2, 16, 16), 255, dtype=torch.uint8)
    terms = ChangeLoss(1.0, WEIGHTS, cross_entropy, dice)(ChangeOutput(logits, (deep,)), labels)
    terms.total.backward()
    assert terms.cross_entropy.item() == 0
    assert torch.isfinite(logits.grad).all() and torch.isfinite(deep.grad).all()
