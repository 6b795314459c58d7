"""The GPUs of a host, shared out among jobs: each device belongs to one job at a time, until that job ends.

Schedulers count GPUs, but on one host, or within one allocation, they do not say which job has which device. Here a
job holds a file lock for each of its devices. The kernel frees the lock when the job ends, even if it is killed.
Waiting jobs queue, so that a job that wants several devices is not overtaken again and again by jobs that want one.
"""

import contextlib
import os
import re
import stat
import tempfile
import time
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING
from urllib.parse import quote

from darkroom.errors import DarkroomError, Interrupted
from darkroom.jobs.runtime import say, stop_requested

if TYPE_CHECKING:
    from darkroom.config.models import DeviceSection

VARIABLE = "CUDA_VISIBLE_DEVICES"
PATIENCE = 24 * 3600.0  # seconds without any device changing hands after which a job gives up
_DEV = Path("/dev")
_POLL, _BUSY, _REMIND = 1.0, 0.05, 600.0  # seconds


def visible_devices() -> list[str]:
    """The devices that this process may use: those in CUDA_VISIBLE_DEVICES, or all of the host's if it is not set.

    Numbers, GPU-UUIDs and MIG names are returned unchanged. Like CUDA, it stops at the first entry of any other form.
    """
    named = os.environ.get(VARIABLE)
    if named is None:
        return [str(number) for number, _ in enumerate(_DEV.glob("nvidia[0-9]*"))]
    devices: list[str] = []
    for entry in (part.strip() for part in named.split(",")):
        if not re.fullmatch(r"\d+|(GPU|MIG)-\S+", entry):
            break
        if entry not in devices:
            devices.append(entry)
    return devices


def wanted_devices(section: "DeviceSection", name: str) -> tuple[list[str], int]:
    """(devices to choose from, how many of them to take) for a stage.

    There are none to take if the stage runs on the CPU, or if its device is `auto` and the host has none.

    Args:
        section: the stage's section of the config.
        name: the name of that section.

    Raises:
        DarkroomError: the host has fewer devices than `gpus`; the message names the key to change.
    """
    gpus = section.gpus
    if section.device == "cpu":
        return [], 0
    devices = visible_devices()
    if len(devices) >= gpus:
        return devices, gpus
    # A single GPU can be there without a device file (WSL): torch will tell.
    if not devices and (section.device == "auto" or gpus == 1):
        return [], 0
    seen = f"{VARIABLE}={os.environ[VARIABLE]}" if VARIABLE in os.environ else "by the files /dev/nvidia*"
    raise DarkroomError(
        f"{name}.gpus is {gpus}, but the job sees {len(devices) or 'no'} GPU{'s' if len(devices) > 1 else ''} ({seen});"
        f" set {name}.gpus to what there is, or give the job more"
    )


def lock_folder() -> Path:
    """The folder of this user's locks on this host. Each Slurm job has its own, since its device 0 can be any device.

    Raises:
        DarkroomError: the folder cannot be made, or belongs to another user.
    """
    scope = [str(os.getuid()), gethostname()]
    if job := os.environ.get("SLURM_JOB_ID"):
        scope += ["slurm", job]
    folder = Path(tempfile.gettempdir(), "-".join(["darkroom-devices", *scope]))
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError as error:
        raise DarkroomError(f"{folder}: {error.strerror}; set TMPDIR to another folder of this host") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise DarkroomError(
            f"{folder}: not a folder of this user's alone; remove it, or set TMPDIR to another folder of this host"
        )
    return folder


class Devices:
    """The devices of a job.

    A child process that inherits a lock's descriptor keeps the device after the job has died, until it ends too.

    Attributes:
        patience: seconds to wait without any device changing hands.
        held: device -> descriptor that holds its lock.
        waited: seconds until the job had them.
    """

    def __init__(self, patience: float = PATIENCE):
        self.patience, self.waited = patience, 0.0
        self.held: dict[str, int] = {}

    def claim(self, section: "DeviceSection", name: str, most: int | None = None) -> dict[str, int]:
        """Take the devices that a stage asks for (see `wanted_devices`), and hide the others from CUDA.

        Call it before torch or vLLM is imported. It takes all at once: while others hold too many it waits, and logs
        for whom.

        Args:
            section: the stage's section of the config.
            name: the name of that section.
            most: take no more than this many.

        Returns:
            device -> descriptor that holds its lock; empty on the CPU.

        Raises:
            DarkroomError: no device changed hands for `patience` seconds.
            Interrupted: the job was told to stop while it waited.
        """
        devices, number = wanted_devices(section, name)
        if section.device == "cpu":
            os.environ[VARIABLE] = ""  # a job inherits what whoever submitted it can see
        if not devices:
            return {}
        started = time.monotonic()
        self.held = _Queue(devices, number if most is None else min(number, most), name).wait(self.patience)
        self.waited = time.monotonic() - started
        if VARIABLE not in os.environ:  # ordinals mean the same to every job only in one order
            os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        os.environ[VARIABLE] = ",".join(self.held)
        waited = f", after waiting for {self.waited:.0f} s" if self.waited >= 1 else ""
        say(f"{name}: device {', '.join(self.held)} of {', '.join(devices)}{waited}")
        return self.held

    def release(self) -> None:
        """Free the devices and remove their files. If a process ends without this, the kernel frees the devices."""
        folder = lock_folder() if self.held else None
        guard = _lock(folder / "guard") if folder else None
        if folder and guard is not None:
            for device in self.held:
                _file(folder, device).unlink(missing_ok=True)
            (folder / "guard").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # others are there
                folder.rmdir()
            os.close(guard)
        for descriptor in self.held.values():
            os.close(descriptor)
        self.held = {}


