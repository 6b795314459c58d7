"""Preference pairs: of the samples of a prompt or an edit, the best against the worst.

Of several models all samples compete; a model's folder then holds the pairs whose better image it made.

Columns are named as in Pick-a-Pic, whose trainers (Diffusion-DPO) read them as they are: caption, jpg_0 and jpg_1 (the
bytes of the image files), label_0 and label_1 (1 for the better one). A hash of the pair decides which of the two comes
first, so that the place tells nothing.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from darkroom.exports.base import Export, Pictures, Sums
from darkroom.exports.parquet import write_files
from darkroom.identity import digest
from darkroom.plan.stages import EDITED, like
from darkroom.store.shardfile import Type
from darkroom.tables.kind import Kind

_PAIR = {
    "caption": "text",
    "jpg_0": "bytes",
    "jpg_1": "bytes",
    "label_0": "float",
    "label_1": "float",
    "has_label": "bool",
    "are_different": "bool",
    "best_image_uid": "text",
    "image_0_uid": "text",
    "image_1_uid": "text",
    "score": "text",
    "margin": "float",
}
# The same for both images of a pair.
_SHARED = frozenset(
    "row item negative_prompt width height steps guidance true_cfg origin source_name source_origin source_kind source_parts source_sha256"
    " model recipe".split()
)
# The same also where two models made them.
_SHARED_BY_MODELS = frozenset("row item source_name source_origin source_kind source_parts source_sha256".split())
Judged = tuple[Kind, int, dict[str, Any]]  # an image: its kind, its place in its shard, its line of the table


def write(export: Export, sums: Sums) -> dict[str, int]:
    """Write a folder per kind with Parquet files of pairs; return the number of pairs in each."""
    return {
        kind.name: write_files(export, kind, columns(export, kind), _pairs(export, kind), sums) for kind in export.kinds
    }


def columns(export: Export, kind: Kind) -> dict[str, Type]:
    """The columns of a kind's pairs and their types (see `shardfile`)."""
    names, described = export.names(kind), export.described_columns(kind)
    ours: dict[str, Type] = {**_PAIR, **({"source": "picture"} if kind.has_sources else {})}
    found = {names(name): type_ for name, type_ in ours.items()}
    return found | {name: described[column] for name, column, _ in _columns(export, kind)}


def _columns(export: Export, kind: Kind) -> Iterator[tuple[str, str, int]]:
    """(column of a pair, column of an image, which of the two images it is of); the user's own are the same for both."""
    names, taken = export.names(kind), {*_PAIR, "source"}
    shared = _SHARED if kind.model is None else _SHARED_BY_MODELS
    for column in export.described_columns(kind):
        ours = export.our_name(kind, column)
        if ours in ("key", "prompt"):  # image_0_uid, image_1_uid and caption
            continue
        if ours is None:
            yield column, column, 0
            continue
        for number, name in enumerate([ours] if ours in shared else [f"{ours}_0", f"{ours}_1"]):
            while name in taken:
                name = f"image_{name}"
            taken.add(name)
            yield names(name), column, number


def deciding_score(export: Export, kind: Kind) -> str | None:
    """The score that pairs are told by: the config's, else the first threshold's, else the first there is."""
    wanted = export.settings.preferences.score_of(kind.name)
    return next(
        iter([*filter(None, [wanted]), *export.select.least_of(kind.name), *export.catalogue.score_names(kind.name)]),
        None,
    )


def asked(kind: str, record: dict[str, Any]) -> tuple[Any, ...]:
    """What pictures of a pair have in common. Samples of an edit may start from samples of another one, each from its own."""
    return record["row"], record["item"], record["source_sha256"] if like(kind) == EDITED.name else None


def _samples(export: Export, kind: Kind) -> Iterator[tuple[str, list[Judged]]]:
    """(shard, images) of everything that was asked for, by whichever model."""
    if kind.model is None:
        one = itertools.groupby(export.records(kind), key=lambda found: (found[0], *asked(kind.name, found[2])))
        for (shard, *_), group in one:
            yield shard, [(kind, place, record) for _, place, record, _ in group]
        return
    kinds = [other for other in export.kinds if like(other.name) == like(kind.name)]
    streams = [itertools.groupby(export.records(other), key=lambda found: found[0]) for other in kinds]
    heads = [next(stream, None) for stream in streams]
    for shard in kind.plan.shards:
        found: dict[tuple[Any, ...], list[Judged]] = {}
        for number, other in enumerate(kinds):
            head = heads[number]
            if head is None or head[0] != shard:  # none of its rows goes to this model
                continue
            for _, place, record, _ in head[1]:
                found.setdefault(asked(other.name, record), []).append((other, place, record))
            heads[number] = next(streams[number], None)
        for images in found.values():
            yield shard, images


def _pairs(export: Export, kind: Kind) -> Iterator[dict[str, Any]]:
    by = deciding_score(export, kind)
    if by is None:
        return
    named = list(_columns(export, kind))
    pictures = {other.name: Pictures(other) for other in export.kinds}
    for shard, images in _samples(export, kind):
        judged = [image for image in images if image[2]["error"] is None and image[2][by] is not None]
        best = max((image for image in judged if image[2]["selected"]), key=lambda image: image[2][by], default=None)
        if best is None or best[0].name != kind.name:
            continue
        worst = min(judged, key=lambda image: image[2][by])
        margin = best[2][by] - worst[2][by]
        if margin <= 0 or margin < export.settings.preferences.margin:
            continue
        yield _pair(export, named, shard, best, worst, pictures, by)


def _pair(
    export: Export,
    named: list[tuple[str, str, int]],
    shard: str,
    best: Judged,
    worst: Judged,
    pictures: dict[str, Pictures],
    by: str,
) -> dict[str, Any]:
    kind = best[0]
    keys = [best[2]["key"], worst[2]["key"]]
    swap = int(digest([best[2]["row"], best[2]["item"], *sorted(keys)], 1), 16) % 2
    both = [(of, pictures[of.name].read(shard, place, record)) for of, place, record in (best, worst)]
    margin = float(best[2][by] - worst[2][by])
    if swap:
        both.reverse()
    # Under the names that the columns of the better one's kind have.
    described = [export.described(replace(kind, section=of.section, model=of.model), image) for of, image in both]
    pair: dict[str, Any] = {
        "caption": best[2]["prompt"],
        "has_label": True,
        "are_different": True,
        "best_image_uid": best[2]["key"],
        "score": by,
        "margin": margin,
    }
    for number, (_, image) in enumerate(both):
        pair[f"jpg_{number}"] = image.full["image"]["bytes"]
        pair[f"label_{number}"] = float(number == swap)
        pair[f"image_{number}_uid"] = image.record["key"]
    if kind.has_sources:
        pair["source"] = both[0][1].full["source"]
    names = export.names(kind)
    pair = {names(name): value for name, value in pair.items()}
    return pair | {name: described[number][column] for name, column, number in named}
