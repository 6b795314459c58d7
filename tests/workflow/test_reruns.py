"""Only what is missing or stale is made again, nothing is lost, and what is made again is the same."""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess

import filelock
import pandas as pd
import pytest
from conftest import (
    JUDGE,
    PROMPTS,
    REPOSITORY,
    Run,
    clear_logs,
    environment,
    image_files,
    made,
    planned_shards,
    score_files,
    shards,
    write_inputs,
)
from darkroom.store.shardfile import iter_records, read_meta


def test_every_row_ends_in_exactly_one_place(finished):
    scores = pd.read_parquet(finished.results / "scores.parquet")
    images, edited = (scores[scores["kind"] == kind] for kind in ("images", "edited"))
    assert list(images["row"].unique()) == [row["id"] for row in PROMPTS]
    assert len(images) == 9 + 3 and images["error"].isna().all()
    assert list(edited["row"]) == ["e0", "e1", "e2", "e3"]
    assert "not-there.png" in edited["error"].iloc[3] and edited["p_followed"].isna().iloc[3]
    assert "not-there.png" in edited["p_followed_error"].iloc[3]
    assert edited["error"].iloc[:3].isna().all() and edited["p_followed"].iloc[:3].notna().all()
    rejected = [json.loads(line) for line in (finished.results / "rejected.jsonl").read_text().splitlines()]
    assert [(r["file"], r["line"]) for r in rejected] == [("prompts", 5), ("prompts", 6), ("prompts", 7), ("edits", 5)]
    assert "nobody" in rejected[3]["reason"] and "p1" in rejected[1]["reason"]


def test_tables_carry_the_user_s_fields_and_agree(finished):
    scores = pd.read_parquet(finished.results / "scores.parquet")
    table = pd.read_csv(finished.results / "scores.csv")
    assert list(table["key"]) == list(scores["key"])
    images = scores[scores["kind"] == "images"].drop_duplicates("row")
    assert list(images["note"]) == [row["note"] for row in PROMPTS]
    assert list(images["group"]) == [row["group"] for row in PROMPTS]
    assert scores["p_yes"].dropna().between(0, 1).all() and scores["p_yes_mass"].dropna().between(0, 1).all()


def test_shards_name_what_they_were_made_with_and_show_as_pictures(finished, tmp_path):
    import datasets

    for kind in ("images", "edited"):
        paths = image_files(finished, kind)
        for meta in map(read_meta, paths):
            assert meta["device"] == "cpu" and {"torch", "diffusers"} <= set(meta["versions"])
            assert meta["recipe"]["model"].startswith("folder:")
        files = [str(path) for path in paths]
        table = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=tmp_path)
        assert len(table) == sum(meta["records"] for meta in map(read_meta, paths))
        pictures = [row for row in table if row["error"] is None]
        assert pictures and all(row["image"].size == (row["width"], row["height"]) for row in pictures)
    for path in image_files(finished):
        for record in iter_records(path):
            assert hashlib.sha256(record["image"]["bytes"]).hexdigest() == record["sha256"]


def test_logs_and_benchmarks_say_how_it_went(finished):
    logs = [path.read_text() for path in finished.results.glob("logs/generate_images/*/*.log")]
    assert all(re.search(r"done: \d+ made, 0 carried, 0 given, 0 failed", log) for log in logs)
    log = next(log for log in logs if "0 to make" not in log)
    for word in ("model folder:", "torch", "device cpu", "images/s", "left"):
        assert word in log
    rules = {path.name for path in (finished.results / "benchmarks").iterdir()}
    assert {"generate_images", "edit_images", "score_images", "merge_scores.tsv"} <= rules


def test_a_second_run_and_touched_files_make_nothing(copy):
    assert copy.planned() == {}
    for path in [*copy.folder.rglob("*")]:
        if path.is_file():
            os.utime(path)
    assert copy.planned() == {}


def test_a_fresh_clone_of_the_code_beside_old_results_makes_nothing(copy, tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(REPOSITORY, clone, ignore=shutil.ignore_patterns(".*", "results", "tests"))
    for section in ("generate", "edit", "judge"):
        name = copy.config[section]["model"]
        copy.config[section]["model"] = str(clone / name.partition(f"{REPOSITORY}/")[2])
    command = [word.replace(str(REPOSITORY / "Snakefile"), str(clone / "Snakefile")) for word in copy.command("-n")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    assert "Nothing to be done" in done.stderr + done.stdout


def edited_row(rows, number, **changes):
    return [row | changes if n == number else row for n, row in enumerate(rows)]


def other_judge(run):
    """The same judge with another setting of its own: another model, to whoever compares."""
    folder = run.folder / "judge"
    shutil.copytree(JUDGE, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"temperature": 0.5}))
    run.config["judge"]["model"] = str(folder)


