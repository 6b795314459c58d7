"""What the judge is asked and what it should reply: the default rubrics' own texts, paraphrases, and practice
questions.

A question is a pair of texts; a reply is text too. `Encoder` turns them into token ids and loss weights.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace

import numpy as np
import torch
import transformers

from . import judge_model, scorer, world
from .judge_pictures import (
    DEGRADATION_WORDS,
    NEAR,
    Order,
    Outcome,
    Pair,
    Picture,
    alignment,
    facts,
    outcome,
    shown,
)
from .scorer import Reading
from .world import OPPOSITE, RELATIONS, SHAPES, Scene, Thing

# --------------------------------------------------------------------------------------------------- wordings

_OPENINGS = (
    "",
    "",
    "",
    "Look at the image. ",
    "Here is a picture. ",
    "Check this image. ",
    "Judge the picture. ",
)
_ENDINGS = (
    "? Please answer yes or no.",
    "? Answer yes or no.",
    "? Reply with yes or no.",
    "? Say yes or no.",
    "? Yes or no?",
    "? Answer with one word, yes or no.",
    "?",
)
# {q} is the caption or instruction, in quotes or not.
_BODIES = {
    "p_yes": (
        "Does this image show {q}",
        "Does the picture show {q}",
        "Is {q} a correct description of this image",
        "Does the picture match the caption {q}",
        "Does this image match the description {q}",
        "Is this {q}",
        "Is this an image of {q}",
        "Does the caption {q} fit the picture",
        "Is it true that the image depicts {q}",
        "Do you see {q} in this picture",
        "Is {q} what this picture shows",
        "Was this image drawn as asked: {q}",
        "Given the text {q}, is the image right",
    ),
    "p_followed": (
        "The first image was edited by the instruction {q}. Was the instruction followed",
        "Was the instruction {q} followed in the second image",
        "Does the second image follow the instruction {q}",
        "The edit asked for was {q}. Was it carried out",
        "Instruction: {q}. Was it done",
        "Did the editor do what was requested: {q}",
        "Is the second image the result of {q}",
        "Was the first image changed as {q} says",
        "Look at both images. Was {q} obeyed",
    ),
    "p_preserved": (
        "The first image was edited by the instruction {q}. Is everything else unchanged",
        "Apart from the instruction {q}, is everything unchanged",
        "The instruction was {q}. Did all the rest stay the same",
        "Is all that the instruction {q} does not mention as it was",
        "The edit asked for was {q}. Was everything else kept",
        "Instruction: {q}. Is the rest of the image untouched",
        "Did everything but what {q} asked for stay as before",
        "Given the edit {q}, was all other content preserved",
    ),
}
_RATINGS = {
    "images": (
        "Rate this image against the prompt {q}. Give prompt_alignment and visual_quality from 1 to 10 "
        "and a short reason as JSON.",
        "The prompt was {q}. Rate the picture from 1 to 10 as JSON with prompt_alignment, visual_quality and reason.",
        "Here is an image made for {q}. Give JSON: prompt_alignment (1 to 10), visual_quality (1 to 10), reason.",
        "How well does the image fit {q}? Answer as JSON with prompt_alignment, visual_quality and a reason.",
    ),
    "edited": (
        "The edit asked for was {q}. Give instruction_followed and content_preserved from 1 to 10 and a "
        "short reason as JSON.",
        "Rate the edit {q} as JSON with instruction_followed, content_preserved and reason, from 1 to 10.",
        "Instruction: {q}. Give JSON: instruction_followed (1 to 10), content_preserved (1 to 10), reason.",
        "How well was {q} done? Answer as JSON with instruction_followed, content_preserved and a reason.",
    ),
}
# Wordings that training never sees; the benchmark asks them.
UNSEEN = {
    "p_yes": (
        'Is the following caption true of the image? "{prompt}" Answer yes or no.',
        'Someone says that this picture shows "{prompt}". Is that correct? Please reply with yes or no.',
        'Can the image be described as "{prompt}"? Please answer with yes or no.',
    ),
    "p_followed": (
        'The second image should be the first one after the step "{prompt}". Was that done? Answer yes or no.',
        'Has the edit "{prompt}" been carried out in the second image? Please answer yes or no.',
        'We asked for this edit: "{prompt}". Does the result follow the instruction? Reply with yes or no.',
    ),
    "p_preserved": (
        'The edit was "{prompt}". Is everything that it does not mention the same in both images? Answer yes or no.',
        'Besides what "{prompt}" asks for, did all the content stay unchanged? Please answer yes or no.',
        'We asked for this edit: "{prompt}". Was all the rest of the first image kept? Reply with yes or no.',
    ),
}


# Wordings of later stages alone: ones that take the same turn in both kinds of question on edits.
_FURTHER = {
    "p_followed": (
        "Somebody wanted {q}. Does the second image follow the instruction",
        "The request was {q}. Does the edited image do as asked",
        "For the edit {q}, does the new picture follow what was asked",
        "They asked for {q}. Is the result what the instruction says",
        "This was to be done: {q}. Does the outcome obey it",
    ),
    "p_preserved": (
        "Somebody wanted {q}. Is the rest of the second image as before",
        "The request was {q}. Does the edited image keep all other content",
        "For the edit {q}, is everything else in the new picture the same",
        "They asked for {q}. Was nothing else changed in the result",
        "This was to be done: {q}. Does the outcome leave the rest alone",
    ),
}

# And of the last two stages: any of these beginnings with any of the ends, which alone say what is asked.
_LEADS = (
    "Someone ordered this change: {q}. ",
    "The user wanted {q}. ",
    "Task for the editor: {q}. ",
    "An editor was told {q}. ",
    "We wanted the following: {q}. ",
    "We gave this order: {q}. ",
    "What was asked for is {q}. ",
    "The edit was {q}. ",
    "Compare both images. The wish was {q}. ",
    "{q} was the task. ",
)
_ENDS = {
    "p_followed": (
        "Was it done",
        "Was the order obeyed",
        "Was that carried out",
        "Does the result do so",
        "Does the result do what was asked",
        "Does the outcome follow the wish",
        "Does the new image follow it",
        "Is the result right in this",
        "Has the editor done it",
        "Did it happen in the second image",
    ),
    "p_preserved": (
        "Was the rest kept",
        "Was all else left alone",
        "Was nothing more changed",
        "Does the result keep the rest",
        "Does the result leave all else as it was",
        "Does the outcome agree with the first image in all else",
        "Does the new image keep everything else",
        "Is the rest of the result the same",
        "Has the editor spared all else",
        "Did everything else stay in the second image",
    ),
}


def paraphrase(name: str, prompt: str, rng: random.Random, further: bool = False, composed: bool = False) -> str:
    """Return a yes/no question of the kind `name` ("p_yes", "p_followed", "p_preserved") in one of many
    wordings; `further`: half of the time in one of the later stages'; `composed`: half of the time in two parts.
    """
    quoted = f'"{prompt}"' if rng.random() < 0.6 else prompt
    if composed and name in _ENDS and rng.random() < 0.5:
        return rng.choice(_LEADS).format(q=quoted) + rng.choice(_ENDS[name]) + rng.choice(_ENDINGS)
    if further and name in _FURTHER and rng.random() < 0.5:
        return rng.choice(_FURTHER[name]).format(q=quoted) + rng.choice(_ENDINGS)
    return rng.choice(_OPENINGS) + rng.choice(_BODIES[name]).format(q=quoted) + rng.choice(_ENDINGS)


def ask_yes_no(part: str, name: str, prompt: str, rng: random.Random, other: float, rubrics: dict) -> str:
    """Return the rubric's question about `prompt`, or with probability `other` a paraphrase.

    Where more than half are paraphrases, as in later stages, also in their further wordings; where it is more than 0.6, as
    in the last two, also in composed ones.
    """
    if rng.random() < other:
        return paraphrase(name, prompt, rng, further=other > 0.5, composed=other > 0.6)
    if rng.random() < 0.06:
        prompt = f'"{prompt}"'
    return judge_model.fill(rubrics[part][name]["text"], prompt)


def ask_rating(part: str, prompt: str, rng: random.Random, other: float, rubrics: dict) -> str:
    """Return the rubric's request for ratings, or with probability `other` a paraphrase."""
    if rng.random() < other:
        quoted = f'"{prompt}"' if rng.random() < 0.6 else prompt
        return rng.choice(_RATINGS[part]).format(q=quoted)
    if rng.random() < 0.06:
        prompt = f'"{prompt}"'
    return judge_model.fill(rubrics[part]["rating"]["text"], prompt)


