"""Augmentation: dates and label move together, and what is drawn depends on seed and step alone."""

import colorsys

import numpy as np
import pytest
import torch
from scipy import ndimage

from dsfer.data.augmentation import (
    AUGMENTATIONS,
    apply_blur,
    apply_colour,
    apply_rotation,
    apply_symmetries,
    apply_zoom,
    augment,
    draw_symmetries,
)

SIDE = 32


def pairs_of(count: int, side: int = SIDE) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(
        generator.normal(size=(count, 2, side, side, 3)), (0, 0, 3, 3, 0)
    )
    pairs = 128 + 60 * smooth / smooth.std()
    labels = generator.integers(0, 2, (count, side, side))
    return (
        torch.from_numpy(pairs.clip(0, 255).astype(np.uint8)),
        torch.from_numpy(labels.astype(np.uint8)),
    )


def run(name: str, count: int = 6, share: slice = slice(None), **changes: int):
    pairs, labels = pairs_of(count)
    where = {"count": count, "seed": 3, "step": 5} | changes
    return augment(pairs[share], labels[share], (name,), share=share, **where)


def test_all_eight_symmetries_act_on_both_dates_and_the_label_alike():
    labels = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4).repeat(8, 1, 1)
    pairs = labels[:, None, :, :, None].repeat(1, 2, 1, 1, 3)
    bits = torch.tensor([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)]).bool()
    turned, turned_labels = apply_symmetries(pairs, labels, bits)
    assert torch.equal(turned, turned_labels[:, None, :, :, None].expand_as(turned))
    assert len({tuple(image.flatten().tolist()) for image in turned_labels}) == 8
    flipped, _ = apply_symmetries(pairs, labels, bits[:, :2])
    assert torch.equal(flipped[:4], turned[:4])
    assert torch.equal(flipped[4:], turned[:4])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_draws_depend_on_seed_and_step_only(name):
    pairs, labels = run(name)
    again = run(name)
    assert torch.equal(pairs, again[0]) and torch.equal(labels, again[1])
    assert not torch.equal(pairs, run(name, step=6)[0])
    assert not torch.equal(pairs, run(name, seed=4)[0])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_processes_get_the_parts_of_the_batch_that_one_would_have(name):
    whole, parts = run(name), [run(name, share=part) for part in (slice(2), slice(2, 6))]
    for together, shared in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(shared), together)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_values_stay_pixels_and_labels_stay_labels(name):
    pairs, labels = run(name)
    assert pairs.shape == (6, 2, SIDE, SIDE, 3) and labels.shape == (6, SIDE, SIDE)
    assert pairs.min() >= -1e-3 and pairs.max() <= 255.001
    allowed = {0, 1, 255} if name == "rotation" else {0, 1}
    assert labels.dtype == torch.uint8 and set(labels.unique().tolist()) == allowed


def test_draws_of_neighbouring_steps_share_nothing():
    first, second = (draw_symmetries(np.random.default_rng([3, step]), 64) for step in (5, 6))
    assert 0.3 < first.mean() < 0.7
    for shift in range(61):
        assert not np.array_equal(first[shift:], second[: 64 - shift])


@pytest.mark.parametrize("name", ["rotation", "zoom"])
def test_what_moves_pixels_moves_both_dates_and_the_label_alike(name):
    labels = torch.zeros(6, SIDE, SIDE, dtype=torch.uint8)
    labels[:, 8:20, 10:24] = 1
    pairs = (255 * labels)[:, None, :, :, None].repeat(1, 2, 1, 1, 3)
    moved, moved_labels = augment(
        pairs, labels, (name,), count=6, share=slice(None), seed=0, step=0
    )
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert not torch.equal(moved_labels, labels)
    seen = moved_labels != 255
    agree = (moved[:, 0, :, :, 0] > 127.5) == (moved_labels == 1)
    assert agree[seen].float().mean() > 0.97  # the nearest pixel, beside interpolated ones


def test_a_rotation_is_scipy_s_and_its_corners_are_grey_and_ignored():
    pairs, labels = pairs_of(1)
    angle = np.deg2rad(11)
    turn = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]]
    found, found_labels = apply_rotation(pairs, labels, torch.tensor([turn], dtype=torch.float32))
    for date, band in np.ndindex(2, 3):
        image = pairs[0, date, :, :, band].numpy().astype(float)
        expected = ndimage.rotate(image, 11, reshape=False, order=1, mode="grid-constant", cval=128)
        np.testing.assert_allclose(found[0, date, :, :, band].numpy(), expected, atol=0.01)
    outside = found_labels[0] == 255
    assert outside[0, 0] and outside[-1, -1] and not outside[SIDE // 2].any()
    assert torch.equal(found[0, 0][0, 0], torch.full((3,), 128.0))


def test_no_zoom_is_the_identity_and_the_largest_fills_the_tile_with_its_window():
    pairs, labels = pairs_of(1)
    same, same_labels = apply_zoom(pairs, labels, torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]))
    torch.testing.assert_close(same, pairs.float(), atol=1e-3, rtol=0)
    assert torch.equal(same_labels, labels)
    half = torch.tensor([[[0.5, 0, -0.5], [0, 0.5, -0.5]]])  # the upper left quarter
    _, quarter = apply_zoom(pairs, labels, half)
    expected = labels[:, : SIDE // 2, : SIDE // 2].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(quarter, expected)


def test_blur_is_scipy_s_of_both_dates_and_none_of_the_label():
    pairs, labels = pairs_of(2)
    found, found_labels = apply_blur(pairs, labels, torch.tensor([0.0, 0.8]))
    torch.testing.assert_close(found[0], pairs[0].float())
    for date in range(2):
        expected = ndimage.gaussian_filter(
            pairs[1, date].numpy().astype(float), (0.8, 0.8, 0), radius=(3, 3, 0), mode="nearest"
        )
        np.testing.assert_allclose(found[1, date].numpy(), expected, atol=0.01)
    assert found_labels is labels


def test_hue_turns_as_in_the_standard_library():
    pairs, labels = pairs_of(1, side=6)
    drawn = torch.tensor([[[1.0, 1, 1, 0.2], [1, 1, 1, -0.3]]])
    found, _ = apply_colour(pairs, labels, drawn)
    for date, turn in enumerate((0.2, -0.3)):
        for row, col in np.ndindex(6, 6):
            hue, saturation, value = colorsys.rgb_to_hsv(*(pairs[0, date, row, col] / 255).tolist())
            expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
            got = found[0, date, row, col] / 255
            torch.testing.assert_close(got, torch.tensor(expected), atol=1e-4, rtol=0)


def test_brightness_contrast_and_saturation_do_what_they_say():
    pairs, labels = pairs_of(1)
    pairs = pairs // 2 + 60  # nothing is cut off
    levels = torch.tensor([[[1.1, 1, 1, 0], [1, 0.7, 1, 0]]])
    found, _ = apply_colour(pairs, labels, levels)
    torch.testing.assert_close(found[0, 0], 1.1 * pairs[0, 0].float(), atol=0.01, rtol=0)
    assert float(found[0, 1].std() / pairs[0, 1].float().std()) == pytest.approx(0.7, abs=0.02)
    grey, _ = apply_colour(pairs, labels, torch.tensor([[[1.0, 1, 0, 0], [1, 1, 0, 0]]]))
    torch.testing.assert_close(grey[..., 0], grey[..., 2], atol=0.01, rtol=0)
