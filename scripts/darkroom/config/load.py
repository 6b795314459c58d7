"""Read a config, check it against the models and find the files that it names."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from darkroom.config import extensions, home
from darkroom.config.models import config_model
from darkroom.config.options import check_family, judge_refusal, refusal
from darkroom.config.values import explain
from darkroom.engines import family
from darkroom.errors import DarkroomError
from darkroom.plan.stages import ROWS, STAGES, used_stages


def read_config_file(path: str | Path) -> dict[str, Any]:
    """What a config file says, unchecked. Raises DarkroomError, one line with file and line, where it is no YAML."""
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DarkroomError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DarkroomError(f"{path}: not UTF-8 text; save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark else ""
        raise DarkroomError(f"{path}{place}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DarkroomError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(given, dict):
        raise DarkroomError(f"{path}: expected keys with values, such as `prompts: rows.jsonl`")
    return given


def load_config(config: dict[str, Any], roots: Sequence[str | Path] | None = None) -> dict[str, Any]:
    """A copy of `config`, checked, every default filled in; what `extensions` names is loaded first.

    roots: folders in which relative files and folders that it names are looked for in turn; they are replaced by where
    they were found. None: the working folder, then what comes with Darkroom.
    Raises DarkroomError: one line that names the key and says what is expected.
    """
    folders = [Path(root) for root in roots or (Path.cwd(), home())]
    _check_values(config, "")
    found = load_extensions(config, folders)
    model = config_model()
    try:
        checked = model.model_validate(config).model_dump()
    except ValidationError as error:
        raise DarkroomError("config: " + explain(error, model)) from None
    checked["extensions"] = found
    checked["metrics"] = {name: checked["metrics"][name] for name in config.get("metrics") or {}}  # in the user's order
    checked["results"] = os.path.normpath(checked["results"])  # as Path has it: rules and library name the same files
    _check_stages(checked)
    _find_files(checked, folders)
    return checked


def load_extensions(config: dict[str, Any], roots: Sequence[Path]) -> list[str]:
    """Run the files that `extensions` of an unchecked config names, and return where they were found.

    Does nothing where `extensions` is no list of names; the check then says so.
    """
    given = config.get("extensions")
    if not isinstance(given, list) or not all(isinstance(name, str) and name for name in given):
        return []
    found = [_find(name, roots, f"extensions.{number}", "file") for number, name in enumerate(given)]
    extensions.load(found)
    return found


def _check_values(value: dict[Any, Any], where: str) -> None:
    """Refuse what YAML can hold and JSON cannot: keys that are no text, and nan and inf."""
    for key, item in value.items():
        if not isinstance(key, str):
            raise DarkroomError(f"config: unknown key {where}{key}; a key is text")
        if isinstance(item, dict):
            _check_values(item, f"{where}{key}.")
        elif isinstance(item, float) and not math.isfinite(item):
            raise DarkroomError(f"config: {where}{key}: expected a finite number, got {item}")


def is_folder_name(model: str) -> bool:
    """Whether `model` names a folder rather than owner/name on the hub."""
    return not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model[0] in "./~" or os.path.isdir(model)


def model_folder(section: dict[str, Any]) -> str | None:
    """The folder that a section's model lies in, None for a model of the hub."""
    return section.get("local_dir") or (section["model"] if is_folder_name(section["model"]) else None)


def used_sections(config: dict[str, Any]) -> list[str]:
    """The sections whose models a run with this config loads, in the order they run."""
    sections = dict.fromkeys(stage.section for stage in used_stages(config))
    return [name for name in sections if family(config[name]["family"]).loads_model] + ["judge"]


def _exists(path: Path) -> bool:
    return os.path.exists(path)


def _find(name: str, roots: Sequence[Path], where: str, what: str, hint: str = "") -> str:
    """The path of a file or folder (`what`) in the first of the roots that has it; where: the key that names it."""
    found = next((root / name for root in roots if _exists(root / name)), None)
    if found is None:
        raise DarkroomError(f"config: {where}: no such {what}: {name}{hint}")
    if not (found.is_dir() if what == "folder" else found.is_file()):
        raise DarkroomError(f"config: {where}: not a {what}: {name}")
    return str(found)


def _check_stages(config: dict[str, Any]) -> None:
    """What one key alone cannot tell: families and options that do not fit their stage or each other."""
    for stage in STAGES.values():
        name = stage.section
        if "family" not in config.get(name, {}):
            raise DarkroomError(
                f"stage {stage.name}: the config has no section {name} with a family; bring one with"
                f" allow_section({name!r}, model), whose model is a StageSection"
            )
        try:
            check_family(config[name], name)
        except DarkroomError as error:
            raise DarkroomError(f"config: {error}") from None
        if reason := refusal(config[name], config[name]["device"]):
            raise DarkroomError(f"config: {name}.{reason}")
    if reason := judge_refusal(config["judge"]):
        raise DarkroomError(f"config: judge.{reason}")


def _in_a_folder_of(model: str, roots: Sequence[Path]) -> bool:
    """Whether a name that could be owner/name starts with a folder that is there: `models/mine` beside `models/`."""
    return any((root / Path(model).parts[0]).is_dir() for root in roots)


def _find_files(config: dict[str, Any], roots: Sequence[Path]) -> None:
    if config["prompts"] is None and config["edits"] is None:
        raise DarkroomError("config: prompts and edits are both null; name a file of rows under at least one")

    def find(section: dict[str, Any], key: str, where: str, what: str, hint: str = "") -> None:
        section[key] = _find(section[key], roots, where, what, hint)

    results = next(path for path in (Path(config["results"]), *Path(config["results"]).parents) if _exists(path))
    if not results.is_dir():
        raise DarkroomError(f"config: results: not a folder: {results}")
    for rows in ROWS:
        if config[rows] is not None:
            find(config, rows, rows, "file")
    if config["labels"] is not None:
        find(config, "labels", "labels", "file")
    if config["container"] is not None and "://" not in config["container"]:
        find(config, "container", "container", "file", " (an address has a ://)")
    for name in used_sections(config):
        section = config[name]
        if section["model"] is None:  # of a family that needs none
            continue
        if section.get("local_dir"):
            find(section, "local_dir", f"{name}.local_dir", "folder")
        elif is_folder_name(section["model"]) or _in_a_folder_of(section["model"], roots):
            find(section, "model", f"{name}.model", "folder", " (a hub model is written owner/name)")
    find(config["judge"], "rubric", "judge.rubric", "file")
