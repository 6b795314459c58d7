"""What `generate`, `edit` and `judge` can be asked for so that a model fits a card or runs faster: what goes together.

Nothing heavy is imported here; `darkroom.engines.fitting` does to a pipeline what these options say.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from darkroom.config.models import Judge, ModelSection, Options, StageSection, model_folder
from darkroom.engines import DEFAULTS, FAMILIES, family, one_of, recognised, unusable
from darkroom.errors import DarkroomError

# Options of `generate` and `edit` that can change a pixel, with what they are where the config is silent. They enter recipes
# and keys only where they differ from that.
IMAGE_OPTIONS = {name: getattr(Options(), name) for name in ("quantization", "attention", "compile", "cache")}
# What a cache is told besides its name.
CACHE_KEYS = {"first_block": "cache_threshold", "taylorseer": "cache_interval"}

_CPU_ATTENTION = ("native", "_native_math", "_native_flash")
_HALF_ATTENTION = ("_native_cudnn", "_native_flash", "flash", "_flash_3", "sage")
_PIP = "install it with `pip install {}`"
# (option, value) -> (module, what to do where it is missing)
_NEEDS = {
    ("quantization", "int8"): ("torchao", _PIP.format("torchao")),
    ("quantization", "fp8"): ("torchao", _PIP.format("torchao")),
    ("quantization", "nf4"): ("bitsandbytes", _PIP.format("bitsandbytes")),
    ("attention", "flash"): ("flash_attn", _PIP.format("flash-attn --no-build-isolation")),
    ("attention", "_flash_3"): ("flash_attn_interface", "build it from flash-attention's source, folder hopper"),
    ("attention", "sage"): ("sageattention", "build version 2.1.1 or later from its source"),
    ("attention", "xformers"): ("xformers", _PIP.format("xformers")),
}
_DISTRIBUTIONS = {"flash_attn": "flash-attn", "flash_attn_interface": "flash-attn-3"}

# Arguments of vLLM's engine that are settled elsewhere, with the reason.
_VLLM_TAKEN = {
    "model": "use judge.model",
    "revision": "use judge.revision",
    "tokenizer": "the judge reads with its model's own tokenizer",
    "tokenizer_revision": "the judge reads with its model's own tokenizer",
    "dtype": "use judge.dtype",
    "seed": "every question has a seed of its own",
    "tensor_parallel_size": "use judge.gpus, by which the job asks for them",
    "pipeline_parallel_size": "use judge.gpus, by which the job asks for them",
    "data_parallel_size": "every shard is a job of its own; run more of them",
    "limit_mm_per_prompt": "one picture for images, two for edits",
    "mm_processor_kwargs": "pictures come in the size that judge.min_pixels and judge.max_pixels give",
    "structured_outputs_config": "replies are held to the rubric's schema by xgrammar",
    "runner": "the judge answers questions",
    "convert": "the judge answers questions",
    "skip_tokenizer_init": "the judge needs its tokenizer",
    "trust_remote_code": "no code of a model's is run",
    "hf_token": "a secret has no place in a config; set HF_TOKEN in the environment",
    "allowed_local_media_path": "the engine opens no files",
    "allowed_media_domains": "the engine opens no addresses",
    "logits_processors": "no code is run from a config",
    "worker_cls": "no code is run from a config",
    "worker_extension_cls": "no code is run from a config",
    "scheduler_cls": "no code is run from a config",
}
_VLLM_GIB = ("cpu_offload_gb", "kv_offloading_size")
# Where the memory lies and how much is asked at once: as little part of a score's identity as the batch size is of an image's.
_VLLM_NEUTRAL = frozenset(
    "gpu_memory_utilization kv_cache_memory_bytes max_num_seqs max_num_batched_tokens cpu_offload_gb kv_offloading_size"
    " kv_offloading_backend mm_processor_cache_gb max_parallel_loading_workers safetensors_load_strategy download_dir"
    " distributed_executor_backend disable_custom_all_reduce disable_log_stats use_tqdm_on_load".split()
)


def image_options(section: StageSection) -> dict[str, Any]:
    """The options of `generate` or `edit` that are part of a recipe: those that are not as they are by default."""
    said = asdict(section.options)
    chosen = {name: said[name] for name, default in IMAGE_OPTIONS.items() if said[name] != default}
    if "cache" in chosen:
        key = CACHE_KEYS[chosen["cache"]]
        chosen[key] = said[key]
    return chosen


def options_of(recipe: dict[str, Any]) -> dict[str, Any]:
    """The reverse: values for a section, from an image's recipe."""
    names = [*IMAGE_OPTIONS, *CACHE_KEYS.values()]
    return IMAGE_OPTIONS | {name: recipe[name] for name in names if name in recipe}


