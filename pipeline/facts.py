"""What validation looks at: the manifest with derived columns, and a row per split."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dsfer.data import leakage
from dsfer.data.manifest import SPLITS

_NAME, _SHA256, _PHASH = "[A-Za-z0-9_-]+", "[0-9a-f]{64}", "[0-9a-f]{16}"
_PATTERNS = {
    "id": _NAME,
    "scene": _NAME,
    "t1_sha256": _SHA256,
    "t2_sha256": _SHA256,
    "label_sha256": _SHA256,
    "t1_phash": _PHASH,
    "t2_phash": _PHASH,
}
_NUMBERS = (
    *("row", "col", "size", "pad_rows", "pad_cols", "scene_rows", "scene_cols"),
    *("valid_pixels", "changed_pixels", "changed_fraction", "t1_std", "t2_std"),
)
_LISTS = ("label_values", "t1_sum", "t2_sum", "t1_sum_of_squares", "t2_sum_of_squares")


@dataclass(frozen=True)
class Audit:
    """The tables of the leakage audit, as `dsfer.data.leakage` returns them.

    Attributes:
        exact: of `exact_duplicates`.
        near: of `near_duplicates`, without what is in `exact`.
        overlap: of `adjacent`, the tiles of which more than `OVERLAP_SHARE` is shared.
        adjacent: the others of `adjacent`, which only touch.
    """

    exact: pd.DataFrame
    near: pd.DataFrame
    overlap: pd.DataFrame
    adjacent: pd.DataFrame


def audit_leakage(tiles: pd.DataFrame) -> Audit:
    """Audit the tiles whose fields are sound, naming each leak once under its strongest form.

    Args:
        tiles: the manifest of the split stage.
    """
    sound = _numeric(tiles[amiss(tiles).isna() & tiles["split"].isin(SPLITS)])
    exact, near = leakage.exact_duplicates(sound), leakage.near_duplicates(sound)
    whole = exact.loc[exact["kind"] == "both dates", ["split_a", "id_b"]]
    known = pd.MultiIndex.from_frame(near[["split_a", "id_b"]]).isin(
        pd.MultiIndex.from_frame(whole)
    )
    ground = leakage.adjacent(sound)
    over = ground["shared"] > leakage.OVERLAP_SHARE
    return Audit(
        exact,
        near[~known].reset_index(drop=True),
        ground[over].reset_index(drop=True),
        ground[~over].reset_index(drop=True),
    )


def tile_facts(tiles: pd.DataFrame, allowed: frozenset[int], audit: Audit) -> pd.DataFrame:
    """The manifest with columns that are null where a tile is in order, and say what is not.

    Args:
        tiles: the manifest of the split stage.
        allowed: label values that the declared rule allows.
        audit: what `audit_leakage` found.

    Returns:
        The rows of `tiles` with `amiss`, `window_fault`, `count_fault`, `label_fault`,
        `identical_to`, `near_duplicate_of`, `overlaps_with`, `adjacent_to` (text or null) and
        `blank` (bool).
    """
    problems = amiss(tiles)
    tiles = _numeric(tiles)
    return tiles.assign(
        amiss=problems,
        window_fault=_window_fault(tiles),
        count_fault=_count_fault(tiles),
        label_fault=_label_fault(tiles, allowed),
        # Nodata alone, as around a turned scene, is no image that went wrong.
        blank=((tiles["t1_std"] == 0) | (tiles["t2_std"] == 0)) & (tiles["valid_pixels"] > 0),
        identical_to=_partners(tiles, audit.exact, "{id_a} in {split_a} ({kind})"),
        near_duplicate_of=_partners(tiles, audit.near, "{id_a} in {split_a} ({distance} bits)"),
        overlaps_with=_partners(tiles, audit.overlap, "{id_a} in {split_a} ({shared:.1%} shared)"),
        adjacent_to=_partners(tiles, audit.adjacent, "{id_a} in {split_a} (touching)"),
    )


def _numeric(tiles: pd.DataFrame) -> pd.DataFrame:
    """Numbers as numbers; one that is none is reported as amiss, and missing to other rules."""
    return tiles.assign(**{name: pd.to_numeric(tiles[name], errors="coerce") for name in _NUMBERS})


def split_facts(tiles: pd.DataFrame) -> pd.DataFrame:
    """One row per split of `SPLITS`, also of one without tiles.

    Args:
        tiles: what `tile_facts` returned.

    Returns:
        Columns `split`, `tiles`, `scenes`, `changed_tiles`, `blank_tiles`, `valid_pixels`,
        `changed_pixels`, `changed_fraction` (of valid pixels, 0 to 1) and `t1_mean`, `t2_mean`
        (lists of R, G, B on the 0-255 scale).
    """
    return pd.DataFrame([_split_row(split, tiles[tiles["split"] == split]) for split in SPLITS])


def _split_row(split: str, tiles: pd.DataFrame) -> dict[str, Any]:
    valid, changed = int(tiles["valid_pixels"].sum()), int(tiles["changed_pixels"].sum())
    means = {
        f"{date}_mean": [round(total / max(valid, 1), 2) for total in _sums(tiles[f"{date}_sum"])]
        for date in ("t1", "t2")
    }
    return {
        "split": split,
        "tiles": len(tiles),
        "scenes": int(tiles["scene"].nunique()),
        "changed_tiles": int((tiles["changed_pixels"] > 0).sum()),
        "blank_tiles": int(tiles["blank"].sum()),
        "valid_pixels": valid,
        "changed_pixels": changed,
        "changed_fraction": changed / valid if valid else 0.0,
        **means,
    }


def _lists(column: pd.Series) -> list[list[Any]]:
    """The lists in a column; nothing for a missing one, which `amiss` reports."""
    return [[] if values is None else list(values) for values in column]


def _sums(column: pd.Series) -> list[float]:
    """Sum of the lists of three numbers in a column."""
    rows = [values for values in _lists(column) if values]
    totals: list[float] = np.array(rows, dtype=float).reshape(-1, 3).sum(axis=0).tolist()
    return totals


def amiss(tiles: pd.DataFrame) -> pd.Series:
    """Fields of each tile that are missing or malformed, as text; null where all are sound."""
    problems = pd.Series("", index=tiles.index, dtype=object)
    for name, pattern in _PATTERNS.items():
        good = tiles[name].astype("string").str.fullmatch(pattern).fillna(False)
        _note(problems, ~good.astype(bool), tiles[name], name)
    for name in _LISTS:
        _note(problems, tiles[name].isna(), tiles[name], name)
    for name in _NUMBERS:
        numbers = pd.to_numeric(tiles[name], errors="coerce")
        _note(problems, ~np.isfinite(numbers), tiles[name], name)
    return problems.where(problems != "", None)


def _note(problems: pd.Series, bad: pd.Series, values: pd.Series, name: str) -> None:
    for index in problems.index[bad]:
        before = f"{problems[index]}, " if problems[index] else ""
        value = values[index]
        problems[index] = f"{before}{name} is {'missing' if pd.isna(value) else repr(value)}"


def _described(tiles: pd.DataFrame, bad: pd.Series, form: str) -> pd.Series:
    """`form` filled in from each bad row, null for the others."""
    text = pd.Series(None, index=tiles.index, dtype=object)
    text[bad] = _filled(form, tiles[bad])
    return text


def _filled(form: str, table: pd.DataFrame) -> list[str]:
    rows = table.to_dict("records")
    return [form.format(**{str(name): value for name, value in row.items()}) for row in rows]


def _window_fault(tiles: pd.DataFrame) -> pd.Series:
    """Windows whose padding is not exactly the part that lies outside their scene."""
    bad = pd.Series(False, index=tiles.index)
    for start, pad, length in (
        ("row", "pad_rows", "scene_rows"),
        ("col", "pad_cols", "scene_cols"),
    ):
        outside = (tiles[start] + tiles["size"] - tiles[length]).clip(lower=0)
        bad |= (tiles[start] < 0) | (tiles[start] >= tiles[length]) | (tiles[pad] != outside)
    return _described(
        tiles,
        bad,
        "row {row:.0f}, column {col:.0f}, padding {pad_rows:.0f} x {pad_cols:.0f} "
        "in a scene of {scene_rows:.0f} x {scene_cols:.0f}",
    )


def _count_fault(tiles: pd.DataFrame) -> pd.Series:
    """Pixel counts that contradict each other or the size of the tile."""
    valid, changed = tiles["valid_pixels"], tiles["changed_pixels"]
    room = (tiles["size"] - tiles["pad_rows"]) * (tiles["size"] - tiles["pad_cols"])
    fraction = (changed / valid.where(valid > 0)).fillna(0)
    bad = (
        (changed < 0)
        | (changed > valid)
        | (valid > room)
        | ~np.isclose(tiles["changed_fraction"].astype(float), fraction, atol=1e-6)
    )
    return _described(
        tiles,
        bad,
        "{changed_pixels:.0f} changed of {valid_pixels:.0f} valid pixels, "
        "changed fraction {changed_fraction:.4g}",
    )


def _label_fault(tiles: pd.DataFrame, allowed: frozenset[int]) -> pd.Series:
    """Label values that the rule does not allow."""
    faults = [sorted(set(map(int, values)) - allowed) for values in _lists(tiles["label_values"])]
    text = [", ".join(map(str, values)) or None for values in faults]
    return pd.Series(text, index=tiles.index, dtype=object)


def _partners(tiles: pd.DataFrame, pairs: pd.DataFrame, form: str) -> pd.Series:
    """The first partner of each tile as text, null where it has none."""
    first = pairs.drop_duplicates("id_b")
    names = dict(zip(first["id_b"], _filled(form, first), strict=True))
    return tiles["id"].map(names).astype(object)
