"""Draw the report: every plot as SVG (for the report) and PNG (for papers and slides), the same bytes for the same numbers."""

import html
import io
import json
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.lines
import matplotlib.patches
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from darkroom.metrics.base import TRUSTED_MASS, Asked
from darkroom.store.images import open_picture
from darkroom.store.shardfile import RecordReader, iter_records
from darkroom.views.report import LABEL, Example, KindReport, Score, StageTimes

BLUE, ORANGE, GREEN, RED, GREY, INK = "#2b6ca3", "#d9822b", "#2f8f6b", "#b5403c", "#c3cad1", "#26323d"
_COLOURS = {"images": BLUE, "edited": ORANGE}
_OTHERS = ("#7a5ea8", "#3b8f8f", "#a8577e", "#7d7a3c")  # of kinds that stages after these make
_STYLE: dict[str, object] = {
    "svg.hashsalt": "darkroom",
    "svg.fonttype": "path",
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": "#8a949e",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.parse_math": False,  # a dollar in a prompt is a dollar
    "figure.facecolor": "white",
}
_MANY = 2000  # points beyond which an SVG holds them as a picture
_CELL = 256  # pixels of a picture on a sheet


def name_of(kind: str) -> str:
    """What the images of a kind are called."""
    base, _, model = kind.partition("-")
    return ("images" if base == "images" else f"{base} images") + (model and f" by {model}")


def colour_of(kind: str) -> str:
    """The colour of a kind, the same in every plot."""
    return _COLOURS.get(kind) or _OTHERS[sum(kind.encode()) % len(_OTHERS)]


def draw(path: Path, make: Callable[[], Figure], text: bool = False) -> None:
    """Write the figure that `make` returns to `path` (.svg), and beside it as .png; text: the SVG keeps text as text."""
    style: Any = _STYLE | ({"svg.fonttype": "none"} if text else {})
    with matplotlib.rc_context(style):
        figure = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        files: dict[str, dict[str, Any]] = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}
        for ending, metadata in files.items():
            file = path.with_suffix(ending)
            figure.savefig(file, metadata=metadata, dpi=150, bbox_inches="tight", pad_inches=0.15)


def yield_of_stages(kinds: list[KindReport]) -> Figure:
    """From rows to the images that are kept: a bar per step and kind."""
    figure = Figure(figsize=(9, 0.6 + 2.1 * len(kinds)), layout="constrained")
    for axes, kind in zip(np.atleast_1d(figure.subplots(len(kinds), 1)), kinds, strict=True):
        steps = [("rows", kind.rows + kind.rejected), ("images asked for", kind.requests), ("images made", kind.made)]
        steps += [("scored", kind.scored)] if kind.scores else []
        steps += [("kept", kind.selected)]
        names, numbers = zip(*steps, strict=True)
        lost = {"rows": kind.rejected, "images made": kind.requests - kind.made, "scored": kind.made - kind.scored}
        lost["kept"] = (kind.scored if kind.scores else kind.made) - kind.selected
        most = max(*numbers, 1)
        for y, (name, number) in enumerate(steps):
            bad = max(lost.get(name, 0), 0)
            good = number - bad if name == "rows" else number
            axes.barh(y, good, color=colour_of(kind.name), height=0.66)
            axes.barh(y, bad, left=good, color=RED if name != "kept" else GREY, height=0.66)
            told = f" {number:,}"
            if bad:
                told += f"   ({bad:,} " + {"rows": "rejected", "kept": "not kept"}.get(name, "failed") + ")"
            axes.text(good + bad + most * 0.004, y, told, va="center")
        axes.set_yticks(range(len(steps)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, most * 1.22)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
        axes.tick_params(axis="y", length=0)
        axes.set_title(name_of(kind.name).capitalize())
    return figure


def score_distributions(kind: KindReport) -> Figure:
    """A histogram for each score, the kept images in the kind's colour, with the thresholds."""
    scores = list(kind.scores.values())
    if not scores:
        return _nothing(f"No metric scores {name_of(kind.name)}.")
    figure, grid = _grid(len(scores))
    for axes, score in zip(grid, scores, strict=False):
        edges, everything = _coarse(score, score.group("all"))
        _, kept = _coarse(score, score.group("selected"))
        axes.stairs(everything, edges, fill=True, color=GREY)
        axes.stairs(kept, edges, fill=True, color=colour_of(kind.name))
        if score.name in kind.thresholds:
            axes.axvline(kind.thresholds[score.name], color=INK, linewidth=1.2, linestyle="--")
        axes.set_title(score.name)
        if score.share < TRUSTED_MASS:
            doubt = f"{score.name}: not to be trusted\nlabel mass {score.share:.1%} on average"
            axes.set_title(doubt, color=RED, fontweight="bold")
        missing = f", {score.missing:,} without" if score.missing else ""
        told = f"{score.number:,} images, mean {_mean(score)}{missing}" if score.number else "no scores"
        axes.set_xlabel(textwrap.fill(told, 42 if len(scores) <= 9 else 32))
        axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4, integer=True))
        axes.set_xlim(edges[0], edges[-1])
    patches = [matplotlib.patches.Patch(color=c) for c in (colour_of(kind.name), GREY)]
    figure.legend(patches, ["kept", "not kept"], loc="outside upper right", ncols=2, frameon=False)
    return figure


