"""What requests start from: read once for neighbours, decoded no more than needed, stored as it came or as a PNG."""

import hashlib
import io

import pyarrow.parquet as pq
import pytest
from darkroom.errors import RowError
from darkroom.store import shardfile, sources
from darkroom.store.images import encode_png, open_picture
from darkroom.store.scratch import Scratch
from darkroom.store.shardfile import IMAGE_COLUMNS, write_shard
from darkroom.store.sources import Sources
from PIL import Image


def saved(picture, kind, **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def picture(number, size=(24, 16)):
    return Image.linear_gradient("L").resize(size).convert("RGB").point(lambda value: (value * 3 + 40 * number) % 256)


@pytest.fixture
def decoded(monkeypatch):
    """The names of what is decoded, as it comes."""
    names = []

    def counted(data, name):
        names.append(name)
        return open_picture(data, name)

    monkeypatch.setattr(sources, "open_picture", counted)
    return names


FILES = {
    "plain.png": saved(picture(1), "PNG"),
    "plain.jpg": saved(picture(2), "JPEG"),
    "grey.png": saved(picture(3).convert("L"), "PNG"),
    "palette.gif": saved(picture(4).convert("P"), "GIF"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_job_decodes_a_source_twice_however_it_is_stored(tmp_path, decoded, name):
    (tmp_path / "other.png").write_bytes(FILES["plain.png"])
    (tmp_path / name).write_bytes(FILES[name])
    reference = {"path": name}
    found = Sources(tmp_path, [], Scratch(tmp_path / "scratch"))

    def read(sha256):
        found.read({"path": "other.png"})  # what neighbours share is not what is tried here
        decoded.clear()
        return found.read(reference, sha256), list(decoded)

    first, once = read(None)
    again, twice = read(first.sha256)
    assert once == twice == [name]
    decoded.clear()
    stored = found.stored(reference, first.sha256)
    assert decoded == []
    assert first.sha256 == again.sha256 == hashlib.sha256(FILES[name]).hexdigest()
    assert stored == first.data == again.data == open_picture(FILES[name], name).data
    assert stored == (FILES[name] if name.startswith("plain") else encode_png(first.image))
    assert first.image.tobytes() == again.image.tobytes()
    # Another process, and a job that looks at it for the first time, see the same.
    for spool in (Scratch(tmp_path / "scratch"), None):
        other = Sources(tmp_path, [], spool)
        assert other.read(reference, first.sha256).image.tobytes() == first.image.tobytes()
        assert other.stored(reference, first.sha256) == stored


def test_neighbours_share_what_is_decoded(tmp_path, decoded):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(FILES["plain.png"])
    found = Sources(tmp_path, [])
    for name in ("a.png", "a.png", "b.png", "b.png", "b.png", "a.png"):
        found.read({"path": name})
    assert decoded == ["a.png", "b.png", "a.png"]


@pytest.mark.parametrize("name", ["plain.png", "grey.png"])
def test_a_file_that_changes_meanwhile_is_not_taken_for_what_it_was(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    before = Sources(tmp_path, []).read({"path": name})
    (tmp_path / name).write_bytes(saved(picture(9), "PNG"))
    for read in ("read", "stored"):
        with pytest.raises(RowError, match=f"^image {name} changed while the job ran; run again$"):
            getattr(Sources(tmp_path, []), read)({"path": name}, before.sha256)


def test_row_groups_of_neighbours_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shardfile, "GROUP_ROWS", 3)
    paths = {}
    for shard in ("one", "two"):
        records = [
            dict.fromkeys(IMAGE_COLUMNS)
            | {"row": f"{shard}{n}", "item": 0, "sample": 0, "origin": "given" if n == 2 else "generated"}
            | {"image": {"bytes": saved(picture(n), "PNG"), "path": "p"}}
            for n in range(8)
        ]
        records[7] |= {"image": None, "error": "all black"}
        paths[shard] = tmp_path / f"{shard}.parquet"
        write_shard(paths[shard], IMAGE_COLUMNS, records, {"digest": "d", "rule": "generate_images"})
    found = Sources(tmp_path, list(paths.values()))
    groups, read = [], pq.ParquetFile.read_row_group

    def counted(file, group, **options):
        groups.append((group, options["columns"]))
        return read(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    for number in (0, 3, 1, 4, 2, 5):  # back and forth between two groups of each of two shards
        for shard in ("one", "two"):
            reference = {"row": f"{shard}{number}", "item": 0, "sample": 0}
            assert found.read(reference).image.tobytes() == picture(number).tobytes()
    assert [group for group, _ in groups] == [0, 0, 1, 1]
    assert all(columns == ["image", "error"] for _, columns in groups)
    with pytest.raises(RowError, match=r"^source one7/0/0 was not made: all black$"):
        found.read({"row": "one7", "item": 0, "sample": 0})
    with pytest.raises(RowError, match=r"^source nobody/0/0 is not among the images of this run$"):
        found.read({"row": "nobody", "item": 0, "sample": 0})
    asked = [{"row": row, "item": 0, "sample": 0} for row in ("one1", "two2", "one7", "nobody")]
    origins = [found.origin(reference) for reference in [*asked, {"path": "mine.png"}]]
    assert origins == ["generated", "given", "generated", None, "given"]
