"""Training: it learns, it repeats, and after SIGKILL it goes on to bit-identical weights."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dsfer
from dsfer.averaging import AveragedNetwork
from dsfer.checkpoint import load_checkpoint, save_checkpoint
from dsfer.errors import CheckpointError, DeviceMemoryError, LeakageError, TrainingError
from dsfer.evaluation import Inference
from dsfer.losses import ChangeLoss
from dsfer.training import Interrupted, Trained, Trainer, Training, learning_rate
from tests.tiles import MemoryTiles

TRAINING = Training(
    loss=ChangeLoss(0.1, (1.3, 4.0), "weighted-mean", "dice"),
    lr=2e-3,
    weight_decay=1e-5,
    schedule="cosine",
    schedule_iterations=12,
    warmup=2,
    iterations=12,
    batch_size=4,
    sampling="epochs",
    augmentation=("symmetries",),
    ema=0.5,
    validate_every=4,
    seed=0,
)


def trainer(folder: Path, model: torch.nn.Module | None = None, **changes) -> Trainer:
    torch.manual_seed(0)
    inference = Inference(torch.full((3,), 100.0), torch.full((3,), 50.0), batch_size=8)
    return Trainer(
        model or dsfer.create_model("dsfer-net", width=0.125, image_size=32, hopfield_dim=16),
        MemoryTiles(10, 32, "train"),
        MemoryTiles(8, 32, "val", seed=1),
        dataclasses.replace(TRAINING, **changes),
        inference,
        checkpoint=folder / "last.pt",
        fingerprint="run",
    )


def identical(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trained]:
    """A training as `trainer` makes it, undisturbed: its folder, and what came of it."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, trainer(folder).fit()


def test_it_learns_records_and_keeps_the_best(tmp_path):
    seen = []
    trained = trainer(tmp_path, iterations=60, schedule_iterations=60, ema=0.0).fit(
        report=seen.append
    )
    assert seen == trained.history
    losses = [record["train/loss"] for record in trained.history]
    assert losses[-1] < 0.6 * losses[0]
    scores = [record["val/F1"] for record in trained.history if "val/F1" in record]
    assert len(scores) == 15
    assert trained.best["val/F1"] == max(scores) > 60
    assert trained.best["val/F1_at_threshold"] >= max(scores)


def test_the_threshold_is_that_of_the_weights_that_are_kept(tmp_path):
    run = trainer(tmp_path, iterations=20, ema=0.0)
    best = run.fit().best
    run.model.load_state_dict(run.best_states)
    f1 = {}
    with torch.inference_mode():
        pairs, labels = zip(*(run.val_source.tiles[i] for i in range(8)), strict=True)
        inputs = run.inference.inputs(torch.from_numpy(np.stack(pairs)))
        probability = run.model.eval()(*inputs).logits.softmax(dim=1)[:, 1].numpy()
    changed = np.stack(labels) == 1
    for threshold in np.arange(1, 256) / 256:
        said = probability > threshold
        f1[threshold] = 100 * 2 * (said & changed).sum() / (said.sum() + changed.sum())
    assert best["val/F1_at_threshold"] == pytest.approx(max(f1.values()), abs=0.1)
    assert f1[best["val/threshold"]] == pytest.approx(max(f1.values()), abs=0.1)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(finished, tmp_path):
    _, first = finished
    again, other = (trainer(tmp_path / str(seed), seed=seed).fit() for seed in (0, 1))
    assert identical(first.states, again.states)
    assert json.dumps(first.history) == json.dumps(again.history)
    assert not identical(first.states, other.states)


def killed(folder: Path, kill_at: int) -> None:
    """Train, and be killed in one of the steps."""
    run = trainer(folder)
    step = run._train_step

    def counted(*batch):
        losses = step(*batch)
        if run.step + 1 == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return losses

    run._train_step = counted
    run.fit()


