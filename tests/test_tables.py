"""The paper's tables from made-up scores; a table whose cells run is in tests/test_flows.py."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision

from dsfer.errors import ConfigError, DataError
from dsfer.figures import data_uri
from dsfer.models import MODELS, Method, imagenet
from pipeline import benchmark, cost, flows, sheets, tables
from pipeline.benchmark import BenchmarkError, Plan, parse_changes, parse_seeds
from pipeline.cost import Costs, cost_caption, cost_records
from pipeline.frozen import read_yaml
from pipeline.model import build_network
from pipeline.params import change_params, current_settings
from pipeline.published import load_published
from pipeline.results import Metrics
from pipeline.sensitivity import sensitivity_figure, write_plot
from pipeline.sheets import records_of, score_caption, score_sheet
from pipeline.tables import NETWORK, entries_of, load_tables, paper_figures, row_keys
from pipeline.typeset import html, latex, markdown, write_document
from tests.made_up_run import random_tile, write_figures
from tests.pages import addresses
from tests.project import ROOT

DAY, COMMIT = "2026-11-24", "abc1234"


def scores(f1, **changes):
    measured = {"P": 80.0, "R": 70.0, "F1": f1, "OA": 98.5, "IoU": 60.0, "n": 64}
    return Metrics(
        dataset="demo", model="m", variant=None, recipe="modern", seed=0, split_hash="026d67e1be7f",
        date=DAY, device="2 cores", iterations=60, best_step=40, parameters=2_329_886,
        parameters_counted=2_329_886, pairs_per_second=9.0,
        tiles=measured | {"F1_low": 1.0, "F1_high": 99.0}, stitched=None, stitched_note="",
        baseline={"P": 1, "R": 1, "F1": 1, "OA": 1, "IoU": 1, "threshold": 4},
    ).model_copy(update=changes)  # fmt: skip


def records_for(entries, outcomes):
    return pd.DataFrame([line for entry in entries for line in records_of(entry, outcomes)])


def measured(name, dataset, outcome_of, seeds=(0, 1)):
    """Records of a table whose cells came out as `outcome_of(row, seed)`."""
    entries = entries_of(name, [dataset], seeds, {})
    outcomes = {
        cell.name: outcome_of(entry.key, cell.settings.params.seed)
        for entry in entries
        for cell in entry.cells
    }
    return records_for(entries, outcomes)


def sheet_of(records, seeds=(0, 1)):
    return score_sheet(records, score_caption(records, seeds, {"iterations": 60}, COMMIT))


@pytest.fixture
def edit_params(tmp_path, monkeypatch):
    """Work in a folder whose params.yaml has other values; it is no git repository."""

    def edit(**values):
        shutil.copy(ROOT / "params.yaml", tmp_path)
        change_params(tmp_path / "params.yaml", values)
        monkeypatch.chdir(tmp_path)

    monkeypatch.setattr(tables, "project_state", lambda project: "")
    return edit


def test_every_row_of_every_table_has_its_figures_and_possible_parameters():
    paper = load_published()
    rows = {name: list(table.rows) for name, table in load_tables().items()}
    assert rows["I"] == rows["II"] == list(paper.comparison) == list(paper.cost)
    assert rows["III"] == list(paper.ablation)
    assert rows["IV"] == list(paper.encoders)
    assert [float(key) for key in rows["V"]] == [row.lambda_ for row in paper.sensitivity]
    for name, table in load_tables().items():
        entries = entries_of(name, [], [0], {})
        assert len(entries) == len(rows[name]) * len(table.datasets)
        for key, row in table.rows.items():
            figures = paper_figures(name, key)
            assert set(figures) == set(table.datasets or ["levir-cd"])
            if name == "I":
                variant = " (V5)" if key == "changeformer" else ""  # Table II counts that one
                assert row.label == paper.titles[key] + variant
    assert paper_figures("V", "1")["cdd"] == {"F1": 95.17, "OA": 98.84}


def test_the_network_of_every_cell_can_be_built_as_its_recipe_asks(monkeypatch):
    """In full width, without memory and without a download: torchvision's shapes alone."""

    def shapes(weights):
        network, _, _ = weights.partition("_Weights")
        return torchvision.models.get_model(network.lower()).state_dict()

    monkeypatch.setattr(imagenet, "_downloaded", shapes)
    cells = [
        cell.settings
        for name in load_tables()
        for entry in entries_of(name, [], [0], {})
        for cell in entry.cells
    ]
    networks = {f"{s.params.model} {s.model_options} {s.recipe.pretrained}": s for s in cells}
    starts = {key: settings.recipe.pretrained for key, settings in networks.items()}
    assert len(networks) == 9 + 3 + 2 and list(starts.values()).count("imagenet") == 10
    assert [key for key in networks if "transformer" in key and starts[key] == "none"]
    with torch.device("meta"):
        for settings in networks.values():
            build_network(settings)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"encoder": "resnet18"}, True),
        ({"encoder": "resnet18", "hopfield_dim": None}, False),
        ({"encoder": "vgg16"}, False),
    ],
)
def test_another_network_than_table_ivs_is_said_to_be_one(changes, told, caplog):
    with torch.device("meta"):
        build_network(current_settings(changes))
    assert ("is not Table IV's network; null is" in caplog.text) == told


def recipes(name, changes, dataset="whu-cd"):
    entries = entries_of(name, [dataset], [0], changes)
    return {entry.key: entry.cells[0].settings.recipe_name for entry in entries}


