"""How every command of this project starts and ends on the terminal."""

import errno
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.logging import RichHandler

from dsfer.errors import DsferError, first_line
from dsfer.files import write_json

REPORT = "TORCHELASTIC_ERROR_FILE"
"""Environment variable that names the file in which one of several processes says why it ended."""

MENDS = {
    errno.ENOSPC: "make room on that disk, then run it again",
    errno.EDQUOT: "make room within your quota, then run it again",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), then run it again",
    errno.EACCES: "give this user the right to it, or choose another place",
    errno.EPERM: "give this user the right to it, or choose another place",
    errno.EROFS: "remount that disk to be written to, or choose another place",
    errno.ENAMETOOLONG: "give it a shorter name, or work in a folder nearer to the root",
    errno.EMFILE: "raise the number of files a process may open (ulimit -n)",
    errno.ENFILE: "close programs that hold many files open",
    errno.EISDIR: "move that folder away: a file is to be there",
    errno.ENOTDIR: "move that file away: a folder is to be there",
    errno.ENOENT: "see whether it was moved or a disk was unmounted meanwhile",
    errno.EIO: "the disk or the network share fails; see the system's log",
    errno.ESTALE: "the network share went away; mount it again",
}
"""What a user can do when the system refuses a file."""


def run(main: Callable[[], object]) -> None:
    """Run a command: its log on the terminal, a user's error as one message.

    The exit status is 1 for what the user has to mend, be it the input or the disk; 75
    (`EX_TEMPFAIL`) for what may go through when tried again, as a download or an object store that
    does not answer; 130 after Ctrl-C.
    A programming error keeps its traceback. Of several processes that train together, the first
    one logs, and whoever launched them says why they ended.
    """
    rank = int(os.environ.get("RANK", "0"))  # set by torchrun, as REPORT is
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    for ours in ("dsfer", "pipeline", "__main__"):  # a stage's own module is __main__
        logging.getLogger(ours).setLevel(logging.WARNING if rank else logging.INFO)
    speaker = f"error: rank {rank}" if rank else "error"
    try:
        main()
    except DsferError as error:
        _end(f"{speaker}: {error}", os.EX_TEMPFAIL if error.passing else 1)
    except KeyboardInterrupt:
        _end("interrupted", 128 + signal.SIGINT)
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        _end(end.code, 1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in MENDS:
            _end(f"{speaker}: {_refused(error)}", 1)
        if REPORT not in os.environ:
            raise
        traceback.print_exc()
        _end(f"{speaker}: {type(error).__name__}: {first_line(error)}", 1)


def _refused(error: OSError) -> DsferError:
    """What the system refused, as a message like those of bad input."""
    reason = os.strerror(error.errno or 0)
    return DsferError(
        reason[0].lower() + reason[1:],
        where=error.filename or error.filename2,
        mend=MENDS[error.errno or 0],
    )


def _end(message: str, status: int) -> NoReturn:
    if REPORT in os.environ:
        end_now(message, status)
    print(message, file=sys.stderr)
    sys.exit(status)


def end_now(message: str, status: int) -> NoReturn:
    """End this process without waiting for anything: its threads, or others that it talks to.

    One of several processes that train together reports the message to whoever launched it, before
    its connections close and the others notice: the earliest report names the cause.
    """
    if REPORT in os.environ:
        report = {"message": message, "timestamp": time.time()}
        write_json(Path(os.environ[REPORT]), report)
    else:
        print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
