"""Extensions: files of the user that bring sections and metrics before the config is checked."""

from importlib import import_module
from pathlib import Path

import pytest
from conftest import REPOSITORY
from darkroom.config import extensions, models
from darkroom.config.load import load_config
from darkroom.config.reference import schema
from darkroom.engines import FAMILIES, one_of
from darkroom.errors import DarkroomError
from darkroom.metrics.judge import JudgeMetric
from darkroom.metrics.rubric import load_rubric
from test_config import config, folder  # noqa: F401

EDIT = [kind.name for kind in FAMILIES.values() if kind.edits]

UPSCALE = """
from darkroom.config.models import Section, allow_metric, allow_section
from darkroom.config.values import Number, Refused
from pydantic import Field, model_validator

class Upscale(Section):
    factor: int = Field(2, ge=1, le=8)
    model: str
    device: str = "auto"

    @model_validator(mode="after")
    def _check(self):
        if self.factor > 4 and self.device == "cpu":
            raise Refused("factor: above 4 needs a GPU")
        if self.model == "none":
            raise ValueError("a model is needed")
        return self

class Beauty(Section):
    weight: Number = 1

allow_section("upscale", Upscale)
allow_metric("beauty", Beauty)
allow_metric("sharpness")
runs = globals().get("runs", 0) + 1
"""


pytestmark = pytest.mark.usefixtures("forgotten")


@pytest.fixture
def upscale(folder):  # noqa: F811
    Path("mine").mkdir()
    Path("mine/up-scale.py").write_text(UPSCALE)

    def load(text="{}"):
        return load_config({"upscale": {"model": "m"}} | config(text) | {"extensions": ["mine/up-scale.py"]})

    return load


def test_an_extension_brings_sections_and_metrics(upscale, folder):  # noqa: F811
    filled = upscale("{metrics: {beauty: , sharpness: {radius: 2}}}")
    assert filled.upscale.model_dump() == {"factor": 2, "model": "m", "device": "auto"}
    assert filled.metrics.model_dump() == {"beauty": {"weight": 1}, "sharpness": {"radius": 2}}
    assert filled.metrics.asked["sharpness"].radius == 2
    assert list(upscale("{metrics: {sharpness: , beauty: }}").metrics.asked) == ["sharpness", "beauty"]
    assert filled.extensions == [str(folder / "mine/up-scale.py")]
    assert upscale().metrics.model_dump() == {}
    assert load_config(filled.model_dump()) == filled


def test_without_its_extension_a_section_is_an_unknown_key(folder):  # noqa: F811
    with pytest.raises(DarkroomError, match=r"^config: unknown key upscale; known here: container, "):
        load_config(config("upscale: {}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("upscale: {model: m, factr: 3}", "unknown key upscale.factr; did you mean factor?"),
        ("upscale: {model: m, factor: 9}", "upscale.factor: must be at most 8, got 9"),
        ("upscale: {model: m, factor: 8, device: cpu}", "upscale.factor: above 4 needs a GPU"),
        ("upscale: {model: none}", "upscale: a model is needed"),
        ("upscale: ", "upscale.model: must be given"),
        ("metrics: {beautys: {}}", "unknown key metrics.beautys; did you mean beauty?"),
        ("metrics: {beauty: {weight: heavy}}", "metrics.beauty.weight: expected a number, got 'heavy'"),
        ("metrics: {beauty: 3}", "metrics.beauty: expected a section or null, got 3"),
    ],
)
def test_what_an_extension_brings_is_checked_like_all_else(upscale, text, message):
    with pytest.raises(DarkroomError) as error:
        upscale(text)
    assert str(error.value).startswith(f"config: {message}") and "\n" not in str(error.value)


def test_values_of_an_extension_may_be_text_from_the_command_line(upscale):
    filled = upscale("{upscale: {model: m, factor: '4'}, metrics: {beauty: {weight: '0.5'}}}")
    assert (filled.upscale.factor, filled.metrics.beauty.weight) == (4, 0.5)


def test_a_file_is_run_once_in_a_process_and_found_by_name(upscale):
    upscale()
    upscale()
    module = import_module("darkroom_extension_up_scale")
    assert module.runs == 1 and module.Upscale.__module__ == extensions.module_name("mine/up-scale.py")


