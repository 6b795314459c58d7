"""Measure the shipped judge on fresh pictures and compare it with the bars.

    python training/bench_judge.py resources/models/shapes-judge [--generator DIR] [--quick]

Asks the unmodified transformers model the default rubrics' own questions about renders whose captions
training never saw, about edits, and, with `--generator`, about what the tiny FLUX makes; prints one table and
exits with status 1 where a figure is below its bar. `--quick` takes a smaller sample and allows for its
sampling error. The parts, each with random numbers of its own, run in as many processes of one thread as there are
processors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shapeworld import generator, judge_generated, judge_model, judge_pictures, judge_questions, scorer, training, world
from shapeworld.generator import Generator

BATCH = 48
# How much lower a figure of the small sample may be; or twice its standard error, where that is known and more.
QUICK_SLACK = 0.03
# With fewer wrong pictures than this an area under the curve says nothing, and no bar is held against it.
FEWEST_WRONG = 5
# Of what the generator makes so many wrong ones are looked for, among at most so many pictures and edits.
ENOUGH_WRONG, MOST_PICTURES, MOST_EDITS = 30, 30_000, 4000


@dataclass(frozen=True)
class Figure:
    """One line of the table. `bar` is the least (or with `at_most` the greatest) value to pass, None to only
    report. `error`: the standard error of a value at the bar, 0 where it is not known.
    """

    name: str
    value: float
    bar: float | None = None
    at_most: bool = False
    note: str = ""
    error: float = 0.0

    def passes(self, slack: float) -> bool:
        """Say whether the bar is met, give or take `slack` if any, or twice the standard error."""
        if self.bar is None:
            return True
        slack = max(slack, 2 * self.error) if slack else 0.0
        return self.value <= self.bar + slack if self.at_most else self.value >= self.bar - slack


# ------------------------------------------------------------------------------------------------- statistics


def ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1, ties sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def auc(scores: list[float], truth: list[bool]) -> float:
    """Return the probability that a true case scores above a false one; nan where either is missing."""
    right = np.array(truth, bool)
    if right.all() or not right.any():
        return float("nan")
    place = ranks(np.array(scores))
    count = right.sum()
    return float((place[right].sum() - count * (count + 1) / 2) / (count * (~right).sum()))


def auc_error(area: float, right: int, wrong: int) -> float:
    """Return the standard error of an area under the curve from so many true and false cases with exponential scores.

    Hanley and McNeil, "The meaning and use of the area under a receiver operating characteristic (ROC) curve", Radiology
    143 (1982), equation 1.
    """
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (right - 1) * (one - area**2) + (wrong - 1) * (two - area**2)
    return (spread / (right * wrong)) ** 0.5


def spearman(a: list[float], b: list[float]) -> float:
    """Return the rank correlation."""
    return float(np.corrcoef(ranks(np.array(a)), ranks(np.array(b)))[0, 1])


# -------------------------------------------------------------------------------------------------- the judge

Question = tuple[tuple[np.ndarray, ...], str]


class Judge:
    """The checkpoint as a user would load it."""

    def __init__(self, directory: Path) -> None:
        self.model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(directory).eval()
        self.processor = transformers.AutoProcessor.from_pretrained(directory)
        self.processor.tokenizer.padding_side = "left"
        vocabulary = self.processor.tokenizer.get_vocab()
        self.yes = [vocabulary[w] for w in ("yes", "Yes") if w in vocabulary]
        self.no = [vocabulary[w] for w in ("no", "No") if w in vocabulary]
        self.asked = 0
        self.masses: list[float] = []

    def _inputs(self, questions: list[Question]) -> transformers.BatchFeature:
        conversations = [
            [
                {
                    "role": "user",
                    "content": [*({"type": "image", "image": Image.fromarray(p)} for p in pictures)]
                    + [{"type": "text", "text": text}],
                }
            ]
            for pictures, text in questions
        ]
        return self.processor.apply_chat_template(
            conversations,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    def _batches(self, questions: list[Question]) -> list[np.ndarray]:
        """Return indices of questions of about the same length, to save padding."""
        order = np.argsort([len(text) for _, text in questions], kind="stable")
        self.asked += len(questions)
        return [order[i : i + BATCH] for i in range(0, len(order), BATCH)]

    @torch.no_grad()
    def p_yes(self, questions: list[Question]) -> list[float]:
        """Return P(yes) = p("yes") / (p("yes") + p("no")) of each question's first reply token."""
        result = np.zeros(len(questions))
        for part in self._batches(questions):
            logits = self.model(**self._inputs([questions[i] for i in part]), logits_to_keep=1).logits[:, -1]
            p = logits.float().softmax(-1)
            yes, no = p[:, self.yes].sum(-1), p[:, self.no].sum(-1)
            self.masses += (yes + no).tolist()
            result[part] = (yes / (yes + no)).numpy()
        return result.tolist()

    @torch.no_grad()
    def rate(self, questions: list[Question]) -> list[dict]:
        """Return the JSON replies, greedy and unconstrained; {} where a reply is not valid JSON."""
        result: list[dict] = [{}] * len(questions)
        for part in self._batches(questions):
            inputs = self._inputs([questions[i] for i in part])
            ids = self.model.generate(**inputs, max_new_tokens=32, do_sample=False)[:, inputs["input_ids"].shape[1] :]
            for i, text in zip(part, self.processor.batch_decode(ids, skip_special_tokens=True), strict=True):
                try:
                    result[i] = json.loads(text)
                except ValueError:
                    result[i] = {}
        return result


