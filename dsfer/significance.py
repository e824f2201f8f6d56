"""Which differences of F1 between methods are real: a paired exchange test over scenes.

Where those are too few to show anything, square blocks of tiles take their place.
"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd

from dsfer.errors import DataError

Floats = npt.NDArray[np.float64]

TIE = 1e-9
"""Differences of F1, in points of percent, that rounding alone tells apart."""

FEW = 6
"""Of fewer scenes blocks are compared: with five, no p is below 2 / 2^5 = 0.0625."""

BLOCK = 8
"""Side of a block in tiles."""


def by_block(tiles: pd.DataFrame, side: int) -> pd.DataFrame:
    """Make a scene of each square block of a scene, for `compare_f1`.

    Neighbouring blocks show ground of one kind, in one light: they are less independent than
    scenes, so intervals become too narrow and p too small.

    Args:
        tiles: a row per tile with `scene` and `id`, which ends in row and column of its first
            pixel in the scene, as the manifest's does.
        side: of a block in pixels; a tile belongs to the block that its first pixel lies in.

    Returns:
        The same rows, `scene` with row and column of the block behind it.
    """
    place = (tiles["id"].str.extract(r"_(\d+)_(\d+)$").astype(int) // side).astype(str)
    return tiles.assign(scene=tiles["scene"] + "_" + place[0] + "_" + place[1])


def compare_f1(
    methods: Mapping[str, pd.DataFrame], *, seed: int, resamples: int = 10_000
) -> pd.DataFrame:
    """Compare F1 of the change class for every pair of methods that scored the same scenes.

    The test exchanges the counts of the two methods at random within each scene, as may be done
    where the methods do not differ: p is the share of exchanges, the observed one among them, whose
    difference is at least as large. It holds for any number of scenes; with few, n, no p is below
    2 / 2^n. The interval is a bootstrap: scenes are drawn with replacement, the same ones for both
    methods. What makes a scene hard makes it hard for both, and cancels in the difference.

    F1 is that of counts added up over scenes, and over the seeds that the tables hold: the
    difference need not equal that of the means of F1 over seeds. The scenes are what varies; that
    networks trained again would score otherwise is no part of it.

    Args:
        methods: for each method a table of counts with `scene`, `tp`, `fp`, `fn`; rows of one scene
            are added up.
        seed: of exchanges and resamples.
        resamples: how many there are of each; all 2^n exchanges where those are no more. Where one
            leaves a method without F1 (nothing changed, nothing predicted), its pairs do without.

    Returns:
        A row per pair, in the order of `methods`: `first`, `second`; `difference`, F1 of the first
        less that of the second, in points of percent; `low`, `high`, its 95 % interval; `p`, that
        of no difference, two-sided; `p_holm`, corrected for the number of pairs (Holm 1979). But
        for the difference, all are NaN where there is a single scene, or a method has no F1.

    Raises:
        DataError: methods did not score the same scenes.
    """
    counts = _by_scene(methods)
    scenes = counts.shape[0]
    totals = counts.sum(axis=0)
    observed = _f1(totals)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(scenes, np.full(scenes, 1 / scenes), resamples)
    resampled = _f1(np.tensordot(draws.astype(float), counts, axes=1))
    moved = np.tensordot(_exchanges(scenes, rng, resamples), counts, axes=1)
    names = list(methods)
    rows = []
    for a, b in combinations(range(len(names)), 2):
        tested = np.nan, np.nan, np.nan
        if scenes > 1 and not np.isnan(observed[[a, b]]).any():
            p = _exchange_p(totals[a], totals[b], moved[:, b] - moved[:, a])
            tested = *np.nanpercentile(resampled[:, a] - resampled[:, b], (2.5, 97.5)), p
        rows.append((names[a], names[b], observed[a] - observed[b], *tested))
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


def _exchanges(scenes: int, rng: np.random.Generator, most: int) -> Floats:
    """Which scenes exchange their counts (n, scenes), 0 or 1: all ways, or so many at random.

    The first exchanges none, which is what was observed.
    """
    if 2**scenes <= most:
        return (np.arange(2**scenes)[:, None] >> np.arange(scenes) & 1).astype(float)
    exchanged = rng.integers(2, size=(most, scenes)).astype(float)
    exchanged[0] = 0
    return exchanged


def _exchange_p(a: Floats, b: Floats, moved: Floats) -> float:
    """Share of exchanges that move counts (n, 3) from b to a (3,) and differ as the first does."""
    differences = np.abs(_f1(a + moved) - _f1(b - moved))
    valid = differences[~np.isnan(differences)]
    return float(np.mean(valid >= differences[0] - TIE))


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
