"""Manifests: small files beside shard files, which say by hash what they hold and what they were made from.

A manifest is what Snakemake looks at instead of the shard, which can have gigabytes: it is written last, and where two
manifests are equal, what follows from the shards is equal, too. This module is light: planning a run reads manifests.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from darkroom.files import replacing

SUFFIX = ".manifest"


class Manifest(TypedDict):
    """What a file holds.

    digest: what it was made for. records and failed: their numbers. content: a hash of all records and pictures. made_from: the
    `content` of each file it was made from, in the order of the plan.
    """

    digest: str
    records: int
    failed: int
    content: str
    made_from: list[str]


def manifest_path(path: str | Path) -> Path:
    """Where the manifest of a shard file lies."""
    return Path(path).with_suffix(SUFFIX)


def read_manifest(path: str | Path) -> Manifest | None:
    """The manifest in the file `path`, None where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        with open(path, "rb") as stream:
            found = json.loads(stream.read())
        if Manifest.__required_keys__ <= set(found):
            return found
    return None


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(manifest, sort_keys=True) + "\n", encoding="utf-8")


def combined(contents: Iterable[str]) -> str:
    """One hash of many `content`s, in order."""
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()
