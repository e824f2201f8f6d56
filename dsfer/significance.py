"""Which differences of F1 between methods are real: a paired bootstrap over scenes."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd

from dsfer.errors import DataError

Floats = npt.NDArray[np.float64]


def compare_f1(
    methods: Mapping[str, pd.DataFrame], *, seed: int, resamples: int = 10_000
) -> pd.DataFrame:
    """Compare F1 of the change class for every pair of methods that scored the same scenes.

    Scenes are drawn with replacement, the same ones for all methods: what makes a scene hard makes
    it hard for all, and cancels in the difference. What is resampled is the imagery. That networks
    trained again would score otherwise is no part of it; counts of several seeds, added up by
    scene, make the comparison one of their means.

    Args:
        methods: for each method a table of counts with `scene`, `tp`, `fp`, `fn`; rows of one scene
            are added up.
        seed: of the resampling.
        resamples: how many there are; those in which a method has no F1 (nothing changed, nothing
            predicted) are left out for its pairs.

    Returns:
        A row per pair, in the order of `methods`: `first`, `second`; `difference`, F1 of the first
        less that of the second, in points of percent; `low`, `high`, its 95 % interval; `p`, that
        of no difference, two-sided; `p_holm`, corrected for the number of pairs (Holm 1979).
        All NaN where a single scene leaves nothing to resample.

    Raises:
        DataError: methods did not score the same scenes.
    """
    counts = _by_scene(methods)
    scenes = counts.shape[0]
    observed = _f1(counts.sum(axis=0))
    draws = np.random.default_rng(seed).multinomial(scenes, np.full(scenes, 1 / scenes), resamples)
    resampled = _f1(np.tensordot(draws.astype(float), counts, axes=1))
    names = list(methods)
    rows = []
    for a, b in combinations(range(len(names)), 2):
        low, high, p = _interval(resampled[:, a] - resampled[:, b], scenes)
        rows.append((names[a], names[b], observed[a] - observed[b], low, high, p))
    table = pd.DataFrame(rows, columns=["first", "second", "difference", "low", "high", "p"])
    return table.assign(p_holm=holm(table["p"].to_numpy(float)))


def _by_scene(methods: Mapping[str, pd.DataFrame]) -> Floats:
    """Counts (scenes, methods, 3): tp, fp, fn."""
    sums = {
        name: table.groupby("scene", sort=True)[["tp", "fp", "fn"]].sum()
        for name, table in methods.items()
    }
    first, *others = sums
    for name in others:
        if not sums[name].index.equals(sums[first].index):
            alone = sums[first].index.symmetric_difference(sums[name].index)
            raise DataError(
                f"{name} and {first} did not score the same scenes: only one has '{alone[0]}'",
                mend="evaluate both on the same split",
            )
    return np.stack([table.to_numpy(float) for table in sums.values()], axis=1)


def _f1(counts: Floats) -> Floats:
    """F1 in percent of counts (..., 3); NaN where all are 0."""
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore"):
        scores: Floats = 100 * 2 * tp / (2 * tp + fp + fn)
    return scores


def _interval(differences: Floats, scenes: int) -> tuple[float, float, float]:
    """Bounds of 95 %, and p: twice the share on the smaller side of 0, never quite 0."""
    valid = differences[~np.isnan(differences)]
    if scenes < 2 or not valid.size:
        return float("nan"), float("nan"), float("nan")
    low, high = np.percentile(valid, (2.5, 97.5))
    tail = min((valid <= 0).sum(), (valid >= 0).sum())
    return float(low), float(high), min(1.0, 2 * (1 + float(tail)) / (1 + valid.size))


def holm(p: Floats) -> Floats:
    """Holm's step-down correction: p-values that may be held against one level all at once.

    Args:
        p: (n,) p-values; NaN are left as they are and do not count.

    Returns:
        (n,) corrected values, each in [p, 1], in the same order.
    """
    corrected = np.full(len(p), np.nan)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN are sorted last
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return corrected
