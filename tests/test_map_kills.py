"""Maps killed at every step: what is left is finished, or a run goes on from it."""

import multiprocessing
import os
import shutil
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from dsfer.errors import DataError
from dsfer.mapping.predict import predict_raster
from tests.test_mapping import detector, read, scenes, write

STEPS = {"os.rename", "os.remove", "os.rmdir"}
"""What Python calls the changes to a folder that a kill can fall between."""


def map_them(folder: Path, **how: Any) -> None:
    """Map the rasters of a folder, saving after every strip, with a picture that costs nothing."""
    with (
        patch("dsfer.mapping.predict.SECONDS_BETWEEN_SAVES", 0),
        patch("dsfer.mapping.predict.write_preview", lambda path, *_, **__: path.touch()),
    ):
        predict_raster(folder / "t1.tif", folder / "t2.tif", detector(), folder / "out", **how)


def map_until(step: int, folder: Path) -> None:
    """Map, and die of SIGKILL before the given step, counted from 1."""
    steps = count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STEPS and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    map_them(folder)


@pytest.mark.slow
def test_a_kill_at_any_step_leaves_finished_maps_or_a_run_that_goes_on(tmp_path):
    images = scenes(60, 40)
    for name, image in zip(("t1", "t2"), images, strict=True):
        write(tmp_path / f"{name}.tif", image)
    out, work = tmp_path / "out", tmp_path / ".out.partial"
    map_them(tmp_path)
    whole = {path.name: path for path in out.rename(tmp_path / "whole").iterdir()}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    gone_on = finished = 0
    for step in count(1):
        process = context.Process(target=map_until, args=(step, tmp_path))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        if out.exists():
            finished += 1
            with pytest.raises(DataError, match="is there already"):
                map_them(tmp_path, resume=True)
        else:
            gone_on += 1
            map_them(tmp_path, resume=True)
        assert not work.exists()
        assert {path.name for path in out.iterdir()} == set(whole)
        for name in ("probability.tif", "change.tif"):
            np.testing.assert_array_equal(read(out / name), read(whole[name]), err_msg=str(step))
        shutil.rmtree(out)
    # Each file is renamed when it is whole; what only the making needed is removed at the end.
    assert gone_on > len(whole) and finished > 3
