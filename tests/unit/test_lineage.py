"""The path of a file changes with what decides the file, and with nothing else."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from darkroom.plan.groups import make_groups
from darkroom.plan.shards import make_plan
from darkroom.plan.stages import EDITED, IMAGES, Stage
from darkroom.run.lineage import Lineage, manifest_of

EVERY = Stage("upscaled", "prompts", "upscale", "upscale_images", reads="images", every=True)
ROWS = [{"id": f"p{n}", "prompt": f"a fox, {n}"} for n in range(12)]
EDITS = [{"id": "e0", "prompt": "blue", "images": [{"row": "p0", "sample": 0}]}, {"id": "e1", "prompt": "red"}]
RECIPES = {"images": {"steps": 4}, "edited": {"steps": 2}, "upscaled": {"factor": 2}}
METRICS = {"judge": {stage: {"model": "a"} for stage in RECIPES}, "brightness": {"images": {"version": 1}}}


def lineage(folder, rows=ROWS, shards_per_job=1, **changes):
    """The lineage of a run with three stages; the second edit starts from a picture of its own."""
    for name, lines in (("prompts", rows), ("edits", [EDITS[0], EDITS[1] | {"images": "own.png"}])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "own.png").write_bytes(b"own")
    prompts = make_plan(folder / "prompts.jsonl", "prompts", 4, folder / "results")
    edits = make_plan(folder / "edits.jsonl", "edits", 1, folder / "results", prompts=prompts)
    plans = {"prompts": prompts, "edits": edits}
    by_rows = {name: make_groups(folder / "results", name, plan, shards_per_job) for name, plan in plans.items()}
    stages = [IMAGES, EDITED, EVERY]
    groups = {stage.name: by_rows[stage.rows] for stage in stages}
    arguments = {"recipes": RECIPES, "metrics": METRICS, "seed": 1, "samples": 1, "shown": [1]} | changes
    return Lineage(results="results", stages=stages, plans=plans, groups=groups, **arguments)


def paths(found: Lineage) -> dict[str, set[str]]:
    """Step -> its files, the rows and the gallery among them."""
    told = {step.name: {file.path for file in found.files(step)} for step in found.steps()}
    told |= {rows: {found.rows_file(rows, name) for name in plan.shards} for rows, plan in found.plans.items()}
    shards = ((stage.name, name) for stage in found.stages for name in found.plans[stage.rows].shards)
    return told | {"gallery": {found.gallery_file(stage, shard) for stage, shard in shards}}


def changed(one: Lineage, other: Lineage) -> Iterator[str]:
    """Steps of which a file has another path."""
    before, after = paths(one), paths(other)
    return {name for name in before if before[name] != after[name]}


def test_every_file_has_a_path_of_its_own(tmp_path):
    told = paths(lineage(tmp_path))
    assert all(told.values()) and len(set.union(*told.values())) == sum(map(len, told.values()))
    assert list(told)[:6] == [
        "images",
        "scores/judge/images",
        "scores/brightness/images",
        "edited",
        "scores/judge/edited",
        "upscaled",
    ]


def test_the_same_run_has_the_same_paths(tmp_path):
    assert changed(lineage(tmp_path), lineage(tmp_path)) == set()


PICTURES = {"images", "edited", "upscaled"}
SCORES = {"scores/judge/images", "scores/judge/edited", "scores/judge/upscaled", "scores/brightness/images"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": 2}, PICTURES | SCORES | {"gallery"}),
        ({"samples": 2}, PICTURES | SCORES | {"gallery"}),
        ({"seeds": {"images": [1, 2]}}, PICTURES | SCORES | {"gallery"}),
        ({"seeds": {"edited": [1, 2]}}, {"edited", "scores/judge/edited", "gallery"}),
        ({"recipes": RECIPES | {"images": {"steps": 5}}}, PICTURES | SCORES | {"gallery"}),
        ({"recipes": RECIPES | {"edited": {"steps": 5}}}, {"edited", "scores/judge/edited", "gallery"}),
        ({"recipes": RECIPES | {"upscaled": {"factor": 4}}}, {"upscaled", "scores/judge/upscaled", "gallery"}),
        ({"metrics": METRICS | {"brightness": {"images": {"version": 2}}}}, {"scores/brightness/images", "gallery"}),
        ({"shown": [2]}, {"gallery"}),
    ],
    ids=["seed", "samples", "seeds", "seeds of edits", "images", "edited", "upscaled", "metric", "shown"],
)
def test_a_change_moves_what_follows_from_it_and_nothing_else(tmp_path, changes, expected):
    assert changed(lineage(tmp_path), lineage(tmp_path, **changes)) == expected


def test_an_edit_of_the_users_own_picture_stays_where_another_recipe_makes_the_images(tmp_path):
    one, other = (lineage(tmp_path, recipes=RECIPES | {"images": {"steps": steps}}) for steps in (4, 5))
    stays = {
        name: one.image_file("edited", name) == other.image_file("edited", name) for name in one.plans["edits"].names
    }
    named = {name: bool(shard.referenced) for name, shard in one.plans["edits"].shards.items()}
    assert set(named.values()) == {True, False}
    assert stays == {name: not reads for name, reads in named.items()}


def test_a_row_that_changes_moves_its_shard_alone(tmp_path):
    one = lineage(tmp_path)
    before = paths(one)
    after = paths(lineage(tmp_path, [*ROWS[:-1], ROWS[-1] | {"prompt": "a cat"}]))
    for name in ("prompts", "images", "upscaled", "scores/judge/images"):
        assert len(before[name] - after[name]) == 1 and len(before[name]) > 1, name
    assert before["edits"] == after["edits"] and before["edited"] == after["edited"]


def test_the_digest_in_a_file_changes_where_its_path_does(tmp_path):
    one, other = lineage(tmp_path), lineage(tmp_path, seed=2)
    for step in one.steps():
        for file, now in zip(one.files(step), other.files(step), strict=True):
            assert file.name == now.name and file.path != now.path and file.digest != now.digest
    other = lineage(tmp_path, seeds={"images": [1]})
    for step in one.steps():
        for file, now in zip(one.files(step), other.files(step), strict=True):
            assert (file.path != now.path) == (file.digest != now.digest) == (file.name in moved(one, step))


def moved(one, step):
    """The files of a step that follow from the images."""
    files = one.files(step)
    if "edited" not in step.name:
        return {file.name for file in files}
    return {file.name for file in files if one.plans["edits"].shards[file.name].referenced}


def test_groups_that_hold_several_shards_are_told_by_all_of_them(tmp_path):
    one = lineage(tmp_path, shards_per_job=2)
    step = one.step("images", "judge")
    files = list(one.files(step))
    assert any(len(file.inputs) == 2 for file in files)
    assert [path for file in files for path in file.inputs] == [file.path for file in one.files(one.step("images"))]
    after = lineage(tmp_path, [*ROWS[:-1], ROWS[-1] | {"prompt": "a cat"}], shards_per_job=2)
    assert len({file.path for file in files} - {file.path for file in after.files(step)}) == 1


def test_sources_are_the_files_that_are_planned(tmp_path):
    one = lineage(tmp_path)
    planned = {file.path for file in one.files(one.step("images"))}
    for stage in ("edited", "upscaled"):
        for file in one.files(one.step(stage)):
            assert set(file.inputs) <= planned
    assert all(len(file.inputs) == 1 for file in one.files(one.step("upscaled")))
    assert manifest_of("a.b/c-d.parquet") == "a.b/c-d.manifest"


def test_the_id_of_rows_holds_what_they_name(tmp_path):
    one = lineage(tmp_path)
    (name,) = [name for name, shard in one.plans["edits"].shards.items() if shard.sources and not shard.referenced]
    before = one.rows_file("edits", name)
    one.plans["edits"].shards[name] = replace(one.plans["edits"].shards[name], sources="other")
    del one.stems
    assert one.rows_file("edits", name) != before
