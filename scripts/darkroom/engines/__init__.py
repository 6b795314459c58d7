"""What makes pictures: families of models as data, and the engines that they open.

The library asks a `Family` for all that differs between kinds of models; nothing else compares the names of families. An
extension file adds a kind with `register(Family(...))`, and an `Engine` (`darkroom.engines.base`) for it. Nothing heavy is
imported here: the config, plans and keys need families where no engine is installed.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from darkroom.errors import DarkroomError

if TYPE_CHECKING:
    from darkroom.config.models import StageSection
    from darkroom.engines.base import Engine
    from darkroom.plan.requests import Request

# Fields of a request, besides the negative prompt and the source, that can decide a pixel.
SETTINGS = frozenset({"prompt", "seed", "width", "height", "steps", "guidance", "true_cfg"})


def _always(request: "Request") -> bool:
    return True


def _never(section: "StageSection") -> None:
    return None


@dataclass(frozen=True)
class Family:
    """A kind of model, as the rest of the library needs to know it.

    name: what `family` of the config calls it.
    open: "module:name" of what is called with (section, name of the section) and returns the Engine.
    makes: it makes images from text (`generate`).
    edits: it edits images (`edit`).
    needs_model: `model` of the section names what makes the pictures. Without it no model is looked up, fetched or licensed.
    local: it computes in the job, which gets devices, and loads the model from a folder or the hub's cache.
    repeats: equal keys give equal pixels on one kind of device.
    identity: "module:name" of section -> text, what the model is for keys and digests; None: `model_identity`, or
        "family:<name>" where no model is needed.
    settings: fields of a request that decide a pixel, of `SETTINGS`; the negative prompt and the source are apart.
    recipe_keys: keys of the section, besides `settings`, that decide a pixel.
    reads_negative: whether the negative prompt of a request decides a pixel.
    options: of attention, compile and offload, those that have an effect.
    caches: values of `cache` that have an effect.
    quantized: components that `quantization` is for; none: it has no effect.
    conflict: section -> "key: reason" for settings that this family cannot combine, else None.
    packages: distributions whose versions are recorded with the pictures.
    licences: owner/name of a model on the hub -> its licence, as model cards have it.
    """

    name: str
    open: str
    makes: bool = False
    edits: bool = False
    needs_model: bool = True
    local: bool = True
    repeats: bool = True
    identity: str | None = None
    settings: frozenset[str] = SETTINGS
    recipe_keys: tuple[str, ...] = ()
    reads_negative: Callable[["Request"], bool] = _always
    options: frozenset[str] = frozenset()
    caches: frozenset[str] = frozenset()
    quantized: tuple[str, ...] = ()
    conflict: Callable[["StageSection"], str | None] = _never
    packages: tuple[str, ...] = ()
    licences: Mapping[str, str] = field(default_factory=dict)

    @property
    def loads_model(self) -> bool:
        """Whether the files of a model have to lie on this machine."""
        return self.needs_model and self.local

    def model_identity(self, section: "StageSection") -> str:
        """What makes the pictures of a section of the config, for keys and digests."""
        if self.identity is None and not self.needs_model:
            return f"family:{self.name}"
        return _load(self.identity or "darkroom.models.identity:model_identity", self.name)(section)

    def takes(self, option: str, value: Any) -> bool:
        """Whether an option of the section (`darkroom.config.options.IMAGE_OPTIONS`, or offload) has an effect."""
        if option == "cache":
            return value in self.caches
        return bool(self.quantized) if option == "quantization" else option in self.options

    def refusal(self, stage: str) -> str | None:
        """Why this family cannot serve `generate` or `edit`, "key: reason", or None."""
        if self.makes if stage == "generate" else self.edits:
            return None
        able = [other.name for other in FAMILIES.values() if (other.makes if stage == "generate" else other.edits)]
        does = "edits images" if stage == "generate" else "makes images from text alone"
        return f"family: {self.name} {does}; use {one_of(able)}"


def one_of(names: list[str], word: str = "or") -> str:
    """ "a, b or c"."""
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Add a family to those that the config can name. Raises DarkroomError where it cannot be used, or its name is taken."""
    wrong = None
    if family.name in FAMILIES:
        wrong = "is registered already; give it another name"
    elif not (family.makes or family.edits):
        wrong = "neither makes nor edits images; set makes or edits"
    elif unknown := sorted(family.settings - SETTINGS):
        wrong = f"settings: {unknown[0]} is no field of a request; known are {', '.join(sorted(SETTINGS))}"
    elif not all(name.partition(":")[2] for name in (family.open, family.identity) if name is not None):
        wrong = "open and identity are written module:name"
    if wrong:
        raise DarkroomError(f"family {family.name}: {wrong}")
    FAMILIES[family.name] = family


