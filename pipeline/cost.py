"""What the networks of Tables II and IV cost, measured in turn by one run of `benchmarks/cost.py`.

What was measured is kept until code, commit, size, torch or GPU change: a table that is made again
reads it. Where a network failed, nothing is kept: all are measured again, as ratios hold within a
run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pandas as pd

from dsfer.errors import DsferError
from dsfer.files import atomic_path, read_json
from pipeline.commands import Command
from pipeline.results import Stored
from pipeline.sheets import listed, record
from pipeline.tables import Name, load_tables, row_of
from pipeline.workspace import experiment_name, project_state

KEPT = Path(".dvc/tmp/tables")
"""Where measured costs lie in a project."""

MADE = ("device", "torch", "date", "pairs", "precision", "batch", "tried", "rounds")
"""What records tell of how they were made."""

BESIDE = {"seconds": "A100"}
"""Measures whose published figures are of another device."""

VGG16 = "vgg16"
"""The encoder that Dsfer-Net has unless another one is named."""

PAPER_PAIRS = 2048
"""Test tiles of LEVIR-CD, which the paper's seconds are for."""


class Cost(Stored):
    """A row of what `benchmarks/cost.py` writes.

    Attributes:
        network: its name, see `network_of`.
        variant: which of its variants, the one that Table II is of; None where it has none.
        parameters: as Table II counts them.
        live: those of them that the network uses.
        gmacs: of one pair, forward: half the operations of convolutions and matrix products.
        test_loop_s: seconds that the paper's loop takes over `test_pairs`.
        test_pairs: how many those are.
        pairs_per_second: from shards to counts, at `batch` and in `precision`, uncompiled.
        batch: the size of the highest rate, of those that were `tried`.
        latency_ms: from one pair on the device to its logits, in `precision`.
        rounds: of which times are the medians; in each, all networks took their turn.
        spreads: of the times: half the distance of the quartiles, relative to the median, by the
            names that tables have for them.
        peak_mib: of the network and one batch in the device's memory, on a CPU in a process of its
            own; None where the system does not tell.
    """

    network: str
    variant: str | None
    parameters: int
    live: int
    gmacs: float
    test_loop_s: float
    test_pairs: int
    pairs_per_second: float
    batch: int
    tried: list[int]
    latency_ms: float
    rounds: int
    spreads: dict[str, float]
    peak_mib: float | None
    precision: str


class Costs(Stored):
    """What `benchmarks/cost.py` writes.

    Attributes:
        device: as tables name it.
        date: the day (UTC).
        torch: its version.
        rows: the networks that could be measured.
        failed: why others could not, by their names.
    """

    device: str
    date: str
    torch: str
    rows: list[Cost]
    failed: dict[str, str]


def network_of(name: Name, key: str) -> str:
    """The network of a row: a model, or Dsfer-Net with another encoder, as `dsfer-net/resnet18`."""
    changes = row_of(name, key).changes
    model, encoder = changes["model"], changes.get("encoder", VGG16)
    return str(model if encoder == VGG16 else f"{model}/{encoder}")


def parts_of(network: str) -> tuple[str, str | None]:
    """Model and encoder of a network by its name, see `network_of`; None for the default one."""
    model, _, encoder = network.partition("/")
    return model, encoder or None


def measured_networks() -> list[str]:
    """Those of all tables that tell what networks cost, each once."""
    tables = load_tables()
    rows = [
        (name, key) for name in get_args(Name) if tables[name].costs for key in tables[name].rows
    ]
    return list(dict.fromkeys(network_of(name, key) for name, key in rows))


def measure_costs(pairs: int | None, models: Sequence[str] = ()) -> Costs | str:
    """Measure all networks in turn, or read what was measured before; or say why that failed.

    Args:
        pairs: of the test loop; None for the benchmark's own number.
        models: networks to measure, too.
    """
    import torch  # seconds to load, and flows that measure nothing import this module

    options = [] if pairs is None else ["--pairs", str(pairs)]
    options += [f"--add={name}" for name in sorted({*models} - {*measured_networks()})]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    made = {"options": options, "torch": torch.__version__, "gpus": gpus}
    kept = KEPT / f"{experiment_name('cost', project_state(Path()), made)}.json"
    try:
        if not kept.is_file():
            with atomic_path(kept) as temporary:
                _run([*options, "--json", str(temporary)])
        costs = Costs.model_validate(read_json(kept))
        if costs.failed:
            kept.unlink()
        return costs
    except DsferError as error:
        return f"failed: {error.problem}"


