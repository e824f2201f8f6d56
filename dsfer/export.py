"""Trained networks for other programs: ONNX, with a record of what goes in and what comes out."""

import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dsfer.detector import load
from dsfer.errors import CheckpointError, ConfigError, DsferError, TileSizeError, first_line
from dsfer.files import atomic_path
from dsfer.weights import Metadata, write_record

OPSET = 17

TOLERANCE = 1e-3
"""Change probability by which onnxruntime may differ from torch, anywhere."""


class _Logits(nn.Module):
    """A network without its outputs for deep supervision, which only training uses."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, t1: Tensor, t2: Tensor) -> Tensor:
        logits: Tensor = self.network(t1, t2).logits
        return logits


def export_onnx(weights: str | Path, out: str | Path) -> Metadata:
    """Write a trained network as ONNX, and its record beside it, after comparing it with torch.

    The batch is dynamic, and height and width where the network takes any; Dsfer-Net with the norm
    `volume` takes images of the size that it was trained on.

    Args:
        weights: a bundle, see `dsfer.load`.
        out: the .onnx file to write; `out` with the suffix .json is its record, which under `onnx`
            says what to do before and after.

    Returns:
        The record.

    Raises:
        CheckpointError: as `dsfer.load`, or this network cannot be expressed in ONNX, or
            onnxruntime computes something else of it.
        ConfigError: the name does not end in .onnx, or weights beside it have that name, or the
            extra `export` is not installed.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        raise ConfigError(f"{out} is no .onnx file", where="out", mend="change its suffix")
    if (tensors := out.with_suffix(".safetensors")).exists():
        raise ConfigError(
            f"its record would take the place of that of {tensors}",
            where=out,
            mend="give it another name or folder",
        )
    detector = load(weights, device="cpu")
    size = detector.tile_size
    network = _Logits(detector.network.to(memory_format=torch.contiguous_format)).eval()
    step = _size_step(network, size)
    with atomic_path(out) as temporary:
        difference = _write_compared(network, size, step, temporary)
        if step is not None and not difference <= TOLERANCE:
            step = None  # what was traced holds for this size alone
            difference = _write_compared(network, size, step, temporary)
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"onnxruntime's change probabilities differ from torch's by {difference:.2g}",
                where=weights,
                mend="use the weights themselves, or report this with your versions of torch and "
                "onnxruntime",
            )
    record = replace(detector.metadata, onnx=description(detector.metadata, step))
    write_record(out, record)
    return record


def _size_step(network: nn.Module, size: int) -> int | None:
    """What height and width have to be multiples of, or None where they have to be `size`."""
    for step in (1, 2, 4, 8, 16, 32):
        side = -(-size // step) * step + step
        images = torch.zeros(1, 3, side, side + step)
        try:
            with torch.inference_mode():
                network(images, images)
        except TileSizeError:
            continue
        return step
    return None


def _write_compared(network: nn.Module, size: int, step: int | None, path: Path) -> float:
    """Trace a network at a batch of two, write it, and return how far onnxruntime is from torch.

    By tracing: torch.export fixes the batch where a network splits one that holds both dates.
    """
    axes = {0: "batch"} if step is None else {0: "batch", 2: "rows", 3: "cols"}
    pair = torch.rand(2, 3, size, size), torch.rand(2, 3, size, size)  # one tensor is one input
    try:
        # No gradients: for those maps are enlarged by an operator that ONNX does not know.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of what tracing may miss; the comparison would see it
            torch.onnx.export(
                network,
                pair,
                str(path),
                input_names=["t1", "t2"],
                output_names=["logits"],
                dynamic_axes=dict.fromkeys(("t1", "t2", "logits"), axes),
                opset_version=OPSET,
                dynamo=False,
            )
    except ImportError as error:
        raise _not_installed(error) from error
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise CheckpointError(
            f"this network cannot be written as ONNX ({first_line(error)})",
            where=path,
            mend="use the weights themselves",
        ) from error
    return compare(network, path, size, step)


def compare(network: nn.Module, path: Path, size: int, step: int | None) -> float:
    """Largest difference of change probability between torch and onnxruntime on the CPU.

    Over a batch of other length than the one it was traced with, and where it may be of another
    size, too; of random images. Infinite where onnxruntime cannot compute it.
    """
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as failures
    except ImportError as error:
        raise _not_installed(error) from error
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    sides = [(size, size)] if step is None else [(size, size), (size + step, size)]
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch, side in zip((3, 1), sides, strict=False):  # the second where there is one
        images = [torch.randn(batch, 3, *side, generator=generator) for _ in range(2)]
        with torch.inference_mode():
            expected = network(*images).softmax(dim=1)[:, 1].numpy()
        inputs = {"t1": images[0].numpy(), "t2": images[1].numpy()}
        try:
            (logits,) = session.run(["logits"], inputs)
        except (failures.Fail, failures.InvalidArgument, failures.RuntimeException):
            return float("inf")
        found = torch.from_numpy(np.asarray(logits)).softmax(dim=1)[:, 1].numpy()
        differences.append(float(np.abs(found - expected).max()))
    return max(differences)


def _not_installed(error: ImportError) -> DsferError:
    return ConfigError(
        f"the export needs a package that is not there ({first_line(error)})",
        where="dsfer export",
        mend="pip install 'dsfer[export]'",
    )


def description(metadata: Metadata, step: int | None) -> dict[str, Any]:
    """What a program has to know that runs the network: what goes in and what comes out."""
    size = metadata.tile_size
    sides = [size, size] if step is None else ["rows", "cols"]
    normalised = (
        "(value - mean) / std of each band"
        if not metadata.per_image
        else "(value - mean) / std of each band, then of each image: minus its own mean, over its "
        "own standard deviation, of all its values"
    )
    return {
        "opset": OPSET,
        "inputs": {
            name: {
                "shape": ["batch", 3, *sides],
                "dtype": "float32",
                "meaning": f"date {name[1]}, bands in the order of band_order",
            }
            for name in ("t1", "t2")
        },
        "sides": f"{size} each" if step is None else f"multiples of {step}",
        "before": [
            "take 8-bit values, 0 to 255, of both dates on one grid",
            normalised,
            "order the axes as batch, band, row, column",
        ],
        "outputs": {
            "logits": {
                "shape": ["batch", 2, *sides],
                "dtype": "float32",
                "meaning": "scores of unchanged and changed",
            }
        },
        "after": [
            "softmax over axis 1; index 1 is the probability of change",
            "a pixel has changed where it is above the threshold, or above 0.5 where that is null",
            f"larger images: windows of {size} x {size}, which overlap by half and are blended "
            "with weights that fall linearly to those sides of a window that have a neighbour",
        ],
        "versions": {name: version(name) for name in ("dsfer", "torch", "onnx", "onnxruntime")},
    }
