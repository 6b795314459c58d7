"""Options that fit a model to a card, with the real engines on the CPU: what they change is part of the key, and repeats."""

import os

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, read_requests
from darkroom.config import options
from darkroom.config.models import Generate
from darkroom.engines import fitting, open_engine
from darkroom.errors import DarkroomError
from darkroom.metrics import judge, vlm
from darkroom.metrics.rubric import load_rubric
from darkroom.tools.replay import replay
from PIL import Image
from safetensors.torch import save_file
from test_engines import RUBRIC, build_stable_diffusion, filled, filled_config, lines, make, stage_for

STEPS = 6  # few steps are too far apart for a cache to find anything alike
OPTIONS = [
    {"quantization": "int8"},
    {"quantization": "fp8"},
    {"cache": "first_block", "cache_threshold": 0.3, "batch_size": 1},
    {"cache": "taylorseer", "cache_interval": 3},
]
if os.environ.get("DARKROOM_TEST_ALL"):  # the compiler takes a minute
    OPTIONS += [{"compile": True}, {"compile": True, "quantization": "int8"}]
    OPTIONS += [option | {"compile": True} for option in OPTIONS if "cache" in option]


def engine_of(name, tmp_path, **section):
    """(engine, requests, sources): two requests of a stage, prepared."""
    engine = open_engine(filled({"steps": STEPS} | section, name, tmp_path), name)
    items = [{"prompt": f"make it {c}" if engine.edits else f"a {c} circle"} for c in ("red", "blue")]
    requests = read_requests(lines(*({"items": [item]} for item in items)), engine.section, 0, 1)
    engine.prepare(requests)
    return engine, requests, [Image.new("RGB", (64, 64), c) for c in ("blue", "red")] if engine.edits else None


def alone(engine, requests, sources):
    return np.stack([engine.run([r], (64, 64), sources and [sources[place]])[0] for place, r in enumerate(requests)])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return {name: alone(*engine_of(name, tmp_path_factory.mktemp(name))) for name in ("generate", "edit")}


@pytest.mark.parametrize("name", ["generate", "edit"])
@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: "-".join(str(value) for value in option.values()))
def test_an_option_changes_pixels_a_little_and_repeats_exactly(plain, tmp_path, name, option):
    engine, requests, sources = engine_of(name, tmp_path, **option)
    first, again = alone(engine, requests, sources), alone(engine, requests[::-1], sources and sources[::-1])[::-1]
    assert (first == again).all()  # whatever was made before
    difference = np.abs(first - plain[name])
    assert difference.max() > 0 and difference.mean() < 0.1
    if "batch_size" not in option:
        together = engine.run(requests, (64, 64), sources)
        assert np.abs(together - first).max() < 1e-3


def lora(path, **parts):
    """A file with a LoRA of rank 2; parts: name of a linear layer, __ for each point -> (values out, values in)."""
    noise, weights = torch.Generator().manual_seed(0), {}
    for name, sides in parts.items():
        for side, shape in (("A", (2, sides[1])), ("B", (sides[0], 2))):
            weights[f"{name.replace('__', '.')}.lora_{side}.weight"] = torch.randn(shape, generator=noise) / 10
    save_file(weights, path)
    return {"file": str(path)}


LAYER = "transformer__transformer_blocks__0__attn__to_q"
ENCODER = "text_encoder__text_model__encoder__layers__0__self_attn__q_proj"


def test_loras_change_pixels_by_their_scale_with_quantized_weights_too(plain, tmp_path):
    one = lora(tmp_path / "one.safetensors", **{LAYER: (128, 128)})
    two = lora(tmp_path / "two.safetensors", **{LAYER: (128, 128), ENCODER: (64, 64)})

    def difference(name="generate", before=None, **section):
        pictures = alone(*engine_of(name, tmp_path, **section))
        return np.abs(pictures - (plain[name] if before is None else before)).max(), pictures

    assert difference(loras=[one | {"scale": 0}, two | {"scale": 0}])[0] == 0
    half, _ = difference(loras=[one | {"scale": 0.5}])
    whole, pictures = difference(loras=[one])
    assert 0 < half < whole and difference(loras=[one], before=pictures)[0] == 0
    assert difference(loras=[one, two], before=pictures)[0] > 0 and difference("edit", loras=[one])[0] > 0
    _, quantized = difference(quantization="int8")
    assert difference(quantization="int8", loras=[one | {"scale": 0}], before=quantized)[0] == 0
    assert difference(quantization="int8", loras=[one], before=quantized)[0] > half / 4


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({LAYER: (136, 128)}, "size mismatch for transformer_blocks.0.attn.to_q"),
        (
            {LAYER: (128, 128), LAYER.replace("0", "9"): (128, 128)},
            "2 of its 4 weights have no place in the transformer",
        ),
        ({"unet__mid": (8, 8)}, "it holds weights of unet, and the model has none of that name"),
    ],
)
def test_a_lora_of_another_model_is_one_line(tmp_path, parts, reason):
    path = tmp_path / "other.safetensors"
    with pytest.raises(DarkroomError) as error:
        engine_of("generate", tmp_path, loras=[lora(path, **parts)])
    assert str(error.value).startswith(f"generate.loras.0: {path} does not fit FluxPipeline: {reason}")
    assert "\n" not in str(error.value)


