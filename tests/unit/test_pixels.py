"""The metrics of pixels against pictures whose truth is known: quality, and what an edit left as it was."""

import random
import time
from dataclasses import replace

import numpy as np
import pytest
from darkroom.config.metrics import Preserved, Quality
from darkroom.metrics.base import Subject
from darkroom.metrics.preserved import PreservedMetric
from darkroom.metrics.quality import COLUMNS, QualityMetric
from darkroom.metrics.score import score_chunk
from darkroom.store.images import encode_png, sheet
from metric_contract import MetricContract, image_record
from PIL import Image, ImageFilter
from scipy.stats import spearmanr
from shapeworld import world
from skimage.color import lab2rgb, rgb2lab


class TestQuality(MetricContract):
    @pytest.fixture(scope="class")
    def metric(self):
        return QualityMetric(Quality())

    @pytest.fixture(scope="class")
    def changed(self):
        return QualityMetric(Quality(side=64))


class TestPreserved(MetricContract):
    @pytest.fixture(scope="class", params=["edited"])
    def kind(self, request):
        return request.param

    @pytest.fixture(scope="class")
    def metric(self):
        return PreservedMetric(Preserved())

    @pytest.fixture(scope="class")
    def changed(self):
        return PreservedMetric(Preserved(threshold=30))


def quality(picture, **section):
    subject = Subject("0" * 32, "", [picture], {})
    return QualityMetric(Quality(**section)).score([subject])[0]


def grey(pixels):
    return Image.fromarray(np.asarray(pixels, np.uint8)).convert("RGB")


def scene(size, seed=1):
    return world.render(world.sample_scene(random.Random(seed), "relation", "gray"), size)


def test_exposure_is_that_of_the_pixels():
    halves = np.zeros((256, 256))
    halves[:, 128:] = 255
    found = quality(grey(halves))
    half = {"luma", "clipped_dark", "clipped_bright", "black_share", "white_share"}
    assert {name: found[name] for name in half} == dict.fromkeys(half, 0.5)
    assert found["contrast"] == 1 and found["border_share"] == 1 - 0.5 * 0  # both halves are lines of one colour
    red = quality(Image.new("RGB", (64, 64), (255, 0, 20)))
    assert (red["clipped_dark"], red["clipped_bright"], red["black_share"], red["white_share"]) == (1, 1, 0, 0)
    assert red["luma"] == pytest.approx((0.299 * 255 + 0.114 * 20) / 255, abs=0.003)
    assert (red["sharpness"], red["contrast"], red["flat_share"], red["border_share"]) == (0, 0, 1, 1)


def test_sharpness_falls_with_every_degree_of_blur_whatever_the_size():
    for size in (128, 600):
        sharp = scene(size)
        degrees = [0, 0.004, 0.01, 0.03]  # of the side
        found = [quality(sharp.filter(ImageFilter.GaussianBlur(d * size)), side=128)["sharpness"] for d in degrees]
        assert found == sorted(found, reverse=True) and found[0] - found[-1] > 0.3, (size, found)
    large, small = (quality(scene(size), side=128)["sharpness"] for size in (1200, 600))
    assert large == pytest.approx(small, abs=0.02)


def test_flat_area_and_borders_are_measured_in_shares():
    noise = np.random.default_rng(0).integers(0, 256, (384, 512))
    plain = noise.copy()
    plain[:, :128] = 90
    found = quality(grey(plain))
    assert quality(grey(noise))["flat_share"] == quality(grey(noise))["border_share"] == 0
    assert found["flat_share"] == found["border_share"] == 0.25
    bars = noise.copy()
    bars[:48], bars[-48:] = 0, 6
    assert quality(grey(bars))["border_share"] == 0.25
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 160, 3), np.uint8)).resize((1600, 900), 0)
    framed = Image.new("RGB", (1600, 1200), "black")
    framed.paste(picture, (0, 150))
    data = framed.resize((1067, 800), Image.Resampling.LANCZOS)
    assert quality(data)["border_share"] == pytest.approx(
        0.25, abs=0.01
    )  # rings beside the edge, as other programs leave them


def test_a_picture_too_small_to_be_measured_has_a_reason():
    found = score_chunk(QualityMetric(Quality()), "images", QualityMetric(Quality()), {"0" * 32: tiny()})["0" * 32]
    assert found.pop("pixels_error") == "the picture is too small to be measured: 40 x 8 pixels, and 16 are needed"
    assert found == dict.fromkeys(COLUMNS)
    assert quality(Image.new("RGB", (4000, 16), "gray"))["border_share"] == 1


