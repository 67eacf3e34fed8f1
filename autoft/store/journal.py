"""`Journal`: trials.jsonl, the append-only truth about a run.

A line is an event as JSON with one more field, the last: the CRC-32 of the line as it would be without that field. It
tells a digit that has changed since; lines without one, of older versions, are read as they stand.
"""

from __future__ import annotations

import contextlib
import json
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

_CHECKSUM = re.compile(rb', "crc32": "([0-9a-f]{8})"}\n$')
_IS_SLICE = re.compile(rb'^({"trial": \d+, "slice": .*, "event": )"started"}\n$')


class Journal:
    """A journal open for appending; a context manager, or `close` it.

    A last line that a kill left torn is cut off on opening. Raises `RunFolderError` when the file cannot be written.
    One process appends at a time: the run folder's lock sees to that.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._end = sum(map(len, _whole_lines(path.read_bytes()))) if path.exists() else 0
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
        line = _line(event)
        try:
            self._write(line)
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._cut_to_end()
            raise unwritable(self._path.parent, self._path, error) from error
        self._end += len(line)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @staticmethod
    def read(path: Path) -> list[Event]:
        """Every event, oldest first; none when there is no file yet. A torn last line is left out.

        Raises `RunFolderError` that names file and line when a line is damaged or cannot follow those before it.
        """
        try:
            lines = _whole_lines(path.read_bytes())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunFolderError(f"{path} cannot be read: {error.strerror}; look at its permissions") from error
        ledger = Ledger()
        events = []
        for number, line in enumerate(lines, start=1):
            try:
                event = _event(line)
                ledger.record(event)
            except ValueError as problem:
                raise RunFolderError(f"{path}, line {number}: {problem}; restore the file from a backup") from None
            events.append(event)
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


def _line(event: Event) -> bytes:
    plain = encode(event).encode()
    return plain.removesuffix(b"}") + b', "crc32": "%08x"}\n' % zlib.crc32(plain)


def _event(line: bytes) -> Event:
    """The event of a line. Raises `ValueError` when there is none in it, or its text is not what was written."""
    if found := _CHECKSUM.search(line):
        line = line[: found.start()] + b"}"
        if int(found[1], 16) != zlib.crc32(line):
            raise ValueError("its checksum is not that of its text: something in it has changed since it was written")
    elif _IS_SLICE.search(line):  # an older version had one line for what is queued and then started
        line = _IS_SLICE.sub(rb'\1"queued"}\n', line)
    event: Event = decode(Event, line.decode())
    return event


def _whole_lines(data: bytes) -> list[bytes]:
    """The lines with their newlines, without the torn one at the end that an append cut short leaves."""
    *whole, tail = data.split(b"\n")
    if whole and not tail and not _is_json(whole[-1]):
        del whole[-1]
    return [line + b"\n" for line in whole]


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode())
    except ValueError:
        return False
    return True