def models_compared(kinds: list[KindReport]) -> Figure:
    """Each score of the images that all of several models were asked for: how large a part of each model's has it."""
    names = list(kinds[0].scores)
    if not kinds[0].requests:
        return _nothing("No row goes to all models: nothing to compare.")
    if not names:
        return _nothing(f"No metric scores {name_of(kinds[0].name)}, nor those of the other models.")
    models = [kind.name.partition("-")[2] for kind in kinds]
    colours = [(BLUE, ORANGE, *_OTHERS)[number % (2 + len(_OTHERS))] for number in range(len(kinds))]
    figure, grid = _grid(len(names), wide=4.4)
    for axes, name in zip(grid, names, strict=False):
        scores = [kind.scores[name] for kind in kinds]
        for score, colour in zip(scores, colours, strict=True):
            edges, counts = _coarse(score, score.group("all"))
            axes.stairs(counts / max(score.number, 1), edges, color=colour, linewidth=1.8)
        means = ", ".join(
            f"{model} {_mean(score) if score.number else 'none'}" for model, score in zip(models, scores, strict=True)
        )
        axes.set_title(name)
        axes.set_xlabel(textwrap.fill(f"mean: {means}", 50))
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
        axes.set_xlim(min(score.edges[0] for score in scores), max(score.edges[-1] for score in scores))
    lines = [matplotlib.lines.Line2D([], [], color=colour, linewidth=1.8) for colour in colours]
    told = [f"{model}: {kind.selected:,} of {kind.made:,} kept" for model, kind in zip(models, kinds, strict=True)]
    figure.legend(
        lines, told, loc="outside upper left", ncols=min(len(kinds), 1 if len(names) == 1 else 3), frameon=False
    )
    return figure


def score_agreement(kind: KindReport) -> Figure:
    """The rank correlation of every two scores, over how many images, and the pairs that agree most and least.

    Correlations stand below the diagonal, numbers of images above it; on it, those that have the score.
    """
    names, values, pictures = list(kind.scores), kind.sample.correlations(), kind.sample.pictures
    number = len(names)
    few = number <= _FEW
    side, size = (0.62, 9) if few else (0.5, 7.5)
    labels = 0.085 * max(map(len, names)) + 0.3  # inches that the longest name takes
    bars, between = _extreme_pairs(names, values)
    width, height = side * number + labels + 0.2, side * number + labels + 0.5
    listed = (4.6 + 2 * labels, 0.26 * len(bars) + 1.1)
    right = None
    if len(bars) < 2:
        figure = Figure(figsize=(width + 1, height), layout="constrained")
        axes = figure.subplots()
    elif few:
        figure = Figure(figsize=(width + listed[0], max(height, listed[1])), layout="constrained")
        axes, right = figure.subplots(1, 2, width_ratios=(width, listed[0]))
    else:
        figure = Figure(figsize=(width, height + listed[1]), layout="constrained")
        axes, right = figure.subplots(2, 1, height_ratios=(height, listed[1]))
    axes.set_facecolor("#eef0f2")
    below = np.tri(number, k=-1, dtype=bool)
    axes.imshow(np.ma.masked_where(~below | np.isnan(values), values), cmap="RdBu", vmin=-1, vmax=1)
    for y in range(number):
        for x in range(number):
            value = values[y, x]
            if below[y, x]:
                told = "-" if np.isnan(value) else f"{value:.2f}"
                colour = "white" if abs(value) > 0.6 else INK
            else:
                told, colour = _short(int(pictures[y, x])), "#5b6670"
            axes.text(x, y, told, ha="center", va="center", color=colour, fontsize=size)
    metrics = [score.metric for score in kind.scores.values()]
    for place in range(1, number):  # between those of one metric and of the next
        if metrics[place] != metrics[place - 1]:
            axes.axhline(place - 0.5, color="white", linewidth=3)
            axes.axvline(place - 0.5, color="white", linewidth=3)
    slanted: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if few else {"rotation": 90}
    axes.set_xticks(range(number), names, **slanted)
    axes.set_yticks(range(number), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"Rank correlation, {name_of(kind.name)}")
    if right is not None:
        _pair_bars(right, bars, between)
    return figure


