"""Several image shards judged in one job."""

import hashlib
import json

import pandas as pd
import pytest
from conftest import Run, clear_logs, score_files, small_config
from darkroom.jobs.history import read_records
from PIL import Image

ONE_QUESTION = """
images:
  - name: p_yes
    type: yes_no
    text: "Does this image show: {prompt}? Answer yes or no."
edited: []
"""
NEW_QUESTIONS = """
  - name: marked
    type: yes_no
    text: "Is there a watermark?"
  - name: p_atoms
    type: yes_no
    over: atoms
    combine: minimum
    text: "Does this image show: {item}? Answer yes or no."
edited: []
"""


def write_inputs(run, rows, **atoms):
    """Rows of pictures that are there already: (name, prompt, colour) each; atoms: those of rows that have others than "a circle"."""
    for name, _, colour in rows:
        Image.new("RGB", (64, 64), colour).save(run.folder / f"{name}.png")
    run.write_rows(
        "prompts.jsonl",
        [
            {"id": name, "prompt": prompt, "images": [f"{name}.png"], "atoms": atoms.get(name, ["a circle"])}
            for name, prompt, _ in rows
        ],
    )


def first_rows():
    return [(f"row-{n}", "a red circle", (12 * n, 30, 30)) for n in range(16)]


def engine_starts(run):
    """Judge jobs of the last run that started their engine."""
    return sum(
        "\ndevice" in p.read_text() or " device " in p.read_text()
        for p in run.results.glob("logs/score_images/judge/*/*/*")
    )


def asked(run, what="made"):
    """Images that judge jobs asked about, or the questions they "asked", in all runs so far."""
    return sum(record[what] for record in read_records(run.results / "benchmarks/score_images"))


def tables(run):
    names = ("scores.csv", "rejected.jsonl", "dataset/prompts.jsonl")
    return {name: hashlib.sha256((run.results / name).read_bytes()).hexdigest() for name in names}


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("grouped"), small_config(shards={"size": 1}))
    (run.folder / "rubric.yaml").write_text(ONE_QUESTION)
    run.config["judge"] |= {"rubric": str(run.folder / "rubric.yaml"), "shards_per_job": 8}
    write_inputs(run, first_rows())
    run.snakemake()
    return run


def test_sixteen_shards_start_the_engine_twice(grouped):
    assert len(list(grouped.results.glob("images/*/*.parquet"))) == 16
    assert len(list(grouped.results.glob("scores/judge/images/*/*.parquet"))) == engine_starts(grouped) == 2
    assert asked(grouped) == 16
    scores = pd.read_parquet(grouped.results / "scores.parquet")
    assert list(scores["row"]) == [f"row-{n}" for n in range(16)] and scores["p_yes"].notna().all()
    assert "16 images scored" in " ".join(grouped.darkroom("verify").stdout.split())


def test_one_changed_image_and_one_new_question_are_asked_alone(grouped):
    rows = first_rows()
    (grouped.folder / "rubric.yaml").write_text(ONE_QUESTION.replace("edited: []", NEW_QUESTIONS))
    rows[5] = ("row-5", "a red circle", (1, 2, 3))
    write_inputs(grouped, rows)
    clear_logs(grouped)
    before, old = asked(grouped, "asked"), pd.read_parquet(grouped.results / "scores.parquet")
    plan = next(line for line in grouped.darkroom("plan").stdout.splitlines() if line.startswith("scores/judge/images"))
    grouped.snakemake()
    # The new questions about all sixteen, and the old one about the image that is new.
    assert (asked(grouped, "asked") - before, int(plan.split()[4]), engine_starts(grouped)) == (2 * 16 + 1, 16, 2)
    new = pd.read_parquet(grouped.results / "scores.parquet")
    assert [n for n in range(16) if old["sha256"][n] != new["sha256"][n]] == [5]
    assert new["marked"].notna().all() and (new["p_yes"] == old["p_yes"]).sum() >= 15


def test_inserted_and_appended_rows_and_an_atom_are_judged_alone(grouped):
    rows = first_rows()
    rows[3:3] = [("new-0", "a red star", (9, 9, 9))]
    rows += [(f"new-{n}", "two red stars", (9, 9, n)) for n in range(1, 4)]
    write_inputs(grouped, rows, **{"row-7": ["a circle", "a star"]})
    before, questions = asked(grouped), asked(grouped, "asked")
    plan = next(line for line in grouped.darkroom("plan").stdout.splitlines() if line.startswith("scores/judge/images"))
    grouped.snakemake()
    # About row-5, which is as it was at first, what it was not asked then; of row-7 the new atom alone.
    assert asked(grouped) - before == int(plan.split()[4]) == 4 + 1 + 1
    assert asked(grouped, "asked") - questions == 4 * 3 + 2 + 1
    scores = pd.read_parquet(grouped.results / "scores.parquet").set_index("row")
    assert list(scores.index) == [name for name, *_ in rows] and scores["p_atoms"].notna().all()
    assert [one["item"] for one in json.loads(scores["p_atoms_reply"]["row-7"])] == ["a circle", "a star"]


def test_grouping_changes_no_score_and_asks_nothing_again(grouped):
    before, count = tables(grouped), asked(grouped)
    grouped.config["judge"]["shards_per_job"] = 1
    clear_logs(grouped)
    grouped.snakemake()
    assert len(list(grouped.results.glob("logs/score_images/judge/images/*/*.log"))) == 20
    assert (asked(grouped), engine_starts(grouped), tables(grouped)) == (count, 0, before)
    # By auto all of these small shards are one group, whatever their jobs have recorded.
    for together, files in ((5, 4), ("auto", 1)):
        grouped.config["judge"]["shards_per_job"] = together
        clear_logs(grouped)
        grouped.snakemake()
        assert (asked(grouped), engine_starts(grouped), tables(grouped)) == (count, 0, before)
        assert len(score_files(grouped)) == files
    assert grouped.planned() == {}