IMAGES = {"generate_images", "edit_images"}
TABLES = {"merge_scores", "write_dataset", "all"}
AFTER = TABLES | {"score_images"}
CHANGES = {
    "threshold": (
        lambda c: c.config.update(select={"images": {"p_yes": 0.9}}),
        {"merge_scores", "write_dataset", "all"},
    ),
    "reply column": (lambda c: c.config["judge"].update(reply_column="answer"), {"write_dataset", "all"}),
    "max_tokens": (lambda c: c.config["judge"].update(max_tokens=32), AFTER),
    "steps of edits": (lambda c: c.config["edit"].update(steps=3), AFTER | {"edit_images"}),
    "steps of images": (lambda c: c.config["generate"].update(steps=3), AFTER | {"generate_images", "edit_images"}),
    "seed": (lambda c: c.config.update(seed=1), AFTER | {"generate_images", "edit_images"}),
    "nothing": (lambda c: None, set()),
    "one row's width": (
        lambda c: write_inputs(c, edited_row(PROMPTS, 8, width=48)),
        AFTER | {"shard_prompts", "generate_images"},
    ),
    "an image shard deleted": (
        lambda c: image_files(c)[-1].unlink(),
        AFTER | {"generate_images"},  # what follows is looked at, and left as it is where the shard comes back the same
    ),
    "judge model": (lambda c: other_judge(c), AFTER),
    "shard size": (lambda c: c.config["shards"].update(size=40), AFTER | IMAGES | {"shard_prompts", "shard_edits"}),
    "batch size": (lambda c: c.config["generate"].update(batch_size=2), set()),
}


@pytest.mark.parametrize("history", ["kept", "lost"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_reruns_what_it_decides_and_no_more(copy, name, history):
    """Also where Snakemake's own records are lost: then the files tell what they were made for."""
    if history == "lost":
        shutil.rmtree(copy.folder / ".snakemake")
    change, rules = CHANGES[name]
    change(copy)
    assert set(copy.planned()) == rules


def test_a_rubric_s_wording_reruns_the_scores(copy):
    rubric = copy.folder / "rubric.yaml"
    rubric.write_text((REPOSITORY / "config/rubrics/shapes.yaml").read_text())
    copy.config["judge"]["rubric"] = str(rubric)
    assert copy.planned() == {}
    text, jobs = rubric.read_text(), {}
    for words in ("Does this image", "Was the instruction", "Please answer"):  # about images, edits, and both
        rubric.write_text(text.replace(words, words.upper()))
        planned = copy.planned()
        assert set(planned) == AFTER
        jobs[words] = planned["score_images"]
    assert jobs["Please answer"] == jobs["Does this image"] + jobs["Was the instruction"]


def test_one_edited_row_makes_its_images_alone(copy, finished):
    before = planned_shards(copy)
    write_inputs(copy, edited_row(PROMPTS, 8, prompt="two green stars"))
    planned = copy.planned()
    assert planned["generate_images"] <= 2 and planned["shard_prompts"] <= 2
    clear_logs(copy)
    copy.snakemake()
    assert made(copy) == 1
    after = planned_shards(copy)
    new = [name for name in after if name.startswith("images/") and name.endswith(".parquet") and name not in before]
    assert len(new) == 1
    write_inputs(copy)
    clear_logs(copy)
    copy.snakemake()
    assert made(copy) == 0 and not list(copy.results.glob("logs/generate_images/**/*.log"))
    assert planned_shards(copy) == shards(finished)


def test_rows_taken_away_and_brought_in_elsewhere_lose_no_image(copy):
    """The order of all rows is another: every shard is stale, and every image is still good."""
    rows = list(PROMPTS)
    random.Random(4).shuffle(rows)
    copy.write_rows("prompts.jsonl", rows)
    clear_logs(copy)
    copy.snakemake("--until", "generate_images")
    assert made(copy) == 0


def test_a_deleted_image_shard_comes_back_byte_by_byte(copy, finished):
    image_files(copy)[0].unlink()
    copy.snakemake()
    assert planned_shards(copy) == shards(finished)


def test_a_second_run_on_the_same_results_is_refused(copy, finished, tmp_path):
    """From another working folder: in the same one Snakemake's own lock refuses it."""
    other = Run(tmp_path / "other", copy.config | {"results": str(copy.results)})
    other.folder.mkdir()
    for name in ("prompts", "edits"):
        other.config[name] = str(copy.folder / f"{name}.jsonl")
    (copy.results / "scores.csv").unlink()
    other.planned()
    with filelock.FileLock(copy.results / ".darkroom/run.lock"):
        done = other.snakemake("--forcerun", "merge_scores", check=False)
        with copy.folder.joinpath("prompts.jsonl").open("a") as rows:
            rows.write('{"prompt": "one more"}\n')
        changed = other.snakemake("-n", check=False)
    write_inputs(copy)
    assert changed.returncode == 1 and "prompts.jsonl: changed" in changed.stderr
    assert "another run works on" in changed.stderr
    assert done.returncode == 1
    assert f"error: {copy.results}: another run works on these results" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (copy.results / "scores.csv").exists()
    copy.snakemake()
    assert planned_shards(copy) == shards(finished)


def test_a_score_file_of_another_shard_is_noticed_and_made_again(copy, finished):
    victim, other = score_files(copy)[:2]
    shutil.copy(other, victim)
    assert copy.planned()["score_images"] == 1
    copy.snakemake()
    assert planned_shards(copy) == shards(finished)
