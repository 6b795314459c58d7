"""A shard's images made by several processes, each on a device of its own, with the results of one.

The job starts a worker per device (`python -m darkroom.jobs.spread`), hands each the whole task and the part that is its own, and
hears of every batch that is done. Finished images do not pass through here: workers put them into the scratch folder.
"""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

from darkroom.errors import DarkroomError, Interrupted
from darkroom.jobs.devices import VARIABLE
from darkroom.jobs.runtime import clear_disk_errors, retryable, say, set_log_prefix, stop_requested

Report = tuple[int, dict[str, str]]  # requests that are done, and why those of them that failed did: key -> reason
_POLL = 0.5  # seconds between looks at whether the job is to stop


@dataclass
class _Worker:
    device: str
    process: subprocess.Popen[bytes]
    ended: bool = False  # it said that it is done, or why not


class WorkerDied(DarkroomError):
    """A worker ended without a word; the message says which, and how. Too little memory is the usual cause."""

    retryable = True


def spread(function: str, task: tuple[Any, ...], name: str, held: dict[str, int]) -> Iterator[Report]:
    """Call `function` ("module:name") with `task`, a part and the number of parts in a worker on each device; yields its Reports.

    First a report of nothing, when the first worker is ready. held: device -> lock, which the worker keeps too, so that a
    device is never given away under it. What one worker cannot go on from stops all, after the
    batches in hand: raises its DarkroomError, WorkerDied, or Interrupted where they were told to stop.
    """
    threads = str(max(1, int(os.environ.get("OMP_NUM_THREADS", "1")) // len(held)))
    workers: dict[Connection, _Worker] = {}
    try:
        for device, lock in held.items():
            ours, theirs = Pipe()
            workers[ours] = _Worker(device, _start(theirs.fileno(), lock, device, threads))
            theirs.close()
        for part, connection in enumerate(workers):
            with contextlib.suppress(OSError):  # it died already, and is found below
                connection.send((workers[connection].device, function, (*task, part, len(held))))
        yield from _listen(workers, name)
    finally:
        for connection, worker in workers.items():
            worker.process.kill()
            worker.process.wait()
            connection.close()


def _start(descriptor: int, lock: int, device: str, threads: str) -> subprocess.Popen[bytes]:
    library = str(Path(__file__).resolve().parents[2])
    path = [library, *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {VARIABLE: device, "PYTHONPATH": os.pathsep.join(path)}
    env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    # Not multiprocessing's spawn: that would run the job's script again in every worker.
    command = [sys.executable, "-P", "-m", "darkroom.jobs.spread", str(descriptor)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=env, pass_fds=(descriptor, lock))


def _listen(workers: dict[Connection, _Worker], name: str) -> Iterator[Report]:
    running = dict(workers)
    error: tuple[str, bool] | None = None  # the message, and whether another try may help
    died: str | None = None
    ready = told = interrupted = False
    while running:
        for connection in cast(list[Connection], wait(list(running), timeout=_POLL)):
            worker = running[connection]
            try:
                kind, content = connection.recv()
            except (EOFError, OSError):
                del running[connection]
                code = worker.process.wait()
                if code == -signal.SIGTERM and not worker.ended:  # before it could take notice
                    interrupted = True
                elif not worker.ended:
                    how = f"was killed by signal {-code}" if code < 0 else "failed, and the log says why"
                    how += " (too little memory, most often)" if code == -signal.SIGKILL else ""
                    died = died or f"{name}: the worker on device {worker.device} {how}"
                continue
            if kind == "report":
                if content[0] or not ready:
                    ready = True
                    yield content
                continue
            worker.ended = True
            interrupted |= kind == "interrupted"
            if kind == "error":
                error = error or content
        if (error or died or interrupted or stop_requested.is_set()) and not told:
            told = True
            say(f"{name}: the workers finish what they have in hand")
            for worker in running.values():
                worker.process.terminate()
    if error:
        failure = DarkroomError(error[0])
        failure.retryable = error[1]
        raise failure
    if died:
        raise WorkerDied(died)
    if interrupted:
        raise Interrupted("interrupted")


def _work(descriptor: int) -> None:
    """A worker's life."""
    signal.signal(signal.SIGTERM, lambda *_: stop_requested.set())
    connection = Connection(descriptor)
    os.set_inheritable(descriptor, False)
    device, function, task = connection.recv()
    set_log_prefix(f"worker {device}")
    threading.Thread(target=_end_with_the_job, args=(connection,), daemon=True).start()
    try:
        with clear_disk_errors():
            module, _, name = function.partition(":")
            for report in getattr(importlib.import_module(module), name)(*task):
                connection.send(("report", report))
    except Interrupted:
        connection.send(("interrupted", None))
    except DarkroomError as error:
        connection.send(("error", (str(error), retryable(error))))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    else:
        connection.send(("done", None))
    sys.stdout.flush()
    os._exit(0)  # an engine's threads must not keep it alive


def _end_with_the_job(connection: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        connection.recv()  # nothing more is sent: it returns when the job has died
    os._exit(1)


if __name__ == "__main__":
    _work(int(sys.argv[1]))
