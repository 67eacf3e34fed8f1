"""`Journal`: trials.jsonl, the append-only truth about a run.

A line is an event as JSON with one more field, the last: `chain`, the CRC-32 of the line as it would be without that
field, begun with the one of the line before. It tells a digit that has changed since, and a line that is gone from
between others. Lines of older versions have a CRC-32 of their own (`crc32`), or none, and are read as they stand; what
is appended to them is chained to the last.
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from pathlib import Path
from types import TracebackType
from typing import Self

from autoft.errors import RunFolderError
from autoft.store.folder import unwritable
from autoft.system.files import fsync_dir
from autoft.values.codec import decode, encode
from autoft.values.ledger import Ledger
from autoft.values.trial import Event

_CHECKSUM = re.compile(rb', "(?P<kind>chain|crc32)": "(?P<value>[0-9a-f]{8})"}\n$')
_DROPPED = re.compile(rb', "by_circumstance": (?:true|false)(?=, "standard_error": |}$)')  # an older version had it
_IS_SLICE = re.compile(rb'^({"trial": \d+, "slice": .*, "event": )"started"}\n$')


class Journal:
    """A journal open for appending; a context manager, or `close` it.

    A last line that a kill left torn is cut off on opening. Raises `RunFolderError` when the file cannot be written.
    One process appends at a time: the run folder's lock sees to that.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            lines = _whole_lines(path.read_bytes()) if path.exists() else []
            self._end, self._checksum = sum(map(len, lines)), _checksum(lines[-1]) if lines else 0
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise unwritable(path.parent, path, error) from error
        try:
            self._cut_to_end()
            fsync_dir(path.parent)
        except OSError as error:
            self.close()
            raise unwritable(path.parent, path, error) from error

    def append(self, event: Event) -> None:
        """Add one line; when this returns, the line is on the disk.

        Raises `RunFolderError` when it cannot be written (disk full, ...); the journal is then as it was before.
        """
        line = _line(event, self._checksum)
        try:
            self._path.stat()  # a file that was removed, or moved with its folder, takes what is written and is no use
            self._write(line)
            os.fsync(self._descriptor)
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._cut_to_end()
            if isinstance(error, OSError):
                raise unwritable(self._path.parent, self._path, error) from error
            raise
        self._end, self._checksum = self._end + len(line), _checksum(line)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @staticmethod
    def read(path: Path, ledger: Ledger | None = None) -> list[Event]:
        """Every event, oldest first; none when there is no file yet. A torn last line is left out.

        `ledger`, an empty one, takes them in.
        Raises `RunFolderError` that names file and line when a line is damaged or cannot follow those before it.
        """
        try:
            lines = _whole_lines(path.read_bytes())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunFolderError(f"{path} cannot be read: {error.strerror}; look at its permissions") from error
        ledger, events, before = Ledger() if ledger is None else ledger, [], b""
        for number, line in enumerate(lines, start=1):
            try:
                event = _event(line, before)
                ledger.record(event)
            except ValueError as problem:
                is_alone = number == len(lines) and not isinstance(problem, _Broken)
                last = "delete it, as it is the last, or " if is_alone else ""
                remedy = f"{last}restore the file from a backup"
                raise RunFolderError(f"{path}, line {number}: {problem}; {remedy}") from None
            events.append(event)
            before = line
        return events

    def _write(self, line: bytes) -> None:
        """The whole line: a disk that fills up takes a part first and fails on the rest."""
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def _cut_to_end(self) -> None:
        if os.fstat(self._descriptor).st_size > self._end:
            os.ftruncate(self._descriptor, self._end)
            os.fsync(self._descriptor)


class _Broken(ValueError):
    """A line that is whole in itself may not follow from the one before it."""


def _line(event: Event, before: int) -> bytes:
    """The line of an event that follows one with the checksum `before`."""
    plain = encode(event).encode()
    return plain.removesuffix(b"}") + b', "chain": "%08x"}\n' % zlib.crc32(plain, before)


def _checksum(line: bytes) -> int:
    """What the next line's checksum begins with."""
    found = _CHECKSUM.search(line)
    return int(found["value"], 16) if found else zlib.crc32(line)


def _is_chained(line: bytes) -> bool:
    found = _CHECKSUM.search(line)
    return found is not None and found["kind"] == b"chain"


def _event(line: bytes, before: bytes) -> Event:
    """The event of a line that follows `before`, which is empty at the first.

    Raises `ValueError` when there is none in it, or the two are not what was written, one after the other.
    """
    found = _CHECKSUM.search(line)
    if found:
        line = line[: found.start()] + b"}"
        _verify(line, found, before)
    elif _is_chained(before):
        raise ValueError("it has no checksum, unlike the line before it")
    elif _IS_SLICE.search(line):  # an older version had one line for what is queued and then started
        line = _IS_SLICE.sub(rb'\1"queued"}\n', line)
    event: Event = decode(Event, _DROPPED.sub(b"", line).decode())
    return event


def _verify(line: bytes, found: re.Match[bytes], before: bytes) -> None:
    """Raise `ValueError` when the checksum that was found is not that of the line, or not behind `before`."""
    if found["kind"] == b"crc32":
        if _is_chained(before) or int(found["value"], 16) != zlib.crc32(line):
            raise ValueError("its checksum is not that of its text: something in it has changed since it was written")
    elif int(found["value"], 16) != zlib.crc32(line, _checksum(before) if before else 0):
        raise _Broken(
            "its checksum does not follow from the line before it: one of the two has changed since it was written, or "
            "a line between them is gone"
        )


def _whole_lines(data: bytes) -> list[bytes]:
    """The lines with their newlines, without the torn one at the end that an append cut short leaves."""
    return [line + b"\n" for line in data.split(b"\n")[:-1]]
