"""The image-folder format: one folder a class, flat or inside train, val and test folders.

The rules, in the order they apply:

- Hidden names (leading dot), `__MACOSX`, `@eaDir`, `Thumbs.db` and `desktop.ini` do not exist.
- With a train folder, and no image outside split folders, the folders below the split folders are the classes;
  otherwise the first level is. Folders below a class belong to the class.
- Folders that look like splits but are not named so (seg_train, seg_test) are refused.
- Classes stand in natural order: `1, 2, 10`, capitals like small letters.
- A file is an image if Pillow decodes its extension; whether the content agrees shows when it is decoded.
- What vanishes while it is listed does not exist; a line says how much. The system's own folders are refused.
- A folder counts once however many links lead to it; real folders come before links.
- Names are given as `files.as_text` writes them.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from autoft.errors import DataError
from autoft.media.image.decode import readable_extensions
from autoft.parts.base import Reader
from autoft.system.files import as_text
from autoft.system.natural import natural_key
from autoft.system.parallel import Check, never_stop
from autoft.values.counts import counted
from autoft.values.dataset import DataProblem, Entry, Listing, SplitName

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
MAX_DEPTH: Final = 32
"""Levels of folders below the data folder that are searched."""

_IGNORED: Final = frozenset({"__macosx", "@eadir", "thumbs.db", "desktop.ini"})
_PASSING: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV}
)
_SYSTEM_KINDS: Final = frozenset({"proc", "sysfs"})
_WORDS: Final = re.compile(r"[^\W_]+")


class ImageFolderReader(Reader):
    """Reads one folder a class, flat or with splits; see the rules at the top of the module."""

    name = "image_folder"
    summary = "one folder a class, flat or inside train, val and test folders"

    def __init__(self, check: Check = never_stop) -> None:
        self._check = check

    def read(self, root: Path) -> Listing:
        """The classes and image files under `root`. Raises `DataError` with one line on what is wrong."""
        with _reading(walk := _Walk(_checked_root(root), self._check)):
            return _in_text(self._read(walk))

    @staticmethod
    def _read(walk: _Walk) -> Listing:
        top = walk.subfolders(_Folder("", 0))
        splits = _split_folders(top, walk)
        if not splits:
            _refuse_unclear_splits(top, walk)
        class_folders = {name: walk.subfolders(folder) for name, folder in splits.items()} if splits else {None: top}
        _refuse_lookalikes(folder for folders in class_folders.values() for folder in folders)
        claimed = [(name, folder) for name, folders in class_folders.items() for folder in walk.claim(folders)]
        images = walk.images([folder for _, folder in claimed])
        found = [(name, folder, images[folder.path]) for name, folder in claimed if folder.path in images]
        _refuse_empty(found, walk)
        classes = _classes(found)
        entries = _entries(found, classes)
        _refuse_one(classes, entries, walk)
        return Listing(str(walk.root), classes, entries, walk.all_problems())


def split_folders(root: Path) -> Mapping[SplitName, str]:
    """The names of the split folders in `root` by split, where the reader takes them so; else there are none.

    Raises `DataError` when `root` cannot be read, and for split folders that the reader refuses.
    """
    with _reading(walk := _Walk(_checked_root(root), never_stop)):
        found = _split_folders(walk.subfolders(_Folder("", 0)), walk)
    return {split: as_text(folder.name) for split, folder in found.items() if split}


@contextmanager
def _reading(walk: _Walk) -> Iterator[None]:
    """Make what the file system raises in the block a `DataError`."""
    try:
        yield
    except OSError as error:
        path = Path(error.filename or walk.root)
        raise DataError(f"{path} cannot be read: {_cause(error)}; mend that, and start again") from error


# ---------------------------------------------------------------- walking


@dataclass(frozen=True)
class _Folder:
    """A folder by its posix path relative to the root, and its depth below it."""

    path: str
    depth: int
    linked: bool = False

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    def child(self, entry: os.DirEntry[str]) -> _Folder:
        return _Folder(_join(self.path, entry.name), self.depth + 1, entry.is_symlink())


@dataclass(frozen=True)
class _Contents:
    """What lies in one folder: visible subfolders and image paths, each in natural order."""

    folders: tuple[_Folder, ...]
    images: tuple[str, ...]


@dataclass
class _Walk:
    """One pass over a data folder: which folders were seen, and every file that cannot be used."""

    root: Path
    check: Check
    problems: list[DataProblem] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)
    vanished: dict[str, None] = field(default_factory=dict)  # a set that keeps its order

    def __post_init__(self) -> None:
        self._other_types: defaultdict[str, list[str]] = defaultdict(list)
        # A link to the root or above it would bring in the whole folder again, and its neighbours.
        self._seen = {_identity(folder) for folder in (self.root, *self.root.parents)}

    def subfolders(self, folder: _Folder) -> tuple[_Folder, ...]:
        """The folders in `folder` that can hold a class; image files beside them have no class."""
        contents = self._scan(folder)
        self.stray.extend(contents.images)
        return contents.folders

    def claim(self, folders: Sequence[_Folder]) -> list[_Folder]:
        """The class folders, marked as seen; links to the root or above are left out. Raises `DataError` on twins."""
        claimed = []
        for folder in folders:
            if self._first_visit(folder):
                claimed.append(folder)
            elif folder.path not in self.vanished and not self._is_above(folder):
                raise DataError(f"the class folder {folder.path!r} in {self.root} is a link to another; remove one")
        return claimed

    def images(self, folders: Sequence[_Folder]) -> Mapping[str, list[str]]:
        """Folder path to the image files in and below it, without folders that have vanished.

        Links wait until all real folders are done.
        """
        found: dict[str, list[str]] = {folder.path: [] for folder in folders}
        waiting = [(folder, folder.path) for folder in reversed(folders)]
        links: list[tuple[_Folder, str]] = []
        while waiting or links:
            folder, owner = waiting.pop() if waiting else links.pop()
            is_class = folder.path == owner
            if not is_class and not self._first_visit(folder):
                continue
            contents = self._scan(folder)
            found[owner].extend(contents.images)
            waiting.extend((child, owner) for child in reversed(contents.folders) if not child.linked)
            links[:0] = [(child, owner) for child in reversed(contents.folders) if child.linked]
        self.vanished |= {
            path: None for path, images in found.items() if not images and not (self.root / path).exists()
        }
        return {path: images for path, images in found.items() if path not in self.vanished}

    def has_folders(self, folder: _Folder) -> bool:
        """Whether there are visible folders in it."""
        try:
            return any(subfolder_names(self.root / folder.path))
        except FileNotFoundError:
            self.vanished[folder.path] = None
            return False

    def all_problems(self) -> tuple[DataProblem, ...]:
        """Every file that is not used: single ones by path, other file types and strays once with their count."""
        several = self.other_types()
        if self.stray:
            files = counted(len(self.stray), "image")
            several.append(DataProblem(self.stray[0], f"{files} outside any class folder, e.g. {self.stray[0]}"))
        if self.vanished:
            first, count = next(iter(self.vanished)), len(self.vanished)
            what = "files and folders" if count > 1 else "file or folder"
            several.append(DataProblem(first, f"{count} {what} vanished while being listed, e.g. {first}"))
        return (*sorted(self.problems, key=lambda problem: problem.path), *several)

    def other_types(self) -> list[DataProblem]:
        """Files that are no images by their extensions, once for each with their count; the most frequent first."""
        frequent = sorted(self._other_types.items(), key=lambda found: (-len(found[1]), found[0]))
        return [self._type_problem(suffix, paths) for suffix, paths in frequent]

    @staticmethod
    def _type_problem(suffix: str, paths: list[str]) -> DataProblem:
        kind = suffix or "extensionless"
        return DataProblem(paths[0], f"{counted(len(paths), f'{kind} file')}, not an image type, e.g. {paths[0]}")

    def _first_visit(self, folder: _Folder) -> bool:
        try:
            identity = _identity(self.root / folder.path)
        except FileNotFoundError:
            self.vanished[folder.path] = None
            return False
        fresh = identity not in self._seen
        self._seen.add(identity)
        return fresh

    def _is_above(self, folder: _Folder) -> bool:
        return self.root.is_relative_to((self.root / folder.path).resolve())

    def _scan(self, folder: _Folder) -> _Contents:
        folders: list[_Folder] = []
        images: list[str] = []
        for entry in self._visible(folder):
            self.check()  # again, as each is looked at on the disk
            if _is_folder(entry):
                folders.append(folder.child(entry))
            elif self._is_image(entry, path := _join(folder.path, entry.name)):
                images.append(path)
        if folder.depth >= MAX_DEPTH and folders:
            self.problems.append(DataProblem(folder.path, f"more than {MAX_DEPTH} folders deep, not searched further"))
            folders = []
        return _Contents(tuple(folders), tuple(images))

    def _visible(self, folder: _Folder) -> list[os.DirEntry[str]]:
        shown = []
        try:
            with os.scandir(self.root / folder.path) as entries:
                for entry in entries:
                    self.check()
                    if not _is_hidden(entry.name):
                        shown.append(entry)
        except FileNotFoundError:
            self.vanished[folder.path] = None
            return []
        except OSError as error:
            self.problems.append(DataProblem(folder.path, lasting_cause(error, self.root / folder.path)))
            return []
        return sorted(shown, key=lambda entry: natural_key(entry.name))

    def _is_image(self, entry: os.DirEntry[str], path: str) -> bool:
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  a Path per file is slow at 100,000 files
        if suffix not in readable_extensions():
            self._other_types[suffix].append(path)
            return False
        try:
            status = entry.stat()
        except FileNotFoundError:
            if entry.is_symlink():
                self.problems.append(DataProblem(path, "broken link"))
            else:
                self.vanished[path] = None
            return False
        except OSError as error:
            self.problems.append(DataProblem(path, lasting_cause(error, self.root / path)))
            return False
        if not stat.S_ISREG(status.st_mode):  # a named pipe would block the reader for ever
            self.problems.append(DataProblem(path, "not a regular file"))
        elif status.st_size == 0:
            self.problems.append(DataProblem(path, "empty file"))
        return stat.S_ISREG(status.st_mode) and status.st_size > 0


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _IGNORED


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that loops onto itself
        return False


def _join(parent: str, name: str) -> str:
    return f"{parent}/{name}" if parent else name


def lasting_cause(error: OSError, path: Path) -> str:
    """Why a file or folder cannot be used. Raises `DataError` when that lies with the machine and may pass.

    What is left out must be left out the next time too; and too many open files would empty a whole folder.
    """
    if error.errno in _PASSING:
        raise DataError(f"{path} cannot be read: {_cause(error)}; mend that, and start again") from error
    return _cause(error)


def _cause(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


# ---------------------------------------------------------------- layout


def _checked_root(root: Path) -> Path:
    try:
        resolved = root.expanduser().resolve(strict=True)
        with os.scandir(resolved):
            _refuse_system(root, resolved)
            return resolved
    except FileNotFoundError as error:
        raise DataError(f"{root} does not exist; give the folder that holds the class folders") from error
    except NotADirectoryError as error:
        raise DataError(f"{root} is a file; give the folder that holds the class folders") from error
    except (OSError, RuntimeError) as error:
        raise DataError(f"{root} cannot be read: {error}") from error


def _refuse_system(root: Path, resolved: Path) -> None:
    """Raise `DataError` for the root of the file system, and where the system shows itself as files."""
    mounts = _system_mounts()
    wrong = [f"the system's {mount} lies in it" for mount in mounts if mount.is_relative_to(resolved)]
    wrong += [f"it lies in the system's {mount}" for mount in mounts if resolved.is_relative_to(mount)]
    if resolved == resolved.parent:
        wrong.insert(0, "it is the root of the file system")
    if wrong:
        raise DataError(f"{root} is no data folder: {wrong[0]}; give the folder that holds the class folders")


def _system_mounts() -> list[Path]:
    """Where processes and devices are shown as files; none on systems that do not say."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [Path(place) for _, place, kind, *_ in map(str.split, lines) if kind in _SYSTEM_KINDS]