def test_dsfer_net_has_the_papers_recipe_unless_the_caller_names_another():
    paper = dict.fromkeys(load_tables()["I"].rows, "") | {"dsfer-net": "paper"}
    assert recipes("I", {}) == {key: recipe or key for key, recipe in paper.items()}
    assert set(recipes("I", {"recipe": "common"}).values()) == {"common"}
    for name, dataset in {"III": "demo", "IV": "levir-cd", "V": "demo"}.items():
        assert set(recipes(name, {}, dataset).values()) == {"paper"}
    for given, taken in {"modern": "modern", "common": "common", None: "modern"}.items():
        assert set(recipes("IV", {"recipe": given}).values()) == {taken}
    (cell,) = entries_of("III", ["cdd"], [0], {})[-1].cells
    assert (cell.settings.recipe.lr, cell.settings.recipe.ema) == (1e-4, 0)
    assert (cell.settings.recipe.lambda_, cell.settings.recipe.class_weights) == (
        1.0, "inverse-frequency",
    )  # fmt: skip


def test_rows_are_their_labels_networks_whatever_was_left_in_params(edit_params):
    names = [name for name, table in load_tables().items() if table.datasets]

    def resolved():
        entries = [entry for name in names for entry in entries_of(name, [], [0], {})]
        return [cell.settings.resolved() for entry in entries for cell in entry.cells]

    fresh = read_yaml(ROOT / "params.yaml")
    assert {key: fresh[key] for key in NETWORK} == NETWORK  # or DVC would not know former runs
    before = resolved()
    edit_params(variant="base+cf", encoder="resnet18", hopfield_dim=None, hopfield_beta=2.0,
                norm="channel", recipe="released")  # fmt: skip
    assert resolved() == before


def test_values_left_in_params_are_told(edit_params):
    """In every row that does not set them itself, beside those of the caller."""
    edit_params(lr=0.01, **{"lambda": 0.5}, iterations=9, tile_size=128)
    plan = Plan(["I", "V"], ["levir-cd"], changes={"iterations": 60})
    for name, entries in plan.entries().items():
        told = f"tile_size: 128, {'lambda: 0.5, ' * (name == 'I')}lr: 0.01, iterations: 60"
        outcomes = {entry.cells[0].name: scores(90.0) for entry in entries}
        records = records_for(entries, outcomes)
        assert set(records["given"]) == {told}
        sheet = benchmark.sheets_of(records, entries[:1], outcomes, plan, COMMIT)[0]
        assert f" Given by -S or params.yaml: {told}. 2 cores;" in sheet.caption


def test_no_difference_is_given_for_networks_of_another_width():
    entries = entries_of("III", ["levir-cd"], [0], {"width": 0.5, "pretrained": "none"})
    records = records_for(entries, {entry.cells[0].name: scores(90.0) for entry in entries})
    sheet = sheet_of(records, (0,))
    assert sheet.frame.loc["Base+CF", "F1"].to_dict() == {
        "ours": "90.00", "paper, other width": "90.05",
    }  # fmt: skip
    assert sheet.caption.endswith("Δ: ours less the paper's, of networks of its width alone.")


def test_rows_of_different_recipes_say_which_is_theirs():
    """STANet failed, and trains for another time than the others."""

    def outcome(key, _):
        return "not run" if key == "stanet" else scores(90.0, iterations=9 if key == "bit" else 5)

    sheet = sheet_of(measured("I", "levir-cd", outcome))
    assert "Recipe as in the table; iterations as in the table; seed 0, 1;" in sheet.caption
    lines = sheet.frame[[("recipe", ""), ("iterations", "")]]
    assert lines.loc["Dsfer-Net"].tolist() == ["paper", "5"]
    assert lines.loc["BiT"].tolist() == ["bit", "9"]
    assert lines.loc["STANet"].tolist() == ["stanet", "—"]
    text = markdown("T", [sheet], None)
    assert re.search(r" recipe \| +iterations \|\n", text)
    alike = sheet_of(measured("V", "levir-cd", lambda *_: scores(90.0)))
    assert "recipe" not in alike.frame and "iterations" not in alike.frame
    assert "Recipe paper; iterations 60; seed 0, 1;" in alike.caption


def test_the_caption_says_what_to_know_of_the_split():
    """WHU-CD's random split is of the paper's kind, whatever its seed, but not the paper's draw."""
    for changes, said in [
        ({"split_seed": 7}, "this is another draw of the same kind."),
        ({"split": "spatial"}, "train : val as in the ratio."),
    ]:
        entries = entries_of("V", ["whu-cd"], [0], changes)
        outcomes = {entry.cells[0].name: scores(90.0) for entry in entries}
        records = records_for(entries, outcomes)
        (sheet,) = benchmark.sheets_of(records, entries, outcomes, Plan(changes=changes), COMMIT)
        assert sheet.caption.endswith(said)
        assert (("F1", "Δ") in sheet.frame) == ("split_seed" in changes)


