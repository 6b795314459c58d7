"""Train the tiny CLIP from nothing.

python training/shapeworld/train_clip.py --out resources/models/shapes-clip

One stage of a fixed number of steps. Each step's data come from (seed, step) alone, and a checkpoint is written now and then,
so a run that was stopped goes on where it was and ends with the same weights.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shapeworld import generator, training, world
from shapeworld.judge_questions import mirrored, spoil, spoiled, typed
from shapeworld.world import Scene

SEED = 47
PICTURES = 16_000
STEPS, BATCH, WRONG = 1300, 64, 4
WIDTH, LAYERS, TEXT_LAYERS, HEADS, PATCH, DIMENSIONS = 96, 4, 3, 4, 8, 96
MUON_RATE, ADAM_RATE = 4e-3, 2e-3
DECAY = 0.4  # the share of the steps over which the rates fall to zero
CELLS, ATTRIBUTES = 0.3, 0.2  # how much the throw-away heads weigh
SAVE_SECONDS = 90

_COLOURS, _BACKGROUNDS = list(world.COLOURS), list(world.BACKGROUNDS)
_NO_COLOUR, _NO_SHAPE = len(_COLOURS), len(world.SHAPES)
# What the picture, or the caption, shows: one, two or three things of a look, or two of two looks, side by side or one above the other.
ATTRIBUTE_HEADS = {
    "plan": 5,
    "background": len(_BACKGROUNDS),
    "colour": len(_COLOURS),
    "shape": len(world.SHAPES),
    "mate_colour": _NO_COLOUR + 1,
    "mate_shape": _NO_SHAPE + 1,
}


def attributes(scene: Scene) -> list[int]:
    """Return the classes of `ATTRIBUTE_HEADS`; of a pair, the thing to the left or above comes first."""
    if scene.relation in ("right of", "below"):
        scene = mirrored(scene)
    plan = len(scene.things) - 1 if scene.relation is None else 3 if scene.relation == "left of" else 4
    first, mate = scene.things[0], scene.things[1] if scene.relation else None
    return [
        plan,
        _BACKGROUNDS.index(scene.background),
        _COLOURS.index(first.colour),
        world.SHAPES.index(first.shape),
        _COLOURS.index(mate.colour) if mate else _NO_COLOUR,
        world.SHAPES.index(mate.shape) if mate else _NO_SHAPE,
    ]


def cells(scene: Scene) -> np.ndarray:
    """Return colour and shape of what lies at the middle of each patch, int64 [2, 64]; the last class stands for none."""
    middle = np.arange(PATCH // 2, world.SIZE, PATCH)
    y, x = np.meshgrid(middle, middle, indexing="ij")
    found = np.stack([np.full(x.shape, _NO_COLOUR), np.full(x.shape, _NO_SHAPE)])
    for thing in scene.things:
        inside = np.hypot(x - thing.x, y - thing.y) < thing.r
        found[0][inside], found[1][inside] = _COLOURS.index(thing.colour), world.SHAPES.index(thing.shape)
    return found.reshape(2, -1)


class Heads(nn.Module):
    """Linear readers of patches and of embeddings, and the scale and offset of the yes-or-no loss: used in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.colour, self.shape = nn.Linear(WIDTH, _NO_COLOUR + 1), nn.Linear(WIDTH, _NO_SHAPE + 1)
        sides = ("picture", "caption")
        self.sides = nn.ModuleDict(
            {side: nn.ModuleDict({k: nn.Linear(WIDTH, n) for k, n in ATTRIBUTE_HEADS.items()}) for side in sides}
        )
        self.scale, self.offset = nn.Parameter(torch.tensor(2.3)), nn.Parameter(torch.tensor(-5.0))


def make_processor() -> CLIPProcessor:
    """Return the processor: pictures become 64 x 64 px whole, without a crop."""
    size = {"height": world.SIZE, "width": world.SIZE}
    half = [0.5, 0.5, 0.5]
    pictures = CLIPImageProcessor(size=size, do_center_crop=False, image_mean=half, image_std=half)
    return CLIPProcessor(pictures, generator.make_clip_tokenizer())


def make_model(processor: CLIPProcessor) -> CLIPModel:
    """Return an untrained model."""
    tokenizer = processor.tokenizer
    shared = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": HEADS}
    text = shared | {
        "num_hidden_layers": TEXT_LAYERS,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": generator.CLIP_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": DIMENSIONS,
    }
    vision = shared | {
        "num_hidden_layers": LAYERS,
        "image_size": world.SIZE,
        "patch_size": PATCH,
        "projection_dim": DIMENSIONS,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=DIMENSIONS))


