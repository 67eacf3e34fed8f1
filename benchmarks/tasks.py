"""Several labels and numbers, end to end: a search of each, beside a linear head on frozen features of its backbone.

    python benchmarks/make_composites.py FOLDER --drawings DIR                    # see there
    python benchmarks/make_composites.py FOLDER --drawings DIR --unseen --seed 1 --count 2000
    python benchmarks/tasks.py FOLDER

Each search has five minutes. Its exported file is scored by onnxruntime and scikit-learn: on the run's own test images,
where that has to be what summary.json says, and on the unseen set, whose drawings are others. The head beside it is
scikit-learn's logistic or ridge regression on standardised features of the backbone that won, as it came, at the same
input size, fitted on the same training images, its strength chosen on the same validation images. Differences are held
against their standard error over 1,000 resamples of the images.
"""

from __future__ import annotations

import argparse
import csv
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import onnxruntime
import torch
from common import Check
from PIL import Image
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, r2_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

from autoft.media.image.decode import normalise, preprocess
from autoft.study.run import Run
from autoft.values.handoff import Preprocess

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
RESAMPLES = 1000
SAME = 1e-3  # of a figure of summary.json, which comes of the core file and cached pixels
WITHIN = 2.0  # standard errors that are noise

Rows = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Set:
    """Images and what is to be said of them, `(n, names)`."""

    images: Sequence[Path]
    truth: Rows


@dataclass(frozen=True)
class Row:
    """One task: its metric of the exported file and of the head beside it, on the unseen images."""

    task: str
    metric: str
    backbone: str
    freeze: str
    seconds: float
    validation: float
    test: float
    test_again: float
    unseen: float
    linear_head: float
    difference: float
    standard_error: float


@dataclass(frozen=True)
class Result:
    """Both tasks."""

    rows: tuple[Row, ...]


def map_of(answers: Rows, truth: Rows) -> float:
    """Mean average precision over the labels that occur."""
    occurs = truth.any(axis=0)
    return float(average_precision_score(truth[:, occurs], answers[:, occurs], average="macro"))


def r2_of(answers: Rows, truth: Rows) -> float:
    """R2, the mean over the columns."""
    return float(r2_score(truth, answers))


METRICS: dict[str, Callable[[Rows, Rows], float]] = {"map": map_of, "r2": r2_of}


def read(manifest: Path, names: Sequence[str], only: set[str] | None = None) -> Set:
    """The images of a manifest, those of `only` if it is given."""
    images, truth = [], []
    with manifest.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            if only is None or line["image"] in only:
                images.append(manifest.parent / line["image"])
                label = line.get("label")
                kinds = set(label.split("|")) if label is not None else set()
                truth.append([float(line[name]) if label is None else float(name in kinds) for name in names])
    return Set(images, np.array(truth))


def pixels(path: Path) -> Rows:
    """RGB `(height, width, 3)`."""
    return np.asarray(Image.open(path).convert("RGB"))


def answers_of(model: Path, images: Sequence[Path]) -> Rows:
    """What model.onnx says of images, `(n, names)`: its first output."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    first = session.get_outputs()[0].name
    return np.stack([session.run([first], {"image": pixels(path)})[0] for path in images])


def features_of(run: Run, images: Sequence[Path]) -> Rows:
    """Features of the winner's backbone as it came, `(n, dim)`."""
    summary = run.summary()
    assert summary is not None
    backbone = next(one for one in run.record.backbones if one.name == summary.best.backbone)
    network, spec = run.host().build(backbone), backbone.input
    network.module.eval()
    recipe = Preprocess(summary.best.image_size, spec.mean, spec.std, spec.interpolation, run.record.view)
    parts = []
    for start in range(0, len(images), 32):
        cut = [preprocess(pixels(path), recipe) for path in images[start : start + 32]]
        with torch.inference_mode():
            parts.append(network.features(torch.from_numpy(normalise(np.stack(cut), recipe))).numpy())
    return np.concatenate(parts)


