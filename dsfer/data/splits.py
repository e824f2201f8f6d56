"""Assign tiles to train, val and test, and name the result by a hash."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from dsfer.data.manifest import SPLITS, write_manifest
from dsfer.errors import ConfigError, DataError
from dsfer.files import atomic_folder, write_json

Ratio = tuple[float, float, float]
Method = Literal["published", "random", "scenes", "spatial"]

_TRIES = 100


def split_tiles(
    manifest: pd.DataFrame, method: Method, *, ratio: Ratio | None, seed: int
) -> pd.DataFrame:
    """Add the column `split` to a manifest; the row order makes no difference to any tile.

    Args:
        manifest: rows of the crop stage.
        method: `published` (as the authors split the scenes); `random` (single tiles, to exactly
            the ratio); `scenes` (whole scenes, as near to the ratio of tiles as they allow);
            `spatial` (contiguous blocks of columns: where the authors publish regions for train and
            test only, val is cut from the last columns of train by train : val; elsewhere all
            columns, scene after scene, are divided by the ratio; no seed).
        ratio: train : val : test in any unit; not used by `published`.
        seed: of `random` and `scenes`.

    Returns:
        The manifest with one more column, in its own row order.

    Raises:
        ConfigError: the method is unknown, or lacks a usable ratio.
        DataError: a tile has no published split, two tiles share an id, or a split is empty.
    """
    if method not in _METHODS:
        raise ConfigError(
            f"unknown way to split '{method}'",
            where="split",
            mend=f"choose one of {', '.join(_METHODS)}",
        )
    if manifest["id"].duplicated().any():
        twice = manifest["id"][manifest["id"].duplicated()].iloc[0]
        raise DataError(f"tile {twice} is listed twice", mend="run the crop stage again")
    if method != "published":
        _check_ratio(ratio)
    by_id = manifest.sort_values("id", ignore_index=True)
    assigned = pd.Series(
        _METHODS[method](by_id, ratio or (0, 0, 0), seed), index=by_id["id"], dtype=object
    )
    result = manifest.assign(split=assigned.reindex(manifest["id"]).to_numpy())
    counts = split_counts(result)
    if empty := [name for name in SPLITS if not counts[name]]:
        given = "" if ratio is None else f" with the ratio {':'.join(f'{r:g}' for r in ratio)}"
        raise DataError(
            f"the split '{method}'{given} leaves {' and '.join(empty)} without a tile "
            f"({len(manifest)} tiles of {manifest['scene'].nunique()} scenes)",
            where="split",
            mend="choose another split_ratio or split, or add imagery",
        )
    return result


def split_counts(manifest: pd.DataFrame) -> dict[str, int]:
    """Number of tiles in each split of a manifest with the column `split`."""
    return {name: int((manifest["split"] == name).sum()) for name in SPLITS}


def split_hash(manifest: pd.DataFrame) -> str:
    """Name a split by its content: 12 hex digits over id, split and pixels of every tile."""
    columns = ["id", "split", "t1_sha256", "t2_sha256", "label_sha256"]
    rows = manifest[columns].sort_values("id").itertuples(index=False)
    text = "".join("\t".join(row) + "\n" for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_split(
    out: Path,
    manifest: pd.DataFrame,
    method: Method,
    *,
    policy: str,
    ratio: Ratio | None,
    seed: int,
) -> dict[str, Any]:
    """Split a manifest; write `manifest.parquet` and `split.json`.

    Args:
        out: folder to write; it is replaced as a whole, or left as it was on an error.
        manifest: rows of the crop stage.
        method: see `split_tiles`.
        policy: what the data set calls this way to split.
        ratio: see `split_tiles`.
        seed: see `split_tiles`.

    Returns:
        What `split.json` holds: hash, policy, seed and ratio where they count, and the numbers of
        tiles (`counts`) and of scenes (`scenes`) in each split. A scene may be in several.
    """
    table = split_tiles(manifest, method, ratio=ratio, seed=seed)
    summary = {
        "hash": split_hash(table),
        "policy": policy,
        "seed": seed if method in ("random", "scenes") else None,
        "ratio": None if method == "published" or ratio is None else list(ratio),
        "counts": split_counts(table),
        "scenes": {
            name: int(table.loc[table["split"] == name, "scene"].nunique()) for name in SPLITS
        },
    }
    with atomic_folder(out) as folder:
        write_manifest(folder / "manifest.parquet", table)
        write_json(folder / "split.json", summary)
    return summary


def largest_remainder(total: int, weights: Sequence[float]) -> list[int]:
    """Divide `total` in proportion to `weights` into whole numbers that sum to it exactly.

    7,620 by 6:1:3 is 4,572, 762 and 2,286. Each part is within one of its exact share; what
    rounding down leaves goes to the largest remainders, of equal ones first to the smallest part.
    """
    shares = [total * weight / sum(weights) for weight in weights]
    parts = [int(share) for share in shares]
    # Rounded, so that 0.4 of 2.4 and 0.4 of 0.4 are equal.
    order = sorted(range(len(parts)), key=lambda i: (round(parts[i] - shares[i], 9), parts[i]))
    for i in order[: total - sum(parts)]:
        parts[i] += 1
    return parts


def _check_ratio(ratio: Ratio | None) -> None:
    if ratio is None or len(ratio) != 3 or min(ratio) < 0 or not 0 < sum(ratio) < float("inf"):
        raise ConfigError(
            f"{ratio} is no ratio of train : val : test",
            where="split_ratio",
            mend="give three numbers that are not negative, for instance [6, 1, 3]",
        )


def _published(by_id: pd.DataFrame, ratio: Ratio, seed: int) -> list[str]:  # noqa: ARG001
    unknown = ~by_id["published_split"].isin(SPLITS)
    if unknown.any():
        raise DataError(
            f"{int(unknown.sum())} of {len(by_id)} tiles have no published split, "
            f"first {by_id['id'][unknown].iloc[0]}",
            where="split",
            mend="choose the split random, scenes or spatial",
        )
    return list(by_id["published_split"])


def _random(by_id: pd.DataFrame, ratio: Ratio, seed: int) -> list[str]:
    names = np.repeat(np.array(SPLITS, object), largest_remainder(len(by_id), ratio))
    return list(np.random.default_rng(seed).permutation(names))


def _scenes(by_id: pd.DataFrame, ratio: Ratio, seed: int) -> list[str]:
    """Of some shuffled orders, the one whose greedy filling comes nearest to the ratio."""
    sizes = by_id["scene"].value_counts().sort_index()
    targets = [len(by_id) * part / sum(ratio) for part in ratio]
    wanted = [i for i, part in enumerate(ratio) if part > 0]
    if len(sizes) < len(wanted):
        raise DataError(
            f"{len(sizes)} scenes cannot fill {len(wanted)} splits",
            where="split",
            mend="add scenes, or choose the split spatial or random",
        )
    rng = np.random.default_rng(seed)
    best, nearest = np.zeros(len(sizes), int), float("inf")
    for _ in range(_TRIES):
        order = rng.permutation(len(sizes))
        chosen, distance = _fill(sizes.to_numpy()[order].tolist(), targets, wanted)
        if distance < nearest:
            nearest, best[order] = distance, chosen
        if distance <= len(wanted):  # a tile for each split: rounding, not worth another try
            break
    names = dict(zip(sizes.index, (SPLITS[i] for i in best), strict=True))
    return [names[scene] for scene in by_id["scene"]]


def _fill(
    sizes: Sequence[int], targets: Sequence[float], wanted: Sequence[int]
) -> tuple[list[int], float]:
    """Give each scene in turn to the split that lacks most; no wanted split stays empty.

    Returns:
        The number of the split of each scene, and the sum of differences from the targets in tiles.
    """
    empty, chosen = set(wanted), list[int]()
    lacking = {i: targets[i] for i in wanted}
    for number, size in enumerate(sizes):
        pressed = len(sizes) - number <= len(empty)
        split = max(empty if pressed else wanted, key=lambda i: (lacking[i], i in empty, -i))
        lacking[split] -= size
        empty.discard(split)
        chosen.append(split)
    return chosen, sum(map(abs, lacking.values()))


def _spatial(by_id: pd.DataFrame, ratio: Ratio, seed: int) -> list[str]:  # noqa: ARG001
    if set(by_id["published_split"].fillna("")) != {"train", "test"}:
        return list(_blocks(by_id, SPLITS, ratio))
    split = by_id["published_split"].to_numpy(object).copy()
    train = split == "train"
    split[train] = _blocks(by_id[train], ("train", "val"), ratio[:2])
    return list(split)


def _blocks(rows: pd.DataFrame, names: Sequence[str], ratio: Sequence[float]) -> pd.Series:
    """Cut the columns of tiles, scene after scene, where the ratio of tiles is nearest."""
    if sum(ratio) <= 0:
        raise ConfigError(
            f"{':'.join(f'{part:g}' for part in ratio)} is no ratio of {' : '.join(names)}",
            where="split_ratio",
            mend="give a positive number for train",
        )
    sizes = rows.groupby(["scene", "col"]).size().sort_index()
    # A column belongs to the split in whose range the middle of its tiles lies.
    middles = (sizes.cumsum() - sizes / 2) / len(rows)
    ends = np.cumsum(ratio)[:-1] / sum(ratio)
    number = pd.Series(np.searchsorted(ends, middles, side="right"), index=sizes.index)
    keys = pd.MultiIndex.from_frame(rows[["scene", "col"]])
    return pd.Series(np.array(names, object)[number.reindex(keys)], index=rows.index)


_METHODS: dict[str, Callable[[pd.DataFrame, Ratio, int], list[str]]] = {
    "published": _published,
    "random": _random,
    "scenes": _scenes,
    "spatial": _spatial,
}
