"""Make `autoft/builtin/timm_parameters.csv`: how many parameters every pretrained timm architecture has.

    python benchmarks/make_timm_parameters.py

Each architecture is built without its classifier on torch's meta device, so no memory is filled and no weight is
loaded. An architecture that cannot be built that way is named on stderr and left out. With timm 1.0.31 there is none.
"""

from __future__ import annotations

import csv
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import timm
import torch

TABLE = Path(__file__).parents[1] / "autoft" / "builtin" / "timm_parameters.csv"


def architectures() -> list[str]:
    """The architectures with pretrained weights, each once, in timm's order."""
    return list(dict.fromkeys(tag.split(".")[0] for tag in timm.list_pretrained()))


def rows() -> Iterator[tuple[str, int]]:
    """Architecture and parameter count of the headless model."""
    for number, arch in enumerate(architectures(), 1):
        try:
            with torch.device("meta"):
                model = timm.create_model(arch, num_classes=0)
        except Exception as error:
            print(f"{arch}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        if number % 50 == 0:
            print(f"{number} {arch}", file=sys.stderr, flush=True)
        yield arch, sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Write the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("arch", "parameters"))
        writer.writerows(rows())


if __name__ == "__main__":
    main()
