"""Duplicates over the whole set: a line for each line of the tables, and how varied the pictures are.

Pictures of a stage are compared with each other, by whichever model, and with earlier sets. What is alike in steps is one group: of
A ~ B ~ C all three, although A and C may be further apart than the config allows.
"""

import hashlib
import json
import os
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from darkroom.config.duplicates import AGAINST, PROMPT_GROUP, PROMPTS, SOURCE_GROUP, SOURCES, WAYS, Duplicates
from darkroom.errors import DarkroomError, RowError
from darkroom.files import replacing
from darkroom.jobs.runtime import say
from darkroom.metrics.embeddings import unpacked
from darkroom.metrics.phash import picture_hash
from darkroom.plan.stages import like
from darkroom.store.images import open_picture, read_file
from darkroom.store.shardfile import arrow_schema, arrow_type, check_digest, iter_records, packed_meta
from darkroom.tables.alike import Alike, equal_pairs, mean_distance, near_hashes, near_vectors, normalised, tell_much
from darkroom.tables.kind import Kind
from darkroom.tables.read import Table

# What tells the lines of the tables apart, and what is said of each.
PLACE = {"kind": "text", "row": "text", "item": "int", "sample": "int", "key": "text"}
VALUES = 12  # of a field of the user's rows, at the most, for diversity to be told by it
FIELDS = 6  # fields it is told by
_GROUP_ROWS = 16_384


@dataclass(frozen=True)
class DuplicatesFile:
    """A file that `write_duplicates` has made. digest: what it must be made for; columns: what it says of each line."""

    path: Path
    digest: str
    columns: dict[str, str]

    def lines(self) -> Iterator[dict[str, Any]]:
        """What is said of each line of the tables, in their order. Raises DarkroomError where it is missing, stale or damaged."""
        check_digest(self.path, self.digest)
        return iter_records(self.path)

    def diversity(self) -> dict[str, Any]:
        """How varied the pictures of each kind are, as `_diversity` has it. Raises DarkroomError as `lines` does."""
        return check_digest(self.path, self.digest)["diversity"]

    def joined(self, images: pa.Table, lines: Iterator[dict[str, Any]]) -> pa.Table:
        """Images of the tables with the columns of their lines. Raises DarkroomError where one is of another image."""
        found = list(islice(lines, len(images)))
        places = [tuple(line[name] for name in PLACE) for line in found]
        if places != list(zip(*(images[name].to_pylist() for name in PLACE), strict=True)):
            raise DarkroomError(f"{self.path}: not of the images that are there; delete it and run again")
        for name, type_ in self.columns.items():
            images = images.append_column(name, pa.array([line[name] for line in found], arrow_type(type_)))
        return images


@dataclass(frozen=True)
class EarlierSet:
    """A set that pictures are compared with.

    path: the results folder of a run, or a folder of pictures. name: what the tables call it. pictures: of such a folder, the names of
    its files and the SHA-256 of each; None of results.
    """

    path: Path
    pictures: dict[str, str] | None = None

    @property
    def name(self) -> str:
        """The end of its path: the tables say nothing of where it lies."""
        parts = PurePath(os.path.normpath(self.path.absolute())).parts
        return "/".join(parts[-1:] if self.pictures is not None else parts[-2:])

    def read(self, bits: int | None) -> "tuple[list[str], np.ndarray, Hashes | None]":
        """(names, SHA-256 of each, hashes of so many bits) of its pictures. Raises DarkroomError where it cannot be read."""
        if self.pictures is None:
            return self._results(bits)
        hashes = Hashes(bits) if bits else None
        for name, sha256 in self.pictures.items():
            if hashes is None:
                continue
            try:
                data = read_file(str(self.path / name), name)
                if hashlib.sha256(data).hexdigest() != sha256:
                    raise RowError(f"image {name}: changed while the job ran")
                hashes.add(picture_hash(open_picture(data, name).image, hashes.bits))
            except RowError as error:
                say(f"warning: {self.path}: {error}; it is compared by its file alone")
                hashes.add(None)
        return list(self.pictures), _bytes(self.pictures.values()), hashes

    def table(self, bits: int | None) -> Table:
        """The table of a results folder, which has hashes of so many bits. Raises DarkroomError, one line."""
        path = self.path / "scores.parquet"
        try:
            table = Table(path)
            if not bits:
                return table
            hashes = (value for batch in table.batches(["phash"]) for value in batch["phash"].drop_null())
            if "phash" not in table.columns:
                raise DarkroomError(
                    f"{path}: no column phash to compare with; run it with `metrics: {{phash: {{bits: {bits}}}}}`, or leave it out"
                )
            if (first := next(hashes, None)) is not None and len(first.as_py()) * 4 != bits:
                raise DarkroomError(
                    f"{path}: its phash has {len(first.as_py()) * 4} bits where metrics.phash.bits is {bits}; give both runs the same"
                )
            return table
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise DarkroomError(
                f"{path}: not the table of a run ({str(error).splitlines()[0]}); run snakemake there"
            ) from error

    def _results(self, bits: int | None) -> "tuple[list[str], np.ndarray, Hashes | None]":
        names: list[str] = []
        contents: list[str] = []
        hashes = Hashes(bits) if bits else None
        for batch in self.table(bits).batches(["key", "sha256", *(["phash"] if bits else [])]):
            for key, sha256, *hashed in zip(*batch.to_pydict().values(), strict=True):
                if sha256 is not None:
                    names.append(key)
                    contents.append(sha256)
                    if hashes is not None:
                        hashes.add(*hashed)
        return names, _bytes(contents), hashes


