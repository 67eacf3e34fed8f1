"""The manifest format: a file that names an image in each line, and what is predicted of it.

The rules, beyond those of `cells`:

- The header names one image column: `image`, `path`, `file`, `filename`, `file_name` or `image_path`, in any case. A
  column `split` says train, val or test, in the spellings of split folders; where it is empty, nothing is given. Images
  with the same text in a column `group` (a patient, a recording) are never parted. Every other column is a target,
  whatever its name.
- A column that numbers the lines (unnamed, `index`, `id`) is refused beside another target, as it would be learned.
- Paths are relative to the folder of the manifest itself, not of a link to it. Absolute ones and `..` are fine as long
  as they stay in it; a manifest that leads out of its folder is refused. Backslashes part folders where no file has one
  in its name.
- An image counts once. Lines that say the same again do not matter; of lines that differ the first counts, and the
  others are problems, unless the task takes both for the same.
- What is an image goes by the extension, as in class folders.
"""

from __future__ import annotations

import csv
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Final

from autoft.data.cells import Sheet, at
from autoft.data.layout import SPLIT_NAMES
from autoft.data.walk import lasting_cause
from autoft.errors import DataError
from autoft.media.image.decode import readable_extensions
from autoft.parts.base import Reader
from autoft.system.files import as_path, as_text
from autoft.system.parallel import Check, never_stop
from autoft.values.counts import counted
from autoft.values.dataset import DataProblem, Entry, Listing, Repeat, SplitName

IMAGE_COLUMNS: Final = ("image", "path", "file", "filename", "file_name", "image_path")
"""Names of the column of paths, in any case."""

_NUMBERS_LINES: Final = frozenset({"", "index", "id"})
_URL: Final = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_INDEX_OF_PANDAS: Final = ("Unnamed: ", "__index_level_")


class ManifestReader(Reader):
    """Reads a table of images and labels; see the rules at the top of the module."""

    name = "manifest"
    summary = "a .csv, .tsv, .jsonl or .parquet file with an image path and its labels or numbers in each line"

    def __init__(self, check: Check = never_stop) -> None:
        self._check = check

    def read(self, root: Path) -> Listing:
        """The images that the file `root` names, below its folder, in its order. Raises `DataError` with one line.

        A label is the text of its cell; of several target columns, all their cells as one line of CSV.
        """
        table = _Table.read(root)
        table.require_targets()
        images = _Images(root)
        for row in table.rows():
            self._check()
            images.add(row)
        return images.listing(table.columns.names)

    @staticmethod
    def names_images(path: Path) -> bool:
        """Whether the header of a file has a column for images. Raises `DataError` for a file that cannot be read."""
        _, header = next(Sheet.open(path, lambda header: bool(_image_columns(header))).lines(), (1, []))
        return bool(_image_columns(header))

    def files(self, manifest: Path) -> tuple[Path, ...]:
        """The image files that `manifest` names, each once, whether they are there or not; it needs no other column.

        Below its folder as `manifest` leads there. Raises `DataError` as `read` does.
        """
        table, images = _Table.read(manifest), _Images(manifest)
        folder = Path(os.path.realpath(manifest)).parent if manifest.is_symlink() else manifest.parent
        return tuple(dict.fromkeys(folder / images.name(row) for row in table.rows() if row.image))


def with_columns(listing: Listing, names: Sequence[str]) -> Listing:
    """The listing of a manifest with those of its target columns alone, in that order, whatever their case.

    Raises `DataError` when it has not all of them.
    """
    places = {column.casefold(): place for place, column in enumerate(listing.columns)}
    if missing := [name for name in names if name.casefold() not in places]:
        has = ", ".join(map(repr, listing.columns))
        raise DataError(f"{listing.source}: no column is called {missing[0]!r}, only {has}; name the columns so")
    chosen = [places[name.casefold()] for name in names]

    def picked(entry: Entry) -> Entry:
        cells = next(csv.reader([entry.label])) if len(listing.columns) > 1 else [entry.label]
        return replace(entry, label=_label([cells[place] for place in chosen]))

    repeats = [replace(one, entry=picked(one.entry), first=picked(one.first)) for one in listing.repeats]
    entries = tuple(map(picked, listing.entries))
    return replace(listing, entries=entries, columns=tuple(names), repeats=tuple(repeats))


# ---------------------------------------------------------------- lines and cells


