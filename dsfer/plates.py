"""Plates of the paper and one beyond it: pictures of many tiles in one figure, ready for print.

Figs. 2, 6 to 8 and 9 to 11 of the paper, and why a change was called at one pixel. Each plate is a
matplotlib figure for a two-column page: letters, lines and scales stay vectors in PDF and SVG, and
pixels the tile's own. Shapes: h, w are rows and columns of one tile.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from dsfer.data.tars import Pixels
from dsfer.errors import DataError
from dsfer.features import Map, RetrievedLevel
from dsfer.figures import ERROR_COLOURS, error_map, mask_picture
from dsfer.files import write_bytes
from dsfer.losses import reduce_labels

WIDTH = 7.16  # inches, a two-column page of the IEEE journals
DPI = 220  # of PNG files

Place = tuple[float, float, float]
"""Left edge, upper edge and side of a square panel, inches from the upper left corner."""

STYLE: Any = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.linewidth": 0.5,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "pdf.fonttype": 42,  # letters stay letters, as journals ask
    "svg.hashsalt": "dsfer",
}

FEATURES, CHANGE, SCALAR, ATTENTION = "viridis", "gray", "cividis", "inferno"
MARK = "#00B2FF"  # of the pixel that is explained; photographs and colour maps have little of it

OUTCOMES = {
    "TP": "change found",
    "FP": "false alarm",
    "TN": "rightly unchanged",
    "FN": "change missed",
    "ignored": "ignored",
}


@dataclass(frozen=True)
class Tile:
    """What is drawn of one tile.

    Attributes:
        name: its id.
        t1: (h, w, 3) uint8 RGB.
        t2: the same ground at date 2.
        label: (h, w) uint8, 1 changed, 0 unchanged, 255 ignored.
    """

    name: str
    t1: Pixels
    t2: Pixels
    label: Pixels

    def __post_init__(self) -> None:
        """Check that the three belong together."""
        if self.t1.shape != (*self.label.shape, 3) or self.t2.shape != self.t1.shape:
            raise DataError(
                f"the dates are {self.t1.shape} and {self.t2.shape}, the label {self.label.shape}",
                where=self.name,
                mend="pass two (h, w, 3) images and an (h, w) label of one and the same tile",
            )


def difference_plate(tiles: Sequence[Tile], differences: Sequence[Sequence[Map]]) -> Figure:
    """Difference features from shallow to deep, as in Fig. 2.

    Args:
        tiles: a row each.
        differences: of each tile, `dsfer.features.difference_features`. A column has one scale for
            all tiles, from 0 to its 99.5th percentile.

    Returns:
        Columns: date 1, date 2, a stage each, label.
    """
    _check_count(tiles, differences)
    columns: dict[str, list[Pixels]] = {
        "$t_1$": [t.t1 for t in tiles],
        "$t_2$": [t.t2 for t in tiles],
    }
    for number, stage in enumerate(zip(*differences, strict=True), start=1):
        maps = [_enlarged(values, tile) for values, tile in zip(stage, tiles, strict=True)]
        top = float(np.percentile(np.stack(maps), 99.5))
        columns[f"stage {number}"] = [_coloured(values, FEATURES, 0, top) for values in maps]
    columns["ground truth"] = [mask_picture(tile.label) for tile in tiles]
    figure = _plate(columns)
    _scale(figure, FEATURES, "mean of $|F_1-F_2|$ over channels", ("0", "highest of the column"))
    return figure


def comparison_plate(tiles: Sequence[Tile], predictions: Mapping[str, Sequence[Pixels]]) -> Figure:
    """What each method found, missed and invented, as in Figs. 6 to 8.

    Args:
        tiles: a row each.
        predictions: of each method, by its title, a (h, w) uint8 map of 0 and 1 a tile.

    Returns:
        Columns: date 1, date 2, ground truth, a method each in the colours of `ERROR_COLOURS`.
    """
    columns: dict[str, list[Pixels]] = {
        "$t_1$": [tile.t1 for tile in tiles],
        "$t_2$": [tile.t2 for tile in tiles],
        "ground truth": [mask_picture(tile.label) for tile in tiles],
    }
    for title, maps in predictions.items():
        _check_count(tiles, maps)
        columns[title] = [
            error_map(each, tile.label) for each, tile in zip(maps, tiles, strict=True)
        ]
    figure = _plate(columns)
    figure.legend(handles=_outcomes(tiles), **_BELOW, ncols=len(OUTCOMES))
    return figure


def retrieval_plate(tiles: Sequence[Tile], retrieved: Sequence[Sequence[RetrievedLevel]]) -> Figure:
    """Retrieved features beside the pair and the label at their own size, as in Figs. 9 to 11.

    Args:
        tiles: a row each.
        retrieved: of each tile, `dsfer.features.retrieved_levels`. The retrieved features have one
            scale a column, from the lowest to the highest of all tiles.

    Returns:
        Columns, for each level: date 1, date 2 and label (changed where any pixel is) down-sampled,
        the mask F_R, and the change probability of the intermediate map made of it.
    """
    _check_count(tiles, retrieved)
    columns: dict[str, list[Pixels]] = {}
    for levels in zip(*retrieved, strict=True):
        stride, stage = levels[0].stride, levels[0].level
        pairs = list(zip(levels, tiles, strict=True))
        features = [_enlarged(level.features, tile) for level, tile in pairs]
        low, high = float(np.min(features)), float(np.max(features))
        columns |= {
            f"$t_1$, 1/{stride}": [_reduced(tile.t1, stride) for tile in tiles],
            f"$t_2$, 1/{stride}": [_reduced(tile.t2, stride) for tile in tiles],
            f"label, 1/{stride}": [_reduced_label(tile, stride) for tile in tiles],
            f"$F_R$, stage {stage}": [_coloured(each, FEATURES, low, high) for each in features],
            f"$M$, stage {stage}": [
                _coloured(_enlarged(level.change, tile), CHANGE, 0, 1) for level, tile in pairs
            ],
        }
    figure = _plate(columns)
    _scale(figure, FEATURES, "$F_R$, mean over channels", ("column's lowest", "highest"))
    return figure


@dataclass(frozen=True)
class Evidence:
    """Why one pixel of a tile was called changed, or not.

    Attributes:
        pixel: row and column in the tile, from 0.
        probability: (h, w) float32, change probability of the whole network.
        levels: what each level retrieved, `dsfer.features.retrieved_levels`.
        attention: at each level, the positions that the state at `pixel` retrieved of each date,
            (2, h/s, w/s), `dsfer.features.attention_maps`.
    """

    pixel: tuple[int, int]
    probability: Map
    levels: Sequence[RetrievedLevel]
    attention: Sequence[Map]


def evidence_plate(tile: Tile, evidence: Evidence) -> Figure:
    """Which stored positions of each date one pixel retrieved, and how surely.

    Args:
        tile: the tile.
        evidence: of one of its pixels.

    Returns:
        The pair, the label, errors and probability with the pixel marked; then for each level the
        weights over either date, in multiples of even ones, and maps of energy and entropy of every
        state. A line below each level puts its values at the pixel into words.
    """
    gap, title, bar, line = 0.05, 0.15, 0.3, 0.2  # inches
    side = (WIDTH - 7 * gap) / 6
    lefts = [gap + column * (side + gap) for column in range(6)]
    row = side + title + bar
    height = title + side + gap + len(evidence.levels) * (row + line)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        _draw_pair(figure, [(left, title, side) for left in lefts], tile, evidence)
        top = title + side + gap
        for level, weights in zip(evidence.levels, evidence.attention, strict=True):
            cell = evidence.pixel[0] // level.stride, evidence.pixel[1] // level.stride
            words = _sentence(tile, level, weights, cell)
            size = _fitting(words, WIDTH - 2 * gap, 6.3)
            figure.text(
                gap / WIDTH, 1 - (top + line / 2) / height, words, fontsize=size, va="center"
            )
            top += line + title
            _draw_level(figure, [(left, top, side) for left in lefts], tile, level, weights, cell)
            top += side + bar
    return figure


def _draw_pair(figure: Figure, places: list[Place], tile: Tile, evidence: Evidence) -> None:
    called = (evidence.probability > 0.5).astype(np.uint8)
    panels = {
        "$t_1$": tile.t1,
        "$t_2$": tile.t2,
        "ground truth": mask_picture(tile.label),
        "outcome": error_map(called, tile.label),
        "p(change)": _coloured(evidence.probability, CHANGE, 0, 1),
    }
    for place, (title, picture) in zip(places, panels.items(), strict=False):
        axes = _panel(figure, place)
        _show(axes, picture, title)
        _mark(axes, evidence.pixel)
    side = _panel(figure, places[-1])
    side.axis("off")
    row, col = evidence.pixel
    side.legend(handles=_outcomes([tile]), loc="center left", frameon=False, fontsize=5.8,
                title=f"row {row}, column {col}\n"
                      f"p(change) = {evidence.probability[row, col]:.3f}",
                title_fontsize=6.8, alignment="left", borderpad=0, handlelength=1.2)  # fmt: skip


def _draw_level(
    figure: Figure,
    places: list[Place],
    tile: Tile,
    level: RetrievedLevel,
    weights: Map,
    cell: tuple[int, int],
) -> None:
    even = weights * weights[0].size  # multiples of the weight that every position would have
    top = max(float(even.max()), 1.0)
    retrieved = [
        _overlaid(photograph, values, top)
        for photograph, values in zip((tile.t1, tile.t2), even, strict=True)
    ]
    draw = partial(_draw_group, figure, cell=cell, stride=level.stride)
    draw(places[:2], "retrieved from", retrieved, ATTENTION, (0.0, top), "× even weight")
    for date in (0, 1):  # each on its own scale: the constant of E is another one
        energy = level.energy[date : date + 1]
        draw(places[2 + date : 3 + date], "energy in", *_scaled(energy, tile), "E", first=date + 1)
    draw(places[4:], "positions of", *_scaled(np.exp(level.entropy), tile), "exp(entropy)")


def _draw_group(
    figure: Figure,
    places: Sequence[Place],
    title: str,
    pictures: Sequence[Pixels],
    colours: str,
    ends: tuple[float, float],
    unit: str,
    *,
    cell: tuple[int, int],
    stride: int,
    first: int = 1,
) -> None:
    """Panels of one or both dates, from `first` on, with a position marked and one colour bar."""
    for date, (place, picture) in enumerate(zip(places, pictures, strict=True), start=first):
        axes = _panel(figure, place)
        _show(axes, picture, f"{title} $t_{date}$")
        _mark_cell(axes, cell, stride)
    _bar(figure, places, colours, ends, unit)


def _scaled(maps: Map, tile: Tile) -> tuple[list[Pixels], str, tuple[float, float]]:
    """Maps (k, h, w) as pictures from their lowest to their highest value, and these."""
    low, high = float(maps.min()), float(maps.max())
    pictures = [_coloured(_enlarged(values, tile), SCALAR, low, high) for values in maps]
    return pictures, SCALAR, (low, high)


def _sentence(tile: Tile, level: RetrievedLevel, weights: Map, cell: tuple[int, int]) -> str:
    """What one level says at the pixel, in one line."""
    changed = _reduced_mask(tile.label, level.stride) == 1
    h, w = weights[0].shape
    parts = [f"Stage {level.level}, {h} x {w} positions: p(change) = {level.change[cell]:.2f}."]
    for date in (0, 1):
        many = np.exp(level.entropy[date][cell])
        on_change = 100 * float(weights[date][changed].sum())
        parts.append(
            f"$t_{date + 1}$: E = {level.energy[date][cell]:.1f}, spread over {many:.0f}, "
            f"{on_change:.0f} % on changed ground."
        )
    return "   ".join(parts)


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as `NAME.pdf` and `NAME.png`, each atomically, the same bytes each time.

    Returns:
        The two paths.
    """
    paths = [folder / f"{name}.pdf", folder / f"{name}.png"]
    with rc_context(STYLE):
        for path in paths:
            kind = path.suffix[1:]
            dated = {"CreationDate": None} if kind == "pdf" else None
            drawn = io.BytesIO()  # a disk that fills up must not interrupt matplotlib's own writing
            figure.savefig(drawn, format=kind, dpi=DPI, metadata=dated)
            write_bytes(path, drawn.getvalue())
    return paths


