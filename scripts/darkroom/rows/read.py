"""The user's rows in one normal form.

A *row* is one record of the user's files (`darkroom.rows.formats` reads them). `parse_row` turns it into a *normal row*, a JSON
object

    {"id", "items": [{"prompt", "source"?, "more"?, "given"?}], "options": {...}, "row": <the user's own row>, "read"?: [names],
     "models"?: [names]}

with one item per image a sample makes: a prompt (text to image), or an instruction with its source (edits).
`source` and `given` are `{"path": ...}`, `{"sha256", "name"}` (a picture that the row itself held), `{"row", "item", "sample"}`
(an image that this run generates) or `{"edit", "item", "sample"}` (the result of another edit); `given` marks an image that exists
already and is only to be judged. `more` are the further sources of an image that is made of several. `read` names fields of the user's
row that are read under another name than ours. `models` names those of several models that the row goes to, where that is not all; a
reference to an image then has a `model`, too.
"""

import difflib
import json
import os
import re
from collections.abc import Container, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from darkroom.errors import RowError
from darkroom.identity import digest
from darkroom.rows.fields import INTEGERS, PLAIN, Fields
from darkroom.rows.formats import type_name

MAX_PROMPT_CHARACTERS = 20_000
MAX_ITEMS = 1_000
MAX_SIDE = 8192  # pixels
MAX_TOGETHER = 16  # sources of one image
ANY_SEED = -1  # as many tools write a seed that is not given

# Fields that mean something here; all others are the user's own and are carried through to every table.
KNOWN_FIELDS = frozenset(
    "id prompt conversations conversation images edited_images seed width height steps guidance negative_prompt"
    " samples".split()
)
# What references to images of this run have: the id of the row of prompts, or of the edit.
OF_THIS_RUN = ("row", "edit")
_USERS = frozenset(("user", "human", "prompter"))  # roles whose turns are prompts; so is a turn without a role
_PLACEHOLDER = re.compile(r"\s*<image>\s*")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_NAMES_TOLD = 12
_SIGN = re.compile(r"[^\w\s.-]")


class Reading(NamedTuple):
    """How rows are read that do not say it themselves; all but `models` is of rows of edits.

    sources: of `SOURCES`; turns: of `TURNS`. refusal: why no image can be made of several sources, None where it can. samples:
    images of an edit that does not say how many; None: as many as of a prompt. models: the names of the models that make the
    rows' pictures, where the config names several; generators: of those that make images of prompts.
    """

    sources: str = "apart"
    turns: str = "last"
    refusal: str | None = None
    samples: int | None = None
    models: tuple[str, ...] = ()
    generators: tuple[str, ...] = ()

    @property
    def state(self) -> list[Any]:
        """What a plan depends on, as plain JSON."""
        several = [list(self.models), list(self.generators)] if self.models or self.generators else []
        return [*self[:4], *several]

    def is_chain(self, row: Mapping[str, Any]) -> bool:
        """Whether each turn of a row works on the result of the one before. Raises RowError for a slip."""
        return _said(row, "turns", TURNS, self.turns) == "chain"


SOURCES = ("apart", "together")  # an image of each source, or one of all
TURNS = ("last", "chain")  # the last is the instruction, or each is one
APART = Reading()


def parse_row(
    row: dict[str, Any],
    kind: str,
    fields: Fields = PLAIN,
    below: str = "",
    pictures: Container[str] = (),
    reading: Reading = APART,
) -> dict[str, Any]:
    """The normal row (see the module's docstring) of a user's row, without its id.

    Relative paths stay relative (to the folder of the user's rows), so that nothing made from a row depends on where the
    files lie.

    Args:
        row: the user's row.
        kind: "prompts" (text to image, and images to be judged) or "edits".
        fields: which of its fields stands for which of ours.
        below: the folder of the row's file within the folder of all the user's rows.
        pictures: the SHA-256 of pictures that the row itself held.
        reading: of rows of edits that do not say it.

    Raises:
        RowError: the row cannot be used; the message is the reason.
    """
    edits = kind == "edits"
    seen, read = fields.view(row, edits)
    models = _models(row, reading.models) if reading.models else None
    turns, shown, ends = _turns(seen, row, fields)
    options = _options(seen)
    places = _Places(below, pictures, reading.generators if edits else ())
    images = places.images(seen.get("images"), "images") or (places.images(shown, "images") if shown else [])
    if edits:
        given = places.images(seen.get("edited_images"), "edited_images")
        chained = len(turns) > 1 and reading.is_chain(row) and not given
        items = _edit_items(turns[:1] if chained else turns, images, given, row, reading)
    else:
        items = _prompt_items(turns, images)
    if len(items) > MAX_ITEMS:
        raise RowError(f"asks for {len(items)} images a sample; at most {MAX_ITEMS}")
    normal: dict[str, Any] = {"items": items, "options": options, "row": row}
    if read:
        normal["read"] = read
    if models is not None:
        normal["models"] = models
    if edits and chained:
        normal["then"] = turns[1:]
        normal["rows"] = [_cut(row, end) for end in ends[:-1]]
    return normal


