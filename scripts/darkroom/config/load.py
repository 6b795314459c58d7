"""Read a config, check it against the models and find the files that it names."""

import glob
import hashlib
import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from darkroom.config import extensions, home
from darkroom.config.duplicates import PROMPTS, SOURCES
from darkroom.config.metrics import Aesthetic
from darkroom.config.models import (
    Config,
    Lora,
    ModelSection,
    ModelSource,
    RowFields,
    config_model,
    is_folder_name,
    metric_section,
    split_models,
)
from darkroom.config.options import judge_refusal, refusal, with_family
from darkroom.config.values import Unusable, expanded, explain, read_value
from darkroom.engines import FAMILIES
from darkroom.errors import DarkroomError
from darkroom.files import replacing
from darkroom.plan.stages import ROWS, STAGES, stages_for, used_stages

INLINE = (".darkroom", "made")  # of the results: where rows that the config itself describes are written down
DEMONSTRATION = (
    "this is the demonstration, config/config.yaml, since no config names rows; for your own, --configfile my.yaml"
)


def names_rows(config: Mapping[str, Any], has_file: bool, needs_file: bool = True) -> bool:
    """Whether a config, as the user wrote it, names rows; one that does not goes over the demonstration.

    A config file that names rows stands alone: nothing of the demonstration leaks into it, even where it says null.

    has_file: whether any of it is from a file. needs_file: refuse rows that are named on the command line alone, for what is
    then to be made of them is nowhere said. Raises DarkroomError.
    """
    given = {rows: read_value(config[rows], str | None) for rows in ROWS if rows in config}
    named = [rows for rows, value in given.items() if has_file or value is not None]
    if named and needs_file and not has_file:
        raise DarkroomError(
            f"--config names {' and '.join(named)} without a config file, and the settings of the demonstration are not for"
            f" rows of your own: `cp config/presets/flux-dev.yaml my.yaml`, name the {named[0]} there, and run with"
            " --configfile my.yaml"
        )
    return bool(named)


