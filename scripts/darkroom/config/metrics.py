"""Sections of the config for the metrics that come with Darkroom: `metrics.<name>`, one model each."""

from typing import Literal

from pydantic import Field

from darkroom.config.values import Number, Section


class PHash(Section):
    bits: Literal[64, 256] = Field(
        default=64,
        description="Bits of the hash of how a picture looks (column `phash`, in hexadecimal digits): near duplicates differ in few of them.",
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
