"""All shards of one kind of image, checked against the plan and read together with their scores."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darkroom.errors import DarkroomError
from darkroom.metrics.score import SCORE_COLUMNS
from darkroom.plan.shards import Plan, rows_digest
from darkroom.plan.stages import makers_of
from darkroom.store.shardfile import EDITED_COLUMNS, check_digest, iter_records, read_meta

# Columns of the final tables before those of scores; those of edits alone are null for generated images. Between `kind` and the
# others stands `model` where the config names several.
TABLE_COLUMNS = {"kind": "text", "shard": "text"} | {
    name: type_ for name, type_ in EDITED_COLUMNS.items() if type_ != "picture" and name != "fields"
}
_IMAGE_COLUMNS = [name for name in TABLE_COLUMNS if name not in ("kind", "shard")] + ["fields"]


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

    def check(self) -> None:
        """Every shard file is there, was made for what is planned, and holds as many requests as its rows ask for."""
        for group, shards in self.groups.items():
            made = [check_digest(self.image_file(name), self.image_digests[name]) for name in shards]
            images = sum(meta["records"] for meta in made)
            for metric, digests in self.score_digests.items():
                path = self.score_file(metric, group)
                scores = check_digest(path, digests[group])["records"]
                if images != scores:
                    raise DarkroomError(f"{path}: {scores} scores for {images} images; delete it and run again")

    def records(self) -> Iterator[dict[str, Any]]:
        """A record per request in the order of the rows: image columns without pictures, then scores."""
        for group, shards in self.groups.items():
            scores = self._scores(group)
            for shard in shards:
                yield from self._joined(shard, scores, group)

    def group_of(self, shard: str) -> str:
        """The name of the group that a shard is scored with."""
        return next(group for group, shards in self.groups.items() if shard in shards)

    def shard_records(self, shard: str) -> Iterator[dict[str, Any]]:
        """The records of one shard, as `records` has them."""
        group = self.group_of(shard)
        shards = self.groups[group]
        before = shards[: shards.index(shard)]
        skipped = sum(read_meta(self.image_file(name))["records"] for name in before)
        scores = self._scores(group)
        for found in scores.values():
            next(itertools.islice(found, skipped, skipped), None)
        yield from self._joined(shard, scores, group)

    def recipes(self, shard: str) -> dict[str, dict[str, Any]]:
        """Metric -> the recipe of its scores of a shard."""
        group = self.group_of(shard)
        return {metric: read_meta(self.score_file(metric, group))["recipe"] for metric in self.score_digests}

    def _scores(self, group: str) -> dict[str, Iterator[dict[str, Any]]]:
        files = {metric: self.score_file(metric, group) for metric in self.score_digests}
        return {
            metric: iter_records(file, without=read_meta(file).get("unshown", ())) for metric, file in files.items()
        }

    def _joined(self, shard: str, scores: dict[str, Iterator[dict[str, Any]]], group: str) -> Iterator[dict[str, Any]]:
        """The images of a shard with their scores, which come next in each of `scores`."""
        # Columns that this kind has not, such as those of a source, are not there to be read.
        for image in iter_records(self.image_file(shard), _IMAGE_COLUMNS):
            record = {"kind": self.name, "shard": shard} | image
            if self.model is not None:
                record["model"] = self.model if image["origin"] == "generated" else None
            if "source_kind" not in image and image.get("source_origin") == "generated":
                record["source_kind"] = self.reads  # of a file from before edits could start from edits
            for metric, found in scores.items():
                score = next(found, {"image_key": None, "sha256": None})
                if (image["key"], image["sha256"]) != (score["image_key"], score["sha256"]):
                    raise DarkroomError(
                        f"{self.score_file(metric, group)}: row {image['row']}: the scores are of another picture;"
                        " delete it and run again"
                    )
                record |= {column: value for column, value in score.items() if column not in SCORE_COLUMNS}
            yield record

    def lines(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """(shard, first line of the shard in the user's file, prompts line) of every row and rejected row."""
        for name, shard in self.plan.shards.items():
            path = self.rows_file(name)
            data = path.read_bytes()
            if rows_digest(data) != shard.digest:
                raise DarkroomError(f"{path}: not the rows that are planned; delete it and run again")
            for raw in data.splitlines():
                yield name, shard.first_line, json.loads(raw)
