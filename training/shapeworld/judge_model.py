"""The tiny judge: its tokenizer, processor, an untrained checkpoint, and a fast forward pass for training.

The checkpoint is an ordinary Qwen2.5-VL; nothing here is needed to use it. A 64 x 64 px picture is 8 x 8
patches, which become 16 image tokens.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
import yaml
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from . import world

REPOSITORY = Path(__file__).resolve().parents[2]
RUBRICS = REPOSITORY / "config" / "rubrics" / "shapes.yaml"

WIDTH, LAYERS, HEADS, INNER = 128, 4, 4, 384
VISION_LAYERS, VISION_INNER = 4, 384
PATCH, MERGE = 8, 2
IMAGE_TOKENS = (world.SIZE // (PATCH * MERGE)) ** 2

_SPECIALS = (
    "<|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> "
    "<|video_pad|>"
).split()
_PAD = "<|endoftext|>"
# Qwen2's own rule for cutting text into words, which transformers restores when it loads the tokenizer.
_WORD = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# No default system prompt, and no line break between turns: every token of the frame costs time in each
# question.
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}"
    "{%- else %}{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part['type'] == 'video' or 'video' in part %}"
    "{{- '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part %}{{- part['text'] }}{%- endif %}{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
HEAD = "<|im_start|>user\n"
TAIL = "<|im_end|><|im_start|>assistant\n"
END = "<|im_end|>"


# ---------------------------------------------------------------------------------------------------- rubrics


def load_rubrics(path: Path = RUBRICS) -> dict[str, dict[str, dict]]:
    """Return the rubric file's questions by part ("images", "edited") and name.

    Raises KeyError or TypeError where the file is not of that form.
    """
    with path.open(encoding="utf-8") as file:
        parts = yaml.safe_load(file)
    return {part: {question["name"]: question for question in questions} for part, questions in parts.items()}


def fill(template: str, prompt: str) -> str:
    """Put `prompt` in place of {prompt}; other braces stay."""
    return template.replace("{prompt}", prompt)


# -------------------------------------------------------------------------------------------------- tokenizer

_WORLD_WORDS = (
    "a an the two three one left right to of above below on in with into and picture image photo "
    "background change make turn replace remove"
).split()
# What the questions, their paraphrases and the replies are made of.
_PLAIN_WORDS = (
    "Does does Is is Are are Can can Do do Did did Was was Has has been be this that these those it its "
    "show shows shown depict depicts match matches the caption description prompt correct true right "
    "accurate really exactly what you see here Here look Look at image images picture photo edit edited "
    "editing editor instruction asked request followed carried out obeyed done result first second "
    "before after source original everything else all other rest same unchanged changed change changes "
    "kept preserved as not mention mentioned only untouched unaltered stay stayed there There where "
    "Where in which way relation position answer Answer please Please reply Reply yes or no Yes No with "
    "Say say just one word rate Rate rating Judge judge Give give JSON json from for made were and a an "
    "short reason quality visual alignment content nothing wrong sharp blurry noisy coarse faded "
    "smeared ghosted malformed colour color shape shapes colours count number partly harmed complete "
    "completely badly good how well by into Into The This That following text sentence statement "
    "drawing drawn fit fits describe describes described given Given two question user assistant system "
    "Question check Check whether if If left above below of required step simply"
).split()


def _spellings(word: str) -> list[str]:
    """Return a word as it may come: small, with a capital, all in capitals."""
    return list(dict.fromkeys((word, word.capitalize(), word.upper())))


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer in which each word of the world is one token, and so is every part of
    the default rubrics' texts and of the JSON frame of their replies.
    """
    known = [
        *world.COLOURS,
        *world.SHAPES,
        *(s + "s" for s in world.SHAPES),
        *world.BACKGROUNDS,
        *world.FILLERS,
    ]
    words = [s for w in [*known, *_WORLD_WORDS] for s in _spellings(w)] + _PLAIN_WORDS
    words = list(dict.fromkeys(words))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=6000,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{w} {w}" for w in words] * 2, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    fast = transformers.Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(m) for m in model["merges"]],
        model_max_length=4096,
        pad_token=_PAD,
        eos_token=END,
        additional_special_tokens=_SPECIALS,
    )
    fused: list[str] = []
    for questions in load_rubrics().values():
        for question in questions.values():
            fused += question["text"].split("{prompt}")
            if question["type"] == "json":
                names = list(question["fields"])
                fused += ["{" + f'"{names[0]}":', *(f',"{n}":' for n in names[1:-1]), f',"{names[-1]}":"']
    fused += ['"}', "10"]
    fast.add_tokens([AddedToken(t, normalized=False, special=False) for t in dict.fromkeys(fused)])
    fast.chat_template = CHAT_TEMPLATE
    return fast


