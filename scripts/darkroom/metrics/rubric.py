"""Rubrics: what the judge is asked about a picture, and how its reply becomes numbers.

A rubric is a YAML file; `config/rubrics/default.yaml` explains its form. Each question makes columns of the
score tables:

    yes_no  `name` (P(yes), 0..1), `name`_mass (p(yes) + p(no)), `name`_reply, `name`_error
    json    one column per field (a whole number, or text), `name`_reply (raw), `name`_error
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from darkroom.engines import one_of
from darkroom.errors import DarkroomError
from darkroom.identity import digest
from darkroom.metrics.base import TAKEN, Catalogue, ScoreColumn
from darkroom.plan.stages import EDITED, IMAGES, STAGES

JUDGE = "judge"  # the metric that asks these questions
_ALWAYS = (IMAGES.name, EDITED.name)  # kinds that every rubric is about, though it may ask nothing
MAX_TEXT = 10_000
# Any letter of any language, but not the quote, the backslash and control characters: with a mere length limit, models put
# these into the text as they are, and the reply is not JSON.
_LETTER = r'[^"\\\x00-\x1f\x7f]'
_MOST_REPEATS = 128  # xgrammar 0.2.8 cannot compile a pattern that repeats a letter more often


def _text_pattern(max_length: int) -> str:
    """A regular expression for text of 1 to `max_length` characters."""
    pieces = [min(_MOST_REPEATS, max_length - done) for done in range(0, max_length, _MOST_REPEATS)]
    return "^" + "".join(f"{_LETTER}{{{int(not i)},{most}}}" for i, most in enumerate(pieces)) + "$"


@dataclass(frozen=True)
class Question:
    """One question of a rubric. `fields` of a json question: name -> {"minimum", "maximum"} or {"max_length"}."""

    name: str
    type: str
    text: str
    fields: dict[str, dict[str, int]] = field(default_factory=dict)

    def ask(self, prompt: str) -> str:
        """The question about a picture made for `prompt`. Braces in the prompt stay what they are."""
        return self.text.replace("{prompt}", prompt)

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

    @property
    def columns(self) -> list[ScoreColumn]:
        """The columns this question makes."""

        def column(name: str, type_: str, role: str, **limits: Any) -> ScoreColumn:
            return ScoreColumn(name, type_, JUDGE, role, self.name, self.text, **limits)

        if self.type == "yes_no":
            columns = [column(self.name, "float", "score", low=0, high=1, selectable=True)]
            columns.append(column(f"{self.name}_mass", "float", "mass", low=0, high=1))
        else:
            columns = [
                column(name, "text", "text")
                if "max_length" in limits
                else column(name, "int", "score", low=limits["minimum"], high=limits["maximum"], selectable=True)
                for name, limits in self.fields.items()
            ]
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
    """The questions of a rubric file by kind of picture, and the digest of what they ask."""

    questions: dict[str, list[Question]]
    digest: str

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
    types: dict[str, tuple[str, str]] = {}
    for kind, asked in questions.items():
        for column in (column for question in asked for column in question.columns):
            type_, first = types.setdefault(column.name, (column.type, kind))
            if type_ != column.type:
                raise DarkroomError(f"{path}: column {column.name} is {type_} for {first} and {column.type} for {kind}")
    told = {kind: [[q.name, q.type, q.text, q.fields] for q in asked] for kind, asked in questions.items()}
    return Rubric(questions, digest(told))


def _question(path: str | Path, kind: str, entry: Any) -> Question:
    if not isinstance(entry, dict) or set(entry) - {"name", "type", "text", "fields"}:
        raise DarkroomError(f"{path}: {kind}: a question has name, type, text and, for type json, fields")
    name, type_, text, fields = entry.get("name"), entry.get("type"), entry.get("text"), entry.get("fields") or {}
    where = f"{path}: {kind}: question {name}"
    if not isinstance(name, str) or not name.isidentifier():
        raise DarkroomError(f"{where}: its name must be letters, digits and underscores")
    if type_ not in ("yes_no", "json"):
        raise DarkroomError(f"{where}: type must be yes_no or json, got {type_}")
    if not isinstance(text, str) or "{prompt}" not in text:
        raise DarkroomError(f"{where}: text must hold {{prompt}}")
    if (type_ == "json") != bool(fields) or not isinstance(fields, dict):
        raise DarkroomError(f"{where}: fields go with type json, and type json needs some")
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
    return Question(name, type_, text, fields)
