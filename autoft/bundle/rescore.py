"""`rescore`: the scores of a bundle on somebody's own labelled images. Runs without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, get_args

import numpy as np

from autoft.bundle.known import KnownImages
from autoft.bundle.onnx_runtime import PixelModel
from autoft.bundle.predict import answered, image_files
from autoft.data.layout import SPLIT_NAMES, read_layout
from autoft.data.manifest import with_columns
from autoft.data.meaning import contradictions, meanings
from autoft.data.readers import metadata_of, read_labelled
from autoft.data.scan import content_hash
from autoft.data.walk import subfolder_names
from autoft.errors import DataError, UserError
from autoft.parts.base import Task
from autoft.system.files import as_path, as_text
from autoft.system.parallel import ordered_map
from autoft.values.bundle import IMAGES
from autoft.values.codec import decode
from autoft.values.dataset import Listing, SplitName, TrainOn
from autoft.values.summary import Scores

_READERS: Final = 4
_SPLITS: Final[Sequence[SplitName]] = get_args(SplitName)
_SHOWN: Final = 3


@dataclass(frozen=True)
class LabelledImage:
    """An image file, its label and its split if there is one, as the names of folders or a manifest's cells say."""

    path: Path
    label: str
    split: SplitName | None = None


@dataclass(frozen=True)
class Labelled:
    """Labelled images, sorted by what the bundle knows of them.

    `known`: images of the run it came from, by split. `fresh` are new to it. `unsure` may be either: the bundle lists
    a sample of its images only. `train_on` are the splits that the model has trained on. Each image is there once:
    `copies` counts the files that hold one which another file holds, and counts for. One whose files have several
    labels is not there, as nobody can tell which holds: `contradictory` has its files with their labels, a text each.
    """

    known: Mapping[SplitName, tuple[LabelledImage, ...]]
    fresh: tuple[LabelledImage, ...]
    unsure: tuple[LabelledImage, ...]
    train_on: TrainOn = "train"
    copies: int = 0
    contradictory: tuple[str, ...] = ()

    @property
    def everything(self) -> tuple[LabelledImage, ...]:
        """All of them."""
        return tuple(image for images in self.known.values() for image in images) + self.fresh + self.unsure

    @property
    def fair(self) -> tuple[LabelledImage, ...]:
        """Those that took no part in training the model or in choosing it, as far as can be told; all if none did.

        Where the bundle tells nothing of any image, those are left out that lie beside a test split.
        """
        test = tuple(image for image in self.unsure if image.split == "test")
        unsure = () if any(self.known.values()) else test or self.unsure
        return self.known["test"] + self.fresh + unsure or self.everything


@dataclass(frozen=True)
class Rescored:
    """The scores on the images that were scored, what the bundle knows of them, and the images that were not scored.

    `unreadable`: those that could not be read, each with the reason. `known` counts, by split, the given images that
    are of the run the model came from, `scored` those of them that were scored, and `fresh` those scored that are new
    to the model. `left_out` counts the images that nobody tried to score. `train_on` are the splits that the model has
    trained on, or on a part of; the validation split scored it in any case. `unsure` counts those scored that may be of
    any split. `copies` of other files are in none of these counts, and neither are the images that several labels are
    given for: `contradictory` names the files and labels of each.
    """

    scores: Scores
    unreadable: tuple[str, ...]
    known: Mapping[SplitName, int]
    scored: Mapping[SplitName, int]
    fresh: int
    left_out: int
    train_on: TrainOn = "train"
    unsure: int = 0
    copies: int = 0
    contradictory: tuple[str, ...] = ()


