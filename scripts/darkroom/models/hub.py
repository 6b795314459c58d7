"""Models of the Hugging Face hub: fetched once, on a host with internet, then read from the hub's cache without it.

A model that is named owner/name is identified by its commit. A marker, `<results>/.darkroom/models/<section>.json`,
records what was fetched: the repository, the revision that the config named and the commit it stood for at that time,
the folder in the cache, and the files with their sizes in bytes. A revision that is not a commit is looked up once,
when the model is fetched; from then on the marker says which commit it stands for.
"""

import contextlib
import errno
import glob
import json
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from darkroom.config.load import lora_files, used_sections
from darkroom.config.models import Config, Lora, ModelSection, model_folder
from darkroom.config.values import Section
from darkroom.errors import DarkroomError
from darkroom.files import replacing
from darkroom.identity import digest

FETCH_VERSION = 1  # raise it when the choice of files changes
COMMIT = re.compile("[0-9a-f]{40}")

_SIDE_FILES = {".json", ".txt", ".model", ".jinja", ".tiktoken"}
_OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".gguf", ".onnx", ".safetensors"}
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")  # as diffusers and transformers save them
_ABANDONED = 600  # seconds after which nobody writes a partial download any more

AnySection = TypeVar("AnySection", bound=Section)


@dataclass(frozen=True)
class HubModel:
    """The model of a section of the config, or a LoRA on it, on the hub.

    Attributes:
        section: name of the section; of a LoRA with its place, "generate.loras.0".
        repo: owner/name.
        revision: as the config has it: a commit, a branch or a tag.
        cache_dir: None for the default.
        marker: the file that says what was fetched.
        lora: what the config says of a LoRA.
    """

    section: str
    repo: str
    revision: str
    cache_dir: str | None
    marker: Path
    lora: Lora | None = None

    @property
    def used_by(self) -> str:
        """The section of the config whose jobs need it."""
        return self.section.partition(".loras.")[0]

    @cached_property
    def fetched(self) -> dict[str, Any] | None:
        """The marker of this model at this revision, or None."""
        try:
            marker = json.loads(self.marker.read_bytes())
            fits = marker["repo"] == self.repo and self.revision in (marker["revision"], marker["commit"])
            fits = fits and marker.get("weight_name") == self.weight_name
            return marker if fits and isinstance(marker["files"], dict) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def commit(self) -> str | None:
        """The 40 digits of the commit; None if the config names none and the model was never fetched."""
        if COMMIT.fullmatch(self.revision):
            return self.revision
        return self.fetched["commit"] if self.fetched else None

    @property
    def digest(self) -> str:
        """The digest that the marker is made for."""
        return digest(_wanted(self, self.commit or self.revision))

    @property
    def weight_name(self) -> str | None:
        """The file of a LoRA that the config names."""
        return self.lora.weight_name if self.lora else None

    @property
    def unpinned(self) -> str:
        """The message for a commit that is not known."""
        return (
            f"config: {self.section}.revision: images and scores belong to one commit of {self.repo}, and none is named;"
            " name it, or run `darkroom fetch` (with the same --configfile), which looks it up"
        )

    @property
    def missing(self) -> list[str]:
        """Names of files, below the marker's folder, that are missing or have another size than the marker says."""
        assert self.fetched
        folder = self.fetched["folder"]
        return [name for name, size in self.fetched["files"].items() if _size(os.path.join(folder, name)) != size]

    @property
    def outdated(self) -> bool:
        """Whether there is a marker, but its model is incomplete or in another cache than the config's."""
        if not self.marker.exists():
            return False
        fetched = self.fetched
        return not fetched or fetched["cache_dir"] != self.cache_dir or bool(self.missing)

    def folder(self) -> str:
        """The folder that holds the model. Raises DarkroomError if it was not fetched, or is no longer complete."""
        if not self.fetched:
            raise DarkroomError(
                f"{self.section}.model: {self.repo} was not fetched; run `darkroom fetch` where there is internet"
            )
        if missing := self.missing:
            raise DarkroomError(
                f"{self.section}.model: {self.repo}: {missing[0]} is not in {self.fetched['folder']}; run `darkroom fetch`"
                f" again, with {self.used_by}.cache_dir on a disk that this machine sees"
            )
        return self.fetched["folder"]

    def lora_file(self) -> str:
        """The file of a LoRA. Raises DarkroomError as `folder` does."""
        folder = self.folder()
        assert self.fetched
        return os.path.join(folder, next(iter(self.fetched["files"])))  # its card comes after it


