"""Metrics whose models see pictures: small checkpoints of real classes with random weights, and OpenNSFW as its package has it."""

import io
import json
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from conftest import CLIP, FLUX
from darkroom.config.metrics import Aesthetic, Clip, Nsfw
from darkroom.errors import DarkroomError
from darkroom.metrics.aesthetic import AestheticMetric, read_head
from darkroom.metrics.base import Subject
from darkroom.metrics.clip import ClipMetric
from darkroom.metrics.embeddings import unpacked
from darkroom.metrics.nsfw import NsfwMetric
from darkroom.metrics.score import score_chunk
from metric_contract import MetricContract, image_record
from PIL import Image
from safetensors.torch import save_file
from shapeworld import bench_clip, world
from transformers import CLIPImageProcessor, CLIPTokenizer, SiglipImageProcessor, T5TokenizerFast, ViTImageProcessor

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = SMALL | {"image_size": 32, "patch_size": 8}
SQUARE = {"height": 32, "width": 32}


def saved(folder, model, processor):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    torch.manual_seed(1)
    tokenizer = CLIPTokenizer.from_pretrained(FLUX / "tokenizer")
    text = SMALL | {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "projection_dim": 24}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION | {"projection_dim": 24}, projection_dim=24)
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    processor = transformers.CLIPProcessor(pictures, tokenizer)
    return saved(tmp_path_factory.mktemp("clip"), transformers.CLIPModel(config), processor)


