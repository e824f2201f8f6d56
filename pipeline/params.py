"""`params.yaml`, parsed once into frozen typed objects; `python -m pipeline.params` prints them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, WithJsonSchema
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from ruamel.yaml import YAML

from dsfer.data.labels import LABEL_RULES
from dsfer.devices import Device
from dsfer.errors import ConfigError
from dsfer.files import atomic_path
from dsfer.models import MODELS
from dsfer.paths import location
from pipeline.catalog import (
    CATALOG,
    OWN_DATA,
    DatasetEntry,
    Expected,
    Policy,
    Release,
    catalog_entry,
)
from pipeline.frozen import NO_SECRETS, SECRETS, Frozen, Place, did_you_mean, parse, read_yaml
from pipeline.recipes import RECIPE_KEYS, Recipe, default_recipe, resolve_recipe

PARAMS = Path("params.yaml")

ENCODERS = {"vgg16": 16, "resnet18": 32, "transformer": 32}
"""Encoders of Table IV, and what Dsfer-Net with them divides a tile's side by."""

DSFER_NET_KEYS = ("encoder", "hopfield_dim", "hopfield_beta", "norm")
"""Keys that are of no use to other networks."""

REDRAWN = ("bit", "changeformer", "vct")
"""Networks whose released code draws all weights anew, those of ImageNet included."""

FROM_SCRATCH = ("changeformer", "fc-ef-res", "fc-siam-conc", "transformer")
"""Networks, and encoders of Dsfer-Net, of which there are no ImageNet weights."""

STORES = ("s3", "gs", "az")
"""Kinds of object stores that shards may be kept in."""

Band = Annotated[int, Field(ge=1)]
Part = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Workers = Annotated[int, Field(ge=1)]
Drawn = Annotated[str, Field(pattern=r"^[^@]+(@\d+,\d+)?$")]
Value = Annotated[Any, WithJsonSchema(NO_SECRETS)]
"""What somebody wants a parameter to be, whichever it is; it is checked with all the others."""

Scheduler = Annotated[str, Field(pattern=r"^(tcp|tls)://[^/@\s]+:\d+$")]


class Params(Frozen):
    """The keys of `params.yaml`; recipe values may be null, and are checked once merged."""

    # Strict: a quoted number or a boolean is no number. YAML has no paths and no tuples, though.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dataset: str
    source: Place = Field(min_length=1)
    label_rule: str | None
    bands: tuple[Band, Band, Band] | None = Field(strict=False)
    tile_size: int | None = Field(ge=16)
    padding: Literal["pad", "drop"] | None
    split: str | None
    split_ratio: tuple[Part, Part, Part] | None = Field(strict=False)
    split_seed: Seed
    model: str
    variant: str | None
    encoder: str | None = Field(min_length=1)
    hopfield_dim: int | None = Field(ge=1)
    hopfield_beta: float | None = Field(gt=0, allow_inf_nan=False)
    norm: Literal["volume", "channel"]
    # What a recipe has a value for stays as it is until it is merged with the recipe.
    width: Any
    pretrained: Any
    recipe: str | None
    lambda_: Any = Field(alias="lambda")
    optimiser: Any
    momentum: Any
    lr: Any
    weight_decay: Any
    schedule: Any
    schedule_iterations: Any
    hold: Any
    warmup: Any
    iterations: Any
    batch_size: Any
    change_loss: Any
    deep_loss: Any
    class_weights: Any
    sampling: Any
    augmentation: Any
    normalisation: Any
    ema: Any
    precision: Any
    validate_every: Any
    seed: Seed
    device: Device
    processes: int = Field(ge=1)
    compile: bool | None
    in_memory: bool | None
    workers: int = Field(ge=1)
    shards: Place | None = Field(min_length=1)
    cluster: Workers | Scheduler | None
    overlap: float = Field(ge=0, lt=1)
    figures: list[Drawn] | None = Field(min_length=1)


