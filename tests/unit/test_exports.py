"""Exports: what other tools read back is what was selected; the same bytes when made twice; bounded memory."""

import csv
import functools
import gzip
import hashlib
import io
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import REPOSITORY, environment
from darkroom.config import models
from darkroom.config.models import Select
from darkroom.errors import DarkroomError
from darkroom.exports import FORMATS
from darkroom.exports.base import Export, runs, wrong_files
from darkroom.exports.preferences import asked
from darkroom.exports.provenance import CREATED, EDITED, SOURCE_TYPES, with_text, xmp_packet
from darkroom.exports.write import write_export
from darkroom.identity import digest
from darkroom.metrics.rubric import Question, Rubric
from darkroom.metrics.score import score_columns
from darkroom.models.licences import Licence, Model
from darkroom.plan.shards import make_plan
from darkroom.store.images import encode_png
from darkroom.store.shardfile import EDITED_COLUMNS, IMAGE_COLUMNS, iter_records, write_shard
from darkroom.store.sources import source_name
from darkroom.tables.kind import Kind, ShardFiles
from darkroom.tables.merge import merge_scores
from darkroom.tables.read import Table
from PIL import Image

FIELDS = {"quality": {"minimum": 1, "maximum": 10}, "mark": {"max_length": 9}}
JSON_QUESTION = Question("rating", "json", "{prompt}!", FIELDS)
RUBRIC = Rubric(
    {
        "images": [Question("p_yes", "yes_no", "{prompt}?"), JSON_QUESTION],
        "edited": [Question("p_followed", "yes_no", "{prompt}?")],
    }
)
SETTINGS = {
    "name": "foxes",
    "licence": "cc-by-4.0",
    "file_mb": 1,
}
FLUX = Model("generate", "black-forest-labs/FLUX.1-dev", Licence("flux-1-dev", "https://example.com/l", "no training"))
MODELS = [FLUX, Model("edit", "kontext", Licence("apache-2.0")), Model("judge", "judge", Licence("unknown"))]
ODD = "a \x0b <&>\"'\r\n ]]> \U0001f98a \u2028 \ufffe ../../etc/passwd " + "fox " * 4000
ROWS = [
    {"id": "../../escape", "prompt": ODD, "note": "\0" + ODD, "my_file_name": "../../../etc/passwd", "n": 1},
    {"id": "a/b", "prompt": "{__import__('os')} $(reboot)", "image": "mine", "recipe": {"a": 1}, "caption": "own"},
    {"id": "<script>", "prompt": "IDAT IEND tEXt", "n": 1.5, "key": "mine", "margin": "thin"},
    *({"id": f"r{n}", "prompt": f"fox {n}", "n": n} for n in range(9)),
]
EDITS = [
    {"id": "e0", "prompt": ODD, "images": [{"row": "../../escape", "sample": 0}]},
    {"id": "e1", "prompt": "make it blue", "images": "given.png"},
]


META = {"recipe": {"model": "owner/name@abc"}, "versions": {"diffusers": "1.2"}, "failed": 0}


def _sources(folder, plan, shard):
    """The files of images that a shard of edits starts from."""
    shards = sorted({reference.shard for reference in plan.references(shard)})
    return {"images": [folder / f"{name}.parquet" for name in shards]}


@functools.cache
def picture(number, side):
    return encode_png(Image.fromarray(np.random.default_rng(number).integers(0, 256, (side, side, 3), "uint8")))


