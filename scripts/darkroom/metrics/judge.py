"""Judge shards of images by a rubric: ask a vision-language model, read its replies, write the score file.

Scores are kept while the job runs in a journal (JSON lines), so that a killed job goes on where it stopped, and
carried over from old score files where the picture, the prompt and the judge are the same.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darkroom.errors import DarkroomError, Interrupted, RowError
from darkroom.identity import digest
from darkroom.jobs.runtime import Progress, device_kind, say, stop_requested, versions
from darkroom.metrics.rubric import Question, Rubric
from darkroom.plan.groups import Groups
from darkroom.plan.shards import Plan
from darkroom.store.images import open_picture
from darkroom.store.shardfile import check_digest, iter_records, write_shard

# Requests asked together. Fixed, so that a picture meets the same neighbours in every run of its shards.
CHUNK = 64
PACKAGES = ("torch", "vllm", "transformers", "qwen-vl-utils", "xgrammar")
LEAST_MASS = 1e-6

# Columns of a score file before those of the rubric's questions.
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


@dataclass
class Ask:
    """One question about `images` (PIL, RGB; for an edit the source, then the result). `text` is filled in."""

    images: list[Any]
    text: str
    question: Question
    seed: int


@dataclass
class Answer:
    """The reply as it came; for yes_no the probabilities of both words; or why there is none."""

    reply: str | None = None
    p_yes: float | None = None
    p_no: float | None = None
    error: str | None = None


def score_key(recipe: dict[str, Any], record: dict[str, Any]) -> str:
    """The identity of an image's scores: the judge's recipe, what was asked for, and the pictures."""
    return digest([recipe, record["prompt"], record["sha256"], record.get("source_sha256")])


def score_columns(rubric: Rubric, kind: str) -> dict[str, str]:
    """All columns of the score files of a kind ("images" or "edited")."""
    return SCORE_COLUMNS | rubric.catalogue.types(kind)


def judge_shards(
    images: dict[Path, str],
    kind: str,
    rubric: Rubric,
    section: dict[str, Any],
    recipe: dict[str, Any],
    path: Path,
    stage_digest: str,
    journal: Path,
    old_files: list[Path],
    moved: Callable[[str], Path | None],
    open_engine: Any,
    retry_failed: bool = False,
) -> dict[str, float]:
    """Write the score file `path` of image shards and return the counts requests, made, carried, failed.

    And "working", the seconds spent on asking. retry_failed: ask again where a reply could not be read.

    images: the shards in order, with the digest each is made for; section and recipe: `judge` of the config and its
    recipe; journal: a file for finished scores. old_files: score files that may hold scores of these pictures. moved:
    the journal of the other score file that a row id belongs to now, if that one still needs its scores from here.
    open_engine(section, kind, rubric) is called only where something is to be asked. Raises DarkroomError where
    a shard is stale or the judge cannot be started, and Interrupted after SIGTERM with finished scores kept.
    """
    made = [check_digest(shard, planned) for shard, planned in images.items()]
    known: dict[str, dict[str, Any]] = {}
    for old in old_files:
        known = _known_scores(old, rubric.catalogue.types(kind)) | known
    known |= read_journal(journal)  # after the files: a job that replaces one of them first writes here what it leaves
    errors = [f"{question.name}_error" for question in rubric.questions[kind]]
    if retry_failed:
        known = {key: scores for key, scores in known.items() if not any(scores.get(name) for name in errors)}
    columns = ["key", "row", "item", "sample", "prompt", "sha256", "error", "fields"]
    columns += ["source_sha256"] if kind == "edited" else []
    records = list(_records(images, columns))
    keys = [score_key(recipe, record) for record in records]
    todo = {key for key, record in zip(keys, records, strict=True) if record["error"] is None and key not in known}
    failed = sum(record["error"] is not None for record in records)
    say(
        f"{len(records)} images: {len(todo)} to judge, {len(records) - failed - len(todo)} carried over, {failed} missing"
    )
    asked, working = len(todo), 0.0
    if todo and rubric.questions[kind]:
        new, working = _ask_all(images, kind, rubric, section, recipe, todo, journal, open_engine)
        known |= new
    _leave_behind(path, rubric.catalogue.types(kind), {record["row"] for record in records}, moved)
    unread = sum(any(known.get(key, {}).get(name) for name in errors) for key in keys)

    def rows() -> Iterator[dict[str, Any]]:
        for key, record in zip(keys, records, strict=True):
            row = {name: record.get(name) for name in SCORE_COLUMNS}
            row |= {"key": key, "image_key": record["key"]}
            missing = {f"{q.name}_error": f"no image: {record['error']}" for q in rubric.questions[kind]}
            yield row | (known.get(key, {}) if record["error"] is None else missing)

    write_shard(
        path,
        score_columns(rubric, kind),
        rows(),
        {
            "digest": stage_digest,
            "rule": "score_images",
            "images": list(images.values()),
            "recipe": recipe,
            "versions": versions(*PACKAGES),
            "device": device_kind(section["device"]),
            "image_failures": sum(meta["failed"] for meta in made),
            "failed": unread,
        },
    )
    journal.unlink(missing_ok=True)
    say(f"done: {asked} judged, {len(records) - failed - asked} carried, {failed} without an image")
    counts = {"requests": len(records), "made": asked, "carried": len(records) - failed - asked, "failed": failed}
    return counts | {"working": round(working, 3)}


def _records(images: Iterable[Path], columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    return (record for shard in images for record in iter_records(shard, columns))


def old_score_files(plan: Plan, groups: Groups, group: str, outputs: Path) -> list[Path]:
    """Score files that may hold scores of the rows now in `group`, its own first."""
    shards = plan.earlier_shards(*groups.members[group])
    names = dict.fromkeys([group, *(name for shard in shards for name in groups.homes_of(shard))])
    return [outputs / f"{name}.parquet" for name in names]


def _leave_behind(path: Path, columns: dict[str, str], rows: set[str], moved: Callable[[str], Path | None]) -> None:
    """Before `path` is replaced, write the scores of rows that went to another file into that one's journal."""
    for key, row, scores in _scored(path, columns):
        if row not in rows and (journal := moved(row)):
            journal.parent.mkdir(parents=True, exist_ok=True)
            with open(journal, "a", encoding="utf-8") as out:
                out.write(json.dumps({"key": key, "scores": scores}) + "\n")


