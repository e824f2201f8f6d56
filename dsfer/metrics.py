"""Metrics of the change class, all from confusion counts (paper, section IV-A).

One table of counts is the source of every number: a row per tile (or scene) with the columns of
`COUNTS`; a split's confusion matrix is the sum of its rows.
"""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

COUNTS = ["tp", "fp", "fn", "tn"]
METRICS = ["P", "R", "F1", "OA", "IoU"]

BINS = 256
"""Of the histogram of probabilities; a power of two, so that its bounds are exact in float32."""

Counts = npt.NDArray[np.float64]


def confusion_counts(predicted: Tensor, labels: Tensor) -> Tensor:
    """Confusion counts of each image of a batch, without leaving the device.

    Args:
        predicted: (b, h, w) bool or integer, 1 changed.
        labels: (b, h, w) uint8, 0 unchanged, 1 changed, 255 ignored.

    Returns:
        (b, 4) int64: tp, fp, fn, tn.
    """
    changed, unchanged = labels == 1, labels == 0
    said = predicted.bool()
    outcomes = (said & changed, said & unchanged, ~said & changed, ~said & unchanged)
    return torch.stack([outcome.sum(dim=(1, 2)) for outcome in outcomes], dim=1)


def counts_table(ids: Sequence[str], scenes: Sequence[str], counts: Tensor) -> pd.DataFrame:
    """The table of counts: `id`, `scene` and `COUNTS`, one row per tile."""
    table = pd.DataFrame(counts.cpu().numpy(), columns=COUNTS)
    table.insert(0, "scene", list(scenes))
    table.insert(0, "id", list(ids))
    return table


def change_metrics(counts: Mapping[str, float] | pd.DataFrame) -> dict[str, float]:
    """P, R, F1, OA and IoU of the change class in percent, from one confusion matrix.

    Where nothing is changed and nothing predicted, P, R, F1 and IoU have no value: they are NaN,
    never 0 or 100.

    Args:
        counts: totals of tp, fp, fn, tn, or a table of them, whose rows are added up.
    """
    total = counts[COUNTS].sum() if isinstance(counts, pd.DataFrame) else counts
    values = metric_columns(pd.DataFrame({name: [float(total[name])] for name in COUNTS}))
    return {name: float(values[name].iloc[0]) for name in METRICS}


def metric_columns(table: pd.DataFrame) -> pd.DataFrame:
    """The metrics of every row of a table of counts, in percent, NaN where undefined."""
    tp, fp, fn, tn = (table[name].astype(float) for name in COUNTS)
    return pd.DataFrame(
        {
            "P": 100 * tp / (tp + fp),
            "R": 100 * tp / (tp + fn),
            "F1": 100 * 2 * tp / (2 * tp + fp + fn),
            "OA": 100 * (tp + tn) / (tp + fp + fn + tn),
            "IoU": 100 * tp / (tp + fp + fn),
        }
    )


def scene_table(tiles: pd.DataFrame) -> pd.DataFrame:
    """Add up the counts of each scene's tiles: `scene`, `tiles`, `COUNTS` and `METRICS`."""
    sums = tiles.groupby("scene", sort=True)[COUNTS].sum().reset_index()
    sums.insert(1, "tiles", tiles.groupby("scene", sort=True).size().to_numpy())
    return pd.concat([sums, metric_columns(sums)], axis=1)


def f1_interval(scenes: pd.DataFrame, *, seed: int, resamples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the split's F1, scenes drawn with replacement.

    Tiles of one scene resemble each other, so scenes are the independent units.

    Args:
        scenes: table of counts, a row per scene.
        seed: of the resampling.
        resamples: number of bootstrap samples.

    Returns:
        Lower and upper bound in percent; resamples without change have no F1 and are left out.
        Both NaN where fewer than two scenes leave nothing to resample.
    """
    if len(scenes) < 2:
        return float("nan"), float("nan")
    columns = tuple(scenes[name].to_numpy(dtype=float) for name in ("tp", "fp", "fn"))

    from scipy.stats import DegenerateDataWarning, bootstrap  # slow to import; training needs none

    def f1(tp: Counts, fp: Counts, fn: Counts, axis: int = -1) -> Counts:
        hits = 2 * tp.sum(axis)
        with np.errstate(invalid="ignore"):  # a resample without change has no F1
            scores: Counts = 100 * hits / (hits + fp.sum(axis) + fn.sum(axis))
        return scores

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # NaN resamples are left out below
        resampled = bootstrap(
            columns,
            f1,
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    if np.isnan(resampled).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(resampled, (2.5, 97.5))
    return float(low), float(high)


def predicted_change(logits: Tensor) -> Tensor:
    """Change map (b, h, w) bool of logits (b, 2, h, w): their argmax."""
    return logits[:, 1] > logits[:, 0]


def probability_histogram(logits: Tensor, labels: Tensor) -> Tensor:
    """Histograms of change probability, of unchanged and changed pixels, made on the device.

    Args:
        logits: (b, 2, h, w) of any float type.
        labels: (b, h, w) uint8, 0 unchanged, 1 changed, 255 ignored.

    Returns:
        (2, BINS) int64: bin i counts probabilities in (i / BINS, (i + 1) / BINS], the first 0, too.
    """
    probability = logits.float().softmax(dim=1)[:, 1]
    bins = (torch.ceil(probability * BINS).long() - 1).clamp(0, BINS - 1)
    counted = (labels <= 1).long()
    place = (bins + BINS * labels.long() * counted).flatten()
    histogram = torch.zeros(2 * BINS, dtype=torch.int64, device=logits.device)
    return histogram.scatter_add_(0, place, counted.flatten()).view(2, BINS)


def best_threshold(histogram: npt.NDArray[np.int64]) -> tuple[float, float]:
    """The probability above which F1 of the change class is highest.

    Args:
        histogram: (2, BINS), see `probability_histogram`.

    Returns:
        A multiple of 1 / BINS inside (0, 1), and F1 there in percent; where several are as good,
        the one nearest to 0.5. NaN for F1 where nothing has changed.
    """
    # said[label, i - 1]: pixels with a probability above i / BINS.
    said = histogram[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:].astype(float)
    changed = histogram[1].sum()
    with np.errstate(invalid="ignore"):
        f1 = 100 * 2 * said[1] / (said.sum(axis=0) + changed)  # 2 tp + fp + fn = said + changed
    thresholds = np.arange(1, BINS) / BINS
    if not changed:
        return 0.5, float("nan")
    order = np.lexsort((np.abs(thresholds - 0.5), -f1))
    return float(thresholds[order[0]]), float(f1[order[0]])


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Values for JSON, which has no NaN: what has no value is null."""
    return {key: value if np.isfinite(value) else None for key, value in values.items()}


def total_counts(counts: Tensor) -> dict[str, float]:
    """Sum (n, 4) counts over n, as floats by name; the one place where the device is read."""
    return dict(zip(COUNTS, torch.sum(counts, dim=0).tolist(), strict=True))
