"""Plans: where shards are cut, what a change makes stale, and that every line is accounted for."""

import csv
import gzip
import itertools
import json
import os
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from darkroom.config.models import Generate
from darkroom.errors import DarkroomError
from darkroom.plan.requests import expand
from darkroom.plan.shards import GREATEST, _hash64, _spacing, load_plan, make_plan
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

stable = settings(derandomize=True, deadline=None, max_examples=60)
SECTION = Generate(width=64, height=64, steps=1)


def prompt_rows(count, seed=0, ids=True):
    rng = random.Random(seed)
    words = [f"{rng.getrandbits(40):x}" for _ in range(count)]
    return [{"id": f"r{word}", "prompt": word} if ids else {"prompt": word} for word in words]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def plan_of(folder, rows, size, kind="prompts", **arguments):
    """The plan of `rows`, written to a file whose state differs from the last one's."""
    path = write_lines(folder / f"{kind}.jsonl", rows)
    plan_of.clock += 1
    os.utime(path, (plan_of.clock, plan_of.clock))
    return make_plan(path, kind, size, folder / "results", **arguments)


plan_of.clock = 10**9


def identities(plan):
    return {(shard.name, shard.digest, shard.sources) for shard in plan.shards.values()}


def sizes(plan):
    return [shard.rows + shard.rejected for shard in plan.shards.values()]


def forced(plan, size):
    return any(count >= GREATEST * size for count in sizes(plan))


def change(rows, kind, at, rng):
    rows = list(rows)
    if kind == "insert":
        rows.insert(at, {"id": f"new{rng.getrandbits(40):x}", "prompt": "new"})
    elif kind == "delete":
        del rows[at]
    elif kind == "edit":
        rows[at] = rows[at] | {"prompt": "edited"}
    elif kind == "replace":
        rows[at] = {"id": f"new{rng.getrandbits(40):x}", "prompt": "new"}
    elif kind == "break":
        rows[at] = ["no", "object"]
    elif kind == "duplicate":
        rows.insert(at, rows[at])
    elif kind == "swap":
        at = min(at, len(rows) - 2)
        rows[at], rows[at + 1] = rows[at + 1], rows[at]
    return rows


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("kind", ["insert", "delete", "edit", "replace", "break", "duplicate"])
@settings(stable, max_examples=25)
@given(seed=st.integers(0, 2**32), size=st.integers(4, 40), count=st.integers(2, 300))
def test_one_changed_row_makes_at_most_two_shards_stale(tmp_path_factory, kind, ids, seed, size, count):
    folder, rng = tmp_path_factory.mktemp("plan"), random.Random(seed)
    rows = prompt_rows(count, seed, ids)
    old = plan_of(folder, rows, size)
    # Half of the changes hit a border, where most can go wrong.
    borders = [sum(sizes(old)[:n]) for n in range(len(old.shards))]
    at = rng.choice([rng.choice(borders), max(0, rng.choice(borders) - 1), rng.randrange(count), rng.randrange(count)])
    new = plan_of(folder, change(rows, kind, at, rng), size)
    assume(not forced(old, size) and not forced(new, size))  # see the test of forced cuts
    assert len(identities(new) - identities(old)) <= 2


@pytest.mark.long
@settings(stable, max_examples=80)
@given(seed=st.integers(0, 2**32), size=st.integers(8, 40))
def test_swapped_neighbours_make_at_most_three_shards_stale_and_hardly_ever_three(tmp_path_factory, seed, size):
    # A swap changes two rows. Three shards need a border at the second row and another candidate exactly `gap` rows on.
    folder, rng = tmp_path_factory.mktemp("plan"), random.Random(seed)
    rows = prompt_rows(200, seed)
    old = plan_of(folder, rows, size)
    new = plan_of(folder, change(rows, "swap", rng.randrange(199), rng), size)
    assume(not forced(old, size) and not forced(new, size))
    stale = identities(new) - identities(old)
    assert len(stale) <= 3
    assert len(stale) <= 2 or abs(len(new.shards) - len(old.shards)) == 1


