"""Selection by expressions, one of each, so many of each; formulas; and no expression that sees more than one image."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from darkroom.config.models import Formula, Select
from darkroom.errors import DarkroomError
from darkroom.metrics.base import Catalogue
from darkroom.metrics.formulas import formulas_of, with_formulas
from darkroom.tables.merge import merge_scores
from darkroom.tables.select import ITEM, NUMBER, Selector
from darkroom.tables.sql import Checker, computed
from darkroom.tables.yields import read_yields
from darkroom.views import gallery
from darkroom.views.ranks import Sample
from darkroom.views.steps import write_steps
from test_tables import RUBRIC, build

TYPES = {"p_yes": "float", "n": "int", "category": "text", "tags": {"list": "text"}, "flag": "bool", "own": None}
CHECKER = Checker(TYPES)
COLUMNS = {"error": "text", "label": "text", "sample": "int", "key": "text", "p": "float", "selected": "bool"}


def chosen(selection, category, p, label=None, labels=True, per_row=None, error=None, order=None, by=None):
    """The numbers of the images that are selected, and how it came about; image n is a row of its own with key k<n>."""
    number = len(p)
    columns = {
        "error": pa.array(error or [None] * number, pa.string()),
        "label": pa.array(label or [None] * number, pa.string()),
        "sample": pa.array([0] * number),
        "key": pa.array([f"k{n}" for n in range(number)]),
        "p": pa.array(p, pa.float64()),
        "category": pa.array(category, pa.string()),
        NUMBER.strip('"'): pa.array(range(number)),
        ITEM.strip('"'): pa.array(range(number)),
    }
    table = pa.table(columns)
    order = order or range(number)
    select = Select.model_validate({"images": selection, "labels": labels, "per_row": per_row})
    own = {"category": "text"}
    found = Selector(RUBRIC.catalogue, select, {name: name for name in COLUMNS}, COLUMNS, own, by).of_table(
        "images", table.take(pa.array(order))
    )
    return [n for n, one in enumerate(found.selected.to_pylist()) if one], found


CATEGORIES = ["a", "a", "b", None, "b", "a", None, "c"]
P = [0.5, 0.9, 0.9, 0.7, None, 0.5, 0.1, 0.6]


def test_a_condition_stands_beside_thresholds_and_what_is_null_is_not_true():
    assert chosen({"where": "p >= 0.6 and category <> 'c'"}, CATEGORIES, P)[0] == [1, 2]
    assert chosen({"p": 0.6, "where": "category is null"}, CATEGORIES, P)[0] == [3]
    assert chosen({"where": "p < 1", "p": 0.1}, CATEGORIES, P, error=["no"] + [None] * 7)[0] == [1, 2, 3, 5, 6, 7]
    assert chosen({"where": "p > 0.5"}, ["a"] * 3, [float("nan"), 0.6, 0.5], labels=False)[0] == [0, 1]  # as SQL has it
    assert chosen({"p": 0.5}, ["a"] * 3, [float("nan"), 0.6, 0.5])[0] == [1, 2]


def test_a_threshold_is_compared_to_the_last_bit():
    p = [0.1 + 0.2, 0.3, 0.7000000000000001, 0.7, 1e-7]
    assert chosen({"p": 0.1 + 0.2}, ["a"] * 5, p)[0] == [0, 2, 3]
    assert chosen({"p": 0.7000000000000001}, ["a"] * 5, p)[0] == [2]
    assert chosen({"p": 1e-7}, ["a"] * 5, p)[0] == [0, 1, 2, 3, 4]


def test_one_of_each_so_many_of_each_and_so_many_in_all_are_the_best():
    assert chosen({"distinct": "category", "order_by": "p"}, CATEGORIES, P)[0] == [1, 2, 3, 6, 7]
    assert chosen({"distinct": "category", "order_by": "-p"}, CATEGORIES, P)[0] == [
        0,
        2,
        3,
        6,
        7,
    ]  # of equal ones the first key
    assert chosen({"quota": {"by": "category", "each": 1}, "order_by": "p"}, CATEGORIES, P)[0] == [1, 2, 3, 7]
    assert chosen({"limit": 3, "order_by": ["p", "category"]}, CATEGORIES, P)[0] == [1, 2, 3]
    assert chosen({"p": 0.2, "limit": 2}, CATEGORIES, P)[0] == [1, 2]  # by the first score that is named
    assert chosen({"limit": 2}, CATEGORIES, P)[0] == [0, 1]
    both = {"distinct": "category", "quota": {"by": "p > 0.6", "each": 1}, "order_by": "p"}
    assert chosen(both, CATEGORIES, P)[0] == [1, 7]  # of those that `distinct` has left


def test_what_a_person_accepted_stays_and_takes_a_place():
    label = [None, "reject", None, "accept", None, "accept", None, None]
    assert chosen({"limit": 3, "order_by": "p"}, CATEGORIES, P, label)[0] == [2, 3, 5]
    assert chosen({"limit": 1, "order_by": "p"}, CATEGORIES, P, label)[0] == [3, 5]
    assert chosen({"distinct": "category", "order_by": "p"}, CATEGORIES, P, label)[0] == [2, 3, 5, 6, 7]
    assert chosen({"limit": 1, "order_by": "p"}, CATEGORIES, P, label, labels=False)[0] == [1]


def test_the_order_of_the_images_decides_nothing():
    selection = {"distinct": "category", "quota": {"by": "p is null", "each": 3}, "order_by": "round(p)"}
    whole, _ = chosen(selection, CATEGORIES, P)
    assert chosen(selection, CATEGORIES, P, order=[7, 3, 0, 5, 6, 1, 4, 2])[0] == whole != []


def test_the_yield_tells_how_many_each_step_leaves_also_by_a_field():
    selection = {"p": 0.5, "where": "category <> 'c'", "distinct": "category", "order_by": "p"}
    label, error = [None] * 6 + ["accept", None], ["no memory"] + [None] * 7
    _, found = chosen(selection, CATEGORIES, P, label, error=error, by="category")
    steps = dict(zip(found.steps, found.left, strict=True))
    assert steps == {
        "requests": 8,
        "made": 7,
        "scored": 6,
        "p >= 0.5": 5,
        "category <> 'c'": 3,
        "labels": 4,
        "one of each category": 3,
    }
    assert found.by["a"] == [3, 2, 2, 2, 2, 2, 1] and found.by[None] == [2, 2, 2, 1, 0, 1, 1]
    assert [sum(values) for values in zip(*found.by.values(), strict=True)] == found.left


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p_yes >= 0.6 and", "not an expression that DuckDB reads: syntax error"),
        ("p_yse > 0.5", "no column p_yse; did you mean p_yes?"),
        (
            "category = red",
            "no column red; there are p_yes, n, category, tags, flag, own; a text stands in single quotes",
        ),
        ("p_yes", "expected true or false, and this gives a number"),
        ("category > 5", "Cannot compare values of type VARCHAR"),
        ("p_yes > 'high'", "Could not convert string 'high' to DOUBLE"),
        ("len(p_yes) > 1", "No function matches"),
        ("(select max(n) from t) > 1", "an expression sees the columns of one image"),
        ("exists(from read_text('/etc/passwd'))", "an expression sees the columns of one image"),
        ("read_text('/etc/passwd') = ''", 'Function "read_text" is a table function'),
        ("rank() over (order by n) < 5", "an expression sees the columns of one image"),
        ("max(n) > 1", "WHERE clause cannot contain aggregates"),
        ("random() > 0.5", "random() gives something else each time"),
        ("now() > '2030-01-01'", "now() gives something else each time"),
        ("current_setting('threads') = '1'", "current_setting() gives something else each time"),
        ("true) from t where (true", "expected one expression and nothing else"),
        ("true); select (true", "expected one expression and nothing else"),
    ],
)
def test_what_is_no_condition_on_one_image_is_one_line(text, message):
    with pytest.raises(DarkroomError) as error:
        CHECKER.check("select.images.where", text, "condition")
    assert str(error.value).startswith(f"config: select.images.where: {message}") and "\n" not in str(error.value)


def test_an_expression_names_its_columns_in_whatever_case():
    for text, columns in (
        ("p_yes >= 0.6 and N < 3 -- both", ("p_yes", "n")),
        ("list_contains(tags, 'x') or own > 5 or own = 'x'", ("tags", "own")),
        ("len(list_filter(tags, lambda x: x > category)) > 0 and flag", ("tags", "category", "flag")),
        ("case when category in ('a', 'b') then p_yes > 0.5 else n > 1 end", ("category", "p_yes", "n")),
    ):
        assert set(CHECKER.check("select.images.where", text, "condition").columns) == set(columns)


def test_fields_whose_names_are_one_to_duckdb_do_not_stop_others():
    checker = Checker({"a": "text", "A": "int", "": "text", 'q"x': "int"})
    assert checker.check("w", 'A = \'x\' and "q""x" > 1', "condition").columns == ("a", 'q"x')


def test_a_formula_has_a_value_where_its_scores_have_one_and_else_a_reason():
    scores = {
        "overall": "sqrt(least(p, rating / 10))",
        "sure": {"formula": "coalesce(p, 0.25)", "low": 0, "high": 2},
        "odd": "1 / (p - p)",
        "twice": "overall * 2",
    }
    formulas = formulas_of({name: one if isinstance(one, str) else Formula(**one) for name, one in scores.items()})
    table = pa.table({"error": [None, None, "gone"], "p": [0.25, None, 0.9], "rating": [9, 5, 5]})
    found = computed(table, formulas).to_pydict()
    assert found["overall"] == [0.5, None, None] and found["overall_error"] == [None, "p has no value", None]
    assert found["sure"] == [0.25, 0.25, None] and found["twice"] == [1.0, None, None]
    assert found["odd"] == [None] * 3 and found["odd_error"] == ["not a finite number", "p has no value", None]
    assert found["twice_error"][1] == "overall has no value"


def test_a_formula_is_a_score_of_every_kind_that_has_what_it_names():
    judged = RUBRIC.catalogue.columns("images")
    catalogue = with_formulas(
        Catalogue({"images": judged, "edited": ()}), formulas_of({"half": "p / 2", "more": "half + 'p_mass'.length()"})
    )
    assert catalogue.score_names("images") == ["p", "half", "more"] and catalogue.score_names("edited") == []
    assert catalogue.scores("images")[1].limits == (0, 1)
    for scores, message in (
        (
            {"x": "beauty * 2"},
            "config: scores.x: no kind of picture has a score as `beauty * 2` asks; there are images: p",
        ),
        ({"no name": "p"}, "config: scores.no name: its name must be letters"),
        ({"p": "p * 2"}, "images: column p is made by"),
    ):
        with pytest.raises(DarkroomError, match="^" + message.replace("*", r"\*")):
            with_formulas(Catalogue({"images": judged, "edited": ()}), formulas_of(scores))


def merged(folder, formulas=(), by=None, **selection):
    kind = build(folder, [{"id": f"r{n}", "prompt": "fox", "group": n % 3, "Key": n} for n in range(9)])
    kind.formulas = tuple(formulas_of(dict(formulas)))
    catalogue = with_formulas(RUBRIC.catalogue, list(kind.formulas))
    select = Select.model_validate({"images": selection})
    files = folder / "t.parquet", folder / "t.csv"
    merge_scores([kind], catalogue, select, *files, {"digest": "d"}, yields=folder / "yield.csv", by=by)
    shown = [record for shard in kind.plan.names for record in kind.shard_records(shard)]  # as the gallery reads them
    assert [record.get("worth") for record in shown] == [(record["p"] / 2 if formulas else None) for record in shown]
    return pq.read_table(folder / "t.parquet")


def test_own_fields_and_formulas_select_in_the_tables(tmp_path):
    best = {
        "quota": {"by": '"group"', "each": 1},
        "order_by": "worth",
        "where": "sample = 1 and Key < 8 and darkroom_key <> ''",
    }
    table = merged(tmp_path, {"worth": "p * 0.5"}, **best)
    kept = [line for line in table.to_pylist() if line["selected"]]
    assert [(line["Key"], line["group"]) for line in kept] == [(0, 0), (1, 1), (2, 2)]
    assert {line["worth"] for line in kept} == {0.35}
    assert table.schema.names[-4:] == ["selected", "label", "group", "Key"]
    first = (tmp_path / "t.parquet").read_bytes()
    merged(tmp_path, {"worth": "p * 0.5"}, **best)
    assert (tmp_path / "t.parquet").read_bytes() == first


def test_the_yield_is_told_in_a_table_of_its_own_and_on_a_page(tmp_path):
    merged(tmp_path, by="group", p=0.5, where='"group" < 2', limit=5)
    found = read_yields(tmp_path / "yield.csv")["images"]
    assert dict(zip(found.steps, found.left, strict=True)) == {
        "requests": 18,
        "made": 18,
        "scored": 18,
        "p >= 0.5": 9,
        '"group" < 2': 6,
        "best 5": 5,
    }
    assert (found.field, {value: left[-2:] for value, left in found.by.items()}) == (
        "group",
        {"0": [3, 3], "1": [3, 2], "2": [0, 0]},
    )
    write_steps(tmp_path / "steps.html", {"images": found})
    page = (tmp_path / "steps.html").read_text()
    assert "&quot;group&quot; &lt; 2" in page and "<td>5</td><td>27.8%</td>" in page


def test_what_does_not_fit_the_rows_is_one_line_and_leaves_no_table(tmp_path):
    for selection, scores, message in (
        ({"where": "prompt > 5"}, {}, "config: select.images.where: Cannot compare"),
        ({"where": "\"group\" > 'x'"}, {}, "config: select.images.where: Could not convert string 'x'"),
        ({"where": "prompt::INT > 1"}, {}, "config: select.images: Could not convert string 'fox'"),
        (
            {},
            {"more": "p * 3"},
            "config: scores.more: there are values from 1.2 to 2.1, and it says 0 to 1; write {formula: ..., low: 0, high",
        ),
    ):
        with pytest.raises(DarkroomError) as error:
            merged(tmp_path, scores, **selection)
        assert str(error.value).startswith(message) and "\n" not in str(error.value)
        assert not (tmp_path / "t.parquet").exists() and not list(tmp_path.glob(".*"))


def test_a_selection_of_thresholds_alone_is_told_as_before():
    select = Select.model_validate({"images": {"p": 0.5}, "per_row": 2})
    assert json.dumps(select.model_dump()) == json.dumps(
        {"images": {"p": 0.5}, "edited": {}, "per_row": 2, "labels": True}
    )


def test_cuts_are_told_in_words_where_there_are_any():
    cuts = {"where": "p > 0.5", "quota": {"by": "category", "each": 5}, "order_by": ["p", "-sample"], "limit": 9}
    select = Select.model_validate({"images": {"p": 0.4, **cuts}, "edited": {"q": 1}})
    told = {"where": "p > 0.5", "quota": "the best 5 of each category", "kept in all": "9", "the best by": "p, -sample"}
    assert select.of("images").cuts == told and select.of("edited").cuts == {}
    about = {
        kind: gallery._about(RUBRIC.catalogue, kind, select, None, Sample(RUBRIC.catalogue.score_names(kind)))
        for kind in ("images", "edited")
    }
    assert about["images"]["cuts"] == [f"{key} {said}" for key, said in told.items()]
    assert "cuts" not in about["edited"]
