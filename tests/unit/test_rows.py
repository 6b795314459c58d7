"""Rows: every form of the user's documents, and what becomes of it."""

import json

import pytest
from darkroom.errors import RowError
from darkroom.rows.fields import Fields
from darkroom.rows.formats import read_rows
from darkroom.rows.read import content_id, further_fields, parse_row, row_id
from hypothesis import given, settings
from hypothesis import strategies as st

FOX = [{"content": "a fox", "role": "user"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a fox"},
        {"conversations": FOX},
        {"conversation": FOX},
        {"conversations": [{"from": "human", "value": "a fox"}]},
        {"conversations": FOX[0]},
        {"conversations": ["a fox"]},
        {"conversations": [*FOX, {"content": "", "role": "assistant"}]},
    ],
)
@pytest.mark.parametrize("images", [{}, {"images": [""]}, {"images": ""}, {"images": []}, {"images": None}])
def test_every_spelling_of_a_prompt_is_the_same_request(row, images):
    assert parse_row(row | images, "prompts")["items"] == [{"prompt": "a fox"}]


def test_every_turn_is_an_image_of_its_own():
    row = {"conversations": [{"content": "a"}, {"content": " "}, {"content": "b"}]}
    assert parse_row(row, "prompts")["items"] == [{"prompt": "a"}, {"prompt": "b"}]


@pytest.mark.parametrize("images", ["dir/x.png", "./dir/x.png", ["dir//x.png"], ["dir/y/../x.png", ""]])
def test_an_edit_is_its_last_turn_on_its_image(images):
    row = {"conversations": [{"content": "first"}, *FOX], "images": images, "edited_images": [""]}
    assert parse_row(row, "edits")["items"] == [{"prompt": "a fox", "source": {"path": "dir/x.png"}}]


def test_an_edit_takes_several_sources_images_of_this_run_and_results_that_are_there():
    row = {"prompt": "a", "images": ["x.png", {"row": 7, "sample": 1}], "edited_images": ["/abs/1.png", "2.png"]}
    assert parse_row(row, "edits")["items"] == [
        {"prompt": "a", "source": {"path": "x.png"}, "given": {"path": "/abs/1.png"}},
        {"prompt": "a", "source": {"row": "7", "item": 0, "sample": 1}, "given": {"path": "2.png"}},
    ]


def test_images_of_a_prompt_are_judged_by_their_turn_or_by_the_last():
    pair = parse_row({"conversations": ["a", "b"], "images": ["1.png", "2.png"]}, "prompts")["items"]
    assert [(item["prompt"], item["given"]["path"]) for item in pair] == [("a", "1.png"), ("b", "2.png")]
    single = parse_row({"conversations": ["a", "b"], "images": "1.png"}, "prompts")["items"]
    assert [(item["prompt"], item["given"]["path"]) for item in single] == [("b", "1.png")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a"}, "an edit needs a source image"),
        ({"prompt": "a", "images": ["x", "y"], "edited_images": ["z"]}, "edited_images: 1 for 2 source images"),
        ({"prompt": "a", "images": "x", "edited_images": [{"row": "p"}]}, "edited_images: expected file names"),
        ({"prompt": "a", "images": {"row": "p", "sample": -1}}, "sample must be a whole number from 0, got -1"),
        ({"prompt": "a", "images": {"row": "p", "samples": 1}}, 'unknown field "samples" beside row, item and sample'),
        ({"prompt": "a", "images": {"row": ""}}, "expected file names or"),
    ],
)
def test_an_edit_that_cannot_be_made_says_why(row, reason):
    with pytest.raises(RowError) as error:
        parse_row(row, "edits")
    assert reason in str(error.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
fields = st.sampled_from(
    "id prompt conversations conversation images edited_images seed width steps guidance negative_prompt samples".split()
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.dictionaries(fields, json_values, max_size=6), st.sampled_from(["prompts", "edits"]))
def test_any_row_is_parsed_or_refused_with_a_reason(row, kind):
    try:
        normal = parse_row(row, kind)
        row_id(row)
    except RowError as error:
        assert str(error)
    else:
        assert normal["items"] and all(item["prompt"].strip() for item in normal["items"])
        assert all("source" in item for item in normal["items"]) == (kind == "edits")


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.binary(max_size=30), max_size=6))
def test_any_bytes_are_rows_or_reasons_line_by_line(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    expected = [n for n, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]
    found = list(read_rows(path))
    assert [number for number, *_ in found] == expected or path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert all((row is None) != (reason is None) for _, _, row, reason in found)


def test_content_ids_follow_content_and_occurrence_alone():
    row = {"prompt": "a", "note": [1, {"x": None}]}
    assert (
        content_id(row, 0) == content_id(dict(reversed(row.items())), 0) == content_id(json.loads(json.dumps(row)), 0)
    )
    assert len({content_id(row, 0), content_id(row, 1), content_id(row | {"note": 1}, 0)}) == 3


@pytest.mark.parametrize("seed", [-1, -1.0])
def test_a_seed_of_minus_one_is_none(seed):
    assert parse_row({"prompt": "a", "seed": seed}, "prompts")["options"] == {}
    assert parse_row({"prompt": "a", "Seed": seed}, "prompts", Fields.of({"seed": "Seed"}, "prompts"))["options"] == {}
    for other in (-2, -1.5, "-1"):
        with pytest.raises(RowError, match="seed: expected a whole number from 0"):
            parse_row({"prompt": "a", "seed": other}, "prompts")


def test_ids_are_text():
    assert [row_id({"id": own}) for own in ("x", 7, "", None)] == ["x", "7", None, None]
    assert further_fields({"id": 1, "prompt": "a", "z": 1, "b": {}}) == {"z": 1, "b": {}}
