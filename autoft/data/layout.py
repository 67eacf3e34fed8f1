"""`Layout`: which folders of a tree are classes, which are splits of them, and which are neither.

The rules, in the order they apply:

- A folder that holds nothing but one folder of class folders or of splits stands for that one, as archives unpack.
- A split folder is named for its split, alone or beside what its siblings are named as well: `train` and `test`,
  `Training` and `Test`, `seg_train` and `seg_test`, `training_set` and `test_set`, `train2017` and `val2017`.
- With a training folder that holds class folders, and a validation or test folder or nothing else beside it, the
  folders below the split folders are the classes. What else holds images is left alone: other tools' folders, copies,
  images without labels, and classes that the training folder lacks.
- Otherwise the folders of the first level are the classes, and those below belong to them. One that holds the others
  once more, file by file, is a copy and left alone. Names that may be those of splits are refused.
"""

from __future__ import annotations

import filecmp
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
_FOLDER_NAMES: Final[Mapping[str, SplitName]] = {"trainval": "train", **SPLIT_NAMES}
_SPLIT_WORD: Final = re.compile(
    rf"({'|'.join(sorted(_FOLDER_NAMES, key=len, reverse=True))})(?:set|data|images|imgs)?[abc]?\d*"
)
_BESIDE: Final = frozenset(
    {"clean", "data", "dataset", "folder", "full", "images", "imgs", "my", "new", "raw", "seg", "set", "split"}
)
"""Words beside that of a split in the name of a folder that may be one without another of its kind."""

_GIVE: Final = "give a folder that holds only train, val and test, each with the class folders"

Classes = Mapping[SplitName | None, tuple[Folder, ...]]
_Splits = Mapping[SplitName, Folder]
_Family = Mapping[SplitName, Sequence[Folder]]


@dataclass(frozen=True)
class Layout:
    """The class folders by split, None where there are no split folders; `above` are the folders that hold them.

    `empty` are folders among the class folders that hold no images, by split too. `left_alone` are folders that are not
    used, each with the reason, and `remarks` say what was taken for what where that is not plain.
    """

    classes: Classes
    empty: Classes
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
    train = _inner(walk, splits["train"], ())
    _refuse_unclear(walk, walk.contents(train).folders)
    names = {folder.name for folder in walk.filled(train)}
    unused = [folder for split, folder in splits.items() if split != "train" and not walk.holds_images(folder)]
    inner: dict[SplitName, Folder] = {"train": train}
    for split, folder in splits.items():
        if split != "train" and folder not in unused:
            inner[split] = _inner(walk, folder, names)
    _refuse_lookalikes(folder for above in inner.values() for folder in walk.filled(above))
    beside = [folder for folder in walk.filled(place) if folder not in splits.values()]
    unlabelled = {split for split, above in inner.items() if not _named(walk, above, names)}
    left_alone = (
        *(_left(walk, folder, "beside the split folders") for folder in beside),
        *(DataProblem(folder.path, _no_image(walk, folder)) for folder in unused),
        *(_left(walk, splits[split], _why_unlabelled(walk, inner[split])) for split in inner if split in unlabelled),
        *(
            _left(walk, folder, "of a class that the training folder lacks")
            for split, above in inner.items()
            if split not in unlabelled
            for folder in walk.filled(above)
            if folder.name not in names
        ),
    )
    used = {split: above for split, above in inner.items() if split not in unlabelled}
    classes: Classes = {split: _named(walk, above, names) for split, above in used.items()}
    empty: Classes = {split: _unfilled(walk, above) for split, above in used.items()}
    return Layout(classes, empty, (place, *used.values()), left_alone, remarks)


def _named(walk: Walk, folder: Folder, names: Collection[str]) -> tuple[Folder, ...]:
    """The folders in it with images, and one of these names."""
    return tuple(one for one in walk.filled(folder) if one.name in names)


