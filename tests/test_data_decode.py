"""Decoding: every mode as a person sees it, every damage with its reason."""

from __future__ import annotations

import base64
import io
import math
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, UnidentifiedImageError

from autoft.bundle.standalone import infer, verify
from autoft.errors import UnreadableImage
from autoft.media.image import decode as module
from autoft.media.image.decode import (
    Measured,
    decode,
    full_scale,
    measure,
    normalise,
    other_image,
    preprocess,
    readable_extensions,
)
from autoft.values.handoff import Preprocess

RECIPE = Preprocess(8, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width=64, height=48, seed=0):
    """Smooth enough for JPEG, different in every corner."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height))


def reason(data):
    with pytest.raises(UnreadableImage) as caught:
        decode(data)
    return str(caught.value)


def test_rgb_png_is_exact_and_can_be_written_to():
    pixels = decode(encoded(photo()))
    assert pixels.dtype == np.uint8 and pixels.shape == (48, 64, 3) and pixels.flags.writeable
    np.testing.assert_array_equal(pixels, np.asarray(photo()))


def test_a_path_and_its_bytes_decode_alike_whatever_the_extension(tmp_path):
    path = tmp_path / "png.jpg"
    path.write_bytes(encoded(photo()))
    np.testing.assert_array_equal(decode(path), decode(path.read_bytes()))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(photo(), kind, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)
    assert decode(data).shape[:2] == ((48, 64) if orientation < 5 else (64, 48))


def test_damaged_exif_counts_as_none():
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 9)
    assert decode(data).shape == (48, 64, 3)


def test_transparency_is_composited_over_white():
    clear_red = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (decode(encoded(clear_red)) == 255).all()
    half_black = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert (decode(encoded(half_black)) == 127).all()
    assert (decode(encoded(Image.new("LA", (4, 4), (0, 0)))) == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_palette_with_transparency(kind):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    pixels = decode(encoded(image, kind, transparency=0))
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[1, 1].tolist() == [0, 0, 255]


def test_palette_with_an_alpha_for_each_entry():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 0])
    assert (decode(encoded(image, transparency=bytes([0, 128]))) == 127).all()


@pytest.mark.parametrize(("mode", "key", "value"), [("L", 7, 7), ("RGB", (1, 2, 3), (1, 2, 3)), ("I;16", 700, 700)])
def test_colour_key_transparency(mode, key, value):
    image = Image.new(mode, (4, 4), value)
    assert (decode(encoded(image, transparency=key)) == 255).all()


def test_greyscale_and_one_bit():
    assert (decode(encoded(Image.new("L", (3, 2), 77))) == 77).all()
    assert (decode(encoded(Image.new("1", (3, 2), 1))) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(kind):
    values = np.array([[0, 256, 32768, 65535]], np.uint16)
    assert decode(encoded(Image.fromarray(values), kind))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_big_endian_16_bit_grey_is_scaled():
    data = encoded(Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 257, 65535)), "TIFF")
    assert decode(data)[0, :, 0].tolist() == [1, 255]


@pytest.mark.parametrize("value_range", [None, (0.0, 1.0)])
@pytest.mark.parametrize("greatest", [256, 4095, 65534, 65535])
def test_a_pgm_of_more_than_8_bits_is_scaled_so_that_its_maximum_is_white(greatest, value_range, tmp_path):
    """Whatever the scale of the data set's float images is: it has nothing to do with it."""
    values = [0, greatest // 3, greatest // 2, greatest]
    plain = f"P2 4 1 {greatest} {' '.join(map(str, values))}\n".encode()
    raw = f"P5 4 1 {greatest}\n".encode() + struct.pack(">4H", *values)
    for data in (plain, raw):
        (tmp_path / "deep.pgm").write_bytes(data)
        pixels = decode(data, value_range)
        np.testing.assert_allclose(pixels[0, :, 0], np.array(values) * (255 / greatest), atol=0.51)
        np.testing.assert_array_equal(infer.read(tmp_path / "deep.pgm", value_range), pixels)
        assert measure(io.BytesIO(data)) == Measured(4, 1)


def on_its_own_scale(values):
    """The first row of a TIFF of these values, as in a data set of nothing else."""
    data = encoded(Image.fromarray(values), "TIFF")
    return decode(data, full_scale(*measure(io.BytesIO(data)).values))[0, :, 0].tolist()


@pytest.mark.parametrize(
    ("values", "shown"),
    [([0, 100, 255], [0, 100, 255]), ([0, 32768, 65535], [0, 128, 255]), ([-100, 0, 100], [0, 128, 255])],
)
def test_32_bit_integers(values, shown):
    assert on_its_own_scale(np.array([values], np.int32)) == shown


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 254.6], [0, 100, 255]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([-2.0, 0.0, 2.0], [0, 128, 255]),
        ([float("nan"), 0.0, 1.0], [0, 0, 255]),
        ([0.25, 0.25, 0.25], [64, 64, 64]),
        ([-3.0, -3.0, -3.0], [0, 0, 0]),
    ],
)
def test_float_tiff(values, shown):
    assert on_its_own_scale(np.array([values], np.float32)) == shown