def word_roots(tokenizer: transformers.PreTrainedTokenizerFast) -> torch.Tensor:
    """Return for each token id the id of the same word without leading space and capitals (else its own id).

    Training ties the embeddings of a word's spellings together loosely, so that "RED" profits from "red". The
    words of a reply stay apart: their embeddings are outputs as well.
    """
    vocabulary = tokenizer.get_vocab()
    roots = torch.arange(len(vocabulary))
    shared = {
        s.lower() for w in [*world.COLOURS, *world.SHAPES, *world.BACKGROUNDS, *world.FILLERS] for s in (w, w + "s")
    }
    shared |= set(_WORLD_WORDS)
    for token, index in vocabulary.items():
        plain = token.removeprefix("Ġ").lower()
        if plain in shared and re.fullmatch("[a-z]+", plain) and plain in vocabulary:
            roots[index] = vocabulary[plain]
    return roots


# ------------------------------------------------------------------------------------------------- checkpoint


def make_processor() -> transformers.Qwen2_5_VLProcessor:
    """Return the processor: pictures of any size are resized to about 64 x 64 px."""
    pixels = world.SIZE**2
    image = transformers.Qwen2VLImageProcessor(
        patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2, min_pixels=pixels, max_pixels=pixels
    )
    video = transformers.Qwen2VLVideoProcessor(patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2)
    return transformers.Qwen2_5_VLProcessor(image, make_tokenizer(), video, chat_template=CHAT_TEMPLATE)


def make_model(
    tokenizer: transformers.PreTrainedTokenizerFast,
) -> transformers.Qwen2_5_VLForConditionalGeneration:
    """Return an untrained float32 model; its weights come from torch's global generator."""
    token = tokenizer.convert_tokens_to_ids
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": WIDTH,
            "intermediate_size": INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "bos_token_id": token(_PAD),
            "eos_token_id": token(END),
            "pad_token_id": token(_PAD),
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 6, 6]},
        },
        vision_config={
            "depth": VISION_LAYERS,
            "hidden_size": WIDTH,
            "intermediate_size": VISION_INNER,
            "num_heads": HEADS,
            "out_hidden_size": WIDTH,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "fullatt_block_indexes": list(range(VISION_LAYERS)),
            "window_size": world.SIZE,
        },
        tie_word_embeddings=True,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name:
                parameter.normal_(0, 0.1)
            elif parameter.dim() > 1:
                std = 0.9 * parameter[0].numel() ** -0.5
                if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight")):
                    depth = VISION_LAYERS if "visual" in name else LAYERS
                    std *= (2 * depth) ** -0.5  # branches that add to the residual stream start small
                parameter.normal_(0, std)
    model.generation_config = transformers.GenerationConfig(
        do_sample=False, eos_token_id=[token(END), token(_PAD)], pad_token_id=token(_PAD)
    )
    return model


