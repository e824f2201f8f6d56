"""Exact import of the checkpoints that the methods' authors released.

Of each released network a table, `dsfer/models/released_*.tsv`, lists every entry of its state
dict: its name and shape there, and its name in ours, empty where the network never uses it. A
checkpoint is imported if it has these very entries, and refused otherwise.
"""

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.serialization import safe_globals

from dsfer.data.transforms import SIGNED, STANDARDISED, Input
from dsfer.errors import CheckpointError, ConfigError
from dsfer.models import create_model
from dsfer.weights import Metadata, check_fit, read_state_dict


class Entry(NamedTuple):
    """One entry of a released state dict: its name and shape there, and its name in ours."""

    name: str
    shape: torch.Size
    ours: str


DSFER_NET = {
    "levir-cd": Input((101.4625, 100.0701, 85.4457), (50.1835, 47.9116, 44.1588)),
    "whu-cd": Input((123.3417, 118.1207, 107.9191), (49.5432, 47.8814, 51.0839)),
    "cdd": Input((105.4610, 113.4304, 103.5061), (60.5640, 64.5690, 61.7836)),
}
"""Of each data set that Dsfer-Net was released for. The released network was fed BGR; these are
its figures as RGB."""


@dataclass(frozen=True)
class Release:
    """A released network.

    Attributes:
        table: name of the table of its state dict.
        input: how its input was normalised, for each data set or for all.
        options: of `create_model`, with which ours has its layout.
        reversed_bands: our name of the weights that saw BGR and shall see RGB.
        parts: what begins the names of a part that was released in a file of its own, and what
            comes before these names in the table.
    """

    table: str
    input: Input | dict[str, Input]
    options: dict[str, Any] = field(default_factory=dict)
    reversed_bands: str | None = None
    parts: dict[str, str] = field(default_factory=dict)

    @cached_property
    def entries(self) -> list[Entry]:
        """The released state dict, in its order."""
        with (files("dsfer.models") / f"released_{self.table}.tsv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        return [Entry(row["name"], _shape(row["shape"]), row["ours"]) for row in rows]

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape of each entry by its released name."""
        return {entry.name: entry.shape for entry in self.entries}

    def input_of(self, dataset: str | None) -> Input:
        """How the network's input was normalised when it was trained on `dataset`.

        Raises:
            ConfigError: it was not released for that data set.
        """
        if isinstance(self.input, Input):
            return self.input
        if dataset not in self.input:
            raise ConfigError(
                f"no released checkpoint is known for {dataset!r}",
                where="dataset",
                mend=f"choose one of {', '.join(self.input)}",
            )
        return self.input[dataset]


PARALLEL = "module."
"""Begins every name of a network that was saved from inside torch's DataParallel."""

STANET_FILES = {PARALLEL: "netF.", "Self_Att.": "netA."}
"""STANet's authors saved its two parts, features and attention, each in its own file."""

RELEASES = {
    "bit": [
        Release("bit_dd8_dedim8", SIGNED),
        Release("bit_dd8", SIGNED, {"decoder_head_width": 64}),
    ],
    "changeformer": [Release("changeformer_v6_256", SIGNED)],
    "dsamnet": [Release("dsamnet", SIGNED)],
    "dsfer-net": [
        Release("dsfer_net", DSFER_NET, reversed_bands="encoder.features.0.weight"),
    ],
    "fc-ef-res": [Release("fc_ef_res", STANDARDISED)],
    "fc-siam-conc": [Release("fc_siam_conc", STANDARDISED)],
    "stanet": [
        Release("stanet_pam", SIGNED, {"attention": "pam"}, parts=STANET_FILES),
        Release("stanet_bam", SIGNED, {"attention": "bam"}, parts=STANET_FILES),
    ],
    "vct": [Release("vct", SIGNED)],
}
"""Released networks by the name of ours; where there are several, the checkpoint tells which."""


def import_released(
    model: str, sources: Iterable[Path], dataset: str | None = None
) -> tuple[nn.Module, Metadata]:
    """Build a network with the weights of a released checkpoint, exactly.

    Entries are renamed, and nothing else: but for the first convolution of a network that was fed
    BGR, whose input channels are reversed. What DataParallel puts before all names is taken off.

    Args:
        model: name as in `dsfer.list_models()`.
        sources: the checkpoint; several files where it was released in parts.
        dataset: data set that it was trained on, if known.

    Returns:
        The network, and what its weights file says about itself.

    Raises:
        ConfigError: no release of that model, or none for that data set, is known.
        CheckpointError: a file cannot be read, or an entry is missing, unknown or of another shape.
    """
    sources = list(sources)
    if model not in RELEASES:
        raise ConfigError(
            f"no released checkpoint of {model!r} is known",
            where="model",
            mend=f"choose one of {', '.join(RELEASES)}",
        )
    releases = RELEASES[model]
    states = _read(sources, releases[0].parts)
    found = {name: value.shape for name, value in states.items()}
    release = min(releases, key=lambda r: len(found.items() ^ r.shapes.items()))
    check_fit(found, release.shapes, sources[0])
    mean, std, per_image = release.input_of(dataset)
    network = create_model(model, **release.options)
    renamed = {entry.ours: states[entry.name] for entry in release.entries if entry.ours}
    if release.reversed_bands:
        renamed[release.reversed_bands] = renamed[release.reversed_bands].flip(1)
    network.load_state_dict(renamed)
    about = {"recipe": "released", "imported_from": ", ".join(source.name for source in sources)}
    if dataset is not None:
        about["dataset"] = dataset
    metadata = Metadata(model, release.options, mean, std, about, per_image=per_image)
    return network, metadata


class _PassedOver:
    """Stands for whatever builds a scalar of numpy in a pickle; nothing of numpy is called.

    Training code saves its best score, which may be such a scalar, beside the weights.
    """

    def __init__(self, *_: object): ...

    def __setstate__(self, _: object) -> None: ...


_OF_NUMPY_SCALARS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_PassedOver, "numpy.dtype"),
    (_PassedOver, "numpy.core.multiarray.scalar"),  # of numpy 1
    (_PassedOver, "numpy._core.multiarray.scalar"),
]


def _read(sources: list[Path], parts: dict[str, str]) -> dict[str, Tensor]:
    states: dict[str, Tensor] = {}
    for source in sources:
        with safe_globals(_OF_NUMPY_SCALARS):
            found = read_state_dict(source)
        for name, value in found.items():
            before = [whole for part, whole in parts.items() if name.startswith(part)]
            full = "".join(before) + name
            if full in states:
                raise CheckpointError(
                    f"holds {name}, which another of the files holds too",
                    where=source,
                    mend="give each part of one checkpoint once",
                )
            states[full] = value
    if all(name.startswith(PARALLEL) for name in states):
        return {name.removeprefix(PARALLEL): value for name, value in states.items()}
    return states


def _shape(text: str) -> torch.Size:
    return torch.Size(int(side) for side in text.split("x") if side != "()")