def test_a_network_that_the_paper_lacks_has_rows_without_its_figures(monkeypatch):
    monkeypatch.setitem(MODELS, "small-net", Method("dsfer.models.small_net.SmallNet"))
    plan = Plan(["I", "II", "III"], ["levir-cd"], models=["small-net", "bit", "small-net"])
    entries = plan.entries()
    assert [entry.key for entry in entries["I"]] == [*load_tables()["I"].rows, "small-net"]
    assert {entry.key for entry in entries["III"]} == set(load_tables()["III"].rows)
    own = entries["I"][-1].cells[0].settings
    assert (own.params.model, own.recipe_name) == ("small-net", "common")
    outcomes = {entry.cells[0].name: scores(91.0) for entry in entries["I"]}
    records = records_for(entries["I"], outcomes)
    sheet = sheet_of(records, (0,))
    assert sheet.frame.loc["small-net", "F1"].to_dict() == {
        "ours": "91.00", "paper": "not published", "Δ": "—",
    }  # fmt: skip
    assert sheet.frame.loc["Dsfer-Net", ("F1", "Δ")] == "+0.24"
    line = records[records["row"] == "small-net"].iloc[0]
    assert pd.isna(line["paper"]) and (line["paper_dataset"], line["beside"]) == ("", "")


def test_cells_that_mean_the_same_are_one_experiment():
    """Dsfer-Net itself is a row of four tables."""
    own = {"I": "dsfer-net", "III": "base+cf+dsfr", "IV": "vgg16", "V": "0.1"}
    cells = {
        name: {entry.key: entry.cells[0].name for entry in entries_of(name, ["demo"], [0], {})}
        for name in own
    }
    assert len({cells[name][key] for name, key in own.items()}) == 1
    assert len({cell for rows in cells.values() for cell in rows.values()}) == 9 + 3 + 2 + 5


def test_mean_and_spread_stand_beside_the_paper_and_the_difference():
    records = measured("I", "levir-cd", lambda key, seed: scores(90.0 + seed))
    sheet = sheet_of(records)
    assert sheet.frame.loc["Dsfer-Net", "F1"].to_dict() == {
        "ours": "90.50 ± 0.71", "paper": "90.76", "Δ": "−0.26",
    }  # fmt: skip
    assert sheet.frame.loc["BiT", ("F1", "Δ")] == "+2.31"
    for stamp in ("026d67e1be7f", "64 isolated tiles", "Recipe as in the table", "iterations 60",
                  "seed 0, 1", "one standard deviation", "iterations: 60",
                  "2 cores; 2026-11-24; commit abc1234", "Δ: ours less the paper's"):  # fmt: skip
        assert stamp in sheet.caption
    line = records[(records["row"] == "BiT") & (records["measure"] == "F1")].iloc[0]
    assert (line["mean"], line["n"], line["paper"]) == (90.5, 2, 88.19)
    assert line["sd"] == pytest.approx(0.5**0.5) and len(line["experiments"].split()) == 2


def test_the_day_is_that_of_the_measurement():
    """Seed 1 of BiT is of the next day; VcT has no result."""

    def outcome(key, seed):
        later = {"date": "2026-11-25"} if (key, seed) == ("bit", 1) else {}
        return "not run" if key == "vct" else scores(90.0, **later)

    records = measured("I", "levir-cd", outcome)
    sheet = sheet_of(records)
    assert sheet.frame["measured on"].to_dict() == dict.fromkeys(
        (row.label for row in load_tables()["I"].rows.values()), "2026-11-24"
    ) | {"BiT": "2026-11-24 to 2026-11-25", "VcT": "—"}
    assert "2 cores; days as in the table; commit" in sheet.caption
    text = markdown("T", [sheet], None)
    assert re.search(r" IoU, Δ \| +recipe \| +measured on \|\n", text)
    assert re.search(r"\| BiT +\|.*\| 2026-11-24 to 2026-11-25 \|\n", text)
    assert records.groupby("key")["date"].first()[["bit", "vct"]].tolist() == [
        "2026-11-24 to 2026-11-25", "",
    ]  # fmt: skip
    older = sheet_of(measured("I", "levir-cd", lambda *_: scores(90.0, date=None)))
    assert "2 cores; day unknown; commit" in older.caption
    alike = sheet_of(measured("I", "levir-cd", lambda *_: scores(90.0)))
    assert "measured on" not in alike.frame and "; 2026-11-24; commit" in alike.caption


def test_a_device_of_training_other_than_that_of_scoring_is_told():
    for trained_on, told in [
        ("2 cores", "2 cores; 2026"),
        (None, "2 cores; 2026"),  # scored by an older version
        ("NVIDIA H100", "2 cores, trained on NVIDIA H100; 2026"),
    ]:
        made = scores(90.0, trained_on=trained_on)
        records = measured("III", "cdd", lambda *_, made=made: made)
        assert set(records["device"]) == {told.partition(";")[0]}
        assert f"iterations: 60. {told}" in sheet_of(records).caption


def test_one_seed_has_no_spread():
    records = measured("III", "cdd", lambda key, seed: scores(90.0), seeds=(0,))
    assert records["sd"].isna().all()
    assert sheet_of(records, (0,)).frame.loc["Base+CF", ("F1", "ours")] == "90.00"


