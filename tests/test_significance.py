from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfer.errors import DataError
from dsfer.metrics import COUNTS, change_metrics, scene_table
from dsfer.significance import by_block, compare_f1, holm

COUNT = st.integers(0, 1000)


def table(rows):
    counts = pd.DataFrame(rows, columns=["tp", "fp", "fn"])
    return counts.assign(scene=[f"{i:04d}" for i in range(len(counts))], tn=5)


def tables(methods):
    """Counts of so many methods over the same scenes, with change in each."""
    row = st.tuples(st.integers(1, 1000), COUNT, COUNT)
    return st.integers(2, 6).flatmap(
        lambda n: st.tuples(*[st.lists(row, min_size=n, max_size=n).map(table)] * methods)
    )


def compared(*methods, **options):
    names = [f"m{i}" for i in range(len(methods))]
    found = compare_f1(dict(zip(names, methods, strict=True)), seed=0, resamples=400, **options)
    return found.to_dict("records")


def difference(a, b):
    """Of F1 in points of percent, by the library's own metrics."""
    return change_metrics(a)["F1"] - change_metrics(b)["F1"]


def test_the_interval_of_two_scenes_by_brute_force():
    """Of two scenes there are four resamples, as likely each: their differences are known."""
    a, b = table([(90, 10, 10), (50, 30, 20)]), table([(80, 20, 30), (60, 10, 20)])
    (found,) = compare_f1({"a": a, "b": b}, seed=3).to_dict("records")
    exact = [difference(a.iloc[list(d)], b.iloc[list(d)]) for d in product((0, 1), repeat=2)]
    assert found["difference"] == pytest.approx(difference(a, b))
    assert found["low"] == pytest.approx(min(exact))
    assert found["high"] == pytest.approx(max(exact))


@settings(max_examples=10, deadline=None)
@given(tables(2))
def test_p_is_the_share_of_all_exchanges_by_brute_force(made):
    a, b = made
    sizes = []
    for exchanged in product((False, True), repeat=len(a)):
        moved = np.array(exchanged)
        mixed = (pd.concat([x[~moved], y[moved]]) for x, y in ((a, b), (b, a)))
        sizes.append(abs(difference(*mixed)))
    expected = np.mean(np.array(sizes) >= sizes[0] - 1e-9)
    (found,) = compared(a, b)
    assert found["p"] == pytest.approx(expected)
    assert found["p"] >= 2 / 2 ** len(a)


def test_exchanges_at_random_come_near_to_all_of_them():
    rng = np.random.default_rng(5)
    a, b = (table(rng.integers(1, 400, size=(12, 3))) for _ in range(2))
    p = [
        compare_f1({"a": a, "b": b}, seed=0, resamples=resamples)["p"].item()
        for resamples in (2**12, 2**12 - 1)
    ]
    assert p[0] != p[1] and p[0] == pytest.approx(p[1], abs=0.03)


def test_four_scenes_of_one_sign_show_nothing():
    a, b = table([(100, 5, 5)] * 4), table([(60, 45, 45)] * 4)
    (found,) = compared(a, b)
    assert found["low"] > 0 and found["p"] == 2 / 16


@pytest.mark.parametrize(("scenes", "levels"), [(4, (0.05, 0.25)), (8, (0.05,))])
def test_methods_that_do_not_differ_are_rarely_told_apart(scenes, levels):
    """Both draw their counts from one distribution, the harder a scene the more errors."""
    rng = np.random.default_rng(1)

    def p_value():
        hard = rng.lognormal(4, 1.5, size=(scenes, 1))
        drawn = [table(1 + rng.poisson(hard * rng.gamma(1, size=(scenes, 3)))) for _ in range(2)]
        return compared(*drawn)[0]["p"]

    p = np.array([p_value() for _ in range(300)])
    for level in levels:
        assert np.mean(p <= level) <= level * 1.2


