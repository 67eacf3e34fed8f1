"""How many slices share a GPU, on simulated cards."""

from __future__ import annotations

import itertools
import math
import random
import re
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft import Report, Slice, Trial
from autoft.runners.places import Ended, Places, SharedGpus, Where, pace, there
from autoft.runners.seats import is_better_free, take_seat
from autoft.runners.sharing import LAST_CHECK, SEEN_A_GPU, WORTH, Footprint, Occupancy, Pace, Shared, Sharing, Span
from autoft.study.record import Machine
from autoft.values.trial import Costs

MOST = 4
ROOMY = Footprint(reserved=500, others=400, card=80_000)


@dataclass(frozen=True)
class Card:
    """Slices on it come to `together[n - 1]` times one alone; kinds take so many seconds a step alone."""

    together: tuple[float, ...]
    noise: float = 0.0
    kinds: tuple[float, ...] = (0.01, 0.02, 0.05)

    def step(self, kind: int, number: int, rng: random.Random) -> float:
        return self.kinds[kind] * number / self.together[number - 1] * math.exp(rng.gauss(0, self.noise))

    def best(self, least: float) -> int:
        """The number that is reached when one more always has to come to `least` times as much."""
        gains = [more / fewer for fewer, more in itertools.pairwise(self.together)]
        return 1 + next((number for number, gain in enumerate(gains) if gain < least), len(gains))


def amdahl(serial: float) -> tuple[float, ...]:
    """A card on which that part of a step leaves no room for others."""
    return tuple(number / (1 + serial * (number - 1)) for number in range(1, MOST + 1))


def saturating(capacity: float) -> tuple[float, ...]:
    """A card that one slice uses to 1 / `capacity`."""
    return tuple(min(float(number), capacity) for number in range(1, MOST + 1))


CURVES = st.one_of(
    st.floats(0, 1).map(amdahl),
    st.floats(1, 5).map(saturating),
    st.floats(0.7, 1.0).map(lambda loss: tuple(loss ** (n - 1) for n in range(1, MOST + 1))),  # worse with each
)


def played(
    card: Card, seed: int, reports: int = 400, memory: Footprint = ROOMY
) -> tuple[Sharing, list[tuple[int, int]]]:
    """What came of so many slices; how many were allowed after each, and how many were decided on."""
    rng, sharing, allowed = random.Random(seed), Sharing(MOST), []
    sharing.occupied(memory)
    for _ in range(reports):
        kind, number = rng.randrange(len(card.kinds)), sharing.allowed
        sharing.measured(Shared(kind, number, card.step(kind, number, rng)))
        allowed.append((sharing.allowed, sharing.standing))
    return sharing, allowed


def changes(numbers: list) -> int:
    return sum(a != b for a, b in itertools.pairwise(numbers))


@settings(max_examples=1000)
@given(curve=CURVES, seed=st.integers(0, 10**6), noise=st.sampled_from([0.0, 0.02, 0.05]))
def test_it_finds_the_number_that_is_worth_it_and_seldom_looks_elsewhere(curve, seed, noise):
    card = Card(curve, noise)
    sharing, allowed = played(card, seed)
    margin = 1 + 2.5 * noise
    assert card.best(WORTH * margin + 1e-9) <= sharing.standing <= card.best(WORTH / margin - 1e-9)
    assert max(number for number, _ in allowed) <= MOST
    assert changes([number for number, _ in allowed]) <= 2 * MOST + 2 * 4  # the climb, and checks at 24, 48, 96, 192
    assert sum(number != decided for number, decided in allowed[-200:]) <= 40  # looking elsewhere


