"""Cut the rows of a file, or of several, into shards whose borders and names survive insertions, and keep the plan.

Borders come from the rows' content: a row is a *candidate* where the hash of its id is small, and a candidate
starts a shard where no other candidate lies among the `gap` rows before it. Whether a row starts a shard so
depends on that row and the few before it alone: one row inserted, edited or deleted moves at most one border,
and at most two shards change. `gap` and the share of candidates are chosen so that a shard has `size` rows on
average and (but for the last) more than size/e - 1; four times the size is cut by force, which one shard in
some ten thousand needs. A shard is named after the id of its first row.

Edits can start from other edits. Their rows are cut by depth (`darkroom.plan.chains`): first all that start from no edit, then
those that start from these, and so on, each depth in the order of the file and in shards of its own.

The plan of a file is made once and cached under `<results>/.darkroom/plan/<kind>/`:

    current.json      which plan holds, and of which state of the user's file
    <id>.json         the shards: name, place in the rows file, counts, digests
    <id>.jsonl        the normal rows (see `darkroom.rows.read`) and the rejected ones, a line each
    <id>.references   the images and edits of this run that edits start from, a JSON line per shard that has any
    <id>.places       which shard held which row (see `_Places`); kept for many earlier plans, whose images may be carried over
    pictures.sqlite   the pictures that stood in the rows themselves

Only `json` and `hashlib` are needed to make or load a plan, so a job on a node pays milliseconds. Look-ups of rows need
numpy, and read the arrays of `<id>.places` when the first question is asked.
"""

import array
import bisect
import concurrent.futures
import contextlib
import hashlib
import heapq
import itertools
import json
import math
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from darkroom.errors import DarkroomError, RowError, general
from darkroom.files import replacing
from darkroom.identity import canonical, digest
from darkroom.plan.chains import Edit, check_counts, resolve
from darkroom.plan.reach import Reach, ReachOfSeveral
from darkroom.plan.stages import makers_of
from darkroom.rows.fields import PLAIN, Fields, NameOrder
from darkroom.rows.formats import MAX_FILE_BYTES, ending, read_rows, written_as
from darkroom.rows.made import ENDINGS, lists_of
from darkroom.rows.pictures import PictureFile
from darkroom.rows.read import APART, Reading, content_id, in_turns, parse_row, references_of, row_id, sources_of

if TYPE_CHECKING:
    import numpy as np

PLAN_VERSION = 6
SHARD_NAME = re.compile("[0-9a-f]{12}x*")
GREATEST = 4  # a shard is cut by force at this many times the average size
_KEPT_ROWS = 3  # rows files of earlier plans kept, for jobs that still read them
_KEPT_PLANS = 50
_FEW = 16  # questions after which `Plan.earlier_shards` looks up all shards at once
_RAW_KEPT = 2000
_PICTURES = "pictures.sqlite"
_REASONS_KEPT = 10_000  # while rows are read; told are the commonest
_REASONS_TOLD = 10
_REASON_LENGTH = 200
_OF_SEVERAL = ("not_of", "generators")  # what shards of a single model have nothing of


class Reference(NamedTuple):
    """An image of this run that an edit starts from: sample `sample` of item `item` of the prompts' row `row`, or of another edit.

    shard: the shard of images, or of edits, that it is in; digest: of that row and the images it starts from itself. edit: whether
    it is an edit's. model: which of several models made the prompt's image.
    """

    row: str
    item: int
    sample: int
    shard: str
    digest: str
    edit: bool = False
    model: str | None = None

    @property
    def said(self) -> list[Any]:
        """The reference as the plan's file has it."""
        return list(self if self.model else self[:-1])


@dataclass
class Shard:
    """A run of rows handled by one job of each stage.

    offset and length: bytes in the rows file. first_line: the line of the user's file it starts at. items: images
    that one sample of its rows makes, of rows that set no `samples`; explicit: requests of those that do, and given images.
    digest: hash of the rows; sources: hash of the contents of the image files they name; referenced: hash of the images of
    this run that they start from, of which the shards' names are no part. The last two are empty where there are none.
    references_offset and references_length: bytes in the references file (see `Plan.references`). depth: of its edits.
    generated: whether any of its rows starts from an image of this run's prompts, if only by way of other edits. not_of: where there
    are several models, what of the shard is not for each: model -> [rows, items, explicit]; generators: those of them that made these
    images of prompts.
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
    referenced: str = ""
    references_offset: int = 0
    references_length: int = 0
    depth: int = 0
    generated: bool = False
    not_of: dict[str, list[int]] = field(default_factory=dict)
    generators: list[str] = field(default_factory=list)

    def requests(self, samples: int, model: str | None = None) -> int:
        """Images to make with `samples` per prompt; model: by which of several models."""
        _, items, explicit = self.not_of.get(model or "", (0, 0, 0))
        return (self.items - items) * samples + self.explicit - explicit

    def rows_of(self, model: str | None) -> int:
        """The rows that it has pictures of by one of several models."""
        return self.rows - self.not_of.get(model or "", (0, 0, 0))[0]

    @property
    def said(self) -> dict[str, Any]:
        """The shard as the plan's file has it."""
        return {name: value for name, value in asdict(self).items() if value or name not in _OF_SEVERAL}


