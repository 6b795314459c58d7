"""Score shards of images by one metric, and write the score file.

Scores are kept while the job runs in a journal (JSON lines), so that a killed job goes on where it stopped, and
carried over from old score files where the picture, the prompt and what decides that part of the metric's columns are the same.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, TypedDict

from darkroom.errors import DarkroomError, Interrupted, RowError
from darkroom.jobs.beside import ahead
from darkroom.jobs.runtime import Progress, device_kind, say, stop_requested, versions
from darkroom.metrics.base import Asked, Catalogue, Metric, ScoreColumn, Scorer, Subject, mass_warning
from darkroom.plan.parts import Part, fields_of, score_key, score_keys
from darkroom.store.carry import find_scores
from darkroom.store.images import open_picture
from darkroom.store.journal import clear_journal, open_journal
from darkroom.store.shardfile import ImageRecord, check_digest, image_records, write_shard_with_manifest

# Images scored together. Fixed, so that a picture meets the same neighbours in every run of its shards.
CHUNK = 64
_PREPARING = 4  # threads that prepare pictures, at the most: each may hold one of `MAX_PIXELS`

__all__ = ["SCORE_COLUMNS", "ScoreRecord", "score_chunk", "score_columns", "score_key", "score_shards"]

# Columns of a score file before those of its metric.
SCORE_COLUMNS = {
    "key": "text",
    "image_key": "text",
    "row": "text",
    "item": "int",
    "sample": "int",
    "prompt": "text",
    "sha256": "text",
    "fields": "text",
}


class ScoreRecord(TypedDict):
    """A record of a score file: `SCORE_COLUMNS`, beside which stand those of the metric; `image_key` is the key of its picture."""

    key: str
    image_key: str
    row: str
    item: int
    sample: int
    prompt: str
    sha256: str | None
    fields: str


# What is read of an image shard to know what has to be scored; generated images have no source.
_BRIEF = ["key", "row", "item", "sample", "prompt", "sha256", "error", "fields", "source_sha256"]
_PICTURES = ("source", "image")

Scores = dict[str, Any]  # column -> value


def score_columns(columns: Iterable[ScoreColumn]) -> dict[str, str]:
    """All columns of the score files of a metric that makes `columns`, and their types."""
    return SCORE_COLUMNS | {column.name: column.type for column in columns}


def score_shards(
    metric: Metric,
    kind: str,
    images: dict[Path, str],
    path: Path,
    stage_digest: str,
    journal: Path,
    old_files: list[Path],
    old_journals: list[Path],
    made_from: list[str],
    open_scorer: Callable[[], Scorer] | None = None,
    retry_failed: bool = False,
    threads: int = 1,
) -> dict[str, float]:
    """Write the score file of some image shards.

    Args:
        metric: what scores.
        kind: of the images.
        images: the image shards in order, each with the digest it is made for.
        path: the score file.
        stage_digest: what the score file is made for.
        journal: a file for scores that are finished before all are.
        old_files: score files of this metric that may hold scores of these pictures.
        old_journals: journals that may hold such scores.
        made_from: the content of the image shards, as their manifests say it.
        open_scorer: what opens the metric, called only where something is to be scored; `metric.open` unless told.
        retry_failed: score again what has no score for a reason of the metric's own.
        threads: of the job. Where there are more than one, those beside the scorer's prepare the pictures of the next chunk for a
            scorer that has a `prepare`.

    Returns:
        The counts requests, made (pictures with something to score), in_part (those of them with parts that are carried over), asked (what
        was asked about them), carried and failed, and "working", the seconds spent on scoring.

    Raises:
        DarkroomError: a shard is stale, or the metric cannot be opened.
        Interrupted: after SIGTERM; finished scores are kept.
    """
    made = [check_digest(shard, planned) for shard, planned in images.items()]
    columns, recipe, parts = metric.columns(kind), metric.recipe(kind), metric.parts(kind)
    reasons = [column.name for column in columns if column.role == "error"]
    records = list(_records(images, _BRIEF))
    sound = [record for record in records if record["error"] is None]
    known = find_scores(parts, sound, old_files, old_journals, retry_failed)
    key_of = score_keys(recipe, fields_of(parts))
    keys = list(map(key_of, records))
    part_keys = list(zip(*(map(part.keys(), records) for part in parts), strict=True)) or [()] * len(records)
    todo = {
        key: wanted
        for key, record, each in zip(keys, records, part_keys, strict=True)
        if record["error"] is None
        and (wanted := {p.name: k for p, k in zip(parts, each, strict=True) if k not in known})
    }
    missing = len(records) - len(sound)
    carried = len(sound) - len(todo)
    some = sum(len(wanted) < len(parts) for wanted in todo.values())
    partly = f" ({some} of them in part)" if some else ""
    say(f"{len(records)} images: {len(todo)} to score{partly}, {carried} carried over, {missing} missing")
    working, asked = 0.0, 0
    if todo:
        say(f"{metric.name}: versions: " + ", ".join(f"{n} {v}" for n, v in versions(*metric.packages).items()))
        scorer = open_scorer() if open_scorer else metric.open(kind)
        work, before = _Work(metric, kind, parts, scorer, known), getattr(scorer, "asked", None)
        new, working = _score_all(work, _to_score(images, key_of, todo), todo, journal, threads)
        if close := getattr(scorer, "close", None):
            close()
        known |= new
        asked = sum(map(len, todo.values())) if before is None else getattr(scorer, "asked", 0) - before

    def scores_of(each: Iterable[str]) -> Scores:
        return {name: value for key in each for name, value in known[key].items()}

    found = {
        key: scores_of(each)
        for key, record, each in zip(keys, records, part_keys, strict=True)
        if record["error"] is None
    }
    lost = [{name: why for name in reasons if (why := found.get(key, {}).get(name))} for key in keys]
    unscored = sum(map(bool, lost))
    masses = Catalogue.of({kind: columns}).masses(kind)
    for mass, score in {masses[score]: score for score in reversed(masses)}.items():
        there = [value for scores in found.values() if (value := scores.get(mass)) is not None]
        if warning := mass_warning(score, sum(there), len(there)):
            say(warning)

    def rows() -> Iterator[Mapping[str, Any]]:
        for key, record in zip(keys, records, strict=True):
            no_image = dict.fromkeys(reasons, f"no image: {record['error']}")
            yield {**_about(key, record), **(found[key] if record["error"] is None else no_image)}

    meta = {
        "digest": stage_digest,
        "rule": "score_images",
        "metric": metric.name,
        "images": list(images.values()),
        "recipe": recipe,
        "parts": {part.name: [part.identity, part.shared] for part in parts},
        "fields": fields_of(parts),
        "versions": versions(*metric.packages),
        "device": device_kind(metric.needs.device) if metric.needs else "cpu",
        "image_failures": sum(shard["failed"] for shard in made),
        "failed": unscored,
    }
    if embeddings := [column.name for column in columns if column.role == "embedding"]:
        meta["unshown"] = embeddings  # for readers of score files: what no table, gallery or export has
    write_shard_with_manifest(path, score_columns(columns), rows(), meta, made_from)
    clear_journal(
        journal,
        {key for each in part_keys for key in each}
        | {key for part in parts if part.over for key in map(part.shared_keys(), sound)},
    )
    said = Counter(f"{name.removesuffix('_error')}: {why}" for one in lost for name, why in one.items())
    often = "".join(f", most often for {reason}" for reason, _ in said.most_common(1))
    whole = f"{unscored} of {len(records)} without a whole score{often}"
    say(f"done: {len(todo)} scored, {carried} carried, {missing} without an image, {whole}")
    counts = {
        "requests": len(records),
        "made": len(todo),
        "in_part": some,
        "asked": asked,
        "carried": carried,
        "failed": missing,
    }
    return counts | {"working": round(working, 3)}


def _records(images: Iterable[Path], columns: list[str] | None = None) -> Iterator[ImageRecord]:
    return (record for shard in images for record in image_records(shard, columns))


def _about(key: str, record: ImageRecord) -> ScoreRecord:
    """What a score file says of a picture besides its scores, which have this key."""
    return ScoreRecord(
        key=key,
        image_key=record["key"],
        row=record["row"],
        item=record["item"],
        sample=record["sample"],
        prompt=record["prompt"],
        sha256=record["sha256"],
        fields=record["fields"],
    )


@dataclass(frozen=True)
class _Work:
    """What scores pictures of a kind. known: key of a part -> its columns, of all that need not be scored."""

    metric: Metric
    kind: str
    parts: list[Part]
    scorer: Scorer
    known: dict[str, Scores] = field(default_factory=dict)

    def subject(self, key: str, record: ImageRecord, wanted: dict[str, str]) -> Subject | RowError:
        """The picture of a record, ready to be scored, or why it cannot be opened. Can be called in any thread."""
        try:
            parts = filter(None, (record.get("source"), record["image"]))
            pictures = [open_picture(part["bytes"], part["path"]).image for part in parts]
        except RowError as error:
            return error
        about = {name: value for name, value in record.items() if name not in _PICTURES}
        earlier = {name: scores for name, one in self.shared(about).items() if (scores := self.known.get(one))}
        subject = Subject(key, record["prompt"], pictures, about, wanted, earlier)
        prepare: Callable[[Subject], Subject] | None = getattr(self.scorer, "prepare", None)
        return prepare(subject) if prepare else subject

    def shared(self, record: Mapping[str, Any]) -> dict[str, str]:
        """part -> the key of its scores for whatever items, of those over a field."""
        return {part.name: part.shared_keys()(record) for part in self.parts if part.over}


def _score_all(
    work: _Work,
    records: Iterable[tuple[int, str, ImageRecord]],
    todo: dict[str, dict[str, str]],
    journal: Path,
    threads: int,
) -> tuple[dict[str, Scores], float]:
    """key of a part -> its columns, of the records, each chunk in the journal when it is done; and the seconds it took.

    todo: key -> the parts wanted, with their keys.
    """
    progress = Progress(len(todo), "images")
    found: dict[str, Scores] = {}
    beside = min(threads, _PREPARING) if threads > 1 and hasattr(work.scorer, "prepare") else 0

    def prepare(one: tuple[int, str, ImageRecord]) -> tuple[int, str, Subject | RowError, dict[str, str]]:
        number, key, record = one
        return number, key, work.subject(key, record, todo[key]), work.shared(record)

    with (
        open_journal(journal) as out,
        contextlib.closing(ahead(prepare, records, CHUNK if beside else 0, beside or 1)) as prepared,
    ):
        for _, chunk in groupby(prepared, key=itemgetter(0)):
            taken = list(chunk)
            if stop_requested.is_set():
                raise Interrupted(
                    f"interrupted, {progress.done} of {progress.total} kept; run again to go on from there"
                )
            scores = _score(work, {key: (subject, todo[key]) for _, key, subject, _ in taken})
            new = {}
            for _, key, _, shared in taken:
                new[key] = {todo[key][name]: columns for name, columns in scores[key].items()}
                new[key] |= {shared[name]: columns for name, columns in scores[key].items() if name in shared}
            out.add(new)
            for columns in new.values():
                found |= columns
            progress.add(len(new))
    return found, progress.seconds


def _to_score(
    images: Iterable[Path], key_of: Callable[[Mapping[str, Any]], str], todo: Iterable[str]
) -> Iterator[tuple[int, str, ImageRecord]]:
    """(number of the chunk, score key, record) of the records to score, in the fixed chunks of the shards together."""
    left = set(todo)
    for number, record in enumerate(_records(images)):
        key = key_of(record)
        if record["error"] is None and key in left:
            left.discard(key)
            yield number // CHUNK, key, record


def score_chunk(metric: Metric, kind: str, scorer: Scorer, records: dict[str, ImageRecord]) -> dict[str, Scores]:
    """All columns of a metric for records of an image shard, by score key.

    A picture that cannot be opened has nulls and a reason. Raises DarkroomError where the scorer does not keep its
    contract: another number of results, or columns that were not promised.
    """
    work = _Work(metric, kind, metric.parts(kind), scorer)
    wanted = {key: {part.name: part.keys()(record) for part in work.parts} for key, record in records.items()}
    opened = {key: (work.subject(key, record, wanted[key]), wanted[key]) for key, record in records.items()}
    found = _score(work, opened)
    return {key: {name: v for part in scores.values() for name, v in part.items()} for key, scores in found.items()}


def _score(
    work: _Work, opened: Mapping[str, tuple[Subject | RowError, dict[str, str]]]
) -> dict[str, dict[str, Scores]]:
    """key -> name of each part that is wanted -> its columns."""
    metric, columns = work.metric, work.metric.columns(work.kind)
    questions = Catalogue.of({work.kind: columns}).questions(work.kind)
    scores: dict[str, Scores] = {key: {column.name: None for column in columns} for key in opened}
    for key, (reason, _) in opened.items():
        if isinstance(reason, RowError):
            scores[key] |= {question.error: str(reason) for question in questions}
    subjects = [subject for subject, _ in opened.values() if isinstance(subject, Subject)]
    results = work.scorer.score(subjects) if subjects else []
    if len(results) != len(subjects):
        raise DarkroomError(f"metric {metric.name}: {len(results)} results for {len(subjects)} images")
    for subject, result in zip(subjects, results, strict=True):
        if unknown := sorted(set(result) - set(scores[subject.key])):
            raise DarkroomError(f"metric {metric.name}: gives a column {unknown[0]} that its `columns` do not name")
        scores[subject.key] |= result
        for question in questions:
            _refuse_odd_numbers(question, scores[subject.key])
    return {
        key: {
            part.name: {name: scores[key][name] for name in part.columns} for part in work.parts if part.name in wanted
        }
        for key, (_, wanted) in opened.items()
    }


def _refuse_odd_numbers(question: Asked, scores: Scores) -> None:
    """Where a number is none, or lies outside its range, the question has no scores but a reason."""
    for column in question.columns:
        value = scores[column.name]
        if value is None or column.type not in ("int", "float"):
            continue
        least, most = column.limits if column.role == "score" else (-math.inf, math.inf)  # a mass may be rounded up
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not least <= value <= most:
            scores |= dict.fromkeys(question.numbers)
            scores[question.error] = f"{column.name} is {value!r}, outside {least:g} to {most:g}"
            return
