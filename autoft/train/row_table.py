"""`RowTable`: rows of numbers in a file of the cache folder, filled by and by, by several processes if need be."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from autoft.errors import UserError
from autoft.media.image.pixel_cache import npy_header
from autoft.system.disk_cache import new_files, open_kept


class RowTable:
    """Rows `(dim,)` float32 by number. Each carries a checksum: it is there as it was written, or it is not there.

    So nothing that a crash, a full disk or another writer leaves behind is ever taken for a row. A table that has no
    file, because the folder cannot be written or has no room, knows nothing and forgets what it is given.
    """

    def __init__(self, file: BinaryIO | None, start: int, record: np.dtype[np.void]) -> None:
        self._file, self._start, self._record = file, start, record

    @property
    def is_kept(self) -> bool:
        """Whether it has a file."""
        return self._file is not None

    @classmethod
    @contextmanager
    def open(cls, path: Path, count: int, dim: int, create: bool = False) -> Iterator[RowTable]:
        """The table of `count` rows in `path`, if it is there; with `create` a new one takes the place of what is not.

        Only one process at a time may create it: what others write to a table that is replaced is lost.
        """
        record = np.dtype([("row", "<f4", (dim,)), ("check", "<u4")])
        header = npy_header(record.descr, (count,))
        size = len(header) + count * record.itemsize
        with ExitStack() as stack:
            file = None
            with suppress(OSError, UserError):
                file = _existing(path, header, size) or (_created(path, header, size) if create else None)
                if file is not None:
                    stack.enter_context(file)
            yield cls(file, len(header), record)

    def read(self, numbers: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The rows `(dim,)` that are there, each with its place in `numbers`."""
        if self._file is None:
            return
        for place, number in enumerate(numbers):
            data = os.pread(self._file.fileno(), self._record.itemsize, self._offset(number))
            if len(data) == self._record.itemsize and _checksum(data[:-4]) == data[-4:]:
                yield place, np.frombuffer(data[:-4], "<f4")

    def write(self, numbers: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """Keep `rows` `(n, dim)`; when the disk does not take them, the table forgets from now on."""
        if self._file is None:
            return
        try:
            for number, row in zip(numbers, rows.astype("<f4", copy=False), strict=True):
                values = row.tobytes()
                os.pwrite(self._file.fileno(), values + _checksum(values), self._offset(number))
        except OSError:
            self._file = None

    def _offset(self, number: int) -> int:
        return self._start + int(number) * self._record.itemsize


def _checksum(values: bytes) -> bytes:
    return zlib.crc32(values).to_bytes(4, "little")


def _existing(path: Path, header: bytes, size: int) -> BinaryIO | None:
    with suppress(FileNotFoundError):
        file = open_kept(path, "r+b")
        if file.read(len(header)) == header and file.seek(0, io.SEEK_END) == size:
            return file
        file.close()
    return None


def _created(path: Path, header: bytes, size: int) -> BinaryIO:
    with new_files({path: size}) as (new,):
        new.write(header)
    return open_kept(path, "r+b")
