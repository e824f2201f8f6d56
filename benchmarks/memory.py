"""How much memory work takes at most, in a process of its own; as Linux tells it."""

import os
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

COUNTER = Path("/proc/self/clear_refs")
"""Writing 5 to it lets the highest memory of the process count anew."""


def separately(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What a function returns in a process of its own, whose memory nothing else has touched."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def is_told() -> bool:
    """Whether this system tells the highest memory of a process, and lets it count anew."""
    return os.access(COUNTER, os.W_OK)


def held_now() -> int:
    """Memory of this process in kB, from which `VmHWM` counts anew."""
    COUNTER.write_text("5", encoding="ascii")
    return resident("VmRSS")


def resident(what: str) -> int:
    """Memory of this process in kB, mapped files included: `VmRSS` now, `VmHWM` at its highest."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"{what}:\s+(\d+) kB", status)
    if found is None:
        raise SystemExit("this system does not say how much memory a process holds")
    return int(found[1])
