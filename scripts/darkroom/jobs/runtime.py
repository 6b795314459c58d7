"""What every job needs: a log, progress, an orderly stop, and the versions it ran with."""

import contextlib
import ctypes
import errno
import importlib.metadata
import logging
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from darkroom.errors import DarkroomError

stop_requested = threading.Event()
_prefix = ""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
# What these warn of are other libraries' versions and the classes of a checkpoint: nobody who reads a job's log can act on it.
_CHATTER = (
    "diffusers.configuration_utils",
    "diffusers.loaders.peft",
    "diffusers.pipelines.pipeline_utils",
    "diffusers.quantizers.torchao.torchao_quantizer",
    "torch._library.triton",
    "torch.utils._pytree",
    "torchao",
)


@contextlib.contextmanager
def job(log: str | Path | None, threads: int = 1, online: bool = False) -> Iterator[None]:
    """Run a job's body with its output in a log; a DarkroomError becomes one line there and on stderr, and exit 1.

    SIGTERM, SIGURG and SIGINT set `stop_requested`, and the body finishes what it has in hand. Slurm sends SIGTERM when a job's
    time is up. SIGURG can be sent to a job's whole process tree before that, because every other process ignores it. A
    second SIGINT, of somebody who does not want to wait, ends the job at once.

    An error that no retry can cure is also written to the file `refusal(log)`, with the run it belongs to. A job of the
    same run that finds it is a retry, and ends at once with the same line.

    Args:
        log: the file for stdout and stderr; None leaves them as they are.
        threads: how many threads libraries that are imported later may start.
        online: whether the hub may be asked. If not, its libraries are told to stay off the network: nodes often have
            none, and models lie in folders.
    """
    if not online:
        os.environ["HF_HUB_OFFLINE"] = "1"
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    terminal = os.dup(2)
    if log:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as stream:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
    for number in (signal.SIGTERM, signal.SIGURG):
        signal.signal(number, lambda *_: stop_requested.set())
    signal.signal(signal.SIGINT, _stop_or_end)
    quiet_libraries()
    try:
        with clear_disk_errors():
            if log and (reason := _refused(log)):
                raise DarkroomError(f"not tried again: {reason}")
            yield
    except DarkroomError as error:
        line = f"error: {error}\n"
        sys.stderr.write(line)
        sys.stderr.flush()
        if log:
            os.write(terminal, line.encode("utf-8", "replace"))
            if not retryable(error) and not refusal(log).exists():
                with contextlib.suppress(OSError):  # without it the job is tried again, no more
                    refusal(log).write_text(f"{error}\nrun {_run()}\n", encoding="utf-8")
        os._exit(1)  # an engine's threads must not keep a failed job alive, nor hide the line with a traceback
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _stop_or_end(*_: object) -> None:
    if stop_requested.is_set():
        os.write(2, b"error: interrupted twice\n")
        os._exit(1)
    stop_requested.set()


def quiet_libraries() -> None:
    """Keep what nobody can act on out of this process's log: bars of progress, and warnings of libraries about each other."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.simplefilter("ignore", FutureWarning)
    for name in _CHATTER:
        logging.getLogger(name).setLevel(logging.ERROR)


def refusal(log: str | Path) -> Path:
    """The file beside a job's log that says why running the job again is pointless."""
    return Path(log).with_suffix(".refused")


def _refused(log: str | Path) -> str | None:
    """Why the job was refused earlier in this run; what another run left is removed."""
    try:
        reason, *run = refusal(log).read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ValueError):
        return None
    if run == [f"run {_run()}"]:
        return reason
    refusal(log).unlink(missing_ok=True)
    return None


def _run() -> str:
    """What tells the run of Snakemake that a job belongs to from others."""
    return os.environ.get("DARKROOM_RUN", "")


def retryable(error: DarkroomError) -> bool:
    """Whether more memory, more time or another node may help. Engines report a lack of memory in many ways."""
    cause = error.__cause__
    return error.retryable or isinstance(cause, MemoryError) or "memory" in str(cause or "").lower()


def search_first(folder: Path) -> None:
    """Have the processes that this one starts look for modules in `folder` before all others."""
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(folder) not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, inherited)])


def limit_threads(threads: int, device: str) -> None:
    """Set how many threads libraries that are imported later start: one if models run on the CPU, else `threads`.

    On the CPU results repeat exactly only with one thread. This is called on the node, where `device: auto` can be
    resolved.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(1 if device_kind(device) == "cpu" else threads)


def keep_freed_memory() -> None:
    """Have the C library keep up to a GiB of freed memory for what comes next, where it is glibc.

    By itself it gives blocks of megabytes back at once, and takes them anew for each picture: a fifth of the CPU time of judging one.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            libc.mallopt(option, 2**30)


@contextlib.contextmanager
def clear_disk_errors() -> Iterator[None]:
    """Turn a full disk into a DarkroomError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DarkroomError(
            f"no space left for {error.filename or 'the results'}; free some and run again, what is finished is kept"
        ) from error


def set_log_prefix(name: str) -> None:
    """Put a name before every line that this process logs; for a log that several processes write to."""
    global _prefix
    _prefix = f"{name}: "


def say(text: str) -> None:
    """Write one line to the job's log, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {_prefix}{text}", flush=True)


def tell(text: str, log: str | Path) -> None:
    """Print `text`, and write it to the file `log` too."""
    print(text, flush=True)
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    Path(log).write_text(text + "\n", encoding="utf-8")


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of packages; those that are not installed are left out."""
    found = {}
    for name in packages:
        for distribution in (name, f"{name}-cpu"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[distribution] = importlib.metadata.version(distribution)
    return found


def device_kind(wanted: str) -> str:
    """Resolve a `device` of the config to "cuda" or "cpu" by looking for device files, without importing torch."""
    if wanted == "auto":
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
        wanted = "cuda" if any(Path("/dev").glob("nvidia[0-9]*")) and not hidden else "cpu"
    return wanted


class Progress:
    """Logs how far a job is: done, total, rate and time left; when something is done for the first time, then at most every `every`
    seconds, and at the end."""

    def __init__(self, total: int, unit: str, every: float = 10.0):
        self.total, self.unit, self.every = total, unit, every
        self.done, self.started, self.said = 0, time.monotonic(), -math.inf

    @property
    def seconds(self) -> float:
        """Time since the work began."""
        return time.monotonic() - self.started

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.said < self.every and self.done < self.total:
            return
        self.said = now
        rate = self.done / max(now - self.started, 1e-9)
        left = time.strftime("%H:%M:%S", time.gmtime((self.total - self.done) / max(rate, 1e-9)))
        say(f"{self.done} of {self.total} {self.unit}, {rate:.2f} {self.unit}/s, {left} left")
