"""The user's own data survive: names, order and types of their columns in every export, for every reader, and back as rows."""

import csv
import datetime
import decimal
import json
import tarfile

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from darkroom.config.models import Select
from darkroom.exports import FORMATS, imagefolder
from darkroom.exports.base import Names
from darkroom.exports.webdataset import first_samples
from darkroom.exports.write import write_export
from darkroom.plan.shards import make_plan
from darkroom.rows.fields import Fields, NameOrder, merge_names
from darkroom.rows.formats import read_rows
from darkroom.tables.fields import FieldTypes, leaves, shaped
from darkroom.tables.merge import merge_scores
from darkroom.tables.read import Table
from darkroom.views.report import read_table
from test_exports import build

NESTED = [{"a": {"b": 1}}, {"c": [1.5, 2]}, {}, None]


def rows():
    """Names of ours in whatever case, and of files; dates; columns that only later rows have; values of many types."""
    for n in range(12):
        row = {"Prompt": f"category {n}", "id": f"r{n}", "caption": f"alt text {n}", "scores": {"aesthetic": n + 0.5}}
        row |= {
            "prompt": f"a fox {n}",
            "born": f"2024-01-{n + 1:02}",
            "when": f"2024-01-{n + 1:02}" if n < 11 else "unknown",
        }
        row |= {"file_name": f"orig_{n}.jpg", "image": "x.png", "Reply": None if n % 2 else "yes", "label": "cat"}
        if n >= 7:
            row |= {"note": f"late {n}", "tags": ["x"] * (n % 3)}
        row |= {"count": n if n % 2 else n + 0.5, "big": 2**60 + n, "flag": n % 2 == 0, "nested": NESTED[n % 4]}
        row |= {
            "mixed": [n, str(n), None, {"a": n}][n % 4],
            "__key__": f"k{n}",
            "a.b": n,
            "with space": 's,"q"',
            "key": n,
        }
        yield row | {"text": f"Ünïcode 图 \U0001f98a\nsecond {n}", "jpg_0": "mine", "none": None}


ROWS = list(rows())
ORDER = (
    "Prompt caption scores born when file_name image Reply label note tags count big flag nested mixed __key__ a.b"
    " with_space key text jpg_0 none"
).split()
ORDER = [name.replace("with_space", "with space") for name in ORDER]
EDITS = [{"id": "e0", "prompt": "make it blue", "images": [{"row": "r0", "sample": 0}], "source": "own", "Model": 1}]


def expected(row, order=ORDER):
    """The own columns of a row as an export has them: one type for each column."""
    found = {name: row.get(name) for name in order}
    mixed = found["mixed"]
    found["mixed"] = mixed if mixed is None or isinstance(mixed, str) else json.dumps(mixed)
    return without_nulls(found)


def without_nulls(value):
    """What is null or missing is one to tables; times as text."""
    if isinstance(value, dict):
        found = {key: without_nulls(item) for key, item in value.items()}
        return {key: item for key, item in found.items() if item not in (None, {})}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value.date().isoformat() if isinstance(value, datetime.datetime) else value


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    export = build(folder, ROWS, EDITS, samples=2, select=Select(images={"p_yes": 0.5}))
    for format in FORMATS:
        write_export(export(format))
    return folder, export


def is_as_given(records, renamed=None, prompt="darkroom_prompt"):
    """Each record has the own columns of its row, with these names, in this order and of these types."""
    renamed = renamed or {}
    assert len(records) == len(ROWS)
    for row, record in zip(ROWS, records, strict=True):
        names = [renamed.get(name, name) for name in ORDER]
        assert [name for name in record if name in names] == names
        assert len({name.casefold() for name in record}) == len(record)
        own = {name: record[renamed.get(name, name)] for name in ORDER}
        assert without_nulls(own) == expected(row), row["id"]
        assert record[prompt] == row["prompt"]


