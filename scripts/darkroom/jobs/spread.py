"""Make a shard's images in several processes, one for each device, with the same results as in one process.

The job starts a worker for each device (`python -m darkroom.jobs.spread`), gives each the whole task and the number of
its part, and gets a report of each batch. Finished images do not pass through here: workers put them into the scratch
folder.
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
from darkroom.jobs.runtime import clear_disk_errors, quiet_libraries, retryable, say, set_log_prefix, stop_requested

Report = tuple[int, dict[str, str]]  # requests that are done, and why those of them that failed did: key -> reason
_POLL = 0.5  # seconds between looks at whether the job is to stop


@dataclass
class _Worker:
    device: str
    process: subprocess.Popen[bytes]
    ended: bool = False  # it said that it is done, or why not


class WorkerDied(DarkroomError):
    """A worker ended without saying why; the message says which one, and how. Usually memory ran out."""

    retryable = True


def spread(function: str, task: tuple[Any, ...], name: str, held: dict[str, int]) -> Iterator[Report]:
    """Call a function in a worker on each device, and yield the Reports that it yields.

    When the first worker is ready, a report of nothing is yielded. If one worker fails, all stop after the batches in
    hand.

    Args:
        function: "module:name"; it is called with `task`, the number of its part (from 0) and the number of parts.
        task: arguments that can be pickled.
        name: of the job, for messages.
        held: device -> descriptor of its lock. The worker keeps it too, so that its device cannot be given away.

    Raises:
        DarkroomError: what a worker raised.
        WorkerDied: a worker ended without saying why.
        Interrupted: the workers were told to stop.
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
    """What a worker process does."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop_requested.set())
    quiet_libraries()
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
