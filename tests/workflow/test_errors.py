"""What a user gets wrong before anything starts: one line that names it, and no job."""

import json

import pandas as pd
import pytest
import warm
from conftest import REPOSITORY, environment

WRONG = {
    "unknown key": ({"promts": "x.jsonl"}, "unknown key promts; did you mean prompts?"),
    "unknown key in a section": ({"generate": {"stepz": 3}}, "unknown key generate.stepz; did you mean steps?"),
    "missing model folder": (
        {"generate": {"model": "models/none/here"}},
        "generate.model: no such folder: models/none/here",
    ),
    "missing prompts": ({"prompts": "none.jsonl"}, "prompts: no such file: none.jsonl"),
    "negative size": ({"generate": {"width": -64}}, "generate.width: must be at least 16, got -64"),
    "wrong type": ({"samples_per_prompt": "two"}, "samples_per_prompt: expected a whole number, got 'two'"),
    "wrong family": ({"edit": {"family": "sd"}}, "edit.family: expected one of flux, flux-kontext, "),
    "nothing to do": ({"prompts": None}, "prompts and edits are both null"),
    "unknown score": (
        {"select": {"images": {"beauty": 1}}},
        "select.images: no metric gives a score beauty; there are p_yes",
    ),
    "missing rubric": ({"judge": {"rubric": "none.yaml"}}, "judge.rubric: no such file: none.yaml"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_config_is_one_line_and_starts_nothing(run, name):
    changes, message = WRONG[name]
    run.write_rows("prompts.jsonl", [{"prompt": "a red circle"}])
    for key, value in changes.items():
        run.config[key] = run.config.get(key, {}) | value if isinstance(value, dict) else value
    done = run.snakemake(check=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in done.stderr + done.stdout
    assert not list(run.results.glob("prompts/*"))


def without_a_file(run, *settings):
    """A dry run that names no config file."""
    arguments = ["--snakefile", str(REPOSITORY / "Snakefile"), "--directory", str(run.folder), "--cores", "1", "-n"]
    arguments += ["--workflow-profile", "none", "--rerun-triggers", "mtime", "--quiet", "rules"]
    return warm.run([*arguments, *(["--config", *settings] if settings else [])], run.folder, environment(), 600)


def test_own_rows_without_a_config_file_are_one_line_and_start_nothing(run):
    run.write_rows("mine.jsonl", [{"prompt": "a red circle"}])
    done = without_a_file(run, "prompts=mine.jsonl", "samples_per_prompt=2")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert len(errors) == 1 and errors[0].startswith("error: --config names prompts without a config file")
    assert not run.results.exists()


def test_the_demonstration_says_that_it_is_one(run):
    done = without_a_file(run)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("this is the demonstration, config/config.yaml, since no config names rows; for your own")
        == 1
    )
    run.write_rows("prompts.jsonl", [{"prompt": "a red circle"}])
    assert "this is the demonstration" not in run.snakemake("-n").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--configfile", "none.yaml"], "none.yaml: No such file or directory"),
        (["--configfile", "broken.yaml"], "broken.yaml, line 2: not valid YAML: expected ',' or ']', but got ':'"),
        (["--configfile", "broken.yaml/.."], "broken.yaml/..: Not a directory"),
        (
            ["--configfile", "good.json", "list.yaml"],
            "list.yaml: expected keys with values, such as `prompts: rows.jsonl`",
        ),
        (["--configfile", "."], ".: Is a directory"),
        (["--config", "seed=1", "strict"], "--config strict: expected KEY=VALUE"),
        (["-C", "1x=2"], "--config 1x=2: '1x' is no key of the config"),
        (["--configfile", "good.json"], "config: unknown key promts; did you mean prompts?"),  # Snakemake took it
    ],
)
def test_a_config_that_cannot_be_read_is_one_line(tmp_path, arguments, message):
    """Snakemake reads it before the Snakefile; the profile of every run speaks first."""
    (tmp_path / "broken.yaml").write_text("prompts: [a.jsonl\nseed: 1\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "good.json").write_text('{\n\t"promts": "a.jsonl"\n}\n')
    command = ["--snakefile", str(REPOSITORY / "Snakefile"), "-n", *arguments]
    done = warm.run(command, tmp_path, environment(), 600)
    told = [line for line in done.stderr.splitlines() if not line.startswith(("Using ", "Config file "))]
    assert (done.returncode, told) == (1, [f"error: {message}"]) and "Traceback" not in done.stdout


def test_a_wrong_limit_of_a_partition_is_one_line_before_anything_is_submitted(run):
    run.write_rows("prompts.jsonl", [{"prompt": "a red circle"}])
    path = run.folder / "partitions.yaml"
    path.write_text("partitions: {cpu: {}, gpu: {max_gpus: 8}}")
    done = run.snakemake("--executor", "slurm", "--jobs", "2", "--slurm-partition-config", str(path), check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: {path}: partition gpu: unknown limit max_gpus; did you mean max_gpu?"]


def test_strict_stops_at_the_first_bad_row_with_its_line(run):
    run.config["strict"] = True
    run.write_rows("prompts.jsonl", [{"prompt": "a red circle"}, b"", b"{broken", {"prompt": ""}])
    done = run.snakemake(check=False)
    assert done.returncode == 1
    assert "prompts.jsonl, line 3: not valid JSON" in done.stderr


@pytest.mark.parametrize("section", ["generate", "judge"])
def test_a_folder_that_is_no_model_stops_the_job_with_one_sentence(run, section):
    run.write_rows("prompts.jsonl", [{"prompt": "a red circle"}])
    (run.folder / "models/empty").mkdir(parents=True)
    (run.folder / "models/empty/config.json").write_text(json.dumps({"model_type": "nothing"}))
    run.config[section]["model"] = "./models/empty"
    done = run.snakemake("--show-failed-logs", check=False)
    assert done.returncode == 1
    assert f"error: {section}.model: cannot load" in done.stdout + done.stderr
    assert "no backup found" not in done.stdout + done.stderr  # whatever Snakemake calls what says so


def test_values_on_the_command_line_go_into_the_sections_of_the_config_file(run):
    """Snakemake gives what is below a section as text, and merges it into the section that the file has."""
    run.write_rows("prompts.jsonl", [{"prompt": "a red circle"}])
    run.config["gallery"] = {"enabled": True, "thumbnail": 64}
    run.config["edits"] = "none.jsonl"
    # The whole workflow, and then the config as its rules have it.
    (run.folder / "Snakefile").write_text(
        f"include: {str(REPOSITORY / 'Snakefile')!r}\n"
        'import json\n(Path.cwd() / "filled.json").write_text(json.dumps(DARKROOM.config.model_dump()))\n'
    )
    values = [
        "gallery={enabled: false}",
        "generate={steps: 40, guidance: 2.5}",
        "generate={compile: false, height: null}",
    ]
    values += ["select={images: {p_yes: 0.5}}", "export={formats: [folder, parquet]}", "strict=true", "edits=null"]
    done = run.snakemake("all", "-n", "--snakefile", str(run.folder / "Snakefile"), "--config", *values)
    assert "gallery_index" not in done.stdout and "export_dataset" in done.stdout
    filled = json.loads((run.folder / "filled.json").read_text())
    assert filled["gallery"] == {"enabled": False, "thumbnail": 64, "preview": 1024, "scores": None}
    changed = {"steps": 40, "guidance": 2.5, "compile": False, "height": None}
    same = {key: run.config["generate"][key] for key in run.config["generate"].keys() - changed.keys()}
    assert {key: filled["generate"][key] for key in changed | same} == changed | same
    assert filled["select"]["images"] == {"p_yes": 0.5}
    assert (filled["strict"], filled["edits"], filled["export"]["formats"]) == (True, None, ["folder", "parquet"])


def test_a_wrong_value_on_the_command_line_is_one_line_too(run):
    run.write_rows("prompts.jsonl", [{"prompt": "a red circle"}])
    done = run.snakemake("-n", "--config", "generate={steps: many}", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: config: generate.steps: expected a whole number or null, got 'many'" in done.stderr.splitlines()


def test_labels_are_checked_before_any_work_and_decide_without_it(copy):
    """A file with other columns is one line at the start, and the tables stay; a label of no image is told, and the run goes on."""
    copy.config |= {"labels": "labels.csv", "report": {"enabled": True}}
    keys = pd.read_parquet(copy.results / "scores.parquet").query("kind == 'images'")["key"]
    labels = copy.folder / "labels.csv"
    labels.write_text("image,verdict\n" + f"{keys[0]},reject\n")
    done = copy.snakemake(check=False)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.endswith("labels.csv, line 1: no column key; the gallery exports key,label,...")
    assert done.returncode == 1 and "Traceback" not in done.stderr and (copy.results / "scores.csv").exists()
    nobody = "0" * 32
    labels.write_text(f"key,label\n{nobody},reject\n{keys[0]},reject\n{keys[1]},maybe\n")
    told = f"labels.csv: 2 lines of no use: line 2: no image has the key {nobody}; line 4: label maybe is neither"
    jobs = dict.fromkeys(("merge_scores", "write_dataset", "draw_plots", "all"), 1)
    done = copy.snakemake("-n")
    assert copy.jobs(done.stdout) == jobs and told in done.stdout
    done = copy.snakemake()
    assert (done.stdout + done.stderr).count(told) == 2  # before the first job, and at the end
    table = pd.read_parquet(copy.results / "scores.parquet").set_index("key")
    assert table["label"].dropna().to_dict() == {keys[0]: "reject"}
    assert not table.loc[keys[0], "selected"] and table.loc[keys[1], "selected"]
    rows = [json.loads(line)["id"] for line in (copy.results / "dataset/prompts.jsonl").open()]
    assert table.loc[keys[0], "row"] not in rows and table.loc[keys[1], "row"] in rows
    rejected = [json.loads(line) for line in (copy.results / "rejected.jsonl").open()]
    assert [record["line"] for record in rejected if record["file"] == "labels"] == [2, 4]
    assert f"labels.csv, line 2: labels: no image has the key {nobody}" in copy.darkroom("failures").stdout
