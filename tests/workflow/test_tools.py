"""plan, verify, prune, replay, failures and summary: they say what is so, and what the jobs then do agrees with it."""

import json
import re

import pandas as pd
import pytest
import yaml
from conftest import BAD, PROMPTS, opened, shards, write_inputs
from darkroom.files import target_of
from darkroom.jobs.history import read_records
from darkroom.run.workflow import Workflow
from darkroom.store.shardfile import iter_records, read_meta, write_shard
from darkroom.tools.costs import costs
from darkroom.tools.forecast import forecast


def forecast_of(text):
    """stage -> the numbers of the table that `plan` prints."""
    table = text.partition("\n\n")[0]
    lines = [line.split() for line in table.splitlines() if re.match(r"(scores/judge/)?(images|edited) +\d", line)]
    return {
        line[0]: dict(zip(("shards", "missing", "stale", "to make", "carried"), map(int, line[1:6]), strict=True))
        for line in lines
    }


def recorded(run):
    """stage -> [jobs, requests made, carried over] as the jobs recorded them."""
    folders = {"images": "generate_images", "edited": "edit_images"}
    folders |= {f"scores/judge/{kind}": f"score_images/judge/{kind}" for kind in ("images", "edited")}
    found = {}
    for stage, folder in folders.items():
        records = list(read_records(run.results / "benchmarks" / folder))
        found[stage] = [len(records), *(sum(r[name] for r in records) for name in ("made", "carried"))]
    return found


def seconds(workflow, step):
    """What the jobs of a step recorded that they took."""
    return [record["seconds"] for record in read_records(workflow.history_folder(step))]


def test_the_plan_foretells_the_disk_that_a_run_takes(finished, tmp_path):
    config = finished.config | {"results": str(tmp_path)}
    workflow = Workflow.open(config, folder=finished.folder)
    rooms = {room.name: room for room in costs(workflow, forecast(workflow)).rooms}
    files = [path for path in finished.results.rglob("*") if path.is_file() and ".darkroom" not in path.parts]
    assert sum(room.count for room in rooms.values()) == pytest.approx(len(files), rel=0.2)
    bytes_there = sum(path.stat().st_size for path in finished.results.glob("images/*/*"))
    assert 0.5 < rooms["images"].bytes / bytes_there < 2


def test_the_plan_says_what_the_jobs_then_do(copy):
    assert all(
        (s["missing"], s["stale"], s["to make"]) == (0, 0, 0)
        for s in forecast_of(copy.darkroom("plan").stdout).values()
    )
    rows = [row | {"prompt": "two green stars"} if row["id"] in ("p0", "p8") else row for row in PROMPTS]
    write_inputs(copy, rows[:-1])
    sorted(copy.results.glob("scores/judge/edited/*/*.parquet"))[0].unlink()
    text = copy.darkroom("plan").stdout
    planned, before = forecast_of(text), recorded(copy)
    # p0 and p8; e0 starts from p0, so that its shard has another name, too; one score file is gone besides.
    assert planned["images"]["to make"] == 2 and planned["edited"]["to make"] == 1
    assert planned["edited"]["missing"] == 1 and planned["scores/judge/edited"]["missing"] == 2
    assert re.search(r"^images .* \d+:\d\d:\d\d +0.00$", text, re.M)  # known from earlier jobs; no GPU is asked for
    workflow = opened(copy)
    costly = costs(workflow, forecast(workflow))
    took = {stage.told.name: sum(seconds(workflow, stage.told.step)) for stage in costly.stages}
    copy.snakemake()
    # The machine may be busier than it was; and of jobs without their imports, three seconds may be all that they take.
    found = {
        stage.told.name: sum(seconds(workflow, stage.told.step)) - took[stage.told.name] for stage in costly.stages
    }
    for stage in costly.stages:
        assert stage.pace.jobs and stage.seconds / 4 - 3 < found[stage.told.name] < stage.seconds * 4 + 3
    whole = sum(stage.seconds for stage in costly.stages)
    assert whole / 4 < sum(found.values()) < whole * 4
    after = recorded(copy)
    for stage, numbers in planned.items():
        jobs, new, carried = (a - b for a, b in zip(after[stage], before[stage], strict=True))
        assert (jobs, new, carried) == (numbers["missing"] + numbers["stale"], numbers["to make"], numbers["carried"])


