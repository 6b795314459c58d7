"""What models of real sizes cost on a card: FLUX.1-dev, FLUX.2-klein-4B, Qwen2.5-VL-7B, Qwen3-VL-8B, of
random weights (`gpu_models.py`).

    python tests/bench/bench_gpu.py --out FOLDER               every part, in order of worth
    python tests/bench/bench_gpu.py --parts generate,judge ...
    python tests/bench/bench_gpu.py --list
    python tests/bench/bench_gpu.py --table FOLDER/bench.jsonl  what was measured, as a table in Markdown

Each part is a process of its own, ended when its time is up, and each figure is appended to FOLDER/bench.jsonl when it is there:
what was measured before a card is taken away stays. Figures are of the one process that the line stands for: seconds of a
picture (or of what the line names) without the first, which warms up, and the most memory that PyTorch had on the card. The
models lie in a folder (`--models`), best one in memory (/dev/shm; 34 GB for FLUX, 16 for klein, 17 and 18 for the judges), since jobs
read models from folders; the first parts write them there, straight from the card.

`--tiny` takes tiny models of the same classes, on the CPU where there is no card: to see that the parts work. The table says so.
"""

import argparse
import contextlib
import dataclasses
import gc
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(REPOSITORY / "scripts"), str(Path(__file__).parent)) if path not in sys.path]

LIMIT = 120  # seconds of a part
NEED_GB = {"flux": 34, "klein": 16, "judge": 17, "qwen3-vl": 18}
JUDGES = ("judge", "qwen3-vl")
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "torchao", "bitsandbytes", "vllm", "xgrammar")
SILENT = "images: []\nedited: []\n"
Record = dict[str, Any]


@dataclass
class Setting:
    """How to measure. models: the folder with the models; out: the folder for results; images: pictures of each figure."""

    out: Path
    models: Path
    tiny: bool = False
    device: str = "cuda"
    images: int = 2
    steps: int = 28
    side: int = 1024

    @property
    def results(self) -> Path:
        return self.out / "bench.jsonl"

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.device == "cuda" else "float32"

    def add(self, part: str, **figures: Any) -> None:
        """Append a record, so that it is on the disk when this returns."""
        record = {"part": part, "device": self.device, "tiny": self.tiny, **figures}
        with open(self.results, "a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")
            out.flush()
            os.fsync(out.fileno())

    def steps_of(self, model: str) -> int:
        """Steps of a picture: those of klein are distilled to four."""
        return min(self.steps, 4) if model == "klein" else self.steps

    def model(self, name: str) -> Path:
        """The folder of flux, klein or a judge. Exits with a sentence where it is not there yet."""
        folder = self.models / name
        if not (folder / ("processor_config.json" if name in JUDGES else "model_index.json")).exists():
            sys.exit(f"error: {folder}: no model; run the part weights-{name} first")
        return folder


@dataclass
class Meter:
    """seconds: of what ran within; gib: the most memory that PyTorch had on the card, None on the CPU."""

    seconds: float = 0.0
    gib: float | None = None


@contextlib.contextmanager
def metered(setting: Setting) -> Iterator[Meter]:
    import torch

    meter, cuda = Meter(), setting.device == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    yield meter
    if cuda:
        torch.cuda.synchronize()
        meter.gib = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    meter.seconds = time.perf_counter() - started


def free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---------------------------------------------------------------------------------------------- what the parts work with


def section_of(setting: Setting, name: str, model: str = "flux", **options: Any) -> Any:
    """`generate`, `edit` or `judge` of a config with every default, for the models of the setting."""
    from darkroom.config.load import load_config

    section: dict[str, Any] = {"device": setting.device, "dtype": setting.dtype}
    if name == "judge":
        section |= {"model": str(setting.model(model)), "engine": "transformers", "max_tokens": 64}
        section |= {"max_pixels": setting.side**2}
    else:
        section |= {"model": str(setting.model(model)), "steps": setting.steps_of(model)}
        section |= {"width": setting.side, "height": setting.side} if name == "generate" else {}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.jsonl")
        rows.write_text('{"prompt": "a"}\n')
        config = {"prompts": str(rows), "edits": str(rows), name: section | options}
        return getattr(load_config(config, [REPOSITORY]), name)


