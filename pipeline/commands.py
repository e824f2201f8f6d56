"""DVC and other commands as children of a flow: their output by the line, their end with ours."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from dsfer.errors import DsferError
from pipeline.guard import GRACE, kill_session

REASON = re.compile(r"(error|interrupted|ERROR): (?P<said>.+)")
"""The line that says why a stage, or then DVC, gave up."""

PASSING = f"exited with {os.EX_TEMPFAIL}"
"""What DVC says of a stage whose reason may pass, see `dsfer.console`."""


class CommandError(DsferError):
    """A command that a flow started has failed."""


class Command:
    """A command under `pipeline.guard`, to be used in a `with` block.

    The block's end, by an exception too, ends the command with all its children.

    Args:
        name: what it does, for messages.
        arguments: the command, one argument each; no shell reads them.
        folder: where it runs.
        project: top folder of the project; DVC passes it to stages as DVC_ROOT, and what outlives
            a copy of the project, as the state of a training run, is kept there.
        grace: seconds between asking it to stop and killing it.
    """

    def __init__(
        self, name: str, arguments: list[str], folder: Path, project: Path, grace: float = GRACE
    ):
        self.name = name
        self._grace = grace
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.guard", str(grace), *arguments],
            cwd=folder,
            env=environment(project),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._input = cast(IO[str], self._process.stdin)
        self._output = cast(IO[str], self._process.stdout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the guard's input, on which it ends the command if that still runs."""
        self._input.close()
        # Once the pipe is full, the command would wait for a reader instead of saving its state.
        threading.Thread(target=self._drain, daemon=True).start()
        try:
            status = self._process.wait(self._grace + 1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        if status < 0:
            kill_session(self._process.pid)  # its guard was killed and could not

    def _drain(self) -> None:
        """Read what nobody wants any more until all who could write have ended."""
        while os.read(self._output.fileno(), 2**16):
            pass
        self._output.close()

    def lines(self) -> Iterator[str]:
        """What the command prints, by the line; a progress bar's every state is one.

        Raises:
            CommandError: it failed, with the reasons that it printed.
        """
        reasons: list[str] = []
        for line in self._output:
            text = line.rstrip()
            if reason := REASON.match(text):
                reasons.append(reason["said"].rstrip("."))
            if text:
                yield text
        status = self._process.wait()
        if status:
            said = reasons[0] if reasons else f"exit status {status}, without a reason"
            failure = CommandError(said, where=self.name)
            failure.passing = any(PASSING in reason for reason in reasons)
            raise failure


def environment(project: Path) -> dict[str, str]:
    """Environment of a command: this Python first, UTF-8, unbuffered, lines wide enough to read."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    ours = {"PATH": path, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "COLUMNS": "160"}
    return os.environ | ours | {"DVC_ROOT": str(project.resolve())}