def load(folder, *arguments, **settings):
    import datasets

    return list(datasets.load_dataset(*arguments, split="train", cache_dir=str(folder / "cache"), **settings))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("by", ["folder", "data_files"])
def test_datasets_reads_the_users_columns_as_they_were_given(built, tmp_path, by, streaming):
    folder = built[0] / "exports"
    renamed = {"file_name": "file_name_"}  # whose files the loader would open
    for format, path in (("parquet", "*.parquet"), ("imagefolder", "**"), ("webdataset", "*.tar")):
        files = {"data_files": str(folder / format / "images" / path)}
        if by == "data_files":
            records = load(tmp_path, format, streaming=streaming, **files)
        elif format == "imagefolder":
            records = load(tmp_path, format, data_dir=str(folder / format / "images"), streaming=streaming)
        else:
            records = load(tmp_path, str(folder / format), "images", streaming=streaming)
        if format == "webdataset":
            assert all(record["png"].size == (16, 16) for record in records)
            records = sorted((record["json"] for record in records), key=lambda record: record["key"])
        else:
            assert all(record["darkroom_image"].size == (16, 16) for record in records)
        is_as_given(records, renamed if format == "imagefolder" else None)
        assert {record["darkroom_key"] for record in records} == kept(built[0])


def kept(folder):
    table = pq.read_table(folder / "scores.parquet", columns=["kind", "darkroom_key", "selected"]).to_pylist()
    return {line["darkroom_key"] for line in table if line["kind"] == "images" and line["selected"]}


def test_webdataset_pandas_and_duckdb_read_them_too(built):
    import duckdb
    import webdataset

    folder = built[0] / "exports"
    tars = [str(path) for path in (folder / "webdataset/images").glob("*.tar")]
    records = [json.loads(sample["json"]) for sample in webdataset.WebDataset(tars, shardshuffle=False)]
    is_as_given(sorted(records, key=lambda record: record["key"]))
    (file,) = (folder / "parquet/images").glob("*.parquet")
    records = pq.read_table(file).to_pylist()
    is_as_given(records)
    frame = pd.read_parquet(file)
    assert list(frame.columns) == list(records[0]) and list(frame["Prompt"]) == [row["Prompt"] for row in ROWS]
    asked = duckdb.sql(f"SELECT * EXCLUDE (darkroom_image) FROM '{file}'")
    assert asked.columns == [name for name in records[0] if name != "darkroom_image"]
    is_as_given([dict(zip(asked.columns, line, strict=True)) for line in asked.fetchall()])
    asked = duckdb.sql(f"SELECT Prompt, darkroom_prompt, caption, scores.aesthetic FROM '{file}' WHERE note = 'late 9'")
    assert asked.fetchall() == [("category 9", "a fox 9", "alt text 9", 9.5)]
    # No reader has to rename a column of the tables and of the other exports either.
    for path in ("scores.parquet", "scores.csv", "exports/imagefolder/images/metadata.jsonl"):
        frame = pd.read_json(built[0] / path, lines=True) if path.endswith("jsonl") else None
        names = list(frame.columns) if frame is not None else table_names(built[0] / path)
        assert duckdb.sql(f"SELECT * FROM '{built[0] / path}'").columns == names


def table_names(path):
    return pq.read_schema(path).names if path.suffix == ".parquet" else next(csv.reader(path.open(encoding="utf-8")))


def test_the_tables_hold_them_as_exports_do(built):
    """Names, order and types; in CSV what has no form there is JSON."""
    table, export = built[0] / "scores.parquet", built[1]("parquet")
    first = [line for line in pq.read_table(table).to_pylist() if line["kind"] == "images" and line["sample"] == 0]
    is_as_given(first)
    assert {line["darkroom_key"] for line in first} <= {
        record["key"] for *_, record, _ in export.records(export.kinds[0])
    }
    with open(table.with_suffix(".csv"), newline="", encoding="utf-8") as stream:
        lines = [line for line in csv.DictReader(stream) if line["kind"] == "images" and line["sample"] == "0"]
    assert list(lines[0]) == pq.read_schema(table).names
    for row, line in zip(ROWS, lines, strict=True):
        assert (line["Prompt"], line["darkroom_prompt"], line["key"]) == (row["Prompt"], row["prompt"], str(row["key"]))
        assert without_nulls(json.loads(line["scores"])) == row["scores"]