def requests_of(setting: Setting, section: Any, number: int) -> list[Any]:
    from darkroom.plan.requests import expand
    from darkroom.rows.read import parse_row

    edits = section.family == "flux-kontext"
    rows = [
        {"prompt": f"a fox between pines, number {n}"} | ({"images": "source.png"} if edits else {})
        for n in range(number)
    ]
    made = []
    for n, row in enumerate(rows):
        (request,) = expand(parse_row(row, "edits" if edits else "prompts") | {"id": f"r{n}"}, section, 0, 1)
        request.width = request.height = setting.side
        request.key = f"{n}"
        made.append(request)
    return made


@dataclass
class Opened:
    """An engine that is ready for its requests."""

    engine: Any
    requests: list[Any]
    sources: list[Any] | None
    size: tuple[int, int]
    load: Meter = field(default_factory=Meter)

    def make(self, number: int, first: int = 0) -> list[Any]:
        """`number` pictures at once, from request `first` on. Exits with a sentence where one is none."""
        from PIL.Image import Image

        some = slice(first, first + number)
        made = self.engine.make(self.requests[some], self.size, self.sources and self.sources[some])
        pictures = [picture for _, picture in made]
        if wrong := [picture for picture in pictures if not isinstance(picture, Image)]:
            sys.exit(f"error: no picture: {wrong[0].reason}")
        return pictures

    def warm(self, number: int) -> None:
        """As many pictures at once in two steps."""
        whole = self.requests
        self.requests = [dataclasses.replace(request, steps=2) for request in whole]
        self.make(number)
        self.requests = whole


def opened(setting: Setting, name: str, number: int, model: str = "flux", **options: Any) -> Opened:
    section = section_of(setting, name, model, **options)
    import diffusers  # noqa: F401 (so that its import is not taken for loading)
    from darkroom.engines import open_engine
    from PIL import Image

    requests = requests_of(setting, section, number)
    sources = [Image.effect_noise((setting.side,) * 2, 90).convert("RGB")] * number if name == "edit" else None
    with metered(setting) as load:
        engine = open_engine(section, name)
        engine.prepare(requests)
    return Opened(engine, requests, sources, engine.work_size(setting.side, setting.side), load)


def pace(setting: Setting, part: str, what: str, engine: Opened, batch: int = 1, **more: Any) -> float:
    """Measure pictures of an engine in batches; the seconds of one."""
    engine.warm(batch)
    with metered(setting) as meter:
        for first in range(0, len(engine.requests), batch):
            engine.make(batch, first)
    seconds = meter.seconds / len(engine.requests)
    add_pace(setting, part, what, seconds, meter.gib, batch, images=len(engine.requests), **more)
    return seconds


def add_pace(
    setting: Setting, part: str, what: str, seconds: float, gib: float | None, batch: int = 1, **more: Any
) -> None:
    """A record of seconds a picture, with what it was made with."""
    known = {"batch": batch, "steps": setting.steps, "side": setting.side, "unit": "picture"}
    setting.add(part, what=what, seconds=round(seconds, 4), gib=gib, **known | more)


def job_of(setting: Setting, section: Any, folder: Path) -> Any:
    from darkroom.engines.work import ShardJob
    from darkroom.plan.recipe import image_recipe
    from darkroom.store.scratch import Scratch

    recipe, scratch = image_recipe(section), Scratch(folder / "scratch")
    return ShardJob("generate", section, recipe, "d", folder, "generate_images", scratch)


# ------------------------------------------------------------------------------------------------------------- the parts


def machine(setting: Setting) -> None:
    """Card, driver, versions."""
    sys.path.insert(0, str(REPOSITORY / "envs"))
    import gpu_wheels
    import torch

    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    card, driver, memory = "none", "none", "none"
    if cards := gpu_wheels.card():
        card, driver, memory = (text.strip() for text in cards[0].split(","))
    setting.add(
        "machine",
        card=card,
        driver=driver,
        memory=memory,
        cuda=torch.version.cuda,
        python=platform.python_version(),
        versions=found,
        cpus=os.cpu_count(),
    )


