"""How every command of this project starts and ends on the terminal."""

import logging
import os
import sys
from collections.abc import Callable

from rich.console import Console
from rich.logging import RichHandler

from dsfer.errors import DsferError


def run(main: Callable[[], object]) -> None:
    """Run a command: its log on the terminal, a user's error as one message and exit status 1.

    Of several processes that train together, the first one speaks for all of them.
    """
    rank = int(os.environ.get("RANK", "0"))  # set by torchrun
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    for ours in ("dsfer", "pipeline", "__main__"):  # a stage's own module is __main__
        logging.getLogger(ours).setLevel(logging.WARNING if rank else logging.INFO)
    try:
        main()
    except DsferError as error:
        sys.exit(f"error of rank {rank}: {error}" if rank else f"error: {error}")