def build(folder, rows=ROWS, edits=EDITS, samples=3, side=16, distinct=1000, select=None, **settings):
    """Shards and tables as jobs leave them; the score of sample n is 0.3 + 0.3 n, and sample 2 of row e0 has failed."""

    given = picture(7, side)
    (folder / "given.png").write_bytes(given)
    kinds, plans, made = [], {}, {}
    for kind, name, table in (("images", "prompts", rows), ("edited", "edits", edits)):
        if not table:
            continue
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
        plan = plans[kind] = make_plan(path, name, 4, folder / "results", samples, plans.get("images"))
        columns = EDITED_COLUMNS if kind == "edited" else IMAGE_COLUMNS
        (folder / name).mkdir(exist_ok=True)
        for shard in plan.names:
            (folder / name / f"{shard}.jsonl").write_bytes(plan.read(shard))
            write_shard(
                folder / kind / f"{shard}.parquet",
                columns,
                _records(kind, plan.read(shard), samples, side, distinct, made, given),
                {"digest": "i", "rule": "r"} | META,
            )
            scores = [_score(kind, record) for record in iter_records(folder / kind / f"{shard}.parquet")]
            path = folder / "scores" / kind / "judge" / f"{shard}.parquet"
            write_shard(path, score_columns(RUBRIC.columns(kind)), scores, {"digest": "s", "rule": "r", "recipe": {}})
        digests = dict.fromkeys(plan.names, "i"), {"judge": dict.fromkeys(plan.names, "s")}
        files = ShardFiles.below(folder / name, folder / kind, folder / "scores" / kind)
        made_by = {"section": "edit", "reads": "images"} if kind == "edited" else {}
        if kind == "edited":
            files = replace(files, sources=lambda shard, plan=plan: _sources(folder / "images", plan, shard))
        members = {shard: [shard] for shard in plan.names}
        kinds.append(Kind(kind, plan, samples, files, *digests, members, rows=name, **made_by))
    select = select or Select(images={"p_yes": 0.5})
    merge_scores(kinds, RUBRIC.catalogue, select, folder / "scores.parquet", folder / "scores.csv", {"digest": "d"})

    def export(format, to="exports", **changes):
        return Export(
            format=format,
            folder=folder / to / format,
            kinds=kinds,
            table=folder / "scores.parquet",
            table_digest="d",
            catalogue=RUBRIC.catalogue,
            settings=models.Export(**SETTINGS | settings | changes),
            select=select,
            models=MODELS,
            digest="digest of the export",
            rows={"images": folder / to / format / "prompts.jsonl", "edited": folder / to / format / "edits.jsonl"},
        )

    return export


def _records(kind, lines, samples, side, distinct, made, given):
    for line in map(json.loads, lines.splitlines()):
        own = {k: v for k, v in line["row"].items() if k not in ("id", "prompt", "images")}
        source = line["items"][0].get("source")
        for sample in range(samples):
            key = digest([kind, line["id"], sample])
            data = picture(int(key, 16) % distinct, side)
            failed = line["id"] == "e0" and sample == 2
            record = dict.fromkeys(EDITED_COLUMNS if kind == "edited" else IMAGE_COLUMNS) | {
                **{"key": key, "row": line["id"], "item": 0, "sample": sample, "prompt": line["items"][0]["prompt"]},
                **{"seed": sample, "width": side, "height": side, "steps": 2, "guidance": 3.5, "true_cfg": 1.0},
                **{"origin": "generated", "fields": json.dumps(own), "error": "no image" if failed else None},
                "sha256": None if failed else hashlib.sha256(data).hexdigest(),
                "image": None if failed else {"bytes": data, "path": f"{key}.png"},
            }
            made[line["id"], sample] = data
            if source:
                start = given if "path" in source else made[source["row"], source["sample"]]
                record["source"] = {"bytes": start, "path": "source.png"}
                record["source_sha256"] = hashlib.sha256(start).hexdigest()
                record["source_name"] = source_name(source)
                record["source_origin"] = "given" if "path" in source else "generated"
                record["source_kind"] = None if "path" in source else "images"
            yield record


def _score(kind, record):
    score = {name: record.get(name) for name in ("key", "row", "item", "sample", "prompt", "sha256", "fields")}
    score["image_key"] = record["key"]
    if record["error"] is None:
        p = round(0.3 + 0.3 * record["sample"], 6)
        score |= (
            {"p_yes": p, "quality": record["sample"], "mark": f"nr {record['sample']}"}
            if kind == "images"
            else {"p_followed": p}
        )
    return score


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    export = build(folder)
    counts = {format: write_export(export(format)) for format in FORMATS}
    return folder, export, counts


