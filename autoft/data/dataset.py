"""`Dataset`: the usable images of a folder, their split, and the way to their pixels."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from autoft.data.meaning import contradictions, meanings
from autoft.data.readers import read_labelled
from autoft.data.scan import DIGEST_LENGTH, Scan, ScannedFile, all_unreadable, scan
from autoft.data.split import Unsplit, require_enough, split, stratified_order
from autoft.errors import DataError, RunFolderError
from autoft.media.image.decode import PHOTOS_OF_PHONES
from autoft.media.image.pixel_cache import PixelCache, PixelMap, build
from autoft.parts.base import Task
from autoft.system.files import as_path, write_atomic
from autoft.system.natural import natural_key
from autoft.system.parallel import Check, Progress, never_stop, unwatched
from autoft.values.backbone import Interpolation
from autoft.values.dataset import DataProblem, DatasetInfo, Entry, Listing, Sample, SplitName, TrainOn, ValueRange
from autoft.values.handoff import View
from autoft.values.target import Targets

Square = tuple[int, Interpolation, View]
"""How an image becomes a square: size in pixels, interpolation, view."""

COLUMNS: Final = ("path", "label", "split", "row", "digest")
WITH_GROUPS: Final = (*COLUMNS, "group")
_STRICTNESS: Final[Mapping[SplitName, int]] = {name: number for number, name in enumerate(get_args(SplitName))}


@dataclass(frozen=True)
class Dataset:
    """Readable images with their split; `samples` by path; `task` is that of its targets.

    Pixels stay on disk until rows of them are asked for. What was once asked for stays open, so that no other run
    evicts it, for as long as this object lives.
    """

    info: DatasetInfo
    samples: tuple[Sample, ...]
    task: Task
    _maps: dict[PixelCache, PixelMap] = field(default_factory=dict, init=False, repr=False, compare=False)

    def rows(self, split: SplitName | TrainOn) -> NDArray[np.int64]:
        """Rows `(n,)` of a split, or of two together, in the pixel caches."""
        return np.array([sample.row for sample in self._of(split)], np.int64)

    def targets(self, split: SplitName | TrainOn) -> NDArray[Any]:
        """Targets `(n, ...)` of a split as its task encodes them, in the order of `rows`."""
        return self.task.encode(self.labels(split))

    def stratified(self, split: SplitName | TrainOn, seed: int) -> NDArray[np.int64]:
        """The positions `(n,)` of a split's images in an order whose every beginning is like the whole."""
        return stratified_order(self.task.strata(self.labels(split)), seed)

    def limited(self, split: SplitName, most: int) -> Dataset:
        """With at most so many images of a split, with the classes as in the whole."""
        rows = self.rows(split)
        kept = set(rows[self.stratified(split, 0)[:most]].tolist())
        return replace(self, samples=tuple(s for s in self.samples if s.split != split or s.row in kept))

    def apart(
        self, split: SplitName | TrainOn, most: int, squares: Collection[Square], threads: int, check: Check
    ) -> Dataset:
        """At most so many images of a split as a data set of its own, with the classes as in the whole.

        Only they are decoded, each once, for all `squares`. Raises as `build` does.
        """
        every = list(self._of(split))
        chosen = [every[place] for place in np.sort(self.stratified(split, 0)[:most])]
        rows = " ".join(str(sample.row) for sample in chosen)
        identity = hashlib.blake2b(f"{self.info.fingerprint} {rows}".encode(), digest_size=16).hexdigest()
        samples = tuple(replace(sample, row=row) for row, sample in enumerate(chosen))
        few = replace(self, info=replace(self.info, fingerprint=identity), samples=samples)
        caches = [few._cache(square) for square in sorted(set(squares))]
        build(caches, [self.file(sample) for sample in chosen], threads, check)
        few._open(caches)
        return few

    def towards(self, metric: str) -> Dataset:
        """For a search by that metric: a copy, which holds the same pixels. Raises `StudyError` as its task's does."""
        aimed = replace(self, task=self.task.towards(metric))
        aimed._maps.update(self._maps)
        return aimed

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
            found = scanned_again(self.info, threads, check)
            build(caches, found.paths, threads, check)
            self._open(caches)

    @property
    def parted(self) -> Mapping[str, tuple[SplitName, ...]]:
        """The groups that have images in several splits, which somebody gave so, and these splits."""
        places: defaultdict[str, set[SplitName]] = defaultdict(set)
        for sample in self.samples:
            if sample.group:
                places[sample.group].add(sample.split)
        in_order = get_args(SplitName)
        return {
            group: tuple(one for one in in_order if one in found) for group, found in places.items() if len(found) > 1
        }

    def labels(self, split: SplitName | TrainOn) -> list[str]:
        """Labels of a split as text, in the order of `rows`."""
        return [sample.label for sample in self._of(split)]

    def _of(self, split: SplitName | TrainOn) -> Iterator[Sample]:
        splits = split.split("+")
        return (sample for sample in self.samples if sample.split in splits)

    def _cache(self, square: Square) -> PixelCache:
        return PixelCache(self.info.fingerprint, *square, value_range=self.info.value_range)

    def _open(self, caches: Collection[PixelCache]) -> None:
        self._maps.update({cache: cache.open() for cache in caches})


