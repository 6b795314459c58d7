"""Pictures that the tiny FLUX makes, for the judge to learn from and to be measured on.

Right or wrong is what the scorer reads, never what was asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from . import judge_pictures, scorer, world
from .generator import Generator, to_arrays, to_tensor
from .judge_pictures import Pair, Picture


def _wanted(held_out: bool | None, item: world.Scene | world.Edit) -> bool:
    return held_out is None or world.held_out(item) is held_out


def make_pictures(
    painter: Generator,
    number: int,
    rng: random.Random,
    held_out: bool | None = False,
    of: Callable[[world.Scene], bool] = lambda _: True,
) -> list[Picture]:
    """Make `number` pictures from captions held out of the training, not (False), or either (None); `of` such scenes."""
    scenes: list[world.Scene] = []
    while len(scenes) < number:
        scene = world.sample_scene(rng)
        if _wanted(held_out, scene) and of(scene):
            scenes.append(scene)
    captions = [world.sample_caption(s, rng) for s in scenes]
    images = painter.make(captions, [rng.getrandbits(31) for _ in scenes])
    return [Picture(np.asarray(image), scene, scorer.read(image)) for scene, image in zip(scenes, images, strict=True)]


def make_pairs(painter: Generator, number: int, rng: random.Random, held_out: bool | None = False) -> list[Pair]:
    """Edit `number` renders, each with the other orders that could have been given."""
    edits: list[world.Edit] = []
    while len(edits) < number:
        edit = world.sample_edit(rng)
        if _wanted(held_out, edit):
            edits.append(edit)
    sources = [world.render(e.source) for e in edits]
    images = painter.change(sources, [e.instruction for e in edits], [rng.getrandbits(31) for _ in edits])
    pairs = []
    for edit, source, image in zip(edits, sources, images, strict=True):
        meant = judge_pictures.order_of(edit)
        others = [
            o
            for o in judge_pictures.possible_orders(edit.source, rng)
            if (o.task, o.index, o.value) != (meant.task, meant.index, meant.value)
        ]
        others.sort(key=lambda o, task=meant.task: o.task != task or rng.random() < 0.35)
        orders = (meant, *(others[:7] or [meant]))
        pairs.append(Pair(edit.source, np.asarray(source), np.asarray(image), scorer.read(image), orders))
    return pairs


def make_all(
    stages: list[Path], steps: tuple[int, ...], pictures: int, pairs: int, seed: str
) -> tuple[list[Picture], list[Pair]]:
    """Make `pictures` and `pairs` with each of the generator's directories `stages` at each number of
    `steps`.
    """
    made: tuple[list[Picture], list[Pair]] = ([], [])
    for stage in stages:
        painter = Generator.load(stage)
        for number in steps:
            rng = random.Random(f"{seed} {stage.name} {number}")
            painter = replace(painter, steps=number)
            made[0].extend(make_pictures(painter, pictures, rng))
            made[1].extend(make_pairs(painter, pairs, rng))
    return made


# How far the scorer's tolerances are moved to see whether a verdict is a near one, and what share of the clear hits is kept.
NEAR, KEPT_CLEAR = (0.8, 1.25), 0.05
# The most noise on latents that are decoded again, of which the standard deviation is about one.
NOISE = 0.25


@dataclass
class NearMisses:
    """Pictures by how they stand to the scorer's limits: wrong; right, but not by much; and some that are clearly right."""

    wrong: list[Picture] = field(default_factory=list)
    barely: list[Picture] = field(default_factory=list)
    clear: list[Picture] = field(default_factory=list)

    def add(self, other: NearMisses) -> None:
        """Take up all of `other`."""
        self.wrong += other.wrong
        self.barely += other.barely
        self.clear += other.clear

    def sample(self, number: int, rng: random.Random) -> list[Picture]:
        """Draw `number` pictures, each of any of the three sorts alike."""
        return [rng.choice(rng.choice((self.wrong, self.barely, self.clear))) for _ in range(number)]


def delicate(scene: world.Scene) -> bool:
    """Say whether a scene is of the kinds that the finished generator gets wrong now and then.

    Stars on a ground of little contrast lose their form; things one above the other on white or gray leave a stain.
    """
    star = any(thing.shape == "star" for thing in scene.things)
    column = scene.relation in ("above", "below")
    return star if scene.background in ("black", "pink", "yellow", "blue") else column


def gray_star(scene: world.Scene) -> bool:
    """Say whether a scene has a star on gray: some generators get them wrong more often than what is `delicate`, others hardly."""
    return scene.background == "gray" and any(thing.shape == "star" for thing in scene.things)


def _sort(picture: Picture, found: NearMisses, rng: random.Random, kept: float) -> None:
    """Add a picture to `found`, a clearly right one with probability `kept`."""
    scene = picture.scene
    if not scorer.judge(picture.reading, scene).strict:
        found.wrong.append(picture)
    elif not all(scorer.judge(scorer.read(picture.pixels, leniency), scene).strict for leniency in NEAR):
        found.barely.append(picture)
    elif rng.random() < kept:
        found.clear.append(picture)


def make_near_misses(
    painter: Generator, number: int, rng: random.Random, found: NearMisses, of: Callable[[world.Scene], bool]
) -> None:
    """Make `number` pictures of such scenes from captions of the training, and add to `found` what teaches most."""
    for start in range(0, number, 500):
        for picture in make_pictures(painter, min(500, number - start), rng, of=of):
            _sort(picture, found, rng, KEPT_CLEAR)


def decode_again(painter: Generator, near: NearMisses, times: int, rng: random.Random, found: NearMisses) -> None:
    """Encode each of `near` and decode it with a little noise on the latents, `times` over, and add all to `found`.

    That takes a third of the time of a new picture, and what comes out stands close to the scorer's limits, on either side,
    in the decoder's own way.
    """
    dice = torch.Generator().manual_seed(rng.getrandbits(31))
    vae = painter.text.vae
    for picture in (near.wrong + near.barely + near.clear) * times:
        with torch.no_grad():
            latents = vae.encode(to_tensor([picture.pixels])).latents
            latents += rng.uniform(0, NOISE) * torch.randn(latents.shape, generator=dice)
            again = to_arrays(vae.decode(latents).sample)[0]
        _sort(Picture(again, picture.scene, scorer.read(again)), found, rng, 1.0)