@stable
@given(seed=st.integers(0, 2**32), size=st.integers(1, 40), count=st.integers(1, 200), more=st.integers(1, 60))
def test_appended_rows_touch_only_the_last_shard(tmp_path_factory, seed, size, count, more):
    folder = tmp_path_factory.mktemp("plan")
    rows = prompt_rows(count, seed, ids=False)
    old = plan_of(folder, rows, size)
    new = plan_of(folder, rows + prompt_rows(more, seed + 1) + rows[:2], size)
    kept = list(old.shards.values())[:-1]
    assert list(new.shards.values())[: len(kept)] == kept


@stable
@given(seed=st.integers(0, 2**32), size=st.integers(1, 60), count=st.integers(1, 500))
def test_shards_lie_between_the_least_and_the_greatest_size_and_have_names_of_their_own(
    tmp_path_factory, seed, size, count
):
    plan = plan_of(tmp_path_factory.mktemp("plan"), prompt_rows(count, seed), size)
    counts = sizes(plan)
    assert sum(counts) == count and max(counts) <= GREATEST * size
    gap, _ = _spacing(size)
    for before, after in zip([0, *counts], counts[:-1], strict=False):  # the last may be short
        assert after > gap or before == GREATEST * size
    assert len(set(plan.names)) == len(plan.names)


def test_shards_have_the_asked_for_size_on_average(tmp_path):
    rows = prompt_rows(6_000, 5)
    for size in (10, 100):
        counts = sizes(plan_of(tmp_path, rows, size))
        assert 0.8 * size < sum(counts) / len(counts) < 1.25 * size


def test_a_long_run_without_candidates_is_cut_by_force_and_the_next_candidate_ends_its_influence(tmp_path):
    size = 10
    _, threshold = _spacing(size)
    ids = [f"n{number}" for number in range(3000)]
    plain = [{"id": i, "prompt": i} for i in ids if _hash64(i.encode()) >= threshold][: 9 * size]
    rows = plain + prompt_rows(200, 3)
    old, new = plan_of(tmp_path, rows, size), plan_of(tmp_path, rows[:3] + rows[4:], size)
    assert sizes(old)[:2] == [GREATEST * size] * 2 and max(sizes(new)) <= GREATEST * size
    # The three shards of the run move; those after it do not.
    assert len(identities(new) - identities(old)) <= 3
    assert len(new.shards) > 10


def test_reversed_rows_are_the_same_requests(tmp_path):
    rows = prompt_rows(200, 1, ids=False)
    one, other = ({row["id"] for _, row in plan_of(tmp_path, r, 7).rows()} for r in (rows, rows[::-1]))
    assert one == other and len(one) == 200


def mixed_rows():
    """Rows with ids, in forms that all formats can hold; numbers in known fields only."""
    for number in range(120):
        row = {"id": f"id{number}", "note": f'note {number}, "quoted"\nand broken, {chr(0x1F600 + number % 50)}'}
        turns = [{"role": "user", "content": f"a fox, number {number}"}]
        yield row | {"conversations": turns} | ({"width": 64, "seed": number} if number % 3 else {"guidance": 2.5})


def test_the_same_rows_have_the_same_plan_from_every_format(tmp_path):
    rows = list(mixed_rows())
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "crlf.jsonl").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    (tmp_path / "sorted.ndjson").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(tmp_path / "rows.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {"conversations": json.dumps(row["conversations"])})
    with gzip.open(tmp_path / "zipped.csv.gz", "wb") as stream:
        stream.write((tmp_path / "rows.csv").read_bytes())
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), tmp_path / "rows.parquet")
    plans = {
        path.name: make_plan(path, "prompts", 8, tmp_path / f"results of {path.name}")
        for path in sorted(tmp_path.glob("*.*"))
    }
    assert len(plans) == 7
    expected = plans["rows.jsonl"]
    assert len(expected.shards) > 5 and not any(shard.rejected for shard in expected.shards.values())
    for name, plan in plans.items():
        assert (name, plan.names, plan.digest) == (name, expected.names, expected.digest)
        assert [plan.read(shard) for shard in plan.names] == [expected.read(shard) for shard in plan.names]
        # The order of names is no part of what a shard holds, but of what the tables are made for.
        given = ["content", "role"] if name.startswith("sorted") else ["role", "content"]
        assert plan.order.names["conversations"] == given
    assert plans["sorted.ndjson"].id != expected.id == plans["crlf.jsonl"].id


