"""The workflow as a module of a larger one, and without the library that it needs beside it."""

import re
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


def alone(run):
    """What Snakemake reads of the workflow, without library, config, rubrics and models, in a folder of the run."""
    folder = run.folder / "workflow of darkroom"
    for part in ("workflow", "envs"):
        shutil.copytree(REPOSITORY / part, folder / part)
    (folder / "scripts").mkdir()
    for script in REPOSITORY.glob("scripts/*.py"):
        shutil.copy(script, folder / "scripts")
    (run.folder / "Snakefile").write_text(OUTER.format(repository=folder))
    return folder


def test_an_installed_library_does_where_the_workflow_comes_without_one(run):
    alone(run)
    install = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
    subprocess.run([sys.executable, "-m", *install, str(run.folder / "site"), str(REPOSITORY)], check=True)
    run.write_rows("prompts.jsonl", [{"prompt": "a red circle"}, {"prompt": "a blue star"}])
    run.config["gallery"] = {"enabled": True}
    run.command()  # writes config.yaml; the rubric is the package's
    assert run.config["judge"]["rubric"] == "shapes"
    env = environment() | {"PYTHONPATH": str(run.folder / "site")}
    command = [sys.executable, "-m", "snakemake", "-j2", "--workflow-profile", "none"]
    for arguments in (["-n"], []):
        done = subprocess.run(command + arguments, cwd=run.folder, env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (run.folder / "count.txt").read_text() == "2"
    done = subprocess.run(
        [sys.executable, run.folder / "site/bin/darkroom", "plan", "--configfile", "config.yaml"],
        cwd=run.folder,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and re.search(r"^images +\d+ +0 +0 +0 ", done.stdout, re.M), done.stderr


def test_the_library_beside_the_workflow_comes_before_an_installed_one(run):
    other = run.folder / "site/darkroom"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text('raise ImportError("another version of the library")\n')
    run.write_rows("prompts.jsonl", [{"prompt": "a red circle"}])
    run.env = environment() | {"PYTHONPATH": str(other.parent)}
    run.snakemake("--until", "shard_prompts")
    assert list(run.results.glob("prompts/*.jsonl"))


def test_without_any_library_one_line_says_what_to_do(run):
    folder = alone(run)
    run.command()  # writes config.yaml
    (run.folder / "sitecustomize.py").write_text('import sys\n\nsys.modules["darkroom"] = None  # not installed\n')
    command = [sys.executable, "-m", "snakemake", "-n", "--workflow-profile", "none"]
    env = environment() | {"PYTHONPATH": str(run.folder)}
    done = subprocess.run(command, cwd=run.folder, env=env, capture_output=True, text=True, timeout=300)
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert told == [
        f"error: no library darkroom, neither in {folder}/scripts nor installed;"
        " `pip install` the repository that this workflow is from"
    ]


def test_a_plain_dry_run_from_the_repository_plans_everything(tmp_path):
    """The Snakefile at the root names its default target by an attribute that Snakemake does not promise to keep."""
    command = [sys.executable, "-m", "snakemake", "-n", "--directory", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    planned = set(re.findall(r"^(\w+) +\d+$", done.stdout, re.M))
    assert planned >= {
        "all",
        "generate_images_few",
        "generate_images_many",
        "score_images",
        "score_clip",
        "merge_scores",
        "gallery_index",
    }


OLDEST = ["snakemake==9.19.0", "appdirs==1.4.4"]  # what it needs beyond the lock


def dry_run(folder, env):
    command = [sys.executable, "-m", "snakemake", "-n", "--workflow-profile", "none", "--snakefile"]
    command.append(str(folder / "Snakefile"))
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def test_the_oldest_snakemake_that_is_supported_plans_the_same(run, tmp_path):
    shutil.copytree(REPOSITORY, run.folder / "clone", ignore=shutil.ignore_patterns(".*", "results", "build", "tests"))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "oldest")]
    subprocess.run([*install, *OLDEST], check=True, capture_output=True, text=True, timeout=300)
    now, then = (
        dry_run(run.folder / "clone", environment() | more) for more in ({}, {"PYTHONPATH": str(tmp_path / "oldest")})
    )
    assert now.returncode == then.returncode == 0, now.stderr + then.stderr
    assert run.jobs(then.stdout) == run.jobs(now.stdout) != {}


def test_a_snakemake_that_is_not_supported_is_told_in_one_line(run):
    shutil.copytree(REPOSITORY, run.folder / "clone", ignore=shutil.ignore_patterns(".*", "results", "build", "tests"))
    snakefile = run.folder / "clone/workflow/Snakefile"
    snakefile.write_text(snakefile.read_text().replace("> 9:", "> 8:"))
    done = dry_run(run.folder / "clone", environment())
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "this workflow is tested with 9.19 to 9.27; install one of these" in done.stderr
