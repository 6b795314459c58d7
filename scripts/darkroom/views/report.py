"""The numbers behind the report: two passes over the final table, and the records of the jobs.

The first pass finds how the scores rank the pictures, the second counts them into bins, so memory does not grow with the table; areas
are those of the binned scores (a hundred bins for probabilities, one for each whole number of a rating).
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from darkroom.config.models import Select
from darkroom.errors import general
from darkroom.jobs.history import read_records
from darkroom.metrics.base import Catalogue, ScoreColumn
from darkroom.rows.labels import LABELS
from darkroom.tables.read import Table
from darkroom.views.ranks import Sample, add_batch, least_agreeing

EXAMPLES = 8  # best pictures of a sheet, and as many worst
DISAGREEING, APART, EACH = 2, 0.1, 4  # pairs of scores, least difference of rank, pictures of each side of a pair
LABEL = "label"  # what people said, as one of a pair; accept is the highest rank, reject the lowest
BINS = 100
NARROW = 0.25  # share of a score's range: where the values are within less, the bins are
_REASONS_KEPT = 10_000
# What is read of each image, apart from scores.
_READ = (
    "kind",
    "row",
    "item",
    "sample",
    "shard",
    "key",
    "prompt",
    "error",
    "selected",
    "label",
    "source_kind",
    "source_name",
)


@dataclass
class Score:
    """A score's bins, and how many pictures fall into each: `counts` [groups, bins] for the groups all, selected, accept,
    reject. whole: a rating in whole numbers, a bin each. mass: of the answers it rests on, (sum, pictures)."""

    name: str
    edges: np.ndarray
    whole: bool
    counts: np.ndarray
    missing: int = 0
    total: float = 0.0
    mass: tuple[float, int] = (0.0, 0)
    metric: str = ""

    GROUPS = ("all", "selected", *LABELS)

    @classmethod
    def of(cls, column: ScoreColumn, lowest: float, highest: float) -> "Score":
        """lowest, highest: of the values that there are, and of a threshold."""
        low, high = column.limits
        whole = column.type == "int" and high - low < BINS
        if not whole and 0 < highest - lowest < NARROW * (high - low):
            low, high = lowest, highest
        edges = np.arange(low, high + 2) - 0.5 if whole else np.linspace(low, high, BINS + 1)
        counts = np.zeros((len(cls.GROUPS), len(edges) - 1), int)
        return cls(column.name, edges, whole, counts, metric=column.metric)

    def empty(self) -> "Score":
        """The same bins with nothing in them."""
        return Score(self.name, self.edges, self.whole, np.zeros_like(self.counts), metric=self.metric)

    def group(self, name: str) -> np.ndarray:
        """The counts of a group by bin."""
        return self.counts[self.GROUPS.index(name)]

    @property
    def number(self) -> int:
        return int(self.group("all").sum())

    @property
    def mean(self) -> float:
        return self.total / self.number if self.number else float("nan")

    @property
    def share(self) -> float:
        """Mean of its mass; 1 where it has none."""
        total, number = self.mass
        return total / number if number else 1.0

    @property
    def auc(self) -> float:
        """How well the score tells accepted pictures from rejected ones: 1 always, 0.5 not at all; nan without both."""
        good, bad = (self.group(label).astype(float) for label in LABELS)
        pairs = good.sum() * bad.sum()
        below = np.cumsum(bad) - bad / 2  # an equal score counts half
        return float((good * below).sum() / pairs) if pairs else float("nan")


@dataclass(frozen=True)
class Example:
    """An image for a sheet of examples.

    score: by which it was chosen. before: the edit that it was made from, as the tables name it, None where from none. told: what
    stands beside its prompt.
    """

    score: float
    row: str
    shard: str
    key: str
    prompt: str
    before: str | None
    told: str


@dataclass
class Disagreement:
    """Two scores, or a score and the label, and the images that they put farthest apart.

    above: those that the first puts far above the second, the farthest first; below: the other way round.
    """

    first: str
    second: str
    above: list[Example] = field(default_factory=list)
    below: list[Example] = field(default_factory=list)


@dataclass
class KindReport:
    """What the final table says of one kind of image.

    sample: how its scores rank the images. disagreements: of the scores that agree least, and of the score `by` with labels. best and
    worst: by the score `by`, the extreme ones first. agreement: counts [label accept, reject][thresholds reached no, yes].
    """

    name: str
    rows: int = 0
    rejected: int = 0
    requests: int = 0
    made: int = 0
    scored: int = 0
    selected: int = 0
    scores: dict[str, Score] = field(default_factory=dict)
    sample: Sample = field(default_factory=lambda: Sample([]))
    disagreements: list[Disagreement] = field(default_factory=list)
    best: list[Example] = field(default_factory=list)
    worst: list[Example] = field(default_factory=list)
    by: str | None = None
    thresholds: dict[str, float] = field(default_factory=dict)
    agreement: np.ndarray = field(default_factory=lambda: np.zeros((2, 2), int))
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def labelled(self) -> int:
        return int(self.agreement.sum())

    @property
    def kappa(self) -> float:
        """Cohen's kappa of thresholds and labels: 1 where they agree, 0 where no more than by chance."""
        total = self.agreement.sum()
        if not total:
            return float("nan")
        agreed = (self.agreement[0, 1] + self.agreement[1, 0]) / total
        labels, selected = self.agreement.sum(1) / total, self.agreement.sum(0) / total
        chance = labels[0] * selected[1] + labels[1] * selected[0]
        return float((agreed - chance) / (1 - chance)) if chance < 1 else float("nan")


