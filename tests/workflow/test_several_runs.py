"""Two generators and two editors in a real run, by families without a model."""

import json

import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY, Run, copied, image_files, opened, small_config
from darkroom.store.shardfile import iter_records
from darkroom.tools.forecast import forecast
from darkroom.views.report import KindReport, Score, read_shared

SMALL, WIDE = {"width": 24, "height": 24}, {"width": 40, "height": 24}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("several"))
    (run.folder / "silent.yaml").write_text("images: []\nedited: []\n")
    names = ("flat_colour", "blend", "brightness")
    run.config = small_config(
        extensions=[str(REPOSITORY / f"tests/extensions/{name}.py") for name in names],
        edits="edits.jsonl",
        generate={"family": "flat-colour"},
        edit={"family": "blend", "same": {}, "wide": WIDE},
        judge={"rubric": "silent.yaml"},
        metrics={"brightness": None},
        select={"images": {"brightness": 0}},
        samples_per_prompt=2,
        gallery={"enabled": True},
        report={"enabled": True},
        export={"formats": ["folder", "parquet", "preferences"]},
        shards={"size": 1000},
    )
    run.config["generate"] = {"family": "flat-colour", "device": "cpu", "small": SMALL, "wide": WIDE}
    run.write_rows(
        "prompts.jsonl",
        [{"id": "both", "prompt": "a colour"}, {"id": "one", "prompt": "another", "models": ["wide"], "note": "mine"}],
    )
    edits = [
        {"id": "e", "prompt": "first", "images": [{"row": "both", "sample": 1, "model": "wide"}]},
        {"id": "f", "prompt": "of one", "images": [{"row": "both", "model": "small"}], "models": "same"},
    ]
    run.write_rows("edits.jsonl", edits)
    run.snakemake()
    return run


def records(run, stage):
    return {(r["row"], r["sample"]): r for path in image_files(run, stage) for r in iter_records(path)}


def test_each_model_makes_the_rows_that_go_to_it(done):
    small, wide = records(done, "images-small"), records(done, "images-wide")
    assert set(small) == {("both", 0), ("both", 1)} and set(wide) == {*small, ("one", 0), ("one", 1)}
    assert all(small[place]["seed"] == wide[place]["seed"] for place in small)
    assert {record["width"] for record in wide.values()} == {40}
    same, wider = records(done, "edited-same"), records(done, "edited-wide")
    assert {row for row, _ in same} == {"e", "f"} and {row for row, _ in wider} == {"e"}
    for edited in (same, wider):
        assert edited["e", 0]["source_sha256"] == wide["both", 1]["sha256"]
        assert edited["e", 0]["source_kind"] == "images-wide"
    assert same["f", 0]["source_sha256"] == small["both", 0]["sha256"]
    assert same["f", 0]["source_kind"] == "images-small" and same["f", 0]["width"] == 24


def test_tables_exports_gallery_and_report_have_them(done):
    table = pd.read_parquet(done.results / "scores.parquet")
    told = table.groupby(["kind", "model"]).size().to_dict()
    assert told == {
        ("images-small", "small"): 2,
        ("images-wide", "wide"): 4,
        ("edited-same", "same"): 4,
        ("edited-wide", "wide"): 2,
    }
    rows = [json.loads(line) for line in (done.results / "dataset/images-wide-prompts.jsonl").read_text().splitlines()]
    assert [(row["id"], row.get("models")) for row in rows] == [("both", None), ("one", ["wide"])]
    assert len((done.results / "dataset/images-small-prompts.jsonl").read_text().splitlines()) == 1
    for format in ("parquet", "preferences"):
        assert (done.results / "exports" / format / "images-wide").is_dir()
    (path,) = (done.results / "exports/parquet/images-wide").glob("*.parquet")
    assert pq.read_table(path)["model"].unique().to_pylist() == ["wide"]
    index = (done.results / "gallery/index.js").read_text().split("\n")[1]
    kinds = json.loads(index.removeprefix("gallery.index(").removesuffix(");"))["kinds"]
    assert {name: (kind["of"], kind["many"]) for name, kind in kinds.items()}["images-wide"] == (
        "images",
        "images by wide",
    )
    assert {kind["of"] for kind in kinds.values()} == {"images", "edited"}
    catalogue = opened(done, planned=False).catalogue
    scores = {column.name: Score.of(column, *column.limits) for column in catalogue.scores("images")}
    kinds = [KindReport(name, by="brightness", scores=scores) for name in ("images-small", "images-wide")]
    compared = read_shared(done.results / "scores.parquet", catalogue, kinds)
    assert [(kind.requests, kind.scores["brightness"].number) for kind in compared] == [(2, 2), (2, 2)]
    assert {path.name for path in (done.results / "plots").glob("*_models.svg")} == {
        "images_models.svg",
        "edited_models.svg",
    }


def test_commands_have_them_and_nothing_is_made_twice(done, tmp_path):
    assert done.planned() == {}
    assert "images-wide images" in done.darkroom("verify").stdout
    lines = done.darkroom("watch", "--once").stdout.splitlines()
    assert lines[-1].startswith("complete: ") and any(line.startswith("images-small") for line in lines)
    replayed = done.darkroom("replay", "--row", "both", "--kind", "images-wide").stdout
    assert "every pixel is the one that is stored" in replayed
    run = copied(done, tmp_path / "copy")
    run.config["generate"] = run.config["generate"] | {"small": SMALL | {"width": 32}}
    jobs = run.planned()
    assert jobs["generate_images_small"] == 1 and "generate_images_wide" not in jobs
    assert jobs["edit_images_same"] == jobs["edit_images_wide"] == 1  # of both, the rows lie in one shard
    # Under other names, and as the only model, the same settings find what was made.
    run.config["generate"] = {"family": "flat-colour", "device": "cpu", "little": SMALL, "big": WIDE}
    run.write_rows("prompts.jsonl", [{"id": "both", "prompt": "a colour"}])
    run.config["edits"] = None
    assert {
        told.step.name: told.to_make for told in forecast(opened(run, planned=False)) if told.step.metric is None
    } == {
        "images-little": 0,
        "images-big": 0,
    }
    run.config["generate"] = {"family": "flat-colour", "device": "cpu"} | SMALL
    assert [told.to_make for told in forecast(opened(run, planned=False)) if told.step.metric is None] == [0]
