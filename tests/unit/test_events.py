"""What a run's screen shows and what its record holds, told from Snakemake's log records alone."""

import io
import json
import logging
import signal

import pytest
from darkroom.run.events import EventWriter, events_file, watch_over

JOB = {"event": "job_info", "jobid": 7, "rule_name": "generate_images", "wildcards": {"shard": "a"}, "log": []}
ERROR = {"event": "job_error", "jobid": 7, "rule_name": "generate_images", "rule_msg": "sbatch failed", "log": []}


@pytest.fixture
def told(tmp_path, monkeypatch):
    """A logger with a screen and a log file that is watched over, the two as text, and its events."""
    (tmp_path / ".darkroom").mkdir()
    logger, screen, file = logging.Logger("run", logging.INFO), io.StringIO(), tmp_path / "run.log"
    logger.addHandler(logging.StreamHandler(screen))
    logger.addHandler(logging.FileHandler(file))
    before = signal.signal(signal.SIGINT, lambda *_: None)
    events = EventWriter(tmp_path)
    watch_over(logger, events)
    yield logger, screen, file, events
    signal.signal(signal.SIGINT, before)


def test_the_screen_passes_over_jobs_that_go_well_and_the_log_does_not(told):
    logger, screen, file, events = told
    logger.info("Job stats", extra={"event": "run_info"})
    logger.info("rule generate_images", extra=JOB)
    for _ in range(3):
        logger.info("Select jobs to execute...")
    logger.info("Finished jobid: 7", extra={"event": "job_finished", "job_id": 7})
    logger.warning("no account")
    logger.error("Error in rule", extra=ERROR)
    assert screen.getvalue().splitlines() == ["Job stats", "Select jobs to execute...", "no account", "Error in rule"]
    assert len(file.read_text().splitlines()) == 8
    written = [json.loads(line) for line in events_file(events.results).read_text().splitlines()]
    assert [event["event"] for event in written] == ["submitted", "finished", "failed"]


def test_jobs_that_end_because_of_ctrl_c_did_not_fail(told, capfd):
    logger, screen, _, events = told
    logger.info("rule generate_images", extra=JOB)
    for _ in range(2):
        signal.raise_signal(signal.SIGINT)
    logger.error("Error in rule", extra=ERROR)
    logger.info("the end")
    assert screen.getvalue().splitlines() == ["the end"]
    assert capfd.readouterr().err.count("Cancelled: ") == 1
    assert "failed" not in events_file(events.results).read_text()


def test_why_a_job_was_refused_is_said_once_however_often_it_is_tried(told):
    logger, screen, file, events = told
    for memory in (1000, 1500, 2250):
        refused = (
            f"SLURM sbatch failed. The error message was 'invalid partition'.\\n    sbatch call:\\n --mem {memory}"
        )
        logger.error("Error in rule", extra=ERROR | {"rule_msg": refused.replace("\\n", "\n")})
    logger.error("Error in another", extra=ERROR | {"jobid": 8, "rule_msg": "SLURM sbatch failed."})
    for _ in range(2):
        logger.error("Error in a job that ran", extra=ERROR | {"rule_msg": None})
    assert screen.getvalue().splitlines() == ["Error in rule", "Error in another", *["Error in a job that ran"] * 2]
    assert file.read_text().count("Error in rule") == 3
    assert events_file(events.results).read_text().count("failed. The error") == 3


def test_a_verbose_run_shows_everything(tmp_path):
    (tmp_path / ".darkroom").mkdir()
    logger, screen = logging.Logger("run", logging.DEBUG), io.StringIO()
    logger.addHandler(logging.StreamHandler(screen))
    before = signal.getsignal(signal.SIGINT)
    watch_over(logger, EventWriter(tmp_path))
    signal.signal(signal.SIGINT, before)
    logger.info("rule generate_images", extra=JOB)
    assert screen.getvalue() == "rule generate_images\n"