def originals(folder, kind):
    """key -> the record of an image as its shard has it."""
    return {r["key"]: r for p in sorted((folder / kind).glob("*.parquet")) for r in iter_records(p)}


def table(folder, kind):
    """Our columns of the selected images of a kind, then those of the user that have other names."""
    lines = [own | line for line, own in Table(folder / "scores.parquet").records(1000)]
    return [line for line in lines if line["kind"] == kind and line["selected"]]


def pixels(image):
    image = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
    return image.convert("RGB").tobytes()


def loaded(folder, format, kind):
    import datasets

    path = str(folder / "exports" / format)
    return datasets.load_dataset(path, kind, split="train", cache_dir=str(folder / "cache"))


def samples(folder, kind):
    import webdataset

    tars = sorted((folder / "exports/webdataset" / kind).glob("*.tar"))
    return list(webdataset.WebDataset([str(path) for path in tars], shardshuffle=False, empty_check=False))


def as_read(folder, format, kind):
    """Records of an export as its users' libraries read them: one form for all, with `image` and `source`."""
    if format == "tars":
        return [
            json.loads(s["json"]) | {"image": s["png"], "text": s["txt"].decode(), "source": s.get("source.png")}
            for s in samples(folder, kind)
        ]
    rows = loaded(folder, format, kind)
    if format == "webdataset":  # as `datasets` reads the tar files
        return [r["json"] | {"image": r["png"], "text": r["txt"], "source": r.get("source.png")} for r in rows]
    return list(rows)


@pytest.mark.parametrize("kind", ["images", "edited"])
@pytest.mark.parametrize("format", ["parquet", "imagefolder", "webdataset", "tars"])
def test_an_export_read_back_is_what_was_selected(built, format, kind):
    folder, _, counts = built
    wanted, stored, read = table(folder, kind), originals(folder, kind), as_read(folder, format, kind)
    assert len(read) == len(wanted) == counts[format if format != "tars" else "webdataset"][kind] > 0
    assert len(wanted) < len(stored)
    for line, record in zip(wanted, read, strict=True):
        full = stored[line["key"]]
        as_column = f"{'darkroom_' * (kind == 'images' and format in ('parquet', 'imagefolder'))}image"
        assert pixels(record[as_column]) == pixels(full["image"]["bytes"])
        if kind == "edited":
            assert pixels(record["source"]) == pixels(full["source"]["bytes"])
        scores = ["p_yes", "p_yes_mass", "quality", "mark"] if kind == "images" else ["p_followed"]
        for name in ["row", "seed", "sample", "prompt", "sha256", *scores]:
            assert record[name] == line[name], name
        ours = "darkroom_" if kind == "images" else ""  # where prompts have fields of these names
        assert record[f"{ours}key"] == line["key"]
        assert json.loads(record[f"{ours}recipe"]) == {"model": "owner/name@abc"}
        assert record["model"] == ("kontext" if kind == "edited" else FLUX.name)
        assert record.get("text", line["prompt"]) == line["prompt"]
    if kind == "images":  # the user's own columns keep their names and types, and are of the rows that have them
        own = {name: [record[name] for record in read] for name in ("note", "recipe", "key", "n", "caption")}
        assert {"mine", None} == set(own["key"]) and {"own", None} == set(own["caption"])
        assert {"a": 1} in own["recipe"] and 1.5 in own["n"] and ROWS[0]["note"] in own["note"]
    else:
        assert not {"note", "caption", "n"} & record.keys()


