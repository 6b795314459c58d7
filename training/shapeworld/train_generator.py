"""Train the tiny FLUX checkpoint from nothing: autoencoder, text encoders, then transformer and text encoders.

python training/train_generator.py --out resources/models/shapes-flux

Every stage runs for a fixed number of steps, draws its data from (seed, step) and writes a checkpoint now and
then, so a run that was stopped goes on where it was and ends with the same weights.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from diffusers import AutoencoderTiny, FluxPipeline, FluxTransformer2DModel
from PIL import Image, ImageDraw
from transformers import CLIPTextModel, T5EncoderModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shapeworld import generator, measure, scorer, training, world

SEED = 20
# The autoencoder's phases: encoder and decoder together; the decoder alone, on latents that no longer move;
# both again, on more of what was still wrong; the decoder alone, three times, on the hardest backgrounds.
VAE_PHASES = (
    ("together", 3000),
    ("decoder", 2000),
    ("refine", 1500),
    ("polish", 800),
    ("finish", 700),
    ("settle", 1500),
)
VAE_BACKGROUNDS = {
    "together": {"white": 2, "black": 3, "gray": 2, "pink": 2, "yellow": 3, "blue": 3},
    "decoder": {"white": 2, "black": 3, "gray": 2, "pink": 2, "yellow": 3, "blue": 3},
    "refine": {"white": 2, "black": 2, "gray": 5, "pink": 4, "yellow": 2, "blue": 2},
    "polish": {"white": 2, "black": 2, "gray": 6, "pink": 3, "yellow": 2, "blue": 2},
    "finish": {"white": 1, "black": 1, "gray": 9, "pink": 2, "yellow": 1, "blue": 1},
    "settle": {"white": 1, "black": 2, "gray": 2, "pink": 3, "yellow": 5, "blue": 3},
}
VAE_RATES = {"together": 2e-3, "decoder": 2e-3, "refine": 2e-3, "polish": 1e-3, "finish": 1e-3, "settle": 1e-3}
VAE_DECODER_PHASES = ("decoder", "polish", "finish", "settle")
# The greatest noise on the latents, in standard deviations; in the first phase it is always 0.1.
VAE_NOISE = {"refine": 0.15, "settle": 0.15}
VAE_BATCH = 8

# The text encoders learn alone, with throw-away readers, which colour and shape stand where: through the
# transformer alone they would learn that last of all.
WORDS_STEPS, WORDS_RATE, WORDS_CAPTIONS, WORDS_EDITS = 1600, 2e-3, 160, 64

TEXT_SCENES = 14_000
EDITS = 14_000
STEPS = 9000
EDITS_FROM = 1000  # text to image alone before this step
DECAY = 3000  # the last steps, in which the rate falls to zero
WARM_UP = 150
RATE = 1.5e-3
TEXT_SHARE = 0.3  # of that rate, for the text encoders
SEEN_WEIGHT = 0.05  # of what a throw-away reader sees half-way through the transformer
BATCH, BATCH_EDITS = 48, 28  # pictures a step, and how many of them are edits
EMA = 0.998
NO_TEXT = 0.08  # share of empty captions, for true classifier-free guidance
# How the examples of a batch are shared out.
KIND_SHARES = {"one": 0.22, "relation": 0.53, "count": 0.25}
TASK_SHARES = {"recolour": 0.25, "background": 0.19, "reshape": 0.31, "remove": 0.25}
CHECK_EVERY = 800
SAVE_SECONDS = 60


# ------------------------------------------------------------------------------------------------ autoencoder


def _to_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """Return pictures as `generator.to_tensor` does, but channels last in memory, which trains faster."""
    return generator.to_tensor(pictures).contiguous(memory_format=torch.channels_last)


def vae_phase(step: int) -> tuple[str, float]:
    """Return the phase of an autoencoder's step, and how much of that phase is done (0..1)."""
    for name, steps in VAE_PHASES:
        if step < steps:
            return name, step / steps
        step -= steps
    raise ValueError("the step is beyond the last phase")


