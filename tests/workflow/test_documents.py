"""The rows of DataFlow's image chapter go through as they are: text to image, editing, assessment."""

import json

import pytest
from PIL import Image, ImageDraw

TEXT_TO_IMAGE = [
    {
        "conversations": [{"content": "a fox darting between snow-covered pines at dusk", "role": "user"}],
        "images": [""],
    },
    {"conversations": [{"content": "a kite surfer riding emerald waves", "role": "user"}], "images": [""]},
    {"conversation": [{"from": "human", "value": "a red circle"}, {"from": "human", "value": "a blue square"}]},
]
ASSESSMENT = [
    {"conversations": [{"content": "a vase on a table", "role": "user"}], "images": ["pictures/vase.png"]},
    {
        "conversations": [{"content": "a vase on a table", "role": "user"}],
        "images": "pictures/vase.png",
        "note": "twice",
    },
]
EDITING = [
    {
        "conversations": [{"content": "Change the vase to red.", "role": "user"}],
        "images": ["./pictures/vase.png"],
        "edited_images": [""],
    },
    {
        "conversations": [
            {"content": "Here is a picture.", "role": "user"},
            {"content": "Remove the vase.", "role": "user"},
        ],
        "images": "pictures/vase.png",
    },
]


def draw_vase(path):
    picture = Image.new("RGB", (80, 48), (250, 240, 220))
    ImageDraw.Draw(picture).ellipse((30, 10, 50, 40), fill=(40, 70, 220))
    path.parent.mkdir(exist_ok=True)
    picture.save(path)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    from conftest import Run, small_config

    run = Run(tmp_path_factory.mktemp("documents"), small_config(edits="edits.jsonl"))
    draw_vase(run.folder / "pictures/vase.png")
    run.write_rows("prompts.jsonl", TEXT_TO_IMAGE + ASSESSMENT)
    run.write_rows("edits.jsonl", EDITING)
    run.snakemake()
    return run


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_row_comes_back_as_it_was_with_its_images_filled_in(documents):
    for name, given in (("prompts", TEXT_TO_IMAGE + ASSESSMENT), ("edits", EDITING)):
        back = rows(documents.results / f"dataset/{name}.jsonl")
        assert len(back) == len(given)
        for before, after in zip(given, back, strict=True):
            added = {"images", "edited_images", "reply", "scores"}
            assert {k: v for k, v in after.items() if k not in added} == {
                k: v for k, v in before.items() if k not in added
            }


def test_every_turn_is_an_image_and_every_path_a_png(documents):
    back = rows(documents.results / "dataset/prompts.jsonl")
    assert [len(row["images"]) if isinstance(row["images"], list) else row["images"][-4:] for row in back] == [
        1,
        1,
        2,
        1,
        ".png",
    ]
    for row in back:
        for path in [row["images"]] if isinstance(row["images"], str) else row["images"]:
            with Image.open(documents.results / "dataset" / path) as picture:
                assert picture.format == "PNG"


def test_an_edit_keeps_the_size_of_its_source(documents):
    for row in rows(documents.results / "dataset/edits.jsonl"):
        (path,) = row["edited_images"]
        with Image.open(documents.results / "dataset" / path) as picture:
            assert picture.size == (80, 48)


def test_a_picture_that_is_only_judged_keeps_its_pixels(documents):
    back = rows(documents.results / "dataset/prompts.jsonl")[3]
    with (
        Image.open(documents.folder / "pictures/vase.png") as before,
        Image.open(documents.results / "dataset" / back["images"][0]) as after,
    ):
        assert before.convert("RGB").tobytes() == after.convert("RGB").tobytes()


def test_the_judge_s_reply_and_scores_are_in_the_row(documents):
    for row in rows(documents.results / "dataset/prompts.jsonl"):
        replies = [row["reply"]] if isinstance(row["reply"], str) else row["reply"]
        count = 1 if isinstance(row["images"], str) else len(row["images"])
        assert len(replies) == len(row["scores"]["p_yes"]) == count
        assert all(0 <= p <= 1 for p in row["scores"]["p_yes"])


def test_feeding_the_data_set_back_judges_the_same_pictures_and_makes_none(documents, tmp_path):
    from conftest import Run, small_config

    again = Run(tmp_path, small_config(prompts=str(documents.results / "dataset/prompts.jsonl")))
    again.snakemake("--until", "generate_images")
    log = "".join(path.read_text() for path in again.results.glob("logs/generate_images/*/*.log"))
    assert " 0 to make" in log and "made, " in log and "device" not in log
