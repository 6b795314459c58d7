"""The tiny judge: its data's truth, its tokenizer, its training forward pass, and the shipped weights."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from conftest import FLUX, JUDGE
from shapeworld import bench_judge, judge_generated, judge_model, judge_pictures, judge_questions, scorer, world
from shapeworld.judge_pictures import Order, outcome
from shapeworld.world import Scene, Thing

PAIR = Scene("relation", "white", (Thing("red", "circle", 16, 32, 11), Thing("blue", "square", 48, 32, 11)), "left of")


@pytest.fixture(scope="module")
def processor():
    return judge_model.make_processor()


@pytest.fixture(scope="module")
def model(processor):
    torch.manual_seed(0)
    return judge_model.make_model(processor.tokenizer)


def ask(processor, pictures, text):
    content = [{"type": "image", "image": p} for p in pictures] + [{"type": "text", "text": text}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )


def edited(order, result):
    return outcome(PAIR, scorer.read(world.render(result)), order)


def test_an_edit_that_was_done_is_followed_and_preserved():
    for seed in range(60):
        edit = world.sample_edit(random.Random(seed))
        result = outcome(edit.source, scorer.read(world.render(edit.target)), judge_pictures.order_of(edit))
        assert (result.followed, result.degree, result.harms) == (True, 10, 0)
        kept = outcome(edit.source, scorer.read(world.render(edit.source)), judge_pictures.order_of(edit))
        assert (kept.followed, kept.degree, kept.harms) == (False, 1, 0)


def test_what_else_changed_is_harm():
    order = Order("recolour", 0, "green", "change the circle to green")
    done = judge_pictures.carry_out(PAIR, order)
    assert edited(order, done).preservation == 10
    assert edited(order, replace(done, background="pink")).preservation == 7
    assert edited(order, replace(done, things=done.things[:1])).harms == 1
    moved = replace(done, things=(done.things[0], replace(done.things[1], y=40)))
    assert edited(order, moved).harms == 1
    reshaped = replace(done, things=(replace(done.things[0], shape="star"), done.things[1]))
    assert edited(order, reshaped).followed
    assert not edited(order, reshaped).preserved
    wrong = judge_pictures.carry_out(PAIR, replace(order, value="orange"))
    assert edited(order, wrong) == judge_pictures.Outcome(False, 4, 0)


def test_removing():
    order = Order("remove", 1, "", "remove the square")
    assert edited(order, judge_pictures.carry_out(PAIR, order)) == judge_pictures.Outcome(True, 10, 0)
    other = judge_pictures.carry_out(PAIR, replace(order, index=0))
    assert not edited(order, other).followed
    assert edited(order, other).harms == 1


def test_alignment_is_ten_only_where_the_scorer_agrees():
    rng = random.Random(1)
    for _ in range(150):
        picture = judge_pictures.sample_picture(rng)
        strict = scorer.judge(picture.reading, picture.scene).strict
        assert (judge_pictures.alignment(picture.reading, picture.scene) == 10) is strict
        truth = judge_pictures.shown(picture.reading)
        if truth is not None:
            assert scorer.judge(picture.reading, truth).strict


def test_captions_asked_in_training_are_not_held_out():
    rng = random.Random(2)
    for _ in range(60):
        picture = judge_pictures.sample_picture(rng)
        assert not world.held_out(picture.scene)
        for scene, right in judge_questions.caption_set(picture, 6, rng):
            assert not world.held_out(scene)
            assert right is scorer.judge(picture.reading, scene).strict


def test_a_relation_along_the_other_axis_is_false_and_asked_for():
    rng, asked = random.Random(4), 0
    for _ in range(30):
        scene = world.sample_where(lambda: world.sample_scene(rng, "relation"), False)
        true = {scene.relation, world.OPPOSITE[scene.relation]}
        pixels = np.asarray(world.render(scene))
        wrong = judge_questions.across(scene, rng)
        assert wrong.relation not in true
        assert not scorer.score(pixels, wrong).strict
        picture = judge_pictures.Picture(pixels, scene, scorer.read(pixels))
        scenes = [s for s, _ in judge_questions.caption_set(picture, 4, rng, relations=0.0, crossed=1.0)]
        asked += any(s.kind == "relation" and s.relation not in true for s in scenes)
    assert asked > 20  # all but those that are held out of training


def test_pictures_decoded_again_are_sorted_by_what_the_scorer_reads():
    painter = judge_generated.Generator.load(FLUX)
    soft, near = random.Random(5), judge_generated.NearMisses()
    while len(near.barely) < 12:
        scene = world.sample_scene(soft, "one", background="yellow")
        pixels = np.asarray(world.render(scene))
        near.barely.append(judge_pictures.Picture(pixels, scene, scorer.read(pixels)))
    found, again = judge_generated.NearMisses(), judge_generated.NearMisses()
    for some in (found, again):
        judge_generated.decode_again(painter, near, 2, random.Random(6), some)
    everything = found.wrong + found.barely + found.clear
    assert len(everything) == 24
    assert len({p.pixels.tobytes() for p in everything}) == 24  # noise of its own each time
    assert not any(scorer.score(p.pixels, p.scene).strict for p in found.wrong)
    assert all(scorer.score(p.pixels, p.scene).strict for p in found.barely + found.clear)
    assert [p.pixels.tolist() for p in found.clear] == [p.pixels.tolist() for p in again.clear]


@pytest.mark.parametrize("kind", judge_questions.KINDS_OF_ERROR)
def test_a_spoiled_caption_is_false(kind):
    rng = random.Random(3)
    found = 0
    while found < 20:
        scene = world.sample_scene(rng)
        wrong = judge_questions.spoil(scene, kind, rng)
        if wrong is not None:
            found += 1
            assert not scorer.score(world.render(scene), wrong).strict


def test_training_ids_are_the_processors(processor):
    rubrics = judge_model.load_rubrics()
    encoder = judge_questions.Encoder(processor.tokenizer)
    picture = world.render(PAIR)
    image = [processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")] * judge_model.IMAGE_TOKENS
    frame = [*encoder.ids("<|vision_start|>"), *image, *encoder.ids("<|vision_end|>")]
    for part, number in (("images", 1), ("edited", 2)):
        for question in rubrics[part].values():
            for prompt in (
                "a red circle",
                "Change the Zorblat circle to RED.",
                '"an orange star"',
                'a\\b {"x"} é\n',
            ):
                text = judge_model.fill(question["text"], prompt)
                inputs = ask(processor, [picture] * number, text)
                built = encoder.head + frame * number + encoder.ids(text + judge_model.TAIL)
                assert inputs["input_ids"][0].tolist() == built


def test_the_rubrics_are_a_few_tokens(processor):
    encoder = judge_questions.Encoder(processor.tokenizer)
    for questions in judge_model.load_rubrics().values():
        for question in questions.values():
            assert len(encoder.ids(judge_model.fill(question["text"], "a red circle"))) == 5


def test_yes_and_no_are_single_tokens(processor):
    for word in ("yes", "no", "Yes", "No"):
        assert len(processor.tokenizer(word)["input_ids"]) == 1


@pytest.mark.parametrize("number", [1, 2])
def test_the_training_forward_pass_is_the_models_own(processor, model, number):
    rng = random.Random(4)
    pair = judge_pictures.sample_pair(rng)
    pictures = [pair.before, pair.after][:number]
    texts = ['Does this image show "a red circle"? Please answer yes or no.', "Is there an orange star?"]
    encoder = judge_questions.Encoder(processor.tokenizer)
    rows = [[judge_questions.yes_no(t, True, "") for t in texts]]
    forward = judge_model.BatchedForward(model)
    table = model.model.language_model.embed_tokens.weight
    with torch.no_grad():
        tokens = forward.see(torch.from_numpy(np.stack(pictures))).view(1, -1, judge_model.WIDTH)
        for group in encoder.pack(rows, buckets=2):
            (states,), _, _ = forward.answer(tokens, encoder.head, [(group.ids, group.read, group.owner)], table)
            text = next(t for t in texts if len(encoder.ids(t + judge_model.TAIL)) == group.ids.shape[1] - 1)
            own = model(**ask(processor, [world.Image.fromarray(p) for p in pictures], text)).logits[0, -1]
            assert torch.allclose(states[0] @ table.T, own, atol=2e-5)


def test_a_stain_is_a_thing_where_it_is_strong_enough():
    rng, pixels = random.Random(5), np.asarray(world.render(PAIR))
    stained = [judge_pictures.stained(pixels, rng) for _ in range(60)]
    readings = [scorer.read(picture) for picture in stained]
    assert {scorer.judge(reading, PAIR).strict for reading in readings} == {True, False}
    assert {len(reading.things) for reading in readings} == {2, 3}


def test_a_more_lenient_reading_accepts_more():
    rng = random.Random(6)
    pictures = [judge_pictures.sample_picture(rng, wrong=0, flawed=1, damaged=0) for _ in range(300)]
    passed = [
        sum(scorer.judge(scorer.read(p.pixels, leniency), p.scene).strict for p in pictures)
        for leniency in (0.8, 1.0, 1.25)
    ]
    assert passed == sorted(set(passed))
    assert all(scorer.read(p.pixels) == p.reading for p in pictures)


def test_rare_wrong_ones_are_looked_for():
    numbers = iter(range(10**6))
    found, verdicts, total = bench_judge._draw(
        lambda n: [next(numbers) for _ in range(n)], lambda n: (n % 50 != 7,), number=40, most=10**6
    )
    assert found == [*range(40), *range(57, total, 50)] and total == 1480
    assert [v for (v,) in verdicts].count(False) == bench_judge.ENOUGH_WRONG == 30
    _, verdicts, total = bench_judge._draw(lambda n: [1] * n, lambda _: (True,), number=40, most=100)
    assert total == 100 and verdicts == [(True,)] * 40


def test_statistics():
    assert bench_judge.auc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]) == 0.75
    assert bench_judge.auc([1, 1], [False, True]) == 0.5
    assert np.isnan(bench_judge.auc([1, 1], [True, True]))
    # As two thousand draws of exponential scores spread, whose area is 0.92; next to nothing with many cases.
    rng, truth = np.random.default_rng(1), [True] * 109 + [False] * 11
    draws = [bench_judge.auc([*rng.exponential(11.5, 109), *rng.exponential(1, 11)], truth) for _ in range(2000)]
    assert bench_judge.auc_error(0.92, 109, 11) == pytest.approx(np.std(draws), rel=0.15)
    assert bench_judge.auc_error(0.92, 10_000, 10_000) < 0.003
    small = bench_judge.Figure("a", 0.87, 0.92, error=0.029)
    assert small.passes(0.03) and not small.passes(0.0)
    assert bench_judge.spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert bench_judge.ranks(np.array([3, 1, 1])).tolist() == [3, 1.5, 1.5]


def test_the_shipped_judge_tells_right_from_wrong():
    judge = bench_judge.Judge(JUDGE)
    assert judge.model.dtype == torch.float32
    template = judge_model.load_rubrics()["images"]["p_yes"]["text"]
    picture = np.asarray(world.render(PAIR))
    right = ("a red circle left of a blue square", "a blue square to the right of a red circle")
    wrong = ("a red square left of a blue circle", "a red circle right of a blue square", "a red circle")
    scores = judge.p_yes([((picture,), judge_model.fill(template, c)) for c in (*right, *wrong)])
    assert min(scores[:2]) > max(scores[2:])
    assert min(judge.masses) > 0.9
    large = np.asarray(world.render(PAIR, 256))
    assert judge.p_yes([((large,), judge_model.fill(template, right[0]))])[0] > 0.5
    rating = judge.rate(
        [((picture,), judge_model.fill(judge_model.load_rubrics()["images"]["rating"]["text"], right[0]))]
    )
    assert list(rating[0]) == ["prompt_alignment", "visual_quality", "reason"]
    assert isinstance(judge.model, transformers.Qwen2_5_VLForConditionalGeneration)
