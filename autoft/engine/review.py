"""What is worth a line about labels before anything trains: what they may have been meant as, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, get_args

from autoft.data.dataset import Dataset, bound
from autoft.errors import DataError
from autoft.parts.base import Task
from autoft.system.screen import Screen
from autoft.tasks.forms.table import FORMS
from autoft.tasks.lookalikes import loosely, twins
from autoft.tasks.regression import numbers_in
from autoft.values.counts import counted
from autoft.values.dataset import Imbalance, Listing, SplitName
from autoft.values.target import MetricFacts

NAMES_SHOWN: Final = 5

NUMBERS: Final = 0.5
"""Part of the labels that are numbers from which somebody may have meant to predict numbers."""

_MISSING: Final = {
    "train": ("training", "the model will not know it"),
    "val": ("validation", "the search does not see how well it is told"),
    "test": ("test", "the test score does not see how well it is told"),
}


def bound_as_chosen(task: Task, known: Iterable[Task], listing: Listing, screen: Screen) -> Task:
    """The task of a listing, when nobody named one. Where most of its classes are numbers, a line says what to do.

    Raises as `bound` does, with that line after it.
    """
    numbers = next((one for one in known if one.form == "numbers"), None)
    if numbers is None or listing.classes or task.form == "numbers":
        return bound(task, listing)
    hint = _as_numbers(numbers, listing)
    try:
        found = bound(task, listing)
    except DataError as problem:
        if not hint:
            raise
        raise DataError(f"{problem}; {hint}") from problem
    if hint:
        screen.note(f"{FORMS[task.form].counted(found.targets)}: {hint}")
    return found


def _as_numbers(task: Task, listing: Listing) -> str:
    """How to predict the labels as numbers, where that may be meant; else empty."""
    filled = [entry for entry in listing.entries if entry.label]
    if sum(map(_is_numbers, (entry.label for entry in filled))) < NUMBERS * max(1, len(filled)):
        return ""
    causes = {label: task.problem(label) for label in dict.fromkeys(entry.label for entry in filled)}
    odd = [entry for entry in filled if causes[entry.label]]
    if not odd:
        return (
            f"the labels are numbers; to predict them as such add --task {task.name}, as ordered classes --task ordinal"
        )
    example = f"{odd[0].path}: {causes[odd[0].label]}"
    if len(odd) == len(filled):
        return f"the labels are numbers, but none that can be predicted as such, e.g. {example}"
    some = f"{len(filled) - len(odd)} of {len(filled)} labels are numbers (not that of {example})"
    return f"{some}; to predict these as such, without the others, add --task {task.name}"


def _is_numbers(label: str) -> bool:
    try:
        return bool(numbers_in(label))
    except ValueError:
        return False


def said_of(uneven: Imbalance, metric: MetricFacts, asked: str, task: Task) -> str:
    """That classes are uneven, and what that means for the metric: the one that was `asked` for, or why it is this."""
    sizes = f"{uneven.common!r} has {counted(uneven.most, 'image')} to train on, {uneven.rare!r} {uneven.fewest:,}"
    if metric.weighs_classes:
        first = task.metrics[0].name
        other = f"; --metric {first} has each image count alike" if asked == "auto" and first != metric.name else ""
        return f"{sizes}: searching by {metric.name}, to which each class counts alike{other}"
    alike = next((one.name for one in task.metrics if one.facts.weighs_classes), "")
    advice = f"; --metric {alike} has each class count alike" if alike else ""
    return f"{sizes}: by {metric.name} a rare class that is never found costs little{advice}"


def review(dataset: Dataset, screen: Screen) -> None:
    """Say which names no image of a split has, and which look alike; and of groups, that they are kept together.

    Raises `DataError` when a split to train or to choose by has not one: then no trial is better than another.
    """
    form, targets = FORMS[dataset.task.form], dataset.info.targets
    for split in get_args(SplitName):
        images_of = form.images_of(targets, dataset.targets(split))
        absent = [name for name, there in zip(targets.names, images_of, strict=True) if not there]
        if len(absent) < len(targets.names):
            _say_absent(split, absent, screen)
        elif split == "test":
            screen.note("not one test image has a label: the test score tells nothing")
        else:
            images = _MISSING[split][0]
            raise DataError(f"not one {images} image has a label, so no trial is better than another; add some that do")
    _say_groups(dataset, screen)
    for one, other in twins(targets.names, loosely) if form.name == "one_of" else ():
        screen.note(f"the classes {one!a} and {other!a} look alike, and are taken for two")


def _say_groups(dataset: Dataset, screen: Screen) -> None:
    if not dataset.info.groups:
        return
    parted = dataset.parted
    kept = f"{counted(dataset.info.groups, 'group')} of images, by the column group: each is in one split"
    screen.note(f"{kept} but for {len(parted)}" if parted else kept)
    for group, splits in list(parted.items())[:1]:
        screen.note(f"  group {group!r} has images in {' and '.join(splits)}, as the column split says")


def _say_absent(split: SplitName, absent: Sequence[str], screen: Screen) -> None:
    if absent:
        images, so = _MISSING[split]
        screen.note(f"no {images} image of {', '.join(_shown(absent))}: {so}")


def _shown(names: Sequence[str]) -> Iterator[str]:
    yield from map(repr, names[:NAMES_SHOWN])
    if len(names) > NAMES_SHOWN:
        yield f"{len(names) - NAMES_SHOWN} more"
