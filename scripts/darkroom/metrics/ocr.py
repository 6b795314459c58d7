"""The text that a picture was asked to show, against the text that is read in it."""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from darkroom.config.metrics import OCR
from darkroom.errors import DarkroomError
from darkroom.jobs.runtime import say
from darkroom.metrics.base import Metric, ScoreColumn, Subject
from darkroom.plan.recipe import Recipe
from darkroom.plan.stages import EDITED, like

if TYPE_CHECKING:
    from PIL.Image import Image

INSTALL = "pip install --no-deps -r envs/onnx.txt"  # its own dependencies name an OpenCV for screens, which breaks that of vLLM
_LONGEST_SIDE = 960  # pixels: larger pictures are reduced to it to find text; it is read in the picture itself
_LONGEST_SHAPE = 100  # times the shorter side: beyond, RapidOCR has no size to find text in
_THREADS = {"intra_op_num_threads": 1, "inter_op_num_threads": 1}  # on more, the last digits need not repeat
# A mark between letters is no quotation mark: an apostrophe, or inches.
_QUOTED = re.compile(r"""“([^”]+)” | „([^“”]+)[“”] | «([^»]+)» | 「([^」]+)」 | (?<!\w)"(?=\S)([^"]+)" | (?<!\w)'(?=\S)(.+?)(?<=\S)'(?!\w) | (?<!\w)\u2018(.+?)\u2019(?!\w)""", re.X)  # fmt: skip
_AWAY = re.compile(r"\s*(please\s+)?(remove|delete|erase)\b", re.I)
_INSTEAD = re.compile(r"\s*,?\s*(to|with|by|into|->|→)(\s+(the|a|new|words?|text|say|read))*\s*", re.I)


class OCRMetric(Metric):
    """`ocr`, how much of the text that was asked for is read in the picture, 0..1; `ocr_exact`, whether all is; `ocr_text`, what is read.

    RapidOCR finds and reads lines of text. Each string that was asked for is compared with the run of whole words that is nearest to it:
    `ocr` is 1 - edits / characters (Levenshtein's distance, over all strings together). Spaces do not count, nor, unless `case` is set,
    capitals; characters are compared as Unicode's NFKC has them. Other text in the picture does not count.
    """

    name = "ocr"
    packages = ("rapidocr-onnxruntime", "onnxruntime", "opencv-python-headless", "numpy", "pillow")

    def __init__(self, section: OCR):
        self.field, self.case, self.all = section.text, section.case, section.all

    def columns(self, kind: str) -> list[ScoreColumn]:
        label = "The text that was asked for, against the text that is read"

        def column(name: str, type_: str, role: str, **limits: Any) -> ScoreColumn:
            return ScoreColumn(name, type_, self.name, role, self.name, label, optional=True, **limits)

        return [
            column("ocr", "float", "score", low=0, high=1, selectable=True),
            column("ocr_exact", "int", "score", low=0, high=1, selectable=True),
            column("ocr_text", "text", "text"),
            column("ocr_error", "text", "error"),
        ]

    def recipe(self, kind: str) -> Recipe:
        recipe = {"metric": self.name, "version": self.version, "text": self.field, "case": self.case, "all": self.all}
        return recipe | ({"fields": [self.field]} if self.field else {})

    def open(self, kind: str) -> "Reader":
        try:
            from rapidocr_onnxruntime import RapidOCR
        except ImportError as error:
            raise DarkroomError(f"metrics.ocr: {error}; install what reads text: {INSTALL}") from error
        read = RapidOCR(det_limit_type="max", det_limit_side_len=_LONGEST_SIDE, **_THREADS)
        return Reader(self, read, like(kind) == EDITED.name)

    def asked(self, subject: Subject, edit: bool) -> list[str]:
        """The strings that a picture is to show, none where it is asked for no text."""
        if self.field is None:
            return quoted(subject.prompt, edit)
        value = json.loads(subject.record["fields"]).get(self.field)
        return [str(one) for one in (value if isinstance(value, list) else [value]) if one is not None]

    def compared(self, asked: Sequence[str], lines: Sequence[str]) -> dict[str, Any]:
        """The scores of lines that were read, where some text is asked for."""
        edits, length = compare(asked, lines, self.case)
        return {"ocr": round(1 - edits / length, 6), "ocr_exact": int(not edits)}


