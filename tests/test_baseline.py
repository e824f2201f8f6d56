"""The difference-and-threshold baseline against brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dsfer.baseline import count_tiles, difference, fit_threshold

SIDE = 6

tiles = st.lists(
    st.tuples(
        arrays.arrays(np.uint8, (2, SIDE, SIDE, 3)),
        arrays.arrays(np.uint8, (SIDE, SIDE), elements=st.sampled_from([0, 1, 255])),
    ),
    min_size=1,
    max_size=3,
)


def batches(data):
    return [(torch.from_numpy(pair)[None], torch.from_numpy(label)[None]) for pair, label in data]


def difference_of(pair):
    return difference(torch.from_numpy(pair)[None])[0].numpy()


def slow_difference(pair):
    change = np.zeros(pair.shape[1:3])
    for band in range(3):
        dates = []
        for date in pair[..., band].astype(np.float64):
            spread = date.std()
            dates.append((date - date.mean()) / (spread if spread > 0 else 1))
        change += (dates[1] - dates[0]) ** 2
    return np.sqrt(change)


def slow_f1(data, threshold):
    tp = fp = fn = 0
    for pair, label in data:
        for d, y in zip(slow_difference(pair).ravel(), label.ravel(), strict=True):
            tp += int(y == 1 and d >= threshold)
            fp += int(y == 0 and d >= threshold)
            fn += int(y == 1 and d < threshold)
    return 2 * tp / max(2 * tp + fp + fn, 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=tiles)
def test_difference_is_that_of_float64(data):
    for pair, _ in data:
        np.testing.assert_allclose(difference_of(pair), slow_difference(pair), atol=1e-4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=tiles)
def test_no_threshold_is_better_than_the_fitted_one(data):
    """Up to the width of a histogram bin, within which the sweep cannot tell pixels apart."""
    fitted = fit_threshold(batches(data))
    distances = np.concatenate([slow_difference(pair).ravel() for pair, _ in data])
    grid = np.floor(np.unique(distances) * 256) / 256
    best = max(slow_f1(data, threshold - 1e-5) for threshold in [0.0, *grid])
    assert slow_f1(data, fitted - 1e-5) == pytest.approx(best, abs=0.02)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=tiles, threshold=st.floats(0, 4))
def test_counts_cover_every_pixel_that_is_not_ignored(data, threshold):
    counts = count_tiles(batches(data), threshold)
    assert counts.dtype == torch.int64
    for (tp, fp, fn, tn), (pair, label) in zip(counts.tolist(), data, strict=True):
        found = difference_of(pair) >= threshold
        assert tp == ((label == 1) & found).sum()
        assert tp + fn == (label == 1).sum()
        assert fp + tn == (label == 0).sum()
        assert fp == ((label == 0) & found).sum()


def test_exposure_alone_is_no_difference():
    before = np.random.default_rng(0).integers(20, 100, (8, 8, 3)).astype(np.uint8)
    pair = np.stack([before, before * 2 + 10])
    np.testing.assert_allclose(difference_of(pair), 0, atol=1e-5)


def test_separable_change_is_found_exactly():
    rng = np.random.default_rng(1)
    before = rng.integers(90, 110, (32, 32, 3)).astype(np.uint8)
    after, label = before.copy(), np.zeros((32, 32), np.uint8)
    after[4:8, 4:8], label[4:8, 4:8] = 250, 1
    label[0] = 255
    data = [(np.stack([before, after]), label)]
    counts = count_tiles(batches(data), fit_threshold(batches(data)))
    assert counts.tolist() == [[16, 0, 0, 31 * 32 - 16]]


def test_no_change_in_training_gives_threshold_zero_and_no_tile_no_counts():
    blank = np.zeros((2, 4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
    assert fit_threshold(batches([blank])) == 0
    assert count_tiles([], 1.0).shape == (0, 4)


def test_tiles_of_a_batch_do_not_touch_each_other():
    rng = np.random.default_rng(2)
    pairs = torch.from_numpy(rng.integers(0, 256, (5, 2, 8, 8, 3), dtype=np.uint8))
    labels = torch.from_numpy(rng.choice(np.array([0, 1, 255], np.uint8), (5, 8, 8)))
    split = [(pairs[:2], labels[:2]), (pairs[2:], labels[2:])]
    alone = list(zip(pairs.split(1), labels.split(1), strict=True))
    assert fit_threshold(split) == fit_threshold(alone)
    assert torch.equal(count_tiles(split, 2.0), count_tiles(alone, 2.0))