@dataclass(frozen=True)
class _Columns:
    """Positions of the columns: image, split and group (None: there is none), targets, with the names of those."""

    image: int
    split: int | None
    group: int | None
    targets: tuple[int, ...]
    names: tuple[str, ...]
    width: int

    @classmethod
    def of(cls, header: list[str]) -> _Columns:
        """Raises `DataError` for a header that does not say what is what."""
        while header and not header[-1]:  # a separator that a spreadsheet left at the end of each line
            header = header[:-1]
        keys = [name.casefold() for name in header]
        repeated = [name for name, count in Counter(filter(None, keys)).items() if count > 1]
        if repeated:
            raise DataError(f"two columns are called {repeated[0]!r}; rename or remove one")
        images = _image_columns(header)
        if not images:
            found = ", ".join(map(repr, header))
            raise DataError(f"no column is called {', '.join(IMAGE_COLUMNS)}, only {found}; name the one of the paths")
        if len(images) > 1:
            both = " and ".join(repr(header[column]) for column in images)
            raise DataError(f"the columns {both} both name images; remove one")
        split, group = (keys.index(name) if name in keys else None for name in ("split", "group"))
        targets = tuple(column for column in range(len(header)) if column not in (images[0], split, group))
        return cls(images[0], split, group, targets, tuple(header[column] for column in targets), len(header))


@dataclass(frozen=True)
class _Row:
    """One line of a manifest, as text."""

    line: int
    image: str
    label: str
    split: SplitName | None
    group: str


@dataclass(frozen=True)
class _Table:
    """A manifest, and what its columns mean; `line` is that of the header. All errors name file and line."""

    sheet: Sheet
    line: int
    columns: _Columns

    @classmethod
    def read(cls, path: Path) -> _Table:
        """Raises `DataError` for a file that cannot be read, and for its header."""
        sheet = Sheet.open(path, lambda header: bool(_image_columns(header)))
        line, header = next(sheet.lines(), (1, []))
        if not header:
            raise DataError(f"{path} is empty; it needs a header such as image,label and a line for each image")
        try:
            return cls(sheet, line, _Columns.of(header))
        except DataError as error:
            raise at(path, line, str(error)) from error

    def require_targets(self) -> None:
        """Raise `DataError` unless the header says what is predicted."""
        try:
            _refuse_no_targets(self.columns.names)
        except DataError as error:
            raise at(self.sheet.path, self.line, str(error)) from error

    def rows(self) -> Iterator[_Row]:
        """Every line that is not empty, without the header. Raises `DataError` for one that cannot be understood."""
        lines = self.sheet.lines()
        next(lines)
        for line, cells in lines:
            try:
                row = self._row(line, cells)
            except DataError as error:
                raise at(self.sheet.path, line, str(error)) from error
            yield row

    def _row(self, line: int, cells: list[str]) -> _Row:
        columns = self.columns
        if len(cells) < columns.width or any(cells[columns.width :]):
            cut, fewer = self.sheet.separator, len(cells) < columns.width
            hint = f"an empty cell needs its {cut} too" if fewer else f"quote a cell that holds a {cut}"
            raise DataError(f"{counted(len(cells), 'cell')} where the header has {columns.width}; {hint}")
        given = "" if columns.split is None else cells[columns.split]
        if given and given.casefold() not in SPLIT_NAMES:
            raise DataError(f"the split is {given!r}; write train, val or test, or leave it empty")
        label = _label([cells[column] for column in columns.targets])
        group = "" if columns.group is None else cells[columns.group]
        return _Row(line, cells[columns.image], label, SPLIT_NAMES.get(given.casefold()), group)


def _image_columns(header: Sequence[str]) -> list[int]:
    return [column for column, name in enumerate(header) if name.casefold() in IMAGE_COLUMNS]


def _refuse_no_targets(names: Sequence[str]) -> None:
    """Raise `DataError` unless `names` can be meant as what is predicted."""
    if not any(names):
        raise DataError("no column says what to predict; add one, such as label")
    numbering = [name for name in names if name.casefold() in _NUMBERS_LINES or name.startswith(_INDEX_OF_PANDAS)]
    if numbering and len(names) > 1:
        called = repr(numbering[0]) if numbering[0] else "without a name"
        others = " and ".join(repr(name) for name in names if name not in numbering)
        beside = f" beside {others}" if others else ""
        raise DataError(f"the column {called} would be predicted{beside}; remove it")


def _label(cells: list[str]) -> str:
    if len(cells) == 1:
        return cells[0]
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


