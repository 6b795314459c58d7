"""The metrics of pixels in a real run without a model: their columns, what does not apply, and what another value asks again."""

import json

import pandas as pd
import pytest
from conftest import REPOSITORY, Run, opened, score_files, small_config
from darkroom.jobs.history import read_records
from darkroom.tools.forecast import forecast
from test_ocr import drawn

METRICS = ("phash", "quality", "preserved", "ocr")
ROWS = [
    {"id": "right", "prompt": "a sign", "images": ["river.png"], "sign": "river"},
    {"id": "wrong", "prompt": "a sign", "images": ["rover.png"], "sign": "river"},
    {"id": "none", "prompt": "a sign", "images": ["river.png"], "note": "no text is asked for"},
    {"id": "lost", "prompt": "a sign", "images": ["gone.png"], "sign": "river"},
]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("metrics"))
    (run.folder / "silent.yaml").write_text("images: []\nedited: []\n")
    run.config = small_config(
        extensions=[str(REPOSITORY / f"tests/extensions/{name}.py") for name in ("flat_colour", "blend")],
        edits="edits.jsonl",
        generate={"family": "flat-colour"},
        edit={"family": "blend"},
        judge={"rubric": "silent.yaml"},
        metrics=dict.fromkeys(METRICS) | {"ocr": {"text": "sign"}},
        select={"images": {"ocr": 0.9}},
        gallery={"enabled": True},
        report={"enabled": True},
        shards={"size": 1000},
    )
    for word in ("river", "rover"):
        drawn(word.capitalize(), 1).save(run.folder / f"{word}.png")
    run.write_rows("prompts.jsonl", ROWS)
    run.write_rows("edits.jsonl", [{"id": "e", "prompt": "blend it", "images": [{"row": "right"}], "sign": "river"}])
    run.snakemake()
    return run


def test_every_metric_has_its_columns_and_no_text_is_no_failure(done):
    table = pd.read_parquet(done.results / "scores.parquet").set_index("row")
    assert table["ocr"].dropna().to_dict().items() >= {"right": 1.0, "wrong": 0.8}.items()
    assert table["selected"][["right", "wrong", "none", "lost"]].to_list() == [True, False, False, False]
    missing = table.loc["none", ["ocr", "ocr_exact", "ocr_text", "ocr_error"]]
    assert missing.isna().all() and table.loc["lost", "ocr_error"].startswith("no image: ")
    assert table.loc["right", "phash"] == table.loc["none", "phash"] != table.loc["wrong", "phash"]
    made = table.drop("lost")
    assert made["sharpness"].between(0, 1).all() and made["pixels_error"].isna().all()
    assert list(made.index[made["preserved"].notna()]) == ["e"] and 0 <= made.loc["e", "changed"] <= 1
    failures = done.darkroom("failures").stdout
    assert "row lost" in failures and "row none" not in failures
    shown = "".join(path.read_text() for path in done.results.glob("gallery/images/*-*/*.js"))
    assert '"ocr_text"' in shown and '"border_share"' in shown


def test_another_text_in_a_row_is_compared_anew_and_nothing_else(done):
    done.write_rows("prompts.jsonl", [row | {"sign": "rover"} if row["id"] == "wrong" else row for row in ROWS])
    told = {stage.name: (stage.to_make, stage.carried) for stage in forecast(opened(done, planned=False))}
    assert {name: made for name, (made, _) in told.items() if made} == {"scores/ocr/images": 1}
    assert told["scores/ocr/images"] == (1, 2)
    (path,) = score_files(done, metric="ocr")
    done.snakemake(str(path.relative_to(done.folder)))
    *_, record = read_records(done.results / "benchmarks/score_images/ocr/images")
    assert (record["made"], record["carried"]) == (1, 2)
    assert pd.read_parquet(path).set_index("row")["ocr"].to_dict()["wrong"] == 1
    assert json.loads(pd.read_parquet(path).set_index("row")["fields"]["wrong"])["sign"] == "rover"
