"""Several processes train as one does, and end together: whatever happens to one of them."""

import json
import math
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.run import main as torchrun

import dsfer
from dsfer import distributed, signals
from dsfer.checkpoint import load_checkpoint
from dsfer.console import run
from dsfer.data.batches import sample_order
from dsfer.devices import check_gpus, choose_device
from dsfer.distributed import check_share, rank
from dsfer.errors import ConfigError, DataError, TrainingError
from dsfer.launcher import _first_report, launch
from dsfer.losses import ChangeLoss
from dsfer.metrics import COUNTS, total_counts
from dsfer.training import Interrupted, Trainer, samples_of_rank
from tests.ranks import SECONDS, build, log_to, start, together
from tests.test_training import Forgetful
from tests.waiting import wait_for

pytestmark = pytest.mark.xdist_group("distributed")  # one server of processes, one set of runs

OTHER = {
    "loss": ChangeLoss(0.5, (1.2, 5.0), "cross-entropy", "released-dice"),
    "sampling": "repeated", "augmentation": (), "ema": 0.0, "schedule": "linear",
    "optimiser": "adam", "lr": 2e-3, "iterations": 5, "validate_every": 5,
}  # fmt: skip
"""What `build` does not do by itself."""

VALIDATION = (7, 4, 1)
"""Tiles to validate on: shared out unevenly, evenly, and none for a rank."""


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 6), st.integers(1, 8), st.integers(1, 12),
    st.sampled_from(["epochs", "repeated"]), st.integers(0, 99),
)  # fmt: skip
def test_any_number_of_ranks_takes_the_batches_of_one(tiles, ranks, share, batches, sampling, seed):
    order = sample_order(tiles, batches * ranks * share, seed=seed, sampling=sampling)
    parts = [samples_of_rank(order, share, rank, ranks).reshape(-1, share) for rank in range(ranks)]
    together = np.concatenate(parts, axis=1)  # batch after batch, of all ranks
    np.testing.assert_array_equal(together, order.reshape(batches, ranks * share))
    if sampling == "epochs":  # every pass shows every tile once, whoever takes it
        taken = together.ravel()
        for first in range(0, len(taken) - tiles + 1, tiles):
            assert sorted(taken[first : first + tiles]) == list(range(tiles))


def stop_at(step: int):
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == step and rank() in (0, 1)

    return stop


def stopped(trainer: Trainer, step: int) -> str:
    """Train until one process, the last, wants to stop at a step; the reason that is given."""
    stop = stop_at(step) if rank() == torch.distributed.get_world_size() - 1 else lambda: False
    with pytest.raises(Interrupted) as reason:
        trainer.fit(stop=stop)
    return str(reason.value)


def finished(trainer: Trainer) -> dict:
    trained = trainer.fit()
    return {"best": trained.states, "last": trainer.model.state_dict(), "history": trained.history}


