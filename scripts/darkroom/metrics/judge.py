"""The judge: a metric that asks a vision-language model the questions of a rubric, and reads its replies."""

import json
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from darkroom.config.models import Judge
from darkroom.errors import DarkroomError
from darkroom.identity import canonical, digest
from darkroom.jobs.runtime import say
from darkroom.metrics.base import Answer, Ask, Metric, ScoreColumn, Subject
from darkroom.metrics.rubric import JUDGE, Question, Rubric
from darkroom.plan.parts import Part, own_fields
from darkroom.plan.recipe import JUDGE_RECIPE_VERSION, Recipe, judge_recipe, question_recipe

LEAST_MASS = 1e-6


class JudgeMetric(Metric):
    """The judge as a metric. Each question of its rubric is a part: it is asked again alone.

    Args:
        section: `judge` of the config.
        rubric: what is asked.
        local: gives the section with its model as a folder; only called to open the judge. For a model that lies in a
            folder anyway, the section itself will do.

    Raises DarkroomError for a question that is to be repeated where each time would be the same.
    """

    name = JUDGE
    version = JUDGE_RECIPE_VERSION
    packages = ("torch", "vllm", "transformers", "qwen-vl-utils", "xgrammar")

    def __init__(self, section: Judge, rubric: Rubric, local: Callable[[], Judge] | None = None):
        self.needs = self.section = section
        self.rubric = rubric
        self.local = local or (lambda: section)
        for kind, questions in rubric.questions.items():
            again = next((question.name for question in questions if question.repeat > 1), None)
            if again and section.temperature == 0:
                raise DarkroomError(
                    f"{section.rubric}: {kind}: question {again}: repeat changes nothing at judge.temperature 0; raise that, or leave it out"
                )

    def columns(self, kind: str) -> list[ScoreColumn]:
        return self.rubric.columns(kind)

    def recipe(self, kind: str) -> Recipe:
        return self._recipes[kind] if kind in self._recipes else judge_recipe(self.section, digest([]))

    @cached_property
    def _recipes(self) -> dict[str, Recipe]:
        asked = self.rubric.questions.items()
        return {kind: judge_recipe(self.section, digest([one.told for one in questions])) for kind, questions in asked}

    def parts(self, kind: str) -> list[Part]:
        return [self._part(question) for question in self.rubric.questions.get(kind, [])]

    def _part(self, question: Question) -> Part:
        columns = tuple(column.name for column in question.columns)
        recipe = question_recipe(self.section, question.told, drawn=not question.labels)
        # How the scores of the items become one does not decide them.
        pieces = None
        if question.over:
            pieces = {**recipe, "rubric": {name: one for name, one in question.told.items() if name != "combine"}}
        reason = (f"{question.name}_error",)
        reuse = partial(_reused, question) if question.over else None
        return Part(question.name, columns, reason, recipe, question.names, question.over, pieces, reuse)

    def open(self, kind: str) -> "JudgeScorer":
        from darkroom.metrics import vlm  # vLLM: only where something is to be asked

        section = self.section
        say(
            f"judge {self.recipe(kind)['model']} ({section.model}, revision {section.revision}), engine {section.engine}"
        )
        engine = vlm.open_judge(self.local(), kind, self.rubric)
        say(f"device {engine.device}, dtype {engine.dtype}")
        return JudgeScorer(engine, self.rubric.questions.get(kind, []))


@dataclass
class _Put:
    """A question as it is put about one picture.

    asks: what the judge is asked. error: why it cannot be asked. items: of a question over a field: what is known of each, a dict with
    "item"; those with nothing else are asked, in order.
    """

    question: Question
    asks: list[Ask] = field(default_factory=list)
    error: str | None = None
    items: list[dict[str, Any]] | None = None

    def columns(self, answers: list[Answer]) -> dict[str, Any]:
        """What the answers to `asks` make."""
        if self.error:
            return {f"{self.question.name}_error": self.error}
        if self.items is not None:
            left = iter(answers)
            return _combined(
                self.question, [one if len(one) > 1 else self._told(one, next(left)) for one in self.items]
            )
        if self.question.repeat > 1:
            return _averaged(self.question, answers)
        return read_answer(self.question, answers[0])

    def _told(self, item: dict[str, Any], answer: Answer) -> dict[str, Any]:
        columns, name = read_answer(self.question, answer), self.question.name
        told = {"score": columns.get(name), "mass": columns.get(f"{name}_mass")}
        return item | told | {"reply": columns[f"{name}_reply"], "error": columns[f"{name}_error"]}


class JudgeScorer:
    """Asks the engine the questions about every image that are wanted of it. asked: how many it has put so far."""

    def __init__(self, engine: Any, questions: list[Question]):
        self.engine, self.questions, self.asked = engine, questions, 0

    def prepare(self, subject: Subject) -> Subject:
        """The subject with its pictures as the judge sees them."""
        names = [subject.record[name] for name in ("source_sha256", "sha256") if subject.record.get(name)]
        known = len(names) == len(subject.images)
        images = [self.engine.fit(image, names[n] if known else None) for n, image in enumerate(subject.images)]
        return replace(subject, images=images)

    def score(self, subjects: list[Subject]) -> list[dict[str, Any]]:
        puts = [[_put(subject, q) for q in self.questions if q.name in subject.parts] for subject in subjects]
        asks = [ask for each in puts for put in each for ask in put.asks]
        self.asked += len(asks)
        answers = iter(self.engine.ask(asks))
        scores: list[dict[str, Any]] = []
        for each in puts:
            columns: dict[str, Any] = {}
            for put in each:
                columns |= put.columns([next(answers) for _ in put.asks])
            scores.append(columns)
        return scores


