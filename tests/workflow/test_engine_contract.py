"""Every engine keeps to the contract: those of the workflow, with real pipelines on the CPU, and one of an extension."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from contract.engine import EngineContract
from darkroom.engines import open_engine
from darkroom.engines.base import Engine
from test_engines import build_stable_diffusion, filled


class Diffusion(EngineContract):
    faults = ("NaN", "all-black")
    tolerance = 1  # a rounding error of 2e-6

    def spoil(self, engine: Engine, fault: str) -> None:
        value = float("nan") if fault == "NaN" else 0.0
        engine.run = lambda requests, size, sources: np.full((len(requests), size[1], size[0], 3), value, np.float32)

    def test_it_says_what_it_computes_on(self, engine: Engine) -> None:
        super().test_it_says_what_it_computes_on(engine)
        assert engine.device == "cpu" and engine.takes_cpu

    def limit_memory(self, engine: Engine, most: int) -> list[int]:
        tried, run = [], engine.run

        def limited(requests, *arguments):
            tried.append(len(requests))
            if len(requests) > most:
                raise torch.OutOfMemoryError("no")
            return run(requests, *arguments)

        engine.run = limited
        return tried


class TestFlux(Diffusion):
    def open(self, folder: Path) -> Engine:
        return open_engine(filled({"batch_size": 4}, "generate", folder), "generate")


class TestKontext(Diffusion):
    edits = True

    def open(self, folder: Path) -> Engine:
        return open_engine(filled({"batch_size": 4}, "edit", folder), "edit")


class TestAuto(Diffusion):
    """A Stable Diffusion of random weights."""

    @pytest.fixture(autouse=True, scope="class")
    def model(self, tmp_path_factory):
        type(self).folder = tmp_path_factory.mktemp("auto") / "tiny-sd"
        build_stable_diffusion(self.folder)

    def open(self, folder: Path) -> Engine:
        section = {"model": str(self.folder), "family": "auto", "batch_size": 4, "max_sequence_length": None}
        return open_engine(filled(section, "generate", folder), "generate")


@pytest.mark.usefixtures("flat_colour")
class TestFlatColour(EngineContract):
    """Of an extension: no model, no torch, no devices."""

    faults = ("black",)

    def open(self, folder: Path) -> Engine:
        return open_engine(filled({"family": "flat-colour", "batch_size": 4}, "generate", folder), "generate")

    def spoil(self, engine: Engine, fault: str) -> None:
        engine.colours = lambda requests: [(0, 0, 0)] * len(requests)

    def limit_memory(self, engine: Engine, most: int) -> list[int]:
        tried, colours = [], engine.colours

        @functools.wraps(colours)
        def limited(requests):
            tried.append(len(requests))
            if len(requests) > most:
                raise MemoryError
            return colours(requests)

        engine.colours = limited
        return tried
