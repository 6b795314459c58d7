"""The report's statistics are those of the libraries that have the whole table, and its drawings repeat byte by byte."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from darkroom.config.models import Select
from darkroom.errors import general
from darkroom.metrics.base import ScoreColumn
from darkroom.metrics.rubric import Question, Rubric
from darkroom.plan.stages import STAGES
from darkroom.views import plots
from darkroom.views.figures import figures
from darkroom.views.ranks import Sample, least_agreeing
from darkroom.views.report import KindReport, Score, StageTimes, read_table
from hypothesis import given, settings
from hypothesis import strategies as st

FIELDS = {"rating": {"minimum": 1, "maximum": 10}, "why": {"max_length": 9}}
ASKED = [Question("p", "yes_no", "{prompt}?"), Question("json", "json", "{prompt}", FIELDS)]
RUBRIC = Rubric({"images": ASKED, "edited": []})
SELECT = Select(images={"p": 0.5})


def report(folder, records):
    folder.mkdir(exist_ok=True)
    columns = {
        "kind": "images",
        "shard": "s",
        "prompt": "a $5 fox\x07 & <b>狐</b>",
        "p_error": None,
        "json_error": None,
    }
    table = pd.DataFrame([columns | record | {"row": f"r{n}", "key": f"k{n}"} for n, record in enumerate(records)])
    table["error"] = table["error"].astype(object).where(table["error"].notna(), None)
    table.to_parquet(folder / "t.parquet", row_group_size=7)
    (folder / "rejected.jsonl").write_text('{"file": "prompts", "line": 3, "reason": "no prompt"}\n')
    return read_table(
        folder / "t.parquet", folder / "rejected.jsonl", RUBRIC.catalogue, SELECT, {"images": ("prompts", len(records))}
    )["images"]


record = st.fixed_dictionaries(
    {
        "p": st.none() | st.integers(0, 99).map(lambda n: n / 100 + 0.005),
        "rating": st.none() | st.integers(1, 10),
        "error": st.none() | st.just("image 'x.png': gone"),
        "label": st.sampled_from(["accept", "reject", None]),
    }
)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(records=st.lists(record, min_size=1, max_size=40))
def test_correlation_and_area_are_the_known_ones(tmp_path_factory, records):
    records = [r | {"selected": r["error"] is None and (r["p"] or 0) >= 0.5} for r in records]
    kind = report(tmp_path_factory.mktemp("r"), records)
    made = pd.DataFrame([r for r in records if r["error"] is None], columns=[*records[0]])
    numbers = made[["p", "rating"]].astype(float)
    expected = numbers.corr("spearman").loc["p", "rating"]
    assert kind.sample.correlations()[0, 1] == pytest.approx(expected, nan_ok=True)
    there = numbers.notna().astype(int)
    assert (kind.sample.pictures == there.T @ there).all(axis=None)
    for name in ("p", "rating"):
        assert kind.scores[name].mean == pytest.approx(numbers[name].mean(), nan_ok=True)
        good, bad = (numbers[made["label"] == label][name].dropna().to_numpy() for label in ("accept", "reject"))
        wins = [(g > b) + 0.5 * (g == b) for g in good for b in bad]
        assert kind.scores[name].auc == pytest.approx(np.mean(wins) if wins else math.nan, nan_ok=True)
    labelled = made[made["label"].notna()]
    assert kind.labelled == len(labelled)
    assert np.trace(kind.agreement[:, ::-1]) == ((labelled["label"] == "accept") == labelled["selected"]).sum()


def test_ranks_are_the_known_ones():
    """Ranks, correlations and numbers of pictures of continuous, tied, missing and constant scores, as pandas has them."""
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"a": rng.normal(size=300), "b": rng.integers(0, 5, 300), "c": 1.0, "d": rng.normal(size=300)})
    table["d"] += table["a"]
    table.loc[::7, "d"], table.loc[::5, "b"] = np.nan, np.nan
    sample = Sample(list(table))
    for places in np.array_split(np.arange(300), 4):
        sample.add([f"{n:x}" for n in places], table.to_numpy()[places])
    expected = table.corr("spearman").to_numpy()
    assert sample.correlations() == pytest.approx(expected, nan_ok=True)
    there = table.notna().astype(int)
    assert (sample.pictures == there.T @ there).all(axis=None)
    for name in table:
        known = (table[name].rank() - 1) / (table[name].notna().sum() - 1)
        assert sample.ranks(name, table[name].to_numpy()) == pytest.approx(known.to_numpy(), nan_ok=True)
    assert sample.lowest[0] == table["a"].min() and sample.highest[3] == table["d"].max()
    assert least_agreeing(
        ["w", "x", "y", "z"],
        np.array([[1, 0.1, 0.9, 0], [0.1, 1, 0, 0.2], [0.9, 0, 1, np.nan], [0, 0.2, np.nan, 1]]),
        3,
    ) == [("w", "z"), ("x", "y")]


def test_of_many_pictures_the_same_are_drawn():
    """As many as are wanted, whatever the order that they come in and in how many parts."""
    values, keys = np.arange(4000.0)[:, None] % 997, [f"{n * 2654435761 % 2**32:08x}" for n in range(4000)]
    order = np.random.default_rng(2).permutation(4000)
    drawn = []
    for places in (np.arange(4000), order):
        sample = Sample(["a"], most=500)
        for part in np.array_split(places, 9):
            sample.add([keys[place] for place in part], values[part])
        drawn.append(sample.ordered("a"))
        assert sample.pictures == [[4000]] and len(sample.values) == 500
    assert (drawn[0] == drawn[1]).all()
    assert np.mean(drawn[0]) == pytest.approx(values.mean(), rel=0.1)
    assert len(sample.quantiles("a")) == 101 and sample.quantiles("a")[50] == pytest.approx(
        np.median(drawn[0]), rel=0.05
    )


def test_the_pictures_that_scores_rank_most_apart(tmp_path):
    """Planted: three that one score has high and the other low, two the other way round, and labels against the scores."""
    records = [{"p": n / 100, "rating": n // 10 + 1, "error": None, "label": None, "selected": True} for n in range(90)]
    for n in (3, 4, 5):
        records[n]["p"] = 0.95 + n / 1000
    for n in (80, 81):
        records[n]["p"] = 0.001 * n
    records[85]["label"], records[10]["label"], records[84]["label"] = "reject", "accept", "accept"
    records[82] |= {"p": 0.0, "error": "gone"}
    kind = report(tmp_path, records)
    scores, labels = kind.disagreements
    assert (scores.first, scores.second, labels.first, labels.second) == ("p", "rating", "p", "label")
    assert [example.row for example in scores.above] == ["r5", "r4", "r3"]
    assert [example.row for example in scores.below] == ["r80", "r81"]
    assert scores.above[0].told == "0.955 (100 %) | 1 (5 %)"
    assert [example.row for example in labels.above] == ["r85"] and [example.row for example in labels.below] == ["r10"]


def test_a_score_within_a_small_part_of_its_range_has_bins_there():
    column = ScoreColumn("clip", "float", "clip", "score", "clip", low=-1, high=1, selectable=True)
    assert list(Score.of(column, 0.2, 0.3).edges[[0, -1]]) == [0.2, 0.3]
    assert list(Score.of(column, -0.5, 0.5).edges[[0, -1]]) == [-1, 1]
    assert list(Score.of(column, np.inf, -np.inf).edges[[0, -1]]) == [-1, 1]


def test_one_score_alone_is_compared_with_nothing():
    def plotted(scores, labelled):
        found = figures([STAGES["images"]], {"images": scores}, labelled, tmp)
        return {plot.name for plot in found} & {"agreement", "disagreement"}

    tmp = Path("plots")
    assert plotted(1, False) == plotted(0, True) == set()
    assert plotted(1, True) == {"disagreement"} and plotted(2, False) == {"agreement", "disagreement"}


def test_twenty_five_scores_are_drawn(tmp_path):
    """Every number of the matrix and every name stands in the drawing, and nothing is drawn over another."""
    rng = np.random.default_rng(0)
    names = [f"score_{n}_of_a_long_name" for n in range(25)]
    scores = {
        name: Score.of(
            ScoreColumn(name, "float", f"metric{n // 6}", "score", name, low=0, high=1, selectable=True), 0, 1
        )
        for n, name in enumerate(names)
    }
    kind = KindReport("images", scores=scores, sample=Sample(names))
    kind.sample.add([str(n) for n in range(50)], rng.random((50, 25)))
    figure = plots.score_agreement(kind)
    figure.draw_without_rendering()
    matrix, listed = figure.axes
    assert len(matrix.texts) == 25 * 25 and len(listed.patches) == 12
    assert {text.get_text() for text in matrix.texts} >= {"50", f"{kind.sample.correlations()[3, 1]:.2f}"}
    cell = matrix.transData.transform([[0, 0], [1, 1]])
    cell = abs(cell[1] - cell[0])
    for text in matrix.texts:
        box = text.get_window_extent()
        assert box.width < cell[0] and box.height < cell[1]
    boxes = [label.get_window_extent() for label in matrix.get_xticklabels()]
    assert all(one.x1 <= other.x0 for one, other in itertools.pairwise(boxes))


def test_reasons_that_differ_in_names_and_numbers_count_together():
    for one, other in (
        ("image a: b.png: No such file", "image c.png: No such file"),
        ("rating is 12, outside 1 to 10", "rating is 0, outside 1 to 10"),
        ("refers to row 'a'", "refers to row 'b c'"),
    ):
        assert general(one.replace("a: b", "ab")) == general(other)


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 60))])
def test_every_plot_is_drawn_and_twice_the_same(tmp_path, number):
    """Whatever there is to draw: nothing, one image, or many with labels."""
    records = [
        {"p": n / 60, "rating": n % 10 + 1, "error": None, "label": ["accept", "reject"][n % 2], "selected": n > 30}
        for n in range(number)
    ]
    empty = {"p": None, "rating": None, "error": "no model", "label": None, "selected": False}
    kind = report(tmp_path / "t", records or [empty])
    kind.best, kind.worst = [], []
    times = [StageTimes("scores/images", list(range(1, number + 1)), [2.0] * number, [1.0] * number, [5] * number)]
    drawings = {
        "yield": lambda: plots.yield_of_stages([kind]),
        "scores": lambda: plots.score_distributions(kind),
        "agreement": lambda: plots.score_agreement(kind),
        "labels": lambda: plots.label_agreement([kind]),
        "failures": lambda: plots.failure_reasons([kind]),
        "time": lambda: plots.job_times(times),
    }
    for name, drawing in drawings.items():
        once, again = tmp_path / f"{name}.svg", tmp_path / "again" / f"{name}.svg"
        plots.draw(once, drawing)
        plots.draw(again, drawing)
        for suffix in (".svg", ".png"):
            assert once.with_suffix(suffix).read_bytes() == again.with_suffix(suffix).read_bytes()
        assert b"<dc:date>" not in once.read_bytes()
