"""A trained network, ready to use: weights with all that their use needs, loaded in one line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from dsfer.errors import ConfigError, DataError
from dsfer.evaluation import Inference, change_batch, stitch
from dsfer.files import sha256_file
from dsfer.models import create_model
from dsfer.weights import Metadata, read_metadata


@dataclass(frozen=True)
class Detector:
    """A network with the device it is on and what its input and output mean.

    Attributes:
        network: in evaluation mode, on the device of `inference`.
        inference: device, precision, normalisation and batch size.
        tile_size: side of the windows it works on, in pixels.
        metadata: what the weights file says about itself.
        sha256: of the weights file.
    """

    network: nn.Module
    inference: Inference
    tile_size: int
    metadata: Metadata
    sha256: str

    def probabilities(self, windows: np.ndarray) -> np.ndarray:
        """Change probability (b, h, w) float32 of windows (b, 2, h, w, 3) uint8."""
        return change_batch(self.network, self.inference, windows)

    def predict(self, t1: np.ndarray, t2: np.ndarray, *, overlap: float = 0.5) -> np.ndarray:
        """Change probability of a pair of images of any size, by blended windows.

        Args:
            t1: date 1, (rows, cols, 3) RGB uint8.
            t2: date 2, the same.
            overlap: share of a window that neighbours have in common, 0 to below 1.

        Returns:
            (rows, cols) float32 in [0, 1].

        Raises:
            DataError: the two are no RGB images of one size.
        """
        for image in (t1, t2):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise DataError(
                    f"an image is {image.dtype} {image.shape}",
                    mend="give arrays of shape (rows, cols, 3), RGB, uint8",
                )
        if t1.shape != t2.shape:
            raise DataError(
                f"t1 is {t1.shape[:2]} and t2 {t2.shape[:2]} (rows, cols)",
                mend="give two images of one size and place",
            )
        shared = shared_pixels(self.tile_size, overlap)
        pair = np.stack((t1, t2))
        return stitch(self.network, pair, self.inference, tile_size=self.tile_size, overlap=shared)


def shared_pixels(tile_size: int, overlap: float) -> int:
    """Pixels that neighbouring windows have in common.

    Raises:
        ConfigError: a share that is no share.
    """
    if not 0 <= overlap < 1:
        raise ConfigError(f"{overlap:g} is no share", where="overlap", mend="give 0 to below 1")
    return int(overlap * tile_size)


def load(
    weights: str | Path, *, device: Literal["auto", "cpu", "cuda"] = "auto", batch_size: int = 8
) -> Detector:
    """Load a trained network with all that its use needs.

    Args:
        weights: a .safetensors file that training or `dsfer import-weights` wrote.
        device: `auto` takes a GPU where there is one.
        batch_size: windows per forward pass.

    Raises:
        CheckpointError: no such file, damaged, or not written by this program.
        ConfigError: a GPU was asked for and there is none.
    """
    path = Path(weights)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "'cuda' was asked for, and torch sees no GPU",
            where="device",
            mend="take auto or cpu, or install a torch build for your GPU",
        )
    gpu = device != "cpu" and torch.cuda.is_available()
    place = torch.device("cuda" if gpu else "cpu")
    metadata = read_metadata(path)
    network = create_model(metadata.model, weights=path)
    network = network.to(place).to(memory_format=torch.channels_last).eval()
    inference = Inference(
        torch.tensor(metadata.mean, device=place),
        torch.tensor(metadata.std, device=place),
        "bf16" if gpu and torch.cuda.is_bf16_supported() else "float32",
        batch_size,
        metadata.per_image,
    )
    tile_size = int(metadata.options.get("image_size", 256))
    return Detector(network, inference, tile_size, metadata, sha256_file(path))
