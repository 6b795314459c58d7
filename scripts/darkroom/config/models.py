"""What a config may hold: a typed model for each section, with defaults, limits and descriptions (Markdown).

The checks, the JSON schema for editors and the tables of config/README.md (`darkroom.config.reference`) come from these
models. Extensions add sections and metrics with `allow_section` and `allow_metric`.
"""

import codecs
import difflib
import os
import re
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
    model_validator,
)

from darkroom.config.duplicates import Duplicates
from darkroom.config.metrics import OCR, Aesthetic, Clip, Nsfw, PHash, Preserved, Quality
from darkroom.config.parts import DeviceSection as DeviceSection
from darkroom.config.parts import Dtype, Model, Revision
from darkroom.config.parts import ModelSource as ModelSource
from darkroom.config.values import (
    AS_GIVEN,
    NAME,
    Number,
    PathText,
    Refused,
    Section,
    SectionOfNumbers,
    Unusable,
    sections_of,
)
from darkroom.errors import DarkroomError
from darkroom.plan.stages import EDITED, IMAGES, STAGES, like

# What extensions bring: name -> model.
SECTIONS: dict[str, type[BaseModel]] = {}
METRICS: dict[str, type[BaseModel]] = {}

_MADE_BY = {stage.rows: stage.section for stage in (IMAGES, EDITED)}  # rows -> the section that says what they make


class AnyKeys(Section):
    """A section that takes any key; what it is for checks them itself."""

    model_config = ConfigDict(extra="allow")


def allow_section(name: str, model: type[BaseModel]) -> None:
    """Let the config have a section `name`.

    model: checks the section; a subclass of `Section` also reads values as the other sections do. That of a stage is a
    subclass of `StageSection`, or of `ModelSection` where a model makes its pictures.
    Raises DarkroomError where the name is taken.
    """
    if name in Config.model_fields or hasattr(Config, name) or SECTIONS.get(name, model) is not model:
        raise DarkroomError(f"section {name}: the config has one of that name")
    SECTIONS[name] = model


def allow_metric(name: str, model: type[BaseModel] = AnyKeys) -> None:
    """Let the config have `metrics.<name>`, checked by `model`. Raises DarkroomError where the name is taken."""
    if name in Metrics.model_fields or METRICS.get(name, model) is not model:
        raise DarkroomError(f"metric {name}: there is one of that name")
    METRICS[name] = model


def config_model(named: tuple[str, ...] = ()) -> type["Config"]:
    """The model of the whole config, with what the extensions loaded so far bring: their sections and metrics, and for
    each of their stages `select.<stage>` and `export.preferences.<stage>`.

    named: sections of several models, such as "generate.flux"; see `split_models`.
    """
    stages = (name for name in STAGES if name not in (IMAGES.name, EDITED.name))
    return _config_model(tuple(stages), tuple(SECTIONS.items()), tuple(METRICS.items()), named)