def _run(options: list[str]) -> None:
    arguments = [sys.executable, "-m", "benchmarks.cost", *options]
    with Command("benchmarks.cost", arguments, Path(), Path()) as command:
        for line in command.lines():
            print(line, flush=True)


def cost_records(name: Name, key: str, dataset: str, found: Costs | str) -> list[dict[str, object]]:
    """What a row of a table costs, see `pipeline.sheets.record`; with the `spread` of times.

    Args:
        name: of the table.
        key: of the row.
        dataset: beside whose scores the costs stand; empty for none.
        found: what `measure_costs` returned.
    """
    values: dict[str, list[float]] = {}
    spreads: dict[str, float] = {}
    made: dict[str, object] = dict.fromkeys(MADE, "")
    network, why = network_of(name, key), ""
    if isinstance(found, str):
        why = found
    elif network in found.failed:
        why = f"failed: {found.failed[network]}"
    else:
        (cost,) = (row for row in found.rows if row.network == network)
        values, made, spreads = _measured(cost), _made(cost, found), cost.spreads
    records = []
    for measure in load_tables()[name].costs:
        line = record(
            name, key, dataset, measure, values.get(measure, []), BESIDE.get(measure, ""), why
        )
        spread = spreads[measure] * values[measure][0] if measure in spreads else None
        records.append(line | {"spread": spread} | made)
    return records


def _measured(cost: Cost) -> dict[str, list[float]]:
    """What was measured, by the names that tables have for it."""
    return {
        "parameters": [cost.parameters / 1e6],
        "live": [cost.live / 1e6],
        "seconds": [cost.test_loop_s / cost.test_pairs * PAPER_PAIRS],
        "GMACs": [cost.gmacs],
        "pairs/s": [cost.pairs_per_second],
        "latency": [cost.latency_ms],
        "memory": [] if cost.peak_mib is None else [cost.peak_mib],
    }


def _made(cost: Cost, run: Costs) -> dict[str, object]:
    """How it was measured, by `MADE`."""
    pairs, batch, tried = str(cost.test_pairs), str(cost.batch), ", ".join(map(str, cost.tried))
    rounds = str(cost.rounds)
    values = (run.device, run.torch, run.date, pairs, cost.precision, batch, tried, rounds)
    return dict(zip(MADE, values, strict=True))


def cost_caption(records: pd.DataFrame, commit: str) -> str:
    """How costs were measured.

    Args:
        records: of one table, see `cost_records`.
        commit: at which they were.
    """
    made = {name: listed(filter(None, records[name])) or "none" for name in MADE}
    sentences = {
        "parameters": "Parameters as the paper counts them.",
        "seconds": "Test loop as the paper's: float32, one pair after the other, reading included, "
        f"scaled from {made['pairs']} pairs to {PAPER_PAIRS:,}; the paper's seconds are of an "
        "NVIDIA A100, so no difference is given.",
        "pairs/s": f"Pairs per second at the fastest batch of those tried ({made['tried']}), in "
        f"{made['precision']} and uncompiled: torch.compile takes minutes for every network and "
        "batch size.",
        "latency": "Latency of one pair that is on the device, likewise.",
        "memory": "Peak memory of the network and that batch, which is not the same for all, above "
        "what a process holds without.",
    }
    told = [text for measure, text in sentences.items() if measure in set(records["measure"])]
    where = f"{made['device']}, torch {made['torch']}, {made['date']}"
    where += f"; times are medians of {made['rounds']} rounds, whose spread is in the .csv"
    return " ".join(
        [
            f"python -m benchmarks.cost, whole networks on 256 x 256 pixels, on {where}.",
            *told,
            f"Commit {commit}.",
        ]
    )
