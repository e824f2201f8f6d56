import base64

import numpy as np
import pandas as pd
import pytest

from dsfer.errors import DataError
from dsfer.figures import data_uri, error_map, panel_strip, svg, training_curves

WHITE, CYAN, BLACK, RED, GREY = (
    (255, 255, 255),
    (0, 255, 255),
    (0, 0, 0),
    (255, 0, 0),
    (128, 128, 128),
)
# (prediction, label) -> colour, as the captions of Figs. 6 to 8 say.
EXPECTED = {
    (1, 1): WHITE,
    (1, 0): CYAN,
    (0, 0): BLACK,
    (0, 1): RED,
    (0, 255): GREY,
    (1, 255): GREY,
}


def random_tile(rng, shape=(19, 23)):
    prediction = rng.integers(0, 2, shape).astype(np.uint8)
    label = rng.choice(np.array([0, 1, 255], np.uint8), shape)
    return prediction, label


def test_error_map_equals_brute_force():
    prediction, label = random_tile(np.random.default_rng(1))
    drawn = error_map(prediction, label)
    assert drawn.dtype == np.uint8 and drawn.shape == (19, 23, 3)
    for row, col in np.ndindex(label.shape):
        outcome = (int(prediction[row, col]), int(label[row, col]))
        assert tuple(drawn[row, col]) == EXPECTED[outcome]


def test_error_map_refuses_two_shapes():
    with pytest.raises(DataError, match=r"\(4, 4\).*\(4, 5\)"):
        error_map(np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8))


def test_panel_strip_holds_the_five_panels_in_order():
    rng = np.random.default_rng(2)
    prediction, label = random_tile(rng)
    t1, t2 = rng.integers(0, 256, (2, 19, 23, 3)).astype(np.uint8)
    strip = np.asarray(panel_strip(t1, t2, label, prediction))
    assert strip.shape == (19, 5 * 23 + 4 * 4, 3)
    panels = [strip[:, start : start + 23] for start in range(0, strip.shape[1], 27)]
    np.testing.assert_array_equal(panels[0], t1)
    np.testing.assert_array_equal(panels[1], t2)
    grey = np.where(label == 255, 128, label * np.uint8(255))
    np.testing.assert_array_equal(panels[2], np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(panels[3], np.stack([prediction * 255] * 3, axis=-1))
    np.testing.assert_array_equal(panels[4], error_map(prediction, label))


def test_panel_strip_refuses_shapes_that_do_not_belong_together():
    tile, label = np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4), np.uint8)
    with pytest.raises(DataError, match="one and the same tile"):
        panel_strip(tile, tile, label, label)


def history():
    return pd.DataFrame(
        {
            "step": [10, 20, 30, 40],
            "train/loss": [2.0, 1.5, 1.2, 1.1],
            "train/change": [1.9, 1.4, 1.1, 1.0],
            "val/F1": [np.nan, 61.5, np.nan, 60.25],
            "val/P": [np.nan, 70.0, np.nan, 55.0],
            "val/R": [np.nan, 55.0, np.nan, 66.0],
        }
    )


def test_training_curves_draw_what_was_measured_and_mark_the_best():
    losses, scores = training_curves(history()).axes
    drawn = {line.get_label(): line.get_xydata() for line in (*losses.lines, *scores.lines)}
    np.testing.assert_array_equal(drawn["F1"], [[20, 61.5], [40, 60.25]])
    np.testing.assert_array_equal(drawn["training, total"][:, 1], [2.0, 1.5, 1.2, 1.1])
    assert "training, deep maps" not in drawn
    np.testing.assert_array_equal(drawn["best F1: 61.50 at iteration 20"], [[20, 61.5]])


def test_training_curves_of_a_run_without_validation():
    early = history().drop(columns=["val/F1", "val/P", "val/R"])
    assert len(training_curves(early).axes) == 2
    with pytest.raises(DataError, match="step"):
        training_curves(early.drop(columns="step"))


def test_svg_is_the_same_each_time_and_embeds():
    first, second = svg(training_curves(history())), svg(training_curves(history()))
    assert first == second
    uri = data_uri(first, "image/svg+xml")
    head, _, body = uri.partition(",")
    assert head == "data:image/svg+xml;base64" and base64.b64decode(body) == first