def tiny():
    return image_record("images", 0, encode_png(Image.new("RGB", (40, 8))))


def test_a_megapixel_is_measured_in_a_tenth_of_a_second():
    picture = scene(1024).filter(ImageFilter.GaussianBlur(1))
    quality(picture)  # imports
    took = []
    for _ in range(3):
        began = time.thread_time()
        quality(picture)
        took.append(time.thread_time() - began)
    assert min(took) < 0.2  # 0.07 s on a core of a server; twice the promise, for others run beside the tests


def damaged(picture, kind, degree, seed):
    """The picture with so much noise (standard deviation 0.02 a degree), fading (3 units of CIELAB) or blur (0.3 % of the side)."""
    if kind == "blur":
        return picture.filter(ImageFilter.GaussianBlur(0.003 * degree * picture.width))
    pixels = np.asarray(picture, np.float32) / 255
    if kind == "noise":
        pixels = pixels + np.random.default_rng(seed).normal(0, 0.02 * degree, pixels.shape)
    else:
        lab = rgb2lab(pixels)
        to_grey = np.array([50, 0, 0]) - lab
        pixels = lab2rgb(lab + 3 * degree * to_grey / np.maximum(np.linalg.norm(to_grey, axis=2, keepdims=True), 1e-6))
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def edits(number, size):
    """(source, result, share of the area that differs) of edits of one thing of two: recoloured, removed, reshaped or moved."""
    rng = random.Random(1)
    for n in range(number):
        task = ("recolour", "remove", "reshape", "move")[n % 4]
        edit = world.sample_edit(rng, "recolour" if task == "move" else task, "relation")
        target = edit.target
        if task == "move":
            first, *others = edit.source.things
            target = replace(edit.source, things=(replace(first, x=first.x + 6, y=first.y - 6), *others))
        source, result = world.render(edit.source, size), world.render(target, size)
        differs = np.abs(np.asarray(source, int) - np.asarray(result, int)).max(axis=2) > 8
        yield source, result, float(differs.mean())


def kept(source, result, **record):
    subject = Subject("0" * 32, "", [source, result], record)
    return PreservedMetric(Preserved()).score([subject])[0]


@pytest.mark.long
def test_what_was_preserved_follows_the_degree_of_damage():
    degrees = range(6)
    for kind in ("noise", "fade", "blur"):
        given, found = [], []
        for n, (source, result, _) in enumerate(edits(8, 128)):
            given += degrees
            found += [kept(source, damaged(result, kind, degree, n))["preserved"] for degree in degrees]
        figure = -spearmanr(given, found)[0]
        assert figure >= 0.9, (kind, figure)
        assert min(found[:: len(degrees)]) > 0.99, "nothing but the thing that was asked for differs"


def test_what_was_changed_is_the_area_of_the_edit_whatever_the_rest_suffered():
    truth, found = [], []
    for n, (source, result, share) in enumerate(edits(16, 128)):
        kind = ("noise", "fade", "blur")[n % 3]
        truth.append(share)
        found.append(kept(source, damaged(result, kind, 3, n))["changed"])
    assert spearmanr(truth, found)[0] >= 0.9
    assert np.abs(np.subtract(truth, found)).max() < 0.06  # where a thing moved, both places and what lies between


def test_nothing_changed_and_nothing_preserved():
    source, other, _ = next(edits(1, 128))
    assert kept(source, source) == {"changed": 0, "preserved": 1}
    assert kept(source, Image.new("RGB", source.size, (0, 255, 0))) == {"changed": 1, "preserved": 0}
    assert 0 < kept(source, other)["changed"] < 0.2


def test_a_source_of_another_size_or_shape_is_brought_to_the_result_s():
    source, result, _ = next(edits(1, 256))
    same = kept(source, result)
    for size in ((512, 512), (200, 300)):
        found = kept(source.resize(size, Image.Resampling.LANCZOS), result)
        assert found == pytest.approx(same, abs=0.03), size


def test_of_several_sources_the_first_is_compared():
    source, result, _ = next(edits(1, 128))
    parts = '[{"name": "a", "width": 128, "height": 128}, {"name": "b", "width": 300, "height": 200}]'
    both = sheet([source, Image.new("RGB", (300, 200), "red")])
    assert kept(both, result, source_parts=parts) == kept(source, result, source_parts=None)