def test_the_plan_depends_on_neither_folder_nor_time_nor_blank_lines(tmp_path):
    rows = [{"prompt": "x", "images": ["p.png"]}, *prompt_rows(60)]
    plans = []
    for number, folder in enumerate((tmp_path / "here", tmp_path / "over there" / "deeper")):
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4), "red").save(folder / "p.png")
        plans.append(plan_of(folder, rows, 5))
        (folder / "p.png").touch()
        path = folder / "prompts.jsonl"
        path.write_text("\n \n".join(path.read_text().splitlines()) + "\n\n\n" * number)
        plans.append(make_plan(path, "prompts", 5, folder / "results"))
    assert len({plan.digest for plan in plans}) == 1


def test_an_unchanged_file_is_not_planned_again_and_a_touched_one_keeps_its_plan(tmp_path):
    plan = plan_of(tmp_path, prompt_rows(30), 5)
    current = plan.folder / "current.json"
    before = current.stat().st_mtime_ns
    again = make_plan(tmp_path / "prompts.jsonl", "prompts", 5, tmp_path / "results")
    assert again.shards == plan.shards and current.stat().st_mtime_ns == before
    (tmp_path / "prompts.jsonl").touch()
    assert make_plan(tmp_path / "prompts.jsonl", "prompts", 5, tmp_path / "results").id == plan.id
    assert load_plan(tmp_path / "results", "prompts").shards == plan.shards
    assert make_plan(tmp_path / "prompts.jsonl", "prompts", 9, tmp_path / "results").id != plan.id


def test_a_plan_that_lost_a_file_is_made_again(tmp_path):
    plan = plan_of(tmp_path, prompt_rows(30), 5)
    for name in ("current.json", "sources.json", f"{plan.id}.json"):
        (plan.folder / name).write_text("{")
        again = make_plan(tmp_path / "prompts.jsonl", "prompts", 5, tmp_path / "results")
        assert again.shards == plan.shards and again.read(plan.names[0]) == plan.read(plan.names[0])


def test_a_missing_plan_and_a_damaged_rows_file_are_said_in_one_line(tmp_path):
    with pytest.raises(DarkroomError, match=r"no plan there; run snakemake") as missing:
        load_plan(tmp_path, "prompts")
    plan = plan_of(tmp_path, prompt_rows(30), 5)
    rows = plan.folder / f"{plan.id}.jsonl"
    rows.write_bytes(rows.read_bytes()[:-10])
    with pytest.raises(DarkroomError, match=r"cut short; delete") as damaged:
        plan.read(plan.names[-1])
    with pytest.raises(DarkroomError, match=r"gone\.jsonl: No such file") as gone:
        make_plan(tmp_path / "gone.jsonl", "prompts", 5, tmp_path / "results")
    with pytest.raises(DarkroomError, match=r"holds no rows") as empty:
        plan_of(tmp_path, [], 5)
    for error in (missing, damaged, gone, empty):
        assert "\n" not in str(error.value)


@settings(stable, max_examples=15)
@given(seed=st.integers(0, 2**32), size=st.integers(2, 20), changes=st.integers(1, 5))
def test_earlier_shards_name_every_shard_that_held_a_row(tmp_path_factory, seed, size, changes):
    folder, rng = tmp_path_factory.mktemp("plan"), random.Random(seed)
    rows = prompt_rows(120, seed)
    held = {}  # row id -> names of the shards that ever held it
    for _ in range(changes + 1):
        plan = plan_of(folder, rows, size)
        for shard, row in plan.rows():
            held.setdefault(row["id"], set()).add(shard)
        rows = change(rows, rng.choice(["insert", "delete", "swap", "edit"]), rng.randrange(len(rows) - 1), rng)
    earlier = {shard: plan.earlier_shards(shard) for shard in plan.names}
    for number, (shard, row) in enumerate(plan.rows()):
        assert earlier[shard][0] == shard and held[row["id"]] <= set(earlier[shard])
        assert number % 10 or plan.shard_of_row(row["id"]) == shard
    assert plan.shard_of_row("no such row") is None


