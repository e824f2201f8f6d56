"""Validation: each expectation violated once by a tampered manifest, and the page that says so."""

import json
import logging
import re
from collections.abc import Callable, Iterable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dsfer.data.manifest import write_manifest
from dsfer.data.shards import Statistics
from dsfer.errors import DataError, ValidationError
from dsfer.files import read_json, write_json
from pipeline.catalog import Expected, Leakage, Policy, SplitFacts, catalog_entry
from pipeline.expectations import scene_rules, split_rules
from pipeline.params import DataSettings
from pipeline.stages import validate as stage
from pipeline.stages.shard import published_statistics
from pipeline.validation import render, require_valid, validate, write_result

SIZE, PIXELS = 8, 64
pytestmark = pytest.mark.xdist_group("validation")  # one validation of each round for all

SCENES = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
STRICT = Leakage(identical="fail", near="fail", overlap="fail", adjacent="fail")


def manifest() -> pd.DataFrame:
    """Four scenes of 2 x 2 tiles, one eighth changed."""
    rng = np.random.default_rng(0)
    windows = [
        (split, scene, row, col)
        for split, scenes in SCENES.items()
        for scene in scenes
        for row in (0, SIZE)
        for col in (0, SIZE)
    ]
    rows = [
        {"id": f"{scene}_{row:05d}_{col:05d}", "scene": scene, "published_split": split}
        | {"row": row, "col": col, "size": SIZE, "pad_rows": 0, "pad_cols": 0}
        | {"scene_rows": 2 * SIZE, "scene_cols": 2 * SIZE, "shard": "tiles-000000.tar"}
        | {f"{name}_sha256": rng.bytes(32).hex() for name in ("t1", "t2", "label")}
        | {"valid_pixels": PIXELS, "changed_pixels": PIXELS // 8, "changed_fraction": 1 / 8}
        | {"label_values": [0, 255], "crs": None, "transform": None, "split": split}
        | {f"{date}_sum": [100.0 * PIXELS] * 3 for date in ("t1", "t2")}
        | {f"{date}_sum_of_squares": [10_400.0 * PIXELS] * 3 for date in ("t1", "t2")}
        | {f"{date}_std": 20.0 for date in ("t1", "t2")}
        | {f"{date}_phash": rng.bytes(8).hex() for date in ("t1", "t2")}
        for split, scene, row, col in windows
    ]
    return pd.DataFrame(rows)


def scene_table() -> pd.DataFrame:
    facts = {"rows": 2 * SIZE, "cols": 2 * SIZE, "grid_offset": 0.25, "crs_equal": True}
    facts |= {"label_offset": 0.0, "label_crs_equal": True}
    for name, bands in (("t1", 3), ("t2", 3), ("label", 1)):
        facts |= {f"{name}_dtype": "uint8", f"{name}_bands": bands}
    return pd.DataFrame([{"id": scene} | facts for ids in SCENES.values() for scene in ids])


def split_record() -> dict[str, Any]:
    counts = {"train": 8, "val": 4, "test": 4}
    return {"hash": "0123456789ab", "policy": "scenes", "seed": 0, "ratio": [2, 1, 1]} | {
        "counts": counts
    }


def declared(
    expected: Expected | None = None,
    leakage: Leakage = STRICT,
    **changes: Any,
) -> DataSettings:
    """A data set that publishes what `manifest` holds."""
    expected = expected or Expected(
        scenes={"train": 2, "val": 1, "test": 1},
        tiles={"train": 8, "val": 4, "test": 4},
        changed_fraction={"train": 0.125, "test": 0.125},
        tolerance=0.001,
    )
    policy = Policy(method="scenes", ratio=(2, 1, 1), expected=expected)
    folder = catalog_entry("folder")
    entry = folder.model_copy(
        update={
            "tiling": folder.tiling.model_copy(update={"tile_size": SIZE}),
            "split": SplitFacts(default="scenes", policies={"scenes": policy}),
            "leakage": leakage,
            "blank_share": 0.1,
        }
    )
    values = {
        "entry": entry, "source": "scenes", "label_rule": "binary255", "bands": None,
        "tile_size": SIZE, "padding": "pad", "split": "scenes", "split_ratio": (2.0, 1.0, 1.0),
        "split_seed": 0,
    }  # fmt: skip
    return DataSettings(**(values | changes))


def findings(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{table}/{finding['key']}": finding
        for table, group in result["findings"].items()
        for finding in group
    }


def violated(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {key: each for key, each in findings(result).items() if each["status"] != "pass"}


@pytest.fixture(scope="module")
def sound() -> dict[str, Any]:
    return validate(manifest(), scene_table(), split_record(), declared(), "folder/toy")


def test_a_sound_data_set_passes_every_expectation(sound: dict[str, Any]) -> None:
    assert sound["status"] == "pass"
    assert violated(sound) == {}
    assert sound["published"] == "apply"
    assert sound["as_published"] is True
    assert len(sound["leakage"]) == 12
    assert not any(row["tiles"] for row in sound["leakage"])
    assert [row["tiles"] for row in sound["splits"]] == [8, 4, 4]
    assert sound["splits"][0]["t1_mean"] == [100.0] * 3
    require_valid(sound, Path("m"), Path("p"))


# Tampering, in rounds of changes that do not touch each other. A case says what is done, the
# expectation that must notice it, the name that must be given and what the value must contain.
Tables = tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]
Tamper = Callable[[pd.DataFrame, pd.DataFrame, dict[str, Any]], None]
Case = tuple[Tamper, str, str, str]
ID = manifest()["id"].tolist()


def cell(row: int, column: str, value: Any, *, of_scenes: bool = False) -> Tamper:
    """One value of the manifest, or of the scene table."""

    def change(tiles: pd.DataFrame, scenes: pd.DataFrame, record: dict[str, Any]) -> None:
        table = scenes if of_scenes else tiles
        values = table[column].tolist()
        values[row] = value
        table[column] = values

    return change


fact = partial(cell, of_scenes=True)


def copied(source: int, target: int, *columns: str) -> Tamper:
    def change(tiles: pd.DataFrame, scenes: pd.DataFrame, record: dict[str, Any]) -> None:
        for column in columns:
            tiles.at[target, column] = tiles.at[source, column]

    return change


def blank(tiles: pd.DataFrame, scenes: pd.DataFrame, record: dict[str, Any]) -> None:
    tiles.loc[[6, 14], "t2_std"] = 0.0  # 2 of 16 tiles, more than a tenth


def moved(tiles: pd.DataFrame, scenes: pd.DataFrame, record: dict[str, Any]) -> None:
    """The val tiles now lie on the ground of train scene a, and scene c has none."""
    tiles.loc[8:11, "scene"] = "a"


def beside(tiles: pd.DataFrame, scenes: pd.DataFrame, record: dict[str, Any]) -> None:
    """The last test tile now lies to the right of train scene b."""
    tiles.loc[15, "scene"] = "b"
    tiles.loc[15, ["col", "scene_cols"]] = [2 * SIZE, 3 * SIZE]


def lost(tiles: pd.DataFrame, scenes: pd.DataFrame, record: dict[str, Any]) -> None:
    """No val tile is left."""
    tiles.loc[8:11, "split"] = "train"


def no_change(tiles: pd.DataFrame, scenes: pd.DataFrame, record: dict[str, Any]) -> None:
    tiles.loc[8:11, ["changed_pixels", "changed_fraction"]] = 0


def more_change(tiles: pd.DataFrame, scenes: pd.DataFrame, record: dict[str, Any]) -> None:
    tiles.loc[12:15, ["changed_pixels", "changed_fraction"]] = [16, 0.25]


def recorded(tiles: pd.DataFrame, scenes: pd.DataFrame, record: dict[str, Any]) -> None:
    record["counts"]["train"] = 9


ROUNDS: list[list[Case]] = [
    [
        (cell(9, "id", ID[0]), "tiles/unique-id", ID[0], ID[0]),
        (cell(1, "t2_sha256", None), "tiles/amiss", ID[1], "t2_sha256 is missing"),
        (cell(2, "label_values", [0, 1, 255]), "tiles/label_fault", ID[2], "1"),
        (cell(3, "size", 7), "tiles/size", ID[3], "7"),
        (cell(10, "split", "holdout"), "tiles/split", ID[10], "holdout"),
        (cell(11, "pad_cols", 2), "tiles/window_fault", ID[11], "padding 0 x 2"),
        (cell(4, "changed_pixels", 65), "tiles/count_fault", ID[4], "65 changed of 64 valid"),
        (fact(0, "t1_dtype", "uint16"), "scenes/t1_dtype", "a", "uint16"),
        (fact(1, "t2_bands", 2), "scenes/t2_bands", "b", "2"),
        (fact(2, "label_bands", 3), "scenes/label_bands", "c", "3"),
        (fact(3, "crs_equal", False), "scenes/crs_equal", "d", "no"),
        (recorded, "splits/tiles-recorded_tiles", "train", "tiles 8, recorded tiles 9"),
    ],
    [
        (cell(1, "t1_phash", "zz"), "tiles/amiss", ID[1], "t1_phash is 'zz'"),
        (cell(2, "row", 99), "tiles/window_fault", ID[2], "row 99, column 0"),
        (cell(3, "changed_fraction", 0.5), "tiles/count_fault", ID[3], "fraction 0.5"),
        (
            copied(0, 12, "t1_sha256", "t2_sha256"),
            "tiles/identical_to", ID[12], f"{ID[0]} in train (both dates)",
        ),
        (
            copied(5, 13, "t1_phash", "t2_phash"),
            "tiles/near_duplicate_of", ID[13], f"{ID[5]} in train (0 bits)",
        ),
        (blank, "tiles/blank", ID[6], "yes"),
        (fact(0, "t2_dtype", "float32"), "scenes/t2_dtype", "a", "float32"),
        (fact(1, "t1_bands", 1), "scenes/t1_bands", "b", "1"),
        (fact(2, "grid_offset", 0.75), "scenes/grid_offset", "c", "0.75"),
        (fact(2, "label_crs_equal", False), "scenes/label_crs_equal", "c", "no"),
        (fact(3, "id", "a"), "scenes/unique-id", "a", "a"),
    ],
    [
        (cell(1, "t1_std", float("nan")), "tiles/amiss", ID[1], "t1_std is missing"),
        (cell(2, "valid_pixels", 70), "tiles/count_fault", ID[2], "of 70 valid pixels"),
        (
            copied(0, 12, "t2_sha256"),
            "tiles/identical_to", ID[12], f"{ID[0]} in train (one date)",
        ),
        (fact(1, "grid_offset", float("inf")), "scenes/grid_offset", "b", "inf"),
        (fact(2, "label_offset", 3.0), "scenes/label_offset", "c", "3"),
        (lost, "splits/tiles", "val", "0"),
        (lost, "splits/tiles-val", "val", "0"),
        (lost, "splits/scenes-train", "train", "3"),
        (more_change, "splits/changed_fraction-test", "test", "25.000%"),
    ],
    [
        (cell(1, "label_sha256", "12ab"), "tiles/amiss", ID[1], "label_sha256 is '12ab'"),
        (cell(2, "label_values", None), "tiles/amiss", ID[2], "label_values is missing"),
        (cell(3, "size", "eight"), "tiles/amiss", ID[3], "size is 'eight'"),
        (moved, "tiles/overlaps_with", ID[8], f"{ID[0]} in train (100.0% shared)"),
        (beside, "tiles/adjacent_to", ID[15], f"{ID[5]} in train (touching)"),
        (moved, "scenes/tiles", "c", "0"),
        (no_change, "splits/changed_pixels", "val", "0"),
        (fact(3, "id", "e"), "tiles/scene", ID[12], "d"),
    ],
]  # fmt: skip
WARNINGS = {"scenes/tiles", "splits/changed_pixels"}


def tampered(number: int, **changes: Any) -> dict[str, Any]:
    tables = manifest(), scene_table(), split_record()
    for tamper, *_ in ROUNDS[number]:
        tamper(*tables)
    return validate(*tables, declared(**changes), "folder/toy")


@pytest.fixture(scope="module")
def rounds() -> list[dict[str, Any]]:
    return [tampered(number) for number in range(len(ROUNDS))]


@pytest.mark.parametrize(
    ("number", "key", "where", "value"),
    [(number, *case[1:]) for number, cases in enumerate(ROUNDS) for case in cases],
)
def test_a_violation_names_where_and_what(
    rounds: list[dict[str, Any]], number: int, key: str, where: str, value: str
) -> None:
    finding = violated(rounds[number])[key]
    assert finding["status"] == ("warn" if key in WARNINGS else "fail")
    assert [
        each for each in finding["examples"] if each["where"] == where and value in each["value"]
    ]


def test_every_expectation_is_violated_once(
    rounds: list[dict[str, Any]], sound: dict[str, Any]
) -> None:
    def kinds(keys: Iterable[str]) -> set[str]:
        return {re.sub("-(train|val|test)$", "-SPLIT", key) for key in keys}

    assert kinds(key for result in rounds for key in violated(result)) == kinds(findings(sound))


def test_a_failure_stops_with_tile_value_mend_and_page(rounds: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError) as caught:
        require_valid(rounds[2], Path("manifest.parquet"), Path("validation.html"))
    message = str(caught.value)
    assert message.startswith(f"manifest.parquet: tile {ID[1]}: t1_std is missing")
    assert "To mend it: " in message
    assert "validation.html" in message


def test_a_declared_warning_does_not_stop(caplog: pytest.LogCaptureFixture) -> None:
    tiles = manifest()
    copied(0, 12, "t1_sha256", "t2_sha256", "t1_phash", "t2_phash", "scene")(tiles, None, None)  # type: ignore[arg-type]
    lenient = Leakage(identical="warn", near="fail", overlap="warn", adjacent="fail")
    settings = declared(Expected(), lenient)
    result = validate(tiles, scene_table(), split_record(), settings, "folder/toy")
    assert result["status"] == "warn"
    assert set(violated(result)) == {"tiles/identical_to", "tiles/overlaps_with"}
    assert result["published"] == "none"
    with caplog.at_level(logging.WARNING):
        require_valid(result, Path("m"), Path("p"))
    assert f"tile {ID[12]}: {ID[0]} in train" in caplog.text


def test_what_is_identical_may_fail_where_what_looks_alike_only_warns() -> None:
    mixed = Leakage(identical="fail", near="warn", overlap="fail", adjacent="warn")
    settings = declared(Expected(), mixed)
    tiles = manifest()
    copied(5, 13, "t1_phash", "t2_phash")(tiles, None, None)  # type: ignore[arg-type]
    result = validate(tiles, scene_table(), split_record(), settings, "folder/toy")
    assert {key: each["status"] for key, each in violated(result).items()} == {
        "tiles/near_duplicate_of": "warn"
    }
    assert {row["audit"]: row["severity"] for row in result["leakage"]} == {
        "identical": "fail", "near-identical": "warn", "overlapping": "fail", "adjacent": "warn",
    }  # fmt: skip
    copied(0, 12, "t1_sha256")(tiles, None, None)  # type: ignore[arg-type]
    result = validate(tiles, scene_table(), split_record(), settings, "folder/toy")
    assert violated(result)["tiles/identical_to"]["status"] == "fail"


def test_tiles_of_nodata_alone_are_not_blank() -> None:
    tiles = manifest()
    numbers = ["valid_pixels", "changed_pixels", "changed_fraction", "t1_std", "t2_std"]
    tiles.loc[[6, 14], numbers] = 0
    result = validate(tiles, scene_table(), split_record(), declared(), "folder/toy")
    assert violated(result) == {}
    assert [row["blank_tiles"] for row in result["splits"]] == [0, 0, 0]


def test_leaks_are_counted_per_pair_of_splits(rounds: list[dict[str, Any]]) -> None:
    counts = {(row["audit"], row["earlier"], row["later"]): row for row in rounds[1]["leakage"]}
    assert counts["identical", "train", "test"]["tiles"] == 1
    assert counts["near-identical", "train", "test"]["tiles"] == 1
    assert counts["identical", "train", "test"]["of"] == 4
    assert sum(row["tiles"] for row in rounds[1]["leakage"]) == 2


def test_published_numbers_apply_only_to_the_published_preparation() -> None:
    keys = {rule.key for rule in split_rules(declared())}
    assert {"tiles-train", "scenes-test", "changed_fraction-test"} <= keys
    for change in (
        {"tile_size": 16}, {"padding": "drop"}, {"split_ratio": (1.0, 1.0, 1.0)},
    ):  # fmt: skip
        assert not [rule for rule in split_rules(declared(**change)) if rule.only]


def test_changed_fractions_belong_to_one_label_rule_and_counts_to_all() -> None:
    other = declared(label_rule="threshold128")
    assert {rule.key for rule in split_rules(declared())} - {
        rule.key for rule in split_rules(other)
    } == {"changed_fraction-train", "changed_fraction-test"}
    train = validate(manifest(), scene_table(), split_record(), other, "toy")["splits"][0]
    assert (train["published_tiles"], train["published_changed_fraction"]) == (8, None)


@pytest.mark.parametrize(
    "change",
    [
        {"tile_size": 16},
        {"padding": "drop"},
        {"split_ratio": (1.0, 1.0, 1.0)},
        {"label_rule": "threshold128"},
        {"bands": (3, 2, 1)},
        {"split": "tiles"},
    ],
)
def test_published_figures_belong_to_the_published_data_only(change: dict[str, Any]) -> None:
    entry = declared().entry
    figures = {"mean": (1.0, 2.0, 3.0), "std": (4.0, 5.0, 6.0), "class_weights": (1.25, 5.0)}
    other = {"tiles": Policy(method="random", ratio=(2, 1, 1))}
    split = entry.split.model_copy(update={"policies": entry.split.policies | other})
    entry = entry.model_copy(update=figures | {"split": split})
    measured = Statistics((9.0,) * 3, (8.0,) * 3, (0.5, 0.5))
    assert published_statistics(declared(entry=entry), measured) == (
        *((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), (0.8, 0.2)),
    )
    assert published_statistics(declared(entry=entry, **change), measured) == measured
    validated = validate(
        manifest(), scene_table(), split_record(), declared(entry=entry, **change), "toy"
    )
    assert validated["as_published"] is False


def test_the_place_of_labels_stops_own_data_and_warns_of_published_sets() -> None:
    def severities(data: DataSettings) -> set[str]:
        return {rule.severity for rule in scene_rules(data) if rule.key.startswith("label_o")}

    whu = catalog_entry("whu-cd")
    assert severities(declared()) == {"fail"}
    assert severities(declared(entry=whu, split=whu.split.default)) == {"warn"}


def test_bands_that_are_read_must_exist() -> None:
    low = {
        rule.key: rule.options.get("min_value") for rule in scene_rules(declared(bands=(4, 3, 2)))
    }
    assert low["t1_bands"] == 4
    low = {
        rule.key: rule.options.get("min_value") for rule in scene_rules(declared(bands=(1, 1, 1)))
    }
    assert low["t2_bands"] == 1


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, sound: dict[str, Any]) -> None:
    again = validate(manifest(), scene_table(), split_record(), declared(), "folder/toy")
    pages = [write_result(tmp_path / name, each) for name, each in (("a", sound), ("b", again))]
    assert pages[0].read_bytes() == pages[1].read_bytes()
    records = [page.with_name("validation.json").read_bytes() for page in pages]
    assert records[0] == records[1]
    assert json.loads(records[0]) == sound