@pytest.mark.parametrize(
    ("low", "high", "scale"),
    [
        (0.0, 0.98, (0.0, 1.0)),
        (0.1, 1.05, (0.1, 1.05)),
        (0.0, 0.0, (0.0, 1.0)),
        (3.0, 250.0, (0.0, 255.0)),
        (0.0, 4095.0, (0.0, 4095.0)),
        (280.0, 320.0, (280.0, 320.0)),
        (0.0, 60000.0, (0.0, 65535.0)),
        (-1.0, 1.0, (-1.0, 1.0)),
        (0.0, 1e6, (0.0, 1e6)),
    ],
)
def test_the_full_scale_of_values(low, high, scale):
    assert full_scale(low, high) == scale


def test_a_float_image_on_the_scale_of_its_data_set():
    data = encoded(
        Image.fromarray(np.array([[-1, 0, 0.5, 1, 2, 9, np.nan, np.inf, -np.inf, -3.4e38]], np.float32)), "TIFF"
    )
    assert decode(data, (0.0, 2.0))[0, :, 0].tolist() == [0, 0, 64, 128, 255, 255, 0, 255, 0, 0]
    assert measure(io.BytesIO(data)) == Measured(10, 1, (-1.0, 9.0), gaps=4)
    assert measure(io.BytesIO(encoded(photo()))) == Measured(64, 48)


def test_a_float_image_without_a_scale_is_refused_as_in_the_bundles_own_script(tmp_path):
    data = encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")
    assert reason(data).endswith("the training images had none, so there is no scale for them")
    (tmp_path / "float.tif").write_bytes(data)
    with pytest.raises(ValueError, match="no 8-bit image"):
        infer.read(tmp_path / "float.tif")


