"""Families of models as data: what the rest of the library is told of them, and what an extension can bring."""

import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from darkroom import engines
from darkroom.config.load import load_config, used_sections
from darkroom.config.models import Generate
from darkroom.engines import FAMILIES, UNUSABLE, Family, family, one_of, register
from darkroom.errors import DarkroomError
from darkroom.identity import digest
from darkroom.models.hub import hub_models
from darkroom.models.licences import models_of
from darkroom.plan.recipe import image_recipe
from darkroom.plan.requests import expand, request_key
from darkroom.rows.read import parse_row
from test_config import folder  # noqa: F401

pytestmark = pytest.mark.usefixtures("folder")
ROWS = {"prompts": "rows.jsonl", "edits": "rows.jsonl", "judge": {"model": "./model", "rubric": "rubric.yaml"}}
MAKE = [kind.name for kind in FAMILIES.values() if kind.makes]
EDIT = [kind.name for kind in FAMILIES.values() if kind.edits]
ALL = one_of(list(FAMILIES), "and")


def able(option):
    return one_of([kind.name for kind in FAMILIES.values() if option in kind.options], "and")


CACHED = {"quantization": "int8", "cache": "taylorseer", "cache_interval": 3, "dtype": "float32"}


def loaded(name, kind, **options):
    return load_config(ROWS | {name: {"family": kind} | options})


def key(section, recipe, source=None, **fields):
    (request,) = expand(parse_row({"prompt": "a fox"} | fields, "prompts") | {"id": "r"}, section, 0, 1)
    return request_key(request, recipe, source, None)


@pytest.mark.parametrize(
    ("name", "kind", "options", "recipe", "wanted"),
    [
        ("generate", "flux", {}, "220a4aa9b09f", "11d72e9a00302b5b4c279a44294226a3"),
        ("generate", "flux", {"true_cfg": 2}, "b1d6bf6762ed", "d78eb82d9c000922d687c481f4f1cde7"),
        ("generate", "flux", CACHED, "91832f0dd385", "aac2397c216d0db4ed3a659175c31c24"),
        ("edit", "flux-kontext", {}, "d10c4e25ed4f", "ed8414b92dd0322ca025924df58837c7"),
        ("edit", "flux-kontext", {"true_cfg": 4, "steps": 7}, "7301bceee461", "7140505eb1cef486d2488a0cbc464d45"),
    ],
)
def test_recipes_and_keys_are_what_they_were_before_families_were_data(name, kind, options, recipe, wanted):
    """Digests written down then: results of then stay good."""
    section = loaded(name, kind, **options).section(name)
    made = image_recipe(section)
    assert digest(made, 12) == recipe
    fields = {"negative_prompt": "blurry", "width": 64, "seed": 3}
    assert key(section, made, "source" if name == "edit" else None, **fields) == wanted