def lines_held(plan):
    """Line without its number -> the shard that holds it; rejected rows are told apart by how often they came."""
    seen, held = Counter(), {}
    for shard, row in plan.rows():
        name = row.get("id") or row["text"]
        seen[name] += 1
        held[name, seen[name]] = shard
    return held


@pytest.mark.long
@settings(stable, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(2, 12),
    changes=st.lists(
        st.sampled_from(
            ["insert", "delete", "swap", "edit", "break", "duplicate", "replace", "reverse", "shuffle", "none"]
        ),
        min_size=1,
        max_size=6,
    ),
    forced_cut=st.booleans(),
)
def test_earlier_shards_are_those_that_a_look_at_every_kept_plan_finds(
    tmp_path_factory, seed, size, changes, forced_cut
):
    folder, rng = tmp_path_factory.mktemp("plan"), random.Random(seed)
    rows = prompt_rows(60, seed, ids=bool(seed % 2))
    if forced_cut:
        _, threshold = _spacing(size)
        ids = (f"plain {n}" for n in itertools.count())
        plain = itertools.islice((i for i in ids if _hash64(i.encode()) >= threshold), 6 * size)
        rows[30:30] = [{"id": i, "prompt": i} for i in plain]
    histories = {}  # plan id -> its lines, the plan that was made last at the end
    for kind in [*changes, "none"]:
        plan = plan_of(folder, rows, size)
        histories.pop(plan.id, None)
        histories[plan.id] = lines_held(plan), plan.names
        os.utime(plan.folder / f"{plan.id}.places", ns=(len(histories), plan_of.clock * 10**9))
        if kind in ("reverse", "shuffle"):
            rows = rows[::-1] if kind == "reverse" else rng.sample(rows, len(rows))
        elif kind != "none":
            rows = change(rows, kind, rng.randrange(len(rows) - 1), rng)
    mine, names = histories.pop(plan.id)
    older = list(reversed(histories.values()))

    def naive(*shards):
        wanted, found = {line for line, shard in mine.items() if shard in shards}, dict.fromkeys(shards)
        for held, order in older:
            hit = {held[line] for line in wanted if line in held}
            found |= dict.fromkeys(name for name in order if name in hit)
        return list(found)

    for shard in names:  # each as a job asks, and all in turn, which are looked up together
        alone = load_plan(folder / "results", "prompts")
        assert alone.earlier_shards(shard) == plan.earlier_shards(shard) == naive(shard)
    together = rng.sample(names, min(len(names), 4))
    assert plan.earlier_shards(*together) == alone.earlier_shards(*together) == naive(*together)
    ids = [row["id"] for _, row in plan.rows() if "id" in row]
    asked = rng.sample(ids, len(ids)) + ["no such row"]
    assert plan.shards_of_rows(asked) == [mine.get((name, 1)) for name in asked]
    assert plan.shards_of_rows([]) == []


def test_a_few_questions_and_many_get_the_same_answers_when_every_row_moved(tmp_path):
    rows = prompt_rows(400)
    for number in range(4):
        old = plan_of(tmp_path, rows + prompt_rows(number, 1), 10)
    plan = plan_of(tmp_path, rows[::-1], 10)
    first = {name: load_plan(tmp_path / "results", "prompts").earlier_shards(name) for name in plan.names}
    assert {name: plan.earlier_shards(name) for name in plan.names} == first
    assert set().union(*first.values()) >= set(old.names)


def test_a_damaged_record_of_where_rows_were_is_said_in_one_line(tmp_path):
    old = plan_of(tmp_path, prompt_rows(30), 5)
    plan = plan_of(tmp_path, prompt_rows(31), 5)
    path = plan.folder / f"{old.id}.places"
    for data in (path.read_bytes()[:-3], b"{}\n", b""):
        path.write_bytes(data)
        with pytest.raises(DarkroomError, match=r"places is damaged; delete it and run again"):
            plan.earlier_shards(plan.names[0])
    path.unlink()
    assert plan.earlier_shards(plan.names[0]) == plan.names[:1]


