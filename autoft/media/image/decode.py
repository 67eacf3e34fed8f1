"""Decoding: an image file to the pixels a person sees, and from there to a network's input.

Every image becomes 8-bit RGB, upright. What is not RGB is turned into it like this:

- transparency (alpha, palette, colour key) is composited over white
- 16-bit grey is scaled so that 65535 becomes 255; PGM with a maximum above 255 is such, the maximum becomes 255
- 32-bit integers and floats are scaled so that a range of values, the one of the data set, becomes 0 to 255; NaN and
  negative infinity become 0, infinity 255
- palette, greyscale, 1-bit, CMYK, YCbCr, HSV and LAB go through Pillow
- of an animation or a multi-page file only the first frame counts
- an image of more than `EXACT_PIXELS` is halved, so that memory stays bounded
"""

from __future__ import annotations

import ctypes
import io
import logging
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, _imaging

try:
    import pi_heif  # the extra "heif"
except ImportError:
    pi_heif = None
else:
    pi_heif.register_heif_opener()  # which turns photos upright itself

from autoft.errors import ReadFailed, UnreadableImage
from autoft.values.backbone import Interpolation
from autoft.values.counts import counted
from autoft.values.dataset import ValueRange
from autoft.values.handoff import Preprocess, View

Pixels = NDArray[np.uint8]

EXACT_PIXELS: Final = 100_000_000
"""Pixels above which an image is halved, to bound memory: model.onnx takes about 22 MiB a megapixel, 2.2 GiB at this.

No photo of up to 100 megapixels is.
"""

MAX_PIXELS: Final = 256_000_000
"""Pixels above which an image is refused."""

MAX_BYTES: Final = 1 << 30
"""Bytes above which a file is refused unread."""

DECODER: Final = f"4-{PIL.__version__}" + (f"-heif-{pi_heif.__version__}" if pi_heif else "")
"""Changes whenever the same file may give other pixels; the first number counts changes in this module."""

# Formats Pillow only recognises, or opens by starting another program: EPS, and IPTC, in which one may lie.
_NOT_DECODED: Final = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PAD_COLOUR: Final = (124, 116, 104)
_FULL_SCALES: Final = (1.0, 255.0, 65535.0)
_NUMBERS: Final = ("I", "F")
_LARGEST_VALUE: Final = 1e30  # beyond it are marks for "no data"
_RESAMPLING: Final = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_LARGE: Final = 40_000_000
_NUMBERS_AT_ONCE: Final = 2**22
_large_images = threading.Lock()
_EOI: Final = b"\xff\xd9"
_CONTINUATIONS: Final = (b"\x55" * 512, b"\xaa" * 512)  # they differ in the first bit already
_HEADS: Final = ((b"\x89PNG", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"GIF8", "GIF"))
_HEIF_BRANDS: Final = frozenset({"heic", "heix", "heim", "heis", "hevc", "mif1", "msf1"})
_SIGNATURES: Final = (
    (b"<svg", "SVG"),
    (b"<!doctype html", "HTML"),
    (b"<html", "HTML"),
    (b"<?xml", "XML"),
    (b"%pdf", "PDF"),
    (b"pk\x03\x04", "ZIP"),
    (b"version https://git-lfs", "a Git LFS pointer, fetch it with `git lfs pull`"),
)


PHOTOS_OF_PHONES: Final = frozenset({".heic", ".heif", ".hif"})
"""Extensions of photos that nothing decodes but the library of the extra "heif"."""

_WITH_HEIF: Final = "`pip install 'autoft[heif]'`"
_RAW: Final = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2")
_WAYS: Final = {
    **dict.fromkeys(PHOTOS_OF_PHONES, f"which {_WITH_HEIF} makes readable"),
    **dict.fromkeys(_RAW, "which a camera wrote: develop them to JPEG or PNG"),
    ".dcm": "DICOM: convert them to PNG or TIFF",
    ".jxl": "JPEG XL: convert them to PNG",
    ".svg": "drawings without pixels: render them to PNG",
}


def other_image(extension: str) -> str:
    """What makes images of this extension (`.heic`, small letters) readable; empty for all else, and for what is."""
    return "" if extension in readable_extensions() else _WAYS.get(extension, "")