@settings(max_examples=1000)
@given(
    curve=CURVES,
    seed=st.integers(0, 10**6),
    seen=st.lists(
        st.builds(Footprint, st.floats(1, 30_000), st.floats(0, 2000), st.just(40_000.0)), min_size=1, max_size=60
    ),
)
def test_workers_never_take_more_memory_than_there_is(curve, seed, seen):
    rng, sharing, card = random.Random(seed), Sharing(MOST), Card(curve, 0.05)
    for number, memory in enumerate(seen, 1):
        sharing.occupied(memory)
        reserved = max(one.reserved for one in seen[max(0, number - SEEN_A_GPU) : number])
        others = min(one.others for one in seen[:number])
        for _ in range(10):
            sharing.measured(Shared(0, sharing.allowed, card.step(0, sharing.allowed, rng)))
            assert 1 <= sharing.standing <= MOST
            assert sharing.allowed == 1 or sharing.allowed * (reserved + others) <= 0.9 * 40_000


def test_without_a_word_about_memory_there_is_one():
    sharing = Sharing(MOST)
    for _ in range(100):
        sharing.measured(Shared("a", 1, 0.1))
    assert sharing.allowed == 1


def test_what_did_not_fit_once_is_not_tried_again():
    sharing, _ = played(Card(saturating(4)), 0)
    assert sharing.standing == 4
    for _ in range(3):  # of one shortage
        sharing.ran_out(4)
    assert sharing.allowed == 3
    sharing.ran_out(3)
    sharing.ran_out(4)  # a straggler of the first
    assert sharing.allowed == 2
    sharing.occupied(ROOMY)
    for _ in range(3 * LAST_CHECK):
        sharing.measured(Shared(0, sharing.allowed, 0.01))
        assert sharing.allowed <= 2


def test_what_does_not_fit_alone_says_nothing_of_sharing():
    sharing = Sharing(MOST)
    sharing.ran_out(1)
    sharing.occupied(ROOMY)
    for _ in range(100):
        sharing.measured(Shared(0, sharing.allowed, 0.01 * sharing.allowed / saturating(4)[sharing.allowed - 1]))
    assert sharing.standing == 4


def test_a_large_slice_of_long_ago_counts_no_more():
    sharing, large = Sharing(MOST), Footprint(reserved=60_000, others=400, card=80_000)
    sharing.occupied(large)
    for number in range(1, SEEN_A_GPU + 10):
        sharing.occupied(ROOMY)
        for _ in range(10):
            sharing.measured(Shared(0, sharing.allowed, 0.01))
        assert sharing.standing == 1 or number >= SEEN_A_GPU
    assert sharing.standing == 4
    sharing.occupied(large)
    assert sharing.allowed == 1


def test_what_they_come_to_together_is_told():
    sharing, _ = played(Card(amdahl(0.1)), 3)
    assert (sharing.standing, sharing.together) == (4, pytest.approx(amdahl(0.1)[3]))


@settings(max_examples=200)
@given(seed=st.integers(0, 10**6), before=CURVES, after=CURVES)
def test_a_card_that_becomes_another_is_found_again(seed, before, after):
    """Other backbones, or others on the card; decisions are looked at again, if ever more seldom."""
    sharing, _ = played(Card(before), seed, 100)
    card, rng, kinds = Card(after, 0.02), random.Random(seed), (3, 4)
    for _ in range(4 * LAST_CHECK * MOST):
        kind = rng.choice(kinds)
        step = 0.01 * kind * sharing.allowed / after[sharing.allowed - 1] * math.exp(rng.gauss(0, 0.02))
        sharing.measured(Shared(kind, sharing.allowed, step))
    margin = 1.06
    assert card.best(WORTH * margin) <= sharing.standing <= card.best(WORTH / margin)


@given(seed=st.integers(0, 10**6))
def test_kinds_that_never_come_again_are_no_reason_for_more(seed):
    """Each slice is of a kind of its own: nothing can be compared."""
    rng, sharing, allowed = random.Random(seed), Sharing(MOST), []
    sharing.occupied(ROOMY)
    for kind in range(300):
        sharing.measured(Shared(kind, sharing.allowed, rng.uniform(0.01, 1)))
        allowed.append(sharing.allowed)
    assert sharing.standing == 1
    assert changes(allowed) <= 2 * 5