def hub_models(config: Config, unpinned: bool = False) -> dict[str, HubModel]:
    """section -> the hub model that it uses, for a checked config.

    Raises DarkroomError where a commit is not known, unless `unpinned`. Never asks the hub.
    """
    models = {}
    for name, section in used_sections(config).items():
        if model_folder(section):
            continue
        marker = Path(config.results, ".darkroom", "models", f"{name}.json")
        model = HubModel(name, section.model_name, section.revision or "main", section.cache_dir, marker)
        if model.commit is None and not unpinned:
            raise DarkroomError(model.unpinned)
        models[name] = model
    for name, section in used_sections(config).items():
        for place, lora in enumerate(section.loras if isinstance(section, ModelSection) else ()):
            if lora.model is None:
                continue
            key = f"{name}.loras.{place}"
            marker = Path(config.results, ".darkroom", "models", f"{key}.json")
            model = HubModel(key, lora.model, lora.revision or "main", section.cache_dir, marker, lora)
            if model.commit is None and not unpinned:
                raise DarkroomError(model.unpinned)
            models[key] = model
    return models


def models_of_section(models: Mapping[str, HubModel], name: str) -> list[HubModel]:
    """The hub models that the jobs of a section need, its own first, then its LoRAs."""
    return [model for model in models.values() if model.used_by == name]


def _wanted(model: HubModel, commit: str) -> list[Any]:
    """What a marker is made for."""
    return [FETCH_VERSION, model.repo, commit, *([model.weight_name or ""] if model.lora else [])]


def with_commits(config: Config, models: Mapping[str, HubModel]) -> Config:
    """The config with the commit of each of its hub models for `revision`, where it is known."""
    for name, model in models.items():
        if model.commit and model.lora is None:
            config = config.with_section(name, revision=model.commit)
        elif model.commit:
            config = _with_lora(config, model, revision=model.commit)
    return config


def _with_lora(config: Config, model: HubModel, **changes: Any) -> Config:
    """The config with other values for the LoRA that a hub model is."""
    section = config.section(model.used_by)
    loras = [_changed(lora, model, place, changes) for place, lora in enumerate(section.options.loras)]
    return config.with_section(model.used_by, loras=loras)


def _changed(lora: Lora, model: HubModel, place: int, changes: dict[str, Any]) -> Lora:
    return lora.model_copy(update=changes) if model.section == f"{model.used_by}.loras.{place}" else lora


@cache
def marker_bytes(marker: str) -> int:
    """The size of the weights that a marker says were fetched. Raises FileNotFoundError where it is not written yet."""
    files = json.loads(Path(marker).read_bytes())["files"]
    return sum(size for name, size in files.items() if name.endswith(".safetensors"))


def local_section(section: AnySection, models: Mapping[str, HubModel], name: str) -> AnySection:
    """A section of the config as engines take it: with folders and files in place of names of the hub.

    models: those of the hub, by section; name: of the section.
    """
    changes: dict[str, Any] = {"model": models[name].folder()} if name in models else {}
    if isinstance(section, ModelSection) and section.loras:
        found = [models.get(f"{name}.loras.{place}") for place in range(len(section.loras))]
        changes["loras"] = [
            lora.model_copy(update={"model": None, "weight_name": None, "file": hub.lora_file()}) if hub else lora
            for lora, hub in zip(section.loras, found, strict=True)
        ]
    return section.model_copy(update=changes) if changes else section


