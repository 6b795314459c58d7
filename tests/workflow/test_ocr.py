"""Text is read in pictures: the contract of metrics, and words whose truth is known."""

import io
import random

import matplotlib
import pytest
from darkroom.config.metrics import OCR
from darkroom.metrics.base import Subject
from darkroom.metrics.ocr import OCRMetric
from metric_contract import MetricContract, image_record
from PIL import Image, ImageDraw, ImageFont

WORDS = """
    OPEN coffee Library 2026 Sunshine garden WELCOME bakery Museum forest Market street PARKING river Hotel castle Bridge TICKET orange
    Window station ICE Piano summer Winter bottle Rocket planet SILVER copper Pizza hammer Violin BREAD cherry Dragon engine FALCON guitar
    Harbor island Jungle kitchen LANTERN mirror Needle octopus Pepper quartz Rabbit saddle Temple umbrella Velvet walnut YELLOW zebra Anchor
    basket Candle desert Elephant feather Glacier horizon Insect jacket Kettle lemon Magnet notebook Oyster pencil Quiver ribbon Shadow
    tunnel Uniform valley Wagon xylophone Yogurt zipper 4711 SALE exit Airport bicycle Camera diesel Energy factory Gravity hockey Iceberg
    jasmine 24h Level midnight Nurse
""".split()
FONTS = [
    f"{matplotlib.get_data_path()}/fonts/ttf/DejaVu{kind}.ttf" for kind in ("Sans", "Sans-Bold", "Serif", "SansMono")
]


def drawn(word, seed):
    """A picture of a word: font, size, place and colours by the seed, light on dark or dark on light."""
    dice = random.Random(seed)
    font = ImageFont.truetype(dice.choice(FONTS), dice.randint(18, 48))
    left, top, right, bottom = font.getbbox(word)
    width, height = right - left, bottom - top
    size = width + dice.randint(30, 90), height + dice.randint(30, 90)
    colours = [tuple(dice.randint(*span) for _ in range(3)) for span in ((0, 70), (185, 255))]
    ground, ink = colours if dice.random() < 0.5 else colours[::-1]
    picture = Image.new("RGB", size, ground)
    place = dice.randint(10, size[0] - width - 10) - left, dice.randint(10, size[1] - height - 10) - top
    ImageDraw.Draw(picture).text(place, word, font=font, fill=ink)
    return picture


def png(picture):
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


class TestOCR(MetricContract):
    @pytest.fixture(scope="class")
    def metric(self):
        return OCRMetric(OCR(text="text"))

    @pytest.fixture(scope="class")
    def changed(self):
        return OCRMetric(OCR(text="text", case=True))

    @pytest.fixture(scope="class")
    def records(self, kind):
        """The word that was asked for, another one, and pictures that are asked for no text, with and without one."""
        asked = {0: '{"text": "river"}', 1: '{"text": "river"}', 2: "{}", 3: '{"text": ["", null]}'}
        records = {}
        for number, word in enumerate(["River", "Rover", "River", "", "River"]):
            record = image_record(kind, number, png(drawn(word, 1)))
            records[record["key"]] = record | {"fields": asked.get(number, '{"text": ["river", "bank"]}')}
        return records

    def test_a_wrong_word_is_told_and_no_word_is_no_failure(self, scores):
        right, wrong, none, empty, half = scores.values()
        assert right == {"ocr": 1.0, "ocr_exact": 1, "ocr_text": "River", "ocr_error": None}
        assert wrong == {"ocr": 0.8, "ocr_exact": 0, "ocr_text": "Rover", "ocr_error": None}
        assert none == empty == dict.fromkeys(right)
        assert half["ocr_exact"] == 0 and 0.5 <= half["ocr"] < 0.8


def test_words_are_read_as_they_were_drawn_and_wrong_ones_told():
    assert len(set(WORDS)) == 100
    reader = OCRMetric(OCR()).open("images")
    subjects = [
        Subject(f"{n:032x}", f'a sign that says "{word}"', [drawn(word, n)], {}) for n, word in enumerate(WORDS)
    ]
    found = reader.score(subjects)
    missed = [(word, one["ocr_text"]) for word, one in zip(WORDS, found, strict=True) if not one["ocr_exact"]]
    assert len(missed) <= 5, missed
    # The same pictures, asked for the next word.
    for word, one in zip(WORDS, [*found[1:], found[0]], strict=True):
        again = reader.metric.compared([word], one["ocr_text"].split("\n"))
        assert again["ocr"] < 1 and again["ocr_exact"] == 0, word


def test_text_is_read_on_one_thread_and_by_several_lines():
    reader = OCRMetric(OCR(all=True)).open("edited")
    for part in (reader.read.text_det.infer, reader.read.text_rec.session, reader.read.text_cls.infer):
        options = part.session.get_session_options()
        assert options.intra_op_num_threads == options.inter_op_num_threads == 1
    whole = Image.new("RGB", (400, 300), "white")
    for row, word in enumerate(("Hello", "world", "again")):
        whole.paste(drawn(word, 4).resize((240, 80)), (80 * (row % 2), 10 + 95 * row))
    ask = Subject("0" * 32, 'change "Bye" to "Hello world"', [whole, whole], {})
    assert reader.score([ask])[0] == {"ocr": 1, "ocr_exact": 1, "ocr_text": "Hello\nworld\nagain"}
    (narrow,) = reader.score([Subject("2" * 32, "", [whole, Image.new("RGB", (3000, 16))], {})])
    assert narrow == {"ocr_error": "the picture is too narrow to be read: 3000 x 16 pixels"}
    assert reader.score([Subject("1" * 32, "make it blue", [whole, whole], {})])[0] == {
        "ocr_text": "Hello\nworld\nagain"
    }
