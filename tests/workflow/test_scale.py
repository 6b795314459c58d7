"""Properties of whole runs: what a changed row costs, what a killed run loses, and what decides the pixels.

Sizes are those of continuous integration; with DARKROOM_TEST_ALL=1 (`make test-all`) they are the full ones.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import (
    FLUX,
    REPOSITORY,
    Run,
    environment,
    image_files,
    made,
    planned_shards,
    shards,
    small_config,
    write_inputs,
)
from darkroom.jobs.history import read_records
from darkroom.store.shardfile import iter_records

ALL = bool(os.environ.get("DARKROOM_TEST_ALL"))
COUNTING = Path(__file__).parent / "counting"
QUICK = {"steps": 1, "width": 64, "height": 64}
SEED = os.environ.get("DARKROOM_TEST_SEED", str(time.time_ns() // 10**9))
DICE = random.Random(SEED)


@pytest.fixture(autouse=True)
def said_seed():
    print(f"to repeat: DARKROOM_TEST_SEED={SEED}")


def rows(number):
    """Rows that differ; every other one has no id and is known by its content."""
    colours, shapes = ("red", "green", "blue", "orange"), ("circle", "square", "triangle", "star")
    table = [{"prompt": f"a {colours[n % 4]} {shapes[n // 4 % 4]}", "note": n} for n in range(number)]
    return [row | ({"id": f"row-{n}"} if n % 2 else {}) for n, row in enumerate(table)]


def no_questions(run):
    """A rubric that asks nothing, for runs that are about images."""
    (run.folder / "silent.yaml").write_text("images: []\nedited: []\n")
    run.config["judge"]["rubric"] = str(run.folder / "silent.yaml")


def pixels(run):
    """key -> SHA-256 of the image, of every shard."""
    return {
        record["key"]: record["sha256"] for path in image_files(run) for record in iter_records(path, ["key", "sha256"])
    }


# --------------------------------------------------------------------------------------- one row, two shards


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    number, size = (2000, 100) if ALL else (72, 12)
    run = Run(tmp_path_factory.mktemp("many"), small_config(shards={"size": size}, generate=QUICK))
    no_questions(run)
    run.write_rows("prompts.jsonl", rows(number))
    run.snakemake()
    assert len(image_files(run)) > 4
    return run, rows(number), size


def changed(name, before, dice):
    """The rows after a change, and the number of keys that are new."""
    after, at = list(before), dice.randrange(len(before) - 1)
    fresh = [{"prompt": "two green stars", "note": dice.random()} for _ in range(30)]
    if name == "insert":
        after.insert(at, fresh[0])
    elif name == "edit":
        after[at] = after[at] | {"prompt": "three blue circles"}
    elif name == "delete":
        del after[at]
    elif name == "duplicate":
        after.insert(at + 1, after[at] | ({"id": f"copy-{dice.random()}"} if "id" in after[at] else {}))
    elif name == "swap":
        after[at], after[at + 1] = after[at + 1], after[at]
    elif name == "append":
        after += fresh
    return after, {"delete": 0, "swap": 0, "append": 30}.get(name, 1)


CHANGES = ("insert", "edit", "delete", "duplicate", "swap", "append")
TRIED = CHANGES if ALL else (*DICE.sample(CHANGES[:5], 3), "append")


# By number: the processes of pytest-xdist must collect the same tests, and each draws from a clock of its own.
@pytest.mark.parametrize("turn", range(len(TRIED)))
def test_one_changed_row_costs_two_shards_and_its_own_images(many, turn):
    run, before, size = many
    name = TRIED[turn]
    print("change:", name)
    after, new = changed(name, before, DICE)
    run.write_rows("prompts.jsonl", after)
    done = {stage: len(list(read_records(run.results / f"benchmarks/{stage}"))) for stage in STAGES}
    count = sum(record["made"] for record in read_records(run.results / "benchmarks/generate_images"))
    run.snakemake()
    tail = 2 + 30 * 3 // size if name == "append" else 2
    for stage in STAGES:
        assert len(list(read_records(run.results / f"benchmarks/{stage}"))) - done[stage] <= tail
    assert sum(r["made"] for r in read_records(run.results / "benchmarks/generate_images")) - count == new
    assert len(after) == sum(1 for path in image_files(run) for _ in iter_records(path, ["key"]))
    before[:] = after


STAGES = ("generate_images", "score_images/judge/images")


# ------------------------------------------------------------------------------------ what decides the pixels


def test_pixels_depend_on_neither_shards_nor_batches_nor_order_nor_jobs(tmp_path):
    number = 200 if ALL else 30
    ways = [(16, 1, "-j1", False), (64, 8, "-j2", True)]
    ways += [(16, 8, "-j2", False), (64, 1, "-j1", True)] if ALL else []
    found = []
    for place, (size, batch, jobs, reverse) in enumerate(ways):
        config = small_config(shards={"size": size}, generate=QUICK | {"batch_size": batch, "steps": 2})
        run = Run(tmp_path / str(place), config)
        run.folder.mkdir()
        no_questions(run)
        run.write_rows("prompts.jsonl", rows(number)[:: -1 if reverse else 1])
        run.snakemake(jobs)
        found.append(pixels(run))
    assert len(found[0]) == number
    assert all(other == found[0] for other in found[1:])


# ------------------------------------------------------------------------------------------ killed, and full disks


def counted(run):
    """The environment that counts what engines are told to make, and the counter's file."""
    path = run.folder / "counted.txt"
    path.touch()
    return environment() | {"PYTHONPATH": str(COUNTING), "DARKROOM_COUNT": str(path)}, path


