"""Which arithmetic training steps are computed in: the decision, where it is kept, and what trials are told."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autoft.errors import StudyError
from autoft.parts.network import Network
from autoft.study.study import Study
from autoft.system.disk_cache import alone
from autoft.system.signals import Cancelled
from autoft.train import precision
from autoft.train.arithmetic import Arithmetic, begun, candidates, usual
from autoft.train.folding import FOLDED_FROM_PIXELS
from autoft.train.precision import CLEARLY, SECONDS, Precision, Setting, Timing, Timings, measure, race, setting_of
from autoft.train.step_timing import Rehearsal, Subject, TooSlow
from autoft.values.backbone import InputSpec

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FP32, BF16 = Arithmetic("fp32", "channels_last"), Arithmetic("bf16", "channels_last")
ALL = (FP32, BF16, Arithmetic("bf16", "contiguous"), Arithmetic("fp32", "contiguous"))
SETTING = Setting("a core", 1, "2.14", "a/net", "0f", 64, 8)
ENOUGH = 1e6
WARM_UP = 0.3


class Convolutions(nn.Module):
    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, groups=groups)
        )

    def forward(self, images):
        return self.layers(images).mean((2, 3))


def subject(module: nn.Module | None = None, batch: int = 4) -> Subject:
    network = Network.of(module or Convolutions(), InputSpec(16))
    return Subject("a/net", network, 16, batch, CPU)


# ---------------------------------------------------------------- the decision


@dataclass
class FakeTimer:
    """Steps that take what `takes` says, None for those that fail, on a clock that nothing else moves."""

    takes: dict[Arithmetic, float | None]
    budget: float
    now: float = 0.0

    def left(self) -> float:
        return self.budget - self.now

    def step(self, arithmetic: Arithmetic, limit: float) -> float:
        seconds = self.takes[arithmetic]
        if seconds is None:
            raise NotImplementedError("no such kernel")
        self.now += min(seconds, max(limit, 0.0))
        if seconds > limit:
            raise TooSlow
        return seconds

    def decide(self) -> Arithmetic:
        return (
            Timings(SETTING, race([*self.takes], self.step, self.left, WARM_UP))
            .choice(next(iter(self.takes)))
            .arithmetic
        )


times = st.floats(1e-3, 20.0)
four = st.tuples(times, *[times | st.none()] * 3).map(lambda found: dict(zip(ALL, found, strict=True)))


@given(four, st.floats(0.0, 10.0))
def test_deciding_keeps_to_its_time_and_leaves_the_usual_only_for_what_is_clearly_faster(takes, budget):
    timer = FakeTimer(takes, budget)
    chosen = timer.decide()
    assert timer.now <= budget + 1e-9
    assert chosen == FP32 or takes[FP32] >= CLEARLY * takes[chosen]


@given(four)
def test_with_time_enough_nothing_else_would_have_been_clearly_faster(takes):
    chosen = FakeTimer(takes, ENOUGH).decide()
    assert takes[chosen] <= CLEARLY * min(seconds for seconds in takes.values() if seconds is not None) * (1 + 1e-9)


def test_what_is_slow_beyond_measure_is_cut_short_and_those_behind_it_get_their_turn():
    timer = FakeTimer(dict(zip(ALL, (0.1, 10.0, 0.3, 0.05), strict=True)), SECONDS)
    assert timer.decide() == ALL[3]
    assert timer.now < SECONDS


def test_what_a_busy_machine_cut_short_is_not_taken_for_slow():
    """The processor's seconds are within all limits, those on the wall are over."""
    timer = FakeTimer(dict.fromkeys(ALL, 0.1), SECONDS)

    def step(arithmetic, limit):
        if arithmetic == BF16:
            timer.now = timer.budget
            raise TooSlow
        return timer.step(arithmetic, limit)

    assert race(ALL, step, timer.left, WARM_UP) == (Timing(FP32, 0.1),)


