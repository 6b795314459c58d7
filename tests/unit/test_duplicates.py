"""Duplicates: what was planted is found among many, groups and columns say it, and what cannot be compared is refused."""

import hashlib
import io
import json
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from darkroom.config.duplicates import Duplicates
from darkroom.config.load import load_config
from darkroom.config.metrics import PHash
from darkroom.config.models import Select
from darkroom.errors import DarkroomError
from darkroom.metrics.base import TAKEN, Catalogue
from darkroom.metrics.embeddings import packed
from darkroom.metrics.phash import PHashMetric, picture_hash
from darkroom.metrics.score import SCORE_COLUMNS, score_columns
from darkroom.plan.shards import make_plan
from darkroom.plan.stages import IMAGES
from darkroom.run.against import earlier_digests, earlier_sets
from darkroom.run.workflow import Workflow
from darkroom.store.shardfile import EDITED_COLUMNS, IMAGE_COLUMNS, write_shard
from darkroom.tables import alike
from darkroom.tables.duplicates import DuplicatesFile, EarlierSet, normal, write_duplicates
from darkroom.tables.kind import Kind, ShardFiles
from darkroom.tables.merge import merge_scores
from darkroom.views import plots
from darkroom.views.figures import figures
from PIL import Image, ImageDraw

PHASH = PHashMetric(PHash())
CATALOGUE = Catalogue.of({kind: PHASH.columns(kind) for kind in ("images", "edited")})


def groups_of(hashes, most):
    """The first of each hash's group, and how it was found."""
    found, numbers = alike.Alike(len(hashes)), np.arange(len(hashes))
    pairs, numbers, values = alike.equal_pairs(numbers, hashes)
    found.add(0, pairs)
    for one, other, far in alike.near_hashes(values, most):
        found.add(1, (numbers[one], numbers[other], far))
    return found.groups(), found