def test_who_reads_the_tables_finds_our_columns_whatever_they_are_called(built, tmp_path):
    """The report, and what the gallery, the end of a run and labels ask for."""
    table, export = built[0] / "scores.parquet", built[1]("parquet")
    images = Table(table)
    assert {"key", "prompt", "label", "selected", "p_yes"} <= images.columns.keys()
    (batch,) = images.batches(["selected", "key", "prompt"])
    assert batch.schema.names == ["selected", "key", "prompt"]
    told = [(record["key"], record["prompt"]) for kind in export.kinds for *_, record, _ in export.records(kind)]
    assert list(zip(batch["key"].to_pylist(), batch["prompt"].to_pylist(), strict=True)) == told
    (tmp_path / "rejected.jsonl").touch()
    rows = {"images": ("prompts", len(ROWS)), "edited": ("edits", len(EDITS))}
    found = read_table(table, tmp_path / "rejected.jsonl", export.catalogue, export.select, rows)["images"]
    assert (found.requests, found.selected) == (2 * len(ROWS), len(kept(built[0])))
    assert {entry.prompt for entry in found.best} <= {row["prompt"] for row in ROWS}
    # The names of ours begin as the config says.
    merge_scores(export.kinds, export.catalogue, export.select, *(tmp_path / f"t.{n}" for n in "ab"), {}, None, "my_")
    names = pq.read_schema(tmp_path / "t.a").names
    assert {"my_key", "my_prompt", "my_label", "key", "Prompt"} <= set(names) and "darkroom_key" not in names
    assert Table(tmp_path / "t.a").columns == images.columns


def test_keys_inside_objects_come_back_in_their_order(tmp_path):
    """As the first rows have them; also where a value is JSON text."""
    deep = {"z": 1, "a": {"y": [{"d": 1, "b": 2}, {"d": 3, "c": 4, "b": 5}], "x": 2}}
    rows = [
        {"id": "a", "prompt": "a fox", "deep": deep, "mixed": 1},
        {"id": "b", "prompt": "a hen", "deep": {"z": 2, "m": 3, "a": {}}, "mixed": {"q": 1, "e": {"w": 1, "a": 2}}},
    ]
    export = build(tmp_path, rows, [], samples=1, select=Select())
    formats = ("folder", "imagefolder", "webdataset")
    for format in formats:
        write_export(export(format))
    found = {"folder": [json.loads(line) for line in (tmp_path / "exports/folder/prompts.jsonl").open()]}
    path = tmp_path / "exports/imagefolder/images/metadata.jsonl"
    found["imagefolder"] = [json.loads(line) for line in path.open()]
    (path,) = (tmp_path / "exports/webdataset/images").glob("*.tar")
    with tarfile.open(path) as tar:
        found["webdataset"] = [json.load(tar.extractfile(m)) for m in tar.getmembers() if m.name.endswith(".json")]
    for records in found.values():
        records.sort(key=lambda record: record.get("id") or record["row"])
        for row, record in zip(rows, records, strict=True):
            mixed = record["mixed"] if isinstance(row["mixed"], int) else json.loads(json.dumps(record["mixed"]))
            mixed = json.loads(mixed) if isinstance(mixed, str) else mixed
            assert json.dumps([record["deep"], mixed]) == json.dumps([row["deep"], row["mixed"]])
    with open(tmp_path / "scores.csv", newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["deep"] for line in lines] == [json.dumps(row["deep"]) for row in rows]
    assert [field.name for field in pq.read_schema(tmp_path / "scores.parquet").field("deep").type] == ["z", "m", "a"]


