"""Put LoRAs onto the parts of a diffusers pipeline that are loaded."""

import inspect
import warnings
from pathlib import Path
from typing import Any

import torch

from darkroom.config.models import Lora
from darkroom.errors import DarkroomError
from darkroom.jobs.runtime import say


def put_on(pipe: Any, loras: list[Lora], name: str, dtype: torch.dtype) -> None:
    """Add LoRAs to the parts of `pipe` that are loaded; what a file holds for others is left to the pipeline that has these.

    They work beside the weights and are not merged into them, for these may be quantized. loras: each with its file. name: of the
    section. Raises DarkroomError where one does not fit.
    """
    scales = {}
    for place, lora in enumerate(loras):
        assert lora.file is not None, "the section is that of a job (`darkroom.models.hub.local_section`)"
        path, where = Path(lora.file), f"{name}.loras.{place}"
        try:
            with warnings.catch_warnings():  # of what quantized weights cannot be asked for, such as to take a LoRA in
                warnings.simplefilter("ignore", UserWarning)
                parts = _put_on(pipe, path, f"lora{place}", dtype)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the libraries raise many kinds; all of them mean that it is none for this model
            lines = [line.strip() for line in str(error).splitlines()]
            lines = [line for line in lines if line and not line.endswith(":")] or [type(error).__name__]
            raise DarkroomError(f"{where}: {path} does not fit {type(pipe).__name__}: {lines[0]}") from error
        if parts:
            scales[f"lora{place}"] = lora.scale
            say(f"{where}: {path.name} on {' and '.join(parts)}, scale {lora.scale:g}")
    if scales:
        pipe.set_adapters(list(scales), list(scales.values()))


def _put_on(pipe: Any, path: Path, adapter: str, dtype: torch.dtype) -> list[str]:
    """Add one LoRA under the name `adapter`; the parts that it is on."""
    from peft import get_peft_model_state_dict

    if not hasattr(pipe, "lora_state_dict"):
        raise DarkroomError("diffusers has no LoRAs for it")
    how = {"return_alphas": True} if "return_alphas" in inspect.signature(pipe.lora_state_dict).parameters else {}
    if getattr(pipe, "unet", None) is not None:
        how["unet_config"] = pipe.unet.config  # by which names of other trainers are told
    found = pipe.lora_state_dict(
        str(path.parent), weight_name=path.name, use_safetensors=True, return_lora_metadata=True, **how
    )
    weights, *rest = found if isinstance(found, tuple) else (found,)
    weights = {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}
    told = {"metadata": rest[-1] if rest else None, "network_alphas": rest[0] if len(rest) > 1 else None}
    named = list(dict.fromkeys(key.partition(".")[0] for key in weights))
    if unknown := [part for part in named if part not in pipe.components]:
        raise DarkroomError(f"it holds weights of {unknown[0]}, and the model has none of that name")
    parts = [part for part in named if getattr(pipe, part) is not None]
    for part in parts:
        model = getattr(pipe, part)
        kind = "text_encoder" if part.startswith("text_encoder") else part
        load = getattr(pipe, f"load_lora_into_{kind}", None)
        if load is None:
            raise DarkroomError(f"diffusers has no LoRAs for its {part}")
        arguments = told | {kind: model, "adapter_name": adapter, "prefix": part, "_pipeline": pipe}
        takes = inspect.signature(load).parameters
        load(weights, **{key: value for key, value in arguments.items() if key in takes})
        given = sum(key.startswith(f"{part}.") and not key.endswith(".alpha") for key in weights)
        left = given - len(get_peft_model_state_dict(model, adapter_name=adapter))
        if left:
            raise DarkroomError(f"{left} of its {given} weights have no place in the {part}")
    return parts
