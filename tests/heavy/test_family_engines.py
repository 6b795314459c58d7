"""Each family with a tiny checkpoint of its real classes, random weights: made and edited as its entry says, and repeatable."""

import inspect
import json
import re
import shutil
from functools import cache, partial

import gpu_models
import numpy as np
import pytest
import torch
from conftest import FLUX, Run, image_files
from darkroom.config.models import Sampling
from darkroom.engines import FAMILIES, open_engine
from darkroom.errors import DarkroomError
from darkroom.store.shardfile import iter_records, read_meta
from PIL import Image
from test_engines import filled, lines, read_requests

SIZE = (64, 64)
SCHEDULER = ("diffusers", "FlowMatchEulerDiscreteScheduler")
TEXTS = ("a red circle", "a blue square, on a table by the window", 'two small green triangles and the word "go"')
LONGEST = {"flux2": 128}  # tokens of a prompt, 64 elsewhere: what comes before a prompt of FLUX.2-dev is among them


def qwen_text(layers=2):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    own = gpu_models._config("shapes-judge")
    text = {"vocab_size": 1536, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": layers}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
    vision = {key: own["vision_config"][key] for key in ("patch_size", "temporal_patch_size", "spatial_merge_size")}
    vision |= {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {key: own[key] for key in names if key in own}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))


def qwen_parts():
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

    sizes = {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 3, "joint_attention_dim": 16}
    return {
        "transformer": QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, guidance_embeds=False, axes_dims_rope=(8, 4, 4), **sizes
        ),
        "vae": AutoencoderKLQwenImage(**qwen_vae()),
        "text_encoder": qwen_text(),
    }