def typed(text: str, rng: random.Random, plain: float = 0.55) -> str:
    """Return a caption or instruction as it is with probability `plain`, else as people may type it."""
    return text if rng.random() < plain else world.vary(text, rng)


# --------------------------------------------------------------------------------------------- caption scenes

KINDS_OF_ERROR = ("colour", "shape", "relation", "swapped", "count", "missing", "extra", "background")


def _looks(scene: Scene) -> set[tuple[str, str]]:
    return {(t.colour, t.shape) for t in scene.things}


def mirrored(scene: Scene) -> Scene:
    """Say the same of a pair the other way round: "a left of b" as "b right of a"."""
    return replace(scene, things=scene.things[::-1], relation=OPPOSITE[scene.relation or ""])


def across(scene: Scene, rng: random.Random) -> Scene:
    """Say of a pair that its things lie along the other axis: "a left of b" as "a above b" or "a below b"."""
    own = (scene.relation, OPPOSITE[scene.relation or ""])
    return replace(scene, relation=rng.choice([r for r in RELATIONS if r not in own]))


def spoil(scene: Scene, kind: str, rng: random.Random) -> Scene | None:
    """Return the caption scene with one error of a kind in it, or None where the kind does not apply.

    "missing": the caption has an object more than `scene`; "extra": one less; "swapped": the colours of a
    pair are exchanged. The caption always remains one that the world could have made.
    """
    things = list(scene.things)
    i = rng.randrange(len(things))
    thing = things[i]
    free = world.free_colours(scene.background)
    if kind == "colour":
        wanted = rng.choice([c for c in free if c != thing.colour])
        if scene.kind == "count":
            return replace(scene, things=tuple(replace(t, colour=wanted) for t in things))
        things[i] = replace(thing, colour=wanted)
    elif kind == "shape":
        wanted = rng.choice([s for s in SHAPES if s != thing.shape])
        if scene.kind == "count":
            return replace(scene, things=tuple(replace(t, shape=wanted) for t in things))
        things[i] = replace(thing, shape=wanted)
    elif kind == "relation":
        if scene.kind != "relation":
            return None
        others = [r for r in RELATIONS if r != scene.relation]
        wanted = OPPOSITE[scene.relation or ""] if rng.random() < 0.6 else rng.choice(others)
        return replace(scene, relation=wanted)
    elif kind == "swapped":
        if scene.kind != "relation":
            return None
        a, b = things
        if a.colour == b.colour or a.shape == b.shape:
            return None
        return replace(scene, things=(replace(a, colour=b.colour), replace(b, colour=a.colour)))
    elif kind == "count":
        if scene.kind == "relation":
            return None
        number = rng.choice([n for n in (1, 2, 3) if n != len(things)])
        return replace(scene, kind="one" if number == 1 else "count", things=(things[0],) * number)
    elif kind == "missing":
        if scene.kind != "one":
            return replace(scene, things=(things[0],) * 3) if scene.kind == "count" and len(things) == 2 else None
        more = Thing(rng.choice(free), rng.choice(SHAPES), 0, 0, 1)
        pair = (thing, more) if rng.random() < 0.5 else (more, thing)
        scene = Scene("relation", scene.background, pair, rng.choice(RELATIONS))
        return scene if len(_looks(scene)) == 2 else None
    elif kind == "extra":
        if scene.kind == "relation":
            return Scene("one", scene.background, (thing,))
        if len(things) == 1:
            return None
        number = len(things) - 1
        return replace(scene, kind="one" if number == 1 else "count", things=(thing,) * number)
    elif kind == "background":
        taken = {t.colour for t in things} | {scene.background}
        return replace(scene, background=rng.choice([b for b in world.BACKGROUNDS if b not in taken]))
    else:
        raise ValueError(f"unknown kind of error {kind!r}")
    scene = replace(scene, things=tuple(things))
    return scene if scene.kind != "relation" or len(_looks(scene)) == 2 else None