def tiff(values, bands, bits, sample_format):
    """A little-endian TIFF of one strip, for what Pillow cannot write."""
    data, extra = values.tobytes(), struct.pack(f"<{2 * bands}H", *[bits] * bands, *[sample_format] * bands)
    height, width = values.shape[:2]
    where = 8 + 2 + 12 * 10 + 4
    entries = [
        (256, 1, width), (257, 1, height), (258, bands, where), (259, 1, 1), (262, 1, 1),
        (273, 1, where + len(extra)), (277, 1, bands), (278, 1, height), (279, 1, len(data)),
        (339, bands, where + 2 * bands),
    ]  # fmt: skip
    body = b"".join(struct.pack("<HHII", tag, 4 if tag == 279 else 3, count, value) for tag, count, value in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + body + struct.pack("<I", 0) + extra + data


@pytest.mark.parametrize(
    ("kind", "bands", "sample_format", "why"),
    [
        (np.uint16, 13, 1, "a TIFF of 13 bands of 16-bit unsigned values, which Pillow cannot decode"),
        (np.float32, 3, 3, "a TIFF of 3 bands of 32-bit float values, which Pillow cannot decode"),
        (np.int16, 5, 2, "a TIFF of 5 bands of 16-bit signed values, which Pillow cannot decode"),
    ],
)
def test_a_tiff_that_pillow_cannot_decode_is_described(kind, bands, sample_format, why):
    values = np.zeros((4, 4, bands), kind)
    assert reason(tiff(values, bands, values.itemsize * 8, sample_format)) == why
    assert reason(tiff(values, bands, values.itemsize * 8, sample_format)[:60]) == "not an image"


def test_no_file_starts_another_program(postscript, started, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(postscript)
    assert reason(postscript).startswith("not an image")
    with pytest.raises(UnidentifiedImageError):
        infer.read(tmp_path / "photo.jpg")
    assert not started.exists()
    with suppress(OSError, AttributeError), Image.open(tmp_path / "photo.jpg") as image:
        image.load()
    assert started.exists()  # Pillow alone starts it


def test_no_library_prints_a_line_of_its_own(capfd):
    for kind in ("tiff_lzw", "tiff_deflate", "jpeg", "group4"):
        image = photo().convert("1") if kind == "group4" else photo()
        data = bytearray(encoded(image, "TIFF", compression=kind))
        for at in range(8, len(data), 41):
            broken = data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
            with suppress(UnreadableImage):
                decode(bytes(broken))
    reason(tiff(np.zeros((4, 4, 13), np.uint16), 13, 16, 1))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("nothing", [np.nan, np.inf, -np.inf, -3.4e38])
def test_float_tiff_without_a_number(nothing, tmp_path):
    data = encoded(Image.fromarray(np.full((2, 2), nothing, np.float32)), "TIFF")
    assert measure(io.BytesIO(data)) == Measured(2, 2, None, gaps=4)
    assert reason(data) == "no finite pixel values"
    (tmp_path / "nothing.tif").write_bytes(data)
    with pytest.raises(ValueError, match="no finite pixel values"):
        infer.read(tmp_path / "nothing.tif", (0.0, 1.0))


@pytest.mark.parametrize("mode", [np.float32, np.int32])
def test_the_values_of_a_larger_image_go_by_blocks(mode, monkeypatch):
    values = np.arange(-6000, 6000, dtype=mode).reshape(100, 120)
    data = encoded(Image.fromarray(values), "TIFF")
    whole, scale = decode(data, (-6000.0, 5999.0)), measure(io.BytesIO(data))
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", 999)
    np.testing.assert_array_equal(decode(data, (-6000.0, 5999.0)), whole)
    assert measure(io.BytesIO(data)) == scale == Measured(120, 100, (-6000.0, 5999.0))


def test_cmyk_and_lab():
    cyan = decode(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=95))
    assert cyan[4, 4, 0] < 10 and cyan[4, 4, 1] > 240 and cyan[4, 4, 2] > 240
    white = decode(encoded(Image.new("LAB", (8, 8), (255, 128, 128)), "TIFF"))
    assert (white > 250).all()


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode(data)[0, 0].tolist() == [255, 0, 0], kind


def test_a_jpeg_that_lacks_only_its_end_marker_is_accepted():
    data = encoded(photo(), "JPEG")
    for cut in (1, 2):
        np.testing.assert_array_equal(decode(data[:-cut]), decode(data))


@pytest.mark.parametrize("progressive", [False, True])
def test_no_truncated_jpeg_passes_for_complete(progressive):
    data = encoded(photo(), "JPEG", progressive=progressive)
    whole = decode(data)
    for cut in range(3, len(data), 5):
        try:
            pixels = decode(data[:-cut])
        except UnreadableImage:
            continue
        np.testing.assert_array_equal(pixels, whole)  # only padding was cut


@pytest.mark.parametrize("part", [0.5, 0.7, 0.9, 0.97])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_truncated_image_is_unreadable(kind, part):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    assert reason(data[: int(len(data) * part)])


def test_a_truncated_jpeg_says_so():
    data = encoded(photo(256, 256), "JPEG")
    assert reason(data[: len(data) // 2]) == "truncated"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty file"),
        (b"\0" * 100, "not an image: only zeros"),
        (b"<!DOCTYPE html><html>404</html>", "not an image: HTML"),
        (b"\n <HTML>", "not an image: HTML"),
        (b"<svg xmlns=''/>", "not an image: SVG"),
        (b"%PDF-1.7", "not an image: PDF"),
        (b"hello", "not an image: text"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0", "not an image Pillow can decode: crx"),
        (bytes(range(200, 256)), "not an image"),
        (b"\x89PNG\r\n\x1a\n\0\0", "damaged: the header of a PNG cannot be read"),
        (b"\xff\xd8\xff\xe0\0", "damaged: the header of a JPEG cannot be read"),
    ],
)
def test_what_is_no_image_is_named(data, why):
    assert reason(data) == why


# 32 x 16 pixels, green in the upper left, else red on the left and blue on the right; the second is to be turned.
UPRIGHT_HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ACJpbG9jAAAAAERAAAEAAQAAAAABoAABAAAAAAAAAP0AAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRt"
    "AAAAAAABAAAA/GlwcnAAAADcaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMA"
    "AAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNs"
    "eAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAIAAAAAEAAAAQAAAAAf///+AAAAAC////0AAAAAIAAAAQcGl4"
    "aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAABBW1kYXQAAAD5KAGvBjIeC8cQ8ZEoFF1yZ///pjH//FOP837oS77k"
    "k7f7LvPDzx0vxrHyeeXmfR4nhgD+JuX6fAm8PFAym+tS+H8gRP/7v3U3MyP9XbVWUcB0QvLtOAtMTo/qDE0+FB06uQrIfrP67Zw7"
    "m4AD+am163dkTKTo8UYCbC6VF+xbUkpblcyrsTZ79F8CxYIW1OrxfE3g/Z19ib/0O8kyZxhaWPKPTW1tDjUfVfnD5gsZjg5cSSPv"
    "X+1SLJVyZ0JDX61PQEcKfLTYlm9odK+AS4zFmw9HV0h/NQVlfVrP0COoKCojmDu/gb+JmPOr2AMEZJ48FUXpfsrVsrTf"
)
TURNED_HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAcdtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ADRpbG9jAAAAAERAAAIAAQAAAAAB6wABAAAAAAAAAP0AAgAAAAAC6AABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAA"
    "AAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABBmlwcnAAAADlaXBjbwAAAHVodmNDAQNwAAAA"
    "kAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq"
    "rprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFw"
    "AAAAIAAAAAEAAAAQAAAAAf///+AAAAAC////0AAAAAIAAAAQcGl4aQAAAAADCAgIAAAACWlyb3QDAAAAGWlwbWEAAAAAAAAAAQAB"
    "BoECAwWEhgAAABppcmVmAAAAAAAAAA5jZHNjAAIAAQABAAABKW1kYXQAAAD5KAGvBjIeC8cQ8ZEoFF1yZ///pjH//FOP837oS77k"
    "k7f7LvPDzx0vxrHyeeXmfR4nhgD+JuX6fAm8PFAym+tS+H8gRP/7v3U3MyP9XbVWUcB0QvLtOAtMTo/qDE0+FB06uQrIfrP67Zw7"
    "m4AD+am163dkTKTo8UYCbC6VF+xbUkpblcyrsTZ79F8CxYIW1OrxfE3g/Z19ib/0O8kyZxhaWPKPTW1tDjUfVfnD5gsZjg5cSSPv"
    "X+1SLJVyZ0JDX61PQEcKfLTYlm9odK+AS4zFmw9HV0h/NQVlfVrP0COoKCojmDu/gb+JmPOr2AMEZJ48FUXpfsrVsrTfAAAABkV4"
    "aWYAAE1NACoAAAAIAAEBEgADAAAAAQAGAAAAAAAA"
)