@cache
def readable_formats() -> tuple[str, ...]:
    """Names of the image formats that are decoded here."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - _NOT_DECODED))


@cache
def readable_extensions() -> frozenset[str]:
    """File name extensions, `.jpg` and the like in lower case, of the formats that are decoded here."""
    formats = {*readable_formats(), "MPO"}  # a JPEG with several pictures; opened as a JPEG
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def decode(source: Path | bytes, value_range: ValueRange | None = None) -> Pixels:
    """Pixels `(height, width, 3)` uint8 RGB of an image file, or of its bytes, as a person sees it.

    `value_range`: the values of a float or 32-bit image that become 0 and 255; None where such an image is not
    expected, and refused. A baseline JPEG that lacks nothing but its end marker is accepted. Raises `UnreadableImage`
    with the reason.
    """
    data = _bytes_of(source)
    with _decoding_errors():
        try:
            return _decode_bytes(data, value_range)
        except OSError as error:
            if not _may_lack_end_marker(data):
                raise
            pixels = _decode_bytes(data + _EOI, None)
            for more in _CONTINUATIONS:
                if not np.array_equal(pixels, _decode_bytes(data.removesuffix(b"\xff") + more + _EOI, None)):
                    raise UnreadableImage("truncated") from error
            return pixels


@dataclass(frozen=True)
class Measured:
    """Width and height in pixels as the header states them; of float and 32-bit images the least and greatest value.

    `gaps` counts the pixels of these that hold no number: NaN, infinity, or a mark for "no data" beyond 1e30.
    """

    width: int
    height: int
    values: ValueRange | None = None
    gaps: int = 0


def measure(file: BinaryIO) -> Measured:
    """The measures of an image; pixels are decoded only where their values matter. Raises `UnreadableImage`."""
    with _decoding_errors(), _open(file) as image:
        if image.mode not in _NUMBERS or _is_grey16(image):
            return Measured(*image.size)
        with _turn_of(image):
            return Measured(*image.size, *_census(np.asarray(image)))


def full_scale(low: float, high: float) -> ValueRange:
    """The values that become 0 and 255 where values go from `low` to `high`.

    From 0 to 1, 255 or 65535 where the values begin at 0 or above and fill more than half of it (1: any part);
    otherwise from `low` to `high`.
    """
    usual = next((scale for scale in _FULL_SCALES if high <= scale), None)
    filled = usual is not None and low >= 0.0 and (usual == 1.0 or high > usual / 2)
    return (0.0, usual) if usual is not None and filled else (low, high)


def preprocess(rgb: Pixels, recipe: Preprocess) -> Pixels:
    """Pixels `(size, size, 3)` uint8 of `(height, width, 3)`: steps 1 and 2 of `recipe`."""
    return to_square(rgb, recipe.size, recipe.interpolation, recipe.view)


def to_square(rgb: Pixels, size: int, interpolation: Interpolation, view: View) -> Pixels:
    """Pixels `(size, size, 3)` of an image `(height, width, 3)`, by Pillow: steps 1 and 2 of `Preprocess`."""
    seen = Image.fromarray(centre_square(rgb) if view == "crop" else rgb)
    width, height = padded_size(*seen.size, size) if view == "pad" else (size, size)
    # Pillow's own order of the two depends on the shape, and on its version since it does (its pull request 9549).
    narrow = seen.resize((width, seen.height), _RESAMPLING[interpolation])
    small = narrow.resize((width, height), _RESAMPLING[interpolation])
    if view == "pad":
        page = Image.new("RGB", (size, size), PAD_COLOUR)
        page.paste(small, ((size - width) // 2, (size - height) // 2))
        return np.array(page)
    return np.array(small)


def centre_square(rgb: Pixels) -> Pixels:
    """The largest centred square `(side, side, 3)` of `(height, width, 3)`."""
    height, width = rgb.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return rgb[top : top + side, left : left + side]


def padded_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height of an image whose long side becomes `size`, rounded half up, at least 1."""
    long = max(width, height)
    return max(1, (2 * width * size + long) // (2 * long)), max(1, (2 * height * size + long) // (2 * long))


def normalise(pixels: Pixels, recipe: Preprocess) -> NDArray[np.float32]:
    """Network input `(n, 3, size, size)` float32 of pixels `(n, size, size, 3)` uint8: step 3 of `recipe`."""
    planes = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    planes /= np.float32(255)
    planes -= np.asarray(recipe.mean, np.float32).reshape(3, 1, 1)
    planes /= np.asarray(recipe.std, np.float32).reshape(3, 1, 1)
    return planes


# ---------------------------------------------------------------- bytes to an open image


def _bytes_of(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):  # a named pipe would block the reader for ever
            raise UnreadableImage("not a regular file")
        size = status.st_size
        if size > MAX_BYTES:
            raise UnreadableImage(f"{size / 2**30:.1f} GiB, the limit for a file is {MAX_BYTES / 2**30:g} GiB")
        return source.read_bytes()
    except OSError as error:
        raise ReadFailed((error.strerror or str(error)).lower()) from error
    except MemoryError as error:
        raise ReadFailed("not enough memory to read it") from error


def _open(file: BinaryIO) -> Image.Image:
    try:
        _silence_libraries()
        image = Image.open(file, formats=readable_formats())
    except UnidentifiedImageError as error:
        file.seek(0)
        raise UnreadableImage(_kind_of_tiff(file) or _what_it_is(file.read(512))) from error
    return image


@cache
def _silence_libraries() -> None:
    """What libtiff and Pillow print and log about damaged files, without a name, they also raise."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with suppress(OSError, AttributeError):  # where libtiff is part of the extension module, it goes on printing
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def _kind_of_tiff(file: BinaryIO) -> str:
    """What a TIFF holds that Pillow does not decode; empty when it is none. The file stands at its beginning again."""
    try:
        head = file.read(8)
        if head[:4] not in (b"II*\0", b"MM\0*"):
            return ""
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
        bands, bits = tags[TiffImagePlugin.SAMPLESPERPIXEL], tags[TiffImagePlugin.BITSPERSAMPLE]
        kind = {2: "signed", 3: "float"}.get(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0], "unsigned")
        return f"a TIFF of {counted(bands, 'band')} of {bits[0]}-bit {kind} values, which Pillow cannot decode"
    except Exception:  # a damaged one
        return ""
    finally:
        file.seek(0)


def _what_it_is(head: bytes) -> str:
    """Why bytes that Pillow does not know are no image; a saved error page is the usual case."""
    if not head.strip(b"\0"):
        return "not an image: only zeros" if head else "empty file"
    for signature, kind in _HEADS:
        if head.startswith(signature):
            return f"damaged: the header of a {kind} cannot be read"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for signature, kind in _SIGNATURES:
        if start.startswith(signature):
            return f"not an image: {kind}"
    if head[4:8] == b"ftyp":
        brand = head[8:12].decode("ascii", "replace").strip()
        heif = f"; if it is a photo, {_WITH_HEIF} makes it readable" if brand in _HEIF_BRANDS and not pi_heif else ""
        return f"not an image Pillow can decode: {brand}{heif}"
    return "not an image: text" if head.isascii() and b"\0" not in head else "not an image"


@contextmanager
def _decoding_errors() -> Iterator[None]:
    """Turn whatever a damaged file makes Pillow raise into `UnreadableImage`, and keep its warnings quiet."""
    with _hush:
        try:
            yield
        except UnreadableImage:
            raise
        except Image.DecompressionBombError as error:
            megapixels = MAX_PIXELS // 1_000_000
            raise UnreadableImage(f"more than {megapixels} megapixels, it may be a decompression bomb") from error
        except MemoryError as error:
            raise ReadFailed("not enough memory to decode it") from error
        except Exception as error:  # damaged files raise nearly anything: ValueError, struct.error, KeyError, ...
            text = " ".join(str(error).split()) or type(error).__name__
            truncated = "truncated" in text.lower() or "not enough image data" in text.lower()
            raise UnreadableImage("truncated" if truncated else f"damaged: {text}") from error


class _Hush:
    """Silence for Python warnings, and our own limit of pixels in Pillow, while any thread is inside.

    Both are state of the whole process, so threads that overlap must share one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caught = warnings.catch_warnings()
        self._limit = Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
                self._limit = Image.MAX_IMAGE_PIXELS
                Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses what has more than twice as many

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)
                Image.MAX_IMAGE_PIXELS = self._limit


