"""Which device computes: the CPU, or a GPU for each process.

Parameters are checked by these names in stages that compute nothing, so torch, which takes seconds
to load, is imported where a device is chosen.
"""

import os
from typing import TYPE_CHECKING, Literal

from dsfer.errors import ConfigError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]


def choose_device(name: Device) -> "torch.device":
    """The device that a user asks for; `auto` takes a GPU where there is one.

    Each of several processes takes a GPU of its own.

    Raises:
        ConfigError: a GPU was asked for and there is none, or none for each process.
    """
    import torch

    from dsfer.distributed import launched, local_rank

    gpu = torch.cuda.is_available()
    if name == "cuda" and not gpu:
        raise ConfigError(
            "'cuda' was asked for, and torch sees no GPU",
            where="device",
            mend="set device to auto or cpu, or install a torch build for your GPU",
        )
    if name == "cpu" or not gpu:
        return torch.device("cpu")
    if not launched():
        return torch.device("cuda")
    check_gpus(local_rank() + 1)
    return torch.device("cuda", local_rank())


def check_gpus(processes: int) -> None:
    """Refuse more processes on this machine than it has GPUs.

    Raises:
        ConfigError: there are too few.
    """
    import torch

    gpus = torch.cuda.device_count()
    if processes > gpus:
        raise ConfigError(
            f"{processes} processes need a GPU each, and torch sees {gpus}",
            where="processes",
            mend=f"set processes to {gpus}, or device to cpu",
        )


def visible_gpus() -> list[str]:
    """What the environment variable CUDA_VISIBLE_DEVICES calls each GPU that torch sees."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def training_layout(device: "torch.device") -> "torch.memory_format":
    """Order in memory of weights and feature maps in training: channels last where that is fast.

    On a CPU without AVX-512 the gradient of a convolution's weights takes three times as long in
    it, and a whole step of Dsfer-Net 1.5 times (docs/performance.md).
    """
    import torch

    wide = torch.cpu.get_capabilities().get("avx512_f", False)
    fast = device.type == "cuda" or wide
    return torch.channels_last if fast else torch.contiguous_format
