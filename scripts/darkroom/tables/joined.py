"""The images of all kinds with their scores, read once from their shards and kept in a file while the tables are made."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from darkroom.errors import DarkroomError
from darkroom.metrics.formulas import Computed
from darkroom.rows.fields import NameOrder
from darkroom.rows.labels import Labels
from darkroom.store.columns import Type
from darkroom.store.shardfile import arrow_type
from darkroom.tables.duplicates import DuplicatesFile
from darkroom.tables.fields import FieldTypes, shaped
from darkroom.tables.kind import Kind

PART = 16_384  # images that are worked on together; a row group of scores.parquet
FIELDS = "fields"  # the column of the user's own fields, as JSON


class OwnRows:
    """The user's own fields of some images as columns, a value for each image. Images of one row share its JSON."""

    def __init__(self, fields: pa.Array, order: NameOrder):
        """fields: JSON of each image; order: of the names in nested objects."""
        told = fields.dictionary_encode()
        self._places, self._order = told.indices, order
        self.rows: list[dict[str, Any]] = [*json.loads(f"[{','.join(told.dictionary.to_pylist())}]")]

    def _values(self, name: str, type_: Type) -> list[Any]:
        found = [row.get(name) for row in self.rows]
        if not isinstance(type_, str) or (type_ == "text" and any(isinstance(one, dict | list) for one in found)):
            found = [self._order.ordered(value, name) for value in found]
        return found if type_ in ("int", "bool") else [shaped(value, type_) for value in found]

    def column(self, name: str, type_: Type) -> pa.Array:
        """A field as a column of that type."""
        return pa.array(self._values(name, type_), arrow_type(type_)).take(self._places)

    def texts(self, name: str, type_: Type) -> pa.Array:
        """A field of lists or objects as JSON, for CSV."""
        values = self._values(name, type_)
        found = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
        return pa.array(found, pa.large_string()).take(self._places)


@dataclass
class Joined:
    """The images in the order of the tables, in parts of `PART` and a last one that may be empty.

    schema: of the file; fields: kind -> what its rows hold of the user's own; spans: kind -> its first image, and its number of images.
    """

    file: IO[bytes]
    schema: pa.Schema
    kinds: list[Kind]
    fields: dict[str, FieldTypes] = field(default_factory=dict)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def gathered(
        cls,
        kinds: list[Kind],
        columns: Mapping[str, Type],
        labels: Labels | None,
        file: IO[bytes],
        duplicates: DuplicatesFile | None = None,
    ) -> "Joined":
        """Read all shards. columns: of ours that the tables have of them, with `label`; duplicates: what was found of each image. Raises
        DarkroomError as `Kind.tables`, and where a kind holds images of other rows than planned."""
        told = [*columns.items(), (FIELDS, "text")]
        joined = cls(file, pa.schema([(name, arrow_type(type_)) for name, type_ in told]), kinds)
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_file(file, joined.schema, options=options) as writer:
            waiting = joined.schema.empty_table()
            for table in joined._read(labels, duplicates):
                waiting = pa.concat_tables([waiting, table])
                while len(waiting) >= PART:
                    writer.write_table(waiting.slice(0, PART).combine_chunks())
                    waiting = waiting.slice(PART)
            last = [waiting[name].combine_chunks() for name in joined.schema.names]
            writer.write_batch(pa.RecordBatch.from_arrays(last, schema=joined.schema))
        return joined

    def _read(self, labels: Labels | None, duplicates: DuplicatesFile | None) -> Iterator[pa.Table]:
        start, found = 0, duplicates.lines() if duplicates else iter(())
        for kind in self.kinds:
            types = self.fields[kind.name] = FieldTypes(kind.plan.columns)
            rows, last, number = 0, None, 0
            for table in kind.tables():
                named = table["row"].to_numpy()
                rows += int((named[1:] != named[:-1]).sum()) + int(named[0] != last) if len(table) else 0
                last = named[-1] if len(table) else last
                number += len(table)
                types.learn(OwnRows(table[FIELDS].combine_chunks(), kind.plan.order).rows, kind.plan.order)
                for formula in kind.formulas:
                    least, most = pc.min_max(table[formula.name]).values()
                    _check_range(formula, least.as_py(), most.as_py())
                if duplicates:
                    table = duplicates.joined(table, found)
                yield self._with_all(table, labels)
            if rows != kind.rows_expected:
                raise DarkroomError(f"{kind.name}: images of {rows} rows where {kind.rows_expected} are planned")
            self.spans[kind.name] = start, number
            start += number

    def _with_all(self, table: pa.Table, labels: Labels | None) -> pa.Table:
        """The table with every column, null where its kind has none."""
        found = []
        for one in self.schema:
            if one.name == "label":
                given = [labels.of(key) for key in table["key"].to_pylist()] if labels else [None] * len(table)
                found.append(pa.array(given, pa.string()))
            elif one.name in table.column_names:
                found.append(table[one.name].cast(one.type))
            else:
                found.append(pa.nulls(len(table), one.type))
        return pa.table(found, schema=self.schema)

    def own_types(self) -> dict[str, Type]:
        """The user's own fields, of all kinds, and their types."""
        every = FieldTypes()
        for types in self.fields.values():
            every.join(types)
        return {name: every.named(name) for name in every.order}

    @property
    def number(self) -> int:
        """How many images there are."""
        return sum(number for _, number in self.spans.values())

    def parts(self, names: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Columns of all images, part by part; None: all of them."""
        chosen = None if names is None else [self.schema.get_field_index(name) for name in names]
        self.file.seek(0)
        with pa.ipc.open_file(
            self.file, options=pa.ipc.IpcReadOptions(included_fields=chosen, use_threads=False)
        ) as reader:
            for number in range(reader.num_record_batches):
                yield pa.Table.from_batches([reader.get_batch(number)])

    def of_kind(self, kind: str, names: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of the images of a kind."""
        start, number = self.spans[kind]
        at = 0
        for part in self.parts(names):
            first, last = max(start, at), min(start + number, at + len(part))
            if first < last:
                yield part.slice(first - at, last - first)
            at += len(part)

    def own_rows(self, part: pa.Table) -> Iterator[OwnRows]:
        """The user's own fields of the images of a part, kind by kind. part: has the columns `kind` and `fields`."""
        order = {kind.name: kind.plan.order for kind in self.kinds}
        runs = part["kind"].combine_chunks()
        starts = [0, *(np.flatnonzero(pc.not_equal(runs[1:], runs[:-1]).to_numpy(zero_copy_only=False)) + 1), len(part)]
        for start, end in itertools.pairwise(starts):
            if end > start:
                fields = part[FIELDS].slice(start, end - start).combine_chunks()
                yield OwnRows(fields, order[runs[int(start)].as_py()])


def _check_range(formula: Computed, least: float | None, most: float | None) -> None:
    """Raises DarkroomError where values of a formula are not between what the config says, but for a rounding."""
    little = 1e-9 * (formula.high - formula.low)
    if least is not None and most is not None and not formula.low - little <= least <= most <= formula.high + little:
        low, high = min(least, formula.low), max(most, formula.high)
        raise DarkroomError(
            f"config: {formula.where}: there are values from {least:g} to {most:g}, and it says {formula.low:g} to {formula.high:g}; write"
            f" {{formula: ..., low: {low:g}, high: {high:g}}}"
        )
