"""DVC and its stages with a SIGKILL in the middle of a chosen write: `python -m tests.killer`.

A line of JSON on standard input, a `Run`, is a run of DVC; the answer is its exit status. A run is
real processes, one for DVC and one for each stage. They are forked from this one, which has
imported what they need, so that a kill costs tenths of a second rather than the start of Python.

Writes are seen by an audit hook: opening a file to write, renaming, linking, removing and the like
below the project's folder. What a kill can leave on disk is what was there before some write, or
that with the file of the write cut off.
"""

import importlib
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.project import STAGES

SLOW_IMPORTS = (
    *(f"pipeline.stages.{stage}" for stage in STAGES),
    "configobj", "curses", "dulwich.repo", "dvc.cachemgr", "dvc.cli", "dvc.commands.repro",
    "dvc.compare", "dvc.data_cloud", "dvc.repo.reproduce", "dvc_data.hashfile.cache",
    "flufl.lock", "great_expectations", "networkx", "platformdirs.unix", "pyarrow.dataset",
    "pyarrow.pandas_compat", "rasterio.features", "scipy.fftpack", "scmrepo.git", "torch._dynamo",
    "webdataset.writer", "zc.lockfile",
)  # fmt: skip

NAMES = {"os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.chmod",
         "os.truncate"}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """When to kill whom.

    Attributes:
        where: process in which it happens: a stage's name, or `dvc` and a stage's name while DVC
            stores what that stage made. Empty: nothing is killed.
        file: pattern of what is written.
        nth: the write before which it happens, counted from 0 among those that match `file`.
        cut: share of its content that the file keeps, as if the kill came inside the write; None
            kills before it.
        victim: `group` for DVC and all that it started; `self`; `dvc` for DVC alone.
        delay: seconds between the write and the kill.
    """

    where: str = ""
    file: str = ""
    nth: int = 0
    cut: float | None = None
    victim: str = "group"
    delay: float = 0.0


@dataclass(frozen=True)
class Run:
    """A run of DVC.

    Attributes:
        folder: the project.
        arguments: of `dvc`.
        printed: file for what it prints.
        log: file for a line for each process, each write, and the kill, separated by tabs.
        plan: see `Plan`.
    """

    folder: str
    arguments: list[str]
    printed: str
    log: str
    plan: dict[str, Any] = field(default_factory=dict)


class Killer:
    """Counts the writes of a process and kills at the right one."""

    def __init__(self, run: Run):
        self.plan = Plan(**run.plan)
        self.path, self.root = Path(run.log), os.path.realpath(run.folder) + os.sep
        self.name, self.seen, self.opened = "dvc", 0, ""
        self.busy = threading.local()

    def start(self, name: str) -> None:
        """Be the process called `name` from here on."""
        self.name, self.seen = name, 0
        self.log("start", str(os.getpid()))

    def log(self, *words: str) -> None:
        line = "\t".join([self.name, *words]) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(file, line.encode())
        os.close(file)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """What Python calls before it does anything of note."""
        opens = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not (opens or event in NAMES) or getattr(self.busy, "now", False):
            return
        self.busy.now = True
        try:
            given = arguments[: 1 if opens else 2]
            paths = [os.path.realpath(path) for path in given if isinstance(path, str | Path)]
            if any(p.startswith(self.root) and "__pycache__" not in p for p in paths):
                self.write(event, paths)
        finally:
            self.busy.now = False

    def write(self, event: str, paths: list[str]) -> None:
        """Take note of a write, and kill if it is the one."""
        plan, shown = self.plan, " ".join(path.removeprefix(self.root) for path in paths)
        self.log(event, shown)
        if self.opened:  # its content has been written meanwhile
            self.kill(f"open {shown}", cut=self.opened)
        elif self.name == f"dvc {plan.where}" and not self.killed():
            self.kill(f"late {event} {shown}", late=True)
        elif self.name == plan.where and re.search(plan.file, shown):
            self.seen += 1
            if self.seen != plan.nth + 1:
                return
            if plan.cut is not None and event == "open":
                self.opened = paths[0]
            else:
                self.kill(f"{event} {shown}", cut=paths[0] if plan.cut is not None else "")

    def killed(self) -> bool:
        return "\tKILL\t" in self.path.read_text()

    def kill(self, moment: str, *, late: bool = False, cut: str = "") -> None:
        plan = replace(self.plan, victim="group", delay=0.0) if late else self.plan
        if cut:
            os.truncate(cut, int(Path(cut).stat().st_size * (plan.cut or 0)))
        self.log("KILL", plan.victim, moment)
        dvc = os.getpid() if self.name.startswith("dvc") else os.getppid()
        victim = {"group": -os.getpgrp(), "self": os.getpid(), "dvc": dvc}[plan.victim]
        if not plan.delay:
            os.kill(victim, signal.SIGKILL)
            return
        subprocess.Popen(
            ["/bin/sh", "-c", f"sleep {plan.delay}; kill -9 {victim}"], start_new_session=True
        )


def main() -> None:
    for module in SLOW_IMPORTS:
        importlib.import_module(module)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run_dvc(Run(**json.loads(line)))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run_dvc(run: Run) -> None:
    """Be `dvc`."""
    import dvc.cli
    import dvc.stage.run

    os.setsid()
    os.chdir(run.folder)
    out = os.open(run.printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    killer = Killer(run)
    killer.start("dvc")
    sys.addaudithook(killer.hook)

    class Stage:
        """Of `subprocess.Popen` what DVC uses."""

        def __init__(self, command: list[str], *, env: dict[str, str], **_: Any):
            module = command[-1].split()[-1]
            stage = module.rpartition(".")[2]
            planned = killer.plan.where.removeprefix("dvc ")
            if planned and STAGES.index(stage) > STAGES.index(planned) and not killer.killed():
                killer.kill(f"late {stage}", late=True)
            sys.stdout.flush()
            self.pid = os.fork()
            if not self.pid:
                os.closerange(3, 256)
                os.environ.update(env)
                killer.start(stage)
                for name in [name for name in sys.modules if name.startswith("pipeline.stages")]:
                    del sys.modules[name]  # they note who started them
                leave(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))
            killer.start(f"dvc {stage}")

        def communicate(self) -> None:
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)

    dvc.stage.run.subprocess = SimpleNamespace(Popen=Stage)
    leave(lambda: sys.exit(dvc.cli.main(run.arguments)))


def leave(work: Any) -> None:
    """Do the work and end the process as an interpreter does."""
    status = 1
    try:
        work()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