def vae_scene(rng: random.Random, phase: str) -> world.Scene:
    """Draw a scene for the autoencoder; backgrounds on which it is weak come more often."""
    chances = VAE_BACKGROUNDS[phase]
    background = rng.choices(list(chances), list(chances.values()))[0]
    scene = world.sample_scene(rng, background=background)
    if scene.kind == "relation" and rng.random() < 0.25:
        scene = world.Scene("one", background, (rng.choice(scene.things),))
    return scene


def cell_labels(scene: world.Scene) -> np.ndarray:
    """Return for each of the 8 x 8 latent cells the shape (0 none, 1..4) and colour (0 none, 1..6) in it: [2,
    8, 8].
    """
    labels = np.zeros((2, 8, 8), np.int64)
    best = np.full((8, 8), 0.25)
    for thing in scene.things:
        mask = Image.new("L", (world.SIZE, world.SIZE))
        draw = ImageDraw.Draw(mask)
        if thing.shape == "circle":
            draw.ellipse([thing.x - thing.r, thing.y - thing.r, thing.x + thing.r, thing.y + thing.r], fill=255)
        else:
            draw.polygon(world.outline(thing.shape, thing.x, thing.y, thing.r), fill=255)
        cover = np.asarray(mask, np.float32).reshape(8, 8, 8, 8).mean((1, 3)) / 255
        here = cover > best
        labels[0][here] = 1 + world.SHAPES.index(thing.shape)
        labels[1][here] = 1 + list(world.COLOURS).index(thing.colour)
        best = np.maximum(best, cover)
    return labels


def token_labels(scenes: list[world.Scene]) -> torch.Tensor:
    """Return `cell_labels` by image token: shape and colour of the 2 x 2 cells in each, [n, 16, 4, 2]."""
    labels = torch.from_numpy(np.stack([cell_labels(s) for s in scenes])).to(torch.uint8)
    cells = labels.view(-1, 2, 4, 2, 4, 2).permute(0, 2, 4, 3, 5, 1)
    return cells.reshape(len(scenes), 16, 4, 2)


