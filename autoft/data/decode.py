"""Decoding: an image file to the pixels a person sees, and from there to a network's input.

Every image becomes 8-bit RGB, upright. What is not RGB is turned into it like this:

- transparency (alpha, palette, colour key) is composited over white
- 16-bit grey is scaled so that 65535 becomes 255
- 32-bit integers and floats take the smallest usual full scale that holds all values (floats: 1, 255, 65535;
  integers: 255, 65535); values outside all of them are stretched from their minimum to their maximum
- palette, greyscale, 1-bit, CMYK, YCbCr, HSV and LAB go through Pillow
- of an animation or a multi-page file only the first frame counts
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from autoft.errors import UnreadableImage
from autoft.types import Interpolation, Preprocess, View

Pixels = NDArray[np.uint8]

MAX_PIXELS: Final = 100_000_000
"""Pixels above which an image is refused: decoded it would take close to 1 GB."""

MAX_BYTES: Final = 1 << 30
"""Bytes above which a file is refused unread."""

DECODER: Final = f"1-{PIL.__version__}"
"""Changes whenever the same file may give other pixels; the first number counts changes in this module."""

# Formats Pillow only recognises, or opens by starting another program.
_NOT_DECODED: Final = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
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
_RESAMPLING: Final = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_LARGE: Final = 40_000_000
_large_images = threading.Lock()
_EOI: Final = b"\xff\xd9"
_CONTINUATIONS: Final = (b"\x55" * 512, b"\xaa" * 512)  # they differ in the first bit already
_SIGNATURES: Final = (
    (b"<svg", "SVG"),
    (b"<!doctype html", "HTML"),
    (b"<html", "HTML"),
    (b"<?xml", "XML"),
    (b"%pdf", "PDF"),
    (b"pk\x03\x04", "ZIP"),
    (b"version https://git-lfs", "a Git LFS pointer, fetch it with `git lfs pull`"),
)


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


def decode(source: Path | bytes) -> Pixels:
    """Pixels `(height, width, 3)` uint8 RGB of an image file, or of its bytes, as a person sees it.

    A baseline JPEG that lacks nothing but its end marker is accepted. Raises `UnreadableImage` with the reason.
    """
    data = _bytes_of(source)
    with _decoding_errors():
        try:
            return _decode_bytes(data)
        except OSError as error:
            if not _may_lack_end_marker(data):
                raise
            pixels = _decode_bytes(data + _EOI)
            for more in _CONTINUATIONS:
                if not np.array_equal(pixels, _decode_bytes(data.removesuffix(b"\xff") + more + _EOI)):
                    raise UnreadableImage("truncated") from error
            return pixels


def image_size(file: BinaryIO) -> tuple[int, int]:
    """Width and height in pixels as the header states them; no pixel is decoded. Raises `UnreadableImage`."""
    with _decoding_errors(), _open(file) as image:
        return image.size


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
        size = source.stat().st_size
        if size > MAX_BYTES:
            raise UnreadableImage(f"{size / 2**30:.1f} GiB, the limit for a file is {MAX_BYTES / 2**30:g} GiB")
        return source.read_bytes()
    except OSError as error:
        raise UnreadableImage((error.strerror or str(error)).lower()) from error


def _open(file: BinaryIO) -> Image.Image:
    try:
        image = Image.open(file, formats=readable_formats())
    except UnidentifiedImageError as error:
        file.seek(0)
        raise UnreadableImage(_what_it_is(file.read(512))) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width} x {height} pixels, the limit is {MAX_PIXELS // 1_000_000} megapixels")
    return image


def _what_it_is(head: bytes) -> str:
    """Why bytes that Pillow does not know are no image; a saved error page is the usual case."""
    if not head.strip(b"\0"):
        return "not an image: only zeros" if head else "empty file"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for signature, kind in _SIGNATURES:
        if start.startswith(signature):
            return f"not an image: {kind}"
    if head[4:8] == b"ftyp":
        return f"not an image Pillow can decode: {head[8:12].decode('ascii', 'replace').strip()}"
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
            raise UnreadableImage("too many pixels, it may be a decompression bomb") from error
        except MemoryError as error:
            raise UnreadableImage("not enough memory to decode it") from error
        except Exception as error:  # damaged files raise nearly anything: ValueError, struct.error, KeyError, ...
            text = " ".join(str(error).split()) or type(error).__name__
            truncated = "truncated" in text.lower() or "not enough image data" in text.lower()
            raise UnreadableImage("truncated" if truncated else f"damaged: {text}") from error


class _Hush:
    """Silence for Python warnings while any thread is inside.

    `warnings.catch_warnings` swaps process-wide state, so threads that overlap must share one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)


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


def _decode_bytes(data: bytes) -> Pixels:
    with _open(io.BytesIO(data)) as image, _turn_of(image):
        image.load()
        upright = _upright(image)
        return _TO_RGB.get(upright.mode, _through_pillow)(upright)


def _turn_of(image: Image.Image) -> AbstractContextManager[object]:
    """Large images are decoded one at a time: each takes hundreds of megabytes, times as many threads as there are."""
    return _large_images if image.width * image.height > _LARGE else nullcontext()


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; damaged EXIF data counts as none."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the EXIF parser raises as freely as the decoders
        turn = None
    return image if turn is None else image.transpose(turn)


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


def _integers(image: Image.Image) -> Pixels:
    return _as_rgb(_scaled(np.asarray(image).astype(np.float64), (255.0, 65535.0)))


def _floats(image: Image.Image) -> Pixels:
    return _as_rgb(_scaled(np.asarray(image).astype(np.float64), (1.0, 255.0, 65535.0)))


def _scaled(values: NDArray[np.float64], full_scales: tuple[float, ...]) -> Pixels:
    finite = np.isfinite(values)
    if not finite.any():
        raise UnreadableImage("no finite pixel values")
    low, high = float(values[finite].min()), float(values[finite].max())
    fitting = (scale for scale in full_scales if low >= 0.0 and high <= scale)
    full_scale = next(fitting, None)
    bottom, span = (0.0, full_scale) if full_scale is not None else (low, high - low or 1.0)
    filled = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    shown = np.clip((filled - bottom) / span * 255.0, 0.0, 255.0)
    return np.rint(shown).astype(np.uint8)


def _as_rgb(grey: Pixels) -> Pixels:
    return np.repeat(grey[:, :, None], 3, axis=2)


_TO_RGB: Final[dict[str, Callable[[Image.Image], Pixels]]] = {
    "I;16": _grey16,
    "I;16L": _grey16,
    "I;16B": _grey16,
    "I;16N": _grey16,
    "I": _integers,
    "F": _floats,
}