@dataclass(frozen=True)
class Source:
    """What a data set is made of: the files of a scan, and the task that is `bound` to their labels."""

    found: Scan
    task: Task


def bound(task: Task, listing: Listing) -> Task:
    """The task of what a listing holds. Raises `DataError` when that cannot be learned, or is too little."""
    refused = _label_problems(task, listing.entries)
    entries = [entry for entry in listing.entries if entry.path not in refused]
    if not entries:
        path, cause = next(iter(refused.items()))
        raise DataError(f"no image in {listing.source} can be used for task {task.name!r}, e.g. {path}: {cause}")
    labels = sorted({entry.label for entry in entries}, key=natural_key)
    found = task.on(Targets(task.name, task.form, task.names(labels, listing.columns)))
    strata = found.strata([entry.label for entry in entries])
    images = [Unsplit(one.path, one.label, group, one.split) for one, group in zip(entries, strata, strict=True)]
    require_enough(found, images, strata)
    return found


def open_dataset(
    source: Source,
    seed: int,
    squares: Collection[Square],
    threads: int,
    check: Check = never_stop,
    progress: Progress = unwatched,
) -> Dataset:
    """The data set of a source, split, and decoded into a cache for each of the `squares`, which it holds.

    Files that cannot be used are in `info.problems`. `check`, and `progress` with how many are decoded, may raise to
    stop. Raises `DataError` when what is left is no data set, `UserError` for the cache folder.
    """
    found, task = source.found, source.task
    identity = found.fingerprint()
    caches = [PixelCache(identity, *square, value_range=found.value_range) for square in sorted(set(squares))]
    unreadable = build(caches, found.paths, threads, check, progress)
    usable = _usable(found, unreadable, task)
    samples = _split(found, usable.files, task, seed)
    info = _info(found, usable, samples, task)
    dataset = Dataset(info, samples, task.on(info.targets))
    dataset.hold(squares, threads, check)
    return dataset


def _info(found: Scan, usable: _Usable, samples: tuple[Sample, ...], task: Task) -> DatasetInfo:
    counts = Counter(sample.split for sample in samples)
    training = task.encode([sample.label for sample in samples if sample.split == "train"])
    return DatasetInfo(
        root=found.listing.root,
        targets=task.with_moments(task.targets, training),
        counts={name: counts[name] for name in get_args(SplitName)},
        fingerprint=found.fingerprint(),
        short_side=found.short_side,
        aspect=found.aspect,
        problems=usable.problems,
        value_range=found.value_range,
        contradictions=tuple(_contradictions(usable.files, task)),
        unseen=tuple(_unseen(usable.files, found.value_range)),
        manifest=found.listing.manifest,
        split_digest=_digest(_split_csv(samples)),
        left_alone=found.listing.left_alone,
        groups=len({sample.group for sample in samples if sample.group}),
    )


def labelled(samples: tuple[Sample, ...], info: DatasetInfo, task: Task) -> Dataset:
    """The data set of samples that `read_samples` read. Raises `RunFolderError` for labels that cannot be."""
    dataset = Dataset(info, samples, task.on(info.targets))
    try:
        for split in get_args(SplitName):
            dataset.targets(split)
    except (KeyError, ValueError) as error:
        raise RunFolderError(f"the run's labels are damaged ({error}); it cannot go on without its split") from error
    return dataset


def scanned_again(info: DatasetInfo, threads: int, check: Check = never_stop) -> Scan:
    """The files of a data set as it was; without photos of phones where only these make a difference.

    They are readable since, it may be, and have no row in what is kept. Raises `DataError` when the images are others.
    """
    found = scan(read_labelled(as_path(info.source), check), threads, check)
    for one in (found, found.without(PHOTOS_OF_PHONES)):
        if one.fingerprint() == info.fingerprint:
            return one
    raise DataError(f"the images in {info.root} are not those the run started with; restore them or start a new run")


def write_split_csv(dataset: Dataset, path: Path) -> None:
    """Write `path,label,split,row,digest`, and `group` if there are any, one line a sample, atomically.

    That is all that `read_samples` needs.

    Raises `RunFolderError` on a full or read-only disk.
    """
    try:
        write_atomic(path, _split_csv(dataset.samples))
    except OSError as error:
        hint = "make room, or choose another --out"
        raise RunFolderError(f"{path} cannot be written: {(error.strerror or str(error)).lower()}; {hint}") from error


