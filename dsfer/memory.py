"""What to say, or to do, when the memory of the GPU does not suffice."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from dsfer.distributed import world_size
from dsfer.errors import DeviceMemoryError

log = logging.getLogger(__name__)

T = TypeVar("T")

_SIGNS = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
"""What errors say that CUDA's libraries, which allocate past torch, come with."""


@contextmanager
def enough_memory(batch_size: int) -> Iterator[None]:
    """Name a batch size to try where the block runs out of GPU memory.

    Args:
        batch_size: `batch_size` of the parameters, pairs over all processes.

    Raises:
        DeviceMemoryError: the GPU has too little memory.
    """
    share = batch_size // world_size()
    smaller = (
        f"try batch_size: {share // 2 * world_size()}"
        if share > 1
        else "try a smaller tile_size or width, device: cpu, or a GPU with more memory"
    )
    with memory_for(f"batch_size {batch_size}", where="batch_size", mend=smaller):
        yield


@contextmanager
def memory_for(what: str, *, where: str, mend: str) -> Iterator[None]:
    """Say what to do where the block runs out of GPU memory.

    Args:
        what: what the memory is taken by.
        where: the parameter that decides it.
        mend: what to do about it.

    Raises:
        DeviceMemoryError: the GPU has too little memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise DeviceMemoryError(
            f"the GPU ran out of memory with {what}", where=where, mend=mend
        ) from error


def in_batches_that_fit(work: Callable[[int], T], batch_size: int) -> T:
    """Do work that comes out the same in batches of any size: in half of it where memory runs out.

    Args:
        work: what to do, given a batch size; it is done from the start again.
        batch_size: pairs at a time to try first, at least 1.

    Raises:
        DeviceMemoryError: the GPU has too little memory for a single pair.
    """
    while True:
        try:
            with enough_memory(batch_size):
                return work(batch_size)
        except DeviceMemoryError:
            if batch_size == 1:
                raise
        # Only here has the error let go of what it had on the GPU.
        batch_size //= 2
        log.info("out of GPU memory; again with batches of %d pairs", batch_size)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether that is what happened, to torch or to a library of CUDA that allocates past it."""
    return isinstance(error, torch.OutOfMemoryError) or any(s in str(error) for s in _SIGNS)