# ---------------------------------------------------------------- files


@dataclass
class _Images:
    """The images that a manifest names, each once, and the lines that cannot be used."""

    manifest: Path
    problems: list[DataProblem] = field(default_factory=list)
    repeats: list[Repeat] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._source = os.path.realpath(self.manifest)
        self._root = self._source.rpartition("/")[0]
        self._resolved = cache(os.path.realpath)
        self._entries: dict[str, tuple[int, Entry]] = {}

    def add(self, row: _Row) -> None:
        """Take in one line. Raises `DataError` for an image outside the manifest's folder, or a machine in trouble."""
        if not row.image:
            self.problems.append(DataProblem(as_text(self.manifest.name), f"line {row.line} names no image"))
            return
        if _URL.match(row.image):
            fault = "a URL, which is not fetched: download it, and name the file"
            self.problems.append(DataProblem(row.image, f"{fault} (line {row.line})"))
            return
        name = self.name(row)
        entry = Entry(as_text(name), row.label, row.split, row.group)
        line, first = self._entries.get(entry.path, (row.line, entry))
        if fault := self._fault(name):
            self.problems.append(DataProblem(entry.path, f"{fault} (line {row.line})"))
        elif first == entry:
            self._entries[entry.path] = (line, first)
        else:
            said = f"line {row.line} says {_said(entry)}, line {line} {_said(first)}, which counts"
            hint = "one line an image, its labels in one cell as in cat|dog"
            self.repeats.append(Repeat(entry, first, f"{said}; {hint}"))

    def listing(self, columns: tuple[str, ...]) -> Listing:
        """What was found. Raises `DataError` when there is nothing to use."""
        root = as_text(self._root or "/")
        if not self._entries:
            if not self.problems:
                raise DataError(f"{self.manifest} has a header and nothing else; add a line for each image")
            lines, first = counted(len(self.problems), "line"), self.problems[0]
            what = f"no image of {lines} in {self.manifest} can be used, e.g. {first.path}: {first.reason}"
            raise DataError(f"{what}; paths are relative to {root}")
        entries = tuple(entry for _, entry in self._entries.values())
        source, repeats = as_text(self._source), tuple(self.repeats)
        return Listing(root, (), entries, tuple(self.problems), columns, source, repeats)

    def name(self, row: _Row) -> str:
        """The file's name below the root: the first way to read the cell that leads to a file, else the first.

        Raises `DataError` for an image outside the manifest's folder.
        """
        names = [self._inside(row, name) for name in _readings(row.image)]
        return next((name for name in names if os.path.lexists(self._full(name))), names[0])

    def _inside(self, row: _Row, name: str) -> str:
        full = os.path.normpath(f"{self._root}/{name}" if name[0] != "/" else name)
        folder, _, file = full.rpartition("/")
        within = f"{self._root}/"
        if not full.startswith(within):  # unless it goes by a link to the manifest's folder
            full = f"{self._resolved(folder)}/{file}"
        if full.startswith(within):
            return full.removeprefix(within)
        hint = "move the manifest to a folder that holds all its images"
        raise at(self.manifest, row.line, f"{row.image!r} lies outside {as_text(self._root)}; {hint}")

    def _full(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _fault(self, name: str) -> str:
        """Why a file is not used, empty when it is. Raises `DataError` when that lies with the machine."""
        try:
            status = os.stat(self._full(name))  # noqa: PTH116  a Path per file is slow
        except (FileNotFoundError, NotADirectoryError):
            return "no such file"
        except OSError as error:
            return lasting_cause(error, Path(self._full(name)))
        if not stat.S_ISREG(status.st_mode):
            return "not a regular file"
        if status.st_size == 0:
            return "empty file"
        known = os.path.splitext(name)[1].lower() in readable_extensions()  # noqa: PTH122
        return "" if known else "not an image type by its extension"


def _readings(cell: str) -> list[str]:
    r"""Names that a cell may mean: as it stands, with the bytes that `as_text` shows as `\xe9`, with `\` for `/`."""
    texts = [as_text(cell), cell, as_text(cell.replace("\\", "/"))] if "\\" in cell else [cell]
    return [os.fspath(as_path(text)) for text in texts]


def _said(entry: Entry) -> str:
    of_group = f" of group {entry.group!r}" if entry.group else ""
    return f"{entry.label!r}{f' in {entry.split}' if entry.split else ''}{of_group}"