class DataSettings(Frozen):
    """How the data set is prepared, with nothing left open.

    Attributes:
        entry: what the catalog knows of it.
        source: a user's own folder, on a disk or in an object store, or the catalog.
        label_rule: how label values are read.
        bands: three 1-based bands to take as R, G, B, or None for the first three.
        tile_size: side of a tile in pixels.
        padding: `pad` or `drop`.
        split: name of the split policy.
        split_ratio: train : val : test, or None where the published split leaves no choice.
        split_seed: of random policies.
    """

    entry: DatasetEntry
    source: str
    label_rule: str
    bands: tuple[int, int, int] | None
    tile_size: int
    padding: Literal["pad", "drop"]
    split: str
    split_ratio: tuple[float, float, float] | None
    split_seed: int

    @property
    def policy(self) -> Policy:
        """The split policy, as the catalog describes it."""
        return self.entry.policy(self.split)

    @property
    def release(self) -> Release:
        """The release of the imagery that the split policy needs."""
        return self.entry.release(self.split)

    @property
    def as_expected(self) -> bool:
        """Whether tiles are cut and split as the expected numbers of the split policy assume."""
        tiling = self.entry.tiling
        cut = (self.tile_size, self.padding) == (tiling.tile_size, tiling.padding)
        return cut and _shares(self.split_ratio) == _shares(self.policy.ratio)

    @property
    def expected(self) -> Expected:
        """What is known of these splits: no shares of change under another label rule."""
        if not self.as_expected:
            return Expected()
        if self.label_rule != self.entry.label_rule:
            return self.policy.expected.model_copy(update={"changed_fraction": {}})
        return self.policy.expected

    @property
    def as_published(self) -> bool:
        """Whether the pixels are read, cut and split as those that published numbers belong to.

        Only then do published statistics, class weights and scores apply. A random split counts
        with any seed, as the authors' own is not known; the policy's note says so.
        """
        entry = self.entry
        read = (self.label_rule, self.bands) == (entry.label_rule, entry.bands)
        return read and self.split == entry.split.default and self.as_expected


def _shares(ratio: tuple[float, ...] | None) -> list[float] | None:
    return None if ratio is None else [round(part / sum(ratio), 6) for part in ratio]


class Settings(Frozen):
    """Every parameter with its value.

    Attributes:
        params: `params.yaml` as given.
        data: how the data set is prepared.
        variant: of the network, or None where it has none.
        encoder: of Dsfer-Net, or None for the other networks.
        recipe_name: the recipe that was taken.
        recipe: how the network is trained.
        sources: where each value comes from that params.yaml may leave open.
    """

    params: Params
    data: DataSettings
    variant: str | None
    encoder: str | None
    recipe_name: str
    recipe: Recipe
    sources: dict[str, str]

    @property
    def given(self) -> dict[str, Any]:
        """What `params.yaml` says in place of the recipe and the catalog, by key."""
        return {k: v for k, v in self.resolved().items() if self.sources.get(k) == str(PARAMS)}

    @property
    def folder(self) -> Path:
        """Where the data set's outputs lie."""
        return Path("data") / self.params.dataset

    @property
    def model_folder(self) -> Path:
        """Where the outputs of this model on this data set lie."""
        return self.folder / "models" / self.params.model

    @property
    def shard_store(self) -> str | None:
        """Where in an object store the data set's shards lie, or None where they lie here."""
        if self.params.shards is None:
            return None
        return f"{self.params.shards.rstrip('/')}/{self.params.dataset}"

    @property
    def model_options(self) -> dict[str, Any]:
        """Keyword arguments of `dsfer.create_model`."""
        options: dict[str, Any] = {}
        if self.variant is not None:
            options |= MODELS[self.params.model].variants[self.variant]
        if self.params.model == "dsfer-net":
            options |= {"image_size": self.data.tile_size, "encoder": self.encoder} | {
                key: getattr(self.params, key) for key in ("hopfield_dim", "hopfield_beta", "norm")
            }
        if self.recipe.width != 1:
            options["width"] = self.recipe.width
        if self.recipe.pretrained == "redrawn":
            options["released_init"] = True
        return options

    def resolved(self) -> dict[str, Any]:
        """Every key of `params.yaml` with the value that is used, JSON-able; null where none is."""
        values = self.params.model_dump(mode="json", by_alias=True)
        if self.params.model != "dsfer-net":
            values |= dict.fromkeys(DSFER_NET_KEYS)
        values |= {"variant": self.variant, "encoder": self.encoder, "recipe": self.recipe_name}
        values |= self.recipe.model_dump(mode="json", by_alias=True)
        return values | self.data.model_dump(mode="json", exclude={"entry"})


def load_params(path: Path = PARAMS, changes: Mapping[str, Any] | None = None) -> Params:
    """Read and check `params.yaml`.

    Args:
        path: the file.
        changes: values by key to take instead of the file's, as an experiment's.

    Raises:
        ConfigError: the file is missing or no YAML, a key is unknown, missing, of the wrong type
            or impossible.
    """
    values = read_yaml(path)
    if isinstance(values, dict):
        values |= changes or {}
    params = parse(Params, values, path)
    _check_choice("model", params.model, tuple(sorted(MODELS)))
    if params.label_rule is not None:
        _check_choice("label_rule", params.label_rule, tuple(LABEL_RULES))
    return params


