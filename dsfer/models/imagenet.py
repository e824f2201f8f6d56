"""ImageNet weights of the encoders, from torchvision or from a local file."""

import socket
from pathlib import Path

from torch import Tensor

from dsfer.errors import CheckpointError


def imagenet_states(name: str, path: Path | None = None) -> dict[str, Tensor]:
    """Read the state dict of a network that was trained on ImageNet.

    Args:
        name: torchvision's name of the weights, such as `ResNet18_Weights.IMAGENET1K_V1`.
        path: a local state dict with torchvision's keys; None asks torchvision, which downloads
            once and keeps the file.

    Raises:
        CheckpointError: the download failed, or the file is missing or unreadable.
    """
    from dsfer.weights import read_state_dict

    return read_state_dict(path) if path else _downloaded(name)


def source_name(name: str, path: Path | None) -> str:
    """Where `imagenet_states` takes its weights from, for messages."""
    return str(path) if path else f"torchvision's {name}"


def _downloaded(name: str) -> dict[str, Tensor]:
    from torchvision.models import get_weight  # slow to import, and seldom needed

    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds; torch's download waits for a silent network forever
    try:
        states: dict[str, Tensor] = get_weight(name).get_state_dict(
            progress=True, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:  # no network, or a damaged download
        raise CheckpointError(
            f"could not be downloaded ({error})",
            where=name,
            mend="give a local file as pretrained: PATH, or train from scratch with "
            "pretrained: none",
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
    return states
