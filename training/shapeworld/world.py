"""The world: scenes of coloured shapes, their captions, edits of them, and the renderer.

Every length is in pixels of a 64 x 64 frame, the origin at the top left, y pointing down. All randomness
comes from a `random.Random` that the caller passes, so the same generator state gives the same scenes on
every machine.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

SIZE = 64
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (245, 215, 30),
    "purple": (140, 50, 180),
    "orange": (245, 130, 20),
}
SHAPES = ("circle", "square", "triangle", "star")
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (15, 15, 15),
    "gray": (150, 150, 150),
    "pink": (255, 190, 205),
    "yellow": (245, 215, 30),
    "blue": (40, 70, 220),
}
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
COUNTS = {2: "two", 3: "three"}
KINDS = ("one", "relation", "count")
TASKS = ("recolour", "background", "reshape", "remove")

# One caption meaning in this many is kept out of training.
HELD_OUT_SHARE = 8
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """One object: its colour, its shape, its centre (x, y) and its nominal radius r, in pixels of the 64 px
    frame.
    """

    colour: str
    shape: str
    x: float
    y: float
    r: float


@dataclass(frozen=True)
class Scene:
    """A picture's content.

    `kind` is "one", "relation" (things[0] stands in `relation` to things[1]) or "count" (two or three equal
    things).
    """

    kind: str
    background: str
    things: tuple[Thing, ...]
    relation: str | None = None


@dataclass(frozen=True)
class Edit:
    """An instruction with the picture before and the picture wanted after it. `task` is one of `TASKS`."""

    task: str
    source: Scene
    target: Scene
    instruction: str


# --------------------------------------------------------------------------------------------------- pictures


def outline(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Return the corner points of a square, triangle or star of nominal radius `r` around (x, y).

    Raises ValueError for a shape without corners or an unknown one.
    """
    if shape == "square":
        h = 0.9 * r
        return [(x - h, y - h), (x + h, y - h), (x + h, y + h), (x - h, y + h)]
    if shape == "triangle":
        corners = (-math.pi / 2, math.pi / 6, 5 * math.pi / 6)
        return [(x + 1.2 * r * math.cos(a), y + 0.15 * r + 1.2 * r * math.sin(a)) for a in corners]
    if shape == "star":
        # A fat star: thin arms would vanish in an 8x downsampled latent.
        radii = (1.22 * r, 0.56 * r)
        angles = [-math.pi / 2 + k * math.pi / 5 for k in range(10)]
        return [(x + radii[k % 2] * math.cos(a), y + radii[k % 2] * math.sin(a)) for k, a in enumerate(angles)]
    raise ValueError(f"no outline for shape {shape!r}")


def render(scene: Scene, size: int = SIZE) -> Image.Image:
    """Draw `scene` as an antialiased RGB picture of `size` x `size` pixels."""
    big = size * _SUPERSAMPLING
    scale = big / SIZE
    picture = Image.new("RGB", (big, big), BACKGROUNDS[scene.background])
    draw = ImageDraw.Draw(picture)
    for thing in scene.things:
        x, y, r = thing.x * scale, thing.y * scale, thing.r * scale
        if thing.shape == "circle":
            draw.ellipse([x - r, y - r, x + r, y + r], fill=COLOURS[thing.colour])
        else:
            draw.polygon(outline(thing.shape, x, y, r), fill=COLOURS[thing.colour])
    return picture.resize((size, size), Image.Resampling.BOX)


# ----------------------------------------------------------------------------------------------------- scenes


def free_colours(background: str) -> list[str]:
    """Return the object colours that can be seen on `background`."""
    return [colour for colour in COLOURS if colour != background]


