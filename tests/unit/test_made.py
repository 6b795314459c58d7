"""Made rows: drawn by the weights, the same whatever the order of keys, and changed by a new value for its share alone."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from darkroom.config.load import load_config
from darkroom.errors import DarkroomError
from darkroom.plan.shards import make_plan
from darkroom.rows.formats import read_rows
from darkroom.rows.made import read_made
from darkroom.tools.preview import preview_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

ROWS = 20_000
COLOURS = ["red", "green", {"value": "blue", "weight": 3}]
SHAPES = ["circle", "square", {"value": "star", "when": {"colour": ["red", "blue"]}}]
PLACES = {
    "by": "shape",
    "values": {"circle": ["on a table", "in the grass"], "star": ["in the sky"], "square": ["here"]},
}
SPEC = {
    "template": "a {colour} {shape} {place}",
    "fields": {"colour": COLOURS, "shape": SHAPES, "place": PLACES},
    "rows": ROWS,
}


@pytest.fixture
def made(tmp_path):
    """What a description gives: its rows."""

    def rows(spec):
        path = tmp_path / "made.yaml"
        path.write_text(spec if isinstance(spec, str) else yaml.safe_dump(spec, sort_keys=False))
        return list(read_made(path).draw())

    return rows


def fits(counts, weights):
    """Whether counts are drawn by weights, as a chi-square test sees it; the seed is fixed, so it says the same at every run."""
    total = sum(weights.values())
    expected = [sum(counts.values()) * weight / total for weight in weights.values()]
    assert counts.keys() == weights.keys()
    assert chisquare([counts[value] for value in weights], expected).pvalue > 0.001


def test_values_are_drawn_by_their_weights_and_by_those_of_others(made):
    rows = made(SPEC)
    fits(Counter(row["colour"] for row in rows), {"red": 1, "green": 1, "blue": 3})
    fits(Counter(row["shape"] for row in rows if row["colour"] != "green"), {"circle": 1, "square": 1, "star": 1})
    fits(Counter(row["shape"] for row in rows if row["colour"] == "green"), {"circle": 1, "square": 1})
    fits(Counter(row["place"] for row in rows if row["shape"] == "circle"), {"on a table": 1, "in the grass": 1})
    assert {row["place"] for row in rows if row["shape"] == "star"} == {"in the sky"}
    assert rows[6]["prompt"] == f"a {rows[6]['colour']} {rows[6]['shape']} {rows[6]['place']}"
    assert [row["id"] for row in rows[:3]] == ["made-1", "made-2", "made-3"] and len(rows) == ROWS
    # Which fields go together is no accident of the hashes.
    pairs = Counter(
        (row["colour"], row["shape"]) for row in rows if row["shape"] != "star" and row["colour"] != "green"
    )
    fits(pairs, {("red", "circle"): 1, ("red", "square"): 1, ("blue", "circle"): 3, ("blue", "square"): 3})


def test_rows_are_the_same_in_any_order_of_keys_and_values_and_however_many(made):
    turned = {
        "rows": ROWS,
        "fields": {
            "place": {"values": dict(reversed(PLACES["values"].items())), "by": "shape"},
            "shape": SHAPES[::-1],
            "colour": COLOURS[::-1],
        },
        "template": SPEC["template"],
    }
    rows = made(SPEC)
    assert made(turned) == rows
    assert made(SPEC | {"rows": 500}) == rows[:500]
    assert made(SPEC | {"seed": 1}) != rows


@pytest.mark.parametrize("number", [4, 3000])
def test_a_new_value_takes_its_share_of_the_rows_and_no_other(made, number):
    values = [f"value {n}" for n in range(number)]
    spec = {"template": "{a} {b}", "fields": {"a": values, "b": ["x", "y"]}, "rows": ROWS}
    before = made(spec)
    groups = min(number, 100)
    fits(Counter(int(row["a"].split()[1]) % groups for row in before), dict.fromkeys(range(groups), 1))
    new = {"value": "new", "weight": number / 10 if number <= 1000 else 1}
    after = made(spec | {"fields": {"b": ["x", "y"], "a": [new, *values]}})
    changed = [place for place, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
    assert {after[place]["a"] for place in changed} == {"new"}
    assert all(one["b"] == other["b"] for one, other in zip(before, after, strict=True))
    if number <= 1000:
        assert len(changed) / ROWS == pytest.approx(1 / 11, abs=0.01)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.floats(0.1, 10)), min_size=1, max_size=6, unique_by=lambda one: one[0]
    )
)
@settings(max_examples=40, deadline=None)
def test_a_value_of_more_weight_only_wins_rows(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "weights.yaml"

    def column(weights):
        listed = [{"value": value, "weight": weight} for value, weight in weights]
        path.write_text(json.dumps({"template": "{f}", "fields": {"f": listed}, "rows": 300}))
        return [row["f"] for row in read_made(path).draw()]

    (first, weight), *others = values
    before, after = column(values), column([(first, 3 * weight), *others])
    assert all(new in (old, first) for old, new in zip(before, after, strict=True))


def test_every_combination_or_a_share_of_them(made):
    spec = SPEC | {"rows": "all", "exclude": [{"colour": "green", "place": ["in the grass"]}]}
    rows = made(spec)
    found = {(row["colour"], row["shape"], row["place"]) for row in rows}
    assert len(rows) == len(found) == 2 * 4 + 2
    assert ("green", "circle", "in the grass") not in found and ("green", "circle", "on a table") in found
    more = made(spec | {"fields": SPEC["fields"] | {"colour": [*COLOURS, "pink"]}})
    ids = {row["id"]: row["prompt"] for row in more}
    assert all(ids[row["id"]] == row["prompt"] for row in rows) and len({row["id"] for row in more}) == 13
    many = {"template": "{a}{b}", "fields": {"a": {"range": [1, 100]}, "b": {"range": [1, 100]}}, "rows": "all"}
    share = made(many | {"share": 0.1})
    assert 900 < len(share) < 1100 and all(row in made(many) for row in share[:3])


def test_what_does_not_go_together_is_not_made(made):
    spec = {
        "template": "a {colour} {shape} on {ground}",
        "fields": {"colour": ["red", "green"], "ground": ["red", "green", "white"], "shape": ["star", "circle"]},
        "exclude": [{"ground": "{colour}"}, {"colour": "red", "ground": "white", "shape": "star"}],
        "rows": 2000,
    }
    found = Counter((row["colour"], row["ground"], row["shape"]) for row in made(spec))
    assert all(colour != ground for colour, ground, _ in found) and ("red", "white", "star") not in found
    assert set(found) == {(row["colour"], row["ground"], row["shape"]) for row in made(spec | {"rows": "all"})}


def test_ranges_files_sizes_templates_and_settings(made, tmp_path):
    (tmp_path / "animals.txt").write_text("cat\t3\n\ndog\n")
    rows = made(
        {
            "template": ["{{a}} {animal}", {"text": "{n}: {animal}", "weight": 3}],
            "fields": {
                "animal": {"file": "animals.txt"},
                "steps": {"range": [10, 30], "step": 5},
                "cfg": {"range": [1.5, 2], "step": 0.25},
            },
            "sizes": [[1024, 1024], {"size": [1216, 832], "weight": 2}],
            "images": [{"row": "made-{n}", "sample": 0}, "{animal}.png"],
            "rows": 3000,
        }
    )
    fits(Counter(row["animal"] for row in rows), {"cat": 3, "dog": 1})
    fits(Counter(row["steps"] for row in rows), dict.fromkeys([10, 15, 20, 25, 30], 1))
    fits(Counter(row["cfg"] for row in rows), dict.fromkeys([1.5, 1.75, 2.0], 1))
    fits(Counter((row["width"], row["height"]) for row in rows), {(1024, 1024): 1, (1216, 832): 2})
    fits(Counter(row["prompt"].startswith("{a} ") for row in rows), {True: 1, False: 3})
    assert rows[8]["images"] == [{"row": "made-9", "sample": 0}, f"{rows[8]['animal']}.png"]


def test_a_hundred_thousand_rows_take_seconds(made):
    started = time.process_time()
    assert len(made(SPEC | {"rows": 100_000})) == 100_000
    assert time.process_time() - started < 6  # a million in 60


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("- a\n", "made rows have a template, and fields with the values that it names"),
        ("template: [\n", ", line 2: not valid YAML: "),
        ({"template": "a", "field": {}}, "unknown key field; known here: exclude, fields, "),
        ({"template": "a {b}"}, "template.0: there is no field b; there are none"),
        ({"template": "a", "rows": "all"}, "rows: without fields there is one combination; say how many rows to make"),
        ({"template": "a", "rows": 0}, "rows: expected a whole number from 1 to 100,000,000, or all"),
        (
            {"template": "a", "rows": 3, "share": 0.5},
            "share: is of every combination (rows: all); leave out one of the two",
        ),
        (
            {"template": "a", "fields": {"prompt": ["b"]}},
            "fields.prompt: a field's name is letters, digits and underscores, and none",
        ),
        ({"template": "a", "fields": {"b": []}}, "fields.b: has no values"),
        ({"template": "a", "fields": {"b": ["x", "x"]}}, "fields.b: 'x' stands there twice; give it a weight"),
        ({"template": "a", "fields": {"b": [None]}}, "fields.b.0: expected text, a number, true or false, got None"),
        (
            {"template": "a", "fields": {"b": [{"value": 1, "weight": 0}]}},
            "fields.b.0.weight: expected a number above 0, got 0",
        ),
        (
            {"template": "a", "fields": {"b": {"range": [3, 1]}}},
            "fields.b.range: expected two numbers, the least and the greatest",
        ),
        (
            {"template": "a", "fields": {"b": {"range": [0.5, 1]}}},
            "fields.b.step: expected a number above 0, got None; decimal",
        ),
        ({"template": "a", "fields": {"b": {"file": "gone.txt"}}}, "fields.b.file: "),
        (
            {"template": "a", "fields": {"b": {"values": [1], "weights": [1]}}},
            "fields.b: expected a list of values, or the keys",
        ),
        (
            {"template": "a", "fields": {"b": {"by": "c", "values": {"x": [1]}}}},
            "fields.b: depends on a field c that is not there",
        ),
        (
            {"template": "a", "fields": {"b": [{"value": 1, "when": {"c": 1}}], "c": [{"value": 1, "when": {"b": 1}}]}},
            "fields: depend on each other in a circle: ",
        ),
        ({"template": "a", "fields": {"b": [1]}, "exclude": [{"c": 1}]}, "exclude.0: there is no field c; there are b"),
        (
            {"template": "a", "fields": {"b": [1]}, "sizes": [[64]]},
            "sizes.0: expected width and height, such as [1024, 1024], got [64]",
        ),
        (
            {"template": "a", "fields": {"b": [1, 2], "c": [{"value": 1, "when": {"b": 1}}]}, "rows": 50},
            "fields.c: no value fits b 2; add one, or another condition",
        ),
    ],
)
def test_a_wrong_description_is_one_line_that_names_the_key(made, tmp_path, spec, message):
    with pytest.raises(DarkroomError) as error:
        made(spec)
    told = str(error.value)
    assert told.startswith(f"{tmp_path}/made.yaml") and "\n" not in told
    assert told.removeprefix(f"{tmp_path}/made.yaml").removeprefix(": ").startswith(message)


def test_a_plan_reads_them_and_notices_a_list_that_changes(tmp_path):
    (tmp_path / "animals.txt").write_text("cat\n")
    path = tmp_path / "made.yaml"
    path.write_text(
        yaml.safe_dump({"template": "a {animal}", "fields": {"animal": {"file": "animals.txt"}}, "rows": 30})
    )

    def planned():
        plan = make_plan(path, "prompts", 10, tmp_path / "results")
        rows = [json.loads(line) for name in plan.names for line in plan.read(name).splitlines()]
        return plan.id, [row["items"][0]["prompt"] for row in rows], rows[0]

    first, prompts, row = planned()
    assert prompts == ["a cat"] * 30 and row["row"]["animal"] == "cat" and row["id"] == "made-1"
    assert planned()[0] == first
    (tmp_path / "animals.txt").write_text("cat\ndog\n")
    assert set(planned()[1]) == {"a cat", "a dog"} and planned()[0] != first
    assert [number for number, *_ in read_rows(path)] == list(range(1, 31))


def test_the_config_itself_may_say_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("animals.txt").write_text("cat\n")
    animal = {"template": "a {animal}", "fields": {"animal": {"file": "animals.txt"}}, "rows": 3}
    config = {"prompts": animal, "edits": {"template": "a dog", "images": "{n}.png", "rows": 2}, "results": "results"}
    loaded = load_config(config, [tmp_path, REPOSITORY])
    assert (
        loaded
        == load_config(config, [tmp_path, REPOSITORY])
        == load_config(loaded.model_dump(), [tmp_path, REPOSITORY])
    )
    assert [row["prompt"] for row in read_made(Path(loaded.prompts)).draw()] == ["a cat"] * 3
    assert loaded.rows.edits.root == str(tmp_path) and loaded.rows.root is None
    lines = list(preview_lines(loaded, 2))
    assert lines[1] == "     1  a cat  |  animal: cat" and lines[4] == "     1  a dog  |  images: 1.png"
    assert len(lines) == 6
    wrong = load_config(config | {"prompts": {"template": "a {b}"}}, [tmp_path, REPOSITORY])
    with pytest.raises(DarkroomError, match=r"^config: prompts\.template\.0: there is no field b; there are none$"):
        list(preview_lines(wrong, 2))
    with pytest.raises(DarkroomError, match=r"^config: prompts\.fields\.animal\.file: no such file: gone\.txt$"):
        load_config({"prompts": {"template": "a", "fields": {"animal": {"file": "gone.txt"}}}}, [tmp_path, REPOSITORY])
