"""What result files say of themselves, remembered by their size and time so that a parse costs one stat() a file."""

import json
import os
from pathlib import Path
from typing import Any

from darkroom.errors import DarkroomError
from darkroom.plan import rows_digest

DAMAGED = {"digest": None, "failed": 1}


class Notes:
    """path -> {"digest", "failed", "image_failures", "failures"} of each result file; None where there is none.

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
        try:
            temporary = self.store.with_name(f"{self.store.name}.{os.getpid()}")
            temporary.write_text(json.dumps(self.known, separators=(",", ":")))
            os.replace(temporary, self.store)
        except OSError:
            return


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".jsonl":
        return {"digest": rows_digest(path.read_bytes())}
    from darkroom.shardfile import read_meta

    try:
        meta = read_meta(path)
    except DarkroomError:
        return DAMAGED
    return {name: meta[name] for name in ("digest", "failed", "image_failures", "failures") if name in meta}
