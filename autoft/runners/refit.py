"""`Refits`: the winner trained once more, on the validation images too: what that takes, and the slice that does it.

It is the last errand of a search, whichever searcher there was. The time for it is kept back as long as it is a small
part of all there is, and more passes would not be worth more: of a fine-tune on `examples/fashion` (ARCHITECTURE.md,
"Starting points") three passes are .033 better than one, and six .017 better than three.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from autoft.study.record import StudyRecord
from autoft.system.clock import RunClock
from autoft.system.starting import start_slowness
from autoft.train.job import CHECKED_IMAGES
from autoft.values.ledger import Ledger, TrialRecord
from autoft.values.trial import Candidate, Slice, Trial

Reserve = Callable[[Ledger, Trial | None], float]
"""Seconds the end of the run will take if that trial wins, or if the best so far does."""

REFIT_SHARE: Final = 0.25  # of the time: no more is kept back for a refit; where there happens to be more, it is taken
WORTH_PASSES: Final = 6.0  # a fine-tune of fewer gains more by further passes than by a third more images
MARGIN: Final = 1.1  # times what was measured: no two slices go at the same pace
# By which slices end behind their deadlines, where `start_slowness` is 1: more than a tenth of a refit of two seconds,
# which was then left out.
LATE_SECONDS: Final = 0.3
STARTING_SECONDS: Final = 0.5  # a network built, weights and images opened, where `start_slowness` is 1


@dataclass(frozen=True)
class Refits:
    """Plans the refits of a run; `ending` is what the end takes without one.

    `trainable` says of a backbone and a freeze strategy whether there are plugins that have them.
    """

    record: StudyRecord
    ending: Reserve
    clock: RunClock
    trainable: Callable[[str, str], bool] = lambda backbone, freeze: True

    def reserve(self, ledger: Ledger, trial: Trial | None) -> float:
        """Seconds from the end of the search to the end of the process, with the refit of the best so far.

        Without one for which it is too late already: its time is worth more to the search. Of another trial without:
        should it win in the last moment, it goes without a refit.
        """
        ending, best = self.ending(ledger, trial), self.winner(ledger)
        if best is None or ledger.refuted(best) or not self._is_trainable(best.trial):
            return ending
        if self.seconds(ledger, best) > self.clock.budget - self.clock.now() - ending:
            return ending
        if trial is None:
            return ending + self._planned(best, _with_margin(self.seconds(ledger, best)))
        return ending + (self._should_it_go_on(ledger, best, ending) if trial == best.trial else 0.0)

    def winner(self, ledger: Ledger) -> TrialRecord | None:
        """The trial to refit, the first that can be exported; None where there is none, or nothing left to do."""
        winner = None if self.record.study.no_refit else next(iter(ledger.exportable()), None)
        return None if winner is None or winner.is_refit else winner

    def due(self, ledger: Ledger) -> Slice | str | None:
        """The refit that the winner is still to get, in one line why it gets none; None where none is wanted."""
        winner = self.winner(ledger)
        return None if winner is None else self.errand(ledger, winner)

    def errand(self, ledger: Ledger, winner: TrialRecord) -> Slice | str:
        """The slice of the winner's refit; in one line why there is none."""
        trial = winner.refit(len(ledger.trials))
        return self.problem(ledger, trial) or self.slice(ledger, trial)

    def slice(self, ledger: Ledger, trial: Trial) -> Slice:
        """All of a refit: as many passes as its twin has, until the export has to begin."""
        twin = self._twin(ledger, trial)
        deadline = self.clock.budget - self.ending(ledger, trial) - self._checking(twin)
        return Slice(trial, 0.0, twin.best_step, deadline)

    def problem(self, ledger: Ledger, trial: Trial) -> str | None:
        """Why a refit is left out, in one line; None where it can be made."""
        twin = self._twin(ledger, trial)
        left_out = f"no refit of trial {twin.trial.id} on train + validation"
        if failed := ledger.refuted(twin):
            return f"{left_out}: it has failed before, {failed.error}"
        if not self._is_trainable(trial):
            return f"{left_out}: the plugin with its backbone or freeze strategy is switched off"
        if damage := ledger.damage(twin):
            return f"{left_out}: {damage}"
        for parent in trial.parents:
            if not ledger.has_checkpoint(parent):
                return f"{left_out}: the weights of trial {parent.trial}, with which it began, are not kept"
        ending = self.ending(ledger, trial)
        left = max(0.0, self.clock.budget - self.clock.now() - ending)
        if (needed := self.seconds(ledger, twin)) > left:
            takes, has = math.ceil(10 * needed) / 10, math.floor(10 * left) / 10  # never alike by rounding
            kept = f"{ending:.1f} s are kept free for the export"
            return f"{left_out}: it takes about {takes:.1f} s, and {has:.1f} s are left for it, as {kept}"
        return None

    def seconds(self, ledger: Ledger, record: TrialRecord) -> float:
        """What the refit of a trial takes that has a score, from what the trial was measured to cost."""
        return self._seconds(ledger, record, record.best_step)

    @property
    def growth(self) -> float:
        """How many times the training images it has."""
        counts = self.record.data.counts
        return (counts["train"] + counts["val"]) / counts["train"]

    def _seconds(self, ledger: Ledger, record: TrialRecord, passes: float) -> float:
        costs = record.costs
        scoring = 0.0 if self._is_closed_form(record.trial) else costs.scoring  # of features that there are
        besides = start_slowness() * STARTING_SECONDS + scoring + costs.saving + self._checking(record)
        return self._fitting(ledger, record, passes) + besides

    def _fitting(self, ledger: Ledger, record: TrialRecord, passes: float) -> float:
        costs = record.costs
        if self._is_closed_form(record.trial):
            # One that was tried again had its validation features already, and did not measure what an image takes.
            image = costs.image or ledger.image_seconds(*record.trial.network) or 0.0
            return costs.solving * self.growth / record.share + image * self._without_features(record)
        if costs.a_pass is None:  # too few steps to tell
            return self.growth * sum(one.seconds for one in record.reports if one.step <= passes)
        return self.growth * (passes * costs.a_pass + costs.solving)

    def _without_features(self, record: TrialRecord) -> float:
        """Images that a head in closed form was neither fitted on nor scored by."""
        counts, scored = self.record.data.counts, self.record.validation
        unscored = 0 if scored is None else counts["val"] - scored
        return (1.0 - record.share) * counts["train"] + unscored

    def _checking(self, record: TrialRecord) -> float:
        """Seconds to hold it against its twin; of a closed form the features are there."""
        images = min(CHECKED_IMAGES, self.record.data.counts["train"])
        return 0.0 if self._is_closed_form(record.trial) else 2 * images * record.costs.image

    def _should_it_go_on(self, ledger: Ledger, best: TrialRecord, ending: float) -> float:
        """Seconds to keep back when it trains on until just so much time is left as its refit takes then."""
        growth, so_far = MARGIN * self.growth, _with_margin(self._seconds(ledger, best, best.step))
        left = max(0.0, self.clock.budget - self.clock.now() - ending - so_far)
        return self._planned(best, so_far + growth * left / (1.0 + growth))

    def _planned(self, record: TrialRecord, seconds: float) -> float:
        """The seconds, or none where they are too many to be kept back, or better spent on further passes."""
        if not self._is_closed_form(record.trial) and record.best_step < WORTH_PASSES:
            return 0.0
        return seconds if seconds <= REFIT_SHARE * self.record.study.time else 0.0

    def _is_closed_form(self, trial: Trial) -> bool:
        candidate = next((one for one in self.record.candidates if _is_of(trial, one)), None)
        return candidate is not None and candidate.fit == "closed_form"

    def _is_trainable(self, trial: Trial) -> bool:
        return self.trainable(trial.backbone, trial.freeze)

    def _twin(self, ledger: Ledger, trial: Trial) -> TrialRecord:
        twin = trial.twin
        if twin is None:
            raise ValueError(f"trial {trial.id} is no refit")
        return ledger.trials[twin.trial]


def _with_margin(seconds: float) -> float:
    """What is kept back for a refit that was measured to take so long."""
    return MARGIN * seconds + start_slowness() * LATE_SECONDS


def _is_of(trial: Trial, candidate: Candidate) -> bool:
    address = (candidate.backbone, candidate.freeze, candidate.image_size)
    return address == (trial.backbone, trial.freeze, trial.image_size)
