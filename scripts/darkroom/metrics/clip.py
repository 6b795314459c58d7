"""How well a picture fits its prompt by a CLIP or SigLIP model, and how like its source an edit's result is."""

import math
from typing import TYPE_CHECKING, Any

from darkroom.config.metrics import Clip
from darkroom.metrics.base import ModelMetric, ScoreColumn, Subject
from darkroom.metrics.embeddings import packed
from darkroom.plan.recipe import Recipe
from darkroom.plan.stages import STAGES

if TYPE_CHECKING:
    from darkroom.metrics.vision import Encoder

# Models keep their scale at 100 or a little above, and what is added near -17.
_LIMITS = {"cosine": (-1.0, 1.0), "logit": (-200.0, 200.0), "probability": (0.0, 1.0)}


class ClipMetric(ModelMetric):
    """`clip`: the likeness of picture and prompt; of edits also `clip_source`. Embeddings stay in the score files (`clip_embedding`)."""

    name = "clip"
    packages = ("torch", "transformers", "torchvision", "pillow", "numpy")
    section: Clip

    def columns(self, kind: str) -> list[ScoreColumn]:
        edits = bool(STAGES[kind].reads)
        label = f"Likeness of {'result and instruction' if edits else 'picture and prompt'}: {{prompt}}"
        low, high = _LIMITS[self.section.score]
        columns = [ScoreColumn("clip", "float", self.name, "score", self.name, label, low, high, True)]
        if edits:
            columns.append(ScoreColumn("clip_source", "float", self.name, "score", self.name, label, -1.0, 1.0, True))
        return [
            *columns,
            ScoreColumn("clip_embedding", "text", self.name, "embedding", self.name, label),
            ScoreColumn("clip_error", "text", self.name, "error", self.name, label),
        ]

    def recipe(self, kind: str) -> Recipe:
        asked = {"dtype": self.section.dtype, "score": self.section.score}
        return {"metric": self.name, "version": self.version, "model": self.identity} | asked

    def open(self, kind: str) -> "ClipScorer":
        from darkroom.metrics import vision

        section = self.located()
        encoder = vision.Encoder(section, self.place)
        vision.check_probability(encoder, section, self.place)
        return ClipScorer(encoder, section)


class ClipScorer:
    """Embeds pictures and prompts, and compares them."""

    def __init__(self, encoder: "Encoder", section: Clip):
        self.encoder, self.section = encoder, section
        self.prepare, self.close = encoder.prepare, encoder.close

    def score(self, subjects: list[Subject]) -> list[dict[str, Any]]:
        fitted = [[self.encoder.fit(image) for image in subject.images] for subject in subjects]
        whole = [all(one.error is None for one in images) for images in fitted]
        inputs = [one.inputs for images, good in zip(fitted, whole, strict=True) if good for one in images]
        vectors = iter(self.encoder.pictures(inputs) if inputs else [])
        prompts = [subject.prompt for subject, good in zip(subjects, whole, strict=True) if good]
        texts = iter(self.encoder.texts(prompts) if prompts else [])
        scores: list[dict[str, Any]] = []
        for images, good in zip(fitted, whole, strict=True):
            if not good:
                scores.append({"clip_error": next(one.error for one in images if one.error)})
                continue
            *source, result = [next(vectors) for _ in images]
            columns = {"clip": self._scaled(float(result @ next(texts)))}
            if source:
                columns["clip_source"] = _rounded(float(result @ source[0]))
            sound = all(map(math.isfinite, columns.values()))  # else the reason says so, and there is nothing to keep
            scores.append(columns | ({"clip_embedding": packed(result)} if sound else {}))
        return scores

    def _scaled(self, cosine: float) -> float:
        if self.section.score == "cosine":
            return _rounded(cosine)
        logit = cosine * self.encoder.scale + (self.encoder.offset or 0.0)
        return round(logit if self.section.score == "logit" else 1 / (1 + math.exp(-logit)), 6)


def _rounded(cosine: float) -> float:
    """A cosine, which the last bits of its lengths may carry past 1."""
    return round(max(-1.0, min(1.0, cosine)), 6) if math.isfinite(cosine) else cosine
