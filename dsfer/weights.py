"""Weights on disk: our safetensors files, and state dicts of others.

A weights file carries, in its safetensors metadata, the schema version, the model's name, the
options it was built with and how its input is normalised, so that it needs nothing beside it.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dsfer.errors import CheckpointError, first_line
from dsfer.files import write_bytes

SCHEMA = 1


@dataclass(frozen=True)
class Metadata:
    """What a weights file says about itself.

    Attributes:
        model: name as in `dsfer.list_models()`.
        options: keyword arguments of `dsfer.create_model` that rebuild the network.
        mean: mean of each RGB band that inputs are normalised with, 0 to 255.
        std: standard deviation likewise.
        about: where the weights come from: data set, split hash, recipe, seed, metrics.
        schema: version of this record.
        per_image: whether each image is then standardised by its own mean and standard deviation,
            see `dsfer.data.transforms.normalise`.
    """

    model: str
    options: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    about: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    per_image: bool = False


def save_weights(model: nn.Module, path: Path, metadata: Metadata) -> None:
    """Write a network's state dict as safetensors with a hash of it all, atomically."""
    states = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    record = json.dumps(asdict(metadata))
    write_bytes(path, save(states, {"dsfer": record, "sha256": _hash(record, states)}))


def _hash(record: str, states: Mapping[str, Tensor]) -> str:
    """SHA-256 over metadata, names and bytes of contiguous tensors on the CPU."""
    digest = hashlib.sha256(record.encode())
    for key in sorted(states):
        digest.update(key.encode())
        digest.update(states[key].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_metadata(path: Path, *, model: str | None = None) -> Metadata:
    """Read what a weights file says about itself.

    Args:
        path: a file written by `save_weights`.
        model: the model it has to belong to, if that matters.

    Raises:
        CheckpointError: no such file, damaged, of another schema or of another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            stored = json.loads((file.metadata() or {})["dsfer"])
    except FileNotFoundError as error:
        raise CheckpointError("no such file", where=path, mend="train first") from error
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"not a dsfer weights file ({error})",
            where=path,
            mend="give a .safetensors file written by training or by dsfer import-weights",
        ) from error
    schema = stored.get("schema") if isinstance(stored, dict) else None
    if schema != SCHEMA:
        raise CheckpointError(
            f"has schema {schema}, this version reads schema {SCHEMA}",
            where=path,
            mend="write it again with this version",
        )
    metadata = _metadata(stored, path)
    if model is not None and metadata.model != model:
        raise CheckpointError(
            f"holds weights of {metadata.model!r}, not of {model!r}",
            where=path,
            mend=f"set model to {metadata.model!r} or give other weights",
        )
    return metadata


def _metadata(stored: dict[str, Any], path: Path) -> Metadata:
    """The record of a weights file, its keys and values checked."""
    try:
        return TypeAdapter(Metadata).validate_python(stored)
    except ValidationError as error:
        issue = error.errors(include_url=False)[0]
        raise CheckpointError(
            f"its record of itself is damaged ({issue['loc'][0]}: {issue['msg']})",
            where=path,
            mend="train again, or import the weights again",
        ) from error


def load_weights(model: nn.Module, path: Path, *, model_name: str) -> Metadata:
    """Load a weights file into a network, every entry and nothing else.

    Raises:
        CheckpointError: as `read_metadata`, or an entry is missing, unknown or of another shape.
    """
    metadata = read_metadata(path, model=model_name)
    states = read_state_dict(path)
    with safe_open(path, framework="pt") as file:
        stored = file.metadata()
    if "sha256" in stored and stored["sha256"] != _hash(stored["dsfer"], states):
        raise CheckpointError(
            "its content differs from what was saved (SHA-256)",
            where=path,
            mend="train again, `dvc checkout` the file, or import the weights again",
        )
    check_fit({key: v.shape for key, v in states.items()}, _shapes(model), path)
    model.load_state_dict(states)
    return metadata


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from .safetensors or from a torch file, without running any pickled code.

    Raises:
        CheckpointError: the file is missing, damaged, or holds anything but named tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with path.open("rb") as file:
            check_crc(file)
            states = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError("no such file", where=path, mend="check the path") from error
    except Exception as error:  # torch's unpickler raises whatever the damage leads it to
        raise CheckpointError(
            f"not a readable state dict of plain tensors ({first_line(error)})",
            where=path,
            mend="save it again as a state dict, or fetch it again",
        ) from error
    if isinstance(states, dict):
        # Training code often saves the state dict among other things, under a name of its own.
        inside = [value for value in states.values() if _is_state_dict(value)]
        states = inside[0] if len(inside) == 1 else states
    if not _is_state_dict(states):
        raise CheckpointError(
            "holds no state dict", where=path, mend="give a file of named tensors"
        )
    return states


def check_crc(file: BinaryIO) -> None:
    """Compare the checksums in a file of torch, which torch writes but does not read.

    Raises:
        ValueError: one differs.
        zipfile.BadZipFile: the file is damaged otherwise.
    """
    if zipfile.is_zipfile(file):  # torch wrote other files before 1.6, without checksums
        with zipfile.ZipFile(file) as archive:
            if (member := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {member} is wrong")
    file.seek(0)


def _is_state_dict(value: object) -> TypeGuard[dict[str, Tensor]]:
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(entry, Tensor) for entry in value.values())


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}


def check_fit(
    found: Mapping[str, torch.Size], expected: Mapping[str, torch.Size], where: Path
) -> None:
    """Refuse shapes of a state dict, by name, that are not exactly those of a network.

    Raises:
        CheckpointError: an entry is missing, unknown or of another shape.
    """
    missing = [key for key in expected if key not in found]
    unknown = [key for key in found if key not in expected]
    shaped = [
        f"{key} is {tuple(found[key])}, not {tuple(expected[key])}"
        for key in expected
        if key in found and found[key] != expected[key]
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unknown", unknown), ("misshapen", shaped))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"does not fit the network ({'; '.join(problems)})",
            where=where,
            mend="give the weights of this very model, variant, width and image size",
        )
