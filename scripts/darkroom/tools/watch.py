"""What a run is doing, told from the files of its results folder alone: shards done, running and failed, images/s, time left.

Works beside a run of any executor and on any host that sees the folder. It takes no lock and makes nothing. A look costs one
listing per folder, and a short read of each log that changed; what is done is not looked at again.
"""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darkroom.errors import DarkroomError
from darkroom.jobs.history import read_records, speed
from darkroom.jobs.terminal import clock, columns
from darkroom.run.events import Events, events_file
from darkroom.run.lineage import Step
from darkroom.run.workflow import Workflow
from darkroom.store.journal import read_journal
from darkroom.store.manifest import manifest_path, read_manifest
from darkroom.tools.failures import lines as failure_lines
from darkroom.tools.prune import superseded_line

QUIET = 900  # seconds without a word after which a run on another host is taken for dead
_COUNTED = 60.0  # seconds between two counts of the reasons of failures, while a run goes on
_PAUSES = 10.0, 600.0  # least and greatest time between two words on a run's progress, in seconds
_TAIL = 16_384
_START = re.compile(r"^[\d:]+ (\d+) \w+: (\d+) to \w+, \d+ carried over", re.M)
_PROGRESS = re.compile(r"^[\d:]+ (\d+) of (\d+) images, ([\d.]+) images/s", re.M)
_ERROR = re.compile(r"^(?:error: |(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b).*", re.M)
_KILLED = "ended without a word: killed, or out of memory"


@dataclass
class JobLog:
    """What the log of a job says. state: "running", "done", "stopped" (told to) or "failed"; ready: images it need not make."""

    state: str = "running"
    ready: int = 0
    made: int = 0
    rate: float | None = None
    error: str | None = None


