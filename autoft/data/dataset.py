"""`Dataset`: the usable images of a folder, their split, and the way to their pixels."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from autoft.data.cache import PixelCache, build
from autoft.data.scan import DIGEST_LENGTH, Scan, ScannedFile, all_unreadable, scan
from autoft.data.split import require_enough, split
from autoft.errors import DataError, RunFolderError
from autoft.files import write_atomic_bytes
from autoft.types import DataProblem, DatasetInfo, Interpolation, Sample, SplitName, View

COLUMNS: Final = ("path", "label", "split", "row", "digest")
_HELD_OUT: Final[Mapping[SplitName | None, int]] = {None: 0, "train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class Dataset:
    """Readable images with their split; `samples` by path. Pixels stay on disk until rows of them are asked for."""

    info: DatasetInfo
    samples: tuple[Sample, ...]

    def rows(self, split: SplitName) -> NDArray[np.int64]:
        """Rows `(n,)` of a split in the pixel caches."""
        return np.array([sample.row for sample in self.samples if sample.split == split], np.int64)

    def labels(self, split: SplitName) -> NDArray[np.int64]:
        """Class indices `(n,)` of a split, in the order of `rows`."""
        return np.array([sample.label for sample in self.samples if sample.split == split], np.int64)

    def limited(self, split: SplitName, most: int) -> Dataset:
        """With at most so many images of a split, evenly over the classes, as samples stand in the order of paths."""
        own = [sample for sample in self.samples if sample.split == split]
        kept = {own[n].row for n in np.linspace(0, len(own) - 1, min(len(own), most)).astype(int)}
        return Dataset(self.info, tuple(s for s in self.samples if s.split != split or s.row in kept))

    def pixels(
        self, size: int, interpolation: Interpolation = "bicubic", view: View = "crop", threads: int = 1
    ) -> np.memmap[tuple[int, ...], np.dtype[np.uint8]]:
        """Pixels `(rows, size, size, 3)` uint8, mapped read-only; index them with `rows`.

        A cache that is missing, because somebody deleted it, is built again. Raises `DataError` when that needs
        images that have changed since, `UserError` when the cache folder cannot be written.
        """
        cache = PixelCache(self.info.fingerprint, size, interpolation, view)
        try:
            return cache.open()
        except FileNotFoundError:
            found = scan(Path(self.info.root), threads)
            verify_unchanged(self.info, found.fingerprint())
            build([cache], found.paths, threads)
            return cache.open()


def open_dataset(found: Scan, seed: int, squares: Collection[tuple[int, Interpolation, View]], threads: int) -> Dataset:
    """The data set that a scan found, split, and decoded into a cache for each of the `squares`, by size in pixels.

    Files that cannot be used are in `info.problems`. Raises `DataError` when what is left is no data set, `UserError`
    for the cache folder.
    """
    identity = found.fingerprint()
    caches = [PixelCache(identity, *square) for square in sorted(set(squares))]
    unreadable = build(caches, found.paths, threads)
    usable = _usable(found, unreadable)
    samples = _split(found, usable.files, seed)
    counts = Counter(sample.split for sample in samples)
    images = {name: counts[name] for name in get_args(SplitName)}
    info = DatasetInfo(
        root=found.listing.root,
        classes=found.listing.classes,
        counts=images,
        fingerprint=identity,
        short_side=found.short_side,
        aspect=found.aspect,
        problems=usable.problems,
    )
    return Dataset(info, samples)


def verify_unchanged(info: DatasetInfo, now: str) -> None:
    """Raise `DataError` unless the fingerprint `now` is the one the run started with."""
    if now != info.fingerprint:
        raise DataError(
            f"the images in {info.root} are not those the run started with; restore them or start a new run"
        )


def write_split_csv(dataset: Dataset, path: Path) -> None:
    """Write `path,label,split,row,digest`, one line a sample, atomically: all that `read_dataset` needs."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    names = dataset.info.classes
    writer.writerows((s.path, names[s.label], s.split, s.row, s.digest) for s in dataset.samples)
    content = text.getvalue().encode("utf-8", "surrogateescape")  # file names that are not UTF-8 survive
    write_atomic_bytes(path, lambda file: file.write(content))


def read_dataset(split_csv: Path, info: DatasetInfo) -> Dataset:
    """The data set that `write_split_csv` wrote; no image is touched. Raises `RunFolderError` when it is damaged."""
    index = {name: label for label, name in enumerate(info.classes)}
    try:
        with split_csv.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            samples = tuple(_read_samples(file, index))
    except FileNotFoundError as error:
        raise RunFolderError(f"{split_csv} is missing; the run cannot go on without its split") from error
    except (KeyError, ValueError, csv.Error) as error:
        raise RunFolderError(f"{split_csv} is damaged ({error}); the run cannot go on without its split") from error
    if (found := Counter(sample.split for sample in samples)) != Counter(dict(info.counts)):
        raise RunFolderError(f"{split_csv} holds {dict(found)} images, the run has {dict(info.counts)}")
    return Dataset(info, samples)


def _read_samples(file: io.TextIOBase, index: Mapping[str, int]) -> Iterator[Sample]:
    splits: dict[str, SplitName] = {name: name for name in get_args(SplitName)}
    lines = csv.reader(file)
    if tuple(next(lines, ())) != COLUMNS:
        raise ValueError(f"its columns are not {','.join(COLUMNS)}")
    for path, label, split_name, row, digest in lines:
        if len(digest) != DIGEST_LENGTH:
            raise ValueError(f"line {lines.line_num} is cut off")
        yield Sample(int(row), path, index[label], splits[split_name], digest)


# ---------------------------------------------------------------- which files are used


@dataclass(frozen=True)
class _Usable:
    """Rows that become samples, and all files that do not."""

    files: tuple[tuple[int, ScannedFile], ...]
    problems: tuple[DataProblem, ...]


def _usable(found: Scan, unreadable: Mapping[int, str]) -> _Usable:
    broken = tuple(DataProblem(found.files[row].entry.path, reason) for row, reason in sorted(unreadable.items()))
    if len(broken) == len(found.files):
        raise all_unreadable(found.listing.root, broken)
    readable = [(row, file) for row, file in enumerate(found.files) if row not in unreadable]
    strictest: dict[str, ScannedFile] = {}
    for _, file in readable:
        best = strictest.setdefault(file.digest, file)
        if _HELD_OUT[file.entry.split] > _HELD_OUT[best.entry.split]:
            strictest[file.digest] = file
    leaked = {row: strictest[f.digest].entry for row, f in readable if strictest[f.digest].entry.split != f.entry.split}
    leaks = tuple(
        DataProblem(found.files[row].entry.path, f"the same image is in {twin.split} ({twin.path})")
        for row, twin in leaked.items()
    )
    kept = tuple((row, file) for row, file in readable if row not in leaked)
    return _Usable(kept, (*found.problems, *broken, *leaks))


def _split(found: Scan, files: tuple[tuple[int, ScannedFile], ...], seed: int) -> tuple[Sample, ...]:
    digests = [file.digest for _, file in files]
    labels = [file.entry.label for _, file in files]
    given = [file.entry.split for _, file in files]
    require_enough(found.listing.classes, digests, labels, given)
    chosen = split(digests, labels, given, seed)
    return tuple(
        Sample(row, file.entry.path, file.entry.label, name, file.digest)
        for (row, file), name in zip(files, chosen, strict=True)
    )
