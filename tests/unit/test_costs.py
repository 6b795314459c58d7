"""What `plan` says a run will cost, before anything is made and from the records of jobs."""

import json
import math
import os
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import JUDGE, REPOSITORY, small_config
from darkroom.config.models import Config
from darkroom.errors import DarkroomError
from darkroom.jobs.history import append_record, around, benchmarks
from darkroom.run.needs import (
    START_SECONDS,
    Work,
    hub_model_bytes,
    judge_seconds,
    known_bytes,
    needs_of_step,
    seconds_of_step,
    shards_together,
)
from darkroom.run.workflow import Workflow
from darkroom.tools.cli import main
from darkroom.tools.costs import Task, costs, text, wall_seconds
from darkroom.tools.forecast import forecast
from darkroom.tools.summary import summary
from hypothesis import given, settings
from hypothesis import strategies as st

ROWS = 50_000
JUDGE_7B, JUDGE_72B = "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-72B-Instruct"


def write_rows(path, number, **more):
    rows = ({"id": f"row-{n}", "prompt": f"a red fox in the snow, picture {n}"} | more for n in range(number))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """The flux preset for many rows, with its forecast; no model is there."""
    folder = tmp_path_factory.mktemp("flux")
    write_rows(folder / "rows.jsonl", ROWS)
    preset = yaml.safe_load((REPOSITORY / "config/presets/flux-dev.yaml").read_text())
    workflow = Workflow.open(preset | {"prompts": "rows.jsonl", "results": str(folder / "results")}, folder=folder)
    return workflow, forecast(workflow)


@pytest.mark.long
def test_before_the_first_job_of_fifty_thousand_rows_all_is_said_by_built_in_speeds(flux):
    workflow, told = flux
    found = costs(workflow, told)
    images, scores = found.stages
    shards, groups = images.told.jobs, scores.told.jobs
    assert shards == len(workflow.plans["images"].names) and images.told.to_make == scores.told.to_make == ROWS
    # 28 steps of a quarter of a second; the start is a minute, 34 GB at 500 MB/s and two seconds of the job's own.
    assert images.seconds == pytest.approx(ROWS * 7 + shards * (60 + 68 + 2))
    assert scores.seconds == pytest.approx(ROWS * 0.5 + groups * (60 + 16.6e9 / 500e6 + 2))
    assert found.gpu_hours == pytest.approx((images.seconds + scores.seconds) / 3600)
    assert 0 < scores.share < 0.1 and 0 < images.share < 0.1
    lines = text(found, told, gpus=[32], jobs=8).splitlines()
    assert max(map(len, lines)) <= 100
    said = "\n".join(lines)
    assert re.search(
        rf"^images +{shards} +{shards} +0 +50000 +0 +\d+:\d\d:\d\d +{images.seconds / 3600:.2f}$", said, re.M
    )
    by_clock = re.search(r"by the clock: (\d+):\d\d:\d\d on 32 GPUs", said)
    assert found.gpu_hours / 32 - 1 < int(by_clock[1]) < found.gpu_hours / 16
    # What a job asks for is what the rules ask for: 3 GB and 1.3 times 34 GB.
    largest = max(workflow.plans["images"].names, key=lambda name: workflow.requests("images", name))
    asked = needs_of_step(workflow, images.told.step, largest)
    assert re.search(rf"^images +{shards} .* 47.2 GB +1 +4 +\d+-{asked.runtime} min$", said, re.M)
    assert "speeds  built in, for a card of 80 GB, as no job was recorded yet: images, scores/judge/images" in said
    assert re.search(r"^starts .*: \d % of images \(`shards.size`\), \d % of", said, re.M)
    assert "(`judge.shards_per_job`)" in said
    # A picture in its shard and in the data set, each of two bytes a pixel; a file for each in the data set alone.
    disk = re.search(r"^disk +([\d.]+) GB in ([\d,]+) files and folders to write; .* free", said, re.M | re.I)
    assert 2 * ROWS * 2 * 2**20 < float(disk[1]) * 1e9 < 3 * ROWS * 2 * 2**20
    assert ROWS + 5 * shards < int(disk[2].replace(",", "")) < 1.5 * ROWS
    assert "black-forest-labs/FLUX.1-dev 34.0 GB" in said


