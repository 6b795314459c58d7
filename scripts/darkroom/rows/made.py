"""Made rows: a template and lists of values, in a YAML file that stands where a file of rows could.

    template: a {colour} {shape} {place}
    fields:
      colour: [red, green, {value: blue, weight: 3}]
      shape: [circle, {value: star, when: {colour: [red, blue]}}]
      place: {by: shape, values: {circle: [on a table, in the grass], star: [in the sky]}}
      animal: {file: animals.txt}
      steps: {range: [10, 30], step: 5}
    exclude: [{colour: green, place: in the grass}]
    sizes: [[1024, 1024], {size: [1216, 832], weight: 2}]
    rows: 10000

Every value of a row is drawn by hashes of the row's number and of the values there are (weighted rendezvous hashing): row n is the same in
every run, in whatever order keys and values stand, and a value that is added changes its own share of the rows and no other.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from darkroom.config.load import INLINE
from darkroom.errors import DarkroomError

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, np.dtype[np.uint64]]

Scalar = str | int | float | bool
Row = dict[str, Any]

ENDINGS = (".yaml", ".yml")
_KEYS = {"template", "fields", "exclude", "sizes", "images", "rows", "share", "seed"}
_OURS = ("id", "prompt", "images", "width", "height")  # of a row, which other keys give
_FORMS = {frozenset(keys.split()) for keys in ("values", "by values", "file", "range", "range step")}
_NAMED = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_MANY = 1024  # values of a field: beyond, they are drawn from a table of slots, so that a row costs no look at each
_AT_ONCE = 2**21  # draws held in memory together
_MOST = 100_000_000  # rows


@dataclass(frozen=True)
class Value:
    """A value that a field can have. when: field -> the values of which it must have one; unless: combinations it is not made in."""

    value: Scalar
    weight: float = 1.0
    when: Mapping[str, frozenset[Scalar]] = field(default_factory=dict)


@dataclass(frozen=True)
class Exclusion:
    """A combination that is not made: field -> values; `same`: field -> another whose value it would repeat."""

    values: Mapping[str, frozenset[Scalar]]
    same: Mapping[str, str]

    @property
    def fields(self) -> set[str]:
        return {*self.values, *self.same, *self.same.values()}


@dataclass(frozen=True)
class Made:
    """What a file of made rows says. fields: in the order they are drawn, each after those that it depends on.

    rows: how many; None: every combination, or the share of them that `share` says. images: the sources of edits, with `{field}`
    and `{n}`, the row's number, in their texts. where: how a line about them begins.
    """

    templates: list[Value]
    fields: dict[str, list[Value]]
    exclude: list[Exclusion]
    sizes: list[Value]
    images: Any
    rows: int | None
    share: float
    seed: int
    where: str = ""

    def draw(self) -> Iterator[Row]:
        """The rows, in order. Raises DarkroomError where no value of a field fits the others of a row."""
        try:
            yield from self._drawn() if self.rows is not None else self._combined()
        except DarkroomError as error:
            raise DarkroomError(f"{self.where}{error}") from None

    def _drawn(self) -> Iterator[Row]:
        import numpy as np

        assert self.rows is not None, "else every combination is made"
        lists = {name: values for name, values in self._lists().items() if values}
        widest = max([1, *(len(values) for values in lists.values() if len(values) <= _MANY)])
        block = max(1, min(2**16, _AT_ONCE // widest))
        for start in range(1, self.rows + 1, block):
            numbers = np.arange(start, min(start + block, self.rows + 1), dtype=np.uint64)
            chosen: dict[str, Any] = {}
            for name, values in lists.items():
                chosen[name] = self._choose(name, values, numbers, chosen)
            columns = {name: [values[i].value for i in chosen[name].tolist()] for name, values in lists.items()}
            for place, number in enumerate(numbers.tolist()):
                yield self._row(f"made-{number}", number, {name: column[place] for name, column in columns.items()})

    def _lists(self) -> dict[str, list[Value]]:
        """All that is drawn, by name; those of our own begin with a mark that no field's name has."""
        return {"/template": self.templates, "/size": self.sizes} | self.fields

    def _choose(self, name: str, values: list[Value], numbers: "Numbers", chosen: dict[str, Any]) -> Any:
        """The place in `values` of the one that each row has."""
        import numpy as np

        marks = np.array([_hash64(self.seed, name, value.value) for value in values], np.uint64)
        conditions = [self._fits(name, value, chosen, len(numbers)) for value in values]
        if len(values) > _MANY and all(condition is None for condition in conditions):
            return _from_slots(marks, np.array([value.weight for value in values]), numbers)
        best, found = np.full(len(numbers), np.inf), np.full(len(numbers), -1)
        for place, (value, mark, condition) in enumerate(zip(values, marks, conditions, strict=True)):
            # The least of exponential variables, each with its weight as rate: P(value) = weight / sum of the weights.
            score = -np.log(_uniform(_mixed(_mixed(numbers) ^ mark))) / value.weight
            if condition is not None:
                score[~condition] = np.inf
            found[score < best] = place
            best = np.minimum(best, score)
        if (without := np.flatnonzero(found < 0)).size:
            row = int(without[0])
            others = {other: self.fields[other][at[row]].value for other, at in chosen.items() if other in self.fields}
            raise DarkroomError(f"fields.{name}: no value fits {_told(others)}; add one, or another condition")
        return found

    def _fits(self, name: str, value: Value, chosen: dict[str, Any], number: int) -> Any:
        """Which rows a value may be in, None for all."""
        import numpy as np

        def having(other: str, allowed: frozenset[Scalar]) -> Any:
            return np.isin(chosen[other], [n for n, one in enumerate(self.fields[other]) if one.value in allowed])

        conditions = [having(other, allowed) for other, allowed in value.when.items()]
        for rule in self.exclude:
            if name not in rule.fields or not rule.fields - {name} <= chosen.keys():
                continue  # another field of it is drawn later, and gives way
            if name in rule.values and value.value not in rule.values[name]:
                continue
            hit = np.ones(number, bool)
            for other, given in rule.values.items():
                hit &= True if other == name else having(other, given)
            for one, other in rule.same.items():
                if name in (one, other):
                    hit &= having(other if name == one else one, frozenset((value.value,)))
                else:
                    texts = [
                        np.array([v.value for v in self.fields[part]], object)[chosen[part]] for part in (one, other)
                    ]
                    hit &= texts[0] == texts[1]
            conditions.append(~hit)
        return np.logical_and.reduce(conditions) if conditions else None

    def _combined(self) -> Iterator[Row]:
        """A row for each combination of values."""
        number = 0
        for values in _combinations(list(self.fields.items()), self.exclude, {}):
            known = hashlib.sha256(json.dumps([self.seed, sorted(values.items())]).encode()).digest()
            if int.from_bytes(known[:8], "big") >= self.share * 2**64:
                continue
            number += 1
            if number > _MOST:
                raise DarkroomError(f"rows: more than {_MOST:,} combinations; say how many rows to draw")
            drawn = dict(values)
            for name, choices in (("/template", self.templates), ("/size", self.sizes)):
                if choices:
                    drawn[name] = min(choices, key=lambda one, name=name: self._score(known, name, one)).value  # type: ignore[misc]
            yield self._row(f"made-{known[:8].hex()}", number, drawn)

    def _score(self, known: bytes, name: str, value: Value) -> float:
        mark = hashlib.sha256(known + _hash64(self.seed, name, value.value).to_bytes(8, "big")).digest()
        return -math.log((int.from_bytes(mark[:8], "big") + 0.5) / 2**64) / value.weight

    def _row(self, name: str, number: int, drawn: dict[str, Scalar]) -> Row:
        template, size = drawn.pop("/template"), drawn.pop("/size", None)
        named = {key: str(value) for key, value in drawn.items()} | {"n": str(number)}
        row: Row = {"id": name, "prompt": _filled(str(template), named)}
        if size is not None:
            row["width"], row["height"] = map(int, str(size).split("x"))
        if self.images is not None:
            row["images"] = _all_filled(self.images, named)
        return row | drawn


