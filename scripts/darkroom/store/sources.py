"""The images that requests start from.

A job looks at each of them three times: for its content and size, to make its edit, and to store it. The content is decoded for
the first two alone: an image that is not stored as it came waits in the scratch folder as the PNG that it is stored as.
"""

import errno
import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from darkroom.errors import RowError
from darkroom.rows.pictures import read_picture
from darkroom.rows.read import of_this_run
from darkroom.store.images import Picture, open_picture, read_file
from darkroom.store.scratch import Scratch
from darkroom.store.shardfile import GroupCache, RecordReader, iter_records

Place = tuple[
    str, str, int, int
]  # of an image of this run: "row" ("row flux" by one of several models) or "edit", its id, item, sample
_GROUPS = 4  # row groups held, of some 32 MB each: sources of neighbours often lie in a few


class Sources:
    """The images that requests start from: the user's files, and images and edits of this run in their shard files.

    Several threads may read at once: what they read comes in turn, and is decoded side by side.
    """

    def __init__(
        self,
        folder: Path,
        images: Sequence[Path],
        spool: Scratch | None = None,
        pictures: Path | None = None,
        edits: Sequence[Path] = (),
        made_by: Mapping[Path, str] = MappingProxyType({}),
    ):
        """folder: of the user's rows; images: image shards of this run; pictures: the file of those that rows held.

        edits: shards of edits that other edits start from; made_by: the model of image shards whose references name it. spool: where
        images that are not stored as they came wait, under the SHA-256 of what they were; None: nowhere, so that they are decoded
        again to be stored.
        """
        self.folder, self.spool, self.pictures = folder, spool, pictures
        groups = GroupCache(_GROUPS)
        shards = [*((_made_by(made_by.get(path)), path) for path in images), *(("edit", path) for path in edits)]
        self.readers = {path: RecordReader(path, ["image", "error"], groups) for _, path in shards}
        self.places: dict[Place, tuple[Path, int]] = {}
        self.origins: dict[Place, str] = {}  # of images of this run that are not all its own
        for of, path in shards:
            columns = ["row", "item", "sample", "origin", "source_origin"]  # those of them that it has
            for position, record in enumerate(iter_records(path, columns)):
                place = of, record["row"], record["item"], record["sample"]
                self.places[place] = (path, position)
                if record["origin"] == "given":
                    self.origins[place] = "given"
                elif record.get("source_origin") in ("given", "edited"):
                    self.origins[place] = "edited"
        self.spooled: set[str] = set()
        self.sound: set[str] = set()  # SHA-256 of contents that were decoded, and are stored as they are
        self.last: tuple[dict[str, Any], Picture] | None = None
        self.reading = threading.Lock()  # of the readers, and of the groups that they share

    def read(self, reference: dict[str, Any], sha256: str | None = None) -> Any:
        """The Picture behind a reference, as in `darkroom.rows.read`. Raises RowError with the reason.

        sha256: what its content must be; a file that changes while the job runs must not be taken for what it was.
        """
        picture = self._read(reference, sha256)
        if sha256 and picture.sha256 != sha256:
            raise _changed(reference)
        return picture

    def stored(self, reference: dict[str, Any], sha256: str) -> bytes:
        """What a shard file holds of an image that `read` found to have the content `sha256`."""
        if self.spool and (data := self.spool.get(sha256)):
            return data
        content = self._content(reference)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise _changed(reference)
        return content if sha256 in self.sound else self.read(reference, sha256).data

    def origin(self, reference: dict[str, Any]) -> str | None:
        """Where an image is from; None where there is no such image.

        "generated": made by this run from text alone, or from what is; "edited": made by it from an image of the user's, or from
        what was; "given": the user's.
        """
        place = _place(reference)
        if place is None:
            return "given"
        return self.origins.get(place, "generated") if place in self.places else None

    def _read(self, reference: dict[str, Any], sha256: str | None) -> Any:
        last = self.last
        if last and last[0] == reference:  # several edits of one image stand together
            return last[1]
        if sha256 and self.spool and (data := self.spool.get(sha256)):
            picture = Picture(open_picture(data, source_name(reference)).image, sha256, data)
        else:
            content = self._content(reference)
            picture = open_picture(content, source_name(reference))
            if picture.data == content:
                self.sound.add(picture.sha256)
            elif self.spool:
                self.spool.put(picture.sha256, picture.data)
                self.spooled.add(picture.sha256)
        self.last = (reference, picture)
        return picture

    def _content(self, reference: dict[str, Any]) -> bytes:
        if "path" in reference:
            try:
                return read_file(str(self.folder / reference["path"]), reference["path"])
            except RowError as error:
                if not str(error).endswith(os.strerror(errno.ENOENT)) or os.path.isabs(reference["path"]):
                    raise
                raise RowError(f"{error} in the rows' folder; rows.root names another") from error
        if "sha256" in reference:
            return read_picture(self.pictures, reference["sha256"], reference["name"])
        place = _place(reference)
        if place is None or place not in self.places:
            raise RowError(f"source {source_name(reference)} is not among the images of this run")
        shard, position = self.places[place]
        with self.reading:
            record = self.readers[shard][position]
        if record["image"] is None:
            raise RowError(f"source {source_name(reference)} was not made: {record['error']}")
        return record["image"]["bytes"]


def source_name(reference: dict[str, Any]) -> str:
    """A source as a reader of the tables wants it: the file's path or name, or row/item/sample, where row may be an edit's."""
    if (place := _place(reference)) is None:
        return reference.get("path") or reference["name"]
    return "/".join(map(str, place[1:]))


def _place(reference: dict[str, Any]) -> Place | None:
    """Where an image of this run is, None for one of the user's."""
    of = of_this_run(reference)
    if of is None:
        return None
    return (
        _made_by(reference.get("model")) if of == "row" else of,
        reference[of],
        reference["item"],
        reference["sample"],
    )


def _made_by(model: str | None) -> str:
    return "row" if model is None else f"row {model}"


def _changed(reference: dict[str, Any]) -> RowError:
    return RowError(f"image {source_name(reference)} changed while the job ran; run again")
