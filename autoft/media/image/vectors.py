"""Test vectors: a few real images, and odd ones made of them, with what Pillow and torch say of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from autoft.media.image.decode import Pixels
from autoft.tasks.forms.base import Answering
from autoft.tasks.statistics import Logits
from autoft.values.bundle import ANSWER_TOLERANCE, CLEAR_MARGIN, SCHEMA, VECTORS, Vector, Vectors

AS_THEY_ARE: Final = 8
LONGEST_SIDE: Final = 512  # of images as they are; larger ones are made smaller
TWO_MEGAPIXELS: Final = (1633, 1225)
_DIGITS: Final = 7  # that count, as units may be small


@dataclass(frozen=True, eq=False)
class Case:
    """An image `(height, width, 3)` uint8 to be tested with, and the label of the image it is made of."""

    name: str
    pixels: Pixels
    label: str


def cases(images: Sequence[tuple[Pixels, str]]) -> list[Case]:
    """At most 14 cases of decoded images with their labels: some as they are, and six odd sizes and colours.

    Raises `ValueError` without images.
    """
    if not images:
        raise ValueError("test vectors need an image")
    chosen = [images[row] for row in np.linspace(0, len(images) - 1, min(len(images), AS_THEY_ARE)).astype(int)]
    plain = [Case(f"{number:02}-image", _bounded(pixels), label) for number, (pixels, label) in enumerate(chosen)]
    return [*plain, *_odd(len(plain), *chosen[0])]


def write_vectors(folder: Path, of: Sequence[Case], logits: Logits, answering: Answering) -> Vectors:
    """Write each case below `folder` as PNG and as raw bytes; gives what vectors.json is to hold.

    `logits` `(n, outputs)` are torch's. Paths in the result are relative to `folder`.
    """
    (folder / VECTORS).mkdir(exist_ok=True)
    vectors = []
    for case, row, answers in zip(of, logits, answering.answers(logits), strict=True):
        png, raw = f"{VECTORS}/{case.name}.png", f"{VECTORS}/{case.name}.rgb"
        Image.fromarray(case.pixels).save(folder / png)
        (folder / raw).write_bytes(case.pixels.tobytes())
        height, width = case.pixels.shape[:2]
        expected = {answering.form.output: _rounded(answers)}
        vectors.append(Vector(case.name, png, raw, height, width, case.label, _rounded(row), **expected))
    return Vectors(SCHEMA, ANSWER_TOLERANCE, CLEAR_MARGIN, tuple(vectors), answering.form.units(answering.task.targets))


def _odd(first: int, pixels: Pixels, label: str) -> Iterator[Case]:
    for number, (name, make) in enumerate(_ODD.items(), first):
        yield Case(f"{number:02}-{name}", np.array(make(Image.fromarray(pixels))), label)


_ODD: Final[dict[str, Callable[[Image.Image], Image.Image]]] = {
    "one-pixel": lambda image: image.resize((1, 1)),
    "tiny": lambda image: image.resize((5, 7)),
    "tall": lambda image: image.resize((41, 397)),
    "wide": lambda image: image.resize((401, 37)),
    "grey": lambda image: _small(image).convert("L").convert("RGB"),
    "two-megapixels": lambda image: image.resize(TWO_MEGAPIXELS),
}


def _bounded(pixels: Pixels) -> Pixels:
    return np.array(_small(Image.fromarray(pixels)))


def _small(image: Image.Image) -> Image.Image:
    smaller = image.copy()
    smaller.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return smaller


def _rounded(values: Logits) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)
