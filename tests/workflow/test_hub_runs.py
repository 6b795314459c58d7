"""Models from a hub: fetched once, with the real client, and then never asked for again."""

import json
import re
import shutil

import pytest
from conftest import FLUX, JUDGE, Run, small_config
from darkroom.store.shardfile import iter_records, read_meta
from hubserver import DECOYS, model_files, surroundings, tiny_hub


@pytest.fixture
def hub():
    with tiny_hub() as hub:
        yield hub


@pytest.fixture
def from_hub(tmp_path, hub):
    """A run whose models are all on the hub, with a cache of its own."""
    cache = str(tmp_path / "cache")
    section = {"model": "tiny/flux", "cache_dir": cache, "steps": 1}
    judge = {"model": "tiny/judge", "cache_dir": cache, "engine": "transformers"}
    run = Run(
        tmp_path / "run",
        small_config(
            generate=section | {"family": "flux"},
            edit=section | {"family": "flux-kontext"},
            judge=judge,
            edits="edits.jsonl",
            shards={"size": 100},
        ),
    )
    run.folder.mkdir()
    run.env = surroundings(hub, HF_HOME=str(tmp_path / "home"))
    run.write_rows("prompts.jsonl", [{"id": "p0", "prompt": "a red circle"}, {"id": "p1", "prompt": "a blue star"}])
    run.write_rows("edits.jsonl", [{"id": "e0", "prompt": "make it green", "images": [{"row": "p0", "sample": 0}]}])
    return run


def errors(done):
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def fetched(run, section):
    return json.loads((run.results / f".darkroom/models/{section}.json").read_text())


def nameless(value):
    """The value without keys, digests and what is hashed from them; the hashes of pictures have more than 32 digits."""
    if isinstance(value, dict):
        return {name: nameless(item) for name, item in value.items() if name not in ("model", "made_from")}
    if isinstance(value, list):
        return [nameless(item) for item in value]
    return re.sub(r"\b[0-9a-f]{32}\b", "-", value) if isinstance(value, str) else value


def without_models(run):
    """Every record, and what each file says of itself, but for the models' names and what is hashed from them.

    Of a path, too: its ids of recipes, of 8 digits each.
    """
    return {
        re.sub(r"\b[0-9a-f]{8}\b", "-", str(path.relative_to(run.results))): nameless(
            [read_meta(path), list(iter_records(path))]
        )
        for path in sorted(run.results.glob("**/*.parquet"))
    }


def test_a_run_from_the_hub_fetches_once_and_then_works_without_it(from_hub, hub, tmp_path):
    run = from_hub
    # Without a commit nothing is planned: not even the dry run can say what there is to make.
    done = run.snakemake("-n", check=False)
    assert done.returncode == 1 and len(errors(done)) == 1
    assert "config: generate.revision: images and scores belong to one commit" in errors(done)[0]
    assert hub.asked == []

    text = run.darkroom("fetch").stdout
    flux, judge = (hub.repositories[name].commit for name in ("tiny/flux", "tiny/judge"))
    for section, commit in (("generate", flux), ("edit", flux), ("judge", judge)):
        assert f"for the config, under {section}:\n  revision: {commit} # main when fetched" in text
        assert fetched(run, section)["commit"] == commit
    assert not any(decoy in hub.got() for decoys in DECOYS.values() for decoy in decoys)
    assert len(hub.got()) == len(set(hub.got()))  # generate and edit share their files
    for section, folder in (("generate", FLUX), ("judge", JUDGE)):
        files = fetched(run, section)["files"]
        assert files == {name: len(data) for name, data in model_files(folder).items()}

    hub.stop()
    run.snakemake()
    assert run.planned() == {}
    for path in run.results.glob("images/**/*.parquet"):
        assert read_meta(path)["recipe"]["model"] == f"tiny/flux@{flux}"

    # The same from the folders, but for the models' names.
    folder = Run(tmp_path / "folder", json.loads(json.dumps(run.config)), run.env)
    for section, model in (("generate", FLUX), ("edit", FLUX), ("judge", JUDGE)):
        folder.config[section]["model"] = str(model)
    shutil.copytree(run.folder, folder.folder, ignore=shutil.ignore_patterns("results", ".snakemake"))
    folder.snakemake()
    assert not list(folder.results.glob(".darkroom/models/*"))
    mine, others = without_models(run), without_models(folder)
    assert set(mine) == set(others) and len(mine) == 5
    for name in mine:
        assert mine[name] == others[name], name

    # The commit written into the config, the cache emptied: nothing is stale, and nothing is fetched for nothing.
    run.config["generate"]["revision"] = run.config["edit"]["revision"] = flux
    run.config["judge"]["revision"] = judge
    shutil.rmtree(tmp_path / "cache")
    for command in ("plan", "verify", "prune"):
        run.darkroom(command)
    assert run.planned() == {}
    # A shard is to be made, and the hub is away: one clear line, and what is known of the model is kept.
    next(run.results.glob("scores/judge/images/**/*.parquet")).unlink()
    done = run.snakemake(check=False)
    assert done.returncode == 1
    assert [line for line in errors(done) if "judge.model: tiny/judge cannot be fetched from" in line]
    assert fetched(run, "judge")["commit"] == judge
    assert run.planned() == dict.fromkeys(("fetch_model", "score_images", "merge_scores", "write_dataset", "all"), 1)


def test_a_job_whose_model_is_gone_says_what_to_do(from_hub, hub, tmp_path):
    """A node that does not see the cache, while the submitting host does: here the cache goes between plan and job."""
    run = from_hub
    for section in ("generate", "edit", "judge"):
        run.config[section]["revision"] = hub.repositories[run.config[section]["model"]].commit
    run.config["edits"] = None
    text = run.darkroom("fetch").stdout
    assert "for the config" not in text
    run.planned()  # the plan that the job takes
    weights = tmp_path / f"cache/models--tiny--flux/snapshots/{run.config['generate']['revision']}/vae"
    shutil.rmtree(weights)
    outside, run.env = run.env, run.env | {"DARKROOM_RUN": "1"}  # as on the node
    done = run.snakemake("--until", "generate_images", check=False)
    run.env = outside
    assert done.returncode == 1
    assert "generate.model: tiny/flux: vae/config.json is not in" in errors(done)[0]
    assert "run `darkroom fetch` again, with generate.cache_dir on a disk that this machine sees" in errors(done)[0]
    asked = len(hub.asked)
    run.darkroom("fetch")
    files = [path for _, path in hub.asked[asked:] if not path.startswith("/api/agent")]
    assert weights.exists() and files and all("/vae/" in path for path in files)
