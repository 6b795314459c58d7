"""Scores that the config works out from others by formulas: which kinds of pictures have them, and their columns."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from darkroom.config.models import Formula
from darkroom.errors import DarkroomError
from darkroom.metrics.base import Catalogue, ScoreColumn

METRIC = "scores"  # what the columns of formulas name as their metric: the section of the config


@dataclass(frozen=True)
class Computed:
    """A formula of the config. text: an expression of DuckDB; low and high: what its values are between."""

    name: str
    text: str
    low: float = 0
    high: float = 1

    @property
    def where(self) -> str:
        """The key of the config that it stands under."""
        return f"{METRIC}.{self.name}"

    @property
    def error(self) -> str:
        """The column that says why there is no value."""
        return f"{self.name}_error"

    def columns(self) -> tuple[ScoreColumn, ScoreColumn]:
        label = " ".join(self.text.split())
        score = ScoreColumn(self.name, "float", METRIC, "score", self.name, label, self.low, self.high, selectable=True)
        return score, ScoreColumn(self.error, "text", METRIC, "error", self.name, label)

    def named(self) -> set[str]:
        """The words of the formula that can be columns, in small letters."""
        words = re.sub(r"'(?:[^']|'')*'|--[^\n]*", " ", self.text)
        quoted = re.findall(r'"((?:[^"]|"")+)"', words)
        return {word.casefold() for word in [*quoted, *re.findall(r"\b[^\W\d]\w*\b(?!\s*\()", words)]}


def formulas_of(scores: Mapping[str, str | Formula]) -> list[Computed]:
    """The formulas of a config's section `scores`, in its order."""
    return [
        Computed(name, said)
        if isinstance(said, str)
        else Computed(name, said.formula, float(said.low), float(said.high))
        for name, said in scores.items()
    ]


def of_kinds(formulas: list[Computed], catalogue: Catalogue) -> dict[str, list[Computed]]:
    """Kind -> the formulas that it has all scores for, in order; one may name those before it.

    Raises DarkroomError where no kind has all that a formula names.
    """
    found: dict[str, list[Computed]] = {kind: [] for kind in catalogue.kinds}
    for formula in formulas:
        if not formula.name.isidentifier():
            raise DarkroomError(f"config: {formula.where}: its name must be letters, digits and underscores")
        there = {
            kind: {column.name.casefold() for column in catalogue.columns(kind)}
            | {column.name.casefold() for one in found[kind] for column in one.columns()}
            for kind in catalogue.kinds
        }
        asked = formula.named() & set().union(*there.values())
        kinds = [kind for kind, columns in there.items() if asked and asked <= columns]
        if not kinds:
            names = ", ".join(sorted(asked)) or "a score"
            known = "; ".join(
                f"{kind}: {', '.join(catalogue.score_names(kind))}"
                for kind in catalogue.kinds
                if catalogue.scores(kind)
            )
            raise DarkroomError(
                f"config: {formula.where}: no kind of picture has {names} as `{formula.text}` asks; there are {known or 'none'}"
            )
        for kind in kinds:
            found[kind].append(formula)
    return found


def with_formulas(catalogue: Catalogue, formulas: list[Computed]) -> Catalogue:
    """The catalogue with the columns of formulas after those of metrics."""
    if not formulas:
        return catalogue
    found = of_kinds(formulas, catalogue)
    return Catalogue.of(
        {
            kind: [*columns, *(column for formula in found[kind] for column in formula.columns())]
            for kind, columns in catalogue.kinds.items()
        }
    )
