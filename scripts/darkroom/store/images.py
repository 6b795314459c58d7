"""Open images that come from outside, with limits, and write those that were made."""

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from PIL import Image, ImageOps, PngImagePlugin

from darkroom.errors import RowError
from darkroom.rows.formats import MAX_FILE_BYTES

ImageFormat = str | dict[str, int]  # as the config has it (`image_format`)
MAX_PIXELS = 100_000_000
# Pillow refuses what is larger than twice this, and warns of what is larger than this. The warning is not made an error for each
# picture that is opened: the filters of warnings are of all threads, and several open pictures at once.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM")
PNG_LEVEL = 6  # zlib's level; part of what makes equal pixels equal bytes
# Other programs write whole workflows into a picture, more than the megabyte that Pillow takes.
MAX_TEXT_BYTES = 8 * 2**20
PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT_BYTES, 8 * MAX_TEXT_BYTES


@dataclass
class Picture:
    """A decoded image: `image` in mode RGB, upright; `sha256` of the content it came from; `data` to store."""

    image: Image.Image
    sha256: str
    data: bytes


def read_file(path: str, name: str | None = None) -> bytes:
    """The bytes of an image file. Raises RowError for what is missing, no regular file, or too large.

    name: for the message, where it is kept in a file that must not depend on where the rows lie.
    """
    name = name or path
    try:
        # A plain open() of a FIFO would wait for ever, so look before opening, and open without waiting.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        raise RowError(f"image {name}: {getattr(error, 'strerror', None) or error}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RowError(f"image {name}: not a file")
        if status.st_size > MAX_FILE_BYTES:
            raise RowError(f"image {name}: {status.st_size} bytes; at most {MAX_FILE_BYTES}")
        with open(descriptor, "rb", closefd=False) as stream:
            return stream.read(MAX_FILE_BYTES)
    except OSError as error:
        raise RowError(f"image {name}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def open_picture(data: bytes, name: str) -> Picture:
    """Decode image bytes to upright RGB; transparency is laid on white, 16-bit grey is scaled to 8.

    name: for the message. Raises RowError for anything that is no single, whole image of sane size.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            # An MPO is a camera's JPEG: the picture first, then a preview or a depth map of it.
            frames = getattr(opened, "n_frames", 1)
            if opened.format != "MPO" and frames > 1:
                raise RowError(f"image {name}: animated ({frames} frames); give a single image")
            plain = opened.format in ("PNG", "JPEG") and opened.mode == "RGB" and not opened.has_transparency_data
            upright = opened.getexif().get(0x0112, 1) == 1
            opened.load()
            image = _to_rgb(opened if upright else ImageOps.exif_transpose(opened))
    except RowError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds; a bad image must never stop a shard
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "MAX_TEXT" in reason:
            reason = f"a text in it is longer than {MAX_TEXT_BYTES} bytes; take its metadata out"
        raise RowError(f"image {name}: cannot be read as an image: {reason.split(' <_io')[0]}") from error
    return Picture(image, hashlib.sha256(data).hexdigest(), data if plain and upright else encode_png(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and cast(tuple[int, int], image.getextrema())[1] > 65535):
        raise ValueError("32-bit pixels; give 8 or 16 bits a channel")
    if image.mode.startswith("I;16") or image.mode == "I":
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def encode_png(image: Image.Image) -> bytes:
    """The image as PNG bytes, without text, times or anything else but pixels."""
    return encode(image, None)


def encode(image: Image.Image, format: ImageFormat | None) -> bytes:
    """The image as the bytes of a file, as `image_format` of a recipe says; None: PNG. Nothing but pixels is in it."""
    name, number = _parts(format)
    how: dict[str, dict[str, Any]] = {
        "png": {"compress_level": number},
        "jpeg": {"quality": number, "subsampling": "4:4:4"},
        "webp-lossless": {"lossless": True, "exact": True},
    }
    out = io.BytesIO()
    plain = Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())
    plain.save(out, name.partition("-")[0].upper(), **how[name])
    return out.getvalue()


def suffix(format: ImageFormat | None) -> str:
    """The ending of the name of a file in this format."""
    return {"png": ".png", "jpeg": ".jpg", "webp-lossless": ".webp"}[_parts(format)[0]]


def _parts(format: ImageFormat | None) -> tuple[str, int]:
    """(name, level or quality) of a format."""
    if isinstance(format, dict):
        return next(iter(format.items()))
    return format or "png", PNG_LEVEL


def combined_sha256(hashes: Sequence[str]) -> str | None:
    """What several contents together are known by: of one its own SHA-256, of none None."""
    if len(hashes) < 2:
        return hashes[0] if hashes else None
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def sheet_pixels(sizes: Sequence[tuple[int, int]]) -> int:
    """The pixels of a `sheet` of pictures of these sizes (width, height)."""
    return sum(width for width, _ in sizes) * max((height for _, height in sizes), default=0)


def sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side from the left, each with its own pixels at the top; what they leave below is black."""
    whole = Image.new("RGB", (sum(one.width for one in pictures), max(one.height for one in pictures)))
    left = 0
    for one in pictures:
        whole.paste(one, (left, 0))
        left += one.width
    return whole


def of_sheet(whole: Image.Image, sizes: Iterable[tuple[int, int]]) -> list[Image.Image]:
    """The pictures that a `sheet` was made of, by their sizes (width, height)."""
    found, left = [], 0
    for width, height in sizes:
        found.append(whole.crop((left, 0, left + width, height)))
        left += width
    return found
