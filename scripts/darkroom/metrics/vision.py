"""Models of transformers that see pictures: CLIP and its like, and classifiers.

On the CPU pictures are taken one by one, for there the last bits of a picture's result depend on how many are computed together. On a
GPU all batches have one size, the last one filled up. So neither order nor company of a picture changes what is said of it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers

from darkroom.config.metrics import Clip, Nsfw
from darkroom.engines.diffusion import device_name, resolve_device
from darkroom.errors import DarkroomError
from darkroom.jobs.runtime import say
from darkroom.metrics.base import Subject

PACKAGES = ("torch", "transformers", "torchvision", "pillow", "numpy")


class Fitted:
    """A picture as a model takes it: `inputs`, or `error`, why it cannot."""

    def __init__(self, inputs: Any = None, error: str | None = None):
        self.inputs, self.error = inputs, error


class VisionModel:
    """A model and what prepares its pictures.

    Args:
        section: of the config, its model a folder.
        place: the section, as messages name it.
        kind: the class of transformers that loads the model.
    """

    def __init__(self, section: Any, place: str, kind: Any):
        self.path, self.place = section.model, place
        self.device = resolve_device(section.device, place)
        self.batch = section.batch_size if self.device.type == "cuda" else 1
        transformers.logging.set_verbosity_error()  # it warns of prompts that are too long, one by one
        transformers.logging.disable_progress_bar()
        try:
            self.processor = self.load_processor()
            dtype = getattr(torch, section.dtype)
            model = kind.from_pretrained(self.path, dtype=dtype, use_safetensors=True)
            self.model: Any = model.eval().to(self.device)
        except Exception as error:  # the libraries raise many kinds; all of them mean that this is no usable model
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DarkroomError(f"{place}.model: cannot load {self.path}: {line}") from error
        say(f"{place}: {type(model).__name__} on {device_name(self.device)} as {section.dtype}")

    def load_processor(self) -> Any:
        raise NotImplementedError

    @property
    def image_processor(self) -> Any:
        return self.processor

    def prepare(self, subject: Subject) -> Subject:
        """The subject with its pictures `Fitted`. Can be called in any thread."""
        return replace(subject, images=[self.fit(image) for image in subject.images])

    def fit(self, image: Any) -> Any:
        """A picture (PIL, RGB) as the model takes it; what is fitted already stays as it is."""
        if isinstance(image, Fitted):
            return image
        try:
            return Fitted(dict(self.image_processor(images=image, return_tensors="pt")))
        except ValueError as error:
            return Fitted(error=f"the model cannot take this picture: {str(error).splitlines()[0]}")

    @torch.inference_mode()
    def run(self, inputs: list[dict[str, Any]], function: Callable[..., Any]) -> np.ndarray:
        """What a function of the model makes of inputs, each of one item: a row of float32 for each, in order."""
        rows = []
        for start in range(0, len(inputs), self.batch):
            part = inputs[start : start + self.batch]
            full = [*part, *[part[-1]] * (self.batch - len(part))]
            joined = {name: torch.cat([one[name] for one in full]).to(self.device) for name in full[0]}
            for name, value in joined.items():
                if value.is_floating_point():
                    joined[name] = value.to(self.model.dtype)
            rows.append(function(**joined)[: len(part)].float().cpu().numpy())
        return np.concatenate(rows)


class Encoder(VisionModel):
    """A CLIP or SigLIP model: embeddings of pictures and texts, of length 1.

    Attributes:
        limit: tokens of a text that are read.
        read: the texts that were read.
        cut: those that were longer.
    """

    def __init__(self, section: Any, place: str):
        super().__init__(section, place, transformers.AutoModel)
        self.tokenizer: Any = getattr(self.processor, "tokenizer", None)
        needed = [
            getattr(self.model, name, None) for name in ("get_image_features", "get_text_features", "logit_scale")
        ]
        if self.tokenizer is None or None in needed:
            raise DarkroomError(
                f"{place}.model: {self.path}: {type(self.model).__name__} is no CLIP or SigLIP model, with embeddings of pictures"
                " and texts; name one"
            )
        self.limit = min(self.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)
        self.cut: set[str] = set()
        self.read: set[str] = set()
        self._texts: dict[str, np.ndarray] = {}

    def load_processor(self) -> Any:
        return transformers.AutoProcessor.from_pretrained(self.path)

    @property
    def image_processor(self) -> Any:
        return self.processor.image_processor

    @property
    def scale(self) -> float:
        """What the model multiplies cosines by."""
        return float(self.model.logit_scale.detach().float().exp())

    @property
    def offset(self) -> float | None:
        """What it adds to that; None where it has no probability of a single pair."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else float(bias.detach().float())

    def pictures(self, inputs: list[dict[str, Any]]) -> np.ndarray:
        """Embeddings of fitted pictures, float32 [pictures, dimensions]."""
        return _of_length_1(self.run(inputs, lambda **part: self.model.get_image_features(**part).pooler_output))

    def texts(self, texts: list[str]) -> np.ndarray:
        """Embeddings of texts, float32 [texts, dimensions]. Texts of the last call are not read again."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        found = dict(zip(new, self._embedded(new), strict=True)) if new else {}
        self._texts = {text: found[text] if text in found else self._texts[text] for text in texts}
        return np.stack([self._texts[text] for text in texts])

    def _embedded(self, texts: list[str]) -> np.ndarray:
        self.read.update(texts)
        self.cut.update(text for text in texts if len(self.tokenizer(text)["input_ids"]) > self.limit)
        fixed = {"padding": "max_length", "truncation": True, "max_length": self.limit, "return_tensors": "pt"}
        inputs = [dict(self.tokenizer(text, **fixed)) for text in texts]
        return _of_length_1(self.run(inputs, lambda **part: self.model.get_text_features(**part).pooler_output))

    def close(self) -> None:
        """Say how many texts were cut, where any was."""
        if self.cut:
            say(
                f"{self.place}: {len(self.cut)} of {len(self.read)} prompts were cut after {self.limit} tokens, the model's limit"
            )


def _of_length_1(rows: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):  # what is no number has a reason later on
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Classifier(VisionModel):
    """An image classifier of transformers: the probability of some of its labels together."""

    def __init__(self, section: Nsfw, place: str):
        super().__init__(section, place, transformers.AutoModelForImageClassification)
        names = {number: str(name) for number, name in self.model.config.id2label.items()}
        wanted = {label.casefold() for label in section.labels}
        self.chosen = [number for number, name in names.items() if name.casefold() in wanted]
        if unknown := wanted - {name.casefold() for name in names.values()}:
            raise DarkroomError(
                f"{place}.labels: {self.path} has no label {min(unknown)}; it has {', '.join(list(names.values())[:20])}"
            )
        self.several = self.model.config.problem_type == "multi_label_classification"

    def load_processor(self) -> Any:
        return transformers.AutoImageProcessor.from_pretrained(self.path)

    def probabilities(self, inputs: list[dict[str, Any]]) -> np.ndarray:
        """Of each fitted picture the sum of the labels' probabilities; where labels do not exclude each other, the greatest."""
        logits = torch.from_numpy(self.run(inputs, lambda **part: self.model(**part).logits))
        if self.several:
            return logits.sigmoid()[:, self.chosen].amax(1).numpy()
        return logits.softmax(1)[:, self.chosen].sum(1).numpy()


def check_probability(encoder: Encoder, section: Clip, place: str) -> None:
    """Raise DarkroomError where a probability is asked of a model that has none."""
    if section.score == "probability" and encoder.offset is None:
        raise DarkroomError(
            f"{place}.score: {type(encoder.model).__name__} has no probability of a single picture and text; set cosine or logit"
        )