class Hashes:
    """Hashes of so many bits, as they come; some may be missing."""

    def __init__(self, bits: int):
        self.bits = bits
        self._data = bytearray()
        self._there = bytearray()

    def add(self, digits: str | None) -> None:
        """Take the next: hexadecimal digits, None where there is none."""
        self._data += (
            bytes(self.bits // 8) if digits is None else bytes.fromhex(digits)
        )  # which tells nothing, as that of black
        self._there.append(digits is not None)

    @property
    def values(self) -> np.ndarray:
        return np.frombuffer(bytes(self._data), np.uint8).reshape(-1, self.bits // 8)

    @property
    def there(self) -> np.ndarray:
        """Whether each is not missing."""
        return np.frombuffer(bytes(self._there), bool)


def _bytes(digests: Iterable[str]) -> np.ndarray:
    """SHA-256 as rows of bytes."""
    return np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 32)


class _Fields:
    """The user's own fields that have few values: the number of the value of each line, -1 where it has none."""

    def __init__(self) -> None:
        self.codes: dict[str, array[int]] = {}
        self.values: dict[str, dict[Any, int]] = {}
        self.number = 0

    def add(self, fields: dict[str, Any]) -> None:
        for name, value in fields.items():
            if not isinstance(value, str | int) or len(str(value)) > 40:  # true and false are whole numbers
                if value is not None:
                    self.values[name], self.codes[name] = {}, array("b")  # no more of it
                continue
            known = self.values.setdefault(name, {"": -1})
            if not known:
                continue
            code = known.setdefault(json.dumps(value, ensure_ascii=False).strip('"'), len(known) - 1)
            codes = self.codes.setdefault(name, array("b"))
            codes.extend([-1] * (self.number - len(codes)))
            codes.append(code)
            if len(known) - 1 > VALUES:
                self.values[name], self.codes[name] = {}, array("b")
        self.number += 1

    def told(self) -> Iterator[tuple[str, list[str], np.ndarray]]:
        """(field, its values, the number of each line's value) of the first fields with several values, but few."""
        several = [name for name, known in self.values.items() if len(known) > 2]
        for name in several[:FIELDS]:
            codes = self.codes[name]
            codes.extend([-1] * (self.number - len(codes)))
            yield name, [value for value in self.values[name] if value], np.frombuffer(codes, np.int8).astype(np.int64)


@dataclass
class _Lines:
    """What is known of the lines of the tables, of a stage and all its models, in their order."""

    bits: int | None
    place: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in PLACE})
    contents: bytearray = field(default_factory=bytearray)  # SHA-256 of 32 bytes each; zeros where there is no picture
    vectors: list[np.ndarray] = field(default_factory=list)
    of_vectors: "array[int]" = field(default_factory=lambda: array("q"))
    sources: list[tuple[str, str] | None] = field(default_factory=list)  # name and SHA-256
    prompts: list[str] = field(default_factory=list)
    kinds: dict[str, tuple[int, int, _Fields]] = field(default_factory=dict)  # first line, line after the last

    def __post_init__(self) -> None:
        self.hashes = Hashes(self.bits) if self.bits else None

    def __len__(self) -> int:
        return len(self.place["key"])

    def read(self, kind: Kind, vectors: str | None, words: bool) -> None:
        """Take the lines of a kind; vectors: its column of embeddings; words: with prompts and names of sources."""
        start, fields = len(self), _Fields()
        for record in (record for table in kind.tables() for record in table.to_pylist()):
            for name, values in self.place.items():
                values.append(record[name])
            sha256 = record["sha256"]
            self.contents += bytes.fromhex(sha256) if sha256 else bytes(32)
            if self.hashes is not None:
                self.hashes.add(record.get("phash") if sha256 else None)
            if vectors and sha256 and record[vectors] is not None:
                self.of_vectors.append(len(self) - 1)
                self.vectors.append(unpacked(record[vectors]))
            if words:
                source = record.get("source_sha256")
                self.sources.append((record["source_name"], source) if source else None)
                self.prompts.append(normal(record["prompt"]))
            fields.add(json.loads(record["fields"]))
        self.kinds[kind.name] = (start, len(self), fields)