class Page(HTMLParser):
    """What a page loads, links to and names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.names: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "href", "action", "poster", "data"):
                self.addresses.append(value or "")
            if name == "id":
                self.names.append(value or "")


def test_the_page_needs_no_other_file(rounds: list[dict[str, Any]]) -> None:
    text = render(rounds[0])
    page = Page(text)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert page.addresses
    assert all(address.removeprefix("#") in page.names for address in page.addresses)
    assert len(page.names) == len(set(page.names))
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import|@font-face|://", style[1])


def test_the_page_shows_what_was_found(rounds: list[dict[str, Any]]) -> None:
    text = render(rounds[2])
    for fact in (
        ID[1],
        "t1_std is missing",
        "0123456789ab",
        "25.000%",
        "stops the pipeline",
        "folder/toy",
    ):
        assert fact in text


def test_names_cannot_write_into_the_page(rounds: list[dict[str, Any]]) -> None:
    hostile = json.loads(json.dumps(rounds[0]).replace("holdout", "<script>x</script>"))
    text = render(hostile)
    assert "<script>" not in text
    assert "&lt;script&gt;x" in text


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The outputs of the crop and split stages, and the stage pointed at them."""
    (tmp_path / "tiles").mkdir()
    scene_table().to_parquet(tmp_path / "tiles" / "scenes.parquet")
    write_manifest(tmp_path / "split" / "manifest.parquet", manifest())
    write_json(tmp_path / "split" / "split.json", split_record())
    settings = SimpleNamespace(
        folder=tmp_path, data=declared(), params=SimpleNamespace(dataset="folder/toy")
    )
    monkeypatch.setattr(stage, "current_settings", lambda: settings)
    return tmp_path


def test_the_stage_keeps_the_page_of_a_failure(prepared: Path) -> None:
    tiles = manifest()
    tiles.loc[5, "size"] = 7
    write_manifest(prepared / "split" / "manifest.parquet", tiles)
    with pytest.raises(ValidationError, match=rf"tile {ID[5]}: 7"):
        stage.main()
    assert read_json(prepared / "validation" / "validation.json")["status"] == "fail"
    assert ID[5] in (prepared / "validation" / "validation.html").read_text()


def test_the_stage_names_a_missing_table(prepared: Path) -> None:
    (prepared / "tiles" / "scenes.parquet").unlink()
    with pytest.raises(DataError, match=r"scenes\.parquet: no such file.*run the stage"):
        stage.main()


def test_a_manifest_without_splits_is_refused() -> None:
    tiles = manifest().drop(columns="split")
    with pytest.raises(DataError, match="run the split stage"):
        validate(tiles, scene_table(), split_record(), declared(), "folder/toy")
