"""What all exports share: the records and pictures they are made from, and how they write files."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar

from darkroom.config import models
from darkroom.errors import DarkroomError
from darkroom.exports import SUMS
from darkroom.exports.provenance import Marker
from darkroom.files import remove, replacing
from darkroom.metrics.base import Catalogue
from darkroom.models.licences import Model
from darkroom.plan.shards import SHARD_NAME
from darkroom.rows.fields import Fields
from darkroom.store.shardfile import RecordReader, Type, check_digest
from darkroom.tables.fields import Names, OwnField, shaped
from darkroom.tables.kind import Kind
from darkroom.tables.read import Table

TABLE_ROWS = 256  # read at once from the final table
_NOT_EXPORTED = ("kind", "shard", "error", "selected")  # where an image lies here, and what all exported images share
Item = TypeVar("Item")


@dataclass
class Export:
    """One export: where it goes, and what it is made from.

    table: the final table of all images (scores.parquet), made for table_digest; catalogue: the columns of scores; settings: `export` of the config;
    select: `select` of the config; models: those that made and judged the images; rows: kind -> file of the user's rows
    (folder export), fields: kind -> which of its fields stands for which of ours, and given: kind -> the files that they came in;
    by_label: whether labels decided what is selected; digest: what the export is made for.
    """

    format: str
    folder: Path
    kinds: list[Kind]
    table: Path
    table_digest: str
    catalogue: Catalogue
    settings: models.Export
    select: models.Select
    models: list[Model]
    digest: str
    reply_column: str = "reply"
    rows: dict[str, Path] = field(default_factory=dict)
    fields: dict[str, Fields] = field(default_factory=dict)
    given: dict[str, list[str]] = field(default_factory=dict)
    by_label: bool = False

    @property
    def limit(self) -> int:
        """Bytes in a file of an export that is cut into files."""
        return self.settings.file_mb * 10**6

    @cached_property
    def images(self) -> Table:
        """The final table, which must be the one that is planned."""
        check_digest(self.table, self.table_digest)
        return Table(self.table)

    @property
    def own(self) -> dict[str, list[OwnField]]:
        """kind -> the fields of its user's rows that mean nothing here, in their order; exports hold them as they are."""
        return self.images.own

    def names(self, kind: Kind) -> Names:
        """What columns of ours are called in exports of a kind."""
        return Names((field.name for field in self.own[kind.name]), self.settings.prefix)

    def columns(self, kind: Kind) -> dict[str, str]:
        """Our columns of the final table that an export of a kind holds, without those of other kinds -> their types."""
        scores = {column for other in self.kinds for column in self.catalogue.types(other.name)}
        left_out = {*_NOT_EXPORTED, *(scores - set(self.catalogue.types(kind.name)))}
        if not kind.has_sources:
            left_out |= {"source_name", "source_origin", "source_kind", "source_parts", "source_sha256", "source_group"}
        return {column: type_ for column, type_ in self.images.columns.items() if column not in left_out}

    def records(self, kind: Kind) -> Iterator[tuple[str, int, dict[str, Any], dict[str, Any]]]:
        """(shard, place in it, our columns of the final table, those of the user) of every image of a kind, selected or not, in order."""
        shard, place = "", 0
        for record, own in self.images.records(TABLE_ROWS):
            if record["kind"] != kind.name:
                continue
            place = place + 1 if record["shard"] == shard else 0
            shard = record["shard"]
            yield shard, place, record, own

    def selected(self, kind: Kind, first: Sequence[tuple[str, int]] = ()) -> Iterator["Image"]:
        """Every selected image of a kind with its pictures, in order; first: (shard, place) of those that come before all others."""
        pictures, ahead = Pictures(kind), {}
        if first:
            ahead = {found[:2]: found[2] for found in self.records(kind) if found[:2] in first}
            for found in first:
                yield pictures.read(*found, ahead[found])
        for shard, place, record, _ in self.records(kind):
            if record["selected"] and (shard, place) not in ahead:
                yield pictures.read(shard, place, record)

    def marker(self, kind: Kind) -> Marker:
        """What turns the pictures of a kind into PNG files."""
        names = {model.section: model.name for model in self.models}
        models = {other.name: names.get(other.section or "") for other in self.kinds}
        return Marker(kind, models, self.settings.provenance)

    def described(self, kind: Kind, image: "Image") -> dict[str, Any]:
        """The record of an image as exports give it, without pictures; one that the user gave has no model."""
        made = image.record["origin"] == "generated"
        model = next((model.name for model in self.models if model.section == kind.section), None)
        ours = image.record | {
            "model": (kind.model or model) if made else None,
            "recipe": image.recipe if made else None,
        }
        own = kind.plan.order.ordered(json.loads(image.full["fields"]))
        return {name: ours[column] for name, column in self._named[kind.name].items()} | {
            field.name: shaped(own.get(field.name), field.type) for field in self.own[kind.name]
        }

    @cached_property
    def _named(self) -> dict[str, dict[str, str]]:
        """kind -> name in exports of each of our columns that are no pictures -> its name here."""
        return {
            kind.name: {self.names(kind)(column): column for column in (*self.columns(kind), "model", "recipe")}
            for kind in self.kinds
        }

    def described_columns(self, kind: Kind) -> dict[str, Type]:
        """The columns of `described` and their types."""
        types: dict[str, Type] = {**self.columns(kind), "model": "text", "recipe": "text"}
        ours = {name: types[column] for name, column in self._named[kind.name].items()}
        return ours | {field.name: field.type for field in self.own[kind.name]}

    def our_name(self, kind: Kind, column: str) -> str | None:
        """Our name of a column of `described`, None for one of the user's."""
        return self._named[kind.name].get(column)


