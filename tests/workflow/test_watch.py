"""The view of a run tells the truth: before it, while it works, after it was killed, where a shard failed, and at its end."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time

import psutil
import pytest
from conftest import REPOSITORY, Run, environment, opened, small_config, write_inputs
from darkroom.store.shardfile import iter_records
from darkroom.tools.watch import Watch, read_log

HEADS = ("shards", "done", "running", "failed", "waiting", "images", "of")


def watch(run, *arguments):
    return run.darkroom("watch", *arguments, config=False, check=False)


def stages(text):
    """stage -> the numbers of its line; of several views, those of the last."""
    found = {}
    for line in text.splitlines():
        if match := re.match(
            r"((?:scores/judge/)?(?:images|edited)) +(\d+) +(\d+) +(\d+) +(\d+) +(\d+) +(\d+) of (\d+) ", line
        ):
            found[match[1]] = dict(zip(HEADS, map(int, match.groups()[1:]), strict=True))
    return found


def truth(run):
    """stage -> (shard files, images in them and in scratch), from the files."""
    found = {}
    for stage in ("images", "edited", "scores/judge/images", "scores/judge/edited"):
        scratch = run.results / ".darkroom/scratch" / stage
        kept = len(list(scratch.glob("*/*/*.png")))
        kept += sum('"key"' in line for path in scratch.glob("*.jsonl") for line in path.read_text().splitlines())
        files = list((run.results / stage).glob("*/*.parquet"))
        found[stage] = len(files), kept + sum(1 for path in files for _ in iter_records(path, ["key"]))
    return found


def start(run, *arguments):
    """A run that writes what it prints to run.txt."""
    with open(run.folder / "run.txt", "w") as out:
        return subprocess.Popen(
            run.command(*arguments), start_new_session=True, env=environment(), stdout=out, stderr=subprocess.STDOUT
        )


def told(run):
    """stage -> (shards done, images) of each line on it that the run printed."""
    found = {}
    for line in (run.folder / "run.txt").read_text().splitlines():
        if match := re.match(r"([\w/]+): (\d+) of (\d+) shards, (\d+) of (\d+) images", line):
            shards, of_shards, images, of_images = map(int, match.groups()[1:])
            found.setdefault(match[1], []).append((shards, images))
            assert shards <= of_shards and images <= of_images
    return found


def wait_for(what, process, seconds=600):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.2)


def test_a_run_is_watched_before_it_while_it_works_when_killed_and_to_its_end(tmp_path):
    slow = {"steps": 20, "true_cfg": 2, "batch_size": 1}
    grouped = {"shards_per_job": 4}
    run = Run(tmp_path, small_config(edits="edits.jsonl", shards={"size": 3}, generate=slow, judge=grouped))
    write_inputs(run)
    done = watch(run, "--once")
    assert done.returncode == 1 and "error: results: no run began here yet" in done.stderr
    run.planned()
    done = watch(run, "--once", "--configfile", "config.yaml")
    planned = stages(done.stdout)
    images = {name: stage["of"] for name, stage in planned.items()}
    assert images == {"images": 12, "scores/judge/images": 12, "edited": 4, "scores/judge/edited": 4}
    for stage in planned.values():
        assert stage["waiting"] == stage["shards"] > 0
        assert stage["done"] == stage["running"] == stage["failed"] == stage["images"] == 0
    assert done.stdout.splitlines()[-1].startswith("no run at work; ")
    # Cancelled by Ctrl-C, as a terminal sends it: to the run and to its jobs, which keep the image in hand. (A shell's background
    # processes ignore it.)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start(run, "-j1")
    wait_for(lambda: list(run.results.glob(".darkroom/scratch/images/*/*/*.png")), process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(300) == 1
    text = (run.folder / "run.txt").read_text()
    assert text.count("Cancelled: the jobs finish the image in hand") == 1 and "Ctrl-C again: at once" in text
    assert not re.search("Traceback|Error|CalledProcess|KeyboardInterrupt", text)
    view = watch(run, "--once")
    kept = stages(view.stdout)["images"]
    assert kept["images"] == truth(run)["images"][1] > 0 and kept["failed"] == kept["running"] == 0
    # Killed in the middle of a shard, with images in scratch.
    process = start(run, "-j1")
    wait_for(lambda: truth(run)["images"][1] > kept["images"], process)
    working = watch(run, "--once")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert re.match(r"running for \d+:\d\d:\d\d, [01] jobs at work, .*left", working.stdout.splitlines()[-1])
    assert sum(stage["running"] for stage in stages(working.stdout).values()) <= 1
    killed = watch(run, "--once")
    found, real = stages(killed.stdout), truth(run)
    for name, stage in found.items():
        assert (stage["done"], stage["images"]) == real[name]
        assert stage["running"] == stage["failed"] == 0
        assert stage["shards"] == planned[name]["shards"] and stage["waiting"] == stage["shards"] - stage["done"]
    assert 0 < found["images"]["images"] < 12
    assert killed.stdout.splitlines()[-1].startswith("no run at work; ")
    # Watched to its end; the view ends with the run.
    run.snakemake("--unlock")
    process = start(run)
    wait_for(lambda: json.loads((run.results / ".darkroom/run.json").read_text())["pid"] == process.pid, process)
    done = watch(run, "--every", "1")
    process.wait(60)
    assert done.returncode == 0 and process.returncode == 0
    assert done.stdout.splitlines()[-1] == "complete: every shard is done and the tables are written"
    views = [stages(view) for view in done.stdout.split("\n\n") if view]
    for earlier, later in itertools.pairwise(views):
        assert all(later[name]["done"] >= earlier[name]["done"] for name in earlier)
    assert {name: stage["images"] for name, stage in views[-1].items()} == images
    assert any(stage["running"] for view in views for stage in view.values())
    assert re.search(r"^(scores/judge/)?images .* \d+\.\d\d +(\d+:\d\d:\d\d|unknown)$", done.stdout, re.M)  # images/s
    # The run itself said the same, stage by stage, and ended with the summary; its jobs are in Snakemake's log alone.
    lines = told(run)
    assert {name: stage[-1][1] for name, stage in lines.items()} == images
    assert all(sorted(stage) == stage for stage in lines.values())
    text = (run.folder / "run.txt").read_text()
    assert "12 requests, 12 images, 0 failed" in text and "jobid" not in text and "images/s" in text
    assert "3 of 13 rows rejected: " in text
    assert "Finished jobid: " in max(run.folder.glob(".snakemake/log/*.log")).read_text()


def test_a_failed_shard_is_shown_with_its_last_error(copy):
    shutil.copytree(REPOSITORY / "resources/models/shapes-judge", copy.folder / "judge")
    copy.config["judge"]["model"] = str(copy.folder / "judge")
    (copy.folder / "judge/config.json").write_text('{"model_type": "nobody knows"}')
    assert copy.planned()["score_images"] >= 2
    assert copy.snakemake("--keep-going", check=False).returncode == 1
    done = watch(copy, "--once")
    told = stages(done.stdout)
    failed = {name: stage["failed"] for name, stage in told.items()}
    assert failed["scores/judge/images"] >= 1 and failed["images"] == failed["edited"] == 0
    error = next(line for line in done.stdout.splitlines() if " failed: " in line)
    stage, shard = re.match(r"[\d:]+ scores/judge/(\w+)/(\w+) failed: ", error).groups()
    logs = copy.results.glob(f"logs/score_images/judge/{stage}/*/{shard}-*.log")
    log = max(logs, key=lambda path: path.stat().st_mtime)  # the others are of the first judge
    assert log.read_text().splitlines()[-1].removeprefix("error: ") == error.partition(" failed: ")[2] != ""


def test_a_job_that_was_killed_without_a_word_is_shown_while_the_run_goes_on(tmp_path):
    run = Run(tmp_path, small_config(shards={"size": 2}, generate={"steps": 30, "true_cfg": 2, "batch_size": 1}))
    run.write_rows("prompts.jsonl", [{"prompt": f"a red circle {n}"} for n in range(8)])
    process = start(run, "-j1", "--keep-going")
    wait_for(lambda: list(run.results.glob(".darkroom/scratch/images/*/*/*.png")), process)
    for child in psutil.Process(process.pid).children(recursive=True):
        if "make_images.py" in " ".join(child.cmdline()):
            child.kill()
    views = []
    wait_for(lambda: views.append(watch(run, "--once").stdout) or " failed: " in views[-1], process)
    assert re.search(r"^[\d:]+ images/\w+ failed: ended without a word: killed, or out of memory$", views[-1], re.M)
    assert stages(views[-1])["images"]["failed"] == 1 and stages(views[-1])["images"]["running"] <= 1
    assert views[-1].splitlines()[-1].startswith("running for ")
    events = [json.loads(line) for line in (run.results / ".darkroom/events.jsonl").read_text().splitlines()]
    failed = next(event for event in events if event["event"] == "failed")
    assert failed["rule"] == "generate_images"
    assert failed["logs"] == ["logs/generate_images/{recipe}/{shard}-{rows}.log".format(**failed["wildcards"])]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # Another run knows nothing of it.
    run.snakemake("--unlock")
    process = start(run, "-j1", "--keep-going")
    wait_for(lambda: json.loads((run.results / ".darkroom/run.json").read_text())["pid"] == process.pid, process)
    view = watch(run, "--once")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert stages(view.stdout)["images"]["failed"] == 0 and " failed: " not in view.stdout


def test_ten_thousand_shards_are_looked_at_in_no_time(tmp_path):
    run = Run(tmp_path, small_config(shards={"size": 1}))
    run.write_rows("prompts.jsonl", [{"prompt": f"a red circle {n}"} for n in range(10_000)])
    opened(run, planned=False)
    looking = Watch(opened(run))
    jobs = looking.jobs["images"]
    jobs[0].log.parent.mkdir(parents=True)
    for job in jobs[:5000]:
        job.log.write_text("10:00:00 1 requests: 1 to make, 0 carried over, 0 given, 0 failed\n")
    looking.look()
    times = []
    for _ in range(3):
        started = time.process_time()
        state = looking.look()
        times.append(time.process_time() - started)
    print(f"{len(jobs)} shards: {min(times):.2f} s of CPU for a look")
    assert state.stages[0].shards == len(jobs) > 5000
    assert min(times) < 2


@pytest.mark.parametrize("last", ["done", "error", "traceback", "cut"])
def test_a_log_tells_how_its_job_ended(tmp_path, last):
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1\ntorch.OutOfMemoryError: CUDA out of memory'
    text, state, error = {
        "done": ("12:00:30 done: 30 made, 10 carried, 0 given, 0 failed", "done", None),
        "error": ("error: no space left for x; free some", "failed", "no space left for x; free some"),
        "traceback": (trace, "failed", "torch.OutOfMemoryError: CUDA out of memory"),
        "cut": ("error: of another library, it went on\n12:00:29 20 of 30 images, 1.25 images/s, 00:", "running", None),
    }[last]
    noise = "loading\r 10%|#\r 20%|##\n" * 5000
    head = f"12:00:00 40 requests: 30 to make, 10 carried over, 0 given, 0 failed\n{noise}"
    (tmp_path / "log").write_text(f"{head}12:00:20 15 of 30 images, 1.50 images/s, 00:00:10 left\n{text}")
    log = read_log(tmp_path / "log")
    assert (log.state, log.error, log.ready) == (state, error, 10)
    assert (log.made, log.rate) == ((20, 1.25) if last == "cut" else (15, 1.5))