def read_config_file(path: str | Path) -> dict[str, Any]:
    """What a config file says, unchecked. Raises DarkroomError, one line with file and line, where it is neither JSON nor YAML."""
    try:
        given = _json_or_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DarkroomError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DarkroomError(f"{path}: not UTF-8 text; save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark else ""
        star = "; a value that begins with * stands in quotes" if error.context == "while scanning an alias" else ""
        raise DarkroomError(f"{path}{place}: not valid YAML: {error.problem or error.context}{star}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DarkroomError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(given, dict):
        raise DarkroomError(f"{path}: expected keys with values, such as `prompts: rows.jsonl`")
    return given


def _json_or_yaml(text: str) -> Any:
    try:
        return json.loads(text)  # which may be indented by tabs, as YAML may not
    except ValueError:
        return yaml.safe_load(text)


def load_config(config: dict[str, Any], roots: Sequence[str | Path] | None = None) -> Config:
    """What `config` says, checked, with every default; what `extensions` names is loaded first.

    roots: folders in which relative files and folders that it names are looked for in turn; they are replaced by where
    they were found. None: the working folder, then what comes with Darkroom.
    Raises DarkroomError: one line that names the key and says what is expected.
    """
    folders = [Path(root) for root in roots or (Path.cwd(), home())]
    _check_values(config, "")
    found = load_extensions(config, folders)
    parts, named = split_models(config)
    for rows in ROWS:
        if isinstance(parts.get(rows), dict):
            parts = _with_made_rows(parts, rows, folders)
    model = config_model(named)
    try:
        checked = model.model_validate(parts)
    except ValidationError as error:
        raise DarkroomError("config: " + explain(error, model)) from None
    results = os.path.normpath(checked.results)  # as Path has it: rules and library name the same files
    checked = checked.model_copy(update={"extensions": found, "results": results})
    for stage in stages_for(checked, STAGES.values()):
        try:
            checked.section(stage.section)
        except DarkroomError as error:
            raise DarkroomError(f"stage {stage.name}: {error}") from None
    for rows in ROWS:
        _check_alike(checked, checked.sections_for(rows))
    return _with_families(_with_files(_with_hashes(checked), folders))


def _with_hashes(config: Config) -> Config:
    """The config with the metric that duplicates are found by. Raises DarkroomError where these name what is not there."""
    duplicates = config.duplicates
    for name in duplicates.of:
        if name not in (*STAGES, SOURCES, PROMPTS):
            known = ", ".join((*STAGES, SOURCES, PROMPTS))
            raise DarkroomError(f"config: duplicates.of: nothing is called {name}; known here: {known}")
    if "phash" not in duplicates.ways:
        return config
    bits = config.metrics.phash.bits
    if duplicates.bits_apart(bits) > bits // 4:
        raise DarkroomError(
            f"config: duplicates.distance: must be at most {bits // 4} of {bits} bits: hashes of pictures that have nothing in common"
            " differ in little more"
        )
    return config.model_copy(update={"metrics": config.metrics.with_asked("phash")})


def _with_made_rows(config: dict[str, Any], rows: str, roots: Sequence[Path]) -> dict[str, Any]:
    """A config that says how rows are made (`rows.made`), with the file of its own in which this stands instead."""
    given = json.loads(json.dumps(config[rows], default=str))
    fields = given.get("fields")
    for name, values in fields.items() if isinstance(fields, dict) else ():
        if isinstance(values, dict) and isinstance(values.get("file"), str):
            where = f"{rows}.fields.{name}.file"
            values["file"] = os.path.abspath(_find(_expanded(values["file"], where), roots, where, "file"))
    text = yaml.safe_dump(given, allow_unicode=True)
    results = config.get("results") or Config.model_fields["results"].default
    path = Path(
        _expanded(str(results), "results"), *INLINE, f"{rows}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.yaml"
    )
    if not path.exists():
        try:
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise DarkroomError(f"config: results: {path}: {error.strerror or error}") from error
    fields_of = config.get("rows") or {}
    if rows == "edits" and isinstance(fields_of, dict) and isinstance(of_edits := fields_of.get("edits") or {}, dict):
        config = config | {"rows": fields_of | {"edits": {"root": os.path.abspath(roots[0])} | of_edits}}
    return config | {rows: str(path.absolute())}


def _check_alike(config: Config, sections: list[str]) -> None:
    """See that several models agree on what is read of rows once for all of them. Raises DarkroomError."""
    first, *others = sections
    for key in ("seeds", "sources", "turns"):
        for other in others:
            if getattr(config.section(other), key, None) != getattr(config.section(first), key, None):
                raise DarkroomError(f"config: {other}.{key}: must be that of {first}, for they go by the same rows")


def load_extensions(config: dict[str, Any], roots: Sequence[Path]) -> list[str]:
    """Run the files that `extensions` of an unchecked config names, and return where they were found.

    Does nothing where `extensions` is no list of names; the check then says so.
    """
    given = config.get("extensions")
    if not isinstance(given, list) or not all(isinstance(name, str) and name for name in given):
        return []
    found = [
        _find(_expanded(name, f"extensions.{number}"), roots, f"extensions.{number}", "file")
        for number, name in enumerate(given)
    ]
    extensions.load(found)
    return found


def _expanded(name: str, where: str) -> str:
    """`expanded`, before the models check it; where: the key that names it."""
    try:
        return expanded(name)
    except Unusable as error:
        raise DarkroomError(f"config: {where}: {error}") from None


def _check_values(value: dict[Any, Any], where: str) -> None:
    """Refuse what YAML can hold and JSON cannot: keys that are no text, and nan and inf."""
    for key, item in value.items():
        if not isinstance(key, str):
            raise DarkroomError(f"config: unknown key {where}{key}; a key is text")
        if isinstance(item, dict):
            _check_values(item, f"{where}{key}.")
        elif isinstance(item, float) and not math.isfinite(item):
            raise DarkroomError(f"config: {where}{key}: expected a finite number, got {item}")


def used_sections(config: Config) -> dict[str, ModelSource]:
    """Name -> section of each model that a run with this config loads, in the order they run."""
    sections = {stage.section: config.section(stage.section) for stage in used_stages(config)}
    used: dict[str, ModelSource] = {
        name: section
        for name, section in sections.items()
        if isinstance(section, ModelSection) and _loads_model(section)
    }
    metrics = {
        metric_section(name): section
        for name, section in config.metrics.asked.items()
        if isinstance(section, ModelSource) and section.model is not None
    }
    return used | {"judge": config.judge} | metrics


def _loads_model(section: ModelSection) -> bool:
    kind = FAMILIES.get(section.family)  # one that is not there is refused with the others (`_with_families`)
    return kind is not None and kind.loads_model and section.model is not None


def _exists(path: Path) -> bool:
    return os.path.exists(path)


def _same_folder(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _find(name: str, roots: Sequence[Path], where: str, what: str, hint: str = "") -> str:
    """The path of a file or folder (`what`) in the first of the roots that has it; where: the key that names it."""
    found = next((root / name for root in roots if _exists(root / name)), None)
    if found is None:
        raise DarkroomError(f"config: {where}: no such {what}: {name}{hint}")
    if not (found.is_dir() if what == "folder" else found.is_file()):
        raise DarkroomError(f"config: {where}: not a {what}: {name}")
    return str(found)


def _find_rows(named: str | list[str], roots: Sequence[Path], where: str) -> str | list[str]:
    """The file of rows that is named, or all files of a list; each name may be a pattern such as `prompts/*.jsonl`."""
    if isinstance(named, list):
        files: list[str] = []
        for number, name in enumerate(named):
            found = _find_rows(name, roots, f"{where}.{number}")
            files += [found] if isinstance(found, str) else found
        if len(set(files)) < len(files):
            twice = next(file for file in files if files.count(file) > 1)
            raise DarkroomError(f"config: {where}: names {twice} twice")
        return files
    if not glob.has_magic(named) or any(_exists(root / named) for root in roots):
        return _find(named, roots, where, "file")
    for root in roots:
        matches = sorted(glob.glob(named, root_dir=root, recursive=True))  # noqa: PTH207 (it may be absolute)
        if files := [str(root / match) for match in matches if (root / match).is_file()]:
            return files
    raise DarkroomError(f"config: {where}: no file fits the pattern {named}")


def _with_root(fields: RowFields, roots: Sequence[Path], where: str) -> RowFields:
    """The fields of rows with their folder where it was found."""
    if fields.root is None:
        return fields
    return fields.model_copy(update={"root": _find(fields.root, roots, f"{where}.root", "folder")})


def _with_families(config: Config) -> Config:
    """The config with each stage's section as its family has it; refuses what one key alone cannot tell: families and
    options that do not fit their stage or each other."""
    for name in dict.fromkeys(stage.section for stage in stages_for(config, STAGES.values())):
        try:
            section = with_family(config.section(name), name)
        except DarkroomError as error:
            raise DarkroomError(f"config: {error}") from None
        if reason := refusal(section, section.device):
            raise DarkroomError(f"config: {name}.{reason}")
        if getattr(section, "sources", "apart") == "together" and (reason := FAMILIES[section.family].no_joining()):
            raise DarkroomError(f"config: {name}.sources: {reason}")
        config = config.model_copy(update={name: section})
    if reason := judge_refusal(config.judge):
        raise DarkroomError(f"config: judge.{reason}")
    return config


def _in_a_folder_of(model: str, roots: Sequence[Path]) -> bool:
    """Whether a name that could be owner/name starts with a folder that is there: `models/mine` beside `models/`."""
    return any((root / Path(model).parts[0]).is_dir() for root in roots)


def _found(lora: Lora, roots: Sequence[Path], where: str) -> Lora:
    """A LoRA with its file where that was found; one of the hub as it is. Raises DarkroomError where there is none, or several."""
    if lora.file is not None:
        return lora.model_copy(update={"file": _find(lora.file, roots, f"{where}.file", "file")})
    assert lora.model is not None, "one of the two is given"
    if not is_folder_name(lora.model) and not _in_a_folder_of(lora.model, roots):
        return lora
    folder = Path(_find(lora.model, roots, f"{where}.model", "folder", " (a hub model is written owner/name)"))
    try:
        (name,) = lora_files({path.name for path in folder.iterdir() if path.is_file()}, lora.weight_name)[:1]
    except DarkroomError as error:
        raise DarkroomError(f"config: {where}.model: {folder}: {error}") from None
    return lora.model_copy(update={"model": None, "weight_name": None, "file": str(folder / name)})


def lora_files(names: Collection[str], weight_name: str | None) -> list[str]:
    """Of the files of a folder or repository: the weights of a LoRA, then its card, where it has one. Raises DarkroomError."""
    weights = sorted(name for name in names if name.endswith(".safetensors"))
    if weight_name is not None and weight_name not in weights:
        raise DarkroomError(f"has no weights {weight_name}; there are {', '.join(weights) or 'none as safetensors'}")
    if weight_name is None and len(weights) != 1:
        several = f"has several files of weights ({', '.join(weights[:4])}); name one as weight_name"
        raise DarkroomError(several if weights else "has no weights as safetensors, and others are not loaded")
    return [weight_name or weights[0], *(name for name in names if name == "README.md")]


def _with_files(config: Config, roots: Sequence[Path]) -> Config:
    """The config with the files and folders that it names where they were found."""
    if config.prompts is None and config.edits is None:
        raise DarkroomError("config: prompts and edits are both null; name a file of rows under at least one")
    results = next(path for path in (Path(config.results), *Path(config.results).parents) if _exists(path))
    if not results.is_dir():
        raise DarkroomError(f"config: results: not a folder: {results}")
    named = {rows: config.rows_of(rows) for rows in ROWS}
    found: dict[str, Any] = {rows: _find_rows(name, roots, rows) for rows, name in named.items() if name is not None}
    if config.labels is not None:
        found["labels"] = _find(config.labels, roots, "labels", "file")
    if config.duplicates.against:
        against = [
            _find(name, roots, f"duplicates.against.{number}", "folder")
            for number, name in enumerate(config.duplicates.against)
        ]
        if any(_same_folder(path, config.results) for path in against):
            raise DarkroomError("config: duplicates.against: names the results of this run; they are compared anyway")
        found["duplicates"] = config.duplicates.model_copy(update={"against": against})
    if config.container is not None and "://" not in config.container:
        found["container"] = _find(config.container, roots, "container", "file", " (an address has a ://)")
    found["rows"] = config.rows.model_copy(update={"edits": _with_root(config.rows.edits, roots, "rows.edits")})
    found["rows"] = _with_root(found["rows"], roots, "rows")
    config = config.model_copy(update=found)
    for name, section in used_sections(config).items():
        if isinstance(section, ModelSection) and section.local_dir:
            folder = _find(section.local_dir, roots, f"{name}.local_dir", "folder")
            config = config.with_section(name, local_dir=folder)
        elif is_folder_name(section.model_name) or _in_a_folder_of(section.model_name, roots):
            hint = " (a hub model is written owner/name)"
            folder = _find(section.model_name, roots, f"{name}.model", "folder", hint)
            config = config.with_section(name, model=folder)
        if isinstance(section, ModelSection) and section.loras:
            found_loras = [_found(lora, roots, f"{name}.loras.{place}") for place, lora in enumerate(section.loras)]
            config = config.with_section(name, loras=found_loras)
    aesthetic = config.metrics.asked.get("aesthetic")
    if isinstance(aesthetic, Aesthetic):
        if aesthetic.head is None:
            raise DarkroomError(
                "config: metrics.aesthetic.head: must be given: a .safetensors file of the predictor's layers"
            )
        head = _find(aesthetic.head, roots, "metrics.aesthetic.head", "file")
        config = config.with_section("metrics.aesthetic", head=head)
    return config.with_section("judge", rubric=_find_rubric(config.judge.rubric, roots))


def _find_rubric(name: str, roots: Sequence[Path]) -> str:
    """The file of a rubric: one that is named, or one of those that come with Darkroom, by its name alone."""
    shipped = {path.stem: path for path in sorted((home() / "config/rubrics").glob("*.yaml"))}
    if name in shipped and not any(_exists(root / name) for root in roots):
        return str(shipped[name])
    hint = "" if Path(name).suffix else f"; those that come with Darkroom are {', '.join(shipped)}"
    return _find(name, roots, "judge.rubric", "file", hint)