class Reason(NamedTuple):
    """Why rows were rejected: how many for this reason or one that differs in names and numbers, and the first's own."""

    text: str
    rows: int
    number: int


class Plan:
    """The shards of the user's rows, in their order. `shards` maps names to Shard.

    Rows are numbered over all files: `place` says which file and line a number stands for. reasons: the commonest ones why rows
    were rejected. ending: of a file that gives the rows back. order: of the names of the rows' fields, as the files have it.
    left_out: how many rows that can be used are no part of a trial.
    """

    def __init__(self, folder: Path, content: dict[str, Any]):
        self.folder, self.id, self.kind = folder, content["id"], content["kind"]
        self.files: list[tuple[str, int]] = [(name, before) for name, before in content["files"]]
        self.ending: str = content["ending"]
        self.order = NameOrder(content["order"])
        self.left_out: int = content.get("left_out", 0)
        self.reasons = [Reason(*reason) for reason in content["reasons"]]
        self.shards = {entry["name"]: Shard(**entry) for entry in content["shards"]}
        self._questions = 0

    @property
    def names(self) -> list[str]:
        return list(self.shards)

    @property
    def columns(self) -> list[str]:
        """The names of the rows' fields, in their order."""
        return self.order.names.get("", [])

    @property
    def digest(self) -> str:
        """Changes with any row, source image or border."""
        return digest([[s.name, s.digest, s.sources] for s in self.shards.values()])

    def read(self, name: str) -> bytes:
        """The lines of a shard as they stand in its prompts file."""
        shard = self.shards[name]
        return self._read(".jsonl", shard.offset, shard.length)

    def references(self, name: str) -> list[Reference]:
        """The images and edits of this run that the edits of a shard start from, in the order of its rows."""
        shard = self.shards[name]
        if not shard.references_length:
            return []
        found = json.loads(self._read(".references", shard.references_offset, shard.references_length))
        return [Reference(*reference) for reference in found]

    def _read(self, suffix: str, offset: int, length: int) -> bytes:
        with open(self.folder / f"{self.id}{suffix}", "rb") as stream:
            stream.seek(offset)
            data = stream.read(length)
        if len(data) != length:
            raise DarkroomError(f"{stream.name} is cut short; delete {self.folder} and run again")
        return data

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(shard, line) for every line of every shard."""
        with open(self.folder / f"{self.id}.jsonl", "rb") as stream:
            for name, shard in self.shards.items():
                for _ in range(shard.rows + shard.rejected):
                    yield name, json.loads(stream.readline())

    def place(self, number: int) -> tuple[str, int]:
        """(file, line) of the row of that number: the file as it is called within the folder of all files."""
        name, before = self.files[bisect.bisect_left(self.files, number, key=lambda file: file[1]) - 1]
        return name, number - before

    @property
    def rows_used(self) -> int:
        return sum(shard.rows for shard in self.shards.values())

    @property
    def rows_rejected(self) -> int:
        return sum(shard.rejected for shard in self.shards.values())

    @property
    def pictures(self) -> Path:
        """The file of the pictures that stood in the rows."""
        return self.folder / _PICTURES

    def first_rejected(self) -> tuple[int, str] | None:
        """(number, reason) of the first row that cannot be used, or None."""
        for name, shard in self.shards.items():
            if shard.rejected:
                rejected = next(line for line in map(json.loads, self.read(name).splitlines()) if "rejected" in line)
                return shard.first_line + rejected["line"], rejected["rejected"]
        return None

    def earlier_shards(self, *shards: str) -> list[str]:
        """`shards`, and the shards of earlier plans that held rows of theirs: results of these rows may lie there.

        The newest plan first, the shards of each in its order. A job asks once, and has its own rows looked up alone;
        after a few questions all shards are looked up together.
        """
        import numpy as np

        numbers = np.array([self._places.numbers[name] for name in shards])
        found = dict.fromkeys(shards)
        self._questions += 1
        if self._questions > _FEW:
            for names, starts, earlier in self._earlier:
                held = np.concatenate([earlier[starts[number] : starts[number + 1]] for number in numbers])
                found |= dict.fromkeys(names[number] for number in (np.unique(held) if len(shards) > 1 else held))
            return list(found)
        wanted = self._places.hashes[np.isin(self._places.shards, numbers)]
        for places in self._earlier_places():
            _, held = places.find(wanted)
            found |= dict.fromkeys(places.names[number] for number in np.unique(held))
        return list(found)

    def shards_of_rows(self, rows: Iterable[str]) -> list[str | None]:
        """The shard that holds each of the rows with these ids, None where there is no such row."""
        import numpy as np

        hashes = np.array([_hash64(row.encode()) for row in rows], "<u8")
        shards: list[str | None] = [None] * len(hashes)
        for place, number in zip(*self._places.find(hashes), strict=True):
            shards[place] = self._places.names[number]
        return shards

    def shard_of_row(self, row: str) -> str | None:
        """The shard that holds the row with this id, or None; `shards_of_rows` answers for many at once."""
        return self.shards_of_rows([row])[0]

    @cached_property
    def _places(self) -> "_Places":
        return _Places.load(self.folder, self.id)

    def _earlier_places(self) -> "Iterator[_Places]":
        """The rows of all other plans that are kept, the newest first; one after the other, for each may be large."""
        for plan_id in _plans_by_age(self.folder):
            if plan_id != self.id:
                with contextlib.suppress(FileNotFoundError):  # forgotten meanwhile
                    yield _Places.load(self.folder, plan_id)

    @cached_property
    def _earlier(self) -> "list[tuple[list[str], np.ndarray, np.ndarray]]":
        """Of each plan of `_earlier_places`: its names, and which of its shards held rows of each shard of this plan.

        The numbers of those that held rows of shard n are earlier[starts[n] : starts[n + 1]].
        """
        import numpy as np

        found = []
        for places in self._earlier_places():
            at, held = places.find(self._places.hashes)
            pairs = np.unique(self._places.shards[at].astype("u8") << np.uint64(32) | held)
            starts = np.searchsorted(pairs, np.arange(len(self._places.names) + 1, dtype="u8") << np.uint64(32))
            found.append((places.names, starts, pairs.astype("u4")))
        return found


@dataclass
class _Places:
    """Which shard of a plan held which row, rejected ones too.

    names: of the shards, in the plan's order; hashes: of the rows' ids, sorted; shards: the number of each one's shard.
    The file is a line of JSON, padded to a multiple of 8 bytes, then the hashes, 8 bytes each, then the numbers, 4 bytes each.
    """

    names: list[str]
    hashes: "np.ndarray"
    shards: "np.ndarray"

    @classmethod
    def load(cls, folder: Path, plan_id: str) -> "_Places":
        import numpy as np

        path = folder / f"{plan_id}.places"
        with open(path, "rb") as stream:
            try:
                head = json.loads(stream.readline())
                names, rows = head["names"], head["rows"]
                hashes, shards = np.fromfile(stream, "<u8", rows), np.fromfile(stream, "<u4", rows)
            except (ValueError, KeyError, TypeError):
                rows, shards = 1, np.empty(0, "<u4")
        if len(shards) != rows:
            raise DarkroomError(f"{path} is damaged; delete it and run again")
        return cls(names, hashes, shards)

    @staticmethod
    def write(folder: Path, plan_id: str, names: list[str], hashes: "array.array[int]", counts: list[int]) -> None:
        """hashes: of the rows in their order; counts: rows of each shard, rejected ones too."""
        shards = array.array("I", itertools.chain.from_iterable(itertools.repeat(n, c) for n, c in enumerate(counts)))
        order = sorted(range(len(hashes)), key=hashes.__getitem__)
        parts = [array.array(of.typecode, map(of.__getitem__, order)) for of in (hashes, shards)]
        if sys.byteorder == "big":
            for part in parts:
                part.byteswap()
        head = json.dumps({"rows": len(hashes), "names": names}, separators=(",", ":"))
        head += " " * (-(len(head) + 1) % 8) + "\n"
        with replacing(folder / f"{plan_id}.places", apart=False) as temporary:
            temporary.write_bytes(head.encode() + b"".join(map(bytes, parts)))

    @cached_property
    def numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def find(self, hashes: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
        """(places in `hashes` of those that are held, the numbers of the shards that hold them)."""
        import numpy as np

        at = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        found = np.flatnonzero(self.hashes[at] == hashes)
        return found, self.shards[at[found]]


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
    files: str | Path | Sequence[str | Path],
    kind: str,
    size: int,
    results: str | Path,
    samples: int = 1,
    prompts: Plan | None = None,
    fields: Fields = PLAIN,
    trial: int | None = None,
    reach: Reach | ReachOfSeveral | None = None,
    most: int | None = None,
    reading: Reading = APART,
) -> Plan:
    """The plan of the rows in `files`, made anew only where a file, an image they name or an argument changed.

    samples: images per prompt or edit, and prompts: the plan of the prompts; both to check the images of this run that
    edits refer to. fields: which fields of the rows are read. trial: take so many of the rows that can be used, those whose ids
    have the least hashes, and of edits all that start from images of `prompts`, which is of the same trial, or from edits that
    are taken, besides; None: all. most: images that a row without a seed of its own may ask for; None: any number. Ids, and so seeds
    and keys, are those of the whole set. reach: rows whose settings it refuses are rejected. reading: of edits. Raises DarkroomError
    where a file cannot be read.
    """
    import filelock

    paths = [Path(path) for path in ([files] if isinstance(files, str | Path) else files)]
    folder = plan_folder(results, kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lists = [file for path in paths if ending(path) in ENDINGS for file in lists_of(path)]
        stats = [path.stat() for path in (*paths, *lists)]
    except OSError as error:
        raise DarkroomError(f"{error.filename}: {error.strerror}") from error
    seen = [
        [str(path.absolute()), stat.st_size, stat.st_mtime_ns]
        for path, stat in zip((*paths, *lists), stats, strict=True)
    ]
    read = [[name, *names] for name, names in sorted(fields.names.items())]
    about_edits = [samples, prompts.id if prompts else None, reading.state] if kind == "edits" else []
    state = [PLAN_VERSION, seen, read, fields.root, size, *about_edits]
    state += [fields.encoding, fields.delimiter, *([] if trial is None else [trial])]
    state += [] if reach is None else [reach.state]
    state += [] if most is None else [{"most": most}]
    state += [{"models": list(reading.models)}] if reading.models and kind != "edits" else []
    with filelock.FileLock(folder / "lock"):
        try:
            current = json.loads((folder / "current.json").read_bytes())
            if current["state"] == state and _sources_unchanged(folder, current["id"]):
                return Plan(folder, json.loads((folder / f"{current['id']}.json").read_bytes()))
        except (OSError, ValueError, KeyError):
            pass
        # Its jobs read the plan that is current.
        refusal = f"{name_of(paths)}: changed, or is to be cut otherwise, while another run works on {results}"
        if lock := hold_results(results, f"{refusal}; wait for its end, or stop it"):
            lock.release()
        builder = _Builder(paths, kind, size, folder, samples, prompts, fields, trial, reach, most, reading)
        return builder.build(state)


def base_folder(files: Sequence[str | Path], root: str | None = None) -> Path:
    """The folder that relative file names in rows start from: `root`, else the folder that all files of rows are in."""
    if root is not None:
        return Path(root).absolute()
    folders = [Path(path).absolute().parent for path in files]
    return Path(os.path.commonpath(folders)) if len(set(folders)) > 1 else folders[0]


def name_of(files: Sequence[str | Path]) -> str:
    """The files of rows as a message names them."""
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


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
    ages = {path.stem: path.stat().st_mtime_ns for path in folder.glob("*.places")}
    return sorted(ages, key=lambda plan_id: (-ages[plan_id], plan_id))


class _LeftOut(RowError):
    """An edit starts from an image of a row that is no part of the trial."""


Found = list[tuple[dict[str, Any], list[Reference]]]  # normal rows, each with the images of prompts that it starts from


class _Later:
    """Rows that are to be added when those of lesser depths have been, in a file without a name."""

    def __init__(self) -> None:
        self.places: dict[int, array.array[int]] = {}  # depth -> where its rows begin

    def __enter__(self) -> Self:
        self.file = tempfile.TemporaryFile(prefix="darkroom-plan-")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def put(self, depth: int, number: int, normal: dict[str, Any], references: list[Reference]) -> None:
        self.places.setdefault(depth, array.array("Q")).append(self.file.tell())
        self.file.write(json.dumps([number, normal, references]).encode() + b"\n")

    def __iter__(self) -> Iterator[tuple[int, int, dict[str, Any], list[Reference]]]:
        """(depth, number, row, references) in the order of depths, and of rows in each."""
        for depth in sorted(self.places):
            for place in self.places[depth]:
                self.file.seek(place)
                number, normal, references = json.loads(self.file.readline())
                yield depth, number, normal, [Reference(*reference) for reference in references]


class _Builder:
    def __init__(
        self,
        paths: list[Path],
        kind: str,
        size: int,
        folder: Path,
        samples: int,
        prompts: Plan | None,
        fields: Fields,
        trial: int | None,
        reach: Reach | ReachOfSeveral | None,
        most: int | None,
        reading: Reading,
    ):
        self.paths, self.kind, self.size, self.folder = paths, kind, size, folder
        self.samples, self.prompts, self.fields, self.trial = samples, prompts, fields, trial
        self.reach, self.most, self.reading = reach, most, reading
        self.own_samples = samples if reading.samples is None else reading.samples  # of an edit
        self.left_out = 0
        self.base = base_folder(paths, fields.root)
        self.pictures: dict[str, bytes] = {}  # of the row in hand
        self.kept_pictures = PictureFile(folder / _PICTURES)
        self.files: list[tuple[str, int]] = []  # name, number of the last row before it
        self.order = NameOrder()
        self.reasons: dict[str, list[Any]] = {}  # reason in general -> [that of the first, count, number of the first]
        self.gap, self.threshold = _spacing(size)
        self.shards: list[Shard] = []
        self.references: list[Reference] = []  # of the last shard
        self.hashes = array.array("Q")
        self.seen: set[int] = set()
        self.repeats: Counter[int] = Counter()
        self.sources: dict[str, list[str]] = {}
        self.hashed: dict[str, list[Any]] = {}  # files whose content was needed before the end
        self.wanted: set[str] = set()  # ids of edits that others start from
        self.without: set[str] = set()  # those of them that are no part of the trial
        self.chained = False  # whether a row's turns may be a chain
        self.edits: dict[str, Edit] = {}  # these, and what starts from them
        self.made: dict[str, tuple[str, str]] = {}  # edit that others start from -> its shard, digest
        self.since_candidate = 0
        self.names: set[str] = set()

    def build(self, state: list[Any]) -> Plan:
        targets = self._referenced_rows() if self.kind == "edits" else {}
        if self.wanted or self.chained:
            self.edits = self._edits_of_edits(targets)
        taken = None if self.trial is None else self._drawn(targets, self.trial)
        rows, references = self.folder / "new.jsonl", self.folder / "new.references"  # one process builds at a time
        try:
            with open(rows, "wb") as out, open(references, "wb") as self.reference_lines, _Later() as later:
                for number, raw, row, reason, below in self._read():
                    found, reason = self._normal(row, reason, targets, below)
                    if reason is not None:
                        self._reject(out, number, raw, reason)
                    elif not found or (taken is not None and number not in taken):
                        self.left_out += 1
                    else:
                        self.order.add(found[0][0]["row"])
                    for normal, starts_from in found if taken is None or number in taken else ():
                        self._keep_pictures(normal)
                        depth = self._depth(normal["id"])
                        if depth:
                            later.put(depth, number, normal, starts_from)
                        else:
                            self._add(out, 0, number, normal, starts_from)
                for depth, number, normal, starts_from in later:
                    self._add(out, depth, number, normal, starts_from)
                self._close(out)
            plan = self._finish(state, rows, references)
        finally:
            self.kept_pictures.close()
            rows.unlink(missing_ok=True)
            references.unlink(missing_ok=True)
        return plan

    def _read(self) -> Iterator[tuple[int, bytes, dict[str, Any] | None, str | None, str]]:
        """(number, raw bytes, row or None, reason or None, folder of its file as `_below` has it) of every row, from the first."""
        self.files, self.seen, self.repeats = [], set(), Counter()
        before = 0
        for path in self.paths:
            below, last = self._below(path), 0
            self.files.append((os.path.join(below, path.name), before))
            for last, raw, row, reason in read_rows(path, self.fields, self.pictures):
                yield before + last, raw, row, reason, below
                if self.pictures:
                    self.pictures.clear()
            before += last

    def _drawn(self, targets: dict[str, Any], rows: int) -> set[int]:
        """The numbers of the rows of a trial; see `make_plan`."""
        belonging: set[int] = set()

        def others() -> Iterator[tuple[int, int]]:
            for number, _, row, reason, below in self._read():
                found, _ = self._normal(row, reason, targets, below)
                if not found or self._depth(found[0][0]["id"]):
                    continue
                if found[0][1]:
                    belonging.add(number)
                else:
                    yield _hash64(b"trial:" + found[-1][0]["id"].encode()), number

        taken = {number for _, number in heapq.nsmallest(rows, others())} | belonging
        for edit in sorted(self.edits.values(), key=lambda edit: edit.depth):
            if edit.depth and all(self.edits[name].number in taken for name in edit.names):
                taken.add(edit.number)
        return taken

    def _depth(self, name: str) -> int:
        return self.edits[name].depth if name in self.edits else 0

    def _normal(
        self, row: dict[str, Any] | None, reason: str | None, targets: dict[str, Any], below: str
    ) -> tuple[Found, str | None]:
        """(the normal rows that a row stands for, None), or ([], why it cannot be used).

        ([], None) is an edit of a row that is no part of the trial.
        """
        if row is None:
            return [], reason
        try:
            below = "" if self.fields.root else below
            normal = parse_row(row, self.kind, self.fields, below, self.pictures, self.reading)
            if self.reach and (unreached := self.reach.refusal(normal)):
                raise RowError(unreached)
            self._check_samples(normal["options"])
            references = self._resolve(normal, targets)
            normal["id"] = self._id(row)  # last: a row that is rejected takes its id from no other
            rows = in_turns(normal, self.fields.user_name("id", row))
            for one in rows[:-1]:
                self._reserve(one["id"])
        except _LeftOut:
            with contextlib.suppress(RowError):
                name = self._id(row)  # of the whole set, this row has it
                if name in self.wanted:
                    self.without.add(name)
            return [], None
        except RowError as error:
            return [], str(error)
        found = [(rows[0], references), *((one, []) for one in rows[1:])]
        if not self.edits:
            return found, None
        known = [self.edits[normal["id"]] for normal, _ in found if normal["id"] in self.edits]
        if reasons := [edit.reason for edit in known if edit.reason is not None]:
            return [], reasons[0]
        return ([] if any(edit.left_out for edit in known) else found), None

    def _edits_of_edits(self, targets: dict[str, Any]) -> dict[str, Edit]:
        """The edits that others start from, and these, by id."""
        found: dict[str, Edit] = {}
        for number, _, row, reason, below in self._read():
            rows = self._normal(row, reason, targets, below)[0]
            self.wanted |= {normal["id"] for normal, _ in rows[:-1]}
            for normal, references in rows:
                items = normal["items"]
                sources = [source for item in items for source in sources_of(item) if "edit" in source]
                if sources or normal["id"] in self.wanted:
                    samples = 1 if "given" in items[0] else normal["options"].get("samples", self.own_samples)
                    models = makers_of(normal, self.reading.models) if self.reading.models else None
                    found[normal["id"]] = Edit(
                        number, len(items), samples, sources, bool(references), models, _generators(references)
                    )
        resolve(found, self.without)
        return found

    def _check_samples(self, options: dict[str, Any]) -> None:
        if self.most is not None and "seed" not in options and options.get("samples", 0) > self.most:
            raise RowError(
                f"samples: {options['samples']}, and the config lists {self.most} seeds; list more, or give the row a seed"
            )

    def _below(self, path: Path) -> str:
        """The folder of a file of rows within that of all, "" where it is that one."""
        below = os.path.relpath(path.absolute().parent, base_folder(self.paths))
        return "" if below == os.curdir else below

    def _reject(self, out: Any, number: int, raw: bytes, reason: str) -> None:
        """Write a row that cannot be used."""
        occurrence = self._occurrence(_hash64(b"rejected:" + raw))
        row_hash = _hash64(b"rejected:" + str(occurrence).encode() + raw)
        shard = self._shard(out, 0, number, row_hash)
        text = raw[:_RAW_KEPT].decode("utf-8", "replace")
        shard.rejected += 1
        told = reason[:_REASON_LENGTH]
        known = general(told, _REASON_LENGTH)
        if known in self.reasons:
            self.reasons[known][1] += 1
        elif len(self.reasons) < _REASONS_KEPT:
            self.reasons[known] = [told, 1, number]
        self._write(out, row_hash, {"rejected": reason, "line": number - shard.first_line, "text": text})

    def _add(self, out: Any, depth: int, number: int, normal: dict[str, Any], references: list[Reference]) -> None:
        """Write a normal row. references: the images of prompts that it starts from."""
        name, items = normal["id"], normal["items"]
        row_hash = _hash64(name.encode())
        shard = self._shard(out, depth, number, row_hash)
        shard.rows += 1
        samples = normal["options"].get("samples")
        given = sum("given" in item for item in items)
        made = len(items) - given
        shard.items += made if samples is None else 0
        explicit = given + (0 if samples is None else made * samples)
        shard.explicit += explicit
        if self.reading.models:
            makers = makers_of(normal, self.reading.models)
            for model in (model for model in self.reading.models if model not in makers):
                left = [1, made if samples is None else 0, explicit]
                before = shard.not_of.get(model, [0, 0, 0])
                shard.not_of[model] = [one + other for one, other in zip(before, left, strict=True)]
        if depth:
            references = references + self._made_references(normal)
        self.references += references
        shard.generated |= self.edits[name].generated if name in self.edits else bool(references)
        by = self.edits[name].generators if name in self.edits else _generators(references)
        shard.generators = sorted({*shard.generators, *by})
        paths = [one["path"] for item in items if len(item) > 1 for one in references_of(item) if "path" in one]
        if paths:
            self.sources.setdefault(shard.name, []).extend(paths)
        if name in self.wanted:
            decides = [normal, self._contents(paths), [reference.digest for reference in references]]
            self.made[name] = shard.name, digest(decides)
        self._write(out, row_hash, normal)

    def _write(self, out: Any, row_hash: int, content: dict[str, Any]) -> None:
        line = canonical(content)
        self.hashes.append(row_hash)
        out.write(line + b"\n")
        self.digest.update(line + b"\n")

    def _keep_pictures(self, normal: dict[str, Any]) -> None:
        """Keep those pictures that the row in hand held and that are needed."""
        for item in normal["items"] if self.pictures else ():
            for sha256 in (one["sha256"] for one in references_of(item) if "sha256" in one):
                self.kept_pictures.put(sha256, self.pictures[sha256])

    def _made_references(self, normal: dict[str, Any]) -> list[Reference]:
        """The edits that a row starts from; all of them were added before."""
        named = [source for item in normal["items"] for source in sources_of(item) if "edit" in source]
        every = range(normal["options"].get("samples", self.own_samples))
        return [
            Reference(source["edit"], source["item"], sample, *self.made[source["edit"]], True)
            for source in named
            for sample in (every if source["sample"] is None else [source["sample"]])
        ]

    def _contents(self, paths: list[str]) -> list[str | None]:
        """The SHA-256 of the files that a row names, None for one that cannot be used."""
        named = [str(self.base / path) for path in paths]
        if new := set(named) - self.hashed.keys():
            self.hashed |= hash_files(new, self._known_files)
        return [self.hashed[path][2] for path in named]

    def _id(self, row: dict[str, Any]) -> str:
        own = row_id(row, self.fields)
        if own is None:
            first = content_id(row, 0)
            occurrence = self._occurrence(_hash64(b"id:" + first.encode()))
            return content_id(row, occurrence) if occurrence else first
        self._reserve(own)
        return own

    def _reserve(self, name: str) -> None:
        key = _hash64(b"id:" + name.encode())
        if key in self.seen:
            raise RowError(f"id {name!r} was used by an earlier row; ids must differ")
        self.seen.add(key)

    def _occurrence(self, key: int) -> int:
        if key not in self.seen:
            self.seen.add(key)
            return 0
        self.repeats[key] += 1
        return self.repeats[key]

    def _shard(self, out: Any, depth: int, number: int, row_hash: int) -> Shard:
        """The shard of the next row: the last one, or a new one where a border falls or the depth is another."""
        candidate = row_hash < self.threshold
        first = not self.shards or self.shards[-1].depth != depth
        rows = 0 if first else self.shards[-1].rows + self.shards[-1].rejected
        if first or (candidate and self.since_candidate >= self.gap) or rows >= GREATEST * self.size:
            self._close(out)
            name = f"{row_hash:016x}"[:12]
            while name in self.names:
                name += "x"
            self.names.add(name)
            self.shards.append(Shard(name, out.tell(), number, depth=depth))
            self.digest = hashlib.sha256()
        self.since_candidate = 0 if candidate or first else self.since_candidate + 1
        return self.shards[-1]

    def _close(self, out: Any) -> None:
        if self.shards:
            shard = self.shards[-1]
            shard.length, shard.digest = out.tell() - shard.offset, self.digest.hexdigest()[:32]
            if self.references:
                named = [
                    [r.row, r.item, r.sample, r.digest, *(["edit"] if r.edit else []), *([r.model] if r.model else [])]
                    for r in self.references
                ]
                shard.referenced = digest(named)
                shard.references_offset = self.reference_lines.tell()
                shard.references_length = self.reference_lines.write(
                    canonical([r.said for r in self.references]) + b"\n"
                )
                self.references = []

    def _finish(self, state: list[Any], rows: Path, references: Path) -> Plan:
        if not self.shards and not self.left_out:
            raise DarkroomError(f"{name_of(self.paths)}: holds no rows")
        self.kept_pictures.finish()
        named = {path: str(self.base / path) for paths in self.sources.values() for path in paths}
        files = hash_files(set(named.values()), self._known_files | self.hashed)
        for shard in self.shards:
            if paths := self.sources.get(shard.name):
                shard.sources = digest([[path, files[named[path]][2]] for path in paths])
        shards = [shard.said for shard in self.shards]
        with open(references, "rb") as stream:  # a row that moved to another shard is told by its line alone
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        several = self.files if len(self.files) > 1 else []  # rejected.jsonl then names them
        plan_id = digest([PLAN_VERSION, self.kind, shards, sha256, several, list(self.order.names.items())], 16)
        commonest = sorted(self.reasons.values(), key=lambda reason: -reason[1])[:_REASONS_TOLD]
        content: dict[str, Any] = {"id": plan_id, "kind": self.kind, "shards": shards, "files": self.files}
        content["ending"] = written_as(self.paths, self.fields)
        content["reasons"] = commonest
        content["order"] = self.order.names
        content["left_out"] = self.left_out
        counts = [shard.rows + shard.rejected for shard in self.shards]
        _Places.write(self.folder, plan_id, [shard.name for shard in self.shards], self.hashes, counts)
        os.replace(rows, self.folder / f"{plan_id}.jsonl")
        os.replace(references, self.folder / f"{plan_id}.references")
        write_json(self.folder / "sources.json", {"id": plan_id, "files": files})
        write_json(self.folder / f"{plan_id}.json", content)
        write_json(self.folder / "current.json", {"id": plan_id, "state": state})
        self._forget_old(plan_id)
        return Plan(self.folder, content)

    @cached_property
    def _known_files(self) -> dict[str, list[Any]]:
        try:
            return json.loads((self.folder / "sources.json").read_bytes())["files"]
        except (OSError, ValueError, KeyError):
            return {}

    def _forget_old(self, current: str) -> None:
        for number, plan_id in enumerate(p for p in _plans_by_age(self.folder) if p != current):
            doomed = [".json", ".jsonl", ".references"] if number >= _KEPT_ROWS else []
            for suffix in doomed + ([".places"] if number >= _KEPT_PLANS else []):
                self.folder.joinpath(plan_id + suffix).unlink(missing_ok=True)

    def _referenced_rows(self) -> dict[str, Any]:
        """The prompts' rows that edits refer to: id -> (shard, items, samples, digest, models), read in one pass each.

        Sets `wanted`, the edits that they refer to.
        """
        wanted = set()
        for _, _, row, _ in itertools.chain.from_iterable(read_rows(path, self.fields) for path in self.paths):
            with contextlib.suppress(RowError):
                self.chained = self.chained or self.reading.is_chain(row or {})
            images = self.fields.view(row or {}, True)[0].get("images")
            for image in images if isinstance(images, list) else [images]:
                if isinstance(image, dict) and image.get("row") not in (None, ""):
                    wanted.add(str(image["row"]))
                elif isinstance(image, dict) and image.get("edit") not in (None, ""):
                    self.wanted.add(str(image["edit"]))
        targets = {}
        if wanted and self.prompts:
            for shard, row in self.prompts.rows():
                if row.get("id") in wanted:
                    samples = row["options"].get("samples", self.samples)
                    sources = self.prompts.shards[shard].sources
                    of = makers_of(row, self.reading.generators)
                    targets[row["id"]] = (shard, len(row["items"]), samples, digest([row, sources]), of)
        return targets

    def _resolve(self, normal: dict[str, Any], targets: dict[str, Any]) -> list[Reference]:
        references = []
        for source in (source for item in normal["items"] for source in sources_of(item)):
            if "row" not in source:
                continue
            if self.prompts is None:
                raise RowError(f"images: refers to row {source['row']!r}, but the config names no prompts")
            if source["row"] not in targets:
                if self.trial is not None:
                    raise _LeftOut
                raise RowError(f"images: refers to row {source['row']!r}, which is not among the prompts")
            shard, items, samples, row_digest, models = targets[source["row"]]
            check_counts(source, f"row {source['row']!r}", items, samples)
            model = source.get("model")
            if model is not None and model not in models:
                raise RowError(
                    f"images: refers to the image of row {source['row']!r} by {model}, and that row goes to {', '.join(models)} alone"
                )
            references.append(
                Reference(source["row"], source["item"], source["sample"], shard, row_digest, model=model)
            )
        return references


def _generators(references: list[Reference]) -> set[str]:
    return {reference.model for reference in references if reference.model is not None}


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


def hash_files(paths: set[str], known: dict[str, list[Any]]) -> dict[str, list[Any]]:
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
