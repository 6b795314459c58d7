"""Groups of shards that are judged together."""

import itertools
import json

import pytest
from darkroom.errors import DarkroomError
from darkroom.plan.groups import group_shards, load_groups, make_groups
from darkroom.plan.shards import hold_results, make_plan
from hypothesis import given
from hypothesis import strategies as st

names = st.lists(st.integers(0, 999).map(lambda n: f"{n:012x}"), unique=True, max_size=60)


@st.composite
def histories(draw):
    """Shards of successive plans, each the one before with some taken out, put in or appended."""
    shards = draw(names)
    history = [shards]
    for _ in range(draw(st.integers(0, 5))):
        new = [name for name in draw(names) if name not in shards]
        shards = [name for name in shards if draw(st.integers(0, 9))]
        for name in new[: draw(st.integers(0, 8))]:
            shards = list(shards)
            shards.insert(draw(st.integers(0, len(shards))), name)
        history.append(shards)
    return history


@given(histories(), st.integers(1, 9))
def test_groups_are_runs_of_all_shards_and_never_too_large(history, most):
    groups = {}
    for shards in history:
        groups = group_shards(shards, most, groups)
        assert list(itertools.chain(*groups.values())) == shards
        assert all(0 < len(members) <= most for members in groups.values())
    assert len(group_shards(shards, most, {})) == -(-len(shards) // most)


@given(names.filter(lambda shards: len(shards) > 2), st.integers(1, 9), st.data())
def test_one_new_shard_touches_one_group_or_cuts_it_in_two(shards, most, data):
    at = data.draw(st.integers(0, len(shards) - 1))
    before = group_shards([s for s in shards if s != shards[at]], most, {})
    after = group_shards(shards, most, before)
    assert len([name for name in after if after[name] != before.get(name)]) <= 2
    assert set(before) <= set(after)


@given(names, st.integers(1, 9), st.integers(0, 20))
def test_appended_shards_touch_the_last_group_alone(shards, most, number):
    before = group_shards(shards, most, {})
    after = group_shards(shards + [f"a{n:011x}" for n in range(number)], most, before)
    kept = list(before)[:-1]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


def test_groups_are_kept_beside_the_plan_and_not_changed_under_a_run(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": n, "prompt": "a circle"}) + "\n" for n in range(60)))
    results = tmp_path / "results"
    plan = make_plan(rows, "prompts", 4, results)
    alone = make_groups(results, "prompts", plan, 1)
    assert alone.members == {name: [name] for name in plan.names}
    assert load_groups(results, "prompts", plan, 1) == alone
    with pytest.raises(DarkroomError, match="no groups of shards there; run snakemake again"):
        load_groups(results, "prompts", plan, 3)
    together = make_groups(results, "prompts", plan, 3)
    assert load_groups(results, "prompts", plan, 3) == together == make_groups(results, "prompts", plan, 3)
    third = plan.names[2]
    assert together.homes_of(third) == [plan.names[0], third]
    lock = hold_results(results, "")
    with pytest.raises(DarkroomError, match="another run works on"):
        make_groups(results, "prompts", plan, 1)
    lock.release()
    assert make_groups(results, "prompts", plan, 1).homes_of(third) == [third, plan.names[0]]
