"""What the judge is asked again, and what becomes of each kind of question: the metric, with a judge that answers by the words."""

import hashlib
import json
import math
import statistics

import pytest
from darkroom.config.models import Judge
from darkroom.identity import digest
from darkroom.jobs.history import against_expected, speed
from darkroom.metrics.base import Answer
from darkroom.metrics.judge import JudgeMetric, JudgeScorer
from darkroom.metrics.rubric import load_rubric
from darkroom.metrics.score import score_chunk, score_shards
from darkroom.store.journal import read_journal
from darkroom.store.shardfile import iter_records, read_meta, write_shard
from metric_contract import COLUMNS, image_record

RUBRIC = """
images:
  - {name: shown, type: yes_no, text: "Is {prompt} shown?"}
  - {name: mark, type: yes_no, text: "Is there a watermark?"}
  - {name: style, type: choice, text: "Which style?", answers: [photo, drawing]}
  - {name: sharp, type: rating, text: "How sharp, for a {mood} picture?", minimum: 0, maximum: 4}
  - {name: caption, type: text, text: "What is wrong?", max_length: 40}
  - {name: grade, type: json, text: "Grade it.", repeat: 3, fields: {why: {max_length: 9}, good: {minimum: 1, maximum: 9}}}
  - {name: parts, type: yes_no, text: "Is {item} there, where it is {mood}?", over: atoms, combine: geometric_mean}
edited:
  - {name: kept, type: yes_no, text: "Is all else unchanged?"}
  - {name: fine, type: yes_no, text: "Is it sharp?", show: result}
  - {name: first, type: yes_no, text: "Is it sharp? (source)", show: source}
"""
OWN = [{"mood": "calm", "atoms": ["a dog", "a cat"]}, {"mood": "dark", "atoms": ["a dog", {"of": "a cat"}, "a fish"]}]


def draw(*parts):
    return int(digest(list(parts), 8), 16) / 2**32


class Oracle:
    """A judge whose answers depend on the words, the pictures and, where it writes, the seed."""

    def __init__(self):
        self.texts = []

    def fit(self, image, name=None):
        return image

    def ask(self, asks):
        self.texts += [ask.text for ask in asks]
        return [self.answer(ask) for ask in asks]

    def answer(self, ask):
        seen = [hashlib.sha256(image.tobytes()).hexdigest() for image in ask.images]
        if ask.question.labels:
            p = {answer: draw(ask.text, seen, answer) / len(ask.question.labels) for answer in ask.question.labels}
            return Answer(reply=max(p, key=p.get), probabilities=p)
        lot = draw(ask.text, seen, ask.seed)
        reply = {"text": f" wrong: {lot:.3f}\n", "json": json.dumps({"why": f"{lot:.3f}", "good": 1 + int(9 * lot)})}
        return Answer(reply=reply[ask.question.type])


class Asked:
    """One shard of pictures that is scored by rubrics, one after another."""

    def __init__(self, folder, kind="images", own=OWN, texts=RUBRIC):
        self.folder, self.kind, self.files, self.rubric = folder, kind, [], texts
        self.rows(own)

    def rows(self, own):
        self.own = own
        records = [image_record(self.kind, n) | {"fields": json.dumps(fields)} for n, fields in enumerate(own)]
        self.images = self.folder / f"images-{digest(own, 8)}.parquet"
        write_shard(self.images, COLUMNS[self.kind], records, {"digest": "i", "rule": "r", "failed": 0})

    def score(self, name, old=(), journals=(), oracle=None, **settings):
        """(counts, the texts of the questions asked) of scoring into the file `name`."""
        (self.folder / "rubric.yaml").write_text(self.rubric)
        metric = JudgeMetric(
            Judge(**{"model": "./m", "temperature": 1} | settings), load_rubric(self.folder / "rubric.yaml")
        )
        oracle = oracle or Oracle()
        counts = score_shards(
            metric,
            self.kind,
            {self.images: "i"},
            self.folder / name,
            "s",
            self.folder / f"{name}.jsonl",
            [self.folder / one for one in old],
            [self.folder / f"{one}.jsonl" for one in (*journals, name)],
            [],
            lambda: JudgeScorer(oracle, metric.rubric.questions[self.kind]),
        )
        assert counts["asked"] == len(oracle.texts)
        return counts, oracle.texts

    def same(self, one, other):
        return (self.folder / one).read_bytes() == (self.folder / other).read_bytes()

    def records(self, name):
        return list(iter_records(self.folder / name))


CHANGES = {
    "a reworded question": ("a watermark?", "a mark?", ["Is there a mark?"] * 2),
    "a new question": ("edited:", '  - {name: new, type: yes_no, text: "New?"}\nedited:', ["New?"] * 2),
    "a question taken away": ('  - {name: mark, type: yes_no, text: "Is there a watermark?"}\n', "", []),
    "another answer": ("[photo, drawing]", "[photo, drawing, painting]", ["Which style?"] * 2),
    "more digits": ("maximum: 4", "maximum: 5", ["How sharp, for a calm picture?", "How sharp, for a dark picture?"]),
    "another length": ("max_length: 40", "max_length: 50", ["What is wrong?"] * 2),
    "asked more often": ("repeat: 3", "repeat: 4", ["Grade it."] * 8),
    "items put together otherwise": ("geometric_mean", "minimum", []),
    "a question about edits": ("all else unchanged", "the rest unchanged", []),
}