@pytest.mark.parametrize(
    ("dataset", "changes"), [("demo", {}), ("levir-cd", {"tile_size": 128}), ("whu-cd", {})]
)
def test_no_difference_is_given_where_the_data_are_others(dataset, changes):
    entries = entries_of("IV", [dataset], [0], changes)
    outcomes = {entry.cells[0].name: scores(75.0) for entry in entries}
    records = records_for(entries, outcomes)
    lines = records.set_index(["key", "measure"])
    assert lines.loc[(slice(None), ["F1", "OA"]), "difference"].isna().all()
    sheet = sheet_of(records, (0,))
    assert sheet.frame.loc["VGG-16", "F1"].to_dict() == {
        "ours": "75.00", "paper, other data": "90.76",
    }  # fmt: skip
    assert "of levir-cd as published, other data than here: no difference" in sheet.caption
    thin = dataset == "demo"  # its recipes train networks of a quarter of the width
    counted = {"paper, other width": "34.08"} if thin else {"paper": "34.08", "Δ": "−31.75"}
    but = "" if thin else ", but for the number of parameters"
    assert sheet.caption.endswith(f"no difference is given{but}.")
    assert sheet.frame.loc["VGG-16", "Parameters, million"].to_dict() == {"ours": "2.33"} | counted


def test_what_is_missing_is_never_filled_and_says_why():
    def outcome(key, seed):
        if key == "resnet18":
            return "failed: lr: the loss is inf at step 1."
        if key == "transformer":
            return "not run"
        return scores(80.0) if seed else "failed: no room."

    sheet = sheet_of(measured("IV", "levir-cd", outcome))
    ours = sheet.frame[("F1", "ours")].to_dict()
    assert ours == {
        "ResNet-18": "failed†",
        "Transformer, from scratch": "not measured†",
        "VGG-16": "80.00†",
    }
    assert sheet.frame[("F1", "Δ")].to_dict()["ResNet-18"] == "—"
    assert sheet.notes[0] == (
        "† ResNet-18: seed 0 failed: lr: the loss is inf at step 1.; "
        "seed 1 failed: lr: the loss is inf at step 1."
    )
    assert sheet.notes[2] == "† VGG-16: seed 0 failed: no room."
    for text in (markdown("T", [sheet], None), html("T", [sheet]), latex([sheet], None)):
        assert text.count("the loss is inf") == 2


def test_a_measure_without_a_value_is_said_to_have_none():
    nothing = scores(0.0, tiles=scores(0.0).tiles.model_copy(update={"P": None}))
    records = measured("I", "levir-cd", lambda key, _: nothing if key == "bit" else scores(50.0))
    frame = sheet_of(records).frame
    assert frame.loc["BiT", "P"].to_dict() == {"ours": "no value", "paper": "86.30", "Δ": "—"}


def test_a_seed_without_a_value_hides_no_other():
    nothing = scores(0.0, tiles=scores(0.0).tiles.model_copy(update={"P": None}))
    records = measured("I", "levir-cd", lambda _, seed: scores(50.0) if seed else nothing)
    sheet = sheet_of(records)
    assert sheet.frame.loc["BiT", [("P", "ours"), ("F1", "ours")]].tolist() == [
        "80.00†", "25.00 ± 35.36",
    ]  # fmt: skip
    assert "† BiT: P has no value with seed 0" in sheet.notes and len(sheet.notes) == 9
    line = records[(records["row"] == "BiT") & (records["measure"] == "P")].iloc[0]
    assert (line["mean"], line["n"], line["no_value"], line["why"]) == (80.0, 1, "0", "")


def test_a_published_zero_is_a_figure(monkeypatch):
    monkeypatch.setattr(sheets, "paper_figures", lambda name, key: {"levir-cd": {"F1": 0.0}})
    assert sheets.record("I", "bit", "levir-cd", "F1", [1.5], "")["difference"] == 1.5


def test_rows_of_other_splits_are_not_compared():
    """The table is there all the same, and says why."""
    entries = entries_of("I", ["demo"], [0], {})
    outcomes = {
        e.cells[0].name: scores(50.0, split_hash=f"{i // 8}") for i, e in enumerate(entries)
    }
    records = records_for(entries, outcomes)
    table, compared = benchmark.sheets_of(records, entries, outcomes, Plan(), COMMIT)
    assert table.frame.loc["BiT", ("F1", "ours")] == "50.00"
    assert compared.frame.loc["all pairs", "Δ F1"] == "failed†"
    assert "scored on different splits: 0, 1" in compared.notes[0]
    for text in (markdown("T", [compared], None), html("T", [compared])):
        assert "scored on different splits: 0, 1" in text


def compare(entries, monkeypatch, counts_of):
    """The sheet on pairs of rows that all scored 50, but for Dsfer-Net, better in every scene."""
    outcomes = {cell.name: scores(50.0) for entry in entries for cell in entry.cells}
    monkeypatch.setattr(benchmark, "read_counts", counts_of)
    (sheet,) = benchmark._significance(entries, outcomes)
    return sheet


def counts(cell, scenes):
    good = cell.settings.params.model == "dsfer-net"
    names = [f"{number:04d}" for number in range(scenes)]
    return pd.DataFrame({"scene": names, "tp": 90 if good else 60, "fp": 10, "fn": 10})


def of_grid(rows, cols, scenes=1):
    """Counts of scenes of so many tiles, Dsfer-Net better in each; row and column in the ids."""

    def made(cell):
        good = cell.settings.params.model == "dsfer-net"
        side = cell.settings.data.tile_size
        places = [(f"s{n}", r, c) for n in range(scenes) for r in range(rows) for c in range(cols)]
        ids = [f"{name}_{row * side:05d}_{col * side:05d}" for name, row, col in places]
        names = [name for name, _, _ in places]
        tp = 90 if good else 60
        return pd.DataFrame({"id": ids, "scene": names, "tp": tp, "fp": 10, "fn": 10})

    return made


