"""A trial: which rows it takes, that these are the whole set's in all that counts, and the config that `darkroom trial` writes."""

import base64
import csv
import hashlib
import io
import json
import os
import random
from types import SimpleNamespace

import pytest
import yaml
from conftest import small_config
from darkroom.config.models import Generate
from darkroom.errors import DarkroomError
from darkroom.plan.requests import expand
from darkroom.plan.shards import load_plan, make_plan
from darkroom.rows.fields import Fields
from darkroom.rows.labels import read_labels
from darkroom.rows.pictures import read_picture
from darkroom.run.workflow import NothingDrawn, Workflow
from darkroom.tools.cli import trial
from darkroom.tools.trial import trial_config, write_config
from PIL import Image

GENERATE = Generate(width=64, height=64, steps=1)
PROMPTS = [{"id": f"p{n}", "prompt": f"a red circle, {n}"} if n % 2 else {"prompt": f"{n // 3}"} for n in range(100)]
BAD = [b"{bad", b'{"prompt": 7}', b'{"id": "p1", "prompt": "taken"}']
EDITS = [
    {"prompt": f"make it blue, {k}", "images": [{"row": f"p{n}", "sample": 0}]}
    for n in range(1, 100, 2)
    for k in (1, 2)
]


def write(path, rows):
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def plans(folder, trial, prompts=PROMPTS, edits=EDITS, name="whole", **arguments):
    """The plans of prompts and edits."""
    folder.joinpath(name).mkdir(exist_ok=True)
    files = [write(folder / name / "p.jsonl", prompts), write(folder / name / "e.jsonl", edits)]
    results = folder / name / "results"
    first = make_plan(files[0], "prompts", 7, results, trial=trial, **arguments)
    return first, make_plan(files[1], "edits", 7, results, 1, first, trial=trial, **arguments)


def usable(plan):
    """id -> normal row, of the rows that can be used."""
    return {row["id"]: row for _, row in plan.rows() if "rejected" not in row}


def test_it_takes_rows_of_the_whole_set_with_their_ids_seeds_and_keys(tmp_path):
    whole, some = plans(tmp_path, None)[0], plans(tmp_path, 20, name="trial")[0]
    rows, taken = usable(whole), usable(some)
    assert len(taken) == 20 == some.rows_used and some.left_out == 80 and whole.left_out == 0
    assert all(rows[name] == row for name, row in taken.items())
    for row in taken.values():
        assert list(expand(row, GENERATE, 0, 2)) == list(expand(rows[row["id"]], GENERATE, 0, 2))
    # Equal rows without an id are told apart by which of them they are, in all rows.
    repeats = [name for name in taken if sum(row["row"] == taken[name]["row"] for row in rows.values()) > 1]
    assert repeats


def test_the_same_rows_are_drawn_whatever_their_order_and_a_new_row_takes_the_place_of_one_at_most(tmp_path):
    prompts = [row for row in PROMPTS if "id" in row]
    first = usable(plans(tmp_path, 20, prompts)[0])
    shuffled = random.Random(0).sample(prompts, len(prompts))
    assert set(usable(plans(tmp_path, 20, shuffled, name="shuffled")[0])) == set(first)
    for number in range(5):
        more = [*prompts[:7], {"id": f"new {number}", "prompt": "new"}, *prompts[7:]]
        assert len(set(first) - set(usable(plans(tmp_path, 20, more, name=f"more {number}")[0]))) <= 1


def test_it_takes_all_edits_of_its_rows_and_no_other(tmp_path):
    prompts, edits = plans(tmp_path, 20)
    named = {row["row"]["id"] for row in usable(prompts).values() if "id" in row["row"]}
    sources = [row["row"]["images"][0]["row"] for row in usable(edits).values()]
    assert 0 < len(named) < 20 and sorted(sources) == sorted(2 * list(named))
    assert edits.rows_rejected == 0 and edits.left_out == len(EDITS) - len(sources)
    whole = usable(plans(tmp_path, None, name="all")[1])
    assert all(whole[name] == row for name, row in usable(edits).items())


