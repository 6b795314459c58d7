"""Measure the shipped generator on fresh scenes and edits and compare it with the bars.

python training/bench_generator.py resources/models/shapes-flux [--quick]

Samples through the unmodified diffusers pipelines, reads the pictures back with the world's scorer, prints
one table and exits with status 1 where a figure is below its bar. Half of the captions and edits have
meanings that training never saw. `--quick` takes a smaller sample and allows for its sampling error (two
standard errors below the bar).
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderTiny

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shapeworld import generator, measure, scorer, world

BARS = {"one": 0.95, "relation": 0.90, "count": 0.92}
BACKGROUND_BAR = 0.85
TASK_BARS = {"recolour": 0.90, "background": 0.90, "reshape": 0.85, "remove": 0.85}
VAE_BAR = 0.97


@dataclass(frozen=True)
class Row:
    """One line of the table; `bar` is None for figures that are only reported."""

    name: str
    verdicts: list[scorer.Verdict]
    bar: float | None = None

    @property
    def share(self) -> float:
        """The share of strictly right pictures."""
        return measure.share(self.verdicts)

    def passes(self, tolerant: bool) -> bool:
        """Say whether the share reaches the bar, less two standard errors where `tolerant`."""
        if self.bar is None:
            return True
        slack = 2 * math.sqrt(self.bar * (1 - self.bar) / len(self.verdicts)) if tolerant else 0.0
        return self.share >= self.bar - slack


def vae_rows(vae: AutoencoderTiny, number: int, seed: int) -> list[Row]:
    """Encode and decode `number` true pictures per background and score what comes back."""
    rng = random.Random(f"vae {seed}")
    rows = []
    for background in world.BACKGROUNDS:
        scenes = [world.sample_scene(rng, background=background) for _ in range(number)]
        pixels = np.stack([np.asarray(world.render(s)) for s in scenes])
        with torch.no_grad():
            x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
            y = vae.decode(vae.encode(x).latents).sample.clamp(-1, 1)
        pictures = ((y + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        verdicts = [scorer.score(p, s, places=True) for p, s in zip(pictures, scenes, strict=True)]
        rows.append(Row(f"autoencoder, {background}", verdicts, VAE_BAR))
    return rows


def varied_row(model: generator.Generator, number: int, seed: int) -> Row:
    """Score pictures of captions with capitals, marks, wrong articles and words outside the vocabulary."""
    rng = random.Random(f"varied {seed}")
    scenes = measure.draw_scenes(number, seed + 1, held_out=None)
    captions = [world.vary(world.sample_caption(s, rng), rng) for s in scenes]
    pictures = model.make(captions, [seed + i for i in range(len(scenes))])
    return Row("varied wording", [scorer.score(p, s) for p, s in zip(pictures, scenes, strict=True)])


def bench(model: generator.Generator, quick: bool, seed: int) -> list[Row]:
    """Measure everything and return the table's rows."""
    half, edits, vae_number = (24, 20, 60) if quick else (75, 60, 200)
    unseen = measure.measure(model, half, seed, held_out=True, edits=edits)
    seen = measure.measure(model, half, seed + 1, held_out=False, edits=edits)
    rows = vae_rows(model.text.vae, vae_number, seed)
    for kind, bar in BARS.items():
        rows.append(Row(f"text to image, {kind}", unseen.kinds[kind] + seen.kinds[kind], bar))
        rows.append(Row("  of these unseen", unseen.kinds[kind]))
    for background in world.BACKGROUNDS:
        verdicts = unseen.backgrounds[background] + seen.backgrounds[background]
        rows.append(Row(f"text to image, on {background}", verdicts, BACKGROUND_BAR))
    rows.append(varied_row(model, half, seed))
    for task, bar in TASK_BARS.items():
        rows.append(Row(f"edit, {task}", unseen.tasks[task] + seen.tasks[task], bar))
        rows.append(Row("  of these unseen", unseen.tasks[task]))
    return rows


def main() -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--quick", action="store_true", help="a small sample for continuous integration")
    parser.add_argument("--seed", type=int, default=7000)
    parser.add_argument("--steps", type=int, default=generator.STEPS)
    parser.add_argument("--true-cfg", type=float, default=generator.TRUE_CFG_SCALE)
    parser.add_argument("--max-sequence-length", type=int, default=generator.MAX_SEQUENCE_LENGTH)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    start = time.monotonic()
    model = generator.Generator.load(
        arguments.directory,
        steps=arguments.steps,
        true_cfg_scale=arguments.true_cfg,
        max_sequence_length=arguments.max_sequence_length,
    )
    rows = bench(model, arguments.quick, arguments.seed)
    print(f"{'strictly right':32} {'n':>5} {'share':>7} {'bar':>6}")
    failed = 0
    for row in rows:
        passes = row.passes(arguments.quick)
        failed += not passes
        bar = "" if row.bar is None else f"{row.bar:.2f}"
        verdict = "" if row.bar is None else "ok" if passes else "BELOW"
        print(f"{row.name:32} {len(row.verdicts):5d} {row.share:7.3f} {bar:>6} {verdict}")
    settings = f"{arguments.steps} steps, true CFG {arguments.true_cfg:g}"
    print(f"{failed} below the bar; {time.monotonic() - start:.0f} s at {settings}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
