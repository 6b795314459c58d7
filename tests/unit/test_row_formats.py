"""Rows in the formats, encodings and spellings that people have: read, or rejected with a reason that helps."""

import base64
import datetime
import decimal
import gzip
import io
import json
import math
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY
from darkroom.config.models import RowFields
from darkroom.errors import DarkroomError
from darkroom.plan.shards import base_folder, make_plan
from darkroom.rows.fields import NAMES, PRESETS, Fields
from darkroom.rows.formats import ending
from darkroom.run.workflow import Workflow
from darkroom.store.sources import Sources
from PIL import Image


def png(colour):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


RED, BLUE = png("red"), png("blue")
TWO = ["a red circle", "a blue square"]


def planned(path, kind="prompts", rows=None, **arguments):
    """The plan of a file, or of several."""
    first = path[0] if isinstance(path, list) else path
    return make_plan(path, kind, 50, first.parent / "results", fields=Fields.of(rows, kind), **arguments)


def lines(path, kind="prompts", rows=None, **arguments):
    return [line for _, line in planned(path, kind, rows, **arguments).rows()]


def texts(found):
    return [line["items"][0]["prompt"] for line in found]


SEMICOLON = '\ufeffid;prompt;note\n1;a red circle;"first\nline"\n2;"a ""blue"" square; small";café\n'
ARRAY = json.dumps([{"prompt": "a red circle", "id": "a"}, {"prompt": "a blue square", "id": "b"}], indent=2)
FILES = {
    "plain.jsonl": '{"prompt": "a red circle"}\n{"prompt": "a blue square"}\n',
    "pretty.json": ARRAY,
    "dense.json": json.dumps(json.loads(ARRAY)),
    "lines.json": '{"prompt": "a red circle"}\n{"prompt": "a blue square"}\n',
    "header-space.csv": "id, prompt\n1, a red circle\n2, a blue square\n",
    "tabs.csv": "id\tprompt\n1\ta red circle\n2\ta blue square\n",
    "one-column.csv": "prompt\na red circle\na blue square\n",
    "excel.csv": "sep=;\nid;prompt\n1;a red circle\n2;a blue square\n",
    "trailing.csv": "id,prompt,,\n1,a red circle,,\n2,a blue square,,,\n",
    "index.csv": ",prompt\n0,a red circle\n1,a blue square\n",
    "crlf.tsv": "id\tprompt\r\n1\ta red circle\r\n2\ta blue square\r\n",
    "prompts.txt": "a red circle\n\n  a blue square  \n",
}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]


@pytest.mark.parametrize("name", FILES)
def test_every_format_in_every_encoding_gives_the_same_rows(tmp_path, name):
    for encoding in ENCODINGS:
        path = tmp_path / encoding / name
        path.parent.mkdir()
        path.write_bytes(FILES[name].encode(encoding))
        assert (encoding, texts(lines(path))) == (encoding, TWO)
        zipped = path.with_name(f"{name}.gz")
        zipped.write_bytes(gzip.compress(path.read_bytes()))
        assert (encoding, texts(lines(zipped))) == (encoding, TWO)


def test_a_csv_with_semicolons_and_quotes_is_read(tmp_path):
    (tmp_path / "rows.csv").write_text(SEMICOLON, encoding="utf-8")
    assert [line["row"] for line in lines(tmp_path / "rows.csv")] == [
        {"id": "1", "prompt": "a red circle", "note": "first\nline"},
        {"id": "2", "prompt": 'a "blue" square; small', "note": "café"},
    ]


def test_python_lists_in_cells_are_lists(tmp_path):
    (tmp_path / "edits.csv").write_text(
        "id,images,conversations\n"
        "a,['pics/a.png'],\"[{'role': 'user', 'content': 'make it blue'}]\"\n"
        "b,['pics/b.png'],\"[{'role': 'user', 'content': \"\"don't stop\"\"}]\"\n"
        "c,\"['x.png' 'y.png']\",\"['a']\"\n"
        "d,\"['x.png', {1}]\",\"['a']\"\n"
    )
    one, other, *bad = lines(tmp_path / "edits.csv", "edits")
    assert one["items"] == [{"prompt": "make it blue", "source": {"path": "pics/a.png"}}]
    assert other["items"] == [{"prompt": "don't stop", "source": {"path": "pics/b.png"}}]
    assert [line["rejected"][:22] for line in bad] == ["images: not valid JSON"] * 2


