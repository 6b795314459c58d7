"""Shard files: one Parquet file per shard and stage.

Written to a temporary name and renamed, streamed in small row groups, and byte-identical when made twice: the
file's metadata holds the digest it was made for, the recipe, package versions and the kind of device, but no
time, host or path. Image columns are structs of bytes and path, marked so that Hugging Face `datasets` shows
them as pictures.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import pyarrow as pa
import pyarrow.parquet as pq

from darkroom.errors import DarkroomError
from darkroom.files import replacing
from darkroom.store.columns import EDITED_COLUMNS as EDITED_COLUMNS
from darkroom.store.columns import IMAGE_COLUMNS as IMAGE_COLUMNS
from darkroom.store.columns import Type as Type
from darkroom.store.manifest import Manifest, manifest_path, write_manifest

GROUP_ROWS = 64
GROUP_BYTES = 32 * 2**20
_META = b"darkroom"

_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_TYPES = {
    "text": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "bytes": pa.binary(),
    "picture": _PICTURE,
}
# The names that `datasets` has for them; a picture is a feature of its own.
DTYPES = {"text": "string", "int": "int64", "float": "float64", "bool": "bool", "bytes": "binary"}
_MARKED = {DTYPES.get(kind): type_ for kind, type_ in _TYPES.items()}


class StoredPicture(TypedDict):
    """bytes: the picture as a file; path: a name for it."""

    bytes: bytes
    path: str


class ImageRecord(TypedDict):
    """A record of a shard of pictures: `IMAGE_COLUMNS`, and of edits `EDITED_COLUMNS`; one that is read has the columns asked for.

    One with an `error` has no `image` and no `sha256`. fields: the user's own, as JSON.
    """

    key: str
    row: str
    item: int
    sample: int
    prompt: str
    negative_prompt: str | None
    seed: int | None
    width: int | None
    height: int | None
    steps: int | None
    guidance: float | None
    true_cfg: float | None
    origin: str
    sha256: str | None
    error: str | None
    fields: str
    image: StoredPicture | None
    source_name: NotRequired[str | None]
    source_origin: NotRequired[str | None]
    source_kind: NotRequired[str | None]
    source_parts: NotRequired[str | None]
    source_sha256: NotRequired[str | None]
    source: NotRequired[StoredPicture | None]


def arrow_schema(columns: Mapping[str, Type]) -> pa.Schema:
    """The Arrow schema of columns, with the features that `datasets` reads them as."""
    features = {name: _feature(type_) for name, type_ in columns.items()}
    marks = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([(name, arrow_type(type_)) for name, type_ in columns.items()], metadata=marks)


def arrow_type(type_: Type) -> pa.DataType:
    """What Arrow calls the type of a column."""
    if isinstance(type_, str):
        return _TYPES[type_]
    if "list" in type_:
        return pa.list_(arrow_type(type_["list"]))
    return pa.struct([(name, arrow_type(one)) for name, one in type_["struct"]])


def _feature(type_: Type) -> Any:
    if isinstance(type_, str):
        return {"_type": "Image"} if type_ == "picture" else {"dtype": DTYPES[type_], "_type": "Value"}
    if "list" in type_:
        return [_feature(type_["list"])]  # a form that all versions read
    return {name: _feature(one) for name, one in type_["struct"]}


def _type_of_feature(feature: Any) -> pa.DataType:
    if isinstance(feature, list) and feature:
        return pa.list_(_type_of_feature(feature[0]))
    if not isinstance(feature, dict):
        raise ValueError("its features are damaged")
    if isinstance(feature.get("_type"), str):
        return _MARKED[feature.get("dtype")]
    return pa.struct([(name, _type_of_feature(one)) for name, one in feature.items()])


def write_shard(
    path: str | Path, columns: Mapping[str, Type], records: Iterable[Mapping[str, Any]], meta: dict[str, Any]
) -> int:
    """Stream `records` into the shard file `path` and return their number. `meta` must be plain JSON."""
    schema = arrow_schema(columns)
    count = 0
    pictures = [name for name, kind in columns.items() if kind == "picture"]
    raw = [name for name, kind in columns.items() if kind == "bytes"]
    plain = [name for name, kind in columns.items() if isinstance(kind, str) and kind not in ("picture", "bytes")]
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(
            temporary,
            schema,
            use_dictionary=plain,
            compression=dict.fromkeys(plain, "zstd")
            | {f"{p}.{leaf}": "none" for p in pictures for leaf in ("bytes", "path")}
            | dict.fromkeys(raw, "none"),
            write_statistics=plain,
            write_page_checksum=True,
        ) as writer,
    ):
        group: list[Mapping[str, Any]] = []
        size = 0
        for record in records:
            group.append(record)
            size += sum(len(record[name]["bytes"]) for name in pictures if record.get(name))
            size += sum(len(record[name]) for name in raw)
            count += 1
            if len(group) >= GROUP_ROWS or size >= GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                group, size = [], 0
        if group:  # an empty row group is more than `datasets` can read
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
        writer.add_key_value_metadata(packed_meta(meta, count))
    return count


def write_shard_with_manifest(
    path: Path,
    columns: dict[str, str],
    records: Iterable[Mapping[str, Any]],
    meta: dict[str, Any],
    made_from: list[str],
) -> Manifest:
    """Stream `records` into the shard file `path` (see `write_shard`), and write its manifest.

    meta: must hold `digest` and, unless all records are counted by their `error`, `failed`. made_from: see `Manifest`.
    """
    plain = [name for name, kind in columns.items() if kind not in ("picture", "bytes")]
    content = hashlib.sha256()

    def hashed() -> Iterator[Mapping[str, Any]]:
        for record in records:
            # Pictures are known by the hashes that stand beside them.
            content.update(json.dumps([record.get(name) for name in plain], ensure_ascii=False).encode() + b"\n")
            yield record

    count = write_shard(path, columns, hashed(), meta)
    manifest = Manifest(
        digest=meta["digest"], records=count, failed=meta["failed"], content=content.hexdigest(), made_from=made_from
    )
    write_manifest(manifest_path(path), manifest)
    return manifest


def packed_meta(meta: dict[str, Any], records: int) -> dict[bytes, str]:
    """`meta` and the number of records as Parquet's key-value metadata, for `read_meta` to read."""
    return {_META: json.dumps(meta | {"records": records}, sort_keys=True)}


