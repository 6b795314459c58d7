"""Settings for pictures that do not reach the model: refused in the config, and rejected in rows, never passed over."""

import json

import pytest
from darkroom.config.load import load_config
from darkroom.errors import DarkroomError
from darkroom.plan.reach import Reach
from darkroom.plan.recipe import image_recipe
from darkroom.plan.requests import expand, request_key
from darkroom.plan.shards import make_plan
from darkroom.rows.fields import Fields
from darkroom.rows.read import parse_row
from test_config import folder  # noqa: F401

pytestmark = pytest.mark.usefixtures("folder")
ROWS = {"prompts": "rows.jsonl", "edits": "rows.jsonl", "judge": {"model": "./model", "rubric": "rubric.yaml"}}
KLEIN = {"model": "black-forest-labs/FLUX.2-klein-4B"}
QWEN = {"model": "Qwen/Qwen-Image-2512"}


def section(stage="generate", **given):
    return load_config(ROWS | {stage: given}).section(stage)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (KLEIN, "has no effect on a model of the family flux2-klein; leave it out"),
        ({"family": "flux"}, "is only read with true_cfg above 1"),
        ({"family": "sdxl-turbo"}, "is only read with guidance above 1"),
        ({"family": "z-image", "guidance": 0}, "is only read with guidance above 0"),
        (QWEN | {"true_cfg": 1}, "is only read with true_cfg above 1"),
    ],
)
def test_a_negative_prompt_that_is_not_read_is_refused(given, reason):
    with pytest.raises(DarkroomError) as error:
        section(**given, negative_prompt="blurry")
    assert str(error.value) == f"config: generate.negative_prompt: {reason}"


def test_a_negative_prompt_of_the_set_is_each_rows_that_has_none_of_its_own():
    """The key is of what the model is told, whoever says it; the recipe, and so the shard, is of the config."""
    plain, of_set = section(**QWEN), section(**QWEN, negative_prompt="blurry")
    assert "negative_prompt" not in image_recipe(plain) and image_recipe(of_set)["negative_prompt"] == "blurry"

    def told(given, **fields):
        (request,) = expand(parse_row({"prompt": "a fox"} | fields, "prompts") | {"id": "r"}, given, 0, 1)
        return request.negative_prompt, request_key(request, image_recipe(given), None, None)

    assert told(of_set)[0] == "blurry" and told(of_set, negative_prompt="dark")[0] == "dark"
    assert told(of_set) == told(plain, negative_prompt="blurry")
    assert told(of_set, negative_prompt="dark") == told(plain, negative_prompt="dark")
    assert told(plain) == (None, told(plain)[1]) and told(plain)[1] != told(of_set)[1]


def planned(tmp_path, rows, given, kind="prompts", fields=None):
    """Why each row is rejected, None where it is used."""
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = "generate" if kind == "prompts" else "edit"
    reach = Reach(section(stage, **given), kind)
    plan = make_plan(
        tmp_path / "own.jsonl", kind, 100, tmp_path / "results", fields=Fields.of(fields, kind), reach=reach
    )
    rejected = {
        shard.first_line + line["line"]: line["rejected"]
        for name, shard in plan.shards.items()
        for line in map(json.loads, plan.read(name).splitlines())
        if "rejected" in line
    }
    return [rejected.get(number) for number, _ in enumerate(rows, 1)]


def test_a_rows_own_setting_that_does_not_reach_the_model_rejects_the_row(tmp_path):
    rows = [
        {"prompt": "a", "steps": 3, "width": 64},
        {"prompt": "b", "guidance": 3.5},
        {"prompt": "c", "negative_prompt": "blurry"},
        {"prompt": "d", "negative_prompt": " ", "guidance": None},
        {"prompt": "e", "images": "e.png", "guidance": 3.5},  # only judged
    ]
    none = "has no effect on a model of the family flux2-klein; leave it out, or pass it over in all rows with"
    guidance = f"guidance: {none} `rows: {{guidance: []}}`"
    negative = f"negative_prompt: {none} `rows: {{negative_prompt: []}}`"
    assert planned(tmp_path, rows, KLEIN) == [None, guidance, negative, None, None]
    passed_over = {"guidance": [], "negative_prompt": []}
    assert planned(tmp_path, rows, KLEIN, fields=passed_over) == [None] * 5
    assert planned(tmp_path, rows, {"family": "sdxl"}) == [None] * 5  # the same rows, for another model


def test_the_fields_of_a_known_data_set_can_be_passed_over(tmp_path):
    rows = [{"prompt": "a", "step": 50, "cfg": 7.0, "seed": 1}]
    (refused,) = planned(tmp_path, rows, KLEIN, fields={"preset": "diffusiondb"})
    assert refused.startswith("guidance: has no effect on a model of the family flux2-klein; ")
    assert planned(tmp_path, rows, KLEIN, fields={"preset": "diffusiondb", "guidance": []}) == [None]


def test_a_rows_own_guidance_decides_whether_its_negative_prompt_is_read(tmp_path):
    rows = [
        {"prompt": "a", "images": "a.png", "negative_prompt": "blurry"},
        {"prompt": "b", "images": "b.png", "negative_prompt": "blurry", "guidance": 4},
    ]
    reason = "negative_prompt: is only read with true_cfg above 1; leave it out, or pass it over in all rows with"
    assert (
        planned(tmp_path, rows, {"family": "flux-kontext"}, "edits")
        == [f"{reason} `rows: {{edits: {{negative_prompt: []}}}}`"] * 2
    )
    assert planned(tmp_path, rows, {"family": "flux-kontext", "true_cfg": 4}, "edits") == [None] * 2
    bare = [{key: value for key, value in row.items() if key != "images"} for row in rows]
    first, second = planned(tmp_path, bare, {"family": "sdxl", "guidance": 0})
    assert first.startswith("negative_prompt: is only read with guidance above 1; leave it out") and second is None