def counts(folder: Path, val: int) -> dict[str, float]:
    """Confusion counts of the validation split, as `Trainer` makes them of an untrained network."""
    found = []

    def seen(counts: torch.Tensor) -> dict[str, float]:
        found.append(total_counts(counts))
        return found[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsfer.training.total_counts", seen)
        build(folder, val=val, ema=0.0)._validate()
    return found[0]


def train_in_several_ways(folder: Path) -> dict:
    """What two ranks do in one launch."""
    if rank() == 1:
        dsfer.training.save_checkpoint = None  # one rank writes
    return {
        "counts": [counts(folder, val) for val in VALIDATION],
        "whole": finished(build(folder / "whole")),
        "other": finished(build(folder / "other", **OTHER)),
        "one to two": finished(build(folder / "one to two")),
        "stopped": stopped(build(folder / "two to one"), 7),
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same trainings by one process and by two; some of them change over at step 7 or 8."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.raises(Interrupted):
        build(folder / "one to two").fit(stop=stop_at(7))
    first, second = together(folder / "ranks", train_in_several_ways, folder)
    one = {
        "counts": [counts(folder, val) for val in VALIDATION],
        "whole": finished(build(folder / "one")),
        "other": finished(build(folder / "other one", **OTHER)),
        "two to one": finished(build(folder / "two to one")),
    }
    return {"one": one, "first": first, "second": second, "folder": folder}


def assert_alike(found: dict, expected: dict) -> None:
    """Weights and records are those of the other run within what float32 rounding explains."""
    for which in ("last", "best"):
        torch.testing.assert_close(found[which], expected[which], rtol=1e-4, atol=1e-5)
    assert_same_losses(found["history"], expected["history"])


def assert_same_losses(found: list[dict], expected: list[dict]) -> None:
    names = ("step", "lr", "train/loss", "train/change", "train/deep")
    assert len(found) == len(expected)
    for record, other in zip(found, expected, strict=True):
        assert [record[name] for name in names] == pytest.approx(
            [other[name] for name in names], rel=1e-5
        )
        assert record.keys() == other.keys()
        # A pixel at the border of the classes may fall to either side.
        assert record.get("val/F1") == pytest.approx(other.get("val/F1"), abs=0.2)


def test_two_processes_train_as_one_does(runs):
    assert_alike(runs["first"]["whole"], runs["one"]["whole"])
    # Adam divides by the root of what is rounding alone, where a weight has no gradient.
    assert_same_losses(runs["first"]["other"]["history"], runs["one"]["other"]["history"])


@pytest.mark.parametrize("which", ["whole", "other", "one to two"])
def test_both_processes_hold_the_same_weights(runs, which):
    first, second = runs["first"][which], runs["second"][which]
    for states in ("last", "best"):
        assert all(torch.equal(first[states][key], second[states][key]) for key in first[states])
    assert json.dumps(first["history"]) == json.dumps(second["history"])


def test_each_tile_is_counted_once(runs):
    assert runs["first"]["counts"] == runs["second"]["counts"] == runs["one"]["counts"]
    for val, found in zip(VALIDATION, runs["first"]["counts"], strict=True):
        assert sum(found[name] for name in COUNTS) == val * 32 * 32


def test_a_run_goes_on_with_another_number_of_processes(runs):
    assert_alike(runs["first"]["one to two"], runs["one"]["whole"])
    assert_alike(runs["one"]["two to one"], runs["one"]["whole"])


def test_a_stop_is_heard_by_all_one_step_later(runs):
    assert runs["first"]["stopped"] == runs["second"]["stopped"]
    assert "stopped at step 8;" in runs["first"]["stopped"]


def train_and_die(folder: Path, step: int, dying: tuple[int, ...]) -> None:
    """Train, and be killed before the step is done."""
    trainer = build(folder)
    train_step = trainer._train_step

    def last_step(*batch: torch.Tensor) -> torch.Tensor:
        if trainer.step + 1 == step and rank() in dying:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(*batch)

    trainer._train_step = last_step
    trainer.fit()


def train(folder: Path) -> dict:
    return finished(build(folder))


def test_two_killed_processes_go_on_to_bit_identical_weights(runs, tmp_path):
    died = together(tmp_path / "died", train_and_die, tmp_path, 7, (0, 1))
    assert died == [-signal.SIGKILL] * 2
    assert load_checkpoint(tmp_path / "last.pt", "run")["step"] == 4
    first, _ = together(tmp_path / "again", train, tmp_path)
    for states in ("last", "best"):
        expected = runs["first"]["whole"][states]
        assert all(torch.equal(first[states][key], expected[key]) for key in expected)


def test_a_rank_that_loses_another_says_so_and_ends(tmp_path):
    assert together(tmp_path / "ranks", train_and_die, tmp_path, 6, (1,)) == [1, -signal.SIGKILL]
    said = _first_report(tmp_path / "ranks")
    assert said.startswith("error: lost contact with the other processes (")
    assert "training goes on where it was last saved" in said
    assert load_checkpoint(tmp_path / "last.pt", "run")["step"] == 4


def test_the_cause_that_nccl_tells_last_is_kept(monkeypatch):
    said = (
        "NCCL error in: NCCLUtils.cpp:77, unhandled cuda error, NCCL version 2.26.2\n"
        "ncclUnhandledCudaError: Call to CUDA function failed.\n"
        "Last error:\nCuda failure 2 'out of memory'"
    )
    monkeypatch.setattr(distributed, "launched", lambda: True)
    monkeypatch.setattr(distributed, "_end_with_launcher", lambda: None)
    monkeypatch.setattr(
        torch.distributed, "init_process_group", Mock(side_effect=torch.distributed.DistError(said))
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(TrainingError, match=r"unhandled cuda error, .*: Cuda failure 2 'out of mem"),
        distributed.joined(torch.device("cpu")),
    ):
        pass


def lose_the_loss(folder: Path) -> None:
    trainer = build(folder)
    train_step = trainer._train_step

    def poisoned(*batch: torch.Tensor) -> torch.Tensor:
        losses = train_step(*batch)
        return losses * math.nan if trainer.step == 5 and rank() == 1 else losses

    trainer._train_step = poisoned
    trainer.fit()


def test_a_lost_loss_of_one_rank_ends_all_and_keeps_the_last_good_state(tmp_path):
    assert together(tmp_path / "ranks", lose_the_loss, tmp_path) == [1, 1]
    said = _first_report(tmp_path / "ranks")
    assert "the loss is nan at step 6" in said and "smaller learning rate" in said
    assert load_checkpoint(tmp_path / "last.pt", "run")["step"] == 4


def fail(error: Exception) -> None:
    """What one rank meets and the other waits for."""
    if rank() == 1:
        raise error
    dsfer.distributed.wait_for_all()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DataError("is damaged", where="a.tar", mend="mend it"),
         "error: rank 1: a.tar: is damaged. To mend it: mend it."),
        (torch.OutOfMemoryError("20 GiB"), "error: rank 1: OutOfMemoryError: 20 GiB"),
    ],
)  # fmt: skip
def test_the_rank_that_failed_is_the_one_that_is_heard(tmp_path, error, said):
    assert together(tmp_path, fail, error) == [1, 1]
    assert _first_report(tmp_path) == said
    assert ("Traceback" in (tmp_path / "1/log").read_text()) != isinstance(error, DataError)


