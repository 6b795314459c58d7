"""What happened to the jobs of a run: `<results>/.darkroom/events.jsonl`, a JSON line for each event.

The process that starts the jobs writes it, so it also tells of a job that was killed and could not say so itself.
"""

import contextlib
import json
import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_OF_JOBS = ("job_info", "job_started", "job_finished", "group_info", "progress")
_SAID = 10_000  # different lines remembered
# The function of Snakemake that says of each output of a failed job whether there was one to put back. No event tells it.
_RESTORES = "restore_output"
_CANCELLED = b"\nCancelled: the jobs finish the image in hand and keep it; the same command goes on from there. Ctrl-C again: at once.\n"


class EventWriter(logging.Handler):
    """Writes an event for each log record that says a job was submitted, finished or failed.

    Such records carry their facts as attributes, as `snakemake_interface_logger_plugins` defines them (`LogEvent`); no
    message is read. A line holds `event` ("submitted", "finished" or "failed"), `time` (Unix), `job` (a number, which a
    second try keeps), `rule`, `wildcards` and `logs` (relative to the results folder); for a failure, `message` is what the
    executor says of it, or None.

    results: the results folder. Events of an earlier run are removed: the file is about the last run alone.

    cancelled: whether somebody pressed Ctrl-C. Jobs that end because of it did not fail.
    """

    def __init__(self, results: Path):
        super().__init__()
        self.cancelled = False
        self.results = Path(os.path.abspath(results))
        self.jobs: dict[int, dict[str, Any]] = {}
        self.stream = open(events_file(results), "w", encoding="utf-8")  # noqa: SIM115 (open as long as the run)

    def emit(self, record: logging.LogRecord) -> None:
        facts = vars(record)
        match facts.get("event"):
            case "job_info":
                self.jobs[facts["jobid"]] = self._job(facts)
                self._write("submitted", record, self.jobs[facts["jobid"]])
            case "job_finished":
                self._write("finished", record, self.jobs.pop(facts["job_id"], {"job": facts["job_id"]}))
            case "job_error" if not self.cancelled:
                job = self.jobs.get(facts["jobid"]) or self._job(facts)
                self._write("failed", record, job | {"message": facts["rule_msg"]})

    def _job(self, facts: dict[str, Any]) -> dict[str, Any]:
        logs = [os.path.relpath(log, self.results) for log in facts["log"]]
        wildcards = dict(facts.get("wildcards", {}))
        return {"job": facts["jobid"], "rule": facts["rule_name"], "wildcards": wildcards, "logs": logs}

    def _write(self, event: str, record: logging.LogRecord, facts: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a full disk stops the jobs themselves, with a clearer message
            self.stream.write(json.dumps({"event": event, "time": record.created} | facts) + "\n")
            self.stream.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.close()
        super().close()


class _Calm(logging.Filter):
    """What a screen shows of a run: what fails, warns or is asked for, but no job that goes well, and nothing twice.

    Ten thousand jobs are fifty thousand lines. Once the run is cancelled, jobs that end because of it are no news either.
    """

    def __init__(self, events: EventWriter):
        super().__init__()
        self.events = events
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        event = vars(record).get("event")
        if record.funcName == _RESTORES:
            return False
        if record.levelno >= logging.ERROR or event in ("job_error", "group_error"):
            return not self.events.cancelled and not self._repeats(record)
        if record.levelno >= logging.WARNING or event is not None:
            return event not in _OF_JOBS
        return not self._was_said(record.getMessage())

    def _repeats(self, record: logging.LogRecord) -> bool:
        """Whether an executor says of a job once more what it said of an earlier try, such as why Slurm refused it."""
        facts = vars(record)
        reason = str(facts.get("rule_msg") or "").partition("\n")[0]  # below it, what each try asked for
        return bool(reason) and self._was_said(f"{facts.get('jobid')}: {reason}")

    def _was_said(self, message: str) -> bool:
        if message in self.said:
            return True
        if len(self.said) < _SAID:
            self.said.add(message)
        return False


def watch_over(logger: logging.Logger, events: EventWriter) -> None:
    """Record the events of a run of this process, keep its screen calm, and make Ctrl-C a sentence.

    logger: the one that tells of the run. Its log files and all handlers but screens still get every record. A logger whose
    level is DEBUG stays as it is: somebody wants to see everything.
    """
    for handler in logger.handlers if logger.level > logging.DEBUG else ():
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.addFilter(_Calm(events))
    logger.addHandler(events)
    before = signal.getsignal(signal.SIGINT)

    def cancel(number: int, frame: Any) -> None:
        if not events.cancelled:
            os.write(2, _CANCELLED)  # not through the logger, which may be in the middle of a line
        events.cancelled = True
        if callable(before):
            before(number, frame)

    with contextlib.suppress(ValueError):  # in a thread, signals are somebody else's
        signal.signal(signal.SIGINT, cancel)


def events_file(results: str | Path) -> Path:
    return Path(results, ".darkroom", "events.jsonl")


@dataclass
class Failure:
    """A job that failed and was not tried again since. time: Unix; message: what the executor said, None where nothing."""

    time: float
    rule: str
    message: str | None


@dataclass
class Events:
    """The events of a run as they come in. Both dicts are by the path of a job's log, relative to the results folder.

    submitted: when the job was last handed to the executor (Unix time); failed: jobs whose last try failed.
    """

    results: Path
    submitted: dict[str, float] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)
    _place: int = 0

    def read(self) -> None:
        """Take in what was written since the last call."""
        for event in self._new():
            for log in event.get("logs", ()):
                self.failed.pop(log, None)
                if event["event"] == "submitted":
                    self.submitted[log] = event["time"]
                elif event["event"] == "failed":
                    self.failed[log] = Failure(event["time"], event["rule"], event["message"])

    def _new(self) -> Iterator[dict[str, Any]]:
        try:
            with open(events_file(self.results), "rb") as stream:
                stream.seek(self._place)
                data = stream.read()
        except OSError:
            return
        whole = data.rfind(b"\n") + 1  # a line may be on its way
        self._place += whole
        for line in data[:whole].splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(line)
