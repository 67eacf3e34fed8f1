"""`Ending`: what the end of a run is going to cost, refined by what the search has measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from autoft.bundle.parity import FULL, QUICK, Gate
from autoft.engine.prepare import Preparation, is_little
from autoft.errors import StudyError
from autoft.study.machine import cores
from autoft.study.record import RunnerName, StudyRecord
from autoft.study.shortlist import WORK_PER_SECOND, forward_work
from autoft.study.study import CORE_EXPORTER, Study
from autoft.system.clock import RunClock
from autoft.system.starting import start_slowness
from autoft.values.counts import counted
from autoft.values.ledger import Ledger
from autoft.values.trial import Trial

# All seconds here are those of a machine of `start_slowness` 1 on which nothing else runs.
# From the end of the search to the end of the process for a network that takes no time: checkpoint, filling the graph,
# the gate on small images, figures, latency, the bundle checking itself; benchmarks/budget.py measures them.
FIXED_SECONDS = 4.0
# Of them, what takes as long on any machine: latency is measured for so many seconds.
MEASURING_SECONDS = 2.0
# And what comes after the further exporters besides that: the bundle is described, and checks itself.
CHECKING_SECONDS = 1.0
# An export that nobody has prepared, in the process of the search: so much, and so much for each parameter, as measured
# of EfficientNet-Lite0 (3.5 s, with a head on every stage) and 2, ResNet-50 and ConvNeXt-Tiny. In little time no graph
# is prepared beside the search: such an export is over sooner than one by a process that has to import what it takes.
WITHOUT_PREPARATION_SECONDS, SECONDS_A_PARAMETER = 3.0, 1.1e-7
MOST_OF_A_BUDGET = 0.5
# From here to the first step of a worker, in this process or in one of its own.
STARTING_SECONDS = {"inline": 2.0, "ray": 7.0}
TESTING_SHARE = 0.08  # of the time, for scoring the test images
# A run that is late already, or resumed at its end, has a score too: of so many images, or as many as that time holds.
FEWEST_TESTED, LEAST_TESTING_SECONDS = 200, 3.0
FEWEST_TRAINED = 64
# Of decoding: what has to be done until its pace is known, and of what is left by that pace, the least it may take.
TELLING_SECONDS, TELLING_IMAGES, TELLING_SHARE, QUICKEST = 3.0, 50, 0.1, 0.8
FURTHER_SECONDS = 2.0  # for a trial of a finished run, at the least
# In this process, before anything can be decoded: torch is imported, and the images are listed.
IMPORTING_SECONDS = 1.0


@dataclass(frozen=True)
class Ending:
    """Called with a ledger and a trial it gives the seconds from the end of the search to the end of the process.

    That is if the trial wins; None stands for the best so far.
    `clock` is that of the sitting, `slowness` how many times as long things take here; what this run has measured has
    that in it.
    """

    record: StudyRecord
    preparation: Preparation
    clock: RunClock
    slowness: Callable[[], float]

    def __call__(self, ledger: Ledger, trial: Trial | None) -> float:
        """Seconds; never more than a share of the budget."""
        winner = trial or (ledger.winner.trial if ledger.winner else None)
        slowness = self.slowness()
        prepared = self._once_prepared(ledger, winner, slowness)
        left = self.clock.budget - self.clock.now() - prepared
        seconds = prepared + self._missing(winner, slowness, left) + self._passed_over(winner, slowness)
        return min(seconds, MOST_OF_A_BUDGET * self.record.study.time)

    def prepare(self, ledger: Ledger) -> None:
        """Have the end's imports begun, and the leading network's graph prepared if it would be there in time."""
        self.preparation.import_ahead()
        winner, slowness = ledger.winner.trial if ledger.winner else None, self.slowness()
        prepared = self._once_prepared(ledger, winner, slowness)
        self.preparation.follow(ledger, self.clock.budget - self.clock.now() - prepared, slowness)

    def finish(self, trial: Trial) -> None:
        """When the search is over: wait for the trial's graph if one is prepared that will soon be there."""
        slowness = self.slowness()
        without = slowness * _without_preparation(self.record, trial)
        self.preparation.finish(trial.backbone, trial.image_size, without, slowness)

    def testable(self, ledger: Ledger, trial: Trial, seconds_left: float) -> int:
        """How many test images there is time to score when the export begins with so many seconds left."""
        slowness = self.slowness()
        an_image = self._image_seconds(ledger, trial, slowness)
        besides = fixed_seconds(slowness) + self._missing(trial, slowness, 0.0) + self._gate_seconds(an_image)
        besides += self._beside(trial, slowness)
        return max(self._least_tested(an_image), int((seconds_left - besides) / an_image))

    def spare(self) -> float:
        """Seconds there are now for what a bundle can do without."""
        return self.clock.budget - self.clock.now() - MEASURING_SECONDS - self.slowness() * CHECKING_SECONDS

    def _least_tested(self, an_image: float) -> int:
        seconds = min(LEAST_TESTING_SECONDS, TESTING_SHARE * self.record.study.time)
        return max(FEWEST_TESTED, int(seconds / an_image))

    def _once_prepared(self, ledger: Ledger, winner: Trial | None, slowness: float) -> float:
        """Seconds of an end whose graph is prepared."""
        an_image = self._image_seconds(ledger, winner, slowness)
        tested = self.record.data.counts["test"]
        scoring = an_image * (min(tested, self._least_tested(an_image)) if self._is_slow(an_image) else tested)
        return fixed_seconds(slowness) + scoring + self._gate_seconds(an_image) + self._beside(winner, slowness)

    def _missing(self, winner: Trial | None, slowness: float, left: float) -> float:
        """Seconds of an export that nobody has prepared; none where the winner's graph will be there in those `left`.

        Before there is a winner it is taken to be the one that is being prepared, and nobody having begun, one that
        will be.
        """
        address = winner.network if winner else self.preparation.begun
        without = slowness * _without_preparation(self.record, winner)
        if address is not None:
            takes = self.preparation.ready_in(*address, slowness)
        else:
            takes = math.inf if is_little(self.record.study.time) else self.preparation.expected(slowness)
        return 0.0 if takes <= left else without

    def _passed_over(self, winner: Trial | None, slowness: float) -> float:
        """Seconds for one export more where the first may turn out to be too slow, and others are not."""
        networks = {one.network for one in self.record.candidates}
        if self.record.study.max_latency is None or len(networks) == 1:
            return 0.0
        return slowness * _without_preparation(self.record, winner)

    def _beside(self, winner: Trial | None, slowness: float) -> float:
        """Seconds for the further exporters, taken to be as quick as that of the core; what takes longer is ended."""
        further = len(set(self.record.study.exporter) - {CORE_EXPORTER})
        return further * slowness * _without_preparation(self.record, winner)

    def _gate_seconds(self, an_image: float) -> float:
        return gate_of(self.record.study).takes(self.record.data.counts["val"], an_image)

    def _is_slow(self, an_image: float) -> bool:
        """Whether scoring all test images would take too much of the time; then as many as there is time for are."""
        return an_image * self.record.data.counts["test"] > TESTING_SHARE * self.record.study.time

    def _image_seconds(self, ledger: Ledger, of: Trial | None, slowness: float) -> float:
        """Seconds a forward pass of one image takes on all cores: as measured on this backbone and size, or guessed."""
        on_cpu = self.record.machine.device == "cpu"
        measured = ledger.image_seconds(of.backbone, of.image_size) if of and on_cpu else None
        an_image = measured or _crowding(slowness) * _guess(self.record, of)
        return an_image * min(1.0, self.record.machine.threads / cores())