def train_out_of_memory(folder: Path) -> None:
    trainer = build(folder)
    if rank() == 1:

        def too_much(*_batch: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

        trainer._train_step = too_much
    trainer.fit()


def test_a_batch_too_large_for_one_gpu_names_a_smaller_one_for_all(tmp_path):
    assert together(tmp_path / "ranks", train_out_of_memory, tmp_path) == [1, 1]
    said = _first_report(tmp_path / "ranks")
    assert "rank 1: batch_size: the GPU ran out of memory with batch_size 4" in said
    assert said.endswith("try batch_size: 2.")


def train_something_else(folder: Path) -> None:
    build(folder, fingerprint=f"run{rank()}")


def test_ranks_of_different_runs_do_not_train_together(tmp_path):
    assert together(tmp_path / "ranks", train_something_else, tmp_path) == [1, 1]
    said = _first_report(tmp_path / "ranks")
    assert "rank 1: is about to train run run1 in float32, and rank 0 something else" in said


def train_from_damaged(folder: Path) -> None:
    build(folder)


def test_a_damaged_checkpoint_is_refused_by_all_and_named_once(runs, tmp_path):
    whole = (runs["folder"] / "whole/last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(whole[:-100])
    assert together(tmp_path / "ranks", train_from_damaged, tmp_path) == [1, 1]
    said = _first_report(tmp_path / "ranks")
    assert f"{tmp_path / 'last.pt'}: not a readable checkpoint" in said


def be_told_to_stop(folder: Path) -> None:
    """Rank 1 gets SIGTERM by itself in the middle of a run."""
    trainer = build(folder)

    def report(record: dict) -> None:
        if rank() == 1 and record["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        trainer.fit(report=report, stop=signals.stop_on_signals())
    except Interrupted as reason:
        sys.exit(f"interrupted: {reason}")


def test_a_rank_told_to_stop_stops_all_after_the_same_step(tmp_path):
    assert together(tmp_path / "ranks", be_told_to_stop, tmp_path) == [1, 1]
    assert _first_report(tmp_path / "ranks") == (
        "interrupted: stopped at step 6; the next run goes on there"
    )
    assert load_checkpoint(tmp_path / "last.pt", "run")["step"] == 6


def wait_for_a_rank_that_hangs(folder: Path) -> None:
    """Rank 0 is told to stop while it waits for rank 1, which joins no exchange until that ends."""
    signals.stop_on_signals(patience=0.2)
    if rank() == 1:
        wait_for((folder / "0/error.json").exists)
        os._exit(2)
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    dsfer.distributed.wait_for_all()


def test_a_rank_that_waits_for_another_gives_up_when_told_to_stop(tmp_path):
    assert together(tmp_path, wait_for_a_rank_that_hangs, tmp_path) == [1, 2]
    assert "goes on from the state saved last" in _first_report(tmp_path)


def train_with_dropout(folder: Path) -> dict:
    trainer = build(folder / "dropout", model=Forgetful(), iterations=6)
    stopped(trainer, 2)
    trainer = build(folder / "dropout", model=Forgetful(), iterations=6)
    again = finished(trainer)
    whole = build(folder / "whole", model=Forgetful(), iterations=6)
    return {"again": again, "whole": finished(whole), "masks": whole.model.masks}


def test_dropout_differs_between_ranks_and_repeats_after_a_restart(tmp_path):
    first, second = together(tmp_path / "ranks", train_with_dropout, tmp_path)
    assert not torch.equal(first["masks"][0], second["masks"][0])
    expected, found = first["whole"]["last"], first["again"]["last"]
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_shares_that_do_not_divide_are_refused_with_sizes_that_do():
    check_share(8, 4)
    with pytest.raises(ConfigError, match=r"10 pairs .* 4 processes.*set batch_size to 8 or 12,"):
        check_share(10, 4)
    with pytest.raises(ConfigError, match=r"2 pairs .* 4 processes.*set batch_size to 4,"):
        check_share(2, 4)


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="'cuda' was asked for, and torch sees no GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="4 processes need a GPU each, and torch sees 2"):
        check_gpus(4)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="3 processes need a GPU each"):
        choose_device("auto")


# Real launches, by real signals.


def launched(folder: Path, *options: str) -> None:
    """A launcher of two ranks that train for ever."""
    with log_to(folder / "log"):
        command = [sys.executable, "-m", "tests.ranks", str(folder), str(10**6), *options]
        run(lambda: launch(command, processes=2))


class Launched:
    """A launcher, and its ranks once both of them train."""

    def __init__(self, folder: Path, *options: str):
        self.folder = folder
        self.process = start(launched, folder, *options)
        deadline = time.monotonic() + SECONDS
        while not (folder / "last.pt").exists():
            assert self.process.is_alive() and time.monotonic() < deadline, self.said()
            time.sleep(0.05)
        self.launcher = psutil.Process(self.process.pid)
        self.children = self.launcher.children(recursive=True)
        ranks = [child for child in self.children if child.parent() == self.launcher]
        self.ranks = sorted(ranks, key=lambda child: int(child.environ()["RANK"]))

    def said(self) -> str:
        return (self.folder / "log").read_text()

    def ends(self) -> int:
        """The exit status; every process of it ends within seconds."""
        started = time.monotonic()
        self.process.join(SECONDS)
        _, alive = psutil.wait_procs(self.children, timeout=SECONDS)
        assert not alive
        assert time.monotonic() - started < 30  # some three on a machine that does nothing else
        return self.process.exitcode


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_with_one_message(tmp_path):
    job = Launched(tmp_path)
    job.ranks[1].kill()
    assert job.ends() == 1
    messages = [line for line in job.said().splitlines() if "error" in line.lower()]
    assert messages == [
        "error: rank 1 of 2 was killed by SIGKILL, and the others were ended. To mend it: see "
        "whether memory ran out, then start again: training goes on where it was last saved."
    ]
    assert "Traceback" not in job.said()


@pytest.mark.slow
def test_a_killed_launcher_leaves_no_rank(tmp_path):
    job = Launched(tmp_path)
    job.launcher.kill()
    assert job.ends() == -signal.SIGKILL


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_the_state(tmp_path):
    job = Launched(tmp_path, "stream")
    job.launcher.terminate()
    assert job.ends() == 1
    step = load_checkpoint(tmp_path / "last.pt", "run")["step"]
    assert f"interrupted: stopped at step {step}; the next run goes on there" in job.said()
    assert "Traceback" not in job.said()


def node(folder: Path, port: int, number: int) -> None:
    """torchrun on one of two machines."""
    with log_to(folder / f"node{number}"):
        torchrun(
            [
                "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d",
                "--rdzv-endpoint", f"localhost:{port}", "--local-addr", "localhost",
                "-m", "tests.ranks", str(folder), "12",
            ]
        )  # fmt: skip


@pytest.mark.slow
def test_two_machines_train_as_one_process_does(runs, tmp_path):
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    nodes = [start(node, tmp_path, port, number) for number in range(2)]
    for process in nodes:
        process.join(SECONDS)
    assert [process.exitcode for process in nodes] == [0, 0]
    state = load_checkpoint(tmp_path / "last.pt", "run")
    torch.testing.assert_close(state["model"], runs["one"]["whole"]["last"], rtol=1e-4, atol=1e-5)
    assert state["step"] == 12
