"""In which numbers features of training images are computed: the decision, its guard, and what stays fp32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autoft.media.image.batches import Images
from autoft.parts.network import Network
from autoft.system.disk_cache import alone, cache_root
from autoft.system.signals import Cancelled
from autoft.train import forward as module
from autoft.train.features import FeatureCache
from autoft.train.forward import CLEARLY, FARTHEST, Comparison, Forward, Setting, distance
from autoft.values.backbone import InputSpec

ROWS, SIZE = 200, 8
ALL = np.arange(ROWS)
ENOUGH = 1e6
CPU = torch.device("cpu")


@dataclass
class Pace:
    """A clock that only forward passes move: seconds an image by whether it is in bf16."""

    fp32: float = 0.1
    bf16: float = 0.04
    now: float = 0.0
    fp32_a_pass: float = 0.0
    bf16_a_pass: float = 0.0

    def spend(self, images: int) -> None:
        bf16 = torch.is_autocast_enabled("cpu")
        self.now += images * self.bf16 + self.bf16_a_pass if bf16 else images * self.fp32 + self.fp32_a_pass


class Timed(nn.Module):
    """Two features an image, off by `off` of each in bf16 beyond rounding; counts images by numbers."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)), nn.Linear(3, 2))
        self.pace, self.off, self.error = pace, 0.0, None
        self.seen = {"fp32": 0, "bf16": 0}

    def forward(self, images):
        bf16 = torch.is_autocast_enabled("cpu")
        self.seen["bf16" if bf16 else "fp32"] += len(images)
        self.pace.spend(len(images))
        if bf16 and self.error is not None:
            raise self.error
        return self.layers(images.mean((2, 3)) * 10) * (1.0 + self.off * bf16)


@pytest.fixture
def pace(monkeypatch) -> Pace:
    found = Pace()
    monkeypatch.setattr(module, "clock_of", lambda device: lambda: found.now)
    return found


@pytest.fixture
def network(pace) -> Network:
    return Network.of(Timed(pace), InputSpec(SIZE))


@pytest.fixture
def images(tmp_path) -> Images:
    path = tmp_path / "pixels.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (ROWS, SIZE, SIZE, 3), np.uint8))
    return Images(np.load(path, mmap_mode="r"), InputSpec(SIZE), CPU)


@pytest.fixture
def cache() -> FeatureCache:
    return FeatureCache(cache_root() / "features", "f", "crop")


def chooser(cache, asked="auto") -> Forward:
    return Forward(cache_root() / "precision", asked, cache)


def exact(network, images, rows=ALL) -> torch.Tensor:
    with torch.inference_mode():
        return network.module(images.normalised(images.raw(rows)))


# ---------------------------------------------------------------- the decision


seconds = st.floats(1e-4, 10.0)


@given(seconds, seconds | st.none(), st.floats(0.0, 10.0) | st.none())
def test_bf16_is_used_where_it_is_clearly_faster_and_near_enough_and_nowhere_else(fp32, bf16, error):
    choice = Comparison(Setting("a core", 1, "2", "0f"), fp32, bf16, error).choice
    wanted = bf16 is not None and fp32 >= CLEARLY * bf16 and error is not None and error <= FARTHEST
    assert (choice.numbers == "bf16") == wanted


def test_features_in_bf16_are_fitted_on_where_they_are_faster(cache, network, images):
    choice = chooser(cache).choice(network, images, ALL, ENOUGH)
    assert choice.numbers == "bf16"
    assert choice.why.startswith("2.50 times as fast, off by 0.0")
    assert choice.facts == {"features_precision": "bf16", "features_precision_why": choice.why}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"off": 0.5}, "bf16 is off by 3."),
        ({"off": float("nan")}, "bf16 is off beyond measure"),
        ({"error": NotImplementedError("no such kernel")}, "bf16 is not 1.2 times as fast"),
    ],
)
def test_features_that_are_far_off_or_cannot_be_had_are_not(cache, network, images, change, why):
    for name, value in change.items():
        setattr(network.module, name, value)
    choice = chooser(cache).choice(network, images, ALL, ENOUGH)
    assert choice.numbers == "fp32"
    assert choice.why.startswith(why)


def test_bf16_that_is_slow_beyond_measure_is_cut_short(cache, network, images, pace):
    pace.bf16 = 100.0
    choice = chooser(cache).choice(network, images, ALL, ENOUGH)
    assert (choice.numbers, choice.why) == ("fp32", "bf16 is not 1.2 times as fast")
    assert network.module.seen["bf16"] <= module.FEWEST_IMAGES  # a layer of the first part


def test_how_far_features_are_goes_by_what_images_differ_by():
    features = np.array([[100.0, 1.0], [100.0, 3.0]], np.float32)
    assert distance(features, features + np.float32([0.5, 0.5])) == pytest.approx(0.5**0.5)
    assert distance(features[:1].repeat(2, 0), features) is None
    assert distance(features, features * np.float32(np.inf)) is None


def test_a_run_that_is_stopped_is_no_bf16_that_fails(cache, network, images):
    def stopped():
        if network.module.seen["bf16"]:
            raise Cancelled

    with pytest.raises(Cancelled):
        chooser(cache).choice(network, images, ALL, ENOUGH, stopped)


# ---------------------------------------------------------------- what it costs


