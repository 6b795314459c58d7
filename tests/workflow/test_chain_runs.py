"""Edits of edits in a real run, by families without a model: what is made from what, what fails, and what is made again."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPOSITORY, Run, clear_logs, copied, image_files, made, opened, shards, small_config
from darkroom.store.images import of_sheet
from darkroom.store.manifest import read_manifest
from darkroom.store.shardfile import EDITED_COLUMNS, iter_records, read_meta, write_shard_with_manifest
from darkroom.tools.forecast import forecast
from darkroom.tools.replay import replay
from PIL import Image

EDITS = [
    {"id": "c", "prompt": "third", "images": [{"edit": "b", "sample": 1}]},
    {"id": "b", "prompt": "second", "images": [{"edit": "a"}]},
    {"id": "a", "prompt": "first", "images": "own.png"},
    {"id": "p", "prompt": "of an image", "images": [{"row": "p"}]},  # an image and an edit may have one id
    {"id": "q", "prompt": "of its edit", "images": [{"edit": "p"}]},
    {"id": "m", "prompt": "of both", "sources": "together", "images": ["own.png", {"edit": "p", "sample": 1}]},
    {"id": "t", "conversations": ["one", "two"], "turns": "chain", "images": "own.png"},
    {"id": "lost", "prompt": "no source", "images": "not-there.png"},
    {"id": "after", "prompt": "of what failed", "images": [{"edit": "lost"}]},
    {"id": "one", "prompt": "round", "images": [{"edit": "other"}]},
    {"id": "other", "prompt": "and round", "images": [{"edit": "one"}]},
]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("chain"))
    (run.folder / "silent.yaml").write_text("images: []\nedited: []\n")
    run.config = small_config(
        extensions=[str(REPOSITORY / f"tests/extensions/{name}.py") for name in ("flat_colour", "blend")],
        edits="edits.jsonl",
        generate={"family": "flat-colour", "width": 32, "height": 24},
        edit={"family": "blend"},
        judge={"rubric": "silent.yaml", "shards_per_job": 9},
        samples_per_prompt=2,
        shards={"size": 1000},
    )
    run.write_rows("prompts.jsonl", [{"id": "p", "prompt": "a colour"}])
    run.write_rows("edits.jsonl", EDITS)
    Image.new("RGB", (40, 30), "red").save(run.folder / "own.png")
    run.snakemake()
    return run


def records(run):
    return {(r["row"], r["sample"]): r for path in image_files(run, "edited") for r in iter_records(path)}


def test_each_edit_starts_from_the_result_that_it_names(done):
    made, images = records(done), [record for path in image_files(done) for record in iter_records(path)]
    assert len(made) == 20 and {record["sha256"] for record in made.values() if record["sha256"]}
    for name, sample, of, kind, origin in (
        ("c", 0, ("b", 1), "edited", "edited"),
        ("c", 1, ("b", 1), "edited", "edited"),
        ("b", 0, ("a", 0), "edited", "edited"),
        ("q", 1, ("p", 0), "edited", "generated"),
        ("t", 0, ("t#1", 0), "edited", "edited"),
        ("t", 1, ("t#1", 1), "edited", "edited"),
    ):
        record, before = made[name, sample], made[of]
        assert record["source_sha256"] == before["sha256"] and record["source"]["bytes"] == before["image"]["bytes"]
        assert (record["source_kind"], record["source_origin"]) == (kind, origin)
        assert record["source_name"] == f"{of[0]}/0/{of[1]}" and (record["width"], record["height"]) == (
            before["width"],
            before["height"],
        )
    of_image = made["p", 0]
    assert of_image["source_sha256"] == images[0]["sha256"] and of_image["source_kind"] == "images"
    assert (made["a", 0]["source_kind"], made["a", 0]["source_origin"]) == (None, "given")


def test_an_image_of_several_sources_is_known_by_all_of_them(done):
    made = records(done)
    record, (path,) = made["m", 0], [path for path in image_files(done, "edited") if "m" in _rows(path)]
    assert record["source_name"] == "own.png + p/0/1" and record["source_origin"] == "edited"
    parts = json.loads(record["source_parts"])
    own = Image.open(done.folder / "own.png").convert("RGB")
    other = Image.open(io.BytesIO(made["p", 1]["image"]["bytes"])).convert("RGB")
    assert [(part["name"], part["kind"], part["origin"]) for part in parts] == [
        ("own.png", None, "given"),
        ("p/0/1", "edited", "generated"),
    ]
    assert parts[1]["sha256"] == made["p", 1]["sha256"]
    beside = Image.open(io.BytesIO(record["source"]["bytes"]))
    found = of_sheet(beside, [(part["width"], part["height"]) for part in parts])
    assert [one.tobytes() for one in found] == [own.tobytes(), other.tobytes()]
    assert (record["width"], record["height"]) == own.size != other.size
    config = opened(done).config
    place = next(n for n, r in enumerate(iter_records(path, ["row", "sample"])) if (r["row"], r["sample"]) == ("m", 1))
    assert replay(path, place, config).equal and made["m", 1]["sha256"] != record["sha256"]


def _rows(path):
    return {record["row"] for record in iter_records(path, ["row"])}


def test_what_has_no_source_says_which_and_a_cycle_is_no_row(done):
    made = records(done)
    assert made["lost", 0]["error"].startswith("image not-there.png: No such file")
    assert made["after", 0]["error"] == f"source lost/0/0 was not made: {made['lost', 0]['error']}"
    rejected = [json.loads(line) for line in (done.results / "rejected.jsonl").read_text().splitlines()]
    cycle = "images: the edits start from each other, 'one' from 'other', 'other' from 'one'"
    assert [(line["line"], line["reason"]) for line in rejected] == [(10, cycle), (11, cycle)]
    done.darkroom("verify")
    table = pd.read_parquet(done.results / "scores.parquet").query("kind == 'edited'").set_index(["row", "sample"])
    assert table.loc[("c", 0), "source_kind"] == "edited" and table.loc[("p", 0), "source_kind"] == "images"
    exported = {row["id"]: row for row in map(json.loads, (done.results / "dataset/edits.jsonl").open())}
    assert set(exported) == {"a", "b", "c", "m", "p", "q", "t", "t#1"}
    texts = {  # how a picture was made is told of what it started from, too
        name: Image.open(done.results / "dataset" / exported[name]["images"][0]).text for name in ("c", "q", "p")
    }
    assert (texts["c"]["prompt"], texts["q"]["prompt"], texts["p"]["prompt"]) == ("second", "of an image", "a colour")
    assert "compositeWith" in texts["c"]["XML:com.adobe.xmp"] and "compositeWith" not in texts["q"]["XML:com.adobe.xmp"]


def file_of(run, name):
    return next(path for path in image_files(run, "edited") if name in _rows(path))


def test_what_is_lost_is_made_again_and_nothing_else(done, tmp_path):
    run = copied(done, tmp_path / "copy")
    path = file_of(run, "b")
    path.unlink()
    clear_logs(run)
    run.snakemake()
    assert made(run) == 8  # of b, m, q and t; c is carried over, and a failure is one once more
    assert shards(run) == shards(done)


def test_what_comes_back_otherwise_makes_what_follows_again(done, tmp_path):
    run = copied(done, tmp_path / "copy")
    path = file_of(run, "a")
    found = list(iter_records(path))
    first, second = (n for n, record in enumerate(found) if record["row"] == "a")
    found[first]["image"]["bytes"] = found[second]["image"]["bytes"]
    found[first]["sha256"] = found[second]["sha256"]
    manifest = read_manifest(path.with_suffix(".manifest"))
    write_shard_with_manifest(path, EDITED_COLUMNS, iter(found), read_meta(path), manifest["made_from"])
    assert {Path(file).name for file in opened(run).state.again} >= {file_of(run, "b").name}
    (told,) = [step for step in forecast(opened(run)) if step.name == "edited"]
    assert (told.stale, told.to_make, told.carried) == (2, 4, 6)
    clear_logs(run)
    run.snakemake()
    now = records(run)
    assert made(run) == 4  # b, and with it c; the others are carried over
    assert now["b", 0]["source_sha256"] == found[second]["sha256"]
    assert now["c", 0]["source_sha256"] == now["b", 1]["sha256"] != records(done)["b", 1]["sha256"]
    assert run.planned() == {}
