"""What is known about each data set, read from `catalog.yaml` into frozen typed objects."""

import re
from functools import cache
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from dsfer.data.labels import LABEL_RULES
from dsfer.data.layouts import LAYOUTS
from dsfer.errors import ConfigError
from pipeline.frozen import Frozen, did_you_mean, parse, read_sections

CATALOG = Path(__file__).with_name("catalog.yaml")

OWN_DATA = ("folder", "rasters")
"""Entries that describe a user's own imagery; `folder/NAME` keeps several of them apart."""

Split = Literal["train", "val", "test"]
Reaction = Literal["fail", "warn"]
Rgb = tuple[float, float, float]
Ratio = tuple[float, float, float]


class Archive(Frozen):
    """One file to download.

    Attributes:
        name: file name under `data/downloads/<dataset>/`, as the authors call it.
        kind: container format; decides the magic bytes, the integrity test and the extractor.
        urls: where it is, mirrors in the order to try; empty if it can only be fetched by hand.
            They are printed and published; user and password come from `~/.netrc`.
        bytes: published size, or None.
        md5: published MD5 as 32 hex digits, or None.
        sha256: published SHA-256 as 64 hex digits, or None.
        into: folder below `D/raw` that it is unpacked to; "" for `D/raw` itself.
        by_hand: how a person gets the file.
    """

    name: str = Field(pattern=r"^[^/\\]+$")
    kind: Literal["zip", "rar"]
    urls: tuple[str, ...] = ()
    bytes: int | None = Field(default=None, gt=0)
    md5: str | None = Field(default=None, pattern="^[0-9a-f]{32}$")
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    into: str = ""
    by_hand: str

    @field_validator("urls")
    @classmethod
    def _hold_no_password(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in map(urlsplit, urls):
            if "@" in url.netloc:
                raise ConfigError(
                    "the address holds a user or a password",
                    where=f"urls, {url.hostname}",
                    mend="put them into ~/.netrc, where the download finds them",
                )
        return urls


class Fragments(Frozen):
    """Random rotated crops of large scenes, as CDD was made.

    Attributes:
        size: side of a fragment in pixels.
        counts: fragments to draw for each split.
        seed: of the random places and angles.
    """

    size: int = Field(gt=0)
    counts: dict[Split, int]
    seed: int = Field(ge=0)


class Release(Frozen):
    """One published form of a data set's imagery.

    Attributes:
        archives: files that hold it; none for rendered or own imagery.
        layout: name of the adapter in `dsfer.data.layouts` that finds its scenes; None where the
            scenes are rendered.
        fragments: how tiles are drawn, or None for the plain grid of windows.
    """

    archives: tuple[Archive, ...] = ()
    layout: str | None = None
    fragments: Fragments | None = None

    @model_validator(mode="after")
    def _layout_exists(self) -> Self:
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ValueError(f"unknown layout '{self.layout}'{did_you_mean(self.layout, LAYOUTS)}")
        return self


class Expected(Frozen):
    """What a correct preparation yields, to validate against.

    Attributes:
        scenes: scenes in each split.
        tiles: tiles in each split.
        changed_fraction: share of changed pixels in each split, 0 to 1.
        tolerance: absolute difference of `changed_fraction` that is accepted.
    """

    scenes: dict[Split, int] = Field(default_factory=dict)
    tiles: dict[Split, int] = Field(default_factory=dict)
    changed_fraction: dict[Split, float] = Field(default_factory=dict)
    tolerance: float = Field(default=0.0002, gt=0, lt=1)


class Policy(Frozen):
    """One way to split the data set.

    Attributes:
        method: `published` (as the authors split the scenes), `random` (tiles, seeded), `scenes`
            (whole scenes, seeded) or `spatial` (contiguous blocks of columns).
        release: which release of the imagery it needs.
        ratio: train : val : test; of published regions only train : val counts. None where the
            authors' split leaves nothing to choose.
        expected: what the policy yields with this ratio, where that is known.
        note: what to know before comparing numbers obtained with it.
    """

    method: Literal["published", "random", "scenes", "spatial"]
    release: str = "main"
    ratio: Ratio | None = None
    expected: Expected = Expected()
    note: str = ""

    @model_validator(mode="after")
    def _ratio_where_needed(self) -> Self:
        if (self.ratio is None) != (self.method == "published"):
            raise ValueError(
                f"method '{self.method}' "
                + ("takes no ratio" if self.method == "published" else "needs a ratio")
            )
        if self.ratio is not None and (min(self.ratio) < 0 or self.ratio[0] <= 0):
            raise ValueError("ratio needs a positive train part and no negative one")
        return self


class SplitFacts(Frozen):
    """The policies a data set offers, and the one that `split: null` means."""

    default: str
    policies: dict[str, Policy]

    @model_validator(mode="after")
    def _default_exists(self) -> Self:
        if self.default not in self.policies:
            raise ValueError(
                f"default '{self.default}' is no policy{did_you_mean(self.default, self.policies)}"
            )
        return self


class Tiling(Frozen):
    """Side of a tile in pixels, and what happens to windows that cross the scene's edge."""

    tile_size: int = Field(gt=0)
    padding: Literal["pad", "drop"]


class Leakage(Frozen):
    """What the leakage audit does on tiles of two splits that share content or ground.

    Attributes:
        identical: one image, pixel by pixel, in both.
        near: images that look almost the same.
        overlap: ground that both show.
        adjacent: ground that touches, as it always does where scenes are cut apart.
    """

    identical: Reaction
    near: Reaction
    overlap: Reaction
    adjacent: Reaction


class Demo(Frozen):
    """Parameters of the rendered demo: seed, number of scenes, side of a scene in pixels."""

    seed: int = Field(ge=0)
    count: int = Field(gt=0)
    size: int = Field(gt=0)


class DatasetEntry(Frozen):
    """One data set: everything the pipeline knows about it.

    Attributes:
        name: key in the catalog (`folder` for `folder/NAME`).
        title: full name.
        description: what it shows, in one or two sentences.
        citation: paper to cite.
        licence: terms of use, or that none is stated.
        homepage: where its authors publish it.
        releases: forms of the imagery, by name.
        label_rule: how label values are read, see `dsfer.data.labels`.
        bands: three 1-based bands that become R, G, B; None for the first three.
        tiling: tile size and padding.
        split: policies and their default.
        mean: of R, G, B over both dates on the 0-255 scale, or None to compute it from the
            training split.
        std: the same for the standard deviation.
        class_weights: weights of unchanged and changed pixels in the loss, or None to compute
            them from the training split.
        leakage: what the leakage audit does.
        blank_share: largest share of tiles that may be blank, 0 to 1.
        grid_tolerance: largest distance between the pixel corners of the two dates, in pixels.
        demo: parameters of the renderer, for the demo only.
    """

    name: str
    title: str
    description: str
    citation: str
    licence: str
    homepage: str
    releases: dict[str, Release]
    label_rule: str
    bands: tuple[int, int, int] | None = None
    tiling: Tiling
    split: SplitFacts
    mean: Rgb | None = None
    std: Rgb | None = None
    class_weights: tuple[float, float] | None = None
    leakage: Leakage
    blank_share: float = Field(ge=0, le=1)
    grid_tolerance: float = Field(ge=0)
    demo: Demo | None = None

    @model_validator(mode="after")
    def _names_resolve(self) -> Self:
        if self.label_rule not in LABEL_RULES:
            raise ValueError(
                f"unknown label rule '{self.label_rule}'"
                f"{did_you_mean(self.label_rule, LABEL_RULES)}"
            )
        for name, policy in self.split.policies.items():
            if policy.release not in self.releases:
                raise ValueError(
                    f"split policy '{name}' needs the unknown release '{policy.release}'"
                    f"{did_you_mean(policy.release, self.releases)}"
                )
        return self

    def policy(self, name: str) -> Policy:
        """Return the split policy called `name`.

        Raises:
            ConfigError: the data set has no such policy.
        """
        if name not in self.split.policies:
            raise ConfigError(
                f"'{self.name}' has no split policy '{name}'"
                f"{did_you_mean(name, self.split.policies)}",
                where="params.yaml, split",
                mend=f"choose one of {', '.join(self.split.policies)}",
            )
        return self.split.policies[name]

    def release(self, policy: str) -> Release:
        """Return the release of the imagery that a split policy needs."""
        return self.releases[self.policy(policy).release]


@cache
def load_catalog(path: Path = CATALOG) -> dict[str, DatasetEntry]:
    """Read the catalog.

    Args:
        path: a YAML mapping from data set names to the keys of `DatasetEntry`.

    Raises:
        ConfigError: the file is missing, no YAML, or an entry is not as `DatasetEntry` declares.
    """
    return {
        name: parse(DatasetEntry, row | {"name": name}, f"{path} ({name})")
        for name, row in read_sections(path).items()
    }


def catalog_entry(dataset: str, path: Path = CATALOG) -> DatasetEntry:
    """Look up a data set by the name that `params.yaml` gives.

    Args:
        dataset: a name in the catalog, or `folder/NAME` or `rasters/NAME` for own imagery.
        path: the catalog.

    Raises:
        ConfigError: there is no such data set, or NAME has characters beyond letters, digits,
            `_` and `-`, or more than 100.
    """
    catalog = load_catalog(path)
    base, slash, own = dataset.partition("/")
    if slash and base in OWN_DATA and not re.fullmatch("[A-Za-z0-9_-]{1,100}", own):
        raise ConfigError(
            f"'{own}' is no name for a data set of your own",
            where="params.yaml, dataset",
            mend="use up to 100 letters, digits, _ and -, as in folder/harbour-2024",
        )
    if base not in catalog or (slash and base not in OWN_DATA):
        raise ConfigError(
            f"unknown data set '{dataset}'{did_you_mean(dataset, catalog)}",
            where="params.yaml, dataset",
            mend=f"choose one of {', '.join(catalog)}; for imagery of your own use "
            "'folder/NAME' or 'rasters/NAME' with source: your folder",
        )
    return catalog[base]
