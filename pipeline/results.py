"""What one evaluated run left behind, read into typed objects for the report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd
from pandas.api.types import is_numeric_dtype
from pydantic import BaseModel, ConfigDict, ValidationError

from dsfer.errors import DataError
from dsfer.files import read_json

SCENE_COLUMNS = ["scene", "tiles", "tp", "fp", "fn", "tn", "P", "R", "F1", "OA", "IoU"]
TILE_COLUMNS = ["id", "scene", "tp", "fp", "fn", "tn", "F1"]

Percent = float | None
"""None and NaN both mean that a measure has no value, as recall has none where nothing changed."""


class Stored(BaseModel):
    """Base of what is read back: immutable; keys that the report does not use are let through."""

    model_config = ConfigDict(frozen=True)


class Scores(Stored):
    """Measures of the change class, in percent."""

    P: Percent
    R: Percent
    F1: Percent
    OA: Percent
    IoU: Percent


class ProtocolScores(Scores):
    """Scores under one protocol.

    Attributes:
        F1_low: lower bound of the 95 % bootstrap interval of F1, over scenes.
        F1_high: upper bound.
        n: what was predicted one by one: tiles, or whole scenes.
    """

    F1_low: Percent
    F1_high: Percent
    n: int


class BaselineScores(Scores):
    """Scores of differencing and thresholding the two dates, isolated tiles.

    Attributes:
        threshold: difference from which a pixel counts as changed.
    """

    threshold: float


class Metrics(Stored):
    """`evaluation/metrics.json`.

    Attributes:
        variant: of the network, or None where it has none.
        encoder: of Dsfer-Net, or None for the other networks.
        parameters: those that the network uses.
        parameters_counted: those and the ones that the published network has but never uses, as
            Table II counts them.
        date: day of scoring (ISO 8601, UTC), or None where an older version scored.
        device: of scoring.
        trained_on: device of training, or None likewise.
        best_step: iteration with the best validation F1; the weights are from there.
        stitched: scores on whole scenes, or None where `stitched_note` says why not.
        pairs_per_second: tiles through the network, data included.
    """

    dataset: str
    model: str
    variant: str | None
    encoder: str | None = None
    recipe: str
    seed: int
    split_hash: str
    date: str | None = None
    device: str
    trained_on: str | None = None
    iterations: int
    best_step: int
    parameters: int
    parameters_counted: int
    pairs_per_second: float
    tiles: ProtocolScores
    stitched: ProtocolScores | None
    stitched_note: str
    baseline: BaselineScores

    @property
    def devices(self) -> str:
        """That of scoring, and that of training where it was another."""
        if self.trained_on in (None, self.device):
            return self.device
        return f"{self.device}, trained on {self.trained_on}"


class Resolved(Stored):
    """`training/settings.json`: every parameter, and which file or table its value comes from."""

    values: dict[str, Any]
    sources: dict[str, str]


class SplitRecord(Stored):
    """`split/split.json`, see `dsfer.data.splits.write_split`."""

    hash: str
    policy: str
    seed: int | None
    ratio: list[float] | None
    counts: dict[str, int]


class Finding(Stored):
    """One expectation of the validation stage and how it came out."""

    statement: str
    status: Literal["pass", "warn", "fail"]
    violations: int


class Leak(Stored):
    """How many of the `of` tiles of a later split one audit found in an earlier split."""

    audit: str
    earlier: str
    later: str
    tiles: int
    of: int
    severity: Literal["warn", "fail"]


class Drawn(Stored):
    """One plate of the figures stage.

    Attributes:
        name: of its files, without suffix.
        title: what it shows, as a heading.
        caption: how to read it.
    """

    name: str
    title: str
    caption: str


class DrawnTile(Stored):
    """A tile of the plates, and why it was taken."""

    tile: str
    why: str


class Figures(Stored):
    """`figures/figures.json`.

    Attributes:
        tiles: rows of the plates, from top to bottom.
        methods: SHA-256 of the weights of every network that was compared, by its name.
        figures: the plates in their order.
    """

    tiles: list[DrawnTile]
    methods: dict[str, str]
    figures: list[Drawn]


class Validation(Stored):
    """`validation/validation.json`, as far as the report needs it.

    Attributes:
        as_published: whether published scores belong to the same pixels, split by the same policy.
    """

    as_published: bool
    status: Literal["pass", "warn", "fail"]
    findings: dict[str, list[Finding]]
    leakage: list[Leak]


Kind = TypeVar("Kind", bound=Stored)


@dataclass(frozen=True)
class Results:
    """Everything that the report shows of one run.

    Attributes:
        metrics: the headline numbers.
        settings: the resolved parameters.
        split: the split that they were measured on.
        scenes: `SCENE_COLUMNS`, a row per scene of the test split.
        tiles: `TILE_COLUMNS`, a row per tile of the test split.
        history: the training log, see `dsfer.figures.training_curves`.
        worst: five-panel strips of the tiles with the most errors, worst first.
        sample: strips of tiles drawn without regard to their score.
        validation: what the data set was checked for.
    """

    metrics: Metrics
    settings: Resolved
    split: SplitRecord
    scenes: pd.DataFrame
    tiles: pd.DataFrame
    history: pd.DataFrame
    worst: list[Path]
    sample: list[Path]
    validation: Validation


def read_results(folder: Path, model: str) -> Results:
    """Read the outputs of training, evaluation, split and validation.

    Args:
        folder: the data set's folder.
        model: name of the model.

    Raises:
        DataError: something is missing, damaged, or belongs to another split.
    """
    evaluation = folder / "models" / model / "evaluation"
    training = folder / "models" / model / "training"
    metrics = _read(Metrics, evaluation / "metrics.json", "evaluate")
    split = read_split(folder)
    if metrics.split_hash != split.hash:
        raise DataError(
            f"measured on split {metrics.split_hash}, but the present split is {split.hash}",
            where=evaluation / "metrics.json",
            mend="run `dvc repro`",
        )
    return Results(
        metrics=metrics,
        settings=_read(Resolved, training / "settings.json", "train"),
        split=split,
        scenes=_table(evaluation / "scenes.csv", SCENE_COLUMNS, "evaluate"),
        tiles=read_tiles(evaluation / "tiles.csv"),
        history=_table(training / "history.csv", ["step"], "train"),
        worst=_pictures(evaluation / "gallery" / "worst"),
        sample=_pictures(evaluation / "gallery" / "sample"),
        validation=read_validation(folder),
    )


def read_tiles(path: Path) -> pd.DataFrame:
    """Read `evaluation/tiles.csv`, `TILE_COLUMNS`, a row per tile of the test split.

    Raises:
        DataError: the file is missing or damaged.
    """
    return _table(path, TILE_COLUMNS, "evaluate")


def read_figures(folder: Path) -> tuple[Figures, list[Path]]:
    """Read what the figures stage drew into `folder`, and where its pictures are.

    Raises:
        DataError: the list or a picture is missing or damaged.
    """
    figures = _read(Figures, folder / "figures.json", "figures")
    pictures = [folder / f"{figure.name}.png" for figure in figures.figures]
    for picture in pictures:
        if not picture.is_file():
            raise DataError("no such file", where=picture, mend="run the figures stage")
    return figures, pictures


def read_split(folder: Path) -> SplitRecord:
    """Read how the data set in `folder` was split.

    Raises:
        DataError: the file is missing or damaged.
    """
    return _read(SplitRecord, folder / "split" / "split.json", "split")


def read_validation(folder: Path) -> Validation:
    """Read what the data set in `folder` was checked for.

    Raises:
        DataError: the file is missing or damaged.
    """
    return _read(Validation, folder / "validation" / "validation.json", "validate")


def _read(kind: type[Kind], path: Path, stage: str) -> Kind:
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{key or 'content'}: {first['msg']}", where=path, mend=f"run `dvc repro -f {stage}`"
        ) from error


def _table(path: Path, columns: list[str], stage: str) -> pd.DataFrame:
    mend = f"run the {stage} stage"
    # Names may look like numbers ("0012"), or like no value at all ("NA").
    text = dict.fromkeys(("id", "scene"), str)
    try:
        table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=["", "nan"])
    except FileNotFoundError as error:
        raise DataError("no such file", where=path, mend=mend) from error
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"not a readable table ({error})", where=path, mend=mend) from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise DataError(f"lacks the columns {', '.join(missing)}", where=path, mend=mend)
    numbers = table.drop(columns=[name for name in text if name in table])
    if words := [name for name in numbers if not is_numeric_dtype(numbers[name])]:
        raise DataError(f"holds no number in the column {words[0]}", where=path, mend=mend)
    return table


def _pictures(folder: Path) -> list[Path]:
    pictures = sorted(folder.glob("*.png"))
    if not pictures:
        raise DataError("holds no .png", where=folder, mend="run the evaluate stage")
    return pictures