def test_what_is_computed_in_fp32_to_find_out_is_kept(cache, network, images):
    chooser(cache).choice(network, images, ALL, ENOUGH)
    tried = network.module.seen["bf16"]
    assert 2 * module.FEWEST_IMAGES <= tried < ROWS / 4
    network.module.seen["fp32"] = 0
    features = cache.leading(network, images, ALL, lambda: False, numbers="bf16")
    assert network.module.seen == {"fp32": 2, "bf16": ROWS - module.FEWEST_IMAGES}
    # Batches of other sizes round otherwise on some cores, a thousandth of what bf16 does.
    same = torch.isclose(features, exact(network, images), rtol=1e-5).all(dim=1)
    assert int(same.sum()) >= tried + module.FEWEST_IMAGES


def test_it_is_found_out_once_for_all_processes_to_come(cache, network, images):
    first = chooser(cache).choice(network, images, ALL, ENOUGH)
    tried = network.module.seen["bf16"]
    assert chooser(cache).choice(network, images, ALL[:10], 0.0) == first
    assert network.module.seen["bf16"] == tried
    with torch.no_grad():
        network.module.layers[0].weight.mul_(2.0)
    assert chooser(cache).choice(network, images, ALL, ENOUGH).numbers == "bf16"
    assert network.module.seen["bf16"] > tried, "other weights round otherwise"


@pytest.mark.parametrize(
    ("rows", "left", "why"), [(14, ENOUGH, "there is too little"), (ROWS, 1.0, "there was no time")]
)
def test_where_it_would_not_pay_features_stay_fp32_and_it_is_open(cache, network, images, rows, left, why):
    one = chooser(cache)
    choice = one.choice(network, images, ALL[:rows], left)
    assert (choice.numbers, network.module.seen["bf16"]) == ("fp32", 0)
    assert choice.why.startswith(why)
    assert one.choice(network, images, ALL, ENOUGH).numbers == "bf16"


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_is_asked_for_is_not_measured(cache, network, images, asked):
    assert chooser(cache, asked).choice(network, images, ALL, ENOUGH).facts == {
        "features_precision": asked,
        "features_precision_why": "asked for",
    }
    assert network.module.seen["bf16"] == 0


def test_the_time_of_a_slow_network_is_not_spent_on_finding_out(cache, network, images, pace, monkeypatch):
    """Its first images say how slow it is, and are kept."""
    monkeypatch.setattr(module.time, "monotonic", lambda: pace.now)
    one, began = chooser(cache), pace.now
    assert one.choice(network, images, ALL, 10.0).numbers == "fp32"
    assert pace.now - began == pytest.approx((2 + module.FEWEST_IMAGES) * pace.fp32)  # two for the signature
    assert network.module.seen["bf16"] == 0
    assert one.choice(network, images, ALL, 1000.0).numbers == "bf16", "a later slice has more time"


def test_what_the_deadline_cuts_short_is_not_taken_for_slow(cache, network, images, pace, monkeypatch):
    monkeypatch.setattr(module.time, "monotonic", lambda: pace.now)
    one, slow = chooser(cache), pace.bf16
    pace.bf16 = 1e6
    monkeypatch.setitem(module.SECONDS_OF_WARM_UP, "cpu", 1e9)
    assert one.choice(network, images, ALL, 1000.0).why.startswith("there is too little")
    pace.bf16 = slow
    assert one.choice(network, images, ALL, 1000.0).numbers == "bf16"


@pytest.mark.parametrize("computes", [False, True])
def test_another_worker_is_not_waited_for_beyond_the_deadline(cache, network, images, monkeypatch, computes):
    """Whether it finds out the same, or computes all these features."""
    monkeypatch.setattr(module, "WORTH_SECONDS", 0.1)
    one, path = chooser(cache), cache.path(network, images)
    setting = Setting(module.device_name(CPU), torch.get_num_threads(), torch.__version__, path.stem)
    with alone((path if computes else one._measurements._path(setting)).with_suffix(".lock")):
        before = network.module.seen["fp32"]
        assert one.choice(network, images, ALL, 0.3).numbers == "fp32"
        assert network.module.seen["fp32"] == before + 2, "the signature alone"
    assert one.choice(network, images, ALL, ENOUGH).numbers == "bf16"


def test_bf16_that_pays_for_many_images_alone_is_found_as_on_a_gpu(cache, network, images, pace, monkeypatch):
    """Whose passes of few images all take as long as launching them."""
    monkeypatch.setattr(module, "WORTH_SECONDS", 0.1)
    pace.fp32, pace.bf16, pace.fp32_a_pass, pace.bf16_a_pass = 0.001, 0.0002, 0.05, 0.055
    assert chooser(cache).choice(network, images, ALL, ENOUGH).numbers == "bf16"


# ---------------------------------------------------------------- what stays fp32


def test_who_asks_for_fp32_never_gets_bf16(cache, network, images):
    rough = cache.leading(network, images, ALL, lambda: False, numbers="bf16")
    assert not torch.equal(rough, exact(network, images))
    torch.testing.assert_close(rough, exact(network, images), rtol=0.1, atol=0.1)
    network.module.seen["bf16"] = 0
    torch.testing.assert_close(cache.features(network, images, ALL), exact(network, images))
    again = cache.leading(network, images, ALL, lambda: False, numbers="bf16")
    assert torch.equal(again, cache.features(network, images, ALL)), "what is there in fp32 is better"
    assert network.module.seen["bf16"] == 0


def test_features_in_bf16_are_kept_too(cache, network, images):
    first = cache.leading(network, images, ALL, lambda: False, numbers="bf16")
    assert network.module.seen["bf16"] == ROWS
    assert torch.equal(cache.leading(network, images, ALL[::-1].copy(), lambda: False, numbers="bf16"), first.flip(0))
    assert network.module.seen["bf16"] == ROWS
