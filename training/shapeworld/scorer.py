"""Read a picture of the world back into its background and objects, and compare it with what was asked for.

Only numpy; about a millisecond a picture. The reader is strict on purpose: an object whose colour is not one
of the world's, whose colour is not even, or whose form fits none of the shapes well, is reported with None in
that field and so agrees with nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .world import BACKGROUNDS, COLOURS, OPPOSITE, SHAPES, SIZE, Scene, outline

_BACKGROUND_NAMES = tuple(BACKGROUNDS)
_BACKGROUND_RGB = np.array(list(BACKGROUNDS.values()), np.float32)
_COLOUR_NAMES = tuple(COLOURS)
_COLOUR_RGB = np.array(list(COLOURS.values()), np.float32)

# Distances are Euclidean in 0..255 RGB; the nearest two colours of the palettes are 87 apart.
_BACKGROUND_TOLERANCE = 42.0
_COLOUR_TOLERANCE = 50.0
_FOREGROUND_DISTANCE = 45.0
# In pixels of the frame: the smallest true object covers 200, so less than _SPECK is dirt and does not count,
# and anything between is an object, though hardly one of the right form.
_SPECK = 9
# The share of its area by which an outline may differ from the ideal one of the same area and centre, and by
# how much the next best shape must be worse. Circle and square, the most alike, differ by 0.18.
_SHAPE_TOLERANCE = 0.15
_SHAPE_MARGIN = 0.05
_EVEN_COLOUR_SHARE = 0.85


@dataclass(frozen=True)
class Found:
    """An object read from a picture: centre in pixels, area in pixels squared; None where nothing fits."""

    colour: str | None
    shape: str | None
    x: float
    y: float
    area: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows. `background` is None where the picture's rim has no even colour of the world."""

    background: str | None
    things: tuple[Found, ...]


@dataclass(frozen=True)
class Verdict:
    """Which parts of a request a picture meets. `strict` means all of them."""

    background: bool
    count: bool
    colours: bool
    shapes: bool
    things: bool
    relation: bool
    places: bool

    @property
    def strict(self) -> bool:
        """True where everything asked for is right."""
        return self.background and self.count and self.things and self.relation and self.places


_RESOLUTION = 64  # template cells per unit of length, where an object has unit area
_HALF = 88


def _steepen(cover: np.ndarray) -> np.ndarray:
    """Sharpen coverage around one half: a form is its outline, and a soft edge is no other form."""
    return np.clip(3 * (cover - 0.5) + 0.5, 0, 1)


