"""Finished images of unfinished shards, under their keys, so that a killed job loses nothing."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from darkroom.files import replacing


class Scratch:
    """A folder of pictures by key, one for each shard; all are named .png, whatever their format. Every file in it is whole: written to
    a temporary name and renamed.

    One job at a time writes to it, that of its shard. Others may read what belongs to rows that have moved to their shards, at
    any time: a file that goes meanwhile is none.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.png"

    def has(self, key: str) -> bool:
        return self.path(key).exists()

    def put(self, key: str, data: bytes) -> None:
        with replacing(self.path(key), apart=False) as temporary:
            temporary.write_bytes(data)

    def get(self, key: str) -> bytes | None:
        """The image under a key, None where there is none."""
        try:
            return self.path(key).read_bytes()
        except FileNotFoundError:
            return None

    def of_shard(self, shard: str) -> "Scratch":
        """The scratch folder of another shard of the same stage."""
        return Scratch(self.folder.parent / shard)

    def clear(self, keys: Iterable[str]) -> None:
        """Remove images that are in the shard's file now. What belongs to rows that have moved stays for their shards' jobs."""
        for key in keys:
            self.path(key).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # OSError: it is not empty, or was never there
            for part in self.folder.iterdir():
                with contextlib.suppress(OSError):
                    part.rmdir()
            self.folder.rmdir()
