"""Where things lie in a rendered suburb: streets, lots and the land that nobody built on.

Coordinates are pixels of the finished image (0.5 m), x to the right and y down.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from shapely import LineString, Point, Polygon, box, get_parts, prepare, union_all
from shapely.affinity import translate
from shapely.geometry.base import BaseGeometry

ROAD_HALF_WIDTH = 9.0
VERGE = 6.0  # grass strip and pavement between road and lot


@dataclass(frozen=True)
class Lot:
    """A plot of land at a street.

    Attributes:
        shape: its outline.
        front: middle of the side at the street, shape (2,).
        along: unit vector along the street, shape (2,).
        inward: unit vector away from the street, shape (2,).
        width: pixels along the street.
        depth: pixels away from it.
        row: lots of one side of one street share it; neighbours follow each other in the list.
    """

    shape: Polygon
    front: NDArray[np.float64]
    along: NDArray[np.float64]
    inward: NDArray[np.float64]
    width: float
    depth: float
    row: int

    def place(self, sideways: float, deep: float) -> NDArray[np.float64]:
        """Image coordinates of a point given in the lot's own frame."""
        return self.front + sideways * self.along + deep * self.inward


@dataclass(frozen=True)
class Layout:
    """The plan of one scene.

    Attributes:
        streets: centre lines; where two meet, the later one lies on top.
        roads: the paved area, one polygon per street, dead ends with a turning circle.
        lots: plots along the streets, row by row.
        wild: land without streets (may be empty).
        frame: the visible square.
    """

    streets: list[LineString]
    roads: list[BaseGeometry]
    lots: list[Lot]
    wild: BaseGeometry
    frame: Polygon