def test_one_scene_is_tested_by_blocks_of_its_tiles(monkeypatch):
    entries = entries_of("I", ["whu-cd"], [0, 1], {})
    sheet = compare(entries, monkeypatch, of_grid(24, 41))
    assert "over the 18 blocks of 8 x 8 tiles of the test split" in sheet.caption
    assert "counts of all seeds added up by block" in sheet.caption
    assert "The split has 1 scene, too few" in sheet.caption
    assert "neighbouring blocks are not independent" in sheet.caption
    assert sheet.frame.loc["BiT less Dsfer-Net", ["Δ F1", "real"]].tolist() == ["−4.29", "yes"]
    assert sheet.frame.loc["BiT less VcT", "real"] == "not shown"


@pytest.mark.parametrize(("scenes", "said"), [(5, "10 blocks of 8 x 8 tiles"), (6, "6 scenes")])
def test_few_scenes_are_tested_by_blocks_and_more_as_they_are(scenes, said, monkeypatch):
    sheet = compare(entries_of("I", ["demo"], [0], {}), monkeypatch, of_grid(8, 9, scenes))
    assert f"over the {said} of the test split" in sheet.caption
    assert ("not independent" in sheet.caption) == ("blocks" in said)


def test_scenes_no_larger_than_a_block_stay_scenes(monkeypatch):
    entries = entries_of("I", ["demo"], [0], {})
    sheet = compare(entries, monkeypatch, of_grid(4, 4, 4))
    assert "over the 4 scenes of the test split" in sheet.caption
    assert "independent" not in sheet.caption
    sheet = compare(entries, monkeypatch, of_grid(8, 8))
    assert "not tested: one scene" in sheet.caption and "real" not in sheet.caption
    assert sheet.frame.columns.tolist() == ["Δ F1"]
    assert sheet.frame.loc["BiT less Dsfer-Net"].item() == "−4.29"


@pytest.mark.parametrize(
    ("dataset", "tiles", "dependent"),
    [("levir-cd", 2, False), ("levir-cd", 1, True), ("cdd", 1, True)],
)
def test_tiles_that_count_as_scenes_are_said_not_to_be_independent(
    dataset, tiles, dependent, monkeypatch
):
    entries = entries_of("I", [dataset], [0, 1], {})
    sheet = compare(entries, monkeypatch, of_grid(1, tiles, 20))
    assert "over the 20 scenes of the test split" in sheet.caption
    assert ("Every scene is a single tile" in sheet.caption) == dependent
    assert ("intervals are too narrow" in sheet.caption) == dependent


def test_pairs_of_methods_are_compared_over_pooled_seeds(monkeypatch):
    """Rows that lack a seed are left out; one that is better in every scene is."""
    entries = entries_of("I", ["demo"], [0, 1], {})
    outcomes = {cell.name: scores(50.0) for entry in entries for cell in entry.cells}
    outcomes[entries[0].cells[1].name] = "failed: no room."
    monkeypatch.setattr(benchmark, "read_counts", lambda cell: counts(cell, 20))
    (sheet,) = benchmark._significance(entries, outcomes)
    assert len(sheet.frame) == 8 * 7 / 2
    assert sheet.frame.loc["BiT less Dsfer-Net", "real"] == "yes"
    assert sheet.frame.loc["BiT less VcT", ["Δ F1", "p", "real"]].tolist() == [
        "+0.00", "1.0000", "not shown",
    ]  # fmt: skip
    assert "over the 20 scenes" in sheet.caption and "7 of 28 differences are real" in sheet.caption
    assert sheet.notes == ("† Left out, since seeds lack results: FC-Siam-conc.",)