class Forgetful(torch.nn.Module):
    """A network with dropout, which notes what it drops."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = dsfer.create_model("dsfer-net", width=0.125, image_size=32, hopfield_dim=16)
        self.masks: list[torch.Tensor] = []

    def forward(self, t1: torch.Tensor, t2: torch.Tensor):
        if self.training:
            self.masks.append(torch.nn.functional.dropout(torch.ones_like(t1), 0.3))
            t1 = t1 * self.masks[-1]
        return self.net(t1, t2)


def test_dropout_repeats_after_a_restart(tmp_path):
    asked = []
    with pytest.raises(Interrupted, match="step 3"):
        trainer(tmp_path, model=Forgetful()).fit(stop=lambda: asked.append(1) or len(asked) == 3)
    again, undisturbed = (
        trainer(folder, model=Forgetful()) for folder in (tmp_path, tmp_path / "undisturbed")
    )
    assert identical(again.fit().states, undisturbed.fit().states)
    first, second = undisturbed.model.masks[:2]
    assert not torch.equal(first, second)


@pytest.mark.xdist_group("distributed")  # where the server of processes is
@pytest.mark.parametrize("kill_at", [3, 7])
def test_a_killed_run_continues_to_bit_identical_weights(finished, tmp_path, kill_at):
    from tests.ranks import SECONDS, start  # which imports this module

    process = start(killed, tmp_path, kill_at)
    process.join(SECONDS)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "last.pt").exists() == (kill_at > 4)
    resumed = trainer(tmp_path)
    continued = resumed.fit()
    _, undisturbed = finished
    assert identical(continued.states, undisturbed.states)
    assert json.dumps(continued.history) == json.dumps(undisturbed.history)  # NaN is no NaN


def test_asked_to_stop_between_two_records_it_saves_and_goes_on(tmp_path):
    steps = []

    def stop():
        steps.append(1)
        return len(steps) == 7

    with pytest.raises(Interrupted, match="step 7"):
        trainer(tmp_path, validate_every=10).fit(stop=stop)
    replayed = []
    continued = trainer(tmp_path, validate_every=10).fit(report=replayed.append)
    undisturbed = trainer(tmp_path / "undisturbed", validate_every=10).fit()
    assert identical(continued.states, undisturbed.states)
    assert json.dumps(replayed) == json.dumps(undisturbed.history)


def test_a_lost_loss_stops_the_run_and_keeps_the_last_good_state(tmp_path):
    run = trainer(tmp_path)
    step = run._train_step

    def poisoned(*batch):
        losses = step(*batch)
        return losses * math.nan if run.step == 5 else losses

    run._train_step = poisoned
    with pytest.raises(TrainingError, match="smaller learning rate"):
        run.fit()
    assert load_checkpoint(tmp_path / "last.pt", "run")["step"] == 4


def test_lost_weights_after_a_loss_that_was_none_do_not_replace_the_last_good_state(tmp_path):
    run = trainer(tmp_path)
    step = run._train_step

    def poisoned(*batch):
        losses = step(*batch)
        if run.step == 7:  # the last before the state is saved again
            with torch.no_grad():
                next(run.model.parameters())[0] = math.nan
        return losses

    run._train_step = poisoned
    with pytest.raises(TrainingError, match="the norm of the weights is nan at step 8"):
        run.fit()
    assert math.isfinite(run.history[-1]["train/loss"])
    assert load_checkpoint(tmp_path / "last.pt", "run")["step"] == 4


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    ],
)
def test_running_out_of_gpu_memory_names_a_smaller_batch(tmp_path, error):
    def too_much(*batch):
        raise error

    run = trainer(tmp_path)
    run._train_step = too_much
    with pytest.raises(DeviceMemoryError, match=r"memory with batch_size 4.*try batch_size: 2\."):
        run.fit()
    assert not (tmp_path / "last.pt").exists()


def test_another_error_of_the_gpu_stays_what_it_is(tmp_path):
    def lost(*batch):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    run = trainer(tmp_path)
    run._train_step = lost
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run.fit()


UNCOMPILED = """
import sys
from pathlib import Path
from dsfer.errors import TrainingError
from tests.test_training import trainer
try:
    trainer(Path(sys.argv[1]), compile=True).fit()
except TrainingError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_missing_compiler_is_named(tmp_path):
    """In an interpreter of its own: torch keeps what it finds out about the compiler."""
    done = subprocess.run(
        [sys.executable, "-c", UNCOMPILED, str(tmp_path)],
        env=os.environ | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    (said,) = done.stdout.splitlines()
    assert re.fullmatch(
        r"compile: torch\.compile failed: .*\bcompiler\b.* To mend it: set compile: false, .*", said
    )


def test_training_cannot_be_given_the_test_split(tmp_path):
    with pytest.raises(LeakageError, match="'test'"):
        Trainer(
            torch.nn.Identity(),
            MemoryTiles(2, 32, "train"),
            MemoryTiles(2, 32, "test"),
            TRAINING,
            Inference(torch.zeros(3), torch.ones(3)),
            checkpoint=tmp_path / "last.pt",
            fingerprint="run",
        )


class Payload:
    def __reduce__(self):
        return (print, ("code ran",))


def test_foreign_and_damaged_checkpoints_are_refused(tmp_path, capsys):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"fingerprint": "other", "step": 1})
    with pytest.raises(CheckpointError, match="belongs to run other"):
        load_checkpoint(path, "run")
    torch.save({"fingerprint": "run", "schema": 0}, path)
    with pytest.raises(CheckpointError, match="schema 0"):
        load_checkpoint(path, "run")
    save_checkpoint(path, {"fingerprint": "run", "step": 1})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(path, "run")
    torch.save({"fingerprint": "run", "payload": Payload()}, path)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(path, "run")
    assert "code ran" not in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "none.pt", "run") is None


def schedule(name, **changes):
    return dataclasses.replace(
        TRAINING, schedule=name, schedule_iterations=30_000, warmup=0, lr=1e-5, **changes
    )


