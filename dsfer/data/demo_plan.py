"""What stands on the ground of a rendered suburb at each of two dates, and what changed."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from shapely import LineString, MultiPoint, Point, STRtree, box, points, prepare, union_all
from shapely.affinity import rotate
from shapely.geometry.base import BaseGeometry

from dsfer.data.demo_canvas import Colour, Patch, Roof, Tree
from dsfer.data.demo_houses import House, build
from dsfer.data.demo_layout import ROAD_HALF_WIDTH, Layout, Lot

SOILS: list[Colour] = [(172, 150, 120), (158, 130, 102), (186, 170, 144), (148, 126, 104)]
CARS: list[Colour] = [
    (225, 225, 225), (40, 42, 46), (150, 152, 156), (130, 30, 30), (40, 60, 100), (200, 196, 184),
]  # fmt: skip
CONCRETE: Colour = (176, 170, 158)


# What happens to a lot -> whether its house stands at each date.
STANDS = {
    "house": (True, True), "grown": (True, True), "new": (False, True), "gone": (True, False),
    "empty": (False, False), "cleared": (False, False), "seeded": (False, False),
}  # fmt: skip


@dataclass
class View:
    """What is drawn at one date, in this order.

    Attributes:
        ground: layers of flat patches, from below.
        fences: thin walls.
        roofs: of houses, and of cars.
        trees: crowns.
    """

    ground: list[list[Patch]] = field(default_factory=lambda: [[] for _ in range(6)])
    fences: list[BaseGeometry] = field(default_factory=list)
    roofs: list[Roof] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)


LAND, LOT, CONCRETE_LAYER, KERB, ROAD, DETAIL = range(6)


@dataclass(frozen=True)
class Fate:
    """What happens to a lot: a key of STANDS, and at which dates its soil is bare."""

    name: str
    bare: tuple[bool, bool]


@dataclass(frozen=True)
class Style:
    """Colours and dryness of the vegetation at one date."""

    lawn: NDArray[np.float64]
    leaf: NDArray[np.float64]
    asphalt: float


def plan(rng: Generator, layout: Layout, styles: tuple[Style, Style]) -> tuple[View, View]:
    """Furnish the plan for two dates.

    Args:
        rng: source of every choice.
        layout: streets and lots.
        styles: what vegetation and roads look like at the dates.
    """
    views = View(), View()
    homes = build(rng, layout)
    fates = _fates(rng, layout, homes)
    _streets(rng, layout, styles, views)
    for (lot, house), fate in zip(homes, fates, strict=True):
        _furnish(rng, lot, house, fate, styles, views)
    _wild(rng, layout, styles, views)
    _plant(rng, layout, homes, fates, styles, views)
    for view in views:
        _park(rng, layout, homes, view)
    return views


def _fates(rng: Generator, layout: Layout, homes: list[tuple[Lot, House]]) -> list[Fate]:
    """What happens to each lot.

    Changes gather around one place, as a development does, until they cover their share.
    """
    fates = [
        "house" if rng.random() < 0.86 else str(rng.choice(["empty", "cleared", "seeded"]))
        for _ in homes
    ]
    area = np.array([house.footprint.intersection(layout.frame).area for _, house in homes])
    centres = np.array([lot.front for lot, _ in homes]).reshape(-1, 2)
    focus = rng.uniform(0, 1, 2) * layout.frame.bounds[2]
    spread = layout.frame.bounds[2]
    order = np.argsort(
        np.hypot(*(centres - focus).T)
        + rng.uniform(0, 1.1, len(homes)) * spread * rng.uniform(0.2, 1)
    )
    wanted = rng.uniform(0.048, 0.07) * layout.frame.area
    covered = 0.0
    for k in order[area[order] > 150]:
        if covered >= wanted:
            break
        if area[k] > 1.15 * (wanted - covered) and area[k] > 1800:
            continue
        house = homes[k][1]
        fate = str(rng.choice(["new", "gone", "grown"], p=[0.68, 0.17, 0.15]))
        if fate == "grown" and not house.extension:
            fate = "new"
        fates[k] = fate
        covered += area[k] if fate != "grown" else 200.0
    return [Fate(name, _bare(rng, name)) for name in fates]


def _bare(rng: Generator, fate: str) -> tuple[bool, bool]:
    """At which dates the soil of a lot lies open."""
    before = {"new": 0.5, "seeded": 1.0, "house": 0.08, "empty": 0.15}.get(fate, 0.0)
    after = {"new": 0.35, "gone": 0.6, "cleared": 1.0, "house": 0.05, "empty": 0.15}.get(fate, 0.0)
    return rng.random() < before, rng.random() < after


def _streets(
    rng: Generator, layout: Layout, styles: tuple[Style, Style], views: tuple[View, View]
) -> None:
    """Pavement, kerb and asphalt; some streets are resurfaced between the dates."""
    for street, road in zip(layout.streets, layout.roads, strict=True):
        concrete = rng.random() < 0.25
        shade = rng.uniform(-8, 8)
        for style, view in zip(styles, views, strict=True):
            tone = style.asphalt + shade + (rng.uniform(-32, 10) if rng.random() < 0.25 else 0)
            tint = (tone + 26, tone + 22, tone + 12) if concrete else (tone, tone - 1, tone - 3)
            path = street.buffer(ROAD_HALF_WIDTH + 4.6).difference(
                street.buffer(ROAD_HALF_WIDTH + 2.6)
            )
            view.ground[CONCRETE_LAYER].append(Patch(path, CONCRETE, 0.04))
            view.ground[KERB].append(Patch(road.buffer(0.9), (166, 162, 152), 0.03))
            view.ground[ROAD].append(Patch(road, tint, 0.045, 0.03))


def _furnish(
    rng: Generator,
    lot: Lot,
    house: House,
    fate: Fate,
    styles: tuple[Style, Style],
    views: tuple[View, View],
) -> None:
    """Put the lot's house, lawn, drive, fence and pool into the dates at which they are there."""
    stands, bare = STANDS[fate.name], fate.bare
    soil = SOILS[rng.integers(len(SOILS))]
    watered = rng.uniform(-16, 16)
    fenced = rng.random() < 0.8
    pool = rng.random() < 0.13
    repaint = rng.uniform(0.9, 1.1) if rng.random() < 0.3 else 1.0
    for k, (style, view) in enumerate(zip(styles, views, strict=True)):
        lawn = style.lawn + watered * np.array([-0.5, 0.35, -0.3]) + rng.uniform(-6, 6)
        if bare[k]:
            tint = tuple(np.array(soil) * rng.uniform(0.9, 1.08))
            view.ground[LOT].append(Patch(lot.shape.buffer(2), tint, 0.13, 0.16))
        elif stands[k] or fate.name in ("empty", "cleared", "seeded"):
            view.ground[LOT].append(Patch(lot.shape, tuple(lawn), 0.14, 0.07))
        if not stands[k]:
            if bare[k]:
                _building_site(rng, lot, house, view)
            continue
        view.ground[CONCRETE_LAYER].append(
            Patch(house.drive, (120, 120, 118) if house.flat else (188, 182, 170), 0.05)
        )
        factor = repaint if k else 1.0
        view.roofs += [_painted(roof, factor) for roof in house.roofs]
        if fate.name == "grown" and k:
            view.roofs += [_painted(roof, factor) for roof in house.extension]
        if fenced and not house.flat:
            ring = lot.shape.exterior.buffer(0.45)
            front = MultiPoint(
                [lot.place(s * lot.width * 0.6, d) for s in (-1, 1) for d in (-3, 30)]
            ).convex_hull
            fence = ring.difference(front)
            view.fences.append(fence)
            view.ground[DETAIL].append(Patch(fence, (112, 96, 80), 0.1))
        if pool and not house.flat and fate.name != "grown":
            _pool(rng, lot, view)


