"""Waiting for what other processes do."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 600.0
"""Seconds to wait where it does not matter how long; a busy machine takes minutes for a start."""


def wait_for(condition: Callable[[], T], seconds: float = PATIENCE) -> T:
    """The first true value of a condition; fails when it has none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.2)
    raise AssertionError("waited in vain")