# ------------------------------------------------------------------------------------------------- on renders


def held_out_scene(rng: random.Random, kind: str | None = None) -> world.Scene:
    """Draw a scene whose caption training never saw."""
    return world.sample_where(lambda: world.sample_scene(rng, kind), True)


def caption_cases(number: int, rng: random.Random) -> dict[str, list[tuple[np.ndarray, str, str]]]:
    """Return for each kind of error `number` pictures with their right caption and one with that error."""
    cases: dict[str, list] = {}
    for kind in judge_questions.KINDS_OF_ERROR:
        cases[kind] = []
        while len(cases[kind]) < number:
            # Things too many and too few come in pairs as often as in counts.
            scene = held_out_scene(rng)
            wrong = judge_questions.spoil(scene, kind, rng)
            picture = np.asarray(world.render(scene))
            if wrong is None or scorer.score(picture, wrong).strict:
                continue
            cases[kind].append((picture, world.sample_caption(scene, rng), world.sample_caption(wrong, rng)))
    # Most wrong relations are opposites; a judge that takes left for below fails on these alone.
    cases["relation, other axis"] = []
    for _ in range(number):
        scene = held_out_scene(rng, "relation")
        wrong = judge_questions.across(scene, rng)
        captions = world.sample_caption(scene, rng), world.sample_caption(wrong, rng)
        cases["relation, other axis"].append((np.asarray(world.render(scene)), *captions))
    return cases


def _ask(judge: Judge, cases: list[tuple[np.ndarray, str, str]], template: str) -> tuple[list[float], list[float]]:
    scores = judge.p_yes(
        [((p,), judge_model.fill(template, caption)) for p, right, wrong in cases for caption in (right, wrong)]
    )
    return scores[::2], scores[1::2]


def _pooled(right: list[float], wrong: list[float]) -> float:
    return auc(right + wrong, [True] * len(right) + [False] * len(wrong))


def bench_captions(judge: Judge, number: int, rng: random.Random) -> list[Figure]:
    """Measure P(yes) on hard negatives of every kind, in the rubric's own words and in others."""
    template = judge_model.load_rubrics()["images"]["p_yes"]["text"]
    cases = caption_cases(number, rng)
    figures, all_right, all_wrong = [], [], []
    for kind, some in cases.items():
        right, wrong = _ask(judge, some, template)
        paired = float(np.mean([a > b for a, b in zip(right, wrong, strict=True)]))
        figures.append(Figure(f"P(yes) AUC, {kind}", _pooled(right, wrong), 0.97))
        figures.append(Figure(f"P(yes) paired accuracy, {kind}", paired, 0.93))
        all_right += right
        all_wrong += wrong
    pooled = _pooled(all_right, all_wrong)
    yes_to_right = np.mean([p > 0.5 for p in all_right])
    yes_to_wrong = np.mean([p > 0.5 for p in all_wrong])
    note = f"yes to {yes_to_right:.1%} of right, {yes_to_wrong:.1%} of wrong captions"
    figures.insert(0, Figure("P(yes) AUC, all hard negatives", pooled, 0.99, note=note))
    every = [case for some in cases.values() for case in some]
    sample = rng.sample(every, min(len(every), 4 * number))
    base = _pooled(*_ask(judge, sample, template))
    for i, other in enumerate(judge_questions.UNSEEN["p_yes"]):
        cost = base - _pooled(*_ask(judge, sample, other))
        figures.append(Figure(f"AUC lost by unseen wording {i + 1}", cost, 0.03, at_most=True))
    quoted = [(p, f'"{a}"', f'"{b}"') for p, a, b in sample]
    cost = base - _pooled(*_ask(judge, quoted, template))
    figures.append(Figure("AUC lost by quoted captions", cost, 0.03, at_most=True))
    varied = [(p, world.vary(a, rng), world.vary(b, rng)) for p, a, b in sample]
    cost = base - _pooled(*_ask(judge, varied, template))
    figures.append(Figure("AUC lost by capitals, marks and unknown words", cost, 0.03, at_most=True))
    return figures


