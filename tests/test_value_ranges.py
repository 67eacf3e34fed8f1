"""Images whose values use little of their range, or more than one range: what can be learnt of them is learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from parts.notes import Notes
from PIL import Image

import autoft

FASHION = Path(__file__).parents[1] / "examples" / "fashion"
EACH = 60
CLASSES = ("bag", "coat", "sneaker")
Save = Callable[[NDArray[np.float64], Path, int], None]


def stripes() -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Faint ones in three directions, in noise: values about 1,200 of the 4,095 that a camera of 12 bits gives."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    for name, along in (("flat", x), ("upright", y), ("slanted", x + y)):
        for _ in range(EACH):
            waves = np.sin(2 * np.pi * along / rng.uniform(7, 9) + rng.uniform(0, 6))
            yield name, np.clip(1200 + 150 * waves + rng.normal(0, 60, (64, 64)), 0, 4095)


def clothes() -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Values from 0 to 1, which each of them reaches."""
    for name in CLASSES:
        for file in sorted((FASHION / name).iterdir())[:EACH]:
            grey = np.asarray(Image.open(file).convert("L")).astype(np.float64)
            yield name, grey / grey.max()


def camera(values: NDArray[np.float64], path: Path, number: int) -> None:
    """12 bits in a file of 16."""
    Image.fromarray(values.astype(np.uint16)).save(path.with_suffix(".png"))


def camera_in_8_bits(values: NDArray[np.float64], path: Path, number: int) -> None:
    Image.fromarray((values.astype(np.uint16) // 16).astype(np.uint8)).save(path.with_suffix(".png"))


def reflectance(values: NDArray[np.float64], path: Path, number: int) -> None:
    """Floats, of every other image some above 1, which a scale of its own would make black."""
    Image.fromarray((values * (0.95 if number % 2 else 1.05)).astype(np.float32)).save(path.with_suffix(".tif"))


def reflectance_below_one(values: NDArray[np.float64], path: Path, number: int) -> None:
    Image.fromarray((values * 0.95).astype(np.float32)).save(path.with_suffix(".tif"))


@pytest.mark.parametrize(
    ("images", "ways"),
    [(stripes, (camera, camera_in_8_bits)), (clothes, (reflectance, reflectance_below_one))],
    ids=["dark textures", "floats"],
)
def test_the_same_is_learnt_however_values_are_written(
    images: Callable[[], Iterator[tuple[str, NDArray[np.float64]]]], ways: tuple[Save, ...], tmp_path: Path
) -> None:
    """And handed over: its gate refuses no head that stands on directions of no variance."""
    accuracies = {}
    for save in ways:
        data = tmp_path / save.__name__
        for number, (name, values) in enumerate(images()):
            (data / name).mkdir(parents=True, exist_ok=True)
            save(values, data / name / f"{number:03}", number)
        summary = autoft.search(
            data,
            time="5m",
            trials=1,
            runner="inline",
            freeze="probe",
            backbones="lite/efficientnet_lite0",
            image_size=64,
            out=tmp_path / f"run_{save.__name__}",
            screen=Notes(),
        )
        assert summary.test is not None
        accuracies[save.__name__] = summary.test.metrics["accuracy"]
    assert min(accuracies.values()) >= 0.85, accuracies  # one in three by chance
    assert max(accuracies.values()) - min(accuracies.values()) <= 0.1, accuracies
