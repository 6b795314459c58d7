"""PNG files and metadata.jsonl, as the imagefolder loader of Hugging Face `datasets` wants them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from darkroom.exports.base import Export, PngFolder, Sums
from darkroom.exports.folder import picture_folders, put_pictures
from darkroom.files import replacing
from darkroom.store.shardfile import Type
from darkroom.tables.fields import leaves, shaped
from darkroom.tables.kind import Kind

# The loader opens what such a column names, also within objects, so one of the user's own must not look like it.
_OPENED = re.compile(r"(.*_)?file_names?")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_READ_FIRST = 9 * 2**20  # bytes of metadata.jsonl that the loader tells the types from, a little less


def write(export: Export, sums: Sums) -> dict[str, int]:
    """Write a folder per kind: images/ and edited/, each with its metadata.jsonl; the number of images in each."""
    counts = {}
    for kind in export.kinds:
        folder = export.folder / kind.name
        folder.mkdir(exist_ok=True)
        names = ("pictures", *picture_folders(kind)[1:])
        pictures = PngFolder(folder, names, sums, prefix=f"{kind.name}/")
        marker = export.marker(kind)
        columns, types, files = metadata_columns(export, kind), metadata_types(export, kind), file_columns(export, kind)
        count = 0
        with replacing(folder / "metadata.jsonl") as temporary:
            with open(temporary, "wb") as out:
                late = _LateLines()
                for image in export.selected(kind):
                    count += 1
                    paths = put_pictures(pictures, marker, image)
                    line: dict[str, Any] = dict(zip(files, paths, strict=False))
                    described = export.described(kind, image)
                    line |= {name: shaped(described[column], types[name]) for name, column in columns.items()}
                    data = json.dumps(line, ensure_ascii=False).encode("utf-8") + b"\n"
                    late.note(line, out.tell(), len(data))
                    out.write(data)
            late.move(temporary)
        pictures.finish()
        sums.add_file(f"{kind.name}/metadata.jsonl", note=True)
        counts[kind.name] = count
    return counts


def metadata_columns(export: Export, kind: Kind) -> dict[str, str]:
    """Column of metadata.jsonl -> column of other exports: one that ends as a file's name does gets a `_` at its end."""
    columns = export.described_columns(kind)
    named: dict[str, str] = {}
    for column in columns:
        name = column
        while _OPENED.fullmatch(name) or (name != column and (name in columns or name in named)):
            name += "_"
        named[name] = column
    return named


def metadata_types(export: Export, kind: Kind) -> dict[str, Type]:
    """The columns of metadata.jsonl and their types: an object that the loader would find file names in is JSON text."""
    types = export.described_columns(kind)
    found = {name: types[column] for name, column in metadata_columns(export, kind).items()}
    return dict.fromkeys(file_columns(export, kind), "text") | {n: "text" if _opens(t) else t for n, t in found.items()}


def file_columns(export: Export, kind: Kind) -> list[str]:
    """The columns that name the files of an image and of its source: the loader calls them `image` and `source`."""
    names = export.names(kind)
    image, free = names("image"), "file_name" not in {name.casefold() for name in metadata_columns(export, kind)}
    named = "file_name" if image == "image" and free else f"{names.prefix if image == 'image' else ''}{image}_file_name"
    return [named, *([f"{names('source')}_file_name"] if kind.has_sources else [])]


def _opens(type_: Type) -> bool:
    """Whether a value of that type has something within that the loader would open."""
    if not isinstance(type_, dict):
        return False
    if "list" in type_:
        return _opens(type_["list"])
    return any(_OPENED.fullmatch(name) or _opens(one) for name, one in type_["struct"])


class _LateLines:
    """Moves lines to the front of a file of JSON lines that are the first to show a type, where the loader would come to them late."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.lines: list[tuple[int, int]] = []  # start and length

    def note(self, line: dict[str, Any], start: int, length: int) -> None:
        """A line is written at `start`."""
        fresh = leaves(line)
        # The loader takes text for dates where it sees nothing else.
        fresh |= {
            f"{name} as text" for name, value in line.items() if isinstance(value, str) and not _DATE.match(value)
        }
        fresh -= self.seen
        self.seen |= fresh
        if fresh and start + length > _READ_FIRST:
            self.lines.append((start, length))

    def move(self, path: Path) -> None:
        """Do it; the other lines keep their order."""
        if not self.lines:
            return
        with replacing(path, apart=False) as temporary, open(path, "rb") as lines, open(temporary, "wb") as out:
            for start, length in self.lines:
                lines.seek(start)
                out.write(lines.read(length))
            lines.seek(0)
            for start, length in self.lines:
                _copy(lines, out, start - lines.tell())
                lines.seek(length, 1)
            shutil.copyfileobj(lines, out)


def _copy(source: Any, target: Any, length: int) -> None:
    while length and (data := source.read(min(length, 2**20))):
        target.write(data)
        length -= len(data)
