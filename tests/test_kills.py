"""SIGKILL anywhere in the pipeline: the next runs end with the bytes of a run left alone."""

import hashlib
import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from pipeline.recovery import recover
from tests.killer import Plan, Run
from tests.project import ROOT, STAGES, TINY, dvc, environment, run, tiny_project

pytestmark = pytest.mark.xdist_group("kills")

KILLS_PER_PROCESS = 3
"""Of each stage, and of DVC while it stores what the stage made."""

DATA = Path("data/folder/tiny")
MODEL = DATA / "models/dsfer-net"

IN_PLACE = f"{MODEL}/training/live/"
"""Curves that DVCLive appends to while training goes on; nobody reads them before it has ended."""

TIMED = f"{MODEL}/evaluation/metrics.json"
"""Holds pairs per second."""

CACHE = r"\.dvc/cache/files/md5"

INSIDE = [
    Plan("dvc split", r"^dvc\.lock$", cut=0.5),
    Plan("dvc evaluate", r"^dvc\.lock$", cut=0),
    Plan("download", r" data/folder/tiny/raw$"),
    Plan("crop", r"tiles-000000\.tar$", cut=0.5),
    Plan("crop", r" data/folder/tiny/tiles$"),
    Plan("validate", r"validation\.html$", cut=0.5),
    Plan("shard", r"shard-000000\.tar$", cut=0.5),
    Plan("shard", r"shard-000000\.tar$", nth=2, cut=0.01),
    Plan("dvc shard", r"\.dvc/cache/runs/.*\.tmp$"),
    Plan("dvc shard", r"\.dvc/cache/runs/.*\.tmp$", cut=0.5),
    Plan("dvc shard", rf"{CACHE}/\w\w/\w{{30}}$", cut=0),
    Plan("dvc shard", rf"{CACHE}/\w\w/\.[\w-]+\.tmp$", nth=1, cut=0.5),
    Plan("dvc shard", rf"{CACHE}/\w\w/\.[\w-]+\.tmp {CACHE}", nth=1),
    Plan("dvc shard", r"^\.dvc/tmp/rwlock$", cut=0.5),
    Plan("train", r" \.dvc/tmp/resume/\w+/last\.pt$", cut=0.5),
    Plan("train", r" \.dvc/tmp/resume/\w+/last\.pt$", nth=1, cut=0.9),
    Plan("train", r"training/weights\.safetensors$", cut=0.5),
    Plan("train", r"training/live/metrics\.json$", nth=2, cut=0.5),
    Plan("evaluate", r"gallery/worst/\w+\.png$", nth=2, cut=0.5),
    Plan("report", r"report\.html$", cut=0.5),
]
"""Kills inside single writes: a file keeps a share of what was to be written to it."""


class Killable:
    """Runs of DVC in which something may be killed."""

    def __init__(self, folder: Path):
        self.printed, self.log = folder / "printed", folder / "log"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.killer"], cwd=ROOT, env=environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, folder: Path, *arguments: str, **plan: Any) -> int:
        """Exit status of a `dvc` command in a project; the log and what it prints start anew."""
        for file in (self.printed, self.log):
            file.write_text("")
        order = Run(str(folder), list(arguments), str(self.printed), str(self.log), plan)
        assert self.process.stdin and self.process.stdout
        print(json.dumps(asdict(order)), file=self.process.stdin, flush=True)
        status = int(self.process.stdout.readline())
        processes = [int(words[2]) for words in self.lines() if words[1] == "start"]
        alive = [psutil.Process(pid) for pid in processes if psutil.pid_exists(pid)]
        assert not psutil.wait_procs(alive, timeout=10)[1], self.log.read_text()
        return status

    def lines(self) -> list[list[str]]:
        return [line.split("\t") for line in self.log.read_text().splitlines()]

    def writes(self) -> dict[str, list[str]]:
        """What each process wrote in the last run."""
        found: dict[str, list[str]] = {}
        for name, event, shown in self.lines():
            if event != "start":
                found.setdefault(name, []).append(f"{event} {shown}")
        return found

    @property
    def kill(self) -> list[str]:
        """Process, victim and moment of the kill in the last run."""
        found = [words for words in self.lines() if words[1] == "KILL"]
        assert len(found) == 1, (self.printed.read_text(), self.log.read_text())
        return [found[0][0], *found[0][2:]]