def split_models(config: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A config as the user wrote it, with a section of its own, "generate.few", for each of several models; and their names.

    `generate` or `edit` names several where a section stands under a key that is none of its own; its own keys hold for all of them.
    Raises DarkroomError where a name cannot be used.
    """
    parts, named = dict(config), [name for name in config if name.partition(".")[0] in SEVERAL and "." in name]
    for section, model in SEVERAL.items():
        given = config.get(section)
        if not isinstance(given, dict):
            continue  # refused with the others
        names = [name for name in given if name not in model.model_fields]
        if not any(isinstance(given[name], dict) for name in names):
            continue  # one model
        shared = {key: value for key, value in given.items() if key not in names}
        del parts[section]
        for name in names:
            if given[name] is None and (near := difflib.get_close_matches(name, model.model_fields, n=1, cutoff=0.8)):
                raise DarkroomError(f"config: unknown key {section}.{name}; did you mean {near[0]}?")
            if not re.fullmatch(MODEL_NAME, name):
                raise DarkroomError(
                    f"config: {section}: {name}: the name of one of several models is small letters, digits and _, at most 32"
                )
            own = {} if given[name] is None else given[name]
            parts[f"{section}.{name}"] = shared | own if isinstance(own, dict) else own
            named.append(f"{section}.{name}")
    return parts, tuple(named)


@cache  # configs of one process are of one class, so that they can be compared
def _config_model(
    stages: tuple[str, ...],
    brought: tuple[tuple[str, type[BaseModel]], ...],
    metrics: tuple[tuple[str, type[BaseModel]], ...],
    named: tuple[str, ...],
) -> type["Config"]:
    if named:
        base = _config_model(stages, brought, metrics, ())
        models = sections_of(base)
        each: dict[str, Any] = {name: (models[name.partition(".")[0]], ...) for name in named}
        return create_model("Config", __base__=base, **each)
    if not stages and not brought and not metrics:
        return Config
    thresholds: dict[str, Any] = {name: (Selection, Field(default_factory=Selection)) for name in stages}
    preferred: dict[str, Any] = dict.fromkeys(stages, (Preferred, None))
    asked_for: dict[str, Any] = {name: (model | None, None) for name, model in metrics}
    preferences = create_model("Preferences", __base__=Preferences, **preferred)
    export: dict[str, Any] = {"preferences": (preferences, Field(default_factory=preferences))}
    sections = dict(brought) | {
        "select": create_model("Select", __base__=Select, **thresholds),
        "metrics": create_model("Metrics", __base__=Metrics, **asked_for),
        "export": create_model("Export", __base__=Export, **export),
    }
    added: dict[str, Any] = {name: (model, Field(default_factory=model)) for name, model in sections.items()}
    return create_model("Config", __base__=Config, **added)


def stage_section_model(name: str) -> type["StageSection"]:
    """The model of a stage's section of the config. Raises DarkroomError where there is none."""
    model = sections_of(config_model()).get(name)
    if model is None or not issubclass(model, StageSection):
        raise _no_stage_section(name)
    return model


def _no_stage_section(name: str) -> DarkroomError:
    return DarkroomError(
        f"the config has no section {name} with a family; bring one with"
        f" allow_section({name!r}, model), whose model is a StageSection"
    )


def _each_once(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError("must not name anything twice")
    return values


Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, le=9_007_199_254_740_991)]
Seeds = Annotated[
    Annotated[list[Seed], Field(min_length=1, max_length=1000), AfterValidator(_each_once)] | None,
    Field(
        description="Seeds of the images of every prompt (under `edit`: of every edit), such as `[1, 2, 3]`: one image for each, in"
        " place of `samples_per_prompt` images with seeds that follow from the root seed. A row's own `seed` goes before them, and its"
        " `samples` takes the first so many."
    ),
]
Preferred = Annotated[
    str | None,
    Field(
        description="Score that tells the better of two images. Null is the first one under `select`, else the rubric's first."
    ),
]
Pixels = Annotated[
    int | None,
    Field(
        ge=16,
        le=8192,
        description="Pixels, where a row names none. Null, for edits, keeps the source's size. Sizes off the model's grid are worked"
        " at the next larger one and come out exact.",
    ),
]
Guidance = Annotated[
    float | None,
    Field(
        ge=0,
        le=100,
        description="Guidance (guidance_scale): of FLUX.1 and FLUX.2-dev the one it was distilled with, of others classifier-free (of Krea 2"
        " from 0 on, of most from 1). Null is what the model's card says. Refused where the model takes none.",
    ),
    AS_GIVEN,
]
Family = Annotated[
    str,
    Field(
        examples=["auto", "flux", "flux-kontext", "flux2-klein"],
        description="What kind of model it is; `auto` finds it by the files of a folder, or by the name of a hub model that is known;"
        " for another one of the hub it has to be given. Any other pipeline of diffusers is run image by image by `auto`, with what"
        " the config states. Or a family that an extension brings.",
    ),
]

PNG_6: dict[str, int] = {"png": 6}  # what pictures are stored as unless the config says otherwise
_LIMITS = {"png": (0, 9), "jpeg": (1, 100)}


def _known_format(value: str | dict[str, int]) -> str | dict[str, int]:
    if isinstance(value, dict):
        (name, number), *more = value.items() or [("", 0)]
        low, high = _LIMITS.get(name, (1, 0))
        if more or not low <= number <= high:
            raise ValueError(f"expected webp-lossless, {{png: 0 to 9}} or {{jpeg: 1 to 100}}, got {value}")
    return value


ImageFormat = Annotated[
    Literal["webp-lossless"] | dict[str, int],
    AfterValidator(_known_format),
    Field(
        description="How pictures are stored: `{png: 6}` (level 0 to 9; 1 takes a fraction of the time), `webp-lossless` (smaller), or"
        " `{jpeg: 90}` (quality 1 to 100, 4:4:4; much smaller, and the pixels are not quite those that were made). It is part of the"
        " recipe: another one makes the pictures anew."
    ),
]
BatchSize = Annotated[
    int,
    Field(
        ge=1,
        le=4096,
        description="Images denoised together. Large models gain little from more than 1, small ones much. Not part of an image's"
        " identity, though above 1 it can change the last bits. On the CPU images are made one by one.",
    ),
]


class Shards(Section):
    size: int = Field(
        default=100,
        ge=1,
        le=1_000_000,
        description="Rows in a shard on average: one job per shard and stage. 10 to 30 GPU-minutes of work in each, and at most"
        " some 10 000 shards, serve a cluster well.",
    )