def test_killed_at_random_moments_the_result_is_the_same(finished, tmp_path):
    """And no image is made twice but for the one in hand when the run was killed."""
    run = Run(tmp_path, json.loads(json.dumps(finished.config)))
    write_inputs(run)
    env, counter = counted(run)
    kills = 0
    for _ in range(20 if ALL else 3):
        process = subprocess.Popen(
            run.command(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
        )
        wait = DICE.uniform(5, 45)
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        print(f"killed after {wait:.1f} s")
        run.snakemake("--unlock", check=False)
    subprocess.run(run.command(), env=env, check=True, capture_output=True, timeout=900)
    assert planned_shards(run) == shards(run) == shards(finished)  # and nothing else lies there
    assert not list(run.results.glob(".darkroom/scratch/**/*.png"))
    assert kills
    told = Counter(counter.read_text().split())
    total = len(told)
    assert total == 12 + 3  # every image that can be made
    # Two jobs run at once, and on the CPU a batch is one image.
    assert sum(told.values()) <= total + 2 * kills


def test_what_a_killed_job_had_made_is_not_made_again_where_its_rows_moved(tmp_path):
    """The rows of a shard that was half made are found in other shards by the next run: with their images, and their scores."""
    run = Run(tmp_path, small_config(shards={"size": 100_000}, generate=QUICK | {"steps": 8}))
    no_questions(run)
    table = [{"id": f"row-{n}", "prompt": f"a red circle number {n}"} for n in range(60)]
    run.write_rows("prompts.jsonl", table)
    env, counter = counted(run)
    process = subprocess.Popen(
        run.command(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
    )
    until = time.monotonic() + 240
    while len(list(run.results.glob(".darkroom/scratch/images/*/*/*.png"))) < 8:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run.snakemake("--unlock", check=False)
    kept = len(list(run.results.glob(".darkroom/scratch/images/*/*/*.png")))
    assert len({path.parts[-3] for path in run.results.glob(".darkroom/scratch/images/*/*/*.png")}) == 1
    # Other shards, in another order, and the one that was half made begins with another row: it is done first.
    run.config["shards"] = {"size": 8}
    run.write_rows("prompts.jsonl", table[::-1])
    before = len(counter.read_text().split())
    subprocess.run(run.command("--until", "generate_images"), env=env, check=True, capture_output=True, timeout=600)
    assert len(image_files(run)) > 3
    told = counter.read_text().split()
    assert len(set(told)) == 60 and len(told) - before == 60 - kept


def test_a_full_disk_stops_with_a_clear_line_and_loses_nothing(tmp_path):
    run = Run(tmp_path, small_config(shards={"size": 100_000}, generate=QUICK))
    no_questions(run)
    run.write_rows("prompts.jsonl", rows(30))
    run.results.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(run.results)], check=True)
    try:
        env, counter = counted(run)
        run.snakemake("--until", "shard_prompts")
        free = os.statvfs(run.results)
        (run.results / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - 16 * 4096))
        done = subprocess.run(run.command(), env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1
        assert re.search(r"error: no space left .*; free some and run again, what is finished is kept", done.stderr)
        first = len(counter.read_text().split())
        assert 0 < first < 30
        (run.results / "ballast").unlink()
        subprocess.run(run.command(), env=env, capture_output=True, check=True, timeout=300)
        told = Counter(counter.read_text().split())
        assert len(told) == 30
        assert sum(told.values()) <= 30 + 1  # the one that found no room
    finally:
        subprocess.run(["umount", str(run.results)], check=True)


# -------------------------------------------------------------------------------------------------- memory

MEASURE = """
import json, resource, sys
from pathlib import Path
from darkroom.config.models import Generate
from darkroom.engines.work import ShardJob
from darkroom.make import make_shard
from darkroom.plan.requests import expand
from darkroom.plan.recipe import image_recipe
from darkroom.store.scratch import Scratch
folder, number, section = Path(sys.argv[1]), int(sys.argv[2]), Generate(**json.loads(sys.argv[3]))
rows = [{"id": f"r{n}", "options": {"seed": n}, "row": {}, "items": [{"prompt": "a red circle"}]} for n in range(number)]
requests = [request for row in rows for request in expand(row, section, 0, 1)]
stage = ShardJob("generate", section, image_recipe(section), "d", folder, "generate_images", Scratch(folder / "scratch"))
counts = make_shard(requests, folder / "shard.parquet", stage, [], [])
assert counts["made"] == number
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_shard(tmp_path):
    section = QUICK | {
        "model": str(FLUX),
        "family": "flux",
        "true_cfg": 1.0,
        "device": "cpu",
        "guidance": 1.0,
        "batch_size": 1,
        "max_sequence_length": 20,
    }
    peaks = []
    for number in (200, 2000) if ALL else (50, 500):
        folder = tmp_path / str(number)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(folder), str(number), json.dumps(section)],
            env=environment() | {"PYTHONPATH": str(REPOSITORY / "scripts")},
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout.splitlines()[-1]))
    print(f"peak memory: {peaks[0] // 1024} and {peaks[1] // 1024} MB for ten times the requests")
    assert peaks[1] <= 1.15 * peaks[0]


def test_a_run_that_is_told_to_stop_keeps_what_it_has(tmp_path):
    """SIGTERM, as Slurm sends it before the end of a job's time."""
    run = Run(tmp_path, small_config(shards={"size": 100_000}, generate=QUICK | {"steps": 8}))
    no_questions(run)
    run.write_rows("prompts.jsonl", rows(200))
    env, counter = counted(run)
    process = subprocess.Popen(run.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    until = time.monotonic() + 240
    while len(counter.read_text().split()) < 5:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.1)
    # The job itself: the shell that Snakemake starts it from has the same command line.
    found = subprocess.run(
        ["pgrep", "-f", r"scripts/\w+\.make_images\.py"], capture_output=True, text=True
    ).stdout.split()
    jobs = [pid for pid in found if Path(f"/proc/{pid}/comm").read_text().startswith("python")]
    jobs = [pid for pid in jobs if Path(f"/proc/{pid}/cwd").resolve() == run.folder.resolve()]
    assert len(jobs) == 1
    os.kill(int(jobs[0]), signal.SIGTERM)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    kept = int(re.search(r"error: interrupted, (\d+) of 200 kept", text).group(1))
    assert kept >= 4 and len(list(run.results.glob(".darkroom/scratch/images/*/*/*.png"))) == kept
    subprocess.run(run.command(), env=env, check=True, capture_output=True, timeout=600)
    assert len(counter.read_text().split()) == 200 == len(set(counter.read_text().split()))
    assert made(run) == 200 - kept
