"""What planning costs: a million rows, a job's start, the forecast, and the dry run of ten thousand shards.

    python tests/bench/bench_plan.py [--rows 1000000] [--shards 10000] [--only plan,forecast,dry]

Prints each figure beside its limit and exits with status 1 where one is above it. Times are CPU seconds.

A job's start is measured where every row moved: the rows lie in reverse order in each of 20 earlier plans. The dry run is
compared, side by side, with a bare workflow of rules with scripts that makes as many files, once where all is to be made
and once where nothing is.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS = REPOSITORY / "resources/models"
MANIFEST = ".manifest"
NOW = int(time.time())  # of files that are made together, so that none is newer than what is made from it
PROFILE = yaml.safe_load((REPOSITORY / "profiles/default/profile.yaml").read_text())
KEPT = 20  # earlier plans
MOST_RATIO, MOST_START, MOST_FORECAST = 1.3, 3.0, 60.0
OLD_SHARDS = 300  # image shards that are there when the recipe changes

# As many files for each shard as the real rules make, and as many inputs for each job, but plain patterns.
BARE = """
shards = [f"{n:012x}" for n in range(SHARDS)]
images = ["bare/images/{s}.parquet", "bare/images/{s}.manifest"]
scores = ["bare/scores/{s}.parquet", "bare/scores/{s}.manifest"]
tables = ["bare/scores.parquet", "bare/scores.csv"]
files = expand(["bare/prompts/{s}.jsonl", images[0], scores[0]], s=shards)
pages = expand("bare/gallery/{s}.js", s=shards)
rule all:
    input: files, pages, tables, "bare/index.js"
rule prompts:
    input: ancient("rows.jsonl")
    output: "bare/prompts/{s}.jsonl"
    script: "nothing.py"
rule images:
    input: "bare/prompts/{s}.jsonl", ancient("rows.jsonl")
    output: images
    script: "nothing.py"
rule scores:
    input: images, ancient("rows.jsonl")
    output: scores
    script: "nothing.py"
rule gallery:
    input: images, scores, ancient("rows.jsonl")
    output: "bare/gallery/{s}.js"
    script: "nothing.py"
rule merge:
    input: files, expand(scores[1], s=shards)
    output: tables
    script: "nothing.py"
rule index:
    input: pages, tables
    output: "bare/index.js"
    script: "nothing.py"
