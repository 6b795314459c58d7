"""Pictures for the judge to learn from: right ones, wrong ones, malformed ones and degraded ones.

What a picture shows is never taken from the plan it was drawn by, but from the scorer's reading of its
pixels, so that the judge and the scorer mean the same thing by "right".
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from . import scorer, world
from .scorer import Found, Reading
from .world import BACKGROUNDS, COLOURS, SHAPES, SIZE, Scene, Thing

DEGRADATIONS = ("blur", "noise", "coarse", "fade", "smear", "ghost")
DEGRADATION_WORDS = {
    None: "sharp",
    "blur": "blurry",
    "noise": "noisy",
    "coarse": "coarse",
    "fade": "faded",
    "smear": "smeared",
    "ghost": "ghosted",
}
# How near, in pixels, an object must be to its old place to count as unmoved; the scorer's own rule.
NEAR = 5.0
_ANGLES = np.arange(96) * (2 * math.pi / 96)
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Picture:
    """A picture with its truth.

    `pixels` is uint8 [64, 64, 3], `scene` what it was meant to show, `reading` what the scorer sees in it,
    `degradation` the name of the damage done to it or None, `quality` 1 (badly degraded) to 10 (flawless) or
    None where that is not known.
    """

    pixels: np.ndarray
    scene: Scene
    reading: Reading
    degradation: str | None = None
    quality: int | None = None


# ------------------------------------------------------------------------------------------- malformed things


@cache
def _radii(shape: str) -> np.ndarray:
    """Return the distance from the centre to the rim of a shape of radius 1, for each of `_ANGLES`."""
    if shape == "circle":
        return np.ones(len(_ANGLES))
    corners = np.array(world.outline(shape, 0.0, 0.0, 1.0))
    rays = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)
    best = np.zeros(len(_ANGLES))
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        side = end - start
        cross = rays[:, 0] * side[1] - rays[:, 1] * side[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            along = (start[0] * side[1] - start[1] * side[0]) / cross
            share = (start[0] * rays[:, 1] - start[1] * rays[:, 0]) / cross
        hit = (along > 0) & (share >= -1e-9) & (share <= 1 + 1e-9)
        best = np.where(hit, np.maximum(best, np.nan_to_num(along)), best)
    return best


def _blend(a: tuple[int, ...], b: tuple[int, ...], share: float) -> tuple[int, ...]:
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))


def _draw_malformed(draw: ImageDraw.ImageDraw, thing: Thing, ground: tuple[int, ...], rng: random.Random) -> None:
    """Draw a thing with one or two flaws: between two shapes, wobbly, bitten, patchy, or of a colour in
    between.
    """
    k = _SUPERSAMPLING
    radii, fill = _radii(thing.shape), COLOURS[thing.colour]
    flaws = rng.sample(("morph", "wobble", "stretch", "tint", "patch", "bite"), rng.choice((1, 1, 2)))
    if "morph" in flaws:
        other = _radii(rng.choice([s for s in SHAPES if s != thing.shape]))
        radii = radii + rng.uniform(0.1, 0.9) * (other - radii)
    if "wobble" in flaws:
        for wave in (2, 3, 5):
            radii = radii * (1 + rng.uniform(-0.12, 0.12) * np.cos(wave * _ANGLES + rng.uniform(0, 6.3)))
    wide, tall = (rng.uniform(0.7, 1.3), rng.uniform(0.75, 1.25)) if "stretch" in flaws else (1.0, 1.0)
    other_colour = COLOURS[rng.choice(list(COLOURS))]
    if "tint" in flaws:
        fill = _blend(fill, rng.choice((other_colour, ground)), rng.uniform(0.1, 0.7))
    x = (thing.x + thing.r * wide * radii * np.cos(_ANGLES)) * k
    y = (thing.y + thing.r * tall * radii * np.sin(_ANGLES)) * k
    draw.polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=fill)
    for flaw, colour, reach in (("patch", other_colour, 0.5), ("bite", ground, 1.0)):
        if flaw in flaws:
            angle, r = rng.uniform(0, 6.3), thing.r * rng.uniform(0.25, 0.6)
            cx = thing.x + thing.r * reach * math.cos(angle)
            cy = thing.y + thing.r * reach * math.sin(angle)
            draw.ellipse([(cx - r) * k, (cy - r) * k, (cx + r) * k, (cy + r) * k], fill=colour)


def render_flawed(scene: Scene, rng: random.Random) -> Image.Image:
    """Draw `scene` at 64 px with something malformed, and now and then a ground of no clear colour."""
    ground = BACKGROUNDS[scene.background]
    if rng.random() < 0.12:
        ground = _blend(ground, BACKGROUNDS[rng.choice(list(BACKGROUNDS))], rng.uniform(0.1, 0.6))
    side = SIZE * _SUPERSAMPLING
    picture = Image.new("RGB", (side, side), ground)
    draw = ImageDraw.Draw(picture)
    sound = set(range(len(scene.things)))
    if sound:
        sound -= set(rng.sample(sorted(sound), rng.randint(1, len(sound))))
    for i, thing in enumerate(scene.things):
        if i in sound and thing.shape != "circle":
            points = world.outline(thing.shape, thing.x, thing.y, thing.r)
            draw.polygon([(x * _SUPERSAMPLING, y * _SUPERSAMPLING) for x, y in points], fill=COLOURS[thing.colour])
        elif i in sound:
            box = [thing.x - thing.r, thing.y - thing.r, thing.x + thing.r, thing.y + thing.r]
            draw.ellipse([v * _SUPERSAMPLING for v in box], fill=COLOURS[thing.colour])
        else:
            _draw_malformed(draw, thing, ground, rng)
    if rng.random() < 0.15:  # a stray blot
        r, colour = rng.uniform(1.5, 6), COLOURS[rng.choice(list(COLOURS))]
        x, y = rng.uniform(4, 60), rng.uniform(4, 60)
        draw.ellipse([(v) * _SUPERSAMPLING for v in (x - r, y - r, x + r, y + r)], fill=colour)
    return picture.resize((SIZE, SIZE), Image.Resampling.BOX)


def stained(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    """Return a picture, uint8 [64, 64, 3], with a soft stain of any colour, often at its rim: faint, or a thing too many."""
    side = SIZE * _SUPERSAMPLING
    mask = Image.new("L", (side, side))
    x, y = (rng.choice((rng.uniform(0, SIZE), rng.choice((0, 1, 2, SIZE - 2, SIZE - 1, SIZE)))) for _ in range(2))
    wide, tall = rng.uniform(1.5, 5), rng.uniform(1.5, 5)
    box = [v * _SUPERSAMPLING for v in (x - wide, y - tall, x + wide, y + tall)]
    ImageDraw.Draw(mask).ellipse(box, fill=round(255 * rng.uniform(0.1, 0.7)))
    soft = ImageFilter.GaussianBlur(rng.uniform(0.5, 2.5))
    mask = mask.resize((SIZE, SIZE), Image.Resampling.BOX).filter(soft)
    image = Image.fromarray(pixels)
    image.paste(rng.choice([*COLOURS.values(), *BACKGROUNDS.values()]), (0, 0), mask)
    return np.asarray(image)


# --------------------------------------------------------------------------------------------- wrong contents


def misplan(scene: Scene, rng: random.Random) -> Scene:
    """Return the scene with something wrong in its plan: a thing too few, too many, changed, moved or
    resized.

    The result's `kind` and `relation` stay those of the request and may not fit it any more.
    """
    things = list(scene.things)
    fault = rng.choice(("drop", "drop", "add", "add", "recolour", "reshape", "move", "clone", "empty"))
    free = world.free_colours(scene.background)
    i = rng.randrange(len(things))
    if fault == "drop":
        things.pop(i)
    elif fault == "empty" and rng.random() < 0.4:
        things = []
    elif fault == "add":
        for _ in range(20):
            x, y, r = rng.uniform(10, 54), rng.uniform(10, 54), rng.uniform(6, 11)
            if all(math.hypot(x - t.x, y - t.y) > 1.25 * (r + t.r) for t in things):
                things.append(Thing(rng.choice(free), rng.choice(SHAPES), x, y, r))
                break
    elif fault == "clone":
        things = [replace(t, colour=things[0].colour, shape=things[0].shape) for t in things]
    elif fault == "recolour":
        things[i] = replace(things[i], colour=rng.choice(free))
    elif fault == "reshape":
        things[i] = replace(things[i], shape=rng.choice(SHAPES))
    else:
        things = [
            replace(t, x=t.x + rng.uniform(-7, 7), y=t.y + rng.uniform(-7, 7), r=t.r * rng.uniform(0.7, 1.15))
            for t in things
        ]
    return replace(scene, things=tuple(things))


def degrade(
    picture: Image.Image, kind: str, level: float, noise: np.random.Generator, other: Image.Image
) -> Image.Image:
    """Damage a 64 px picture by `level` 0 (hardly) to 1 (badly); "ghost" lets `other` shine through.

    Raises ValueError for a kind not in `DEGRADATIONS`.
    """
    values = np.asarray(picture, np.float32)
    if kind == "blur":
        return picture.filter(ImageFilter.GaussianBlur(0.5 + 3.5 * level))
    if kind == "noise":
        values = values + noise.normal(0, 6 + 70 * level, values.shape)
    elif kind == "coarse":
        side = max(8, round(SIZE / (1.6 + 6 * level)))
        small = picture.resize((side, side), Image.Resampling.BOX)
        how = Image.Resampling.BICUBIC if noise.random() < 0.5 else Image.Resampling.NEAREST
        return small.resize((SIZE, SIZE), how)
    elif kind == "fade":
        mean = values.mean((0, 1), keepdims=True)
        values = mean + (values - mean) * (0.88 - 0.7 * level)
    elif kind == "smear":
        field = noise.normal(size=(2, 6, 6)).astype(np.float32)
        push = [np.asarray(Image.fromarray(f).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for f in field]
        rows, columns = np.mgrid[:SIZE, :SIZE]
        reach = 0.8 + 4.5 * level
        rows = np.clip(np.round(rows + reach * push[0]), 0, SIZE - 1).astype(int)
        columns = np.clip(np.round(columns + reach * push[1]), 0, SIZE - 1).astype(int)
        bent = Image.fromarray(values[rows, columns].astype(np.uint8))
        return bent.filter(ImageFilter.GaussianBlur(0.3 + 0.8 * level))
    elif kind == "ghost":
        share = 0.1 + 0.4 * level
        values = values * (1 - share) + share * np.asarray(other, np.float32)
    else:
        raise ValueError(f"unknown degradation {kind!r}")
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def sample_scene(rng: random.Random, held_out: bool = False) -> Scene:
    """Draw a scene whose caption is, or is not, held out of training; relations are as likely as all else."""
    return world.sample_where(
        lambda: world.sample_scene(rng, rng.choices(world.KINDS, (0.28, 0.47, 0.25))[0]), held_out
    )


def sample_picture(
    rng: random.Random,
    wrong: float = 0.22,
    flawed: float = 0.25,
    damaged: float = 0.3,
    held_out: bool = False,
) -> Picture:
    """Draw a picture; `wrong`, `flawed` and `damaged` are the shares with a false plan, flawed things and
    damage.
    """
    scene = sample_scene(rng, held_out)
    plan = misplan(scene, rng) if rng.random() < wrong else scene
    marred = rng.random() < flawed
    image = render_flawed(plan, rng) if marred else world.render(plan)
    kind, level = None, 0.0
    if rng.random() < damaged:
        kind, level = rng.choice(DEGRADATIONS), rng.uniform(0.03, 1)
        noise = np.random.default_rng(rng.getrandbits(60))
        other = world.render(sample_scene(rng)) if kind == "ghost" else image
        image = degrade(image, kind, level, noise, other)
    reading = scorer.read(image)
    quality = 10 - 9 * level
    if marred and any(t.colour is None or t.shape is None for t in reading.things):
        quality = min(quality, 7)
    return Picture(np.asarray(image), scene, reading, kind, round(quality))


# ------------------------------------------------------------------------------------------ what a picture is


def shown(reading: Reading) -> Scene | None:
    """Return the scene that a picture's reading amounts to, or None where no caption describes it."""
    things = tuple(
        Thing(t.colour, t.shape, t.x, t.y, math.sqrt(t.area / math.pi)) for t in reading.things if t.colour and t.shape
    )
    if reading.background is None or len(things) != len(reading.things):
        return None
    looks = {(t.colour, t.shape) for t in things}
    if len(things) == 1:
        return Scene("one", reading.background, things)
    if len(things) in world.COUNTS and len(looks) == 1:
        return Scene("count", reading.background, things)
    if len(things) == 2:
        return Scene("relation", reading.background, things, scorer.relation_of(*reading.things))
    return None


