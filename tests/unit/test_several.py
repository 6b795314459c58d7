"""Several models for the same rows: what the config takes, which rows go to whom, and what tables and pairs say of them."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import REPOSITORY
from darkroom.config import models
from darkroom.config.load import load_config
from darkroom.config.models import Select
from darkroom.config.reference import schema_text
from darkroom.errors import DarkroomError
from darkroom.exports.base import Export
from darkroom.exports.write import write_export
from darkroom.metrics.rubric import Question, Rubric
from darkroom.metrics.score import score_columns
from darkroom.models.licences import Licence, Model
from darkroom.plan.requests import expand_rows
from darkroom.plan.shards import make_plan
from darkroom.plan.stages import IMAGES, stages_for
from darkroom.rows.read import Reading
from darkroom.run.jobs import requests_of, shard_job
from darkroom.run.lineage import folders_like
from darkroom.run.workflow import Workflow
from darkroom.store.images import encode_png
from darkroom.store.shardfile import IMAGE_COLUMNS, write_shard
from darkroom.tables.kind import Kind, ShardFiles
from darkroom.tables.merge import merge_scores
from darkroom.tools.forecast import forecast
from darkroom.tools.prune import superseded_files
from jsonschema import Draft202012Validator
from PIL import Image

DEMONSTRATION = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())
ONE = {key: value for key, value in DEMONSTRATION["generate"].items() if not isinstance(value, dict)}
EDITOR = DEMONSTRATION["edit"]
FEW, MANY = ONE | {"steps": 4}, ONE | {"steps": 12}
PROMPTS = [
    {"id": "all", "prompt": "a red circle"},
    {"id": "few", "prompt": "a blue circle", "models": ["few"], "samples": 5},
    {"id": "many", "prompt": "a pink circle", "models": "many, "},
    {"id": "none", "prompt": "a black circle", "models": ["lots"]},
]
EDITS = [
    {"id": "f", "prompt": "make it red", "images": [{"row": "all", "sample": 1, "model": "few"}]},
    {"id": "m", "prompt": "make it red", "images": [{"row": "all", "sample": 1, "model": "many"}]},
    {"id": "again", "prompt": "make it blue", "images": [{"edit": "f"}]},
    {"id": "whose", "prompt": "make it red", "images": [{"row": "all"}]},
    {"id": "not", "prompt": "make it red", "images": [{"row": "few", "model": "many"}]},
]


def config(folder: Path, **changes):
    for name, rows in (("prompts", PROMPTS), ("edits", EDITS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = {rows: str(folder / f"{rows}.jsonl") for rows in ("prompts", "edits")}
    several = {"generate": {"few": FEW, "many": MANY}, "results": str(folder / "results")}
    return DEMONSTRATION | named | several | changes


@pytest.fixture
def opened(tmp_path):
    def open_(**changes):
        return Workflow.open(config(tmp_path, **changes), folder=REPOSITORY)

    return open_


@pytest.mark.parametrize(
    ("generate", "reason"),
    [
        ({"few": FEW, "many": MANY | {"stepz": 3}}, "unknown key generate.many.stepz; did you mean steps?"),
        ({"few": FEW, "many": MANY | {"steps": 0}}, "generate.many.steps: must be at least 1, got 0"),
        ({"few": FEW, "stepz": None}, "unknown key generate.stepz; did you mean steps?"),
        ({"few": {"steps": 3}, "many": {}, "steps": 0}, "generate.many.steps: must be at least 1, got 0"),
        ({"steps": 3, "resource": {"gpu": 1}}, "unknown key generate.resource.gpu; "),
        ({"few": FEW, "Many-1": MANY}, "generate: Many-1: the name of one of several models is small letters"),
        ({"few": FEW, "many": 3}, "generate.many: expected a section, got 3"),
        ({"few": FEW | {"seeds": [1, 2]}, "many": MANY}, "generate.many.seeds: must be that of generate.few"),
        ({"few": FEW, "many": MANY | {"family": "flux-kontext"}}, "generate.many.family: flux-kontext edits images"),
        ({"stepz": None}, "unknown key generate.stepz; did you mean steps?"),
    ],
)
def test_what_several_models_cannot_be_is_one_line(generate, reason):
    with pytest.raises(DarkroomError) as refused:
        load_config(DEMONSTRATION | {"generate": generate}, [REPOSITORY])
    assert str(refused.value).startswith(f"config: {reason}") and "\n" not in str(refused.value)


def test_two_models_that_make_the_same_pictures_are_refused(opened):
    with pytest.raises(DarkroomError, match=r"^config: generate\.b: makes the same pictures as generate\.a; "):
        opened(generate={"a": ONE, "b": ONE | {"batch_size": 2}}, edits=None)


def test_the_checked_config_says_what_it_was_given(tmp_path):
    once = load_config(config(tmp_path), [REPOSITORY])
    assert once.models_named("generate") == ["few", "many"] and once.section("generate.few").steps == 4
    shared = ONE | {"few": {"steps": 4}, "many": {"steps": 12}}
    assert load_config(config(tmp_path, generate=shared), [REPOSITORY]) == once
    again = load_config(json.loads(json.dumps(once.model_dump())), [REPOSITORY])
    assert again == once
    check = Draft202012Validator(json.loads(schema_text()))
    check.validate(config(tmp_path))
    check.validate(config(tmp_path, generate=shared))
    assert not check.is_valid(config(tmp_path, generate={"few": {"steps": 0}}))


def test_each_model_has_files_of_its_own_and_the_rows_that_name_it(opened):
    flow = opened()
    assert [stage.name for stage in flow.stages] == ["images-few", "images-many", "edited"]
    assert [stage.rule for stage in flow.stages] == ["generate_images_few", "generate_images_many", "edit_images"]
    (told,) = [line for line in flow.rejected_lines() if "prompts" in line]
    assert told.endswith('1 of 4 rows rejected: 1 x models: the config names no "lots" (line 4)')
    made = {}
    for stage in ("images-few", "images-many"):
        plan = flow.plans[stage]
        made[stage] = [one for name in plan.names for one in requests_of(flow, stage, plan.read(name))]
        assert sum(flow.requests(stage, name) for name in plan.names) == len(made[stage])
    rows = {stage: [one.row for one in found] for stage, found in made.items()}
    assert rows == {"images-few": ["all"] * 2 + ["few"] * 5, "images-many": ["all"] * 2 + ["many"] * 2}
    seeds = {stage: [one.seed for one in found if one.row == "all"] for stage, found in made.items()}
    assert seeds["images-few"] == seeds["images-many"]
    assert {told.step.name: told.to_make for told in forecast(flow) if told.step.metric is None} == {
        "images-few": 7,
        "images-many": 4,
        "edited": 6,
    }


def test_a_change_of_one_model_leaves_the_other_and_what_starts_from_it(opened):
    def paths(flow):
        return {(step.name, file.name): file.path for step in flow.lineage.steps() for file in flow.lineage.files(step)}

    flow = opened(edits=None)
    before = paths(flow)
    after = paths(opened(edits=None, generate={"few": FEW, "many": MANY | {"steps": 20}}))
    changed = {name for name in before if before[name] != after[name]}
    assert {step for step, _ in changed} == {"images-many", "scores/judge/images-many", "scores/clip/images-many"}
    more = paths(opened(edits=None, generate={"few": FEW, "many": MANY, "more": ONE | {"steps": 6}}))
    assert before.items() <= more.items()
    one = paths(opened(edits=None, generate=ONE))
    assert {Path(path).parts[-3] for (step, _), path in one.items() if step == "images"} == {"images"}


def test_an_edit_starts_from_the_image_of_the_model_that_it_names(opened):
    flow = opened(shards={"size": 1})
    (told,) = [line for line in flow.rejected_lines() if "edits" in line]
    assert 'images: model: must say which of several models, as in "model": "few" (line 4)' in told
    assert "images: refers to the image of row 'few' by many, and that row goes to few alone (line 5)" in told
    plan, lineage = flow.plans["edited"], flow.lineage
    start = {}
    for name in plan.names:
        for line in map(json.loads, plan.read(name).splitlines()):
            if "rejected" not in line:
                start[line["id"]] = {Path(path).parts[-3] for path in lineage.sources("edited", name)}
                job = shard_job(flow, "edited", name)
                assert {job.kind_of(one["source"]) for one in line["items"]} <= start[line["id"]]
    assert start == {"f": {"images-few"}, "m": {"images-many"}, "again": {"edited"}}
    other = opened(shards={"size": 1}, generate={"few": FEW, "many": MANY | {"steps": 20}}).lineage
    same = {name: lineage.image_file("edited", name) == other.image_file("edited", name) for name in plan.names}
    by_row = {}
    for name in plan.names:
        for line in map(json.loads, plan.read(name).splitlines()):
            if "rejected" not in line:
                by_row[line["id"]] = same[name]
    assert by_row == {"f": True, "again": True, "m": False}


def test_editors_each_work_on_their_own_results(opened, tmp_path):
    editors = {"short": EDITOR | {"steps": 4}, "long": EDITOR}
    flow = opened(edit=editors, shards={"size": 1})
    assert [stage.name for stage in flow.stages][2:] == ["edited-short", "edited-long"]
    for stage in ("edited-short", "edited-long"):
        of = {Path(path).parts[-3] for name in flow.plans[stage].names for path in flow.lineage.sources(stage, name)}
        assert of == {"images-few", "images-many", stage}
    then = [EDITS[0] | {"models": "short"}, EDITS[2] | {"models": ["short", "long"]}]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in then))
    (told,) = [
        line for line in opened(edit=editors, edits=str(tmp_path / "one.jsonl")).rejected_lines() if "one.jsonl" in line
    ]
    assert "models: long makes no edit 'f' that this one could start from; name it in that row, too (line 2)" in told


def test_settings_of_a_row_reach_every_model_that_it_goes_to(opened, tmp_path):
    turbo = {"model": "resources/models/shapes-flux", "family": "flux", "device": "cpu", "width": 64, "height": 64}
    rows = [
        {"id": "a", "prompt": "a red circle", "negative_prompt": "blue"},
        {"id": "b", "prompt": "a red circle", "negative_prompt": "blue", "models": "guided"},
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flow = opened(
        generate={"guided": ONE, "plain": turbo | {"true_cfg": 1}}, edits=None, prompts=str(tmp_path / "own.jsonl")
    )
    (told,) = flow.rejected_lines()
    assert "1 of 2 rows rejected: 1 x negative_prompt: " in told and "(that is plain; the row's `models`" in told


def test_what_was_made_under_another_name_is_found_and_pruned(opened, tmp_path):
    results = tmp_path / "results"
    for folder in ("images", "images-few", "images-old", "images2", "edited"):
        (results / folder / "0123abcd").mkdir(parents=True)
        (results / folder / "0123abcd/0123456789ab-0123abcd.parquet").write_bytes(b"")
    assert [path.name for path in folders_like(results / "images-few")] == ["images", "images-few", "images-old"]
    assert {path.parts[-3] for path in superseded_files(opened())} == {"images", "images-few", "images-old", "edited"}


# ------------------------------------------------------------------------------------------------------ tables and pairs

RUBRIC = Rubric({"images": [Question("p", "yes_no", "{prompt}?")], "edited": []})
SCORES = {  # model -> row -> the scores of its samples
    "few": {"r0": [0.2, 0.6], "r1": [0.9, 0.8], "r2": [0.7, 0.7]},
    "many": {"r0": [0.9, 0.5], "r1": [0.3, 0.4], "r3": [0.6, 0.1]},
}
ROWS = [
    {"id": "r0", "prompt": "a fox", "note": "mine"},
    {"id": "r1", "prompt": "a hen"},
    {"id": "r2", "prompt": "an owl", "models": "few"},
    {"id": "r3", "prompt": "an elk", "models": ["many"], "model": "own"},
    {"id": "given", "prompt": "there", "images": ["there.png"]},
]
NAMES = ("few", "many")


@pytest.fixture
def made(tmp_path):
    """Shards and tables as jobs leave them."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "there.png").write_bytes(encode_png(Image.new("RGB", (8, 8))))
    plan = make_plan(
        tmp_path / "rows.jsonl", "prompts", 1, tmp_path / "results", 2, reading=Reading(models=NAMES, generators=NAMES)
    )
    (tmp_path / "prompts").mkdir()
    kinds = []
    for number, model in enumerate(NAMES):
        stage = IMAGES.of(model, NAMES)
        folder = tmp_path / stage.name
        section = models.Generate(model="m", family="flux", steps=1 + number)
        for name in plan.names:
            (tmp_path / "prompts" / f"{name}.jsonl").write_bytes(plan.read(name))
            lines = [line for line in map(json.loads, plan.read(name).splitlines()) if stage.makes(line)]
            images, scores = [], []
            for request in expand_rows(lines, section, 1, 2):
                score = SCORES[model][request.row][request.sample] if not request.given else 0.5
                key = f"{model}-{request.row}-{request.sample}"
                known = {"key": key, "row": request.row, "item": 0, "sample": request.sample, "prompt": request.prompt}
                png = encode_png(Image.new("RGB", (8, 8), (int(255 * score), number, 0)))
                fields = {key: value for key, value in request.user_row.items() if key in ("note", "model")}
                more = {"origin": "given" if request.given else "generated", "fields": json.dumps(fields)}
                image = {"sha256": key, "steps": request.steps, "image": {"bytes": png, "path": "x.png"}}
                images.append(dict.fromkeys(IMAGE_COLUMNS) | known | more | image)
                scores.append(known | {"image_key": key, "sha256": key, "p": score})
            meta = {"digest": "i", "rule": stage.rule, "recipe": {"of": model}, "versions": {}}
            write_shard(folder / f"{name}.parquet", IMAGE_COLUMNS, images, meta)
            columns = score_columns(RUBRIC.columns("images"))
            path = tmp_path / "scores" / stage.name / "judge" / f"{name}.parquet"
            write_shard(path, columns, scores, {"digest": "s", "rule": "r"})
        files = ShardFiles.below(tmp_path / "prompts", folder, tmp_path / "scores" / stage.name)
        digests = dict.fromkeys(plan.names, "i"), {"judge": dict.fromkeys(plan.names, "s")}
        groups = {name: [name] for name in plan.names}
        about = {"section": stage.section, "model": model, "models": NAMES}
        kinds.append(Kind(stage.name, plan, 2, files, *digests, groups, **about))
    return kinds


