"""A family that an extension brings, in real runs: no model is looked up, fetched, licensed or loaded, and no device is taken."""

import json
import os

import pandas as pd
import pytest
from conftest import FLAT_COLOUR, Run, clear_logs, environment, made, read_requests, shards, small_config
from darkroom.engines.work import ShardJob, packed
from darkroom.jobs.spread import spread
from darkroom.make import identify
from darkroom.plan.recipe import image_recipe
from darkroom.store.scratch import Scratch
from darkroom.store.shardfile import iter_records, read_meta
from darkroom.store.sources import Sources
from test_engines import filled, lines


def a_run(folder, **generate):
    folder.mkdir()
    config = small_config(generate={"family": "flat-colour", "model": "nobody/no-such-model"} | generate)
    run = Run(folder, config | {"extensions": [str(FLAT_COLOUR)], "export": {"formats": ["folder", "parquet"]}})
    (folder / "silent.yaml").write_text("images: []\nedited: []\n")
    run.config["judge"]["rubric"] = str(folder / "silent.yaml")
    rows = [{"id": f"p{n}", "prompt": f"number {n}", "width": 40 + n} for n in range(9)]
    rows += [{"prompt": "told in vain", "negative_prompt": "blurry"}, {"prompt": "told in vain", "steps": 3}]
    run.write_rows("prompts.jsonl", rows)
    return run


def test_a_set_is_made_by_a_family_without_a_model(tmp_path):
    run = a_run(tmp_path / "one", device="auto", gpus=2)
    run.env = environment() | {"CUDA_VISIBLE_DEVICES": "0,1"}
    run.snakemake()
    paths = sorted(run.results.glob("images/**/*.parquet"))
    records = [record for path in paths for record in iter_records(path)]
    assert sorted(record["width"] for record in records) == list(range(40, 49))
    assert all(record["error"] is None and record["seed"] is not None for record in records)
    assert {record["steps"] for record in records} == {record["negative_prompt"] for record in records} == {None}
    rejected = [json.loads(line) for line in (run.results / "rejected.jsonl").read_text().splitlines()]
    assert [
        (line["line"], line["reason"].partition(" has no effect on a model of the family flat-colour;")[:2])
        for line in rejected
    ] == [
        (n, (f"{name}:", " has no effect on a model of the family flat-colour;"))
        for n, name in ((10, "negative_prompt"), (11, "steps"))
    ]
    meta = read_meta(paths[0])
    assert meta["recipe"]["model"] == "family:flat-colour" and set(meta["versions"]) == {"pillow"}
    logs = "".join(path.read_text() for path in run.results.glob("logs/generate_images/**/*.log"))
    assert "model family:flat-colour\n" in logs and "device cpu, dtype uint8" in logs and "of 0, 1" not in logs
    assert not (run.results / ".darkroom/models").exists()
    card = (run.results / "exports/parquet/README.md").read_text()
    assert "| generate | flat-colour | none |" in card
    # What its pixels do not depend on makes nothing anew; another run makes the same.
    run.config["generate"] |= {"dtype": "float16", "model": "nobody/another-model"}
    assert run.planned() == {}
    other = a_run(tmp_path / "two")
    other.snakemake()
    assert shards(run) == shards(other)


def test_worker_processes_load_the_extension(tmp_path, flat_colour):
    section = filled({"family": "flat-colour"}, "generate", tmp_path)
    data = lines(*({"items": [{"prompt": f"number {n}"}]} for n in range(12)))
    job = ShardJob(
        name="generate",
        section=section,
        recipe=image_recipe(section),
        digest="d",
        folder=tmp_path,
        rule="generate_images",
        scratch=Scratch(tmp_path / "scratch"),
        extensions=(str(FLAT_COLOUR),),
    )
    requests = read_requests(data, section, 0, 1)
    sizes = identify(requests, job, Sources(tmp_path, []), {})
    held = {device: os.open(tmp_path / device, os.O_CREAT | os.O_RDWR) for device in ("0", "1")}
    reports = list(spread("darkroom.engines.work:work_apart", (packed(job), requests, sizes), "generate", held))
    for lock in held.values():
        os.close(lock)
    assert sum(done for done, _ in reports) == 12 and not any(failed for _, failed in reports)
    assert all(job.scratch.has(request.key) for request in requests)


@pytest.mark.parametrize(
    ("generate", "line"),
    [
        (
            {"quantization": "int8"},
            "config: generate.quantization: works with the families flux, flux-kontext, ",
        ),
        (
            {"family": "flat-color"},
            "config: generate.family: expected one of flux, flux-kontext, ",
        ),
    ],
)
def test_a_setting_that_the_family_cannot_take_stops_before_anything_runs(tmp_path, generate, line):
    done = a_run(tmp_path / "run", **generate).snakemake("-n", check=False)
    assert done.returncode == 1 and line in done.stderr


def test_made_prompts_are_made_into_images_and_a_new_value_changes_its_own_alone(tmp_path):
    run = a_run(tmp_path / "run")
    fields = {"colour": ["red", "green"], "width": {"range": [40, 48]}}
    run.config["prompts"] = {"template": "a {colour} wall", "fields": fields, "rows": 30}
    run.config["shards"] = {"size": 10}
    run.snakemake()
    table = pd.read_parquet(run.results / "scores.parquet")
    assert len(table) == 30 and table["error"].isna().all() and set(table["colour"]) == {"red", "green"}
    assert all(row.prompt == f"a {row.colour} wall" for row in table.itertuples())
    assert set(table["width"]) <= set(range(40, 49)) and table["width"].nunique() > 3
    assert run.planned() == {}
    clear_logs(run)
    run.config["prompts"]["fields"] = fields | {"colour": ["blue", "red", "green"]}
    run.snakemake()
    after = pd.read_parquet(run.results / "scores.parquet")
    new = (after["prompt"] != table["prompt"]).sum()
    assert 0 < new < 20 and set(after.loc[after["prompt"] != table["prompt"], "colour"]) == {"blue"}
    # A seed goes by the row's number, so of a family that goes by seed and size alone no image is made again.
    assert (after["seed"] == table["seed"]).all() and made(run) == 0