def test_a_kernel_of_attention_is_used_and_holds_for_its_engine_alone(plain, tmp_path):
    math = alone(*engine_of("generate", tmp_path, attention="_native_math"))
    assert 0 < np.abs(math - plain["generate"]).max() < 1e-4
    assert (alone(*engine_of("generate", tmp_path, attention="native")) == plain["generate"]).all()


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_offload_moves_the_parts_and_changes_no_pixel(plain, tmp_path, quantization):
    """Its hooks move between host and GPU; here from the host to the host, for an engine on the CPU refuses it."""
    engine, requests, sources = engine_of("edit", tmp_path, quantization=quantization)
    before = alone(engine, requests, sources)
    engine.section = engine.section.model_copy(update={"offload": "model"})
    engine.prepare(requests)
    assert len(engine.pipe._all_hooks) == 2
    assert (alone(engine, requests, sources) == before).all()
    assert quantization or (before == plain["edit"]).all()


def test_a_call_that_failed_leaves_nothing_in_the_cache(tmp_path):
    engine, requests, _ = engine_of("generate", tmp_path, cache="taylorseer", cache_interval=3)
    before, step = engine.run(requests[:1], (64, 64), None), engine.pipe.scheduler.step
    calls = iter(range(4))

    def fail(*arguments, **named):
        if next(calls) == 3:
            raise torch.OutOfMemoryError
        return step(*arguments, **named)

    engine.pipe.scheduler.step = fail
    with pytest.raises(torch.OutOfMemoryError):
        engine.run(requests, (64, 64), None)
    engine.pipe.scheduler.step = step
    assert (engine.run(requests[:1], (64, 64), None) == before).all()


def test_shards_repeat_have_keys_of_their_own_and_replay_by_their_record(tmp_path):
    keys, rows = [], lines({"items": [{"prompt": "a red circle"}]})
    for option in ({}, {"quantization": "int8"}, {"image_format": {"jpeg": 80}}):
        section = filled(option, "generate", tmp_path)
        files = []
        for time in ("one", "two"):
            folder = tmp_path / f"{time}{len(keys)}"
            folder.mkdir()
            _, records = make(stage_for(section, "generate", folder), rows, folder / "s.parquet")
            files.append(folder / "s.parquet")
        assert files[0].read_bytes() == files[1].read_bytes()
        keys.append(records[0]["key"])
        (image,) = (record["image"] for record in records)
        jpeg = "image_format" in option
        assert (image["path"], image["bytes"][:3] == b"\xff\xd8\xff") == (keys[-1] + (".jpg" if jpeg else ".png"), jpeg)
        config = filled_config({"offload": "none"}, "generate", tmp_path)  # says nothing of the option
        assert replay(files[0], 0, config).equal
    assert len(set(keys)) == 3


def test_any_other_pipeline_is_quantized_too_and_what_it_cannot_do_is_one_line(tmp_path):
    build_stable_diffusion(tmp_path / "sd")
    section = filled(
        {"model": str(tmp_path / "sd"), "quantization": "int8", "max_sequence_length": None}, "generate", tmp_path
    )
    engine = open_engine(section, "generate")
    kinds = {type(p).__name__ for part in (engine.pipe.unet, engine.pipe.text_encoder) for p in part.parameters()}
    assert kinds == {"Parameter", "Int8Tensor"}
    counts, _ = make(
        stage_for(section, "generate", tmp_path), lines({"items": [{"prompt": "a"}]}), tmp_path / "s.parquet"
    )
    assert counts["made"] == 1
    engine.pipe.unet._repeated_blocks = ["NoSuchBlock"]
    compiled = section.model_copy(update={"compile": True})
    with pytest.raises(DarkroomError, match="generate: UNet2DConditionModel cannot be used so: Regional compilation"):
        fitting.fit(engine.pipe, compiled, "generate", engine.torch_device)


