"""Processes that train together, forked from a server that has imported torch once.

`python -m tests.ranks FOLDER ITERATIONS` is a rank that torchrun or `dsfer.launcher` starts.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch._dynamo  # which the first optimiser imports otherwise, in every rank
from torch.distributed import TCPStore

import dsfer
from dsfer.console import REPORT, run
from dsfer.distributed import joined
from dsfer.evaluation import Inference
from dsfer.signals import stop_on_signals
from dsfer.training import Interrupted, Trainer
from tests.test_training import TRAINING
from tests.tiles import MemoryTiles

SECONDS = 100
"""How long processes may take before a test takes them for stuck."""


def build(
    folder: Path, *, val: int = 7, fingerprint: str = "run", model: torch.nn.Module | None = None,
    **changes: object,
) -> Trainer:  # fmt: skip
    """A small training whose ranks have unlike shares of changed, unchanged and ignored pixels.

    Its optimiser has no square roots of tiny numbers, which make rounding visible.
    """
    torch.manual_seed(0)
    train = MemoryTiles(10, 32, "train")
    train.labels[::3, :20] = 255
    train.labels[1::4] = 0
    return Trainer(
        model or dsfer.create_model("dsfer-net", width=0.125, image_size=32, hopfield_dim=16),
        train,
        MemoryTiles(val, 32, "val", seed=1),
        dataclasses.replace(TRAINING, **{"optimiser": "sgd", "lr": 0.03} | changes),
        Inference(torch.full((3,), 100.0), torch.full((3,), 50.0), batch_size=4),
        checkpoint=folder / "last.pt",
        fingerprint=fingerprint,
    )


def together(folder: Path, work: Callable[..., object], *arguments: object, ranks: int = 2) -> list:
    """Run `work` as several ranks, as a launcher would.

    Returns:
        What each rank returned, or its exit status where it failed. What it reported then lies in
        `folder`, where `dsfer.launcher` looks for it.
    """
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    processes = [
        start(_rank, folder / str(rank), store.port, rank, ranks, work, arguments)
        for rank in range(ranks)
    ]
    for process in processes:
        process.join(SECONDS)
    stuck = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()
    assert not stuck, f"ranks {stuck} of {ranks} do not end"
    return [
        process.exitcode or torch.load(folder / str(rank) / "result.pt")
        for rank, process in enumerate(processes)
    ]


def start(work: Callable[..., object], *arguments: object) -> BaseProcess:
    """Start a function of an importable module in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=work, args=arguments)
    process.start()
    return process


def _rank(
    folder: Path, port: int, rank: int, ranks: int, work: Callable[..., object], arguments: tuple
) -> None:
    folder.mkdir(parents=True)
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        "RANK": str(rank), "LOCAL_RANK": str(rank), REPORT: str(folder / "error.json"),
        "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
    }  # fmt: skip

    def main() -> None:
        with joined(torch.device("cpu")):
            result = work(*arguments)
        torch.save(result, folder / "result.pt")

    with log_to(folder / "log"):
        run(main)


@contextlib.contextmanager
def log_to(file: Path) -> Iterator[None]:
    """Write what this process and its children print to a file."""
    with file.open("ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        yield


def main() -> None:
    """Train as one of several, until the end or a signal."""
    folder, iterations, in_memory = Path(sys.argv[1]), int(sys.argv[2]), "stream" not in sys.argv
    with joined(torch.device("cpu")):
        trainer = build(folder, iterations=iterations, in_memory=in_memory, workers=1)
        try:
            trainer.fit(stop=stop_on_signals())
        except Interrupted as reason:
            sys.exit(f"interrupted: {reason}")


if __name__ == "__main__":
    run(main)
