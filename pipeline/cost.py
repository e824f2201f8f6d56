"""Table II: what the networks cost, measured in turn by one run of `benchmarks/cost.py`.

What was measured is kept until code, commit, size, torch or GPU change: a table that is made again
reads it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dsfer.errors import DsferError
from dsfer.files import atomic_path, read_json
from pipeline.commands import Command
from pipeline.results import Stored
from pipeline.sheets import listed, record
from pipeline.tables import load_tables, row_keys
from pipeline.workspace import commit, experiment_name

KEPT = Path(".dvc/tmp/tables")
"""Where measured costs lie in a project."""

MADE = ("device", "torch", "date", "pairs", "precision", "batch")
"""What records tell of how they were made."""

BESIDE = {"seconds": "A100"}
"""Measures whose published figures are of another device."""

PAPER_PAIRS = 2048
"""Test tiles of LEVIR-CD, which the paper's seconds are for."""


class Cost(Stored):
    """A row of what `benchmarks/cost.py` writes.

    Attributes:
        model: name of the network.
        variant: which of its variants, the one that Table II is of; None where it has none.
        parameters: as Table II counts them.
        live: those of them that the network uses.
        gmacs: of one pair, forward: half the operations of convolutions and matrix products.
        test_loop_s: seconds that the paper's loop takes over `test_pairs`.
        test_pairs: how many those are.
        pairs_per_second: from shards to counts, at `batch` and in `precision`.
        latency_ms: from one pair on the device to its logits, in `precision`.
        peak_mib: of the network and one batch in the device's memory; None on a CPU.
    """

    model: str
    variant: str | None
    parameters: int
    live: int
    gmacs: float
    test_loop_s: float
    test_pairs: int
    pairs_per_second: float
    batch: int
    latency_ms: float
    peak_mib: float | None
    precision: str


class Costs(Stored):
    """What `benchmarks/cost.py` writes."""

    device: str
    date: str
    torch: str
    rows: list[Cost]


def measure_costs(pairs: int | None, models: Sequence[str] = ()) -> list[dict[str, object]]:
    """The records of Table II; what was measured before is read.

    Args:
        pairs: of the test loop; None for the benchmark's own number.
        models: networks that have a row, too.
    """
    keys = row_keys("II", models)
    found = measure(pairs, keys[len(load_tables()["II"].rows) :])
    return [line for key in keys for line in cost_records(key, found)]


def measure(pairs: int | None, added: Sequence[str] = ()) -> Costs | str:
    """Measure all networks in turn, or read what was measured before; or say why that failed.

    Args:
        pairs: of the test loop; None for the benchmark's own number.
        added: networks that the paper's Table II does not have.
    """
    import torch  # seconds to load, and flows that measure nothing import this module

    options = [] if pairs is None else ["--pairs", str(pairs)]
    options += [f"--add={name}" for name in sorted(added)]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    made = {"options": options, "torch": torch.__version__, "gpus": gpus}
    kept = KEPT / f"{experiment_name('cost', Path(), made)}.json"
    try:
        if not kept.is_file():
            with atomic_path(kept) as temporary:
                _run([*options, "--json", str(temporary)])
        return Costs.model_validate(read_json(kept))
    except DsferError as error:
        return f"failed: {error.problem}"


def _run(options: list[str]) -> None:
    arguments = [sys.executable, "-m", "benchmarks.cost", *options]
    with Command("benchmarks.cost", arguments, Path(), Path()) as command:
        for line in command.lines():
            print(line, flush=True)


def cost_records(key: str, found: Costs | str) -> list[dict[str, object]]:
    """The measures of one row of Table II, see `pipeline.sheets.record`.

    Args:
        key: of the row.
        found: what `measure` returned.
    """
    why = found if isinstance(found, str) else ""
    values, made = ({}, dict.fromkeys(MADE, "")) if isinstance(found, str) else _told(found, key)
    return [
        record("II", key, "", name, values.get(name, []), BESIDE.get(name, ""), why) | made
        for name in load_tables()["II"].measures
    ]


def _told(found: Costs, model: str) -> tuple[dict[str, list[float]], dict[str, object]]:
    """Measures of a network by their names in the table, and how they were measured."""
    (cost,) = (row for row in found.rows if row.model == model)
    values = {
        "parameters": [cost.parameters / 1e6],
        "live": [cost.live / 1e6],
        "seconds": [cost.test_loop_s / cost.test_pairs * PAPER_PAIRS],
        "GMACs": [cost.gmacs],
        "pairs/s": [cost.pairs_per_second],
        "latency": [cost.latency_ms],
        "memory": [] if cost.peak_mib is None else [cost.peak_mib],
    }
    made = (found.device, found.torch, found.date, cost.test_pairs, cost.precision, cost.batch)
    return values, dict(zip(MADE, made, strict=True))


def cost_caption(records: pd.DataFrame) -> str:
    """How Table II was measured."""
    made = {name: listed(filter(None, records[name])) or "none" for name in MADE}
    return (
        f"python -m benchmarks.cost on {made['device']}, torch {made['torch']}, {made['date']}. "
        "Parameters as the paper counts them. Test loop as the paper's: float32, one pair after "
        f"the other, reading included, scaled from {made['pairs']} pairs to {PAPER_PAIRS:,}; the "
        "paper's seconds are of an NVIDIA A100, so no difference is given. Pairs per second at "
        f"batches of {made['batch']}, {made['precision']}. Commit {commit(Path())}."
    )
