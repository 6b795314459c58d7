"""Cut a file of rows into shards whose borders and names survive insertions, and keep the plan.

Borders come from the rows' content: a row is a *candidate* where the hash of its id is small, and a candidate
starts a shard where no other candidate lies among the `gap` rows before it. Whether a row starts a shard so
depends on that row and the few before it alone: one row inserted, edited or deleted moves at most one border,
and at most two shards change. `gap` and the share of candidates are chosen so that a shard has `size` rows on
average and (but for the last) more than size/e - 1; four times the size is cut by force, which one shard in
some ten thousand needs. A shard is named after the id of its first row.

The plan of a file is made once and cached under `<results>/.darkroom/plan/<kind>/`:

    current.json   which plan holds, and of which state of the user's file
    <id>.json      the shards: name, place in the rows file, counts, digest
    <id>.rows      the hashes of the row ids in order, 8 bytes each: where a row was, for carrying images over
    <id>.jsonl     the normal rows (see `darkroom.rows.read`) and the rejected ones, a line each

Only `json` and `hashlib` are needed to load one, so a job on a node pays milliseconds.
"""

import array
import concurrent.futures
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from darkroom.errors import DarkroomError, RowError
from darkroom.files import replacing
from darkroom.identity import canonical, digest
from darkroom.rows.read import MAX_FILE_BYTES, content_id, parse_row, read_rows, row_id

PLAN_VERSION = 1
SHARD_NAME = re.compile("[0-9a-f]{12}x*")
GREATEST = 4  # a shard is cut by force at this many times the average size
_KEPT_ROWS = 3  # rows files of earlier plans kept, for jobs that still read them
_KEPT_PLANS = 50
_RAW_KEPT = 2000


@dataclass
class Shard:
    """A run of rows handled by one job of each stage.

    offset and length: bytes in the rows file. first_line: the line of the user's file it starts at. items: images
    that one sample of its rows makes, of rows that set no `samples`; explicit: requests of those that do, and given images.
    references: (row, item, sample, shard, digest of that row) of each image of this run that an edit starts from.
    digest: hash of the rows; sources: hash of the contents of the image files they name.
    """

    name: str
    offset: int
    first_line: int
    length: int = 0
    rows: int = 0
    rejected: int = 0
    items: int = 0
    explicit: int = 0
    digest: str = ""
    sources: str = ""
    references: list[list[Any]] = field(default_factory=list)

    def requests(self, samples: int) -> int:
        """Images to make with `samples` per prompt."""
        return self.items * samples + self.explicit