@pytest.fixture(scope="session")
def siglip(tmp_path_factory):
    torch.manual_seed(2)
    tokenizer = T5TokenizerFast.from_pretrained(FLUX / "tokenizer_2")
    text = SMALL | {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    config = transformers.SiglipConfig(text_config=text, vision_config=VISION)
    processor = transformers.SiglipProcessor(SiglipImageProcessor(size=SQUARE), tokenizer)
    return saved(tmp_path_factory.mktemp("siglip"), transformers.SiglipModel(config), processor)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    torch.manual_seed(3)
    names = ["normal", "NSFW", "drawing"]
    config = transformers.ViTConfig(**VISION, num_labels=3, id2label=dict(enumerate(names)))
    model = transformers.ViTForImageClassification(config)
    return saved(tmp_path_factory.mktemp("classifier"), model, ViTImageProcessor(size=SQUARE))


@pytest.fixture(scope="session")
def head(tmp_path_factory):
    """A head of 12 layers, so that their names are not in the order of the alphabet."""
    torch.manual_seed(4)
    folder, sizes = tmp_path_factory.mktemp("head"), [24, *[8] * 11, 1]
    layers = {}
    for number, (taken, given) in enumerate(pairwise(sizes)):
        layers[f"layers.{number}.weight"] = torch.randn(given, taken) / taken**0.5
        layers[f"layers.{number}.bias"] = torch.full((given,), 5.0 if given == 1 else 0.0)
    save_file(layers, folder / "head.safetensors")
    (folder / "README.md").write_text("---\nlicense: mit\nscore_range: [-20, 30]\n---\n# a head\n")
    return folder / "head.safetensors"


class TestClip(MetricContract):
    @pytest.fixture(scope="class")
    def metric(self, clip):
        return ClipMetric(Clip(model=clip))

    @pytest.fixture(scope="class")
    def changed(self, clip):
        return ClipMetric(Clip(model=clip, score="logit"))

    def test_scores_are_those_of_the_model_itself(self, clip, changed, metric, kind, scores, records):
        """PickScore's card: its logit scale times the product of both embeddings."""
        model = transformers.CLIPModel.from_pretrained(clip)
        processor = transformers.CLIPProcessor.from_pretrained(clip)
        record = next(iter(records.values()))
        picture = changed.open(kind)  # a scorer of its own
        logits = score_chunk(changed, kind, picture, records)[record["key"]]
        with Image.open(io.BytesIO(record["image"]["bytes"])) as image, torch.no_grad():
            given = processor(
                text=[record["prompt"]], images=image, padding=True, truncation=True, max_length=32, return_tensors="pt"
            )
            made = model(**given)
        cosine = float(made.text_embeds[0] @ made.image_embeds[0])
        assert scores[record["key"]]["clip"] == pytest.approx(cosine, abs=2e-6)
        assert logits["clip"] == pytest.approx(float(made.logits_per_image[0, 0]), abs=1e-5)
        vector = unpacked(scores[record["key"]]["clip_embedding"])
        assert np.abs(vector - made.image_embeds[0].numpy()).max() < 1e-3 and vector.shape == (24,)


class TestSiglip(MetricContract):
    @pytest.fixture(scope="class")
    def metric(self, siglip):
        return ClipMetric(Clip(model=siglip, score="probability"))

    @pytest.fixture(scope="class")
    def changed(self, siglip):
        return ClipMetric(Clip(model=siglip))


class TestAesthetic(MetricContract):
    @pytest.fixture(scope="class")
    def metric(self, clip, head):
        return AestheticMetric(Aesthetic(model=clip, head=str(head)))

    @pytest.fixture(scope="class")
    def changed(self, clip, head):
        return AestheticMetric(Aesthetic(model=clip, head=str(head), activation="relu"))


class TestNsfwClassifier(MetricContract):
    @pytest.fixture(scope="class")
    def metric(self, classifier):
        return NsfwMetric(Nsfw(model=classifier))

    @pytest.fixture(scope="class")
    def changed(self, classifier):
        return NsfwMetric(Nsfw(model=classifier, labels=["nsfw", "drawing"]))


class TestOpenNsfw(MetricContract):
    @pytest.fixture(scope="class")
    def metric(self):
        return NsfwMetric(Nsfw())

    @pytest.fixture(scope="class")
    def changed(self, classifier):
        return NsfwMetric(Nsfw(model=classifier))

    def test_pictures_of_nothing_are_safe(self, metric, scores):
        assert metric.needs is None
        assert all(one["nsfw"] < 0.2 and one["nsfw_safe"] == pytest.approx(1 - one["nsfw"]) for one in scores.values())


def subject(prompt, colour="red"):
    return Subject("0" * 32, prompt, [Image.new("RGB", (40, 30), colour)], {})


def test_the_embedded_clip_tells_wrong_captions_of_scenes_that_it_never_saw():
    """By the metric, on one scale for all pictures."""
    scorer = ClipMetric(Clip(model=str(CLIP), device="cpu")).open("images")

    def likeness(pictures, captions):
        told = zip(pictures, captions, strict=True)
        return [one["clip"] for one in scorer.score([Subject("0" * 32, text, [image], {}) for image, text in told])]

    rng = random.Random(5)
    scenes = bench_clip.draw(200, rng)
    assert all(world.held_out(scene) for scene in scenes)
    pictures = [world.render(scene) for scene in scenes]
    found = bench_clip.figures(likeness, scenes, pictures, rng, ("colour", "shape", "relation"))
    assert min(found.values()) >= 0.95, found


def test_long_prompts_are_cut_and_counted(clip, capsys):
    scorer = ClipMetric(Clip(model=clip)).open("images")
    long = "a red circle on a white background " * 9
    one, other, short = scorer.score([subject(long), subject(long + "and more"), subject("a red circle")])
    assert one["clip"] == other["clip"] != short["clip"]
    scorer.score([subject(long)])
    capsys.readouterr()
    scorer.close()
    assert "metrics.clip: 2 of 3 prompts were cut after 32 tokens, the model's limit" in capsys.readouterr().out


def test_batches_of_a_gpu_have_one_shape(clip):
    """What a GPU does with three pictures and batches of two, done here."""
    scorer = ClipMetric(Clip(model=clip)).open("images")
    subjects = [subject(f"a {colour} circle", colour) for colour in ("red", "green", "blue")]
    alone = scorer.score(subjects)
    shapes, see = [], scorer.encoder.model.get_image_features
    scorer.encoder.batch = 2
    scorer.encoder.model.get_image_features = lambda **given: shapes.append(len(given["pixel_values"])) or see(**given)
    together = scorer.score(subjects)
    assert shapes == [2, 2]
    assert [one["clip"] for one in together] == pytest.approx([one["clip"] for one in alone], abs=1e-5)


def test_layers_are_taken_in_the_order_of_their_numbers(head, tmp_path):
    assert [len(weight) for weight, _ in read_head(head)] == [8] * 11 + [1]
    layer = {"weight": torch.ones(1, 2), "bias": torch.tensor([1.0])}
    for name, tensors, refusal in (
        (
            "chain",
            {"a.weight": torch.ones(3, 2), "b.weight": torch.ones(1, 4)},
            "b.weight takes 4 values, and the layer before gives 3",
        ),
        ("wide", {"weight": torch.ones(2, 2)}, "has no linear layers that end in one number"),
        ("norm", {"weight": torch.ones(2)}, "weight has 1 dimensions"),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(DarkroomError, match=refusal):
            read_head(tmp_path / f"{name}.safetensors")
    save_file(layer, tmp_path / "one.safetensors")
    (weight, bias), *none = read_head(tmp_path / "one.safetensors")
    assert (weight @ [2, 3] + bias).tolist() == [6.0] and none == []


def test_what_cannot_be_used_is_refused_in_one_line(clip, siglip, classifier, head, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    refusals = {
        "metrics.clip.model: cannot load": ClipMetric(Clip(model=str(tmp_path))),
        "metrics.clip.score: CLIPModel has no probability": ClipMetric(Clip(model=clip, score="probability")),
        "metrics.clip.model: .* is no CLIP or SigLIP model": ClipMetric(Clip(model=classifier)),
        "metrics.nsfw.labels: .* has no label porn; it has normal, NSFW, drawing": NsfwMetric(
            Nsfw(model=classifier, labels=["nsfw", "porn"])
        ),
    }
    for words, metric in refusals.items():
        with pytest.raises(DarkroomError, match=words) as told:
            metric.open("images")
        assert "\n" not in str(told.value)
    other = AestheticMetric(Aesthetic(model=siglip, head=str(head))).open("images")
    with pytest.raises(DarkroomError, match=r"metrics.aesthetic.head: takes 24 values, and .* gives 32"):
        other.score([subject("a red circle")])


def test_a_score_outside_of_its_range_is_null_with_a_reason(clip, head):
    metric = AestheticMetric(Aesthetic(model=clip, head=str(head), low=99, high=100))
    record = image_record("images", 1)
    (found,) = score_chunk(metric, "images", metric.open("images"), {record["key"]: record}).values()
    assert found["aesthetic"] is None and "outside 99 to 100" in found["aesthetic_error"]
