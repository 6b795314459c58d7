"""What a job costs besides its engine, for one that takes no CPU: encoding, writing, syncing, reading sources.

    python tests/bench/bench_overlap.py [--pictures 60] [--seconds 0.3] [--side 1024] [--only images,edits,judge] [--judged 256]

A stand-in for a card sleeps so many seconds for each picture and returns one that costs as much to encode as a photograph. A job of so
many pictures is run with all else beside the engine, as for a card, and with all of it in turn, as for a model on the CPU. Prints the
rate of each as a share of the engine's own rate, and exits with status 1 where the first is below its limit.

Two shares are printed: of the time that the job was at work, as its record says it, and of all its time, with looking at the sources
before the engine starts and the shard file after it.

The judge is vLLM itself with a model of two layers, on the CPU: two questions about each picture of a megapixel, with the next pictures
prepared beside it, and with all in turn. Prints images/s and the CPU time of each; the scores have to be the same.
"""

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from darkroom.config.models import Edit, Generate, Judge, StageSection
from darkroom.engines import Family, register
from darkroom.engines.base import Engine, Failure
from darkroom.engines.work import ShardJob
from darkroom.jobs.runtime import limit_threads
from darkroom.make import make_shard
from darkroom.metrics.judge import JudgeMetric
from darkroom.metrics.rubric import load_rubric
from darkroom.metrics.score import score_shards
from darkroom.plan.recipe import image_recipe
from darkroom.plan.requests import Request, expand
from darkroom.store.images import encode_png
from darkroom.store.scratch import Scratch
from darkroom.store.shardfile import IMAGE_COLUMNS, write_shard
from PIL import Image

JUDGE = Path(__file__).resolve().parents[2] / "resources" / "models" / "shapes-judge"
LEAST = 0.95  # of the engine's own rate
GRID = 16  # pixels
THREADS = 4  # of a job on one card
DIFFERENT = 8  # pictures: the noise of a megapixel takes as long to draw as its PNG to encode


def photo(seed: int, side: int) -> Image.Image:
    """Gradients and noise: a PNG of two bytes a pixel."""
    down, right = np.mgrid[0:side, 0:side] / side
    ground = 200 * np.stack([right, down, (right + down) / 2], axis=2) + 20
    noise = np.random.default_rng(seed).normal(0, 6, ground.shape)
    return Image.fromarray((ground + noise).clip(0, 255).astype("uint8"))


class StandIn(Engine):
    """seconds: slept for each picture, without the interpreter's lock; side: of the pictures."""

    def __init__(self, name: str, seconds: float, side: int, takes_cpu: bool = False):
        self.name, self.seconds, self.takes_cpu = name, seconds, takes_cpu
        self.side, self.pictures = side, [photo(seed, side) for seed in range(DIFFERENT)]

    def work_size(self, width: int, height: int) -> tuple[int, int]:
        return -(-width // GRID) * GRID, -(-height // GRID) * GRID

    def prepare_source(self, source: Image.Image, size: tuple[int, int]) -> Image.Image:
        return source.resize(size, Image.Resampling.LANCZOS)

    def make(
        self, batch: Sequence[Request], size: tuple[int, int], sources: Sequence[Image.Image] | None
    ) -> Iterator[tuple[Request, Image.Image | Failure]]:
        for number, request in enumerate(batch):
            if sources is not None:
                assert self.prepare_source(sources[number], size).size == size
            time.sleep(self.seconds)
            yield request, self.pictures[request.seed % DIFFERENT]


register(
    Family(
        name="stand-in",
        open="bench_overlap:StandIn",
        makes=True,
        edits=True,
        needs_model=False,
        local=False,
        reads_negative=lambda request: False,
    )
)


def requests_of(kind: str, number: int, section: StageSection) -> list[Request]:
    """Images of text, or edits of files that each are another."""
    rows = []
    for n in range(number):
        item = {"prompt": f"picture {n}"} | ({"source": {"path": f"{n}.png"}} if kind == "edits" else {})
        rows.append({"id": f"r{n}", "options": {}, "row": {}, "items": [item]})
    return [request for row in rows for request in expand(row, section, 0, 1)]


def job(kind: str, folder: Path, section: StageSection) -> ShardJob:
    edits, recipe = kind == "edits", image_recipe(section)
    name, scratch = "edit" if edits else "generate", Scratch(folder / "scratch")
    return ShardJob(name, section, recipe, "d", folder, f"make_{kind}", scratch, edits=edits)


def seconds_of(kind: str, folder: Path, engine: StandIn, number: int, batch: int) -> tuple[float, float]:
    """Seconds that a job was at work, and of all of it."""
    keys = {"family": "stand-in", "batch_size": batch}
    section = Edit(**keys) if kind == "edits" else Generate(**keys, width=engine.side, height=engine.side)
    started = time.monotonic()
    counts = make_shard(
        requests_of(kind, number, section),
        folder / "shard.parquet",
        job(kind, folder, section),
        [],
        [],
        open_engine=lambda section, name: engine,
        threads=1 if engine.takes_cpu else THREADS,
    )
    assert counts["made"] == number
    return counts["working"], time.monotonic() - started


QUESTIONS = """
images:
  - {name: shown, type: yes_no, text: 'Does this image show "{prompt}"? Please answer yes or no.'}
  - {name: sharp, type: yes_no, text: 'Is this image of "{prompt}" sharp? Please answer yes or no.'}
edited: []
"""


def save_judge(folder: Path) -> None:
    """The embedded judge's tokenizer and template, random weights of its family, and room for a megapixel."""
    import torch
    from transformers import AutoConfig, AutoProcessor, Qwen2_5_VLForConditionalGeneration

    processor, config = AutoProcessor.from_pretrained(JUDGE), AutoConfig.from_pretrained(JUDGE)
    for part in (processor.image_processor, processor.video_processor):
        part.patch_size = 14
    processor.image_processor.size = {"shortest_edge": 56**2, "longest_edge": 2048**2}
    text, vision = config.text_config, config.vision_config
    small = {"hidden_size": 64, "intermediate_size": 128}
    text.update(small | {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2})
    text.update({"max_position_embeddings": 8192, "layer_types": text.layer_types[:1]})
    vision.update(small | {"num_heads": 2, "out_hidden_size": 64, "depth": 1, "patch_size": 14})
    vision.update({"window_size": 112, "fullatt_block_indexes": []})
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).float().save_pretrained(folder)
    processor.save_pretrained(folder)


