"""The pace of a slice: what its first steps pay for is not taken for what the next ones cost."""

from __future__ import annotations

import math

import pytest

from autoft.train.captured import EAGER_STEPS
from autoft.train.pace import WARM_UP_STEPS, Pace


def after(*seconds: float, device: str = "cpu", longest_guess: float = 1.0, filling: tuple[float, ...] = ()) -> Pace:
    """A pace after steps of so many seconds each."""
    found = Pace(device, longest_guess)
    besides = [*filling, *[0.0] * (len(seconds) - len(filling))]
    for one, more in zip(seconds, besides, strict=True):
        found.step_done(one, more)
    return found


@pytest.mark.parametrize("device", WARM_UP_STEPS)
def test_first_steps_are_no_pace(device):
    warm_up = [18.0] * WARM_UP_STEPS[device]
    assert after(*warm_up, device=device).steady is None
    assert after(*warm_up, 0.04, 0.04, 0.05, device=device).steady == pytest.approx(0.04)


def test_the_step_that_is_captured_is_no_pace():
    assert WARM_UP_STEPS["cuda"] > EAGER_STEPS


def test_on_a_gpu_the_first_step_does_not_end_the_slice():
    assert after(18.0, device="cuda").expected == 1.0
    assert after(18.0, 0.04, device="cuda").expected == pytest.approx(0.04)


def test_on_cores_a_slow_first_step_is_believed():
    assert after(10.0, longest_guess=math.inf).expected == 10.0
    assert after(longest_guess=math.inf).expected == 1.0


def test_what_fills_a_cache_is_no_pace_but_the_next_step_may_do_it_too():
    assert after(1.0, 1.0, 1.0, 1.0, filling=(8.0, 8.0, 8.0, 8.0)).steady == pytest.approx(1.0)
    assert after(1.0, 1.0, 1.0, 1.0, filling=(8.0, 8.0, 8.0, 8.0)).expected == pytest.approx(9.0)
    assert after(1.0, filling=(8.0,), longest_guess=math.inf).expected == pytest.approx(9.0)
    assert after(1.0, 1.0, 1.0, 1.0, filling=(8.0,)).expected == pytest.approx(1.0)