_BELOW: dict[str, Any] = {
    "loc": "lower center", "frameon": False, "fontsize": 6.5, "handlelength": 1.2,
    "handleheight": 1.0, "columnspacing": 1.4, "borderpad": 0.1, "bbox_to_anchor": (0.5, 0.0),
}  # fmt: skip


def _plate(columns: Mapping[str, Sequence[Pixels]]) -> Figure:
    """Pictures in columns, a row a tile, lettered below; room for a legend at the bottom."""
    across, down = len(columns), len(next(iter(columns.values())))
    gap, foot = 0.03, 0.38  # inches
    side = min(1.2, (WIDTH - (across + 1) * gap) / across)
    width, height = max(4.4, across * (side + gap) + gap), down * (side + gap) + foot
    margin = (width - across * (side + gap) + gap) / 2
    heads = [f"({chr(ord('a') + column)}) {title}" for column, title in enumerate(columns)]
    size = min(_fitting(head, side, 7.0) for head in heads)
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        for column, pictures in enumerate(columns.values()):
            left = margin + column * (side + gap)
            for row, picture in enumerate(pictures):
                _show(_panel(figure, (left, row * (side + gap) + 0.01, side)), picture)
            figure.text((left + side / 2) / width, (foot - 0.01) / height, heads[column],
                        ha="center", va="top", fontsize=size)  # fmt: skip
    return figure


