"""Make `autoft/builtin/timm_parameters.csv`: how many parameters every pretrained timm architecture has, and its sizes.

    python benchmarks/make_timm_parameters.py

Each architecture is built without its classifier on torch's meta device, so no memory is filled and no weight is
loaded. An architecture that cannot be built that way is named on stderr and left out. With timm 1.0.31 there is none.

`size_step` is 0 where timm says that any size goes in, and where nothing but the pretrained size does. Otherwise the
network can be built for multiples of it: timm takes the pretrained tensors to a few other sizes, as it does with a
checkpoint, none of them is left without a value, and the network gives features there.
"""

from __future__ import annotations

import argparse
import csv
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from torch import Tensor, nn

TABLE = Path(__file__).parents[1] / "autoft" / "builtin" / "timm_parameters.csv"
SMALLEST_SIZE = 64
# Of pyramids, which halve what they see three times after their patches, or begin with a convolutional stem.
PYRAMID_STEPS = (32, 64, 96, 128)
PATCHES = range(8, 65)


def architectures() -> list[str]:
    """The architectures with pretrained weights, each once, in timm's order."""
    return list(dict.fromkeys(tag.split(".")[0] for tag in timm.list_pretrained()))


def rows() -> Iterator[tuple[str, int, int]]:
    """Architecture, parameter count of the headless model, and size step."""
    for number, arch in enumerate(architectures(), 1):
        try:
            with torch.device("meta"):
                model = timm.create_model(arch, num_classes=0)
        except Exception as error:
            print(f"{arch}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        if number % 50 == 0:
            print(f"{number} {arch}", file=sys.stderr, flush=True)
        yield arch, sum(parameter.numel() for parameter in model.parameters()), size_step(arch, model)


def size_step(arch: str, model: nn.Module) -> int:
    """What the sizes that the architecture can be built for are multiples of; 0 where there is no choice."""
    cfg = timm.get_pretrained_cfg(arch)
    if not cfg.fixed_input_size or len(set(cfg.input_size[1:])) > 1:
        return 0
    trial = Trial.of(arch)
    for step in _steps(model):
        fewest = -(-SMALLEST_SIZE // step)
        sizes = {fewest * step, (fewest + 1) * step, cfg.input_size[-1] // step * step}
        if all(trial.can_be_built(size) for size in sorted(sizes)):
            return step
    return 0


def _steps(model: nn.Module) -> Iterable[int]:
    """Steps worth trying, the finest first: a size that is no multiple of a patch would lose its edge."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    side = patch[0] if isinstance(patch, tuple) and len(set(patch)) == 1 else patch
    return (side, 2 * side) if side in PATCHES else PYRAMID_STEPS


@dataclass(frozen=True)
class Trial:
    """An architecture of `options`, its pretrained tensors, and how many features it gives at its own size."""

    arch: str
    options: Mapping[str, Any]
    pretrained: Mapping[str, Tensor]
    width: int

    @classmethod
    def of(cls, arch: str) -> Trial:
        """With two of its blocks, where it takes a `depth`: what one does with positions all of them do."""
        size = timm.get_pretrained_cfg(arch).input_size[-1]
        with torch.device("meta"):
            try:
                options = {"depth": 2}
                model = timm.create_model(arch, **options)
            except Exception:
                options = {}
                model = timm.create_model(arch)
            width = _width(timm.create_model(arch, num_classes=0, **options), size)
        return cls(arch, options, model.state_dict(), width)

    def can_be_built(self, size: int) -> bool:
        """Whether timm puts all of the pretrained tensors into a network for that size, which then gives features."""
        missing: list[str] = []
        load = nn.Module.load_state_dict

        def noting(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            result = load(module, *args, **kwargs)
            missing.extend(result.missing_keys)
            return result

        # of timm's two ways the one by which weights come from the Hub
        overlay = {"state_dict": dict(self.pretrained), "custom_load": False}
        sized = {"num_classes": 0, "img_size": size, "pretrained_cfg_overlay": overlay, **self.options}
        try:
            with torch.device("meta"), mock.patch.object(nn.Module, "load_state_dict", noting):
                model = timm.create_model(self.arch, pretrained=True, **sized)
            return not missing and _width(model, size) == self.width
        except Exception:
            return False


def _width(model: nn.Module, size: int) -> int:
    """How many features the network gives of an image of that size; 0 when it gives something else."""
    with torch.inference_mode():
        features = model.eval()(torch.zeros(2, 3, size, size, device="meta"))
    return features.shape[1] if features.ndim == 2 else 0


def main() -> None:
    """Write the table."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("arch", "parameters", "size_step"))
        writer.writerows(rows())


if __name__ == "__main__":
    main()