_hush = _Hush()


def _may_lack_end_marker(data: bytes) -> bool:
    """Whether the end marker may be all that these bytes lack.

    Decoding with different continuations then tells: where picture data is missing, what follows the cut shows in
    the pixels; in a complete picture it does not. A progressive JPEG gives no such answer, as whole scans may be
    missing behind one that is complete.
    """
    if not data.startswith(b"\xff\xd8\xff") or data.endswith(_EOI):
        return False
    with _open(io.BytesIO(data)) as image:
        return "progressive" not in image.info


# ---------------------------------------------------------------- an open image to RGB


def _decode_bytes(data: bytes, value_range: ValueRange | None) -> Pixels:
    with _open(io.BytesIO(data)) as image, _turn_of(image):
        if _is_too_large(image):
            image.draft(None, (image.width // 2, image.height // 2))  # a JPEG is decoded at half its size
        image.load()
        turn, sixteen = _turn_upright(image), _is_grey16(image)
        exact = _halved(image) if _is_too_large(image) else image
        upright = exact if turn is None else exact.transpose(turn)
        if sixteen:
            return _grey16(upright)
        if upright.mode in _NUMBERS:
            return _as_rgb(_scaled(np.asarray(upright), value_range))
        return _through_pillow(upright)


def _is_grey16(image: Image.Image) -> bool:
    """Whether its values go from 0 to 65535; Pillow opens PGM as an image of 32 bits, and scales it to that."""
    return image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")


def _is_too_large(image: Image.Image) -> bool:
    return image.width * image.height > EXACT_PIXELS


def _halved(image: Image.Image) -> Image.Image:
    """The image with the means of two by two pixels, in a mode that has means."""
    if image.mode.startswith("I;16"):
        return image.convert("I").reduce(2)
    if image.has_transparency_data:
        return (image if image.mode == "RGBA" else image.convert("RGBA")).reduce(2)
    return (image.convert("RGB") if image.mode in ("P", "1") else image).reduce(2)


def _turn_of(image: Image.Image) -> AbstractContextManager[object]:
    """Large images are decoded one at a time: each takes hundreds of megabytes, times as many threads as there are."""
    return _large_images if image.width * image.height > _LARGE else nullcontext()


def _turn_upright(image: Image.Image) -> Image.Transpose | None:
    """How the image has to be turned by its EXIF orientation; damaged EXIF data counts as none."""
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the EXIF parser raises as freely as the decoders
        return None


def _through_pillow(image: Image.Image) -> Pixels:
    if image.has_transparency_data:
        return _over_white(image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _over_white(image: Image.Image) -> Pixels:
    straight = image.convert("LA") if image.mode == "La" else image
    layer = straight.convert("RGBA")
    page = Image.new("RGBA", layer.size, "white")
    return np.array(Image.alpha_composite(page, layer).convert("RGB"))


def _grey16(image: Image.Image) -> Pixels:
    values = np.asarray(image).astype(np.uint32)
    grey = ((values + 128) // 257).astype(np.uint8)
    key = image.info.get("transparency")
    if key is not None:
        grey[values == key] = 255
    return _as_rgb(grey)


def _is_number(values: NDArray[Any]) -> NDArray[np.bool_]:
    marks: NDArray[np.bool_] = np.isfinite(values) & (np.abs(values) < _LARGEST_VALUE)
    return marks


def _blocks(values: NDArray[Any]) -> list[NDArray[Any]]:
    """Rows of an image, together so many values that working on them takes little memory."""
    return np.array_split(values, 1 + values.size // _NUMBERS_AT_ONCE)


def _census(values: NDArray[Any]) -> tuple[ValueRange | None, int]:
    """The least and the greatest number, and how many pixels hold none."""
    ends, found = [], 0
    for block in _blocks(values):
        numbers = block[_is_number(block)]
        found += numbers.size
        if numbers.size:
            ends += [float(numbers.min()), float(numbers.max())]
    return (min(ends), max(ends)) if ends else None, values.size - found


def _scaled(values: NDArray[Any], value_range: ValueRange | None) -> Pixels:
    blocks = _blocks(values)
    if not any(_is_number(block).any() for block in blocks):
        raise UnreadableImage("no finite pixel values")
    if value_range is None:
        raise UnreadableImage("float or 32-bit values, and the training images had none, so there is no scale for them")
    return np.concatenate([_scaled_block(block.astype(np.float64), *value_range) for block in blocks])


def _scaled_block(values: NDArray[np.float64], bottom: float, top: float) -> Pixels:
    filled = np.where(_is_number(values), values, np.where(values > _LARGEST_VALUE, top, bottom))
    shown = np.clip((filled - bottom) / (top - bottom or 1.0) * 255.0, 0.0, 255.0)
    return np.rint(shown).astype(np.uint8)


def _as_rgb(grey: Pixels) -> Pixels:
    return np.repeat(grey[:, :, None], 3, axis=2)
