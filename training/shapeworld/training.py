"""What the trainings of the generator and of the judge, and their benchmarks, share."""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch


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
