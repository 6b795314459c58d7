"""Images from outside: decoded right, or refused with the reason."""

import io
import os
import struct
import threading
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from darkroom.errors import RowError
from darkroom.exports.provenance import as_png
from darkroom.store import images
from darkroom.store.images import MAX_PIXELS, encode, encode_png, open_picture, read_file, suffix
from darkroom.views.gallery import reduced
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def two_pixels(left=RED, right=BLUE, size=16):
    picture = Image.new("RGB", (2 * size, size), left)
    picture.paste(right, (size, 0, 2 * size, size))
    return picture


def saved(picture, kind, **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def png(width, height, depth, colour, rows, *chunks):
    """A PNG file by hand, for what Pillow does not write."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", rows if isinstance(rows, bytes) else zlib.compress(b"".join(b"\0" + row for row in rows)))]
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in [*parts, (b"IEND", b"")]:
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data


def ends(data):
    """The colours at the left and at the right of a picture."""
    picture = open_picture(data, "p").image
    assert picture.mode == "RGB"
    middle = picture.height // 2
    return picture.getpixel((2, middle)), picture.getpixel((picture.width - 3, middle))


def near(colours, *expected):
    return bool((abs(np.array(colours, int) - np.array(expected, int)) <= 12).all())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "PPM"])
def test_lossless_formats_keep_every_pixel(kind):
    assert ends(saved(two_pixels(), kind)) == (RED, BLUE)


@pytest.mark.parametrize(
    "options", [{"kind": "JPEG", "quality": 95}, {"kind": "WEBP"}, {"kind": "JPEG", "progressive": True}]
)
def test_lossy_formats_keep_the_colours(options):
    assert near(ends(saved(two_pixels(), **options)), RED, BLUE)


def test_cmyk_jpeg_shows_its_colours():
    assert near(ends(saved(two_pixels().convert("CMYK"), "JPEG", quality=95)), RED, BLUE)


def test_sixteen_bit_grey_is_scaled_to_eight():
    data = png(32, 8, 16, 0, [b"\x80\x00" * 16 + b"\xff\xff" * 16] * 8)
    assert ends(data) == ((127, 127, 127), WHITE) or ends(data) == ((128, 128, 128), WHITE)
    values = np.array([[0, 257, 1000, 32767, 65535] * 2], "<u2")
    tiff = saved(Image.fromarray(values), "TIFF")
    assert abs(np.array(open_picture(tiff, "p").image)[0, :5, 0] - values[0, :5] / 257).max() <= 1


def test_sixteen_bit_colour_is_scaled_to_eight():
    assert ends(png(32, 8, 16, 2, [b"\xff\xff\0\0\0\0" * 16 + b"\0\0\0\0\xff\xff" * 16] * 8)) == (RED, BLUE)


def test_grey_and_one_bit_pictures_become_rgb():
    assert ends(saved(two_pixels(WHITE, (0, 0, 0)).convert("1"), "PNG")) == (WHITE, (0, 0, 0))
    assert ends(saved(two_pixels((90, 90, 90), WHITE).convert("L"), "PNG")) == ((90, 90, 90), WHITE)


def test_transparency_is_laid_on_white():
    clear = two_pixels().convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 16, 16))
    palette = Image.new("P", (32, 16), 1)
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.paste(0, (0, 0, 16, 16))
    for data in (
        saved(clear, "PNG"),
        saved(clear, "WEBP", lossless=True),
        saved(palette, "PNG", transparency=0),
        saved(palette, "GIF", transparency=0),
        saved(two_pixels(), "PNG", transparency=RED),
    ):
        picture = open_picture(data, "p")
        assert ends(data) == (WHITE, BLUE)
        # What is stored shows what was judged: no transparency is left in it.
        stored = Image.open(io.BytesIO(picture.data))
        assert stored.mode == "RGB" and not stored.has_transparency_data
        assert stored.tobytes() == picture.image.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation):
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = two_pixels()
    stored = upright.transpose(turns[orientation]) if orientation in turns else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "TIFF", "JPEG"):
        data = saved(stored, kind, exif=exif) if kind != "JPEG" else saved(stored, kind, exif=exif, quality=95)
        picture = open_picture(data, "p")
        assert picture.image.size == upright.size and near(ends(data), RED, BLUE)
        # Whoever reads what is stored without a look at EXIF sees it upright, too.
        assert Image.open(io.BytesIO(picture.data)).size == upright.size


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff"]
)
def test_broken_exif_does_not_cost_the_picture(exif):
    assert near(ends(saved(two_pixels(), "JPEG", quality=95, exif=exif)), RED, BLUE)


def test_a_phones_mpo_is_its_first_picture():
    data = saved(two_pixels(), "MPO", save_all=True, append_images=[two_pixels(BLUE, RED)], quality=95)
    assert near(ends(data), RED, BLUE)


def test_pictures_with_whole_workflows_in_their_text_are_read():
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    info.add_itxt("parameters", "y" * 3_000_000, zip=True)
    info.add_text("plain", "z" * 3_000_000)
    assert ends(saved(two_pixels(), "PNG", pnginfo=info)) == (RED, BLUE)


def refused(data):
    with pytest.raises(RowError) as error:
        open_picture(data, "folder/p.png")
    message = str(error.value)
    assert message.startswith("image folder/p.png: ") and "\n" not in message and "0x" not in message
    return message


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_several_frames_are_refused(kind):
    assert "animated (2 frames)" in refused(saved(two_pixels(), kind, save_all=True, append_images=[two_pixels(BLUE)]))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM"])
def test_a_truncated_picture_is_refused_wherever_it_ends(kind):
    noise = Image.frombytes("RGB", (40, 40), bytes(np.random.default_rng(0).integers(0, 256, 4800, dtype="uint8")))
    data = saved(noise, kind)
    for share in (0.1, 0.3, 0.5, 0.8):
        assert "cannot be read as an image" in refused(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 1000,
        b"this is text\n" * 50,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_what_is_no_picture_is_refused(data):
    assert "cannot be read as an image" in refused(data)


def test_postscript_is_never_run():
    assert "cannot be read" in refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")


def test_pixels_of_more_than_sixteen_bits_are_refused():
    assert "32-bit" in refused(saved(Image.new("F", (4, 4), 0.5), "TIFF"))
    assert "32-bit" in refused(saved(Image.new("I", (4, 4), 2**20), "TIFF"))


def test_a_decompression_bomb_is_refused_before_it_takes_memory():
    bomb = png(30_000, 30_000, 8, 2, zlib.compress(bytes(10**6), 9))
    long_text = (b"zTXt", b"k\0\0" + zlib.compress(bytes(100 * 2**20), 9))
    tracemalloc.start()
    try:
        assert "decompression bomb" in refused(bomb) or "pixels; at most" in refused(bomb)
        assert "a text in it is longer than" in refused(png(1, 1, 8, 2, [b"abc"], long_text))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 * 2**20


def test_a_picture_may_have_so_many_pixels_and_no_more_whatever_other_threads_do_with_warnings(monkeypatch):
    def touched(*arguments, **options):
        raise AssertionError("the filters of warnings are of all threads")

    warnings.filterwarnings(
        "ignore", category=Image.DecompressionBombWarning
    )  # as the library has it, outside of pytest
    good = saved(two_pixels(), "PNG")
    monkeypatch.setattr(warnings, "catch_warnings", touched)
    assert open_picture(good, "x").data == good
    assert f"exceeds limit of {MAX_PIXELS} pixels" in refused(png(MAX_PIXELS // 10_000 + 1, 10_000, 8, 2, [b""]))
    with Image.open(io.BytesIO(png(MAX_PIXELS // 10_000, 10_000, 8, 2, [b""])), formats=images.FORMATS) as opened:
        assert opened.width * opened.height == MAX_PIXELS  # and no decoder refuses it


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"]), st.data())
def test_a_damaged_file_is_a_picture_or_a_reason(kind, data):
    good = bytearray(saved(two_pixels(), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert open_picture(bytes(good), "p").image.mode == "RGB"
    except RowError as error:
        assert "\n" not in str(error)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(width=st.integers(1, 20), height=st.integers(1, 20), seed=st.integers(0, 999))
def test_png_keeps_every_pixel_and_equal_pixels_are_equal_bytes(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype="uint8")
    picture = Image.fromarray(pixels)
    data = encode_png(picture)
    picture.info["comment"] = "of no matter"
    assert encode_png(picture.copy()) == data
    opened = open_picture(data, "p")
    assert (np.array(opened.image) == pixels).all() and opened.data == data


def test_each_format_is_what_it_says_and_equal_pixels_are_equal_bytes():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype="uint8")
    picture = Image.fromarray(pixels)
    found = {}
    for format in ({"png": 0}, {"png": 9}, "webp-lossless", {"jpeg": 60}, {"jpeg": 95}):
        data = found[str(format)] = encode(picture, format)
        picture.info["comment"] = "of no matter"
        assert encode(picture.copy(), format) == data
        with Image.open(io.BytesIO(data)) as opened:
            assert suffix(format) in (f".{opened.format.lower()}", {"JPEG": ".jpg"}.get(opened.format))
            error = np.abs(np.array(opened, np.int16) - pixels).max()
        assert (error > 0) == (suffix(format) == ".jpg")
        shown = np.array(open_picture(data, "p").image)
        assert np.abs(shown.astype(np.int16) - pixels).max() == error
        exported = as_png(data, "p")  # what other views of it hold: a PNG file, a small file as it is
        assert exported.startswith(b"\x89PNG") and (np.array(open_picture(exported, "p").image) == shown).all()
        assert reduced(data, 256, None, "p") == ((60, 40), data, None)
    assert len(set(found.values())) == 5 and len(found["{'jpeg': 60}"]) < len(found["{'jpeg': 95}"])
    assert encode(picture, None) == encode(picture, {"png": 6}) == encode_png(picture) and suffix(None) == ".png"


def test_stored_data_and_hash_are_of_what_was_read():
    plain, odd = saved(two_pixels(), "PNG"), saved(two_pixels().convert("P"), "PNG")
    assert open_picture(plain, "p").data == plain
    assert open_picture(odd, "p").data == encode_png(two_pixels())
    assert open_picture(plain, "p").sha256 != open_picture(odd, "p").sha256


def no_file(path):
    with pytest.raises(RowError) as error:
        read_file(str(path))
    assert str(error.value).startswith(f"image {path}: ") and "\n" not in str(error.value)
    return str(error.value).removeprefix(f"image {path}: ")


def test_only_regular_files_are_read(tmp_path, monkeypatch):
    (tmp_path / "p").write_bytes(b"12345")
    assert read_file(str(tmp_path / "p")) == b"12345"
    assert no_file(tmp_path) == "not a file"
    assert no_file(tmp_path / "gone.png") == "No such file or directory"
    assert no_file(tmp_path / ("n" * 300)) == "File name too long"
    assert no_file(tmp_path / "p" / "q") == "Not a directory"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "symbolic links" in no_file(tmp_path / "loop")
    assert no_file("/dev/zero") == "not a file"
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 4)
    assert no_file(tmp_path / "p") == "5 bytes; at most 4"


def test_a_message_can_leave_out_where_the_rows_lie(tmp_path):
    with pytest.raises(RowError, match=r"^image p\.png: No such file or directory$"):
        read_file(str(tmp_path / "p.png"), "p.png")


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "p.png")
    found = []
    reader = threading.Thread(target=lambda: found.append(no_file(tmp_path / "p.png")), daemon=True)
    reader.start()
    reader.join(10)
    assert found == ["not a file"]


def test_no_file_stays_open(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        no_file(tmp_path)
        no_file("/dev/zero")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
