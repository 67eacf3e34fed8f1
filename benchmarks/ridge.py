"""Memory and time of the closed-form head on many images, many classes, and more features than images.

    python benchmarks/ridge.py

Each problem is fitted in a process of its own with two threads: random class centres and noise, as float32 features.
`fit_gb` is the peak of the process's resident memory during the fit beyond what it held before, the features among it;
`features_gb` is what the caller holds. `gap` is the longest time between two questions whether to stop. Targets for the
largest: 3 GB with the features, 5 minutes, and a gap of two seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import common
import torch
from common import Check

from autoft.tasks.ridge import ridge_of_classes

LIMIT_GB, LIMIT_SECONDS, LIMIT_GAP = 3.0, 300.0, 2.0
THREADS = 2
SAMPLES_A_SECOND = 20


@dataclass(frozen=True)
class Problem:
    """Features `(images, dim)` of so many classes."""

    images: int
    dim: int
    classes: int


PROBLEMS = (Problem(60_000, 1_280, 1_000), Problem(2_000, 3_072, 100), Problem(150, 1_280, 50))


@dataclass(frozen=True)
class Fit:
    """One fit; memory in GB (10^9 bytes), `cpu_seconds` of all threads, `gap` in seconds."""

    problem: Problem
    features_gb: float
    before_gb: float
    fit_gb: float
    peak_gb: float
    seconds: float
    cpu_seconds: float
    gap: float
    loo_accuracy: float
    new_accuracy: float


@dataclass(frozen=True)
class Result:
    """Every problem, with so many threads each."""

    threads: int
    fits: tuple[Fit, ...]


class Observer:
    """Samples the resident memory of this process, and times the questions whether to stop."""

    def __init__(self) -> None:
        self.before = self.peak = _resident()
        self.gap = 0.0
        self._asked = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Observer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.check()
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        """What the fit asks."""
        now = time.monotonic()
        self.gap, self._asked = max(self.gap, now - self._asked), now

    def _sample(self) -> None:
        while not self._over.wait(1 / SAMPLES_A_SECOND):
            self.peak = max(self.peak, _resident())


def _resident() -> float:
    """Resident memory of this process in GB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024 / 1e9


def images_of(problem: Problem, images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features `(images, dim)` float32, made a part at a time, and labels `(images,)`."""
    centres = torch.randn(problem.classes, problem.dim, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % problem.classes
    features = torch.empty(images, problem.dim)
    for part, own in zip(features.split(1000), labels.split(1000), strict=True):
        part.normal_(0.0, 5.0, generator=generator).add_(centres[own])
    return features, labels


def fit(problem: Problem) -> Fit:
    """Fit one problem in this process."""
    torch.set_num_threads(THREADS)
    features, labels = images_of(problem, problem.images, 1)
    ridge_of_classes(features[:64, :8], labels[:64] % 2, 2)  # what libraries load at their first use is not the fit's
    began, cpu = time.monotonic(), time.process_time()
    with Observer() as observer:
        head = ridge_of_classes(features, labels, problem.classes, observer.check)
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu
    fresh, truth = images_of(problem, 2_000, 2)
    answers = (fresh @ head.weight.T + head.bias).argmax(dim=1)
    return Fit(
        problem=problem,
        features_gb=round(features.nbytes / 1e9, 3),
        before_gb=round(observer.before, 3),
        fit_gb=round(observer.peak - observer.before, 3),
        peak_gb=round(observer.peak, 3),
        seconds=round(seconds, 2),
        cpu_seconds=round(cpu_seconds, 2),
        gap=round(observer.gap, 2),
        loo_accuracy=round(float(head.facts["loo_accuracy"]), 4),
        new_accuracy=round(float((answers == truth).double().mean()), 4),
    )


def fit_apart(place: common.Workplace, problem: Problem) -> Fit:
    """Fit one problem in a process of its own."""
    size = (str(problem.images), str(problem.dim), str(problem.classes))
    finished = place.run((sys.executable, Path(__file__).resolve(), "--problem", *size)).require_success()
    values = json.loads(finished.stdout)
    return Fit(**{**values, "problem": problem})


def checks(fits: tuple[Fit, ...]) -> list[Check]:
    """The largest problem against its targets, and the questions of all."""
    largest, gap = max(fits, key=lambda fit: fit.problem.images), max(fit.gap for fit in fits)
    used = largest.features_gb + largest.fit_gb
    return [
        Check("features and fit of the largest, GB", f"{used:.2f}", f"<= {LIMIT_GB:g}", used <= LIMIT_GB),
        Check("its whole process, GB", f"{largest.peak_gb:.2f}", f"<= {LIMIT_GB:g}", largest.peak_gb <= LIMIT_GB),
        Check("its seconds", f"{largest.seconds:.0f}", f"<= {LIMIT_SECONDS:g}", largest.seconds <= LIMIT_SECONDS),
        Check("longest gap between checks, s", f"{gap:.2f}", f"<= {LIMIT_GAP:g}", gap <= LIMIT_GAP),
    ]


def show(result: Result) -> None:
    """One line a problem."""
    columns = ("problem", "features GB", "fit GB", "peak GB", "s", "CPU s", "gap s")
    rows = []
    for one in result.fits:
        memory, seconds = (one.features_gb, one.fit_gb, one.peak_gb), (one.seconds, one.cpu_seconds, one.gap)
        rows.append((" x ".join(map(str, asdict(one.problem).values())), *memory, *seconds))
    common.show("closed-form head", columns, rows)


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problem", type=int, nargs=3, metavar=("IMAGES", "DIM", "CLASSES"), help="fit only this one")
    options = parser.parse_args()
    if options.problem:
        print(json.dumps(asdict(fit(Problem(*options.problem)))))
        return 0
    with common.workplace() as place:
        result = Result(THREADS, tuple(fit_apart(place, problem) for problem in PROBLEMS))
    show(result)
    return common.publish("ridge", result, checks(result.fits))


if __name__ == "__main__":
    sys.exit(main())