class Plan:
    """The shards of one file of rows, in its order. `shards` maps names to Shard."""

    def __init__(self, folder: Path, content: dict[str, Any]):
        self.folder, self.id, self.kind = folder, content["id"], content["kind"]
        self.shards = {entry["name"]: Shard(**entry) for entry in content["shards"]}

    @property
    def names(self) -> list[str]:
        return list(self.shards)

    @property
    def digest(self) -> str:
        """Changes with any row, source image or border."""
        return digest([[s.name, s.digest, s.sources] for s in self.shards.values()])

    def read(self, name: str) -> bytes:
        """The lines of a shard as they stand in its prompts file."""
        shard = self.shards[name]
        with open(self.folder / f"{self.id}.jsonl", "rb") as stream:
            stream.seek(shard.offset)
            data = stream.read(shard.length)
        if len(data) != shard.length:
            raise DarkroomError(f"{stream.name} is cut short; delete {self.folder} and run again")
        return data

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(shard, line) for every line of every shard."""
        with open(self.folder / f"{self.id}.jsonl", "rb") as stream:
            for name, shard in self.shards.items():
                for _ in range(shard.rows + shard.rejected):
                    yield name, json.loads(stream.readline())

    def first_rejected(self) -> tuple[int, str] | None:
        """(line of the user's file, reason) of the first row that cannot be used, or None."""
        for name, shard in self.shards.items():
            if shard.rejected:
                rejected = next(line for line in map(json.loads, self.read(name).splitlines()) if "rejected" in line)
                return shard.first_line + rejected["line"], rejected["rejected"]
        return None

    def earlier_shards(self, *shards: str) -> list[str]:
        """Shards of this and earlier plans, newest first, that held rows of `shards`: images may wait there."""
        import numpy as np

        mine = self._row_hashes(self.id)
        names, starts = self._row_places(self.id)
        wanted = np.concatenate([mine[starts[at] : starts[at + 1]] for at in map(names.index, shards)])
        found = dict.fromkeys(shards)
        for plan_id in _plans_by_age(self.folder):
            hashes = self._row_hashes(plan_id)
            names, starts = self._row_places(plan_id)
            places = np.flatnonzero(np.isin(hashes, wanted))
            for shard in np.unique(np.searchsorted(starts, places, side="right") - 1):
                found.setdefault(names[shard])
        return list(found)

    def shard_of_row(self, row: str) -> str | None:
        """The shard that holds the row with this id, or None."""
        import numpy as np

        places = np.flatnonzero(self._row_hashes(self.id) == np.uint64(_hash64(row.encode())))
        names, starts = self._row_places(self.id)
        return names[int(np.searchsorted(starts, places[0], side="right")) - 1] if len(places) else None

    def _row_hashes(self, plan_id: str) -> Any:
        import numpy as np

        return np.fromfile(self.folder / f"{plan_id}.rows", dtype="<u8")

    def _row_places(self, plan_id: str) -> tuple[list[str], Any]:
        import numpy as np

        shards = json.loads((self.folder / f"{plan_id}.json").read_bytes())["shards"]
        counts = [shard["rows"] + shard["rejected"] for shard in shards]
        return [shard["name"] for shard in shards], np.concatenate([[0], np.cumsum(counts)]).astype(int)


def plan_folder(results: str | Path, kind: str) -> Path:
    return Path(results) / ".darkroom" / "plan" / kind


def hold_results(results: str | Path, refusal: str) -> Any:
    """Lock a results folder against other runs, until the lock that is returned is released or the process ends.

    None on a file system without locks. Raises DarkroomError with `refusal` where another process holds it.
    """
    import filelock

    path = Path(results) / ".darkroom" / "run.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise DarkroomError(refusal) from error
    except NotImplementedError:
        return None
    return lock


def load_plan(results: str | Path, kind: str) -> Plan:
    """The plan that holds for `kind` ("prompts" or "edits"), as it was made last, without a look at the user's file."""
    folder = plan_folder(results, kind)
    try:
        current = json.loads((folder / "current.json").read_bytes())
        return Plan(folder, json.loads((folder / f"{current['id']}.json").read_bytes()))
    except (OSError, ValueError, KeyError) as error:
        raise DarkroomError(f"{folder}: no plan there; run snakemake on the submitting host first") from error


def make_plan(
    path: str | Path, kind: str, size: int, results: str | Path, samples: int = 1, prompts: Plan | None = None
) -> Plan:
    """The plan of the rows in `path`, made anew only where the file, an image it names or an argument changed.

    samples: images per prompt, and prompts: the plan of the prompts; both to check the images of this run that
    edits refer to. Raises DarkroomError where the file cannot be read.
    """
    import filelock

    path, folder = Path(path), plan_folder(results, kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stat = path.stat()
    except OSError as error:
        raise DarkroomError(f"{error.filename}: {error.strerror}") from error
    state = [PLAN_VERSION, str(path.absolute()), stat.st_size, stat.st_mtime_ns, size, samples if prompts else None]
    state.append(prompts.id if prompts else None)
    with filelock.FileLock(folder / "lock"):
        try:
            current = json.loads((folder / "current.json").read_bytes())
            if current["state"] == state and _sources_unchanged(folder, current["id"]):
                return Plan(folder, json.loads((folder / f"{current['id']}.json").read_bytes()))
        except (OSError, ValueError, KeyError):
            pass
        # Its jobs read the plan that is current.
        refusal = f"{path}: changed, or is to be cut otherwise, while another run works on {results}"
        if lock := hold_results(results, f"{refusal}; wait for its end, or stop it"):
            lock.release()
        return _Builder(path, kind, size, folder, samples, prompts).build(state)


def _spacing(size: int) -> tuple[int, int]:
    """(gap, threshold): candidates are rows whose 64-bit hash lies below the threshold.

    A row starts a shard with probability p (1 - p)**gap, which is to be 1 / size; p is the smaller solution.
    """
    gap = max(0, int(size / math.e) - 1)
    low, high = 0.0, 1 / (gap + 1)
    for _ in range(60):
        p = (low + high) / 2
        low, high = (p, high) if p * (1 - p) ** gap < 1 / size else (low, p)
    return gap, int(high * 2**64)


def rows_digest(data: bytes) -> str:
    """The digest of a shard's lines, as `Shard.digest` has it."""
    return hashlib.sha256(data).hexdigest()[:32]


def _hash64(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


def _plans_by_age(folder: Path) -> list[str]:
    """Ids of the plans in `folder` whose rows are known, the newest first."""
    plans = [path for path in folder.glob("*.rows") if path.with_suffix(".json").exists()]
    return [path.stem for path in sorted(plans, key=lambda path: (-path.stat().st_mtime_ns, path.stem))]


class _Builder:
    def __init__(self, path: Path, kind: str, size: int, folder: Path, samples: int, prompts: Plan | None):
        self.path, self.kind, self.size, self.folder = path, kind, size, folder
        self.samples, self.prompts = samples, prompts
        self.gap, self.threshold = _spacing(size)
        self.shards: list[Shard] = []
        self.hashes = array.array("Q")
        self.seen: set[int] = set()
        self.repeats: Counter[int] = Counter()
        self.sources: dict[str, list[str]] = {}
        self.since_candidate = 0
        self.names: set[str] = set()

    def build(self, state: list[Any]) -> Plan:
        targets = self._referenced_rows() if self.prompts else {}
        temporary = self.folder / "new.jsonl"  # make_plan lets one process build at a time
        try:
            with open(temporary, "wb") as out:
                for number, raw, row, reason in read_rows(self.path):
                    self._add(out, number, raw, row, reason, targets)
            plan = self._finish(state, temporary)
        finally:
            temporary.unlink(missing_ok=True)
        return plan

    def _add(
        self, out: Any, number: int, raw: bytes, row: dict | None, reason: str | None, targets: dict[str, Any]
    ) -> None:
        normal, references = None, []
        if row is not None:
            try:
                normal = parse_row(row, self.kind)
                references = self._resolve(normal, targets)
                normal["id"] = self._id(row)  # last: a row that is rejected takes its id from no other
            except RowError as error:
                normal, reason = None, str(error)
        if normal is None:
            occurrence = self._occurrence(_hash64(b"rejected:" + raw))
            row_hash = _hash64(b"rejected:" + str(occurrence).encode() + raw)
        else:
            row_hash = _hash64(normal["id"].encode())
        shard = self._shard(out, number, row_hash)
        if normal is None:
            text = raw[:_RAW_KEPT].decode("utf-8", "replace")
            line = canonical({"rejected": reason, "line": number - shard.first_line, "text": text})
            shard.rejected += 1
        else:
            line = canonical(normal)
            shard.rows += 1
            samples = normal["options"].get("samples")
            given = sum("given" in item for item in normal["items"])
            made = len(normal["items"]) - given
            shard.items += made if samples is None else 0
            shard.explicit += given + (0 if samples is None else made * samples)
            shard.references += references
            paths = [
                item[k]["path"] for item in normal["items"] for k in ("source", "given") if "path" in item.get(k, "")
            ]
            if paths:
                self.sources.setdefault(shard.name, []).extend(paths)
        self.hashes.append(row_hash)
        out.write(line + b"\n")
        self.digest.update(line + b"\n")

    def _id(self, row: dict[str, Any]) -> str:
        own = row_id(row)
        if own is None:
            first = content_id(row, 0)
            occurrence = self._occurrence(_hash64(b"id:" + first.encode()))
            return content_id(row, occurrence) if occurrence else first
        key = _hash64(b"id:" + own.encode())
        if key in self.seen:
            raise RowError(f"id {own!r} was used by an earlier row; ids must differ")
        self.seen.add(key)
        return own

    def _occurrence(self, key: int) -> int:
        if key not in self.seen:
            self.seen.add(key)
            return 0
        self.repeats[key] += 1
        return self.repeats[key]

    def _shard(self, out: Any, number: int, row_hash: int) -> Shard:
        """The shard of the next row: the last one, or a new one where a border falls."""
        candidate = row_hash < self.threshold
        first = not self.shards
        rows = 0 if first else self.shards[-1].rows + self.shards[-1].rejected
        if first or (candidate and self.since_candidate >= self.gap) or rows >= GREATEST * self.size:
            self._close(out)
            name = f"{row_hash:016x}"[:12]
            while name in self.names:
                name += "x"
            self.names.add(name)
            self.shards.append(Shard(name, out.tell(), number))
            self.digest = hashlib.sha256()
        self.since_candidate = 0 if candidate or first else self.since_candidate + 1
        return self.shards[-1]

    def _close(self, out: Any) -> None:
        if self.shards:
            shard = self.shards[-1]
            shard.length, shard.digest = out.tell() - shard.offset, self.digest.hexdigest()[:32]

    def _finish(self, state: list[Any], temporary: Path) -> Plan:
        if not self.shards:
            raise DarkroomError(f"{self.path}: holds no rows")
        with open(temporary, "rb") as out:
            out.seek(0, os.SEEK_END)
            self._close(out)
        named = {path: str(self.path.absolute().parent / path) for paths in self.sources.values() for path in paths}
        files = _hash_files(set(named.values()), self._known_files())
        for shard in self.shards:
            if paths := self.sources.get(shard.name):
                shard.sources = digest([[path, files[named[path]][2]] for path in paths])
        shards = [asdict(shard) for shard in self.shards]
        plan_id = digest([PLAN_VERSION, self.kind, shards], 16)
        content = {"id": plan_id, "kind": self.kind, "shards": shards}
        self.folder.joinpath(f"{plan_id}.rows").write_bytes(self.hashes.tobytes())
        os.replace(temporary, self.folder / f"{plan_id}.jsonl")
        write_json(self.folder / "sources.json", {"id": plan_id, "files": files})
        write_json(self.folder / f"{plan_id}.json", content)
        write_json(self.folder / "current.json", {"id": plan_id, "state": state})
        self._forget_old(plan_id)
        return Plan(self.folder, content)

    def _known_files(self) -> dict[str, list[Any]]:
        try:
            return json.loads((self.folder / "sources.json").read_bytes())["files"]
        except (OSError, ValueError, KeyError):
            return {}

    def _forget_old(self, current: str) -> None:
        for number, plan_id in enumerate(p for p in _plans_by_age(self.folder) if p != current):
            doomed = ([".jsonl"] if number >= _KEPT_ROWS else []) + (
                [".rows", ".json"] if number >= _KEPT_PLANS else []
            )
            for suffix in doomed:
                self.folder.joinpath(plan_id + suffix).unlink(missing_ok=True)

    def _referenced_rows(self) -> dict[str, Any]:
        """The prompts' rows that edits refer to: id -> (shard, items, samples, digest), read in one pass each."""
        wanted = set()
        for _, _, row, _ in read_rows(self.path):
            images = (row or {}).get("images")
            for image in images if isinstance(images, list) else [images]:
                if isinstance(image, dict) and "row" in image:
                    wanted.add(str(image["row"]))
        targets = {}
        if wanted and self.prompts:
            for shard, row in self.prompts.rows():
                if row.get("id") in wanted:
                    samples = row["options"].get("samples", self.samples)
                    sources = self.prompts.shards[shard].sources
                    targets[row["id"]] = (shard, len(row["items"]), samples, digest([row, sources]))
        return targets

    def _resolve(self, normal: dict[str, Any], targets: dict[str, Any]) -> list[list[Any]]:
        references = []
        for item in normal["items"]:
            source = item.get("source", {})
            if "row" not in source:
                continue
            if self.prompts is None:
                raise RowError(f"images: refers to row {source['row']!r}, but the config names no prompts")
            if source["row"] not in targets:
                raise RowError(f"images: refers to row {source['row']!r}, which is not among the prompts")
            shard, items, samples, row_digest = targets[source["row"]]
            for part, count in (("item", items), ("sample", samples)):
                if source[part] >= count:
                    raise RowError(
                        f"images: refers to {part} {source[part]} of row {source['row']!r}, which has {count} (from 0)"
                    )
            references.append([source["row"], source["item"], source["sample"], shard, row_digest])
        return references


def _sources_unchanged(folder: Path, plan_id: str) -> bool:
    """Whether the image files that the rows name are as they were when the plan was made."""
    known = json.loads((folder / "sources.json").read_bytes())
    if known["id"] != plan_id:
        return False
    return all(_state(path) == state[:2] for path, state in known["files"].items())


def _state(path: str) -> list[int]:
    try:
        stat = os.stat(path)
        return [stat.st_size, stat.st_mtime_ns]
    except (OSError, ValueError):
        return [-1, -1]


def _hash_files(paths: set[str], known: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """path -> [size, mtime in ns, sha256 or None where it is no file that can be used]; `known` ones are not read again."""

    def one(path: str) -> tuple[str, list[Any]]:
        state = _state(path)
        if known.get(path, [])[:2] == state:
            return path, known[path]
        sha = None
        if 0 <= state[0] <= MAX_FILE_BYTES and os.path.isfile(path):
            try:
                with open(path, "rb") as stream:
                    sha = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError:
                sha = None
        return path, [*state, sha]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return dict(pool.map(one, sorted(paths)))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that a reader sees the old one or the new one."""
    with replacing(path, apart=False) as temporary:
        temporary.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
