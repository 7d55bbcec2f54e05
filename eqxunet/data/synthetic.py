"""Pets drawn by the program: no file, no network, the same pixels for the same index.

Coat and ground take their colours from one distribution and are both textured, things of coat
colours lie about, and light falls unevenly, so no threshold on colour finds the pet.
"""

import colorsys

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFilter

from ..config import Labels, SplitName
from .classes import Classes
from .example import Example
from .kinds import BACKGROUND, BORDER, CLASSES, PET, Species
from .pets import Outlines, Part, draw_pet

COUNTS: dict[SplitName, int] = {"train": 800, "val": 100, "test": 100}
_SEED = 0  # of the pets; a run's seed has no part in them

Plane = Float[np.ndarray, "h w"]
Colour = Float[np.ndarray, "3"]
Picture = Float[np.ndarray, "h w 3"]
Window = tuple[slice, slice]


class SyntheticPets:
    """A split of drawn pets, of 112 to 160 pixels a side.

    Arguments:

    - `kind`: what labels are: `"trimap"` or `"species"`.
    - `limit`: the first so many only.
    """

    notes = ()

    def __init__(self, split: SplitName, *, kind: Labels = "trimap", limit: int | None = None):
        splits: list[SplitName] = list(COUNTS) if split == "all" else [split]
        pets: list[tuple[SplitName, int]] = [
            (name, i) for name in splits for i in range(COUNTS[name])
        ]
        self._pets = pets[:limit]
        self.kind: Labels = kind
        self.classes = Classes(CLASSES[kind])
        self.identity = f"synthetic {split}, first {len(self)}"

    def name(self, index: int, /) -> str:
        split, number = self._pets[index]
        return f"{split}_{number:04}"

    def __len__(self) -> int:
        return len(self._pets)

    def __getitem__(self, index: int, /) -> Example:
        if index < 0:
            raise IndexError(index)
        split, number = self._pets[index]
        rng = np.random.default_rng([_SEED, [*COUNTS].index(split), number])
        image, trimap, species = draw(rng)
        return Example(image, trimap, self.name(index), self.kind, species)


