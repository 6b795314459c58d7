"""A family, a metric and a stage that one file each brings, in a real run: they are everywhere that the workflow's own are."""

import csv
import io
import json

import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY, Run, small_config
from darkroom.store.shardfile import iter_records, read_meta
from PIL import Image, ImageChops

EXTENSIONS = [str(REPOSITORY / f"tests/extensions/{name}.py") for name in ("flat_colour", "brightness", "invert")]
STEPS = ["images", "scores/judge/images", "scores/brightness/images", "inverted", "scores/brightness/inverted"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run of seven images, one of which is not made for its source was not."""
    run = Run(tmp_path_factory.mktemp("extensions"))
    (run.folder / "silent.yaml").write_text("images: []\n")
    run.config = small_config(
        extensions=EXTENSIONS,
        generate={"family": "flat-colour", "width": 32, "height": 24},
        judge={"rubric": "silent.yaml"},
        metrics={"brightness": None},
        select={"inverted": {"brightness": 0.5}},
        samples_per_prompt=3,
        gallery={"enabled": True},
        report={"enabled": True},
        export={"formats": ["folder", "parquet", "preferences"]},
        shards={"size": 1000},
    )
    lost = {"id": "lost", "prompt": "not there", "images": ["not-there.png"]}
    run.write_rows("prompts.jsonl", [*({"id": f"p{n}", "prompt": f"number {n}"} for n in range(2)), lost])
    run.snakemake()
    return run


def records(run, stage):
    return [record for path in run.results.glob(f"{stage}/*/*.parquet") for record in iter_records(path)]


def picture(record):
    return Image.open(io.BytesIO(record["image"]["bytes"])).convert("RGB")


def test_pictures_are_made_from_pictures_and_failures_go_on(done):
    made = {(record["row"], record["sample"]): record for record in records(done, "images")}
    inverted = records(done, "inverted")
    assert [(record["row"], record["sample"]) for record in inverted] == list(made) and len(made) == 7
    for record in inverted:
        before = made[record["row"], record["sample"]]
        if record["row"] == "lost":
            assert record["error"].startswith("source lost/0/0 was not made: ") and record["image"] is None
            continue
        assert record["source_sha256"] == before["sha256"] and record["prompt"] == before["prompt"]
        assert ImageChops.add(picture(record), picture(before)).getextrema() == ((255, 255),) * 3
        assert (record["width"], record["height"], record["seed"], record["steps"]) == (32, 24, None, None)
    (path,) = done.results.glob("inverted/*/*.parquet")
    assert read_meta(path)["recipe"] == {"family": "invert", "model": "family:invert", "strength": 1, "version": 1}


def test_tables_selection_and_exports_have_them(done):
    with open(done.results / "scores.csv", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["kind"] for line in lines] == ["images"] * 7 + ["inverted"] * 7
    good = [line for line in lines if not line["error"]]
    assert len(good) == 12 and all(0 <= float(line["brightness"]) <= 1 for line in good)
    bright = [line for line in good if line["kind"] == "inverted" and float(line["brightness"]) >= 0.5]
    kept = [line for line in lines if line["kind"] == "inverted" and line["selected"] == "True"]
    assert kept == bright and 0 < len(kept) < 6
    rows = [json.loads(line) for line in (done.results / "dataset/inverted-prompts.jsonl").read_text().splitlines()]
    assert sum(len(row["scores"]["brightness"]) for row in rows) == len(kept)
    for row in rows:
        names = row["inverted_images"] if isinstance(row["inverted_images"], list) else [row["inverted_images"]]
        sources = row["images"] if isinstance(row["images"], list) else [row["images"]]
        for name, source in zip(names, sources, strict=True):
            image, before = (Image.open(done.results / "dataset" / path) for path in (name, source))
            assert image.text["model"] == "invert" and before.text["model"] == "flat-colour"
            assert "trainedAlgorithmicMedia" in image.text["XML:com.adobe.xmp"]  # its source was made here, too
            assert "composite" not in image.text["XML:com.adobe.xmp"]
    (exported,) = done.results.glob("exports/parquet/inverted/*.parquet")
    table = pq.read_table(exported).to_pylist()
    assert {record["model"] for record in table} == {"invert"} and len(table) == len(kept)
    card = (done.results / "exports/parquet/README.md").read_text()
    assert "| generate | flat-colour | none |" in card and "| invert | invert | none |" in card
    assert "- inverted: brightness at least 0.5" in card
    (pairs,) = done.results.glob("exports/preferences/inverted/*.parquet")
    assert {pair["score"] for pair in pq.read_table(pairs).to_pylist()} == {"brightness"}


def test_gallery_and_report_have_them(done):
    index = (done.results / "gallery/index.js").read_text().split("\n")[1]
    told = json.loads(index.removeprefix("gallery.index(").removesuffix(");"))
    assert list(told["kinds"]) == ["images", "inverted"]
    for kind in told["kinds"].values():
        assert [score["name"] for score in kind["scores"]] == ["brightness"]
    (shard,) = done.results.glob("gallery/inverted/*-*/*.js")
    shown = json.loads(shard.read_text().split("\n")[1].removeprefix("gallery.shard(").removesuffix(");"))
    assert list(shown["metrics"]) == ["brightness"] and shown["recipe"]["family"] == "invert"
    plots = done.results / "plots"
    assert all((plots / f"inverted_{name}.svg").exists() for name in ("examples", "scores"))
    page = (plots / "recipe.html").read_text()
    assert "invert" in page and "strength" in page and "bt709" in page


def test_commands_have_them(done):
    def said(*arguments):
        return done.darkroom(*arguments).stdout

    assert [line.split()[0] for line in said("plan").splitlines()[1:]] == STEPS
    lines = said("watch", "--once").splitlines()
    assert [line.split()[0] for line in lines[1:6]] == STEPS and lines[-1].startswith("complete: ")
    assert "inverted scored by brightness" in said("verify")
    assert "prompts.jsonl, row lost, item 0, sample 0: inverted: source lost/0/0 was not made" in said("failures")
    assert "every pixel is the one that is stored" in said("replay", "--row", "p1", "--kind", "inverted")


def test_what_changes_decides_what_is_made_again(done):
    assert done.planned() == {}
    after = {"score_brightness": 1, "gallery_shard": 1, "merge_scores": 1, "gallery_index": 1, "draw_plots": 1}
    after |= {"write_dataset": 1, "export_dataset": 2, "all": 1}
    kept = done.config["metrics"]
    done.config["invert"] = {"strength": 0.9}
    assert done.planned() == after | {"invert_images": 1}
    del done.config["invert"]
    done.config["metrics"] = {"brightness": {"weights": "bt601"}}
    assert done.planned() == after | {"score_brightness": 2, "gallery_shard": 2}
    done.config["metrics"] = kept
    # A file that is lost comes back as it was, and nothing after it is made again.
    (path,) = done.results.glob("inverted/*/*.parquet")
    before = path.read_bytes()
    path.unlink()
    assert done.planned().get("invert_images") == 1 and "generate_images" not in done.planned()
    done.snakemake(str(path.relative_to(done.folder)))
    assert path.read_bytes() == before and done.planned() == {}
