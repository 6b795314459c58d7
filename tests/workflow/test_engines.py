"""The engines: both judges agree, any other pipeline works, and what a model gets wrong is a recorded failure."""

import json
import shutil

import judge_models
import numpy as np
import pytest
import torch
import xgrammar
from conftest import FLUX, JUDGE, read_requests, small_config
from darkroom.engines import open_engine
from darkroom.engines.work import ShardJob
from darkroom.errors import DarkroomError
from darkroom.jobs import runtime
from darkroom.make import make_shard
from darkroom.metrics import judge, vlm
from darkroom.metrics.rubric import Question, load_rubric
from darkroom.plan.recipe import image_recipe
from darkroom.store.scratch import Scratch
from darkroom.store.shardfile import iter_records
from PIL import Image, ImageDraw

RUBRIC = "config/rubrics/shapes.yaml"


def filled_config(section, name, tmp_path):
    """The config with this in one section, as the workflow has it."""
    from conftest import REPOSITORY
    from darkroom.config.load import load_config

    (tmp_path / "prompts.jsonl").write_text("{}\n")
    config = small_config(prompts=str(tmp_path / "prompts.jsonl"), **{name: section})
    return load_config(config, [REPOSITORY])


def filled(section, name, tmp_path):
    """The section with every default, as the workflow has it."""
    return getattr(filled_config(section, name, tmp_path), name)


def stage_for(section, name, tmp_path):
    return ShardJob(
        name=name,
        section=section,
        recipe=image_recipe(section),
        digest="d",
        folder=tmp_path,
        rule="edit_images" if name == "edit" else "generate_images",
        scratch=Scratch(tmp_path / "scratch"),
        edits=name == "edit",
    )


def lines(*rows):
    normal = [{"id": f"r{i}", "options": {}, "row": {}} | row for i, row in enumerate(rows)]
    return b"".join(json.dumps(row).encode() + b"\n" for row in normal)


def make(stage, data, path):
    counts = make_shard(read_requests(data, stage.section, 0, 1), path, stage, [], [])
    return counts, list(iter_records(path))


CUT = "reply is cut off after 8 tokens; raise judge.max_tokens"


def pictures(number):
    """Different pictures of different sizes and contents."""
    dice = np.random.default_rng(0)
    for _ in range(number):
        picture = Image.new("RGB", tuple(dice.integers(40, 160, 2).tolist()), tuple(dice.integers(0, 256, 3).tolist()))
        ImageDraw.Draw(picture).ellipse(dice.integers(0, 40, 4).cumsum().tolist(), fill=tuple(dice.integers(0, 256, 3)))
        yield picture


def shares(answer):
    """The probability of each answer among all of them."""
    return {name: p / sum(answer.probabilities.values()) for name, p in answer.probabilities.items()}


def test_vllm_and_transformers_give_the_same_answers_on_32_images(tmp_path):
    rubric = load_rubric(RUBRIC)
    section = filled({}, "judge", tmp_path)
    asks = [
        judge.Ask([picture], question.ask(f'a red circle "{number}"'), question, 1)
        for number, picture in enumerate(pictures(32))
        for question in rubric.questions["images"]
    ]
    one = vlm.VllmJudge(section, "images", rubric).ask(asks)
    other = vlm.TransformersJudge(section.model_copy(update={"engine": "transformers"}), "images", rubric).ask(asks)
    yes_no = [(a, b) for ask, a, b in zip(asks, one, other, strict=True) if ask.question.type == "yes_no"]
    assert len(yes_no) == 32
    for a, b in yes_no:
        assert shares(a) == pytest.approx(shares(b), abs=1e-4)
    replies = [(a.reply, b.reply) for ask, a, b in zip(asks, one, other, strict=True) if ask.question.type == "json"]
    assert len(replies) == 32 and all(a == b for a, b in replies)