def read_table(
    table: Path, rejected: Path, catalogue: Catalogue, select: Select, rows: dict[str, tuple[str, int]]
) -> dict[str, KindReport]:
    """kind -> its report, from scores.parquet and rejected.jsonl.

    rows: kind -> ("prompts" or "edits", number of its rows that could be used).
    """
    images = Table(table)
    samples = _ranked(images, {name: catalogue.score_names(name) for name in rows})
    kinds = {name: _empty(name, number, samples[name], catalogue, select) for name, (_, number) in rows.items()}
    with open(rejected, encoding="utf-8") as stream:
        for line in map(json.loads, stream):
            for kind in (kinds[name] for name, (file_, _) in rows.items() if file_ == line["file"]):
                kind.rejected += 1
                kind.failures[f"row rejected: {general(line['reason'])}"] += 1
    for batch in images.batches(_columns(kinds.values(), catalogue, images)):
        whole = batch.to_pydict()
        of = np.array(whole["kind"], object)
        for kind in kinds.values():
            if len(places := np.flatnonzero(of == kind.name)):
                _add(kind, {name: [values[i] for i in places] for name, values in whole.items()}, catalogue)
    for kind in kinds.values():
        taken = {entry.key for entry in kind.best}
        kind.worst = [entry for entry in kind.worst if entry.key not in taken]
    return kinds


def read_shared(table: Path, catalogue: Catalogue, kinds: Sequence[KindReport]) -> list[KindReport]:
    """The reports of these kinds once more, each of the images alone that all of them were asked for: the same row, item and sample."""
    images = Table(table)
    names = pa.array([kind.name for kind in kinds])

    def places(batch: pa.RecordBatch) -> Any:
        parts = [batch["row"], *(batch[name].cast(pa.string()) for name in ("item", "sample"))]
        return pc.binary_join_element_wise(*parts, "\0")

    seen = [
        places(batch.filter(pc.is_in(batch["kind"], value_set=names)))
        for batch in images.batches(["kind", "row", "item", "sample"])
    ]
    counted = pa.chunked_array(seen, pa.string()).value_counts()
    shared = counted.field("values").filter(pc.equal(counted.field("counts"), len(kinds)))
    found = []
    for kind in kinds:
        scores = {name: score.empty() for name, score in kind.scores.items()}
        found.append(KindReport(kind.name, kind.rows, scores=scores, by=kind.by, thresholds=kind.thresholds))
        for batch in images.batches(_columns(found[-1:], catalogue, images)):
            both = pc.and_(pc.equal(batch["kind"], kind.name), pc.is_in(places(batch), value_set=shared))
            if (part := batch.filter(both)).num_rows:
                _add(found[-1], part.to_pydict(), catalogue)
    return found