def _fitting(words: str, width: float, size: float) -> float:
    """A font size at which words fit into a width in inches, `size` at most."""
    letters = len(words.translate(str.maketrans("", "", "$_")))
    return min(size, width / (0.0083 * letters))  # inches a letter and point, on average


def _panel(figure: Figure, place: Place) -> Axes:
    """Square axes at a place in inches."""
    left, top, side = place
    width, height = figure.get_size_inches()
    return figure.add_axes((left / width, 1 - (top + side) / height, side / width, side / height))


def _show(axes: Axes, picture: Pixels, title: str = "") -> None:
    axes.imshow(picture, interpolation="none")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#888888", linewidth=0.4)
    if title:
        axes.set_title(title, pad=2.5)


def _mark(axes: Axes, pixel: tuple[int, int]) -> None:
    row, col = pixel
    axes.plot(col, row, marker="+", markersize=9, markeredgewidth=2.6, color="white")
    axes.plot(col, row, marker="+", markersize=8, markeredgewidth=1.3, color=MARK)


def _mark_cell(axes: Axes, cell: tuple[int, int], stride: int) -> None:
    corner = cell[1] * stride - 0.5, cell[0] * stride - 0.5
    for colour, width in (("white", 2.0), (MARK, 1.0)):
        axes.add_patch(
            Rectangle(corner, stride, stride, fill=False, edgecolor=colour, linewidth=width)
        )


