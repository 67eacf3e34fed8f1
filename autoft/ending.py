"""`Ending`: what the end of a run is going to cost, refined by what the search has measured."""

from __future__ import annotations

from dataclasses import dataclass

from autoft.ledger import Ledger
from autoft.shortlist import WORK_PER_SECOND, forward_work
from autoft.study import StudyRecord
from autoft.types import Trial

# Exporting, the gate on small images, latency, the bundle and leaving; benchmarks/budget.py measures them.
FIXED_SECONDS = 18.0
# How often the gate runs an image through torch or onnxruntime, in images.
GATE_IMAGES = 3 * 64
MOST_OF_A_BUDGET = 0.5


@dataclass(frozen=True)
class Ending:
    """Called with a ledger and a trial it gives the seconds from the end of the search to the end of the process.

    That is if the trial wins; None stands for the best so far.
    """

    record: StudyRecord

    def __call__(self, ledger: Ledger, trial: Trial | None) -> float:
        """Seconds; never more than a share of the budget."""
        ranking = ledger.ranking()
        winner = trial or (ranking[0].trial if ranking else None)
        an_image = self._measured(ledger, winner) if winner else None
        images = self.record.data.counts["test"] + min(GATE_IMAGES, 3 * self.record.data.counts["val"])
        scoring = images * (self._guess(winner) if an_image is None else an_image)
        return min(FIXED_SECONDS + scoring, MOST_OF_A_BUDGET * self.record.study.time)

    def _measured(self, ledger: Ledger, of: Trial) -> float | None:
        """Seconds a forward pass of one image took on a trial of the same backbone and size, on a CPU."""
        if self.record.device != "cpu":
            return None
        seen = (record for record in ledger.trials.values() if record.score is not None)
        alike = [r for r in seen if (r.trial.backbone, r.trial.image_size) == (of.backbone, of.image_size)]
        return max((record.costs.image for record in alike if record.costs.image), default=None)

    def _guess(self, of: Trial | None) -> float:
        """The same by the cost model, of the dearest candidate when nothing is known of the winner."""
        candidates = self.record.candidates
        costs = [c.cost for c in candidates if of and (c.backbone, c.image_size) == (of.backbone, of.image_size)]
        return forward_work(max(costs or [c.cost for c in candidates])) / WORK_PER_SECOND["cpu"]