def test_every_scene_better_however_hard_is_real():
    """Exchanges and resamples keep scenes together: what is hard for both cancels."""
    hard = np.linspace(1, 30, 20).astype(int)
    a = table([(100, n, n) for n in hard])
    b = table([(100, 2 * n, 2 * n) for n in hard])
    (found,) = compare_f1({"a": a, "b": b}, seed=0).to_dict("records")
    assert found["low"] > 0
    assert found["p"] == 1 / 10_000


@settings(max_examples=25, deadline=None)
@given(tables(1))
def test_a_method_does_not_differ_from_itself(made):
    (found,) = compared(made[0], made[0])
    assert (found["difference"], found["low"], found["high"]) == (0, 0, 0)
    assert found["p"] == found["p_holm"] == 1


@settings(max_examples=25, deadline=None)
@given(tables(2))
def test_the_order_of_a_pair_only_turns_the_sign(made):
    a, b = made
    (there,), (back,) = compared(a, b), compared(b, a)
    assert back["difference"] == -there["difference"]
    assert back["low"] == pytest.approx(-there["high"], abs=1e-9)
    assert back["p"] == there["p"]
    assert there["low"] <= there["high"] and 0 < there["p"] <= 1


@settings(max_examples=25, deadline=None)
@given(tables(2), st.integers(2, 5))
def test_seeds_that_agree_say_the_same_as_one(made, seeds):
    once, pooled = compared(*made), compared(*(pd.concat([t] * seeds) for t in made))
    for one, many in zip(once, pooled, strict=True):
        assert many == pytest.approx(one | {"first": "m0", "second": "m1"})


def test_scenes_without_change_and_single_scenes_leave_no_value():
    nothing = table([(0, 0, 0), (0, 0, 0)])
    (found,) = compared(nothing, table([(1, 0, 0), (1, 1, 0)]))
    assert np.isnan([found["difference"], found["low"], found["p"], found["p_holm"]]).all()
    (found,) = compared(table([(1, 0, 1)]), table([(1, 1, 1)]))
    assert found["difference"] > 0 and np.isnan(found["p"])


def test_other_scenes_are_named():
    a, b = table([(1, 0, 0), (1, 0, 0)]), table([(1, 0, 0)])
    with pytest.raises(DataError, match=r"b and a did not .* only one has '0001'"):
        compare_f1({"a": a, "b": b}, seed=0)


def test_holm_by_hand():
    """The example of Holm's own procedure: 0.01 x 4, 0.03 x 2 after 0.02 x 3, ..."""
    found = holm(np.array([0.02, 0.04, np.nan, 0.01, 0.03]))
    np.testing.assert_allclose(found, [0.06, 0.06, np.nan, 0.04, 0.06])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(values):
    p = np.array(values)
    corrected = holm(p)
    assert (corrected >= p).all() and (corrected <= np.minimum(1, len(p) * p)).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["a", "a_0", "0012"]), st.integers(0, 40), st.integers(0, 40)),
        st.tuples(COUNT, COUNT, COUNT, COUNT),
        min_size=1,
    ),
    st.integers(1, 20),
)
def test_blocks_hold_all_counts_once_and_tiles_of_one_square(made, tiles_a_side):
    size = 256
    side = tiles_a_side * size
    tiles = pd.DataFrame(list(made.values()), columns=COUNTS).assign(
        scene=[scene for scene, _, _ in made],
        id=[f"{scene}_{row * size:05d}_{col * size:05d}" for scene, row, col in made],
        row=[row * size for _, row, _ in made],
        col=[col * size for _, _, col in made],
    )
    blocks = by_block(tiles, side)
    assert scene_table(blocks)[COUNTS].sum().to_dict() == tiles[COUNTS].sum().to_dict()
    expected = [(scene, row * size // side, col * size // side) for scene, row, col in made]
    assert blocks["scene"].tolist() == [f"{scene}_{row}_{col}" for scene, row, col in expected]
    assert blocks["scene"].nunique() == len(set(expected))
    assert blocks.drop(columns="scene").equals(tiles.drop(columns="scene"))
