"""Prefect on one machine: `python -m pipeline.operate up` and `down`, or `make up` and `make down`.

Up starts a server (its own SQLite under `.prefect/`), creates the work pools, registers the
deployments of `prefect.yaml`, and starts a worker for the CPU pool and one for each GPU.
"""

import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import typer
from rich.console import Console
from tenacity import Retrying, stop_after_delay, wait_fixed
from tenacity.retry import retry_if_result

from dsfer.devices import visible_gpus
from dsfer.errors import ConfigError, DsferError
from dsfer.files import read_json, write_json
from dsfer.processes import process_mark
from pipeline.prefect_settings import check_prefect_settings
from pipeline.stages import run

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import State

HOME = Path(".prefect")
"""Data base, logs and the list of what was started."""

RECORD = HOME / "started.json"

HOST = "127.0.0.1"
PORT = os.environ.get("PREFECT_SERVER_API_PORT", "4200")
API = f"http://{HOST}:{PORT}/api"

START_LIMIT = 180.0
"""Seconds that a server may take to answer; the first start creates the data base."""

STOP_LIMIT = 30.0
"""Seconds that a worker with its runs, or the server, may take to end before it is killed."""

HERE = f"@{platform.node()}"
"""What names of this machine's workers end with."""

app = typer.Typer(help="Prefect server, pools, deployments and workers.", no_args_is_help=True)


class OperationError(DsferError):
    """The server or a worker could not be started."""


@app.command()
def up() -> None:
    """Start server and workers, create pools, register deployments."""
    if _healthy():
        raise OperationError(
            "a server answers there already", where=API,
            mend="run `make down`, or set PREFECT_SERVER_API_PORT to a free port",
        )  # fmt: skip
    check_port()
    end_started()  # workers whose server is gone
    HOME.mkdir(exist_ok=True)
    try:
        _wait_until_healthy(_start("server", "server", "start", api=API))
        gpus = visible_gpus()
        create_pools("cpu", "gpu")
        _register_deployments()
        settle_lost_runs()
        # The GPUs are the other pool's: this worker's runs do not see them.
        start_worker("cpu", "--pool", "cpu", gpu="")
        for gpu in gpus:  # each worker sees one, and trains one network at a time on it
            name = f"gpu{gpu}".replace("/", "-")  # parts of a GPU may have slashes in their names
            start_worker(name, "--pool", "gpu", "--limit", "1", gpu=gpu)
    except BaseException:
        end_started()
        raise
    console = Console()
    console.print(f"Prefect is up: http://{HOST}:{PORT}  (logs: {HOME}/*.log)")
    console.print("To talk to it from this terminal, and to start a run:")
    console.print(f"    export PREFECT_API_URL={API}", soft_wrap=True)
    console.print("    prefect deployment run pipeline/local --watch", soft_wrap=True)
    if not gpus:
        console.print(
            "No GPU is seen here: runs of …/gpu wait for a worker of the pool gpu elsewhere.",
            soft_wrap=True,
        )
    console.print("`make down` takes everything down; what was run stays listed.")


@app.command()
def down() -> None:
    """End workers, their flow runs, which can be continued and count as crashed, and the server."""
    Console().print("Prefect is down." if end_started() else "Nothing was up.")


def end_started() -> int:
    """End what was started and still runs, the server last; returns how many processes that were.

    The flow runs of a worker end with it, and what these started has the time to save its state.
    """
    entries = read_json(RECORD) if RECORD.is_file() else []
    ended = 0
    for entry in reversed(entries):
        try:
            process = psutil.Process(entry["pid"])
            if process_mark(process.pid) != entry["mark"]:
                continue  # the number belongs to another process by now
            # Another clone's server may listen where this one would now.
            if (api := entry.get("api")) and _healthy(api):
                settle_lost_runs(api)
            started = process.children(recursive=True)  # while their parents live to be asked
            marks = {each.pid: process_mark(each.pid) for each in (process, *started)}
            process.terminate()
        except psutil.NoSuchProcess:
            continue
        for late in _outlasting(marks, STOP_LIMIT):
            with suppress(ProcessLookupError):
                os.kill(late, signal.SIGKILL)
        _outlasting(marks, STOP_LIMIT)
        ended += 1
    RECORD.unlink(missing_ok=True)
    return ended


