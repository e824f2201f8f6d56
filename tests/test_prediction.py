"""Windows, blending and stitching: what goes in comes out, at any size."""

import itertools
import random
import threading

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dsfer.prediction import blend_weights, change_probability, fading_sides, window_starts

SIZES = st.integers(1, 60)
TILES = st.tuples(st.integers(1, 24), st.integers(0, 23)).filter(lambda t: t[1] < t[0])


@settings(max_examples=200, deadline=None)
@given(SIZES, TILES)
def test_windows_cover_everything_inside_and_share_the_overlap(length, tile):
    size, overlap = tile
    starts = window_starts(length, size, overlap)
    covered = {pixel for start in starts for pixel in range(start, start + size)}
    assert covered >= set(range(length))
    assert starts == sorted(set(starts))
    if length >= size:
        assert starts[-1] + size == length
    assert all(b - a <= size - overlap for a, b in itertools.pairwise(starts))


def identity_model(pair, **options):
    """Stitch a 'network' whose probability is the red band of date 1."""

    def read(top, left, size):
        window = pair[:, top : top + size, left : left + size]
        assert window.shape[1] and window.shape[2]
        return window

    def predict(windows):
        return windows[:, 0, :, :, 0].astype(np.float32) / 255

    return list(change_probability(pair.shape[1:3], read, predict, **options))


@settings(max_examples=100, deadline=None)
@given(SIZES, SIZES, TILES, st.integers(1, 5), st.integers(0, 99))
@example(rows=29, cols=42, tile=(18, 17), batch_size=1, seed=1)  # 289 windows over one pixel
def test_stitching_the_windows_gives_the_scene_back(rows, cols, tile, batch_size, seed):
    pair = np.random.default_rng(seed).integers(0, 256, (2, rows, cols, 3), dtype=np.uint8)
    strips = identity_model(pair, tile_size=tile[0], overlap=tile[1], batch_size=batch_size)
    assert [top for top, _ in strips] == list(
        np.cumsum([0] + [len(strip) for _, strip in strips])[:-1]
    )
    whole = np.concatenate([strip for _, strip in strips])
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, pair[0, :, :, 0] / 255, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(SIZES, SIZES, TILES.filter(lambda tile: tile[1] <= tile[0] // 2), st.integers(0, 99))
@example(rows=25, cols=26, tile=(24, 12), seed=0)  # of both axes the last window moves back far
def test_borders_of_windows_are_no_seams(rows, cols, tile, seed):
    """However much windows disagree, neighbours differ by no more than two steps of the ramp.

    Here all of them disagree, each by a level of its own. Without overlap a step is a whole level.
    Two, because where the last window is moved back three may change their shares at once.
    """
    size, overlap = tile
    generator = np.random.default_rng(seed)

    def predict(batch):
        levels = generator.integers(0, 2, (len(batch), 1, 1)).astype(np.float32)
        return np.broadcast_to(levels, (len(batch), size, size))

    strips = change_probability(
        (rows, cols), lambda *_: np.zeros((2, size, size, 3), np.uint8), predict,
        tile_size=size, overlap=overlap,
    )  # fmt: skip
    stitched = np.concatenate([strip for _, strip in strips])
    for axis in (0, 1):
        steps = np.abs(np.diff(stitched, axis=axis))
        assert steps.max(initial=0) <= 2 / (overlap + 1) + 1e-6


@pytest.mark.parametrize("shift", range(1, 13))
def test_a_last_window_that_is_moved_back_is_no_seam(shift):
    """Two windows that say 0 and 1: between them the probability rises by the ramp, all the way."""
    size, overlap = 24, 12
    levels = iter((0, 1))
    strips = change_probability(
        (size, size + shift), lambda *_: np.zeros((2, size, size, 3), np.uint8),
        lambda batch: np.full((len(batch), size, size), next(levels), np.float32),
        tile_size=size, overlap=overlap, batch_size=1,
    )  # fmt: skip
    steps = np.diff(np.concatenate([strip for _, strip in strips]), axis=1)
    assert steps.min() > -1e-6
    assert steps.max() <= 1 / (overlap + 1) + 1e-6


@settings(max_examples=100, deadline=None)
@given(SIZES, SIZES, TILES)
def test_weights_of_all_windows_over_a_pixel_sum_to_one(rows, cols, tile):
    size, overlap = tile
    total = np.zeros((max(rows, size), max(cols, size)))
    windows = []
    for top in window_starts(rows, size, overlap):
        for left in window_starts(cols, size, overlap):
            sides = fading_sides(top, size, rows), fading_sides(left, size, cols)
            inside = slice(top, top + size), slice(left, left + size)
            windows.append((inside, blend_weights(size, overlap, *sides)))
            total[inside] += windows[-1][1]
    shares = np.zeros_like(total)
    for inside, weights in windows:
        shares[inside] += weights / total[inside]
    assert total[:rows, :cols].min() > 0
    np.testing.assert_allclose(shares[:rows, :cols], 1)


def ramp_of(start, size, length, overlap):
    """Weights of one axis, from their definition: pixel by pixel, by the distance to each side."""
    found = []
    for pixel in range(size):
        weight = 1.0
        if start != 0:
            weight = min(weight, (pixel + 1) / (overlap + 1))
        if start + size < length:
            weight = min(weight, (size - pixel) / (overlap + 1))
        found.append(weight)
    return np.array(found)


class Positional:
    """A 'network' whose answer depends on the window and on the place inside it."""

    def __init__(self, size):
        self.pattern = np.random.default_rng(0).random((size, size), np.float32)

    def __call__(self, windows):
        level = windows[:, 0, ..., 0].astype(np.float32).mean(axis=(1, 2), keepdims=True) / 255
        return (self.pattern * level + windows[:, 1, ..., 1] / np.float32(255)) / 2


def stitched(pair, **options):
    def read(top, left, size):
        return pair[:, top : top + size, left : left + size]

    predict = Positional(options["tile_size"])
    strips = change_probability(pair.shape[1:3], read, predict, **options)
    return np.concatenate([strip for _, strip in strips])


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, TILES, st.randoms(use_true_random=False))
@example(rows=25, cols=26, tile=(24, 12), random=random.Random(0))
def test_blending_is_the_weighted_mean_of_all_windows_over_a_pixel(rows, cols, tile, random):
    """Whatever order the windows come in: here by brute force, shuffled, in float64."""
    size, overlap = tile
    pair = np.random.default_rng(rows).integers(0, 256, (2, rows, cols, 3), dtype=np.uint8)
    below, beside = max(0, size - rows), max(0, size - cols)
    full = np.pad(pair, ((0, 0), (0, below), (0, beside), (0, 0)), mode="edge")
    total, weight = np.zeros(full.shape[1:3]), np.zeros(full.shape[1:3])
    starts = (window_starts(length, size, overlap) for length in (rows, cols))
    corners = list(itertools.product(*starts))
    random.shuffle(corners)
    for top, left in corners:
        window = slice(top, top + size), slice(left, left + size)
        weights = np.outer(ramp_of(top, size, rows, overlap), ramp_of(left, size, cols, overlap))
        total[window] += weights * Positional(size)(full[None, :, *window])[0].astype(float)
        weight[window] += weights
    expected = (total / weight)[:rows, :cols]
    found = stitched(pair, tile_size=size, overlap=overlap, batch_size=3)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, TILES, st.integers(0, 99))
