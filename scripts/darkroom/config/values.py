"""What the models of the config share: how they read a value, and how they word the line that refuses one.

Snakemake passes values from its command line as text: `--config 'generate={steps: 40}'` gives "40". So text is read as YAML
wherever a key wants no text.
"""

import difflib
import os
import re
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WrapValidator, model_validator
from pydantic.fields import FieldInfo

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
_PATTERNS = {NAME: "may hold letters, digits, . _ and -, at most 96 characters"}
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}
_SCALARS = (bool, int, float, type(None))


def _as_given(value: Any, check: Any) -> Any:
    check(value)
    return value


# A number that stays as it was written: 2 and 2.0 are two recipes, so pydantic must not turn one into the other.
AS_GIVEN = WrapValidator(_as_given)
Number = Annotated[float, AS_GIVEN]


class Refused(ValueError):
    """What a validator of a section raises about keys that do not go together: "key: why"."""


class Unusable(ValueError):
    """What a validator of one value raises where its words already say what was given."""


def expanded(path: str) -> str:
    """A path that the config names, with `~` and `~user` at its start, `$NAME` and `${NAME}` replaced.

    Raises Unusable, in one line, where there is no such variable, an empty one, or no such user.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if not os.environ.get(name):
            raise Unusable(f"{path}: the variable {name} is not set; set it, or write the folder's name out")
        return os.environ[name]

    if path.startswith("~"):
        user, slash, rest = path.partition("/")
        try:
            path = f"{Path(user).expanduser()}{slash}{rest}"
        except RuntimeError:
            raise Unusable(f"{path}: there is no user {user[1:]}; a folder of this name is written ./{user}") from None
    return re.sub(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", value, path)


# A file or folder that the config names. Every key that names one is of this type, those of extensions too.
PathText = Annotated[str, Field(min_length=1), AfterValidator(expanded)]


class Section(BaseModel):
    """A section of the config. It refuses unknown keys and wrong types; sections of extensions are subclasses, too."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        read = {key: read_value(value, _annotation(cls, key)) for key, value in given.items()}
        # A section that is left out is checked like an empty one: an extension's may have keys without a default.
        return {key: {} for key in sections_of(cls) if key not in read} | read


class SectionOfNumbers(Section):
    """A section that takes numbers under any other key."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Number] = Field(init=False)

    @property
    def numbers(self) -> dict[str, float]:
        """These, in the user's order."""
        return dict(self.__pydantic_extra__)


def sections_of(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The keys of a model that are sections themselves, and their models."""
    wanted = {name: field.annotation for name, field in model.model_fields.items()}
    return {name: one for name, one in wanted.items() if isinstance(one, type) and issubclass(one, BaseModel)}


def kinds(annotation: Any) -> tuple[list[Any], bool]:
    """The types that a value may have, without None, and whether it may be null."""
    if get_origin(annotation) is Annotated:
        return kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        every = [kinds(part) for part in get_args(annotation)]
        return [kind for found, _ in every for kind in found], any(null for _, null in every)
    return ([], True) if annotation in (None, type(None)) else ([annotation], False)


def read_value(value: Any, annotation: Any) -> Any:
    """`value` as its key wants it: text read as YAML where the key wants no text, 512.0 as 512 where it wants whole numbers.

    A value that does not fit comes back as it is, for pydantic to refuse.
    """
    found, null = kinds(annotation)
    if isinstance(value, dict):
        inner = _item_annotation(found, dict)
        return value if inner is None else {key: read_value(item, inner) for key, item in value.items()}
    if isinstance(value, list):
        inner = _item_annotation(found, list)
        return value if inner is None else [read_value(item, inner) for item in value]
    if isinstance(value, str):
        value = _scalar(value, found, null)
    if isinstance(value, float) and value.is_integer() and int in found and float not in found:
        return int(value)
    if value is None and not null and any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in found):
        return {}  # `generate:` with nothing under it is an empty section
    return value


def _item_annotation(found: list[Any], origin: type) -> Any:
    """The annotation of the items of a list or dict (`origin`); None where a model reads them, or none is wanted."""
    if Any in found:
        return Any
    return next((get_args(kind)[-1] for kind in found if get_origin(kind) is origin), None)


def _scalar(text: str, found: list[Any], null: bool) -> Any:
    """`text` read as YAML, if that gives a value of a kind the key wants and the key does not want the text itself."""
    words = [str(word) for kind in found if get_origin(kind) is Literal for word in get_args(kind)]
    if text in words:
        return text
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    if value is None:
        return None if null or Any in found else text
    if str in found or type(value) not in _SCALARS:
        return text
    whole = isinstance(value, float) and value.is_integer() and int in found
    fits = type(value) in found or Any in found or whole or (type(value) is int and float in found)
    return value if fits else text


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line about the first thing that is wrong: an unknown key, else the error at the highest level."""
    found = error.errors(include_url=False)
    own = (Refused, Unusable)
    first = min(
        found,
        key=lambda one: (
            one["type"] != "extra_forbidden",
            not isinstance(one.get("ctx", {}).get("error"), own),
            len(one["loc"]),
        ),
    )
    if first["type"] == "extra_forbidden":
        unknown_keys = [one["loc"] for one in found if one["type"] == "extra_forbidden"]
        *above, unknown = min(unknown_keys, key=lambda loc: (len(loc), [str(part) for part in loc]))
        return _unknown_key(_place(model, above)[0], ".".join(map(str, above)), str(unknown))
    annotation, loc = _place(model, first["loc"])
    where = ".".join(map(str, loc))
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, Refused):
        return f"{where}.{raised}" if where else str(raised)
    if first["type"] == "missing":
        return f"{where}: must be given"
    if isinstance(raised, Unusable) or (raised is not None and isinstance(first["input"], dict | BaseModel)):
        return f"{where}: {raised}"
    got = "null" if first["input"] is None else repr(first["input"])
    got = got if len(got) <= 60 else got[:57] + "..."
    return f"{where}: {_expected(first, annotation)}, got {got}"