def _columns(kinds: Iterable[KindReport], catalogue: Catalogue, images: Table) -> list[str]:
    """The columns of the table that the reports of these kinds are made from, of those that are there."""
    wanted = set(_READ)
    for kind in kinds:
        wanted |= {*kind.scores, *catalogue.names(kind.name, "error"), *catalogue.names(kind.name, "mass")}
    return sorted(wanted & images.names.keys())


def _ranked(images: Table, scores: dict[str, list[str]]) -> dict[str, Sample]:
    """kind -> how the scores of its images that were made rank them; scores: of each kind."""
    samples = {kind: Sample(names) for kind, names in scores.items()}
    every = {name for names in scores.values() for name in names}
    for batch in images.batches(["kind", "key", "error", *sorted(every)]):
        add_batch(samples, batch)
    return samples


def _empty(name: str, rows: int, sample: Sample, catalogue: Catalogue, select: Select) -> KindReport:
    """The report of a kind before its images are counted."""
    thresholds = select.least_of(name)
    scores = {}
    for column, lowest, highest in zip(catalogue.scores(name), sample.lowest, sample.highest, strict=True):
        least = [thresholds[column.name]] if column.name in thresholds else []
        scores[column.name] = Score.of(column, min([lowest, *least]), max([highest, *least]))
    by = next(iter(thresholds), next(iter(scores), None))
    pairs = least_agreeing(sample.names, sample.correlations(), DISAGREEING)
    pairs += [(by, LABEL)] if by is not None else []
    apart = [Disagreement(*pair) for pair in pairs]
    return KindReport(name, rows=rows, scores=scores, by=by, thresholds=thresholds, sample=sample, disagreements=apart)


def _add(kind: KindReport, columns: dict[str, list[Any]], catalogue: Catalogue) -> None:
    made = np.array([error is None for error in columns["error"]])
    selected = np.array(columns["selected"], bool)
    reached = made.copy()  # by its scores: what is selected obeys the labels themselves
    for name, least in kind.thresholds.items():
        reached &= np.array([value is not None and value >= least for value in columns[name]], bool)
    label = np.array(columns.get("label") or [None] * len(made), object)
    groups = {"all": made, "selected": selected} | {name: made & (label == name) for name in LABELS}
    kind.requests, kind.made, kind.selected = (
        kind.requests + len(made),
        kind.made + int(made.sum()),
        kind.selected + int(selected.sum()),
    )
    for place, name in enumerate(LABELS):
        for chosen in (0, 1):
            kind.agreement[place, chosen] += int((groups[name] & (reached == bool(chosen))).sum())
    masses = catalogue.masses(kind.name)
    whole = made.copy()
    for name, score in kind.scores.items():
        values = np.array([np.nan if value is None else value for value in columns[name]], float)
        there = made & ~np.isnan(values)
        whole &= there
        bins = np.clip(np.searchsorted(score.edges, values, side="right") - 1, 0, len(score.edges) - 2)
        for row, group in enumerate(score.GROUPS):
            score.counts[row] += np.bincount(bins[there & groups[group]], minlength=len(score.edges) - 1)
        score.missing += int((made & ~there).sum())
        score.total += float(values[there].sum())
        if (mass := masses.get(name)) in columns:
            known = [share for place in np.flatnonzero(there) if (share := columns[mass][place]) is not None]
            score.mass = score.mass[0] + sum(known), score.mass[1] + len(known)
        if name == kind.by:
            told = [f"{value:.3g}" for value in values]
            kind.best = _extreme(kind, kind.best, values, told, columns, EXAMPLES)
            kind.worst = _extreme(kind, kind.worst, values, told, columns, EXAMPLES, lowest=True)
    kind.scored += int(whole.sum()) if kind.scores else 0
    for pair in kind.disagreements:
        _apart(kind, pair, columns)
    _count_failures(kind, columns, catalogue)