def spoiled(scene: Scene, rng: random.Random, kinds: tuple[str, ...] = KINDS_OF_ERROR) -> Scene:
    """Return `spoil` with a random kind that applies."""
    while True:
        wrong = spoil(scene, rng.choice(kinds), rng)
        if wrong is not None:
            return wrong


def caption_set(
    picture: Picture, number: int, rng: random.Random, own: int = 0, relations: float = 0.15, crossed: float = 0.0
) -> list[tuple[Scene, bool]]:
    """Return `number` caption scenes for a picture with the scorer's verdicts, none of them held out of
    training.

    Pairs get a contrast set: the caption, its mirror image, and two that use the same words to say something
    false, so that only word order tells them apart; in a share `relations` of the sets one names any wrong relation, and
    in a share `crossed` one names a relation along the other axis: opposites alone would teach that left is as good as
    below. `own` times the picture's own prompt comes first.
    """
    truth = shown(picture.reading)
    anchor = truth or picture.scene
    scenes: list[Scene] = []
    if anchor.kind == "relation" and len(_looks(anchor)) == 2:
        false = replace(anchor, relation=OPPOSITE[anchor.relation or ""])
        scenes = [anchor, mirrored(anchor), false, mirrored(false)]
        luck = rng.random()
        other = spoil(anchor, "swapped", rng) if luck < 0.3 else None
        if luck > 1 - relations:
            other = spoil(anchor, "relation", rng)
        if crossed and rng.random() < crossed:
            other = across(anchor, rng)
        if other is not None:
            scenes[rng.choice((2, 3))] = mirrored(other) if rng.random() < 0.5 else other
    elif truth is None:
        scenes = [anchor] * (2 if rng.random() < 0.5 else 1)
    else:
        scenes = [anchor, anchor]
    while len(scenes) < number + 2:
        luck = rng.random()
        if luck < 0.78:
            wrong = spoiled(anchor, rng, ("colour", "colour", "shape", "shape", *KINDS_OF_ERROR))
        elif luck < 0.88:
            wrong = spoiled(spoiled(anchor, rng), rng)
        elif luck < 0.95:
            wrong = picture.scene
        else:
            wrong = world.sample_scene(rng)
        scenes.append(mirrored(wrong) if wrong.kind == "relation" and rng.random() < 0.5 else wrong)
    scenes = [picture.scene] * own + scenes
    legal = [s for s in scenes if not world.held_out(s)][:number]
    while len(legal) < number:
        scene = spoiled(anchor, rng)
        if not world.held_out(scene):
            legal.append(scene)
    return [(s, scorer.judge(picture.reading, s).strict) for s in legal]


