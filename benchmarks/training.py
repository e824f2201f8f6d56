"""The training step: ours against a straightforward one, and what each change brings.

    python -m benchmarks.training [--batch 4] [--size 256]

Every row adds one change to the rows before it, those in brackets excepted; the last one is
`dsfer.training.Trainer` itself, as the pipeline runs it on this device. The paper's whole schedule
is computed from it at the end.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import dsfer
from benchmarks import plain
from benchmarks.arithmetic import best_rate, flops_of_pair
from benchmarks.demo import DemoTiles, demo_tiles
from benchmarks.side_by_side import Report, clock, compare
from dsfer.data.batches import BatchSource, sample_order
from dsfer.devices import training_layout
from dsfer.evaluation import Inference, Precision, count_tiles, has_bf16
from dsfer.losses import ChangeLoss
from dsfer.models.dsfer_net import DsferNet
from dsfer.training import Trainer, Training

ITERATIONS, BATCH, SIZE, VALIDATIONS, VALIDATION_TILES = 30_000, 32, 256, 60, 1024
"""The paper's schedule on LEVIR-CD: a validation every 500 iterations."""

LOSS = ChangeLoss(0.1, (1.0, 1.0))


@dataclass(frozen=True)
class Way:
    """A training step; the defaults are the straightforward one."""

    png: bool = True
    apart: bool = True
    channels_last: bool = False
    fused: bool = False
    bf16: bool = False
    compiled: bool = False
    tf32: bool = False


def ways_of(device: torch.device, *, compiled: bool) -> dict[str, Way]:
    """Ways by name, each with one change more than the one before, but for those in brackets."""
    gpu = device.type == "cuda"
    ways = {"straightforward: PNG, float32, one date after the other": (way := Way())}
    if gpu:
        ways["(in TF32, torch's default)"] = replace(way, tf32=True)
    ways["+ tiles as uint8 from shards"] = way = replace(way, png=False)
    ways["+ both dates as one batch"] = way = replace(way, apart=False)
    last = replace(way, channels_last=True)
    if training_layout(device) is torch.channels_last:
        ways["+ channels last"] = way = last
    else:
        ways["(channels last)"] = last
    ways["+ fused Adam"] = way = replace(way, fused=True)
    if has_bf16(device):
        ways["+ bf16"] = way = replace(way, bf16=True)
    if compiled:
        ways["+ torch.compile"] = way = replace(way, compiled=True)
    return ways


def main(
    batch: int = BATCH if torch.cuda.is_available() else 4,
    size: int = SIZE,
    steps: Annotated[int, typer.Option(help="steps that are timed at once")] = (
        20 if torch.cuda.is_available() else 1
    ),
    rounds: int = 5,
    workers: int = 2,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    compiled: bool = torch.cuda.is_available(),
    json: Annotated[Path | None, typer.Option(help="also write the numbers to this file")] = None,
) -> None:
    """Render tiles, then time training steps."""
    where = torch.device(device)
    report = Report(where, json)
    with demo_tiles(max(64, batch), size) as data, tempfile.TemporaryDirectory() as folder:
        samples = batch * steps * (rounds + 2)
        ways = ways_of(where, compiled=compiled)
        timed: dict[str, Callable[[], Tensor]] = {
            name: repeat(stepper(way, data, where, batch, size, samples, workers), steps)
            for name, way in ways.items()
        }
        torch.manual_seed(0)
        network = dsfer.create_model("dsfer-net", image_size=size)
        trainer = build_trainer(
            network, LOSS, data, where, batch, samples, Path(folder), compiled=compiled
        )
        batches = trainer._batches()
        timed["Trainer: + symmetries, averaged weights"] = repeat(
            lambda: trainer._train_step(*next(batches)), steps
        )
        losses = [way().ravel()[0].item() for way in timed.values()]
        check_alike(dict(zip(ways, losses, strict=False)))
        timings = compare(timed, items=batch * steps, rounds=rounds)
        flops = flops_of_pair(dsfer.create_model("dsfer-net", image_size=size), size, training=True)
        in_bf16 = [way.bf16 for way in ways.values()] + [has_bf16(where)]
        kinds = [torch.bfloat16 if short else torch.float32 for short in in_bf16]
        # None in what no way computes in: a CPU that lacks bf16 takes minutes for one product.
        rates = {kind: best_rate(where, kind) for kind in dict.fromkeys(kinds)}
        report.add(
            f"training, {batch} pairs of {size} px a step",
            timings,
            "pairs",
            (
                "the best FLOP/s seen",
                [rates[kind] / flops for kind in kinds],
            ),
        )
        report.note(
            f"A training step is {flops / 1e9:.1f} GFLOP a pair. The best seen in one operation: "
            + ", ".join(f"{r / 1e12:.3g} TFLOP/s in {str(k)[6:]}" for k, r in rates.items())
            + "."
        )
        if size == SIZE:
            note_schedule(report, trainer, timings[-1].rate)


