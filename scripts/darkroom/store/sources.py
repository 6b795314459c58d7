"""The images that requests start from."""

from pathlib import Path
from typing import Any

from darkroom.errors import RowError
from darkroom.store.images import open_picture, read_file
from darkroom.store.shardfile import RecordReader, iter_records


class Sources:
    """The images that requests start from: the user's files, and images of this run in their shard files."""

    def __init__(self, folder: Path, images: list[Path]):
        """folder: of the user's rows; images: image shards of this run."""
        self.folder = folder
        self.readers = {path: RecordReader(path) for path in images}
        self.places: dict[tuple[str, int, int], tuple[Path, int]] = {}
        for path in images:
            for position, record in enumerate(iter_records(path, ["row", "item", "sample"])):
                self.places[record["row"], record["item"], record["sample"]] = (path, position)

    def read(self, reference: dict[str, Any], sha256: str | None = None) -> Any:
        """The Picture behind {"path"} or {"row", "item", "sample"}. Raises RowError with the reason.

        sha256: what its content must be; a file that changes while the job runs must not be taken for what it was.
        """
        picture = self._read(reference)
        if sha256 and picture.sha256 != sha256:
            raise RowError(f"image {source_name(reference)} changed while the job ran; run again")
        return picture

    def _read(self, reference: dict[str, Any]) -> Any:
        if "path" in reference:
            name = reference["path"]
            return open_picture(read_file(str(self.folder / name), name), name)
        place = reference["row"], reference["item"], reference["sample"]
        if place not in self.places:
            raise RowError(f"source {source_name(reference)} is not among the images of this run")
        shard, position = self.places[place]
        record = self.readers[shard][position]
        if record["image"] is None:
            raise RowError(f"source {source_name(reference)} was not made: {record['error']}")
        return open_picture(record["image"]["bytes"], source_name(reference))


def source_name(reference: dict[str, Any]) -> str:
    """A source as a reader of the tables wants it: the file's path, or row/item/sample."""
    return reference.get("path") or f"{reference['row']}/{reference['item']}/{reference['sample']}"