@pytest.mark.long
def test_the_time_is_said_for_any_number_of_gpus(flux):
    workflow, told = flux
    found = costs(workflow, told)
    hours = [wall_seconds(found.tasks, gpus, jobs=64) / 3600 for gpus in (1, 8, 32)]
    assert hours == sorted(hours, reverse=True)
    for gpus, taken in zip((1, 8, 32), hours, strict=True):
        assert found.gpu_hours / gpus <= taken
    assert hours[0] < 1.02 * found.gpu_hours
    said = text(found, told)
    assert re.search(r"by the clock: \d+:.* on 1 GPU, \d+:.* on 8 GPUs, \d+:.* on 32 GPUs", said)


tasks = st.lists(
    st.tuples(st.integers(1, 50), st.integers(0, 3), st.lists(st.integers(0, 30), max_size=3)), max_size=30
)


@given(tasks, st.integers(1, 5), st.integers(1, 5))
def test_no_clock_is_faster_than_its_longest_chain_or_than_all_hands(drawn, gpus, jobs):
    todo = [
        Task("r", f"{n}", seconds, min(used, gpus), [f"{before}" for before in inputs if before < n])
        for n, (seconds, used, inputs) in enumerate(drawn)
    ]
    taken = wall_seconds(todo, gpus, jobs)
    ends = {}
    for task in todo:
        ends[task.path] = task.seconds + max((ends[before] for before in task.inputs), default=0)
    assert max(ends.values(), default=0) <= taken <= sum(task.seconds for task in todo)
    assert sum(task.seconds * task.gpus for task in todo) <= gpus * taken
    assert sum(task.seconds for task in todo if not task.gpus) <= jobs * taken
    assert wall_seconds(todo, 100, 100) == max(ends.values(), default=0)


def test_jobs_wait_for_their_inputs_and_for_room():
    chain = [Task("r", "a", 5), Task("r", "b", 5, inputs=["a"]), Task("r", "c", 5, inputs=["there already"])]
    assert [wall_seconds(chain, 0, jobs) for jobs in (1, 2, 3)] == [15, 10, 10]
    assert wall_seconds([Task("r", name, 6, gpus=2) for name in "abcd"], 4, 1) == 12
    assert (
        wall_seconds([Task("r", "large", 6, gpus=8), Task("r", "other", 1)], 1, 1) == 6
    )  # asked for more than there is


# ------------------------------------------------------------------------------------------------- from records


@pytest.fixture
def small(tmp_path):
    """A small set for the embedded models, of which nothing is made."""
    write_rows(tmp_path / "prompts.jsonl", 40)
    config = small_config(results=str(tmp_path / "results"), judge={"shards_per_job": "auto"})
    return Workflow.open(config, folder=tmp_path)


def record(workflow, step, shard, seconds, job_seconds, **more):
    """What a job leaves: its own record, and Snakemake's benchmark of it."""
    append_record(workflow.history(step, shard), {"carried": 0, "failed": 0, "gpus": 0, "seconds": seconds} | more)
    path = workflow.history_folder(step) / "0000aaaa" / f"{shard}-00000000.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"s\th:m:s\n{job_seconds}\t0:00:01\n")


