"""What this machine offers a search, and how a study shares it out."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import dataclass
from typing import Literal

from autoft.errors import StudyError
from autoft.study import Study

PACKAGES = ("autoft", "torch", "timm", "onnx", "onnxruntime", "ray", "numpy", "pillow")


@dataclass(frozen=True)
class Machine:
    """How slices run: `workers` at a time, each with `threads` threads, on `device`; `cores` are this process's."""

    runner: Literal["inline", "ray"]
    device: Literal["cpu", "cuda"]
    workers: int
    threads: int
    cores: int


def share_out(study: Study, inline_only: bool) -> Machine:
    """Workers and threads for a study: one worker a core or a GPU unless it says otherwise.

    `inline_only` when a plugin cannot travel to other processes. Raises `StudyError` for a runner that cannot be had.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = torch.cuda.device_count()
    most = max(1, int(gpus / study.gpus_per_trial)) if gpus else cores
    runner = _runner(study, inline_only)
    workers = 1 if runner == "inline" else study.workers or most
    return Machine(runner, "cuda" if gpus else "cpu", workers, max(1, cores // workers), cores)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run does; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _runner(study: Study, inline_only: bool) -> Literal["inline", "ray"]:
    has_ray = importlib.util.find_spec("ray") is not None
    if study.runner == "ray" and not has_ray:
        raise StudyError(
            "--runner ray needs ray, which is not installed; pip install 'ray[tune]' or use --runner inline"
        )
    if study.runner == "ray" and inline_only:
        raise StudyError("--runner ray cannot use a plugin defined in __main__; put it into a file and give it with -p")
    return "inline" if study.runner == "inline" or inline_only or not has_ray else "ray"
