"""What a flow starts does not outlive it, whoever is killed."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.commands import Command, CommandError
from tests.waiting import PATIENCE, wait_for

SLEEPER = [sys.executable, "-c", "import time; time.sleep(100)"]

STUBBORN = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('up', flush=True)\n"
"""A program that is deaf to Ctrl-C, once it has said so."""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def command(tmp_path: Path, code: str) -> Command:
    return Command("test", python(code), tmp_path, tmp_path)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_output_comes_by_the_line_and_the_first_reason_heads_the_message(tmp_path):
    code = "import sys; print('a\\rb'); print('error: no lake.'); print('ERROR: x'); sys.exit(3)"
    lines = []
    with pytest.raises(CommandError) as caught, command(tmp_path, code) as running:
        lines.extend(running.lines())
    assert lines == ["a", "b", "error: no lake.", "ERROR: x"]
    assert str(caught.value) == "test: no lake."
    assert not caught.value.passing


def test_a_failure_without_a_word_tells_its_status(tmp_path):
    with (
        pytest.raises(CommandError, match="exit status 137"),
        command(tmp_path, "import os; os.kill(os.getpid(), 9)") as running,
    ):
        list(running.lines())


@pytest.mark.parametrize("letters", [0, 2**20])  # the latter are more than a pipe holds
def test_the_end_of_the_block_interrupts_the_command_which_has_the_time_to_save(tmp_path, letters):
    code = (
        "import pathlib, time\n"
        "try:\n    print('up', flush=True); time.sleep(100)\n"
        f"except KeyboardInterrupt: print('x' * {letters}); pathlib.Path('saved').touch()\n"
    )
    with command(tmp_path, code) as running:
        assert next(running.lines()) == "up"
    assert (tmp_path / "saved").exists()


def test_what_a_command_leaves_behind_is_killed(tmp_path):
    code = f"import subprocess; print(subprocess.Popen({SLEEPER}).pid)"
    with command(tmp_path, code) as running:
        (pid,) = running.lines()
    assert not psutil.pid_exists(int(pid)) or gone(psutil.Process(int(pid)))


def test_a_killed_guard_leaves_nothing_once_the_block_ends(tmp_path):
    code = STUBBORN + "import time; time.sleep(100)"
    with command(tmp_path, code) as running:
        assert next(running.lines()) == "up"
        guard = psutil.Process(running._process.pid)
        (child,) = guard.children()
        guard.kill()
    wait_for(lambda: gone(child))


@pytest.mark.parametrize("told", [signal.SIGTERM, None], ids=["told to end", "caller dies"])
def test_what_does_not_stop_when_asked_is_killed(tmp_path, told):
    stubborn = STUBBORN + (
        "import subprocess, time\n"
        f"print(subprocess.Popen({SLEEPER}).pid, flush=True)\n"
        "time.sleep(100)"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.guard", "0.1", *python(stubborn)], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    ) as guard:  # fmt: skip
        assert guard.stdin and guard.stdout
        assert guard.stdout.readline() == "up\n"
        grandchild = psutil.Process(int(guard.stdout.readline()))
        (child,) = psutil.Process(guard.pid).children()
        if told:
            guard.send_signal(told)
        else:
            guard.stdin.close()
        assert guard.wait(PATIENCE) == 128 + signal.SIGKILL
        wait_for(lambda: gone(child) and gone(grandchild))
