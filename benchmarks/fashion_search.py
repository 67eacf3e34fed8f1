"""The first command of the README, timed from outside, and its test score counted again by a stranger's fifteen lines.

    python benchmarks/fashion_search.py

Targets: two minutes end within 130 s from process start to exit; all three Lite backbones are probed; at least four
fine-tuning trials, one of them with three passes or more; the number of correct test images is exactly the one in
`summary.json`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import onnxruntime
from common import FASHION, Check, RunFiles
from PIL import Image

LITE = ("lite/efficientnet_lite0", "lite/efficientnet_lite1", "lite/efficientnet_lite2")
GRACE_SECONDS = 10.0
FINE_TUNED, PASSES = 4, 3.0
ROUNDING = 1e-6


def count_correct(model: Path, images: Iterable[tuple[Path, str]]) -> int:
    """How many of the labelled images the ONNX file gets right. It knows nothing of autoft but the file's metadata."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    labels = json.loads(session.get_modelmeta().custom_metadata_map["autoft.labels"])
    correct = 0
    for path, label in images:
        (top_k,) = session.run(["top_k"], {"image": np.asarray(Image.open(path).convert("RGB"))})
        correct += labels[top_k[0]] == label
    return correct


def split_images(split_csv: Path, split: str, data: Path) -> list[tuple[Path, str]]:
    """The files and labels of one split of a run."""
    with split_csv.open(encoding="utf-8", newline="") as file:
        return [(data / row["path"], row["label"]) for row in csv.DictReader(file) if row["split"] == split]


def folder_images(folder: Path) -> list[tuple[Path, str]]:
    """Every file of a class folder with its label."""
    return [(path, path.parent.name) for path in sorted(folder.glob("*/*"))]


@dataclass(frozen=True)
class Result:
    """One search from outside: seconds from process start to exit, and what its journal and its model hold."""

    budget: float
    seconds: float
    phases: dict[str, float]
    probed: tuple[str, ...]
    trials: int
    fine_tuned: int
    most_passes: float
    best: str
    validation_accuracy: float
    test_images: int
    correct_by_summary: int
    correct_by_hand: int


def measure(budget: float, seed: int) -> Result:
    """Search the example for `budget` seconds on Ray and count again."""
    with common.workplace() as place:
        options = ("--time", f"{budget:g}s", "--runner", "ray", "--seed", str(seed))
        finished, run = common.search(place, *options)
        return read(run, budget, finished.seconds)


def read(run: RunFiles, budget: float, seconds: float) -> Result:
    """The result that a run folder holds."""
    summary = run.summary
    if summary.test is None:
        raise RuntimeError("the run has no test score")
    closed_form = {(c.backbone, c.freeze) for c in run.record.candidates if c.fit == "closed_form"}
    scored = [record for record in run.ledger.trials.values() if record.score is not None]
    probes = [record for record in scored if (record.trial.backbone, record.trial.freeze) in closed_form]
    tuned = [record for record in scored if record not in probes]
    return Result(
        budget=budget,
        seconds=round(seconds, 2),
        phases=dict(summary.seconds),
        probed=tuple(sorted({record.trial.backbone for record in probes})),
        trials=len(run.ledger.trials),
        fine_tuned=len(tuned),
        most_passes=max((record.step for record in tuned), default=0.0),
        best=f"{summary.best.backbone} {summary.best.freeze} at {summary.best.image_size} px",
        validation_accuracy=summary.validation.metrics["accuracy"],
        test_images=summary.test.n,
        correct_by_summary=summary.test.correct,
        correct_by_hand=count_correct(run.model, split_images(run.path / "split.csv", "test", FASHION)),
    )


def checks(result: Result) -> list[Check]:
    """The result against its targets."""
    limit = result.budget + GRACE_SECONDS
    missing = sorted(set(LITE) - set(result.probed))
    by_hand, by_summary = result.correct_by_hand, result.correct_by_summary
    passes = result.most_passes
    return [
        Check("seconds from start to exit", f"{result.seconds:.1f}", f"<= {limit:g}", result.seconds <= limit),
        Check("Lite backbones probed", f"{3 - len(missing)} of 3", "3 of 3", not missing),
        Check("fine-tuning trials", str(result.fine_tuned), f">= {FINE_TUNED}", result.fine_tuned >= FINE_TUNED),
        Check("most passes of one", f"{passes:.2f}", f">= {PASSES:g}", passes >= PASSES - ROUNDING),
        Check("correct test images, by hand", str(by_hand), f"= {by_summary}", by_hand == by_summary),
    ]


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--time", type=float, default=120.0, help="seconds given to the search")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = measure(options.time, options.seed)
    print(f"best: {result.best}; test {result.correct_by_summary} of {result.test_images}")
    return common.publish("fashion_search", result, checks(result))


if __name__ == "__main__":
    sys.exit(main())
