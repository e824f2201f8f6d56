"""The rendered demo data: reproducible, georeferenced, hard, and labelled as it says."""

from functools import cache

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from dsfer.baseline import count_tiles, difference, fit_threshold
from dsfer.data import demo
from dsfer.data.demo_canvas import Canvas, Roof, Tree
from dsfer.data.demo_light import Light, cast_shadow, shine
from dsfer.errors import ConfigError
from dsfer.files import sha256_file

SEED = 11


@cache
def pair(index, size=256):
    return demo.render_pair(SEED, index, size)


def light(azimuth=-np.pi / 2, elevation=np.pi / 4):
    gain, haze = np.ones(3, np.float32), np.zeros(3, np.float32)
    return Light(azimuth, elevation, 0.2, gain, haze, 1.0, 0.5, 0.0, 0.0)


def empty_canvas(size=64):
    side = Canvas.side_of(size)
    flat = np.zeros((side, side), np.float32)
    return Canvas(np.full((side, side, 3), 0.3, np.float32), flat, flat)


def test_same_seed_same_bytes_whatever_the_count_or_the_workers(tmp_path):
    first = demo.render_scenes(tmp_path / "a", seed=5, count=2, size=96, workers=1)
    second = demo.render_scenes(tmp_path / "b", seed=5, count=3, size=96, workers=3)
    assert [scene.id for scene in second] == ["demo_000", "demo_001", "demo_002"]
    for one, two in zip(first, second, strict=False):
        for member in ("t1", "t2", "label"):
            assert sha256_file(getattr(one, member)) == sha256_file(getattr(two, member))


def test_another_seed_or_number_is_another_town():
    seen = [
        demo.render_pair(seed, index, 96)[0].tobytes()
        for seed, index in ((5, 0), (5, 1), (6, 0), (6, 1))
    ]
    assert len(set(seen)) == 4


def test_files_are_georeferenced_on_one_grid(tmp_path):
    scenes = demo.render_scenes(tmp_path, seed=1, count=2, size=300)
    corners = set()
    for scene in scenes:
        facts = []
        for path, bands in ((scene.t1, 3), (scene.t2, 3), (scene.label, 1)):
            with rasterio.open(path) as raster:
                assert raster.count == bands
                assert raster.dtypes == ("uint8",) * bands
                assert raster.profile["tiled"]
                assert raster.compression.name == "deflate"
                facts.append((raster.crs.to_epsg(), raster.transform, raster.shape))
                if bands == 1:
                    assert set(np.unique(raster.read(1))) == {0, 255}
        assert facts[0] == facts[1] == facts[2]
        assert facts[0][0] == 32614
        assert facts[0][1].a == 0.5
        assert facts[0][2] == (300, 300)
        corners.add((facts[0][1].c, facts[0][1].f))
    assert len(corners) == 2
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("index", range(6))
def test_changed_fraction(index):
    label = pair(index)[2]
    assert set(np.unique(label)) == {0, 255}
    assert 0.03 < (label > 0).mean() < 0.1


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**40), index=st.integers(0, 10_000), size=st.integers(64, 150))
def test_any_seed_and_size_renders(seed, index, size):
    t1, t2, label = demo.render_pair(seed, index, size)
    assert t1.shape == t2.shape == (size, size, 3)
    assert label.shape == (size, size)
    assert t1.dtype == t2.dtype == label.dtype == np.uint8
    for image in (t1, t2):
        assert 30 < image.mean() < 190
        assert image.std() > 8


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"seed": -1}, "seed is -1"), ({"count": 0}, "count is 0"), ({"size": 63}, "size is 63")],
)
def test_impossible_numbers_are_refused(tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message):
        demo.render_scenes(tmp_path, **({"seed": 0, "count": 1, "size": 64} | wrong))
    assert not list(tmp_path.iterdir())


def test_large_differences_outside_the_label():
    """Season, cars, shadows and earthworks change more ground than buildings do."""
    inside = outside = 0
    for index in range(4):
        t1, t2, label = pair(index)
        strong = difference(torch.from_numpy(np.stack([t1, t2]))[None])[0].numpy() > 2
        inside += int((strong & (label > 0)).sum())
        outside += int((strong & (label == 0)).sum())
    assert inside > 0
    assert outside > inside


def test_baseline_is_poor():
    tiles = []
    for t1, t2, label in map(pair, range(6)):
        changed = (label > 0).astype(np.uint8)
        for part in (np.s_[:128, :128], np.s_[128:, :128], np.s_[:128, 128:], np.s_[128:, 128:]):
            images = np.stack([t1[part], t2[part]])
            tiles.append((torch.from_numpy(images)[None], torch.from_numpy(changed[part])[None]))
    tp, fp, fn, _ = count_tiles(tiles, fit_threshold(tiles)).sum(dim=0).tolist()
    f1 = 2 * tp / (2 * tp + fp + fn)
    assert f1 < 0.4


