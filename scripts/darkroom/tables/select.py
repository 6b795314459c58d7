"""Which images are kept: the cuts that the config names, one after the other, by DuckDB over columns of all images of a kind."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa

from darkroom.config.models import Select
from darkroom.metrics.base import Catalogue
from darkroom.store.columns import Type
from darkroom.tables.joined import FIELDS, Joined
from darkroom.tables.kind import Kind
from darkroom.tables.sql import Checker, Expression, connected, evaluating, quoted

VALUES_TOLD = 50  # of the field that the yield is told by; those of more images first
# Columns beside those of the tables, whose names no field has: the number of an image, of its item, and whether it is left after a step.
NUMBER, ITEM, BY, KEPT = '"\x01n"', '"\x01item"', '"\x01by"', "\x01kept"


@dataclass
class Chosen:
    """Which images of a kind are selected, and how that came about.

    selected: of each image, in order. steps: the names of the steps, from requests to selected. left: how many images are left after
    each step. by: the same for each value of the field that was asked for.
    """

    selected: pa.ChunkedArray
    steps: list[str]
    left: list[int]
    by: dict[str | None, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A step of the selection. fits: SQL of whether an image stays; best: of each group of those that are left, the first `most` by
    `ranks` stay, and those where `alone` is true; told: only counted, and the next step goes on from the one before.
    """

    name: str
    fits: str = "true"
    group: str | None = None
    ranks: str = ""
    most: int = 0
    alone: str = "false"
    always: str = "false"
    told: bool = False

    def sql(self, left: str) -> str:
        """Whether an image is left after this step; left: whether it was after the one before."""
        if self.group is None:
            fits = f"CASE WHEN {left} THEN coalesce({self.fits}, false) ELSE false END"
            return f"({fits}) OR {self.always}"
        rank = f"row_number() OVER (PARTITION BY {left}, {self.group} ORDER BY {self.ranks})"
        return f"{left} AND ({self.always} OR {self.alone} OR {rank} <= {self.most})"


