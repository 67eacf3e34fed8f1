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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from autoft.errors import DataError

Lines = Iterator[tuple[int, list[str]]]
"""Where each line begins, and its cells."""

_DELIMITERS: Final = {",": "comma", ";": "semicolon", "\t": "tab"}
_BLANK: Final = ' ,;\t\r\n"'


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
    return " ".join(cell.strip().splitlines())


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
        hint = "a cell with quotes in it is quoted, and they are doubled"
        raise at(path, line, f"a quoted cell does not end as it should ({error}); {hint}") from error


def _cut(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])]


# ---------------------------------------------------------------- objects


def _objects(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The object of each line that is not empty."""
    for line, found in enumerate(text.splitlines(), 1):
        if not found.strip():
            continue
        try:
            value = json.loads(found)
        except (ValueError, RecursionError) as error:
            raise at(path, line, f"no JSON ({error}); each line is an object such as {_EXAMPLE}") from error
        if not isinstance(value, dict):
            raise at(path, line, f"a {type(value).__name__} and no object; each line is one such as {_EXAMPLE}")
        yield line, value


_EXAMPLE: Final = '{"image": "a.jpg", "label": "cat"}'


def _of_objects(path: Path, objects: Sequence[tuple[int, dict[str, Any]]]) -> Lines:
    names = list(dict.fromkeys(name for _, found in objects for name in found))
    if not names:
        return
    yield objects[0][0], [_plain(name) for name in names]
    for line, found in objects:
        yield line, [_cell(path, line, name, found.get(name)) for name in names]


def _parquet(path: Path) -> dict[str, list[Any]]:
    """Columns by name. Raises `DataError` for what is no such file."""
    import pyarrow as pa  # Ray brings it; takes a quarter of a second
    from pyarrow import parquet

    try:
        columns: dict[str, list[Any]] = parquet.read_table(pa.BufferReader(_bytes(path))).to_pydict()
        return columns
    except pa.ArrowException as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _of_columns(path: Path, columns: dict[str, list[Any]]) -> Lines:
    if not columns:
        return
    yield 0, [_plain(name) for name in columns]
    for line, values in enumerate(zip(*columns.values(), strict=True), 1):
        yield line, [_cell(path, line, name, value) for name, value in zip(columns, values, strict=True)]


def _cell(path: Path, line: int, name: str, value: object) -> str:
    """A value as a cell of CSV has it. Raises `DataError` for one that no cell can hold."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "|".join(_cell(path, line, name, one) for one in value)
    if isinstance(value, dict | bytes):
        what = "bytes" if isinstance(value, bytes) else "an object"
        hint = "images lie in files of their own, labels are texts or numbers; leave that column out"
        raise at(path, line, f"{name!r} holds {what}; {hint}")
    return _plain(value if isinstance(value, str) else json.dumps(value, default=str))