def bench_ratings(judge: Judge, number: int, rng: random.Random) -> list[Figure]:
    """Measure alignment and quality ratings against the truth."""
    template = judge_model.load_rubrics()["images"]["rating"]["text"]
    questions, alignments, qualities = [], [], []
    for _ in range(number):
        picture = judge_pictures.sample_picture(rng, wrong=0.1, flawed=0.05, damaged=0.0, held_out=True)
        scene = picture.scene
        for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
            scene = judge_questions.spoiled(scene, rng)
        questions.append(((picture.pixels,), judge_model.fill(template, world.sample_caption(scene, rng))))
        alignments.append(judge_pictures.alignment(picture.reading, scene))
    replies = judge.rate(questions)
    given = [r.get("prompt_alignment", 0) for r in replies]
    valid = [isinstance(r.get("reason"), str) for r in replies]
    figures = [Figure("alignment, Spearman", spearman(given, alignments), 0.9)]
    questions = []
    for _ in range(number):
        picture = judge_pictures.sample_picture(rng, wrong=0, flawed=0, damaged=0.8, held_out=True)
        questions.append(((picture.pixels,), judge_model.fill(template, world.sample_caption(picture.scene, rng))))
        qualities.append(picture.quality)
    replies = judge.rate(questions)
    given = [r.get("visual_quality", 0) for r in replies]
    valid += [isinstance(r.get("reason"), str) for r in replies]
    figures.append(Figure("visual quality, Spearman", spearman(given, qualities), 0.9))
    figures.append(Figure("valid JSON without a grammar", float(np.mean(valid))))
    return figures


def _ask_pairs(
    judge: Judge, pairs: list[judge_pictures.Pair], template: str, change: Callable[[str], str] = str
) -> list[float]:
    return judge.p_yes([((p.before, p.after), judge_model.fill(template, change(p.orders[0].text))) for p in pairs])


