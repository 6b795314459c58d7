"""All shards of one kind of image, checked against the plan and read together with their scores."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darkroom.errors import DarkroomError
from darkroom.metrics.judge import SCORE_COLUMNS
from darkroom.plan.shards import Plan, rows_digest
from darkroom.store.shardfile import EDITED_COLUMNS, check_digest, iter_records, read_meta

# Columns of the final tables before those of scores; those of edits alone are null for generated images.
TABLE_COLUMNS = {"kind": "text", "shard": "text"} | {
    name: type_ for name, type_ in EDITED_COLUMNS.items() if type_ != "picture" and name != "fields"
}


@dataclass
class Kind:
    """All shards of one kind: "images" (of the prompts) or "edited" (of the edits).

    image_digests: shard -> digest that is planned; groups: score file -> the shards it covers, and score_digests: the
    digest that is planned for it; images and scores: folders of these files; prompts: the folder of the prompts files.
    """

    name: str
    plan: Plan
    samples: int
    image_digests: dict[str, str]
    score_digests: dict[str, str]
    prompts: Path
    images: Path
    scores: Path
    groups: dict[str, list[str]]

    def rows_file(self, shard: str) -> Path:
        return self.prompts / f"{shard}.jsonl"

    def image_file(self, shard: str) -> Path:
        return self.images / f"{shard}.parquet"

    def score_file(self, group: str) -> Path:
        return self.scores / f"{group}.parquet"

    def check(self) -> None:
        """Every shard file is there, was made for what is planned, and holds as many requests as its rows ask for."""
        for group, shards in self.groups.items():
            made = [check_digest(self.image_file(name), self.image_digests[name]) for name in shards]
            images = sum(meta["records"] for meta in made)
            scores = check_digest(self.score_file(group), self.score_digests[group])["records"]
            if images != scores:
                raise DarkroomError(
                    f"{self.score_file(group)}: {scores} scores for {images} images; delete it and run again"
                )

    def records(self) -> Iterator[dict[str, Any]]:
        """A record per request in the order of the rows: image columns without pictures, then scores."""
        for group, shards in self.groups.items():
            scores = iter_records(self.score_file(group))
            for shard in shards:
                yield from self._joined(shard, scores, group)

    def group_of(self, shard: str) -> str:
        """The name of the score file that covers a shard."""
        return next(group for group, shards in self.groups.items() if shard in shards)

    def shard_records(self, shard: str) -> Iterator[dict[str, Any]]:
        """The records of one shard, as `records` has them."""
        group = self.group_of(shard)
        shards = self.groups[group]
        before = shards[: shards.index(shard)]
        skipped = sum(read_meta(self.image_file(name))["records"] for name in before)
        scores = iter_records(self.score_file(group))
        yield from self._joined(shard, itertools.islice(scores, skipped, None), group)

    def _joined(self, shard: str, scores: Iterator[dict[str, Any]], group: str) -> Iterator[dict[str, Any]]:
        """The images of a shard with their scores, which come next in `scores`."""
        columns = [c for c in TABLE_COLUMNS if c not in ("kind", "shard")] + ["fields"]
        if self.name == "images":
            columns = [c for c in columns if not c.startswith("source")]
        for image in iter_records(self.image_file(shard), columns):
            score = next(scores, {"image_key": None, "sha256": None})
            if (image["key"], image["sha256"]) != (score["image_key"], score["sha256"]):
                raise DarkroomError(
                    f"{self.score_file(group)}: row {image['row']}: the scores are of another picture;"
                    " delete it and run again"
                )
            kept = {column: value for column, value in score.items() if column not in SCORE_COLUMNS}
            yield {"kind": self.name, "shard": shard} | image | kept

    def lines(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """(shard, first line of the shard in the user's file, prompts line) of every row and rejected row."""
        for name, shard in self.plan.shards.items():
            path = self.rows_file(name)
            data = path.read_bytes()
            if rows_digest(data) != shard.digest:
                raise DarkroomError(f"{path}: not the rows that are planned; delete it and run again")
            for raw in data.splitlines():
                yield name, shard.first_line, json.loads(raw)
