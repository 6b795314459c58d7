"""Edits of edits: their depths, cycles, the shards they are cut into, and what each file is made for."""

import itertools
import json
import random

import pytest
from darkroom.config.load import load_config
from darkroom.config.models import Edit as EditSection
from darkroom.errors import DarkroomError, RowError
from darkroom.plan.chains import Edit, resolve
from darkroom.plan.groups import make_groups
from darkroom.plan.requests import expand
from darkroom.plan.shards import make_plan
from darkroom.plan.stages import EDITED, IMAGES
from darkroom.rows.read import Reading, parse_row
from darkroom.run.lineage import Lineage
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import plan_of, prompt_rows, rejected, write_lines


def edits_of(graph, left_out=(), counts=(1, 1)):
    """Edits by name, of a graph: name -> names that it starts from."""
    sources = {name: [{"edit": of, "item": 0, "sample": 0} for of in before] for name, before in graph.items()}
    found = {name: Edit(number, *counts, sources[name]) for number, name in enumerate(graph)}
    resolve(found, left_out)
    return found


def test_an_edit_is_one_deeper_than_the_deepest_that_it_starts_from():
    found = edits_of({"e": ["c", "a"], "c": ["b"], "b": ["a"], "a": [], "d": ["a", "a"]})
    assert {name: edit.depth for name, edit in found.items()} == {"a": 0, "b": 1, "c": 2, "d": 1, "e": 3}
    assert not any(edit.reason or edit.left_out for edit in found.values())


def test_any_depth_is_found_whatever_the_order():
    names = [f"e{n}" for n in range(3000)]
    graph = {name: [before] for before, name in itertools.pairwise(names)} | {"e0": []}
    for order in (sorted(graph), names, names[::-1]):
        found = edits_of({name: graph[name] for name in order})
        assert [found[name].depth for name in names] == list(range(3000))


def test_a_cycle_is_named_and_what_starts_from_it_is_told_so():
    graph = {"x": ["c"], "a": ["b"], "b": ["c"], "c": ["a"], "s": ["s"], "t": ["s", "a"], "y": ["x"], "fine": []}
    reasons = {name: edit.reason for name, edit in edits_of(graph).items()}
    cycle = "images: the edits start from each other, 'c' from 'a', 'a' from 'b', 'b' from 'c'"
    assert [reasons[name] for name in "abc"] == [cycle] * 3
    assert reasons["s"] == "images: the edit 's' starts from itself"
    assert reasons["x"] == "images: refers to edit 'c', which is rejected"
    assert reasons["t"] == "images: refers to edit 's', which is rejected"
    assert reasons["y"] == "images: refers to edit 'x', which is rejected" and reasons["fine"] is None
    long = edits_of({f"n{n}": [f"n{(n + 1) % 500}"] for n in range(500)})
    assert long["n400"].reason.endswith("'n7' from 'n8', ...") and len(long["n400"].reason) < 300


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.dictionaries(st.integers(0, 9), st.lists(st.integers(0, 11), max_size=3), max_size=10))
def test_what_can_be_made_is_what_has_all_its_sources(links):
    graph = {f"{name}": [f"{of}" for of in before] for name, before in links.items()}
    found = edits_of(graph)
    able: set[str] = set()
    while more := {name for name, before in graph.items() if set(before) <= able} - able:
        able |= more
    assert {name for name, edit in found.items() if edit.reason is None} == able
    assert all(found[name].depth > found[of].depth for name in able for of in graph[name])


def test_what_starts_from_an_edit_outside_of_a_trial_is_outside_too():
    found = edits_of({"a": ["gone"], "b": ["a"], "c": []}, {"gone"})
    assert {name: edit.left_out for name, edit in found.items()} == {"a": True, "b": True, "c": False}


def edit(name, *sources, **more):
    return {"id": name, "prompt": "redder", "images": list(sources)} | more