class Reader:
    """Reads pictures; `read` is a RapidOCR."""

    def __init__(self, metric: OCRMetric, read: Any, edit: bool):
        self.metric, self.read, self.edit = metric, read, edit
        self.told = metric.field is None

    def score(self, subjects: list[Subject]) -> list[dict[str, Any]]:
        if not self.told and not any(self.metric.asked(subject, self.edit) for subject in subjects):
            say(f"WARNING: metrics.ocr.text: none of {len(subjects)} rows has text in a field {self.metric.field}")
            self.told = True
        return [self._of(subject) for subject in subjects]

    def _of(self, subject: Subject) -> dict[str, Any]:
        asked = [text for text in self.metric.asked(subject, self.edit) if plain(text, self.metric.case)]
        if not asked and not self.metric.all:
            return {}
        picture = subject.images[-1]
        if max(picture.size) > _LONGEST_SHAPE * min(picture.size):
            return {"ocr_error": f"the picture is too narrow to be read: {picture.width} x {picture.height} pixels"}
        lines = self._lines(picture)
        found = {"ocr_text": "\n".join(lines)}
        if not asked:
            return found
        return found | self.metric.compared(asked, lines)

    def _lines(self, picture: "Image") -> list[str]:
        import numpy as np

        found, _ = self.read(np.asarray(picture)[:, :, ::-1])  # OpenCV has blue first
        return [text for _, text, _ in found or []]


def quoted(prompt: str, edit: bool = False) -> list[str]:
    """What stands in quotation marks in a prompt, without a comma or full stop before the closing mark; nothing where all of it does.

    edit: the prompt is an instruction: of `"A" to "B"` (also with, by, into) B alone is asked for, and nothing where it begins with remove,
    delete or erase.
    """
    found = list(_QUOTED.finditer(prompt))
    if (edit and _AWAY.match(prompt)) or [one.group() for one in found] == [prompt.strip()]:
        return []
    if edit:
        # What follows up to the next string, or to the end.
        ends = [*(other.start() for other in found[1:]), len(prompt)]
        found = [one for one, end in zip(found, ends, strict=False) if not _INSTEAD.fullmatch(prompt, one.end(), end)]
    return [text for one in found if (text := next(filter(None, one.groups())).strip().rstrip(",."))]


def plain(text: str, case: bool) -> str:
    """The text as it is compared."""
    text = unicodedata.normalize("NFKC", text)
    return "".join((text if case else text.casefold()).split())


def compare(asked: Iterable[str], lines: Sequence[str], case: bool) -> tuple[int, int]:
    """(edits, characters): what it takes to make the asked strings of the nearest runs of words of the lines, and how long they are."""
    words = [word for line in lines for run in unicodedata.normalize("NFKC", line).split() for word in _words(run)]
    wanted = [plain(text, case) for text in asked]
    return sum(_distance(text, [plain(word, case) for word in words]) for text in wanted), sum(map(len, wanted))


def _words(text: str) -> list[str]:
    """Where a run may begin or end: letters and digits that belong together, each other character, and each of a script without spaces."""
    return re.findall(r"[^\W_\u2e80-\ua4cf\uac00-\ud7af\uf900-\ufaff]+|.", text)


def _distance(text: str, words: Sequence[str]) -> int:
    """The least Levenshtein distance of `text` to any run of whole words, also to none at all."""
    least = len(text)
    column = list(
        range(len(text) + 1)
    )  # distances of the beginnings of `text` to what was read since some word's beginning
    for word in words:
        column = [min(known, fresh) for known, fresh in zip(column, range(len(text) + 1), strict=True)]
        for letter in word:
            above, column = column, [column[0] + 1]
            for place, wanted in enumerate(text):
                column.append(min(above[place] + (wanted != letter), above[place + 1] + 1, column[place] + 1))
        least = min(least, column[-1])
    return least
