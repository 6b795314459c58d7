"""Tiny judges of the real classes of each family, with random weights and a template in the form of the family's."""

import json
from collections.abc import Callable

import torch
from conftest import JUDGE
from darkroom.config import models
from safetensors.torch import load_file, save_file

# A question of every kind, answered by words that the embedded judge's tokenizer has a token for.
EVERY_KIND = """
images:
  - {name: p_yes, type: yes_no, text: "Does this image show {prompt}? Please answer yes or no."}
  - {name: colour, type: choice, text: "Which colour has {prompt}?", answers: [red, green, blue]}
  - {name: side, type: choice, text: "Where is {prompt}?", answers: {left: [left, A], right: [right, B, C]}}
  - {name: stars, type: rating, text: "How good is it?", minimum: 0, maximum: 9}
  - {name: said, type: text, text: "What is in this image?", max_length: 500}
  - name: rating
    type: json
    text: "Rate {prompt}, as JSON."
    fields: {reason: {max_length: 20}, good: {minimum: 1, maximum: 10}}
"""


MARKS = "image_token_id video_token_id vision_start_token_id vision_end_token_id".split()
TURNS = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}{%- for part in message.content %}"
    "{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- else %}{{- part.text }}{%- endif %}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
)
# How Qwen3.5 is told: without the word it thinks.
THINKS = (
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- else %}{{- '<think>\\n' }}{%- endif %}"
)
TEXT = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
TEXT |= {
    "head_dim": 32,
    "vocab_size": 1536,
    "max_position_embeddings": 4096,
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
}
VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 16,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}


def tokenizer_and_ids():
    from transformers import AutoTokenizer

    own = json.loads((JUDGE / "config.json").read_text())
    ids = {name: own[name] for name in MARKS} | {"tie_word_embeddings": True}
    return AutoTokenizer.from_pretrained(JUDGE), ids


def qwen_processor(tokenizer, template):
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    image = Qwen2VLImageProcessor(patch_size=16, merge_size=2, min_pixels=32 * 32, max_pixels=256 * 256)
    return Qwen3VLProcessor(image, tokenizer, Qwen3VLVideoProcessor(patch_size=16), chat_template=template)


def qwen3_vl():
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer, ids = tokenizer_and_ids()
    vision = VISION | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(text_config=TEXT | {"rope_parameters": ROPE}, vision_config=vision, **ids)
    return Qwen3VLForConditionalGeneration(config), qwen_processor(tokenizer, TURNS + "{%- endif %}")


def qwen3_5():
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    tokenizer, ids = tokenizer_and_ids()
    linear = {"linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 2}
    linear |= {"linear_num_value_heads": 2, "head_dim": 128, "layer_types": ["linear_attention", "full_attention"]}
    rope = ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [11, 11, 10]}
    config = Qwen3_5Config(
        text_config=TEXT | linear | {"rope_parameters": rope},
        vision_config=VISION | {"num_position_embeddings": 64},
        **ids,
    )
    return Qwen3_5ForConditionalGeneration(config), qwen_processor(tokenizer, TURNS + THINKS + "{%- endif %}")


def llava():
    """Of no family that is known here: its own processor fits the pictures."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer, _ = tokenizer_and_ids()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    mark = tokenizer.convert_tokens_to_ids("<image>")
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 56, "patch_size": 14, "projection_dim": 32}
    config = LlavaConfig(
        vision_config=vision,
        text_config=TEXT | {"model_type": "llama"},
        image_token_index=mark,
        image_seq_length=16,
        vision_feature_layer=-1,
    )
    image = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    template = TURNS.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>\\n") + "{%- endif %}"
    processor = LlavaProcessor(image, tokenizer, 14, "default", chat_template=template, num_additional_image_tokens=1)
    return LlavaForConditionalGeneration(config), processor


def saved(make: Callable, folder, change=None):
    """The section of a judge, saved into `folder`; change: what becomes of its template."""
    torch.manual_seed(0)
    model, processor = make()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:  # answers that depend on picture and question
                weight.normal_(0, 0.3 if "embed" in name else 1.2 * weight[0].numel() ** -0.5)
    model.float().eval().save_pretrained(folder)
    if make is llava:  # under the names that published checkpoints have
        weights = load_file(folder / "model.safetensors")
        older = {
            name.replace("vision_tower.", "vision_tower.vision_model."): weight for name, weight in weights.items()
        }
        save_file(older, folder / "model.safetensors", {"format": "pt"})
    if change:
        processor.chat_template = change(processor.chat_template)
    processor.save_pretrained(folder)
    return models.Judge(model=str(folder), max_tokens=8, max_pixels=128 * 128)
