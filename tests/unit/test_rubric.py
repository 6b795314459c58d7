"""Rubrics: what the judge is asked, what of its reply is believed, and what a rubric file may not hold."""

import json
import re
from pathlib import Path

import pytest
from darkroom.errors import DarkroomError
from darkroom.metrics.base import TAKEN
from darkroom.metrics.rubric import Question, load_rubric
from darkroom.metrics.score import SCORE_COLUMNS
from darkroom.store.shardfile import EDITED_COLUMNS
from darkroom.tables.kind import TABLE_COLUMNS
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

DEFAULT = Path(__file__).resolve().parents[2] / "config/rubrics/default.yaml"
FIELDS = {"rating": {"minimum": 1, "maximum": 10}, "reason": {"max_length": 200}}
ASK = Question("answer", "json", "Rate {prompt}", FIELDS)


def rubric(tmp_path, text):
    path = tmp_path / "rubric.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_rubric(path)


def test_the_default_rubric_makes_the_promised_scores():
    rubric = load_rubric(DEFAULT).catalogue
    assert rubric.score_names("images") == ["p_yes", "prompt_alignment", "visual_quality"]
    assert rubric.score_names("edited") == ["p_followed", "p_preserved", "instruction_followed", "content_preserved"]
    assert {"p_yes_mass", "p_yes_reply", "p_yes_error", "rating_reply", "reason"} <= set(rubric.types("images"))


def test_the_digest_follows_what_is_asked_and_not_how_the_file_is_written(tmp_path):
    text = DEFAULT.read_text()
    same = rubric(tmp_path, "# a comment\n" + text.replace("'Does this", "'Does this")).digest
    assert same == load_rubric(DEFAULT).digest
    for old, new in (("Does this", "Does the"), ("maximum: 10", "maximum: 5"), ("p_yes", "p_shown"), ("200", "100")):
        assert rubric(tmp_path, text.replace(old, new)).digest != same


def test_columns_of_ours_are_all_taken():
    assert set(TABLE_COLUMNS) | set(SCORE_COLUMNS) | set(EDITED_COLUMNS) | {"selected"} <= TAKEN


@given(st.text(max_size=60))
@settings(derandomize=True, deadline=None)
def test_a_prompt_is_put_into_the_question_as_it_is(prompt):
    assert Question("q", "yes_no", 'Shows "{prompt}"? {0} {x}').ask(prompt) == f'Shows "{prompt}"? {{0}} {{x}}'


WHOLE = '{"rating": 7, "reason": "fine"}'


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "reply is not JSON"),
        ("7", "reply is not a JSON object"),
        ("```json\n" + WHOLE + "\n```", "reply is not JSON"),
        (WHOLE[:-1], "reply is not JSON"),
        ("[" * 100_000, "reply is nested too deeply"),
        ('{"rating": 7}', "reply has no text reason"),
        ('{"rating": "7", "reason": "x"}', "reply has no whole number rating"),
        ('{"rating": true, "reason": "x"}', "reply has no whole number rating"),
        ('{"rating": 7.5, "reason": "x"}', "reply has no whole number rating"),
        ('{"rating": NaN, "reason": "x"}', "reply has no whole number rating"),
        ('{"rating": null, "reason": "x"}', "reply has no whole number rating"),
        ('{"rating": 0, "reason": "x"}', "rating is 0, outside 1 to 10"),
        ('{"rating": 11, "reason": "x"}', "rating is 11, outside 1 to 10"),
        ('{"rating": 7, "reason": "\\ud800"}', "half of a surrogate pair"),
        ("\ud800", "reply is not JSON"),
    ],
)
def test_a_reply_that_cannot_be_used_is_a_reason_and_no_number(reply, reason):
    values, error = ASK.parse(reply)
    assert values == {} and reason in error


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    st.text(max_size=40)
    | st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=5),
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["rating", "reason", "x"]), x),
    ).map(json.dumps)
)
def test_values_come_only_from_replies_that_keep_the_schema(reply):
    values, error = ASK.parse(reply)
    assert (values == {}) == (error is not None)
    if values:
        assert 1 <= values["rating"] <= 10 and isinstance(values["reason"], str)


