"""Shard files: what is written comes back, twice the same, and damage is found by whoever reads."""

import random

import pytest
from darkroom.errors import DarkroomError
from darkroom.metrics.score import SCORE_COLUMNS, ScoreRecord
from darkroom.store.shardfile import (
    EDITED_COLUMNS,
    GROUP_ROWS,
    IMAGE_COLUMNS,
    ImageRecord,
    RecordReader,
    check_digest,
    iter_records,
    read_meta,
    write_shard,
)
from hypothesis import given, settings
from hypothesis import strategies as st

META = {"digest": "d" * 32, "rule": "generate_images"}


def records(count, seed=0):
    rng = random.Random(seed)
    for number in range(count):
        picture = {"bytes": rng.randbytes(rng.randrange(300)), "path": f"{number}.png"}
        record = dict.fromkeys(IMAGE_COLUMNS) | {"key": f"{number:04x}", "row": f"r{number // 2}", "sample": number % 2}
        yield record | {"prompt": "a fox \U0001f98a" * (number % 5), "image": None if number % 7 == 3 else picture}


@settings(derandomize=True, deadline=None, max_examples=25)
@given(count=st.integers(0, 3 * GROUP_ROWS), seed=st.integers(0, 999))
def test_records_come_back_in_order_and_by_position_and_two_files_are_equal(tmp_path_factory, count, seed):
    folder = tmp_path_factory.mktemp("shard")
    paths = [folder / "a.parquet", folder / "deeper" / "b.parquet"]
    for path in paths:
        assert write_shard(path, IMAGE_COLUMNS, records(count, seed), META) == count
    assert paths[0].read_bytes() == paths[1].read_bytes()
    expected = list(records(count, seed))
    assert list(iter_records(paths[0])) == expected
    assert list(iter_records(paths[0], ["key"])) == [{"key": record["key"]} for record in expected]
    reader = RecordReader(paths[0])
    places = random.Random(seed).sample(range(count), min(count, 9))
    assert [reader[place] for place in places] == [expected[place] for place in places]
    assert check_digest(paths[0], META["digest"]) == META | {"records": count}
    assert sorted(path.name for path in folder.iterdir()) == ["a.parquet", "deeper"]


def test_a_flipped_bit_is_harmless_or_found(tmp_path):
    path, damaged = tmp_path / "s.parquet", tmp_path / "damaged.parquet"
    write_shard(path, EDITED_COLUMNS, records(8), META)
    whole, data, rng = list(iter_records(path)), path.read_bytes(), random.Random(0)
    found = 0
    # Every byte of what is behind the pages, where there are no checksums, would take a minute: a fixed sample.
    for place in rng.sample(range(len(data)), 500):
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        damaged.write_bytes(flipped)
        try:
            check_digest(damaged, META["digest"])
            assert list(iter_records(damaged)) == whole
        except DarkroomError as error:
            found += 1
            assert str(damaged) in str(error) and "\n" not in str(error)
    assert found > 250


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all" * 10, bytes(1000)])
def test_what_is_no_shard_is_said_in_one_line(tmp_path, content):
    path = tmp_path / "s.parquet"
    path.write_bytes(content)
    for read in (read_meta, RecordReader, lambda path: list(iter_records(path))):
        with pytest.raises(DarkroomError, match="damaged") as error:
            read(path)
        assert "\n" not in str(error.value)
    with pytest.raises(DarkroomError, match="no such file; run snakemake again"):
        read_meta(tmp_path / "gone.parquet")


def test_a_stale_shard_says_what_to_do(tmp_path):
    write_shard(tmp_path / "s.parquet", IMAGE_COLUMNS, records(2), META)
    with pytest.raises(DarkroomError, match=r"stale, made for digest d+ where eee is planned; run snakemake again"):
        check_digest(tmp_path / "s.parquet", "eee")


def test_a_shard_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "s.parquet"
    write_shard(path, IMAGE_COLUMNS, records(3), META)
    before = path.read_bytes()

    def broken():
        yield from records(100)
        raise DarkroomError("stop")

    with pytest.raises(DarkroomError, match="stop"):
        write_shard(path, IMAGE_COLUMNS, broken(), META)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_types_of_records_are_those_of_their_columns():
    assert list(ImageRecord.__annotations__) == list(EDITED_COLUMNS)
    assert ImageRecord.__required_keys__ == set(IMAGE_COLUMNS)
    assert list(ScoreRecord.__annotations__) == list(SCORE_COLUMNS)