@dataclass
class Image:
    """An image: its shard, its line of the final table, the record in its shard, with pictures, and its recipe as JSON."""

    shard: str
    record: dict[str, Any]
    full: Mapping[str, Any]
    recipe: str


class Pictures:
    """The images of a kind's shards, one row group in memory at a time."""

    def __init__(self, kind: Kind):
        self.kind = kind
        self.shard: str | None = None

    def read(self, shard: str, place: int, record: dict[str, Any]) -> Image:
        """The image at a place of a shard, which must be that of the table's line `record`."""
        path = self.kind.image_file(shard)
        if shard != self.shard:
            meta = check_digest(path, self.kind.image_digests[shard])
            self.shard, self.reader = shard, RecordReader(path)
            self.recipe = json.dumps(meta["recipe"], sort_keys=True)
        full = self.reader[place] if place < self.reader.starts[-1] else None
        if full is None or (full["key"], full["sha256"]) != (record["key"], record["sha256"]):
            raise DarkroomError(f"{path}: row {record['row']}: not the image of the tables; run snakemake again")
        return Image(shard, record, full, self.recipe)


class Sums:
    """Writes the lines of SHA256SUMS to `stream` as files are written below `folder`.

    noted: path -> SHA-256 of files that the description names one by one.
    """

    def __init__(self, folder: Path, stream: IO[str]):
        self.folder, self.stream = folder, stream
        self.noted: dict[str, str] = {}

    def add(self, name: str, sha256: str) -> None:
        self.stream.write(f"{sha256}  {name}\n")

    def add_file(self, name: str, note: bool = False) -> None:
        sha256 = sha256_of(self.folder / name)
        self.add(name, sha256)
        if note:
            self.noted[name] = sha256


@contextlib.contextmanager
def summed(folder: Path) -> Iterator[Sums]:
    """The sums of an export, in their place where the block ends well: an export without SHA256SUMS is not whole."""
    (folder / SUMS).unlink(missing_ok=True)
    with replacing(folder / SUMS) as temporary, open(temporary, "w", encoding="ascii") as stream:
        yield Sums(folder, stream)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def wrong_files(folder: Path) -> Iterator[str]:
    """What is wrong with the files that SHA256SUMS of an export names, a line each."""
    try:
        lines = (folder / SUMS).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        yield f"{folder / SUMS}: cannot be read ({error}); delete it and run again"
        return
    for line in lines:
        sha256, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file():
            yield f"{path}: no such file; delete {folder / SUMS} and run again"
        elif sha256_of(path) != sha256:
            yield f"{path}: not what {SUMS} says; delete {folder / SUMS} and run again"


def runs(items: Iterable[Item], limit: int, size: Callable[[Item], int]) -> Iterator[Iterator[Item]]:
    """`items` in runs of at most `limit` bytes each, which are to be used up in turn; a larger item is a run of its own."""
    items = iter(items)
    ahead = next(items, None)

    def run() -> Iterator[Item]:
        nonlocal ahead
        used = 0
        while ahead is not None and (used == 0 or used + size(ahead) <= limit):
            used += size(ahead)
            yield ahead
            ahead = next(items, None)

    while ahead is not None:
        yield run()


def replace_files(folder: Path, written: list[Path], names: list[str]) -> None:
    """Give finished files their final names, and remove files of earlier exports: those named train-* or .train-*."""
    for path, name in zip(written, names, strict=True):
        os.replace(path, folder / name)
    for path in [path for pattern in ("train-*", ".train-*", "..train-*") for path in folder.glob(pattern)]:
        if path.name not in names:
            remove(path)


class PngFolder:
    """Writes PNG files below `folder`/name/shard, leaves those that are there, and removes those no longer wanted."""

    def __init__(self, folder: Path, names: tuple[str, ...], sums: Sums, prefix: str = ""):
        self.folder, self.names, self.sums, self.prefix = folder, names, sums, prefix
        self.shard: str | None = None
        self.shards: set[str] = set()
        self.wanted: set[Path] = set()

    def put(self, name: str, shard: str, stem: str, png: Callable[[], bytes]) -> str:
        """Write a file and return its path below `folder`; its shards have to come one after the other."""
        if shard != self.shard:
            self._clean()
            self.shard = shard
            self.shards.add(shard)
        path = self.folder / name / shard / f"{stem}.png"
        if path not in self.wanted:
            self.wanted.add(path)
            data = png()
            if not path.exists() or path.stat().st_size != len(data) or path.read_bytes() != data:
                # A file that a crash spoiled is found by its content; to sync millions takes hours.
                with replacing(path, apart=False, sync=False) as temporary:
                    temporary.write_bytes(data)
            relative = path.relative_to(self.folder).as_posix()
            self.sums.add(self.prefix + relative, hashlib.sha256(data).hexdigest())
        return path.relative_to(self.folder).as_posix()

    def _clean(self) -> None:
        if self.shard is not None:
            for name in self.names:
                for path in (self.folder / name / self.shard).glob("*"):
                    if path not in self.wanted:
                        path.unlink()
        self.wanted.clear()

    def finish(self) -> None:
        """Remove what is left of earlier exports."""
        self._clean()
        for name in self.names:
            for left in (self.folder / name).glob("*"):
                if left.name not in self.shards and left.is_dir() and SHARD_NAME.fullmatch(left.name):
                    remove(left)