def _without_preparation(record: StudyRecord, of: Trial | None) -> float:
    """What an export takes that nobody has prepared, of the largest backbone when nothing is known of the winner."""
    parameters = {backbone.name: backbone.parameters for backbone in record.backbones}
    most = max(parameters.values(), default=0)
    return WITHOUT_PREPARATION_SECONDS + SECONDS_A_PARAMETER * (parameters.get(of.backbone, most) if of else most)


def gate_of(study: Study) -> Gate:
    """How much a study wants compared before a model is handed over."""
    return FULL if study.full_parity else QUICK


def fixed_seconds(slowness: float) -> float:
    """What the end takes for a network that takes no time, once its graph is prepared."""
    return MEASURING_SECONDS + slowness * (FIXED_SECONDS - MEASURING_SECONDS)


def bare_seconds(time: float, runner: RunnerName, slowness: float) -> float:
    """What the least takes when a run has so much `time`, for networks that take none.

    That is a worker's start and the end; in little time nobody prepares the graph for that.
    """
    unprepared = WITHOUT_PREPARATION_SECONDS if is_little(time) else 0.0
    return slowness * (STARTING_SECONDS[runner] + unprepared) + fixed_seconds(slowness)


def least_seconds(record: StudyRecord, runner: RunnerName, slowness: float) -> float:
    """What the least that gives a model takes: a worker's start, the cheapest probe, and the end."""
    cheapest = forward_work(min(candidate.cost for candidate in record.candidates))
    scored = record.data.counts["val"] if record.validation is None else record.validation
    images = scored + FEWEST_TRAINED + min(record.data.counts["test"], FEWEST_TESTED)
    forward = images * cheapest / WORK_PER_SECOND[record.machine.device]
    return bare_seconds(record.study.time, runner, slowness) + _crowding(slowness) * forward


