"""What every network of Tables II and IV costs, as the paper measured it and as users need it.

    python -m benchmarks.cost [--pairs 4] [--tiles 8] [--size 256] [--only dsfer-net]

As the paper: the wall time of a test loop of one pair at a time in float32, from files to
predictions (with torch's defaults, under which a GPU convolves float32 in TF32). As users need it:
from shards to counts, at the fastest of a few batch sizes and in bf16 where the device has it; the
time from one pair to its logits, and the memory of a batch: on a CPU that of a process of its own.
Nothing is compiled, as that takes minutes for every network and batch size. Weights are drawn, not
trained, which does not change what a pass costs. A network that raises an error is left out, and
the numbers say why.
"""

import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import torch
import typer
from torch import nn
from torch.utils.data import Subset

import dsfer
from benchmarks import plain
from benchmarks.arithmetic import flops_of_pair
from benchmarks.demo import DemoTiles, demo_tiles
from benchmarks.memory import held_now, is_told, resident, separately
from benchmarks.side_by_side import Report, Timing, clock, compare
from dsfer.data.batches import BatchSource
from dsfer.errors import DsferError, first_line
from dsfer.evaluation import Inference, Precision, count_tiles, has_bf16
from dsfer.models import MODELS, count_parameters
from pipeline.cost import Cost, measured_networks, parts_of
from pipeline.frozen import did_you_mean
from pipeline.published import COMPARED

T = TypeVar("T")

MEBIBYTE = 2**20

PASSES = 2
"""Passes over one pair that are timed at once: on a GPU the second waits for the first."""


def main(
    tiles: Annotated[int, typer.Option(help="to score at once")] = (
        256 if torch.cuda.is_available() else 8
    ),
    pairs: Annotated[int, typer.Option(help="of the test loop of one pair at a time")] = (
        64 if torch.cuda.is_available() else 4
    ),
    size: int = 256,
    batches: Annotated[list[int] | None, typer.Option(help="batch sizes to try")] = None,
    rounds: int = 3,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    only: Annotated[
        list[str] | None, typer.Option(help="networks, those of Tables II and IV by default")
    ] = None,
    add: Annotated[list[str] | None, typer.Option(help="further networks")] = None,
    json: Annotated[Path | None, typer.Option(help="also write the numbers to this file")] = None,
) -> None:
    """Render tiles, then time every network in turn."""
    where = torch.device(device)
    report = Report(where, json)
    names = [*(only or measured_networks()), *(add or ())]
    sizes = batches or ([16, 64, 128] if where.type == "cuda" else [1, 4, 8])
    failed: dict[str, str] = {}
    with demo_tiles(max(tiles, pairs), size) as data:

        def start(name: str) -> nn.Module:
            network = build(name, size, where)
            test_loop(network, data, where, 1)  # warms up, too
            return network

        def find_batch(name: str) -> int:
            network = networks[name].to(memory_format=torch.channels_last)
            return best_batch(network, data, where, tiles, sizes)

        networks = each(names, start, failed)
        loops = compare(
            {name: partial(test_loop, net, data, where, pairs) for name, net in networks.items()},
            items=pairs,
            rounds=rounds,
            warm_up=1 if where.type == "cuda" else 0,  # on a CPU, the first pair was one
        )
        report.add(f"test loop, {pairs} pairs of {size} px one at a time", loops, "pairs")
        best = each(networks, find_batch, failed)
        rates = compare(
            {name: scorer(networks[name], data, where, tiles, best[name]) for name in best},
            items=tiles,
            rounds=rounds,
            warm_up=1 if where.type == "cuda" else 0,  # on a CPU, the search was one
        )
        at = f"each at the best batch of {', '.join(map(str, sizes))}"
        report.add(f"scoring {tiles} pairs of {size} px, {at}", rates, "pairs")
        delays = compare(
            {name: single_pair(networks[name], size, where) for name in best},
            items=PASSES,
            rounds=rounds,
        )
        report.add(f"one pair of {size} px, {PASSES} times", delays, "pairs")
    taken = [{timing.name: timing for timing in timings} for timings in (loops, rates, delays)]

    def row(name: str) -> Cost:
        timings = (by_name[name] for by_name in taken)
        return row_of(name, networks[name], size, pairs, best[name], sizes, rounds, *timings)

    rows = each(best, row, failed)
    report.rows([row.model_dump() for row in rows.values()], failed)


def each(names: Iterable[str], do: Callable[[str], T], failed: dict[str, str]) -> dict[str, T]:
    """What a function returns for each network; one for which it raises stops no other.

    Args:
        names: of networks.
        do: the function.
        failed: takes the reason of each network for which it raises.

    Raises:
        SystemExit: it raises for all of them.
    """
    done = {}
    for name in names:
        try:
            done[name] = do(name)
        except Exception as error:  # somebody's own network raises whatever it likes
            traceback.print_exc()
            said = f"{type(error).__name__}: {first_line(error)}"
            if isinstance(error, DsferError):
                said = error.problem
            failed[name] = said.rstrip(".")
    if not done:
        reasons = "; ".join(f"{name}: {said}" for name, said in failed.items())
        raise SystemExit(f"error: no network can be measured: {reasons}")
    return done


def build(name: str, size: int, device: torch.device) -> nn.Module:
    """A network in evaluation mode, in the variant that Table II counts."""
    model, encoder = parts_of(name)
    if model not in MODELS:
        raise SystemExit(f"error: {name}: no such network{did_you_mean(model, MODELS)}")
    torch.manual_seed(0)
    options = dict(MODELS[model].variants.get(variant_of(model) or "", {}))
    if model == "dsfer-net":
        options |= {"image_size": size} | ({"encoder": encoder} if encoder else {})
    return dsfer.create_model(model, **options).to(device).eval()


