"""`rescore`: the score of a bundle on somebody's own labelled images. Runs without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoft.errors import DataError
from autoft.onnx_runtime import PixelModel
from autoft.predict import Prediction, predictions
from autoft.statistics import scores
from autoft.summary import Scores
from autoft.task import SingleLabel


@dataclass(frozen=True)
class Rescored:
    """The scores on the images that could be read, and those that could not, each with the reason."""

    scores: Scores
    unreadable: tuple[str, ...]


def rescore(model: PixelModel, folder: Path) -> Rescored:
    """Scores of the model on `folder`, which holds one folder of images a class, named as the model's labels.

    Classes may be missing. Raises `DataError` for a folder that is no label, or without images.
    """
    found = [(label, one) for label in _labels(model, folder) for one in predictions(model, [str(folder / label)])]
    read = [(label, one) for label, one in found if one.error is None]
    index = {label: number for number, label in enumerate(model.labels)}
    truth = np.array([index[label] for label, _ in read])
    result = scores(SingleLabel(), "accuracy", _log_probabilities([one for _, one in read]), truth)
    return Rescored(result, tuple(f"{one.image}: {one.error}" for _, one in found if one.error is not None))


def _labels(model: PixelModel, folder: Path) -> list[str]:
    """Names of the class folders. Raises `DataError` when there are none, or others."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give one that holds one folder of images for each class")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    unknown = [name for name in names if name not in model.labels]
    if unknown or not names:
        what = f"{unknown[0]!r} in {folder} is no label of the model" if names else f"{folder} holds no class folders"
        raise DataError(f"{what}; there must be folders named as labels, such as {', '.join(model.labels[:3])}")
    return names


def _log_probabilities(read: Sequence[Prediction]) -> np.ndarray:
    """Logits that give these probabilities, `(n, classes)`."""
    probabilities = np.array([list(one.probabilities.values()) for one in read], np.float64)
    logits: np.ndarray = np.log(np.maximum(probabilities, 1e-12))
    return logits
