"""What this machine offers a search, and how a study shares it out."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import dataclass
from typing import Literal

from autoft.errors import StudyError
from autoft.screen import Screen
from autoft.study import RunnerName, Study

PACKAGES = ("autoft", "torch", "timm", "onnx", "onnxruntime", "ray", "numpy", "pillow")


@dataclass(frozen=True)
class Machine:
    """How slices run: `workers` at a time, each with `threads` threads, on `device`; `cores` are this process's."""

    device: Literal["cpu", "cuda"]
    workers: int
    threads: int
    cores: int


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_runner(study: Study, inline_only: tuple[str, ...], screen: Screen) -> RunnerName:
    """The runner a study gets. `inline_only` names plugins that cannot travel to other processes.

    "auto" is Ray where that works; why it does not is said on the screen. Raises `StudyError` where Ray was asked for.
    """
    if study.runner == "inline":
        return "inline"
    if inline_only:
        reason = f"plugin {', '.join(inline_only)} is defined in __main__; put it into a file and give it with -p"
    elif importlib.util.find_spec("ray") is None:
        reason = "ray is not installed; pip install 'ray[tune]'"
    else:
        return "ray"
    if study.runner == "ray":
        raise StudyError(f"--runner ray cannot be used: {reason}")
    screen.note(f"one trial at a time in this process: {reason}")
    return "inline"


def share_out(study: Study, runner: RunnerName) -> Machine:
    """Workers and threads for a study: one worker a core or a GPU unless it says otherwise. Raises `StudyError`."""
    import torch

    gpus = torch.cuda.device_count()
    if 0 < gpus < study.gpus_per_trial:
        raise StudyError(f"--gpus-per-trial {study.gpus_per_trial:g} asks for more than the {gpus} GPUs there are")
    most = max(1, int(gpus / study.gpus_per_trial)) if gpus else cores()
    workers = 1 if runner == "inline" else study.workers or most
    return Machine("cuda" if gpus else "cpu", workers, max(1, cores() // workers), cores())


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run does; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
