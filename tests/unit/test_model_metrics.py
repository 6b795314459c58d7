"""Metrics with a model of their own: what pins, finds, fetches, sizes and licenses it, and what becomes of embeddings."""

import json

import numpy as np
import pytest
from conftest import REPOSITORY, small_config
from darkroom.config.load import load_config, used_sections
from darkroom.config.metrics import Aesthetic, Clip, Nsfw
from darkroom.errors import DarkroomError
from darkroom.exports import TRAINING
from darkroom.metrics import catalogue_of
from darkroom.metrics.aesthetic import AestheticMetric
from darkroom.metrics.base import ScoreColumn
from darkroom.metrics.clip import ClipMetric
from darkroom.metrics.embeddings import packed, unpacked
from darkroom.metrics.nsfw import NsfwMetric
from darkroom.models.hub import hub_models
from darkroom.models.licences import check_licences, models_of
from darkroom.run.needs import HUB_MODEL_BYTES, needs_of_step
from darkroom.run.workflow import Workflow

COMMIT = "c" * 40
HUB = {"model": "owner/clip", "revision": COMMIT}


@pytest.fixture
def config(tmp_path):
    """Gives a config with these metrics."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a red circle"}\n')

    def given(export=None, **metrics):
        rows = {"prompts": str(tmp_path / "rows.jsonl"), "results": str(tmp_path / "results")}
        return small_config(**rows, metrics=metrics, **({"export": export} if export else {}))

    return given


def test_a_model_of_the_hub_is_pinned_like_the_judge_s(config, tmp_path):
    with pytest.raises(
        DarkroomError, match=r"^config: metrics\.clip\.revision: .* commit of owner/clip, and none is named"
    ):
        Workflow.open(config(clip={"model": "owner/clip"}), folder=tmp_path)
    # What `darkroom fetch` writes down.
    workflow = Workflow.open(config(clip={"model": "owner/clip"}), unpinned=True, folder=tmp_path)
    model = workflow.models["metrics.clip"]
    assert (model.repo, model.used_by, model.marker.name) == ("owner/clip", "metrics.clip", "metrics.clip.json")
    model.marker.parent.mkdir(parents=True)
    files = {"config.json": 9, "model.safetensors": 600_000_000}
    about = {
        "repo": "owner/clip",
        "revision": "main",
        "commit": COMMIT,
        "cache_dir": None,
        "folder": "/c",
        "files": files,
    }
    model.marker.write_text(json.dumps(about))
    workflow = Workflow.open(config(clip={"model": "owner/clip"}), folder=tmp_path)
    metric = workflow.metric("clip")
    assert metric.recipe("images")["model"] == f"owner/clip@{COMMIT}"
    assert workflow.model_bytes["metrics.clip"] == 600_000_000
    assert workflow.settings()["clip"]["model"] == "owner/clip"
    with pytest.raises(
        DarkroomError, match=r"^metrics\.clip\.model: owner/clip: config\.json is not in /c; run `darkroom fetch`"
    ):
        metric.located()


def test_its_jobs_ask_for_what_it_needs(config, tmp_path):
    workflow = Workflow.open(config(clip=HUB | {"device": "cuda"}, nsfw=None), folder=tmp_path)
    (shard,) = workflow.groups["images"].members
    step = workflow.lineage.step("images", "clip")
    assert step.section == "metrics.clip"
    assert workflow.model_bytes["metrics.clip"] == HUB_MODEL_BYTES["metrics"]
    with_model, without = (
        needs_of_step(workflow, workflow.lineage.step("images", name), shard) for name in ("clip", "nsfw")
    )
    assert (with_model.gpu, without.gpu) == (1, 0)
    assert with_model.mem_mb - without.mem_mb == int(1.3 * HUB_MODEL_BYTES["metrics"] / 10**6)
    assert "metrics.nsfw" not in workflow.model_bytes


def test_its_licence_is_listed_and_limits_no_export(config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    checked = load_config(config(clip={"model": "mine"}, export={"formats": ["parquet"]}), [tmp_path, REPOSITORY])
    check_licences(checked, TRAINING)  # it makes no picture
    model = models_of(checked)[-1]
    assert (model.section, model.name, model.licence.name) == ("metrics.clip", "mine", "cc-by-nc-4.0")
    assert model.licence.limits and not model.makes_pictures
    assert models_of(load_config(config(nsfw=None), [tmp_path, REPOSITORY]))[-1].section == "judge"


def test_files_and_folders_are_found_where_the_config_is(config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/head.safetensors").write_bytes(b"1")

    def load(**metrics):
        return load_config(config(**metrics), [tmp_path, REPOSITORY])

    found = load(aesthetic={"model": "mine", "head": "mine/head.safetensors"})
    assert used_sections(found)["metrics.aesthetic"].model == str(tmp_path / "mine")
    assert found.metrics.aesthetic.head == str(tmp_path / "mine/head.safetensors")
    assert hub_models(found) == {} and list(found.metrics.asked) == ["aesthetic"]
    for metrics, words in (
        ({"clip": {"model": "./none"}}, r"metrics\.clip\.model: no such folder: \./none"),
        ({"aesthetic": {"model": "mine"}}, r"metrics\.aesthetic\.head: must be given"),
        ({"aesthetic": {"head": "none.safetensors"}}, r"metrics\.aesthetic\.head: no such file"),
        ({"aesthetic": {"head": "head.pth"}}, r"metrics\.aesthetic\.head: only safetensors are loaded"),
        ({"aesthetic": {"head": "a.safetensors", "low": 3}}, r"metrics\.aesthetic\.low: give low and high"),
        ({"aesthetic": {"head": "a.safetensors", "low": 3, "high": 3}}, r"metrics\.aesthetic\.low: must be below high"),
        ({"nsfw": {"labels": []}}, r"metrics\.nsfw\.labels"),
    ):
        with pytest.raises(DarkroomError, match=f"^config: {words}"):
            load(**metrics)


def test_what_decides_a_score_is_in_its_recipe(tmp_path):
    model = str(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "head.safetensors").write_bytes(b"1")

    def recipe(metric):
        return metric.recipe("images")

    clip = Clip(model=model)
    assert recipe(ClipMetric(clip)) == recipe(ClipMetric(Clip(model=model, batch_size=7, device="cpu")))
    assert recipe(ClipMetric(clip)) != recipe(ClipMetric(Clip(model=model, dtype="float16")))
    aesthetic = Aesthetic(model=model, head=str(tmp_path / "head.safetensors"))
    first = recipe(AestheticMetric(aesthetic))
    assert first["limits"] == [0.0, 10.0]
    (tmp_path / "README.md").write_text("---\nscore_range: [1, 7]\n---\n")
    ranged = recipe(AestheticMetric(aesthetic))
    assert ranged == first | {"limits": [1.0, 7.0]}
    (tmp_path / "head.safetensors").write_bytes(b"2")
    assert recipe(AestheticMetric(aesthetic))["head"] != first["head"]
    (tmp_path / "README.md").write_text("---\nscore_range: 7\n---\n")
    with pytest.raises(DarkroomError, match="score_range must be"):
        AestheticMetric(aesthetic).columns("images")
    one, other = (NsfwMetric(Nsfw(model=model, labels=labels)) for labels in (["NSFW", "porn"], ["Porn", "nsfw"]))
    assert recipe(one) == recipe(other) != recipe(NsfwMetric(Nsfw()))


def test_embeddings_stay_in_the_score_files():
    vector = np.array([0.5, -0.25, 0.125], np.float32)
    assert packed(vector) == "ADgAtAAw" and unpacked("ADgAtAAw").tolist() == vector.tolist()
    metric = ClipMetric(Clip(model="owner/clip", revision=COMMIT))
    assert "clip_embedding" in [column.name for column in metric.columns("edited")]
    with pytest.raises(DarkroomError, match="column v: an embedding is text, got float"):
        ScoreColumn("v", "float", "clip", "embedding", "clip")
    catalogue = catalogue_of([metric], ["images", "edited"])
    assert list(catalogue.types("images")) == ["clip", "clip_error"]
    assert list(catalogue.types("edited")) == ["clip", "clip_source", "clip_error"]
    assert catalogue.score_names("edited") == ["clip", "clip_source"]
