"""The world of shapes: rendering, captions, edits, hold-out rule, and the scorer on good and bad pictures."""

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from shapeworld import scorer, world
from shapeworld.world import Scene, Thing

pytestmark = pytest.mark.long


def scenes(n, seed=0):
    rng = random.Random(seed)
    for i in range(n):
        yield world.sample_scene(rng) if i % 2 else world.sample_edit(rng).target


def test_clean_renders_are_read_right():
    verdicts = [scorer.score(world.render(s), s, places=True).strict for s in scenes(1200)]
    assert np.mean(verdicts) >= 0.99


@pytest.mark.parametrize("background", world.BACKGROUNDS)
def test_every_background_is_read_right(background):
    rng = random.Random(5)
    drawn = [world.sample_scene(rng, background=background) for _ in range(150)]
    assert np.mean([scorer.score(world.render(s), s).strict for s in drawn]) >= 0.99


def test_slightly_blurred_pictures_are_read_right():
    right = []
    for s in scenes(300, seed=1):
        picture = world.render(s).filter(ImageFilter.GaussianBlur(0.5))
        right.append(scorer.score(picture, s, places=True).strict)
    assert np.mean(right) >= 0.98


def test_larger_pictures_are_read_like_small_ones():
    for s in scenes(20, seed=2):
        assert scorer.score(world.render(s, 256), s).strict


def test_the_scorer_notices_one_changed_attribute():
    rng = random.Random(3)
    for _ in range(200):
        s = world.sample_scene(rng, "relation")
        reading = scorer.read(world.render(s))
        assert not scorer.judge(reading, replace(s, things=s.things[::-1])).relation
        assert not scorer.judge(reading, replace(s, relation=world.OPPOSITE[s.relation])).strict
        assert not scorer.judge(reading, replace(s, things=s.things[:1], relation=None, kind="one")).count
        e = world.sample_edit(rng)
        assert scorer.score(world.render(e.target), e.target, places=True).strict
        assert not scorer.score(world.render(e.source), e.target, places=True).strict


def test_damaged_objects_are_not_accepted():
    s = Scene("one", "white", (Thing("red", "square", 32, 32, 15),))
    clean = world.render(s)
    assert scorer.score(clean, s).strict

    two_coloured = clean.copy()
    ImageDraw.Draw(two_coloured).rectangle([32, 10, 45, 55], fill=world.COLOURS["orange"])
    assert not scorer.score(two_coloured, s).strict

    cut = clean.copy()
    ImageDraw.Draw(cut).rectangle([16, 16, 28, 28], fill="white")
    assert scorer.read(cut).things[0].shape is None

    dirty = clean.copy()
    ImageDraw.Draw(dirty).rectangle([2, 2, 6, 6], fill="blue")
    assert not scorer.score(dirty, s).count

    moved = replace(s, things=(replace(s.things[0], x=24),))
    assert scorer.score(clean, moved).strict
    assert not scorer.score(clean, moved, places=True).strict


def test_noise_is_not_a_picture():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert scorer.read(noise).background is None
    with pytest.raises(ValueError):
        scorer.read(noise[:32])


def test_empty_picture_has_no_things():
    assert scorer.read(Image.new("RGB", (64, 64), world.BACKGROUNDS["pink"])) == scorer.Reading("pink", ())


def test_captions():
    one = Thing("orange", "star", 32, 32, 15)
    two = Thing("blue", "circle", 48, 32, 11)
    assert world.describe(Scene("one", "white", (one,))) == "an orange star"
    pair = Scene("relation", "pink", (one, two), "left of")
    assert world.describe(pair) == "an orange star left of a blue circle on a pink background"
    assert "to the left of" in world.describe(pair, to_the=True)
    assert world.describe(Scene("count", "white", (one,) * 3), name_white=True) == (
        "three orange stars on a white background"
    )


def test_varied_captions_keep_their_words_in_order():
    rng = random.Random(4)
    for s in scenes(300, seed=4):
        text = world.describe(s)
        varied = world.vary(text, rng).lower().replace(",", "").rstrip(".!").split()
        core = iter(varied)
        assert all(any(w == v for v in core) for w in text.split() if w not in ("a", "an"))


def test_edits_change_one_thing():
    rng = random.Random(6)
    for _ in range(400):
        e = world.sample_edit(rng)
        if e.task == "background":
            assert e.source.things == e.target.things
            assert e.target.background in e.instruction
        elif e.task == "remove":
            assert set(e.target.things) < set(e.source.things)
        else:
            changed = [(a, b) for a, b in zip(e.source.things, e.target.things, strict=True) if a != b]
            assert len(changed) == 1
            assert e.source.background == e.target.background
        named = [t for t in e.source.things if t.shape in e.instruction.split("with")[0].split("into")[0]]
        if e.task != "background" and len(named) > 1:
            assert any(f"{t.colour} {t.shape}" in e.instruction for t in named)


def test_hold_out_is_deterministic_and_about_one_in_eight():
    rng = random.Random(7)
    assert 0.08 < np.mean([world.held_out(world.sample_scene(rng)) for _ in range(3000)]) < 0.17
    assert 0.08 < np.mean([world.held_out(world.sample_edit(rng)) for _ in range(3000)]) < 0.17
    for s in scenes(200, seed=8):
        if s.relation:
            mirrored = replace(s, things=s.things[::-1], relation=world.OPPOSITE[s.relation])
            assert world.held_out(s) == world.held_out(mirrored)


def test_same_seed_same_scenes():
    assert list(scenes(20, seed=9)) == list(scenes(20, seed=9))
