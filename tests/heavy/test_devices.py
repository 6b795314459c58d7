"""Devices of one host: none is ever given to two jobs, none stays locked, and who waits says so and is not passed over."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import pytest
from darkroom.config.models import DeviceSection
from darkroom.errors import DarkroomError
from darkroom.jobs import devices
from darkroom.jobs.devices import VARIABLE, Devices, lock_folder, visible_devices

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# Takes its devices, writes down from when to when it had them, and lets go when the file `end` is there.
JOB = """
import os, sys, time
from pathlib import Path
from darkroom.config.models import DeviceSection
from darkroom.jobs.devices import Devices
from darkroom.jobs.runtime import job
folder, name, gpus = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
with job(folder / f"{name}.log"):
    devices = Devices()
    held = devices.claim(DeviceSection(device="auto", gpus=gpus), "generate")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(held) and len(held) == gpus
    (folder / f"{name}.began").write_text(f"{time.monotonic()} {os.environ['CUDA_VISIBLE_DEVICES']}")
    while not (folder / f"{name}.end").exists():
        time.sleep(0.02)
    (folder / f"{name}.ended").write_text(str(time.monotonic()))
    devices.release()
"""


@pytest.fixture(autouse=True)
def host(tmp_path, monkeypatch):
    """A host of its own, as far as locks and variables go."""
    monkeypatch.setattr(devices.tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "0,1,2,3")


class Jobs:
    """Processes that claim devices, in the order they are started."""

    def __init__(self, folder):
        self.folder, self.processes, self.killed = folder, {}, {}

    def start(self, name, gpus):
        command = [sys.executable, "-c", JOB, str(self.folder), name, str(gpus)]
        env = os.environ | {"PYTHONPATH": str(SCRIPTS)}
        self.processes[name] = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

    def log(self, name):
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def has(self, name):
        """The devices a job got, None as long as it has none."""
        path = self.folder / f"{name}.began"
        text = path.read_text() if path.exists() else ""
        return text.split()[1].split(",") if len(text.split()) == 2 else None

    def began(self, name):
        return wait_for(lambda: self.has(name), f"{name} to have its devices: {self.log(name)}")

    def waits(self, name):
        wait_for(lambda: "waiting for" in self.log(name), f"{name} to wait")

    def end(self, name):
        (self.folder / f"{name}.end").touch()

    def kill(self, name):
        self.killed[name] = time.monotonic()
        self.processes[name].kill()

    def finish(self, name):
        _, err = self.processes[name].communicate(timeout=60)
        assert self.processes[name].returncode == (-signal.SIGKILL if name in self.killed else 0), err

    def uses(self):
        """device -> (from, to, job) of every job that had it, in order."""
        uses = defaultdict(list)
        for name in self.processes:
            if self.has(name):
                start = float((self.folder / f"{name}.began").read_text().split()[0])
                end = self.killed.get(name) or float((self.folder / f"{name}.ended").read_text())
                for device in self.has(name):
                    uses[device].append((start, end, name))
        return {device: sorted(spans) for device, spans in uses.items()}


def wait_for(condition, what, seconds=60):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.02)
    return found


@pytest.fixture
def jobs(tmp_path):
    jobs = Jobs(tmp_path)
    yield jobs
    for process in jobs.processes.values():
        process.kill()
        process.wait()


def all_are_free():
    test = Devices(patience=0)
    assert list(test.claim(DeviceSection(device="auto", gpus=4), "generate")) == ["0", "1", "2", "3"]
    test.release()


def test_a_device_never_serves_two_jobs_and_none_stays_locked(jobs, monkeypatch):
    """Eight jobs for one device, four for two, on four devices; one of each kind is killed while it has them."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    wants = {f"one-{n}": 1 for n in range(8)} | {f"two-{n}": 2 for n in range(4)}
    for name, gpus in wants.items():
        jobs.start(name, gpus)
        if name == "one-3":  # every device is taken before the others ask, however late a process starts
            for n in range(4):
                jobs.began(f"one-{n}")
    for name in wants:
        wait_for(lambda name=name: jobs.has(name) or "waiting for" in jobs.log(name), f"{name} to be in the queue")
    left, kinds = set(wants), {"one", "two"}
    while left:
        wait_for(lambda: any(jobs.has(name) for name in left), f"one of {left} to have its devices")
        for name in sorted(left):
            if not jobs.has(name):
                continue
            kind = name.split("-")[0]
            if kind in kinds:
                kinds.discard(kind)
                jobs.kill(name)
            else:
                jobs.end(name)
            left.discard(name)
    for name in wants:
        jobs.finish(name)
    uses = jobs.uses()
    assert sorted(uses) == ["0", "1", "2", "3"] and sum(map(len, uses.values())) == 8 + 2 * 4
    for spans in uses.values():
        for (_, end, one), (start, _, other) in itertools.pairwise(spans):
            assert end <= start, f"{one} and {other} had the device at once"
    assert len(jobs.killed) == 2
    all_are_free()


