"""Weights on disk: bundles of ours, and state dicts of others.

A bundle is `weights.safetensors` with `weights.json` beside it. The tensors are in the one, and all
that their use needs is in the other, their hash included: neither is of use without the other. The
record holds a hash of itself, too, so that nothing in it changes unseen.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeGuard

import torch
from pydantic import FiniteFloat, PositiveInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dsfer.errors import CheckpointError, DataError, first_line
from dsfer.files import read_json, sha256_file, write_bytes, write_json

SCHEMA = 3
"""Of the record. Schema 1 was inside the tensors' file, schema 2 had no hash of itself."""

Colours = tuple[FiniteFloat, FiniteFloat, FiniteFloat]


@dataclass(frozen=True, config={"extra": "forbid", "allow_inf_nan": False})
class Metadata:
    """The record of a bundle: what its weights are, and how they are used.

    Attributes:
        model: name as in `dsfer.list_models()`.
        options: keyword arguments of `dsfer.create_model` that rebuild the network.
        mean: mean of each band in the order of `band_order` that inputs are normalised with, 0 to
            255.
        std: standard deviation likewise.
        about: where the weights come from: data set, split hash, recipe, seed, and as `best` the
            metrics on the validation split, in percent.
        schema: version of this record.
        per_image: whether each image is then standardised by its own mean and standard deviation,
            see `dsfer.data.transforms.normalise`.
        tile_size: side of the images that the network was trained on, in pixels.
        band_order: what the network's three input channels are.
        bands: the 1-based bands of the training rasters that were these; None where they had no
            others.
        threshold: change probability above which F1 is highest on the validation split; None where
            nobody chose one.
        licence: terms of the imagery that the weights come from; None if unknown.
        file: name that the tensors' file was written under.
        sha256: of that file.
        record_sha256: of all the rest of this record, see `record_hash`.
        onnx: how an exported network is used, see `dsfer.export`; None of weights.
    """

    model: str
    options: dict[str, Any]
    mean: Colours
    std: Colours
    about: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    per_image: bool = False
    tile_size: PositiveInt = 256
    band_order: tuple[Literal["red"], Literal["green"], Literal["blue"]] = ("red", "green", "blue")
    bands: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    threshold: FiniteFloat | None = None
    licence: str | None = None
    file: str = ""
    sha256: str = ""
    record_sha256: str = ""
    onnx: dict[str, Any] | None = None


_RECORD = TypeAdapter(Metadata)


def record_path(weights: Path) -> Path:
    """Where the record of a file of tensors lies."""
    return weights.with_suffix(".json")


def save_weights(model: nn.Module, path: Path, metadata: Metadata) -> None:
    """Write a network's state dict as safetensors, and its record beside it, each atomically.

    Killed between the two, it leaves a record that does not fit the tensors, and is told so.
    """
    states = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    # Tells what the file is where its record was lost.
    write_bytes(path, save(states, {"dsfer": json.dumps({"schema": metadata.schema})}))
    write_record(path, metadata)


def write_record(path: Path, metadata: Metadata) -> None:
    """Write the record of a file of tensors, with that file's hash and its own."""
    stored = asdict(replace(metadata, file=path.name, sha256=sha256_file(path)))
    write_json(record_path(path), stored | {"record_sha256": record_hash(stored)})


def record_hash(stored: Mapping[str, Any]) -> str:
    """SHA-256 of the values of a record, whatever its layout, but for `record_sha256` itself."""
    values = {key: value for key, value in stored.items() if key != "record_sha256"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_metadata(path: Path, *, model: str | None = None) -> Metadata:
    """Read the record of a bundle.

    Args:
        path: weights written by `save_weights`, or a network exported by `dsfer.export`.
        model: the model it has to belong to, if that matters.

    Raises:
        CheckpointError: no such file, damaged, changed, of another schema or of another model.
    """
    place = record_path(path)
    if not path.is_file():
        raise CheckpointError("no such file", where=path, mend="train first")
    if not place.is_file():
        raise _without_record(path)
    try:
        stored = read_json(place)
    except DataError as error:
        raise CheckpointError(error.problem, where=place, mend=_AGAIN) from error
    schema = stored.get("schema") if isinstance(stored, dict) else None
    if schema != SCHEMA:
        raise CheckpointError(
            f"has schema {schema}, this version reads schema {SCHEMA}",
            where=place,
            mend="write it again with this version",
        )
    if (found := record_hash(stored)) != stored.get("record_sha256"):
        raise CheckpointError(
            f"was changed since it was written: its values have SHA-256 {found[:12]}…, "
            f"record_sha256 is {str(stored.get('record_sha256'))[:12]}…",
            where=place,
            mend=_AGAIN,
        )
    if missing := [each.name for each in fields(Metadata) if each.name not in stored]:
        raise CheckpointError(f"lacks {', '.join(missing)}", where=place, mend=_AGAIN)
    try:
        metadata = _RECORD.validate_python(stored)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        problem = f"{key}: {first['msg'].lower()}, found {first['input']!r}"
        raise CheckpointError(problem, where=place, mend=_AGAIN) from error
    if model is not None and metadata.model != model:
        raise CheckpointError(
            f"holds weights of {metadata.model!r}, not of {model!r}",
            where=path,
            mend=f"set model to {metadata.model!r} or give other weights",
        )
    return metadata


_AGAIN = "train again, or import the weights again; do not edit it by hand"


def _without_record(path: Path) -> CheckpointError:
    """Why weights have no record: they are older than records, or foreign, or it was lost."""
    try:
        with safe_open(path, framework="pt") as file:
            schema = json.loads((file.metadata() or {})["dsfer"])["schema"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        return CheckpointError(
            f"not a dsfer weights file ({first_line(error)})",
            where=path,
            mend="give a .safetensors file written by training or by dsfer import-weights",
        )
    if schema != SCHEMA:
        return CheckpointError(
            f"has schema {schema}, this version reads schema {SCHEMA}",
            where=path,
            mend="write it again with this version",
        )
    return CheckpointError(
        f"its record {record_path(path).name} is not beside it",
        where=path,
        mend="copy both files of the bundle",
    )


def load_weights(model: nn.Module, path: Path, *, model_name: str) -> Metadata:
    """Load a weights file into a network, every entry and nothing else.

    Raises:
        CheckpointError: as `read_metadata`, or it is no .safetensors file, not the file that the
            record is of, or an entry is missing, unknown or of another shape.
    """
    metadata = read_metadata(path, model=model_name)
    if metadata.onnx is not None:
        raise CheckpointError(
            "is an exported network, for onnxruntime and the like",
            where=path,
            mend="give the .safetensors file that it was exported from",
        )
    if path.suffix != ".safetensors":  # a record vouches for itself alone: nothing is unpickled
        raise CheckpointError(
            "is no .safetensors file",
            where=path,
            mend="bundles are .safetensors; turn other files into one by `dsfer import-weights`",
        )
    if (found := sha256_file(path)) != metadata.sha256:
        raise CheckpointError(
            f"has SHA-256 {found[:12]}…, its record {record_path(path).name} says "
            f"{metadata.sha256[:12]}…",
            where=path,
            mend="`dvc checkout` or copy both files of the bundle, or train again",
        )
    states = read_state_dict(path)
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
