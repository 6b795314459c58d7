"""Each family with a tiny checkpoint of its real classes, random weights: made and edited as its entry says, and repeatable."""

import json

import gpu_models
import numpy as np
import pytest
import torch
from conftest import FLUX
from darkroom.engines import FAMILIES, open_engine
from darkroom.errors import DarkroomError
from PIL import Image
from test_engines import filled, lines, read_requests

SIZE = (64, 64)
SCHEDULER = ("diffusers", "FlowMatchEulerDiscreteScheduler")
TEXTS = ("a red circle", "a blue square, on a table by the window", "two small green triangles")


def qwen_text():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    own = gpu_models._config("shapes-judge")
    text = {"vocab_size": 1536, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
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
        "vae": AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        "text_encoder": qwen_text(),
    }


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
CHECKPOINTS = {
    "qwen-image": (qwen_parts, {"tokenizer": "judge"}, {}),
    "qwen-image-edit": (qwen_parts, {"tokenizer": "judge", "processor": "judge"}, {}),
    "qwen-image-edit-plus": (qwen_parts, {"tokenizer": "judge", "processor": "judge"}, {}),
    "z-image": (z_image_parts, {"tokenizer": "judge"}, {}),
    "z-image-turbo": (z_image_parts, {"tokenizer": "judge"}, {}),
    "sd3": (sd3_parts, CLIPS | {"tokenizer_3": "tokenizer_2"}, {}),
    "sdxl": (sdxl_parts, CLIPS, {"force_zeros_for_empty_prompt": True}),
}
SAVED_APART = {"flux2-klein": True, "flux2-klein-base": False}  # -> is_distilled


def save(name, folder):
    """A checkpoint of a family, as its hub folder is laid out."""
    import shutil

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
        if own == "judge":
            gpu_models.copy_tokenizer(folder / part)
            kind = "Qwen2Tokenizer"
            if part == "processor":
                shutil.copy(gpu_models.EMBEDDED / "shapes-judge/processor_config.json", folder / part)
                kind = "Qwen2_5_VLProcessor"
        else:
            shutil.copytree(FLUX / own, folder / part)
            kind = "CLIPTokenizer" if own == "tokenizer" else "T5Tokenizer"
        index[part] = ["transformers", kind]
    scheduler = EulerDiscreteScheduler() if name.startswith("sdxl") else FlowMatchEulerDiscreteScheduler()
    scheduler.save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    for part in ("image_encoder", "feature_extractor") if name.startswith("sd") else ():
        index[part] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module", params=[*SAVED_APART, *CHECKPOINTS])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("family") / request.param
    return request.param, save(request.param, folder)


def section_of(checkpoint, tmp_path, stage, **options):
    """The section of a config that names the checkpoint, which is recognised."""
    name, folder = checkpoint
    given = {"model": str(folder), "steps": 2, "max_sequence_length": None, "batch_size": 3} | options
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


def stages_of(name):
    kind = FAMILIES[name]
    return [stage for stage in ("generate", "edit") if kind.refusal(stage) is None]


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
        if engine.how.embeds:
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


def test_each_setting_changes_the_picture_or_is_refused(checkpoint, tmp_path):
    name, _ = checkpoint
    kind, stage = FAMILIES[name], stages_of(name)[0]
    sources = SOURCES[:1] if stage == "edit" else None

    def made(fields=(), **options):
        engine = open_engine(section_of(checkpoint, tmp_path, stage, **options), stage)
        return pixels(engine, TEXTS[:1], sources, **dict(fields))[0]

    plain = made()
    for key, value in (("steps", 3), ("guidance", 7.5), ("true_cfg", 6.5)):
        if kind.reaches(key):
            assert (made(**{key: value}) != plain).any(), key
        else:
            with pytest.raises(DarkroomError, match=f"{stage}.{key}: has no effect on a model of the family {name}"):
                made(**{key: value})
    guided = kind.guided(section_of(checkpoint, tmp_path, stage).sampling)
    reads = guided and kind.reads_negative is kind.guided
    assert (made({"negative_prompt": "blurry"}) != plain).any() == reads