def read_meta(path: str | Path) -> dict[str, Any]:
    """The metadata of a shard file. Raises DarkroomError where it is missing or damaged."""
    with _opened(path) as file:
        return _meta(path, file)


def _meta(path: str | Path, file: pq.ParquetFile) -> dict[str, Any]:
    meta = (file.metadata.metadata or {}).get(_META)
    if meta is None:
        raise DarkroomError(f"{path}: not a shard of this workflow; move it away and run again")
    try:
        meta = json.loads(meta)
        return {"digest": meta["digest"], "rule": meta["rule"], "records": meta["records"]} | meta
    except (ValueError, KeyError) as error:
        raise DarkroomError(_damaged(path, error)) from error


def plain_meta(path: str | Path) -> dict[str, Any]:
    """The metadata of a Parquet file that need not be a shard file; {} where it holds none of ours."""
    return json.loads((pq.read_metadata(path).metadata or {}).get(_META, b"{}"))


def check_digest(path: str | Path, expected: str) -> dict[str, Any]:
    """The metadata of the shard file `path`, which must have been made for the digest `expected`."""
    return _checked(path, read_meta(path), expected)


def _checked(path: str | Path, meta: dict[str, Any], expected: str) -> dict[str, Any]:
    if meta["digest"] != expected:
        raise DarkroomError(
            f"{path}: stale, made for digest {meta['digest'][:12]} where {expected[:12]} is planned;"
            " run snakemake again, which keeps every image that is still good"
        )
    return meta