def _why_unlabelled(walk: Walk, folder: Folder) -> str:
    named = "in folders that no class of the training folder is named as"
    return named if walk.filled(folder) else "without class folders"


def _splits(walk: Walk, folders: Sequence[Folder]) -> _Splits:
    """The split folders among these by split, where they are that beyond doubt; else there are none.

    Raises `DataError` where they are, and there are two of a kind.
    """
    filled = [folder for folder in folders if walk.holds_images(folder)]
    found = []
    for family in _families(walk, folders).values():
        if not any(walk.filled(_inner(walk, folder, ())) for folder in family.get("train", ())):
            continue
        members = [folder for some in family.values() for folder in some]
        further = [folder for split, some in family.items() if split != "train" for folder in some]
        if any(folder in filled for folder in further) or all(folder in members for folder in filled):
            found.append(family)
    if len(found) > 1:
        names = ", ".join(repr(folder.path) for family in found for some in family.values() for folder in some)
        raise DataError(f"several sets of split folders lie in {walk.root}: {names}; {_GIVE}")
    for split, some in found[0].items() if found else ():
        if len(some) > 1:
            both = f"{some[0].path!r} and {some[1].path!r} in {walk.root}"
            raise DataError(f"{both} are both {split} folders; keep one")
    return {split: some[0] for split, some in found[0].items()} if found else {}


def _families(walk: Walk, folders: Sequence[Folder]) -> Mapping[str, _Family]:
    """Folders that are named as splits, by what else is in their names; without empty ones beside others of a split."""
    families: defaultdict[str, defaultdict[SplitName, list[Folder]]] = defaultdict(lambda: defaultdict(list))
    for folder in folders:
        for split, rest in _split_in(folder.name):
            families[rest][split].append(folder)
    return {
        rest: {
            split: [one for one in found[split] if walk.holds_images(one)] or found[split][:1]
            for split in get_args(SplitName)
            if split in found
        }
        for rest, found in families.items()
    }


def _split_in(name: str) -> list[tuple[SplitName, str]]:
    """The split that a name says, and the rest of it; nothing where it says none, or several."""
    folded = name.casefold()
    said = [
        (_FOLDER_NAMES[word[1]], f"{folded[: word.start()]}*{folded[word.end() :]}")
        for part in _WORDS.finditer(folded)
        if (word := _SPLIT_WORD.fullmatch(folded, part.start(), part.end()))
    ]
    return said if len(said) == 1 else []


def _refuse_unclear(walk: Walk, folders: Sequence[Folder]) -> None:
    """Raise `DataError` for folders that are named as splits, or one that is, and may be that or classes."""
    filled = [folder for folder in folders if walk.holds_images(folder)]
    families = _families(walk, filled)
    named = {
        folder: split
        for rest, family in families.items()
        if len(family) > 1 or {*_WORDS.findall(rest)} <= _BESIDE  # and no station beside the word train
        for split, some in family.items()
        for folder in some
    }
    classes = {folder.name for folder in filled if folder not in named}
    for folder in named:
        if shared := [one.name for one in walk.filled(_inner(walk, folder, ())) if one.name in classes]:
            holds = f"the folder {folder.path!r} in {walk.root} holds {shared[0]!r}, which lies beside it too"
            raise DataError(f"{holds}: it may be a split or a class; {_GIVE}, or call it otherwise")
    holding = [folder for folder in named if len(walk.filled(folder)) > 1]
    train = [folder for folder, split in named.items() if split == "train"]
    if train and not set(train) & set(holding) and holding:
        raise DataError(f"the train folder {train[0].path!r} in {walk.root} holds no class folders; {_GIVE}")
    if holding and (train or len(set(named.values())) > 1):
        raise DataError(_may_be_splits(walk, holding, [folder for folder in filled if folder not in holding], train))
    # Classes may be called train and test, among others; hardly all of them, or seg_train and seg_test.
    alike = [*named] if len(named) == len(filled) > 1 else []
    for rest, family in families.items():
        if rest != "*" and len(family) > 1:
            alike = [folder for some in family.values() for folder in some]
    if alike:
        said = ", ".join(repr(folder.path) for folder in alike)
        raise DataError(f"the split folders {said} in {walk.root} hold no class folders; {_GIVE}")


