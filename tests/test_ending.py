"""What the end of a run is going to cost, and budgets that cannot hold one."""

from __future__ import annotations

import itertools
import math
import time
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest

from autoft.bundle.parity import QUICK
from autoft.engine.ending import (
    CHECKING_SECONDS,
    FEWEST_TESTED,
    FIXED_SECONDS,
    FURTHER_SECONDS,
    IMPORTING_SECONDS,
    MEASURING_SECONDS,
    MOST_OF_A_BUDGET,
    SECONDS_A_PARAMETER,
    STARTING_SECONDS,
    WITHOUT_PREPARATION_SECONDS,
    Decoding,
    Ending,
    bare_seconds,
    fixed_seconds,
    least_seconds,
    require_any_time,
    require_enough_time,
    require_more_time,
)
from autoft.errors import StudyError
from autoft.study.record import Machine
from autoft.study.study import Study
from autoft.system.clock import RunClock
from autoft.values.backbone import Backbone, InputSpec
from autoft.values.ledger import Ledger
from autoft.values.space import Space
from autoft.values.trial import Candidate, Clock, Costs, Queued, Report, Slice, Trial

CHEAP = Candidate("z/cheap", "probe", 64, Space({}), "closed_form", cost=0.01)
DEAR = Candidate("z/dear", "probe", 224, Space({}), "closed_form", cost=10.0)
PARAMETERS = {CHEAP.backbone: 1_000_000, DEAR.backbone: 30_000_000}


class Prepared:
    """A preparation that has these backbones ready; the one that is begun will be in so many seconds."""

    def __init__(self, *ready, takes=math.inf, begun=None):
        self.ready, self.takes, self.begun = ready, takes, begun

    def expected(self, slowness):
        return 10.0 * slowness

    def ready_in(self, backbone, image_size, slowness):
        return 0.0 if backbone in self.ready else self.takes


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    monkeypatch.setattr("autoft.engine.ending.cores", lambda: 1)


def ending(record, preparation, slowness=1.0):
    return Ending(record, preparation, RunClock(time.time(), record.study.time), lambda: slowness)


def record(seconds=600.0, test=1000):
    counts = {"train": 3 * test, "val": test, "test": test}
    return SimpleNamespace(
        study=Study("data", time=seconds),
        data=SimpleNamespace(counts=counts),
        candidates=(CHEAP, DEAR),
        backbones=tuple(Backbone(name, size, InputSpec(64)) for name, size in PARAMETERS.items()),
        validation=None,
        machine=Machine("inline", 1, 1, "cpu"),
    )


def scored(candidate: Candidate, an_image: float) -> Ledger:
    trial = candidate.trial(0, {}, 0)
    costs = Costs(image=an_image)
    started = Queued(0, Slice(trial, 0.0, 1.0, 99.0), Clock(0.0, 99.0))
    return Ledger([started, Report(0, "finished", 1.0, 0.5, 1.0, costs=costs)])


def test_before_there_is_a_score_the_graph_that_was_begun_is_reckoned_with():
    given, nothing = record(test=10), Ledger([])
    not_begun = ending(given, Prepared())(nothing, None)
    late, in_time, ready = (
        ending(given, Prepared(*names, begun=("z/dear", 224), takes=takes))(nothing, None)
        for names, takes in (((), 600.0), ((), 60.0), (("z/dear",), 600.0))
    )
    assert (late, in_time, ready) == (pytest.approx(not_begun + without_preparation(DEAR)), not_begun, not_begun)


def test_what_is_measured_counts_for_more_than_what_is_guessed():
    reserve = ending(record(), Prepared("z/cheap", "z/dear"))
    slow, quick = (reserve(scored(CHEAP, an_image), None) for an_image in (0.02, 0.0001))
    assert slow - quick == pytest.approx(1000 * (0.02 - 0.0001) + 18 * 4 * 0.02 - 64 * 4 * 0.0001)


def test_a_busy_machine_is_reckoned_with_once():
    """What was measured on it is slow already."""
    alone, crowded = (ending(record(), Prepared("z/cheap"), slowness) for slowness in (1.0, 3.0))
    measured, nothing = scored(CHEAP, 0.001), Ledger([])
    more = fixed_seconds(3.0) - fixed_seconds(1.0)
    assert more == 2 * (FIXED_SECONDS - MEASURING_SECONDS)
    assert crowded(measured, None) - alone(measured, None) == pytest.approx(more)
    assert crowded(nothing, None) > alone(nothing, None) + more


def test_how_crowded_the_machine_is_is_asked_once_for_an_answer():
    asked = []
    one = Ending(record(), Prepared(), RunClock(time.time(), 600.0), lambda: asked.append(1) or 2.0)
    one(Ledger([]), None)
    one.testable(scored(CHEAP, 0.001), scored(CHEAP, 0.001).trials[0].trial, 60.0)
    assert len(asked) == 2


