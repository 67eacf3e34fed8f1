"""The pixel caches: decoded once, in little memory, harmless to share and to delete."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoft.errors import DataError, UserError
from autoft.media.image import pixel_cache as module
from autoft.media.image.decode import decode, preprocess
from autoft.media.image.pixel_cache import PixelCache, build
from autoft.system import disk_cache
from autoft.values.handoff import Preprocess


def files_of(root: Path) -> list[Path]:
    return sorted(root.rglob("*.png"))


def caches(*sizes: int, fingerprint: str = "f") -> list[PixelCache]:
    return [PixelCache(fingerprint, size) for size in sizes]


def test_rows_are_the_preprocessed_images(tiny_images):
    files = files_of(tiny_images)
    small, large = caches(8, 40)
    assert build([small, large], files, 2) == {}
    for cache in (small, large):
        pixels = cache.open()
        assert isinstance(pixels, np.memmap) and not pixels.flags.writeable
        assert pixels.shape == (36, cache.size, cache.size, 3) and pixels.dtype == np.uint8
        recipe = Preprocess(cache.size, (0, 0, 0), (1, 1, 1))
        for row in (0, 17, 35):
            np.testing.assert_array_equal(pixels[row], preprocess(decode(files[row]), recipe))


def test_each_file_is_decoded_once_for_all_sizes(tiny_images, monkeypatch):
    decoded = []
    monkeypatch.setattr(module, "decode", lambda path, values: decoded.append(path) or decode(path))
    files = files_of(tiny_images)
    build(caches(8, 16, 24), files, 2)
    build(caches(8, 24), files, 2)
    assert sorted(decoded) == files
    build(caches(8, 32), files, 2)
    assert len(decoded) == 2 * len(files)


def test_unreadable_rows_are_zeros_with_a_reason_that_is_remembered(tiny_images):
    files = files_of(tiny_images)
    files[5].write_text("<html>")
    for _ in range(2):
        assert build(caches(8), files, 2) == {5: "not an image: HTML"}
    assert not caches(8)[0].open()[5].any()


def test_the_build_needs_little_memory(tmp_path, own_cache):
    path = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "red").save(path)
    build(caches(8), [path], 1)  # imports and tables
    tracemalloc.start()
    try:
        build(caches(160), [path] * 600, 2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caches(160)[0].path.stat().st_size > 600 * 160 * 160 * 3
    assert peak < 4e6  # of 46 MB


def test_builders_at_the_same_time_do_no_harm(tiny_images, own_cache):
    files = files_of(tiny_images)
    gate = threading.Barrier(4)

    def one(_: int):
        gate.wait()
        build(caches(24), files, 1)
        return np.array(caches(24)[0].open())

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(one, range(4))
    assert first.any() and all(np.array_equal(first, other) for other in others)
    assert [path.name for path in (own_cache / "pixels").iterdir()] == [caches(24)[0].path.name]


def test_nothing_is_left_of_a_build_that_breaks_off(tiny_images, own_cache, monkeypatch):
    def stop(*_: object):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "decode", stop)
    with pytest.raises(KeyboardInterrupt):
        build(caches(8), files_of(tiny_images), 2)
    assert not list((own_cache / "pixels").iterdir())


def test_a_damaged_or_half_deleted_cache_is_built_again(tiny_images):
    files, (cache,) = files_of(tiny_images), caches(8)
    build([cache], files, 1)
    good = np.array(cache.open())
    whole = cache.path.stat().st_size
    for size in (None, 500, 100, 0, whole - 1):
        cache.path.unlink() if size is None else os.truncate(cache.path, size)
        assert cache.unreadable(len(files)) is None
        build([cache], files, 1)
        np.testing.assert_array_equal(cache.open(), good)
    os.truncate(cache.path, 0)
    with pytest.raises(FileNotFoundError):
        cache.open()


def test_a_cache_folder_that_cannot_be_written(tiny_images, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("AUTOFT_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match="AUTOFT_CACHE_DIR"):
        build(caches(8), files_of(tiny_images), 1)


def test_a_disk_that_fills_up_meanwhile(tiny_images, monkeypatch, own_cache):
    def full(*_: object):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk_cache, "move_durably", full)
    with pytest.raises(UserError, match=r"No space left.*AUTOFT_CACHE_DIR"):
        build(caches(8), files_of(tiny_images), 1)
    assert not list((own_cache / "pixels").iterdir())


def in_another_process(target, *arguments):
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def until(true):
    limit = time.monotonic() + 20
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)


def slowly(started: Path, go: Path, counted: Path):
    """A `decode` that says when it starts, waits for `go`, and counts its calls."""

    def decode_slowly(path: Path, _: object):
        started.touch()
        while not go.exists():
            time.sleep(0.01)
        with counted.open("a") as file:
            file.write("x")
        return decode(path)

    return decode_slowly


@pytest.fixture
def slow_builder(tiny_images, tmp_path, monkeypatch):
    """Another process that is in the middle of building; `go` lets it go on, `counted` gets a letter a file."""
    started, go, counted = (tmp_path / name for name in ("started", "go", "counted"))
    with monkeypatch.context() as patched:
        patched.setattr(module, "decode", slowly(started, go, counted))
        process = in_another_process(build, caches(16), files_of(tiny_images), 1)
    until(started.exists)
    yield process, go, counted
    process.kill()
    process.join()


def test_two_runs_that_need_the_same_build_it_once(tiny_images, slow_builder, monkeypatch):
    process, go, counted = slow_builder
    monkeypatch.setattr(module, "decode", None)
    assert build(caches(16), files_of(tiny_images), 1, check=go.touch) == {}
    process.join()
    assert len(counted.read_text()) == 36 and caches(16)[0].open().any()


def test_the_second_takes_over_when_the_first_is_killed(tiny_images, slow_builder, own_cache):
    process, _, _ = slow_builder
    assert build(caches(16), files_of(tiny_images), 1, check=lambda: os.kill(process.pid, signal.SIGKILL)) == {}
    assert caches(16)[0].open().any()
    build(caches(8), files_of(tiny_images), 1)  # whoever makes room next removes what the dead one left
    assert {path.suffix for path in (own_cache / "pixels").iterdir()} == {".npy"}


class Stopped(Exception):
    pass


def stop_after(calls: int):
    left = iter(range(calls))

    def check():
        if next(left, None) is None:
            raise Stopped

    return check


@pytest.mark.parametrize("calls", [0, 1, 20])
def test_building_can_be_stopped_between_files(tiny_images, own_cache, calls):
    with pytest.raises(Stopped):
        build(caches(8), files_of(tiny_images), 2, stop_after(calls))
    assert not list((own_cache / "pixels").iterdir())
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("autoft-data")])


def test_waiting_for_another_run_can_be_stopped(tiny_images, slow_builder):
    with pytest.raises(Stopped):
        build(caches(16), files_of(tiny_images), 1, stop_after(3))


@pytest.mark.parametrize(
    "fault", [MemoryError(), OSError(24, "Too many open files"), PermissionError(13, "Permission denied")]
)
def test_a_fault_of_the_machine_is_no_fault_of_the_image(tiny_images, own_cache, monkeypatch, fault):
    files = files_of(tiny_images)
    monkeypatch.setattr(module, "_PAUSES", (0.0, 0.0))
    faults = iter([fault, fault])

    def failing(self):
        if self == files[5] and (error := next(faults, None)):
            raise error
        with self.open("rb") as file:
            return file.read()

    monkeypatch.setattr(Path, "read_bytes", failing)
    assert build(caches(8), files, 2) == {}
    faults = iter([fault] * 3)
    with pytest.raises(DataError, match=rf"{files[5]} cannot be read: .*start again"):
        build(caches(16), files, 2)
    assert [path.name for path in (own_cache / "pixels").iterdir()] == [caches(8)[0].path.name]


def test_caches_of_one_data_set_agree_on_what_is_unreadable(tiny_images, monkeypatch):
    files = files_of(tiny_images)
    files[5].write_text("<html>")
    build(caches(8), files, 2)
    whole = files[7].read_bytes()
    files[7].write_bytes(whole[:90])
    with pytest.raises(DataError, match=rf"{files[7]} could be decoded before and cannot now"):
        build(caches(16), files, 2)
    files[7].write_bytes(whole)
    files[5].write_bytes(whole)
    assert build(caches(16), files, 2) == {5: "not an image: HTML"} == caches(16)[0].unreadable(36)