def weights(name: str) -> Callable[[Setting], None]:
    def make(setting: Setting) -> None:
        """Random weights from the device into the folder of models."""
        import diffusers  # noqa: F401 (so that its import is not taken for making)
        import gpu_models

        size = gpu_models.TINY if setting.tiny else gpu_models.REAL
        save = {
            "flux": gpu_models.save_flux,
            "klein": gpu_models.save_klein,
            "judge": gpu_models.save_judge,
            "qwen3-vl": gpu_models.save_qwen3_vl,
        }[name]
        with metered(setting) as meter:
            number = save(setting.models / name, size, setting.device, setting.dtype)
        what = f"{number / 1e9:.2f}e9 parameters made on the {setting.device} and written"
        setting.add(f"weights-{name}", what=what, seconds=round(meter.seconds, 2), gib=meter.gib, unit="all")

    return make


def load(setting: Setting) -> None:
    """What a job waits for before its first picture: encoders, a prompt, transformer and VAE; once more with files just read."""
    for what in ("first time", "again"):
        engine = opened(setting, "generate", 1)
        figures = {"seconds": round(engine.load.seconds, 2), "gib": engine.load.gib}
        setting.add("load", what=f"engine ready, {what}", unit="job", **figures)
        del engine
        free()


def split(setting: Setting) -> None:
    """Encode, denoise, decode, and what the CPU does, each by itself."""
    import torch
    from darkroom.engines.diffusion import finish_image
    from darkroom.store.images import encode_png
    from diffusers import FluxPipeline

    engine = opened(setting, "generate", setting.images)
    flux, requests = engine.engine, engine.requests
    engine.warm(1)
    pipe, noise = flux.pipe, flux.generators(requests)
    common = {
        "width": setting.side,
        "height": setting.side,
        "num_inference_steps": setting.steps,
        "guidance_scale": 3.5,
    }
    latents = []
    with torch.no_grad():
        with metered(setting) as meter:
            for n, generator in enumerate(noise):
                call = flux.embeddings([requests[n].prompt])
                latents.append(pipe(**call, **common, generator=generator, output_type="latent").images)
        add_pace(setting, "split", "denoise", meter.seconds / len(requests), meter.gib)
        arrays = []
        with metered(setting) as meter:
            for latent in latents:
                arrays.append(decoded(pipe, latent, setting.side))
        add_pace(setting, "split", "decode", meter.seconds / len(requests), meter.gib)
    with metered(setting) as meter:
        for array, request in zip(arrays, requests, strict=True):
            encode_png(finish_image(array, request.size, False))
    add_pace(setting, "split", "CPU: to 8 bits and PNG", meter.seconds / len(requests), None)
    del engine, flux, pipe, latents
    free()
    encoder = FluxPipeline.from_pretrained(
        setting.model("flux"), transformer=None, vae=None, dtype=getattr(torch, setting.dtype)
    ).to(setting.device)
    with torch.no_grad():
        for n in range(2):  # the first warms up
            with metered(setting) as meter:
                encoder.encode_prompt(
                    prompt=f"a fox {n}", prompt_2=None, device=setting.device, max_sequence_length=512
                )
    add_pace(setting, "split", "encode one prompt", meter.seconds, meter.gib)


def decoded(pipe: Any, latent: Any, side: int) -> Any:
    """[side, side, 3] floats of one packed latent, as the pipeline makes them."""
    # Two by two latents are packed into a token.
    rows = side // pipe.vae_scale_factor // 2
    grid = latent.view(1, rows, rows, -1, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, -1, 2 * rows, 2 * rows)
    grid = grid / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    picture = pipe.vae.decode(grid.to(pipe.vae.dtype), return_dict=False)[0]
    return pipe.image_processor.postprocess(picture, output_type="np")[0]


