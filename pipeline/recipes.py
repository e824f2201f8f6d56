"""Training recipes: complete, named sets of values with their source, kept in `recipes.yaml`."""

from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from dsfer.errors import ConfigError
from pipeline.frozen import Frozen, did_you_mean, parse, read_sections

RECIPES = Path(__file__).with_name("recipes.yaml")


class Recipe(Frozen):
    """Every value that training needs beside the data.

    Attributes:
        cross_entropy: `printed` (Eq. 4) or `weighted-mean` (released), see `dsfer.losses`.
        dice: `printed` (Eq. 5) or `released`.
        class_weights: `inverse-frequency` of the training split (the published figures where the
            catalog has them) or `none`.
        lambda_: factor on the dice terms (Eq. 7).
        lr: learning rate of Adam at the start, or at the end of the warm-up.
        weight_decay: L2 penalty inside the gradient.
        schedule: `linear` or `cosine` to 0, or `poly`, the released (1 - k/n)^0.9.
        schedule_iterations: n of the schedule; null in the files stands for `iterations`.
        warmup: share of the iterations over which the learning rate rises from 0.
        iterations: steps to train.
        batch_size: pairs per step, over all processes.
        sampling: `epochs`, or `repeated` as released, see `dsfer.data.batches`.
        symmetries: paired flips and quarter turns.
        ema: decay of averaged weights, which are then validated and kept; 0 for none.
        precision: `float32`, or `bf16` on devices that compute in it (others use float32).
        validate_every: steps between validations.
        width: factor on the network's channel counts.
        pretrained: `imagenet`, `none`, or a local file of VGG-16 weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    cross_entropy: Literal["printed", "weighted-mean"]
    dice: Literal["printed", "released"]
    class_weights: Literal["inverse-frequency", "none"]
    lambda_: float = Field(alias="lambda", ge=0, allow_inf_nan=False)
    lr: float = Field(gt=0, le=10)
    weight_decay: float = Field(ge=0, allow_inf_nan=False)
    schedule: Literal["linear", "poly", "cosine"]
    schedule_iterations: int = Field(ge=1)
    warmup: float = Field(ge=0, lt=1)
    iterations: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    sampling: Literal["epochs", "repeated"]
    symmetries: bool
    ema: float = Field(ge=0, lt=1)
    precision: Literal["float32", "bf16"]
    validate_every: int = Field(ge=1)
    width: float = Field(gt=0, le=4)
    pretrained: str = Field(min_length=1)

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.schedule_iterations < self.iterations:
            raise ValueError(
                f"the schedule reaches 0 after {self.schedule_iterations} of {self.iterations} "
                "iterations; raise schedule_iterations"
            )
        return self


RECIPE_KEYS = tuple(field.alias or name for name, field in Recipe.model_fields.items())


class RecipeBook(Frozen):
    """One recipe of the file: its source, common settings, and what differs by data set."""

    source: str
    settings: dict[str, Any]
    datasets: dict[str, dict[str, Any]] = {}


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


def resolve_recipe(
    name: str, dataset: str, overrides: dict[str, Any]
) -> tuple[Recipe, dict[str, str]]:
    """Merge a recipe's settings, what it says for a data set, and the user's own values.

    Args:
        name: a recipe.
        dataset: name of the catalog entry.
        overrides: values of `params.yaml` by their key there, without nulls.

    Returns:
        The recipe, and where each of its values comes from.

    Raises:
        ConfigError: no such recipe, or a value that is impossible.
    """
    recipes = load_recipes()
    if name not in recipes:
        raise ConfigError(
            f"unknown recipe '{name}'{did_you_mean(name, recipes)}",
            where="params.yaml, recipe",
            mend=f"choose one of {', '.join(recipes)}",
        )
    book = recipes[name]
    layers = {
        f"recipe {name}": book.settings,
        f"recipe {name} for {dataset}": book.datasets.get(dataset, {}),
        "params.yaml": overrides,
    }
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, layer in layers.items():
        values |= layer
        sources |= dict.fromkeys(layer, source)
    if values.get("schedule_iterations") is None:
        values["schedule_iterations"] = values.get("iterations")
        sources["schedule_iterations"] = "iterations"
    return parse(Recipe, values, f"params.yaml with recipe {name}"), sources
