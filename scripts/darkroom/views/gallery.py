"""The gallery: a static site that shows every image of a set, opened from disk or from any web server.

A page on disk cannot read its neighbours with fetch(), but it can load scripts. So the data are scripts that register
themselves, a page of data per shard:

    {kind}/{shown}-{recipe}/{shard}-{rows}.js   what is known of each image, and where its pictures are
    {kind}/{shard}/{content}-t0.js ...          packs of thumbnails as data: URLs
    {kind}/{shard}/{content}-p0.js ...          packs of previews, the large pictures
    index.js                                    the shards, what was selected, labels, groups of duplicates, rejected rows;
                                                small, and all that a threshold changes

{content} is a hash of the pictures: where it is unchanged, new scores leave the packs alone. The first line of each file
is a comment with the digest it was made for.
"""

import base64
import hashlib
import io
import json
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom.config import home
from darkroom.config.models import Gallery, Select
from darkroom.errors import DarkroomError, RowError, general
from darkroom.files import replacing
from darkroom.identity import digest

if TYPE_CHECKING:
    from darkroom.metrics.base import Catalogue
    from darkroom.tables.kind import Kind
    from darkroom.views.ranks import Sample

GALLERY_VERSION = 5  # raise it when the code changes what it makes of the same shard
SITE = home() / "resources/gallery"
THUMBNAIL_PACK, PREVIEW_PACK = 512 * 1024, 2 * 1024 * 1024  # characters, so that one look costs one short read
KEPT_THUMBNAIL, KEPT_PREVIEW = 8 * 1024, 64 * 1024  # bytes; smaller files that are small enough are shown as they are
ON_CARDS = 2  # scores below a picture, where the config names none
REJECTED_LISTED, REJECTED_REASONS, REJECTED_TEXT = 1000, 12, 300  # rows, reasons, characters of a row
_HEAD = "// darkroom "
_TYPES = {b"\x89PN": "png", b"\xff\xd8\xff": "jpeg", b"RIF": "webp"}  # by the first three bytes
# One image of a kind, and many of them, to a person; other kinds are called by their names.
_CALLED = {"images": ("image", "images"), "edited": ("edit", "edits")}
# What a browser need not know, or knows from elsewhere.
_LEFT_OUT = frozenset(("kind", "shard", "sha256", "source_sha256", "source_origin"))


def read_head(path: str | Path) -> dict[str, Any]:
    """The first line of a file of the gallery. Raises DarkroomError where it is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            line = stream.readline(2**20)
        head = json.loads(line.removeprefix(_HEAD))
        return {"digest": head["digest"]} | head
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DarkroomError(f"{path}: not a file of the gallery; delete it and run again") from error


def site_files(site: Path = SITE) -> list[str]:
    """Names of the page's own files."""
    return sorted(path.name for path in site.iterdir() if path.suffix in (".html", ".css", ".js"))


def site_digest(site: Path = SITE) -> str:
    """A hash of the page's own files."""
    return digest([[name, hashlib.sha256((site / name).read_bytes()).hexdigest()] for name in site_files(site)])