@dataclass(frozen=True)
class Sampling:
    """What a section says of pictures whose rows leave it open; the defaults are for sections that do not say it.

    width and height in pixels; None keeps the source's. The others are None where they have no effect, or are left to the model.
    """

    width: int | None = None
    height: int | None = None
    steps: int | None = 1
    guidance: float | None = 0
    true_cfg: float | None = 1
    negative_prompt: str | None = None


@dataclass(frozen=True)
class Options:
    """How a section has a model fitted to a card; the defaults are for sections that do not say it."""

    dtype: str = "auto"
    offload: str = "none"
    loras: list["Lora"] = field(default_factory=list)
    quantization: str | None = None
    attention: str = "native"
    compile: bool = False
    cache: str | None = None
    cache_threshold: float = 0.05
    cache_interval: int = 5


class StageSection(DeviceSection):
    """What the section of every stage that makes pictures has. A stage of an extension gives `family` a default of its own."""

    family: Family
    batch_size: BatchSize = 1
    image_format: ImageFormat = PNG_6

    @property
    def sampling(self) -> Sampling:
        return Sampling(**self._said(Sampling))

    @property
    def options(self) -> Options:
        return Options(**self._said(Options))

    def _said(self, group: type[Sampling] | type[Options]) -> dict[str, Any]:
        """The values of a group that this kind of section has keys for."""
        return {one.name: getattr(self, one.name) for one in fields(group) if one.name in type(self).model_fields}


class Lora(Section):
    """A LoRA that is put onto the model of a section."""

    model: PathText | None = Field(default=None, description="A folder, or owner/name on the Hugging Face hub.")
    file: PathText | None = Field(default=None, description="In place of `model`: a `.safetensors` file.")
    revision: Revision = None
    weight_name: Text | None = Field(default=None, description="Which file of `model`, where it has several.")
    scale: Annotated[float, AS_GIVEN] = Field(default=1, ge=-100, le=100, description="How much of it is added.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.model is None) == (self.file is None):
            raise Refused("model: name a model or a file, one of the two")
        if self.file is not None and (self.revision or self.weight_name):
            raise Refused("file: has no revision and no weight_name; leave them out")
        if self.file is not None and not self.file.endswith(".safetensors"):
            raise Refused(f"file: only safetensors are loaded, and {self.file} is none by its name")
        return self


class ModelSection(StageSection, ModelSource):
    """What the section of a stage has whose pictures a model makes, such as `generate` and `edit`."""

    local_dir: PathText | None = Field(
        default=None, description="A folder with a copy of the hub model, used instead of the cache."
    )
    dtype: Dtype = "auto"
    width: Pixels
    height: Pixels
    steps: int | None = Field(
        default=None, ge=1, le=1000, description="Denoising steps. Null is what the model's card says; of FLUX.1 28."
    )
    guidance: Guidance = None
    true_cfg: Annotated[float | None, AS_GIVEN] = Field(
        default=None,
        ge=1,
        le=100,
        description="Classifier-free guidance of FLUX.1 and Qwen-Image (true_cfg_scale); above 1 doubles the time, and only then a"
        " negative prompt is read. Null is what the model's card says.",
    )
    negative_prompt: str | None = Field(
        default=None,
        min_length=1,
        max_length=20_000,
        description="What all pictures are guided away from; a row's own `negative_prompt` wins. Null is what the model's card says, an"
        " empty one mostly. Refused where it is not read: with guidance off, and by models without classifier-free guidance.",
    )
    max_sequence_length: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Tokens of a prompt that are read; longer ones are cut, and the job's log says how many. Null is what the"
        " model's pipeline takes, 512 mostly.",
    )
    offload: Literal["none", "model", "sequential"] = Field(
        default="none",
        description="Where weights wait: `model` brings each part of the pipeline to the GPU in turn, `sequential` each layer"
        " (slow). No pixel depends on it. FLUX's text encoders are off the GPU before the transformer comes, whatever it is.",
    )
    quantization: Literal["int8", "fp8", "nf4"] | None = Field(
        default=None,
        description="Weights of the transformer and T5 (of any other pipeline: denoiser and text encoders) in `int8` or `fp8`, by"
        " torchao, or `nf4`, 4 bits by bitsandbytes. With `fp8` a GPU (Ada, Hopper or later) also multiplies in 8 bits, best with"
        " `compile`.",
    )
    loras: list[Lora] = Field(
        default=[],
        description="LoRAs on the model, such as `[{model: owner/name, scale: 0.8}]`, each with `model` (a folder, or owner/name on"
        " the hub, with `revision`, and `weight_name` where it has several files) or `file`, and `scale`, 1 unless given. They are"
        " fetched and licensed as models are.",
    )
    attention: Literal[
        "native",
        "_native_cudnn",
        "_native_efficient",
        "_native_flash",
        "_native_math",
        "flash",
        "_flash_3",
        "sage",
        "xformers",
    ] = Field(
        default="native",
        description="diffusers' attention backend. Those that fetch their code from the hub while they run (`flash_hub` and"
        " others) are not taken.",
    )
    compile: bool = Field(
        default=False,
        description="torch.compile of the transformer's repeated blocks, for every size of image. The code is kept in"
        " `results/.darkroom/compiled/`, so that the next job on such a card loads it.",
    )
    cache: Literal["first_block", "taylorseer"] | None = Field(
        default=None,
        description="Leave out work of steps that change little (FLUX and Kontext). `first_block` only with `batch_size: 1`, for"
        " it decides on the whole batch.",
    )
    cache_threshold: Annotated[float, AS_GIVEN] = Field(
        default=0.05,
        ge=0,
        le=10,
        description="For `first_block`: the relative change of the first block's residual below which a step's other blocks are"
        " left out.",
    )
    cache_interval: int = Field(
        default=5, ge=1, le=1000, description="For `taylorseer`: every how many steps all is computed."
    )


