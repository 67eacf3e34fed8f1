"""What ends what does not end by itself: signals, and the end of a time."""

from __future__ import annotations

import math
import os
import signal
import threading
import time

import pytest

from autoft.system.signals import TimeOver, stop_on_signals, time_limit


def test_a_block_is_interrupted_however_often_it_goes_on():
    began, interrupted = time.monotonic(), 0
    with pytest.raises(TimeOver), time_limit(0.1):
        while True:
            try:
                time.sleep(60)
            except BaseException:
                interrupted += 1
                if interrupted == 2:
                    raise
    assert 1.0 < time.monotonic() - began < 30.0


def test_nothing_is_left_of_a_limit_that_was_not_reached():
    def mine(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGALRM, mine)
    try:
        signal.setitimer(signal.ITIMER_REAL, 600.0)
        with time_limit(0.2):
            pass
        assert signal.getsignal(signal.SIGALRM) is mine
        assert 500.0 < signal.setitimer(signal.ITIMER_REAL, 0.0)[0] <= 600.0
        with time_limit(0.2):
            pass
        time.sleep(0.4)
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("seconds", [1e10, math.inf])
def test_a_limit_may_be_longer_than_a_timer(seconds):
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(seconds):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 1e8
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0


def test_a_limit_that_cannot_be_set_leaves_nothing_behind():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(ValueError, match="NaN"), time_limit(math.nan):
        pass
    assert signal.getsignal(signal.SIGALRM) is before


def test_a_thread_has_no_limit_and_takes_nobodys_signals():
    said = []

    def work():
        with time_limit(0.05):
            time.sleep(0.2)
            said.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert said == ["done"]


@pytest.mark.parametrize("early", [True, False], ids=["before", "within"])
def test_a_signal_interrupts_what_nobody_asks_between_its_steps(early):
    with stop_on_signals() as stopped:
        if early:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(KeyboardInterrupt), stopped.at_once():
            time.sleep(60)
        assert stopped.signal == signal.SIGTERM
