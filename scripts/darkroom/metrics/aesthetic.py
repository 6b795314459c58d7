"""How much people would like a picture, by a head on the embeddings of a CLIP or SigLIP model."""

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from darkroom.config.metrics import Aesthetic
from darkroom.errors import DarkroomError
from darkroom.metrics.base import ModelMetric, ScoreColumn, Subject
from darkroom.models.identity import file_identity
from darkroom.plan.recipe import Recipe

if TYPE_CHECKING:
    import numpy as np

    from darkroom.metrics.vision import Encoder

_LIMITS = (0.0, 10.0)


class AestheticMetric(ModelMetric):
    """`aesthetic`: what the layers of `head` say of a picture's embedding."""

    name = "aesthetic"
    packages = ("torch", "transformers", "torchvision", "safetensors", "pillow", "numpy")
    section: Aesthetic

    @property
    def head(self) -> Path:
        assert self.section.head is not None, "the config was checked"
        return Path(self.section.head)

    @cached_property
    def limits(self) -> tuple[float, float]:
        """Least and greatest score."""
        if self.section.low is not None and self.section.high is not None:
            return self.section.low, self.section.high
        return _of_card(self.head.with_name("README.md")) or _LIMITS

    def columns(self, kind: str) -> list[ScoreColumn]:
        label = "How much people would like the picture"
        return [
            ScoreColumn("aesthetic", "float", self.name, "score", self.name, label, *self.limits, True),
            ScoreColumn("aesthetic_error", "text", self.name, "error", self.name, label),
        ]

    def recipe(self, kind: str) -> Recipe:
        asked = {"dtype": self.section.dtype, "activation": self.section.activation, "limits": list(self.limits)}
        made = {"metric": self.name, "version": self.version, "model": self.identity}
        return made | {"head": self._head_identity} | asked

    @cached_property
    def _head_identity(self) -> str:
        return file_identity(self.head)

    def open(self, kind: str) -> "AestheticScorer":
        from darkroom.metrics import vision

        layers = read_head(self.head)
        return AestheticScorer(vision.Encoder(self.located(), self.place), layers, self.section.activation)


def _of_card(card: Path) -> tuple[float, float] | None:
    """`score_range` in the header of a head's card, or None. Raises DarkroomError where it is no range."""
    try:
        text = card.read_text(encoding="utf-8", errors="replace")
        header = yaml.safe_load(text[4:].split("\n---", 1)[0]) if text.startswith("---\n") else None
    except (OSError, yaml.YAMLError):
        return None
    said = header.get("score_range") if isinstance(header, dict) else None
    if said is None:
        return None
    if (
        isinstance(said, list)
        and len(said) == 2
        and all(isinstance(one, int | float) for one in said)
        and said[0] < said[1]
    ):
        return float(said[0]), float(said[1])
    raise DarkroomError(f"{card}: score_range must be [low, high], got {said}; or set metrics.aesthetic.low and high")


def read_head(path: Path) -> "list[tuple[np.ndarray, np.ndarray]]":
    """The weight [out, in] and bias [out] of each linear layer of a file, in the order of their names: layers.2 before layers.10.

    Raises DarkroomError, one line, where they are no chain of layers that ends in one number.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    where = f"metrics.aesthetic.head: {path}"
    try:
        tensors = {name: tensor.float().numpy() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise DarkroomError(f"{where}: cannot be read: {str(error).splitlines()[0]}") from error

    def place(name: str) -> list[Any]:
        return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]

    weights = sorted((name for name in tensors if name == "weight" or name.endswith(".weight")), key=place)
    layers: list[tuple[np.ndarray, np.ndarray]] = []
    for name in weights:
        weight = tensors[name]
        if weight.ndim != 2:
            raise DarkroomError(
                f"{where}: {name} has {weight.ndim} dimensions; only linear layers, which have 2, can be used"
            )
        bias = tensors.get(name.removesuffix("weight") + "bias", np.zeros(len(weight), np.float32))
        if layers and weight.shape[1] != len(layers[-1][0]):
            raise DarkroomError(
                f"{where}: {name} takes {weight.shape[1]} values, and the layer before gives {len(layers[-1][0])}"
            )
        layers.append((weight, bias))
    if not layers or len(layers[-1][0]) != 1:
        raise DarkroomError(
            f"{where}: has no linear layers that end in one number, as weight and bias; name another file"
        )
    return layers


class AestheticScorer:
    """Embeds pictures and puts the head on."""

    def __init__(self, encoder: "Encoder", layers: "list[tuple[np.ndarray, np.ndarray]]", activation: str):
        self.encoder, self.layers, self.activation = encoder, layers, activation
        self.prepare = encoder.prepare

    def score(self, subjects: list[Subject]) -> list[dict[str, Any]]:
        fitted = [self.encoder.fit(subject.images[-1]) for subject in subjects]
        inputs = [one.inputs for one in fitted if one.error is None]
        values = (self._value(vector) for vector in (self.encoder.pictures(inputs) if inputs else []))
        return [{"aesthetic_error": one.error} if one.error else {"aesthetic": next(values)} for one in fitted]

    def _value(self, vector: "np.ndarray") -> float:
        """What the head says of one vector; by itself, so that no other picture can change its last bits."""
        import torch
        from torch.nn import functional

        x = torch.from_numpy(vector)
        if len(x) != self.layers[0][0].shape[1]:
            raise DarkroomError(
                f"metrics.aesthetic.head: takes {self.layers[0][0].shape[1]} values, and {self.encoder.path} gives {len(x)}; name the"
                " model that it was trained on"
            )
        for number, (weight, bias) in enumerate(self.layers):
            if number and self.activation != "none":
                x = functional.relu(x) if self.activation == "relu" else functional.gelu(x)
            x = functional.linear(x, torch.from_numpy(weight), torch.from_numpy(bias))
        return round(float(x), 6)
