"""What licence a model has, and whether that licence limits what may be trained on the model's pictures.

If the model is a folder, its licence is read from its model card; for some models of the hub it is known by name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from darkroom.config.load import used_sections
from darkroom.config.models import Config, Lora, ModelSection, ModelSource, is_folder_name, model_folder
from darkroom.engines import FAMILIES
from darkroom.engines.families import FLUX_2, FLUX_DEV, HUNYUAN, KREA, QWEN_RESEARCH, SANA, STABILITY
from darkroom.errors import DarkroomError
from darkroom.models.hub import HubModel, hub_models, scores
from darkroom.plan.stages import used_stages

HUB = "https://huggingface.co"
_MOST_BYTES = 2**20  # of a model card

_SCORING = {
    "Qwen/Qwen2.5-VL-7B-Instruct": "apache-2.0",
    "openai/clip-vit-base-patch32": "mit",
    "openai/clip-vit-large-patch14": "mit",
}

_NON_COMMERCIAL = "it allows non-commercial use alone"
# Licence name -> where it stands, and what it says about the pictures, in its own words where they are short.
_LIMITS = {
    FLUX_DEV: (
        f"{HUB}/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
        'section 2(d): "You may not use the Output to train, fine-tune or distill a model that is competitive with the'
        ' FLUX.1 [dev] Model or the FLUX.1 Kontext [dev] Model"',
    ),
    FLUX_2: (
        f"{HUB}/black-forest-labs/FLUX.2-klein-9B/blob/main/LICENSE.md",
        'section 2(d): "You may not use the Output to train, fine-tune, or distill a model that is competitive with a FLUX [dev]'
        ' Model"',
    ),
    STABILITY: (
        "https://stability.ai/community-license-agreement",
        'section IV(b): "You will not use [...] any output or results of the Stability AI Materials or Derivative Works,'
        ' to create or improve any foundational generative AI model"',
    ),
    HUNYUAN: (
        f"{HUB}/tencent/HunyuanImage-2.1",
        'section 5(b): "You must not use the Tencent Hunyuan Works or any Output or results of the Tencent Hunyuan Works to improve'
        ' any other AI model"; and it does not apply in the European Union, the United Kingdom and South Korea',
    ),
    KREA: (
        f"{HUB}/krea/Krea-2-Raw/blob/main/LICENSE.pdf",
        'section 2.3: "Commercial Use [...] of the Krea Model, Derivatives, or Outputs is permitted only if you [...] have total'
        ' company-wide annual revenue of less than one million United States dollars"',
    ),
    QWEN_RESEARCH: (f"{HUB}/Qwen/Qwen-Image-2.1", _NON_COMMERCIAL),
    SANA: (f"{HUB}/Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers/blob/main/LICENSE.txt", _NON_COMMERCIAL),
}


@dataclass(frozen=True)
class Licence:
    """The licence of a model.

    Attributes:
        name: as model cards have it ("apache-2.0"), or "unknown".
        link: where to read it.
        limits: what it forbids to do with pictures, in its own words, or None.
    """

    name: str
    link: str | None = None
    limits: str | None = None


@dataclass(frozen=True)
class Model:
    """A model of the config.

    Attributes:
        section: of the config: a stage's, such as "generate", "judge", or a metric's, such as "metrics.clip".
        name: owner/name, or the name of its folder.
        licence: its licence.
    """

    section: str
    name: str
    licence: Licence

    @property
    def makes_pictures(self) -> bool:
        """Whether it makes pictures, and does not only score them."""
        return not scores(self.section)


def model_of(section: str, settings: ModelSource, fetched: str | None = None) -> Model:
    """The model of a section of the config, with its licence; fetched: the folder with its card, of one of the hub."""
    name, folder = settings.model_name, fetched or model_folder(settings)
    local = is_folder_name(name)
    name = Path(name).absolute().name if local else name
    stated = _of_card(Path(folder) / "README.md") if folder else {}
    page = None if local else f"{HUB}/{name}"
    licence = stated.get("license_name") if stated.get("license") in (None, "other") else stated["license"]
    if licence is None:
        # A model made from another one is bound by that one's licence.
        known = {model.lower(): name for names in (_SCORING, *_of_families()) for model, name in names.items()}
        origin = stated.get("base_model", "" if local else name)
        licence = known.get(origin.lower())
    licence = (licence or stated.get("license") or "unknown").lower()
    link = stated.get("license_link")
    if link and "://" not in link:
        link = f"{page}/blob/main/{link}" if page else None
    known_link, limits = _LIMITS.get(licence, (None, None))
    if limits is None and ("non-commercial" in licence or "noncommercial" in licence or "-nc" in licence):
        limits = _NON_COMMERCIAL
    return Model(section, name, Licence(licence, link or known_link or page, limits))


def _lora_of(section: str, lora: Lora, hub: HubModel | None) -> Model:
    """A LoRA with its licence, which the card beside its file says; of one of the hub, once it is fetched."""
    if lora.file is None:
        fetched = hub.fetched["folder"] if hub and hub.fetched else None
        return model_of(section, ModelSource(model=lora.model), fetched)
    found = model_of(section, ModelSource(model=str(Path(lora.file).absolute().parent)))
    return replace(found, name=Path(lora.file).name)


def _of_families() -> Iterable[Mapping[str, str]]:
    return (kind.licences for kind in FAMILIES.values())


def _of_card(card: Path) -> dict[str, str]:
    """The texts in the header of a model card; empty if it cannot be read."""
    try:
        with open(card, encoding="utf-8", errors="replace") as stream:
            text = stream.read(_MOST_BYTES)
        header = yaml.safe_load(text.split("\n---", 1)[0].removeprefix("---")) if text.startswith("---\n") else None
    except (OSError, yaml.YAMLError):
        return {}
    header = header if isinstance(header, dict) else {}
    firsts = {key: value[0] if isinstance(value, list) and value else value for key, value in header.items()}
    return {key: value for key, value in firsts.items() if isinstance(value, str)}


def models_of(config: Config) -> list[Model]:
    """The models that a config uses, those that score pictures last; a family that needs none is named in its place, without a licence."""
    used, hub = [], hub_models(config, unpinned=True)
    for section in dict.fromkeys(stage.section for stage in used_stages(config)):
        settings = config.section(section)
        if isinstance(settings, ModelSection) and settings.model is not None:
            used.append(model_of(section, settings))
            for place, lora in enumerate(settings.loras):
                name = f"{section}.loras.{place}"
                used.append(_lora_of(name, lora, hub.get(name)))
        else:
            used.append(Model(section, settings.family, Licence("none")))
    scoring = {name: section for name, section in used_sections(config).items() if scores(name)}
    return used + [model_of(name, section) for name, section in scoring.items()]


def check_licences(config: Config, training: tuple[str, ...]) -> None:
    """Raise DarkroomError if an export in one of the formats `training` needs a licence acknowledged, and it is not."""
    wanted = [name for name in config.export.formats if name in training]
    acknowledged = {name.lower() for name in config.export.acknowledge_licences}
    for model in models_of(config) if wanted else ():
        licence = model.licence
        if model.makes_pictures and licence.limits and licence.name not in acknowledged:
            raise DarkroomError(
                f"config: export.formats: {wanted[0]} is made for training, and {model.section}.model {model.name} is under"
                f" {licence.name} ({licence.link or 'see its card'}): {licence.limits}. If your use is within it, set"
                f" export.acknowledge_licences: [{licence.name}]"
            )