def test_edits_of_other_pictures_are_drawn_like_prompts(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "picture.png")
    own = [{"prompt": f"make it blue, {n}", "images": str(tmp_path / "picture.png")} for n in range(30)]
    prompts, edits = plans(tmp_path, 5, edits=[*EDITS, *own])
    named = {row["row"]["id"] for row in usable(prompts).values() if "id" in row["row"]}
    of_run = [row for row in usable(edits).values() if isinstance(row["row"]["images"], list)]
    assert len(of_run) == 2 * len(named) and edits.rows_used == len(of_run) + 5
    alone = make_plan(write(tmp_path / "own.jsonl", own), "edits", 7, tmp_path / "alone", trial=5)
    assert set(usable(alone)) <= {row["id"] for _, row in plans(tmp_path, None, edits=own)[1].rows()}
    assert (alone.rows_used, alone.left_out) == (5, 25)


def test_rows_that_cannot_be_used_are_told_as_in_the_whole_set(tmp_path):
    edits = [*EDITS, b"[]", {"prompt": "x"}, {"prompt": "x", "images": [{"row": "p1", "sample": 7}]}]
    found = [plans(tmp_path, trial, [*PROMPTS, *BAD], edits, name=f"{trial}") for trial in (None, 99)]
    for whole, some in zip(*found, strict=True):
        assert some.rows_rejected == whole.rows_rejected == 3 and some.reasons == whole.reasons
        assert some.rows_used + some.left_out == whole.rows_used


def test_more_rows_than_there_are_is_all_of_them(tmp_path):
    for whole, some in zip(plans(tmp_path, None), plans(tmp_path, 1000, name="trial"), strict=True):
        assert some.left_out == 0 and some.digest == whole.digest


def test_pictures_in_rows_and_several_files_of_any_kind(tmp_path):
    pictures = []
    for n in range(12):
        stream = io.BytesIO()
        Image.new("RGB", (16, 16), (n, 0, 0)).save(stream, "PNG")
        pictures.append(stream.getvalue())
    urls = [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in pictures]
    one = write(tmp_path / "a.jsonl", [{"text": f"edit {n}", "pic": url} for n, url in enumerate(urls[:6])])
    with open(tmp_path / "b.csv", "w", newline="") as stream:
        csv.writer(stream, delimiter=";").writerows([["text", "pic"], *([f"edit {n}", urls[n]] for n in range(6, 12))])
    fields = Fields.of({"prompt": "text", "images": "pic"}, "edits")
    plan = make_plan([one, tmp_path / "b.csv"], "edits", 3, tmp_path / "results", fields=fields, trial=4)
    sources = {row["items"][0]["source"]["sha256"] for row in usable(plan).values()}
    assert len(sources) == 4 and sources <= {hashlib.sha256(data).hexdigest() for data in pictures}
    assert all(read_picture(plan.pictures, sha256, "") in pictures for sha256 in sources)


def test_another_number_is_another_plan_and_the_same_one_is_kept(tmp_path):
    path = write(tmp_path / "p.jsonl", PROMPTS)
    made = [make_plan(path, "prompts", 7, tmp_path / "results", trial=trial) for trial in (5, 9, None, 5)]
    assert [plan.rows_used for plan in made] == [5, 9, 100, 5] and made[0].id == made[3].id
    state = os.stat(tmp_path / "results/.darkroom/plan/prompts/current.json").st_mtime_ns
    assert make_plan(path, "prompts", 7, tmp_path / "results", trial=5).id == made[0].id
    assert os.stat(tmp_path / "results/.darkroom/plan/prompts/current.json").st_mtime_ns == state
    assert load_plan(tmp_path / "results", "prompts").left_out == 95


def test_labels_of_rows_that_are_left_out_are_no_mistake(tmp_path):
    data = b"key,label\na,accept\nb,reject\nc,perhaps\n"
    tmp_path.joinpath("labels.csv").write_bytes(data)
    labels = read_labels(tmp_path / "labels.csv", hashlib.sha256(data).hexdigest())
    labels.partial = True
    assert labels.of("a") == "accept"
    assert [record["line"] for record in labels.left()] == [4]


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "p.jsonl", [*PROMPTS, *BAD])
    write(tmp_path / "e.jsonl", EDITS)
    (tmp_path / "labels.csv").write_text("key,label\nnobody,accept\n")
    config = small_config(prompts="p.jsonl", edits="e.jsonl", labels="labels.csv", results="sets/$NAME")
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("NAME", "first")
    return tmp_path


def command(*files, rows=20, results=None, to=None, config=()):
    return trial(SimpleNamespace(files=[*files], configfile=[], config=list(config), rows=rows, results=results, to=to))