def _split_folders(top: Sequence[_Folder], walk: _Walk) -> Mapping[SplitName | None, _Folder]:
    """The split folders by split; empty when `top` are class folders."""
    root = walk.root
    named = [(SPLIT_NAMES[folder.name.casefold()], folder) for folder in top if folder.name.casefold() in SPLIT_NAMES]
    others = [folder for folder in top if folder.name.casefold() not in SPLIT_NAMES]
    if "train" not in {name for name, _ in named} or any(_holds_images(walk, folder) for folder in others):
        return {}
    splits: dict[SplitName | None, _Folder] = {}
    for name, folder in named:
        if name in splits:
            raise DataError(f"{splits[name].name!r} and {folder.name!r} in {root} are both {name} folders; keep one")
        if not walk.has_folders(folder):
            raise DataError(f"the {name} folder {folder.name!r} in {root} holds no class folders")
        splits[name] = folder
    return splits


def _refuse_unclear_splits(top: Sequence[_Folder], walk: _Walk) -> None:
    """Raise `DataError` for folders that are splits by their names, but cannot be taken for them: seg_train, seg_test.

    Only where they hold folders; a class may be called train.
    """
    kinds = {folder.name: _split_words(folder.name) for folder in top if walk.has_folders(folder)}
    alike = [name for name, found in kinds.items() if found]
    if {"train", "val"} <= set().union(*kinds.values()) or {"train", "test"} <= set().union(*kinds.values()):
        beside = [folder.name for folder in top if not _split_words(folder.name)]
        also = f", and {beside[0]!r} lies beside them" if beside else ""
        hint = "give a folder that holds only train, val and test, each with the class folders"
        raise DataError(
            f"the folders {', '.join(map(repr, alike))} in {walk.root} look like splits, not classes{also}; {hint}"
        )