def test_a_cell_that_failed_is_named_once_the_tables_are_written(tmp_path, monkeypatch):
    """Dsfer-Net is better than all others, BiT failed; VcT's counts are gone from the cache.

    Amid all this the user commits.
    """
    ran, left_out, commits = [], [], ["abc1234"]

    def run_cells(cells, *_):
        ran.extend(cells)
        commits.append("def5678")

    def read_counts(cell):
        if gone and cell.settings.params.model == "vct":
            raise DataError("is not in DVC's cache")
        return counts(cell, 20)

    def draw_plates(entries, outcomes, folder):
        missing = [e.key for e in entries if isinstance(outcomes[e.cells[0].name], str)]
        if gone:
            raise DataError("holds no shards")
        left_out.append(missing)
        write_figures(folder, [random_tile(np.random.default_rng(0), 0)])

    def f1(cell):
        return scores(90.0 if cell.settings.params.model == "dsfer-net" else 75.0)

    failed = {"bit"}
    monkeypatch.setattr(benchmark, "run_cells", run_cells)
    monkeypatch.setattr(benchmark, "commit", lambda project: commits[-1])
    monkeypatch.setattr(
        benchmark,
        "finished",
        lambda: {cell.name for cell in ran if cell.settings.params.model not in failed},
    )
    monkeypatch.setattr(benchmark, "missing_reason", lambda cell: "failed: no room.")
    monkeypatch.setattr(benchmark, "read_metrics", f1)
    monkeypatch.setattr(benchmark, "read_counts", read_counts)
    monkeypatch.setattr("pipeline.comparison.draw_plates", draw_plates)
    plan, gone = Plan(names=["I"], datasets=["demo", "demo"], seeds=[0]), False
    with pytest.raises(BenchmarkError, match="BiT: seed 0 failed: no room") as raised:
        benchmark.benchmark(plan, 1, tmp_path)
    assert "FC-Siam" not in str(raised.value) and "real" not in str(raised.value)
    assert len(ran) == 9
    table = pd.read_csv(tmp_path / "table-I.csv", keep_default_na=False).groupby("row")
    assert table["date"].first()[["VcT", "BiT"]].tolist() == ["2026-11-24", ""]
    assert set(table["protocol"].first()) == {"isolated tiles"}
    text = (tmp_path / "table-I.md").read_text()
    assert re.search(r"\| BiT +\| +failed† \|", text)
    assert "commit abc1234" in text and "def5678" not in text
    assert re.search(r"\| VcT less Dsfer-Net +\| +−4\.29 \|.* yes \|", text)
    assert {path.name for path in tmp_path.iterdir()} == {
        "table-I.md", "table-I.tex", "table-I.html", "table-I.csv", "table-I-demo-significance.csv",
        "comparison-demo",
    }  # fmt: skip
    assert left_out == [["bit"]]
    page = (tmp_path / "table-I.html").read_text()
    plate = (tmp_path / "comparison-demo/comparison.png").read_bytes()
    assert [address for _, _, address in addresses(page)] == [data_uri(plate, "image/png")]
    assert "demo: Title of comparison. Caption of comparison" in page
    failed, gone = set(), True
    others = [tmp_path / f"table-{name}-demo-significance.csv" for name in ("I-folder", "II")]
    for path in others:
        path.write_text("former")
    with pytest.raises(BenchmarkError, match=r"real, demo: is not in DVC's cache.* figures, demo"):
        benchmark.benchmark(plan, 1, tmp_path)
    assert not (tmp_path / "comparison-demo").exists()
    assert {path.name for path in tmp_path.glob("*-significance.csv")} == {others[1].name}
    assert not addresses((tmp_path / "table-I.html").read_text())
    text = (tmp_path / "table-I.md").read_text()
    assert re.search(r"\| BiT +\| +80\.00 \|", text) and "† is not in DVC's cache" in text


def made_up_costs():
    row = {
        "variant": None, "parameters": 34_085_990, "live": 30_000_000, "gmacs": 75.19,
        "test_pairs": 16, "test_loop_s": 0.5, "pairs_per_second": 3.5, "batch": 8,
        "tried": [1, 8], "latency_ms": 250.0, "peak_mib": None, "precision": "float32",
        "rounds": 3, "spreads": {"seconds": 0.25, "pairs/s": 0.02, "latency": 0.1},
    }  # fmt: skip
    about = {"command": "c", "device": "2 cores", "date": "2026-11-27", "torch": "2.15"}
    rows = [{"network": name} | row for name in cost.measured_networks()]
    return about | {"rows": rows, "failed": {}}


def test_costs_stand_beside_the_papers_scaled_to_its_tiles():
    costs = Costs.model_validate(made_up_costs())
    rows = load_tables()["II"].rows
    records = pd.DataFrame([line for key in rows for line in cost_records("II", key, "", costs)])
    sheet = score_sheet(records, cost_caption(records, COMMIT))
    assert sheet.frame.loc["Dsfer-Net"].to_dict() == {
        ("Parameters, million", "ours"): "34.09",
        ("Parameters, million", "paper"): "34.08",
        ("Parameters, million", "Δ"): "+0.01",
        ("Parameters used, million", "ours"): "30.00",
        ("Test loop, s per 2,048 pairs", "ours"): "64.00",
        ("Test loop, s per 2,048 pairs", "paper, A100"): "21.27",
        ("GMACs", "ours"): "75.19",
        ("Pairs per second", "ours"): "3.50",
        ("Pairs per second", "batch"): "8",
        ("Latency, ms", "ours"): "250.00",
        ("Peak memory, MiB", "ours"): "not measured",
    }
    assert sheet.notes == ()
    assert "scaled from 16 pairs to 2,048" in sheet.caption and "2 cores" in sheet.caption
    assert "fastest batch of those tried (1, 8), in" in sheet.caption
    assert "in float32 and uncompiled" in sheet.caption
    assert "medians of 3 rounds, whose spread is in the .csv" in sheet.caption
    of_bit = records[records["key"] == "bit"].set_index("measure")
    assert of_bit["batch"].unique() == "8"
    assert of_bit["spread"].dropna().to_dict() == {
        "seconds": 16.0, "pairs/s": pytest.approx(0.07), "latency": 25.0,
    }  # fmt: skip
    assert sheet.caption.endswith("Commit abc1234.")


def test_the_time_of_every_encoder_stands_beside_its_scores():
    made_up = made_up_costs()
    for row, seconds in zip(made_up["rows"], range(1, 99), strict=False):
        row["test_loop_s"] = float(seconds)
    networks = [row["network"] for row in made_up["rows"]]
    assert networks[-3:] == ["dsfer-net", "dsfer-net/resnet18", "dsfer-net/transformer"]
    entries = entries_of("IV", ["levir-cd"], [0], {})
    records = measured("IV", "levir-cd", lambda key, seed: scores(80.0), seeds=(0,))
    costs = Costs.model_validate(made_up)
    lines = [line for e in entries for line in cost_records("IV", e.key, e.dataset, costs)]
    records = pd.DataFrame([*records.to_dict("records"), *lines])
    (sheet,) = benchmark.sheets_of(records, entries, {}, Plan(), COMMIT)
    heading = "Test loop, s per 2,048 pairs"
    assert sheet.frame[heading, "ours"].tolist() == ["1280.00", "1408.00", "1152.00"]
    assert sheet.frame[heading, "paper, A100"].tolist() == ["18.12", "57.08", "21.27"]
    assert sheet.frame.columns.get_level_values(0)[-1] == heading
    assert "scaled from 16 pairs to 2,048" in sheet.caption
    assert "Pairs per second" not in sheet.caption and "Parameters as" not in sheet.caption


