"""Training: forward, loss, step; validate now and then; keep the best; continue after a kill.

One process or several (`dsfer.distributed`) run the same loop: each has its share of every batch,
and all hold the same weights. Whatever is random in a step is a function of seed, step and rank, so
that no generator has a state to keep.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dsfer.averaging import AveragedNetwork
from dsfer.checkpoint import load_checkpoint, save_checkpoint
from dsfer.data.augmentation import Augmentation, augment
from dsfer.data.batches import Batch, BatchSource, Sampling, sample_order
from dsfer.data.shards import TileShards
from dsfer.devices import training_layout
from dsfer.distributed import (
    Agreement,
    check_same,
    rank,
    replicated,
    share_of,
    sum_over_ranks,
    wait_for_all,
    world_size,
)
from dsfer.errors import CheckpointError, LeakageError, TrainingError, first_line
from dsfer.evaluation import Inference, predict_split
from dsfer.losses import ChangeLoss
from dsfer.memory import enough_memory
from dsfer.metrics import (
    BINS,
    best_threshold,
    change_metrics,
    confusion_counts,
    predicted_change,
    probability_histogram,
    total_counts,
)
from dsfer.optimisation import Optimiser, Schedule, build_optimiser, rate_factor

log = logging.getLogger(__name__)

Record = dict[str, float]

RECORDS_PER_VALIDATION = 5
"""How often the running loss is read from the device between two validations."""

SECONDS_BETWEEN_SAVES = 60

GO_ON, SAVE, STOP = range(3)
"""What the ranks agree on after every step; the largest that one of them wants is done."""


@dataclass(frozen=True)
class Training:
    """How to train; see `pipeline/recipes.py` for where the values come from.

    Attributes:
        loss: loss of a batch.
        lr: peak learning rate.
        weight_decay: factor on the weights, see `dsfer.optimisation`.
        schedule: shape of the learning rate over the steps.
        schedule_iterations: step at which the schedule ends.
        warmup: steps of linear rise before the schedule's full rate.
        iterations: steps to train.
        batch_size: pairs per step, over all processes.
        sampling: order of the samples.
        augmentation: what is done to a batch, in this order, see `dsfer.data.augmentation`.
        ema: decay of the averaged weights, 0 for none.
        validate_every: steps between validations.
        seed: of sample order and augmentation.
        compile: run the network through torch.compile.
        in_memory: hold the tiles in memory, stream them, or None to decide by what a GPU has free.
        workers: threads that read ahead when streaming, for each process that trains.
        optimiser: what moves the weights.
        momentum: of `sgd`, or first beta of Adam.
        hold: steps until the schedule begins to fall.
    """

    loss: ChangeLoss
    lr: float
    weight_decay: float
    schedule: Schedule
    schedule_iterations: int
    warmup: int
    iterations: int
    batch_size: int
    sampling: Sampling
    augmentation: tuple[Augmentation, ...]
    ema: float
    validate_every: int
    seed: int
    compile: bool = False
    in_memory: bool | None = None
    workers: int = 2
    optimiser: Optimiser = "adam"
    momentum: float = 0.9
    hold: int = 0


@dataclass(frozen=True)
class Trained:
    """What training leaves.

    Attributes:
        states: state dict of the best network on the validation split, on the CPU.
        best: its record: step, val/F1, ..., and as val/threshold the probability above which its
            F1 is highest, val/F1_at_threshold.
        history: all records in order.
    """

    states: dict[str, Tensor]
    best: Record
    history: list[Record]


class Interrupted(Exception):  # noqa: N818 - no error: the run was asked to stop, and can go on
    """Training was asked to stop and has saved its state."""


def learning_rate(step: int, training: Training) -> float:
    """Learning rate of a step, a pure function so that there is no scheduler state to restore."""
    return training.lr * rate_factor(
        training.schedule,
        step,
        training.schedule_iterations,
        warmup=training.warmup,
        hold=training.hold,
    )


def samples_of_rank(order: np.ndarray, share: int, rank: int, ranks: int) -> np.ndarray:
    """The part of an order of samples that one of several ranks takes.

    Args:
        order: (batches * ranks * share,) samples, one batch of all ranks after the other.
        share: samples of a batch that each rank takes.
        rank: which of them.
        ranks: their number.

    Returns:
        (batches * share,) samples; in every batch the ranks' parts, one after the other, are the
        batch that one process would take.
    """
    samples: np.ndarray = order.reshape(-1, ranks, share)[:, rank].ravel()
    return samples


def seed_step(seed: int, step: int) -> None:
    """Seed what a network draws in a step, as dropout does, for each rank in its own way."""
    (drawn,) = np.random.SeedSequence([seed, step, rank()]).generate_state(1, np.uint64)
    torch.manual_seed(int(drawn))


@contextmanager
def _named_compiler() -> Iterator[None]:
    """Say that it is torch.compile which fails: it compiles when a step first needs it."""
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import

        if not isinstance(error, TorchDynamoException):
            raise
        raise TrainingError(
            f"torch.compile failed: {first_line(error)}",
            where="compile",
            mend="set compile: false, or install a C compiler if that is what is missing",
        ) from error


class Trainer:
    """One run: the network, its optimiser, its data, and where it saves its state.

    Where the checkpoint exists already, the run is in the state that it holds.

    Args:
        model: the network, on the device of `inference`.
        train: training split.
        val: validation split, which chooses the weights that are kept.
        training: how to train.
        inference: device, precision and normalisation, also of validation.
        checkpoint: file that holds the state of the run.
        fingerprint: says which run it is; a checkpoint of another run is refused.

    Raises:
        LeakageError: a split other than train and val was given.
        ConfigError: the batch does not divide by the number of processes, or they were started
            for different runs.
        CheckpointError: the checkpoint is damaged or of another run.
        DeviceMemoryError: the GPU has too little memory.
    """

    def __init__(
        self,
        model: nn.Module,
        train: TileShards,
        val: TileShards,
        training: Training,
        inference: Inference,
        *,
        checkpoint: Path,
        fingerprint: str,
    ):
        if (train.split, val.split) != ("train", "val"):
            raise LeakageError(
                f"training was given the splits {train.split!r} and {val.split!r}",
                mend="give it 'train' and 'val'; the test split is for evaluation only",
            )
        if train.split_hash != val.split_hash:
            raise LeakageError(
                f"train is of split {train.split_hash} and val of split {val.split_hash}",
                where=val.folder,
                mend="run the shard stage again",
            )
        self.training, self.inference = training, inference
        self.checkpoint, self.fingerprint = checkpoint, fingerprint
        self.share = share_of(training.batch_size)
        check_same(f"run {fingerprint} in {inference.precision}")
        with enough_memory(training.batch_size):
            self._build(model, train, val)
            self._restore()

    def _build(self, model: nn.Module, train: TileShards, val: TileShards) -> None:
        """The state of a run at its start, on the device."""
        training, device = self.training, self.inference.device
        self.layout = training_layout(device)
        self.model = model.to(device).to(memory_format=self.layout)
        forward = replicated(self.model)
        self.forward: nn.Module = (
            torch.compile(forward) if training.compile else forward  # type: ignore[assignment]
        )
        self.averaged = AveragedNetwork(self.model, training.ema) if training.ema else None
        self.optimiser = build_optimiser(
            training.optimiser,
            self.model.parameters(),
            lr=training.lr,
            weight_decay=training.weight_decay,
            momentum=training.momentum,
        )
        self.train_source, self.val_source = (
            BatchSource(tiles, device, in_memory=training.in_memory, workers=training.workers)
            for tiles in (train, val)
        )
        self.step = 0
        # Loss terms (total, change map, deep maps) added up since the last record, on the device.
        self.running = torch.zeros(3, device=device)
        self.since_record = 0
        self.history: list[Record] = []
        self.best: Record = {}
        self.best_states: dict[str, Tensor] = {}
        self.agreement = Agreement()

    def fit(
        self,
        *,
        report: Callable[[Record], None] = lambda _record: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Trained:
        """Train to the end, from where the checkpoint left off.

        Args:
            report: called with every record, those from before a restart included.
            stop: asked after every step; True in any process saves the state and raises
                Interrupted in all of them, after the same step.

        Raises:
            TrainingError: the loss is not finite, or torch.compile fails. The last good state stays
                on disk.
            DeviceMemoryError: the GPU has too little memory.
            Interrupted: `stop` said so.
        """
        for record in self.history:
            report(record)
        with enough_memory(self.training.batch_size):
            self._run(report, stop)
        return Trained(self.best_states, self.best, self.history)

    def _run(self, report: Callable[[Record], None], stop: Callable[[], bool]) -> None:
        saved = time.monotonic()
        progress = tqdm(
            total=self.training.iterations,
            initial=self.step,
            desc="training",
            unit="step",
            disable=rank() > 0,
        )
        with progress:
            for batch in self._batches():
                with _named_compiler():
                    self.running += self._train_step(*batch)
                self.step += 1
                self.since_record += 1
                progress.update()
                if self._record_due() or self._validation_due():
                    record = self._record()
                    report(record)
                    progress.set_postfix(
                        loss=f"{record['train/loss']:.3f}", best_F1=f"{self.best_f1:.2f}"
                    )
                wanted = STOP if stop() else GO_ON
                if rank() == 0 and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    wanted, saved = max(wanted, SAVE), time.monotonic()
                agreed = self.agreement.reach(wanted)
                if agreed or self._validation_due():
                    self._save()
                    saved = time.monotonic()
                if agreed == STOP:
                    raise Interrupted(f"stopped at step {self.step}; the next run goes on there")

    @property
    def best_f1(self) -> float:
        """Best change-class F1 on the validation split so far, in percent; 0 before the first."""
        return self.best.get("val/F1", 0.0)

    def _record_due(self) -> bool:
        return self.step % max(self.training.validate_every // RECORDS_PER_VALIDATION, 1) == 0

    def _validation_due(self) -> bool:
        last = self.step == self.training.iterations
        return last or self.step % self.training.validate_every == 0

    def _batches(self) -> Iterator[Batch]:
        """This rank's share of the batches of the steps that are left."""
        size = self.training.batch_size
        order = sample_order(
            len(self.train_source.tiles),
            self.training.iterations * size,
            seed=self.training.seed,
            sampling=self.training.sampling,
        )
        mine = samples_of_rank(order[self.step * size :], self.share, rank(), world_size())
        return self.train_source.batches(mine, self.share)

    def _train_step(self, pairs: Tensor, labels: Tensor) -> Tensor:
        """One step of the optimiser; returns the loss terms (3,) on the device."""
        first = rank() * self.share
        pairs, labels = augment(
            pairs,
            labels,
            self.training.augmentation,
            count=self.training.batch_size,
            share=slice(first, first + self.share),
            seed=self.training.seed,
            step=self.step,
        )
        seed_step(self.training.seed, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.training)
        self.model.train()
        images = self.inference.inputs(pairs)
        # Convolutions follow the layout of what they are given.
        t1, t2 = (image.contiguous(memory_format=self.layout) for image in images)
        with self.inference.autocast():
            output = self.forward(t1, t2)
        terms = self.training.loss(output, labels)
        self.optimiser.zero_grad(set_to_none=True)
        terms.total.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        if self.averaged is not None:
            self.averaged.update(self.step)
        return torch.stack(terms).detach()

    def _record(self) -> Record:
        """Close the running mean of the loss, validate if it is time, and note both."""
        total, change, deep = self._finite_losses()
        record = {
            "step": float(self.step),
            "train/loss": total,
            "train/change": change,
            "train/deep": deep,
            "lr": learning_rate(self.step - 1, self.training),
        }
        if self._validation_due():
            record |= self._validate()
        self.history.append(record)
        self.running.zero_()
        self.since_record = 0
        return record

    def _finite_losses(self) -> list[float]:
        """Mean loss terms since the last record; only here and in validation is the device read."""
        losses: list[float] = (self._running() / max(self.since_record, 1)).tolist()
        if not math.isfinite(losses[0]):
            raise self._lost(f"the loss is {losses[0]}")
        return losses

    def _running(self) -> Tensor:
        """Loss terms since the last record, added up over steps, of the batches of all ranks."""
        return sum_over_ranks(self.running) / world_size()

    def _lost(self, problem: str) -> TrainingError:
        return TrainingError(
            f"{problem} at step {self.step}",
            where="lr",
            mend=f"try a smaller learning rate than {self.training.lr}, or precision: float32; "
            "the last good state is kept",
        )

    def _validate(self) -> Record:
        """Metrics of the validation split, in percent; keeps the weights if F1 is the best.

        Every rank counts tiles of its own, so that each tile is counted once.
        """
        model = self.model if self.averaged is None else self.averaged.module
        mine = np.arange(rank(), len(self.val_source.tiles), world_size())
        counts = torch.zeros((1, 4), dtype=torch.int64, device=self.inference.device)
        histogram = torch.zeros((2, BINS), dtype=torch.int64, device=self.inference.device)
        for output, labels in predict_split(model, self.val_source, self.inference, mine):
            counts += confusion_counts(predicted_change(output.logits), labels).sum(dim=0)
            histogram += probability_histogram(output.logits, labels)
        metrics = change_metrics(total_counts(sum_over_ranks(counts)))
        # F1 is undefined while nothing is predicted on a split without change: that is no best.
        f1 = metrics["F1"] if math.isfinite(metrics["F1"]) else 0.0
        record = {f"val/{name}": metrics[name] for name in ("P", "R", "IoU")} | {"val/F1": f1}
        threshold, f1_there = best_threshold(sum_over_ranks(histogram).cpu().numpy())
        if not self.best or f1 > self.best["val/F1"]:
            self.best = {"step": float(self.step), **record}
            self.best |= {"val/threshold": threshold, "val/F1_at_threshold": f1_there}
            self.best_states = {
                key: value.detach().cpu().clone() for key, value in model.state_dict().items()
            }
        return record

    def _save(self) -> None:
        """Rank 0 writes the state, which all ranks share; none goes on before it is written."""
        self._finite_losses()
        norm = nn.utils.get_total_norm(list(self.model.parameters())).item()
        if not math.isfinite(norm):  # a state that is lost must not replace a good one
            raise self._lost(f"the norm of the weights is {norm}")
        state = {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "model": self.model.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "running": self._running(),
            "since_record": self.since_record,
            "history": self.history,
            "best": self.best,
            "best_states": self.best_states,
        }
        if rank() == 0:
            save_checkpoint(self.checkpoint, state)
        wait_for_all()

    def _restore(self) -> None:
        state = load_checkpoint(self.checkpoint, self.fingerprint)
        if state is None:
            return
        try:
            self.step = state["step"]
            self.model.load_state_dict(state["model"])
            if self.averaged is not None:
                self.averaged.module.load_state_dict(state["averaged"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.running.copy_(state["running"])
            self.since_record = state["since_record"]
            self.history, self.best = state["history"], state["best"]
            self.best_states = state["best_states"]
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"does not hold the state of this network and optimiser ({first_line(error)})",
                where=self.checkpoint,
                mend="delete it to start this run anew",
            ) from error
