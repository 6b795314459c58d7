"""The judge: a metric that asks a vision-language model the questions of a rubric, and reads its replies."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

from darkroom.config.models import Judge
from darkroom.jobs.runtime import say
from darkroom.metrics.base import Answer, Ask, Metric, ScoreColumn, Subject
from darkroom.metrics.rubric import JUDGE, Question, Rubric
from darkroom.plan.recipe import JUDGE_RECIPE_VERSION, Recipe, judge_recipe

LEAST_MASS = 1e-6


class JudgeMetric(Metric):
    """The judge as a metric.

    Args:
        section: `judge` of the config.
        rubric: what is asked.
        local: gives the section with its model as a folder; only called to open the judge. For a model that lies in a
            folder anyway, the section itself will do.
    """

    name = JUDGE
    version = JUDGE_RECIPE_VERSION
    packages = ("torch", "vllm", "transformers", "qwen-vl-utils", "xgrammar")

    def __init__(self, section: Judge, rubric: Rubric, local: Callable[[], Judge] | None = None):
        self.needs = self.section = section
        self.rubric = rubric
        self.local = local or (lambda: section)

    def columns(self, kind: str) -> list[ScoreColumn]:
        return self.rubric.columns(kind)

    def recipe(self, kind: str) -> Recipe:
        return self._recipe  # the digest of the rubric is that of its questions about all kinds

    @cached_property
    def _recipe(self) -> Recipe:
        return judge_recipe(self.section, self.rubric.digest)

    def open(self, kind: str) -> "JudgeScorer":
        from darkroom.metrics import vlm  # vLLM: only where something is to be asked

        section = self.section
        say(f"judge {self._recipe['model']} ({section.model}, revision {section.revision}), engine {section.engine}")
        engine = vlm.open_judge(self.local(), kind, self.rubric)
        say(f"device {engine.device}, dtype {engine.dtype}")
        return JudgeScorer(engine, self.rubric.questions.get(kind, []))


class JudgeScorer:
    """Asks the engine every question about every image."""

    def __init__(self, engine: Any, questions: list[Question]):
        self.engine, self.questions = engine, questions

    def prepare(self, subject: Subject) -> Subject:
        """The subject with its pictures as the judge sees them."""
        names = [subject.record[name] for name in ("source_sha256", "sha256") if subject.record.get(name)]
        known = len(names) == len(subject.images)
        images = [self.engine.fit(image, names[n] if known else None) for n, image in enumerate(subject.images)]
        return replace(subject, images=images)

    def score(self, subjects: list[Subject]) -> list[dict[str, Any]]:
        asks = [
            Ask(subject.images, question.ask(subject.prompt), question, subject.seed)
            for subject in subjects
            for question in self.questions
        ]
        answers = zip(asks, self.engine.ask(asks), strict=True)
        scores: list[dict[str, Any]] = []
        for _ in subjects:
            columns: dict[str, Any] = {}
            for _ in self.questions:
                ask, answer = next(answers)
                columns |= read_answer(ask.question, answer)
            scores.append(columns)
        return scores


def read_answer(question: Question, answer: Answer) -> dict[str, Any]:
    """The columns that an answer makes; a reply that cannot be read gives nulls and a reason, never a number."""
    name = question.name
    # A model can stop in the middle of a character; half of a surrogate pair cannot be stored.
    reply = None if answer.reply is None else answer.reply.encode("utf-8", "replace").decode("utf-8")
    columns: dict[str, Any] = {f"{name}_reply": reply, f"{name}_error": answer.error}
    if answer.error:
        return columns
    if question.type == "json":
        values, error = question.parse(reply or "")
        if error and answer.cut:
            error = f"reply is cut off after {answer.cut} tokens; raise judge.max_tokens"
        return columns | values | {f"{name}_error": error}
    assert answer.p_yes is not None and answer.p_no is not None  # an answer to yes or no without an error has both
    mass = answer.p_yes + answer.p_no
    if not mass >= LEAST_MASS:  # also where it is NaN
        return columns | {f"{name}_error": f"neither yes nor no was considered (label mass {mass:.1e})"}
    return columns | {name: round(answer.p_yes / mass, 6), f"{name}_mass": round(mass, 6)}