@pytest.mark.parametrize(
    "make", [judge_models.qwen3_vl, judge_models.qwen3_5, judge_models.llava], ids=lambda make: make.__name__
)
def test_both_engines_give_the_same_answers_and_think_no_first_token(make, tmp_path):
    section, thinks = judge_models.saved(make, tmp_path), make is judge_models.qwen3_5
    (tmp_path / "rubric.yaml").write_text(judge_models.EVERY_KIND)
    rubric = load_rubric(tmp_path / "rubric.yaml")
    questions = rubric.questions["images"]
    asks = [judge.Ask([p], q.ask(f"a red circle {n}"), q, 1) for n, p in enumerate(pictures(4)) for q in questions]
    one = vlm.VllmJudge(section, "images", rubric).ask(asks)
    other = vlm.TransformersJudge(section.model_copy(update={"engine": "transformers"}), "images", rubric)
    for ask, a, b in zip(asks, one, other.ask(asks), strict=True):
        assert a.error is None and b.error is None
        if ask.question.labels:
            # On the CPU vLLM computes Qwen3.5 in bfloat16 alone.
            close = (1e-2 if ask.question.type == "yes_no" else 3e-2) if thinks else 1e-4
            assert list(a.probabilities) == list(ask.question.labels)
            assert shares(a) == pytest.approx(shares(b), abs=close)
            assert sum(a.probabilities.values()) == pytest.approx(sum(b.probabilities.values()), rel=5 * close)
            columns = [judge.read_answer(ask.question, answer) for answer in (a, b)]
            if ask.question.type == "rating":
                assert columns[0]["stars"] == pytest.approx(columns[1]["stars"], abs=9 * close)
        elif not thinks:
            assert a.reply == b.reply and a.cut == b.cut
    assert (
        len({round(shares(a)["yes"], 4) for ask, a in zip(asks, one, strict=True) if ask.question.name == "p_yes"}) == 4
    )
    text = other.text("a red circle")
    assert text.count("<think>") == text.count("</think>") == (thinks)
    assert text.endswith("</think>\n\n" if thinks else "assistant\n")


def test_a_model_that_thinks_is_refused_in_one_line(tmp_path):
    section = judge_models.saved(
        judge_models.qwen3_vl, tmp_path, lambda _: judge_models.TURNS + "{{- '<think>\\n' }}{%- endif %}"
    )
    with pytest.raises(DarkroomError, match=r"judge.model: .*: thinks before it answers, .* \(Instruct\)$"):
        vlm.TransformersJudge(section, "images", load_rubric(RUBRIC))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("[low, medium]", "no single token for the answer medium; ask for another word"),
        ("{a: [red, A], b: [blue, A]}", "one token for the answers a and b; give them other spellings"),
    ],
)
def test_answers_that_the_first_token_does_not_tell_apart_are_refused_in_one_line(answers, message, tmp_path):
    asked = f"images: [{{name: q, type: choice, text: 'What?', answers: {answers}}}]\n"
    (tmp_path / "rubric.yaml").write_text(asked + asked.replace("images", "edited").replace(answers, "[red, blue]"))
    section, rubric = filled({}, "judge", tmp_path), load_rubric(tmp_path / "rubric.yaml")
    engine = vlm.Judge(section, "edited", rubric)
    words = [word for word in engine.tokenizer.get_vocab() if word.isascii() and word.isalnum()][:200]
    many = Question("q", "choice", "What?", answers={"a": (words[0],), "b": tuple(words[1:])})
    with pytest.raises(DarkroomError, match=r"has 200 tokens for its answers; at most 128 are compared"):
        engine.label_ids(many)
    with pytest.raises(DarkroomError, match=rf"^judge.model: .*: question q: its tokenizer has {message}[^\n]*$"):
        vlm.Judge(section, "images", rubric)


