"""The perceptual hash: pictures that look alike have hashes that differ in few bits."""

import math
from typing import Any

from darkroom.config.metrics import PHash
from darkroom.metrics.base import Metric, ScoreColumn, Subject
from darkroom.plan.recipe import Recipe


class PHashMetric(Metric):
    """`phash`, the hash of imagehash: bits of a picture's coarse structure, as hexadecimal digits."""

    name = "phash"
    packages = ("imagehash", "pillow", "scipy")

    def __init__(self, section: PHash):
        self.bits = section.bits

    def columns(self, kind: str) -> list[ScoreColumn]:
        label = "Perceptual hash of the picture"
        return [
            ScoreColumn("phash", "text", self.name, "text", self.name, label),
            ScoreColumn("phash_error", "text", self.name, "error", self.name, label),
        ]

    def recipe(self, kind: str) -> Recipe:
        return {"metric": self.name, "version": self.version, "bits": self.bits}

    def open(self, kind: str) -> "PHashMetric":
        return self

    def score(self, subjects: list[Subject]) -> list[dict[str, Any]]:
        return [{"phash": picture_hash(subject.images[-1], self.bits)} for subject in subjects]


def picture_hash(image: Any, bits: int) -> str:
    """The hash of a picture (PIL, RGB), of 64 or 256 bits, as hexadecimal digits."""
    import imagehash

    return str(imagehash.phash(image, hash_size=math.isqrt(bits)))