def test_photos_of_phones_are_decoded_upright_where_a_library_is_there(tmp_path):
    pytest.importorskip("pi_heif")
    assert {".heic", ".heif"} <= readable_extensions() and not other_image(".heic")
    upright, turned = decode(UPRIGHT_HEIC), decode(TURNED_HEIC)
    assert (upright.shape, turned.shape) == ((16, 32, 3), (32, 16, 3))
    corners = [[int(image[y, x].argmax()) for y, x in ((2, 2), (-2, -2), (-2, 2))] for image in (upright, turned)]
    assert corners == [[1, 2, 0], [0, 2, 2]]  # green, blue, red; a quarter turn to the right: red, blue, blue
    np.testing.assert_allclose(np.rot90(upright, -1).astype(int), turned, atol=12)
    (tmp_path / "a.jpg").write_bytes(UPRIGHT_HEIC)
    np.testing.assert_array_equal(decode(tmp_path / "a.jpg"), upright)
    assert reason(UPRIGHT_HEIC[:400])


def test_where_no_library_is_there_photos_of_phones_say_what_makes_them_readable(monkeypatch):
    monkeypatch.setattr(module, "pi_heif", None)
    pillow = module.readable_formats()
    monkeypatch.setattr(module, "readable_formats", lambda: tuple(one for one in pillow if one != "HEIF"))
    makes_it = "if it is a photo, `pip install 'autoft[heif]'` makes it readable"
    assert reason(UPRIGHT_HEIC) == f"not an image Pillow can decode: heic; {makes_it}"


