"""Make images with diffusers: the families that are known, as their entries say, and any other pipeline one by one.

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
from typing import Any

import numpy as np
import torch
from PIL import Image

from darkroom.config import options
from darkroom.config.models import ModelSection
from darkroom.engines import family, fitting, loras, recognised, unusable
from darkroom.engines.base import Engine, Failure, Source
from darkroom.errors import DarkroomError, OutOfMemory
from darkroom.jobs.runtime import say
from darkroom.plan.requests import Request


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
    shares = True  # whether requests can share a call

    def __init__(self, section: ModelSection, name: str):
        self.section, self.name = section, name
        self.torch_device = resolve_device(section.device, name)
        self.torch_dtype = resolve_dtype(section.dtype, self.torch_device)
        self.device, self.dtype = str(self.torch_device), str(self.torch_dtype)
        self.takes_cpu = self.device == "cpu"
        if reason := options.refusal(section, self.device) or options.missing(section, self.device):
            raise DarkroomError(f"{name}.{reason}")
        if self.device == "cuda" and (
            reason := fitting.too_old(
                section, device_name(self.torch_device), torch.cuda.get_device_capability(self.torch_device)
            )
        ):
            raise DarkroomError(f"{name}.{reason}")
        torch.backends.cudnn.benchmark = False  # its choice of algorithm depends on timing
        torch.backends.cudnn.deterministic = True
        self.edits = name.partition(".")[0] != "generate"
        # Becomes less where the memory does not suffice. On the CPU one by one: in a batch the last bits of a picture
        # depend on its neighbours (some 2e-6, which now and then rounds to another pixel value).
        self.batch_limit = 1 if self.device == "cpu" else section.batch_size

    def load(self, cls: Any, **parts: Any) -> Any:
        """`cls.from_pretrained` with the model's folder, on the device; parts: components left out (None)."""
        try:
            pipe = self._read(cls, parts)
            pipe.set_progress_bar_config(disable=True)
            loras.put_on(pipe, self.section.loras, self.name, self.torch_dtype)
            return fitting.fit(pipe, self.section, self.name, self.torch_device)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"{self.name}: the model does not fit into the memory of {device_name(self.torch_device)}"
            ) from error

    def _read(self, cls: Any, parts: dict[str, Any]) -> Any:
        folder = self.section.local_dir or self.section.model_name
        try:
            quantization = fitting.quantization_config(self.section, self.torch_device, self.torch_dtype, parts)
            how = {"quantization_config": quantization} if quantization else {}
            if quantization and self.device == "cuda" and self.section.offload == "none":
                how["device_map"] = (
                    self.device
                )  # quantized there: a thread of the CPU takes three minutes for FLUX.1-dev
            return cls.from_pretrained(folder, dtype=self.torch_dtype, use_safetensors=True, **how, **parts)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the libraries raise many kinds; all of them mean that this is no usable model
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DarkroomError(f"{self.name}.model: cannot load {folder}: {reason}") from error

    def work_size(self, width: int, height: int) -> tuple[int, int]:
        """The size worked at for an image of this one: what the model's grid allows, at least as large."""
        multiple = self.multiple
        return -(-width // multiple) * multiple, -(-height // multiple) * multiple

    def batch_key(self, request: Request, size: tuple[int, int]) -> Hashable:
        return (*size, request.steps, request.guidance, request.true_cfg, request.negative_prompt is None)

    def prepare_source(self, source: Image.Image, size: tuple[int, int]) -> Image.Image:
        return source.resize(size, Image.Resampling.LANCZOS)

    def make(
        self, batch: Sequence[Request], size: tuple[int, int], sources: Sequence[Source] | None
    ) -> Iterator[tuple[Request, Image.Image | Failure]]:
        def attempt(part: slice) -> np.ndarray | None:
            return self._arrays(list(batch[part]), size, None if sources is None else sources[part])

        for requests, arrays in self.in_parts(batch, size, attempt):
            for request, array in zip(requests, arrays, strict=True):
                yield request, finish_image(array, request.size, self.edits)

    def _arrays(
        self, requests: list[Request], size: tuple[int, int], sources: Sequence[Source] | None
    ) -> np.ndarray | None:
        """What `run` makes at `size`, of sources of any size; None where the memory did not suffice.

        Raises DarkroomError where the model makes another size.
        """
        pictures = None if sources is None else [self._prepared(one, size) for one in sources]
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

    def _prepared(self, source: Source, size: tuple[int, int]) -> Source:
        if not isinstance(source, tuple):
            return self.prepare_source(source, size)
        first, *more = source
        others = [self.prepare_source(one, self.work_size(*one.size)) for one in more]
        return self.prepare_source(first, size), *others

    def run(self, requests: list[Request], size: tuple[int, int], sources: list[Source] | None) -> np.ndarray:
        """float32 [len(requests), height, width, 3], 0..1 (NaN where the model failed); sources: images of `size`."""
        if self.shares:
            return self.call(requests, size, sources)
        made = [
            self.call([request], size, None if sources is None else [sources[place]])
            for place, request in enumerate(requests)
        ]
        return np.concatenate(made)

    def call(self, requests: list[Request], size: tuple[int, int], sources: list[Source] | None) -> np.ndarray:
        """One call of the pipeline, as `run`: of requests of one `batch_key`, of one alone where they cannot share it."""
        raise NotImplementedError

    def generators(self, requests: list[Request]) -> list[torch.Generator]:
        # On the CPU, so that the noise is the same on every device.
        return [torch.Generator("cpu").manual_seed(request.seed) for request in requests]


class PipelineEngine(DiffusionEngine):
    """A pipeline of diffusers as its family says it is called (`darkroom.engines.Pipeline`).

    In two halves where the pipeline takes encoded prompts: all prompts are encoded, the encoders freed, then the others loaded.
    """

    def __init__(self, section: ModelSection, name: str):
        super().__init__(section, name)
        import diffusers  # not above: the judge takes `resolve_device` from here, where there is no diffusers

        kind = family(section.family)
        assert kind.pipeline is not None, "a family that this engine serves has one"
        self.kind, self.how = kind, kind.pipeline
        if not hasattr(diffusers, self.how.name):
            raise DarkroomError(
                f"{name}.family: {kind.name} needs {self.how.name}, which diffusers {diffusers.__version__} has not"
            )
        self.pipeline_class = getattr(diffusers, self.how.name)
        self.multiple = self.how.grid * self._vae_scale()
        self.shares = self.how.edits_share if self.edits else self.how.shares
        self.embeds = () if self.edits and self.how.with_sources else self.how.embeds

    def _vae_scale(self) -> int:
        """Pixels of a latent's side, as the pipelines work it out: sizes are wanted before any weights are loaded."""
        try:
            config = json.loads(
                Path(self.section.local_dir or self.section.model_name, "vae", "config.json").read_bytes()
            )
            halved = config.get("temperal_downsample")  # of the VAEs of Qwen-Image, so spelt
            channels = config.get("block_out_channels", config.get("encoder_block_out_channels", ()))
            return 2 ** (len(channels) - 1 if halved is None else len(halved)) if halved or channels else 8
        except (OSError, ValueError):
            return 8  # loading the model says what is wrong with it

    def work_size(self, width: int, height: int) -> tuple[int, int]:
        most = self.how.most_pixels
        if self.edits:
            width, height = max(width, self.how.least_side), max(height, self.how.least_side)
        if most is None or width * height <= most:
            return super().work_size(width, height)
        scale = (most / (width * height)) ** 0.5
        width, height = int(width * scale), int(height * scale)
        return max(width // self.multiple, 1) * self.multiple, max(height // self.multiple, 1) * self.multiple

    def make(
        self, batch: Sequence[Request], size: tuple[int, int], sources: Sequence[Source] | None
    ) -> Iterator[tuple[Request, Image.Image | Failure]]:
        most = self.how.most_ratio
        if sources is None or most is None:
            yield from super().make(batch, size, sources)
            return
        fit: list[int] = []
        for place, (request, source) in enumerate(zip(batch, sources, strict=True)):
            more = source[1:] if isinstance(source, tuple) else ()
            sides = [size, *(self.work_size(*one.size) for one in more)]
            if any(max(side) > most * min(side) for side in sides):
                reason = f"{self.kind.name} edits what is at most {most:g} times as long one way as the other"
                yield request, Failure(f"{request.width} x {request.height} pixels: {reason}")
            else:
                fit.append(place)
        if fit:
            yield from super().make([batch[place] for place in fit], size, [sources[place] for place in fit])

    def prepare(self, requests: Sequence[Request]) -> None:
        without = {}
        if self.embeds:
            texts: set[str | None] = {request.prompt for request in requests}
            texts |= {self._negative(request) for request in requests if self.kind.guided(request)}
            self._encode(sorted(texts, key=lambda text: (text is not None, text)))
            without = dict.fromkeys(self.how.encoders)
        self.pipe = self.load(self.pipeline_class, **without)
        parts = "transformer and VAE" if without else self.how.name
        say(f"{self.name}: {parts} on {device_name(self.torch_device)} as {self.dtype}")

    def _negative(self, request: Request) -> str | None:
        """What a request is guided away from; None: zeros in place of an encoded text."""
        given = request.negative_prompt if self.kind.reads_negative(request) else None
        return self.how.negative if given is None else given

    def _encode(self, texts: list[str | None]) -> None:
        """Encode each text by itself: in a batch, its neighbours could change the last bits of its embedding."""
        # What a checkpoint lacks of the encoders it is made without (Stable Diffusion 3 runs without T5).
        rest = [part for part in ("transformer", "unet", "vae") if part in components(self.pipeline_class)]
        pipe = self.load(self.pipeline_class, **dict.fromkeys(rest))
        takes = inspect.signature(pipe.encode_prompt).parameters
        how = dict(self.how.encode)
        if "max_sequence_length" in takes:
            how["max_sequence_length"] = self.section.max_sequence_length
        zeros = getattr(pipe.config, "force_zeros_for_empty_prompt", False)
        self.encoded = Spool()
        cut = 0
        with torch.no_grad():
            for text in texts:
                cut += text is not None and self._is_cut(pipe, text)
                made = pipe.encode_prompt(prompt=text or "", device=self.torch_device, **how)
                kept = [value for name, value in zip(self.embeds, made, strict=True) if name]
                self.encoded.lists = [isinstance(value, list) for value in kept]
                kept = [value[0] if isinstance(value, list) else value for value in kept]
                if text is None and zeros:
                    kept = [torch.zeros_like(value) for value in kept]
                self.encoded.add(text, kept)
        say(f"{self.name}: {len(texts)} prompts encoded")
        if cut:
            length = self.section.max_sequence_length
            limit = f"max_sequence_length {length} tokens" if length else "the model's encoder reads"
            say(f"{self.name}: {cut} prompts are longer than {limit} and were cut")
        del pipe
        gc.collect()
        if self.torch_device.type == "cuda":
            torch.cuda.empty_cache()

    def _is_cut(self, pipe: Any, text: str) -> bool:
        tokenizer = getattr(pipe, self.how.tokenizer, None)
        if tokenizer is None:
            return False
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
        most = self.section.max_sequence_length or self.how.longest or tokenizer.model_max_length
        return len(tokenizer(text, truncation=False).input_ids) > most

    def embeddings(self, texts: list[str | None], prefix: str = "") -> dict[str, Any]:
        """The arguments of the call that hold encoded texts."""
        names = [name for name in self.embeds if name]
        found = [self.encoded.get(text, self.torch_device) for text in texts]
        together = {}
        for place, name in enumerate(names):
            values = [one[place] for one in found]
            if values[0] is not None:
                together[prefix + name] = values if self.encoded.lists[place] else torch.cat(values)
        return together

    def call(self, requests: list[Request], size: tuple[int, int], sources: list[Any] | None) -> np.ndarray:
        first, (width, height) = requests[0], size
        arguments = dict(self.how.switches)
        for name, argument in (("steps", "num_inference_steps"), *self.how.arguments.items()):
            arguments[argument] = getattr(first, name) if name in self.kind.settings else self.kind.defaults[name]
        guided = self.kind.guided(first)
        if self.embeds:
            arguments |= self.embeddings([request.prompt for request in requests])
            if guided:
                arguments |= self.embeddings([self._negative(request) for request in requests], "negative_")
        else:
            arguments["prompt"] = [request.prompt for request in requests]
            if guided:
                arguments["negative_prompt"] = [self._negative(request) for request in requests]
        if sources is not None:
            # Several are those of the one request of this call: `joins` is for families whose edits share none.
            arguments["image"] = list(sources[0]) if isinstance(sources[0], tuple) else sources
            arguments |= self.how.source(width, height) if self.how.source else {}
        if "max_sequence_length" in self.kind.recipe_keys:
            arguments["max_sequence_length"] = self.section.max_sequence_length
        with fitting.call(self.pipe, self.section):
            made = self.pipe(
                **arguments, width=width, height=height, generator=self.generators(requests), output_type="np"
            ).images
        return opaque(made)


def opaque(arrays: np.ndarray) -> np.ndarray:
    """[..., 3 or 4] floats 0..1 without their fourth channel, how opaque they are: on white, as paper is."""
    if arrays.shape[-1] < 4:
        return arrays
    return arrays[..., :3] * arrays[..., 3:] + (1 - arrays[..., 3:])


def components(pipeline: Any) -> set[str]:
    """The components that a pipeline's class is made of."""
    return set(inspect.signature(pipeline.__init__).parameters)


class Spool:
    """Encoded texts in a file, for those of a shard can take gigabytes (4 MB a prompt for T5-XXL at 512 tokens).

    The file has no name, so that a job that is killed leaves nothing behind.
    lists: whether the pipeline takes a value as a list of tensors, one a text, not as a batch.
    """

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile(prefix="darkroom-prompts-")  # noqa: SIM115 (open as long as the engine)
        self.places: dict[str | None, list[tuple[int, torch.Size, torch.dtype] | None]] = {}
        self.lists: list[bool] = []

    def add(self, text: str | None, values: list[torch.Tensor | None]) -> None:
        """values: what encodes one text; None stays None."""
        places: list[tuple[int, torch.Size, torch.dtype] | None] = []
        for value in values:
            if value is None:
                places.append(None)
                continue
            raw = value.detach().cpu().contiguous()
            places.append((self.file.tell(), raw.shape, raw.dtype))
            self.file.write(raw.view(torch.uint8).numpy().data)
        self.file.flush()
        self.places[text] = places

    def get(self, text: str | None, device: torch.device) -> list[torch.Tensor | None]:
        found: list[torch.Tensor | None] = []
        for place in self.places[text]:
            if place is None:
                found.append(None)
                continue
            start, shape, dtype = place
            raw = os.pread(self.file.fileno(), math.prod(shape) * dtype.itemsize, start)
            found.append(torch.frombuffer(bytearray(raw), dtype=dtype).view(shape).to(device))
        return found


class AutoEngine(DiffusionEngine):
    """Any other pipeline of diffusers that takes a prompt and a generator: what the config does not state is not passed."""

    def __init__(self, section: ModelSection, name: str):
        super().__init__(section, name)
        from diffusers import DiffusionPipeline

        folder = section.local_dir or section.model_name
        found = recognised(section.model_name, folder, name)
        if found is None and (reason := unusable(folder)):
            raise DarkroomError(f"{name}.model: {reason}")
        self.pipe = self.load(DiffusionPipeline)
        kind = type(self.pipe).__name__
        if found:
            raise DarkroomError(f"{name}.family: {kind} is of the family {found}; set {name}.family: {found}")
        self.class_name, self.takes = kind, set(inspect.signature(self.pipe.__call__).parameters)
        stated = {"prompt", "generator"} | ({"image"} if self.edits else {"width", "height"})
        keys = ("steps", "guidance", "negative_prompt", "max_sequence_length")
        stated |= {key for key in keys if getattr(section, key) is not None}
        if missing := sorted(key for key in stated if _argument(key) not in self.takes):
            raise DarkroomError(f"{name}.model: {kind} takes no {missing[0]}; leave it out, or use another model")
        self.shares = False  # nobody has looked at how it does
        self.multiple = math.lcm(
            8, getattr(self.pipe, "vae_scale_factor", 8) * 2
        )  # pipelines refuse what 8 does not divide
        say(f"{name}: {kind} on {device_name(self.torch_device)} as {self.dtype}")
        say(
            f"{name}: {kind} is of no family known here: made one by one, with what the config states and the pipeline's defaults"
        )

    def make(
        self, batch: Sequence[Request], size: tuple[int, int], sources: Sequence[Source] | None
    ) -> Iterator[tuple[Request, Image.Image | Failure]]:
        fit: list[int] = []
        for place, request in enumerate(batch):
            own = {name: getattr(request, name) for name in ("steps", "guidance", "negative_prompt")}
            lacking = [name for name, value in own.items() if value is not None and _argument(name) not in self.takes]
            if lacking:  # the section's own are looked at before: the row says it
                yield request, Failure(f"{self.class_name} takes no {lacking[0]}; leave it out of the row")
            else:
                fit.append(place)
        if fit:
            pictures = None if sources is None else [sources[place] for place in fit]
            yield from super().make([batch[place] for place in fit], size, pictures)

    def call(self, requests: list[Request], size: tuple[int, int], sources: list[Any] | None) -> np.ndarray:
        first = requests[0]
        arguments: dict[str, Any] = {"width": size[0], "height": size[1], "negative_prompt": first.negative_prompt}
        arguments |= {"num_inference_steps": first.steps, "guidance_scale": first.guidance}
        arguments |= {"max_sequence_length": self.section.max_sequence_length}
        if (first.true_cfg or 1) > 1:
            arguments["true_cfg_scale"] = first.true_cfg
        arguments = {name: value for name, value in arguments.items() if name in self.takes and value is not None}
        if sources is not None:
            arguments["image"] = sources[0]
        with fitting.call(self.pipe, self.section):
            return self.pipe(
                prompt=first.prompt, generator=self.generators(requests)[0], output_type="np", **arguments
            ).images


def _argument(key: str) -> str:
    """The argument of pipelines that is ours of this name."""
    return {"steps": "num_inference_steps", "guidance": "guidance_scale"}.get(key, key)


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
