"""`ordered_map`: in order, little ahead, to be stopped."""

from __future__ import annotations

import threading

import pytest

from autoft.system.parallel import ordered_map


def test_order_is_kept_and_it_runs_only_a_little_ahead():
    started = []
    results = ordered_map(lambda item: started.append(item) or item, range(100), 2)
    assert [next(results) for _ in range(10)] == list(range(10))
    assert len(started) <= 10 + 6
    assert list(results) == list(range(10, 100))


def test_a_failure_in_a_thread_comes_out():
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda item: 1 // item, [1, 0, 1], 2))


def test_it_stops_while_an_item_takes_long():
    release, seen = threading.Event(), []

    def check():
        if seen:
            raise TimeoutError

    def slow(item: int):
        seen.append(item)
        release.wait(20)

    with pytest.raises(TimeoutError):
        list(ordered_map(slow, range(100), 1, check))
    release.set()
    assert len(seen) == 1
