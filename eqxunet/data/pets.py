"""The shape of a drawn pet: parts with outlines, in a frame where it is about 1 high.

x grows to the right, y downwards; the pet stands on y = 1 and looks to the left or at us.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .kinds import Species

Number = float | int
Outlines = Float[np.ndarray, "k n 2"]
Points = list[tuple[Number, Number]]

_CIRCLE = np.linspace(0, 2 * np.pi, 28, endpoint=False)
_HALF = np.linspace(np.pi / 2, 3 * np.pi / 2, 7)


@dataclass(frozen=True)
class Part:
    """Outlines that are painted together.

    Arguments:

    - `kind`: what it is painted as: `"coat"`, `"point"` (a coat that some breeds darken), or a
      detail of the face.
    - `outlines`: polygons, x before y.
    - `fur`: direction of the hair in radians.
    """

    kind: str
    outlines: Outlines
    fur: float = 0.0


def draw_pet(rng: np.random.Generator) -> tuple[list[Part], Species]:
    """Draws a cat or a dog in one of four poses, its parts from back to front; says which."""
    is_cat = bool(rng.random() < 0.55)
    pose = rng.choice(list(_POSES), p=[0.35, 0.25, 0.25, 0.15])
    body, head, radius, turn = _POSES[pose](rng)
    return body + _head(rng, head, radius, turn, is_cat), "cat" if is_cat else "dog"


# A pose returns the body's parts, the head's centre and radius, and how far the face is turned.
_Pose = tuple[list[Part], tuple[Number, Number], float, float]


def _sitting(rng: np.random.Generator) -> _Pose:
    wide, side = rng.uniform(0.85, 1.2), int(rng.choice([-1, 1]))
    tail = [(0.16 * side, 0.93), (0.55 * side, 1.02), (rng.uniform(0.3, 0.5) * side, 0.6)]
    legs = [0.1 * wide, -0.1 * wide]
    parts = [
        Part("point", _limb(_curve(tail), 0.05, 0.03), 0.3),
        Part("coat", _ellipses((0, 0.64, 0.24 * wide, 0.33, 0)), 1.5),
        Part("coat", _ellipses(*[(s * 0.21 * wide, 0.84, 0.15, 0.15, 0) for s in (-1, 1)]), 0.8),
        *(Part("point", _limb([(x, 0.6), (x, 0.93)], 0.07, 0.06), 1.5) for x in legs),
        Part("point", _ellipses(*[(x, 0.955, 0.085, 0.05, 0) for x in legs])),
    ]
    return parts, (rng.uniform(-0.06, 0.06), 0.25), rng.uniform(0.18, 0.23), rng.uniform(-0.2, 0.2)


def _standing(rng: np.random.Generator) -> _Pose:
    long, step = rng.uniform(0.85, 1.2), rng.uniform(-0.06, 0.06)
    tail = [(0.36 * long, 0.45), (0.62 * long, 0.5), (0.55 * long, rng.uniform(-0.05, 0.7))]
    head, front, back = (-0.45 * long, rng.uniform(0.16, 0.3)), -0.26 * long, 0.28 * long
    far = [(front + 0.1, -step), (back - 0.09, step)]
    near = [(front, step), (back, -step)]
    trunk = [
        (0, 0.5, 0.37 * long, 0.17, 0),
        (front, 0.5, 0.16, 0.19, 0),
        (back, 0.51, 0.15, 0.18, 0),
    ]
    parts = [
        Part("point", _limb(_curve(tail), 0.05, 0.025), 1.0),
        *(Part("point", _limb([(x, 0.55), (x + d, 0.93)], 0.075, 0.05), 1.5) for x, d in far),
        Part("coat", _limb([(front - 0.02, 0.45), head], 0.13, 0.11), 0.1),
        Part("coat", _ellipses(*trunk), 0.1),
        *(Part("point", _limb([(x, 0.55), (x + d, 0.95)], 0.085, 0.055), 1.5) for x, d in near),
        Part("point", _ellipses(*[(x + d - 0.025, 0.965, 0.075, 0.04, 0) for x, d in near])),
    ]
    return parts, head, rng.uniform(0.15, 0.2), rng.uniform(-0.4, -0.1)


def _lying(rng: np.random.Generator) -> _Pose:
    long = rng.uniform(0.9, 1.15)
    tail = [(0.48 * long, 0.88), (0.85 * long, 1.0), (0.7 * long, rng.uniform(0.5, 0.8))]
    parts = [
        Part("point", _limb(_curve(tail), 0.055, 0.03), 0.2),
        *(
            Part("point", _limb([(-0.2 * long, y - 0.04), (-0.52 * long, y)], 0.06, 0.05))
            for y in (0.9, 0.95)
        ),
        Part("coat", _ellipses((0.08, 0.76, 0.42 * long, 0.23, 0.06)), 0.1),
        Part("coat", _ellipses((0.32 * long, 0.8, 0.19, 0.19, 0)), 0.9),
    ]
    head = (-0.32 * long, rng.uniform(0.48, 0.62))
    return parts, head, rng.uniform(0.18, 0.23), rng.uniform(-0.4, 0.1)


def _portrait(rng: np.random.Generator) -> _Pose:
    wide = rng.uniform(0.9, 1.2)
    shoulders = [(0, 1.2, 0.46 * wide, 0.55, 0), (0, 0.95, 0.27 * wide, 0.4, 0)]
    parts = [Part("coat", _ellipses(shoulder), 1.5) for shoulder in shoulders]
    return parts, (0, 0.5), rng.uniform(0.3, 0.36), rng.uniform(-0.25, 0.25)


_POSES = {"sitting": _sitting, "standing": _standing, "lying": _lying, "portrait": _portrait}


def _head(
    rng: np.random.Generator, centre: tuple[Number, Number], r: float, turn: float, is_cat: bool
) -> list[Part]:
    """Head, ears and face; `turn` moves the face to a side, in radii."""
    sides = (-1, 1)
    eye_y, eye = rng.uniform(-0.15, 0.0), rng.uniform(0.15, 0.21)
    eyes = [(0.42 * side + turn, eye_y) for side in sides]
    lips = [[(turn, 0.4), (turn + 0.05 * s, 0.62), (turn + 0.3 * s, 0.55)] for s in sides]
    mouth = np.concatenate([_limb(_curve(lip, 4), 0.035, 0.035) for lip in lips])
    if is_cat:
        skull, muzzle, nose = (1.08, 0.92), (turn, 0.42, 0.48, 0.33, 0), (turn, 0.27, 0.13, 0.09, 0)
        pupil = (0.45 * eye, 0.9 * eye)
    else:
        skull, muzzle, nose = (0.92, 1.0), (turn, 0.5, 0.5, 0.48, 0), (turn, 0.3, 0.22, 0.16, 0)
        pupil = (0.75 * eye, 0.75 * eye)
    face = [
        ("coat", _ellipses((0, 0, *skull, 0))),
        ("pale", _ellipses(muzzle)),
        ("iris", _ellipses(*[(*at, eye, eye, 0) for at in eyes])),
        ("dark", _ellipses(*[(*at, *pupil, 0) for at in eyes])),
        ("light", _ellipses(*[(x - 0.05, y - 0.06, 0.05, 0.05, 0) for x, y in eyes])),
        ("dark", mouth),
        ("nose", _ellipses(nose)),
    ]
    if not is_cat and rng.random() < 0.4:
        face.insert(2, ("pink", _ellipses((turn, 0.85, 0.16, 0.25, 0))))
    if not is_cat and rng.random() < 0.65:
        drop = rng.uniform(0.55, 0.75)
        face.append(("point", _ellipses(*[(s * 0.98, 0.15, 0.27, drop, -0.25 * s) for s in sides])))
    else:
        tip, up = rng.uniform(0.75, 0.95), rng.uniform(1.3, 1.6)
        ear = np.array([(0.98, -0.2), (tip, -up), (0.16, -0.85), (0.5, 0.0)])
        inner = ear[:3].mean(0) + 0.55 * (ear[:3] - ear[:3].mean(0))
        face.insert(0, ("pink", np.stack([inner, inner * [-1, 1]])))
        face.insert(0, ("point", np.stack([ear, ear * [-1, 1]])))
    tilt = 0.12 * rng.normal()
    rotation = r * np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    return [Part(kind, np.array(centre) + outlines @ rotation, 1.5) for kind, outlines in face]


def _ellipses(*rows: tuple[Number, Number, Number, Number, Number]) -> Outlines:
    """Ellipses as (x, y, radius across, radius down, angle)."""
    x, y, rx, ry, angle = np.array(rows, float).T[..., None]
    across, down = rx * np.cos(_CIRCLE), ry * np.sin(_CIRCLE)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([x + across * cos - down * sin, y + across * sin + down * cos], -1)


def _curve(points: Points, count: int = 9) -> Float[np.ndarray, "{count} 2"]:
    """Points along the quadratic Bezier curve of three."""
    start, middle, end = np.array(points)
    t = np.linspace(0, 1, count)[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end


def _limb(points: Points | Float[np.ndarray, "m 2"], start: float, end: float) -> Outlines:
    """A line with round ends through the points, tapering from one radius to another."""
    points = np.array(points, float)
    radius = np.linspace(start, end, len(points))
    step = points[1:] - points[:-1]
    away = np.arctan2(step[:, 1], step[:, 0])[:, None]
    ends = []
    for at, r, arc in (
        (points[:-1], radius[:-1], away + _HALF),
        (points[1:], radius[1:], away + _HALF + np.pi),
    ):
        ends.append(at[:, None] + r[:, None, None] * np.stack([np.cos(arc), np.sin(arc)], -1))
    return np.concatenate(ends, axis=1)