def judge_options(section: Judge) -> dict[str, Any]:
    """The part of `judge` of the config that enters a recipe only where it is given."""
    args = {name: value for name, value in section.engine_args.items() if name not in _VLLM_NEUTRAL}
    return {"engine_args": args} if args else {}


def with_family(section: StageSection, name: str) -> StageSection:
    """The section as its family has it. Raises DarkroomError ("name.key: reason") where there is none, or it is not for this.

    What the family makes moot is taken out: the model where it needs none, the devices where nothing is computed here. So whoever
    reads the section does what is right without a look at the family.
    """
    kind = family(section.family, f"{name}.family")
    if kind.name == "auto" and isinstance(section, ModelSection) and section.model is not None:
        folder = model_folder(section)
        if found := recognised(section.model_name, folder, name):
            kind = family(found)
        elif folder is not None and (reason := unusable(folder)):
            raise DarkroomError(f"{name}.model: {reason}")
        elif folder is None and "family" not in section.model_fields_set:
            able = [other.name for other in FAMILIES.values() if other.refusal(name) is None]
            raise DarkroomError(
                f"{name}.family: must be given, for {section.model} is not known by its name; use {one_of(able)}"
            )
    if reason := kind.refusal(name):
        raise DarkroomError(f"{name}.{reason}")
    changes: dict[str, Any] = {"family": kind.name}
    for key, value in kind.defaults.items():
        if key not in type(section).model_fields:
            continue
        stated = key in section.model_fields_set and getattr(section, key) is not None
        if key in DEFAULTS and not kind.reaches(key):
            if stated:
                raise DarkroomError(f"{name}.{key}: has no effect on a model of the family {kind.name}; leave it out")
            changes[key] = None
        elif not stated:
            changes[key] = value
    if not kind.local:
        if section.device == "cuda":
            raise DarkroomError(f"{name}.device: family {kind.name} uses no GPU of the job's; leave it out")
        changes["device"] = "cpu"
    if kind.needs_model:
        if not isinstance(section, ModelSection):
            raise DarkroomError(f"{name}.family: {kind.name} needs a model, and the section {name} has none")
        if section.model is None:
            raise DarkroomError(f"{name}.model: must be given, for family {kind.name} needs one")
    elif isinstance(section, ModelSection):
        changes |= {"model": None, "revision": None, "local_dir": None}
    if lacking := [key for key in kind.recipe_keys if key not in type(section).model_fields]:
        raise DarkroomError(f"{name}.family: {kind.name} goes by {lacking[0]}, and the section {name} has no such key")
    section = section.model_copy(update=changes)
    if section.sampling.negative_prompt is not None and (reason := kind.unread(section.sampling)):
        raise DarkroomError(f"{name}.negative_prompt: {reason}")
    return section


def refusal(section: StageSection, device: str) -> str | None:
    """Why options of `generate` or `edit` do not go together, "key: reason", or None; device: cpu, cuda or auto."""
    return next(_refusals(section, device), None)


