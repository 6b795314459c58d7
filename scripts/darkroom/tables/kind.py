"""All shards of one kind of image, checked against the plan and read together with their scores."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from darkroom.errors import DarkroomError
from darkroom.metrics.formulas import Computed
from darkroom.metrics.score import SCORE_COLUMNS
from darkroom.plan.shards import Plan, rows_digest
from darkroom.plan.stages import makers_of
from darkroom.store.columns import TABLE_COLUMNS
from darkroom.store.shardfile import read_columns, read_meta
from darkroom.tables.sql import computed

_IMAGE_COLUMNS = [name for name in TABLE_COLUMNS if name not in ("kind", "shard")] + ["fields"]
_OF_IMAGES = ("image_key", "sha256")  # columns of score files that say whose the scores are
_NOT_SCORES = SCORE_COLUMNS.keys() - set(_OF_IMAGES)
_AT_ONCE = 16_384


@dataclass(frozen=True)
class ShardFiles:
    """Where the files of one kind lie.

    Attributes:
        rows: shard -> its rows (JSONL).
        images: shard -> its images (Parquet).
        scores: (metric, group) -> what the metric says of the images of a group of shards (Parquet).
        sources: shard -> by kind, the files of images of this run that its images start from.
    """

    rows: Callable[[str], Path]
    images: Callable[[str], Path]
    scores: Callable[[str, str], Path]
    sources: Callable[[str], dict[str, list[Path]]] = lambda shard: {}

    @classmethod
    def below(cls, rows: Path, images: Path, scores: Path) -> "ShardFiles":
        """Files named after their shard or group in folders: rows/{shard}.jsonl, scores/{metric}/{group}.parquet."""
        return cls(
            rows=lambda shard: rows / f"{shard}.jsonl",
            images=lambda shard: images / f"{shard}.parquet",
            scores=lambda metric, group: scores / metric / f"{group}.parquet",
        )


@dataclass
class Kind:
    """All shards of one kind of picture: "images" (of the prompts), "edited" (of the edits), or what a stage makes of these.

    Attributes:
        name: of the kind.
        plan: the shards of its rows.
        samples: images of each row, where the row does not say.
        files: where its files lie.
        image_digests: shard -> the digest that is planned for its images.
        score_digests: metric -> group -> the digest that is planned for its scores; every metric that scores this kind.
        groups: group -> the shards that are scored together, whose scores are in one file.
        rows: which of the user's files its rows are from, "prompts" or "edits".
        section: the section of the config that names the model which makes the images; None where no model does.
        model: its name, where the pictures are by one of several models; the table says it of those that it made. models: the
            names of all of these.
        formulas: scores that are worked out from the others, in order.
        unshown: read the columns of score files, too, that no table shows, such as embeddings.
        reads: the kind that its images can start from; the record of each then holds as `source` what it was made from.
    """

    name: str
    plan: Plan
    samples: int
    files: ShardFiles
    image_digests: dict[str, str]
    score_digests: dict[str, dict[str, str]]
    groups: dict[str, list[str]]
    rows: str = "prompts"
    section: str | None = "generate"
    reads: str | None = None
    model: str | None = None
    models: tuple[str, ...] = ()
    formulas: tuple[Computed, ...] = ()
    unshown: bool = False

    def makes(self, row: dict[str, Any]) -> bool:
        """Whether a normal row has pictures here."""
        return self.model is None or self.model in makers_of(row, self.models)

    @property
    def rows_expected(self) -> int:
        """How many of the rows have pictures here."""
        return sum(shard.rows_of(self.model) for shard in self.plan.shards.values())

    @property
    def has_sources(self) -> bool:
        """Whether each image was made from another one."""
        return self.reads is not None

    def rows_file(self, shard: str) -> Path:
        return self.files.rows(shard)

    def image_file(self, shard: str) -> Path:
        return self.files.images(shard)

    def score_file(self, metric: str, group: str) -> Path:
        return self.files.scores(metric, group)

    @property
    def metrics(self) -> list[str]:
        """The metrics that score this kind, in the order of their columns."""
        return list(self.score_digests)

    def tables(self) -> Iterator[pa.Table]:
        """The images in the order of the rows, some shards at a time: image columns without pictures, then scores.

        Every file must be there, made for what is planned, with scores of these very images. Raises DarkroomError.
        """
        waiting: list[pa.Table] = []
        for group in self.groups:
            for table in self._joined(group):
                waiting.append(table)
                if sum(len(one) for one in waiting) >= _AT_ONCE:
                    yield self._whole(waiting)
                    waiting = []
        if waiting:
            yield self._whole(waiting)

    def group_of(self, shard: str) -> str:
        """The name of the group that a shard is scored with."""
        return next(group for group, shards in self.groups.items() if shard in shards)

    def shard_records(self, shard: str) -> Iterator[dict[str, Any]]:
        """A record for each image of one shard: image columns without pictures, then scores."""
        table = self._whole(list(self._joined(self.group_of(shard), shard)))
        for batch in table.to_batches(_AT_ONCE):
            yield from batch.to_pylist()

    def recipes(self, shard: str) -> dict[str, dict[str, Any]]:
        """Metric -> the recipe of its scores of a shard."""
        group = self.group_of(shard)
        return {metric: read_meta(self.score_file(metric, group))["recipe"] for metric in self.score_digests}

    def _joined(self, group: str, only: str | None = None) -> Iterator[pa.Table]:
        """The shards of a group, or one of them, with their scores."""
        scores = {}
        for metric, digests in self.score_digests.items():
            path = self.score_file(metric, group)
            unshown = () if self.unshown else read_meta(path).get("unshown", ())
            scores[metric] = read_columns(path, leave_out={*_NOT_SCORES, *unshown}, expected=digests[group])
        counted = 0  # images so far: those of all shards of a group follow each other in its files of scores
        for shard in self.groups[group]:
            path = self.image_file(shard)
            if only not in (None, shard):
                counted += read_meta(path)["records"]
                continue
            images = self._images(shard)
            for metric, found in scores.items():
                part = found.slice(counted, len(images))
                if len(part) < len(images):
                    raise self._miscounted(metric, group, len(found))
                self._check_same(metric, group, images, part)
                for name in part.column_names:
                    if name not in _OF_IMAGES:
                        images = images.append_column(name, part[name])
            counted += len(images)
            yield images
        for metric, found in scores.items():
            if only is None and len(found) != counted:
                raise self._miscounted(metric, group, len(found))

    def _images(self, shard: str) -> pa.Table:
        """The images of a shard. Columns that this kind has not, such as those of a source, are not there."""
        images = read_columns(self.image_file(shard), _IMAGE_COLUMNS, expected=self.image_digests[shard])
        for place, (name, value) in enumerate((("kind", self.name), ("shard", shard))):
            images = images.add_column(place, name, pa.repeat(pa.scalar(value, pa.string()), len(images)))
        if self.model is not None:
            ours = pc.if_else(pc.equal(images["origin"], "generated"), self.model, pa.scalar(None, pa.string()))
            images = images.append_column("model", ours)
        if "source_origin" in images.column_names and "source_kind" not in images.column_names:
            # Of a file from before edits could start from edits.
            made = pc.equal(images["source_origin"], "generated")
            kinds = pc.if_else(made, pa.scalar(self.reads, pa.string()), pa.scalar(None, pa.string()))
            images = images.append_column("source_kind", kinds)
        return images

    def _check_same(self, metric: str, group: str, images: pa.Table, scores: pa.Table) -> None:
        """Raises DarkroomError where scores are of other pictures."""
        names = (("key", "image_key"), ("sha256", "sha256"))
        if all(images[one].equals(scores[other]) for one, other in names):
            return
        pairs = zip(*([*images[one].to_pylist()] for one, _ in names), strict=True)
        others = zip(*([*scores[other].to_pylist()] for _, other in names), strict=True)
        wrong = next(place for place, (one, other) in enumerate(zip(pairs, others, strict=True)) if one != other)
        raise DarkroomError(
            f"{self.score_file(metric, group)}: row {images['row'][wrong].as_py()}: the scores are of another picture;"
            " delete it and run again"
        )

    def _miscounted(self, metric: str, group: str, scores: int) -> DarkroomError:
        images = sum(read_meta(self.image_file(shard))["records"] for shard in self.groups[group])
        path = self.score_file(metric, group)
        return DarkroomError(f"{path}: {scores} scores for {images} images; delete it and run again")

    def _whole(self, tables: list[pa.Table]) -> pa.Table:
        table = pa.concat_tables(tables, promote_options="default").combine_chunks()
        return computed(table, self.formulas) if self.formulas else table

    def lines(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """(shard, first line of the shard in the user's file, prompts line) of every row and rejected row."""
        for name, shard in self.plan.shards.items():
            path = self.rows_file(name)
            data = path.read_bytes()
            if rows_digest(data) != shard.digest:
                raise DarkroomError(f"{path}: not the rows that are planned; delete it and run again")
            for raw in data.splitlines():
                yield name, shard.first_line, json.loads(raw)