def metric_section(name: str) -> str:
    """The section of the config that a metric has: `judge`, or one below `metrics`."""
    return name if name == "judge" else f"metrics.{name}"


def is_folder_name(model: str) -> bool:
    """Whether `model` names a folder rather than owner/name on the hub."""
    return not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model[0] in "./~" or os.path.isdir(model)


def model_folder(section: ModelSource) -> str | None:
    """The folder that a section's model lies in, None for a model of the hub."""
    if isinstance(section, ModelSection) and section.local_dir:
        return section.local_dir
    return section.model_name if is_folder_name(section.model_name) else None


class Generate(ModelSection):
    model: Model = "black-forest-labs/FLUX.1-dev"
    family: Family = "auto"
    seeds: Seeds = None
    width: Pixels = 1024
    height: Pixels = 1024


class Edit(ModelSection):
    model: Model = "black-forest-labs/FLUX.1-Kontext-dev"
    family: Family = "auto"
    seeds: Seeds = None
    width: Pixels = None
    height: Pixels = None
    sources: Literal["apart", "together"] = Field(
        default="apart",
        description="What is made of a row with several source images: one of each, or, with a model that takes several"
        " (FLUX.2, Qwen-Image-2.1, Qwen-Image-Edit-2509 and -2511), one of all `together`, as large as the first. A row's `sources` replaces it.",
    )
    turns: Literal["last", "chain"] = Field(
        default="last",
        description="How an edit with several turns of the user is read: the last is the instruction, or they are a `chain`, each"
        " working on the result of the one before. A row's `turns` replaces it.",
    )


MODEL_NAME = r"[a-z][a-z0-9_]{0,31}"
# Sections that can name several models, each with the keys of the section.
SEVERAL: dict[str, type[ModelSection]] = {"generate": Generate, "edit": Edit}


class Judge(DeviceSection, ModelSource):
    model: PathText = Field(
        default="Qwen/Qwen2.5-VL-7B-Instruct",
        description="A chat model that reads pictures, a folder or owner/name: Qwen2.5-VL, Qwen3-VL, Qwen3.5 (which is told not to"
        " think), or another that vLLM runs and that has a single token each for yes and no. Those that think before they answer are"
        " refused.",
    )
    engine: Literal["vllm", "transformers"] = Field(
        default="vllm", description="`transformers` gives the same answers one by one, where vLLM does not run."
    )
    dtype: Dtype = "auto"
    gpus: int = Field(
        default=1,
        ge=1,
        le=64,
        description="GPUs of a job, over which vLLM spreads the one model (tensor parallelism): for judges that one GPU cannot"
        " hold. The number must divide the model's attention heads.",
    )
    engine_args: dict[str, Any] = Field(
        default={},
        description="Further arguments for vLLM's `LLM(...)`, such as `{gpu_memory_utilization: 0.85, max_num_seqs: 16}`. Those that"
        " other keys settle are refused. They are part of a score's identity, except those that say where memory lies and how"
        " much is asked at once.",
    )
    temperature: Annotated[float, AS_GIVEN] = Field(
        default=0,
        ge=0,
        le=10,
        description="How replies in JSON and texts are sampled; 0 always takes the likeliest word. P(yes), choices and ratings come from"
        " the logits and do not depend on it.",
    )
    top_p: Annotated[float, AS_GIVEN] = Field(
        default=1,
        gt=0,
        le=1,
        description="Share of the probability that words are drawn from where `temperature` is above 0.",
    )
    max_tokens: int = Field(default=512, ge=1, le=32768, description="Longest reply in JSON, or text.")
    rubric: PathText = Field(
        default="config/rubrics/default.yaml",
        description="What is asked, and how replies become numbers: a file, or the name alone of one in `config/rubrics/`; `default.yaml`"
        " explains the form.",
    )
    min_pixels: int | None = Field(
        default=None,
        ge=1,
        description="Smaller pictures are enlarged to so many pixels before the judge sees them; null for the model's own limit.",
    )
    max_pixels: int | None = Field(
        default=1_048_576,
        ge=1,
        description="Larger pictures are reduced to so many pixels before the judge sees them, within the model's own limit; null"
        " for that.",
    )
    shards_per_job: Annotated[int, Field(ge=1, le=1000)] | Literal["auto"] = Field(
        default="auto",
        description="Image shards that one job scores, at most, for one start of the engine. A score file then covers these shards,"
        " and waits for all of them."
        " `auto` takes so many that starts are a small part of the judge's time: it goes by `shards.size`, `samples_per_prompt` and the"
        " size of the model, by the speeds that are built in. `darkroom plan` says what part they are, and which number would lower it."
        " Another number asks nothing again.",
    )
    reply_column: Text = Field(
        default="reply",
        description="Column of the exported rows (`folder`) that takes the judge's reply as it came, to the question that says most.",
    )

    @model_validator(mode="after")
    def _least_below_most(self) -> Self:
        if None not in (self.min_pixels, self.max_pixels) and self.min_pixels > self.max_pixels:  # type: ignore[operator]
            raise Refused(
                f"min_pixels: {self.min_pixels} is above max_pixels, {self.max_pixels}; no picture could be both"
            )
        return self


