"""Metrics beside the judge: what they promise, how they are found, and that all readers show their columns."""

import hashlib
import importlib.util
import io
import json
import math
import sys
import threading
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import test_exports
from conftest import REPOSITORY
from darkroom import metrics
from darkroom.config import models
from darkroom.config.metrics import PHash
from darkroom.errors import DarkroomError
from darkroom.exports.write import write_export
from darkroom.identity import digest
from darkroom.metrics import catalogue_of, metrics_of, score, vlm
from darkroom.metrics.base import Metric, ScoreColumn
from darkroom.metrics.judge import JudgeMetric
from darkroom.metrics.phash import PHashMetric
from darkroom.metrics.score import score_chunk, score_shards
from darkroom.plan.shards import make_plan
from darkroom.store.images import encode_png
from darkroom.store.shardfile import IMAGE_COLUMNS, iter_records, read_meta
from darkroom.store.shardfile import write_shard as write_shard_file
from darkroom.tables.kind import Kind, ShardFiles
from darkroom.tables.merge import merge_scores, write_rejected
from darkroom.views import plots
from darkroom.views.gallery import score_columns as gallery_columns
from darkroom.views.gallery import write_index, write_shard
from darkroom.views.report import KindReport, Score, read_table
from metric_contract import MetricContract, image_record
from PIL import Image, ImageOps


@pytest.fixture(scope="session")
def brightness():
    """The class that the extension file brings; registered."""
    spec = importlib.util.spec_from_file_location(
        "darkroom_extension_brightness", REPOSITORY / "tests/extensions/brightness.py"
    )
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    del models.METRICS["brightness"], sys.modules[spec.name]  # other tests' configs do not know it
    return module


class TestBrightness(MetricContract):
    @pytest.fixture(scope="class")
    def metric(self, brightness):
        return brightness.Brightness(brightness.Weights())

    @pytest.fixture(scope="class")
    def changed(self, brightness):
        return brightness.Brightness(brightness.Weights(weights="bt601"))


class TestPHash(MetricContract):
    @pytest.fixture(scope="class")
    def metric(self):
        return PHashMetric(PHash())

    @pytest.fixture(scope="class")
    def changed(self):
        return PHashMetric(PHash(bits=256))


class Told(Metric):
    """Says of every picture what it was told to say."""

    name = "told"

    def __init__(self, says, columns=None, name="told"):
        self.says, self.name = says, name
        self.own = columns or [self.column("told"), self.column("told_error", "text", role="error")]

    def column(self, name, type_="float", **changes):
        known = {"role": "score", "question": "q", "metric": self.name, "low": 0, "high": 1, "selectable": True}
        if changes.get("role", "score") != "score":
            known |= {"low": None, "high": None, "selectable": False}
        return ScoreColumn(name, type_, **known | changes)

    def columns(self, kind):
        return self.own

    def recipe(self, kind):
        return {"version": 1}

    def open(self, kind):
        return self

    def score(self, subjects):
        return [self.says for _ in subjects]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "told is nan, outside 0 to 1"),
        (math.inf, "told is inf, outside 0 to 1"),
        (1.5, "told is 1.5, outside 0 to 1"),
        ("0.5", "told is '0.5', outside 0 to 1"),
        (True, "told is True, outside 0 to 1"),
    ],
)
def test_what_is_no_number_of_the_range_is_null_with_a_reason(value, reason):
    metric = Told({"told": value})
    found = score_chunk(metric, "images", metric.open("images"), {"0" * 32: image_record("images", 0)})
    assert found["0" * 32] == {"told": None, "told_error": reason}


def test_a_scorer_that_breaks_its_contract_is_named():
    records = {f"{n:032x}": image_record("images", n) for n in range(2)}
    metric = Told({"other": 1.0})
    with pytest.raises(DarkroomError, match="metric told: gives a column other that"):
        score_chunk(metric, "images", metric.open("images"), records)
    metric.score = lambda subjects: []
    with pytest.raises(DarkroomError, match="metric told: 0 results for 2 images"):
        score_chunk(metric, "images", metric.open("images"), records)


