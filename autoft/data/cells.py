"""`Sheet`: the cells of a manifest as text, line by line, whichever kind of file they stand in.

- CSV, UTF-8 with or without a byte order mark; cut by commas, semicolons or tabs, whichever makes a header of the first
  line; cells that hold one are quoted. Empty lines do not exist.
- JSON lines: an object a line. What a line does not say is an empty cell, several texts are parted by `|`.
- Parquet: a row is a line, the first of which is 1.

Spaces around a cell do not count.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from autoft.errors import DataError
from autoft.system.files import as_text

Lines = Iterator[tuple[int, list[str]]]
"""Where each line begins, and its cells."""

_DELIMITERS: Final = {",": "comma", ";": "semicolon", "\t": "tab"}
_BLANK: Final = ' ,;\t\r\n"'
_LINE_ENDS: Final = re.compile(r"[\r\n]+")  # and none of the others that Unicode knows, which may be in a file's name


@dataclass(frozen=True)
class Sheet:
    """A manifest: the first of its `lines`, which can be had again and again, is the header.

    `separator` is what cuts cells, in a word; empty where nothing does. Getting lines raises `DataError` with the line.
    """

    path: Path
    lines: Callable[[], Lines]
    separator: str = ""

    @classmethod
    def open(cls, path: Path, is_header: Callable[[Sequence[str]], bool]) -> Sheet:
        """Raises `DataError` for a file that cannot be read. `is_header` knows a header that makes sense."""
        kind = path.suffix.lower()
        if kind == ".parquet":
            columns = _parquet(path)
            return cls(path, lambda: _of_columns(path, columns))
        text = _text(path)
        if kind == ".jsonl":
            objects = list(_objects(path, text))
            return cls(path, lambda: _of_objects(path, objects))
        first = next((line for line in io.StringIO(text, newline="") if line.strip(_BLANK)), "")
        delimiter = max(_DELIMITERS, key=lambda cut: (is_header(_cut(first, cut)), first.count(cut)))
        return cls(path, lambda: _of_csv(path, text, delimiter), _DELIMITERS[delimiter])


def at(path: Path, line: int, fault: str) -> DataError:
    """What to raise for a fault of a line."""
    return DataError(f"{path}, line {line}: {fault}")


def _text(path: Path) -> str:
    raw = _bytes(path)
    zero = raw.find(b"\0")  # UTF-16, of which plain letters would pass for UTF-8
    try:
        if zero >= 0:
            raise UnicodeDecodeError("utf-8", raw, zero, zero + 1, "zero byte")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        kind = "CSV" if path.suffix.lower() != ".jsonl" else "JSON lines"
        raise at(path, line, f"not UTF-8; save the file as {kind} in UTF-8") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error


def _plain(cell: str) -> str:
    """A line of text without the spaces around it."""
    return _LINE_ENDS.sub(" ", cell.strip())


# ---------------------------------------------------------------- CSV


def _of_csv(path: Path, text: str, delimiter: str) -> Lines:
    """Raises `DataError` where quotes are not balanced."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    line = 1
    try:
        for cells in reader:
            stripped = [_plain(cell) for cell in cells]
            if any(stripped):
                yield line, stripped
            line = reader.line_num + 1
    except csv.Error as error:
        if "field limit" in str(error):
            raise at(path, line, f"a cell is too long to be one, or has a quote that does not end ({error})") from error
        hint = "a cell with quotes in it is quoted, and they are doubled"
        raise at(path, line, f"a quoted cell does not end as it should ({error}); {hint}") from error


def _cut(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])]
    except csv.Error:  # which whoever reads the line will say
        return []


# ---------------------------------------------------------------- objects


Cells = Sequence[tuple[str, Any]]
"""Names and values."""

_EXAMPLE: Final = '{"image": "a.jpg", "label": "cat"}'


def _objects(path: Path, text: str) -> Iterator[tuple[int, Cells]]:
    """The object of each line that is not empty. Lines end by a line feed alone: JSON may hold the other ends."""
    for line, found in enumerate(text.split("\n"), 1):
        if not found.strip():
            continue
        try:
            value = json.loads(found, object_pairs_hook=_Object)
        except (ValueError, RecursionError) as error:
            raise at(path, line, f"no JSON ({error}); each line is an object such as {_EXAMPLE}") from error
        if not isinstance(value, _Object):
            raise at(path, line, f"a {type(value).__name__} and no object; each line is one such as {_EXAMPLE}")
        names = [name for name, _ in value]
        if odd := [name for name in names if not name.strip() or names.count(name) > 1]:
            raise at(
                path, line, f"the name {odd[0]!r} says nothing, or stands there twice; give each value one of its own"
            )
        yield line, value


class _Object(list[tuple[str, Any]]):
    """A JSON object, with what it says twice."""


def _of_objects(path: Path, objects: Sequence[tuple[int, Cells]]) -> Lines:
    names = list(dict.fromkeys(name for _, found in objects for name, _ in found))
    if not names:
        return
    yield objects[0][0], [_plain(name) for name in names]
    for line, found in objects:
        values = dict(found)
        yield line, [_cell(path, line, name, values.get(name)) for name in names]


def _parquet(path: Path) -> Cells:
    """Columns by name. Raises `DataError` for what is no such file."""
    import pyarrow as pa  # Ray brings it; takes a quarter of a second
    from pyarrow import parquet

    raw = _bytes(path)
    try:
        table = parquet.ParquetFile(pa.BufferReader(raw)).read()
        return [(name, column.to_pylist()) for name, column in zip(table.column_names, table.columns, strict=True)]
    except (pa.ArrowException, OSError, ValueError, ArithmeticError) as error:  # all of them for damaged files
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _of_columns(path: Path, columns: Cells) -> Lines:
    if not columns:
        return
    names = [name for name, _ in columns]
    yield 0, [_plain(name) for name in names]
    for line, values in enumerate(zip(*(values for _, values in columns), strict=True), 1):
        yield line, [_cell(path, line, name, value) for name, value in zip(names, values, strict=True)]


def _cell(path: Path, line: int, name: str, value: object) -> str:
    """A value as a cell of CSV has it. Raises `DataError` for one that no cell can hold."""
    several = value if isinstance(value, list) and not isinstance(value, _Object) else [value]
    return "|".join(_text_of(path, line, name, one) for one in several)


def _text_of(path: Path, line: int, name: str, value: object) -> str:
    if value is None or value != value:  # not a number: a gap in pandas
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float | Decimal | date | time):
        return _plain(_encodable(path, line, name, str(value)))
    what = "bytes" if isinstance(value, bytes) else "a list in a list" if type(value) is list else "an object"
    hint = "images lie in files of their own, labels are texts or numbers; leave that column out"
    raise at(path, line, f"{name!r} holds {what}; {hint}")


def _encodable(path: Path, line: int, name: str, text: str) -> str:
    """Text that can be written to a file; the names of files that Python's JSON writes for bytes become such."""
    try:
        if "\0" in text:
            raise ValueError
        return text if _is_plain(text) else as_text(text)
    except ValueError as error:
        raise at(path, line, f"{name!r} holds {text!a}, which is no text") from error


def _is_plain(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