class Metrics(Section):
    """Scores beside the judge's: those that are named are asked for, also with nothing under the name."""

    phash: PHash = Field(default_factory=PHash)
    clip: Clip = Field(default_factory=Clip)
    aesthetic: Aesthetic = Field(default_factory=Aesthetic)
    nsfw: Nsfw = Field(default_factory=Nsfw)
    quality: Quality = Field(default_factory=Quality)
    preserved: Preserved = Field(default_factory=Preserved)
    ocr: OCR = Field(default_factory=OCR)

    _names: tuple[str, ...] = PrivateAttr(default=())  # in the user's order

    @model_validator(mode="wrap")
    @classmethod
    def _asked_for(cls, given: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(given, dict):
            return check(given)
        checked = check({name: {} if one is None else one for name, one in given.items()})
        checked._names = tuple(given)
        return checked

    @model_serializer
    def _as_asked_for(self) -> dict[str, Any]:
        return dict(self.asked)

    @property
    def asked(self) -> dict[str, BaseModel]:
        """Name -> section of each that is asked for, in the user's order."""
        return {name: getattr(self, name) for name in self._names}

    def with_asked(self, name: str) -> Self:
        """These, and another one with what stands under its name, or with its defaults."""
        more = self.model_copy()
        more._names = self._names if name in self._names else (*self._names, name)
        return more


class Quota(Section):
    by: Text = Field(description="Column or expression whose values are counted, such as `category`.")
    each: int = Field(ge=1, description="Images of each value, the best.")


class Selection(SectionOfNumbers):
    """Least score by score name, such as `p_yes: 0.5`. An image is selected when it reaches all of them; a null score reaches none."""

    where: Text | None = Field(
        default=None,
        description="What else must be true of an image, such as `p_yes >= 0.6 and nsfw < 0.2 and category != 'x'`: an expression of"
        " DuckDB over the columns of `scores.parquet`, your own fields among them. What is null is not true.",
    )
    order_by: Text | Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None,
        description="Column or expression, or a list of them, whose greatest value is the best; `-column` for the least. Null: the first"
        " score named here. Equal ones go by sample, then key.",
    )
    distinct: Text | None = Field(
        default=None,
        description="Column or expression: of the images with the same value, the best is kept. A null is like no other.",
    )
    per_row: int | None = Field(
        default=None, ge=1, description="Of the samples of a prompt, the best so many. Null: `select.per_row`."
    )
    quota: Quota | None = Field(
        default=None, description="`{by: category, each: 500}`: of each value of `by`, the best so many."
    )
    limit: int | None = Field(default=None, ge=1, description="Of all images, the best so many.")

    @model_serializer(mode="wrap")
    def _as_said(self, told: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in told(self).items() if value is not None}

    @property
    def cuts(self) -> dict[str, str]:
        """What selects beside thresholds, for people, by key."""
        quota = f"the best {self.quota.each} of each {self.quota.by}" if self.quota else None
        found = {"where": self.where, "one of each": self.distinct, "kept of each row": self.per_row, "quota": quota}
        found |= {"kept in all": self.limit, "the best by": ", ".join(self.order)}
        return {key: str(said) for key, said in found.items() if said}

    @property
    def order(self) -> list[str]:
        """What `order_by` names."""
        return [self.order_by] if isinstance(self.order_by, str) else self.order_by or []

    def expressions(self, where: str) -> list[tuple[str, str, str]]:
        """(key, expression, what it must be: "condition" or "value") of each that is named; where: the key of this section."""
        found = [("where", self.where, "condition"), ("distinct", self.distinct, "value")]
        found += [("order_by", one, "value") for one in self.order]
        found += [("quota.by", self.quota.by, "value")] if self.quota else []
        return [(f"{where}.{key}", text, wanted) for key, text, wanted in found if text is not None]