def test_a_graph_that_nobody_has_begun_to_prepare_is_reckoned_with_where_it_will_be_late():
    """Preparing it goes on beside the search, unless the machine is too crowded for that."""
    given = record(61.5, test=10)
    given.candidates, given.backbones = (CHEAP,), given.backbones[:1]
    in_time, late = (ending(given, Prepared(), slowness)(Ledger([]), None) for slowness in (1.0, 5.0))
    more = fixed_seconds(5.0) - fixed_seconds(1.0) + 5.0 * without_preparation(CHEAP)
    assert late - in_time == pytest.approx(more, abs=0.5)


def without_preparation(candidate):
    return WITHOUT_PREPARATION_SECONDS + SECONDS_A_PARAMETER * PARAMETERS[candidate.backbone]


@pytest.mark.parametrize("candidate", [CHEAP, DEAR])
def test_a_graph_that_nobody_prepares_is_reckoned_with_by_how_large_the_network_is(candidate):
    ledger = scored(candidate, 0.0001)
    ready, without = (ending(record(), one, 2.0)(ledger, None) for one in (Prepared(candidate.backbone), Prepared()))
    assert without - ready == pytest.approx(2.0 * without_preparation(candidate))


def test_a_dear_trial_has_to_end_earlier_should_it_win():
    reserve = ending(record(), Prepared("z/cheap", "z/dear"))
    dear = Trial(1, DEAR.backbone, DEAR.freeze, DEAR.image_size, {}, 0)
    ledger = scored(CHEAP, 0.0001)
    assert reserve(ledger, dear) > reserve(ledger, None)


def test_no_end_takes_more_than_half_of_the_budget():
    assert ending(record(seconds=10.0), Prepared())(scored(CHEAP, 1.0), None) == 5.0


def test_further_exporters_are_reckoned_with():
    plain, more = record(), record()
    more.study = replace(more.study, exporter=("onnx", "fp16", "text"))
    ledger = scored(CHEAP, 1e-4)
    alone, with_them = (ending(one, Prepared("z/cheap"), 2.0)(ledger, None) for one in (plain, more))
    assert with_them - alone == pytest.approx(2 * 2.0 * without_preparation(CHEAP))
    assert ending(more, Prepared("z/cheap")).testable(ledger, ledger.trials[0].trial, 60.0) < ending(
        plain, Prepared("z/cheap")
    ).testable(ledger, ledger.trials[0].trial, 60.0)


def test_what_a_bundle_can_do_without_has_the_time_to_the_end_of_the_budget():
    end = ending(record(seconds=60.0), Prepared(), 2.0)
    assert end.spare() == pytest.approx(60.0 - MEASURING_SECONDS - 2 * CHECKING_SECONDS, abs=0.5)


def test_as_many_test_images_as_there_is_time_for():
    end, ledger = ending(record(), Prepared("z/cheap")), scored(CHEAP, 0.01)
    trial = ledger.trials[0].trial
    assert end.testable(ledger, trial, 60.0) > 5000
    assert end.testable(ledger, trial, -60.0) >= FEWEST_TESTED  # late, and still with a score
    assert end.testable(scored(CHEAP, 1.0), trial, 10.0) == FEWEST_TESTED


@pytest.mark.parametrize("ready", [(), ("z/cheap",)])
@pytest.mark.parametrize("slowness", [1.0, 2.5])
def test_the_end_with_as_many_test_images_fits_what_was_reserved(ready, slowness):
    """A graph that nobody has prepared is not taken for time to score test images."""
    fitted = 0
    for seconds, test, an_image in itertools.product(
        (20.0, 40.0, 120.0, 900.0), (10, 300, 20_000), (1e-4, 0.005, 0.05)
    ):
        given, ledger = record(seconds, test), scored(CHEAP, an_image)
        given.data.counts["val"] = 70
        end, trial = ending(given, Prepared(*ready), slowness), ledger.trials[0].trial
        reserved = end(ledger, None)
        missing = 0.0 if ready else slowness * without_preparation(CHEAP)
        besides = fixed_seconds(slowness) + missing + QUICK.takes(70, an_image)
        takes = besides + an_image * min(test, end.testable(ledger, trial, reserved))
        if reserved < MOST_OF_A_BUDGET * seconds:  # else there is not the time for it, and as little as may be is done
            fitted += 1
            assert takes <= reserved + 1e-6
        assert end.testable(ledger, trial, reserved) <= end.testable(ledger, trial, reserved + 9.0)
    assert fitted > 18


def test_in_little_time_the_export_of_a_graph_that_nobody_prepared_is_reckoned_with():
    given, ledger = record(24.0, test=10), scored(CHEAP, 0.0001)
    ready, without = (ending(given, one)(ledger, None) for one in (Prepared("z/cheap"), Prepared()))
    assert without - ready == pytest.approx(without_preparation(CHEAP))
    assert ending(given, Prepared())(Ledger([]), None) > FIXED_SECONDS + without_preparation(DEAR)


