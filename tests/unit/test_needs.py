"""What jobs ask the cluster for."""

import json
from dataclasses import astuple, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from darkroom.config.models import Config, DeviceSection, Edit, Generate, Judge
from darkroom.plan.stages import STAGES
from darkroom.run.lineage import Step
from darkroom.run.needs import (
    HUB_MODEL_BYTES,
    Needs,
    Work,
    export_needs,
    gallery_index_needs,
    gallery_shard_needs,
    gpus_of,
    image_needs,
    judge_needs,
    merge_needs,
    needs_of_all,
    needs_of_any_shard,
    needs_of_step,
    plot_needs,
    threads_of,
)

GENERATE, EDIT = Step("images", "images", None, "generate"), Step("edited", "edited", None, "edit")
SCORE = Step("scores/judge/images", "images", "judge", "judge")
FLUX, JUDGE = HUB_MODEL_BYTES["generate"], HUB_MODEL_BYTES["judge"]
IMAGES, SCORES = Generate(device="cuda"), Judge(device="cuda")
TABLES = [merge_needs, gallery_shard_needs, gallery_index_needs, export_needs, plot_needs]


def work(requests, shards=1, side=1024):
    return Work(requests, requests * side * side, shards)


def images(requests=200, model=FLUX, attempt=1, side=1024, **section):
    return image_needs(IMAGES.model_copy(update=section), work(requests, side=side), model, attempt)


def scores(requests=200, model=JUDGE, attempt=1, **section):
    return judge_needs(SCORES.model_copy(update=section), work(requests), model, attempt)


@pytest.mark.parametrize("needs", TABLES)
def test_jobs_on_tables_ask_for_more_where_there_is_more(needs):
    small, large, again = needs(work(20, 3, 64), 1), needs(work(10**6, 10**4), 1), needs(work(10**6, 10**4), 2)
    assert small.runtime < 10 and small.mem_mb < 1500  # the demonstration set, on a short queue
    assert large.runtime > 60 and large.mem_mb > 2000
    assert (again.runtime, again.mem_mb) == (2 * large.runtime, int(1.5 * large.mem_mb))
    assert (small.threads, small.gpu) == (1, 0)


def test_jobs_on_pictures_ask_for_more_where_they_are_larger():
    for needs in (export_needs, gallery_shard_needs):
        assert needs(work(10**4, side=2048), 1).runtime > 3 * needs(work(10**4, side=1024), 1).runtime
        assert needs(work(10, side=8192), 1).mem_mb > needs(work(10, side=64), 1).mem_mb + 500  # one picture, decoded


@pytest.mark.parametrize(
    "growing",
    [
        [images(attempt=attempt) for attempt in (1, 2, 3)],
        [images(model=model) for model in (10**7, FLUX)],
        [images(requests) for requests in (100, 200)],
        [images(side=side) for side in (512, 1024, 2048)],
        [images(true_cfg=value) for value in (1, 2)],
        [images(steps=value) for value in (4, 28)],
        [images(offload=value) for value in ("none", "model", "sequential")],
        [images(gpus=gpus) for gpus in (4, 2, 1)],
        [scores(attempt=attempt) for attempt in (1, 2, 3)],
        [scores(10_000, model) for model in (10**7, JUDGE, 144 * 10**9)],
        [scores(requests) for requests in (100, 10_000)],
    ],
)
def test_jobs_with_models_ask_for_more_time_where_there_is_more_to_do(growing):
    minutes = [needs.runtime for needs in growing]
    assert minutes[0] >= 10 and minutes == sorted(set(minutes))


def test_memory_is_that_of_the_weights_and_the_processes():
    memory = [images(model=size, attempt=attempt).mem_mb for size in (10**7, FLUX) for attempt in (1, 2, 3)]
    assert memory == sorted(set(memory))
    assert memory[3] > FLUX / 10**6  # the weights pass through it
    assert images(gpus=4).mem_mb > 3.9 * images().mem_mb  # each GPU has a copy
    assert scores().mem_mb < scores(gpus=4).mem_mb < 2 * scores().mem_mb  # its GPUs share one
    assert scores(engine_args={"cpu_offload_gb": 30}).mem_mb > scores().mem_mb + 30_000


