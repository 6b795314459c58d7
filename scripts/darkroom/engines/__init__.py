"""What makes pictures: families of models as data, and the engines that they open.

The library asks a `Family` for all that differs between kinds of models; nothing else compares the names of families. An
extension file adds a kind with `register(Family(...))`, and an `Engine` (`darkroom.engines.base`) for it. Nothing heavy is
imported here: the config, plans and keys need families where no engine is installed.
"""

import importlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom.errors import DarkroomError

if TYPE_CHECKING:
    from darkroom.config.models import Sampling, StageSection
    from darkroom.engines.base import Engine
    from darkroom.plan.requests import Request

# Fields of a request, besides the negative prompt and the source, that can decide a pixel.
SETTINGS = frozenset({"prompt", "seed", "width", "height", "steps", "guidance", "true_cfg"})
# Keys of a section that a family may leave without effect, with what they are where neither the config nor the family says it.
DEFAULTS: dict[str, Any] = {"steps": 28, "guidance": 3.5, "true_cfg": 1, "max_sequence_length": 512}


def always(request: "Request | Sampling") -> bool:
    return True


def _never(section: "StageSection") -> None:
    return None


def one_pass(request: "Request | Sampling") -> bool:
    """For models without classifier-free guidance."""
    return False


@dataclass(frozen=True)
class Pipeline:
    """How a pipeline of diffusers is called; `darkroom.engines.diffusion:PipelineEngine` works by it.

    name: its class.
    embeds: the arguments of its call that take what its `encode_prompt` returns, in that order; None passes over a value. Those of
        the negative prompt begin with `negative_`. Empty: prompts are encoded within the call.
    encode: further arguments of `encode_prompt`.
    encoders: the components that prompts alone need; they are freed before the others are loaded.
    tokenizer: the component that tells how long a prompt is.
    with_sources: prompts of edits are encoded together with the pictures that they are about, within the call, whatever `embeds` says.
    longest: the most tokens of a prompt that are read, where neither `max_sequence_length` nor the tokenizer says it.
    arguments: fields of a request -> arguments of the call.
    switches: further arguments of the call: what the pipeline would otherwise do to prompts and sizes by itself.
    negative: what a request without a negative prompt is guided away from; None: from zeros in place of an encoded text, where
        the checkpoint's `force_zeros_for_empty_prompt` is set.
    grid: how many latents a side of the picture's grid has, beside the VAE's own factor.
    source: further arguments of the call where it edits, (width, height) -> arguments.
    shares: whether requests of one call have embeddings of one length, and so can share it.
    edits_share: whether edits can share a call: the images of a call are its requests' sources, one each.
    most_pixels: larger sources are worked on at this area.
    least_side: smaller sides of sources are worked on at so many pixels.
    most_ratio: how many times as long as the other side one of a source may be; None: any.
    """

    name: str
    embeds: tuple[str | None, ...] = ()
    encode: Mapping[str, Any] = field(default_factory=dict)
    encoders: tuple[str, ...] = ("text_encoder", "tokenizer")
    tokenizer: str = "tokenizer"
    with_sources: bool = False
    longest: int | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, Any] = field(default_factory=dict)
    negative: str | None = ""
    grid: int = 2
    source: Callable[[int, int], dict[str, Any]] | None = None
    shares: bool = True
    edits_share: bool = False
    most_pixels: int | None = None
    least_side: int = 1
    most_ratio: float | None = None


