"""Licences of models: read from their cards or known by name; those that limit training have to be acknowledged."""

import pytest
import yaml
from conftest import FLUX, REPOSITORY, small_config
from darkroom.config.load import load_config
from darkroom.config.models import Edit, Generate, Judge
from darkroom.errors import DarkroomError
from darkroom.exports import TRAINING
from darkroom.models.licences import check_licences, model_of, models_of

DEV = "flux-1-dev-non-commercial-license"
HUB = "https://huggingface.co"


def checked(tmp_path, stages=("prompts",), model="black-forest-labs/FLUX.1-dev", generate=None, **export):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    config = small_config(generate=generate or {"model": model}, edit={"model": "black-forest-labs/FLUX.1-Kontext-dev"})
    config |= {"prompts": None, "edits": None} | dict.fromkeys(stages, str(tmp_path / "rows.jsonl"))
    config = load_config(config | {"export": export}, [tmp_path, REPOSITORY])
    check_licences(config, TRAINING)
    return config


@pytest.mark.parametrize("format", TRAINING)
def test_training_on_what_a_licence_limits_has_to_be_acknowledged(tmp_path, format):
    with pytest.raises(DarkroomError) as error:
        checked(tmp_path, formats=["folder", format])
    line = str(error.value)
    assert "\n" not in line and line.startswith(f"config: export.formats: {format} is made for training")
    for words in (
        "generate.model black-forest-labs/FLUX.1-dev",
        "You may not use the Output to train, fine-tune or distill a model that is competitive with the FLUX.1 [dev] Model",
        f"set export.acknowledge_licences: [{DEV}]",
    ):
        assert words in line
    checked(tmp_path, formats=["folder", format], acknowledge_licences=[DEV])
    with pytest.raises(DarkroomError, match=r"edit\.model black-forest-labs/FLUX\.1-Kontext-dev"):
        checked(tmp_path, stages=("edits",), formats=[format], acknowledge_licences=["mit"])


def test_a_lora_is_licensed_by_the_card_beside_its_file_or_the_model_it_was_made_for(tmp_path):
    tmp_path.joinpath("l.safetensors").write_bytes(b"")
    lora, acknowledged = {"loras": [{"file": "l.safetensors"}]}, {"formats": ["parquet"]}
    generate = {"model": "black-forest-labs/FLUX.1-schnell"}

    def models(**export):
        return [(m.name, m.licence.name) for m in models_of(checked(tmp_path, generate=generate | lora, **export))]

    assert models(**acknowledged)[1] == ("l.safetensors", "unknown")
    tmp_path.joinpath("README.md").write_text("---\nbase_model: black-forest-labs/FLUX.1-dev\n---\n")
    with pytest.raises(DarkroomError, match=r"generate\.loras\.0\.model l\.safetensors is under flux-1-dev-non"):
        models(**acknowledged)
    assert models(**acknowledged, acknowledge_licences=[DEV])[1] == ("l.safetensors", DEV)
    tmp_path.joinpath("README.md").write_text("---\nlicense: mit\n---\n")
    assert models(**acknowledged)[1] == ("l.safetensors", "mit")


def test_what_is_not_for_training_or_not_limited_needs_nothing(tmp_path):
    checked(tmp_path, stages=("prompts", "edits"), formats=["folder"])
    checked(tmp_path, model="black-forest-labs/FLUX.1-schnell", formats=list(TRAINING))
    checked(tmp_path, model=str(FLUX), formats=list(TRAINING))


@pytest.mark.parametrize(
    ("card", "name", "link", "limited"),
    [
        ({"license": "mit"}, "mit", None, False),
        ({"license": "Apache-2.0", "license_name": "x"}, "apache-2.0", None, False),
        ({"license": ["openrail++"]}, "openrail++", None, False),
        ({"license": "other", "license_name": DEV, "license_link": "LICENSE.md"}, DEV, f"{HUB}/black-forest", True),
        ({"license": "other", "license_name": "l", "license_link": "https://x.org/l"}, "l", "https://x.org/l", False),
        ({"license": "other"}, "other", None, False),
        ({"license": "cc-by-nc-4.0"}, "cc-by-nc-4.0", None, True),
        ({"license": "other", "license_name": "flux-dev-non-commercial-license"}, "flux-dev-non-c", None, True),
        ({"license": "other", "license_name": "stabilityai-ai-community"}, "stab", "https://stability.ai", True),
        ({"base_model": ["black-forest-labs/FLUX.1-dev"]}, DEV, f"{HUB}/black-forest", True),
        ({"license": {"a": 1}}, "unknown", None, False),
        ("text alone", "unknown", None, False),
        (None, "unknown", None, False),
    ],
)
def test_a_folder_s_licence_is_that_of_its_card(tmp_path, card, name, link, limited):
    folder = tmp_path / "mine"
    folder.mkdir()
    if card is not None:
        header = f"---\n{yaml.safe_dump(card)}---\n# Card\n" if isinstance(card, dict) else card
        (folder / "README.md").write_text(header)
    model = model_of("generate", Generate(model=str(folder)))
    assert model.name == "mine" and model.licence.name.startswith(name)
    assert (model.licence.link or "").startswith(link or "") and bool(model.licence.link) == bool(link)
    assert bool(model.licence.limits) == limited


def test_a_copy_of_a_hub_model_is_the_hub_model(tmp_path):
    section = Edit(model="black-forest-labs/FLUX.1-Kontext-dev", local_dir=str(tmp_path))
    assert model_of("edit", section).licence.name == DEV
    (tmp_path / "README.md").write_text(f"---\nlicense: other\nlicense_name: {DEV}\nlicense_link: LICENSE.md\n---\n")
    licence = model_of("edit", section).licence
    assert licence.link == f"{HUB}/black-forest-labs/FLUX.1-Kontext-dev/blob/main/LICENSE.md" and licence.limits
    assert model_of("judge", Judge(model="Somebody/Unknown")).licence.name == "unknown"
