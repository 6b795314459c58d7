"""What is generated from the models: the tables of config/README.md, and the JSON schema for editors.

    PYTHONPATH=scripts python -m darkroom.config.reference                 write config/README.md and config/schema.json
    PYTHONPATH=scripts python -m darkroom.config.reference --schema my.yaml    print the schema, with my.yaml's extensions

A table begins with `<!-- keys: a, b -->` (keys of the top level, those of sections as section.key) or
`<!-- section: a, b -->` (the keys of a section, or of several that have those of the first), or `<!-- select: a -->` (those of `select.a`),
and ends with `<!-- end -->`.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from darkroom.config import home
from darkroom.config.load import load_extensions, read_config_file
from darkroom.config.models import MODEL_NAME, SEVERAL, Config, config_model
from darkroom.config.values import SectionOfNumbers, limits, sections_of, wanted
from darkroom.plan.stages import ROWS

_TABLE = re.compile(r"(<!-- (keys|section|select): ([\w, ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """`text` with the table between each pair of marks replaced by the one that the models give."""
    return _TABLE.sub(lambda mark: mark[1] + _table(mark[2], mark[3].replace(" ", "").split(",")) + mark[4], text)


def schema(model: type[BaseModel] = Config) -> dict[str, Any]:
    """The JSON schema of a config (draft 2020-12)."""
    made = _without_titles(model.model_json_schema())
    for rows in ROWS:  # or what rows are made of (`rows.made`)
        made["properties"][rows]["anyOf"].append({"type": "object", "required": ["template"]})
    for name in SEVERAL:  # one model, or several by their names beside what they share
        one = made["properties"][name]
        keys = made["$defs"][one["$ref"].rpartition("/")[2]]["properties"]
        each = {
            "type": "object",
            "properties": {key: {"$ref": f"{one['$ref']}/properties/{key}"} for key in keys},
            "patternProperties": {
                f"^(?!({'|'.join(keys)})$){MODEL_NAME}$": {"anyOf": [one, {"type": "null"}]},
            },
            "additionalProperties": False,
        }
        made["properties"][name] = {"anyOf": [one, each]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Darkroom configuration"} | made


def schema_text(model: type[BaseModel] = Config) -> str:
    return json.dumps(schema(model), indent=1, ensure_ascii=False) + "\n"


def _without_titles(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_titles(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_titles(item) for key, item in value.items() if not (key == "title" and isinstance(item, str))}


def _table(what: str, names: list[str]) -> str:
    if what == "keys":
        fields = {name: [field] for key in names for name, field in _spelled_out(key, Config.model_fields[key]).items()}
    elif what == "select":
        (selection,) = (sections_of(sections_of(Config)["select"])[name] for name in names)
        numbers = FieldInfo(annotation=float, default=None, description=selection.__doc__)
        fields = {name: [field] for name, field in {"<score>": numbers, **_fields(selection)}.items()}
    else:
        first, *others = [_fields(sections_of(Config)[name]) for name in names]
        fields = {name: [field, *(other[name] for other in others)] for name, field in first.items()}
        for section, other in zip(names[1:], others, strict=True):  # what it has alone
            fields |= {f"{section}.{name}": [field] for name, field in other.items() if name not in first}
    told = _fields(sections_of(Config)["generate"]) if "generate" not in names else {}
    heading = " / ".join(names) if len(names) > 1 and what == "section" else ""
    lines = [f"| key | default{f' ({heading})' if heading else ''} | takes | meaning |", "|---|---|---|---|"]
    first_of: dict[tuple[str, str], str] = {}  # (key, meaning) -> the section that has it first
    for name, same in fields.items():
        meaning = same[0].description or ""
        section, _, key = name.rpartition(".")
        if (before := first_of.setdefault((key, meaning), section)) != section and before:
            meaning = f"As for `{before}`."
        if what == "section" and name in told and told[name].description == meaning:
            meaning = "As for `generate`."
        defaults = list(dict.fromkeys(_shown(field) for field in same))
        lines.append(f"| `{name}` | {' / '.join(defaults)} | {_takes(same[0])} | {meaning} |")
    return "\n".join(lines) + "\n"


def _spelled_out(name: str, field: FieldInfo) -> dict[str, FieldInfo]:
    section = field.annotation
    if not (isinstance(section, type) and issubclass(section, BaseModel)) or issubclass(section, SectionOfNumbers):
        return {name: field}  # that of numbers has a table of its own
    return {f"{name}.{key}": inner for key, inner in _fields(section).items()}


def _fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    found: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        same = isinstance(field.annotation, type) and issubclass(
            section, field.annotation
        )  # has the same keys once more
        found |= {name: field} if same else _spelled_out(name, field)
    return found


def _shown(field: FieldInfo) -> str:
    default = {} if field.default_factory else field.default
    if isinstance(default, bool) or default is None or default in ([], {}):
        return json.dumps(default)
    if isinstance(default, dict):
        return f"`{{{', '.join(f'{key}: {value}' for key, value in default.items())}}}`"
    return f"`[{', '.join(default)}]`" if isinstance(default, list) else f"`{default}`"


def _takes(field: FieldInfo) -> str:
    words = wanted(field.annotation)
    if words.startswith("one of "):
        return ", ".join(
            "null" if word == "null" else f"`{word}`" for word in words.removeprefix("one of ").split(", ")
        )
    kind, null, _ = words.partition(" or null")
    kind = kind.removeprefix("a ").replace("auto or a ", "`auto` or ")
    return f"{kind}{limits(field)}{null}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schema", action="store_true", help="print the JSON schema and write nothing")
    parser.add_argument("configfile", type=Path, nargs="?", help="a config whose extensions the schema is to have")
    arguments = parser.parse_args()
    if arguments.schema:
        if arguments.configfile:
            load_extensions(read_config_file(arguments.configfile), [Path.cwd(), home()])
        print(schema_text(config_model()), end="")
        return
    readme = home() / "config/README.md"
    readme.write_text(with_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")
    (home() / "config/schema.json").write_text(schema_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
