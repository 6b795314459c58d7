"""A corpus of bad inputs, read as a run reads them: used correctly, or recorded with a reason that says what is wrong.

Rows and images that are good stand between them and must come out unharmed.
"""

import gzip
import io
import json
import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from conftest import read_requests
from darkroom.config.models import Generate
from darkroom.engines.work import ShardJob
from darkroom.errors import DarkroomError
from darkroom.make import make_shard
from darkroom.plan.shards import make_plan
from darkroom.store.scratch import Scratch
from darkroom.store.shardfile import iter_records
from darkroom.tables.kind import Kind, ShardFiles
from darkroom.tables.merge import write_rejected
from PIL import Image

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def row(**fields):
    return json.dumps(fields).encode()


def prompt(text, **fields):
    return row(prompt=text, **fields)


BIG = 16 * 2**20
# name -> (line, what the reason says; None: the row is used)
LINES = {
    "empty object": (b"{}", "has neither prompt nor conversations"),
    "array": (b'["a fox"]', "not a JSON object but a list"),
    "text": (b'"a fox"', "not a JSON object but text"),
    "number": (b"17", "not a JSON object but a number"),
    "null": (b"null", "not a JSON object but null"),
    "true": (b"true", "not a JSON object but true or false"),
    "cut off": (b'{"prompt": "a f', "not valid JSON: Unterminated string"),
    "single quotes": (b"{'prompt': 'a fox'}", "not valid JSON: Expecting property name"),
    "trailing comma": (b'{"prompt": "a fox",}', "not valid JSON"),
    "two objects": (b'{"prompt": "a"} {"prompt": "b"}', "not valid JSON: Extra data"),
    "plain text": (b"a fox in the snow", "not valid JSON: Expecting value"),
    "comment": (b"# a comment", "not valid JSON"),
    "NUL bytes": (b"\0\0\0\0", "not valid JSON"),
    "raw control character": (b'{"prompt": "a\x01b"}', "not valid JSON: Invalid control character"),
    "NaN": (b'{"prompt": "a", "guidance": NaN}', "NaN is not a JSON number"),
    "infinity": (b'{"prompt": "a", "x": -Infinity}', "-Infinity is not a JSON number"),
    "overflow": (b'{"prompt": "a", "x": 1e999}', "not valid JSON: Out of range"),
    "5000 digits": (b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}", "not valid JSON: Exceeds the limit"),
    "latin-1": ('{"prompt": "caf\xe9"}'.encode("latin-1"), "not UTF-8 at byte 15"),
    "UTF-16": ('{"prompt": "a"}'.encode("utf-16-le"), "not valid JSON"),
    "overlong UTF-8": (b'{"prompt": "\xc0\xaf"}', "not UTF-8 at byte 12"),
    "lone surrogate": (b'{"prompt": "a\\ud800b"}', "half of a surrogate pair"),
    "lone surrogate in a key": (b'{"prompt": "a", "\\udc00": 1}', "half of a surrogate pair"),
    "nested 100000 deep": (b'{"prompt": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "nested 990 deep": (b'{"prompt": "a", "x": ' + b"[" * 983 + b"]" * 983 + b"}", "nested too deeply"),
    "objects nested 300 deep": (b'{"prompt": "a", "x": ' + b'{"x":' * 300 + b"1" + b"}" * 301, "nested too deeply"),
    "line of 17 MB": (prompt("a" * 17 * 2**20), f"line longer than {BIG} bytes"),
    "prompt of 100 KB": (prompt("a cat " * 17_000), "a prompt of 102000 characters; at most 20000"),
    "empty prompt": (prompt(""), "the prompt is empty"),
    "blank prompt": (prompt(" \n\t\u3000"), "the prompt is empty"),
    "null prompt": (row(prompt=None), "has neither prompt nor conversations"),
    "prompt of a list": (row(prompt=["a"]), "prompt: expected text, got a list"),
    "prompt of a number": (row(prompt=5), "prompt: expected text, got a number"),
    "NUL in the prompt": (prompt("a\0b"), "prompt: holds a NUL character"),
    "no turns": (row(conversations=[]), "the prompt is empty"),
    "turns of numbers": (row(conversations=[{"content": 1}]), "the content of turn 1 is a number, not text"),
    "conversation of text": (row(conversations="a fox"), "conversations: expected a list of turns, got text"),
    "2000 turns": (row(conversations=["a"] * 2000), "asks for 2000 images a sample; at most 1000"),
    "id of a list": (prompt("a", id=["x"]), "id: expected text or a whole number, got a list"),
    "id of a fraction": (prompt("a", id=1.5), "id: expected text or a whole number, got a number"),
    "id of true": (prompt("a", id=True), "id: expected text or a whole number, got true or false"),
    "id of 600 characters": (prompt("a", id="x" * 600), "id: longer than 500 characters"),
    "NUL in the id": (prompt("a", id="a\0"), "id: holds a NUL character"),
    "id of an earlier row": (prompt("a", id="good 0"), "id 'good 0' was used by an earlier row"),
    "negative width": (prompt("a", width=-64), "width: expected a whole number from 16 to 8192, got -64"),
    "huge height": (prompt("a", height=10**6), "height: expected a whole number from 16 to 8192, got 1000000"),
    "width of text": (prompt("a", width="64"), 'width: expected a whole number from 16 to 8192, got "64"'),
    "no steps": (prompt("a", steps=0), "steps: expected a whole number from 1 to 1000, got 0"),
    "half a step": (prompt("a", steps=1.5), "steps: expected a whole number from 1 to 1000, got 1.5"),
    "a million samples": (prompt("a", samples=10**6), "samples: expected a whole number from 1 to 1000"),
    "seed of true": (prompt("a", seed=True), "seed: expected a whole number"),
    "seed beyond float64": (prompt("a", seed=2**53), "seed: expected a whole number from 0 to 9007199254740991"),
    "guidance of text": (prompt("a", guidance="high"), 'guidance: expected a number from 0 to 100, got "high"'),
    "negative prompt of a list": (prompt("a", negative_prompt=["b"]), "negative_prompt: expected text"),
    "images of a number": (prompt("a", images=5), "images: expected file names"),
    "images of objects": (prompt("a", images=[{"url": "x"}]), "images: expected file names"),
    "NUL in a path": (prompt("a", images=["a\0.png"]), "is not a file name"),
    "path that climbs out": (prompt("a", images=["x/../../secret.png"]), "leads out of the rows' folder"),
    "parent folder": (prompt("a", images=[".."]), "leads out of the rows' folder"),
    "the folder itself": (prompt("a", images=["./"]), "is not a file name"),
    "image of this run": (prompt("a", images=[{"row": "good 0"}]), "images of this run belong into the edits file"),
    "emoji": (prompt("a \U0001f98a in \U0001f3d4\ufe0f, \U0001f469\u200d\U0001f680"), None),
    "right to left": (prompt("\u062b\u0639\u0644\u0628 \u202eabc\u202c"), None),
    "line separators": (prompt("a\u2028b\u2029c\x85d\ve\ff\rg\nh"), None),
    "every escape": (b'{"prompt": "\\u0061\\t\\/\\ud83e\\udd8a"}', None),
    "HTML and shell": (prompt("<script>alert(1)</script> $(rm -rf ~) `x` {prompt} {0} %s ../../x"), None),
    "null fields": (row(prompt="a", images=None, width=None, id=None, samples=None, guidance=None), None),
    "empty images": (row(prompt="a", images=["", None]), None),
    "whole numbers as floats": (prompt("a", width=64.0, steps=2.0), None),
    "integers of 4000 digits": (b'{"prompt": "b", "x": ' + b"1" * 4000 + b"}", None),
    "field names of ours": (row(prompt="a", key="k", shard=1, error="none", sha256=[], selected=True), None),
    "null beside text": (row(conversations=[{"role": "system", "content": None}, {"content": "a"}, None]), None),
    "spaces and tabs around": (b' \t {"prompt": "c"} \t \r', None),
    "nested 50 deep": (b'{"prompt": "a", "x": ' + b"[" * 50 + b"]" * 50 + b"}", None),
    "duplicate keys": (b'{"prompt": "first", "prompt": "last"}', None),
}


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """name -> its line in the plan; good rows by theirs; every line has a number."""
    folder = tmp_path_factory.mktemp("lines")
    names, content = [], b"\xef\xbb\xbf"
    for number, (name, (line, _)) in enumerate(LINES.items()):
        names += [f"good {number}", name]
        content += row(id=f"good {number}", prompt=f"good prompt {number}") + b"\r\n" + line + b"\n"
    (folder / "rows.jsonl").write_bytes(content)
    plan = make_plan(folder / "rows.jsonl", "prompts", 10, folder / "results")
    found = list(plan.rows())
    assert len(found) == len(names)
    for number, (shard, line) in enumerate(found, 1):
        assert "rejected" not in line or plan.shards[shard].first_line + line["line"] == number
    return dict(zip(names, (line for _, line in found), strict=True)), plan


@pytest.mark.parametrize("name", LINES)
def test_a_bad_line_is_used_correctly_or_recorded_with_its_reason(lines, name):
    line, reason = lines[0][name], LINES[name][1]
    if reason is None:
        sent = json.loads(LINES[name][0])
        assert "rejected" not in line and line["row"] == sent
        assert line["items"][-1]["prompt"] == sent.get("prompt", "a")
    else:
        assert reason in line["rejected"] and "\n" not in line["rejected"]
        assert len(line["text"]) <= 2000


def test_good_rows_between_bad_lines_are_unharmed(lines):
    good = {name: line for name, line in lines[0].items() if name.startswith("good ")}
    assert len(good) == len(LINES)
    for name, line in good.items():
        assert line["id"] == name and line["items"] == [{"prompt": "good prompt " + name.removeprefix("good ")}]


def test_rejected_jsonl_tells_line_and_reason_of_every_bad_line(lines, tmp_path):
    plan = lines[1]
    for name in plan.names:
        (tmp_path / f"{name}.jsonl").write_bytes(plan.read(name))
    kind = Kind("images", plan, 1, ShardFiles.below(tmp_path, tmp_path, tmp_path), {}, {}, {})
    bad = [(2 * n + 2, reason) for n, (_, reason) in enumerate(LINES.values()) if reason]
    assert write_rejected([kind], tmp_path / "rejected.jsonl") == len(bad)
    told = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_bytes().split(b"\n")[:-1]]
    assert [record["line"] for record in told] == [number for number, _ in bad]
    assert all(reason in record["reason"] for record, (_, reason) in zip(told, bad, strict=True))


# Whole files that cannot be read, or only in part.


def planned(path):
    return [line for _, line in make_plan(path, "prompts", 10, path.parent / "results").rows()]


def stopped(path):
    with pytest.raises(DarkroomError) as error:
        planned(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


PLAIN = b"".join(prompt(f"a {number}") + b"\n" for number in range(300))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("rows.jsonl", b"", "holds no rows"),
        ("rows.jsonl", b"\n \n\t\n", "holds no rows"),
        ("rows.jsonl", b"\xef\xbb\xbf", "holds no rows"),
        ("rows.xlsx", PLAIN, "unknown kind of file; use .jsonl"),
        ("rows.parquet.gz", PLAIN, "unknown kind of file"),
        ("rows.jsonl.gz", PLAIN, "cannot be read: Not a gzipped file"),
        ("rows.jsonl.gz", gzip.compress(PLAIN)[:-100], "cannot be read: Compressed file ended"),
        ("rows.jsonl.gz", gzip.compress(PLAIN)[:20] + b"x" * 200, "cannot be read: Error -3"),
        ("rows.jsonl.gz", gzip.compress(PLAIN)[:-8] + b"x" * 8, "cannot be read: CRC check failed"),
        ("rows.csv", b"id,prompt\n", "holds no rows"),
        ("rows.csv", b'id,prompt\n1,a\n2,"b\n3,c\n', "after line 2: unexpected end of data"),
        ("rows.csv", b'prompt\na\n"b" c\n', "after line 2: ',' expected after '\"'"),
        ("rows.csv", b"prompt,prompt\na,b\n", "column prompt is there twice"),
        ("rows.csv", b"prompt,caf\xe9\na,b\n", "cannot be read"),
        ("rows.parquet", b"PAR1 no parquet PAR1", "cannot be read"),
        ("rows.parquet", b"", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_stops_in_one_line(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    assert reason in stopped(tmp_path / name)


def test_a_folder_or_a_missing_file_of_rows_stops_in_one_line(tmp_path):
    (tmp_path / "rows.jsonl").mkdir()
    assert "Is a directory" in stopped(tmp_path / "rows.jsonl")
    assert "No such file" in stopped(tmp_path / "gone.jsonl")


CELLS = {
    "fine": (b"a fox,64", None),
    "quoted": (b'"a ""red"" fox,\nin two lines",64', None),
    "float": (b"a fox,64.0", None),
    "no width": (b"a fox", None),
    "latin-1": (b"caf\xe9,64", "prompt: not UTF-8"),
    "too many cells": (b"a fox,64,1,2", "has 2 more cells than the header"),
    "width of text": (b"a fox,wide", 'width: expected a whole number from 16 to 8192, got "wide"'),
    "two signs": (b"a fox,--5", "width: expected a whole number"),
    "superscript": ("a fox,\u00b2".encode(), "width: expected a whole number"),
    "nan": (b"a fox,nan", "width: expected a whole number"),
    "infinity": (b"a fox,inf", "width: expected a whole number"),
    "5000 digits": (b"a fox," + b"1" * 5000, "width: expected a whole number"),
    "huge cell": (b"x" * 200_000 + b",64", "a prompt of 200000 characters"),
    "NUL": (b"a\0b,64", "prompt: holds a NUL character"),
}


def test_a_bad_record_of_a_csv_stops_no_other(tmp_path):
    records = [b"good,64\n" + cells for cells, _ in CELLS.values()]
    (tmp_path / "rows.csv").write_bytes(b"prompt,width\n" + b"\n".join(records) + b"\n")
    found = planned(tmp_path / "rows.csv")
    assert [line["items"][0]["prompt"] for line in found[::2]] == ["good"] * len(CELLS)
    for (name, (_, reason)), line in zip(CELLS.items(), found[1::2], strict=True):
        assert (name, reason is None) == (name, "rejected" not in line)
        assert reason is None or reason in line["rejected"]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ('[{"content": "a fox"}]', None),
        ("a fox", "conversations: expected a list of turns, got text"),
        ("[", "conversations: not valid JSON"),
        ("[" * 5000, "conversations: not valid JSON"),
        ("[" * 500 + "]" * 500, "conversations: not valid JSON"),
        ('["\\ud800"]', "conversations: not valid JSON"),
        ('[{"content": "a", "weight": NaN}]', "conversations: not valid JSON"),
        ('[{"content": "a", "weight": 1e999}]', "conversations: not valid JSON"),
    ],
)
def test_json_in_a_csv_cell_is_checked_as_a_line_is(tmp_path, cell, reason):
    quoted = cell.replace('"', '""')
    (tmp_path / "rows.csv").write_text(f'id,conversations\n1,"{quoted}"\n2,"[""b""]"\n')
    bad, good = planned(tmp_path / "rows.csv")
    assert good["items"] == [{"prompt": "b"}]
    assert bad.get("rejected", "").startswith(reason) if reason else bad["items"] == [{"prompt": "a fox"}]


def test_a_parquet_value_that_python_cannot_hold_stops_no_other_row(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"prompt": ["a", "b", "c"], "made": pa.array([None, 2**60, 0], pa.timestamp("us"))}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    good, bad, last = planned(tmp_path / "rows.parquet")
    assert good["row"] == {"prompt": "a"}
    assert bad["rejected"].startswith("holds what Python cannot: ")
    assert last["row"] == {"prompt": "c", "made": "1970-01-01T00:00:00"}


# Images: given ones, which are opened, checked and stored as a source of an edit is, without a model.


def saved(picture, kind="PNG", **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def bomb(width, height):
    data = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for name, body in [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(2**20), 9)), (b"IEND", b"")]:
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data


def sparse(path):
    """A terabyte of nothing: whoever reads it all hangs."""
    path.touch()
    os.truncate(path, 2**40)


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(RED.resize((24, 16)), "JPEG", exif=exif)


RED = Image.new("RGB", (16, 16), (255, 0, 0))
CLEAR = Image.new("P", (16, 16), 0)
CLEAR.putpalette([9, 9, 9])
NOISE = Image.frombytes("RGB", (64, 64), bytes(zlib.crc32(b"%d" % n) % 256 for n in range(64 * 64 * 3)))

# name of the file -> (content or a function that makes it, reason, or the colour it shows)
FILES = {
    "missing.png": (lambda path: None, "No such file or directory"),
    "empty.png": (b"", "cannot be read as an image"),
    "zeros.png": (bytes(4096), "cannot be read as an image"),
    "text.png": (b"not an image\n" * 100, "cannot be read as an image"),
    "page.png": (b"<!doctype html><title>404</title>", "cannot be read as an image"),
    "vector.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read as an image"),
    "header.png": (saved(RED)[:20], "cannot be read as an image"),
    "truncated.png": (saved(NOISE)[:3000], "cannot be read as an image"),
    "truncated.jpg": (saved(NOISE, "JPEG")[:800], "cannot be read as an image"),
    "truncated.webp": (saved(NOISE, "WEBP", lossless=True)[:800], "cannot be read as an image"),
    "bomb.png": (bomb(60_000, 60_000), "decompression bomb"),
    "wide.png": (bomb(2_000_000_000, 1), "cannot be read as an image"),
    "animated.gif": (saved(RED, "GIF", save_all=True, append_images=[NOISE]), "animated (2 frames)"),
    "animated.png": (saved(RED, "PNG", save_all=True, append_images=[NOISE]), "animated (2 frames)"),
    "float.tiff": (saved(Image.new("F", (4, 4), 0.5), "TIFF"), "32-bit pixels"),
    "folder.png": (lambda path: path.mkdir(), "not a file"),
    "fifo.png": (os.mkfifo, "not a file"),
    "device.png": (lambda path: path.symlink_to("/dev/zero"), "not a file"),
    "loop.png": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "sparse.png": (sparse, "1099511627776 bytes; at most"),
    "cmyk.jpg": (saved(RED.convert("CMYK"), "JPEG", quality=95), (255, 0, 0)),
    "palette.png": (saved(CLEAR, transparency=0), (255, 255, 255)),
    "palette.gif": (saved(RED.convert("P"), "GIF"), (255, 0, 0)),
    "alpha.png": (saved(Image.new("RGBA", (16, 16), (0, 0, 0, 0))), (255, 255, 255)),
    "grey16.png": (saved(Image.frombytes("I;16", (2, 2), b"\x00\x80" * 4)), (127, 127, 127)),
    "bits.png": (saved(Image.new("1", (8, 8), 1)), (255, 255, 255)),
    "rotated.jpg": (rotated(), (254, 0, 0)),
    "wrong ending.png": (saved(RED, "JPEG", quality=95), (254, 0, 0)),
    "\U0001f98a and spaces.png": (saved(RED), (255, 0, 0)),
    "--option; $(x).png": (saved(RED), (255, 0, 0)),
    "one pixel.png": (saved(RED.resize((1, 1))), (255, 0, 0)),
}


