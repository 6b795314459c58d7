"""Options that fit a model to a card: what goes together, and what of it is part of a recipe and a key."""

import pytest
from darkroom.config import options
from darkroom.config.load import load_config
from darkroom.errors import DarkroomError
from darkroom.identity import digest
from darkroom.plan.recipe import image_recipe, judge_recipe
from darkroom.plan.requests import expand, request_key
from darkroom.rows.read import parse_row
from darkroom.run.needs import Work, judge_needs
from test_config import config, folder  # noqa: F401


def load(generate="{}", edit="{}", judge="{}"):
    return load_config(
        config(f"{{prompts: rows.jsonl, edits: rows.jsonl, generate: {generate}, edit: {edit}, judge: {judge}}}"),
    )


@pytest.fixture
def hub(folder):  # noqa: F811
    models = {"generate": "FLUX.1-dev", "edit": "FLUX.1-Kontext-dev", "judge": "FLUX.1-dev"}
    return lambda **of: load(
        **{name: f"{{model: black-forest-labs/{model}, {of.get(name, '')}}}" for name, model in models.items()}
    )


def key(section):
    (request,) = expand(parse_row({"prompt": "a"}, "prompts") | {"id": "r"}, section, 0, 1)
    return request_key(request, image_recipe(section), None, None)


def test_recipes_and_keys_of_a_config_without_options_are_what_they_were(folder):  # noqa: F811
    """Digests written down, so that what they name stays good until a recipe's version is raised."""
    filled = load_config({"prompts": "rows.jsonl", "edits": "rows.jsonl", "judge": {"rubric": "rubric.yaml"}})
    assert digest(image_recipe(filled.generate)) == "220a4aa9b09f246f44007971cec14fc4"
    assert digest(image_recipe(filled.edit)) == "d10c4e25ed4fb18da6b4d357acde14a8"
    assert digest(judge_recipe(filled.judge, "rubric")) == "471dff1eaf6b8240d49207c0240fac05"
    assert key(filled.generate) == "b56812523e57390d728de210a82a6876"


CHANGES = [
    "{image_format: {png: 1}}",
    "image_format: webp-lossless",
    "{image_format: {jpeg: 90}}",
    "quantization: int8",
    "quantization: fp8",
    "quantization: nf4",
    "attention: sage",
    "compile: true",
    "cache: first_block",
    "cache: taylorseer",
    "{cache: first_block, cache_threshold: 0.1}",
    "{cache: taylorseer, cache_interval: 4}",
]


def test_every_option_that_can_change_pixels_makes_a_key_of_its_own(hub):
    sections = [
        hub().generate,
        *(hub(generate=change.removeprefix("{").removesuffix("}")).generate for change in CHANGES),
    ]
    assert len({key(section) for section in sections}) == len({digest(image_recipe(s)) for s in sections}) == 13
    for section in sections:
        chosen = options.IMAGE_OPTIONS | options.image_options(section)
        assert options.options_of(image_recipe(section)) == chosen


def test_a_lora_is_part_of_recipe_and_key_by_its_content_and_scale(hub, tmp_path):
    def recipe(*loras):
        section = hub(generate=f"loras: [{', '.join(loras)}]").generate
        return digest(image_recipe(section)), key(section)

    for name in ("one", "other"):
        tmp_path.joinpath(f"{name}.safetensors").write_bytes(name.encode())
    tmp_path.joinpath("copy").mkdir()
    tmp_path.joinpath("copy/again.safetensors").write_bytes(b"one")
    one = "{file: one.safetensors}"
    named = [f"{{model: a/b, revision: {digit * 40}}}" for digit in "ab"]
    sets = [[], [one], ["{file: one.safetensors, scale: 0.5}"], ["{file: other.safetensors}"], *([x] for x in named)]
    sets += [["{model: a/b, weight_name: x.safetensors, revision: " + "a" * 40 + "}"], [one, named[0]]]
    found = [recipe(*loras) for loras in sets]
    assert len({first for first, _ in found}) == len({second for _, second in found}) == len(sets)
    assert recipe("{model: ./copy}") == recipe(one)  # the same content under another name
    assert "loras" not in image_recipe(hub().generate)
    with pytest.raises(
        DarkroomError, match=r"^config: generate\.loras\.0\.model: \S+/model: has no weights as safetensors"
    ):
        recipe("{model: ./model}")


def test_what_cannot_change_a_pixel_is_in_no_recipe(hub):
    plain = image_recipe(hub().generate)
    for change in (
        "image_format: {png: 6}",
        "offload: model",
        "offload: sequential",
        "cache_threshold: 0.2",
        "cache_interval: 7",
    ):
        assert image_recipe(hub(generate=change).generate) == plain


