"""What to say when the memory of the GPU does not suffice."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dsfer.distributed import world_size
from dsfer.errors import DeviceMemoryError

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
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        share = batch_size // world_size()
        smaller = (
            f"try batch_size: {share // 2 * world_size()}"
            if share > 1
            else "try a smaller tile_size or width, or a GPU with more memory"
        )
        raise DeviceMemoryError(
            f"the GPU ran out of memory with batch_size {batch_size}",
            where="batch_size",
            mend=smaller,
        ) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether that is what happened, to torch or to a library of CUDA that allocates past it."""
    return isinstance(error, torch.OutOfMemoryError) or any(s in str(error) for s in _SIGNS)
