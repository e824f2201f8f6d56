"""What `benchmarks/cost.py` measures, of small networks and small tiles."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import cost, memory
from tests.project import ROOT

IMPORTED = """
import sys
from benchmarks import cost

def held_now():
    print(*sys.modules)
    return whole()

whole, cost.held_now = cost.held_now, held_now
cost.host_memory{arguments}
print(*sys.modules)
"""


def measure(monkeypatch, file, networks):
    """The numbers that it writes; without memory, which takes another process for each network."""
    monkeypatch.setattr(cost, "peak_memory", lambda *_: None)
    cost.main(2, 2, 64, [1, 2], 2, "cpu", networks, None, file)
    return json.loads(file.read_text())


@pytest.mark.parametrize("step", ["build", "best_batch", "flops_of_pair"])
def test_a_network_that_fails_at_some_step_stops_no_other(step, tmp_path, monkeypatch):
    """VcT cannot take tiles of 64 pixels."""
    whole = getattr(cost, step)

    def stops(network, *others, **options):
        if network == "fc-siam-conc" or type(network).__name__ == "FCSiamConc":
            raise ValueError("mine\nand more")
        return whole(network, *others, **options)

    monkeypatch.setattr(cost, step, stops)
    found = measure(monkeypatch, tmp_path / "cost.json", ["vct", "fc-siam-conc", "fc-ef-res"])
    (row,) = found["rows"]
    assert row["network"] == "fc-ef-res"
    assert row["spreads"].keys() == {"seconds", "pairs/s", "latency"} and row["rounds"] == 2
    assert found["failed"]["fc-siam-conc"] == "ValueError: mine"
    assert found["failed"]["vct"].startswith("images of 64x64 pixels")


def test_where_all_fail_the_error_tells_every_reason(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="error: no network can be measured: vct: images of"):
        measure(monkeypatch, tmp_path / "cost.json", ["vct"])


def test_an_unknown_network_is_named():
    with pytest.raises(SystemExit, match="error: bitt: no such network"):
        cost.build("bitt", 64, torch.device("cpu"))


@pytest.mark.skipif(not memory.is_told(), reason="this system does not tell it")
def test_memory_does_not_count_what_the_networks_modules_import(monkeypatch):
    """Some 80 MiB are torchvision's, which only some networks import."""
    monkeypatch.setattr(cost, "separately", lambda _, *arguments: arguments)
    network = cost.build("changeformer", 64, torch.device("cpu"))
    code = IMPORTED.format(arguments=cost.peak_memory("changeformer", network, 64, 1))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, check=True, stdout=subprocess.PIPE
    )
    before, after = (set(line.split()) for line in done.stdout.splitlines())
    assert "torchvision.ops" in before and len(after - before) < 10
