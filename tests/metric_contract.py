"""What every metric promises, as tests: subclass `MetricContract` as `Test...`, and give the fixtures it asks for."""

import hashlib
import io
import json

import numpy as np
import pytest
from darkroom.metrics import catalogue_of
from darkroom.metrics.score import score_chunk, score_columns, score_key, score_shards
from darkroom.plan.requests import score_digest
from darkroom.store.shardfile import EDITED_COLUMNS, IMAGE_COLUMNS, iter_records, read_meta, write_shard
from PIL import Image, ImageDraw

COLUMNS = {"images": IMAGE_COLUMNS, "edited": EDITED_COLUMNS}
TYPES = {"float": float, "int": int, "text": str, "bool": bool}


def picture(number, side=64):
    """A picture that no other number has, as PNG."""
    dice = np.random.default_rng(number)
    image = Image.new("RGB", (side, side), tuple(dice.integers(0, 256, 3).tolist()))
    ImageDraw.Draw(image).ellipse(dice.integers(0, side // 2, 4).cumsum().tolist(), fill="red")
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def image_record(kind, number, data=None):
    """The record of an image in its shard; `data`: its file, for one that is not as it should be."""
    data, source = data if data is not None else picture(number), picture(number + 100)
    key = f"{number:032x}"
    record = dict.fromkeys(COLUMNS[kind]) | {
        **{"key": key, "row": f"r{number}", "item": 0, "sample": 0, "prompt": f"a red circle, number {number}"},
        **{"fields": "{}", "image": {"bytes": data, "path": f"{key}.png"}, "sha256": hashlib.sha256(data).hexdigest()},
    }
    if kind == "edited":
        record["source"] = {"bytes": source, "path": "source.png"}
        record["source_sha256"] = hashlib.sha256(source).hexdigest()
    return record


class MetricContract:
    """Fixtures to give: `metric`, and `changed`, one of the same name that scores otherwise by its settings."""

    KINDS = ("images", "edited")
    NUMBER = 5  # pictures of each kind
    CLOSE = 1e-5  # how far a float may differ in other company

    @pytest.fixture(scope="class", params=KINDS)
    def kind(self, request):
        return request.param

    @pytest.fixture(scope="class")
    def records(self, kind):
        return {f"{number:032x}": image_record(kind, number) for number in range(self.NUMBER)}

    @pytest.fixture(scope="class")
    def scorer(self, metric, kind):
        return metric.open(kind)

    @pytest.fixture(scope="class")
    def scores(self, metric, kind, scorer, records):
        return score_chunk(metric, kind, scorer, records)

    def test_columns_given_are_columns_promised(self, metric, kind, scores, records):
        catalogue = catalogue_of([metric], [kind])
        assert any(c.role in ("score", "text") for c in catalogue.columns(kind)), "says nothing of a picture"
        assert list(scores) == list(records)
        for found in scores.values():
            assert list(found) == [column.name for column in metric.columns(kind)]
            for column in metric.columns(kind):
                assert column.metric == metric.name
                value = found[column.name]
                assert value is None or type(value) is TYPES[column.type], column.name
                if value is not None and column.role == "score":
                    assert column.low <= value <= column.high, column.name
            for question in catalogue.questions(kind):
                numbers = [found[name] for name in question.numbers]
                if found[question.error] is None and set(numbers) == {None}:
                    assert all(column.optional for column in question.columns), (
                        f"{question.name}: null without a reason"
                    )
                elif found[question.error] is None:
                    assert None not in numbers, question.name
                else:
                    assert set(numbers) <= {None}, question.name

    def same(self, metric, kind, one, other):
        for column in metric.columns(kind):
            a, b = one[column.name], other[column.name]
            close = column.type == "float" and a is not None and b is not None
            assert a == (pytest.approx(b, abs=self.CLOSE) if close else b), column.name

    def test_company_and_order_change_no_score(self, metric, kind, scorer, scores, records):
        backwards = score_chunk(metric, kind, scorer, dict(reversed(records.items())))
        key = list(records)[self.NUMBER // 2]
        alone = score_chunk(metric, kind, scorer, {key: records[key]})
        self.same(metric, kind, alone[key], scores[key])
        for name, found in scores.items():
            self.same(metric, kind, backwards[name], found)

    def test_a_picture_that_cannot_be_read_is_null_with_a_reason(self, metric, kind, scorer, scores, records):
        broken = records | {"f" * 32: image_record(kind, 9, picture(9)[:60])}
        found = score_chunk(metric, kind, scorer, broken)
        bad = found.pop("f" * 32)
        for question in catalogue_of([metric], [kind]).questions(kind):
            assert "cannot be read as an image" in bad.pop(question.error)
        assert set(bad.values()) <= {None}
        for name in records:
            self.same(metric, kind, found[name], scores[name])

    def test_the_recipe_decides_keys_and_digests(self, metric, changed, kind):
        one, other, record = metric.recipe(kind), changed.recipe(kind), image_record(kind, 0)
        assert one == json.loads(json.dumps(one)) == metric.recipe(kind) and one["version"] == metric.version
        assert metric.name == changed.name and one != other
        assert score_key(one, record) != score_key(other, record)
        assert score_digest(["images"], one) != score_digest(["images"], other)

    def test_every_column_belongs_to_one_part(self, metric, changed, kind):
        parts, columns = metric.parts(kind), metric.columns(kind)
        assert sorted(name for part in parts for name in part.columns) == sorted(column.name for column in columns)
        assert len({part.name for part in parts}) == len(parts) and all(part.errors for part in parts)
        assert {part.identity for part in parts} != {part.identity for part in changed.parts(kind)}

    def test_a_shard_is_scored_once_and_twice_to_the_same_bytes(self, metric, changed, kind, scorer, records, tmp_path):
        broken = image_record(kind, 7) | {"image": None, "sha256": None, "error": "no model"}
        images = tmp_path / "images.parquet"
        made = {"digest": "i", "rule": "r", "failed": 1}
        write_shard(images, COLUMNS[kind], [*records.values(), broken], made)

        def score(path, metric=metric, old=(), opened=None):
            kept = tmp_path / "journal.jsonl", list(old), [tmp_path / "journal.jsonl"]
            return score_shards(metric, kind, {images: "i"}, path, "s", *kept, ["i"], opened or (lambda: scorer))

        one, two, three = (tmp_path / f"{name}.parquet" for name in "abc")
        counts = score(one)
        assert (counts["requests"], counts["made"], counts["failed"]) == (self.NUMBER + 1, self.NUMBER, 1)
        score(two)
        assert one.read_bytes() == two.read_bytes()

        def not_opened():
            raise AssertionError("scores that are there are made again")

        assert score(three, old=[one], opened=not_opened)["carried"] == self.NUMBER
        assert three.read_bytes() == one.read_bytes()
        assert score(three, changed, old=[one])["made"] == self.NUMBER
        found = list(iter_records(one))
        assert set(found[0]) == set(score_columns(metric.columns(kind)))
        reasons = [column.name for column in metric.columns(kind) if column.role == "error"]
        assert [found[-1][name] for name in reasons] == ["no image: no model"] * len(reasons)
        meta = read_meta(one)
        assert (meta["metric"], meta["recipe"], meta["failed"]) == (metric.name, metric.recipe(kind), 0)
