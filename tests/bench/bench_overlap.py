"""What a job costs besides its engine, for one that takes no CPU: encoding, writing, syncing, reading sources.

    python tests/bench/bench_overlap.py [--pictures 60] [--seconds 0.3] [--side 1024] [--only images,edits]

A stand-in for a card sleeps so many seconds for each picture and returns one that costs as much to encode as a photograph. A job of so
many pictures is run with all else beside the engine, as for a card, and with all of it in turn, as for a model on the CPU. Prints the
rate of each as a share of the engine's own rate, and exits with status 1 where the first is below its limit.

Two shares are printed: of the time that the job was at work, as its record says it, and of all its time, with looking at the sources
before the engine starts and the shard file after it.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from darkroom.config.models import Edit, Generate, StageSection
from darkroom.engines import Family, register
from darkroom.engines.base import Engine, Failure
from darkroom.engines.work import ShardJob
from darkroom.make import make_shard
from darkroom.plan.recipe import image_recipe
from darkroom.plan.requests import Request, expand
from darkroom.store.images import encode_png
from darkroom.store.scratch import Scratch
from PIL import Image

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--only", default="images,edits")
    given = parser.parse_args()
    lines, good = [], True
    for kind in given.only.split(","):
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
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
