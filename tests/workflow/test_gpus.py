"""Several GPUs in real runs. Names of devices without devices behind them: with `device: auto` the work is done on the CPU."""

import itertools
import json
import os
import re
import signal
import subprocess
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from conftest import Run, clear_logs, environment, made, shards, small_config
from darkroom.config.models import DeviceSection
from darkroom.jobs import devices
from darkroom.store.shardfile import iter_records
from PIL import Image

COUNTING = Path(__file__).parent / "counting"


@pytest.fixture(autouse=True)
def host(tmp_path, monkeypatch):
    """Two devices, and locks of this test's own."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(devices.tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def a_run(folder, gpus=1, size=100_000, **generate):
    """24 images and 3 edits, without a judge."""
    folder.mkdir()
    common = {"device": "auto", "gpus": gpus}
    run = Run(folder, small_config(shards={"size": size}, generate=common | generate, edit=common, edits="edits.jsonl"))
    (folder / "silent.yaml").write_text("images: []\nedited: []\n")
    run.config["judge"]["rubric"] = str(folder / "silent.yaml")
    rows = [{"id": f"p{n}", "prompt": f"a {c} {s}"} for n, (c, s) in enumerate(COLOURED)]
    rows[0]["samples"], rows[3]["width"], rows[3]["height"], rows[5]["steps"] = 4, 80, 48, 1
    run.write_rows("prompts.jsonl", rows)
    Image.new("RGB", (64, 64), (245, 215, 30)).save(folder / "square.png")
    sources = ["square.png", [{"row": "p0", "sample": 2}], "missing.png", [{"row": "p3", "sample": 0}]]
    run.write_rows(
        "edits.jsonl", [{"id": f"e{n}", "prompt": "make it blue", "images": s} for n, s in enumerate(sources)]
    )
    return run


COLOURED = [
    (c, s)
    for c in ("red", "green", "blue")
    for s in ("circle", "square", "triangle", "star", "circle", "star", "square")
]


def start(run, env):
    return subprocess.Popen(
        run.command("--cores", "1"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )


def processes(run, pattern):
    """Python processes of a run whose command line matches."""
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True).stdout.split()
    return [
        int(pid)
        for pid in found
        if Path(f"/proc/{pid}/comm").read_text().startswith("python")
        and Path(f"/proc/{pid}/cwd").resolve() == run.folder.resolve()
    ]


def scratch(run):
    return len(list(run.results.glob(".darkroom/scratch/images/*/*/*.png")))


def test_a_shard_on_two_gpus_is_byte_for_byte_that_of_one_whatever_happens_to_its_workers(tmp_path):
    """The job is told to stop, then one of its workers is killed, then it is done; no finished image is made again."""
    one = a_run(tmp_path / "one", steps=100)
    one.snakemake("--cores", "1")
    two = a_run(tmp_path / "two", gpus=2, steps=100)
    counter = two.folder / "counted.txt"
    counter.touch()
    env = environment() | {"PYTHONPATH": str(COUNTING), "DARKROOM_COUNT": str(counter)}
    lost = 0
    for stop, line in (
        (signal.SIGTERM, r"error: interrupted, (\d+) of 24 kept"),
        (
            signal.SIGKILL,
            r"error: generate: the worker on device [01] was killed by signal 9 \(.*\); (\d+) of (\d+) kept",
        ),
    ):
        before, asked = scratch(two), len(counter.read_text().split())
        process = start(two, env)
        until = time.monotonic() + 240
        while len(counter.read_text().split()) < asked + 5:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        workers = processes(two, r"darkroom\.jobs\.spread [0-9]+$")
        assert len(workers) == 2
        jobs = processes(two, r"scripts/\w+\.make_images\.py")
        os.kill(workers[1] if stop == signal.SIGKILL else jobs[0], stop)
        text, _ = process.communicate(timeout=240)
        found = re.search(line, text)
        assert process.returncode == 1 and found, text
        assert scratch(two) - before == int(found.group(1)) >= 3, text
        assert not processes(two, r"darkroom\.jobs\.spread [0-9]+$")
        lost += stop == signal.SIGKILL
    assert 6 <= scratch(two) < 24
    subprocess.run(two.command("--cores", "1"), env=env, check=True, capture_output=True, timeout=600)
    assert shards(two) == shards(one)
    told = Counter(counter.read_text().split())
    assert len(told) == 24 + 3 and sum(told.values()) <= 24 + 3 + lost
    log = next(two.results.glob("logs/generate_images/**/*.log")).read_text()
    assert re.search(r"worker 0: generate: \d+ prompts encoded", log) and re.search(r"worker 1: generate: \d+ ", log)
    assert "generate: device 0, 1 of 0, 1" in log
    edits = next(two.results.glob("logs/edit_images/**/*.log")).read_text()
    assert "missing.png" in edits or any(
        r["error"] and "missing.png" in r["error"]
        for p in two.results.glob("edited/**/*.parquet")
        for r in iter_records(p)
    )
    assert not list((tmp_path / "tmp").glob("darkroom-*"))


def test_what_one_worker_cannot_go_on_from_is_the_job_s_one_line(tmp_path):
    run = a_run(tmp_path / "run", gpus=2)
    (run.folder / "models/empty").mkdir(parents=True)
    (run.folder / "models/empty/config.json").write_text(json.dumps({"model_type": "nothing"}))
    run.config["generate"]["model"] = "./models/empty"
    done = run.snakemake("--cores", "1", check=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (
        done.returncode == 1
        and len(errors) == 1
        and re.search("generate.model: cannot load .*/models/empty:", errors[0])
    )
    run.config["generate"]["gpus"] = 3
    done = run.snakemake("--cores", "1", check=False)
    assert "error: generate.gpus is 3, but the job sees 2 GPUs (CUDA_VISIBLE_DEVICES=0,1)" in done.stderr


def test_local_jobs_get_devices_of_their_own(tmp_path):
    """Snakemake starts no more than its limit of `gpu` lets it; without a limit, or with a wrong one, the jobs wait."""
    run = a_run(tmp_path / "run", size=6)
    used = tmp_path / "used.txt"
    env = environment() | {"PYTHONPATH": str(COUNTING), "DARKROOM_USED": str(used)}

    def runs(*arguments):
        used.write_text("")
        subprocess.run(run.command("--cores", "16", *arguments), env=env, check=True, capture_output=True, timeout=600)
        spans = defaultdict(dict)
        for line in used.read_text().splitlines():
            device, job, start, end = line.split()
            first, last = spans[device].get(job, (float(start), float(end)))
            spans[device][job] = min(first, float(start)), max(last, float(end))
        assert set(spans) == {"0", "1"}
        for jobs in spans.values():
            turns = sorted(jobs.values())
            assert all(end <= start for (_, end), (start, _) in itertools.pairwise(turns))
        logs = "".join(path.read_text() for path in run.results.glob("logs/*_images/**/*.log"))
        return sum(map(len, spans.values())), logs

    number, logs = runs("--until", "generate_images", "--resources", "gpu=2")
    assert number >= 3 and "waiting for" not in logs
    for steps, limit in enumerate(([], ["--resources", "gpu=9"]), 5):
        run.config["generate"]["steps"] = steps
        clear_logs(run)
        again, logs = runs("--until", "generate_images", *limit)
        assert again == number and "waiting for 1 of the devices 0, 1: held: 0 by generate, pid" in logs
    # Other shards of the same images: all is carried over, and waits for nobody.
    run.config["shards"]["size"] = 100_000
    clear_logs(run)
    own = devices.Devices()
    own.claim(DeviceSection(device="auto", gpus=2), "generate")
    run.snakemake("--until", "generate_images")
    own.release()
    assert made(run) == 0
