"""docs/own-model.md: its file, its line, its recipe and its commands, on a tiny data set.

The contract, a row's cost and Table I are run by the page's commands; training, by the stages that
its command would run. In Table I only the page's network has a result.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.project import ROOT, commit, copy_project, dvc, environment, run
from tests.test_methods import SIDE_OF_VCT, TINY, configure, prepare

PAGE = (ROOT / "docs/own-model.md").read_text(encoding="utf-8")
MODULE, LINE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(RECIPE,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
(CONTRACT,) = re.findall(r"^    python (-m pytest .*)$", PAGE, re.MULTILINE)
TABLE, COST = re.findall(r"^    python -m pipeline.benchmark (.*)$", PAGE, re.MULTILINE)

STAGES = """
from pipeline.stages import evaluate, figures, network, report, train

for stage in (network, train, evaluate, figures, report):
    stage.main()
"""

CELL = f"""
from pipeline.tables import entries_of

*_, entry = entries_of("I", ["{TINY["dataset"]}"], [0], {{}}, ["small-net"])
print(entry.cells[0].name)
"""

BENCHMARK = """
import sys
from pipeline import benchmark
from pipeline.stages import run

benchmark.run_cells = lambda *_: None  # the paper's nine would take minutes
sys.argv[1:] = {options}
run(benchmark.main)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the page's network in it, trained and scored on tiles for all of Table I."""
    folder = tmp_path_factory.mktemp("own")
    copy_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        configure(folder, tile_size=SIDE_OF_VCT)
        prepare(SIDE_OF_VCT)
    (folder / "dsfer/models/small_net.py").write_text(MODULE)
    catalog = folder / "dsfer/models/registry.py"
    before, after = catalog.read_text().split("MODELS = {\n")
    catalog.write_text(f"{before}MODELS = {{\n{LINE}{after}")
    configure(folder, model="small-net", tile_size=SIDE_OF_VCT)
    commit(folder, "a network of one's own")
    python(folder, STAGES)
    return folder


@pytest.fixture
def own_project(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def python(folder: Path, code: str, status: int = 0) -> str:
    """What a program prints that runs on the copy's code."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, text=True, check=False,
        env=environment() | {"PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == status, done.stdout
    return done.stdout


def test_a_file_and_a_line_put_a_network_through_the_stages(own_project):
    out = own_project / "data" / TINY["dataset"] / "models/small-net"
    metrics = json.loads((out / "evaluation/metrics.json").read_text())
    assert (metrics["model"], metrics["recipe"]) == ("small-net", "common")
    assert metrics["tiles"]["n"] == 1
    assert "small-net" in (out / "report.html").read_text()
    recipes = own_project / "pipeline/recipes.yaml"
    recipes.write_text(f"{recipes.read_text()}\n{RECIPE}")
    shown = python(own_project, "from pipeline.params import main; main()")
    assert "recipe small-net" in shown and "default of small-net" in shown


def test_it_keeps_the_contract_of_all_networks(own_project):
    (own_project / "tests").mkdir()
    for name in ("__init__.py", "test_model_contract.py"):
        shutil.copy(ROOT / "tests" / name, own_project / "tests")
    printed = run(own_project, sys.executable, *CONTRACT.split())
    passed = re.search(r"(\d+) passed", printed)
    assert passed and int(passed[1]) > 10, printed
    assert " failed" not in printed and " skipped" not in printed


@pytest.mark.slow
def test_its_name_gives_it_a_row_of_table_i(own_project):
    """From a finished experiment, scored before; the paper's rows, not run here, say so."""
    out = own_project / "data" / TINY["dataset"] / "models/small-net"
    metrics = json.loads((out / "evaluation/metrics.json").read_text()) | {"date": "2026-11-21"}
    (out / "evaluation/metrics.json").write_text(json.dumps(metrics))
    dvc(own_project, "commit", "--force", "--quiet")
    name = python(own_project, CELL).strip()
    dvc(own_project, "exp", "save", "--name", name)
    options = TABLE.replace("demo", TINY["dataset"]).split()
    assert options[:3] == ["I", "--model", "small-net"]
    python(own_project, BENCHMARK.format(options=options), status=1)
    table = pd.read_csv(own_project / "data/tables/table-I.csv")
    own = table[(table["row"] == "small-net") & (table["measure"] == "F1")].iloc[0]
    assert own["mean"] == pytest.approx(metrics["tiles"]["F1"], rel=1e-5)
    assert (own["recipe"], own["experiments"]) == ("common", name) and pd.isna(own["paper"])
    assert (own["date"], own["protocol"]) == ("2026-11-21", "isolated tiles")
    text = (own_project / "data/tables/table-I.md").read_text()
    f1 = f"{metrics['tiles']['F1']:.2f}"
    assert re.search(rf"\| small-net +\|.* {f1} \| +not published \|", text)
    assert re.search(r"\| Dsfer-Net +\|.* not measured† \| +90\.76 \|", text)


@pytest.mark.slow
def test_its_cost_is_measured_for_table_ii(own_project):
    assert COST == "II --model small-net"
    measured = own_project / "cost.json"
    options = (
        "--only fc-ef-res --add small-net --size 64 --pairs 2 --tiles 2 --batches 1 --batches 2"
    )
    command = [sys.executable, "-m", "benchmarks.cost", *options.split(), "--json", str(measured)]
    run(own_project, *command)
    rows = {row["network"]: row for row in json.loads(measured.read_text())["rows"]}
    assert list(rows) == ["fc-ef-res", "small-net"]
    own = rows["small-net"]
    assert own["variant"] is None and own["gmacs"] > 0
    assert own["tried"] == [1, 2] and own["batch"] in own["tried"]
    if sys.platform == "linux":  # the weights alone, in float32
        assert own["peak_mib"] > 4 * own["parameters"] / 2**20