def in_turns(normal: dict[str, Any], id_field: str) -> list[dict[str, Any]]:
    """A normal row of edits with its id, or, where its turns are a chain, one for each of them.

    Of these each starts from the results of the one before, sample by sample. The last has the row's id, the others have that
    with #1, #2 and so on: so do their rows, with the conversation up to their turn. id_field: the user's name of the id.
    """
    if "then" not in normal:
        return [normal]
    later, rows = normal.pop("then"), normal.pop("rows")
    name, found = normal["id"], [normal]
    for text in later:
        items = [
            {"prompt": text, "source": {"edit": f"{name}#{len(found)}", "item": item, "sample": None}}
            for item in range(len(normal["items"]))
        ]
        found.append(normal | {"items": items})
    for number, (row, one) in enumerate(zip(rows, found[:-1], strict=True), 1):
        one["id"] = f"{name}#{number}"
        one["row"] = row | ({id_field: one["id"]} if id_field in row else {})
    return found


def _cut(row: dict[str, Any], end: tuple[Any, int] | None) -> dict[str, Any]:
    """The row with its conversation up to a turn; end: the conversation, and the number of its turns."""
    if end is None:
        return row
    return {name: value[: end[1]] if value is end[0] else value for name, value in row.items()}


def row_id(row: dict[str, Any], fields: Fields = PLAIN) -> str | None:
    """The row's own id as text, or None if it has none. Raises RowError if it is neither text nor a whole number."""
    own = fields.value("id", row) if fields.names else row.get("id")
    if own is None or own == "":
        return None
    if isinstance(own, float) and own.is_integer():
        own = int(own)  # as data frames write a column with gaps
    if isinstance(own, bool) or not isinstance(own, str | int):
        raise RowError(f"id: expected text or a whole number, got {type_name(own)}")
    own = str(own)
    if len(own) > 500:
        raise RowError("id: longer than 500 characters")
    return _text(own, "id")


def content_id(row: dict[str, Any], occurrence: int) -> str:
    """The id of a row that has none: a hash of its content and, from the second equal row on, its occurrence number."""
    return digest([row] if occurrence == 0 else [row, occurrence], 20)


def of_this_run(reference: Mapping[str, Any]) -> str | None:
    """Whether a reference is to an image that this run makes of a "row" of prompts or as an "edit"; None: to one of the user's."""
    return next((of for of in OF_THIS_RUN if of in reference), None)


def further_fields(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row that Darkroom does not know, in their order."""
    return {key: value for key, value in row.items() if key not in KNOWN_FIELDS}


def _turns(
    seen: dict[str, Any], row: dict[str, Any], fields: Fields
) -> tuple[list[str], list[Any], list[tuple[Any, int] | None]]:
    """The texts that a user gave, of the conversation or the `prompt`, the images within the conversation's turns, and where
    each text is: (conversation, number of its turns up to that text)."""
    name = next((key for key in ("conversations", "conversation") if seen.get(key) is not None), None)
    images: list[Any] = []
    ends: list[tuple[Any, int] | None]
    if name is None:
        prompt = seen.get("prompt")
        if prompt is None:
            mapped = [*fields.names.get("prompt", ()), *fields.names.get("conversations", ())]
            missing = f"no {' or '.join(mapped)}" if mapped else "neither prompt nor conversations"
            raise RowError(f"has {missing}{_other_fields(row)}")
        if not isinstance(prompt, str):
            raise RowError(f"prompt: expected text, got {type_name(prompt)}")
        texts, ends = [prompt], [None]
    else:
        turns = seen[name]
        if isinstance(turns, dict):
            turns = [turns]
        if not isinstance(turns, list):
            raise RowError(f"{name}: expected a list of turns, got {type_name(turns)}")
        texts, ends, others = [], [], set()
        for number, turn in enumerate(turns, 1):
            content = turn.get("content", turn.get("value")) if isinstance(turn, dict) else turn
            role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
            if role is not None and str(role).lower() not in _USERS:
                others.add(str(role)[:40])
                continue
            if isinstance(content, list):
                content = _joined(content, f"{name}: part {{}} of turn {number}", images)
            if content is None:
                continue
            if not isinstance(content, str):
                raise RowError(f"{name}: the content of turn {number} is {type_name(content)}, not text")
            texts.append(_PLACEHOLDER.sub("\n", content).strip("\n") if "<image>" in content else content)
            ends.append((turns, number))
        if others and not texts:
            raise RowError(f"{name}: no turn is a user's, only {', '.join(sorted(others)[:_NAMES_TOLD])}")
    if not all(text.strip() for text in texts):
        ends = [end for text, end in zip(texts, ends, strict=True) if text.strip()]
    texts = [_text(text, "prompt") for text in texts if text.strip()]
    if not texts:
        raise RowError("the prompt is empty")
    for text in texts:
        if len(text) > MAX_PROMPT_CHARACTERS:
            raise RowError(f"a prompt of {len(text)} characters; at most {MAX_PROMPT_CHARACTERS}")
    return texts, images, ends


def _joined(parts: list[Any], where: str, images: list[Any]) -> str:
    """The text of a turn that is given in parts, as OpenAI's interface takes them; its images go to `images`."""
    texts = []
    for number, part in enumerate(parts, 1):
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str):
            texts.append(part)
        elif kind in ("text", "input_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image_url", "input_image", "image"):
            address = part.get("image_url", part.get("image"))
            images.append(address["url"] if isinstance(address, dict) and "url" in address else address)
        else:
            raise RowError(f"{where.format(number)} is {_show(part)}, neither text nor an image")
    return "\n".join(texts)


