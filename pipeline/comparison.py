"""The paper's plates with all methods of Table I, from the weights of its finished cells."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from dsfer.data.shards import TileShards
from dsfer.errors import DataError
from dsfer.files import atomic_folder
from pipeline.cells import Cell, fetch
from pipeline.sheets import Outcome
from pipeline.stages.figures import choose, counted, draw, load_methods
from pipeline.tables import Entry

OWN = "dsfer-net"
"""The row whose inside is drawn, too, and whose counts pick the tiles."""


def draw_plates(entries: Sequence[Entry], outcomes: Mapping[str, Outcome], folder: Path) -> None:
    """Draw what the figures stage draws, of all rows of Table I that have a result.

    Weights, counts and test split are taken from the experiments: which data lie in the project,
    and which networks were trained there, makes no difference. Of several seeds the first is drawn.

    Args:
        entries: the rows on one data set.
        outcomes: by name of the experiment.
        folder: for the plates and `figures.json`; it is replaced as a whole.

    Raises:
        DataError: no row has weights to draw, or DVC's cache no longer holds the test split.
        ConfigError: the parameter `figures` names what is not in the test split.
    """
    cells = {entry.key: entry.cells[0] for entry in entries}
    outcome_of = {key: outcomes[cell.name] for key, cell in cells.items()}
    left_out = {key: why for key, why in outcome_of.items() if isinstance(why, str)}
    done = [key for key in cells if key not in left_out]
    if not done:
        raise DataError("no row has a result", mend="see why, below the table")
    with (
        atomic_folder(folder) as out,
        TemporaryDirectory(dir=out) as name,  # what a killed process leaves goes with the folder
    ):
        kept, weights = Path(name), {}
        test = _fetch_test_split(cells[done[0]], kept)
        for key in done:
            try:
                weights[key] = _fetch_weights(cells[key], kept / key)
            except DataError as error:
                left_out[key] = error.problem
        methods, unreadable = load_methods(weights, test, cells[done[0]].settings.params.device)
        reasons = dict.fromkeys(cells, "was trained on another split") | left_out | unreadable
        left_out = {key: why for key, why in reasons.items() if key not in methods}
        if not methods:
            raise DataError(f"no row has weights to draw: {left_out}", mend="run the cells again")
        own = OWN if OWN in methods else [*methods][-1]
        settings, counts = cells[own].settings, counted(cells[own].settings)
        fetch(cells[own], [counts], kept)
        draw(
            test,
            choose(settings, test, kept / counts),
            methods,
            {entry.key: entry.label for entry in entries},
            own,
            left_out,
            f"The networks are those of Table {entries[0].table} with seed {settings.params.seed}, "
            f"trained on split {test.split_hash}.",
            out,
        )


def _fetch_weights(cell: Cell, folder: Path) -> Path:
    """The weights of a finished cell, with their record beside them."""
    names = ("weights.safetensors", "weights.json")
    weights, record = (cell.settings.model_folder / "training" / name for name in names)
    fetch(cell, [weights, record], folder)
    return folder / weights


def _fetch_test_split(cell: Cell, folder: Path) -> TileShards:
    """The test split that a finished cell was scored on; shards in an object store stay there."""
    shards = cell.settings.folder / "shards" / "test"
    fetch(cell, [shards], folder)
    return TileShards(folder / shards, store=cell.settings.shard_store)