def _building_site(rng: Generator, lot: Lot, house: House, view: View) -> None:
    """Heaps and pallets on bare soil, sometimes a slab: no building yet, so never labelled."""
    angle = float(np.arctan2(lot.along[1], lot.along[0]))
    if rng.random() < 0.3:
        view.ground[DETAIL].append(Patch(house.footprint, CONCRETE, 0.05))
    for _ in range(rng.integers(2, 9)):
        x, y = lot.place(*(rng.uniform(-0.42, 0.42) * lot.width, rng.uniform(0.1, 0.9) * lot.depth))
        a, b, tone = *rng.uniform(0.6, 2.2, 2), rng.uniform(0.55, 1.25)
        colour = (176 * tone, 164 * tone, 140 * tone)
        turn = angle + rng.uniform(-0.5, 0.5)
        view.roofs.append(Roof((x, y), turn, (a, b), rng.uniform(0.8, 2.4), 0, True, colour, 0))


def _painted(roof: Roof, factor: float) -> Roof:
    r, g, b = roof.colour
    return replace(roof, colour=(r * factor, g * factor, b * factor))


def _pool(rng: Generator, lot: Lot, view: View) -> None:
    """A pool with its deck, open at one date and covered at another."""
    x, y = lot.place(lot.width * 0.22, lot.depth - 10)
    water = (
        Point(x, y).buffer(3.2).union(Point(x + lot.along[0] * 5, y + lot.along[1] * 5).buffer(2.6))
    )
    tint: Colour = (96, 190, 210) if rng.random() < 0.7 else (52, 84, 120)
    view.ground[DETAIL].append(Patch(water.buffer(2.2), (196, 188, 172), 0.04))
    view.ground[DETAIL].append(Patch(water, tint, 0.03))


