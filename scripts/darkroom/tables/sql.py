"""Expressions of the config over the columns of the tables: checked, then evaluated by DuckDB.

An expression is one value for each image, such as `p_yes >= 0.6 and category != 'x'`. It sees the columns of that image and no
file, no network, no other table, no clock and no dice, so that the same tables give the same bytes.
"""

import contextlib
import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from darkroom.errors import DarkroomError
from darkroom.metrics.formulas import Computed
from darkroom.store.columns import Type

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

_TYPES = {"text": "VARCHAR", "int": "BIGINT", "float": "DOUBLE", "bool": "BOOLEAN"}
_ARROW = {"text": "string", "int": "int64", "float": "double", "bool": "bool"}
_ANY = {"text": "''", "int": "1", "float": "1", "bool": "true"}  # a value of each
_NUMBERS = re.compile(r"(U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL.*|INTEGER_LITERAL)")
_WORDS = {"VARCHAR": "text", "BOOLEAN": "true or false", "DOUBLE": "a number", "BIGINT": "a number"}
_KINDS = {"condition": "true or false", "number": "a number", "value": "a value"}
# Of functions that look at more than the values that they are given. DuckDB tells those that change within a query.
_APART = re.compile(
    r"(current_|get_|session_|pg_|has_|inet_|txid_|duckdb_)|(user|age|ago|getvariable|getenv|error|stats)$"
)
_OF_NULL = ("OPERATOR_COALESCE", "OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL", "CASE_EXPR")