def _outlasting(marks: dict[int, str | None], seconds: float) -> list[int]:
    """Which of some processes, by number with their marks, still run after so many seconds.

    It returns as soon as none does. Those that nobody buries, as in containers, have ended.
    """
    waiting = Retrying(
        retry=retry_if_result(bool),
        wait=wait_fixed(0.1),
        stop=stop_after_delay(seconds),
        retry_error_callback=lambda last: last.outcome.result() if last.outcome else [],
    )
    return waiting(
        lambda: [pid for pid, mark in marks.items() if mark and process_mark(pid) == mark]
    )


def start_worker(name: str, *arguments: str, gpu: str) -> None:
    """Start a worker that sees one GPU, or none, and note how to find it again."""
    named = ["worker", "start", "--name", f"{name}{HERE}", *arguments]
    _start(f"worker-{name}", *named, CUDA_VISIBLE_DEVICES=gpu)


def _start(
    name: str, *arguments: str, api: str | None = None, **extra: str
) -> subprocess.Popen[bytes]:
    """Start a Prefect command in the background, and note how to find it again.

    Of a server that is its address, too.
    """
    with (HOME / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            env=_environment() | extra,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    entries = read_json(RECORD) if RECORD.is_file() else []
    entry = {"name": name, "pid": process.pid, "mark": process_mark(process.pid), "api": api}
    write_json(RECORD, [*entries, entry])
    return process


def create_pools(*names: str) -> None:
    """Create work pools; those of an earlier start stay as somebody may have set them."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with _client() as client:
        for name in names:
            pool = WorkPoolCreate(name=name, type="process", base_job_template=template)
            with suppress(ObjectAlreadyExists):
                client.create_work_pool(pool)


def _register_deployments() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise OperationError(done.stdout.strip(), where="prefect deploy --all")


def settle_lost_runs(api: str | None = None) -> None:
    """Say of flow runs that they crashed with their worker; none of this machine's is alive.

    They would look as if under way for ever, and hold their place in a pool that has a limit.

    Args:
        api: address of the server; None for that of `up`.
    """
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    open_ = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    chosen = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=open_)))
    with _client(api) as client:
        for flow_run in client.read_flow_runs(flow_run_filter=chosen):
            if str(flow_run.labels.get("prefect.worker.name")).endswith(HERE):
                state: State[Any] = Crashed(message="Its worker has gone.")
                client.set_flow_run_state(flow_run.id, state, force=True)


def _environment() -> dict[str, str]:
    home = str(HOME.resolve())
    port = {"PREFECT_SERVER_API_PORT": PORT, "PREFECT_API_URL": API}
    return os.environ | port | {"PREFECT_HOME": home, "PREFECT_LOGGING_COLORS": "false"}


def check_port() -> None:
    """See that no other program listens where the server would.

    Raises:
        ConfigError: there is no such port.
        OperationError: another program does.
    """
    if not 0 < int(PORT) < 2**16:  # that it is a number at all, `check_prefect_settings` has seen
        raise ConfigError(
            f"{PORT} is no port", where="PREFECT_SERVER_API_PORT", mend="set it to 1024 to 65535"
        )
    with socket.socket() as probe:
        if probe.connect_ex((HOST, int(PORT))) == 0:
            raise OperationError(
                "another program uses this port", where=f"{HOST}:{PORT}",
                mend="set PREFECT_SERVER_API_PORT to a free port",
            )  # fmt: skip


@contextmanager
def _client(api: str | None = None) -> Iterator["SyncPrefectClient"]:
    check_prefect_settings()
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: api or API}), get_client(sync_client=True) as client:
        yield client


def _healthy(api: str | None = None) -> bool:
    with _client(api) as client:
        return client.api_healthcheck() is None


def _wait_until_healthy(server: subprocess.Popen[bytes]) -> None:
    waiting = Retrying(
        retry=retry_if_result(lambda healthy: not healthy and server.poll() is None),
        wait=wait_fixed(0.5),
        stop=stop_after_delay(START_LIMIT),
        retry_error_callback=lambda _: False,
    )
    if not waiting(_healthy):
        raise OperationError(
            "the server does not answer", where=API, mend=f"see {HOME / 'server.log'}"
        )


if __name__ == "__main__":
    run(app)