def _may_be_splits(walk: Walk, holding: Sequence[Folder], beside: Sequence[Folder], train: Sequence[Folder]) -> str:
    also = f", and {beside[0].path!r} lies beside it" if beside else ""
    none = "" if train else ", and there is none to train on"
    if len(holding) > 1:
        alike = ", ".join(repr(folder.path) for folder in holding)
        return f"the folders {alike} in {walk.root} look like splits, not classes{also}{none}; {_GIVE}"
    one = f"the folder {holding[0].path!r} in {walk.root} looks like a split, not a class{also}{none}"
    return f"{one}; {_GIVE}, or if it is a class, call it otherwise"


# ---------------------------------------------------------------- classes


def _of_classes(walk: Walk, place: Folder, remarks: tuple[str, ...]) -> Layout:
    filled = walk.filled(place)
    for folder in filled:
        if any(rest == "*" for _, rest in _split_in(folder.name)):
            remarks = (*remarks, f"{as_text(folder.path)!r} is taken for a class, though it is named as a split")
    names = {folder.name for folder in filled}
    copies = [folder for folder in filled if _is_copy(walk, place, folder, names)]
    classes = tuple(folder for folder in filled if folder not in copies)
    _refuse_lookalikes(classes)
    left_alone = tuple(_left(walk, folder, "which lie beside it too") for folder in copies)
    return Layout({None: classes}, {None: _unfilled(walk, place)}, (place,), left_alone, remarks)


def _is_copy(walk: Walk, place: Folder, folder: Folder, names: Collection[str]) -> bool:
    """Whether the folder holds all the others once more, and nothing else."""
    inner = _inner(walk, folder, ())
    held = walk.filled(inner)
    if not 1 < len(held) == len(names) - 1 or {one.name for one in held} != set(names) - {folder.name}:
        return False
    beside = {one.name: one for one in walk.filled(place)}
    return all(_is_same(walk, one, beside[one.name]) for one in held)


def _is_same(walk: Walk, one: Folder, other: Folder) -> bool:
    """Whether two folders hold the same images at the same places."""
    here, there = (
        {path.removeprefix(f"{place.path}/") for path in walk.gathered(place).images} for place in (one, other)
    )
    if here != there:
        return False
    for path in here:
        walk.check()
        if not filecmp.cmp(walk.root / one.path / path, walk.root / other.path / path, shallow=False):
            return False
    return True


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
    """The folder that holds class folders: this one, or the one that is all there is in it, and none of `classes`.

    A folder beside it with images that cannot be used is something too.
    """
    filled = walk.filled(folder)
    if len(filled) != 1 or len(walk.meant(folder)) != 1 or walk.contents(folder).images:
        return folder
    (only,) = filled
    same = only.name.casefold() == folder.name.casefold()
    if only.name in classes or walk.contents(only).images or (_split_in(only.name) and not same):
        return folder
    deeper = _inner(walk, only, classes)
    is_more = same or len(walk.filled(deeper)) > 1 or _splits(walk, walk.contents(deeper).folders)
    return deeper if is_more else folder


def _unfilled(walk: Walk, folder: Folder) -> tuple[Folder, ...]:
    return tuple(one for one in walk.contents(folder).folders if not walk.holds_images(one))


def _no_image(walk: Walk, folder: Folder) -> str:
    lacks = walk.gathered(folder).lacks
    return f"no image in it{f' that can be used: {lacks}' if lacks else ''}"


def _left(walk: Walk, folder: Folder, why: str) -> DataProblem:
    return DataProblem(folder.path, f"{counted(len(walk.gathered(folder).images), 'image')} {why}")