def connected() -> "DuckDBPyConnection":
    """A DuckDB of its own in memory, which can read and write nothing, and whose order and time zone are always the same."""
    import duckdb

    connection = duckdb.connect(config={"threads": 1})
    for setting in (
        "temp_directory = ''",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "python_enable_replacements = false",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")
    return connection


def quoted(name: str) -> str:
    """A column's name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def sql_type(type_: Type | None) -> str:
    """DuckDB's name of a type of the tables; of one that is not known, the one that goes with all others."""
    if type_ is None:
        return '"NULL"'
    if isinstance(type_, str):
        return _TYPES[type_]
    if "list" in type_:
        return f"{sql_type(type_['list'])}[]"
    return f"STRUCT({', '.join(f'{quoted(name)} {sql_type(one)}' for name, one in type_['struct'])})"


@dataclass(frozen=True)
class Expression:
    """A checked expression. columns: those of the table that it names; of_null: whether it says itself what a null gives; type: DuckDB's."""

    text: str
    columns: tuple[str, ...]
    of_null: bool
    type: str

    @property
    def sql(self) -> str:
        return f"(\n{self.text}\n)"  # on lines of its own, for a comment at its end

    @property
    def ranked(self) -> str:
        """The expression as what images are ordered by: nan is no value."""
        return (
            f"CASE WHEN isnan({self.sql}) THEN NULL ELSE {self.sql} END"
            if self.type in ("DOUBLE", "FLOAT")
            else self.sql
        )


class Checker:
    """Checks expressions over a table with these columns; a type of None fits everything."""

    def __init__(self, types: Mapping[str, Type | None]):
        # Names that differ in case alone are one to DuckDB, and no name is none: such fields can be in no expression.
        first = {name.casefold(): name for name in reversed(list(types)) if name}
        self.types = {name: type_ for name, type_ in types.items() if first.get(name.casefold()) == name}
        self._by_fold = first

    @cached_property
    def _connection(self) -> "DuckDBPyConnection":
        connection = connected()
        columns = [
            f"NULL AS {quoted(name)}" if type_ is None else f"CAST(NULL AS {sql_type(type_)}) AS {quoted(name)}"
            for name, type_ in self.types.items()
        ]
        connection.execute(f"CREATE VIEW t AS SELECT {', '.join(columns or ['1'])}")
        connection.execute("CREATE TABLE one AS SELECT * FROM t")
        for name, type_ in self.types.items():
            if isinstance(type_, str):
                connection.execute(f"UPDATE one SET {quoted(name)} = {_ANY[type_]}")
        return connection

    def add(self, name: str, type_: Type | None) -> None:
        """Add a column."""
        self.types[name] = type_
        self._by_fold[name.casefold()] = name
        self.__dict__.pop("_connection", None)

    def check(self, where: str, text: str, wanted: str = "value") -> Expression:
        """An expression that is "condition", "number" or "value"; where: the key of the config that holds it.

        Raises DarkroomError, one line, for what is no such expression over these columns.
        """
        import duckdb

        def refused(reason: str) -> DarkroomError:
            return DarkroomError(f"config: {where}: {' '.join(reason.split())} (in `{' '.join(text.split())}`)")

        asked = self._connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [f"SELECT (\n{text}\n)"]).fetchall()
        parsed = json.loads(asked[0][0])
        if parsed["error"]:
            raise refused(f"not an expression that DuckDB reads: {parsed['error_message']}")
        node = _only(parsed)
        if node is None:
            raise refused("expected one expression and nothing else")
        inner = {name for one in _walk(node) if one["class"] == "LAMBDA" for name in _names(one["lhs"])}
        columns: dict[str, None] = {}
        for one in _walk(node):
            if one["class"] in ("SUBQUERY", "WINDOW", "STAR", "PARAMETER", "DEFAULT"):
                raise refused("an expression sees the columns of one image: no SELECT, OVER, * or parameter")
            if one["class"] == "COLUMN_REF":
                name = one["column_names"][0]
                if (column := self._by_fold.get(name.casefold())) is not None:
                    columns[column] = None
                elif name not in inner:
                    near = difflib.get_close_matches(name, self.types, n=1)
                    known = f"did you mean {near[0]}?" if near else f"there are {', '.join(self.types)}"
                    raise refused(f"no column {name}; {known}; a text stands in single quotes")
            if one["class"] == "FUNCTION" and (function := one["function_name"].lower()) in self._outside(function):
                raise refused(f"{function}() gives something else each time, or looks at more than this image")
        try:  # in a condition, aggregates are refused, too
            self._connection.execute(f"SELECT 1 FROM t WHERE (\n{text}\n) IS NULL")
            type_ = self._connection.execute(f"DESCRIBE SELECT (\n{text}\n) AS v FROM t").fetchall()[0][1]
        except duckdb.Error as error:
            raise refused(_message(error)) from None
        self._check_literals(text, node, refused)
        fits = {"condition": type_ == "BOOLEAN", "number": bool(_NUMBERS.fullmatch(type_)), "value": True}
        if not fits[wanted] and type_ != '"NULL"':
            raise refused(f"expected {_KINDS[wanted]}, and this gives {_WORDS.get(type_, type_)}")
        of_null = any(one["type"] in _OF_NULL for one in _walk(node))
        return Expression(text, tuple(columns), of_null, type_)

    def _check_literals(self, text: str, node: dict[str, Any], refused: Callable[[str], DarkroomError]) -> None:
        """Refuse a text that stands where a number must, which DuckDB finds with the first value alone."""
        import duckdb

        told = {one["literal"].get("text") for one in _walk(node) if one["class"] == "CONSTANT" and "literal" in one}
        try:
            self._connection.execute(f"SELECT (\n{text}\n) FROM one").fetchall()
        except duckdb.ConversionException as error:
            if any(literal and f"'{literal}'" in str(error) for literal in told):
                raise refused(_message(error)) from None
        except duckdb.Error:
            pass  # of these values, which are none of an image

    def _outside(self, function: str) -> set[str]:
        """The function, if it can give two values for the same arguments, or looks elsewhere; else nothing."""
        asked = "SELECT DISTINCT stability FROM duckdb_functions() WHERE function_name = ?"
        kinds = {one for (one,) in self._connection.execute(asked, [function]).fetchall()}
        apart = _APART.match(function) or (kinds and not kinds & {"CONSISTENT", None})
        return {function} if apart else set()