def test_rows_come_back_in_the_format_they_came_in(built):
    folder, export, _ = built
    rows = [json.loads(line) for line in (folder / "exports/folder/prompts.jsonl").open(encoding="utf-8")]
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS]
    for ending in (".jsonl.gz", ".json", ".csv", ".tsv", ".csv.gz", ".parquet"):
        other = export("folder", to=ending[1:])
        other.rows = {kind: path.with_suffix(ending) for kind, path in other.rows.items()}
        write_export(other)
        path = other.rows["images"]
        table = ending in (".csv", ".tsv", ".csv.gz")
        if table:
            with (gzip.open if ending == ".csv.gz" else open)(path, "rt", encoding="utf-8", newline="") as stream:
                back = list(csv.DictReader(stream, delimiter="\t" if ending == ".tsv" else ","))
        elif ending == ".json":
            back = json.loads(path.read_bytes())
        elif ending == ".parquet":
            back = pq.read_table(path).to_pylist()
        else:
            back = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        for row, line in zip(rows, back, strict=True):
            for name, value in row.items():
                nested = table and isinstance(value, list | dict)
                assert line[name] == (json.dumps(value) if nested else str(value) if table else value), name


def test_an_id_or_a_prompt_never_becomes_a_path(built):
    folder, _, _ = built
    for format in FORMATS:
        for path in (folder / "exports" / format).rglob("*"):
            name = path.relative_to(folder / "exports").as_posix()
            assert all(c in "0123456789abcdefghijklmnopqrstuvwxyz._-/ADEHMRSUT" for c in name.replace("SUMS", "")), name
    line = json.loads((folder / "exports/imagefolder/images/metadata.jsonl").read_text().split("\n")[0])
    assert line["darkroom_image_file_name"].startswith("pictures/")  # the rows have an `image` of their own
    assert [name for name in line if name.endswith("file_name")] == ["darkroom_image_file_name"]
    assert "my_file_name_" in line


def test_the_same_results_give_the_same_bytes_and_the_sums_are_right(built):
    folder, export, _ = built
    for format in FORMATS:
        write_export(export(format, to="again"))
        for harmed in (folder / "again" / format).rglob("*.*"):  # what is there already is looked at, not believed
            if harmed.is_file():
                harmed.write_bytes(harmed.read_bytes()[:-1] + b"x")
        write_export(export(format, to="again"))
        files = [path for path in (folder / "exports" / format).rglob("*") if path.is_file()]
        named = (folder / "exports" / format / "SHA256SUMS").read_text().splitlines()
        assert len(files) == len(named) + 1 and list(wrong_files(folder / "exports" / format)) == []
        for path in files:
            twin = folder / "again" / path.relative_to(folder / "exports")
            assert twin.read_bytes() == path.read_bytes(), path
        done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder / "exports" / format)
        assert done.returncode == 0


def test_a_smaller_selection_leaves_nothing_of_the_larger_one(tmp_path):
    select = Select(images={"p_yes": 0.8}, edited={"p_followed": 2})
    export = build(tmp_path)
    for format in FORMATS:
        write_export(export(format, to="reused"))
        (tmp_path / "reused" / format / "mine.txt").write_text("of the user's own")
    export = build(tmp_path, select=select)
    for format in FORMATS:
        (tmp_path / "reused" / format / "images").mkdir(exist_ok=True)
        (tmp_path / "reused" / format / "images/.train-00009.parquet").write_text("of a killed job")
        counts = [write_export(export(format, to=to)) for to in ("reused", "fresh")]
        assert counts[0] == counts[1] and counts[0]["edited"] == 0 < counts[0]["images"]
        assert (tmp_path / "reused" / format / "mine.txt").exists()
        sums = [(tmp_path / to / format / "SHA256SUMS").read_text() for to in ("reused", "fresh")]
        assert sums[0] == sums[1]
        files = {p.relative_to(tmp_path / "reused" / format) for p in (tmp_path / "reused" / format).rglob("*.[pt]*")}
        assert {str(f) for f in files if (tmp_path / "reused" / format / f).is_file()} - {"mine.txt"} <= {
            line.split("  ")[1] for line in sums[0].splitlines()
        } | ({"images/.train-00009.parquet"} if format in ("folder", "imagefolder") else set())


