"""Which text a picture is asked for, and how what was read is compared with it."""

import sys
from dataclasses import replace

import pytest
from darkroom.config.metrics import OCR
from darkroom.errors import DarkroomError
from darkroom.metrics.base import Subject
from darkroom.metrics.ocr import OCRMetric, compare, quoted
from metric_contract import image_record


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ('a sign that says "OPEN"', ["OPEN"]),
        ("a sign that says 'DON'T WALK', at dawn", ["DON'T WALK"]),
        ("a shop “Chez Léa,” and «Fermé» and „Zu“ and 「開店」", ["Chez Léa", "Fermé", "Zu", "開店"]),
        ("a \u2018Sale\u2019 poster, it's the dog's", ["Sale"]),
        ("""a 5" screen and a 7" tablet, the dogs' bowl and the cat's""", []),
        ("a red circle", []),
        ('"a red circle on a table" ', []),  # as some files have every prompt
        ('an empty "" and " " sign', []),
    ],
)
def test_the_text_asked_for_stands_in_quotation_marks(prompt, asked):
    assert quoted(prompt) == asked


@pytest.mark.parametrize(
    ("instruction", "asked"),
    [
        ('change "OPEN" to "CLOSED"', ["CLOSED"]),
        ("replace the words 'Old Town' with 'New Town', and add \"2026\"", ["New Town", "2026"]),
        ('Remove the text "SALE"', []),
        ('write "to" and "fro" on it', ["to", "fro"]),
    ],
)
def test_an_edit_asks_for_the_text_that_takes_the_place_of_another(instruction, asked):
    assert quoted(instruction, edit=True) == asked


@pytest.mark.parametrize(
    ("asked", "read", "edits"),
    [
        (["Open"], ["OPEN"], 0),
        (["Hello world"], ["Helloworld"], 0),
        (["Hello world"], ["12%", "Hello", "world!", "more"], 0),  # over two lines, among other text
        (["OPEN"], ["REOPENED"], 4),  # a part of a word is not the word: nothing is nearer
        (["OPEN"], ["OPFN"], 1),
        (["OPEN", "24 h"], ["24h", "open"], 0),  # in any order
        (["OPEN", "24 h"], ["OPEN"], 3),
        (["开门"], ["欢迎开门营业"], 0),
        (["OPEN"], [], 4),
        (["½ price"], ["1/2 price"], 1),
    ],
)
def test_the_text_read_is_compared_by_words(asked, read, edits):
    found, length = compare(asked, read, case=False)
    assert found == edits and length >= found
    if asked == ["Open"]:
        assert compare(asked, read, case=True)[0] == 3


def test_a_field_that_is_read_is_part_of_the_key():
    record = image_record("images", 0)
    other = record | {"fields": '{"text": "OPEN"}'}
    plain, field = (OCRMetric(OCR(text=name)) for name in (None, "text"))
    plain_key, key = (metric.parts("images")[0].keys() for metric in (plain, field))
    assert plain_key(record) == plain_key(other)
    assert key(record) != key(other)
    assert key(other) == key(record | {"fields": '{"text": "OPEN", "note": "x"}'})
    subject = Subject("0" * 32, 'a "SIGN"', [], {"fields": '{"text": ["OPEN", 24, null]}'})
    assert field.asked(subject, edit=False) == ["OPEN", "24"]
    assert field.asked(replace(subject, record={"fields": "{}"}), edit=False) == []


def test_where_nothing_reads_text_the_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)  # as Python does where it is not installed
    with pytest.raises(
        DarkroomError, match=r"metrics.ocr: .*rapidocr_onnxruntime.*pip install --no-deps -r envs/onnx.txt"
    ):
        OCRMetric(OCR()).open("images")
