"""Each loss term against a brute-force float64 computation, pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfer import losses
from dsfer.losses import (
    CHANGE_TERMS,
    DEEP_TERMS,
    ChangeLoss,
    false_alarm_weights,
    reduce_labels,
)
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
    found = CHANGE_TERMS["cross-entropy"](logits, labels, WEIGHTS)
    assert float(found) == pytest.approx(sum(terms) / len(terms), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_weighted_mean_divides_by_the_sum_of_weights(seed):
    logits, labels = random_case(seed)
    terms = [
        -WEIGHTS[y] * math.log(probability(logits, n, y, r, k)) for n, r, k, y in pixels(labels)
    ]
    total = sum(WEIGHTS[y] for *_, y in pixels(labels))
    found = CHANGE_TERMS["weighted-mean"](logits, labels, WEIGHTS)
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
    assert float(losses.printed_dice(logits, labels)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_released_dice_has_no_factor_two(seed):
    logits, labels = random_case(seed)
    sums = np.zeros((3, 2, 2))  # image, class, (overlap, squares)
    for n, r, k, y in pixels(labels):
        for c in (0, 1):
            p, t = probability(logits, n, c, r, k), float(y == c)
            sums[n, c] += (p * t, p * p + t * t)
    expected = (1 - (sums[..., 0] + 1) / (sums[..., 1] + 1)).mean()
    assert float(losses.released_dice(logits, labels)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_sigmoid_dice_takes_each_channel_by_itself(seed):
    logits, labels = random_case(seed)
    sums = np.zeros((3, 2, 2))  # image, class, (overlap, squares)
    for n, r, k, y in pixels(labels):
        for c in (0, 1):
            p, t = 1 / (1 + math.exp(-float(logits[n, c, r, k]))), float(y == c)
            sums[n, c] += (p * t, p * p + t * t)
    expected = (1 - (sums[..., 0] + 1) / (sums[..., 1] + 1)).mean()
    assert float(losses.sigmoid_dice(logits, labels)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 3.0)])
def test_contrastive_loss_balances_both_classes_in_the_batch(seed, weights):
    logits, labels = random_case(seed)
    logits[:, 0], logits[:, 1] = 1, logits[:, 1].abs()  # the threshold, and a distance
    costs = {0: [], 1: []}
    for n, r, k, y in pixels(labels):
        d = float(logits[n, 1, r, k])
        costs[y].append(max(0, 2 - d) ** 2 if y else d**2)
    expected = sum(weights[y] * sum(c) / (len(c) + 1e-4) for y, c in costs.items())
    assert float(CHANGE_TERMS["contrastive"](logits, labels, weights)) == pytest.approx(expected)


def test_contrastive_loss_of_a_batch_without_change_is_that_of_the_unchanged():
    distance = torch.full((1, 4, 4), 0.5)
    logits = torch.stack((torch.ones_like(distance), distance), dim=1)
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    found = float(CHANGE_TERMS["contrastive"](logits, labels, (1, 1)))
    assert found == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("change", CHANGE_TERMS)
def test_the_mean_over_ranks_is_the_loss_of_the_whole_batch(change, monkeypatch):
    logits, labels = random_case(0)
    whole = CHANGE_TERMS[change](logits, labels, WEIGHTS)
    shares = [(logits[:1], labels[:1]), (logits[1:], labels[1:])]
    said = [[], []]
    monkeypatch.setattr(losses, "world_size", lambda: 2)
    for share, words in zip(shares, said, strict=True):
        monkeypatch.setattr(losses, "sum_over_ranks", lambda x, words=words: words.append(x) or x)
        CHANGE_TERMS[change](*share, WEIGHTS)
    found = []
    for share in shares:
        sums = iter([a + b for a, b in zip(*said, strict=True)])
        monkeypatch.setattr(losses, "sum_over_ranks", lambda _, sums=sums: next(sums))
        found.append(CHANGE_TERMS[change](*share, WEIGHTS))
    assert float(sum(found) / 2) == pytest.approx(float(whole), rel=1e-6)


def test_false_alarms_cost_ten_times_balance():
    unchanged, changed = false_alarm_weights(0.05)
    assert (unchanged, changed) == pytest.approx((1.0, 1.9))
    balanced, _ = false_alarm_weights(0.05, factor=1)
    assert balanced * 0.95 == pytest.approx(changed * 0.05)


def test_a_perfect_prediction_scores_zero_printed_and_one_half_released():
    labels = torch.zeros(2, 16, 16, dtype=torch.uint8)
    labels[:, :8] = 1
    perfect = torch.stack((labels == 0, labels == 1), dim=1).double() * 60 - 30
    assert float(losses.printed_dice(perfect, labels)) == pytest.approx(0, abs=1e-9)
    assert float(losses.released_dice(perfect, labels)) == pytest.approx(0.5, abs=2e-3)


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


@pytest.mark.parametrize("change", CHANGE_TERMS)
@pytest.mark.parametrize("deep_term", DEEP_TERMS)
def test_total_is_equation_7(change, deep_term):
    logits, labels = random_case(0, side=32)
    deep = (torch.randn(3, 2, 4, 4).double(), torch.randn(3, 2, 2, 2).double())
    loss = ChangeLoss(0.3, WEIGHTS, change, deep_term)
    terms = loss(ChangeOutput(logits, deep), labels)
    assert float(terms.deep) == float(DEEP_TERMS[deep_term](deep, labels))
    expected = float(terms.change) + 0.3 * float(terms.deep)
    assert float(terms.total) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("dice", losses.printed_dice),
        ("released-dice", losses.released_dice),
        ("sigmoid-dice", losses.sigmoid_dice),
    ],
)
def test_dice_is_averaged_over_the_deep_maps(name, term):
    _, labels = random_case(0, side=32)
    deep = (torch.randn(3, 2, 4, 4), torch.randn(3, 2, 2, 2))
    dices = [float(term(d, reduce_labels(labels, d.shape[-1]))) for d in deep]
    assert float(DEEP_TERMS[name](deep, labels)) == pytest.approx(sum(dices) / 2, rel=1e-6)


def test_deep_cross_entropy_weighs_the_maps_and_takes_the_nearest_labels():
    _, labels = random_case(0, side=32)
    deep = [torch.randn(3, 2, side, side) for side in (8, 4, 2, 1)]
    expected = 0.0
    for weight, scores in zip((0.8, 0.5, 0.5, 0.5), deep, strict=True):
        side = scores.shape[-1]
        terms = [
            -math.log(probability(scores, n, int(y), r, k))
            for n, r, k in np.ndindex(3, side, side)
            if (y := labels[n, r * 32 // side, k * 32 // side]) != 255
        ]
        expected += weight * sum(terms) / len(terms)
    found = float(DEEP_TERMS["cross-entropy"](tuple(deep), labels))
    assert found == pytest.approx(expected, rel=1e-5)
    reduced = torch.nn.functional.interpolate(labels[:, None].float(), size=4, mode="nearest")
    assert torch.equal(reduced[:, 0].to(torch.uint8), labels[:, ::8, ::8])


def test_without_deep_maps_the_loss_is_the_cross_entropy():
    logits, labels = random_case(0)
    terms = ChangeLoss(1.0, WEIGHTS)(ChangeOutput(logits), labels)
    assert float(terms.total) == float(terms.change)
    assert float(terms.deep) == 0


@pytest.mark.parametrize("change", CHANGE_TERMS)
@pytest.mark.parametrize("deep_term", DEEP_TERMS)
def test_a_batch_without_evidence_costs_nothing_and_has_finite_gradients(change, deep_term):
    logits = torch.randn(2, 2, 16, 16, requires_grad=True)
    deep = torch.randn(2, 2, 2, 2, requires_grad=True)
    labels = torch.full((2, 16, 16), 255, dtype=torch.uint8)
    terms = ChangeLoss(1.0, WEIGHTS, change, deep_term)(ChangeOutput(logits, (deep,)), labels)
    terms.total.backward()
    assert terms.change.item() == 0
    assert torch.isfinite(logits.grad).all() and torch.isfinite(deep.grad).all()