class Select(Section):
    images: Selection = Field(
        default_factory=Selection,
        description="Which images are selected: the least of scores, by their names, and the keys of the table below.",
    )
    edited: Selection = Field(default_factory=Selection, description="The same for edited images.")
    per_row: int | None = Field(
        default=None,
        ge=1,
        description="Of the selected samples of a prompt, keep the best so many, by the first score named, or by `order_by`.",
    )
    labels: bool = Field(
        default=True,
        description="Whether `labels` decide where there are any: an image that was rejected is not selected, one that was accepted is,"
        " whatever its scores.",
    )

    def of(self, stage: str) -> Selection:
        """What selects pictures of a stage; nothing where the config says nothing of it."""
        return getattr(self, like(stage), None) or Selection()

    def least_of(self, stage: str) -> dict[str, float]:
        """Score name -> the least that selects a picture of a stage."""
        return self.of(stage).numbers

    def most_of(self, stage: str) -> int | None:
        """How many samples of a row of a stage are kept, None where there is no such number."""
        return self.of(stage).per_row or self.per_row


class Formula(Section):
    formula: Text = Field(description="Expression of DuckDB over the scores of an image.")
    low: Number = Field(default=0, description="Least value that it can have.")
    high: Number = Field(default=1, description="Greatest value that it can have.")

    @model_validator(mode="after")
    def _least_below_most(self) -> Self:
        if self.low >= self.high:
            raise Refused(f"low: {self.low:g} is not below high, {self.high:g}")
        return self


class Gallery(Section):
    enabled: bool = Field(
        default=True,
        description="Make `results/gallery/`, a page that opens from disk. Turn it off for sets of many millions.",
    )
    thumbnail: int = Field(default=256, ge=16, le=1024, description="Longest side of a thumbnail in pixels.")
    preview: int | None = Field(
        default=1024,
        ge=64,
        le=8192,
        description="Longest side of the large pictures; null leaves them out, which makes the gallery of large pictures several"
        " times smaller.",
    )
    scores: Annotated[list[str], Field(max_length=6), AfterValidator(_each_once)] | None = Field(
        default=None,
        description="Scores below each picture, at most six, such as `[p_yes, visual_quality]`; each kind of picture shows those it has."
        " null: two, those with a threshold before the others. A picture that is opened shows all.",
    )


class Report(Section):
    enabled: bool = Field(
        default=True, description="Draw `results/plots/`, which `snakemake --report report.zip` shows."
    )
    yield_by: Text | None = Field(
        default=None,
        description="Column of the tables or field of your rows, such as `category`, by whose values `yield.csv` and the report tell"
        " the yield of each step, too.",
    )


class Preferences(Section):
    images: Preferred = None
    edited: Preferred = None
    margin: Annotated[float, AS_GIVEN] = Field(
        default=0, ge=0, description="Least difference of that score in a pair. Equal scores make no pair."
    )

    def score_of(self, stage: str) -> str | None:
        """The score that tells the better of two pictures of a stage, None where the config names none."""
        return getattr(self, like(stage), None)


class Export(Section):
    formats: Annotated[
        list[Literal["folder", "imagefolder", "parquet", "webdataset", "preferences"]], AfterValidator(_each_once)
    ] = Field(
        default=["folder"],
        description="`folder` is `results/dataset/`: your rows back, with PNG files. `imagefolder`, `parquet`, `webdataset` and"
        " `preferences` (pairs of a better and a worse image) are folders below `results/exports/`.",
        json_schema_extra={"uniqueItems": True},
    )
    name: str = Field(
        default="darkroom", pattern=NAME, description="Name of the data set in its README and Croissant description."
    )
    licence: str | None = Field(
        default=None,
        min_length=1,
        description="Licence that you give the data set, such as `cc-by-4.0`. Null says `unknown`.",
    )
    acknowledge_licences: list[Text] = Field(
        default=[],
        description="Licences that limit training on a model's images, such as `flux-1-dev-non-commercial-license`, and that your"
        " use is within. All formats but `folder` need it for such a model.",
    )
    provenance: bool = Field(
        default=True,
        description="Write into each PNG file how it was made (text chunks and XMP). Its pixels stay the same.",
    )
    file_mb: int = Field(
        default=500, ge=1, le=100_000, description="Greatest size of a Parquet or tar file, in millions of bytes."
    )
    prefix: Text = Field(
        default="darkroom_",
        description="What a column of ours begins with, in the tables too, where a field of your rows has its name, in whatever case. Yours keep"
        " their names.",
    )
    preferences: Preferences = Field(default_factory=Preferences)