# ---------------------------------------------------------------- who was there


def test_a_pace_counts_by_those_that_were_there():
    gpu = Occupancy()
    gpu.began("a", 0.0)
    gpu.began("b", 0.0)  # a new worker, which starts for nine seconds
    assert list(gpu.ended("a", Span(0.0, 3.0), Pace(Span(1.0, 3.0), "k", 0.1))) == []  # who knows yet
    gpu.began("c", 3.0)
    assert list(gpu.ended("c", Span(3.0, 9.0), Pace(Span(4.0, 9.0), "k", 0.1))) == []
    gpu.began("d", 9.0)
    certain = list(gpu.ended("b", Span(9.0, 13.0), Pace(Span(11.0, 13.0), "l", 0.3)))
    assert certain == [Shared("k", 1, 0.1), Shared("k", 1, 0.1)]
    certain = list(gpu.ended("d", Span(9.0, 13.1), Pace(Span(10.0, 13.1), "k", 0.2)))
    assert certain == [Shared("l", 2, 0.3), Shared("k", 2, 0.2)]
    assert len(gpu) == 0


def test_who_is_on_another_gpu_is_nobodys_neighbour():
    gpus = Occupancy()
    for name in "abc":
        gpus.began(name, 0.0)
    gpus.left("c")  # which no worker has taken
    assert list(gpus.ended("a", Span(0.0, 9.0, 0), Pace(Span(5.0, 9.0, 0), "k", 0.1))) == []
    certain = list(gpus.ended("b", Span(0.0, 9.0, 1), Pace(Span(5.0, 9.0, 1), "k", 0.2)))
    assert certain == [Shared("k", 1, 0.1), Shared("k", 1, 0.2)]


def test_a_pace_that_was_shared_for_half_the_time_counts_for_nothing():
    gpu = Occupancy()
    gpu.began("a", 0.0)
    gpu.began("b", 0.0)
    assert list(gpu.ended("a", Span(0.0, 10.0), Pace(Span(0.0, 10.0), "k", 0.1))) == []
    late = Pace(Span(7.0, 9.0), "k", 0.1)
    assert list(gpu.ended("b", Span(5.0, 10.5), late)) == [Shared("k", 2, 0.1)]


def trained(passes=2.0, step=0.01, seconds=3.0):
    report = Report(0, "paused", passes, 0.5, seconds, costs=Costs(step, 100, scoring=1.0, saving=0.5))
    return Slice(Trial(0, "b", "full", 64, {"rate": 0.1, "batch_size": 32}, 0), 1.0, passes, 99.0), report


def test_a_pace_is_that_of_the_last_steps():
    slice_, report = trained()
    kind = ("b", "full", 64, frozenset({("batch_size", 32)}))
    found = pace(slice_, Ended(report, 50.0, Where(3)))
    assert found == Pace(Span(pytest.approx(48.5 - 0.32), 48.5, 3), kind, 0.01)
    assert pace(slice_, Ended(replace(report, costs=Costs(None, 100)), 50.0)) is None


def test_a_short_slice_has_a_pace_of_its_steady_steps():
    slice_, report = trained(1.1)  # ten steps of which the first four pay for what is to come
    found = pace(slice_, Ended(report, 50.0, Where(0)))
    assert found is not None and found.span == Span(pytest.approx(48.5 - 0.06), 48.5, 0)


def test_a_worker_that_starts_is_not_there_yet():
    slice_, report = trained()
    new, known = Where(1, is_first=True), Where(1)
    assert there(slice_, Ended(report, 50.0, known), taken=46.5) == Span(46.5, 50.0, 1)
    assert there(slice_, Ended(report, 50.0, new), taken=30.0) == Span(pytest.approx(47.5), 50.0, 1)
    probe = Report(0, "finished", 1.0, 0.5, 7.0)
    assert there(slice_, Ended(probe, 50.0, known), taken=42.5) == Span(42.5, 50.0, 1)
    assert there(slice_, Ended(probe, 50.0, new), taken=10.0) == Span(43.0, 50.0, 1)


