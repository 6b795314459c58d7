"""Checkpoints of the real architectures with random weights, made where they are wanted and saved as model folders.

FLUX.1-dev (its transformer, both encoders, its VAE), FLUX.2-klein-4B, Qwen2.5-VL-7B and Qwen3-VL-8B, in their own sizes or tiny. The
sizes are those of the `config.json` files of black-forest-labs/FLUX.1-dev, black-forest-labs/FLUX.2-klein-4B,
Qwen/Qwen2.5-VL-7B-Instruct and Qwen/Qwen3-VL-8B-Instruct on the hub. The tokenizers are those of the
embedded models: texts are padded or cut to the same lengths, so that the encoders have as much to do as with their own.

Random weights cost what trained ones cost, since nothing that is computed depends on their values: but for a cache, which leaves
out steps by what it sees, and a judge's replies, which end where it likes.
"""

import contextlib
import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
EMBEDDED = REPOSITORY / "resources/models"

_ROPE = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]}
REAL: dict[str, dict[str, Any]] = {
    "transformer": {
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
        "axes_dims_rope": (16, 56, 56),
    },
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
    },
    "text_encoder_2": {
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
    "vae": {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 16,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "klein_transformer": {
        "num_layers": 5,
        "num_single_layers": 20,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 7680,
        "guidance_embeds": False,
    },
    "klein_encoder": {
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    "klein_vae": {},
    "judge_text": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": _ROPE,
    },
    "judge_vision": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    "qwen3_vl_text": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "rope_parameters": _ROPE | {"rope_theta": 5000000.0, "mrope_section": [24, 20, 20], "mrope_interleaved": True},
    },
    "qwen3_vl_vision": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": 4096,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    },
}
# The same classes with the same switches and heads of the same size, for seconds on a CPU.
TINY: dict[str, dict[str, Any]] = {
    "transformer": REAL["transformer"]
    | {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2}
    | {"joint_attention_dim": 64, "pooled_projection_dim": 64},
    "text_encoder": REAL["text_encoder"]
    | {"vocab_size": 661, "hidden_size": 64, "intermediate_size": 128, "projection_dim": 64}
    | {"num_hidden_layers": 1, "num_attention_heads": 4},
    "text_encoder_2": REAL["text_encoder_2"]
    | {"vocab_size": 140, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 1, "num_heads": 4},
    "vae": REAL["vae"] | {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
    "klein_transformer": REAL["klein_transformer"]
    | {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2, "joint_attention_dim": 192},
    "klein_encoder": REAL["klein_encoder"]
    | {"vocab_size": 1536, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 28}
    | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32},
    "klein_vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
    "judge_text": REAL["judge_text"]
    | {"vocab_size": 1536, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    | {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 8192},
    "judge_vision": REAL["judge_vision"]
    | {"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 256}
    | {"fullatt_block_indexes": [0]},
    "qwen3_vl_text": REAL["qwen3_vl_text"]
    | {"vocab_size": 1536, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    | {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 8192},
    "qwen3_vl_vision": REAL["qwen3_vl_vision"]
    | {"depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
}
SCHEDULER = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True}


@contextlib.contextmanager
def made_there(device: str, dtype: str) -> Iterator[None]:
    """Modules made within have their parameters on the device, in this dtype, from the start: no copy on the CPU."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(before)


def part(name: str, size: dict[str, dict[str, Any]]) -> Any:
    """A component, random; within `made_there`."""
    from diffusers import AutoencoderKL, AutoencoderKLFlux2, Flux2Transformer2DModel, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, Qwen3Config, Qwen3ForCausalLM, T5Config, T5EncoderModel

    if name == "klein_transformer":
        return Flux2Transformer2DModel(**size[name])
    if name == "klein_encoder":
        return Qwen3ForCausalLM(Qwen3Config(**size[name]))
    if name == "klein_vae":
        return AutoencoderKLFlux2(**size[name])
    if name == "transformer":
        return FluxTransformer2DModel(**size[name])
    if name == "vae":
        return AutoencoderKL(**size[name])
    if name in ("judge", "qwen3-vl"):
        return _judge(name, size)
    if name == "text_encoder_2":
        return T5EncoderModel(T5Config(**size[name], is_encoder_decoder=False, use_cache=False))
    ids = {key: _config("shapes-flux/text_encoder")[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return CLIPTextModel(CLIPTextConfig(**size[name], **ids))


def _judge(name: str, size: dict[str, dict[str, Any]]) -> Any:
    import transformers

    kind, sizes = ("Qwen2_5_VL", "judge") if name == "judge" else ("Qwen3VL", "qwen3_vl")
    own = _config("shapes-judge")
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {key: own[key] for key in names if key in own}
    special = {key: own["text_config"][key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = getattr(transformers, f"{kind}Config")(
        text_config=size[f"{sizes}_text"] | special | {"tie_word_embeddings": False},
        vision_config=dict(size[f"{sizes}_vision"]),
        tie_word_embeddings=False,
        **ids,
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config)


def _config(folder: str) -> dict[str, Any]:
    return json.loads((EMBEDDED / folder / "config.json").read_bytes())


def save_flux(folder: Path, size: dict[str, dict[str, Any]], device: str, dtype: str = "bfloat16") -> int:
    """A folder like that of FLUX.1-dev, one component after the other; returns its parameters."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    number = 0
    for name in ("text_encoder", "text_encoder_2", "vae", "transformer"):
        with made_there(device, dtype):
            model = part(name, size)
        number += sum(parameter.numel() for parameter in model.parameters())
        model.save_pretrained(folder / name)
        del model
        _free(device)
    FlowMatchEulerDiscreteScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    own = EMBEDDED / "shapes-flux"
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(own / name, folder / name, dirs_exist_ok=True)
    index = json.loads((own / "model_index.json").read_bytes())
    # Written last: a folder with it is whole.
    (folder / "model_index.json").write_text(json.dumps(index | {"vae": ["diffusers", "AutoencoderKL"]}, indent=2))
    return number


def save_klein(folder: Path, size: dict[str, dict[str, Any]], device: str, dtype: str = "bfloat16") -> int:
    """A folder like that of FLUX.2-klein-4B, one component after the other; returns its parameters."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    number = 0
    classes = {}
    for name in ("text_encoder", "vae", "transformer"):
        with made_there(device, dtype):
            model = part("klein_encoder" if name == "text_encoder" else f"klein_{name}", size)
        number += sum(parameter.numel() for parameter in model.parameters())
        model.save_pretrained(folder / name)
        classes[name] = ["transformers" if name == "text_encoder" else "diffusers", type(model).__name__]
        del model
        _free(device)
    FlowMatchEulerDiscreteScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    copy_tokenizer(folder / "tokenizer")
    classes |= {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
    }
    index = {"_class_name": "Flux2KleinPipeline", "is_distilled": True}
    # Written last: a folder with it is whole.
    (folder / "model_index.json").write_text(json.dumps(index | classes, indent=2))
    return number


def copy_tokenizer(folder: Path) -> None:
    """The embedded judge's tokenizer, with its chat template, as the tokenizer of a pipeline."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / "shapes-judge" / name, folder)


def save_judge(folder: Path, size: dict[str, dict[str, Any]], device: str, dtype: str = "bfloat16") -> int:
    """A folder like that of Qwen2.5-VL-7B-Instruct; returns its parameters."""
    number = _save_judge("judge", folder, size, device, dtype)
    processor = json.loads((EMBEDDED / "shapes-judge/processor_config.json").read_bytes())
    limits = {"shortest_edge": 4 * 28 * 28, "longest_edge": 16384 * 28 * 28}  # pixels, of the checkpoint's own
    for kind in ("image_processor", "video_processor"):
        processor[kind] |= {"patch_size": size["judge_vision"]["patch_size"]}
    processor["image_processor"]["size"] = limits
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return number


def save_qwen3_vl(folder: Path, size: dict[str, dict[str, Any]], device: str, dtype: str = "bfloat16") -> int:
    """A folder like that of Qwen3-VL-8B-Instruct; returns its parameters."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    number = _save_judge("qwen3-vl", folder, size, device, dtype)
    patch = {"patch_size": size["qwen3_vl_vision"]["patch_size"], "merge_size": 2}
    limits = {"min_pixels": 256 * 256, "max_pixels": 4096 * 4096}  # of the checkpoint's own
    Qwen3VLProcessor(
        Qwen2VLImageProcessor(**patch, **limits),
        AutoTokenizer.from_pretrained(folder),
        Qwen3VLVideoProcessor(**patch),
        chat_template=(folder / "chat_template.jinja").read_text(encoding="utf-8"),
    ).save_pretrained(folder)
    return number


def _save_judge(name: str, folder: Path, size: dict[str, dict[str, Any]], device: str, dtype: str) -> int:
    """The model and a tokenizer for texts as long as it takes; returns its parameters."""
    with made_there(device, dtype):
        model = part(name, size)
    number = sum(parameter.numel() for parameter in model.parameters())
    longest = model.config.get_text_config().max_position_embeddings
    model.save_pretrained(folder)
    del model
    _free(device)
    copy_tokenizer(folder)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"model_max_length": longest}))
    return number


def _free(device: str) -> None:
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