def test_columns_that_clash_are_one_line_that_names_both(brightness):
    twin = Told({}, name="twin")
    twin.own = [twin.column("brightness"), twin.column("e", "text", role="error")]
    with pytest.raises(DarkroomError, match="column brightness is made by metric brightness and metric twin"):
        catalogue_of([brightness.Brightness(brightness.Weights()), twin], ["images"])
    judge = JudgeMetric(models.Judge(), test_exports.RUBRIC)
    twin.own[0] = twin.column("p_yes")
    with pytest.raises(DarkroomError, match="column p_yes is made by metric judge and metric twin"):
        catalogue_of([judge, twin], ["images", "edited"])
    twin.own[0] = twin.column("seed")
    with pytest.raises(DarkroomError, match="metric twin: images: column seed is there already"):
        catalogue_of([judge, twin], ["images"])
    twin.own = [twin.column("fine")]
    with pytest.raises(DarkroomError, match="metric twin: images: question q has no column of role error"):
        catalogue_of([twin], ["images"])
    with pytest.raises(DarkroomError, match="column a b: its name must be"):
        twin.column("a b")
    with pytest.raises(DarkroomError, match="column x: a score that can be selected by needs low and high"):
        twin.column("x", low=2, high=1)


def test_the_config_names_metrics_that_are_registered(brightness, forgotten):
    models.allow_metric("brightness", brightness.Weights)
    for name in ("brightnes", "fresh"):
        models.allow_metric(name)

    def asked(**sections):
        return models.config_model().model_validate({"metrics": sections})

    found = metrics_of(asked(brightness={"weights": "bt601"}), test_exports.RUBRIC)
    assert [metric.name for metric in found] == ["judge", "brightness"]
    assert found[1].recipe("images")["weights"] == "bt601"
    assert [metric.name for metric in metrics_of(asked(), test_exports.RUBRIC)] == ["judge"]
    for name, hint in (("brightnes", "did you mean brightness"), ("fresh", "name the file that brings it")):
        with pytest.raises(DarkroomError, match=f"config: metrics: there is no metric {name}; {hint}"):
            metrics_of(asked(**{name: None}), test_exports.RUBRIC)


def test_a_name_is_registered_once(brightness, forgotten):
    assert metrics.register(brightness.Brightness) is brightness.Brightness  # a file that is loaded again
    for name in ("judge", "brightness"):
        twin = type("Twin", (Told,), {"name": name})
        with pytest.raises(DarkroomError, match=f"metric {name}: there is one of this name already"):
            metrics.register(twin)
    with pytest.raises(DarkroomError, match="metric a/b: its name must be"):
        metrics.register(type("Odd", (Told,), {"name": "a/b"}))


def inverted(kind, folder):
    """A kind of pictures that a stage makes from those of another: the same rows, other pixels, no score yet."""
    files = ShardFiles.below(folder / "prompts", folder / "inverted", folder / "scores/inverted")
    for shard in kind.plan.names:
        records = []
        for record in iter_records(kind.image_file(shard)):
            data = encode_png(ImageOps.invert(Image.open(io.BytesIO(record["image"]["bytes"]))))
            key = digest(["inverted", record["key"]])
            found = {"key": key, "sha256": hashlib.sha256(data).hexdigest()}
            records.append(record | found | {"image": {"bytes": data, "path": f"{key}.png"}})
        meta = read_meta(kind.image_file(shard))
        write_shard_file(files.images(shard), IMAGE_COLUMNS, records, {**meta, "records": None})
    digests = dict.fromkeys(kind.plan.names, "i")
    return Kind("inverted", kind.plan, kind.samples, files, digests, {}, kind.groups, section=None)