def test_workers_take_the_gpu_with_the_fewest(tmp_path):
    seats = [take_seat(tmp_path, 3) for _ in range(5)]
    assert [(seat.row, seat.gpu) for seat in seats] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert not any(is_better_free(seat, tmp_path, 3) for seat in seats)
    seats[2].held.close()  # its process has ended
    assert [is_better_free(seat, tmp_path, 3) for seat in seats[:2] + seats[3:]] == [False, False, True, True]
    again = take_seat(tmp_path, 3)
    assert (again.row, again.gpu) == (0, 2)
    for seat in (*seats, again):
        seat.held.close()


# ---------------------------------------------------------------- all of it, on cards with workers that start

STARTING, LOADING, ENDING = 8.0, 0.3, 0.3  # seconds of a worker, of a slice before its steps, and after them
STEPS, RECENT_STEPS = 100, 32
FACTS = {"reserved_gpu_mib": 500, "others_gpu_mib": 400, "card_gpu_mib": 80_000}


@dataclass
class Running:
    """A slice in flight: it trains from `begins` on until it has no steps left, and ends some time after that."""

    name: str
    gpu: int
    kind: int
    begins: float
    is_new: bool
    left: float = STEPS
    recent_from: float = 0.0
    trained: float = math.inf

    def trains(self, now: float) -> bool:
        return self.begins <= now and self.left > 0


class Cluster:
    """GPUs of one kind, with workers that take time to start and slices of two passes of fifty steps each.

    Those that train on a GPU share it at each moment; a pace is that of the last steps.
    """

    def __init__(self, card: Card, machine: Machine, seed: int) -> None:
        self.card, self.rng, self.now, self.said, self.most = card, random.Random(seed), 0.0, [], 0
        self.places = SharedGpus(machine, self.said.append)
        self.flying: list[Running] = []
        self.started = [0] * machine.measured

    def search(self, seconds: float) -> None:
        """Slices one after another, wherever there is room, until then."""
        for name in map(str, itertools.count()):
            while not self.places.has_room:
                self.go_on()
            if self.now > seconds:
                return
            self.begin(name)

    def on(self, gpu: int) -> list[Running]:
        return [one for one in self.flying if one.gpu == gpu]

    def begin(self, name: str) -> None:
        kind = self.rng.randrange(len(self.card.kinds))
        self.places.take(name, self.slice_of(kind), self.now)
        gpu = min(range(len(self.started)), key=lambda gpu: len(self.on(gpu)))
        is_new = len(self.on(gpu)) == self.started[gpu]
        self.started[gpu] += is_new
        begins = self.now + LOADING + (STARTING if is_new else 0.0)
        self.flying.append(Running(name, gpu, kind, begins, is_new))
        self.most = max(self.most, len(self.on(gpu)))

    def slice_of(self, kind: int) -> Slice:
        return Slice(Trial(0, f"b{kind}", "full", 64, {}, 0), 0.0, 2.0, 1e9)

    def go_on(self) -> None:
        """To the next moment at which something changes."""
        steps = {}
        for one in self.flying:
            if one.trains(self.now):
                number = sum(other.trains(self.now) for other in self.on(one.gpu))
                steps[one.name] = self.card.kinds[one.kind] * number / self.card.together[number - 1]
        coming = [one.begins for one in self.flying if one.begins > self.now]
        coming += [one.trained + ENDING for one in self.flying]
        for one in self.flying:
            if one.name in steps:
                until = RECENT_STEPS if one.left > RECENT_STEPS else 0
                coming.append(self.now + (one.left - until) * steps[one.name])
        then = min(coming)
        for one in self.flying:
            if one.name in steps:
                one.left = max(0.0, one.left - (then - self.now) / steps[one.name])
                one.left = round(one.left, 9)
                if one.left == RECENT_STEPS:
                    one.recent_from = then
                if one.left == 0:
                    one.trained = then
        self.now = then
        for one in [one for one in self.flying if one.trained + ENDING <= then]:
            self.end(one)

    def end(self, one: Running) -> None:
        step = (one.trained - one.recent_from) / RECENT_STEPS * math.exp(self.rng.gauss(0, self.card.noise))
        seconds = self.now - one.begins + LOADING + (5.0 if one.is_new else 0.0)  # with what a process begins with
        self.flying.remove(one)
        report = Report(0, "paused", 2.0, 0.5, seconds, FACTS, costs=Costs(step, 50, ENDING))
        self.places.leave(one.name, Ended(report, self.now, Where(one.gpu, one.is_new)))