def facts(reading: Reading, scene: Scene) -> dict[str, float]:
    """Return which parts of the request `scene` a picture meets, each as a share from 0 to 1.

    Keys: background, count, colour, shape, and relation where one was asked for. Things are matched so that
    the most colours and shapes fit.
    """
    seen = list(reading.things)
    wanted = list(scene.things)

    def fit(have: Found, want: Thing) -> tuple[bool, bool]:
        return have.colour == want.colour, have.shape == want.shape

    pairs: list[tuple[Found, Thing]] = []
    left = list(range(len(wanted)))
    for have in sorted(seen, key=lambda s: -max((sum(fit(s, w)) for w in wanted), default=0)):
        if not left:
            break
        best = max(left, key=lambda j: sum(fit(have, wanted[j])))
        left.remove(best)
        pairs.append((have, wanted[best]))
    share = {
        "background": float(reading.background == scene.background),
        "count": float(len(seen) == len(wanted)),
        "colour": sum(h.colour == w.colour for h, w in pairs) / len(wanted),
        "shape": sum(h.shape == w.shape for h, w in pairs) / len(wanted),
    }
    if scene.relation is not None:
        place = {id(w): h for h, w in pairs}
        one, two = (place.get(id(w)) for w in wanted)
        share["relation"] = float(bool(one and two) and scorer.relation_of(one, two) == scene.relation)
    return share


