"""Read the rows of a file, whatever its format, each with its number and, where it cannot be parsed, the reason."""

import ast
import base64
import codecs
import contextlib
import csv
import datetime
import decimal
import gzip
import io
import itertools
import json
import math
import tarfile
import tokenize
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NoReturn, cast

from darkroom.errors import DarkroomError
from darkroom.identity import canonical
from darkroom.rows.fields import INTEGERS, PLAIN, Fields
from darkroom.rows.made import ENDINGS, read_made
from darkroom.rows.pictures import Pictures, held, without_pictures

MAX_LINE_BYTES = 16 * 2**20
MAX_DEPTH = 100  # far below Python's recursion limit, so that what was read can be written at any stack depth
MAX_FILE_BYTES = 256 * 2**20  # of an image file
TEXT = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")  # each also with .gz
TAR = (".tar", ".tar.gz", ".tgz")
_PICTURES = frozenset("png jpg jpeg webp bmp gif tif tiff ppm".split())
_SAMPLE = 2**16  # bytes that tell an encoding
_CHUNK = 2**16  # characters of a JSON array read at once
_BOM = "\ufeff"

Line = tuple[int, bytes, dict[str, Any] | None, str | None]


def ending(path: str | Path) -> str:
    """The ending that says how a file is read, without .gz: ".jsonl", ".csv", ".tar", ...; "" for one that says nothing."""
    name = Path(path).name.lower()
    if name.endswith(TAR):
        return ".tar"
    suffix = PurePosixPath(name.removesuffix(".gz")).suffix
    return suffix if suffix in TEXT or (suffix in (".parquet", *ENDINGS) and not name.endswith(".gz")) else ""


