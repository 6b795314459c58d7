"""Train the tiny judge from nothing.

python training/train_judge.py --out resources/models/shapes-judge

Stages, each of a fixed number of steps: the vision tower alone on throw-away heads, which name what is in
every part of a picture; all questions together on pictures of the world; and then also on pictures that the
tiny FLUX makes. Each step's data come from (seed, stage, step) alone, and a checkpoint is written now and
then, so a run that was stopped goes on where it was and ends with the same weights.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shapeworld import judge_generated, judge_model, judge_pictures, judge_questions, scorer, training, world
from shapeworld.judge_generated import NearMisses
from shapeworld.judge_model import BatchedForward
from shapeworld.judge_pictures import Pair, Picture
from shapeworld.scorer import Reading

SEED = 31
PICTURES, PAIRS = 30_000, 20_000
VISION_STEPS, VISION_BATCH = 1000, 64
LANGUAGE_STEPS, LANGUAGE_PICTURES, LANGUAGE_PAIRS = 1400, 12, 6
# Edits come later: to compare two pictures one must be able to read one.
PAIRS_FROM = 300
EDITS_STEPS, EDITS_PICTURES, EDITS_PAIRS = 1900, 8, 10
# The last stage: half of each batch is made by the generator as it was after these steps of its own training
# (its script keeps them; `make train-generator-early` goes to the last), with these numbers of denoising steps; so many
# pictures and edits with each.
GENERATED_STEPS, GENERATED_PICTURES, GENERATED_PAIRS = 2000, 10, 8
GENERATOR_STAGES, DENOISING_STEPS = (1600, 2400, 3200), (2, 4, 12)
MADE_PICTURES, MADE_PAIRS = 220, 140
# And a last one, at a lower rate, on what was weak: pictures by the nearly finished generator, of which the few wrong ones
# come more often; damaged pictures, whose quality weighs more; wrong relations of all kinds, those along the other axis
# above all; more paraphrases.
POLISH_STEPS, POLISH_RATE, POLISH_STAGES, POLISH_PICTURES, POLISH_PAIRS = 1000, 0.4, (4000, 9000), 400, 300
POLISH_PARAPHRASED, POLISH_RELATIONS, POLISH_CROSSED, POLISH_QUALITY, POLISH_WRONG = 0.55, 0.5, 0.4, 3.0, 6
# Last of all, the quality of damaged pictures, at a low rate, with some of all else so that nothing is forgotten.
QUALITY_STEPS, QUALITY_RATE, QUALITY_PICTURES, QUALITY_PAIRS, QUALITY_WEIGHT = 450, 0.3, 20, 6, 4.0
# And near misses: of so many pictures by the finished generator at these numbers of denoising steps those that are wrong or
# barely right, the same decoded again so many times, and stained ones. In a step so many of the first, of the second, of
# stained ones, of the world's own, and edits.
NEAR_STEPS, NEAR_RATE, NEAR_STAGE, NEAR_PARAPHRASED = 900, 0.4, 9000, 0.65
NEAR_DRAWN, NEAR_AGAIN = {3: 8400, 4: 17_600, 6: 12_000, 12: 9000}, 3
# And so many of a kind that only some generators get wrong.
NEAR_GRAY = {3: 2000, 4: 3000, 6: 2000, 12: 2000}
NEAR_PICTURES, NEAR_DECODED, NEAR_STAINED, NEAR_OTHERS, NEAR_PAIRS = 5, 5, 2, 5, 5
# At the very end ratings of damaged pictures again, with near misses of both sorts and, every third step, edits.
FINISH_STEPS, FINISH_RATE, FINISH_NEAR = 600, 0.3, 3
QUESTIONS = {"captions": 5, "practice": 2, "orders": 5}
# The share of questions in other words than the rubrics', and before this step of the language stage.
PARAPHRASED, PARAPHRASED_EARLY, PARAPHRASED_FROM = 0.4, 0.1, 900
# How much the hints weigh: is the prompt true so far, and which parts of the answer hold.
HINTS = {"words": 3.0, "aspects": 2.0}
MUON_RATE, ADAM_RATE = 4e-3, 2e-3
# In stages after the first, the vision tower learns more slowly than the rest.
VISION_SHARE = 0.35
# The share of a stage at the end over which the learning rate falls to zero. In those between it stays.
DECAY = {
    "vision": 0.4,
    "language": 0.0,
    "edits": 0.0,
    "generated": 1.0,
    "polish": 1.0,
    "quality": 1.0,
    "near": 1.0,
    "finish": 1.0,
}
# The share of the full rate at which a stage starts, where it is not all of it.
RATES = {"polish": POLISH_RATE, "quality": QUALITY_RATE, "near": NEAR_RATE, "finish": FINISH_RATE}
SAVE_SECONDS = 90


# ------------------------------------------------------------------------------------------- throw-away heads

_COLOUR_LIST, _BACKGROUND_LIST = list(world.COLOURS), list(world.BACKGROUNDS)
_ODD_COLOUR, _NO_COLOUR = len(_COLOUR_LIST), len(_COLOUR_LIST) + 1
_ODD_SHAPE, _NO_SHAPE = len(world.SHAPES), len(world.SHAPES) + 1
CELL_HEADS = {
    "colour": _NO_COLOUR + 1,
    "shape": _NO_SHAPE + 1,
    "place": 5,
    "mate_colour": 8,
    "mate_shape": 6,
    "ground": len(_BACKGROUND_LIST) + 1,
}
PICTURE_HEADS = {"background": len(_BACKGROUND_LIST) + 1, "count": 5, "damage": 7, "quality": 10}
CHANGES = ("none", "colour", "shape", "both", "appeared", "vanished", "moved", "resized")
IGNORE = -100


class Heads(nn.Module):
    """Linear readers of image tokens, used in training only.

    Per image token: colour and shape of the object there (or none, or none of the world's), where exactly it
    lies and how large it is, the background around it, and, in pictures of two, how it stands to its mate and
    what that is. Per picture: background, count, damage, quality. And, in the language model at the second of
    two pictures, what the first has in the same place.
    """

    def __init__(self) -> None:
        super().__init__()
        width = judge_model.WIDTH
        self.cells = nn.ModuleDict({k: nn.Linear(width, n) for k, n in CELL_HEADS.items()})
        self.pictures = nn.ModuleDict({k: nn.Linear(width, n) for k, n in PICTURE_HEADS.items()})
        self.geometry = nn.Linear(width, 3)
        # Before the language model's last layer: is the prompt true so far, and which parts of the answer
        # hold.
        self.words = nn.Linear(width, 1)
        self.aspects = nn.ModuleDict({k: nn.Linear(width, len(v)) for k, v in judge_questions.ASPECTS.items()})
        self.before = nn.ModuleDict({k: nn.Linear(width, CELL_HEADS[k]) for k in ("colour", "shape")})
        self.before_geometry = nn.Linear(width, 3)
        self.changes = nn.Linear(width, len(CHANGES))


def _background_class(reading: Reading) -> int:
    return _BACKGROUND_LIST.index(reading.background) if reading.background else len(_BACKGROUND_LIST)


def cell_targets(reading: Reading) -> dict[str, np.ndarray]:
    """Return each of the 16 image tokens' classes of `CELL_HEADS`, `IGNORE` where they are not clear.

    And, as "geometry", the object's centre from the token's and its size, float32 [16, 3], nan where none is.
    """
    side = int(judge_model.IMAGE_TOKENS**0.5)
    cell = world.SIZE / side
    targets = {k: np.full(side * side, IGNORE, np.int64) for k in CELL_HEADS}
    targets["ground"][:] = _background_class(reading)
    targets["geometry"] = np.full((side * side, 3), np.nan, np.float32)
    if len(reading.things) > 5:  # noise
        return targets
    targets["colour"][:] = _NO_COLOUR
    targets["shape"][:] = _NO_SHAPE
    things = sorted(reading.things, key=lambda t: t.area)
    for index, thing in enumerate(things):
        reach = 0.6 if thing.area > 120 else 0.5
        for i in range(side * side):
            gap = max(abs(thing.x / cell - (i % side + 0.5)), abs(thing.y / cell - (i // side + 0.5)))
            if gap < reach:
                targets["colour"][i] = _COLOUR_LIST.index(thing.colour) if thing.colour else _ODD_COLOUR
                targets["shape"][i] = world.SHAPES.index(thing.shape) if thing.shape else _ODD_SHAPE
                offsets = thing.x / cell - (i % side + 0.5), thing.y / cell - (i // side + 0.5)
                targets["geometry"][i] = (*offsets, thing.area**0.5 / cell)
                if len(things) == 2:
                    mate = things[1 - index]
                    targets["place"][i] = world.RELATIONS.index(scorer.relation_of(thing, mate))
                    targets["mate_colour"][i] = _COLOUR_LIST.index(mate.colour) if mate.colour else _ODD_COLOUR
                    targets["mate_shape"][i] = world.SHAPES.index(mate.shape) if mate.shape else _ODD_SHAPE
                elif len(things) == 1:
                    targets["place"][i] = len(world.RELATIONS)
                    targets["mate_colour"][i], targets["mate_shape"][i] = _NO_COLOUR, _NO_SHAPE
            elif gap < 0.8 and targets["colour"][i] == _NO_COLOUR:
                targets["colour"][i] = targets["shape"][i] = IGNORE
    return targets


def picture_targets(picture: Picture) -> dict[str, int]:
    """Return the classes of `PICTURE_HEADS` for a picture."""
    damage = picture.degradation
    return {
        "background": _background_class(picture.reading),
        "count": min(4, len(picture.reading.things)),
        "damage": 1 + judge_pictures.DEGRADATIONS.index(damage) if damage else 0 if picture.quality else IGNORE,
        "quality": picture.quality - 1 if picture.quality else IGNORE,
    }


def _cell_loss(logits: torch.Tensor, target: torch.Tensor, nothing: int) -> torch.Tensor:
    """Cross-entropy in which the few cells with an object weigh as much as the many without."""
    total = logits.new_zeros(())
    for chosen in ((target >= 0) & (target != nothing), target == nothing):
        if chosen.any():
            total = total + F.cross_entropy(logits[chosen], target[chosen])
    return total


def _geometry_loss(guess: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute error where there is an object, in image tokens."""
    known = ~target.isnan().any(-1)
    return (guess[known] - target[known]).abs().mean() if known.any() else guess.new_zeros(())


def _stack(targets: list[dict], name: str) -> torch.Tensor:
    return torch.from_numpy(np.stack([t[name] for t in targets]))


def heads_loss(heads: Heads, tokens: torch.Tensor, pictures: list[Picture]) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the throw-away heads' loss on image tokens [n, 16, width], and some accuracies."""
    cells = [cell_targets(p.reading) for p in pictures]
    whole = [picture_targets(p) for p in pictures]
    total, seen = tokens.new_zeros(()), {}
    for name, head in heads.cells.items():
        logits, target = head(tokens).flatten(0, 1), _stack(cells, name).flatten()
        nothing = {"colour": _NO_COLOUR, "shape": _NO_SHAPE}.get(name)
        if nothing is None:
            if (target >= 0).any():
                total = total + 0.5 * F.cross_entropy(logits, target, ignore_index=IGNORE)
            chosen = target >= 0
        else:
            total = total + _cell_loss(logits, target, nothing)
            chosen = (target >= 0) & (target != nothing)
        seen[name] = float((logits.argmax(-1) == target)[chosen].float().mean())
    geometry = _geometry_loss(heads.geometry(tokens), _stack(cells, "geometry"))
    total, seen["geometry"] = total + 3 * geometry, geometry.item()
    middle = tokens.mean(1)
    for name, head in heads.pictures.items():
        target = torch.tensor([t[name] for t in whole])
        logits = head(middle)
        if (target != IGNORE).any():  # the mean of nothing is not a number
            total = total + 0.5 * F.cross_entropy(logits, target, ignore_index=IGNORE)
        seen[name] = float((logits.argmax(-1) == target).float().mean())
    return total, seen


def change_targets(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> np.ndarray:
    """Return for each image token the index into `CHANGES` of what happened, from two `cell_targets`."""
    target = np.full(judge_model.IMAGE_TOKENS, IGNORE, np.int64)
    known = (before["colour"] != IGNORE) & (after["colour"] != IGNORE)
    was, now = before["colour"] != _NO_COLOUR, after["colour"] != _NO_COLOUR
    differs = (before["colour"] != after["colour"]) + 2 * (before["shape"] != after["shape"])
    target[known & was & now] = differs[known & was & now]
    side = world.SIZE / judge_model.IMAGE_TOKENS**0.5
    with np.errstate(invalid="ignore"):
        moves = np.abs(before["geometry"] - after["geometry"])[:, :2].max(-1) * side > judge_pictures.NEAR
        growth = (after["geometry"][:, 2] / before["geometry"][:, 2]) ** 2
        sizes = (growth > 1.5) | (growth < 1 / 1.5)
    same = known & was & now & (differs == 0)
    target[same & sizes] = CHANGES.index("resized")
    target[same & moves] = CHANGES.index("moved")
    target[known & ~was & ~now] = CHANGES.index("none")
    target[known & ~was & now] = CHANGES.index("appeared")
    target[known & was & ~now] = CHANGES.index("vanished")
    return target


def comparison_loss(
    heads: Heads, states: torch.Tensor, pairs: list[Pair], changes: bool
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss of reading, at the second picture's places [n, 16, width], what the first has there.

    With `changes` also of what happened there. And some accuracies.
    """
    cells = [cell_targets(Reading(p.source.background, scorer.read_scene(p.source))) for p in pairs]
    total, right = states.new_zeros(()), 0.0
    for name, head in heads.before.items():
        logits, target = head(states).flatten(0, 1), _stack(cells, name).flatten()
        nothing = {"colour": _NO_COLOUR, "shape": _NO_SHAPE}[name]
        total = total + _cell_loss(logits, target, nothing)
        chosen = (target >= 0) & (target != nothing)
        right += float((logits.argmax(-1) == target)[chosen].float().mean()) / 2
    total = total + 3 * _geometry_loss(heads.before_geometry(states), _stack(cells, "geometry"))
    seen = {"before": right}
    if changes:
        pairs_of_cells = zip(cells, [cell_targets(p.reading) for p in pairs], strict=True)
        target = torch.from_numpy(np.stack([change_targets(a, b) for a, b in pairs_of_cells])).flatten()
        logits = heads.changes(states).flatten(0, 1)
        total = total + _cell_loss(logits, target, CHANGES.index("none"))
        chosen = target > 0
        if chosen.any():
            seen["changes"] = float((logits.argmax(-1) == target)[chosen].float().mean())
    return total, seen


# --------------------------------------------------------------------------------------------------- training


class Student:
    """The model in training, with its loosely tied embeddings, throw-away heads and optimizers."""

    def __init__(self) -> None:
        torch.manual_seed(SEED)
        self.processor = judge_model.make_processor()
        tokenizer = self.processor.tokenizer
        self.model = judge_model.make_model(tokenizer)
        self.forward = BatchedForward(self.model)
        self.encoder = judge_questions.Encoder(tokenizer)
        self.heads = Heads()
        table = self.model.model.language_model.embed_tokens.weight
        self.roots = torch.arange(len(table))
        roots = judge_model.word_roots(tokenizer)
        self.roots[: len(roots)] = roots
        # A word's embedding is its root's plus an offset of its own.
        self.offsets = nn.Parameter(torch.zeros_like(table))

    def table(self) -> torch.Tensor:
        """Return the embeddings [vocabulary, width] as the saved model will have them."""
        return self.model.model.language_model.embed_tokens.weight[self.roots] + self.offsets

    def parameters(self, stage: str) -> list[tuple[str, nn.Parameter]]:
        """Return the named parameters that a stage trains."""
        vision_only = stage == "vision"
        unused = () if stage not in ("vision", "language") else ("changes",)
        if vision_only:
            unused += ("words", "aspects", "before")
        named = [("model." + n, p) for n, p in self.model.named_parameters() if "visual" in n or not vision_only]
        named += [("heads." + n, p) for n, p in self.heads.named_parameters() if not n.startswith(unused)]
        return named if vision_only else [*named, ("offsets", self.offsets)]

    def optimizers(self, stage: str) -> list[torch.optim.Optimizer]:
        """Return Muon for the matrices and AdamW for embeddings, heads, biases and norms."""
        named = self.parameters(stage)
        # The merger's matrices are so large that making their updates orthogonal would take half of a step.
        plain = ("embed_tokens", "heads.", "offsets", "patch_embed", "merger")
        muon: dict[bool, list] = {True: [], False: []}
        adam: dict[tuple[bool, bool], list] = {(a, b): [] for a in (True, False) for b in (True, False)}
        for name, parameter in named:
            visual = "visual" in name or name.startswith("heads.")
            if parameter.dim() == 2 and not any(p in name for p in plain):
                muon[visual].append(parameter)
            else:
                adam[visual, parameter.dim() > 1].append(parameter)
        share = {True: 1.0 if stage == "vision" else VISION_SHARE, False: 1.0}
        result: list[torch.optim.Optimizer] = [
            training.Muon([{"params": p, "lr": MUON_RATE * share[v]} for v, p in muon.items() if p]),
            torch.optim.AdamW(
                [
                    {"params": p, "lr": ADAM_RATE * share[v], "weight_decay": 0.05 if matrix else 0.0}
                    for (v, matrix), p in adam.items()
                    if p
                ],
                betas=(0.9, 0.98),
                fused=True,
            ),
        ]
        for optimizer in result:
            for group in optimizer.param_groups:
                group["full"] = group["lr"]
        return result

    def state(self) -> dict:
        """Return everything that a checkpoint keeps apart from the optimizers."""
        return {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "offsets": self.offsets.detach().clone(),
        }

    def load(self, state: dict) -> None:
        """Take up a state that `state` returned."""
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"], strict=False)
        self.offsets.data.copy_(state["offsets"])

    @torch.no_grad()
    def save(self, out: Path) -> None:
        """Write the checkpoint directory, with the ties between embeddings resolved."""
        embedding = self.model.model.language_model.embed_tokens
        kept = embedding.weight.data.clone()
        embedding.weight.data.copy_(self.table())
        judge_model.save(self.model, self.processor, out)
        embedding.weight.data.copy_(kept)


def _pixels(pictures: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures))


def _reply_loss(
    student: Student,
    tokens: torch.Tensor,
    rows: list[list[judge_questions.Example]],
    table: torch.Tensor,
    about: str,
) -> tuple[torch.Tensor, dict[str, float], list[torch.Tensor]]:
    """Return the loss per picture of replies and hints, the mean loss of the main tokens by kind, and `seen`.

    `about` is "picture" or "edit".
    """
    groups = student.encoder.pack(rows)
    states, seen, late = student.forward.answer(
        tokens, student.encoder.head, [(g.ids, g.read, g.owner) for g in groups], table
    )
    labels = torch.cat([g.labels for g in groups])
    weights = torch.cat([g.weights for g in groups])
    losses = F.cross_entropy(torch.cat(states) @ table.T, labels, reduction="none")
    total = (losses * weights).sum() / len(tokens)
    kinds = np.concatenate([g.kinds for g in groups])
    main = losses.detach().numpy()
    heavy = weights.numpy() >= 0.6
    means = {k: float(main[heavy & (kinds == k)].mean()) for k in sorted(set(kinds[heavy].tolist()))}

    at = [h[g.aspect_places[:, 0], g.aspect_places[:, 1]] for h, g in zip(late, groups, strict=True)]
    wanted = torch.cat([g.aspect_labels for g in groups if len(g.aspect_labels)])
    aspects = F.binary_cross_entropy_with_logits(student.heads.aspects[about](torch.cat(at)), wanted)
    total = total + HINTS["aspects"] * aspects
    means["aspects"] = aspects.item()
    at = [h[g.word_places[:, 0], g.word_places[:, 1]] for h, g in zip(late, groups, strict=True)]
    wanted = torch.cat([g.word_labels for g in groups])
    if len(wanted):
        words = F.binary_cross_entropy_with_logits(student.heads.words(torch.cat(at))[:, 0], wanted)
        total = total + HINTS["words"] * words
        means["words"] = words.item()
    return total, means, seen


def picture_step(
    student: Student,
    pictures: list[Picture],
    rng: random.Random,
    rubrics: dict,
    table: torch.Tensor,
    other: float,
    relations: float = 0.15,
    crossed: float = 0.0,
    quality: float = 1.0,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss of one step's questions on single pictures.

    `relations`, `crossed`: see `judge_questions.caption_set`; `quality`: the weight of the rating of visual quality.
    """
    rows = []
    for picture in pictures:
        row = []
        own = 2 if picture.quality is None else 0  # made by the generator: mostly ask for what it was asked for
        asked = judge_questions.caption_set(picture, QUESTIONS["captions"], rng, own, relations, crossed)
        for scene, right in asked + judge_questions.background_set(picture, rng):
            row.append(judge_questions.caption_question(picture, scene, right, rng, other, rubrics))
        row += judge_questions.practice(picture, QUESTIONS["practice"], rng)
        scene = picture.scene
        while rng.random() < 0.55 or world.held_out(scene):
            scene = judge_questions.spoiled(scene, rng)
        row.append(judge_questions.picture_rating(picture, scene, rng, other, rubrics, quality))
        rows.append(row)
    tokens = student.forward.see(_pixels([p.pixels for p in pictures]))
    total, means, _ = _reply_loss(student, tokens, rows, table, "picture")
    aside, _ = heads_loss(student.heads, tokens, pictures)
    return total + 0.15 * aside, means


def pair_step(
    student: Student,
    pairs: list[Pair],
    rng: random.Random,
    rubrics: dict,
    table: torch.Tensor,
    other: float,
    changes: bool = True,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss of one step's questions on edits."""
    rows = [judge_questions.edit_examples(p, QUESTIONS["orders"], rng, other, rubrics) for p in pairs]
    tokens = student.forward.see(_pixels([x for p in pairs for x in (p.before, p.after)]))
    tokens = tokens.view(len(pairs), -1, judge_model.WIDTH)
    total, means, seen = _reply_loss(student, tokens, rows, table, "edit")
    # The second picture's tokens end one before the end of the prefix. What changed should be known two
    # layers before the last, so that the question can still ask for it.
    second = seen[-2 if changes else -1][:, -1 - judge_model.IMAGE_TOKENS : -1]
    aside, figures = comparison_loss(student.heads, second, pairs, changes)
    return total + 0.3 * aside, means | figures


class Stage:
    """A stage in progress: learning rates, optimizer steps, checkpoints, and figures now and then."""

    def __init__(self, name: str, steps: int, student: Student, build: Path) -> None:
        self.name, self.steps, self.student = name, steps, student
        self.path = build / f"{name}.pt"
        self.clipped = [p for _, p in student.parameters(name)]
        self.optimizers = student.optimizers(name)
        self.first = 0
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            student.load(state)
            self.first = state["step"]
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
        self.saved, self.began = time.monotonic(), time.process_time()
        self.means: dict[str, float] = {}

    def update(self, step: int, loss: torch.Tensor, figures: dict[str, float]) -> None:
        """Take one optimizer step."""
        decay = DECAY[self.name] * self.steps
        rate = min(1.0, (step + 1) / 50, (self.steps - step) / decay if decay else 1.0)
        rate *= RATES.get(self.name, 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["full"] * rate
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.clipped, 5.0)
        for optimizer in self.optimizers:
            optimizer.step()
        for key, value in {"loss": loss.item(), **figures}.items():
            if value == value:
                self.means[key] = 0.97 * self.means.get(key, value) + 0.03 * value
        done = step + 1
        if done % 50 == 0:
            shown = " ".join(f"{k} {v:.3f}" for k, v in self.means.items())
            print(
                f"{self.name} {done}/{self.steps} cpu {time.process_time() - self.began:.0f} s {shown}",
                flush=True,
            )
        if done == self.steps or time.monotonic() - self.saved > SAVE_SECONDS:
            state = {
                **self.student.state(),
                "step": done,
                "optimizers": [o.state_dict() for o in self.optimizers],
            }
            training.save_atomically(state, self.path)
            self.saved = time.monotonic()


def train_vision(student: Student, pictures: list[Picture], build: Path) -> None:
    """Train the vision tower alone."""
    stage = Stage("vision", VISION_STEPS, student, build)
    for step in range(stage.first, VISION_STEPS):
        rng = random.Random(f"{SEED} vision {step}")
        batch = rng.sample(pictures, VISION_BATCH)
        loss, figures = heads_loss(student.heads, student.forward.see(_pixels([p.pixels for p in batch])), batch)
        stage.update(step, loss, figures)


def train_language(student: Student, pictures: list[Picture], pairs: list[Pair], build: Path) -> None:
    """Train everything on the world's own pictures."""
    rubrics = judge_model.load_rubrics()
    stage = Stage("language", LANGUAGE_STEPS, student, build)
    # Pictures of two are where word order matters, so they come more often.
    weights = np.cumsum([1.9 if p.scene.kind == "relation" else 0.7 for p in pictures]).tolist()
    for step in range(stage.first, LANGUAGE_STEPS):
        rng = random.Random(f"{SEED} language {step}")
        table = student.table()
        batch = rng.choices(pictures, cum_weights=weights, k=LANGUAGE_PICTURES)
        other = PARAPHRASED if step >= PARAPHRASED_FROM else PARAPHRASED_EARLY
        loss, figures = picture_step(student, batch, rng, rubrics, table, other)
        if step >= PAIRS_FROM:
            batch = rng.sample(pairs, LANGUAGE_PAIRS)
            more, others = pair_step(student, batch, rng, rubrics, table, other, changes=False)
            loss, figures = loss + more, figures | others
        stage.update(step, loss, figures)


def train_edits(student: Student, pictures: list[Picture], pairs: list[Pair], build: Path) -> None:
    """Go on with more edits, and with the hint of what changed where."""
    rubrics = judge_model.load_rubrics()
    stage = Stage("edits", EDITS_STEPS, student, build)
    for step in range(stage.first, EDITS_STEPS):
        rng = random.Random(f"{SEED} edits {step}")
        table = student.table()
        batch = rng.sample(pictures, EDITS_PICTURES)
        loss, figures = picture_step(student, batch, rng, rubrics, table, PARAPHRASED)
        more, others = pair_step(student, rng.sample(pairs, EDITS_PAIRS), rng, rubrics, table, PARAPHRASED)
        stage.update(step, loss + more, figures | others)


def made_early(build: Path, stages: Path) -> tuple[list[Picture], list[Pair]]:
    """Return what the young generator made, kept in `build`."""

    def make(_: random.Random) -> tuple[list[Picture], list[Pair]]:
        directories = [stages / str(step) for step in GENERATOR_STAGES]
        return judge_generated.make_all(directories, DENOISING_STEPS, MADE_PICTURES, MADE_PAIRS, f"{SEED} made")

    return training.pooled(build / "made.pkl", 1, make, "")[0]


def made_late(build: Path, stages: Path) -> tuple[list[Picture], list[Pair]]:
    """Return what the nearly finished generator made, kept in `build`."""

    def make(_: random.Random) -> tuple[list[Picture], list[Pair]]:
        directories = [stages / str(step) for step in POLISH_STAGES]
        return judge_generated.make_all(directories, DENOISING_STEPS, POLISH_PICTURES, POLISH_PAIRS, f"{SEED} polish")

    return training.pooled(build / "made-late.pkl", 1, make, "")[0]


def train_generated(student: Student, pictures: list[Picture], pairs: list[Pair], build: Path, stages: Path) -> None:
    """Go on with pictures that the generator made among the world's own, while the learning rate falls to
    zero.
    """

    made_pictures, made_pairs = made_early(build, stages)
    right = float(np.mean([scorer.judge(p.reading, p.scene).strict for p in made_pictures]))
    print(f"made {len(made_pictures)} pictures, {right:.0%} right, and {len(made_pairs)} edits", flush=True)
    rubrics = judge_model.load_rubrics()
    stage = Stage("generated", GENERATED_STEPS, student, build)
    for step in range(stage.first, GENERATED_STEPS):
        rng = random.Random(f"{SEED} generated {step}")
        table = student.table()
        half = GENERATED_PICTURES // 2
        batch = rng.sample(pictures, half) + rng.sample(made_pictures, half)
        loss, figures = picture_step(student, batch, rng, rubrics, table, PARAPHRASED)
        half = GENERATED_PAIRS // 2
        both = rng.sample(pairs, half) + rng.sample(made_pairs, half)
        more, others = pair_step(student, both, rng, rubrics, table, PARAPHRASED)
        stage.update(step, loss + more, figures | others)


def weigh_pairs(pairs: list[Pair]) -> list[int]:
    """Return cumulative weights for `random.choices`, by which edits that went wrong come more often."""
    outcomes = [judge_pictures.outcome(p.source, p.reading, p.orders[0]) for p in pairs]
    return np.cumsum([1 if o.followed and o.preserved else POLISH_WRONG for o in outcomes]).tolist()


def weigh_damaged(pictures: list[Picture], times: int) -> list[int]:
    """Return cumulative weights for `random.choices`, by which damaged pictures come so many times as often."""
    return np.cumsum([times if p.degradation else 1 for p in pictures]).tolist()


def train_polish(student: Student, pictures: list[Picture], pairs: list[Pair], build: Path, stages: Path) -> None:
    """Go on with what was weak, at a lower rate."""

    made_pictures, made_pairs = made_late(build, stages)
    early_pictures, early_pairs = made_early(build, stages)
    made_pictures, made_pairs = made_pictures + early_pictures, made_pairs + early_pairs
    right = [scorer.judge(p.reading, p.scene).strict for p in made_pictures]
    weights = np.cumsum([1 if r else POLISH_WRONG for r in right]).tolist()
    pair_weights = weigh_pairs(made_pairs)
    damaged = weigh_damaged(pictures, 2)
    rubrics = judge_model.load_rubrics()
    stage = Stage("polish", POLISH_STEPS, student, build)
    for step in range(stage.first, POLISH_STEPS):
        rng = random.Random(f"{SEED} polish {step}")
        table = student.table()
        half = GENERATED_PICTURES // 2
        batch = rng.choices(pictures, cum_weights=damaged, k=half)
        batch += rng.choices(made_pictures, cum_weights=weights, k=half)
        loss, figures = picture_step(
            student, batch, rng, rubrics, table, POLISH_PARAPHRASED, POLISH_RELATIONS, POLISH_CROSSED, POLISH_QUALITY
        )
        half = GENERATED_PAIRS // 2
        both = rng.sample(pairs, half) + rng.choices(made_pairs, cum_weights=pair_weights, k=half)
        more, others = pair_step(student, both, rng, rubrics, table, POLISH_PARAPHRASED)
        stage.update(step, loss + more, figures | others)


def quality_step(
    student: Student, pictures: list[Picture], captions: int, rng: random.Random, rubrics: dict, table: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss of one step's ratings of pictures, two of each, and of so many captions of each."""
    rows = []
    for picture in pictures:
        # The first captions of a set are the true ones, so some of four.
        asked = judge_questions.caption_set(picture, 4, rng, 0, POLISH_RELATIONS, POLISH_CROSSED)
        asked = rng.sample(asked, captions)
        row = [judge_questions.caption_question(picture, s, r, rng, PARAPHRASED, rubrics) for s, r in asked]
        row += [
            judge_questions.picture_rating(picture, s, rng, 0.1, rubrics, QUALITY_WEIGHT)
            for s in (picture.scene, judge_questions.spoiled(picture.scene, rng))
            if not world.held_out(s)
        ]
        rows.append(row)
    tokens = student.forward.see(_pixels([p.pixels for p in pictures]))
    loss, figures, _ = _reply_loss(student, tokens, rows, table, "picture")
    return loss + 0.15 * heads_loss(student.heads, tokens, pictures)[0], figures


def train_quality(student: Student, pictures: list[Picture], pairs: list[Pair], build: Path) -> None:
    """Go on with ratings of damaged pictures."""
    damaged = weigh_damaged(pictures, 3)
    rubrics = judge_model.load_rubrics()
    stage = Stage("quality", QUALITY_STEPS, student, build)
    for step in range(stage.first, QUALITY_STEPS):
        rng = random.Random(f"{SEED} quality {step}")
        table = student.table()
        batch = rng.choices(pictures, cum_weights=damaged, k=QUALITY_PICTURES)
        loss, figures = quality_step(student, batch, 2, rng, rubrics, table)
        if step % 3 == 0:
            both = rng.sample(pairs, QUALITY_PAIRS)
            more, others = pair_step(student, both, rng, rubrics, table, POLISH_PARAPHRASED)
            loss, figures = loss + more, figures | others
        stage.update(step, loss, figures)


def near_misses(build: Path, stages: Path) -> tuple[NearMisses, NearMisses]:
    """Return what the finished generator just fails and just does not, and the same decoded again, kept in `build`."""
    load = partial(judge_generated.Generator.load, stages / str(NEAR_STAGE))
    near, decoded = NearMisses(), NearMisses()
    for name, of, numbers in (
        ("", judge_generated.delicate, NEAR_DRAWN),
        ("-gray", judge_generated.gray_star, NEAR_GRAY),
    ):
        drawn, again = near_misses_of(of, numbers, name, load, build)
        near.add(drawn)
        decoded.add(again)
    return near, decoded


def near_misses_of(
    of: Callable[[world.Scene], bool],
    numbers: dict[int, int],
    name: str,
    load: Callable[[], judge_generated.Generator],
    build: Path,
) -> tuple[NearMisses, NearMisses]:
    """Return near misses among scenes of one kind, and the same decoded again, kept in `build` under `name`.

    of: says whether a scene is of them; numbers: steps -> pictures to look through; load: the generator, where it is needed.
    """

    def draw(_: random.Random) -> NearMisses:
        painter, found = load(), NearMisses()
        for steps, number in numbers.items():
            rng = random.Random(f"{SEED} near{name} {steps}")
            judge_generated.make_near_misses(replace(painter, steps=steps), number, rng, found, of)
        return found

    def decode(rng: random.Random) -> NearMisses:
        found = NearMisses()
        judge_generated.decode_again(load(), drawn, NEAR_AGAIN, rng, found)
        return found

    drawn = training.pooled(build / f"near{name}.pkl", 1, draw, "")[0]
    return drawn, training.pooled(build / f"decoded{name}.pkl", 1, decode, f"{SEED} decoded{name}")[0]


def train_near(student: Student, pictures: list[Picture], pairs: list[Pair], build: Path, stages: Path) -> None:
    """Go on with what just fails and what just does not: soft stars, faint stains."""
    near, decoded = near_misses(build, stages)
    for found in (near, decoded):
        print(
            f"{len(found.wrong)} wrong, {len(found.barely)} barely right, {len(found.clear)} clearly right", flush=True
        )
    made_pictures, made_pairs = made_late(build, stages)
    clean = near.clear + [p for p in made_pictures if scorer.judge(p.reading, p.scene).strict]
    pair_weights = weigh_pairs(made_pairs)
    damaged = weigh_damaged(pictures, 3)

    def stained(rng: random.Random) -> Picture:
        """A stain that the scorer takes for a thing, or, half as often as they come, one that it does not."""
        while True:
            picture = rng.choice(clean)
            pixels = judge_pictures.stained(picture.pixels, rng)
            picture = Picture(pixels, picture.scene, scorer.read(pixels))
            if not scorer.judge(picture.reading, picture.scene).strict or rng.random() < 0.5:
                return picture

    rubrics = judge_model.load_rubrics()
    stage = Stage("near", NEAR_STEPS, student, build)
    for step in range(stage.first, NEAR_STEPS):
        rng = random.Random(f"{SEED} near {step}")
        table = student.table()
        batch = rng.choices(pictures, cum_weights=damaged, k=NEAR_OTHERS)
        for found, number in ((near, NEAR_PICTURES), (decoded, NEAR_DECODED)):
            batch += found.sample(number, rng)
        batch += [stained(rng) for _ in range(NEAR_STAINED)]
        loss, figures = picture_step(
            student, batch, rng, rubrics, table, NEAR_PARAPHRASED, POLISH_RELATIONS, POLISH_CROSSED, POLISH_QUALITY
        )
        half = NEAR_PAIRS // 2
        both = rng.sample(pairs, half) + rng.choices(made_pairs, cum_weights=pair_weights, k=NEAR_PAIRS - half)
        more, others = pair_step(student, both, rng, rubrics, table, NEAR_PARAPHRASED)
        stage.update(step, loss + more, figures | others)


def train_finish(student: Student, pictures: list[Picture], pairs: list[Pair], build: Path, stages: Path) -> None:
    """Go on with ratings of damaged pictures and with near misses, while nothing else is forgotten."""
    damaged = weigh_damaged(pictures, 3)
    near = near_misses(build, stages)
    rubrics = judge_model.load_rubrics()
    stage = Stage("finish", FINISH_STEPS, student, build)
    for step in range(stage.first, FINISH_STEPS):
        rng = random.Random(f"{SEED} finish {step}")
        table = student.table()
        batch = rng.choices(pictures, cum_weights=damaged, k=QUALITY_PICTURES)
        loss, figures = quality_step(student, batch, 1, rng, rubrics, table)
        some = [picture for found in near for picture in found.sample(FINISH_NEAR, rng)]
        more, _ = picture_step(
            student, some, rng, rubrics, table, PARAPHRASED, POLISH_RELATIONS, POLISH_CROSSED, POLISH_QUALITY
        )
        loss = loss + more
        if step % 3 == 0:
            both = rng.sample(pairs, QUALITY_PAIRS)
            more, others = pair_step(student, both, rng, rubrics, table, NEAR_PARAPHRASED)
            loss, figures = loss + more, figures | others
        stage.update(step, loss, figures)


def main() -> None:
    """Run every stage that is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint directory to write")
    parser.add_argument("--build", type=Path, default=Path("build/shapes-judge"), help="pictures and checkpoints")
    parser.add_argument(
        "--generator-stages",
        type=Path,
        default=Path("build/shapes-flux/stages"),
        help="the generator's directories after so many steps of its training",
    )
    parser.add_argument(
        "--until",
        choices=("pictures", *DECAY),
        default="finish",
        help="the last stage; any but the default writes no --out",
    )
    parser.add_argument(
        "--near-misses",
        action="store_true",
        help="draw only these, by the finished generator, while another process trains",
    )
    arguments = parser.parse_args()
    build = arguments.build
    torch.set_num_threads(1)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    if arguments.near_misses:
        near_misses(build, arguments.generator_stages)
        return
    pictures = training.pooled(build / "pictures.pkl", PICTURES, judge_pictures.sample_picture, f"{SEED} picture")
    pairs = training.pooled(build / "pairs.pkl", PAIRS, judge_pictures.sample_pair, f"{SEED} pair")
    if arguments.until == "pictures":
        return
    student = Student()
    stages: dict[str, Callable[[], None]] = {
        "vision": lambda: train_vision(student, pictures, build),
        "language": lambda: train_language(student, pictures, pairs, build),
        "edits": lambda: train_edits(student, pictures, pairs, build),
        "generated": lambda: train_generated(student, pictures, pairs, build, arguments.generator_stages),
        "polish": lambda: train_polish(student, pictures, pairs, build, arguments.generator_stages),
        "quality": lambda: train_quality(student, pictures, pairs, build),
        "near": lambda: train_near(student, pictures, pairs, build, arguments.generator_stages),
        "finish": lambda: train_finish(student, pictures, pairs, build, arguments.generator_stages),
    }
    for name, train in stages.items():
        train()
        if name == arguments.until:
            break
    if arguments.until == "finish":
        student.save(arguments.out)


if __name__ == "__main__":
    main()
