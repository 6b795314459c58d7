"""The seam between the loop that makes a shard and whatever makes a picture."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from darkroom.errors import OutOfMemory
from darkroom.jobs.runtime import say

if TYPE_CHECKING:
    from PIL.Image import Image

    from darkroom.plan.requests import Request

Made = TypeVar("Made")
Source: TypeAlias = "Image | tuple[Image, ...]"  # what an edit starts from: one picture, or several


@dataclass(frozen=True)
class Failure:
    """Why a request has no picture: one line, for the shard's record of it."""

    reason: str


class Engine(ABC):
    """Makes the pictures of requests. It sees no shards and no files; `tests/contract/engine.py` is what it has to keep to.

    name: `generate` or `edit`, the section of the config that it serves.
    device, dtype: what it computes on and in, as text for logs.
    batch_limit: the most requests that it works on at once; it may become less while it works.
    takes_cpu: it computes on the cores of its job, so that nothing is to go on beside it. Beside others the job's threads write
        their pictures and read the next sources.
    """

    name: str
    device: str = "cpu"
    dtype: str = "uint8"
    batch_limit: int = 1
    takes_cpu: bool = False

    def prepare(self, requests: Sequence["Request"]) -> None:  # noqa: B027 (nothing to do is a good answer)
        """Called once, before the first batch, with all requests that will come.

        Raises DarkroomError where the environment is broken, OutOfMemory where the model does not fit.
        """

    def work_size(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) in pixels worked at for a picture of this size; the requests of a batch share one."""
        return width, height

    def batch_key(self, request: "Request", size: tuple[int, int]) -> Hashable:
        """What the requests of one batch have in common; size: of `work_size`."""
        return size

    def prepare_source(self, source: "Image", size: tuple[int, int]) -> "Image":
        """The RGB picture that a request edits as `make` is to get it, in a batch that is worked at `size`; `source` stays as it is.

        Called in another thread while the engine makes what comes before: for what the CPU can do ahead, such as resizing. To
        prepare what is prepared changes nothing.
        """
        return source

    @abstractmethod
    def make(
        self, batch: Sequence["Request"], size: tuple[int, int], sources: "Sequence[Source] | None"
    ) -> Iterator[tuple["Request", "Image | Failure"]]:
        """Each request of a batch with its picture, or why it has none, in any order.

        batch: requests of one `batch_key`, any number of them.
        size: the (width, height) they share, of `work_size`.
        sources: the RGB picture that each request edits, prepared or not, None where there are none. For a request that starts from
            several, which are `more` of it, a tuple of them, the others prepared at their own `work_size`; only families with `joins` get such.

        A picture is RGB, of the request's own size, and depends on its request and source alone. Once it is yielded it is not
        written to, since it is encoded in another thread. Raises OutOfMemory where
        the memory does not suffice for a single picture, and DarkroomError where the environment is broken.
        """

    def in_parts(
        self, batch: Sequence["Request"], size: tuple[int, int], attempt: Callable[[slice], Made | None]
    ) -> Iterator[tuple[Sequence["Request"], Made]]:
        """A batch cut into parts of at most `batch_limit` requests, each with what `attempt` makes of it.

        attempt: called with the part's slice of the batch; it returns None where the memory did not suffice, and is called again
        with half of it, as are all that follow. Raises OutOfMemory where it did not suffice for one.
        """
        done = 0
        while done < len(batch):
            part = slice(done, min(done + self.batch_limit, len(batch)))
            number = part.stop - part.start
            made = attempt(part)
            if made is not None:
                yield batch[part], made
                done = part.stop
            elif number == 1:
                raise OutOfMemory(
                    f"{self.name}: out of memory with a single image of {size[0]} x {size[1]} pixels;"
                    " use a larger GPU, a smaller size or a smaller model"
                )
            else:
                self.batch_limit = (number + 1) // 2
                say(f"out of memory with {number} images at once; going on with {self.batch_limit}")
