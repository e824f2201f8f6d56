"""Training recipes: complete, named sets of values with their source, kept in `recipes.yaml`."""

from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from dsfer.errors import ConfigError
from pipeline.frozen import Frozen, Place, did_you_mean, parse, read_sections

RECIPES = Path(__file__).with_name("recipes.yaml")

Augmentation = Literal["symmetries", "flips", "rotation", "zoom", "blur", "colour"]


class Recipe(Frozen):
    """Every value that training needs beside the data.

    Attributes:
        change_loss: term on the change map: `cross-entropy` (Eq. 4), `weighted-mean` (released) or
            `contrastive`, see `dsfer.losses`.
        deep_loss: term on the deep maps, of networks that have them: `dice` (Eq. 5),
            `released-dice`, `sigmoid-dice` or `cross-entropy`.
        class_weights: `inverse-frequency` of the training split (the published figures where the
            catalog has them), `false-alarm` (ten times that against false alarms) or `none`.
        lambda_: factor on the deep term (Eq. 7).
        optimiser: `adam`, `adamw` or `sgd`.
        momentum: of `sgd`, or first beta of the others.
        lr: learning rate at the start, or at the end of the warm-up.
        weight_decay: L2 penalty inside the gradient, of `adamw` beside it.
        schedule: `constant`, `linear` or `cosine` to 0, `poly`, the released (1 - k/n)^0.9, or
            `exponential`.
        schedule_iterations: n of the schedule; null in the files stands for `iterations`. Where
            `params.yaml` gives `iterations` alone, n keeps the proportion that it has to them.
        hold: share of n until a `linear` or `exponential` schedule begins to fall.
        warmup: share of the iterations over which the learning rate rises from 0.
        iterations: steps to train.
        batch_size: pairs per step, over all processes.
        sampling: `epochs`, or `repeated` as released, see `dsfer.data.batches`.
        augmentation: what is done to a batch, in this order, see `dsfer.data.augmentation`.
        normalisation: of the input, by the statistics of the `dataset`, `signed` to -1 to 1,
            `per-image` or as for `imagenet`.
        ema: decay of averaged weights, which are then validated and kept; 0 for none.
        precision: `float32`, or `bf16` on devices that compute in it (others use float32).
        validate_every: steps between validations.
        width: factor on the network's channel counts.
        pretrained: `imagenet`, `none`, a local file of the encoder's ImageNet weights, or
            `redrawn`: none, and drawn as the released code of BiT, ChangeFormer and VcT does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    change_loss: Literal["cross-entropy", "weighted-mean", "contrastive"]
    deep_loss: Literal["dice", "released-dice", "sigmoid-dice", "cross-entropy"]
    class_weights: Literal["inverse-frequency", "false-alarm", "none"]
    lambda_: float = Field(alias="lambda", ge=0, allow_inf_nan=False)
    optimiser: Literal["adam", "adamw", "sgd"]
    momentum: float = Field(ge=0, lt=1)
    lr: float = Field(gt=0, le=10)
    weight_decay: float = Field(ge=0, allow_inf_nan=False)
    schedule: Literal["constant", "linear", "poly", "cosine", "exponential"]
    schedule_iterations: int = Field(ge=1)
    hold: float = Field(ge=0, lt=1)
    warmup: float = Field(ge=0, lt=1)
    iterations: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    sampling: Literal["epochs", "repeated"]
    augmentation: tuple[Augmentation, ...] = Field(strict=False)
    normalisation: Literal["dataset", "signed", "per-image", "imagenet"]
    ema: float = Field(ge=0, lt=1)
    precision: Literal["float32", "bf16"]
    validate_every: int = Field(ge=1)
    width: float = Field(gt=0, le=4)
    pretrained: Place = Field(min_length=1)

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.schedule_iterations < self.iterations:
            raise ValueError(
                f"the schedule reaches its end after {self.schedule_iterations} of "
                f"{self.iterations} iterations; raise schedule_iterations"
            )
        return self


RECIPE_KEYS = tuple(field.alias or name for name, field in Recipe.model_fields.items())


class RecipeBook(Frozen):
    """One recipe of the file.

    Attributes:
        source: where its values come from.
        only: networks that it is for; none for all.
        settings: of all networks and data sets.
        models: what differs by network.
        datasets: what differs by data set, and wins over both.
    """

    source: str
    only: tuple[str, ...] = ()
    settings: dict[str, Any]
    models: dict[str, dict[str, Any]] = {}
    datasets: dict[str, dict[str, Any]] = {}

    def takes(self, model: str) -> bool:
        """Whether it is a recipe for a network."""
        return not self.only or model in self.only


@cache
def load_recipes(path: Path = RECIPES) -> dict[str, RecipeBook]:
    """Read the recipes.

    Raises:
        ConfigError: the file is not as `RecipeBook` declares.
    """
    return {
        name: parse(RecipeBook, row, f"{path.name} ({name})")
        for name, row in read_sections(path).items()
    }


def default_recipe(model: str) -> str:
    """What `recipe: null` means: a network's own recipe if there is one, else the common one."""
    own = "modern" if model == "dsfer-net" else model
    return own if own in load_recipes() else "common"


def recipe_layers(name: str, model: str, dataset: str) -> dict[str, dict[str, Any]]:
    """What a recipe says in all, for a network and for a data set; a later layer wins.

    Args:
        name: a recipe.
        model: the network that is trained.
        dataset: name of the catalog entry.

    Returns:
        Settings by their keys, under what the layer is called.
    """
    book = load_recipes()[name]
    return {
        f"recipe {name}": book.settings,
        f"recipe {name} for {model}": book.models.get(model, {}),
        f"recipe {name} for {dataset}": book.datasets.get(dataset, {}),
    }


def resolve_recipe(
    name: str, model: str, dataset: str, overrides: dict[str, Any]
) -> tuple[Recipe, dict[str, str]]:
    """Merge a recipe's settings, what it says for a network and a data set, and the user's values.

    Args:
        name: a recipe.
        model: the network that is trained.
        dataset: name of the catalog entry.
        overrides: values of `params.yaml` by their key there, without nulls.

    Returns:
        The recipe, and where each of its values comes from.

    Raises:
        ConfigError: no such recipe, one for other networks, or a value that is impossible.
    """
    recipes = load_recipes()
    fitting = [key for key, book in recipes.items() if book.takes(model)]
    if name not in fitting:
        raise ConfigError(
            f"recipe '{name}' is for {', '.join(recipes[name].only)}, not for {model}"
            if name in recipes
            else f"unknown recipe '{name}'{did_you_mean(name, fitting)}",
            where="params.yaml, recipe",
            mend=f"choose one of {', '.join(fitting)}, or null for {default_recipe(model)}",
        )
    own: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, layer in recipe_layers(name, model, dataset).items():
        own |= layer
        sources |= dict.fromkeys(layer, source)
    values = own | overrides
    sources |= dict.fromkeys(overrides, "params.yaml")
    follows = own.get("schedule_iterations") is None or "iterations" in overrides
    if follows and "schedule_iterations" not in overrides:
        values["schedule_iterations"] = _schedule_iterations(values.get("iterations"), own)
        sources["schedule_iterations"] = "iterations"
    return parse(Recipe, values, f"params.yaml with recipe {name}"), sources


def _schedule_iterations(iterations: Any, own: dict[str, Any]) -> Any:
    """Length of the schedule for these iterations, in the recipe's own proportion to them."""
    n = own.get("schedule_iterations")
    if n is None or not isinstance(iterations, int):  # what is no number is told by `Recipe`
        return iterations
    return round(n * iterations / own["iterations"])