def draw(rng: random.Random) -> tuple[Scene, np.ndarray]:
    """Draw a scene whose meaning is not held out, with its picture (uint8 [64, 64, 3])."""
    scene = world.sample_where(lambda: world.sample_scene(rng, rng.choices(world.KINDS, (0.3, 0.5, 0.2))[0]), False)
    assert isinstance(scene, Scene)
    return scene, np.asarray(world.render(scene))


def wrong_scenes(scene: Scene, number: int, rng: random.Random) -> list[Scene]:
    """Return caption scenes of which each says something false; none is held out, for as wrong ones they would be learnt."""
    found: list[Scene] = []
    kinds = ["colour", "shape", "swapped", "relation"]
    while len(found) < number:
        wrong = spoil(scene, kinds.pop(0), rng) if kinds else spoiled(scene, rng)
        if wrong is not None and not world.held_out(wrong):
            found.append(mirrored(wrong) if wrong.relation and rng.random() < 0.5 else wrong)
    return found


def augment(pixels: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    """Return pictures [n, 3, 64, 64] in 0..1 as other makers may draw them: moved by up to 2 px, lighter, blurred, noisy."""
    number, size = len(pixels), pixels.shape[-1]
    wide = F.pad(pixels, (2, 2, 2, 2), mode="replicate")
    moved = []
    for picture, (left, top) in zip(wide, torch.randint(0, 5, (number, 2), generator=dice).tolist(), strict=True):
        moved.append(picture[:, top : top + size, left : left + size])
    pixels = torch.stack(moved)
    soft = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pixels = torch.where(torch.rand(number, 1, 1, 1, generator=dice) < 0.2, soft, pixels)
    pixels = pixels + 0.1 * (torch.rand(number, 3, 1, 1, generator=dice) - 0.5)
    noise = torch.randn(pixels.shape, generator=dice)
    return (pixels + 0.05 * torch.rand(number, 1, 1, 1, generator=dice) * noise).clamp(0, 1)


class Student:
    """The model in training, its heads and its optimizers."""

    def __init__(self) -> None:
        torch.manual_seed(SEED)
        self.processor = make_processor()
        self.model, self.heads = make_model(self.processor), Heads()
        self.rows = generator.shared_clip_rows(self.processor.tokenizer)
        muon, matrices, others = [], [], []
        for name, parameter in [*self.model.named_parameters(), *self.heads.named_parameters()]:
            hidden = "encoder.layers" in name and parameter.dim() == 2
            (muon if hidden else matrices if parameter.dim() > 1 else others).append(parameter)
        adam = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        self.optimizers: list[torch.optim.Optimizer] = [
            training.Muon([{"params": muon, "lr": MUON_RATE}]),
            torch.optim.AdamW(adam, lr=ADAM_RATE, betas=(0.9, 0.98), fused=True),
        ]
        self.full = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]

    def loss(self, pool: list[tuple[Scene, np.ndarray]], step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a step's batch, and figures."""
        rng = random.Random(f"{SEED} step {step}")
        scenes, pictures = zip(*rng.sample(pool, BATCH), strict=True)
        said = [mirrored(s) if s.relation and rng.random() < 0.5 else s for s in scenes]
        said += [wrong for scene in scenes for wrong in wrong_scenes(scene, WRONG, rng)]
        texts = [typed(world.sample_caption(scene, rng), rng, plain=0.7) for scene in said]
        tokens = self.processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        dice = torch.Generator().manual_seed(rng.getrandbits(60))
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
        seen = self.model.vision_model(pixel_values=augment(pixels, dice) * 2 - 1)
        read = self.model.text_model(input_ids=self.rows[tokens.input_ids], attention_mask=tokens.attention_mask)
        picture = F.normalize(self.model.visual_projection(seen.pooler_output), dim=-1)
        caption = F.normalize(self.model.text_projection(read.pooler_output), dim=-1)
        likeness = picture @ caption.T  # [pictures, captions]; the first captions are the pictures' own
        meanings = [world.meaning(scene) for scene in said]
        same = torch.tensor([[a == b for b in meanings] for a in meanings[:BATCH]])

        logits = likeness * self.model.logit_scale.exp().clamp(max=100)
        of_captions = logits.logsumexp(1) - logits.masked_fill(~same, -1e9).logsumexp(1)
        mine = logits[:, :BATCH]
        of_pictures = mine.logsumexp(0) - mine.masked_fill(~same[:, :BATCH], -1e9).logsumexp(0)
        # Whether each caption is true, on one scale for all pictures: a score must tell a good picture from a bad one.
        verdict = likeness * self.heads.scale.exp() + self.heads.offset
        each = F.binary_cross_entropy_with_logits(verdict, same.float(), reduction="none")
        own = torch.zeros_like(same)
        for number in range(BATCH):
            own[number, number] = True
            own[number, BATCH + WRONG * number : BATCH + WRONG * (number + 1)] = True
        true_or_not = each[own].mean() + each[~own].mean()

        where = torch.from_numpy(np.stack([cells(scene) for scene in scenes]))
        patches = seen.last_hidden_state[:, 1:]
        in_cells = sum(
            F.cross_entropy(head(patches).flatten(0, 1), where[:, n].flatten())
            for n, head in enumerate((self.heads.colour, self.heads.shape))
        )
        shown = torch.tensor([attributes(scene) for scene in said])
        told = sum(
            F.cross_entropy(head(pooled), shown[: len(pooled), n])
            for side, pooled in (("picture", seen.pooler_output), ("caption", read.pooler_output))
            for n, head in enumerate(self.heads.sides[side].values())
        )
        total = of_captions.mean() + of_pictures.mean() + 2 * true_or_not + CELLS * in_cells + ATTRIBUTES * told
        right = (likeness.masked_fill(~own, -2).argmax(1) == torch.arange(BATCH)).float().mean()
        return total, {"right": right.item(), "softmax": of_captions.mean().item(), "truth": true_or_not.item()}

    def update(self, loss: torch.Tensor, rate: float) -> None:
        """Take one optimizer step at this share of the full rates."""
        for optimizer, full in zip(self.optimizers, self.full, strict=True):
            for group, most in zip(optimizer.param_groups, full, strict=True):
                group["lr"] = most * rate
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([*self.model.parameters(), *self.heads.parameters()], 5.0)
        for optimizer in self.optimizers:
            optimizer.step()

    def state(self) -> dict:
        """Return what a checkpoint keeps."""
        parts = {"model": self.model, "heads": self.heads}
        kept = {name: part.state_dict() for name, part in parts.items()}
        return {**kept, "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load(self, state: dict) -> None:
        """Take up a state that `state` returned."""
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)

    @torch.no_grad()
    def save(self, out: Path) -> None:
        """Write a directory for `from_pretrained`: weights stored in float16, to be computed with in float32."""
        table = self.model.text_model.embeddings.token_embedding.weight
        table.copy_(table[self.rows].clone())
        self.model.logit_scale.clamp_(max=float(np.log(100)))
        state = {name: value.detach().half() for name, value in self.model.state_dict().items()}
        self.model.save_pretrained(out, state_dict=state)
        make_processor().save_pretrained(out)  # the one that was used would keep how its last batch was padded
        (out / "model.safetensors").chmod(0o644)
        path = out / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        # transformers computes in the dtype named here, whatever the weights are stored in.
        for part in (config, config["text_config"], config["vision_config"]):
            part["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def train(student: Student, pool: list[tuple[Scene, np.ndarray]], build: Path, steps: int = STEPS) -> None:
    """Take all steps that a checkpoint in `build` does not have yet."""
    path, first, spent = build / "clip.pt", 0, 0.0
    if path.exists():
        kept = torch.load(path, weights_only=True)
        student.load(kept)
        first, spent = kept["step"], kept["cpu"]
    saved, began, means = time.monotonic(), time.process_time() - spent, {}
    for step in range(first, steps):
        loss, figures = student.loss(pool, step)
        student.update(loss, min(1.0, (step + 1) / 50, (steps - step) / (DECAY * steps)))
        for name, value in {"loss": loss.item(), **figures}.items():
            means[name] = 0.97 * means.get(name, value) + 0.03 * value
        done = step + 1
        if done % 50 == 0:
            shown = " ".join(f"{name} {value:.3f}" for name, value in means.items())
            print(f"{done}/{steps} cpu {time.process_time() - began:.0f} s {shown}", flush=True)
        if done == steps or time.monotonic() - saved > SAVE_SECONDS:
            cpu = time.process_time() - began
            training.save_atomically({**student.state(), "step": done, "cpu": cpu}, path)
            saved = time.monotonic()


def main() -> None:
    """Draw the pictures, train, and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint directory to write")
    parser.add_argument("--build", type=Path, default=Path("build/shapes-clip"), help="pictures and checkpoints")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    pool = training.pooled(arguments.build / "pictures.pkl", PICTURES, draw, f"{SEED} picture")
    student = Student()
    train(student, pool, arguments.build)
    student.save(arguments.out)


if __name__ == "__main__":
    main()