def normal(prompt: str) -> str:
    """A prompt without what makes no difference: case, spaces, the form of its letters, the point at its end."""
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split()).rstrip(" .")


def write_duplicates(
    kinds: list[Kind],
    settings: Duplicates,
    bits: int,
    embeddings: Mapping[str, str],
    earlier: list[EarlierSet],
    path: Path,
    meta: dict[str, str],
) -> dict[str, Any]:
    """Write duplicates.parquet: a line for each line of the tables, and in its metadata how varied the pictures are.

    kinds: as the tables have them, each with those metrics alone that are compared by. bits: of the hashes. embeddings: stage of the
    table -> the column of a score file that has them. Returns counts by kind.
    Raises DarkroomError where a shard or an earlier set is missing, stale or damaged.
    """
    of_stage: dict[str, list[Kind]] = {}
    for kind in kinds:
        of_stage.setdefault(like(kind.name), []).append(kind)
    hashed = bits if "phash" in settings.ways else None
    sets = [(one.name, *one.read(hashed)) for one in earlier]
    columns = PLACE | settings.columns
    schema = arrow_schema(columns)
    counts: dict[str, Any] = {}
    varied: dict[str, Any] = {}
    number = 0
    # The kinds of one stage follow each other in the tables.
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as out,
    ):
        for stage, those in of_stage.items():
            lines = _Lines(hashed)
            for kind in those:
                lines.read(kind, embeddings.get(stage), bool({SOURCES, PROMPTS} & set(settings.of)))
            said: dict[str, list[Any]] = {name: [None] * len(lines) for name in settings.columns}
            if stage in settings.of:
                varied |= _pictures(lines, settings, sets, said)
                for kind in those:
                    start, end, _ = lines.kinds[kind.name]
                    told = [group for group in said["duplicate_group"][start:end] if group is not None]
                    counts[f"{kind.name} with duplicates"] = len(told)
            if SOURCES in settings.of:
                _sources(lines, those, settings, said)
            if PROMPTS in settings.of:
                _prompts(lines, said)
            whole = lines.place | said
            for start in range(0, len(lines), _GROUP_ROWS):
                part = {name: values[start : start + _GROUP_ROWS] for name, values in whole.items()}
                out.write_table(pa.table(part, schema=schema))
            number += len(lines)
        told_of = {"rule": "find_duplicates", "ways": list(settings.ways), "diversity": varied}
        out.add_key_value_metadata(packed_meta(meta | told_of, number))
    return counts