def read_columns(
    path: str | Path,
    columns: list[str] | None = None,
    leave_out: Collection[str] = (),
    expected: str | None = None,
) -> pa.Table:
    """Columns of a shard file, whole: those of `columns` that it has, or all but those to be left out.

    expected: the digest that it must have been made for, None for any. Raises DarkroomError where it is missing, stale or damaged.
    """
    with _opened(path) as file:
        if expected is not None:
            _checked(path, _meta(path, file), expected)
        wanted = columns if columns is not None else [one for one in file.schema_arrow.names if one not in leave_out]
        try:
            table = file.read(wanted, use_threads=False)
            table.validate(full=True)  # text that is no UTF-8
        except (OSError, pa.ArrowException) as error:
            raise DarkroomError(_damaged(path, error)) from error
    return table.replace_schema_metadata(None)


def iter_records(
    path: str | Path, columns: list[str] | None = None, without: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """The records of a shard file in order, one row group in memory at a time: all its columns unless told, and none of `without`."""
    with _opened(path) as file:
        if without:
            columns = [name for name in columns or file.schema_arrow.names if name not in without]
        for group in range(file.num_row_groups):
            yield from _plain(path, _table(path, file, group, columns))


def image_records(path: str | Path, columns: list[str] | None = None) -> Iterator[ImageRecord]:
    """The records of a shard of pictures, as `iter_records`."""
    return cast(Iterator[ImageRecord], iter_records(path, columns))


class GroupCache:
    """The row groups that were read last, of any files; most: how many are kept."""

    def __init__(self, most: int = 1):
        self.most = most
        self.tables: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()

    def get(self, key: tuple[str, int], read: Callable[[], pa.Table]) -> pa.Table:
        """The row group (file, number), which `read` reads where it is not kept."""
        if key not in self.tables:
            while len(self.tables) >= self.most:
                self.tables.popitem(last=False)
            self.tables[key] = read()
        self.tables.move_to_end(key)
        return self.tables[key]


class RecordReader:
    """Random access to the records of a shard of pictures by position.

    columns: those to read, None for all. groups: keeps what is read, for several readers of the same columns; by default each
    keeps its last row group.
    """

    def __init__(self, path: str | Path, columns: list[str] | None = None, groups: GroupCache | None = None):
        self.path, self.columns, self.groups = path, columns, groups or GroupCache()
        self.file = _opened(path)
        self.starts = [0]
        for group in range(self.file.num_row_groups):
            self.starts.append(self.starts[-1] + self.file.metadata.row_group(group).num_rows)

    def __getitem__(self, position: int) -> ImageRecord:
        group = next(g for g in range(len(self.starts)) if self.starts[g + 1] > position)
        table = self.groups.get((str(self.path), group), lambda: _table(self.path, self.file, group, self.columns))
        return cast(ImageRecord, _plain(self.path, table.slice(position - self.starts[group], 1))[0])


def _opened(path: str | Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        # Parquet has checksums of its pages, but none of the names and types at its end.
        marks = json.loads((file.metadata.metadata or {}).get(b"huggingface", b"null"))
        if marks:
            types = [(name, _type_of_feature(mark)) for name, mark in marks["info"]["features"].items()]
            if not file.schema_arrow.equals(pa.schema(types)):
                raise ValueError("its columns are not those it was written with")
        return file
    except FileNotFoundError as error:
        raise DarkroomError(f"{path}: no such file; run snakemake again") from error
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DarkroomError(_damaged(path, error)) from error


def _table(path: str | Path, file: pq.ParquetFile, group: int, columns: list[str] | None) -> pa.Table:
    try:
        return file.read_row_group(group, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise DarkroomError(_damaged(path, error)) from error


def _plain(path: str | Path, table: pa.Table) -> list[dict[str, Any]]:
    try:
        return table.to_pylist()
    except UnicodeDecodeError as error:
        raise DarkroomError(_damaged(path, error)) from error


def _damaged(path: str | Path, error: Exception) -> str:
    return f"{path}: damaged ({(str(error) or type(error).__name__).splitlines()[0]}); delete it and run again"
