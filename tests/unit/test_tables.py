"""Tables: a line per request with the row's own fields, and no table from shards that are not what is planned."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from darkroom.config.models import Select
from darkroom.errors import DarkroomError
from darkroom.metrics.rubric import Question, Rubric
from darkroom.metrics.score import score_columns
from darkroom.plan.shards import make_plan
from darkroom.rows.labels import labels_digest, read_labels
from darkroom.store.shardfile import IMAGE_COLUMNS, write_shard
from darkroom.tables.kind import Kind, ShardFiles
from darkroom.tables.merge import merge_scores
from darkroom.tables.select import ITEM, NUMBER, Selector

RUBRIC = Rubric({"images": [Question("p", "yes_no", "{prompt}?")], "edited": []})
SELECT = Select(images={"p": 0.5}, per_row=1)


def build(folder, rows, samples=2):
    """Image and score shards as jobs leave them; the score of sample n of row m is known."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = make_plan(folder / "rows.jsonl", "prompts", 4, folder / "results", samples)
    for name in plan.names:
        images, scores = [], []
        for line in map(json.loads, plan.read(name).splitlines()):
            for sample in range(samples):
                own = {key: value for key, value in line["row"].items() if key not in ("id", "prompt")}
                key = f"{line['id']}-{sample}"
                known = {"key": key, "row": line["id"], "item": 0, "sample": sample, "prompt": line["row"]["prompt"]}
                images.append(dict.fromkeys(IMAGE_COLUMNS) | known | {"sha256": key, "fields": json.dumps(own)})
                scores.append(known | {"image_key": key, "sha256": key, "p": 0.4 + 0.3 * sample})
        write_shard(folder / "images" / f"{name}.parquet", IMAGE_COLUMNS, images, {"digest": "i", "rule": "r"})
        columns = score_columns(RUBRIC.columns("images"))
        write_shard(folder / "scores/judge" / f"{name}.parquet", columns, scores, {"digest": "s", "rule": "r"})
    digests = dict.fromkeys(plan.names, "i"), {"judge": dict.fromkeys(plan.names, "s")}
    files = ShardFiles.below(folder / "prompts", folder / "images", folder / "scores")
    return Kind("images", plan, samples, files, *digests, {name: [name] for name in plan.names})


def merged(folder, rows):
    counts = merge_scores(
        [build(folder, rows)], RUBRIC.catalogue, SELECT, folder / "t.parquet", folder / "t.csv", {"digest": "d"}
    )
    with open(folder / "t.csv", newline="", encoding="utf-8") as stream:
        return counts, pq.read_table(folder / "t.parquet").to_pylist(), list(csv.DictReader(stream))


def test_every_request_is_one_line_of_both_tables_and_the_best_sample_is_selected(tmp_path):
    rows = [{"id": f"r{n}", "prompt": f"fox {n}"} for n in range(30)]
    counts, table, lines = merged(tmp_path, rows)
    assert counts == {"images requests": 60, "images made": 60, "images selected": 30}
    assert [(line["row"], line["sample"]) for line in table] == [(f"r{n}", s) for n in range(30) for s in (0, 1)]
    assert [line["selected"] for line in table] == [False, True] * 30
    assert [line["key"] for line in lines] == [line["key"] for line in table]


def test_a_rows_text_and_fields_survive_both_tables(tmp_path):
    odd = 'a\rb\nc\r\n"d", e;\tf \U0001f98a \u2028'
    rows = [
        {"id": "1", "prompt": odd, "note": odd, "key": "mine", "row_key": "also mine", "n": 2**60, "mixed": 1},
        {"id": "2", "prompt": "x", "n": 1.5, "mixed": "one", "flag": True, "deep": {"a": [1]}, "big": 2**70},
        {"id": "3", "prompt": "y", "n": None, "flag": None},
    ]
    _, table, lines = merged(tmp_path, rows)
    first, second, third = table[::2]
    assert len(lines) == 6 and lines[0]["prompt"] == lines[0]["note"] == first["prompt"] == first["note"] == odd
    assert (first["key"], first["row_key"], first["darkroom_key"]) == ("mine", "also mine", "1-0")
    assert (first["n"], second["n"], third["n"]) == (float(2**60), 1.5, None)
    assert (first["mixed"], second["mixed"], second["deep"], lines[2]["deep"]) == ("1", "one", {"a": [1]}, '{"a": [1]}')
    assert (second["flag"], third["flag"], second["big"]) == (True, None, str(2**70))