def _templates() -> np.ndarray:
    """Return coverage maps [shape, v, u] of the shapes with unit area and the centroid in the middle."""
    over = 4
    cells = 2 * _HALF
    maps = []
    for shape in SHAPES:
        side = cells * over
        middle = side / 2
        mask = np.zeros((side, side), np.float32)
        x = y = middle
        r = side / 5
        for _ in range(6):  # move and scale until centroid and area are right
            picture = Image.new("L", (side, side))
            draw = ImageDraw.Draw(picture)
            if shape == "circle":
                draw.ellipse([x - r, y - r, x + r, y + r], fill=255)
            else:
                draw.polygon(outline(shape, x, y, r), fill=255)
            mask = np.asarray(picture, np.float32) / 255
            rows, columns = np.nonzero(mask)
            x += middle - (columns.mean() + 0.5)
            y += middle - (rows.mean() + 0.5)
            r *= _RESOLUTION * over / float(np.sqrt(mask.sum()))
        small = mask.reshape(cells, over, cells, over).mean((1, 3))
        # The blur of a pixel: objects are some twenty pixels wide, so one pixel is about three cells.
        padded = np.pad(small, 1)
        rows = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
        maps.append(_steepen((rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 3))
    return np.stack(maps)


_TEMPLATES = _templates()


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """Return the 4-connected components of a boolean image as index arrays [pixels, (row, column)]."""
    parent: list[int] = []

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row_of, start = np.nonzero(edges == 1)
    stop = np.nonzero(edges == -1)[1]
    runs = list(zip(row_of.tolist(), start.tolist(), stop.tolist(), strict=True))
    first = 0
    for i, (row, begin, end) in enumerate(runs):
        parent.append(i)
        while runs[first][0] < row - 1:
            first += 1
        j = first
        while runs[j][0] < row:
            if runs[j][0] == row - 1 and runs[j][1] < end and begin < runs[j][2]:
                parent[root(j)] = root(i)
            j += 1
    groups: dict[int, list[int]] = {}
    for i in range(len(runs)):
        groups.setdefault(root(i), []).append(i)
    found = []
    for members in groups.values():
        rows = np.concatenate([np.full(runs[i][2] - runs[i][1], runs[i][0]) for i in members])
        columns = np.concatenate([np.arange(runs[i][1], runs[i][2]) for i in members])
        found.append(np.stack([rows, columns], 1))
    return found


def _nearest(rgb: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distance = np.sqrt(((rgb[..., None, :] - palette) ** 2).sum(-1))
    return distance.argmin(-1), distance.min(-1)


def _pixels(picture: Image.Image | np.ndarray) -> np.ndarray:
    if isinstance(picture, Image.Image):
        if picture.size != (SIZE, SIZE):
            picture = picture.resize((SIZE, SIZE), Image.Resampling.BOX)
        picture = np.asarray(picture.convert("RGB"))
    if picture.shape != (SIZE, SIZE, 3):
        raise ValueError(f"expected {SIZE} x {SIZE} RGB, got an array of shape {picture.shape}")
    return picture.astype(np.float32)


def read(picture: Image.Image | np.ndarray, leniency: float = 1.0) -> Reading:
    """Read a picture: a PIL image of any size (resized to 64 px), or uint8 values of shape [64, 64, 3].

    `leniency` scales the tolerances of forms, of colours and of stains: a verdict that changes with it is a near one.
    Raises ValueError for an array of another shape.
    """
    rgb = _pixels(picture)
    rim = np.concatenate([rgb[0], rgb[-1], rgb[1:-1, 0], rgb[1:-1, -1]])
    nearest, distance = _nearest(rim, _BACKGROUND_RGB)
    votes = np.bincount(nearest[distance < _BACKGROUND_TOLERANCE], minlength=len(_BACKGROUND_NAMES))
    best = int(votes.argmax())
    background = _BACKGROUND_NAMES[best] if votes[best] >= 0.85 * len(rim) else None
    # Measure the foreground from the colour that is there, not from the ideal one.
    base = np.median(rim[nearest == best] if votes[best] else rim, axis=0)
    away = np.sqrt(((rgb - base) ** 2).sum(-1))
    things = []
    for place in _components(away > _FOREGROUND_DISTANCE * leniency):
        if len(place) >= _SPECK:
            things.append(_read_thing(rgb, base, place, leniency))
    return Reading(background, tuple(things))


def _read_thing(rgb: np.ndarray, base: np.ndarray, place: np.ndarray, leniency: float) -> Found:
    """Read one object from its pixels `place` [n, (row, column)] on a background of colour `base`."""
    top, left = np.maximum(place.min(0) - 2, 0)
    bottom, right = np.minimum(place.max(0) + 3, SIZE)
    window = rgb[top:bottom, left:right] - base
    mask = np.zeros(window.shape[:2], bool)
    mask[place[:, 0] - top, place[:, 1] - left] = True
    padded = np.pad(mask, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:] & mask
    if core.sum() < 4:
        core = mask
    inside = window[core]
    middle = np.median(inside, axis=0)
    index, distance = _nearest(middle + base, _COLOUR_RGB)
    colour = _COLOUR_NAMES[int(index)] if distance < _COLOUR_TOLERANCE * leniency else None
    if colour is not None and (_nearest(inside + base, _COLOUR_RGB)[0] == index).mean() < _EVEN_COLOUR_SHARE:
        colour = None

    # How much of each pixel the object covers: its place on the line from the background to the object's
    # colour.
    grown = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | mask
    cover = np.clip(window @ (middle / max(float(middle @ middle), 1.0)), 0, 1) * grown
    cover = _steepen(cover)
    area = max(float(cover.sum()), 1.0)
    rows, columns = np.arange(top, bottom) + 0.5, np.arange(left, right) + 0.5
    y, x = float(cover.sum(1) @ rows) / area, float(cover.sum(0) @ columns) / area
    scale = _RESOLUTION / np.sqrt(area)
    v = np.floor((rows - y) * scale).astype(int) + _HALF
    u = np.floor((columns - x) * scale).astype(int) + _HALF
    if min(v[0], u[0]) < 0 or max(v[-1], u[-1]) >= 2 * _HALF:
        return Found(colour, None, x, y, area)
    differ = np.abs(_TEMPLATES[:, v[:, None], u[None, :]] - cover).sum((1, 2)) / area
    best, second = (int(i) for i in np.argsort(differ)[:2])
    clear = differ[best] <= _SHAPE_TOLERANCE * leniency and differ[second] - differ[best] >= _SHAPE_MARGIN
    shape = SHAPES[best] if clear else None
    return Found(colour, shape, x, y, area)


def relation_of(a: Found, b: Found) -> str:
    """Return how `a` stands to `b`, along the axis on which they are farther apart."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def judge(reading: Reading, scene: Scene, places: bool = False) -> Verdict:
    """Compare a reading with the scene that was asked for.

    With `places`, as for edits, every object must also stand where the scene has it (within 5 px) and be as
    large (within a factor of 1.5 in area).
    """
    wanted = sorted((t.colour, t.shape) for t in scene.things)
    seen = sorted((t.colour or "", t.shape or "") for t in reading.things)
    things = wanted == seen
    relation = scene.relation is None
    if scene.relation is not None and things:
        one, two = scene.things
        first = next(t for t in reading.things if (t.colour, t.shape) == (one.colour, one.shape))
        second = next(t for t in reading.things if t is not first)
        relation = relation_of(first, second) == scene.relation
        if (one.colour, one.shape) == (two.colour, two.shape):
            relation = relation or relation_of(first, second) == OPPOSITE[scene.relation]
    return Verdict(
        background=reading.background == scene.background,
        count=len(seen) == len(wanted),
        colours=sorted(c for c, _ in seen) == sorted(c for c, _ in wanted),
        shapes=sorted(s for _, s in seen) == sorted(s for _, s in wanted),
        things=things,
        relation=relation,
        places=not places or (things and _in_place(reading, scene)),
    )


def _in_place(reading: Reading, scene: Scene) -> bool:
    truth = read_scene(scene)
    left = list(reading.things)
    for want in truth:
        for have in left:
            near = abs(have.x - want.x) <= 5 and abs(have.y - want.y) <= 5
            if near and (have.colour, have.shape) == (want.colour, want.shape):
                if not 1 / 1.5 <= have.area / want.area <= 1.5:
                    return False
                left.remove(have)
                break
        else:
            return False
    return True


def read_scene(scene: Scene) -> tuple[Found, ...]:
    """Return what a perfect reading of the scene finds: every object with its exact centroid and area."""
    found = []
    for thing in scene.things:
        if thing.shape == "circle":
            found.append(Found(thing.colour, thing.shape, thing.x, thing.y, float(np.pi * thing.r**2)))
            continue
        points = np.array(outline(thing.shape, thing.x, thing.y, thing.r))
        after = np.roll(points, -1, axis=0)
        cross = points[:, 0] * after[:, 1] - after[:, 0] * points[:, 1]
        area = cross.sum() / 2
        x, y = ((points + after) * cross[:, None]).sum(0) / (6 * area)
        found.append(Found(thing.colour, thing.shape, float(x), float(y), float(abs(area))))
    return tuple(found)


def score(picture: Image.Image | np.ndarray, scene: Scene, places: bool = False) -> Verdict:
    """Read a picture and compare it with the scene asked for; see `read` and `judge`."""
    return judge(read(picture), scene, places)