def test_verify_reads_every_row_image_and_score(copy):
    text = copy.darkroom("verify").stdout
    counts = {name: int(number) for number, name in re.findall(r"^ +(\d+) (\S.*)$", text, re.M)}
    assert counts["images images"] == counts["images scored"] == 12 and counts["images rejected rows"] == len(BAD)
    assert counts["edited failed"] == 1 and counts["data set files"] == 12 + 3


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def flip_an_image(run):
    path = sorted(run.results.glob("images/*/*.parquet"))[0]
    flip(path, path.read_bytes().index(b"IDAT") + 40)
    return path


def swap_an_image(run):
    """Another whole picture, well formed, under a record that is not its own."""
    path = sorted(run.results.glob("images/*/*.parquet"))[0]
    records, meta = list(iter_records(path)), read_meta(path)
    records[0]["image"] = records[-1]["image"] if records[0]["image"] != records[-1]["image"] else None
    kinds = {"image": "picture", "guidance": "float", "true_cfg": "float"}
    kinds |= dict.fromkeys(("item", "sample", "seed", "width", "height", "steps"), "int")
    write_shard(path, {name: kinds.get(name, "text") for name in records[0]}, records, meta)
    return path


def shorten_a_table(run):
    path = run.results / "rejected.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    return path


def change_a_row(run):
    path = sorted(run.results.glob("prompts/*.jsonl"))[0]
    path.write_text(path.read_text().replace("circle", "square", 1))
    return path


def change_a_data_set_file(run):
    path = sorted(run.results.glob("dataset/images/*/*.png"))[0]
    flip(path, 60)
    return path


@pytest.mark.parametrize(
    "harm",
    [flip_an_image, swap_an_image, shorten_a_table, change_a_row, change_a_data_set_file],
    ids=lambda f: f.__name__,
)
def test_verify_finds_what_was_harmed(copy, harm):
    path = harm(copy)
    done = copy.darkroom("verify", check=False)
    assert done.returncode == 1
    problems = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert str(path.relative_to(copy.folder)) in problems[0]


def test_prune_removes_what_is_no_longer_planned_and_nothing_else(copy):
    write_inputs(copy, PROMPTS[:4])  # the shards of the other rows are not planned any more
    done = copy.darkroom("prune", check=False)
    assert done.returncode == 1 and "run snakemake first, then prune" in done.stderr
    told = re.compile(
        r"^superseded: [\d.]+ [kMG]B in \d+ files and folders of .*; `darkroom prune` removes them$", re.M
    )
    # The end of a run says it, and so do plan and watch; and how many rows were rejected.
    for text in (copy.snakemake().stderr, copy.darkroom("plan").stdout):
        assert told.search(text) and re.search(r"prompts\.jsonl: 3 of 7 rows rejected: 1 x .*failures", text)
    assert told.search(copy.darkroom("watch", "--once", config=False).stdout)
    before = shards(copy)
    for path in list(copy.results.glob("images/*/*.parquet")):  # as if writers had been killed
        path.with_name(f".{path.name}.part").mkdir()
    assert "would remove" in copy.darkroom("prune", "--dry-run").stdout
    assert shards(copy) == before
    for answer, said in {
        "": "--yes agrees beforehand",
        "n\n": "nothing was removed",
        "\n": "nothing was removed",
    }.items():
        done = copy.darkroom("prune", check=False, answer=answer)
        assert done.returncode == 1 and said in done.stdout + done.stderr and "[y/N]" in done.stdout
        assert shards(copy) == before
    text = copy.darkroom("prune", answer="y\n").stdout
    after = shards(copy)
    gone = set(before) - set(after)
    assert gone and all(before[name] == after[name] for name in after)
    assert {f"results/{name}" for name in gone} <= set(text.split())
    left = {path.stem for path in copy.results.glob("images/*/*.parquet")}
    assert left == {path.stem for path in copy.results.glob("prompts/*.jsonl")}
    assert left == {target_of(path).stem for path in copy.results.glob("images/*/.*.part")}
    scores = pd.read_parquet(copy.results / "scores.parquet")
    assert set(scores[scores["kind"] == "images"]["shard"]) <= {name.partition("-")[0] for name in left}
    copy.darkroom("verify")
    assert copy.planned() == {}
    assert "removed 0 files" in copy.darkroom("prune", "--yes").stdout == copy.darkroom("prune").stdout
    assert "superseded" not in copy.darkroom("plan").stdout


