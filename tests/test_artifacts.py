"""What a finished stage shows, without a server to show it."""

import base64
import io
import logging
import re

import httpx
import numpy as np
import pytest
from PIL import Image

import pipeline.artifacts
from pipeline import flows
from pipeline.artifacts import PICTURE_HEIGHT, publish
from pipeline.flows import Progress
from pipeline.published import load_published
from tests.made_up_run import random_tile, write_run
from tests.project import ROOT

LOCK = """schema: '2.0'
stages:
  evaluate: {cmd: x, outs: [{path: data/a, hash: md5, md5: 60b7.dir, size: 2500000, nfiles: 7}]}
  validate: {cmd: x, outs: [{path: data/v, hash: md5, md5: 11f3, size: 812}]}
  report: {cmd: x, outs: [{path: data/r, hash: md5, md5: 22f3, size: 3}]}
"""


def large_tile(rng, index):
    """A tile of 320 pixels."""
    return tuple(np.kron(part, np.ones((10, 10, 1)[: part.ndim], part.dtype))
                 for part in random_tile(rng, index))  # fmt: skip


@pytest.fixture
def shown(monkeypatch):
    """Data and description of the artifacts that were created, by key."""
    found = {}

    def create(data, *, key, description):
        found[key] = (data, description)

    for name in ("create_table_artifact", "create_markdown_artifact"):
        monkeypatch.setattr(pipeline.artifacts, name, create)
    return found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    params = (ROOT / "params.yaml").read_text().replace("dataset: demo ", "dataset: levir-cd ")
    (folder / "params.yaml").write_text(params)
    (folder / "dvc.lock").write_text(LOCK)
    write_run(folder / "data/levir-cd", draw=large_tile)
    return folder


def test_scores_stand_beside_those_of_the_paper(workspace, shown):
    publish("evaluate", workspace, None)
    rows, description = shown["scores"]
    assert [row["change class, %"] for row in rows] == [
        "This run, tiles", "This run, stitched", "Paper, Table I, tiles", "Baseline, tiles",
    ]  # fmt: skip
    reference = load_published().reference("dsfer-net", "levir-cd", "base+cf+dsfr")
    assert rows[2]["F1"] == f"{reference.scores['F1']:.2f}"
    assert description.startswith("dsfer-net on levir-cd, split 0123456789ab, recipe modern")


def test_change_maps_are_small_pictures(workspace, shown):
    publish("evaluate", workspace, None)
    page, _ = shown["change-maps"]
    pictures = re.findall(r"\(data:image/webp;base64,(.+?)\)", page)
    assert len(pictures) == 7  # four of the sample, three of the worst
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as opened:
            assert opened.height == PICTURE_HEIGHT
            assert opened.width > 5 * PICTURE_HEIGHT


def test_outputs_are_listed_as_dvc_recorded_them(workspace, shown):
    publish("evaluate", workspace, None)
    rows, _ = shown["outputs-evaluate"]
    assert rows == [{"output": "data/a", "files": 7, "size": "2.5 MB", "md5": "60b7.dir"}]


def test_expectations_and_leakage_are_one_table(workspace, shown):
    publish("validate", workspace, None)
    rows, description = shown["validation"]
    assert description == "Validation: warn"
    assert [row["violations"] for row in rows] == [0, 17, 0, 0, 0, 17]
    assert rows[-1] == {
        "of": "train and test", "expectation": "no adjacent tiles in both",
        "status": "warn", "violations": 17,
    }  # fmt: skip


def test_the_report_says_where_its_page_is(workspace, shown):
    publish("report", workspace, "flow-1234")
    page, _ = shown["report"]
    assert "data/levir-cd/models/dsfer-net/report.html" in page
    assert "dvc exp apply flow-1234" in page
    assert "![training curves](data:image/svg+xml;base64," in page
    assert "| lr | `1e-05` | params.yaml |" in page


def test_a_progress_bar_is_passed_on_now_and_then(monkeypatch):
    said, clock = [], iter([100.0, 100.0, 101.0, 107.0, 107.0])
    monkeypatch.setattr(flows, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(flows.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(flows, "create_progress_artifact", lambda p, **_: said.append(p) or "id")
    monkeypatch.setattr(flows, "update_progress_artifact", lambda _, p: said.append(p))
    progress = Progress("train")
    lines = [f"training: {part:3d}%|██   | {part}/100 [00:01<00:09]" for part in (0, 10, 50)]
    assert all(progress.follow(line) for line in lines)
    assert not progress.follow("INFO     continuing from step 3")
    progress.finish()
    assert said == [0.0, 50.0, 100.0]


def test_a_server_that_does_not_take_the_progress_bar_costs_the_stage_nothing(monkeypatch, caplog):
    def out_of_reach(*_, **__):
        raise httpx.ConnectError("All connection attempts failed")

    said = []
    monkeypatch.setattr(flows, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(flows, "SECONDS_BETWEEN_UPDATES", -1)
    monkeypatch.setattr(flows, "create_progress_artifact", out_of_reach)
    monkeypatch.setattr(flows, "update_progress_artifact", lambda _, p: said.append(p))
    progress = Progress("train")
    assert progress.follow("training:  10%|█    | 10/100")
    assert "did not take the progress bar: ConnectError" in caplog.text
    monkeypatch.setattr(flows, "create_progress_artifact", lambda p, **_: said.append(p) or "id")
    assert progress.follow("training:  50%|██   | 50/100")
    monkeypatch.setattr(flows, "update_progress_artifact", out_of_reach)
    progress.finish()
    assert said == [50.0]