@pytest.fixture
def asked(tmp_path):
    return Asked(tmp_path)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_question_is_asked_alone_and_the_file_is_as_if_made_at_once(asked, name):
    counts, texts = asked.score("a.parquet")
    assert (counts["made"], len(texts)) == (2, 2 * 5 + 2 * 3 + 5)
    assert asked.score("again.parquet", old=["a.parquet"])[1] == [] and asked.same("a.parquet", "again.parquet")
    old, new, wanted = CHANGES[name]
    assert old in asked.rubric
    asked.rubric = asked.rubric.replace(old, new)
    counts, texts = asked.score("b.parquet", old=["a.parquet"])
    assert (sorted(texts), counts["made"], counts["carried"]) == (wanted, bool(wanted) * 2, 2 - bool(wanted) * 2)
    assert counts["in_part"] == counts["made"]
    asked.score("whole.parquet")
    assert asked.same("b.parquet", "whole.parquet")
    # The file that went before says all that the rubric of before asks.
    asked.rubric = RUBRIC
    assert asked.score("c.parquet", old=["b.parquet", "a.parquet"])[1] == [] and asked.same("a.parquet", "c.parquet")


def test_what_one_question_took_tells_nothing_of_the_speed_of_all():
    whole = {"made": 4, "in_part": 0, "working": 8.0, "seconds": 10.0, "gpus": 1, "expected": 4.0}
    part = whole | {"in_part": 3, "working": 1.0}
    assert speed([whole, part]) == speed([whole]) == (2.0, 2.0) and speed([part]) is None
    assert against_expected([part, whole]) == 2.0 and against_expected([part]) is None


def test_settings_of_writing_ask_again_what_is_written(asked):
    asked.score("a.parquet")
    assert (
        sorted(asked.score("b.parquet", old=["a.parquet"], max_tokens=99)[1])
        == ["Grade it."] * 6 + ["What is wrong?"] * 2
    )
    assert len(asked.score("c.parquet", old=["a.parquet"], max_pixels=99)[1]) == 21


def test_of_rows_whose_items_and_fields_change_what_is_new_is_asked(asked):
    asked.score("a.parquet")
    first, second = OWN
    asked.rows([first | {"atoms": ["a cat", "a bird", "a dog"], "note": "new"}, second])
    assert asked.score("b.parquet", old=["a.parquet"])[1] == ["Is a bird there, where it is calm?"]
    asked.score("whole.parquet")
    assert asked.same("b.parquet", "whole.parquet")
    asked.rows([first, second | {"atoms": ["a dog"]}])
    counts, texts = asked.score("c.parquet", old=["b.parquet"])
    assert (counts["made"], texts) == (0, [])
    asked.rows([first, second | {"mood": "calm"}])
    assert sorted(asked.score("d.parquet", old=["a.parquet"])[1]) == sorted(
        ["How sharp, for a calm picture?"]
        + [f"Is {one} there, where it is calm?" for one in ("a dog", '{"of": "a cat"}', "a fish")]
    )


def test_a_killed_job_goes_on_and_another_rubric_takes_over_what_it_left(asked, monkeypatch):
    monkeypatch.setattr("darkroom.metrics.score.CHUNK", 1)
    asked.score("whole.parquet")

    class Killed(Oracle):
        def ask(self, asks):
            if len(self.texts) > 5:
                raise KeyboardInterrupt
            return super().ask(asks)

    def kill():
        with pytest.raises(KeyboardInterrupt):
            asked.score("a.parquet", oracle=Killed())

    kill()
    (left,) = read_journal(asked.folder / "a.parquet.jsonl").values()
    assert len(left) == 8  # a key for each part, and one for what its items share
    counts, texts = asked.score("a.parquet")
    assert (counts["made"], len(texts)) == (1, 11) and asked.same("a.parquet", "whole.parquet")
    assert not (asked.folder / "a.parquet.jsonl").exists()
    kill_of_other = Asked(asked.folder, texts=RUBRIC)
    kill()
    kill_of_other.rubric = RUBRIC.replace("watermark", "mark")
    counts, texts = kill_of_other.score("b.parquet", journals=["a.parquet"])
    assert (counts["made"], len(texts)) == (2, 1 + 11)


