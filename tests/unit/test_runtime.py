"""What every job has around it: its log, one line for what is wrong, a stop in order."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def start(body, log):
    code = f"""
import sys, time
sys.path.insert(0, {str(SCRIPTS)!r})
from darkroom.errors import DarkroomError, Interrupted, OutOfMemory
from darkroom.jobs.runtime import Progress, job, say, stop_requested
from darkroom.store.scratch import Scratch
with job({str(log)!r}):
{body}
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_an_error_is_one_line_in_the_log_and_on_the_terminal(tmp_path):
    process = start("    say('begun')\n    raise DarkroomError('no such model: x')", tmp_path / "a/log")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err == "error: no such model: x\n" and out == ""
    log = (tmp_path / "a/log").read_text()
    assert "begun" in log and log.endswith("error: no such model: x\n")


def test_what_is_no_error_of_ours_keeps_its_traceback_in_the_log(tmp_path):
    process = start("    1 / 0", tmp_path / "log")
    process.communicate(timeout=30)
    assert process.returncode == 1 and "ZeroDivisionError" in (tmp_path / "log").read_text()


def test_what_libraries_say_of_each_other_is_not_in_the_log_and_what_a_user_can_act_on_is(tmp_path):
    body = """    import logging, warnings
    for name in ("torchao", "torch.utils._pytree", "diffusers.pipelines.pipeline_utils", "mine"):
        logging.getLogger(name).warning(f"warning of {name}")
        logging.getLogger(name).error(f"error of {name}")
    warnings.warn("is deprecated", FutureWarning)
    warnings.warn("look at this", UserWarning)"""
    assert start(body, tmp_path / "log").wait(timeout=30) == 0
    log = (tmp_path / "log").read_text()
    assert [line for line in log.splitlines() if line.startswith("warning of")] == ["warning of mine"]
    assert log.count("error of") == 4 and "look at this" in log and "is deprecated" not in log


def test_a_full_disk_is_one_clear_line(tmp_path):
    """/dev/full is a device on which every write fails for lack of space."""
    process = start("    open('/dev/full', 'w').write('x' * 100000)", tmp_path / "log")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.startswith("error: no space left") and "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGURG])
def test_a_signal_asks_the_job_to_stop_and_lets_it_finish_what_it_has_in_hand(tmp_path, number):
    body = "    say('ready')\n    while not stop_requested.wait(0.05):\n        pass\n    raise Interrupted('interrupted, 3 of 9 kept')"
    process = start(body, tmp_path / "log")
    until = time.monotonic() + 20
    while "ready" not in (tmp_path / "log").read_text() if (tmp_path / "log").exists() else True:
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1 and err == "error: interrupted, 3 of 9 kept\n"


@pytest.mark.parametrize(
    "body, refused",
    [
        ("raise DarkroomError('no such model: x')", True),
        ("raise Interrupted('interrupted, 3 of 9 kept')", False),
        ("raise OutOfMemory('the model does not fit')", False),
        ("raise DarkroomError('cannot start') from RuntimeError('Free memory on device is less than desired')", False),
        ("1 / 0", False),
    ],
)
def test_what_no_retry_can_cure_is_not_done_again(tmp_path, body, refused):
    start(f"    say('at work')\n    {body}", tmp_path / "shard.log").communicate(timeout=30)
    assert (tmp_path / "shard.refused").exists() == refused
    _, err = start(f"    say('at work')\n    {body}", tmp_path / "shard.log").communicate(timeout=30)
    assert ("at work" in (tmp_path / "shard.log").read_text()) != refused
    assert not refused or err == "error: not tried again: no such model: x\n"


def test_another_run_tries_again_what_an_earlier_one_gave_up(tmp_path, monkeypatch):
    for run in ("1", "2"):
        monkeypatch.setenv("DARKROOM_RUN", run)
        _, err = start("    raise DarkroomError('no such model: x')", tmp_path / "log").communicate(timeout=30)
        assert err == "error: no such model: x\n"
    _, err = start("    say('at work')", tmp_path / "log").communicate(timeout=30)
    assert err == "error: not tried again: no such model: x\n"
    monkeypatch.setenv("DARKROOM_RUN", "3")
    assert start("    say('at work')", tmp_path / "log").wait(30) == 0 and not (tmp_path / "log.refused").exists()


def test_progress_says_how_much_is_done_how_fast_and_how_long_it_will_take(tmp_path):
    body = "    progress = Progress(4, 'images')\n    progress.add(1)\n    time.sleep(0.1)\n    progress.add(1)\n    progress.add(2)"
    start(body, tmp_path / "log").communicate(timeout=30)
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 2, "more than the first and the last within ten seconds"
    assert "1 of 4 images" in lines[0] and "images/s" in lines[0] and "left" in lines[0]
    assert "4 of 4 images" in lines[-1] and "00:00:00 left" in lines[-1]


def test_scratch_holds_whole_files_only(tmp_path):
    sys.path.insert(0, str(SCRIPTS))
    from darkroom.store.scratch import Scratch

    scratch = Scratch(tmp_path)
    scratch.put("ab12", b"pixels")
    assert scratch.has("ab12") and scratch.get("ab12") == b"pixels" and not scratch.has("ab13")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["ab12.png"]
    scratch.clear(["ab12"])
    assert not scratch.has("ab12")