# ------------------------------------------------------------------------------------------------ the replies


def background_set(picture: Picture, rng: random.Random) -> list[tuple[Scene, bool]]:
    """Return two caption scenes that differ in the background alone, one of them right, or none.

    A caption that names no background means white, so white is the wrong one as often as any other.
    """
    truth = shown(picture.reading)
    if truth is None or world.held_out(truth):
        return []
    wrong = spoil(truth, "background", rng)
    if truth.background != "white" and rng.random() < 0.6:
        wrong = replace(truth, background="white")
    if wrong is None or world.held_out(wrong):
        return []
    return [(s, scorer.judge(picture.reading, s).strict) for s in (truth, wrong)]


@dataclass(frozen=True)
class Example:
    """A question and its reply, with hints that training alone makes use of.

    `reply`: its parts, each with a loss weight. `kind`: a name for logs. `prompt`: the caption as it stands
    in the question, `truths`: captions that would be true, by which every word of the prompt is right so far
    or not; () where that is not known. `aspects`: what the answer hangs on, true or false (0 or 1), see
    `ASPECTS`.
    """

    question: str
    reply: tuple[tuple[str, float], ...]
    kind: str
    prompt: str = ""
    truths: tuple[str, ...] = ()
    aspects: tuple[float, ...] = ()