def alignment(reading: Reading, scene: Scene) -> int:
    """Return prompt alignment from 1 (nothing right) to 10; 10 only where the scorer's strict verdict is
    right.
    """
    if scorer.judge(reading, scene).strict:
        return 10
    share = facts(reading, scene)
    return min(9, 1 + round(9 * sum(share.values()) / len(share)))


# ------------------------------------------------------------------------------------------------------ edits


@dataclass(frozen=True)
class Order:
    """An edit that was asked for: of thing `index` of the source (None: of the background) to `value`."""

    task: str
    index: int | None
    value: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """What an edit did: was it followed, how far (1, 4 or 10), and how many other things did it harm."""

    followed: bool
    degree: int
    harms: int

    @property
    def preserved(self) -> bool:
        """True where nothing but what was asked for changed."""
        return self.harms == 0

    @property
    def preservation(self) -> int:
        """Content preservation from 1 to 10."""
        return max(1, 10 - 3 * self.harms)


def order_of(edit: world.Edit) -> Order:
    """Return an edit of the world as an order."""
    source, target = edit.source, edit.target
    if edit.task == "background":
        return Order(edit.task, None, target.background, edit.instruction)
    if edit.task == "remove":
        index = next(i for i, t in enumerate(source.things) if t not in target.things)
        return Order(edit.task, index, "", edit.instruction)
    pairs = zip(source.things, target.things, strict=True)
    index = next(i for i, (a, b) in enumerate(pairs) if a != b)
    thing = target.things[index]
    return Order(edit.task, index, thing.colour if edit.task == "recolour" else thing.shape, edit.instruction)