def _expected(error: Any, annotation: Any) -> str:
    context = error.get("ctx", {})
    limits = {"greater_than_equal": ("at least", "ge"), "less_than_equal": ("at most", "le")}
    limits |= {"greater_than": ("above", "gt"), "less_than": ("below", "lt")}
    if error["type"] in limits:
        words, key = limits[error["type"]]
        return f"must be {words} {number(context[key])}"
    if error["type"] == "string_pattern_mismatch":
        return _PATTERNS.get(context["pattern"], f"must match {context['pattern']}")
    if error["type"] == "string_too_short" and context["min_length"] == 1:
        return "must not be empty"
    if error["type"] == "finite_number":
        return "expected a finite number"
    if error["type"] == "literal_error" or error["type"].endswith("_type"):
        return "expected " + wanted(annotation)
    return str(context.get("error", error["msg"]))


def _unknown_key(model: type[BaseModel], where: str, unknown: str) -> str:
    known = sorted(model.model_fields)
    name = f"{where}.{unknown}" if where else unknown
    near = difflib.get_close_matches(unknown, known, n=1)
    brought = "; another is brought by a file that is named under `extensions`" if where == "metrics" else ""
    return f"unknown key {name}; " + (
        f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}{brought}"
    )


def _annotation(model: type[BaseModel], key: Any) -> Any:
    field = model.model_fields.get(key)
    if field is None:
        return float if issubclass(model, SectionOfNumbers) else Any
    return field.annotation


def _place(model: type[BaseModel], loc: Iterable[int | str]) -> tuple[Any, list[int | str]]:
    """(annotation, place) of the value that an error is about: `loc` without the parts of a union, which pydantic adds."""
    annotation: Any = model
    place: list[int | str] = []
    for part in loc:
        found, _ = kinds(annotation)
        if len(found) != 1:
            break
        (kind,) = found
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            annotation = _annotation(kind, part)
        elif get_origin(kind) in (dict, list):
            annotation = get_args(kind)[-1]
        else:
            break
        place.append(part)
    return annotation, place


def wanted(annotation: Any) -> str:
    """What a key takes, in words: "a whole number or null", "one of auto, cuda, cpu", "auto or a whole number"."""
    found, null = kinds(annotation)
    words = [str(word) for kind in found if get_origin(kind) is Literal for word in get_args(kind)]
    names = [_NAMES.get(get_origin(kind) or kind, "a section") for kind in found if get_origin(kind) is not Literal]
    if words and not names:
        return "one of " + ", ".join((["null"] if null else []) + words)
    return " or ".join(words + names + (["null"] if null else []))


def limits(field: FieldInfo) -> str:
    """The limits of a number, in words: " from 1 to 64", " above 0 to 1"."""
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    said = [*field.metadata, *_said_of_parts(field.annotation)]
    found = {name: getattr(one, name) for name in words for one in said if hasattr(one, name)}
    return "".join(f" {words[name]} {number(limit)}" for name, limit in found.items())


def _said_of_parts(annotation: Any) -> list[Any]:
    """What is said of the parts of a union, such as the limits of a number that may be a word instead."""
    fields = (one for part in get_args(annotation) if get_origin(part) is Annotated for one in get_args(part)[1:])
    return [one for field in fields if isinstance(field, FieldInfo) for one in field.metadata]


def number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)
