"""Write an export: its files, its description, its checksums."""

import importlib

from darkroom.exports import FORMATS
from darkroom.exports.base import Export, summed
from darkroom.exports.card import describe
from darkroom.files import replacing
from darkroom.store.shardfile import check_digest


def write_export(export: Export) -> dict[str, int]:
    """Write an export with its README, Croissant description and SHA256SUMS; return the number of lines by kind.

    Raises DarkroomError where the table or a shard is missing, stale or damaged.
    """
    check_digest(export.table, export.table_digest)
    export.folder.mkdir(parents=True, exist_ok=True)
    with summed(export.folder) as sums:
        writer = importlib.import_module(f"darkroom.exports.{FORMATS[export.format]}")
        counts = writer.write(export, sums)
        for name, text in describe(export, counts, sums.noted).items():
            with replacing(export.folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
            sums.add_file(name)
    return counts