def _only(parsed: dict[str, Any]) -> dict[str, Any] | None:
    """The expression of `SELECT (expression)`, None where there is more."""
    (first, *others) = parsed["statements"]
    node = first["node"]
    plain = not others and node["type"] == "SELECT_NODE" and node["from_table"]["type"] == "EMPTY"
    rest = ("modifiers", "where_clause", "group_expressions", "having", "sample", "qualify")
    if not plain or any(node[name] for name in rest) or node["cte_map"]["map"] or len(node["select_list"]) != 1:
        return None
    return node["select_list"][0] if not node["select_list"][0]["alias"] else None


def _walk(node: Any) -> Iterator[dict[str, Any]]:
    """Every expression within one."""
    if isinstance(node, dict):
        if "class" in node and "type" in node:
            yield node
        for one in node.values():
            yield from _walk(one)
    elif isinstance(node, list):
        for one in node:
            yield from _walk(one)


def _names(node: Any) -> set[str]:
    return {one["column_names"][0] for one in _walk(node) if one["class"] == "COLUMN_REF"}


def _message(error: Exception) -> str:
    """The first line of what DuckDB says, without what kind of error it is."""
    return re.sub(r"^[\w ]+ Error: ", "", str(error).splitlines()[0])


@contextlib.contextmanager
def evaluating(where: str) -> Iterator[None]:
    """Run queries with expressions in them; where: the key of the config that they are from.

    Raises DarkroomError, one line, where one cannot be worked out, such as text that is no number.
    """
    import duckdb

    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise DarkroomError(
            f"{where}: the job has too little memory for all images together: {_message(error)}"
        ) from None
    except duckdb.Error as error:
        raise DarkroomError(f"config: {where}: {_message(error)}") from None


def computed(table: "pa.Table", formulas: Sequence[Computed]) -> "pa.Table":
    """A table of images with the columns of formulas: the value, and why there is none.

    A formula has no value where a score that it names has none, unless it says itself what then (`coalesce`, `case`, `is null`), and
    where its value is no finite number. Raises DarkroomError, one line, for no such formula.
    """
    types = {str(name): type_ for type_, name in _ARROW.items()}
    known = {one.name: types[str(one.type)] for one in table.schema if str(one.type) in types}
    checker, found = Checker(known), "SELECT * FROM t"
    for formula in formulas:
        one = checker.check(formula.where, formula.text, "number")
        value, error = quoted(formula.name), quoted(formula.error)
        missing = () if one.of_null else one.columns
        reasons = [f"WHEN {quoted(name)} IS NULL THEN {_text(f'{name} has no value')}" for name in missing]
        raw = f"CASE WHEN error IS NULL {''.join(f' AND {quoted(name)} IS NOT NULL' for name in missing)} THEN TRY(CAST({one.sql} AS DOUBLE)) END"
        reasons += [
            f"WHEN {value} IS NULL THEN 'the formula has no value'",
            f"WHEN NOT isfinite({value}) THEN 'not a finite number'",
        ]
        found = f"SELECT *, {raw} AS {value} FROM ({found})"
        found = f"SELECT *, CASE WHEN error IS NOT NULL THEN NULL {' '.join(reasons)} END AS {error} FROM ({found})"
        found = f"SELECT * REPLACE (CASE WHEN isfinite({value}) THEN {value} END AS {value}) FROM ({found})"
        checker.add(formula.name, "float")
        checker.add(formula.error, "text")
    added = [name for formula in formulas for name in (formula.name, formula.error)]
    with connected() as connection:
        connection.register("t", table)
        with evaluating("scores"):
            made = connection.sql(f"SELECT {', '.join(map(quoted, added))} FROM ({found})").to_arrow_table()
    for name in added:
        table = table.append_column(name, made[name])
    return table


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
