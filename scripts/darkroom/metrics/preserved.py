"""How much of a picture an edit changed, and how like the rest stayed."""

import json
from typing import TYPE_CHECKING, Any

from darkroom.config.metrics import Preserved
from darkroom.metrics.base import Metric, ScoreColumn, Subject
from darkroom.plan.recipe import Recipe
from darkroom.plan.stages import EDITED, like

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image

# Lengths are parts of the longer side, and at least so many pixels.
_SMOOTHED = (
    0.012,
    1.0,
)  # standard deviation of the blur under which colours are compared: noise is no change of an object
_THIN = (
    0.015,
    1.0,
)  # what is nowhere thicker than twice this is no change: the edge of something that was blurred, or lies a pixel further
_STRONG = 2.5  # unless its colour is off by more than so many times the threshold, as an edge is not that was blurred
_GAP = 0.02, 2.0  # gaps in the changed area up to twice this belong to it
_MARGIN = 0.015, 6.0  # around the changed area, where the window of SSIM would see it
_SIGMA = 1.5  # of SSIM's window, in pixels, as Wang et al. have it
_COLOUR = 0.002  # weight of the squared difference of colour, as in the CID of Lissner et al.
_LEAST_REST = 0.01  # where less than this share of the picture is left, nothing was preserved


class PreservedMetric(Metric):
    """`changed`, the share of the area that differs from the source, and `preserved`, how like the rest of it stayed, 0..1.

    Both pictures are reduced to `side` first. A pixel is changed where its colour differs from that of the source by more than `threshold`
    (CIE 1976 colour difference of slightly blurred pictures; 100 lies between black and white), if the area of such pixels is thick or differs
    much; gaps in it are closed (morphological opening and closing).
    Elsewhere `preserved` is the mean of SSIM (Wang, Bovik, Sheikh, Simoncelli: Image quality assessment, IEEE TIP 13, 2004) over the
    colour channels, times 1 / (1 + 0.002 d²), d the difference of colour: SSIM hardly sees a tint. The factor is that of the CID
    (Lissner, Preiss, Urban, Lichtenauer, Zolliker: Image-difference prediction, IEEE TIP 22, 2013).
    """

    name = "preserved"
    packages = ("scikit-image", "scipy", "numpy", "pillow")

    def __init__(self, section: Preserved):
        self.side, self.threshold = section.side, section.threshold

    def columns(self, kind: str) -> list[ScoreColumn]:
        if like(kind) != EDITED.name:
            return []
        label = "How much of the source was changed, and how like the rest stayed"

        def column(name: str) -> ScoreColumn:
            return ScoreColumn(name, "float", self.name, "score", self.name, label, 0, 1, True)

        error = ScoreColumn("preserved_error", "text", self.name, "error", self.name, label)
        return [column("changed"), column("preserved"), error]

    def recipe(self, kind: str) -> Recipe:
        return {"metric": self.name, "version": self.version, "side": self.side, "threshold": float(self.threshold)}

    def open(self, kind: str) -> "PreservedMetric":
        return self

    def score(self, subjects: list[Subject]) -> list[dict[str, Any]]:
        return [self._of(subject) for subject in subjects]

    def _of(self, subject: Subject) -> dict[str, Any]:
        from darkroom.store.images import of_sheet

        source, result = subject.images
        if parts := subject.record.get(
            "source_parts"
        ):  # the first of several sources is the one that the others are brought into
            source = of_sheet(source, [(part["width"], part["height"]) for part in json.loads(parts)[:1]])[0]
        changed, preserved = compare(*_same_size(source, result, self.side), self.threshold)
        return {"changed": round(changed, 6), "preserved": round(preserved, 6)}


def _same_size(source: "Image", result: "Image", side: int) -> "tuple[ndarray, ndarray]":
    """Both pictures, 0..1, in the size of the result, or smaller, with a longer side of `side` pixels."""
    import numpy as np
    from PIL.Image import Resampling

    scale = min(1, side / max(result.size))
    width, height = (max(1, round(length * scale)) for length in result.size)

    def sized(picture: "Image") -> "ndarray":
        same = picture if picture.size == (width, height) else picture.resize((width, height), Resampling.LANCZOS)
        return np.asarray(same, np.float32) / 255

    return sized(source), sized(result)


def compare(source: "ndarray", result: "ndarray", threshold: float) -> tuple[float, float]:
    """(changed, preserved) of two pictures of the same size, RGB, 0..1; see `PreservedMetric`."""
    import numpy as np
    from scipy.ndimage import gaussian_filter, label
    from skimage.color import rgb2lab

    longer = max(source.shape[:2])

    def length(share: float, least: float) -> float:
        return max(share * longer, least)

    smoothed = (length(*_SMOOTHED), length(*_SMOOTHED), 0)
    lab = [gaussian_filter(rgb2lab(picture).astype(np.float32), smoothed) for picture in (source, result)]
    difference = np.sqrt(((lab[0] - lab[1]) ** 2).sum(axis=2))
    thin, gap = length(*_THIN), length(*_GAP)
    differs, _ = label(difference > threshold)
    sure = ~_within(differs == 0, thin) | (difference > _STRONG * threshold)
    changed = np.isin(differs, np.unique(differs[sure]))
    changed = ~_within(~_within(changed, gap), gap)
    rest = ~_within(changed, length(*_MARGIN))
    if rest.mean() < _LEAST_REST:
        return float(changed.mean()), 0.0
    like_it = _structure(source, result) / (1 + _COLOUR * difference**2)
    return float(changed.mean()), float(like_it[rest].mean())


def _within(area: "ndarray", distance: float) -> "ndarray":
    """The pixels that are no further than so many pixels from an area: its dilation; that of none is none."""
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(~area) <= distance if area.any() else area


def _structure(one: "ndarray", other: "ndarray") -> "ndarray":
    """SSIM at each pixel, the mean of the channels; 0 where one is the other's negative."""
    from scipy.ndimage import gaussian_filter

    sigma, first, second = (_SIGMA, _SIGMA, 0), 0.01**2, 0.03**2
    mean, mean_other = gaussian_filter(one, sigma), gaussian_filter(other, sigma)
    products = mean * mean_other
    squares = mean**2 + mean_other**2
    variances = gaussian_filter(one**2 + other**2, sigma) - squares
    covariance = gaussian_filter(one * other, sigma) - products
    similar = (2 * products + first) * (2 * covariance + second) / ((squares + first) * (variances + second))
    return similar.mean(axis=2).clip(0, 1)