def no_engine(section, name):
    raise AssertionError("a given image needs no model")


def take_given(folder, names):
    """The records of an image shard of given images, made as the job makes it."""
    lines = b"".join(prompt(name, id=name, images=[name]) + b"\n" for name in names)
    (folder / "rows.jsonl").write_bytes(lines)
    plan = make_plan(folder / "rows.jsonl", "prompts", 1000, folder / "results")
    recipe = {"version": 1, "family": "flux", "model": "m", "dtype": "float32", "max_sequence_length": 8}
    section = Generate(width=64, height=64, steps=1, guidance=1.0, device="cpu")
    stage = ShardJob("generate", section, recipe, "digest", folder, "generate_images", Scratch(folder / "scratch"))
    records = []
    for name in plan.names:
        counts = make_shard(
            read_requests(plan.read(name), section, 0, 2),
            folder / f"{name}.parquet",
            stage,
            [],
            [],
            no_engine,
        )
        made = list(iter_records(folder / f"{name}.parquet"))
        assert counts["made"] == 0 and counts["failed"] == sum(record["error"] is not None for record in made)
        assert len(made) == plan.shards[name].requests(2)
        records += made
    return {record["row"]: record for record in records}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name, (content, _) in FILES.items():
        (folder / name).write_bytes(content) if isinstance(content, bytes) else content(folder / name)
    (folder / "good.png").write_bytes(saved(NOISE))
    return take_given(folder, [*FILES, "good.png"])


