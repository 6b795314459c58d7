"""The report's statistics are those of the libraries that have the whole table, and its drawings repeat byte by byte."""

import math

import numpy as np
import pandas as pd
import pytest
from darkroom.config.models import Select
from darkroom.errors import general
from darkroom.metrics.rubric import Question, Rubric
from darkroom.views import plots
from darkroom.views.report import StageTimes, read_table
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
    assert kind.correlation("p", "rating") == pytest.approx(expected, nan_ok=True)
    for name in ("p", "rating"):
        assert kind.scores[name].mean == pytest.approx(numbers[name].mean(), nan_ok=True)
        good, bad = (numbers[made["label"] == label][name].dropna().to_numpy() for label in ("accept", "reject"))
        wins = [(g > b) + 0.5 * (g == b) for g in good for b in bad]
        assert kind.scores[name].auc == pytest.approx(np.mean(wins) if wins else math.nan, nan_ok=True)
    labelled = made[made["label"].notna()]
    assert kind.labelled == len(labelled)
    assert np.trace(kind.agreement[:, ::-1]) == ((labelled["label"] == "accept") == labelled["selected"]).sum()


def test_reasons_that_differ_in_names_and_numbers_count_together():
    for one, other in (
        ("image a: b.png: No such file", "image c.png: No such file"),
        ("rating is 12, outside 1 to 10", "rating is 0, outside 1 to 10"),
        ("refers to row 'a'", "refers to row 'b c'"),
    ):
        assert general(one.replace("a: b", "ab")) == general(other)


@pytest.mark.parametrize("number", [0, 1, 60])
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
