"""What planning costs: a million rows, a job's start with the plan cached, and the dry run of ten thousand shards.

    python tests/bench/bench_plan.py [--rows 1000000] [--shards 10000]

Prints each figure beside its limit and exits with status 1 where one is above it. Times are CPU seconds. The dry run is
compared, side by side, with a bare workflow of rules with scripts that makes as many files.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS = REPOSITORY / "resources/models"
MOST_RATIO, MOST_START = 1.3, 3.0

BARE = """
shards = [f"{n:012x}" for n in range(SHARDS)]
files = expand("bare/prompts/{s}.jsonl", s=shards)
files += expand("bare/images/{s}.parquet", s=shards) + expand("bare/scores/{s}.parquet", s=shards) + expand("bare/gallery/{s}.js", s=shards)
rule all:
    input: files, "bare/scores.parquet"
rule prompts:
    input: ancient("rows.jsonl")
    output: "bare/prompts/{s}.jsonl"
    script: "nothing.py"
rule images:
    input: "bare/prompts/{s}.jsonl"
    output: "bare/images/{s}.parquet"
    script: "nothing.py"
rule scores:
    input: "bare/images/{s}.parquet"
    output: "bare/scores/{s}.parquet"
    script: "nothing.py"
rule gallery:
    input: "bare/images/{s}.parquet", "bare/scores/{s}.parquet"
    output: "bare/gallery/{s}.js"
    script: "nothing.py"
rule merge:
    input: files
    output: "bare/scores.parquet"
    script: "nothing.py"
"""

PLAN = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from darkroom.plan.shards import make_plan
plan = make_plan(sys.argv[2], "prompts", 100, sys.argv[3])
print(len(plan.shards), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""

START = """
import sys, yaml
sys.path.insert(0, sys.argv[1] + "/scripts")
from darkroom.run.workflow import Workflow
Workflow.of_job(yaml.safe_load(open(sys.argv[2])), sys.argv[1] + "/scripts").image_digests
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


def write_rows(path: Path, number: int) -> None:
    with open(path, "w", encoding="utf-8") as out:
        for n in range(number):
            out.write(json.dumps({"id": f"row-{n}", "prompt": f"a red circle, number {n} of many"}) + "\n")


def write_config(path: Path, rows: Path, results: Path, size: int) -> None:
    stage = {"model": str(MODELS / "shapes-flux"), "device": "cpu"}
    judge = {"model": str(MODELS / "shapes-judge"), "device": "cpu"}
    config = {"prompts": str(rows), "results": str(results), "shards": {"size": size}}
    path.write_text(json.dumps(config | {"generate": stage, "edit": stage, "judge": judge}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=10_000)
    arguments = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as name:
        folder = Path(name)
        starts = []
        for number in (1000, arguments.rows):
            rows, results, config = (folder / f"{number}.{end}" for end in ("jsonl", "results", "json"))
            write_rows(rows, number)
            seconds, text = cpu_seconds(
                [sys.executable, "-c", PLAN, str(REPOSITORY / "scripts"), str(rows), str(results)], folder
            )
            shards, memory = text.split()
            print(f"plan of {number:>9,} rows: {seconds:6.1f} s, peak memory {memory} MB, {shards} shards")
            write_config(config, rows, results, 100)
            seconds, _ = cpu_seconds([sys.executable, "-c", START, str(REPOSITORY), str(config)], folder)
            starts.append(seconds)
        more = starts[1] - starts[0]
        good &= more <= MOST_START
        print(
            f"a job's start: {starts[0]:.2f} s at 1,000 rows, {starts[1]:.2f} s at {arguments.rows:,}: {more:.2f} s more (limit {MOST_START})"
        )

        write_rows(folder / "rows.jsonl", arguments.shards * 10)
        write_config(folder / "config.json", folder / "rows.jsonl", folder / "results", 10)
        (folder / "nothing.py").write_text("")
        dry = ["-n", "--quiet", "all", "--workflow-profile", "none", "--rerun-triggers", "params", "--cores", "1"]
        snakemake = [sys.executable, "-m", "snakemake", *dry]
        ours = [*snakemake, "--snakefile", str(REPOSITORY / "Snakefile"), "--configfile", "config.json"]
        cpu_seconds(ours, folder)  # makes and caches the plan
        plan = folder / "results/.darkroom/plan/prompts"
        current = json.loads((plan / "current.json").read_text())["id"]
        shards = len(json.loads((plan / f"{current}.json").read_text())["shards"])
        (folder / "Snakefile").write_text(BARE.replace("SHARDS", str(shards)))
        mine, _ = cpu_seconds(ours, folder)
        bare, _ = cpu_seconds(snakemake, folder)
        good &= mine / bare <= MOST_RATIO
        print(
            f"dry run of {shards:,} shards: {mine:.1f} s, bare workflow {bare:.1f} s: ratio {mine / bare:.2f} (limit {MOST_RATIO})"
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
