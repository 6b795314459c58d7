"""WebDataset: tar files in which each image is a PNG file, its prompt a text and its record a JSON file."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from darkroom.exports.base import Export, Sums, replace_files, runs
from darkroom.tables.fields import leaves
from darkroom.tables.kind import Kind

Sample = list[tuple[str, bytes]]  # (name, content) of its files
_BLOCK = 512  # a tar file's unit; a header takes one
_READ_FIRST = 5  # samples that `datasets` tells the types from
_MOST_FORMS = 4096


def write(export: Export, sums: Sums) -> dict[str, int]:
    """Write a folder per kind with tar files of at most `export.limit` bytes; return the number of images in each."""
    counts = {}
    for kind in export.kinds:
        folder = export.folder / kind.name
        folder.mkdir(exist_ok=True)
        written: list[Path] = []
        count = 0
        for run in runs(_samples(export, kind), export.limit, _bytes):
            path = folder / f".train-{len(written):06d}.tar"
            # ustar headers hold nothing but what is given: no times, no owners.
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
                for sample in run:
                    count += 1
                    for name, data in sample:
                        member = tarfile.TarInfo(name)
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
            written.append(path)
        names = [path.name.removeprefix(".") for path in written]
        replace_files(folder, written, names)
        for name in names:
            sums.add_file(f"{kind.name}/{name}", note=True)
        counts[kind.name] = count
    return counts


def _samples(export: Export, kind: Kind) -> Iterator[Sample]:
    marker = export.marker(kind)
    for number, image in enumerate(export.selected(kind, first_samples(export, kind))):
        # The key alone will not do: two rows that ask for the same have one.
        name = f"{number:09d}-{image.record['key']}"
        png = marker.image(image.shard, image.record, image.full["image"]["bytes"])
        described = json.dumps(export.described(kind, image), ensure_ascii=False)
        sample = [(f"{name}.png", png)]
        if kind.has_sources:
            source = marker.source(image.shard, image.record, image.full["source"]["bytes"])
            sample.append((f"{name}.source.png", source))
        yield [
            *sample,
            (f"{name}.txt", image.record["prompt"].encode("utf-8")),
            (f"{name}.json", described.encode("utf-8")),
        ]


def first_samples(export: Export, kind: Kind) -> list[tuple[str, int]]:
    """(shard, place) of images to begin with, so that `datasets` sees a value of every column among the first five.

    None where that is so in the order of the rows. Where five are not enough, as many columns as can be are seen.
    """
    names, columns = export.names(kind), list(export.columns(kind))
    own = {field.name: isinstance(field.type, dict) for field in export.own[kind.name]}
    forms: dict[frozenset[str], tuple[str, int]] = {}  # what a sample shows of the types -> the first such sample
    in_order: set[str] = set()
    every: set[str] = set()
    number = 0
    for shard, place, record, given in export.records(kind):
        if not record["selected"]:
            continue
        shown: set[str] = set()
        for column in columns:
            shown |= leaves(record[column], names(column))
        for name, nested in own.items():
            value = given[name]  # as JSON where rows of other kinds have something else there
            shown |= leaves(json.loads(value) if nested and isinstance(value, str) else value, name)
        number += 1
        if number <= _READ_FIRST:
            in_order |= shown
        if not shown <= every or len(forms) < _MOST_FORMS:
            forms.setdefault(frozenset(shown), (shard, place))
        every |= shown
    found: list[tuple[str, int]] = []
    missing = every if every - in_order else set()
    while missing and len(found) < _READ_FIRST:
        best = max(forms, key=lambda form: len(form & missing))  # the first of equals
        found.append(forms[best])
        missing = missing - best
    return found


def _bytes(sample: Sample) -> int:
    return sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for _, data in sample)