def vae_batch(step: int, phase: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pictures [8, 3, 64, 64] and cell labels [8, 2, 8, 8] of a step."""
    rng = random.Random(f"{SEED} vae {step}")
    scenes = [vae_scene(rng, phase) for _ in range(VAE_BATCH)]
    labels = torch.from_numpy(np.stack([cell_labels(s) for s in scenes]))
    return _to_tensor([world.render(s) for s in scenes]), labels


def picture_loss(decoded: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the reconstruction loss: absolute, squared and gradient errors, heavier in and around objects.

    Objects of a colour near the background's weigh more, or they would be lost among bright ones.
    """
    contrast = (truth - truth[:, :, :1, :1]).norm(dim=1, keepdim=True)
    heavy = torch.where(contrast > 0.1, (1.2 / contrast.clamp_min(0.1)).clamp(1, 2), 0.0)
    weight = 1 + 3 * F.max_pool2d(heavy, 5, stride=1, padding=2)
    error = decoded - truth
    across = error[..., 1:] - error[..., :-1]
    down = error[..., 1:, :] - error[..., :-1, :]
    return (weight * (error.abs() + error**2)).mean() + 0.5 * (across.abs().mean() + down.abs().mean())


def check_vae(vae: AutoencoderTiny, number: int = 60, noise: float = 0.0) -> dict[str, float]:
    """Return the share of strictly right pictures among `number` decoded true ones, per background."""
    shares = {}
    rng = random.Random(f"{SEED} vae check")
    dice = torch.Generator().manual_seed(1)
    for background in world.BACKGROUNDS:
        scenes = [world.sample_scene(rng, background=background) for _ in range(number)]
        with torch.no_grad():
            z = vae.encode(_to_tensor([world.render(s) for s in scenes])).latents
            z = z + noise * torch.randn(z.shape, generator=dice)
            pictures = generator.to_arrays(vae.decode(z).sample)
        right = [scorer.score(p, s, places=True).strict for p, s in zip(pictures, scenes, strict=True)]
        shares[background] = round(float(np.mean(right)), 3)
    return shares


def _vae_optimizer(vae: AutoencoderTiny, reader: torch.nn.Module, phase: str) -> torch.optim.Optimizer:
    """Return the optimizer of a phase and freeze the encoder where only the decoder is trained."""
    alone = phase in VAE_DECODER_PHASES
    vae.encoder.requires_grad_(not alone)
    parameters = vae.decoder.parameters() if alone else [*vae.parameters(), *reader.parameters()]
    return torch.optim.AdamW(parameters, lr=VAE_RATES[phase], betas=(0.9, 0.98), weight_decay=1e-4, fused=True)


def train_vae(build: Path) -> AutoencoderTiny:
    """Train the autoencoder, or load it when done, and return it in evaluation mode."""
    torch.manual_seed(SEED)
    vae = generator.make_vae().to(memory_format=torch.channels_last)
    # A throw-away reader of shape and colour in each latent cell makes latents in which these stand out, so
    # that the transformer learns them sooner.
    reader = torch.nn.Conv2d(generator.LATENT_CHANNELS, 12, kernel_size=1)
    done = build / "vae.pt"
    if done.exists():
        vae.load_state_dict(torch.load(done))
        return vae.eval()
    checkpoint = build / "vae-checkpoint.pt"
    state = torch.load(checkpoint) if checkpoint.exists() else {"step": 0, "phase": ""}
    phase = state["phase"]
    optimizer = None
    if phase:
        vae.load_state_dict(state["vae"])
        reader.load_state_dict(state["reader"])
        optimizer = _vae_optimizer(vae, reader, phase)
        optimizer.load_state_dict(state["optimizer"])
    saved, began = time.monotonic(), time.process_time()
    errors: list[float] = []
    total = sum(steps for _, steps in VAE_PHASES)
    for step in range(state["step"], total):
        now, share = vae_phase(step)
        if now != phase:
            phase = now
            if phase == "decoder":
                with torch.no_grad():
                    z = torch.cat([vae.encode(vae_batch(-1 - i, phase)[0]).latents for i in range(60)])
                generator.normalise_latents(vae, z)
            optimizer = _vae_optimizer(vae, reader, phase)
        phase_steps = dict(VAE_PHASES)[phase]
        warm = min(1.0, (share * phase_steps + 1) / 40)
        # The first phase ends at a tenth of its rate, the others at zero.
        floor = 0.1 if phase == "together" else 0.0
        rate = VAE_RATES[phase] * warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        dice = torch.Generator().manual_seed(SEED * 1_000_000 + step)
        pictures, labels = vae_batch(step, phase)
        z = vae.encode(pictures).latents
        # Noise teaches the decoder to forgive a transformer that is not exact, and spreads the latents out.
        strength = torch.rand(len(z), 1, 1, 1, generator=dice)
        strength = 0.1 if phase == "together" else strength * VAE_NOISE.get(phase, 0.3)
        noisy = z + strength * torch.randn(z.shape, generator=dice)
        decoded = vae.decode(noisy).sample
        loss = picture_loss(decoded, pictures)
        errors.append(F.mse_loss(decoded, pictures).item())
        if phase not in VAE_DECODER_PHASES:
            guess = reader(noisy)
            weight = 0.1 if phase == "together" else 0.05
            loss = loss + weight * F.cross_entropy(guess[:, :5], labels[:, 0])
            loss = loss + weight * F.cross_entropy(guess[:, 5:], labels[:, 1])
            loss = loss + 0.05 * (z.pow(2).mean((0, 2, 3)) - 1).relu().mean() + 1e-3 * z.pow(2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            psnr = 10 * math.log10(4 / float(np.mean(errors[-100:])))
            seconds = time.process_time() - began
            print(f"vae {step + 1} loss {loss.item():.4f} psnr {psnr:.1f} cpu {seconds:.0f}s", flush=True)
        if (step + 1) % 500 == 0:
            print(f"vae {step + 1} right {check_vae(vae)}", flush=True)
        if time.monotonic() - saved > SAVE_SECONDS or step + 1 == total:
            models = {"vae": vae.state_dict(), "reader": reader.state_dict()}
            state = {**models, "optimizer": optimizer.state_dict(), "step": step + 1, "phase": phase}
            training.save_atomically(state, checkpoint)
            saved = time.monotonic()
    print(f"vae right, latent noise 0.2: {check_vae(vae, noise=0.2)}", flush=True)
    training.save_atomically(vae.state_dict(), done)
    return vae.eval()


# --------------------------------------------------------------------------------------------------------- data


@dataclass
class Pool:
    """Encoded training pictures: `scenes` belong to `text` [n, 16, 32], `edits` to `before` and `after`.

    `text_labels`, `before_labels` and `after_labels` are their `token_labels`.
    """

    scenes: list[world.Scene]
    text: torch.Tensor
    text_labels: torch.Tensor
    edits: list[world.Edit]
    before: torch.Tensor
    before_labels: torch.Tensor
    after: torch.Tensor
    after_labels: torch.Tensor

    def by_kind(self) -> dict[str, list[int]]:
        """Return the indices of the scenes of each kind."""
        return {k: [i for i, s in enumerate(self.scenes) if s.kind == k] for k in KIND_SHARES}

    def by_task(self) -> dict[str, list[int]]:
        """Return the indices of the edits of each task."""
        return {t: [i for i, e in enumerate(self.edits) if e.task == t] for t in TASK_SHARES}


def make_pool(build: Path, vae: AutoencoderTiny) -> Pool:
    """Draw the training scenes and edits, none of them held out, and encode their pictures or load the
    latents.
    """
    path = build / "pool.pt"
    if path.exists():
        return torch.load(path, weights_only=False)  # a file of our own
    rng = random.Random(f"{SEED} pool")
    kinds = list(KIND_SHARES)
    scenes = [
        world.sample_where(lambda i=i: world.sample_scene(rng, kinds[i % 3]), wanted=False) for i in range(TEXT_SCENES)
    ]
    tasks = list(TASK_SHARES)
    edits = [world.sample_where(lambda i=i: world.sample_edit(rng, tasks[i % 4]), wanted=False) for i in range(EDITS)]

    def encode(items: list[world.Scene]) -> torch.Tensor:
        parts = []
        with torch.no_grad():
            for i in range(0, len(items), 64):
                z = vae.encode(_to_tensor([world.render(s) for s in items[i : i + 64]])).latents
                parts.append(generator.pack(z.contiguous()))
        return torch.cat(parts)

    sources, targets = [e.source for e in edits], [e.target for e in edits]
    # Sources of edits are pictures like any others.
    scenes += [source for source in sources if not world.held_out(source)]
    pool = Pool(
        scenes,
        encode(scenes),
        token_labels(scenes),
        edits,
        encode(sources),
        token_labels(sources),
        encode(targets),
        token_labels(targets),
    )
    training.save_atomically(pool, path)
    return pool


class Captions:
    """Turns captions into what the transformer is given."""

    def __init__(self, clip: CLIPTextModel, t5: T5EncoderModel) -> None:
        self.clip, self.t5 = clip, t5
        self.clip_tokenizer, self.t5_tokenizer = (
            generator.make_clip_tokenizer(),
            generator.make_t5_tokenizer(),
        )
        self.clip_rows = generator.shared_clip_rows(self.clip_tokenizer)
        self.t5_rows = generator.shared_t5_rows(self.t5_tokenizer)

    def __call__(self, captions: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return T5's states [n, length, 64] and CLIP's pooled states [n, 64]."""
        t5_ids = self.t5_tokenizer(
            captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        # CLIP reads from left to right, so padding after the end mark makes no difference and can be short.
        clip_ids = self.clip_tokenizer(captions, padding=True, truncation=True, return_tensors="pt").input_ids
        return self.t5(self.t5_rows[t5_ids])[0], self.clip(self.clip_rows[clip_ids]).pooler_output


def pick(groups: dict[str, list[int]], shares: dict[str, float], number: int, rng: random.Random) -> list[int]:
    """Draw `number` indices, each group with its share (the last gets what rounding leaves)."""
    names = list(shares)
    chosen = []
    for name in names:
        count = number - len(chosen) if name == names[-1] else round(number * shares[name])
        chosen += rng.choices(groups[name], k=count)
    return chosen


# ------------------------------------------------------------------------------------------------ text encoders

# What an edit's instruction says: the task, the thing by colour and shape (0: not named), the new value.
INSTRUCTION = {"task": len(world.TASKS), "colour": 7, "shape": 5, "value": 17}
_VALUES = ("", *dict.fromkeys([*world.COLOURS, *world.BACKGROUNDS, *world.SHAPES]))


def instruction_labels(edit: world.Edit) -> list[int]:
    """Return the classes of `INSTRUCTION` for an edit, from its words."""
    words = edit.instruction.split()
    name = words[words.index("the") + 1 :]
    colour = 1 + list(world.COLOURS).index(name[0]) if name[0] in world.COLOURS else 0
    shape = name[1] if colour else name[0]
    value = "" if edit.task == "remove" else words[-1]
    return [
        world.TASKS.index(edit.task),
        colour,
        1 + world.SHAPES.index(shape) if shape in world.SHAPES else 0,
        _VALUES.index(value),
    ]


def labels_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the loss of reading `token_labels` [n, 16, 4, 2] by logits [n, 16, 48], and the accuracy in objects."""
    logits = logits.unflatten(-1, (4, 12)).flatten(0, 2)
    shapes, colours = labels.long().flatten(0, 2).unbind(-1)
    # Most cells are empty, which is soon learnt.
    weight = torch.where(shapes > 0, 1.0, 0.3)
    loss = F.cross_entropy(logits[:, :5], shapes, reduction="none")
    loss = loss + F.cross_entropy(logits[:, 5:], colours, reduction="none")
    right = (logits[:, :5].argmax(-1) == shapes) & (logits[:, 5:].argmax(-1) == colours)
    return (weight * loss).sum() / weight.sum(), right[shapes > 0].float().mean().item()


class Readers(torch.nn.Module):
    """Throw-away readers of the text encoders' states: what a caption puts where, and what an instruction says.

    One attention over T5's states for each image token, as the transformer has it, and a small network on
    CLIP's pooled state.
    """

    def __init__(self) -> None:
        super().__init__()
        width = generator.TEXT_WIDTH
        self.places = torch.nn.Parameter(0.2 * torch.randn(1, 16 + 1 + len(INSTRUCTION), width))
        self.attention = torch.nn.MultiheadAttention(width, 4, batch_first=True)
        self.cells = torch.nn.Sequential(torch.nn.Linear(width, 128), torch.nn.SiLU(), torch.nn.Linear(128, 48))
        self.ground = torch.nn.Linear(width, len(world.BACKGROUNDS))
        self.says = torch.nn.ModuleDict({k: torch.nn.Linear(width, n) for k, n in INSTRUCTION.items()})
        self.pooled_cells = torch.nn.Sequential(
            torch.nn.Linear(width, 256), torch.nn.SiLU(), torch.nn.Linear(256, 16 * 48)
        )
        self.pooled_ground = torch.nn.Linear(width, len(world.BACKGROUNDS))
        self.pooled_says = torch.nn.ModuleDict({k: torch.nn.Linear(width, n) for k, n in INSTRUCTION.items()})

    def _read(self, states: torch.Tensor) -> torch.Tensor:
        places = self.places.expand(len(states), -1, -1)
        return self.attention(places, states, states, need_weights=False)[0]

    def captions(
        self, states: torch.Tensor, pooled: torch.Tensor, scenes: list[world.Scene], labels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of reading captions, and accuracies."""
        read = self._read(states)
        grounds = torch.tensor([list(world.BACKGROUNDS).index(s.background) for s in scenes])
        loss, right = labels_loss(self.cells(read[:, :16]), labels)
        loss_pooled, right_pooled = labels_loss(self.pooled_cells(pooled).unflatten(-1, (16, 48)), labels)
        guess, guess_pooled = self.ground(read[:, 16]), self.pooled_ground(pooled)
        loss = loss + loss_pooled + F.cross_entropy(guess, grounds) + F.cross_entropy(guess_pooled, grounds)
        figures = {"cells": right, "pooled cells": right_pooled}
        figures["ground"] = (guess.argmax(-1) == grounds).float().mean().item()
        return loss, figures

    def instructions(
        self, states: torch.Tensor, pooled: torch.Tensor, edits: list[world.Edit]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of reading instructions, and the share of them read without an error."""
        read = self._read(states)
        labels = torch.tensor([instruction_labels(e) for e in edits])
        loss, right = states.new_zeros(()), torch.ones(len(edits), dtype=torch.bool)
        for i, name in enumerate(INSTRUCTION):
            guess = self.says[name](read[:, 17 + i])
            loss = loss + F.cross_entropy(guess, labels[:, i])
            loss = loss + F.cross_entropy(self.pooled_says[name](pooled), labels[:, i])
            right &= guess.argmax(-1) == labels[:, i]
        return loss / 2, {"instructions": right.float().mean().item()}


def make_models() -> torch.nn.ModuleDict:
    """Return the untrained transformer and text encoders."""
    torch.manual_seed(SEED + 1)
    return torch.nn.ModuleDict(
        {
            "transformer": generator.make_transformer(),
            "clip": generator.make_clip(generator.make_clip_tokenizer()),
            "t5": generator.make_t5(generator.make_t5_tokenizer()),
        }
    )


def train_words(build: Path, pool: Pool, models: torch.nn.ModuleDict) -> None:
    """Train the text encoders alone, or load them when done."""
    done = build / "words.pt"
    if done.exists():
        models.load_state_dict(torch.load(done))
        return
    readers = Readers()
    captions = Captions(models["clip"], models["t5"])
    parameters = [*models["clip"].parameters(), *models["t5"].parameters(), *readers.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=WORDS_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    kinds, tasks = pool.by_kind(), pool.by_task()
    began = time.process_time()
    means: dict[str, float] = {}
    for step in range(WORDS_STEPS):
        rng = random.Random(f"{SEED} words {step}")
        rate = WORDS_RATE * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / WORDS_STEPS))
        for group in optimizer.param_groups:
            group["lr"] = rate
        index = pick(kinds, KIND_SHARES, WORDS_CAPTIONS, rng)
        scenes = [pool.scenes[i] for i in index]
        edits = [pool.edits[i] for i in pick(tasks, TASK_SHARES, WORDS_EDITS, rng)]
        texts = [world.sample_caption(s, rng) for s in scenes] + [e.instruction for e in edits]
        states, pooled = captions([world.vary(t, rng) for t in texts], generator.MAX_SEQUENCE_LENGTH)
        number = len(scenes)
        loss, figures = readers.captions(states[:number], pooled[:number], scenes, pool.text_labels[index])
        more, others = readers.instructions(states[number:], pooled[number:], edits)
        loss = loss + more
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for name, value in {"loss": loss.item(), **figures, **others}.items():
            means[name] = 0.97 * means.get(name, value) + 0.03 * value
        if (step + 1) % 100 == 0:
            shown = " ".join(f"{k} {v:.3f}" for k, v in means.items())
            print(f"words {step + 1} {shown} cpu {time.process_time() - began:.0f}s", flush=True)
    training.save_atomically(models.state_dict(), done)


# -------------------------------------------------------------------------------------------------- transformer


def noise_levels(number: int, mean: float, dice: torch.Generator) -> torch.Tensor:
    """Return logit-normal times in 0..1, one from each of `number` equal quantiles, shuffled."""
    quantiles = (torch.randperm(number, generator=dice) + torch.rand(number, generator=dice)) / number
    return torch.sigmoid(mean + 1.1 * torch.special.ndtri(quantiles.clamp(1e-4, 1 - 1e-4)))


class Lesson(torch.nn.Module):
    """Computes the loss of a step's batches: rectified flow, and what the image tokens know half-way.

    The latter is a throw-away reader's: from the tokens after the first single block it names the shape and
    colour that will be in each cell of the wanted picture, and those in the source's. A transformer that is made to
    know early what belongs where learns to draw it much sooner.
    """

    def __init__(self, pool: Pool, transformer: FluxTransformer2DModel, captions: Captions) -> None:
        super().__init__()
        self.pool, self.captions = pool, captions
        self.kinds, self.tasks = pool.by_kind(), pool.by_task()
        self.reader = torch.nn.Linear(transformer.inner_dim, 48)
        # In a list, so that its parameters are not the lesson's own.
        self.transformer = [transformer]
        transformer.single_transformer_blocks[0].register_forward_hook(self._keep)
        self.places = FluxPipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32)
        self.source_places = self.places.clone()
        self.source_places[:, 0] = 1  # as FluxKontextPipeline marks the source picture's tokens

    def _keep(self, _block: torch.nn.Module, _inputs: tuple, states: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.half_way = states[1]

    def text_loss(self, number: int, rng: random.Random, dice: torch.Generator) -> dict[str, torch.Tensor]:
        """Return the losses on `number` pictures made from captions."""
        index = pick(self.kinds, KIND_SHARES, number, rng)
        texts = [world.vary(world.sample_caption(self.pool.scenes[i], rng), rng) for i in index]
        error, told = self._error(self.pool.text[index], None, texts, 0.2, rng, dice)
        seen, _ = labels_loss(self.reader(self.half_way[told]), self.pool.text_labels[index][told])
        return {"text": error.mean(), "text seen": seen}

    def edit_loss(self, number: int, rng: random.Random, dice: torch.Generator) -> dict[str, torch.Tensor]:
        """Return the losses on `number` edits. What has to change weighs three times as much as what has to stay."""
        index = pick(self.tasks, TASK_SHARES, number, rng)
        texts = [world.vary(self.pool.edits[i].instruction, rng) for i in index]
        before, after = self.pool.before[index], self.pool.after[index]
        # The target follows from source and instruction, so this weight does not shift what is learnt.
        weight = 1 + 2 * ((after - before).pow(2).mean(-1) > 0.05).float()
        # Sources that the model made itself are not quite clean.
        source = before + 0.05 * torch.randn(before.shape, generator=dice)
        error, told = self._error(after, source, texts, 0.4, rng, dice)
        labels = torch.cat([self.pool.after_labels[index], self.pool.before_labels[index]], 1)
        seen, _ = labels_loss(self.reader(self.half_way[told]), labels[told])
        return {"edit": (weight * error).sum() / weight.sum(), "edit seen": seen}

    def _error(
        self,
        clean: torch.Tensor,
        source: torch.Tensor | None,
        texts: list[str],
        mean: float,
        rng: random.Random,
        dice: torch.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the squared error of the predicted velocity for every token, [n, 16], and whose text was kept, [n]."""
        told = torch.tensor([rng.random() >= NO_TEXT for _ in texts])
        texts = [t if kept else "" for t, kept in zip(texts, told.tolist(), strict=True)]
        length = rng.choices([generator.MAX_SEQUENCE_LENGTH, 16, 24, 32], [0.8, 0.1, 0.06, 0.04])[0]
        states, pooled = self.captions(texts, length)
        noise = torch.randn(clean.shape, generator=dice)
        t = noise_levels(len(clean), mean, dice)
        noisy = torch.lerp(clean, noise, t[:, None, None])
        velocity = self.transformer[0](
            hidden_states=noisy if source is None else torch.cat([noisy, source], 1),
            timestep=t,
            pooled_projections=pooled,
            encoder_hidden_states=states,
            txt_ids=torch.zeros(length, 3),
            img_ids=self.places if source is None else torch.cat([self.places, self.source_places]),
            return_dict=False,
        )[0][:, : clean.shape[1]]
        return (velocity - (noise - clean)).pow(2).mean(-1), told


def train_transformer(build: Path, vae: AutoencoderTiny, out: Path, until: int = STEPS) -> None:
    """Train transformer and text encoders together on encoded pictures, and export their running average to
    `out`; or only the first `until` steps.
    """
    pool = make_pool(build, vae)
    print(f"pool: {len(pool.scenes)} scenes, {len(pool.edits)} edits", flush=True)
    models = make_models()
    train_words(build, pool, models)
    torch.manual_seed(SEED + 2)
    lesson = Lesson(pool, models["transformer"], Captions(models["clip"], models["t5"]))
    average = copy.deepcopy(models).eval().requires_grad_(False)
    average["transformer"].single_transformer_blocks[0]._forward_hooks.clear()
    groups = [
        {"params": [*models["transformer"].parameters(), *lesson.parameters()], "share": 1.0},
        {"params": [*models["clip"].parameters(), *models["t5"].parameters()], "share": TEXT_SHARE},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    checkpoint = build / "transformer-checkpoint.pt"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        models.load_state_dict(state["models"])
        average.load_state_dict(state["average"])
        lesson.load_state_dict(state["lesson"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    saved, began = time.monotonic(), time.process_time()
    means: dict[str, float] = {}
    for step in range(start, until):
        rng = random.Random(f"{SEED} step {step}")
        dice = torch.Generator().manual_seed(SEED * 1_000_000 + step)
        rate = RATE * min(1, (step + 1) / WARM_UP, (STEPS - step) / DECAY)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        if step < EDITS_FROM:
            parts = lesson.text_loss(BATCH, rng, dice)
        else:
            parts = lesson.text_loss(BATCH - BATCH_EDITS, rng, dice) | lesson.edit_loss(BATCH_EDITS, rng, dice)
        weights = {name: SEEN_WEIGHT if name.endswith("seen") else 1.0 for name in parts}
        loss = sum(weights[name] * value for name, value in parts.items()) / (len(parts) / 2)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimizer.step()
        keep = min(EMA, (step + 1) / (step + 20))
        torch._foreach_lerp_(list(average.parameters()), list(models.parameters()), 1 - keep)
        for name, value in parts.items():
            means[name] = 0.99 * means.get(name, value.item()) + 0.01 * value.item()
        if (step + 1) % 100 == 0:
            shown = " ".join(f"{k} {v:.4f}" for k, v in means.items())
            print(f"step {step + 1} {shown} cpu {time.process_time() - began:.0f}s", flush=True)
        last = step + 1 == until
        if (step + 1) % CHECK_EVERY == 0 or last:
            stage = build / "stages" / str(step + 1)
            generator.export(stage, average["transformer"], vae, average["clip"], average["t5"])
            figures = measure.measure(generator.Generator.load(stage), number=16, seed=step)
            print(f"step {step + 1} strict {measure.summary(figures)}", flush=True)
        # After the export: a run stopped between the two would otherwise never make it.
        if time.monotonic() - saved > SAVE_SECONDS or last:
            state = {"models": models.state_dict(), "average": average.state_dict(), "lesson": lesson.state_dict()}
            training.save_atomically({**state, "optimizer": optimizer.state_dict(), "step": step + 1}, checkpoint)
            saved = time.monotonic()
    if until == STEPS:
        generator.export(out, average["transformer"], vae, average["clip"], average["t5"])


def main() -> None:
    """Run every stage that is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the finished pipeline")
    parser.add_argument("--build", type=Path, default=Path("build/shapes-flux"), help="checkpoints and stages")
    parser.add_argument(
        "--until", type=int, default=STEPS, help="the transformer's last step; any but the default writes no --out"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    vae = train_vae(arguments.build)
    train_transformer(arguments.build, vae, arguments.out, arguments.until)


if __name__ == "__main__":
    main()