def job(model: str) -> Callable[[Setting], None]:
    """A part that measures the job against the bare engine and the bare loop of diffusers, after one another in one process."""

    def measure(setting: Setting) -> None:
        import diffusers
        import torch
        from darkroom.engines import family
        from darkroom.make import make_shard

        # A picture of a few steps takes a tenth of the time: more of them, for the same error.
        part, images = ("generate", setting.images) if model == "flux" else (model, 4 * setting.images)
        steps = setting.steps_of(model)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            engine = opened(setting, "generate", images, model)
            bare_engine = pace(setting, part, "engine alone", engine, steps=steps)
            del engine
            free()
            section = section_of(setting, "generate", model)
            job = job_of(setting, section, folder)
            with metered(setting) as meter:
                counts = make_shard(requests_of(setting, section, images), folder / "s.parquet", job, [], [])
            working = counts["working"] / images
            add_pace(setting, part, "job, its work", working, meter.gib, images=images, steps=steps)
            setting.add(part, what="job, all of it", unit="job", seconds=round(meter.seconds, 2), gib=meter.gib)
            free()
            with metered(setting) as meter:
                kind = getattr(diffusers, family(section.family).pipeline.name)
                pipe = kind.from_pretrained(setting.model(model), dtype=getattr(torch, setting.dtype))
                pipe = pipe.to(setting.device)
            pipe.set_progress_bar_config(disable=True)
            what = "diffusers, all at once"
            setting.add("load", what=f"{what}, {model}", unit="job", seconds=round(meter.seconds, 2), gib=meter.gib)
            common = {"width": setting.side, "height": setting.side, "max_sequence_length": 512}
            common["guidance_scale"] = 3.5 if model == "flux" else 1.0
            pipe(prompt="warm", num_inference_steps=2, **common)
            with metered(setting) as meter:
                for n in range(images):
                    noise = torch.Generator("cpu").manual_seed(n)
                    made = pipe(prompt=f"a fox, number {n}", num_inference_steps=steps, generator=noise, **common)
                    made.images[0].save(folder / f"{n}.png")
            bare_loop = meter.seconds / images
            add_pace(setting, part, "bare diffusers loop", bare_loop, meter.gib, images=images, steps=steps)
            for what, seconds in (("bare diffusers loop", bare_loop), ("engine alone", bare_engine)):
                setting.add(part, what=f"job's work, times the {what}", ratio=round(working / seconds, 3))

    return measure


def batch(setting: Setting) -> None:
    """Four pictures one by one, and at once."""
    engine = opened(setting, "generate", 4, batch_size=4)
    for number in (1, 4):
        pace(setting, "batch", "engine", engine, batch=number)


def edit(setting: Setting) -> None:
    """Kontext on a source of the same size; its weights are of FLUX.1-dev's shape."""
    engine = opened(setting, "edit", setting.images)
    pace(setting, "edit", "engine, Kontext", engine)


def option(**options: Any) -> Callable[[Setting], None]:
    """A part that measures options of `generate` against none: against the engine alone of the part `generate`, if that was
    measured in this folder, else in one process with it."""
    name = "-".join(["option", *(key if value is True else str(value) for key, value in options.items())])

    def measure(setting: Setting) -> None:
        cases = {"none": {}, name.removeprefix("option-"): options}
        seconds = {}
        if plain := measured_plain(setting):
            seconds["none"] = plain
            del cases["none"]
        for what, section in cases.items():
            engine = opened(setting, "generate", setting.images, **section)
            setting.add(
                name, what=f"ready, {what}", unit="job", seconds=round(engine.load.seconds, 2), gib=engine.load.gib
            )
            if options.get("compile") and section:
                with metered(setting) as meter:
                    engine.warm(1)
                figures = {"seconds": round(meter.seconds, 2), "gib": meter.gib}
                setting.add(name, what="the first picture, 2 steps, with compiling", unit="job", **figures)
            seconds[what] = pace(setting, name, what, engine)
            del engine
            free()
        plain, other = seconds.values()
        setting.add(name, what="none, times the option", ratio=round(plain / other, 3))

    return measure


def measured_plain(setting: Setting) -> float | None:
    """Seconds a picture of FLUX's engine alone in these steps and this size, of the results so far."""
    wanted = {"part": "generate", "what": "engine alone", "steps": setting.steps, "side": setting.side}
    found = [record["seconds"] for record in read(setting.results) if wanted.items() <= record.items()]
    return found[-1] if found else None


def trace(setting: Setting) -> None:
    """How long the card is idle in a job, and how much of the CPU's work on a picture falls into its computing."""
    from darkroom.make import make_shard

    section = section_of(setting, "generate", steps=4)
    with tempfile.TemporaryDirectory() as name:
        job = job_of(setting, section, Path(name))
        with traced(setting.out / "trace.json", setting.device) as events:
            make_shard(requests_of(setting, section, max(setting.images, 3)), Path(name, "s.parquet"), job, [], [])
    setting.add("trace", what="4 steps a picture", unit="job", **overlap(events))


