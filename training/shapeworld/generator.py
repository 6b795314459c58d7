"""The tiny FLUX checkpoint: its tokenizers, the shapes of its models, and its directory for diffusers.

One directory serves `diffusers.FluxPipeline` and `diffusers.FluxKontextPipeline` alike.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from . import world

LATENT_CHANNELS = 8
VAE_WIDTH = 32
TEXT_WIDTH = 64
CLIP_LENGTH = 32

# The calls the weights are made for.
STEPS = 12
MAX_SEQUENCE_LENGTH = 20
TRUE_CFG_SCALE = 2.0

_OTHER_WORDS = (
    "a an the one and of to left right above below on with into background change make turn replace remove "
    "picture photo image"
)
WORDS = tuple(
    sorted(
        {
            *world.COLOURS,
            *world.BACKGROUNDS,
            *world.SHAPES,
            *(shape + "s" for shape in world.SHAPES),
            *world.COUNTS.values(),
            *_OTHER_WORDS.split(),
        }
    )
)
MARKS = (".", ",", "!", "?", ";", ":", '"', "'")


# ------------------------------------------------------------------------------------------------- tokenizers


def make_t5_tokenizer() -> T5TokenizerFast:
    """Return a unigram tokenizer of whole words: lower case, Capitalised and UPPER CASE each have a token.

    A reloaded T5 tokenizer does not lower-case, hence the three forms. Anything else becomes `<unk>`.
    """
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    for form in (str.lower, str.capitalize, str.upper):
        for word in WORDS:
            piece = ("▁" + form(word), -3.0)
            if piece not in vocabulary:
                vocabulary.append(piece)
    vocabulary += [(mark, -4.0) for mark in MARKS]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)


def _byte_letters() -> list[str]:
    """Return the 256 characters that stand for bytes in byte-level BPE vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, extra = [], 256
    for byte in range(256):
        letters.append(chr(byte if byte in printable else extra))
        extra += byte not in printable
    return letters


def make_clip_tokenizer() -> CLIPTokenizer:
    """Return a byte-level BPE tokenizer whose merges build the known words; other words stay in bytes."""
    letters = _byte_letters()
    vocabulary = {token: i for i, token in enumerate([*letters, *(letter + "</w>" for letter in letters)])}
    merges = []
    for word in WORDS:
        # From the end, so that every merge carries the end-of-word mark and none can fire inside a word.
        tail = word[-1] + "</w>"
        for letter in reversed(word[:-1]):
            if (letter, tail) not in merges:
                merges.append((letter, tail))
            tail = letter + tail
            vocabulary.setdefault(tail, len(vocabulary))
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_LENGTH)


def shared_t5_rows(tokenizer: T5TokenizerFast) -> torch.Tensor:
    """Return for every T5 token the token whose embedding it shares: capitals share that of the lower case.

    Marks share the one of the word-start piece, which tells nothing.
    """
    vocabulary = tokenizer.get_vocab()
    rows = torch.arange(len(tokenizer))
    for token, i in vocabulary.items():
        if token.startswith("▁") and token.lower() in vocabulary:
            rows[i] = vocabulary[token.lower()]
        elif token in MARKS:
            rows[i] = vocabulary["▁"]
    return rows


def shared_clip_rows(tokenizer: CLIPTokenizer) -> torch.Tensor:
    """Return for every CLIP token the token whose embedding it shares: pieces that are no known word share
    one.
    """
    vocabulary = tokenizer.get_vocab()
    unknown = vocabulary["z"]
    known = {word + "</w>" for word in WORDS} | {"<|startoftext|>", "<|endoftext|>"}
    rows = torch.full((len(tokenizer),), unknown)
    for token, i in vocabulary.items():
        if token in known:
            rows[i] = i
    return rows


# ----------------------------------------------------------------------------------------------------- models


def make_vae() -> AutoencoderTiny:
    """Return an untrained autoencoder: [n, 3, 64, 64] in -1..1 to latents [n, 8, 8, 8] and back.

    No blocks at full resolution: after the last upsampling two convolutions in a row paint each 2 x 2 pixels
    from 32 channels, which costs half as much and is as sharp.
    """
    return AutoencoderTiny(
        encoder_block_out_channels=(VAE_WIDTH,) * 4,
        decoder_block_out_channels=(VAE_WIDTH,) * 4,
        num_encoder_blocks=(0, 1, 2, 2),
        num_decoder_blocks=(3, 2, 2, 0),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=1.0,
        shift_factor=0.0,
        force_upcast=False,
    )