def merged(folder, kinds, **select):
    chosen = Select(**({"images": {"p": 0.5}} | select))
    files = folder / "scores.parquet", folder / "scores.csv"
    counts = merge_scores(kinds, RUBRIC.catalogue, chosen, *files, {"digest": "d"})
    return counts, pq.read_table(files[0]).to_pylist()


def test_the_tables_say_which_model_made_an_image(made, tmp_path):
    counts, table = merged(tmp_path, made)
    assert counts["images-few requests"] == 7 and counts["images-many requests"] == 6
    assert list(table[0])[:3] == ["kind", "darkroom_model", "shard"]  # `model` is a field of one of the rows
    told = {(line["kind"], line["row"], line["darkroom_model"]) for line in table}
    assert told == {
        *(("images-few", row, "few") for row in ("r0", "r1", "r2")),
        *(("images-many", row, "many") for row in ("r0", "r1", "r3")),
        ("images-few", "given", None),
    }
    # Thresholds under `images` hold for all.
    assert all(line["selected"] == (line["p"] >= 0.5) for line in table)


def test_a_row_that_is_missing_at_one_model_is_noticed(made, tmp_path):
    with pytest.raises(DarkroomError, match="images-many: images of 3 rows where 5 are planned"):
        merged(tmp_path, [made[0], replace(made[1], model="other")])