def read_log(path: Path) -> JobLog:
    """The state that a job's log tells; "running" is also what a killed job leaves."""
    with open(path, "rb") as stream:
        head = stream.read(_TAIL)
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL))
        tail = stream.read().decode("utf-8", "replace")
    log = JobLog()
    if start := _START.search(head.decode("utf-8", "replace")):
        log.ready = int(start[1]) - int(start[2])
    for progress in _PROGRESS.finditer(tail):
        log.made, log.rate = int(progress[1]), float(progress[3])
    lines = [line for line in tail.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if re.match(r"[\d:]+ done: ", last):
        log.state = "done"
    elif last.startswith("error: interrupted"):
        log.state = "stopped"
    elif _ERROR.match(last) and (last.startswith("error: ") or "Traceback (most recent call last):" in tail):
        log.state, log.error = "failed", last.removeprefix("error: ")
    return log


@dataclass
class StageState:
    """A stage at this moment: its shards (those of a judge's job count as one), images that are there of all that are to be,
    images/s of the jobs at work, and the seconds of work left, None where no job told how fast it is."""

    name: str
    shards: int = 0
    done: int = 0
    running: int = 0
    failed: int = 0
    images: int = 0
    ready: int = 0
    rate: float | None = None
    seconds: float | None = None

    @property
    def waiting(self) -> int:
        return self.shards - self.done - self.running - self.failed


@dataclass
class State:
    """alive: whether a run works on the folder. tables: whether the final tables are there and current. failures: what
    `failures.lines` says; superseded: what `prune.superseded_line` says."""

    alive: bool
    run: dict[str, Any] | None
    stages: list[StageState]
    tables: bool
    errors: list[tuple[float, str, str]]
    failures: list[str]
    superseded: str | None = None

    @property
    def complete(self) -> bool:
        return self.tables and all(stage.done == stage.shards for stage in self.stages)

    @property
    def running(self) -> int:
        return sum(stage.running for stage in self.stages)

    @property
    def seconds_left(self) -> float | None:
        """At the present number of jobs; None where a stage that has work left told nothing of its speed yet."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(known) / max(self.running, 1) if len(known) == len(self.stages) else None


@dataclass
class _Job:
    """A shard file that is to be there: the job that makes it, and what is known of it."""

    step: Step
    name: str
    path: Path
    log: Path
    log_name: str  # relative to the results folder, as events name it
    images: int
    stale: int | None = None  # mtime of the file that is there and has to be made again
    done: bool = False
    failed: int = 0  # of its requests
    seen: tuple[int, int] | None = None  # of the log: size and mtime
    said: JobLog | None = None
    kept: int | None = None


class Watch:
    """Looks at a results folder again and again, and remembers what cannot change.

    whole: whether the reasons of failures, and what files of earlier settings hold, are told too.
    """

    def __init__(self, workflow: Workflow, whole: bool = True):
        self.workflow, self.whole = workflow, whole
        self.run: dict[str, Any] | None = read_run(workflow.results())
        self.started = self.run["started"] if self.run else 0.0
        self.jobs: dict[str, list[_Job]] = {}
        for step in workflow.lineage.steps():
            for file in workflow.lineage.files(step):
                path, images = Path(file.path), workflow.step_requests(step, file.name)
                log = workflow.job_log(step, file.path)
                job = _Job(step, file.name, path, log, str(log.relative_to(workflow.results())), images)
                if file.path in workflow.state.again and (made := _time_ns(path)) / 1e9 < self.started:
                    job.stale = made
                self.jobs.setdefault(step.name, []).append(job)
        self.events = Events(workflow.results())
        self.records = {
            stage: list(read_records(self.workflow.history_folder(jobs[0].step))) for stage, jobs in self.jobs.items()
        }
        self.first = True
        self.superseded: str | None = None
        self.failures: list[str] = []
        self.counted = 0, 0.0  # failed requests, and when their reasons were counted
        self.alive = False

    @property
    def overtaken(self) -> bool:
        """Whether another run has started since: what is planned may be something else now."""
        return read_run(self.workflow.results()) != self.run

    def look(self) -> State:
        # First, so that what a run does between this and the look at its files is not missed at its end.
        alive = is_alive(self.run, self._newest())
        self.events.read()
        errors: list[tuple[float, str, str]] = []
        stages = [self._look(name, jobs, alive, errors) for name, jobs in self.jobs.items()]
        shards = {job.log_name for jobs in self.jobs.values() for job in jobs} if self.events.failed else ()
        for log, failure in self.events.failed.items():
            if log not in shards:
                told = _error(self.workflow.results(log)) or failure.message or _KILLED
                errors.append((failure.time, failure.rule, told))
        failed = sum(job.failed for jobs in self.jobs.values() for job in jobs)
        ended = self.alive and not alive
        if self.whole and (self.first or ended or self._is_time(failed)):
            self.failures, self.counted = list(failure_lines(self.workflow)), (failed, time.monotonic())
        # A search through all folders: at the first look, and when the run has ended.
        if self.whole and (self.first or ended):
            self.superseded = superseded_line(self.workflow)
        self.first, self.alive = False, alive
        return State(
            alive, self.run, stages, self.workflow.tables.is_made(), sorted(errors), self.failures, self.superseded
        )

    def _look(self, name: str, jobs: list[_Job], alive: bool, errors: list[tuple[float, str, str]]) -> StageState:
        stage = StageState(name, len(jobs), images=sum(job.images for job in jobs))
        files = {folder: _names(folder) for folder in {job.path.parent for job in jobs}}
        logs = {folder: _names(folder) for folder in {job.log.parent for job in jobs}}
        scratch = _names(self.workflow.scratch_folder(jobs[0].step))
        rates, waiting = [], 0
        for job in jobs:
            if not job.done and manifest_path(job.path).name in files[job.path.parent] and self._is_made(job):
                manifest = read_manifest(manifest_path(job.path))
                job.done, job.failed = True, manifest["failed"] if manifest else 0
                if not self.first:
                    self.records[name] += list(read_records(self.workflow.history_folder(job.step), job.name))[-1:]
            if job.done:
                stage.done += 1
                stage.ready += job.images
                continue
            when, said = self._said(job, alive) if job.log.name in logs[job.log.parent] else (0.0, None)
            failure = self.events.failed.get(job.log_name)
            if said and said.state == "running" and alive and not failure:
                stage.running += 1
                ready = said.ready + said.made
                rates += [said.rate] if said.rate else []
            else:
                ready = self._kept(job) if scratch & {job.name, f"{job.name}.jsonl"} else 0
                if failure or (said and said.state == "failed"):
                    stage.failed += 1
                    told = (said.error if said else None) or (failure.message if failure else None)
                    errors.append((failure.time if failure else when, f"{name}/{job.name}", told or _KILLED))
            stage.ready += min(ready, job.images)
            waiting += max(job.images - ready, 0)
        stage.rate = sum(rates) if rates else None
        stage.seconds = self._seconds(name, stage, waiting, rates)
        return stage

    def _is_time(self, failed: int) -> bool:
        """Whether to count the reasons of failures again."""
        return failed != self.counted[0] and time.monotonic() - self.counted[1] > _COUNTED

    def _is_made(self, job: _Job) -> bool:
        return job.stale is None or _time_ns(job.path) > job.stale

    def _said(self, job: _Job, alive: bool) -> tuple[float, JobLog | None]:
        """When the job's log was last written, and what it says; None where it is of an earlier run, or an earlier try."""
        try:
            stat = job.log.stat()
            if alive and stat.st_mtime < max(self.started, self.events.submitted.get(job.log_name, 0.0)):
                return 0.0, None
            if job.seen != (stat.st_size, stat.st_mtime_ns):
                job.said, job.seen, job.kept = read_log(job.log), (stat.st_size, stat.st_mtime_ns), None
        except OSError:
            return 0.0, None
        return stat.st_mtime, job.said

    def _kept(self, job: _Job) -> int:
        """Images (or scores) of an unfinished shard that wait in scratch for the next job."""
        if job.kept is None:
            folder = self.workflow.scratch_folder(job.step)
            if job.step.metric is not None:
                job.kept = len(read_journal(self.workflow.journal(job.step, job.name)))
            else:
                parts = (folder / job.name / part for part in _names(folder / job.name))
                job.kept = sum(name.endswith(".png") for part in parts for name in _names(part))
        return job.kept

    def _seconds(self, name: str, stage: StageState, images: int, rates: list[float]) -> float | None:
        """Seconds of work left in a stage, of one job after another."""
        if stage.done == stage.shards:
            return 0.0
        if pace := speed(self.records[name]):
            return (stage.shards - stage.done - stage.running) * pace[0] + images * pace[1]
        return images * len(rates) / sum(rates) if rates else None

    def _newest(self) -> float:
        """When the run last said something, as far as can be told cheaply."""
        paths = [events_file(self.workflow.results())]
        paths += [job.log for jobs in self.jobs.values() for job in jobs if job.said and job.said.state == "running"]
        return max(map(_time, paths), default=0.0)


def _time_ns(path: Path) -> int:
    """When a file was last written, 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def read_run(results: Path) -> dict[str, Any] | None:
    """What the last run said of itself when it began (`Workflow.claim`), or None."""
    try:
        run = json.loads((results / ".darkroom" / "run.json").read_bytes())
    except (OSError, ValueError):
        return None
    return run if isinstance(run, dict) and {"host", "pid", "born", "started", "folder", "config"} <= set(run) else None


def is_alive(run: dict[str, Any] | None, newest: float) -> bool:
    """Whether the process of a run lives; of one on another host, whether it said something lately (newest: when)."""
    import psutil

    if run is None:
        return False
    if run["host"] != socket.gethostname():
        return time.time() - max(newest, run["started"]) < QUIET
    try:
        process = psutil.Process(run["pid"])
        return process.create_time() == run["born"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def table(state: State) -> str:
    """The state as text for a terminal."""
    heads = ("stage", "shards", "done", "running", "failed", "waiting", "images", "images/s", "time left")
    rows: list[tuple[str, ...]] = [heads]
    for stage in state.stages:
        rate = f"{stage.rate:.2f}" if stage.rate else "-"
        left = "unknown" if stage.seconds is None else clock(stage.seconds / max(state.running, 1))
        counts = stage.shards, stage.done, stage.running, stage.failed, stage.waiting
        rows.append((stage.name, *map(str, counts), f"{stage.ready} of {stage.images}", rate, left))
    lines = [columns(rows)]
    for when, job, error in state.errors[-3:]:
        lines.append(f"{time.strftime('%H:%M:%S', time.localtime(when))} {job} failed: {error}")
    lines += [f"{line}; `darkroom failures` lists them" for line in state.failures]
    if state.superseded:
        lines.append(state.superseded)
    lines.append(headline(state))
    return "\n".join(lines)


def headline(state: State) -> str:
    """One line: what the run does, or how it ended."""
    if state.complete and not state.alive:
        return "complete: every shard is done and the tables are written"
    if not state.alive or state.run is None:
        left = sum(stage.shards - stage.done for stage in state.stages)
        told = f"{left} shards left" if left else "the tables are not written"
        return f"no run at work; {told}" + (f", {len(state.errors)} failed" if state.errors else "")
    since = clock(time.time() - state.run["started"])
    if all(stage.done == stage.shards for stage in state.stages):
        return f"running for {since}; every shard is done, " + ("tables written" if state.tables else "tables are next")
    rest = "time left unknown" if state.seconds_left is None else f"about {clock(state.seconds_left)} left"
    return f"running for {since}, {state.running} jobs at work, {rest}"


class Teller(threading.Thread):
    """Says how far the run of this process is: a line for each stage that got further, now and then and at the end.

    The first word comes after ten seconds, further ones more and more rarely: nobody reads one a minute of a run of two days.

    Args:
        workflow: the run.
        say: takes a line; called from a thread of its own.
    """

    def __init__(self, workflow: Workflow, say: Callable[[str], None]):
        super().__init__(name="progress", daemon=True)  # a run that is cancelled does not wait for it
        self._workflow, self._say, self._ended = workflow, say, threading.Event()
        self._told: dict[str, tuple[int, int, int, bool]] = {}
        self._began: dict[
            str, tuple[float, int]
        ] = {}  # stage -> when its first job was seen, and images that were there

    def run(self) -> None:
        started, pause, ended = time.monotonic(), 0.0, False
        try:
            watch = Watch(self._workflow, whole=False)
            while not ended:
                ended = self._ended.wait(pause)
                began = time.monotonic()
                self._tell(watch.look(), began)
                now = time.monotonic()
                least, greatest = _PAUSES
                pause = min(max(least, (now - started) / 20, 50 * (now - began)), greatest)
        except (OSError, DarkroomError) as error:
            self._say(f"progress cannot be told: {error}")

    def end(self) -> None:
        """Say what there is to say, and stop."""
        self._ended.set()
        if self.is_alive():
            self.join()

    def _tell(self, state: State, now: float) -> None:
        for stage in state.stages:
            at = stage.done, stage.ready, stage.failed, stage.running > 0
            before = self._told.setdefault(stage.name, (stage.done, stage.ready, 0, False))
            if at == before:
                continue
            self._told[stage.name] = at
            since, images = self._began.setdefault(stage.name, (now, before[1]))
            self._say(_progress(stage, state.running, (stage.ready - images) / max(now - since, _PAUSES[0] / 2)))


def _progress(stage: StageState, running: int, measured: float) -> str:
    """How far a stage is, in a line. running: jobs of all stages; measured: images/s of this run so far."""
    told = [f"{stage.done:,} of {stage.shards:,} shards", f"{stage.ready:,} of {stage.images:,} images"]
    if stage.failed:
        told.append(f"{stage.failed:,} shards failed")
    if rate := stage.rate or measured:
        told.append(f"{rate:.2f} images/s")
    if stage.done < stage.shards and stage.seconds is not None:
        told.append(f"{clock(stage.seconds / max(running, 1))} left")
    return f"{stage.name}: {', '.join(told)}"


def _names(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(folder)}
    except OSError:
        return set()


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _error(log: Path) -> str | None:
    try:
        return read_log(log).error
    except OSError:
        return None


def open_last_run(results: Path) -> Workflow:
    """The run that last began on a results folder. Raises DarkroomError where there is none, or nothing is planned."""
    run = read_run(results)
    if run is None:
        raise DarkroomError(f"{results}: no run began here yet; start one, or name its --configfile")
    config = run["config"] | {"results": str(results)}
    return Workflow.open(config, planned=True, unpinned=True, folder=run["folder"])