def _combinations(
    fields: list[tuple[str, list[Value]]], exclude: list[Exclusion], chosen: dict[str, Scalar]
) -> Iterator[dict[str, Scalar]]:
    if not fields:
        yield chosen
        return
    (name, values), *others = fields
    for value in values:
        now = chosen | {name: value.value}
        if not all(chosen[other] in allowed for other, allowed in value.when.items()):
            continue
        if any(_hits(rule, now) for rule in exclude if name in rule.fields and rule.fields <= now.keys()):
            continue
        yield from _combinations(others, exclude, now)


def _hits(rule: Exclusion, row: dict[str, Scalar]) -> bool:
    same = all(row[one] == row[other] for one, other in rule.same.items())
    return same and all(row[name] in values for name, values in rule.values.items())


# ------------------------------------------------------------------------------------------------- drawing by hashes


def _hash64(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big")


def _mixed(numbers: Any) -> Any:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014), of an array of 64-bit numbers."""
    import numpy as np

    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _uniform(numbers: Any) -> Any:
    """Hashes as numbers in (0, 1)."""
    import numpy as np

    return (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54


def _from_slots(marks: Any, weights: Any, numbers: Any) -> Any:
    """The place of the value that each row has, of many: each value has a slot of a table by its hash, and a row takes the first of its
    own series of slots that holds a value, and that value's weight lets it have."""
    import numpy as np

    slots = 2 ** max(20, (2 * len(marks) - 1).bit_length())
    table = np.full(slots, -1)
    for place in np.argsort(marks, kind="stable").tolist():
        slot = int(marks[place]) % slots
        while table[slot] >= 0:
            slot = (slot + 1) % slots
        table[slot] = place
    share = weights / 2.0 ** np.ceil(
        np.log2(weights.max())
    )  # a power of two, so that few new weights change what others are taken by
    found, left, series = np.full(len(numbers), -1), np.arange(len(numbers)), _mixed(numbers)
    while left.size:
        series = _mixed(series)
        held = table[(series & np.uint64(slots - 1)).astype(np.int64)]
        taken = (held >= 0) & (_uniform(_mixed(series ^ np.uint64(0x5DEECE66D))) < share[held])
        found[left[taken]] = held[taken]
        left, series = left[~taken], series[~taken]
    return found


