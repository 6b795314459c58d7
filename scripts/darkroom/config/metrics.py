"""Sections of the config for the metrics that come with Darkroom: `metrics.<name>`, one model each."""

from typing import Literal

from pydantic import Field

from darkroom.config.values import Section


class PHash(Section):
    bits: Literal[64, 256] = Field(
        default=64,
        description="Bits of the hash of how a picture looks (column `phash`, in hexadecimal digits): near duplicates differ in few of them.",
    )
