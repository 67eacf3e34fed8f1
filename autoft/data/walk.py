"""`Walk`: one pass over a folder of images, in which every folder is looked at once.

- Hidden names (leading dot) and files that systems leave behind do not exist; folders of theirs are counted.
- A file is an image if Pillow decodes its extension; whether the content agrees shows when it is decoded.
- What vanishes while it is listed does not exist; a line says how much. The system's own folders are refused.
- A folder counts once however many links lead to it; real folders come before links.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from autoft.errors import DataError
from autoft.media.image.decode import other_image, readable_extensions
from autoft.system.natural import natural_key
from autoft.system.parallel import Check
from autoft.values.counts import counted
from autoft.values.dataset import DataProblem

MAX_DEPTH: Final = 32
"""Levels of folders below the data folder that are searched."""

LITTER_FOLDERS: Final = frozenset(
    {"__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found"}
)
"""Names, in small letters, of folders that belong to a system or a tool, wherever they lie."""

LITTER_FILES: Final = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
"""Names, in small letters, of files that systems leave behind."""

_PASSING: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV}
)
_SYSTEM_KINDS: Final = frozenset({"proc", "sysfs"})

_Identity = tuple[int, int]


@dataclass(frozen=True)
class Folder:
    """A folder by its posix path relative to the root, and its depth below it."""

    path: str
    depth: int
    linked: bool = False

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    def child(self, entry: os.DirEntry[str]) -> Folder:
        """A folder in it."""
        return Folder(_join(self.path, entry.name), self.depth + 1, entry.is_symlink())


@dataclass(frozen=True)
class Contents:
    """What lies in one folder, in natural order: subfolders, paths of images and of files of other types.

    `problems` are images that cannot be used, `litter` the folders of systems and tools.
    """

    folders: tuple[Folder, ...] = ()
    images: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    problems: tuple[DataProblem, ...] = ()
    litter: tuple[str, ...] = ()

    @property
    def lacks(self) -> str:
        """Why images that are meant to be here cannot be used, of the first; empty where there are none."""
        if self.problems:
            return self.problems[0].reason
        photos = [path for path in self.others if other_image(suffix_of(path))]
        return other_type(suffix_of(photos[0]), photos).reason if photos else ""


@dataclass
class Walk:
    """A data folder: what lies in its folders, and of those that were collected every file that cannot be used."""

    root: Path
    check: Check
    problems: list[DataProblem] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)
    litter: list[str] = field(default_factory=list)
    vanished: dict[str, None] = field(default_factory=dict)  # a set that keeps its order

    def __post_init__(self) -> None:
        self.top = Folder("", 0)
        self._known: dict[str, Contents] = {}
        self._full: dict[str, bool] = {}
        self._meant: dict[str, bool] = {}
        self._other_types: defaultdict[str, list[str]] = defaultdict(list)
        # A link to the root or above it would bring in the whole folder again, and its neighbours.
        self._above = frozenset(_identity(folder) for folder in (self.root, *self.root.parents))

    def contents(self, folder: Folder) -> Contents:
        """What lies in it; the disk is asked once."""
        if folder.path not in self._known:
            self._known[folder.path] = self._scan(folder)
        return self._known[folder.path]

    def holds_images(self, folder: Folder) -> bool:
        """Whether there are any in it or below."""
        return self._any_below(folder, lambda contents: bool(contents.images), self._full)

    def is_meant_to(self, folder: Folder) -> bool:
        """Whether it holds images, or what is meant to be some and cannot be used."""
        return self._any_below(folder, lambda contents: bool(contents.images or contents.lacks), self._meant)

    def filled(self, folder: Folder) -> tuple[Folder, ...]:
        """The folders in it that hold images."""
        return tuple(one for one in self.contents(folder).folders if self.holds_images(one))

    def meant(self, folder: Folder) -> tuple[Folder, ...]:
        """The folders in it that hold images, or what is meant to be some and cannot be used."""
        return tuple(one for one in self.contents(folder).folders if self.is_meant_to(one))

    def gathered(self, folder: Folder) -> Contents:
        """What lies in it and below, without the folders themselves."""
        seen = set(self._above)
        is_data = folder == self.top or self._first_visit(folder, seen)  # and no link to what lies above
        every = [contents for _, contents in self._below([folder] if is_data else [], seen)]
        return Contents(
            images=tuple(path for one in every for path in one.images),
            others=tuple(path for one in every for path in one.others),
            problems=tuple(problem for one in every for problem in one.problems),
            litter=tuple(path for one in every for path in one.litter),
        )

    def report(self, contents: Contents) -> None:
        """What cannot be used of it is among the problems from now on."""
        self.problems += contents.problems
        self.litter += contents.litter
        for path in contents.others:
            self._other_types[suffix_of(path)].append(path)

    def collect(self, folder: Folder) -> None:
        """A folder that holds class folders: what else lies in it is reported, and its images have no class."""
        contents = self.contents(folder)
        self.stray.extend(contents.images)
        self.report(contents)

    def images(self, folders: Sequence[Folder]) -> Mapping[str, list[str]]:
        """Path of each class folder to the image files in and below it, without folders that have vanished.

        Links to the root or above are left out; raises `DataError` for one to another of them.
        """
        seen = set(self._above)
        claimed = [folder for folder in folders if self._claim(folder, seen)]
        found: dict[str, list[str]] = {folder.path: [] for folder in claimed}
        for owner, contents in self._below(claimed, seen):
            found[owner].extend(contents.images)
            self.report(contents)
        self.vanished |= {
            path: None for path, images in found.items() if not images and not (self.root / path).exists()
        }
        return {path: images for path, images in found.items() if path not in self.vanished}

    def all_problems(self) -> tuple[DataProblem, ...]:
        """Every file that is not used: single ones by path, other file types and strays once with their count."""
        several = self.other_types()
        if self.stray:
            files = counted(len(self.stray), "image")
            several.append(DataProblem(self.stray[0], f"{files} outside any class folder, e.g. {self.stray[0]}"))
        if self.litter:
            folders = counted(len(self.litter), "folder")
            several.append(DataProblem(self.litter[0], f"{folders} of systems and tools, e.g. {self.litter[0]}"))
        if self.vanished:
            first, count = next(iter(self.vanished)), len(self.vanished)
            what = "files and folders" if count > 1 else "file or folder"
            several.append(DataProblem(first, f"{count} {what} vanished while being listed, e.g. {first}"))
        return (*sorted(self.problems, key=lambda problem: problem.path), *several)

    def other_types(self) -> list[DataProblem]:
        """Files that are no images by their extensions, once for each with their count; the most frequent first."""
        frequent = sorted(self._other_types.items(), key=lambda found: (-len(found[1]), found[0]))
        return [other_type(suffix, paths) for suffix, paths in frequent]

    def _below(self, folders: Sequence[Folder], seen: set[_Identity]) -> Iterator[tuple[str, Contents]]:
        """The contents of these folders and of all below, each once, beside the path of the one that it belongs to.

        Links wait until all real folders are done.
        """
        waiting = [(folder, folder.path) for folder in reversed(folders)]
        links: list[tuple[Folder, str]] = []
        while waiting or links:
            folder, owner = waiting.pop() if waiting else links.pop()
            if folder.path != owner and not self._first_visit(folder, seen):
                continue
            contents = self.contents(folder)
            yield owner, contents
            waiting.extend((child, owner) for child in reversed(contents.folders) if not child.linked)
            links[:0] = [(child, owner) for child in reversed(contents.folders) if child.linked]

    def _claim(self, folder: Folder, seen: set[_Identity]) -> bool:
        """Whether it is the first of the class folders that is it; not one that is the root or above."""
        if self._first_visit(folder, seen):
            return True
        if folder.path not in self.vanished and not self.root.is_relative_to((self.root / folder.path).resolve()):
            raise DataError(f"the class folder {folder.path!r} in {self.root} is a link to another; remove one")
        return False

    def _first_visit(self, folder: Folder, seen: set[_Identity]) -> bool:
        try:
            identity = _identity(self.root / folder.path)
        except FileNotFoundError:
            self.vanished[folder.path] = None
            return False
        fresh = identity not in seen
        seen.add(identity)
        return fresh

    def _any_below(self, folder: Folder, is_so: Callable[[Contents], bool], known: dict[str, bool]) -> bool:
        """Whether it is so of the folder or one below; of none that is the root or above it."""
        if folder.path not in known:
            seen = set(self._above)
            below = self._below([folder], seen) if self._first_visit(folder, seen) else ()
            known[folder.path] = any(is_so(contents) for _, contents in below)
        return known[folder.path]

    def _scan(self, folder: Folder) -> Contents:
        folders: list[Folder] = []
        images, others, litter = list[str](), list[str](), list[str]()
        try:
            entries = self._visible(folder)
        except FileNotFoundError:
            self.vanished[folder.path] = None
            return Contents()
        except OSError as error:
            return Contents(problems=(DataProblem(folder.path, lasting_cause(error, self.root / folder.path)),))
        problems: list[DataProblem] = []
        for entry in entries:
            self.check()  # again, as each is looked at on the disk
            path = _join(folder.path, entry.name)
            if _is_folder(entry):
                if entry.name.casefold() in LITTER_FOLDERS:
                    litter.append(path)
                else:
                    folders.append(folder.child(entry))
            elif not (is_image := suffix_of(entry.name) in readable_extensions()) and not entry.is_symlink():
                others.append(path)
            elif fault := self._fault(entry, path):
                problems.append(DataProblem(path, fault))
            elif path not in self.vanished:
                (images if is_image else others).append(path)
        if folder.depth >= MAX_DEPTH and folders:
            problems.append(DataProblem(folder.path, f"more than {MAX_DEPTH} folders deep, not searched further"))
            folders = []
        return Contents(tuple(folders), tuple(images), tuple(others), tuple(problems), tuple(litter))

    def _visible(self, folder: Folder) -> list[os.DirEntry[str]]:
        shown = []
        with os.scandir(self.root / folder.path) as entries:
            for entry in entries:
                self.check()
                if not is_hidden(entry.name):
                    shown.append(entry)
        return sorted(shown, key=lambda entry: natural_key(entry.name))

    def _fault(self, entry: os.DirEntry[str], path: str) -> str:
        """Why a file cannot be used; empty for one that can be, and for one that has vanished."""
        try:
            status = entry.stat()
        except FileNotFoundError:
            if entry.is_symlink():
                return "broken link"
            self.vanished[path] = None
            return ""
        except OSError as error:
            return lasting_cause(error, self.root / path)
        if not stat.S_ISREG(status.st_mode):  # a named pipe would block the reader for ever
            return "not a regular file"
        return "" if status.st_size else "empty file"


@contextmanager
def reading(root: Path, check: Check) -> Iterator[Walk]:
    """A walk over a folder that was checked. What the file system raises in the block becomes a `DataError`."""
    walk = Walk(_checked_root(root), check)
    try:
        yield walk
    except OSError as error:
        path = Path(error.filename or walk.root)
        raise DataError(f"{path} cannot be read: {_cause(error)}; mend that, and start again") from error


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name does not exist to a reader."""
    return name.startswith(".") or name.casefold() in LITTER_FILES


