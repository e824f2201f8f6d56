"""The buildings of a rendered suburb."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from shapely import Polygon, box, union_all
from shapely.affinity import rotate
from shapely.geometry.base import BaseGeometry

from dsfer.data.demo_canvas import Colour, Roof
from dsfer.data.demo_layout import Layout, Lot

ROOFS: list[Colour] = [
    (112, 106, 100), (92, 90, 90), (124, 108, 94), (104, 92, 82), (142, 124, 106),
    (134, 96, 80), (128, 126, 124), (80, 76, 74),
]  # fmt: skip
FLAT_ROOFS: list[Colour] = [(206, 206, 202), (182, 180, 174), (150, 150, 150), (226, 226, 224)]


@dataclass(frozen=True)
class House:
    """The roofs of one building, its extension apart, and what belongs to it on the ground."""

    roofs: list[Roof]
    extension: list[Roof]
    drive: Polygon
    footprint: BaseGeometry
    flat: bool = False


def outline(roof: Roof) -> Polygon:
    """The rectangle that a roof covers."""
    (x, y), (a, b) = roof.centre, roof.half
    return rotate(box(x - a, y - b, x + a, y + b), roof.angle, use_radians=True)


def build(rng: Generator, layout: Layout) -> list[tuple[Lot, House]]:
    """One building per lot, now and then one flat hall over three lots.

    Args:
        rng: source of every choice.
        layout: the plan.

    Returns:
        Lots (merged ones for halls) and what would stand on them, numbered from 1.
    """
    palette = [ROOFS[k] for k in rng.choice(len(ROOFS), 3, replace=False)]
    homes: list[tuple[Lot, House]] = []
    lots = layout.lots
    halls = rng.integers(0, 3)
    k = 0
    while k < len(lots):
        three = lots[k : k + 3]
        near = len({lot.row for lot in three}) == 1 and len(three) == 3
        near = near and float(np.linalg.norm(three[2].front - three[0].front)) < 130
        if halls and near and rng.random() < 0.12:
            merged = _merge(three)
            homes.append((merged, _hall(rng, merged, len(homes))))
            halls -= 1
            k += 3
        else:
            homes.append((lots[k], _house(rng, lots[k], palette, len(homes))))
            k += 1
    return homes


def _merge(lots: list[Lot]) -> Lot:
    first, middle = lots[0], lots[len(lots) // 2]
    shape = union_all([lot.shape for lot in lots]).convex_hull
    width = sum(lot.width for lot in lots)
    return Lot(shape, middle.front, middle.along, middle.inward, width, first.depth, first.row)


def _house(rng: Generator, lot: Lot, palette: list[Colour], index: int) -> House:
    """A main roof with a garage wing to the street, a wing to the garden, and an extension."""
    angle = float(np.arctan2(lot.along[1], lot.along[0]))
    base = np.array(palette[rng.choice(len(palette), p=[0.6, 0.25, 0.15])])
    colour = tuple(base * rng.uniform(0.9, 1.1))
    width = min(lot.width - rng.uniform(7, 12), 40.0)
    deep = rng.uniform(19, 25)
    setback = rng.uniform(13, 17)
    eave = float(rng.choice([5.5, 9.5], p=[0.7, 0.3]))
    pitch = rng.uniform(0.45, 0.7)
    gable = rng.random() < 0.3
    turn = rng.uniform(-0.03, 0.03)

    def part(sideways: float, depth: float, wide: float, long: float, number: int) -> Roof:
        x, y = lot.place(sideways, depth)
        half, direction = (wide / 2, long / 2), angle + turn
        if long > wide:
            half, direction = (long / 2, wide / 2), direction + np.pi / 2
        return Roof((x, y), direction, half, eave, pitch, gable, colour, number)

    mirror = rng.choice([-1, 1])
    garage = rng.uniform(14, 18)
    aside = mirror * (width / 2 - garage / 2)
    middle = setback + 7 + deep / 2
    number = 2 * index + 1
    roofs = [
        part(0, middle, width, deep, number),
        part(aside, setback + garage / 2 + 2, garage, garage + 6, number),
    ]
    wing = rng.uniform(13, 20)
    if rng.random() < 0.7:
        sideways = mirror * rng.uniform(0, 1) * (width - wing) / 2
        roofs.append(part(sideways, middle + deep / 2 - 1, wing, rng.uniform(11, 19), number))
    room = rng.uniform(15, 20)
    far = -mirror * (width - room) / 2
    extension = [part(far, middle + deep / 2 + 4, room, room + 2, number + 1)]
    drive = Polygon(
        [
            lot.place(aside + e, d)
            for e, d in ((-6, -6), (6, -6), (5.5, setback + 4), (-5.5, setback + 4))
        ]
    )
    return House(roofs, extension, drive, union_all([outline(roof) for roof in roofs]))


def _hall(rng: Generator, lot: Lot, index: int) -> House:
    """A large flat roof with a parapet's worth of machinery, and a car park in front."""
    angle = float(np.arctan2(lot.along[1], lot.along[0]))
    colour = FLAT_ROOFS[rng.integers(len(FLAT_ROOFS))]
    number = 2 * index + 1
    half = (lot.width / 2 - rng.uniform(10, 18), rng.uniform(12, 15))
    x, y = lot.place(0, lot.depth - half[1] - 6)
    main = Roof((x, y), angle, half, 11, 0, True, colour, number)
    boxes = []
    for _ in range(rng.integers(3, 8)):
        a, b = rng.uniform(-0.8, 0.8, 2) * half
        at = (x + a * np.cos(angle) - b * np.sin(angle), y + a * np.sin(angle) + b * np.cos(angle))
        size = rng.uniform(1, 2.4, 2)
        boxes.append(Roof(at, angle, (size[0], size[1]), 13, 0, True, (165, 165, 165), number))
    park = (lot.width / 2 - 6, lot.depth - 2 * half[1] - 12)
    drive = Polygon(
        [lot.place(s * park[0], d) for s, d in ((-1, 2), (1, 2), (1, park[1]), (-1, park[1]))]
    )
    drive = drive.union(Polygon([lot.place(s, d) for s, d in ((-9, -7), (9, -7), (9, 6), (-9, 6))]))
    return House([main, *boxes], [], drive, outline(main), flat=True)