def _bar(
    figure: Figure, places: Sequence[Place], colours: str, ends: tuple[float, float], unit: str
) -> None:
    """A colour bar below neighbouring panels."""
    (left, top, side), (last, _, _) = places[0], places[-1]
    height = figure.get_figheight()
    box = (
        (left + 0.06) / WIDTH,
        1 - (top + side + 0.085) / height,
        0.6 * (last + side - left) / WIDTH,
    )
    axes = figure.add_axes((*box, 0.05 / height))
    bar = figure.colorbar(
        ScalarMappable(Normalize(*ends), colours), cax=axes, orientation="horizontal"
    )
    axes.tick_params(pad=1)
    bar.locator = MaxNLocator(3 if len(places) == 1 else 4)
    bar.update_ticks()
    axes.text(1.04, 0.5, unit, transform=axes.transAxes, fontsize=6, va="center")


def _scale(figure: Figure, colours: str, title: str, ends: tuple[str, str]) -> None:
    """A colour bar at the foot of a plate, its ends in words."""
    height = figure.get_figheight()
    axes = figure.add_axes((0.46, 0.06 / height, 0.16, 0.07 / height))
    axes.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=colours)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_linewidth(0.3)
    kwargs: dict[str, Any] = {"transform": axes.transAxes, "va": "center", "fontsize": 6.5}
    axes.text(-0.03, 0.5, f"{title}:  {ends[0]}", ha="right", **kwargs)
    axes.text(1.03, 0.5, ends[1], ha="left", **kwargs)


