"""What is kept of unfinished work, and found again: scratch folders, journals, shard files of earlier recipes."""

import os

import pytest
from darkroom.store.carry import ShardFolder, find_images, find_scores, take_over, waiting_images
from darkroom.store.journal import clear_journal, open_journal, read_journal
from darkroom.store.scratch import Scratch
from darkroom.store.shardfile import IMAGE_COLUMNS, write_shard


@pytest.fixture
def scratch(tmp_path):
    return Scratch(tmp_path / "scratch" / "one")


def test_what_belongs_to_rows_that_moved_survives_the_clearing(scratch):
    for key in ("aa1", "aa2", "bb1"):
        scratch.put(key, key.encode())
    scratch.clear({"aa1", "bb1", "never-there"})
    assert [scratch.has(key) for key in ("aa1", "aa2", "bb1")] == [False, True, False]
    assert scratch.folder.exists()
    scratch.clear({"aa2"})
    assert not scratch.folder.exists()
    scratch.clear({"aa2"})  # a folder that is gone is cleared


def test_neighbours_images_are_taken_over(scratch):
    other = scratch.of_shard("two")
    other.put("aa1", b"theirs")
    other.put("aa2", b"theirs, too")
    scratch.put("aa2", b"ours")
    take_over(["aa1", "aa2", "aa3"], scratch, ["one", "two", "nobody"])
    assert (scratch.get("aa1"), scratch.get("aa2"), scratch.get("aa3")) == (b"theirs", b"ours", None)
    assert other.get("aa1") == b"theirs"
    assert set(waiting_images(["aa1", "aa3"], scratch, ["two"])) == {"aa1"}


def test_a_file_that_goes_while_it_is_looked_for_is_none(scratch, monkeypatch):
    other = scratch.of_shard("two")
    for key in ("aa1", "aa2"):
        other.put(key, b"theirs")
    has = Scratch.has

    def has_then_gone(self, key):
        """Its own job finishes at this moment, and clears its folder."""
        other.clear({"aa1"})
        return has(self, key)

    monkeypatch.setattr(Scratch, "has", has_then_gone)
    take_over(["aa1", "aa2"], scratch, ["two"])
    assert (scratch.get("aa1"), scratch.get("aa2")) == (None, b"theirs")


def test_a_journal_keeps_what_is_left(tmp_path):
    path = tmp_path / "deep" / "j.jsonl"
    assert read_journal(path) == {}
    with open_journal(path) as journal:
        journal.add({"k1": {"s": 1}, "k2": {"s": 2}})
        assert set(read_journal(path)) == {"k1", "k2"}  # on the disk at once
    with open(path, "a") as out:
        out.write('{"key": "k3", "sco')  # killed
    with open_journal(path) as journal:
        journal.add({"k4": {"s": 4}})
    assert set(read_journal(path)) == {"k1", "k2", "k4"}
    clear_journal(path, {"k1", "k4"})
    assert read_journal(path) == {"k2": {"s": 2}}
    clear_journal(path, {"k2"})
    assert not path.exists()
    clear_journal(path, {"k2"})


def test_files_come_in_the_order_of_the_shards_and_the_newest_first(tmp_path):
    times = {"r1/aaa-1": 30, "r1/bbb-1": 40, "r2/aaa-1": 50, "r2/aaa-2": 20, "r1/ccc-1": 60}
    for name, time in times.items():
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        os.utime(path, (time, time))
    (tmp_path / "r1/aaa-1.manifest").write_text("")
    (tmp_path / "r1/.aaa-1.parquet").write_text("")  # one that is being written
    found = ShardFolder(tmp_path).files(["bbb", "aaa", "ddd"])
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        f"{name}.parquet" for name in ("r1/bbb-1", "r2/aaa-1", "r1/aaa-1", "r2/aaa-2")
    ]
    assert ShardFolder(tmp_path / "none").files(["aaa"]) == []


def test_images_are_found_in_the_first_file_that_has_them(tmp_path):
    def shard(name, **records):
        rows = [dict.fromkeys(IMAGE_COLUMNS) | {"key": key} | record for key, record in records.items()]
        write_shard(tmp_path / name, IMAGE_COLUMNS, rows, {"digest": "d", "rule": "r"})
        return tmp_path / name

    new = shard("a.parquet", k1={"sha256": "1"}, k2={"error": "no"}, k3={"origin": "given", "sha256": "3"})
    old = shard("b.parquet", k1={"sha256": "old"}, k2={"sha256": "2"}, k9={"sha256": "9"})
    (tmp_path / "c.parquet").write_bytes(b"damaged")
    found = find_images(["k1", "k2", "k3"], [tmp_path / "c.parquet", new, old])
    assert {key: (place.path, place.position) for key, place in found.items()} == {"k1": (new, 0), "k2": (old, 1)}


def test_scores_of_journals_and_files_are_put_together(tmp_path):
    columns = {"key": "text", "sha256": "text", "s": "int", "e": "text"}

    def scores(name, columns=columns, **records):
        rows = [{"key": key, "sha256": "x", "e": None} | record for key, record in records.items()]
        write_shard(tmp_path / name, columns, rows, {"digest": "d", "rule": "r"})
        return tmp_path / name

    new = scores("a.parquet", k1={"s": 1}, k2={"s": None, "e": "unreadable"}, k3={"s": 9, "sha256": None})
    old = scores("b.parquet", k1={"s": 7}, k4={"s": 4})
    other = scores("c.parquet", columns={"key": "text", "sha256": "text", "t": "int", "e": "text"}, k5={"t": 5})
    with open_journal(tmp_path / "j.jsonl") as journal:
        journal.add({"k6": {"s": 6, "e": None}})
    arguments = ["s", "e"], ["e"], [new, old, other], [tmp_path / "j.jsonl", tmp_path / "none.jsonl"]
    known = find_scores(*arguments, retry_failed=False)
    assert {key: value["s"] for key, value in known.items()} == {"k1": 1, "k2": None, "k4": 4, "k6": 6}
    assert set(find_scores(*arguments, retry_failed=True)) == {"k1", "k4", "k6"}
