"""The image-folder format: one folder a class, flat or inside train, val and test folders, as `layout` finds them.

Classes stand in natural order: `1, 2, 10`, capitals like small letters. Names are given as `files.as_text` writes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from autoft.data.layout import Layout, layout_of
from autoft.data.walk import Folder, Walk, hidden_folders, reading, subfolder_names, suffix_of
from autoft.errors import DataError
from autoft.media.image.decode import other_image
from autoft.parts.base import Reader
from autoft.system.files import as_text
from autoft.system.natural import natural_key
from autoft.system.parallel import Check, never_stop
from autoft.values.counts import counted
from autoft.values.dataset import DataProblem, Entry, Listing, SplitName

_Found = tuple[SplitName | None, Folder, list[str]]


class ImageFolderReader(Reader):
    """Reads one folder a class, flat or with splits; see the rules at the top of `layout`."""

    name = "image_folder"
    summary = "one folder a class, flat or inside train, val and test folders"

    def __init__(self, check: Check = never_stop) -> None:
        self._check = check

    def read(self, root: Path) -> Listing:
        """The classes and image files under `root`. Raises `DataError` with one line on what is wrong."""
        with reading(root, self._check) as walk:
            return _in_text(_read(walk))


def _read(walk: Walk) -> Listing:
    layout = layout_of(walk)
    for folder in layout.above:
        walk.collect(folder)
    images = walk.images([folder for folders in layout.classes.values() for folder in folders])
    found = [
        (split, folder, paths)
        for split, folders in layout.classes.items()
        for folder in folders
        if (paths := images.get(folder.path))
    ]
    if not found:
        raise _no_images(walk, layout)
    left_alone = (*layout.left_alone, *_left_empty(walk, layout))
    classes = tuple(sorted({folder.name for _, folder, _ in found}, key=lambda name: natural_key(as_text(name))))
    entries = tuple(Entry(path, folder.name, split) for split, folder, paths in found for path in paths)
    _refuse_one(classes, found, walk)
    return Listing(str(walk.root), classes, entries, walk.all_problems(), left_alone=left_alone, remarks=layout.remarks)


def _no_images(walk: Walk, layout: Layout) -> DataError:
    for folders in layout.empty.values():
        for folder in folders:
            walk.report(walk.gathered(folder))
    beside = f"; {len(walk.stray)} lie beside the class folders" if walk.stray else ""
    if hidden := hidden_folders(walk.root):
        beside += f"; hidden folders such as {hidden[0]!r} are left out"
    hint = "put the images of each class into a folder of its own"
    if walk.vanished:
        beside += f"; {len(walk.vanished)} vanished while being listed, such as {next(iter(walk.vanished))!r}"
    if others := walk.other_types():
        beside = f": {others[0].reason}"
        to_convert = "convert them to JPEG or PNG, or give them the extension of what they are"
        hint = "" if other_image(suffix_of(others[0].path)) else to_convert
    return DataError("; ".join(filter(None, [f"no images in class folders in {walk.root}{beside}", hint])))


def _left_empty(walk: Walk, layout: Layout) -> Iterator[DataProblem]:
    """Folders among the class folders that hold no image, and are none; of a given validation or test split a problem.

    Raises `DataError` for one to train on whose images cannot be used: the class would be gone without a word.
    """
    for split, folder in ((split, folder) for split, folders in layout.empty.items() for folder in folders):
        inside = walk.gathered(folder)
        if split in ("val", "test"):
            walk.report(inside)
        elif lacks := inside.lacks:
            where = f"the class folder {folder.path!r} in {walk.root}"
            raise DataError(f"{where} has no images ({lacks}); fill or remove it")
        elif folder.path not in walk.vanished:
            others = f", but {counted(len(inside.others), 'other file')}" if inside.others else ""
            yield DataProblem(folder.path, f"no image in it{others}: it is no class")


def _refuse_one(classes: Sequence[str], found: Sequence[_Found], walk: Walk) -> None:
    if len(classes) > 1:
        return
    split, folder, _ = found[0]
    nested = split is None and len(list(subfolder_names(walk.root / folder.path))) > 1
    hint = f"; if the folders in it are the classes, give {walk.root / folder.path}" if nested else ""
    count = counted(sum(len(paths) for _, _, paths in found), "image")
    raise DataError(
        f"only one class, {classes[0]!r} with {count}, in {walk.root}; a classifier needs two or more{hint}"
    )


def _in_text(listing: Listing) -> Listing:
    return Listing(
        as_text(listing.root),
        tuple(map(as_text, listing.classes)),
        tuple(Entry(as_text(entry.path), as_text(entry.label), entry.split) for entry in listing.entries),
        tuple(_problems_in_text(listing.problems)),
        left_alone=tuple(_problems_in_text(listing.left_alone)),
        remarks=listing.remarks,
    )


def _problems_in_text(problems: Iterable[DataProblem]) -> Iterator[DataProblem]:
    return (DataProblem(as_text(problem.path), as_text(problem.reason)) for problem in problems)
