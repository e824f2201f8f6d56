"""Pictures of results: error maps, side-by-side panels, training curves.

Shapes: h, w are rows and columns of one tile or scene.
"""

import base64
import io
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from dsfer.data.manifest import IGNORE
from dsfer.data.tars import Pixels
from dsfer.errors import DataError

ERROR_COLOURS = {
    "TP": (255, 255, 255),
    "FP": (0, 255, 255),
    "TN": (0, 0, 0),
    "FN": (255, 0, 0),
    "ignored": (128, 128, 128),
}
"""RGB of each outcome: white, cyan, black and red as in the paper's Figs. 6 to 8; grey is ours."""

_GAP, _GAP_COLOUR = 4, 208  # pixels; a light grey that none of the panels uses

# Okabe and Ito's palette: told apart with every common colour vision. Line style and marker repeat
# what the colour says, for print in grey.
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    {"color": "#CC79A7", "linestyle": ":", "marker": "D"},
)
_LOSSES = {
    "train/loss": "training, total",
    "train/change": "training, change map",
    "train/deep": "training, deep maps",
    "val/loss": "validation, total",
}
_SCORES = {"val/F1": "F1", "val/P": "precision", "val/R": "recall"}


def error_map(prediction: Pixels, label: Pixels) -> Pixels:
    """Colour every pixel by its outcome (`ERROR_COLOURS`).

    Args:
        prediction: (h, w) uint8, 1 where the network says changed, else 0.
        label: (h, w) uint8, 1 changed, 0 unchanged, 255 ignored.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        DataError: the two differ in shape.
    """
    if prediction.shape != label.shape:
        raise DataError(
            f"the prediction is {prediction.shape} and the label {label.shape}",
            mend="pass maps of one and the same tile",
        )
    changed, predicted = label == 1, prediction == 1
    outcome = np.empty((*label.shape, 3), np.uint8)
    outcome[changed & predicted] = ERROR_COLOURS["TP"]
    outcome[~changed & predicted] = ERROR_COLOURS["FP"]
    outcome[~changed & ~predicted] = ERROR_COLOURS["TN"]
    outcome[changed & ~predicted] = ERROR_COLOURS["FN"]
    outcome[label == IGNORE] = ERROR_COLOURS["ignored"]
    return outcome


def mask_picture(mask: Pixels) -> Pixels:
    """(h, w) uint8 of 0, 1, 255 -> (h, w, 3): unchanged black, changed white, ignored grey."""
    return error_map(mask, mask)


def panel_strip(t1: Pixels, t2: Pixels, label: Pixels, prediction: Pixels) -> Image.Image:
    """Five panels side by side: date 1, date 2, label, prediction, errors.

    Args:
        t1: (h, w, 3) uint8 RGB.
        t2: the same ground at date 2.
        label: (h, w) uint8, 1 changed, 0 unchanged, 255 ignored.
        prediction: (h, w) uint8, 1 changed, 0 unchanged.

    Returns:
        RGB image of h rows and 5 w + 16 columns.

    Raises:
        DataError: the shapes do not belong together.
    """
    if t1.shape != (*label.shape, 3) or t2.shape != t1.shape:
        raise DataError(
            f"the dates are {t1.shape} and {t2.shape} and the label {label.shape}",
            mend="pass two (h, w, 3) images and an (h, w) label of one and the same tile",
        )
    gap = np.full((label.shape[0], _GAP, 3), _GAP_COLOUR, np.uint8)
    errors = error_map(prediction, label)
    panels = [t1, t2, mask_picture(label), mask_picture(prediction), errors]
    parts = [part for panel in panels for part in (panel, gap)][:-1]
    return Image.fromarray(np.concatenate(parts, axis=1))


def training_curves(history: pd.DataFrame) -> Figure:
    """Draw loss terms and validation scores over iterations.

    Args:
        history: a row per logged iteration, column `step`; of the columns `train/loss`,
            `train/change`, `train/deep`, `val/loss` and `val/F1`, `val/P`, `val/R` (percent) those
            that are there. NaN where nothing was measured.

    Returns:
        Two panels; the iteration with the best validation F1 is marked.

    Raises:
        DataError: there is no `step`.
    """
    if "step" not in history:
        raise DataError("the training history has no column 'step'", mend="train again")
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    _draw(losses, history, _LOSSES)
    losses.set(title="Loss terms", ylabel="loss", ylim=(0, None))
    _draw(scores, history, _SCORES)
    scores.set(title="Validation, change class", ylabel="percent")
    _mark_best(scores, history)
    for axes in (losses, scores):
        axes.set_xlabel("iteration")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9)
    return figure


def _draw(axes: Axes, history: pd.DataFrame, names: dict[str, str]) -> None:
    for (column, name), style in zip(names.items(), _STYLES, strict=False):
        if column not in history:
            continue
        measured = history[["step", column]].dropna()
        # Markers only where they do not melt into a band.
        every = max(1, len(measured) // 12)
        if len(measured):
            axes.plot(
                *measured.to_numpy().T,
                **style,
                label=name,
                linewidth=1.3,
                markersize=4,
                markevery=every,
            )


def _mark_best(axes: Axes, history: pd.DataFrame) -> None:
    if "val/F1" not in history or history["val/F1"].isna().all():
        return
    row = history.iloc[int(history["val/F1"].argmax())]
    step, best = row["step"], row["val/F1"]
    axes.axvline(step, color="#888888", linewidth=0.8, zorder=0)
    axes.plot(
        *(step, best),
        marker="*",
        markersize=14,
        color="#F0E442",
        markeredgecolor="black",
        linestyle="none",
        label=f"best F1: {best:.2f} at iteration {step:,.0f}",
    )


def svg(figure: Figure) -> bytes:
    """Draw a figure as SVG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "dsfer"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """Wrap a picture as a `data:` address, so that a page can hold it.

    Args:
        content: the whole file.
        kind: its media type, `image/png` or `image/svg+xml`.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
