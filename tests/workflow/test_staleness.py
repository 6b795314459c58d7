"""What is planned after a change, for every target, in a module, with Snakemake's records and without them: exactly what must run."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import warm
from conftest import PROMPTS, REPOSITORY, Run, copied, environment, image_files, opened, score_files, write_inputs
from darkroom.store.manifest import read_manifest
from darkroom.store.shardfile import IMAGE_COLUMNS, iter_records, read_meta, write_shard_with_manifest
from test_module import OUTER

TABLES = {"merge_scores", "write_dataset", "all"}
PICTURES = {"generate_images", "edit_images", "score_images"}


def touch(run: Run) -> None:
    """Every file, in an order that has nothing to do with what is made from what."""
    for path in sorted(run.folder.rglob("*"), key=lambda path: path.name[::-1]):
        if path.is_file():
            os.utime(path)
            time.sleep(0.001)


def edit_a_row(run: Run) -> None:
    write_inputs(run, [row | {"width": 48} if row["id"] == "p8" else row for row in PROMPTS])


def with_another_rubric(run: Run) -> None:
    text = (REPOSITORY / "config/rubrics/shapes.yaml").read_text()
    (run.folder / "rubric.yaml").write_text(text.replace("Please answer", "Answer"))
    run.config["judge"]["rubric"] = str(run.folder / "rubric.yaml")


def of_row_p8(run: Run) -> int:
    """The place of the shard that holds the row p8, which no edit starts from."""
    return next(n for n, path in enumerate(image_files(run)) if "p8" in {r["row"] for r in iter_records(path, ["row"])})


def other_pixels(run: Run) -> None:
    """The shard of row p8 as another card would have made it again."""
    path = image_files(run)[of_row_p8(run)]
    records = list(iter_records(path))
    records[0]["sha256"] = "0" * 64
    manifest = read_manifest(path.with_suffix(".manifest"))
    write_shard_with_manifest(path, IMAGE_COLUMNS, iter(records), read_meta(path), manifest["made_from"])


def a_failed_job(run: Run) -> None:
    """Other steps, and all jobs that make images fail."""
    run.config["generate"] |= {"steps": 3, "device": "cuda"}  # which is no part of what is made, and not to be had here
    done = run.snakemake("--keep-going", "--until", "generate_images", check=False)
    assert done.returncode == 1 and "error: generate.device is cuda, but torch sees no GPU" in done.stdout + done.stderr
    run.config["generate"]["device"] = "cpu"


# change -> (how, what it makes stale of shards, of the shard of p8: its pictures, and its scores; whether tables are stale)
CHANGES: dict[str, tuple[Callable[[Run], object], set[str], set[str], set[str], bool]] = {
    "nothing": (lambda run: None, set(), set(), set(), False),
    "touch": (touch, set(), set(), set(), False),
    "seed": (lambda run: run.config.update(seed=1), PICTURES, {"generate_images"}, {"score_images"}, True),
    "steps": (
        lambda run: run.config["generate"].update(steps=3),
        PICTURES,
        {"generate_images"},
        {"score_images"},
        True,
    ),
    "rubric": (with_another_rubric, {"score_images"}, set(), {"score_images"}, True),
    "threshold": (lambda run: run.config.update(select={"images": {"p_yes": 0.9}}), set(), set(), set(), True),
    "one row": (
        edit_a_row,
        {"shard_prompts", "generate_images", "score_images"},
        {"shard_prompts", "generate_images"},
        {"score_images"},
        True,
    ),
    "a lost shard": (
        lambda run: image_files(run)[of_row_p8(run)].unlink(),
        {"generate_images", "score_images"},
        {"generate_images"},
        {"score_images"},
        True,
    ),
    "other pixels": (other_pixels, {"score_images"}, set(), {"score_images"}, True),
    "a failed job": (a_failed_job, PICTURES, {"generate_images"}, {"score_images"}, True),
}


def in_a_module(run: Run) -> set[str]:
    """The rules that a larger workflow would run whose rule reads the tables; those of the module without their prefix."""
    run.command()  # writes config.yaml
    (run.folder / "Snakefile").write_text(OUTER.format(repository=REPOSITORY))
    done = warm.run(["-n", "--workflow-profile", "none", "--rerun-triggers", "mtime"], run.folder, environment(), 300)
    assert done.returncode == 0, done.stdout + done.stderr
    return {rule.removeprefix("darkroom_") for rule in run.jobs(done.stdout)}


@pytest.mark.parametrize("records", ["there", "lost"])
@pytest.mark.parametrize("change", CHANGES)
def test_exactly_what_must_run_is_planned(finished, tmp_path, change, records):
    run = copied(finished, tmp_path / "copy")
    make, everything, pictures, scores, tables = CHANGES[change]
    place = of_row_p8(run)
    make(run)
    if records == "lost":
        shutil.rmtree(run.folder / ".snakemake")
    opened(run, planned=False)
    files = [os.path.relpath(path, run.folder) for path in (image_files(run)[place], score_files(run)[place])]
    merged = everything if tables else set()
    expected = {
        (): everything | (TABLES if everything or tables else set()),
        ("results/scores.parquet",): merged | ({"merge_scores"} if tables else set()),
        (files[0],): pictures,
        (files[1],): (pictures if scores else set()) | scores,
        ("--until", "score_images"): everything,
    }
    found = {target: set(run.planned(*target)) for target in expected}
    found["module",] = in_a_module(run)
    expected["module",] = expected["results/scores.parquet",] | {"count"}  # which was never made
    assert found == expected, {
        target: (found[target], expected[target]) for target in expected if found[target] != expected[target]
    }


def test_back_to_an_earlier_setting_makes_nothing(finished, tmp_path):
    run = copied(finished, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in run.results.glob("**/*.parquet")}
    run.config["generate"]["steps"] = 1
    run.snakemake("--until", "score_images")
    run.config["generate"]["steps"] = finished.config["generate"]["steps"]
    assert run.planned() == {}
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_shard_that_comes_back_otherwise_makes_what_follows_again_by_itself(finished, tmp_path):
    """Also where it was made by a run that ended before what follows."""
    run = copied(finished, tmp_path / "copy")
    other_pixels(run)
    group = opened(run).groups["images"]
    assert run.planned()["score_images"] == 1 < len(group.members)
    shutil.rmtree(run.folder / ".snakemake")
    old = Path(image_files(run)[of_row_p8(run)])
    os.utime(old, (1, 1))  # whatever its time says
    assert run.planned()["score_images"] == 1
