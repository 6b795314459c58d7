"""Which field of a user's row stands for which of ours: what `rows` of the config says, and presets for known data sets."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_COLUMNS_KEPT = 10_000  # whose order is known; further ones follow in that of the alphabet
_NAMES_KEPT = 200  # the same of the objects in one place; a job on a node reads them all
_OBJECTS_KEPT = 200  # places of objects whose order is known
_NESTED = (dict, list)
INTEGERS = {
    "seed": (0, 2**53 - 1),
    "width": (16, 8192),
    "height": (16, 8192),
    "steps": (1, 1000),
    "samples": (1, 1000),
}
# The fields that mean something here, and that `rows` of the config can map.
NAMES = tuple(
    "id prompt conversations images edited_images seed width height steps guidance negative_prompt samples".split()
)
_CONVERSATIONS = ("conversations", "conversation", "messages")
# Spellings of others that are read where ours is not there, ours by theirs.
_ALIASES = {
    "messages": "conversations",
    "body": "conversations",
    "image": "images",
    "darkroom_prompt": "prompt",  # in exports of rows that have a `Prompt` beside
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
}

# Preset -> what `rows` of the config would say. Those without names are read as they are.
PRESETS: dict[str, dict[str, Any]] = {
    "dataflow": {"root": "."},
    "llava": {"conversations": "conversations", "images": ["image", "images"]},
    "sharegpt": {"conversations": ["conversations", "messages"], "images": ["images", "image"]},
    "openai": {"conversations": ["messages", "body.messages"], "id": ["custom_id", "id"]},
    "pico-banana": {"prompt": "text", "images": ["local_input_image", "open_image_input_url"]},
    "magicbrush": {"prompt": "instruction", "images": "source_img"},
    "instructpix2pix": {"prompt": "edit_prompt", "images": "original_image"},
    "diffusiondb": {"steps": "step", "guidance": "cfg"},
    "partiprompts": {"prompt": "Prompt"},
    "geneval": {},
}


@dataclass(frozen=True)
class Fields:
    """The fields of one file of rows.

    names: ours -> the user's, of which the first that a row has counts; ours that are not in it are read under their own name.
    root: the folder that relative file names start from; None: the folder of the rows.
    encoding: of a text file, as Python calls it, and delimiter: of a CSV; None: as the file itself tells.
    """

    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    root: str | None = None
    encoding: str | None = None
    delimiter: str | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None, rows: str) -> "Fields":
        """What the section `rows` of the config says for a file of rows, "prompts" or "edits"."""
        given = {key: value for key, value in (settings or {}).items() if key != "edits"}
        own = (settings or {}).get("edits") if rows == "edits" else None
        said: dict[str, Any] = {}
        for section in (given, own or {}):
            if section.get("preset"):
                said |= PRESETS[section["preset"]]
            said |= {key: value for key, value in section.items() if key != "preset" and value is not None}
        names = {ours: said[ours] for ours in NAMES if ours in said}
        named = {k: (v,) if isinstance(v, str) else tuple(v) for k, v in names.items()}
        return cls(named, said.get("root"), said.get("encoding"), said.get("delimiter"))

    def ours(self, name: str) -> str:
        """Our name of the user's field `name`, or that name itself."""
        for ours, names in self.names.items():
            if name in names:
                return ours
        return name if name in self.names else _ALIASES.get(name, name)

    def known(self) -> set[str]:
        """The names of fields that are read."""
        found = {name for name in (*NAMES, *_CONVERSATIONS, *_ALIASES) if name not in self.names}
        return found | {name for names in self.names.values() for name in names}

    def value(self, ours: str, row: Mapping[str, Any]) -> Any:
        """The row's value for one of our fields."""
        found = (_value(row, name) for name in self.names.get(ours, (ours,)))
        return next((value for value in found if value is not None), None)

    def user_name(self, ours: str, row: Mapping[str, Any]) -> str:
        """The field of a row that stands for ours, or that would."""
        names = self.names.get(ours, ())
        return next((name for name in names if name in row), names[0] if names else ours)

    def view(self, row: dict[str, Any], edits: bool) -> tuple[dict[str, Any], list[str]]:
        """The row under our names, and the user's names of what is read under another one."""
        if not self.names and _ALIASES.keys().isdisjoint(row):
            return row, []
        seen, used = dict(row), []
        for ours, names in self.names.items():
            name = next((name for name in names if _value(row, name) is not None), None)
            seen[ours] = None if name is None else _value(row, name)
            used += [] if name is None else [name if name in row else name.partition(".")[0]]
        if "prompt" in self.names and "conversations" not in self.names:
            seen |= dict.fromkeys(_CONVERSATIONS)  # the prompt is where the config says
        else:
            used += self._conversation(row, seen)
        for name in ("num_inference_steps", "guidance_scale", "darkroom_prompt"):
            if seen.get(_ALIASES[name]) is None and _ALIASES[name] not in self.names:
                seen[_ALIASES[name]] = row.get(name)
        # A single `image` is the source of an edit, or what a conversation is about; else a field of the user's own.
        talks = any(seen.get(name) is not None for name in _CONVERSATIONS)
        if (edits or talks) and "images" not in self.names and "image" in row and _is_empty(seen.get("images")):
            seen["images"] = row["image"]
            used.append("image")
        return seen, [name for name in dict.fromkeys(used) if name not in NAMES]

    def _conversation(self, row: dict[str, Any], seen: dict[str, Any]) -> list[str]:
        """Set the conversation of a row that has neither prompt nor conversation under our names."""
        if any(seen.get(name) is not None for name in ("prompt", "conversations", "conversation")):
            return []
        if row.get("messages") is not None:
            seen["conversations"] = row["messages"]
            return ["messages"]
        if (found := _value(row, "body.messages")) is not None:
            seen["conversations"] = found
            return ["body"]
        return []