def as_script(value: Any) -> str:
    """`value` as JSON that is safe in a script, and would be in a page: no <, >, & or line separators as they are."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def write_shard(
    kind: "Kind", shard: str, options: Gallery, path: Path, head: dict[str, Any], scores: Iterable[str]
) -> dict[str, int]:
    """Write a shard's file `path`, and its packs in the folder {kind}/{shard}. Returns counts.

    options: `gallery` of the config; head: the digest and whatever else the first line is to say; scores: the columns of scores that are
    for people, see `score_columns`. Memory: one row group of pictures and one pack.
    """
    from darkroom.store.shardfile import EDITED_COLUMNS, read_meta

    known = {*EDITED_COLUMNS, "model", *scores} - _LEFT_OUT
    columns: dict[str, list[Any]] = {}
    pictures: dict[str, int] = {}  # SHA-256 -> number, so that many edits of one picture hold it once
    count = 0
    for record in kind.shard_records(shard):
        for name in ("image", "source"):
            sha256: str | None = record.get("source_sha256" if name == "source" else "sha256")
            shown = record["error"] is None or name == "source"
            record[name] = pictures.setdefault(sha256, len(pictures)) if sha256 and shown else None
        for name, value in record.items():
            if name in known:
                columns.setdefault(name, [None] * count).append(value)
        count += 1
    images = kind.image_file(shard)
    content = digest([GALLERY_VERSION, list(pictures), options.thumbnail, options.preview], 16)
    folder = packs_folder(path, shard)
    old = _old_pictures(path, folder, content)
    if old is None:
        old = _write_packs(images, pictures, options, folder, content)
    places, packs = old
    meta, recipes = read_meta(images), kind.recipes(shard)
    data = {
        "kind": kind.name,
        "shard": shard,
        "file": "/".join(images.parts[-3:]),
        "records": count,
        "content": content,
        "columns": {name: _short(values) for name, values in columns.items()},
        "pictures": places,
        "recipe": meta["recipe"],
        "metrics": recipes,
        "versions": meta["versions"],
    }
    whole = head | {"records": count, "content": content, "packs": packs}
    _write(path, f"{_HEAD}{as_script(whole)}\ngallery.shard({as_script(data)});\n")
    return {"images": count, "pictures": len(pictures), "packs": len(packs)}


def score_columns(catalogue: "Catalogue", kind: str) -> list[str]:
    """The columns of scores of a kind that are for people, which vectors are not."""
    return [column.name for column in catalogue.columns(kind) if column.role != "embedding"]


def _short(values: list[Any]) -> Any:
    """A column; where all its values are the same, that value."""
    return values[0] if values and all(value == values[0] for value in values) else values


def packs_folder(path: Path, shard: str) -> Path:
    """Where the packs of a shard lie, of whatever recipe: a pack is known by its content. path: the shard's file."""
    return path.parent.parent / shard


def _old_pictures(path: Path, folder: Path, content: str) -> tuple[list[Any], dict[str, str]] | None:
    """The pictures of an earlier file of this shard, where they are the ones that are wanted and none of their packs is lost."""
    for old in path.parent.parent.glob(f"*/{folder.name}-*.js"):
        try:
            head = read_head(old)
            if head["content"] != content or check_packs(folder, head):
                continue
            text = old.read_text(encoding="utf-8").split("\n")[1]
            return json.loads(text.removeprefix("gallery.shard(").removesuffix(");"))["pictures"], head["packs"]
        except (DarkroomError, OSError, ValueError, KeyError, IndexError):
            continue
    return None


def check_packs(folder: Path, head: dict[str, Any]) -> list[str]:
    """What is wrong with the packs in `folder` of the shard's file that has this first line, a line each."""
    problems = []
    for name, sha256 in head["packs"].items():
        pack = folder / name
        if not pack.exists():
            problems.append(f"{pack}: no such file; run again")
        elif hashlib.sha256(pack.read_bytes()).hexdigest() != sha256:
            problems.append(f"{pack}: damaged; delete it and the shard's .js files, and run again")
    return problems


class _Packs:
    """Collects pictures and writes them out pack by pack."""

    def __init__(self, folder: Path, content: str, letter: str, most: int):
        self.folder, self.content, self.letter, self.most = folder, content, letter, most
        self.group: list[str] = []
        self.size = 0
        self.written: dict[str, str] = {}

    def add(self, data: bytes) -> list[int]:
        """Take a picture; returns its place: [pack, position in it]."""
        place = [len(self.written), len(self.group)]
        self.group.append(f"data:image/{_TYPES[data[:3]]};base64,{base64.b64encode(data).decode()}")
        self.size += len(self.group[-1])
        if self.size >= self.most:
            self.flush()
        return place

    def flush(self) -> None:
        if not self.group:
            return
        stem = f"{self.content}-{self.letter}{len(self.written)}"
        name = f"{self.folder.parent.name}/{self.folder.name}/{stem}"
        text = (
            f"{_HEAD}{as_script({'digest': self.content})}\ngallery.pack({as_script(name)},{as_script(self.group)});\n"
        )
        _write(self.folder / f"{stem}.js", text)
        self.written[f"{stem}.js"] = hashlib.sha256(text.encode()).hexdigest()
        self.group, self.size = [], 0


