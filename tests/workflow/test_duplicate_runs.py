"""Duplicates in a real run: what was planted is found, what is asked for runs and no more, and commands know the file."""

import shutil
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
from conftest import PROMPTS, Run, copied, opened, shards, write_inputs

FOUND = {"find_duplicates", "merge_scores", "write_dataset", "draw_plots", "all"}


@dataclass
class Done:
    """run: with its duplicates found. before: what a dry run planned when they were first asked for. said: by the run."""

    run: Run
    before: dict[str, int]
    said: str
    table: Any


@pytest.fixture(scope="module")
def done(finished, tmp_path_factory):
    """The finished run with two more rows, of one picture; the pictures that it exported before are the earlier set."""
    run = copied(finished, tmp_path_factory.mktemp("duplicates") / "run")
    given = [{"id": f"g{n}", "prompt": "a yellow square", "images": ["square.png"]} for n in range(2)]
    write_inputs(run, [*PROMPTS, *given])
    run.config["report"] = {"enabled": True}
    run.config["duplicates"] = {
        "by": ["exact", "phash"],
        "of": ["images", "prompts"],
        "distance": 12,
        "against": [str(finished.results / "dataset/images")],
    }
    before = run.planned()
    said = run.snakemake().stderr
    return Done(run, before, said, pd.read_parquet(run.results / "scores.parquet"))


def test_planted_duplicates_are_found_and_earlier_pictures_known(done, finished):
    table = done.table.set_index(["kind", "row", "sample"])
    one, other = table.loc["images", "g0", 0], table.loc["images", "g1", 0]
    assert one["duplicate_group"] == other["duplicate_group"] == one["key"]
    assert (other["duplicate_by"], other["duplicate_distance"]) == ("exact", 0)
    assert one["prompt_group"] == other["prompt_group"] == "g0/0"
    earlier = pd.read_parquet(finished.results / "scores.parquet")
    images = done.table[done.table["kind"] == "images"]
    known = images[images["key"].isin(earlier["key"])]
    assert len(known) == len(images) - 2 and known["duplicate_against"].notna().all()
    # Exported files say how they were made, so they are known by their look; of several, the first of the nearest counts.
    names = known["duplicate_against"].str.extract(r"^images/\w+/(\w+)\.png$")[0]
    assert set(names) <= set(known["key"]) and (names == known["key"]).mean() > 0.5
    assert done.table[done.table["kind"] == "edited"]["duplicate_group"].isna().all()
    file = pd.read_parquet(done.run.results / "duplicates.parquet")
    assert list(file["key"]) == list(done.table["key"])
    repeated = images["duplicate_group"].notna().sum() - images["duplicate_group"].nunique()
    assert f"duplicates: {repeated} of {len(images)} images repeat another" in done.said and repeated
    assert (done.run.results / "plots/images_diversity.svg").exists()
    assert not (done.run.results / "plots/edited_diversity.svg").exists()


def test_asking_runs_its_jobs_and_no_model_again(done):
    assert done.before["find_duplicates"] == 1 and done.before["score_phash"] > 1
    run = done.run
    assert run.planned() == {}
    settings = run.config["duplicates"]
    try:
        run.config["duplicates"] = settings | {"distance": 4}
        assert set(run.planned()) == FOUND
        run.config["duplicates"] = {"by": "exact"}
        assert set(run.planned()) == FOUND
        run.config["duplicates"] = settings
        run.config["select"] = {"images": {"p_yes": 0.9}}
        assert set(run.planned()) == FOUND - {"find_duplicates"}
    finally:
        run.config["duplicates"] = settings
        run.config.pop("select", None)
    opened(run, planned=False)


def test_commands_know_the_file(done, tmp_path):
    copy = copied(done.run, tmp_path / "copy")
    assert "table lines" in copy.darkroom("verify").stdout
    assert not [path for path in copy.darkroom("prune", "--dry-run").stdout.split() if "duplicates" in path]
    path = copy.results / "duplicates.parquet"
    whole = path.read_bytes()
    shutil.copy(copy.results / "scores.parquet", path)
    text = copy.darkroom("verify", check=False).stdout
    assert "error: results/duplicates.parquet: not what the shards amount to; delete it and run snakemake again" in text
    path.unlink()
    assert set(copy.planned()) == FOUND
    before = shards(copy)
    copy.snakemake()
    assert path.read_bytes() == whole and shards(copy) == before