def qwen_vae():
    """One that is small where pictures are large, and halves them four times, not three: editors show a VAE a megapixel."""
    sizes = {"base_dim": 2, "dim_mult": [1] * 5, "num_res_blocks": 0}
    sizes |= {"temperal_downsample": [False, False, True, True]}
    return sizes | {"z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}


def qwen3_vl(layers):
    from transformers import Qwen3VLConfig

    own = gpu_models._config("shapes-judge")
    text = {"vocab_size": 1536, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": layers}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
    vision = {"patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2, "depth": 1, "hidden_size": 16}
    vision |= {"intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16, "deepstack_visual_indexes": [0]}
    vision |= {"num_position_embeddings": 64}
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return Qwen3VLConfig(text_config=text, vision_config=vision, **{key: own[key] for key in names if key in own})


def qwen_21_parts():
    from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel
    from transformers import Qwen3VLForConditionalGeneration

    sizes = {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "context_in_dim": 16}
    return {
        "transformer": QwenImage21Transformer2DModel(
            in_channels=4, out_channels=4, axes_dims_rope=(8, 4, 4), mlp_ratio=1, **sizes
        ),
        "vae": AutoencoderKLQwenImage21(**qwen_vae(), decoder_base_dim=4),
        "text_encoder": Qwen3VLForConditionalGeneration(qwen3_vl(2)),
    }


def krea_parts():
    from diffusers import AutoencoderKLQwenImage, Krea2Transformer2DModel
    from transformers import Qwen3VLModel

    sizes = {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    text = {"text_hidden_dim": 16, "num_text_layers": 12, "text_num_attention_heads": 2, "text_num_key_value_heads": 2}
    text |= {"text_intermediate_size": 16, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1}
    return {
        "transformer": Krea2Transformer2DModel(
            in_channels=16, intermediate_size=32, timestep_embed_dim=16, axes_dims_rope=(8, 4, 4), **sizes, **text
        ),
        "vae": AutoencoderKLQwenImage(**qwen_vae()),
        "text_encoder": Qwen3VLModel(qwen3_vl(36)),  # of which the pipeline takes every third
    }


def flux2_parts():
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    text = {"model_type": "mistral", "vocab_size": 1536, "hidden_size": 16, "intermediate_size": 16, "head_dim": 8}
    text |= {"num_hidden_layers": 30, "num_attention_heads": 2, "num_key_value_heads": 2}
    vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "head_dim": 8}
    sizes = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 32}
    sizes |= {"axes_dims_rope": (8, 8, 8, 8), "joint_attention_dim": 48, "guidance_embeds": True}
    return {
        "transformer": Flux2Transformer2DModel(**sizes),
        "vae": AutoencoderKLFlux2(**gpu_models.TINY["klein_vae"]),
        "text_encoder": Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision)),
    }


def sana_parts():
    from diffusers import AutoencoderDC, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    text = {"vocab_size": 1536, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_cross_attention_heads": 2}
    sizes |= {"cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 16, "num_layers": 1}
    blocks = {f"{half}_{key}": value for half in ("encoder", "decoder") for key, value in DC_BLOCKS.items()}
    return {
        "transformer": SanaTransformer2DModel(in_channels=4, out_channels=4, sample_size=32, **sizes),
        "vae": AutoencoderDC(latent_channels=4, attention_head_dim=2, **blocks),
        "text_encoder": Gemma2Model(Gemma2Config(**text)),
    }


# As many as Sana's own: a latent is 32 pixels, to whose multiples its pipeline holds.
DC_BLOCKS = {"block_out_channels": (8,) * 6, "layers_per_block": (1,) * 6, "qkv_multiscales": ((),) * 6}


def chroma_parts():
    from diffusers import AutoencoderKL, ChromaTransformer2DModel

    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    sizes |= {"approximator_num_channels": 64, "approximator_hidden_dim": 32, "approximator_layers": 1}
    return {
        "transformer": ChromaTransformer2DModel(
            in_channels=16, joint_attention_dim=64, axes_dims_rope=(4, 4, 8), **sizes
        ),
        "vae": AutoencoderKL(**small_vae(4)),
        "text_encoder": t5_of_64(),
    }


def hunyuan_parts(distilled):
    from diffusers import AdaptiveProjectedMixGuidance, AutoencoderKLHunyuanImage, HunyuanImageTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    sizes = {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "attention_head_dim": 16}
    sizes |= {"num_attention_heads": 2, "text_embed_dim": 16, "text_embed_2_dim": 16, "rope_axes_dim": (8, 8)}
    vae = {"in_channels": 3, "out_channels": 3, "latent_channels": 16, "layers_per_block": 1, "scaling_factor": 0.75}
    vae |= {"block_out_channels": (32, 32, 32), "spatial_compression_ratio": 4, "sample_size": 64}
    glyphs = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 384}
    parts = {
        "transformer": HunyuanImageTransformer2DModel(
            in_channels=16, out_channels=16, guidance_embeds=distilled, use_meanflow=distilled, **sizes
        ),
        "vae": AutoencoderKLHunyuanImage(**vae),
        "text_encoder": qwen_text(layers=3),
        "text_encoder_2": T5EncoderModel(T5Config(**glyphs, is_encoder_decoder=False, use_cache=False)),
    }
    if not distilled:
        parts |= {"guider": AdaptiveProjectedMixGuidance(), "ocr_guider": AdaptiveProjectedMixGuidance(2.5)}
    return parts


def z_image_parts():
    from diffusers import AutoencoderKL, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    text = {"vocab_size": 1536, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    return {
        "transformer": ZImageTransformer2DModel(
            in_channels=16,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[8, 4, 4],
            axes_lens=[512, 32, 32],
        ),
        "vae": AutoencoderKL(**small_vae(16)),
        "text_encoder": Qwen3Model(Qwen3Config(**text)),
    }


def small_vae(channels):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return blocks | {"block_out_channels": (32, 32), "latent_channels": channels, "shift_factor": 0.06}


def clip(projection=True):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = gpu_models._config("shapes-flux/text_encoder")
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size")}
    sizes = {"hidden_size": 32, "intermediate_size": 37, "projection_dim": 32, "num_hidden_layers": 2}
    length = {"num_attention_heads": 4, "max_position_embeddings": config["max_position_embeddings"]}
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    return kind(CLIPTextConfig(**ids, **sizes, **length))


def sd3_parts():
    from diffusers import AutoencoderKL, SD3Transformer2DModel

    sizes = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 4, "caption_projection_dim": 32}
    return {
        "transformer": SD3Transformer2DModel(
            sample_size=32,
            patch_size=1,
            in_channels=8,
            out_channels=8,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            **sizes,
        ),
        "vae": AutoencoderKL(**small_vae(8), use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": clip(),
        "text_encoder_2": clip(),
        "text_encoder_3": t5_of_64(),
    }


def t5_of_64():
    from transformers import T5Config, T5EncoderModel

    config = gpu_models._config("shapes-flux/text_encoder_2")
    sizes = {"d_model": 64, "d_kv": 8, "d_ff": 37, "num_layers": 1, "num_heads": 4, "vocab_size": config["vocab_size"]}
    return T5EncoderModel(T5Config(**sizes, is_encoder_decoder=False, use_cache=False))


def sdxl_parts():
    from diffusers import AutoencoderKL, UNet2DConditionModel

    return {
        "unet": UNet2DConditionModel(
            sample_size=32,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=80,
            cross_attention_dim=64,
        ),
        "vae": AutoencoderKL(**small_vae(4)),
        "text_encoder": clip(projection=False),
        "text_encoder_2": clip(),
    }


# family -> (the parts of its checkpoint, their tokenizers, what model_index.json says besides).
CLIPS = {"tokenizer": "tokenizer", "tokenizer_2": "tokenizer"}
GLYPHS = {"tokenizer": "judge", "tokenizer_2": "bytes"}
CHECKPOINTS = {
    "qwen-image": (qwen_parts, {"tokenizer": "judge"}, {}),
    "qwen-image-edit": (qwen_parts, {"tokenizer": "judge", "processor": "judge"}, {}),
    "qwen-image-edit-plus": (qwen_parts, {"tokenizer": "judge", "processor": "judge"}, {}),
    "z-image": (z_image_parts, {"tokenizer": "judge"}, {}),
    "z-image-turbo": (z_image_parts, {"tokenizer": "judge"}, {}),
    "sd3": (sd3_parts, CLIPS | {"tokenizer_3": "tokenizer_2"}, {}),
    "sdxl": (sdxl_parts, CLIPS, {"force_zeros_for_empty_prompt": True}),
    "flux2": (flux2_parts, {"tokenizer": "pixtral"}, {}),
    "qwen-image-2.1": (qwen_21_parts, {"processor": "qwen3"}, {}),
    "qwen-image-2.1-turbo": (qwen_21_parts, {"processor": "qwen3"}, {"sample_sigmas": [1.0, 0.9, 0.6]}),
    "krea2": (krea_parts, {"tokenizer": "judge"}, {"is_distilled": False}),
    "krea2-turbo": (krea_parts, {"tokenizer": "judge"}, {"is_distilled": True}),
    "sana": (sana_parts, {"tokenizer": "judge"}, {}),
    "chroma": (chroma_parts, {"tokenizer": "tokenizer_2"}, {}),
    "hunyuan-image": (partial(hunyuan_parts, False), GLYPHS, {}),
    "hunyuan-image-distilled": (partial(hunyuan_parts, True), GLYPHS, {"guider": [None, None]}),
}
SAVED_APART = {"flux2-klein": True, "flux2-klein-base": False}  # -> is_distilled


# For a conversation in parts, as FLUX.2's pipeline has it.
TEMPLATE = """{% for message in messages %}[{{ message['role'] }}]{% for part in message['content'] %}{{ part['text'] }}
{% endfor %}{% endfor %}"""


def save_tokenizer(own, folder):
    """A tokenizer or processor, of those that come with Darkroom; returns its class."""
    import transformers
    from transformers import (
        AutoTokenizer,
        ByT5Tokenizer,
        PixtralImageProcessor,
        PixtralProcessor,
        Qwen2VLImageProcessor,
    )

    if own.startswith("tokenizer"):
        shutil.copytree(FLUX / own, folder)
        return "CLIPTokenizer" if own == "tokenizer" else "T5Tokenizer"
    if own == "bytes":
        ByT5Tokenizer().save_pretrained(folder)
        return "ByT5Tokenizer"
    gpu_models.copy_tokenizer(folder)
    if own == "judge" and folder.name == "processor":
        shutil.copy(gpu_models.EMBEDDED / "shapes-judge/processor_config.json", folder)
        return "Qwen2_5_VLProcessor"
    if own == "judge":
        return "Qwen2Tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if own == "pixtral":
        names = {"image_token": "<|image_pad|>", "image_break_token": "<|vision_start|>"}
        names["image_end_token"] = "<|vision_end|>"
        made = PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=TEMPLATE, **names)
    else:
        limits = {"shortest_edge": 256**2, "longest_edge": 4096**2}  # pixels, of the checkpoint's own
        images = Qwen2VLImageProcessor(patch_size=16, size=limits)
        videos = transformers.Qwen3VLVideoProcessor()
        made = transformers.Qwen3VLProcessor(images, tokenizer, videos, chat_template=tokenizer.chat_template)
    made.save_pretrained(folder)
    return type(made).__name__


def save(name, folder):
    """A checkpoint of a family, as its hub folder is laid out."""
    from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

    torch.manual_seed(0)
    if name in SAVED_APART:
        gpu_models.save_klein(folder, gpu_models.TINY, "cpu", "float32")
        index = json.loads((folder / "model_index.json").read_bytes())
        (folder / "model_index.json").write_text(json.dumps(index | {"is_distilled": SAVED_APART[name]}))
        return folder
    parts, tokenizers, more = CHECKPOINTS[name]
    index = {"_class_name": FAMILIES[name].pipeline.name} | more
    for part, model in parts().items():
        model.save_pretrained(folder / part)
        index[part] = [type(model).__module__.partition(".")[0], type(model).__name__]
    for part, own in tokenizers.items():
        index[part] = ["transformers", save_tokenizer(own, folder / part)]
    scheduler = EulerDiscreteScheduler() if name.startswith("sdxl") else FlowMatchEulerDiscreteScheduler()
    scheduler.save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    for part in ("image_encoder", "feature_extractor") if name.startswith(("sd", "chroma")) else ():
        index[part] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """name of a family -> the folder of its checkpoint, made once."""
    return cache(lambda name: save(name, tmp_path_factory.mktemp("family") / name))


@pytest.fixture(scope="module", params=[*SAVED_APART, *CHECKPOINTS])
def checkpoint(request, saved):
    return request.param, saved(request.param)


def given_for(name, folder):
    """The keys of a section that name a checkpoint, with the settings for tests that reach it."""
    given = {"model": str(folder), "batch_size": 3, "steps": 2, "max_sequence_length": LONGEST.get(name, 64)}
    return given | {key: None for key in ("steps", "max_sequence_length") if not FAMILIES[name].reaches(key)}


def section_of(checkpoint, tmp_path, stage, **options):
    """The section of a config that names the checkpoint, which is recognised."""
    name, folder = checkpoint
    given = given_for(name, folder) | options
    section = filled(given, stage, tmp_path)
    assert section.family == name
    return section


def pixels(engine, texts, sources=None, **fields):
    """text -> float values 0..1; each request has a seed of its own, by its text."""
    items = [{"items": [{"prompt": text}], "options": {"seed": 10 + TEXTS.index(text)} | fields} for text in texts]
    requests = read_requests(lines(*items), engine.section, 0, 1)
    engine.prepare(requests)
    batches = {}
    for place, request in enumerate(requests):
        request.key = request.prompt
        batches.setdefault(engine.batch_key(request, SIZE), []).append(place)
    found = {}
    for places in batches.values():
        pictures = sources and [sources[place] for place in places]
        arrays = engine.run([requests[place] for place in places], SIZE, pictures)
        found |= dict(zip(places, arrays, strict=True))
    return [found[place] for place in range(len(texts))]


STAGES = ("generate", "edit")


def stages_of(name):
    kind = FAMILIES[name]
    return [stage for stage in STAGES if kind.refusal(stage) is None]


STRONG = Sampling(guidance=6.5, true_cfg=6.5)
SOURCES = [Image.new("RGB", SIZE, colour) for colour in ("blue", "red", "green")]


def test_pictures_are_the_same_alone_and_in_company_and_follow_their_prompts(checkpoint, tmp_path, capsys):
    name, _ = checkpoint
    for stage in stages_of(name):
        sources = SOURCES if stage == "edit" else None
        engine = open_engine(section_of(checkpoint, tmp_path, stage), stage)
        together = pixels(engine, TEXTS, sources)
        assert all(array.shape == (*SIZE, 3) and np.isfinite(array).all() for array in together)
        assert len({array.tobytes() for array in together}) == 3
        log = capsys.readouterr().out
        denoiser = getattr(engine.pipe, "unet", None) or engine.pipe.transformer
        processors = {type(part.processor) for part in denoiser.modules() if hasattr(part, "processor")}
        told = any("dispatch_attention_fn" in inspect.getsource(kind) for kind in processors)
        assert told == FAMILIES[name].takes("attention", "sage")
        assert FAMILIES[name].takes("compile", True) == bool(denoiser._repeated_blocks)
        assert FAMILIES[name].takes("loras", ["any"]) == hasattr(engine.pipe, "lora_state_dict")
        if engine.embeds:
            assert "3 prompts encoded" in log or "4 prompts encoded" in log  # and what they are guided away from
            assert getattr(engine.pipe, "text_encoder", None) is None
        for place in (2, 0):
            engine = open_engine(section_of(checkpoint, tmp_path, stage), stage)
            (alone,) = pixels(engine, [TEXTS[place]], sources and [sources[place]])
            assert np.abs(alone - together[place]).max() < 1 / 255  # a rounding step, where they share a call
        if sources:  # another neighbour's source changes nothing, its own all
            engine = open_engine(section_of(checkpoint, tmp_path, stage), stage)
            swapped = pixels(engine, TEXTS, [sources[0], sources[2], sources[1]])
            apart = [bool((a != b).any()) for a, b in zip(swapped, together, strict=True)]
            assert apart == [False, True, True]


def test_every_family_makes_and_edits_in_one_run_of_the_workflow(saved, tmp_path):
    run = Run(tmp_path)
    (tmp_path / "silent.yaml").write_text("images: []\nedited: []\n")
    every = sorted([*SAVED_APART, *CHECKPOINTS])  # as they stand in the config's file
    names = {stage: [name for name in every if stage in stages_of(name)] for stage in STAGES}
    assert {name for those in names.values() for name in those} == {*SAVED_APART, *CHECKPOINTS}
    sections = {
        stage: {"device": "cpu", **({"width": 64, "height": 64} if stage == "generate" else {})}
        | {re.sub(r"\W", "_", name): given_for(name, saved(name)) for name in those}
        for stage, those in names.items()
    }
    run.config |= sections | {
        "edits": "edits.jsonl",
        "shards": {"size": 1000},
    }  # without the keys for the embedded models
    run.config["judge"]["rubric"] = "silent.yaml"
    sizes = [(64, 64), (96, 64), (64, 96)]
    for number, (size, source) in enumerate(zip(sizes, SOURCES, strict=True)):
        source.resize(size).save(tmp_path / f"{number}.png")
    run.write_rows("prompts.jsonl", [{"id": f"p{n}", "prompt": text, "seed": n} for n, text in enumerate(TEXTS)])
    run.write_rows("edits.jsonl", [{"prompt": text, "images": [f"{n}.png"]} for n, text in enumerate(TEXTS)])
    run.snakemake()
    for stage, kind, wanted in (("generate", "images", [SIZE] * 3), ("edit", "edited", sizes)):
        for name in names[stage]:
            model = re.sub(r"\W", "_", name)
            (path,) = image_files(run, f"{kind}-{model}")
            assert read_meta(path)["recipe"]["family"] == name
            records = list(iter_records(path))
            assert [record["error"] for record in records] == [None] * 3, name
            assert sorted((record["width"], record["height"]) for record in records) == sorted(wanted), name
            assert len({record["sha256"] for record in records}) == 3, name
            rule = "generate_images" if stage == "generate" else "edit_images"
            (log,) = (run.results / f"logs/{rule}_{model}").glob("*/*.log")
            told = log.read_text()
            assert told.index(f"model {read_meta(path)['recipe']['model']}") < told.index("done: 3 made"), name
            if "prompts encoded" in told:  # by encoders that are gone before the denoiser is loaded
                assert told.index("prompts encoded") < told.index(" and VAE on cpu") < told.index("3 of 3 images"), name


@pytest.mark.parametrize("checkpoint", ["flux2-klein"], indirect=True)
def test_a_source_that_the_pipeline_does_not_take_is_enlarged_or_fails_alone(checkpoint, tmp_path):
    engine = open_engine(section_of(checkpoint, tmp_path, "edit"), "edit")
    small, long = read_requests(lines(*({"items": [{"prompt": text}]} for text in TEXTS[:2])), engine.section, 0, 1)
    (small.width, small.height), (long.width, long.height) = (40, 30), (1024, 40)
    engine.prepare([small, long])
    ((_, made),) = engine.make([small], engine.work_size(40, 30), [SOURCES[0].resize((40, 30))])
    assert made.size == (40, 30)
    ((_, failed),) = engine.make([long], engine.work_size(1024, 40), [SOURCES[0].resize((1024, 40))])
    assert failed.reason == "1024 x 40 pixels: flux2-klein edits what is at most 8 times as long one way as the other"


def test_each_setting_changes_the_picture_or_is_refused(checkpoint, tmp_path):
    name, _ = checkpoint
    kind, stage = FAMILIES[name], stages_of(name)[0]
    sources = SOURCES[:1] if stage == "edit" else None

    def made(fields=(), text=0, **options):
        engine = open_engine(section_of(checkpoint, tmp_path, stage, **options), stage)
        return pixels(engine, [TEXTS[text]], sources, **dict(fields))[0]

    plain = made()
    assert (made(text=1, fields={"seed": 10}) != plain).any()  # the picture is of its prompt
    for key, value in (("steps", 3), ("guidance", 7.5), ("true_cfg", 6.5)):
        if kind.reaches(key):
            assert (made(**{key: value}) != plain).any(), key
        else:
            with pytest.raises(DarkroomError, match=f"{stage}.{key}: has no effect on a model of the family {name}"):
                made(**{key: value})
    sampling = section_of(checkpoint, tmp_path, stage).sampling
    strong = {} if kind.reads_negative(sampling) or not kind.reads_negative(STRONG) else {"true_cfg": 6.5}
    if kind.reads_negative(STRONG):
        told = made({"negative_prompt": "blurry"}, **strong)
        assert (told != (made(**strong) if strong else plain)).any()
        assert (made(negative_prompt="blurry", **strong) == told).all()  # of the set, or of the row
    else:
        assert (made({"negative_prompt": "blurry"}) == plain).all()
    if strong or not kind.reads_negative(STRONG):
        with pytest.raises(DarkroomError, match=f"{stage}.negative_prompt: "):
            made(negative_prompt="blurry")