def fetch(model: HubModel) -> dict[str, Any]:
    """Fetch what is missing of a model into the hub's cache; write and return its marker.

    Files that are in the cache are not fetched again; if all are, the hub is not asked.

    Raises:
        DarkroomError: one line that says what is wrong with the name, the revision, the access, the network or the
            disk, and the remedy.
    """
    from huggingface_hub import constants, hf_hub_download, snapshot_download
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    logging.set_verbosity_error()  # its warnings quote signed addresses
    warnings.filterwarnings("ignore", module="huggingface_hub")  # a full disk has a sentence of its own
    if not sys.stderr.isatty():
        disable_progress_bars()
    cache = Path(model.cache_dir or constants.HF_HUB_CACHE).expanduser().absolute()
    storage = cache / repo_folder_name(repo_id=model.repo, repo_type="model")
    with _one_line(model, cache):
        commit = model.commit or _look_up(model)
        listing = _list_files(model.repo, commit, cache)

        def read(name: str) -> dict[str, Any]:
            path = hf_hub_download(model.repo, name, revision=commit, cache_dir=cache)
            content = json.loads(Path(path).read_bytes())
            if not isinstance(content, dict):
                raise ValueError(f"{name} is not a JSON object")
            return content

        choose = judge_files if scores(model.section) else pipeline_files
        if model.lora:
            choose = partial(_lora_files, model.lora)
        try:
            names = choose(set(listing), read)
        except _Unusable as error:
            raise DarkroomError(f"{model.section}.model: {model.repo}: {error}") from None
        folder = storage / "snapshots" / commit
        wrong = [name for name in names if _size(folder / name) != listing[name]]
        for path in (folder / name for name in wrong):
            if path.exists():  # cut short by a broken disk: the client would take it for whole
                path.resolve().unlink()
                path.unlink(missing_ok=True)
        if wrong:
            _remove_abandoned(storage / "blobs")
            _check_room(model, cache, sum(listing[name] for name in wrong))
            print(
                f"{model.section}: {model.repo}@{commit}: fetching {len(wrong)} of {len(names)} files, "
                f"{_gigabytes(sum(listing[name] for name in wrong))}, into {cache}",
                flush=True,
            )
            patterns = [glob.escape(name) for name in names]
            snapshot_download(model.repo, revision=commit, cache_dir=cache, allow_patterns=patterns)
        if bad := [name for name in names if _size(folder / name) != listing[name]]:
            raise DarkroomError(f"{model.section}.model: {model.repo}: {bad[0]} did not arrive whole; fetch again")
    marker = {
        "digest": digest(_wanted(model, commit)),
        "repo": model.repo,
        "revision": model.revision,
        "commit": commit,
        "cache_dir": model.cache_dir,
        "folder": str(folder),
        "files": {name: listing[name] for name in names},
    } | ({"weight_name": model.weight_name} if model.lora else {})
    if marker != model.fetched:
        with replacing(model.marker) as temporary:
            temporary.write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
    return marker


def report_lines(section: str, marker: dict[str, Any]) -> str:
    """What was fetched, and the line to add to a config that names no commit."""
    files = marker["files"]
    lines = f"{section}: {marker['repo']}@{marker['commit']}: {len(files)} files, {_gigabytes(sum(files.values()))}"
    if marker["revision"] != marker["commit"]:
        lines += (
            f"\nfor the config, under {section}:\n  revision: {marker['commit']} # {marker['revision']} when fetched"
        )
    return lines


# ------------------------------------------------------------------------------------- which files are wanted


class _Unusable(Exception):
    """The repository holds no model of the wanted kind."""


def pipeline_files(listing: set[str], read: Callable[[str], dict[str, Any]]) -> list[str]:
    """The files of a diffusers pipeline: those of the components in its index, with weights as safetensors.

    Left out are files beside the components (the same weights in one file, pictures), weights in other precisions and
    formats, and code.

    Args:
        listing: all files of the repository.
        read: returns the content of one of them, a JSON object.
    """
    if "model_index.json" not in listing:
        raise _Unusable("not a diffusers pipeline, for it has no model_index.json; name another model")
    wanted = {"model_index.json"}
    for name, component in read("model_index.json").items():
        if isinstance(component, list) and component and component[0] is not None and not name.startswith("_"):
            wanted |= _folder_files(f"{name}/", listing, read)
    if not any(name.endswith(".safetensors") for name in wanted):
        raise _Unusable(_no_safetensors("it"))
    return sorted(wanted)


def _lora_files(lora: Lora, listing: set[str], read: Callable[[str], dict[str, Any]]) -> list[str]:
    try:
        return lora_files(listing, lora.weight_name)
    except DarkroomError as error:
        raise _Unusable(str(error)) from None


def scores(section: str) -> bool:
    """Whether the model of a section scores pictures, and makes none."""
    return section == "judge" or section.startswith("metrics.")


def judge_files(listing: set[str], read: Callable[[str], dict[str, Any]]) -> list[str]:
    """The files of a transformers model: its weights as safetensors, configuration, tokenizer, processor."""
    if "config.json" not in listing:
        raise _Unusable("not a transformers model, for it has no config.json; name another model")
    wanted = _folder_files("", listing, read)
    if not any(name.endswith(".safetensors") for name in wanted):
        raise _Unusable(_no_safetensors("it"))
    return sorted(wanted)


def _folder_files(folder: str, listing: set[str], read: Callable[[str], dict[str, Any]]) -> set[str]:
    inside = {name for name in listing if name.startswith(folder) and "/" not in name[len(folder) :]}
    wanted = {name for name in inside if Path(name).suffix in _SIDE_FILES and not name.endswith(".index.json")}
    for whole in (folder + name for name in _WEIGHTS):
        index = f"{whole}.index.json"
        if whole in inside:
            return wanted | {whole}
        if index in inside:
            parts = {folder + str(part) for part in (read(index).get("weight_map") or {}).values()}
            if lacking := sorted(part for part in parts if part not in inside or not part.endswith(".safetensors")):
                raise _Unusable(f"{index} names {lacking[0]}, which is not there; name another model or revision")
            return wanted | parts | {index}
    if any(Path(name).suffix in _OTHER_WEIGHTS for name in inside):
        raise _Unusable(_no_safetensors(folder or "it"))
    return wanted