@pytest.mark.parametrize(("name", "head"), [("rows.csv", "id,prompt\n1,"), ("rows.txt", ""), ("rows.jsonl", "")])
def test_a_file_that_is_not_utf8_is_told_what_it_looks_like(tmp_path, name, head):
    (tmp_path / name).write_bytes((head + "la forêt près du château à l'été dorée\n" * 5).encode("cp1252"))
    reason = lines(tmp_path / name)[0]["rejected"]
    assert "not UTF-8" in reason and "it looks like cp125" in reason and "save the file as UTF-8" in reason
    assert "or say `rows: {encoding: cp125" in reason


FOREST = ["la forêt près du château", "l'été doré", "une œuvre — 5 €"]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-be", "utf-8-sig", "gb18030", "cp037"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.txt", "rows.jsonl", "rows.json", "rows.tsv.gz"])
def test_an_encoding_that_the_config_names_is_obeyed(tmp_path, name, encoding):
    wanted = ["la foret", "l'ete", "une oeuvre"] if encoding == "cp037" else FOREST  # EBCDIC has other signs
    kind = name.split(".")[1]
    sign = "\t" if kind == "tsv" else ","
    text = {
        "txt": "".join(f"{text}\n" for text in wanted),
        "jsonl": "".join(json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in wanted),
        "json": json.dumps([{"prompt": text} for text in wanted], ensure_ascii=False),
    }.get(kind, f"n{sign}prompt\n" + "".join(f"{n}{sign}{text}\n" for n, text in enumerate(wanted)))
    data = text.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    found = lines(tmp_path / name, rows={"encoding": encoding})
    assert texts(found) == wanted


@pytest.mark.parametrize("name", ["rows.csv", "rows.txt", "rows.jsonl", "rows.json"])
def test_a_line_that_is_not_in_the_encoding_that_is_named_names_the_key(tmp_path, name):
    """0x81 is nothing in cp1252. The other lines are read."""
    head, tail = {"csv": (b"prompt\n", b"\n"), "json": (b'[{"prompt": "', b'"}]')}.get(name[5:], (b"", b"\n"))
    between = b'"}, {"prompt": "' if name.endswith(".json") else b"\n"
    said = [b"caf\xe9", b"caf\x81"]
    if name.endswith(".jsonl"):
        said = [b'{"prompt": "' + text + b'"}' for text in said]
    (tmp_path / name).write_bytes(head + between.join(said) + tail)
    good, bad = lines(tmp_path / name, rows={"encoding": "cp1252"})
    assert texts([good]) == ["café"]
    assert bad["rejected"].endswith("not cp1252, which `rows.encoding` says it is")


