"""Features: computed once, whoever asks and in whatever order; stopped and continued anywhere; healed when damaged."""

from __future__ import annotations

import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autoft.media.image.batches import Images
from autoft.parts.network import Network
from autoft.system.disk_cache import cache_root, new_files
from autoft.train import features as module
from autoft.train.features import FeatureCache, _paced
from autoft.train.row_table import RowTable
from autoft.values.backbone import InputSpec

ROWS, SIZE = 150, 8
SPEC = InputSpec(SIZE)


class Counting(nn.Module):
    """Two features an image; counts the rows and notes the sizes of the batches that go through."""

    def __init__(self, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(3, 2)
        self.scale = scale
        self.batches: list[int] = []
        self.slow = lambda count: None

    def forward(self, images):
        self.batches.append(len(images))
        self.slow(len(images))
        return self.linear(images.mean(dim=(2, 3))) * self.scale

    @property
    def rows(self) -> int:
        """Rows since the last look, without the two of the signature."""
        count, self.batches[:] = sum(self.batches), []
        return count - 2


@pytest.fixture
def images(tmp_path) -> Images:
    path = tmp_path / "pixels.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (ROWS, SIZE, SIZE, 3), np.uint8))
    return Images(np.load(path, mmap_mode="r"), SPEC, torch.device("cpu"))


@pytest.fixture
def cache() -> FeatureCache:
    return FeatureCache(cache_root() / "features", "f", "crop")


def network(seed: int = 0, scale: float = 1.0) -> Network:
    built = Network.of(Counting(seed, scale), SPEC)
    built.module.batches.clear()
    return built


def direct(of: Network, images: Images, rows: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        values = of.module(images.normalised(images.raw(rows)))
    of.module.batches.clear()
    return values


ALL = np.arange(ROWS)
SOME = np.random.default_rng(1).permutation(ROWS)


def after(batches: int):
    calls = iter(range(batches - 1))
    return lambda: next(calls, None) is None


def test_computed_once_for_any_rows_in_any_order(cache, images):
    of = network()
    for rows, computed in ((SOME[:90], 90), (SOME[:90], 0), (ALL, ROWS - 90), (SOME[::-1], 0), (ALL[:0], 0)):
        values = cache.features(of, images, rows)
        assert of.module.rows == computed
        assert values.dtype == torch.float32 and values.shape == (len(rows), 2)
        torch.testing.assert_close(values, direct(of, images, rows))


def test_a_later_pass_goes_on_where_an_earlier_one_had_enough(cache, images):
    of = network()
    beginning = cache.leading(of, images, SOME, after(3))
    assert 3 <= len(beginning) == of.module.rows < ROWS
    torch.testing.assert_close(beginning, direct(of, images, SOME[: len(beginning)]))
    assert len(cache.leading(of, images, SOME, lambda: True)) > len(beginning)
    of.module.batches.clear()
    assert len(cache.features(of, images, SOME)) == ROWS and of.module.rows < ROWS - len(beginning)


def test_what_a_pass_has_computed_when_it_is_stopped_stays(cache, images):
    of, calls = network(), iter(range(4))

    def check():
        if next(calls, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.features(of, images, ALL, check)
    before = of.module.rows
    cache.features(of, images, ALL)
    assert 0 < before < ROWS and of.module.rows == ROWS - before
    assert [path.suffix for path in cache.folder.iterdir()] == [".npy"]


@pytest.mark.parametrize("other", [network(seed=1), network(scale=2.0)], ids=["weights", "forward"])
def test_another_network_has_its_own(cache, images, other):
    cache.features(network(), images, ALL)
    torch.testing.assert_close(cache.features(other, images, ALL), direct(other, images, ALL))


def test_other_pixels_have_their_own(cache, images, tmp_path):
    cache.features(network(), images, ALL)
    np.save(tmp_path / "squashed.npy", images.pixels)
    same = Images(np.load(tmp_path / "squashed.npy", mmap_mode="r"), SPEC, images.device)
    assert cache.path(network(), same) != cache.path(network(), images)


def write(path: Path, place: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (lambda path: os.truncate(path, 400), ROWS),
        (lambda path: os.truncate(path, 0), ROWS),
        (lambda path: path.write_text("hello"), ROWS),
        (lambda path: np.save(path, np.zeros((3, 3))), ROWS),
        (lambda path: write(path, path.stat().st_size - 5, b"\x99"), 1),
        (lambda path: write(path, path.stat().st_size - 24, bytes(24)), 2),
    ],
)
def test_a_damaged_file_heals(cache, images, damage, lost):
    of = network()
    whole = cache.features(of, images, ALL)
    damage(cache.path(of, images))
    of.module.batches.clear()
    torch.testing.assert_close(cache.features(of, images, ALL), whole)
    assert of.module.rows == lost
    cache.features(of, images, ALL)
    assert of.module.rows == 0


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path, images):
    (tmp_path / "file").write_text("x")
    of, blocked = network(), FeatureCache(tmp_path / "file" / "features", "f", "crop")
    for _ in range(2):
        torch.testing.assert_close(blocked.features(of, images, ALL), direct(of, images, ALL))


def test_no_room_costs_time_only(cache, images, monkeypatch):
    monkeypatch.setenv("AUTOFT_CACHE_LIMIT", "0")
    of = network()
    torch.testing.assert_close(cache.features(of, images, ALL), direct(of, images, ALL))
    assert not [path for path in cache.folder.iterdir() if path.is_file()]


def test_a_disk_that_fills_up_costs_time_only(cache, images, monkeypatch):
    def full(*_: object):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    of = network()
    torch.testing.assert_close(cache.features(of, images, ALL), direct(of, images, ALL))


def test_two_at_the_same_time_compute_it_once(cache, images):
    gate, rows = threading.Barrier(2), []

    def one(of):
        gate.wait()
        cache.features(of, images, ALL)
        rows.append(of.module.rows)

    # Networks of the same weights: their generator is one for all threads.
    threads = [threading.Thread(target=one, args=(network(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(rows) == [0, ROWS]


def test_who_has_no_time_to_wait_computes(cache, images):
    of = network()
    with module.alone(cache.path(of, images).with_suffix(".lock")):
        of.module.batches.clear()
        assert 0 < len(cache.leading(of, images, ALL, lambda: True)) < ROWS


class Watch:
    """A clock that stands still but when it is put forward."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def watch(monkeypatch) -> Watch:
    clock = Watch()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.mark.parametrize(("an_image", "largest"), [(0.2, 4), (0.01, 64), (3.0, 4)])
def test_batches_are_as_large_as_leaves_time_for_a_check(cache, images, watch, an_image, largest):
    of, checks = network(), []
    of.module.slow = lambda count: watch.sleep(count * an_image)
    cache.features(of, images, ALL, lambda: checks.append(watch.now))
    assert max(of.module.batches) <= largest
    steady = np.diff(checks)[2:]
    assert steady.max() <= max(an_image, module.SECONDS_A_BATCH) + 1e-9


def test_seconds_of_a_row_are_those_of_steady_batches(cache, images, watch):
    of = network()
    of.module.slow = lambda count: watch.sleep(count * 0.1 + (15.0 if len(of.module.batches) == 2 else 0.0))
    estimate = cache.row_seconds(of, images, ALL)
    done = of.module.rows
    assert estimate == pytest.approx(0.1)
    assert len(cache.leading(of, images, ALL, lambda: True)) > done
    cache.features(of, images, ALL)
    assert cache.row_seconds(of, images, ALL) == 0.0


def test_features_are_in_memory_once(cache, tmp_path):
    np.save(tmp_path / "many.npy", np.zeros((10_000, 1, 1, 3), np.uint8))
    many = Images(np.load(tmp_path / "many.npy", mmap_mode="r"), InputSpec(1), torch.device("cpu"))
    of = Network.of(nn.Sequential(nn.Flatten(), nn.Linear(3, 512)), InputSpec(1))
    for _ in ("computed", "kept"):
        tracemalloc.start()
        try:
            size = cache.features(of, many, np.arange(10_000)).numpy().nbytes
            assert tracemalloc.get_traced_memory()[1] < 1.1 * size
        finally:
            tracemalloc.stop()


def test_a_table_and_the_limit(cache, monkeypatch):
    monkeypatch.setenv("AUTOFT_CACHE_LIMIT", str(30_000 / 2**30))
    pixels = cache_root() / "pixels" / "a.npy"
    with new_files({pixels: 20_000}):
        pass
    with RowTable.open(cache.folder / "a.npy", 100, 49, create=True) as table:
        table.write(np.arange(100), np.ones((100, 49), np.float32))
    assert not pixels.exists() and (cache.folder / "a.npy").stat().st_size > 20_000


def test_parts_of_a_pass_come_in_few_sizes_however_busy_the_machine_is(monkeypatch):
    """oneDNN keeps some ten MB for each: on a busy machine a worker grew by half a GB over ten thousand images."""
    rng = np.random.default_rng(0)
    seconds = iter(np.cumsum(rng.uniform(0.0, 2.0, 10_000)))
    monkeypatch.setattr("autoft.train.features.time.monotonic", lambda: float(next(seconds)))
    parts = list(_paced(np.arange(2_000), 48))
    assert np.array_equal(np.concatenate(parts), np.arange(2_000))
    assert {len(part) for part in parts[:-1]} <= {1, 2, 4, 8, 16, 32}
    assert len({len(part) for part in parts}) > 2