def test_as_many_jobs_work_at_once_as_there_are_devices_and_a_killed_one_makes_room(jobs):
    for n in range(4):
        jobs.start(f"job-{n}", 1)
    assert sorted(jobs.began(f"job-{n}") for n in range(4)) == [["0"], ["1"], ["2"], ["3"]]
    jobs.start("late", 1)
    jobs.waits("late")
    for n in range(4):
        process, (device,) = jobs.processes[f"job-{n}"], jobs.has(f"job-{n}")
        assert f"{device} by generate, pid {process.pid}" in jobs.log("late")
    jobs.kill("job-2")
    assert jobs.began("late") == jobs.has("job-2")
    assert "of 0, 1, 2, 3, after waiting for" in jobs.log("late")


def test_a_job_for_two_devices_is_not_passed_over_by_later_ones_for_one(jobs, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0,1")
    for name in ("a", "b"):
        jobs.start(name, 1)
        jobs.began(name)
    for name, gpus in (("both", 2), ("later", 1)):
        jobs.start(name, gpus)
        jobs.waits(name)
    assert "jobs before this one: 1" in jobs.log("later")
    monkeypatch.setenv(VARIABLE, "7")
    jobs.start("other", 1)  # wants none of theirs
    assert jobs.began("other") == ["7"]
    jobs.end("a")
    jobs.finish("a")
    time.sleep(2.5)  # two looks of everybody: nobody may take the device that is free
    assert jobs.has("both") is None and jobs.has("later") is None
    jobs.end("b")
    assert jobs.began("both") == ["0", "1"] and jobs.has("later") is None
    jobs.kill("both")
    assert jobs.began("later") == ["0"]


def test_a_job_that_is_told_to_stop_while_it_waits_stops_at_once(jobs, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0")
    for name in ("first", "second"):
        jobs.start(name, 1)
        if name == "first":
            jobs.began(name)
    jobs.waits("second")
    jobs.processes["second"].terminate()
    _, err = jobs.processes["second"].communicate(timeout=20)
    assert jobs.processes["second"].returncode == 1 and err.startswith("error: interrupted while waiting for a GPU")


def test_the_wait_is_bounded_but_a_queue_that_moves_is_not_given_up(monkeypatch):
    monkeypatch.setenv(VARIABLE, "0")
    monkeypatch.setattr(devices, "_POLL", 0.1)
    first = Devices()
    first.claim(DeviceSection(device="cuda", gpus=1), "edit")
    with pytest.raises(DarkroomError, match=rf"no GPU came free in .* hours \(held: 0 by edit, pid {os.getpid()}\)"):
        Devices(patience=0.3).claim(DeviceSection(device="cuda", gpus=1), "generate")
    first.release()
    waited, patience = [], 3

    def one_of_many():
        own = Devices(patience)
        own.claim(DeviceSection(device="auto", gpus=1), "generate")
        waited.append(own.waited)
        time.sleep(0.8)
        own.release()

    monkeypatch.setattr(devices.os, "environ", {VARIABLE: "0"})  # threads stand for processes, with one variable
    threads = [threading.Thread(target=one_of_many) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(waited) == 6 and max(waited) > patience


@pytest.mark.parametrize(
    ("named", "seen"),
    [
        ("0,1", ["0", "1"]),
        (" 3, 1 ", ["3", "1"]),
        ("GPU-8932f937-d72c,MIG-GPU-8932f937/1/0", ["GPU-8932f937-d72c", "MIG-GPU-8932f937/1/0"]),
        ("2,-1,3", ["2"]),
        ("1,1", ["1"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_the_variable_is_read_as_cuda_reads_it_and_its_names_are_kept(monkeypatch, named, seen):
    monkeypatch.setenv(VARIABLE, named)
    assert visible_devices() == seen
    if seen:
        own = Devices()
        assert list(own.claim(DeviceSection(device="auto", gpus=len(seen)), "generate")) == seen
        assert os.environ[VARIABLE] == ",".join(seen)
        own.release()


def test_without_the_variable_the_device_files_are_counted(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(devices, "_DEV", tmp_path)
    assert visible_devices() == []
    assert Devices().claim(DeviceSection(device="auto", gpus=2), "generate") == {} and VARIABLE not in os.environ
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    own = Devices()
    assert list(own.claim(DeviceSection(device="auto", gpus=2), "generate")) == ["0", "1"]
    assert os.environ[VARIABLE] == "0,1" and os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    own.release()


def test_a_job_for_the_cpu_takes_nothing_and_sees_nothing():
    own = Devices()
    assert own.claim(DeviceSection(device="cpu", gpus=9), "generate") == {} and os.environ[VARIABLE] == ""
    assert not list(Path(os.environ["TMPDIR"]).iterdir())


def test_fewer_devices_than_asked_for_is_one_line_that_names_the_key(monkeypatch):
    with pytest.raises(
        DarkroomError, match=r"^judge\.gpus is 5, but the job sees 4 GPUs \(CUDA_VISIBLE_DEVICES=0,1,2,3\)"
    ):
        Devices().claim(DeviceSection(device="auto", gpus=5), "judge")
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(DarkroomError, match=r"^edit\.gpus is 2, but the job sees no GPU \(CUDA_VISIBLE_DEVICES=\)"):
        Devices().claim(DeviceSection(device="cuda", gpus=2), "edit")


def test_no_more_devices_are_taken_than_there_is_work():
    own = Devices()
    assert len(own.claim(DeviceSection(device="auto", gpus=4), "generate", most=2)) == 2
    own.release()


def test_locks_are_shared_within_a_slurm_job_and_not_between_two(monkeypatch):
    monkeypatch.setenv(VARIABLE, "0")
    section, held = DeviceSection(device="cuda", gpus=1), []
    for job in ("41", "42", None):
        monkeypatch.setenv("SLURM_JOB_ID", job) if job else monkeypatch.delenv("SLURM_JOB_ID")
        held.append(Devices())
        held[-1].claim(section, "generate")
        with pytest.raises(DarkroomError, match="no GPU came free"):
            Devices(patience=0).claim(section, "generate")


def test_the_lock_folder_is_the_user_s_own_and_goes_when_nothing_is_held(tmp_path):
    own = Devices()
    own.claim(DeviceSection(device="auto", gpus=1), "generate")
    (folder,) = tmp_path.iterdir()
    assert folder == lock_folder() and folder.stat().st_mode & 0o777 == 0o700 and str(os.getuid()) in folder.name
    own.release()
    assert not list(tmp_path.iterdir())
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    for _ in range(2):
        with pytest.raises(DarkroomError, match="not a folder of this user's alone"):
            Devices().claim(DeviceSection(device="auto", gpus=1), "generate")
        if folder.is_dir() and not folder.is_symlink():
            folder.rmdir()
            (tmp_path / "elsewhere").mkdir(mode=0o700)
            folder.symlink_to(tmp_path / "elsewhere")