class NameOrder:
    """The order of the names of fields: those of rows, and of the objects within them.

    names: where an object stands ("" is the row, "a/b" the field b of its field a, in a list or not) -> its names in order.
    """

    def __init__(self, names: dict[str, list[str]] | None = None):
        self.names = names or {}
        self._places = {where: {name: n for n, name in enumerate(known)} for where, known in self.names.items()}

    def add(self, value: Any, where: str = "") -> None:
        """Learn from a row, or from an object or a list within one."""
        if type(value) is list:
            for item in value:
                if type(item) in _NESTED:
                    self.add(item, where)
            return
        known = self._places.get(where)
        if known is None:
            if len(self._places) == _OBJECTS_KEPT:
                return
            known = self._places[where] = {}
        if not value.keys() <= known.keys() and len(known) < (_NAMES_KEPT if where else _COLUMNS_KEPT):
            merge_names(self.names.setdefault(where, []), value)
            known |= {name: n for n, name in enumerate(self.names[where])}
        for name, item in value.items():
            if type(item) in _NESTED:
                self.add(item, f"{where}/{name}" if where else name)

    def ordered(self, value: Any, where: str = "") -> Any:
        """A row, or a value within one, with its names in this order; those that are not known are the last."""
        if isinstance(value, dict):
            places = self._places.get(where, {})
            names = sorted(value, key=lambda name: places.get(name, len(places)))
            return {name: self.ordered(value[name], f"{where}/{name}" if where else name) for name in names}
        return [self.ordered(item, where) for item in value] if isinstance(value, list) else value


def merge_names(order: list[str], names: Iterable[str]) -> None:
    """Put names that are not in `order` where they stand among those that are; without any of those, at the end."""
    waiting: list[str] = []
    at = len(order)
    for name in names:
        if name in order:
            at = order.index(name)
            order[at:at] = waiting
            at += len(waiting) + 1
            waiting = []
        else:
            waiting.append(name)
    order[at:at] = waiting


def _value(row: Mapping[str, Any], name: str) -> Any:
    """The value of a field; "a.b" is the field b of the object a, where no field has that very name."""
    if name in row or "." not in name:
        return row.get(name)
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _is_empty(value: Any) -> bool:
    return value in (None, "") or (isinstance(value, list) and all(item in (None, "") for item in value))


PLAIN = Fields()