def require_enough_time(record: StudyRecord, elapsed: float, least: float, had: float | None = None) -> None:
    """Raise `StudyError` when the time left does not hold `least`, what the least that gives a model takes.

    A run that `had` so much time before is told how much more it takes.
    """
    if elapsed + least > record.study.time:
        raise StudyError(
            f"--time {record.study.time:g}s is too short: {elapsed:.0f} s are over, and starting, one probe and the "
            f"export take {least:.0f} s more here; give at least --time {_advice(elapsed + least, had)}"
        )


@dataclass
class Decoding:
    """The progress of decoding; `after` it come what the least takes, in seconds.

    Called with how many images are decoded it raises `StudyError` as soon as it is clear that the time does not hold
    both. Once all are there it does not: they are kept for a search with more time.
    """

    clock: RunClock
    after: float
    first: tuple[float, int] | None = None
    """When it was called first, in run time, and how many there were: what comes before that is no decoding."""

    def __call__(self, done: int, of: int) -> None:
        """Not before some seconds and a part of the images tell; what is left may be smaller images than those."""
        now = self.clock.now()
        began, before = self.first = self.first or (now, done)
        spent, decoded, left = now - began, done - before, of - done
        if not left or spent < TELLING_SECONDS or decoded < max(TELLING_IMAGES, TELLING_SHARE * of):
            return
        expected = spent / decoded * left
        if now + QUICKEST * expected + self.after <= self.clock.budget:
            return
        raise StudyError(
            f"--time {self.clock.budget:g}s is too short: {now:.0f} s are over, decoding the rest of "
            f"{counted(of, 'image')} takes about {expected:.0f} s here, and starting and the export "
            f"{self.after:.0f} s; give at least --time {_enough(now + expected + self.after)}s"
        )


def require_any_time(study: Study) -> None:
    """Raise `StudyError`, before anything slow begins, for a budget that could not hold a search of ten images here."""
    slowness = start_slowness()
    least = slowness * IMPORTING_SECONDS + bare_seconds(study.time, "inline", slowness)
    if study.time < least:
        raise StudyError(
            f"--time {study.time:g}s is too short: starting and the export alone take {least:.0f} s or more; give at "
            f"least --time {_enough(least)}s"
        )


def require_more_time(record: StudyRecord, elapsed: float, had: float) -> None:
    """Raise `StudyError` when a finished run that `had` less time gets some that holds nothing but another end.

    Whatever ran it before: where there is no time to start Ray, it goes on without.
    """
    least = _more_seconds()
    if record.study.time < elapsed + least:
        raise StudyError(
            f"the run is finished after {elapsed:.0f} s, and --time {record.study.time:g}s leaves no time to search: "
            f"starting, a trial and the export take {least:.0f} s; give it more, such as --time "
            f"{_advice(elapsed + 2 * least, had)}"
        )


def more_time(elapsed: float, had: float) -> str:
    """A `--time` that leaves some to search in a finished run that `had` so many seconds and used `elapsed`: `+40s`."""
    least = _more_seconds()
    return f"+{math.ceil(max(_enough(elapsed + 2 * least) - had, least))}s"


def _more_seconds() -> float:
    """What more time for a finished run has to hold: a start, a short trial, and an end whose graph nobody prepares."""
    slowness = start_slowness()
    process = IMPORTING_SECONDS + STARTING_SECONDS["inline"] + FURTHER_SECONDS + WITHOUT_PREPARATION_SECONDS
    return slowness * process + fixed_seconds(slowness)


def _advice(seconds: float, had: float | None) -> str:
    """A budget for `--time` that holds so many seconds; what to add to the one it had, where that is less."""
    enough = _enough(seconds)
    return f"{enough}s" if had is None or enough <= had else f"+{math.ceil(enough - had)}s"


def _enough(seconds: float) -> int:
    return 5 * math.ceil(1.2 * seconds / 5)


def _crowding(slowness: float) -> float:
    """What is left of it for arithmetic, which does not go by how quickly processes start."""
    return slowness / start_slowness()


def _guess(record: StudyRecord, of: Trial | None) -> float:
    """By the cost model, of the dearest candidate when nothing is known of the winner."""
    costs = [c.cost for c in record.candidates if of and c.network == of.network]
    return forward_work(max(costs or [c.cost for c in record.candidates])) / WORK_PER_SECOND["cpu"]
