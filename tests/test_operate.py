"""`make down` finds what `make up` has started, and nothing else."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import psutil
import pytest
import torch
from prefect.client import base
from prefect.settings import PREFECT_API_URL, temporary_settings

from dsfer.errors import ConfigError
from dsfer.files import write_json
from dsfer.processes import process_mark
from pipeline import flows, operate
from tests.project import ROOT, run
from tests.waiting import wait_for


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The folder of what `make up` notes."""
    monkeypatch.setattr(operate, "HOME", tmp_path)
    monkeypatch.setattr(operate, "RECORD", tmp_path / "started.json")
    return tmp_path


def start(
    monkeypatch: pytest.MonkeyPatch, code: str, name: str = "worker-cpu", **how: str
) -> subprocess.Popen[bytes]:
    """Start a program in place of a worker, or of the server, as `make up` does."""
    popen, command = subprocess.Popen, [sys.executable, "-c", code]
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", lambda _, **options: popen(command, **options))
        return operate._start(name, **how)


@pytest.fixture
def started(home, monkeypatch) -> Iterator[subprocess.Popen[bytes]]:
    """What stands for a worker, which `make up` has noted."""
    with start(monkeypatch, "import time; time.sleep(100)") as process:
        yield process
        process.kill()


def test_a_worker_is_ended_even_after_the_clock_was_set(started, monkeypatch):
    created = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: created(process) + 3600)
    assert operate.end_started() == 1
    assert not operate.RECORD.exists()
    assert process_mark(started.pid) is None


def test_another_process_that_has_the_number_by_now_is_left_alone(started):
    entry = {"name": "worker-cpu", "pid": started.pid, "mark": process_mark(os.getpid())}
    write_json(operate.RECORD, [entry])
    assert operate.end_started() == 0
    assert started.poll() is None


def test_runs_are_settled_on_the_server_that_was_started_not_on_the_one_at_the_usual_port(
    home, monkeypatch
):
    """Another clone's may listen there: `make down` is not told the port of `make up`."""
    asked: list[str] = []

    @contextmanager
    def client(**_: Any) -> Iterator[Mock]:
        asked.append(PREFECT_API_URL.value())
        yield Mock(**{"api_healthcheck.return_value": None, "read_flow_runs.return_value": []})

    monkeypatch.setattr("prefect.client.orchestration.get_client", client)
    ours = "http://127.0.0.1:4300/api"
    with start(monkeypatch, "import time; time.sleep(100)", "server", api=ours):
        assert operate.end_started() == 1
    assert asked == [ours, ours]  # whether it answers, and of its runs


def test_what_a_flow_run_started_has_the_time_to_save(home, monkeypatch):
    """A worker, its flow run and what that started, each of which ends with the one before."""
    saving = (
        "import pathlib, sys, time\n"
        f"pathlib.Path({str(home / 'up')!r}).touch()\n"
        "sys.stdin.read(); time.sleep(1)\n"
        f"pathlib.Path({str(home / 'saved')!r}).touch()"
    )
    flow_run = starts(saving) + "; sys.stdin.read()"
    with start(monkeypatch, starts(flow_run) + "; child.wait()"):
        wait_for((home / "up").exists)
        assert operate.end_started() == 1
        assert (home / "saved").exists()


def starts(code: str) -> str:
    """A program that starts another one, whose standard input closes when it ends."""
    return (
        "import subprocess, sys; child = subprocess.Popen("
        f"[sys.executable, '-c', {code!r}], stdin=subprocess.PIPE)"
    )


@pytest.mark.parametrize(("visible", "count"), [("2,3", 2), (None, 2), ("", 0)])
def test_a_worker_sees_one_of_the_gpus_that_make_up_sees(home, monkeypatch, capsys, visible, count):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(operate, "_healthy", lambda: False)
    for name in ("_wait_until_healthy", "_register_deployments", "settle_lost_runs"):
        monkeypatch.setattr(operate, name, Mock())
    monkeypatch.setattr(operate, "check_port", Mock())
    monkeypatch.setattr(operate, "create_pools", pools := Mock())
    monkeypatch.setattr(operate, "_start", process := Mock())
    operate.up()
    pools.assert_called_once_with("cpu", "gpu")
    seen = [call.kwargs.get("CUDA_VISIBLE_DEVICES") for call in process.call_args_list]
    names = (visible or "0,1").split(",") if count else []
    assert seen == [None, "", *names]  # of the server, the CPU pool's worker, and the others
    on_gpus = ("--pool", "gpu", "--limit", "1")  # one training at a time
    assert [call.args for call in process.call_args_list] == [
        ("server", "server", "start"),
        ("worker-cpu", "worker", "start", "--name", f"cpu{operate.HERE}", "--pool", "cpu"),
        *(
            (f"worker-gpu{n}", "worker", "start", "--name", f"gpu{n}{operate.HERE}", *on_gpus)
            for n in names
        ),
    ]
    assert process.call_args_list[0].kwargs == {"api": operate.API}
    assert ("runs of …/gpu wait" in capsys.readouterr().out) == (count == 0)


def test_runs_of_a_worker_wait_as_long_as_the_project_says_before_another_try():
    code = (
        "import os\n"
        "from prefect.settings import Settings, get_current_settings\n"
        "os.environ |= get_current_settings().to_environment_variables(exclude_unset=True)\n"
        "print(Settings().tasks.default_retry_delay_seconds)"
    )
    name = "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS"
    kept = {key: value for key, value in os.environ.items() if key != name}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=kept, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[10.0, 30.0, 300.0]\n"


@pytest.mark.parametrize("port", ["0", "-1", "65536"])
def test_a_port_that_cannot_be_is_refused(monkeypatch, port):
    monkeypatch.setattr(operate, "PORT", port)
    with pytest.raises(ConfigError, match=f"PREFECT_SERVER_API_PORT: {port} is no port"):
        operate.check_port()


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("PREFECT_SERVER_API_PORT", "abc", "should be a valid integer"),
        ("PREFECT_LOGGING_LEVEL", "LOUD", "should be 'DEBUG'"),
    ],
)
def test_a_setting_that_prefect_refuses_is_named(monkeypatch, setting, value, said):
    monkeypatch.setenv(setting, value)
    printed = run(ROOT, sys.executable, "-m", "pipeline.operate", "up", fails=True)
    assert printed.startswith(f"error: {setting}: '{value}' is refused: Input {said}")
    assert printed.endswith("To mend it: correct it, or unset it.\n")
    assert printed.count("\n") == 1


def test_a_stage_asks_for_a_server_that_is_gone_for_about_a_minute_and_goes_on(monkeypatch):
    """The report of its bar waits 2, 4, 8, 16 and 32 seconds, each of them within a fifth."""
    before = property(lambda _: True, lambda *_: None)
    monkeypatch.setattr(base.PrefectHttpxSyncClient, "_has_connected", before, raising=False)
    monkeypatch.setattr(base, "time", time := Mock())
    monkeypatch.setattr(flows, "get_run_logger", lambda: log)
    log = Mock()
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}),
        pytest.warns(FutureWarning, match="outside of a flow"),
    ):
        assert flows.Progress("train").follow("training:  40%|####      | 400/1000")
    assert 49 < sum(call.args[0] for call in time.sleep.call_args_list) < 75
    (warned,) = log.warning.call_args_list
    assert isinstance(warned.args[-1], httpx.ConnectError)