def diversity(name: str, told: dict[str, Any]) -> Figure:
    """How far apart two pictures of a kind are on average, and which share repeats another: of all, of a prompt's, by field.

    told: what `tables.duplicates` says of the kind.
    """
    lines = [("all", told["set"])] + ([("samples of a prompt", told["samples"])] if told["samples"]["images"] else [])
    lines += [
        (textwrap.shorten(f"{field}: {_printable(value)}", 40), one)
        for field, values in told["fields"].items()
        for value, one in values.items()
    ]
    if not told["set"]["images"]:
        return _nothing(f"No {name_of(name)} to compare.")
    called = {"phash": "share of bits that differ", "embeddings": "1 less the cosine"}
    ways = [way for way in called if way in told["set"]]
    figure = Figure(figsize=(10, 0.34 * len(lines) + 1.2), layout="constrained")
    every = figure.subplots(1, len(ways) + 1, sharey=True, squeeze=False)[0]
    for axes, way in zip(every, ways, strict=False):
        axes.set_title(f"Mean distance of two by {way}")
        axes.set_xlabel(called[way])
        for y, (_, one) in enumerate(lines):
            value = one.get(way)
            axes.barh(y, value or 0, color=colour_of(name), height=0.66)
            axes.text(value or 0, y, " -" if value is None else f" {value:.3f}", va="center")
        axes.set_xlim(0, max(*(one.get(way) or 0 for _, one in lines), 0.01) * 1.25)
    axes = every[-1]
    axes.set_title("Pictures that repeat another")
    axes.set_xlabel("share")
    for y, (_, one) in enumerate(lines):
        if "repeated" in one:
            share = one["repeated"] / max(one["images"], 1)
            axes.barh(y, share, color=GREY, height=0.66)
            axes.text(share, y, f" {one['repeated']:,} of {one['images']:,}", va="center")
    axes.set_xlim(0, 1.35)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    every[0].set_yticks(range(len(lines)), [text for text, _ in lines])
    every[0].invert_yaxis()
    for axes in every:
        axes.tick_params(axis="y", length=0)
    return figure


_FEW = 10  # scores up to which the list of pairs has its place beside the matrix
_LISTED = 6  # pairs that agree most, and as many that agree least


def _extreme_pairs(names: list[str], values: np.ndarray) -> tuple[list[tuple[str, float]], int]:
    """The pairs that agree most and those that agree least with their correlation, the most first; how many lie between."""
    pairs = [
        (f"{names[x]} | {names[y]}", float(values[y, x]))
        for y in range(len(names))
        for x in range(y)
        if not np.isnan(values[y, x])
    ]
    pairs.sort(key=lambda pair: -pair[1])
    left_out = max(0, len(pairs) - 2 * _LISTED)
    return (pairs[:_LISTED] + pairs[-_LISTED:] if left_out else pairs), left_out


