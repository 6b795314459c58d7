"""What can be measured of a picture alone: sharpness, exposure, and how much of it is flat, black, white or border."""

from typing import TYPE_CHECKING, Any

from darkroom.config.metrics import Quality
from darkroom.metrics.base import Metric, ScoreColumn, Subject
from darkroom.plan.recipe import Recipe

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image

# Levels are of 255.
_DARK, _BRIGHT = 5, 250  # a pixel is black where no channel is above the one, white where none is below the other
_BLOCK = 8  # pixels; a block is flat where its luma differs by less than _FLAT, as a standard deviation
_FLAT = 1.0
_BORDER = 8  # how far the pixels of a border may be from its colour, in any channel: JPEG makes no plain areas
_BORDER_SHARE = 0.99  # how many of a line's pixels must be so near
_LEAST = 16  # pixels of the shorter side: below, nothing is measured

COLUMNS = {
    "sharpness": "1 - the blur effect of Crete et al.; 0 where there is nothing to be sharp",
    "luma": "Mean luma, 0 black, 1 white",
    "contrast": "Standard deviation of luma, times 2",
    "clipped_dark": "Share of pixels with a channel at 0",
    "clipped_bright": "Share of pixels with a channel at 255",
    "black_share": "Share of black pixels",
    "white_share": "Share of white pixels",
    "flat_share": "Share of blocks of 8 x 8 pixels without structure",
    "border_share": "Share that lines of one colour at the sides take",
}


class QualityMetric(Metric):
    """Numbers of a picture's pixels, each 0..1.

    All but the shares of clipped, black and white pixels are measured on the picture reduced to a longer side of `side` pixels, so that they
    do not depend on its size.

    - `sharpness`: 1 - the blur effect (Crete, Dolmiere, Ladret, Nicolas: The blur effect: perception and estimation with a new
      no-reference perceptual blur metric, SPIE 6492, 2007), as scikit-image has it: how much neighbouring pixels still differ after another
      blur.
    - `luma`: mean of Y' = 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601). `contrast`: its root mean square contrast (Peli: Contrast in complex
      images, JOSA A 7, 1990), doubled, so that half black, half white is 1.
    - `clipped_dark`, `clipped_bright`: any channel at 0, or at 255, as the clipping warnings of photo editors have it.
    - `black_share`, `white_share`: no channel above 5, or below 250.
    - `flat_share`: blocks whose luma has a standard deviation below 1 of 255.
    - `border_share`: rows and columns from the sides inwards that have one colour; bars of a film, and margins.
    """

    name = "quality"
    packages = ("scikit-image", "numpy", "pillow")

    def __init__(self, section: Quality):
        self.side = section.side

    def columns(self, kind: str) -> list[ScoreColumn]:
        def column(name: str, label: str) -> ScoreColumn:
            return ScoreColumn(name, "float", self.name, "score", "pixels", label, 0, 1, True)

        error = ScoreColumn(
            "pixels_error", "text", self.name, "error", "pixels", "What is measured of a picture's pixels"
        )
        return [*(column(name, label) for name, label in COLUMNS.items()), error]

    def recipe(self, kind: str) -> Recipe:
        return {"metric": self.name, "version": self.version, "side": self.side}

    def open(self, kind: str) -> "QualityMetric":
        return self

    def score(self, subjects: list[Subject]) -> list[dict[str, Any]]:
        return [self._of(subject.images[-1]) for subject in subjects]

    def _of(self, picture: "Image") -> dict[str, Any]:
        if min(picture.size) < _LEAST:
            size = f"{picture.width} x {picture.height}"
            return {"pixels_error": f"the picture is too small to be measured: {size} pixels, and {_LEAST} are needed"}
        found = shares(picture) | structure(picture, self.side)
        return {name: round(min(max(found[name], 0.0), 1.0), 6) for name in COLUMNS}


def shares(picture: "Image") -> dict[str, float]:
    """The shares of clipped, black and white pixels."""
    import numpy as np

    red, green, blue = (np.asarray(channel) for channel in picture.split())
    least, most = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    found = {"clipped_dark": least == 0, "clipped_bright": most == 255, "black_share": most <= _DARK}
    return {name: float(where.mean()) for name, where in (found | {"white_share": least >= _BRIGHT}).items()}


def structure(picture: "Image", side: int) -> dict[str, float]:
    """What is measured of the picture reduced to a longer side of `side` pixels."""
    import numpy as np
    from PIL.Image import Resampling
    from skimage.measure import blur_effect

    if max(picture.size) > side:
        scale = side / max(picture.size)
        # This filter leaves no rings beside an edge, which would make a border uneven.
        picture = picture.resize([max(_LEAST, round(length * scale)) for length in picture.size], Resampling.BILINEAR)
    luma = np.asarray(picture.convert("L"), np.float32)
    height, width = (length // _BLOCK for length in luma.shape)
    blocks = luma[: height * _BLOCK, : width * _BLOCK].reshape(height, _BLOCK, width, _BLOCK)
    plain = luma.min() == luma.max()  # no edge, whose blur could be told
    return {
        "sharpness": 0.0 if plain else 1 - float(blur_effect(luma / 255)),
        "luma": float(luma.mean()) / 255,
        "contrast": 2 * float(luma.std()) / 255,
        "flat_share": float((blocks.std(axis=(1, 3)) < _FLAT).mean()),
        "border_share": border(np.asarray(picture, np.int16)),
    }


def border(pixels: "ndarray") -> float:
    """The share of the area that rows and columns of one colour take, from each side inwards."""
    area = pixels.shape[0] * pixels.shape[1]
    for _ in range(2):  # rows, then what is left of the columns
        first = _uniform_lines(pixels)
        if first == len(pixels):
            return 1.0
        pixels = pixels[first : len(pixels) - _uniform_lines(pixels[::-1])].swapaxes(0, 1)
    return 1 - pixels.shape[0] * pixels.shape[1] / area


def _uniform_lines(pixels: "ndarray") -> int:
    """How many lines from the first on have the colour that most of the first has."""
    import numpy as np

    colour = np.median(pixels[0], axis=0)
    for number, line in enumerate(pixels):
        if (np.abs(line - colour) <= _BORDER).all(axis=1).mean() < _BORDER_SHARE:
            return number
    return len(pixels)