def _put(subject: Subject, question: Question) -> _Put:
    """A question about a picture, filled in."""
    own = own_fields(subject.record) if question.names else {}
    if lacking := next((name for name in question.names if name not in own), None):
        return _Put(question, error=f"the row has no field {lacking}")
    images = {"source": subject.images[:1], "result": subject.images[-1:]}.get(question.show, subject.images)
    seed = int(subject.parts[question.name][:8], 16)

    def ask(item: Any = None, time: int = 0) -> Ask:
        return Ask(images, question.ask(subject.prompt, own, item), question, (seed + time) % 2**32)

    if question.over is None:
        return _Put(question, [ask(time=time) for time in range(question.repeat)])
    items = own[question.over]
    if not isinstance(items, list) or not items:
        return _Put(question, error=f"field {question.over} of the row is no list with something in it")
    known = _known(question, subject.earlier.get(question.name, {}))
    told = [known.get(canonical(item), {"item": item}) for item in items]
    return _Put(question, [ask(item) for item, one in zip(items, told, strict=True) if len(one) == 1], items=told)


def _known(question: Question, earlier: Mapping[str, Any]) -> dict[bytes, dict[str, Any]]:
    """What earlier columns say of each item, without those that have no score."""
    items = json.loads(earlier.get(f"{question.name}_reply") or "[]")
    return {canonical(one["item"]): one for one in items if one["error"] is None}


def _reused(question: Question, record: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any] | None:
    """The columns of a question over a field, where earlier ones of the same picture say enough of each item; else None."""
    items, known = own_fields(record).get(question.over or ""), _known(question, earlier)
    if not isinstance(items, list) or not items or any(canonical(item) not in known for item in items):
        return None
    told = [known[canonical(item)] for item in items]
    return {column.name: None for column in question.columns} | _combined(question, told)


def _combined(question: Question, items: list[dict[str, Any]]) -> dict[str, Any]:
    """The columns of a question over a field. One item without a score leaves the picture without one: a number says what it is of."""
    name = question.name
    columns: dict[str, Any] = {f"{name}_reply": json.dumps(items, ensure_ascii=False)}
    if failed := next((one for one in items if one["error"] is not None), None):
        about = json.dumps(failed["item"], ensure_ascii=False)
        return columns | {f"{name}_error": f"{about}: {failed['error']}"}
    scores = [float(one["score"]) for one in items]
    return columns | {
        name: round(_COMBINE[question.combine](scores), 6),
        f"{name}_mass": min(one["mass"] for one in items),
    }


def _geometric_mean(scores: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, scores))) if min(scores) > 0 else 0.0


_COMBINE: dict[str, Callable[[list[float]], float]] = {
    "mean": statistics.fmean,
    "geometric_mean": _geometric_mean,
    "minimum": min,
}


def _averaged(question: Question, answers: list[Answer]) -> dict[str, Any]:
    """The columns of a repeated question: of numbers the mean and the standard deviation, of texts the first. One failure is all's."""
    name, each = question.name, [read_answer(question, answer) for answer in answers]
    columns: dict[str, Any] = {f"{name}_reply": json.dumps([one[f"{name}_reply"] for one in each], ensure_ascii=False)}
    for number, one in enumerate(each, 1):
        if one[f"{name}_error"]:
            return columns | {f"{name}_error": f"reply {number} of {len(each)}: {one[f'{name}_error']}"}
    for column, limits in question.fields.items():
        values = [one[column] for one in each]
        if "max_length" in limits:
            columns[column] = values[0]
        else:
            columns |= {column: round(statistics.fmean(values), 6)}
            columns |= {f"{column}_spread": round(statistics.pstdev(values), 6)}
    return columns


def read_answer(question: Question, answer: Answer) -> dict[str, Any]:
    """The columns that an answer makes; a reply that cannot be read gives nulls and a reason, never a number."""
    name = question.name
    # A model can stop in the middle of a character; half of a surrogate pair cannot be stored.
    reply = None if answer.reply is None else answer.reply.encode("utf-8", "replace").decode("utf-8")
    columns: dict[str, Any] = {f"{name}_reply": reply, f"{name}_error": answer.error}
    if answer.error:
        return columns
    if question.labels:
        return columns | _from_probabilities(question, answer.probabilities or {})
    values, error = question.parse(reply or "") if question.type == "json" else _text(question, reply or "")
    if answer.cut and (error or question.type == "text"):
        values, error = {}, f"reply is cut off after {answer.cut} tokens; raise judge.max_tokens"
    return columns | values | {f"{name}_error": error}


def _text(question: Question, reply: str) -> tuple[dict[str, Any], str | None]:
    text, most = reply.strip(), question.limits["max_length"]
    if not text:
        return {}, "reply is empty"
    if len(text) > most:
        return {}, f"reply has {len(text)} characters, more than max_length ({most}); raise it, or ask for less"
    return {question.name: text}, None


def _from_probabilities(question: Question, found: Mapping[str, float]) -> dict[str, Any]:
    """The columns of a question with given answers."""
    name, mass = question.name, sum(found.values())
    if not mass >= LEAST_MASS:  # also where it is NaN
        answers = "neither yes nor no" if question.type == "yes_no" else "none of the answers"
        return {f"{name}_error": f"{answers} was considered (label mass {mass:.1e})"}
    shares = {answer: p / mass for answer, p in found.items()}
    columns: dict[str, Any] = {f"{name}_mass": round(mass, 6)}
    if question.type == "yes_no":
        return columns | {name: round(shares["yes"], 6)}
    if question.type == "rating":
        return columns | {name: round(sum(int(number) * share for number, share in shares.items()), 6)}
    columns |= {f"{name}_{answer}": round(share, 6) for answer, share in shares.items()}
    return columns | {name: max(shares, key=lambda answer: shares[answer])}
