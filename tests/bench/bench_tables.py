"""What the tables cost: merge, selection and report of a million synthetic images, and a changed cut on a hundred thousand.

    python tests/bench/bench_tables.py [--images 1000000] [--shard 1000] [--only whole,cut]

Prints each figure beside its limit and exits with status 1 where one is above it. Times are CPU seconds of one process that does
nothing else, its imports included; memory is the greatest that it held. Each image has a row of its own with four fields, a P(yes), a rating, its
reason and a group of duplicates; one in a hundred could not be made.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "scripts"))

MOST_WHOLE, MOST_CUT, MOST_MEMORY = 29.0, 5.0, 4.0  # seconds for a million; seconds; GB
CUT = 100_000  # images of the set whose cut is changed


def shard(folder: Path, name: str, start: int, count: int, rubric: Any, duplicates: int) -> None:
    """Image and score files of a shard, as jobs write them."""
    from darkroom.metrics.score import score_columns
    from darkroom.store.shardfile import GROUP_ROWS, IMAGE_COLUMNS, arrow_schema, packed_meta

    dice = random.Random(start)
    numbers = range(start, start + count)
    keys = [hashlib.sha256(b"%d" % n).hexdigest() for n in numbers]
    bad = [n % 100 == 99 for n in numbers]
    rows, samples, zeros = [f"r{n}" for n in numbers], [0] * count, [0] * count
    prompts = [
        f"a photograph of a {dice.choice(('red', 'blue', 'small'))} fox, number {n}, in the morning light"
        for n in numbers
    ]
    sha256 = [None if wrong else key for key, wrong in zip(keys, bad, strict=True)]
    fields = [
        json.dumps({"category": f"c{n % 40}", "weight": n / 7, "source": f"list {n % 9}", "rank": n}) for n in numbers
    ]
    images: dict[str, list[Any]] = dict.fromkeys(IMAGE_COLUMNS, [None] * count)
    images |= {"key": keys, "row": rows, "item": zeros, "sample": samples, "prompt": prompts, "sha256": sha256}
    images |= {
        "seed": [*numbers],
        "width": [512] * count,
        "height": [512] * count,
        "steps": [20] * count,
        "guidance": [3.5] * count,
    }
    images |= {"true_cfg": [1.0] * count, "origin": ["generated"] * count, "fields": fields}
    images |= {"error": ["no memory" if wrong else None for wrong in bad]}
    images |= {"image": [None if wrong else {"bytes": b"picture", "path": "a.png"} for wrong in bad]}
    p = [None if wrong else dice.random() for wrong in bad]
    scores: dict[str, list[Any]] = {"key": keys, "image_key": keys, "row": rows, "item": zeros, "sample": samples}
    scores |= {"prompt": prompts, "sha256": sha256, "fields": fields, "p": p, "p_mass": [value and 0.99 for value in p]}
    scores |= {
        "json": [value and f'{{"rating": {round(value * 10)}}}' for value in p],
        "rating": [value and round(value * 10) for value in p],
    }
    scores |= {"twin_group": [dice.randrange(duplicates) for _ in numbers]}
    for kind, columns, records in (
        ("images", IMAGE_COLUMNS, images),
        ("scores/judge", score_columns(rubric.columns("images")) | {"twin_group": "int"}, scores),
    ):
        path = folder / kind / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        schema = arrow_schema(columns)
        whole = {one: records.get(one, [None] * count) for one in columns}
        with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
            writer.write_table(pa.table(whole, schema=schema), row_group_size=GROUP_ROWS)
            writer.add_key_value_metadata(packed_meta({"digest": "d", "rule": "r", "recipe": {}}, count))


def kind_of(folder: Path, images: int, size: int) -> tuple[Any, Any]:
    """The kind that the tables are made of, and the catalogue of its scores; its files are made where they are not there."""
    from darkroom.metrics.base import Catalogue, ScoreColumn
    from darkroom.metrics.rubric import Question, Rubric
    from darkroom.rows.fields import NameOrder
    from darkroom.tables.kind import Kind, ShardFiles

    asked = [
        Question("p", "yes_no", "{prompt}?"),
        Question("json", "json", "{prompt}", {"rating": {"minimum": 0, "maximum": 10}}),
    ]
    rubric = Rubric({"images": asked, "edited": []})
    names = {f"s{start:08}": (start, min(size, images - start)) for start in range(0, images, size)}
    for name, (start, count) in names.items():
        if not (folder / "scores/judge" / f"{name}.parquet").exists():
            shard(folder, name, start, count, rubric, images // 2)
    fields = ["id", "prompt", "category", "weight", "source", "rank"]
    shards = {name: SimpleNamespace(rows_of=lambda model, count=count: count) for name, (_, count) in names.items()}
    plan: Any = SimpleNamespace(columns=fields, order=NameOrder({"": fields}), shards=shards, names=list(shards))
    files = ShardFiles.below(folder / "prompts", folder / "images", folder / "scores")
    digests = dict.fromkeys(names, "d")
    kind = Kind("images", plan, 1, files, digests, {"judge": digests}, {name: [name] for name in names})
    found = ScoreColumn("twin_group", "int", "duplicates", "score", "duplicates", "", 0, images)
    why = ScoreColumn("duplicate_error", "text", "duplicates", "error", "duplicates")
    return kind, Catalogue.of({"images": [*rubric.catalogue.columns("images"), found, why]})


def measured(folder: Path, images: int, size: int, selection: dict[str, Any], report: bool) -> None:
    """Merge, select and report; prints each step's CPU seconds, and the memory."""
    from darkroom.config.models import Select
    from darkroom.tables.merge import merge_scores

    kind, catalogue = kind_of(folder, images, size)
    select = Select.model_validate({"images": selection})
    at = time.process_time()
    print(f"  imports                       {at:6.1f} s")
    tables = folder / "scores.parquet", folder / "scores.csv"
    counts = merge_scores([kind], catalogue, select, *tables, {"digest": "d"})
    at, before = time.process_time(), at
    print(
        f"  merge and selection           {at - before:6.1f} s   {counts['images selected']:,} of {images:,} selected"
    )
    if report:
        from darkroom.views.report import read_table

        (folder / "rejected.jsonl").touch()
        read_table(tables[0], folder / "rejected.jsonl", catalogue, select, {"images": ("prompts", images)})
        print(f"  numbers of the report         {time.process_time() - at:6.1f} s")