def _pair_bars(axes: Any, pairs: list[tuple[str, float]], between: int) -> None:
    places = [place + (0.8 if between and place >= _LISTED else 0) for place in range(len(pairs))]
    axes.barh(
        places, [value for _, value in pairs], color=[BLUE if value > 0 else RED for _, value in pairs], height=0.66
    )
    for place, (_, value) in zip(places, pairs, strict=True):
        axes.text(max(value, 0), place, f" {value:.2f}", va="center", fontsize=9)
    if between:
        axes.text(0, _LISTED - 0.1, f"{between:,} pairs between", va="center", color="#5b6670", fontsize=9)
    axes.set_yticks(places, [name for name, _ in pairs], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(min(0, *(value for _, value in pairs)) if pairs else 0, 1.12)
    axes.axvline(0, color=INK, linewidth=1)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Pairs that agree most, and least" if between else "Pairs, by how far they agree")


def _short(number: int) -> str:
    """A number in at most five letters."""
    for unit, letter in ((10**6, "M"), (10**3, "k")):
        if number >= 10 * unit:
            return f"{number // unit}{letter}"
    return str(number)


def label_agreement(kinds: list[KindReport]) -> Figure:
    """Judge and people: the first score of accepted and rejected images, and how well each score tells them apart."""
    kinds = [kind for kind in kinds if kind.labelled and kind.by]
    if not kinds:
        return _nothing("No image has a label (accept, reject) yet: nothing to compare the judge with.")
    heights = [max(3.2, 0.26 * len(kind.scores) + 1) for kind in kinds]
    figure = Figure(figsize=(10, sum(heights) + 0.2), layout="constrained")
    rows = figure.subplots(len(kinds), 2, squeeze=False, height_ratios=heights)
    for left, right, kind in ((*row, k) for row, k in zip(rows, kinds, strict=True)):
        score = kind.scores[kind.by]
        for label, colour in (("accept", GREEN), ("reject", RED)):
            edges, counts = _coarse(score, score.group(label))
            left.stairs(counts, edges, fill=True, color=colour, alpha=0.55, label=f"{label} ({counts.sum():,})")
        left.legend(frameon=False)
        left.set_xlabel(score.name)
        left.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4, integer=True))
        same = kind.agreement[0, 1] + kind.agreement[1, 0]
        left.set_title(f"{name_of(kind.name).capitalize()}, by what people said")
        names = list(kind.scores)
        values = [kind.scores[name].auc for name in names]
        right.barh(range(len(names)), np.nan_to_num(values), color=colour_of(kind.name), height=0.6)
        for y, value in enumerate(values):
            told = " one label only" if math.isnan(value) else f" {value:.2f}"
            right.text(0 if math.isnan(value) else value, y, told, va="center")
        right.axvline(0.5, color=INK, linewidth=1, linestyle="--")
        right.set_yticks(range(len(names)), names)
        right.invert_yaxis()
        right.set_xlim(0, 1.12)
        right.set_xlabel("area under the ROC curve (0.5: by chance)")
        kappa = "" if math.isnan(kind.kappa) else f", kappa {kind.kappa:.2f}"
        right.set_title(f"Thresholds = labels for {same:,} of {kind.labelled:,}{kappa}")
    return figure


def job_times(stages: list[StageTimes]) -> Figure:
    """Seconds and images/s of every job, by the shard's place in the plan."""
    stages = [stage for stage in stages if stage.shards]
    if not stages:
        return _nothing("No job has left a record of its time.")
    figure = Figure(figsize=(10, 2.3 * len(stages) + 0.3), layout="constrained")
    for (left, right), stage in zip(figure.subplots(len(stages), 2, squeeze=False), stages, strict=True):
        colour = colour_of(stage.name.rpartition("/")[2])
        for axes, points in ((left, list(zip(stage.shards, stage.seconds, strict=True))), (right, stage.rates)):
            x, y = zip(*points, strict=True) if points else ((), ())
            axes.plot(x, y, "o", markersize=5, color=colour, alpha=0.6, markeredgewidth=0, rasterized=len(x) > _MANY)
            if points:
                axes.axhline(float(np.median(y)), color=INK, linewidth=1, linestyle="--")
            axes.set_ylim(0, max(y, default=1) * 1.12 or 1)
            axes.set_xlim(0.5, max(*stage.shards, 2) + 0.5)
            axes.grid(axis="y", color="#e4e8ec")
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(8, integer=True))
        left.set_title(f"{stage.name}: {len(stage.seconds):,} jobs, {sum(stage.seconds) / 60:.1f} min in all")
        left.set_ylabel("seconds")
        right.set_ylabel("images/s")
        right.set_title(f"{stage.rate:.2f} images/s" if stage.rates else "nothing made")
    for axes in (left, right):
        axes.set_xlabel("shard")
    return figure