def outcome(before: Scene, after: Reading, order: Order) -> Outcome:
    """Judge an edited picture's reading against its source scene and the order.

    An order's own object may change in what was ordered (its colour, or its shape and with it the area; all
    of it where it was to be removed); everything else must be there, in place (within `NEAR`), of the same
    colour, shape and area (within a factor of 1.5), and nothing may have come in addition.
    """
    left = list(after.things)
    harms = 0
    followed, touched = False, False
    partner: dict[int, Found] = {}
    truth = scorer.read_scene(before)
    gaps = sorted(
        (abs(h.x - w.x) + abs(h.y - w.y), i, j)
        for i, w in enumerate(truth)
        for j, h in enumerate(left)
        if abs(h.x - w.x) <= 2 * NEAR and abs(h.y - w.y) <= 2 * NEAR
    )
    used: set[int] = set()
    for _, i, j in gaps:
        if i not in partner and j not in used:
            partner[i] = left[j]
            used.add(j)
    for i, want in enumerate(truth):
        have = partner.get(i)
        target = i == order.index
        if target and order.task == "remove":
            followed, touched = have is None, have is None
            continue
        if have is None:
            harms += 1
            touched |= target
            continue
        near = abs(have.x - want.x) <= NEAR and abs(have.y - want.y) <= NEAR
        slack = 2.6 if target and order.task == "reshape" else 1.5
        size = 1 / slack <= have.area / want.area <= slack
        harms += not (near and size)
        for field in ("colour", "shape"):
            value = getattr(have, field)
            if target and (order.task, field) in (("recolour", "colour"), ("reshape", "shape")):
                followed, touched = value == order.value, value != getattr(want, field)
            else:
                harms += value != getattr(want, field)
    harms += len(after.things) - len(used)
    if order.task == "background":
        followed = after.background == order.value
        touched = after.background != before.background
    else:
        harms += after.background != before.background
    return Outcome(followed, 10 if followed else 4 if touched else 1, harms)


