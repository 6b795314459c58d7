"""Judge shards of images by a rubric: ask a vision-language model, read its replies, write the score file.

Scores are kept while the job runs in a journal (JSON lines), so that a killed job goes on where it stopped, and
carried over from old score files where the picture, the prompt and the judge are the same.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darkroom.errors import Interrupted, RowError
from darkroom.identity import digest
from darkroom.jobs.runtime import Progress, device_kind, say, stop_requested, versions
from darkroom.metrics.rubric import Question, Rubric
from darkroom.store.carry import find_scores
from darkroom.store.images import open_picture
from darkroom.store.journal import clear_journal, open_journal
from darkroom.store.manifest import write_shard_with_manifest
from darkroom.store.shardfile import check_digest, iter_records

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
    return SCORE_COLUMNS | rubric.columns(kind)


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
    old_journals: list[Path],
    made_from: list[str],
    open_engine: Any,
    retry_failed: bool = False,
) -> dict[str, float]:
    """Write the score file `path` of image shards and return the counts requests, made, carried, failed.

    And "working", the seconds spent on asking. retry_failed: ask again where a reply could not be read.

    images: the shards in order, with the digest each is made for; section and recipe: `judge` of the config and its
    recipe; journal: a file for finished scores. old_files, old_journals: score files and journals that may hold scores of these
    pictures. made_from: the content of the shards, as their manifests say it.
    open_engine(section, kind, rubric) is called only where something is to be asked. Raises DarkroomError where
    a shard is stale or the judge cannot be started, and Interrupted after SIGTERM with finished scores kept.
    """
    made = [check_digest(shard, planned) for shard, planned in images.items()]
    errors = [f"{question.name}_error" for question in rubric.questions[kind]]
    known = find_scores(rubric.columns(kind), errors, old_files, old_journals, retry_failed)
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
    unread = sum(any(known.get(key, {}).get(name) for name in errors) for key in keys)

    def rows() -> Iterator[dict[str, Any]]:
        for key, record in zip(keys, records, strict=True):
            row = {name: record.get(name) for name in SCORE_COLUMNS}
            row |= {"key": key, "image_key": record["key"]}
            missing = {f"{q.name}_error": f"no image: {record['error']}" for q in rubric.questions[kind]}
            yield row | (known.get(key, {}) if record["error"] is None else missing)

    write_shard_with_manifest(
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
        made_from,
    )
    clear_journal(journal, set(keys))
    say(f"done: {asked} judged, {len(records) - failed - asked} carried, {failed} without an image")
    counts = {"requests": len(records), "made": asked, "carried": len(records) - failed - asked, "failed": failed}
    return counts | {"working": round(working, 3)}


def _records(images: Iterable[Path], columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    return (record for shard in images for record in iter_records(shard, columns))


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
    with open_journal(journal) as out:
        for chunk in _chunks(images, recipe, todo):
            if stop_requested.is_set():
                raise Interrupted(
                    f"interrupted, {progress.done} of {progress.total} kept; run again to go on from there"
                )
            new = _ask_chunk(chunk, kind, rubric, engine)
            out.add(new)
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
    asks, owners, scores = [], [], {key: dict.fromkeys(rubric.columns(kind)) for key in chunk}
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