class Warp:
    """A turned and gently bent square grid: (u, v) in pixels to image coordinates."""

    def __init__(self, rng: Generator, size: int):
        self.centre = size / 2 + rng.uniform(-40, 40, 2)
        angle = rng.uniform(0, 2 * np.pi)
        self.turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self.bend = rng.uniform(6, 30, 2)
        self.wave = 2 * np.pi / rng.uniform(380, 720, 2)
        self.phase = rng.uniform(0, 2 * np.pi, 2)

    def __call__(self, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points of shape (..., 2)."""
        bent_u = u + self.bend[0] * np.sin(self.wave[0] * v + self.phase[0])
        bent_v = v + self.bend[1] * np.sin(self.wave[1] * u + self.phase[1])
        points: NDArray[np.float64] = np.stack([bent_u, bent_v], axis=-1) @ self.turn.T
        return points + self.centre


def lay_out(rng: Generator, size: int) -> Layout:
    """Draw the plan of a suburb for a square image.

    Args:
        rng: source of every choice.
        size: side of the image in pixels.
    """
    warp = Warp(rng, size)
    wild, outward = _wild_land(rng, size)
    reach = size * 0.75 + 80
    through: list[LineString] = []
    joining: list[LineString] = []
    lots: list[Lot] = []
    v = -reach
    previous_gap: list[float] = []
    while v < reach:
        spacing = rng.uniform(148, 178)
        through.append(_curve(warp, (-reach, reach), (v, v)))
        crossings = _crossings(rng, reach)
        joining += [_curve(warp, (u, u), (v, v + spacing)) for u in crossings]
        row = len(through)
        lots += _row(rng, warp, v, 1, spacing, crossings, reach, row)
        lots += _row(rng, warp, v, -1, spacing, previous_gap, reach, -row)
        previous_gap = crossings
        v += spacing
    for _ in range(6):
        layout = _cut(joining + through, lots, wild, size)
        if sum(lot.shape.intersection(layout.frame).area for lot in layout.lots) > 0.36 * size**2:
            break
        wild = translate(wild, *(0.12 * size * outward))
    return layout


def _cut(lines: list[LineString], lots: list[Lot], wild: BaseGeometry, size: int) -> Layout:
    """Take the wild land out of the streets and drop the lots that it or a road touches."""
    streets, roads = _pave(lines, wild, size)
    paved = union_all(roads).buffer(VERGE - 1) if roads else Polygon()
    prepare(paved)
    prepare(wild)
    near = box(0, 0, size, size).buffer(30)
    kept = [
        lot
        for lot in lots
        if lot.shape.intersects(near)
        and not lot.shape.intersects(wild)
        and not lot.shape.intersects(paved)
    ]
    return Layout(streets, roads, kept, wild, box(0, 0, size, size))


def _curve(warp: Warp, u: tuple[float, float], v: tuple[float, float]) -> LineString:
    steps = np.linspace(0.0, 1.0, 2 + int(max(u[1] - u[0], v[1] - v[0]) / 12))
    return LineString(warp(u[0] + steps * (u[1] - u[0]), v[0] + steps * (v[1] - v[0])))


def _crossings(rng: Generator, reach: float) -> list[float]:
    """Positions of the streets that join two parallel ones."""
    found, u = [], -reach + rng.uniform(0, 300)
    while u < reach:
        found.append(float(u))
        u += rng.uniform(230, 460)
    return found


def _row(
    rng: Generator,
    warp: Warp,
    v: float,
    side: int,
    spacing: float,
    crossings: list[float],
    reach: float,
    row: int,
) -> list[Lot]:
    """The lots on one side of the street at `v`."""
    edge = v + side * (ROAD_HALF_WIDTH + VERGE)
    back = v + side * (min(spacing, 170) / 2 - 0.5)
    typical = rng.uniform(40, 50)
    lots, u = [], -reach
    while u < reach:
        width = typical + rng.uniform(-4, 5)
        if all(abs(u + width / 2 - c) > width / 2 + ROAD_HALF_WIDTH + VERGE for c in crossings):
            corners = warp(
                np.array([u, u + width, u + width, u]), np.array([edge, edge, back, back])
            )
            along = corners[1] - corners[0]
            along /= np.linalg.norm(along)
            inward = np.array([-along[1], along[0]])
            inward *= np.sign(inward @ (corners[3] - corners[0]))
            front = (corners[0] + corners[1]) / 2
            depth = float(inward @ ((corners[2] + corners[3]) / 2 - front))
            lots.append(Lot(Polygon(corners), front, along, inward, width, depth, row))
        u += width
    return lots


def _wild_land(rng: Generator, size: int) -> tuple[BaseGeometry, NDArray[np.float64]]:
    """A strip with a wavy edge at one side of the image, and the direction away from its middle."""
    angle = rng.uniform(0, 2 * np.pi)
    normal, tangent = (
        np.array([np.cos(angle), np.sin(angle)]),
        np.array([-np.sin(angle), np.cos(angle)]),
    )
    along = np.linspace(-size, size, 40)
    wave = size * rng.uniform(0.03, 0.08) * np.sin(along / rng.uniform(50, 110) + rng.uniform(0, 6))
    edge = size * rng.uniform(0.02, 0.45) + wave
    inner = size / 2 + edge[:, None] * normal + along[:, None] * tangent
    outer = size / 2 + 2 * size * normal + along[::-1, None] * tangent
    return Polygon(np.concatenate([inner, outer])).buffer(0), normal


def _pave(
    lines: list[LineString], wild: BaseGeometry, size: int
) -> tuple[list[LineString], list[BaseGeometry]]:
    """Cut the streets at the wild land and give each its surface."""
    view = box(-60, -60, size + 60, size + 60)
    inside = box(-10, -10, size + 10, size + 10)
    streets = [
        part
        for line in lines
        for part in get_parts(line.difference(wild.buffer(16)).intersection(view))
        if isinstance(part, LineString) and part.length > 30
    ]
    roads = []
    for street in streets:
        road = street.buffer(ROAD_HALF_WIDTH, cap_style="round")
        for x, y in (street.coords[0], street.coords[-1]):
            end = Point(x, y)
            if inside.contains(end) and sum(other.distance(end) < 2 for other in streets) == 1:
                road = road.union(end.buffer(19))
        roads.append(road)
    return streets, roads