def test_the_schema_lets_through_what_is_parsed_and_nothing_more():
    check = Draft202012Validator(ASK.schema)
    assert check.is_valid(json.loads(WHOLE)) and ASK.parse(WHOLE) == ({"rating": 7, "reason": "fine"}, None)
    for bad in ({}, {"rating": 7}, {"rating": 11, "reason": "x"}, {"rating": 7, "reason": "x", "more": 1}):
        assert not check.is_valid(bad)


@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 200, 256])
def test_the_pattern_of_a_text_allows_exactly_its_lengths(length):
    pattern = Question("q", "json", "{prompt}", {"t": {"max_length": length}}).schema["properties"]["t"]["pattern"]
    assert all(int(number) <= 128 for number in re.findall(r",(\d+)\}", pattern))
    for count in {1, length // 2 or 1, length}:
        assert re.search(pattern, "x" * count) and re.search(pattern, "圆" * count)
    for text in ("", "x" * (length + 1), '"', "\\", "\n", "\x00"):
        assert not re.search(pattern, text)


def question(**fields):
    return json.dumps({"images": [{"name": "q", "type": "yes_no", "text": "{prompt}?"} | fields]})


def scored(**limits):
    return question(type="json", fields={"f": limits})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the sections images and edited"),
        ("5", "expected the sections images and edited"),
        ("- a", "expected the sections images and edited"),
        ("image: []", "expected the sections images and edited"),
        ("images: 5", "expected the sections images and edited"),
        ("images: {a: 1}", "expected the sections images and edited"),
        ("images: [1]", "images: a question has name, type, text"),
        ("images: [", "line 1: not valid YAML"),
        ("images:\n\t- a", "line 2: not valid YAML"),
        ("images: [{? [a] : b}]", "not valid YAML: found unhashable key"),
        ("a\0b", "not valid YAML: unacceptable character"),
        (b"\xff\xfe", "cannot be read"),
        (question(question="x"), "a question has name, type, text"),
        (question(name=None), "question None: its name must be letters, digits and underscores"),
        (question(name="a b"), "question a b: its name must be"),
        (question(type="maybe"), "question q: type must be yes_no or json, got maybe"),
        (question(text="Is it good?"), "question q: text must hold {prompt}"),
        (question(type="json"), "question q: fields go with type json"),
        (question(fields={"f": {"max_length": 5}}), "question q: fields go with type json"),
        (question(type="json", fields=["f"]), "question q: fields go with type json"),
        (question(type="json", fields={"a b": {"max_length": 5}}), "field a b: its name must be"),
        (scored(minimum=1), "field f needs minimum and maximum, or max_length"),
        (scored(minimum="1", maximum="2"), "field f needs minimum and maximum"),
        (scored(minimum=5, maximum=1), "field f: minimum must not exceed maximum"),
        (scored(max_length=0), "max_length is 1 to 10000"),
        (scored(max_length=10**9), "max_length is 1 to 10000"),
        (question(name="prompt"), "column prompt is there already"),
        (question(name="Prompt"), "column Prompt is there already"),
        (question(type="json", fields={"seed": {"minimum": 1, "maximum": 2}}), "column seed is there already"),
        (
            question(type="json", fields={"q_reply": {"max_length": 5}})
            .replace('"q"', '"r"')
            .replace("]}", ', {"name": "q", "type": "yes_no", "text": "{prompt}"}]}'),
            "column q_reply is made by two questions",
        ),
        (
            "images: [{name: a, type: yes_no, text: '{prompt}'}]\nedited: [{name: b, type: json, text: '{prompt}', fields: {a: {max_length: 5}}}]",
            "column a is float for images and text for edited",
        ),
    ],
)
def test_a_wrong_rubric_is_one_line_that_names_file_and_question(tmp_path, text, message):
    with pytest.raises(DarkroomError) as error:
        rubric(tmp_path, text)
    assert str(error.value).startswith(str(tmp_path / "rubric.yaml"))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_rubric_is_one_line(tmp_path):
    with pytest.raises(DarkroomError, match=r"gone\.yaml: cannot be read"):
        load_rubric(tmp_path / "gone.yaml")