def test_a_network_that_the_paper_lacks_is_measured_with_the_others(tmp_path, monkeypatch):
    made_up, calls = made_up_costs(), []
    made_up["rows"].append(made_up["rows"][0] | {"network": "small-net", "parameters": 500_000})

    def run(options):
        calls.append(options[:-1])
        Path(options[-1]).write_text(json.dumps(made_up))

    monkeypatch.setattr(cost, "KEPT", tmp_path)
    monkeypatch.setattr(cost, "_run", run)
    for models in ([], ["small-net", "bit"], ["small-net"]):
        costs = cost.measure_costs(None, models)
    keys = row_keys("II", models)
    records = pd.DataFrame([line for key in keys for line in cost_records("II", key, "", costs)])
    assert calls == [["--json"], ["--add=small-net", "--json"]]
    assert score_sheet(records, "").frame.loc["small-net"].to_dict() == {
        ("Parameters, million", "ours"): "0.50",
        ("Parameters, million", "paper"): "not published",
        ("Parameters, million", "Δ"): "—",
        ("Parameters used, million", "ours"): "30.00",
        ("Test loop, s per 2,048 pairs", "ours"): "64.00",
        ("Test loop, s per 2,048 pairs", "paper, A100"): "not published",
        ("GMACs", "ours"): "75.19",
        ("Pairs per second", "ours"): "3.50",
        ("Pairs per second", "batch"): "8",
        ("Latency, ms", "ours"): "250.00",
        ("Peak memory, MiB", "ours"): "not measured",
    }


def test_costs_are_measured_once_and_a_failure_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "KEPT", tmp_path)
    calls = []

    def run(options):
        calls.append(options[:-1])
        if "--pairs" not in options:
            raise ConfigError("no such option")
        Path(options[-1]).write_text(json.dumps(made_up_costs()))

    monkeypatch.setattr(cost, "_run", run)
    first, second = cost.measure_costs(4), cost.measure_costs(4)
    assert first == second and first.rows[0].parameters == 34_085_990
    assert cost.measure_costs(None) == "failed: no such option"
    assert cost.measure_costs(8) == first
    assert calls == [["--pairs", "4", "--json"], ["--json"], ["--pairs", "8", "--json"]]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_network_that_fails_leaves_the_others_their_costs(tmp_path, monkeypatch):
    """Nothing is kept of such a run: the next measures again."""
    made_up, calls = made_up_costs(), []
    made_up["rows"] = [row for row in made_up["rows"] if row["network"] != "vct"]
    made_up["failed"] = {"vct": "no room"}

    def run(options):
        calls.append(options)
        Path(options[-1]).write_text(json.dumps(made_up))

    monkeypatch.setattr(cost, "KEPT", tmp_path)
    monkeypatch.setattr(cost, "_run", run)
    costs = cost.measure_costs(None)
    assert cost.measure_costs(None) == costs
    assert len(calls) == 2 and not any(tmp_path.iterdir())
    records = pd.DataFrame(
        [line for key in row_keys("II") for line in cost_records("II", key, "", costs)]
    )
    sheet = score_sheet(records, "")
    assert set(sheet.frame.loc["VcT"]) >= {"failed†", "12.41", "82.23"}
    assert sheet.notes == ("† VcT: failed: no room",)
    assert sheet.frame.loc["BiT", ("GMACs", "ours")] == "75.19"
    assert sheet.frame["Pairs per second", "batch"][["BiT", "VcT"]].tolist() == ["8", "—"]
    (line,) = cost_records("IV", "vgg16", "demo", costs)
    assert (line["n"], line["why"]) == (1, "")


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """Folder with Table V in all formats, and its records."""
    folder = tmp_path_factory.mktemp("tables")
    records = measured("V", "levir-cd", lambda key, seed: scores(90.0 + seed + float(key) / 100))
    write_plot(folder, "table-V", records)
    write_document(folder, "table-V", "Table V", [sheet_of(records)], "table-V")
    return folder, records


def test_formats_hold_the_same_numbers(document):
    folder, _ = document
    for suffix, row in {
        ".md": r"\| λ = 10 +\| +90\.60 ± 0\.71 \| +90\.12 \| +\+0\.48 \| +98\.50 ± 0\.00 \|",
        ".tex": r"\$\\lambda\$ = 10 & 90\.60 \$\\pm\$ 0\.71 & 90\.12 & \+0\.48 &",
        ".html": r"<th>λ = 10</th>\s*<td>90\.60 ± 0\.71</td>\s*<td>90\.12</td>\s*<td>\+0\.48<",
    }.items():
        assert re.search(row, (folder / f"table-V{suffix}").read_text()), suffix


def test_the_page_needs_nothing_but_itself(document):
    folder, _ = document
    page = (folder / "table-V.html").read_text()
    assert [kind for _, _, kind in addresses(page)] and all(
        address.startswith("data:image/svg") for _, _, address in addresses(page)
    )