def test_a_delimiter_that_the_config_names_is_obeyed(tmp_path):
    (tmp_path / "rows.csv").write_text("id^prompt\n1^a fox, a hen; a dog\n2^a cat\n")
    more, other = (line["rejected"] for line in lines(tmp_path / "rows.csv"))
    assert more == "has 1 more cells than the header; cells end at ',', `rows.delimiter` names another sign"
    assert other == (
        "has neither prompt nor conversations; it has id^prompt: say under `rows` in the config which field is which, or, where"
        " these are several columns, what stands between them (`rows.delimiter`)"
    )
    assert texts(lines(tmp_path / "rows.csv", rows={"delimiter": "^"})) == ["a fox, a hen; a dog", "a cat"]
    assert Fields.of({"delimiter": "^", "edits": {"delimiter": ";"}}, "edits").delimiter == ";"
    (tmp_path / "rows.csv").write_text("sep=,\nprompt,x;note\na fox;red\n")  # and it wins
    (line,) = lines(tmp_path / "rows.csv", rows={"delimiter": ";", "prompt": "prompt,x"})
    assert (texts([line]), line["row"]["note"]) == (["a fox"], "red")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("rows.json", '[{"prompt": "a"},\n {"prompt": }]', "line 2: not valid JSON"),
        ("rows.json", '[{"prompt": "a"}', "line 1: not valid JSON: expected , or ]"),
        ("rows.json", '[{"prompt": "a"}]\n[]', "line 2: not valid JSON: more text after the array"),
        ("rows.json", '{\n "prompt": "a"\n}', "one object over several lines; give an array"),
        ("rows.json", "[]", "holds no rows"),
        ("rows.tar", "no tar", "cannot be read"),
    ],
)
def test_a_file_that_is_none_stops_in_one_line(tmp_path, name, content, reason):
    (tmp_path / name).write_text(content)
    with pytest.raises(DarkroomError) as error:
        planned(tmp_path / name)
    assert reason in str(error.value) and str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_large_array_is_read_in_parts_and_a_bad_row_stops_no_other(tmp_path):
    rows = [{"prompt": f"row {number}", "note": "x" * 3000} for number in range(100)]
    text = json.dumps([*rows[:50], 7, {"prompt": "a", "x": math.inf}, *rows[50:]])
    (tmp_path / "rows.json").write_text(text)
    plan = planned(tmp_path / "rows.json")
    found = [line for _, line in plan.rows()]
    assert [line["items"][0]["prompt"] for line in found if "items" in line] == [row["prompt"] for row in rows]
    assert [line["rejected"].partition(":")[0] for line in found if "rejected" in line] == [
        "not a JSON object but a number",
        "not valid JSON",
    ]
    assert plan.place(plan.first_rejected()[0]) == ("rows.json", 51)


def test_an_array_that_is_named_jsonl_says_how_to_name_it(tmp_path):
    (tmp_path / "rows.jsonl").write_text(ARRAY)
    assert "must have a name that ends in .json" in lines(tmp_path / "rows.jsonl")[0]["rejected"]


DAY = datetime.datetime(2022, 8, 8, 12, 30, tzinfo=datetime.UTC)