def test_a_checkpoint_of_another_network_is_refused(finished, tmp_path):
    folder, _ = finished
    whole = torch.load(folder / "last.pt", weights_only=True)
    for part in ("model", "optimiser", "best_states"):
        save_checkpoint(tmp_path / "last.pt", {k: v for k, v in whole.items() if k != part})
        with pytest.raises(CheckpointError, match=r"last\.pt: does not hold the state of this net"):
            trainer(tmp_path)
    other = {f"other.{key}": value for key, value in whole["model"].items()}
    save_checkpoint(tmp_path / "last.pt", whole | {"model": other})
    with pytest.raises(CheckpointError, match="does not hold the state"):
        trainer(tmp_path)


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"fingerprint": "run", "step": 1, "model": torch.zeros(10_000)})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # in the middle of the tensor
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"not a readable checkpoint .the checksum of"):
        load_checkpoint(path, "run")


def test_linear_falls_to_zero_as_the_paper_says():
    linear = schedule("linear")
    assert learning_rate(0, linear) == 1e-5
    assert learning_rate(15_000, linear) == pytest.approx(0.5e-5)
    assert learning_rate(30_000, linear) == 0


def test_poly_is_the_released_code_s():
    poly = schedule("poly")
    assert learning_rate(0, poly) == learning_rate(1, poly) == 1e-5
    assert learning_rate(2, poly) == pytest.approx(1e-5 * (1 - 1 / 30_000) ** 0.9)
    # Stopped at 15,000 steps, its factor is about 0.536.
    assert learning_rate(15_000, poly) / 1e-5 == pytest.approx(0.536, abs=1e-3)


def test_cosine_warms_up_and_ends_at_zero():
    cosine = dataclasses.replace(schedule("cosine"), warmup=500)
    rates = [learning_rate(step, cosine) for step in range(0, 30_001, 50)]
    assert learning_rate(499, cosine) == max([*rates, learning_rate(499, cosine)]) == 1e-5
    assert learning_rate(0, cosine) == pytest.approx(1e-5 / 500)
    assert learning_rate(30_000, cosine) == pytest.approx(0, abs=1e-12)


GOLDEN = Path(__file__).with_name("golden_losses.json")


def test_losses_follow_the_committed_trace(finished):
    # CPU kernels differ a little between machines, so the trace holds to 2 %.
    _, trained = finished
    found = [record["train/loss"] for record in trained.history]
    assert found == pytest.approx(json.loads(GOLDEN.read_text()), rel=0.02)


def test_a_run_killed_after_its_last_step_still_ends(finished, tmp_path):
    folder, first = finished
    shutil.copy(folder / "last.pt", tmp_path)
    again = trainer(tmp_path).fit()
    assert identical(first.states, again.states)
    assert json.dumps(first.history) == json.dumps(again.history)


@pytest.mark.parametrize("every", [1, 5, 7, 13])
def test_validation_comes_every_so_many_steps_and_at_the_end(tmp_path, every):
    trained = trainer(tmp_path, iterations=15, validate_every=every).fit()
    validated = [int(record["step"]) for record in trained.history if "val/F1" in record]
    assert validated == sorted({*range(every, 16, every), 15})


def test_averaged_weights_follow_quickly_at_first():
    model = torch.nn.BatchNorm1d(1)
    averaged = AveragedNetwork(model, 0.999)
    own = averaged.module
    for step, expected in ((0, 1), (1, 1 - 2 / 11), (100_000, 0.001)):
        for tensor in (own.weight.data, own.running_mean):
            tensor.zero_()
        for tensor in (model.weight.data, model.running_mean):
            tensor.fill_(1)
        model.num_batches_tracked.fill_(step)
        averaged.update(step)
        assert own.weight.item() == own.running_mean.item() == pytest.approx(expected)
        assert own.num_batches_tracked.item() == step


def test_splits_that_do_not_belong_together_are_refused(tmp_path):
    run = trainer(tmp_path)
    other = MemoryTiles(2, 32, "val")
    other.split_hash = "another"
    with pytest.raises(LeakageError, match="another"):
        Trainer(
            run.model,
            MemoryTiles(2, 32, "train"),
            other,
            TRAINING,
            run.inference,
            checkpoint=tmp_path / "last.pt",
            fingerprint="run",
        )


def test_streamed_batches_train_like_those_in_memory(tmp_path):
    in_memory, streamed = (
        trainer(tmp_path / str(choice), in_memory=choice).fit() for choice in (True, False)
    )
    assert identical(in_memory.states, streamed.states)


def test_either_layout_in_memory_trains_alike(tmp_path, monkeypatch):
    losses = {}
    for wide, layout in ((True, torch.channels_last), (False, torch.contiguous_format)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda wide=wide: {"avx512_f": wide})
        run = trainer(tmp_path / str(wide), iterations=2, validate_every=1)
        found = []

        def note(_block, _inputs, fused, layout=layout, found=found):
            if fused.requires_grad:
                found.append(fused.is_contiguous(memory_format=layout))

        for block in run.model.fusion.values():
            block.register_forward_hook(note)
        losses[layout] = [record["train/loss"] for record in run.fit().history]
        assert found == [True] * 10
    assert losses[torch.channels_last] == pytest.approx(losses[torch.contiguous_format], rel=1e-4)
