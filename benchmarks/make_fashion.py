"""Make `examples/fashion/`: 1,000 real Fashion-MNIST images as a class folder, and more of them for scoring.

    python benchmarks/make_fashion.py                         # writes examples/fashion (committed)
    python benchmarks/make_fashion.py --further /tmp/further  # writes 2,000 others, 200 a class (not committed)

The example comes from the training file of Fashion-MNIST, the further images from its test file. No two images of
either are the same, pixel by pixel. The same file, seed and numpy always choose the same images. The source is the
Debian package dataset-fashion-mnist, or any folder with the four `.gz` files of
https://github.com/zalandoresearch/fashion-mnist (MIT licence).
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
EXAMPLE = Path(__file__).parents[1] / "examples" / "fashion"
CLASSES = (
    "t-shirt-top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
EXAMPLE_A_CLASS, FURTHER_A_CLASS = 100, 200
SEED = 20170828  # the day of the data set's paper, arXiv 1708.07747


@dataclass(frozen=True, eq=False)
class Part:
    """One file pair of Fashion-MNIST: grey pixels `(n, 28, 28)` uint8 and class indices `(n,)` uint8."""

    name: str
    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    @classmethod
    def read(cls, source: Path, name: str) -> Part:
        """The part called "train" or "t10k". Raises `OSError` when its files are not in `source`."""
        pixels = _idx(source / f"{name}-images-idx3-ubyte.gz", header=16).reshape(-1, 28, 28)
        return cls(name, pixels, _idx(source / f"{name}-labels-idx1-ubyte.gz", header=8))

    def choose(self, a_class: int, taken: set[bytes]) -> Iterator[int]:
        """Rows of `a_class` images of every class, at random, none with pixels in `taken`, which grows by them."""
        rng = np.random.default_rng(SEED)
        for label in range(len(CLASSES)):
            missing = a_class
            for row in map(int, rng.permutation(np.flatnonzero(self.labels == label))):
                if missing and (content := self.pixels[row].tobytes()) not in taken:
                    taken.add(content)
                    missing -= 1
                    yield row


def write_example(folder: Path, source: Path = DEBIAN) -> int:
    """Write the 1,000 images of `examples/fashion`; their number."""
    return write_training(folder, EXAMPLE_A_CLASS, source)


def write_further(folder: Path, source: Path = DEBIAN, a_class: int = FURTHER_A_CLASS) -> int:
    """Write the images that no search sees, `a_class` of every class, as a class folder; their number."""
    train, test = Part.read(source, "train"), Part.read(source, "t10k")
    taken: set[bytes] = set()
    list(train.choose(EXAMPLE_A_CLASS, taken))
    return _write(test, test.choose(a_class, taken), folder)


def write_training(folder: Path, a_class: int, source: Path = DEBIAN) -> int:
    """Write `a_class` images of every class from the training file, for benchmarks of scale; their number."""
    part = Part.read(source, "train")
    return _write(part, part.choose(a_class, set()), folder)


def _idx(path: Path, header: int) -> NDArray[np.uint8]:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def _write(part: Part, rows: Iterator[int], folder: Path) -> int:
    written = 0
    for row in rows:
        file = folder / CLASSES[part.labels[row]] / f"{part.name}-{row:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(part.pixels[row]).save(file, optimize=True)
        written += 1
    return written


def main() -> None:
    """Write one of the two folders."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--further", type=Path, help="write the 2,000 further images into this folder instead")
    parser.add_argument("--source", type=Path, default=DEBIAN, help="folder with Fashion-MNIST's four .gz files")
    options = parser.parse_args()
    if options.further:
        print(f"{write_further(options.further, options.source)} images in {options.further}")
    else:
        print(f"{write_example(EXAMPLE, options.source)} images in {EXAMPLE}")


if __name__ == "__main__":
    main()
