"""`predict`: what an exported model says about image files. Runs without torch."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from autoft.codec import decode as decode_json
from autoft.data.decode import Pixels, decode, normalise, preprocess, readable_extensions
from autoft.data.folder import natural_key
from autoft.data.parallel import ordered_map
from autoft.errors import DataError, RunFolderError, UnreadableImage, UserError
from autoft.onnx_runtime import OnnxClassifier
from autoft.summary import Summary
from autoft.types import Preprocess

MODEL_FILE: Final = "model.core.onnx"

_BATCH: Final = 32
_DECODERS: Final = 4


@dataclass(frozen=True)
class Prediction:
    """What the model says about one image: the likeliest `label`, its probability, and those of all labels.

    An image that cannot be read has an `error`, the reason, and no label.
    """

    image: str
    label: str | None = None
    probability: float | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None


def predict(model: Path, inputs: Sequence[str]) -> Iterator[Prediction]:
    """One prediction an image, in order: of files, of folders with all below them, of glob patterns.

    `model` is a run folder, an export folder or an ONNX file; see `find_model`. Raises `UserError` at once when it is
    none of these, and `DataError` at the end when not one image could be read.
    """
    return _predictions(OnnxClassifier(find_model(model)), inputs)


def find_model(path: Path) -> Path:
    """The ONNX file of a run folder (as its summary.json says), of an export folder, or the file itself.

    Raises `UserError` when there is none.
    """
    if not path.is_dir():
        return path
    if (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    if (path / "summary.json").is_file():
        return path / _summary(path / "summary.json").model
    if (path / "study.json").is_file():
        raise RunFolderError(f"the run in {path} has no model yet; `autoft resume {path}` goes on with it")
    raise UserError(f"{path} holds neither summary.json nor {MODEL_FILE}; give a run folder or an .onnx file")


def _summary(file: Path) -> Summary:
    try:
        return decode_json(Summary, file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{file} is damaged: {error}; give the .onnx file itself") from error


# ---------------------------------------------------------------- images


@dataclass(frozen=True, eq=False)
class _Read:
    """An image file, and its pixels `(size, size, 3)` or why there are none."""

    image: str
    pixels: Pixels | None = None
    error: str | None = None


def _predictions(classifier: OnnxClassifier, inputs: Sequence[str]) -> Iterator[Prediction]:
    first: _Read | None = None
    readable = 0
    reads = ordered_map(partial(_read, classifier.preprocess), _files(inputs), _DECODERS)
    while batch := list(islice(reads, _BATCH)):
        first = first or batch[0]
        readable += sum(read.pixels is not None for read in batch)
        yield from _batch(classifier, batch)
    if first is None:
        raise DataError(f"no images in {', '.join(inputs) or 'an empty list'}; name image files, folders or patterns")
    if not readable:
        raise DataError(f"not one image could be read; {first.image}: {first.error}")


def _batch(classifier: OnnxClassifier, reads: Sequence[_Read]) -> Iterator[Prediction]:
    size = classifier.preprocess.size
    pixels = np.asarray([read.pixels for read in reads if read.pixels is not None], np.uint8)
    images = normalise(pixels.reshape(-1, size, size, 3), classifier.preprocess)
    rows = iter(classifier.probabilities(images, _BATCH).tolist())
    for read in reads:
        if read.pixels is None:
            yield Prediction(read.image, error=read.error)
        else:
            probabilities = dict(zip(classifier.labels, next(rows), strict=True))
            label = max(probabilities, key=probabilities.__getitem__)
            yield Prediction(read.image, label, probabilities[label], probabilities)


def _read(recipe: Preprocess, path: Path) -> _Read:
    try:
        return _Read(str(path), preprocess(decode(path), recipe))
    except UnreadableImage as error:
        return _Read(str(path), error=str(error))


def _files(inputs: Sequence[str]) -> Iterator[Path]:
    """Every file that is asked for; a path that leads nowhere stays, so that it is reported."""
    for text in inputs:
        path = Path(text)
        found = [path] if path.exists() else [Path(name) for name in _matches(text)] or [path]
        for match in found:
            yield from _images_below(match) if match.is_dir() else (match,)


def _matches(pattern: str) -> Iterable[str]:
    return sorted(glob.glob(pattern, recursive=True), key=natural_key)  # noqa: PTH207  Path.glob takes no absolute one


def _images_below(folder: Path) -> Iterator[Path]:
    """Image files in and below a folder, in natural order; hidden names and links to folders are left out."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural_key)
        for name in sorted(files, key=natural_key):
            if not name.startswith(".") and Path(name).suffix.lower() in readable_extensions():
                yield Path(here, name)
