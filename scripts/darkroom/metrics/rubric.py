"""Rubrics: what the judge is asked about a picture, and how its reply becomes numbers.

A rubric is a YAML file; `config/rubrics/default.yaml` explains its form. Each question makes columns of the
score tables, beside `name`_reply (as it came) and `name`_error:

    yes_no  `name` (P(yes), 0..1), `name`_mass (p(yes) + p(no))
    choice  `name` (the likeliest answer), `name`_ANSWER (P of each, 0..1), `name`_mass
    rating  `name` (the expected number), `name`_mass
    text    `name` (the reply)
    json    one column per field (a number, or text); of a repeated question also FIELD_spread
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from darkroom.engines import one_of
from darkroom.errors import DarkroomError
from darkroom.metrics.base import TAKEN, Catalogue, ScoreColumn
from darkroom.plan.stages import EDITED, IMAGES, STAGES

JUDGE = "judge"  # the metric that asks these questions
_ALWAYS = (IMAGES.name, EDITED.name)  # kinds that every rubric is about, though it may ask nothing
MAX_TEXT = 10_000
MAX_REPEAT = 64
# Any letter of any language, but not the quote, the backslash and control characters: with a mere length limit, models put
# these into the text as they are, and the reply is not JSON.
_LETTER = r'[^"\\\x00-\x1f\x7f]'
_MOST_REPEATS = 128  # xgrammar 0.2.8 cannot compile a pattern that repeats a letter more often

_YES_NO: dict[str, tuple[str, ...]] = {
    "yes": ("yes", "Yes", " yes", " Yes", "YES"),
    "no": ("no", "No", " no", " No", "NO"),
}
SHOWN = ("both", "source", "result")
COMBINED = ("mean", "geometric_mean", "minimum")
# What goes with which types, besides name, type, text and show.
_KEYS = {
    "yes_no": ("over", "combine"),
    "choice": ("answers",),
    "rating": ("minimum", "maximum", "over", "combine"),
    "text": ("max_length",),
    "json": ("fields", "repeat"),
}
_ALL_KEYS = {key for keys in _KEYS.values() for key in keys}
_NAME = re.compile(r"\{([^\W\d]\w*)(?:\.(\w+))?\}")


def _text_pattern(max_length: int) -> str:
    """A regular expression for text of 1 to `max_length` characters."""
    pieces = [min(_MOST_REPEATS, max_length - done) for done in range(0, max_length, _MOST_REPEATS)]
    return "^" + "".join(f"{_LETTER}{{{int(not i)},{most}}}" for i, most in enumerate(pieces)) + "$"


@dataclass(frozen=True)
class Question:
    """One question of a rubric.

    Attributes:
        name, type, text: as in the file; names in braces stand in the text for what the picture's row has.
        fields: of json: name -> {"minimum", "maximum"} or {"max_length"}.
        answers: of choice: name of an answer -> its spellings.
        limits: of rating: {"minimum", "maximum"}; of text: {"max_length"}.
        show: which pictures of an edit the judge sees: "source", "result" or "both".
        repeat: how often a json question is asked, each time with another seed.
        over: a list field of the row, for each item of which the question is asked, or None.
        combine: how the scores of the items become one: "mean", "geometric_mean" or "minimum".
    """

    name: str
    type: str
    text: str
    fields: dict[str, dict[str, int]] = field(default_factory=dict)
    answers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    show: str = "both"
    repeat: int = 1
    over: str | None = None
    combine: str = "mean"

    def ask(self, prompt: str, row: Mapping[str, Any] | None = None, item: Any = None) -> str:
        """The question about a picture. Braces in what is filled in stay what they are, and so do names that `row` has not.

        Args:
            prompt: what the picture was made for.
            row: the row's own fields.
            item: of the field that the question goes over.
        """
        known = {**(row or {}), "prompt": prompt, **({} if self.over is None else {"item": item})}

        def filled(match: re.Match[str]) -> str:
            value, inner = known.get(match[1], match[0]), match[2]
            if inner is not None:
                value = value.get(inner, match[0]) if isinstance(value, dict) else match[0]
            return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

        return _NAME.sub(filled, self.text)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The row's own fields that the question needs, in order."""
        named = {match[1] for match in _NAME.finditer(self.text)} - {"prompt", "item"}
        return tuple(sorted(named | ({self.over} if self.over else set())))

    @cached_property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The answers that the reply begins with, each with its spellings; none where the reply is read as text."""
        if self.type == "yes_no":
            return _YES_NO
        if self.type == "rating":
            numbers = range(self.limits["minimum"], self.limits["maximum"] + 1)
            return {str(number): (str(number), f" {number}") for number in numbers}
        return self.answers

    @property
    def told(self) -> dict[str, Any]:
        """What is asked, as plain JSON: what the question says, and what it sets otherwise than the default."""
        told: dict[str, Any] = {"name": self.name, "type": self.type, "text": self.text}
        told |= {"fields": [list(field) for field in self.fields.items()]} if self.fields else {}  # their order counts
        told |= {name: value for name in ("answers", "limits", "over") if (value := getattr(self, name))}
        told |= {"show": self.show} if self.show != "both" else {}
        told |= {"repeat": self.repeat} if self.repeat > 1 else {}
        return told | ({"combine": self.combine} if self.over else {})

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the reply to a json question."""
        properties: dict[str, dict[str, Any]] = {}
        for name, limits in self.fields.items():
            if "max_length" in limits:
                properties[name] = {"type": "string", "pattern": _text_pattern(limits["max_length"])}
            else:
                properties[name] = {"type": "integer", "minimum": limits["minimum"], "maximum": limits["maximum"]}
        required = list(properties)
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    @cached_property
    def columns(self) -> list[ScoreColumn]:
        """The columns this question makes."""

        def column(name: str, type_: str, role: str, **limits: Any) -> ScoreColumn:
            return ScoreColumn(name, type_, JUDGE, role, self.name, self.text, **limits)

        def score(name: str, low: float, high: float, type_: str = "float") -> ScoreColumn:
            return column(name, type_, "score", low=low, high=high, selectable=True)

        columns: list[ScoreColumn] = []
        if self.type == "yes_no":
            columns = [score(self.name, 0, 1)]
        elif self.type == "rating":
            columns = [score(self.name, self.limits["minimum"], self.limits["maximum"])]
        elif self.type == "choice":
            columns = [column(self.name, "text", "text"), *(score(f"{self.name}_{one}", 0, 1) for one in self.answers)]
        elif self.type == "text":
            columns = [column(self.name, "text", "text")]
        for name, limits in self.fields.items():
            if "max_length" in limits:
                columns.append(column(name, "text", "text"))
                continue
            low, high = limits["minimum"], limits["maximum"]
            columns.append(score(name, low, high, "int" if self.repeat == 1 else "float"))
            if self.repeat > 1:
                columns.append(column(f"{name}_spread", "float", "score", low=0, high=(high - low) / 2))
        if self.labels:
            columns.append(column(f"{self.name}_mass", "float", "mass", low=0, high=1))
        return [*columns, column(f"{self.name}_reply", "text", "reply"), column(f"{self.name}_error", "text", "error")]

    def parse(self, reply: str) -> tuple[dict[str, Any], str | None]:
        """The fields of a json reply, or why it cannot be used: (values, None) or ({}, reason)."""
        try:
            values = json.loads(reply)
            reply.encode("utf-8")
            json.dumps(values, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            return {}, "reply holds half of a surrogate pair, which is no character"
        except RecursionError:
            return {}, "reply is nested too deeply"
        except ValueError as error:
            return {}, f"reply is not JSON: {error}"
        if not isinstance(values, dict):
            return {}, "reply is not a JSON object"
        for name, limits in self.fields.items():
            value = values.get(name)
            if "max_length" in limits:
                if not isinstance(value, str):
                    return {}, f"reply has no text {name}"
            elif isinstance(value, bool) or not isinstance(value, int):
                return {}, f"reply has no whole number {name}"
            elif not limits["minimum"] <= value <= limits["maximum"]:
                return {}, f"{name} is {value}, outside {limits['minimum']} to {limits['maximum']}"
        return {name: values[name] for name in self.fields}, None


@dataclass(frozen=True)
class Rubric:
    """The questions of a rubric file by kind of picture."""

    questions: dict[str, list[Question]]

    def columns(self, kind: str) -> list[ScoreColumn]:
        """All columns that the questions about a kind of picture make, in order."""
        return [column for question in self.questions.get(kind, []) for column in question.columns]

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue.of({kind: self.columns(kind) for kind in self.questions})


def load_rubric(path: str | Path) -> Rubric:
    """Read a rubric file. Raises DarkroomError: one line that names the file and the question."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DarkroomError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", error)).splitlines()[0]
        raise DarkroomError(f"{path}{line}: not valid YAML: {problem}") from error
    whole = isinstance(content, dict) and not set(content) - set(STAGES)
    if not whole or not all(isinstance(asked, list | None) for asked in content.values()):
        raise DarkroomError(f"{path}: expected the sections {one_of([*STAGES], 'and')}, each a list of questions")
    kinds = [kind for kind in STAGES if kind in _ALWAYS or content.get(kind)]
    questions = {kind: [_question(path, kind, entry) for entry in content.get(kind) or []] for kind in kinds}
    for kind, asked in questions.items():
        columns = [column.name for question in asked for column in question.columns]
        folded = [name.casefold() for name in columns]  # names that differ in case alone are one to DuckDB
        if double := {name for name in columns if folded.count(name.casefold()) > 1}:
            raise DarkroomError(f"{path}: {kind}: column {sorted(double)[0]} is made by two questions")
        if taken := sorted(name for name in columns if name.casefold() in TAKEN):
            raise DarkroomError(f"{path}: {kind}: column {taken[0]} is there already; give it another name")
        names = [question.name for question in asked]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DarkroomError(f"{path}: {kind}: two questions are called {twice[0]}; give one of them another name")
    types: dict[str, tuple[str, str]] = {}
    for kind, asked in questions.items():
        for column in (column for question in asked for column in question.columns):
            type_, first = types.setdefault(column.name, (column.type, kind))
            if type_ != column.type:
                raise DarkroomError(f"{path}: column {column.name} is {type_} for {first} and {column.type} for {kind}")
    return Rubric(questions)


def _question(path: str | Path, kind: str, entry: Any) -> Question:
    if not isinstance(entry, dict) or set(entry) - {"name", "type", "text", "show", *_ALL_KEYS}:
        raise DarkroomError(
            f"{path}: {kind}: a question has name, type, text, show and, by its type, {one_of(sorted(_ALL_KEYS))}"
        )
    name, type_, text = entry.get("name"), entry.get("type"), entry.get("text")
    where = f"{path}: {kind}: question {name}"
    if not isinstance(name, str) or not name.isidentifier():
        raise DarkroomError(f"{where}: its name must be letters, digits and underscores")
    if not isinstance(type_, str) or type_ not in _KEYS:
        raise DarkroomError(f"{where}: type must be {one_of([*_KEYS])}, got {type_}")
    if not isinstance(text, str) or not text.strip():
        raise DarkroomError(f"{where}: text must be what is asked, in quotes")
    fields = entry.get("fields") or {}
    if (type_ == "json") != bool(fields) or not isinstance(fields, dict):
        raise DarkroomError(f"{where}: fields go with type json, and type json needs some")
    if wrong := sorted(set(entry) - {"name", "type", "text", "show", *_KEYS[type_]}):
        types = one_of([other for other, keys in _KEYS.items() if wrong[0] in keys])
        hint = "; it would be the same each time" if wrong[0] == "repeat" else ""
        raise DarkroomError(f"{where}: {wrong[0]} goes with type {types}, not {type_}{hint}")
    question = Question(
        name,
        type_,
        text,
        fields=_fields(where, fields),
        answers=_answers(where, entry.get("answers")) if type_ == "choice" else {},
        limits=_limits(where, type_, entry),
        show=entry.get("show", "both"),
        repeat=entry.get("repeat", 1),
        over=entry.get("over"),
        combine=entry.get("combine", "mean"),
    )
    if question.show not in SHOWN:
        raise DarkroomError(f"{where}: show must be {one_of([*SHOWN])}, got {question.show}")
    if question.show != "both" and not STAGES[kind].reads:
        raise DarkroomError(f"{where}: show is for pictures that are made from a source; leave it out")
    repeat = question.repeat
    if isinstance(repeat, bool) or not isinstance(repeat, int) or not 1 <= repeat <= MAX_REPEAT:
        raise DarkroomError(f"{where}: repeat must be a whole number from 1 to {MAX_REPEAT}, got {repeat}")
    if repeat > 1 and all("max_length" in limits for limits in fields.values()):
        raise DarkroomError(f"{where}: repeat gives the mean of numbers, and no field is one; leave it out")
    if question.over is not None and (not isinstance(question.over, str) or not question.over):
        raise DarkroomError(f"{where}: over must name a field of the rows, got {question.over}")
    if question.combine not in COMBINED:
        raise DarkroomError(f"{where}: combine must be {one_of([*COMBINED])}, got {question.combine}")
    items = any(match[1] == "item" for match in _NAME.finditer(text))
    if items != (question.over is not None):
        raise DarkroomError(f"{where}: over, the field of the rows, and {{item}} in the text go together")
    if "combine" in entry and not items:
        raise DarkroomError(f"{where}: combine goes with over")
    return question


def _fields(where: str, fields: dict[Any, Any]) -> dict[str, dict[str, int]]:
    for column, limits in fields.items():
        if not isinstance(column, str) or not column.isidentifier():
            raise DarkroomError(f"{where}: field {column}: its name must be letters, digits and underscores")
        whole = isinstance(limits, dict) and all(isinstance(n, int) for n in limits.values())
        if not whole or set(limits) not in ({"minimum", "maximum"}, {"max_length"}):
            raise DarkroomError(f"{where}: field {column} needs minimum and maximum, or max_length, in whole numbers")
        if limits.get("minimum", 0) > limits.get("maximum", 0) or not 1 <= limits.get("max_length", 1) <= MAX_TEXT:
            raise DarkroomError(
                f"{where}: field {column}: minimum must not exceed maximum, max_length is 1 to {MAX_TEXT}"
            )
    return fields


def _limits(where: str, type_: str, entry: dict[str, Any]) -> dict[str, int]:
    """`limits` of a question: of a rating its first and last number, of a text its greatest length."""
    names = {"rating": ("minimum", "maximum"), "text": ("max_length",)}.get(type_, ())
    limits = {
        name: value for name in names if isinstance(value := entry.get(name), int) and not isinstance(value, bool)
    }
    if len(limits) < len(names):
        raise DarkroomError(f"{where}: type {type_} needs {' and '.join(names)}, in whole numbers")
    if type_ == "rating" and not 0 <= limits["minimum"] < limits["maximum"] <= 9:
        raise DarkroomError(
            f"{where}: a rating is one digit: minimum and maximum from 0 to 9, the first the smaller one (for others, type json)"
        )
    if type_ == "text" and not 1 <= limits["max_length"] <= MAX_TEXT:
        raise DarkroomError(f"{where}: max_length is 1 to {MAX_TEXT}")
    return limits


def _answers(where: str, answers: Any) -> dict[str, tuple[str, ...]]:
    """Name of each answer -> its spellings: those of the file, or, of a mere list, as people write a word."""
    if isinstance(answers, list):
        words = [str(one) if isinstance(one, int) and not isinstance(one, bool) else one for one in answers]
        found = {
            one: [one, one.capitalize(), f" {one}", f" {one.capitalize()}", one.upper()]
            for one in words
            if isinstance(one, str)
        }
        whole = len(found) == len(words)
    else:
        whole = isinstance(answers, dict) and all(isinstance(one, list) and one for one in answers.values())
        found = {str(name): spellings for name, spellings in answers.items()} if whole else {}
        # `true` and `false` are what YAML makes of a bare yes and no.
        whole = whole and not any(isinstance(name, bool) for name in answers)
    if (
        not whole
        or len(found) < 2
        or any(not isinstance(s, str) or not s.strip() for one in found.values() for s in one)
    ):
        raise DarkroomError(
            f"{where}: type choice needs two or more different answers: a list of words, or each with its list of spellings; put yes"
            " and no in quotes"
        )
    if odd := next((name for name in found if not f"a_{name}".isidentifier()), None):
        raise DarkroomError(
            f"{where}: answer {odd}: its name must be letters, digits and underscores; list its spellings"
        )
    return {name: tuple(dict.fromkeys(spellings)) for name, spellings in found.items()}