def test_pairs_keep_them_as_well(built, tmp_path):
    records = load(tmp_path, str(built[0] / "exports/preferences"), "images")
    is_as_given(records, prompt="darkroom_caption")
    assert all(record["darkroom_jpg_0"].startswith(b"\x89PNG") and record["jpg_1"] for record in records)
    (edit,) = load(tmp_path, str(built[0] / "exports/preferences"), "edited")
    assert (edit["source"], edit["Model"], edit["darkroom_model"]) == ("own", 1, "kontext")
    assert edit["darkroom_source"].size == (16, 16) and edit["caption"] == "make it blue"
    assert "Prompt" not in edit  # of other rows


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_the_rows_come_back_with_what_is_ours_beside_it(built, ending):
    _, export = built
    other = export("folder", to=f"as{ending}")
    other.rows = {kind: path.with_suffix(ending) for kind, path in other.rows.items()}
    write_export(other)
    path = other.rows["images"]
    if ending == ".parquet":
        back = pq.read_table(path).to_pylist()
    elif ending == ".csv":
        back = list(csv.DictReader(path.open(encoding="utf-8", newline="")))
    else:
        text = path.read_text(encoding="utf-8")
        back = json.loads(text) if ending == ".json" else [json.loads(line) for line in text.split("\n") if line]
    ours = ["images", "darkroom_reply", "darkroom_scores"]
    own = list(ROWS[0])
    merge_names(own, ROWS[-1])
    if ending in (".csv", ".parquet"):
        assert list(back[0]) == own + ours
    for row, line in zip(ROWS, back, strict=True):
        if ending in (".jsonl", ".json"):
            assert list(line) == [*row, *ours]
            assert {name: line[name] for name in row} == row
            assert json.loads(line["darkroom_reply"])["quality"] == 1 if line["darkroom_reply"] else True
        elif ending == ".csv":
            nested = {name: json.dumps(v) if isinstance(v, dict | list) else v for name, v in row.items()}
            assert all(line[name] == ("" if value is None else str(value)) for name, value in nested.items())


@pytest.mark.parametrize("format", [*FORMATS])
def test_an_export_is_read_as_the_same_rows(built, tmp_path, format):
    """The prompts and the own columns, with every value; ours of the first run are columns like others then."""
    folder = built[0] / "exports" / format
    found = {"folder": "prompts.jsonl", "imagefolder": "images/metadata.jsonl", "webdataset": "images/*.tar"}
    files = sorted(folder.glob(found.get(format, "images/*.parquet")))
    fields = Fields.of({"prompt": "darkroom_caption"} if format == "preferences" else {}, "prompts")
    plan = make_plan(files, "prompts", 4, tmp_path / "results", fields=fields)
    again = [line for _, line in plan.rows()]
    assert plan.rows_rejected == 0 and len(again) == len(ROWS)
    if format == "webdataset":
        again.sort(key=lambda line: line["row"]["key"])
    for row, line in zip(ROWS, again, strict=True):
        assert line["items"][0]["prompt"] == row["prompt"]
        back = line["row"]
        if format == "imagefolder":
            back["file_name"] = back.pop("file_name_")
        wanted = row if format == "folder" else expected(row)
        for name, value in without_nulls({name: wanted.get(name) for name in ORDER}).items():
            assert back.get(name, {}) == value, name
    order = [name for name in plan.columns if name in ORDER]
    wanted = [name for name in ORDER if name in order]
    assert order == wanted and len(order) >= len(ORDER) - 2  # `none` has no value, and one file name another name
    if format == "folder":
        assert {line["id"] for line in again} == {row["id"] for row in ROWS}
    if format == "parquet":
        fields = Fields.of({"images": "darkroom_image"}, "prompts")
        again = [line for _, line in make_plan(files, "prompts", 4, tmp_path / "judged", fields=fields).rows()]
        sha256 = [line["sha256"] for line in pq.read_table(files[0], columns=["sha256"]).to_pylist()]
    if format in ("parquet", "webdataset"):  # the pictures come along
        given = [line["items"][0]["given"]["sha256"] for line in again]
        assert len(set(given)) == len(ROWS) and (format == "webdataset" or given == sha256)


