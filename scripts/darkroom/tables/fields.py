"""The user's own fields as columns: their order and types (`Type`)."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from darkroom.rows.fields import NameOrder, merge_names
from darkroom.store.columns import Type

MAX_FIELDS = 64  # of an object; one with more has its keys from the data, and is JSON text
MAX_DEPTH = 8
_INT = range(-(2**63), 2**63)
_PLAIN = {str, int, float, bool, type(None)}
_SHAPES_KEPT = 10_000


@dataclass(frozen=True)
class OwnField:
    """A field of the user's rows, by its name in them, and the type of its values."""

    name: str
    type: Type


class Names:
    """What columns of ours are called beside those of the user, whose names stay: with `prefix` where they would be one.

    To DuckDB and others, names that differ in case alone are one.
    """

    def __init__(self, own: Iterable[str], prefix: str):
        self.taken, self.prefix = {name.casefold() for name in own}, prefix

    def __call__(self, name: str) -> str:
        while name.casefold() in self.taken:
            name = self.prefix + name
        return name


class FieldTypes:
    """Order and types of the fields of many rows."""

    def __init__(self, columns: Iterable[str] = ()):
        """columns: names in their order, of which those count that rows have."""
        self._order = list(columns)
        self.types: dict[str, Type | None] = {}  # None: no value so far
        self._seen: dict[
            tuple[Any, ...], list[str]
        ] = {}  # names and types of plain rows -> which fields are whole numbers

    @property
    def order(self) -> list[str]:
        return [name for name in self._order if name in self.types]

    def add(self, row: dict[str, Any]) -> None:
        """Learn from the fields of a row."""
        if not row.keys() <= self.types.keys():
            merge_names(self._order, row)
        for name, value in row.items():
            type_ = _type_of(value)
            known = self.types.get(name)
            self.types[name] = known if known == type_ else _common(known, type_)

    def learn(self, rows: Iterable[dict[str, Any]], order: NameOrder) -> None:
        """`add` many rows, each in that order. A row with the names and types of an earlier one has nothing to tell."""
        for row in rows:
            plain = (*row, *map(type, row.values()))
            numbers = self._seen.get(plain)
            if numbers is not None and all(row[name] in _INT for name in numbers):
                continue
            self.add(order.ordered(row))
            types = set(plain[len(row) :])
            if numbers is None and types <= _PLAIN and len(self._seen) < _SHAPES_KEPT:
                self._seen[plain] = [name for name, value in row.items() if type(value) is int]

    def join(self, other: "FieldTypes") -> None:
        """Learn what another has learned."""
        merge_names(self._order, other.order)
        for name, type_ in other.types.items():
            self.types[name] = _common(self.types.get(name), type_)

    def named(self, name: str) -> Type:
        """The type of a field; text where it has no value at all."""
        return _settled(self.types[name])


def _type_of(value: Any, depth: int = 0) -> Type | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if value in _INT else "text"
    if isinstance(value, float):
        return "float"
    if depth < MAX_DEPTH and isinstance(value, list):
        type_: Type | None = None
        for item in value:
            type_ = _common(type_, _type_of(item, depth + 1))
        return {"list": type_}
    if depth < MAX_DEPTH and isinstance(value, dict):
        return _struct([[name, _type_of(item, depth + 1)] for name, item in value.items()])
    return "text"


def _struct(fields: list[list[Any]]) -> Type:
    """An object with these fields; text where no table can hold it. Names that differ in case alone are one to DuckDB."""
    if len(fields) > MAX_FIELDS or "" in dict(fields) or len({name.casefold() for name, _ in fields}) < len(fields):
        return "text"
    return {"struct": fields}


def _common(one: Type | None, other: Type | None) -> Type | None:
    """The type that holds values of both: text where nothing else does."""
    if one is None or other is None or one == other:
        return one or other
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        if "list" in one:
            return {"list": _common(one["list"], other["list"])}
        fields, more = dict(one["struct"]), dict(other["struct"])
        order = list(fields)
        merge_names(order, more)
        return _struct([[name, _common(fields.get(name), more.get(name))] for name in order])
    return "float" if {str(one), str(other)} == {"int", "float"} else "text"


def _settled(type_: Type | None) -> Type:
    """The type with text where nothing is known; an object without a field is text, too."""
    if not isinstance(type_, dict):
        return type_ or "text"
    if "list" in type_:
        return {"list": _settled(type_["list"])}
    return {"struct": [[name, _settled(one)] for name, one in type_["struct"]]} if type_["struct"] else "text"


def shaped(value: Any, type_: Type) -> Any:
    """A value of a row as one of that type. Fields that an object has not stay away."""
    if value is None:
        return None
    if type_ == "text":
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if type_ == "float":
        return float(value)  # Arrow refuses whole numbers that a float64 rounds
    if not isinstance(type_, dict):
        return value
    if "list" in type_:
        return [shaped(item, type_["list"]) for item in value]
    types = dict(type_["struct"])
    return {name: shaped(item, types[name]) for name, item in value.items()}


def leaves(value: Any, name: str = "") -> set[str]:
    """What a value shows of its type to a reader that infers it: the names of the parts that have a value."""
    if value is None:
        return set()
    if isinstance(value, dict):
        return {leaf for key, item in value.items() for leaf in leaves(item, f"{name}/{key}")} | {f"{name}/"}
    if isinstance(value, list):
        return {leaf for item in value for leaf in leaves(item, f"{name}[]")} | {f"{name}[]"}
    return {name}
