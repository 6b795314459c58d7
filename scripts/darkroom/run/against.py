"""The earlier sets that a run's pictures are compared with (`duplicates.against`), as they are when the run is planned.

What they hold is kept in `.darkroom/`, by which a job knows them without a look at every file.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom.errors import DarkroomError
from darkroom.identity import digest
from darkroom.plan.shards import hash_files, write_json

if TYPE_CHECKING:
    from darkroom.tables.duplicates import EarlierSet

KEPT, FILES = "against.json", "against.files.json"
ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif"))


def earlier_digests(paths: Sequence[str], results: Path, planned: bool, bits: int | None) -> dict[str, str]:
    """path -> a hash of what the set holds.

    planned: take what was found when the run was planned. bits: of the hashes that the table of another run must have, None where it
    need not have any. Raises DarkroomError, one line, for what can be no such set.
    """
    if not paths:
        return {}
    known = _kept(results, KEPT)
    if planned and all(path in known for path in paths):
        return {path: known[path] for path in paths}
    files = _kept(results, FILES)
    found: dict[str, str] = {}
    pictures: dict[str, Any] = {}
    for place, path in enumerate(paths):
        where = f"config: duplicates.against.{place}"
        if (Path(path) / "scores.parquet").exists():
            found[path] = _said_of(Path(path), where, bits)
        else:
            pictures[path] = _pictures(path, where, files.get(path, {}))
            found[path] = digest({name: sha256 for name, (*_, sha256) in pictures[path].items()})
    for name, old, new in ((KEPT, known, found), (FILES, files, pictures)):
        if old != new:
            results.joinpath(".darkroom").mkdir(parents=True, exist_ok=True)
            write_json(results / ".darkroom" / name, new)
    return found


def earlier_sets(paths: Sequence[str], results: Path) -> "list[EarlierSet]":
    """The sets at these paths, as they were when the run was planned."""
    from darkroom.tables.duplicates import EarlierSet

    files = _kept(results, FILES) if paths else {}
    held = {path: {name: sha256 for name, (*_, sha256) in found.items()} for path, found in files.items()}
    return [EarlierSet(Path(path), held.get(path)) for path in paths]


def _kept(results: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((results / ".darkroom" / name).read_bytes())
    except (OSError, ValueError):
        return {}


def _pictures(path: str, where: str, known: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """name -> [size, mtime in ns, SHA-256] of each picture in a folder; known: the same of before, of which none is read again."""
    names = sorted(
        os.path.relpath(os.path.join(folder, name), path)
        for folder, _, names in os.walk(path)
        for name in names
        if Path(name).suffix.lower() in ENDINGS
    )
    if not names or (Path(path) / ".darkroom").exists():  # whose pictures are in shards
        held = "no pictures, and no scores.parquet" if not names else "results without a scores.parquet"
        raise DarkroomError(f"{where}: {path}: holds {held}; name a folder of pictures, or results whose run is done")
    hashed = hash_files(
        {f"{path}/{name}" for name in names}, {f"{path}/{name}": state for name, state in known.items()}
    )
    found = {name: hashed[f"{path}/{name}"] for name in names}
    if (lost := next((name for name, state in found.items() if state[2] is None), None)) is not None:
        raise DarkroomError(f"{where}: {path}/{lost}: cannot be read; move it away")
    return found


def _said_of(results: Path, where: str, bits: int | None) -> str:
    """What the table of another run says that it was made for and from: the same table, the same text."""
    from darkroom.store.shardfile import plain_meta
    from darkroom.tables.duplicates import EarlierSet

    try:
        EarlierSet(results).table(bits)
        meta = plain_meta(results / "scores.parquet")
        return digest([meta["digest"], meta["made_from"]])
    except (KeyError, DarkroomError) as error:
        told = error if isinstance(error, DarkroomError) else f"{results}: not of a run; run snakemake there again"
        raise DarkroomError(f"{where}: {told}") from error
