"""The pace of a slice: what its first steps pay for is not taken for what the next ones cost."""

from __future__ import annotations

import math

import pytest

from autoft.train import pace as module
from autoft.train.pace import WARM_UP_STEPS, Pace


@pytest.fixture
def after(monkeypatch):
    """A pace after steps of so many seconds each."""

    def paced(*seconds, longest_guess=1.0, pause=0.0, filling=()):
        now = 0.0
        monkeypatch.setattr(module.time, "monotonic", lambda: now)
        found = Pace(longest_guess)
        besides = [*filling, *[0.0] * (len(seconds) - len(filling))]
        for one, more in zip(seconds, besides, strict=True):
            now += one + more
            found.step_done(more)
            now += pause
            if pause:
                found.paused()
        return found

    return paced


def test_first_steps_are_no_pace(after):
    assert after(*[18.0] * WARM_UP_STEPS).steady is None
    assert after(18.0, 0.5, 0.04, 0.04, 0.05).steady == pytest.approx(0.04)


def test_on_a_gpu_the_first_step_does_not_end_the_slice(after):
    assert after(18.0).expected == 1.0
    assert after(18.0, 0.04).expected == pytest.approx(0.04)


def test_on_cores_a_slow_first_step_is_believed(after):
    assert after(10.0, longest_guess=math.inf).expected == 10.0
    assert after(longest_guess=math.inf).expected == 1.0


def test_saving_is_no_step(after):
    assert after(1.0, 1.0, 1.0, pause=60.0).steady == pytest.approx(1.0)


def test_what_fills_a_cache_is_no_pace_but_the_next_step_may_do_it_too(after):
    assert after(1.0, 1.0, 1.0, 1.0, filling=(8.0, 8.0, 8.0, 8.0)).steady == pytest.approx(1.0)
    assert after(1.0, 1.0, 1.0, 1.0, filling=(8.0, 8.0, 8.0, 8.0)).expected == pytest.approx(9.0)
    assert after(1.0, filling=(8.0,), longest_guess=math.inf).expected == pytest.approx(9.0)
    assert after(1.0, 1.0, 1.0, 1.0, filling=(8.0,)).expected == pytest.approx(1.0)


def test_steps_that_are_only_queued_say_nothing_of_the_pace(monkeypatch):
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    pace, behind = Pace(1.0, behind=8), WARM_UP_STEPS + 8
    for number in range(behind + 3):
        now += 0.001 if number < behind else 0.02
        pace.step_done()
        assert pace.steady == (None if number < behind else pytest.approx(0.02))
