"""Read the user's rows from JSONL (plain or .gz), CSV or Parquet, in every form that a row can have.

A *row* is one line of the user's file. `read_rows` yields each line with its number, parsed or with the reason
why it could not be; nothing is dropped. `parse_row` turns a parsed line into a *normal row*, a JSON object

    {"id", "items": [{"prompt", "source"?, "given"?}], "options": {...}, "row": <the user's own row>}

with one item per image a sample makes: a prompt (text to image), or an instruction with its source (edits).
`source` and `given` are `{"path": ...}` or `{"row", "item", "sample"}` (an image that this run generates);
`given` marks an image that exists already and is only to be judged.
"""

import csv
import gzip
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from darkroom.errors import DarkroomError, RowError
from darkroom.identity import canonical, digest

MAX_LINE_BYTES = 16 * 2**20
MAX_PROMPT_CHARACTERS = 20_000
MAX_ITEMS = 1_000
MAX_SIDE = 8192  # pixels
MAX_FILE_BYTES = 256 * 2**20  # of an image file
MAX_DEPTH = 100  # far below Python's recursion limit, so that what was read can be written at any stack depth

# Fields that mean something here; all others are the user's own and are carried through to every table.
KNOWN_FIELDS = frozenset(
    "id prompt conversations conversation images edited_images seed width height steps guidance negative_prompt"
    " samples".split()
)
_INTEGERS = {
    "seed": (0, 2**53 - 1),
    "width": (16, MAX_SIDE),
    "height": (16, MAX_SIDE),
    "steps": (1, 1000),
    "samples": (1, 1000),
}


def read_rows(path: str | Path) -> Iterator[tuple[int, bytes, dict[str, Any] | None, str | None]]:
    """Yield (line number from 1, raw bytes, row or None, reason or None) for each row of `path`.

    The file's name decides how it is read: .jsonl, .ndjson or .json (one object a line) or .csv, each with or without
    .gz, or .parquet. Blank lines are not rows. The line number of a CSV record is that of its last line (the header is
    line 1); that of a Parquet record counts records.

    Raises:
        DarkroomError: the file cannot be read at all.
    """
    path = Path(path)
    name = path.name.lower().removesuffix(".gz")
    suffix = PurePosixPath(name).suffix
    zipped = path.name.lower().endswith(".gz")
    try:
        if suffix in (".jsonl", ".ndjson", ".json"):
            with gzip.open(path, "rb") if zipped else open(path, "rb") as stream:
                yield from _read_jsonl(cast(BinaryIO, stream))
        elif suffix == ".csv":
            with gzip.open(path, "rb") if zipped else open(path, "rb") as stream:
                text = io.TextIOWrapper(cast(BinaryIO, stream), "utf-8-sig", "surrogateescape", newline="")
                yield from _read_csv(text)
        elif suffix == ".parquet" and not zipped:
            yield from _read_parquet(path)
        else:
            raise DarkroomError(f"{path}: unknown kind of file; use .jsonl, .jsonl.gz, .csv or .parquet")
    except (OSError, EOFError, UnicodeError, csv.Error, zlib.error) as error:
        raise DarkroomError(f"{path}: cannot be read: {error}") from error


def _read_jsonl(stream: BinaryIO) -> Iterator[tuple[int, bytes, dict[str, Any] | None, str | None]]:
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES):
        number += 1
        if len(raw) >= MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, raw[:1000], None, f"line longer than {MAX_LINE_BYTES} bytes"
            continue
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        raw = raw.strip()
        if raw:
            row, reason = _parse_json(raw)
            yield number, raw, row, reason


def _parse_json(raw: bytes) -> tuple[dict[str, Any] | None, str | None]:
    try:
        row = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
        _check_value(row)
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 at byte {error.start}"
    except UnicodeEncodeError:
        return None, "holds half of a surrogate pair, which is no character"
    except RecursionError:
        return None, "nested too deeply"
    except ValueError as error:
        return None, f"not valid JSON: {error}"
    if not isinstance(row, dict):
        return None, f"not a JSON object but {_type_name(row)}"
    return row, None


def _check_value(value: Any) -> None:
    """Raise for what could not be written again: a lone surrogate, an infinite number, too deep a nesting."""
    text = canonical(value)
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise RecursionError