def failure_reasons(kinds: list[KindReport], most: int = 12) -> Figure:
    """How often each reason kept a row out, an image from being made, or a score from being had."""
    reasons = [(number, kind.name, reason) for kind in kinds for reason, number in kind.failures.items()]
    reasons.sort(key=lambda entry: (-entry[0], entry[1:]))
    if not reasons:
        return _nothing("Nothing failed: every row was used, every image made, every score had.")
    shown, rest = reasons[:most], reasons[most:]
    figure = Figure(figsize=(10, 0.62 * len(shown) + 1.0), layout="constrained")
    axes = figure.subplots()
    for y, (number, kind, _) in enumerate(shown):
        axes.barh(y, number, color=colour_of(kind), height=0.62)
        axes.text(number, y, f" {number:,}", va="center")
    named = [textwrap.fill(f"{name_of(kind)}: {reason}", 56) for _, kind, reason in shown]
    axes.set_yticks(range(len(shown)), named, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, shown[0][0] * 1.12)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
    more = f", and {len(rest):,} more for {sum(number for number, *_ in rest):,}" if rest else ""
    axes.set_title(f"{sum(number for number, *_ in reasons):,} failures by reason{more}")
    return figure


def example_sheet(kind: KindReport, file_of: Callable[[str], Path]) -> Figure:
    """The best and the worst images by the first score; for edits the source beside the result.

    file_of: shard -> its file of images.
    """
    parts = [(f"best by {kind.by}", kind.best), (f"worst by {kind.by}", kind.worst)]
    return _sheet(parts, file_of, f"No {name_of(kind.name)} with a score to show.")


def disagreement_sheet(kind: KindReport, file_of: Callable[[str], Path]) -> Figure:
    """The images that the scores that agree least rank most apart, and those that the first score and labels do; file_of: as above."""
    parts: list[tuple[str, list[Example]]] = []
    for pair in kind.disagreements:
        titles = [
            f"higher by {one} than by {other}" for one, other in ((pair.first, pair.second), (pair.second, pair.first))
        ]
        if pair.second == LABEL:
            titles = [
                f"rejected by people, the highest by {pair.first} first",
                f"accepted by people, the lowest by {pair.first} first",
            ]
        parts += zip(titles, (pair.above, pair.below), strict=True)
    return _sheet(parts, file_of, f"Nowhere do scores of {name_of(kind.name)} disagree.")


