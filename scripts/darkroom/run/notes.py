"""What result files say of themselves, remembered by their size and time so that a parse costs one stat() a file."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from darkroom.errors import DarkroomError
from darkroom.files import replacing
from darkroom.plan.shards import rows_digest

DAMAGED = {"digest": None, "failed": 1}


class Notes:
    """path -> {"digest", "failed", "image_failures", "failures", "packs"} of each result file; None where there is none.

    A damaged file has no digest, and counts as one in which something failed.
    """

    def __init__(self, store: Path):
        self.store, self.changed = store, False
        try:
            self.known: dict[str, list[Any]] = json.loads(store.read_bytes())
        except (OSError, ValueError):
            self.known = {}

    def of(self, path: str | Path) -> dict[str, Any] | None:
        try:
            stat = os.stat(path)
        except OSError:
            return None
        state = [stat.st_size, stat.st_mtime_ns]
        known = self.known.get(str(path))
        if known is None or known[0] != state:
            self.known[str(path)] = known = [state, _read(Path(path))]
            self.changed = True
        return known[1]

    def save(self) -> None:
        """Keep what was learnt; where the folder cannot be written it is learnt again."""
        if not self.changed:
            return
        with contextlib.suppress(OSError), replacing(self.store, apart=False) as temporary:
            temporary.write_text(json.dumps(self.known, separators=(",", ":")))


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".jsonl":
        return {"digest": rows_digest(path.read_bytes())}
    try:
        if path.suffix == ".js":
            from darkroom.views.gallery import read_head

            meta = read_head(path)
            meta["packs"] = len(meta.get("packs", ()))
        else:
            from darkroom.store.shardfile import read_meta

            meta = read_meta(path)
    except DarkroomError:
        return DAMAGED
    names = ("digest", "failed", "image_failures", "failures", "packs")
    return {name: meta[name] for name in names if name in meta}