def read_known(bundle: Path, train_on: TrainOn = "train") -> KnownImages:
    """The images a bundle knows: of none can it tell when its images.json was left out.

    `train_on` is what its model says for that case. Raises `UserError` when it is damaged.
    """
    try:
        return decode(KnownImages, (bundle / IMAGES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return KnownImages({}, below="0", train_on=train_on)
    except (OSError, ValueError) as error:
        raise UserError(f"{bundle / IMAGES} cannot be read: {error}; export the model again") from error


@dataclass(frozen=True)
class Source:
    """Labelled images, and what a manifest names that cannot be scored, each with the reason.

    `notes` are what else it says and is not used: further columns, and lines that contradict an earlier one.
    """

    images: tuple[LabelledImage, ...]
    unreadable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_source(model: PixelModel, path: Path) -> Source:
    """The images of a manifest, or of a folder that holds one folder of images a label, named as it.

    These may lie in split folders, as a search takes them. Labels may be missing; numbers are found by the names of
    their columns. Raises `DataError` for a label that the model does not know, a column that is not there, or when
    there are no images.
    """
    by_folders = path.is_dir() and metadata_of(path) is None
    return _of_folder(model, path) if by_folders else _of_manifest(model, path)


def _of_manifest(model: PixelModel, path: Path) -> Source:
    everything = read_labelled(path)
    listing = _by_column(model, everything) if model.form.by_column else everything
    for entry in listing.entries:
        if problem := model.form.problem(entry.label, model.targets):
            raise DataError(f"{path}: {entry.path}: {problem}; the model knows {_some(model.labels)}")
    root, task = as_path(listing.root), task_of(model)
    asked = {name.casefold() for name in listing.columns}
    further = [name for name in everything.columns if name.casefold() not in asked]
    notes = [f"{path}: the column {name!r} is not used, as the model says nothing of it" for name in further]
    return Source(
        images=tuple(LabelledImage(root / as_path(entry.path), entry.label, entry.split) for entry in listing.entries),
        unreadable=tuple(f"{problem.path}: {problem.reason}" for problem in listing.problems),
        notes=(*notes, *(f"{problem.path}: {problem.reason}" for problem in contradictions(task, listing))),
    )


def task_of(model: PixelModel) -> Task:
    """What the model predicts, bound to its targets."""
    return model.form.task(model.targets.task).on(model.targets)


def _by_column(model: PixelModel, everything: Listing) -> Listing:
    try:
        return with_columns(everything, model.labels)
    except DataError as missing:
        raise DataError(f"{missing}{model.form.of_plugin(model.targets)}") from missing


def _of_folder(model: PixelModel, source: Path) -> Source:
    folders, notes = _class_folders(model, source)
    found = [
        LabelledImage(path, PurePosixPath(folder).name, split)
        for split, folder in folders
        for path in image_files([str(source / as_path(folder))])
    ]
    if not found:
        raise DataError(f"no images in {source}; there must be some in its class folders")
    return Source(tuple(found), notes=notes)


def labelled_images(images: Sequence[LabelledImage], known: KnownImages, task: Task) -> Labelled:
    """The images, sorted by what the bundle knows of them; `task`, of the model's targets, says what labels mean."""
    splits: dict[SplitName, list[LabelledImage]] = {"train": [], "val": [], "test": []}
    fresh: list[LabelledImage] = []
    unsure: list[LabelledImage] = []
    same: dict[tuple[str, Path | None], list[LabelledImage]] = {}
    digests = ordered_map(_hash, [image.path for image in images], _READERS)
    for image, digest in zip(images, digests, strict=True):
        same.setdefault((digest, None if digest else image.path), []).append(image)
    meaning = meanings(task, (file.label for files in same.values() if len(files) > 1 for file in files))
    contradictory: list[str] = []
    copies = 0
    for (digest, _), files in same.items():
        if len({meaning.get(file.label) for file in files}) > 1:
            contradictory.append(", ".join(f"{as_text(file.path)} ({file.label})" for file in files))
            continue
        split = known.split_of(digest)
        place = splits[split] if split else fresh if known.may_list(digest) else unsure
        place.append(_counting(files))
        copies += len(files) - 1
    sorted_out = {split: tuple(found) for split, found in splits.items()}
    return Labelled(sorted_out, tuple(fresh), tuple(unsure), known.train_on, copies, tuple(contradictory))


def _counting(files: Sequence[LabelledImage]) -> LabelledImage:
    """Of files that hold one image that which counts: as in a search one of the test split, or else the first."""
    return max(files, key=lambda file: _SPLITS.index(file.split) if file.split else -1)


def rescore(
    model: PixelModel, labelled: Labelled, chosen: Sequence[LabelledImage], unreadable: tuple[str, ...] = ()
) -> Rescored:
    """Scores of the model on the `chosen` among the labelled images. Raises `DataError` when none can be read.

    `unreadable` are others of which that is known already.
    """
    if not chosen and labelled.contradictory:
        torn = labelled.contradictory[0]
        raise DataError(f"every image there has several labels, such as {torn}; leave each under one of them only")
    pairs = list(zip(chosen, answered(model, [image.path for image in chosen]), strict=True))
    scored = [image for image, one in pairs if one.answers is not None]
    answers = np.stack([one.answers for _, one in pairs if one.answers is not None])
    where = set(scored)
    return Rescored(
        model.form.scores(answers, [image.label for image in scored], model.facts),
        (*unreadable, *(f"{one.image}: {one.error}" for _, one in pairs if one.answers is None)),
        {split: len(images) for split, images in labelled.known.items()},
        {split: len(where.intersection(images)) for split, images in labelled.known.items()},
        len(where.intersection(labelled.fresh)),
        len(labelled.everything) - len(chosen),
        labelled.train_on,
        len(where.intersection(labelled.unsure)),
        labelled.copies,
        labelled.contradictory,
    )


def _hash(path: Path) -> str:
    """The content hash, or nothing for a file that cannot be read; whoever decodes it says why."""
    try:
        with path.open("rb") as file:
            return content_hash(file)
    except OSError:
        return ""


def _class_folders(model: PixelModel, source: Path) -> tuple[list[tuple[SplitName | None, str]], tuple[str, ...]]:
    """Paths below `source` of the class folders, each with its split, and a line for each folder that is left alone.

    All folders there, where all are named as labels, else what a search would take. Raises `DataError` when there are
    none, or others.
    """
    names = _subfolders(source)
    strangers = [name for name in names if model.form.problem(name, model.targets)]
    if not names:
        raise DataError(f"{source} holds no class folders; {_expected(model)}")
    if not strangers:
        return [(None, name) for name in names], ()
    if all(name.casefold() in SPLIT_NAMES and SPLIT_NAMES[name.casefold()] != "train" for name in strangers):
        problem, place = model.form.problem(strangers[0], model.targets), source / as_path(strangers[0])
        raise DataError(f"{source}: {problem}, and there are no split folders without train; give {place} itself")
    layout = read_layout(source)
    found = [(split, as_text(one.path)) for split, folders in layout.classes.items() for one in folders]
    for _, path in found:
        if problem := model.form.problem(PurePosixPath(path).name, model.targets):
            raise DataError(f"{source / as_path(path)}: {problem}; {_expected(model)}")
    return found, tuple(f"{as_text(one.path)}: {one.reason}" for one in layout.left_alone)


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(map(as_text, subfolder_names(folder)))
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}; look at its permissions") from error


def _expected(model: PixelModel) -> str:
    return f"there must be folders named as labels, of which it knows {_some(model.labels)}"


def _some(labels: Sequence[str]) -> str:
    rest = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return ", ".join(labels[:_SHOWN]) + rest