def is_data_folder(name: str) -> bool:
    """Whether a folder of that name may hold images of the data, by its name."""
    return not is_hidden(name) and name.casefold() not in LITTER_FOLDERS


def subfolder_names(folder: Path) -> Iterator[str]:
    """The folders in `folder` that a reader sees, in no order. Raises `OSError`."""
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries if is_data_folder(entry.name) and _is_folder(entry))


def hidden_folders(folder: Path) -> list[str]:
    """Names of the folders with a leading dot. Raises `OSError`."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.startswith(".") and _is_folder(entry))


def suffix_of(name: str) -> str:
    """The extension in small letters, with its dot; a `Path` for each file is slow at 100,000 files."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def other_type(suffix: str, paths: Sequence[str]) -> DataProblem:
    """What is said of files that are no images by their extension, or none that are decoded here."""
    files, what = counted(len(paths), f"{suffix or 'extensionless'} file"), other_image(suffix) or "not an image type"
    return DataProblem(paths[0], f"{files}, {what}, e.g. {paths[0]}")


def lasting_cause(error: OSError, path: Path) -> str:
    """Why a file or folder cannot be used. Raises `DataError` when that lies with the machine and may pass.

    What is left out must be left out the next time too; and too many open files would empty a whole folder.
    """
    if error.errno in _PASSING:
        raise DataError(f"{path} cannot be read: {_cause(error)}; mend that, and start again") from error
    return _cause(error)


def _cause(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _identity(folder: Path) -> _Identity:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that loops onto itself
        return False


def _join(parent: str, name: str) -> str:
    return f"{parent}/{name}" if parent else name


# ---------------------------------------------------------------- the root


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