def _shift(a, b, keep):
    """Sub-pixel shift of the structure of b against a by phase correlation, (rows, columns)."""

    def structure(image):
        grey = ndimage.gaussian_filter(image.mean(2), 0.7)
        detail = grey - ndimage.gaussian_filter(grey, 6)
        return keep * detail / np.sqrt(ndimage.gaussian_filter(detail**2, 12) + 4)

    window = np.outer(np.hanning(len(a)), np.hanning(len(a)))
    spectra = [np.fft.fft2(structure(image) * window) for image in (a, b)]
    peak = np.fft.fftshift(np.fft.ifft2(spectra[0].conj() * spectra[1]).real)
    middle = len(a) // 2
    near = peak[middle - 3 : middle + 4, middle - 3 : middle + 4]
    row, col = (int(k) + middle - 3 for k in np.unravel_index(near.argmax(), near.shape))

    def vertex(low, mid, high):
        return 0.5 * (low - high) / (low - 2 * mid + high)

    return np.array([
        row - middle + vertex(*peak[row - 1 : row + 2, col]),
        col - middle + vertex(*peak[row, col - 1 : col + 2]),
    ])  # fmt: skip


def test_dates_are_misregistered(monkeypatch):
    """The unchanged ground of date 2 is shifted by what the warp says.

    Shadows that moved bias the correlation, equally with and without the warp.
    """
    true, original = [], demo._misregistration

    def switched_off(rng, size):
        true.append(original(rng, size))
        return np.eye(2, 3)

    for index in (0, 1, 2):
        t1, t2, label = pair(index)
        with monkeypatch.context() as patch:
            patch.setattr(demo, "_misregistration", switched_off)
            _, aligned, _ = demo.render_pair(SEED, index, 256)
        keep = ~ndimage.binary_dilation(label > 0, iterations=6)
        seen = _shift(t1, t2, keep) - _shift(t1, aligned, keep)
        expected = -(true[-1] @ [128, 128, 1] - 128)
        assert 0.2 <= np.linalg.norm(expected) <= 0.7
        assert np.linalg.norm(seen - expected) < 0.35
        assert seen @ expected > 0


def test_new_building_is_labelled_and_a_car_is_not():
    before, after = empty_canvas(), empty_canvas()
    before.add_roof(Roof((40, 40), 0.0, (4, 2), 2.6, 0, True, (200, 0, 0), 0))
    after.add_roof(Roof((20, 20), 0.0, (8, 5), 6, 0.5, False, (120, 110, 100), 1))
    after.add_tree(Tree(20, 20, 6, 14, (50, 60, 40)))
    label = demo._label((before, after))
    expected = np.zeros((64, 64), np.uint8)
    expected[15:25, 12:28] = 255
    np.testing.assert_array_equal(label, expected)


def test_roof_faces_the_sun_and_casts_a_shadow():
    canvas = empty_canvas()
    canvas.add_roof(Roof((32, 32), 0.0, (10, 8), 6, 0.5, True, (120, 110, 100), 1))
    # Shadows fall to the top of the image, so the sun stands below it.
    bright = shine(canvas, light())[..., 1]
    at = lambda x, y: bright[int((y + 24) * 2), int((x + 24) * 2)]  # noqa: E731
    assert at(32, 36) > 1.5 * at(32, 28)
    shadow = cast_shadow(canvas.height, light())
    at_shadow = lambda x, y: shadow[int((y + 24) * 2), int((x + 24) * 2)]  # noqa: E731
    assert at_shadow(32, 21) == 1
    assert at_shadow(32, 43) == 0
    assert at_shadow(32, 36) == 0


@settings(max_examples=30, deadline=None, derandomize=True)
@given(height=st.integers(3, 14), elevation=st.sampled_from([0.6, 0.8, 1.0]))
def test_shadow_is_as_long_as_the_sun_is_low(height, elevation):
    ground = np.zeros((60, 60), np.float32)
    ground[40, 20:40] = height
    shadow = cast_shadow(ground, light(elevation=elevation))
    length = int((shadow[:40, 30] > 0).sum())
    assert abs(length - height / np.tan(elevation)) <= 1.0


def test_picture(tmp_path):
    demo.save_picture(tmp_path / "pair.png", seed=1, size=64)
    with Image.open(tmp_path / "pair.png") as picture:
        assert picture.size == (192, 64)