def test_parquet_columns_of_every_type_are_carried(tmp_path):
    columns = {
        "prompt": pa.array(TWO),
        "seed": pa.array([3312523387, 5], pa.uint32()),
        "part_id": pa.array([1, 2], pa.uint16()),
        "huge": pa.array([2**64 - 1, 0], pa.uint64()),
        "cfg": pa.array([7.0, 9.5], pa.float32()),
        "nsfw": pa.array([0.5, math.nan]),
        "ratio": pa.array([math.inf, None]),
        "when": pa.array([DAY, DAY], pa.timestamp("us", "UTC")),
        "exact": pa.array([1659961800000000001, None], pa.timestamp("ns")),
        "day": pa.array([DAY.date(), None]),
        "clock": pa.array([DAY.time(), None], pa.time64("ns")),
        "took": pa.array([datetime.timedelta(seconds=1.5), None], pa.duration("ns")),
        "price": pa.array([decimal.Decimal("0.10"), decimal.Decimal("3.00")]),
        "nested": pa.array([{"a": [{"b": DAY.date()}], "c": None}, None]),
        "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())),
        "class": pa.array(["x", None]).dictionary_encode(),
        "blob": pa.array([b"\xff", None]),
        "halves": pa.array([0.5, None], pa.float16()),
        "empty": pa.nulls(2),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    one, other = [line["row"] for line in lines(tmp_path / "rows.parquet", rows={"preset": "diffusiondb"})]
    assert one == {
        "prompt": "a red circle",
        "seed": 3312523387,
        "part_id": 1,
        "huge": 2**64 - 1,
        "cfg": 7.0,
        "nsfw": 0.5,
        "ratio": "inf",
        "when": "2022-08-08T12:30:00+00:00",
        "exact": "2022-08-08T12:30:00",
        "day": "2022-08-08",
        "clock": "12:30:00",
        "took": 1.5,
        "price": 0.1,
        "nested": {"a": [{"b": "2022-08-08"}]},
        "map": [["k", 1]],
        "class": "x",
        "blob": "/w==",
        "halves": 0.5,
    }
    assert (other["cfg"], other["price"], "nsfw" in other) == (9.5, 3, False)
    assert [line["options"] for line in lines(tmp_path / "rows.parquet", rows={"preset": "diffusiondb"})] == [
        {"seed": 3312523387, "guidance": 7.0},
        {"seed": 5, "guidance": 9.5},
    ]


def content(plan, reference):
    """What a job reads of a reference."""
    return Sources(plan.folder, [], pictures=plan.pictures).read(reference).data


def test_pictures_in_the_rows_are_sources_whatever_holds_them(tmp_path):
    as_text = base64.b64encode(RED).decode()
    url = f"data:image/png;base64,{as_text}"
    parts = [{"type": "text", "text": "make it blue"}, {"type": "image_url", "image_url": {"url": url}}]
    rows = [
        {"prompt": "make it blue", "images": [url]},
        {"prompt": "make it blue", "images": [{"bytes": as_text, "path": "pics/a.png"}]},
        {"messages": [{"role": "user", "content": parts}]},
    ]
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = planned(tmp_path / "edits.jsonl", "edits")
    found = [line for _, line in plan.rows()]
    for line in found:
        (item,) = line["items"]
        assert item["prompt"] == "make it blue" and content(plan, item["source"]) == RED
        assert as_text[:60] not in json.dumps(line)  # neither in tables nor in exports
    assert found[1]["items"][0]["source"]["name"] == "a.png"

    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"edit_prompt": ["make it red"], "original_image": pa.array([{"bytes": BLUE, "path": "b.png"}], picture)}
    columns["edited_image"] = pa.array([{"bytes": RED, "path": None}], picture)
    pq.write_table(pa.table(columns), tmp_path / "edits.parquet")
    plan = planned(tmp_path / "edits.parquet", "edits", {"preset": "instructpix2pix"})
    ((_, line),) = plan.rows()
    assert content(plan, line["items"][0]["source"]) == BLUE and "given" not in line["items"][0]
    # The pictures of the plan before are gone, and those that no edit starts from were not kept.
    assert plan.pictures.stat().st_size < 20_000
    with pytest.raises(Exception, match="not among the pictures of the rows"):
        content(plan, found[0]["items"][0]["source"])


def test_a_picture_that_is_none_has_a_short_reason(tmp_path):
    rows = [
        {"prompt": "a", "images": ["data:image/png;base64,not base64 " + "x" * 10_000]},
        {"prompt": "a", "images": [{"sha256": "0" * 64}]},
    ]
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, other = lines(tmp_path / "edits.jsonl", "edits")
    assert one["rejected"] == 'images: "data:image/png;base64,not base64 xxxxxxx" is no picture in base64'
    assert other["rejected"].startswith("images: expected file names")


def tar(path, files):
    with tarfile.open(path, "w") as out:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def test_webdataset_tars_are_rows(tmp_path):
    files = {"0/a.png": RED, "0/a.txt": b"a red square\n", "0/a.json": b'{"note": 1}', "0/b.json": b'{"prompt": "b"}'}
    plan = planned(tar(tmp_path / "rows.tar", files))
    one, other = [line for _, line in plan.rows()]
    assert one["row"] == {"__key__": "0/a", "note": 1, "prompt": "a red square", "images": one["row"]["images"]}
    assert content(plan, one["items"][0]["given"]) == RED
    assert other["items"] == [{"prompt": "b"}]

    pair = {"a.png": BLUE, "a.source.png": RED, "a.txt": b"make it blue"}
    plan = planned(tar(tmp_path / "edits.tar", pair), "edits")
    ((_, line),) = plan.rows()
    (item,) = line["items"]
    assert (content(plan, item["source"]), content(plan, item["given"])) == (RED, BLUE)

    bad = {"a.json": b"[1]", "b.json": b'{"prompt": "fine"}', "c.txt": b"caf\xe9"}
    found = lines(tar(tmp_path / "bad.tar", bad))
    assert [line.get("rejected", "used").split(":")[0] for line in found] == [".json", "used", "used"]