"""

LIBRARY = """
import json, resource, sys, time
sys.path[:0] = [REPOSITORY + "/scripts", REPOSITORY + "/tests/bench"]
"""

PLAN = """
from darkroom.run.workflow import Workflow
plan = Workflow.open(json.load(open(sys.argv[1]))).plans["images"]
print(len(plan.shards), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""

# What a job of a shard does before it makes anything, as scripts/make_images.py does it.
START = """
from darkroom.run.jobs import Kept, requests_of, shard_job
from darkroom.run.workflow import Workflow
workflow = Workflow.of_job(json.load(open(sys.argv[1])))
plan = workflow.plans["images"]
shard = plan.names[len(plan.names) // 2]
workflow.planned_path(workflow.lineage.image_file("images", shard), "images", shard)
requests_of(workflow, "images", plan.read(shard))
workflow.check_sources("images", shard)
kept = Kept(workflow, workflow.lineage.step("images"))
shard_job(workflow, "images", shard)
kept.image_files(shard)
print(len(kept.shards([shard])) - 1)
"""

# As the command `darkroom plan`.
FORECAST = """
from darkroom.run.workflow import Workflow
from darkroom.tools.costs import costs, text
from darkroom.tools.forecast import forecast
workflow = Workflow.of_job(json.load(open(sys.argv[1])))
stages = forecast(workflow)
assert text(costs(workflow, stages), stages)
print(stages[0].jobs, stages[0].to_make, stages[0].carried)
"""

# Calls a function of this file with the workflow of a config.
CALL = """
import bench_plan
from darkroom.run.workflow import Workflow
print(getattr(bench_plan, sys.argv[2])(Workflow.of_job(json.load(open(sys.argv[1])))))
"""


def cpu_seconds(command: list[str], folder: Path) -> tuple[float, str]:
    """CPU seconds of a command with all its children, and what it printed."""
    before = os.times()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    after = os.times()
    if done.returncode:
        sys.exit(f"error: {command[:4]}: {done.stderr[-2000:]}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, done.stdout


def library(script: str, *arguments: object, folder: Path) -> tuple[float, str]:
    code = LIBRARY.replace("REPOSITORY", repr(str(REPOSITORY))) + script.replace("REPOSITORY", repr(str(REPOSITORY)))
    return cpu_seconds([sys.executable, "-c", code, *map(str, arguments)], folder)


def within(figure: float, most: float) -> str:
    return f"limit {most:g}" + ("" if figure <= most else ": ABOVE IT")


def write_rows(path: Path, number: int, reverse: bool = False) -> None:
    with open(path, "w", encoding="utf-8") as out:
        for n in reversed(range(number)) if reverse else range(number):
            out.write(json.dumps({"id": f"row-{n}", "prompt": f"a red circle, number {n} of many"}) + "\n")


def write_config(path: Path, rows: Path, results: Path, size: int, **generate: object) -> None:
    stage = {"model": str(MODELS / "shapes-flux"), "device": "cpu"}
    judge = {"model": str(MODELS / "shapes-judge"), "device": "cpu"}
    config = {"prompts": str(rows), "results": str(results), "shards": {"size": size}}
    path.write_text(json.dumps(config | {"generate": stage | generate, "edit": stage, "judge": judge}))


def write_planned(workflow) -> int:
    """Make every file that a run makes, all of one time, and return their number.

    The rows and manifests are real. Shards, pages and tables are empty: whether there is something to do depends on their times
    and the manifests alone.
    """
    from darkroom.store.manifest import Manifest, read_manifest

    lineage = workflow.lineage
    files = {
        lineage.rows_file(rows, name): plan.read(name)
        for rows, plan in workflow.row_plans.items()
        for name in plan.names
    }
    files |= {path: b"" for *_, path in workflow.gallery_files()}
    for path, data in files.items():
        make_file(Path(path), data)
    for step in lineage.steps():
        for file in lineage.files(step):
            made_from = [read_manifest(Path(path).with_suffix(MANIFEST))["content"] for path in file.inputs]
            manifest = Manifest(digest=file.digest, records=10, failed=0, content=file.digest * 2, made_from=made_from)
            make_file(Path(file.path))
            make_file(Path(file.manifest), json.dumps(manifest).encode())
            files |= {file.path: b"", file.manifest: b""}
    for output in workflow.outputs():
        for path in output.files:
            make_file(Path(path))
        make_file(Path(output.made), json.dumps(output.manifest()).encode())
        files |= dict.fromkeys([*output.files, output.made], b"")
    return len(files)


def write_old_images(workflow) -> None:
    """Make the first few hundred planned image shards, with as many records as they have requests, of one pixel each."""
    from darkroom.store.shardfile import IMAGE_COLUMNS, write_shard_with_manifest

    meta = {"digest": "d", "rule": "generate_images", "recipe": {"model": "none"}, "versions": {}, "failed": 0}
    for name in workflow.plans["images"].names[:OLD_SHARDS]:
        records = [
            dict.fromkeys(IMAGE_COLUMNS)
            | {"key": f"{name}{number:020x}", "row": f"{number}", "item": 0, "sample": 0, "origin": "generated"}
            | {"sha256": "0" * 64, "fields": "{}", "image": {"bytes": b"none", "path": "none.png"}}
            for number in range(workflow.requests("images", name))
        ]
        path = Path(workflow.lineage.image_file("images", name))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_shard_with_manifest(path, IMAGE_COLUMNS, records, meta, [])


def make_file(path: Path, data: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (NOW, NOW))


def bench_plan(folder: Path, number: int) -> bool:
    """The plan, and the start of a job; also leaves the million rows for `bench_forecast`."""
    starts = []
    for rows_number in (1000, number):
        rows, results, config = (folder / f"{rows_number}.{end}" for end in ("jsonl", "results", "json"))
        write_rows(rows, rows_number, reverse=True)
        write_config(config, rows, results, 100)
        library(PLAN, config, folder=folder)
        (old,) = results.glob(".darkroom/plan/prompts/*.places")
        for copy in range(1, KEPT):
            (old.parent / f"{copy:016x}.places").write_bytes(old.read_bytes())
        write_rows(rows, rows_number)
        seconds, text = library(PLAN, config, folder=folder)
        shards, memory = text.split()
        print(f"plan of {rows_number:>9,} rows: {seconds:6.1f} s, peak memory {memory} MB, {shards} shards")
        seconds, earlier = library(START, config, folder=folder)
        starts.append((seconds, int(earlier)))
    more = starts[1][0] - starts[0][0]
    print(
        f"a job's start, every row moved, {KEPT} kept plans: {starts[0][0]:.2f} s at 1,000 rows, {starts[1][0]:.2f} s at"
        f" {number:,} ({starts[1][1]} earlier shards): {more:.2f} s more ({within(more, MOST_START)})"
    )
    return more <= MOST_START


def bench_forecast(folder: Path, number: int) -> bool:
    """`plan` after a changed recipe: where no image is there, and where some shards are, which are all stale."""
    good = True
    rows, results, config = (folder / f"{number}.{end}" for end in ("jsonl", "results", "json"))
    if not rows.exists():
        write_rows(rows, number)
        write_config(config, rows, results, 100)
        library(PLAN, config, folder=folder)
    for there in ("no image", f"{OLD_SHARDS} old shards"):
        if there != "no image":
            write_config(config, rows, results, 100)
            library(CALL, config, "write_old_images", folder=folder)
        write_config(config, rows, results, 100, steps=9)
        seconds, text = library(FORECAST, config, folder=folder)
        jobs, to_make, carried = map(int, text.split())
        print(
            f"plan after a changed recipe, {there} there: {seconds:.1f} s, {jobs:,} jobs, {to_make:,} to make,"
            f" {carried:,} carried over ({within(seconds, MOST_FORECAST)})"
        )
        good &= seconds <= MOST_FORECAST
    return good


def jobs_of(text: str) -> int:
    """The number of jobs of a dry run."""
    found = re.search(r"^total\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def bench_dry_run(folder: Path, number: int) -> bool:
    write_rows(folder / "rows.jsonl", number * 10)
    os.utime(folder / "rows.jsonl", (10**8, 10**8))
    write_config(folder / "config.json", folder / "rows.jsonl", folder / "results", 10)
    (folder / "nothing.py").write_text("")
    os.utime(folder / "nothing.py", (10**8, 10**8))  # Snakemake takes newer code for changed code
    dry = ["-n", "--quiet", "rules", "--workflow-profile", "none", "--cores", "1"]
    dry += ["--scheduler", PROFILE["scheduler"], "--rerun-triggers", *PROFILE["rerun-triggers"]]  # bare rules, too
    snakemake = [sys.executable, "-m", "snakemake", *dry]
    ours = [*snakemake, "--snakefile", str(REPOSITORY / "Snakefile"), "--configfile", "config.json"]
    cpu_seconds(ours, folder)  # makes and caches the plan
    (plan,) = folder.glob("results/.darkroom/plan/prompts/*.places")
    shards = len(json.loads(plan.with_suffix(".json").read_bytes())["shards"])
    (folder / "Snakefile").write_text(BARE.replace("SHARDS", str(shards)))
    good = True
    for state in ("all to do", "nothing to do"):
        if state == "nothing to do":
            library(CALL, "config.json", "write_planned", folder=folder)
            files = ["prompts/{}.jsonl", "images/{}.parquet", "scores/{}.parquet", "gallery/{}.js"]
            files += [f"{stage}/{{}}{MANIFEST}" for stage in ("images", "scores")]
            for path in (name.format(f"{n:012x}") for name in files for n in range(shards)):
                make_file(folder / "bare" / path)
            for name in ("scores.parquet", "scores.csv", "index.js"):
                make_file(folder / "bare" / name)
        mine, text = cpu_seconds(ours, folder)
        bare, bare_text = cpu_seconds(snakemake, folder)
        jobs, bare_jobs = jobs_of(text), jobs_of(bare_text)
        ratio = mine / bare
        good &= ratio <= MOST_RATIO
        print(
            f"dry run of {shards:,} shards, {state}: {mine:.1f} s for {jobs:,} jobs, bare workflow {bare:.1f} s for"
            f" {bare_jobs:,}: ratio {ratio:.2f} ({within(ratio, MOST_RATIO)})"
        )
        if state == "nothing to do" and (jobs or bare_jobs):
            good = False
            print("the files that are there are not taken for made: see write_planned")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--only", default="plan,forecast,dry", help="of plan, forecast and dry, with commas")
    arguments = parser.parse_args()
    only, good = arguments.only.split(","), []
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as name:
        folder = Path(name)
        if "plan" in only:
            good.append(bench_plan(folder, arguments.rows))
        if "forecast" in only:
            good.append(bench_forecast(folder, arguments.rows))
        if "dry" in only:
            good.append(bench_dry_run(folder, arguments.shards))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