def test_after_the_first_jobs_their_records_tell(small):
    step = small.lineage.step("images")
    names = small.plans["images"].names
    record(small, step, names[0], 22.0, 25.0, made=10, working=20.0)
    record(small, step, names[1], 24.0, 34.0, made=10, working=20.0, waited=7.0)  # for a device: no work of its own
    record(small, step, names[2], 1.0, 4.0, made=0, working=0.0)
    assert around(small.history_folder(step)) == 3.0
    told = forecast(small)
    found = costs(small, told)
    images, scores = found.stages
    assert (images.pace.start, images.pace.request, images.pace.idle, images.pace.jobs) == (3 + 3, 2.0, 4.0, 2)
    assert images.seconds == images.told.jobs * 6 + 40 * 2
    assert images.share == pytest.approx(images.told.jobs * 6 / images.seconds)
    assert scores.pace.jobs == 0
    said = text(found, told, jobs=2)
    assert "speeds  as 2 jobs recorded them: images" in said
    assert "built in, for a card of 80 GB, as no job was recorded yet: scores/judge/images" in said
    assert re.search(r"by the clock: \d:\d\d:\d\d with 2 jobs at a time", said)
    # More than a tenth: the size that would make it one. Scores are one job, of which there cannot be fewer.
    size = 4 * math.ceil(6 * 9 / (40 * 2 / images.told.jobs))
    assert f"`shards.size: {size}` would make it 10 % for images" in said and "judge.shards_per_job: " not in said
    for _ in range(3):  # no number of these shards can make up for that
        record(small, step, names[0], 900.0, 903.0, made=1, working=0.1)
    assert "would make it" not in text(costs(small, told), told)


def test_records_of_other_settings_are_drawn_on_by_what_the_settings_should_cost(small, tmp_path):
    step = small.lineage.step("images")
    each = seconds_of_step(small, step, Work(1, 64 * 64))
    record(small, step, small.plans["images"].names[0], 30.0, 30.0, made=10, working=20.0, expected=10 * each)
    longer = small.config.with_section("generate", steps=3 * small.config.generate.steps)
    for config, request in ((small.config, 2.0), (longer, 6.0)):
        workflow = Workflow.open(config.model_dump(), folder=tmp_path)
        assert costs(workflow, forecast(workflow)).stages[0].pace.request == pytest.approx(request)


def test_the_records_may_be_those_of_another_run(small, tmp_path):
    step = small.lineage.step("images")
    record(small, step, small.plans["images"].names[0], 30.0, 33.0, made=10, working=20.0)
    trial = tmp_path / "trial"
    shutil.move(small.results("benchmarks"), trial / "benchmarks")
    told = forecast(small)
    assert costs(small, told).stages[0].pace.jobs == 0
    assert costs(small, told, trial).stages[0].pace.request == 2.0
    with pytest.raises(DarkroomError, match="no job has recorded anything there"):
        costs(small, told, tmp_path / "none")


def test_of_a_large_set_the_newest_jobs_tell_the_time(small):
    """Ten thousand small files are a long way to read on a network disk."""
    step = small.lineage.step("images")
    for number in range(104):
        record(small, step, f"shard{number}", 2.0, 900.0 if number < 4 else 3.0, made=1, working=1.0)
        path = small.history_folder(step) / "0000aaaa" / f"shard{number}-00000000.tsv"
        os.utime(path, (number + 1, number + 1))
    path.write_text("cut o")  # the newest, whoever wrote it
    found = benchmarks(small.history_folder(step))
    assert set(found.seconds.values()) == {3.0} and len(found.seconds) == 99
    assert (found.jobs, found.total) == (103, 103 * 3)
    record(small, small.lineage.step("images", "judge"), "group", 5.0, 7.0, made=1, working=1.0)
    names = [*small.catalogue.score_names("images"), *small.catalogue.names("images", "mass")]
    columns = ["kind", "row", "error", "selected", *names]
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in columns}), small.results("scores.parquet"))
    said = summary(small)
    assert "0 selected; about 309 s, as the newest 99 of 103 jobs tell\n" in said
    assert "  judged: 7 s; rejected rows: 0\n" in said  # every job told it


