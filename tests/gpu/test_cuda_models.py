"""The embedded models on a card: the engines keep their contract there, real lack of memory included, and the judge answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from contract.engine import EQUAL
from darkroom.engines import open_engine
from darkroom.engines.base import Engine
from darkroom.errors import OutOfMemory
from darkroom.metrics import judge, vlm
from darkroom.metrics.rubric import load_rubric
from test_engine_contract import Diffusion
from test_engines import RUBRIC, filled, pictures

DTYPES = ("float32", "bfloat16")
# How far a value (0 to 255) may be off in a batch, and the mean of all on another device: rounding, not another picture.
IN_A_BATCH = {"float32": 2, "bfloat16": 48}
ON_THE_CPU = {"float32": 1.0, "bfloat16": 12.0}


@pytest.mark.parametrize("dtype", DTYPES, scope="class")
class OnTheCard(Diffusion):
    """The contract in both dtypes. Alone and in company pictures are equal where they are made one by one."""

    @pytest.fixture(autouse=True)
    def settings(self, device: str, dtype: str) -> None:
        self.section = {"device": device, "dtype": dtype, "batch_size": 1}
        type(self).tolerance = IN_A_BATCH[dtype]

    def open(self, folder: Path) -> Engine:
        name = "edit" if self.edits else "generate"
        return open_engine(filled(self.section, name, folder), name)

    def test_it_computes_there_and_makes_the_pictures_of_the_cpu(
        self, engine: Engine, tmp_path: Path, device: str, dtype: str
    ) -> None:
        assert engine.device == device and engine.dtype == f"torch.{dtype}"
        requests = self.requests(EQUAL)[:2]
        engine.prepare(requests)
        assert next(engine.pipe.transformer.parameters()).device.type == device
        self.section = {"device": "cpu", "dtype": "float32", "batch_size": 1}
        other = self.open(tmp_path)
        other.prepare(requests)
        there, here = self.pixels(engine, requests), self.pixels(other, requests)
        assert np.mean([np.abs(there[key] - here[key]).mean() for key in there]) < ON_THE_CPU[dtype]


class TestFluxOnTheCard(OnTheCard):
    pass


class TestKontextOnTheCard(OnTheCard):
    edits = True


class Hungry(Diffusion):
    """Requests that take so much memory that the allocator's limit decides how many fit."""

    def hungry(self, folder: Path) -> tuple[Engine, list]:
        section = {"device": "cuda", "dtype": "float32", "batch_size": 8}
        engine = open_engine(filled(section, "generate", folder), "generate")
        requests = self.requests([(1024, 1024)] * 5)
        requests = [*requests, *self.requests([(1024, 1024)] * 5, seed=7)[:3]]
        for number, request in enumerate(requests):
            request.key = f"{number}"
        engine.prepare(requests)
        return engine, requests


@pytest.fixture
def limit():
    """Sets the bytes that PyTorch's allocator may have; without limit again afterwards."""
    total = torch.cuda.get_device_properties(0).total_memory

    def set_limit(most: float) -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(most / total, 1.0))

    yield set_limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def peak(action) -> int:
    """The bytes that tensors take at the most; the allocator takes more from the card, and gives it back where that runs short."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    action()
    return torch.cuda.max_memory_allocated()


@pytest.mark.needs("card")
def test_where_the_card_s_memory_runs_out_at_8_it_goes_on_with_4(tmp_path, limit, capsys):
    hungry = Hungry()
    engine, requests = hungry.hungry(tmp_path)
    eight = peak(lambda: hungry.make(engine, requests))
    # How much less still suffices depends on the card: short of memory, convolutions make do with less workspace.
    for part in range(19, 9, -1):
        limit(eight * part / 20)
        made = hungry.pixels(engine, requests)
        assert len(made) == 8
        if engine.batch_limit < 8:
            break
    assert engine.batch_limit == 4
    assert "out of memory with 8 images at once; going on with 4" in capsys.readouterr().out


@pytest.mark.needs("card")
def test_where_it_does_not_suffice_for_one_picture_the_job_ends_in_a_sentence(tmp_path, limit):
    hungry = Hungry()
    engine, requests = hungry.hungry(tmp_path)
    weights = torch.cuda.memory_allocated()
    one = peak(lambda: hungry.make(engine, requests[:1]))
    limit((weights + one) / 2)
    sentence = r"^generate: out of memory with a single image of 1024 x 1024 pixels; use a larger GPU"
    with pytest.raises(OutOfMemory, match=sentence):
        hungry.make(engine, requests)
    assert engine.batch_limit == 1


def answers(tmp_path, device, engine, dtype, **options):
    """(questions, answers) about six pictures."""
    rubric = load_rubric(REPOSITORY / RUBRIC)
    section = filled({"device": device, "dtype": dtype, "engine": engine} | options, "judge", tmp_path)
    asks = [
        judge.Ask([picture], question.ask("a red circle"), question, 1)
        for picture in pictures(6)
        for question in rubric.questions["images"]
    ]
    return asks, vlm.open_judge(section, "images", rubric).ask(asks)


def share(answer) -> float:
    return answer.probabilities["yes"] / sum(answer.probabilities.values())


def compare(asks, ours, theirs, off):
    for ask, one, other in zip(asks, ours, theirs, strict=True):
        assert one.error is None and other.error is None
        if ask.question.type == "yes_no":
            assert share(one) == pytest.approx(share(other), abs=off)
        else:
            assert ask.question.parse(one.reply)[1] is None


@pytest.mark.needs("judge")
@pytest.mark.parametrize(("dtype", "off"), [("float32", 0.01), ("bfloat16", 0.1)])
def test_the_judge_through_transformers_answers_as_on_the_cpu(tmp_path, device, dtype, off):
    asks, there = answers(tmp_path, device, "transformers", dtype)
    _, here = answers(tmp_path, "cpu", "transformers", "float32")
    compare(asks, there, here, off)
    _, again = answers(tmp_path, device, "transformers", dtype)
    assert there == again


@pytest.mark.needs("card", "judge", "vllm")
def test_the_judge_through_vllm_answers_as_through_transformers(tmp_path, device):
    options = {"engine_args": {"gpu_memory_utilization": 0.3, "enforce_eager": True}}
    asks, ours = answers(tmp_path, device, "vllm", "bfloat16", **options)
    _, theirs = answers(tmp_path, device, "transformers", "bfloat16")
    compare(asks, ours, theirs, 0.1)