def _outcomes(tiles: Sequence[Tile]) -> list[Patch]:
    """Legend of the error colours; grey only where something is ignored."""
    ignored = any((tile.label == 255).any() for tile in tiles)
    return [
        Patch(facecolor=f"#{bytes(ERROR_COLOURS[key]).hex()}", edgecolor="#555555", linewidth=0.4,
              label=f"{key}, {words}" if key != "ignored" else words)
        for key, words in OUTCOMES.items() if key != "ignored" or ignored
    ]  # fmt: skip


def _coloured(values: Map, colours: str, low: float, high: float) -> Pixels:
    """(h, w) numbers as (h, w, 3) uint8, `low` to `high` over a colour map."""
    span = high - low if high > low else 1.0
    picture: Pixels = colormaps[colours]((values - low) / span, bytes=True)[..., :3]
    return picture


def _overlaid(photograph: Pixels, weights: Map, top: float) -> Pixels:
    """Weights in colour over a photograph in grey, the more the heavier."""
    grey = photograph @ np.array([0.299, 0.587, 0.114])
    repeated = _to_size(weights, photograph.shape[0]) / top
    colours = _coloured(repeated, ATTENTION, 0, 1)
    opacity = np.sqrt(np.clip(repeated, 0, 1))[..., None]
    ground = 0.35 * grey[..., None] + 0.65 * 160  # pale, so that colour stands out
    picture: Pixels = (opacity * colours + (1 - opacity) * ground).astype(np.uint8)
    return picture


def _enlarged(values: Map, tile: Tile) -> Map:
    return _to_size(values, tile.label.shape[0])


def _to_size(values: np.ndarray, side: int) -> np.ndarray:
    """Each value of a map repeated until it is as large as its tile: viewers smooth small ones."""
    factor = max(1, side // values.shape[0])
    return values.repeat(factor, axis=0).repeat(factor, axis=1)


def _reduced(photograph: Pixels, stride: int) -> Pixels:
    """Mean over squares, at the tile's size."""
    h, w, _ = photograph.shape
    means = photograph.reshape(h // stride, stride, w // stride, stride, 3).mean(axis=(1, 3))
    return _to_size(means.round().astype(np.uint8), h)


def _reduced_mask(label: Pixels, stride: int) -> Pixels:
    """The label as deep supervision sees it."""
    reduced = reduce_labels(torch.from_numpy(label)[None], label.shape[1] // stride)
    mask: Pixels = reduced[0].numpy()
    return mask


def _reduced_label(tile: Tile, stride: int) -> Pixels:
    return _to_size(mask_picture(_reduced_mask(tile.label, stride)), tile.label.shape[0])


def _check_count(tiles: Sequence[Tile], others: Sequence[Any]) -> None:
    if not tiles or len(tiles) != len(others):
        raise DataError(
            f"{len(tiles)} tiles and {len(others)} rows of maps", mend="pass as many of each"
        )
