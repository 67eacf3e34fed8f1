"""A refit held against its twin, on images that both have trained on: no others can tell the two apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from autoft.store import Checkpoint
from autoft.tasks.statistics import bootstrap, value_of
from autoft.train.job import CHECKED_IMAGES
from autoft.train.workshop import Bench
from autoft.values.trial import Parent, Report

HALF_A_STEP: Final = 0.5  # passes are rounded to steps, of which a refit has others than its twin
ALMOST_ALL: Final = 0.9  # of the passes: a deadline that comes a little early throws nothing away


def held_against_its_twin(bench: Bench, report: Report) -> Report:
    """What the slice of a refit comes to: no score, as it has seen the images of one.

    Paused unless it is through, or as good as that, and failed with the cause where its loss has not fallen, as its
    twin's has, or it is worse than its twin by more than chance on images that both have trained on. Raises
    `LookupError` when the twin's checkpoint is gone.
    """
    unscored = replace(report, score=None, standard_error=None, bound=None, folds=None)
    slack = HALF_A_STEP / max(1, report.costs.steps_a_pass)
    if report.step + slack < ALMOST_ALL * bench.job.slice.until:
        return replace(unscored, event="paused")
    cause = _Comparison.of(bench, report).problem()
    return replace(unscored, event="failed" if cause else "finished", error=cause, refused=cause is not None)


@dataclass(frozen=True, eq=False)
class _Comparison:
    """Outputs `(n, outputs)` of refit and twin for training images with these `targets` `(n, ...)`.

    `twin_score` is the twin's on images that it has not seen.
    """

    bench: Bench
    refit: NDArray[np.float32]
    twin: NDArray[np.float32]
    targets: NDArray[Any]
    twin_score: float

    @classmethod
    def of(cls, bench: Bench, report: Report) -> _Comparison:
        """On a fair sample of the training images."""
        shop, twin = bench.shop, bench.trial.twin
        assert twin is not None
        dataset, images = shop.dataset, shop.dataset.stratified("train", shop.record.study.seed)[:CHECKED_IMAGES]
        rows, before = dataset.rows("train")[images], shop.saved(twin)
        outputs = _outputs(bench, shop.saved(Parent(bench.trial.id, report.step)), rows)
        score = shop.score(before.logits) if before.logits is not None else -np.inf
        return cls(bench, outputs, _outputs(bench, before, rows), dataset.targets("train")[images], score)

    def problem(self) -> str | None:
        """Why the refit is not to be used; None when it may be."""
        if not np.isfinite(self.refit).all():
            return "its outputs are not finite"
        if self.bench.plan.fit == "gradient":
            loss, twins, ignorant = (self._loss(of) for of in (self.refit, self.twin, np.zeros_like(self.refit)))
            if twins < ignorant <= loss or math.isnan(loss):  # of a sure head a few errors may cost more than no answer
                return f"its loss has not fallen: on training images it is {loss:.3g}, and {ignorant:.3g} from zeros"
        return self._worse()

    def _worse(self) -> str | None:
        """By how much it is worse than its twin, when it is.

        More images are fitted less closely, so it may be: by what chance explains and half of what the twin is better
        by on images that it has seen than on those that it has not.
        """
        task, facts, n = self.bench.shop.task, self.bench.shop.record.metric, len(self.targets)
        metric, both = task.metric(facts.name), {"refit": self.refit, "twin": self.twin}
        statistics = {name: metric.statistic(task.judged(outputs), self.targets) for name, outputs in both.items()}
        drawn = bootstrap(statistics, n)
        apart = drawn["refit"] - drawn["twin"]
        apart = apart[np.isfinite(apart)]
        refit, twin = (value_of(statistics[name], n) for name in ("refit", "twin"))
        room = max(0.0, twin - self.twin_score) / 2
        if not len(apart) or np.percentile(apart, 97.5) >= -room:
            return None
        here, there = (facts.text(facts.shown(score)) for score in (refit, twin))
        return f"on {n} training images it comes to {facts.name} {here}, and its twin to {there}"

    def _loss(self, outputs: NDArray[np.float32]) -> float:
        targets = torch.from_numpy(self.targets)
        return self.bench.shop.task.loss(torch.from_numpy(outputs), targets, self.bench.plan.recipe).item()


def _outputs(bench: Bench, checkpoint: Checkpoint, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Outputs `(n, outputs)` of a checkpoint's classifier."""
    shop, classifier = bench.shop, bench.shop.restored(checkpoint).to(bench.shop.device)
    if bench.plan.fit == "closed_form":  # the backbone is as it came
        numbers = bench.forward(rows).numbers  # as both heads were fitted, so that most are kept
        features = shop.features.leading(bench.network, bench.images, rows, lambda: False, shop.check, numbers)
        return shop.outputs(classifier.head, [features.to(shop.device)])
    return shop.outputs(classifier, bench.images.batches(rows))