def draw(
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"], Species]:
    """Draws a pet on its ground, and the trimap; says what pet it is."""
    h, w = (int(n) for n in rng.integers(112, 161, size=2))
    palette = [_colour(rng) for _ in range(5)]
    canvas = _ground(rng, h, w, palette[1:])
    _litter(rng, canvas, palette)
    parts, species = draw_pet(rng)
    pet = _placed(rng, parts, h, w)
    silhouette = _paint_pet(rng, canvas, pet, palette)
    slope_y, slope_x = rng.normal(size=2) * 0.16
    y, x = np.linspace(-slope_y, slope_y, h), np.linspace(-slope_x, slope_x, w)
    canvas *= (1 + y[:, None] + x + 0.12 * _noise(rng, h, w, 3))[..., None]
    canvas += rng.uniform(0.01, 0.03) * _grain(rng, h, w)[..., None]
    image = (np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    return image, _trimap(silhouette), species


def _colour(rng: np.random.Generator) -> Colour:
    """Browns, creams and greys, as coats, wood and sand have; one in eight of any hue."""
    if rng.random() < 0.12:
        hue, saturation = rng.random(), rng.uniform(0.2, 0.5)
    else:
        hue, saturation = rng.uniform(0.04, 0.12), rng.choice([0.08, 0.3, 0.55])
    return _rgb(hue, saturation, rng.uniform(0.25, 0.95))


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)


def _grain(rng: np.random.Generator, h: int, w: int) -> Plane:
    return rng.standard_normal((h, w), np.float32)


def _noise(rng: np.random.Generator, h: int, w: int, cells: int) -> Plane:
    """Smooth noise of unit variance or so, with about so many bumps a side."""
    grid = Image.fromarray(_grain(rng, cells + 1, cells + 1))
    return np.asarray(grid.resize((w, h), Image.Resampling.BICUBIC))


def _hair(grain: Plane, direction: float, length: int = 5) -> Plane:
    """Noise drawn out along a direction, with the variance kept."""
    hair = grain.copy()
    for step in range(1, length):
        shift = round(step * np.sin(direction)), round(step * np.cos(direction))
        hair += np.roll(grain, shift, (0, 1))
    return hair / np.float32(length**0.5)


def _sigmoid(field: Plane) -> Plane:
    return 1 / (1 + np.exp(-field))


def _ground(rng: np.random.Generator, h: int, w: int, palette: list[Colour]) -> Picture:
    """A floor, and often a wall behind it."""
    canvas = _surface(rng, h, w, palette)
    if rng.random() < 0.6:
        horizon = rng.uniform(0.3, 0.7) * h + rng.normal() * 0.08 * np.arange(w)
        is_floor = np.arange(h)[:, None] > horizon
        canvas = np.where(is_floor[..., None], _surface(rng, h, w, palette), canvas)
    return canvas


def _surface(rng: np.random.Generator, h: int, w: int, palette: list[Colour]) -> Picture:
    base, other = (palette[i] for i in rng.integers(len(palette), size=2))
    angle, width = rng.uniform(0, np.pi), rng.uniform(14, 34)
    y, x = np.arange(h, dtype=np.float32)[:, None], np.arange(w, dtype=np.float32)
    u = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    v = y * np.float32(np.cos(angle)) - x * np.float32(np.sin(angle))
    kind = rng.choice(["plain", "planks", "tiles", "grass", "mottled"])
    blend, relief = np.zeros((1, 1), np.float32), 0.05 * _noise(rng, h, w, int(rng.integers(6, 24)))
    if kind == "planks":
        board = (u // width).astype(int)
        tone = 0.09 * _grain(rng, 1, 32)[0]
        relief = relief + tone[board % 32] - np.float32(0.25) * (u % width < 1.5)
    elif kind == "tiles":
        blend = ((u // width + v // width) % 2) * rng.uniform(0.15, 0.6)
    elif kind == "grass":
        relief = relief + 0.07 * _hair(_grain(rng, h, w), 1.5)
    elif kind == "mottled":
        blend = _sigmoid(3 * _noise(rng, h, w, int(rng.integers(4, 12))))
    colour = base + blend[..., None] * (other - base)
    return (colour * (1 + relief[..., None])).astype(np.float32)


def _litter(rng: np.random.Generator, canvas: Picture, palette: list[Colour]) -> None:
    """Balls, cushions and boxes in the colours that coats have."""
    h, w, _ = canvas.shape
    for _ in range(rng.integers(1, 5)):
        corners = int(rng.choice([4, 5, 32]))
        turn = rng.uniform(0, np.pi) + np.linspace(0, 2 * np.pi, corners, endpoint=False)
        radius = rng.uniform(0.06, 0.22, size=2) * min(h, w)
        centre = rng.uniform(0, 1, size=2) * (w, h)
        outline = centre + radius * np.stack([np.cos(turn), np.sin(turn)], -1)
        colour = palette[rng.integers(len(palette))]
        window, alpha = _cover(outline[None], h, w)
        relief = 1 + 0.06 * _noise(rng, len(alpha), alpha.shape[1], int(rng.integers(2, 12)))
        _blend(canvas[window], colour * (relief * _volume(alpha))[..., None], alpha)


def _placed(rng: np.random.Generator, parts: list[Part], h: int, w: int) -> list[Part]:
    """Scales, turns, mirrors and moves a pet into the picture; a portrait's lower end is cut."""
    low = np.min([part.outlines.min((0, 1)) for part in parts], axis=0)
    high = np.max([part.outlines.max((0, 1)) for part in parts], axis=0)
    high[1] = min(high[1], 1.05)
    scale = rng.uniform(0.7, 1.0) * min(w / (high - low)[0], h / (high - low)[1])
    angle = rng.normal() * 0.06
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    mirror = np.array([rng.choice([-1, 1]), 1])
    spare = np.array([w, h]) - scale * (high - low)
    centre = np.array([w, h]) / 2 + spare * rng.uniform(-0.5, 0.5, size=2)
    middle = (low + high) / 2
    return [
        Part(part.kind, ((part.outlines - middle) * mirror) @ turn + centre, part.fur)
        for part in parts
    ]


def _paint_pet(
    rng: np.random.Generator, canvas: Picture, parts: list[Part], palette: list[Colour]
) -> Plane:
    """Paints the parts from back to front; returns how much of each pixel the pet covers."""
    h, w, _ = canvas.shape
    covers = [_cover(part.outlines, h, w) for part in parts]
    silhouette = np.zeros((h, w), np.float32)
    for window, alpha in covers:
        np.maximum(silhouette[window], alpha, out=silhouette[window])
    canvas *= 1 - 0.45 * _blurred(np.roll(silhouette, 2, 0), 4)[..., None]  # its shadow

    coat, mark = palette[0], palette[1] * np.float32(rng.uniform(0.4, 1.0))
    pattern, is_pointed = _pattern(rng, h, w), rng.random() < 0.2
    grain = _grain(rng, h, w)
    hides = [_hair(grain, direction) for direction in (0.1, 0.8, 1.5)]
    relief = rng.uniform(0.11, 0.2)
    colours = {
        "pale": 0.5 * coat + np.float32(0.5),
        "pink": _rgb(0.01, 0.33, rng.uniform(0.6, 0.86)),
        "iris": _rgb(rng.choice([0.1, 0.14, 0.25, 0.55]), 0.65, 0.85),
        "dark": _rgb(0.0, 0.1, 0.07),
        "light": _rgb(0.1, 0.02, 0.97),
        "nose": _rgb(0.0, 0.4, 0.75) if rng.random() < 0.4 else _rgb(0.0, 0.2, 0.1),
    }
    for part, (window, alpha) in zip(parts, covers, strict=True):
        if part.kind in ("coat", "point"):
            is_dark = part.kind == "point" and is_pointed
            blend = pattern[window] if not is_dark else np.maximum(pattern[window], 0.7)
            colour = coat + blend[..., None] * (mark - coat)
        else:
            colour = colours[part.kind]
        if part.kind in ("coat", "point", "pale"):
            hair = hides[min(int(part.fur / 0.6), 2)][window]
            colour = colour * ((1 + relief * hair) * _volume(alpha))[..., None]
        _blend(canvas[window], colour, alpha)
    return silhouette


def _pattern(rng: np.random.Generator, h: int, w: int) -> Plane:
    """Where a coat shows its second colour: nowhere, in stripes, spots or patches."""
    kind = rng.choice(["plain", "stripes", "spots", "patches"])
    if kind == "plain":
        return np.zeros((h, w), np.float32)
    if kind == "stripes":
        slope, width = rng.uniform(-0.5, 0.5), rng.uniform(1.6, 3.0)
        phase = (np.arange(w) + slope * np.arange(h)[:, None]) / width
        field = np.sin(phase.astype(np.float32) + 1.5 * _noise(rng, h, w, 8)) - 0.2
    elif kind == "spots":
        field = _noise(rng, h, w, 26) - 0.5
    else:
        field = _noise(rng, h, w, 5)
    return 0.85 * _sigmoid(6 * field)


def _cover(outlines: Outlines, h: int, w: int) -> tuple[Window, Plane]:
    """A window around the outlines, and how much of each pixel in it lies inside any of them."""
    low, high = outlines.min((0, 1)).astype(int) - 2, outlines.max((0, 1)).astype(int) + 3
    left, top = min(max(low[0], 0), w - 1), min(max(low[1], 0), h - 1)
    right, bottom = max(min(high[0], w), left + 1), max(min(high[1], h), top + 1)
    fine = Image.new("L", (2 * (right - left), 2 * (bottom - top)))
    pen = ImageDraw.Draw(fine)
    for outline in 2 * (outlines - (left, top)):
        pen.polygon(outline.ravel().tolist(), fill=255)
    alpha = np.asarray(fine.reduce(2), np.float32) / 255
    return (slice(top, bottom), slice(left, right)), alpha


def _blurred(alpha: Plane, radius: int) -> Plane:
    image = Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(radius))
    return np.asarray(image, np.float32) / 255


def _volume(alpha: Plane) -> Plane:
    """Shading that makes a flat part look round: darker towards its edge."""
    return 0.45 + 0.6 * _blurred(alpha, 5)


def _blend(canvas: Picture, colour: Picture | Colour, alpha: Plane) -> None:
    canvas += alpha[..., None] * (colour - canvas)


def _trimap(silhouette: Plane) -> UInt8[np.ndarray, "h w"]:
    """Border is every pixel with both pet and ground within three pixels."""
    near = _blurred((silhouette >= 0.5).astype(np.float32), 3)
    trimap = np.where(near == 1, np.uint8(PET), np.uint8(BORDER))
    return np.where(near == 0, np.uint8(BACKGROUND), trimap)