def _known_encoding(name: str) -> str:
    """The name that Python's codecs have for an encoding of text."""
    try:
        "".encode(name)
        return codecs.lookup(name).name
    except (LookupError, ValueError):
        raise Unusable(f"no encoding that Python knows: {name}; some are cp1252, gb18030, shift_jis, utf-16") from None


def _usable_delimiter(text: str) -> str:
    text = text.replace("\\t", "\t")
    if len(text) != 1 or text in '"\r\n':
        raise ValueError("expected one character that is no quote and no line end")
    return text


Names = Text | list[Text] | None
Files = PathText | Annotated[list[PathText], Field(min_length=1)] | None


class RowFields(Section):
    """Which of the user's fields stands for which of ours; an empty list: none, though there may be one of that name."""

    preset: (
        Literal[
            "dataflow",
            "llava",
            "sharegpt",
            "openai",
            "pico-banana",
            "magicbrush",
            "instructpix2pix",
            "diffusiondb",
            "partiprompts",
            "geneval",
        ]
        | None
    ) = Field(default=None, description="The fields of a known data set; the keys below change it.")
    root: PathText | None = Field(
        default=None,
        description="Folder that relative names of image files start from. Null is the folder of the rows, of several files the one"
        " that they have in common.",
    )
    encoding: Annotated[str, AfterValidator(_known_encoding)] | None = Field(
        default=None,
        description="How text files are encoded, such as `cp1252`. Null: UTF-8 or UTF-16, as the file tells.",
    )
    delimiter: Annotated[str, AfterValidator(_usable_delimiter)] | None = Field(
        default=None,
        description="What stands between the cells of `.csv` and `.tsv`, such as `^`. Null: as the header tells.",
    )
    id: Names = Field(default=None, description="The row's id.")
    prompt: Names = Field(default=None, description="The prompt, or the instruction of an edit.")
    conversations: Names = Field(default=None, description="The conversation whose user's turns are prompts.")
    images: Names = Field(default=None, description="The sources of an edit, or pictures to be judged.")
    edited_images: Names = Field(default=None, description="Results that are there already, to be judged.")
    seed: Names = Field(default=None, description="Seed of the first image.")
    width: Names = Field(default=None, description="Width in pixels.")
    height: Names = Field(default=None, description="Height in pixels.")
    steps: Names = Field(default=None, description="Steps of denoising.")
    guidance: Names = Field(default=None, description="Guidance.")
    negative_prompt: Names = Field(default=None, description="Negative prompt.")
    samples: Names = Field(default=None, description="Images of each prompt.")


class Rows(RowFields):
    edits: RowFields = Field(default_factory=RowFields, description="The same keys, for the rows of `edits` alone.")