def _write_packs(
    images: Path, pictures: dict[str, int], options: Gallery, folder: Path, content: str
) -> tuple[list[Any], dict[str, str]]:
    """Write the packs; returns the pictures' places, by number, and the packs' SHA-256 by name.

    A place is [width, height, pack, position] of the thumbnail, then [pack, position] of the preview where there is one;
    None for a picture that cannot be opened.
    """
    places: list[Any] = [None] * len(pictures)
    thumbnails = _Packs(folder, content, "t", THUMBNAIL_PACK)
    previews = _Packs(folder, content, "p", PREVIEW_PACK)
    for sha256, data in _pictures(images):
        number = pictures.get(sha256)
        if number is None or places[number] is not None:
            continue
        try:
            size, small, large = reduced(data, options.thumbnail, options.preview, sha256)
        except RowError:
            continue
        places[number] = [*size, *thumbnails.add(small), *(previews.add(large) if large else ())]
    thumbnails.flush()
    previews.flush()
    return places, thumbnails.written | previews.written


def _pictures(images: Path) -> Iterator[tuple[str, bytes]]:
    """(SHA-256, file) of every picture of an image shard, result and source."""
    from darkroom.store.shardfile import iter_records

    for record in iter_records(images):
        for name, sha256 in (("image", "sha256"), ("source", "source_sha256")):
            if record.get(name) and record[sha256]:
                yield record[sha256], record[name]["bytes"]


def reduced(data: bytes, thumbnail: int, preview: int | None, name: str) -> tuple[tuple[int, int], bytes, bytes | None]:
    """(width and height of the picture, its thumbnail, its preview) as image files.

    data: PNG, JPEG or WebP; thumbnail, preview: longest side in pixels. Small files are kept as they are, others become WebP. No
    preview where the thumbnail is the picture itself, or preview is None. Raises RowError for what is no picture.
    """
    from PIL import Image

    from darkroom.store.images import FORMATS, open_picture

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            size, known = opened.size, data[:3] in _TYPES
    except Exception as error:
        raise RowError(f"image {name}: cannot be read as an image") from error
    longest = max(size)
    if known and longest <= thumbnail and len(data) <= KEPT_THUMBNAIL:
        return size, data, None
    image = open_picture(data, name).image
    large = None
    if preview is not None:
        kept = known and longest <= preview and len(data) <= KEPT_PREVIEW
        large = data if kept else _webp(image, preview, 88)
    return size, _webp(image, thumbnail, 80), large


def _webp(image: Any, longest: int, quality: int) -> bytes:
    from PIL import Image

    if max(image.size) > longest:
        image = image.copy()
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=3.0)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=quality, method=4)
    return out.getvalue()