def test_a_family_is_found_by_the_name_of_a_model_or_by_its_files(tmp_path):
    """The recipe is that of the family named, so that nothing is made again where it is named later."""
    plain = load_config(ROWS)
    assert (plain.generate.family, plain.edit.family) == ("flux", "flux-kontext")
    assert (plain.generate.steps, plain.generate.guidance, plain.edit.guidance) == (28, 3.5, 2.5)
    assert image_recipe(plain.generate) == image_recipe(loaded("generate", "flux").generate)
    for name, model, stage, family_name, settings in (
        ("klein", "black-forest-labs/FLUX.2-klein-4B", "edit", "flux2-klein", {"steps": 4, "guidance": None}),
        (
            "base",
            "black-forest-labs/FLUX.2-klein-base-4B",
            "generate",
            "flux2-klein-base",
            {"steps": 50, "guidance": 4},
        ),
        ("z", "tongyi-mai/z-image-turbo", "generate", "z-image-turbo", {"steps": 9, "guidance": None}),
        ("xl", "stabilityai/sdxl-turbo", "generate", "sdxl-turbo", {"steps": 1, "guidance": 0, "width": 512}),
        ("d", "black-forest-labs/FLUX.2-dev", "edit", "flux2", {"steps": 50, "guidance": 4}),
        ("t", "Qwen/Qwen-Image-2.1-Turbo", "edit", "qwen-image-2.1-turbo", {"steps": None, "true_cfg": 1}),
        ("k", "krea/Krea-2-Raw", "generate", "krea2", {"steps": 28, "guidance": 4.5}),
        ("s", "Efficient-Large-Model/Sana_1600M_1024px_diffusers", "generate", "sana", {"max_sequence_length": 300}),
        ("c", "lodestones/Chroma1-HD", "generate", "chroma", {"steps": 40, "guidance": 3}),
        (
            "h",
            "hunyuanvideo-community/HunyuanImage-2.1-Diffusers",
            "generate",
            "hunyuan-image",
            {"guidance": None, "width": 2048},
        ),
        ("q", "Qwen/Qwen-Image-Edit-2511", "edit", "qwen-image-edit-plus", {"true_cfg": 4, "guidance": None}),
    ):
        section = load_config(ROWS | {stage: {"model": model}}).section(stage)
        assert section.family == family_name, name
        assert {key: getattr(section, key) for key in settings} == settings, name
    for index, name, found in (
        ({"_class_name": "Flux2KleinPipeline", "is_distilled": True}, "k4", "flux2-klein"),
        ({"_class_name": "Flux2KleinPipeline"}, "k4", "flux2-klein-base"),
        ({"_class_name": "ZImagePipeline"}, "Z-Turbo", "z-image-turbo"),
        ({"_class_name": "ZImagePipeline"}, "mine", "z-image"),
        ({"_class_name": "StableDiffusionXLPipeline"}, "mine", "sdxl"),
        ({"_class_name": "QwenImage21Pipeline", "sample_sigmas": [1.0, 0.5]}, "mine", "qwen-image-2.1-turbo"),
        ({"_class_name": "QwenImage21Pipeline", "sample_sigmas": None}, "mine", "qwen-image-2.1"),
        ({"_class_name": "Krea2Pipeline", "is_distilled": True}, "mine", "krea2-turbo"),
        ({"_class_name": "HunyuanImagePipeline"}, "H-Distilled", "hunyuan-image-distilled"),
        ({"_class_name": "HunyuanImagePipeline"}, "mine", "hunyuan-image"),
        ({"_class_name": "SomethingPipeline"}, "mine", "auto"),
        ([], "mine", "auto"),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "model_index.json").write_text(json.dumps(index))
        filled = load_config(ROWS | {"generate": {"model": str(tmp_path / name)}})
        assert filled.generate.family == found
        assert load_config(filled.model_dump()) == filled