@dataclass(frozen=True)
class Pair:
    """An edited picture: the source scene, both pictures (uint8 [64, 64, 3]), the scorer's reading of the
    result, and orders that could have been given: the one that was meant comes first.
    """

    source: Scene
    before: np.ndarray
    after: np.ndarray
    reading: Reading
    orders: tuple[Order, ...]


def _reference(scene: Scene, index: int, rng: random.Random) -> str:
    thing = scene.things[index]
    alone = sum(other.shape == thing.shape for other in scene.things) == 1
    return f"the {thing.shape}" if alone and rng.random() < 0.65 else f"the {thing.colour} {thing.shape}"


def carry_out(scene: Scene, order: Order) -> Scene:
    """Return the scene after an order."""
    if order.task == "background":
        return replace(scene, background=order.value)
    things = list(scene.things)
    index = order.index or 0
    if order.task == "remove":
        things.pop(index)
        return Scene("one", scene.background, tuple(things))
    field = "colour" if order.task == "recolour" else "shape"
    things[index] = replace(things[index], **{field: order.value})
    return replace(scene, things=tuple(things))


def possible_orders(scene: Scene, rng: random.Random, held_out: bool = False) -> list[Order]:
    """Return every sensible order for a scene whose edit is, or is not, held out of training, in random
    order.
    """
    orders = []
    taken = {t.colour for t in scene.things}
    for value in BACKGROUNDS:
        if value != scene.background and value not in taken:
            verb = rng.choice(("change the background to", "make the background"))
            orders.append(Order("background", None, value, f"{verb} {value}"))
    if scene.kind != "count":
        for i, thing in enumerate(scene.things):
            name = _reference(scene, i, rng)
            for colour in world.free_colours(scene.background):
                if colour != thing.colour:
                    text = rng.choice((f"change {name} to {colour}", f"make {name} {colour}"))
                    orders.append(Order("recolour", i, colour, text))
            for shape in SHAPES:
                if shape != thing.shape:
                    text = rng.choice((f"turn {name} into a {shape}", f"replace {name} with a {shape}"))
                    orders.append(Order("reshape", i, shape, text))
            if len(scene.things) == 2:
                orders.append(Order("remove", i, "", f"remove {name}"))
    rng.shuffle(orders)
    good = []
    for order in orders:
        target = carry_out(scene, order)
        looks = [(t.colour, t.shape) for t in target.things]
        distinct = scene.kind == "count" or len(set(looks)) == len(looks)
        if distinct and world.held_out(world.Edit(order.task, scene, target, "")) is held_out:
            good.append(order)
    return good