def _pictures(
    lines: _Lines,
    settings: Duplicates,
    sets: list[tuple[str, list[str], np.ndarray, Hashes | None]],
    said: dict[str, list[Any]],
) -> dict[str, Any]:
    """Find the duplicates among the pictures of a stage and fill their columns; returns how varied each kind is."""
    contents = np.frombuffer(bytes(lines.contents), np.uint8).reshape(-1, 32)
    there = np.flatnonzero(contents.any(1))
    alike = Alike(len(lines))
    pairs, numbers, _ = equal_pairs(there, contents[there])
    alike.add(0, pairs)
    hashes = lines.hashes.values if lines.hashes else None
    if hashes is not None and lines.hashes:
        hashed = there[lines.hashes.there[there]]
        telling = numbers[tell_much(hashes[numbers])]
        pairs, telling, values = equal_pairs(telling, hashes[telling])
        alike.add(1, pairs)
        for one, other, far in near_hashes(values, settings.bits_apart(lines.hashes.bits)):
            alike.add(1, (telling[one], telling[other], far))
    vectors, of_vectors = None, np.frombuffer(lines.of_vectors, np.int64) if lines.vectors else np.zeros(0, np.int64)
    if lines.vectors:
        vectors = normalised(np.stack(lines.vectors))
        apart = np.flatnonzero(np.isin(of_vectors, numbers))  # of equal pictures the first
        for one, other, far in near_vectors(vectors[apart], settings.similarity):
            alike.add(2, (of_vectors[apart[one]], of_vectors[apart[other]], far))
    keys = lines.place["key"]
    groups = alike.groups()
    for place in np.flatnonzero(groups >= 0):
        said["duplicate_group"][place] = keys[groups[place]]
        said["duplicate_of"][place] = keys[alike.nearest[place]]
        said["duplicate_by"][place] = WAYS[alike.way[place]]
        said["duplicate_distance"][place] = float(alike.distance[place])
    for name, others, their_contents, their_hashes in sets:
        _against(name, others, their_contents, their_hashes, there, contents, hashes, settings, said[AGAINST])
    varied = {}
    for kind, (start, end, fields) in lines.kinds.items():
        features: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        if hashes is not None:
            here = hashed[(hashed >= start) & (hashed < end)]
            features["phash"] = here, hashes[here]
        if vectors is not None:
            inside = (of_vectors >= start) & (of_vectors < end)
            features["embeddings"] = of_vectors[inside], vectors[inside]
        made = np.zeros(end - start, bool)
        made[there[(there >= start) & (there < end)] - start] = True
        varied[kind] = _diversity(lines, start, end, fields, made, groups[start:end], features)
    return varied


def _against(
    name: str,
    others: list[str],
    their_contents: np.ndarray,
    their_hashes: Hashes | None,
    there: np.ndarray,
    contents: np.ndarray,
    hashes: np.ndarray | None,
    settings: Duplicates,
    said: list[Any],
) -> None:
    """Say of each picture that is like one of an earlier set which it is: the first equal one, else the nearest; the first set counts."""
    place_of = {value.tobytes(): place for place, value in reversed(list(enumerate(their_contents)))}
    for place in there:
        if said[place] is None and (found := place_of.get(contents[place].tobytes())) is not None:
            said[place] = f"{name}/{others[found]}"
    if hashes is None or their_hashes is None:
        return
    theirs = their_hashes.values
    telling = np.flatnonzero(tell_much(theirs))
    left = np.array([place for place in there if said[place] is None], np.int64)
    left = left[tell_much(hashes[left])]
    best: dict[int, tuple[float, int]] = {}
    for one, other, far in near_hashes(hashes[left], settings.bits_apart(their_hashes.bits), theirs[telling]):
        for place, found, distance in zip(left[one].tolist(), telling[other].tolist(), far.tolist(), strict=True):
            best[place] = min(best.get(place, (distance, found)), (distance, found))
    for place, (_, found) in best.items():
        said[place] = f"{name}/{others[found]}"


def _sources(lines: _Lines, kinds: list[Kind], settings: Duplicates, said: dict[str, list[Any]]) -> None:
    """Say of each picture whose source is like one of another name which group of sources that is, by the name of its first."""
    named: dict[tuple[str, str], int] = {}  # each source once, by its name and content
    for source in lines.sources:
        if source is not None:
            named.setdefault(source, len(named))
    if not named:
        return
    contents = _bytes(sha256 for _, sha256 in named)
    alike = Alike(len(named))
    pairs, numbers, _ = equal_pairs(np.arange(len(named)), contents)
    alike.add(0, pairs)
    if lines.bits:
        found = _source_hashes(kinds, lines.bits)
        hashes = Hashes(lines.bits)
        for _, sha256 in named:
            hashes.add(found.get(sha256))
        telling = numbers[tell_much(hashes.values[numbers])]
        pairs, telling, values = equal_pairs(telling, hashes.values[telling])
        alike.add(1, pairs)
        for one, other, far in near_hashes(values, settings.bits_apart(lines.bits)):
            alike.add(1, (telling[one], telling[other], far))
    groups, names = alike.groups(), [name for name, _ in named]
    of_group: dict[int, set[str]] = {}
    for place, group in enumerate(groups.tolist()):
        of_group.setdefault(group, set()).add(names[place])
    for place, source in enumerate(lines.sources):
        if source is not None and (group := int(groups[named[source]])) >= 0 and len(of_group[group]) > 1:
            said[SOURCE_GROUP][place] = names[group]