def yes_no(question: str, answer: bool, kind: str, weight: float = 1.0) -> Example:
    """Return a question with a reply of one word."""
    return Example(question, (("yes" if answer else "no", weight), (judge_model.END, 0.02)), kind)


# The parts of an answer that training also asks for by themselves: of a caption, and of an edit.
ASPECTS = {
    "picture": ("background", "count", "colour", "shape", "relation"),
    "edit": ("followed", "touched", "unharmed", "background kept", "things kept", "places kept"),
}


def true_captions(scene: Scene) -> tuple[str, ...]:
    """Return every caption that the world has for a scene."""
    scenes = [scene, mirrored(scene)] if scene.kind == "relation" else [scene]
    return tuple(
        {world.describe(s, white, to_the) for s in scenes for white in (False, True) for to_the in (False, True)}
    )


def picture_aspects(reading: Reading, scene: Scene) -> tuple[float, ...]:
    """Return the values of `ASPECTS["picture"]`."""
    share = facts(reading, scene)
    return tuple(float(share.get(k, 1.0) == 1.0) for k in ASPECTS["picture"])


def same_places(pair: Pair) -> bool:
    """Say whether everything that is left of a pair's source has its place and size."""
    before = scorer.read_scene(pair.source)
    return all(
        any(abs(t.x - b.x) <= NEAR and abs(t.y - b.y) <= NEAR and 1 / 1.5 <= t.area / b.area <= 1.5 for b in before)
        for t in pair.reading.things
    )


def edit_aspects(pair: Pair, order: Order, result: Outcome) -> tuple[float, ...]:
    """Return the values of `ASPECTS["edit"]`."""
    same_background = pair.reading.background == pair.source.background
    before = sorted((t.colour, t.shape) for t in pair.source.things)
    same_things = before == sorted((t.colour or "", t.shape or "") for t in pair.reading.things)
    parts = (result.followed, result.degree > 1, result.preserved, same_background, same_things, same_places(pair))
    return tuple(float(p) for p in parts)


def caption_question(
    picture: Picture, scene: Scene, right: bool, rng: random.Random, other: float, rubrics: dict
) -> Example:
    """Return the question whether a picture shows a caption scene."""
    plain = world.sample_caption(scene, rng)
    prompt = typed(plain, rng)
    truth = shown(picture.reading)
    hints = true_captions(truth) if truth is not None and prompt == plain else ()
    text = ask_yes_no("images", "p_yes", prompt, rng, other, rubrics)
    aspects = picture_aspects(picture.reading, scene)
    return replace(yes_no(text, right, "captions"), prompt=prompt, truths=hints, aspects=aspects)


def picture_reason(reading: Reading, scene: Scene, degradation: str | None) -> str:
    """Return a few words on what is wrong with a picture."""
    share = facts(reading, scene)
    right = scorer.judge(reading, scene).strict
    wrong = [k for k, v in share.items() if v < 1]
    fault = "as asked" if right else "wrong " + " ".join(wrong or ["shape"])
    return f"{fault}; {DEGRADATION_WORDS[degradation]}"


def edit_reason(result: Outcome) -> str:
    """Return a few words on what is wrong with an edit."""
    done = {10: "done", 4: "wrong result", 1: "not done"}[result.degree]
    return f"{done}; {'all else kept' if result.preserved else 'other changes'}"


