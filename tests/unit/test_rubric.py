"""Rubrics: what the judge is asked, what of its reply is believed, and what a rubric file may not hold."""

import json
import re
from pathlib import Path

import pytest
from darkroom.config.models import Judge
from darkroom.errors import DarkroomError
from darkroom.metrics.base import TAKEN
from darkroom.metrics.judge import JudgeMetric
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


RUBRICS = DEFAULT.parent


def test_the_rubrics_that_come_with_darkroom_load_and_name_their_source():
    names = {path.stem for path in RUBRICS.iterdir()}
    assert names == set("default soft-tifa viescore edit pico-banana safety defects text-in-image shapes".split())
    for name in names:
        loaded = load_rubric(RUBRICS / f"{name}.yaml")
        assert any(loaded.catalogue.scores(kind) for kind in loaded.questions), name
        text = (RUBRICS / f"{name}.yaml").read_text()
        assert name in ("default", "shapes") or ("https://" in text and "arXiv" in text), name
        for question in (
            question for asked in loaded.questions.values() for question in asked if question.type == "json"
        ):
            texts = ["max_length" in limits for limits in question.fields.values()]
            assert name == "shapes" or (texts[0] and not any(texts[1:])), (
                "a reason comes before the numbers it explains"
            )


def recipes(rubric):
    metric = JudgeMetric(Judge(model="./model"), rubric)
    return {kind: metric.recipe(kind) for kind in ("images", "edited")} | {
        (kind, part.name): part.recipe for kind in ("images", "edited") for part in metric.parts(kind)
    }


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("'Does this", "# a comment\n      'Does this", set()),
        ("Does this", "Does the", {"images", ("images", "p_yes")}),
        ("visual_quality: {minimum: 1, maximum: 10}", "visual_quality: {minimum: 1, maximum: 5}", {"images", ("images", "rating")}),
        ("p_preserved", "p_kept", {"edited", ("edited", "p_kept")}),
        ("content_preserved: {minimum: 1, maximum: 10}\n", "content_preserved: {minimum: 1, maximum: 9}\n", {"edited", ("edited", "rating")}),
    ],
)  # fmt: skip
def test_a_changed_question_changes_itself_alone_and_the_recipe_of_its_kind(tmp_path, old, new, changed):
    text = DEFAULT.read_text()
    assert old in text
    before, after = recipes(load_rubric(DEFAULT)), recipes(rubric(tmp_path, text.replace(old, new)))
    assert {name for name, recipe in after.items() if recipe != before.get(name)} == changed


def test_the_order_of_the_fields_counts_and_how_replies_are_written_where_they_are(tmp_path):
    """A reason that comes first is another question; what is read from the first word does not depend on a temperature."""
    text = question(type="json", fields={"a": {"max_length": 5}, "b": {"minimum": 1, "maximum": 5}})
    other = question(type="json", fields={"b": {"minimum": 1, "maximum": 5}, "a": {"max_length": 5}})
    assert recipes(rubric(tmp_path, text))["images"] != recipes(rubric(tmp_path, other))["images"]
    loaded = load_rubric(DEFAULT)
    one, other = (JudgeMetric(Judge(model="./m", temperature=t, max_tokens=99), loaded).parts("images") for t in (0, 1))
    assert [a.name for a, b in zip(one, other, strict=True) if a.identity != b.identity] == ["rating"]


def test_a_repeated_question_needs_a_temperature(tmp_path):
    asked = question(type="json", repeat=2, fields={"a": {"minimum": 1, "maximum": 5}})
    loaded = rubric(tmp_path, asked)
    with pytest.raises(DarkroomError, match=r"images: question q: repeat changes nothing at judge.temperature 0"):
        JudgeMetric(Judge(model="./m"), loaded)
    columns = JudgeMetric(Judge(model="./m", temperature=1), loaded).columns("images")
    assert [(c.name, c.type, c.selectable) for c in columns[:2]] == [("a", "float", True), ("a_spread", "float", False)]


def test_columns_of_ours_are_all_taken():
    assert set(TABLE_COLUMNS) | set(SCORE_COLUMNS) | set(EDITED_COLUMNS) | {"selected"} <= TAKEN


@given(st.text(max_size=60))
@settings(derandomize=True, deadline=None)
def test_a_prompt_is_put_into_the_question_as_it_is(prompt):
    assert Question("q", "yes_no", 'Shows "{prompt}"? {0} {x}').ask(prompt) == f'Shows "{prompt}"? {{0}} {{x}}'
    over = Question("q", "yes_no", "{item.a} {item} {x} {n}?", over="l")
    row = {"x": prompt, "n": 1}
    assert over.ask("", row, {"a": prompt}) == f"{prompt} {json.dumps({'a': prompt}, ensure_ascii=False)} {prompt} 1?"
    assert over.ask("", row, prompt) == f"{{item.a}} {prompt} {prompt} 1?" and over.names == ("l", "n", "x")


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
        (question(type="maybe"), "question q: type must be yes_no, choice, rating, text or json, got maybe"),
        (question(type=["json"]), "question q: type must be yes_no, choice"),
        (question(text=5), "question q: text must be what is asked"),
        (question(text=" "), "question q: text must be what is asked"),
        (question(answers=["a", "b"]), "question q: answers goes with type choice, not yes_no"),
        (question(repeat=2), "question q: repeat goes with type json, not yes_no; it would be the same each time"),
        (scored(max_length=5).replace('"name"', '"repeat": 2, "name"'), "question q: repeat gives the mean of numbers"),
        (scored(minimum=1, maximum=2).replace('"name"', '"repeat": 0, "name"'), "repeat must be a whole number from 1"),
        (question(show="result"), "question q: show is for pictures that are made from a source"),
        (question(show="all").replace("images", "edited"), "question q: show must be both, source or result, got all"),
        (question(over="atoms"), "question q: over, the field of the rows, and {item} in the text go together"),
        (question(text="{item}?"), "question q: over, the field of the rows, and {item} in the text go together"),
        (question(over=5, text="{item}?"), "question q: over must name a field of the rows, got 5"),
        (question(over="a", text="{item}?", combine="sum"), "combine must be mean, geometric_mean or minimum, got sum"),
        (question(combine="minimum"), "question q: combine goes with over"),
        (question(type="rating"), "question q: type rating needs minimum and maximum, in whole numbers"),
        (question(type="rating", minimum=0, maximum=10), "question q: a rating is one digit"),
        (question(type="rating", minimum=4, maximum=4), "question q: a rating is one digit"),
        (question(type="text"), "question q: type text needs max_length, in whole numbers"),
        (question(type="text", max_length=0), "question q: max_length is 1 to 10000"),
        (question(type="choice"), "question q: type choice needs two or more different answers"),
        (question(type="choice", answers=["a"]), "question q: type choice needs two or more different answers"),
        (question(type="choice", answers=["a", "a"]), "question q: type choice needs two or more different answers"),
        (question(type="choice", answers=[True, False]), "put yes and no in quotes"),
        (question(type="choice", answers={"a": ["A"], "b": []}), "type choice needs two or more different answers"),
        (question(type="choice", answers={"a": ["A"], "b": [" "]}), "type choice needs two or more different answers"),
        (question(type="choice", answers=["a", "b c"]), "question q: answer b c: its name must be letters"),
        (question()[:-2] + "," + question()[12:], "images: column q is made by two questions"),
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
