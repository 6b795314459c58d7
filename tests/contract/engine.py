"""What every engine keeps to. The test of an engine is a subclass of `EngineContract` that opens it and can make it fail."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from darkroom.engines.base import Engine, Failure
from darkroom.errors import OutOfMemory
from darkroom.plan.requests import Request
from PIL import Image

COLOURS = ("red", "green", "blue", "purple", "orange")
SIZES = [(64, 64), (80, 48), (70, 50), (33, 65), (17, 16)]  # the last three are off any grid
EQUAL = [(64, 64)] * 5


class EngineContract:
    """edits: the engine edits images. faults: what it can return that is no picture, for `spoil`.

    tolerance: how far a value (0 to 255) may be off where the engine works on several at once.
    """

    edits: ClassVar[bool] = False
    faults: ClassVar[tuple[str, ...]]
    tolerance: ClassVar[int] = 0

    def open(self, folder: Path) -> Engine:
        """The engine, not prepared."""
        raise NotImplementedError

    def spoil(self, engine: Engine, fault: str) -> None:
        """Have the engine return what is no picture from now on."""
        raise NotImplementedError

    def limit_memory(self, engine: Engine, most: int) -> list[int]:
        """Let memory run out above `most` requests at once; returns the list that the numbers tried are added to."""
        raise NotImplementedError

    @pytest.fixture
    def engine(self, tmp_path: Path) -> Engine:
        return self.open(tmp_path)

    def requests(self, sizes: list[tuple[int, int]], **changes: Any) -> list[Request]:
        """A request of each size, with a prompt, a seed and a source of its own."""
        made = []
        for number, ((width, height), colour) in enumerate(zip(sizes, COLOURS, strict=True)):
            request = Request(
                row=f"r{number}",
                item=0,
                sample=0,
                prompt=f"make it {colour}" if self.edits else f"a {colour} circle",
                negative_prompt=None,
                seed=100 + number,
                width=width,
                height=height,
                steps=2,
                guidance=2.5,
                true_cfg=1.0,
                source={"path": f"{number}.png"} if self.edits else None,
                given=None,
                user_row={},
                key=f"key {number}",
            )
            made.append(dataclasses.replace(request, **changes))
        return made

    def source(self, request: Request) -> Image.Image:
        return Image.linear_gradient("L").resize((request.width, request.height)).convert("RGB")

    def make(self, engine: Engine, requests: list[Request]) -> dict[str, Any]:
        """key -> what is made, of requests that the engine is prepared for, in batches as a job has them."""
        batches: dict[Any, list[Request]] = {}
        for request in requests:
            size = engine.work_size(request.width, request.height)
            batches.setdefault((size, engine.batch_key(request, size)), []).append(request)
        made: dict[str, Any] = {}
        for (size, _), batch in batches.items():
            sources = [self.source(request) for request in batch] if self.edits else None
            for place in range(1, len(sources or ()), 2):  # prepared or not, a source gives the same picture
                assert sources is not None
                prepared = engine.prepare_source(sources[place], size)
                assert sources[place].tobytes() == self.source(batch[place]).tobytes()
                sources[place] = prepared
            before = [picture.tobytes() for picture in sources or ()]
            for request, result in engine.make(batch, size, sources):
                assert request.key not in made
                made[request.key] = result
            assert [picture.tobytes() for picture in sources or ()] == before
        assert set(made) == {request.key for request in requests}
        return made

    def pixels(self, engine: Engine, requests: list[Request]) -> dict[str, np.ndarray]:
        made = self.make(engine, requests)
        assert not [result for result in made.values() if isinstance(result, Failure)]
        return {key: np.asarray(picture, int) for key, picture in made.items()}

    def test_it_says_what_it_computes_on(self, engine: Engine) -> None:
        assert isinstance(engine.device, str) and isinstance(engine.dtype, str) and engine.batch_limit >= 1

    def test_a_picture_is_of_its_request_s_own_size(self, engine: Engine) -> None:
        requests = self.requests(SIZES)
        engine.prepare(requests)
        for request, picture in zip(requests, self.make(engine, requests).values(), strict=True):
            assert picture.mode == "RGB" and picture.size == (request.width, request.height)

    def test_a_picture_is_the_same_alone_in_company_and_in_any_order(self, engine: Engine) -> None:
        requests = self.requests(EQUAL)
        engine.prepare(requests)
        alone: dict[str, np.ndarray] = {}
        for request in requests:
            alone |= self.pixels(engine, [request])
        assert len({one.tobytes() for one in alone.values()}) == len(requests)
        for company in (requests, requests[::-1], requests[2:4]):
            for key, picture in self.pixels(engine, company).items():
                assert (picture == alone[key]).all()
        engine.batch_limit = 4  # on the CPU it may be less for exactness alone
        for key, picture in self.pixels(engine, requests).items():
            assert np.abs(picture - alone[key]).max() <= self.tolerance

    def test_the_seed_decides_and_nothing_that_was_made_before(self, engine: Engine) -> None:
        first, again, other = self.requests(EQUAL)[:3]
        again = dataclasses.replace(first, key="again", row="another row")
        other = dataclasses.replace(first, key="other", seed=first.seed + 1)
        engine.prepare([first, other, again])
        made = {key: value for one in (first, other, again) for key, value in self.pixels(engine, [one]).items()}
        assert (made["again"] == made[first.key]).all()
        assert (made["other"] != made[first.key]).any()

    def test_an_engine_opened_anew_makes_the_same(self, engine: Engine, tmp_path: Path) -> None:
        requests = self.requests(SIZES)
        engine.prepare(requests)
        made = self.pixels(engine, requests)
        other = self.open(tmp_path)
        other.prepare(requests[1:3])  # a job's share of them
        for key, picture in self.pixels(other, requests[1:3]).items():
            assert (picture == made[key]).all()

    def test_what_is_no_picture_is_a_reason_in_one_line(self, engine: Engine) -> None:
        requests = self.requests(EQUAL)
        engine.prepare(requests)
        good = self.pixels(engine, requests[:1])
        for fault in self.faults:
            self.spoil(engine, fault)
            for result in self.make(engine, requests).values():
                assert isinstance(result, Failure) and fault.lower() in result.reason.lower()
                assert "\n" not in result.reason
        assert self.faults and good

    def test_where_memory_runs_out_it_works_on_half_as_many(self, engine: Engine) -> None:
        requests = self.requests(EQUAL)
        engine.prepare(requests)
        engine.batch_limit = 4
        tried = self.limit_memory(engine, 2)
        assert len(self.pixels(engine, requests)) == 5
        assert tried == [4, 2, 2, 1] and engine.batch_limit == 2
        self.pixels(engine, requests[:4])
        assert tried[4:] == [2, 2]

    def test_where_memory_does_not_suffice_for_one_the_job_stops(self, engine: Engine) -> None:
        requests = self.requests(EQUAL)
        engine.prepare(requests)
        engine.batch_limit = 4
        tried = self.limit_memory(engine, 0)
        with pytest.raises(OutOfMemory, match=f"^{engine.name}: out of memory with a single image of "):
            self.make(engine, requests)
        assert tried == [4, 2, 1]