def _split_words(name: str) -> set[SplitName]:
    return {SPLIT_NAMES[word] for word in _WORDS.findall(name.casefold()) if word in SPLIT_NAMES}


def subfolder_names(folder: Path) -> Iterator[str]:
    """The folders in `folder` that a reader sees, in no order. Raises `OSError`."""
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries if not _is_hidden(entry.name) and _is_folder(entry))


def _hidden_folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.startswith(".") and _is_folder(entry))


def _holds_images(walk: _Walk, folder: _Folder) -> bool:
    another = _Walk(walk.root, walk.check)
    return any(another.images(another.claim([folder])).values())


def _refuse_lookalikes(folders: Iterable[_Folder]) -> None:
    """Raise `DataError` for names that a person or another file system takes for one."""
    spellings: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for folder in folders:
        spellings[unicodedata.normalize("NFC", folder.name).casefold().strip()].setdefault(folder.name, folder.path)
    for same in spellings.values():
        if len(same) > 1:
            shown = " and ".join(ascii(path) for path in sorted(same.values()))
            hint = "merge them, or give them one name"
            raise DataError(f"the class folders {shown} differ only in case, spaces or accents' encoding; {hint}")


_Found = tuple[SplitName | None, _Folder, list[str]]


def _refuse_empty(found: Sequence[_Found], walk: _Walk) -> None:
    if not any(images for _, _, images in found):
        beside = f"; {len(walk.stray)} lie beside the class folders" if walk.stray else ""
        if hidden := _hidden_folders(walk.root):
            beside += f"; hidden folders such as {hidden[0]!r} are left out"
        hint = "put the images of each class into a folder of its own"
        if walk.vanished:
            beside += f"; {len(walk.vanished)} vanished while being listed, such as {next(iter(walk.vanished))!r}"
        if others := walk.other_types():
            beside = f": {others[0].reason}"
            hint = "convert them to JPEG or PNG, or give them the extension of what they are"
        raise DataError(f"no images in class folders in {walk.root}{beside}; {hint}")
    for split_name, folder, images in found:
        if not images and split_name in (None, "train"):
            here = [problem for problem in walk.all_problems() if f"{problem.path}/".startswith(f"{folder.path}/")]
            why = f" ({here[0].reason})" if here else ""
            raise DataError(f"the class folder {folder.path!r} in {walk.root} has no images{why}; fill or remove it")


