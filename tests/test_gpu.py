"""What only a GPU can show: the same results there, and no step that waits for it."""

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import dsfer
from dsfer.data.batches import BatchSource
from dsfer.errors import DeviceMemoryError
from dsfer.evaluation import Inference, count_tiles
from dsfer.memory import enough_memory, in_batches_that_fit
from dsfer.training import Interrupted, Trainer
from tests.test_model_contract import (
    CASES,
    NOISE,
    OF_EACH_NETWORK,
    apart,
    everything,
    images,
    learnt,
    name_of,
    shallow,
)
from tests.test_training import TRAINING
from tests.tiles import MemoryTiles

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def float32_means_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Nothing in the block makes the host wait for the GPU.

    torch warns of it; as an error it would come out of libraries that cannot pass one on.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    messages = [f"{w.filename}:{w.lineno}: {w.message}" for w in caught]
    waited = [message for message in messages if "called a synchronizing" in message]
    assert not waited, "\n".join(waited)


def trainer(folder, precision="float32", device=GPU, **changes) -> Trainer:
    torch.manual_seed(0)
    mean, std = torch.full((2, 3), 100.0, device=device)
    return Trainer(
        dsfer.create_model("dsfer-net", width=0.125, image_size=32, hopfield_dim=16),
        MemoryTiles(10, 32, "train"),
        MemoryTiles(8, 32, "val", seed=1),
        dataclasses.replace(TRAINING, **changes),
        Inference(mean, std, precision, batch_size=8),
        checkpoint=folder / "last.pt",
        fingerprint="run",
    )


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join((c.model, *map(str, c.options))))
def test_networks_give_on_a_gpu_what_they_give_on_a_cpu(case):
    model, pair = case.build().eval(), images()
    with torch.inference_mode():
        here = everything(model(*pair))
        there = everything(model.to(GPU)(*(x.to(GPU) for x in pair)))
    for x, y in zip(here, there, strict=True):
        assert apart(x, y.cpu()) < 10 * NOISE


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    "augmentation", [("symmetries",), ("rotation",), ("flips", "zoom", "blur", "colour")]
)
def test_no_training_step_waits_for_the_gpu(tmp_path, in_memory, precision, augmentation):
    run = trainer(tmp_path, precision, in_memory=in_memory, augmentation=augmentation)
    batches = run._batches()
    run._train_step(*next(batches))  # the first sends the order, and allocates
    with no_waiting():
        for batch in batches:
            run.running += run._train_step(*batch)
    assert run.running.isfinite().all()


@pytest.mark.parametrize("model", dsfer.list_models())
def test_no_forward_or_backward_waits_for_the_gpu(model):
    case = next(case for case in CASES if case.model == model)
    network, pair = case.build().to(GPU), [x.to(GPU) for x in images()]
    sum((x.float() ** 2).mean() for x in everything(network(*pair))).backward()
    with no_waiting():
        sum((x.float() ** 2).mean() for x in everything(network(*pair))).backward()


@pytest.mark.parametrize("case", OF_EACH_NETWORK, ids=name_of)
def test_every_network_compiles_for_a_gpu(case, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr("torch._inductor.config.fallback_random", True)  # dropout alike
    plain, compiled = (shallow(case.build()).to(GPU) for _ in range(2))
    forward = torch.compile(compiled, fullgraph=True)
    pair = [x.to(GPU) for x in images()]
    expected, _ = learnt(plain, plain, pair)
    found, gradients = learnt(compiled, forward, pair)
    assert gradients.isfinite().all()
    for x, y in zip(expected, found, strict=True):
        assert apart(x, y) < 10 * NOISE


def test_training_on_a_gpu_is_that_on_a_cpu(tmp_path):
    there = trainer(tmp_path / "gpu", iterations=4).fit()
    here = trainer(tmp_path / "cpu", device=torch.device("cpu"), iterations=4).fit()
    for mine, its in zip(there.history, here.history, strict=True):
        assert mine["train/loss"] == pytest.approx(its["train/loss"], rel=1e-3)


def test_a_run_that_was_stopped_goes_on(tmp_path):
    whole = trainer(tmp_path / "whole").fit()
    with pytest.raises(Interrupted):
        (run := trainer(tmp_path / "part")).fit(stop=lambda: run.step == 5)
    part = trainer(tmp_path / "part").fit()
    assert [r["step"] for r in part.history] == [r["step"] for r in whole.history]
    assert part.history[-1]["train/loss"] == pytest.approx(
        whole.history[-1]["train/loss"], rel=0.02
    )


def test_compiled_training_is_the_same(tmp_path):
    eager, compiled = (
        trainer(tmp_path / str(c), compile=c, iterations=4).fit().history[-1] for c in (False, True)
    )
    assert compiled["train/loss"] == pytest.approx(eager["train/loss"], rel=1e-2)


def test_counts_in_memory_and_streamed_are_those_of_a_cpu():
    model = CASES[0].build(image_size=32).eval()
    tiles, counted = MemoryTiles(10, 32, "val"), []
    for device, in_memory in ((torch.device("cpu"), None), (GPU, True), (GPU, False)):
        mean, std = torch.full((2, 3), 100.0, device=device)
        source = BatchSource(tiles, device, in_memory=in_memory)
        counts, _ = count_tiles(model.to(device), source, Inference(mean, std, batch_size=4))
        counted.append(counts.cpu().numpy())
    assert counted[0].sum() == 10 * 32 * 32
    for counts in counted[1:]:
        assert np.abs(counts - counted[0]).sum() <= 4  # pixels on the edge between the classes


def test_too_little_memory_says_which_batch_size_to_try():
    with pytest.raises(DeviceMemoryError, match="batch_size: 16"), enough_memory(32):
        torch.empty(2**50, device=GPU)


def test_batches_are_halved_until_they_fit_into_memory():
    pair = int(torch.cuda.mem_get_info(GPU)[0] * 0.4)

    def work(pairs):
        return len([torch.empty(pair, dtype=torch.uint8, device=GPU) for _ in range(pairs)])

    assert in_batches_that_fit(work, 8) == 2  # with what the tries before had taken
