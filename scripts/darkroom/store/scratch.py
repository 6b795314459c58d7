"""Finished images of unfinished shards, under their keys, so that a killed job loses nothing."""

import shutil
from pathlib import Path

from darkroom.files import replacing


class Scratch:
    """A folder of PNG files by key, one for each shard. Every file in it is whole: written to a temporary name and renamed."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.png"

    def has(self, key: str) -> bool:
        return self.path(key).exists()

    def put(self, key: str, data: bytes) -> None:
        with replacing(self.path(key), apart=False) as temporary:
            temporary.write_bytes(data)

    def get(self, key: str) -> bytes:
        return self.path(key).read_bytes()

    def of_shard(self, shard: str) -> "Scratch":
        """The scratch folder of another shard of the same stage."""
        return Scratch(self.folder.parent / shard)

    def clear(self) -> None:
        """Remove the folder: its shard's file is whole."""
        shutil.rmtree(self.folder, ignore_errors=True)