def bench_edits(judge: Judge, number: int, rng: random.Random) -> list[Figure]:
    """Measure what is said of rendered edits, well done and not."""
    rubrics = judge_model.load_rubrics()["edited"]
    pairs = [judge_pictures.sample_pair(rng, flawed=0, damaged=0, held_out=True) for _ in range(number)]
    truth = [judge_pictures.outcome(p.source, p.reading, p.orders[0]) for p in pairs]
    bars = {"p_followed": 0.97, "p_preserved": 0.93}
    sides = {"p_followed": [t.followed for t in truth], "p_preserved": [t.preserved for t in truth]}
    figures, base = [], {}
    for name, bar in bars.items():
        base[name] = auc(_ask_pairs(judge, pairs, rubrics[name]["text"]), sides[name])
        figures.append(Figure(f"edits: {name} AUC", base[name], bar))
    replies = judge.rate(
        [((p.before, p.after), judge_model.fill(rubrics["rating"]["text"], p.orders[0].text)) for p in pairs]
    )
    for field, name in (("instruction_followed", "p_followed"), ("content_preserved", "p_preserved")):
        given = [r.get(field, 0) for r in replies]
        figures.append(Figure(f"edits: rating {field} AUC", auc(given, sides[name]), bars[name]))
        wanted = [t.degree if name == "p_followed" else t.preservation for t in truth]
        figures.append(Figure(f"edits: rating {field}, Spearman", spearman(given, wanted)))
    some = pairs[: number // 2]
    for name in bars:
        part = sides[name][: len(some)]
        first = auc(_ask_pairs(judge, some, rubrics[name]["text"]), part)
        for i, other in enumerate(judge_questions.UNSEEN[name]):
            cost = first - auc(_ask_pairs(judge, some, other), part)
            figures.append(Figure(f"edits: {name} AUC lost by unseen wording {i + 1}", cost, 0.03, at_most=True))
        cost = first - auc(_ask_pairs(judge, some, rubrics[name]["text"], lambda t: f'"{t}"'), part)
        figures.append(Figure(f"edits: {name} AUC lost by quotes", cost, 0.03, at_most=True))
    return figures


# -------------------------------------------------------------------------------------- on generated pictures


def _draw(
    make: Callable[[int], list], right: Callable[[object], tuple[bool, ...]], number: int, most: int
) -> tuple[list, list[tuple[bool, ...]], int]:
    """Return `number` made things, then the wrong ones among further ones, their verdicts, and how many were made.

    It makes more until ENOUGH_WRONG are wrong in each respect or `most` are made: almost all are right, and an area
    under the curve is only as sure as the wrong ones are many.
    """
    made = make(number)
    verdicts = [right(item) for item in made]
    total = number
    while total < most and min(verdicts_of.count(False) for verdicts_of in zip(*verdicts, strict=True)) < ENOUGH_WRONG:
        for item in make(min(number, most - total)):
            if not all(right(item)):
                made.append(item)
                verdicts.append(right(item))
        total = min(total + number, most)
    return made, verdicts, total


def _generated_figures(name: str, scores: list[float], truth: list[bool], number: int, total: int) -> list[Figure]:
    """Return the AUC, of all wrong ones against the right ones, and how far the first `number`'s mean is from the pass rate.

    The AUC has no bar where there are too few wrong ones to tell.
    """
    mean, passed = float(np.mean(scores[:number])), float(np.mean(truth[:number]))
    wrong = len(truth) - sum(truth)
    note = f"pass rate {passed:.3f}, mean {mean:.3f}; {wrong} wrong of {total}"
    if wrong < FEWEST_WRONG:
        area = Figure(f"{name} AUC", auc(scores, truth), note=f"{note}: too few to tell")
    else:
        error = auc_error(0.92, sum(truth), wrong)
        area = Figure(f"{name} AUC", auc(scores, truth), 0.92, note=note, error=error)
    return [area, Figure(f"{name} |mean - pass rate|", abs(mean - passed), 0.1, at_most=True)]


def bench_pictures(
    judge: Judge, painter: Generator, number: int, seed: str, quick: bool, kept: Path | None
) -> list[Figure]:
    """Measure the judge on what the tiny FLUX makes, against the scorer's verdicts; the pictures are kept in `kept`, if any."""

    def draw(rng: random.Random) -> tuple[list, list[tuple[bool, ...]], int]:
        return _draw(
            lambda n: judge_generated.make_pictures(painter, n, rng, held_out=None),
            lambda p: (scorer.judge(p.reading, p.scene).strict,),
            number,
            number if quick else MOST_PICTURES,
        )

    pictures, verdicts, total = training.pooled(kept, 1, draw, seed)[0]
    text = judge_model.load_rubrics()["images"]["p_yes"]["text"]
    rng = random.Random(f"{seed} captions")
    captions = [world.sample_caption(p.scene, rng) for p in pictures]
    scores = judge.p_yes([((p.pixels,), judge_model.fill(text, c)) for p, c in zip(pictures, captions, strict=True)])
    truth = [v for (v,) in verdicts]
    return _generated_figures(f"FLUX, {painter.steps} steps: P(yes)", scores, truth, number, total)


def bench_changes(
    judge: Judge, painter: Generator, number: int, seed: str, quick: bool, kept: Path | None
) -> list[Figure]:
    """Measure the judge on what the tiny Kontext makes, against the scorer's verdicts; as `bench_pictures`."""

    def sides(pair: judge_pictures.Pair) -> tuple[bool, bool]:
        result = judge_pictures.outcome(pair.source, pair.reading, pair.orders[0])
        return result.followed, result.preserved

    def draw(rng: random.Random) -> tuple[list, list[tuple[bool, ...]], int]:
        return _draw(
            lambda n: judge_generated.make_pairs(painter, n, rng, held_out=None),
            sides,
            number,
            number if quick else MOST_EDITS,
        )

    pairs, verdicts, total = training.pooled(kept, 1, draw, seed)[0]
    rubrics = judge_model.load_rubrics()["edited"]
    figures = []
    for name, truth in zip(("p_followed", "p_preserved"), zip(*verdicts, strict=True), strict=True):
        scores = _ask_pairs(judge, pairs, rubrics[name]["text"])
        # Further pairs are there because they are wrong in either respect; where right in this one, they are no sample.
        kept_pairs = [i for i, right in enumerate(truth) if i < number or not right]
        scores, truth = [scores[i] for i in kept_pairs], [truth[i] for i in kept_pairs]
        figures += _generated_figures(f"Kontext, {painter.steps} steps: {name}", scores, truth, number, total)
    return figures


# ------------------------------------------------------------------------------------------------- the whole table


@dataclass
class Part:
    """What one process has measured: figures, how many questions it asked, and their label masses."""

    figures: list[Figure]
    asked: int
    masses: list[float]


def run_part(arguments: argparse.Namespace, name: str, steps: int) -> Part:
    """Measure the part called `name`, on generated pictures at so many denoising steps; `arguments`: see `main`."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    judge = Judge(arguments.model)
    number, quick = arguments.number, arguments.quick
    seed = f"bench judge {arguments.seed} {name} {steps}"
    if name == "renders":
        rng = random.Random(seed)
        figures = bench_captions(judge, number, rng)
        figures += bench_ratings(judge, 2 * number, rng)
        figures += bench_edits(judge, 3 * number, rng)
    else:
        painter = replace(generator.Generator.load(arguments.generator), steps=steps)
        kept = None
        if arguments.build:
            # Whatever decides them: weights, code, and what was asked for.
            files = [*arguments.generator.rglob("*.safetensors"), *Path(__file__).parent.glob("*.py")]
            decides = sorted(file.read_bytes() for file in files) + [f"{seed} {number} {quick}".encode()]
            kept = arguments.build / f"{name}-{steps}-{hashlib.sha256(b''.join(decides)).hexdigest()[:12]}.pkl"
        bench = {"pictures": bench_pictures, "changes": bench_changes}[name]
        figures = bench(judge, painter, 4 * number, seed, quick, kept)
    return Part(figures, judge.asked, judge.masses)


def main() -> int:
    """Print the table; return 1 where a figure is below its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--generator", type=Path, help="a tiny FLUX directory, to judge its pictures too")
    parser.add_argument("--build", type=Path, help="keep the generator's pictures here, for another run")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--number", type=int, help="pictures for each figure")
    arguments = parser.parse_args()
    began = time.monotonic()
    arguments.number = arguments.number or (30 if arguments.quick else 200)
    parts = [("renders", 0)]
    if arguments.generator:
        parts += [(name, n) for n in dict.fromkeys((2, 4, generator.STEPS)) for name in ("pictures", "changes")]
    run = partial(run_part, arguments)
    # New processes: one that is forked from a process with threads may stand still. Those that take long come first.
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), multiprocessing.get_context("spawn")) as pool:
        running = {part: pool.submit(run, *part) for part in sorted(parts, key=lambda p: -p[1])}
        done = [running[part].result() for part in parts]
    figures = [figure for part in done for figure in part.figures]
    masses = [mass for part in done for mass in part.masses]
    figures.append(Figure("label mass, mean", float(np.mean(masses)), 0.98))
    figures.append(Figure("label mass, lowest hundredth", float(np.quantile(masses, 0.01)), 0.9))
    slack = QUICK_SLACK if arguments.quick else 0.0
    good = True
    for figure in figures:
        passed = figure.passes(slack)
        good &= passed
        bar = "" if figure.bar is None else f"{'<=' if figure.at_most else '>='} {figure.bar:.2f}"
        mark = "" if passed else "BELOW"
        print(f"{figure.name:58} {figure.value:8.4f}  {bar:8} {mark:6} {figure.note}".rstrip())
    result = "all bars met" if good else "below a bar"
    print(f"{sum(part.asked for part in done)} questions in {time.monotonic() - began:.0f} s; {result}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
