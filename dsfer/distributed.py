"""Training on several processes: how they meet, what they add up, what they agree on.

Processes are ranks of torch.distributed: gloo on CPUs, NCCL on GPUs, and gloo beside it for what
only the hosts tell each other, which costs the GPU no pause. In one process every function here is
the identity, so that training is the same code for any number.
"""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dsfer.errors import ConfigError, TrainingError, first_line
from dsfer.signals import when_parent_ends

LAUNCHER = "DSFER_LAUNCHER"
"""Environment variable in which `dsfer.launcher` tells its processes its own number."""


def launched() -> bool:
    """Whether this process is one of those that torchrun or `dsfer.launcher` started."""
    return dist.is_torchelastic_launched()


def local_rank() -> int:
    """Number of this process on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_share() -> slice:
    """What this process takes of work that all processes of its machine share, one item in turn."""
    return slice(local_rank(), None, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def rank() -> int:
    """Number of this process; 0 writes what is written."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Belong to the processes that were launched together, for the length of the block.

    This process ends when the launcher does, even if that is killed. Of the others it waits to
    hear for half an hour, torch's default, before it takes them for lost.

    Raises:
        TrainingError: the others are gone.
    """
    if not launched() or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    _end_with_launcher()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        yield
        dist.destroy_process_group()
    except RuntimeError as error:
        if not _is_lost_contact(error):
            raise
        raise TrainingError(
            f"lost contact with the other processes ({_reason(error)})",
            mend="see what ended them, then start again: training goes on where it was last saved",
        ) from error


def _is_lost_contact(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def _reason(error: RuntimeError) -> str:
    """What torch says first, and the cause, which NCCL tells last if it knows one."""
    cause = str(error).partition("Last error:")[2].strip().partition("\n")[0]
    return f"{first_line(error)}: {cause}" if cause else first_line(error)


def _end_with_launcher() -> None:
    parent = os.getppid()
    if os.environ.get(LAUNCHER, str(parent)) != str(parent):
        os._exit(1)  # it died while this process imported torch
    # The main thread may wait for another rank, and would not hear of it.
    when_parent_ends(lambda: os._exit(1), parent)


def check_same(run: str) -> None:
    """Refuse to train together with a rank that would train something else.

    Args:
        run: says what this rank is about to train, on what data, by what code.

    Raises:
        ConfigError: rank 0 says otherwise.
    """
    if world_size() == 1:
        return
    mine = torch.frombuffer(bytearray(hashlib.sha256(run.encode()).digest()), dtype=torch.uint8)
    first = mine.clone()
    dist.broadcast(first, src=0)
    if not torch.equal(mine, first):
        raise ConfigError(
            f"is about to train {run}, and rank 0 something else",
            where=f"rank {rank()}",
            mend="give all machines the same parameters, shards and code",
        )


def share_of(batch_size: int) -> int:
    """This rank's part of a batch of all ranks.

    Raises:
        ConfigError: the batch does not divide by the number of processes.
    """
    check_share(batch_size, world_size())
    return batch_size // world_size()


def check_share(batch_size: int, processes: int) -> None:
    """Refuse a batch that does not divide by the number of processes.

    Raises:
        ConfigError: it does not.
    """
    if batch_size % processes:
        below = batch_size // processes * processes
        choices = [str(size) for size in (below, below + processes) if size]
        raise ConfigError(
            f"{batch_size} pairs do not divide by {processes} processes",
            where="batch_size",
            mend=f"set batch_size to {' or '.join(choices)}, or change the number of processes",
        )


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum of a tensor over all ranks; no gradient flows through it."""
    if world_size() > 1:
        values = values.detach().clone()
        dist.all_reduce(values)
    return values


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of a float tensor over all ranks; gradients flow back to every rank."""
    if world_size() == 1:
        return values
    total: Tensor = _SumOverRanks.apply(values)
    return total / world_size()


class _SumOverRanks(torch.autograd.Function):
    """A sum to which every rank adds, so that a rank's part acts on the losses of all."""

    @staticmethod
    def forward(_ctx: object, values: Tensor) -> Tensor:
        return sum_over_ranks(values)

    @staticmethod
    def backward(_ctx: object, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient)


def wait_for_all() -> None:
    """Return when every rank has come here."""
    sum_over_ranks(torch.zeros(1))


def shared_file(path: Path) -> BinaryIO | None:
    """Open a file of rank 0 on every rank, on whichever machine; None where there is none."""
    if world_size() == 1:
        return path.open("rb") if path.exists() else None
    content = None
    if rank() == 0 and path.exists():
        content = torch.from_numpy(np.fromfile(path, np.uint8))
    size = torch.tensor(-1 if content is None else len(content))
    dist.broadcast(size, src=0)
    if size < 0:
        return None
    received = torch.empty(int(size), dtype=torch.uint8) if content is None else content
    dist.broadcast(received, src=0)
    return io.BytesIO(received.numpy().data)


def replicated(model: nn.Module) -> nn.Module:
    """The model with gradients that are means over all ranks; the model itself in one process.

    All ranks start from the weights of rank 0, and batch statistics are those of all ranks on each
    of them (`dsfer.models.batch_norm`).
    """
    if world_size() == 1:
        return model
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


class Agreement:
    """A number per step that every rank hears alike: the largest that any of them said.

    With several ranks it is heard one step after it was said, so that no rank ever waits: by then
    the hosts have exchanged it while the step was computed. What is said after the last step is
    never heard.
    """

    def __init__(self) -> None:
        self._exchange: tuple[dist.Work, Tensor] | None = None

    def reach(self, said: int) -> int:
        """Say this step's number, and hear the one that counts now."""
        if world_size() == 1:
            return said
        heard = 0
        if self._exchange is not None:
            work, number = self._exchange
            work.wait()
            heard = int(number)
        number = torch.tensor(said)
        self._exchange = dist.all_reduce(number, dist.ReduceOp.MAX, async_op=True), number
        return heard