def test_columns_under_one_heading_are_a_group_of_the_page():
    pairs = [(heading, one) for heading in ("P", "R") for one in ("ours", "paper")]
    frame = pd.DataFrame([range(5)], columns=pd.MultiIndex.from_tuples([*pairs, ("recipe", "")]))
    page = html("T", [sheets.Sheet("k", "T", frame, "caption")])
    assert re.findall(r'<colgroup(?: span="(\d)")?>', page) == ["", "2", "2", "1"]


def test_names_from_outside_are_escaped():
    records = measured("III", "levir-cd", lambda key, seed: f"failed: <b>100 %_$#&{{}}^\\ {seed}")
    sheet = sheet_of(records)
    assert "<b>" not in html("T", [sheet])
    assert r"100 \%\_\$\#\&\{\}\textasciicircum{}\textbackslash{}" in latex([sheet], None)


def test_the_plot_shows_both_curves_with_spread(document):
    folder, records = document
    (axes,) = sensitivity_figure(records).axes
    assert axes.get_xscale() == "log"
    ours, paper = axes.containers[0].lines[0], axes.lines[-1]
    assert list(ours.get_xdata()) == [0.001, 0.01, 0.1, 1, 10, 100]
    assert ours.get_ydata()[-1] == pytest.approx(91.5)
    assert list(paper.get_ydata()) == [90.69, 90.73, 90.76, 90.66, 90.12, 89.47]
    for suffix, start in {".svg": b"<?xml", ".pdf": b"%PDF", ".png": b"\x89PNG"}.items():
        assert (folder / f"table-V{suffix}").read_bytes().startswith(start)


def test_the_plot_leaves_out_the_paper_where_the_data_are_others():
    (axes,) = sensitivity_figure(measured("V", "demo", lambda key, seed: scores(50.0))).axes
    assert axes.get_legend_handles_labels()[1] == ["ours"]


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX here")
def test_latex_compiles(document, tmp_path):
    folder, _ = document
    preamble = r"\documentclass{article}\usepackage{booktabs,adjustbox,graphicx}\begin{document}"
    (tmp_path / "page.tex").write_text(preamble + r"\input{table-V.tex}\end{document}")
    for file in folder.iterdir():
        shutil.copy(file, tmp_path)
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "page.tex"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_bad_input_is_named():
    for plan, message in [
        (Plan(names=["IVV"]), "unknown table 'IVV'; perhaps you mean 'iv'"),
        (Plan(names=["VI"]), "unknown table 'VI'; perhaps you mean 'v'"),
        (Plan(names=[]), "tables: none is given"),
        (Plan(seeds=[]), "seeds: [] does not name one or more seeds, each once"),
        (Plan(seeds=[0, 1, 0]), "seeds: [0, 1, 0] does not name one or more seeds, each once"),
        (Plan(names=["V"], changes={"lambda": 1}), "table V, lambda: is set by the table"),
        (Plan(names=["I"], changes={"seed": 1}), "table I, seed: is set by the table"),
        (Plan(names=["V"], changes={"encoder": "resnet18"}), "table V, encoder: is set by the"),
        (Plan(names=["IV"], changes={"variant": "base+cf"}), "table IV, variant: is set by the"),
        (Plan(names=["V"], changes={"lr": -1}), "lr: Input should be greater than 0"),
        (Plan(names=["V"], changes={"iteratons": 1}), "perhaps you mean 'iterations'"),
        (Plan(names=["V"], datasets=["lever-cd"]), "perhaps you mean 'levir-cd'"),
        (Plan(names=["I"], changes={"recipe": "paper"}), "recipe 'paper' is for dsfer-net"),
        (
            Plan(names=["IV"], changes={"pretrained": "imagenet"}),
            "there are no ImageNet weights of transformer. To mend it: set pretrained: none",
        ),
        (
            Plan(names=["II"], models=["bitt"]),
            "models: unknown model 'bitt'; perhaps you mean 'bit'",
        ),
        (Plan(names=["III"], models=["bit"]), "models: no row of table III is a network"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            plan.entries()


def test_the_flow_passes_networks_on_to_the_command(monkeypatch):
    ran = []
    monkeypatch.setattr(flows, "run_module", lambda module, options: ran.append(options))
    flows.benchmark.fn(tables=("II",), models=("bit", "vct"))
    assert ran[0][-2:] == ["--model=bit", "--model=vct"]
    with pytest.raises(ConfigError, match="unknown model 'bitt'"):
        flows.benchmark.fn(tables=("II",), models=("bitt",))
    assert len(ran) == 1


def test_options_of_the_command_line():
    given = ["lr=1e-3", "recipe=common", "width=null", "augmentation=[flips, zoom]"]
    assert parse_changes(given) == {
        "lr": 0.001, "recipe": "common", "width": None, "augmentation": ["flips", "zoom"],
    }  # fmt: skip
    assert parse_seeds("0,2") == [0, 2]
    assert list(Plan(names=["iii", "V"]).entries()) == ["III", "V"]
    for wrong in (["lr"], ["lr=[1"]):
        with pytest.raises(ConfigError, match=r"is no key=value .* -S iterations=60"):
            parse_changes(wrong)
    with pytest.raises(ConfigError, match="--seeds: '0,x' is no list of integers"):
        parse_seeds("0,x")