def test_a_card_multiplies_in_eight_bits_where_it_can_and_only_the_denoiser_does(tmp_path):
    section = filled({"quantization": "fp8"}, "generate", tmp_path)
    device, dtype = torch.device("cuda"), torch.bfloat16
    found = fitting.quantization_config(section, device, dtype, {}).quant_mapping
    kinds = {name: type(one.quant_type).__name__ for name, one in found.items()}
    assert kinds == {
        "transformer": "Float8DynamicActivationFloat8WeightConfig",
        "text_encoder_2": "Float8WeightOnlyConfig",
    }
    assert [type(one).__name__ for one in found["transformer"].quant_type.granularity] == ["PerRow", "PerRow"]
    assert fitting.too_old(section, "H100", (9, 0)) is fitting.too_old(section, "L4", (8, 9)) is None
    reason = "quantization: fp8 needs a GPU of compute capability 8.9 or later, and A100 has 8.0; use int8"
    assert fitting.too_old(section, "A100", (8, 0)) == reason
    assert fitting.too_old(filled({"quantization": "int8"}, "generate", tmp_path), "A100", (8, 0)) is None


def test_what_this_machine_cannot_do_is_told_before_a_model_is_loaded(tmp_path, monkeypatch):
    section = filled({"device": "auto", "offload": "model"}, "generate", tmp_path)  # right on a machine with a GPU
    with pytest.raises(DarkroomError, match=r"^generate\.offload: model moves weights between host and GPU"):
        open_engine(section, "generate")
    plain = section.model_copy(update={"offload": "none"})
    for option, remedy in (
        ({"quantization": "nf4"}, "pip install bitsandbytes"),
        ({"attention": "flash"}, "pip install flash-attn"),
        ({"attention": "sage"}, "version 2.1.1"),
        ({"compile": True}, "pip install triton"),
    ):
        assert remedy in options.missing(plain.model_copy(update=option), "cuda")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "needs a compiler" in options.missing(plain.model_copy(update={"compile": True}), "cpu")


def test_engine_args_reach_vllm(tmp_path):
    rubric = load_rubric(REPOSITORY / RUBRIC)
    args = {"max_num_seqs": 3, "max_model_len": 400, "enable_prefix_caching": False}
    section = filled({"engine_args": args, "max_tokens": 32}, "judge", tmp_path)
    engine = vlm.open_judge(section, "images", rubric)
    config = engine.llm.llm_engine.vllm_config
    assert (config.scheduler_config.max_num_seqs, config.model_config.max_model_len) == (3, 400)
    assert not config.cache_config.enable_prefix_caching
    question = rubric.questions["images"][0]
    picture = Image.new("RGB", (64, 64), "red")
    asks = [judge.Ask([picture], question.ask(text), question, 1) for text in ("a red circle", "word " * 400)]
    short, long = engine.ask(asks)
    assert 0 <= short.probabilities["yes"] <= 1 and "the judge takes 368" in long.error


def test_an_argument_that_vllm_does_not_take_is_named(tmp_path):
    section = filled({"engine_args": {"max_num_seq": 3}}, "judge", tmp_path)
    with pytest.raises(DarkroomError, match=r"takes no max_num_seq; did you mean max_num_seqs\?$"):
        vlm.open_judge(section, "images", load_rubric(REPOSITORY / RUBRIC))


def test_the_versions_of_an_options_packages_are_recorded():
    assert options.packages(Generate()) == []
    assert options.packages(Generate(quantization="int8", attention="flash")) == ["torchao", "flash-attn"]


def test_an_option_makes_its_own_stage_anew_and_what_changes_no_pixel_nothing(copy):
    copy.config["generate"] |= {"quantization": None, "attention": "native", "cache_threshold": 0.5}
    copy.config["judge"] |= {"engine_args": {"max_num_seqs": 8, "gpu_memory_utilization": 0.2}}
    assert copy.planned() == {}
    copy.config["edit"] |= {"cache": "taylorseer", "cache_interval": 2}
    planned = copy.planned()
    assert set(planned) == {"all", "edit_images", "score_images", "merge_scores", "write_dataset"}
    assert planned["score_images"] == planned["edit_images"]