def _sheet(parts: list[tuple[str, list[Example]]], file_of: Callable[[str], Path], nothing: str) -> Figure:
    """Images under titles, each with what is told of it and its prompt; nothing: what is said where there are none."""
    parts = [(title, found) for title, found in parts if found]
    if not parts:
        return _nothing(nothing)
    pictures, pairs = _pictures(file_of, [entry for _, found in parts for entry in found])
    across = 4
    downs = [math.ceil(len(found) / across) for _, found in parts]
    wide, high = 2.6, (1.6 if pairs else 2.6) + 0.62
    figure = Figure(figsize=(wide * across, high * sum(downs) + 0.45 * len(parts)))
    figure.subplots_adjust(0, 0, 1, 1)
    total = figure.get_size_inches()[1]
    top = total
    for (title, found), down in zip(parts, downs, strict=True):
        figure.text(0.005, (top - 0.3) / total, title, fontsize=13, weight="bold")
        top -= 0.45
        for place, entry in enumerate(found):
            left, below = wide * (place % across), top - high * (place // across + 1)
            box = (
                (left + 0.08) / (wide * across),
                (below + 0.6) / total,
                (wide - 0.16) / (wide * across),
                (high - 0.62) / total,
            )
            axes = figure.add_axes(box)
            axes.imshow(
                pictures[entry.key], interpolation="nearest" if max(pictures[entry.key].size) < _CELL else "antialiased"
            )
            axes.set_axis_off()
            text = textwrap.wrap(_printable(entry.prompt), 32) or [""]
            told = text[0] if len(text) == 1 else f"{text[0]}\n{text[1]}{'…' if len(text) > 2 else ''}"
            if entry.before is not None:
                told += f"\nafter the edit {textwrap.shorten(_printable(entry.before), 24)}"
            corner = (left + wide / 2) / (wide * across), (below + 0.55) / total
            gap = "   " if len(entry.told) < 8 else "\n"
            figure.text(*corner, f"{entry.told}{gap}{told}", fontsize=8, ha="center", va="top", linespacing=1.25)
        top -= high * down
    return figure


def _printable(text: str) -> str:
    """Text without what XML forbids."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _pictures(file_of: Callable[[str], Path], entries: list[Example]) -> tuple[dict[str, Image.Image], bool]:
    """key -> the image, of at most `_CELL` pixels a side, beside its source where it has one; and whether one has."""
    found: dict[str, Image.Image] = {}
    pairs = False
    for shard in {entry.shard for entry in entries}:
        wanted = {entry.key for entry in entries if entry.shard == shard}
        reader = RecordReader(file_of(shard))
        for place, record in enumerate(iter_records(file_of(shard), ["key"])):
            if record["key"] in wanted and record["key"] not in found:
                full = reader[place]
                parts = filter(None, (full.get("source"), full["image"]))
                images = [open_picture(part["bytes"], part["path"] or shard).image for part in parts]
                for image in images:
                    image.thumbnail((_CELL, _CELL))
                found[record["key"]] = _side_by_side(images)
                pairs = pairs or len(images) > 1
    return found, pairs


def _side_by_side(images: list[Image.Image]) -> Image.Image:
    if len(images) == 1:
        return images[0]
    gap = max(1, images[0].width // 48)
    size = sum(image.width for image in images) + gap * (len(images) - 1), max(image.height for image in images)
    sheet, left = Image.new("RGB", size, INK), 0
    for image in images:
        sheet.paste(image, (left, (size[1] - image.height) // 2))
        left += image.width + gap
    return sheet


def _mean(score: Score) -> str:
    return f"{score.mean:.2f}" if abs(score.mean) < 100 else f"{score.mean:,.0f}"


def _coarse(score: Score, counts: np.ndarray, most: int = 25) -> tuple[np.ndarray, np.ndarray]:
    """Edges and counts of a histogram that an eye can read: of the score's bins, or every four of them as one."""
    if score.whole:
        return score.edges, counts
    step = len(counts) // most
    return score.edges[::step], counts.reshape(-1, step).sum(1)


def _grid(number: int, wide: float = 3.4) -> tuple[Figure, list[Any]]:
    """A figure with so many axes in lines, more in a line where there are many; wide: inches of each in a line of three."""
    across = min(number, 3 if number <= 9 else 4 if number <= 16 else 5)
    down = math.ceil(number / across)
    figure = Figure(figsize=(wide * min(across, 4) + 0.4, 2.7 * down + 0.4), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).ravel())
    for one in axes[number:]:
        one.set_visible(False)
    return figure, axes


def _nothing(text: str) -> Figure:
    figure = Figure(figsize=(7, 1.2))
    figure.text(0.5, 0.5, text, ha="center", va="center", color="#5b6670")
    return figure


@dataclass
class RecipePage:
    """A page that says how the set was made: name -> value tables, and the questions of each kind."""

    tables: dict[str, dict[str, Any]]
    questions: dict[str, list[Asked]]

    def write(self, path: Path) -> None:
        out = io.StringIO()
        out.write(
            f"<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>Recipe</title><style>{PAGE_CSS}</style>"
        )
        for name, table in self.tables.items():
            out.write(f"<h2>{html.escape(name)}</h2><table>")
            for key, value in table.items():
                told = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
                told = "-" if value is None else told
                out.write(f"<tr><th>{html.escape(key)}</th><td>{html.escape(told)}</td></tr>")
            out.write("</table>")
        for kind, questions in self.questions.items():
            out.write(f"<h2>asked of {name_of(kind)}</h2><table>")
            for question in questions:
                scores = ", ".join(question.numbers)
                out.write(f"<tr><th>{html.escape(question.name)}<small>{html.escape(scores)}</small></th>")
                out.write(f"<td>{html.escape(question.label)}</td></tr>")
            out.write("</table>")
        out.write("</html>\n")
        path.write_text(out.getvalue(), encoding="utf-8")


PAGE_CSS = (
    f"body{{font:15px/1.5 system-ui,sans-serif;color:{INK};background:#fff;margin:24px auto;max-width:900px;padding:0 16px}}"
    f"h2{{font-size:17px;margin:28px 0 6px;color:{BLUE}}}table{{border-collapse:collapse;width:100%}}"
    "th,td{text-align:left;vertical-align:top;padding:5px 10px;border-bottom:1px solid #e4e8ec;overflow-wrap:anywhere}"
    "th{width:14em;font-weight:600}small{display:block;font-weight:400;color:#5b6670}"
)
