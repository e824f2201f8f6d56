"""How every command of this project starts and ends on the terminal."""

import logging
import sys
from collections.abc import Callable

from rich.console import Console
from rich.logging import RichHandler

from dsfer.errors import DsferError


def run(main: Callable[[], object]) -> None:
    """Run a command: its log on the terminal, a user's error as one message and exit status 1."""
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    for ours in ("dsfer", "pipeline", "__main__"):  # a stage's own module is __main__
        logging.getLogger(ours).setLevel(logging.INFO)
    try:
        main()
    except DsferError as error:
        sys.exit(f"error: {error}")
