"""A tiny project in which DVC and its stages can be killed at any write.

A run is real processes: one for DVC and one for each stage. They are forked from this one, which
imports all that they need, so that a kill costs tenths of a second rather than the start of Python.
`python -m tests.killable FOLDER` makes such a project and runs it once, with nobody killed.
An audit hook sees what they write: opening a file to write, renaming, linking, removing and the
like below the project. What a kill can leave on disk is what was there before some write, or that
with the file of the write cut off.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch comes: its threads would not survive a fork

import hashlib
import importlib
import mmap
import multiprocessing
import re
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dvc.cli
import dvc.stage.run
import psutil
from ruamel.yaml import YAML

import pipeline
from pipeline.recovery import recover
from tests.project import STAGES, TINY, tiny_project
from tests.waiting import wait_for

for module in (
    *(f"pipeline.stages.{stage}" for stage in STAGES),
    "configobj", "curses", "dulwich.repo", "dvc.cachemgr", "dvc.commands.repro", "dvc.compare",
    "dvc.data_cloud", "dvc.repo.reproduce", "dvc_data.hashfile.cache", "flufl.lock",
    "great_expectations", "networkx", "platformdirs.unix", "pyarrow.dataset",
    "pyarrow.pandas_compat", "rasterio.features", "scipy.fftpack", "scmrepo.git", "torch._dynamo",
    "webdataset.writer", "zc.lockfile",
):  # fmt: skip
    importlib.import_module(module)
for module in [name for name in sys.modules if name.startswith("pipeline.stages")]:
    del sys.modules[module]  # each is run as a program

FORK = multiprocessing.get_context("fork")

ORDER = ["dvc", *(place for stage in STAGES for place in (stage, f"dvc {stage}"))]
"""Where a run is: DVC before any stage, in a stage, or DVC since that stage has ended."""

PATIENCE = 300.0
"""Seconds that a run may take on a busy machine."""

NAMES = {"os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.chmod",
         "os.truncate"}  # fmt: skip

MODEL = "data/folder/tiny/models/dsfer-net"

TIMED = (f"{MODEL}/evaluation", f"{MODEL}/evaluation/metrics.json", f"{MODEL}/report.html")
"""Outputs that say how many pairs per second there were, and on which day."""

RATE = re.compile(
    rb'"pairs_per_second": [0-9.]+|<strong>[0-9.,]+</strong> tile pairs per second'
    rb'|"date": "[0-9-]+"|<time>[0-9-]+</time>'
)


@dataclass(frozen=True)
class Plan:
    """When to kill whom.

    Attributes:
        where: one of `ORDER`. A run that gets beyond it is killed at its next write.
        file: pattern of what is written.
        nth: the write at which it happens, counted from 0 among those that match `file`.
        cut: share of its content that the file keeps, as if the kill came inside the write; None
            kills before it.
        victim: `group` is DVC and all that it started; `self`; `dvc` is DVC alone, which is the
            parent of a stage.
    """

    where: str
    file: str = ""
    nth: int = 0
    cut: float | None = None
    victim: str = "group"


class Killer:
    """Follows what DVC and its stages write, and kills at the planned moment.

    Attributes:
        writes: file for a line per write: where in the run, and what.
        killed: file for where, whom and at which write, once there was a kill.

    Args:
        folder: the project.
        plan: None lets the run live.
    """

    def __init__(self, folder: Path, plan: Plan | None):
        self.root, self.plan = f"{folder}{os.sep}", plan
        self.writes, self.killed = folder.with_suffix(".writes"), folder.with_suffix(".killed")
        for file in (self.writes, self.killed):
            file.unlink(missing_ok=True)
        self.where, self.seen, self.cut = ORDER[0], 0, ""
        self.done = mmap.mmap(-1, 1)  # shared with the forks

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """What Python calls before it does anything of note."""
        opens = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if opens or event in NAMES:
            given = arguments[: 1 if opens else 2]
            paths = [os.path.realpath(path) for path in given if isinstance(path, str | Path)]
            if any(path.startswith(self.root) for path in paths) and not self.done[0]:
                self.note(event, paths)

    def note(self, event: str, paths: Sequence[str]) -> None:
        """Note a write, and kill if it is the one."""
        shown = " ".join([event, *(path.removeprefix(self.root) for path in paths)])
        with self.writes.open("a") as file:
            file.write(f"{self.where}\t{shown}\n")
        if self.plan is None:
            return
        beyond = ORDER.index(self.where) - ORDER.index(self.plan.where)
        if self.cut:  # its content has been written meanwhile
            self.kill(self.plan.victim, f"inside {self.cut.removeprefix(self.root)}")
        elif beyond > 0:
            self.kill("group", shown)
        elif beyond == 0 and re.search(self.plan.file, shown):
            self.seen += 1
            if self.seen > self.plan.nth:
                self.cut = paths[0] if self.plan.cut is not None else ""
                if event != "open" or not self.cut:
                    self.kill(self.plan.victim, shown)

    def kill(self, victim: str, moment: str) -> None:
        self.done[0] = 1
        if self.cut and self.plan and self.plan.cut is not None:
            os.truncate(self.cut, int(Path(self.cut).stat().st_size * self.plan.cut))
        self.killed.write_text(f"{self.where}\t{victim}\t{moment}")
        number = {"group": -os.getpgrp(), "self": os.getpid(), "dvc": os.getppid()}[victim]
        os.kill(number, signal.SIGKILL)


class Stage:
    """Of `subprocess.Popen` what DVC uses to run a stage, as a fork."""

    def __init__(self, killer: Killer, command: list[str], *, env: dict[str, str], **_: Any):
        module = command[-1].split()[-1]
        killer.where = module.rpartition(".")[2]
        self.process = FORK.Process(target=be_stage, args=(module, env))
        self.process.start()
        killer.where = f"dvc {killer.where}"

    def communicate(self) -> None:
        self.process.join()
        self.returncode = self.process.exitcode


def be_stage(module: str, environment: dict[str, str]) -> None:
    os.closerange(3, 256)  # DVC's locks stay DVC's
    os.environ.update(environment)
    pipeline.STARTED_BY = os.getppid()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def be_dvc(arguments: Sequence[str], killer: Killer, printed: Path) -> None:
    os.setsid()
    os.chdir(killer.root)
    with printed.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    dvc.stage.run.subprocess = SimpleNamespace(Popen=partial(Stage, killer))
    sys.addaudithook(killer.hook)
    sys.exit(dvc.cli.main(list(arguments)))


def forked(work: Callable[..., object], *arguments: Any) -> int:
    """Do the work in a fork that must end in time, with all that it starts; its exit status."""
    process = FORK.Process(target=work, args=arguments)
    process.start()
    try:
        process.join(PATIENCE)
        assert process.exitcode is not None, "it does not end"
        wait_for(lambda: not session(process.pid), 10)
    finally:
        for left in session(process.pid):
            left.kill()
    return process.exitcode


def session(leader: int | None) -> list[psutil.Process]:
    """Living processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


