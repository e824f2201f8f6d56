"""Prefect flows over the DVC graph: every task is one stage, run by `dvc repro`.

Without parameters a flow works in the project itself. With some it works in a copy, and its result
is a DVC experiment, as `dvc exp run --temp -S lambda=0.1` makes one. Flows take the parameters of
`params.yaml` by their names there, `lambda` included; those not given, or null, stay as they are.
"""

import functools
import inspect
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

import httpx
import psutil
from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.objects import State, TaskRun
from prefect.settings import PREFECT_API_URL
from prefect.tasks import Task
from pydantic import Field
from pydantic_core import to_jsonable_python

from dsfer.devices import visible_gpus
from dsfer.errors import ConfigError
from dsfer.figures import data_uri
from dsfer.files import read_json
from dsfer.signals import when_parent_ends
from pipeline.artifacts import publish
from pipeline.benchmark import OUT, Plan
from pipeline.commands import Command, CommandError
from pipeline.frozen import Place, read_yaml
from pipeline.guard import QUEUE_GRACE
from pipeline.params import Seed, Value, current_settings, parameter_types
from pipeline.sweep import Grid, check_grid
from pipeline.tables import Name
from pipeline.witness import witnessed
from pipeline.workspace import changed_workspace, fetch_experiment, project_workspace

PROJECT = Path()
"""Flows run in the project's top folder, as `dvc` does."""

HINT = re.compile(r"\s*(To track the changes|git add |To enable auto|dvc config |Use `dvc push`)")
"""What DVC tells somebody at a terminal after every stage."""

BAR = re.compile(r"(?P<name>\S+):\s+(?P<percent>\d+)%\|")
"""A progress bar's line: `training:  40%|####      | 400/1000 [...]`."""

NETWORK = "network"
"""The stage by which others notice an edit of their network's code or recipe."""

SECONDS_BETWEEN_UPDATES = 5.0
"""How often a progress bar is passed on to the server."""

SECONDS_TO_END = 30.0
"""What a flow run has between being told to end and being killed: as much as a worker gives it."""


def declared_stages(project: Path = PROJECT) -> dict[str, dict[str, Any]]:
    """The stages of `dvc.yaml` by their names, in their order there."""
    found: dict[str, dict[str, Any]] = read_yaml(project / "dvc.yaml")["stages"]
    return found


def stage_names(project: Path = PROJECT) -> list[str]:
    """Names of the stages of `dvc.yaml`, in their order there."""
    return list(declared_stages(project))


