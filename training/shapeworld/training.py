"""What the trainings of the embedded models, and their benchmarks, share."""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn


def save_atomically(state: object, path: Path) -> None:
    """Write `state` with torch.save so that a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    torch.save(state, draft)
    draft.replace(path)


def pooled(path: Path | None, number: int, draw: Callable[[random.Random], object], seed: str) -> list:
    """Return `number` items, each drawn from its own (seed, index); they are kept in `path`, if any, between runs."""
    if path and path.exists():
        with path.open("rb") as file:
            return pickle.load(file)
    began = time.monotonic()
    items = [draw(random.Random(f"{seed} {i}")) for i in range(number)]
    if path is None:
        return items
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    with draft.open("wb") as file:
        pickle.dump(items, file, protocol=pickle.HIGHEST_PROTOCOL)
    draft.replace(path)
    print(f"drew {number} for {path.name} in {time.monotonic() - began:.0f} s", flush=True)
    return items


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each matrix is made orthogonal, in float32 and for all matrices of a shape at
    once.

    torch's own works in bfloat16, which processors without that type do fifty times more slowly. The update
    is scaled to the root mean square that AdamW's would have.
    """

    def __init__(self, groups: list[dict], momentum: float = 0.95, weight_decay: float = 0.05) -> None:
        super().__init__(groups, {"momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Take one step with the gradients there are."""
        shapes: dict[torch.Size, list[tuple[nn.Parameter, torch.Tensor, dict]]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                shapes.setdefault(parameter.shape, []).append((parameter, update, group))
        for shape, members in shapes.items():
            updates = _orthogonal(torch.stack([u for _, u, _ in members]))
            for (parameter, _, group), update in zip(members, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)


def _orthogonal(x: torch.Tensor) -> torch.Tensor:
    """Return matrices [n, rows, columns] with their singular values brought near 1, by Newton's method."""
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.transpose(1, 2)
        x = 3.4445 * x + (2.0315 * (square @ square) - 4.7750 * square) @ x
    return x.transpose(1, 2) if tall else x