def _wild(
    rng: Generator, layout: Layout, styles: tuple[Style, Style], views: tuple[View, View]
) -> None:
    """Fields that are ploughed at one date, and a track through the land without streets."""
    land = layout.wild.intersection(layout.frame.buffer(40))
    if land.is_empty:
        return
    low_x, low_y, high_x, high_y = land.bounds
    for _ in range(rng.integers(0, 4)):
        centre = rng.uniform((low_x, low_y), (high_x, high_y))
        a, b = rng.uniform(30, 75, 2)
        shape = rotate(
            box(centre[0] - a, centre[1] - b, centre[0] + a, centre[1] + b), rng.uniform(0, 180)
        )
        shape = shape.intersection(layout.wild.buffer(-12))
        for style, view in zip(styles, views, strict=True):
            if rng.random() < 0.45:
                tint = np.array(SOILS[rng.integers(len(SOILS))]) * rng.uniform(0.7, 0.95)
            else:
                tint = style.lawn * rng.uniform(0.8, 1.25)
            view.ground[LAND].append(Patch(shape, tuple(tint), 0.12, 0.06))
    start, end = rng.uniform((low_x, low_y), (high_x, high_y), (2, 2))
    bow = (start + end) / 2 + rng.uniform(-40, 40, 2)
    t = np.linspace(-0.6, 1.6, 40)[:, None]
    path = LineString((1 - t) ** 2 * start + 2 * t * (1 - t) * bow + t**2 * end)
    track = path.buffer(rng.uniform(2, 3.2)).intersection(layout.wild)
    for view in views:
        view.ground[LAND].append(Patch(track, (186, 172, 148), 0.1))


