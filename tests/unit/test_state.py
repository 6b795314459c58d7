"""Which files must be made again although they are there, and whose inputs are newer but say the same."""

import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest
from darkroom.run.lineage import File
from darkroom.run.outputs import Output
from darkroom.run.state import look, touch_stamp
from darkroom.store.manifest import Manifest, read_manifest, write_manifest
from darkroom.store.shardfile import write_shard_with_manifest

COLUMNS = {"key": "text", "error": "text"}
CLOCK = itertools.count(10**9)


def touch(*paths):
    """Give files a time after all others'."""
    for path in paths:
        now = next(CLOCK)
        os.utime(path, (now, now))


def make(path, digest="d", made_from=(), keys="ab", failed=0):
    """A shard file with its manifest, newer than all before it."""
    records = [{"key": key, "error": None} for key in keys]
    meta = {"digest": digest, "rule": "r", "failed": failed}
    manifest = write_shard_with_manifest(path, COLUMNS, records, meta, list(made_from))
    touch(path, path.with_suffix(".manifest"))
    return manifest["content"]


@pytest.fixture
def files(tmp_path):
    """A file of pictures, and one of scores that is made from it."""
    images, scores = tmp_path / "images.parquet", tmp_path / "scores.parquet"
    content = make(images)
    make(scores, "s", [content])
    return File("a", str(images), "d", []), File("a", str(scores), "s", [str(images)])


def again(*shards, retry_failed=False):
    """(names of files to be made again, names of those that are settled)."""
    state = look(shards, (), (), retry_failed)
    return [{os.path.basename(path) for path in found} for found in (state.again, state.settled)]


def test_what_is_there_and_older_than_what_follows_is_left_alone(files):
    assert again(*files) == [set(), set()]


def test_what_is_missing_altogether_is_snakemakes_to_see(files):
    for path in (files[0].path, files[0].manifest):
        Path(path).unlink()
    assert again(*files) == [set(), set()]


@pytest.mark.parametrize("part", ["path", "manifest"])
def test_half_of_a_pair_is_made_again(files, part):
    Path(getattr(files[0], part)).unlink()
    assert again(files[0]) == [{"images.parquet"}, set()]


def test_a_touched_file_is_the_one_that_was_made(files):
    touch(files[0].path)
    assert again(*files) == [set(), set()]


def test_a_touched_manifest_that_says_the_same_settles_what_follows(files):
    touch(files[0].manifest)
    assert again(*files) == [set(), {"scores.parquet"}]


def test_other_content_is_scored_again(files, tmp_path):
    make(tmp_path / "images.parquet", keys="abc")
    assert again(*files) == [{"scores.parquet"}, set()]


def test_a_file_that_another_replaced_or_that_was_cut_short_is_made_again(files, tmp_path):
    whole = (tmp_path / "images.parquet").read_bytes()
    other = tmp_path / "other.parquet"
    make(other, digest="other", keys="xy")
    for data in (other.read_bytes(), whole[: len(whole) // 2], b""):
        (tmp_path / "images.parquet").write_bytes(data)
        touch(files[0].path)
        assert again(files[0])[0] == {"images.parquet"}
    (tmp_path / "images.parquet").write_bytes(whole)
    touch(files[0].path)
    assert again(files[0]) == [set(), set()]


def test_a_manifest_that_cannot_be_read_is_made_again_where_it_is_asked(files):
    with open(files[1].manifest, "w") as out:
        out.write("half")
    touch(files[1].manifest, files[0].manifest)
    assert again(*files)[0] == {"scores.parquet"}


def test_failures_are_tried_again_only_on_demand(tmp_path):
    make(tmp_path / "bad.parquet", failed=1)
    file = File("a", str(tmp_path / "bad.parquet"), "d", [])
    assert again(file) == [set(), set()]
    assert again(file, retry_failed=True) == [{"bad.parquet"}, set()]


def test_retrying_leaves_files_without_failures_alone(files):
    assert again(*files, retry_failed=True) == [set(), set()]


@pytest.fixture
def output(files, tmp_path):
    """A table made from the scores."""
    table = tmp_path / "table.csv"
    found = Output("tables", [str(table)], "t", [files[1].manifest], str(tmp_path / "tables.manifest"))
    table.write_text("")
    write_manifest(tmp_path / "tables.manifest", found.manifest(2))
    touch(table, found.made)
    return found


def looked(output):
    state = look((), (), [output], False)
    return state.again, state.settled


def test_an_output_is_made_again_where_it_was_made_for_something_else(output):
    assert looked(output) == (set(), set())
    assert looked(replace(output, digest="other")) == ({output.made}, set())


def test_an_output_follows_the_content_of_its_inputs(output, tmp_path):
    touch(*output.inputs)
    assert looked(output) == (set(), {output.made})
    make(tmp_path / "scores.parquet", "s", ["x"], keys="abc")
    assert looked(output) == ({output.made}, set())


def test_an_output_whose_files_are_missing_is_snakemakes_to_see(output):
    Path(output.files[0]).unlink()
    assert looked(replace(output, digest="other")) == (set(), set())


def test_the_manifest_of_an_output_says_what_it_was_made_from(output, tmp_path):
    first = read_manifest(output.made)
    assert first == output.manifest(2) and first["made_from"] == [output.made_from()]
    assert first["content"] != replace(output, digest="other").manifest(2)["content"]
    make(tmp_path / "scores.parquet", "s", ["x"], keys="abc")
    assert output.manifest(2)["content"] != first["content"]
    Path(output.inputs[0]).unlink()
    assert output.made_from()  # of what is missing, nothing


def test_the_stamp_is_new_wherever_something_is_made_again(tmp_path):
    stamp = tmp_path / "deep" / "again"
    touch_stamp(stamp, False)
    first = stamp.read_text()
    touch_stamp(stamp, False)
    assert stamp.read_text() == first
    touch_stamp(stamp, True)
    assert stamp.read_text() != first


def test_a_manifest_is_read_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.manifest"
    assert read_manifest(path) is None
    manifest = Manifest(digest="d", records=1, failed=0, content="c", made_from=[])
    write_manifest(path, manifest)
    assert read_manifest(path) == manifest
    for text in ("", "{}", "[]", "3", '{"digest": "d"}'):
        path.write_text(text)
        assert read_manifest(path) is None
