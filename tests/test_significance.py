import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfer.errors import DataError
from dsfer.metrics import change_metrics
from dsfer.significance import compare_f1, holm

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


def test_two_scenes_by_brute_force():
    """Of two scenes there are four resamples, as likely each: their differences are known."""
    a, b = table([(90, 10, 10), (50, 30, 20)]), table([(80, 20, 30), (60, 10, 20)])
    (found,) = compare_f1({"a": a, "b": b}, seed=3, resamples=20_000).to_dict("records")

    def difference(*drawn):
        f1 = [change_metrics(method.iloc[list(drawn)])["F1"] for method in (a, b)]
        return f1[0] - f1[1]

    exact = {drawn: difference(*drawn) for drawn in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert found["difference"] == pytest.approx(exact[0, 1])
    assert found["low"] == pytest.approx(min(exact.values()))
    assert found["high"] == pytest.approx(max(exact.values()))
    below, above = (np.mean([sign * value <= 0 for value in exact.values()]) for sign in (1, -1))
    assert found["p"] == pytest.approx(min(1, 2 * min(below, above)), abs=0.02)


def test_a_resample_is_the_same_scenes_of_both_methods():
    """Every scene favours a by as much, however hard it is: no resample can say otherwise."""
    hard = np.linspace(1, 30, 20).astype(int)
    a = table([(100, n, n) for n in hard])
    b = table([(100, 2 * n, 2 * n) for n in hard])
    (found,) = compare_f1({"a": a, "b": b}, seed=0).to_dict("records")
    assert found["low"] > 0
    assert found["p"] == pytest.approx(2 / 10_001)


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