def _plant(
    rng: Generator,
    layout: Layout,
    homes: list[tuple[Lot, House]],
    fates: list[Fate],
    styles: tuple[Style, Style],
    views: tuple[View, View],
) -> None:
    """Trees: dense in groves, scattered in gardens; none where a house stands at that date."""
    size = layout.frame.bounds[2]
    step = 7.0
    grid = np.stack(np.meshgrid(*[np.arange(-20, size + 20, step)] * 2), -1).reshape(-1, 2)
    spots = grid + rng.uniform(-0.5, 0.5, grid.shape) * step * 1.3
    grove = sum(
        rng.uniform(0.5, 1)
        * np.sin(spots @ rng.normal(0, 1, 2) * 2 * np.pi / wave + rng.uniform(0, 6))
        for wave in (420, 300, 190, 120, 75, 50)
    )
    at = points(spots)
    wild = layout.wild.contains(at) if not layout.wild.is_empty else np.zeros(len(spots), bool)
    lots = STRtree([lot.shape for lot, _ in homes])
    owner = np.full(len(spots), -1)
    which = lots.query(at, predicate="within")
    owner[which[0]] = which[1]
    paved = union_all(layout.roads).buffer(4)
    prepare(paved)
    dense = np.where(
        wild, 1 / (1 + np.exp(-2.2 * (grove - 0.1))), np.where(owner >= 0, 0.035, 0.05)
    )
    garden = np.where(owner >= 0, 0.3 / (1 + np.exp(-2 * (grove - 1.2))), 0)
    chosen = (rng.random(len(spots)) < dense + garden) & ~paved.intersects(at)
    buildings = STRtree([house.footprint.union(house.drive) for _, house in homes])
    near = np.zeros(len(spots), bool)
    near[buildings.query(at, predicate="dwithin", distance=3.0)[0]] = True
    leaves = [_leaves(rng, style, len(spots)) for style in styles]
    for k in np.nonzero(chosen)[0]:
        fate = fates[owner[k]] if owner[k] >= 0 else None
        radius = float(np.clip(rng.gamma(7, 0.72), 2.2, 9.5)) * (1.0 if wild[k] else 0.9)
        height = radius * rng.uniform(1.2, 1.9) + 2
        for date, view in enumerate(views):
            bare = fate is not None and fate.bare[date]
            built = fate is not None and STANDS[fate.name][date]
            if (near[k] and (built or bare)) or rng.random() < (0.6 if bare else 0.03):
                continue
            view.trees.append(
                Tree(
                    float(spots[k, 0]),
                    float(spots[k, 1]),
                    radius * (1 + 0.06 * date),
                    height,
                    leaves[date][k],
                )
            )


def _leaves(rng: Generator, style: Style, count: int) -> list[Colour]:
    """A colour for each tree about the season's."""
    hue = rng.normal(0, 1, (count, 1))
    colours = style.leaf * (1 + 0.1 * hue) + np.array([5, 2, 0]) * hue
    return [(r, g, b) for r, g, b in np.clip(colours, 8, 250).tolist()]


def _park(rng: Generator, layout: Layout, homes: list[tuple[Lot, House]], view: View) -> None:
    """Cars at the kerb, on drives and on car parks; each date has its own."""

    def car(x: float, y: float, angle: float) -> None:
        colour = CARS[rng.integers(len(CARS))]
        view.roofs.append(Roof((x, y), angle, (4.4, 1.9), 2.6, 0, True, colour, 0))

    for street in layout.streets:
        for _ in range(rng.poisson(street.length / 90)):
            at = rng.uniform(5, max(6, street.length - 5))
            x0, y0 = street.interpolate(at).coords[0]
            x1, y1 = street.interpolate(at + 1).coords[0]
            side = rng.choice([-1, 1]) * rng.choice([4.0, 6.6], p=[0.4, 0.6])
            car(x0 - side * (y1 - y0), y0 + side * (x1 - x0), float(np.arctan2(y1 - y0, x1 - x0)))
    built = {roof.building for roof in view.roofs}
    for lot, house in homes:
        if house.roofs[0].building not in built:
            continue
        across = float(np.arctan2(lot.inward[1], lot.inward[0]))
        if house.flat:
            for sideways in np.arange(-lot.width / 2 + 12, lot.width / 2 - 10, 5.6):
                if rng.random() < 0.5:
                    x, y = lot.place(sideways, 14)
                    car(x, y, across)
        elif rng.random() < 0.35:
            x, y = house.drive.centroid.coords[0]
            car(
                x + rng.uniform(-2, 2) * lot.along[0], y + rng.uniform(-2, 2) * lot.along[1], across
            )
