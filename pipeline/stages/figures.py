"""Stage `figures`: the paper's plates of chosen tiles, and why a change was called at a pixel."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import distance_transform_edt

from dsfer import detector
from dsfer.data.shards import TileShards
from dsfer.data.tars import Pixels
from dsfer.detector import Detector
from dsfer.devices import Device
from dsfer.errors import CheckpointError, ConfigError
from dsfer.features import (
    Map,
    attention_maps,
    difference_features,
    encode,
    has_encoder,
    has_retrieval,
    retrieved_levels,
)
from dsfer.files import atomic_folder, write_json
from dsfer.memory import enough_memory
from dsfer.plates import (
    Evidence,
    Tile,
    comparison_plate,
    difference_plate,
    evidence_plate,
    retrieval_plate,
    save_figure,
)
from dsfer.weights import read_metadata
from pipeline.model import open_shards
from pipeline.params import Settings, current_settings
from pipeline.published import load_published
from pipeline.results import read_tiles
from pipeline.stages import run

_log = logging.getLogger(__name__)

WELL_FOUND = 3
"""Tiles that are picked for change that was found; one more is picked for its errors."""


@dataclass(frozen=True)
class Choice:
    """A tile to draw.

    Attributes:
        tile: its id.
        pixel: row and column whose retrieval is shown, or None to pick one.
        why: why it is drawn.
    """

    tile: str
    pixel: tuple[int, int] | None
    why: str


def main() -> None:
    """Run the stage."""
    settings = current_settings()
    test = open_shards(settings, "test")
    chosen = choose(settings, test, counted(settings))
    methods, left_out = trained_methods(settings, test)
    with atomic_folder(settings.model_folder / "figures") as out:
        titles, own = load_published().titles, settings.params.model
        draw(test, chosen, methods, titles, own, left_out, TRAINED_HERE, out)


@enough_memory(1)  # pairs are drawn one by one
def draw(
    test: TileShards,
    chosen: Sequence[Choice],
    methods: Mapping[str, Detector],
    titles: Mapping[str, str],
    own: str,
    left_out: Mapping[str, str],
    which: str,
    out: Path,
) -> None:
    """Draw all plates of chosen tiles, and write `figures.json` about them.

    Args:
        test: the test split.
        chosen: its tiles, a row each.
        methods: networks by their names, in the order of the plate.
        titles: what a plate calls them, by their names; by default the name.
        own: the one of them whose inside is drawn, too, as far as it has it.
        left_out: why others are not compared, by their names.
        which: a sentence for the reader, on which networks are compared.
        out: folder that is there.

    Raises:
        ConfigError: a pixel was chosen, and the own network has no retrieval to explain it by.
        DeviceMemoryError: the GPU has too little memory.
    """
    tiles = [read_tile(test, choice.tile) for choice in chosen]
    probabilities = {name: predict(method, tiles) for name, method in methods.items()}
    called = {
        titles.get(name, name): [(each > 0.5).astype(np.uint8) for each in maps]
        for name, maps in probabilities.items()
    }
    save_figure(comparison_plate(tiles, called), out, "comparison")
    caption = f"{COMPARISON} {which}"
    if left_out:
        reasons = "; ".join(f"{titles.get(name, name)}: {why}" for name, why in left_out.items())
        caption += f" Left out: {reasons.rstrip('.')}."
    figures = [figure("comparison", "What was found, missed and invented", caption)]
    figures += inside(methods[own], tiles, chosen, probabilities[own], out)
    write_json(
        out / "figures.json",
        {
            "tiles": [{"tile": each.tile, "why": each.why} for each in chosen],
            "methods": {name: method.metadata.sha256 for name, method in methods.items()},
            "left_out": left_out,
            "figures": figures,
        },
    )


COMPARISON = (
    "As the paper's Figs. 6 to 8: change found is white, false alarm cyan, change missed red, "
    "rightly unchanged black; ignored, which is ours, grey."
)
TRAINED_HERE = (
    "The networks are those that were trained on this split of this data set when the figure was "
    "drawn."
)
DIFFERENCE = (
    "As the paper's Fig. 2: the mean of |F1 - F2| over the channels of each stage of the encoder, "
    "each stage on one scale from 0 for all tiles."
)
RETRIEVAL = (
    "As the paper's Figs. 9 to 11: what the retrieval layers of stages 4 and 5 make of the pair, "
    "beside pair and label at their size. F_R is the mask of Eq. 2, mean over channels; M is the "
    "change probability of the intermediate map, which deep supervision trains."
)
EVIDENCE = (
    "Which positions of either date the state pattern at the marked pixel retrieved, in multiples "
    "of the weight that each would have if all were alike; the energy of every state pattern in "
    "the memory of each date (low: it resembles what is stored there); and over how many positions "
    "its weight is spread, exp(entropy)."
)


def figure(name: str, title: str, caption: str) -> dict[str, str]:
    """What the report needs to know of `NAME.png`."""
    return {"name": name, "title": title, "caption": caption}


def choose(settings: Settings, test: TileShards, counts: Path) -> list[Choice]:
    """The tiles that params.yaml names, or those that are picked by their counts.

    Args:
        settings: all parameters.
        test: the test split.
        counts: `evaluation/tiles.csv`; not read where tiles are named.

    Raises:
        ConfigError: a tile or pixel that is named does not exist.
        DataError: the counts are missing or damaged.
    """
    asked_for = settings.params.figures
    return asked(asked_for, test) if asked_for else picked(read_tiles(counts))


def asked(figures: Sequence[str], test: TileShards) -> list[Choice]:
    """The tiles that params.yaml names, as `TILE` or `TILE@ROW,COL`.

    Raises:
        ConfigError: a tile that is not in the test split, or a pixel that is not in the tile.
    """
    choices = []
    for entry in figures:
        tile, at, place = entry.rpartition("@") if "@" in entry else (entry, "", "")
        if tile not in test.ids:
            raise ConfigError(
                f"{tile!r} is no tile of the test split",
                where="params.yaml, figures",
                mend="take ids of evaluation/tiles.csv, such as " + ", ".join(test.ids[:2]),
            )
        pixel = tuple(map(int, place.split(","))) if at else None
        if pixel and max(pixel) >= test.tile_size:
            raise ConfigError(
                f"{entry!r} names a pixel outside a tile of {test.tile_size} x {test.tile_size}",
                where="params.yaml, figures",
                mend="give row and column from 0",
            )
        choices.append(Choice(tile, (pixel[0], pixel[1]) if pixel else None, "chosen"))
    return choices


def picked(counts: pd.DataFrame) -> list[Choice]:
    """The tiles with the most change found over what was wrong, a scene each, and the worst tile.

    Args:
        counts: `evaluation/tiles.csv`.
    """
    wrong = counts["fp"] + counts["fn"]
    ranked = counts.assign(found=counts["tp"] - wrong).sort_values(
        "found", ascending=False, kind="stable"
    )
    again = ranked["scene"].duplicated()  # scenes look alike in themselves: other scenes first
    best = pd.concat([ranked[~again], ranked[again]])["id"][:WELL_FOUND].tolist()
    choices = [Choice(tile, None, "change found") for tile in best]
    worst = counts["id"][wrong.sort_values(ascending=False, kind="stable").index].tolist()
    choices += [Choice(tile, None, "most errors") for tile in worst if tile not in best][:1]
    return choices


def counted(settings: Settings) -> Path:
    """The table of what evaluation counted in every tile."""
    return settings.model_folder / "evaluation" / "tiles.csv"


def read_tile(test: TileShards, tile: str) -> Tile:
    """Pixels of a tile of the split."""
    pair, label = test[test.ids.index(tile)]
    return Tile(tile, pair[0], pair[1], label)


def trained_methods(
    settings: Settings, test: TileShards
) -> tuple[dict[str, Detector], dict[str, str]]:
    """Networks trained on this split of this data set, in the paper's order, this one last.

    Another one whose weights cannot be loaded, as those of an earlier version or of a network that
    is no longer there, stops nothing: it is left out.

    Returns:
        The networks by their names, and why others were left out.

    Raises:
        CheckpointError: the weights of this one cannot be loaded.
    """
    own, order = settings.params.model, load_published().titles
    device = settings.params.device
    this = detector.load(settings.model_folder / "training", device=device)
    trained = (settings.folder / "models").glob("*/training/weights.safetensors")
    others = {path.parents[1].name: path for path in trained if path.parents[1].name != own}
    known = [name for name in order if name in others]
    ordered = {name: others[name] for name in dict.fromkeys([*known, *sorted(others)])}
    found, left_out = load_methods(ordered, test, device)
    return found | {own: this}, left_out


def load_methods(
    weights: Mapping[str, Path], test: TileShards, device: Device
) -> tuple[dict[str, Detector], dict[str, str]]:
    """Networks that were trained on this split, in the order of `weights`; those of others are not.

    Args:
        weights: of each network, by its name.
        test: the test split.
        device: where they are run.

    Returns:
        The networks by their names, and why others could not be loaded.
    """
    found: dict[str, Detector] = {}
    left_out: dict[str, str] = {}
    for name, path in weights.items():
        try:
            if read_metadata(path).about.get("split_hash") == test.split_hash:
                found[name] = detector.load(path, device=device)
        except (CheckpointError, ConfigError) as error:
            _log.warning("%s is left out of the figures: %s", name, error)
            left_out[name] = error.problem
    return found, left_out


def predict(method: Detector, tiles: Sequence[Tile]) -> list[Map]:
    """Change probability of each tile, (h, w) float32."""
    return [method.probabilities(pair(tile))[0] for tile in tiles]


def pair(tile: Tile) -> Pixels:
    """A tile as a batch of one, (1, 2, h, w, 3) uint8."""
    return np.stack((tile.t1, tile.t2))[None]


def inside(
    method: Detector,
    tiles: Sequence[Tile],
    chosen: Sequence[Choice],
    probabilities: Sequence[Map],
    out: Path,
) -> Iterator[dict[str, str]]:
    """Draw what is inside the network, as far as it has it; yields what was drawn.

    Raises:
        ConfigError: a pixel was chosen, and the network has no retrieval to explain it by.
    """
    network, inference = method.network, method.inference
    pixels = [choice.pixel for choice in chosen]
    if not (has_encoder(network) or any(pixels)):
        return
    batches = [torch.from_numpy(pair(tile)).to(inference.device) for tile in tiles]
    maps = [encode(network, *inference.inputs(batch)) for batch in batches]
    differences = [difference_features(each) for each in maps]
    save_figure(difference_plate(tiles, differences), out, "difference")
    yield figure("difference", "How the dates differ, from shallow to deep", DIFFERENCE)
    if not (has_retrieval(network) or any(pixels)):
        return
    retrieved = [retrieved_levels(network, each) for each in maps]
    save_figure(retrieval_plate(tiles, retrieved), out, "retrieval")
    yield figure("retrieval", "What was retrieved of the difference", RETRIEVAL)
    for i, tile in enumerate(tiles):
        pixel = pixels[i] or telling_pixel(probabilities[i] > 0.5, tile.label)
        attention = attention_maps(network, maps[i], pixel)
        evidence = Evidence(pixel, probabilities[i], retrieved[i], attention)
        name = f"evidence-{i + 1}"
        save_figure(evidence_plate(tile, evidence), out, name)
        row, col = pixel
        yield figure(name, f"Why: {tile.name}, row {row}, column {col}", EVIDENCE)


def telling_pixel(called: np.ndarray, label: Pixels) -> tuple[int, int]:
    """The pixel deepest inside what was called changed, or inside the label where nothing was.

    Args:
        called: (h, w) bool.
        label: (h, w) uint8, 1 changed.

    Returns:
        Row and column; the centre of a tile where neither says changed.
    """
    change = called if called.any() else label == 1
    if not change.any():
        return label.shape[0] // 2, label.shape[1] // 2
    depth = distance_transform_edt(np.pad(change, 1))[1:-1, 1:-1]
    row, col = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(row), int(col)


if __name__ == "__main__":
    run(main)