def test_what_only_later_samples_have_comes_first_in_tar_files_where_it_has_to(built, tmp_path):
    _, export = built
    made = export("webdataset")
    first = first_samples(made, made.kinds[0])
    assert 0 < len(first) <= 5
    records = {found[:2]: found[2:] for found in made.records(made.kinds[0])}
    assert any(records[place][1]["note"] for place in first) and all(records[place][0]["selected"] for place in first)
    plain = build(tmp_path, ROWS[:6], [], samples=1, select=Select())("webdataset")
    assert first_samples(plain, plain.kinds[0]) == []  # all there is to see is in the first five


def test_a_column_that_begins_late_in_a_long_metadata_file_is_read(tmp_path):
    """The loader tells the types from the first 10 MB."""
    text = "x" * 10**6
    long = [{"id": f"r{n}", "prompt": f"fox {n}", "long": text, "when": "2024-01-01"} for n in range(12)]
    long[-1] |= {"late": 1.5, "when": "unknown"}
    export = build(tmp_path, long, [], samples=1, select=Select())
    write_export(export("imagefolder"))
    records = load(tmp_path, "imagefolder", data_dir=str(tmp_path / "exports/imagefolder/images"))
    assert [record["row"] for record in records] == ["r11", *(f"r{n}" for n in range(11))]
    assert (records[0]["late"], records[0]["when"], records[1]["late"]) == (1.5, "unknown", None)


def test_rows_of_a_parquet_file_come_back_with_the_types_that_it_had(tmp_path):
    """Also those that JSON has not; where a column came to hold something else, it is what its values are."""
    folder = tmp_path
    day, price = datetime.date(2024, 1, 1), decimal.Decimal("12.50")
    moment = datetime.datetime(2024, 1, 1, 12, 30, 0, 5, tzinfo=datetime.UTC)
    columns = {
        "day": (pa.date32(), day),
        "moment": (pa.timestamp("ns", "UTC"), moment),
        "price": (pa.decimal128(9, 2), price),
    }
    columns |= {"hour": (pa.time64("us"), moment.time()), "small": (pa.uint8(), 7), "half": (pa.float32(), 0.1)}
    columns |= {"id": (pa.string(), "a"), "prompt": (pa.string(), "a fox"), "tags": (pa.list_(pa.string()), ["x"])}
    types = pa.schema([(name, type_) for name, (type_, _) in columns.items()])
    table = pa.Table.from_pylist(
        [{n: v for n, (_, v) in columns.items()}, {"id": "b", "prompt": "a hen"}], schema=types
    )
    pq.write_table(table, folder / "typed.parquet")
    rows = [row for _, _, row, _ in read_rows(folder / "typed.parquet")]
    (folder / "typed").mkdir()
    made = build(folder / "typed", rows, [], samples=1, select=Select())("folder")
    made.rows["images"], made.given["images"] = made.folder / "rows.parquet", [str(folder / "typed.parquet")]
    write_export(made)
    back = pq.read_table(made.folder / "rows.parquet")
    assert [back.schema.field(name).type for name in types.names] == types.types
    assert back.select(types.names).to_pylist() == table.to_pylist()
    assert [name for name in back.column_names if name in types.names] == types.names
    other = [row | {"day": "some day", "small": 300, "price": "?"} for row in rows]
    made = build(folder / "typed", other, [], samples=1, select=Select())("folder")
    made.rows["images"], made.given["images"] = made.folder / "rows.parquet", [str(folder / "typed.parquet")]
    write_export(made)
    back = pq.read_schema(made.folder / "rows.parquet")
    found = {name: back.field(name).type for name in ("day", "small", "price", "hour")}
    assert found == {"day": pa.string(), "small": pa.int64(), "price": pa.string(), "hour": pa.time64("us")}