def read_samples(split_csv: Path, info: DatasetInfo) -> tuple[Sample, ...]:
    """The samples that `write_split_csv` wrote; no image is touched.

    Raises `RunFolderError` when the file is missing, damaged or changed since.
    """
    try:
        text = split_csv.read_bytes().decode()
        samples = tuple(_read_samples(io.StringIO(text, newline="")))
    except FileNotFoundError as error:
        raise RunFolderError(f"{split_csv} is missing; the run cannot go on without its split") from error
    except (KeyError, ValueError, csv.Error) as error:
        raise RunFolderError(f"{split_csv} is damaged ({error}); the run cannot go on without its split") from error
    if (found := Counter(sample.split for sample in samples)) != Counter(dict(info.counts)):
        raise RunFolderError(f"{split_csv} holds {dict(found)} images, the run has {dict(info.counts)}")
    if info.split_digest and _digest(text) != info.split_digest:
        hint = "restore it from a backup, as the run cannot go on without its split"
        raise RunFolderError(f"{split_csv} was changed since the run began; {hint}")
    return samples


def _split_csv(samples: Sequence[Sample]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    columns = WITH_GROUPS if any(sample.group for sample in samples) else COLUMNS
    writer.writerow(columns)
    writer.writerows((s.path, s.label, s.split, s.row, s.digest, s.group)[: len(columns)] for s in samples)
    return text.getvalue()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_samples(file: io.TextIOBase) -> Iterator[Sample]:
    splits: dict[str, SplitName] = {name: name for name in get_args(SplitName)}
    lines = csv.reader(file)
    if tuple(next(lines, ())) not in (COLUMNS, WITH_GROUPS):
        raise ValueError(f"its columns are not {','.join(COLUMNS)}")
    for path, label, split_name, row, digest, *group in lines:
        if len(digest) != DIGEST_LENGTH:
            raise ValueError(f"line {lines.line_num} is cut off")
        yield Sample(int(row), path, label, splits[split_name], digest, *group)


# ---------------------------------------------------------------- which files are used


@dataclass(frozen=True)
class _Usable:
    """Rows that become samples, and all files that do not."""

    files: tuple[tuple[int, ScannedFile], ...]
    problems: tuple[DataProblem, ...]


def _usable(found: Scan, unreadable: Mapping[int, str], task: Task) -> _Usable:
    """What is left without the rows that cannot be read, and those whose label is of no use."""
    broken = tuple(DataProblem(found.files[row].entry.path, reason) for row, reason in sorted(unreadable.items()))
    if len(broken) == len(found.files):
        raise all_unreadable(found.listing.root, (*broken, *found.problems))
    unlabelled = _label_problems(task, found.listing.entries)
    readable = [
        (row, file)
        for row, file in enumerate(found.files)
        if row not in unreadable and file.entry.path not in unlabelled
    ]
    strictest: dict[str, ScannedFile] = {}
    for _, file in readable:
        best = strictest.setdefault(file.digest, file)
        if _STRICTNESS[file.entry.side] > _STRICTNESS[best.entry.side]:
            strictest[file.digest] = file
    leaked = {row: strictest[f.digest].entry for row, f in readable if strictest[f.digest].entry.side != f.entry.side}
    leaks = tuple(
        DataProblem(found.files[row].entry.path, f"the same image is in {twin.side} ({twin.path})")
        for row, twin in leaked.items()
    )
    kept = tuple((row, file) for row, file in readable if row not in leaked)
    labels = tuple(DataProblem(path, reason) for path, reason in unlabelled.items())
    repeats = contradictions(task, found.listing)
    return _Usable(kept, (*found.problems, *broken, *labels, *leaks, *repeats))


def _contradictions(files: Sequence[tuple[int, ScannedFile]], task: Task) -> Iterator[DataProblem]:
    """Images that have several labels, all on one side; they are used as all of them."""
    meaning = meanings(task, (file.entry.label for _, file in files))
    first: dict[str, Entry] = {}
    for _, file in files:
        one = first.setdefault(file.digest, file.entry)
        if meaning[one.label] != meaning[file.entry.label]:
            where = f"{one.label!r} ({one.path})"
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


def _label_problems(task: Task, entries: Sequence[Entry]) -> dict[str, str]:
    """Why images cannot be used for what their label says, by path."""
    causes = {label: task.problem(label) for label in dict.fromkeys(entry.label for entry in entries)}
    return {entry.path: cause for entry in entries if (cause := causes[entry.label])}


def _split(found: Scan, files: Sequence[tuple[int, ScannedFile]], task: Task, seed: int) -> tuple[Sample, ...]:
    unlabelled = _label_problems(task, found.listing.entries)
    entries = [entry for entry in found.listing.entries if entry.path not in unlabelled]
    groups = task.strata([entry.label for entry in entries])
    strata = {entry.path: group for entry, group in zip(entries, groups, strict=True)}
    meaning = meanings(task, (entry.label for entry in entries))
    images = [
        Unsplit(file.digest, meaning[entry.label], strata[entry.path], entry.split, entry.group)
        for _, file in files
        for entry in (file.entry,)
    ]
    require_enough(task, images, groups)
    return tuple(
        Sample(row, file.entry.path, file.entry.label, name, file.digest, file.entry.group)
        for (row, file), name in zip(files, split(images, seed), strict=True)
    )