def write_index(
    kinds: "list[Kind]",
    catalogue: "Catalogue",
    select: Select,
    scores: Path,
    files: dict[tuple[str, str], Path],
    folder: Path,
    about: dict[str, Any],
    head: dict[str, Any],
    site: Path = SITE,
) -> dict[str, int]:
    """Write the page's own files and index.js into `folder`, where the shards' files are. Returns counts.

    scores: the merged scores.parquet, which says what is selected and labelled; files: (kind, shard) -> its file.
    about: `set`, which names the set in the browser's storage, and `title`; where there is something to say, `models`, the
    identity of each model -> its name, `dataset`, whether the data set with the original files lies beside the gallery, and
    `rejected`, see `rejected_rows`; `cards`, the scores below each picture, None or left out for the first ones. Raises DarkroomError for a shard file of other images.
    """
    shards: list[tuple[str, str, int, str, str, str, dict[str, str]]] = []
    # Scores that no metric has files of are worked out in the table: a change of them leaves the shards' files as they are.
    worked_out = {
        kind.name: [column.name for column in catalogue.scores(kind.name) if column.metric not in kind.score_digests]
        for kind in kinds
    }
    told = _told(scores, catalogue, worked_out)
    alike = _groups(scores)
    for kind in kinds:
        for shard in kind.plan.names:
            path = files[kind.name, shard]
            found = read_head(path)
            flags = told.selected.get((kind.name, shard), [])
            if len(flags) != found["records"]:
                raise DarkroomError(f"{path}: {found['records']} images where {scores} has {len(flags)}; delete it")
            packed = base64.b64encode(_bits(flags)).decode()
            name = path.relative_to(folder / kind.name).as_posix()
            numbers = {
                score: base64.b64encode(of.tobytes()).decode()
                for score, of in told.values.get((kind.name, shard), {}).items()
            }
            shards.append((kind.name, shard, len(flags), digest(found, 8), packed, name, numbers))
    cards = about.get("cards")
    index = {name: value for name, value in about.items() if name != "cards"} | {
        "kinds": {kind.name: _about(catalogue, kind.name, select, cards, told.samples[kind.name]) for kind in kinds},
        "perRow": select.per_row,
        "byLabel": select.labels,
        "shards": shards,
        "labels": told.labels,
        **({} if alike is None else {"alike": alike}),
    }
    text = f"{_HEAD}{as_script(head)}\ngallery.index({as_script(index)});\n"
    version = hashlib.sha256(text.encode() + site_digest(site).encode()).hexdigest()[:8]
    for name in site_files(site):
        data = (site / name).read_bytes()
        # A browser that has seen the page before must not take the old files for the new ones.
        _write(folder / name, data.decode().replace("?VERSION", f"?{version}") if name.endswith(".html") else data)
    _write(folder / "index.js", text)
    return {"shards": len(shards), "images": sum(entry[2] for entry in shards), "labels": len(told.labels)}


def rejected_rows(path: Path, names: Mapping[str, str]) -> dict[str, Any]:
    """What rejected.jsonl holds, for the page: `count`, the commonest `reasons` with their counts, and the first `rows`, each
    as file, line, reason and the start of its text.

    names: what each of the user's files is called, by what it holds ("prompts", "edits", "labels").
    """
    reasons: Counter[str] = Counter()
    rows: list[tuple[str, int, str, str]] = []
    with open(path, encoding="utf-8") as stream:
        for record in map(json.loads, stream):
            reason = general(record["reason"])
            reasons[reason if reason in reasons or len(reasons) < REJECTED_LISTED else "other reasons"] += 1
            if len(rows) < REJECTED_LISTED:
                file = record.get("name") or names.get(record["file"], record["file"])
                rows.append((file, record["line"], record["reason"], record["text"][:REJECTED_TEXT]))
    return {"count": reasons.total(), "reasons": reasons.most_common(REJECTED_REASONS), "rows": rows}


def _bits(flags: list[bool]) -> bytes:
    """Flags as bits, the first in the lowest bit of the first byte."""
    return bytes(sum(flag << n for n, flag in enumerate(flags[at : at + 8])) for at in range(0, len(flags), 8))


@dataclass
class _Told:
    """What the merged table tells. samples: kind -> how its scores rank its images. By (kind, shard), of each image in order: selected;
    values, of the scores that are asked for, nan where there is none."""

    samples: "dict[str, Sample]"
    labels: dict[str, str] = field(default_factory=dict)
    selected: dict[tuple[str, str], list[bool]] = field(default_factory=dict)
    values: dict[tuple[str, str], dict[str, "array[float]"]] = field(default_factory=dict)


