"""Prefect on one machine: `python -m pipeline.operate up` and `down`, or `make up` and `make down`.

Up starts a server (its own SQLite under `.prefect/`), creates the work pools, registers the
deployments of `prefect.yaml`, and starts a worker for the CPU pool and one for each GPU.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import typer
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console
from tenacity import Retrying, stop_after_delay, wait_fixed
from tenacity.retry import retry_if_result

from dsfer.errors import DsferError
from dsfer.files import read_json, write_json
from pipeline.stages import run

HOME = Path(".prefect")
"""Data base, logs and the list of what was started."""

PORT = os.environ.get("PREFECT_SERVER_API_PORT", "4200")
API = f"http://127.0.0.1:{PORT}/api"

START_LIMIT = 180.0
"""Seconds that a server may take to answer; the first start creates the data base."""

STOP_LIMIT = 8.0
"""Seconds that a worker or the server may take to end before it is killed."""

app = typer.Typer(help="Prefect server, pools, deployments and workers.", no_args_is_help=True)


class OperationError(DsferError):
    """The server or a worker could not be started."""


@app.command()
def up() -> None:
    """Start server and workers, create pools, register deployments."""
    import torch  # slow, and only asked how many GPUs there are

    if _healthy():
        raise OperationError(
            "a server answers there already", where=API,
            mend="run `make down`, or set PREFECT_SERVER_API_PORT to a free port",
        )  # fmt: skip
    HOME.mkdir(exist_ok=True)
    started: list[dict[str, Any]] = []
    try:
        started.append(_start("server", "server", "start"))
        _wait_until_healthy(started[0])
        gpus = torch.cuda.device_count()
        for pool, limit in {"cpu": None, "gpu": max(gpus, 1)}.items():
            _prefect("work-pool", "create", pool, "--type", "process", "--overwrite")
            if limit:
                _prefect("work-pool", "set-concurrency-limit", pool, str(limit))
        _prefect("deploy", "--all")
        started.append(_start("worker-cpu", "worker", "start", "--pool", "cpu"))
        for gpu in range(gpus):  # each sees one GPU, and trains one network at a time on it
            arguments = ["worker", "start", "--pool", "gpu", "--limit", "1"]
            started.append(_start(f"worker-gpu{gpu}", *arguments, CUDA_VISIBLE_DEVICES=str(gpu)))
    finally:
        write_json(HOME / "started.json", started)
    console = Console()
    console.print(f"Prefect is up: http://127.0.0.1:{PORT}  (logs: {HOME}/*.log)")
    console.print("To talk to it from this terminal, and to start a run:")
    console.print(f"    export PREFECT_API_URL={API}", soft_wrap=True)
    console.print("    prefect deployment run pipeline/local --watch", soft_wrap=True)
    console.print("`make down` takes everything down; what was run stays listed.")


@app.command()
def down() -> None:
    """End workers, then the server; flow runs under way stop as if they were cancelled."""
    record = HOME / "started.json"
    if not record.is_file():
        raise OperationError("nothing was started here", where=HOME, mend="run `make up` first")
    for entry in reversed(read_json(record)):
        try:
            process = psutil.Process(entry["pid"])
        except psutil.NoSuchProcess:
            continue
        if process.create_time() != entry["since"]:
            continue  # the number belongs to another process by now
        process.terminate()
        try:
            process.wait(STOP_LIMIT)
        except psutil.TimeoutExpired:
            process.kill()
    record.unlink()
    Console().print("Prefect is down.")


def _start(name: str, *arguments: str, **extra: str) -> dict[str, Any]:
    """Start a Prefect command in the background; returns how to find it again."""
    with (HOME / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            env=_environment() | extra,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return {"name": name, "pid": process.pid, "since": psutil.Process(process.pid).create_time()}


def _prefect(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise OperationError(done.stdout.strip(), where=f"prefect {' '.join(arguments[:2])}")


def _environment() -> dict[str, str]:
    home = str(HOME.resolve())
    port = {"PREFECT_SERVER_API_PORT": PORT, "PREFECT_API_URL": API}
    return os.environ | port | {"PREFECT_HOME": home, "PREFECT_LOGGING_COLORS": "false"}


def _healthy() -> bool:
    with temporary_settings({PREFECT_API_URL: API}), get_client(sync_client=True) as client:
        return client.api_healthcheck() is None


def _wait_until_healthy(server: dict[str, Any]) -> None:
    def pending(healthy: bool) -> bool:
        process = psutil.Process(server["pid"])
        return not healthy and process.status() != psutil.STATUS_ZOMBIE

    waiting = Retrying(
        retry=retry_if_result(pending),
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
