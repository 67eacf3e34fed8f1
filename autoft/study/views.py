"""What it takes to compare views before a search: by which backbone, on how many images, in which time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

from autoft.data.dataset import Source, Square
from autoft.data.scan import Scan
from autoft.media.image.view import side_seen, views_to_compare
from autoft.study.shortlist import choose_size, forward_seconds, sized
from autoft.study.study import Study
from autoft.system.disk_cache import cache_limit
from autoft.values.backbone import Backbone
from autoft.values.handoff import View

SHARE: Final = 0.05
"""Of the time, for the features of all views; never more than `MOST_SECONDS`, as the first model waits for them."""

MOST_SECONDS: Final = 15.0

SHORTEST: Final = 60.0
"""Seconds that a run has: in fewer, importing torch and building a network before the search would count."""

MOST: Final = 600
"""Images: in the accuracies of two views on so many, a difference of .03 is clear."""

FEWEST: Final = 100
"""Images, where there are as many: fewer find big differences only."""

WHOLE: Final = 2000
"""Up to so many images are decoded in all views at once, as the run needs one of them; of more a sample is."""

CACHE_SHARE: Final = 0.1
"""Of the cache's limit, for views that the run may not go on with."""


@dataclass(frozen=True)
class Look:
    """A view, and the backbone as it is built for the input `size` in pixels that goes with it."""

    view: View
    backbone: Backbone
    size: int

    @classmethod
    def of(cls, study: Study, backbone: Backbone, view: View, found: Scan) -> Self:
        """With the size that the study would choose if the view were the run's."""
        side = side_seen(view, found.short_side, found.aspect)
        return cls(view, sized(study, backbone, side), choose_size(study, backbone.input, side))

    @property
    def square(self) -> Square:
        """What it makes of an image."""
        return self.size, self.backbone.input.interpolation, self.view


@dataclass(frozen=True)
class Comparison:
    """The `looks` to compare, the usual view first, on at most so many `images` in so many `seconds`.

    `obstacle` says why that is not to be done, if anything is in its way. `whole`: the data set is to be decoded for
    every look; else a sample of it is.
    """

    looks: tuple[Look, ...]
    images: int
    seconds: float
    whole: bool
    obstacle: str = ""

    @classmethod
    def of(cls, study: Study, backbones: Sequence[Backbone], source: Source, workers: int) -> Self | None:
        """With so many cores; None where the views are alike, or one was asked for.

        By the most promising backbone that can have as many images as there are use for, else by the one that can have
        most.
        """
        found = source.found
        views = views_to_compare(study.view, found.aspect)
        if not views:
            return None
        seconds, count = min(SHARE * study.time, MOST_SECONDS), len(found.files)

        def affordable(looks: Sequence[Look]) -> int:
            each = sum(forward_seconds(look.backbone, look.size, "cpu") for look in looks)
            return min(MOST, count, int(seconds * workers / each))

        choices = [tuple(Look.of(study, backbone, view, found) for view in views) for backbone in backbones]
        looks = max(choices, key=affordable)  # the first of equals
        one = cls(looks, affordable(looks), seconds, whole=_is_light(looks, count))
        if not source.task.has_closed_form:
            return replace(one, obstacle=f"task {source.task.name!r} has no closed form")
        if study.time < SHORTEST or one.images < min(FEWEST, count // 2):
            return replace(one, obstacle="there is too little time")
        return one

    @property
    def squares(self) -> frozenset[Square]:
        """What the looks make of images."""
        return frozenset(look.square for look in self.looks)

    @property
    def squares_of_all(self) -> frozenset[Square]:
        """What is to be made of every image."""
        return frozenset() if self.obstacle or not self.whole else self.squares


def _is_light(looks: Sequence[Look], images: int) -> bool:
    """Whether so many images may be decoded for all looks."""
    pixels = images * sum(3 * look.size**2 for look in looks[1:])
    return images <= WHOLE and pixels <= CACHE_SHARE * cache_limit()