def test_files_are_cut_by_their_size_and_numbered(tmp_path):
    export = build(tmp_path, side=256)  # some 200 KB each
    for format, pattern in (("parquet", "train-{}-of-{}.parquet"), ("webdataset", "train-0{}.tar")):
        count = write_export(export(format))["images"]
        files = sorted((tmp_path / "exports" / format / "images").glob("train-*"))
        assert len(files) > 3 and all(path.stat().st_size < 1.05e6 for path in files)
        names = [pattern.format(f"{n:05d}", f"{len(files):05d}") for n in range(len(files))]
        assert [path.name for path in files] == names
        assert len(as_read(tmp_path, format, "images")) == count
    assert [list(run) for run in runs("aabccc", 2, lambda c: {"a": 1, "b": 5, "c": 1}[c])] == [
        ["a", "a"],
        ["b"],
        ["c", "c"],
        ["c"],
    ]


def test_a_png_says_how_it_was_made_and_keeps_its_pixels(built):
    folder, export, _ = built
    write_export(export("folder", to="silent", provenance=False))
    stored = originals(folder, "images") | originals(folder, "edited")
    types = {"images": CREATED, "edited": None}
    for kind in types:
        for line in table(folder, kind):
            name = f"folder/{kind}/{line['shard']}/{line['key']}.png"
            data, original = (folder / "exports" / name).read_bytes(), stored[line["key"]]["image"]["bytes"]
            assert (folder / "silent" / name).read_bytes() == original
            with Image.open(io.BytesIO(data)) as image:
                assert pixels(image) == pixels(original)
                text, xmp = image.text, image.info["xmp"]
            assert text["prompt"] == line["prompt"]
            assert text["revision"] == "abc" and text["Software"] == "Darkroom (diffusers 1.2)"
            assert (text["key"], text["seed"], text["sha256"]) == (line["key"], str(line["seed"]), line["sha256"])
            assert hashlib.sha256(without_text(data)).hexdigest() == line["sha256"]
            found = {element.tag.rpartition("}")[2]: element.text for element in ET.fromstring(xmp).iter()}
            expected = EDITED if line["row"] == "e1" else CREATED
            assert found["DigitalSourceType"] == SOURCE_TYPES + expected
            as_xml = "".join("\ufffd" if c in "\x0b\ufffe" else c for c in line["prompt"])
            assert found["AIPromptInformation"] == as_xml
    # A source is marked where it is an image of this run, and left alone where the user gave it.
    given = hashlib.sha256((folder / "given.png").read_bytes()).hexdigest()
    for line in table(folder, "edited"):
        source = folder / f"exports/folder/sources/{line['shard']}/{line['source_sha256'][:32]}.png"
        assert ("prompt" in Image.open(source).text) == (line["source_sha256"] != given)
        assert hashlib.sha256(without_text(source.read_bytes())).hexdigest() == line["source_sha256"]


def test_a_pair_is_of_one_source():
    """Samples of an edit of an edit may each start from their own."""
    one, other = ({"row": "e", "item": 0, "sample": n, "source_sha256": f"{n}"} for n in (0, 1))
    assert asked("edited", one) == asked("edited", one | {"sample": 1}) != asked("edited", other)
    assert asked("inverted", one) == asked("inverted", other)  # of whose sources the pair is told as well


