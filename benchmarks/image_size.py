"""What enlarging small images brings and costs: accuracy and seconds of a probe, by input size and backbone.

    python benchmarks/image_size.py

The example's images have 28 pixels. For each Lite backbone and input size a run of its own probes them with everything
cold; its model is then scored on 2,000 further images. `seconds` are those of the probe's slice: loading the weights,
one pass over 800 images, the ridge path. The evidence for `ENLARGE` in `autoft/study/shortlist.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import common
import make_fashion
from fashion_search import LITE, count_correct, folder_images

SIZES = (32, 64, 96, 128, 224)


@dataclass(frozen=True)
class Point:
    """One backbone at one input size."""

    backbone: str
    image_size: int
    seconds: float
    validation: float
    test: float
    further: float


@dataclass(frozen=True)
class Result:
    """Every backbone at every size."""

    further_images: int
    points: tuple[Point, ...]


def probe(backbone: str, size: int, further: Path) -> Point:
    """Probe the example with one backbone at one size."""
    with common.workplace() as place:
        only = ("--backbones", backbone, "--freeze", "probe", "--image-size", str(size), "--trials", "1")
        _, run = common.search(place, *only, "--time", "10m", "--runner", "inline")
        (record,) = run.ledger.trials.values()
        summary = run.summary
        images = folder_images(further)
        return Point(
            backbone=backbone,
            image_size=size,
            seconds=round(record.seconds, 2),
            validation=summary.validation.metrics["accuracy"],
            test=summary.test.metrics["accuracy"] if summary.test else 0.0,
            further=round(count_correct(run.model, images) / len(images), 4),
        )


def measure(sizes: tuple[int, ...], backbones: tuple[str, ...], a_class: int) -> Result:
    """Probe everything."""
    with common.workplace() as place:
        further = place.path / "further"
        make_fashion.write_further(further, a_class=a_class)
        points = tuple(probe(backbone, size, further) for size in sizes for backbone in backbones)
    return Result(a_class * len(make_fashion.CLASSES), points)


def show(result: Result) -> None:
    """One line a size: the mean over backbones."""
    by_size: dict[int, list[Point]] = defaultdict(list)
    for point in result.points:
        by_size[point.image_size].append(point)
    rows = [
        (size, *(f"{sum(values) / len(points):.{digits}f}" for values, digits in _columns(points)))
        for size, points in by_size.items()
    ]
    columns = ("pixels", "further accuracy", "validation", "test", "seconds")
    common.show("probe by input size, mean over backbones", columns, rows)


def _columns(points: list[Point]) -> list[tuple[list[float], int]]:
    accuracies = ([p.further for p in points], [p.validation for p in points], [p.test for p in points])
    return [*((values, 4) for values in accuracies), ([p.seconds for p in points], 2)]


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="pixels")
    parser.add_argument("--backbones", nargs="+", default=list(LITE))
    parser.add_argument("--further", type=int, default=make_fashion.FURTHER_A_CLASS, help="further images a class")
    options = parser.parse_args()
    result = measure(tuple(options.sizes), tuple(options.backbones), options.further)
    show(result)
    return common.publish("image_size", result, [])


if __name__ == "__main__":
    sys.exit(main())
