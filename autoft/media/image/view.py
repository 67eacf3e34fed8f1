"""Which view a run takes: how an image becomes the square that a network sees. `Preprocess` defines each exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping

from autoft.values.handoff import View

# Long side / short side of a median image beyond which the whole image is shown: 4:3, as most cameras have it, and a
# little more for sides that were rounded.
ELONGATED = 1.35
# Part of a median image that may be hidden without a word.
NEGLIGIBLE = 0.05
# What a view makes of the aspect ratio: of an image of 100 x 400 pixels, a crop shows 100 x 100 pixels; squashed it has
# as many as 200 x 200; padded it is 400 x 400 with its padding.
_STRETCH: Mapping[View, float] = {"crop": 0.0, "squash": 0.5, "pad": 1.0}


def choose_view(asked: str, aspect: float) -> View:
    """The view that was asked for; for "auto" one that fits images with this median aspect ratio.

    Elongated images are squashed rather than padded, as padding leaves the network few pixels of the image. Measured
    with a probe of EfficientNet-Lite0, accuracy on 240 images, crop / squash / pad: .25 / .95 / .89 on strips of 4:1,
    .25 / .93 / .90 on 2:1, when their ends tell four classes apart.
    """
    fitting: View = "squash" if aspect > ELONGATED else "crop"
    return next((view for view in _STRETCH if view == asked), fitting)


def views_to_compare(asked: str, aspect: float) -> tuple[View, ...]:
    """The views between which evidence has to decide, the one that `choose_view` gives first; () where none has to.

    One was asked for, or the images are nearly square, so that all views show about the same.
    """
    if asked in _STRETCH or 1 / aspect >= 1 - NEGLIGIBLE:
        return ()
    usual = choose_view(asked, aspect)
    return (usual, *(view for view in _STRETCH if view != usual))


def side_seen(view: View, short_side: int, aspect: float) -> int:
    """Side in pixels of the square that has the resolution of a median image, as the view shows it."""
    return round(short_side * math.pow(aspect, _STRETCH[view]))


def what_a_crop_hides(asked: str, view: View, aspect: float) -> str | None:
    """A line for the user who did not choose the whole image, unless the centre square shows nearly all of it."""
    shown = 1 / aspect
    if asked in ("squash", "pad") or shown >= 1 - NEGLIGIBLE:
        return None
    square = f"the centre square shows {100 * shown:.0f} % of a median image"
    return f"{square}; --view squash shows all" if view == "crop" else f"{square}, so images are squashed; see --view"