def variant_of(name: str) -> str | None:
    """The variant that Table II is of; the default of a network that it does not have."""
    variants = MODELS[name].variants
    return next((v for v in variants if v in COMPARED), next(iter(variants), None))


def test_loop(model: nn.Module, data: DemoTiles, device: torch.device, pairs: int) -> np.ndarray:
    """The paper's way; PNG are decoded in the loop, since starting others would count, too."""
    torch.backends.cudnn.allow_tf32 = True
    split = data.split("val")
    tiles = plain.PngTiles(data.png, split.mean, split.std)
    return plain.count_tiles(model, Subset(tiles, range(pairs)), device, workers=0)


def best_precision(device: torch.device) -> Precision:
    """What the pipeline computes in where the recipe leaves it the choice."""
    return "bf16" if has_bf16(device) else "float32"


def inference_of(
    mean: Sequence[float], std: Sequence[float], device: torch.device, batch: int
) -> Inference:
    """How a network is run as users need it."""
    scale = [torch.tensor(values, device=device) for values in (mean, std)]
    return Inference(scale[0], scale[1], best_precision(device), batch)


def scorer(
    model: nn.Module, data: DemoTiles, device: torch.device, tiles: int, batch: int
) -> Callable[[], torch.Tensor]:
    """A function that scores so many tiles, from shards to counts."""
    split, chosen = data.split("val"), np.arange(tiles)
    inference = inference_of(split.mean, split.std, device, batch)

    def score() -> torch.Tensor:
        source = BatchSource(split, device, in_memory=False)
        return count_tiles(model, source, inference, chosen)[0]

    return score


def best_batch(
    model: nn.Module, data: DemoTiles, device: torch.device, tiles: int, sizes: list[int]
) -> int:
    """The batch size of the highest rate, of those for which the device has the memory.

    On a CPU one pair warms up: passes over all tiles would take minutes more, and change little.

    Raises:
        MemoryError: none fits.
    """
    rates: dict[int, float] = {}
    for size in sizes:
        score = scorer(model, data, device, tiles, size)
        warm_up = score if device.type == "cuda" else scorer(model, data, device, 1, size)
        try:
            warm_up()
            started = clock()
            score()
        except torch.cuda.OutOfMemoryError:
            break
        rates[size] = 1 / (clock() - started)
    if not rates:
        raise MemoryError(f"no batch of {sizes} fits the device; try smaller --batches")
    return max(rates, key=rates.__getitem__)


def single_pair(model: nn.Module, size: int, device: torch.device) -> Callable[[], torch.Tensor]:
    """A function that runs the network over one pair, several times."""
    pair = torch.randint(256, (1, 2, size, size, 3), dtype=torch.uint8, device=device)
    inference = inference_of((0.0, 0.0, 0.0), (255.0, 255.0, 255.0), device, 1)

    def run() -> torch.Tensor:
        with torch.inference_mode(), inference.autocast():
            for _ in range(PASSES):
                logits = model(*inference.inputs(pair)).logits
        return logits  # type: ignore[no-any-return]

    return run


def row_of(
    name: str,
    model: nn.Module,
    size: int,
    count: int,
    batch: int,
    tried: list[int],
    rounds: int,
    loop: Timing,
    rate: Timing,
    delay: Timing,
) -> Cost:
    """What was measured of a network, with what can be counted."""
    device, parameters = next(model.parameters()).device, count_parameters(model)
    return Cost(
        network=name,
        variant=variant_of(parts_of(name)[0]),
        parameters=parameters.counted,
        live=parameters.live,
        gmacs=flops_of_pair(model, size, training=False) / 2e9,
        test_loop_s=loop.seconds,
        test_pairs=count,
        pairs_per_second=rate.rate,
        batch=batch,
        tried=tried,
        latency_ms=1000 * delay.seconds / PASSES,
        rounds=rounds,
        spreads={"seconds": loop.spread, "pairs/s": rate.spread, "latency": delay.spread},
        peak_mib=peak_memory(name, model, size, batch),
        precision=best_precision(device),
    )


def peak_memory(name: str, model: nn.Module, size: int, batch: int) -> float | None:
    """MiB that the weights and a pass over one batch take at most; None where no system tells."""
    device = next(model.parameters()).device
    if device.type == "cpu":
        if not is_told():
            return None
        modules = sorted({type(part).__module__ for part in model.modules()})
        return separately(host_memory, name, size, batch, modules)
    own = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    one_pass(model, size, batch)
    return (torch.cuda.max_memory_allocated(device) - before + own) / MEBIBYTE


def host_memory(name: str, size: int, batch: int, modules: Sequence[str]) -> float:
    """MiB that this process takes at most for a network, above what it holds without one.

    Args:
        name: of the network.
        size: of its tiles in pixels.
        batch: pairs at once.
        modules: that define its parts; what they import, as torchvision, is none of its memory.
    """
    for module in modules:
        import_module(module)
    torch.conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3))  # loads what computes
    before = held_now()
    one_pass(build(name, size, torch.device("cpu")), size, batch)
    return (resident("VmHWM") - before) / 1024


def one_pass(model: nn.Module, size: int, batch: int) -> None:
    """Run a network over a batch of black pairs, as users need it."""
    device = next(model.parameters()).device
    pairs = torch.zeros((batch, 2, size, size, 3), dtype=torch.uint8, device=device)
    inference = inference_of((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), device, batch)
    with torch.inference_mode(), inference.autocast():
        model.to(memory_format=torch.channels_last)(*inference.inputs(pairs))


if __name__ == "__main__":
    typer.run(main)
