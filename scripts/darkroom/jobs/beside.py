"""Work beside the loop of a job: in threads, for what releases the interpreter's lock (files, hashes, Pillow's codecs and filters)."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

from darkroom.errors import DarkroomError, Interrupted
from darkroom.jobs.runtime import say

Item = TypeVar("Item")
Result = TypeVar("Result")


class Beside(Generic[Result]):
    """Calls in threads of its own, while the caller goes on. Used in a `with` statement, which ends when all are done.

    An error of a call is raised where its Future is asked for its result, or at the end of the `with` statement. Where the block
    itself fails, its error is the one that is raised, unless it is `Interrupted`, and those of calls are said.

    threads: how many work at once. most: calls that are not done yet; `call` waits while there are as many. 0: each call is made
    at once, in the caller's thread, and its error raised there.
    """

    def __init__(self, threads: int, most: int):
        self.most = most
        self._pool = ThreadPoolExecutor(threads)
        self._calls: deque[Future[Result]] = deque()  # those that are not done, and some that are
        self._failed: list[BaseException] = []

    def call(self, function: Callable[..., Result], *arguments: object) -> "Future[Result]":
        if not self.most:
            done: Future[Result] = Future()
            done.set_result(function(*arguments))
            return done
        while len(self._calls) >= self.most:
            self._take_first()
        self._calls.append(self._pool.submit(function, *arguments))
        return self._calls[-1]

    def _take_first(self) -> None:
        """Wait for the first call that is left. No error is raised here: what `call` was asked for is still to be done."""
        if error := self._calls.popleft().exception():
            self._failed.append(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._calls:
            self._take_first()
        self._pool.shutdown()
        if self._failed and (error is None or isinstance(error, Interrupted)):
            raise self._failed[0]
        for failed in self._failed:
            if failed is not error:
                say(str(failed) if isinstance(failed, DarkroomError) else f"{type(failed).__name__}: {failed}")


def ahead(function: Callable[[Item], Result], items: Iterable[Item], most: int, threads: int = 1) -> Generator[Result]:
    """What `function` returns of each item, in order, while threads call it for the next ones: `most` beside the one in hand.

    0: each call is made when its result is asked for, in the caller's thread. An error of a call is raised in its place.
    """
    if not most:
        yield from map(function, items)
        return
    left = iter(items)
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            waiting.extend(pool.submit(function, item) for _, item in zip(range(most), left, strict=False))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for _, item in zip(range(1), left, strict=False))
                yield result
        finally:
            for future in waiting:
                future.cancel()