def _harm(scene: Scene, rng: random.Random) -> Scene:
    """Return the scene with one more thing changed than was asked for."""
    things = list(scene.things)
    how = rng.choice(("move", "recolour", "recolour", "reshape", "reshape", "resize", "drop", "add", "background"))
    if how == "background" or not things:
        taken = {t.colour for t in things} | {scene.background}
        return replace(scene, background=rng.choice([b for b in BACKGROUNDS if b not in taken]))
    i = rng.randrange(len(things))
    thing = things[i]
    if how == "move":
        angle, far = rng.uniform(0, 6.3), rng.uniform(6, 14)
        things[i] = replace(thing, x=thing.x + far * math.cos(angle), y=thing.y + far * math.sin(angle))
    elif how == "resize":
        things[i] = replace(thing, r=thing.r * rng.choice((0.6, 0.7, 1.3)))
    elif how == "recolour":
        free = [c for c in world.free_colours(scene.background) if c != thing.colour]
        things[i] = replace(thing, colour=rng.choice(free))
    elif how == "reshape":
        things[i] = replace(thing, shape=rng.choice([s for s in SHAPES if s != thing.shape]))
    elif how == "drop":
        things.pop(i)
    else:
        for _ in range(20):
            x, y, r = rng.uniform(9, 55), rng.uniform(9, 55), rng.uniform(5, 10)
            if all(math.hypot(x - t.x, y - t.y) > 1.25 * (r + t.r) for t in things):
                things.append(Thing(rng.choice(world.free_colours(scene.background)), rng.choice(SHAPES), x, y, r))
                break
    return replace(scene, things=tuple(things))


def sample_pair(
    rng: random.Random, number: int = 8, flawed: float = 0.15, damaged: float = 0.08, held_out: bool = False
) -> Pair:
    """Draw a source picture and a more or less well edited one with `number` orders to judge it by."""
    orders: list[Order] = []
    while len(orders) < 2:
        scene = world.sample_scene(rng, rng.choices(world.KINDS, (0.27, 0.6, 0.13))[0])
        orders = possible_orders(scene, rng, held_out)
    # Tasks are asked for equally often, though there are far more recolourings than removals.
    tasks = sorted({o.task for o in orders})
    task = rng.choice(tasks)
    orders.sort(key=lambda o: o.task != task)
    meant = orders[0]
    others = orders[1:]
    rng.shuffle(others)
    target = carry_out(scene, meant)
    luck = rng.random()
    done = target
    if luck < 0.2:
        done = scene
    elif luck < 0.45:
        alike = [o for o in others if o.task == meant.task]
        wrong = rng.choice(alike if alike and rng.random() < 0.7 else others)
        done = carry_out(scene, wrong)
        others = [wrong, *[o for o in others if o is not wrong]]
    if rng.random() < 0.42:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            done = _harm(done, rng)
    if rng.random() < 0.4:
        things = tuple(
            replace(t, x=t.x + rng.gauss(0, 0.8), y=t.y + rng.gauss(0, 0.8), r=t.r * rng.uniform(0.93, 1.07))
            for t in done.things
        )
        done = replace(done, things=things)
    image = render_flawed(done, rng) if rng.random() < flawed else world.render(done)
    if rng.random() < damaged:
        noise = np.random.default_rng(rng.getrandbits(60))
        image = degrade(image, rng.choice(DEGRADATIONS[:5]), rng.uniform(0.0, 0.4), noise, image)
    # The same task with another value or of another thing comes before other tasks.
    others.sort(key=lambda o: o.task != meant.task or rng.random() < 0.35)
    before = np.asarray(world.render(scene))
    return Pair(scene, before, np.asarray(image), scorer.read(image), (meant, *others[: number - 1]))
