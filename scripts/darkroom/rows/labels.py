"""Labels that a person gave: accept or reject by image key, from the CSV that the gallery exports."""

import csv
import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darkroom.errors import DarkroomError

LABELS = ("accept", "reject")


@dataclass
class Labels:
    """Labels by image key.

    Attributes:
        by_key: image key -> (label, line number, the line).
        rejected: records of the lines that could not be used.
        used: keys that were asked for.
        partial: whether images of these keys may be left out, as in a trial; then a key that nothing asked for is no mistake.
    """

    by_key: dict[str, tuple[str, int, str]] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    partial: bool = False

    def of(self, key: str) -> str | None:
        """The label of an image, or None."""
        label = self.by_key.get(key)
        if label is None:
            return None
        self.used.add(key)
        return label[0]

    def left(self) -> list[dict[str, Any]]:
        """Records for rejected.jsonl, by line: what could not be read, and keys that no image asked for. Call it last."""
        unknown = [
            _record(line, f"no image has the key {key}", text)
            for key, (_, line, text) in self.by_key.items()
            if key not in self.used and not self.partial
        ]
        return sorted(self.rejected + unknown, key=lambda record: record["line"])


def labels_digest(path: str | Path) -> str:
    """The SHA-256 of the file."""
    return hashlib.sha256(_read(path)).hexdigest()


def read_labels(path: str | Path, digest: str) -> Labels:
    """Read a CSV file with the columns key and label. Other columns are ignored; an empty label means none.

    Args:
        path: the file.
        digest: the SHA-256 that the file had when the run was planned.

    Raises:
        DarkroomError: the file has changed since, or is not such a CSV.
    """
    data = _read(path)
    if hashlib.sha256(data).hexdigest() != digest:
        raise DarkroomError(f"{path}: changed during the run; run snakemake again")
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DarkroomError(f"{path}, line {line}: not UTF-8; save it as CSV in UTF-8") from error
    labels, last = Labels(), 0
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        if missing := {"key", "label"} - set(names):
            raise DarkroomError(f"{path}, line 1: no column {sorted(missing)[0]}; the gallery exports key,label,...")
        key_at, label_at, last = names.index("key"), names.index("label"), reader.line_num
        for cells in reader:
            line, last = last + 1, reader.line_num
            if not cells:
                continue
            text = ",".join(cells)
            if len(cells) <= max(key_at, label_at):
                labels.rejected.append(_record(line, f"{len(cells)} cells, without a key or a label", text))
                continue
            key, label = cells[key_at].strip(), cells[label_at].strip().lower()
            if not label:
                continue
            if label not in LABELS:
                labels.rejected.append(_record(line, f"label {label[:40]} is neither accept nor reject", text))
                continue
            if key in labels.by_key:
                _, earlier, earlier_text = labels.by_key[key]
                labels.rejected.append(_record(earlier, f"the same key is labelled again in line {line}", earlier_text))
            labels.by_key[key] = (label, line, text)
    except csv.Error as error:
        raise DarkroomError(f"{path}, line {last + 1}: not CSV: {error}") from error
    return labels


def _record(line: int, reason: str, text: str) -> dict[str, Any]:
    return {"file": "labels", "line": line, "reason": reason, "text": text}


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DarkroomError(f"{path}: cannot be read: {error.strerror}") from error