class Selector:
    """Selects images by a config.

    catalogue: the scores; select: of the config; named: our columns -> their names in the tables; own_types: the user's fields; by: a field or column
    that the yield is told by.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        select: Select,
        named: Mapping[str, str],
        types: Mapping[str, Type],
        own_types: Mapping[str, Type],
        by: str | None = None,
    ):
        self.catalogue, self.select, self.named, self.by = catalogue, select, dict(named), by
        self.own_types = own_types
        self.types = {named[name]: type_ for name, type_ in types.items() if name in named} | dict(own_types)

    def chosen(self, images: Joined, kind: Kind) -> Chosen:
        """The selection of a kind; see `of_table`."""
        expressions = self._checked(kind.name)
        used = {name for found in expressions.values() for one in found for name in one.columns}
        used |= {self.by} if self.by in self.types else set()
        ours = [
            "error",
            "label",
            "sample",
            "key",
            *self.select.least_of(kind.name),
            *self.catalogue.score_names(kind.name),
        ]
        names = dict.fromkeys([*(self.named[name] for name in ours), *sorted(used)])
        return self.of_table(kind.name, self._table(images, kind, list(names)))

    def of_table(self, kind: str, table: pa.Table) -> Chosen:
        """The selection of images of a kind by columns of the tables, among them `ITEM`, a number that the samples of an item share.

        An image is selected that was made, reaches every threshold (a null score reaches none), fits `where`, and is among the best of its
        group at every further step. Where labels count, `label` decides where there is one: what a person rejected is out, and what was
        accepted is in, also where it is more than a step keeps; it takes the places of others.

        Raises DarkroomError, one line, for an expression that does not fit the columns.
        """
        label = self.named["label"]
        labelled = self.select.labels and label in table.column_names and table[label].null_count < len(table)
        steps = self._steps(kind, self._checked(kind), labelled)
        names = [step.name for step in steps]
        if not len(table):
            return Chosen(pa.chunked_array([], pa.bool_()), names, [0] * len(names))
        parts, left = ["s AS (SELECT * FROM t)"], "true"
        kept: list[str] = []
        for step in steps:
            of = f"s{len(kept)}" if kept else "s"
            kept.append(quoted(f"{KEPT}{len(kept)}"))
            parts.append(f"s{len(kept)} AS (SELECT *, {step.sql(left)} AS {kept[-1]} FROM {of})")
            left = left if step.told else kept[-1]
        told = self.by is not None and self.by in table.column_names
        by = f", CAST({quoted(self.by or '')} AS VARCHAR) AS {BY}" if told else ""
        with connected() as connection:
            connection.register("t", table)
            wanted = ", ".join([NUMBER, *kept])
            query = f"CREATE TABLE made AS WITH {', '.join(parts)} SELECT {wanted}{by} FROM s{len(steps)}"
            with evaluating(f"select.{kind}"):
                connection.execute(query)
            selected = connection.sql(f"SELECT {kept[-1]} FROM made ORDER BY {NUMBER}").to_arrow_table().column(0)
            sums = ", ".join(f"count_if({name})" for name in kept)
            (whole,) = connection.execute(f"SELECT {sums} FROM made").fetchall()
            asked = f"SELECT {BY}, {sums} FROM made GROUP BY 1 ORDER BY count(*) DESC, 1 NULLS LAST LIMIT {VALUES_TOLD}"
            values = connection.execute(asked).fetchall() if by else []
        return Chosen(selected, names, list(whole), {value: list(found) for value, *found in values})

    def _checked(self, kind: str) -> dict[str, list[Expression]]:
        """The expressions that select images of a kind, by their key."""
        where, found = f"select.{kind}", defaultdict(list)
        for key, text, wanted in self.select.of(kind).expressions(where):
            found[key.removeprefix(f"{where}.")].append(self._checker.check(key, text, wanted))
        return found

    @cached_property
    def _checker(self) -> Checker:
        return Checker({name: type_ for name, type_ in self.types.items() if name != self.named["selected"]})

    def _table(self, images: Joined, kind: Kind, names: list[str]) -> pa.Table:
        """These columns of all images of a kind, and what `of_table` needs besides."""
        ours = {column: name for name, column in self.named.items()}
        own = [name for name in names if name in self.own_types]
        needed = [ours[name] for name in names if name not in self.own_types]
        read = list(dict.fromkeys(["row", "item", *needed, *(["kind", FIELDS] if own else [])]))
        parts, before, count, at = [], (None, None), 0, 0
        for part in images.of_kind(kind.name, read):
            row, item = part["row"].to_numpy(), part["item"].to_numpy()
            changed = np.empty(len(part), bool)
            changed[1:] = (row[1:] != row[:-1]) | (item[1:] != item[:-1])
            changed[0] = (row[0], item[0]) != before
            before, numbers = (row[-1], item[-1]), count + np.cumsum(changed)
            count = int(numbers[-1])
            columns = {NUMBER.strip('"'): pa.array(np.arange(at, at + len(part))), ITEM.strip('"'): pa.array(numbers)}
            at += len(part)
            rows = list(images.own_rows(part)) if own else []
            for name in names:
                if name in self.own_types:
                    found = [one.column(name, self.own_types[name]) for one in rows]
                    columns[name] = pa.chunked_array(found).combine_chunks()
                else:
                    columns[name] = part[ours[name]].combine_chunks()
            parts.append(pa.table(columns))
        return pa.concat_tables(parts) if parts else pa.table({})

    def _steps(self, kind: str, checked: Mapping[str, list[Expression]], labelled: bool) -> list[Step]:
        """The steps of a kind; labelled: whether labels count."""
        said, column = self.select.of(kind), {name: quoted(name_) for name, name_ in self.named.items()}
        made = f"{column['error']} IS NULL"
        scores = [f"{column[name]} IS NOT NULL" for name in self.catalogue.score_names(kind)]
        steps = [Step("requests"), Step("made", made)]
        steps += [Step("scored", " AND ".join(scores), told=True)] if scores else []
        for name, least in said.numbers.items():
            number = f" AND NOT isnan({column[name]})" if self.types[self.named[name]] == "float" else ""
            steps.append(Step(f"{name} >= {least:g}", f"{column[name]} >= '{float(least)!r}'::DOUBLE{number}"))
        if said.where:
            steps.append(Step(" ".join(said.where.split()), checked["where"][0].sql))
        accepted = "false"
        if labelled:
            accepted = f"coalesce({column['label']} = 'accept' AND {made}, false)"
            steps.append(Step("labels", f"coalesce({column['label']}, '') <> 'reject'", always=accepted))
        order = [f"{one.ranked} DESC NULLS LAST" for one in checked.get("order_by", ())]
        order = order or [f"{column[name]} DESC NULLS LAST" for name in [*said.numbers][:1]]
        ranks = ", ".join([f"{accepted} DESC", *order, column["sample"], column["key"], NUMBER])

        def best(name: str, group: str, most: int, alone: str = "false") -> None:
            steps.append(Step(name, group=group, ranks=ranks, most=most, alone=alone, always=accepted))

        if said.distinct:
            of = checked["distinct"][0].sql
            best(f"one of each {' '.join(said.distinct.split())}", of, 1, f"{of} IS NULL")
        if (most := self.select.most_of(kind)) is not None:
            best(f"best {most} of a row", ITEM, most)
        if said.quota:
            of = checked["quota.by"][0].sql
            best(f"best {said.quota.each} of each {' '.join(said.quota.by.split())}", of, said.quota.each)
        if said.limit:
            best(f"best {said.limit}", "1", said.limit)
        return steps