# ------------------------------------------------------------------------------------------------- texts


def _names(text: str) -> set[str]:
    """The names that a template asks for."""
    return {found[1] for found in _NAMED.finditer(text) if found[1] is not None}


def _filled(text: str, values: Mapping[str, str]) -> str:
    """A template with its names replaced; `{{` and `}}` stand for braces."""
    return _NAMED.sub(lambda found: found[0][0] if found[1] is None else values[found[1]], text)


def _all_filled(given: Any, values: Mapping[str, str]) -> Any:
    if isinstance(given, str):
        return _filled(given, values)
    if isinstance(given, list):
        return [_all_filled(one, values) for one in given]
    return {key: _all_filled(one, values) for key, one in given.items()} if isinstance(given, dict) else given


def _told(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "the row"


# ------------------------------------------------------------------------------------------------- the file


def read_made(path: Path) -> Made:
    """What a file of made rows says. Raises DarkroomError: one line that names the file and the key."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        return replace(_made(given, path.parent), where=_where(path))
    except UnicodeDecodeError as error:
        raise DarkroomError(f"{path}: not UTF-8 text; save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DarkroomError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from error
    except DarkroomError as error:
        raise DarkroomError(f"{_where(path)}{error}") from None


def _where(path: Path) -> str:
    """How a line about a file begins; one that holds what the config itself says is no file of the user's."""
    if path.parent.parts[-2:] == INLINE:
        return f"config: {path.stem.partition('-')[0]}."
    return f"{path}: "


def lists_of(path: Path) -> list[Path]:
    """The files with values that a file of made rows names. Raises DarkroomError as `read_made`."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []  # said where its rows are read
    fields = given.get("fields") if isinstance(given, dict) else None
    named = [one.get("file") for one in fields.values() if isinstance(one, dict)] if isinstance(fields, dict) else []
    return [path.parent / name for name in named if isinstance(name, str)]


def _made(given: Any, folder: Path) -> Made:
    if not isinstance(given, dict) or "template" not in given:
        raise DarkroomError("made rows have a template, and fields with the values that it names")
    if unknown := sorted(map(str, given.keys() - _KEYS)):
        raise DarkroomError(f"unknown key {unknown[0]}; known here: {', '.join(sorted(_KEYS))}")
    fields = given.get("fields") or {}
    if not isinstance(fields, dict):
        raise DarkroomError("fields: expected names with their values")
    listed = {str(name): _values(str(name), one, folder) for name, one in fields.items()}
    for name in listed:
        if not name.isidentifier() or name in _OURS or name == "n":
            raise DarkroomError(
                f"fields.{name}: a field's name is letters, digits and underscores, and none of {', '.join(_OURS)}, n"
            )
    exclude = [_exclusion(f"exclude.{n}", one, listed) for n, one in enumerate(_list("exclude", given.get("exclude")))]
    templates = [_weighted(f"template.{n}", one, "text") for n, one in enumerate(_list("template", given["template"]))]
    sizes = [_size(f"sizes.{n}", one) for n, one in enumerate(_list("sizes", given.get("sizes"), whole=True))]
    images = given.get("images")
    for place, text in [
        *((f"template.{n}", str(one.value)) for n, one in enumerate(templates)),
        *_texts("images", images),
    ]:
        for name in sorted(_names(text) - listed.keys() - {"n"}):
            raise DarkroomError(f"{place}: there is no field {name}; there are {', '.join(sorted(listed)) or 'none'}")
    rows, share, seed = given.get("rows", "all"), given.get("share", 1), given.get("seed", 0)
    if rows != "all" and not (_whole(rows) and 1 <= rows <= _MOST):
        raise DarkroomError(
            f"rows: expected a whole number from 1 to {_MOST:,}, or all, for every combination; got {rows!r}"
        )
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise DarkroomError(f"share: expected a number above 0 to 1, got {share!r}")
    if rows != "all" and "share" in given:
        raise DarkroomError("share: is of every combination (rows: all); leave out one of the two")
    if not _whole(seed):
        raise DarkroomError(f"seed: expected a whole number, got {seed!r}")
    if rows == "all" and not listed:
        raise DarkroomError("rows: without fields there is one combination; say how many rows to make")
    ordered = {name: listed[name] for name in _order(listed, exclude)}
    return Made(templates, ordered, exclude, sizes, images, None if rows == "all" else rows, float(share), seed)


def _order(fields: dict[str, list[Value]], exclude: list[Exclusion]) -> list[str]:
    """The order of drawing: by name, but each after the fields that it depends on."""
    needs = {name: {other for value in values for other in value.when} for name, values in fields.items()}
    for name, others in needs.items():
        for other in sorted(others - fields.keys()):
            raise DarkroomError(f"fields.{name}: depends on a field {other} that is not there")
    for rule in exclude:
        for one, other in rule.same.items():
            needs[one].add(other)
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        raise DarkroomError(f"fields: depend on each other in a circle: {' - '.join(error.args[1])}") from None
    order: list[str] = []
    while len(order) < len(fields):
        order.append(min(name for name in fields if name not in order and needs[name] <= set(order)))
    return order


def _values(name: str, given: Any, folder: Path) -> list[Value]:
    where = f"fields.{name}"
    if isinstance(given, dict):
        if frozenset(given) not in _FORMS:
            raise DarkroomError(
                f"{where}: expected a list of values, or the keys values, by and values, file, or range (and step)"
            )
        if "file" in given:
            return _from_file(where, given["file"], folder)
        if "range" in given:
            return _from_range(where, given["range"], given.get("step"))
        if "by" in given:
            return _nested(where, str(given["by"]), given["values"])
        given = given["values"]
    found = [_weighted(f"{where}.{n}", one, "value") for n, one in enumerate(_list(where, given))]
    if not found:
        raise DarkroomError(f"{where}: has no values")
    return _each_once(where, found)


def _each_once(where: str, values: list[Value]) -> list[Value]:
    seen: set[Any] = set()
    for value in values:
        mark = (
            type(value.value),
            value.value,
            tuple(sorted((name, *sorted(map(str, of))) for name, of in value.when.items())),
        )
        if mark in seen:
            raise DarkroomError(f"{where}: {value.value!r} stands there twice; give it a weight")
        seen.add(mark)
    return values


def _nested(where: str, by: str, given: Any) -> list[Value]:
    """Values by those of another field."""
    if not isinstance(given, dict) or not given:
        raise DarkroomError(f"{where}.values: expected lists of values by those of {by}")
    found: list[Value] = []
    for parent, ones in given.items():
        for n, one in enumerate(_list(f"{where}.values.{parent}", ones)):
            value = _weighted(f"{where}.values.{parent}.{n}", one, "value")
            found.append(Value(value.value, value.weight, {**value.when, by: frozenset((parent,))}))
    return found


def _from_file(where: str, name: Any, folder: Path) -> list[Value]:
    """A value a line; what stands after a tab is its weight."""
    if not isinstance(name, str):
        raise DarkroomError(f"{where}.file: expected the name of a file, got {name!r}")
    path = folder / name
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DarkroomError(f"{where}.file: {path}: {reason}") from None
    found = []
    for number, line in enumerate(lines, 1):
        text, _, weight = (part.strip() for part in line.partition("\t"))
        if not text:
            continue
        try:
            found.append(Value(text, float(weight or 1)))
        except ValueError:
            raise DarkroomError(f"{where}.file: {path}, line {number}: {weight!r} is no weight") from None
        if not 0 < found[-1].weight < math.inf:
            raise DarkroomError(f"{where}.file: {path}, line {number}: a weight is above 0, got {weight}")
    if not found:
        raise DarkroomError(f"{where}.file: {path}: has no values")
    return _each_once(f"{where}.file: {path}", found)


def _from_range(where: str, given: Any, step: Any) -> list[Value]:
    """Numbers from one to another, both among them where steps lead there."""
    ends = given if isinstance(given, list) else []
    if len(ends) != 2 or not all(_number(end) for end in ends) or ends[0] > ends[1]:
        raise DarkroomError(f"{where}.range: expected two numbers, the least and the greatest, got {given!r}")
    if step is None and all(_whole(end) for end in ends):
        step = 1
    if not _number(step) or step <= 0:
        raise DarkroomError(f"{where}.step: expected a number above 0, got {step!r}; decimal numbers need one")
    number = int((ends[1] - ends[0]) / step * (1 + 1e-12)) + 1
    if number > 1_000_000:
        raise DarkroomError(f"{where}.step: makes {number:,} numbers; at most 1,000,000")
    whole = all(_whole(one) for one in (*ends, step))
    return [Value(ends[0] + n * step if whole else round(ends[0] + n * step, 9)) for n in range(number)]


def _weighted(where: str, given: Any, key: str) -> Value:
    """A value, or one with its weight and conditions under the key that names it."""
    if not isinstance(given, dict):
        return Value(_scalar(where, given))
    allowed = {key, "weight", *(("when",) if key == "value" else ())}
    if key not in given or given.keys() - allowed:
        raise DarkroomError(f"{where}: expected {key}, and with it at most {', '.join(sorted(allowed - {key}))}")
    weight, when = given.get("weight", 1), given.get("when") or {}
    if not _number(weight) or not 0 < weight < math.inf:
        raise DarkroomError(f"{where}.weight: expected a number above 0, got {weight!r}")
    if not isinstance(when, dict):
        raise DarkroomError(f"{where}.when: expected fields with the values that they must have")
    conditions = {
        str(name): frozenset(_scalar(f"{where}.when.{name}", one) for one in _list(f"{where}.when.{name}", ones))
        for name, ones in when.items()
    }
    return Value(_scalar(where, given[key]), float(weight), conditions)


def _size(where: str, given: Any) -> Value:
    size, weight = (given.get("size"), given.get("weight", 1)) if isinstance(given, dict) else (given, 1)
    if isinstance(given, dict) and given.keys() - {"size", "weight"}:
        raise DarkroomError(f"{where}: expected size, and with it at most weight")
    if not (isinstance(size, list) and len(size) == 2 and all(_whole(side) and side > 0 for side in size)):
        raise DarkroomError(f"{where}: expected width and height, such as [1024, 1024], got {size!r}")
    return _weighted(where, {"value": f"{size[0]}x{size[1]}", "weight": weight}, "value")


def _exclusion(where: str, given: Any, fields: dict[str, list[Value]]) -> Exclusion:
    if not isinstance(given, dict) or len(given) < 1:
        raise DarkroomError(f"{where}: expected fields with the values that do not go together")
    values, same = {}, {}
    for name, ones in given.items():
        other = re.fullmatch(r"\{(\w+)\}", ones) if isinstance(ones, str) else None
        for one in (str(name), *((other[1],) if other else ())):
            if one not in fields:
                raise DarkroomError(f"{where}: there is no field {one}; there are {', '.join(sorted(fields))}")
        if other:
            same[str(name)] = other[1]
        else:
            values[str(name)] = frozenset(_scalar(f"{where}.{name}", one) for one in _list(f"{where}.{name}", ones))
    return Exclusion(values, same)


def _texts(where: str, given: Any) -> Iterator[tuple[str, str]]:
    if isinstance(given, str):
        yield where, given
    parts = given.items() if isinstance(given, dict) else enumerate(given) if isinstance(given, list) else ()
    for key, one in parts:
        yield from _texts(f"{where}.{key}", one)


def _list(where: str, given: Any, whole: bool = False) -> list[Any]:
    """A list, or one value as such; whole: of what is a list itself."""
    if given is None:
        return []
    if isinstance(given, list) and not (whole and given and not isinstance(given[0], list | dict)):
        return given
    return [given]


def _scalar(where: str, given: Any) -> Scalar:
    if not isinstance(given, str | int | float | bool) or (isinstance(given, float) and not math.isfinite(given)):
        _refuse(where, given)
    return given


def _refuse(where: str, given: Any) -> NoReturn:
    raise DarkroomError(f"{where}: expected text, a number, true or false, got {given!r}")


def _whole(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool)


def _number(given: Any) -> bool:
    return (_whole(given) or isinstance(given, float)) and math.isfinite(given)