def test_pairs_are_told_across_models(made, tmp_path):
    merged(tmp_path, made)
    named = [Model(f"generate.{name}", "owner/m", Licence("mit")) for name in NAMES]
    export = Export(
        format="preferences",
        folder=tmp_path / "exports",
        kinds=made,
        table=tmp_path / "scores.parquet",
        table_digest="d",
        catalogue=RUBRIC.catalogue,
        settings=models.Export(),
        select=Select(images={"p": 0.5}),
        models=named,
        digest="e",
    )
    counts = write_export(export)
    assert counts == {"images-few": 1, "images-many": 2}
    pairs = {}
    for kind in counts:
        (path,) = (tmp_path / "exports" / kind).glob("*.parquet")
        for pair in pq.read_table(path).to_pylist():
            better = 0 if pair["label_0"] == 1 else 1
            order = better, 1 - better
            keys = [pair[f"image_{number}_uid"] for number in order]
            assert keys[0] == pair["best_image_uid"]
            assert [pair[f"model_{number}"] for number in order] == [key.partition("-")[0] for key in keys]
            assert [json.loads(pair[f"recipe_{number}"])["of"] for number in order] == [
                k.partition("-")[0] for k in keys
            ]
            for number, key in zip(order, keys, strict=True):
                _, row, sample = key.split("-")
                score = SCORES[key.partition("-")[0]][row][int(sample)]
                with Image.open(io.BytesIO(pair[f"jpg_{number}"])) as picture:
                    assert picture.getpixel((0, 0))[0] == int(255 * score)
            pairs[pair["row"]] = (kind, keys, round(pair["margin"], 6))
    assert pairs == {
        "r0": ("images-many", ["many-r0-0", "few-r0-0"], 0.7),
        "r1": ("images-few", ["few-r1-0", "many-r1-0"], 0.6),
        "r3": ("images-many", ["many-r3-0", "many-r3-1"], 0.5),
    }
    card = (tmp_path / "exports/README.md").read_text()
    assert "against the worst sample of any model; here, where the best is by many, by p" in card


def test_stages_are_those_of_the_table_where_one_model_is_named():
    one = load_config(DEMONSTRATION | {"generate": ONE}, [REPOSITORY])
    assert stages_for(one, [IMAGES]) == [IMAGES] and one.sections_for("prompts") == ["generate"]