def _classes(found: Sequence[_Found]) -> tuple[str, ...]:
    """Class names in natural order: those of the training folder, or of flat data."""
    return tuple(
        sorted(
            (folder.name for split_name, folder, _ in found if split_name in (None, "train")),
            key=lambda name: natural_key(as_text(name)),
        )
    )


def _entries(found: Sequence[_Found], classes: tuple[str, ...]) -> tuple[Entry, ...]:
    known = set(classes)
    for split_name, folder, images in found:
        if images and folder.name not in known:
            raise DataError(f"the class {folder.name!r} stands in {split_name} ({folder.path}) but not in train")
    return tuple(Entry(path, folder.name, split_name) for split_name, folder, images in found for path in images)


def _in_text(listing: Listing) -> Listing:
    return Listing(
        as_text(listing.root),
        tuple(map(as_text, listing.classes)),
        tuple(Entry(as_text(entry.path), as_text(entry.label), entry.split) for entry in listing.entries),
        tuple(DataProblem(as_text(problem.path), as_text(problem.reason)) for problem in listing.problems),
    )


def _refuse_one(classes: tuple[str, ...], entries: tuple[Entry, ...], walk: _Walk) -> None:
    if len(classes) == 1:
        only = walk.root / classes[0]
        nested = entries[0].split is None and len(list(subfolder_names(only))) > 1
        hint = f"; if the folders in it are the classes, give {only}" if nested else ""
        raise DataError(
            f"only one class, {classes[0]!r} with {counted(len(entries), 'image')}, in {walk.root}; a classifier needs "
            f"two or more{hint}"
        )