def _apart(kind: KindReport, pair: Disagreement, columns: dict[str, list[Any]]) -> None:
    """Keep the images that a pair puts farthest apart."""
    ranks, told = [], []
    for name in (pair.first, pair.second):
        if name == LABEL:
            labels = columns.get(LABEL) or [None] * len(columns["key"])
            ranks.append(np.array([{"accept": 1.0, "reject": 0.0}.get(label, np.nan) for label in labels]))
            told.append([f"{label}ed" for label in labels])
        else:
            values = np.array([np.nan if value is None else value for value in columns[name]], float)
            ranks.append(kind.sample.ranks(name, values))
            told.append([f"{value:.3g} ({100 * rank:.0f} %)" for value, rank in zip(values, ranks[-1], strict=True)])
    apart = ranks[0] - ranks[1]
    both = [f"{one} | {other}" for one, other in zip(*told, strict=True)]
    pair.above = _extreme(kind, pair.above, np.where(apart >= APART, apart, np.nan), both, columns, EACH)
    pair.below = _extreme(kind, pair.below, np.where(apart <= -APART, apart, np.nan), both, columns, EACH, lowest=True)


def _extreme(
    kind: KindReport,
    kept: list[Example],
    values: np.ndarray,
    told: list[str],
    columns: dict[str, list[Any]],
    most: int,
    lowest: bool = False,
) -> list[Example]:
    """The images of the highest (or lowest) values, of those that were kept and of the made ones of these, one of a row, at most so many.

    values: nan leaves one out; told: what is said of each. Of equal ones those that come first in the table.
    """
    sign = -1 if lowest else 1
    found = {entry.row: entry for entry in kept}
    made = np.array([error is None for error in columns["error"]])
    places = np.flatnonzero(made & ~np.isnan(values))
    for place in places[np.argsort(-sign * values[places], kind="stable")]:
        row, shard, key, prompt = (columns[name][place] for name in ("row", "shard", "key", "prompt"))
        value = float(values[place])
        last = min((sign * entry.score for entry in found.values()), default=0)
        if len(found) >= most and row not in found and sign * value <= last:
            break
        if row not in found or sign * value > sign * found[row].score:
            after_own = "source_kind" in columns and columns["source_kind"][place] == kind.name
            before = columns["source_name"][place] if after_own else None
            found[row] = Example(value, row, shard, key, prompt, before, told[place])
    return sorted(found.values(), key=lambda entry: -sign * entry.score)[:most]


def _count_failures(kind: KindReport, columns: dict[str, list[Any]], catalogue: Catalogue) -> None:
    def count(reason: str) -> None:
        full = len(kind.failures) >= _REASONS_KEPT and reason not in kind.failures
        kind.failures["other reasons" if full else reason] += 1

    for error in columns["error"]:
        if error is not None:
            count(f"no image: {general(error)}")
    for question in catalogue.questions(kind.name):
        for broken, error in zip(columns["error"], columns[question.error], strict=True):
            if broken is None and error is not None:
                count(f"no score ({question.name}): {general(error)}")


@dataclass
class StageTimes:
    """What the jobs of a stage took: number of the shard in the plan, seconds, and images (or scores) made, job by job."""

    name: str
    shards: list[int]
    seconds: list[float]
    working: list[float]
    made: list[int]

    @property
    def rates(self) -> list[tuple[int, float]]:
        """(shard, images per second of work) of the jobs that made something."""
        jobs = zip(self.shards, self.working, self.made, strict=True)
        return [(shard, made / working) for shard, working, made in jobs if made and working > 0]

    @property
    def rate(self) -> float:
        """Images per second of work, over all jobs; nan where none made anything."""
        working = sum(seconds for seconds, made in zip(self.working, self.made, strict=True) if made)
        return sum(self.made) / working if working else float("nan")


def read_times(folders: dict[str, tuple[Path, list[str]]]) -> list[StageTimes]:
    """stage -> (folder of its job records, its shards in order): the jobs of shards that are planned, failed ones not."""
    stages = []
    for name, (folder, shards) in folders.items():
        found: list[tuple[int, dict[str, Any]]] = []
        for place, shard in enumerate(shards, 1):
            found += [(place, record) for record in read_records(folder, shard)]
        columns = [[record[key] for _, record in found] for key in ("seconds", "working", "made")]
        stages.append(StageTimes(name, [place for place, _ in found], *columns))
    return stages
