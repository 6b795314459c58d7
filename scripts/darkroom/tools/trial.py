"""A trial: a config of its own, which makes some of the rows of another one, in another results folder.

It is run as any other. Its images have the seeds and keys that they have in the whole set, so labels given to them hold there, too.
"""

import hashlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from darkroom.config.models import Config
from darkroom.errors import DarkroomError
from darkroom.files import replacing

_SIGN = re.compile(r"sha256 ([0-9a-f]{64})")


def trial_config(whole: dict[str, Any], rows: int, results: str | None = None) -> dict[str, Any]:
    """The config of a trial of the config `whole`, as the user wrote that.

    rows: of `prompts`. results: its folder; None: that of the whole, with -trial. Raises DarkroomError.
    """
    if whole.get("trial") is not None:
        raise DarkroomError(f"this is the config of a trial (trial: {whole['trial']}); name that of the whole set")
    own = str(whole.get("results") or Config.model_fields["results"].default).rstrip("/")
    results = results or f"{own}-trial"
    if Path(results) == Path(own):
        raise DarkroomError(f"--results {results}: holds the whole set; give the trial another folder")
    return whole | {"trial": rows, "results": results}


def write_config(path: Path, config: dict[str, Any], sources: Sequence[str]) -> None:
    """Write a trial's config, over an earlier one that was not changed by hand.

    sources: the files that it was made from. Raises DarkroomError where something else is there.
    """
    body = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)
    if path.exists() and not _is_ours(path.read_bytes()):
        raise DarkroomError(
            f"{path}: was not written by `darkroom trial`, or changed since; remove it, or name another with --to"
        )
    head = (
        f"# A trial of {' '.join(sources)}, written by `darkroom trial`, which writes it anew as long as nothing below is changed.\n"
        f"# sha256 {_hash(body.encode())}\n"
    )
    try:
        with replacing(path) as temporary:
            temporary.write_text(head + body, encoding="utf-8")
    except OSError as error:
        raise DarkroomError(f"{path}: {error.strerror}") from error


def next_steps(path: Path, config: Config, sources: Sequence[str], settings: Sequence[str]) -> str:
    """What to do with a trial: run it, look at it, and go on with the whole set. settings: of the command line."""
    whole = ["--configfile", *sources, *(["--config", *settings] if settings else [])]
    lines = {
        "run it, and again": f"snakemake --configfile {shlex.quote(str(path))} --cores 8",
        "look at it": f"{config.results}/gallery/index.html"
        if config.gallery.enabled
        else f"{config.results}/scores.csv",
        "then the whole set": f"snakemake {shlex.join(whole)} --cores 8",
    }
    width = max(map(len, lines))
    return "\n".join(f"{what:{width}}  {how}" for what, how in lines.items())


def _is_ours(written: bytes) -> bool:
    """Whether a file is a trial's config as `write_config` left it."""
    lines = written.split(b"\n", 2)
    sign = _SIGN.search(lines[1].decode("utf-8", "replace")) if len(lines) == 3 else None
    return sign is not None and sign[1] == _hash(lines[2])


def _hash(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