def written_as(paths: Sequence[Path], fields: Fields = PLAIN) -> str:
    """The ending of one file that gives the rows of these back: theirs where all have one that can name pictures, else .jsonl.

    A .json file holds an array; rows in lines go back as .jsonl whatever their file was called.
    """
    found = {ending(path) for path in paths}
    if found == {".json"} and not all(_is_array(path, fields) for path in paths):
        return ".jsonl"
    if len(found) > 1 or not found <= {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"}:
        return ".jsonl"
    return found.pop() + (".gz" if all(path.name.lower().endswith(".gz") for path in paths) else "")


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb")


def _is_array(path: Path, fields: Fields) -> bool:
    with _open(path) as stream:
        head = stream.peek(_SAMPLE)[:_SAMPLE]
        return head.decode(_encoding(head, fields), "ignore").lstrip(f"{_BOM} \t\r\n")[:1] == "["


def read_rows(path: str | Path, fields: Fields = PLAIN, pictures: Pictures | None = None) -> Iterator[Line]:
    """Yield (number from 1, raw bytes, row or None, reason or None) for each row of `path`.

    The number is that of the line; of a CSV record that of its last line (the header is line 1); in a JSON array, Parquet and
    tar files, and of made rows, rows are counted. Blank lines are not rows.

    Args:
        path: its name decides how it is read, see `ending`.
        fields: which columns of a CSV hold numbers and lists; how text is encoded and a CSV delimited, where that is said.
        pictures: takes the pictures that the row which is yielded holds; the reader of the rows clears it.

    Raises:
        DarkroomError: the file cannot be read at all.
    """
    path = Path(path)
    kind = ending(path)
    try:
        if kind == ".parquet":
            yield from _read_parquet(path, pictures)
        elif kind == ".tar":
            yield from _read_tar(path, fields, pictures)
        elif kind in ENDINGS:
            for number, made in enumerate(read_made(path).draw(), 1):
                yield number, json.dumps(made, ensure_ascii=False).encode(), made, None
        elif kind:
            with _open(path) as stream:
                encoding = _encoding(stream.peek(_SAMPLE)[:_SAMPLE], fields)
                if kind in (".csv", ".tsv"):
                    yield from _read_csv(path, stream, encoding, kind, fields, pictures)
                elif kind == ".json" and _is_array(path, fields):
                    yield from _read_array(path, stream, encoding, fields, pictures)
                elif kind == ".txt":
                    yield from _read_text(path, stream, encoding, fields)
                else:
                    yield from _read_jsonl(path, stream, encoding, fields, pictures)
        else:
            raise DarkroomError(
                f"{path}: unknown kind of file; use .jsonl, .json, .csv, .tsv or .txt (also with .gz), .parquet, .tar, or .yaml for made rows"
            )
    except (OSError, EOFError, UnicodeError, csv.Error, zlib.error, tarfile.TarError) as error:
        raise DarkroomError(f"{path}: cannot be read: {error}") from error


# ------------------------------------------------------------------------------------------------ text


def _encoding(head: bytes, fields: Fields) -> str:
    """The encoding of a file that begins with `head`, for Python's codecs; UTF-8 where nothing says otherwise."""
    if fields.encoding:
        return fields.encoding
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
    marks |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # after UTF-32, which begins alike
    for mark, encoding in marks.items():
        if head.startswith(mark):
            return encoding
    if len(head) >= 16:  # in UTF-16 every other byte of plain letters is NUL
        nul = [head[side::2].count(0) / len(head[side::2]) for side in (0, 1)]
        if max(nul) > 0.7 and min(nul) == 0:
            return "utf-16-le" if nul[1] else "utf-16-be"
    return "utf-8"


def _undecodable(path: Path, fields: Fields = PLAIN, place: str = "") -> str:
    """Why text that cannot be decoded is of no use, with what a file looks like that says nothing; place: " at byte 7"."""
    if fields.encoding:
        return f"not {fields.encoding}, which `rows.encoding` says it is"
    with contextlib.suppress(OSError, EOFError, zlib.error, ImportError):
        from charset_normalizer import from_bytes

        with _open(path) as stream:
            found = from_bytes(stream.read(_SAMPLE)).best()
        if found is not None and found.encoding not in ("ascii", "utf_8"):
            said = (
                f"it looks like {found.encoding}; save the file as UTF-8, or say `rows: {{encoding: {found.encoding}}}`"
            )
            return f"not UTF-8{place}; {said}"
    return f"not UTF-8{place}; save the file as UTF-8, or say what it is under `rows.encoding`"


class _Recoded:
    """A stream of text in another encoding, as lines of UTF-8."""

    def __init__(self, stream: BinaryIO, encoding: str, errors: str):
        self.text = io.TextIOWrapper(stream, encoding, errors, newline="\n")

    def readline(self, limit: int) -> bytes:
        return self.text.readline(limit).encode("utf-8", "surrogatepass")


def _lines(stream: BinaryIO, encoding: str, fields: Fields) -> Iterator[tuple[int, bytes, bool]]:
    """(number, line, whether it is too long) of every line that is not blank, in UTF-8 where the file says its encoding."""
    # What is said may be wrong in some lines, which are rejected then; what the file says is right.
    errors = "surrogateescape" if fields.encoding else "strict"
    read = stream if encoding.startswith("utf-8") else _Recoded(stream, encoding, errors)
    number = 0
    while raw := read.readline(MAX_LINE_BYTES):
        number += 1
        if len(raw) >= MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while (rest := read.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, raw[:1000], True
            continue
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        raw = raw.strip()
        if raw:
            yield number, raw, False


def _read_text(path: Path, stream: BinaryIO, encoding: str, fields: Fields) -> Iterator[Line]:
    """A prompt a line."""
    for number, raw, too_long in _lines(stream, encoding, fields):
        if too_long:
            yield number, raw, None, f"line longer than {MAX_LINE_BYTES} bytes"
            continue
        try:
            yield number, raw, {"prompt": raw.decode("utf-8")}, None
        except UnicodeDecodeError as error:
            yield number, raw, None, _undecodable(path, fields, f" at byte {error.start}")


# ------------------------------------------------------------------------------------------------ JSON


def _read_jsonl(
    path: Path, stream: BinaryIO, encoding: str, fields: Fields, pictures: Pictures | None
) -> Iterator[Line]:
    first = True
    for number, raw, too_long in _lines(stream, encoding, fields):
        if too_long:
            yield number, raw, None, f"line longer than {MAX_LINE_BYTES} bytes"
            continue
        row, reason = _parse_json(path, raw, pictures, fields)
        if first and reason and raw.startswith(b"["):
            reason += "; a file that is one array of rows must have a name that ends in .json"
        if first and reason and ending(path) == ".json" and raw.endswith((b"{", b"[", b":", b",")):
            raise DarkroomError(
                f"{path}: one object over several lines; give an array of objects, or one object a line"
            )
        first = False
        yield number, raw, row, reason


def _parse_json(
    path: Path, raw: bytes, pictures: Pictures | None, fields: Fields = PLAIN
) -> tuple[dict[str, Any] | None, str | None]:
    try:
        row = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return None, _undecodable(path, fields, f" at byte {error.start}")
    except RecursionError:
        return None, "nested too deeply"
    except ValueError as error:
        return None, f"not valid JSON: {error}"
    return _checked(row, pictures)


def _checked(row: Any, pictures: Pictures | None) -> tuple[dict[str, Any] | None, str | None]:
    """A parsed JSON value as a row, without its pictures, or why it is none."""
    try:
        text = _check_value(row)
    except UnicodeEncodeError:
        return None, "holds half of a surrogate pair, which is no character"
    except RecursionError:
        return None, "nested too deeply"
    except ValueError as error:
        return None, f"not valid JSON: {error}"
    if not isinstance(row, dict):
        return None, f"not a JSON object but {type_name(row)}"
    return (without_pictures(row, pictures) if _has_pictures(text) else row), None


def _has_pictures(text: bytes) -> bool:
    return b"data:image/" in text or b'"bytes":' in text


def _check_value(value: Any) -> bytes:
    """Canonical JSON. Raises for what could not be written again: a lone surrogate, an infinite number, too deep a nesting."""
    text = canonical(value)
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise RecursionError
    return text


def _is_deeper(value: Any, depth: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth < 0 or any(_is_deeper(part, depth - 1) for part in parts)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


class _ArrayText:
    """The text of a JSON array, of which a part at a time is in memory."""

    def __init__(self, path: Path, stream: BinaryIO, encoding: str):
        self.path, self.stream = path, io.TextIOWrapper(stream, encoding, "surrogateescape", newline="")
        self.buffer, self.place, self.line, self.ended = "", 0, 1, False
        self.decoder = json.JSONDecoder()

    def more(self) -> None:
        """Read on, twice as much as is waiting."""
        self.line += self.buffer.count("\n", 0, self.place)
        read = self.stream.read(max(_CHUNK, len(self.buffer) - self.place))
        self.ended = not read
        self.buffer, self.place = self.buffer[self.place :] + read, 0

    def next(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            while self.place < len(self.buffer) and self.buffer[self.place] in " \t\r\n":
                self.place += 1
            if self.place < len(self.buffer) or self.ended:
                return self.buffer[self.place : self.place + 1]
            self.more()

    def value(self) -> tuple[Any, str]:
        """The value that begins here, and its text."""
        while True:
            try:
                found, end = self.decoder.raw_decode(self.buffer, self.place)
                if end < len(self.buffer) or self.ended:  # else it may go on
                    text = self.buffer[self.place : end]
                    self.place = end
                    return found, text
            except RecursionError:
                self.fail("nested too deeply")
            except ValueError as error:
                if self.ended:
                    self.fail(str(error).partition(": line")[0])
            if len(self.buffer) - self.place > MAX_LINE_BYTES:
                self.fail(f"not valid JSON, or a row longer than {MAX_LINE_BYTES} characters")
            self.more()

    def fail(self, reason: str) -> NoReturn:
        line = self.line + self.buffer.count("\n", 0, self.place)
        raise DarkroomError(f"{self.path}, line {line}: not valid JSON: {reason}")


def _read_array(
    path: Path, stream: BinaryIO, encoding: str, fields: Fields, pictures: Pictures | None
) -> Iterator[Line]:
    text, number = _ArrayText(path, stream, encoding), 0
    if text.next() == _BOM:
        text.place += 1
        text.next()
    text.place += 1
    while (sign := text.next()) != "]" or number:
        if number and sign == "]":
            break
        if number:
            if sign != ",":
                text.fail("expected , or ] after a row")
            text.place += 1
            text.next()
        value, own = text.value()
        number += 1
        raw = own.encode("utf-8", "surrogateescape")
        if any("\udc80" <= letter <= "\udcff" for letter in own):
            yield number, raw, None, _undecodable(path, fields)
            continue
        row, reason = _checked(value, pictures)
        yield number, raw, row, reason
    text.place += 1
    if text.next():
        text.fail("more text after the array")


# ------------------------------------------------------------------------------------------------ CSV


def _read_csv(
    path: Path, stream: BinaryIO, encoding: str, kind: str, fields: Fields, pictures: Pictures | None
) -> Iterator[Line]:
    csv.field_size_limit(MAX_LINE_BYTES)
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding
    text = io.TextIOWrapper(stream, encoding, "surrogateescape", newline="")
    delimiter, before, head = "\t" if kind == ".tsv" else "", 0, text.readline(MAX_LINE_BYTES).removeprefix(_BOM)
    while head and (not head.strip() or head[:4].lower() == "sep="):
        if head[:4].lower() == "sep=":  # as Excel writes it
            delimiter = head[4:5].strip("\r\n") or delimiter
        before, head = before + 1, text.readline(MAX_LINE_BYTES)
    delimiter = fields.delimiter or delimiter or _delimiter(head, fields)
    fields = replace(fields, delimiter=delimiter)
    spaced = f"{delimiter} " in head  # a space after each delimiter is no part of what follows
    # strict: a quote left open would swallow all further rows
    reader = csv.reader(
        itertools.chain([head] if head else [], text), delimiter=delimiter, skipinitialspace=spaced, strict=True
    )
    last = before
    try:
        names = [name.strip() for name in next(reader, [])]
        last = before + reader.line_num
        try:
            "".join(names).encode("utf-8")
        except UnicodeEncodeError:
            raise DarkroomError(f"{path}: cannot be read: line {last} is {_undecodable(path, fields)}") from None
        if double := [name for name, count in Counter(names).items() if name and count > 1]:
            raise csv.Error(f"column {double[0]} is there twice")
        names = [name or f"column {place}" for place, name in enumerate(names, 1)]
        ours = [fields.ours(name) for name in names]
        for record in reader:
            last = before + reader.line_num
            if record:
                yield (last, *_csv_row(path, record, names, ours, fields, pictures))
    except csv.Error as error:
        raise csv.Error(f"after line {last}: {error}" if last > before else str(error)) from error


def _csv_row(
    path: Path, record: list[str], names: list[str], ours: list[str], fields: Fields, pictures: Pictures | None
) -> tuple[bytes, dict[str, Any] | None, str | None]:
    while len(record) > len(names) and not record[-1].strip():
        record.pop()
    cells = dict(zip(names, record, strict=False))
    line = json.dumps(cells, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    raw = line.encode("utf-8", "surrogateescape")
    if len(record) > len(names):
        told = f"has {len(record) - len(names)} more cells than the header"
        return raw, None, f"{told}; cells end at {fields.delimiter!r}, `rows.delimiter` names another sign"
    row: dict[str, Any] = {}
    for name, our, cell in zip(names, ours, record, strict=False):
        if not cell:
            continue
        try:
            cell.encode("utf-8")
            row[name] = _csv_value(our, cell)
        except UnicodeEncodeError:
            return raw, None, f"{name}: {_undecodable(path, fields)}"
        except (ValueError, RecursionError):
            return raw, None, f"{name}: not valid JSON: {cell[:60]}"
    return raw, (without_pictures(row, pictures) if _has_pictures(raw) else row), None


def _delimiter(head: str, fields: Fields) -> str:
    """The delimiter of a CSV with this header: the one that finds a field we know, else the one that finds most."""
    known = fields.known()

    def found(delimiter: str) -> tuple[int, int]:
        try:
            names = [name.strip() for name in next(csv.reader([head], delimiter=delimiter, skipinitialspace=True), [])]
        except csv.Error:
            return 0, 0
        return len(known.intersection(names)), len(names)

    return max(",;\t|", key=found)  # the first of equals


def _csv_value(our: str, text: str) -> Any:
    """A CSV cell as the JSON value that our field `our` has in JSONL."""
    if our in INTEGERS:
        try:
            return int(text)
        except ValueError:
            pass
    if our in INTEGERS or our == "guidance":
        try:
            return float(text)  # also 512.0 for a width, as data frames write a column with gaps
        except ValueError:
            return text
    if our in ("conversations", "conversation", "images", "edited_images") and text.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except ValueError:
            value = _python_value(text)
        try:
            _check_value(value)
        except UnicodeEncodeError as error:  # an escape in the JSON, not a bad byte in the file
            raise ValueError("half of a surrogate pair") from error
        except TypeError as error:  # such as a set, or bytes
            raise ValueError("not a JSON value") from error
        return value
    return text


def _python_value(text: str) -> Any:
    """A list or an object as Python prints it, which is what pandas puts into a cell. Raises ValueError."""
    try:
        value = ast.literal_eval(text.strip())
        strings = [False, *(token.type == tokenize.STRING for token in _tokens(text))]
    except (SyntaxError, MemoryError, TypeError, tokenize.TokenError) as error:
        raise ValueError("neither JSON nor a Python value") from error
    if any(one and other for one, other in itertools.pairwise(strings)):  # numpy's ['a' 'b'] would be read as ['ab']
        raise ValueError("no comma between two texts")
    return value


def _tokens(text: str) -> list[tokenize.TokenInfo]:
    passed = (tokenize.NL, tokenize.NEWLINE)
    return [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in passed]


# ------------------------------------------------------------------------------------------------ Parquet


def _read_parquet(path: Path, pictures: Pictures | None) -> Iterator[Line]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            if double := [name for name, count in Counter(file.schema_arrow.names).items() if count > 1]:
                raise DarkroomError(f"{path}: cannot be read: column {double[0]} is there twice")
            # Pictures lie in columns of bytes, some megabytes each.
            size = 16 if "binary" in str(file.schema_arrow) else 1024
            for batch in file.iter_batches(batch_size=size):
                for record in _records(_without_nanoseconds(batch)):
                    number += 1
                    if isinstance(record, dict):
                        yield (number, *_parquet_row(record, pictures))
                    else:
                        yield number, f"row {number}".encode(), None, f"holds what Python cannot: {record}"
    except pa.ArrowException as error:
        raise DarkroomError(f"{path}: cannot be read as Parquet, after row {number}: {error}") from error


def _records(batch: Any) -> Iterator[dict[str, Any] | Exception]:
    """The rows of a batch; in place of one that Python cannot hold, such as a year beyond 9999, the error."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):  # nothing was yielded: all rows are converted first
        pass
    for place in range(len(batch)):
        try:
            yield batch.slice(place, 1).to_pylist()[0]
        except (ValueError, OverflowError) as error:
            yield error


def _parquet_row(record: dict[str, Any], pictures: Pictures | None) -> tuple[bytes, dict[str, Any] | None, str | None]:
    row = _without_nulls(record)
    try:
        text = _check_value(row)
    except (TypeError, ValueError, RecursionError):
        try:
            row = _json_value(record, pictures)
            text = _check_value(row)
        except (TypeError, ValueError, RecursionError):
            return repr(record)[:1000].encode("utf-8", "replace"), None, _not_json(record)
    return text, (without_pictures(row, pictures) if _has_pictures(text) else row), None


def _without_nanoseconds(batch: Any) -> Any:
    """Times in microseconds, which is what Python's hold, where they are finer."""
    import pyarrow as pa

    def plain(type_: Any) -> Any:
        if pa.types.is_timestamp(type_) and type_.unit == "ns":
            return pa.timestamp("us", type_.tz)
        if pa.types.is_time64(type_):
            return pa.time64("us")
        if pa.types.is_duration(type_):
            return pa.duration("us")
        if pa.types.is_struct(type_):
            return pa.struct([field.with_type(plain(field.type)) for field in type_])
        if pa.types.is_list(type_):
            return pa.list_(type_.value_field.with_type(plain(type_.value_type)))
        return type_

    types = [plain(type_) for type_ in batch.schema.types]
    if types == batch.schema.types:
        return batch
    columns = [column.cast(type_, safe=False) for column, type_ in zip(batch.columns, types, strict=True)]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _json_value(value: Any, pictures: Pictures | None) -> Any:
    """A value of a Parquet file as JSON: times as ISO 8601 has them, a number that is none as null, which is left out."""
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes) and value.keys() <= {"bytes", "path"}:
            return held(value["bytes"], value.get("path"), pictures)
        found = {str(key): _json_value(item, pictures) for key, item in value.items()}
        return {key: item for key, item in found.items() if item is not None}
    if isinstance(value, list):
        return [_json_value(item, pictures) for item in value]
    if isinstance(value, tuple):  # of a map
        return [_json_value(item, pictures) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else value if math.isfinite(value) else str(value)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        if value == value.to_integral_value():
            return int(value)
        return float(value) if decimal.Decimal(repr(float(value))) == value else str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value if value is None or isinstance(value, str | int) else str(value)


def _not_json(row: dict[str, Any]) -> str:
    """Which field of a Parquet record is no JSON value, and why."""
    for name, value in row.items():
        try:
            _check_value(_json_value(value, {}))
        except RecursionError:
            return f"{name}: nested too deeply"
        except (TypeError, ValueError) as error:
            return f"{name}: not a JSON value: {error}"
    return "not a JSON value"


def _without_nulls(value: Any) -> Any:
    """Drop null fields: Parquet gives every row every field, where a JSONL row would leave them out."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


# ------------------------------------------------------------------------------------------------ tar


def _read_tar(path: Path, fields: Fields, pictures: Pictures | None) -> Iterator[Line]:
    """A WebDataset: files that stand together and have one name up to the first dot are a row."""
    number, key, parts = 0, None, {}
    with tarfile.open(path, "r|*") as tar:
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            stem, dot, kind = name.partition(".")
            if not member.isfile() or not stem or not dot:
                continue
            if key not in (None, f"{folder}/{stem}") and parts:
                number += 1
                yield (number, *_tar_row(str(key), parts, fields, pictures))
                parts = {}
            key = f"{folder}/{stem}"
            size = member.size
            data = cast(BinaryIO, tar.extractfile(member)).read() if size <= MAX_FILE_BYTES else None
            parts[kind.lower()] = data if kind.lower() not in parts else None
    if parts:
        yield (number + 1, *_tar_row(str(key), parts, fields, pictures))


def _tar_row(
    key: str, parts: dict[str, bytes | None], fields: Fields, pictures: Pictures | None
) -> tuple[bytes, dict[str, Any] | None, str | None]:
    row: dict[str, Any] = {"__key__": key.removeprefix("/")}
    raw = json.dumps(row | {"files": sorted(parts)}, ensure_ascii=False).encode("utf-8", "surrogateescape")
    shown: dict[str, Any] = {}
    for kind, data in parts.items():
        if data is None:
            return raw, None, f".{kind}: there twice, or larger than {MAX_FILE_BYTES} bytes"
        if kind.rpartition(".")[2] in _PICTURES:
            shown[kind] = held(data, f"{key.removeprefix('/')}.{kind}", pictures)
        elif kind == "json":
            found, reason = _parse_json(Path(f"{key}.json"), data, pictures)
            if found is None:
                return raw, None, f".json: {reason}"
            row = found | {name: value for name, value in row.items() if name not in found}
        elif len(data) <= MAX_LINE_BYTES:
            try:
                row[kind] = data.decode("utf-8").strip()
            except UnicodeDecodeError:
                row[kind] = base64.b64encode(data).decode("ascii")
        else:
            return raw, None, f".{kind}: larger than {MAX_LINE_BYTES} bytes"
    if "prompt" not in fields.names and not {"prompt", "conversations", "conversation", "messages"} & row.keys():
        for kind in ("txt", "text", "caption"):
            if kind in row:
                row["prompt"] = row.pop(kind)
                break
    if "images" in fields.names or "images" in row or not shown:
        row |= shown
    else:
        sources = {kind: picture for kind, picture in shown.items() if kind.startswith("source.")}
        row["images"] = list((sources or shown).values())
        if sources and len(shown) > len(sources):
            row["edited_images"] = [picture for kind, picture in shown.items() if kind not in sources]
    try:
        _check_value(row)
    except (ValueError, RecursionError):
        return raw, None, "its name is no UTF-8 text"
    return raw, row, None
