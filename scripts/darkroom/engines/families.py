"""The families that pipelines of diffusers run: for each, as data, what a pipeline has to be told, and its card's own settings."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from darkroom.engines import DEFAULTS, SETTINGS, UNUSABLE, Family, Pipeline, always, one_pass, register

if TYPE_CHECKING:
    from darkroom.config.models import Sampling, StageSection
    from darkroom.plan.requests import Request

FLUX_DEV = "flux-1-dev-non-commercial-license"
FLUX_2 = "flux-non-commercial-license"
STABILITY = "stabilityai-ai-community"
QWEN_RESEARCH = "qwen-research"
KREA = "krea-2-community-license"
SANA = "nscl-v2-custom"
HUNYUAN = "tencent-hunyuan-community"
_OWNER = "black-forest-labs"
# Of denoisers that name no blocks to compile, and call torch's attention by themselves, whatever the backend.
_OWN_KERNELS = frozenset({"loras", "offload"})


def _true_cfg(request: "Request | Sampling") -> bool:
    return (request.true_cfg or 1) > 1


def _above_one(request: "Request | Sampling") -> bool:
    return (request.guidance or 0) > 1


def _above_zero(request: "Request | Sampling") -> bool:
    return (request.guidance or 0) > 0


def _kontext_conflict(section: "StageSection") -> str | None:
    if section.options.cache and _true_cfg(section.sampling):
        return "cache: FLUX Kontext's pipeline does not tell a cache the two passes of true_cfg apart; use true_cfg: 1"
    return None


def _diffusers(name: str, pipeline: Pipeline, licences: Mapping[str, str], **more: Any) -> Family:
    """A family whose pictures `PipelineEngine` makes."""
    guided = more.pop("guided", one_pass)
    fields: dict[str, Any] = {
        "open": "darkroom.engines.diffusion:PipelineEngine",
        "makes": True,
        "recipe_keys": ("dtype", "max_sequence_length"),
        "options": frozenset({"attention", "compile", "loras", "offload"}),
        "packages": ("torch", "diffusers", "transformers"),
        "quantized": ("transformer", "text_encoder"),
        "guided": guided,
        "reads_negative": guided,
        "settings": SETTINGS - {"true_cfg"},
    }
    fields["defaults"] = DEFAULTS | more.pop("defaults", {})
    return Family(name=name, pipeline=pipeline, licences=licences, **fields | more)


_FLUX_CALL: dict[str, Any] = {
    "embeds": ("prompt_embeds", "pooled_prompt_embeds", None),
    "encode": {"prompt_2": None},
    "encoders": ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    "tokenizer": "tokenizer_2",
    "arguments": {"guidance": "guidance_scale", "true_cfg": "true_cfg_scale"},
}
_FLUX: dict[str, Any] = {
    "guided": _true_cfg,
    "settings": SETTINGS,
    "caches": frozenset({"first_block", "taylorseer"}),
    "quantized": ("transformer", "text_encoder_2"),  # CLIP is a hundredth of T5
}
# Its own area, which Kontext was trained at; it would rescale the result to a megapixel and the source to one of its own sizes.
_KONTEXT = Pipeline(
    "FluxKontextPipeline",
    source=lambda width, height: {"max_area": width * height, "_auto_resize": False},
    edits_share=True,
    most_pixels=1024**2,
    **_FLUX_CALL,
)
# A list of images is one request's references.
_FLUX_2: dict[str, Any] = {
    "embeds": ("prompt_embeds", None),
    "arguments": {"guidance": "guidance_scale"},
    "least_side": 64,
    "most_ratio": 8,
}
_KLEIN = Pipeline("Flux2KleinPipeline", **_FLUX_2)
_QWEN: dict[str, Any] = {"arguments": {"true_cfg": "true_cfg_scale"}, "negative": " ", "shares": False}
_Z_IMAGE = Pipeline(
    "ZImagePipeline",
    embeds=("prompt_embeds", None),
    encode={"do_classifier_free_guidance": False},
    arguments={"guidance": "guidance_scale"},
    shares=False,
)
_SD3 = Pipeline(
    "StableDiffusion3Pipeline",
    embeds=("prompt_embeds", None, "pooled_prompt_embeds", None),
    encode={"prompt_2": None, "prompt_3": None, "do_classifier_free_guidance": False},
    encoders=tuple(f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")),
    tokenizer="tokenizer_3",
    arguments={"guidance": "guidance_scale"},
)
_SDXL = Pipeline(
    "StableDiffusionXLPipeline",
    embeds=("prompt_embeds", None, "pooled_prompt_embeds", None),
    encode={"do_classifier_free_guidance": False},
    encoders=("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    arguments={"guidance": "guidance_scale"},
    negative=None,
    grid=1,
)
# A list of images is one request's references. Its processor is wanted whether or not there is a text encoder. Sources are read
# at the area worked at, where the pipeline would take a megapixel; within what its encoder reads as it is, rounded to the grid.
_QWEN_21 = Pipeline(
    "QwenImage21Pipeline",
    embeds=("prompt_embeds", "prompt_embeds_mask", None),
    encoders=("text_encoder",),
    tokenizer="processor",
    with_sources=True,
    source=lambda width, height: {"output_resolution": min(max(math.isqrt(width * height), 320), 2048)},
    **_QWEN,
)
_KREA_2 = Pipeline(
    "Krea2Pipeline", embeds=("prompt_embeds", "prompt_embeds_mask"), arguments={"guidance": "guidance_scale"}
)
# Without the instruction that its call puts before prompts, and at the size that is asked for.
_SANA = Pipeline(
    "SanaPipeline",
    embeds=("prompt_embeds", "prompt_attention_mask", None, None),
    encode={"do_classifier_free_guidance": False},
    arguments={"guidance": "guidance_scale"},
    switches={"use_resolution_binning": False, "negative_prompt": None},
    grid=1,
)
_CHROMA = Pipeline(
    "ChromaPipeline",
    embeds=("prompt_embeds", None, "prompt_attention_mask", None, None, None),
    encode={"do_classifier_free_guidance": False},
    arguments={"guidance": "guidance_scale"},
)
# One by one: whether any prompt of a call has words in quotation marks decides how all of them are guided.
_HUNYUAN: dict[str, Any] = {
    "embeds": tuple(f"prompt_embeds{name}" for name in ("", "_mask", "_2", "_mask_2")),
    "encoders": ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    "longest": 1000,
    "shares": False,
}

for _family in (
    _diffusers(
        "flux",
        Pipeline("FluxPipeline", **_FLUX_CALL),
        {f"{_OWNER}/FLUX.1-schnell": "apache-2.0"}
        | {f"{_OWNER}/FLUX.1-{name}": FLUX_DEV for name in ("dev", "Krea-dev")},
        **_FLUX,
    ),
    _diffusers(
        "flux-kontext",
        _KONTEXT,
        {f"{_OWNER}/FLUX.1-Kontext-dev": FLUX_DEV},
        makes=False,
        edits=True,
        conflict=_kontext_conflict,
        pipelines=("FluxPipeline",),  # weights of the same shape
        defaults={"guidance": 2.5},
        **_FLUX,
    ),
    _diffusers(
        "flux2-klein",
        _KLEIN,
        {f"{_OWNER}/FLUX.2-klein-4B": "apache-2.0", f"{_OWNER}/FLUX.2-klein-9B": FLUX_2},
        edits=True,
        joins=True,
        settings=SETTINGS - {"guidance", "true_cfg"},
        marks={"is_distilled": True},
        defaults={"steps": 4, "guidance": 1},
    ),
    _diffusers(
        "flux2-klein-base",
        _KLEIN,
        {f"{_OWNER}/FLUX.2-klein-base-4B": "apache-2.0", f"{_OWNER}/FLUX.2-klein-base-9B": FLUX_2},
        edits=True,
        joins=True,
        guided=_above_one,
        reads_negative=one_pass,
        marks={"is_distilled": False},
        defaults={"steps": 50, "guidance": 4},
    ),
    _diffusers(
        "flux2",
        Pipeline("Flux2Pipeline", **_FLUX_2),
        {f"{_OWNER}/FLUX.2-dev": FLUX_2},
        edits=True,
        joins=True,
        defaults={"steps": 50, "guidance": 4},
    ),
    _diffusers(
        "qwen-image",
        Pipeline("QwenImagePipeline", embeds=("prompt_embeds", "prompt_embeds_mask"), **_QWEN),
        dict.fromkeys(("Qwen/Qwen-Image", "Qwen/Qwen-Image-2512"), "apache-2.0"),
        guided=_true_cfg,
        settings=SETTINGS - {"guidance"},
        defaults={"steps": 50, "true_cfg": 4},
    ),
    # Prompts are encoded together with the pictures that they are about.
    *(
        _diffusers(
            name,
            Pipeline(kind, **_QWEN),
            dict.fromkeys(models, "apache-2.0"),
            makes=False,
            edits=True,
            joins=name == "qwen-image-edit-plus",
            guided=_true_cfg,
            settings=SETTINGS - {"guidance"},
            defaults={"steps": steps, "true_cfg": 4},
        )
        for name, kind, steps, models in (
            ("qwen-image-edit", "QwenImageEditPipeline", 50, ("Qwen/Qwen-Image-Edit",)),
            (
                "qwen-image-edit-plus",
                "QwenImageEditPlusPipeline",
                40,
                ("Qwen/Qwen-Image-Edit-2509", "Qwen/Qwen-Image-Edit-2511"),
            ),
        )
    ),
    _diffusers(
        "z-image-turbo",
        _Z_IMAGE,
        {"Tongyi-MAI/Z-Image-Turbo": "apache-2.0"},
        settings=SETTINGS - {"guidance", "true_cfg"},
        named="turbo",
        defaults={"steps": 9, "guidance": 0},
    ),
    _diffusers(
        "z-image",
        _Z_IMAGE,
        {"Tongyi-MAI/Z-Image": "apache-2.0"},
        guided=_above_zero,
        defaults={"steps": 50, "guidance": 4},
    ),
    *(
        _diffusers(
            name,
            _SD3,
            dict.fromkeys(models, STABILITY),
            guided=_above_one,
            named=named,
            defaults={"max_sequence_length": 256} | defaults,
            options=_OWN_KERNELS,
            quantized=("transformer", "text_encoder_3"),
        )
        for name, named, defaults, models in (
            (
                "sd3-turbo",
                "turbo",
                {"steps": 4, "guidance": 0},
                ("stabilityai/stable-diffusion-3.5-large-turbo",),
            ),
            (
                "sd3",
                "",
                {"steps": 40, "guidance": 4.5},
                ("stabilityai/stable-diffusion-3.5-large", "stabilityai/stable-diffusion-3.5-medium"),
            ),
        )
    ),
    *(
        _diffusers(
            name,
            _SDXL,
            licences,
            guided=_above_one,
            named=named,
            recipe_keys=("dtype",),
            defaults=defaults,
            options=_OWN_KERNELS | {"compile"},
            quantized=("unet",),
        )
        for name, named, defaults, licences in (
            (
                "sdxl-turbo",
                "turbo",
                {"steps": 1, "guidance": 0, "width": 512, "height": 512},
                {"stabilityai/sdxl-turbo": "sai-nc-community"},
            ),
            (
                "sdxl",
                "",
                {"steps": 50, "guidance": 5},
                {"stabilityai/stable-diffusion-xl-base-1.0": "openrail++"},
            ),
        )
    ),
    *(
        _diffusers(
            f"qwen-image-2.1{more}",
            _QWEN_21,
            {f"Qwen/Qwen-Image-2.1{more.title()}": QWEN_RESEARCH},
            edits=True,
            joins=True,
            guided=_true_cfg,
            settings=settings,
            recipe_keys=("dtype",),
            marks={"sample_sigmas": bool(more)},  # the steps of a distilled one, which are all it can take
            defaults={"steps": steps, "true_cfg": 1},
        )
        for more, settings, steps in (
            ("", SETTINGS - {"guidance"}, 40),
            ("-turbo", SETTINGS - {"guidance", "steps"}, 8),
        )
    ),
    _diffusers(
        "krea2-turbo",
        _KREA_2,
        {"krea/Krea-2-Turbo": KREA},
        settings=SETTINGS - {"guidance", "true_cfg"},
        marks={"is_distilled": True},
        defaults={"steps": 8, "guidance": 0},
    ),
    _diffusers(
        "krea2",
        _KREA_2,
        {"krea/Krea-2-Raw": KREA},
        guided=_above_zero,
        marks={"is_distilled": False},
        defaults={"guidance": 4.5},
    ),
    _diffusers(
        "sana",
        _SANA,
        {
            f"Efficient-Large-Model/{name}_diffusers": SANA
            for name in (
                "Sana_600M_1024px",
                "Sana_1600M_1024px",
                "Sana_1600M_1024px_BF16",
                "SANA1.5_1.6B_1024px",
                "SANA1.5_4.8B_1024px",
            )
        },
        guided=_above_one,
        defaults={"steps": 20, "guidance": 4.5, "max_sequence_length": 300},
        options=_OWN_KERNELS,
    ),
    _diffusers(
        "chroma",
        _CHROMA,
        dict.fromkeys(("lodestones/Chroma1-HD", "lodestones/Chroma1-Base"), "apache-2.0"),
        guided=_above_one,
        defaults={"steps": 40, "guidance": 3},
    ),
    *(
        _diffusers(
            name,
            Pipeline("HunyuanImagePipeline", arguments=arguments, **_HUNYUAN),
            {f"hunyuanvideo-community/HunyuanImage-2.1-{model}": HUNYUAN},
            guided=guided,
            settings=settings,
            recipe_keys=("dtype",),
            options=frozenset({"attention", "compile", "offload"}),  # diffusers loads no LoRAs for it
            named=named,
            defaults=defaults | {"width": 2048, "height": 2048},
        )
        for name, model, named, guided, settings, arguments, defaults in (
            (
                "hunyuan-image-distilled",
                "Distilled-Diffusers",
                "distill",
                one_pass,
                SETTINGS - {"true_cfg"},
                {"guidance": "distilled_guidance_scale"},
                {"steps": 8, "guidance": 3.25},
            ),
            # How it is guided, and how strongly, stands in the checkpoint's guiders.
            ("hunyuan-image", "Diffusers", "", always, SETTINGS - {"guidance", "true_cfg"}, {}, {"steps": 50}),
        )
    ),
    _diffusers(
        "auto",
        Pipeline(""),
        {f"{_OWNER}/FLUX.1-{name}-dev": FLUX_DEV for name in ("Fill", "Depth", "Canny", "Redux")},
        open="darkroom.engines.diffusion:AutoEngine",
        edits=True,
        settings=SETTINGS,
        guided=_true_cfg,
        reads_negative=always,
        quantized=("transformer", "transformer_2", "unet", "text_encoder", "text_encoder_2", "text_encoder_3"),
        defaults=dict.fromkeys(("steps", "guidance", "max_sequence_length")),
    ),
):
    register(_family)

UNUSABLE.update(
    {
        "ErnieImagePipeline": "rewrites prompts in words that it draws without a seed",
        "HiDreamImagePipeline": "has a text encoder that is no part of its folder",
        "Ideogram4Pipeline": "is guided by a value for each of its steps",
        "JoyImageEditPlusPipeline": "takes a list of sources for each picture",
        "LongCatImagePipeline": "rewrites prompts before it reads them",
        "LongCatImageEditPipeline": "takes no size",
        "SanaSprintPipeline": "puts an instruction of its own before prompts and rounds sizes",
    }
)