def png_header(width, height, depth=1):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_too_many_pixels():
    assert reason(png_header(12_000, 10_000)) == "truncated"
    assert reason(png_header(12_000, 10_000, depth=16)) == "truncated"
    assert reason(png_header(16_001, 16_000)) == "more than 256 megapixels, it may be a decompression bomb"
    with pytest.raises(UnreadableImage, match="bomb"):
        measure(io.BytesIO(png_header(40_000, 40_000)))


def test_the_limit_of_pixels_is_ours_only_while_we_decode(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)
    assert decode(encoded(photo())).shape == (48, 64, 3)
    assert Image.MAX_IMAGE_PIXELS == 7


@pytest.mark.parametrize(
    ("mode", "kind"),
    [(m, "PNG") for m in ("RGB", "L", "LA", "RGBA", "P", "1", "I;16")] + [(m, "JPEG") for m in ("RGB", "L", "CMYK")],
)
def test_a_very_large_image_is_halved(mode, kind, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    source = photo(640, 480).convert(mode)
    data = encoded(source, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    exact = decode(data)
    monkeypatch.setattr(module, "EXACT_PIXELS", 640 * 480 - 1)
    halved = decode(data)
    assert exact.shape == (640, 480, 3) and halved.shape == (320, 240, 3)
    box = np.asarray(Image.fromarray(exact).reduce(2)).astype(int)
    assert np.abs(halved - box).mean() < 2.0


def test_a_very_large_image_with_a_transparent_colour_is_halved(monkeypatch):
    data = encoded(Image.new("RGB", (40, 40), (1, 2, 3)), transparency=(1, 2, 3))
    monkeypatch.setattr(module, "EXACT_PIXELS", 100)
    assert (decode(data) == 255).all() and decode(data).shape == (20, 20, 3)


def some_file(mode, kind, orientation, width, height):
    """The bytes of an image with something to see in every mode."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} if orientation > 1 else {}
    if mode == "I;16":
        return encoded(Image.fromarray(np.asarray(photo(width, height).convert("L")).astype(np.uint16) * 250), kind)
    if mode in ("F", "I"):
        values = np.asarray(photo(width, height).convert("L"))[:, ::-1].astype(np.float32 if mode == "F" else np.int32)
        return encoded(Image.fromarray(values * 3), kind, **options)
    if mode == "clear P":
        return encoded(photo(width, height).convert("P"), kind, transparency=3, **options)
    source = photo(width, height).convert(mode)
    if mode in ("RGBA", "LA"):
        source.putalpha(photo(width, height, seed=1).convert("L"))
    return encoded(source, kind, **options)


KINDS = (
    *((mode, "PNG") for mode in ("RGB", "RGBA", "L", "LA", "P", "clear P", "1", "I;16")),
    *((mode, "TIFF") for mode in ("RGB", "F", "I", "I;16", "CMYK", "LAB", "1")),
    *((mode, "JPEG") for mode in ("RGB", "L", "CMYK")),
    ("RGBA", "WEBP"),
    ("I;16", "PPM"),
)


@given(st.sampled_from(KINDS), st.integers(1, 8), st.integers(1, 41), st.integers(1, 41), st.booleans())
@settings(deadline=None)
def test_the_bundles_own_script_gives_the_same_pixels(file, orientation, width, height, large):
    """Of a very large image too: what is compared there is the halving, with a limit of 60 pixels."""
    data = some_file(*file, orientation, width, height)
    with pytest.MonkeyPatch.context() as patch:
        if large:
            patch.setattr(module, "EXACT_PIXELS", 60)
            patch.setattr(infer, "EXACT_PIXELS", 60)
        ours, theirs = decode(data, (0.0, 700.0)), infer.read(io.BytesIO(data), (0.0, 700.0))
    np.testing.assert_array_equal(ours, theirs)
    assert (ours.shape[0] * ours.shape[1] < width * height) == (large and width * height > 60)


def test_the_bundles_own_script_reads_the_same_formats():
    assert tuple(infer.FORMATS) == module.readable_formats()


def test_the_bundles_own_script_has_the_same_limits():
    assert (infer.EXACT_PIXELS, infer.MAX_PIXELS) == (module.EXACT_PIXELS, module.MAX_PIXELS)


def test_a_file_that_is_not_there_or_too_large(tmp_path, monkeypatch):
    assert reason(tmp_path / "none.png") == "no such file or directory"
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    (tmp_path / "a.png").write_bytes(b"x" * 11)
    assert "the limit for a file" in reason(tmp_path / "a.png")


@given(st.binary(max_size=300), st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"]), st.integers(0, 200))
def test_damage_gives_pixels_or_a_reason(junk, kind, at):
    data = bytearray(encoded(photo(16, 16), kind))
    data[at : at + len(junk)] = junk
    try:
        pixels = decode(bytes(data))
    except UnreadableImage as error:
        assert str(error) and "0x" not in str(error) and "\n" not in str(error)
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def test_warnings_stay_quiet_in_threads_and_are_back_afterwards():
    large = png_header(9_900, 10_000)  # above Pillow's warning, below our limit
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(reason, [large] * 16))
    assert warnings.filters == before


def test_extensions():
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp", ".gif", ".avif"} <= readable_extensions()
    assert not {".pdf", ".eps", ".mpg", ".h5", ".txt"} & readable_extensions()


def cropped(image: Image.Image, size: int, how: Image.Resampling) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), how)


def squashed(image: Image.Image, size: int, how: Image.Resampling) -> Image.Image:
    return image.resize((size, image.height), how).resize((size, size), how)


def padded(image: Image.Image, size: int, how: Image.Resampling) -> Image.Image:
    width, height = (max(1, math.floor(Fraction(side * size, max(image.size)) + Fraction(1, 2))) for side in image.size)
    page = Image.new("RGB", (size, size), (124, 116, 104))
    small = image.resize((width, image.height), how).resize((width, height), how)
    page.paste(small, ((size - width) // 2, (size - height) // 2))
    return page


VIEWS = {"crop": cropped, "squash": squashed, "pad": padded}
SIDES = st.integers(1, 60)


@given(SIDES, SIDES, st.integers(1, 16), st.sampled_from(["bicubic", "bilinear"]), st.sampled_from(list(VIEWS)))
def test_preprocess_is_the_recipe_here_and_in_the_bundles_own_script(height, width, size, interpolation, view):
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = VIEWS[view](Image.fromarray(rgb), size, Image.Resampling[interpolation.upper()])
    recipe = Preprocess(size, RECIPE.mean, RECIPE.std, interpolation, view)
    np.testing.assert_array_equal(preprocess(rgb, recipe), np.asarray(expected))
    np.testing.assert_array_equal(np.asarray(verify.square(rgb, asdict(recipe))), np.asarray(expected))


def test_squash_and_pad_show_the_ends_of_a_strip_and_the_centre_square_does_not():
    strip = np.full((20, 80, 3), 100, np.uint8)
    strip[:, :20], strip[:, 60:] = (200, 0, 0), (0, 200, 0)
    crop, squash, pad = (preprocess(strip, replace(RECIPE, interpolation="bilinear", view=view)) for view in VIEWS)
    assert (crop == 100).all()
    assert squash[4, 0].tolist() == [200, 0, 0] and squash[4, 7].tolist() == [0, 200, 0]
    assert pad[4, 0].tolist() == [200, 0, 0] and pad[4, 7].tolist() == [0, 200, 0]
    assert (pad[[0, 1, 2, 5, 6, 7]] == RECIPE.pad_colour).all() and (pad[3:5] != RECIPE.pad_colour).any(axis=2).all()


def test_normalise_is_the_recipe():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    planes = normalise(pixels, RECIPE)
    assert planes.shape == (5, 3, 8, 8) and planes.dtype == np.float32 and planes.flags.c_contiguous
    expected = (pixels / 255 - RECIPE.mean) / RECIPE.std
    np.testing.assert_allclose(planes, expected.transpose(0, 3, 1, 2), atol=1e-6)