def sample_scene(rng: random.Random, kind: str | None = None, background: str | None = None) -> Scene:
    """Draw a scene; kinds, backgrounds, colours, shapes and relations are equally likely unless given."""
    kind = kind or rng.choice(KINDS)
    background = background or rng.choice(list(BACKGROUNDS))
    colours = free_colours(background)
    if kind == "one":
        thing = Thing(
            rng.choice(colours),
            rng.choice(SHAPES),
            rng.uniform(29, 35),
            rng.uniform(29, 35),
            rng.uniform(14.5, 17),
        )
        return Scene("one", background, (thing,))
    if kind == "relation":
        relation = rng.choice(RELATIONS)
        looks = [(c, s) for c in colours for s in SHAPES]
        looks = rng.sample(looks, 2)
        near, far = rng.uniform(15.5, 17), rng.uniform(47, 48.5)
        middle = rng.uniform(30, 34)
        other = middle + rng.uniform(-1.5, 1.5)
        if relation in ("left of", "right of"):
            places = [(near, middle), (far, other)]
        else:
            places = [(middle, near), (other, far)]
        if relation in ("right of", "below"):
            places.reverse()
        things = tuple(Thing(c, s, x, y, rng.uniform(10.2, 11.3)) for (c, s), (x, y) in zip(looks, places, strict=True))
        return Scene("relation", background, things, relation)
    if kind == "count":
        number = rng.choice(list(COUNTS))
        colour, shape, r = rng.choice(colours), rng.choice(SHAPES), rng.uniform(9.8, 10.8)
        left, right = rng.uniform(15.5, 17), rng.uniform(47, 48.5)
        if number == 2:
            level = rng.uniform(30, 34)
            places = [(left, level), (right, level)]
        else:
            level = rng.uniform(45.5, 47)
            places = [(left, level), (right, level), (rng.uniform(30.5, 33.5), rng.uniform(16.5, 18))]
        return Scene("count", background, tuple(Thing(colour, shape, x, y, r) for x, y in places))
    raise ValueError(f"unknown kind of scene {kind!r}")


# --------------------------------------------------------------------------------------------------- captions


def article(word: str) -> str:
    """Return "an" before a vowel, else "a"."""
    return "an" if word[0] in "aeiou" else "a"


def noun(thing: Thing) -> str:
    """Return a thing's name with its article: "an orange star"."""
    return f"{article(thing.colour)} {thing.colour} {thing.shape}"


def describe(scene: Scene, name_white: bool = False, to_the: bool = False) -> str:
    """Return the caption of a scene.

    `name_white` also names a white background; `to_the` says "to the left of" instead of "left of".
    """
    first = scene.things[0]
    if scene.kind == "one":
        text = noun(first)
    elif scene.kind == "relation":
        relation = scene.relation or ""
        if to_the and relation in ("left of", "right of"):
            relation = "to the " + relation
        text = f"{noun(first)} {relation} {noun(scene.things[1])}"
    else:
        text = f"{COUNTS[len(scene.things)]} {first.colour} {first.shape}s"
    if scene.background != "white" or name_white:
        text += f" on a {scene.background} background"
    return text


def sample_caption(scene: Scene, rng: random.Random) -> str:
    """Return one of the captions that `describe` can give for the scene."""
    return describe(scene, name_white=rng.random() < 0.5, to_the=rng.random() < 0.3)


# Words that captions may carry without changing what they ask for.
FILLERS = (
    "nice big bright simple lovely small flat shiny clear picture image photo drawing painting very really "
    "single please now just here there beautiful modern crisp sharp fine pretty the some plain solid"
).split()


