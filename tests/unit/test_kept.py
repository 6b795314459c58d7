"""What is kept of unfinished work, and found again: scratch folders, journals, shard files of earlier recipes."""

import os
from dataclasses import replace

import pytest
from darkroom.plan.parts import Part, score_keys
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
        journal.add({"k1": {"a1": {"s": 1}}, "k2": {"a2": {"s": 2}, "b2": {"t": 2}}})
        assert set(read_journal(path)) == {"k1", "k2"}  # on the disk at once
    with open(path, "a") as out:
        out.write('{"key": "k3", "sco')  # killed
    with open_journal(path) as journal:
        journal.add({"k4": {"a4": {"s": 4}}, "k1": {"b1": {"t": 1}}})
    assert set(read_journal(path)) == {"k1", "k2", "k4"} and set(read_journal(path)["k1"]) == {"a1", "b1"}
    clear_journal(path, {"a1", "b1", "a2", "a4"})
    assert read_journal(path) == {"k2": {"b2": {"t": 2}}}
    clear_journal(path, {"b2"})
    assert not path.exists()
    clear_journal(path, {"b2"})


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
    """A file of another recipe gives the columns of the parts that are the same, each picture's under the part's own key."""
    s, t = (Part(name, (name, f"{name}_e"), (f"{name}_e",), {"asks": name}) for name in "st")
    changed = replace(t, recipe={"asks": "otherwise"})
    columns = dict.fromkeys(("key", "prompt", "sha256", "fields", "s", "s_e", "t", "t_e"), "text")
    pictures = {n: {"prompt": "p", "sha256": f"{n}", "source_sha256": "a", "fields": "{}"} for n in range(6)}

    def scores(name, recipe, parts, **records):
        key = score_keys(recipe)
        about = {int(n[1:]): {"s": None, "s_e": None, "t": None, "t_e": None} | said for n, said in records.items()}
        rows = [
            {"key": key(pictures[n])} | {k: v for k, v in pictures[n].items() if k in columns} | said
            for n, said in about.items()
        ]
        told = {part.name: [part.identity, part.shared] for part in parts}
        write_shard(tmp_path / name, columns, rows, {"digest": "d", "rule": "r", "recipe": recipe, "parts": told})
        return tmp_path / name

    new = scores("a.parquet", {"r": 1}, [s, t], k0={"s": "1", "t": "2"}, k1={"s_e": "unreadable", "t": "3"})
    old = scores("b.parquet", {"r": 2}, [s, changed], k0={"s": "7", "t": "8"}, k2={"s": "4", "t": "5"})
    foreign = tmp_path / "c.parquet"
    write_shard(foreign, columns, [], {"digest": "d", "rule": "r", "recipe": {"r": 1}})
    other_source = {"prompt": "p", "sha256": "2", "source_sha256": "b", "fields": "{}"}
    with open_journal(tmp_path / "j.jsonl") as journal:
        journal.add({"k": {s.keys()(pictures[3]): {"s": "6", "s_e": None}}})
    arguments = (
        [s, t],
        [*pictures.values(), other_source],
        [new, old, foreign],
        [tmp_path / "j.jsonl", tmp_path / "none"],
    )
    known = find_scores(*arguments, retry_failed=False)

    def found(part, known):
        keys = {part.keys()(record): n for n, record in pictures.items()}
        return {keys[key]: scores[part.name] for key, scores in known.items() if key in keys}

    assert found(s, known) == {0: "1", 1: None, 2: "4", 3: "6"} and found(t, known) == {0: "2", 1: "3"}
    assert s.keys()(other_source) not in known and len(known) == 6
    assert found(s, find_scores(*arguments, retry_failed=True)) == {0: "1", 2: "4", 3: "6"}