BAD = [
    b"{",
    b"[1]",
    b"null",
    b'{"prompt": 5}',
    b'{"id": "x"}',
    b'{"prompt": " "}',
    b"\xff",
    b'{"prompt": "a", "width": 1}',
]


@stable
@given(st.lists(st.sampled_from(["good", "plain", "bad", "blank"]), min_size=1, max_size=80), st.integers(1, 12))
def test_every_line_that_is_not_blank_is_a_row_or_a_rejected_row_at_its_line(tmp_path_factory, kinds, size):
    assume(set(kinds) != {"blank"})
    folder = tmp_path_factory.mktemp("plan")
    lines = {
        "good": lambda n: b'{"id": %d, "prompt": "a"}' % n,
        "plain": lambda n: b'{"prompt": "the same row again"}',
        "bad": lambda n: BAD[n % len(BAD)],
        "blank": lambda n: b" \t",
    }
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines[kind](n) for n, kind in enumerate(kinds)))
    plan = make_plan(folder / "rows.jsonl", "prompts", size, folder / "results")
    assert sum(shard.rows for shard in plan.shards.values()) == kinds.count("good") + kinds.count("plain")
    assert sum(shard.rejected for shard in plan.shards.values()) == kinds.count("bad")
    listed = list(plan.rows())
    bad_lines = [n for n, kind in enumerate(kinds, 1) if kind == "bad"]
    found = [plan.shards[shard].first_line + row["line"] for shard, row in listed if "rejected" in row]
    assert found == bad_lines
    assert plan.first_rejected() == (
        (bad_lines[0], next(row["rejected"] for _, row in listed if "rejected" in row)) if bad_lines else None
    )
    ids = [row["id"] for _, row in listed if "id" in row]
    assert len(set(ids)) == len(ids)
    assert [i for i in ids if i.isdecimal()] == [str(n) for n, kind in enumerate(kinds) if kind == "good"]
    for name, shard in plan.shards.items():
        read = plan.read(name).splitlines()
        assert [json.loads(line) for line in read] == [row for owner, row in listed if owner == name]
        assert len(read) == shard.rows + shard.rejected


def rejected(plan):
    return [row["rejected"] for _, row in plan.rows() if "rejected" in row]


def test_equal_rows_without_ids_are_requests_of_their_own_and_keep_their_ids(tmp_path):
    rows = prompt_rows(3, ids=False)
    ids = [row["id"] for _, row in plan_of(tmp_path, [rows[0]] * 3 + rows, 5).rows()]
    assert len(set(ids)) == 6
    alone = [row["id"] for _, row in plan_of(tmp_path, rows, 5).rows()]
    assert ids[0] == alone[0] and ids[4:] == alone[1:]


def test_a_second_row_of_an_id_is_rejected_also_where_the_first_has_it_from_its_content(tmp_path):
    row = {"prompt": "x"}
    (own,) = (line["id"] for _, line in plan_of(tmp_path, [row], 5).rows())
    assert rejected(plan_of(tmp_path, [{"id": 7, "prompt": "a"}, {"id": "7", "prompt": "b"}], 5)) == [
        "id '7' was used by an earlier row; ids must differ"
    ]
    assert "was used by an earlier row" in rejected(plan_of(tmp_path, [row, {"id": own, "prompt": "y"}], 5))[0]
    other_way = plan_of(tmp_path, [{"id": own, "prompt": "y"}, row], 5)
    assert len({line["id"] for _, line in other_way.rows()}) == 2 and not rejected(other_way)


def test_a_rejected_row_takes_its_id_from_no_other(tmp_path):
    prompts = plan_of(tmp_path, [{"id": "p", "prompt": "a"}], 5)
    bad = {"id": "e", "prompt": "x", "images": [{"row": "nowhere"}]}
    good = {"id": "e", "prompt": "x", "images": [{"row": "p"}]}
    plan = plan_of(tmp_path, [bad, {"id": "e", "prompt": ""}, good], 5, "edits", prompts=prompts)
    assert len(rejected(plan)) == 2 and [row["id"] for _, row in plan.rows() if "id" in row] == ["e"]