def judge_lines(number: int, side: int) -> tuple[list[str], bool]:
    """What a judge of `number` pictures takes, prepared beside it and in turn, and whether the scores are the same."""
    noise = np.random.default_rng(0).normal(0, 6, (side, side, 3))
    ground = np.full((side, side, 3), np.linspace(40, 200, side)[:, None])

    def records() -> Iterator[dict[str, object]]:
        for n in range(number):  # each is another: vLLM knows a picture again
            pixels = (ground + np.roll(noise, (37 * n, 11 * n), (0, 1))).clip(0, 255).astype("uint8")
            data = encode_png(Image.fromarray(pixels))
            record = dict.fromkeys(IMAGE_COLUMNS) | {"key": f"{n:032x}", "row": f"r{n}", "item": 0, "sample": 0}
            record |= {"prompt": f"picture {n}", "fields": "{}", "sha256": hashlib.sha256(data).hexdigest()}
            yield record | {"image": {"bytes": data, "path": f"{n}.png"}}

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shard(folder / "images.parquet", IMAGE_COLUMNS, records(), {"digest": "d", "rule": "r", "failed": 0})
        save_judge(folder / "model")
        (folder / "rubric.yaml").write_text(QUESTIONS)
        metric = JudgeMetric(Judge(model=str(folder / "model"), max_tokens=16), load_rubric(folder / "rubric.yaml"))
        limit_threads(1, "cpu")
        scorer = metric.open("images")

        def score(images: str, threads: int) -> tuple[float, float, Path]:
            path, journal = folder / f"{images}-{threads}.parquet", folder / f"{images}-{threads}.jsonl"
            cpu = time.process_time()
            shard = {folder / f"{images}.parquet": "d"}
            counts = score_shards(
                metric, "images", shard, path, "s", journal, [], [], ["i"], lambda: scorer, threads=threads
            )
            return counts["working"], time.process_time() - cpu, path

        few = (record for _, record in zip(range(16), records(), strict=False))
        write_shard(folder / "few.parquet", IMAGE_COLUMNS, few, {"digest": "d", "rule": "r", "failed": 0})
        score("few", 1)  # what vLLM compiles at its first questions
        lines, made = [], []
        for how, threads in (("beside the judge", 2), ("in turn", 1)):
            seconds, cpu, path = score("images", threads)
            made.append(path.read_bytes())
            lines.append(
                f"judge   {how:18} {number / seconds:6.2f} images/s, {1000 * cpu / number:.0f} ms of CPU for each"
            )
    return lines, made[0] == made[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--judged", type=int, default=256)
    parser.add_argument("--only", default="images,edits,judge")
    given = parser.parse_args()
    lines, good = [], True
    kinds = given.only.split(",")
    for kind in kinds:
        if kind == "judge":
            continue
        for alone in (False, True):
            with tempfile.TemporaryDirectory() as name:
                folder, side = Path(name), given.side - 4 if kind == "edits" else given.side  # edits: off the grid
                engine = StandIn(kind, given.seconds, side, takes_cpu=alone)
                files = [encode_png(picture) for picture in engine.pictures if kind == "edits"]
                for n in range(given.pictures if files else 0):
                    (folder / f"{n}.png").write_bytes(files[n % DIFFERENT])
                at_work, whole = seconds_of(kind, folder, engine, given.pictures, given.batch)
            own = given.pictures * given.seconds
            how = "in turn" if alone else "beside the engine"
            lines.append(
                f"{kind:7} {how:18} {own / at_work:6.3f} {own / whole:10.3f}   {at_work:7.2f} s of {whole:.2f} s"
            )
            good &= alone or own / at_work >= LEAST
    print(f"{'':26} {'at work':>6} {'whole job':>10}   (shares of the engine's own rate; at least {LEAST} at work)")
    print("\n".join(lines))
    if "judge" in kinds:
        lines, same = judge_lines(given.judged, given.side)
        print("\n".join([*lines, *(() if same else ["judge   the scores differ"])]))
        good &= same
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