def test_the_numbers_of_each_kind_of_question(asked):
    asked.score("a.parquet")
    for n, record in enumerate(asked.records("a.parquet")):
        assert [
            record[f"{name}_error"] for name in ("shown", "mark", "style", "sharp", "caption", "grade", "parts")
        ] == [None] * 7
        assert record["style_photo"] + record["style_drawing"] == pytest.approx(1, abs=2e-6)
        assert record["style"] == max(("photo", "drawing"), key=lambda one: record[f"style_{one}"])
        assert 0 <= record["sharp"] <= 4 and record["sharp"] % 1 and 0 < record["sharp_mass"] <= 1
        assert record["caption"] == record["caption_reply"].strip() != record["caption_reply"]
        replies = [json.loads(reply) for reply in json.loads(record["grade_reply"])]
        marks = [reply["good"] for reply in replies]
        assert (
            len(replies) == 3 and len({reply["why"] for reply in replies}) == 3 and record["why"] == replies[0]["why"]
        )
        assert record["good"] == pytest.approx(statistics.fmean(marks), abs=1e-6)
        assert record["good_spread"] == pytest.approx(statistics.pstdev(marks), abs=1e-6)
        items = json.loads(record["parts_reply"])
        assert [one["item"] for one in items] == OWN[n]["atoms"]
        whole = math.prod(one["score"] for one in items) ** (1 / len(items))
        assert record["parts"] == pytest.approx(whole, abs=1e-6)
        assert record["parts_mass"] == min(one["mass"] for one in items)
    meta = read_meta(asked.folder / "a.parquet")
    assert set(meta["parts"]) == {"shown", "mark", "style", "sharp", "caption", "grade", "parts"}


def test_what_a_row_lacks_is_a_reason_and_asks_nothing(tmp_path):
    asked = Asked(tmp_path, own=[{}, {"mood": "calm", "atoms": "a dog"}, {"mood": "calm", "atoms": []}])
    _, texts = asked.score("a.parquet")
    none, text, empty = asked.records("a.parquet")
    assert (none["sharp"], none["sharp_error"]) == (None, "the row has no field mood")
    assert none["parts_error"] == "the row has no field atoms"
    assert text["parts_error"] == empty["parts_error"] == "field atoms of the row is no list with something in it"
    assert len(texts) == 3 * 8 - 1 and not any("{" in text for text in texts)


def test_a_failure_of_one_item_or_one_repetition_is_the_question_s(asked):
    class Broken(Oracle):
        def answer(self, ask):
            if "a cat" in ask.text:
                return Answer(error="no memory")
            return Answer(reply="{") if ask.question.type == "json" else super().answer(ask)

    asked.score("a.parquet", oracle=Broken())
    first, second = asked.records("a.parquet")
    assert (first["parts"], first["parts_error"]) == (None, '"a cat": no memory')
    assert second["parts_error"] == '{"of": "a cat"}: no memory'
    assert (
        first["grade_error"].startswith("reply 1 of 3: reply is not JSON")
        and first["good"] is first["good_spread"] is None
    )
    # A reason is kept like a score; an item that failed is asked again with the next change of the row.
    assert asked.score("b.parquet", old=["a.parquet"])[1] == []
    asked.rows([OWN[0] | {"atoms": ["a cat", "a dog", "a hen"]}, OWN[1]])
    assert asked.score("c.parquet", old=["a.parquet"])[1] == [
        f"Is {one} there, where it is calm?" for one in ("a cat", "a hen")
    ]


@pytest.mark.parametrize(
    ("reply", "cut", "error"),
    [
        ("", None, "reply is empty"),
        (" \n", None, "reply is empty"),
        ("x" * 41, None, "reply has 41 characters, more than max_length (40)"),
        ("xx", 5, "reply is cut off after 5 tokens; raise judge.max_tokens"),
        ("圆" * 40, None, None),
    ],
)
def test_a_text_is_whole_or_has_a_reason(asked, reply, cut, error):
    class Says(Oracle):
        def answer(self, ask):
            return Answer(reply=reply, cut=cut) if ask.question.type == "text" else super().answer(ask)

    asked.score("a.parquet", oracle=Says())
    record = asked.records("a.parquet")[0]
    assert (record["caption"] is None) == (error is not None) and record["caption_reply"] == reply
    assert record["caption_error"] == error or error in record["caption_error"]


def test_of_an_edit_a_question_is_shown_what_it_asks_about(tmp_path):
    asked = Asked(tmp_path, kind="edited", own=[{}])
    shown = {}

    class Sees(Oracle):
        def answer(self, ask):
            shown[ask.question.name] = [image.tobytes() for image in ask.images]
            return super().answer(ask)

    asked.score("a.parquet", oracle=Sees())
    source, result = shown["kept"]
    assert source != result and shown["fine"] == [result] and shown["first"] == [source]
    asked.rubric = RUBRIC.replace("show: result", "show: both")
    assert asked.score("b.parquet", old=["a.parquet"])[1] == ["Is it sharp?"]
    asked.rubric = RUBRIC.replace("Is there a watermark?", "Is there a mark?")
    assert asked.score("c.parquet", old=["a.parquet"])[1] == [] and asked.same("a.parquet", "c.parquet")


def test_a_picture_in_a_chunk_gets_every_part(tmp_path):
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    metric = JudgeMetric(Judge(model="./m", temperature=1), load_rubric(tmp_path / "rubric.yaml"))
    scorer = JudgeScorer(Oracle(), metric.rubric.questions["images"])
    found = score_chunk(
        metric, "images", scorer, {"0" * 32: image_record("images", 0) | {"fields": json.dumps(OWN[0])}}
    )
    assert list(found["0" * 32]) == [column.name for column in metric.columns("images")]
