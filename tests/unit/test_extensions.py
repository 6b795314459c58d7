"""Extensions: files of the user that bring sections and metrics before the config is checked."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
from darkroom.config import extensions, models
from darkroom.config.load import load_config
from darkroom.config.reference import schema
from darkroom.errors import DarkroomError
from test_config import config, folder  # noqa: F401

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

class Aesthetic(Section):
    weight: Number = 1

allow_section("upscale", Upscale)
allow_metric("aesthetic", Aesthetic)
allow_metric("sharpness")
runs = globals().get("runs", 0) + 1
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """What a test registers is gone after it."""
    for name in ("SECTIONS", "METRICS"):
        monkeypatch.setattr(models, name, dict(getattr(models, name)))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(extensions.PREFIX):
            del sys.modules[name]


@pytest.fixture
def upscale(folder):  # noqa: F811
    Path("mine").mkdir()
    Path("mine/up-scale.py").write_text(UPSCALE)

    def load(text="{}"):
        return load_config({"upscale": {"model": "m"}} | config(text) | {"extensions": ["mine/up-scale.py"]})

    return load


def test_an_extension_brings_sections_and_metrics(upscale, folder):  # noqa: F811
    filled = upscale("{metrics: {aesthetic: , sharpness: {radius: 2}}, select: {upscale: {p_yes: 0.5}}}")
    assert filled["upscale"] == {"factor": 2, "model": "m", "device": "auto"}
    assert filled["metrics"] == {"aesthetic": {"weight": 1}, "sharpness": {"radius": 2}}
    assert filled["select"] == {"images": {}, "edited": {}, "per_row": None, "upscale": {"p_yes": 0.5}}
    assert filled["extensions"] == [str(folder / "mine/up-scale.py")]
    assert upscale()["metrics"] == {} and upscale()["select"]["upscale"] == {}


def test_without_its_extension_a_section_is_an_unknown_key(folder):  # noqa: F811
    with pytest.raises(DarkroomError, match=r"^config: unknown key upscale; known here: container, edit"):
        load_config(config("upscale: {}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("upscale: {model: m, factr: 3}", "unknown key upscale.factr; did you mean factor?"),
        ("upscale: {model: m, factor: 9}", "upscale.factor: must be at most 8, got 9"),
        ("upscale: {model: m, factor: 8, device: cpu}", "upscale.factor: above 4 needs a GPU"),
        ("upscale: {model: none}", "upscale: a model is needed"),
        ("upscale: ", "upscale.model: must be given"),
        ("metrics: {aesthetics: {}}", "unknown key metrics.aesthetics; did you mean aesthetic?"),
        ("metrics: {aesthetic: {weight: heavy}}", "metrics.aesthetic.weight: expected a number, got 'heavy'"),
        ("metrics: {aesthetic: 3}", "metrics.aesthetic: expected a section or null, got 3"),
        ("select: {upscale: {p_yes: high}}", "select.upscale.p_yes: expected a number, got 'high'"),
    ],
)
def test_what_an_extension_brings_is_checked_like_all_else(upscale, text, message):
    with pytest.raises(DarkroomError) as error:
        upscale(text)
    assert str(error.value).startswith(f"config: {message}") and "\n" not in str(error.value)


def test_values_of_an_extension_may_be_text_from_the_command_line(upscale):
    filled = upscale("{upscale: {model: m, factor: '4'}, metrics: {aesthetic: {weight: '0.5'}}}")
    assert (filled["upscale"]["factor"], filled["metrics"]["aesthetic"]["weight"]) == (4, 0.5)


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
    assert set(found["$defs"]["Metrics"]["properties"]) == {"aesthetic", "sharpness"}


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
