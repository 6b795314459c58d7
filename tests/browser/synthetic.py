"""Image and score shards of sets that were never made, for galleries of any size."""

import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from darkroom.config.duplicates import Duplicates
from darkroom.config.models import Gallery, Select
from darkroom.metrics.base import Catalogue, ScoreColumn
from darkroom.metrics.rubric import load_rubric
from darkroom.metrics.score import score_columns
from darkroom.plan.shards import Plan, make_plan
from darkroom.rows.labels import Labels
from darkroom.store.shardfile import EDITED_COLUMNS, IMAGE_COLUMNS
from darkroom.store.shardfile import write_shard as write_file
from darkroom.tables.duplicates import DuplicatesFile, write_duplicates
from darkroom.tables.kind import Kind, ShardFiles
from darkroom.tables.merge import merge_scores, write_rejected
from darkroom.views.gallery import rejected_rows, write_index, write_shard
from darkroom.views.gallery import score_columns as shown_columns
from PIL import Image, ImageDraw

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


def circle(colour: str) -> bytes:
    """A circle, as sources of edits and their results are."""
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((14, 14, 50, 50), fill=colour)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def record(
    line: dict[str, Any], key: str, data: bytes | None, source: bytes | None = None, **more: Any
) -> dict[str, Any]:
    """An image record of a row; data: the picture, None for one that was not made."""
    known = dict.fromkeys(EDITED_COLUMNS if source else IMAGE_COLUMNS)
    known |= {"key": key, "row": line["id"], "item": 0, "sample": 0, "prompt": line["row"]["prompt"], "fields": "{}"}
    if data:
        with Image.open(io.BytesIO(data)) as image:
            known |= {"width": image.width, "height": image.height, "sha256": hashlib.sha256(data).hexdigest()}
        known |= {"image": {"bytes": data, "path": f"{key}.png"}}
    if source:
        known |= {"source_name": "source.png", "source_sha256": hashlib.sha256(source).hexdigest()}
        known |= {"source": {"bytes": source, "path": "source.png"}}
    return known | more