@pytest.mark.parametrize("gpus", [1, 2, 8])
@pytest.mark.parametrize(
    ("together", "number"),
    [(saturating(4), 4), (saturating(2), 2), (saturating(1), 1), (amdahl(0.1), 4), ((1.0, 0.9, 0.8, 0.7), 1)],
)
def test_a_search_shares_its_gpus_as_they_can_be(gpus, together, number):
    for seed in range(3):
        card = Card(together, 0.02, kinds=(0.04, 0.06, 0.1))
        cluster = Cluster(card, Machine("ray", MOST * gpus, 1, "cuda", 1.0, 0.25, gpus), seed)
        cluster.search(600.0)
        assert cluster.places._sharing.standing == number, (seed, cluster.said)
        assert len(cluster.said) <= MOST
        assert cluster.most <= min(MOST, number + 2)  # the first slices may mislead it by one
        if number > 1:
            assert cluster.said[-1].startswith(f"{number} trials share each GPU: together ")


def test_two_small_trials_are_together_within_a_minute():
    cluster = Cluster(Card(saturating(4), 0.02), Machine("ray", MOST, 1, "cuda", 1.0, 0.25, 1), 0)
    cluster.search(60.0)
    assert re.match(r"2 trials share each GPU: together (1\.[89]|2\.[01]) times one alone", cluster.said[0])


def test_cores_may_allow_fewer_than_measured():
    cluster = Cluster(Card(saturating(4), 0.02), Machine("ray", 5, 1, "cuda", 1.0, 1 / 3, 2), 0)
    cluster.search(240.0)
    assert sum(cluster.started) <= 5


def test_memory_keeps_workers_from_a_small_card(monkeypatch):
    monkeypatch.setitem(FACTS, "card_gpu_mib", 2100)
    cluster = Cluster(Card(saturating(4), 0.02), Machine("ray", MOST, 1, "cuda", 1.0, 0.25, 1), 0)
    cluster.search(240.0)
    assert cluster.most == 2


def test_elsewhere_there_is_room_for_as_many_as_there_are_workers():
    places = Places(Machine("ray", 2, 1, "cpu"))
    slice_, report = trained()
    assert places.has_room
    places.take("a", slice_, 0.0)
    assert places.has_room
    places.take("b", slice_, 0.0)
    assert not places.has_room
    places.leave("a", Ended(report, 1.0))
    assert places.has_room


def test_a_gpu_that_ran_out_of_memory_gets_fewer():
    cluster = Cluster(Card(saturating(4)), Machine("ray", MOST, 1, "cuda", 1.0, 0.25, 1), 0)
    cluster.search(240.0)
    cluster.begin("the last")
    failed = Report(0, "failed", 0.0, None, 3.0, error="OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
    assert len(cluster.flying) >= 3
    for one in cluster.flying:  # all at once, of one shortage
        cluster.places.leave(one.name, Ended(failed, cluster.now + 1.0, Where(0)))
        assert cluster.said[-1].startswith("3 trials share each GPU")
