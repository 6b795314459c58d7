"""The workflow as a module of a larger one, and without the library that it needs beside it."""

import shutil
import subprocess
import sys

import pandas as pd
from conftest import REPOSITORY, environment

OUTER = """
configfile: "config.yaml"


module darkroom:
    snakefile: "{repository}/workflow/Snakefile"
    config: config


use rule * from darkroom as darkroom_*


rule count:
    default_target: True
    input:
        darkroom="results/scores.parquet",
    output:
        "count.txt",
    run:
        import pandas as pd

        with open(output[0], "w") as out:
            out.write(str(len(pd.read_parquet(input.darkroom))))
"""


def test_a_larger_workflow_uses_it_as_a_module(run):
    run.write_rows("prompts.jsonl", [{"prompt": "a red circle"}, {"prompt": "a blue star"}])
    run.command()  # writes config.yaml
    (run.folder / "Snakefile").write_text(OUTER.format(repository=REPOSITORY))
    command = [sys.executable, "-m", "snakemake", "-j2", "--workflow-profile", "none"]
    done = subprocess.run(command, cwd=run.folder, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (run.folder / "count.txt").read_text() == "2"
    assert pd.read_parquet(run.results / "scores.parquet")["p_yes"].notna().all()


def test_without_its_library_one_line_says_what_to_do(run):
    for name in ("workflow", "config"):
        shutil.copytree(REPOSITORY / name, run.folder / name)
    command = [sys.executable, "-m", "snakemake", "-n", "--workflow-profile", "none"]
    done = subprocess.run(command, cwd=run.folder, env=environment(), capture_output=True, text=True, timeout=300)
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert told == [
        f"error: {run.folder}: Darkroom needs its library beside it; clone the repository, and name its Snakefile there"
    ]