@pytest.mark.parametrize(
    ("section", "text", "message"),
    [
        ("generate", "quantization: int4", "generate.quantization: expected one of null, int8, fp8, nf4, got 'int4'"),
        ("generate", "attention: flash_hub", "generate.attention: expected one of native, "),
        ("generate", "device: cpu, offload: model", "generate.offload: model moves weights between host and GPU"),
        ("generate", "device: cpu, quantization: nf4", "generate.quantization: nf4 (bitsandbytes) needs a GPU"),
        ("generate", "dtype: float16, quantization: fp8", "generate.quantization: fp8 multiplies into bfloat16 only"),
        ("generate", "device: cpu, attention: sage", "generate.attention: sage needs a GPU"),
        ("generate", "dtype: float32, attention: flash", "generate.attention: flash takes float16 and bfloat16 only"),
        ("generate", "offload: sequential, quantization: int8", "generate.offload: sequential cannot move quantized"),
        ("generate", "offload: sequential, compile: true", "generate.offload: sequential moves weights within"),
        ("generate", "offload: model, compile: true, quantization: int8", "generate.offload: compiled code holds on"),
        ("generate", "family: sdxl, cache: taylorseer", "generate.cache: works with the families flux and"),
        ("edit", "true_cfg: 2, cache: taylorseer", "edit.cache: FLUX Kontext's pipeline does not tell a cache"),
        ("edit", "batch_size: 2, cache: first_block", "edit.cache: first_block decides by a mean over the whole batch"),
        ("generate", "loras: [{scale: 2}]", "generate.loras.0.model: name a model or a file, one of the two"),
        ("generate", "loras: [{file: x.bin}]", "generate.loras.0.file: only safetensors are loaded, and x.bin is none"),
        ("generate", "loras: [{file: gone.safetensors}]", "generate.loras.0.file: no such file: gone.safetensors"),
        ("edit", "loras: [{model: a/b, scal: 2}]", "unknown key edit.loras.0.scal; did you mean scale?"),
        ("judge", "engine_args: {model: x}", "judge.engine_args.model: use judge.model"),
        (
            "judge",
            "engine_args: {tensor_parallel_size: 2}",
            "judge.engine_args.tensor_parallel_size: use judge.gpus,",
        ),
        (
            "judge",
            "engine_args: {trust_remote_code: true}",
            "judge.engine_args.trust_remote_code: no code of a model's",
        ),
        ("judge", "engine_args: {hf_token: x}", "judge.engine_args.hf_token: a secret has no place in a config"),
        ("judge", "engine_args: {cpu_offload_gb: much}", "judge.engine_args.cpu_offload_gb: expected a number of GiB"),
        (
            "judge",
            "engine_args: {max_model_len: 512}",
            "judge.engine_args.max_model_len: expected a whole number above",
        ),
        ("judge", "engine: transformers, engine_args: {max_num_seqs: 4}", "judge.engine_args: they are vLLM's, and"),
        ("judge", "engine_args: [a]", "judge.engine_args: expected a section, got ['a']"),
    ],
)
def test_what_does_not_go_together_is_one_line_that_says_why(hub, section, text, message):
    with pytest.raises(DarkroomError) as error:
        hub(**{section: text})
    assert str(error.value).startswith(f"config: {message}") and "\n" not in str(error.value)


def test_what_goes_together_goes_through(hub):
    hub(generate="offload: model, quantization: nf4, compile: true", edit="cache: taylorseer, batch_size: 4")
    hub(
        generate="device: cpu, quantization: int8, compile: true, cache: first_block, true_cfg: 2, attention: _native_math"
    )


def test_engine_args_that_can_change_a_score_change_the_judges_recipe_and_no_others(hub):
    def recipe(args):
        return judge_recipe(hub(judge=f"engine_args: {args}").judge, "r")

    plain = recipe("{}")
    assert recipe("{gpu_memory_utilization: 0.8, max_num_seqs: 8, cpu_offload_gb: 10}") == plain
    changed = [
        recipe(one) for one in ("{quantization: fp8_per_channel}", "{kv_cache_dtype: fp8}", "{max_model_len: 8192}")
    ]
    assert len({digest(one) for one in [plain, *changed]}) == 4


def test_what_vllm_keeps_off_its_gpus_is_asked_for_as_host_memory(hub):
    section = hub(judge="gpus: 2, engine_args: {cpu_offload_gb: 10, kv_offloading_size: 4}").judge
    assert options.judge_host_bytes(section) == 24 * 2**30
    without = judge_needs(section.model_copy(update={"engine_args": {}}), Work(1, 1), 10**9, 1).mem_mb
    assert judge_needs(section, Work(1, 1), 10**9, 1).mem_mb == pytest.approx(without + 24 * 2**30 / 10**6, abs=1)