def chained(count, seed=0):
    """Edits of pictures, of images and of edits, in any order, a third of them deep."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        before = rng.choice(rows)["id"] if rows and rng.random() < 0.6 else None
        source = {"edit": before} if before else rng.choice([{"row": f"p{number % 7}"}, "own.png"])
        rows.append(edit(f"e{rng.getrandbits(32):x}", source))
    return rng.sample(rows, len(rows))


def planned(folder, rows, size=4, samples=1, own=b"own", **more):
    prompts = plan_of(folder, [{"id": f"p{n}", "prompt": "a"} for n in range(7)], 3)
    (folder / "own.png").write_bytes(own)
    return plan_of(folder, rows, size, "edits", samples=samples, prompts=prompts, **more), prompts


@settings(derandomize=True, deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 12), count=st.integers(1, 60))
def test_shards_start_from_shards_of_lesser_depths(tmp_path_factory, seed, size, count):
    rows = chained(count, seed)
    plan, _ = planned(tmp_path_factory.mktemp("plan"), rows, size)
    assert sorted(row["id"] for _, row in plan.rows()) == sorted(row["id"] for row in rows)
    depths = [shard.depth for shard in plan.shards.values()]
    assert depths == sorted(depths)
    place = {row["id"]: number for number, row in enumerate(rows)}
    for name, shard in plan.shards.items():
        lines = [json.loads(line) for line in plan.read(name).splitlines()]
        assert [place[line["id"]] for line in lines] == sorted(place[line["id"]] for line in lines)
        found = plan.references(name)
        assert len(found) == sum("path" not in line["items"][0]["source"] for line in lines)
        for reference in found:
            if reference.edit:
                assert plan.shards[reference.shard].depth < shard.depth
                assert plan.shard_of_row(reference.row) == reference.shard
    assert all(shard.generated == bool(_ends(plan, name)) for name, shard in plan.shards.items())


def _ends(plan, name):
    """The images of prompts that a shard starts from, if only by way of other edits."""
    found = set()
    for reference in plan.references(name):
        if not reference.edit:
            found.add(reference.row)
            continue
        lines = map(json.loads, plan.read(reference.shard).splitlines())
        (source,) = (line["items"][0]["source"] for line in lines if line["id"] == reference.row)
        while "edit" in source:
            (source,) = (row["items"][0]["source"] for _, row in plan.rows() if row["id"] == source["edit"])
        found |= {source["row"]} if "row" in source else set()
    return found


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ({"edit": "nobody"}, "refers to edit 'nobody', which is not among the edits"),
        ({"edit": "two", "sample": 2}, "refers to sample 2 of edit 'two', which has 2 (from 0)"),
        ({"edit": "two", "item": 1}, "refers to item 1 of edit 'two', which has 1 (from 0)"),
        ({"edit": "bad"}, "refers to edit 'bad', which is not among the edits"),
        ({"edit": "there", "sample": 1}, "refers to sample 1 of edit 'there', which has 1 (from 0)"),
        ({"edit": "loop"}, "refers to edit 'loop', which is rejected"),
        ({"edit": "two", "row": "p1"}, 'unknown field "edit" beside row, item and sample'),
    ],
)
def test_an_edit_of_an_edit_that_is_not_made_is_rejected(tmp_path, image, reason):
    rows = [
        edit("two", "own.png", samples=2),
        edit("bad", "own.png", width=1),
        edit("there", "own.png", edited_images="own.png", samples=3),
        edit("loop", {"edit": "loop"}),
        edit("fine", {"edit": "two", "sample": 1, "row": None}),
        edit("x", image),
    ]
    plan, _ = planned(tmp_path, rows)
    assert f"images: {reason}" in rejected(plan)
    assert {row["id"] for _, row in plan.rows() if "id" in row} == {"two", "there", "fine"}
    numbers = {plan.shards[shard].first_line + row["line"] for shard, row in plan.rows() if "rejected" in row}
    assert numbers == {2, 4, 6}


def lineage(folder, rows, recipes=None, own=b"own"):
    plan, prompts = planned(folder, rows, 1, own=own)
    plans = {"prompts": prompts, "edits": plan}
    by_rows = {name: make_groups(folder / "results", name, one, 1) for name, one in plans.items()}
    groups = {stage.name: by_rows[stage.rows] for stage in (IMAGES, EDITED)}
    recipes = {"images": {"steps": 4}, "edited": {"steps": 2}} | (recipes or {})
    return Lineage("results", [IMAGES, EDITED], plans, groups, recipes, {}, seed=1, samples=1)


CHAIN = [
    edit("a", "own.png"),
    edit("b", {"edit": "a"}),
    edit("c", {"edit": "b"}),
    edit("f", {"row": "p1"}),
    edit("g", {"edit": "f"}),
    edit("h", {"edit": "g"}, {"edit": "b"}),
]


def files(found):
    """Edit -> (path, digest) of its file; each is in a shard of its own."""
    rows = {shard: row["id"] for shard, row in found.plans["edits"].rows()}
    return {rows[file.name]: (file.path, file.digest) for file in found.files(found.step("edited"))}


@pytest.mark.parametrize(
    ("change", "follows"),
    [
        (lambda rows: rows, ""),
        (lambda rows: [edit("a", "own.png", width=32), *rows[1:]], "abch"),
        (lambda rows: [*rows[:1], edit("b", {"edit": "a"}, seed=3), *rows[2:]], "bch"),
        (lambda rows: [*rows[:3], edit("f", {"row": "p2"}), *rows[4:]], "fgh"),
    ],
)
def test_a_changed_edit_moves_what_follows_from_it_and_nothing_else(tmp_path, change, follows):
    before, after = (files(lineage(tmp_path, rows)) for rows in (CHAIN, change(CHAIN)))
    for part in (0, 1):  # the path, and the digest in the file
        assert {name for name in before if before[name][part] != after[name][part]} == set(follows)


def test_a_picture_of_the_users_that_changes_moves_all_that_follow_from_it(tmp_path):
    before, after = (files(lineage(tmp_path, CHAIN, own=own)) for own in (b"own", b"another"))
    for part in (0, 1):
        assert {name for name in before if before[name][part] != after[name][part]} == set("abch")


def test_the_recipe_of_images_moves_those_alone_that_come_from_images(tmp_path):
    before, after = (files(lineage(tmp_path, CHAIN, {"images": {"steps": n}})) for n in (4, 5))
    for part in (0, 1):
        assert {name for name in before if before[name][part] != after[name][part]} == set("fgh")


def test_a_shard_is_made_from_the_files_of_both_stages(tmp_path):
    found = lineage(tmp_path, [*CHAIN, edit("m", {"edit": "c"}, {"row": "p3"}, "own.png")])
    own = {row["id"]: shard for shard, row in found.plans["edits"].rows()}
    by_stage = found.sources_by_stage("edited", own["m"])
    assert by_stage["edited"] == [found.image_file("edited", own["c"])]
    assert by_stage["images"] == [found.image_file("images", found.plans["prompts"].shard_of_row("p3"))]
    assert found.sources("edited", own["m"]) == by_stage["images"] + by_stage["edited"]
    order = [file.path for file in found.files(found.step("edited"))]
    for file in found.files(found.step("edited")):
        made_before = set(order[: order.index(file.path)])
        assert {path for path in file.inputs if "/edited/" in path} <= made_before


def test_a_trial_takes_the_edits_of_what_it_takes(tmp_path):
    rows = [edit(f"a{n}", "own.png") for n in range(20)]
    rows += [edit(f"b{n}", {"edit": f"a{n}"}) for n in range(20)] + [
        edit(f"c{n}", {"edit": f"b{n}"}) for n in range(20)
    ]
    rows += [edit(f"f{n}", {"row": f"p{n}"}) for n in range(7)] + [edit(f"g{n}", {"edit": f"f{n}"}) for n in range(7)]
    rows += [edit("both", {"edit": "a0"}, {"edit": "f0"})]
    write_lines(tmp_path / "prompts.jsonl", [{"id": f"p{n}", "prompt": "a"} for n in range(7)])
    prompts = make_plan(tmp_path / "prompts.jsonl", "prompts", 3, tmp_path / "results", trial=3)
    drawn = {row["id"] for _, row in prompts.rows()}
    (tmp_path / "own.png").write_bytes(b"own")
    plan = plan_of(tmp_path, rows, 5, "edits", prompts=prompts, trial=3)
    taken = {row["id"] for _, row in plan.rows()}
    numbers = {name[1:] for name in taken if name[0] == "a"}
    assert len(numbers) == 3 and not rejected(plan)
    expected = {f"{letter}{n}" for letter in "abc" for n in numbers}
    expected |= {f"{letter}{name[1:]}" for letter in "fg" for name in drawn}
    assert taken - {"both"} == expected and plan.rows_used + plan.left_out == len(rows)
    assert ("both" in taken) == ({"a0", "f0"} <= taken)


def test_edits_without_prompts_can_start_from_edits(tmp_path):
    (tmp_path / "own.png").write_bytes(b"own")
    plan = plan_of(tmp_path, CHAIN[:3], 4, "edits")
    assert [shard.depth for shard in plan.shards.values()] == [0, 1, 2] and not rejected(plan)


def test_pictures_that_rows_hold_are_kept_for_edits_of_any_depth(tmp_path):
    url = "data:image/png;base64,aGVsbG8="
    plan = plan_of(tmp_path, [edit("b", {"edit": "a"}, url), edit("a", url), *prompt_rows(2)], 4, "edits")
    assert plan.pictures.exists() and len(rejected(plan)) == 2
    assert [row["id"] for _, row in plan.rows() if "id" in row] == ["a", "b"]


FLUX = "sources: a model of the family flux-kontext takes one image; say apart, or use flux2-klein"
TALK = [{"role": "user", "content": f"{word}"} for word in ("bluer", "larger", "alone")]
TALK.insert(1, {"role": "assistant", "content": "Here it is."})


def items_of(row, **reading):
    return parse_row(row, "edits", reading=Reading(**reading))["items"]


def test_sources_together_are_one_image_where_the_config_or_the_row_says_so():
    row = {"prompt": "both", "images": ["a.png", {"edit": "e"}, "b.png"]}
    one = {"path": "a.png"}, [{"edit": "e", "item": 0, "sample": 0}, {"path": "b.png"}]
    together = [{"prompt": "both", "source": one[0], "more": one[1]}]
    assert items_of(row, sources="together") == items_of(row | {"sources": "together"}) == together
    assert items_of(row | {"sources": "apart"}, sources="together") == items_of(row)
    assert [item["source"] for item in items_of(row)] == [one[0], *one[1]]
    assert items_of(row | {"sources": "laion, 2019"}) == items_of(row)  # a field of the user's own
    assert items_of({"prompt": "x", "images": "a.png"}, sources="together") == [{"prompt": "x", "source": one[0]}]
    given = row | {"edited_images": "there.png"}
    assert items_of(given, sources="together", refusal="no") == [together[0] | {"given": {"path": "there.png"}}]


@pytest.mark.parametrize(
    ("row", "reading", "reason"),
    [
        ({"sources": "Together"}, {}, 'sources: "Together"; did you mean together?'),
        ({"turns": "chian", "conversations": ["a", "b"]}, {}, 'turns: "chian"; did you mean chain?'),
        ({"sources": "together"}, {"refusal": FLUX}, FLUX),
        ({"sources": "together", "images": ["a.png"] * 17}, {}, "17 sources together; at most 16"),
        ({"sources": "together", "edited_images": ["a.png"] * 2}, {}, "2 for 1 results; give one each, or none"),
    ],
)
def test_what_cannot_be_read_so_is_told(row, reading, reason):
    row = {"prompt": "x", "images": ["a.png", "b.png"]} | row
    with pytest.raises(RowError) as error:
        items_of({key: value for key, value in row.items() if key != "prompt" or "conversations" not in row}, **reading)
    assert reason in str(error.value)


def test_a_model_that_takes_one_image_refuses_several_in_the_config(tmp_path):
    def config(family):
        edits = write_lines(tmp_path / "edits.jsonl", CHAIN)
        section = {"family": family, "model": str(tmp_path), "sources": "together"}
        return load_config({"edits": str(edits), "edit": section, "judge": {"model": str(tmp_path)}})

    assert config("flux2-klein").edit.sources == config("qwen-image-edit-plus").edit.sources == "together"
    for family in ("flux-kontext", "qwen-image-edit"):
        with pytest.raises(
            DarkroomError, match=f"^config: edit.sources: a model of the family {family} takes one image"
        ):
            config(family)


def test_all_sources_of_an_image_are_sources_of_its_shard(tmp_path):
    both = edit("both", "own.png", {"edit": "b"}, {"row": "p2"}, sources="together")
    found = lineage(tmp_path, [*CHAIN, both])
    own = {row["id"]: shard for shard, row in found.plans["edits"].rows()}
    assert [reference[:3] for reference in found.plans["edits"].references(own["both"])] == [("p2", 0, 0), ("b", 0, 0)]
    before, after = files(found), files(lineage(tmp_path, [*CHAIN, both], own=b"another"))
    assert {name for name in before if before[name] != after[name]} == {*"abch", "both"}
    assert found.plans["edits"].shards[own["both"]].items == 1


def test_turns_in_a_chain_work_on_the_result_of_the_one_before(tmp_path):
    rows = [
        {"id": "e", "conversations": TALK, "images": ["own.png", {"row": "p1"}], "turns": "chain", "samples": 2},
        edit("last", {"edit": "e", "item": 1, "sample": 1}),
        edit("second", {"edit": "e#2"}),
        {"id": "plain", "conversations": TALK, "images": "own.png"},
        edit("e#1", "own.png"),
    ]
    plan, _ = planned(tmp_path, rows)
    lines = {row["id"]: (plan.shards[shard].depth, row) for shard, row in plan.rows() if "id" in row}
    depths = {name: depth for name, (depth, _) in lines.items()}
    assert depths == {"e#1": 0, "e#2": 1, "e": 2, "last": 3, "second": 2, "plain": 0}
    assert rejected(plan) == ["id 'e#1' was used by an earlier row; ids must differ"]
    prompts = {name: [item["prompt"] for item in row["items"]] for name, (_, row) in lines.items()}
    assert [prompts[name] for name in ("e#1", "e#2", "e", "plain")] == [
        ["bluer"] * 2,
        ["larger"] * 2,
        ["alone"] * 2,
        ["alone"],
    ]
    assert [item["source"] for item in lines["e#1"][1]["items"]] == [
        {"path": "own.png"},
        {"row": "p1", "item": 0, "sample": 0},
    ]
    second = lines["e#2"][1]
    made = [(r.item, r.sample, r.source) for r in expand(second, EditSection(width=None, height=None), 0, 1)]
    expected = [(i, s, {"edit": "e#1", "item": i, "sample": s}) for i in (0, 1) for s in (0, 1)]
    assert made == expected
    shard = plan.shard_of_row("e#2")
    assert [r[:3] for r in plan.references(shard) if r.row == "e#1"] == [("e#1", i, s) for i in (0, 1) for s in (0, 1)]
    assert second["row"]["id"] == "e#2" and second["row"]["conversations"] == TALK[:3]
    assert lines["e"][1]["row"] == rows[0]
    assert planned(tmp_path, [rows[0] | {"turns": None}], reading=Reading(turns="chain"))[0].rows_used == 3
    given = rows[0] | {"edited_images": ["own.png"] * 2}
    assert planned(tmp_path, [given])[0].rows_used == 1  # what is there is not made


def test_a_trial_takes_all_turns_of_a_row_or_none(tmp_path):
    rows = [{"id": f"e{n}", "conversations": TALK, "images": "own.png"} for n in range(9)]
    plan, _ = planned(tmp_path, rows, trial=4, reading=Reading(turns="chain"))
    taken = [row["id"].partition("#")[0] for _, row in plan.rows()]
    assert len(taken) == 12 and all(taken.count(name) == 3 for name in taken) and plan.left_out == 5