@stable
@given(
    st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=12)
)
def test_a_shard_counts_as_many_requests_as_its_rows_expand_to(tmp_path_factory, shapes):
    rows = [
        {"conversations": ["a"] * turns, "images": ["x.png"] * given_images} | ({"samples": samples} if samples else {})
        for given_images, samples, turns in shapes
    ]
    plan = plan_of(tmp_path_factory.mktemp("plan"), rows, 3)
    for samples in (1, 4):
        for name, shard in plan.shards.items():
            lines = [json.loads(line) for line in plan.read(name).splitlines()]
            made = [request for line in lines for request in expand(line, SECTION, 0, samples)]
            assert shard.requests(samples) == len(made)


def test_only_shards_that_name_a_changed_image_are_stale(tmp_path):
    picture = tmp_path / "p.png"
    Image.new("RGB", (4, 4), "red").save(picture)
    red = picture.read_bytes()
    rows = prompt_rows(60, 2) + [{"id": "given", "prompt": "x", "images": "p.png"}]
    old = plan_of(tmp_path, rows, 5)
    for data in (b"", b"other", None):
        picture.unlink() if data is None else picture.write_bytes(data)
        new = make_plan(tmp_path / "prompts.jsonl", "prompts", 5, tmp_path / "results")
        assert {name for name, _, _ in identities(new) - identities(old)} == {old.shard_of_row("given")}
    picture.write_bytes(red)
    assert make_plan(tmp_path / "prompts.jsonl", "prompts", 5, tmp_path / "results").digest == old.digest


def test_an_edit_of_an_image_of_this_run_depends_on_that_row_alone(tmp_path):
    rows = prompt_rows(60, 2)
    edits = [{"id": f"e{n}", "prompt": "redder", "images": [{"row": row["id"]}]} for n, row in enumerate(rows)]

    def references(plan):
        return {name: plan.references(name) for name in plan.names}

    old = plan_of(tmp_path, edits, 5, "edits", prompts=plan_of(tmp_path, rows, 5))
    changed = plan_of(tmp_path, change(rows, "edit", 30, random.Random(0)), 5)
    new = plan_of(tmp_path, edits, 5, "edits", prompts=changed)
    stale = {
        name
        for name, found in references(new).items()
        if [r[:3] + r[4:] for r in found] != [r[:3] + r[4:] for r in references(old)[name]]
    }
    assert stale == {new.shard_of_row("e30")}
    assert stale == {name for name in new.names if new.shards[name].referenced != old.shards[name].referenced}
    assert all(changed.shard_of_row(r[0]) == r[3] for found in references(new).values() for r in found)


def test_a_row_that_asks_for_more_images_than_there_are_seeds_is_rejected(tmp_path):
    rows = [{"prompt": "a", "samples": samples} for samples in (2, 3)] + [{"prompt": "a", "samples": 3, "seed": 5}]
    assert rejected(plan_of(tmp_path, rows, 5)) == []
    found = rejected(plan_of(tmp_path, rows, 5, most=2))
    assert found == ["samples: 3, and the config lists 2 seeds; list more, or give the row a seed"]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ({"row": "gone"}, "refers to row 'gone', which is not among the prompts"),
        ({"row": "p", "sample": 2}, "refers to sample 2 of row 'p', which has 2 (from 0)"),
        ({"row": "p", "item": 1}, "refers to item 1 of row 'p', which has 1 (from 0)"),
        ({"row": "three", "sample": 3}, "refers to sample 3 of row 'three', which has 3 (from 0)"),
    ],
)
def test_an_edit_of_an_image_that_is_not_made_is_rejected(tmp_path, image, reason):
    rows = [{"id": "p", "prompt": "a"}, {"id": "three", "prompt": "a", "samples": 3}]
    prompts = plan_of(tmp_path, rows, 5)
    fine = {"prompt": "x", "images": [{"row": "three", "sample": 2}]}
    plan = plan_of(tmp_path, [{"prompt": "x", "images": [image]}, fine], 5, "edits", samples=2, prompts=prompts)
    assert rejected(plan) == [f"images: {reason}"] and sum(s.rows for s in plan.shards.values()) == 1
    alone = plan_of(tmp_path, [fine], 5, "edits")
    assert rejected(alone) == ["images: refers to row 'three', but the config names no prompts"]