def family(name: str, where: str = "family") -> Family:
    """The family of this name. Raises DarkroomError, which begins with `where`, for one that is not registered."""
    if name not in FAMILIES:
        raise DarkroomError(f"{where}: expected one of {', '.join(FAMILIES)}, got {name!r}")
    return FAMILIES[name]


def open_engine(section: "StageSection", name: str) -> "Engine":
    """The engine of `generate` or `edit` of the config; name: which of the two.

    The model of the section is a folder (`darkroom.models.hub.local_section`). Raises DarkroomError where the engine cannot
    work here.
    """
    kind = family(section.family, f"{name}.family")
    return _load(kind.open, kind.name)(section, name)


def _load(name: str, of: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise DarkroomError(f"family {of}: cannot load {name}: {str(error).splitlines()[0]}") from error


# ------------------------------------------------------------------------------------ families that diffusers runs

FLUX_DEV = "flux-1-dev-non-commercial-license"
_OWNER = "black-forest-labs"


def _guided(request: "Request") -> bool:
    """FLUX reads a negative prompt only with true classifier-free guidance."""
    return request.true_cfg > 1


def _kontext_conflict(section: "StageSection") -> str | None:
    if section.options.cache and section.sampling.true_cfg > 1:
        return "cache: FLUX Kontext's pipeline does not tell a cache the two passes of true_cfg apart; use true_cfg: 1"
    return None


_DIFFUSERS: dict[str, Any] = {
    "recipe_keys": ("dtype", "max_sequence_length"),
    "options": frozenset({"attention", "compile", "offload"}),
    "packages": ("torch", "diffusers", "transformers"),
}
_FLUX = _DIFFUSERS | {
    "reads_negative": _guided,
    "caches": frozenset({"first_block", "taylorseer"}),
    "quantized": ("transformer", "text_encoder_2"),  # CLIP is a hundredth of T5
}

register(
    Family(
        name="flux",
        open="darkroom.engines.diffusion:FluxEngine",
        makes=True,
        licences={f"{_OWNER}/FLUX.1-schnell": "apache-2.0"}
        | {f"{_OWNER}/FLUX.1-{name}": FLUX_DEV for name in ("dev", "Krea-dev")},
        **_FLUX,
    )
)
register(
    Family(
        name="flux-kontext",
        open="darkroom.engines.diffusion:KontextEngine",
        edits=True,
        conflict=_kontext_conflict,
        licences={f"{_OWNER}/FLUX.1-Kontext-dev": FLUX_DEV},
        **_FLUX,
    )
)
register(
    Family(
        name="auto",
        open="darkroom.engines.diffusion:AutoEngine",
        makes=True,
        edits=True,
        quantized=("transformer", "transformer_2", "unet", "text_encoder", "text_encoder_2", "text_encoder_3"),
        licences={f"{_OWNER}/FLUX.1-{name}-dev": FLUX_DEV for name in ("Fill", "Depth", "Canny", "Redux")},
        **_DIFFUSERS,
    )
)
