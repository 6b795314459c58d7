"""What a model is, for keys and digests, and how large its weights are."""

import hashlib
from pathlib import Path
from typing import Any

from darkroom.config.models import Lora, ModelSource, model_folder
from darkroom.identity import digest

_WHOLE_FILE = 16 * 2**20
_SAMPLES, _SAMPLE = 256, 4096


def model_identity(section: ModelSource) -> str:
    """What a model is, for keys and digests: `owner/name@commit` on the hub, or the digest of a folder.

    A folder's digest covers the file names and sizes, small files whole, and 256 samples spread over each large file.
    So it is fast for a model of 24 GB and still notices other weights. Model cards do not count.
    """
    folder = model_folder(section)
    if folder is None:
        return f"{section.model}@{section.revision or 'main'}"
    base = Path(folder)
    files = sorted(path for path in base.rglob("*") if path.is_file() and not _is_side_file(path.relative_to(base)))
    return "folder:" + digest([[path.relative_to(base).as_posix(), _file_digest(path)] for path in files])


def file_identity(path: str | Path) -> str:
    """What a file of weights is, for keys and digests: as of one in a model's folder."""
    return "file:" + digest(_file_digest(Path(path)))


def lora_identity(lora: Lora) -> str:
    """What a LoRA is, for keys and digests: `owner/name@commit` on the hub, with its file where one is named, or a file's digest."""
    if lora.file is not None:
        return file_identity(lora.file)
    return f"{lora.model}@{lora.revision or 'main'}" + (f"/{lora.weight_name}" if lora.weight_name else "")


def _is_side_file(path: Path) -> bool:
    return (path.suffix in (".md", ".txt") and path.name != "merges.txt") or path.parts[0].startswith(".")


def _file_digest(path: Path) -> list[Any]:
    size = path.stat().st_size
    with open(path, "rb") as stream:
        if size <= _WHOLE_FILE:
            return [size, hashlib.file_digest(stream, "sha256").hexdigest()]
        samples = hashlib.sha256()
        for number in range(_SAMPLES):
            stream.seek(number * (size - _SAMPLE) // (_SAMPLES - 1))
            samples.update(stream.read(_SAMPLE))
        return [size, samples.hexdigest()]


def model_bytes(section: ModelSource) -> int | None:
    """The size of a model folder's weights in bytes, or None for a model on the hub."""
    folder = model_folder(section)
    if folder is None:
        return None
    base = Path(folder)
    # Beside a pipeline's components a repository may hold the same weights once more, in one file at its top.
    parts = "*/*.safetensors" if (base / "model_index.json").exists() else "**/*.safetensors"
    return sum(path.stat().st_size for path in base.glob(parts))