def test_where_the_usual_one_fails_nothing_is_decided():
    takes = {**dict.fromkeys(ALL, 0.01), FP32: None}
    assert race(ALL, FakeTimer(takes, SECONDS).step, lambda: SECONDS, WARM_UP) == ()


def test_a_run_that_is_stopped_is_no_candidate_that_fails():
    def stopped(arithmetic, limit):
        raise Cancelled

    with pytest.raises(Cancelled):
        race(ALL, stopped, lambda: SECONDS, WARM_UP)


def test_on_a_gpu_bf16_is_the_usual_one_and_depthwise_kernels_are_never_tried_channels_last():
    dense, depthwise = subject().network, subject(Convolutions(groups=8)).network
    assert candidates(dense, CPU) == ALL
    assert candidates(dense, GPU)[0] == BF16
    assert candidates(depthwise, GPU) == (Arithmetic("bf16", "contiguous"), Arithmetic("fp32", "contiguous"))
    assert usual(depthwise, CPU) == FP32


# ---------------------------------------------------------------- steps


class Sleeping(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, forward, backward):
        ctx.seconds = backward
        time.sleep(forward)
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.seconds)
        return gradient, None, None


class Sleeper(nn.Module):
    """Layers of which each takes so long."""

    def __init__(self, forward: float, backward: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.layers = nn.ModuleList(nn.Identity() for _ in range(50))
        self.seconds = (0.0, 0.0)
        self.later = (forward, backward)

    def forward(self, images):
        images = self.first(images)
        for layer in self.layers:
            images = layer(Sleeping.apply(images, *self.seconds))
        return images.mean((2, 3))


@pytest.mark.parametrize("seconds", [(0.1, 0.0), (0.0, 0.1)], ids=["forward", "backward"])
def test_a_step_is_cut_short_within_it(seconds, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # the clock on the wall, as sleeping takes no other
    sleeper = Sleeper(*seconds)
    rehearsal = Rehearsal(subject(sleeper))
    rehearsal._module.seconds = sleeper.later
    began = time.monotonic()
    with pytest.raises(TooSlow):
        rehearsal.step(FP32, 2, limit=0.15)
    assert time.monotonic() - began < 4.0  # all of it would have been 5 s


def test_measuring_leaves_the_network_and_the_random_numbers_alone():
    tried = subject()
    before = {name: tensor.clone() for name, tensor in tried.network.module.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    timings = measure(tried, 30.0)
    assert torch.equal(torch.randn(4), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in tried.network.module.state_dict().items())
    assert not any(parameter.grad is not None for parameter in tried.network.module.parameters())
    assert timings[0].arithmetic == FP32
    assert timings[0].seconds is not None
    assert timings[0].seconds > 0


class NotByItself(nn.Module):
    """Takes no single image."""

    def forward(self, images):
        if len(images) < 2:
            raise ValueError("more than one image is needed")
        return images.mean((2, 3))


@pytest.mark.parametrize("folded_from", [0, 2**18])
def test_a_network_that_cannot_be_rehearsed_trains_in_the_usual_one(folded_from, monkeypatch):
    monkeypatch.setitem(FOLDED_FROM_PIXELS, "cpu", folded_from)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), NotByItself())
    assert measure(subject(layers), most=ENOUGH) == ()


def test_features_that_are_not_finite_are_no_candidate():
    class Overflow(Convolutions):
        def forward(self, images):
            features = super().forward(images)
            return features / 0 if torch.is_autocast_enabled("cpu") else features

    seconds = {one.arithmetic: one.seconds for one in measure(subject(Overflow()), 30.0)}
    assert seconds[FP32] is not None
    assert seconds[BF16] is None


def test_bf16_is_autocast_and_ends_with_the_pass():
    layer, images = nn.Linear(4, 4), torch.randn(2, 4)
    with BF16.autocast(CPU):
        assert layer(images).dtype == torch.bfloat16
    with FP32.autocast(CPU):
        assert layer(images).dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_no_cast_of_a_weight_outlives_its_change():
    layer, images = nn.Linear(1, 1, bias=False), torch.ones(1, 1)
    with BF16.autocast(CPU), torch.no_grad():
        layer.weight.fill_(1.0)
        first = layer(images).item()
        layer.weight.fill_(2.0)
        assert (first, layer(images).item()) == (1.0, 2.0)


def test_products_of_fp32_are_tf32_on_a_gpu_for_as_long_as_a_trial_trains():
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    with FP32.training(GPU):
        assert products.fp32_precision == "tf32"
    with FP32.training(CPU), BF16.training(GPU):
        assert products.fp32_precision == before
    assert products.fp32_precision == before


# ---------------------------------------------------------------- what is kept


@pytest.fixture
def measured(monkeypatch):
    """The subjects that are measured, of which the second candidate is twice as fast."""
    found = []

    def measure(subject, most, check):
        found.append(subject)
        return (Timing(FP32, 0.2), Timing(BF16, 0.1))

    monkeypatch.setattr(precision, "measure", measure)
    return found


def test_it_is_measured_once_for_all_processes_to_come(tmp_path, measured):
    first = Precision(tmp_path / "p", "auto")
    assert first.choice(subject(), ENOUGH).arithmetic == BF16
    assert first.choice(subject(), ENOUGH) == Precision(tmp_path / "p", "auto").choice(subject(), ENOUGH)
    assert len(measured) == 1
    assert [path.suffix for path in (tmp_path / "p").iterdir()] == [".json"]


def test_another_network_size_or_part_is_another_setting(tmp_path, measured):
    one = Precision(tmp_path, "auto")
    others = (subject(), subject(Convolutions(groups=8)), subject(batch=2), replace(subject(), size=32))
    assert [one.choice(other, ENOUGH).arithmetic for other in others] == [BF16] * 4
    assert len(measured) == 4


def test_weights_are_not_part_of_a_setting():
    torch.manual_seed(0)
    one = setting_of(subject())
    torch.manual_seed(1)
    assert setting_of(subject()) == one


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[]", b'{"format": 2}', b"x" * 10_000])
def test_a_damaged_file_is_measured_anew_and_mended(tmp_path, measured, content):
    choice = Precision(tmp_path, "auto").choice(subject(), ENOUGH)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damage in (content, whole[: len(whole) // 2]):
        file.write_bytes(damage)
        assert Precision(tmp_path, "auto").choice(subject(), ENOUGH) == choice
        assert file.read_bytes() == whole
    assert len(measured) == 3


def test_a_file_of_another_setting_says_nothing(tmp_path, measured):
    Precision(tmp_path, "auto").choice(subject(batch=2), ENOUGH)
    (other,) = tmp_path.iterdir()
    Precision(tmp_path, "auto").choice(subject(), ENOUGH)
    (own,) = {*tmp_path.iterdir()} - {other}
    other.replace(own)
    Precision(tmp_path, "auto").choice(subject(), ENOUGH)
    assert len(measured) == 3


def test_a_folder_that_cannot_be_written_costs_the_next_process_a_measurement(tmp_path, measured):
    (tmp_path / "file").write_text("")
    for _ in range(2):
        one = Precision(tmp_path / "file" / "below", "auto")
        assert [one.choice(subject(), ENOUGH).arithmetic for _ in range(2)] == [BF16, BF16]
    assert len(measured) == 2


def test_what_more_time_would_decide_is_not_kept(tmp_path, monkeypatch):
    found = [(Timing(FP32, 1.9),), (Timing(FP32, 1.9), Timing(BF16, 1.0))]
    monkeypatch.setattr(precision, "measure", lambda subject, most, check: found.pop(0))
    asked = Precision(tmp_path, "auto")
    choice = asked.choice(subject(), ENOUGH)
    assert choice.arithmetic == FP32
    assert "no time" in choice.why
    assert not [*tmp_path.glob("*.json")]
    assert asked.choice(subject(), ENOUGH).arithmetic == BF16, "a later slice of the same process has more time"


@pytest.mark.parametrize("vain", [(), (Timing(FP32, 1.9),)])
def test_nothing_found_for_want_of_time_is_tried_again_but_not_for_ever(tmp_path, monkeypatch, vain):
    found = [vain] * 2 + [(Timing(FP32, 1.9), Timing(BF16, 1.0))]
    monkeypatch.setattr(precision, "measure", lambda subject, most, check: found.pop(0))
    asked = Precision(tmp_path, "auto")
    chosen = [asked.choice(subject(), ENOUGH).arithmetic for _ in range(4)]
    assert chosen == [FP32, FP32, BF16, BF16]
    found[:] = [vain] * (precision.ATTEMPTS + 1)
    for _ in range(10):
        assert asked.choice(subject(batch=2), ENOUGH).arithmetic == FP32
    assert len(found) == 1 and len([*tmp_path.glob("*.json")]) == 1


def test_another_that_measures_is_not_waited_for_beyond_the_deadline(tmp_path, measured, monkeypatch):
    monkeypatch.setattr(precision, "FEWEST_SECONDS", 0.0)
    asked = Precision(tmp_path, "auto")
    with alone(asked._measurements._path(setting_of(subject())).with_suffix(".lock")):
        choice = asked.choice(subject(), 0.3)
    assert (choice.arithmetic, measured) == (FP32, [])
    assert asked.choice(subject(), ENOUGH).arithmetic == BF16


def test_close_to_the_deadline_nothing_is_measured_but_what_is_known_is_used(tmp_path, measured):
    assert Precision(tmp_path, "auto").choice(subject(), 5.0).arithmetic == FP32
    assert not measured
    Precision(tmp_path, "auto").choice(subject(), ENOUGH)
    assert Precision(tmp_path, "auto").choice(subject(), 0.0).arithmetic == BF16


def test_what_is_asked_for_is_neither_measured_nor_looked_up(tmp_path, measured):
    Precision(tmp_path, "auto").choice(subject(), ENOUGH)
    for asked in ("fp32", "bf16"):
        choice = Precision(tmp_path, asked).choice(subject(), ENOUGH)
        assert choice.arithmetic == Arithmetic(asked, "channels_last")
        assert choice.facts == {"precision": f"{asked}, channels last", "precision_why": "asked for"}
    assert len(measured) == 1
    with pytest.raises(StudyError, match="did you mean 'bf16'"):
        Study("photos", precision="bf61")


def choose_in(folder, log, tried):
    def measure(subject, most, check):
        with log.open("a") as file:
            file.write("measured\n")
        time.sleep(0.3)
        return (Timing(FP32, 0.2), Timing(BF16, 0.1))

    precision.measure = measure
    with (folder / f"{os.getpid()}.choice").open("w") as file:
        file.write(str(Precision(folder / "p", "auto").choice(tried, ENOUGH).arithmetic))


def test_two_processes_that_need_the_same_measure_it_once(tmp_path):
    fork, tried = multiprocessing.get_context("fork"), subject()  # a forked process cannot compute with several threads
    processes = [fork.Process(target=choose_in, args=(tmp_path, tmp_path / "log", tried)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    assert (tmp_path / "log").read_text() == "measured\n"
    assert {path.read_text() for path in tmp_path.glob("*.choice")} == {str(BF16)}
    assert len([*tmp_path.glob("*.choice")]) == 2


# ---------------------------------------------------------------- what a trial began in


@pytest.mark.parametrize("one", ALL, ids=str)
def test_a_trial_goes_on_in_what_it_began_in_on_the_same_kind_of_device(one):
    network, note = subject().network, dict(one.note(CPU))
    assert begun({"raw.head.bias": torch.zeros(2), **note}, network, CPU) == one
    assert begun(note, network, GPU) is None


def test_a_trial_of_an_earlier_version_began_in_the_usual_one():
    network = subject().network
    assert begun({"raw.head.bias": torch.zeros(2)}, network, CPU) == FP32
    assert begun({}, network, GPU) == BF16