SYSTEM = {"role": "system", "content": "You are a helpful assistant that paints."}
REPLY = {"role": "assistant", "content": "Here is your picture of a blue square!"}
CHATS = {
    "messages": {"messages": [{"role": "user", "content": "a red circle"}]},
    "parts": {"conversations": [{"role": "user", "content": [{"type": "text", "text": "a red circle"}]}]},
    "system": {"conversations": [SYSTEM, {"role": "user", "content": "a red circle"}, REPLY]},
    "batch": {"custom_id": "r1", "body": {"messages": [{"role": "user", "content": "a red circle"}]}},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "<image>\na red circle"}, {"from": "gpt", "value": "no"}]
    },
    "settings": {"prompt": "a red circle", "num_inference_steps": 50, "guidance_scale": 7.5, "seed": 7},
    "number": {"id": 12.0, "prompt": "a red circle"},
    "geneval": {"tag": "two_object", "include": [{"class": "circle", "count": 1}], "prompt": "a red circle"},
}


@pytest.mark.parametrize("name", CHATS)
def test_only_what_a_user_says_is_a_prompt(tmp_path, name):
    (tmp_path / "rows.jsonl").write_text(json.dumps(CHATS[name]))
    (line,) = lines(tmp_path / "rows.jsonl")
    assert line["items"] == [{"prompt": "a red circle"}]
    if name == "settings":
        assert line["options"] == {"seed": 7, "steps": 50, "guidance": 7.5}
    if name == "number":
        assert line["id"] == "12"


def test_a_conversation_without_a_user_is_rejected(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"conversations": [SYSTEM, REPLY]}))
    assert lines(tmp_path / "rows.jsonl")[0]["rejected"] == (
        "conversations: no turn is a user's, only assistant, system"
    )


TALK = [{"from": "human", "value": "<image>\nmake the circle blue"}, {"from": "gpt", "value": "done"}]
EDITS = [
    (None, {"image": "a.png", "conversations": TALK}),
    (None, {"images": ["a.png"], "conversations": TALK}),
    (None, {"image": "a.png", "prompt": "make the circle blue"}),
    ("llava", {"id": "1", "image": "a.png", "conversations": TALK}),
    ("sharegpt", {"images": ["a.png"], "messages": TALK}),
    ("magicbrush", {"img_id": "1", "turn_index": 1, "instruction": "make the circle blue", "source_img": "a.png"}),
    ("instructpix2pix", {"edit_prompt": "make the circle blue", "original_image": "a.png", "edited_prompt": "x"}),
    ("pico-banana", {"text": "make the circle blue", "local_input_image": "a.png", "output_image": "b.png"}),
    ("dataflow", {"images": ["./a.png"], "conversations": [{"role": "user", "content": "make the circle blue"}]}),
]


@pytest.mark.parametrize(("preset", "row"), EDITS)
def test_edits_of_known_data_sets_are_read_by_their_presets(tmp_path, preset, row):
    (tmp_path / "edits.jsonl").write_text(json.dumps(row))
    (line,) = lines(tmp_path / "edits.jsonl", "edits", {"preset": preset})
    assert line["items"] == [{"prompt": "make the circle blue", "source": {"path": "a.png"}}]
    assert line["row"] == row


def test_presets_of_prompts(tmp_path):
    parti = "Prompt\tCategory\tChallenge\tNote\na red circle\tAbstract\tBasic\tnone\n"
    (tmp_path / "p2.tsv").write_text(parti)
    (line,) = lines(tmp_path / "p2.tsv", rows={"preset": "partiprompts"})
    assert line["items"] == [{"prompt": "a red circle"}] and line["read"] == ["Prompt"]
    message = {"messages": [{"role": "user", "content": "a red circle"}]}
    (tmp_path / "batch.jsonl").write_text(json.dumps({"custom_id": "r1", "body": message}))
    (line,) = lines(tmp_path / "batch.jsonl", rows={"preset": "openai"})
    assert line["items"] == [{"prompt": "a red circle"}] and line["id"] == "r1"


