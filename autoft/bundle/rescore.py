"""`rescore`: the score of a bundle on somebody's own labelled images. Runs without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from autoft.bundle.known import KnownImages
from autoft.bundle.onnx_runtime import PixelModel
from autoft.bundle.predict import image_files, predictions
from autoft.data.scan import content_hash
from autoft.errors import DataError, UserError
from autoft.system.files import as_path, as_text
from autoft.system.parallel import ordered_map
from autoft.tasks.single_label import SingleLabel, scores
from autoft.values.bundle import IMAGES
from autoft.values.codec import decode
from autoft.values.dataset import SplitName
from autoft.values.summary import Scores

_READERS: Final = 4


@dataclass(frozen=True)
class Labelled:
    """Labelled images, sorted by what the bundle knows of them.

    `known`: images of the run it came from, by split. `fresh` are new to it. `unsure` may be either: the bundle lists
    a sample of its images only.
    """

    folder: Path
    known: Mapping[SplitName, tuple[Path, ...]]
    fresh: tuple[Path, ...]
    unsure: tuple[Path, ...]

    @property
    def everything(self) -> tuple[Path, ...]:
        """All of them."""
        return tuple(path for paths in self.known.values() for path in paths) + self.fresh + self.unsure

    @property
    def fair(self) -> tuple[Path, ...]:
        """Those that took no part in training the model or in choosing it, as far as can be told; all if none did."""
        unsure = () if any(self.known.values()) else self.unsure
        return self.known["test"] + self.fresh + unsure or self.everything


@dataclass(frozen=True)
class Rescored:
    """The scores on the images that were scored, what the bundle knows of them, and the images that were not scored.

    `unreadable`: those that could not be read, each with the reason. `known` counts, by split, the given images that
    are of the run the model came from, `scored` those of them that were scored, and `fresh` those scored that are new
    to the model. `left_out` counts the images that nobody tried to score.
    """

    scores: Scores
    unreadable: tuple[str, ...]
    known: Mapping[SplitName, int]
    scored: Mapping[SplitName, int]
    fresh: int
    left_out: int


def read_known(bundle: Path) -> KnownImages:
    """The images a bundle knows: of none can it tell when its images.json was left out.

    Raises `UserError` when it is damaged.
    """
    try:
        return decode(KnownImages, (bundle / IMAGES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return KnownImages({}, below="0")
    except (OSError, ValueError) as error:
        raise UserError(f"{bundle / IMAGES} cannot be read: {error}; export the model again") from error


def labelled_images(model: PixelModel, folder: Path, known: KnownImages) -> Labelled:
    """The images in `folder`, which holds one folder of images a class, named as the model's labels.

    Classes may be missing. Raises `DataError` for a folder that is no label, or when there are no images.
    """
    paths = list(image_files([str(folder / as_path(label)) for label in _labels(model, folder)]))
    if not paths:
        raise DataError(f"no images in {folder}; there must be some in its class folders")
    splits: dict[SplitName, list[Path]] = {"train": [], "val": [], "test": []}
    fresh: list[Path] = []
    unsure: list[Path] = []
    for path, digest in zip(paths, ordered_map(_hash, paths, _READERS), strict=True):
        split = known.split_of(digest)
        place = splits[split] if split else fresh if known.may_list(digest) else unsure
        place.append(path)
    return Labelled(folder, {split: tuple(found) for split, found in splits.items()}, tuple(fresh), tuple(unsure))


def rescore(model: PixelModel, labelled: Labelled, chosen: Sequence[Path]) -> Rescored:
    """Scores of the model on the `chosen` among the labelled images. Raises `DataError` when none can be read."""
    index = {label: number for number, label in enumerate(model.labels)}
    truth: list[int] = []
    rows: list[np.ndarray] = []
    unreadable: list[str] = []
    scored: set[Path] = set()
    for one in predictions(model, list(map(str, chosen))):
        path = as_path(one.image)
        if one.error is None:
            truth.append(index[as_text(path.relative_to(labelled.folder).parts[0])])
            rows.append(np.array(list(one.probabilities.values()), np.float32))
            scored.add(path)
        else:
            unreadable.append(f"{one.image}: {one.error}")
    logits = np.log(np.maximum(np.stack(rows), 1e-12))  # their softmax gives the probabilities again
    return Rescored(
        scores(SingleLabel(), "accuracy", logits, np.array(truth)),
        tuple(unreadable),
        {split: len(paths) for split, paths in labelled.known.items()},
        {split: len(scored.intersection(paths)) for split, paths in labelled.known.items()},
        len(scored.intersection(labelled.fresh)),
        len(labelled.everything) - len(chosen),
    )


def _hash(path: Path) -> str:
    """The content hash, or nothing for a file that cannot be read; whoever decodes it says why."""
    try:
        with path.open("rb") as file:
            return content_hash(file)
    except OSError:
        return ""


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
