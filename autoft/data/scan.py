"""The scan: content hash and header size of every file, and the fingerprint of the whole data set."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property, partial
from io import BufferedReader
from pathlib import Path
from typing import Final

from autoft.data.walk import lasting_cause, suffix_of
from autoft.errors import DataError, ReadFailed, UnreadableImage
from autoft.media.image.decode import full_scale, measure
from autoft.system.files import as_path
from autoft.system.parallel import Check, never_stop, ordered_map
from autoft.values.dataset import DataProblem, Entry, Listing, ValueRange

_DIGEST_BYTES: Final = 16
DIGEST_LENGTH: Final = 2 * _DIGEST_BYTES
"""Hexadecimal digits of a content hash."""


@dataclass(frozen=True)
class ScannedFile:
    """One file: its entry, the blake2b-128 hash of its bytes in hex, and its width and height in pixels.

    The sides are those of the header, before the image is turned upright. `values` are the least and the greatest of a
    float or 32-bit image, `gaps` counts its pixels without a number. `problem` says why the header cannot be read;
    `digest` is empty when not even the bytes can.
    """

    entry: Entry
    digest: str = ""
    width: int = 0
    height: int = 0
    values: ValueRange | None = None
    gaps: int = 0
    problem: str = ""

    @property
    def short_side(self) -> int:
        """The smaller of its sides."""
        return min(self.width, self.height)

    @property
    def aspect(self) -> float:
        """Long side / short side, at least 1."""
        return max(self.width, self.height) / max(1, self.short_side)


@dataclass(frozen=True)
class Scan:
    """All files whose bytes can be read, by path: a file's position is its row in the pixel caches."""

    listing: Listing
    files: tuple[ScannedFile, ...]
    problems: tuple[DataProblem, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """Absolute paths, in the order of the rows."""
        root = as_path(self.listing.root)
        return tuple(root / as_path(file.entry.path) for file in self.files)

    @cached_property
    def short_side(self) -> int:
        """Median short side in pixels of the images whose header can be read. Raises `DataError` if there is none."""
        return statistics.median_low(file.short_side for file in self._measured)

    @cached_property
    def aspect(self) -> float:
        """Median of long side / short side of the same images. Raises `DataError` if there is none."""
        return statistics.median(file.aspect for file in self._measured)

    @property
    def _measured(self) -> list[ScannedFile]:
        measured = [file for file in self.files if not file.problem]
        if not measured:
            unread = [DataProblem(file.entry.path, file.problem) for file in self.files]
            raise all_unreadable(self.listing.root, (*unread, *self.problems))
        return measured

    @property
    def value_range(self) -> ValueRange | None:
        """The one scale for all float and 32-bit integer images; None where there are none."""
        spans = [file.values for file in self.files if file.values is not None]
        return full_scale(min(low for low, _ in spans), max(high for _, high in spans)) if spans else None

    def without(self, extensions: Collection[str]) -> Scan:
        """The scan without files of these extensions, in small letters."""
        return replace(self, files=tuple(file for file in self.files if suffix_of(file.entry.path) not in extensions))

    def fingerprint(self) -> str:
        """Hash in hex of paths, labels and contents; any change to the data changes it."""
        total = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for file in self.files:
            line = [file.entry.path, file.entry.label, file.digest]
            total.update(json.dumps(line).encode() + b"\n")
        return total.hexdigest()


def scan(listing: Listing, threads: int, check: Check = never_stop) -> Scan:
    """The files of a listing, each read once. `check` may raise to stop. Raises `DataError`."""
    entries = sorted(listing.entries, key=lambda entry: entry.path)
    scanned = list(ordered_map(partial(_scan_file, as_path(listing.root)), entries, threads, check))
    unread = tuple(DataProblem(file.entry.path, file.problem) for file in scanned if not file.digest)
    return Scan(listing, tuple(file for file in scanned if file.digest), (*listing.problems, *unread))


def content_hash(file: BufferedReader) -> str:
    """The blake2b-128 hash in hex of the rest of an open file."""
    return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=_DIGEST_BYTES)).hexdigest()


def all_unreadable(root: str, problems: tuple[DataProblem, ...]) -> DataError:
    """The error for data without a single readable image; it shows one of the causes."""
    first = problems[0]
    return DataError(f"none of the images in {root} can be read, e.g. {first.path}: {first.reason}")


def _scan_file(root: Path, entry: Entry) -> ScannedFile:
    digest, path = "", root / as_path(entry.path)
    try:
        with path.open("rb") as file:
            digest = content_hash(file)
            file.seek(0)
            measured = measure(file)
            return ScannedFile(entry, digest, measured.width, measured.height, measured.values, measured.gaps)
    except OSError as error:
        return ScannedFile(entry, problem=lasting_cause(error, path))
    except ReadFailed as error:
        raise DataError(f"{path} cannot be read: {error}; mend that, and start again") from error
    except UnreadableImage as error:
        return ScannedFile(entry, digest, problem=str(error))
