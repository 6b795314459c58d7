"""Image and score shards of a set that was never made, for a gallery of any size."""

import hashlib
import io
import json
from pathlib import Path

from darkroom.config.models import Gallery, Select
from darkroom.metrics.rubric import load_rubric
from darkroom.metrics.score import score_columns
from darkroom.plan.shards import make_plan
from darkroom.store.shardfile import IMAGE_COLUMNS
from darkroom.store.shardfile import write_shard as write_file
from darkroom.tables.kind import Kind, ShardFiles
from darkroom.tables.merge import merge_scores
from darkroom.views.gallery import write_index, write_shard
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
SELECT = Select(images={"p_yes": 0.5})
ATTACK = "<img src=x onerror=document.title='owned'>"


def png(number: int, side: int) -> bytes:
    """A picture that no other number has."""
    image = Image.new("RGB", (side, side), (number % 251, number // 251 % 251, 90))
    image.paste(
        (255 - number % 200, 60, number % 97), (side // 4, side // 4, side // 2, side // 2 + number % (side // 4))
    )
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def make_set(
    folder: Path, number: int, side: int = 64, size: int = 100, hostile: bool = False, name: str = "images"
) -> Kind:
    """Image and score shards of `number` pictures of side x side pixels, below `folder`.

    name: of the kind.
    """
    rows = [{"id": f"r{n}", "prompt": f"picture number {n}"} for n in range(number)]
    if hostile:
        rows[0]["prompt"] = rows[1]["id"] = ATTACK
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rubric = load_rubric(REPOSITORY / "config/rubrics/default.yaml")
    plan = make_plan(folder / "rows.jsonl", "prompts", size, folder)
    meta = {"digest": "d", "rule": "r", "recipe": {"model": "none"}, "versions": {}, "failed": 0}
    done = 0
    for shard in plan.names:
        images, scores = [], []
        for line in map(json.loads, plan.read(shard).splitlines()):
            data = png(done, side)
            key, sha256 = f"{done:032x}", hashlib.sha256(data).hexdigest()
            known = {"key": key, "row": line["id"], "item": 0, "sample": 0, "prompt": line["row"]["prompt"]}
            record = (
                dict.fromkeys(IMAGE_COLUMNS) | known | {"sha256": sha256, "fields": "{}", "width": side, "height": side}
            )
            images.append(record | {"image": {"bytes": data, "path": f"{key}.png"}})
            p = done * 37 % 101 / 100
            scores.append(known | {"image_key": key, "sha256": sha256, "p_yes": p, "reason": f"because {done}"})
            done += 1
        write_file(folder / name / f"{shard}.parquet", IMAGE_COLUMNS, images, meta)
        write_file(
            folder / "scores" / name / "judge" / f"{shard}.parquet", score_columns(rubric.columns(name)), scores, meta
        )
    digests = dict.fromkeys(plan.names, "d")
    members = {shard: [shard] for shard in plan.names}
    files = ShardFiles.below(folder / "prompts", folder / name, folder / "scores" / name)
    return Kind(name, plan, 1, files, digests, {"judge": digests}, members)


def make_gallery(kind: Kind, folder: Path) -> Path:
    """The gallery of a set, and its page."""
    rubric = load_rubric(REPOSITORY / "config/rubrics/default.yaml")
    below = folder / "gallery" / kind.name / "01234567-89abcdef"
    files = {(kind.name, shard): below / f"{shard}-00000000.js" for shard in kind.plan.names}
    for (_, shard), path in files.items():
        write_shard(kind, shard, Gallery(), path, {"digest": "d"})
    table = folder / "scores.parquet"
    merge_scores([kind], rubric.catalogue, SELECT, table, folder / "scores.csv", {"digest": "t"})
    about = {"title": "rows.jsonl", "set": "synthetic"}
    write_index([kind], rubric.catalogue, SELECT, table, files, folder / "gallery", about, {"digest": "g"})
    return folder / "gallery/index.html"


def scroll_through(page) -> None:
    """Scroll an open gallery to and fro; wherever it stands there are pictures soon after, and no card without one."""
    height = page.evaluate("document.getElementById('space').scrollHeight")
    for share in (0.1, 0.9, 0.45, 0.46, 0.47, 1.0):
        page.evaluate(f"document.getElementById('scroller').scrollTop = {share * height}")
        page.wait_for_function(
            """() => {
              const box = document.getElementById('scroller').getBoundingClientRect();
              const near = [...document.querySelectorAll('.card img')].filter((image) => {
                const at = image.getBoundingClientRect();
                return at.top < box.bottom && at.bottom > box.top;
              });
              return near.length > 3 && near.every((image) => image.complete && image.naturalWidth);
            }""",
            timeout=10_000,
        )
