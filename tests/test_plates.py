import re
import zlib

import numpy as np
import pytest
from matplotlib.image import AxesImage
from PIL import Image

from dsfer.errors import DataError
from dsfer.features import RetrievedLevel
from dsfer.figures import error_map
from dsfer.plates import (
    Evidence,
    Tile,
    comparison_plate,
    difference_plate,
    evidence_plate,
    retrieval_plate,
    save_figure,
)

SIDE = 32


def tile(seed):
    rng = np.random.default_rng(seed)
    t1, t2 = rng.integers(0, 256, (2, SIDE, SIDE, 3)).astype(np.uint8)
    label = np.zeros((SIDE, SIDE), np.uint8)
    label[:8, :8] = 1
    label[:, -8:] = 255
    return Tile(f"tile{seed}", t1, t2, label)


def level(number, stride, seed):
    rng = np.random.default_rng(seed)
    side = SIDE // stride
    maps = rng.random((2, side, side), np.float32)
    both = rng.random((2, 2, side, side), np.float32)
    return RetrievedLevel(number, stride, maps[0], maps[1], both[0], both[1])


@pytest.fixture
def tiles():
    return [tile(1), tile(2)]


def pictures(figure):
    """Pixels of every panel, in the order they were drawn."""
    images = [axes.get_images() for axes in figure.axes]
    return [np.asarray(each[0].get_array()) for each in images if each]


def texts(figure):
    return [text.get_text() for text in figure.texts]


def test_comparison_shows_each_method_in_the_colours_of_the_paper(tiles):
    rng = np.random.default_rng(3)
    called = {name: [rng.integers(0, 2, (SIDE, SIDE)).astype(np.uint8) for _ in tiles]
              for name in ("BiT", "Dsfer-Net")}  # fmt: skip
    figure = comparison_plate(tiles, called)
    drawn = pictures(figure)
    assert len(drawn) == 10  # two dates, label and two methods, of two tiles each
    np.testing.assert_array_equal(drawn[0], tiles[0].t1)
    np.testing.assert_array_equal(drawn[3], tiles[1].t2)
    np.testing.assert_array_equal(drawn[7], error_map(called["BiT"][1], tiles[1].label))
    np.testing.assert_array_equal(drawn[8], error_map(called["Dsfer-Net"][0], tiles[0].label))
    assert texts(figure) == ["(a) $t_1$", "(b) $t_2$", "(c) ground truth", "(d) BiT",
                             "(e) Dsfer-Net"]  # fmt: skip
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0] == "TP, change found" and legend[-1] == "ignored"


def test_difference_has_one_scale_a_stage_over_all_tiles(tiles):
    sides = [32, 16, 8, 4, 2]
    maps = [[np.full((side, side), value, np.float32) for side in sides] for value in (1.0, 3.0)]
    figure = difference_plate(tiles, maps)
    drawn = pictures(figure)[4:14]  # after both dates, before labels and scale
    assert all(each.shape == (SIDE, SIDE, 3) for each in drawn)
    for stage in range(5):
        low, high = drawn[2 * stage][0, 0], drawn[2 * stage + 1][0, 0]
        assert (low != high).any()
        np.testing.assert_array_equal(high, (253, 231, 36))  # the end of the map: 3 is the most
    assert "(g) stage 5" in texts(figure)


def test_retrieval_stands_beside_pair_and_label_of_its_size(tiles):
    first, second = [level(4, 8, 1), level(5, 16, 2)], [level(4, 8, 3), level(5, 16, 4)]
    figure = retrieval_plate(tiles, [first, second])
    drawn = pictures(figure)
    mean = tiles[0].t1[:8, :8].reshape(-1, 3).mean(axis=0).round()
    np.testing.assert_array_equal(drawn[0][:8, :8].reshape(-1, 3), np.tile(mean, (64, 1)))
    label = drawn[4]  # one changed block, a column of ignored blocks
    assert (label[:8, :8] == 255).all() and (label[:, 24:] == 128).all()
    assert (label[8:, :24] == 0).all()
    change = drawn[8]
    shade = level(4, 8, 1).change[1, 2] * 255
    assert abs(float(change[8, 16, 0]) - shade) <= 1
    assert texts(figure)[3] == "(d) $F_R$, stage 4" and texts(figure)[-1] == "(j) $M$, stage 5"


def test_evidence_says_in_words_what_it_draws():
    drawn, levels = tile(1), [level(4, 8, 1), level(5, 16, 2)]
    even = np.full((2, 4, 4), 1 / 16, np.float32)
    sharp = np.zeros((2, 2, 2), np.float32)
    sharp[:, 0, 0] = 1
    probability = np.full((SIDE, SIDE), 0.25, np.float32)
    figure = evidence_plate(drawn, Evidence((9, 20), probability, levels, [even, sharp]))
    fourth, fifth = texts(figure)
    assert f"p(change) = {levels[0].change[1, 2]:.2f}" in fourth
    assert f"E = {levels[0].energy[0, 1, 2]:.1f}" in fourth
    assert f"spread over {np.exp(levels[0].entropy[1, 1, 2]):.0f}" in fourth
    assert fourth.count("6 % on changed ground") == 2  # one of sixteen positions
    assert fifth.count("100 % on changed ground") == 2
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    kinds = ("retrieved from", "energy in", "positions of")
    assert titles[5:11] == [f"{kind} $t_{date}$" for kind in kinds for date in (1, 2)]
    assert sum(isinstance(each, AxesImage) for axes in figure.axes for each in axes.images) == 17


def test_files_are_vectors_with_the_pixels_of_the_tile_and_the_same_each_time(tiles, tmp_path):
    figure = comparison_plate(tiles, {"A": [each.label % 2 for each in tiles]})
    pdf, png = save_figure(figure, tmp_path, "plate")
    first = pdf.read_bytes(), png.read_bytes()
    save_figure(figure, tmp_path, "plate")
    assert first == (pdf.read_bytes(), png.read_bytes())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plate.pdf", "plate.png"]
    assert first[0].count(b"/Width 32") == first[0].count(b"/Height 32") >= 8  # not resampled
    assert b"/Type /Font" in first[0]  # letters are letters
    with Image.open(png) as picture:
        assert picture.size[0] > 900


def test_a_write_that_fails_leaves_the_old_file(tiles, tmp_path, monkeypatch):
    figure = comparison_plate(tiles, {"A": [each.label % 2 for each in tiles]})
    (tmp_path / "plate.pdf").write_bytes(b"old")
    monkeypatch.setattr(zlib, "compressobj", None)  # of the PDF's streams
    with pytest.raises(TypeError):
        save_figure(figure, tmp_path, "plate")
    assert [path.name for path in tmp_path.iterdir()] == ["plate.pdf"]
    assert (tmp_path / "plate.pdf").read_bytes() == b"old"


def test_shapes_that_do_not_belong_together_are_refused(tiles):
    with pytest.raises(DataError, match="2 tiles and 1 rows"):
        difference_plate(tiles, [[np.zeros((4, 4), np.float32)]])
    with pytest.raises(DataError, match=re.escape("(32, 32, 3)") + ".*one and the same tile"):
        Tile("t", tiles[0].t1, tiles[0].t2, tiles[0].label[:16])