def test_the_config_takes_the_presets_and_fields_there_are():
    assert set(RowFields.model_fields) == {"preset", "root", "encoding", "delimiter", *NAMES}
    assert [RowFields(preset=name).preset for name in PRESETS] == [*PRESETS]
    with pytest.raises(ValueError, match="preset"):
        RowFields(preset="another")


def test_fields_are_mapped_for_prompts_and_edits_apart(tmp_path):
    said = {
        "prompt": ["caption", "meta.text"],
        "id": "name",
        "edits": {"prompt": "edit_prompt", "images": "original_path"},
    }
    row = {"name": "r1", "caption": "a red circle", "meta": {"text": "no"}, "prompt": "no", "id": "no"}
    rows = [row, {"name": "r2", "meta": {"text": "a blue square"}}, {"other": 1}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, two, bad = lines(tmp_path / "rows.jsonl", rows=said)
    assert (one["id"], two["id"]) == ("r1", "r2") and texts([one, two]) == TWO
    assert bad["rejected"].startswith("has no caption or meta.text; it has other: say under `rows`")
    edit = {"name": "e1", "edit_prompt": "make it blue", "original_path": "pics/a.png", "prompt": "no"}
    (tmp_path / "edits.jsonl").write_text(json.dumps(edit))
    (line,) = lines(tmp_path / "edits.jsonl", "edits", said)
    assert line["items"] == [{"prompt": "make it blue", "source": {"path": "pics/a.png"}}] and line["id"] == "e1"
    assert set(line["read"]) == {"edit_prompt", "original_path", "name"}


def test_a_mapped_csv_has_numbers_and_lists_where_ours_are(tmp_path):
    (tmp_path / "rows.csv").write_text("Text;cfg;pics\na;7;\"['x.png', 'y.png']\"\n")
    (line,) = lines(tmp_path / "rows.csv", "edits", {"prompt": "Text", "guidance": "cfg", "images": "pics"})
    assert line["options"] == {"guidance": 7.0}
    assert [item["source"]["path"] for item in line["items"]] == ["x.png", "y.png"]


def test_addresses_are_not_fetched_and_file_addresses_are_files(tmp_path):
    rows = [{"prompt": "a", "images": [name]} for name in ("https://example.com/1.jpg", "file:///pics/a%20b.png")]
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, other = lines(tmp_path / "edits.jsonl", "edits")
    assert "is an address, and nothing is fetched" in one["rejected"] and "img2dataset" in one["rejected"]
    assert other["items"][0]["source"] == {"path": "/pics/a b.png"}


def test_several_files_are_one_set_of_rows(tmp_path):
    for folder, colour in (("one", RED), ("two", BLUE)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(colour)
    (tmp_path / "one/e.jsonl").write_text('{"id": "1", "prompt": "a", "images": "a.png"}\n\nbad\n')
    (tmp_path / "two/e.csv").write_text("id,prompt,images\n2,b,a.png\n1,c,a.png\n")
    files = [tmp_path / "one/e.jsonl", tmp_path / "two/e.csv"]
    plan = planned(files, "edits")
    first, bad, second, twice = [line for _, line in plan.rows()]
    assert [line["items"][0]["source"]["path"] for line in (first, second)] == ["one/a.png", "two/a.png"]
    sources = Sources(base_folder(files), [])
    assert [sources.read(line["items"][0]["source"]).data for line in (first, second)] == [RED, BLUE]
    (shard,) = plan.shards.values()
    places = [plan.place(shard.first_line + line["line"]) for line in (bad, twice)]
    assert places == [("one/e.jsonl", 3), ("two/e.csv", 3)]
    # One file changes: the plan is made anew; none changes: it is not.
    again = planned(files, "edits")
    assert again.id == plan.id
    files[1].write_text("id,prompt,images\n2,b,a.png\n3,c,a.png\n")
    assert planned(files, "edits").rows_used == 3


@pytest.mark.parametrize(
    ("files", "ending"),
    [
        ({"a.csv": "prompt\na\n"}, ".csv"),
        ({"a.json": ARRAY}, ".json"),
        ({"a.json": '{"prompt": "a"}'}, ".jsonl"),
        ({"a.txt": "a"}, ".jsonl"),
        ({"a.tsv": "prompt\na\n", "b.tsv": "prompt\nb\n"}, ".tsv"),
        ({"a.tsv": "prompt\na\n", "b.csv": "prompt\nb\n"}, ".jsonl"),
    ],
)
def test_rows_go_back_in_their_format_where_it_can_name_pictures(tmp_path, files, ending):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert planned([tmp_path / name for name in files]).ending == ending


def test_relative_names_start_from_the_root_that_is_named(tmp_path):
    (tmp_path / "example/images").mkdir(parents=True)
    (tmp_path / "example/images/a.png").write_bytes(RED)
    path = tmp_path / "example/rows.jsonl"
    path.write_text('{"prompt": "a", "images": ["./example/images/a.png"]}\n')
    plan = planned(path, "edits", {"root": str(tmp_path)})
    ((_, line),) = plan.rows()
    assert Sources(base_folder([path], str(tmp_path)), []).read(line["items"][0]["source"]).data == RED
    with pytest.raises(Exception, match=r"No such file or directory in the rows' folder; rows\.root names another"):
        Sources(base_folder([path]), []).read(line["items"][0]["source"])


def test_reasons_of_rejections_are_counted_with_the_first_line(tmp_path):
    rows = ['{"prompt": "a"}', '{"caption": "b"}', "broken", '{"caption": "c"}']
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    plan = planned(tmp_path / "rows.jsonl")
    assert (plan.rows_used, plan.rows_rejected) == (1, 3)
    assert [(reason.rows, reason.number, reason.text[:33]) for reason in plan.reasons] == [
        (2, 2, "has neither prompt nor conversati"),
        (1, 3, "not valid JSON: Expecting value: "),
    ]


def run_of(folder, **config):
    model = {"model": str(REPOSITORY / "resources/models/shapes-flux"), "family": "flux", "device": "cpu"}
    judge = {"model": str(REPOSITORY / "resources/models/shapes-judge"), "device": "cpu"}
    config |= {"results": str(folder / "results"), "generate": model, "judge": judge}
    return Workflow.open(config, folder=folder)


def test_no_usable_row_is_one_line_before_any_job(tmp_path):
    (tmp_path / "rows.csv").write_text("Prompts,Category\na red circle,Colors\na blue square,Positional\n")
    with pytest.raises(DarkroomError) as error:
        run_of(tmp_path, prompts="rows.csv")
    assert str(error.value) == (
        f"{tmp_path}/rows.csv: 2 of 2 rows rejected: 2 x has neither prompt nor conversations; it has Prompts, Category: say"
        " under `rows` in the config which field is which (first line 2); no row can be used"
    )
    assert list(run_of(tmp_path, prompts="rows.csv", rows={"prompt": "Prompts"}).rejected_lines()) == []


def test_rejected_rows_of_a_pattern_are_told_by_file_and_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "b.jsonl").write_text('{"prompt": "b"}\n{"prompt": 1}\n')
    run = run_of(tmp_path, prompts="*.jsonl")
    assert list(run.rejected_lines()) == [
        f"{tmp_path}/a.jsonl and 1 more: 1 of 3 rows rejected: 1 x prompt: expected text, got a number (b.jsonl, line 2)"
    ]
    assert run.rows_folder("prompts") == tmp_path
    with pytest.raises(DarkroomError, match=r"b\.jsonl, line 2: prompt: expected text"):
        run_of(tmp_path, prompts="*.jsonl", strict=True)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.JSONL.gz", ".jsonl"),
        ("a.tar.gz", ".tar"),
        ("a.tgz", ".tar"),
        ("a.parquet.gz", ""),
        ("a.tsv", ".tsv"),
        ("a", ""),
    ],
)
def test_a_name_says_how_a_file_is_read(name, kind):
    assert ending(name) == kind