def rating(
    kind: str,
    question: str,
    fields: tuple[str, str],
    values: tuple[int, int],
    weights: tuple[float, float],
    why: str,
) -> Example:
    """Return a request for JSON with its reply."""
    reply = (
        ("{" + f'"{fields[0]}":', 0.02),
        (str(values[0]), weights[0]),
        (f',"{fields[1]}":', 0.02),
        (str(values[1]), weights[1]),
        (',"reason":"', 0.02),
        (why, 0.5),
        ('"}', 0.05),
        (judge_model.END, 0.02),
    )
    return Example(question, reply, kind)


def picture_rating(
    picture: Picture, scene: Scene, rng: random.Random, other: float, rubrics: dict, quality: float = 1.0
) -> Example:
    """Return the request to rate a picture for a caption scene, with the true ratings."""
    text = ask_rating("images", typed(world.sample_caption(scene, rng), rng), rng, other, rubrics)
    aspects = picture_aspects(picture.reading, scene)
    values = (alignment(picture.reading, scene), picture.quality or 8)
    why = picture_reason(picture.reading, scene, picture.degradation)
    weights = (1.0, quality if picture.quality else 0.0)
    example = rating("ratings", text, ("prompt_alignment", "visual_quality"), values, weights, why)
    return replace(example, aspects=aspects)


def edit_examples(pair: Pair, number: int, rng: random.Random, other: float, rubrics: dict) -> list[Example]:
    """Return yes/no questions on a pair, and last a request to rate it; `number` in all, at least 4."""

    def prompt(order: Order) -> str:
        return typed(order.text, rng)

    def ask(name: str, order: Order) -> Example:
        result = outcome(pair.source, pair.reading, order)
        text = ask_yes_no("edited", name, prompt(order), rng, other, rubrics)
        right = result.followed if name == "p_followed" else result.preserved
        return replace(yes_no(text, right, name), aspects=edit_aspects(pair, order, result))

    meant, rest = pair.orders[0], list(pair.orders[1:])
    examples = [ask("p_followed", meant), ask("p_preserved", meant)]
    turns = itertools.cycle(("p_followed", "p_preserved", "p_followed"))
    while len(examples) < number - 1:
        order = rest[min(len(examples) - 2, len(rest) - 1)] if len(examples) < 4 else rng.choice(rest)
        examples.append(ask(next(turns), order))
    order = meant if rng.random() < 0.7 else rng.choice(rest)
    result = outcome(pair.source, pair.reading, order)
    text = ask_rating("edited", prompt(order), rng, other, rubrics)
    fields = ("instruction_followed", "content_preserved")
    values = (result.degree, result.preservation)
    example = rating("edit_ratings", text, fields, values, (1.0, 1.0), edit_reason(result))
    examples.append(replace(example, aspects=edit_aspects(pair, order, result)))
    return examples


def practice(picture: Picture, number: int, rng: random.Random) -> list[Example]:
    """Return simple questions on single objects: "Is there a red circle", and where it is in a picture of
    two.

    They teach which colour belongs to which shape, and where things are, before captions ask for it all at
    once.
    """
    things = [(t.colour, t.shape) for t in picture.reading.things if t.colour and t.shape]
    have = sorted(set(things))
    sound = len(things) == len(picture.reading.things)
    examples = []
    if sound and len(things) == 2 and len(have) == 2:
        one, two = picture.reading.things
        for a, b in ((one, two), (two, one)):
            text = f"Where is the {a.colour} {a.shape}?"
            place = scorer.relation_of(a, b).split()[0]
            examples.append(Example(text, ((place, 0.7), (judge_model.END, 0.02)), "where"))
    asked: list[tuple[str, str]] = []
    if len(have) >= 2:
        a, b = rng.sample(have, 2)
        asked = [a, (a[0], b[1]), b, (b[0], a[1])]
    elif have:
        asked = [have[0]]
    while len(examples) + len(asked) < number:
        colour, shape = rng.choice(have) if have else (rng.choice(list(world.COLOURS)), rng.choice(SHAPES))
        if rng.random() < 0.5:
            colour = rng.choice(list(world.COLOURS))
        else:
            shape = rng.choice(SHAPES)
        asked.append((colour, shape))
    rng.shuffle(asked)
    for colour, shape in asked[: number - len(examples)]:
        text = f"Is there {world.article(colour)} {colour} {shape} in this image? Answer yes or no."
        examples.append(yes_no(text, (colour, shape) in have, "there", 0.7))
    return examples[:number]