def test_a_source_of_this_run_stays_known_as_that_where_its_image_was_made_again(tmp_path):
    """The edit, and its source as the edit's shard holds it, are marked as before; the seed and the prompt are the same."""
    export = build(tmp_path)("folder")
    kind = next(kind for kind in export.kinds if kind.name == "edited")
    line = next(line for line in table(tmp_path, "edited") if line["source_origin"] == "generated")
    full = originals(tmp_path, "edited")[line["key"]]

    def marked():
        marker = export.marker(kind)
        image = marker.image(line["shard"], line, full["image"]["bytes"])
        return image, marker.source(line["shard"], line, full["source"]["bytes"])

    before = marked()
    for path in (tmp_path / "images").glob("*.parquet"):
        records = list(iter_records(path))
        for record in records:
            data = picture(int(record["key"], 16) % 1000 + 1000, 16)
            record |= {"image": {"bytes": data, "path": "p"}, "sha256": hashlib.sha256(data).hexdigest()}
        write_shard(path, IMAGE_COLUMNS, records, {"digest": "i", "rule": "r"} | META)
    assert marked() == before
    image, source = (Image.open(io.BytesIO(data)) for data in before)
    assert (
        SOURCE_TYPES + CREATED in image.info["xmp"].decode() and SOURCE_TYPES + CREATED in source.info["xmp"].decode()
    )
    assert source.text["sha256"] == line["source_sha256"] == hashlib.sha256(full["source"]["bytes"]).hexdigest()


def test_text_that_a_png_cannot_hold_harms_neither_it_nor_its_xmp():
    for prompt in ("a\0b", "", "\ufeff\uffff", "".join(map(chr, range(1, 0xD800))), "\U0001f98a" * 25_000):
        png = with_text(picture(1, 16), {"prompt": prompt}, xmp_packet(CREATED, prompt, "", prompt, prompt))
        with Image.open(io.BytesIO(png)) as image:
            assert pixels(image) == pixels(picture(1, 16))
            assert image.text["prompt"] == prompt.replace("\0", "\ufffd")
            root = ET.fromstring(image.info["xmp"])
        assert SOURCE_TYPES + CREATED in [element.text for element in root.iter()]


def without_text(png):
    """A PNG file without its iTXt chunks, told apart by their lengths as the standard has it."""
    kept, at = png[:8], 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big") + 12
        if png[at + 4 : at + 8] != b"iTXt":
            kept += png[at : at + length]
        at += length
    return kept


def test_pairs_are_the_best_kept_against_the_worst_sample(built):
    folder, export, counts = built
    assert counts["preferences"] == {"images": len(ROWS), "edited": len(EDITS)}
    for kind, by in (("images", "p_yes"), ("edited", "p_followed")):
        stored = originals(folder, kind)
        pairs = list(loaded(folder, "preferences", kind))
        for pair in pairs:
            best, worst = (0, 1) if pair["label_0"] else (1, 0)
            assert (pair[f"label_{best}"], pair[f"label_{worst}"]) == (1.0, 0.0)
            assert pair[f"sample_{worst}"] == 0 and pair[f"sample_{best}"] == (1 if pair["row"] == "e0" else 2)
            ours = "darkroom_" if kind == "images" else ""  # where prompts have fields of these names
            difference = pair[f"{by}_{best}"] - pair[f"{by}_{worst}"]
            assert pair["score"] == by and pair[f"{ours}margin"] == difference > 0
            for number in (0, 1):
                full = stored[pair[f"image_{number}_uid"]]
                assert pair[f"jpg_{number}"] == full["image"]["bytes"]
                assert (full["row"], full["sample"]) == (pair["row"], pair[f"sample_{number}"])
            assert pair["best_image_uid"] == pair[f"image_{best}_uid"] and pair[f"{ours}caption"] == full["prompt"]
            if kind == "edited":
                assert pixels(pair["source"]) == pixels(full["source"]["bytes"])
        if kind == "images":
            assert all(pair[f"mark_{n}"] == f"nr {pair[f'sample_{n}']}" for pair in pairs for n in (0, 1))
            assert {pair["label_0"] for pair in pairs} == {0.0, 1.0} and "image_label_0" in pairs[0]
            assert {"own", None} == {pair["caption"] for pair in pairs}
            assert {"thin", None} == {pair["margin"] for pair in pairs}
    few = write_export(export("preferences", to="few", preferences={"margin": 0.5}))
    assert few == {"images": len(ROWS), "edited": 1}


