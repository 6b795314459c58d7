"""Measure the tiny CLIP: how well its scores tell right captions from wrong ones.

python training/shapeworld/bench_clip.py resources/models/shapes-clip --generator resources/models/shapes-flux

Scenes whose meaning was held out of training, each with its caption and one caption for each kind of error. With a generator also
pictures that it makes for such captions, as if all were right.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from PIL import Image
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shapeworld import world
from shapeworld.judge_questions import KINDS_OF_ERROR, spoil
from shapeworld.world import Scene

# The least AUC; what is not named is shown only.
BARS = {"colour": 0.95, "shape": 0.95}


class Likeness:
    """A CLIP's cosines of pictures and captions."""

    def __init__(self, folder: Path) -> None:
        self.model = transformers.CLIPModel.from_pretrained(folder).eval()
        self.processor = transformers.CLIPProcessor.from_pretrained(folder)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> list[float]:
        """Return the cosine of each picture and its caption."""
        given = self.processor(
            text=list(captions), images=list(pictures), padding=True, truncation=True, return_tensors="pt"
        )
        made = self.model(**given)
        return (made.image_embeds * made.text_embeds).sum(1).tolist()


def draw(number: int, rng: random.Random) -> list[Scene]:
    """Draw scenes whose meaning is held out of training."""
    found = [world.sample_where(lambda: world.sample_scene(rng), True) for _ in range(number)]
    return [scene for scene in found if isinstance(scene, Scene)]


def figures(
    likeness: Callable[..., list[float]],
    scenes: Sequence[Scene],
    pictures: Sequence[Image.Image],
    rng: random.Random,
    kinds: Sequence[str] = KINDS_OF_ERROR,
) -> dict[str, float]:
    """Return, by kind of error, the AUC of all right captions against wrong ones: one scale for all pictures.

    likeness: of pictures and their captions, a number for each.
    """
    captions = [world.sample_caption(scene, rng) for scene in scenes]
    right = likeness(pictures, captions)
    found = {}
    for kind in kinds:
        spoiled = [(number, spoil(scene, kind, rng)) for number, scene in enumerate(scenes)]
        wrong = [(pictures[number], world.sample_caption(scene, rng)) for number, scene in spoiled if scene is not None]
        if wrong:
            scores = likeness(*zip(*wrong, strict=True))
            truth = [True] * len(right) + [False] * len(scores)
            found[kind] = float(roc_auc_score(truth, [*right, *scores]))
    return found


def main() -> int:
    """Print the figures; return 1 where one is below its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--generator", type=Path, help="a tiny FLUX directory, whose pictures are measured too")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--number", type=int, default=1000, help="scenes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    likeness, rng = Likeness(arguments.model), random.Random(f"bench clip {arguments.seed}")
    scenes, good = draw(arguments.number, rng), True
    for kind, area in figures(likeness, scenes, [world.render(scene) for scene in scenes], rng).items():
        passed = area >= BARS.get(kind, 0.0)
        good &= passed
        bar = f">= {BARS[kind]:.2f}" if kind in BARS else ""
        print(f"AUC, {kind:20} {area:.4f}  {bar} {'' if passed else 'BELOW'}".rstrip())
    if arguments.generator:
        from shapeworld.generator import Generator

        scenes = scenes[: arguments.number // 5]
        captions = [world.sample_caption(scene, rng) for scene in scenes]
        made = Generator.load(arguments.generator).make(captions, list(range(len(scenes))))
        for kind, area in figures(likeness, scenes, made, rng).items():
            print(f"AUC by the tiny FLUX, {kind:20} {area:.4f}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