@pytest.fixture(scope="module")
def two(tmp_path_factory, brightness):
    """Shards of three kinds with the scores of two metrics, and tables of all: (folder, kinds, catalogue, select, export).

    The third kind is what a stage after the images makes of them; the judge is asked nothing about it.
    """
    folder = tmp_path_factory.mktemp("two")
    rows = [{"id": f"r{n}", "prompt": f"fox {n}", "n": n} for n in range(12)]
    edits = [{"id": "e0", "prompt": "make it blue", "images": [{"row": "r0", "sample": 0}]}]
    export = test_exports.build(folder, rows, edits)

    class Embedding(brightness.Brightness):
        """The same with an embedding, which nobody shows."""

        def columns(self, kind):
            more = ScoreColumn("brightness_vector", "text", self.name, "embedding", self.name)
            return [*super().columns(kind), more]

        def score(self, subjects):
            return [found | {"brightness_vector": "ADg="} for found in super().score(subjects)]

    metric = Embedding(brightness.Weights())
    kinds = export("folder").kinds
    kinds.append(inverted(kinds[0], folder))
    catalogue = catalogue_of([JudgeMetric(models.Judge(), test_exports.RUBRIC), metric], [kind.name for kind in kinds])
    for kind in kinds:
        for shard in kind.plan.names:
            path, images = kind.score_file("brightness", shard), kind.image_file(shard)
            score_shards(metric, kind.name, {images: "i"}, path, "b", folder / "journal.jsonl", [], [], ["i"])
        kind.score_digests["brightness"] = dict.fromkeys(kind.plan.names, "b")
    select = models.Select(images={"brightness": 0.5})
    files = folder / "scores.parquet", folder / "scores.csv"
    merge_scores(kinds, catalogue, select, *files, {"digest": "d"})

    def made(format, **changes):
        found = export(format, to="two", **changes)
        found.catalogue, found.select = catalogue, select
        found.rows["inverted"] = found.folder / "inverted.jsonl"
        return found

    return folder, kinds, catalogue, select, made


def test_the_tables_have_every_metric_s_columns(two):
    folder, (kind, *_), *_ = two
    table = pq.read_table(folder / "scores.parquet").to_pylist()
    names = list(table[0])
    assert names.index("p_yes") < names.index("brightness") < names.index("selected")
    assert "brightness_vector" not in names  # it stays in the score files
    assert next(iter_records(kind.score_file("brightness", kind.plan.names[0])))["brightness_vector"] == "ADg="
    for line in table:
        if line["error"] is None:
            assert 0 <= line["brightness"] <= 1 and line["brightness_error"] is None
            assert line["selected"] == (line["kind"] != "images" or line["brightness"] >= 0.5)
        else:
            assert line["brightness"] is None and line["brightness_error"].startswith("no image")
    assert {line["selected"] for line in table if line["kind"] == "images"} == {True, False}
    of_kind = {name: [line for line in table if line["kind"] == name] for name in ("images", "inverted")}
    for line, negative in zip(*of_kind.values(), strict=True):
        assert line["brightness"] == pytest.approx(1 - negative["brightness"], abs=1e-5)
        assert line["p_yes"] is not None and negative["p_yes"] is None


def test_rows_that_two_kinds_share_are_rejected_once(two, tmp_path):
    _, kinds, *_ = two
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "prompt": "fox"}\n{"prompt": 7}\n')
    plan = make_plan(tmp_path / "rows.jsonl", "prompts", 4, tmp_path / "results")
    files = ShardFiles.below(tmp_path, tmp_path, tmp_path)
    for name in plan.names:
        files.rows(name).write_bytes(plan.read(name))
    shared = [Kind(kind.name, plan, 1, files, {}, {}, {}) for kind in (kinds[0], kinds[2])]
    assert write_rejected(shared, tmp_path / "rejected.jsonl") == 1


def test_a_metric_s_file_of_other_pictures_stops_the_merge(two, tmp_path):
    _, kinds, catalogue, select, _ = two
    kind = kinds[0]
    one, other = (kind.score_file("brightness", shard) for shard in kind.plan.names[:2])
    whole = one.read_bytes()
    files = tmp_path / "t.parquet", tmp_path / "t.csv"
    try:
        one.write_bytes(other.read_bytes())
        with pytest.raises(DarkroomError, match=r"brightness.*(scores for|the scores are of another picture)"):
            merge_scores(kinds, catalogue, select, *files, {"digest": "d"})
        one.unlink()
        with pytest.raises(DarkroomError, match=r"brightness.*no such file; run snakemake again"):
            merge_scores(kinds, catalogue, select, *files, {"digest": "d"})
    finally:
        one.write_bytes(whole)
    assert read_meta(one)["metric"] == "brightness"