def test_threads_and_gpus_follow_the_device():
    for step, section, threads in ((EDIT, IMAGES, 8), (SCORE, SCORES, 4)):
        two, none = (section.model_copy(update=update) for update in ({"gpus": 2}, {"device": "cpu"}))
        assert (threads_of(step, two), gpus_of(two)) == (threads, 2)
        assert (threads_of(step, none), gpus_of(none)) == (1, 0)


@pytest.fixture
def workflow():
    """Two shards of prompts, that are judged together, and one of edits."""
    requests = {"images": {"a": 10, "b": 30}, "edited": {"a": 5}}
    return SimpleNamespace(
        config=Config(generate=IMAGES, edit=Edit(**IMAGES.model_dump()), judge=SCORES),
        plans={stage: SimpleNamespace(names=list(shards)) for stage, shards in requests.items()},
        groups={
            "images": SimpleNamespace(members={"a": ["a", "b"]}),
            "edited": SimpleNamespace(members={"a": ["a"]}),
        },
        stage=STAGES.__getitem__,
        device_section=lambda step: {"generate": IMAGES, "edit": IMAGES, "judge": SCORES}[step.section],
        requests=lambda stage, shard: requests[stage][shard],
        model_bytes=HUB_MODEL_BYTES,
    )


def test_each_rule_asks_for_its_own_part_of_the_work(workflow):
    one = 1024 * 1024
    with_device = {"threads": 4, "gpu": 1}
    expected = image_needs(IMAGES, Work(30, 30 * one), FLUX, 1)
    assert needs_of_step(workflow, GENERATE, "b") == replace(expected, **with_device)
    # An edit looks at its source, too.
    expected = image_needs(IMAGES, Work(5, 10 * one), FLUX, 1)
    assert needs_of_step(workflow, EDIT, "a") == replace(expected, **with_device)
    expected = judge_needs(SCORES, Work(40, 40 * one, 2), JUDGE, 1)
    assert needs_of_step(workflow, SCORE, "a") == replace(expected, **with_device)
    of_both = gallery_shard_needs(Work(30, 30 * one), 2), gallery_shard_needs(Work(5, 10 * one), 2)
    largest = Needs(of_both[1].mem_mb, of_both[0].runtime)  # pictures are twice as large where their source is shown
    assert of_both[0].mem_mb < largest.mem_mb and of_both[1].runtime < largest.runtime
    assert needs_of_any_shard(workflow, "gallery_shard") == largest
    for rule, needs in (("merge_scores", merge_needs), ("export_dataset", export_needs), ("draw_plots", plot_needs)):
        assert needs_of_all(workflow, rule) == needs(Work(45, 50 * one, 3), 1)


def test_the_config_replaces_what_a_job_asks_for(workflow):
    asked = {"resources": {"mem_mb": 64_000, "runtime": 90, "slurm_partition": "a100"}}
    workflow.device_section = lambda step: SCORES.model_copy(update=asked)
    for attempt in (1, 3):
        assert astuple(needs_of_step(workflow, SCORE, "a", attempt)) == (64_000, 90, 4, 1)
    workflow.device_section = lambda step: SCORES
    assert needs_of_step(workflow, SCORE, "a").runtime != 90


def test_a_fetched_model_is_as_large_as_its_marker_says_and_one_to_be_fetched_is_waited_for(workflow, tmp_path: Path):
    marker = str(tmp_path / "generate.json")
    with pytest.raises(FileNotFoundError) as waiting:
        needs_of_step(workflow, GENERATE, "a", marker=marker)
    assert waiting.value.filename == marker  # Snakemake compares it with the job's input, and asks again later
    Path(marker).write_text(json.dumps({"files": {"a/1.safetensors": 3 * 10**9, "a/config.json": 10**12}}))
    expected = image_needs(IMAGES, Work(10, 10 * 2**20), 3 * 10**9, 1)
    asked = needs_of_step(workflow, GENERATE, "a", marker=marker)
    assert (asked.mem_mb, asked.runtime) == (expected.mem_mb, expected.runtime)


def test_a_metric_without_a_model_asks_for_no_gpu(workflow):
    workflow.device_section = lambda step: DeviceSection(device="cpu")
    asked = needs_of_step(workflow, Step("scores/brightness/images", "images", "brightness", "brightness"), "a")
    assert (asked.threads, asked.gpu) == (1, 0) and asked.runtime < judge_needs(SCORES, work(40), JUDGE, 1).runtime
