"""What a user gets wrong before anything starts: one line that names it, and no job."""

import json

import pytest

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
    "wrong family": ({"edit": {"family": "sd"}}, "edit.family: expected one of flux, flux-kontext, auto, got 'sd'"),
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