def test_the_command_writes_an_ordinary_config_and_says_what_to_do_with_it(folder, capsys):
    assert command(folder / "my.yaml", config=["samples_per_prompt=2"]) == 0
    said = capsys.readouterr().out.splitlines()
    path = folder / "my-trial.yaml"
    written, own = yaml.safe_load(path.read_text()), yaml.safe_load((folder / "my.yaml").read_text())
    assert written == own | {"samples_per_prompt": 2, "trial": 20, "results": "sets/$NAME-trial"}
    workflow = Workflow.open(written)
    assert workflow.config.results == "sets/first-trial" and not (folder / "sets/first").exists()
    assert {rows: plan.rows_used for rows, plan in workflow.row_plans.items()}["prompts"] == 20
    assert workflow.settings()["rows"]["prompts"].startswith("p.jsonl: 20 of 100 rows in ")
    labels = workflow.labels()
    assert labels is not None and labels.left() == []
    told = f"{path}: a trial: 20 of 100 rows of {folder}/p.jsonl, "
    assert said[0].startswith(told) and said[0].endswith("drawn by a hash of their ids; the others are left out")
    assert said[1].startswith(f"{folder}/p.jsonl: 3 of 103 rows rejected: ") and len(said) == 5
    assert said[2].endswith(f"snakemake --configfile {path} --cores 8")
    assert said[3].endswith("sets/first-trial/scores.csv")  # this config wants no gallery
    assert said[4].endswith(f"snakemake --configfile {folder}/my.yaml --config samples_per_prompt=2 --cores 8")


def test_it_is_written_anew_unless_it_was_changed_by_hand(folder, capsys):
    for rows in (20, 20, 30):
        command(folder / "my.yaml", rows=rows)
        assert yaml.safe_load((folder / "my-trial.yaml").read_text())["trial"] == rows
    text = (folder / "my-trial.yaml").read_text()
    for kept in (text.replace("trial: 30", "trial: 31"), text + "\n", "", "prompts: p.jsonl\n"):
        (folder / "my-trial.yaml").write_text(kept)
        with pytest.raises(
            DarkroomError, match=r"my-trial\.yaml: was not written by `darkroom trial`, or changed since"
        ):
            command(folder / "my.yaml")
        assert (folder / "my-trial.yaml").read_text() == kept
    command(folder / "my.yaml", to=folder / "other.yaml", results="else/where")
    assert yaml.safe_load((folder / "other.yaml").read_text())["results"] == "else/where"


def test_without_edits_of_its_rows_it_is_one_of_prompts_alone(folder, capsys):
    write(folder / "e.jsonl", [edit for edit in EDITS if edit["images"][0]["row"] == "p1"])
    drawn = usable(make_plan(folder / "p.jsonl", "prompts", 4, folder / "drawn", trial=3))
    assert "p1" not in drawn
    command(folder / "my.yaml", rows=3)
    assert "the trial is one of prompts alone" in capsys.readouterr().out
    written = yaml.safe_load((folder / "my-trial.yaml").read_text())
    assert written["edits"] is None
    with pytest.raises(
        NothingDrawn, match=r"e\.jsonl: no edit starts from one of the 3 rows of the trial; take more, or"
    ):
        Workflow.open(written | {"edits": "e.jsonl"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0}, "config: trial: must be at least 1, got 0"),
        ({"results": "sets/$NAME"}, "--results sets/$NAME: holds the whole set; give the trial another folder"),
        ({"config": ["trial=4"]}, "this is the config of a trial (trial: 4); name that of the whole set"),
        ({"config": ["prompts=gone.jsonl"]}, "config: prompts: no such file: gone.jsonl"),
    ],
)
def test_what_is_wrong_is_one_line_and_writes_nothing(folder, arguments, message):
    with pytest.raises(DarkroomError) as raised:
        command(folder / "my.yaml", **arguments)
    assert str(raised.value) == message and not (folder / "my-trial.yaml").exists()


def test_without_a_config_there_is_nothing_to_try():
    with pytest.raises(DarkroomError, match=r"name the config of the whole set: darkroom trial my\.yaml"):
        command()


def test_the_results_of_a_config_that_names_none(tmp_path):
    assert trial_config({"prompts": "p"}, 5) == {"prompts": "p", "trial": 5, "results": "results-trial"}
    assert trial_config({"results": "/data/set/"}, 5)["results"] == "/data/set-trial"
    (tmp_path / "file").touch()
    with pytest.raises(DarkroomError, match=r"file/x\.yaml: \w+"):
        write_config(tmp_path / "file/x.yaml", {}, [])