@contextlib.contextmanager
def traced(path: Path, device: str) -> Iterator[list[dict[str, Any]]]:
    """A trace of what runs within; the list is filled when it ends. What finishes a picture on the CPU is marked `finish`."""
    import torch
    from darkroom.engines import work
    from torch._C._profiler import _ExperimentalConfig

    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []
    encode, events = work.encode, []

    def marked(picture: Any, format: Any) -> bytes:
        with torch.profiler.record_function("finish"):
            return encode(picture, format)

    work.encode = marked
    try:
        # Pictures are finished beside the engine, in threads that a profile leaves out unless told.
        everywhere = _ExperimentalConfig(profile_all_threads=True)
        with torch.profiler.profile(activities=activities, experimental_config=everywhere) as profile:
            yield events
    finally:
        work.encode = encode
    profile.export_chrome_trace(str(path))
    events += json.loads(path.read_bytes())["traceEvents"]
    path.unlink()


def overlap(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Of a trace: seconds that the card computed, and was idle between its first and last kernel; seconds that the CPU took to
    finish pictures, and how many of these fell into the card's computing."""
    kinds: dict[str, list[tuple[float, float]]] = {"kernel": [], "finish": []}
    for event in events:
        kind = "finish" if event.get("name") == "finish" and event.get("cat") == "user_annotation" else event.get("cat")
        if event.get("ph") == "X" and kind in kinds:
            kinds[kind].append((event["ts"], event["ts"] + event["dur"]))
    busy, finish = union(kinds["kernel"]), union(kinds["finish"])
    both = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in busy for b in finish)
    computing, span = length(busy), busy[-1][1] - busy[0][0] if busy else 0.0
    microseconds = {"computing": computing, "idle": span - computing, "finishing": length(finish), "overlap": both}
    return {name: round(value / 1e6, 4) for name, value in microseconds.items()}