def _is_deeper(value: Any, depth: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth < 0 or any(_is_deeper(part, depth - 1) for part in parts)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _read_csv(stream: Any) -> Iterator[tuple[int, bytes, dict[str, Any] | None, str | None]]:
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.DictReader(stream, strict=True)  # strict: a quote left open would swallow all further rows
    if double := [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]:
        raise csv.Error(f"column {double[0]} is there twice")
    "".join(reader.fieldnames or ()).encode("utf-8")
    while True:
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise csv.Error(f"after line {reader.line_num}: {error}") from error
        if record is None:
            return
        number = reader.line_num
        surplus = record.pop(None, None)
        cells = {key: value for key, value in record.items() if value is not None}
        line = json.dumps(cells, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        raw = line.encode("utf-8", "surrogateescape")
        if surplus is not None:
            yield number, raw, None, f"has {len(surplus)} more cells than the header"
            continue
        row: dict[str, Any] = {}
        reason = None
        for key, text in record.items():
            if not text:
                continue
            try:
                text.encode("utf-8")
                row[key] = _csv_value(key, text)
            except UnicodeEncodeError:
                reason = f"{key}: not UTF-8"
            except (ValueError, RecursionError):
                reason = f"{key}: not valid JSON: {text[:60]}"
        yield number, raw, None if reason else row, reason


def _csv_value(key: str, text: str) -> Any:
    """A CSV cell as the JSON value that the field of this name has in JSONL."""
    if key in _INTEGERS:
        try:
            return int(text)
        except ValueError:
            pass
    if key in _INTEGERS or key == "guidance":
        try:
            return float(text)  # also 512.0 for a width, as data frames write a column with gaps
        except ValueError:
            return text
    if key in ("conversations", "conversation", "images", "edited_images") and text.lstrip()[:1] in ("[", "{"):
        value = json.loads(text, parse_constant=_refuse_constant)
        try:
            _check_value(value)
        except UnicodeEncodeError as error:  # an escape in the JSON, not a bad byte in the file
            raise ValueError("half of a surrogate pair") from error
        return value
    return text


def _read_parquet(path: Path) -> Iterator[tuple[int, bytes, dict[str, Any] | None, str | None]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    row = _without_nulls(record)
                    try:
                        _check_value(row)
                        raw, reason = canonical(row), None
                    except (TypeError, ValueError, RecursionError):
                        raw, reason = repr(record)[:1000].encode(), _not_json(row)
                        row = None
                    yield number, raw, row, reason
    except pa.ArrowException as error:
        raise DarkroomError(f"{path}: cannot be read as Parquet: {error}") from error


def _not_json(row: dict[str, Any]) -> str:
    """Which field of a Parquet record is no JSON value, and why."""
    for name, value in row.items():
        try:
            _check_value(value)
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


def parse_row(row: dict[str, Any], kind: str) -> dict[str, Any]:
    """The normal row (see the module's docstring) of a user's row, without its id.

    Relative paths stay relative (to the folder of the user's file), so that nothing made from a row depends on where the
    file lies.

    Args:
        row: the user's row.
        kind: "prompts" (text to image, and images to be judged) or "edits".

    Raises:
        RowError: the row cannot be used; the message is the reason.
    """
    turns = _turns(row)
    options = _options(row)
    images = _images(row, "images")
    if kind == "edits":
        items = _edit_items(turns, images, _images(row, "edited_images"))
    else:
        items = _prompt_items(turns, images)
    if len(items) > MAX_ITEMS:
        raise RowError(f"asks for {len(items)} images a sample; at most {MAX_ITEMS}")
    return {"items": items, "options": options, "row": row}


def row_id(row: dict[str, Any]) -> str | None:
    """The row's own id as text, or None if it has none. Raises RowError if it is neither text nor a whole number."""
    own = row.get("id")
    if own is None or own == "":
        return None
    if isinstance(own, bool) or not isinstance(own, str | int):
        raise RowError(f"id: expected text or a whole number, got {_type_name(own)}")
    own = str(own)
    if len(own) > 500:
        raise RowError("id: longer than 500 characters")
    return _text(own, "id")


def content_id(row: dict[str, Any], occurrence: int) -> str:
    """The id of a row that has none: a hash of its content and, from the second equal row on, its occurrence number."""
    return digest([row] if occurrence == 0 else [row, occurrence], 20)


def further_fields(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row that Darkroom does not know, in their order."""
    return {key: value for key, value in row.items() if key not in KNOWN_FIELDS}


def _turns(row: dict[str, Any]) -> list[str]:
    """The non-empty texts of a row: of its conversation, or its `prompt`."""
    name = next((key for key in ("conversations", "conversation") if row.get(key) is not None), None)
    if name is None:
        prompt = row.get("prompt")
        if prompt is None:
            raise RowError("has neither prompt nor conversations")
        if not isinstance(prompt, str):
            raise RowError(f"prompt: expected text, got {_type_name(prompt)}")
        texts = [prompt]
    else:
        turns = row[name]
        if isinstance(turns, dict):
            turns = [turns]
        if not isinstance(turns, list):
            raise RowError(f"{name}: expected a list of turns, got {_type_name(turns)}")
        texts = []
        for number, turn in enumerate(turns, 1):
            content = turn.get("content", turn.get("value")) if isinstance(turn, dict) else turn
            if content is None:
                continue
            if not isinstance(content, str):
                raise RowError(f"{name}: the content of turn {number} is {_type_name(content)}, not text")
            texts.append(content)
    texts = [_text(text, "prompt") for text in texts if text.strip()]
    if not texts:
        raise RowError("the prompt is empty")
    for text in texts:
        if len(text) > MAX_PROMPT_CHARACTERS:
            raise RowError(f"a prompt of {len(text)} characters; at most {MAX_PROMPT_CHARACTERS}")
    return texts


def _text(text: str, name: str) -> str:
    if "\0" in text:
        raise RowError(f"{name}: holds a NUL character")
    return text


def _options(row: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, (least, greatest) in _INTEGERS.items():
        value = row.get(name)
        if value is None:
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= greatest:
            raise RowError(f"{name}: expected a whole number from {least} to {greatest}, got {_show(value)}")
        options[name] = value
    guidance = row.get("guidance")
    if guidance is not None:
        if isinstance(guidance, bool) or not isinstance(guidance, int | float) or not 0 <= guidance <= 100:
            raise RowError(f"guidance: expected a number from 0 to 100, got {_show(guidance)}")
        options["guidance"] = float(guidance)
    negative = row.get("negative_prompt")
    if negative is not None:
        if not isinstance(negative, str) or len(negative) > MAX_PROMPT_CHARACTERS:
            raise RowError(f"negative_prompt: expected text of at most {MAX_PROMPT_CHARACTERS} characters")
        if negative.strip():
            options["negative_prompt"] = _text(negative, "negative_prompt")
    return options


def _images(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    value = row.get(name)
    if value is None:
        return []
    entries = value if isinstance(value, list) else [value]
    return [_image(entry, name) for entry in entries if entry not in ("", None)]


def _image(entry: Any, name: str) -> dict[str, Any]:
    if isinstance(entry, str):
        if not entry.strip() or "\0" in entry:
            raise RowError(f"{name}: {_show(entry)} is not a file name")
        if not os.path.isabs(entry):
            inside = os.path.normpath(entry)
            if PurePosixPath(inside).parts[:1] == (os.pardir,):
                raise RowError(f"{name}: {_show(entry)} leads out of the rows' folder; give it as an absolute path")
            if inside == os.curdir:
                raise RowError(f"{name}: {_show(entry)} is not a file name")
            entry = inside
        return {"path": entry}
    if isinstance(entry, dict) and entry.get("row") not in (None, ""):
        if unknown := sorted(set(entry) - {"row", "item", "sample"}):
            raise RowError(f"{name}: unknown field {_show(unknown[0])} beside row, item and sample")
        reference: dict[str, Any] = {"row": str(entry["row"])}
        for part in ("item", "sample"):
            number = entry.get(part, 0)
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                raise RowError(f"{name}: {part} must be a whole number from 0, got {_show(number)}")
            reference[part] = number
        return reference
    raise RowError(f'{name}: expected file names or {{"row": id, "sample": number}}, got {_show(entry)}')


def _prompt_items(turns: list[str], images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every turn is an image of its own; images that are there already are judged by their turn, or by the last."""
    if not images:
        return [{"prompt": text} for text in turns]
    for image in images:
        if "row" in image:
            raise RowError("images: a row of prompts names files; images of this run belong into the edits file")
    texts = turns if len(turns) == len(images) else [turns[-1]] * len(images)
    return [{"prompt": text, "given": image} for text, image in zip(texts, images, strict=True)]


def _edit_items(turns: list[str], images: list[dict[str, Any]], edited: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last turn is the instruction; every source is edited by it, unless its result is there already."""
    if not images:
        raise RowError("images: an edit needs a source image")
    items = [{"prompt": turns[-1], "source": image} for image in images]
    if edited:
        if len(edited) != len(images):
            raise RowError(f"edited_images: {len(edited)} for {len(images)} source images; give one each, or none")
        for item, image in zip(items, edited, strict=True):
            if "row" in image:
                raise RowError("edited_images: expected file names")
            item["given"] = image
    return items


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