def write_kind(
    folder: Path,
    name: str,
    plan: Plan,
    made: Callable[[dict[str, Any]], Iterator[tuple[dict[str, Any], dict[str, Any]]]],
    more: Sequence[ScoreColumn] = (),
) -> Kind:
    """The shards of a kind below `folder`; made: a line of rows -> its image records, each with its scores; more: columns of
    other metrics than the judge."""
    rubric = load_rubric(REPOSITORY / "config/rubrics/default.yaml")
    meta = {"digest": "d", "rule": "r", "recipe": {"model": "folder:0123"}, "versions": {}, "failed": 0}
    edited = name == "edited"
    by_metric = {metric: list(columns) for metric, columns in itertools.groupby(more, lambda column: column.metric)}
    for shard in plan.names:
        rows = folder / plan.kind / f"{shard}.jsonl"
        rows.parent.mkdir(exist_ok=True)
        rows.write_bytes(plan.read(shard))
        lines = [line for line in map(json.loads, plan.read(shard).splitlines()) if "rejected" not in line]
        images, scores = zip(*(pair for line in lines for pair in made(line)), strict=True)
        scored = [
            {
                "image_key": image["key"],
                **{name: image[name] for name in ("key", "row", "item", "sample", "prompt", "sha256")},
            }
            | score
            for image, score in zip(images, scores, strict=True)
        ]
        write_file(folder / name / f"{shard}.parquet", EDITED_COLUMNS if edited else IMAGE_COLUMNS, images, meta)
        asked = {"judge": rubric.columns("edited" if edited else "images")} | by_metric
        for metric, columns in asked.items():
            wanted = score_columns(columns)
            only = [{column: value for column, value in record.items() if column in wanted} for record in scored]
            write_file(folder / "scores" / name / metric / f"{shard}.parquet", wanted, only, meta)
    digests = dict.fromkeys(plan.names, "d")
    members = {shard: [shard] for shard in plan.names}
    files = ShardFiles.below(folder / plan.kind, folder / name, folder / "scores" / name)
    return Kind(
        name,
        plan,
        1,
        files,
        digests,
        dict.fromkeys(["judge", *by_metric], digests),
        members,
        plan.kind,
        reads="images" if edited else None,
    )


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
    plan = make_plan(folder / "rows.jsonl", "prompts", size, folder)
    numbers = iter(range(number))

    def made(line: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        n = next(numbers)
        yield record(line, f"{n:032x}", png(n, side)), {"p_yes": n * 37 % 101 / 100, "reason": f"because {n}"}

    return write_kind(folder, name, plan, made)


def make_gallery(kind: Kind, folder: Path) -> Path:
    """The gallery of a set, and its page."""
    return write_gallery([kind], folder, SELECT, Labels(), {"title": "rows.jsonl", "set": "synthetic"})


# A set with something of everything: what is selected, what is not and why, what failed, rows that were rejected, labels.
BROKEN = ['{"id": "p9", "caption": "a row without a prompt"}', '{"prompt": "cut off']
MISSING = "source not-there.png: no such file"
PLACE = ["kind", "shard", "key", "selected"]
EVERYTHING_SELECT = Select(images={"p_yes": 0.5}, edited={"p_followed": 0.5, "p_preserved": 0.5}, per_row=1)


# Nine scores beside the judge's, texts, a number that nobody can select by, and a column that is not for people.
LONG_TEXT = "a word that was read " * 60
_MORE = {
    "pixels": ["sharpness_of_the_subject", "exposure", "flat_share", "border"],
    "clip": ["clip_prompt", "clip_source", "aesthetic"],
    "ocr": ["ocr_match", "ocr_confidence"],
}
MORE = [
    column
    for metric, names in _MORE.items()
    for column in [
        *(ScoreColumn(name, "float", metric, "score", metric, f"What is {name}?", 0, 1, True) for name in names),
        ScoreColumn(f"{metric}_spread", "float", metric, "score", metric),
        ScoreColumn(f"{metric}_text", "text", metric, "text", metric),
        ScoreColumn(f"{metric}_hidden", "text", metric, "text", metric),
        ScoreColumn(f"{metric}_error", "text", metric, "error", metric),
    ]
]


# A score that no metric has files of: it is worked out in the table.
WORKED_OUT = [
    ScoreColumn("overall", "float", "formula", "score", "overall", "(p_yes + exposure) / 2", 0, 1, True),
    ScoreColumn("overall_error", "text", "formula", "error", "overall"),
]


def more_scores(number: int) -> dict[str, Any]:
    """Values of these columns of an image; of every other one, `ocr_text` is long. The clip scores fall where the exposure rises."""
    names = [name for names in _MORE.values() for name in names]
    values = {name: (number * 7 + place * number * number) % 13 / 13 for place, name in enumerate(names)}
    values |= {name: round(1 - values["exposure"] + place / 10**4, 6) for place, name in enumerate(_MORE["clip"])}
    values |= {f"{metric}_spread": 0.125 for metric in _MORE} | dict.fromkeys(HIDDEN, "not for people")
    return values | {"pixels_text": f"{number:016x}", "ocr_text": LONG_TEXT if number % 2 == 0 else "STOP"}


HIDDEN = [column.name for column in MORE if column.name.endswith("_hidden")]


def make_everything(
    folder: Path, more: Sequence[ScoreColumn] = (), cards: list[str] | None = None
) -> tuple[Path, list[Kind]]:
    """The page of a gallery, and its kinds: four prompts with two samples each and five edits, of which the run keeps one sample a row.

    Of the edits the second starts from the first, the third is below a threshold, the fourth has no score, the fifth was not made. The second sample of the first
    prompt is accepted, the first sample of the last is rejected. more: columns of other metrics, see `more_scores`; cards: the scores below each
    picture. Originals lie in ../dataset, a file for each image that is selected.
    """
    prompts = [json.dumps({"id": f"p{n}", "prompt": f"a circle of colour {n}"}) for n in range(4)] + BROKEN
    (folder / "rows.jsonl").write_text("".join(line + "\n" for line in prompts))
    edits = [{"id": f"e{n}", "prompt": f"change the circle to colour {n}", "images": "s.png"} for n in range(5)]
    (folder / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in edits))
    (folder / "s.png").write_bytes(circle("red"))
    plans = (
        make_plan(folder / "rows.jsonl", "prompts", 100, folder),
        make_plan(folder / "edits.jsonl", "edits", 100, folder),
    )
    colours = ("blue", "green", "orange", "purple", "black")

    def samples(line: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        n = int(line["id"][1:])
        for sample in (0, 1):
            scores = {
                "p_yes": 0.9 - sample * 0.1,
                "prompt_alignment": 9,
                "visual_quality": 10 - n,
                "reason": f"as asked, {n}",
            }
            scores |= more_scores(2 * n + sample) if more else {}
            yield record(line, f"{n:031x}{sample}", circle(colours[n - sample]), sample=sample), scores

    def edited(line: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        n = int(line["id"][1:])
        if n == 4:
            yield record(line, "e4".zfill(32), None, error=MISSING), {}
            return
        scores: dict[str, Any] = {"p_followed": 0.9, "p_preserved": 0.2 if n == 2 else 0.8, "instruction_followed": 8}
        scores |= {"content_preserved": 7, "reason": "the circle has changed"}
        if n == 3:
            scores |= {"p_preserved": None, "p_preserved_reply": "maybe", "p_preserved_error": "neither yes nor no"}
        scores |= more_scores(n + 8) if more else {}
        after = {"source_kind": "edited", "source_name": "e0/0/0"} if n == 1 else {}
        yield record(line, f"e{n}".zfill(32), circle(colours[n]), circle("red"), **after), scores

    kinds = [
        write_kind(folder, "images", plans[0], samples, more),
        write_kind(folder, "edited", plans[1], edited, more),
    ]
    about = {
        "title": "rows.jsonl, edits.jsonl",
        "set": "everything",
        "models": {"folder:0123": "a-model"},
        "dataset": True,
        "cards": cards,
    }
    labels = Labels({"1".zfill(32): ("accept", 2, ""), "30".zfill(32): ("reject", 3, "")})
    page = write_gallery(kinds, folder, EVERYTHING_SELECT, labels, about, more=more)
    for name, shard, key, selected in pq.read_table(folder / "scores.parquet", columns=PLACE).to_pandas().to_numpy():
        if selected:
            original = folder / "dataset" / name / shard / f"{key}.png"
            original.parent.mkdir(parents=True, exist_ok=True)
            original.write_bytes(circle("red"))
    return page, kinds


def write_gallery(
    kinds: list[Kind],
    folder: Path,
    select: Select,
    labels: Labels,
    about: dict[str, Any],
    duplicates: Duplicates | None = None,
    more: Sequence[ScoreColumn] = (),
) -> Path:
    """Tables and gallery of these kinds, below `folder`, with the duplicates that are asked for; the page. more: columns beside the judge's."""
    judged = load_rubric(REPOSITORY / "config/rubrics/default.yaml").catalogue
    worked_out = WORKED_OUT if more else []
    catalogue = Catalogue.of({kind: [*columns, *more, *worked_out] for kind, columns in judged.kinds.items()})
    files = {
        (kind.name, shard): folder / "gallery" / kind.name / "01234567-89abcdef" / f"{shard}-00000000.js"
        for kind in kinds
        for shard in kind.plan.names
    }
    for kind in kinds:
        for shard in kind.plan.names:
            known = [name for name in shown_columns(catalogue, kind.name) if name not in HIDDEN]
            write_shard(kind, shard, Gallery(), files[kind.name, shard], {"digest": "d"}, known)
    table = folder / "scores.parquet"
    found = None
    if duplicates:
        found = DuplicatesFile(folder / "duplicates.parquet", "u", duplicates.columns)
        write_duplicates(kinds, duplicates, 64, {}, [], found.path, {"digest": "u"})
    merge_scores(kinds, catalogue, select, table, folder / "scores.csv", {"digest": "t"}, labels, duplicates=found)
    if worked_out:
        whole = pq.read_table(table)
        overall = pc.divide(pc.add(whole["p_yes"], whole["exposure"]), 2)
        pq.write_table(whole.set_column(whole.schema.get_field_index("overall"), "overall", overall), table)
    write_rejected(kinds, folder / "rejected.jsonl", labels)
    about = about | {
        "rejected": rejected_rows(folder / "rejected.jsonl", {"prompts": "rows.jsonl", "edits": "edits.jsonl"})
    }
    write_index(kinds, catalogue, select, table, files, folder / "gallery", about, {"digest": "g"})
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