def resolve(params: Params) -> Settings:
    """Fill every null from the catalog and the recipe.

    Raises:
        ConfigError: an unknown data set, recipe or split policy, or values that exclude each other.
    """
    entry = catalog_entry(params.dataset)
    _check_source(params, entry)
    given = params.model_dump(by_alias=True)
    recipe_name = params.recipe or default_recipe(params.model)
    recipe, sources = resolve_recipe(
        recipe_name,
        params.model,
        entry.name,
        {key: given[key] for key in RECIPE_KEYS if given[key] is not None},
    )
    split = params.split or entry.split.default
    from_catalog = {
        "label_rule": entry.label_rule,
        "bands": entry.bands,
        "tile_size": entry.tiling.tile_size,
        "padding": entry.tiling.padding,
        "split": split,
        "split_ratio": entry.policy(split).ratio,
    }
    chosen: dict[str, Any] = {
        key: from_catalog[key] if given[key] is None else given[key] for key in from_catalog
    }
    sources |= {key: "catalog" if given[key] is None else "params.yaml" for key in from_catalog}
    data = DataSettings(entry=entry, source=params.source, split_seed=params.split_seed, **chosen)
    _check_shards(params.shards)
    _check_split(params, data)
    variant, encoder = _variant(params), _encoder(params)
    _check_tile_size(params.model, encoder, data.tile_size)
    _check_pretrained(params.model, encoder, recipe)
    _check_width(encoder, recipe)
    for key, chosen_here in {
        "variant": variant,
        "encoder": encoder,
        "recipe": recipe_name,
    }.items():
        if given[key] is None and chosen_here is not None:
            sources[key] = f"default of {params.model}"
    if params.model != "dsfer-net":
        sources |= dict.fromkeys(DSFER_NET_KEYS, "not of this network")
    return Settings(
        params=params,
        data=data,
        variant=variant,
        encoder=encoder,
        recipe_name=recipe_name,
        recipe=recipe,
        sources=sources,
    )


def check_no_secrets(path: Path) -> None:
    """Refuse a `params.yaml` with credentials before DVC prints and records what is in it.

    Raises:
        ConfigError: a value is, or holds, a URL with credentials; or the file is no YAML.
    """
    values = read_yaml(path)
    if isinstance(values, dict):
        for key, value in values.items():
            _check_no_secret(key, str(value))


def current_settings(changes: Mapping[str, Any] | None = None) -> Settings:
    """The settings of the project whose top folder is the current one, with `changes` on top."""
    return resolve(load_params(changes=changes))


def change_params(path: Path, changes: Mapping[str, Any]) -> None:
    """Write values by key into a `params.yaml`, keeping its comments."""
    yaml = YAML()
    values = yaml.load(path.read_text(encoding="utf-8"))
    values.update(changes)
    with atomic_path(path) as temporary:
        yaml.dump(values, temporary)


def parameter_types() -> dict[str, Any]:
    """The type of each key of `params.yaml`, bounds included, by its name there."""
    fields = Params.model_fields | Recipe.model_fields  # a recipe's are stricter than Any
    return {
        field.alias or name: Annotated[field.annotation, *field.metadata]
        if field.metadata
        else field.annotation
        for name, field in fields.items()
    }


def _impossible(key: str, problem: str, mend: str) -> ConfigError:
    return ConfigError(problem, where=f"{PARAMS}, {key}", mend=mend)


def _check_choice(key: str, value: str, choices: tuple[str, ...], otherwise: str = "") -> None:
    if value not in choices:
        raise _impossible(
            key,
            f"unknown {key} '{value}'{did_you_mean(value, choices)}",
            f"choose one of {', '.join(choices)}" + (f", or {otherwise}" if otherwise else ""),
        )


def _check_source(params: Params, entry: DatasetEntry) -> None:
    _check_no_secret("source", params.source)
    own, from_catalog = entry.name in OWN_DATA, location(params.source).name == CATALOG.name
    if own and from_catalog:
        kind = "scenes" if entry.name == "folder" else "rasters and their list"
        raise _impossible(
            "source",
            f"'{params.source}' is no imagery, and data set '{params.dataset}' is your own",
            f"set source to your folder of {kind}",
        )
    if not own and not from_catalog:
        raise _impossible(
            "source",
            f"'{params.source}' is not used by data set '{params.dataset}'",
            "set source: pipeline/catalog.yaml, or dataset: folder/NAME for imagery of your own",
        )


def _check_shards(url: str | None) -> None:
    if url is None:
        return
    _check_no_secret("shards", url)
    parts = urlsplit(url)
    if parts.scheme not in STORES or not parts.netloc:
        raise _impossible(
            "shards",
            f"'{url}' is no folder of an object store ({', '.join(f'{s}://' for s in STORES)})",
            "set it to a URL as s3://BUCKET/FOLDER, or to null to keep shards under data/",
        )


