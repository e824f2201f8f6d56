"""What DVC and Prefect cost where there is nothing to do.

    python -m benchmarks.overhead

A copy of the project is run once on four tiny scenes; then every way finds all stages up to
date. Server and worker are started beforehand, as `make up` does.
"""

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.side_by_side import Report, compare
from tests.project import STAGES, commit, dvc, executed, run, tiny_project


def main(
    rounds: int = 5,
    json: Annotated[Path | None, typer.Option(help="also write the numbers to this file")] = None,
) -> None:
    """Run the project once, then time what is left to pay."""
    report = Report(torch.device("cpu"), json)
    with tempfile.TemporaryDirectory(prefix="dsfer-benchmark-") as name:
        project = Path(name) / "project"
        tiny_project(project)
        printed = dvc(project, "repro")
        if executed(printed) != STAGES:
            raise SystemExit(printed)
        commit(project, "done")
        with prefect_up(project):

            def flow() -> None:
                arguments = ("deployment", "run", "pipeline/local", "--watch")
                run(project, sys.executable, "-m", "prefect", *arguments)

            ways: dict[str, Callable[[], object]] = {
                "dvc repro": lambda: dvc(project, "repro"),
                "dvc status": lambda: dvc(project, "status"),
                "dvc --version: Python and its imports": lambda: dvc(project, "--version"),
                f"stage by stage: dvc repro --single-item, {len(STAGES)} times": lambda: [
                    dvc(project, "repro", "--single-item", stage) for stage in STAGES
                ],
                "flow `pipeline` through Prefect's server and worker": flow,
            }
            report.add("nothing to do", compare(ways, items=1, rounds=rounds), "runs")


@contextmanager
def prefect_up(project: Path) -> Iterator[None]:
    """Server, deployments and worker of the project on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ["PREFECT_SERVER_API_PORT"] = port
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that the server ends too
    run(project, sys.executable, "-m", "pipeline.operate", "up")
    try:
        yield
    finally:
        run(project, sys.executable, "-m", "pipeline.operate", "down")


if __name__ == "__main__":
    typer.run(main)
