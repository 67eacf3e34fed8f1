"""A run over small networks of several families, begun and ready for slices."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from parts.data import source

from autoft.engine.engine import begin
from autoft.engine.sitting import Sitting
from autoft.parts.host import Host
from autoft.runners.inline import InlineRunner
from autoft.study.run import Run
from autoft.study.study import Study
from autoft.system.clock import RunClock
from autoft.system.screen import Silent
from autoft.system.stopwatch import Stopwatch

ZOO = str(Path(__file__).parent / "small_zoo.py")


def small_run(images: Path, folder: Path, plugins: Sequence[str] = (ZOO,), freeze: Sequence[str] = ()) -> Run:
    """In `folder`, over the images, 64 px."""
    study = Study(
        data=str(images),
        plugins=tuple(plugins),
        freeze=tuple(freeze),
        backbones=("small/*",),
        image_size=64,
        runner="inline",
        precision="fp32",  # in which results are compared to the last places
    )
    now = time.time()
    sitting = Sitting(Host.discover(study.plugins), InlineRunner(), Silent(), Stopwatch(now), RunClock(now, study.time))
    return begin(study, source(images), folder, sitting)