def _told(scores: Path, catalogue: "Catalogue", worked_out: dict[str, list[str]]) -> _Told:
    """Read the table; worked_out: kind -> the scores whose values are asked for."""
    from darkroom.tables.read import Table
    from darkroom.views.ranks import Sample, add_batch

    told = _Told({kind: Sample(catalogue.score_names(kind)) for kind in worked_out})
    every = {name for sample in told.samples.values() for name in sample.names}
    columns = ["kind", "shard", "key", "selected", "label"]
    for batch in Table(scores).batches([*columns, "error", *sorted(every)]):
        for kind, shard, key, flag, label in zip(*(batch[name].to_pylist() for name in columns), strict=True):
            told.selected.setdefault((kind, shard), []).append(flag)
            if label:
                told.labels[key] = label
        add_batch(told.samples, batch)
        numbers = {name: batch[name].to_pylist() for names in worked_out.values() for name in names}
        for place, of in enumerate(zip(batch["kind"].to_pylist(), batch["shard"].to_pylist(), strict=True)):
            for name in worked_out.get(of[0], ()):
                number = numbers[name][place]
                found = told.values.setdefault(of, {}).setdefault(name, array("d"))
                found.append(math.nan if number is None else number)
    return told


def _groups(scores: Path) -> dict[str, str] | None:
    """The group of duplicates of each image that has one, by its key; None where none were looked for."""
    from darkroom.tables.read import Table

    table = Table(scores)
    if "duplicate_group" not in table.columns:
        return None
    found: dict[str, str] = {}
    for batch in table.batches(["key", "duplicate_group"]):
        found |= {key: group for key, group in zip(*batch.to_pydict().values(), strict=True) if group is not None}
    return found


def _about(
    catalogue: "Catalogue", kind: str, select: Select, cards: list[str] | None, sample: "Sample"
) -> dict[str, Any]:
    """What the page knows of a kind: what it is called, its scores with range, threshold and ranks, the questions they come from, and in
    words what selects beside thresholds.

    cards: the scores below each picture, of all kinds; None: the first ones.
    """
    thresholds, cuts = select.least_of(kind), select.of(kind).cuts
    scores = [
        {
            "name": column.name,
            "metric": column.metric,
            "label": column.label,
            "low": column.low,
            "high": column.high,
            "whole": column.type == "int",
            "least": thresholds.get(column.name),
            "quantiles": sample.quantiles(column.name),
        }
        for column in catalogue.scores(kind)
    ]
    asked = [
        {"name": question.name, "text": question.label, "reply": question.reply, "error": question.error}
        for question in catalogue.questions(kind)
    ]
    base, _, model = kind.partition("-")
    one, many = (f"{called}{model and f' by {model}'}" for called in _CALLED.get(base, (base, base)))
    names = catalogue.score_names(kind)
    deciding = [*thresholds, *(name for name in names if name not in thresholds)]
    correlations = sample.correlations()
    return {
        "one": one,
        "many": many,
        **({"of": base} if model else {}),  # those of one base are shown side by side
        "scores": scores,
        "cards": deciding[:ON_CARDS] if cards is None else [name for name in cards if name in names],
        # Of every two scores, the first with the second, the first with the third, ...: their rank correlation.
        "agreement": [
            None if math.isnan(value) else round(float(value), 3)
            for place in range(len(names))
            for value in correlations[place, place + 1 :]
        ],
        "thresholds": list(thresholds.items()),  # in their order: `per_row` keeps the best by the first
        **({"cuts": [f"{key} {said}" for key, said in cuts.items()]} if cuts else {}),
        "texts": catalogue.names(kind, "text"),
        # What a person is told of a picture besides its scores, metric by metric.
        "told": [
            {"name": column.name, "metric": column.metric}
            for column in catalogue.columns(kind)
            if column.role == "text" or (column.role == "score" and not column.selectable)
        ],
        "questions": asked,
    }


def _write(path: Path, content: str | bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