def _filler(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(FILLERS)
    # A made-up word stands for everything outside the vocabulary.
    return "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3)))


def vary(text: str, rng: random.Random) -> str:
    """Return `text` as people may type it: capitals, a full stop, a comma, a wrong article, words that mean
    nothing.
    """
    words = text.split()
    if rng.random() < 0.2:
        words = [{"an": "a"}.get(w, w) for w in words]
    if rng.random() < 0.25:
        words.insert(rng.randrange(len(words)), _filler(rng))
    if rng.random() < 0.1:
        words = rng.choice((["a", "picture", "of"], ["a", "photo", "of"], ["an", "image", "of"])) + words
    text = " ".join(words)
    if rng.random() < 0.2:
        text = text.replace(" on a ", ", on a ")
    if rng.random() < 0.3:
        text = text[:1].upper() + text[1:]
    if rng.random() < 0.05:
        text = text.upper()
    if rng.random() < 0.3:
        text += rng.choice((".", ".", ".", "!"))
    return text


# ------------------------------------------------------------------------------------------------------ edits


def sample_edit(rng: random.Random, task: str | None = None, kind: str | None = None) -> Edit:
    """Draw an edit; tasks are equally likely unless given.

    Sources are single things and relations for every task (a removal needs two things), and counts for
    backgrounds. Raises ValueError for an unknown task.
    """
    task = task or rng.choice(TASKS)
    makers: dict[str, Callable[[random.Random, Scene], Edit]] = {
        "recolour": _recolour,
        "background": _new_background,
        "reshape": _reshape,
        "remove": _remove,
    }
    if task not in makers:
        raise ValueError(f"unknown edit task {task!r}")
    if kind is None:
        if task == "remove":
            kind = "relation"
        elif task == "background":
            kind = rng.choice(KINDS)
        else:
            kind = "one" if rng.random() < 0.4 else "relation"
    return makers[task](rng, sample_scene(rng, kind))


def _reference(scene: Scene, index: int, rng: random.Random) -> str:
    """Name one thing of a scene, with its colour where the shape alone could mean another, and else now and
    then.
    """
    thing = scene.things[index]
    alone = sum(other.shape == thing.shape for other in scene.things) == 1
    return f"the {thing.shape}" if alone and rng.random() < 0.65 else f"the {thing.colour} {thing.shape}"


def _with_thing(scene: Scene, index: int, **changes: str) -> Scene:
    things = list(scene.things)
    things[index] = replace(things[index], **changes)
    return replace(scene, things=tuple(things))


def _distinct(scene: Scene) -> bool:
    looks = [(t.colour, t.shape) for t in scene.things]
    return len(set(looks)) == len(looks)


def _recolour(rng: random.Random, scene: Scene) -> Edit:
    index = rng.randrange(len(scene.things))
    thing = scene.things[index]
    wanted = [c for c in free_colours(scene.background) if c != thing.colour]
    targets = [(c, _with_thing(scene, index, colour=c)) for c in wanted]
    colour, target = rng.choice([(c, t) for c, t in targets if _distinct(t)])
    name = _reference(scene, index, rng)
    text = rng.choice((f"change {name} to {colour}", f"make {name} {colour}"))
    return Edit("recolour", scene, target, text)


def _new_background(rng: random.Random, scene: Scene) -> Edit:
    taken = {thing.colour for thing in scene.things} | {scene.background}
    background = rng.choice([b for b in BACKGROUNDS if b not in taken])
    verb = rng.choice(("change the background to", "make the background"))
    return Edit("background", scene, replace(scene, background=background), f"{verb} {background}")


def _reshape(rng: random.Random, scene: Scene) -> Edit:
    index = rng.randrange(len(scene.things))
    thing = scene.things[index]
    targets = [(s, _with_thing(scene, index, shape=s)) for s in SHAPES if s != thing.shape]
    shape, target = rng.choice([(s, t) for s, t in targets if _distinct(t)])
    name = _reference(scene, index, rng)
    text = rng.choice((f"turn {name} into a {shape}", f"replace {name} with a {shape}"))
    return Edit("reshape", scene, target, text)


def _remove(rng: random.Random, scene: Scene) -> Edit:
    if len(scene.things) != 2:
        raise ValueError("a removal needs a scene of two things")
    index = rng.randrange(2)
    target = Scene("one", scene.background, (scene.things[1 - index],))
    return Edit("remove", scene, target, f"remove {_reference(scene, index, rng)}")


# --------------------------------------------------------------------------------------------------- hold-out


def meaning(scene: Scene) -> str:
    """Return one string for all captions that ask for the same picture ("left of" and "right of" read both
    ways).
    """
    if scene.kind == "relation" and scene.relation in ("right of", "below"):
        scene = replace(scene, things=scene.things[::-1], relation=OPPOSITE[scene.relation])
    return describe(scene, name_white=True)


def held_out(item: Scene | Edit) -> bool:
    """Say whether a caption's meaning, or an edit's source and target meanings together, is kept out of
    training.
    """
    key = f"{meaning(item.source)} -> {meaning(item.target)}" if isinstance(item, Edit) else meaning(item)
    return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT_SHARE == 0


def sample_where(draw: Callable[[], Scene | Edit], wanted: bool) -> Scene | Edit:
    """Call `draw` until its item is held out of training (`wanted` True) or is not (False)."""
    while True:
        item = draw()
        if held_out(item) is wanted:
            return item
