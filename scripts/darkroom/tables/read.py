"""Read the table of all images."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from darkroom.store.shardfile import plain_meta
from darkroom.tables.fields import OwnField

_TYPES = {pa.string(): "text", pa.int64(): "int", pa.float64(): "float", pa.bool_(): "bool"}


class Table:
    """scores.parquet, with columns of ours under our names: the file calls them otherwise where a field of the user has the name.

    own: kind -> the fields of its user's rows, in their order; each is a column under its own name. names: of our columns -> those
    that they have in the file.
    """

    def __init__(self, path: Path):
        """Raises OSError or pyarrow.ArrowException where it is missing or damaged."""
        meta = plain_meta(path)
        self.path = path
        self.own = {kind: [OwnField(*field) for field in fields] for kind, fields in meta.get("fields", {}).items()}
        ours = {column: name for name, column in meta.get("moved", {}).items()}
        own = {field.name for fields in self.own.values() for field in fields}
        self._types = {one.name: one.type for one in pq.read_schema(path)}
        self.names = {ours.get(name, name): name for name in self._types if name not in own}

    @property
    def columns(self) -> dict[str, str]:
        """Our columns and their types, "text", "int", "float" or "bool"."""
        return {name: _TYPES[self._types[column]] for name, column in self.names.items()}

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """These columns of ours, in parts."""
        named = [self.names[name] for name in columns]
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(columns=named):
                yield pa.RecordBatch.from_arrays([batch[name] for name in named], names=list(columns))

    def records(self, at_once: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """(our columns, those of the user) of each image; at_once: how many are read together."""
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(at_once):
                for record in batch.to_pylist():
                    yield {name: record.pop(column) for name, column in self.names.items()}, record