def test_lines_that_move_to_the_front_leave_the_others_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(imagefolder, "_READ_FIRST", 30)
    lines = [
        {"n": 0},
        {"n": 1},
        {"n": 2, "a": 1},
        {"n": 3},
        {"n": 4, "a": 2},
        {"n": 5, "b": {"c": 1}},
        {"n": 6, "d": "x"},
    ]
    late, path = imagefolder._LateLines(), tmp_path / "metadata.jsonl"
    with open(path, "wb") as out:
        for line in lines:
            data = json.dumps(line).encode() + b"\n"
            late.note(line, out.tell(), len(data))
            out.write(data)
    late.move(path)
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [2, 5, 6, 0, 1, 3, 4]


def test_ours_is_called_as_the_config_says_where_a_name_is_taken():
    names = Names(["Prompt", "my_prompt", "ÉTAT"], "my_")
    assert [names(name) for name in ("prompt", "key", "état")] == ["my_my_prompt", "key", "my_état"]


def test_names_that_only_some_rows_have_stand_where_these_rows_have_them():
    order = []
    for names in ("ac", "abc", "xa", "cz", "cyz", "q"):
        merge_names(order, names)
    assert "".join(order) == "xabcyzq"


def test_the_order_of_names_is_kept_at_every_depth_and_is_bounded(monkeypatch):
    order = NameOrder()
    for row in ({"b": 1, "a": [{"y": 1, "x": [{"n": 1, "m": 2}]}]}, {"b": 1, "c": {"k": 1}, "a": {"z": 2, "y": 1}}):
        order.add(row)
    assert order.names == {"": ["b", "c", "a"], "a": ["z", "y", "x"], "a/x": ["n", "m"], "c": ["k"]}
    shuffled = {"new": 0, "a": [{"x": [{"m": 1, "n": 2}], "y": 3}], "b": [1, 2]}
    back = NameOrder(json.loads(json.dumps(order.names))).ordered(shuffled)
    assert back == shuffled
    assert json.dumps(back) == json.dumps({"b": [1, 2], "a": [{"y": 3, "x": [{"n": 2, "m": 1}]}], "new": 0})
    monkeypatch.setattr("darkroom.rows.fields._NAMES_KEPT", 3)
    monkeypatch.setattr("darkroom.rows.fields._OBJECTS_KEPT", 3)
    order = NameOrder()
    for n in range(50):
        order.add({"by_id": {f"k{n}": {"v": n}}})
    assert len(order.names) <= 3 and len(order.names["by_id"]) <= 4


def test_a_column_has_the_type_that_holds_all_its_values():
    types = FieldTypes()
    rows = [
        {"a": 1, "b": None, "c": [], "d": {}, "e": {"x": 1}, "f": True, "g": 2**70, "h": {"A": 1, "a": 2}},
        {"a": 1.5, "b": None, "c": [{"x": [1]}], "d": {}, "e": {"y": "t", "x": 0.5}, "f": 1, "g": 1},
        {"c": [{"y": None}], "e": None, "i": {str(n): n for n in range(100)}},
    ]
    for row in rows:
        types.add(row)
    assert types.order == list("abcdeifgh")
    named = {name: types.named(name) for name in types.order}
    struct = {"struct": [["x", {"list": "int"}], ["y", "text"]]}
    assert named["c"] == {"list": struct}
    assert named["e"] == {"struct": [["y", "text"], ["x", "float"]]} or named["e"] == {
        "struct": [["x", "float"], ["y", "text"]]
    }
    assert {named[name] for name in "bdfghi"} == {"text"} and named["a"] == "float"
    assert shaped(rows[0]["e"], named["e"]) == {"x": 1.0} and shaped(2**70, "text") == str(2**70)
    assert shaped(None, struct) is None
    assert leaves(rows[1]["c"], "c") == {"c[]", "c[]/", "c[]/x[]"} | {"c[]/x[]"}
