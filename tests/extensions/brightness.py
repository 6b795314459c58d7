"""A metric that needs no model: how bright a picture is, from 0 (black) to 1 (white)."""

from typing import Literal

from darkroom.config.models import Section, allow_metric
from darkroom.metrics import register
from darkroom.metrics.base import Metric, ScoreColumn
from PIL import ImageStat
from pydantic import Field

# Share of red, green and blue in the luminance of a pixel.
WEIGHTS = {"bt601": (0.299, 0.587, 0.114), "bt709": (0.2126, 0.7152, 0.0722)}


class Weights(Section):
    weights: Literal["bt601", "bt709"] = Field(default="bt709", description="How colours count.")


allow_metric("brightness", Weights)


@register
class Brightness(Metric):
    """Mean luminance of the picture."""

    name = "brightness"
    packages = ("pillow",)

    def __init__(self, section: Weights):
        self.weights = section.weights

    def columns(self, kind):
        asked = {"metric": self.name, "question": self.name, "label": "Mean luminance of the picture"}
        return [
            ScoreColumn("brightness", "float", role="score", low=0, high=1, selectable=True, **asked),
            ScoreColumn("brightness_error", "text", role="error", **asked),
        ]

    def recipe(self, kind):
        return {"metric": self.name, "version": self.version, "weights": self.weights}

    def open(self, kind):
        return self

    def score(self, subjects):
        return [{"brightness": self._of(subject.images[-1])} for subject in subjects]

    def _of(self, image):
        mean = ImageStat.Stat(image).mean
        return round(sum(part * weight for part, weight in zip(mean, WEIGHTS[self.weights], strict=True)) / 255, 6)
