"""Labels of people: what their file says, and what becomes of lines that cannot be used."""

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from darkroom.errors import DarkroomError
from darkroom.rows.labels import labels_digest, read_labels
from darkroom.tools.failures import find_failures
from test_row_formats import run_of


def read(path, data):
    path.write_bytes(data)
    return read_labels(path, hashlib.sha256(data).hexdigest())


def test_every_line_is_a_label_or_is_told_with_its_number_and_reason(tmp_path):
    data = b'\xef\xbb\xbflabel, Key ,prompt\r\naccept,a,"two\nlines"\nReject , b,x\n\n,c,none yet\nmaybe,d,x\naccept\nreject,a,again\naccept,z,x\n'
    labels = read(tmp_path / "labels.csv", data)
    assert [labels.of(key) for key in "abcd"] == ["reject", "reject", None, None]
    told = {record["line"]: record["reason"] for record in labels.left()}
    assert told == {
        2: "the same key is labelled again in line 9",
        7: "label maybe is neither accept nor reject",
        8: "1 cells, without a key or a label",
        10: "no image has the key z",
    }
    assert {record["file"] for record in labels.left()} == {"labels"}


@pytest.mark.parametrize(
    "data, told",
    [
        (b"", "line 1: no column key"),
        (b"key,verdict\na,accept\n", "line 1: no column label; the gallery exports key,label,..."),
        (b"key,label\na,accept\n\xff,reject\n", "line 3: not UTF-8; save it as CSV in UTF-8"),
        (b'key,label\na,accept\n"b"c,reject\n', "line 3: not CSV"),
    ],
)
def test_a_file_that_is_no_such_csv_is_one_line(tmp_path, data, told):
    with pytest.raises(DarkroomError, match=r"labels\.csv, line") as caught:
        read(tmp_path / "labels.csv", data)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_gone_or_changed_since_the_plan_is_refused(tmp_path):
    path = tmp_path / "labels.csv"
    with pytest.raises(DarkroomError, match=r"labels\.csv: cannot be read: No such file"):
        labels_digest(path)
    path.write_text("key,label\na,accept\n")
    digest = labels_digest(path)
    path.write_text("key,label\na,reject\n")
    with pytest.raises(DarkroomError, match="changed during the run; run snakemake again"):
        read_labels(path, digest)


def test_labels_of_no_image_are_known_once_there_is_a_table(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a red circle"}\n')
    (tmp_path / "labels.csv").write_text("key,label\na,accept\nb,reject\nc,perhaps\n")
    run = run_of(tmp_path, prompts="rows.jsonl", labels="labels.csv")
    start = f"{tmp_path}/labels.csv: "
    assert list(run.rejected_lines()) == [
        f"{start}1 lines of no use: line 4: label perhaps is neither accept nor reject"
    ]
    (tmp_path / "results").mkdir(exist_ok=True)
    pq.write_table(pa.table({"key": ["z", "b", None]}), tmp_path / "results/scores.parquet")
    (told,) = run.rejected_lines()
    assert told.startswith(f"{start}2 lines of no use: line 2: no image has the key a; line 4: label perhaps")
    assert [failure.line for failure in find_failures(run)] == [2, 4]
    (tmp_path / "results/scores.parquet").write_bytes(b"damaged")
    assert len(run.wrong_labels()) == 1
    (tmp_path / "labels.csv").write_text("image,verdict\na,accept\n")
    with pytest.raises(DarkroomError, match=r"labels\.csv, line 1: no column key; the gallery exports key,label"):
        run_of(tmp_path, prompts="rows.jsonl", labels="labels.csv")