def test_a_hub_model_of_another_name_needs_its_family():
    other = {"model": "nobody/knows"}
    with pytest.raises(DarkroomError) as error:
        load_config(ROWS | {"edit": other})
    assert str(error.value) == (
        f"config: edit.family: must be given, for nobody/knows is not known by its name; use {one_of(EDIT)}"
    )
    assert load_config(ROWS | {"generate": other | {"family": "sdxl"}}).generate.steps == 50
    section = load_config(ROWS | {"generate": other | {"family": "auto"}}).generate
    assert (section.family, section.steps, section.guidance) == ("auto", None, None)


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_pipeline_that_would_make_other_pictures_is_refused_by_name(name, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    for stage in ("generate", "edit"):
        with pytest.raises(DarkroomError) as error:
            load_config(ROWS | {stage: {"model": str(tmp_path), "family": "auto"}})
        line = f"config: {stage}.model: {name} {UNUSABLE[name]}, and no family knows how to run it"
        assert str(error.value) == line


def test_a_setting_without_effect_on_the_family_is_refused():
    with pytest.raises(DarkroomError) as error:
        load_config(ROWS | {"generate": {"model": "black-forest-labs/FLUX.2-klein-4B", "guidance": 3.5}})
    assert str(error.value) == (
        "config: generate.guidance: has no effect on a model of the family flux2-klein; leave it out"
    )
    with pytest.raises(DarkroomError, match=r"^config: edit\.family: flux makes images from text alone; use "):
        load_config(ROWS | {"edit": {"model": "black-forest-labs/FLUX.1-dev"}})


def test_loras_are_refused_where_diffusers_loads_none(tmp_path):
    (tmp_path / "style.safetensors").write_bytes(b"")
    loras = [{"file": str(tmp_path / "style.safetensors")}]
    for kind in ("flux", "sdxl", "sd3", "sana", "krea2-turbo", "qwen-image"):
        assert load_config(ROWS | {"generate": {"family": kind, "loras": loras}}).generate.loras
    with pytest.raises(DarkroomError, match=r"^config: generate\.loras: works with the families flux, .* and auto$"):
        load_config(ROWS | {"generate": {"family": "hunyuan-image", "loras": loras}})


def test_families_are_told_without_anything_heavy():
    code = "import sys, darkroom.engines, darkroom.engines.base, darkroom.plan.requests, darkroom.models.licences\n"
    code += "print([name for name in ('torch', 'diffusers', 'PIL', 'numpy', 'pyarrow') if name in sys.modules])"
    env = os.environ | {"PYTHONPATH": str(REPOSITORY / "scripts")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_loop_over_batches_needs_no_torch():
    code = "import sys, darkroom.make, darkroom.tools.replay; print('torch' in sys.modules)"
    env = os.environ | {"PYTHONPATH": str(REPOSITORY / "scripts")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("generate", "flux-kontext", f"generate.family: flux-kontext edits images; use {one_of(MAKE)}"),
        ("edit", "flux", f"edit.family: flux makes images from text alone; use {one_of(EDIT)}"),
        ("edit", "sd", f"edit.family: expected one of {', '.join(FAMILIES)}, got 'sd'"),
    ],
)
def test_a_family_that_cannot_serve_is_one_line(name, kind, message):
    with pytest.raises(DarkroomError) as error:
        loaded(name, kind)
    assert str(error.value) == f"config: {message}"


def test_a_family_without_a_model_is_known_by_its_name(flat_colour):
    config = loaded("generate", "flat-colour", model="nobody/nothing", revision="main", gpus=4)
    section = config.generate
    assert section.model is section.revision is None and section.device == "cpu"
    assert list(used_sections(config)) == ["edit", "judge"] and "generate" not in hub_models(config, unpinned=True)
    assert load_config(config.model_dump()) == config
    recipe = image_recipe(section)
    assert recipe == {
        "version": 1,
        "family": "flat-colour",
        "model": "family:flat-colour",
        "width": 1024,
        "height": 1024,
    }
    model = models_of(config)[0]
    assert (model.section, model.name, model.licence.name, model.licence.limits) == (
        "generate",
        "flat-colour",
        "none",
        None,
    )


def test_only_what_a_family_says_decides_its_pixels(flat_colour):
    section = loaded("generate", "flat-colour").generate
    recipe = image_recipe(section)
    plain = key(section, recipe, seed=1)
    assert key(section, recipe, seed=1, prompt="b", steps=3, guidance=1, negative_prompt="c") == plain
    assert len({plain, key(section, recipe, seed=2), key(section, recipe, seed=1, width=32)}) == 3
    assert image_recipe(loaded("generate", "flat-colour", dtype="float16").generate) == recipe


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"quantization": "int8"}, f"quantization: works with the families {ALL}"),
        ({"cache": "taylorseer"}, "cache: works with the families flux and flux-kontext"),
        ({"compile": True}, f"compile: works with the families {able('compile')}"),
        ({"attention": "sage"}, f"attention: works with the families {able('attention')}"),
        ({"offload": "model"}, f"offload: works with the families {ALL}"),
        ({"steps": 3}, "steps: has no effect on a model of the family flat-colour; leave it out"),
        ({"device": "cuda"}, "device: family flat-colour uses no GPU of the job's; leave it out"),
    ],
)
def test_a_setting_that_does_not_reach_the_engine_is_refused(flat_colour, options, reason):
    with pytest.raises(DarkroomError) as error:
        loaded("generate", "flat-colour", **options)
    assert str(error.value) == f"config: generate.{reason}"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "flux"}, "family flux: is registered already; give it another name"),
        ({"makes": False}, "family mine: neither makes nor edits images; set makes or edits"),
        (
            {"settings": frozenset({"seed", "stepz"})},
            "family mine: settings: stepz is no field of a request; known are ",
        ),
        ({"open": "mine.py"}, "family mine: open and identity are written module:name"),
        ({"identity": "mine"}, "family mine: open and identity are written module:name"),
    ],
)
def test_a_family_that_cannot_be_used_is_refused_in_one_line(fields, reason):
    before = dict(FAMILIES)
    with pytest.raises(DarkroomError) as error:
        register(Family(**({"name": "mine", "open": "mine:Engine", "makes": True} | fields)))
    assert str(error.value).startswith(reason) and "\n" not in str(error.value)
    assert before == FAMILIES


def test_an_engine_that_cannot_be_found_is_one_line(monkeypatch):
    monkeypatch.setitem(FAMILIES, "mine", Family(name="mine", open="nowhere_at_all:Engine", makes=True))
    with pytest.raises(DarkroomError, match=r"^family mine: cannot load nowhere_at_all:Engine: No module named"):
        engines.open_engine(Generate(family="mine"), "generate")
    with pytest.raises(DarkroomError, match=r"^generate\.family: expected one of .*, got 'other'$"):
        engines.open_engine(Generate(family="other"), "generate")


def size_of(section):
    return f"{section.width} x {section.height}"


def test_an_identity_of_its_own_names_the_model(monkeypatch):
    own = Family(name="mine", open="x:y", makes=True, needs_model=False, identity=f"{__name__}:size_of")
    monkeypatch.setitem(FAMILIES, "mine", own)
    section = loaded("generate", "mine").generate
    assert image_recipe(section)["model"] == "1024 x 1024"
    assert family("flux").model_identity(Generate(model="a/b", revision="c")) == "a/b@c"
