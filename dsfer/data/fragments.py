"""Random rotated fragments of large scenes, the way CDD was made from its original images."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from rasterio.transform import Affine

from dsfer.data.labels import label_rule as known_rule
from dsfer.data.labels import label_values
from dsfer.data.manifest import IGNORE, SPLITS
from dsfer.data.rasters import Bands, SceneFacts, SceneReader, Strip
from dsfer.data.scenes import Scene
from dsfer.data.splits import largest_remainder
from dsfer.data.tars import Pixels
from dsfer.data.tiles import Tile, inspect_scenes, tile_place, unit_size, write_tiles
from dsfer.data.workers import Spread
from dsfer.errors import DataError

Split = Literal["train", "val", "test"]

_ROWS_AT_ONCE = 256


def cut_fragments(
    scenes: Sequence[Scene],
    out: Path,
    *,
    size: int,
    counts: Mapping[Split, int],
    seed: int,
    label_rule: str,
    bands: Bands | None,
    spread: Spread,
) -> None:
    """Cut square fragments at random places and angles: the same files as `crop_scenes` writes.

    Places are uniform and never the same twice, angles uniform in [0, 2π). Images are resampled
    bilinearly, the label by nearest neighbour, all three on one geometry. The paper of CDD does not
    say how its fragments were kept apart; here each scene is divided along its longer side into one
    band for each split, and a fragment lies wholly inside the band of its split, so that no ground
    is seen by two splits. Bands are so wide that in every scene the number of possible places is
    proportional to `counts`.

    The manifest has one more column than that of `crop_scenes`: `angle`, in radians, by which the
    fragment is turned about its centre; `row` and `col` are those of the fragment before turning.

    Args:
        scenes: what to cut.
        out: folder to write; it is replaced as a whole, or left as it was on an error.
        size: side of a fragment in pixels.
        counts: exact number of fragments for each split.
        seed: of places and angles; the same seed gives the same bytes for any number of processes.
        label_rule: how label values are read, see `dsfer.data.labels`.
        bands: three 1-based bands to take as R, G, B, or None for the only three there are.
        spread: where it is done.

    Raises:
        DataError: as `crop_scenes`; or a scene is too small for the bands, or has too few places.
    """
    known_rule(label_rule)
    facts = inspect_scenes(scenes, bands, spread=spread)
    asked = {str(split): count for split, count in counts.items()}
    places = _draw(facts, size, {name: asked[name] for name in SPLITS if asked.get(name)}, seed)
    step = unit_size(sum(map(len, places)))
    units = [
        FragmentUnit(scene, tuple(drawn[first : first + step]), size, label_rule, bands)
        for scene, drawn in zip(facts, places, strict=True)
        for first in range(0, len(drawn), step)
    ]
    write_tiles(out, units, facts, spread=spread)


@dataclass(frozen=True, order=True)
class Fragment:
    """A place drawn for a fragment: top left corner of the box it can turn in, angle, split."""

    row: int
    col: int
    angle: float
    split: str


def box_side(size: int) -> int:
    """Side of a box in which a square can turn freely, with a pixel to spare for interpolation.

    Even, for an even `size`, so that box and fragment have the same centre on whole pixels.
    """
    return size + 2 * math.ceil(size * (math.sqrt(2) - 1) / 2 + 0.5)


def _draw(
    facts: Sequence[SceneFacts], size: int, counts: Mapping[str, int], seed: int
) -> list[list[Fragment]]:
    """Draw the fragments of each scene, sorted by row so that it is read once."""
    box = box_side(size)
    bands = [_split_bands(scene, box, counts) for scene in facts]
    drawn: list[list[Fragment]] = [[] for _ in facts]
    for k, (split, count) in enumerate(counts.items()):
        shapes = [
            (rows - box + 1, cols - box + 1) for _, _, rows, cols in (b[split] for b in bands)
        ]
        spaces = [rows * cols for rows, cols in shapes]
        for i, share in enumerate(largest_remainder(count, spaces)):
            if share > spaces[i]:
                raise DataError(
                    f"has {spaces[i]} places for {share} fragments of the split {split!r}",
                    where=facts[i].scene.t1,
                    mend="ask for fewer fragments",
                )
            rng = np.random.default_rng([seed, k, i])
            numbers = rng.choice(spaces[i], share, replace=False, shuffle=False)
            angles = rng.uniform(0, 2 * math.pi, share)
            top, left, _, _ = bands[i][split]
            for number, angle in zip(numbers.tolist(), angles.tolist(), strict=True):
                row, col = divmod(number, shapes[i][1])
                drawn[i].append(Fragment(top + row, left + col, angle, split))
    return [sorted(fragments) for fragments in drawn]


def _split_bands(
    facts: SceneFacts, box: int, counts: Mapping[str, int]
) -> dict[str, tuple[int, int, int, int]]:
    """Divide a scene along its longer side: split -> (row, col, rows, cols) of its band."""
    length, across = max(facts.rows, facts.cols), min(facts.rows, facts.cols)
    spare = length - box * len(counts)
    if spare < 0 or across < box:
        raise DataError(
            f"is {facts.cols} x {facts.rows} pixels, too small for {len(counts)} separate bands "
            f"of rotated fragments, which need {box * len(counts)} x {box}",
            where=facts.scene.t1,
            mend="set a smaller tile size, or leave the scene out",
        )
    bands, done, start = {}, 0, 0
    for number, (split, count) in enumerate(counts.items(), start=1):
        done += count
        stop = box * number + spare * done // sum(counts.values())
        extent = stop - start
        wide = facts.cols >= facts.rows
        bands[split] = (0, start, across, extent) if wide else (start, 0, extent, across)
        start = stop
    return bands


@dataclass(frozen=True)
class FragmentUnit:
    """Fragments of one scene that one process cuts into one tar."""

    facts: SceneFacts
    fragments: tuple[Fragment, ...]
    size: int
    label_rule: str
    bands: Bands | None

    @property
    def count(self) -> int:
        """Number of fragments."""
        return len(self.fragments)

    def tiles(self) -> Iterator[Tile]:
        """Cut them, top to bottom, with a sliding window of rows in memory."""
        with SceneReader(self.facts.scene, self.bands, self.label_rule) as reader:
            strip: Strip | None = None
            for fragment in self.fragments:
                strip = self._slide(reader, strip, fragment.row)
                yield self._cut(fragment, strip)

    def _slide(self, reader: SceneReader, strip: Strip | None, top: int) -> Strip:
        """A strip that holds the box whose first row is `top`, reading only what is new."""
        bottom = top + box_side(self.size)
        if strip is not None and bottom <= strip.stop:
            return strip
        kept = strip.from_row(top) if strip is not None and top < strip.stop else None
        start = kept.stop if kept else top
        below = reader.read(start, min(self.facts.rows, max(bottom, start + _ROWS_AT_ONCE)))
        return kept.extended(below) if kept else below

    def _cut(self, fragment: Fragment, strip: Strip) -> Tile:
        box, size = box_side(self.size), self.size
        top = fragment.row - strip.start
        inside = slice(top, top + box), slice(fragment.col, fragment.col + box)
        turn = _rotation(box, size, fragment.angle)
        transform = None
        if self.facts.transform is not None:
            corner = Affine.translation(fragment.col, fragment.row)
            transform = Affine(*self.facts.transform) @ corner @ turn
        margin = (box - size) // 2
        place = tile_place(
            self.facts, fragment.row + margin, fragment.col + margin, size,
            split=fragment.split, transform=transform,
        )  # fmt: skip
        label = _resampled(strip.label[inside], turn, size, Image.Resampling.NEAREST)
        missing = np.where(strip.label[inside] == IGNORE, np.uint8(255), np.uint8(0))
        if missing.any():
            # A pixel that interpolation mixed with one that has no data has none either.
            label[_resampled(missing, turn, size, Image.Resampling.BILINEAR) > 0] = IGNORE
        raw = _resampled(strip.raw[inside], turn, size, Image.Resampling.NEAREST)
        return Tile(
            place | {"angle": fragment.angle},
            _resampled(strip.t1[inside], turn, size, Image.Resampling.BILINEAR),
            _resampled(strip.t2[inside], turn, size, Image.Resampling.BILINEAR),
            label,
            label_values(raw[label != IGNORE]),
        )


def _rotation(box: int, size: int, angle: float) -> Any:
    """From pixel corners of a fragment to those of its box: turn about the common centre."""
    return (
        Affine.translation(box / 2, box / 2)
        @ Affine.rotation(math.degrees(angle))
        @ Affine.translation(-size / 2, -size / 2)
    )


def _resampled(pixels: Pixels, turn: Any, size: int, method: Image.Resampling) -> Pixels:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    turned = image.transform((size, size), Image.Transform.AFFINE, tuple(turn)[:6], method)
    return np.array(turned)