def _check_no_secret(key: str, url: str) -> None:
    """Refuse credentials in a URL: they would be written to lock files, logs and experiments."""
    if found := re.search(SECRETS, url):
        raise _impossible(
            key,
            f"the URL of {found[1]}://... holds more than a bucket and a folder",
            "give credentials by the environment alone (AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY)",
        )


def _check_split(params: Params, data: DataSettings) -> None:
    if params.split_ratio is not None and data.policy.ratio is None:
        raise _impossible(
            "split_ratio",
            f"split '{data.split}' is the authors' own and takes no ratio",
            "set it to null, or choose another split",
        )


def _variant(params: Params) -> str | None:
    """The variant of the network, its first where none is named."""
    variants = tuple(MODELS[params.model].variants)
    if params.variant is None:
        return variants[0] if variants else None
    if not variants:
        raise _impossible(
            "variant", f"'{params.variant}', and {params.model} has none", "set it to null"
        )
    _check_choice("variant", params.variant, variants, f"null for {params.model}'s {variants[0]}")
    return params.variant


def _encoder(params: Params) -> str | None:
    """The encoder, which only Dsfer-Net leaves open."""
    if params.model == "dsfer-net":
        return params.encoder or next(iter(ENCODERS))
    if params.encoder is not None:
        raise _impossible(
            "encoder",
            f"'{params.encoder}' is for dsfer-net, and {params.model} has its own",
            "set it to null, or model to dsfer-net",
        )
    return None


def _check_tile_size(model: str, encoder: str | None, size: int) -> None:
    divisor, smallest = MODELS[model].divisor, MODELS[model].smallest
    if encoder is not None:
        divisor = ENCODERS.get(encoder) or _last_stride(encoder)
    below = size // divisor * divisor
    if size < smallest:
        raise _impossible(
            "tile_size", f"{size} is too small for {model}", f"set tile_size to {smallest} or more"
        )
    if size % divisor:
        sizes = " or ".join(str(side) for side in (below, below + divisor) if side >= smallest)
        raise _impossible(
            "tile_size",
            f"{size} is not divisible by {divisor}, which {model} needs",
            f"set tile_size to {sizes}",
        )


def _last_stride(encoder: str) -> int:
    """What one of torchvision's encoders divides a tile's side by.

    Raises:
        ConfigError: there is none of that name, or it does not give five scales.
    """
    from dsfer.models.torchvision_encoder import TorchvisionEncoder  # seconds to import

    try:
        return int(TorchvisionEncoder(encoder).strides[-1])
    except ConfigError as error:
        raise _impossible("encoder", error.problem, str(error.mend)) from error


def _check_pretrained(model: str, encoder: str | None, recipe: Recipe) -> None:
    if recipe.pretrained == "none":
        return
    if recipe.pretrained == "redrawn":
        if model not in REDRAWN:
            raise _impossible(
                "pretrained",
                f"'redrawn' is the released start of {', '.join(REDRAWN)}, not of {model}",
                "set pretrained: none",
            )
        return
    if (encoder or model) in FROM_SCRATCH:
        raise _impossible(
            "pretrained",
            f"'{recipe.pretrained}', and there are no ImageNet weights of {encoder or model}",
            "set pretrained: none",
        )
    if recipe.width != 1:
        raise _impossible(
            "pretrained",
            f"'{recipe.pretrained}' fits width 1 only, and width is {recipe.width:g}",
            "set pretrained: none, or width: 1",
        )
    if recipe.pretrained != "imagenet" and not Path(recipe.pretrained).is_file():
        raise _impossible(
            "pretrained",
            f"'{recipe.pretrained}' is no file",
            "set it to imagenet, none, or the full path of a file of the encoder's weights",
        )


def _check_width(encoder: str | None, recipe: Recipe) -> None:
    if encoder not in (None, *ENCODERS) and recipe.width != 1:
        raise _impossible(
            "width",
            f"torchvision's {encoder} has one width, not {recipe.width:g} times it",
            f"set width: 1, or encoder to one of {', '.join(ENCODERS)}",
        )


def main() -> None:
    """Print every parameter, its resolved value and where that comes from."""
    settings = current_settings()
    table = Table("parameter", "value", "from", title=settings.params.dataset)
    for key, value in settings.resolved().items():
        shown = "null" if value is None else escape(str(value))
        table.add_row(key, shown, settings.sources.get(key, "params.yaml"))
    Console().print(table)


if __name__ == "__main__":
    from pipeline.stages import run

    run(main)
