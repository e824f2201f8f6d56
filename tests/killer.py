"""SIGKILL all over the pipeline: `python -m tests.killer --kills 200 --seed 1`.

`dvc repro` of a tiny project is killed at random writes of DVC and of every stage, and inside some
chosen ones. Each run goes on where the last one was killed; the one that comes to its end must
leave the bytes of a run left alone, and nothing else. Then the next round begins with a new copy
of the project, until there were as many kills as asked for.
"""

import hashlib
import os
import random
import re
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

import pipeline.recovery
from tests.killable import MODEL, ORDER, Plan, Project
from tests.project import STAGES, dvc, run

RANDOM = 2
"""Random kills at each place of `ORDER`, in a round."""

CACHE = r"\.dvc/cache/files/md5/\w\w/"
TEMPORARY = r"\.[\w-]+\.tmp"

FEW = [
    Plan("shard", r"shard-000000\.tar$", cut=0.5),
    Plan("dvc shard", rf"{CACHE}{TEMPORARY}$", cut=0.5),
    Plan("train", r" \.dvc/tmp/resume/\w+/last\.pt$", nth=1, cut=0.9),
]
"""Those of a round that every run of the tests has the time for."""

CHOSEN = [
    *FEW,
    Plan("download", r" data/folder/tiny/raw$"),
    Plan("crop", r"tiles-000000\.tar$", cut=0.5),
    Plan("crop", r" data/folder/tiny/tiles$"),
    Plan("dvc split", r" dvc\.lock$", cut=0.5),
    Plan("validate", r"validation\.html$", cut=0.5),
    Plan("dvc shard", rf"{CACHE}\w{{30}}$", cut=0),
    Plan("dvc shard", r"\.dvc/cache/runs/.*\.tmp$", cut=0.5),
    Plan("dvc shard", r" \.dvc/tmp/rwlock$", cut=0.5),
    Plan("train", r" \.dvc/tmp/resume/\w+/last\.pt$", cut=0.5),
    Plan("train", r"training/live/metrics\.json$", cut=0.5),
    Plan("train", r"training/weights\.safetensors$", cut=0.5),
    Plan("evaluate", r"gallery/worst/\w+\.png$", nth=2, cut=0.5),
    Plan("dvc evaluate", r" dvc\.lock$", cut=0),
    Plan("report", r"report\.html$", cut=0.5),
]
"""Kills inside single writes, in each round."""

IN_PLACE = f"{MODEL}/training/live/"
"""Curves that DVCLive appends to while training goes on; nobody reads them before it has ended."""


def plans(writes: dict[str, list[str]], seed: int, *, few: bool = False) -> list[Plan]:
    """The chosen kills and random ones everywhere, in the order in which a run would meet them.

    Args:
        writes: what a run left alone wrote, at each place.
        seed: of the random ones.
        few: no random ones, and of the chosen ones only `FEW`.
    """
    rng, found = random.Random(seed), []
    for where in [] if few else ORDER:
        for nth in rng.sample(range(len(writes[where])), RANDOM):
            victim = rng.choice(["group", "self", "dvc"]) if where in STAGES else "group"
            found.append((nth, Plan(where, nth=nth, victim=victim)))
    for plan in FEW if few else CHOSEN:
        matches = [i for i, what in enumerate(writes[plan.where]) if re.search(plan.file, what)]
        found.append((matches[plan.nth], plan))
    return [plan for _, plan in sorted(found, key=lambda e: (ORDER.index(e[1].where), e[0]))]


def kill_all_over(project: Project, plans: list[Plan], whole: dict[str, str]) -> int:
    """Run a project with kills until it comes to its end; the number of kills.

    Args:
        project: a new one.
        plans: the kills.
        whole: contents of a project left alone; a file that differs must not bear its name.
    """
    kills = 0
    for plan in plans:
        killed = project.repro(plan)
        if not killed:
            break
        kills += 1
        print("{:14} {:6} {}".format(*killed), flush=True)
        project.recover()
        found = {name: content for name, content in project.contents().items()
                 if not name.startswith(IN_PLACE)}  # fmt: skip
        assert found.items() <= whole.items(), found.items() - whole.items()
    assert not project.repro()
    return kills


def check_left_nothing(project: Project) -> None:
    """No temporary file, no lock, no state; DVC finds nothing to do and each cached file whole."""
    folder = project.folder
    pipeline.recovery.SURELY_DEAD = -1
    project.recover()
    assert "up to date" in dvc(folder, "status")
    assert run(folder, "git", "status", "--short") == "?? dvc.lock\n"
    assert [path for path in folder.rglob("*.tmp*") if ".git" not in path.parts] == []
    assert list(folder.glob(".dvc/tmp/resume/*")) == []
    for cached in (folder / ".dvc/cache/files/md5").glob("??/*"):
        name = f"{cached.parent.name}{cached.name}".removesuffix(".dir")
        assert name == hashlib.md5(cached.read_bytes()).hexdigest()


def main(
    kills: Annotated[int, typer.Option(help="How many at least; the last round is finished.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the random ones; a round adds one.")] = 0,
    cores: Annotated[int, typer.Option(help="On one, crop and shard start no processes.")] = 1,
    few: Annotated[bool, typer.Option(help="A round is three kills, each inside a write.")] = False,
) -> None:
    """Kill until there were as many kills as asked for, and compare after each round."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    with tempfile.TemporaryDirectory(prefix="dsfer-") as name:
        folder = Path(name)
        os.environ["DVC_SITE_CACHE_DIR"] = str(folder / "site")  # else it stays on this machine
        alone = Project(folder / "alone")
        assert not alone.repro()
        writes, whole = alone.writes(), alone.contents()
        done = 0
        while done < kills:
            project = Project(folder / f"seed{seed}")
            done += kill_all_over(project, plans(writes, seed, few=few), whole)
            assert project.contents() == whole
            assert project.locked() == alone.locked()
            check_left_nothing(project)
            print(f"seed {seed}: the bytes of a run left alone; kills so far: {done}", flush=True)
            shutil.rmtree(project.folder)
            seed += 1


if __name__ == "__main__":
    typer.run(main)