class Project:
    """A copy of the project on the tiny data set.

    Attributes:
        folder: where it is; what its last run wrote and printed is noted beside it.
        printed: what its last run printed.

    Args:
        folder: a new one.
        params: what differs from `params.yaml`.
    """

    def __init__(self, folder: Path, params: dict[str, Any] = TINY | {"iterations": 12}):
        self.folder = folder.resolve()
        self.printed = self.folder.with_suffix(".printed")
        tiny_project(self.folder, params)

    def repro(self, plan: Plan | None = None) -> list[str]:
        """Run DVC; returns where it was killed, who, and at what, or nothing if it ran through."""
        killer = Killer(self.folder, plan)
        status = forked(be_dvc, ["repro"], killer, self.printed)
        killed = killer.killed.read_text().split("\t") if killer.killed.exists() else []
        assert bool(status) == bool(killed), (killed, self.printed.read_text())
        return killed

    def recover(self) -> None:
        assert forked(recover, self.folder) == 0

    def writes(self) -> dict[str, list[str]]:
        """What the last run wrote, by where it was."""
        found: dict[str, list[str]] = {where: [] for where in ORDER}
        for line in self.folder.with_suffix(".writes").read_text().splitlines():
            where, shown = line.split("\t")
            found[where].append(shown)
        return found

    def contents(self) -> dict[str, str]:
        """Hash of every output, without what differs between any two runs."""
        found = {}
        for file in sorted((self.folder / "data").rglob("*")):
            if file.is_file():
                content = RATE.sub(b"", file.read_bytes())
                found[str(file.relative_to(self.folder))] = hashlib.sha256(content).hexdigest()
        return found

    def locked(self) -> dict[str, Any]:
        """`dvc.lock`, without hashes of what differs between any two runs."""
        stages = YAML(typ="safe").load(self.folder / "dvc.lock")["stages"]
        for stage in stages.values():
            for entry in (*stage["deps"], *stage["outs"]):
                if entry["path"] in TIMED:
                    del entry["md5"], entry["size"]
        return dict(stages)


if __name__ == "__main__":
    left_alone = Project(Path(sys.argv[1]), TINY)
    assert not left_alone.repro()
    print(left_alone.printed.read_text())