def _known_scores(path: Path, columns: dict[str, str]) -> dict[str, dict[str, Any]]:
    """key -> score columns of an earlier file; a score key says by itself whether it still holds."""
    return {key: scores for key, _, scores in _scored(path, columns)}


def _scored(path: Path, columns: dict[str, str]) -> list[tuple[str, str, dict[str, Any]]]:
    """(key, row, score columns) of the pictures in a score file; none where it is missing, damaged or of other columns."""
    try:
        return [
            (record["key"], record["row"], {name: record[name] for name in columns})
            for record in (iter_records(path) if path.exists() else ())
            if record["sha256"] and set(columns) <= set(record)
        ]
    except DarkroomError as error:
        say(f"no scores carried over: {error}")
        return []


def read_journal(journal: Path) -> dict[str, dict[str, Any]]:
    known = {}
    if journal.exists():
        for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                known[entry["key"]] = entry["scores"]
            except (ValueError, KeyError):  # the line that was being written when the job died
                continue
    return known


def _ask_all(
    images: Iterable[Path],
    kind: str,
    rubric: Rubric,
    section: dict[str, Any],
    recipe: dict[str, Any],
    todo: set[str],
    journal: Path,
    open_engine: Any,
) -> tuple[dict[str, dict[str, Any]], float]:
    say(f"judge {recipe['model']} ({section['model']}, revision {section['revision']}), engine {section['engine']}")
    say("versions: " + ", ".join(f"{name} {version}" for name, version in versions(*PACKAGES).items()))
    engine = open_engine(section, kind, rubric)
    say(f"device {engine.device}, dtype {engine.dtype}")
    progress = Progress(len(todo), "images")
    found: dict[str, dict[str, Any]] = {}
    journal.parent.mkdir(parents=True, exist_ok=True)
    with open(journal, "a", encoding="utf-8") as out:
        out.write("\n")  # ends a line that a killed job left half
        for chunk in _chunks(images, recipe, todo):
            if stop_requested.is_set():
                raise Interrupted(
                    f"interrupted, {progress.done} of {progress.total} kept; run again to go on from there"
                )
            new = _ask_chunk(chunk, kind, rubric, engine)
            for key, scores in new.items():
                out.write(json.dumps({"key": key, "scores": scores}) + "\n")
            out.flush()
            os.fsync(out.fileno())
            found |= new
            progress.add(len(new))
    return found, progress.seconds


def _chunks(images: Iterable[Path], recipe: dict[str, Any], todo: set[str]) -> Iterator[dict[str, dict[str, Any]]]:
    """The records to judge, by score key, in the fixed chunks of the shards together."""
    chunk: dict[str, dict[str, Any]] = {}
    left = set(todo)
    for number, record in enumerate(_records(images)):
        if number % CHUNK == 0 and chunk:
            yield chunk
            chunk = {}
        key = score_key(recipe, record)
        if record["error"] is None and key in left:
            left.discard(key)
            chunk[key] = record
    if chunk:
        yield chunk


def _ask_chunk(chunk: dict[str, dict[str, Any]], kind: str, rubric: Rubric, engine: Any) -> dict[str, dict[str, Any]]:
    asks, owners, scores = [], [], {key: dict.fromkeys(rubric.catalogue.types(kind)) for key in chunk}
    for key, record in chunk.items():
        try:
            parts = ("source", "image") if kind == "edited" else ("image",)
            pictures = [open_picture(record[part]["bytes"], record[part]["path"]).image for part in parts]
        except RowError as error:
            scores[key] |= {f"{question.name}_error": str(error) for question in rubric.questions[kind]}
            continue
        for question in rubric.questions[kind]:
            asks.append(Ask(pictures, question.ask(record["prompt"]), question, int(key[:8], 16)))
            owners.append(key)
    for key, ask, answer in zip(owners, asks, engine.ask(asks), strict=True):
        scores[key] |= read_answer(ask.question, answer)
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
        return columns | values | {f"{name}_error": error}
    mass = answer.p_yes + answer.p_no
    if not mass >= LEAST_MASS:  # also where it is NaN
        return columns | {f"{name}_error": f"neither yes nor no was considered (label mass {mass:.1e})"}
    return columns | {name: round(answer.p_yes / mass, 6), f"{name}_mass": round(mass, 6)}
