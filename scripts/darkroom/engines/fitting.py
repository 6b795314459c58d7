"""Fit a diffusers pipeline to a card: quantized weights, offload, compiled blocks, attention kernels, caches."""

import contextlib
from typing import Any

import torch

from darkroom.config.models import ModelSection
from darkroom.engines import family
from darkroom.errors import DarkroomError

# Where a pipeline holds nearly all of its weights; names that it does not have are left out.
_DENOISERS = ("transformer", "transformer_2", "unet")
_SIZES = 1000  # image sizes in one job; far more than there will be
_FP8_FROM = (8, 9)  # compute capability of the first cards that multiply 8-bit floats: Ada


def too_old(section: ModelSection, card: str, capability: tuple[int, int]) -> str | None:
    """What a card of this name and compute capability cannot do of what the section asks for, "key: reason", or None."""
    if section.quantization == "fp8" and capability < _FP8_FROM:
        return "quantization: fp8 needs a GPU of compute capability {}.{} or later, and {} has {}.{}; use int8".format(
            *_FP8_FROM, card, *capability
        )
    return None


def quantization_config(section: ModelSection, device: torch.device, dtype: torch.dtype, parts: dict[str, Any]) -> Any:
    """diffusers' PipelineQuantizationConfig for the parts of a pipeline that are loaded, or None.

    parts: components that are left out (None). Only weights are quantized, and for `fp8` on a card what the denoiser multiplies
    them with, each token by itself: so no image of a batch depends on another.
    """
    if section.quantization is None:
        return None
    from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig, TorchAoConfig
    from transformers import BitsAndBytesConfig as EncoderBitsAndBytesConfig
    from transformers import TorchAoConfig as EncoderTorchAoConfig

    def config(name: str) -> Any:
        encoder = name.startswith("text_encoder")
        if section.quantization == "int8":
            from torchao.quantization import Int8WeightOnlyConfig

            return (EncoderTorchAoConfig if encoder else TorchAoConfig)(Int8WeightOnlyConfig())
        if section.quantization == "fp8":
            return (EncoderTorchAoConfig if encoder else TorchAoConfig)(_fp8(encoder or device.type == "cpu"))
        return (EncoderBitsAndBytesConfig if encoder else BitsAndBytesConfig)(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )

    wanted = family(section.family).quantized
    return PipelineQuantizationConfig(quant_mapping={name: config(name) for name in wanted if name not in parts})


def _fp8(weights_only: bool) -> Any:
    """torchao's configuration; an encoder reads each prompt once, and gains nothing by less exact products."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, Float8WeightOnlyConfig, PerRow
    from torchao.quantization.quantize_.common import KernelPreference

    # The settings of the compiler that torchao recommends have it choose by timing; PyTorch's own kernels, for those of a
    # package that may be installed or not give other bits.
    if weights_only:
        return Float8WeightOnlyConfig(set_inductor_config=False)
    return Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow(), kernel_preference=KernelPreference.TORCH, set_inductor_config=False
    )


def fit(pipe: Any, section: ModelSection, name: str, device: torch.device) -> Any:
    """`pipe` with cache and compiled blocks as `generate` or `edit` has them, on the device or offloaded.

    name: of the section. Raises DarkroomError where the model cannot be so, and torch.OutOfMemoryError where it does not fit.
    """
    models = [part for part in (getattr(pipe, denoiser, None) for denoiser in _DENOISERS) if part is not None]
    for model in models:
        try:
            _prepare(model, section)
        except Exception as error:  # whatever it is, it is for the reader of one line
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DarkroomError(f"{name}: {type(model).__name__} cannot be used so: {reason}") from error
    if section.offload == "none":
        return pipe.to(device)
    if section.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_sequential_cpu_offload(device=device)
    return pipe


def _prepare(model: Any, section: ModelSection) -> None:
    from diffusers import attention_backend

    with attention_backend(section.attention):  # says what is missing or too old
        pass
    if section.cache:
        model.enable_cache(cache_config(section, model.dtype))
    if section.compile:
        import torch._dynamo.config as dynamo
        import torch._inductor.config as inductor

        # Code for each size of image by itself, without any choice by timing: an image must not depend on those before it.
        dynamo.recompile_limit = dynamo.accumulated_recompile_limit = _SIZES
        inductor.deterministic = True
        inductor.compile_threads = 1  # no pool of processes, whose memory the job did not ask for
        whole = not section.cache  # a cache decides outside of the graph
        model.compile_repeated_blocks(fullgraph=whole, dynamic=False)


def cache_config(section: ModelSection, dtype: torch.dtype) -> Any:
    """diffusers' configuration of the cache that `generate` or `edit` names."""
    from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig

    if section.cache == "first_block":
        return FirstBlockCacheConfig(threshold=section.cache_threshold)
    return TaylorSeerCacheConfig(cache_interval=section.cache_interval, taylor_factors_dtype=dtype)


@contextlib.contextmanager
def call(pipe: Any, section: ModelSection) -> Any:
    """One call of the pipeline: with the section's attention, and an empty cache whatever became of the call before."""
    from diffusers import attention_backend

    with contextlib.ExitStack() as stack:
        stack.enter_context(attention_backend(section.attention))
        if section.cache:
            pipe.transformer._reset_stateful_cache()
            stack.enter_context(pipe.transformer.cache_context("denoise"))  # Kontext's pipeline names none of its own
        yield
