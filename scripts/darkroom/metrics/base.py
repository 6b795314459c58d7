"""What a metric is, and the catalogue of the columns that metrics make.

Whoever shows or uses a score reads the catalogue and knows nothing of the metric behind it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from darkroom.config.models import DeviceSection, metric_section
from darkroom.errors import DarkroomError
from darkroom.models.identity import model_identity
from darkroom.plan.parts import Part
from darkroom.plan.recipe import Recipe
from darkroom.plan.stages import like

if TYPE_CHECKING:
    from darkroom.metrics.rubric import Question

# Columns that the score files and the tables have already.
TAKEN = frozenset(
    "kind shard key image_key row item sample prompt negative_prompt seed width height steps guidance true_cfg origin"
    " sha256 error fields image source source_name source_origin source_kind source_parts source_sha256 selected label model"
    " duplicate_group duplicate_of duplicate_by duplicate_distance duplicate_against source_group prompt_group".split()
)
ROLES = ("score", "mass", "reply", "error", "text", "embedding")
TRUSTED_MASS = 0.5  # on average: below it, a model mostly wanted to say something else than what it was scored by


@dataclass(frozen=True)
class ScoreColumn:
    """A column that a metric adds to the score files and tables.

    Attributes:
        name: of the column; letters, digits and underscores.
        type: "float", "int", "text" or "bool".
        metric: name of the metric that fills it.
        role: "score", a value of the picture; "mass", how far a score can be trusted, 0..1; "reply", what the metric's
            model said, as it came; "error", why the question has no score; "text", words about the picture; "embedding", a vector
            as text (`darkroom.metrics.embeddings`), which is in score files alone: no catalogue has it.
        question: name of the question the column belongs to. The columns of one question are filled, or null, together;
            its error column says why, or is null, too, where the question does not apply to a picture (`optional`).
        label: that question in words, for people. `{prompt}` stands for the picture's prompt.
        low: least value of a number, None for text.
        high: greatest value of a number, None for text.
        selectable: whether `select` and `export.preferences` may name it, and plots and the gallery show it as a score.
        optional: whether its question may not apply to a picture: the columns are null then, without a reason, and that is no failure.
    """

    name: str
    type: str
    metric: str
    role: str
    question: str
    label: str = ""
    low: float | None = None
    high: float | None = None
    selectable: bool = False
    optional: bool = False

    @property
    def limits(self) -> tuple[float, float]:
        """(low, high), infinite where there is none."""
        return (-math.inf if self.low is None else self.low, math.inf if self.high is None else self.high)

    def __post_init__(self) -> None:
        where = f"metric {self.metric}: column {self.name}"
        if not self.name.isidentifier():
            raise DarkroomError(f"{where}: its name must be letters, digits and underscores")
        if self.role not in ROLES:
            raise DarkroomError(f"{where}: its role must be one of {', '.join(ROLES)}, got {self.role}")
        if self.role == "embedding" and self.type != "text":
            raise DarkroomError(f"{where}: an embedding is text, got {self.type}")
        if self.selectable and (self.low is None or self.high is None or not self.low <= self.high):
            raise DarkroomError(f"{where}: a score that can be selected by needs low and high, low not above high")


@dataclass(frozen=True)
class Asked:
    """A question as its columns tell it; they are filled together, or null together."""

    name: str
    label: str
    columns: tuple[ScoreColumn, ...]

    @property
    def reply(self) -> str | None:
        """The column of the reply as it came, None where there is none."""
        return next((column.name for column in self.columns if column.role == "reply"), None)

    @property
    def error(self) -> str:
        """The column that says why there is no score."""
        return next(column.name for column in self.columns if column.role == "error")

    @property
    def numbers(self) -> list[str]:
        """The columns that hold numbers."""
        return [column.name for column in self.columns if column.type != "text"]


@dataclass(frozen=True)
class Catalogue:
    """The score columns of each kind of picture, in the order of the tables. A kind that is not named has none."""

    kinds: Mapping[str, tuple[ScoreColumn, ...]]

    @classmethod
    def of(cls, kinds: Mapping[str, Iterable[ScoreColumn]]) -> "Catalogue":
        """The catalogue of these columns.

        Raises DarkroomError where a column clashes with one of the tables or of another metric, or has another type for
        another kind of picture, or where a question has no error column.
        """
        catalogue = cls({kind: tuple(columns) for kind, columns in kinds.items()})
        types: dict[str, tuple[str, str]] = {}
        for kind, columns in catalogue.kinds.items():
            owners: dict[str, str] = {}
            for column in columns:
                if column.name.casefold() in TAKEN:
                    raise DarkroomError(
                        f"metric {column.metric}: {kind}: column {column.name} is there already; give it another name"
                    )
                if (owner := owners.get(column.name.casefold())) is not None:
                    makers = (
                        f"metric {owner} and metric {column.metric}"
                        if owner != column.metric
                        else f"metric {owner}, twice"
                    )
                    raise DarkroomError(
                        f"{kind}: column {column.name} is made by {makers}; give one of them another name"
                    )
                owners[column.name.casefold()] = column.metric
                type_, first = types.setdefault(column.name, (column.type, kind))
                if type_ != column.type:
                    raise DarkroomError(
                        f"metric {column.metric}: column {column.name} is {type_} for {first} and {column.type} for {kind}"
                    )
            for question in catalogue.questions(kind):
                if all(column.role != "error" for column in question.columns):
                    raise DarkroomError(
                        f"metric {question.columns[0].metric}: {kind}: question {question.name} has no column of role error"
                    )
        return cls({k: tuple(c for c in cs if c.role != "embedding") for k, cs in catalogue.kinds.items()})

    def columns(self, kind: str) -> tuple[ScoreColumn, ...]:
        """All columns of a kind, in order."""
        return self.kinds.get(like(kind), ())

    def types(self, kind: str) -> dict[str, str]:
        """Name of each column of a kind -> its type, in order."""
        return {column.name: column.type for column in self.columns(kind)}

    def scores(self, kind: str) -> list[ScoreColumn]:
        """The numbers of a kind that a selection can name."""
        return [column for column in self.columns(kind) if column.selectable]

    def score_names(self, kind: str) -> list[str]:
        return [column.name for column in self.scores(kind)]

    def names(self, kind: str, role: str) -> list[str]:
        """The columns of a kind that have this role."""
        return [column.name for column in self.columns(kind) if column.role == role]

    def masses(self, kind: str) -> dict[str, str]:
        """Name of each score of a kind that has a mass -> the column that holds it."""
        masses = {(c.metric, c.question): c.name for c in self.columns(kind) if c.role == "mass"}
        scores = ((column.name, masses.get((column.metric, column.question))) for column in self.scores(kind))
        return {name: mass for name, mass in scores if mass}

    def questions(self, kind: str) -> list[Asked]:
        """The questions that the columns of a kind belong to, in order."""
        found: dict[tuple[str, str], list[ScoreColumn]] = {}
        for column in self.columns(kind):
            found.setdefault((column.metric, column.question), []).append(column)
        return [Asked(name, columns[0].label, tuple(columns)) for (_, name), columns in found.items()]

    def main_reply(self, kind: str) -> str | None:
        """The reply column of a kind that says most: the first of a question that is answered by more than yes or no."""
        asked = [question for question in self.questions(kind) if question.reply]
        free = [question for question in asked if all(column.role != "mass" for column in question.columns)]
        return next((question.reply for question in [*free, *asked]), None)


def mass_warning(score: str, total: float, number: int) -> str | None:
    """Why a score is not to be trusted, or None; total: of its mass over so many pictures."""
    if not number or total / number >= TRUSTED_MASS:
        return None
    return (
        f"WARNING: {score} is no number to trust: on average {total / number:.1%} of the judge's probability is on the answers it was"
        f" asked for, and at least {TRUSTED_MASS:.0%} should be; ask another judge, or in other words"
    )


@dataclass(frozen=True)
class Subject:
    """One image to be scored.

    Attributes:
        key: identity of its scores; hexadecimal.
        prompt: what the image was made for; of an edit, the instruction.
        images: PIL images in mode RGB; for an edit the source, then the result.
        record: the image's record in its shard, without pictures.
        parts: what is wanted: the name of each part of the metric that has no scores yet, with their key. Columns of others are passed over.
        earlier: part -> its columns for the same picture when its row had other items; only of parts `over` a field.
    """

    key: str
    prompt: str
    images: list[Any]
    record: Mapping[str, Any]
    parts: Mapping[str, str] = field(default_factory=dict)
    earlier: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """A number for what is drawn by lot, the same in every run."""
        return int(self.key[:8], 16)


@dataclass
class Ask:
    """One question about `images` (PIL, RGB, or as the judge prepared them; for an edit the source, then the result).

    `text` is filled in.
    """

    images: list[Any]
    text: str
    question: "Question"
    seed: int


@dataclass
class Answer:
    """The reply as it came; for a question with given answers the probability of each, by its name; or why there is none.

    cut: the number of tokens after which the reply was cut off; None: the model ended it.
    """

    reply: str | None = None
    probabilities: dict[str, float] | None = None
    error: str | None = None
    cut: int | None = None


class Scorer(Protocol):
    """A metric that is ready to score: its model is loaded.

    It may have a number `asked`, how much it has asked of its model so far; else each part of a picture counts as one.

    It may also have a method `prepare(subject) -> Subject` for what can be done with a subject alone and in any thread, such as
    resizing: `score` is given what it returns, and while it scores, the next subjects are prepared. And a method `close()`, which is
    called when all is scored: for what is to be said once in the log.
    """

    def score(self, subjects: list[Subject]) -> list[dict[str, Any]]:
        """The columns of each subject, in order; a column that is left out is null.

        Neither the order nor the company of a subject may change its scores. What cannot be scored has a reason in its
        error column, and no number; a question that does not apply to a picture has neither, where its columns are `optional`. Raises DarkroomError only where nothing can be scored at all.
        """
        ...


class Metric(ABC):
    """Something that scores pictures one by one. `tests/metric_contract.py` tests what is promised here.

    Importing and constructing a metric loads nothing heavy: that is what `open` is for.

    Attributes:
        name: letters, digits and underscores; unique among metrics, and part of paths.
        version: raise it when a change of the code changes the scores of the same picture.
        packages: distributions whose versions the score files record.
        needs: the section of the config that says what devices its jobs get; None for a metric that needs none.
    """

    name: str
    version: int = 1
    packages: tuple[str, ...] = ()
    needs: DeviceSection | None = None

    @abstractmethod
    def columns(self, kind: str) -> list[ScoreColumn]:
        """The columns for a kind of picture, in order; none where this metric does not score that kind."""

    @abstractmethod
    def recipe(self, kind: str) -> Recipe:
        """What decides the scores apart from prompt and pictures, with `version`, as plain JSON.

        It is part of every score's key and of the digest that a score file is made for, and is stored in the file. Where a metric reads
        fields of the row (`record["fields"]`), their names are a list under `fields`: their values are then part of the key, too.
        """

    def parts(self, kind: str) -> list[Part]:
        """What can be scored alone, each with its own columns and recipe: where one changes, the others are carried over.

        All columns are one part, unless a metric says otherwise. What decides a part must be in `recipe`, too.
        """
        columns = self.columns(kind)
        names = tuple(column.name for column in columns)
        reasons = tuple(column.name for column in columns if column.role == "error")
        recipe = self.recipe(kind)
        return [Part(self.name, names, reasons, recipe, tuple(recipe.get("fields", ())))] if columns else []

    @abstractmethod
    def open(self, kind: str) -> Scorer:
        """Load what is needed to score pictures of a kind. Raises DarkroomError, one line, where that cannot be."""


class ModelMetric(Metric):
    """A metric with a model: its section of the config is a `ModelSource` and a `DeviceSection`.

    Attributes:
        section: as the constructor was given it.
        located: gives the section with its model as a folder; only called to open the metric.
    """

    section: Any
    located: Callable[[], Any]

    def __init__(self, section: Any):
        self.needs = self.section = section
        self.located = lambda: section

    @property
    def place(self) -> str:
        """The section, as messages name it."""
        return metric_section(self.name)

    @cached_property
    def identity(self) -> str:
        """What the model is, for recipes."""
        return model_identity(self.section)