def decoding_refused(monkeypatch, marks, after=9.0, budget=45.0, of=1000):
    """What decoding is refused with that has done so many images at those run times; None where it goes on."""
    decoding = Decoding(RunClock(0.0, budget), after)
    for now, done in marks:
        monkeypatch.setattr(RunClock, "now", lambda _, now=now: now)
        try:
            decoding(done, of)
        except StudyError as refused:
            return str(refused)
    return None


def test_decoding_that_leaves_no_time_is_refused_as_soon_as_that_is_clear(monkeypatch):
    said = decoding_refused(monkeypatch, [(5.0, 1), (6.0, 21), (11.0, 101)])
    assert said.startswith("--time 45s is too short: 11 s are over, decoding the rest of 1,000 images takes about 54 s")
    assert said.endswith(" here, and starting and the export 9 s; give at least --time 90s")


@pytest.mark.parametrize(
    "marks",
    [
        [(40.0, 1), (41.0, 51)],  # whoever had the cache was waited for
        [(5.0, 1), (7.9, 101)],  # nobody knows yet
        [(5.0, 1), (25.0, 49), (29.0, 60)],  # one of the first was a large one
        [(5.0, 1), (11.0, 171)],  # 29 s; four fifths of that, were they smaller, and 9 after it would do
        [(5.0, 1), (44.0, 1000)],  # and now they are there
    ],
)
def test_decoding_goes_on_while_it_may_be_over_in_time(monkeypatch, marks):
    assert decoding_refused(monkeypatch, marks) is None


def test_a_budget_without_room_for_a_probe_is_refused_with_one_that_has():
    with pytest.raises(StudyError, match=r"--time 5s is too short: .* give at least --time 15s"):
        require_any_time(Study("data", time=5.0))
    require_any_time(Study("data", time=11.0))
    with pytest.raises(StudyError, match=r"--time 20s is too short: 18 s are over, .* give at least --time 30s"):
        require_enough_time(record(seconds=20.0, test=10), 18.0, least_seconds(record(test=10), "inline", 1.0))
    require_enough_time(record(seconds=30.0, test=10), 18.0, least_seconds(record(test=10), "inline", 1.0))


def test_the_least_that_gives_a_model_takes_longer_with_ray_and_on_a_crowded_machine():
    alone, crowded = (least_seconds(record(), "inline", slowness) for slowness in (1.0, 3.0))
    assert crowded == pytest.approx(3 * alone - 2 * MEASURING_SECONDS)  # which goes by the clock
    assert least_seconds(record(), "ray", 1.0) > alone


def test_a_budget_is_added_to_only_where_more_is_needed_than_the_run_had():
    short = record(seconds=10.0, test=10)
    with pytest.raises(StudyError, match=r"at least --time 20s$"):
        require_enough_time(short, 5.0, least_seconds(short, "inline", 1.0), had=60.0)


def test_more_time_that_holds_nothing_but_another_end_is_refused():
    with pytest.raises(StudyError, match=r"finished after 60 s, and --time 62s .* --time \+55s"):
        require_more_time(record(seconds=62.0), 60.0, had=50.0)
    require_more_time(record(seconds=120.0), 60.0, had=50.0)


@pytest.mark.parametrize("slowness", [1.0, 3.0])
def test_more_time_has_to_hold_a_short_trial_and_an_end_that_nobody_prepared(slowness, monkeypatch):
    """With less it was accepted, and over before anything was tried."""
    monkeypatch.setattr("autoft.engine.ending.start_slowness", lambda: slowness)
    process = IMPORTING_SECONDS + STARTING_SECONDS["inline"] + FURTHER_SECONDS + WITHOUT_PREPARATION_SECONDS
    least = slowness * process + fixed_seconds(slowness)
    for more, has_time in ((0.01, True), (-0.01, False)):
        with nullcontext() if has_time else pytest.raises(StudyError):
            require_more_time(record(seconds=60.0 + least + more), 60.0, had=60.0)


@pytest.mark.parametrize("seconds", [6.5, 20.0, 29.0, 31.0, 60.0])
def test_no_budget_that_is_refused_once_the_images_are_known_is_let_through_before(seconds):
    """Of networks that take no time: so is what Ray takes at least."""
    free = replace(CHEAP, cost=0.0)
    given = record(seconds, test=10)
    given.candidates = (free,)
    least = least_seconds(given, "inline", 1.0)
    assert least == bare_seconds(seconds, "inline", 1.0)
    assert least_seconds(given, "ray", 2.0) == bare_seconds(seconds, "ray", 2.0)
    with nullcontext() if seconds >= least + IMPORTING_SECONDS else pytest.raises(StudyError):
        require_any_time(given.study)


def test_a_finished_run_of_ray_may_go_on_without_it():
    given = record(seconds=73.0)
    given.machine = Machine("ray", 2, 1, "cpu")
    require_more_time(given, 60.0, had=60.0)