@pytest.mark.parametrize("masses", [(0.6, 0.1), (0.6, 0.4)])
def test_the_end_of_a_run_warns_of_a_judge_that_wanted_to_say_something_else(small, masses):
    line = {"kind": "images", "row": "r", "error": None, "selected": True, "p_yes": 0.9}
    line |= dict.fromkeys(small.catalogue.score_names("images"), 1)
    pq.write_table(
        pa.Table.from_pylist([line | {"p_yes_mass": mass} for mass in masses]), small.results("scores.parquet")
    )
    said = summary(small)
    assert ("WARNING: p_yes is no number to trust: on average 35.0% of" in said) == (sum(masses) < 1)


def test_records_that_cannot_be_read_are_passed_over(small):
    step, name = small.lineage.step("images"), small.plans["images"].names[0]
    record(small, step, name, 30.0, 33.0, made=10, working=20.0)
    (small.history_folder(step) / "0000aaaa" / f"{name}-11111111.tsv").write_text("cut o")
    with open(small.history(step, name), "a") as out:
        out.write('{"made": ')
    assert costs(small, forecast(small)).stages[0].pace.start == 13.0


def test_the_command_takes_numbers_and_records(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "prompts.jsonl", 4)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(small_config()))
    assert main(["plan", "--configfile", "my.yaml", "-j", "3"]) == 0
    assert "with 3 jobs at a time" in capsys.readouterr().out
    for wrong in (["--gpus", "0"], ["--jobs", "many"]):
        with pytest.raises(SystemExit):
            main(["plan", "--configfile", "my.yaml", *wrong])


# ------------------------------------------------------------------------------------------------- shards_per_job: auto


def config(size=200, samples=1, **judge):
    return Config.model_validate({"shards": {"size": size}, "samples_per_prompt": samples, "judge": judge})


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 50), st.sampled_from([JUDGE_7B, JUDGE_72B, str(JUDGE)]), st.floats(0.5, 2))
def test_auto_keeps_starts_below_a_tenth_also_where_the_card_is_twice_as_fast(size, samples, model, faster):
    one = config(size, samples, model=model)
    weights = known_bytes("judge", one.judge)
    work = judge_seconds(Work(size * samples, 0), weights) * shards_together(one) / faster
    start = START_SECONDS + weights / 500e6
    assert start / (start + work) < 0.1 or shards_together(one) == 1000


def test_auto_takes_no_more_shards_than_that_needs():
    assert shards_together(config()) == 18
    assert shards_together(config(size=20_000)) == 1
    assert shards_together(config(size=1)) == 1000
    assert shards_together(config(shards_per_job=5)) == 5
    assert 5 < shards_together(config(model=JUDGE_72B)) < 18  # it starts four times as slowly, and answers six times so


def test_a_model_of_the_hub_is_taken_to_weigh_what_its_name_says():
    assert hub_model_bytes("judge", JUDGE_72B) == pytest.approx(147e9, rel=0.02)
    assert hub_model_bytes("judge", JUDGE_7B) == pytest.approx(16.6e9, rel=0.02)
    assert hub_model_bytes("judge", "nobody/judge-of-2b-or-not") == pytest.approx(6.6e9, rel=0.02)
    assert hub_model_bytes("judge", "nobody/judge") == 17e9
    assert hub_model_bytes("generate", "black-forest-labs/FLUX.1-dev") == 34e9


def test_what_is_recorded_or_fetched_regroups_nothing(small, tmp_path):
    """A run's groups are a matter of its config and rows alone."""
    step = small.lineage.step("images", "judge")
    groups = small.groups["images"].members
    assert [len(shards) for shards in groups.values()] == [len(small.plans["images"].names)]
    for group in groups:
        record(small, step, group, 500.0, 500.0, made=40, working=1.0)
    again = Workflow.open(small.config.model_dump(), folder=tmp_path)
    assert again.groups["images"].members == groups
    assert Workflow.of_job(small.config.model_dump()).groups["images"].members == groups
