"""Measure a generator: the share of strictly right pictures for every kind, background and edit task."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from . import scorer, world
from .generator import Generator


@dataclass
class Figures:
    """Verdicts by group: kinds of scenes, backgrounds of text-to-image pictures, edit tasks."""

    kinds: dict[str, list[scorer.Verdict]] = field(default_factory=dict)
    backgrounds: dict[str, list[scorer.Verdict]] = field(default_factory=dict)
    tasks: dict[str, list[scorer.Verdict]] = field(default_factory=dict)


def share(verdicts: list[scorer.Verdict], what: str = "strict") -> float:
    """Return the share of verdicts in which `what` (a field or "strict") is true."""
    return float(np.mean([getattr(v, what) for v in verdicts]))


def draw_scenes(number: int, seed: int, held_out: bool | None = True) -> list[world.Scene]:
    """Draw `number` scenes of each kind, backgrounds in turn; held out of training, not, or either (None)."""
    rng = random.Random(f"measure {seed}")
    backgrounds = list(world.BACKGROUNDS)
    scenes = []
    for kind in world.KINDS:
        for i in range(number):
            background = backgrounds[i % len(backgrounds)]
            if held_out is None:
                scenes.append(world.sample_scene(rng, kind, background))
                continue
            # A background may have no held-out scene of its own kind; then any background serves.
            for attempt in range(4000):
                scene = world.sample_scene(rng, kind, background if attempt < 1000 else None)
                if world.held_out(scene) is held_out:
                    break
            scenes.append(scene)
    return scenes


def draw_edits(number: int, seed: int, held_out: bool | None = True) -> list[world.Edit]:
    """Draw `number` edits of each task; held out of training, not, or either (None)."""
    rng = random.Random(f"measure edits {seed}")
    edits = []
    for task in world.TASKS:
        for _ in range(number):
            if held_out is None:
                edits.append(world.sample_edit(rng, task))
            else:
                edits.append(world.sample_where(lambda task=task: world.sample_edit(rng, task), held_out))
    return edits


def measure(
    generator: Generator, number: int, seed: int, held_out: bool | None = True, edits: int | None = None
) -> Figures:
    """Make `number` pictures of each kind and `edits` (default `number`) of each task and score them."""
    figures = Figures()
    rng = random.Random(f"measure captions {seed}")
    scenes = draw_scenes(number, seed, held_out)
    captions = [world.sample_caption(s, rng) for s in scenes]
    seeds = [1000 * seed + i for i in range(len(scenes))]
    for scene, picture in zip(scenes, generator.make(captions, seeds), strict=True):
        verdict = scorer.score(picture, scene)
        figures.kinds.setdefault(scene.kind, []).append(verdict)
        figures.backgrounds.setdefault(scene.background, []).append(verdict)
    changes = draw_edits(number if edits is None else edits, seed, held_out)
    if changes:
        sources = [world.render(e.source) for e in changes]
        seeds = [1000 * seed + i for i in range(len(changes))]
        pictures = generator.change(sources, [e.instruction for e in changes], seeds)
        for edit, picture in zip(changes, pictures, strict=True):
            figures.tasks.setdefault(edit.task, []).append(scorer.score(picture, edit.target, places=True))
    return figures


def summary(figures: Figures) -> dict[str, float]:
    """Return every group's strict share, and which parts text-to-image gets right."""
    shares = {}
    for groups in (figures.kinds, figures.backgrounds, figures.tasks):
        # A background can be an edit task's name too.
        shares |= {name: round(share(verdicts), 3) for name, verdicts in groups.items()}
    every = [v for verdicts in figures.kinds.values() for v in verdicts]
    shares |= {f"all {part}": round(share(every, part), 3) for part in ("background", "count", "colours", "shapes")}
    return shares