def save(
    model: transformers.Qwen2_5_VLForConditionalGeneration,
    processor: transformers.Qwen2_5_VLProcessor,
    out: Path,
) -> None:
    """Write a directory for `from_pretrained`: weights stored in fp16, to be computed with in float32."""
    state = {name: value.detach().half() for name, value in model.state_dict().items()}
    model.save_pretrained(out, state_dict=state)
    processor.save_pretrained(out)
    path = out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # transformers computes in the dtype named here, whatever the weights are stored in.
    for part in (config, config.get("text_config", {}), config.get("vision_config", {})):
        part["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------- training forward

_PIXEL_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
_PIXEL_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def patches(pixels: torch.Tensor) -> torch.Tensor:
    """Return uint8 pictures [n, 64, 64, 3] as the image processor's patches [n, 64, 192]."""
    grid = world.SIZE // (PATCH * MERGE)
    x = ((pixels.float() / 255 - _PIXEL_MEAN) / _PIXEL_STD).permute(0, 3, 1, 2)
    x = x.reshape(len(x), 3, grid, MERGE, PATCH, grid, MERGE, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    return x.reshape(len(x), grid * grid * MERGE * MERGE, 3 * PATCH * PATCH)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


class BatchedForward:
    """The model's own computation over its own weights, for 64 px pictures, with many questions to each
    picture.

    All questions about a picture share its image tokens' keys and values, and the last layer is computed only
    where an answer is read, which makes a training step several times cheaper than the model's own forward
    pass.
    """

    def __init__(self, model: transformers.Qwen2_5_VLForConditionalGeneration) -> None:
        self.visual, self.text = model.model.visual, model.model.language_model
        config = model.config
        self.ids = (config.vision_start_token_id, config.vision_end_token_id)
        # Vision: rotary positions of row and column, patches in 2 x 2 blocks.
        size = WIDTH // HEADS
        rates = 1 / (10000 ** (torch.arange(0, size // 2, 2).float() / (size // 2)))
        side = world.SIZE // PATCH
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")

        def blocks(x: torch.Tensor) -> torch.Tensor:
            return x.reshape(side // MERGE, MERGE, side // MERGE, MERGE).permute(0, 2, 1, 3).reshape(-1).float()

        angles = torch.cat([blocks(rows)[:, None] * rates, blocks(columns)[:, None] * rates], -1)
        angles = torch.cat([angles, angles], -1)
        self.vision_cos, self.vision_sin = angles.cos(), angles.sin()
        rope = config.text_config.rope_parameters
        self.rates = 1 / (rope["rope_theta"] ** (torch.arange(0, size, 2).float() / size))
        self.sections = rope["mrope_section"]

    def _angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin [n, head size] of positions [3, n] (time, row, column)."""
        angles = positions[..., None].float() * self.rates
        angles = torch.cat([a[i % 3] for i, a in enumerate(angles.split(self.sections, -1))], -1)
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()

    def see(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the image tokens [n, 16, width] of uint8 pictures [n, 64, 64, 3]."""
        visual = self.visual
        weight = visual.patch_embed.proj.weight  # the picture is both frames of the patch
        h = F.linear(patches(pixels), weight.sum(2).reshape(len(weight), -1))
        n, length, _ = h.shape
        for block in visual.blocks:
            y = F.rms_norm(h, (WIDTH,), block.norm1.weight, 1e-6)
            q, k, v = block.attn.qkv(y).view(n, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            q, k = (_rotate(x, self.vision_cos, self.vision_sin) for x in (q, k))
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, -1)
            h = h + block.attn.proj(y)
            h = h + block.mlp(F.rms_norm(h, (WIDTH,), block.norm2.weight, 1e-6))
        h = F.rms_norm(h, (WIDTH,), visual.merger.ln_q.weight, 1e-6)
        return visual.merger.mlp(h.reshape(n, length // MERGE**2, -1))

    def _prefix(self, images: torch.Tensor, head: list[int], table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings [n, p, width] and positions [3, p] of a turn's start and its pictures."""
        n, number = len(images), images.shape[1] // IMAGE_TOKENS
        side = int(IMAGE_TOKENS**0.5)

        def words(*ids: int) -> torch.Tensor:
            return table[torch.tensor(ids)].expand(n, -1, -1)

        parts = [words(*head)]
        positions = [[i] * 3 for i in range(len(head))]
        for i in range(number):
            parts += [
                words(self.ids[0]),
                images[:, IMAGE_TOKENS * i : IMAGE_TOKENS * (i + 1)],
                words(self.ids[1]),
            ]
            at = positions[-1][0] + 1
            positions.append([at] * 3)
            positions += [[at + 1, at + 1 + j // side, at + 1 + j % side] for j in range(IMAGE_TOKENS)]
            positions.append([at + 1 + side] * 3)
        return torch.cat(parts, 1), torch.tensor(positions).T

    def answer(
        self,
        images: torch.Tensor,
        head: list[int],
        groups: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
        table: torch.Tensor,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Return the final hidden states where answers are read, and some from on the way there.

        `images`: [n, 16 or 32, width]. `head`: ids before the first picture. `groups`: questions of about the
        same length, as ids [rows, length] (padded at the end), a mask of the same shape of the places to
        read, and for each row the index [rows] of its picture. `table`: the embeddings [vocabulary, width].
        Returns the final hidden states as [places, width] for each group; the prefix's states before every
        layer, each [n, prefix length, width]; and for each group the states before the last layer, [rows,
        length, width].
        """
        h, positions = self._prefix(images, head, table)
        n, length, _ = h.shape
        cos, sin = self._angles(positions)
        start = int(positions.max()) + 1
        rows = [n * length] + [ids.numel() for ids, _, _ in groups]
        h = torch.cat([h.reshape(-1, WIDTH)] + [table[ids.reshape(-1)] for ids, _, _ in groups])
        plans = []
        for ids, _, _ in groups:
            size = ids.shape[1]
            mask = torch.ones(size, length + size, dtype=torch.bool)
            mask[:, length:] = mask[:, length:].tril()
            plans.append((*self._angles(torch.arange(start, start + size).expand(3, -1)), mask))
        wanted = torch.cat([torch.zeros(rows[0], dtype=torch.bool)] + [m.reshape(-1) for _, m, _ in groups])
        seen, late = [], []
        for depth, layer in enumerate(self.text.layers):
            last = depth == len(self.text.layers) - 1
            seen.append(h[: rows[0]].view(n, length, WIDTH))
            if last:
                late = [x.view(*g[0].shape, WIDTH) for x, g in zip(h.split(rows)[1:], groups, strict=True)]
            attention = layer.self_attn
            y = F.rms_norm(h, (WIDTH,), layer.input_layernorm.weight, 1e-6)
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            qkv = F.linear(y, torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections]))
            parts = qkv.split(rows)
            q, k, v = parts[0].view(n, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            k = _rotate(k, cos, sin)
            if last:
                mixed = [h.new_zeros(rows[0], WIDTH)]
            else:
                y = F.scaled_dot_product_attention(_rotate(q, cos, sin), k, v, is_causal=True)
                mixed = [y.transpose(1, 2).reshape(-1, WIDTH)]
            for (ids, _, owner), (cos2, sin2, mask), part in zip(groups, plans, parts[1:], strict=True):
                q2, k2, v2 = part.view(*ids.shape, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
                keys = torch.cat([k[owner], _rotate(k2, cos2, sin2)], 2)
                values = torch.cat([v[owner], v2], 2)
                y = F.scaled_dot_product_attention(_rotate(q2, cos2, sin2), keys, values, attn_mask=mask)
                mixed.append(y.transpose(1, 2).reshape(-1, WIDTH))
            y = torch.cat(mixed)
            if last:
                y, h = y[wanted], h[wanted]
            h = h + attention.o_proj(y)
            h = h + layer.mlp(F.rms_norm(h, (WIDTH,), layer.post_attention_layernorm.weight, 1e-6))
        h = F.rms_norm(h, (WIDTH,), self.text.norm.weight, 1e-6)
        return list(h.split([int(m.sum()) for _, m, _ in groups])), seen, late