def apart(arguments: list[str]) -> tuple[float, float]:
    """(CPU seconds, GB) of a process of this file with these arguments."""
    process = subprocess.Popen([sys.executable, __file__, *arguments])
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(arguments)}: ended with {os.waitstatus_to_exitcode(status)}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--shard", type=int, default=1000, help="images of a shard")
    parser.add_argument("--only", default="whole,cut")
    parser.add_argument("--folder", type=Path, help="where the shards are kept, for another time")
    parser.add_argument("--one", help="the selection of one measurement, as JSON")
    asked = parser.parse_args()
    if asked.one is not None:
        measured(asked.folder, asked.images, asked.shard, json.loads(asked.one), True)
        return 0
    held = True
    with tempfile.TemporaryDirectory() as temporary:
        top = asked.folder or Path(temporary)
        whole = {"where": "p >= 0.3 and category <> 'c3'", "distinct": "twin_group", "order_by": ["rating", "p"]}
        whole |= {"quota": {"by": "category", "each": asked.images // 100}}
        for name, images, selection, most in (
            ("whole", asked.images, whole, MOST_WHOLE * asked.images / 1e6),
            ("cut", min(CUT, asked.images), {"p": 0.6}, MOST_CUT),
        ):
            if name not in asked.only.split(","):
                continue
            print(f"{images:,} images, selected by {selection}", flush=True)
            kind_of(top / name, images, asked.shard)
            given = ["--folder", str(top / name), "--images", str(images), "--shard", str(asked.shard)]
            seconds, memory = apart([*given, "--one", json.dumps(selection)])
            print(f"  in all                        {seconds:6.1f} s, at most {most:.1f}")
            print(f"  memory                        {memory:6.2f} GB, at most {MOST_MEMORY:.1f}", flush=True)
            held &= seconds <= most and memory <= MOST_MEMORY
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
