import io
import json
import re

import pandas as pd
import pytest
from rich.console import Console

from dsfer.errors import DataError
from pipeline.published import load_published
from pipeline.report import VALIDATION_PAGE, build_report, comparison, percent, value
from pipeline.results import read_figures, read_results
from pipeline.stages.report import write_report
from tests.made_up_run import SPLIT_HASH, write_run
from tests.pages import addresses

RUN = "models/dsfer-net"


def page_of(folder):
    return build_report(read_results(folder, "dsfer-net"), read_figures(folder / RUN / "figures"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder, metrics and page of a run on LEVIR-CD."""
    folder = tmp_path_factory.mktemp("levir-cd")
    metrics = write_run(folder)
    return folder, metrics, page_of(folder)


def words(html):
    """Visible text of a page, spaces made single."""
    body = re.sub(r"(?s)<style>.*?</style>", "", html)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_the_page_loads_nothing_from_anywhere(run):
    _, _, page = run
    outside = {address for _, _, address in addresses(page) if not address.startswith("data:")}
    assert outside == {VALIDATION_PAGE}
    assert [tag for tag, _, address in addresses(page) if address == VALIDATION_PAGE] == ["a"]
    assert "<script" not in page and "@import" not in page and "url(" not in page
    assert "http" not in re.sub(r"base64,[^\"]+", "", page)


def test_every_headline_number_is_on_the_page(run):
    _, metrics, page = run
    text = words(page)
    for row in (metrics["tiles"], metrics["stitched"], metrics["baseline"]):
        for name in ("P", "R", "F1", "OA", "IoU"):
            assert f"{row[name]:.2f}" in text
    assert f"{metrics['tiles']['F1_low']:.2f} – {metrics['tiles']['F1_high']:.2f}" in text
    for paper in ("89.42", "92.15", "90.76", "99.04", "83.09", "34.08"):
        assert paper in text
    for stamp in (SPLIT_HASH, "recipe modern", "seed 3", "12,345 iterations", "NVIDIA H200"):
        assert stamp in text
    assert "34,085,990" in text and "321.4" in text and "changed from 41 on" in text
    assert "the weights are those of iteration 11,500" in text
    assert "12 tiles" in text and "3 scenes" in text


def test_tables_pictures_validation_and_parameters_are_on_the_page(run):
    folder, _, page = run
    text = words(page)
    scenes = pd.read_csv(folder / RUN / "evaluation/scenes.csv")
    for scene in scenes.to_dict("records"):
        assert scene["scene"] in text and f"{scene['F1']:.2f}" in text
    strips = list((folder / RUN / "evaluation/gallery").rglob("*.png"))
    assert page.count("data:image/png;base64,") == len(strips) + 2 == 9
    assert page.count("data:image/svg+xml;base64,") == 1
    assert "3 passed" in text and "1 with a warning" in text and "0 failed" in text
    assert "No tile touches one of another split. 17 violations." in text
    assert "lambda 0.1 recipe modern" in text and "lr 1e-05 params.yaml" in text
    assert "hopfield_beta null" in text and "split published catalog" in text
    assert "scene0_00000_00000 (most errors)" in text and "BiT, Dsfer-Net" in text
    assert "Title of comparison Caption of comparison" in text
    for outcome in ("change found", "change missed", "false alarm", "rightly unchanged"):
        assert outcome in text


def test_worst_scene_comes_first(run):
    folder, _, page = run
    scenes = pd.read_csv(folder / RUN / "evaluation/scenes.csv").sort_values("F1")
    places = [page.index(f'<th scope="row">{name}</th>') for name in scenes["scene"]]
    assert places == sorted(places)


def test_a_data_set_that_the_paper_does_not_know(tmp_path):
    write_run(tmp_path, dataset="folder/mine", stitched=False)
    text = words(page_of(tmp_path))
    assert "The paper has no figure for this network on this data set." in text
    assert "no scene lies wholly in the test split" in text
    assert "90.76" not in text


def test_the_paper_stands_only_beside_data_as_published(tmp_path):
    metrics = write_run(tmp_path, as_published=False)
    results, printed = read_results(tmp_path, "dsfer-net"), io.StringIO()
    assert [row.name for row in comparison(results, load_published())] == [
        *("This run", "This run", "Baseline")
    ]
    write_report(tmp_path, "dsfer-net", Console(file=printed, width=80))
    for text in (words(page_of(tmp_path)), " ".join(printed.getvalue().split())):
        assert "The paper is left out: its figures belong to the published data" in text
        assert f"{metrics['tiles']['F1']:.2f}" in text
        assert "90.76" not in text and "Table I on" not in text


def test_an_ablation_stands_beside_table_3(tmp_path):
    write_run(tmp_path, variant="base+cf")
    results = read_results(tmp_path, "dsfer-net")
    paper = comparison(results, load_published())[2]
    assert paper.name == "Paper, Table III" and paper.scores == {"F1": 90.05}
    assert "90.05" in words(page_of(tmp_path))


@pytest.mark.parametrize(
    ("model", "variant", "counts", "told"),
    [
        ("changeformer", "v5", (43_992_882, 43_992_882), "43,992,882 parameters (paper: 43.99"),
        ("changeformer", "v6", (41_026_674, 41_026_674), "41,026,674 parameters Training"),
        (
            *("bit", "dd8-dedim8", (3_037_026, 11_943_754)),
            "3,037,026 parameters; 11,943,754 with those that the published network has and "
            "never uses (paper: 11.94 million)",
        ),
        (
            "stanet",
            "bam",
            (16_897_040, 16_897_041),
            "16,897,041 with those that the published network has and never uses Training",
        ),
    ],
)
def test_parameters_stand_beside_those_that_the_paper_counts(
    tmp_path, model, variant, counts, told
):
    live, counted = counts
    write_run(tmp_path, model=model, variant=variant, parameters=live, parameters_counted=counted)
    assert told in words(page_of(tmp_path))


def test_the_page_tells_the_day_of_scoring_and_the_device_of_training(tmp_path, run):
    """What an older version scored tells neither."""
    write_run(tmp_path, date="2026-11-24", device="cpu, 2 threads", trained_on="NVIDIA H200")
    text = words(page_of(tmp_path))
    assert "cpu, 2 threads, trained on NVIDIA H200 · scored 2026-11-24" in text
    assert "seed 3, on NVIDIA H200; the weights" in text
    assert "pairs per second on cpu, 2 threads" in text
    _, _, page = run
    assert "12,345 iterations · NVIDIA H200 Result" in words(page)
    assert "seed 3, on NVIDIA H200; the weights" in words(page)


def test_measures_without_a_value_show_a_dash(tmp_path):
    nothing = dict.fromkeys(["P", "R", "F1", "IoU", "F1_low", "F1_high"])
    write_run(tmp_path, tiles=nothing | {"OA": 100.0, "n": 4})
    text = words(page_of(tmp_path))
    assert "points below" not in text and "points above" not in text
    assert "This run tiles – – – 100.00 –" in text


def test_names_from_outside_are_escaped(tmp_path):
    write_run(tmp_path, device="<img src=http://evil.test/x>")
    page = page_of(tmp_path)
    assert not [address for _, _, address in addresses(page) if "evil" in address]


@pytest.mark.parametrize(
    "missing",
    [
        f"{RUN}/evaluation/metrics.json",
        f"{RUN}/evaluation/scenes.csv",
        f"{RUN}/evaluation/tiles.csv",
        f"{RUN}/figures/figures.json",
        f"{RUN}/figures/comparison.png",
        f"{RUN}/training/history.csv",
        f"{RUN}/training/settings.json",
        "validation/validation.json",
        "split/split.json",
    ],
)
def test_a_missing_input_is_named_and_leaves_no_page(tmp_path, missing):
    write_run(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(DataError, match=f"{missing}: no such file.*To mend it: run the"):
        write_report(tmp_path, "dsfer-net", Console(file=io.StringIO()))
    assert not (tmp_path / RUN / "report.html").exists()


def test_damaged_inputs_are_named(tmp_path):
    metrics = write_run(tmp_path)
    stored = tmp_path / RUN / "evaluation/metrics.json"
    stored.write_text(json.dumps(metrics | {"parameters": "many"}))
    with pytest.raises(DataError, match=r"metrics\.json: parameters: .*dvc repro -f evaluate"):
        read_results(tmp_path, "dsfer-net")
    stored.write_text(json.dumps(metrics | {"split_hash": "ffffffffffff"}))
    with pytest.raises(DataError, match=r"split ffffffffffff, but the present .*dvc repro"):
        read_results(tmp_path, "dsfer-net")
    stored.write_text(json.dumps(metrics))
    (tmp_path / RUN / "evaluation/scenes.csv").write_text("scene,F1\na,1\n")
    with pytest.raises(DataError, match=r"scenes\.csv: lacks the columns tiles, tp"):
        read_results(tmp_path, "dsfer-net")


def test_an_empty_gallery_is_named(tmp_path):
    write_run(tmp_path)
    for picture in (tmp_path / RUN / "evaluation/gallery/worst").glob("*.png"):
        picture.unlink()
    with pytest.raises(DataError, match="gallery/worst: holds no"):
        read_results(tmp_path, "dsfer-net")


def test_write_report_prints_a_table_that_fits_a_log(run):
    folder, metrics, _ = run
    printed = io.StringIO()
    page = write_report(folder, "dsfer-net", Console(file=printed, width=80))
    assert page == folder / RUN / "report.html" and page.read_text().startswith("<!DOCTYPE html>")
    lines = printed.getvalue().splitlines()
    own = next(line for line in lines if "This run, tiles" in line)
    for name in ("P", "R", "F1", "OA", "IoU"):
        assert f"{metrics['tiles'][name]:.2f}" in own
    assert any(re.search(r"Paper, Table I +89\.42 +92\.15 +90\.76", line) for line in lines)
    assert any(re.search(r"Baseline +20\.50 +60\.25 +30\.59", line) for line in lines)
    assert lines[-1] == f"report: {page}"
    assert "…" not in printed.getvalue()


def test_scene_names_that_look_like_numbers_or_nothing_stay_text(tmp_path):
    write_run(tmp_path)
    table = tmp_path / RUN / "evaluation/scenes.csv"
    table.write_text(table.read_text().replace("scene0", "0012").replace("scene1", "NA"))
    assert {"0012", "NA"} < set(read_results(tmp_path, "dsfer-net").scenes["scene"])


def test_values_read_as_in_params_yaml():
    assert [value(each) for each in (None, True, 0.1, "a", [1, 2.5])] == [
        *("null", "true", "0.1", "a", "[1, 2.5]")
    ]
    assert [percent(each) for each in (None, float("nan"), 90.755)] == ["–", "–", "90.75"]