def _source_hashes(kinds: list[Kind], bits: int) -> dict[str, str]:
    """SHA-256 -> hash of every source; one that cannot be opened has none."""
    found: dict[str, str] = {}
    for kind in kinds:
        for shard in kind.plan.names if kind.has_sources else ():
            for record in iter_records(kind.image_file(shard), ["source_sha256", "source"]):
                sha256, source = record["source_sha256"], record["source"]
                if source and sha256 not in found:
                    try:
                        found[sha256] = picture_hash(open_picture(source["bytes"], source["path"]).image, bits)
                    except RowError as error:
                        say(f"warning: {error}; it is compared by its file alone")
    return found


def _prompts(lines: _Lines, said: dict[str, list[Any]]) -> None:
    """Say of each line whose prompt other rows have, too (of an edit: with the same source), which row has it first."""
    rows: dict[tuple[str, str | None], dict[str, None]] = {}
    asked = []
    for place, source in enumerate(lines.sources):
        name = f"{lines.place['row'][place]}/{lines.place['item'][place]}"
        one = (lines.prompts[place], source and source[1])
        rows.setdefault(one, {})[name] = None
        asked.append(one)
    for place, one in enumerate(asked):
        if len(rows[one]) > 1:
            said[PROMPT_GROUP][place] = next(iter(rows[one]))


def _diversity(
    lines: _Lines,
    start: int,
    end: int,
    fields: _Fields,
    made: np.ndarray,
    groups: np.ndarray,
    features: dict[str, tuple[np.ndarray, np.ndarray]],
) -> dict[str, Any]:
    """How varied the pictures of a kind are: of the set, of the samples of a prompt, and by the values of the user's fields.

    Of each: images, `repeated`, how many of them could go so that one of each group stays; and by each way that measures it the mean
    distance of two pictures, 0 where all are the same. samples: the mean of that over the prompts with several pictures; its `images` are
    those of these prompts.
    """

    def told(mask: np.ndarray) -> dict[str, Any]:
        inside = mask & made
        grouped = groups[inside & (groups >= 0)]
        said: dict[str, Any] = {"images": int(inside.sum()), "repeated": len(grouped) - len(np.unique(grouped))}
        for way, (places, rows) in features.items():
            _, (mean,) = mean_distance(rows, np.where(inside[places - start], 0, -1), 1)
            said[way] = None if np.isnan(mean) else float(mean)
        return said

    whole = np.ones(end - start, bool)
    row, item = lines.place["row"][start:end], lines.place["item"][start:end]
    changes = [
        place == 0 or (row[place], item[place]) != (row[place - 1], item[place - 1]) for place in range(end - start)
    ]
    asked = np.cumsum(np.array(changes, np.int64)) - 1
    samples: dict[str, Any] = {"images": 0}
    for way, (places, rows) in features.items():
        counts, means = mean_distance(rows, asked[places - start], int(asked[-1]) + 1 if len(asked) else 0)
        several = counts > 1
        samples["images"] = max(samples["images"], int(counts[several].sum()))
        samples[way] = round(float(means[several].mean()), 6) if several.any() else None
    return {
        "set": told(whole),
        "samples": samples,
        "fields": {
            name: {value: told(codes == code) for code, value in enumerate(values)}
            for name, values, codes in fields.told()
        },
    }


def compared(kinds: list[Kind], metrics: Iterable[str]) -> list[Kind]:
    """The kinds, each with the scores of these metrics alone, and their embeddings."""
    wanted = set(metrics)
    return [
        replace(
            kind,
            score_digests={name: one for name, one in kind.score_digests.items() if name in wanted},
            formulas=(),
            unshown=True,
        )
        for kind in kinds
    ]