def test_the_gallery_shows_every_metric(two, tmp_path):
    folder, kinds, catalogue, select, _ = two
    files = {
        (kind.name, shard): tmp_path / kind.name / f"g/{shard}-r.js" for kind in kinds for shard in kind.plan.names
    }
    for kind in kinds:
        for shard in kind.plan.names:
            path = files[kind.name, shard]
            known = gallery_columns(catalogue, kind.name)
            write_shard(kind, shard, models.Gallery(thumbnail=64, preview=None), path, {"digest": "g"}, known)
            data = json.loads(path.read_text().split("\n")[1].removeprefix("gallery.shard(").removesuffix(");"))
            assert set(data["metrics"]) == set(kind.metrics) and "brightness" in data["columns"]
            assert "brightness_vector" not in path.read_text()
    about = {"title": "t", "set": "s"}
    write_index(kinds, catalogue, select, folder / "scores.parquet", files, tmp_path, about, {"digest": "g"})
    index = json.loads(
        (tmp_path / "index.js").read_text().split("\n")[1].removeprefix("gallery.index(").removesuffix(");")
    )
    scores = {score["name"]: score for score in index["kinds"]["images"]["scores"]}
    assert all(len(score.pop("quantiles")) > 1 and score.pop("label") for score in scores.values())
    brightness = {"name": "brightness", "metric": "brightness", "low": 0, "high": 1, "whole": False, "least": 0.5}
    assert scores["brightness"] == brightness
    assert index["kinds"]["inverted"]["many"] == "inverted"
    assert [score["name"] for score in index["kinds"]["inverted"]["scores"]] == ["brightness"]
    quality = {"name": "quality", "metric": "judge", "low": 1, "high": 10, "whole": True, "least": None}
    assert scores["quality"] == quality
    assert index["kinds"]["images"]["cards"] == ["brightness", "p_yes"]  # the one with a threshold first


def test_the_report_counts_every_metric(two, tmp_path):
    folder, kinds, catalogue, select, _ = two
    (tmp_path / "rejected.jsonl").write_text("")
    rows = {kind.name: (kind.rows, sum(shard.rows for shard in kind.plan.shards.values())) for kind in kinds}
    found = read_table(folder / "scores.parquet", tmp_path / "rejected.jsonl", catalogue, select, rows)
    kind = found["images"]
    assert list(kind.scores) == ["p_yes", "quality", "brightness"] and kind.by == "brightness"
    assert kind.scores["brightness"].number == kind.made and kind.best[0].score >= kind.worst[0].score
    assert found["inverted"].scores["brightness"].number == found["inverted"].made == kind.made
    assert plots.yield_of_stages(list(found.values())).axes[2].get_title() == "Inverted images"
    titles = [axes.get_title() for axes in plots.score_distributions(kind).axes]
    assert titles == list(kind.scores)
    assert plots.example_sheet(kind, kinds[0].image_file).texts[0].get_text() == "best by brightness"


class Slow(Told):
    """Says 1 and this mass of each picture; its second chunk may have begun to be prepared before the first is scored."""

    def __init__(self, mass=0.9, wait=False):
        columns = [self.column("told"), self.column("told_error", "text", role="error")]
        super().__init__(None, [*columns, self.column("told_mass", role="mass")])
        self.mass, self.wait, self.prepared, self.overlapped = mass, wait, [], threading.Event()

    name = "told"

    def prepare(self, subject):
        self.prepared.append(subject.key)
        if len(self.prepared) > score.CHUNK + 1:
            self.overlapped.set()
        return replace(subject, images=[image.size for image in subject.images])

    def score(self, subjects):
        if self.wait:
            assert self.overlapped.wait(20), "nothing is prepared while it scores"
            assert len(self.prepared) <= 2 * score.CHUNK + 1
            self.wait = False  # the last chunk has none after it
        return [{"told": subject.images[0][0] / 64, "told_mass": self.mass} for subject in subjects]


