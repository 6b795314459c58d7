"""Labels of people: what their file says, and what becomes of lines that cannot be used."""

import hashlib

import pytest
from darkroom.errors import DarkroomError
from darkroom.rows.labels import labels_digest, read_labels


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