@pytest.fixture(scope="module")
def killable(tmp_path_factory) -> Iterator[Killable]:
    runs = Killable(tmp_path_factory.mktemp("runs"))
    yield runs
    runs.process.stdin.close()
    runs.process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def left_alone(killable, folder) -> tuple[Path, dict[str, list[str]]]:
    """A project after an undisturbed run, and the writes that each process made."""
    project = folder / "left_alone"
    prepare(project)
    assert killable(project, "repro") == 0, killable.printed.read_text()
    return project, killable.writes()


def prepare(project: Path) -> None:
    tiny_project(project, TINY | {"iterations": 6})


def contents(project: Path) -> dict[str, str]:
    """Hash of every output, without what differs between any two runs."""
    found = {}
    for file in sorted((project / DATA).rglob("*")):
        if file.is_file() and ".tmp" not in str(file):
            name, content = str(file.relative_to(project)), file.read_bytes()
            if name == TIMED:
                content = re.sub(rb'"pairs_per_second": .*', b"", content)
            if name == f"{MODEL}/report.html":
                content = re.sub(rb"<strong>[0-9.,]+</strong> tile pairs per second", b"", content)
            found[name] = hashlib.sha256(content).hexdigest()
    return found


def locked(project: Path) -> dict[str, Any]:
    """The lock file, without hashes of what differs between any two runs."""
    stages = YAML(typ="safe").load(project / "dvc.lock")["stages"]
    for stage in stages.values():
        for entry in (*stage["deps"], *stage["outs"]):
            if entry["path"] in (TIMED, f"{MODEL}/evaluation", f"{MODEL}/report.html"):
                del entry["md5"], entry["size"]
    return stages


def half_written(project: Path, whole: dict[str, str]) -> list[str]:
    """Files under their final name whose content is not the final one."""
    found = contents(project).items()
    return [name for name, content in found if whole.get(name) != content and IN_PLACE not in name]


def plans(writes: dict[str, list[str]]) -> list[Plan]:
    """Kills in the order of the stages: at random writes of each process, and inside of some."""
    rng, chosen = random.Random(0), []
    for stage in STAGES:
        for where in (stage, f"dvc {stage}"):
            chosen += [plan for plan in INSIDE if plan.where == where]
            for nth in sorted(rng.sample(range(len(writes[where])), KILLS_PER_PROCESS)):
                victim = rng.choice(["group", "self", "dvc"]) if where == stage else "group"
                delay = rng.uniform(0, 0.1) if where == stage and victim == "group" else 0.0
                chosen.append(Plan(where, nth=nth, victim=victim, delay=delay))
    return chosen


def test_kills_everywhere_leave_no_trace(killable, left_alone, folder, monkeypatch):
    reference, writes = left_alone
    # Once the lock file holds the last stage, no run is left that could be killed.
    writes["dvc report"] = writes["dvc report"][: writes["dvc report"].index("open dvc.lock") + 1]
    whole, project = contents(reference), folder / "killed"
    prepare(project)
    hits, printed = Counter(), ""
    for plan in plans(writes):
        status = killable(project, "repro", **asdict(plan))
        where, _, moment = killable.kill
        print(f"{status:4} {where:14} {plan.victim:6} {plan.delay:5.3f} {moment}")
        assert status != 0
        assert "late" not in moment or not plan.file, killable.log.read_text()
        hits[where] += 1
        printed += killable.printed.read_text()
        recover(project)
        assert half_written(project, whole) == []
    print(hits)
    assert hits.keys() >= {*STAGES, *(f"dvc {stage}" for stage in STAGES)}
    assert "continuing from step 2" in printed
    run(project, sys.executable, "-m", "pipeline.recovery")
    dvc(project, "repro")
    assert contents(project) == whole
    assert locked(project) == locked(reference)
    assert "up to date" in dvc(project, "status")
    assert run(project, "git", "status", "--short") == "?? dvc.lock\n"
    for cached in (project / ".dvc/cache/files/md5").glob("??/*"):
        name = f"{cached.parent.name}{cached.name}".removesuffix(".dir")
        assert name == hashlib.md5(cached.read_bytes()).hexdigest() or cached.suffix == ".tmp"
    monkeypatch.setattr("pipeline.recovery.SURELY_DEAD", -1)
    recover(project)
    assert [path for path in project.rglob("*.tmp*") if ".git/" not in str(path)] == []
