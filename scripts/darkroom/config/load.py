"""Check a configuration against the schema and fill in its defaults."""

import copy
import difflib
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from darkroom.config import extensions
from darkroom.config.options import check_family, judge_refusal, refusal
from darkroom.engines import family
from darkroom.errors import DarkroomError

STAGES = ("prompts", "edits")


def load_config(config: dict[str, Any], schema: str | Path, roots: Sequence[str | Path] = (".",)) -> dict[str, Any]:
    """A copy of `config`, checked against the JSON schema in the YAML file `schema`, every default filled in.

    Files and folders that it names must exist; relative ones are looked for in `roots` in turn (the working folder,
    then the workflow's own) and replaced by where they were found. Raises DarkroomError: one line that names the
    key and says what is expected.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    schema = yaml.safe_load(Path(schema).read_text(encoding="utf-8"))
    config = copy.deepcopy(config)
    for name, sub in schema["properties"].items():  # `generate:` with nothing under it is an empty section
        if sub.get("type") == "object" and config.get(name, ...) is None:
            config[name] = {}
    _check_values(config, "")
    if error := best_match(Draft202012Validator(schema).iter_errors(config)):
        raise DarkroomError("config: " + _explain(error))
    _fill(config, schema)
    _find_extensions(config, [Path(root) for root in roots])
    extensions.load(config["extensions"])
    config["results"] = os.path.normpath(config["results"])  # as Path has it: rules and library name the same files
    _check_stages(config)
    _find_files(config, [Path(root) for root in roots])
    return config


def _find_extensions(config: dict[str, Any], roots: Sequence[Path]) -> None:
    for number, name in enumerate(config["extensions"]):
        found = next((root / name for root in roots if (root / name).is_file()), None)
        if found is None:
            raise DarkroomError(f"config: extensions.{number}: no such file: {name}")
        config["extensions"][number] = str(found)


def _check_values(value: dict[Any, Any], where: str) -> None:
    """Refuse what YAML can hold and JSON cannot: keys that are no text, and nan and inf."""
    for key, item in value.items():
        if not isinstance(key, str):
            raise DarkroomError(f"config: unknown key {where}{key}; a key is text")
        if isinstance(item, dict):
            _check_values(item, f"{where}{key}.")
        elif isinstance(item, float) and not math.isfinite(item):
            raise DarkroomError(f"config: {where}{key}: expected a finite number, got {item}")


def _fill(value: dict[str, Any], schema: dict[str, Any]) -> None:
    for name, sub in schema.get("properties", {}).items():
        if name not in value and "default" in sub:
            default = sub["default"]
            value[name] = copy.copy(default)
        if isinstance(value.get(name), float) and "integer" in sub.get("type", ()):
            value[name] = int(value[name])  # the schema lets 512.0 pass for a whole number
        if isinstance(value.get(name), dict):
            _fill(value[name], sub)


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = sorted(error.schema["properties"])
        unknown = sorted(set(error.instance) - set(known))[0]
        name = f"{where}.{unknown}" if where else unknown
        near = difflib.get_close_matches(unknown, known, n=1)
        return f"unknown key {name}; " + (f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}")
    got = "null" if error.instance is None else repr(error.instance)
    got = got if len(got) <= 60 else got[:57] + "..."
    expected = {
        "type": lambda: "expected " + _either(error.validator_value),
        "enum": lambda: "expected one of " + ", ".join("null" if one is None else one for one in error.validator_value),
        "minimum": lambda: f"must be at least {error.validator_value}",
        "maximum": lambda: f"must be at most {error.validator_value}",
        "exclusiveMinimum": lambda: f"must be above {error.validator_value}",
        "minLength": lambda: "must not be empty",
        "uniqueItems": lambda: "must not name anything twice",
        "pattern": lambda: "may hold letters, digits, . _ and -, at most 96 characters",
    }.get(error.validator, lambda: error.message)()
    return f"{where}: {expected}, got {got}"


def _either(types: str | list[str]) -> str:
    names = {"object": "a section", "string": "text", "integer": "a whole number", "number": "a number"}
    names |= {"boolean": "true or false", "null": "null", "array": "a list"}
    return " or ".join(names[name] for name in ([types] if isinstance(types, str) else types))


def is_folder_name(model: str) -> bool:
    """Whether `model` names a folder rather than owner/name on the hub."""
    return not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model[0] in "./~" or os.path.isdir(model)


def model_folder(section: dict[str, Any]) -> str | None:
    """The folder that a section's model lies in, None for a model of the hub."""
    return section.get("local_dir") or (section["model"] if is_folder_name(section["model"]) else None)


def used_sections(config: dict[str, Any]) -> list[str]:
    """The sections whose models a run with this config loads, in the order they run."""
    rows = {"generate": config["prompts"], "edit": config["edits"]}
    return [name for name, use in rows.items() if use and family(config[name]["family"]).loads_model] + ["judge"]


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 (Path.exists raises where the name is too long)


def _check_stages(config: dict[str, Any]) -> None:
    """What one key alone cannot tell: families and numbers of GPUs that do not fit their stage."""
    for name in ("generate", "edit"):
        try:
            check_family(config[name], name)
        except DarkroomError as error:
            raise DarkroomError(f"config: {error}") from None
        if reason := refusal(config[name], config[name]["device"]):
            raise DarkroomError(f"config: {name}.{reason}")
    judge = config["judge"]
    if judge["engine"] == "transformers" and judge["device"] != "cpu" and judge["gpus"] > 1:
        raise DarkroomError("config: judge.gpus: engine transformers uses one GPU; use vllm, or more, smaller shards")
    if reason := judge_refusal(judge):
        raise DarkroomError(f"config: judge.{reason}")


def _in_a_folder_of(model: str, roots: Sequence[Path]) -> bool:
    """Whether a name that could be owner/name starts with a folder that is there: `models/mine` beside `models/`."""
    return any((root / Path(model).parts[0]).is_dir() for root in roots)


def _find_files(config: dict[str, Any], roots: Sequence[Path]) -> None:
    if config["prompts"] is None and config["edits"] is None:
        raise DarkroomError("config: prompts and edits are both null; name a file of rows under at least one")

    def find(section: dict[str, Any], key: str, where: str, what: str, hint: str = "") -> None:
        found = next((root / section[key] for root in roots if _exists(root / section[key])), None)
        if found is None:
            raise DarkroomError(f"config: {where}: no such {what}: {section[key]}{hint}")
        if not (found.is_dir() if what == "folder" else found.is_file()):
            raise DarkroomError(f"config: {where}: not a {what}: {section[key]}")
        section[key] = str(found)

    results = next(path for path in (Path(config["results"]), *Path(config["results"]).parents) if _exists(path))
    if not results.is_dir():
        raise DarkroomError(f"config: results: not a folder: {results}")
    for stage in STAGES:
        if config[stage] is not None:
            find(config, stage, stage, "file")
    if config["labels"] is not None:
        find(config, "labels", "labels", "file")
    if config["container"] is not None and "://" not in config["container"]:
        find(config, "container", "container", "file", " (an address has a ://)")
    for name in used_sections(config):
        section = config[name]
        if section.get("local_dir"):
            find(section, "local_dir", f"{name}.local_dir", "folder")
        elif is_folder_name(section["model"]) or _in_a_folder_of(section["model"], roots):
            find(section, "model", f"{name}.model", "folder", " (a hub model is written owner/name)")
    find(config["judge"], "rubric", "judge.rubric", "file")