def _no_safetensors(where: str) -> str:
    return f"{where} has no weights as plain safetensors, and others are not loaded; name another model or revision"


# ---------------------------------------------------------------------------------------------- the hub


def _look_up(model: HubModel) -> str:
    from huggingface_hub import HfApi

    commit = HfApi().model_info(model.repo, revision=model.revision, timeout=60).sha
    if not commit or not COMMIT.fullmatch(commit):
        raise DarkroomError(f"{model.section}.revision: the hub names no commit for {model.revision} of {model.repo}")
    return commit


def _list_files(repo: str, commit: str, cache: Path) -> dict[str, int]:
    """File -> size in bytes, of a repository at a commit. The hub is asked only if the cache does not have the list."""
    from huggingface_hub import HfApi, RepoFile, RepoFolder, get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    entries: Iterable[RepoFile | RepoFolder]
    try:
        entries = get_cached_repo_tree(repo, revision=commit, cache_dir=cache)
    except CachedRepoTreeNotFoundError:
        entries = HfApi().list_repo_tree(repo, revision=commit, recursive=True)
    return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}


def _size(path: str | Path) -> int | None:
    try:
        return os.path.getsize(path)
    except OSError:
        return None


def _gigabytes(size: int) -> str:
    return f"{size / 10**9:.2f} GB" if size >= 10**8 else f"{size / 10**6:.1f} MB"


def _remove_abandoned(blobs: Path) -> None:
    """Remove what killed downloads left: the client gives partial files new names each time and never resumes one."""
    for path in blobs.glob("*.incomplete"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()


def _check_room(model: HubModel, cache: Path, need: int) -> None:
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if (free := shutil.disk_usage(there).free) < need:
        raise DarkroomError(
            f"{model.used_by}.cache_dir: {model.repo} needs {_gigabytes(need)} more in {cache}, where {_gigabytes(free)} are"
            " free; free some, or set cache_dir to a larger disk"
        )


@contextlib.contextmanager
def _one_line(model: HubModel, cache: Path) -> Iterator[None]:
    try:
        yield
    except DarkroomError:
        raise
    except Exception as error:  # the client and what it uses raise many kinds
        raise DarkroomError(_explain(error, model, cache)) from error


def _explain(error: BaseException, model: HubModel, cache: Path) -> str:
    import httpx2
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__  # "not in the cache either"; the cause is why the hub was not asked
    page, repo, where = f"{constants.ENDPOINT}/{model.repo}", model.repo, f"{model.section}.model"
    again = "what is finished is kept"
    # Addresses of files can hold a signature.
    line = re.sub(r"\?\S+", "", (str(error).strip() or type(error).__name__).splitlines()[0])
    if _disk_is_full(error):
        return f"no space left in {cache} for {repo}; free some, or set {model.used_by}.cache_dir; {again}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{where}: HF_HUB_OFFLINE is set, so {repo} cannot be fetched; unset it for `darkroom fetch`"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, RevisionNotFoundError):
        return f"{model.section}.revision: {repo} has no revision {model.revision}; name a commit that {page} has"
    if isinstance(error, GatedRepoError) or status == 403:
        if get_token() is None:
            return (
                f"{where}: {repo} is gated: accept its licence at {page}, then log in on this host with `hf auth login`,"
                " or set HF_TOKEN"
            )
        return (
            f"{where}: {repo} is gated, and the token has no access to it: accept its licence at {page} with the token's"
            " account; a fine-grained token must be allowed to read gated repositories"
        )
    if isinstance(error, RepositoryNotFoundError) or (status == 401 and get_token() is None):
        return f"{where}: no {repo} at {constants.ENDPOINT}, or a private one; check the name, or log in with `hf auth login`"
    if status == 401:
        return f"{where}: the hub refuses the token; log in again with `hf auth login`, or set HF_TOKEN to a valid one"
    if status:
        return f"{where}: {constants.ENDPOINT} answers {status} for {repo}; fetch again later, {again}"
    if isinstance(error, OSError) and error.filename:
        return f"{model.used_by}.cache_dir: cannot write {error.filename}: {error.strerror}"
    if isinstance(error, httpx2.HTTPError | OSError):
        return (
            f"{where}: {repo} cannot be fetched from {constants.ENDPOINT} ({line}); run `darkroom fetch` on a host with"
            f" internet, or set HTTPS_PROXY; {again}"
        )
    return f"{where}: {repo} cannot be fetched: {line}; {again}"


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):  # from the xet library
            return True
        error = error.__cause__ or error.__context__
    return False
