"""Score shards of images by one metric, and write the score file.

Scores are kept while the job runs in a journal (JSON lines), so that a killed job goes on where it stopped, and
carried over from old score files where the picture, the prompt and the metric's recipe are the same.
"""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, TypedDict

from darkroom.errors import DarkroomError, Interrupted, RowError
from darkroom.identity import digests
from darkroom.jobs.beside import ahead
from darkroom.jobs.runtime import Progress, device_kind, say, stop_requested, versions
from darkroom.metrics.base import Asked, Catalogue, Metric, ScoreColumn, Scorer, Subject, mass_warning
from darkroom.plan.recipe import Recipe
from darkroom.store.carry import find_scores
from darkroom.store.images import open_picture
from darkroom.store.journal import clear_journal, open_journal
from darkroom.store.shardfile import ImageRecord, check_digest, image_records, write_shard_with_manifest

# Images scored together. Fixed, so that a picture meets the same neighbours in every run of its shards.
CHUNK = 64
_PREPARING = 4  # threads that prepare pictures, at the most: each may hold one of `MAX_PIXELS`

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


def score_key(recipe: Recipe, record: Mapping[str, Any]) -> str:
    """The identity of an image's scores: the metric's recipe, what was asked for, the fields of the row that it reads, and the pictures."""
    return score_keys(recipe)(record)


