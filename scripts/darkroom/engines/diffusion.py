"""Make images with diffusers: FLUX, FLUX Kontext, and any other pipeline that takes prompts and generators as lists.

All that needs torch is in here and in `darkroom.engines.fitting`.
"""

import contextlib
import gc
import inspect
import json
import math
import os
import tempfile
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from darkroom.config import options
from darkroom.config.models import ModelSection
from darkroom.engines import fitting
from darkroom.engines.base import Engine, Failure
from darkroom.errors import DarkroomError, OutOfMemory
from darkroom.jobs.runtime import say
from darkroom.plan.requests import Request

KONTEXT_AREA = 1024**2  # pixels; the area Kontext was trained at, larger sources are worked on at this size


def resolve_device(wanted: str, section: str) -> torch.device:
    """cpu, cuda, or auto: CUDA where there is one. Raises DarkroomError for cuda where torch sees none."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DarkroomError(f"{section}.device is cuda, but torch sees no GPU; ask for one, or set device: cpu")
    return torch.device(wanted)


def resolve_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 on CUDA, float32 on the CPU (where half precision is slow)."""
    if wanted == "auto":
        wanted = "bfloat16" if device.type == "cuda" else "float32"
    return getattr(torch, wanted)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


class DiffusionEngine(Engine):
    """A diffusers pipeline behind one call, `run`.

    section: `generate` or `edit` of the config, its model a folder (`darkroom.models.hub.local_section`); name: which of the two.
    """

    multiple: int  # the model's grid: sides worked at are multiples of so many pixels

    def __init__(self, section: ModelSection, name: str):
        self.section, self.name = section, name
        self.torch_device = resolve_device(section.device, name)
        self.torch_dtype = resolve_dtype(section.dtype, self.torch_device)
        self.device, self.dtype = str(self.torch_device), str(self.torch_dtype)
        if reason := options.refusal(section, self.device) or options.missing(section, self.device):
            raise DarkroomError(f"{name}.{reason}")
        torch.backends.cudnn.benchmark = False  # its choice of algorithm depends on timing
        torch.backends.cudnn.deterministic = True
        self.edits = name != "generate"
        # Becomes less where the memory does not suffice. On the CPU one by one: in a batch the last bits of a picture
        # depend on its neighbours (some 2e-6, which now and then rounds to another pixel value).
        self.batch_limit = 1 if self.device == "cpu" else section.batch_size

    def load(self, cls: Any, **parts: Any) -> Any:
        """`cls.from_pretrained` with the model's folder; parts: components left out (None)."""
        folder = self.section.local_dir or self.section.model_name
        try:
            quantization = fitting.quantization_config(self.section, self.torch_dtype, parts)
            how = {"quantization_config": quantization} if quantization else {}
            pipe = cls.from_pretrained(folder, dtype=self.torch_dtype, use_safetensors=True, **how, **parts)
        except Exception as error:  # the libraries raise many kinds; all of them mean that this is no usable model
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DarkroomError(f"{self.name}.model: cannot load {folder}: {reason}") from error
        pipe.set_progress_bar_config(disable=True)
        try:
            return fitting.fit(pipe, self.section, self.name, self.torch_device)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"{self.name}: the model does not fit into the memory of {device_name(self.torch_device)}"
            ) from error

    def work_size(self, width: int, height: int) -> tuple[int, int]:
        """The size worked at for an image of this one: what the model's grid allows, at least as large."""
        multiple = self.multiple
        return -(-width // multiple) * multiple, -(-height // multiple) * multiple

    def batch_key(self, request: Request, size: tuple[int, int]) -> Hashable:
        return (*size, request.steps, request.guidance, request.true_cfg, request.negative_prompt is None)

    def make(
        self, batch: Sequence[Request], size: tuple[int, int], sources: Sequence[Image.Image] | None
    ) -> Iterator[tuple[Request, Image.Image | Failure]]:
        def attempt(part: slice) -> np.ndarray | None:
            return self._arrays(list(batch[part]), size, None if sources is None else sources[part])

        for requests, arrays in self.in_parts(batch, size, attempt):
            for request, array in zip(requests, arrays, strict=True):
                yield request, finish_image(array, request.size, self.edits)

    def _arrays(
        self, requests: list[Request], size: tuple[int, int], sources: Sequence[Image.Image] | None
    ) -> np.ndarray | None:
        """What `run` makes at `size`, of sources of any size; None where the memory did not suffice.

        Raises DarkroomError where the model makes another size.
        """
        pictures = None if sources is None else [one.resize(size, Image.Resampling.LANCZOS) for one in sources]
        arrays = None
        with contextlib.suppress(torch.OutOfMemoryError):
            arrays = self.run(requests, size, pictures)
        if arrays is None:  # not within an except clause, where the traceback keeps the failed call's memory
            gc.collect()
            torch.cuda.empty_cache()
            return None
        if tuple(arrays.shape[1:3]) != (size[1], size[0]):
            raise DarkroomError(
                f"{self.name}.model: returns {arrays.shape[2]} x {arrays.shape[1]} pixels where {size[0]} x {size[1]}"
                " are asked for; set width and height to what it makes"
            )
        return arrays

    def run(self, requests: list[Request], size: tuple[int, int], sources: list[Image.Image] | None) -> np.ndarray:
        """One call: float32 [len(requests), height, width, 3], 0..1 (NaN where the model failed); sources: images of `size`."""
        raise NotImplementedError

    def generators(self, requests: list[Request]) -> list[torch.Generator]:
        # On the CPU, so that the noise is the same on every device.
        return [torch.Generator("cpu").manual_seed(request.seed) for request in requests]


class FluxEngine(DiffusionEngine):
    """FLUX in two halves: all prompts are encoded, the encoders freed, then denoised."""

    pipeline: ClassVar[str] = "FluxPipeline"

    def __init__(self, section: ModelSection, name: str):
        super().__init__(section, name)
        import diffusers  # not above: the judge takes `resolve_device` from here, where there is no diffusers

        self.pipeline_class = getattr(diffusers, self.pipeline)
        self.multiple = 2 * self._vae_scale()

    def _vae_scale(self) -> int:
        """Pixels of a latent's side, as the pipelines work it out: sizes are wanted before any weights are loaded."""
        try:
            config = Path(self.section.local_dir or self.section.model_name, "vae", "config.json")
            return 2 ** (len(json.loads(config.read_bytes())["block_out_channels"]) - 1)
        except (OSError, ValueError, KeyError):
            return 8  # loading the model says what is wrong with it

    def prepare(self, requests: Sequence[Request]) -> None:
        texts = {request.prompt for request in requests}
        texts |= {request.negative_prompt or "" for request in requests if request.true_cfg > 1}
        self._encode(sorted(texts))
        nothing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        self.pipe = self.load(self.pipeline_class, **nothing)
        say(f"{self.name}: transformer and VAE on {device_name(self.torch_device)} as {self.dtype}")

    def _encode(self, texts: list[str]) -> None:
        """Encode each text by itself: in a batch, its neighbours could change the last bits of its embedding."""
        pipe = self.load(self.pipeline_class, transformer=None, vae=None)
        self.places = {text: place for place, text in enumerate(texts)}
        spooled: tuple[torch.Tensor, torch.Tensor] | None = None
        length = self.section.max_sequence_length
        cut = 0
        with torch.no_grad():
            for place, text in enumerate(texts):
                cut += len(pipe.tokenizer_2(text, truncation=False).input_ids) > length
                embeds, pooled, _ = pipe.encode_prompt(
                    prompt=text, prompt_2=None, device=self.torch_device, max_sequence_length=length
                )
                if spooled is None:
                    spooled = (
                        self._spool(len(texts), *embeds.shape[1:]),
                        torch.empty(len(texts), pooled.shape[1], dtype=self.torch_dtype),
                    )
                spooled[0][place], spooled[1][place] = embeds[0].cpu(), pooled[0].cpu()
        if spooled is not None:
            self.embeds, self.pooled = spooled
        say(f"{self.name}: {len(texts)} prompts encoded")
        if cut:
            say(f"{self.name}: {cut} prompts are longer than max_sequence_length {length} tokens and were cut")
        del pipe
        gc.collect()
        if self.torch_device.type == "cuda":
            torch.cuda.empty_cache()

    def _spool(self, *shape: int) -> torch.Tensor:
        """A tensor in a file, for the embeddings of a shard can take gigabytes (4 MB a prompt for T5-XXL at 512 tokens).

        The file has no name, so that a job that is killed leaves nothing behind.
        """
        size = math.prod(shape)
        with tempfile.NamedTemporaryFile(prefix="darkroom-prompts-") as file:
            # Claim the space now: on a full disk a write through the mapping would kill the job without a word.
            os.posix_fallocate(file.fileno(), 0, size * self.torch_dtype.itemsize)
            return torch.from_file(file.name, shared=True, size=size, dtype=self.torch_dtype).view(shape)

    def _embeddings(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        places = [self.places[text] for text in texts]
        return self.embeds[places].to(self.torch_device), self.pooled[places].to(self.torch_device)

    def run(self, requests: list[Request], size: tuple[int, int], sources: list[Any] | None) -> np.ndarray:
        first, (width, height) = requests[0], size
        embeds, pooled = self._embeddings([request.prompt for request in requests])
        call: dict[str, Any] = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
        if first.true_cfg > 1:
            negative, negative_pooled = self._embeddings([request.negative_prompt or "" for request in requests])
            call |= {"negative_prompt_embeds": negative, "negative_pooled_prompt_embeds": negative_pooled}
            call["true_cfg_scale"] = first.true_cfg
        if sources is not None:
            # Kontext would rescale the output to a megapixel and the source to one of its own sizes.
            call |= {"image": sources, "max_area": width * height, "_auto_resize": False}
        with fitting.call(self.pipe, self.section):
            return self.pipe(
                **call,
                width=width,
                height=height,
                num_inference_steps=first.steps,
                guidance_scale=first.guidance,
                generator=self.generators(requests),
                output_type="np",
            ).images


class KontextEngine(FluxEngine):
    """FLUX Kontext, which edits."""

    pipeline: ClassVar[str] = "FluxKontextPipeline"

    def work_size(self, width: int, height: int) -> tuple[int, int]:
        if width * height <= KONTEXT_AREA:
            return super().work_size(width, height)
        scale = (KONTEXT_AREA / (width * height)) ** 0.5
        width, height = int(width * scale), int(height * scale)
        return max(width // self.multiple, 1) * self.multiple, max(height // self.multiple, 1) * self.multiple


class AutoEngine(DiffusionEngine):
    """Any diffusers pipeline that takes a list of prompts and a list of generators."""

    def __init__(self, section: ModelSection, name: str):
        super().__init__(section, name)
        from diffusers import DiffusionPipeline

        self.pipe = self.load(DiffusionPipeline)
        self.takes = set(inspect.signature(self.pipe.__call__).parameters)
        needs = ["prompt", "generator"] + (["image"] if self.edits else [])
        if missing := [part for part in needs if part not in self.takes]:
            raise DarkroomError(f"{name}.model: {type(self.pipe).__name__} takes no {missing[0]}; use another model")
        self.multiple = math.lcm(
            8, getattr(self.pipe, "vae_scale_factor", 8) * 2
        )  # pipelines refuse what 8 does not divide
        say(f"{name}: {type(self.pipe).__name__} on {device_name(self.torch_device)} as {self.dtype}")

    def run(self, requests: list[Request], size: tuple[int, int], sources: list[Any] | None) -> np.ndarray:
        first, (width, height) = requests[0], size
        call: dict[str, Any] = {
            "width": width,
            "height": height,
            "num_inference_steps": first.steps,
            "guidance_scale": first.guidance,
            "max_sequence_length": self.section.max_sequence_length,
        }
        if first.negative_prompt is not None:
            call["negative_prompt"] = [request.negative_prompt for request in requests]
        if first.true_cfg > 1:
            call["true_cfg_scale"] = first.true_cfg
        call = {name: value for name, value in call.items() if name in self.takes}
        if sources is not None:
            call["image"] = sources
        prompts = [request.prompt for request in requests]
        with fitting.call(self.pipe, self.section):
            return self.pipe(prompt=prompts, generator=self.generators(requests), output_type="np", **call).images


def finish_image(array: np.ndarray, size: tuple[int, int], edited: bool) -> Image.Image | Failure:
    """[height, width, 3] floats 0..1 as an image of exactly `size`, or what is wrong with them."""
    if not np.isfinite(array).all():
        return Failure("the model returned NaN (a numerical overflow; try another dtype)")
    pixels = (array * 255).round().astype("uint8")
    if not pixels.any():
        return Failure("the model returned an all-black image")
    image = Image.fromarray(pixels)
    if image.size == size:
        return image
    if edited:  # the work was done at a size of the model's grid: back to the source's own
        return image.resize(size, Image.Resampling.LANCZOS)
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))
