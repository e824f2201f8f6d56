"""The paper's Tables I to V, read from `published.yaml` into frozen typed objects."""

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.frozen import Frozen, parse, read_yaml

PUBLISHED = Path(__file__).with_name("published.yaml")

COMPARED = ("base+cf+dsfr", "pam", "v5", "dd8-dedim8", None)
"""Variants that Tables I and II are of, as far as parameter counts tell; None: there are none."""

DatasetName = Literal["levir-cd", "whu-cd", "cdd"]
Encoder = Literal["resnet18", "transformer", "vgg16"]
Percent = float


class Scores(Frozen):
    """Measures of the change class in percent, as Table I prints them."""

    P: Percent
    R: Percent
    F1: Percent
    OA: Percent
    IoU: Percent


class Cost(Frozen):
    """Parameters in millions; seconds for one pass over the LEVIR-CD test tiles (Table II)."""

    parameters: float
    seconds: float


class EncoderRow(Cost):
    """A row of Table IV: what Dsfer-Net reaches on LEVIR-CD with one encoder."""

    F1: Percent
    OA: Percent


class Pair(Frozen):
    """F1 and OA, as Table V prints them."""

    F1: Percent
    OA: Percent


class SensitivityRow(Frozen):
    """A row of Table V: what one weight of the deep losses gives on each data set."""

    lambda_: float = Field(alias="lambda")
    levir_cd: Pair = Field(alias="levir-cd")
    whu_cd: Pair = Field(alias="whu-cd")
    cdd: Pair


class Published(Frozen):
    """All of the paper's tables.

    Attributes:
        paper: short name of the source.
        titles: name of each method as the paper prints it.
        comparison: Table I, by method and data set.
        cost: Table II, by method.
        ablation: Table III, F1 by variant of Dsfer-Net and data set.
        encoders: Table IV, by encoder of Dsfer-Net.
        sensitivity: Table V, in its order.
    """

    paper: str
    titles: dict[str, str]
    comparison: dict[str, dict[DatasetName, Scores]]
    cost: dict[str, Cost]
    ablation: dict[str, dict[DatasetName, Percent]]
    encoders: dict[Encoder, EncoderRow]
    sensitivity: tuple[SensitivityRow, ...]

    def reference(
        self, model: str, dataset: str, variant: str | None, encoder: str | None = None
    ) -> "Reference | None":
        """The paper's figures for one network on one data set, or None where it has none.

        Args:
            model: a name of `dsfer.list_models()`.
            dataset: name of the data set.
            variant: of the network, as the rows of Table III; None where it has none.
            encoder: of Dsfer-Net, as the rows of Table IV.
        """
        if encoder not in (None, "vgg16"):
            row = self.cost_of(model, variant, encoder)
            if row is None or dataset != "levir-cd":
                return None
            return Reference(table="Table IV", scores=row.model_dump(include={"F1", "OA"}))
        if variant in COMPARED:
            scores = {str(name): row for name, row in self.comparison.get(model, {}).items()}
            found = scores.get(dataset)
            return Reference(table="Table I", scores=found.model_dump()) if found else None
        by_dataset = {str(name): f1 for name, f1 in self.ablation.get(variant, {}).items()}
        f1 = by_dataset.get(dataset)
        return None if f1 is None else Reference(table="Table III", scores={"F1": f1})

    def cost_of(self, model: str, variant: str | None, encoder: str | None) -> Cost | None:
        """What the paper says that a network costs, or None: it counts one variant of each."""
        if variant not in COMPARED:
            return None
        if encoder in (None, "vgg16"):
            return self.cost.get(model)
        return next((row for name, row in self.encoders.items() if name == encoder), None)


class Reference(Frozen):
    """Figures to set beside a run's own.

    Attributes:
        table: the table of the paper they stand in.
        scores: those of P, R, F1, OA and IoU that it prints, in percent.
    """

    table: str
    scores: dict[str, Percent]


@cache
def load_published(path: Path = PUBLISHED) -> Published:
    """Read the tables.

    Raises:
        ConfigError: the file is not what is declared here.
    """
    return parse(Published, read_yaml(path), path)
