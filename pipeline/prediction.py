"""A Prefect flow that maps many pairs of rasters, on this machine or over a Dask cluster.

Each pair is a task: seen in Prefect's pages with its picture, tried again when its error may pass,
run elsewhere when its worker is killed; one that fails does not stop the others.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from dsfer.detector import Detector, load
from dsfer.devices import Device, visible_gpus
from dsfer.errors import DataError, DsferError, first_line
from dsfer.figures import data_uri
from dsfer.mapping.pair import Reading
from dsfer.mapping.pairs import (
    ListedPair,
    check_all_done,
    list_pairs,
    map_pair,
    record_rows,
    row_of,
)
from dsfer.mapping.predict import AS_IT_IS, DEFAULTS, MapOptions, second_raster
from dsfer.mapping.work import local_folder
from pipeline.artifacts import thumbnail
from pipeline.cluster import RETRIES, may_pass, scheduler
from pipeline.flows import end_with_worker
from pipeline.frozen import Place
from pipeline.params import Scheduler, Workers

SECONDS_TO_END = 5.0
"""What a run has to finish its pair once it was told to end; killed, it loses 30 s of rows at most.
With what comes before and after, it is over in 10 s."""

PICTURE_HEIGHT = 400
"""Pixels of a preview in Prefect's pages."""


@flow(name="predict")
def predict(
    pairs: Place,
    weights: Place,
    out: Place,
    cluster: Workers | Scheduler | None = None,
    reading: Reading = AS_IT_IS,
    options: MapOptions = DEFAULTS,
    label_rule: str = "binary255",
    device: Device = "auto",
    batch_size: int | None = None,
) -> list[dict[str, Any]]:
    """Map the changes of many pairs of rasters; what is mapped already is left as it is.

    Args:
        pairs: a folder, .csv or .json, see `dsfer.mapping.pairs.list_pairs`.
        weights: the trained network, see `dsfer.load`.
        out: folder of the maps of all pairs, one each, and of `maps.json`.
        cluster: null for one pair after the other on this machine, a number of Dask workers to
            start here, which take turns on its GPUs, or the address of a scheduler.
        reading: how the rasters are read: bands, scale, align, tolerance.
        options: what is made of the probabilities: threshold, min_area and others.
        label_rule: how label values are read.
        device: auto takes a GPU if there is one.
        batch_size: windows per forward pass; null is 8 on a GPU and 1 on a CPU.

    Returns:
        A row for each pair, which is also shown as a table.

    Raises:
        DsferError: the list or the weights are unusable, or, when all are tried, pairs failed.
    """
    listed, folder, bundle = list_pairs(pairs), local_folder(out), Path(weights).absolute()
    # What is wrong with it is wrong with every pair; a GPU is needed only where pairs are mapped.
    detector(bundle, device if cluster is None else "cpu", batch_size)
    how = {"reading": reading, "options": options, "label_rule": label_rule, "resume": True}
    with end_with_worker(SECONDS_TO_END), _runner(cluster) as runner:
        # It takes no parameters: the server would keep them, with whatever addresses hold.
        @flow(name="map pairs", task_runner=runner)
        def map_all() -> list[dict[str, Any]]:
            given = bundle, folder, how, device, batch_size
            futures = [map_listed.submit(pair, *given) for pair in listed]
            return [_row(pair, future) for pair, future in zip(listed, futures, strict=True)]

        rows = map_all()
    record_rows(folder, rows)
    create_table_artifact(rows, key="maps", description=f"Change maps in {folder}")
    check_all_done(rows, folder)
    return rows


@contextmanager
def _runner(cluster: int | str | None) -> Iterator[TaskRunner[Any]]:
    """Where tasks run: in a thread of this process, one at a time, or on Dask workers."""
    if cluster is None:
        yield ThreadPoolTaskRunner(max_workers=1)
        return
    from prefect_dask.task_runners import DaskTaskRunner  # takes seconds to import

    with scheduler(cluster, visible_gpus()) as address:
        yield DaskTaskRunner(address=address)


def _row(pair: ListedPair, future: PrefectFuture[dict[str, Any]]) -> dict[str, Any]:
    outcome: dict[str, Any] | BaseException
    try:
        outcome = future.result(raise_on_failure=False)
    except Exception as error:  # a worker was killed once too often: Dask has its own names for it
        outcome = DataError(
            f"the workers that mapped it were killed ({first_line(error)})",
            mend="see whether their memory ran out (`dask worker --memory-limit`)",
        )
    return row_of(pair, outcome)


@task(
    name="map pair",
    task_run_name="{pair.id}",
    retries=RETRIES,
    retry_condition_fn=may_pass,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def map_listed(
    pair: ListedPair,
    weights: Path,
    out: Path,
    how: dict[str, Any],
    device: Device,
    batch_size: int | None,
) -> dict[str, Any]:
    """Map one pair, and show it."""
    try:
        summary = map_pair(pair, detector(weights, device, batch_size), out, **how)
    except DsferError as error:
        raise error from None  # GDAL's own errors, which would be logged too, show addresses
    picture = data_uri(thumbnail(out / pair.id / "preview.png", PICTURE_HEIGHT), "image/webp")
    rows = [
        ("changes", f"{summary['changes']:,}"),
        ("changed area", f"{summary['changed_area_m2']:,.0f} m²"),
        ("threshold", f"{summary['options']['threshold']:g}, {summary['threshold_from']}"),
        ("grid", summary["grid"]),
        ("second raster", second_raster(summary)),
        ("maps", f"`{out / pair.id}`"),
    ]
    lines = [f"![{pair.id}]({picture})", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    key = pair.id.lower().replace("_", "-").strip("-")
    create_markdown_artifact("\n".join(lines), key=f"map-{key}", description=pair.id)
    return summary


def detector(weights: Path, device: Device, batch_size: int | None) -> Detector:
    """The network, which a process keeps from one pair to the next."""
    return _loaded(
        weights, weights.stat().st_mtime_ns if weights.exists() else 0, device, batch_size
    )


@lru_cache(maxsize=1)
def _loaded(weights: Path, _changed: int, device: Device, batch_size: int | None) -> Detector:
    return load(weights, device=device, batch_size=batch_size)