# --------------------------------------------------------------------------------------------------- encoding


@dataclass(frozen=True)
class Packed:
    """Questions of about the same length.

    Ids and the places to read [rows, length]; each row's picture [rows]; for the places to read, in order,
    the labels, loss weights and kinds; places (row, position) of a prompt's words with 1 where the prompt is
    true so far and else 0; places of the questions' last tokens with the values of their aspects.
    """

    ids: torch.Tensor
    read: torch.Tensor
    owner: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    kinds: np.ndarray
    word_places: torch.Tensor
    word_labels: torch.Tensor
    aspect_places: torch.Tensor
    aspect_labels: torch.Tensor


class Encoder:
    """Turns examples into padded token ids, labels and weights, tokenised as by the processor."""

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer._tokenizer
        self._cache: dict[str, list[int]] = {}
        self.head = self.ids(judge_model.HEAD)
        self.pad = tokenizer.pad_token_id

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _known(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self.ids(text)
        return self._cache[text]

    def _item(self, owner: int, example: Example) -> dict:
        encoded = self._tokenizer.encode(example.question + judge_model.TAIL, add_special_tokens=False)
        reply, weights = [], []
        for text, weight in example.reply:
            ids = self._known(text)
            reply += ids
            weights += [weight / len(ids)] * len(ids)
        words = []
        if example.truths:
            start = example.question.index(example.prompt)
            end = start + len(example.prompt)
            for place, (first, last) in enumerate(encoded.offsets):
                if first >= end:  # the token after the prompt knows that nothing is to come
                    words.append((place, float(example.prompt in example.truths)))
                    break
                if last > start:
                    so_far = example.prompt[: last - start]
                    words.append((place, float(any(t.startswith(so_far) for t in example.truths))))
        return {
            "length": len(encoded.ids) + len(reply) - 1,
            "owner": owner,
            "question": encoded.ids,
            "reply": reply,
            "weights": weights,
            "words": words,
            "example": example,
        }

    def pack(self, rows: list[list[Example]], buckets: int = 4) -> list[Packed]:
        """Return the questions `rows[i]` about picture i, sorted by length into groups to save padding."""
        items = [self._item(owner, example) for owner, examples in enumerate(rows) for example in examples]
        items.sort(key=lambda item: item["length"])
        cuts = [len(items) * i // buckets for i in range(buckets + 1)]
        return [self._pack(items[a:b]) for a, b in itertools.pairwise(cuts)]

    def _pack(self, items: list[dict]) -> Packed:
        ids = np.full((len(items), items[-1]["length"]), self.pad, np.int64)
        read = np.zeros(ids.shape, bool)
        labels, weights, kinds = [], [], []
        word_places, word_labels, aspect_places, aspect_labels = [], [], [], []
        for row, item in enumerate(items):
            question, reply, example = item["question"], item["reply"], item["example"]
            ids[row, : item["length"]] = question + reply[:-1]
            read[row, len(question) - 1 : item["length"]] = True
            labels += reply
            weights += item["weights"]
            kinds += [example.kind] * len(reply)
            word_places += [(row, place) for place, _ in item["words"]]
            word_labels += [label for _, label in item["words"]]
            if example.aspects:
                aspect_places.append((row, len(question) - 1))
                aspect_labels.append(example.aspects)
        return Packed(
            torch.from_numpy(ids),
            torch.from_numpy(read),
            torch.tensor([item["owner"] for item in items]),
            torch.tensor(labels),
            torch.tensor(weights),
            np.array(kinds),
            torch.tensor(word_places, dtype=torch.long).reshape(-1, 2),
            torch.tensor(word_labels),
            torch.tensor(aspect_places, dtype=torch.long).reshape(-1, 2),
            torch.tensor(aspect_labels),
        )