def test_the_same_picture_in_other_company_gets_the_same_scores(tmp_path):
    rubric = load_rubric(RUBRIC)
    engine = vlm.VllmJudge(filled({"max_tokens": 8}, "judge", tmp_path), "edited", rubric)
    question, rating = rubric.questions["edited"][0], rubric.questions["edited"][-1]
    (one,) = engine.ask([judge.Ask([next(pictures(1))], "Is it red?", question, 1)])  # shown the result alone
    assert one.error is None and one.probabilities
    asks = [judge.Ask([p, p], question.ask("make it red"), question, 1) for p in pictures(9)]
    together, alone = engine.ask(asks), engine.ask(asks[4:5])[0]
    scores = [judge.read_answer(question, answer)["p_followed"] for answer in (together[4], alone)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    (answer,) = engine.ask([judge.Ask(asks[0].images, rating.ask("make it red"), rating, 1)])
    assert judge.read_answer(rating, answer)["rating_error"] == CUT


def test_an_image_the_judge_cannot_take_is_null_with_a_reason(tmp_path):
    rubric = load_rubric(RUBRIC)
    section = filled({"engine": "transformers", "max_tokens": 8}, "judge", tmp_path)
    engine = vlm.TransformersJudge(section, "images", rubric)
    question, rating = rubric.questions["images"]
    (answer,) = engine.ask([judge.Ask([Image.new("RGB", (3000, 2))], question.ask("a line"), question, 1)])
    columns = judge.read_answer(question, answer)
    assert columns.get("p_yes") is None and "cannot take this image" in columns["p_yes_error"]
    (answer,) = engine.ask([judge.Ask([Image.new("RGB", (64, 64))], question.ask("word " * 9000), question, 1)])
    assert "tokens" in judge.read_answer(question, answer)["p_yes_error"]
    (answer,) = engine.ask([judge.Ask([Image.new("RGB", (64, 64))], rating.ask("a line"), rating, 1)])
    assert judge.read_answer(rating, answer)["rating_error"] == CUT
    # The grammar of a reply lets a reason of any language through, and nothing that is not JSON.
    schema = engine.compiler.compile_json_schema(rating.schema, any_whitespace=False, separators=(",", ":"))
    reasons = {"红色的圆": True, "à côté 😀": True, "red": True, 'a "b"': False, "a\\b": False, "a\nb": False}
    for reason, taken in reasons.items():
        matcher = xgrammar.GrammarMatcher(schema, terminate_without_stop_token=True)
        text = f'{{"prompt_alignment":7,"visual_quality":8,"reason":"{reason}"}}'
        assert (matcher.accept_string(text) and matcher.is_terminated()) == taken, reason


def test_batches_do_not_change_pixels(tmp_path):
    rows = [{"items": [{"prompt": f"a {colour} circle"}]} for colour in ("red", "green", "blue", "purple", "orange")]
    hashes = []
    for size in (1, 4):
        folder = tmp_path / str(size)
        folder.mkdir()
        stage = stage_for(filled({"batch_size": size}, "generate", tmp_path), "generate", folder)
        _, records = make(stage, lines(*rows), folder / "shard.parquet")
        hashes.append({record["key"]: record["sha256"] for record in records})
    assert hashes[0] == hashes[1] and len(set(hashes[0].values())) == 5


@pytest.mark.parametrize("name", ["generate", "edit"])
def test_every_picture_of_a_batch_is_that_of_its_own_request(tmp_path, name):
    """What a GPU does with batches above 1: the pictures alone, but for rounding."""
    engine = open_engine(filled({}, name, tmp_path), name)
    colours = ("red", "green", "blue")
    items = [{"prompt": f"make it {c}" if engine.edits else f"a {c} circle"} for c in colours]
    stage = stage_for(engine.section, name, tmp_path)
    requests = read_requests(lines(*({"items": [item]} for item in items)), stage.section, 0, 1)
    sources = [Image.new("RGB", (64, 64), colour) for colour in colours] if engine.edits else None
    engine.prepare(requests)
    together = engine.run(requests, (64, 64), sources)
    for place, request in enumerate(requests):
        alone = engine.run([request], (64, 64), sources and [sources[place]])
        assert np.abs(together[place] - alone[0]).max() < 1e-3
        assert np.abs(together[place] - together[place - 1]).max() > 0.1


def test_sizes_steps_and_guidance_of_rows_are_kept_exactly(tmp_path):
    rows = [
        {"items": [{"prompt": "a red circle"}], "options": {"width": 70, "height": 50}},
        {"items": [{"prompt": "a red circle"}], "options": {"steps": 1}},
        {"items": [{"prompt": "a red circle"}], "options": {"guidance": 1.5, "seed": 7, "samples": 2}},
    ]
    counts, records = make(
        stage_for(filled({}, "generate", tmp_path), "generate", tmp_path), lines(*rows), tmp_path / "s.parquet"
    )
    assert counts.pop("working") > 0
    assert counts == {"requests": 4, "made": 4, "carried": 0, "given": 0, "failed": 0}
    sizes = [Image.open(__import__("io").BytesIO(record["image"]["bytes"])).size for record in records]
    assert sizes == [(70, 50), (64, 64), (64, 64), (64, 64)]
    assert [record["steps"] for record in records] == [2, 1, 2, 2]
    assert records[2]["seed"] == 7 and len({record["key"] for record in records}) == 4


def test_kontext_edits_sources_of_mixed_sizes_each_by_its_own_instruction(tmp_path):
    for number, picture in enumerate(pictures(6)):
        picture.save(tmp_path / f"{number}.png")
    rows = [{"items": [{"prompt": "make it red", "source": {"path": f"{n}.png"}}]} for n in (0, 1, 0, 2, 3, 4, 5)]
    rows += [{"items": [{"prompt": "make it red", "source": {"path": "none.png"}}]}]
    counts, records = make(
        stage_for(filled({}, "edit", tmp_path), "edit", tmp_path), lines(*rows), tmp_path / "s.parquet"
    )
    assert counts["made"] == 7 and counts["failed"] == 1
    assert "none.png" in records[7]["error"] and records[7]["image"] is None
    for record, row in zip(records[:7], rows, strict=False):
        with Image.open(tmp_path / row["items"][0]["source"]["path"]) as source:
            assert (record["width"], record["height"]) == source.size
            assert record["source_name"] == row["items"][0]["source"]["path"]


@pytest.mark.parametrize("fault", ["nan", "black"])
def test_a_broken_image_is_a_recorded_failure_of_that_request_alone(tmp_path, fault):
    """Weights that give NaN, or black: the real pipeline returns them, and every request says why it has no image."""
    from diffusers import AutoencoderTiny

    model = tmp_path / "model"
    shutil.copytree(FLUX, model)
    vae = AutoencoderTiny.from_pretrained(model / "vae")
    with torch.no_grad():
        last = [p for name, p in vae.decoder.named_parameters() if name.endswith("bias") and p.shape == (3,)][-1]
        last.fill_(float("nan") if fault == "nan" else -1e6)
    vae.save_pretrained(model / "vae")
    stage = stage_for(filled({"model": str(model)}, "generate", tmp_path), "generate", tmp_path)
    counts, records = make(stage, lines({"items": [{"prompt": "a red circle"}]}), tmp_path / "s.parquet")
    assert counts["failed"] == 1 and counts["made"] == 0
    assert ("NaN" if fault == "nan" else "all-black") in records[0]["error"]


def test_family_auto_runs_another_architecture(tmp_path):
    model = tmp_path / "tiny-sd"
    build_stable_diffusion(model)
    section = filled({"model": str(model), "max_sequence_length": None}, "generate", tmp_path)
    assert section.family == "auto"
    rows = [
        {"items": [{"prompt": "a red circle"}], "options": {"negative_prompt": "blurry"}},
        {"items": [{"prompt": "a blue square"}]},
        {"items": [{"prompt": "a blue square"}], "options": {"seed": 3}},
    ]
    counts, records = make(stage_for(section, "generate", tmp_path), lines(*rows), tmp_path / "s.parquet")
    assert counts["made"] == 3
    assert len({record["sha256"] for record in records}) == 3
    other = tmp_path / "again"
    other.mkdir()
    make(stage_for(section, "generate", other), lines(*rows), other / "s.parquet")
    assert (tmp_path / "s.parquet").read_bytes() == (other / "s.parquet").read_bytes()


def test_a_row_fails_alone_that_names_what_an_unknown_pipeline_does_not_take(tmp_path):
    """Of consistency models the pipeline reads no negative prompt: in the config it is refused, in a row it is the row's failure."""
    from darkroom.errors import DarkroomError

    model = tmp_path / "tiny-lcm"
    build_stable_diffusion(model, time_cond_proj_dim=32)
    index = json.loads((model / "model_index.json").read_bytes())
    index |= {"_class_name": "LatentConsistencyModelPipeline", "scheduler": ["diffusers", "LCMScheduler"]}
    (model / "model_index.json").write_text(json.dumps(index))
    given = {"model": str(model), "max_sequence_length": None, "guidance": None}
    rows = [
        {"items": [{"prompt": "a red circle"}], "options": {"negative_prompt": "blurry"}},
        {"items": [{"prompt": "a blue square"}]},
    ]
    stage = stage_for(filled(given, "generate", tmp_path), "generate", tmp_path)
    counts, records = make(stage, lines(*rows), tmp_path / "s.parquet")
    assert (counts["made"], counts["failed"]) == (1, 1)
    reason = "LatentConsistencyModelPipeline takes no negative_prompt"
    assert [record["error"] for record in records] == [f"{reason}; leave it out of the row", None]
    with pytest.raises(DarkroomError, match=f"^generate.model: {reason}; leave it out, or use another model$"):
        open_engine(filled(given | {"negative_prompt": "blurry"}, "generate", tmp_path), "generate")


def build_stable_diffusion(out, **unet):
    """A Stable Diffusion pipeline of a few random weights: a U-Net with classifier-free guidance, not a FLUX."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(FLUX / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    blocks = {"block_out_channels": (32, 64), "norm_num_groups": 32}
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            **blocks,
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            latent_channels=4,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            **blocks,
            layers_per_block=1,
            sample_size=32,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            **unet,
        ),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
    ).save_pretrained(out)


def test_cuda_where_there_is_none_is_one_clear_sentence(tmp_path):
    if torch.cuda.is_available():
        pytest.fail("this test is for machines without CUDA")
    from darkroom.errors import DarkroomError

    with pytest.raises(DarkroomError, match="device is cuda, but torch sees no GPU"):
        open_engine(filled({"device": "cuda"}, "generate", tmp_path), "generate")


def test_sigterm_keeps_what_is_finished_and_the_next_run_goes_on(tmp_path):
    from darkroom.errors import Interrupted

    rows = lines(*({"items": [{"prompt": f"a red circle {n}"}]} for n in range(6)))
    section = filled({"batch_size": 2}, "generate", tmp_path)
    stage, path = stage_for(section, "generate", tmp_path), tmp_path / "s.parquet"

    def engine_that_is_told_to_stop(section, name):
        engine = open_engine(section, name)
        run = engine.run

        def run_and_stop(*arguments):
            runtime.stop_requested.set()  # what the handler of SIGTERM does
            return run(*arguments)

        engine.run = run_and_stop
        return engine

    try:
        with pytest.raises(Interrupted, match="interrupted, 2 of 6 kept"):
            make_shard(read_requests(rows, stage.section, 0, 1), path, stage, [], [], engine_that_is_told_to_stop)
    finally:
        runtime.stop_requested.clear()
    counts, _ = make(stage, rows, path)
    assert counts.pop("working") > 0
    assert counts == {"requests": 6, "made": 4, "carried": 2, "given": 0, "failed": 0}
    other = tmp_path / "at-once"
    other.mkdir()
    make(stage_for(section, "generate", other), rows, other / "s.parquet")
    assert path.read_bytes() == (other / "s.parquet").read_bytes()


def test_the_embedded_judge_is_there():
    assert (JUDGE / "config.json").exists()