def score_keys(recipe: Recipe) -> Callable[[Mapping[str, Any]], str]:
    """`score_key` for many records: a function of the record alone."""
    of, fields = digests(recipe), recipe.get("fields")

    def key(record: Mapping[str, Any]) -> str:
        what = record["prompt"], record["sha256"], record.get("source_sha256")
        if not fields:
            return of(*what)
        known = json.loads(record["fields"])
        return of(*what, [known.get(name) for name in fields])

    return key


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
        The counts requests, made, carried and failed, and "working", the seconds spent on scoring.

    Raises:
        DarkroomError: a shard is stale, or the metric cannot be opened.
        Interrupted: after SIGTERM; finished scores are kept.
    """
    made = [check_digest(shard, planned) for shard, planned in images.items()]
    columns, recipe = metric.columns(kind), metric.recipe(kind)
    names = [column.name for column in columns]
    reasons = [column.name for column in columns if column.role == "error"]
    known = find_scores(names, reasons, old_files, old_journals, retry_failed)
    records = list(_records(images, _BRIEF))
    keys = list(map(score_keys(recipe), records))
    todo = {key for key, record in zip(keys, records, strict=True) if record["error"] is None and key not in known}
    missing = sum(record["error"] is not None for record in records)
    carried = len(records) - missing - len(todo)
    say(f"{len(records)} images: {len(todo)} to score, {carried} carried over, {missing} missing")
    working = 0.0
    if todo and columns:
        say(f"{metric.name}: versions: " + ", ".join(f"{n} {v}" for n, v in versions(*metric.packages).items()))
        scorer = open_scorer() if open_scorer else metric.open(kind)
        records_now = _to_score(images, recipe, todo)
        new, working = _score_all(records_now, len(todo), metric, kind, scorer, journal, threads)
        if close := getattr(scorer, "close", None):
            close()
        known |= new
    lost = [{name: why for name in reasons if (why := known.get(key, {}).get(name))} for key in keys]
    unscored = sum(map(bool, lost))
    for score, mass in Catalogue.of({kind: columns}).masses(kind).items():
        there = [value for key in dict.fromkeys(keys) if (value := known.get(key, {}).get(mass)) is not None]
        if warning := mass_warning(score, sum(there), len(there)):
            say(warning)

    def rows() -> Iterator[Mapping[str, Any]]:
        for key, record in zip(keys, records, strict=True):
            no_image = dict.fromkeys(reasons, f"no image: {record['error']}")
            yield {**_about(key, record), **(known.get(key, {}) if record["error"] is None else no_image)}

    meta = {
        "digest": stage_digest,
        "rule": "score_images",
        "metric": metric.name,
        "images": list(images.values()),
        "recipe": recipe,
        "versions": versions(*metric.packages),
        "device": device_kind(metric.needs.device) if metric.needs else "cpu",
        "image_failures": sum(shard["failed"] for shard in made),
        "failed": unscored,
    }
    if embeddings := [column.name for column in columns if column.role == "embedding"]:
        meta["unshown"] = embeddings  # for readers of score files: what no table, gallery or export has
    write_shard_with_manifest(path, score_columns(columns), rows(), meta, made_from)
    clear_journal(journal, set(keys))
    said = Counter(f"{name.removesuffix('_error')}: {why}" for one in lost for name, why in one.items())
    often = "".join(f", most often for {reason}" for reason, _ in said.most_common(1))
    whole = f"{unscored} of {len(records)} without a whole score{often}"
    say(f"done: {len(todo)} scored, {carried} carried, {missing} without an image, {whole}")
    counts = {"requests": len(records), "made": len(todo), "carried": carried, "failed": missing}
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


def _score_all(
    records: Iterable[tuple[int, str, ImageRecord]],
    number: int,
    metric: Metric,
    kind: str,
    scorer: Scorer,
    journal: Path,
    threads: int,
) -> tuple[dict[str, Scores], float]:
    """key -> scores of the records, each chunk in the journal when it is done; and the seconds it took."""
    progress = Progress(number, "images")
    found: dict[str, Scores] = {}
    beside = min(threads, _PREPARING) if threads > 1 and hasattr(scorer, "prepare") else 0

    def prepare(one: tuple[int, str, ImageRecord]) -> tuple[int, str, Subject | RowError]:
        return one[0], one[1], _subject(scorer, one[1], one[2])

    with (
        open_journal(journal) as out,
        contextlib.closing(ahead(prepare, records, CHUNK if beside else 0, beside or 1)) as prepared,
    ):
        for _, chunk in groupby(prepared, key=itemgetter(0)):
            subjects = {key: subject for _, key, subject in chunk}
            if stop_requested.is_set():
                raise Interrupted(
                    f"interrupted, {progress.done} of {progress.total} kept; run again to go on from there"
                )
            new = _score(metric, kind, scorer, subjects)
            out.add(new)
            found |= new
            progress.add(len(new))
    return found, progress.seconds


def _to_score(images: Iterable[Path], recipe: Recipe, todo: set[str]) -> Iterator[tuple[int, str, ImageRecord]]:
    """(number of the chunk, score key, record) of the records to score, in the fixed chunks of the shards together."""
    left, key_of = set(todo), score_keys(recipe)
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
    return _score(metric, kind, scorer, {key: _subject(scorer, key, record) for key, record in records.items()})


def _subject(scorer: Scorer, key: str, record: ImageRecord) -> Subject | RowError:
    """The picture of a record, ready to be scored, or why it cannot be opened. Can be called in any thread."""
    try:
        parts = filter(None, (record.get("source"), record["image"]))
        pictures = [open_picture(part["bytes"], part["path"]).image for part in parts]
    except RowError as error:
        return error
    about = {name: value for name, value in record.items() if name not in _PICTURES}
    subject = Subject(key, record["prompt"], pictures, about)
    prepare: Callable[[Subject], Subject] | None = getattr(scorer, "prepare", None)
    return prepare(subject) if prepare else subject


def _score(metric: Metric, kind: str, scorer: Scorer, opened: Mapping[str, Subject | RowError]) -> dict[str, Scores]:
    columns = metric.columns(kind)
    questions = Catalogue.of({kind: columns}).questions(kind)
    scores: dict[str, Scores] = {key: {column.name: None for column in columns} for key in opened}
    for key, reason in opened.items():
        if isinstance(reason, RowError):
            scores[key] |= {question.error: str(reason) for question in questions}
    subjects = [subject for subject in opened.values() if isinstance(subject, Subject)]
    results = scorer.score(subjects) if subjects else []
    if len(results) != len(subjects):
        raise DarkroomError(f"metric {metric.name}: {len(results)} results for {len(subjects)} images")
    for subject, result in zip(subjects, results, strict=True):
        if unknown := sorted(set(result) - set(scores[subject.key])):
            raise DarkroomError(f"metric {metric.name}: gives a column {unknown[0]} that its `columns` do not name")
        scores[subject.key] |= result
        for question in questions:
            _refuse_odd_numbers(question, scores[subject.key])
    return scores


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