def test_batch_size_does_not_matter_where_the_place_in_a_window_does(rows, cols, tile, seed):
    pair = np.random.default_rng(seed).integers(0, 256, (2, rows, cols, 3), dtype=np.uint8)
    options = {"tile_size": tile[0], "overlap": tile[1]}
    one, *others = (stitched(pair, **options, batch_size=batch) for batch in (1, 3, 32))
    for other in others:
        np.testing.assert_array_equal(other, one)


@pytest.mark.parametrize("overlap", [0, 1, 7])
def test_weights_are_positive_symmetric_and_one_in_the_middle(overlap):
    weights = blend_weights(16, overlap)
    assert weights.min() > 0
    assert weights.max() == 1
    np.testing.assert_array_equal(weights, weights[::-1])
    np.testing.assert_array_equal(weights, weights.T)


def test_weights_do_not_fall_towards_the_ends_of_the_scene():
    weights = blend_weights(8, 3, fading_sides(0, 8, 20), fading_sides(12, 8, 20))
    np.testing.assert_array_equal(weights[:, -1], [1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    np.testing.assert_array_equal(weights[0], [0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    alone = fading_sides(0, 8, 5)
    np.testing.assert_array_equal(blend_weights(8, 3, alone, alone), np.ones((8, 8)))


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, TILES, st.data())
def test_a_scene_can_be_continued_at_any_row(rows, cols, tile, data):
    pair = np.random.default_rng(0).integers(0, 256, (2, rows, cols, 3), dtype=np.uint8)
    options = {"tile_size": tile[0], "overlap": tile[1]}
    whole = np.concatenate([strip for _, strip in identity_model(pair, **options)])
    assert identity_model(pair, from_row=rows, **options) == []
    row = data.draw(st.integers(0, rows - 1))
    rest = identity_model(pair, from_row=row, **options)
    assert rest[0][0] == row
    np.testing.assert_array_equal(np.concatenate([strip for _, strip in rest]), whole[row:])


def test_windows_without_data_are_not_predicted_and_leave_no_value():
    pair = np.full((2, 24, 24, 3), 51, dtype=np.uint8)

    def read(top, left, size):
        return None if top < 8 and left < 8 else pair[:, top : top + size, left : left + size]

    seen = []

    def predict(windows):
        seen.append(len(windows))
        return windows[:, 0, :, :, 0].astype(np.float32) / 255

    strips = change_probability((24, 24), read, predict, tile_size=8, overlap=0, batch_size=4)
    whole = np.concatenate([strip for _, strip in strips])
    assert sum(seen) == 8
    assert np.isnan(whole[:8, :8]).all()
    np.testing.assert_allclose(whole[8:], 0.2)
    np.testing.assert_allclose(whole[:, 8:], 0.2)


def test_the_next_windows_are_read_while_the_network_works():
    reading = threading.Event()

    def read(top, left, size):
        if top == size:  # of the second batch
            reading.set()
        return np.zeros((2, size, size, 3), np.uint8)

    def predict(windows):
        assert reading.wait(10)
        return np.zeros((1, 4, 4), np.float32)

    list(change_probability((12, 4), read, predict, tile_size=4, overlap=0, batch_size=1))


def test_an_error_of_reading_ahead_arrives_and_ends_the_thread():
    def read(top, left, size):
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(change_probability((9, 9), read, None, tile_size=4, overlap=1))
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]