def _refusals(section: StageSection, device: str) -> Iterator[str]:
    chosen, kind = section.options, family(section.family)
    for option, unused in (IMAGE_OPTIONS | {"offload": "none", "loras": []}).items():
        value = getattr(chosen, option)
        if value != unused and not kind.takes(option, value):
            able = [other.name for other in FAMILIES.values() if other.takes(option, value)]
            yield (
                f"{option}: works with the families {one_of(able, 'and')}"
                if able
                else f"{option}: works with no family"
            )
    if device == "cpu":
        if chosen.offload != "none":
            yield f"offload: {chosen.offload} moves weights between host and GPU; there is no GPU with device: cpu"
        if chosen.quantization == "nf4":
            yield "quantization: nf4 (bitsandbytes) needs a GPU; int8 works on the CPU"
        if chosen.attention not in _CPU_ATTENTION:
            yield f"attention: {chosen.attention} needs a GPU; on the CPU: {', '.join(_CPU_ATTENTION)}"
    elif chosen.attention in _HALF_ATTENTION and chosen.dtype == "float32":
        yield f"attention: {chosen.attention} takes float16 and bfloat16 only, and dtype is float32"
    elif chosen.quantization == "fp8" and chosen.dtype not in ("auto", "bfloat16"):
        yield f"quantization: fp8 multiplies into bfloat16 only, and dtype is {chosen.dtype}; leave out dtype"
    if chosen.offload == "sequential":
        if chosen.quantization:
            yield "offload: sequential cannot move quantized weights layer by layer; use offload: model"
        if chosen.compile:
            yield "offload: sequential moves weights within what compile holds together; use offload: model"
    if chosen.offload == "model" and chosen.compile and chosen.quantization in ("int8", "fp8"):
        yield (
            f"offload: compiled code holds on to {chosen.quantization} weights, so that they cannot be moved;"
            " leave out offload or compile"
        )
    if reason := kind.conflict(section):
        yield reason
    if chosen.cache == "first_block" and section.batch_size > 1:
        yield (
            "cache: first_block decides by a mean over the whole batch, so that an image would depend on its neighbours;"
            " use batch_size: 1, or cache: taylorseer"
        )


def missing(section: StageSection, device: str) -> str | None:
    """What an option of `generate` or `edit` needs and this environment has not, "key: reason", or None."""
    for (option, value), (module, remedy) in _NEEDS.items():
        if getattr(section.options, option) == value and find_spec(module) is None:
            return f"{option}: {value} needs the package {module}, which is not installed; {remedy}"
    if section.options.loras and find_spec("peft") is None:
        return "loras: need the package peft, which is not installed; " + _PIP.format("peft")
    if section.options.compile:
        if device == "cuda" and find_spec("triton") is None:
            return "compile: needs the package triton, which is not installed; " + _PIP.format("triton")
        variable, *names = ("CC", "gcc", "clang") if device == "cuda" else ("CXX", "g++", "clang++")
        if not any(shutil.which(name) for name in (os.environ.get(variable, ""), *names)):
            return f"compile: needs a compiler ({names[0]}), and there is none on the PATH"
    return None


def packages(section: StageSection) -> list[str]:
    """The distributions whose versions decide pixels because of an option."""
    chosen = section.options
    modules = [module for (option, value), (module, _) in _NEEDS.items() if getattr(chosen, option) == value]
    return [_DISTRIBUTIONS.get(module, module) for module in modules] + ["peft"] * bool(chosen.loras)


def judge_refusal(section: Judge) -> str | None:
    """Why options of `judge` do not go together, "key: reason", or None."""
    args = section.engine_args
    if section.engine == "transformers" and section.device != "cpu" and section.gpus > 1:
        return "gpus: engine transformers uses one GPU; use vllm, or more, smaller shards"
    if args and section.engine != "vllm":
        return f"engine_args: they are vLLM's, and engine is {section.engine}"
    for name, value in args.items():
        if name in _VLLM_TAKEN:
            return f"engine_args.{name}: {_VLLM_TAKEN[name]}"
        if name in _VLLM_GIB and not (isinstance(value, (int, float)) and value >= 0):
            return f"engine_args.{name}: expected a number of GiB, got {value!r}"
    length = args.get("max_model_len", section.max_tokens + 1)
    if not isinstance(length, int) or length <= section.max_tokens:
        return f"engine_args.max_model_len: expected a whole number above max_tokens ({section.max_tokens}), got {length!r}"
    return None


def judge_host_bytes(section: Judge) -> int:
    """Host memory in bytes that vLLM holds besides the weights that pass through: what it keeps off its GPUs."""
    args, gib = section.engine_args, 2**30
    per_gpu = args.get("cpu_offload_gb", 0) * section.gpus
    return int((per_gpu + args.get("kv_offloading_size", 0)) * gib)
