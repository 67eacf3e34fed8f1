"""`rescore`: the score of a bundle on somebody's own labelled images. Runs without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoft.errors import DataError
from autoft.files import as_path, as_text
from autoft.onnx_runtime import PixelModel
from autoft.predict import predictions
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

    Classes may be missing. Raises `DataError` for a folder that is no label, or when no image can be read.
    """
    index = {label: number for number, label in enumerate(model.labels)}
    truth: list[int] = []
    rows: list[np.ndarray] = []
    unreadable: list[str] = []
    for one in predictions(model, [str(folder / as_path(label)) for label in _labels(model, folder)]):
        if one.error is None:
            truth.append(index[as_text(as_path(one.image).relative_to(folder).parts[0])])
            rows.append(np.array(list(one.probabilities.values()), np.float32))
        else:
            unreadable.append(f"{one.image}: {one.error}")
    logits = np.log(np.maximum(np.stack(rows), 1e-12))  # their softmax gives the probabilities again
    return Rescored(scores(SingleLabel(), "accuracy", logits, np.array(truth)), tuple(unreadable))


def _labels(model: PixelModel, folder: Path) -> list[str]:
    """Names of the class folders. Raises `DataError` when there are none, or others."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give one that holds one folder of images for each class")
    names = sorted(as_text(path.name) for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    unknown = [name for name in names if name not in model.labels]
    if unknown or not names:
        what = f"{unknown[0]!r} in {folder} is no label of the model" if names else f"{folder} holds no class folders"
        raise DataError(f"{what}; there must be folders named as labels, such as {', '.join(model.labels[:3])}")
    return names