def test_the_description_is_valid_croissant_and_gives_the_records(built, monkeypatch, tmp_path):
    import mlcroissant
    from mlcroissant._src.operation_graph.operations import extract

    monkeypatch.setattr(
        extract, "EXTRACT_PATH", type(extract.EXTRACT_PATH)(tmp_path)
    )  # which knows files by name alone
    folder, _, counts = built
    for format in FORMATS:
        described = mlcroissant.Dataset(jsonld=folder / "exports" / format / "croissant.json")
        assert described.metadata.ctx.issues.errors == set()
        for kind in ("images", "edited"):
            records = list(described.records(kind))
            wanted = table(folder, kind)
            assert len(records) == (counts[format][kind] if format == "preferences" else len(wanted))
            if format in ("imagefolder", "parquet"):
                key = "darkroom_key" if kind == "images" else "key"
                read = [record[f"{kind}/{key}"].decode() for record in records]
                assert read == [line["key"] for line in wanted]
            if format == "webdataset":
                assert all(isinstance(record[f"{kind}/image"], Image.Image) for record in records)


def test_the_card_says_what_was_used_and_under_which_licence(built):
    folder, _, _ = built
    for format in FORMATS:
        text = (folder / "exports" / format / "README.md").read_text()
        header = yaml.safe_load(text.split("---")[1])
        assert (header["pretty_name"], header["license"]) == ("foxes", "cc-by-4.0")
        for word in (
            FLUX.name,
            "flux-1-dev",
            "https://example.com/l",
            "no training",
            "apache-2.0",
            "p_yes at least 0.5",
        ):
            assert word in text, word


def test_the_card_says_where_labels_decided(built):
    made = replace(built[1]("parquet", to="labelled"), by_label=True)
    write_export(made)
    told = "what a person rejected was left out"
    assert told in (made.folder / "README.md").read_text()
    assert told not in (built[0] / "exports/parquet/README.md").read_text()


def test_what_is_not_of_the_tables_is_refused(tmp_path):
    export = build(tmp_path)
    shard = sorted((tmp_path / "images").glob("*.parquet"))[0]
    records = list(iter_records(shard))
    meta = {"digest": "i", "rule": "r", "recipe": {"model": "m"}}
    write_shard(shard, IMAGE_COLUMNS, [records[0], *records[:-1]], meta)
    with pytest.raises(DarkroomError, match="not the image of the tables; run snakemake again"):
        write_export(export("parquet"))
    assert not (tmp_path / "exports/parquet/SHA256SUMS").exists()
    write_shard(shard, IMAGE_COLUMNS, records, meta | {"digest": "another"})
    with pytest.raises(DarkroomError, match="stale"):
        write_export(export("webdataset"))
    (tmp_path / "scores.parquet").unlink()
    with pytest.raises(DarkroomError, match=r"scores\.parquet: no such file"):
        write_export(export("folder"))


MEASURE = """
import resource, sys
from pathlib import Path
sys.path[:0] = sys.argv[1].split(':')
import pyarrow, pyarrow.parquet
import test_exports
from darkroom.exports import FORMATS
from darkroom.exports.write import write_export
rows = [{"id": f"r{n}", "prompt": f"fox {n}"} for n in range(int(sys.argv[3]))]
export = test_exports.build(Path(sys.argv[2]), rows, [], 2, side=128, distinct=3, select=test_exports.ALL)
if sys.argv[4] == "write":
    for format in FORMATS:
        write_export(export(format))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
ALL = Select()


def peak(folder, rows, what):
    """MB that a process takes at most which makes shards, and writes all exports of them."""
    folder.mkdir()
    command = [
        sys.executable,
        "-c",
        MEASURE,
        ":".join([str(Path(__file__).parent), str(REPOSITORY / "tests"), str(REPOSITORY / "scripts")]),
        str(folder),
        str(rows),
        what,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    return int(done.stdout)


@pytest.mark.long
def test_memory_does_not_grow_with_the_images(tmp_path):
    """10 times the images: 45 MB of pictures more, each of which goes through every export."""
    small, large = (peak(tmp_path / str(rows), rows, "write") for rows in (50, 500))
    assert large - small < 25
