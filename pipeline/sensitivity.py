"""Table V as a plot: F1 over the weight of deep supervision, ours and the paper's."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsfer.figures import svg
from dsfer.files import atomic_path, write_bytes

# Of Okabe and Ito's palette; markers and line styles repeat what colours say.
_OURS: dict[str, Any] = {"color": "#0072B2", "marker": "o"}
_PAPER: dict[str, Any] = {"color": "#D55E00", "marker": "s", "linestyle": "--"}


def write_plot(folder: Path, stem: str, records: pd.DataFrame) -> None:
    """Draw `sensitivity_figure` as .svg, .pdf and .png."""
    figure = sensitivity_figure(records)
    write_bytes(folder / f"{stem}.svg", svg(figure))
    for suffix, metadata in {".pdf": {"CreationDate": None}, ".png": {}}.items():
        with atomic_path(folder / f"{stem}{suffix}") as temporary:
            figure.savefig(temporary, dpi=150, metadata=metadata)


def sensitivity_figure(records: pd.DataFrame) -> Figure:
    """Draw F1 in percent over lambda, a panel a data set, with one sd over seeds as error bars.

    Args:
        records: of Table V, see `pipeline.sheets.record`. The paper's curve is drawn where its
            figures are comparable.
    """
    shown = records[records["measure"] == "F1"].assign(**{"lambda": records["key"].astype(float)})
    names = list(dict.fromkeys(shown["dataset"]))
    figure = Figure(figsize=(5 * len(names), 3.6), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        _draw(axes, shown[shown["dataset"] == name].sort_values("lambda"))
        axes.set(xscale="log", xlabel="λ", ylabel="F1 of the change class, %", title=name)
        axes.set_xticks(shown["lambda"].unique())
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    return figure


def _draw(axes: Axes, lines: pd.DataFrame) -> None:
    mean, spread = lines["mean"].astype(float), lines["sd"].astype(float).fillna(0)
    label = "ours" if mean.notna().any() else "ours: not measured"
    axes.errorbar(lines["lambda"], mean, yerr=spread, capsize=3, label=label, **_OURS)
    if not lines["beside"].any():
        axes.plot(lines["lambda"], lines["paper"], label="paper, Table V", **_PAPER)