def test_the_schema_has_what_the_extensions_bring(upscale):
    upscale()
    found = schema(models.config_model())
    assert {"upscale", "metrics"} <= set(found["properties"])
    assert set(found["$defs"]["Upscale"]["properties"]) == {"factor", "model", "device"}
    assert {"beauty", "sharpness"} <= set(found["$defs"]["Metrics"]["properties"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\nb = (\n", "broken.py, line 2: SyntaxError: '(' was never closed"),
        ("a = 1\nimport nowhere_to_be_found\n", "broken.py, line 2: ModuleNotFoundError: No module named 'nowhere"),
        ("def f():\n    raise KeyError('x')\n\nf()\n", "broken.py, line 2: KeyError: 'x'"),
        ("raise SystemExit\n", "broken.py, line 1: SystemExit"),
        (
            "from darkroom.config.models import Section, allow_section\nallow_section('judge', Section)\n",
            "broken.py, line 2: section judge: the config has one of that name",
        ),
    ],
)
def test_an_extension_that_cannot_be_run_is_one_line_with_file_and_line(folder, text, message):  # noqa: F811
    Path("broken.py").write_text(text)
    for _ in range(2):  # it is not taken for loaded afterwards
        with pytest.raises(DarkroomError) as error:
            load_config(config("extensions: [broken.py]"))
        assert str(error.value).startswith(f"{folder}/{message}") and "\n" not in str(error.value)


def test_two_extensions_of_one_name_are_refused(folder):  # noqa: F811
    for name in ("one", "two"):
        Path(name).mkdir()
        Path(name, "same.py").touch()
    with pytest.raises(DarkroomError, match=r"two/same\.py: .*one/same\.py is an extension of the same name"):
        load_config(config("extensions: [one/same.py, two/same.py]"))


def test_an_extension_is_a_python_file(folder):  # noqa: F811
    with pytest.raises(
        DarkroomError, match=r"rows\.jsonl: an extension is a Python file, with a name that ends in \.py"
    ):
        load_config(config("extensions: [rows.jsonl]"))


INVERT = REPOSITORY / "tests/extensions/invert.py"


def test_a_stage_has_its_section_thresholds_and_preference(folder):  # noqa: F811
    def load(text):
        return load_config(config(text) | {"extensions": [str(INVERT)]})

    filled = load("{select: {inverted: {p_yes: 0.5}}, export: {preferences: {inverted: p_yes}}}")
    least = {"images": {}, "edited": {}, "per_row": None, "labels": True, "inverted": {"p_yes": 0.5}}
    assert filled.select.model_dump() == least and filled.select.least_of("inverted") == {"p_yes": 0.5}
    assert filled.export.preferences.score_of("inverted") == "p_yes"
    plain = load("{}")
    section = plain.section("invert")
    assert (section.family, section.device, section.strength) == ("invert", "cpu", 1)
    assert (section.sampling, section.options) == (models.Sampling(), models.Options())
    assert plain.select.least_of("inverted") == {} and plain.export.preferences.score_of("inverted") is None
    # What a run writes down, `watch` reads again.
    assert load_config(plain.model_dump()) == plain
    for text, message in (
        ("select: {inverted: {p_yes: high}}", "select.inverted.p_yes: expected a number, got 'high'"),
        ("invert: {strength: 2}", "invert.strength: must be at most 1, got 2"),
        (
            "invert: {family: flux}",
            f"invert.family: flux makes images from text alone; use {one_of([*EDIT, 'invert'])}",
        ),
        ("invert: {family: auto}", "invert.family: auto needs a model, and the section invert has none"),
        ("edit: {family: invert}", "edit.family: invert goes by strength, and the section edit has no such key"),
    ):
        with pytest.raises(DarkroomError) as error:
            load(text)
        assert str(error.value) == f"config: {message}"


def test_a_rubric_asks_of_a_stage_only_where_it_has_a_section_for_it(folder):  # noqa: F811
    asked = "images: [{name: a, type: yes_no, text: '{prompt}?'}]\n"
    Path("rubric.yaml").write_text(asked)
    before = load_rubric("rubric.yaml")
    extensions.load([INVERT])
    assert load_rubric("rubric.yaml") == before and before.columns("inverted") == []
    Path("rubric.yaml").write_text(asked + asked.replace("images", "inverted"))
    after = load_rubric("rubric.yaml")
    assert [column.name for column in after.columns("inverted")] == ["a", "a_mass", "a_reply", "a_error"]
    judge = models.Judge(model="./model")
    one, other = JudgeMetric(judge, before), JudgeMetric(judge, after)
    assert other.recipe("inverted") != one.recipe("inverted") and other.recipe("images") == one.recipe("images")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("'New', 'prompts', 'x', 'y', 'images', True", "stage New: its name must be small letters"),
        ("'new', 'prompts', 'x', 'not a rule', 'images', True", "stage new: its name must be small letters"),
        ("'gallery', 'prompts', 'x', 'y', 'images', True", "stage gallery: the results have a folder of that name"),
        ("'new', 'prompts', 'x', 'y', 'images', False", "stage new: set every, and reads to one of images, edited"),
        ("'new', 'prompts', 'x', 'y', 'edited', True", "stage new: set every, and reads to one of images, edited"),
        ("'images', 'prompts', 'x', 'y', 'images', True", "stage images: there is a stage of that name"),
        ("'new', 'prompts', 'x', 'edit_images', 'images', True", "stage new: there is a stage of that name, or with"),
    ],
)
def test_a_stage_that_cannot_run_is_one_line_with_file_and_line(folder, stage, message):  # noqa: F811
    Path("mine.py").write_text(f"from darkroom.plan.stages import Stage, register\n\nregister(Stage({stage}))\n")
    with pytest.raises(DarkroomError) as error:
        load_config(config("extensions: [mine.py]"))
    assert str(error.value).startswith(f"{folder}/mine.py, line 3: {message}") and "\n" not in str(error.value)


def test_a_stage_without_a_section_is_one_line(folder):  # noqa: F811
    Path("mine.py").write_text(
        "from darkroom.plan.stages import Stage, register\n"
        "register(Stage('new', 'prompts', 'fresh', 'freshen', 'images', True))\n"
    )
    with pytest.raises(DarkroomError, match="stage new: the config has no section fresh with a family; bring one with"):
        load_config(config("extensions: [mine.py]"))