def stepper(
    way: Way,
    data: DemoTiles,
    device: torch.device,
    batch: int,
    size: int,
    samples: int,
    workers: int,
) -> Callable[[], Tensor]:
    """A function that trains one step and returns the loss."""
    torch.manual_seed(0)
    network = plain.PlainDsferNet if way.apart else DsferNet
    model: nn.Module = network(image_size=size).to(device)
    if way.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(
        model.parameters(), lr=1e-5, weight_decay=1e-5, fused=way.fused or None
    )
    forward = torch.compile(model) if way.compiled else model
    batches = batches_of(way, data, device, batch, samples, workers)

    def step() -> Tensor:
        torch.backends.cudnn.allow_tf32 = way.tf32
        t1, t2, labels = next(batches)
        autocast = torch.autocast(device.type, torch.bfloat16) if way.bf16 else nullcontext()
        with autocast:
            output = forward(t1, t2)
        loss = LOSS(output, labels).total
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return loss.detach()

    return step


def batches_of(
    way: Way, data: DemoTiles, device: torch.device, batch: int, samples: int, workers: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Normalised t1 and t2, and labels, on the device."""
    tiles = data.split("train")
    order = sample_order(len(tiles), samples, seed=0, sampling="epochs")
    if way.png:
        png = plain.PngTiles(data.png, tiles.mean, tiles.std)
        loader = DataLoader(png, batch, sampler=order.tolist(), num_workers=workers)
        for t1, t2, label in loader:
            yield t1.to(device), t2.to(device), label.to(device)
        return
    mean, std = (torch.tensor(values, device=device) for values in (tiles.mean, tiles.std))
    inference = Inference(mean, std)
    for pairs, label in BatchSource(tiles, device, workers=workers).batches(order, batch):
        t1, t2 = inference.inputs(pairs)
        if not way.channels_last:
            t1, t2 = t1.contiguous(), t2.contiguous()
        yield t1, t2, label


def build_trainer(
    network: nn.Module,
    loss: ChangeLoss,
    data: DemoTiles,
    device: torch.device,
    batch: int,
    samples: int,
    folder: Path,
    *,
    compiled: bool,
) -> Trainer:
    """The real one, with the recipe `modern`'s symmetries and averaged weights."""
    train, val = data.split("train"), data.split("val")
    mean, std = (torch.tensor(values, device=device) for values in (train.mean, train.std))
    precision: Precision = "bf16" if has_bf16(device) else "float32"
    training = Training(
        loss=loss,
        lr=1e-5,
        weight_decay=1e-5,
        schedule="cosine",
        schedule_iterations=ITERATIONS,
        warmup=0,
        iterations=-(-samples // batch),
        batch_size=batch,
        sampling="epochs",
        augmentation=("symmetries",),
        ema=0.999,
        validate_every=ITERATIONS,
        seed=0,
        compile=compiled,
    )
    return Trainer(
        network,
        train,
        val,
        training,
        Inference(mean, std, precision, batch_size=2 * batch),
        checkpoint=folder / "last.pt",
        fingerprint="benchmark",
    )


def repeat(step: Callable[[], Tensor], times: int) -> Callable[[], Tensor]:
    """Several steps as one call; the device is waited for only at its end."""

    def call() -> Tensor:
        for _ in range(times):
            loss = step()
        return loss

    return call


def check_alike(losses: dict[str, float]) -> None:
    """All ways start from the same weights and batches: after as many steps, losses agree."""
    first = next(iter(losses.values()))
    for name, loss in losses.items():
        if abs(loss - first) > 0.02 * abs(first):
            raise SystemExit(f"{name}: loss {loss:.4f}, the straightforward one has {first:.4f}")


def note_schedule(report: Report, trainer: Trainer, rate: float) -> None:
    """Time one validation, and add up the paper's schedule."""
    source, batch = trainer.val_source, trainer.inference.batch_size
    count = VALIDATION_TILES if source.device.type == "cuda" else batch
    for tiles in (np.arange(batch), np.arange(count)):  # the first warms up
        started = clock()
        count_tiles(trainer.model, source, trainer.inference, tiles % len(source.tiles))
    validated = count / (clock() - started)
    training, validation = (
        ITERATIONS * BATCH / rate,
        VALIDATIONS * VALIDATION_TILES / validated,
    )
    report.note(
        f"The paper's schedule, {ITERATIONS:,} x {BATCH} pairs at {rate:,.4g} pairs/s and "
        f"{VALIDATIONS} validations of {VALIDATION_TILES:,} at {validated:,.4g} pairs/s: "
        f"{(training + validation) / 60:,.1f} minutes, computed."
    )


if __name__ == "__main__":
    typer.run(main)
