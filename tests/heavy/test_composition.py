"""One image of several sources, by tiny checkpoints of the real classes: each source counts, and nothing else does."""

import numpy as np
import pytest
from darkroom.engines import FAMILIES, open_engine
from darkroom.engines.work import ShardJob, work
from darkroom.make import identify
from darkroom.plan.recipe import image_recipe
from darkroom.store.images import open_picture
from darkroom.store.scratch import Scratch
from PIL import Image
from test_engines import filled, lines, read_requests
from test_family_engines import save

SOURCES = {
    "blue": (64, 64),
    "red": (96, 80),
    "green": (48, 40),
}  # name and colour -> size; the last is smaller than pipelines take


ASKED = [("blue", "red"), ("blue", "green"), ("red", "blue"), ("blue",)]


@pytest.mark.parametrize(
    ("name", "asked"),
    # The pipeline of Qwen-Image enlarges each source to a megapixel.
    [("flux2-klein", ASKED), ("qwen-image-2.1", ASKED), ("qwen-image-edit-plus", ASKED[:2])],
)
def test_every_source_counts_and_so_does_their_order(name, asked, tmp_path):
    assert FAMILIES[name].joins
    save(name, tmp_path / "model")
    given = {"model": str(tmp_path / "model"), "steps": 1, "max_sequence_length": None, "batch_size": 4}
    section = filled(given, "edit", tmp_path)
    for colour, size in SOURCES.items():
        Image.new("RGB", size, colour).save(tmp_path / f"{colour}.png")
    items = [
        {"prompt": "both", "source": {"path": f"{first}.png"}, "more": [{"path": f"{one}.png"} for one in more]}
        for first, *more in asked
    ]
    job = ShardJob(
        name="edit",
        section=section,
        recipe=image_recipe(section),
        digest="d",
        folder=tmp_path,
        rule="edit_images",
        scratch=Scratch(tmp_path / "scratch"),
        edits=True,
    )
    requests = read_requests(lines({"items": items, "options": {"seed": 7}}), section, 0, 1)
    for request in requests:
        request.seed = 7  # what differs is what they start from
    failures = {}
    sizes = identify(requests, job, job.sources(), failures)
    assert not failures and len(sizes) == len(asked)
    list(work(job, requests, sizes, 0, 1))
    made = {names: open_picture(job.scratch.get(r.key), "x").image for names, r in zip(asked, requests, strict=True)}
    assert [made[names].size for names in asked] == [SOURCES[names[0]] for names in asked]
    pixels = [np.asarray(image.resize((64, 64))).tobytes() for image in made.values()]
    assert len(set(pixels)) == len(asked)
    if name != "flux2-klein":
        return
    # Alone it is what it was among others.
    engine = open_engine(section, "edit")
    engine.prepare(requests[:1])
    pictures = tuple(Image.new("RGB", SOURCES[one], one) for one in asked[0])
    ((_, alone),) = engine.make(requests[:1], engine.work_size(64, 64), [pictures])
    assert alone.tobytes() == made[asked[0]].tobytes()
    # One that the pipeline refuses fails its own request.
    long = pictures[0], Image.new("RGB", (640, 16))
    ((_, failed),) = engine.make(requests[:1], engine.work_size(64, 64), [long])
    assert "at most 8 times as long one way as the other" in failed.reason
