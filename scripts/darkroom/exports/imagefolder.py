"""PNG files and metadata.jsonl, as the imagefolder loader of Hugging Face `datasets` wants them."""

import json
import re
from typing import Any

from darkroom.exports.base import Export, PngFolder, Sums
from darkroom.exports.folder import picture_folders, put_pictures
from darkroom.files import replacing
from darkroom.tables.kind import Kind

# The loader opens what such a column names, so one of the user's own must not look like it.
_OPENED = re.compile(r"(.*_)?file_names?")


def write(export: Export, sums: Sums) -> dict[str, int]:
    """Write a folder per kind: images/ and edited/, each with its metadata.jsonl; the number of images in each."""
    counts = {}
    for kind in export.kinds:
        folder = export.folder / kind.name
        folder.mkdir(exist_ok=True)
        names = ("pictures", *picture_folders(kind)[1:])
        pictures = PngFolder(folder, names, sums, prefix=f"{kind.name}/")
        marker = export.marker(kind)
        count = 0
        with replacing(folder / "metadata.jsonl") as temporary, open(temporary, "w", encoding="utf-8") as out:
            for image in export.selected(kind):
                count += 1
                path, source = put_pictures(pictures, marker, image)
                line: dict[str, Any] = {"file_name": path} | ({"source_file_name": source} if source else {})
                described = export.described(kind, image)
                line |= {name: described[column] for name, column in metadata_columns(export, kind).items()}
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
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
