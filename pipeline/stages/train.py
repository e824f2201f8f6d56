"""Train the network on the shards of the training split; continue where a killed run stopped.

`processes` of params.yaml starts that many on this machine; torchrun starts them on several.
"""

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch
from dvclive.live import Live

from dsfer.data.shards import TileShards
from dsfer.devices import check_gpus, choose_device
from dsfer.distributed import check_share, joined, launched, local_share, rank, wait_for_all
from dsfer.files import atomic_path, naming, sha256_file, write_json
from dsfer.launcher import launch
from dsfer.metrics import finite
from dsfer.signals import stop_on_signals
from dsfer.training import Interrupted, Record, Trained, Trainer
from dsfer.weights import Metadata, save_weights
from pipeline.model import (
    build_inference,
    build_network,
    build_training,
    describe_device,
    effective_retrieval,
    input_of,
    open_shards,
)
from pipeline.network import network_code
from pipeline.params import Settings, current_settings
from pipeline.stages import run
from pipeline.workspace import hold

MACHINE_KEYS = (
    "device", "processes", "compile", "in_memory", "workers", "shards", "cluster", "overlap",
    "figures", "source",
)  # fmt: skip
"""Parameters that a run may be continued with other values of; which pixels `source` and `shards`
lead to, the hash of the split says."""

CODE = (
    "training.py",
    "optimisation.py",
    "averaging.py",
    "distributed.py",
    "losses.py",
    "evaluation.py",
    "metrics.py",
    "data/augmentation.py",
    "data/batches.py",
    "data/transforms.py",
)
"""Modules of `dsfer`, beside its network's, that a run must not be continued with others of."""

BUSY = "wait for it, or end it and start again; the run then goes on where it stopped"
"""What to do where another process, perhaps one left over from a killed pipeline, trains it."""


def main() -> None:
    """Run the stage."""
    settings = current_settings()
    if settings.params.processes > 1 and not launched():
        launch_processes(settings)
        return
    device = choose_device(settings.params.device)
    with joined(device):
        train_from_shards(settings, device)


def launch_processes(settings: Settings) -> None:
    """Run this stage as several processes, after a look at what none of them could mend."""
    processes = settings.params.processes
    check_share(settings.recipe.batch_size, processes)
    if choose_device(settings.params.device).type == "cuda":
        check_gpus(processes)
    launch([sys.executable, "-m", "pipeline.stages.train"], processes)


def train_from_shards(settings: Settings, device: torch.device) -> None:
    """Train one run to its end, and forget its state; the processes of a machine share the hashing.

    Raises:
        WorkspaceError: another process trains the same run, on the same state.
    """
    train, val = (open_shards(settings, split, verify=local_share()) for split in ("train", "val"))
    wait_for_all()  # nobody reads a shard before it was compared with its hash
    fingerprint = run_fingerprint(settings, train, val)
    resume = resume_folder(fingerprint)
    with hold(resume, resume, "a training", BUSY) if rank() == 0 else nullcontext():
        train_network(settings, train, val, device, fingerprint, resume)
        if rank() == 0:
            shutil.rmtree(resume)


def train_network(
    settings: Settings,
    train: TileShards,
    val: TileShards,
    device: torch.device,
    fingerprint: str,
    resume: Path,
) -> None:
    """Train from where the state in `resume` left off; rank 0 writes the outputs."""
    out = settings.model_folder / "training"
    trainer = Trainer(
        build_network(settings),
        train,
        val,
        build_training(settings, train, device),
        build_inference(settings, input_of(settings, train), device),
        checkpoint=resume / "last.pt",
        fingerprint=fingerprint,
    )
    stop = stop_on_signals()
    try:
        if rank() > 0:
            trainer.fit(stop=stop)
            return
        # DVC versions the run itself; DVCLive only writes its metrics and plots.
        with (
            naming(out / "live"),
            Live(str(out / "live"), save_dvc_exp=False, dvcyaml=None, report=None) as live,
        ):
            trained = trainer.fit(report=live_reporter(live), stop=stop)
            for name, value in finite(trained.best).items():
                if value is not None:
                    live.summary[f"best/{name.removeprefix('val/')}"] = value
    except Interrupted as reason:
        sys.exit(f"interrupted: {reason}")
    write_outputs(settings, train, trained, trainer, out)


def run_fingerprint(settings: Settings, *splits: TileShards) -> str:
    """Name of a run: 16 hex digits of its parameters, its data, and the code that trains.

    A checkpoint is continued by the very run that wrote it and by no other.
    """
    values = {k: v for k, v in settings.resolved().items() if k not in MACHINE_KEYS}
    code = Path(__file__).parents[2] / "dsfer"
    start = settings.recipe.pretrained
    parts = [
        json.dumps(values, sort_keys=True),
        "" if start in ("none", "redrawn", "imagenet") else sha256_file(Path(start)),
        *(
            json.dumps([tiles.split_hash, tiles.ids, tiles.mean, tiles.std, tiles.class_frequency])
            for tiles in splits
        ),
        *((code / name).read_text(encoding="utf-8") for name in CODE),
        json.dumps(network_code(settings.params.model), sort_keys=True),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def resume_folder(fingerprint: str) -> Path:
    """Where the run keeps its state: outside DVC's outputs, which DVC deletes before a stage.

    Experiments run in a temporary copy of the project; DVC_ROOT then names the real one.
    """
    folder = Path(os.environ.get("DVC_ROOT", ".")) / ".dvc" / "tmp" / "resume" / fingerprint
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def live_reporter(live: Live) -> Callable[[Record], None]:
    """Log every record of the training to DVCLive, at its step."""

    def report(record: Record) -> None:
        live.step = int(record["step"])
        for name, value in record.items():
            if name != "step" and math.isfinite(value):  # DVC would compare NaN as text
                live.log_metric(name, value)
        live.make_summary()  # type: ignore[no-untyped-call] # metrics.json is always current

    return report


def write_outputs(
    settings: Settings, train: TileShards, trained: Trained, trainer: Trainer, out: Path
) -> None:
    """Write the bundle of weights and record, history and resolved parameters."""
    inference = trainer.inference
    metadata = Metadata(
        model=settings.params.model,
        options=settings.model_options,
        mean=tuple(inference.mean.tolist()),
        std=tuple(inference.std.tolist()),
        per_image=inference.per_image,
        about={
            "dataset": settings.params.dataset,
            "variant": settings.variant,
            "encoder": settings.encoder,
            "split_hash": train.split_hash,
            "recipe": settings.recipe_name,
            "seed": settings.params.seed,
            "iterations": settings.recipe.iterations,
            "trained_on": describe_device(inference.device),
            "best": finite(trained.best),
        },
        tile_size=train.tile_size,
        bands=settings.data.bands,
        threshold=trained.best["val/threshold"],
        licence=settings.data.entry.licence,
    )
    trainer.model.load_state_dict(trained.states)
    save_weights(trainer.model, out / "weights.safetensors", metadata)
    with atomic_path(out / "history.csv") as temporary:
        pd.DataFrame(trained.history).to_csv(temporary, index=False)
    effective = {
        "device": describe_device(inference.device),
        "precision": inference.precision,
        "compile": trainer.training.compile,
        **effective_retrieval(trainer.model),
    }
    resolved = settings.resolved()
    sources = {key: settings.sources.get(key, "params.yaml") for key in resolved}
    sources |= {key: "this run" for key, value in effective.items() if resolved[key] != value}
    write_json(out / "settings.json", {"values": resolved | effective, "sources": sources})


if __name__ == "__main__":
    run(main)