def test_the_log_says_how_many_scores_are_lost_and_why(tmp_path, capsys):
    shard = tmp_path / "images.parquet"
    records = [image_record("images", n) | {"key": f"{n:032x}"} for n in range(4)]
    write_shard_file(shard, IMAGE_COLUMNS, records, {"digest": "i", "rule": "r", "failed": 0})
    metric = Told({"told": None, "told_error": "reply is cut off after 8 tokens; raise judge.max_tokens"})
    score_shards(metric, "images", {shard: "i"}, tmp_path / "s.parquet", "s", tmp_path / "j.jsonl", [], [], ["i"])
    why = "4 of 4 without a whole score, most often for told: reply is cut off after 8 tokens; raise judge.max_tokens\n"
    assert capsys.readouterr().out.endswith(f"done: 4 scored, 0 carried, 0 without an image, {why}")


def test_pictures_are_prepared_while_those_before_are_scored(tmp_path, capsys):
    shard, number = tmp_path / "images.parquet", 3 * score.CHUNK
    records = [image_record("images", n) | {"key": f"{n:032x}"} for n in range(number)]
    write_shard_file(shard, IMAGE_COLUMNS, records, {"digest": "i", "rule": "r", "failed": 0})

    def scored(metric, threads):
        path, journal = tmp_path / f"{threads}.parquet", tmp_path / "journal.jsonl"
        score_shards(metric, "images", {shard: "i"}, path, "s", journal, [], [], ["i"], threads=threads)
        return path.read_bytes()

    beside, alone = Slow(wait=True), Slow()
    assert scored(beside, 3) == scored(alone, 1)
    assert sorted(beside.prepared) == sorted(alone.prepared) and len(alone.prepared) == number
    assert "WARNING" not in capsys.readouterr().out
    scored(Slow(mass=0.3), 2)
    assert "WARNING: told is no number to trust: on average 30.0% of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "prompt"),
    [
        ("/cache/models--Qwen--Qwen3-VL-8B-Thinking/snapshots/0a1b", "<|im_start|>assistant\n"),
        ("/models/GLM-4.1V-9B-Thinking", "<|assistant|>"),
        ("/models/judge", "<|im_start|>assistant\n<think>\n"),
    ],
)
def test_a_judge_that_thinks_first_is_told_by_its_name_or_its_template(model, prompt):
    with pytest.raises(DarkroomError, match="thinks before it answers"):
        vlm.refuse_thinking(model, prompt)
    vlm.refuse_thinking("/thinking/judge", "<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_the_report_marks_a_score_that_is_not_to_be_trusted():
    kind = KindReport("images")
    for name, mass in (("plain", (0.0, 0)), ("good", (1.2, 2)), ("bad", (0.9, 2))):
        kind.scores[name] = Score(name, np.linspace(0, 1, 101), False, np.zeros((4, 100), int), mass=mass)
        kind.scores[name].counts[0, 50] = 2
    titles = [axes.get_title() for axes in plots.score_distributions(kind).axes]
    assert titles == ["plain", "good", "bad: not to be trusted\nlabel mass 45.0% on average"]


@pytest.mark.parametrize("format", ["folder", "imagefolder", "parquet", "webdataset", "preferences"])
def test_every_export_gives_every_metric(two, format):
    _, _, _, _, made = two
    export = made(format)
    write_export(export)
    if format == "folder":
        rows = [json.loads(line) for line in export.rows["images"].open(encoding="utf-8")]
        assert all(set(row["scores"]) == {"item", "sample", "p_yes", "quality", "brightness"} for row in rows)
        return
    assert (export.folder / "inverted").is_dir() or format == "preferences"
    names = ["brightness_0", "brightness_1"] if format == "preferences" else ["brightness"]
    croissant = json.loads((export.folder / "croissant.json").read_text())
    fields = {field["name"] for field in croissant["recordSet"][0]["field"]}
    assert format == "webdataset" or set(names) <= fields
    assert "brightness at least 0.5" in (export.folder / "README.md").read_text()
    if format == "preferences":
        pairs = pq.read_table(next((export.folder / "images").glob("*.parquet"))).to_pylist()
        assert pairs and {pair["score"] for pair in pairs} == {"brightness"}
