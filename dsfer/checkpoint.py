"""The state of a training run on disk: everything that the next step depends on."""

import logging
from pathlib import Path
from typing import Any

import torch

from dsfer.distributed import shared_file
from dsfer.errors import CheckpointError, first_line
from dsfer.files import atomic_path
from dsfer.weights import check_crc

SCHEMA = 2

log = logging.getLogger(__name__)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        path: file to write.
        state: tensors, numbers, strings and containers of them; `fingerprint` says which run it
            belongs to.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save({**state, "schema": SCHEMA}, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch does not pass on why a write failed
                raise error.__context__ from None
            raise


def load_checkpoint(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Read a checkpoint; None where there is none yet.

    No pickled code is run. With several ranks, all of them read the file of rank 0.

    Raises:
        CheckpointError: it is damaged, of another schema, or of a run with other parameters.
    """
    mend = "delete it to start this run anew"
    file = shared_file(path)
    if file is None:
        return None
    try:
        with file:
            check_crc(file)
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises whatever the damage leads it to
        problem = f"not a readable checkpoint ({first_line(error)})"
        raise CheckpointError(problem, where=path, mend=mend) from error
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        found = state.get("schema") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(
            f"has schema {found}, this version reads schema {SCHEMA}", where=path, mend=mend
        )
    if state.get("fingerprint") != fingerprint:
        raise CheckpointError(
            f"belongs to run {state.get('fingerprint')}, not to {fingerprint}",
            where=path,
            mend=mend,
        )
    log.info("continuing from step %d of %s", state["step"], path)
    return state