def test_a_trial_is_a_run_of_the_config_that_it_writes(copy):
    told = copy.darkroom("trial", "--rows", "4").stdout
    assert "snakemake --configfile config-trial.yaml" in told and "results-trial" in told
    before = shards(copy)
    copy.config = yaml.safe_load((copy.folder / "config-trial.yaml").read_text())
    dry = copy.snakemake("-n").stdout
    line = re.search(r"^a trial: 4 of 10 rows of .*prompts\.jsonl, (\d) of \d rows of .*edits\.jsonl", dry, re.M)
    assert line and line[0] in copy.darkroom("plan").stdout and line[0] in told
    jobs = copy.jobs(dry)
    assert jobs["generate_images"] >= 1 and jobs["edit_images"] >= 1 and jobs["merge_scores"] == 1
    assert "config-trial.yaml" in told and shards(copy) == before  # its results are not those of the whole


def test_any_image_can_be_made_again_from_its_record(copy):
    scores = pd.read_parquet(copy.results / "scores.parquet")
    edit = scores[(scores["kind"] == "edited") & (scores["row"] == "e2")]["key"].iloc[0]
    for arguments in (["--row", "p3", "--sample", "2"], ["--key", edit]):
        done = copy.darkroom("replay", *arguments, check=False)
        assert done.returncode == 0 and "equal: every pixel" in done.stdout, done.stderr
    swap_an_image(copy)
    path = sorted(copy.results.glob("images/*/*.parquet"))[0]
    first = next(iter_records(path))
    done = copy.darkroom("replay", "--key", first["key"], check=False)
    assert done.returncode == 1 and re.search(r"^error: \d+ pixels differ", done.stderr, re.M)
    done = copy.darkroom("replay", "--row", "nobody", check=False)
    assert done.returncode == 1 and "no image with row nobody" in done.stderr


def test_failed_requests_are_tried_again_when_asked_for(copy, finished):
    assert copy.planned() == {}
    copy.config["retry_failed"] = True
    failed = [path for path in copy.results.glob("edited/*/*.parquet") if read_meta(path)["failed"]]
    planned = copy.planned()
    assert planned["edit_images"] == len(failed) == 1 and "generate_images" not in planned
    copy.snakemake()
    assert shards(copy) == shards(finished)
    (shard,) = (path.name.partition("-")[0] for path in failed)
    record = json.loads((copy.results / f"benchmarks/edit_images/{shard}.jsonl").read_text().splitlines()[-1])
    assert (record["made"], record["failed"]) == (0, 1)


def test_failures_lists_what_came_to_nothing_and_why(copy):
    text = copy.darkroom("failures").stdout
    listed, counts = text.strip().split("\n\n")
    prompts, edits = copy.folder / "prompts.jsonl", copy.folder / "edits.jsonl"
    assert f"{prompts}, line 5: prompts: not valid JSON" in listed
    assert f"{edits}, row e3, item 0, sample 0: edited: " in listed
    found = [json.loads(line) for line in copy.darkroom("failures", "--json").stdout.splitlines()]
    assert len(found) == len(listed.splitlines())
    assert [failure["line"] for failure in found if failure["stage"] == "prompts"] == [5, 6, 7]
    rejected = [json.loads(line) for line in (copy.results / "rejected.jsonl").read_text().splitlines()]
    assert [f["reason"] for f in found if "line" in f] == [line["reason"] for line in rejected]
    scores = pd.read_parquet(copy.results / "scores.parquet")
    assert {f["row"] for f in found if f["stage"] == "edited"} == set(scores[scores["error"].notna()]["row"])
    numbers = [int(line.split()[-1]) for line in counts.splitlines()]
    assert numbers == sorted(numbers, reverse=True) and sum(numbers) == len(found)


def test_rows_are_checked_before_anything_is_made(run):
    run.write_rows("prompts.jsonl", [{"id": "p1", "prompt": "a red circle"}, *BAD])
    text = run.darkroom("failures").stdout
    assert text.count("prompts.jsonl, line ") == 3
    run.write_rows("prompts.jsonl", [{"prompt": "a red circle"}])
    assert run.darkroom("failures").stdout == "no rejected rows, failed requests or unreadable replies\n"


def test_the_summary_counts_what_the_table_holds(copy):
    text = copy.darkroom("summary").stdout
    assert re.search(r"^  images: 10 rows, 12 requests, 12 images, 0 failed, \d+ selected; \d+ s$", text, re.M)
    mean = pd.read_parquet(copy.results / "scores.parquet").query("kind == 'images'")["p_yes"].mean()
    assert f"p_yes {mean:.2f}" in text
    (copy.results / "scores.parquet").unlink()
    done = copy.darkroom("summary", check=False)
    assert done.returncode == 1 and done.stderr == "error: results/scores.parquet: no such file; run snakemake first\n"