@pytest.mark.parametrize("name", FILES)
def test_a_bad_image_is_shown_right_or_recorded_with_its_reason(pictures, name):
    record, expected = pictures[name], FILES[name][1]
    if isinstance(expected, str):
        assert expected in record["error"] and f"{name}: " in record["error"]
        assert "\n" not in record["error"] and record["image"] is record["sha256"] is None
    else:
        assert record["error"] is None
        shown = Image.open(io.BytesIO(record["image"]["bytes"]))
        assert (record["width"], record["height"]) == shown.size and shown.convert("RGB").getpixel((0, 0)) == expected
        assert name != "rotated.jpg" or shown.size == (16, 24)


def test_a_good_image_between_bad_ones_is_stored_as_it_was(pictures):
    assert pictures["good.png"]["image"]["bytes"] == saved(NOISE)
    assert len(pictures) == len(FILES) + 1


@pytest.mark.long
def test_memory_is_bounded_by_what_a_picture_may_hold(tmp_path):
    # In a process of its own, whose peak is that of these files: 60 000 x 60 000 pixels would take 10 GB.
    (tmp_path / "bomb.png").write_bytes(bomb(60_000, 60_000))
    (tmp_path / "lines.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "' + b"a" * 300 * 2**20, 1))
    code = """
import resource, sys
from darkroom.errors import DarkroomError, RowError
from darkroom.store.images import open_picture, read_file
from darkroom.plan.shards import make_plan
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    open_picture(read_file("bomb.png"), "bomb.png")
except RowError as error:
    print(error)
plan = make_plan("lines.jsonl.gz", "prompts", 10, "results")
print([line["rejected"] for _, line in plan.rows()])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30)),
    )
    reason, rejected, megabytes = done.stdout.splitlines()
    assert "decompression bomb" in reason
    assert rejected == f"['line longer than {BIG} bytes']"
    assert int(megabytes) < 150