class _Queue:
    """A job's place among those that want devices. Whoever looks at several locks holds the guard's lock meanwhile."""

    def __init__(self, devices: list[str], number: int, name: str):
        self.devices, self.number, self.owner = devices, number, f"{name}, pid {os.getpid()}"
        self.ticket: Path | None = None
        self.ticket_lock: int | None = None

    def wait(self, patience: float) -> dict[str, int]:
        moved, said = time.time(), None
        why = "the locks are in use"
        try:
            while not stop_requested.is_set():
                folder, pause = lock_folder(), _BUSY
                if (guard := _lock(folder / "guard")) is not None:
                    try:
                        before = self._before(folder)
                        if not before and (held := self._take(folder)):
                            return held
                        why, last = self._holders(folder)
                    finally:
                        os.close(guard)
                    why += f"; jobs before this one: {before}" if before else ""
                    moved, pause = max(moved, last), _POLL
                now = time.time()
                if now - moved > patience:
                    raise DarkroomError(
                        f"no GPU came free in {patience / 3600:.3g} hours ({why}); end what holds them,"
                        " or start fewer jobs at once (snakemake --resources gpu=N)"
                    )
                if pause == _POLL and (said is None or now - said > _REMIND):
                    said = now
                    say(f"waiting for {self.number} of the devices {', '.join(self.devices)}: {why}")
                stop_requested.wait(pause)
            raise Interrupted("interrupted while waiting for a GPU; run again")
        finally:
            if self.ticket and self.ticket_lock is not None:
                self.ticket.unlink(missing_ok=True)
                os.close(self.ticket_lock)

    def _before(self, folder: Path) -> int:
        """How many jobs came earlier, still wait, and want a device that this one wants; takes a ticket first."""
        if self.ticket is None:
            path = folder / f"ticket-{time.time_ns():020}-{os.getpid()}"
            self.ticket_lock = _lock(path)
            if self.ticket_lock is None:
                return 1  # cannot be, with the guard held; try again
            os.write(self.ticket_lock, "\n".join(self.devices).encode())
            self.ticket = path
        before = 0
        for path in sorted(folder.glob("ticket-*")):
            if path.name >= self.ticket.name:
                break
            wants = path.read_text().splitlines() if path.exists() else []
            if (dead := _lock(path, make=False)) is not None:
                path.unlink(missing_ok=True)
                os.close(dead)
            elif set(wants) & set(self.devices):
                before += 1
        return before

    def _take(self, folder: Path) -> dict[str, int]:
        """Take as many devices as are wanted; if fewer are free, none."""
        held: dict[str, int] = {}
        for device in self.devices:
            if (lock := _lock(_file(folder, device))) is not None:
                held[device] = lock
                if len(held) == self.number:
                    for lock in held.values():
                        os.ftruncate(lock, 0)
                        os.pwrite(lock, self.owner.encode(), 0)  # the file's time is that of the claim
                    return held
        for lock in held.values():
            os.close(lock)
        return {}

    def _holders(self, folder: Path) -> tuple[str, float]:
        """Who holds which of the devices, and the time of the last claim among them."""
        holders, last = [], 0.0
        for device in self.devices:
            path = _file(folder, device)
            if (free := _lock(path, make=False)) is not None:
                os.close(free)
            elif path.exists():
                holders.append(f"{device} by {path.read_text()}")
                last = max(last, path.stat().st_mtime)
        return "held: " + (", ".join(holders) or "none"), last


def _file(folder: Path, device: str) -> Path:
    return folder / f"device-{quote(device, safe='')}"


def _lock(path: Path, make: bool = True) -> int | None:
    """A descriptor that holds the lock of a file; None if another holds it, or if there is no such file."""
    import filelock

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if make else 0), 0o600)
    except FileNotFoundError:  # also where the last job to end has just removed the folder
        return None
    try:
        locked = filelock.lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        os.close(descriptor)
        raise DarkroomError(
            f"{path}: no lock to be had ({error.strerror}); set TMPDIR to a folder of this host"
        ) from error
    if locked and os.fstat(descriptor).st_nlink:  # a file that was removed meanwhile guards nothing
        return descriptor
    os.close(descriptor)
    return None