def takes_params(**own: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a flow its `own` parameters (name=type) and those of `params.yaml`.

    The flow's function is called with its own parameters by name, and with `changes`, those of
    the others that were given. Prefect checks and passes parameters by the signature made here;
    in it `lambda`, which Python keeps for itself, is positional-only, where any name may stand.
    """
    types = parameter_types()

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        defaults = inspect.signature(function).parameters

        @functools.wraps(function)
        def call(lambda_: float | None = None, /, **values: Any) -> Any:
            ours = {name: values.pop(name) for name in own if name in values}
            changes = {"lambda": lambda_} | values
            given = {name: value for name, value in changes.items() if value is not None}
            return function(**ours, changes=to_jsonable_python(given))

        def parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
            only = inspect.Parameter.KEYWORD_ONLY
            return inspect.Parameter(name, only, annotation=kind, default=default)

        unnamed = inspect.Parameter.POSITIONAL_ONLY
        call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    "lambda", unnamed, annotation=types["lambda"] | None, default=None
                ),
                *(parameter(name, kind, defaults[name].default) for name, kind in own.items()),
                *(parameter(n, kind | None, None) for n, kind in types.items() if n != "lambda"),
            ]
        )
        return call

    return decorate


def _may_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed stage is worth another try: a server or store out of reach is."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, CommandError) and error.passing


@task(task_run_name="{name}", retries=3, retry_condition_fn=_may_pass)
def run_stage(name: str, folder: Path, experiment: str | None) -> None:
    """Bring one stage up to date, with its output as log and progress, and show what it made."""
    arguments = [sys.executable, "-m", "dvc", "repro", "--single-item", name]
    log, progress = get_run_logger(), Progress(name)
    with Command(f"stage {name}", arguments, folder, PROJECT) as command:
        for line in command.lines():
            if not progress.follow(line) and not HINT.match(line):
                log.info("%s", line)
    progress.finish()
    publish(name, folder, experiment)


class Progress:
    """A stage's progress bar as an artifact, made when the bar first shows.

    A server that does not take it, as one that is busy or out of reach, costs the stage nothing.

    Args:
        stage: name of the stage.
    """

    def __init__(self, stage: str):
        self.stage = stage
        self._artifact: UUID | None = None
        self._shown = 0.0

    def follow(self, line: str) -> bool:
        """Pass on the state of a bar; returns whether `line` shows one."""
        bar = BAR.match(line)
        if bar and time.monotonic() - self._shown > SECONDS_BETWEEN_UPDATES:
            self._show(float(bar["percent"]), line)
        return bar is not None

    def _show(self, percent: float, line: str) -> None:
        self._pass_on(percent)
        get_run_logger().info("%s", line)
        self._shown = time.monotonic()

    def _pass_on(self, percent: float) -> None:
        try:
            if self._artifact is None:
                self._artifact = create_progress_artifact(  # type: ignore[assignment]
                    percent,
                    key=f"progress-{self.stage}",
                    description=f"Progress of stage {self.stage}",
                )
            else:
                update_progress_artifact(self._artifact, percent)
        except httpx.HTTPError as error:
            get_run_logger().warning("the server did not take the progress bar: %r", error)

    def finish(self) -> None:
        """The bar of a stage that has succeeded is full."""
        if self._artifact is not None:
            self._pass_on(100.0)


def run_stages(names: list[str], changes: dict[str, Any]) -> str | None:
    """Run stages in order, in the project or with changed parameters in a copy.

    Args:
        names: stages of `dvc.yaml`; what comes before the first is taken as it is, but for
            `network`, which is run too where one of them depends on it.
        changes: values by their key in `params.yaml`.

    Returns:
        Name of the experiment that holds the results, or None where the project does.

    Raises:
        ConfigError: a parameter is impossible, or of a stage before the first; nothing has been
            started.
        WorkspaceError: somebody else works there.
        CommandError: a stage failed; later ones have not been started.
    """
    current_settings(changes)
    _check_start(names[0], changes)
    who = f"flow run '{runtime.flow_run.name}'"
    workspace = (
        changed_workspace(PROJECT, changes, who) if changes else project_workspace(PROJECT, who)
    )
    with end_with_worker(), workspace as folder:
        experiment = folder.name if changes else None
        if experiment:
            _take_earlier(names[0], folder)
        for name in _after_network(names):
            run_stage(name, folder, experiment)
        if experiment:
            save_experiment(experiment, folder)
    return experiment


def _check_start(first: str, changes: dict[str, Any]) -> None:
    """Refuse parameters of stages before the first: their results stay those of other values."""
    for name, declared in declared_stages().items():
        if name == first:
            return
        if name == NETWORK:  # it is run, too
            continue
        if taken := [key for key in changes if key in declared.get("params", [])]:
            raise ConfigError(
                f"{taken[0]} is of stage {name}, and the run is to start at {first}, with the "
                "results of other values",
                where="parameters of the flow",
                mend=f"start from {name}",
            )


def _after_network(names: list[str]) -> list[str]:
    """The stages, and before them the one that notices edits, where one of them depends on it."""
    declared = declared_stages()
    (record,) = declared[NETWORK]["outs"]
    depend = any(record in declared[name]["deps"] for name in names)
    return [NETWORK, *names] if depend and NETWORK not in names else names


def _take_earlier(first: str, folder: Path) -> None:
    """Put into a copy what stages before the first have made, as far as DVC's cache has it."""
    names = stage_names()
    if earlier := names[: names.index(first)]:
        arguments = [sys.executable, "-m", "dvc", "checkout", "--allow-missing", *earlier]
        with Command("earlier stages", arguments, folder, PROJECT) as command:
            for line in command.lines():
                get_run_logger().info("%s", line)


@task(task_run_name="save experiment")
def save_experiment(name: str, folder: Path) -> None:
    """Keep the parameters, the lock file and the metrics of a copy as one of DVC's experiments."""
    arguments = [sys.executable, "-m", "dvc", "exp", "save", "--force", "--name", name]
    with Command(f"experiment {name}", arguments, folder, PROJECT) as command:
        for line in command.lines():
            get_run_logger().info("%s", line)
    fetch_experiment(PROJECT, folder, name)


Jobs = Annotated[int, Field(ge=1)]
Pairs = Annotated[int, Field(ge=1)]
Stage = Literal[tuple(stage_names())]  # type: ignore[valid-type] # known when this is imported


def _from(stage: str) -> list[str]:
    """A stage and those after it."""
    names = stage_names()
    return names[names.index(stage) :]


@flow(name="pipeline")
@takes_params(from_stage=Stage | None)
def pipeline(changes: dict[str, Any], from_stage: str | None = None) -> str | None:
    """All stages from the imagery to the report, or those from one on.

    Returns the name of the experiment where parameters were given.
    """
    return run_stages(_from(from_stage) if from_stage else stage_names(), changes)


@flow(name="stage")
@takes_params(name=Stage)
def stage(changes: dict[str, Any], name: str) -> str | None:
    """One stage, with what comes before it as it is; with parameters those after it, too.

    An experiment holds the results of all stages: later ones would be of other parameters.
    """
    return run_stages(_from(name) if changes else [name], changes)


def check_jobs(jobs: int) -> None:
    """One network at a time is trained on a GPU, which a worker of the pool `gpu` sees alone.

    Where all are seen, as by a worker that was started by hand, each would take the first.

    Raises:
        ConfigError: several experiments would share it.
    """
    if jobs == 1:
        return
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpu is None:
        gpu = "".join(visible_gpus()[:1])
    if gpu:
        raise ConfigError(
            f"{jobs} experiments at a time would share GPU {gpu}",
            where="jobs",
            mend="give 1; on several GPUs start a run of pipeline/gpu for each combination; to "
            "compute on the CPU, start the worker with CUDA_VISIBLE_DEVICES=",
        )


@flow(name="sweep")
def sweep(grid: Grid, jobs: Jobs = 1) -> list[dict[str, Any]]:
    """Every combination of a grid's values, as experiments in DVC's queue.

    Args:
        grid: values to try, by key of params.yaml, as {"lambda": [0, 0.1], "seed": [0, 1]}.
        jobs: experiments to run at a time.

    Returns:
        A row for each, which is also shown as a table.
    """
    check_grid(grid)
    check_jobs(jobs)
    with end_with_worker(), tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        options = ["--grid", json.dumps(grid), "--jobs", str(jobs), "--out", str(out)]
        try:
            run_module("pipeline.sweep", options)
        finally:
            rows: list[dict[str, Any]] = read_json(out) if out.is_file() else []
            if rows:
                create_table_artifact(rows, key="sweep", description="Change class, percent")
    return rows


@flow(name="benchmark")
def benchmark(
    tables: tuple[Name, ...] = get_args(Name),
    datasets: tuple[str, ...] = (),
    seeds: tuple[Seed, ...] = (0,),
    changes: dict[str, Value] | None = None,
    jobs: Jobs = 1,
    pairs: Pairs | None = None,
    models: tuple[str, ...] = (),
    out: Place = str(OUT),
) -> None:
    """Tables of the paper, our figures beside its own, as experiments in DVC's queue.

    Args:
        tables: I to V.
        datasets: data sets; those of the paper where none are given.
        seeds: of training.
        changes: what else differs from params.yaml, as {"recipe": "common"}.
        jobs: experiments to run at a time.
        pairs: of Table II's test loop.
        models: networks that have a row in Tables I and II, too.
        out: folder for the tables, each of which is also shown as an artifact.
    """
    changes = changes or {}
    Plan(tables, datasets, seeds, changes, pairs, models).entries()
    check_jobs(jobs)
    options = [*tables, "--seeds", ",".join(map(str, seeds)), "--jobs", str(jobs), "--out", out]
    options += [f"--dataset={name}" for name in datasets]
    options += [f"--set={key}={json.dumps(value)}" for key, value in changes.items()]
    options += [f"--pairs={pairs}"] if pairs else []
    options += [f"--model={name}" for name in models]
    started = time.time()
    with end_with_worker():
        try:
            run_module("pipeline.benchmark", options)
        finally:
            for name in tables:
                show_table(PROJECT / out, name, started)


def show_table(folder: Path, name: Name, since: float) -> None:
    """Show a table as an artifact if it was written after a time, with its picture inside."""
    page = folder / f"table-{name}.md"
    if page.is_file() and page.stat().st_mtime >= since:
        text, picture = page.read_text(encoding="utf-8"), page.with_suffix(".svg")
        if f"({picture.name})" in text:
            uri = data_uri(picture.read_bytes(), "image/svg+xml")
            text = text.replace(f"({picture.name})", f"({uri})")
        create_markdown_artifact(text, key=page.stem.lower(), description=f"Table {name}")


def run_module(module: str, options: list[str]) -> None:
    """Run a module of the project as a command, with its output as log.

    Raises:
        CommandError: it failed.
    """
    arguments = [sys.executable, "-m", module, *options]
    name = module.rpartition(".")[2]
    with Command(name, arguments, PROJECT, PROJECT, QUEUE_GRACE) as command:
        for line in command.lines():
            get_run_logger().info("%s", line)


@contextmanager
def end_with_worker(seconds: float = SECONDS_TO_END) -> Iterator[None]:
    """End a flow run whose worker died: nobody could see or cancel it any more.

    The run then counts as crashed, even if its process was killed too (`pipeline.witness`), and
    what it had started is stopped. A flow that was called without a worker has none to lose, and
    one without a server nobody to tell.

    Args:
        seconds: after which a run is killed that was told to end, in whatever way, and has not.
    """
    told = runtime.flow_run.id if PREFECT_API_URL.value() else None
    with witnessed(told, seconds):
        if runtime.deployment.id:
            worker, end = os.getppid(), functools.partial(os.kill, os.getpid(), signal.SIGTERM)
            if _is_worker(worker):
                when_parent_ends(end, worker)
            else:
                end()
        yield


def _is_worker(parent: int) -> bool:
    """Whether a process runs the same Python as this one; who adopts an orphan does not."""
    try:
        return psutil.Process(parent).exe() == psutil.Process().exe()
    except psutil.Error:
        return False
