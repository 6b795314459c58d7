"""Pictures that stand in the rows themselves: bytes in Parquet and tar files, data URLs in text.

A row that is kept holds {"sha256", "path"?} in place of a picture, whose bytes are handed over beside the row. Those that are
needed go into one SQLite file for the whole plan, so that a million pictures are not a million files.
"""

import base64
import binascii
import hashlib
import re
import sqlite3
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from darkroom.errors import RowError

Pictures = MutableMapping[str, bytes]  # SHA-256 -> content, of the pictures of one row
_DATA_URL = re.compile(r"data:image/[\w.+-]+(?:;[\w=.-]+)*;base64,", re.IGNORECASE)


def held(data: bytes, name: Any, pictures: Pictures | None) -> dict[str, str]:
    """What stands for a picture in a row. Its bytes go to `pictures`."""
    sha256 = hashlib.sha256(data).hexdigest() if pictures is not None else ""
    if pictures is not None:
        pictures[sha256] = data
    return {"sha256": sha256} | ({"path": name} if isinstance(name, str) and name else {})


def without_pictures(value: Any, pictures: Pictures | None) -> Any:
    """A JSON value with `held` in place of each data URL, and of each {"bytes": base64, "path"?}."""
    if isinstance(value, str):
        return _from_url(value, pictures)
    if isinstance(value, list):
        return [without_pictures(item, pictures) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("bytes"), str) and value.keys() <= {"bytes", "path"}:
        try:
            return held(base64.b64decode(value["bytes"], validate=True), value.get("path"), pictures)
        except (binascii.Error, ValueError):
            return value
    return {key: without_pictures(item, pictures) for key, item in value.items()}


def _from_url(text: str, pictures: Pictures | None) -> Any:
    head = _DATA_URL.match(text)
    if head is None:
        return text
    try:
        return held(base64.b64decode(text[head.end() :], validate=True), None, pictures)
    except (binascii.Error, ValueError):
        return text


class PictureFile:
    """The SQLite file of a plan's pictures, for the one process that makes the plan."""

    def __init__(self, path: Path):
        self.path = path
        self.database: sqlite3.Connection | None = None
        self.wanted: set[str] = set()

    def put(self, sha256: str, data: bytes) -> None:
        """Keep a picture that is not there yet."""
        if sha256 in self.wanted:
            return
        self.wanted.add(sha256)
        if self.database is None:
            self.database = sqlite3.connect(self.path)
            self.database.execute("CREATE TABLE IF NOT EXISTS pictures (sha256 TEXT PRIMARY KEY, data BLOB NOT NULL)")
        self.database.execute("INSERT OR IGNORE INTO pictures VALUES (?, ?)", (sha256, data))

    def finish(self) -> None:
        """Write what was put, and forget pictures that were not: no run is at work while a plan is made."""
        if self.database is None:
            self.path.unlink(missing_ok=True)
            return
        there = [row[0] for row in self.database.execute("SELECT sha256 FROM pictures")]
        gone = [(sha256,) for sha256 in there if sha256 not in self.wanted]
        self.database.executemany("DELETE FROM pictures WHERE sha256 = ?", gone)
        self.database.commit()
        self.close()

    def close(self) -> None:
        if self.database is not None:
            self.database.close()
            self.database = None


def read_picture(path: Path | None, sha256: str, name: str) -> bytes:
    """The bytes of a picture that a row held. Raises RowError where they are gone."""
    try:
        # No lock and no journal: nothing writes while jobs read, and file systems of clusters lock badly.
        database = sqlite3.connect(f"{(path or Path('none')).absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            found = database.execute("SELECT data FROM pictures WHERE sha256 = ?", (sha256,)).fetchone()
        finally:
            database.close()
    except sqlite3.Error as error:
        raise RowError(f"image {name}: {path} cannot be read: {error}; delete it and run again") from error
    if found is None:
        raise RowError(f"image {name}: not among the pictures of the rows; delete {path} and run again")
    return found[0]