def union(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def length(spans: list[tuple[float, float]]) -> float:
    return sum(end - start for start, end in spans)


def judge(name: str, engine: str) -> Callable[[Setting], None]:
    def measure(setting: Setting) -> None:
        """Load, and a yes or no and a JSON reply about pictures, as the default rubric asks for them."""
        from darkroom.metrics import vlm
        from darkroom.metrics.base import Ask
        from darkroom.metrics.rubric import load_rubric
        from PIL import Image

        rubric = load_rubric(REPOSITORY / "config/rubrics/default.yaml")
        options = {"gpu_memory_utilization": 0.9, "enforce_eager": True} if engine == "vllm" else {}
        part = name if engine == "transformers" else f"{name}-{engine}"
        with metered(setting) as meter:
            section = section_of(setting, "judge", name, engine=engine, engine_args=options)
            model = vlm.open_judge(section, "images", rubric)
        setting.add(part, what="ready", unit="job", seconds=round(meter.seconds, 2), gib=meter.gib)
        number = setting.images if engine == "transformers" else 8 * setting.images
        pictures = [Image.effect_noise((setting.side,) * 2, 60 + n).convert("RGB") for n in range(number)]
        for question in rubric.questions["images"]:
            asks = [Ask([picture], question.ask("a fox"), question, 1) for picture in pictures]
            model.ask(asks[:1])
            with metered(setting) as meter:
                answers = model.ask(asks)
            if wrong := next((answer.error for answer in answers if answer.error), None):
                sys.exit(f"error: no answer: {wrong}")
            tokens = f", {section.max_tokens} tokens at the most" * (question.type == "json")
            figures = {"seconds": round(meter.seconds / number, 4), "gib": meter.gib, "side": setting.side}
            setting.add(part, what=f"{question.type}{tokens}", unit="question", batch=number, **figures)

    return measure


# In order of worth. What a part needs of the machine: modules, and a `card` where the CPU cannot stand in for one.
PARTS: dict[str, tuple[Callable[[Setting], None], tuple[str, ...]]] = {
    "machine": (machine, ()),
    "weights-flux": (weights("flux"), ()),
    "generate": (job("flux"), ()),
    "weights-klein": (weights("klein"), ()),
    "klein": (job("klein"), ()),
    "split": (split, ()),
    "batch": (batch, ()),
    "option-compile": (option(compile=True), ("card", "triton")),
    "option-_native_cudnn": (option(attention="_native_cudnn"), ("card",)),
    "option-int8": (option(quantization="int8"), ("torchao",)),
    "option-fp8": (option(quantization="fp8"), ("card", "torchao")),
    "option-fp8-compile": (option(quantization="fp8", compile=True), ("card", "torchao", "triton")),
    "weights-judge": (weights("judge"), ()),
    "judge": (judge("judge", "transformers"), ("xgrammar", "qwen_vl_utils")),
    "weights-qwen3-vl": (weights("qwen3-vl"), ()),
    "qwen3-vl": (judge("qwen3-vl", "transformers"), ("xgrammar", "qwen_vl_utils")),
    "edit": (edit, ()),
    "trace": (trace, ()),
    "load": (load, ()),
    "judge-vllm": (judge("judge", "vllm"), ("card", "vllm", "qwen_vl_utils")),
    "qwen3-vl-vllm": (judge("qwen3-vl", "vllm"), ("card", "vllm", "qwen_vl_utils")),
    "option-nf4": (option(quantization="nf4"), ("card", "bitsandbytes")),
    "option-first_block": (option(cache="first_block"), ()),
    "option-taylorseer": (option(cache="taylorseer"), ()),
    "option-model": (option(offload="model"), ("card",)),
    "option-_flash_3": (option(attention="_flash_3"), ("card", "flash_attn_interface")),
    "option-sage": (option(attention="sage"), ("card", "sageattention")),
    "option-sequential": (option(offload="sequential"), ("card",)),
}


def lacking(name: str, device: str) -> list[str]:
    """What a part needs and is not here."""
    from importlib.util import find_spec

    return [need for need in PARTS[name][1] if (device != "cuda" if need == "card" else find_spec(need) is None)]


def run_part(name: str, setting: Setting) -> None:
    """One part, in this process."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    PARTS[name][0](setting)


def run_parts(names: list[str], setting: Setting, limit: float, until: float, arguments: list[str]) -> int:
    """Each part in a process of its own, at most `limit` seconds long; how many failed. None is begun after `until`."""
    failed = 0
    for name in names:
        if missing := lacking(name, setting.device):
            setting.add(name, outcome=f"left out: needs {', '.join(missing)}")
            print(f"LEFT OUT: {name}: needs {', '.join(missing)}", flush=True)
            continue
        left = min(limit, until - time.monotonic())
        if left < 10:
            setting.add(name, outcome="not begun: the time was up")
            print(f"NOT BEGUN: {name}: the time was up", flush=True)
            continue
        print(f"=== {name}, at most {left:.0f} s", flush=True)
        started = time.monotonic()
        outcome = run_process([sys.executable, str(Path(__file__).resolve()), "--one", name, *arguments], left)
        setting.add(name, outcome=outcome, took=round(time.monotonic() - started, 1))
        failed += outcome != "done"
        print(f"    {outcome}, {time.monotonic() - started:.0f} s", flush=True)
    return failed


def run_process(command: list[str], limit: float) -> str:
    """Run a command with all that it starts for at most `limit` seconds; how it ended, in words."""
    process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
    try:
        code = process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        return f"ended after {limit:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return "done" if code == 0 else f"killed by signal {-code}" if code < 0 else f"failed with {code}"


# ------------------------------------------------------------------------------------------------------------- the table


def read(path: Path) -> list[Record]:
    """The records of a file; a line that was cut off when the machine went is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


def table(records: list[Record]) -> str:
    """What was measured, in Markdown: each machine, a line for each figure of it, then what has none."""
    if not records:
        return "Nothing was measured on a card so far.\n"
    head = []
    if any(record["tiny"] or record["device"] != "cuda" for record in records):
        head += ["**Of tiny models or of a CPU: a trial of the parts, no figures of a card.**", ""]
    return "\n".join(head + [_table_of(*machine) for machine in _by_machine(records)])


def _by_machine(records: list[Record]) -> list[tuple[str, list[Record]]]:
    """The records of each machine with its description, in the order in which the machines come first."""
    found: dict[str, list[Record]] = {}
    machine = ""
    for record in records:
        if "card" in record:
            versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
            machine = "{card}, {memory}, driver {driver}, CUDA {cuda}, {cpus} CPUs;\n".format(**record)
            machine += f"Python {record['python']}, {versions}."
        found.setdefault(machine, []).append(record)
    return list(found.items())


def _table_of(machine: str, records: list[Record]) -> str:
    lines = [machine, ""] if machine else []
    lines += [
        "| part | what | batch | steps, pixels | seconds | of a | GiB on the card |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in records:
        if "seconds" not in record:
            continue
        steps = f"{record['steps']}, " if "steps" in record else ""
        size = f"{steps}{record['side']} x {record['side']}" if "side" in record else ""
        gib = "" if record["gib"] is None else record["gib"]
        cells = (record["part"], record["what"], record.get("batch", ""), size, record["seconds"], record["unit"], gib)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    ratios = [f"- {record['part']}: {record['what']}: {record['ratio']}" for record in records if "ratio" in record]
    ratios += [
        f"- trace, {record['what']}: the card computed {record['computing']} s and was idle {record['idle']} s; the CPU took"
        f" {record['finishing']} s to finish pictures, {record['overlap']} s of them while the card computed"
        for record in records
        if "computing" in record
    ]
    if pace := step_seconds(records):
        ratios.append(f"- a step of a megapixel in a job: {pace:.3g} s (`run/needs.py` reckons with {built_in()})")
    lost = [f"- {record['part']}: {record['outcome']}" for record in records if record.get("outcome", "done") != "done"]
    for part in (ratios, lost):
        lines += ["", *part] if part else []
    return "\n".join(lines) + "\n"


def step_seconds(records: list[Record]) -> float | None:
    """Seconds of a step and megapixel of FLUX.1-dev in a job at batch 1, None where none was measured on a card."""
    found = [
        record["seconds"] / record["steps"] / (record["side"] ** 2 / 2**20)
        for record in records
        if (record["part"], record.get("what")) == ("generate", "job, its work")
        and record["device"] == "cuda"
        and not record["tiny"]
    ]
    return max(found, default=None)


def built_in() -> float:
    from darkroom.run.needs import STEP_SECONDS

    return STEP_SECONDS


# -------------------------------------------------------------------------------------------------------------- the call


def models_folder() -> Path:
    """A folder in memory where the models are or fit, else among the temporary files."""
    in_memory = Path("/dev/shm/darkroom-bench-models")
    fits = in_memory.parent.is_dir() and shutil.disk_usage(in_memory.parent).free > sum(NEED_GB.values()) * 1.1e9
    return in_memory if fits or in_memory.is_dir() else Path(tempfile.gettempdir(), in_memory.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/bench-gpu"), help="the folder for results")
    parser.add_argument("--models", type=Path, help="the folder with the models, made where there is none")
    parser.add_argument("--parts", default=",".join(PARTS), help="names with commas; all unless told")
    parser.add_argument("--tiny", action="store_true", help="tiny models: a trial of the parts")
    parser.add_argument("--images", type=int, help="pictures of each figure (2)")
    parser.add_argument("--steps", type=int, help="steps of a picture (28)")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds of a part ({LIMIT})")
    parser.add_argument("--total", type=float, default=86400, help="seconds of all parts together")
    parser.add_argument("--list", action="store_true", help="the parts by name")
    parser.add_argument("--table", type=Path, help="print the records of this file as a table")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(read(arguments.table)), end="")
        return 0
    if arguments.list:
        for name, (_, needs) in PARTS.items():
            print(name + (f" (needs {', '.join(needs)})" if needs else ""))
        return 0
    names = [name for name in arguments.parts.split(",") if name]
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--parts: {unknown[0]}: expected some of {', '.join(PARTS)}")
    setting = setting_of(arguments)
    setting.out.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        run_part(arguments.one, setting)
        return 0
    passed = [text for text in sys.argv[1:] if text != "--"]
    passed += [] if arguments.models else ["--models", str(setting.models)]
    failed = run_parts(names, setting, arguments.limit, time.monotonic() + arguments.total, passed)
    print(f"\n{table(read(setting.results))}\n{setting.results}")
    return 1 if failed else 0


def setting_of(arguments: argparse.Namespace) -> Setting:
    """Exits with a sentence where there is no card and the models are not tiny."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not arguments.tiny:
        sys.exit("error: PyTorch sees no card; --tiny tries the parts on the CPU")
    models = arguments.models or (arguments.out / "models" if arguments.tiny else models_folder())
    small = {"images": 1, "steps": 2, "side": 64} if arguments.tiny else {}
    told = {name: value for name in ("images", "steps") if (value := getattr(arguments, name)) is not None}
    return Setting(arguments.out, models, arguments.tiny, device, **small | told)


if __name__ == "__main__":
    sys.exit(main())
