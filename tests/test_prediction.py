"""Windows, blending and stitching: what goes in comes out, at any size."""

import itertools
import threading

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dsfer.prediction import blend_weights, change_probability, window_starts

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
@given(
    TILES.filter(lambda tile: tile[1] <= tile[0] // 2),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.integers(0, 99),
)
def test_borders_of_windows_are_no_seams(tile, windows, seed):
    """However much windows disagree, neighbouring pixels differ by no more than a step of the ramp.

    Here all of them disagree, each by a level of its own. Without overlap a step is a whole level.
    """
    size, overlap = tile
    shape = tuple(size + (count - 1) * (size - overlap) for count in windows)
    generator = np.random.default_rng(seed)

    def predict(batch):
        levels = generator.integers(0, 2, (len(batch), 1, 1)).astype(np.float32)
        return np.broadcast_to(levels, (len(batch), size, size))

    strips = change_probability(
        shape, lambda *_: np.zeros((2, size, size, 3), np.uint8), predict,
        tile_size=size, overlap=overlap,
    )  # fmt: skip
    stitched = np.concatenate([strip for _, strip in strips])
    for axis in (0, 1):
        steps = np.abs(np.diff(stitched, axis=axis))
        assert steps.max(initial=0) <= 1 / (overlap + 1) + 1e-6


@settings(max_examples=100, deadline=None)
@given(SIZES, SIZES, TILES)
def test_weights_of_all_windows_over_a_pixel_sum_to_one(rows, cols, tile):
    size, overlap = tile
    weights = blend_weights(size, overlap)
    places = [(top, left) for top in window_starts(rows, size, overlap)
              for left in window_starts(cols, size, overlap)]  # fmt: skip
    total = np.zeros((max(rows, size), max(cols, size)))
    for top, left in places:
        total[top : top + size, left : left + size] += weights
    shares = np.zeros_like(total)
    for top, left in places:
        inside = slice(top, top + size), slice(left, left + size)
        shares[inside] += weights / total[inside]
    assert total[:rows, :cols].min() > 0
    np.testing.assert_allclose(shares[:rows, :cols], 1)


def test_blending_is_the_weighted_mean_of_all_windows_over_a_pixel():
    size, overlap, rows, cols = 8, 3, 19, 23
    generator = np.random.default_rng(0)
    outputs = {}

    def read(top, left, size):
        return np.full((2, size, size, 3), 0, dtype=np.uint8) + np.uint8(0)

    def predict(windows):
        return generator.random((len(windows), size, size)).astype(np.float32)

    def remember(windows):
        result = predict(windows)
        for one in result:
            outputs[len(outputs)] = one
        return result

    strips = change_probability(
        (rows, cols), read, remember, tile_size=size, overlap=overlap, batch_size=2
    )
    found = np.concatenate([strip for _, strip in strips])
    total, weight = np.zeros((rows, cols)), np.zeros((rows, cols))
    corners = [
        (top, left)
        for top in window_starts(rows, size, overlap)
        for left in window_starts(cols, size, overlap)
    ]
    weights = blend_weights(size, overlap).astype(np.float64)
    for (top, left), output in zip(corners, outputs.values(), strict=True):
        total[top : top + size, left : left + size] += weights * output
        weight[top : top + size, left : left + size] += weights
    np.testing.assert_allclose(found, total / weight, rtol=1e-5)


@pytest.mark.parametrize("overlap", [0, 1, 7])
def test_weights_are_positive_symmetric_and_one_in_the_middle(overlap):
    weights = blend_weights(16, overlap)
    assert weights.min() > 0
    assert weights.max() == 1
    np.testing.assert_array_equal(weights, weights[::-1])
    np.testing.assert_array_equal(weights, weights.T)


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


def test_an_error_of_reading_ahead_arrives_and_ends_the_thread():
    def read(top, left, size):
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(change_probability((9, 9), read, None, tile_size=4, overlap=1))
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]