@dataclass(frozen=True)
class Family:
    """A kind of model, as the rest of the library needs to know it.

    name: what `family` of the config calls it.
    open: "module:name" of what is called with (section, name of the section) and returns the Engine.
    makes: it makes images from text (`generate`).
    edits: it edits images (`edit`).
    joins: it can make one image of several sources.
    needs_model: `model` of the section names what makes the pictures. Without it no model is looked up, fetched or licensed.
    local: it computes in the job, which gets devices, and loads the model from a folder or the hub's cache.
    repeats: equal keys give equal pixels on one kind of device.
    identity: "module:name" of section -> text, what the model is for keys and digests; None: `model_identity`, or
        "family:<name>" where no model is needed.
    settings: fields of a request that decide a pixel, of `SETTINGS`; the negative prompt and the source are apart.
    recipe_keys: keys of the section, besides `settings`, that decide a pixel.
    reads_negative: whether the negative prompt of a request decides a pixel.
    guided: whether a request takes a second pass in each step (classifier-free guidance).
    defaults: keys of the section -> what they are where the config is silent, as the models' cards have it.
    pipeline: how its pipeline is called, where it is one of diffusers.
    pipelines: classes of pipelines in whose checkpoints the family is found, the one of `pipeline` besides.
    marks: fields of model_index.json -> whether they are set, which tell it from others of the same class.
    named: a regular expression for names of models that does so, where the files cannot.
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
    joins: bool = False
    needs_model: bool = True
    local: bool = True
    repeats: bool = True
    identity: str | None = None
    settings: frozenset[str] = SETTINGS
    recipe_keys: tuple[str, ...] = ()
    reads_negative: Callable[["Request | Sampling"], bool] = always
    guided: Callable[["Request | Sampling"], bool] = one_pass
    defaults: Mapping[str, Any] = field(default_factory=lambda: DEFAULTS)
    pipeline: Pipeline | None = None
    pipelines: tuple[str, ...] = ()
    marks: Mapping[str, bool] = field(default_factory=dict)
    named: str = ""
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

    def reaches(self, key: str) -> bool:
        """Whether a key of `DEFAULTS` has an effect."""
        return key in self.settings or key in self.recipe_keys

    def unread(self, sampling: "Sampling") -> str | None:
        """Why a negative prompt would decide no pixel, as what follows its name; None where it does."""
        if self.reads_negative(sampling):
            return None

        def reads(key: str, value: float) -> bool:
            changed: dict[str, Any] = {key: value}
            return self.reads_negative(replace(sampling, **changed))

        for key in ("guidance", "true_cfg"):
            if key in self.settings and reads(key, 100):
                least = 0 if reads(key, 1) else 1
                return f"is only read with {key} above {least}"
        return f"has no effect on a model of the family {self.name}; leave it out"

    def recognises(self, index: Mapping[str, Any], model: str) -> bool:
        """Whether a checkpoint is of this family; index: its model_index.json, model: how the config names it."""
        names = self.pipelines + ((self.pipeline.name,) if self.pipeline else ())
        return (
            index.get("_class_name") in names
            and all(bool(index.get(key)) == value for key, value in self.marks.items())
            and re.search(self.named, model, re.IGNORECASE) is not None
        )

    def no_joining(self) -> str | None:
        """Why no image can be made of several sources together, None where it can."""
        if self.joins:
            return None
        able = one_of([other.name for other in FAMILIES.values() if other.joins])
        return f"a model of the family {self.name} takes one image; say apart, or use {able}"

    def refusal(self, stage: str) -> str | None:
        """Why this family cannot serve `generate` or `edit`, "key: reason", or None."""
        stage = stage.partition(".")[0]  # of "generate.flux", one of several
        if self.makes if stage == "generate" else self.edits:
            return None
        able = [other.name for other in FAMILIES.values() if (other.makes if stage == "generate" else other.edits)]
        does = "edits images" if stage == "generate" else "makes images from text alone"
        return f"family: {self.name} {does}; use {one_of(able)}"


def one_of(names: list[str], word: str = "or") -> str:
    """ "a, b or c"."""
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


FAMILIES: dict[str, Family] = {}
# Pipelines of diffusers that make other pictures of the same request, or none, when they are called as any is: why.
UNUSABLE: dict[str, str] = {}


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


def recognised(model: str, folder: str | None, stage: str) -> str | None:
    """The name of the family that a model is of, None where nothing tells.

    model: as the config names it; folder: where its files are, None for one of the hub, which is known by its name; stage:
    `generate` or `edit`, for a checkpoint can be of a family for each.
    """
    for kind in FAMILIES.values():
        if folder is None and model.lower() in map(str.lower, kind.licences):
            return kind.name if kind.name != "auto" else None
    index = {} if folder is None else _index(folder)
    found = [kind for kind in FAMILIES.values() if kind.recognises(index, model)]
    able = [kind for kind in found if kind.refusal(stage) is None]
    return (able or found)[0].name if found else None


def unusable(folder: str) -> str | None:
    """Why `auto` cannot run the checkpoint in a folder that is of no other family, None where it may."""
    name = _index(folder).get("_class_name")
    return f"{name} {UNUSABLE[name]}, and no family knows how to run it" if name in UNUSABLE else None


def _index(folder: str) -> dict[str, Any]:
    """What model_index.json of a checkpoint says; empty where it cannot be read: loading the model says what is wrong with it."""
    try:
        index = json.loads(Path(folder, "model_index.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}


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


importlib.import_module("darkroom.engines.families")  # which register themselves, as those of extensions do