class Config(Section):
    """Darkroom configuration"""

    prompts: Files = Field(
        default=None,
        description="Rows to turn into images: a file, a list of files, or a pattern such as `prompts/*.jsonl`, in the formats of"
        " the table below; or what they are made of. Null: none.",
    )
    edits: Files = Field(
        default=None,
        description="Rows that edit images, in the same way. Null: none. At least one of the two is needed.",
    )
    rows: Rows = Field(default_factory=Rows)
    results: PathText = Field(default="results", description="Folder for everything that is made.")
    seed: Seed = Field(
        default=0,
        description="Root seed. An image's seed is a hash of it, the row's id and the sample number, so it does not change when rows"
        " are added, moved or split over more jobs.",
    )
    samples_per_prompt: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Images of each prompt and each edit. A row's `samples` replaces it, and so does a section's `seeds`.",
    )
    shards: Shards = Field(default_factory=Shards)
    trial: int | None = Field(
        default=None,
        ge=1,
        description="Make a trial of so many rows of `prompts`, drawn by a hash of their ids (the same ones at every run), with the edits"
        " that start from their images; and of edits that start from images of their own, as many again. The other rows, and"
        " labels of their images, are left out. `darkroom trial` writes a config with this key. Null: all rows.",
    )
    container: PathText | None = Field(
        default=None,
        description="An image for `--sdm apptainer`, a file or `docker://…`: build one from `envs/darkroom.def`, and run with"
        ' `--sdm apptainer --apptainer-args "--nv"`. Folders outside of the working folder and your home need a `--bind`. Null:'
        " no container.",
    )
    strict: bool = Field(
        default=False, description="Stop at the first bad row or failed request, instead of recording it and going on."
    )
    retry_failed: bool = Field(
        default=False,
        description="Make failed requests and unreadable replies again, and carry all else over. For the command line of one run:"
        " `snakemake --config retry_failed=true`.",
    )
    extensions: Annotated[list[PathText], AfterValidator(_each_once)] = Field(
        default=[],
        description="Python files of your own that are run before the config is checked and bring families, metrics, stages or"
        " sections.",
        json_schema_extra={"uniqueItems": True},
    )
    generate: Generate = Field(default_factory=Generate)
    edit: Edit = Field(default_factory=Edit)
    judge: Judge = Field(default_factory=Judge)
    metrics: Metrics = Field(default_factory=Metrics)
    scores: dict[str, Text | Formula] = Field(
        default={},
        description='Scores worked out from others, by name: `{overall: "sqrt(least(p_followed, p_preserved) * quality)"}`, an expression of'
        " DuckDB over the scores of an image and the formulas above it. Every kind of image that has all these scores has it, too. Its values"
        ' are from 0 to 1; where they are not, `{formula: "quality / 2", low: 0, high: 5}`. A changed formula asks no model anything.',
    )
    duplicates: Duplicates = Field(default_factory=Duplicates)
    select: Select = Field(default_factory=Select)
    labels: PathText | None = Field(
        default=None,
        description="CSV with the columns `key` and `label` (`accept` or `reject`), as the gallery exports it; becomes the column"
        " `label` of the tables, and decides what is selected (`select.labels`). A line that fits no image is in `rejected.jsonl`.",
    )
    gallery: Gallery = Field(default_factory=Gallery)
    report: Report = Field(default_factory=Report)
    export: Export = Field(default_factory=Export)

    @model_validator(mode="after")
    def _one_number_of_samples(self) -> Self:
        for section in (section for rows in _MADE_BY for section in self.sections_for(rows)):
            seeds = self.seed_of(section)
            stated = "samples_per_prompt" in self.model_fields_set
            if not isinstance(seeds, int) and stated and len(seeds) != self.samples_per_prompt:
                raise Refused(
                    f"{section}.seeds: lists {len(seeds)}, and samples_per_prompt is {self.samples_per_prompt}; leave out one"
                    " of them"
                )
        return self

    def section(self, name: str) -> StageSection:
        """The section of a stage. Raises DarkroomError where there is none."""
        section = getattr(self, name, None)
        if not isinstance(section, StageSection):
            raise _no_stage_section(name)
        return section

    def models_named(self, section: str) -> list[str]:
        """The names of the models of a section that names several, in the user's order; [] where it names none."""
        fields = type(self).model_fields
        return [name.partition(".")[2] for name in fields if name.startswith(f"{section}.")]

    def sections_for(self, rows: str) -> list[str]:
        """The sections that say what rows of "prompts" or "edits" make: one, or one for each of several models."""
        section = _MADE_BY[rows]
        return [f"{section}.{name}" for name in self.models_named(section)] or [section]

    def models_of(self, rows: str) -> list[str]:
        """The names of several models that rows of "prompts" or "edits" go to; [] where there are not several."""
        return self.models_named(_MADE_BY[rows])

    def rows_of(self, rows: str) -> str | list[str] | None:
        """What is named under "prompts" or "edits", None where nothing is."""
        return {"prompts": self.prompts, "edits": self.edits}[rows]

    def seed_of(self, section: str) -> int | list[int]:
        """What the seeds of a section's requests come from: the root seed, or a list of them."""
        return getattr(self.section(section), "seeds", None) or self.seed

    def samples_of(self, rows: str) -> int:
        """Images of each row of "prompts" or "edits" that does not say how many."""
        seeds = self.seed_of(self.sections_for(rows)[0])
        return self.samples_per_prompt if isinstance(seeds, int) else len(seeds)

    def most_samples(self, rows: str) -> int | None:
        """How many images a row of "prompts" or "edits" without a seed of its own can ask for; None: any number."""
        seeds = self.seed_of(self.sections_for(rows)[0])
        return None if isinstance(seeds, int) else len(seeds)

    def row_files(self, rows: str) -> list[str]:
        """The files of "prompts" or "edits" of a checked config, [] where there are none."""
        named = self.rows_of(rows)
        return [named] if isinstance(named, str) else named or []

    def with_section(self, name: str, **changes: Any) -> Self:
        """The config with other values in one of its sections, "judge" or "metrics.clip"; they are not checked."""
        if name.startswith("metrics."):
            metric = name.removeprefix("metrics.")
            changed = getattr(self.metrics, metric).model_copy(update=changes)
            return self.model_copy(update={"metrics": self.metrics.model_copy(update={metric: changed})})
        return self.model_copy(update={name: getattr(self, name).model_copy(update=changes)})
