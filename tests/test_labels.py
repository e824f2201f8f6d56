import numpy as np
import pytest

from dsfer.data.labels import LABEL_RULES, decode_label, label_values
from dsfer.errors import ConfigError, LabelError


@pytest.mark.parametrize(
    ("rule", "raw", "expected"),
    [
        ("binary255", [0, 255], [0, 1]),
        ("binary01", [0, 1], [0, 1]),
        # JPEG ringing around both ends, as in CDD's labels
        ("threshold128", [0, 3, 127, 128, 249, 255], [0, 0, 0, 1, 1, 1]),
        ("only255", [0, 3, 127, 128, 254, 255], [0, 0, 0, 0, 0, 1]),
    ],
)
def test_each_rule_reads_its_own_values(rule, raw, expected):
    decoded = decode_label(np.array([raw], np.uint8), rule, "label.png")
    assert decoded.dtype == np.uint8
    assert decoded.tolist() == [expected]


def test_a_label_of_zeros_fits_every_rule():
    zeros = np.zeros((2, 2), np.uint8)
    assert all(not decode_label(zeros, rule, "x").any() for rule in LABEL_RULES)


@pytest.mark.parametrize(
    ("rule", "raw", "wrong", "fitting"),
    [
        ("binary255", [0, 1], "values 1,", "binary01"),
        ("binary01", [0, 255], "values 255,", "binary255"),
        ("binary255", [0, 7, 255], "values 7,", "threshold128"),
    ],
)
def test_wrong_values_name_file_values_and_the_rule_that_fits(rule, raw, wrong, fitting):
    with pytest.raises(LabelError) as caught:
        decode_label(np.array(raw, np.uint8), rule, "scene/label.png")
    assert "scene/label.png" in str(caught.value)
    assert wrong in str(caught.value)
    assert f"label_rule: {fitting}" in str(caught.value)


def test_samples_of_more_than_8_bit_are_refused():
    with pytest.raises(LabelError, match="uint16"):
        decode_label(np.zeros((1, 1), np.uint16), "binary01", "x")


def test_unknown_rule():
    with pytest.raises(ConfigError, match="binary256"):
        decode_label(np.zeros((1, 1), np.uint8), "binary256", "x")


def test_label_values_are_ascending():
    assert label_values(np.array([[9, 0], [255, 9]], np.uint8)) == [0, 9, 255]