def linear_head(task: str, training: tuple[Rows, Rows], validation: tuple[Rows, Rows], unseen: Rows) -> Rows:
    """What the best linear head on features says of the unseen ones."""
    score = METRICS["map" if task == "multi_label" else "r2"]
    scaler = StandardScaler().fit(training[0])
    scaled = [scaler.transform(features) for features in (training[0], validation[0], unseen)]
    best, found = -np.inf, unseen
    for strength in STRENGTHS:
        if task == "multi_label":
            one = LogisticRegression(C=1 / strength, max_iter=300)
            head = OneVsRestClassifier(one).fit(scaled[0], training[1])
            said = head.predict_proba
        else:
            said = Ridge(alpha=strength * len(scaled[0])).fit(scaled[0], training[1]).predict
        if (figure := score(said(scaled[1]), validation[1])) > best:
            best, found = figure, said(scaled[2])
    return np.asarray(found)


def standard_error(metric: Callable[[Rows, Rows], float], one: Rows, other: Rows, truth: Rows) -> float:
    """Of the difference of two answers' figures, over resamples of the images."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(truth), size=(RESAMPLES, len(truth)))
    return float(np.std([metric(one[rows], truth[rows]) - metric(other[rows], truth[rows]) for rows in drawn]))


def measure(folder: Path, task: str, budget: str) -> Row:
    """Search, export, score."""
    with common.workplace() as place:
        data = folder / task / "data.csv"
        finished, files = common.search(place, "--time", budget, "--backbones", "lite/*", data=data)
        run, summary = Run.open(files.path), files.summary
        names = run.record.data.targets.names
        metric = METRICS[summary.metric]
        splits = {
            split: read(data, names, {one.path for one in run.samples() if one.split == split})
            for split in ("train", "val", "test")
        }
        unseen = read(folder / f"{task}_new" / "data.csv", names)
        said = answers_of(files.model, unseen.images)
        known = [(features_of(run, splits[split].images), splits[split].truth) for split in ("train", "val")]
        beside = linear_head(task, known[0], known[1], features_of(run, unseen.images))
        assert summary.test is not None
        figures = metric(said, unseen.truth), metric(beside, unseen.truth)
        return Row(
            task=run.record.study.task,
            metric=summary.metric,
            backbone=summary.best.backbone,
            freeze=summary.best.freeze,
            seconds=round(finished.seconds, 1),
            validation=summary.validation.metrics[summary.metric],
            test=summary.test.metrics[summary.metric],
            test_again=metric(answers_of(files.model, splits["test"].images), splits["test"].truth),
            unseen=figures[0],
            linear_head=figures[1],
            difference=figures[0] - figures[1],
            standard_error=standard_error(metric, said, beside, unseen.truth),
        )


def checks_of(row: Row) -> list[Check]:
    """The targets of one task."""
    better = f"{row.difference:+.4f} ({row.standard_error:.4f})"
    return [
        Check(
            f"{row.task}: {row.metric} of the exported file on the test images, and summary.json",
            f"{row.test_again:.4f}, {row.test:.4f}",
            "equal",
            abs(row.test_again - row.test) <= SAME,
        ),
        Check(
            f"{row.task}: {row.metric} on unseen images above a linear head on frozen features",
            better,
            f"above {WITHIN:g} standard errors",
            row.difference > WITHIN * row.standard_error,
        ),
    ]


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where make_composites.py wrote its sets")
    parser.add_argument("--time", default="5m")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    rows = [measure(options.folder.resolve(), task, options.time) for task in ("multi_label", "regression")]
    table = [
        (
            row.task,
            row.metric,
            f"{row.backbone}, {row.freeze}",
            f"{row.validation:.4f}",
            f"{row.test:.4f}",
            f"{row.unseen:.4f}",
            f"{row.linear_head:.4f}",
            f"{row.difference:+.4f} ({row.standard_error:.4f})",
        )
        for row in rows
    ]
    columns = ("task", "metric", "best trial", "validation", "test", "unseen", "linear head", "difference (s.e.)")
    common.show(f"{options.time} each", columns, table)
    return common.publish("tasks", Result(tuple(rows)), [check for row in rows for check in checks_of(row)])


if __name__ == "__main__":
    sys.exit(main())
