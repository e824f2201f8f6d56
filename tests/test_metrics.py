"""Metrics of the change class against counting pixel by pixel."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dsfer.metrics import (
    BINS,
    COUNTS,
    best_threshold,
    change_metrics,
    confusion_counts,
    counts_table,
    f1_interval,
    predicted_change,
    probability_histogram,
    scene_table,
    total_counts,
)

LABELS = arrays(np.uint8, (3, 5, 4), elements=st.sampled_from([0, 1, 255]))
MAPS = arrays(np.bool_, (3, 5, 4))


def brute(predicted, labels):
    names = {(1, 1): "tp", (1, 0): "fp", (0, 1): "fn", (0, 0): "tn"}
    counts = dict.fromkeys(COUNTS, 0)
    for p, y in zip(predicted.flat, labels.flat, strict=True):
        if y != 255:
            counts[names[int(p), int(y)]] += 1
    return counts


@settings(max_examples=60, deadline=None)
@given(MAPS, LABELS)
def test_counts_and_metrics_match_counting_by_hand(predicted, labels):
    counts = confusion_counts(torch.from_numpy(predicted), torch.from_numpy(labels))
    for i in range(3):
        assert dict(zip(COUNTS, counts[i].tolist(), strict=True)) == brute(predicted[i], labels[i])
    whole = brute(predicted, labels)
    assert total_counts(counts) == whole
    tp, fp, fn, tn = (whole[name] for name in COUNTS)
    expected = {
        "P": (tp, tp + fp),
        "R": (tp, tp + fn),
        "F1": (2 * tp, 2 * tp + fp + fn),
        "OA": (tp + tn, tp + fp + fn + tn),
        "IoU": (tp, tp + fp + fn),
    }
    for name, value in change_metrics(whole).items():
        top, bottom = expected[name]
        assert value == pytest.approx(100 * top / bottom) if bottom else math.isnan(value)


@settings(max_examples=30, deadline=None)
@given(MAPS, LABELS, st.permutations(range(3)))
def test_order_and_batching_do_not_matter(predicted, labels, order):
    whole = confusion_counts(torch.from_numpy(predicted), torch.from_numpy(labels))
    parts = [
        confusion_counts(torch.from_numpy(predicted[[i]]), torch.from_numpy(labels[[i]]))
        for i in order
    ]
    assert total_counts(torch.cat(parts)) == total_counts(whole)


def test_f1_is_of_the_whole_matrix_not_a_mean_of_tiles():
    counts = torch.tensor([[90, 10, 0, 0], [0, 0, 10, 90]])
    tiles = counts_table(["a", "b"], ["s", "s"], counts)
    assert change_metrics(tiles)["F1"] == pytest.approx(100 * 180 / 200)
    scenes = scene_table(tiles)
    assert scenes.loc[0, "tiles"] == 2
    assert scenes.loc[0, "F1"] == pytest.approx(90)


def test_a_published_row_follows_from_its_own_precision_and_recall():
    # Table I, Dsfer-Net on LEVIR-CD: P 89.42, R 92.15 -> F1 90.76, IoU 83.09.
    tp = 1e6
    row = {"tp": tp, "fp": tp / 0.8942 - tp, "fn": tp / 0.9215 - tp, "tn": 1e8}
    metrics = change_metrics(row)
    assert metrics["F1"] == pytest.approx(90.76, abs=0.01)
    assert metrics["IoU"] == pytest.approx(83.09, abs=0.01)


def test_interval_covers_the_score_repeats_and_narrows_with_scenes():
    generator = np.random.default_rng(0)

    def scenes(n):
        counts = generator.integers(50, 100, size=(n, 4))
        return pd.DataFrame(counts, columns=COUNTS)

    few, many = scenes(5), scenes(80)
    low, high = f1_interval(many, seed=1)
    assert low < change_metrics(many)["F1"] < high
    assert (low, high) == f1_interval(many, seed=1)
    few_low, few_high = f1_interval(few, seed=1)
    assert high - low < few_high - few_low
    assert all(math.isnan(bound) for bound in f1_interval(few[:1], seed=1))


def test_prediction_is_the_argmax():
    logits = torch.randn(2, 2, 3, 3)
    assert torch.equal(predicted_change(logits), logits.argmax(dim=1).bool())


def test_resamples_without_change_are_left_out_of_the_interval():
    counts = pd.DataFrame(0, index=range(10), columns=COUNTS)
    counts.loc[0] = [80, 10, 10, 100]
    low, high = f1_interval(counts, seed=0)
    assert low == high == pytest.approx(change_metrics(counts)["F1"])


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (2, 4, 5), elements=st.integers(0, 64).map(lambda k: k / 64)),
    arrays(np.uint8, (2, 4, 5), elements=st.sampled_from([0, 1, 255])),
)
def test_the_best_threshold_is_that_of_trying_all_of_them(probability, labels):
    """Probabilities on the bounds of bins, where a wrong `>=` would show."""
    with np.errstate(divide="ignore"):
        scores = np.log(np.stack((1 - probability, probability), axis=1))
    histogram = probability_histogram(torch.from_numpy(scores), torch.from_numpy(labels)).numpy()
    # The softmax may round a probability that lies on a bound: count what it made of it.
    rounded = torch.from_numpy(scores).softmax(dim=1)[:, 1].numpy()
    assert histogram.sum(axis=1).tolist() == [(labels == 0).sum(), (labels == 1).sum()]
    found, f1 = best_threshold(histogram)
    if not (labels == 1).any():
        assert found == 0.5 and math.isnan(f1)
        return
    thresholds = np.arange(1, BINS) / BINS
    called = rounded[labels != 255] > thresholds[:, None]
    right = (called & (labels == 1)[labels != 255]).sum(axis=1)
    tried = 200 * right / (called.sum(axis=1) + (labels == 1).sum())
    assert f1 == pytest.approx(tried.max()) == pytest.approx(tried[thresholds == found].item())
    nearest = np.abs(thresholds - 0.5)[tried > tried.max() - 1e-9].min()
    assert abs(found - 0.5) == nearest
