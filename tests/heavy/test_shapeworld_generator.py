"""The generator's tokenizers: capitals, marks and unknown words survive saving and loading and do no harm."""

import pytest
import transformers
from shapeworld import generator, measure, world


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    generator.make_t5_tokenizer().save_pretrained(folder / "t5")
    generator.make_clip_tokenizer().save_pretrained(folder / "clip")
    t5 = transformers.T5TokenizerFast.from_pretrained(folder / "t5")
    clip = transformers.CLIPTokenizer.from_pretrained(folder / "clip")
    return t5, clip


def shared_ids(tokenizers, text):
    t5, clip = tokenizers
    return (
        generator.shared_t5_rows(t5)[t5(text).input_ids].tolist(),
        generator.shared_clip_rows(clip)[clip(text).input_ids].tolist(),
    )


def test_every_word_is_one_token(tokenizers):
    t5, clip = tokenizers
    for word in generator.WORDS:
        assert t5.tokenize(word) == ["▁" + word]
        assert clip.tokenize(word) == [word + "</w>"]


def test_capitals_read_like_lower_case(tokenizers):
    text = "an orange star to the left of two blue circles on a pink background"
    for form in (str.capitalize, str.title, str.upper):
        assert shared_ids(tokenizers, form(text)) == shared_ids(tokenizers, text)


def test_unknown_words_leave_the_known_ones_whole(tokenizers):
    t5, clip = tokenizers
    assert t5.tokenize("a shiny red circle.") == ["▁a", "▁", "shiny", "▁red", "▁circle", "."]
    assert t5("shiny").input_ids == t5("wibble").input_ids
    assert "red</w>" in clip.tokenize("a shiny red circle.")


def test_longest_caption_fits(tokenizers):
    t5, _ = tokenizers
    text = "A picture of a blue square to the left of a green triangle, on a pink background."
    assert len(t5(text).input_ids) <= generator.MAX_SEQUENCE_LENGTH


def test_measured_scenes_respect_the_hold_out_rule():
    for wanted in (True, False):
        assert all(world.held_out(s) is wanted for s in measure.draw_scenes(12, 1, wanted))
        assert all(world.held_out(e) is wanted for e in measure.draw_edits(3, 1, wanted))
