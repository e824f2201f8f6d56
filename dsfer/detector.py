"""A trained network, ready to use: weights with all that their use needs, loaded in one line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from dsfer.devices import Device, choose_device
from dsfer.errors import CheckpointError, ConfigError, DataError
from dsfer.evaluation import Inference, change_batch, has_bf16, stitch
from dsfer.memory import enough_memory
from dsfer.models import create_model
from dsfer.weights import Metadata, read_metadata

WINDOWS_AT_A_TIME = {"cuda": 8, "cpu": 1}
"""Per forward pass: one does not fill a GPU, and several at a time are slower on a CPU."""


@dataclass(frozen=True)
class Detector:
    """A network with the device it is on and what its input and output mean.

    Attributes:
        network: in evaluation mode, on the device of `inference`.
        inference: device, precision, normalisation and batch size.
        metadata: the record of its weights.
    """

    network: nn.Module
    inference: Inference
    metadata: Metadata

    @property
    def tile_size(self) -> int:
        """Side of the windows that it works on, in pixels: that of its training."""
        return self.metadata.tile_size

    def probabilities(self, windows: np.ndarray) -> np.ndarray:
        """Change probability (b, h, w) float32 of windows (b, 2, h, w, 3) uint8.

        Raises:
            DeviceMemoryError: the GPU has too little memory for so many at a time.
        """
        with enough_memory(len(windows)):
            return change_batch(self.network, self.inference, windows)

    def check_numbers(
        self, probability: np.ndarray, valid: np.ndarray | None, where: str | None = None
    ) -> None:
        """Refuse NaN where there is data: in a map it would mean that there is none.

        Args:
            probability: (rows, cols) float32, as blended.
            valid: (rows, cols) bool, where there is data; None is everywhere.
            where: what to call the place.

        Raises:
            CheckpointError: the network says NaN.
        """
        unknown = np.isnan(probability) if valid is None else np.isnan(probability) & valid
        if not unknown.any():
            return
        mend = "give other weights, or import them again with the normalisation that they had"
        if self.inference.precision != "float32":
            mend = f"compute in float32, as device cpu does; or {mend}"
        raise CheckpointError(
            f"in {self.inference.precision} the network says NaN of {unknown.sum():,} pixels",
            where=where,
            mend=mend,
        )

    def threshold(self, wanted: float | Literal["auto"]) -> float:
        """The probability above which a pixel is changed; `auto` is that of the record.

        Raises:
            ConfigError: `auto`, and none was chosen on a validation split.
        """
        if wanted != "auto":
            return wanted
        if self.metadata.threshold is None:
            raise ConfigError(
                "these weights know no threshold chosen on a validation split",
                where="threshold auto",
                mend="give a number, as 0.5, or weights that training wrote",
            )
        return self.metadata.threshold


def load(
    weights: str | Path, *, device: Device = "auto", batch_size: int | None = None
) -> Detector:
    """Load a trained network with all that its use needs.

    Args:
        weights: a bundle that training or `dsfer import-weights` wrote: its .safetensors or .json
            file, or the folder of `weights.safetensors` and `weights.json`.
        device: `auto` takes a GPU where there is one.
        batch_size: windows per forward pass; None is 8 on a GPU and 1 on a CPU.

    Raises:
        CheckpointError: no such file, damaged, of another schema, or not written by this program.
        ConfigError: a GPU was asked for and there is none, or a batch of no windows.
    """
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"{batch_size} is below 1", where="batch_size", mend="give 1 or more")
    path = Path(weights)
    path = path / "weights.safetensors" if path.is_dir() else path
    path = path.with_suffix(".safetensors") if path.suffix == ".json" else path
    place = choose_device(device)
    metadata = read_metadata(path)
    network = create_model(metadata.model, weights=path)
    network = network.to(place).to(memory_format=torch.channels_last).eval()
    inference = Inference(
        torch.tensor(metadata.mean, device=place),
        torch.tensor(metadata.std, device=place),
        "bf16" if place.type == "cuda" and has_bf16(place) else "float32",
        WINDOWS_AT_A_TIME[place.type] if batch_size is None else batch_size,
        metadata.per_image,
    )
    return Detector(network, inference, metadata)


def as_detector(detector: Detector | str | Path) -> Detector:
    """A detector as it is, or loaded from the weights that a path names, see `load`."""
    return detector if isinstance(detector, Detector) else load(detector)


def predict_array(
    t1: np.ndarray,
    t2: np.ndarray,
    detector: Detector | str | Path,
    *,
    overlap: float = 0.5,
    valid: np.ndarray | None = None,
) -> np.ndarray:
    """Change probability of a pair of images of any size, by blended windows.

    The same code as the `stitched` protocol of evaluation and the maps of `predict_raster`.

    Args:
        t1: date 1, (rows, cols, 3) RGB uint8, 0 to 255.
        t2: date 2, the same place and size.
        detector: from `dsfer.load`, or the path of weights, which are then loaded at each call.
        overlap: share of a window that neighbours have in common, 0 to below 1.
        valid: (rows, cols) bool, where both dates show ground; None is everywhere.

    Returns:
        (rows, cols) float32 in [0, 1], NaN where not valid.

    Raises:
        DataError: the two are no RGB images of one size.
        ConfigError: an overlap that is no share.
        CheckpointError: as `load`, or the network says NaN of a valid pixel.
        DeviceMemoryError: the GPU has too little memory for `batch_size` windows at a time.
    """
    for image in (t1, t2):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise DataError(
                f"an image is {image.dtype} {image.shape}",
                mend="give arrays of shape (rows, cols, 3), RGB, uint8",
            )
    if t1.shape != t2.shape:
        raise DataError(
            f"t1 is {t1.shape[:2]} and t2 {t2.shape[:2]} (rows, cols)",
            mend="give two images of one size and place",
        )
    if valid is not None and (valid.shape != t1.shape[:2] or valid.dtype != np.bool_):
        raise DataError(
            f"valid is {valid.dtype} {valid.shape}", mend=f"give bool of shape {t1.shape[:2]}"
        )
    detector = as_detector(detector)
    with enough_memory(detector.inference.batch_size):
        probability = stitch(
            detector.network,
            np.stack((t1, t2)),
            detector.inference,
            tile_size=detector.tile_size,
            overlap=shared_pixels(detector.tile_size, overlap),
            valid=valid,
        )
    detector.check_numbers(probability, valid)
    return probability


def shared_pixels(tile_size: int, overlap: float) -> int:
    """Pixels that neighbouring windows have in common.

    Raises:
        ConfigError: a share that is no share.
    """
    if not 0 <= overlap < 1:
        raise ConfigError(f"{overlap:g} is no share", where="overlap", mend="give 0 to below 1")
    return int(overlap * tile_size)