def _other_fields(row: dict[str, Any]) -> str:
    """The fields that a row has, for the reason why it is rejected."""
    names = [name for name, value in row.items() if value is not None and name != "id"]
    if not names:
        return ""
    told = ", ".join(name[:40] for name in names[:_NAMES_TOLD]) + (", ..." if len(names) > _NAMES_TOLD else "")
    columns = ""
    if len(names) == 1 and _SIGN.search(names[0]):
        columns = ", or, where these are several columns, what stands between them (`rows.delimiter`)"
    return f"; it has {told}: say under `rows` in the config which field is which{columns}"


def _text(text: str, name: str) -> str:
    if "\0" in text:
        raise RowError(f"{name}: holds a NUL character")
    return text


def _options(row: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, (least, greatest) in INTEGERS.items():
        value = row.get(name)
        if value is None:
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if name == "seed" and value == ANY_SEED:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= greatest:
            raise RowError(f"{name}: expected a whole number from {least} to {greatest}, got {_show(value)}")
        options[name] = value
    guidance = row.get("guidance")
    if guidance is not None:
        if isinstance(guidance, bool) or not isinstance(guidance, int | float) or not 0 <= guidance <= 100:
            raise RowError(f"guidance: expected a number from 0 to 100, got {_show(guidance)}")
        options["guidance"] = float(guidance)
    negative = row.get("negative_prompt")
    if negative is not None:
        if not isinstance(negative, str) or len(negative) > MAX_PROMPT_CHARACTERS:
            raise RowError(f"negative_prompt: expected text of at most {MAX_PROMPT_CHARACTERS} characters")
        if negative.strip():
            options["negative_prompt"] = _text(negative, "negative_prompt")
    return options


class _Places(NamedTuple):
    """Where the images of a row are. below and pictures: as in `parse_row`; generators: as in `Reading`."""

    below: str
    pictures: Container[str]
    generators: tuple[str, ...] = ()

    def images(self, value: Any, name: str) -> list[dict[str, Any]]:
        if value is None:
            return []
        entries = value if isinstance(value, list) else [value]
        return [self._image(entry, name) for entry in entries if entry not in ("", None)]

    def _image(self, entry: Any, name: str) -> dict[str, Any]:
        if isinstance(entry, str):
            return {"path": self._path(entry, name)}
        if of := next((k for k in OF_THIS_RUN if isinstance(entry, dict) and entry.get(k) not in (None, "")), None):
            said = {
                key: value for key, value in entry.items() if value not in (None, "")
            }  # in Parquet all have all fields
            several = of == "row" and bool(self.generators)
            if unknown := sorted(said.keys() - {of, "item", "sample", *(["model"] if several else [])}):
                raise RowError(f"{name}: unknown field {_show(unknown[0])} beside {of}, item and sample")
            reference: dict[str, Any] = {of: str(entry[of])}
            if several:
                reference["model"] = _known_model(said.get("model"), f"{name}: model", self.generators)
            for part in ("item", "sample"):
                number = said.get(part, 0)
                if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                    raise RowError(f"{name}: {part} must be a whole number from 0, got {_show(number)}")
                reference[part] = number
            return reference
        if isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and entry["sha256"] in self.pictures:
            path = entry.get("path")
            shown = PurePosixPath(path).name if isinstance(path, str) else ""
            return {"sha256": entry["sha256"], "name": shown or f"in the row ({entry['sha256'][:12]})"}
        if isinstance(entry, dict) and entry.keys() <= {"bytes", "path"} and isinstance(entry.get("path"), str):
            return {"path": self._path(entry["path"], name)}  # as `datasets` writes a file that it did not embed
        wanted = 'file names or {"row" or "edit": id, "sample": number}'
        raise RowError(f"{name}: expected {wanted}, got {_show(entry)}")

    def _path(self, entry: str, name: str) -> str:
        if entry[:5].lower() == "data:":
            raise RowError(f"{name}: {_show(entry[:40])} is no picture in base64")
        if address := _ADDRESS.match(entry):
            if address[1].lower() != "file":
                raise RowError(
                    f"{name}: {_show(entry)} is an address, and nothing is fetched: bring the pictures first, with"
                    " img2dataset for example, and name the files"
                )
            entry = unquote(urlsplit(entry).path)
        if not entry.strip() or "\0" in entry:
            raise RowError(f"{name}: {_show(entry)} is not a file name")
        if os.path.isabs(entry):
            return entry
        inside = os.path.normpath(entry)
        if PurePosixPath(inside).parts[:1] == (os.pardir,):
            raise RowError(
                f"{name}: {_show(entry)} leads out of the rows' folder; give it as an absolute path, or name the folder"
                " that it starts from as rows.root"
            )
        if inside == os.curdir:
            raise RowError(f"{name}: {_show(entry)} is not a file name")
        return os.path.normpath(os.path.join(self.below, inside)) if self.below else inside


def _prompt_items(turns: list[str], images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every turn is an image of its own; images that are there already are judged by their turn, or by the last."""
    if not images:
        return [{"prompt": text} for text in turns]
    for image in images:
        if of_this_run(image):
            raise RowError("images: a row of prompts names files; images of this run belong into the edits file")
    texts = turns if len(turns) == len(images) else [turns[-1]] * len(images)
    return [{"prompt": text, "given": image} for text, image in zip(texts, images, strict=True)]


def _edit_items(
    turns: list[str],
    images: list[dict[str, Any]],
    edited: list[dict[str, Any]],
    row: dict[str, Any],
    reading: Reading,
) -> list[dict[str, Any]]:
    """The last turn is the instruction; every source is edited by it, or all of them together, unless its result is there already."""
    if not images:
        raise RowError(f"images: an edit needs a source image{_other_fields(row)}")
    items: list[dict[str, Any]]
    if _said(row, "sources", SOURCES, reading.sources) == "together" and len(images) > 1:
        if reading.refusal is not None and not edited:
            raise RowError(f"sources: {reading.refusal}")
        if len(images) > MAX_TOGETHER:
            raise RowError(f"images: {len(images)} sources together; at most {MAX_TOGETHER}")
        items = [{"prompt": turns[-1], "source": images[0], "more": images[1:]}]
    else:
        items = [{"prompt": turns[-1], "source": image} for image in images]
    if edited:
        if len(edited) != len(items):
            results = f"{len(items)} results" if len(items) < len(images) else f"{len(images)} source images"
            raise RowError(f"edited_images: {len(edited)} for {results}; give one each, or none")
        for item, image in zip(items, edited, strict=True):
            if of_this_run(image):
                raise RowError("edited_images: expected file names")
            item["given"] = image
    return items


def _models(row: Mapping[str, Any], known: tuple[str, ...]) -> list[str] | None:
    """Which of several models a row names in its `models`, in the order of the config; None: all. Raises RowError."""
    value = row.get("models")
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, list | None):
        raise RowError(f"models: expected a list of names, got {type_name(value)}")
    wanted = {_known_model(name, "models", known) for name in value or () if name not in ("", None)}
    return [name for name in known if name in wanted] if wanted else None


def _known_model(name: Any, where: str, known: tuple[str, ...]) -> str:
    if name is None:
        raise RowError(f'{where}: must say which of several models, as in "model": {_show(known[0])}')
    if not isinstance(name, str) or name not in known:
        # Without the list of all, which would make the shard another one with each model that the config has more.
        near = difflib.get_close_matches(str(name).strip().lower(), known, n=1)
        raise RowError(f"{where}: the config names no {_show(name)}" + (f"; did you mean {near[0]}?" if near else ""))
    return name


def _said(row: Mapping[str, Any], name: str, words: tuple[str, ...], otherwise: str) -> str:
    """What a row says in a field that has one of these words; any other content is the user's own. Raises RowError for a slip."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        return otherwise
    if value in words:
        return value
    if near := difflib.get_close_matches(value.strip().lower(), words, n=1, cutoff=0.8):
        raise RowError(f"{name}: {_show(value)}; did you mean {near[0]}?")
    return otherwise


def references_of(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The images that an item of a normal row names."""
    found = sources_of(item)
    if "given" in item:
        found.append(item["given"])
    return found


def sources_of(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of them that it starts from."""
    if "source" not in item:
        return []
    return [item["source"], *item["more"]] if "more" in item else [item["source"]]


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
