"""`Dataset`: the usable images of a folder, their split, and the way to their pixels."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from autoft.data.scan import DIGEST_LENGTH, Scan, ScannedFile, all_unreadable, scan
from autoft.data.split import require_enough, split, stratified_order
from autoft.errors import DataError, RunFolderError
from autoft.media.image.pixel_cache import PixelCache, PixelMap, build
from autoft.system.files import as_path, write_atomic
from autoft.system.parallel import Check, never_stop
from autoft.values.backbone import Interpolation
from autoft.values.dataset import DataProblem, DatasetInfo, Entry, Sample, SplitName, ValueRange
from autoft.values.handoff import View

Square = tuple[int, Interpolation, View]
"""How an image becomes a square: size in pixels, interpolation, view."""

COLUMNS: Final = ("path", "label", "split", "row", "digest")
_HELD_OUT: Final[Mapping[SplitName | None, int]] = {None: 0, "train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class Dataset:
    """Readable images with their split; `samples` by path. Pixels stay on disk until rows of them are asked for.

    What was once asked for stays open, so that no other run evicts it, for as long as this object lives.
    """

    info: DatasetInfo
    samples: tuple[Sample, ...]
    _maps: dict[PixelCache, PixelMap] = field(default_factory=dict, init=False, repr=False, compare=False)

    def rows(self, split: SplitName) -> NDArray[np.int64]:
        """Rows `(n,)` of a split in the pixel caches."""
        return np.array([sample.row for sample in self.samples if sample.split == split], np.int64)

    def labels(self, split: SplitName) -> NDArray[np.int64]:
        """Class indices `(n,)` of a split, in the order of `rows`."""
        return np.array([sample.label for sample in self.samples if sample.split == split], np.int64)

    def limited(self, split: SplitName, most: int) -> Dataset:
        """With at most so many images of a split, with the classes as in the whole."""
        rows = self.rows(split)
        kept = set(rows[stratified_order(self.labels(split), 0)[:most]].tolist())
        return Dataset(self.info, tuple(s for s in self.samples if s.split != split or s.row in kept))

    def file(self, sample: Sample) -> Path:
        """The image file of a sample."""
        return as_path(self.info.root) / as_path(sample.path)

    def pixels(
        self,
        size: int,
        interpolation: Interpolation = "bicubic",
        view: View = "crop",
        threads: int = 1,
        check: Check = never_stop,
    ) -> PixelMap:
        """Pixels `(rows, size, size, 3)` uint8, mapped read-only; index them with `rows`. Raises as `hold` does."""
        self.hold([(size, interpolation, view)], threads, check)
        return self._maps[self._cache((size, interpolation, view))]

    def hold(self, squares: Collection[Square], threads: int = 1, check: Check = never_stop) -> None:
        """Have the pixels of all `squares` at hand, and keep them from being evicted.

        Caches that are missing, because somebody deleted them, are built again; `check` may raise to stop that. Raises
        `DataError` when it needs images that have changed since, `UserError` when the cache folder cannot be written.
        """
        caches = [cache for cache in map(self._cache, sorted(set(squares))) if cache not in self._maps]
        try:
            self._open(caches)
        except FileNotFoundError:
            found = scan(as_path(self.info.root), threads, check)
            verify_unchanged(self.info, found.fingerprint())
            build(caches, found.paths, threads, check)
            self._open(caches)

    def _cache(self, square: Square) -> PixelCache:
        return PixelCache(self.info.fingerprint, *square, value_range=self.info.value_range)

    def _open(self, caches: Collection[PixelCache]) -> None:
        self._maps.update({cache: cache.open() for cache in caches})


def open_dataset(
    found: Scan, seed: int, squares: Collection[Square], threads: int, check: Check = never_stop
) -> Dataset:
    """The data set that a scan found, split, and decoded into a cache for each of the `squares`, which it holds.

    Files that cannot be used are in `info.problems`. `check` may raise to stop. Raises `DataError` when what is left is
    no data set, `UserError` for the cache folder.
    """
    identity = found.fingerprint()
    caches = [PixelCache(identity, *square, value_range=found.value_range) for square in sorted(set(squares))]
    unreadable = build(caches, found.paths, threads, check)
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
        value_range=found.value_range,
        contradictions=tuple(_contradictions(found.listing.classes, usable.files)),
        unseen=tuple(_unseen(usable.files, found.value_range)),
    )
    dataset = Dataset(info, samples)
    dataset.hold(squares, threads, check)
    return dataset


def verify_unchanged(info: DatasetInfo, now: str) -> None:
    """Raise `DataError` unless the fingerprint `now` is the one the run started with."""
    if now != info.fingerprint:
        raise DataError(
            f"the images in {info.root} are not those the run started with; restore them or start a new run"
        )


def write_split_csv(dataset: Dataset, path: Path) -> None:
    """Write `path,label,split,row,digest`, one line a sample, atomically: all that `read_dataset` needs.

    Raises `RunFolderError` on a full or read-only disk.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    names = dataset.info.classes
    writer.writerows((s.path, names[s.label], s.split, s.row, s.digest) for s in dataset.samples)
    try:
        write_atomic(path, text.getvalue())
    except OSError as error:
        hint = "make room, or choose another --out"
        raise RunFolderError(f"{path} cannot be written: {(error.strerror or str(error)).lower()}; {hint}") from error


def read_dataset(split_csv: Path, info: DatasetInfo) -> Dataset:
    """The data set that `write_split_csv` wrote; no image is touched. Raises `RunFolderError` when it is damaged."""
    index = {name: label for label, name in enumerate(info.classes)}
    try:
        with split_csv.open(encoding="utf-8", newline="") as file:
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


def _contradictions(classes: Sequence[str], files: Sequence[tuple[int, ScannedFile]]) -> Iterator[DataProblem]:
    """Images that stand in several classes of one split; they are used as all of them."""
    first: dict[tuple[str, SplitName | None], Entry] = {}
    for _, file in files:
        one = first.setdefault((file.digest, file.entry.split), file.entry)
        if one.label != file.entry.label:
            where = f"{classes[one.label]!r} ({one.path})"
            yield DataProblem(file.entry.path, f"the same image is in {where}; take one of the two away")


def _unseen(files: Sequence[tuple[int, ScannedFile]], scale: ValueRange | None) -> Iterator[DataProblem]:
    """Float images that are used, although pixels hold no number or the scale leaves a single grey of them."""
    bottom, top = scale or (0.0, 0.0)
    for _, file in files:
        if file.gaps:
            of = file.width * file.height
            yield DataProblem(file.entry.path, f"{file.gaps:,} of {of:,} pixels hold no number")
        low, high = file.values or (0.0, 0.0)
        if 0 < 255 * (high - low) < top - bottom:
            where = f"{bottom:g} to {top:g}, the one scale of all images"
            yield DataProblem(file.entry.path, f"values from {low:g} to {high:g} are one grey on {where}")


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
