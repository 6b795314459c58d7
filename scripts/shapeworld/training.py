"""What the trainings of the generator and of the judge share."""

from __future__ import annotations

from pathlib import Path

import torch


def save_atomically(state: object, path: Path) -> None:
    """Write `state` with torch.save so that a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    torch.save(state, draft)
    draft.replace(path)