@pytest.mark.parametrize(("bits", "number"), [pytest.param(64, 100_000, marks=pytest.mark.long), (256, 5_000)])
def test_planted_near_duplicates_are_found_among_many_hashes(bits, number):
    """With recall and precision of 0.99 and more, in at most 60 CPU seconds."""
    random, most = np.random.default_rng(bits), bits * 3 // 32
    hashes = random.integers(0, 256, (number, bits // 8), np.uint8)
    ones, others = random.permutation(number)[: number // 10].reshape(2, -1)
    for one, other in zip(ones, others, strict=True):
        changed = np.unpackbits(hashes[one])
        changed[random.permutation(bits)[: random.integers(0, most + 1)]] ^= 1
        hashes[other] = np.packbits(changed)
    started = time.process_time()
    groups, _ = groups_of(hashes, most)
    took = time.process_time() - started
    after = np.flatnonzero((groups >= 0) & (groups != np.arange(number)))
    found = set(zip(groups[after].tolist(), after.tolist(), strict=True))
    planted = {(min(pair), max(pair)) for pair in zip(ones.tolist(), others.tolist(), strict=True)}
    recall, precision = len(found & planted) / len(planted), len(found & planted) / len(found)
    print(f"{number:,} hashes of {bits} bits: recall {recall:.4f}, precision {precision:.4f}, {took:.1f} CPU s")
    assert recall >= 0.99 and precision >= 0.99 and took <= 60


def test_every_pair_within_the_distance_is_found_and_no_other():
    random = np.random.default_rng(1)
    for bits, most in ((64, 0), (64, 5), (64, 16), (256, 30)):
        base = random.integers(0, 256, (4, bits // 8), np.uint8)
        flipped = np.unpackbits(base[random.integers(0, 4, 120)], axis=1)
        flipped ^= (random.random(flipped.shape) < 0.12).astype(np.uint8)
        hashes = np.unique(np.packbits(flipped, axis=1), axis=0)
        far = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(2)
        expected = {(i, j, far[i, j]) for i, j in zip(*np.nonzero(far <= most), strict=True) if i < j}
        found = [pair for block in alike.near_hashes(hashes, most) for pair in zip(*block, strict=True)]
        assert len(found) == len(expected) and set(found) == expected
        both = {pair for block in alike.near_hashes(hashes[:9], most, hashes) for pair in zip(*block, strict=True)}
        assert both == {(i, j, far[i, j]) for i in range(9) for j in range(len(hashes)) if far[i, j] <= most}


@pytest.mark.parametrize("number", [300, 12_000])
def test_planted_near_duplicates_are_found_among_vectors(number):
    """Few are compared with each other, many with those of the cells next to them."""
    random = np.random.default_rng(number)
    centres = random.normal(size=(number // 100, 32))
    vectors = alike.normalised(centres[random.integers(0, len(centres), number)] + random.normal(size=(number, 32)))
    ones, others = random.permutation(number)[: number // 10].reshape(2, -1)
    vectors[others] = alike.normalised(vectors[ones] + 0.05 * random.normal(size=(len(ones), 32)))
    planted = {(min(pair), max(pair)) for pair in zip(ones.tolist(), others.tolist(), strict=True)}
    close = (vectors[ones] * vectors[others]).sum(1)
    assert close.min() > 0.9
    found = {}
    for one, other, far in alike.near_vectors(vectors, 0.9):
        found |= dict(zip(zip(one.tolist(), other.tolist(), strict=True), far.tolist(), strict=True))
        assert np.allclose(far, 1 - (vectors[one] * vectors[other]).sum(1), atol=1e-5)
    assert len(planted & found.keys()) >= 0.99 * len(planted)
    if number == 300:
        near = vectors @ vectors.T >= 0.9
        assert found.keys() == {(i, j) for i, j in zip(*np.nonzero(near), strict=True) if i < j}


def test_groups_are_what_is_alike_in_steps_and_the_nearest_is_told(monkeypatch):
    bits = np.zeros((6, 64), np.uint8)
    bits[1, :4] = bits[2, :8] = 1  # a chain: 0 ~ 1 ~ 2, and 0 and 2 are 8 bits apart
    bits[3, 32:] = bits[4, 32:] = bits[5, 16:48] = 1
    for edges in (alike.EDGES, 0):  # put together at once, or after every pair
        monkeypatch.setattr(alike, "EDGES", edges)
        groups, found = groups_of(np.packbits(bits, axis=1), 4)
        assert groups.tolist() == [0, 0, 0, 3, 3, -1]
        assert found.nearest.tolist() == [1, 0, 1, 4, 3, -1]
        assert found.distance[:5].tolist() == [4, 4, 4, 0, 0] and found.way.tolist() == [1, 1, 1, 0, 0, -1]


def test_the_mean_distance_is_that_of_all_pairs():
    random = np.random.default_rng(3)
    hashes, vectors = random.integers(0, 256, (40, 8), np.uint8), alike.normalised(random.normal(size=(40, 5)))
    groups = random.integers(-1, 4, 40)
    groups[groups == 2] = 1
    groups[0] = 2  # alone
    for features, far in (
        (hashes, lambda i, j: np.bitwise_count(hashes[i] ^ hashes[j]).sum() / 64),
        (vectors, lambda i, j: 1 - vectors[i] @ vectors[j]),
    ):
        counts, means = alike.mean_distance(features, groups, 5)
        for group in range(5):
            there = np.flatnonzero(groups == group)
            every = [far(i, j) for i in there for j in there if i < j]
            assert counts[group] == len(there)
            assert means[group] == pytest.approx(np.mean(every) if every else np.nan, abs=1e-5, nan_ok=True)


# ------------------------------------------------------------------------------------------------- a set


def png(draw, size=96):
    image = Image.new("RGB", (size, size), "white")
    draw(ImageDraw.Draw(image), size / 96)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def flat(colour):
    return png(lambda pen, by: pen.rectangle((0, 0, 96 * by, 96 * by), fill=colour))


def scene(number, shift=0.0, size=96):
    """A picture of shapes; those of other numbers look otherwise, and `shift` moves one shape by a few pixels."""
    random = np.random.default_rng(number)
    boxes = [(x, y, x + w, y + h, tone) for x, y, w, h, tone in random.integers(8, 60, (7, 5)).tolist()]

    def draw(pen, by):
        for place, (left, top, right, low, tone) in enumerate(boxes):
            more = shift if place == 0 else 0
            pen.rectangle([(v + more) * by for v in (left, top, right, low)], fill=(4 * tone, 255 - 4 * tone, 90))

    return png(draw, size)


# row, sample -> picture
PICTURES = {
    "a": [scene(1), scene(2)],
    "b": [scene(1), scene(3)],  # its first is the file of a's
    "c": [scene(2, size=192), scene(4)],  # its first is a's second, larger
    "d": [flat("black"), flat("navy")],
    "e": [flat("black"), None],
    "f": [scene(5), scene(6)],
}
PROMPTS = {"a": "A  red fox.", "b": "a red fox", "c": "hens", "d": "night", "e": "night", "f": "a fox"}
STYLES = {"a": "photo", "b": "photo", "c": "oil", "d": "oil", "e": "oil", "f": "oil"}


def shards_of(folder, name, plan, columns, made, bits=64):
    """Shards of pictures and of their hashes as jobs leave them; made: (line, sample) -> what is known of the picture."""
    for shard in plan.names:
        images, scores = [], []
        for line in map(json.loads, plan.read(shard).splitlines()):
            for sample in range(2):
                known = dict.fromkeys(columns) | {"row": line["id"], "item": 0, "sample": sample, "fields": "{}"}
                known |= {"prompt": line["row"]["prompt"]} | made(line, sample)
                data = known["image"] and known["image"]["bytes"]
                known["sha256"] = data and hashlib.sha256(data).hexdigest()
                hashed = data and picture_hash(Image.open(io.BytesIO(data)).convert("RGB"), bits)
                images.append(known)
                scores.append({"image_key": known["key"], "sha256": known["sha256"], "phash": hashed} | known)
        meta = {"digest": "d", "rule": "r", "failed": 0}
        write_shard(folder / name / f"{shard}.parquet", columns, images, meta)
        scored = score_columns(PHASH.columns(name))
        lines = [{column: score.get(column) for column in scored} for score in scores]
        write_shard(folder / "scores" / name / "phash" / f"{shard}.parquet", scored, lines, meta)
    digests = dict.fromkeys(plan.names, "d")
    files = ShardFiles.below(folder / plan.kind, folder / name, folder / "scores" / name)
    members = {shard: [shard] for shard in plan.names}
    reads = "images" if name == "edited" else None
    return Kind(name, plan, 2, files, digests, {"phash": digests}, members, plan.kind, reads=reads)


def records_of(kind):
    return [record for table in kind.tables() for record in table.to_pylist()]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Images of six rows, two samples each, and edits of pictures of the user's."""
    folder = tmp_path_factory.mktemp("duplicates")
    rows = [{"id": row, "prompt": PROMPTS[row], "style": STYLES[row], "n": 0.5} for row in PICTURES]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = make_plan(folder / "prompts.jsonl", "prompts", 4, folder / "results", 2)

    def image(line, sample):
        data, name = PICTURES[line["id"]][sample], f"{line['id']}{sample}"
        fields = {"style": line["row"]["style"], "n": line["row"]["n"], "deep": {"a": 1}}
        known = {"key": name, "fields": json.dumps(fields), "error": None if data else "no model"}
        return known | {"image": data and {"bytes": data, "path": f"{name}.png"}}

    images = shards_of(folder, "images", plan, IMAGE_COLUMNS, image)
    sources = {"one.png": scene(7), "copy.png": scene(7), "large.png": scene(7, size=192), "two.png": scene(8)}
    edits = [{"id": f"e{n}", "prompt": "make it blue", "images": name} for n, name in enumerate(sources)]
    edits.append({"id": "e4", "prompt": "Make it blue", "images": "two.png"})
    for name, data in sources.items():
        (folder / name).write_bytes(data)
    (folder / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in edits))
    plan = make_plan(folder / "edits.jsonl", "edits", 4, folder / "results", 2)

    def edit(line, sample):
        name, key = line["row"]["images"], f"{line['id']}{sample}"
        data = scene(100 + 2 * int(line["id"][1:]) + sample)
        known = {"key": key, "source_name": name, "source": {"bytes": sources[name], "path": name}}
        known |= {"source_sha256": hashlib.sha256(sources[name]).hexdigest(), "source_origin": "given"}
        return known | {"image": {"bytes": data, "path": f"{key}.png"}}

    return folder, [images, shards_of(folder, "edited", plan, EDITED_COLUMNS, edit)]


def found(folder, kinds, earlier=(), embeddings=None, **settings):
    """(the file, its lines by key, counts)"""
    settings = Duplicates(against=[str(one.path) for one in earlier], **settings)
    path = folder / "duplicates.parquet"
    counts = write_duplicates(kinds, settings, 64, embeddings or {}, list(earlier), path, {"digest": "found"})
    file = DuplicatesFile(path, "found", settings.columns)
    return file, {line["key"]: line for line in file.lines()}, counts


def test_duplicates_are_found_by_file_and_by_hash_and_the_same_twice(kinds, tmp_path):
    _, those = kinds
    file, lines, counts = found(tmp_path, those, by="exact")
    groups = {key: line["duplicate_group"] for key, line in lines.items() if line["duplicate_group"]}
    assert groups == {"a0": "a0", "b0": "a0", "d0": "d0", "e0": "d0"}
    assert counts == {"images with duplicates": 4, "edited with duplicates": 0}
    assert lines["b0"] | {"duplicate_of": "a0", "duplicate_by": "exact", "duplicate_distance": 0.0} == lines["b0"]
    assert lines["e1"]["duplicate_group"] is None  # no picture
    file, lines, _ = found(tmp_path, those, by=["phash", "exact"])
    groups = {key: line["duplicate_group"] for key, line in lines.items() if line["duplicate_group"]}
    # Black and navy have no look to compare: the two that are one file are found, and no other.
    assert groups == {"a0": "a0", "b0": "a0", "a1": "a1", "c0": "a1", "d0": "d0", "e0": "d0"}
    assert (lines["c0"]["duplicate_of"], lines["c0"]["duplicate_by"]) == ("a1", "phash")
    assert [line["key"] for line in file.lines()] == [record["key"] for kind in those for record in records_of(kind)]
    once = file.path.read_bytes()
    assert found(tmp_path, those, by=["exact", "phash"])[0].path.read_bytes() == once


def test_duplicates_are_found_by_embeddings(kinds, tmp_path):
    """Of a metric that embeds pictures: b1 nearly as f0, the flat ones each in a direction of its own."""
    random, folder = np.random.default_rng(9), tmp_path / "embedded"
    kind, columns = kinds[1][0], SCORE_COLUMNS | {"look": "text"}
    vectors = {record["key"]: alike.normalised(random.normal(size=(1, 64)))[0] for record in records_of(kind)}
    vectors["b1"] = alike.normalised(vectors["f0"][None] + 0.01)[0]
    for shard in kind.plan.names:
        scores = [
            {name: record.get(name) for name in columns}
            | {"image_key": record["key"], "look": packed(vectors[record["key"]]) if record["sha256"] else None}
            for record in kind.shard_records(shard)
        ]
        write_shard(folder / "looks" / f"{shard}.parquet", columns, scores, {"digest": "d", "rule": "r"})
    digests = kind.score_digests["phash"]
    files = replace(kind.files, scores=lambda metric, group: folder / metric / f"{group}.parquet")
    embedded = replace(kind, files=files, score_digests={"looks": digests})
    file, lines, _ = found(tmp_path, [embedded], embeddings={"images": "look"}, by="embeddings", similarity=0.9)
    groups = {key: line["duplicate_group"] for key, line in lines.items() if line["duplicate_group"]}
    assert groups == {"a0": "a0", "b0": "a0", "d0": "d0", "e0": "d0", "b1": "b1", "f0": "b1"}
    assert (lines["b1"]["duplicate_by"], lines["f0"]["duplicate_of"]) == ("embeddings", "b1")
    assert lines["b1"]["duplicate_distance"] == pytest.approx(1 - vectors["b1"] @ vectors["f0"], abs=1e-3)
    there = np.array([vectors[key] for key, line in lines.items() if key != "e1"])
    apart = 1 - (there @ there.T)[np.triu_indices(len(there), 1)].mean()
    assert file.diversity()["images"]["set"]["embeddings"] == pytest.approx(apart, abs=1e-3)


def test_embeddings_that_no_metric_gives_are_refused(tmp_path):
    config = {"prompts": "config/demo/prompts.jsonl", "edits": None, "results": str(tmp_path)}
    config |= {"generate": {"model": "resources/models/shapes-flux", "device": "cpu"}}
    config |= {"judge": {"model": "resources/models/shapes-judge", "device": "cpu"}}
    with pytest.raises(DarkroomError, match=r"^config: duplicates\.by: embeddings: no metric gives any; name one"):
        Workflow.open(config | {"duplicates": {"by": ["exact", "embeddings"]}})


def test_sources_and_prompts_are_compared_when_asked_for(kinds, tmp_path):
    _, those = kinds
    _, lines, _ = found(tmp_path, those, by="exact", of=["sources", "prompts"])
    assert "duplicate_group" not in lines["a0"]
    told = {key: line["source_group"] for key, line in lines.items() if line["source_group"]}
    assert told == dict.fromkeys(("e00", "e01", "e10", "e11"), "one.png")
    prompts = {key: line["prompt_group"] for key, line in lines.items() if line["prompt_group"]}
    # The same words are another edit where the source is another.
    assert prompts == (
        dict.fromkeys(("a0", "a1", "b0", "b1"), "a/0")
        | dict.fromkeys(("d0", "d1", "e0", "e1"), "d/0")
        | dict.fromkeys(("e00", "e01", "e10", "e11"), "e0/0")
        | dict.fromkeys(("e30", "e31", "e40", "e41"), "e3/0")
    )
    _, lines, _ = found(tmp_path, those, by="phash", of=["sources"])
    told = {key: line["source_group"] for key, line in lines.items() if line["source_group"]}
    assert told == dict.fromkeys(("e00", "e01", "e10", "e11", "e20", "e21"), "one.png")
    assert normal(" \uff21 red\n fox . ") == normal("a RED fox") == "a red fox"


def test_the_tables_have_the_columns_and_none_where_nothing_is_asked_for(kinds, tmp_path):
    _, those = kinds
    file, lines, _ = found(tmp_path, those, by="phash", of=["images", "prompts"])
    files = tmp_path / "t.parquet", tmp_path / "t.csv"

    def merged(duplicates):
        merge_scores(those, CATALOGUE, Select(), *files, {"digest": "t"}, duplicates=duplicates)
        return pq.read_table(files[0])

    table = merged(file)
    assert [{name: line[name] for name in file.columns} for line in table.to_pylist()] == [
        {name: line[name] for name in file.columns} for line in lines.values()
    ]
    best = Select.model_validate({"images": {"distinct": "duplicate_group"}})
    merge_scores(those, CATALOGUE, best, *files, {"digest": "t"}, duplicates=file)
    kept = [line["duplicate_group"] for line in pq.read_table(files[0]).to_pylist() if line["selected"]]
    groups = {line["duplicate_group"] for line in table.to_pylist() if line["kind"] == "images" and not line["error"]}
    assert len(groups) > 1 and sorted(filter(None, kept)) == sorted(filter(None, groups))  # one of each
    plain = merged(None)
    assert plain.column_names == [name for name in table.column_names if name not in file.columns]
    assert set(Duplicates(by="exact", of=["images", "sources", "prompts"], against=["x"]).columns) <= TAKEN
    for wrong, said in ((replace(file, digest="other"), "stale"), (None, "not of the images that are there")):
        if wrong is None:
            found(tmp_path, those[1:], by="phash")
            wrong = file
        columns = replace(wrong, columns={})
        with pytest.raises(DarkroomError, match=said):
            merged(columns)


def test_earlier_sets_are_results_and_folders_of_pictures(kinds, tmp_path):
    _, those = kinds
    pictures, results, old = tmp_path / "pictures", tmp_path / "results", tmp_path / "old/results"
    (pictures / "more").mkdir(parents=True)
    (pictures / "more/big.png").write_bytes(scene(6, size=192))
    (pictures / "same.PNG").write_bytes(PICTURES["a"][0])
    (pictures / "broken.jpg").write_bytes(b"no picture")
    (pictures / "notes.txt").write_text("no picture")
    merge_scores(
        those[:1], CATALOGUE, Select(), old / "scores.parquet", old / "t.csv", {"digest": "t", "made_from": "m"}
    )
    paths = [str(pictures), str(old)]
    digests = earlier_digests(paths, results, planned=False, bits=64)
    sets = earlier_sets(paths, results)
    assert [one.name for one in sets] == ["pictures", "old/results"]
    _, lines, _ = found(tmp_path, those, sets, by="phash")
    told = {key: line["duplicate_against"] for key, line in lines.items() if line["duplicate_against"]}
    assert told.pop("a0") == told.pop("b0") == "pictures/same.PNG" and told.pop("f1") == "pictures/more/big.png"
    # Every image is in the other results; of equal ones the first counts.
    known = {key: PICTURES[key[0]][int(key[1])] for key in lines if len(key) == 2}
    assert told == {
        key: f"old/results/{next(other for other, data in known.items() if data == known[key])}"
        for key in known
        if known[key] and key not in ("a0", "b0", "f1")
    }
    # A job takes what was found when the run was planned; another plan sees what has changed.
    (pictures / "same.PNG").unlink()
    assert earlier_digests(paths, results, planned=True, bits=64) == digests
    changed = earlier_digests(paths, results, planned=False, bits=64)
    assert {path for path in paths if changed[path] != digests[path]} == {str(pictures)}
    (pictures / "more/big.png").touch()
    assert earlier_digests(paths, results, planned=False, bits=64) == changed


def test_what_can_be_no_earlier_set_is_refused_with_a_remedy(kinds, tmp_path):
    _, those = kinds
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DarkroomError, match=r"config: duplicates\.against\.0: .*empty: holds no pictures, and no scores"
    ):
        earlier_digests([str(tmp_path / "empty")], tmp_path, False, None)
    (tmp_path / "begun/.darkroom").mkdir(parents=True)
    (tmp_path / "begun/a.png").write_bytes(flat("red"))
    with pytest.raises(
        DarkroomError, match=r"begun: holds results without a scores\.parquet; name .* whose run is done"
    ):
        earlier_digests([str(tmp_path / "begun")], tmp_path, False, None)
    bare = [replace(kind, score_digests={}) for kind in those]
    merge_scores(
        bare,
        Catalogue.of({}),
        Select(),
        tmp_path / "scores.parquet",
        tmp_path / "t.csv",
        {"digest": "t", "made_from": "m"},
    )
    assert EarlierSet(tmp_path).read(None)[0][0] == "a0"
    with pytest.raises(
        DarkroomError, match=r"against\.0: .*scores\.parquet: no column phash to compare with; run it with"
    ):
        earlier_digests([str(tmp_path)], tmp_path, False, 64)
    merge_scores(
        those, CATALOGUE, Select(), tmp_path / "scores.parquet", tmp_path / "t.csv", {"digest": "t", "made_from": "m"}
    )
    with pytest.raises(DarkroomError, match=r"its phash has 64 bits where metrics\.phash\.bits is 256; give both"):
        earlier_digests([str(tmp_path)], tmp_path, False, 256)
    (tmp_path / "scores.parquet").write_bytes(b"damaged")
    with pytest.raises(
        DarkroomError, match=r"against\.0: .*scores\.parquet: not the table of a run \(.*; run snakemake there$"
    ):
        earlier_digests([str(tmp_path)], tmp_path, False, 64)


def test_diversity_is_told_of_the_set_of_samples_and_by_field(kinds, tmp_path):
    _, those = kinds
    file, *_ = found(tmp_path, those, by="phash")
    images = file.diversity()["images"]
    hashes = {
        r["key"]: np.unpackbits(np.frombuffer(bytes.fromhex(r["phash"]), np.uint8))
        for r in records_of(those[0])
        if r["phash"]
    }

    def mean(*keys):
        return np.mean([(hashes[one] != hashes[other]).mean() for one in keys for other in keys if one < other])

    whole = images["set"]
    assert (whole["images"], whole["repeated"]) == (11, 3) and whole["phash"] == pytest.approx(mean(*hashes), abs=1e-5)
    samples = [mean(f"{row}0", f"{row}1") for row in "abcdf"]
    assert images["samples"] == {"images": 10, "phash": pytest.approx(np.mean(samples), abs=1e-5)}
    assert list(images["fields"]) == ["style"]  # not what has one value, or no plain one
    photo = images["fields"]["style"]["photo"]
    assert photo == {"images": 4, "repeated": 1, "phash": pytest.approx(mean("a0", "a1", "b0", "b1"), abs=1e-5)}

    assert file.diversity()["edited"]["fields"] == {}


@pytest.mark.parametrize("settings", [{"by": "exact"}, {"by": "phash"}, {"by": "phash", "of": ["sources"]}], ids=str)
def test_what_is_told_is_drawn_and_twice_the_same(kinds, tmp_path, settings):
    _, those = kinds
    varied = found(tmp_path, those, **settings)[0].diversity()
    names = [plot.name for plot in figures([IMAGES], {"images": 2}, False, tmp_path, Duplicates(**settings).of)]
    assert ("diversity" in names) == ("images" in varied) == ("sources" not in settings.get("of", ()))
    for kind, told in varied.items():
        for name in ("once.svg", "again.svg"):
            plots.draw(tmp_path / name, lambda kind=kind, told=told: plots.diversity(kind, told), text=True)
        text = (tmp_path / "once.svg").read_text()
        assert text == (tmp_path / "again.svg").read_text()
        repeated = {"images": 3 if settings["by"] == "phash" else 2, "edited": 0}[kind]
        assert f"{repeated} of {told['set']['images']}" in text and ("style: photo" in text) == (kind == "images")


# ------------------------------------------------------------------------------------------------- the config


def loaded(tmp_path, **sections):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    return load_config({"prompts": "rows.jsonl"} | sections, [tmp_path])


def test_to_go_by_hashes_asks_for_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("darkroom.config.load._find", lambda name, *rest: name)
    assert loaded(tmp_path).duplicates.ways == () and loaded(tmp_path).metrics.asked == {}
    config = loaded(tmp_path, duplicates={"by": "phash"})
    assert config.duplicates.ways == ("phash",) and list(config.metrics.asked) == ["phash"]
    assert config.duplicates.bits_apart(64) == 6 and config.duplicates.bits_apart(256) == 24
    config = loaded(tmp_path, duplicates={"by": ["phash", "exact"]}, metrics={"phash": {"bits": 256}})
    assert config.duplicates.ways == ("exact", "phash") and config.metrics.asked["phash"].bits == 256
    again = loaded(tmp_path, **{name: config.model_dump()[name] for name in ("duplicates", "metrics")})
    assert (again.duplicates, again.metrics.asked) == (config.duplicates, config.metrics.asked)
    assert loaded(tmp_path, duplicates={"by": "exact"}).metrics.asked == {}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"by": "looks"}, r"duplicates\.by: expected .*exact.* or a list, got 'looks'"),
        ({"by": "exact", "of": ["images", "images"]}, "must not name anything twice"),
        ({"by": "phash", "distance": 17}, r"duplicates\.distance: must be at most 16 of 64 bits"),
        (
            {"by": "exact", "of": ["image"]},
            "duplicates.of: nothing is called image; known here: images, edited, sources",
        ),
        ({"against": ["x"]}, r"duplicates\.by: name exact or phash, for what duplicates\.against is compared by"),
        ({"by": "exact", "against": ["not-there"]}, r"duplicates\.against\.0: no such folder: not-there"),
        ({"by": "exact", "against": ["results"]}, r"duplicates\.against: names the results of this run"),
        ({"by": "exact", "near": 1}, r"unknown key duplicates\.near"),
    ],
)
def test_a_wrong_section_is_refused_in_a_line(tmp_path, monkeypatch, section, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    with pytest.raises(DarkroomError, match=f"^config: .*{said}"):
        loaded(tmp_path, duplicates=section)