@torch.no_grad()
def normalise_latents(vae: AutoencoderTiny, latents: torch.Tensor) -> None:
    """Fold the channels' mean and spread, measured on `latents` [n, 8, 8, 8], into the autoencoder's weights.

    Afterwards each latent channel has mean 0 and standard deviation 1. At the frame's rim the decoder's zero
    padding makes this inexact, so the decoder wants further training.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    last, first = vae.encoder.layers[-1], vae.decoder.layers[0]
    first.bias += (first.weight * mean[None, :, None, None]).sum((1, 2, 3))
    first.weight *= std[None, :, None, None]
    last.bias.sub_(mean).div_(std)
    last.weight /= std[:, None, None, None]


def make_transformer() -> FluxTransformer2DModel:
    """Return an untrained transformer over 16 image tokens, each 2 x 2 latent cells, with DiT's zero
    initialisation.
    """
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    # diffusers leaves these random; at zero every block starts as the identity.
    silent = [model.norm_out.linear, model.proj_out]
    for block in model.transformer_blocks:
        silent += [block.norm1.linear, block.norm1_context.linear]
    silent += [block.norm.linear for block in model.single_transformer_blocks]
    for linear in silent:
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    embedder = model.time_text_embed.timestep_embedder
    for linear in (embedder.linear_1, embedder.linear_2):
        torch.nn.init.normal_(linear.weight, std=0.02)
    return model


def make_clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained CLIP text encoder, whose pooled output steers the transformer's modulation."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CLIP_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )


def make_t5(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    """Return an untrained T5 encoder; FLUX gives text tokens no positions, so order has to be told here."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_WIDTH,
            d_kv=16,
            d_ff=2 * TEXT_WIDTH,
            num_layers=3,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=64,
            pad_token_id=0,
            eos_token_id=1,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Return the sampler; at 16 image tokens FLUX's dynamic shift comes to about 1.6."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=1.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def to_tensor(pictures: Sequence[Image.Image | np.ndarray]) -> torch.Tensor:
    """Return RGB pictures, or uint8 [h, w, 3], as float32 [n, 3, h, w] in -1..1."""
    pixels = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2)
    return pixels.float().contiguous() / 127.5 - 1


def to_arrays(pixels: torch.Tensor) -> np.ndarray:
    """Return [n, 3, h, w] in -1..1 as uint8 [n, h, w, 3]."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Return latents [n, 8, 8, 8] as FLUX's image tokens [n, 16, 32], each 2 x 2 cells."""
    n, c, h, w = latents.shape
    cells = latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(n, h * w // 4, c * 4)


# -------------------------------------------------------------------------------------------------- directory


@torch.no_grad()
def export(
    out: Path,
    transformer: FluxTransformer2DModel,
    vae: AutoencoderTiny,
    clip: CLIPTextModel,
    t5: T5EncoderModel,
) -> None:
    """Write a directory that `from_pretrained` of both pipelines loads.

    Transformer and autoencoder are stored in half precision and load as float32; the text encoders would stay
    in half precision when loaded, so they are stored in float32. Shared embedding rows are written out.
    """
    clip_tokenizer, t5_tokenizer = make_clip_tokenizer(), make_t5_tokenizer()
    clip, t5 = copy.deepcopy(clip), copy.deepcopy(t5)
    table = clip.get_input_embeddings().weight
    table.copy_(table[shared_clip_rows(clip_tokenizer)])
    table = t5.get_input_embeddings().weight
    table.copy_(table[shared_t5_rows(t5_tokenizer)])
    FluxPipeline(
        scheduler=make_scheduler(),
        vae=copy.deepcopy(vae).to(memory_format=torch.contiguous_format).half(),
        text_encoder=clip,
        tokenizer=clip_tokenizer,
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer,
        transformer=copy.deepcopy(transformer).half(),
    ).save_pretrained(out)


@dataclass
class Generator:
    """Both pipelines over one set of weights, called the way the weights are made for."""

    text: FluxPipeline
    edit: FluxKontextPipeline
    steps: int = STEPS
    max_sequence_length: int = MAX_SEQUENCE_LENGTH
    true_cfg_scale: float = TRUE_CFG_SCALE
    batch: int = 32

    @classmethod
    def load(cls, directory: Path, **settings: float) -> Generator:
        """Load a directory in float32 on the CPU."""
        text = FluxPipeline.from_pretrained(directory, dtype=torch.float32)
        edit = FluxKontextPipeline(**dict(text.components.items()))
        for pipeline in (text, edit):
            pipeline.set_progress_bar_config(disable=True)
        return cls(text, edit, **settings)

    def _settings(self, seeds: list[int]) -> dict:
        negative = {"negative_prompt": [""] * len(seeds), "true_cfg_scale": self.true_cfg_scale}
        return {
            "height": world.SIZE,
            "width": world.SIZE,
            "num_inference_steps": self.steps,
            "max_sequence_length": self.max_sequence_length,
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            **(negative if self.true_cfg_scale > 1 else {}),
        }

    def make(self, captions: list[str], seeds: list[int]) -> list[Image.Image]:
        """Make one 64 x 64 picture for each caption and seed."""
        pictures = []
        for i in range(0, len(captions), self.batch):
            part = slice(i, i + self.batch)
            pictures += self.text(captions[part], **self._settings(seeds[part])).images
        return pictures

    def change(self, sources: list[Image.Image], instructions: list[str], seeds: list[int]) -> list[Image.Image]:
        """Edit each 64 x 64 source by its instruction and seed."""
        pictures = []
        for i in range(0, len(sources), self.batch):
            part = slice(i, i + self.batch)
            pictures += self.edit(
                image=sources[part],
                prompt=instructions[part],
                max_area=world.SIZE**2,
                _auto_resize=False,
                **self._settings(seeds[part]),
            ).images
        return pictures
