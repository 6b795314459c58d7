"""Requests: seeds and keys follow from what decides the pixels, and from nothing else."""

import pytest
from darkroom.config.models import Generate
from darkroom.identity import digest, digests, request_seed
from darkroom.plan.requests import expand, expand_rows, request_key
from darkroom.rows.read import parse_row
from hypothesis import given, settings
from hypothesis import strategies as st

SECTION = Generate(family="flux", width=64, height=48, steps=4, guidance=3.5, true_cfg=1)
RECIPE = {"version": 1, "family": "flux", "model": "m@1", "dtype": "float32", "max_sequence_length": 8}


def requests(row, seed=0, samples=1, **section):
    return expand(
        parse_row(row, "prompts") | {"id": row.get("id", "r")}, SECTION.model_copy(update=section), seed, samples
    )


def keys(row, recipe=RECIPE, **arguments):
    return [request_key(request, recipe, None, None) for request in requests(row, **arguments)]


@given(st.integers(0, 2**53), st.text(max_size=9), st.integers(0, 9), st.integers(0, 9))
@settings(derandomize=True, deadline=None)
def test_seeds_survive_every_table_and_differ(root, row, item, sample):
    seed = request_seed(root, row, item, sample)
    assert 0 <= seed < 2**53 and float(seed) == seed
    near = {request_seed(root, row, item, sample + 1), request_seed(root, row, item + 1, sample)}
    near |= {request_seed(root + 1, row, item, sample), request_seed(root, row + "x", item, sample)}
    assert len(near | {seed}) == 5


@given(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3)), st.none() | st.text(max_size=9))
@settings(derandomize=True, deadline=None, max_examples=50)
def test_what_is_hashed_once_for_many_gives_the_same_names(first, second):
    of = digests(first)
    for rest in ([second], [second, 1], ["狐", None, {"b": 1, "a": [2]}]):
        assert of(*rest) == digest([first, *rest])


def test_several_rows_at_once_make_the_requests_of_each():
    rows = [parse_row({"prompt": name, "samples": 2}, "prompts") | {"id": name} for name in "abc"]
    for every in (False, True):
        assert expand_rows(rows, SECTION, 3, 1, every) == [r for row in rows for r in expand(row, SECTION, 3, 1, every)]


def test_a_rows_own_seed_is_taken_as_it_is_and_its_samples_still_differ():
    seeds = [request.seed for request in requests({"prompt": "a", "seed": 7}, samples=3)]
    assert seeds[0] == 7 and len(set(seeds)) == 3
    assert seeds == [request.seed for request in requests({"prompt": "b", "seed": 7, "id": "o"}, seed=9, samples=3)]


def test_a_list_of_seeds_is_every_prompts_but_for_rows_with_one_of_their_own():
    listed = [7, 3, 9]
    for row in ({"prompt": "a"}, {"prompt": "b", "id": "o"}):
        assert [request.seed for request in requests(row, listed, 3)] == listed
    two = requests({"conversations": ["a", "b"], "samples": 2}, listed, 3)
    assert [(request.prompt, request.seed) for request in two] == [("a", 7), ("a", 3), ("b", 7), ("b", 3)]
    own = {"prompt": "a", "seed": 5}
    assert [r.seed for r in requests(own, listed, 3)] == [r.seed for r in requests(own, 0, 3)]


def test_another_list_of_seeds_keeps_the_keys_of_those_that_stay():
    row = {"conversations": ["a", "b"]}
    before, after = (set(keys(row, seed=listed, samples=len(listed))) for listed in ([1, 2], [4, 2, 3]))
    assert len(before & after) == 2 and (len(before), len(after)) == (4, 6)


def test_more_samples_keep_the_keys_of_the_first():
    row = {"conversations": ["a", "b"]}
    two, five = (set(keys(row, samples=count)) for count in (2, 5))
    assert two < five and (len(two), len(five)) == (4, 10)


CHANGES = [{"prompt": "b"}, {"seed": 1}, {"width": 32}, {"height": 32}, {"steps": 5}, {"guidance": 4.0}, {"id": "o"}]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_the_pixels_changes_the_key(change):
    assert keys({"prompt": "a"} | change) != keys({"prompt": "a"})


@pytest.mark.parametrize("name", list(RECIPE))
def test_the_recipe_changes_the_key(name):
    other = "flux-kontext" if name == "family" else "other"
    assert keys({"prompt": "a"}, RECIPE | {name: other}) != keys({"prompt": "a"})


def test_nothing_else_changes_the_key():
    plain = keys({"prompt": "a"})
    assert keys({"prompt": "a", "note": "x", "width": 64, "guidance": 3.5, "samples": 1}) == plain
    assert keys({"conversation": [{"from": "human", "value": "a"}], "images": [""]}) == plain
    assert keys({"prompt": "a", "negative_prompt": "n"}) == plain  # FLUX reads none without true guidance
    assert keys({"prompt": "a", "negative_prompt": "n"}, true_cfg=2.0) != keys({"prompt": "a"}, true_cfg=2.0)
    assert keys({"prompt": "a", "negative_prompt": "n"}, RECIPE | {"family": "auto"}) != keys(
        {"prompt": "a"}, RECIPE | {"family": "auto"}
    )


def test_a_given_image_is_one_request_named_by_its_content():
    (one,) = requests({"prompt": "a", "images": "x.png"}, samples=4)
    (other,) = requests({"prompt": "b", "images": "y.png", "id": "o"}, seed=5)
    assert request_key(one, RECIPE, None, "sha") == request_key(other, RECIPE, None, "sha")
    assert request_key(one, RECIPE, None, "sha") != request_key(one, RECIPE, None, "shb")
    # One that cannot be read has a key, too; its sampler settings are not known.
    one.true_cfg = other.true_cfg = None
    assert request_key(one, RECIPE, None, None) != request_key(other, RECIPE, None, None)
