"""`Layout`: which folders of a tree are classes, which are splits of them, and which are neither.

The rules, in the order they apply:

- A folder that holds nothing but one folder of class folders or of splits stands for that one, as archives unpack.
- A split folder is named for its split, alone or beside what its siblings are named as well: `train` and `test`,
  `Training` and `Test`, `seg_train` and `seg_test`, `training_set` and `test_set`, `train2017` and `val2017`.
- With a training folder that holds class folders, and a validation or test folder or nothing else beside it, the
  folders below the split folders are the classes. What else holds images is left alone: other tools' folders, copies,
  images without labels, and classes that the training folder lacks.
- Otherwise the folders of the first level are the classes, and those below belong to them. One that holds folders of
  the others' names is a copy of the tree, and left alone. Names that may be those of splits are refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from autoft.data.walk import Folder, Walk, reading
from autoft.errors import DataError
from autoft.system.files import as_text
from autoft.system.parallel import never_stop
from autoft.values.counts import counted
from autoft.values.dataset import DataProblem, SplitName

SPLIT_NAMES: Final[Mapping[str, SplitName]] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}

_WORDS: Final = re.compile(r"[^\W_]+")
_SPLIT_WORD: Final = re.compile(
    rf"({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(?:set|data|images|imgs)?\d*"
)
_GIVE: Final = "give a folder that holds only train, val and test, each with the class folders"

Classes = Mapping[SplitName | None, tuple[Folder, ...]]
_Splits = Mapping[SplitName, Folder]


@dataclass(frozen=True)
class Layout:
    """The class folders by split, None where there are no split folders; `above` are the folders that hold them.

    Of class folders of the training split, or of no split, some may hold no images. `left_alone` are folders that are
    not used, each with the reason, and `remarks` say what was taken for what where that is not plain.
    """

    classes: Classes
    above: tuple[Folder, ...]
    left_alone: tuple[DataProblem, ...] = ()
    remarks: tuple[str, ...] = ()


def read_layout(root: Path) -> Layout:
    """That of the folder `root`. Raises `DataError` when it cannot be read or is refused."""
    with reading(root, never_stop) as walk:
        return layout_of(walk)


def layout_of(walk: Walk) -> Layout:
    """That of the folder that is walked. Raises `DataError` for what may be splits or classes."""
    place = _inner(walk, walk.top, ())
    remarks = (f"the folders are those in {as_text(place.path)!r}",) if place != walk.top else ()
    folders = walk.contents(place).folders
    if splits := _splits(walk, folders):
        return _of_splits(walk, place, splits, remarks)
    _refuse_unclear(walk, folders)
    return _of_classes(walk, place, remarks)


# ---------------------------------------------------------------- splits


def _of_splits(walk: Walk, place: Folder, splits: _Splits, remarks: tuple[str, ...]) -> Layout:
    if {split: folder.name.casefold() for split, folder in splits.items()} != {split: split for split in splits}:
        taken = ", ".join(f"{as_text(folder.path)!r} is {split}" for split, folder in splits.items())
        remarks = (*remarks, f"split folders: {taken}")
    inner = {"train": _inner(walk, splits["train"], ())}
    _refuse_unclear(walk, walk.contents(inner["train"]).folders)
    names = {folder.name for folder in walk.filled(inner["train"])}
    left_alone = [
        _left(walk, folder, "beside the split folders")
        for folder in walk.filled(place)
        if folder not in splits.values()
    ]
    classes: dict[SplitName | None, tuple[Folder, ...]] = {"train": walk.contents(inner["train"]).folders}
    empty = [folder for folder in splits.values() if not walk.holds_images(folder)]
    left_alone += [DataProblem(folder.path, "no image in it") for folder in empty]
    further = {split: folder for split, folder in splits.items() if split != "train" and folder not in empty}
    for split, folder in further.items():
        inner[split] = _inner(walk, folder, names)
        classes[split] = walk.filled(inner[split])
    _refuse_lookalikes(folder for folders in classes.values() for folder in folders)
    for split, folder in further.items():
        unknown = [one for one in classes[split] if one.name not in names]
        classes[split] = tuple(one for one in classes[split] if one.name in names)
        if not classes[split]:
            why = "in folders that no class of the training folder is named as" if unknown else "without class folders"
            left_alone.append(_left(walk, folder, why))
            del classes[split], inner[split]
        else:
            left_alone += [_left(walk, one, "of a class that the training folder lacks") for one in unknown]
    return Layout(classes, (place, *inner.values()), tuple(left_alone), remarks)


def _splits(walk: Walk, folders: Sequence[Folder]) -> _Splits:
    """The split folders among these by split, where they are that beyond doubt; else there are none."""
    filled = [folder for folder in folders if walk.holds_images(folder)]
    found = []
    for family in _families(walk, folders).values():
        if "train" not in family or not walk.filled(_inner(walk, family["train"], ())):
            continue
        others = [folder for folder in filled if folder not in family.values()]
        if any(walk.holds_images(folder) for split, folder in family.items() if split != "train") or not others:
            found.append(family)
    if len(found) > 1:
        names = ", ".join(repr(folder.name) for family in found for folder in family.values())
        raise DataError(f"several sets of split folders lie in {walk.root}: {names}; {_GIVE}")
    return found[0] if found else {}


def _families(walk: Walk, folders: Sequence[Folder]) -> Mapping[str, _Splits]:
    """Folders that are named as splits, by what else is in their names. Raises `DataError` for two of one split."""
    families: defaultdict[str, dict[SplitName, Folder]] = defaultdict(dict)
    for folder in folders:
        for split, rest in _split_in(folder.name):
            before = families[rest].get(split)
            if before is None or not walk.holds_images(before):
                families[rest][split] = folder
            elif walk.holds_images(folder):
                both = f"{before.name!r} and {folder.name!r} in {walk.root}"
                raise DataError(f"{both} are both {split} folders; keep one")
    in_order = get_args(SplitName)
    return {rest: {split: found[split] for split in in_order if split in found} for rest, found in families.items()}


def _split_in(name: str) -> list[tuple[SplitName, str]]:
    """The split that a name says, and the rest of it; nothing where it says none, or several."""
    folded = name.casefold()
    said = [
        (SPLIT_NAMES[word[1]], f"{folded[: word.start(1)]}*{folded[word.end(1) :]}")
        for part in _WORDS.finditer(folded)
        if (word := _SPLIT_WORD.fullmatch(folded, part.start(), part.end()))
    ]
    return said if len(said) == 1 else []


def _refuse_unclear(walk: Walk, folders: Sequence[Folder]) -> None:
    """Raise `DataError` for folders that are named as splits, or one that is, and may be that or classes."""
    filled = [folder for folder in folders if walk.holds_images(folder)]
    named = {folder: split for folder in filled for split, _ in _split_in(folder.name)}
    holding = [folder for folder in named if len(walk.filled(folder)) > 1]
    train = [folder for folder, split in named.items() if split == "train"]
    if train and any(folder not in train for folder in holding):
        raise DataError(f"the train folder {train[0].path!r} in {walk.root} holds no class folders; {_GIVE}")
    if holding and (train or len(set(named.values())) > 1):
        beside = next((folder for folder in filled if folder not in holding), None)
        also = f", and {beside.path!r} lies beside it" if beside else ""
        many = len(holding) > 1
        alike = ", ".join(repr(folder.path) for folder in holding)
        look = "look like splits, not classes" if many else "looks like a split, not a class"
        which = f"the folder{'s' * many} {alike} in {walk.root} {look}{also}"
        raise DataError(f"{which}; {_GIVE}" if train else f"{which}, and there is none to train on; {_GIVE}")
    for rest, family in _families(walk, filled).items():
        # Classes may be called train and test, among others; hardly seg_train and seg_test.
        if len(family) > 1 and (rest != "*" or len(family) == len(filled)):
            alike = ", ".join(repr(folder.path) for folder in family.values())
            raise DataError(f"the split folders {alike} in {walk.root} hold no class folders; {_GIVE}")


# ---------------------------------------------------------------- classes


def _of_classes(walk: Walk, place: Folder, remarks: tuple[str, ...]) -> Layout:
    folders, filled = walk.contents(place).folders, walk.filled(place)
    copies = [folder for folder in filled if _is_copy(walk, folder, {one.name for one in filled} - {folder.name})]
    classes = tuple(folder for folder in folders if folder not in copies)
    _refuse_lookalikes(classes)
    left_alone = tuple(_left(walk, folder, "in folders that are named as those beside it") for folder in copies)
    return Layout({None: classes}, (place,), left_alone, remarks)


def _is_copy(walk: Walk, folder: Folder, names: Collection[str]) -> bool:
    """Whether the folder, or the splits in it, hold folders of all these names."""
    inner = _inner(walk, folder, ())
    train = _splits(walk, walk.contents(inner).folders).get("train", inner)
    return len(names) > 1 and {one.name for one in walk.filled(train)} >= set(names)


def _refuse_lookalikes(folders: Iterable[Folder]) -> None:
    """Raise `DataError` for names that a person or another file system takes for one."""
    spellings: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for folder in folders:
        spellings[unicodedata.normalize("NFC", folder.name).casefold().strip()].setdefault(folder.name, folder.path)
    for same in spellings.values():
        if len(same) > 1:
            shown = " and ".join(ascii(path) for path in sorted(same.values()))
            hint = "merge them, or give them one name"
            raise DataError(f"the class folders {shown} differ only in case, spaces or accents' encoding; {hint}")


# ---------------------------------------------------------------- both


def _inner(walk: Walk, folder: Folder, classes: Collection[str]) -> Folder:
    """The folder that holds class folders: this one, or the one that is all there is in it, and none of `classes`."""
    filled = walk.filled(folder)
    if len(filled) != 1 or walk.contents(folder).images:
        return folder
    (only,) = filled
    same = only.name.casefold() == folder.name.casefold()
    if only.name in classes or walk.contents(only).images or (_split_in(only.name) and not same):
        return folder
    deeper = _inner(walk, only, classes)
    return deeper if same or len(walk.filled(deeper)) > 1 else folder


def _left(walk: Walk, folder: Folder, why: str) -> DataProblem:
    return DataProblem(folder.path, f"{counted(walk.count(folder), 'image')} {why}")