def test_no_table_is_made_from_stale_missing_or_foreign_shards(tmp_path):
    rows = [{"id": f"r{n}", "prompt": f"fox {n}"} for n in range(9)]
    kind = build(tmp_path, rows)
    first = kind.plan.names[0]
    arguments = RUBRIC.catalogue, SELECT, tmp_path / "t.parquet", tmp_path / "t.csv", {"digest": "d"}
    scores = kind.score_file("judge", first)
    whole = scores.read_bytes()
    columns = score_columns(RUBRIC.columns("images"))
    foreign = [{"image_key": "other", "sha256": "other"}] * (2 * kind.plan.shards[first].rows)
    for made, digest, message in (
        (foreign, "s", "scores are of another picture"),
        ([], "s", "0 scores for"),
        (foreign, "old", "stale"),
    ):
        write_shard(scores, columns, made, {"digest": digest, "rule": "score_images"})
        with pytest.raises(DarkroomError, match=message):
            merge_scores([kind], *arguments)
    scores.unlink()
    with pytest.raises(DarkroomError, match="no such file; run snakemake again"):
        merge_scores([kind], *arguments)
    assert not (tmp_path / "t.parquet").exists() and not (tmp_path / "t.csv").exists()
    scores.write_bytes(whole)
    merge_scores([kind], *arguments)


def chosen(records, select, own=None, by=None):
    """What is selected of these images."""
    columns = {"error": "text", "label": "text", "sample": "int", "key": "text", "p": "float", "selected": "bool"}
    selector = Selector(RUBRIC.catalogue, select, {name: name for name in columns}, columns, own or {}, by)
    items = [(record.get("row", "r"), record.get("item", 0)) for record in records]
    whole = {name: [record.get(name) for record in records] for name in (*columns, *(own or {}))}
    whole |= {NUMBER.strip('"'): range(len(items)), ITEM.strip('"'): [items.index(item) for item in items]}
    types = {"text": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    table = {name: pa.array(values, types.get((columns | (own or {})).get(name))) for name, values in whole.items()}
    return selector.of_table("images", pa.table(table))


def test_a_missing_score_or_image_is_never_selected():
    base = {"row": "r", "item": 0, "sample": 0, "error": None}
    records = [base | {"p": None}, base | {"p": 0.9, "error": "no image"}, base | {"p": 0.5}, base | {"p": 0.49}]
    assert chosen(records, Select(images={"p": 0.5})).selected.to_pylist() == [False, False, True, False]


def labelled(scores, labels, thresholds, per_row, by_label=True):
    """`selected` of samples with these scores and labels, of one item."""
    records = [
        {
            "row": "r",
            "item": 0,
            "sample": n,
            "error": None if score != "none" else "no image",
            "p": None if score == "none" else score,
            "label": label,
        }
        for n, (score, label) in enumerate(zip(scores, labels, strict=True))
    ]
    select = Select(images=thresholds, per_row=per_row, labels=by_label)
    return chosen(records, select).selected.to_pylist()


def test_what_a_person_said_decides_over_thresholds():
    scores, labels = [0.9, 0.1, None, 0.9, "none"], ["reject", "accept", "accept", None, "accept"]
    thresholds = {"p": 0.5}
    assert labelled(scores, labels, thresholds, per_row=None) == [False, True, True, True, False]
    assert labelled(scores, labels, {}, per_row=None) == [False, True, True, True, False]
    # What was accepted takes the places that there are, and is in also where there are fewer.
    assert labelled(scores, labels, thresholds, per_row=2) == [False, True, True, False, False]
    assert labelled(scores, labels, thresholds, per_row=1) == [False, True, True, False, False]
    assert labelled([0.6, 0.9, 0.7], [None, "reject", None], thresholds, per_row=1) == [False, False, True]
    as_scored = labelled(scores, labels, thresholds, per_row=1, by_label=False)
    assert as_scored == [True, False, False, False, False]


def test_labels_reach_the_tables_and_a_label_of_no_image_is_recorded(tmp_path):
    kind = build(tmp_path, [{"id": "a", "prompt": "fox"}, {"id": "b", "prompt": "hen"}])
    text = "key,label\nb-0,accept\na-1,reject\nnobody-0,reject\n"
    (tmp_path / "labels.csv").write_text(text)
    for by_label, chosen in ((True, ["b-0"]), (False, ["a-1", "b-1"])):
        labels = read_labels(tmp_path / "labels.csv", labels_digest(tmp_path / "labels.csv"))
        select = SELECT.model_copy(update={"labels": by_label})
        files = tmp_path / "t.parquet", tmp_path / "t.csv"
        counts = merge_scores([kind], RUBRIC.catalogue, select, *files, {"digest": "d"}, labels)
        table = pq.read_table(tmp_path / "t.parquet").to_pylist()
        assert [line["key"] for line in table if line["selected"]] == chosen
        assert {line["key"]: line["label"] for line in table if line["label"]} == {"b-0": "accept", "a-1": "reject"}
        assert counts["images labelled accept"] == counts["images labelled reject"] == 1
        (told,) = labels.left()
        assert told == {
            "file": "labels",
            "line": 4,
            "reason": "no image has the key nobody-0",
            "text": "nobody-0,reject",
        }
